"""The entries that are known of a matrix, from any of the forms in which people hold them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from array_api_compat import array_namespace, device, is_array_api_obj, is_dask_array, is_numpy_array

from rnla._backend import from_host, to_host
from rnla._errors import AccuracyWarning
from rnla._rangefinder import warn

ACCEPTED = (
    "an array with NaN where entries are missing, an array with mask=, a NumPy masked array, a sparse matrix, a dask "
    "array, or (rows, cols, values) with shape="
)


@dataclass(frozen=True, eq=False)
class Observed:
    """Entries sorted by row and then by column, each position once.

    Attributes
    ----------
    rows, cols : array of int, shape (N,)
        Positions.
    values : array, shape (N,)
        Real or complex floating.
    shape : tuple of int
        Of the matrix.
    """

    rows: Any
    cols: Any
    values: Any
    shape: tuple

    @property
    def xp(self):
        """Namespace of the arrays."""
        return array_namespace(self.values)

    @property
    def count(self):
        """Number of entries."""
        return int(self.values.shape[0])

    def with_values(self, values):
        """Return the same positions with other values."""
        return Observed(self.rows, self.cols, values, self.shape)

    def some(self, keep):
        """Return the entries that a NumPy vector of bool or of positions selects; of positions, in ascending order."""
        index = np.flatnonzero(keep) if keep.dtype == bool else np.sort(keep)
        xp = self.xp
        index = xp.asarray(index, device=device(self.values))
        rows, cols, values = (xp.take(x, index) for x in (self.rows, self.cols, self.values))
        return Observed(rows, cols, values, self.shape)

    def counts(self):
        """Return on the host how many entries each row and each column has."""
        return tuple(
            np.bincount(_host_index(index), minlength=side)
            for index, side in zip((self.rows, self.cols), self.shape, strict=True)
        )


def observed(A, caller, *, mask=None, shape=None):
    """Return the `Observed` entries of a matrix.

    Parameters
    ----------
    A : array, masked array, sparse matrix, dask array or tuple
        The matrix; a triple ``(rows, cols, values)`` is taken as entries.
    caller : str
        Public function named in errors.
    mask : array of bool, optional
        True where a dense `A` is observed.
    shape : tuple of int, optional
        Of the matrix, for a triple.

    Returns
    -------
    Observed
        Its entries.

    Raises
    ------
    ValueError
        If there is none, one is given twice, out of range, NaN (other than in a dense array without mask) or infinite.
    TypeError
        If `A` is of another kind.
    """
    triple = isinstance(A, (tuple, list)) and len(A) == 3 and all(getattr(x, "ndim", 1) == 1 for x in A)
    if triple != (shape is not None):
        wanted = "given for entries (rows, cols, values)" if triple else "None where A has a shape of its own"
        raise ValueError(f"{caller}: shape must be {wanted}; got {shape}.")
    if mask is not None and (triple or scipy.sparse.issparse(A) or isinstance(A, np.ma.MaskedArray)):
        raise ValueError(f"{caller}: mask must be None where A says itself which entries it has; got a mask.")
    if triple:
        found = _from_triple(A, shape, caller)
    elif scipy.sparse.issparse(A) or type(A).__module__.startswith("cupyx."):
        found = _from_sparse(A, caller)
    elif isinstance(A, np.ma.MaskedArray):
        found = _from_dense(np.asarray(A.data), ~np.ma.getmaskarray(A), caller)
    elif is_dask_array(A):
        found = _from_dask(A, mask, caller)
    elif is_array_api_obj(A) and not isinstance(A, np.matrix):
        found = _from_dense(A, mask, caller)
    else:
        raise TypeError(f"{caller}: A must be {ACCEPTED}; got {type(A).__module__}.{type(A).__name__}.")
    if not found.count:
        raise ValueError(f"{caller}: A must have at least one observed entry; got none.")
    xp = found.xp
    if not bool(xp.all(xp.isfinite(found.values))):
        raise ValueError(f"{caller}: A must have finite observed entries; got NaN or infinity.")
    return found


def warn_of_sparse_lines(entries, least, caller):
    """Warn once if rows or columns have fewer entries than a rank, or none: these cannot be determined."""
    short, empty = ([int(np.sum(counts < count)) for counts in entries.counts()] for count in (least, 1))
    if any(short):
        warn(
            f"{caller}: {short[0]} rows and {short[1]} columns have fewer than {least} observed entries ({empty[0]} "
            f"and {empty[1]} have none): their values are not determined.", AccuracyWarning,
        )  # fmt: skip


def _from_triple(A, shape, caller):
    rows, cols, values = A
    if not (isinstance(shape, (tuple, list)) and len(shape) == 2 and all(_is_count(side) for side in shape)):
        raise ValueError(f"{caller}: shape must be two positive integers; got {shape!r}.")
    shape = tuple(int(side) for side in shape)
    values = values if is_array_api_obj(values) else np.asarray(values)
    xp = array_namespace(values)
    values = floating(values, caller)
    where = device(values)
    index = []
    for x, name, side in ((rows, "rows", shape[0]), (cols, "cols", shape[1])):
        x = x if is_array_api_obj(x) else np.asarray(x)
        if not array_namespace(x).isdtype(x.dtype, "integral"):
            raise TypeError(f"{caller}: {name} must be integers; got {x.dtype}.")
        if x.shape != values.shape:
            raise ValueError(f"{caller}: {name} must have as many numbers as values, {values.shape[0]}; got {x.shape}.")
        x = xp.asarray(x, device=where)
        if x.shape[0] and (int(xp.min(x)) < 0 or int(xp.max(x)) >= side):
            raise ValueError(f"{caller}: {name} must be in 0..{side - 1}; got {int(xp.min(x))}..{int(xp.max(x))}.")
        index.append(xp.astype(x, xp.int64))
    place = index[0] * shape[1] + index[1]
    order = xp.argsort(place)
    place = xp.take(place, order)
    if place.shape[0] > 1 and bool(xp.any(place[1:] == place[:-1])):
        first = int(place[1:][place[1:] == place[:-1]][0])
        raise ValueError(
            f"{caller}: every entry must be given once; got row {first // shape[1]}, column {first % shape[1]} twice."
        )
    at_rows, at_cols = (_narrow(xp.take(x, order), shape) for x in index)
    return Observed(at_rows, at_cols, xp.take(values, order), shape)


def _from_sparse(A, caller):
    """Take all stored entries, zeros among them."""
    if not scipy.sparse.issparse(A):  # CuPy's
        A = A.tocoo()
        return _from_triple((A.row, A.col, A.data), A.shape, caller)
    if A.format != "csr":
        A = A.tocoo()
        return _from_triple((A.row, A.col, A.data), A.shape, caller)
    rows = np.repeat(np.arange(A.shape[0]), np.diff(A.indptr))
    return _from_triple((rows, A.indices, A.data), A.shape, caller)


def _from_dense(A, mask, caller):
    if A.ndim != 2 or 0 in A.shape:
        raise ValueError(f"{caller}: A must be two-dimensional and not empty; got shape {tuple(A.shape)}.")
    xp = array_namespace(A)
    A = floating(A, caller)
    if mask is None:
        known = ~xp.isnan(A)
    else:
        known = mask if is_array_api_obj(mask) else np.asarray(mask)
        if "bool" not in str(known.dtype):
            raise TypeError(f"{caller}: mask must be boolean, True where A is observed; got {known.dtype}.")
        if tuple(known.shape) != tuple(A.shape):
            raise ValueError(f"{caller}: mask must have the shape of A, {tuple(A.shape)}; got {tuple(known.shape)}.")
        known = xp.asarray(known, device=device(A))
    rows, cols = xp.nonzero(known)
    return Observed(_narrow(rows, A.shape), _narrow(cols, A.shape), A[known], tuple(int(side) for side in A.shape))


def _from_dask(A, mask, caller):
    """Turn one block after the other into entries."""
    if A.ndim != 2:
        raise ValueError(f"{caller}: A must be two-dimensional; got shape {tuple(A.shape)}.")
    rows, cols, values = [], [], []
    ends = [np.concatenate([[0], np.cumsum(chunks)]).astype(int) for chunks in A.chunks]
    for i in range(A.numblocks[0]):
        for j in range(A.numblocks[1]):
            (top, bottom), (left, right) = (edge[at : at + 2] for edge, at in zip(ends, (i, j), strict=True))
            block = A.blocks[i, j].compute()
            part = None if mask is None else np.asarray(mask[top:bottom, left:right])
            found = _from_sparse(block, caller) if scipy.sparse.issparse(block) else _from_dense(block, part, caller)
            rows.append(found.rows.astype(np.int64) + top)
            cols.append(found.cols.astype(np.int64) + left)
            values.append(found.values)
    xp = array_namespace(values[0])
    return _from_triple(tuple(xp.concat(parts) for parts in (rows, cols, values)), A.shape, caller)


def floating(values, caller, name="A"):
    """Return values in the type in which they are computed."""
    xp, dtype = array_namespace(values), values.dtype
    if xp.isdtype(dtype, ("bool", "integral")):
        return xp.astype(values, xp.float64)
    if xp.isdtype(dtype, ("real floating", "complex floating")):
        bits = xp.finfo(dtype).bits
        if bits < 32:
            return xp.astype(values, xp.float32)
        if bits <= 64:
            return values.astype(dtype.newbyteorder("="), copy=False) if is_numpy_array(values) else values
    raise TypeError(
        f"{caller}: {name} must have a boolean, integer, float or complex dtype that BLAS knows; got {dtype}."
    )


def _narrow(index, shape):
    """Return the index in 32 bits, which is read faster, if it fits."""
    xp = array_namespace(index)
    return xp.astype(index, xp.int32 if max(shape) < 2**31 and is_numpy_array(index) else xp.int64, copy=False)


def _host_index(index):
    return index if is_numpy_array(index) else to_host(index).astype(np.int64)


def _is_count(side):
    return isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side > 0


def centres(entries, kind, caller):
    """Return the centre of every row and of every column, NumPy vectors whose sum is subtracted from an entry.

    ``mean`` is one number, ``columns`` and ``rows`` the means of observed entries, ``both`` their least-squares fit by
    alternation from the total mean. Lines without entries get the mean of the others.
    """
    m, n = entries.shape
    rows, cols = (_host_index(x) for x in (entries.rows, entries.cols))
    values = to_host(entries.values)
    of_rows, of_cols = np.zeros(m, values.dtype), np.zeros(n, values.dtype)
    total = values.mean()
    if kind == "mean":
        of_rows += total
    elif kind == "columns":
        of_cols = _means(cols, values, n, total)
    elif kind == "rows":
        of_rows = _means(rows, values, m, total)
    elif kind == "both":
        of_rows += total
        for _ in range(20):  # a least-squares fit of two factors, which converges fast unless almost nothing is known
            of_cols = _means(cols, values - of_rows[rows], n, 0.0)
            of_rows = _means(rows, values - of_cols[cols], m, total)
    return of_rows, of_cols


def _means(index, values, count, default):
    number = np.bincount(index, minlength=count)
    total = np.bincount(index, weights=values.real, minlength=count)
    if np.iscomplexobj(values):
        total = total + 1j * np.bincount(index, weights=values.imag, minlength=count)
    return np.where(number > 0, total / np.maximum(number, 1), default)


def centred(entries, of_rows, of_cols):
    """Return the entries less their centres."""
    xp, values = entries.xp, entries.values
    rows, cols = (_host_index(x) for x in (entries.rows, entries.cols))
    shift = from_host(of_rows[rows] + of_cols[cols], xp, values.dtype, device(values))
    return entries.with_values(values - shift)
