"""The sweeps of `rnla.kernels.sqrt_sweep_gram` and `sqrt_sweep_product` for few columns, compiled for the CPU."""

import numpy as np

from rnla.kernels._compiled import compiled

TILE = 256  # rows at a time, innermost: they vectorise, and a tile of Y stays in the first-level cache


@compiled(error_model="numpy", fastmath={"contract", "nsz"})
def fill(d, Z, tau, start, rows, Y):
    """Write a tile of the transposed Y, and Z below it."""
    k, N = Z.shape[1], tau.size
    for c in range(k):
        z = Y[N * k + c]
        for i in range(rows):
            z[i] = Z[start + i, c]
    for j in range(N):
        t = tau[j]
        for c in range(k):
            y, z = Y[j * k + c], Y[N * k + c]
            for i in range(rows):
                y[i] = z[i] / (d[start + i] + t)


@compiled(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def gram(d, Z, tau, start, stop, total):
    """Add the products of all columns of Y and Z, of some rows, to `total`."""
    width = total.shape[0]
    Y = np.empty((width, TILE), Z.dtype)
    for first in range(start, stop, TILE):
        rows = min(TILE, stop - first)
        fill(d, Z, tau, first, rows, Y)
        for a in range(0, width, 2):
            u, v = Y[a], Y[min(a + 1, width - 1)]
            for b in range(0, a + 1, 2):
                x, y = Y[b], Y[min(b + 1, width - 1)]
                ux = uy = vx = vy = Y[0, 0] * 0
                for i in range(rows):
                    ux += u[i] * x[i]
                    uy += u[i] * y[i]
                    vx += v[i] * x[i]
                    vy += v[i] * y[i]
                total[a, b] += ux
                if b + 1 < width:
                    total[a, b + 1] += uy
                if a + 1 < width:
                    total[a + 1, b] += vx
                    if b + 1 < width:
                        total[a + 1, b + 1] += vy
    for a in range(width):
        for b in range(a):
            total[b, a] = total[a, b]


@compiled(error_model="numpy", fastmath={"contract", "nsz"})
def product(d, Z, tau, Bt, Pt, start, stop):
    """Write some columns of ``Pt = Bt Y^T``."""
    columns = Bt.shape[1]
    Y = np.empty((columns + Z.shape[1], TILE), Z.dtype)
    for first in range(start, stop, TILE):
        rows = min(TILE, stop - first)
        fill(d, Z, tau, first, rows, Y)
        for r in range(Bt.shape[0]):
            p = Pt[r, first : first + rows]
            w, y = Bt[r, 0], Y[0]
            for i in range(rows):
                p[i] = w * y[i]
            j = 1
            while j + 3 < columns:
                w, x, y, z = Bt[r, j], Bt[r, j + 1], Bt[r, j + 2], Bt[r, j + 3]
                e, f, g, h = Y[j], Y[j + 1], Y[j + 2], Y[j + 3]
                for i in range(rows):
                    p[i] += w * e[i] + x * f[i] + y * g[i] + z * h[i]
                j += 4
            while j < columns:
                w, e = Bt[r, j], Y[j]
                for i in range(rows):
                    p[i] += w * e[i]
                j += 1
