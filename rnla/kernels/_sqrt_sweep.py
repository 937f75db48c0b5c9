"""Two sweeps over the rows of ``Y = [(D + tau_1)^-1 Z, ..., (D + tau_N)^-1 Z]``, which is never stored.

A block of rows is held transposed, shape (N k, rows): both products then run along memory.
"""

import contextlib
import os
from itertools import pairwise

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from rnla._backend import columns, to_host
from rnla.kernels._threads import _controller, map_blocks, num_threads

_ENTRIES = 1 << 16  # of a block of Y: half of a second-level cache
_GROUPS = 16  # partial sums; their number does not depend on that of threads, so neither does the result
_COMPILE_FROM = 1 << 15  # rows from which the compiled loops are worth importing Numba ...
_COMPILE_COLUMNS = 2  # ... for up to so many columns of Z: more are better multiplied by BLAS


def sqrt_sweep_gram(d, Z, tau):
    """Return ``Z^H Y_j`` for every node, and ``Y^H Y``, on the host.

    Parameters
    ----------
    d : array, shape (n,)
        Real diagonal of D, in the precision of Z.
    Z : array, shape (n, k)
        Columns.
    tau : numpy.ndarray, shape (N,)
        Shifts.

    Returns
    -------
    G : numpy.ndarray, shape (N, k, k)
        Double precision.
    YY : numpy.ndarray, shape (N k, N k)
        Of Y, whose columns are those of Y_1, then Y_2 ...
    """
    n, k = Z.shape
    N = len(tau)
    wide = np.complex128 if "complex" in str(Z.dtype) else np.float64
    spans = _spans(n, k * N)
    edges = np.linspace(0, len(spans), min(_GROUPS, len(spans)) + 1).astype(int)
    groups = [spans[a:b] for a, b in pairwise(edges)]
    sums = np.zeros((len(groups), (N + 1) * k, (N + 1) * k), wide)
    if _compiled(Z):
        from rnla.kernels import _sqrt_sweep_cpu

        def add(start, stop, total):
            _sqrt_sweep_cpu.gram(d, Z, tau, start, stop, total)
    else:

        def add(start, stop, total):
            total += _squares(_block(d[start:stop], Z[start:stop, :], tau, with_columns=True))

    def work(first, last):
        for g in range(first, last):
            for start, stop in groups[g]:
                add(start, stop, sums[g])

    _run(work, len(groups), 1, Z)
    total = sums.sum(axis=0)
    G = total[N * k :, : N * k].reshape(k, N, k)  # the last columns are those of Z itself
    return np.transpose(G, (1, 0, 2)), total[: N * k, : N * k]


def sqrt_sweep_product(d, Z, tau, B):
    """Return ``Y B``, shape (n, r), for B (N k, r); its columns are contiguous in NumPy."""
    xp = array_namespace(Z)
    spans = _spans(Z.shape[0], Z.shape[1] * len(tau))
    if not is_numpy_array(Z):
        return xp.concat([_block(d[start:stop], Z[start:stop, :], tau).T @ B for start, stop in spans], axis=0)
    P = columns(np, Z.shape[0], B.shape[1], dtype=Z.dtype, device=None)
    Bt = np.ascontiguousarray(B.T)
    if _compiled(Z):
        from rnla.kernels import _sqrt_sweep_cpu

        def work(first, last):
            _sqrt_sweep_cpu.product(d, Z, tau, Bt, P.T, spans[first][0], spans[last - 1][1])
    else:

        def work(first, last):
            for start, stop in spans[first:last]:
                np.matmul(Bt, _block(d[start:stop], Z[start:stop], tau), out=P.T[:, start:stop])

    _run(work, len(spans), 8, Z)
    return P


def _spans(n, width):
    # A Gram matrix is written once a block: with fewer rows than columns that would take longer than the products.
    rows = min(1024, max(2 * width, _ENTRIES // max(width, 1)))
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]


def _compiled(Z):
    return (
        is_numpy_array(Z)
        and Z.shape[0] >= _COMPILE_FROM
        and Z.shape[1] <= _COMPILE_COLUMNS
        and Z.dtype in (np.float64, np.float32)
    )


def _block(d, z, tau, with_columns=False):
    """Return the transposed rows of Y, and of Z below, that belong to some rows of Z."""
    xp = array_namespace(z)
    t = xp.asarray(np.asarray(tau), dtype=d.dtype, device=device(d))
    inverse = 1 / (d[None, :] + t[:, None])
    if is_numpy_array(z):
        N, k, b = len(tau), z.shape[1], z.shape[0]
        out = np.empty(((N + with_columns) * k, b), z.dtype)
        zt = np.ascontiguousarray(z.T)
        np.multiply(inverse[:, None, :], zt[None, :, :], out=out[: N * k].reshape(N, k, b))
        if with_columns:
            out[N * k :] = zt
        return out
    Y = xp.reshape(inverse[:, None, :] * z.T[None, :, :], (len(tau) * z.shape[1], z.shape[0]))
    return xp.concat([Y, z.T], axis=0) if with_columns else Y


def _squares(Yt):
    """Return ``Y^H Y`` of a transposed block, on the host."""
    if is_numpy_array(Yt):
        return Yt @ Yt.T if Yt.dtype.kind == "f" else Yt.conj() @ Yt.T  # the former is one triangle only
    xp = array_namespace(Yt)
    return to_host((xp.conj(Yt) if xp.isdtype(Yt.dtype, "complex floating") else Yt) @ Yt.T)


def _run(work, count, block, Z):
    """Run in as many threads as BLAS has, which is held to one meanwhile: several are slow on small blocks."""
    threads = num_threads() if is_numpy_array(Z) and count > 1 else 1
    controller = _controller(os.getpid()) if threads > 1 else None
    with contextlib.nullcontext() if controller is None else controller.limit(limits=1, user_api="blas"):
        map_blocks(work, count, block=block, threads=threads if controller is not None else 1)
