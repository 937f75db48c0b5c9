"""CSR matrix times dense block, and its adjoint, on all cores BLAS may use.

The dense block is cut into tiles of 256 bytes a row. One tile of the side that is addressed at random (the rows of X in
the product, the rows of the result in the adjoint) stays in the cache while the matrix streams past; SciPy, which takes
all columns at once, waits for memory instead. The adjoint scatters from the same CSR arrays, so no copy of A^H is made.
"""

import numpy as np

from rnla.kernels._threads import map_blocks

# Bytes a row of a tile, measured: narrower pays the loop overhead more often, wider drops out of the cache. The adjoint
# reads and writes its tile, the product only reads it.
PRODUCT_TILE = 256
ADJOINT_TILE = 128
ROW_BLOCKS = 64  # tasks per tile in the product: enough for balance, few enough for Python
PARTS = 2  # private copies of the result in the adjoint; fixed, so that sums do not depend on the number of threads
SMALL = 2_000_000  # multiply-adds below which SciPy is done before Numba is imported


def csr_matmat(data, indices, indptr, shape, X):
    """Multiply a CSR matrix by a dense block: ``A @ X``.

    Parameters
    ----------
    data, indices, indptr : ndarray
        The arrays of a ``scipy.sparse.csr_array``, shape (nnz,), (nnz,) and (m + 1,).
    shape : tuple of int
        Shape (m, n) of A.
    X : ndarray, shape (n, l)
        Dense block of the same dtype, in any memory order.

    Returns
    -------
    ndarray, shape (m, l)
        The product, in C order.
    """
    if data.size * X.shape[1] <= SMALL:
        return reference(data, indices, indptr, shape, X)
    product = _compiled()[0]
    out = np.empty((shape[0], X.shape[1]), X.dtype)
    bounds = _balanced(indptr, ROW_BLOCKS)
    for first, last in _tiles(X, PRODUCT_TILE):
        tile = np.ascontiguousarray(X[:, first:last]).reshape(-1)

        def run(part, _, tile=tile, first=first, last=last):
            rows = bounds[part], bounds[part + 1]
            product(data, indices, indptr, tile, last - first, out.reshape(-1), first, out.shape[1], *rows)

        map_blocks(run, len(bounds) - 1, block=1)
    return out


def csr_rmatmat(data, indices, indptr, shape, Y):
    """Multiply the adjoint of a CSR matrix by a dense block: ``A^H @ Y``.

    Parameters
    ----------
    data, indices, indptr : ndarray
        The arrays of a ``scipy.sparse.csr_array``, shape (nnz,), (nnz,) and (m + 1,).
    shape : tuple of int
        Shape (m, n) of A.
    Y : ndarray, shape (m, l)
        Dense block of the same dtype, in any memory order.

    Returns
    -------
    ndarray, shape (n, l)
        The product, in C order.
    """
    if data.size * Y.shape[1] <= SMALL:
        return adjoint_reference(data, indices, indptr, shape, Y)
    scatter = _compiled()[1]
    weights = np.conj(data) if np.iscomplexobj(data) else data
    Y = np.ascontiguousarray(Y)
    out = np.empty((shape[1], Y.shape[1]), Y.dtype)
    tiles = _tiles(Y, ADJOINT_TILE)
    # Each part costs one more sum over the (n, l) result: not worth it when there are tiles enough to share the work,
    # or when A has few entries a column.
    bounds = _balanced(indptr, PARTS if len(tiles) == 1 and data.size >= 8 * PARTS * shape[1] else 1)
    parts = len(bounds) - 1

    def run(task, _):
        first, last = tiles[task // parts]
        part = task % parts
        rows = bounds[part], bounds[part + 1]
        total = sums[task] = np.zeros(shape[1] * (last - first), Y.dtype)
        scatter(weights, indices, indptr, Y.reshape(-1), first, Y.shape[1], last - first, total, *rows)

    sums = [None] * (len(tiles) * parts)
    map_blocks(run, len(sums), block=1)
    for number, (first, last) in enumerate(tiles):
        total = sums[number * parts]
        for term in sums[number * parts + 1 : (number + 1) * parts]:
            total += term
        out[:, first:last] = total.reshape(shape[1], last - first)
    return out


def reference(data, indices, indptr, shape, X):
    """Compute ``A @ X`` by SciPy's product."""
    import scipy.sparse

    return scipy.sparse.csr_array((data, indices, indptr), shape=shape) @ X


def adjoint_reference(data, indices, indptr, shape, Y):
    """Compute ``A^H @ Y`` by SciPy's product."""
    import scipy.sparse

    product = scipy.sparse.csr_array((data, indices, indptr), shape=shape).T @ np.conj(Y)
    return np.conj(product, out=product)


def _tiles(X, row_bytes):
    width = max(1, row_bytes // X.dtype.itemsize)
    return [(first, min(first + width, X.shape[1])) for first in range(0, X.shape[1], width)]


def _balanced(indptr, parts):
    """Cut the rows into at most `parts` runs of about the same number of stored entries."""
    targets = np.linspace(0, indptr[-1], parts + 1)[1:-1]
    cuts = np.searchsorted(indptr, targets)
    return np.unique(np.concatenate(([0], cuts, [len(indptr) - 1])))


def product_rows(data, indices, indptr, X, width, out, first, stride, start, stop):
    """Fill rows ``start`` to ``stop`` of a tile of ``A @ X``; X and out are flat: LLVM vectorises these best."""
    width = np.uint64(width)  # unsigned: no test for negative indices in the innermost loop
    for i in range(start, stop):
        o = np.uint64(i) * np.uint64(stride) + np.uint64(first)
        for c in range(width):
            out[o + c] = 0
        p = indptr[i]
        end = indptr[i + 1]
        while p + 3 < end:  # four entries at a time: a quarter of the loads and stores of the sum
            v0, v1, v2, v3 = data[p], data[p + 1], data[p + 2], data[p + 3]
            x0, x1 = np.uint64(indices[p]) * width, np.uint64(indices[p + 1]) * width
            x2, x3 = np.uint64(indices[p + 2]) * width, np.uint64(indices[p + 3]) * width
            for c in range(width):
                out[o + c] += (v0 * X[x0 + c] + v1 * X[x1 + c]) + (v2 * X[x2 + c] + v3 * X[x3 + c])
            p += 4
        while p < end:
            v0 = data[p]
            x0 = np.uint64(indices[p]) * width
            for c in range(width):
                out[o + c] += v0 * X[x0 + c]
            p += 1


def scatter_rows(weights, indices, indptr, Y, first, stride, width, total, start, stop):
    """Add the contribution of rows ``start`` to ``stop`` of A to a tile of ``A^T @ Y``; Y and total are flat."""
    width = np.uint64(width)
    for i in range(start, stop):
        y = np.uint64(i) * np.uint64(stride) + np.uint64(first)
        for p in range(indptr[i], indptr[i + 1]):
            v = weights[p]
            t = np.uint64(indices[p]) * width
            for c in range(width):
                total[t + c] += v * Y[y + c]


_kernels = []


def _compiled():
    if not _kernels:  # Numba takes half a second to import: only when a product is worth it
        import numba

        jit = numba.njit(nogil=True, cache=True, fastmath={"contract"})  # contract: one rounding for v * x + sum
        _kernels.extend((jit(product_rows), jit(scatter_rows)))
    return _kernels
