"""Coefficients of new rows in a known row space, outliers left out; and what robust PCA does with them at its end."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla import kernels
from rnla._backend import adjoint, eps_of, from_host, real_dtype, to_host
from rnla._rangefinder import check_count, check_number
from rnla._riecur import HIGH, LOW, SHARE, UNIFORM

REFITS = 3
ENOUGH = 1e-8  # residual of what is kept, relative to what is kept, at which a row is done
RIDGE = 1e-10


@dataclass(frozen=True, eq=False, repr=False)
class RobustCodeResult:
    """Coefficients of rows in a row space, found without their outliers.

    Attributes
    ----------
    C : array, shape (p, k)
        ``Y ~ C @ V^H`` but for the outliers.
    converged : ndarray of bool, shape (p,)
        Rows whose entries are fitted exactly, or to the level of their noise, by more entries than coefficients.
    n_iter : int
        Number of iterations.
    history : tuple of float
        Share of the rows that are done, after each iteration.
    message : str
        How many rows were resolved.
    threshold : ndarray, shape (p,)
        Modulus of a residual beyond which an entry of a row is an outlier.
    kept : ndarray, shape (p,)
        Share of the observed entries of each row that are none.

    Examples
    --------
    >>> V = np.ones((50, 1)) / 50**0.5
    >>> y = np.full((1, 50), 2.0)
    >>> y[0, :10] = 1000.0
    >>> result = rnla.robust_code(y, V)
    >>> np.round(result.C * V[0], 6).tolist(), result.kept.tolist()
    ([[2.0]], [0.8])
    """

    C: Any
    converged: np.ndarray
    n_iter: int
    history: tuple
    message: str
    threshold: np.ndarray
    kept: np.ndarray

    def __repr__(self):
        return f"RobustCodeResult({self.C.shape[0]} rows, {self.C.shape[1]} coefficients)\n  {self.message}"


def robust_code(Y, V, *, mask=None, decay=0.7, noise_floor=0.0, max_iter=80):
    """Find the coefficients of every row of `Y` in the space of the columns of `V`, leaving outliers out.

    Each row is fitted by least squares to those of its entries whose residual is below a bound; the bound falls until
    the fit is exact or has reached the level of the noise.

    Parameters
    ----------
    Y : array, shape (p, n)
        Rows; real or complex floating.
    V : array, shape (n, k)
        Orthonormal columns, library, device and dtype of `Y`.
    mask : array of bool, optional, shape (p, n)
        True where `Y` is observed; other entries are not looked at.
    decay : float
        Factor of the bounds from one iteration to the next, in (0, 1). Larger ones tolerate more outliers.
    noise_floor : float
        Residuals up to this modulus are never outliers; in the units of `Y`.
    max_iter : int
        Most iterations.

    Returns
    -------
    RobustCodeResult
        ``C`` and, of every row, threshold, share kept and whether it converged.

    Raises
    ------
    ValueError
        If shapes do not match, an argument is out of range, or an observed entry is not finite.
    TypeError
        If `Y` is not a floating array.

    Notes
    -----
    ``O(p n (k**2 + k))`` flops an iteration; further memory of twice `Y`. Rows of 1000 entries are recovered from 80 %
    outliers (5 coefficients), rows of 200 from 70 %.

    Examples
    --------
    >>> V = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 3)))[0]
    >>> Y = np.array([[1.0, -2.0, 3.0]]) @ V.T
    >>> Y[0, :60] += 10.0
    >>> np.round(rnla.robust_code(Y, V).C, 6).tolist()
    [[1.0, -2.0, 3.0]]
    """
    caller = "rnla.robust_code"
    _check(Y, V, mask, decay, noise_floor, max_iter, caller)
    return code_rows(Y, V, mask, decay, noise_floor, max_iter, caller)


def code_rows(Y, V, observed, decay, noise_floor, max_iter, caller):
    """Do the work of `robust_code` on arguments that are right."""
    xp, where = array_namespace(Y), device(Y)
    p, n = Y.shape
    real, eps, everything = real_dtype(xp, Y.dtype), eps_of(xp, Y.dtype), np.arange(n)
    if observed is not None:
        observed = xp.asarray(observed, device=where)
        Y = xp.where(observed, Y, xp.zeros_like(Y))
        seen = to_host(xp.sum(xp.astype(observed, xp.float64), axis=1))
    else:
        seen = np.full(p, float(n))
    top = to_host(xp.max(xp.abs(Y), axis=1))
    if not np.isfinite(top).all():
        row = int(np.argmin(np.isfinite(top)))
        raise ValueError(f"{caller}: Y must be finite where it is observed; row {row} is not.")
    ridge = RIDGE * float(to_host(xp.sum(xp.abs(V) ** 2))) / max(V.shape[1], 1)
    patience = math.ceil(3.5 / -math.log(decay))
    least = np.maximum(8 * eps * top, noise_floor)

    C = Y @ V
    z, kept, converged = top.copy(), np.ones(p), np.zeros(p, bool)
    best, best_C, stale = np.full(p, np.inf), C, np.zeros(p, int)
    sunk, fewest = np.zeros(p, bool), np.minimum(3 * V.shape[1], 0.5 * seen)
    refits = np.full(p, -1)  # of a row at its noise: how many are left
    active, history = np.arange(p), []
    for _ in range(max_iter):
        index = xp.asarray(active, device=where)
        some = len(active) < p
        Y_a, C_a = (xp.take(X, index, axis=0) if some else X for X in (Y, C))
        seen_a = observed if observed is None or not some else xp.take(observed, index, axis=0)
        E, q = kernels.sampled_residuals(Y_a, everything, seen_a, C_a, V, SHARE)
        q = np.maximum(to_host(q), 0)
        searching = refits[active] < 0
        better = searching & (q < 0.9 * best[active]) & ~sunk[active]
        best_C = _replace(best_C, C, active[better], xp, where)
        best[active[better]] = q[better]
        stale[active] = np.where(better, 0, stale[active] + (searching & ~better & (z[active] < LOW * q)))
        turned = searching & ((stale[active] >= patience) | sunk[active])
        if turned.any():  # the bound has sunk into the noise: go back, and refit once with the noise's own bound
            C = _replace(C, best_C, active[turned], xp, where)
            refits[active[turned]] = REFITS
            q[turned] = best[active[turned]]
            C_a = xp.take(C, index, axis=0) if some else C
            E, _ = kernels.sampled_residuals(Y_a, everything, seen_a, C_a, V, SHARE)
        # With the bound at its floor and residuals well within it there is nothing left to find.
        refits[active[searching & ~turned & (z[active] <= least[active]) & (z[active] >= LOW * q)]] = REFITS
        searching = refits[active] < 0
        falling = np.maximum(np.minimum(decay * z[active], HIGH * q), least[active])
        z[active] = np.where(searching, falling, np.maximum(LOW * q, least[active]))
        E, K, sums = kernels.keep_within(E, from_host(z[active], xp, real, where), C_a, V)
        step = kernels.trimmed_fit(E, K, V, ridge)
        C_a = C_a + step
        C = C_a if not some else _put(C, C_a, active, xp, where)
        kept[active] = sums[:, 2] / np.maximum(seen[active], 1)
        refits[active] -= refits[active] >= 0
        # Few entries are fitted by chance, and residuals that fill the interval are noise that the bound has sunk into.
        filled = (sums[:, 0] > (UNIFORM * z[active]) ** 2 * sums[:, 2]) & (z[active] > least[active])
        exact = searching & (sums[:, 0] <= max(ENOUGH, 4 * eps) ** 2 * sums[:, 1])
        sunk[active] = searching & ((sums[:, 2] < fewest[active]) | (exact & filled))
        done = (exact & ~sunk[active]) | (refits[active] == 0)
        converged[active[done]] = sums[done, 2] > V.shape[1]
        active = active[~done]
        history.append(1 - len(active) / max(p, 1))
        if not len(active):
            break
    message = f"{int(converged.sum())} of {p} rows converged"
    return RobustCodeResult(C, converged, len(history), tuple(history), message, z, kept)


def _replace(C, other, rows, xp, where):
    return C if not len(rows) else _put(C, xp.take(other, xp.asarray(rows, device=where), axis=0), rows, xp, where)


def _put(C, part, rows, xp, where):
    """Return C with some rows replaced."""
    if len(rows) == C.shape[0]:
        return part
    C = xp.asarray(C, copy=True)
    if isinstance(C, np.ndarray):
        C[rows] = part
        return C
    place = np.full(C.shape[0], -1)
    place[rows] = np.arange(len(rows))
    chosen = xp.asarray(place >= 0, device=where)[:, None]
    return xp.where(chosen, xp.take(part, xp.asarray(np.maximum(place, 0), device=where), axis=0), C)


def _check(Y, V, mask, decay, noise_floor, max_iter, caller):
    for name, X in (("Y", Y), ("V", V)):
        if not is_array_api_obj(X):
            raise TypeError(f"{caller}: {name} must be an array; got {type(X).__name__}.")
        xp = array_namespace(X)
        if not xp.isdtype(X.dtype, ("real floating", "complex floating")):
            raise TypeError(f"{caller}: {name} must be real or complex floating; got {X.dtype}.")
        if X.ndim != 2:
            raise ValueError(f"{caller}: {name} must be two-dimensional; got shape {tuple(X.shape)}.")
    if V.shape[0] != Y.shape[1] or V.shape[1] > V.shape[0]:
        raise ValueError(
            f"{caller}: V must have as many rows as Y has columns, {Y.shape[1]}, and no more columns; got shape "
            f"{tuple(V.shape)}."
        )
    if V.dtype != Y.dtype:
        raise TypeError(f"{caller}: V must have the dtype of Y, {Y.dtype}; got {V.dtype}.")
    gram = to_host(adjoint(V) @ V)
    if not np.allclose(gram, np.eye(len(gram)), atol=100 * math.sqrt(eps_of(array_namespace(V), V.dtype))):
        raise ValueError(f"{caller}: V must have orthonormal columns; V^H V differs from the identity.")
    if mask is not None and (tuple(mask.shape) != tuple(Y.shape) or "bool" not in str(mask.dtype)):
        raise ValueError(
            f"{caller}: mask must be boolean and of shape {tuple(Y.shape)}; got {mask.dtype}, {tuple(mask.shape)}."
        )
    check_number(noise_floor, "noise_floor", caller)
    check_count(max_iter, "max_iter", caller)
    check_decay(decay, caller)


def check_decay(decay, caller):
    """Raise unless `decay` is a number in (0, 1)."""
    check_number(decay, "decay", caller)
    if not 0 < decay < 1:
        raise ValueError(f"{caller}: decay must be in (0, 1); got {decay}.")
