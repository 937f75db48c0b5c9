"""Noise in the entries: how large a penalty it needs, and how to find its size."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import from_host, real_dtype
from rnla._irls import conjugated

SETTLED = 1e-3  # relative change at which an iteration is judged
LOOK_AHEAD = 8  # iterations in which the smoothing of exact entries falls ...
FALLS = 100.0  # ... by more than this
LATE = 60  # iterations without settling that exact entries do not need
LEAST_FREE = 0.1  # share of the entries that are left to estimate the noise, at least


def penalty(space, tau, factor, p):
    """Return lam for noise of standard deviation tau: ``factor * (tau * spectral norm of unit noise)^(2 - p)``.

    At p = 0 directions of noise are penalised away and those of the signal hardly changed; at p = 1 it is the usual
    threshold of the nuclear norm.
    """
    if tau == 0:
        return 0.0
    m, n = space.shape
    count = space.count * float(np.mean(space.mult)) if space.structured else space.count
    return factor * (tau * (np.sqrt(count / m) + np.sqrt(count / n))) ** (2 - p)


class NoiseWatch:
    """Say of an iteration without penalty when it is clear that the entries are noisy."""

    def __init__(self, rank):
        self.rank, self.exact = rank, False

    def __call__(self, steps):
        """Return True as soon as they are."""
        if self.exact:
            return False
        first = next((i for i, step in enumerate(steps) if step.change < SETTLED and step.goal == self.rank), None)
        if first is None:
            return len(steps) > LATE
        if steps[-1].eps * FALLS < steps[first].eps:
            self.exact = True
            return False
        return len(steps) >= first + 1 + LOOK_AHEAD or first > LATE


def estimated_noise(problem, rank):
    """Run without penalty; return what was found and the noise in the scaled entries, 0 if they are exact."""
    watch = NoiseWatch(rank)
    found = problem.run(rank, until=watch)
    if found.status in ("converged", "stopped") or watch.exact:
        return found, 0.0
    return found, noise_of(problem, found, rank)


def noise_of(problem, found, rank):
    """Return the standard deviation of what the leading triplets leave of the entries."""
    space, samples = problem.space, problem.samples
    xp = array_namespace(samples)
    L = found.U[:, :rank] * from_host(found.s[:rank], xp, samples.dtype, device(samples))
    rest = samples - space.sampled(L, conjugated(found.V[:, :rank]))
    if space.structured:  # samples are scaled by the root of how often they stand in the lifted matrix
        rest = rest * xp.astype(space.multiplicity**-0.5, real_dtype(xp, rest.dtype))
    free = space.count - min(space.degrees(rank), (1 - LEAST_FREE) * space.count)
    return float(xp.linalg.vector_norm(rest)) / free**0.5
