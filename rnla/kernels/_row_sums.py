"""Sums of the rows of a block that belong to one index."""

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_namespace, is_torch_array


def row_sums(X, rows, n):
    """Return ``out[i, :] = sum of X[e, :] over e with rows[e] == i``; the rows must be sorted.

    Parameters
    ----------
    X : array, shape (N, p)
        The rows that are added up.
    rows : array of int, shape (N,)
        Where each belongs, non-decreasing.
    n : int
        Rows of the result.

    Returns
    -------
    array, shape (n, p)
        Library and dtype of `X`.
    """
    xp = array_namespace(X)
    if is_torch_array(X):
        return xp.zeros((n, X.shape[1]), dtype=X.dtype, device=device(X)).index_add_(0, rows, X)
    ends = xp.searchsorted(rows, xp.arange(n + 1, dtype=rows.dtype, device=device(rows)))
    if is_cupy_namespace(xp):
        from cupyx.scipy import sparse

        ones = xp.ones(rows.shape[0], dtype=X.dtype)
        return sparse.csr_matrix((ones, xp.arange(rows.shape[0]), ends), shape=(n, rows.shape[0])) @ X
    if isinstance(X, np.ndarray):
        import scipy.sparse

        ones = np.ones(len(rows), X.dtype)
        return scipy.sparse.csr_array((ones, np.arange(len(rows)), ends), shape=(n, len(rows))) @ X
    before = xp.concat([xp.zeros((1, X.shape[1]), dtype=X.dtype, device=device(X)), xp.cumulative_sum(X, axis=0)])
    return xp.take(before, ends[1:], axis=0) - xp.take(before, ends[:-1], axis=0)
