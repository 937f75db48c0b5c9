"""Products with a dask array: one task per block, sums in a tree, results in memory."""

from functools import cached_property
from itertools import pairwise

from array_api_compat import array_namespace

from rnla._matrix_views import Storage, adjoint_product, spans, wide_dtype

STRIP_BYTES = 256 * 2**20  # largest row (or column) of chunks that one task may hold to read it once instead of twice
FAN_IN = 8  # partial sums added by one task


class Dask(Storage):
    """A dask array with known chunks; A itself is never computed as a whole."""

    def __init__(self, A, xp, device):
        super().__init__(tuple(int(side) for side in A.shape), A.dtype, xp, device)
        self.dask_array = A
        self.rows, self.columns = (_slices(chunks) for chunks in A.chunks)
        row_strip = max(A.chunks[0]) * self.shape[1] * A.dtype.itemsize
        column_strip = max(A.chunks[1]) * self.shape[0] * A.dtype.itemsize
        self.one_pass_gram = len(self.columns) == 1 or row_strip <= STRIP_BYTES
        self.one_pass_adjoint_gram = len(self.rows) == 1 or column_strip <= STRIP_BYTES

    @cached_property
    def blocks(self):
        return self.dask_array.to_delayed()

    def matmat(self, X, out=None):
        return self._products(self.blocks, _forward, X, self.columns)

    def rmatmat(self, Y, out=None):
        return self._products(self.blocks.T, adjoint_product, Y, self.rows)

    def gram_matmat(self, X):
        if not self.one_pass_gram:
            return super().gram_matmat(X)
        return self._grams(self.blocks, _row_gram, X, self.columns)

    def adjoint_gram_matmat(self, Y):
        if not self.one_pass_adjoint_gram:
            return super().adjoint_gram_matmat(Y)
        return self._grams(self.blocks.T, _column_gram, Y, self.rows)

    def row_blocks(self):
        if not self.one_pass_gram:
            return None
        return ((rows.start, self.dask_array[rows, :].compute()) for rows in self.rows)

    def column_blocks(self):
        if not self.one_pass_adjoint_gram:
            return None
        return ((columns.start, self.dask_array[:, columns].compute()) for columns in self.columns)

    def fro_norm_sq(self, scale=1.0):
        wide = self.dask_array.astype(wide_dtype(self.dtype, self.xp)) * scale
        return float((wide.real**2 + wide.imag**2).sum().compute())

    def col_mean(self):
        sums = self.dask_array.sum(axis=0, dtype=wide_dtype(self.dtype, self.xp)).compute()
        return self.xp.astype(sums / self.shape[0], self.dtype)

    def centered(self, mean):
        return Dask(self.dask_array - mean, self.xp, self.device)

    def _products(self, blocks, product, X, parts):
        import dask

        X_parts = [_literal(X[part, :]) for part in parts]
        product = dask.delayed(product, pure=False)
        sums = [_tree_sum([product(B, X_part) for B, X_part in zip(strip, X_parts, strict=True)]) for strip in blocks]
        return self.xp.astype(self.xp.concat(dask.compute(*sums), axis=0), self.dtype, copy=False)

    def _grams(self, blocks, gram, X, parts):
        import dask

        X = _literal(X)
        gram = dask.delayed(gram, pure=False)
        total = _tree_sum([gram(list(strip), X, parts) for strip in blocks])
        return self.xp.astype(total.compute(), self.dtype, copy=False)


def _slices(chunks):
    edges = [0]
    for length in chunks:
        edges.append(edges[-1] + int(length))
    return [slice(*edge) for edge in pairwise(edges)]


def _literal(X):
    import dask

    return dask.delayed(X, pure=False, traverse=False)  # one copy in the graph, whose content is not hashed


def _tree_sum(parts):
    import dask

    add = dask.delayed(_sum, pure=False)
    while len(parts) > 1:
        parts = [add(parts[group]) for group in spans(len(parts), FAN_IN)]
    return parts[0]


def _sum(parts):
    xp = array_namespace(*parts)
    # In double precision, whatever the number of chunks.
    total = xp.astype(parts[0], wide_dtype(parts[0].dtype, xp))
    for part in parts[1:]:
        total += part
    return total


def _forward(B, X):
    return B @ X


def _row_gram(strip, X, parts):
    """Return ``B^H (B X)`` for a row of chunks."""
    Y = _sum([B @ X[part, :] for B, part in zip(strip, parts, strict=True)])
    xp = array_namespace(X)
    Y = xp.astype(Y, X.dtype, copy=False)
    return xp.concat([adjoint_product(B, Y) for B in strip], axis=0)


def _column_gram(strip, Y, parts):
    """Return ``B (B^H Y)`` for a column of chunks."""
    Z = _sum([adjoint_product(B, Y[part, :]) for B, part in zip(strip, parts, strict=True)])
    xp = array_namespace(Y)
    Z = xp.astype(Z, Y.dtype, copy=False)
    return xp.concat([B @ Z for B in strip], axis=0)
