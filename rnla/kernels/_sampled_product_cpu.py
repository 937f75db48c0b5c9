"""Compiled loop over sampled entries."""

import numba

from rnla.kernels._sampled_product import row_dot

# Sums in any order and fused products, which are several times as fast; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract"}
_row_dot = numba.njit(fastmath=FAST)(row_dot)


@numba.njit(nogil=True, cache=True, fastmath=FAST)
def sampled_product(L, R, rows, cols, out, start, stop):
    """Write entries `start` to `stop`."""
    for e in range(start, stop):
        out[e] = _row_dot(L, R, rows[e], cols[e])
