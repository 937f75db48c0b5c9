"""Eigenpairs of a positive semidefinite matrix from a given block and a fixed number of products, without tests."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of, from_host, host_svd, to_host
from rnla._orth import cholesky_step, orth, orth_factors
from rnla._tall import like, times, times_small

SHIFTS = (1.0, 10.0, 100.0, 1e4)  # multiples of the first shift that are tried


def block_range(multiply, X, products, *, orthonormal=True):
    """Return Q, an orthonormal basis of the range of ``A**products X``, and ``A Q``.

    The block is made orthonormal after every product: in powers of A alone the directions of small eigenvalues are lost
    to rounding, in single precision from the third product on. Between products, and without `orthonormal` for the
    result, one round of Cholesky QR is enough, which leaves a condition below 2.

    Parameters
    ----------
    multiply : callable
        ``X -> A X``.
    X : array, shape (n, b)
        Start block, ``b <= n``, not kept; its columns should be of similar norm.
    products : int
        Products that build the range, at least one; one more is made for the result.
    orthonormal : bool
        Whether Q must be orthonormal to rounding; `nystrom_pairs` needs no more than its range.
    """
    for left in range(products - 1, -1, -1):
        Y = multiply(X)
        nearly = None if orthonormal and not left else cholesky_step(Y)
        X, _ = nearly or orth(Y, overwrite=True)
    return X, multiply(X)


def ritz_pairs(Q, Y):
    """Return the Ritz values, falling, and vectors of A in the range of Q, from ``Y = A Q``."""
    T = to_host(adjoint(Q) @ Y)
    w, V = np.linalg.eigh((T + T.conj().T) / 2)
    return _out(w[::-1], Q), times(Q, V[:, ::-1])


def singular_pairs(Q, Y):
    """Return the singular values and right singular vectors of ``Q^H A``, from ``Y = A Q``."""
    X, W, R = orth_factors(Y)
    U, s, _ = host_svd(R)
    return _out(s, Q), times(X, W @ U)


def nystrom_pairs(Q, Y, shift):
    """Return the eigenvalues, falling, and vectors of ``Y (Q^H Y)^-1 Y^H``, from ``Y = A Q``.

    Parameters
    ----------
    Q, Y : array, shape (n, b)
        Well-conditioned columns, and their product with A; Y is not kept.
    shift : float
        Multiple of the identity added to A for stability and subtracted from the eigenvalues; more is tried if it does
        not suffice.

    Raises
    ------
    numpy.linalg.LinAlgError
        If A is not positive semidefinite to working precision.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, NeurIPS 2017, Algorithm 3.
    """
    H = to_host(adjoint(Q) @ Y)
    H = (H + H.conj().T) / 2
    for factor in SHIFTS:
        nu = shift * factor
        try:
            C = np.linalg.cholesky(H + nu * np.eye(len(H))).conj().T
        except np.linalg.LinAlgError:
            if factor == SHIFTS[-1]:
                raise
            continue
        break
    F = times_small(Y + nu * Q, np.linalg.inv(C), overwrite=True)
    # F has columns of every length: its range is made orthonormal before the small eigenvectors are applied, which
    # dividing F V by the lengths would not give.
    X, W, R = orth_factors(F)
    w, V = np.linalg.eigh(R @ R.conj().T)
    return _out(np.maximum(w[::-1] - nu, 0.0), Q), times(X, W @ V[:, ::-1])


def default_shift(trace, n, dtype, xp):
    """Return the rounding of the mean eigenvalue, a shift that changes no figure of the others."""
    return eps_of(xp, dtype) * trace / n


def _out(values, Q):
    return from_host(np.ascontiguousarray(values), array_namespace(Q), like(np.zeros(1), Q).dtype, device(Q))
