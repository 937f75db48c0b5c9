"""Matrices of which some entries are known, and the products with them that an iteration needs."""

import numpy as np
import scipy.sparse
from array_api_compat import array_namespace, device, is_numpy_array

from rnla import kernels

_GATHERED = 1 << 24  # numbers in the gathered rows of a block, on a device


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
        self._sparse = self._order = None

    def degrees(self, rank):
        """Return the degrees of freedom of a matrix of some rank."""
        return rank * (sum(self.shape) - rank)

    def sampled(self, L, Rc):
        """Return the sampled entries of ``L @ Rc.T``, for L (m, w) and Rc (n, w)."""
        return kernels.sampled_product(L, Rc, self.rows, self.cols)

    def right(self, values, X):
        """Return ``S @ X`` for the sparse matrix S of some values."""
        if is_numpy_array(X):
            by_rows, _ = self._matrices(values)
            return by_rows @ X
        return _gathered(values, self.rows, self.cols, X, self.shape[0])

    def left(self, values, X):
        """Return ``S^H @ X``."""
        if is_numpy_array(X):
            _, by_cols = self._matrices(values)
            return (by_cols @ X.conj()).conj() if values.dtype.kind == "c" else by_cols @ X
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

    def _matrices(self, values):
        """Return S and its transpose with these values: two views of the same index arrays, made once."""
        if self._sparse is None:
            counts = np.bincount(self.rows, minlength=self.shape[0])
            ends = np.concatenate([[0], np.cumsum(counts)]).astype(self.cols.dtype)
            by_rows = scipy.sparse.csr_array((values, self.cols, ends), shape=self.shape)
            self._sparse = by_rows, by_rows.T
        for S in self._sparse:
            S.data = values
        return self._sparse


def _gathered(values, rows, cols, X, n):
    """Return ``S @ X`` on a device, for sorted rows, some entries at a time."""
    xp = array_namespace(X)
    step = max(1, _GATHERED // max(X.shape[1], 1))
    out = xp.zeros((n, X.shape[1]), dtype=X.dtype, device=device(X))
    for start in range(0, values.shape[0], step):
        part = slice(start, start + step)
        out = out + kernels.row_sums(values[part][:, None] * xp.take(X, cols[part], axis=0), rows[part], n)
    return out
