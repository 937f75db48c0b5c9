"""Corrections of matrix functions from Krylov spaces: extended, of a root and its inverse; block Lanczos; rational.

All project the matrix before and after the update on one space and correct there, where everything is small and dense.
"""

import math
from collections import deque

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of, from_host, to_host
from rnla._sqrt_action import orthonormal_beside
from rnla._sqrt_quadrature import DROPPED, Correction

MAX_STEPS = 200
LANCZOS_LIMIT = 1e5  # condition number beyond which block Lanczos converges too slowly to be of use


def extended_krylov(base, update, span, tol, inverse, monitor):
    """Correct with the spaces of ``S Z, S^2 Z, ...`` and ``S^-1 Z, S^-2 Z, ...``; the base has both roots.

    Returns
    -------
    correction : Correction
        The correction.
    converged : bool
        Whether the residual is within ``tol sqrt(low) ||X||``, or rounding.
    """
    V = orthonormal_beside(update.Z, None)
    SV = base.sqrt_times(V)
    up = down = V
    C = np.diag(update.s)
    floor = 100 * eps_of(base.xp, V.dtype) * math.sqrt(span.high / span.low)  # rounding in the residual
    for _ in range(MAX_STEPS):
        H = to_host(adjoint(SV) @ SV)
        Zp = to_host(adjoint(V) @ update.Z)
        lam, Q = _small_correction(H, Zp, C, inverse)
        error = _step_error(base, update, V, SV, lam, Q, inverse)
        top = np.abs(lam).max(initial=0.0)
        goal = max(tol, floor) * math.sqrt(span.low) * top
        if monitor(error / goal * tol if goal else 0.0):
            return _kept(V, lam, Q, tol), False
        if error <= goal or V.shape[1] >= base.n:
            return _kept(V, lam, Q, tol), True
        up = orthonormal_beside(base.sqrt_times(up), V)
        down = orthonormal_beside(base.inv_sqrt_times(down), V)
        new = up
        if down.shape[1]:
            down = orthonormal_beside(down, up) if up.shape[1] else down
            new = array_namespace(V).concat([up, down], axis=1)
        if not new.shape[1]:
            return _kept(V, lam, Q, tol), True
        xp = array_namespace(V)
        V, SV = xp.concat([V, new], axis=1), xp.concat([SV, base.sqrt_times(new)], axis=1)
    return _kept(V, lam, Q, tol), False


def lanczos(base, update, span, tol, function, monitor, max_steps=None):
    """Correct ``function`` with the Krylov space of A and Z: block Lanczos, orthogonalised against all of the basis.

    Returns
    -------
    correction : Correction
        The correction.
    converged : bool
        Whether two steps in a row changed it by less than `tol`.
    """
    xp = base.xp
    V = last = orthonormal_beside(update.Z, None)
    AV = base.times(V)
    C, previous, calm = np.diag(update.s), deque(maxlen=3), 0
    for _ in range(max_steps or MAX_STEPS):
        H = to_host(adjoint(V) @ AV)
        X = _difference(H, to_host(adjoint(V) @ update.Z), C, function)
        previous.append(X)
        change = math.inf
        if len(previous) == 3:
            older = previous[0]
            old = np.zeros_like(X)
            old[: len(older), : len(older)] = older
            change = np.linalg.norm(X - old) / max(np.linalg.norm(X), 1e-300)
        calm = calm + 1 if change <= tol else 0
        full = V.shape[1] >= base.n
        if monitor(min(change, 1.0)) or calm == 2 or full:
            lam, Q = np.linalg.eigh(X)
            return _kept(V, lam, Q, tol), calm == 2 or full
        last = orthonormal_beside(AV[:, -last.shape[1] :], V)
        if not last.shape[1]:
            lam, Q = np.linalg.eigh(X)
            return _kept(V, lam, Q, tol), True
        V, AV = xp.concat([V, last], axis=1), xp.concat([AV, base.times(last)], axis=1)
    lam, Q = np.linalg.eigh(X)
    return _kept(V, lam, Q, tol), False


def rational_krylov(base, update, poles, function, tol):
    """Correct ``function`` with the space of Z and of ``(A + tau)^-1 Z`` for some poles."""
    xp = base.xp
    V = orthonormal_beside(update.Z, None)
    for tau in poles:
        new = orthonormal_beside(base.shift_solve(float(tau), update.Z), V)
        if new.shape[1]:
            V = xp.concat([V, new], axis=1)
    H = to_host(adjoint(V) @ base.times(V))
    X = _difference(H, to_host(adjoint(V) @ update.Z), np.diag(update.s), function)
    lam, Q = np.linalg.eigh(X)
    return _kept(V, lam, Q, tol)


def dense_correction(base, update, tol, inverse):
    """Correct with all of the space: for small matrices. Nothing is subtracted that is nearly equal."""
    xp, n = base.xp, base.n
    A = to_host(base.times(xp.eye(n, dtype=update.Z.dtype, device=base.device)))
    lam, Q = _small_correction(A, to_host(update.Z), np.diag(update.s), inverse)
    keep = np.abs(lam) > DROPPED * tol * np.abs(lam).max(initial=0.0)
    P = Q[:, keep] * np.sqrt(np.abs(lam[keep]))
    return Correction(from_host(P, xp, update.Z.dtype, base.device), np.sign(lam[keep]), 0)


def _small_correction(H, Z, C, inverse):
    """Return eigenvalues and vectors of ``(H + Z C Z^H)^(+-1/2) - H^(+-1/2)``, without a difference of roots."""
    update = Z @ C @ Z.conj().T
    a, Qa = np.linalg.eigh((H + H.conj().T) / 2)
    w, Qw = np.linalg.eigh((H + H.conj().T + update + update.conj().T) / 2)
    a, w = np.sqrt(np.maximum(a, 0)), np.sqrt(np.maximum(w, 0))
    inner = Qw.conj().T @ update @ Qa
    sums = w[:, None] + a[None, :]
    if inverse:
        sums = -sums * w[:, None] * a[None, :]
    X = Qw @ np.divide(inner, sums, out=np.zeros_like(inner), where=sums != 0) @ Qa.conj().T
    return np.linalg.eigh((X + X.conj().T) / 2)


def _difference(H, Z, C, function):
    """Return ``f(H + Z C Z^H) - f(H)``, by divided differences where arguments are close."""
    update = Z @ C @ Z.conj().T
    a, Qa = np.linalg.eigh((H + H.conj().T) / 2)
    w, Qw = np.linalg.eigh((H + H.conj().T + update + update.conj().T) / 2)
    inner = Qw.conj().T @ update @ Qa
    slopes = _divided(function, w[:, None], a[None, :])
    X = Qw @ (slopes * inner) @ Qa.conj().T
    return (X + X.conj().T) / 2


def _divided(function, x, y):
    """Return ``(f(x) - f(y)) / (x - y)``, from a central difference where x and y are close."""
    x, y = np.broadcast_arrays(x, y)
    gap = x - y
    close = np.abs(gap) <= 1e-4 * np.maximum(np.abs(x), np.abs(y))
    safe = np.where(close, 1.0, gap)
    direct = (function(x) - function(y)) / safe
    middle, h = (x + y) / 2, 1e-3 * np.abs(x + y) / 2
    h = np.where(h == 0, 1.0, h)
    # Fourth order: the error is (h / x)^4 relative, and that of the gap squared over x squared, 1e-9.
    f = [function(middle + j * h) for j in (-2, -1, 1, 2)]
    derivative = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)
    return np.where(close, derivative, direct)


def _kept(V, lam, Q, tol):
    keep = np.abs(lam) > DROPPED * tol * np.abs(lam).max(initial=0.0)
    P = Q[:, keep] * np.sqrt(np.abs(lam[keep]))
    V = V[:, : Q.shape[0]]  # without a last block that was not used yet
    return Correction(V @ from_host(P, array_namespace(V), V.dtype, device(V)), np.sign(lam[keep]), 0)


def _step_error(base, update, V, SV, lam, Q, inverse):
    """Return the norm of the residual of the corrected root, from products with blocks only."""
    xp, place = array_namespace(V), (array_namespace(V), V.dtype, device(V))
    P = V @ from_host(Q * np.sqrt(np.abs(lam)), *place)
    signs = np.sign(lam)
    if inverse:
        return inverse_residual(base, update, P, signs)
    SP = SV @ from_host(Q * np.sqrt(np.abs(lam)), *place)
    return root_residual(xp, P, SP, signs, update)


def root_residual(xp, P, SP, signs, update, order=2):
    """Return ``||(S + X)^2 - W||`` for ``X = P diag(signs) P^H``, exactly, without forming it."""
    r, k = P.shape[1], update.Z.shape[1]
    M = np.zeros((2 * r + k, 2 * r + k), dtype=complex)
    Sg = np.diag(signs)
    M[:r, r : 2 * r] = M[r : 2 * r, :r] = Sg
    M[r : 2 * r, r : 2 * r] = Sg @ to_host(adjoint(P) @ P) @ Sg
    M[2 * r :, 2 * r :] = -np.diag(update.s)
    return _norm_of(xp.concat([SP, P, update.Z], axis=1), M, order)


def inverse_residual(base, update, P, signs, order=2):
    """Return ``||(T + X) W (T + X) - I||`` for ``X = P diag(signs) P^H``."""
    xp, r, k = array_namespace(P), P.shape[1], update.Z.shape[1]
    Sg = np.diag(signs)
    SP = base.sqrt_times(P)
    Zh = base.inv_sqrt_times(update.Z) + (P * from_host(signs, xp, P.dtype, device(P))) @ (adjoint(P) @ update.Z)
    M = np.zeros((2 * r + k, 2 * r + k), dtype=complex)
    M[:r, :r] = Sg @ to_host(adjoint(SP) @ SP) @ Sg
    M[:r, r : 2 * r] = M[r : 2 * r, :r] = Sg
    M[2 * r :, 2 * r :] = np.diag(update.s)
    return _norm_of(xp.concat([P, SP, Zh], axis=1), M, order)


def _norm_of(F, M, order):
    R = to_host(array_namespace(F).linalg.qr(F)[1])
    return float(np.linalg.norm(R @ M @ R.conj().T, order))
