"""The loops of `rnla.kernels.scatter_signs`, compiled for the CPU.

Adding each row of A to ``zeta`` rows of the output reads and writes the output once per addition. Instead the rows of a
chunk that fits in the cache are listed by the output row they go to (a counting sort keeps them in order), so that an
output row is read and written once per four of them. Indices are unsigned: a loop over a possibly negative index
would not be vectorised.
"""

import numpy as np

from rnla.kernels._compiled import compiled


@compiled(error_model="numpy")
def sort_targets(targets, ends, sources, chunk, first, last):
    """List the rows of the chunks ``first:last`` by target.

    ``sources[b * chunk * zeta + ends[b, r - 1] :][: ends[b, r] - ends[b, r - 1]]`` are the rows of chunk b that are
    added to row r, in order; ``~i`` instead of ``i`` says that row i is subtracted.
    """
    n, zeta = targets.shape
    for b in range(first, last):
        lo, hi, end = b * chunk, min((b + 1) * chunk, n), ends[b]
        end[:] = 0
        for i in range(lo, hi):
            for t in range(zeta):
                r = targets[i, t]
                r = max(r, ~r)
                if r + 1 < end.size:
                    end[r + 1] += 1
        for r in range(1, end.size):
            end[r] += end[r - 1]
        for i in range(lo, hi):
            for t in range(zeta):
                r = targets[i, t]
                source = i if r >= 0 else ~i
                r = max(r, ~r)
                sources[lo * zeta + end[r]] = source
                end[r] += 1


@compiled(error_model="numpy")
def add_sources(A, top, left, ends, sources, stride, chunks, out, columns):
    """Add the listed rows of `chunks` to the `columns` of `out`; ``A[0, 0]`` is the entry (top, left) of the matrix.

    `A` and `out` are C-contiguous, `stride` entries of `sources` belong to a chunk.
    """
    one = out.dtype.type(1)
    start, stop, shift = np.uint64(columns[0]), np.uint64(columns[1]), np.uint64(left)
    for b in range(chunks[0], chunks[1]):
        k = b * stride
        for r in range(out.shape[0]):
            row, end = np.uint64(r), b * stride + ends[b, r]
            while k + 4 <= end:
                i0, i1, i2, i3 = sources[k], sources[k + 1], sources[k + 2], sources[k + 3]
                s0, s1 = one if i0 >= 0 else -one, one if i1 >= 0 else -one
                s2, s3 = one if i2 >= 0 else -one, one if i3 >= 0 else -one
                r0, r1 = np.uint64(max(i0, ~i0) - top), np.uint64(max(i1, ~i1) - top)
                r2, r3 = np.uint64(max(i2, ~i2) - top), np.uint64(max(i3, ~i3) - top)
                for c in range(start, stop):
                    a = c - shift
                    out[row, c] = out[row, c] + s0 * A[r0, a] + s1 * A[r1, a] + s2 * A[r2, a] + s3 * A[r3, a]
                k += 4
            while k < end:
                i0 = sources[k]
                s0, r0 = one if i0 >= 0 else -one, np.uint64(max(i0, ~i0) - top)
                for c in range(start, stop):
                    out[row, c] += s0 * A[r0, c - shift]
                k += 1
