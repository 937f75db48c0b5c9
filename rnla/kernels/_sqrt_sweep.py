"""Two sweeps over the rows of ``Y = [(D + tau_1)^-1 Z, ..., (D + tau_N)^-1 Z]``, which is never stored."""

import contextlib
import importlib.util
from itertools import pairwise

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from rnla._backend import to_host
from rnla.kernels._threads import map_blocks, num_threads

_ROWS = 1024  # of a block: its part of Y stays in the second-level cache


def sqrt_sweep_gram(d, Z, tau):
    """Return ``Z^H Y_j`` for every node, and ``Y^H Y``, on the host.

    Parameters
    ----------
    d : array, shape (n,)
        Real diagonal of D.
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
    k, N = Z.shape[1], len(tau)
    wide = np.complex128 if "complex" in str(Z.dtype) else np.float64
    spans = [(start, min(start + _ROWS, d.shape[0])) for start in range(0, d.shape[0], _ROWS)]
    groups = _groups(spans)
    sums = [None] * len(groups)

    def work(first, last):
        for g in range(first, last):
            G, YY = np.zeros((k, N * k), wide), np.zeros((N * k, N * k), wide)
            for start, stop in groups[g]:
                z = Z[start:stop, :]
                Y = _block(d[start:stop], z, tau)
                both = _hermitian_products(z, Y)
                G += both[0]
                YY += both[1]
            sums[g] = G, YY

    if is_numpy_array(Z):
        with _one_blas_thread() as threads:
            map_blocks(work, len(groups), block=1, threads=threads)
    else:
        work(0, len(groups))
    G, YY = (sum(parts) for parts in zip(*sums, strict=True))
    return np.transpose(G.reshape(k, N, k), (1, 0, 2)), YY


def sqrt_sweep_product(d, Z, tau, B):
    """Return ``Y B``, shape (n, r), for B (N k, r)."""
    xp = array_namespace(Z)
    spans = [(start, min(start + _ROWS, d.shape[0])) for start in range(0, d.shape[0], _ROWS)]
    if not is_numpy_array(Z):
        return xp.concat([_block(d[start:stop], Z[start:stop, :], tau) @ B for start, stop in spans], axis=0)
    P = np.empty((d.shape[0], B.shape[1]), Z.dtype)

    def work(first, last):
        for start, stop in spans[first:last]:
            np.matmul(_block(d[start:stop], Z[start:stop], tau), B, out=P[start:stop])

    with _one_blas_thread() as threads:
        map_blocks(work, len(spans), block=8, threads=threads)
    return P


def _block(d, z, tau):
    """Return the rows of Y that belong to some rows of Z."""
    xp = array_namespace(z)
    t = xp.asarray(np.asarray(tau), dtype=d.dtype, device=device(d))
    inverse = 1 / (d[:, None] + t[None, :])
    return xp.reshape(inverse[:, :, None] * z[:, None, :], (z.shape[0], len(tau) * z.shape[1]))


def _hermitian_products(z, Y):
    if is_numpy_array(z):
        return z.conj().T @ Y, Y.conj().T @ Y
    xp = array_namespace(z)
    conj = xp.conj if xp.isdtype(z.dtype, "complex floating") else lambda X: X
    return to_host(conj(z).T @ Y), to_host(conj(Y).T @ Y)


def _groups(spans):
    """Cut the blocks into a number of groups that depends on their number alone: so does the sum."""
    count = max(1, min(16, len(spans) // 4))
    edges = np.linspace(0, len(spans), count + 1).astype(int)
    return [spans[a:b] for a, b in pairwise(edges)]


@contextlib.contextmanager
def _one_blas_thread():
    """Hold BLAS to one thread, as several slow each other down on small blocks; give the number that it had."""
    threads = num_threads()
    if threads == 1 or importlib.util.find_spec("threadpoolctl") is None:
        yield 1
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield threads
