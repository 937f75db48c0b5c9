"""What follows an iteration of robust PCA: fit wrong rows and columns again, polish, and judge the result afresh."""

from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from rnla import kernels
from rnla._backend import from_host, host_svd, real_dtype, to_host
from rnla._orth import orth
from rnla._riecur import LOW, SHARE, conjugate, not_finite
from rnla._riemannian import Point
from rnla._robust_code import code_rows
from rnla._rpca_entries import Cross, residual_sides

ROUNDS = 3
FRESH = 200  # rows and columns on which the result is judged
DECAY = 0.8  # of the bounds when rows are fitted again: slower than usual, as they have failed once


class Judgement(NamedTuple):
    """What fresh entries say about a result."""

    point: Point
    kept_fresh: float
    bad_rows: np.ndarray
    bad_cols: np.ndarray
    rescued: list
    bounds: tuple  # of rows and columns


def judge(entries, point, bounds, tol, random, *, noise_floor=0.0, rescue=True):
    """Look at fresh rows and columns, fit again those that are wrong, and report those that stay so.

    A row is wrong where the share of its fresh entries that are within the bounds is below half of the usual one.
    With `tol`, that of an iteration that has met it, bounds are at least what it leaves in rows of large entries.
    """
    k = point.s.shape[0]
    rows, cols = (np.sort(random.choice(side, min(side, FRESH), replace=False)) for side in entries.shape)
    across, down = entries.take(rows, cols)
    fresh = Cross(rows, cols, down, np.arange(len(cols)), across, np.arange(len(rows)))
    few_rows, few_cols = _too_few(entries, k)
    settled = [np.zeros(side, bool) for side in entries.shape]  # fitted again, with fresh entries unobserved
    rescued, rounds = [], ROUNDS if rescue else 0
    tried, moved = [np.zeros(side, bool) for side in entries.shape], (True, True)
    for turn in range(rounds + 1):
        shares, kept = _shares(fresh, point, *_widened(point, bounds, tol), noisy=tol is None)
        bad = [_wrong(share, done) for share, done in zip(shares, settled, strict=True)]
        fixable = [np.flatnonzero(wrong & ~few) for wrong, few in zip(bad, (few_rows, few_cols), strict=True)]
        # A row comes out as before where the columns' factor is as before.
        if turn == rounds or not any(
            len(index) and (other or not before[index].all())
            for index, before, other in zip(fixable, tried, reversed(moved), strict=True)
        ):
            break
        for before, index in zip(tried, fixable, strict=True):
            before[index] = True
        moved = tuple(len(index) > 0 for index in fixable)
        point, done = _fit_again(entries, point, fixable[0], fixable[1], noise_floor)
        for which, index, good in zip(settled, fixable, done, strict=True):
            which[index] = good
        rescued.append(tuple(map(len, fixable)))
    bad_rows, bad_cols = (np.flatnonzero(wrong | few) for wrong, few in zip(bad, (few_rows, few_cols), strict=True))
    return Judgement(point, kept, bad_rows, bad_cols, rescued, _widened(point, bounds, tol))


def polish(entries, point):
    """Fit all rows, then all columns, by least squares to all entries that are no outliers; one read of A.

    Returns
    -------
    point : Point
        The fit.
    z_row : ndarray, shape (m,)
        Bounds of the rows.
    """
    xp, (m, n) = entries.xp, entries.shape
    k, dtype, where = point.s.shape[0], entries.dtype, entries.device
    conj, real = conjugate(xp, dtype), real_dtype(xp, dtype)
    everything, z_row, left = np.arange(n), np.zeros(m), []
    right = point.V * xp.astype(point.s, dtype)
    pairs = xp.zeros((n, k * k), dtype=dtype, device=where)
    rhs = xp.zeros((n, k), dtype=dtype, device=where)
    for start, B, seen in entries.row_blocks():
        part = slice(start, start + B.shape[0])
        U = point.U[part, :]
        E, q = kernels.sampled_residuals(B, everything, seen, U, right, SHARE)
        q = to_host(q)
        if np.isnan(q).any():
            raise not_finite(entries)
        z_row[part] = LOW * np.maximum(q, 0)
        bound = from_host(z_row[part], xp, real, where)
        E, K, _ = kernels.keep_within(E, bound, U, right)
        U = U + kernels.trimmed_fit(E, K, right, 1e-8 * float(xp.max(point.s)) ** 2 / n)
        left.append(U)
        E, _ = kernels.sampled_residuals(B, everything, seen, U, right, SHARE)
        E, K, _ = kernels.keep_within(E, bound, U, right)
        outer = xp.reshape(U[:, :, None] * conj(U)[:, None, :], (U.shape[0], k * k))
        pairs += K.T @ outer
        rhs += E.T @ conj(U)
    G = xp.reshape(pairs, (n, k, k)) + 1e-8 * xp.eye(k, dtype=dtype, device=where) / m
    step = conj(xp.linalg.solve(conj(G), rhs[:, :, None])[:, :, 0])
    return refactored(xp.concat(left, axis=0), right + step), z_row


def refactored(left, right):
    """Return ``left right^H`` as a point."""
    xp, dtype, where = array_namespace(left), left.dtype, device(left)
    (Q, R), (P, T) = orth(left), orth(right)
    U, s, Vh = host_svd(R @ T.conj().T)
    s = from_host(s, xp, real_dtype(xp, dtype), where)
    return Point(Q @ from_host(U, xp, dtype, where), s, P @ from_host(Vh.conj().T, xp, dtype, where))


def _shares(fresh, point, z_row, z_col, *, noisy):
    """Return the share of the fresh entries of every row and column that are within bounds, and that of all.

    The bound of a row at its noise comes from few samples, some of which are small by chance: there that of the columns
    counts, too, as it does for outliers.
    """
    xp, real = array_namespace(point.U), point.s.dtype
    (E_J, _), (E_I, _), _, _ = residual_sides(fresh, point, SHARE)
    shares, within, total = [], 0.0, 0.0
    for E, z, other in ((E_J, z_row, z_col[fresh.cols]), (E_I, z_col, z_row[fresh.rows])):
        size = xp.abs(E)
        own, across = (from_host(x, xp, real, device(E)) for x in (z[:, None], other[None, :]))
        near = size <= own  # NaN is not
        inside = near | (size <= across)
        good, seen = (
            to_host(xp.sum(xp.astype(x, xp.int64), axis=1)) for x in (inside if noisy else near, ~xp.isnan(size))
        )
        with np.errstate(invalid="ignore"):
            shares.append(good / seen)
        within, total = within + float(xp.sum(xp.astype(inside, xp.int64))), total + seen.sum()
    return shares, float(within / max(total, 1))


def _widened(point, bounds, tol):
    """Return bounds that fitted entries keep within, although the last step moved them and rows differ in scale."""
    if tol is None:
        return bounds
    s, sides = to_host(point.s), (point.V.shape[0], point.U.shape[0])
    wide = []
    for z, factor, length in zip(bounds, (point.U, point.V), sides, strict=True):
        rms = np.sqrt(np.sum((np.abs(to_host(factor)) * s) ** 2, axis=1) / length)
        wide.append(np.maximum(3 * z, 10 * tol * rms))
    return tuple(wide)


def _wrong(share, settled):
    """Return which rows have too small a share; those without fresh entries count until they are fitted again."""
    unknown = np.isnan(share)
    usual = np.median(share[~unknown]) if not unknown.all() else 0.0
    return np.where(unknown, ~settled, share < usual / 2)


def _too_few(entries, k):
    """Return which rows and columns have at most k observed entries: they cannot be fitted."""
    m, n = entries.shape
    if entries.mask is None:
        return np.full(m, n <= k and n < k), np.full(n, m < k)
    rows, cols = np.zeros(m), np.zeros(n)
    for start, seen in entries.mask_blocks():
        rows[start : start + len(seen)] = seen.sum(axis=1)
        cols += seen.sum(axis=0)
    return rows <= min(k, n - 1), cols <= min(k, m - 1)


def _fit_again(entries, point, rows, cols, noise_floor):
    """Fit some rows to the space of the good columns, then some columns to that of the good rows."""
    xp, conj = entries.xp, conjugate(entries.xp, entries.dtype)
    across, down = entries.take(rows, cols)
    done = []
    for turn, (index, other, part) in enumerate(((rows, cols, across), (cols, rows, down))):
        if not len(index):
            done.append(np.zeros(0, bool))
            continue
        factor, kept = (point.V, point.U) if turn == 0 else (conj(point.U), conj(point.V))
        good = np.setdiff1d(np.arange(factor.shape[0]), other)
        Y = xp.take(part.X, xp.asarray(good, device=entries.device), axis=0).T
        seen = None
        if part.observed is not None:
            seen = xp.take(part.observed, xp.asarray(good, device=entries.device), axis=0).T
        Q, R = orth(xp.take(factor, xp.asarray(good, device=entries.device), axis=0))
        code = code_rows(Y, Q, seen, DECAY, noise_floor, 80, entries.caller)
        done.append(code.converged)
        # Y ~ C Q^H = (C R^-H) factor^H
        rows_new = code.C @ from_host(np.linalg.pinv(R).conj().T, xp, entries.dtype, entries.device)
        scaled = kept * xp.astype(point.s, entries.dtype)
        place = np.full(scaled.shape[0], -1)
        place[index] = np.arange(len(index))
        chosen = xp.asarray(place >= 0, device=entries.device)[:, None]
        new = xp.take(rows_new, xp.asarray(np.maximum(place, 0), device=entries.device), axis=0)
        left = xp.where(chosen, new, scaled)
        point = refactored(left, factor)
        if turn == 1:  # the transpose was fitted: L^T = left factor^H
            point = Point(conj(point.V), point.s, conj(point.U))
    return point, done
