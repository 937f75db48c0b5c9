"""Product of a sparse-sign operator with a dense matrix: every row of A is added to, or taken from, a few rows."""

import sys

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_namespace, is_numpy_namespace

from rnla.kernels._threads import map_blocks

_COMPILE_FROM = 1 << 22  # additions from which the compiled kernel is worth importing Numba and compiling
_CHUNK, _TILE = 1024, 256  # rows of `A` and columns at a time: they stay in the second-level cache
_PARTS = 4
_TILE_NUMBERS = 1 << 22  # entries of the operator formed at a time by `reference`


def scatter_signs(A, targets, out):
    """Add ``S @ A`` to `out`, where column i of S has entries +1 or -1 in a few rows.

    Parameters
    ----------
    A : array, shape (n, c)
        Any layout; float32, float64, complex64 or complex128.
    targets : numpy.ndarray, shape (n, zeta)
        int32; row r of the entry if it is +1, ``~r`` if it is -1. The rows of one column are distinct.
    out : array, shape (d, c)
        Library, device and dtype of `A`; C-contiguous, zero or an earlier sum.

    Returns
    -------
    array
        The sum: `out` itself for NumPy and CuPy. It does not depend on the number of threads.
    """
    xp = array_namespace(A)
    if is_cupy_namespace(xp):
        from rnla.kernels import _scatter_cuda

        return _scatter_cuda.launch(A, xp.asarray(targets), out)
    if not is_numpy_namespace(xp):
        return reference(A, targets, out)
    if A.size * targets.shape[1] < _COMPILE_FROM and "rnla.kernels._scatter_cpu" not in sys.modules:
        return _on_scipy(A, targets, out)
    real = A.view(A.real.dtype) if A.flags.c_contiguous else A
    if A.dtype.kind == "c":  # the parts of a complex matrix are columns of their own
        real = np.ascontiguousarray(A).view(A.real.dtype)
    _on_cpu(real, targets, out.view(real.dtype))
    return out


def _on_cpu(A, targets, out):
    from rnla.kernels._scatter_cpu import add_sources, sort_targets

    (n, zeta), d, width = targets.shape, out.shape[0], A.shape[1]
    n_chunks = -(-n // _CHUNK)
    ends = np.empty((n_chunks, d), np.int32)
    sources = np.empty(n * zeta, np.int64)
    map_blocks(lambda lo, hi: sort_targets(targets, ends, sources, _CHUNK, lo, hi), n_chunks, block=8)

    # Parts of the rows have sums of their own: on several cores the columns stay whole and the loops over them long.
    # The number of parts depends on the sizes alone, so the sum does not depend on the number of threads.
    parts = 1 if A.size * zeta < _COMPILE_FROM else max(1, min(_PARTS, A.size // (16 * out.size)))
    per_part = -(-n_chunks // parts)
    sums = [out, *(np.zeros_like(out) for _ in range(parts - 1))]
    tiles = [(p, lo, min(lo + _TILE, width)) for p in range(parts) for lo in range(0, width, _TILE)]

    def add(first, last):
        for p, lo, hi in tiles[first:last]:
            chunks = range(p * per_part, min((p + 1) * per_part, n_chunks))
            if A.flags.c_contiguous:
                add_sources(A, 0, 0, ends, sources, _CHUNK * zeta, (chunks.start, chunks.stop), sums[p], (lo, hi))
                continue
            for b in chunks:  # a copy of a chunk at a time: the kernel runs along rows
                copy = np.ascontiguousarray(A[b * _CHUNK : (b + 1) * _CHUNK, lo:hi])
                add_sources(copy, b * _CHUNK, lo, ends, sources, _CHUNK * zeta, (b, b + 1), sums[p], (lo, hi))

    map_blocks(add, len(tiles), block=1)
    for part in sums[1:]:
        out += part


def reference(A, targets, out):
    """Return ``out + S @ A`` with the array-API standard alone, forming tiles of the dense operator."""
    xp = array_namespace(A)
    (n, _), d, place = A.shape, out.shape[0], device(A)
    index = xp.arange(d, dtype=xp.int32, device=place)[:, None]
    step = max(1, _TILE_NUMBERS // d)
    for start in range(0, n, step):
        part = targets[start : start + step]
        rows = xp.asarray(np.where(part < 0, ~part, part), dtype=xp.int32, device=place)
        signs = xp.asarray(np.where(part < 0, -1, 1), dtype=A.dtype, device=place)
        S = xp.zeros((d, part.shape[0]), dtype=A.dtype, device=place)
        for t in range(part.shape[1]):
            S = S + xp.where(index == rows[:, t][None, :], signs[:, t][None, :], xp.zeros_like(S))
        out = out + S @ A[start : start + part.shape[0], :]
    return out


def _on_scipy(A, targets, out):
    from scipy.sparse import csc_array

    (n, zeta), d = targets.shape, out.shape[0]
    rows = np.where(targets < 0, ~targets, targets).ravel()
    signs = np.where(targets < 0, -1, 1).ravel().astype(A.real.dtype)
    out += csc_array((signs, rows, np.arange(0, n * zeta + 1, zeta)), shape=(d, n)) @ A
    return out
