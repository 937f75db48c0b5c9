"""The butterflies of `rnla.kernels.fwht`, compiled for the CPU."""

import numba
import numpy as np

from rnla.kernels._compiled import compiled

_CHUNK = 256  # rows of a tile that stay in the first-level cache through log2(256) stages


@compiled(error_model="numpy")
def transform(X, first, last):
    """Transform the columns ``first:last`` of the C-contiguous real array `X` in place.

    The stages are done in groups. A group with half-lengths from h to ``h * _CHUNK / 2`` mixes only rows that are a
    multiple of h apart: such a set of rows is copied to a buffer, transformed there, and copied back, so the matrix
    is read and written once per group instead of once per stage. The order of the additions is that of the stages.
    """
    n, width, left = X.shape[0], last - first, np.uint64(first)
    buffer = np.empty(min(_CHUNK, n) * width, X.dtype)
    stride = 1
    while stride < n:
        size = min(_CHUNK, n // stride)
        for top in range(0, n, stride * size):
            for offset in range(top, top + stride):
                for q in range(size):
                    row, place = np.uint64(offset + q * stride), np.uint64(q * width)
                    for c in range(np.uint64(width)):  # unsigned: a possibly negative index would not be vectorised
                        buffer[place + c] = X[row, left + c]
                _butterflies(buffer, size, width)
                for q in range(size):
                    row, place = np.uint64(offset + q * stride), np.uint64(q * width)
                    for c in range(np.uint64(width)):
                        X[row, left + c] = buffer[place + c]
        stride *= size


@numba.njit(nogil=True, error_model="numpy", forceinline=True)
def _butterflies(buffer, size, width):
    half = 1
    while half < size:
        length = np.uint64(half * width)  # the rows of one half are contiguous: one long loop
        for top in range(0, size, 2 * half):
            place = np.uint64(top * width)
            for c in range(place, place + length):
                upper, lower = buffer[c], buffer[c + length]
                buffer[c] = upper + lower
                buffer[c + length] = upper - lower
        half *= 2
