"""Kinds of positive definite matrices whose square root is cheap to apply."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of, real_dtype
from rnla._errors import NotPositiveDefiniteError

LOW, HIGH = 0.5, 1.05  # safety of estimated ends of the spectrum: a factor 4 in their ratio costs a node or two
LANCZOS_STEPS = 30
KEPT = 128  # factorisations kept at a time


def product(M, X):
    """Return ``M @ X`` in their common dtype, which not every library finds by itself."""
    if M.dtype != X.dtype:
        xp = array_namespace(M, X)
        dtype = xp.result_type(M, X)
        M, X = xp.astype(M, dtype, copy=False), xp.astype(X, dtype, copy=False)
    return M @ X


class Base:
    """A Hermitian positive definite matrix A of order n; subclasses have its products, roots and shifted solves.

    ``scaled(c)`` is the view of ``c A``, ``power_diagonal(p)`` the diagonal of ``A**p`` for p of 1/2 and -1/2.

    Attributes
    ----------
    n : int
        Order.
    dtype, xp, device
        Of blocks of columns.
    bounds : tuple of float
        Numbers between which all eigenvalues are.
    """

    kind = ""
    has_roots = True  # sqrt_times needs no nodes

    def __init__(self, n, dtype, xp, device):
        self.n, self.dtype, self.xp, self.device = n, dtype, xp, device

    def solve(self, X):
        """Return ``A^-1 X``."""
        return self.shift_solve(0.0, X)

    def check_positive(self, caller):
        """Raise unless the smallest eigenvalue is positive."""
        if not self.bounds[0] > 0:
            raise NotPositiveDefiniteError(
                f"{caller}: A must be positive definite; its smallest eigenvalue is {self.bounds[0]:.3g}.", gap=0.0
            )


class Diagonalised(Base):
    """``A = Q diag(d) Q^H``; Q may be missing (a diagonal matrix), an array, or a Kronecker product of arrays."""

    def __init__(self, d, Q=None, *, kind="diagonal", dtype=None):
        xp = array_namespace(d)
        super().__init__(d.shape[0], dtype or d.dtype, xp, device(d))
        self.d, self.Q, self.kind = d, Q, kind

    @classmethod
    def of_dense(cls, A, caller):
        """Diagonalise a dense matrix; eigenvalues that are negative by rounding become zero."""
        xp = array_namespace(A)
        d, Q = xp.linalg.eigh(A)
        top = float(xp.max(xp.abs(d)))
        if float(d[0]) < -100 * A.shape[0] * eps_of(xp, A.dtype) * top:
            raise NotPositiveDefiniteError(
                f"{caller}: A must be positive semidefinite; it has the eigenvalue {float(d[0]):.3g}.",
                gap=float(d[0]) / top,
            )
        return cls(xp.where(d < 0, xp.zeros_like(d), d), Q, kind="dense", dtype=A.dtype)

    @cached_property
    def root(self):
        return self.xp.sqrt(self.d)

    @cached_property
    def bounds(self):
        return float(self.xp.min(self.d)), float(self.xp.max(self.d))

    def rotate(self, X):
        """Return ``Q^H X``."""
        if self.Q is None:
            return X
        return kron_times([adjoint(Q) for Q in self.Q], X) if isinstance(self.Q, list) else product(adjoint(self.Q), X)

    def back(self, X):
        """Return ``Q X``."""
        if self.Q is None:
            return X
        return kron_times(self.Q, X) if isinstance(self.Q, list) else product(self.Q, X)

    def times(self, X):
        return self._scaled(self.d, X)

    def sqrt_times(self, X):
        return self._scaled(self.root, X)

    def inv_sqrt_times(self, X):
        return self._scaled(1 / self.root, X)

    def shift_solve(self, tau, X):
        return self._scaled(1 / (self.d + tau), X)

    def power_diagonal(self, power):
        """Return the diagonal of ``A**power``."""
        values = self.d**power
        if self.Q is None:
            return values
        factors = self.Q if isinstance(self.Q, list) else [self.Q]
        xp = self.xp
        X = xp.reshape(values, tuple(Q.shape[0] for Q in factors))
        for axis, Q in enumerate(factors):
            weights = xp.astype(xp.abs(Q) ** 2, values.dtype)
            X = xp.moveaxis(xp.tensordot(weights, X, axes=((1,), (axis,))), 0, axis)
        return xp.reshape(X, (-1,))

    def logdet(self):
        return float(self.xp.sum(self.xp.log(self.d)))

    def scaled(self, c):
        return Diagonalised(c * self.d, self.Q, kind=self.kind, dtype=self.dtype)

    def _scaled(self, weights, X):
        X = self.rotate(X)
        return self.back(self.xp.astype(weights, real_dtype(self.xp, X.dtype))[:, None] * X)


def kron_times(factors, X):
    """Return ``(Q_1 kron Q_2 kron ...) X`` for a block of columns X."""
    xp = array_namespace(X)
    dtype = xp.result_type(X, *factors)
    T = xp.reshape(xp.astype(X, dtype, copy=False), (*(Q.shape[1] for Q in factors), X.shape[1]))
    for axis, Q in enumerate(factors):
        T = xp.moveaxis(xp.tensordot(xp.astype(Q, dtype, copy=False), T, axes=((1,), (axis,))), 0, axis)
    return xp.reshape(T, (-1, X.shape[1]))


class Roots(Base):
    """A dense matrix known by its root S and the inverse T of that."""

    kind = "roots"

    def __init__(self, S, T):
        super().__init__(S.shape[0], S.dtype, array_namespace(S), device(S))
        self.S, self.T = S, T

    @cached_property
    def bounds(self):
        return LOW / largest(self.inv_sqrt_times, self) ** 2, HIGH * largest(self.sqrt_times, self) ** 2

    def times(self, X):
        return product(self.S, product(self.S, X))

    def sqrt_times(self, X):
        return product(self.S, X)

    def inv_sqrt_times(self, X):
        return product(self.T, X)

    def solve(self, X):
        return product(self.T, product(self.T, X))

    def power_diagonal(self, power):
        diagonal = self.xp.linalg.diagonal(self.S if power == 0.5 else self.T)
        return self.xp.real(diagonal) if _is_complex(self) else diagonal

    def logdet(self):
        return 2 * float(self.xp.linalg.slogdet(self.S)[1])

    def scaled(self, c):
        return Roots(c**0.5 * self.S, self.T / c**0.5)


class Shifted(Base):
    """``scale`` times a matrix known by its products and, perhaps, by solves with ``A + tau I``."""

    has_roots = False

    def __init__(self, n, dtype, xp, place, times, solve, bounds, kind, scale=1.0):
        super().__init__(n, dtype, xp, place)
        self._times, self._solve, self._bounds, self.kind, self.scale = times, solve, bounds, kind, scale

    @property
    def solvable(self):
        return self._solve is not None

    def times(self, X):
        return self.scale * self._times(X)

    def shift_solve(self, tau, X):
        return self._solve(tau / self.scale, X) / self.scale

    @cached_property
    def bounds(self):
        if self._bounds is not None:
            return self.scale * self._bounds[0], self.scale * self._bounds[1]
        top = HIGH * largest(self.times, self)
        if self._solve is None or (isinstance(self._solve, SparseFactors) and not self._solve.definite()):
            return 0.0, top
        return LOW / largest(lambda X: self.shift_solve(0.0, X), self), top

    def logdet(self):
        if not isinstance(self._solve, SparseFactors):
            raise ValueError("rnla: the log-determinant of an operator is not known; give A as an array or sparse.")
        own = float(np.sum(np.log(np.abs(self._solve.factor(0.0).U.diagonal()))))
        return own + self.n * math.log(self.scale)

    def scaled(self, c):
        return Shifted(
            self.n, self.dtype, self.xp, self.device, self._times, self._solve, self._bounds, self.kind, c * self.scale
        )

    def power_diagonal(self, power):
        raise ValueError("rnla: the diagonal of the root of this kind of A is not known; use a diagonal or dense one.")


@dataclass(eq=False)
class SparseFactors:
    """Factors of ``A + tau I`` of a sparse matrix, kept for the shifts that come again."""

    A: Any  # CSR, in double precision: nodes differ by more than single precision resolves
    dtype: Any  # of solutions
    caller: str
    kept: dict = field(default_factory=dict)

    def __call__(self, tau, X):
        out = np.result_type(self.dtype, X.dtype)
        if np.iscomplexobj(X) and self.A.dtype.kind == "f":
            return (self._solve(tau, X.real) + 1j * self._solve(tau, X.imag)).astype(out, copy=False)
        return self._solve(tau, X).astype(out, copy=False)

    def _solve(self, tau, X):
        return self.factor(tau).solve(np.ascontiguousarray(X, dtype=self.A.dtype))

    def factor(self, tau):
        """Return the factorisation by SuperLU; without pivots off the diagonal, it is that of Cholesky."""
        from scipy import sparse
        from scipy.sparse.linalg import splu

        if tau not in self.kept:
            shifted = sparse.csc_matrix(self.A + tau * sparse.eye_array(self.A.shape[0], dtype=self.A.dtype))
            options = {"SymmetricMode": True}
            while len(self.kept) >= KEPT:
                self.kept.pop(next(iter(self.kept)))
            self.kept[tau] = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
        return self.kept[tau]

    def definite(self):
        """Say whether A has an inverse, to rounding; raise if an eigenvalue is negative beyond it."""
        try:
            pivots = self.factor(0.0).U.diagonal().real
        except RuntimeError:  # exactly singular
            return False
        rounding = 100 * self.A.shape[0] * np.finfo(self.A.dtype).eps * abs(self.A).max()
        if pivots.min() < -rounding:
            raise NotPositiveDefiniteError(
                f"{self.caller}: A must be positive semidefinite; its factorisation has the pivot {pivots.min():.3g}."
            )
        return bool(pivots.min() > 0)


def largest(times, base):
    """Return the largest eigenvalue of a positive operator, from a few Lanczos steps with a fixed start."""
    xp, n = base.xp, base.n
    random = np.random.default_rng(0).standard_normal((n, 1))
    v = xp.asarray(random / np.linalg.norm(random), dtype=base.dtype, device=base.device)
    basis, alphas, betas = [v], [], []
    for _ in range(min(LANCZOS_STEPS, n)):
        w = times(basis[-1])
        alphas.append(
            float(xp.real(xp.sum(xp.conj(basis[-1]) * w))) if _is_complex(base) else float(xp.sum(basis[-1] * w))
        )
        V = xp.concat(basis, axis=1)
        for _ in range(2):
            w = w - V @ (adjoint(V) @ w)
        norm = float(xp.sqrt(xp.sum(xp.abs(w) ** 2)))
        if norm <= 1e-12 * max(map(abs, alphas)):
            break
        betas.append(norm)
        basis.append(w / norm)
    T = np.diag(alphas) + np.diag(betas[: len(alphas) - 1], 1) + np.diag(betas[: len(alphas) - 1], -1)
    return float(np.linalg.eigvalsh(T)[-1])


def _is_complex(base):
    return base.xp.isdtype(base.dtype, "complex floating")
