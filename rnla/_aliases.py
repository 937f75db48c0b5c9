"""`rnla.svd` under the names and keywords of SciPy and scikit-learn."""

import math

from rnla._backend import check_rng
from rnla._matrix import as_matrix
from rnla._rangefinder import check_count, check_number, check_rank
from rnla._svd import svd_as


def svds(A, k=6, *, tol=0, maxiter=None, return_singular_vectors=True, rng=None, **options):
    """Compute the `k` largest singular triplets, called like ``scipy.sparse.linalg.svds``.

    Unlike there, singular values come in descending order, and Vh with its rows to match.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        The matrix.
    k : int
        Number of triplets.
    tol : float
        Residual relative to each singular value. 0 is the square root of the rounding unit, with which the singular
        values, whose error is of second order, are as exact as the dtype allows.
    maxiter : int, optional
        Bound on the number of passes over `A`.
    return_singular_vectors : bool
        With False, return the singular values alone.
    rng : None, int or numpy.random.Generator
        Source of the test matrix.
    **options
        Further options of `rnla.svd`.

    Returns
    -------
    SVDResult
        ``U, S, Vh``, or the array S alone.

    Examples
    --------
    >>> U, S, Vh = rnla.svds(np.diag([3.0, 2.0, 1.0, 0.5]), k=2, rng=0)
    >>> np.round(S, 6).tolist()
    [3.0, 2.0]
    """
    caller = "rnla.svds"
    M = as_matrix(A, caller, block_bytes=options.get("block_bytes"))
    if maxiter is not None:
        check_count(maxiter, "maxiter", caller)
    check_number(tol, "tol", caller)
    if tol == 0:
        tol = math.sqrt(float(M.xp.finfo(M.dtype).eps))
    options.update(tol=tol, max_passes=maxiter, compute_uv=bool(return_singular_vectors), rng=rng)
    return svd_as(caller, M, k, **options)


def randomized_svd(M, n_components, *, n_oversamples=10, n_iter="auto", flip_sign=True, random_state=None):
    """Compute a truncated SVD by subspace iteration, called like ``sklearn.utils.extmath.randomized_svd``.

    It runs ``rnla.svd(..., method="rsi")`` with exactly these settings. `rnla.svd` itself is faster at the same error.

    Parameters
    ----------
    M : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        The matrix.
    n_components : int
        Number of triplets.
    n_oversamples : int
        Columns beyond `n_components`.
    n_iter : int or "auto"
        Power iterations; ``auto`` is 7 if `n_components` is less than a tenth of the short side, else 4.
    flip_sign : bool
        Make the entry of largest modulus in every column of U positive.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of the test matrix.

    Returns
    -------
    SVDResult
        ``U, S, Vh``.

    Examples
    --------
    >>> U, S, Vh = rnla.randomized_svd(np.diag([3.0, 2.0, 1.0]), 1, random_state=0)
    >>> np.round(S, 6).tolist()
    [3.0]
    """
    caller = "rnla.randomized_svd"
    A = as_matrix(M, caller)
    check_rank(n_components, A, caller, "n_components")
    if n_iter == "auto":
        n_iter = 7 if n_components < 0.1 * min(A.shape) else 4
    check_rng(random_state, caller, "random_state")
    options = {"n_oversamples": n_oversamples, "n_iter": n_iter, "flip_sign": flip_sign, "rng": random_state}
    return svd_as(caller, A, n_components, method="rsi", **options)
