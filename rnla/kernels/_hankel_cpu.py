"""Compiled loops over samples of a block Hankel matrix."""

import numba

from rnla.kernels._compiled import compiled
from rnla.kernels._hankel import block_dot
from rnla.kernels._sampled_product_cpu import FAST

_block_dot = numba.njit(fastmath=FAST)(block_dot)


@compiled(fastmath=FAST)
def sampled_product(P, Q, rows, cols, times, out, start, stop):
    """Write entries `start` to `stop`."""
    for e in range(start, stop):
        out[e] = _block_dot(P, Q, rows[e], cols[e], times[e])


@compiled(fastmath=FAST)
def scatter(values, X, ends, cols, times, out, start, stop):
    """Add to the blocks of the rows `start` to `stop`."""
    d_in, p, d_out = X.shape[1], X.shape[2], out.shape[1]
    for i in range(start, stop):
        for e in range(ends[i], ends[i + 1]):
            t, j, value = times[e], cols[e], values[e]
            for a in range(max(0, t - d_in), min(t, d_out)):
                for c in range(p):
                    out[i, a, c] += value * X[j, t - 1 - a, c]
