"""How far a truncated SVD is from the best one."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse

# A backward stable method perturbs A by a few eps * ||A||: errors below that are rounding, and count as equal.
ROUNDING = 4


@dataclass(frozen=True)
class Errors:
    """Errors of one result; `floors` are the sizes of rounding in the first two."""

    sigma: float  # max_j |s_j - sigma_j| / sigma_j
    excess: float  # ||A - U S Vh||_F / (the least possible) - 1
    residual: float  # max_j max(||A v_j - s_j u_j||, ||A^H u_j - s_j v_j||) / s_j
    floors: tuple

    def no_larger_than(self, other):
        """Say whether neither the singular values nor the approximation are worse than in `other`."""
        return self.sigma <= max(other.sigma, other.floors[0]) and self.excess <= max(other.excess, other.floors[1])


def errors(A, U, S, Vh, sigma, norm_sq):
    """Compare ``(U * S) @ Vh`` with A, whose leading singular values are `sigma` and squared norm `norm_sq`.

    Everything is computed in double precision, whatever the dtype of the result, and the residual matrix is never
    formed: ``||A - U S Vh||_F^2 = ||A||_F^2 - 2 Re <U S, A V> + <S U^H U S, V^H V>`` holds for factors that are not
    quite orthonormal too. Rounding in it is eps * norm_sq.
    """
    k = len(sigma)
    U, S, Vh = (np.asarray(factor, dtype=np.float64) for factor in (U, S, Vh))
    if S.shape != (k,) or not all(np.isfinite(factor).all() for factor in (U, S, Vh)):
        raise ValueError(f"a result of {S.shape} singular values, or one that is not finite, cannot be compared")
    V = Vh.T
    AV, AtU = products(A, V, U)
    residual_sq = norm_sq - 2 * np.sum(U * S * AV) + np.sum((U.T @ U * S * S[:, np.newaxis]) * (Vh @ V))
    optimum_sq = norm_sq - np.sum(sigma**2)
    safe = np.maximum(S, np.finfo(float).tiny)
    sides = np.linalg.norm(AV - U * S, axis=0), np.linalg.norm(AtU - V * S, axis=0)
    eps, double = float(np.finfo(A.dtype).eps), float(np.finfo(np.float64).eps)
    # A backward error in the factors is all but orthogonal to the tail and enters the excess squared; the formula above
    # rounds in double precision; and where sigma is that of A before it was rounded to its dtype, each of them moves by
    # about eps * ||A||_F / sqrt(m * n).
    per_norm = (ROUNDING * eps) ** 2 + ROUNDING * double + ROUNDING * eps / np.sqrt(A.shape[0] * A.shape[1])
    return Errors(
        sigma=float(np.max(np.abs(S - sigma) / sigma)),
        excess=float(np.sqrt(max(residual_sq, 0.0) / optimum_sq) - 1),
        residual=float(np.max(np.maximum(*sides) / safe)),
        floors=(ROUNDING * eps * float(sigma[0] / sigma[-1]), float(per_norm * norm_sq / optimum_sq)),
    )


def products(A, V, U):
    """Return ``A @ V`` and ``A.T @ U`` in double precision, converting a dense A a block of rows at a time."""
    if scipy.sparse.issparse(A):
        A = A.astype(np.float64)
        return A @ V, A.T @ U
    AV = np.empty((A.shape[0], V.shape[1]))
    AtU = np.zeros((A.shape[1], U.shape[1]))
    for rows in row_slices(A):
        block = A[rows].astype(np.float64)
        AV[rows] = block @ V
        AtU += block.T @ U[rows]
    return AV, AtU


def norm_squared(A):
    """Return the squared Frobenius norm, accumulated in double precision."""
    if scipy.sparse.issparse(A):
        return float(np.sum(A.data.astype(np.float64) ** 2))
    return float(sum(np.sum(A[rows].astype(np.float64) ** 2) for rows in row_slices(A)))


def row_slices(A):
    """Return slices of rows of about 32 MB in double precision."""
    step = max(1, 2**22 // A.shape[1])
    return [slice(start, start + step) for start in range(0, A.shape[0], step)]
