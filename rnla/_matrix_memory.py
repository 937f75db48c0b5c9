"""Matrices in memory: dense arrays of any library, and compressed sparse rows."""

from functools import cached_property

import numpy as np
from array_api_compat import is_cupy_array, is_numpy_array, is_torch_array

from rnla._backend import adjoint
from rnla._matrix_blocks import Blocked
from rnla._matrix_views import Adjoint, Centered, Storage, adjoint_product, spans, sum_of_squares, wide_dtype

BLOCK_ENTRIES = 2**20  # of a tile of a dense array: 8 MB in double precision stay in the cache of the processor


class Dense(Storage):
    """A dense array of any array-API library."""

    def __init__(self, array, xp, device):
        super().__init__(tuple(array.shape), array.dtype, xp, device)
        self.array = array

    def matmat(self, X, out=None):
        if out is not None and is_numpy_array(self.array):
            return np.matmul(self.array, X, out=out)
        return self.array @ X

    def rmatmat(self, Y, out=None):
        if out is None or not is_numpy_array(self.array):
            return adjoint_product(self.array, Y)
        if self.array.dtype.kind != "c":
            return np.matmul(self.array.T, Y, out=out)
        return np.conj(np.matmul(self.array.T, Y.conj(), out=out), out=out)

    def row_blocks(self):
        return ((rows.start, self.array[rows, :]) for rows in self._spans(0))

    def column_blocks(self):
        return ((columns.start, self.array[:, columns]) for columns in self._spans(1))

    def fro_norm_sq(self, scale=1.0):
        by_rows = not (is_numpy_array(self.array) and self.array.flags.f_contiguous)
        blocks = self.row_blocks() if by_rows else self.column_blocks()
        return sum(sum_of_squares(B, scale) for _, B in blocks)

    def col_mean(self):
        sums = self.xp.sum(self.array, axis=0, dtype=wide_dtype(self.dtype, self.xp))
        return self.xp.astype(sums / self.shape[0], self.dtype)

    def centered(self, mean):
        return _blocked(lambda rows, columns: self.array[rows, columns], self, mean)

    def adjoint(self):
        if self.xp.isdtype(self.dtype, "complex floating"):
            return DenseAdjoint(self)  # its conjugate would be a copy
        return Dense(self.array.T, self.xp, self.device)

    def _spans(self, axis):
        return spans(self.shape[axis], max(BLOCK_ENTRIES // self.shape[1 - axis], 1))


class DenseAdjoint(Adjoint):
    """``A^H`` of a complex dense array, conjugated block by block or when `array` is asked for."""

    @property
    def array(self):
        return adjoint(self.inner.array)

    def centered(self, mean):
        return _blocked(lambda rows, columns: adjoint(self.inner.array[columns, rows]), self, mean)


def _blocked(read, dense, mean):
    # At least one whole row and one whole column, so that blocks of either kind are always available.
    size = max(BLOCK_ENTRIES, *dense.shape)
    settings = {"grain": (1, 1), "size": size, "prefetch": False}
    return Blocked(read, dense.shape, dense.dtype, dense.xp, dense.device, mean=mean, **settings)


def blas_ready(A):
    """Return `A`, or one contiguous copy where BLAS, which wants one unit stride, would copy it in every product."""
    if is_torch_array(A):
        strides, aligned = list(A.stride()), True
    elif is_numpy_array(A) or is_cupy_array(A):
        strides, aligned = [stride / A.itemsize for stride in A.strides], getattr(A.flags, "aligned", True)
    else:
        return A
    leading = max(strides)  # from one row (or column) to the next: whole entries, and no overlap
    by_rows = strides == [leading, 1] and leading >= A.shape[1]
    by_columns = strides == [1, leading] and leading >= A.shape[0]
    if aligned and leading == int(leading) and (by_rows or by_columns):
        return A
    return A.contiguous() if is_torch_array(A) else A.copy(order="C")


class Sparse(Storage):
    """Compressed sparse rows, sorted and without duplicates, of SciPy or CuPy."""

    def __init__(self, csr, xp, device):
        super().__init__(tuple(int(side) for side in csr.shape), csr.dtype, xp, device)
        self.csr = csr
        self.nnz = int(csr.nnz)
        self._between = None  # memory for A X on the way to A^H (A X): fresh memory costs a fifth of the product

    def matmat(self, X, out=None):
        if not is_numpy_array(X):
            return self.csr @ X
        from rnla.kernels import csr_matmat

        return csr_matmat(*self._arrays(), X, out)

    def gram_matmat(self, X):
        shape = self.shape[0], X.shape[1]
        if is_numpy_array(X) and (self._between is None or self._between.shape != shape):
            self._between = np.empty(shape, X.dtype)
        return self.rmatmat(self.matmat(X, self._between))

    def rmatmat(self, Y, out=None):
        if not is_numpy_array(Y):
            return self._adjoint @ Y
        from rnla.kernels import csr_rmatmat

        return csr_rmatmat(*self._arrays(), Y, lambda: self._panels)

    @cached_property
    def _panels(self):
        from rnla.kernels import adjoint_panels

        return adjoint_panels(*self._arrays())

    @cached_property
    def _adjoint(self):  # of a matrix on a GPU, whose library multiplies rows faster than columns
        return self.csr.conj().T.tocsr()

    def _arrays(self):
        return self.csr.data, self.csr.indices, self.csr.indptr, self.csr.shape

    def fro_norm_sq(self, scale=1.0):
        return sum((sum_of_squares(self.csr.data[part], scale) for part in spans(self.nnz, BLOCK_ENTRIES)), 0.0)

    def col_mean(self):
        m, n = self.shape
        sums = self.xp.bincount(self.csr.indices, weights=self.csr.data.real, minlength=n)
        if self.dtype.kind == "c":
            sums = sums + 1j * self.xp.bincount(self.csr.indices, weights=self.csr.data.imag, minlength=n)
        return (sums / m).astype(self.dtype)

    def column_squares(self):
        squares = abs(self.csr.data).astype(self.xp.float64) ** 2
        return self.xp.bincount(self.csr.indices, weights=squares, minlength=self.shape[1])

    def centered(self, mean):
        return CenteredSparse(self, mean)


class CenteredSparse(Centered):
    """A sparse matrix with its mean kept apart."""

    def fro_norm_sq(self, scale=1.0):
        csr, wide = self.inner.csr, wide_dtype(self.dtype, self.xp)
        mean = self.mean.astype(wide)
        stored = self.xp.bincount(csr.indices, minlength=self.shape[1])
        # Stored entries and the zeros between them are summed apart: ||A||^2 - m ||mean||^2 would cancel.
        total = float(((self.shape[0] - stored) * abs(scale * mean) ** 2).sum())
        for part in spans(self.inner.nnz, BLOCK_ENTRIES):
            total += sum_of_squares(csr.data[part].astype(wide) - mean[csr.indices[part]], scale)
        return total

    def column_squares(self):
        csr, wide = self.inner.csr, wide_dtype(self.dtype, self.xp)
        mean, n = self.mean.astype(wide), self.shape[1]
        stored = self.xp.bincount(csr.indices, minlength=n)
        squares = abs(csr.data.astype(wide) - mean[csr.indices]) ** 2
        return self.xp.bincount(csr.indices, weights=squares, minlength=n) + (self.shape[0] - stored) * abs(mean) ** 2
