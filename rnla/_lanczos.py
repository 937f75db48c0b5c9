"""Block Lanczos iterations for extreme eigenpairs of Hermitian matrices, with thick restart, and to a precision."""

import math
from typing import Any, NamedTuple

import numpy as np

from rnla._backend import eps_of
from rnla._hermitian_basis import NOISE, PROBE_PASSES
from rnla._rangefinder import TRUSTED
from rnla._sketch import test_matrix
from rnla._tall import column_squares

SAMPLES = 16  # random vectors that measure an error which differences of squares cannot resolve
STREAM_SAMPLES = 3


class Found(NamedTuple):
    """Approximate eigenpairs of a Hermitian matrix, and how the iteration that found them ended."""

    values: np.ndarray  # (k,) on the host
    V: Any  # (n, k)
    residuals: np.ndarray | None  # (k,)
    converged: bool
    restarts: int
    block: int
    message: str = ""


def lanczos(basis, k, *, which, tol, block, extra, max_basis, budget, verify, monitor):
    """Find extreme eigenpairs of a Hermitian matrix in a block Krylov space.

    Each step reads A once. Memory: `max_basis` columns and a block.

    Parameters
    ----------
    basis : HermitianBasis
        What is known at the start: empty, or columns to go on from.
    k : int
        Number of pairs.
    which : {"LM", "LA", "SA", "BE"}
        Which pairs; see `leading`.
    tol : float
        Relative to each eigenvalue: bound on the residuals.
    block, extra : int
        Columns multiplied at a time; Ritz vectors kept beyond `k`.
    max_basis : int
        Bound on the columns of the basis.
    budget : int or float
        Number of reads of A, of those counted by the matrix, after which to end.
    verify : bool
        Look for copies of repeated eigenvalues that a narrow block cannot see.
    monitor : Monitor
        Told of every block.

    Returns
    -------
    Found
        With exactly `k` pairs.

    References
    ----------
    .. [1] Wu, Simon, SIAM J. Matrix Anal. Appl. 22 (2000) (thick restart).
    .. [2] Stewart, SIAM J. Matrix Anal. Appl. 23 (2001) (Krylov-Schur form).
    """
    counter, n, restarts, width = basis.H.counter, basis.H.shape[0], 0, block
    # Every step adds a block: enough of them must fit into the budget to hold k pairs.
    width = max(width, -(-(k - basis.multiplied) // max(budget - counter.passes, 1)) if math.isfinite(budget) else 0)
    while True:
        basis.fill(width)
        basis.expand()
        pairs, full = basis.ritz(which), basis.multiplied == n
        error, done = _progress(pairs, k, tol, basis.noise)
        done = done or full
        stopped = monitor(error) and basis.multiplied >= k
        spent = counter.passes + 1 > budget
        unverified = False
        if done and verify and not (full or stopped):
            # Nothing is claimed that was to be verified and could not be.
            unverified = counter.passes + PROBE_PASSES > budget
            done = not unverified
            spent = spent or unverified
            if done:
                basis.probe()
                seen = basis.ritz(which)
                if _outdone(pairs, seen, k, which, basis, tol):
                    # The block is narrower than some multiplicity: go on with a wider one, from what was found.
                    basis.restart(seen, len(seen.values))
                    pairs, done, spent = basis.ritz(which), basis.multiplied == n, counter.passes + 1 > budget
                    width = max(width, min(4 * width, max_basis - k))
        if done or stopped or spent:
            break
        count, wait = len(pairs.values), basis.waiting
        if count + wait > max_basis and count > k:
            keep = min(count, max(k, min(max_basis - wait, k + max(wait, extra, k // 2))))
            basis.restart(pairs, keep)
            restarts += 1
    error, _ = _progress(pairs, k, tol, basis.noise)
    message = f"residual {error:.1e}, tol {tol:.1e}"
    if unverified:
        message += ", repeated eigenvalues not ruled out"
    return Found(pairs.values[:k], basis.vectors(pairs, k), pairs.residuals[:k], done, restarts, block, message)


def _progress(pairs, k, tol, noise):
    """Return the largest relative residual of the leading pairs, and whether all are small enough."""
    if len(pairs.values) < k:
        return np.inf, False
    size, residuals = np.abs(pairs.values[:k]), pairs.residuals[:k]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(residuals > 0, residuals / np.maximum(size, noise), 0.0)
    return float(relative.max()), bool(np.all(residuals <= np.maximum(tol * size, noise)))


def _outdone(old, new, k, which, basis, tol):
    """Say whether one of the `k` leading values has moved outwards: what had converged was not the leading set."""
    before, after = old.values[:k], new.values[:k]
    outwards = after - before
    if which == "LM":
        outwards = np.abs(after) - np.abs(before)
    elif which == "SA":
        outwards = -outwards
    elif which == "BE":
        outwards[1::2] *= -1
    # Values that have converged to tol are known to about tol**2: a move by no more is not a missed copy.
    floor = NOISE * basis.eps * basis.scale * math.sqrt(basis.H.shape[0])
    return bool(np.any(outwards > max(1e-3, tol**2) * np.abs(before) + floor))


class Precision:
    """The bound that ``||A - V w V^H||_F`` is to meet, and what it is."""

    def __init__(self, H, rtol, atol, key, budget):
        self._H, self._rtol, self._atol, self._key, self._budget = H, rtol or 0.0, atol or 0.0, key, budget
        self._total = H.fro_norm_sq()
        self._eps = eps_of(H.xp, H.dtype)
        self._G = self._AG = None

    def rest_sq(self, basis):
        """Return the square of the error that is left with all Ritz pairs of a basis.

        The difference from ``||A||_F**2`` is free of charge; once it is near its own rounding, or if ``||A||_F`` is out
        of reach, random vectors that were multiplied by A once are multiplied by the approximation.
        """
        if basis.multiplied == self._H.shape[0]:
            return 0.0  # of the whole space, rounding
        if self._total is not None:
            gap = self._total - basis.captured
            if gap > TRUSTED * self._eps * self._total * math.sqrt(basis.steps):
                return gap
        if self._G is None:
            H = self._H
            if H.counter.passes + 1 > self._budget:
                return math.inf
            place = {"xp": H.xp, "device": H.device, "dtype": H.dtype}
            self._G = test_matrix("gaussian", self._key, H.shape[0], SAMPLES, stream=STREAM_SAMPLES, **place)
            self._AG = H.matmat(self._G)
        return float(np.sum(column_squares(self._AG - basis.project(self._G)))) / SAMPLES

    def norm(self, basis):
        """Return ``||A||_F``, estimated if its entries are out of reach."""
        if self._total is not None:
            return math.sqrt(self._total)
        sampled = 0.0 if self._AG is None else float(np.sum(column_squares(self._AG))) / SAMPLES
        return math.sqrt(max(sampled, basis.captured))

    def bound(self, basis):
        """Return the bound on the error; nothing is wanted below rounding."""
        return max(max(self._rtol, 30 * self._eps) * self.norm(basis), self._atol)


def grow(basis, precision, k, *, limit, budget, monitor):
    """Extend a basis by ever wider blocks until it holds enough of A for a precision; return whether it does.

    Parameters
    ----------
    basis : HermitianBasis
        Empty at the start.
    precision : Precision
        What is to be met.
    k : int or None
        Bound on the rank of the approximation.
    limit : int
        Number of columns at which to give up.
    budget : int or float
        Number of reads of A, of those counted by the matrix, after which to end.
    monitor : Monitor
        Told of every block.
    """
    n = basis.H.shape[0]
    width = max(10, -(-n // 100))
    while True:
        basis.fill(width)
        basis.expand()
        error_sq = precision.rest_sq(basis)
        if k is not None and basis.multiplied > k:
            error_sq += float(np.sum(basis.ritz("LM").values[k:] ** 2))
        norm, full = precision.norm(basis), basis.multiplied == n
        met = error_sq <= precision.bound(basis) ** 2
        stopped = monitor(math.sqrt(error_sq) / norm if norm else 0.0)
        if met or full or stopped or basis.H.counter.passes + 1 > budget or basis.multiplied >= limit:
            return met
        width = min(128, math.ceil(1.5 * width))


def smallest_rank(values, rest_sq, bound):
    """Return how many of the values, by falling modulus, must be kept for an error up to `bound`."""
    tails = rest_sq + np.cumsum(values[::-1] ** 2)[::-1]  # tails[r]: the error if only the first r are kept
    return int(np.sum(tails > bound**2))
