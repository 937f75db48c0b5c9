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
from scipy.linalg import get_lapack_funcs

from rnla import kernels
from rnla._backend import adjoint, eps_of, from_host, host_svd, real_dtype, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._orth import orth
from rnla._rational import node_count, zolotarev_nodes
from rnla._sqrt_action import solved

CHOLESKY_FROM, CHOLESKY_SHARE = 32, 0.8  # width, and rank relative to it, where a Cholesky factor pays
DROPPED = 0.1  # columns below this times the tolerance of the largest are left out


class Update(NamedTuple):
    """``Z diag(s) Z^H`` with signs s."""

    Z: Any  # (n, k)
    s: np.ndarray  # (k,) of +1.0 and -1.0


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
    kept, signs = [], []
    for part, s in parts:
        if part.shape[1] == 0:
            continue
        scale = float(xp.max(xp.abs(part)))
        if scale == 0:
            continue
        if part.shape[1] > 1 and not _independent(part / scale, eps):
            # The rotation that makes columns orthogonal, and shows which of them are zero.
            _, sv, Wh = host_svd(_triangle(part / scale))
            some = sv > eps * max(part.shape) * sv[0]
            part = part @ from_host(Wh[some].conj().T, xp, Z.dtype, device(Z))
        kept.append(part)
        signs += [s] * part.shape[1]
    if not kept:
        return Update(Z[:, :0], np.zeros(0))
    return Update(kept[0] if len(kept) == 1 else xp.concat(kept, axis=1), np.array(signs))


def _triangle(X):
    return to_host(array_namespace(X).linalg.qr(X)[1])


def _independent(X, eps):
    """Say whether the Gram matrix alone shows that the columns are independent, far above its rounding."""
    values = np.linalg.eigvalsh(to_host(adjoint(X) @ X))
    return X.shape[1] <= X.shape[0] and values[0] > 1e3 * eps * max(X.shape) * values[-1]


def interval(base, update, tol, inverse, caller):
    """Return where the eigenvalues of A and of the updated matrix are; raise if that is not positive definite."""
    low, high = base.bounds
    plus = update.s > 0
    xp = base.xp
    if plus.any():
        part = update.Z[:, : int(plus.sum())] if plus[0] else update.Z
        high += float(np.linalg.eigvalsh(to_host(adjoint(part) @ part))[-1]) * (1 + 1e-10)
    gap = 1.0
    if not plus.all():
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
    z = base.rotate(update.Z)
    d = base.xp.astype(base.d, real_dtype(base.xp, z.dtype), copy=False)
    G, YY = kernels.sqrt_sweep_gram(d, z, tau)
    out = []
    for inverse in inverses:
        B, signs = _combination(G, YY, update.s, w if inverse else w * tau, inverse, tol)
        P = kernels.sqrt_sweep_product(d, z, tau, from_host(B, base.xp, z.dtype, base.device))
        out.append(Correction(base.back(P), signs, len(tau)))
    return out


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
    xp, Z = base.xp, update.Z
    Y = xp.concat([base.shift_solve(float(t), Z) for t in tau], axis=1)  # (n, N k)
    k = Z.shape[1]
    G = np.transpose(to_host(adjoint(Z) @ Y).reshape(k, len(tau), k), (1, 0, 2))
    YY = to_host(adjoint(Y) @ Y)
    out = []
    for inverse in inverses:
        B, signs = _combination(G, YY, update.s, w if inverse else w * tau, inverse, tol)
        out.append(Correction(Y @ from_host(B, xp, Y.dtype, base.device), signs, len(tau)))
    return out


def _combination(G, YY, s, weights, inverse, tol):
    """Return B and signs with ``Y B diag(signs) (Y B)^H`` the sum over the nodes, on the host.

    ``G[j] = Z^H Y_j`` (k, k), ``YY = Y^H Y`` (N k, N k), Y having the columns of Y_1, Y_2, ...
    """
    N, k, _ = G.shape
    n_minus = int(np.count_nonzero(s < 0))
    lam, U = np.linalg.eigh(np.diag(s) + (G + np.swapaxes(G, 1, 2).conj()) / 2)
    if np.any(np.count_nonzero(lam < 0, axis=1) != n_minus):
        raise NotPositiveDefiniteError("rnla: the updated matrix is not positive definite, to rounding.", gap=0.0)
    T = U * np.sqrt(weights[:, None] / np.abs(lam))[:, None, :]  # (N, k, k): the negative eigenvalues come first
    found = []
    for sign, part in ((1.0, T[:, :, n_minus:]), (-1.0, T[:, :, :n_minus])):
        if part.shape[2]:
            lam, V = _leading(_compressed(part, YY), tol)
            found.append((-sign if inverse else sign, part, lam, V))
    least = DROPPED * tol * max(lam[-1] for _, _, lam, _ in found)
    parts, signs = [], []
    for sign, part, lam, V in found:
        V = V[:, lam > least][:, ::-1]
        parts.append(np.matmul(part, V.reshape(N, part.shape[2], V.shape[1])).reshape(N * k, V.shape[1]))
        signs.append(np.full(V.shape[1], sign))
    return np.concatenate(parts, axis=1), np.concatenate(signs)


def _compressed(part, YY):
    """Return ``B^H YY B`` for B with the blocks part[j] (k, q) on its diagonal."""
    N, k, q = part.shape
    half = np.matmul(np.swapaxes(YY.reshape(N * k, N, k), 0, 1), part)  # (N, N k, q)
    half = np.swapaxes(half, 0, 1).reshape(N, k, N * q)
    return np.matmul(np.swapaxes(part, 1, 2).conj(), half).reshape(N * q, N * q)


def _leading(H, tol):
    """Return the eigenpairs of a positive semidefinite matrix that matter, in ascending order.

    A pivoted Cholesky factor of the numerical rank comes first: its Gram matrix has the same eigenvalues and is half as
    wide, and the factorisation costs a hundredth of an eigendecomposition.
    """
    m, largest = len(H), float(np.max(np.diagonal(H).real, initial=0.0))
    if m >= CHOLESKY_FROM and largest > 0:
        (factorise,) = get_lapack_funcs(("pstrf",), (H,))
        least = max(DROPPED * tol / (10 * m), 10 * m * np.finfo(float).eps) * largest
        R, pivots, rank, _ = factorise(H, tol=least, lower=0)
        if 0 < rank <= CHOLESKY_SHARE * m:
            R = np.triu(R[:rank])
            lam, W = np.linalg.eigh(R @ R.conj().T)
            V = np.empty((m, rank), H.dtype)
            V[pivots - 1] = R.conj().T @ (W / np.sqrt(np.maximum(lam, np.finfo(float).tiny)))
            return lam, V
    return np.linalg.eigh(H)
