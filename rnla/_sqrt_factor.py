"""Exact factors of rank k of ``W = A + Z C Z^H``, where any L with ``L L^H = W`` will do; Gaussian sampling."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, from_host, key_from_rng, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._orth import orth
from rnla._rangefinder import check_count
from rnla._sketch import test_matrix
from rnla._sqrt_action import solved, with_roots
from rnla._sqrt_base import as_problem
from rnla._sqrt_inputs import default_tol
from rnla._sqrt_kinds import product
from rnla._sqrt_quadrature import canonical, interval

TIGHT = 1e-14  # precision of roots of bases that have none of their own


@dataclass(frozen=True, eq=False, repr=False)
class SqrtFactor:
    """``L = A^(1/2) (I + Q diag(h) Q^H)`` with ``L L^H = W``, exact to rounding.

    Attributes
    ----------
    base : Base
        A, with its roots.
    Q : array, shape (n, r)
        Orthonormal columns.
    e : ndarray, shape (r,)
        Eigenvalues of ``A^(-1/2) W A^(-1/2) - I`` along them.

    Examples
    --------
    >>> L = rnla.sqrt_factor_update(np.array([1.0, 4.0]), np.array([1.0, 1.0]))
    >>> np.round(L @ (L.H @ np.eye(2)), 6).tolist(), round(L.logdet(), 6)
    ([[2.0, 1.0], [1.0, 5.0]], 2.197225)
    """

    base: Any
    Q: Any
    e: np.ndarray
    is_adjoint: bool = False

    @property
    def shape(self):
        """Shape (n, n)."""
        return self.base.n, self.base.n

    @property
    def dtype(self):
        """Dtype of products."""
        return self.Q.dtype

    @property
    def H(self):
        """The adjoint of the factor."""
        return SqrtFactor(self.base, self.Q, self.e, not self.is_adjoint)

    def __matmul__(self, X):
        if getattr(X, "ndim", None) not in (1, 2) or X.shape[0] != self.base.n:
            raise ValueError(f"rnla.SqrtFactor: X must have {self.base.n} rows; got shape {getattr(X, 'shape', None)}.")
        if X.ndim == 1:
            return (self @ X[:, None])[:, 0]
        if self.is_adjoint:
            return self._inner(self.base.sqrt_times(X), self._h)
        return self.base.sqrt_times(self._inner(X, self._h))

    def solve(self, b):
        """Return ``x`` with ``L x = b``; ``b`` of shape (n,) or (n, c)."""
        if getattr(b, "ndim", None) not in (1, 2) or b.shape[0] != self.base.n:
            raise ValueError(
                f"rnla.SqrtFactor.solve: b must have {self.base.n} rows; got shape {getattr(b, 'shape', None)}."
            )
        if b.ndim == 1:
            return self.solve(b[:, None])[:, 0]
        if self.is_adjoint:
            return self.base.inv_sqrt_times(self._inner(b, -self._h / (1 + self._h)))
        return self._inner(self.base.inv_sqrt_times(b), -self._h / (1 + self._h))

    def adjoint_solve(self, b):
        """Return ``x`` with ``L^H x = b``."""
        return self.H.solve(b)

    def logdet(self):
        """Return ``log det W``."""
        return self.base.logdet() + float(np.sum(np.log1p(self.e)))

    def sample(self, size, rng=None):
        """Draw `size` Gaussian vectors with covariance W, shape (size, n)."""
        caller = "rnla.SqrtFactor.sample"
        return ((self.H if self.is_adjoint else self) @ self._normal(size, rng, caller)).T

    def sample_precision(self, size, rng=None):
        """Draw `size` Gaussian vectors with covariance ``W^-1``, shape (size, n)."""
        caller = "rnla.SqrtFactor.sample_precision"
        factor = self.H if self.is_adjoint else self
        return factor.adjoint_solve(self._normal(size, rng, caller)).T

    def __repr__(self):
        return f"SqrtFactor(n={self.base.n}, rank {self.Q.shape[1]} on a {self.base.kind} base)"

    @cached_property
    def _h(self):
        return self.e / (1 + np.sqrt(1 + self.e))

    def _inner(self, X, weights):
        scaled = self.Q * from_host(weights, array_namespace(self.Q), self.Q.dtype, device(self.Q))
        return X + product(scaled, product(adjoint(self.Q), X))

    def _normal(self, size, rng, caller):
        check_count(size, "size", caller)
        place = {"xp": self.base.xp, "dtype": self.dtype, "device": self.base.device}
        return test_matrix("gaussian", key_from_rng(rng, caller), self.base.n, size, **place)


def sqrt_factor_update(A, Z, *, C=None, sign=1, bounds=None):
    """Return a factor L with ``L L^H = A + Z C Z^H``, exact and of the rank of the update.

    For sampling, whitening up to a rotation, determinants and solves. Where the symmetric root itself is needed, see
    `sqrt_update`.

    Parameters
    ----------
    A : number, vector, matrix, pair, sparse matrix, operator or SqrtRoots
        The base, as for `sqrt_update`.
    Z : array, shape (n,) or (n, k)
        Columns of the update.
    C : array, optional, shape (k, k)
        Hermitian; the identity by default.
    sign : {1, -1}
        -1 subtracts.
    bounds : tuple of two floats, optional
        Ends of the spectrum of `A`, where they are not found out.

    Returns
    -------
    SqrtFactor
        With ``@``, ``.H``, ``solve``, ``adjoint_solve``, ``logdet``, ``sample`` and ``sample_precision``.

    Raises
    ------
    NotPositiveDefiniteError
        If the updated matrix is not positive definite; ``.gap`` says by how much.

    Notes
    -----
    ``O(n k**2)`` flops beside one product with ``A^(-1/2)``.

    Examples
    --------
    >>> L = rnla.sqrt_factor_update(np.ones(3), np.array([1.0, 0.0, 0.0]), sign=1)
    >>> np.round(L.solve(L @ np.array([1.0, 2.0, 3.0])), 6).tolist()
    [1.0, 2.0, 3.0]
    """
    caller = "rnla.sqrt_factor_update"
    base, Z, C, sign = as_problem(A, Z, C, sign, bounds, caller)
    base.check_positive(caller)
    update = canonical(Z, C, sign)
    interval(base, update, default_tol(Z), True, caller)  # raises where nothing is left
    rooted = _rooted(base, Z)
    Q, e = _relative(rooted, update)
    return SqrtFactor(rooted, Q, e)


def log_determinant(base, update):
    """Return ``log det (A + Z diag(s) Z^H)``."""
    own = base.logdet()
    if not update.Z.shape[1]:
        return own
    G = to_host(adjoint(update.Z) @ solved(base, update.Z))
    lam, V = np.linalg.eigh((G + G.conj().T) / 2)
    root = (V * np.sqrt(np.maximum(lam, 0))) @ V.conj().T
    return own + float(np.sum(np.log1p(np.linalg.eigvalsh((root * update.s) @ root))))


def _rooted(base, Z):
    """Return the base with roots that are exact to nearly rounding."""
    return base if base.has_roots else with_roots(base, base.bounds[0], base.bounds[1], max(TIGHT, default_tol(Z) ** 2))


def _relative(base, update):
    """Return orthonormal Q and e with ``A^(-1/2) W A^(-1/2) = I + Q diag(e) Q^H``."""
    V = base.inv_sqrt_times(update.Z)
    if not V.shape[1]:
        return V, np.zeros(0)
    Q, R = orth(V)
    e, U = np.linalg.eigh((R * update.s) @ R.conj().T)
    if e.min() <= -1:
        raise NotPositiveDefiniteError("rnla: the updated matrix must be positive definite.", gap=1 + float(e.min()))
    return Q @ from_host(U, base.xp, Q.dtype, base.device), e


def sample_mvn(A, Z, size, *, C=None, sign=1, precision=False, bounds=None, rng=None):
    """Draw Gaussian vectors of mean zero whose covariance, or its inverse, is ``A + Z C Z^H``.

    Parameters
    ----------
    A : number, vector, matrix, pair, sparse matrix, operator or SqrtRoots
        The base, as for `sqrt_update`.
    Z : array, shape (n,) or (n, k)
        Columns of the update.
    size : int
        Number of vectors.
    C : array, optional, shape (k, k)
        Hermitian; the identity by default.
    sign : {1, -1}
        -1 subtracts.
    precision : bool
        Whether ``A + Z C Z^H`` is the inverse of the covariance.
    bounds : tuple of two floats, optional
        Ends of the spectrum of `A`, where they are not found out.
    rng : None, int or numpy.random.Generator
        Source of randomness.

    Returns
    -------
    array, shape (size, n)
        One vector in each row.

    Examples
    --------
    >>> x = rnla.sample_mvn(np.array([1.0, 4.0]), np.array([1.0, 1.0]), 20000, rng=0)
    >>> np.round(np.cov(x.T), 0).tolist()
    [[2.0, 1.0], [1.0, 5.0]]
    """
    caller = "rnla.sample_mvn"
    check_count(size, "size", caller)
    key = key_from_rng(rng, caller)
    base, Z, C, sign = as_problem(A, Z, C, sign, bounds, caller)
    update = canonical(Z, C, sign)
    if precision or (update.s < 0).any():
        L = sqrt_factor_update(base, Z, C=C, sign=sign)
        draw = L.sample_precision if precision else L.sample
        return draw(size, np.random.default_rng(key))
    # A sum of independent vectors needs no root of the sum.
    place = {"xp": base.xp, "dtype": Z.dtype, "device": base.device}
    rooted = _rooted(base, Z)
    x = rooted.sqrt_times(test_matrix("gaussian", key, base.n, size, **place))
    if update.Z.shape[1]:
        x = x + update.Z @ test_matrix("gaussian", key, update.Z.shape[1], size, stream=1, **place)
    return x.T
