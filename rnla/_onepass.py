"""Singular triplets from sketches that do not adapt: one read of the rows, or one product with A and one with A^H."""

import math

import numpy as np

from rnla._backend import adjoint, eps_of, host_svd, to_host
from rnla._errors import AccuracyWarning
from rnla._orth import orth
from rnla._rangefinder import check_range, thin_svd, warn
from rnla._tall import inner, like, test_columns, times


def row_stream(M, k, n_oversamples, sketch, key, caller):
    """Compute ``Y = A Omega`` and ``H = A^H A Omega`` in one read of the rows; return U, s, V and ``||A||_F**2``.

    As accurate as subspace iteration with two passes and as many columns, ``2 k + n_oversamples``.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, SIAM J. Sci. Comput. 41 (2019), for the setting and the comparison.
    """
    count = min(2 * k + n_oversamples, *M.shape)
    wide = M.shape[0] < M.shape[1]
    for swap in (wide, not wide):  # columns of A are rows of its adjoint
        W = M.H if swap else M
        X = test_columns(W, 1, sketch, key, count)
        products = W.image_and_gram(X)
        if products is not None:
            break
    else:
        raise ValueError(
            f"{caller}: method 'rowstream' needs the rows or columns of A; got a matrix known by products."
        )
    M, (Y, H, total) = W, products
    xp, eps = M.xp, eps_of(M.xp, M.dtype)
    check_range(M, None, Y, caller)
    Q, R = orth(Y)
    W, s, Zh = host_svd(R)
    keep = int(np.sum(s > 10 * math.sqrt(eps) * s[0])) if s[0] > 0 else 0
    if keep < k and s[min(keep, len(s) - 1)] > 100 * eps * s[0]:
        # Dividing H by smaller values would blow up its rounding; only a second read could tell them from zero.
        warn(
            f"{caller}: one pass resolves {keep} of {k} singular values, those above {10 * math.sqrt(eps):.0e} of the "
            "largest; allow more passes for the others.",
            AccuracyWarning,
        )
    # B = U^H A with U = Q W: from Y^H A = H^H, and Y = U s Zh.
    Bh = xp.astype(H, M.dtype) @ like(Zh[:keep].conj().T / s[:keep], Y)
    V, s, Xh = thin_svd(Bh)
    U = times(Q, W[:, :keep] @ to_host(adjoint(Xh)))
    return (V, s, U, total) if swap else (U, s, V, total)


def generalized_nystrom(M, k, n_oversamples, sketch, key, caller):
    """Combine the sketches ``A X`` and ``Y^H A``, two products that may be made in any order; return U, s, V, None.

    Not a projection: on a flat spectrum its singular values are far too large.

    References
    ----------
    .. [1] Nakatsukasa, arXiv 2009.11392.  [2] Tropp, Yurtsever, Udell, Cevher, SIAM J. Matrix Anal. Appl. 38 (2017).
    """
    m, n = M.shape
    count = min(k + n_oversamples, m, n)
    more = min(count + -(-count // 2), m)
    X = test_columns(M, 1, sketch, key, count)
    Y = test_columns(M, 0, sketch, key, more, stream=1)
    AX = M.matmat(X)
    check_range(M, X, AX, caller)
    Q = orth(AX)[0]
    AhY = M.rmatmat(Y)
    # Least squares (Y^H Q) B = Y^H A by orthogonal factors: a pseudoinverse of the core would lose its small part.
    G, s, Wh = thin_svd(like(inner(Y, Q), Q) if M.far == 0 else adjoint(Y) @ Q)
    cut = s > 10 * eps_of(M.xp, M.dtype) * M.xp.max(s)
    inverse = M.xp.where(cut, 1 / M.xp.where(cut, s, M.xp.ones_like(s)), M.xp.zeros_like(s))
    Bh = times(times(AhY, G * inverse), Wh)
    V, s, Xh = thin_svd(Bh)
    return times(Q, adjoint(Xh)), s, V, None
