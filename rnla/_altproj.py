"""Robust PCA by alternating projections, accelerated or plain: every iteration reads all entries, in blocks of rows.

What a step needs of ``Z = A - S`` are its products from both sides. Z is L plus the residuals that are within a bound,
so neither L nor S nor Z is formed.
"""

import math

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from rnla import kernels
from rnla._backend import adjoint, eps_of, to_host
from rnla._orth import orth
from rnla._rangefinder import thin_svd
from rnla._riecur import UNIFORM, Iterate, not_finite, zero_point
from rnla._riemannian import Point, project_products, retract_and_next
from rnla._rpca_result import RobustRecord
from rnla._sketch import test_matrix

EXTRA = 5  # columns beyond the rank when leading singular vectors are computed
POWERS = 2  # reads of A that sharpen the vectors an iteration starts from
STAGE = 0.5  # factor of the bound in each step of plain alternating projections
CACHED = 1 << 15  # entries worked on at a time on the CPU
LEAST_KEPT = 0.05  # share of the entries below which a fit says nothing


def accaltproj(entries, k, *, tol, max_iter, monitor, decay, key):
    """Project the data without their outliers on the tangent space, retract, and lower the bound of the outliers.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    floor, X = 4 * eps_of(entries.xp, entries.dtype) * largest_entry(entries), start_vectors(entries, k, key)
    if floor == 0:
        return nothing(entries, k)
    beta = 0.5 * (entries.shape[0] * entries.shape[1]) ** -0.25
    rough = leading(entries, X, math.inf, POWERS)
    x = leading(entries, rough.V, 4 * beta * float(rough.s[0]), POWERS)
    x = Point(x.U[:, :k], x.s[:k], x.V[:, :k])
    z, run = max(beta * float(x.s[0]), floor), Run(entries, k, tol, max_iter, monitor, floor)
    while not run.status:
        P, Q, sums = products(entries, x, z)
        x, following = retract_and_next(x, project_products(x, P, Q))
        run.note(z, sums)
        used, z = z, max(beta * (following + decay ** len(run.records) * float(x.s[0])), floor)
    return run.ended(x, used)


def altproj(entries, k, *, tol, max_iter, monitor, key):
    """Alternate between sparse and low-rank matrices, whose rank grows from 1 to k.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    floor, X = 4 * eps_of(entries.xp, entries.dtype) * largest_entry(entries), start_vectors(entries, k, key)
    if floor == 0:
        return nothing(entries, k)
    beta = max(entries.shape) ** -0.5
    fit, x = leading(entries, X, math.inf, POWERS), None
    z, run, rank, step = max(beta * float(fit.s[0]), floor), Run(entries, k, tol, max_iter, monitor, floor), 1, 0
    while not run.status:
        # The sparse part of the model so far, then the best approximation of what is left.
        fit, sums = leading_sums(entries, fit.V, z, 1, x)
        x = Point(fit.U[:, :rank], fit.s[:rank], fit.V[:, :rank])
        s = to_host(fit.s)
        following = _following(s, rank)
        step += 1
        if rank < k and STAGE**step * s[rank - 1] < following:  # the bound falls no more
            rank, step = rank + 1, 0
            following = _following(s, rank)
            x = Point(fit.U[:, :rank], fit.s[:rank], fit.V[:, :rank])
        run.note(z, sums, settled=rank == k)
        used, z = z, max(beta * (following + STAGE**step * float(s[rank - 1])), floor)
    return run.ended(x, used)


def _following(s, rank):
    return float(s[rank]) if len(s) > rank else 0.0


class Run:
    """The records of an iteration that keeps residuals within one bound, and when it ends."""

    def __init__(self, entries, k, tol, max_iter, monitor, floor):
        self.entries, self.k, self.tol, self.max_iter = entries, k, tol, max_iter
        self.monitor, self.floor = monitor, floor
        self.records, self.status = [], ""
        self._total = entries.shape[0] * entries.shape[1]
        if entries.mask is not None:
            self._total = max(sum(int(seen.sum()) for _, seen in entries.mask_blocks()), 1)

    def note(self, z, sums, settled=True):
        """Record an iteration with the bound `z` and the sums of `kernels.threshold_pass`."""
        left, there, count = (float(x) for x in sums)
        if not math.isfinite(left):
            raise not_finite(self.entries)
        error, kept = math.sqrt(left / there) if there > 0 else 0.0, count / self._total
        self.records.append(RobustRecord(len(self.records) + 1, error, z, kept, self.monitor.seconds))
        if self.monitor(error):
            self.status = "stopped"
        elif settled and error < self.tol:
            rms = math.sqrt(left / max(count, 1))
            self.status = verdict(kept, rms, z, self.floor, self.k, min(self.entries.shape))
        elif len(self.records) == self.max_iter:
            self.status = "max_iter"

    def ended(self, point, z):
        """Return what a method returns."""
        m, n = self.entries.shape
        kept = self.records[-1].kept
        return Iterate(point, self.status, np.full(m, z), np.full(n, z), kept, 0.0, tuple(self.records)), self.floor


def verdict(kept, rms, z, floor, k, count):
    """Say whether a small residual means that the model fits, or that what does not fit was declared an outlier.

    Residuals that fill the interval between the bounds are noise that the bound has sunk into; a fit to hardly more
    entries than coefficients is always exact.
    """
    sunk = kept < max(min(3 * k / count, 0.5), LEAST_KEPT) or (rms > UNIFORM * z and z > floor)
    return "collapsed" if sunk else "converged"


def products(entries, x, z):
    """Return ``E V``, ``E^H U`` and the sums of `kernels.threshold_pass` for a point, in one read."""
    left, Q, total = x.U * entries.xp.astype(x.s, x.U.dtype), None, np.zeros(3)
    parts = []
    for start, B, seen in entries.row_blocks():
        rows = slice(start, start + B.shape[0])
        P, part, sums = kernels.threshold_pass(B, seen, left[rows, :], x.V, x.U[rows, :], z)
        parts.append(P)
        Q = part if Q is None else Q + part
        total += sums
    return entries.xp.concat(parts, axis=0) if len(parts) > 1 else parts[0], Q, total


def leading(entries, X, z, powers):
    """Return the leading singular triplets of A without the entries above `z`, as many as X has columns."""
    return leading_sums(entries, X, z, powers)[0]


def leading_sums(entries, X, z, powers, x=None):
    """Return the leading singular triplets of ``L + E``, E the residuals within `z` of the model x, and their sums.

    A power step costs one read; a last one gives the left vectors.
    """
    for _ in range(powers):
        G, _ = _image_and_gram(entries, X, z, x, gram=True)
        X = orth(G)[0]
    Y, sums = _image_and_gram(entries, X, z, x, gram=False)
    U, s, Wh = thin_svd(Y)
    return Point(U, s, X @ adjoint(Wh)), sums


def _image_and_gram(entries, X, z, x, gram):
    """Return ``Z^H (Z X)``, or ``Z X``, of ``Z = L + E``; and the sums of E."""
    xp, total, parts, G = entries.xp, np.zeros(3), [], None
    left = None if x is None else x.U * xp.astype(x.s, x.U.dtype)
    for start, B, seen in entries.row_blocks():
        step = max(1, CACHED // B.shape[1]) if is_numpy_array(B) else B.shape[0]
        for top in range(0, B.shape[0], step):
            here, rows = slice(top, top + step), slice(start + top, start + min(top + step, B.shape[0]))
            model = None if x is None else left[rows, :] @ adjoint(x.V)
            Z, sums = _fitted(B[here, :], None if seen is None else seen[here, :], model, z)
            Y = Z @ X
            total += sums
            if not gram:
                parts.append(Y)
                continue
            G = adjoint(Z) @ Y if G is None else G + adjoint(Z) @ Y
    return (G if gram else xp.concat(parts, axis=0)), total


def _fitted(B, seen, model, z):
    """Return the data, the model or zero where they are observed outliers, and the sums of what is kept."""
    if model is None and z == math.inf:  # what is not observed is zero
        return B, np.zeros(3)
    xp = array_namespace(B)
    model = xp.zeros_like(B) if model is None else model
    size = xp.abs(B - model)
    kept = size <= z if seen is None else (size <= z) & seen
    zero = xp.zeros_like(size)
    sums = [xp.where(kept, size, zero), xp.where(kept, xp.abs(B), zero)]
    sums = [float(xp.sum(xp.astype(Y, xp.float64) ** 2)) for Y in sums]
    return xp.where(kept, B, model), np.array([*sums, float(xp.sum(xp.astype(kept, xp.float64)))])


def largest_entry(entries):
    """Return the largest modulus of the observed entries, which must be finite; one read."""
    xp = entries.xp
    tops = [float(xp.max(xp.abs(B))) for _, B, _ in entries.row_blocks()]
    if not all(map(math.isfinite, tops)):
        raise not_finite(entries)
    return max(tops)


def start_vectors(entries, k, key):
    """Return some more than `k` random orthonormal columns, shape (n, ...)."""
    place = {"xp": entries.xp, "dtype": entries.dtype, "device": entries.device}
    return orth(test_matrix("gaussian", key, entries.shape[1], min(k + EXTRA, *entries.shape), **place))[0]


def nothing(entries, k):
    """Return what a method returns for the zero matrix."""
    m, n = entries.shape
    return Iterate(zero_point(entries, k), "zero", np.zeros(m), np.zeros(n), 1.0, 0.0, ()), 0.0
