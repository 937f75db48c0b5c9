"""Least squares in the coordinates that a sketch makes well conditioned: preconditioner, products and errors.

With ``S A D = U Sigma V^H`` for a sketch S of A with its columns scaled by D, the columns of ``A P``,
``P = D V Sigma^-1``, have a condition number of at most ``(1 + e) / (1 - e)``, ``e = sqrt(n / d)``, however
ill-conditioned A is. All that is small stays on the host in double precision: x, ``y = P^-1 x`` and
``c = P^H A^H (b - A x)``.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_numpy_namespace, is_torch_array

from rnla._backend import adjoint, check_finite, eps_of, host_svd, to_host
from rnla._matrix_memory import Dense, Sparse
from rnla._matrix_views import Adjoint, Scaled, adjoint_product, spans, wide_dtype
from rnla._rangefinder import SAFE, OutOfRange
from rnla._sketch import SparseSign
from rnla._tall import column_squares, like

COLUMNS = 64  # of the identity, multiplied at a time by an operator that is to be sketched


@dataclass(frozen=True)
class Factor:
    """The small factor of a tall T: its triangular factor, or that of its sketch, by singular values."""

    P: np.ndarray  # (n, r), such that T P has a condition number near 1
    sigma: np.ndarray  # (r,), singular values of the scaled T, or of its sketch
    null: np.ndarray  # (n, n - r), orthonormal: what T maps to rounding
    scale: np.ndarray  # (n,), the scaling of the columns
    norm: float  # Frobenius norm of the scaled T
    start: Any  # (r, k), sketched solution in the coordinates of P, or None
    U: np.ndarray  # (n, r), left singular vectors of the scaled triangular factor

    @property
    def rank(self):
        """Columns of P."""
        return len(self.sigma)

    @property
    def cond(self):
        """Condition number of the part of T that is kept."""
        return float(self.sigma[0] / self.sigma[-1])


def factored(X, count, *, floor, rcond, equilibrate):
    """Return the `Factor` of the first `count` columns of a host matrix, with the coordinates of the others.

    Singular values up to ``max(floor, rcond)`` times the largest are dropped. Scaling the columns to a norm of one
    makes the rank independent of the units of the unknowns, but is no longer the rank that `rcond` speaks of.
    """
    if X.shape[0] > count and X.shape[1] <= 2 * count:  # the coordinates come with the factorisation
        X = np.linalg.qr(X, mode="r")
    elif X.shape[0] > count:
        Q, R = np.linalg.qr(X[:, :count])
        X = np.concatenate([R, adjoint(Q) @ X[:, count:]], axis=1)
    R, z = X[:count, :count], X[:count, count:]
    scale = np.ones(count)
    if equilibrate:
        norms = np.linalg.norm(R, axis=0)
        scale = 2.0 ** -np.round(np.log2(np.where(norms > 0, norms, 1.0)))  # powers of two: no rounding
    U, sigma, Vh = host_svd(R * scale)
    keep = int(np.sum(sigma > max(floor, rcond or 0.0) * sigma[0]))
    V = scale[:, None] * adjoint(Vh)
    null = np.linalg.qr(V[:, keep:])[0] if keep < count else V[:, keep:]
    start = adjoint(U[:, :keep]) @ z if z.shape[1] else None
    return Factor(
        V[:, :keep] / sigma[:keep], sigma[:keep], null, scale, float(np.linalg.norm(sigma)), start, U[:, :keep]
    )


def exactly_truncated(factor, G, rcond):
    """Return the factor of the truncated SVD of T itself, from ``G = (T P)^H (T P)`` and columns that were not scaled.

    With ``G = E L E^H``, ``T = Q (L^(1/2) E^H Sigma V^H)``, whose second factor is small and has the singular values
    of T.
    """
    squares, E = np.linalg.eigh(G)
    root = np.sqrt(np.maximum(squares, 0.0))[:, None] * adjoint(E)
    U, sigma, Vh = host_svd(root @ (factor.sigma[:, None] * adjoint(factor.P * factor.sigma)))
    keep = int(np.sum(sigma > rcond * sigma[0]))
    null = np.concatenate([factor.null, adjoint(Vh)[:, keep:]], axis=1)
    return Factor(adjoint(Vh)[:, :keep] / sigma[:keep], sigma[:keep], null, factor.scale, factor.norm, None, U)


def sketch(T, B, d, damp, key, caller):
    """Return ``[S T, S B; damp I, 0]`` on the host for a sparse sign sketch S of `d` rows, `B` an array or None."""
    SB = None
    if d >= T.shape[0]:  # nothing to be gained: S is the identity
        ST = to_host(T.to_dense())
        SB = B if B is None else to_host(B)
    else:
        S = SparseSign(d, T.shape[0], seed=key)
        ST = _sketched(S, T)
        SB = B if B is None else to_host(S @ _on_host(B))
    check_scale(ST, damp, T, caller)
    X = ST if SB is None else np.concatenate([ST, SB], axis=1)
    if not damp:
        return X
    return np.concatenate([X, damp * np.eye(T.shape[1], X.shape[1], dtype=X.dtype)])


def check_scale(X, damp, M, caller):
    """Refuse what is not finite, and ask for another scale where squares of the entries would leave the range."""
    check_finite(X, caller, "A", M)
    low, high = SAFE["float32" if M.dtype in (M.xp.float32, M.xp.complex64) else "float64"]
    top = max(float(np.max(np.abs(X))), damp)
    if top > 0 and not low <= top <= high:
        raise OutOfRange(2.0 ** -np.round(np.log2(top)))


def _sketched(S, T):
    storage, alpha = T.storage, 1.0
    if isinstance(storage, Scaled):
        storage, alpha = storage.inner, storage.alpha
    flipped = isinstance(storage, Adjoint) and isinstance(storage.inner, Sparse)
    if isinstance(storage, Dense):
        T.counter.passes += 1
        return alpha * to_host(S @ _on_host(storage.array))
    if (isinstance(storage, Sparse) or flipped) and is_numpy_namespace(storage.xp):
        T.counter.passes += 1
        return alpha * to_host(S @ (storage.inner.csr.conj().T.tocsr() if flipped else storage.csr))
    total = T.sum_over_rows(partial(_applied, S))
    if total is not None:
        return total
    parts = []
    for part in spans(T.shape[1], COLUMNS):
        width = part.stop - part.start
        E = T.xp.eye(T.shape[1], width, k=-part.start, dtype=T.dtype, device=T.device)
        parts.append(to_host(S @ _on_host(T.matmat(E))))
    return np.concatenate(parts, axis=1)


def _on_host(X):
    """Return the memory of a torch tensor on the CPU as a NumPy array: the compiled sketch takes only that."""
    return X.detach().resolve_conj().numpy() if is_torch_array(X) and device(X).type == "cpu" else X


def _applied(S, start, rows):
    return to_host(S.apply(_on_host(rows), start))


class Size(NamedTuple):
    """Norms of one solution, per right-hand side."""

    residual: np.ndarray  # of the damped problem
    data: np.ndarray  # of b - A x
    x: np.ndarray  # in scaled units


class Tall:
    """``min ||b - A x||**2 + damp**2 ||x||**2`` in the coordinates of P; a state is x, (n, k) on the host."""

    def __init__(self, M, B, damp, factor):
        self.T = self.M = M
        self.B = B
        self.damp = damp
        self.eps = eps_of(M.xp, M.dtype)
        self.factor = factor
        self.b_norm = np.sqrt(column_squares(B))

    def start(self, y):
        """Return the state ``P y``."""
        return self.step(0.0, y)

    def step(self, x, y):
        """Return the state ``x + P y``, rounded to the precision of A: the residual is taken of what is returned."""
        return self.rounded(x + self.factor.P @ y)

    def rounded(self, x):
        """Return x without its part in the null space of A, in the precision of A."""
        N = self.factor.null
        if N.shape[1]:
            x = x - N @ (adjoint(N) @ x)
        return to_host(like(x, self.B))

    def residual(self, x):
        """Return ``P^H (A^H (b - A x) - damp**2 x)`` and the norms, in one read of A where its rows are at hand."""
        X, T = like(x, self.B), self.T
        total = T.sum_over_rows(partial(_gradient_and_squares, X), self.B) if _has_rows(T) else None
        if total is None:
            R = self.B - T.matmat(X)
            gradient, squares = to_host(T.rmatmat(R)), column_squares(R)
        else:
            gradient, squares = total[:-1], total[-1].real
        damped = squares + self.damp**2 * host_squares(x)
        size = Size(np.sqrt(damped), np.sqrt(squares), np.sqrt(host_squares(x / self.factor.scale[:, None])))
        return adjoint(self.factor.P) @ (gradient - self.damp**2 * x), size

    def backward_error(self, c, size):
        """Estimate the relative change of A and b that makes x their exact solution, per right-hand side.

        The estimate of Karlson and Walden, within a factor sqrt(2) of the least Frobenius norm of ``[dA, theta db]``
        with ``theta = ||A||_F / ||b||``, but for the sketched singular values.
        """
        weight = np.sqrt(self.b_norm**2 + (self.factor.norm * size.x) ** 2)
        weight = np.where(weight > 0, weight, 1.0)
        sigma = self.factor.sigma[:, None]
        shift = self.factor.norm * size.residual / weight
        return np.sqrt(host_squares(c * sigma / np.sqrt(sigma**2 + shift**2))) / weight

    def update_floor(self, size):
        """Return the norm of an update y below which the first refinement gains nothing more."""
        f = self.factor
        return 10 * self.eps * (f.sigma[0] * size.x + 0.04 * f.cond * size.residual)

    def apply(self, z):
        """Return ``P^H (A^H A + damp**2) P z``, in one read of A where its rows are at hand."""
        w = self.factor.P @ z
        W = like(w, self.B)
        out = self.T.sum_over_rows(partial(_gram_product, W)) if _has_rows(self.T) else None
        if out is None:
            out = to_host(self.T.gram_matmat(W))
        return adjoint(self.factor.P) @ (out + self.damp**2 * w)

    def gram(self):
        """Return ``(A P)^H (A P) + damp**2 P^H P`` and ``(A P)^H b`` in one read."""
        G, c = None, None
        if self.T.kind == "dask":  # where the rows are
            total = self.T.sum_over_rows(partial(_gram_and_side, like(self.factor.P, self.B)), self.B)
            G, c = total[:, : self.factor.rank], total[:, self.factor.rank :]
        for start, A, W in () if G is not None else self.products_by_rows():
            G = _sum(G, adjoint(W) @ W)
            c = _sum(c, adjoint(W) @ self.B[start : start + A.shape[0], :])
        small = self.factor.P
        G = to_host(G) + self.damp**2 * (adjoint(small) @ small)
        return (G + adjoint(G)) / 2, to_host(c)

    def products_by_rows(self):
        """Yield the first row, T and ``T P`` for blocks of rows of T; the memory of the last is used again."""
        P, room = like(self.factor.P, self.B), None
        for start, T in _rows(self.T):
            if is_numpy_array(T):  # fresh memory for every block would cost a fifth of the product
                if room is None or len(room) < T.shape[0]:
                    room = np.empty((T.shape[0], P.shape[1]), P.dtype)
                yield start, T, np.matmul(T, P, out=room[: T.shape[0]])
            else:
                yield start, T, T @ P

    def lsqr_products(self):
        """Return the products with ``[A; damp I] P`` and its adjoint."""
        M, P, damp = self.M, self.factor.P, self.damp

        def forward(y):
            W = like(P @ y, self.B)
            return M.xp.concat([M.matmat(W), damp * W]) if damp else M.matmat(W)

        def backward(U):
            w = to_host(M.rmatmat(U[: M.shape[0], :] if damp else U))
            return adjoint(P) @ (w + damp * to_host(U[M.shape[0] :, :]) if damp else w)

        return forward, backward

    def lsqr_start(self, x):
        """Return the residual that LSQR is to reduce, and its measure of the error."""
        X = like(x, self.B)
        R = self.B - self.M.matmat(X)

        def errors(c, residual, y):
            norm = np.sqrt(host_squares((x + self.factor.P @ y) / self.factor.scale[:, None]))
            return self.backward_error(c, Size(residual, residual, norm))

        return (self.M.xp.concat([R, -self.damp * X]) if self.damp else R), errors

    def lsqr_end(self, x, y):
        """Return the state after LSQR."""
        return self.step(x, y)


class Wide(Tall):
    """The solution of least norm of a wide A, with ``T = A^H``: ``x = A^H w``; a state is (x, w).

    x is (n, k) in the library of A; w, (m, k) on the host, matters only with damp, where ``b - A x = damp**2 w``.
    """

    def __init__(self, M, B, damp, factor):
        super().__init__(M, B, damp, factor)
        self.T = M.H

    def zero(self):
        """Return the vector of zeros in the place of x."""
        return self.M.xp.zeros((self.M.shape[1], self.B.shape[1]), dtype=self.M.dtype, device=self.M.device)

    def start(self, y):
        return self.step((self.zero(), 0.0), y)

    def step(self, state, y):
        w = self.factor.P @ y
        return state[0] + self.T.matmat(like(w, self.B)), state[1] + w

    def residual(self, state):
        X, w = state
        R = self.B - self.M.matmat(X)
        squares, norms = column_squares(R), column_squares(X)
        size = Size(np.sqrt(squares + self.damp**2 * norms), np.sqrt(squares), np.sqrt(norms))
        return adjoint(self.factor.P) @ (to_host(R) - self.damp**2 * w), size

    def backward_error(self, c, size):
        """Return the relative residual within the range of A: the solution has the form ``A^H w`` by construction."""
        weight = self.b_norm + self.factor.norm * size.x
        return np.sqrt(host_squares(self.factor.sigma[:, None] * c)) / np.where(weight > 0, weight, 1.0)

    def row_space(self):
        """Return ``A W`` and ``W^H W`` for ``W = A^H P``, a well-conditioned basis of the row space, in one read."""
        K, G = None, None
        for _, T, W in self.products_by_rows():
            K, G = _sum(K, adjoint_product(T, W)), _sum(G, adjoint(W) @ W)
        return to_host(K), to_host(G)

    def along_rows(self, x, y):
        """Return ``x + W y``, with the entries of W that `row_space` had: made again in the same way, not kept."""
        Y = like(y, self.B)
        return self.M.xp.concat([x[i : i + T.shape[0], :] + W @ Y for i, T, W in self.products_by_rows()])

    def lsqr_products(self):
        """Return the products with ``P^H [A, damp I]`` and its adjoint."""
        M, P, damp, n = self.M, self.factor.P, self.damp, self.M.shape[1]

        def forward(V):
            r = to_host(M.matmat(V[:n, :] if damp else V))
            return adjoint(P) @ (r + damp * to_host(V[n:, :]) if damp else r)

        def backward(u):
            W = like(P @ u, self.B)
            return M.xp.concat([M.rmatmat(W), damp * W]) if damp else M.rmatmat(W)

        return forward, backward

    def lsqr_start(self, state):
        c, _ = self.residual(state)
        X = state[0]

        def errors(gradient, residual, V):
            norm = np.sqrt(column_squares(X + V[: X.shape[0], :]))
            return residual / np.where(norm > 0, norm, 1.0)

        return c, errors

    def lsqr_end(self, state, V):
        n = self.M.shape[1]
        return state[0] + V[:n, :], state[1] + (to_host(V[n:, :]) / self.damp if self.damp else 0.0)


def _gradient_and_squares(X, start, rows, b):
    """Return ``A^H (b - A x)`` and, as one more row, the squared norms of the columns of the residual."""
    R = b - rows @ X
    return np.concatenate([to_host(adjoint_product(rows, R)), column_squares(R)[None, :]])


def _gram_product(X, start, rows):
    return to_host(adjoint_product(rows, rows @ X))


def _gram_and_side(P, start, rows, b):
    W = rows @ P
    xp = array_namespace(W)
    return xp.astype(adjoint(W) @ xp.concat([W, b], axis=1), wide_dtype(W.dtype, xp))


def _rows(T):
    return T.row_blocks() if _has_rows(T) else None


def _has_rows(T):
    """Say whether rows come in blocks, so that one read of them serves several products."""
    return T.kind in ("dense", "file", "dask")


def _sum(total, part):
    xp = array_namespace(part)
    part = xp.astype(part, wide_dtype(part.dtype, xp), copy=False)  # sums over many blocks
    return part if total is None else total + part


def host_squares(x):
    """Return the squared norms of the columns of a host array."""
    return np.sum(np.abs(x) ** 2, axis=0)
