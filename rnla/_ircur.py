"""Robust PCA by CUR decompositions of sampled rows and columns whose outliers are replaced by the present fit."""

import math

import numpy as np
from array_api_compat import array_namespace, device

from rnla import kernels
from rnla._altproj import EXTRA, nothing, verdict
from rnla._backend import eps_of, from_host, host_svd, real_dtype, to_host
from rnla._riecur import SHARE, Iterate, checked, conjugate, largest, observed_count, sampled
from rnla._riemannian import Point
from rnla._rpca_entries import residual_sides
from rnla._rpca_rescue import refactored
from rnla._rpca_result import RobustRecord

POWERS = 2  # products that sharpen the singular vectors of the intersection, which start near them


def ircur(entries, samples, k, *, tol, max_iter, monitor, decay):
    """Rebuild L from sampled rows and columns as their CUR decomposition, with a bound of outliers that falls.

    Returns
    -------
    Iterate, float
        Where it ended, and the bound below which all is rounding.
    """
    xp, (m, n) = entries.xp, entries.shape
    cross = samples.draw()
    z, _ = largest(sampled(cross), entries)
    if z == 0:
        return nothing(entries, k)
    place = {"dtype": entries.dtype, "device": entries.device}
    real = {"dtype": real_dtype(xp, entries.dtype), "device": entries.device}
    floor = 4 * eps_of(xp, entries.dtype) * z
    P, Q = (xp.zeros((side, k), **place) for side in (m, n))  # L = P Q^H
    records, status = [], "max_iter"
    for iteration in range(1, max_iter + 1):
        if iteration > 1:
            cross, z = samples.draw(), max(decay * z, floor)
        # The order statistics find what is not finite; the bound does not need them.
        (E_J, q_row), (E_I, q_col), Q_J, P_I = residual_sides(cross, Point(P, xp.ones(k, **real), Q), SHARE)
        checked(q_row, entries), checked(q_col, entries)
        conj = conjugate(xp, entries.dtype)
        E_J, _, down = kernels.keep_within(E_J, xp.full(m, z, **real), P, Q_J)
        E_I, _, across = kernels.keep_within(E_I, xp.full(n, z, **real), conj(Q), conj(P_I))
        P, Q = cur_factors(E_J, E_I, P, Q, P_I, Q_J, cross.rows)
        left, there, count = (down.sum(axis=0) + across.sum(axis=0)).tolist()
        e, kept = math.sqrt(left / there) if there > 0 else 0.0, count / observed_count(cross)
        records.append(RobustRecord(iteration, e, z, kept, monitor.seconds))
        if monitor(e):
            status = "stopped"
            break
        if e < tol:
            status = verdict(kept, math.sqrt(left / max(count, 1)), z, floor, k, min(m, n))
            break
    return Iterate(refactored(P, Q), status, np.full(m, z), np.full(n, z), kept, 0.0, tuple(records)), floor


def cur_factors(E_J, E_I, P, Q, P_I, Q_J, rows):
    """Return the factors of ``C U_k^+ R``, a matrix (m, k) and the adjoint (n, k) of the other.

    C and R are sampled columns and rows of ``P Q^H + E``, U where they meet, U_k its best approximation of rank k.

    Parameters
    ----------
    E_J : array, shape (m, len(J))
        Columns of E.
    E_I : array, shape (n, len(I))
        Rows of E, transposed.
    P, Q : array, shapes (m, k) and (n, k)
        Present factors.
    P_I, Q_J : array, shapes (len(I), k) and (len(J), k)
        Rows of P and of Q.
    rows : ndarray of int
        I.
    """
    xp, dtype, where = array_namespace(P), P.dtype, device(P)
    conj, k = conjugate(xp, dtype), P.shape[1]
    E_IJ = xp.take(E_J, xp.asarray(rows, device=where), axis=0)
    core = to_host(E_IJ) + to_host(P_I) @ to_host(Q_J).conj().T
    U, s, V = _leading(core, k, to_host(Q_J))
    inverse = np.where(s > eps_of(xp, dtype) * max(core.shape) * s[0], 1 / np.where(s > 0, s, 1), 0.0)
    U, V = from_host(U, xp, dtype, where), from_host(V * inverse, xp, dtype, where)
    return E_J @ V + P @ (conj(Q_J).T @ V), conj(E_I @ conj(U)) + Q @ (conj(P_I).T @ U)


def _leading(X, k, start):
    """Return k leading singular triplets U, s, V of a small matrix; `start`, if not zero, is near V."""
    width = k + EXTRA
    if 3 * width > min(X.shape) or not start.any():
        U, s, Vh = host_svd(X)
        return U[:, :k], s[:k], Vh[:k].conj().T
    more = np.random.Generator(np.random.Philox(len(X))).standard_normal((X.shape[1], EXTRA))
    Y = X @ np.concatenate([np.linalg.qr(start)[0], more / math.sqrt(X.shape[1])], axis=1)
    for _ in range(POWERS):
        Q = np.linalg.qr(X.conj().T @ np.linalg.qr(Y)[0])[0]
        Y = X @ Q
    U, s, Wh = host_svd(Y)
    return U[:, :k], s[:k], Q @ Wh[:k].conj().T
