"""The normals of `rnla.kernels._philox`, compiled for the CPU: about ten times the speed of the NumPy path."""

import numba
import numpy as np

from rnla.kernels import _philox
from rnla.kernels._compiled import compiled
from rnla.kernels._philox import HALF_WORD, LOW, NORMAL_DOUBLE, NORMAL_SINGLE, split_key

# Inlined without exceptions (error_model "numpy"), the loops over rows below become vector instructions.
_philox4x32 = numba.njit(_philox.philox4x32, forceinline=True, error_model="numpy")
_polar_double = numba.njit(_philox.polar_double, forceinline=True, error_model="numpy")
_polar_single = numba.njit(_philox.polar_single, forceinline=True, error_model="numpy")
_STRIP = 256  # rows per strip: its normals and the part of `out` that they go to stay in the cache


def on_cpu(out, key, stream, row, col):
    """Fill a C-contiguous NumPy array like `rnla.kernels.fill_normal`, on one core."""
    fill, kind = (_fill_double, NORMAL_DOUBLE) if out.dtype == np.float64 else (_fill_single, NORMAL_SINGLE)
    k0, k1 = split_key(key)
    fill(out, k0, k1, np.uint64(stream * 8 + kind), np.uint64(row), np.int64(col))


def words_on_cpu(out, key, stream, kind, row, col):
    """Fill a uint32 array of shape (rows, counters, 4) like `rnla.kernels.random_words`, on one core."""
    k0, k1 = split_key(key)
    _fill_words(out, k0, k1, np.uint64(stream * 8 + kind), np.uint64(row), np.uint64(col))


@compiled(error_model="numpy")
def _fill_words(out, k0, k1, c3, row, col):
    for start in range(0, out.shape[0], _STRIP):
        for counter in range(out.shape[1]):
            for t in range(start, min(start + _STRIP, out.shape[0])):
                i = row + np.uint64(t)
                out[t, counter, 0], out[t, counter, 1], out[t, counter, 2], out[t, counter, 3] = _philox4x32(
                    i & LOW, i >> HALF_WORD, col + np.uint64(counter), c3, k0, k1
                )


@compiled(error_model="numpy")
def _fill_double(out, k0, k1, c3, row, col):
    n, width = out.shape
    strip = np.empty((2, _STRIP), np.float64)
    for start in range(0, n, _STRIP):
        size = min(_STRIP, n - start)
        for counter in range(col // 2, (col + width + 1) // 2):
            for t in range(size):
                i = row + np.uint64(start + t)
                w0, w1, w2, w3 = _philox4x32(i & LOW, i >> HALF_WORD, np.uint64(counter), c3, k0, k1)
                square, cosine, sine = _polar_double(w0, w1, w2, w3)
                radius = np.sqrt(square)
                strip[0, t] = radius * cosine
                strip[1, t] = radius * sine
            _copy_columns(strip, size, out, start, 2 * counter - col)


@compiled(error_model="numpy")
def _fill_single(out, k0, k1, c3, row, col):
    n, width = out.shape
    strip = np.empty((4, _STRIP), np.float32)
    words = np.empty((4, _STRIP), np.uint32)  # 32 bits wide: the second loop fills whole vector registers
    for start in range(0, n, _STRIP):
        size = min(_STRIP, n - start)
        for counter in range(col // 4, (col + width + 3) // 4):
            for t in range(size):
                i = row + np.uint64(start + t)
                words[0, t], words[1, t], words[2, t], words[3, t] = _philox4x32(
                    i & LOW, i >> HALF_WORD, np.uint64(counter), c3, k0, k1
                )
            for q in range(0, 4, 2):
                for t in range(size):
                    square, cosine, sine = _polar_single(words[q, t], words[q + 1, t])
                    radius = np.sqrt(square)
                    strip[q, t] = radius * cosine
                    strip[q + 1, t] = radius * sine
            _copy_columns(strip, size, out, start, 4 * counter - col)


@numba.njit(nogil=True, error_model="numpy", forceinline=True)
def _copy_columns(strip, size, out, start, col):
    """Copy the rows of `strip` to the columns ``col, col + 1, ...`` of `out`, except those outside `out`."""
    for q in range(max(0, -col), min(strip.shape[0], out.shape[1] - col)):
        for t in range(size):
            out[start + t, col + q] = strip[q, t]
