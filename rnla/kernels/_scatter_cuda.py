"""Product of a sparse-sign operator with a dense matrix on the GPU: one thread per entry of `A`, atomic additions."""

from numba import cuda  # a module global: the CPU simulator replaces it there


@cuda.jit
def _add_entries(A, targets, out):
    n, width = A.shape
    for e in range(cuda.grid(1), n * width, cuda.gridsize(1)):
        i, c = e // width, e % width
        for t in range(targets.shape[1]):
            r = targets[i, t]
            if r >= 0:
                cuda.atomic.add(out, (r, c), A[i, c])
            else:
                cuda.atomic.sub(out, (~r, c), A[i, c])


def launch(A, targets, out, *, threads=128):
    """Add to `out` like `rnla.kernels.scatter_signs`; sums of a GPU are not in a fixed order.

    Real and imaginary parts of a complex `A` are columns of their own.
    """
    if A.dtype.kind == "c":
        A, parts = _as_real(A), _as_real(out)
    else:
        parts = out
    blocks = min(4096, max(1, -(-A.shape[0] * A.shape[1] // threads)))
    _add_entries[blocks, threads](A, targets, parts)
    return out


def _as_real(X):
    if not X.flags.c_contiguous:
        X = X.copy(order="C")
    return X.view(X.real.dtype)
