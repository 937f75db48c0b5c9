"""Roots of a matrix that is updated again and again: the updates are kept, the root is rebuilt when it is used."""

import math
import numbers
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla._backend import eps_of, from_host, to_host
from rnla._orth import orth
from rnla._rangefinder import check_choice, check_count, check_number
from rnla._sqrt_base import ACCEPTED, SqrtRoots, as_problem
from rnla._sqrt_factor import log_determinant, sqrt_factor_update
from rnla._sqrt_inputs import check_update, checked_tol
from rnla._sqrt_kinds import Diagonalised
from rnla._sqrt_quadrature import DROPPED, Update, canonical, interval, on_updated
from rnla._sqrtm import _updated

HEADROOM = 4.0  # of the interval of the nodes: a node more, and the next updates stay inside
GROWTH = 2  # of the rank by corrections of corrections, up to which a root is not built anew
FEW = 5  # times the columns that come or go are at most those the root has: with more, building it is as fast


class Built(NamedTuple):
    """A root, the rank it had when it was built, and what changed since it was last asked for."""

    root: Any
    rank: int
    pending: list  # of blocks of columns and their signs


class StreamingSqrt:
    """The roots of ``W = A + sum of updates - sum of downdates``.

    The state is A and the columns of the updates, never a root: nothing accumulates. A downdate by a column that was
    an update before, equal but for rounding, deletes it. Where A is diagonal or has been diagonalised and at most a
    fifth of the columns came or went, the former root is corrected, which is up to three times as fast as building it;
    it is built anew when its rank has doubled.

    Parameters
    ----------
    A : number, vector, matrix, pair, sparse matrix, operator or SqrtRoots
        The base, as for `sqrt_update`.
    n : int, optional
        Order, if `A` is a number.
    tol : float, optional
        Precision of the roots; see `sqrt_update`.
    bounds : tuple of two floats, optional
        Ends of the spectrum of `A`, of sparse matrices and operators.
    max_update_rank : int, optional
        Largest number of columns that are kept.
    shrink : {"truncate", "frequent_directions"}
        What happens beyond: the smallest are left out, or the smallest square is taken from all, so that what is lost
        is bounded in every direction, and given to the diagonal of a base that has one.

    Attributes
    ----------
    n_columns : int
        Number of columns of updates.

    Examples
    --------
    >>> stream = rnla.StreamingSqrt(np.ones(4))
    >>> stream.update(np.array([1.0, 0.0, 0.0, 0.0])).update(np.array([0.0, 2.0, 0.0, 0.0]))
    StreamingSqrt(n=4, 2 columns on a diagonal base)
    >>> np.round(stream.sqrt().diagonal(), 6).tolist()
    [1.414214, 2.236068, 1.0, 1.0]
    >>> stream.downdate(np.array([1.0, 0.0, 0.0, 0.0])).n_columns
    1
    """

    def __init__(self, A, *, n=None, tol=None, bounds=None, max_update_rank=None, shrink="truncate"):
        caller = "rnla.StreamingSqrt"
        check_choice(shrink, "shrink", ("truncate", "frequent_directions"), caller)
        if max_update_rank is not None:
            check_count(max_update_rank, "max_update_rank", caller)
        if isinstance(A, numbers.Real):
            check_count(n, "n", caller)
            self._n = n
        else:
            self._n = _order(A, caller)
            if n is not None and n != self._n:
                raise ValueError(f"{caller}: n must be the order of A, {self._n}, or None; got {n}.")
        self.tol, self.max_update_rank, self.shrink = tol, max_update_rank, shrink
        self._A, self._bounds = A, bounds
        self._base: Any = None
        self._Z: Any = None
        self._results: dict = {}
        self._built: dict = {}  # `Built` for either kind of root
        self._begin(_none_like(A, self._n))

    @property
    def n_columns(self):
        """Number of columns of updates that are kept."""
        return len(self._s)

    def update(self, Z):
        """Add ``Z Z^H``; returns itself.

        Parameters
        ----------
        Z : array, shape (n,) or (n, k)
            Columns.
        """
        return self._append(Z, 1.0, "rnla.StreamingSqrt.update")

    def downdate(self, Z):
        """Subtract ``Z Z^H``; returns itself. Whether W stays positive definite shows when a root is asked for.

        Parameters
        ----------
        Z : array, shape (n,) or (n, k)
            Columns.
        """
        return self._append(Z, -1.0, "rnla.StreamingSqrt.downdate")

    def replace(self, Z_old, Z_new):
        """Subtract ``Z_old Z_old^H`` and add ``Z_new Z_new^H``; returns itself."""
        return self.downdate(Z_old).update(Z_new)

    def scale(self, beta):
        """Multiply W by a positive number, as an exponential mean does before every update; returns itself."""
        check_number(beta, "beta", "rnla.StreamingSqrt.scale")
        if not beta > 0:
            raise ValueError(f"rnla.StreamingSqrt.scale: beta must be positive; got {beta}.")
        self._base = self._base.scaled(float(beta))
        self._Z = self._Z * float(beta) ** 0.5
        self._results, self._built = {}, {}
        return self

    def sqrt(self):
        """Return ``W^(1/2)``, a `LowRankCorrectedSqrt`."""
        return self._root(False)

    def inv_sqrt(self):
        """Return ``W^(-1/2)``, a `LowRankCorrectedSqrt`."""
        return self._root(True)

    def factor(self):
        """Return a `SqrtFactor` of W."""
        return sqrt_factor_update(self._base, self._Z, C=self._signs())

    def logdet(self):
        """Return ``log det W``."""
        return log_determinant(self._base, canonical(self._Z, self._signs(), 1))

    def __repr__(self):
        return f"StreamingSqrt(n={self._base.n}, {self.n_columns} columns on a {self._base.kind} base)"

    def _root(self, inverse):
        if inverse not in self._results:
            tol = checked_tol(self.tol, self._Z, "rnla.StreamingSqrt")
            root = self._corrected(inverse, tol)
            if root is None:
                root = _updated(
                    self._base, self._Z, self._signs(), 1, (inverse,), tol, None, "auto", None, None,
                    "rnla.StreamingSqrt", HEADROOM if isinstance(self._base, Diagonalised) else 1.0,
                )[0]  # fmt: skip
                self._built[inverse] = Built(root, root.rank, [])
            self._built[inverse] = Built(root, self._built[inverse].rank, [])
            self._results[inverse] = root
        return self._results[inverse]

    def _corrected(self, inverse, tol):
        """Return the former root with a correction, or None where it must be, or had better be, built anew."""
        root, rank, pending = self._built.get(inverse, (None, 0, []))
        if root is None or root.method != "quadrature" or root.dtype != self._Z.dtype or root.rank >= GROWTH * rank:
            return None
        if not isinstance(self._base, Diagonalised):
            return None
        update = canonical(self._Z, self._signs(), 1)
        span = interval(self._base, update, tol, inverse, "rnla.StreamingSqrt")
        if span.low < root.low or span.high > root.high:
            return None
        xp = self._base.xp
        columns = xp.concat([xp.astype(Z, root.dtype, copy=False) for Z, _ in pending], axis=1)
        change = Update(columns, np.concatenate([s for _, s in pending]), 0.0)
        if not len(change.s):
            return root
        P, signs, _ = on_updated(self._base, root.update, change, root.low, root.high, tol, inverse)
        dropped = root.dropped + DROPPED * tol * float(xp.sum(xp.abs(P) ** 2))  # each correction leaves out its own
        P, signs = xp.concat([root.P, P], axis=1), np.concatenate([root.signs, signs])
        return replace(root, P=P, signs=signs, update=update, dropped=dropped)

    def _signs(self):
        if (self._s > 0).all():
            return None
        return np.diag(self._s)

    def _begin(self, Z):
        """Take the base, and its earlier updates if it is an earlier result; Z says the library of a number."""
        self._base, Z, C, _ = as_problem(self._A, Z, None, 1, self._bounds, "rnla.StreamingSqrt")
        self._Z, self._s, _ = canonical(Z, C, 1)

    def _append(self, Z, sign, caller):
        Z, _ = check_update(Z, None, 1, caller)
        if self._base.kind == "scalar" and not self.n_columns and array_namespace(Z) is not self._base.xp:
            scale = self._base.bounds[0]
            self._A = scale
            self._begin(Z[:, :0])
        xp = self._base.xp
        if Z.shape[0] != self._base.n:
            raise ValueError(f"{caller}: Z must have {self._base.n} rows; got shape {tuple(Z.shape)}.")
        dtype = xp.result_type(Z.dtype, self._Z.dtype)
        Z, self._Z = xp.astype(Z, dtype, copy=False), xp.astype(self._Z, dtype, copy=False)
        gone, new = set(), []
        for j in range(Z.shape[1]):
            found = self._place(Z[:, j], -sign, gone)
            if found is None:
                new.append(j)
            else:
                gone.add(found)
        kept = [i for i in range(len(self._s)) if i not in gone]
        former, parts = self._Z, [(self._Z, kept), (Z, new)]
        where = device(self._Z)
        index = [xp.asarray(np.array(i, dtype=np.int64), device=where) for _, i in parts]
        self._Z = xp.concat([xp.take(X, i, axis=1) for (X, _), i in zip(parts, index, strict=True)], axis=1)
        gone_columns = xp.take(former, xp.asarray(np.array(sorted(gone), dtype=np.int64), device=where), axis=1)
        signs = np.concatenate([-self._s[sorted(gone)], np.full(len(new), sign)])
        change = xp.concat([gone_columns, xp.take(Z, index[1], axis=1)], axis=1), signs
        for inverse, built in list(self._built.items()):
            built.pending.append(change)
            if FEW * sum(len(s) for _, s in built.pending) > len(built.root.update.s):
                del self._built[inverse]
        self._s = np.concatenate([self._s[kept], np.full(len(new), sign)])
        self._results = {}
        if self.max_update_rank is not None and self.n_columns > self.max_update_rank:
            self._compress()
        return self

    def _place(self, z, sign, gone):
        """Return the number of a column of this sign that equals z, to rounding as `scale` may have rounded."""
        xp = self._base.xp
        if not self.n_columns:
            return None
        size = xp.max(xp.abs(z))
        apart = xp.max(xp.abs(self._Z - z[:, None]), axis=0)
        same = to_host(xp.astype(apart <= 8 * eps_of(xp, z.dtype) * size, size.dtype))
        found = [i for i in np.flatnonzero((self._s == sign) & (same > 0)) if i not in gone]
        return int(found[0]) if found else None

    def _compress(self):
        self._built = {}
        Q, R = orth(self._Z)
        lam, V = np.linalg.eigh((R * self._s) @ R.conj().T)
        order = np.argsort(-np.abs(lam))
        kept, rest = order[: self.max_update_rank], order[self.max_update_rank :]
        values = lam[kept]
        if self.shrink == "frequent_directions" and (lam >= 0).all():
            least = float(lam[rest].max(initial=0.0))
            values = values - least
            if isinstance(self._base, Diagonalised) and self._base.Q is None:
                base = self._base
                self._base = Diagonalised(base.d + least, kind=base.kind, dtype=base.dtype)
        xp = self._base.xp
        weights = V[:, kept] * np.sqrt(np.abs(values))
        self._Z = Q @ from_host(weights, xp, self._Z.dtype, device(self._Z))
        self._s = np.where(values < 0, -1.0, 1.0)


def _order(A, caller):
    """Return the order of a matrix of any kind that `sqrt_update` takes, but a number."""
    if isinstance(A, SqrtRoots):
        A = A.S
    if isinstance(A, (tuple, list)):
        pairs = [A] if len(A) == 2 and getattr(A[0], "ndim", None) == 1 else A
        if all(isinstance(pair, (tuple, list)) and len(pair) == 2 and hasattr(pair[0], "shape") for pair in pairs):
            return math.prod(pair[0].shape[0] for pair in pairs)
    shape = getattr(A, "shape", None)
    if not shape:
        raise TypeError(f"{caller}: A must be {ACCEPTED}; got {type(A).__module__}.{type(A).__name__}.")
    return int(shape[0])


def _none_like(A, n):
    """Return no columns, in the library and dtype of A."""
    for X in (A, getattr(A, "S", None), *(A if isinstance(A, (tuple, list)) else ()), getattr(A, "P", None)):
        X = X[-1] if isinstance(X, (tuple, list)) else X
        if is_array_api_obj(X):
            xp = array_namespace(X)
            floating = xp.isdtype(X.dtype, ("real floating", "complex floating"))
            return xp.zeros((n, 0), dtype=X.dtype if floating else xp.float64, device=device(X))
    if hasattr(A, "shape") and getattr(getattr(A, "dtype", None), "kind", "") in ("f", "c"):
        return np.zeros((n, 0), A.dtype)
    return np.zeros((n, 0))
