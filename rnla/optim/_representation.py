"""A symmetric positive semidefinite matrix as low rank plus scaled identity, and its damped inverse."""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from rnla._rangefinder import check_choice
from rnla.optim._checks import check_damping, scalar_like
from rnla.optim._symmetric import eigenpairs, floor_of, ridged, spd_inverse


class DampedInverse(NamedTuple):
    """``(M + delta I)^-1`` in the form in which it is applied at every step.

    Attributes
    ----------
    base : array, shape () or (d,)
        Multiple of the identity, or the diagonal; 0-d zero where `matrix` is the inverse.
    U : array, shape (d, r), or None
        Orthonormal columns.
    weights : array, shape (r,), or None
        The inverse is ``base I + U diag(weights) U^T``.
    matrix : array, shape (d, d), or None
        The inverse as a dense matrix.
    delta : array, shape ()
        Damping, after it was raised to the rounding of the largest eigenvalue.

    Examples
    --------
    >>> inverse = rnla.optim.factor_inverse(np.diag([3.0, 1.0]), method="eigh").damp(1.0)
    >>> inverse.apply(np.eye(2)).round(6).tolist()
    [[0.25, 0.0], [0.0, 0.5]]
    """

    base: Any
    U: Any
    weights: Any
    matrix: Any
    delta: Any

    def apply(self, X, side="left"):
        """Return ``(M + delta I)^-1 X``, or with ``side="right"`` ``X (M + delta I)^-1``."""
        if side == "right":
            if self.matrix is not None:
                return X @ self.matrix
            scaled = X * self.base
            return scaled if self.U is None else scaled + ((X @ self.U) * self.weights) @ self.U.T
        if self.matrix is not None:
            return self.matrix @ X
        scaled = X * (self.base[:, None] if self.base.ndim else self.base)
        return scaled if self.U is None else scaled + self.U @ (self.weights[:, None] * (self.U.T @ X))


class FactorInverse(NamedTuple):
    """``U diag(lam) U^T + tail (I - U U^T)``: what is known of a symmetric positive semidefinite matrix M.

    Attributes
    ----------
    U : array, shape (d, r), or None
        Orthonormal columns; for ``kind="dense"`` the leading eigenvector alone.
    lam : array, shape (r,)
        Non-negative and falling.
    tail : array, shape ()
        Value for all other directions; without any (r = d) it is ``lam[0]``, with which `solve` cancels nothing.
    dim : int
        Dimension d.
    kind : {"lowrank", "eigen", "dense", "diagonal", "identity"}
        ``eigen``: r = d. ``dense``: M itself is kept, in `matrix`. ``diagonal``: `lam` is the diagonal of M, in its own
        order. ``identity``: M is zero, or nothing is known of it; every solve returns its argument.
    tail_rule : {"zero", "min", "trace"}
        How `tail` was chosen; `brand_update` goes on with it.
    matrix : array, shape (d, d), or None
        M, for ``kind="dense"``.
    outcome : {"ok", "retried", "kept", "identity"}
        Whether it took a second attempt with a ridge, the matrix of the time before was kept, or nothing is known.

    Examples
    --------
    >>> M = np.diag([5.0, 2.0, 2.0, 2.0])
    >>> inv = rnla.optim.factor_inverse(M, method="sre", rank=1, rng=0)
    >>> np.allclose(inv.solve(np.ones((4, 1)), 1.0)[:, 0], [1 / 6, 1 / 3, 1 / 3, 1 / 3])
    True
    """

    U: Any
    lam: Any
    tail: Any
    dim: int
    kind: str = "lowrank"
    tail_rule: str = "trace"
    matrix: Any = None
    outcome: str = "ok"

    @property
    def rank(self):
        """Number of eigenpairs kept."""
        return self.lam.shape[0]

    @property
    def lmax(self):
        """Largest eigenvalue, 0-d."""
        xp = array_namespace(self.lam)
        if self.kind in ("diagonal", "dense"):
            return xp.max(self.lam)
        return xp.maximum(self.lam[0], self.tail) if self.rank else self.tail

    @property
    def trace(self):
        """Trace, 0-d."""
        xp = array_namespace(self.lam)
        if self.kind == "dense":
            return xp.linalg.trace(self.matrix)
        total = xp.sum(self.lam)
        return total if self.kind == "diagonal" else total + self.tail * (self.dim - self.rank)

    @property
    def square_norm(self):
        """Squared Frobenius norm, 0-d."""
        xp = array_namespace(self.lam)
        if self.kind == "dense":
            return xp.sum(self.matrix**2)
        total = xp.sum(self.lam**2)
        return total if self.kind == "diagonal" else total + self.tail**2 * (self.dim - self.rank)

    def damp(self, delta):
        """Return the `DampedInverse` for a damping: dense where that is applied faster, at the cost of forming it once.

        Falls back on an eigendecomposition where the Cholesky factorisation of a dense M fails.
        """
        check_damping(delta, "delta", "rnla.optim.FactorInverse.damp")
        if self.kind == "dense":
            return self._damped_dense(self.floored(delta))
        factored = self._damped(delta)
        if self.kind in ("lowrank", "eigen") and 2 * self.rank > self.dim:
            X = (self.U * factored.weights) @ self.U.T
            return factored._replace(matrix=ridged(X, factored.base), U=None, weights=None)
        return factored

    def solve(self, X, delta, side="left"):
        """Return ``(M + delta I)^-1 X``, or with ``side="right"`` ``X (M + delta I)^-1``; ``4 d r`` flops a column."""
        check_damping(delta, "delta", "rnla.optim.FactorInverse.solve")
        check_choice(side, "side", ("left", "right"), "rnla.optim.FactorInverse.solve")
        if self.kind == "dense":
            return self._damped_dense(self.floored(delta)).apply(X, side)
        return self._damped(delta).apply(X, side)

    def matmul(self, X):
        """Return ``M X``."""
        if self.kind == "dense":
            return self.matrix @ X
        if self.kind == "diagonal":
            return self.lam[:, None] * X
        scaled = self.tail * X
        return scaled if self.U is None else scaled + self.U @ ((self.lam - self.tail)[:, None] * (self.U.T @ X))

    def dense(self, delta=0.0):
        """Return ``M + delta I`` as a dense array."""
        identity = array_namespace(self.lam).eye(self.dim, dtype=self.lam.dtype, device=device(self.lam))
        return self.matmul(identity) + delta * identity

    def logdet(self, delta=0.0):
        """Return ``log det(M + delta I)``, 0-d; minus infinity where it is singular."""
        xp = array_namespace(self.lam)
        if self.kind == "dense":
            return xp.sum(xp.log(xp.linalg.eigvalsh(self.dense(delta))))
        with np.errstate(divide="ignore"):
            total = xp.sum(xp.log(self.lam + delta))
            missing = 0 if self.kind == "diagonal" else self.dim - self.rank
            return total + missing * xp.log(self.tail + delta) if missing else total

    def floored(self, delta):
        """Return a damping of at least the rounding of the largest eigenvalue, 0-d."""
        xp = array_namespace(self.lam)
        return xp.maximum(scalar_like(delta, self.lam), floor_of(self.lmax, self.lam))

    def _damped(self, delta):
        xp = array_namespace(self.lam)
        if self.kind == "identity":
            return DampedInverse(xp.ones_like(self.tail), None, None, None, scalar_like(delta, self.lam))
        delta = self.floored(delta)
        if self.kind == "diagonal":
            return DampedInverse(1 / (self.lam + delta), None, None, None, delta)
        base = 1 / (self.tail + delta)
        # One fraction: a difference of reciprocals would cancel.
        return DampedInverse(base, self.U, (self.tail - self.lam) / (self.lam + delta) * base, None, delta)

    def _damped_dense(self, delta):
        xp = array_namespace(self.matrix)
        try:
            inverse = spd_inverse(ridged(self.matrix, delta))
        except (np.linalg.LinAlgError, RuntimeError):
            w, V = eigenpairs(self.matrix)
            inverse = (V / (xp.clip(w, min=0.0) + delta)) @ V.T
        return DampedInverse(xp.zeros_like(delta), None, None, inverse, delta)


def tail_of(lam, trace, d, rule):
    """Return the value for the directions left out, 0-d; `trace` is that of the whole matrix, 0-d or a number."""
    xp, rank = array_namespace(lam), lam.shape[0]
    if rank == d:
        return lam[0]
    if rule == "trace":
        # In double precision: the rest of the trace is a difference.
        wide = xp.astype(lam, xp.float64)
        rest = xp.clip((scalar_like(trace, wide) - xp.sum(wide)) / (d - rank), min=0.0)
        return xp.astype(rest, lam.dtype)
    return lam[-1] if rule == "min" and rank else xp.zeros((), dtype=lam.dtype, device=device(lam))
