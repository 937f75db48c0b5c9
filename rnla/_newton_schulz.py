"""Both square roots of a dense matrix by matrix products alone."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of
from rnla._errors import AccuracyWarning
from rnla._rangefinder import warn

MARGIN = 1.0001  # eigenvalues after scaling are below 1
MAX_STEPS = 100
SINGLE_LIMIT = 1e4  # condition number to which single precision is good enough
POWER_STEPS = 10  # the estimate of it is low by a few per cent


@np.errstate(over="ignore", invalid="ignore")  # of an iteration that diverges, which is found afterwards
def newton_schulz(A, caller):
    """Return ``A^(1/2)`` and ``A^(-1/2)`` of a positive definite matrix; about ``4 log10(kappa) + 6`` iterations.

    None, with a warning, where single precision would leave few right digits.

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
    if not error <= 0.1:
        raise ValueError(f"{caller}: A must be positive definite for method='newton_schulz'; the iteration diverged.")
    if eps_of(xp, A.dtype) > 1e-10:
        kappa = (_norm(S) * _norm(T)) ** 2
        if kappa > SINGLE_LIMIT:
            warn(
                f"{caller}: method='newton_schulz' would leave few right digits in single precision, at a condition "
                f"of {kappa:.1e}; the eigendecomposition is used", AccuracyWarning,
            )  # fmt: skip
            return None
    return S, T


def _norm(M):
    """Estimate the largest eigenvalue of a positive definite matrix by the power method."""
    xp = array_namespace(M)
    v = M[:, int(xp.argmax(xp.sum(xp.abs(M) ** 2, axis=0)))]
    for _ in range(POWER_STEPS):
        v = M @ (v / xp.sqrt(xp.sum(xp.abs(v) ** 2)))
    return float(xp.sqrt(xp.sum(xp.abs(v) ** 2)))
