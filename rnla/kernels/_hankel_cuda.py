"""Samples of a block Hankel matrix on the GPU: one thread for each sample, or for each entry of the product."""

from numba import cuda  # a module global: the CPU simulator replaces it there

from rnla.kernels._hankel import block_dot

_block_dot = cuda.jit(device=True)(block_dot)


@cuda.jit
def _sampled_product(P, Q, rows, cols, times, out):
    for e in range(cuda.grid(1), out.shape[0], cuda.gridsize(1)):
        out[e] = _block_dot(P, Q, rows[e], cols[e], times[e])


@cuda.jit
def _scatter(values, X, ends, cols, times, out):
    n, d_out, p = out.shape
    d_in = X.shape[1]
    for index in range(cuda.grid(1), n * d_out * p, cuda.gridsize(1)):
        i, a, c = index // (d_out * p), index // p % d_out, index % p
        out[i, a, c] = 0
        for e in range(ends[i], ends[i + 1]):
            b = times[e] - 1 - a
            if 0 <= b < d_in:
                out[i, a, c] += values[e] * X[cols[e], b, c]


def sampled_product(P, Q, rows, cols, times, out, *, threads=128):
    """Write all entries to `out`, and return it."""
    _sampled_product[_blocks(out, threads), threads](P, Q, rows, cols, times, out)
    return out


def scatter(values, X, ends, cols, times, out, *, threads=128):
    """Write the whole product to `out`, and return it."""
    _scatter[_blocks(out, threads), threads](values, X, ends, cols, times, out)
    return out


def _blocks(out, threads):
    return min(4096, max(1, -(-out.size // threads)))
