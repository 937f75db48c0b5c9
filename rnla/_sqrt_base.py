"""One view of positive definite matrices whose square root is cheap to apply."""

import math
import numbers
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla._backend import adjoint, eps_of, real_dtype, to_host
from rnla._errors import NotPositiveDefiniteError

ACCEPTED = (
    "a positive number, a vector (the diagonal), a Hermitian matrix, (eigenvalues, eigenvectors), SqrtRoots(S, S_inv), "
    "a sparse matrix, a list of (eigenvalues, eigenvectors) of Kronecker factors, a LinearOperator, or a former result"
)
LOW, HIGH = 0.5, 1.05  # safety of estimated ends of the spectrum: a factor 4 in their ratio costs a node or two
LANCZOS_STEPS = 30


@dataclass(frozen=True, eq=False)
class SqrtRoots:
    """A matrix given by its square root, and the inverse of that: of use where both are at hand, as in optimizers.

    Attributes
    ----------
    S : array, shape (n, n)
        Hermitian positive definite; the matrix is ``S @ S``.
    S_inv : array or None, shape (n, n)
        Its inverse.

    Examples
    --------
    >>> roots = rnla.SqrtRoots.from_dense(np.diag([4.0, 9.0]))
    >>> np.round(roots.S, 6).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """

    S: Any
    S_inv: Any = None

    @classmethod
    def from_dense(cls, A, method="eigh"):
        """Compute both roots of a Hermitian positive definite matrix.

        Parameters
        ----------
        A : array, shape (n, n)
            The matrix.
        method : {"eigh", "newton_schulz"}
            Eigendecomposition, or an iteration of matrix products only, which suits a GPU; in single precision the
            latter is refused beyond a condition number of 1e4.

        Returns
        -------
        SqrtRoots
            Library, device and dtype of `A`.
        """
        from rnla._newton_schulz import newton_schulz
        from rnla._rangefinder import check_choice

        caller = "rnla.SqrtRoots.from_dense"
        check_choice(method, "method", ("eigh", "newton_schulz"), caller)
        _check_hermitian(A, caller)
        if method == "newton_schulz":
            return cls(*newton_schulz(A, caller))
        base = Diagonalised.of_dense(A, caller)
        base.check_positive(caller)
        Q, root = base.Q, base.root
        return cls((Q * root) @ adjoint(Q), (Q / root) @ adjoint(Q))


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
        return kron_times([adjoint(Q) for Q in self.Q], X) if isinstance(self.Q, list) else adjoint(self.Q) @ X

    def back(self, X):
        """Return ``Q X``."""
        if self.Q is None:
            return X
        return kron_times(self.Q, X) if isinstance(self.Q, list) else self.Q @ X

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
        weights = self.xp.astype(weights, real_dtype(self.xp, X.dtype))
        return self.back(weights[:, None] * self.rotate(X))


def kron_times(factors, X):
    """Return ``(Q_1 kron Q_2 kron ...) X`` for a block of columns X."""
    xp = array_namespace(X)
    T = xp.reshape(X, (*(Q.shape[1] for Q in factors), X.shape[1]))
    for axis, Q in enumerate(factors):
        T = xp.moveaxis(xp.tensordot(xp.astype(Q, T.dtype, copy=False), T, axes=((1,), (axis,))), 0, axis)
    return xp.reshape(T, (-1, X.shape[1]))


class Roots(Base):
    """A dense matrix known by its root S, and perhaps the inverse T of that."""

    kind = "roots"

    def __init__(self, S, T, caller):
        xp = array_namespace(S)
        super().__init__(S.shape[0], S.dtype, xp, device(S))
        self.S, self.T = S, T
        self.caller = caller

    @cached_property
    def bounds(self):
        top = _largest(lambda X: self.S @ X, self) ** 2
        if self.T is None:
            s = self.xp.linalg.eigvalsh(self.S)
            return float(s[0]) ** 2, float(s[-1]) ** 2
        return LOW / _largest(lambda X: self.T @ X, self) ** 2, HIGH * top

    def times(self, X):
        return self.S @ (self.S @ X)

    def sqrt_times(self, X):
        return self.S @ X

    def inv_sqrt_times(self, X):
        return self.T @ X if self.T is not None else self.xp.linalg.solve(self.S, X)

    def solve(self, X):
        return self.inv_sqrt_times(self.inv_sqrt_times(X))

    def power_diagonal(self, power):
        xp = self.xp
        if power == 0.5:
            return xp.real(xp.linalg.diagonal(self.S)) if _is_complex(self) else xp.linalg.diagonal(self.S)
        T = self.T if self.T is not None else xp.linalg.inv(self.S)
        return xp.real(xp.linalg.diagonal(T)) if _is_complex(self) else xp.linalg.diagonal(T)

    def logdet(self):
        return 2 * float(self.xp.linalg.slogdet(self.S)[1])

    def scaled(self, c):
        return Roots(c**0.5 * self.S, None if self.T is None else self.T / c**0.5, self.caller)


class Shifted(Base):
    """A matrix known by its products and, perhaps, by solves with ``A + tau I``: sparse matrices and operators."""

    has_roots = False

    def __init__(self, n, dtype, xp, place, times, solve, bounds, kind):
        super().__init__(n, dtype, xp, place)
        self.times, self._solve, self._bounds, self.kind = times, solve, bounds, kind

    @property
    def solvable(self):
        return self._solve is not None

    def shift_solve(self, tau, X):
        return self._solve(tau, X)

    @cached_property
    def bounds(self):
        if self._bounds is not None:
            return self._bounds
        top = HIGH * _largest(self.times, self)
        if self._solve is None:
            return 0.0, top
        try:
            return LOW / _largest(lambda X: self._solve(0.0, X), self), top
        except RuntimeError:  # singular
            return 0.0, top

    def logdet(self):
        if not isinstance(self._solve, SparseFactors):
            raise ValueError("rnla: the log-determinant of an operator is not known; give A as an array or sparse.")
        return float(np.sum(np.log(np.abs(self._solve.factor(0.0).U.diagonal()))))

    def scaled(self, c):
        times, solve, (low, high) = self.times, self._solve, self.bounds
        solve = solve and (lambda tau, X: self._solve(tau / c, X) / c)
        return Shifted(
            self.n, self.dtype, self.xp, self.device, lambda X: c * times(X), solve, (c * low, c * high), self.kind
        )

    def power_diagonal(self, power):
        raise ValueError("rnla: the diagonal of the root of this kind of A is not known; use a diagonal or dense one.")


@dataclass(eq=False)
class SparseFactors:
    """Factors of ``A + tau I`` of a sparse matrix, kept for the shifts that come again."""

    A: Any
    kept: dict = field(default_factory=dict)

    def __call__(self, tau, X):
        return self.factor(tau).solve(np.ascontiguousarray(X, dtype=self.A.dtype))

    def factor(self, tau):
        """Return the factorisation by SuperLU."""
        from scipy import sparse
        from scipy.sparse.linalg import splu

        if tau not in self.kept:
            shifted = sparse.csc_matrix(self.A + tau * sparse.eye_array(self.A.shape[0], dtype=self.A.dtype))
            options = {"SymmetricMode": True}
            self.kept[tau] = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
        return self.kept[tau]


def as_base(A, n, like, bounds, caller):
    """Return the `Base` of any accepted kind of matrix.

    Parameters
    ----------
    A : see `ACCEPTED`
        The matrix.
    n : int
        Its order, for a number.
    like : array
        The update, whose library, device and precision a number takes.
    bounds : tuple of two floats, or None
        Ends of the spectrum, if the user knows them.
    caller : str
        Public function named in errors.
    """
    bounds = _checked_bounds(bounds, caller)
    if isinstance(A, Base):
        return A
    if isinstance(A, numbers.Real) and not isinstance(A, bool):
        return _of_number(A, n, like, caller)
    if isinstance(A, SqrtRoots):
        for X in (A.S, A.S_inv):
            if X is not None:
                _check_hermitian(X, caller)
        base = Roots(A.S, A.S_inv, caller)
    elif isinstance(A, (tuple, list)):
        base = _of_eigenpairs(A, caller)
    elif hasattr(A, "tocsc"):
        base = _of_sparse(A, bounds, caller)
    elif is_array_api_obj(A):
        base = _of_array(A, caller)
    elif hasattr(A, "shape") and (hasattr(A, "matvec") or hasattr(A, "matmat") or hasattr(A, "__matmul__")):
        base = _of_operator(A, bounds, like, caller)
    else:
        raise TypeError(f"{caller}: A must be {ACCEPTED}; got {type(A).__module__}.{type(A).__name__}.")
    if base.n != n:
        raise ValueError(f"{caller}: A must be of the order of the rows of Z, {n}; got {base.n}.")
    return base


def _of_number(A, n, like, caller):
    if not 0 < A < math.inf:
        raise ValueError(f"{caller}: A as a number must be positive and finite; got {A}.")
    xp = array_namespace(like)
    dtype = real_dtype(xp, like.dtype)
    return Diagonalised(xp.full((n,), float(A), dtype=dtype, device=device(like)), kind="scalar", dtype=like.dtype)


def _of_array(A, caller):
    xp = array_namespace(A)
    if not xp.isdtype(A.dtype, ("real floating", "complex floating")):
        if not xp.isdtype(A.dtype, ("integral", "bool")):
            raise TypeError(f"{caller}: A must be of a numeric dtype; got {A.dtype}.")
        A = xp.astype(A, xp.float64)
    if A.ndim == 1:
        return Diagonalised(_checked_diagonal(A, caller))
    _check_hermitian(A, caller)
    return Diagonalised.of_dense(A, caller)


def _of_eigenpairs(A, caller):
    pairs = [A] if len(A) == 2 and getattr(A[0], "ndim", None) == 1 else A
    if not len(pairs) or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"{caller}: A must be {ACCEPTED}; got a {type(A).__name__} of other things.")
    for d, Q in pairs:
        if d.ndim != 1 or Q.ndim != 2 or Q.shape != (d.shape[0], d.shape[0]):
            raise ValueError(
                f"{caller}: eigenvalues and eigenvectors of A must have shapes (n,) and (n, n); got {tuple(d.shape)}, "
                f"{tuple(Q.shape)}."
            )
    lams, Qs = zip(*pairs, strict=True)
    d = _checked_diagonal(lams[0], caller)
    for lam in lams[1:]:
        xp = array_namespace(d)
        d = xp.reshape(d[:, None] * _checked_diagonal(lam, caller)[None, :], (-1,))
    kind = "eigenpairs" if len(pairs) == 1 else "kronecker"
    return Diagonalised(d, Qs[0] if len(Qs) == 1 else list(Qs), kind=kind, dtype=Qs[0].dtype)


def _of_sparse(A, bounds, caller):
    import array_api_compat.numpy as xp
    from scipy import sparse

    if not sparse.issparse(A):
        raise TypeError(f"{caller}: A must be a sparse matrix of SciPy; got {type(A).__module__}.{type(A).__name__}.")
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {A.shape}.")
    A = sparse.csr_array(A)
    if A.dtype.kind not in "fc":
        A = A.astype(float)
    if A.dtype.itemsize // (2 if A.dtype.kind == "c" else 1) < 8:  # SuperLU's own single precision loses the nodes
        A = A.astype(np.promote_types(A.dtype, np.float64))
    if not np.isfinite(A.data).all():
        raise ValueError(f"{caller}: A must be finite; it contains NaN or infinity.")
    if abs(A - A.conj().T).max() > 100 * np.finfo(A.dtype).eps * abs(A).max():
        raise ValueError(f"{caller}: A must be Hermitian.")
    return Shifted(A.shape[0], A.dtype, xp, "cpu", lambda X: A @ X, SparseFactors(A), bounds, "sparse")


def _of_operator(A, bounds, like, caller):
    from rnla._matrix import as_matrix

    M = as_matrix(A, caller)
    if M.shape[0] != M.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {M.shape}.")
    solve = getattr(A, "shift_solve", None)
    if bounds is None and solve is None:
        raise ValueError(f"{caller}: bounds must be given for a LinearOperator without shift_solve.")
    dtype = M.dtype

    def times(X):
        return M.matmat(M.xp.astype(X, dtype, copy=False))

    return Shifted(M.shape[0], dtype, M.xp, M.device, times, solve, bounds, "operator")


def _checked_diagonal(d, caller):
    xp = array_namespace(d)
    if xp.isdtype(d.dtype, "complex floating"):
        raise TypeError(f"{caller}: A as a diagonal, or eigenvalues of A, must be real; got {d.dtype}.")
    if not xp.isdtype(d.dtype, "real floating"):
        d = xp.astype(d, xp.float64)
    host = to_host(d)
    bad = ~np.isfinite(host)
    if bad.any():
        raise ValueError(f"{caller}: A must be finite; entry {int(np.argmax(bad))} of its diagonal is not.")
    if host.size and host.min() < 0:
        where = int(np.argmin(host))
        raise ValueError(f"{caller}: A must be positive; entry {where} of its diagonal is {host[where]:.3g}.")
    return d


def _check_hermitian(A, caller):
    if not is_array_api_obj(A) or A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"{caller}: A must be a square matrix; got shape {tuple(getattr(A, 'shape', ()))}.")
    xp = array_namespace(A)
    if not bool(xp.all(xp.isfinite(A))):
        raise ValueError(f"{caller}: A must be finite; it contains NaN or infinity.")
    top = float(xp.max(xp.abs(A)))
    if float(xp.max(xp.abs(A - adjoint(A)))) > 1e3 * eps_of(xp, A.dtype) * top:
        raise ValueError(f"{caller}: A must be Hermitian.")


def _checked_bounds(bounds, caller):
    if bounds is None:
        return None
    low, high = (float(x) for x in bounds)
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"{caller}: bounds must be 0 <= low <= high; got {bounds}.")
    return low, high


def _largest(times, base):
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
