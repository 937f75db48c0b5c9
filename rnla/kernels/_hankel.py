"""Products with samples of a block Hankel matrix, of which block (a, b) depends on ``a + b`` alone.

A sample at time t stands in all blocks with ``a + b = t + 1``, a from 1 to da, b from 1 to db. Factors hold the blocks
of a node together: shape (n, da, w) and (n, db, w).
"""

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_namespace, is_numpy_namespace

from rnla.kernels._row_sums import row_sums
from rnla.kernels._threads import map_blocks

_ENTRIES = 1 << 12  # at a time, and for each core
_ROWS = 256


def hankel_sampled_product(P, Q, rows, cols, times):
    """Return ``out[e]``, the sum over ``a + b = times[e] + 1`` of ``P[rows[e], a, :] . Q[cols[e], b, :]``.

    Parameters
    ----------
    P, Q : array, shapes (n, da, w) and (n, db, w)
        Factors of one dtype, not conjugated.
    rows, cols, times : array of int, shape (N,)
        Samples, times from 1.

    Returns
    -------
    array, shape (N,)
        Dtype of the factors.
    """
    xp = array_namespace(P, Q)
    if is_cupy_namespace(xp):
        from rnla.kernels import _hankel_cuda

        return _hankel_cuda.sampled_product(P, Q, rows, cols, times, xp.empty(rows.shape, dtype=P.dtype))
    if not is_numpy_namespace(xp):
        return sampled_product_reference(P, Q, rows, cols, times)
    from rnla.kernels import _hankel_cpu

    out = np.empty(rows.size, P.dtype)
    P, Q = np.ascontiguousarray(P), np.ascontiguousarray(Q)

    def run(start, stop):
        _hankel_cpu.sampled_product(P, Q, rows, cols, times, out, start, stop)

    map_blocks(run, rows.size, block=_ENTRIES)
    return out


def hankel_scatter(values, X, ends, cols, times, blocks):
    """Return the product of the block Hankel matrix of some samples with a thin one.

    Parameters
    ----------
    values : array, shape (N,)
        Values of the samples, sorted by row.
    X : array, shape (n, d_in, p)
        What is multiplied.
    ends : array of int, shape (n + 1,)
        Samples ``ends[i]`` to ``ends[i + 1]`` belong to row i.
    cols, times : array of int, shape (N,)
        The column of each, and its time from 1.
    blocks : int
        Blocks of rows, d_out.

    Returns
    -------
    array, shape (n, d_out, p)
        ``out[i, a]``: the sum over the samples of row i of ``values[e] * X[cols[e], times[e] + 1 - a]``.
    """
    xp = array_namespace(X)
    if is_cupy_namespace(xp):
        from rnla.kernels import _hankel_cuda

        shape = (ends.shape[0] - 1, blocks, X.shape[2])
        return _hankel_cuda.scatter(values, X, ends, cols, times, xp.empty(shape, dtype=X.dtype))
    if not is_numpy_namespace(xp):
        return scatter_reference(values, X, ends, cols, times, blocks)
    from rnla.kernels import _hankel_cpu

    X = np.ascontiguousarray(X)
    out = np.zeros((ends.size - 1, blocks, X.shape[2]), X.dtype)

    def run(start, stop):
        _hankel_cpu.scatter(values, X, ends, cols, times, out, start, stop)

    map_blocks(run, ends.size - 1, block=_ROWS)
    return out


def sampled_product_reference(P, Q, rows, cols, times):
    """Return the same as `hankel_sampled_product` with the array-API standard alone."""
    xp, da, db = array_namespace(P, Q), P.shape[1], Q.shape[1]
    out = xp.zeros(rows.shape[0], dtype=P.dtype, device=device(P))
    flat = xp.reshape(Q, (-1, Q.shape[2]))
    for a in range(da):
        b, there = _partner(xp, times, a, db)
        product = xp.sum(xp.take(P[:, a, :], rows, axis=0) * xp.take(flat, cols * db + b, axis=0), axis=1)
        out = out + xp.where(there, product, xp.zeros_like(product))
    return out


def scatter_reference(values, X, ends, cols, times, blocks):
    """Return the same as `hankel_scatter` for any library that `row_sums` knows."""
    xp, (_, d_in, p), n = array_namespace(X), X.shape, ends.shape[0] - 1
    place = xp.arange(values.shape[0], dtype=ends.dtype, device=device(X))
    rows = xp.searchsorted(ends, place, side="right") - 1
    flat, out = xp.reshape(X, (-1, p)), []
    for a in range(blocks):
        b, there = _partner(xp, times, a, d_in)
        weights = xp.where(there, values, xp.zeros_like(values))
        out.append(row_sums(weights[:, None] * xp.take(flat, cols * d_in + b, axis=0), rows, n))
    return xp.stack(out, axis=1)


def _partner(xp, times, a, count):
    """Return the other block of each sample, both from 0, and whether there is one."""
    b = times - 1 - a
    there = (b >= 0) & (b < count)
    return xp.where(there, b, xp.zeros_like(b)), there


def block_dot(P, Q, i, j, t):
    """Return one entry of the product: the one copy of the arithmetic, for CPU and GPU."""
    da, db, w = P.shape[1], Q.shape[1], P.shape[2]
    first = max(0, t - db)
    total = P[i, first, 0] * Q[j, t - 1 - first, 0]
    for c in range(1, w):
        total += P[i, first, c] * Q[j, t - 1 - first, c]
    for a in range(first + 1, min(t, da)):
        for c in range(w):
            total += P[i, a, c] * Q[j, t - 1 - a, c]
    return total
