"""What every kind of storage offers to `Matrix`, and the views made of another matrix: adjoint, centred, scaled."""

import math
from functools import partial

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from rnla._backend import adjoint, columns

RUN = 256  # entries whose squares are summed in their own precision: rounding of the total is far below its unit
PANEL_BYTES = 4 * 2**20  # rows of A that a cache still holds when they are multiplied with a second time


class Storage:
    """One kind of storage; the defaults are those of a matrix known only through its products.

    A subclass has ``matmat(X, out=None)`` and ``rmatmat(Y, out=None)``; `out` is a hint that only dense NumPy takes.
    """

    nnz = None
    array = None
    inner = None  # what a view is a view of
    far = None  # side of A whose blocks of columns are dask arrays: see `_matrix_dask`
    one_pass_gram = False  # gram_matmat reads every entry once
    one_pass_adjoint_gram = False  # adjoint_gram_matmat reads every entry once

    def __init__(self, shape, dtype, xp, device):
        self.shape = shape
        self.dtype = dtype
        self.xp = xp
        self.device = device

    @property
    def source(self):
        """The storage that holds the entries, beneath all views."""
        return self if self.inner is None else self.inner.source

    @property
    def far_chunks(self):
        """Lengths of the chunks on the side `far`."""
        return None if self.inner is None else self.inner.far_chunks

    def locate_nonfinite(self):
        """Return where the first NaN or infinity is, in words such as ``rows 0..99``; None if that is not known.

        Asked of the `source` once a product has shown that there is one: it may read every entry again.
        """
        return None

    def gram_matmat(self, X):
        """Return ``A^H (A X)``."""
        return self.rmatmat(self.matmat(X))

    def adjoint_gram_matmat(self, Y):
        """Return ``A (A^H Y)``."""
        return self.matmat(self.rmatmat(Y))

    def spread(self):
        """Return the view whose products on one side stay dask arrays, where that is possible."""
        return self

    def image_and_gram(self, X):
        """Return ``A X``, ``A^H (A X)`` in double precision, and ``||A||_F**2``; None for want of rows."""
        return _image_and_gram(self.row_blocks(), X, self.shape[0])

    def adjoint_image_and_gram(self, Y):
        """Return the same of ``A^H``."""
        return _image_and_gram(_adjoints(self.column_blocks()), Y, self.shape[1])

    def both_products(self, X, Y):
        """Return ``A X`` and ``A^H Y`` from one read, or None where another way has to be found."""
        return None

    def sum_over_rows(self, function, *beside):
        """Return the sum of ``function(first row, dense rows, ...)`` over blocks of rows, or None for want of them."""
        blocks = self.row_blocks()
        if blocks is None:
            return None
        total = None
        for start, B in blocks:
            part = function(start, B, *(X[start : start + B.shape[0], :] for X in beside))
            total = part if total is None else total + part
        return total

    def row_blocks(self):
        """Return an iterator of (first row, dense rows), or None."""
        return None

    def column_blocks(self):
        """Return an iterator of (first column, dense columns), or None."""
        return None

    def fro_norm_sq(self, scale=1.0):
        """Return ``||scale * A||_F**2``, or None where the entries are out of reach."""
        return None

    def col_mean(self):
        """Return the mean of every column."""
        m = self.shape[0]
        ones = self.xp.ones((m, 1), dtype=self.dtype, device=self.device)
        sums = adjoint(self.rmatmat(ones))[0, :]
        return sums / m

    def column_squares(self):
        """Return the squared norm of every column in double precision, or None where the entries are out of reach."""
        by_rows = self.row_blocks()
        blocks = self.column_blocks() if by_rows is None else by_rows
        if blocks is None:
            return None
        total = self.xp.zeros((self.shape[1],), dtype=self.xp.float64, device=self.device)
        for start, B in blocks:
            wide = self.xp.astype(self.xp.abs(B), self.xp.float64)
            sums = self.xp.sum(wide * wide, axis=0)
            if by_rows is None:
                total[start : start + B.shape[1]] = sums
            else:
                total += sums
        return total

    def centered(self, mean):
        """Return ``A - 1 mean^T``."""
        return Centered(self, mean)

    def adjoint(self):
        """Return ``A^H``."""
        return Adjoint(self)


class Adjoint(Storage):
    """``A^H``, with the two products of A exchanged."""

    def __init__(self, inner):
        super().__init__(inner.shape[::-1], inner.dtype, inner.xp, inner.device)
        self.inner = inner
        self.nnz = inner.nnz
        self.far = None if inner.far is None else 1 - inner.far
        self.one_pass_gram = inner.one_pass_adjoint_gram
        self.one_pass_adjoint_gram = inner.one_pass_gram

    def spread(self):
        return Adjoint(self.inner.spread())

    def matmat(self, X, out=None):
        return self.inner.rmatmat(X, out)

    def rmatmat(self, Y, out=None):
        return self.inner.matmat(Y, out)

    def gram_matmat(self, X):
        return self.inner.adjoint_gram_matmat(X)

    def image_and_gram(self, X):
        return self.inner.adjoint_image_and_gram(X)

    def adjoint_image_and_gram(self, Y):
        return self.inner.image_and_gram(Y)

    def adjoint_gram_matmat(self, Y):
        return self.inner.gram_matmat(Y)

    def row_blocks(self):
        return _adjoints(self.inner.column_blocks())

    def column_blocks(self):
        return _adjoints(self.inner.row_blocks())

    def fro_norm_sq(self, scale=1.0):
        return self.inner.fro_norm_sq(scale)

    def adjoint(self):
        return self.inner


class Centered(Storage):
    """``A - 1 mean^T`` without forming it: for sparse matrices and operators.

    Where rows are at hand the mean is subtracted from them instead (`Blocked`), which loses fewer digits when the mean
    is large against the deviations.
    """

    def __init__(self, inner, mean):
        super().__init__(inner.shape, inner.dtype, inner.xp, inner.device)
        self.inner = inner
        self.mean = mean
        self.nnz = inner.nnz

    def matmat(self, X, out=None):
        return self.inner.matmat(X) - self.mean[None, :] @ X

    def rmatmat(self, Y, out=None):
        sums = self.xp.sum(Y, axis=0, keepdims=True)
        return self.inner.rmatmat(Y) - adjoint(self.mean[None, :]) @ sums


class ColumnScaled(Storage):
    """``A diag(weights)`` without forming it."""

    def __init__(self, inner, weights):
        super().__init__(inner.shape, inner.dtype, inner.xp, inner.device)
        self.inner = inner
        self.weights = self.xp.astype(weights, inner.dtype)
        self.nnz = inner.nnz
        self.far = inner.far
        self.one_pass_gram = inner.one_pass_gram
        self.one_pass_adjoint_gram = inner.one_pass_adjoint_gram

    def spread(self):
        return ColumnScaled(self.inner.spread(), self.weights)

    def matmat(self, X, out=None):
        return self.inner.matmat(self.weights[:, None] * X, out)

    def rmatmat(self, Y, out=None):
        return self.weights[:, None] * self.inner.rmatmat(Y, out)

    def gram_matmat(self, X):
        return self.weights[:, None] * self.inner.gram_matmat(self.weights[:, None] * X)

    def image_and_gram(self, X):
        products = self.inner.image_and_gram(self.weights[:, None] * X)
        return None if products is None else (products[0], self.weights[:, None] * products[1], None)

    def sum_over_rows(self, function, *beside):
        return self.inner.sum_over_rows(partial(_of_multiple, function, self.weights), *beside)

    def row_blocks(self):
        blocks = self.inner.row_blocks()
        return None if blocks is None else ((start, B * self.weights) for start, B in blocks)

    def column_blocks(self):
        blocks = self.inner.column_blocks()
        if blocks is None:
            return None
        return ((start, B * self.weights[start : start + B.shape[1]]) for start, B in blocks)

    def fro_norm_sq(self, scale=1.0):
        squares = self.column_squares()
        return None if squares is None else float(scale**2 * self.xp.sum(squares))

    def column_squares(self):
        squares = self.inner.column_squares()
        weights = self.xp.astype(self.xp.abs(self.weights), self.xp.float64)
        return None if squares is None else squares * weights**2


class Scaled(Storage):
    """``alpha * A``. The factor goes on the argument, so that A with entries near overflow or underflow is safe."""

    def __init__(self, inner, alpha):
        super().__init__(inner.shape, inner.dtype, inner.xp, inner.device)
        self.inner = inner
        self.alpha = alpha
        self.nnz = inner.nnz
        self.far = inner.far
        self.one_pass_gram = inner.one_pass_gram
        self.one_pass_adjoint_gram = inner.one_pass_adjoint_gram

    def spread(self):
        return Scaled(self.inner.spread(), self.alpha)

    def matmat(self, X, out=None):
        return self.inner.matmat(self.alpha * X, out)

    def rmatmat(self, Y, out=None):
        return self.inner.rmatmat(self.alpha * Y, out)

    def gram_matmat(self, X):
        return self.alpha * self.inner.gram_matmat(self.alpha * X)

    def image_and_gram(self, X):
        return self._times(self.inner.image_and_gram(self.alpha * X))

    def adjoint_image_and_gram(self, Y):
        return self._times(self.inner.adjoint_image_and_gram(self.alpha * Y))

    def both_products(self, X, Y):
        return self.inner.both_products(self.alpha * X, self.alpha * Y)

    def _times(self, products):
        if products is None:
            return None
        Y, Z, total = products
        return Y, self.alpha * Z, total if total is None else self.alpha**2 * total

    def adjoint_gram_matmat(self, Y):
        return self.alpha * self.inner.adjoint_gram_matmat(self.alpha * Y)

    def sum_over_rows(self, function, *beside):
        return self.inner.sum_over_rows(partial(_of_multiple, function, self.alpha), *beside)

    def row_blocks(self):
        return _multiples(self.alpha, self.inner.row_blocks())

    def column_blocks(self):
        return _multiples(self.alpha, self.inner.column_blocks())

    def fro_norm_sq(self, scale=1.0):
        return self.inner.fro_norm_sq(self.alpha * scale)

    def col_mean(self):
        return self.alpha * self.inner.col_mean()

    def centered(self, mean):
        return Scaled(self.inner.centered(mean / self.alpha), self.alpha)

    def adjoint(self):
        return Scaled(self.inner.adjoint(), self.alpha)


def _image_and_gram(blocks, X, length):
    if blocks is None:
        return None
    xp = array_namespace(X)
    Y, Z, total = None, None, 0.0
    for start, B in blocks:
        part = B @ X
        if Y is None:
            Y = columns(xp, length, X.shape[1], dtype=part.dtype, device=device(part))
            Z = xp.zeros((B.shape[1], X.shape[1]), dtype=wide_dtype(part.dtype, xp), device=device(part))
        Y[start : start + B.shape[0], :] = part
        Z += xp.astype(adjoint_product(B, part), Z.dtype, copy=False)
        total += sum_of_squares(B, 1.0)
    return Y, Z, total


def _of_multiple(function, factor, start, B, *beside):
    return function(start, B * factor, *beside)


def _adjoints(blocks):
    return None if blocks is None else ((start, adjoint(B)) for start, B in blocks)


def _multiples(alpha, blocks):
    return None if blocks is None else ((start, alpha * B) for start, B in blocks)


def adjoint_product(B, Y):
    """Return ``B^H Y``; only the thin `Y` and the result are conjugated, never `B`."""
    xp = array_namespace(B, Y)
    if is_numpy_array(B) and B.flags.c_contiguous:  # (Y^H B)^H reads B along its rows: up to a third faster
        return np.ascontiguousarray((Y.conj().T @ B).conj().T)
    if xp.isdtype(B.dtype, "complex floating"):
        return xp.conj(B.T @ xp.conj(Y))
    return B.T @ Y


def gram_product(B, X):
    """Return ``B^H (B X)``; a block in memory is taken in panels that are still in the cache for the second product."""
    if not is_numpy_array(B):
        return adjoint_product(B, B @ X)
    step = max(1, PANEL_BYTES // max(1, B.shape[1] * B.itemsize))
    if not X.shape[1] <= step < B.shape[0]:  # products with too few rows are slow
        return adjoint_product(B, B @ X)
    return sum(adjoint_product(B[part], B[part] @ X) for part in spans(B.shape[0], step))


def wide_dtype(dtype, xp):
    """Return the double-precision type of the same kind, in which sums over many blocks are kept."""
    return xp.complex128 if xp.isdtype(dtype, "complex floating") else xp.float64


def sum_of_squares(B, scale):
    """Return ``||scale * B||_F**2``, summed in double precision over runs of `RUN` entries summed in the dtype of B."""
    xp = array_namespace(B)
    if scale == 1 and is_numpy_array(B) and (B.flags.c_contiguous or B.flags.f_contiguous):
        flat = B.reshape(-1, order="A")
        whole = flat.size - flat.size % RUN
        total = _squares_by_runs(flat[:whole].reshape(-1, RUN))
        # Squares of single precision overflow and underflow where those of double precision do not.
        if math.isfinite(total) and total > whole * float(np.finfo(B.dtype).tiny) / np.finfo(B.dtype).eps:
            rest = flat[whole:].astype(wide_dtype(B.dtype, xp))
            return total + float(np.vdot(rest, rest).real)
    wide = xp.astype(B, wide_dtype(B.dtype, xp)) * scale
    if xp.isdtype(wide.dtype, "complex floating"):
        return float(xp.sum(xp.real(wide) ** 2 + xp.imag(wide) ** 2))
    return float(xp.sum(wide * wide))


def _squares_by_runs(runs):
    from rnla.kernels import map_blocks

    squares = np.empty(len(runs), runs.dtype)

    def run(start, stop):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # a setting of each thread
            np.vecdot(runs[start:stop], runs[start:stop], out=squares[start:stop])

    map_blocks(run, len(runs), block=2**12)
    return float(np.sum(squares.real, dtype=np.float64))


def place_of(rows, columns, shape):
    """Name a block of a matrix in an error: its rows, and its columns where they are not all."""
    text = f"rows {rows.start}..{rows.stop - 1}"
    return text if columns.stop - columns.start == shape[1] else f"{text}, columns {columns.start}..{columns.stop - 1}"


def spans(length, step):
    """Cut ``range(length)`` into slices of `step`."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
