"""CSR matrix times dense block, and its adjoint, on all cores BLAS may use.

Both gather: an entry of the result is a sum over the stored entries of one row, kept in vector registers, for up to 256
bytes of columns at a time. SciPy adds each stored entry to memory and spends its time on loads and stores. For the
adjoint A^H is stored once more, cut into panels of rows of A such that the rows of Y that one panel addresses at random
stay in the cache. No thread adds to what another one writes, so their number does not change a bit of the result.
"""

import numpy as np

from rnla.kernels._threads import map_blocks

PANEL_ROWS = 16384  # rows of A in a panel of A^H: 2 MB of Y with 16 columns in double precision
ROW_BLOCKS = 32  # tasks in the product: enough for balance, few enough for Python
ADJOINT_BLOCKS = 8  # tasks in the adjoint: each reads all of Y
SMALL = 2_000_000  # multiply-adds below which SciPy is done before Numba is imported


def csr_matmat(data, indices, indptr, shape, X, out=None):
    """Multiply a CSR matrix by a dense block: ``A @ X``.

    Parameters
    ----------
    data, indices, indptr : ndarray
        The arrays of a ``scipy.sparse.csr_array``, shape (nnz,), (nnz,) and (m + 1,).
    shape : tuple of int
        Shape (m, n) of A.
    X : ndarray, shape (n, l)
        Dense block of the same dtype, in any memory order.
    out : ndarray, shape (m, l), optional
        Memory for the product, in C order.

    Returns
    -------
    ndarray, shape (m, l)
        The product, in C order; not always in `out`.
    """
    if is_small(data, X):
        return reference(data, indices, indptr, shape, X)
    if out is None or not out.flags.c_contiguous:
        out = np.zeros((shape[0], X.shape[1]), X.dtype)
    else:
        out[:] = 0
    _add_products([(0, data, indices, indptr)], np.ascontiguousarray(X), out, _balanced(indptr, ROW_BLOCKS))
    return out


def csr_rmatmat(data, indices, indptr, shape, Y, panels=None):
    """Multiply the adjoint of a CSR matrix by a dense block: ``A^H @ Y``.

    Parameters
    ----------
    data, indices, indptr : ndarray
        The arrays of a ``scipy.sparse.csr_array``, shape (nnz,), (nnz,) and (m + 1,).
    shape : tuple of int
        Shape (m, n) of A.
    Y : ndarray, shape (m, l)
        Dense block of the same dtype, in any memory order.
    panels : callable, optional
        Returns what `adjoint_panels` makes of this matrix: worth keeping where more than one product follows.

    Returns
    -------
    ndarray, shape (n, l)
        The product, in C order.
    """
    if is_small(data, Y):
        return adjoint_reference(data, indices, indptr, shape, Y)
    panels = panels() if panels else adjoint_panels(data, indices, indptr, shape)
    out = np.zeros((shape[1], Y.shape[1]), Y.dtype)
    stored = np.sum([panel_indptr for _, _, _, panel_indptr in panels], axis=0, dtype=np.int64)
    _add_products(panels, np.ascontiguousarray(Y), out, _balanced(stored, ADJOINT_BLOCKS))
    return out


def adjoint_panels(data, indices, indptr, shape):
    """Store ``A^H`` by rows, in panels of `PANEL_ROWS` rows of A.

    Returns
    -------
    list of tuple
        For every panel its first row in A and the three arrays of its adjoint in CSR form. They take as much memory as
        A, and the time of one or two products.
    """
    from scipy.sparse import csr_array

    starts = range(0, shape[0], PANEL_ROWS)
    panels = [None] * len(starts)

    def convert(number, _):
        start = starts[number]
        pointers = indptr[start : start + PANEL_ROWS + 1]
        part = slice(pointers[0], pointers[-1])
        rows = csr_array((data[part], indices[part], pointers - pointers[0]), shape=(len(pointers) - 1, shape[1]))
        panel = rows.T.tocsr()
        values = np.conj(panel.data, out=panel.data) if panel.dtype.kind == "c" else panel.data
        panels[number] = start, values, panel.indices, panel.indptr

    map_blocks(convert, len(starts), block=1)
    return panels


def is_small(data, X):
    """Say whether SciPy's product takes less time than the import of Numba."""
    return data.size * X.shape[1] <= SMALL


def reference(data, indices, indptr, shape, X):
    """Compute ``A @ X`` by SciPy's product."""
    import scipy.sparse

    return scipy.sparse.csr_array((data, indices, indptr), shape=shape) @ X


def adjoint_reference(data, indices, indptr, shape, Y):
    """Compute ``A^H @ Y`` by SciPy's product."""
    import scipy.sparse

    product = scipy.sparse.csr_array((data, indices, indptr), shape=shape).T @ np.conj(Y)
    return np.conj(product, out=product)


def _add_products(panels, X, out, bounds):
    """Add to `out` the products of all panels with their rows of X; `bounds` cuts the rows of `out` into tasks."""
    add_rows = _compiled(out.dtype)
    width, flat, total = X.shape[1], X.reshape(-1), out.reshape(-1)

    def run(task, _):
        for first, data, indices, indptr in panels:
            add_rows(data, indices, indptr, flat[first * width :], width, total, bounds[task], bounds[task + 1])

    map_blocks(run, len(bounds) - 1, block=1)


def _balanced(indptr, parts):
    """Cut the rows into at most `parts` runs of about the same number of stored entries."""
    targets = np.linspace(0, indptr[-1], parts + 1)[1:-1]
    cuts = np.searchsorted(indptr, targets)
    return np.unique(np.concatenate(([0], cuts, [len(indptr) - 1])))


def _compiled(dtype):  # Numba takes half a second to import: only when a product is worth it
    from rnla.kernels import _csr_cpu

    return _csr_cpu.add_rows_complex if dtype.kind == "c" else _csr_cpu.add_rows
