"""Entries of a product of two thin factors, at given positions only."""

import numpy as np
from array_api_compat import array_namespace, is_cupy_namespace, is_numpy_namespace

from rnla.kernels._threads import map_blocks

_ENTRIES = 1 << 14  # at a time, and for each core
_COLUMNS = 4096  # at a time, and for each core, in panels
_COMPILE_FROM = 1 << 16  # multiplications from which the compiled loop is worth importing Numba
_GATHERED = 8192  # entries at a time of the reference: its gathered rows stay in the cache


def sampled_product(L, R, rows, cols):
    """Return ``out[e] = sum(L[rows[e], :] * R[cols[e], :])``, without conjugation.

    Parameters
    ----------
    L, R : array, shapes (m, w) and (n, w)
        Factors of one dtype, float32, float64, complex64 or complex128; fastest where rows are contiguous.
    rows, cols : array of int, shape (N,)
        Positions; fastest sorted by row.

    Returns
    -------
    array, shape (N,)
        Dtype of the factors. ``2 N w`` flops.
    """
    xp = array_namespace(L, R)
    if is_cupy_namespace(xp):
        from rnla.kernels import _sampled_product_cuda

        return _sampled_product_cuda.launch(L, R, rows, cols, xp.empty(rows.shape, dtype=L.dtype))
    if not is_numpy_namespace(xp):
        return reference(L, R, rows, cols)
    if rows.size * L.shape[1] < _COMPILE_FROM:
        return np.einsum("ij,ij->i", L[rows], R[cols])
    from rnla.kernels import _sampled_product_cpu

    out = np.empty(rows.size, L.dtype)
    L, R = np.ascontiguousarray(L), np.ascontiguousarray(R)

    def run(start, stop):
        _sampled_product_cpu.sampled_product(L, R, rows, cols, out, start, stop)

    map_blocks(run, rows.size, block=_ENTRIES)
    return out


def sampled_product_panels(L, R, panels, count):
    """Return the same for positions in the form of `adjoint_panels`, where L and R are too large for the cache.

    Parameters
    ----------
    L, R : ndarray, shapes (m, w) and (n, w)
        Factors of one dtype.
    panels : list of tuple
        First row, place in the result, row within the panel and end of each column, as `adjoint_panels` makes them of
        a CSR matrix of the numbers ``0..N-1``. The rows of L that one panel addresses stay in the cache.
    count : int
        Number of positions N.

    Returns
    -------
    ndarray, shape (N,)
        Dtype of the factors. ``2 N w`` flops.
    """
    from rnla.kernels import _sampled_product_cpu

    out = np.empty(count, L.dtype)
    L, R = np.ascontiguousarray(L), np.ascontiguousarray(R)
    for first, places, rows, ends in panels:

        def run(start, stop, L=L[first:], places=places, rows=rows, ends=ends):
            _sampled_product_cpu.sampled_product_panel(L, R, places, rows, ends, out, start, stop)

        map_blocks(run, len(ends) - 1, block=_COLUMNS)
    return out


def reference(L, R, rows, cols):
    """Return the same with the array-API standard alone, a block of gathered rows at a time."""
    xp = array_namespace(L, R)
    spans = range(0, max(rows.shape[0], 1), _GATHERED)
    parts = [
        xp.sum(xp.take(L, rows[i : i + _GATHERED], axis=0) * xp.take(R, cols[i : i + _GATHERED], axis=0), axis=1)
        for i in spans
    ]
    return parts[0] if len(parts) == 1 else xp.concat(parts)


def row_dot(L, R, i, j):
    """Return the product of two rows: the one copy of the arithmetic, for CPU and GPU."""
    total = L[i, 0] * R[j, 0]
    for c in range(1, L.shape[1]):
        total += L[i, c] * R[j, c]
    return total
