"""The result of an update of a matrix root: the root of the base and a correction of low rank, as an operator."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import device

from rnla._backend import adjoint, from_host, key_from_rng, to_host
from rnla._orth import orth
from rnla._rangefinder import check_count, check_number
from rnla._sketch import test_matrix
from rnla._sqrt_krylov import inverse_residual, root_residual


@dataclass(frozen=True, eq=False, repr=False)
class LowRankCorrectedSqrt:
    """``A^(1/2) + P diag(signs) P^H``, the root of ``W = A + Z diag(s) Z^H``, or the same of inverse roots.

    Attributes
    ----------
    base : Base
        A, with its roots.
    P : array, shape (n, r)
        Columns of the correction; not orthonormal.
    signs : ndarray, shape (r,)
        Sign of each column.
    update : Update
        Z and s.
    inverse : bool
        Whether this is ``W^(-1/2)``.
    tol : float
        Precision that was asked for, relative to the correction.
    kappa : float
        Ratio of the ends of the interval that holds the eigenvalues of A and W.
    low, high : float
        These ends.
    n_nodes : int
        Number of quadrature nodes; 0 for other methods.
    method : str
        How it was computed.
    converged : bool
        Whether an iteration, if there was one, met the tolerance.

    Examples
    --------
    >>> root = rnla.sqrt_update(np.array([1.0, 4.0]), np.array([1.0, 1.0]))
    >>> np.round(root @ (root @ np.eye(2)), 6).tolist()
    [[2.0, 1.0], [1.0, 5.0]]
    """

    base: Any
    P: Any
    signs: np.ndarray
    update: Any
    inverse: bool
    tol: float
    low: float
    high: float
    n_nodes: int
    method: str
    converged: bool = True
    dropped: float = 0.0  # norm of what `truncate` left out

    @property
    def shape(self):
        """Shape (n, n)."""
        return self.base.n, self.base.n

    @property
    def dtype(self):
        """Dtype of products."""
        return self.P.dtype

    @property
    def rank(self):
        """Rank of the correction."""
        return self.P.shape[1]

    @property
    def kappa(self):
        """Ratio of the ends of the interval that holds the eigenvalues of A and W."""
        return self.high / self.low

    @property
    def H(self):
        """The adjoint, which is the same."""
        return self

    def matmat(self, X):
        """Multiply a block of columns; ``4 n r`` flops a column beside those of the root of the base."""
        X = self._taken(X)
        inner = adjoint(self.P) @ X
        out = self._base_times(X, self.inverse)
        if self._one_sign:  # the sign of a definite correction costs nothing
            return out + self.P @ inner if self.signs[0] > 0 else out - self.P @ inner
        return out + self.P @ (self._columns_of_signs * inner)

    rmatmat = matmat

    def matvec(self, x):
        """Multiply a vector."""
        return self.matmat(x[:, None] if getattr(x, "ndim", 1) == 1 else x)[:, 0]

    rmatvec = matvec

    def __matmul__(self, X):
        return self.matvec(X) if X.ndim == 1 else self.matmat(X)

    def solve(self, b):
        """Return ``x`` with ``self @ x == b``, by Woodbury's formula.

        Parameters
        ----------
        b : array, shape (n,) or (n, c)
            Right-hand sides.
        """
        if getattr(b, "ndim", None) == 1:
            return self.solve(b[:, None])[:, 0]
        self.base.check_positive("rnla.LowRankCorrectedSqrt.solve")
        x = self._base_times(self._taken(b), not self.inverse)
        if not self.rank:
            return x
        left, system = self._woodbury
        right = np.linalg.solve(system, to_host(adjoint(self.P) @ x))
        return x - left @ from_host(right, self.base.xp, x.dtype, self.base.device)

    def correction(self):
        """Return ``P`` and ``signs`` as a pair: the root less that of the base is ``P diag(signs) P^H``."""
        return self.P, self.signs

    def to_dense(self):
        """Form the root as an (n, n) array."""
        return self.matmat(self.base.xp.eye(self.base.n, dtype=self.dtype, device=self.base.device))

    def diagonal(self):
        """Return the diagonal, shape (n,), of bases that are diagonal, dense or Kronecker products."""
        xp = self.base.xp
        squares = xp.abs(self.P) ** 2
        own = squares @ from_host(self.signs, xp, squares.dtype, self.base.device)
        return self.base.power_diagonal(-0.5 if self.inverse else 0.5) + own

    def trace(self):
        """Return the sum of the diagonal."""
        return float(self.base.xp.sum(self.diagonal()))

    def logdet(self):
        """Return the logarithm of the determinant, right to rounding: it is half that of W, which has a formula."""
        from rnla._sqrt_factor import log_determinant

        self.base.check_positive("rnla.LowRankCorrectedSqrt.logdet")
        half = log_determinant(self.base, self.update) / 2
        return -half if self.inverse else half

    def sample(self, size, rng=None):
        """Draw `size` Gaussian vectors of covariance ``W`` (its inverse for the inverse root), shape (size, n)."""
        check_count(size, "size", "rnla.LowRankCorrectedSqrt.sample")
        key = key_from_rng(rng, "rnla.LowRankCorrectedSqrt.sample")
        place = {"xp": self.base.xp, "dtype": self.dtype, "device": self.base.device}
        return self.matmat(test_matrix("gaussian", key, self.base.n, size, **place)).T

    def truncate(self, rank=None, tol=None):
        """Return the root with the best correction of a smaller rank.

        Parameters
        ----------
        rank : int, optional
            Largest rank.
        tol : float, optional
            Leave out what is below this times the largest eigenvalue of the correction.
        """
        caller = "rnla.LowRankCorrectedSqrt.truncate"
        if (rank is None) == (tol is None):
            raise ValueError(f"{caller}: rank or tol must be given, and not both; got rank={rank}, tol={tol}.")
        if rank is not None:
            check_count(rank, "rank", caller, least=0)
        else:
            check_number(tol, "tol", caller)
        if not self.rank:
            return self
        Q, R = orth(self.P)
        lam, V = np.linalg.eigh((R * self.signs) @ R.conj().T)
        order = np.argsort(-np.abs(lam))
        count = rank if rank is not None else int(np.count_nonzero(np.abs(lam) > tol * np.abs(lam).max()))
        kept, left = order[:count], order[count:]
        xp = self.base.xp
        P = Q @ from_host(V[:, kept] * np.sqrt(np.abs(lam[kept])), xp, self.dtype, self.base.device)
        dropped = float(np.abs(lam[left]).max(initial=0.0))
        return replace(self, P=P, signs=np.sign(lam[kept]), dropped=self.dropped + dropped)

    def residual_norm(self, ord=2):
        """Return ``||S S - W||`` for the root, ``||T W T - I||`` for the inverse, without forming either.

        Parameters
        ----------
        ord : {2, "fro"}
            Norm.
        """
        if ord not in (2, "fro"):
            raise ValueError(f"rnla.LowRankCorrectedSqrt.residual_norm: ord must be 2 or 'fro'; got {ord!r}.")
        if self.inverse:
            return inverse_residual(self._rooted, self.update, self.P, self.signs, ord)
        SP = self._base_times(self.P, inverse=False)
        return root_residual(self.base.xp, self.P, SP, self.signs, self.update, ord)

    def error_bound(self):
        """Return a bound of the error in the 2-norm: that of the quadrature, and what was left out.

        Computed beforehand, from `tol` and the ends of the spectrum; `error_estimate` is sharper.
        """
        from rnla._sqrt_quadrature import DROPPED

        if self.inverse:
            size = self.low**-0.5 + self.base.bounds[0] ** -0.5 if self.base.bounds[0] > 0 else np.inf
        else:
            size = self.high**0.5 + self.base.bounds[1] ** 0.5
        return (1 + DROPPED) * self.tol * size + self.dropped

    def error_estimate(self):
        """Return an estimate of the error in the 2-norm, from the residual: `residual_norm` and its condition."""
        residual = self.residual_norm()
        low = self.low**0.5
        if not self.inverse:
            return min(residual / (2 * low), residual**0.5)  # the latter holds for singular matrices, too
        return (1 - np.sqrt(max(0.0, 1 - residual))) / low if residual < 1 else np.inf

    def as_linear_operator(self):
        """Return a ``scipy.sparse.linalg.LinearOperator``."""
        from scipy.sparse.linalg import LinearOperator

        return LinearOperator(
            self.shape, matvec=self.matvec, rmatvec=self.matvec, matmat=self.matmat, rmatmat=self.matmat,
            dtype=np.dtype(str(self.dtype).rsplit(".", maxsplit=1)[-1]),
        )  # fmt: skip

    def __repr__(self):
        power = "-1/2" if self.inverse else "1/2"
        head = f"LowRankCorrectedSqrt(W^({power}), n={self.base.n}, rank {self.rank} on a {self.base.kind} base)"
        return f"{head}\n  {self.method}: condition {self.kappa:.1e}, tol {self.tol:.0e}, {self.n_nodes} nodes"

    def _taken(self, X):
        """Return a block of columns in a dtype that can be multiplied by P."""
        xp, n = self.base.xp, self.base.n
        if getattr(X, "ndim", None) not in (1, 2) or X.shape[0] != n:
            raise ValueError(f"rnla.LowRankCorrectedSqrt: X must have {n} rows; got shape {getattr(X, 'shape', None)}.")
        if not xp.isdtype(X.dtype, ("real floating", "complex floating")):
            return xp.astype(X, self.dtype)
        return xp.astype(X, xp.result_type(X.dtype, self.dtype), copy=False)

    @property
    def _complex(self):
        return self.base.xp.isdtype(self.dtype, "complex floating")

    @cached_property
    def _rooted(self):
        from rnla._sqrt_action import with_roots

        return with_roots(self.base, self.low, self.high, self.tol)

    @cached_property
    def _woodbury(self):
        left = self._base_times(self.P, not self.inverse)
        return left, np.diag(self.signs) + to_host(adjoint(self.P) @ left)

    def _base_times(self, X, inverse):
        return self._rooted.inv_sqrt_times(X) if inverse else self._rooted.sqrt_times(X)

    @cached_property
    def _one_sign(self):
        return self.rank > 0 and bool((self.signs == self.signs[0]).all())

    @cached_property
    def _columns_of_signs(self):
        return from_host(self.signs[:, None], self.base.xp, self.P.dtype, device(self.P))
