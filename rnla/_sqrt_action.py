"""Products with the roots of a matrix that is known by shifted solves, or by its products only."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of, from_host, host_svd, real_dtype, to_host
from rnla._orth import orth
from rnla._rational import node_count, zolotarev_nodes
from rnla._sqrt_kinds import Base, product

MAX_STEPS = 300
SOLVED = 1e-10  # precision of such a solve
NEW = 100.0  # times rounding: directions that are smaller are none


class Rooted(Base):
    """A `Shifted` base to which roots are added; what it knew before, it knows still."""

    def __init__(self, base):
        super().__init__(base.n, base.dtype, base.xp, base.device)
        self.inner, self.bounds, self.kind, self.solvable = base, base.bounds, base.kind, base.solvable
        self.times, self.shift_solve = base.times, base.shift_solve
        self.logdet, self.power_diagonal = base.logdet, base.power_diagonal


class ByQuadrature(Rooted):
    """A `Shifted` base with roots: ``A^(1/2) b = sum w (b - tau (A + tau)^-1 b)``, on the nodes of the correction."""

    def __init__(self, base, low, high, tol):
        super().__init__(base)
        self.tau, self.w = zolotarev_nodes(low, high, n_nodes=node_count(high / low, tol))

    def sqrt_times(self, X):
        # Not A times the inverse root: that would lose the root of the condition number to rounding.
        total = None
        for tau, w in zip(self.tau, self.w, strict=True):
            term = float(w) * (X - float(tau) * self.shift_solve(float(tau), X))
            total = term if total is None else total + term
        return total

    def inv_sqrt_times(self, X):
        total = None
        for tau, w in zip(self.tau, self.w, strict=True):
            term = float(w) * self.shift_solve(float(tau), X)
            total = term if total is None else total + term
        return total


class ByLanczos(Rooted):
    """A base known by its products: a root times a block from the Krylov space of the block."""

    def __init__(self, base, tol):
        super().__init__(base)
        self.tol = tol

    def sqrt_times(self, X):
        return self._apply(X, 0.5)

    def inv_sqrt_times(self, X):
        return self._apply(X, -0.5)

    def solve(self, X):
        return self._apply(X, -1.0)

    def _apply(self, X, power):
        xp = self.xp
        if not X.shape[1]:
            return X
        X = xp.astype(X, xp.result_type(X.dtype, self.dtype), copy=False)
        if not float(xp.max(xp.abs(X))):
            return X
        V = last = orthonormal_beside(X, None)
        AV, old = self.times(V), None
        for _ in range(MAX_STEPS):
            lam, Q = np.linalg.eigh(to_host(adjoint(V) @ AV))
            C = (Q * np.maximum(lam, 1e-300) ** power) @ (Q.conj().T @ to_host(adjoint(V) @ X))
            if old is not None:
                change = np.linalg.norm(C - np.pad(old, ((0, len(C) - len(old)), (0, 0))))
                if change <= self.tol * np.linalg.norm(C) or V.shape[1] >= self.n:
                    break
            old = C
            last = orthonormal_beside(AV[:, -last.shape[1] :], V)
            if not last.shape[1]:
                break
            V, AV = xp.concat([V, last], axis=1), xp.concat([AV, self.times(last)], axis=1)
        return product(V, from_host(C, xp, V.dtype, self.device))


def with_roots(base, low, high, tol):
    """Return a base whose roots can be multiplied by: itself if it has them."""
    if base.has_roots:
        return base
    if not low > 0:  # a singular matrix: the error is relative to the norm of the root, and shifts must be resolved
        low = max(tol**2, 10 * eps_of(base.xp, base.dtype)) * high
    return ByQuadrature(base, low, high, tol) if base.solvable else ByLanczos(base, tol)


def solved(base, X):
    """Return ``A^-1 X``, from the Krylov space of X where A has its products only."""
    if getattr(base, "solvable", True):
        return base.solve(X)
    return ByLanczos(base, SOLVED).solve(X)


def orthonormal_beside(X, V):
    """Return an orthonormal basis of what X has beside V, to rounding in columns of X of unit norm."""
    xp = array_namespace(X)
    size = to_host(xp.sqrt(xp.sum(xp.abs(X) ** 2, axis=0)))
    X = X / from_host(np.where(size > 0, size, 1.0), xp, real_dtype(xp, X.dtype), device(X))
    room = X.shape[0]
    if V is not None:
        room -= V.shape[1]
        X = _beside(X, V)
    if not (X.shape[1] and room > 0):
        return X[:, :0]
    Q, R = orth(X, "qr")
    U, s, _ = host_svd(R)  # a diagonal without pivots may hide dependent columns
    some = U[:, s > NEW * eps_of(xp, X.dtype) * R.shape[1] ** 0.5][:, :room]
    Q = Q @ from_host(some, xp, Q.dtype, device(Q))
    return Q if V is None or not Q.shape[1] else orth(_beside(Q, V), "qr")[0]


def _beside(X, V):
    for _ in range(2):
        X = X - V @ (adjoint(V) @ X)
    return X
