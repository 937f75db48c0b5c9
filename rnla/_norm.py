"""Norms, condition number and numerical rank from a few products or a sketch."""

import math
from functools import partial

import numpy as np

from rnla._backend import check_finite, eps_of, host_svd, key_from_rng, to_host
from rnla._krylov import ShortBasis, TestColumns
from rnla._matrix import as_matrix
from rnla._orth import orth
from rnla._probing import Sample, SquaredNorm
from rnla._quadrature import slq_trace
from rnla._rangefinder import check_choice, check_number, check_range, in_range, thin_svd, warn_not_converged
from rnla._sketch import SparseSign, test_matrix
from rnla._svd import QR_ASPECT, SMALL_ENTRIES, svd_as

METHODS = ("auto", "exact", "estimate")
DENSE_SIDE = {2: 64, "nuc": 500}  # up to this short side LAPACK answers faster than an iteration
WIDTH = 4  # columns of a block of the iteration for the largest singular value
CAPACITY = 100  # columns of its basis, before it is restarted
MAX_STEPS = 200
STEPS = 40  # of the quadrature for the singular values that a sketch misses
FIRST = 20  # products, or probes, of the first round for the other norms
ROUNDS = 8  # each with twice as many
SKETCH_ASPECT = 8  # a condition number is taken from a sketch of 4 n rows if A has at least this many times n rows ...
SKETCH_ROWS = 64  # ... and these: in a sketch of fewer rows, columns of signs may cancel
TINY = 1e-280  # squares below it may have lost digits to underflow
START = 32  # columns of the first sketch for the rank
FULL = 0.8  # a sketch with at least this share of its columns above the threshold may miss some
AMBIGUOUS = 10.0  # sketched singular values are within this factor of the true ones


def norm(A, ord=2, *, method="auto", rtol=1e-2, rng=None):
    """Compute or estimate a norm of a matrix.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it and its adjoint are used, but by ``exact``.
    ord : {2, "fro", "nuc"}
        Largest singular value, root of the sum of their squares, or their sum.
    method : {"auto", "exact", "estimate"}
        ``exact`` is LAPACK for 2 and ``"nuc"``, and one read of the entries for ``"fro"``. ``estimate`` needs only
        products. ``auto`` is exact where the entries of `A` are at hand, for ``"fro"``, or its short side is small.
    rtol : float
        Precision of an estimate, see Returns; at least rounding.
    rng : None, int or numpy.random.Generator
        Source of the random vectors.

    Returns
    -------
    float
        For ``ord=2`` a lower bound: block Krylov iteration, until the last two steps changed it by at most
        ``rtol / 4`` each. Otherwise an estimate with a standard error of at most ``rtol`` times itself.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not two-dimensional or not finite.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Warns
    -----
    ConvergenceWarning
        If the precision was not met in 200 steps (``ord=2``) or in 8 rounds, each with twice the products of the last.

    Notes
    -----
    ``ord=2``: 4 columns are multiplied by `A` and its adjoint in each step, 5 to 15 of which are usual; memory 100
    columns of the short side. A power method from a random vector would need ``q`` steps for an expected relative
    error of ``0.871 log(n) / (q - 1)`` in ``sigma_1**2``. ``"fro"``: XTrace of ``A A^H`` in its form for norms.
    ``"nuc"``: a sketched SVD and stochastic Lanczos quadrature of the root of ``A^H A`` for what it misses.

    References
    ----------
    .. [1] Kuczynski, Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992).
    .. [2] Musco, Musco, NeurIPS 2015, arXiv 1504.05477.
    .. [3] Epperly, Tropp, SIAM J. Sci. Comput. 46 (2024), arXiv 2207.06342.

    Examples
    --------
    >>> A = np.diag([3.0, 4.0])
    >>> rnla.norm(A), rnla.norm(A, "fro"), rnla.norm(A, "nuc")
    (4.0, 5.0, 7.0)
    """
    caller = "rnla.norm"
    M = as_matrix(A, caller)
    check_choice(ord, "ord", (2, "fro", "nuc"), caller)
    check_choice(method, "method", METHODS, caller)
    check_number(rtol, "rtol", caller)
    key = key_from_rng(rng, caller)
    rtol = max(rtol, 4 * eps_of(M.xp, M.dtype))
    if ord == "fro":
        found = _entries_norm(M, caller) if method != "estimate" else None
        if found is not None:
            return found
        if method == "exact":
            raise ValueError(f"{caller}: method 'exact' needs the entries of A; got a matrix known by products.")
    elif method == "exact" or (method == "auto" and min(M.shape) <= DENSE_SIDE[ord] and _fits(M)):
        s = _all_values(M, caller)
        return float(s[0] if ord == 2 else s.sum())
    estimate = {2: _spectral, "fro": _frobenius, "nuc": _nuclear}[ord]
    W = M.H if M.shape[0] < M.shape[1] and (M.H.one_pass_gram or not M.one_pass_gram) else M
    (value, message), factor = in_range(lambda W, _: estimate(W, rtol, key, caller), W)
    if message:
        warn_not_converged(caller, message)
    return value / factor


def cond(A, *, method="auto", rng=None):
    """Compute or estimate the condition number, the ratio of the largest and the smallest singular value.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        With the long side much longer than the short one for an estimate to be cheaper.
    method : {"auto", "exact", "estimate"}
        ``estimate`` takes the singular values of a sparse-sign sketch with 4 rows for each column, at least 64, or the
        other way round for a wide matrix: right within a factor of about 3 with high probability. ``exact`` is LAPACK,
        after a QR factorisation if `A` is tall or wide. ``auto`` sketches if one side is at least 8 times the other,
        and 64, and the entries are at hand.
    rng : None, int or numpy.random.Generator
        Source of the sketch.

    Returns
    -------
    float
        Infinite if a singular value is zero. From about ``1 / eps`` on it says only that `A` is singular up to
        rounding.

    Raises
    ------
    ValueError
        If `A` is not two-dimensional or not finite, or cannot be sketched.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Notes
    -----
    ``estimate``: one read of `A`, ``16 m n`` operations for a dense one, and the SVD of a (4 n, n) matrix. Memory:
    ``4 n**2`` numbers.

    References
    ----------
    .. [1] Martinsson, Tropp, Acta Numerica 29 (2020), sections 8 and 9 (subspace embeddings).

    Examples
    --------
    >>> round(rnla.cond(np.diag([4.0, 2.0, 1.0])), 6)
    4.0
    """
    caller = "rnla.cond"
    M = as_matrix(A, caller)
    check_choice(method, "method", METHODS, caller)
    key = key_from_rng(rng, caller)
    wide = M.shape[0] < M.shape[1]
    long, short = max(M.shape), min(M.shape)
    worth = long >= max((4 if method == "estimate" else SKETCH_ASPECT) * short, SKETCH_ROWS)
    sketched = _sketched(M.H if wide else M, M, key, caller) if method != "exact" and worth else None
    if sketched is None and method == "estimate" and worth:
        raise ValueError(f"{caller}: method 'estimate' needs the entries of A along its long side; use 'exact'.")
    s = _all_values(M if sketched is None else sketched, caller)
    return float(s[0] / s[-1]) if s[-1] > 0 else math.inf


def rank(A, *, rtol=None, rng=None):
    """Estimate the numerical rank: the number of singular values above a share of the largest.

    The singular values of ``A X``, with a random X of more columns than the rank, are those of `A` within a small
    factor. Where one of them is near the threshold, those after a power step decide.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it and, in doubt, with its adjoint are used.
    rtol : float, optional
        Threshold relative to the largest singular value; ``max(m, n) * eps`` if left out, as in
        `numpy.linalg.matrix_rank`.
    rng : None, int or numpy.random.Generator
        Source of X.

    Returns
    -------
    int
        The rank.

    Raises
    ------
    ValueError
        If `rtol` is out of range, or `A` is not two-dimensional or not finite.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Notes
    -----
    About 1.25 to 3 times as many products as the rank, in one read of `A` for every doubling of their number; in doubt
    as many again with the adjoint and with `A`. Memory: as many columns of both sides.

    References
    ----------
    .. [1] Meier, Nakatsukasa, Linear Algebra Appl. (2024), arXiv 2105.07388.

    Examples
    --------
    >>> rnla.rank(np.diag([3.0, 2.0, 0.0, 0.0]), rng=0)
    2
    """
    caller = "rnla.rank"
    M = as_matrix(A, caller)
    if rtol is None:
        rtol = max(M.shape) * eps_of(M.xp, M.dtype)
    check_number(rtol, "rtol", caller)
    key = key_from_rng(rng, caller)
    W = M.H if M.shape[0] < M.shape[1] else M
    return in_range(lambda W, _: _rank(W, rtol, key, caller), W)[0]


def _spectral(M, rtol, key, caller):
    """Return the largest Ritz value of a block Krylov space of A^H A, and a message if it has not settled."""
    side = M.shape[1]
    width = min(WIDTH, side)
    fresh = TestColumns(M, "gaussian", key)
    basis = ShortBasis(M, min(side, CAPACITY), False, caller)
    P = orth(fresh(width))[0]
    found, settled = 0.0, 0
    for _ in range(MAX_STEPS):
        P, _ = basis.expand(P, fresh)
        values, S = basis.ritz()
        value = max(math.sqrt(values[0]), found)
        settled = settled + 1 if value - found <= rtol / 4 * value else 0
        found = value
        if settled == 2 or basis.size == side:
            return found, ""
        if basis.size + P.shape[1] > CAPACITY:
            basis.restart(values, S, 2 * width)
    return found, f"{MAX_STEPS} steps made; the last one still changed the norm"


def _frobenius(M, rtol, key, caller):
    """Estimate the norm from products with A and its adjoint, twice as many in each round."""
    sample = Sample(M, "rademacher", key, caller)
    estimate, count, most = SquaredNorm(sample), FIRST, 2 * min(M.shape)
    for _ in range(ROUNDS):
        square, stderr = estimate(min(count, most))
        # The standard error of the root is half that of the square, relative to each.
        if stderr <= 2 * rtol * square:
            return math.sqrt(square), ""
        count *= 2
    return math.sqrt(max(square, 0.0)), f"{count // 2} products made; standard error {stderr / square / 2:.1e}"


def _nuclear(M, rtol, key, caller):
    """Add the singular values of a sketch and an estimate of the sum of the others."""
    k = max(1, min(2 * FIRST, M.shape[1] // 4))
    X = test_matrix("gaussian", key, M.shape[1], k, xp=M.xp, device=M.device, dtype=M.dtype, stream=1)
    Y = M.matmat(X)
    check_range(M, X, Y, caller)
    check_finite(Y, caller, "A")
    Z = M.rmatmat(orth(Y)[0])
    check_finite(Z, caller, "A")
    V, s, _ = thin_svd(Z)
    known, samples = to_host(s) ** 2, np.zeros(0)
    steps = STEPS
    for turn in range(ROUNDS):
        count = max(len(samples), FIRST // 2)  # probes, which the round doubles
        more, change = slq_trace(M.gram_matmat, M, _root, V, known, count, steps, (key + turn) % 2**64, caller)
        samples = np.concatenate([samples, more])
        value = float(samples.mean())
        stderr = float(samples.std(ddof=1)) / math.sqrt(len(samples))
        if math.hypot(stderr, change) <= rtol * value:
            return value, ""
        if change > stderr and 2 * steps <= MAX_STEPS:
            steps, samples = 2 * steps, np.zeros(0)  # small values are not resolved: more probes would not help
    return (
        value,
        f"{len(samples)} probes and {steps} steps made; standard error {math.hypot(stderr, change) / value:.1e}",
    )


def _root(values):
    return np.sqrt(np.maximum(values, 0.0))


def _entries_norm(M, caller):
    """Return the Frobenius norm from the entries, or None if they are out of reach."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # the total tells
        total = M.fro_norm_sq()
        if total is None:
            return None
        if TINY < total < math.inf:
            return math.sqrt(total)
        # Zero, not finite, or out of range: a product tells the size of the entries.
        y = M.matmat(test_matrix("gaussian", 0, M.shape[1], 1, xp=M.xp, device=M.device, dtype=M.dtype))
        check_finite(y, caller, "A")
        top = float(M.xp.max(M.xp.abs(y)))
        factor = 2.0 ** -round(math.log2(top)) if top > 0 else 1.0
        return math.sqrt(M.scaled(factor).fro_norm_sq()) / factor


def _all_values(M, caller):
    """Return all singular values, by LAPACK."""
    M = as_matrix(M, caller)
    tall = max(M.shape) >= QR_ASPECT * min(M.shape)
    s = svd_as(caller, M, min(M.shape), method="qr" if tall else "dense", compute_uv=False)
    return to_host(s).real


def _fits(M):
    return M.kind == "dense" or M.shape[0] * M.shape[1] <= SMALL_ENTRIES


def _sketched(T, M, key, caller):
    """Return a sketch of the rows of T, which is M or its adjoint, or None if they are out of reach."""
    S = SparseSign(max(4 * T.shape[1], SKETCH_ROWS), T.shape[0], seed=key)
    if M.kind == "sparse":
        M.counter.passes += 1
        return S @ (M.storage.csr if T is M else M.storage.csr.conj().T.tocsr())
    return T.sum_over_rows(partial(_applied, S))


def _applied(S, start, rows):
    return S.apply(rows, start)


def _rank(M, rtol, key, caller):
    n, place = M.shape[1], {"xp": M.xp, "device": M.device, "dtype": M.dtype}
    count, Y = 0, None
    while True:
        width = min(max(count, START), n - count)
        X = test_matrix("gaussian", key, n, width, start=count, **place)
        more = M.matmat(X)
        if Y is None:
            check_range(M, X, more, caller)
        check_finite(more, caller, "A")
        Y, count = more if Y is None else M.xp.concat([Y, more], axis=1), count + width
        Q, R = orth(Y)
        s = host_svd(R)[1]
        if count == n or np.any((s >= rtol * s[0] / AMBIGUOUS) & (s <= rtol * s[0] * AMBIGUOUS)):
            # A power step: of the range that was found the values are then those of A to (sigma_count / sigma_j)**4.
            Z = M.rmatmat(Q)
            check_finite(Z, caller, "A")
            Y2 = M.matmat(orth(Z)[0])
            check_finite(Y2, caller, "A")
            s = host_svd(orth(Y2)[1])[1]
        above = int(np.sum(s > rtol * s[0]))
        if count == n or above < FULL * count:
            return above
