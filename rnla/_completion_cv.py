"""rnla.complete_cv: rank and regularisation by the error at entries that were held out."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rnla._backend import key_from_rng
from rnla._completion import Problem, centred_entries, check, completed
from rnla._completion_noise import estimated_noise, penalty
from rnla._completion_result import CompletionResult
from rnla._irls import Settings, oversampling
from rnla._observed import observed
from rnla._progress import Monitor
from rnla._rangefinder import check_count, check_number

SURE = 1.6  # entries over degrees of freedom from which an estimate of the noise is taken anew
LINEAR_TOL, LINEAR_ITERATIONS = 1e-3, 300  # where convergence is linear


class Score(NamedTuple):
    """The error of one choice."""

    k: int
    p: float
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
    p : float
        Its quasi-norm.
    reg_factor : float
        Its factor of the noise rule.
    rmse : float
        Root mean square error at the entries held out.
    scores : tuple of Score
        ``(k, p, reg_factor, rmse, deviation, reg)`` of all choices, in the order in which they were tried.

    Examples
    --------
    >>> problem = rnla.datasets.completion_problem((60, 50), 2, oversampling=6.0, noise=0.01, rng=0)
    >>> found = rnla.complete_cv((problem.rows, problem.cols, problem.values), (1, 2, 4), shape=(60, 50), rng=0)
    >>> found.k >= 2, len(found.scores)
    (True, 16)
    """

    best: CompletionResult
    k: int
    p: float
    reg_factor: float
    rmse: float
    scores: tuple

    def __repr__(self):
        return (
            f"CompletionCVResult(k={self.k}, p={self.p:g}, reg_factor={self.reg_factor:g}, rmse={self.rmse:.4g} of "
            f"{len(self.scores)} choices)"
        )


def complete_cv(A, ks, *, reg_factors=(0.1, 0.3, 1.0, 2.0), p=(0.0, 1.0), holdout=0.1, n_splits=1, mask=None,
                shape=None, center=None, tol=1e-4, max_iter=100, rng=None, callback=None, progress=False,
                **options):  # fmt: skip
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
    p : float or sequence of float
        Quasi-norms to try: 0, for matrices that are close to one of low rank, with each of `ks`; others, of which 1,
        the nuclear norm, is best for spectra that fall slowly, with the largest of `ks` as a bound.
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
        Others of `complete`: ``cg_tol, cg_max_iter, preconditioner, continuation, max_rank``.

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
    >>> table = np.add.outer(np.arange(20.0), np.arange(15.0))
    >>> table[2, 3] = table[6, 1] = np.nan
    >>> found = rnla.complete_cv(table, (1, 2), rng=0)
    >>> found.k, np.round(found.best.entries([2, 6], [3, 1]), 3).tolist()
    (2, [5.0, 7.0])
    """
    caller = "rnla.complete_cv"
    entries = observed(A, caller, mask=mask, shape=shape)
    ks, factors = _checked(ks, reg_factors, holdout, n_splits, entries, caller)
    unknown = set(options) - {"cg_tol", "cg_max_iter", "preconditioner", "continuation", "max_rank"}
    if unknown:
        raise TypeError(f"{caller}: unexpected option {sorted(unknown)[0]!r}.")
    norms = [float(x) for x in (p if np.ndim(p) else (p,))]
    settings = Settings(tol=tol, max_iter=max_iter, **options)
    for k in ks:
        for norm in norms:
            check(entries, k, settings._replace(p=norm), 0.0, None, center, caller)
    key = key_from_rng(rng, caller)
    draw = np.random.default_rng(key)
    monitor = Monitor(callback, progress, caller)
    choices: dict = {}
    try:
        for _ in range(n_splits):
            held = np.zeros(entries.count, bool)
            held[draw.permutation(entries.count)[: max(1, round(holdout * entries.count))]] = True
            for choice, error, reg, noise in _errors(entries, held, ks, norms, factors, settings, center, key, caller):
                choices.setdefault(choice, []).append((error, reg, noise))
                if monitor(error):
                    break
            if monitor.stopped:
                break
    finally:
        monitor.close()
    scores = tuple(_score(choice, np.array(found)) for choice, found in choices.items())
    best = min(scores, key=lambda score: score.rmse)
    # The rule grows with the root of the number of entries, of which now there are more.
    reg = best.reg * (1 - holdout) ** (best.p / 2 - 1)
    noise = float(np.mean([noise for _, _, noise in choices[best[:3]]]))
    fitted = completed(
        entries, best.k, _settings_for(settings, best.p), key, caller, Monitor(None, False, caller), noise_std=noise,
        reg=reg, center=center,
    )  # fmt: skip
    return CompletionCVResult(fitted, best.k, best.p, best.reg_factor, best.rmse, scores)


def _score(choice, found):
    """Return the `Score` of a choice from error, lam and noise of each split."""
    k, p, factor = choice
    return Score(k, p, factor, float(found[:, 0].mean()), float(found[:, 0].std()), float(found[:, 1].mean()))


def _errors(entries, held, ks, norms, factors, settings, center, key, caller):
    """Yield ``(k, p, factor)``, the error at the entries held out, lam and the noise, for every choice."""
    kept, rest = entries.some(~held), entries.some(held)
    centre, plain = centred_entries(kept, center, caller)
    xp = plain.xp
    scale = float(xp.max(xp.abs(plain.values))) or 1.0

    def problem_of(norm):
        quiet = Monitor(None, False, caller)
        return Problem(plain, scale, _settings_for(settings, norm), key, caller, quiet, None)

    def judged(problem, found, k, lam, tau):
        result = problem.judged(kept, centre, found, k, lam, tau, False, quiet=True)
        difference = rest.values - result.entries(rest.rows, rest.cols)
        return float(xp.linalg.vector_norm(difference)) / rest.count**0.5, result.reg, result.noise_std

    best = np.inf, 0.0
    base = problem_of(0.0)
    tau = 0.0
    for k in sorted(ks):
        if not (tau and oversampling(base.space, k) < SURE):  # else a fit of this rank would follow the noise itself
            found, tau = estimated_noise(base, k)
        for factor in factors if tau else (0.0,):
            lam = penalty(base.space, tau, factor, 0.0)
            error, reg, noise = judged(base, base.run(k, lam=lam) if tau else found, k, lam, tau)
            best = min(best, (error, tau))
            if 0.0 in norms:
                yield (k, 0.0, factor), error, reg, noise
    for norm in norms:
        if norm == 0 or best[1] == 0:
            continue
        problem, start = problem_of(norm), None
        for factor in sorted(factors, reverse=True):  # from few directions to many, each from the last
            lam = penalty(problem.space, best[1], factor, norm)
            found = problem.run(max(ks), lam=lam, init=start)
            start = (found.U, found.s, found.V) if found.s[0] > 0 else None
            yield (max(ks), norm, factor), *judged(problem, found, max(ks), lam, best[1])


def _settings_for(settings, norm):
    """Return the settings for a quasi-norm: others than 0 converge linearly, to the few digits that matter here."""
    if norm == 0:
        return settings._replace(p=norm)
    return settings._replace(
        p=norm, tol=max(settings.tol, LINEAR_TOL), max_iter=max(settings.max_iter, LINEAR_ITERATIONS)
    )


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
