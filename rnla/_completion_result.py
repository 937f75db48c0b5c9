"""The result of matrix completion: factors, a sparse remainder, and the values they give for any entry."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla import kernels
from rnla._backend import adjoint, eps_of, from_host, real_dtype, to_host
from rnla._entry_space import EntrySpace
from rnla._observed import Observed, centred, observed


class IRLSHistory(NamedTuple):
    """What was known after each iteration; arrays of one length."""

    eps: np.ndarray  # smoothing, in the units of the data
    rank: np.ndarray  # singular values above it
    cg_iterations: np.ndarray  # steps of conjugate gradients
    relative_change: np.ndarray  # of the matrix, in the Frobenius norm
    seconds: np.ndarray  # since the iteration began


def history_of(steps, scale):
    """Return the records of an iteration as arrays, in the units of the data."""
    rank, cg_iterations = (np.array([getattr(step, name) for step in steps], int) for name in ("rank", "cg_iterations"))
    eps, change, seconds = (
        np.array([getattr(step, name) for step in steps], float) for name in ("eps", "change", "seconds")
    )
    return IRLSHistory(eps * scale, rank, cg_iterations, change, seconds)


class Centre(NamedTuple):
    """What was subtracted from the entries before the low-rank fit."""

    kind: str
    rows: np.ndarray  # (m,)
    cols: np.ndarray  # (n,); the sum of both belongs to an entry


@dataclass(frozen=True, eq=False, repr=False)
class CompletionResult:
    """A matrix of low rank that fits some entries: ``(U * s) @ Vh``, plus a centre if there is one.

    Attributes
    ----------
    U, s, Vh : array, shapes (m, k), (k,), (k, n)
        Orthonormal columns and rows, s non-increasing, in the units of the data.
    residual : array, shape (N,)
        Observed entries less the fit, sorted by row and then by column.
    center_ : Centre or None
        ``(kind, rows, cols)``: what was subtracted, by row and by column.
    converged : bool
        Whether the result may be believed.
    n_iter : int
        Number of reweighted least-squares problems in the last run.
    history : IRLSHistory
        Arrays ``eps, rank, cg_iterations, relative_change, seconds`` of that run.
    message : str
        Why it ended, and of a failure the likely cause.
    reg : float
        The regularisation lam; 0 where the entries are interpolated.
    noise_std : float
        Standard deviation of the noise that was given or estimated.
    oversampling : float
        Number of entries over the degrees of freedom of the rank; 1 is the limit of what can be recovered.

    Examples
    --------
    >>> problem = rnla.datasets.completion_problem((60, 50), 2, oversampling=4.0, rng=0)
    >>> result = rnla.complete((problem.rows, problem.cols, problem.values), 2, shape=(60, 50), rng=0)
    >>> result
    CompletionResult(60 x 50, rank 2, 864 entries, converged after 9 iterations)
    >>> truth = (problem.U * problem.S) @ problem.Vh
    >>> bool(np.abs(result.entries([3, 4], [5, 6]) - truth[[3, 4], [5, 6]]).max() < 1e-12)
    True
    """

    U: Any
    s: Any
    Vh: Any
    residual: Any
    center_: Any
    converged: bool
    n_iter: int
    history: IRLSHistory
    message: str
    reg: float
    noise_std: float
    oversampling: float
    _observed: Observed = field(repr=False)

    @property
    def shape(self):
        """Shape (m, n) of the matrix."""
        return self._observed.shape

    @property
    def rank(self):
        """Rank of the fit, without its centre."""
        return int(self.s.shape[0])

    def entries(self, rows, cols):
        """Return the fit at some positions, without forming it elsewhere.

        Parameters
        ----------
        rows, cols : array of int, shape (N,)
            Positions.

        Returns
        -------
        array, shape (N,)
            Values, of the low-rank part and the centre.
        """
        rows, cols = (
            self._index(x, name, side) for x, name, side in zip((rows, cols), ("rows", "cols"), self.shape, strict=True)
        )
        return _values(self.U, self.s, self.Vh, self.center_, rows, cols)

    def to_dense(self, *, keep_observed=False):
        """Return the whole matrix; needs ``m n`` numbers of memory.

        Parameters
        ----------
        keep_observed : bool
            Put the observed entries in as they were given.
        """
        xp = array_namespace(self.U)
        X = (self.U * xp.astype(self.s, self.U.dtype)) @ self.Vh
        if self.center_ is not None:
            rows, cols = (from_host(x, xp, X.dtype, device(X)) for x in (self.center_.rows, self.center_.cols))
            X = X + rows[:, None] + cols[None, :]
        if keep_observed:
            place = self._observed
            X[place.rows, place.cols] = place.values
        return X

    def to_linear_operator(self):
        """Return the fit as a SciPy LinearOperator, for matrices of NumPy."""
        from scipy.sparse.linalg import LinearOperator

        left, right, adj = self.U * self.s, self.Vh, adjoint(self.Vh)
        rows, cols = (np.zeros(side) for side in self.shape) if self.center_ is None else self.center_[1:]

        def matmat(X):
            return left @ (right @ X) + rows[:, None] * X.sum(axis=0) + (cols @ X)[None, :]

        def rmatmat(Y):
            back = adj @ (adjoint(left) @ Y)
            return back + rows.conj() @ Y + cols.conj()[:, None] * Y.sum(axis=0)

        return LinearOperator(
            self.shape, matvec=lambda x: matmat(x.reshape(-1, 1)), rmatvec=lambda y: rmatmat(y.reshape(-1, 1)),
            matmat=matmat, rmatmat=rmatmat, dtype=self.U.dtype,
        )  # fmt: skip

    def fold_in(self, X, *, mask=None, shape=None):
        """Complete rows that were not there in the fit, by ridge regression on the rows of Vh.

        Parameters
        ----------
        X : any form of matrix that `complete` takes, n columns
            New rows; in dense ones NaN is missing.
        mask, shape : optional
            As for `complete`.

        Returns
        -------
        array, shape (N, n)
            The fit for every entry of the new rows; a row without entries gets the centre.

        Notes
        -----
        With the observed set O of a row x: ``min ||x_O - b Vh_O||^2 + b diag(d) b^H``, ``d_a = max(noise_std^2 m /
        s_a^2, 10 u)``, the variance of a row's coefficients in the fit being ``s_a^2 / m``.
        """
        caller = "CompletionResult.fold_in"
        new = observed(X, caller, mask=mask, shape=shape)
        if new.shape[1] != self.shape[1]:
            raise ValueError(f"{caller}: X must have {self.shape[1]} columns; got {new.shape[1]}.")
        return fold_in(self, new)

    def __repr__(self):
        m, n = self.shape
        end = f"converged after {self.n_iter} iterations" if self.converged else f"not converged: {self.message}"
        return f"CompletionResult({m} x {n}, rank {self.rank}, {self._observed.count} entries, {end})"

    def _index(self, x, name, side):
        xp = array_namespace(self.U)
        x = xp.asarray(x if is_array_api_obj(x) else np.asarray(x), device=device(self.U))
        if not xp.isdtype(x.dtype, "integral") or x.ndim != 1:
            raise TypeError(f"CompletionResult.entries: {name} must be a vector of integers; got {x.dtype}.")
        if x.shape[0] and not (int(xp.min(x)) >= 0 and int(xp.max(x)) < side):
            raise ValueError(f"CompletionResult.entries: {name} must be in 0..{side - 1}.")
        return x


def fold_in(result, new):
    """Return the completion of new rows, given as `Observed`."""
    xp, where, dtype = array_namespace(result.U), device(result.U), result.U.dtype
    count, k = new.shape[0], result.rank
    centre = _centre_of(result, new)
    of_rows, of_cols = centre
    new = centred(new, of_rows, of_cols)
    space = EntrySpace(new.rows, new.cols, new.shape)
    base = from_host(of_rows[:, None] + of_cols[None, :], xp, dtype, where)
    if not k:
        return base
    V = _rows(result.Vh.T)
    Vc = xp.conj(V) if xp.isdtype(dtype, "complex floating") else V
    values = xp.astype(new.values, dtype, copy=False)
    ones = xp.ones(new.count, dtype=dtype, device=where)
    grams = xp.reshape(space.right(ones, xp.reshape(V[:, :, None] * Vc[:, None, :], (-1, k * k))), (count, k, k))
    s = to_host(result.s).real
    ridge = np.maximum((result.noise_std / s) ** 2 * result.shape[0], 10 * eps_of(xp, dtype) / 2)
    grams = grams + from_host(np.diag(ridge), xp, dtype, where)[None, :, :]
    sides = space.right(values, Vc)  # x_O Vh_O^H
    # b G = x_O Vh_O^H, row by row: G^T b^T.
    coefficients = xp.linalg.solve(xp.permute_dims(grams, (0, 2, 1)), sides[:, :, None])[:, :, 0]
    return base + coefficients @ result.Vh


def _centre_of(result, new):
    """Return the centre of new rows: that of a row comes from its own entries, if the fit had one for each row."""
    count, n = new.shape
    if result.center_ is None:
        return np.zeros(count), np.zeros(n)
    kind, of_rows, of_cols = result.center_
    if kind in ("mean", "columns"):
        return np.full(count, of_rows[0]), of_cols
    rows, cols = (to_host(x).astype(int) for x in (new.rows, new.cols))
    values = to_host(new.values) - of_cols[cols]
    number = np.bincount(rows, minlength=count)
    total = np.bincount(rows, weights=values.real, minlength=count)
    if np.iscomplexobj(values):
        total = total + 1j * np.bincount(rows, weights=values.imag, minlength=count)
    return np.where(number > 0, total / np.maximum(number, 1), of_rows.mean()), of_cols


def _rows(X):
    """Return a copy whose rows are contiguous."""
    return np.ascontiguousarray(X) if isinstance(X, np.ndarray) else array_namespace(X).asarray(X, copy=True)


def result_of(entries, centre, found, rank, scale, *, converged, message, reg, noise_std, ratio):
    """Put a result together from the triplets of an iteration on scaled data."""
    xp, values = entries.xp, entries.values
    U, s, V = found.U[:, :rank], np.asarray(found.s[:rank]) * scale, found.V[:, :rank]
    S = from_host(s, xp, real_dtype(xp, values.dtype), device(values))
    Vh = adjoint(V)
    residual = values - _values(U, S, Vh, centre, entries.rows, entries.cols)
    return CompletionResult(
        U, S, Vh, residual, centre, converged, len(found.steps), history_of(found.steps, scale), message, reg,
        noise_std, ratio, entries,
    )  # fmt: skip


def _values(U, s, Vh, centre, rows, cols):
    """Return entries of the fit."""
    xp = array_namespace(U)
    out = kernels.sampled_product(_rows(U * xp.astype(s, U.dtype)), _rows(Vh.T), rows, cols)
    if centre is None:
        return out
    at = [to_host(x).astype(int) for x in (rows, cols)]
    return out + from_host(centre.rows[at[0]] + centre.cols[at[1]], xp, out.dtype, device(out))
