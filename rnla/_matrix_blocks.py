"""Products with a matrix that is read one tile at a time: files, and centred arrays."""

import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rnla._matrix_views import Storage, adjoint_product, gram_product, place_of, spans, sum_of_squares, wide_dtype

BLOCK_BYTES = 64 * 2**20  # by default: enough for full speed of disk and BLAS, little beside the memory of any machine
RUN_BYTES = 4096  # shortest contiguous run worth reading: one page


class Blocked(Storage):
    """A matrix whose tiles are made by ``read(rows, columns)``, an array of the given dtype for two slices.

    `grain` is the smallest tile worth reading by itself (the chunk of a chunked file). Tiles that span whole rows give
    ``A^H (A X)`` in one read, tiles that span whole columns ``A (A^H Y)``. A tile has at most `size` entries, unless
    one grain has more. Functions in `after_block` are told the number of entries of every tile that has been used.
    """

    def __init__(self, read, shape, dtype, xp, device, *, grain, size, prefetch, mean=None, after_block=None,
                 itemsize=0):  # fmt: skip
        super().__init__(shape, dtype, xp, device)
        self.read = read
        self.mean = mean
        self.grain = grain
        self.size = size
        self.prefetch = prefetch
        self.itemsize = itemsize  # of an entry on disk
        self.after_block = [] if after_block is None else after_block
        self.row_tile, self.column_tile, self.tile = _tilings(shape, grain, size)
        self.one_pass_gram = self.row_tile is not None
        self.one_pass_adjoint_gram = self.column_tile is not None

    def matmat(self, X, out=None):
        Y = self._zeros(self.shape[0], X.shape[1], summed=self.tile[1] < self.shape[1])
        for rows, columns, B in self._tiles(self.tile):
            Y[rows, :] += B @ X[columns, :]
        return self.xp.astype(Y, self.dtype, copy=False)

    def rmatmat(self, Y, out=None):
        Z = self._zeros(self.shape[1], Y.shape[1], summed=self.tile[0] < self.shape[0])
        for rows, columns, B in self._tiles(self.tile):
            Z[columns, :] += adjoint_product(B, Y[rows, :])
        return self.xp.astype(Z, self.dtype, copy=False)

    def gram_matmat(self, X):
        if self.row_tile is None:
            return super().gram_matmat(X)
        Z = self._zeros(self.shape[1], X.shape[1])
        for _, _, B in self._tiles(self.row_tile):
            Z += gram_product(B, X)
        return self.xp.astype(Z, self.dtype, copy=False)

    def adjoint_gram_matmat(self, Y):
        if self.column_tile is None:
            return super().adjoint_gram_matmat(Y)
        W = self._zeros(self.shape[0], Y.shape[1])
        for _, _, B in self._tiles(self.column_tile):
            W += B @ adjoint_product(B, Y)
        return self.xp.astype(W, self.dtype, copy=False)

    def row_blocks(self):
        if self.row_tile is None:
            return None
        return ((rows.start, B) for rows, _, B in self._tiles(self.row_tile))

    def column_blocks(self):
        if self.column_tile is None:
            return None
        return ((columns.start, B) for _, columns, B in self._tiles(self.column_tile))

    def fro_norm_sq(self, scale=1.0):
        return sum(sum_of_squares(B, scale) for _, _, B in self._tiles(self.tile))

    def col_mean(self):
        m, n = self.shape
        sums = self._zeros(n, 1)[:, 0]
        for _, columns, B in self._tiles(self.tile):
            sums[columns] += self.xp.sum(B, axis=0, dtype=sums.dtype)
        return self.xp.astype(sums / m, self.dtype)

    def centered(self, mean):
        mean = mean if self.mean is None else self.mean + mean
        settings = {
            "grain": self.grain, "size": self.size, "prefetch": self.prefetch, "after_block": self.after_block,
            "itemsize": self.itemsize,
        }  # fmt: skip
        return Blocked(self.read, self.shape, self.dtype, self.xp, self.device, mean=mean, **settings)

    def locate_nonfinite(self):
        # Of the entries as they are read: a mean that is not finite has spoiled all centred tiles.
        for rows, columns in self._places(self.tile):
            if not self.xp.all(self.xp.isfinite(self.read(rows, columns))):
                return place_of(rows, columns, self.shape)
        return None

    def _zeros(self, rows, columns, summed=True):
        # A sum over tiles is kept in double precision: it has as many terms as tiles, and costs little beside them.
        dtype = wide_dtype(self.dtype, self.xp) if summed else self.dtype
        return self.xp.zeros((rows, columns), dtype=dtype, device=self.device)

    def _tiles(self, tile):
        """Yield (rows, columns, B); the next tile is read in a thread while the present one is multiplied."""
        places = self._places(tile)
        if not self.prefetch or len(places) == 1:
            for rows, columns in places:
                B = self._tile(rows, columns)
                yield rows, columns, B
                self._used(B)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="rnla-read") as reader:
            coming = reader.submit(self._tile, *places[0])
            for place, following in zip(places, [*places[1:], None], strict=True):
                B = coming.result()
                coming = None if following is None else reader.submit(self._tile, *following)
                yield *place, B
                self._used(B)

    def _places(self, tile):
        m, n = self.shape
        return [(rows, columns) for rows in spans(m, tile[0]) for columns in spans(n, tile[1])]

    def _used(self, B):
        for call in self.after_block:
            call(B.size)

    def _tile(self, rows, columns):
        B = self.read(rows, columns)
        if self.mean is None:
            return B
        with np.errstate(over="ignore", invalid="ignore"):  # a setting of each thread; every product is checked
            return B - self.mean[None, columns]


def file_storage(A, dtype, xp, caller, block_bytes=None):
    """Return the storage of a memory-mapped array, or of an h5py or Zarr dataset, read `block_bytes` at a time."""
    shape = tuple(int(side) for side in A.shape)
    if isinstance(A, np.memmap):
        read = _memmap_reader(A, dtype)
        row_major = abs(A.strides[1]) <= abs(A.strides[0])
    else:
        read = _dataset_reader(A, dtype)
        row_major = True
    run = min(max(RUN_BYTES // A.dtype.itemsize, 1), shape[row_major])
    grain = getattr(A, "chunks", None) or ((1, run) if row_major else (run, 1))
    # Integers grow when they are converted: the limit holds for the larger of what is read and what is computed with.
    size = (block_bytes or BLOCK_BYTES) // max(A.dtype.itemsize, dtype.itemsize)
    settings = {"grain": grain, "size": size, "prefetch": True, "itemsize": A.dtype.itemsize}
    return Blocked(_naming(read, shape, caller), shape, dtype, xp, "cpu", **settings)


def _naming(read, shape, caller):
    """Return `read` with errors that name the block."""

    def named(rows, columns):
        try:
            return read(rows, columns)
        except MemoryError:
            raise
        except Exception as error:  # whatever file systems, decompressors and the user's own readers raise
            where, why = place_of(rows, columns, shape), str(error) or type(error).__name__
            raise OSError(f"{caller}: A cannot be read in {where}: {why}") from error

    return named


def _dataset_reader(A, dtype):
    def read(rows, columns):
        return np.asarray(A[rows, columns], dtype=dtype)

    return read


def _memmap_reader(A, dtype):
    base = np.asarray(A)
    # In mode "c" the pages hold changes that exist nowhere else; dropping them would undo these.
    drop = None if A.mode == "c" else getattr(A._mmap, "madvise", None)

    def read(rows, columns):
        B = np.array(base[rows, columns], dtype=dtype)
        if drop is not None:
            drop(mmap.MADV_DONTNEED)  # the pages stay in the cache of the system, not in this process
        return B

    return read


def _tilings(shape, grain, size):
    """Return the tiles of whole rows and of whole columns (None if over `size` entries), and the one for products."""
    m, n = shape
    rows, columns = min(grain[0], m), min(grain[1], n)
    row_tile = (_multiple(rows, size // n, m), n) if rows * n <= size else None
    column_tile = (m, _multiple(columns, size // m, n)) if columns * m <= size else None
    # Whole rows of a row-major file, whole columns of a column-major one, are one contiguous read; where storage has
    # no preference, cutting the longer side gives the squarer tiles.
    by_rows = rows < columns or (rows == columns and m >= n)
    tile = (row_tile or column_tile) if by_rows else (column_tile or row_tile)
    if tile is None:
        tile = (rows, _multiple(columns, size // rows, n))
    return row_tile, column_tile, tile


def _multiple(grain, wanted, length):
    """Return the largest multiple of `grain` up to `wanted`, at least `grain` and at most `length`."""
    return min(max(wanted // grain, 1) * grain, length)
