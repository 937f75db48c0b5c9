"""The rank of a matrix of which exact entries are known; an upper bound where nothing explains them."""

import numpy as np
from array_api_compat import array_namespace

from rnla._completion_noise import NoiseWatch, noise_of

EXPLAINED = 1e-9  # share of the entries that a matrix of the right rank leaves, at most
CLEAR_GAP = 10.0  # ratio of neighbouring singular values below which there is no gap
FIRST_ITERATIONS, TRY_ITERATIONS = 60, 100


def searched_rank(problem, bound):
    """Look for the smallest rank that explains the entries.

    Parameters
    ----------
    problem : object
        With ``run(rank, max_iter=...)``, `samples` and `monitor`.
    bound : int
        The largest rank that is tried first.

    Returns
    -------
    rank : int
        It, or `bound`.
    found : Found
        The iteration at this rank.
    tau : float
        0, or an estimate of the noise if no rank explains the scaled entries.
    """
    first = problem.run(bound, max_iter=FIRST_ITERATIONS)
    s = np.zeros(bound + 1)
    s[: len(first.s)] = first.s[: bound + 1]
    ratios = s[:-1] / np.maximum(s[1:], np.finfo(float).tiny * max(s[0], 1.0))
    guess = int(np.argmax(ratios)) + 1
    if ratios[guess - 1] < CLEAR_GAP or problem.monitor.stopped:
        return bound, first, noise_of(problem, first, bound)
    found, rank = _first_that_explains(problem, guess, bound)
    if found is None:
        return bound, first, noise_of(problem, first, bound)
    while rank > 1 and not problem.monitor.stopped:
        smaller = problem.run(rank - 1, max_iter=TRY_ITERATIONS)
        if not explains(problem, smaller):
            break
        found, rank = smaller, rank - 1
    return rank, found, 0.0


def _first_that_explains(problem, guess, bound):
    for rank in (guess, guess - 1, guess - 2, guess + 1, guess + 2, guess + 3):
        if 1 <= rank <= bound and not problem.monitor.stopped:
            # The likeliest rank gets all iterations: the last singular values of ill-conditioned matrices come late.
            watch = None if rank == guess else NoiseWatch(rank)
            found = problem.run(rank, max_iter=TRY_ITERATIONS, until=watch)
            if explains(problem, found):
                return found, rank
    return None, None


def explains(problem, found):
    """Say whether the low-rank part alone has the entries."""
    xp = array_namespace(problem.samples)
    eps = float(xp.finfo(problem.samples.dtype).eps)
    left, whole = (float(xp.linalg.vector_norm(x)) for x in (found.point.values, problem.samples))
    return left <= max(EXPLAINED, 100 * eps) * whole
