"""rnla.complete: a matrix of low rank from some of its entries, by iteratively reweighted least squares.

The data's way: entries of any form -> sorted positions and values, centred and scaled -> the iteration of `_irls`, once
where the rank and the noise are known, else for several ranks (`_completion_rank`) or twice (`_completion_noise`) -> a
result with factors in the units of the data.
"""

import math
import numbers

import numpy as np
from array_api_compat import device

from rnla._backend import adjoint, key_from_rng, to_host
from rnla._completion_noise import estimated_noise, noise_of, penalty
from rnla._completion_rank import explains, searched_rank
from rnla._completion_result import Centre, result_of
from rnla._entry_space import EntrySpace
from rnla._errors import AccuracyWarning
from rnla._irls import Found, Settings, oversampling, solve
from rnla._observed import centred, centres, observed, warn_of_sparse_lines
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, warn, warn_not_converged
from rnla._soft_impute import solve_nuclear
from rnla._svd import svd

KNOWN_RANK, UPPER_BOUND = 0.3, 1.0  # factors of the noise rule
REFINEMENTS = 4  # of an estimate of the noise, where the rank is not known
ACTIVE_SHARE = 0.1  # singular values below this times the smallest that a penalty leaves alone are penalised away
PRECONDITIONERS = ("auto", "none", "scalar", "block")


def complete(A, k=None, *, mask=None, shape=None, p=0.0, noise_std=0.0, reg=None, center=None, tol=1e-9, max_iter=400,
             cg_tol=1e-2, cg_max_iter=300, preconditioner="auto", continuation="auto", max_rank=None, init=None,
             rng=None, callback=None, progress=False):  # fmt: skip
    """Complete a matrix of low rank of which some entries are known.

    Exact entries are interpolated, and matrices with condition numbers up to 1e10 recovered from little more of them
    than they have degrees of freedom; with noise, or a regularisation, they are fitted. Nothing of the size of the
    matrix is formed.

    Parameters
    ----------
    A : array, masked array, sparse matrix, dask array or tuple, shape (m, n)
        What is known: a dense array with NaN where entries are missing; a dense array and `mask`; a NumPy masked array;
        a sparse matrix, whose stored entries are observed, zeros among them; or ``(rows, cols, values)`` with `shape`.
        Arrays of NumPy, CuPy or torch stay where they are.
    k : int, optional
        Rank, ``1 <= k <= min(m, n)``; an upper bound does little harm, too small a rank ruins the result. By default
        it is looked for.
    mask : array of bool, optional, shape (m, n)
        True where a dense `A` is observed.
    shape : tuple of int, optional
        Rows and columns, if `A` is ``(rows, cols, values)``.
    p : float
        Quasi-norm that is minimised, in [0, 1]: 0 is the logarithm of the determinant, 1 the nuclear norm.
    noise_std : float or "auto"
        Standard deviation of the noise in an entry; ``"auto"`` estimates it in a first run.
    reg : float, optional
        Regularisation lam instead, of ``||P(X) - y||^2 / (2 lam)``; 0 interpolates.
    center : {None, "mean", "columns", "rows", "both"}
        What is subtracted first and added to the result: the mean of the observed entries, or those of each line.
    tol : float
        Relative change of the matrix at which the iteration ends.
    max_iter : int
        Most least-squares problems.
    cg_tol, cg_max_iter : float, int
        Largest relative tolerance and most steps of conjugate gradients for one of them; they do not limit the
        accuracy of the result.
    preconditioner : {"auto", "none", "scalar", "block"}
        Of the conjugate gradients; ``block`` is better and dearer, and chosen where there are few samples.
    continuation : bool or "auto"
        Let the smoothing follow rank 1 first, then 2, and so on: recovers more matrices from few samples.
    max_rank : int, optional
        Most singular values that an iteration follows; ``max(2 k, k + 10)`` by default.
    init : CompletionResult or tuple of U, s, Vh, optional
        Where to start; it must not be centred otherwise than this call.
    rng : None, int or numpy.random.Generator
        Source of the starting vectors of the first singular value decomposition.
    callback : callable, optional
        Called with ``(iteration, error, seconds)`` after each problem, the error being the relative change;
        StopIteration ends the run.
    progress : bool
        Show a bar.

    Returns
    -------
    CompletionResult
        ``U, s, Vh``, values of any entry, completions of new rows, and how far to trust them.

    Raises
    ------
    ValueError
        If an argument is out of range; if there are no entries, one is given twice, out of range, NaN or infinite.
    TypeError
        If `A` or an argument is of another kind.

    Warns
    -----
    ConvergenceWarning
        If the iteration did not converge; the message names the likely cause.
    AccuracyWarning
        If rows or columns have fewer than `k` entries, or `k` has more degrees of freedom than there are entries.

    Notes
    -----
    Every iteration solves a weighted least-squares problem in the tangent space of matrices of the active rank r, whose
    condition does not depend on that of the matrix [1]_, and takes singular vectors of a matrix kept as low rank plus
    sparse: ``O(N r + (m + n) r^2)`` for each of some ten to a hundred products, ``O(N + (m + n) r)`` memory, for N
    entries. Preconditioners, inexact solves, warm-started vectors, the noise rule, the search of the rank and the
    continuation are our own. With fewer than about 1.5 times as many entries as degrees of freedom no method is
    reliable. With exact entries and ``p = 0`` convergence is quadratic.

    References
    ----------
    .. [1] Kuemmerle, Mayrink Verdun, ICML 2021, arXiv 2106.02119 (MatrixIRLS).
    .. [2] Kuemmerle, Sigl, J. Mach. Learn. Res. 19 (2018), arXiv 1703.05038 (two-sided weights).

    Examples
    --------
    >>> A = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 7.0))
    >>> truth = A[0, 3]
    >>> A[0, 3] = A[5, 1] = A[7, 5] = np.nan
    >>> result = rnla.complete(A, 1)
    >>> np.round(result.entries([0, 5, 7], [3, 1, 5]), 6).tolist()
    [4.0, 12.0, 48.0]
    """
    caller = "rnla.complete"
    entries = observed(A, caller, mask=mask, shape=shape)
    settings = Settings(
        float(p) if isinstance(p, numbers.Real) else p, 0.0, tol, max_iter, cg_tol, cg_max_iter, preconditioner,
        continuation, max_rank,
    )  # fmt: skip
    check(entries, k, settings, noise_std, reg, center, caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller)
    try:
        return completed(
            entries, k, settings, key, caller, monitor, noise_std=noise_std, reg=reg, center=center, init=init
        )
    finally:
        monitor.close()


def completed(entries, k, settings, key, caller, monitor, *, noise_std=0.0, reg=None, factor=None, center=None,
              init=None):  # fmt: skip
    """Complete checked `Observed` entries; `factor` is that of the noise rule."""
    centre, plain = centred_entries(entries, center, caller)
    xp = plain.xp
    scale = float(xp.max(xp.abs(plain.values)))
    if scale == 0:
        return _zero(entries, centre)
    if plain.count == math.prod(plain.shape) and k is not None and reg is None and noise_std == 0:
        return _complete_already(entries, plain, centre, k, key)
    problem = Problem(plain, scale, settings, key, caller, monitor, init)
    exact = reg in (None, 0) and noise_std in (0, "auto")
    if k is not None and exact:
        _warn_of_rank(plain, k, caller)
    warn_of_sparse_lines(plain, k if k is not None and exact else 1, caller)
    return problem.result(entries, centre, k, noise_std, reg, factor)


def centred_entries(entries, kind, caller):
    """Return the `Centre`, or None, and the entries without it."""
    if kind is None:
        return None, entries
    centre = Centre(kind, *centres(entries, kind, caller))
    return centre, centred(entries, centre.rows, centre.cols)


class Problem:
    """Scaled entries and how to iterate on them."""

    def __init__(self, plain, scale, settings, key, caller, monitor, init):
        self.plain, self.scale, self.settings, self.key, self.caller = plain, scale, settings, key, caller
        self.space = EntrySpace(plain.rows, plain.cols, plain.shape)
        self.samples = plain.values / scale
        self.monitor, self.init = monitor, init

    def run(self, rank, *, lam=0.0, until=None, init=None, **changed):
        """Iterate at one rank."""
        settings = self.settings._replace(lam=lam, **changed)
        if settings.p == 1 and lam > 0:  # convex: the weights would lead to the same matrix in more time
            return solve_nuclear(
                self.space, self.samples, rank, settings, self.key, self.caller, init=init, monitor=self.monitor
            )
        return solve(
            self.space, self.samples, rank, settings, self.key, self.caller, init=init, monitor=self.monitor,
            until=until,
        )  # fmt: skip

    def result(self, entries, centre, k, noise_std, reg, factor):
        """Choose rank and penalty, iterate, and say what came of it."""
        searched = k is None
        lam, tau, found = None, 0.0, None
        power = 2 - self.settings.p
        if reg is not None:
            lam = float(reg) / self.scale**power
        if noise_std != "auto":
            tau = noise_std / self.scale
        start = self._start(k)
        if searched and (reg is not None or tau):
            k = largest_rank(self.space)
        elif searched:
            k, found, tau = searched_rank(self, largest_rank(self.space))
        elif reg is None and noise_std == "auto":
            found, tau = estimated_noise(self, k)
        if lam is None:
            rule = factor or (UPPER_BOUND if searched else KNOWN_RANK)
            lam = penalty(self.space, tau, rule, self.settings.p)
        if found is None or (lam > 0 and tau > 0):
            found = self.run(k, lam=lam, init=start)
            if searched and reg is None and noise_std in (0, "auto"):
                found, lam, tau = self._refined(found, k, lam, tau, rule)
        return self.judged(entries, centre, found, k, lam, tau, searched)

    def _refined(self, found, k, lam, tau, rule):
        """Estimate the noise again from a fit that a penalty has freed of most of it, until that changes little."""
        for _ in range(REFINEMENTS):
            if self.monitor.stopped:
                break
            before, tau = tau, noise_of(self, found, self._rank(found, k, lam))
            lam = penalty(self.space, tau, rule, self.settings.p)
            found = self.run(k, lam=lam, init=(found.U, found.s, found.V))
            if abs(tau - before) < 0.1 * tau:
                break
        return found, lam, tau

    def _rank(self, found, k, lam):
        """Return how many singular values a penalty has left."""
        rank = min(k, len(found.s))
        if lam > 0:
            least = ACTIVE_SHARE * (lam / self.space.density) ** (1 / (2 - self.settings.p))
            rank = max(1, int(np.sum(found.s[:rank] > least)))
        return rank

    def _start(self, k):
        if self.init is None:
            return None
        U, s, Vh = (self.init.U, self.init.s, self.init.Vh) if hasattr(self.init, "s") else self.init
        m, n = self.space.shape
        if U.shape[0] != m or Vh.shape[1] != n or not U.shape[1] == s.shape[0] == Vh.shape[0]:
            raise ValueError(
                f"{self.caller}: init must have factors of a matrix of shape {(m, n)}; got shapes {tuple(U.shape)}, "
                f"{tuple(s.shape)}, {tuple(Vh.shape)}."
            )
        return U, to_host(s).real / self.scale, adjoint(Vh)

    def judged(self, entries, centre, found, k, lam, tau, searched, *, quiet=False):
        """Return the result, with what is to be thought of it."""
        ratio = oversampling(self.space, k)
        rank = self._rank(found, k, lam)
        converged = found.status == "converged"
        message = failure(found, lam, ratio, "entries")
        if searched and converged and lam == 0 and not explains(self, found):
            converged, message = False, f"no rank explains the entries; oversampling {ratio:.2f} at rank {k}"
        if not (converged or quiet or found.status == "stopped"):
            warn_not_converged(self.caller, message)
        power = 2 - self.settings.p
        return result_of(
            entries, centre, found, rank, self.scale, converged=converged, message=message,
            reg=lam * self.scale**power, noise_std=tau * self.scale, ratio=ratio,
        )  # fmt: skip


def largest_rank(space):
    """Return the largest rank, up to 25, that leaves a tenth more entries than degrees of freedom; at least 1."""
    rank = 1
    while rank < min(25, *space.shape) and 1.1 * (rank + 1) * (sum(space.shape) - rank - 1) <= space.count:
        rank += 1
    return rank


def failure(found, lam, ratio, what):
    """Return why an iteration ended, in words."""
    if found.status == "converged":
        return "converged"
    if found.status == "stopped":
        return "stopped by the callback"
    last = found.steps[-1]
    if lam == 0 and last.eps > 1e-8 * found.s[0]:
        return (
            f"the smoothing stays at {last.eps / found.s[0]:.1e} of the largest singular value after "
            f"{len(found.steps)} iterations: too few {what} (oversampling {ratio:.2f}), a wrong rank, or "
            "noise, for which give noise_std"
        )
    return f"max_iter = {len(found.steps)} reached with relative change {last.change:.1e}; oversampling {ratio:.2f}"


def _zero(entries, centre):
    xp, where, (m, n) = entries.xp, device(entries.values), entries.shape
    U, V = (xp.zeros((side, 0), dtype=entries.values.dtype, device=where) for side in (m, n))
    found = Found(U, np.zeros(0), V, None, [], "converged")
    return result_of(
        entries, centre, found, 0, 1.0, converged=True, message="the entries are zero", reg=0.0, noise_std=0.0,
        ratio=math.inf,
    )  # fmt: skip


def _complete_already(entries, plain, centre, k, key):
    """Return the truncated singular value decomposition of a matrix without missing entries."""
    U, S, Vh = svd(plain.xp.reshape(plain.values, plain.shape), k, tol=1e-10, rng=key)
    found = Found(U, to_host(S).real, adjoint(Vh), None, [], "converged")
    return result_of(
        entries, centre, found, k, 1.0, converged=True, message="all entries are known: a truncated SVD", reg=0.0,
        noise_std=0.0, ratio=plain.count / (k * (sum(plain.shape) - k)),
    )  # fmt: skip


def _warn_of_rank(plain, k, caller):
    degrees = k * (sum(plain.shape) - k)
    if degrees > plain.count:
        warn(
            f"{caller}: k = {k} has {degrees} degrees of freedom, more than the {plain.count} entries: a smaller k is "
            "needed.", AccuracyWarning,
        )  # fmt: skip


def check(entries, k, settings, noise_std, reg, center, caller):
    """Raise for arguments that are out of range."""
    if k is not None:
        check_count(k, "k", caller)
        if k > min(entries.shape):
            raise ValueError(f"{caller}: k must be in 1..{min(entries.shape)} for shape {entries.shape}; got {k}.")
    for name in ("p", "tol", "cg_tol"):
        check_number(getattr(settings, name), name, caller)
    if not settings.p <= 1:
        raise ValueError(f"{caller}: p must be in [0, 1]; got {settings.p}.")
    for name in ("max_iter", "cg_max_iter"):
        check_count(getattr(settings, name), name, caller)
    if settings.max_rank is not None:
        check_count(settings.max_rank, "max_rank", caller, least=k or 1)
    if noise_std != "auto":
        check_number(noise_std, "noise_std", caller)
    if reg is not None:
        check_number(reg, "reg", caller)
        if noise_std != 0:
            raise ValueError(f"{caller}: noise_std must be 0 where reg is given, which replaces it; got {noise_std}.")
    check_choice(center, "center", (None, "mean", "columns", "rows", "both"), caller)
    check_choice(settings.preconditioner, "preconditioner", PRECONDITIONERS, caller)
    check_choice(settings.continuation, "continuation", (True, False, "auto"), caller)
