"""Problems of matrix completion whose answer is known, and samples of powers of an operator in space and time."""

from typing import NamedTuple

import numpy as np

from rnla._backend import check_rng

REDRAWS = 50  # of the positions before entries are moved to rows and columns that have too few
LISTED = 1 << 22  # positions up to which all are listed to draw from them


class CompletionProblem(NamedTuple):
    """Entries of a matrix of low rank, and the matrix: ``(U * S) @ Vh``.

    Examples
    --------
    >>> problem = rnla.datasets.completion_problem((20, 15), 2, oversampling=3.0, rng=0)
    >>> problem.rows.shape, np.round(problem.S, 3).tolist()
    ((198,), [1.0, 1.0])
    """

    rows: np.ndarray  # (N,)
    cols: np.ndarray  # (N,)
    values: np.ndarray  # (N,)
    shape: tuple
    U: np.ndarray  # (m, k), orthonormal columns
    S: np.ndarray  # (k,), non-increasing
    Vh: np.ndarray  # (k, n), orthonormal rows


def completion_problem(shape, k, *, oversampling=3.0, condition=1.0, noise=0.0, dtype=float, rng=None):
    """Draw some entries of a random matrix of rank `k`.

    Singular vectors are those of Gaussian matrices, singular values in geometric progression from `condition` to 1.
    Positions are uniform; they are drawn again until every row and column has more than `k` entries, and if that does
    not happen, entries are moved from the fullest rows and columns to the emptiest.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns ``(m, n)``.
    k : int
        Rank.
    oversampling : float
        Number of entries over the ``k (m + n - k)`` degrees of freedom.
    condition : float
        Ratio of the largest singular value to the smallest.
    noise : float
        Standard deviation of Gaussian noise added to the entries.
    dtype : dtype
        Real or complex floating.
    rng : None, int or numpy.random.Generator
        Source of randomness.

    Returns
    -------
    CompletionProblem
        Entries sorted by row and then by column, and the matrix.

    Raises
    ------
    ValueError
        If there are fewer entries than every row and column needs, or more than the matrix has.

    References
    ----------
    .. [1] Kuemmerle, Mayrink Verdun, arXiv 2106.02119, section 4.

    Examples
    --------
    >>> problem = rnla.datasets.completion_problem((40, 30), 2, oversampling=4.0, condition=100.0, rng=0)
    >>> np.round(problem.S, 6).tolist(), int(np.bincount(problem.rows).min()) > 2
    ([100.0, 1.0], True)
    """
    caller = "rnla.datasets.completion_problem"
    check_rng(rng, caller)
    m, n = (int(side) for side in shape)
    if not 1 <= k <= min(m, n):
        raise ValueError(f"{caller}: k must be in 1..{min(m, n)} for shape {(m, n)}; got {k}.")
    if not condition >= 1:
        raise ValueError(f"{caller}: condition must be at least 1; got {condition}.")
    count = round(oversampling * k * (m + n - k))
    least = min(k + 1, m, n)
    if not least * max(m, n) <= count <= m * n:
        raise ValueError(
            f"{caller}: oversampling must give {least * max(m, n)} to {m * n} entries, so that every row and column "
            f"can have {least}; {oversampling} gives {count}."
        )
    rng = np.random.default_rng(rng)
    complex_ = np.dtype(dtype).kind == "c"
    U, V = (np.linalg.qr(_normal(rng, (side, k), complex_))[0] for side in (m, n))
    S = condition ** (1 - np.arange(k) / max(k - 1, 1))
    place = _positions(rng, m, n, count, least)
    rows, cols = place // n, place % n
    values = np.einsum("ij,ij->i", (U * S)[rows], V.conj()[cols])
    if noise:
        values = values + noise * _normal(rng, values.shape, complex_) / (2**0.5 if complex_ else 1)
    return CompletionProblem(rows, cols, values.astype(dtype), (m, n), U, S, V.conj().T)


def _normal(rng, shape, complex_):
    X = rng.standard_normal(shape)
    return X + 1j * rng.standard_normal(shape) if complex_ else X


def _positions(rng, m, n, count, least):
    """Return sorted distinct positions with at least so many in every row and column."""
    for _ in range(REDRAWS):
        place = _distinct(rng, m * n, count)
        short = [np.bincount(x, minlength=side).min() < least for x, side in ((place // n, m), (place % n, n))]
        if not any(short):
            return place
        if count / max(m, n) < 0.5 * least + 1:
            break
    taken = set(place.tolist())
    rows, cols = (np.bincount(x, minlength=side) for x, side in ((place // n, m), (place % n, n)))
    order = list(rng.permutation(place))
    for counts, side, across in ((rows, m, n), (cols, n, m)):
        for line in np.flatnonzero(counts < least):
            while counts[line] < least:
                other = int(rng.integers(across))
                i, j = (line, other) if side == m and counts is rows else (other, line)
                if i * n + j in taken:
                    continue
                gone = next(p for p in order if p in taken and rows[p // n] > least and cols[p % n] > least)
                order.remove(gone)
                taken.remove(int(gone))
                rows[gone // n] -= 1
                cols[gone % n] -= 1
                taken.add(int(i * n + j))
                rows[i] += 1
                cols[j] += 1
    return np.sort(np.fromiter(taken, np.int64, len(taken)))


def _distinct(rng, population, count):
    """Return `count` sorted distinct numbers below `population`, without listing them all."""
    if population <= LISTED or count > population // 3:
        return np.sort(rng.permutation(population)[:count])
    found = np.unique(rng.integers(0, population, int(1.1 * count) + 16))
    while len(found) < count:
        found = np.unique(np.concatenate([found, rng.integers(0, population, count)]))
    return np.sort(rng.permutation(found)[:count])


def space_time_samples(A, n_steps, m, *, adaptive=False, k=None, noise=0.0, rng=None):
    """Draw entries ``(A^t)_ij`` of the first powers of an operator.

    Parameters
    ----------
    A : array, shape (n, n), or tuple of U, s, Vh
        The operator, or its factors: of these no n x n array is formed unless `adaptive` is set.
    n_steps : int
        Number of powers, ``t = 1 .. n_steps``.
    m : int
        Number of samples; with `adaptive` their expected number.
    adaptive : bool
        Sample an entry with a probability in proportion to its `completion_coherence`, independently; otherwise all
        alike, without replacement.
    k : int, optional
        Rank for the coherence; that of the factors, or n, by default.
    noise : float
        Standard deviation of Gaussian noise.
    rng : None, int or numpy.random.Generator
        Source of randomness.

    Returns
    -------
    rows, cols, times, values : ndarray, shape (m,)
        Samples sorted by row, column and time; times from 1.

    Examples
    --------
    >>> A = np.diag([1.0, 0.5])
    >>> rows, cols, times, values = rnla.datasets.space_time_samples(A, 2, 8, rng=0)
    >>> values.reshape(2, 2, 2)[1, 1].tolist()
    [0.5, 0.25]
    """
    caller = "rnla.datasets.space_time_samples"
    check_rng(rng, caller)
    factors = A if isinstance(A, tuple) else None
    n = (A[0] if factors else A).shape[0]
    if not 1 <= m <= n * n * n_steps:
        raise ValueError(f"{caller}: m must be in 1..{n * n * n_steps}; got {m}.")
    rng = np.random.default_rng(rng)
    if adaptive:
        mu = completion_coherence(A, n_steps, k)
        place = np.flatnonzero(rng.random(mu.size) < _capped(mu.ravel(), m))
    else:
        place = _distinct(rng, n * n * n_steps, m)
    rows, cols, times = place // (n * n_steps), place // n_steps % n, place % n_steps + 1
    values = np.zeros(len(place), np.result_type(*(factors or (A,)), float))
    power = factors[0] * factors[1] if factors else A
    step = factors[2] @ power if factors else A
    for t in range(1, n_steps + 1):
        some = times == t
        if factors:
            values[some] = np.einsum("ij,ij->i", power[rows[some]], factors[2].T[cols[some]])
        else:
            values[some] = power[rows[some], cols[some]]
        power = power @ step
    if noise:
        values = values + noise * rng.standard_normal(values.shape)
    return rows, cols, times, values


def _capped(weights, total):
    """Return ``min(1, c w)`` with c such that the sum is `total`."""
    low, high = 0.0, total / max(weights.sum(), np.finfo(float).tiny)
    while np.minimum(1, high * weights).sum() < total * (1 - 1e-12) and high < 1e300:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * weights).sum() < total else (low, middle)
    return np.minimum(1, high * weights)


def completion_coherence(A, n_steps, k=None):
    """Return how much of the singular spaces of the powers of an operator every entry holds.

    ``mu[i, j, t] = ||U^H G E||^2 + ||G E V||^2``, with the singular vectors U, V of the block Hankel matrix of
    ``A .. A^n_steps`` and the normalised block Hankel matrix ``G E`` of the entry. The ratio of its maximum to its mean
    is the incoherence: near 1 if uniform samples serve.

    Parameters
    ----------
    A : array, shape (n, n), or tuple of U, s, Vh
        The operator.
    n_steps : int
        Number of powers.
    k : int, optional
        Rank; that of the factors, or n, by default.

    Returns
    -------
    ndarray, shape (n, n, n_steps)
        Positive.

    References
    ----------
    .. [1] Kuemmerle, Maggioni, Tang, IEEE Trans. Inf. Theory 70 (2024), arXiv 2212.00746.

    Examples
    --------
    >>> mu = rnla.datasets.completion_coherence(np.diag([1.0, 0.5, 0.0]), 3, 2)
    >>> mu.shape, bool(mu[2, 2, 0] < 1e-20)
    ((3, 3, 3), True)
    """
    if isinstance(A, tuple):
        k = len(A[1]) if k is None else k
        A = (A[0] * A[1]) @ A[2]
    n, d1 = A.shape[0], (n_steps + 2) // 2
    k, d2 = n if k is None else k, n_steps + 1 - d1
    powers = [A]
    for _ in range(n_steps - 1):
        powers.append(powers[-1] @ A)
    H = np.block([[powers[a + b] for b in range(d2)] for a in range(d1)])
    U, _, Vh = np.linalg.svd(H, full_matrices=False)
    left = np.sum(np.abs(U[:, :k].reshape(d1, n, k)) ** 2, axis=2)
    right = np.sum(np.abs(Vh[:k].reshape(k, d2, n)) ** 2, axis=0)
    mu = np.zeros((n, n, n_steps))
    for t in range(n_steps):
        blocks = [(a, t - a) for a in range(d1) if 0 <= t - a < d2]
        for a, b in blocks:
            mu[:, :, t] += (left[a][:, None] + right[b][None, :]) / len(blocks)
    return mu
