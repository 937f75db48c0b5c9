"""Corrections of matrix roots by Zolotarev's quadrature and Woodbury's formula: the update, its interval, the sums.

The data's way: the update is brought to the form ``Z diag(s) Z^H`` with signs s; an interval that holds the spectra
before and after gives nodes tau and weights w; at every node ``Y = (A + tau)^-1 Z`` and a k x k matrix ``K = diag(s) +
Z^H Y`` give a term ``Y K^-1 Y^H``. All terms of one sign are positive semidefinite, so their sum does not cancel; it is
compressed to the numerical rank by its Gram matrix.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from scipy.linalg import lapack

from rnla import kernels
from rnla._backend import adjoint, eps_of, from_host, host_svd, real_dtype, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._orth import orth
from rnla._rational import node_count, zolotarev_nodes
from rnla._sqrt_action import solved

STORED = 1 << 16  # entries up to which the solutions at all nodes are held at once
DROPPED = 0.1  # columns below this times the tolerance of the largest are left out


class Update(NamedTuple):
    """``Z diag(s) Z^H`` with signs s."""

    Z: Any  # (n, k)
    s: np.ndarray  # (k,) of +1.0 and -1.0
    largest: float  # eigenvalue of ``Z_+ Z_+^H``, Z_+ being the columns of sign +1


class Interval(NamedTuple):
    """Ends between which the eigenvalues are before and after the update."""

    low: float
    high: float
    gap: float  # smallest eigenvalue of the updated matrix relative to A: positive


class Correction(NamedTuple):
    """``P diag(signs) P^H``."""

    P: Any  # (n, r)
    signs: np.ndarray  # (r,)
    n_nodes: int


def canonical(Z, C, sign):
    """Return ``Z C Z^H``, or ``sign * Z Z^H``, as an `Update`; only ever multiplies Z from the right.

    An orthonormal basis of Z would lose the small rows of a graded matrix.
    """
    xp = array_namespace(Z)
    eps = eps_of(xp, Z.dtype)
    if C is None:
        parts = [(Z, float(sign))]
    else:
        lam, V = np.linalg.eigh((C + C.conj().T) / 2 * sign)
        top = np.abs(lam).max(initial=0.0)
        parts = []
        for positive in (True, False):
            some = (lam > eps * top) if positive else (lam < -eps * top)
            weights = V[:, some] * np.sqrt(np.abs(lam[some]))
            parts.append((Z @ from_host(weights, xp, Z.dtype, device(Z)), 1.0 if positive else -1.0))
    kept, signs, largest = [], [], 0.0
    for part, s in parts:
        if part.shape[1] == 0:
            continue
        scale = float(xp.max(xp.abs(part)))
        if scale == 0:
            continue
        squares = _squares(part / scale, eps)
        if squares is None:
            # The rotation that makes columns orthogonal, and shows which of them are zero.
            _, sv, Wh = host_svd(_triangle(part / scale))
            some = sv > eps * max(part.shape) * sv[0]
            part = part @ from_host(Wh[some].conj().T, xp, Z.dtype, device(Z))
            squares = sv[::-1] ** 2
        if s > 0:
            largest = float(squares[-1]) * scale**2
        kept.append(part)
        signs += [s] * part.shape[1]
    if not kept:
        return Update(Z[:, :0], np.zeros(0), 0.0)
    return Update(kept[0] if len(kept) == 1 else xp.concat(kept, axis=1), np.array(signs), largest)


def _triangle(X):
    return to_host(array_namespace(X).linalg.qr(X)[1])


def _squares(X, eps):
    """Return the squared singular values of X if its columns are independent, far above the rounding of these."""
    values = np.linalg.eigvalsh(to_host(adjoint(X) @ X))
    independent = X.shape[1] <= X.shape[0] and values[0] > 1e3 * eps * max(X.shape) * values[-1]
    return values if independent or X.shape[1] == 1 else None


def interval(base, update, tol, inverse, caller):
    """Return where the eigenvalues of A and of the updated matrix are; raise if that is not positive definite."""
    low, high = base.bounds
    high += update.largest * (1 + 1e-10)
    xp = base.xp
    gap = 1.0
    if (update.s < 0).any():
        if not low > 0:
            raise NotPositiveDefiniteError(
                f"{caller}: A must be positive definite where something is subtracted; its smallest eigenvalue is "
                f"{low:.3g}.", gap=-math.inf,
            )  # fmt: skip
        G = to_host(adjoint(update.Z) @ solved(base, update.Z))
        lam, V = np.linalg.eigh((G + G.conj().T) / 2)
        root = (V * np.sqrt(np.maximum(lam, 0))) @ V.conj().T
        gap = float(np.linalg.eigvalsh(np.eye(len(lam)) + (root * update.s) @ root)[0])
        if not gap > 4 * eps_of(xp, update.Z.dtype) * max(1.0, float(lam[-1])):
            raise NotPositiveDefiniteError(
                f"{caller}: the updated matrix must be positive definite; relative to A its smallest eigenvalue is "
                f"{gap:.3g}.", gap=gap,
            )  # fmt: skip
        gap = min(1.0, gap)
        low *= gap
    if low <= tol**2 * high and not low > 0:
        if inverse:
            raise NotPositiveDefiniteError(
                f"{caller}: A must be positive definite for the inverse root; its smallest eigenvalue is "
                f"{base.bounds[0]:.3g}.", gap=0.0,
            )  # fmt: skip
        low = tol**2 * high  # the error is then relative to the norm of the root
    return Interval(low, high, gap)


def on_diagonal(base, update, span, tol, inverses):
    """Return a `Correction` for each flag of `inverses`, of a base that is diagonalised; two sweeps over the rows."""
    tau, w = zolotarev_nodes(span.low, span.high, n_nodes=node_count(span.high / span.low, tol))
    xp, z = base.xp, base.rotate(update.Z)
    d = xp.astype(base.d, real_dtype(xp, z.dtype), copy=False)
    n, k = z.shape
    if n * k * len(tau) <= STORED:
        inverse = 1 / (d[None, :] + from_host(tau, xp, d.dtype, base.device)[:, None])
        Y = xp.reshape(inverse[:, None, :] * z.T[None, :, :], (len(tau) * k, n)).T
        found = _from_solutions(z, Y, update.s, tau, w, inverses, tol)
    else:
        found = []
        G, YY = kernels.sqrt_sweep_gram(d, z, tau)
        for B, signs in _combinations(G, YY, update.s, tau, w, inverses, tol):
            P = kernels.sqrt_sweep_product(d, z, tau, from_host(B, xp, z.dtype, base.device))
            found.append(Correction(P, signs, len(tau)))
    return [correction._replace(P=base.back(correction.P)) for correction in found]


def on_updated(base, before, update, low, high, tol, inverse):
    """Return what `update` adds to a root that `before` has corrected, of a base that is diagonalised.

    On the same nodes, which `low` and `high` tell, the sum of both corrections is that of both updates together.
    """
    tau, w = zolotarev_nodes(low, high, n_nodes=node_count(high / low, tol))
    xp, Z, new = base.xp, base.rotate(before.Z), base.rotate(update.Z)
    (n, k), q, N = Z.shape, new.shape[1], len(tau)
    d = xp.astype(base.d, real_dtype(xp, Z.dtype), copy=False)
    shifts = from_host(tau, xp, d.dtype, base.device)[:, None]
    both, rows = xp.concat([Z, new], axis=1), max(256, STORED // (N * (k + q)))
    blocks = [slice(start, start + rows) for start in range(0, n, rows)]
    G = np.zeros((k, N * (k + q)))
    for rows in blocks:  # transposed, so that operations run along memory
        Y = (1 / (d[rows] + shifts))[:, None, :] * both[rows, :].T[None, :, :]
        G = G + to_host(adjoint(Z[rows, :]) @ xp.reshape(Y, (N * (k + q), Y.shape[2])).T)
    G = np.transpose(G.reshape(k, N, k + q), (1, 0, 2))
    inner = np.linalg.solve(np.diag(before.s) + G[:, :, :k], G[:, :, k:])  # (N, k, q)
    inner = from_host(np.swapaxes(inner, 1, 2).reshape(N * q, k), xp, Z.dtype, base.device)
    parts = []
    for rows in blocks:  # of (W + tau_j)^-1 times the new columns
        rest = new[rows, :].T[None, :, :] - xp.reshape(inner @ Z[rows, :].T, (N, q, -1))
        parts.append(xp.reshape((1 / (d[rows] + shifts))[:, None, :] * rest, (N * q, -1)))
    (found,) = _from_solutions(new, xp.concat(parts, axis=1).T, update.s, tau, w, (inverse,), tol)
    return found._replace(P=base.back(found.P))


def on_scalar(base, update, inverse):
    """Return the correction of a multiple of the identity: exact, of the rank of the update."""
    alpha = base.bounds[0]
    lam, V = np.linalg.eigh(to_host(adjoint(update.Z) @ update.Z))
    lam = np.maximum(lam, 0)
    if (update.s < 0).any():  # W - alpha I has the range of Z: there it is R diag(s) R^H, Z = Q R
        Q, R = orth(update.Z)
        e, V = np.linalg.eigh((R * update.s) @ R.conj().T)
        roots = np.sqrt(np.maximum(alpha + e, 0))
        X = e / (roots + alpha**0.5)
        X = -X / (roots * alpha**0.5) if inverse else X
        weights, left = np.sqrt(np.abs(X)), Q
    else:
        roots = np.sqrt(alpha + lam)
        weights = 1 / np.sqrt(roots + alpha**0.5)
        if inverse:
            weights = weights / np.sqrt(roots * alpha**0.5)
        X, left = np.full(len(lam), -1.0 if inverse else 1.0), update.Z
    some = np.abs(X) > eps_of(base.xp, update.Z.dtype) * np.abs(X).max(initial=0.0)
    P = left @ from_host((V * weights)[:, some], base.xp, update.Z.dtype, base.device)
    return Correction(P, np.sign(X[some]), 0)


def on_shifted(base, update, span, tol, inverses):
    """Return the same of a base that solves with ``A + tau I``."""
    tau, w = zolotarev_nodes(span.low, span.high, n_nodes=node_count(span.high / span.low, tol))
    Y = base.xp.concat([base.shift_solve(float(t), update.Z) for t in tau], axis=1)  # (n, N k)
    return _from_solutions(update.Z, Y, update.s, tau, w, inverses, tol)


def _from_solutions(Z, Y, s, tau, w, inverses, tol):
    """Return a `Correction` for each flag of `inverses`, from all ``Y_j = (A + tau_j)^-1 Z`` side by side."""
    xp, k = array_namespace(Z), Z.shape[1]
    G = np.transpose(to_host(adjoint(Z) @ Y).reshape(k, len(tau), k), (1, 0, 2))
    YY = to_host(adjoint(Y) @ Y)
    return [
        Correction(Y @ from_host(B, xp, Y.dtype, device(Y)), signs, len(tau))
        for B, signs in _combinations(G, YY, s, tau, w, inverses, tol)
    ]


def _combinations(G, YY, s, tau, w, inverses, tol):
    return [_combination(G, YY, s, w if inverse else w * tau, inverse, tol) for inverse in inverses]


def _combination(G, YY, s, weights, inverse, tol):
    """Return B and signs with ``Y B diag(signs) (Y B)^H`` the sum over the nodes, on the host.

    ``G[j] = Z^H Y_j`` (k, k), ``YY = Y^H Y`` (N k, N k), Y having the columns of Y_1, Y_2, ...
    """
    N, k, _ = G.shape
    n_minus = int(np.count_nonzero(s < 0))
    try:
        T = _roots_of_inverses(np.diag(s) + (G + np.swapaxes(G, 1, 2).conj()) / 2, n_minus)
    except np.linalg.LinAlgError:
        message = "rnla: the updated matrix is not positive definite, to rounding."
        raise NotPositiveDefiniteError(message, gap=0.0) from None
    T = T * np.sqrt(weights)[:, None, None]
    found = []
    for sign, part in ((1.0, T[:, :, n_minus:]), (-1.0, T[:, :, :n_minus])):
        if part.shape[2]:
            found.append((-sign if inverse else sign, part, *_leading(_compressed(part, YY), tol)))
    least = DROPPED * tol * max(sizes.max(initial=0.0) for _, _, sizes, _ in found)
    parts, signs = [], []
    for sign, part, sizes, V in found:
        lost = np.cumsum(sizes[::-1])[::-1]  # by leaving out a column and all after it
        count = int(np.count_nonzero(lost > least))
        parts.append(np.matmul(part, V[:, :count].reshape(N, part.shape[2], count)).reshape(N * k, count))
        signs.append(np.full(count, sign))
    return (parts[0], signs[0]) if len(parts) == 1 else (np.concatenate(parts, axis=1), np.concatenate(signs))


def _roots_of_inverses(K, n_minus):
    """Return T (N, k, k) with ``T_j diag(signs) T_j^H`` the inverse of K[j]; the negative signs come first."""
    if not n_minus or n_minus == K.shape[1]:
        R = np.linalg.cholesky(-K if n_minus else K)
        return np.swapaxes(np.linalg.inv(R), 1, 2).conj()
    lam, U = np.linalg.eigh(K)
    if np.any(np.count_nonzero(lam < 0, axis=1) != n_minus):
        raise np.linalg.LinAlgError
    return U / np.sqrt(np.abs(lam))[:, None, :]


def _compressed(part, YY):
    """Return ``B^H YY B`` for B with the blocks part[j] (k, q) on its diagonal."""
    N, k, q = part.shape
    half = np.matmul(np.swapaxes(YY.reshape(N * k, N, k), 0, 1), part)  # (N, N k, q)
    half = np.swapaxes(half, 0, 1).reshape(N, k, N * q)
    return np.matmul(np.swapaxes(part, 1, 2).conj(), half).reshape(N * q, N * q)


def _leading(H, tol):
    """Return sizes (r,) and orthonormal columns V (m, r) of which the first few span the range of H, to a precision.

    What H loses without the last columns has the sum of their sizes as a trace. A Cholesky factor with pivots shows the
    rank; the triangular factor of its adjoint then shows the eigenvalues nearly as well as they do themselves
    (Stewart's QLP decomposition), for a fraction of what an eigendecomposition costs.
    """
    m = len(H)
    least = max(DROPPED * tol / (10 * m), 10 * m * np.finfo(float).eps) * float(np.max(np.diagonal(H).real))
    is_real = H.dtype.kind == "f"
    R, pivots, rank, _ = (lapack.dpstrf if is_real else lapack.zpstrf)(H, tol=least)
    order = np.arange(m)
    R = np.where(order[:rank, None] <= order, R[:rank], 0)
    # Rows of R, scaled to the same length, are far from dependent: its Gram matrix has a Cholesky factor.
    L = np.linalg.cholesky(R @ R.T if is_real else R @ R.conj().T)
    V = np.empty((m, rank), H.dtype)
    V[pivots - 1] = (lapack.dtrtrs if is_real else lapack.ztrtrs)(L, R, lower=1)[0].conj().T
    return np.sum(np.abs(L) ** 2, axis=0), V
