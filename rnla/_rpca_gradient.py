"""Robust PCA by gradient descent on the factors of L, scaled by their Gram matrices or not."""

import math

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from rnla import kernels
from rnla._altproj import POWERS, Run, largest_entry, leading, nothing, start_vectors
from rnla._backend import adjoint, eps_of, from_host, to_host
from rnla._rpca_entries import Entries
from rnla._rpca_rescue import refactored

SLACK = 1.5  # entries among so many times the largest share of outliers, in their row and column, may be outliers
STEP = 0.5  # of plain descent, over the largest singular value


def scaledgd(entries, k, *, tol, max_iter, monitor, decay, key):
    """Descend with steps scaled by the inverses of the Gram matrices, as outliers leave out what is above a bound.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    xp, top = entries.xp, largest_entry(entries)
    if top == 0:
        return nothing(entries, k)
    floor = 4 * eps_of(xp, entries.dtype) * top
    F, G = _start(entries, k, key)
    z, run = top, Run(entries, k, tol, max_iter, monitor, floor)
    while not run.status:
        parts, right, sums = [], xp.zeros_like(G), np.zeros(3)
        for start, B, seen in entries.row_blocks():
            rows = slice(start, start + B.shape[0])
            P, Q, some = kernels.threshold_pass(B, seen, F[rows, :], G, F[rows, :], z)
            parts.append(P)
            right, sums = right + Q, sums + some
        run.note(z, sums)
        F, G = F + xp.concat(parts, axis=0) @ _inverse_gram(G), G + right @ _inverse_gram(F)
        used, z = z, max(decay * z, floor)
    return run.ended(refactored(F, G), used)


def gd(entries, k, *, tol, max_iter, monitor, outliers, key):
    """Descend with fixed steps; outliers are large for their row and for their column.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    xp, (m, n), A = entries.xp, entries.shape, entries.array
    top = largest_entry(entries)
    if top == 0:
        return nothing(entries, k)
    floor = 4 * eps_of(xp, entries.dtype) * top
    share = min(SLACK * outliers, 1.0)
    places = [side - 1 - min(math.floor(share * side), side - 1) for side in (n, m)]
    F, G = _start(entries, k, key, _within(A, *places)[0])
    run = Run(entries, k, tol, max_iter, monitor, math.inf)  # no bound says that the residuals have sunk below it
    while not run.status:
        E, kept, bounds = _within(A - F @ adjoint(G), *places)
        data = xp.where(kept, A, xp.zeros_like(A))
        sums = [float(xp.sum(xp.astype(xp.abs(X), xp.float64) ** 2)) for X in (E, data)]
        z_row, z_col = to_host(bounds[0])[:, 0], to_host(bounds[1])[0, :]
        run.note(float(np.median(z_row)), np.array([*sums, float(xp.sum(xp.astype(kept, xp.float64)))]))
        gram = adjoint(F) @ F
        balance = gram - adjoint(G) @ G
        # Of the present factors: those of the start are too small where many entries were set to zero.
        step = STEP / max(float(np.linalg.norm(to_host(gram), 2)), np.finfo(float).tiny)
        F, G = F + step * (E @ G - F @ balance / 2), G + step * (adjoint(E) @ F + G @ balance / 2)
    found, _ = run.ended(refactored(F, G), 0.0)
    return found._replace(z_row=z_row, z_col=z_col), floor


def _start(entries, k, key, Z=None):
    """Return factors of the best approximation of rank k to A, or to Z."""
    xp, X = entries.xp, start_vectors(entries, k, key)
    x = leading(entries if Z is None else Entries(Z, None, entries.caller), X, math.inf, POWERS)
    root = xp.astype(xp.sqrt(x.s[:k]), entries.dtype)
    return x.U[:, :k] * root, x.V[:, :k] * root


def _inverse_gram(X):
    """Return ``(X^H X)^-1``; directions that are rounding are left out."""
    xp = array_namespace(X)
    gram = to_host(adjoint(X) @ X)
    return from_host(np.linalg.pinv(gram, rcond=eps_of(xp, X.dtype), hermitian=True), xp, X.dtype, X.device)


def _within(E, place_row, place_col):
    """Return what is not large for both its row and its column, where that is, and the bounds of both."""
    xp = array_namespace(E)
    size = xp.abs(E)
    bounds = _order_statistic(size, place_row, 1), _order_statistic(size, place_col, 0)
    kept = size <= xp.maximum(*bounds)
    return xp.where(kept, E, xp.zeros_like(E)), kept, bounds


def _order_statistic(size, place, axis):
    """Return number `place` in order along an axis, which is kept."""
    if is_numpy_array(size):
        return np.take(np.partition(size, place, axis=axis), [place], axis=axis)
    xp = array_namespace(size)
    return xp.take(xp.sort(size, axis=axis), xp.asarray([place], device=size.device), axis=axis)
