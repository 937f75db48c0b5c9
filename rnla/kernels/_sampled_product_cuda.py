"""Sampled entries on the GPU: one thread for each."""

from numba import cuda  # a module global: the CPU simulator replaces it there

from rnla.kernels._sampled_product import row_dot

_row_dot = cuda.jit(device=True)(row_dot)


@cuda.jit
def _kernel(L, R, rows, cols, out):
    for e in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
        out[e] = _row_dot(L, R, rows[e], cols[e])


def launch(L, R, rows, cols, out, *, threads=128):
    """Write all entries to `out`, and return it."""
    blocks = min(4096, max(1, -(-out.shape[0] // threads)))
    _kernel[blocks, threads](L, R, rows, cols, out)
    return out
