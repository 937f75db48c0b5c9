"""How many eigenpairs a factor needs: a bound from its exponential average, and a measurement."""

import math

from array_api_compat import array_namespace, device

from rnla._backend import key_from_rng
from rnla._rangefinder import check_count
from rnla._sketch import test_matrix
from rnla.optim._checks import check_rho, real_arrays


def ea_rank_bound(rho, eps, alpha, n):
    """Bound how many eigenvalues of an exponential average exceed ``eps`` times the largest.

    For ``M_k = rho M_{k-1} + (1 - rho) X_k X_k^T`` with X_k of n columns and ``||X_k||_2**2 <= s``, and a largest
    eigenvalue of at least ``alpha s``, these are at most ``n ceil(log(alpha eps) / log(rho))``, in every dimension:
    terms that are older have a total norm of at most ``alpha eps s``, and the others that rank (Weyl).

    Parameters
    ----------
    rho : float
        Decay rate in [0, 1).
    eps : float
        In (0, 1).
    alpha : float
        In (0, 1].
    n : int
        Columns of each term.

    Returns
    -------
    int
        The bound.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Puiu, arXiv 2206.15397.

    Examples
    --------
    >>> rnla.optim.ea_rank_bound(0.95, 0.03, 0.1, 256)
    29184
    """
    caller = "rnla.optim.ea_rank_bound"
    check_rho(rho, caller)
    check_count(n, "n", caller)
    for name, value, allowed in (("eps", eps, 0 < eps < 1), ("alpha", alpha, 0 < alpha <= 1)):
        if not allowed:
            raise ValueError(f"{caller}: {name} must be in (0, 1{']' if name == 'alpha' else ')'}; got {value}.")
    return n * (math.ceil(math.log(alpha * eps) / math.log(rho)) if rho > 0 else 1)


def choose_rank(M, inv, rank, *, low=0.026, high=0.053, step=10, least=10, most=700, probes=8, rng=None):
    """Measure the error of a low-rank factor with random vectors, and move the rank by a step where it is off.

    Parameters
    ----------
    M : array, shape (d, d)
        The matrix.
    inv : FactorInverse
        Its representation.
    rank : int
        Present rank.
    low, high : float
        Relative Frobenius errors below and above which the rank is moved.
    step : int
        By how much.
    least, most : int
        Bounds of the rank.
    probes : int
        Random vectors.
    rng : None, int or numpy.random.Generator
        Source of them.

    Returns
    -------
    rank : int
        For the next decomposition.
    error : float
        ``||(M - M') X||_F / ||M X||_F`` for random X.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Notes
    -----
    One product of M with `probes` columns.

    Examples
    --------
    >>> M = np.diag(0.5 ** np.arange(300.0))
    >>> inv = rnla.optim.factor_inverse(M, method="sre", rank=20, rng=0)
    >>> rnla.optim.choose_rank(M, inv, 20, rng=0)[0]
    10
    """
    caller = "rnla.optim.choose_rank"
    xp = real_arrays(caller, M=M)
    check_count(rank, "rank", caller)
    if not 0 <= low <= high:
        raise ValueError(f"{caller}: low and high must be 0 <= low <= high; got {low} and {high}.")
    key = key_from_rng(rng, caller)
    X = test_matrix("gaussian", key, M.shape[0], probes, xp=xp, dtype=M.dtype, device=device(M), stream=3)
    MX = M @ X
    error, norm = (float(array_namespace(Y).linalg.vector_norm(Y)) for Y in (MX - inv.matmul(X), MX))
    error = error / norm if norm > 0 else 0.0
    if error > high:
        rank += step
    elif error < low:
        rank -= step
    return min(max(rank, min(least, M.shape[0])), most, M.shape[0]), error
