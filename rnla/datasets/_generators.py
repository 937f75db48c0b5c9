"""Random matrices of the kinds on which low-rank methods are used, with properties that are known beforehand."""

import math
import numbers

import numpy as np

from rnla._backend import key_from_rng


def document_term(m, n, nnz, *, rng=None, dtype=np.float64):
    """Draw a sparse document-term matrix whose term frequencies follow Zipf's law.

    Lengths of documents are log-normal; how often term j occurs in document i is a Poisson number, whose mean is the
    length of i times the frequency of j, and an entry is ``1 + log(count)``. One large singular value is followed by
    a slow decay, as in text. Takes time and memory in proportion to the number of words, a small multiple of `nnz`.

    Parameters
    ----------
    m, n : int
        Number of documents (rows) and of terms (columns).
    nnz : int
        Expected number of stored entries, ``1 <= nnz <= m * n // 2``. The number drawn has a standard deviation of
        at most ``sqrt(nnz)``.
    rng : None, int, numpy.random.Generator, numpy.random.SeedSequence or numpy.random.RandomState
        Source of randomness.
    dtype : dtype
        Real floating dtype of the entries.

    Returns
    -------
    scipy.sparse.csr_array, shape (m, n)
        Positive entries, without duplicates, column indices sorted in each row.

    Raises
    ------
    ValueError
        If a size is out of range or `dtype` is not real floating.

    Examples
    --------
    >>> A = rnla.datasets.document_term(1000, 500, 20000, rng=0, dtype=np.float32)
    >>> A.shape, A.dtype, bool(abs(A.nnz - 20000) < 1000)
    ((1000, 500), dtype('float32'), True)
    """
    from scipy import sparse

    caller = "rnla.datasets.document_term"
    _check_integer(caller, "m", m, 1, None)
    _check_integer(caller, "n", n, 1, None)
    _check_integer(caller, "nnz", nnz, 1, m * n // 2)
    if np.dtype(dtype).kind != "f":
        raise ValueError(f"{caller}: dtype must be real floating; got {np.dtype(dtype)}.")
    random = _generator(rng, caller)

    frequency = 1.0 / np.arange(1, n + 1)
    frequency /= frequency.sum()
    lengths = _document_lengths(m, frequency, nnz)
    words = random.poisson(random.permutation(lengths))  # words in each document
    # Without the permutation the frequent terms would be the first columns, which no real vocabulary order does.
    cumulative = np.cumsum(random.permutation(frequency))
    terms = np.searchsorted(cumulative, random.random(int(words.sum())) * cumulative[-1], side="right")
    terms = np.minimum(terms, n - 1).astype(np.int32)

    indptr = np.concatenate([[0], np.cumsum(words)])
    index_dtype = np.int32 if indptr[-1] < 2**31 else np.int64
    A = sparse.csr_array((np.ones(terms.size, dtype), terms, indptr.astype(index_dtype)), shape=(m, n))
    A.sum_duplicates()  # sorts each row and turns repeated words into counts
    A.data = 1 + np.log(A.data)
    return A


def power_law_graph(n, n_edges, *, exponent=2.5, rng=None):
    """Draw the adjacency matrix of a graph whose degrees follow a power law (Chung and Lu).

    Both ends of an edge are drawn independently, vertex i with probability in proportion to
    ``(i + 1)**(-1 / (exponent - 1))``; loops and repeated edges are drawn again; vertices are then shuffled.

    Parameters
    ----------
    n : int
        Number of vertices, at least 4.
    n_edges : int
        Number of distinct undirected edges, ``1 <= n_edges <= n * (n - 1) // 8``.
    exponent : float
        Exponent of the degree distribution, greater than 2; smaller values give larger hubs.
    rng : None, int, numpy.random.Generator, numpy.random.SeedSequence or numpy.random.RandomState
        Source of randomness.

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n), dtype float64
        Symmetric, zero diagonal, ``2 * n_edges`` entries equal to 1.

    Raises
    ------
    ValueError
        If a size is out of range or ``exponent <= 2``.

    References
    ----------
    .. [1] Chung, Lu, Annals of Combinatorics 6 (2002), "Connected components in random graphs with given expected
       degree sequences".

    Examples
    --------
    >>> A = rnla.datasets.power_law_graph(1000, 4000, rng=0)
    >>> A.shape, A.nnz, bool(A.sum(axis=0).max() > 100)
    ((1000, 1000), 8000, True)
    """
    from scipy import sparse

    caller = "rnla.datasets.power_law_graph"
    _check_integer(caller, "n", n, 4, None)
    _check_integer(caller, "n_edges", n_edges, 1, n * (n - 1) // 8)
    if not 2 < exponent < math.inf:
        raise ValueError(f"{caller}: exponent must be a finite number > 2; got {exponent}.")
    random = _generator(rng, caller)

    cumulative = np.cumsum(np.arange(1, n + 1, dtype=np.float64) ** (-1 / (exponent - 1)))
    codes = np.empty(0, np.int64)  # smaller end * n + larger end
    new_per_draw = 1.0
    while (missing := n_edges - codes.size) > 0:
        draws = 16 + int(1.1 * missing / new_per_draw)
        ends = np.searchsorted(cumulative, random.random((draws, 2)) * cumulative[-1], side="right")
        ends = np.sort(np.minimum(ends, n - 1), axis=1)
        ends = ends[ends[:, 0] != ends[:, 1]]
        codes = np.unique(np.concatenate([codes, ends[:, 0] * n + ends[:, 1]]))
        gained = missing - (n_edges - codes.size)
        new_per_draw = max(gained / draws, 0.05)  # however rare the rest is, a round takes at most 22 draws for each
    row, col = np.divmod(random.choice(codes, n_edges, replace=False), n)

    names = random.permutation(n).astype(np.int32)
    both = np.concatenate([names[row], names[col]]), np.concatenate([names[col], names[row]])
    return sparse.coo_array((np.ones(2 * n_edges), both), shape=(n, n)).tocsr()


def _generator(rng, caller):
    """Turn `rng` into a NumPy generator that counts up from one 64-bit key."""
    return np.random.Generator(np.random.Philox(key=key_from_rng(rng, caller)))


def _check_integer(caller, name, value, low, high):
    """Raise ``ValueError`` unless `value` is an integer in ``low..high`` (`high` None: no upper limit)."""
    if isinstance(value, numbers.Integral) and low <= value and (high is None or value <= high):
        return
    allowed = f">= {low}" if high is None else f"in {low}..{high}"
    raise ValueError(f"{caller}: {name} must be an integer {allowed}; got {value!r}.")


def _document_lengths(m, frequency, nnz):
    """Return the expected number of words of `m` documents, so that `nnz` distinct pairs are expected in all."""
    # 16 quantiles of a log-normal distribution with deviation 1 stand for all lengths: then the expectation,
    # a sum over documents and terms of the chance that a Poisson number is not 0, is cheap and exact.
    quantiles = np.exp(_normal_quantiles(16))
    documents = np.bincount(np.arange(m) % 16, minlength=16)

    def expected(scale):
        return float(documents @ -np.expm1(-scale * np.outer(quantiles, frequency)).sum(axis=1))

    low, high = 0.0, 1.0
    while expected(high) < nnz:
        low, high = high, 2 * high
    for _ in range(40):  # bisection: 40 halvings leave a relative error below 1e-11
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < nnz else (low, middle)
    return high * quantiles[np.arange(m) % 16]


def _normal_quantiles(count):
    """Return the quantiles (i + 1/2) / count of the standard normal distribution."""
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
