"""The nuclear norm with a penalty: singular values are thresholded, with momentum; the convex relative of `_irls`."""

from time import perf_counter

import numpy as np

from rnla._backend import from_host
from rnla._irls import Found, Point, Run, Step, conjugated
from rnla._progress import Monitor

BEYOND = 5  # triplets that are computed beyond those of the last matrix
STAGES, SHRINK = 30, 0.5  # thresholds from the largest singular value down, each half of the one before


def solve_nuclear(space, samples, rank, settings, key, caller, *, init=None, monitor=None):
    """Minimise ``||X||_* + ||P(X) - y||^2 / (2 lam)`` by accelerated proximal gradients.

    Parameters and result are those of `rnla._irls.solve`. Each step is one sampled product and the leading triplets of
    a matrix of low rank plus the residuals at the samples, from those of the step before [1]_.

    References
    ----------
    .. [1] Mazumder, Hastie, Tibshirani, J. Mach. Learn. Res. 11 (2010); momentum: Beck, Teboulle, SIAM J. Imaging
       Sci. 2 (2009), restarted by the function as in O'Donoghue, Candes, Found. Comput. Math. 15 (2015).
    """
    run = Run(space, samples, rank, settings, key, caller)
    monitor = Monitor(None, False, caller) if monitor is None else monitor
    xp, lam, start = run.xp, settings.lam, perf_counter()
    point = run.start(init)
    U, s, V = run.triplets(point, rank + 1, None)
    goals = [] if init is not None else [s[0] * SHRINK**i for i in range(1, STAGES) if s[0] * SHRINK**i > lam]
    old, momentum, steps = None, 1.0, []
    for _ in range(settings.max_iter):
        threshold = goals[0] if goals else lam
        U, s, V = _enough(run, point, U, s, V, threshold)
        kept = max(1, int(np.sum(s > threshold)))
        now = U[:, :kept] * from_host(np.maximum(s[:kept] - threshold, 0), xp, run.dtype, run.place), V[:, :kept]
        before = old
        change = 1.0 if before is None else run.change(_plain(run, now), _plain(run, before))
        steps.append(Step(threshold, kept, rank, 0, change, perf_counter() - start))
        if goals and change < 10 * settings.tol + 0.01:
            goals, momentum = goals[1:], 1.0
        elif not goals and change < settings.tol:
            return _found(run, now, steps, "converged")
        if monitor(change):
            return _found(run, now, steps, "stopped")
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        beta = 0.0 if before is None else (momentum - 1) / following
        if before is not None and len(steps) > 1 and change > steps[-2].change:
            following, beta = 1.0, 0.0  # momentum leads away: begin again
        momentum, old = following, now
        point = _extrapolated(run, now, before, beta)
        V = now[1] if V.shape[1] == kept else V
    return _found(run, now, steps, "max_iter")


def _enough(run, point, U, s, V, threshold):
    """Return leading triplets up to one below the threshold."""
    count = min(int(np.sum(s > threshold)) + BEYOND, run.max_rank)
    while True:
        U, s, V = run.triplets(point, count, V)
        if s[-1] <= threshold or len(s) < count or count >= run.max_rank:
            return U, s, V
        count = min(2 * count, run.max_rank)


def _plain(run, factors):
    L, R = factors
    return Point(L, R, run.xp.zeros_like(run.samples))


def _extrapolated(run, now, before, beta):
    """Return the matrix ``now + beta (now - before)`` with the samples put in."""
    (L, R), xp = now, run.xp
    if beta > 0:
        L, R = xp.concat([(1 + beta) * L, -beta * before[0]], axis=1), xp.concat([R, before[1]], axis=1)
    return Point(L, R, run.samples - run.space.sampled(L, conjugated(R)))


def _found(run, now, steps, status):
    """Return the triplets of a matrix whose left factor has the singular values in it."""
    s = np.sqrt(
        np.maximum(np.array([float(run.xp.sum(run.xp.abs(now[0][:, j]) ** 2)) for j in range(now[0].shape[1])]), 0)
    )
    safe = from_host(np.where(s > 0, 1 / np.where(s > 0, s, 1), 0.0), run.xp, run.dtype, run.place)
    return Found(now[0] * safe, s, now[1], _plain(run, now), steps, status)
