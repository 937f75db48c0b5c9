"""Residuals of sampled entries, their order statistics, and least-squares fits that leave out what is too large.

A row of the sample has the entries ``X[i, index]``; entries that are not observed have the residual NaN, which no bound
keeps.
"""

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from rnla._backend import to_host
from rnla.kernels._threads import map_blocks

_COMPILE_FROM = 1 << 14  # entries from which the compiled loops are worth importing Numba
_ROWS = 512  # rows at a time


def sampled_residuals(X, index, observed, L, R, share):
    """Return the residuals of some columns of X, and an order statistic of their moduli in every row.

    Parameters
    ----------
    X : array, shape (m, N)
        The matrix; a NumPy array may have any strides and is read in place.
    index : numpy.ndarray of int, shape (c,)
        Columns of X.
    observed : array of bool, shape (m, N), or None
        Which entries there are.
    L : array, shape (m, k)
        Left factor of the approximation.
    R : array, shape (c, k)
        Rows of the right factor that belong to the columns `index`.
    share : float
        Which order statistic: number ``k + floor(share * (count - k - 1))``, from 0, of `count` observed moduli.

    Returns
    -------
    E : array, shape (m, c)
        ``X[:, index] - L R^H``, NaN where it is not observed.
    q : array, shape (m,)
        The order statistic; -1 where a row has at most k observed entries, NaN where one of them is not finite.
    """
    if not is_numpy_array(X) or X.shape[0] * index.size < _COMPILE_FROM:
        return _residuals_reference(X, index, observed, L, R, share)
    from rnla.kernels import _trimmed_cpu

    E = np.empty((X.shape[0], index.size), X.dtype)
    q = np.empty(X.shape[0], E.real.dtype)
    Rh = np.ascontiguousarray(R.conj().T)
    L = np.ascontiguousarray(L)
    mask = np.zeros((0, 0), np.bool_) if observed is None else observed

    def run(start, stop):
        _trimmed_cpu.residuals(X, index, mask, observed is not None, L, Rh, share, E, q, start, stop)

    map_blocks(run, X.shape[0], block=_ROWS)
    return E, q


def keep_within(E, bound, L, R):
    """Set to zero, in place where it can be, all residuals whose modulus is above the bound of their row.

    Parameters
    ----------
    E : array, shape (m, c)
        Residuals, NaN where nothing is observed; overwritten if it is a NumPy array.
    bound : array, shape (m,)
        Largest modulus that is kept in each row.
    L, R : array, shapes (m, k) and (c, k)
        The approximation is ``L R^H``.

    Returns
    -------
    E, K : array, shape (m, c)
        Residuals that are kept, zero elsewhere, and 1 or 0 in the dtype of E for kept or not.
    sums : numpy.ndarray, shape (m, 3)
        Of every row, on the host: squared moduli of the residuals kept, of the data there, number of entries kept.
    """
    if not is_numpy_array(E) or E.size < _COMPILE_FROM:
        return _keep_reference(E, bound, L, R)
    from rnla.kernels import _trimmed_cpu

    K = np.empty_like(E)
    sums = np.empty((E.shape[0], 3))
    L, Rh = np.ascontiguousarray(L), np.ascontiguousarray(R.conj().T)

    map_blocks(lambda lo, hi: _trimmed_cpu.keep(E, K, bound, L, Rh, sums, lo, hi), E.shape[0], block=_ROWS)
    return E, K, sums


def trimmed_fit(E, K, R, ridge):
    """Return the least-squares coefficients of every row of E on the rows of R that K keeps.

    ``C[i] = (E[i] R) (R^H diag(K[i]) R + ridge I)^-1``; all Gram matrices come from one product.

    Parameters
    ----------
    E, K : array, shape (m, c)
        Residuals, zero where K is; 1 or 0.
    R : array, shape (c, k)
        Regressors.
    ridge : float
        Added to the diagonals.

    Returns
    -------
    array, shape (m, k)
        C.
    """
    xp, k = array_namespace(E), R.shape[1]
    p, q = np.tril_indices(k)
    b = E @ R
    if is_numpy_array(E) and E.size >= _COMPILE_FROM:
        from rnla.kernels import _trimmed_cpu

        G = K @ (R[:, p].conj() * R[:, q])  # (m, k (k + 1) / 2)
        C = np.empty((E.shape[0], k), E.dtype)
        map_blocks(lambda lo, hi: _trimmed_cpu.solve(G, b, ridge, C, lo, hi), E.shape[0], block=_ROWS)
        return C
    return _fit_reference(b, K, R, ridge, xp)


def _residuals_reference(X, index, observed, L, R, share):
    xp, k = array_namespace(X), L.shape[1]
    index = xp.asarray(index, device=X.device)
    Rh = xp.conj(R.T) if xp.isdtype(R.dtype, "complex floating") else R.T
    data = _columns(X, index, xp)
    nothing = xp.asarray(float("nan"), dtype=X.dtype, device=X.device)
    if observed is not None:
        there = _columns(observed, index, xp)
        data = xp.where(there, data, xp.zeros_like(data))
    E = data - L @ Rh
    size = xp.abs(E)
    if observed is not None:
        E = xp.where(there, E, nothing)
        size = xp.where(there, size, xp.asarray(float("inf"), dtype=size.dtype, device=X.device))
        count = xp.sum(xp.astype(there, xp.int64), axis=1)
    else:
        count = xp.full((X.shape[0],), index.shape[0], dtype=xp.int64, device=X.device)
    bad = xp.any(~xp.isfinite(data), axis=1)
    place = k + xp.astype(xp.floor(share * xp.astype(count - k - 1, xp.float64)), xp.int64)
    place = xp.clip(place, 0, index.shape[0] - 1)
    rank = xp.arange(index.shape[0], device=X.device)[None, :] == place[:, None]
    ordered = xp.sort(size, axis=1)
    q = xp.sum(xp.where(rank, ordered, xp.zeros_like(ordered)), axis=1)
    q = xp.where(count > k, q, -xp.ones_like(q))
    return E, xp.where(bad, xp.asarray(float("nan"), dtype=q.dtype, device=X.device), q)


def _columns(X, index, xp):
    # NumPy's take copies all of an array that is not C-contiguous first.
    return X[:, index] if is_numpy_array(X) else xp.take(X, index, axis=1)


def _keep_reference(E, bound, L, R):
    xp = array_namespace(E)
    Rh = xp.conj(R.T) if xp.isdtype(R.dtype, "complex floating") else R.T
    kept = xp.abs(E) <= bound[:, None]
    zero = xp.zeros_like(E)
    E = xp.where(kept, E, zero)
    data = xp.where(kept, E + L @ Rh, zero)
    wide = [xp.astype(xp.abs(x), xp.float64) ** 2 for x in (E, data)]
    sums = xp.stack([xp.sum(x, axis=1) for x in (*wide, xp.astype(kept, xp.float64))], axis=1)
    return E, xp.astype(kept, E.dtype), to_host(sums)


def _fit_reference(b, K, R, ridge, xp):
    k, conj = R.shape[1], xp.conj if xp.isdtype(R.dtype, "complex floating") else lambda x: x
    pairs = xp.reshape(conj(R)[:, :, None] * R[:, None, :], (R.shape[0], k * k))
    G = xp.reshape(K @ pairs, (K.shape[0], k, k)) + ridge * xp.eye(k, dtype=R.dtype, device=R.device)
    return xp.linalg.solve(xp.permute_dims(G, (0, 2, 1)), b[:, :, None])[:, :, 0]
