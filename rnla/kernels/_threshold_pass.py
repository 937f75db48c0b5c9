"""One read of a block of rows: residuals that are within a bound, multiplied from both sides."""

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from rnla._backend import adjoint
from rnla.kernels._threads import map_blocks

_COMPILE_FROM = 1 << 16  # entries from which the compiled loop is worth importing Numba
_ROWS = 512  # rows at a time
_CACHED = 1 << 15  # entries that the reference works on at a time, on the CPU: its temporaries stay in the cache


def threshold_pass(X, observed, L, R, W, bound):
    """Return products with the residuals ``E = X - L R^H`` whose modulus is at most a bound; the others count as zero.

    Parameters
    ----------
    X : array, shape (m, n)
        Rows; a NumPy array may have any strides.
    observed : array of bool, shape (m, n), or None
        Which entries there are; E is zero at the others, where X must be finite.
    L, R : array, shapes (m, k) and (n, k)
        Factors of the approximation.
    W : array, shape (m, k)
        Multiplies from the left.
    bound : float
        Largest modulus that is kept.

    Returns
    -------
    P : array, shape (m, k)
        ``E R``.
    Q : array, shape (n, k)
        ``E^H W``.
    sums : numpy.ndarray, shape (3,)
        Squared moduli of the residuals kept, of the entries of X there, and their number. NaN if X is not finite.
    """
    if not is_numpy_array(X):
        return _reference(X, observed, L, R, W, bound)
    if X.size >= _COMPILE_FROM and X.dtype.kind == "f":  # complex moduli take too long for a loop to be worth it
        return _compiled(X, observed, L, R, W, bound)
    P, Q, sums = np.empty_like(L), np.zeros_like(R), np.zeros(3)
    step = max(1, _CACHED // X.shape[1])
    for top in range(0, X.shape[0], step):
        part = slice(top, top + step)
        seen = None if observed is None else observed[part]
        P[part], Q_part, some = _reference(X[part], seen, L[part], R, W[part], bound)
        Q += Q_part
        sums += some
    return P, Q, sums


def _compiled(X, observed, L, R, W, bound):
    from rnla.kernels import _threshold_pass_cpu

    blocks = -(-X.shape[0] // _ROWS)
    Rt, L, W = (np.ascontiguousarray(Y) for Y in (R.T, L, W))
    P, Q, sums = np.empty_like(L), np.zeros((blocks, *Rt.shape), X.dtype), np.empty((blocks, 3))
    mask = np.zeros((0, 0), np.bool_) if observed is None else observed
    bound = X.dtype.type(bound)

    def run(start, stop):
        block = start // _ROWS
        _threshold_pass_cpu.run(X, mask, observed is not None, L, Rt, W, bound, P, Q[block], sums[block], start, stop)

    map_blocks(run, X.shape[0], block=_ROWS)
    return P, np.ascontiguousarray(Q.sum(axis=0).T), sums.sum(axis=0)


def _reference(X, observed, L, R, W, bound):
    xp = array_namespace(X)
    E = X - L @ adjoint(R)
    size = xp.abs(E)
    kept = size <= bound
    if observed is not None:
        kept = kept & observed
    zero = xp.zeros_like(E)
    E, data = xp.where(kept, E, zero), xp.where(kept, X, zero)
    squares = [float(xp.sum(xp.astype(xp.abs(Y), xp.float64) ** 2)) for Y in (E, data)]
    sums = np.array([*squares, float(xp.sum(xp.astype(kept, xp.float64)))])
    if not bool(xp.all(xp.isfinite(size))):
        sums += np.nan
    return E @ R, adjoint(E) @ W, sums
