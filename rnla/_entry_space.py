"""Matrices of which some entries are known, and the products with them that an iteration needs."""

from functools import partial

import numpy as np
import scipy.sparse
from array_api_compat import array_namespace, device, is_numpy_array

from rnla import kernels

_GATHERED = 1 << 24  # numbers in the gathered rows of a block, on a device
_CACHED = 1 << 22  # bytes of a factor beyond which its rows take long to come
_NEAR = 1 << 21  # bytes of a block to which SciPy's transposed product adds as fast as the compiled one gathers
_SMALL = 2_000_000  # multiplications up to which SciPy's product is as fast
_TAKEN = 1 << 18  # values put in order at a time, and for each core


class EntrySpace:
    """Sampled entries of an m x n matrix: ``P`` takes them, ``P^*`` makes a sparse matrix of them.

    Parameters
    ----------
    rows, cols : array of int, shape (N,)
        Positions, sorted by row and then by column, each once.
    shape : tuple of int
        Rows and columns ``(m, n)``.
    """

    structured = False  # every matrix belongs to the space, not only those of some structure
    multiplicity = 1.0  # how often an entry of the matrix stands in the lifted one

    def __init__(self, rows, cols, shape):
        self.rows, self.cols, self.shape = rows, cols, shape
        self.count = rows.shape[0]
        self.density = self.count / (shape[0] * shape[1])
        self._order = self._sparse = self._ends = self._panels = None

    def degrees(self, rank):
        """Return the degrees of freedom of a matrix of some rank."""
        return rank * (sum(self.shape) - rank)

    def sampled(self, L, Rc):
        """Return the sampled entries of ``L @ Rc.T``, for L (m, w) and Rc (n, w)."""
        if is_numpy_array(L) and max(L.nbytes, Rc.nbytes) > _CACHED:
            return kernels.sampled_product_panels(L, Rc, self._adjoint_places(), self.count)
        return kernels.sampled_product(L, Rc, self.rows, self.cols)

    def right(self, values, X):
        """Return ``S @ X`` for the sparse matrix S of some values."""
        if is_numpy_array(X):
            if values.size * X.shape[1] <= _SMALL:
                return self._matrices(values)[0] @ X
            return kernels.csr_matmat(values, self.cols, self._row_ends(), self.shape, X)
        return _gathered(values, self.rows, self.cols, X, self.shape[0])

    def left(self, values, X):
        """Return ``S^H @ X``."""
        if is_numpy_array(X):
            if X.nbytes <= _NEAR:
                by_cols = self._matrices(values)[1]
                return (by_cols @ X.conj()).conj() if values.dtype.kind == "c" else by_cols @ X
            arrays = values, self.cols, self._row_ends()
            return kernels.csr_rmatmat(*arrays, self.shape, X, lambda: self._adjoint_panels(values))
        xp = array_namespace(X)
        values = xp.conj(values) if xp.isdtype(values.dtype, "complex floating") else values
        order, rows, cols = self._by_columns()
        return _gathered(xp.take(values, order), cols, rows, X, self.shape[1])

    def _by_columns(self):
        """Return the order of the entries by column, and their positions in this order."""
        if self._order is None:
            xp = array_namespace(self.cols)
            order = xp.argsort(self.cols)
            self._order = order, xp.take(self.rows, order), xp.take(self.cols, order)
        return self._order

    def _row_ends(self):
        if self._ends is None:
            counts = np.bincount(self.rows, minlength=self.shape[0])
            self._ends = np.concatenate([[0], np.cumsum(counts)]).astype(self.cols.dtype)
        return self._ends

    def _matrices(self, values):
        """Return S and its transpose with these values: two views of the same index arrays, made once."""
        if self._sparse is None:
            by_rows = scipy.sparse.csr_array((values, self.cols, self._row_ends()), shape=self.shape)
            self._sparse = by_rows, by_rows.T
        for S in self._sparse:
            S.data = values
        return self._sparse

    def _adjoint_panels(self, values):
        """Return ``S^H`` by rows, in panels."""
        panels = []
        for first, order, indices, ends in self._adjoint_places():
            data = np.empty(len(order), values.dtype)
            kernels.map_blocks(partial(_take, values, order, data), len(order), block=_TAKEN)
            panels.append((first, data, indices, ends))
        return panels

    def _adjoint_places(self):
        """Return the same with the place of each value among the entries, found once."""
        if self._panels is None:
            order = np.arange(self.count, dtype=np.int32 if self.count < 2**31 else np.int64)
            self._panels = kernels.adjoint_panels(order, self.cols, self._row_ends(), self.shape)
        return self._panels


def _take(values, order, out, start, stop):
    np.take(values, order[start:stop], out=out[start:stop], mode="clip")  # mode: without it `out` is buffered
    if values.dtype.kind == "c":
        np.conj(out[start:stop], out=out[start:stop])


def _gathered(values, rows, cols, X, n):
    """Return ``S @ X`` on a device, for sorted rows, some entries at a time."""
    xp = array_namespace(X)
    step = max(1, _GATHERED // max(X.shape[1], 1))
    out = xp.zeros((n, X.shape[1]), dtype=X.dtype, device=device(X))
    for start in range(0, values.shape[0], step):
        part = slice(start, start + step)
        out = out + kernels.row_sums(values[part][:, None] * xp.take(X, cols[part], axis=0), rows[part], n)
    return out
