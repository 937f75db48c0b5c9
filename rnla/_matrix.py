"""One view of dense, sparse, LinearOperator, dask, memmap, HDF5 and Zarr input, so algorithms never ask what `A` is."""

import numbers
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import array_api_compat.numpy
import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_array_api_obj,
    is_dask_array,
    is_numpy_namespace,
    is_pydata_sparse_array,
    is_torch_array,
)

from rnla._matrix_memory import Dense, Sparse, blas_ready
from rnla._matrix_views import ColumnScaled, Scaled

ACCEPTED = (
    "a 2-D array (NumPy, CuPy, torch or another array-API library), numpy.memmap, scipy.sparse or cupyx.scipy.sparse "
    "matrix, LinearOperator, dask array, h5py or Zarr dataset, tuple (matvec, rmatvec, shape, dtype), "
    "or object with @ and .H or .T"
)


@dataclass
class Counter:
    """Work done on a matrix and on all its views: times every entry was read, and columns multiplied."""

    passes: int = 0
    matvecs: int = 0


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of any kind, as the algorithms see it.

    Attributes
    ----------
    kind : {"dense", "sparse", "operator", "dask", "file", "stream"}
        What holds the entries; a view keeps the kind of its matrix.
    shape : tuple of int
        Rows and columns ``(m, n)``.
    dtype, xp, device
        Of the dense blocks that go into and come out of products.
    array : array or None
        The entries, where they are one dense array in memory already in `dtype`.
    nnz : int or None
        Number of stored entries of a sparse matrix.
    one_pass_gram : bool
        Whether `gram_matmat` reads every entry once instead of twice.
    counter : Counter
        Shared by all views.
    """

    kind: str
    storage: Any = field(repr=False)
    counter: Counter = field(default_factory=Counter)

    @property
    def shape(self):
        return self.storage.shape

    @property
    def dtype(self):
        return self.storage.dtype

    @property
    def xp(self):
        return self.storage.xp

    @property
    def device(self):
        return self.storage.device

    @property
    def array(self):
        return self.storage.array

    @property
    def nnz(self):
        return self.storage.nnz

    @property
    def one_pass_gram(self):
        return self.storage.one_pass_gram

    @property
    def far(self):
        """Side whose blocks of columns are dask arrays: 0 for the rows of A, 1 for its columns; None for neither."""
        return self.storage.far

    @property
    def far_chunks(self):
        """Lengths of the chunks on that side."""
        return self.storage.far_chunks

    def matmat(self, X, out=None):
        """Return ``A @ X``; `out` may be used for it if A is a NumPy array."""
        self._count(X, self.shape[1], 1, 1)
        return self.storage.matmat(X, out)

    def rmatmat(self, Y, out=None):
        """Return ``A^H @ Y``; `out` may be used for it if A is a NumPy array."""
        self._count(Y, self.shape[0], 1, 1)
        return self.storage.rmatmat(Y, out)

    def gram_matmat(self, X):
        """Return ``A^H (A X)``, in one read of A where `one_pass_gram` says so."""
        self._count(X, self.shape[1], 1 if self.one_pass_gram else 2, 2)
        return self.storage.gram_matmat(X)

    def image_and_gram(self, X):
        """Return ``A X``, in double precision ``A^H (A X)``, and ``||A||_F**2`` or None, all from one read of A.

        None instead if rows are out of reach.
        """
        products = self.storage.image_and_gram(X)
        if products is not None:
            self._count(X, self.shape[1], 1, 2)
        return products

    def sum_over_rows(self, function, *beside):
        """Return the sum of ``function(first row, dense rows, ...)`` over blocks of rows, or None for want of rows.

        The function runs where the rows are, so it must be picklable; it is also given the same rows of every array in
        `beside`. One pass.
        """
        total = self.storage.sum_over_rows(function, *beside)
        if total is not None:
            self.counter.passes += 1
        return total

    def row_blocks(self):
        """Return an iterator of (first row, dense block of rows) that reads A once, or None for want of rows."""
        blocks = self.storage.row_blocks()
        return None if blocks is None else self._counted(blocks)

    def fro_norm_sq(self):
        """Return ``||A||_F**2`` right to rounding of A (one pass), or None if A is known by its products only."""
        total = self.storage.fro_norm_sq()
        if total is not None:
            self.counter.passes += 1
        return total

    def col_mean(self):
        """Return the mean of every column, shape (n,); one pass."""
        self.counter.passes += 1
        self.counter.matvecs += self.kind == "operator"  # one product with a vector of ones
        return self.storage.col_mean()

    def to_dense(self):
        """Return the whole matrix as one array; for matrices that are known to be small."""
        if self.array is not None:
            return self.array
        blocks = self.row_blocks()
        if blocks is not None:
            return self.xp.concat([B for _, B in blocks], axis=0)
        A = self.matmat(self.xp.eye(self.shape[1], dtype=self.dtype, device=self.device))
        return A.compute() if is_dask_array(A) else A

    @property
    def H(self):
        """The adjoint, as a view."""
        return Matrix(self.kind, self.storage.adjoint(), self.counter)

    def spread(self):
        """Return the view of a dask array whose products on its long side stay dask arrays; of others, themselves."""
        return Matrix(self.kind, self.storage.spread(), self.counter)

    def centered(self, mean):
        """Return the view ``A - 1 mean^T``."""
        return Matrix(self.kind, self.storage.centered(mean), self.counter)

    def column_scaled(self, weights):
        """Return the view ``A diag(weights)`` for positive `weights`, shape (n,)."""
        return Matrix(self.kind, ColumnScaled(self.storage, weights), self.counter)

    def column_squares(self):
        """Return the squared norm of every column (one pass), or None if A is known by its products only."""
        squares = self.storage.column_squares()
        if squares is not None:
            self.counter.passes += 1
        return squares

    def scaled(self, alpha):
        """Return the view ``alpha * A`` for a positive number `alpha`."""
        return Matrix(self.kind, Scaled(self.storage, float(alpha)), self.counter)

    def _count(self, X, rows, passes, products):
        if X.ndim != 2 or X.shape[0] != rows or X.dtype != self.dtype:
            # A block of another precision would silently convert the whole of A.
            raise ValueError(
                f"Matrix: a block must have {rows} rows and dtype {self.dtype}; got shape {tuple(X.shape)}, {X.dtype}."
            )
        self.counter.passes += passes
        self.counter.matvecs += products * X.shape[1]

    def _counted(self, blocks):
        self.counter.passes += 1
        yield from blocks


def as_matrix(A, caller, *, block_bytes=None):
    """Wrap any accepted kind of matrix; no entry is read, and none copied unless its layout or dtype demands it.

    Parameters
    ----------
    A : array, sparse matrix, LinearOperator, dask array, dataset or tuple
        The matrix.
    caller : str
        Public function named in errors.
    block_bytes : int, optional
        The most bytes that one block read from a file holds.

    Returns
    -------
    Matrix
        The view; `A` itself if it is one.

    Raises
    ------
    TypeError
        If the kind or the dtype of `A` is not supported.
    ValueError
        If `A` is not two-dimensional, or has no rows or no columns.
    """
    if block_bytes is not None:
        _check_block_bytes(block_bytes, caller)
    if isinstance(A, Matrix):
        return A
    if isinstance(A, (np.matrix, np.ma.MaskedArray)):
        wanted = "a plain array: numpy.asarray(A)" if isinstance(A, np.matrix) else "without mask: A.filled(value)"
        raise TypeError(f"{caller}: A must be {wanted}; got {type(A).__module__}.{type(A).__name__}.")
    array, file = (partial(kind, block_bytes=block_bytes) for kind in (_array, _file))
    for convert in (_sparse, _dask, array, _operator, file, _convertible):
        matrix = convert(A, caller)
        if matrix is not None:
            return matrix
    raise TypeError(f"{caller}: A must be {ACCEPTED}; got {type(A).__module__}.{type(A).__name__}.")


def _sparse(A, caller):
    scipy_sparse = sys.modules.get("scipy.sparse")  # A cannot be of a module that nobody imported
    if scipy_sparse is not None and scipy_sparse.issparse(A):
        xp, place = array_api_compat.numpy, "cpu"
        _check_shape(A.shape, caller)
        csr = scipy_sparse.csr_array(A)
    elif type(A).__module__.startswith("cupyx.scipy.sparse") and hasattr(A, "tocsr"):
        _check_shape(A.shape, caller)
        csr = A.tocsr()
        xp, place = array_namespace(csr.data), csr.data.device
    else:
        return None
    dtype = _computing_dtype(A.dtype, xp, caller)
    if csr.nnz and not 0 <= int(csr.indices.min()) <= int(csr.indices.max()) < csr.shape[1]:
        # SciPy does not look, and the kernels would read and write outside their arrays.
        raise ValueError(f"{caller}: A must have column indices in 0..{csr.shape[1] - 1}; its CSR arrays have others.")
    if csr.dtype != dtype:
        csr = csr.astype(dtype)
    if not csr.has_canonical_format:
        csr = csr.copy()  # the arrays may be the caller's
        csr.sum_duplicates()
    return Matrix("sparse", Sparse(csr, xp, place))


def _dask(A, caller):
    if not is_dask_array(A):
        return None
    if len(A.shape) == 2 and any(side != side for chunks in A.chunks for side in chunks):
        raise ValueError(f"{caller}: A must have known chunk sizes, see A.compute_chunk_sizes(); got {A.chunks}.")
    _check_shape(A.shape, caller)
    if any(0 in chunks for chunks in A.chunks):  # as selections leave them
        A = A.rechunk(tuple(tuple(side for side in chunks if side) for chunks in A.chunks))
    from rnla._dask_blocks import csr_blocks
    from rnla._matrix_dask import Dask

    sparse = hasattr(A._meta, "tocsr")
    if isinstance(A._meta, np.ma.MaskedArray) or not (sparse or is_array_api_obj(A._meta)):
        raise TypeError(f"{caller}: A must have chunks that are plain arrays or sparse; got {type(A._meta).__name__}.")
    if sparse and not type(A._meta).__module__.startswith("cupyx"):
        dtype = _computing_dtype(A.dtype, array_api_compat.numpy, caller)
        return Matrix("dask", Dask(csr_blocks(A, dtype), array_api_compat.numpy, "cpu", caller, sparse=True))
    inner = A._meta.data if sparse else A._meta
    xp = array_namespace(inner)
    A = A.astype(_computing_dtype(A.dtype, xp, caller))
    return Matrix("dask", Dask(A, xp, device(inner), caller, sparse=sparse))


def _array(A, caller, block_bytes=None):
    if not is_array_api_obj(A):
        return None
    if is_pydata_sparse_array(A) or (is_torch_array(A) and str(A.layout) != "torch.strided"):
        raise TypeError(f"{caller}: A must be dense, or sparse of SciPy or CuPy; got {type(A).__module__} sparse.")
    _check_shape(A.shape, caller)
    xp = array_namespace(A)
    dtype = _computing_dtype(A.dtype, xp, caller)
    if isinstance(A, np.memmap) and getattr(A, "_mmap", None) is not None:
        from rnla._matrix_blocks import file_storage

        return Matrix("file", file_storage(A, dtype, xp, caller, block_bytes))
    if is_torch_array(A):
        A = A.detach()  # no graph is recorded through the products
    elif is_numpy_namespace(xp):
        A = np.asarray(A)
    return Matrix("dense", Dense(blas_ready(xp.astype(A, dtype, copy=False)), xp, device(A)))


def _operator(A, caller):
    from rnla._matrix_operator import Operator, by_columns, products_of

    xp, place = array_api_compat.numpy, "cpu"
    if isinstance(A, tuple) and len(A) == 4 and callable(A[0]):
        matvec, rmatvec, shape, dtype = A
        products = by_columns(matvec), None if rmatvec is None else by_columns(rmatvec)
    elif hasattr(A, "shape") and (
        hasattr(A, "matmat")
        or hasattr(A, "matvec")
        or (hasattr(A, "__matmul__") and not hasattr(A, "__array__") and (hasattr(A, "H") or hasattr(A, "T")))
    ):
        shape, dtype, products = A.shape, getattr(A, "dtype", None), products_of(A)
        if type(A).__module__.startswith("cupyx."):
            import cupy

            xp = array_namespace(cupy.empty(0))
            place = device(cupy.empty(0))
    else:
        return None
    _check_shape(shape, caller)
    try:
        dtype = np.dtype(dtype)  # None is float64
    except TypeError as error:
        raise TypeError(f"{caller}: A must have a NumPy dtype or None; got {dtype!r}.") from error
    dtype = _computing_dtype(dtype, xp, caller)
    return Matrix("operator", Operator(*products, tuple(int(side) for side in shape), dtype, xp, place, caller))


def _file(A, caller, block_bytes):
    if not all(hasattr(A, name) for name in ("chunks", "shape", "dtype", "__getitem__")):
        return None
    from rnla._matrix_blocks import file_storage

    _check_shape(A.shape, caller)
    xp = array_api_compat.numpy
    return Matrix("file", file_storage(A, _computing_dtype(A.dtype, xp, caller), xp, caller, block_bytes))


def _convertible(A, caller):
    """Accept data frames and nested sequences of numbers, as NumPy does."""
    if not isinstance(A, (list, tuple)) and not hasattr(A, "__array__"):
        return None
    if isinstance(A, tuple) and any(callable(part) for part in A):
        return None
    try:
        array = np.asarray(A)
    except ValueError as error:
        raise ValueError(f"{caller}: A must have rows of equal length; got {error}.") from error
    return _array(array, caller)


def _check_block_bytes(value, caller):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{caller}: block_bytes must be an integer or None; got {type(value).__name__} {value!r}.")
    if value < 1:
        raise ValueError(f"{caller}: block_bytes must be at least 1; got {value}.")


def _check_shape(shape, caller):
    if shape is None or len(shape) != 2:
        raise ValueError(f"{caller}: A must be two-dimensional; got shape {shape}.")
    if min(shape) < 1:
        raise ValueError(f"{caller}: A must have at least one row and one column; got shape {tuple(shape)}.")


def _computing_dtype(dtype, xp, caller):
    """Return the type in which products with entries of `dtype` are computed."""
    if xp.isdtype(dtype, ("bool", "integral")):
        return xp.empty(0, dtype=xp.float64).dtype
    if xp.isdtype(dtype, ("real floating", "complex floating")):
        bits = xp.finfo(dtype).bits
        if bits < 32:
            is_real = xp.isdtype(dtype, "real floating")
            return xp.empty(0, dtype=xp.float32 if is_real else xp.complex64).dtype
        if bits <= 64:
            return np.dtype(dtype).newbyteorder("=") if is_numpy_namespace(xp) else dtype
    raise TypeError(f"{caller}: A must have a boolean, integer, float or complex dtype that BLAS knows; got {dtype}.")
