"""The loop of `rnla.kernels.threshold_pass`, compiled for the CPU and real numbers."""

import numpy as np

from rnla.kernels._compiled import compiled

TILE = 16  # rows gathered together: of a column-major matrix they are neighbours


@compiled(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def run(X, observed, masked, L, Rt, W, bound, P, Q, sums, start, stop):
    """Fill the rows ``start:stop`` of P; add to Q, ``W^T E``; fill the sums."""
    k, n = Rt.shape
    tile = np.empty((TILE, n), X.dtype)
    e = np.empty(n, X.dtype)
    zero = X.dtype.type(0)
    largest = np.finfo(sums.dtype).max
    left, there, kept, finite = 0.0, 0.0, 0, 0
    for top in range(start, stop, TILE):
        end = min(top + TILE, stop)
        for i in range(top, end):
            for j in range(n):
                tile[i - top, j] = X[i, j]
        for i in range(top, end):
            row = tile[i - top]
            for j in range(n):
                e[j] = row[j]
            for p in range(k):
                a = L[i, p]
                for j in range(n):
                    e[j] -= a * Rt[p, j]
            if masked:
                for j in range(n):
                    if not observed[i, j]:
                        e[j], row[j] = zero, zero
                        kept -= 1
            row_left, row_there = 0.0, 0.0
            for j in range(n):
                size = abs(e[j])
                inside = size <= bound
                finite += size <= largest
                kept += inside
                v = e[j] if inside else zero
                x = row[j] if inside else zero
                e[j] = v
                row_left += v * v
                row_there += x * x
            left += row_left
            there += row_there
            for p in range(k):
                total, w = zero, W[i, p]
                for j in range(n):
                    total += e[j] * Rt[p, j]
                    Q[p, j] += e[j] * w
                P[i, p] = total
    if finite < (stop - start) * n:
        left = np.nan
    sums[0], sums[1], sums[2] = left, there, kept
