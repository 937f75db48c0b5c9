"""Randomly pivoted Cholesky: low-rank approximation of a positive semidefinite matrix from a few of its columns."""

import math

import numpy as np
from array_api_compat import is_numpy_array

from rnla._backend import adjoint, check_finite, columns, eps_of, key_from_rng, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._lowrank import LowRank, SVDInfo
from rnla._matrix_entries import entries_of, rows_at
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, check_rank, warn_not_converged
from rnla._sketch import test_matrix
from rnla._tall import column_squares, times_small

METHODS = ("accelerated", "block", "simple", "greedy", "uniform")
NEGLIGIBLE = 100.0  # what is left of a diagonal entry below this many of its rounding units is taken for zero
CLEARLY = 100.0  # a diagonal entry below minus this many times its rounding is no rounding
PROBES = 8  # rows and columns whose entries are compared with their mirror images
DRAWS = 512  # uniform numbers made at a time
START = 64  # columns of F to begin with, where a precision sets the rank


class CholeskyResult(LowRank):
    """``A ~ F @ F^H``, exact in the columns and rows of the pivots.

    Unpacks as ``F, pivots``; ``result @ X`` multiplies by the approximation.

    Attributes
    ----------
    F : array, shape (n, r)
        Columns of a partial Cholesky factor: ``F[pivots]`` is lower triangular up to rounding.
    pivots : array of int, shape (r,)
        Distinct indices of the columns of A that were read, in the order of the elimination.
    info : SVDInfo
        How it was computed.
    trace_error : float
        Trace of ``A - F F^H``, not an estimate: a bound on every Schatten norm of the error.

    Examples
    --------
    >>> A = np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> F, pivots = result = rnla.rpcholesky(A, 3, rng=0)
    >>> result.rank, bool(np.allclose(F @ F.T, A))
    (2, True)
    """

    _fields = ("F", "pivots")

    def __new__(cls, F, pivots, info=None, trace_error=math.nan):
        self = super().__new__(cls, (F, pivots))
        self.info = info
        self.trace_error = trace_error
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.info, self.trace_error)

    F = property(lambda self: self[0])
    pivots = property(lambda self: self[1])

    @property
    def H(self):
        """The adjoint: the result itself, which is Hermitian."""
        return self

    def _factors(self):
        return self.F, adjoint(self.F)


def rpcholesky(A, k=None, *, rtol=0.0, method="accelerated", block_size="auto", diag=None, check=True, rng=None,
               callback=None, progress=False):  # fmt: skip
    """Approximate a positive semidefinite matrix from `k` of its columns, chosen at random in proportion to the error.

    Each pivot is drawn with a probability proportional to the diagonal of what is left of `A`, and eliminated. Only
    the diagonal of `A` and the columns of the pivots are read: ``(k + 1) * n`` entries. Drawing in proportion avoids
    the outliers that a greedy choice falls for, and finds the clusters that a uniform one misses.

    Parameters
    ----------
    A : array, sparse matrix, KernelMatrix, or object with ``shape``, ``diag()``, ``columns(S)`` and ``submatrix(S, T)``
        Hermitian, positive semidefinite, shape (n, n). Of files, dask arrays and LinearOperators the columns are
        products with unit vectors: a read of everything for each block of pivots.
    k : int, optional
        Rank of the result; the largest rank with `rtol`, without which it must be given.
    rtol : float
        End when the trace of the error is at most this part of the trace of `A`.
    method : {"accelerated", "block", "simple", "greedy", "uniform"}
        ``simple`` takes one pivot at a time. ``accelerated`` has the same law: it proposes a block of pivots, accepts
        each with the probability that makes up for the elimination of those before it, and updates `F` by matrix
        products. ``block`` takes whole blocks without that rejection, but for pivots that the others make redundant.
        ``greedy`` takes the largest entry that is left of the diagonal, ``uniform`` any that is not far
        smaller than that.
    block_size : int or "auto"
        Pivots proposed at a time by ``accelerated`` and ``block``; ``auto``: a tenth of `k`, at least 10.
    diag : array, shape (n,), optional
        Diagonal of `A`; needed if `A` is known by its products only.
    check : bool
        Refuse an array whose entries at a few random places are not those of a Hermitian matrix.
    rng : None, int or numpy.random.Generator
        Source of the pivots.
    callback : callable, optional
        Called after each pivot or block with a record ``(iteration, error, seconds)``, the error being the trace of
        what is left relative to that of `A`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    CholeskyResult
        ``F`` (n, r) and ``pivots`` (r,); fewer than `k` if `A` has a lower rank or the precision is met.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not square, visibly not Hermitian or not finite.
    NotPositiveDefiniteError
        If an entry that is left of the diagonal is clearly negative: beyond 100 times its rounding and the root of the
        rounding unit.
    TypeError
        If `A` is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If `k` is reached before `rtol`.

    Notes
    -----
    About ``n k**2`` flops and memory for `F`. With ``eta = tr(A - A_r) / tr(A)``, where ``A_r`` is the best
    approximation of rank r, the expected trace of the error is at most ``(1 + e) tr(A - A_r)`` once
    ``k >= r / e + r * log(1 / (e * eta))``.

    References
    ----------
    .. [1] Chen, Epperly, Tropp, Webber, "Randomly pivoted Cholesky", Comm. Pure Appl. Math. 2025, arXiv 2207.06503,
       Algorithm 2.1, Theorem 5.1.
    .. [2] Epperly, Tropp, Webber, "Embrace rejection: kernel matrix approximation by accelerated randomly pivoted
       Cholesky", arXiv 2410.03969.

    Examples
    --------
    >>> X = np.linspace(0.0, 1.0, 200)[:, None]
    >>> K = rnla.KernelMatrix(X, "gaussian", 0.5)
    >>> F, pivots = result = rnla.rpcholesky(K, 8, rng=0)
    >>> F.shape, result.trace_error < 1e-3
    ((200, 8), True)
    >>> bool(np.allclose(K.columns(pivots), F @ F[pivots].T))
    True
    """
    caller = "rnla.rpcholesky"
    E = entries_of(A, diag, caller)
    _check_options(E, k, rtol, method, block_size, check, caller)
    key = key_from_rng(rng, caller)
    monitor, passes = Monitor(callback, progress, caller), E.passes
    try:
        partial = factorised(E, k, rtol, 0.0, method, block_size, key, monitor, check, caller)
    finally:
        monitor.close()
    r = len(partial.pivots)
    converged = True
    if partial.left <= partial.goal:
        message = "precision met" if rtol else "rank of A reached"
    elif r == k and not rtol:
        message = "fixed rank"
    else:
        converged = False
        message = "ended by the callback" if monitor.stopped else f"rank {r} reached before the precision"
        if not monitor.stopped:
            warn_not_converged(caller, message)
    info = SVDInfo(
        method, E.passes - passes, r, 0, converged, None, None, partial.block_size, r, key, E.dtype, monitor.seconds,
        message, tuple(monitor.history),
    )  # fmt: skip
    F = partial.F if r == partial.F.shape[1] else E.xp.asarray(partial.F[:, :r], copy=True)
    return CholeskyResult(F, E.indices(partial.pivots), info, partial.left)


def factorised(E, k, rtol, atol, method, block_size, key, monitor, check, caller):
    """Eliminate pivots until there are `k`, or the trace of what is left is below its bound; return a `Partial`."""
    partial = Partial(E, k or E.n, START if k is None else k, rtol, atol, caller)
    if check and E.stored:
        _check_hermitian(E, partial.start, key, caller)
    step, draw = _one_pivot(method), _uniform_numbers(key)
    if method in ("accelerated", "block"):
        step = _accelerated if method == "accelerated" else _blockwise
        if block_size == "auto":
            block_size = START if k is None else max(10, -(-k // 10))
        partial.block_size = min(block_size, E.n)
    while partial.unfinished and not monitor.stopped:
        step(partial, draw)
        monitor(partial.left / partial.trace)
    return partial


class Partial:
    """A Cholesky factorisation under way: ``F F^H`` agrees with A in the columns of the pivots."""

    def __init__(self, entries, limit, capacity, rtol, atol, caller):
        self.entries, self.limit, self.caller = entries, limit, caller
        self.start = _checked_diagonal(entries, caller)  # of A
        self.rest = self.start.copy()  # diagonal of what is left of A
        self.trace = float(self.start.sum())
        self.goal = max(rtol * self.trace, atol)
        self.eps = eps_of(entries.xp, entries.dtype)
        self.floor = NEGLIGIBLE * self.eps * self.start
        self.rounding = np.zeros(entries.n)  # of `rest`
        self.pivots = []
        self.block_size = 1
        self.F = columns(entries.xp, entries.n, min(capacity, limit), dtype=entries.dtype, device=entries.device)

    @property
    def left(self):
        """Trace of what is left of A."""
        return float(self.rest.sum())

    @property
    def unfinished(self):
        return len(self.pivots) < self.limit and self.left > self.goal

    @property
    def room(self):
        return self.limit - len(self.pivots)

    def block(self, S):
        """Return what is left of rows and columns `S` of A, on the host."""
        E, S = self.entries, self.entries.indices(S)
        part = E.submatrix(S, S)
        check_finite(part, self.caller, "A")
        R = to_host(rows_at(self.F[:, : len(self.pivots)], S))
        return to_host(part) - R @ R.conj().T

    def eliminate(self, S, L=None):
        """Append the pivots `S`, with L the Cholesky factor of what is left of their block; none after the goal."""
        E, used = self.entries, len(self.pivots)
        G = E.columns(E.indices(S))
        check_finite(G, self.caller, "A")
        if used:
            R = rows_at(self.F[:, :used], E.indices(S))
            G = G - self.F[:, :used] @ adjoint(R)
        if L is None:  # one pivot
            pivot = float(to_host(G[int(S[0]), :]).real[0])
            if pivot <= 0:  # rounding
                self.rest[S] = 0.0
                return
            L = np.array([[math.sqrt(pivot)]])
        new = times_small(G, np.linalg.inv(L).conj().T)
        count = len(S)
        if self.goal > 0:
            left = self.left - np.cumsum(column_squares(new))
            count = min(int(np.sum(left > self.goal)) + 1, count)
            S, new = S[:count], new[:, :count]
        if used + count > self.F.shape[1]:
            self._grow(used + count)
        self.F[:, used : used + count] = new
        self._subtract(_row_squares(new), S, float(np.diagonal(L).real.min()) ** 2)

    def _subtract(self, squares, S, pivot):
        """Take the squared rows of the new columns, whose smallest pivot was `pivot`, from the diagonal."""
        rest = self.rest - squares
        # What is left of an entry g is right to some rounding; in |g|**2 / pivot this counts 2 |g| / pivot plus the
        # square of |g| / pivot times. It stays in all that is left, and small pivots lift it up to its root.
        ratio = squares / pivot
        self.rounding += self.eps * float(self.start.max()) * (2 * np.sqrt(ratio) + ratio)
        allowed = np.maximum(CLEARLY * self.rounding, math.sqrt(self.eps) * float(self.start.max()))
        worst = int(np.argmin(rest + allowed))
        if rest[worst] < -allowed[worst]:
            raise NotPositiveDefiniteError(
                f"{self.caller}: A must be positive semidefinite; after {len(self.pivots) + len(S)} pivots an entry of "
                f"the diagonal that is left is {rest[worst]:.3g}, with a trace of A of {self.trace:.3g}."
            )
        rest[rest <= self.floor] = 0.0
        rest[S] = 0.0
        self.rest = rest
        self.pivots.extend(int(s) for s in S)

    def _grow(self, least):
        E, used = self.entries, len(self.pivots)
        wider = columns(E.xp, E.n, min(max(2 * used, least), self.limit), dtype=E.dtype, device=E.device)
        wider[:, :used] = self.F[:, :used]
        self.F = wider


def _one_pivot(method):
    """Return the step that eliminates a single pivot."""

    def step(partial, draw):
        if method == "greedy":
            s = int(np.argmax(partial.rest))
        elif method == "simple":
            s = _propose(partial.rest, draw(1))[0]
        else:  # divided by the root of a far smaller pivot, the rounding of its column would spoil all that is left
            s = _propose(partial.rest > partial.eps**0.25 * partial.rest.max(), draw(1))[0]
        partial.eliminate(np.array([s]))

    return step


def _accelerated(partial, draw):
    """Propose a block of pivots from the present diagonal and eliminate those that rejection sampling accepts."""
    S = _propose(partial.rest, draw(partial.block_size))
    H = partial.block(S)
    accepted, L = _reject(H, S, draw(partial.block_size), partial.floor[S], partial.room)
    if accepted:
        partial.eliminate(S[accepted], L)
    else:  # the first is refused only where rounding has kept its entry above the floor
        partial.rest[S[0]] = 0.0


def _reject(H, S, draws, floor, room):
    """Accept each proposal with the part of its diagonal entry that the accepted ones before it have left.

    Return the accepted positions and their Cholesky factor.
    """
    proposed = np.diagonal(H).real.copy()
    H = H.copy()
    accepted, factor = [], []
    for j in range(len(S)):
        now = H[j, j].real
        # Of an index that was accepted before, only rounding is left.
        if now > floor[j] and draws[j] * proposed[j] < now and S[j] not in S[accepted]:
            column = H[:, j] / math.sqrt(now)
            H -= np.outer(column, column.conj())
            accepted.append(j)
            factor.append(column)
        if len(accepted) == room:
            break
    return accepted, np.tril(np.stack(factor, axis=1)[accepted]) if accepted else None


def _blockwise(partial, draw):
    """Propose a block of pivots and eliminate them, largest first, down to a small part of their trace."""
    S = np.unique(_propose(partial.rest, draw(partial.block_size)))
    H = partial.block(S)
    target, floor = np.trace(H).real / partial.block_size, partial.floor[S]
    chosen, factor = [], []
    while len(chosen) < min(len(S), partial.room):
        rest = np.diagonal(H).real.copy()
        rest[chosen] = 0.0
        j = int(np.argmax(rest - floor))
        if rest[j] <= floor[j] or (chosen and rest.sum() <= target):
            break
        column = H[:, j] / math.sqrt(rest[j])
        H = H - np.outer(column, column.conj())
        chosen.append(j)
        factor.append(column)
    if chosen:
        partial.eliminate(S[chosen], np.tril(np.stack(factor, axis=1)[chosen]))
    else:
        partial.rest[S] = 0.0


def _propose(weights, draws):
    """Return indices drawn with probabilities proportional to the weights."""
    total = np.cumsum(weights)
    last = int(np.searchsorted(total, total[-1]))  # the last index with a positive weight
    return np.minimum(np.searchsorted(total, draws * total[-1], side="right"), last)


def _uniform_numbers(key, stream=0):
    """Return a function that gives the next uniform numbers of a key and a stream."""
    numbers, row = np.empty(0), 0

    def draw(count):
        nonlocal numbers, row
        while len(numbers) < count:
            fresh = test_matrix("uniform", key, DRAWS, 1, stream=stream, row=row)[:, 0] / math.sqrt(12.0) + 0.5
            numbers, row = np.concatenate([numbers, fresh]), row + DRAWS
        taken, numbers = numbers[:count], numbers[count:]
        return taken

    return draw


def _row_squares(X):
    """Return the squared norms of the rows of a block, on the host in double precision."""
    if not is_numpy_array(X):
        return column_squares(X.T)
    wide = X.astype(np.result_type(X, np.float64), copy=False)
    return np.vecdot(wide, wide).real


def _check_options(E, k, rtol, method, block_size, check, caller):
    check_number(rtol, "rtol", caller)
    if k is not None:
        check_rank(k, E, caller)
    elif rtol == 0:
        raise ValueError(f"{caller}: one of k and rtol must be given; got none.")
    check_choice(method, "method", METHODS, caller)
    check_choice(check, "check", (True, False), caller)
    if block_size != "auto":
        check_count(block_size, "block_size", caller)


def _checked_diagonal(E, caller):
    """Return the diagonal on the host, without rounding below zero."""
    diag = E.diag
    if tuple(diag.shape) != (E.n,):
        raise ValueError(f"{caller}: diag must have shape {(E.n,)}; got {tuple(diag.shape)}.")
    check_finite(diag, caller, "A")
    diag, eps = to_host(diag), eps_of(E.xp, E.dtype)
    largest = float(np.abs(diag).max())
    if np.iscomplexobj(diag) and np.abs(diag.imag).max() > eps ** (1 / 3) * largest:
        raise ValueError(f"{caller}: A must be Hermitian; an entry of its diagonal is not real.")
    if diag.real.min() < -CLEARLY * eps * largest:
        raise NotPositiveDefiniteError(
            f"{caller}: A must be positive semidefinite; its diagonal has the entry {diag.real.min():.3g}."
        )
    return np.maximum(diag.real, 0.0)


def _check_hermitian(E, diag, key, caller):
    """Raise if entries in a few random rows and columns show that A is not Hermitian, or not semidefinite."""
    places = (_uniform_numbers(key, 1)(2 * PROBES) * E.n).astype(np.int64)
    S, T = np.minimum(places, E.n - 1).reshape(2, PROBES)
    entries, mirror = (to_host(E.submatrix(E.indices(rows), E.indices(cols))) for rows, cols in ((S, T), (T, S)))
    if not (np.isfinite(entries).all() and np.isfinite(mirror).all()):
        return  # the columns will be refused
    slack = eps_of(E.xp, E.dtype) ** (1 / 3)
    difference, size = np.abs(entries - mirror.conj().T).max(), np.abs(entries).max()
    if difference > slack * size:
        advice = " Pass check=False to use the columns as they are." if caller == "rnla.rpcholesky" else ""
        raise ValueError(
            f"{caller}: A must be Hermitian; entries of the size {size:.3g} differ from their mirror images by "
            f"{difference:.3g}.{advice}"
        )
    if (np.abs(entries) > (1 + slack) * np.outer(np.sqrt(diag[S]), np.sqrt(diag[T])) + slack * size).any():
        raise NotPositiveDefiniteError(
            f"{caller}: A must be positive semidefinite; an entry is larger than those of the diagonal in its row and "
            "column allow."
        )
