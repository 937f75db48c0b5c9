"""Both square roots of a dense matrix by matrix products alone."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of
from rnla._errors import AccuracyWarning
from rnla._rangefinder import warn

MARGIN = 1.0001  # eigenvalues after scaling are below 1
MAX_STEPS = 100
SINGLE_LIMIT = 1e4  # condition number to which single precision is good enough


@np.errstate(over="ignore", invalid="ignore")  # of an iteration that diverges, which is found afterwards
def newton_schulz(A, caller):
    """Return ``A^(1/2)`` and ``A^(-1/2)`` of a positive definite matrix; about ``4 log10(kappa) + 6`` iterations.

    References
    ----------
    .. [1] Higham, Functions of Matrices (2008), section 6.3.
    """
    xp, n = array_namespace(A), A.shape[0]
    eye = xp.eye(n, dtype=A.dtype, device=device(A))
    scale = MARGIN * float(xp.sqrt(xp.sum(xp.abs(A) ** 2)))
    Y, Z = A / scale, eye
    best, least = np.inf, 10 * n * eps_of(xp, A.dtype)
    for _ in range(MAX_STEPS):
        ZY = Z @ Y
        error = float(xp.sqrt(xp.sum(xp.abs(eye - ZY) ** 2)))
        if error <= least or (error >= best and error < 0.1):
            break
        best = min(best, error)
        T = (3 * eye - ZY) / 2
        Y, Z = Y @ T, T @ Z
        Y, Z = (Y + adjoint(Y)) / 2, (Z + adjoint(Z)) / 2
    S, T = Y * scale**0.5, Z / scale**0.5
    kappa = float(xp.sqrt(xp.sum(xp.abs(S) ** 2)) * xp.sqrt(xp.sum(xp.abs(T) ** 2))) ** 2
    if not np.isfinite(kappa) or not error <= 0.1:
        raise ValueError(f"{caller}: A must be positive definite for method='newton_schulz'; the iteration diverged.")
    if eps_of(xp, A.dtype) > 1e-10 and kappa > SINGLE_LIMIT * n:
        warn(
            f"{caller}: roots in single precision of a matrix of condition {kappa:.1e} have few right digits; use "
            "method='eigh'", AccuracyWarning,
        )  # fmt: skip
    return S, T
