"""The normals of `rnla.kernels._philox`, compiled for the GPU from the same source."""

import math

import numpy as np
from numba import cuda  # a module global: the CPU simulator replaces it there

from rnla.kernels import _philox
from rnla.kernels._philox import HALF_WORD, LOW, NORMAL_DOUBLE, NORMAL_SINGLE, split_key

_philox4x32 = cuda.jit(device=True)(_philox.philox4x32)
_polar_double = cuda.jit(device=True)(_philox.polar_double)
_polar_single = cuda.jit(device=True)(_philox.polar_single)


@cuda.jit
def _fill_double(out, k0, k1, c3, row, col):
    n, width = out.shape
    first = col // 2
    counters = (col + width + 1) // 2 - first
    for e in range(cuda.grid(1), n * counters, cuda.gridsize(1)):
        t, counter = e // counters, first + e % counters
        i = row + np.uint64(t)
        w0, w1, w2, w3 = _philox4x32(i & LOW, i >> HALF_WORD, np.uint64(counter), c3, k0, k1)
        square, cosine, sine = _polar_double(w0, w1, w2, w3)
        radius = math.sqrt(square)
        j = 2 * counter - col
        if j >= 0:
            out[t, j] = radius * cosine
        if j + 1 < width:
            out[t, j + 1] = radius * sine


@cuda.jit
def _fill_single(out, k0, k1, c3, row, col):
    n, width = out.shape
    first = col // 4
    counters = (col + width + 3) // 4 - first
    for e in range(cuda.grid(1), n * counters, cuda.gridsize(1)):
        t, counter = e // counters, first + e % counters
        i = row + np.uint64(t)
        w0, w1, w2, w3 = _philox4x32(i & LOW, i >> HALF_WORD, np.uint64(counter), c3, k0, k1)
        for half in range(2):
            square, cosine, sine = _polar_single(w0, w1) if half == 0 else _polar_single(w2, w3)
            radius = math.sqrt(square)
            j = 4 * counter + 2 * half - col
            if 0 <= j < width:
                out[t, j] = radius * cosine
            if 0 <= j + 1 < width:
                out[t, j + 1] = radius * sine


def launch(out, key, stream, row, col, *, threads=128):
    """Fill an array on the GPU like `rnla.kernels.fill_normal`."""
    fill, kind, size = (_fill_double, NORMAL_DOUBLE, 2) if out.dtype == np.float64 else (_fill_single, NORMAL_SINGLE, 4)
    k0, k1 = split_key(key)
    blocks = min(4096, max(1, -(-out.shape[0] * (out.shape[1] // size + 1) // threads)))
    fill[blocks, threads](out, k0, k1, np.uint64(stream * 8 + kind), np.uint64(row), col)
    return out
