"""rnla.complete_cv: rank and regularisation by the error at entries that were held out."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rnla._backend import key_from_rng
from rnla._completion import Problem, centred_entries, check, completed
from rnla._completion_noise import estimated_noise, penalty
from rnla._completion_result import CompletionResult
from rnla._irls import Settings
from rnla._observed import observed
from rnla._progress import Monitor
from rnla._rangefinder import check_count, check_number


class Score(NamedTuple):
    """The error of one choice."""

    k: int
    reg_factor: float  # of the noise rule; 0 where exact entries were interpolated
    rmse: float  # at the entries held out, mean over the splits
    deviation: float  # of it over the splits
    reg: float  # mean over the splits


@dataclass(frozen=True, eq=False, repr=False)
class CompletionCVResult:
    """The best of some completions by held-out error.

    Attributes
    ----------
    best : CompletionResult
        Fitted to all entries with the best choice.
    k : int
        Its rank before penalised directions are left out.
    reg_factor : float
        Its factor of the noise rule.
    rmse : float
        Root mean square error at the entries held out.
    scores : tuple of Score
        ``(k, reg_factor, rmse, deviation, reg)`` of all choices, in the order in which they were tried.

    Examples
    --------
    >>> problem = rnla.datasets.completion_problem((60, 50), 2, oversampling=6.0, noise=0.01, rng=0)
    >>> found = rnla.complete_cv((problem.rows, problem.cols, problem.values), (1, 2, 4), shape=(60, 50), rng=0)
    >>> found.k >= 2, len(found.scores)
    (True, 12)
    """

    best: CompletionResult
    k: int
    reg_factor: float
    rmse: float
    scores: tuple

    def __repr__(self):
        return (
            f"CompletionCVResult(k={self.k}, reg_factor={self.reg_factor:g}, rmse={self.rmse:.4g} of "
            f"{len(self.scores)} choices)"
        )


def complete_cv(A, ks, *, reg_factors=(0.1, 0.3, 1.0, 2.0), holdout=0.1, n_splits=1, mask=None, shape=None, center=None,
                tol=1e-4, max_iter=100, rng=None, callback=None, progress=False, **options):  # fmt: skip
    """Complete a matrix with the rank and the regularisation that predict held-out entries best.

    Parameters
    ----------
    A : any form of matrix that `complete` takes, shape (m, n)
        What is known.
    ks : sequence of int
        Ranks to try.
    reg_factors : sequence of float
        Factors of the noise rule to try: lam is such a factor times the square of the spectral norm of noise of the
        estimated size.
    holdout : float
        Share of the entries that are held out, in (0, 1).
    n_splits : int
        Number of different draws of them.
    mask, shape, center
        As for `complete`.
    tol, max_iter : float, int
        Of every fit; errors of prediction need less than exact recovery.
    rng : None, int or numpy.random.Generator
        Source of the splits and of starting vectors.
    callback : callable, optional
        Called with ``(iteration, error, seconds)`` after each fit, the error being that at the entries held out;
        StopIteration ends the search with what was tried.
    progress : bool
        Show a bar.
    **options
        Others of `complete`: ``p, cg_tol, cg_max_iter, preconditioner, continuation, max_rank``.

    Returns
    -------
    CompletionCVResult
        ``best``, ``k``, ``reg_factor``, ``rmse`` and ``scores``.

    Raises
    ------
    ValueError
        If an argument is out of range; see also `complete`.
    TypeError
        If an option is unknown.

    Notes
    -----
    For each split and rank one run without penalty, which estimates the noise, and one for each factor, started from
    the last; then one fit to all entries.

    Examples
    --------
    >>> table = np.add.outer(np.arange(8.0), np.arange(6.0) ** 2)
    >>> table[2, 3] = table[6, 1] = np.nan
    >>> found = rnla.complete_cv(table, (1, 2), holdout=0.2, rng=0)
    >>> found.k, bool(abs(found.best.entries([2], [3])[0] - 11.0) < 1e-3)
    (2, True)
    """
    caller = "rnla.complete_cv"
    entries = observed(A, caller, mask=mask, shape=shape)
    ks, factors = _checked(ks, reg_factors, holdout, n_splits, entries, caller)
    unknown = set(options) - {"p", "cg_tol", "cg_max_iter", "preconditioner", "continuation", "max_rank"}
    if unknown:
        raise TypeError(f"{caller}: unexpected option {sorted(unknown)[0]!r}.")
    settings = Settings(tol=tol, max_iter=max_iter, **options)
    for k in ks:
        check(entries, k, settings, 0.0, None, center, caller)
    key = key_from_rng(rng, caller)
    draw = np.random.default_rng(key)
    monitor = Monitor(callback, progress, caller)
    choices = {}
    try:
        for _ in range(n_splits):
            held = np.zeros(entries.count, bool)
            held[draw.permutation(entries.count)[: max(1, round(holdout * entries.count))]] = True
            for k in ks:
                for factor, reg, error in _errors(entries, held, k, factors, settings, center, key, caller):
                    choices.setdefault((k, factor), []).append((error, reg))
                    monitor(error)
                if monitor.stopped:
                    break
            if monitor.stopped:
                break
    finally:
        monitor.close()
    scores = tuple(
        Score(k, factor, *(float(f([e for e, _ in found])) for f in (np.mean, np.std)),
              float(np.mean([reg for _, reg in found])))
        for (k, factor), found in choices.items()
    )  # fmt: skip
    best = min(scores, key=lambda score: score.rmse)
    quiet = Monitor(None, False, caller)
    fitted = completed(
        entries, best.k, settings, key, caller, quiet, noise_std="auto", factor=best.reg_factor or None, center=center
    )
    return CompletionCVResult(fitted, best.k, best.reg_factor, best.rmse, scores)


def _errors(entries, held, k, factors, settings, center, key, caller):
    """Yield factor, lam and the error at the entries held out, for one rank."""
    kept, rest = entries.some(~held), entries.some(held)
    centre, plain = centred_entries(kept, center, caller)
    xp = plain.xp
    scale = float(xp.max(xp.abs(plain.values))) or 1.0
    problem = Problem(plain, scale, settings, key, caller, Monitor(None, False, caller), None)
    found, tau = estimated_noise(problem, k)
    for factor in factors if tau else (0.0,):
        lam = penalty(problem.space, tau, factor, settings.p)
        if tau:
            found = problem.run(k, lam=lam)
        result = problem.judged(kept, centre, found, k, lam, tau, False, quiet=True)
        difference = rest.values - result.entries(rest.rows, rest.cols)
        rmse = float(xp.linalg.vector_norm(difference)) / rest.count**0.5
        yield factor, result.reg, rmse


def _checked(ks, factors, holdout, n_splits, entries, caller):
    ks = [ks] if isinstance(ks, (int, np.integer)) else list(ks)
    if not ks:
        raise ValueError(f"{caller}: ks must hold at least one rank; got none.")
    factors = [float(f) for f in factors]
    if not factors or not all(f > 0 for f in factors):
        raise ValueError(f"{caller}: reg_factors must be positive numbers; got {factors}.")
    check_number(holdout, "holdout", caller)
    if not 0 < holdout < 1 or entries.count < 2:
        raise ValueError(f"{caller}: holdout must be in (0, 1), of at least two entries; got {holdout}.")
    check_count(n_splits, "n_splits", caller)
    return ks, factors
