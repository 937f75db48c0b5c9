"""Other methods of matrix completion, as their papers describe them: SoftImpute, scaled gradient descent, ALS.

Each takes entries and returns ``L, R`` with the matrix ``L @ R.T``; `stop` is called with them after every iteration
and ends the run by returning True.
"""

import contextlib
import io

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from rnla import kernels


class Entries:
    """Entries, and the products that the methods need, as fast as ours."""

    def __init__(self, rows, cols, values, shape):
        order = np.lexsort((cols, rows))
        self.rows, self.cols = rows[order].astype(np.int32), cols[order].astype(np.int32)
        self.values, self.shape = values[order], shape
        ends = np.searchsorted(self.rows, np.arange(shape[0] + 1))
        self.sparse = scipy.sparse.csr_array((self.values, self.cols, ends), shape=shape)

    def residuals(self, L, R):
        """Return the sparse matrix of the entries less ``L @ R.T``."""
        out = self.sparse.copy()
        out.data = self.values - kernels.sampled_product(L, R, self.rows, self.cols)
        return out

    def start(self, k):
        """Return factors of the best approximation of the entries over their density."""
        U, s, Vt = scipy.sparse.linalg.svds(self.sparse, k, v0=np.ones(min(self.shape)))
        s = s * self.shape[0] * self.shape[1] / len(self.values)
        return U * np.sqrt(s), Vt.T * np.sqrt(s)


def soft_impute(entries, lam, *, max_iter=100, stop=None, X=None, tol=1e-5):
    """SoftImpute with a full SVD of the filled-in matrix each time (Mazumder, Hastie, Tibshirani 2010)."""
    known, data = np.zeros(entries.shape, bool), np.zeros(entries.shape)
    known[entries.rows, entries.cols] = True
    data[entries.rows, entries.cols] = entries.values
    X = np.zeros(entries.shape) if X is None else X
    for _ in range(max_iter):
        U, s, Vt = np.linalg.svd(np.where(known, data, X), full_matrices=False)
        L, R = U * np.maximum(s - lam, 0), Vt.T
        new = L @ R.T
        change = np.linalg.norm(new - X) / max(np.linalg.norm(X), 1e-300)
        X = new
        if change < tol or (stop is not None and stop(L, R)):
            break
    return L, R


def fancyimpute_soft_impute(entries, k, *, max_iter=100):
    """SoftImpute of the package fancyimpute, with its randomised SVD of rank k and its default threshold.

    Its last release passes an argument that scikit-learn has renamed since.
    """
    import fancyimpute
    import sklearn.utils

    def check_array(X, *, force_all_finite=True):
        return sklearn.utils.check_array(X, ensure_all_finite=force_all_finite)

    fancyimpute.solver.check_array = fancyimpute.soft_impute.check_array = check_array
    X = np.full(entries.shape, np.nan)
    X[entries.rows, entries.cols] = entries.values
    with contextlib.redirect_stdout(io.StringIO()):
        filled = fancyimpute.SoftImpute(max_rank=k, max_iters=max_iter, verbose=False).fit_transform(X)
    return filled, np.eye(entries.shape[1])


def scaled_gd(entries, k, *, max_iter=5000, stop=None, step=0.2):
    """Scaled gradient descent with steps that are halved where they do not descend (Tong, Ma, Chi 2021)."""
    L, R = entries.start(k)
    density = len(entries.values) / (entries.shape[0] * entries.shape[1])
    E = entries.residuals(L, R)
    loss = np.sum(E.data**2)
    for _ in range(max_iter):
        dL = np.linalg.solve(R.T @ R, (E @ R).T).T / density
        dR = np.linalg.solve(L.T @ L, (E.T @ L).T).T / density
        while True:
            new = L + step * dL, R + step * dR
            E = entries.residuals(*new)
            after = np.sum(E.data**2)
            if after <= loss or step < 1e-8:
                break
            step /= 2
        (L, R), loss = new, after
        step = min(0.5, 1.02 * step)
        if step < 1e-8 or (stop is not None and stop(L, R)):
            break
    return L, R


def alternating_least_squares(entries, k, *, ridge=1e-12, max_iter=1000, stop=None):
    """Alternate exact least squares for the rows of both factors, a little regularised, in batches of small systems."""
    L, R = entries.start(k)
    flipped = entries.sparse.T.tocsr()
    for _ in range(max_iter):
        L = _rows_by_least_squares(entries.sparse, R, ridge)
        R = _rows_by_least_squares(flipped, L, ridge)
        if stop is not None and stop(L, R):
            break
    return L, R


def _rows_by_least_squares(S, R, ridge):
    k = R.shape[1]
    ones = S.copy()
    ones.data = np.ones_like(S.data)
    grams = (ones @ (R[:, :, None] * R[:, None, :]).reshape(-1, k * k)).reshape(-1, k, k)
    grams += ridge * np.trace(grams, axis1=1, axis2=2)[:, None, None] * np.eye(k) + 1e-300 * np.eye(k)
    return np.linalg.solve(grams, (S @ R)[:, :, None])[:, :, 0]


def least_squares_oracle(entries, L, R, *, n_iter=30):
    """Return the least-squares fit of noisy entries that alternation reaches from the true factors."""
    flipped = entries.sparse.T.tocsr()
    for _ in range(n_iter):
        L = _rows_by_least_squares(entries.sparse, R, 0.0)
        R = _rows_by_least_squares(flipped, L, 0.0)
    return L, R
