"""The loops of `rnla.kernels.sampled_residuals`, `keep_within` and `trimmed_fit`, compiled for the CPU."""

import numpy as np

from rnla.kernels._compiled import compiled

TILE = 64  # rows gathered together, so that the misses of the cache overlap; their residuals stay in its second level


@compiled(error_model="numpy")
def select(x, n, place):
    """Return number `place` in order of ``x[:n]``, which is reordered (Hoare's selection)."""
    lo, hi = 0, n - 1
    while lo < hi:
        pivot = x[(lo + hi) >> 1]
        i, j = lo, hi
        while i <= j:
            while x[i] < pivot:
                i += 1
            while pivot < x[j]:
                j -= 1
            if i <= j:
                x[i], x[j] = x[j], x[i]
                i += 1
                j -= 1
        if place <= j:
            hi = j
        elif place >= i:
            lo = i
        else:
            break
    return x[place]


@compiled(error_model="numpy")
def gather(X, index, E, start, stop, by_rows):
    """Copy ``X[start:stop, index]`` to the same rows of E, along the memory of X."""
    if by_rows:
        for i in range(start, stop):
            source, target = X[i], E[i]
            for j in range(index.size):
                target[j] = source[np.uint64(index[j])]
    else:
        for j in range(index.size):
            source = X[:, index[j]]
            for i in range(start, stop):
                E[i, j] = source[i]


@compiled(error_model="numpy")
def residuals(X, index, observed, masked, L, Rh, share, E, q, start, stop):
    """Fill the rows ``start:stop`` of E and q."""
    k, count = Rh.shape
    sizes, small = np.empty(count, q.dtype), np.empty(count, q.dtype)
    largest = np.finfo(q.dtype).max
    guess = q.dtype.type(0)  # rows have similar scales: most order statistics are below twice that of the row before
    by_rows = abs(X.strides[1]) <= abs(X.strides[0])
    for top in range(start, stop, TILE):
        end = min(top + TILE, stop)
        gather(X, index, E, top, end, by_rows)
        for i in range(top, end):
            row, there, finite, n = E[i], count, 0, 0
            if masked:
                for j in range(count):
                    if not observed[i, index[j]]:
                        row[j] = 0
            for p in range(k):
                a = L[i, p]
                for j in range(count):
                    row[j] -= a * Rh[p, j]
            for j in range(count):
                sizes[j] = abs(row[j])
            for j in range(count):
                finite += sizes[j] <= largest
            if finite < count:
                q[i] = np.nan
                continue
            if masked:
                for j in range(count):
                    if not observed[i, index[j]]:
                        row[j], sizes[j] = np.nan, np.inf
                        there -= 1
            if there <= k:
                q[i] = -1
                continue
            place = k + int(share * (there - k - 1))
            for j in range(count):  # without a branch: the few that can be the one
                small[n] = sizes[j]
                n += sizes[j] <= guess
            q[i] = select(small, n, place) if n > place else select(sizes, count, place)
            guess = 2 * q[i]


# Sums may be taken in any order, so that loops are vectorised; NaN keeps its meaning.
@compiled(error_model="numpy", fastmath={"reassoc", "contract"})
def keep(E, K, bound, L, Rh, sums, start, stop):
    """Overwrite E by what is kept of the rows ``start:stop``, fill K and the sums of each row."""
    k, count = Rh.shape
    model = np.empty(count, E.dtype)
    one, zero = E.dtype.type(1), E.dtype.type(0)
    for i in range(start, stop):
        row, kept, limit = E[i], K[i], bound[i]
        residual, data, n = 0.0, 0.0, 0.0
        model[:] = 0
        for p in range(k):
            a = L[i, p]
            for j in range(count):
                model[j] += a * Rh[p, j]
        for j in range(count):
            inside = abs(row[j]) <= limit
            row[j] = row[j] if inside else zero
            kept[j] = one if inside else zero
        for j in range(count):
            e = row[j]
            d = e + kept[j] * model[j]
            residual += e.real * e.real + e.imag * e.imag
            data += d.real * d.real + d.imag * d.imag
            n += kept[j].real
        sums[i, 0], sums[i, 1], sums[i, 2] = residual, data, n


@compiled(error_model="numpy")
def solve(G, b, ridge, out, start, stop):
    """Solve ``out[i] G_i = b[i]`` for packed Hermitian matrices (their lower halves by rows), by Cholesky's method."""
    k = b.shape[1]
    T = np.empty((k, k), G.dtype)
    y = np.empty(k, G.dtype)
    for i in range(start, stop):
        place = 0
        for p in range(k):
            for r in range(p + 1):
                T[p, r] = G[i, place]
                place += 1
            T[p, p] += ridge
        for p in range(k):  # T T^H = G_i
            for r in range(p):
                total = T[p, r]
                for t in range(r):
                    total -= T[p, t] * np.conj(T[r, t])
                T[p, r] = total / T[r, r]
            pivot = T[p, p].real
            for t in range(p):
                pivot -= T[p, t].real * T[p, t].real + T[p, t].imag * T[p, t].imag
            T[p, p] = np.sqrt(max(pivot, ridge))
        # The transposed system G_i^T x = b: G_i^T is conj(T) T^T.
        for p in range(k):
            total = b[i, p]
            for t in range(p):
                total -= np.conj(T[p, t]) * y[t]
            y[p] = total / T[p, p]
        for p in range(k - 1, -1, -1):
            total = y[p]
            for t in range(p + 1, k):
                total -= T[t, p] * out[i, t]
            out[i, p] = total / T[p, p]
