"""Principal component pursuit, ``min ||L||_* + lam ||S||_1`` with ``L + S = A``, by augmented Lagrangian methods.

Iterations work in two arrays of the size of A beside it: the multiplier over the penalty, Y, and ``W = A - S + Y``
whose singular values are shrunk next. ``W = L - Y_old + c + Y`` with c the part of ``A - L + Y_old`` that is not in S,
so S itself is never stored.
"""

import math

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from rnla._altproj import CACHED, EXTRA, largest_entry, nothing, start_vectors
from rnla._backend import adjoint, eps_of, from_host, real_dtype, to_host
from rnla._orth import orth
from rnla._rangefinder import thin_svd
from rnla._riecur import Iterate
from rnla._riemannian import Point
from rnla._rpca_result import RobustRecord
from rnla._sketch import test_matrix

GROWTH, MOST = 1.5, 1e7  # factor of the penalty in each iteration, and how far it grows
FIRST_RANK, MORE_RANK = 10, 0.05  # prediction of the rank, and its growth as a share of the short side
FULL = 0.3  # share of the short side from which all singular values are computed
POWERS = 1  # products that sharpen singular vectors, which start at those of the iteration before
LIMIT_BYTES = 2**28  # of a matrix out of memory that is read into it


def ialm(entries, k, *, tol, max_iter, monitor, lam, key):
    """Solve the convex problem by the inexact augmented Lagrangian method: its penalty grows.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    A, seen = _in_memory(entries, "ialm")
    top = largest_entry(entries)
    if top == 0:
        return nothing(entries, 1)
    X = start_vectors(entries, FIRST_RANK, key)
    norm = float(_leading(A, X, 2).s[0])
    lam = max(entries.shape) ** -0.5 if lam is None else lam
    mu = 1.25 / norm
    dual = max(norm, top / lam) if lam > 0 else norm
    return _solve(entries, A, seen, A / (dual * mu), X, lam, mu, GROWTH, top, tol, max_iter, monitor, key)


def admm(entries, k, *, tol, max_iter, monitor, lam, key):
    """Solve the convex problem by alternating directions with a fixed penalty.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    A, seen = _in_memory(entries, "admm")
    xp, top = entries.xp, largest_entry(entries)
    if top == 0:
        return nothing(entries, 1)
    count = A.shape[0] * A.shape[1] if seen is None else float(xp.sum(xp.astype(seen, xp.float64)))
    mu = count / (4 * float(xp.sum(xp.astype(xp.abs(A), xp.float64))))
    lam = max(entries.shape) ** -0.5 if lam is None else lam
    X = start_vectors(entries, FIRST_RANK, key)
    return _solve(entries, A, seen, xp.zeros_like(A), X, lam, mu, 1.0, top, tol, max_iter, monitor, key)


def _solve(entries, A, seen, Y, X, lam, mu, growth, largest, tol, max_iter, monitor, key):
    """Shrink singular values, then entries, then move the multiplier, until L + S is A."""
    W, most = A + Y, MOST * mu
    count = X.shape[1] - EXTRA
    total = math.sqrt(_sum_of_squares(A))
    observed = A.shape[0] * A.shape[1] if seen is None else float(to_host(seen).sum())
    records, status, short = [], "max_iter", min(A.shape)
    for iteration in range(1, max_iter + 1):
        found = _singular_triplets(entries, W, X, count, key, iteration)
        s = to_host(found.s)
        rank = int(np.sum(s[: max(count, 1)] > 1 / mu))
        keep = max(rank, 1)
        L = Point(found.U[:, :keep], found.s[:keep], found.V[:, :keep])
        shrunk = np.maximum(s[:keep] - 1 / mu, 0.0)
        L = L._replace(s=from_host(shrunk, entries.xp, real_dtype(entries.xp, entries.dtype), entries.device))
        X = found.V
        count = min(rank + 1 if rank < count else rank + max(1, round(MORE_RANK * short)), short)
        penalty = min(growth * mu, most)
        error_sq, top, kept = _shrink_entries(A, seen, L, Y, W, lam / mu, mu / penalty)
        size = float(np.linalg.norm(shrunk))
        e = math.sqrt(error_sq) / (size if size > 0 else total)
        records.append(RobustRecord(iteration, e, top, kept / observed, monitor.seconds))
        mu = penalty
        if monitor(e):
            status = "stopped"
            break
        if e < tol:
            status = "converged"
            break
    m, n = A.shape
    # S is A - L up to the error e where it is not zero, and the largest |A - L| elsewhere is the bound that tells.
    floor = 4 * eps_of(entries.xp, entries.dtype) * largest
    L, change = _without_rest(L, tol, entries.xp) if status == "converged" else (L, 0.0)
    z = top + change + floor
    return Iterate(L, status, np.full(m, z), np.full(n, z), records[-1].kept, 0.0, tuple(records)), floor


def _without_rest(L, tol, xp):
    """Return L without singular values that the tolerance does not resolve, and a bound on how entries change."""
    s = to_host(L.s)
    keep = max(int(np.sum(s > tol * np.linalg.norm(s))), 1)
    largest = [to_host(xp.max(xp.abs(X), axis=0)) for X in (L.U, L.V)]
    change = float(np.sum((largest[0] * s * largest[1])[keep:]))
    return Point(L.U[:, :keep], L.s[:keep], L.V[:, :keep]), change


def _shrink_entries(A, seen, L, Y, W, bound, ratio):
    """Overwrite Y by the next multiplier and W by ``A - S + Y``; ``S = A - L + Y`` with moduli shrunk by a bound.

    Entries that are not observed are all outlier, at no cost.

    Returns
    -------
    error_sq : float
        ``||A - L - S||_F**2``.
    top : float
        Largest ``|A - L|`` where S is zero.
    kept : float
        Number of observed entries where S is zero.
    """
    xp = array_namespace(A)
    left, right = L.U * xp.astype(L.s, A.dtype), adjoint(L.V)
    real = not xp.isdtype(A.dtype, "complex floating")
    error_sq, top, kept = 0.0, 0.0, 0.0
    step = max(1, CACHED // A.shape[1]) if is_numpy_array(A) else A.shape[0]
    for start in range(0, A.shape[0], step):
        rows = slice(start, start + step)
        B, y = left[rows, :] @ right, Y[rows, :]
        w = A[rows, :] - B + y
        size = xp.abs(w)
        inside = size <= bound
        if real:
            c = xp.clip(w, -bound, bound)
        else:
            c = xp.where(inside, w, w * (bound / xp.where(inside, xp.ones_like(size), size)))
        if seen is not None:
            inside = inside & seen[rows, :]
            c = xp.where(seen[rows, :], c, xp.zeros_like(c))
        change = c - y  # A - L - S
        error_sq += _sum_of_squares(change)
        top = max(top, float(xp.max(xp.where(inside, xp.abs(change), xp.zeros_like(size)))))
        kept += float(xp.count_nonzero(inside))
        Y[rows, :] = ratio * c
        W[rows, :] = B + change + ratio * c
    return error_sq, top, kept


def _singular_triplets(entries, W, X, count, key, iteration):
    """Return `count` leading singular triplets of W, and a few more; X holds right vectors near them."""
    xp, short = entries.xp, min(W.shape)
    width = min(count + EXTRA, short)
    if width > FULL * short:
        U, s, Vh = xp.linalg.svd(W, full_matrices=False)
        return Point(U, s, adjoint(Vh))
    X = X[:, : min(width, X.shape[1])]
    more = width - X.shape[1]
    if more:
        place = {"xp": xp, "dtype": entries.dtype, "device": entries.device}
        X = xp.concat([X, test_matrix("gaussian", key, W.shape[1], more, stream=iteration, **place)], axis=1)
    return _leading(W, X, POWERS)


def _leading(W, X, powers):
    """Return the leading singular triplets of W, as many as X has columns."""
    Q = orth(W @ X)[0]
    for _ in range(powers):
        Q = orth(W @ orth(adjoint(W) @ Q)[0])[0]
    V, s, Zh = thin_svd(adjoint(W) @ Q)  # Q^H W = Z s V^H
    return Point(Q @ adjoint(Zh), s, V)


def _sum_of_squares(X):
    if is_numpy_array(X):
        x = X.ravel()
        return float(np.vdot(x, x).real)
    xp = array_namespace(X)
    return float(xp.sum(xp.astype(xp.abs(X), xp.float64) ** 2))


def _in_memory(entries, method):
    """Return A, zero where nothing is observed, and the mask."""
    xp, (m, n) = entries.xp, entries.shape
    if entries.array is None and 8 * m * n > LIMIT_BYTES:
        raise ValueError(
            f"{entries.caller}: A must be in memory, or no larger than {LIMIT_BYTES >> 20} MiB, for method={method!r}, "
            f"which holds three arrays of its size; got shape {entries.shape}."
        )
    if entries.array is not None and entries.mask is None:
        return entries.array, None
    blocks = [(B, seen) for _, B, seen in entries.row_blocks()]
    A = xp.concat([B for B, _ in blocks], axis=0)
    return A, None if entries.mask is None else xp.concat([seen for _, seen in blocks], axis=0)
