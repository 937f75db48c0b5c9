"""Entries of a matrix and of its mask for robust PCA: some rows and columns, or blocks of whole rows."""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_namespace, is_dask_array

from rnla._backend import to_host
from rnla._matrix import as_matrix
from rnla._matrix_views import Adjoint, spans
from rnla._submatrix import taken

BLOCK_BYTES = 8 * 2**20  # of rows of a matrix in memory that are worked on at a time
POOL = 3  # rows and columns that are read at once from a file, for each one that an iteration uses


class Part(NamedTuple):
    """Whole rows, or the transpose of whole columns, of which an iteration looks at some columns."""

    X: Any  # (m, N)
    observed: Any  # (m, N) of bool, or None


class Entries:
    """What robust PCA reads of a matrix.

    Parameters
    ----------
    A : array, dask array, memory map or dataset, shape (m, n)
        The matrix.
    mask : array of bool or None, shape (m, n)
        True where A is observed.
    caller : str
        Public function named in errors.
    block_bytes : int, optional
        The most bytes that one block read from a file holds.
    """

    def __init__(self, A, mask, caller, block_bytes=None):
        check_entries(A, caller)
        self.matrix = as_matrix(A, caller, block_bytes=block_bytes)
        self.caller, self.mask = caller, None
        self.shape, self.dtype = self.matrix.shape, self.matrix.dtype
        self.xp, self.device = self.matrix.xp, self.matrix.device
        self.array = self.matrix.array  # None where it is out of memory, or in pieces
        if mask is not None:
            self.mask = _checked_mask(mask, self.shape, caller)
            if self.array is not None:
                self.mask = self.xp.asarray(_plain(self.mask), device=self.device)

    def take(self, rows, cols):
        """Return ``(A[rows, :], A[:, cols])`` as two `Part`; one read of A where it is not in memory.

        The first is transposed, so that both are cut along their second axis.
        """
        xp = self.xp
        if self.array is not None:
            index = [xp.asarray(x, device=self.device) for x in (rows, cols)]
            across, down = ([None, None] for _ in range(2))
            for place, X in enumerate((self.array, self.mask)):
                if X is not None:
                    across[place], down[place] = taken(X, index[0], 0).T, taken(X, index[1], 1)
            return Part(*across), Part(*down)
        m, n = self.shape
        across = xp.zeros((len(rows), n), dtype=self.dtype, device=self.device)
        down = xp.zeros((m, len(cols)), dtype=self.dtype, device=self.device)
        index = xp.asarray(cols, device=self.device)
        for start, B in self._rows_or_columns():
            if isinstance(start, tuple):  # a block of columns
                left = start[1]
                across[:, left : left + B.shape[1]] = xp.take(B, xp.asarray(rows, device=self.device), axis=0)
                here = np.flatnonzero((cols >= left) & (cols < left + B.shape[1]))
                if len(here):
                    down[:, here] = xp.take(B, xp.asarray(cols[here] - left, device=self.device), axis=1)
                continue
            here = np.flatnonzero((rows >= start) & (rows < start + B.shape[0]))
            if len(here):
                across[here, :] = xp.take(B, xp.asarray(rows[here] - start, device=self.device), axis=0)
            down[start : start + B.shape[0], :] = xp.take(B, index, axis=1)
        if self.mask is None:
            return Part(across.T, None), Part(down, None)
        seen_across, seen_down = self._mask_part(rows, slice(None)), self._mask_part(slice(None), cols)
        return Part(across.T, seen_across.T), Part(down, seen_down)

    def sides(self, rows, cols):
        """Return the `Part` of all rows and its index, for ``A[:, cols]`` and, transposed, for ``A[rows, :]``.

        Of a matrix in memory nothing is copied.
        """
        if self.array is None:
            across, down = self.take(rows, cols)
            return (down, np.arange(len(cols))), (across, np.arange(len(rows)))
        seen = None if self.mask is None else self.mask.T
        return (Part(self.array, self.mask), cols), (Part(self.array.T, seen), rows)

    def row_blocks(self):
        """Yield ``(first row, block, mask of it or None)`` over all rows; one read. Of the mask what is False is 0."""
        m, n = self.shape
        if self.array is not None:
            step = max(1, BLOCK_BYTES // (n * 8))
            blocks = ((part.start, self.array[part, :]) for part in spans(m, step))
        else:
            blocks = self.matrix.row_blocks()
            if blocks is None:
                raise ValueError(
                    f"{self.caller}: A must have blocks of whole rows that fit in memory; its chunks do not give them. "
                    "Use method='riecur', or raise block_bytes."
                )
        for start, B in blocks:
            seen = None
            if self.mask is not None:
                seen = self.mask[start : start + B.shape[0], :]
                seen = self.xp.asarray(_plain(seen), device=self.device)
                B = self.xp.where(seen, B, self.xp.zeros_like(B))
            yield start, B, seen

    def mask_blocks(self):
        """Yield ``(first row, block of the mask on the host)`` over all rows."""
        step = max(1, BLOCK_BYTES // self.shape[1])
        for part in spans(self.shape[0], step):
            yield part.start, to_host(self.xp.asarray(_plain(self.mask[part, :]), device=self.device)) > 0

    def _rows_or_columns(self):
        blocks = self.matrix.row_blocks()
        if blocks is not None:
            return blocks
        view = Adjoint(self.matrix.storage).row_blocks()
        if view is None:
            raise ValueError(
                f"{self.caller}: A must have rows, or columns, of chunks that fit in block_bytes: raise it."
            )
        self.matrix.counter.passes += 1
        return (((0, start), conjugate(self.xp, B.dtype)(B).T) for start, B in view)

    def _mask_part(self, rows, cols):
        part = self.mask[rows, :] if isinstance(cols, slice) else self.mask[:, cols]
        return self.xp.asarray(_plain(part), device=self.device)


def check_entries(A, caller):
    """Raise ``TypeError`` for kinds of matrices whose entries robust PCA cannot look at, and for integers."""
    kind = type(A).__module__.split(".")[0]
    if hasattr(A, "tocsr") or hasattr(A, "rmatvec") or kind == "sparse":
        raise TypeError(
            f"{caller}: A must have entries that can be read: an array, memory map, dask array or dataset; got "
            f"{type(A).__module__}.{type(A).__name__}. Of a matrix with missing entries pass a dense one and mask."
        )
    name = str(getattr(A, "dtype", "float64"))
    if "int" in name or "bool" in name:
        raise TypeError(f"{caller}: A must be real or complex floating; got {name}: convert it to float32 first.")


def _checked_mask(mask, shape, caller):
    if not all(hasattr(mask, name) for name in ("shape", "dtype", "__getitem__")):
        mask = np.asarray(mask)
    if "bool" not in str(mask.dtype):
        raise TypeError(f"{caller}: mask must be boolean, True where A is observed; got {mask.dtype}.")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{caller}: mask must have the shape of A, {tuple(shape)}; got {tuple(mask.shape)}.")
    return mask


def _plain(X):
    """Return a part of a mask in memory."""
    if is_dask_array(X):
        return X.compute()
    return np.asarray(X) if not hasattr(X, "__array_namespace__") and not hasattr(X, "detach") else X


def conjugate(xp, dtype):
    """Return the function that conjugates arrays of a dtype; real ones are left as they are."""
    return xp.conj if xp.isdtype(dtype, "complex floating") else lambda X: X


def sparse_block(X, xp):
    """Return a dense block as a sparse matrix of SciPy, or of CuPy if it is there."""
    if is_cupy_namespace(xp):
        from cupyx.scipy import sparse

        return sparse.csr_matrix(X)
    from scipy import sparse

    return sparse.csr_array(X if isinstance(X, np.ndarray) else to_host(X))


class Cross(NamedTuple):
    """Sampled rows and columns: two sides of the same form, the second transposed."""

    rows: np.ndarray  # I
    cols: np.ndarray  # J
    down: Part  # its columns `down_index` are A[:, J]
    down_index: np.ndarray
    across: Part  # its columns `across_index` are A[I, :] transposed
    across_index: np.ndarray


class Samples:
    """Draws rows and columns, anew for each iteration or once.

    Of a matrix that is not in memory a pool of rows and columns is read, in one pass, and the draws are from the pool.
    """

    def __init__(self, entries, n_rows, n_cols, key, *, rows=None, cols=None, resample=True):
        self.entries, self.counts = entries, (n_rows, n_cols)
        self.random = np.random.Generator(np.random.Philox(key))
        self.resample = resample and rows is None and cols is None
        self._fixed = rows, cols
        self._pool: Any = None
        self._pool_index: Any = None
        self._last: Cross | None = None

    def draw(self):
        """Return a `Cross`."""
        if self._last is not None and not self.resample:
            return self._last
        if self.entries.array is not None:
            rows, cols = self._indices(self.entries.shape, self.counts)
            (down, J), (across, I) = self.entries.sides(rows, cols)
            self._last = Cross(rows, cols, down, J, across, I)
            return self._last
        if self._pool is None:
            factor = POOL if self.resample else 1
            self._pool_index = self._indices(self.entries.shape, [factor * count for count in self.counts])
            self._pool = self.entries.take(*self._pool_index)
        (across, down), (rows, cols) = self._pool, self._pool_index
        I, J = (self._some(len(index), count) for index, count in zip(self._pool_index, self.counts, strict=True))
        self._last = Cross(rows[I], cols[J], down, J, across, I)
        return self._last

    def _indices(self, shape, counts):
        return tuple(
            self._some(side, count) if fixed is None else fixed
            for side, count, fixed in zip(shape, counts, self._fixed, strict=True)
        )

    def _some(self, side, count):
        """Return distinct numbers below `side`, in order."""
        if count >= side:
            return np.arange(side)
        return np.sort(self.random.choice(side, count, replace=False, shuffle=False))


def residual_sides(cross, point, share):
    """Return ``E, q`` of `kernels.sampled_residuals` for the columns J, and transposed for the rows I."""
    from rnla import kernels

    U, s, V = point
    xp, where = array_namespace(U), device(U)
    V_J = xp.take(V, xp.asarray(cross.cols, device=where), axis=0)
    U_I = xp.take(U, xp.asarray(cross.rows, device=where), axis=0)
    conj = conjugate(xp, U.dtype)
    s = xp.astype(s, U.dtype)
    down = kernels.sampled_residuals(cross.down.X, cross.down_index, cross.down.observed, U * s, V_J, share)
    across = kernels.sampled_residuals(
        cross.across.X, cross.across_index, cross.across.observed, conj(V) * s, conj(U_I), share
    )
    return down, across, V_J, U_I
