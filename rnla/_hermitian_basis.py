"""What a Krylov iteration for a Hermitian matrix knows: orthonormal columns, and what the matrix made of them."""

import math
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from rnla._backend import adjoint, check_finite, columns, eps_of, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._orth import orthonormal_block, random_complement
from rnla._rangefinder import check_range
from rnla._tall import like

NOISE = 100.0  # a residual of this many rounding units of ||A|| is as small as it gets
HERMITIAN = (1e-6, 3.0)  # x^H A y and its mirror image differ by less than this, or that times sqrt(eps), times ||A||
PROBE_WIDTH, PROBE_PASSES = 4, 5  # a few random columns, to look for copies that were missed


class Pairs(NamedTuple):
    """Ritz pairs in the order that is wanted."""

    values: np.ndarray  # (c,)
    S: np.ndarray  # coefficients of the vectors, one row for every column of the basis
    residuals: np.ndarray  # (c,)


def leading(values, which):
    """Return the order of eigenvalues in which the wanted ones come first."""
    falling = np.argsort(values)[::-1]
    if which == "LM":
        return falling[np.argsort(-np.abs(values[falling]), kind="stable")]
    if which == "BE":
        order = np.empty_like(falling)
        order[0::2] = falling[: -(-len(falling) // 2)]
        order[1::2] = falling[::-1][: len(falling) // 2]
        return order
    return falling if which == "LA" else falling[::-1]


@contextmanager
def speaking_of_m(caller):
    """Let errors that a `Matrix` raises name the argument M, where they would name A."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace(f"{caller}: A ", f"{caller}: M ", 1).replace(" of A ", " of M ")) from None


class Metric:
    """The inner product ``x^H M y``.

    Parameters
    ----------
    M : Matrix
        Hermitian and positive definite.
    solve : callable
        ``W -> M^-1 W`` for a block of columns.
    caller : str
        Public function named in errors.
    """

    def __init__(self, M, solve, caller):
        self._M, self._solve, self._caller = M, solve, caller

    def apply(self, X):
        """Return ``M X``."""
        with speaking_of_m(self._caller):
            Y = self._M.matmat(X)
            check_finite(Y, self._caller, "M")
        return Y

    def solve(self, W):
        """Return ``M^-1 W``."""
        X = self._solve(W)
        if getattr(X, "shape", None) != W.shape or getattr(X, "dtype", None) != W.dtype:
            raise ValueError(
                f"{self._caller}: solve must return an array of shape {tuple(W.shape)} and dtype {W.dtype}, like its "
                f"argument; got {type(X).__name__} {getattr(X, 'shape', '')} {getattr(X, 'dtype', '')}."
            )
        check_finite(X, self._caller, "solve")
        return X

    def factor(self, P, MP):
        """Return the Cholesky factor R of ``P^H M P``."""
        G = to_host(adjoint(P) @ MP)
        try:
            return np.linalg.cholesky((G + G.conj().T) / 2).conj().T
        except np.linalg.LinAlgError as error:
            raise NotPositiveDefiniteError(
                f"{self._caller}: M must be positive definite, to working precision."
            ) from error


class HermitianBasis:
    """Orthonormal columns Q, of which some have been multiplied by A and the others wait.

    Whatever A made of the former is in the span of all: ``A Q_done = Q T[:, done]``, T being the coefficients that the
    orthogonalisation computed. So a Ritz pair (theta, Q_done s) has the residual ``Q_wait T[wait, done] s``, also after
    a restart, which keeps some Ritz vectors and all that waits. With a `Metric` both A and "orthonormal" are meant in
    it: ``M^-1 A``, Hermitian in the inner product of M.
    """

    def __init__(self, H, capacity, fresh, caller, *, metric=None, check=True):
        self.H, self.eps, self.metric = H, eps_of(H.xp, H.dtype), metric
        self.size, self.steps, self.scale = 0, 0, 0.0
        self._fresh, self._caller, self._check, self._floor = fresh, caller, check, 0.0
        self._dtype = np.complex128 if H.xp.isdtype(H.dtype, "complex floating") else np.float64
        self._T = np.zeros((0, 0), self._dtype)
        self._done = np.zeros(0, bool)
        # Q, and M Q: the columns with which coefficients in the metric are formed.
        self._stores = [self._columns(0) for _ in range(1 if metric is None else 2)]
        self._reserve(capacity)

    @property
    def Q(self):
        """All columns, those that wait too."""
        return self._stores[0][:, : self.size]

    @property
    def multiplied(self):
        """Number of columns that have been multiplied by A."""
        return int(np.count_nonzero(self._done[: self.size]))

    @property
    def waiting(self):
        """Number of columns that have not."""
        return self.size - self.multiplied

    @property
    def noise(self):
        """Size of a residual that is all rounding."""
        return max(NOISE, 2.0 * math.sqrt(self.H.shape[0])) * self.eps * self.scale

    @property
    def captured(self):
        """``||Q_done^H A Q_done||_F**2``, the sum of the squares of all Ritz values."""
        done = np.flatnonzero(self._done[: self.size])
        return float(np.linalg.norm(self._T[np.ix_(done, done)]) ** 2)

    def fill(self, width):
        """Let at least `width` columns wait, adding random ones where there is room."""
        # A random column whose part outside the basis is short by chance is given up: then another one is drawn.
        for _ in range(10):
            missing = min(width - self.waiting, self.H.shape[0] - self.size)
            if missing <= 0:
                return
            if self.metric is None:
                self._append(random_complement(self.Q, self._fresh, missing), None)
            else:
                self._append(*self._split_in_metric(self._fresh(missing), 1e4 * self.eps)[:2])

    def expand(self, count=None):
        """Multiply the last `count` columns by A, which must all wait; by default all that wait."""
        last = self.size
        first = last - (self.waiting if count is None else count)
        Z = self._product(self._stores[0][:, first:last])
        self.steps += 1
        self._floor = max(self._floor, self.eps * float(np.sqrt(np.diagonal(to_host(adjoint(Z) @ Z)).real.max())))
        if self.metric is None:
            P, B, C = orthonormal_block(Z, self.Q, floor=self._floor, near=self._near(first))
            MP = None
        else:
            P, MP, B, C = self._split_in_metric(Z, self._floor)
        norms = np.linalg.norm(C, axis=0) ** 2 + np.linalg.norm(B, axis=0) ** 2
        self.scale = max(self.scale, math.sqrt(norms.max()))
        if self._check:
            self._check_hermitian(C, first)
        C[first:] = (C[first:] + C[first:].conj().T) / 2
        self._append(P, MP)
        T = self._T
        T[:last, first:last], T[first:last, :last] = C, C.conj().T
        T[last : self.size, first:last], T[first:last, last : self.size] = B, B.conj().T
        self._done[first:last] = True

    def probe(self):
        """Multiply what waits and a few random columns, twice, then what A makes of these, while the others wait."""
        self.fill(self.waiting + PROBE_WIDTH)
        # A copy that was missed may lie along the columns that wait, which rounding has turned towards it: while some
        # of them waited, no column orthogonal to them could have all of it.
        count = self.waiting
        for step in range(PROBE_PASSES):
            before = self.size
            if count:
                self.expand(count)
            count = self.size - before if step == 0 else min(PROBE_WIDTH, self.size - before)

    def ritz(self, which):
        """Return the Ritz pairs of the columns that have been multiplied."""
        done, wait = np.flatnonzero(self._done[: self.size]), np.flatnonzero(~self._done[: self.size])
        values, S = np.linalg.eigh(self._T[np.ix_(done, done)])
        order = leading(values, which)
        values, S = values[order], S[:, order]
        self.scale = max(self.scale, float(np.abs(values).max()))
        whole = np.zeros((self.size, len(done)), self._dtype)
        whole[done] = S
        return Pairs(values, whole, np.linalg.norm(self._T[np.ix_(wait, done)] @ S, axis=0))

    def vectors(self, pairs, count):
        """Form the leading Ritz vectors, shape (n, count)."""
        return self._stores[0][:, : len(pairs.S)] @ like(pairs.S[:, :count], self._stores[0])

    def project(self, G):
        """Return ``Q T Q^H G``, with the part of T between columns that have been multiplied."""
        done = self._done[: self.size]
        T = self._T[: self.size, : self.size] * np.outer(done, done)
        return self.Q @ (like(T, G) @ (adjoint(self.Q) @ G))

    def restart(self, pairs, keep):
        """Keep the leading Ritz vectors, and the columns that wait."""
        wait = np.flatnonzero(~self._done[: self.size])
        S, coupling = pairs.S[:, :keep], self._T[wait, : self.size] @ pairs.S[:, :keep]
        size = keep + len(wait)
        for store in self._stores:
            known = store[:, : self.size]
            kept = known @ like(S, store)
            index = self.H.xp.asarray(wait, device=self.H.device)
            store[:, keep:size] = self.H.xp.take(known, index, axis=1)
            store[:, :keep] = kept
        self._T[:] = 0
        self._T[np.arange(keep), np.arange(keep)] = pairs.values[:keep]
        self._T[keep:size, :keep], self._T[:keep, keep:size] = coupling, coupling.conj().T
        self._done[:] = np.arange(len(self._done)) < keep
        self.size = size

    def _product(self, X):
        Z = self.H.matmat(X)
        if self.steps == 0:
            check_range(self.H, X, Z, self._caller)
        check_finite(Z, self._caller, "A", self.H)
        return Z if self.metric is None else self.metric.solve(Z)

    def _near(self, first):
        """Return the first column along which A times the last ones can have a part.

        It has none along a column q that was multiplied before, unless A q has a part along the last ones.
        """
        coupled = ~self._done[:first] | np.any(self._T[:first, first : self.size] != 0, axis=1)
        return int(np.argmax(coupled)) if coupled.any() else first

    def _split_in_metric(self, Z, floor):
        """Split ``Z = Q C + P B`` like `orthonormal_block`, but orthonormal in the metric; return P, M P, B and C.

        Columns are made orthonormal in the usual sense first: the condition of ``P^H M P`` is then no more than that of
        M, whatever that of Z.
        """
        Q, D = (store[:, : self.size] for store in self._stores)
        C = to_host(adjoint(D) @ Z)
        Z = Z - Q @ like(C, Z)
        P, B, _ = orthonormal_block(Z, self._columns(0), floor=floor)
        room = self.H.shape[0] - self.size
        if P.shape[1] > room:
            U, s, Vh = np.linalg.svd(B, full_matrices=False)
            P, B = P @ like(U[:, :room], P), s[:room, None] * Vh[:room]
        if not P.shape[1]:
            return P, P, B, C
        MP = self.metric.apply(P)
        for _ in range(3):
            correction = adjoint(D) @ P
            P, MP = P - Q @ correction, MP - D @ correction
            C = C + to_host(correction) @ B
            R = self.metric.factor(P, MP)
            inverse = like(np.linalg.inv(R), P)
            P, MP, B = P @ inverse, MP @ inverse, R @ B
        return P, MP, B, C

    def _check_hermitian(self, C, first):
        """Compare ``Q^H A X`` with what is known of ``(A Q)^H X``."""
        rows = np.flatnonzero(self._done[:first])
        difference = np.concatenate([C[rows] - self._T[rows, first : self.size], C[first:] - C[first:].conj().T])
        least, roots = HERMITIAN
        allowed = max(least, roots * math.sqrt(self.eps)) * (1 if self.metric is None else 100) * self.scale
        defect = float(np.abs(difference).max(initial=0.0))
        if defect > allowed:
            also = "" if self.metric is None else ", and solve must be the inverse of M"
            raise ValueError(
                f"{self._caller}: A must be Hermitian{also}; got x^H (A y) and (A x)^H y that differ by "
                f"{defect / self.scale:.1e} of the norm of A for unit vectors x and y (check=False skips this test)."
            )

    def _append(self, P, MP):
        last = self.size + P.shape[1]
        self._reserve(last)
        for store, X in zip(self._stores, (P, MP), strict=False):
            store[:, self.size : last] = X
        self.size = last

    def _reserve(self, capacity):
        """Make room for `capacity` columns, half as many again as there were if that is more."""
        old = len(self._T)
        if capacity <= old:
            return
        capacity = min(max(capacity, old + old // 2), self.H.shape[0])
        for i, store in enumerate(self._stores):
            self._stores[i] = self._columns(capacity)
            self._stores[i][:, : self.size] = store[:, : self.size]
        T, done = self._T, self._done
        self._T, self._done = np.zeros((capacity, capacity), self._dtype), np.zeros(capacity, bool)
        self._T[:old, :old], self._done[:old] = T, done

    def _columns(self, count):
        return columns(self.H.xp, self.H.shape[0], count, dtype=self.H.dtype, device=self.H.device)
