"""Trimmed Riemannian CUR iteration for robust PCA: sampled rows and columns, a tangent step, a retraction.

The data's way: `Samples` hands out some rows and columns; their residuals are measured against the present point; the
few that are large are left out; least squares on the others give a step in the tangent space; `retract` returns to rank
k. The bound beyond which a residual counts as large falls with the residuals themselves. Once it has sunk into noise
the iteration restores its best point and refits with bounds for every row and column: phase 2.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from rnla import kernels
from rnla._backend import adjoint, eps_of, from_host, host_svd, real_dtype, to_host
from rnla._orth import orth
from rnla._riemannian import Point, Tangent, pseudoinverse, retract, tangent_of
from rnla._rpca_entries import conjugate, residual_sides
from rnla._rpca_result import RobustRecord
from rnla._submatrix import taken

SHARE = 0.1  # quantile of the moduli of residuals that measures their scale: 0.126 sigma, if they are Gaussian
HIGH, LOW = 50.0, 25.0  # bounds in units of that quantile: 6.3 and 3.1 sigma
GAUSSIAN_QUANTILE, GAUSSIAN_MEDIAN = 0.1257, 0.6745
REFITS = 4  # iterations of phase 2
RIDGE = 1e-8  # relative: rows with fewer entries than coefficients must not fail
LOUD = 0.15  # residuals relative to entries of L, above which the rank is too small or outliers are too many
UNIFORM = 0.4  # rms over bound above which residuals fill the interval (0.577 does): what is left out is noise


class Iterate(NamedTuple):
    """Where an iteration ended."""

    point: Point
    status: str  # "converged", "noise_floor", "max_iter", "stopped" or "zero"
    z_row: np.ndarray  # (m,), bounds within which residuals count as fitted
    z_col: np.ndarray  # (n,)
    kept: float  # share of the sampled entries that were fitted
    scale: float  # of the residuals, relative to that of the entries of L; 0 if they are no noise
    records: tuple


def riecur(entries, samples, k, *, tol, max_iter, decay, update, noise_floor, monitor, init=None):
    """Iterate to a fit of rank k; see the head of this file.

    Returns
    -------
    Iterate
    """
    (m, n), trimmed = entries.shape, update == "trimmed"
    cross = samples.draw()
    sample = sampled(cross)
    z0, whole = largest(sample, entries)
    if z0 == 0:
        return Iterate(zero_point(entries, k), "zero", np.zeros(m), np.zeros(n), 1.0, 0.0, ()), 0.0
    if noise_floor == "auto":  # grey levels held in floating point
        noise_floor = 1.0 if whole else 0.0
    floor = max(4 * eps_of(entries.xp, entries.dtype) * z0, noise_floor)
    options = {"tol": tol, "max_iter": max_iter, "decay": decay, "floor": floor, "trimmed": trimmed, "monitor": monitor}
    found = _iterate(entries, samples, cross, _start(cross, sample, k) if init is None else init, z0, (), **options)
    if trimmed and init is None and _loud(found) and len(found.records) < max_iter:
        # A few rows or columns that are noise of large scale may have captured the subspaces of the start.
        cross = samples.draw()
        other = _iterate(
            entries, samples, cross, _start(cross, sampled(cross), k, even=True), z0, found.records, **options
        )
        better = not _loud(other) or other.scale < found.scale
        found = other if better and other.status != "max_iter" else found._replace(records=other.records)
    return found, floor


def _iterate(entries, samples, cross, point, z0, records, *, tol, max_iter, decay, floor, trimmed, monitor):
    """Iterate from one start, whose sample is `cross`, adding to the records."""
    state = _Bounds(z0, decay, floor)
    if not trimmed:
        state.high = math.inf
    records, status, kept_share, first, k = list(records), "max_iter", 1.0, True, point.s.shape[0]
    while len(records) < max_iter:
        if not first:
            cross = samples.draw()
        first = False
        (E_J, q_row), (E_I, q_col), V_J, U_I = residual_sides(cross, point, SHARE)
        q_row, q_col = checked(q_row, entries), checked(q_col, entries)
        bounds = state.update(point, q_row, q_col, trimmed)
        if bounds is None:  # stale: the best point is measured again
            point = state.point
            continue
        z_row, z_col = bounds
        point, e, kept_share, rms, mean_count = _step(entries, cross, point, E_J, E_I, V_J, U_I, z_row, z_col, trimmed)
        records.append(RobustRecord(len(records) + 1, e, float(np.median(z_row)), kept_share, monitor.seconds))
        if monitor(e):
            status = "stopped"
            break
        if state.phase == 2:
            state.refits += 1
            if state.refits == REFITS:
                status = "noise_floor"
                break
        elif e < tol:
            least = min(3 * k / max(mean_count, 1), 0.5)
            if trimmed and ((rms > UNIFORM * state.z and state.z > floor) or kept_share < least):
                state.phase, point = 2, state.point
                continue
            status = "converged"
            break
    scale = _relative_scale(entries, cross, point) if status == "noise_floor" else 0.0
    return Iterate(point, status, z_row, z_col, kept_share, scale, tuple(records))


def _loud(found):
    """Say whether an iteration ended at residuals that are too large for noise."""
    return found.status == "noise_floor" and found.scale > LOUD


class _Bounds:
    """The bound beyond which residuals are outliers, and the best point so far."""

    def __init__(self, z0, decay, floor):
        self.z, self.decay, self.floor, self.high = z0, decay, floor, HIGH
        self.phase, self.refits, self.stale = 1, 0, 0
        self.best, self.point = math.inf, None
        self.patience = math.ceil(3.5 / -math.log(decay))

    def update(self, point, q_row, q_col, trimmed):
        """Return the bounds of rows and columns, or None if the best point is to be measured instead of this one."""
        if self.phase == 2:
            return tuple(np.maximum(LOW * np.maximum(q, 0), self.floor) for q in (q_row, q_col))
        quantile = max(_median(q_row), _median(q_col))
        if quantile < 0.9 * self.best or self.point is None:
            self.best, self.point, self.stale = quantile, point, 0
        elif self.z < LOW * quantile or self.z <= self.floor:
            self.stale += 1
        if trimmed and self.stale >= self.patience:
            self.phase = 2
            return None
        self.z = max(min(self.decay * self.z, self.high * quantile if self.high < math.inf else math.inf), self.floor)
        return np.full(len(q_row), self.z), np.full(len(q_col), self.z)


def _step(entries, cross, point, E_J, E_I, V_J, U_I, z_row, z_col, trimmed):
    """Return the next point, the relative error, and what was kept."""
    xp, conj = entries.xp, conjugate(entries.xp, entries.dtype)
    U, s, V = point
    s = xp.astype(s, U.dtype)
    real = real_dtype(xp, entries.dtype)
    limit = [from_host(z, xp, real, entries.device) for z in (z_row, z_col)]
    E_J, K_J, down = kernels.keep_within(E_J, limit[0], U * s, V_J)
    E_I, K_I, across = kernels.keep_within(E_I, limit[1], conj(V) * s, conj(U_I))
    error_sq, data_sq, kept = (down.sum(axis=0) + across.sum(axis=0)).tolist()
    count = observed_count(cross)
    left, right = pseudoinverse(U_I), adjoint(pseudoinverse(V_J))  # (k, |I|), (|J|, k)
    I, J = (xp.asarray(index, device=entries.device) for index in (cross.rows, cross.cols))
    if trimmed:
        A = _enough(kernels.trimmed_fit(E_J, K_J, V_J, _ridge(V_J)), down[:, 2], cross.cols)
        B = _enough(kernels.trimmed_fit(E_I, K_I, conj(U_I), _ridge(U_I)), across[:, 2], cross.rows).T
        C = (left @ xp.take(A, I, axis=0) + xp.take(B, J, axis=1) @ right) / 2
        step = 1.0
    else:
        A, B = E_J @ right, left @ E_I.T
        C, step = left @ xp.take(A, I, axis=0), 1 / max(kept / count, 0.05)
    xi = tangent_of(point, A, B, C)
    if step != 1:
        xi = Tangent(*(step * part for part in xi))
    moved = retract(point, xi)
    sides = sum(entries.shape)
    return (
        moved, math.sqrt(error_sq / data_sq) if data_sq > 0 else 0.0, kept / count, math.sqrt(error_sq / max(kept, 1)),
        count / sides,
    )  # fmt: skip


def _enough(A, kept, index):
    """Set to zero the steps of rows of which little more was kept than there are coefficients: they fit anything."""
    few = kept < min(2 * A.shape[1], len(index) / 2)
    if not few.any():
        return A
    xp, where = array_namespace(A), device(A)
    return xp.where(xp.asarray(few, device=where)[:, None], xp.zeros_like(A), A)


def _start(cross, sample, k, even=False):
    """Return the point of the sampled columns and rows: as they are, or `even`, with large rows and columns shrunk."""
    xp, dtype, where = cross_place(cross)
    (D_J, share_J), (D_I, _) = sample
    U, V = _leading(D_J, k, even), _leading(D_I, k, even)
    V = conjugate(xp, dtype)(V)
    U_I = xp.take(U, xp.asarray(cross.rows, device=where), axis=0)
    V_J = xp.take(V, xp.asarray(cross.cols, device=where), axis=0)
    block = xp.take(D_J, xp.asarray(cross.rows, device=where), axis=0) / share_J
    core = to_host(pseudoinverse(U_I) @ block) @ to_host(pseudoinverse(V_J)).conj().T
    left, s, right = host_svd(core)
    left, right = (from_host(X, xp, dtype, where) for X in (left, right.conj().T))
    return Point(U @ left, from_host(s, xp, real_dtype(xp, dtype), where), V @ right)


def _leading(D, k, even):
    """Return the k leading left singular vectors of a sample."""
    xp = array_namespace(D)
    B = _evened(D) if even else D
    # Of the squares: these vectors are where an iteration starts, not where it ends.
    _, W = np.linalg.eigh(to_host(adjoint(B) @ B))
    W = from_host(np.ascontiguousarray(W[:, : -k - 1 : -1]), xp, D.dtype, device(D))
    return orth(B @ W)[0]


def _evened(D):
    """Return a sample with its rows and columns of more than the usual size shrunk to that."""
    xp = array_namespace(D)
    size = to_host(xp.abs(D))
    size[size == 0] = np.nan  # not observed, or of no account
    usual = np.nanmedian(size)
    for axis in (0, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # rows of nothing but NaN
            scale = np.nanmedian(size, axis=axis, keepdims=True) / usual
        D = D / from_host(np.fmax(scale, 1.0), xp, real_dtype(xp, D.dtype), device(D))
    return D


def sampled(cross):
    """Return the entries of both sides of a sample, zero where nothing is observed, each with the share that is."""
    return [
        _sample(part, index) for part, index in ((cross.down, cross.down_index), (cross.across, cross.across_index))
    ]


def _sample(part, index):
    xp = array_namespace(part.X)
    index = xp.asarray(index, device=device(part.X))
    D = taken(part.X, index, 1)
    if part.observed is None:
        return D, 1.0
    seen = taken(part.observed, index, 1)
    share = float(xp.mean(xp.astype(seen, xp.float64)))
    return xp.where(seen, D, xp.zeros_like(D)), max(share, 1e-12)


def largest(sample, entries):
    """Return the largest modulus in the sample, and whether all of it are whole numbers."""
    top, whole = 0.0, not entries.xp.isdtype(entries.dtype, "complex floating")
    for D, _ in sample:
        xp = array_namespace(D)
        here = float(xp.max(xp.abs(D)))
        if not math.isfinite(here):  # not of the larger of both: max() may pass over NaN
            raise not_finite(entries)
        top = max(top, here)
        for part in (D[:1, :], D):  # mostly the first row tells
            whole = whole and bool(xp.all(xp.round(part) == part))
    return top, whole and top > 1


def checked(q, entries):
    q = to_host(q)
    if np.isnan(q).any():
        raise not_finite(entries)
    return q


def _median(q):
    known = q[q >= 0]
    return float(np.median(known)) if known.size else 0.0


def observed_count(cross):
    """Return how many entries of the sample are observed."""
    total = 0.0
    for part, index in ((cross.down, cross.down_index), (cross.across, cross.across_index)):
        if part.observed is None:
            total += part.X.shape[0] * len(index)
            continue
        xp = array_namespace(part.X)
        seen = taken(part.observed, xp.asarray(index, device=device(part.X)), 1)
        total += float(xp.sum(xp.astype(seen, xp.float64)))
    return max(total, 1.0)


def _relative_scale(entries, cross, point):
    """Return the scale of the residuals over that of the entries of L, both as if they were Gaussian."""
    xp = entries.xp
    (_, q_row), _, V_J, _ = residual_sides(cross, point, SHARE)
    model = (point.U * xp.astype(point.s, point.U.dtype)) @ adjoint(V_J)
    usual = float(np.median(np.abs(to_host(model)))) / GAUSSIAN_MEDIAN
    return _median(to_host(q_row)) / GAUSSIAN_QUANTILE / usual if usual > 0 else 0.0


def zero_point(entries, k):
    xp, (m, n) = entries.xp, entries.shape
    place = {"dtype": entries.dtype, "device": entries.device}
    s = xp.zeros(k, dtype=real_dtype(xp, entries.dtype), device=entries.device)
    return Point(xp.eye(m, k, **place), s, xp.eye(n, k, **place))


def _ridge(X):
    xp = array_namespace(X)
    return RIDGE * float(xp.sum(xp.abs(X) ** 2)) / X.shape[1]


def cross_place(cross):
    """Return library, dtype and device of a sample."""
    X = cross.down.X
    return array_namespace(X), X.dtype, device(X)


def not_finite(entries):
    """Return the error for NaN or infinity among the observed entries."""
    return ValueError(f"{entries.caller}: A must be finite where it is observed; entries that were read are not.")
