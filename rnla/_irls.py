"""Iteratively reweighted least squares for the smoothed logarithm of the determinant, from samples of a matrix.

The data's way: the samples make a matrix of zeros elsewhere; its singular values set a smoothing eps, and its singular
vectors a tangent space and a weight for every direction in it. A weighted least-squares problem, solved in tangent
coordinates, gives the next matrix: of low rank plus a sparse one on the samples, never dense. A few block Krylov steps
from the last singular vectors give the new ones, eps follows the first singular value beyond the rank, and so on.
"""

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of, from_host, host_svd, real_dtype, to_host
from rnla._krylov import TestColumns, two_sided
from rnla._matrix import Matrix
from rnla._matrix_operator import Operator
from rnla._orth import orth
from rnla._progress import Monitor
from rnla._tangent_solve import Tangent, Weights, conjugate_gradients, floor_of, preconditioner

ACTIVE = 1 + 1e-10  # times the smoothing: singular values above it are active
COLD_STEPS, WARM_STEPS = 8, 3  # of the block Krylov iteration
DENSE_SIDE = 64  # up to this side LAPACK's SVD is the fastest
LEAST_CG_TOL = 1e-6
VANISHED = 1e-30  # singular value
FEW_SAMPLES = 3.5  # oversampling below which following rank 1 first, then 2 ... recovers more than it costs
BLOCK_BELOW, BLOCK_RANK = 6.0, 40  # oversampling and rank up to which the better preconditioner pays
NEAR_FLOOR = 100.0  # smoothing in units of rounding of the largest singular value
NUCLEAR_FLOOR = 1e-2  # smoothing relative to the tolerance
NUCLEAR_DECAY = 0.7  # factor of the smoothing for the nuclear norm, whose iteration converges linearly


class Point(NamedTuple):
    """The matrix ``G G^*(L R^H) + G P^* values``, where G is the identity for a plain matrix."""

    L: Any  # (m, w)
    R: Any  # (n, w)
    values: Any  # (N,)


class Settings(NamedTuple):
    """How to iterate; the defaults are those of the public functions."""

    p: float = 0.0
    lam: float = 0.0
    tol: float = 1e-9
    max_iter: int = 400
    cg_tol: float = 1e-2
    cg_max_iter: int = 300
    preconditioner: str = "auto"
    continuation: Any = "auto"
    max_rank: Any = None
    krylov_steps: tuple = (COLD_STEPS, WARM_STEPS)
    warm: bool = True


class Step(NamedTuple):
    """What is known after an iteration."""

    eps: float
    rank: int  # active singular values
    goal: int  # the rank that the smoothing follows
    cg_iterations: int
    change: float  # relative, in the Frobenius norm
    seconds: float


class Found(NamedTuple):
    """Where the iteration ended."""

    U: Any  # (m, r), orthonormal
    s: np.ndarray  # (r,)
    V: Any  # (n, r)
    point: Any  # Point, or None where nothing was iterated
    steps: list
    status: str  # converged, max_iter, stagnated, stopped, until


def oversampling(space, rank):
    """Return the number of samples over that of the degrees of freedom of a matrix of this rank."""
    return space.count / max(space.degrees(rank), 1)


def solve(space, samples, rank, settings, key, caller, *, init=None, monitor=None, until=None):
    """Find the matrix of least smoothed log-determinant with these samples, or near them.

    Parameters
    ----------
    space : EntrySpace or HankelSpace
        Where the samples are.
    samples : array, shape (N,)
        Their values, of modulus about one at most.
    rank : int
        The rank that is looked for, or an upper bound.
    settings : Settings
        Options.
    key : int
        Of the random numbers.
    caller : str
        Public function named in errors.
    init : tuple of U, s, V, optional
        Where to start; otherwise from the samples with zeros elsewhere.
    monitor : Monitor, optional
        Told every iteration.
    until : callable, optional
        Called with the steps so far; True ends the iteration.

    Returns
    -------
    Found
        Triplets of the last matrix, at least one, and why it ended.
    """
    run = Run(space, samples, rank, settings, key, caller)
    monitor = Monitor(None, False, caller) if monitor is None else monitor
    return run.iterate(init, monitor, until)


class Run:
    """One iteration: the samples, the options, and where it is."""

    def __init__(self, space, samples, rank, settings, key, caller):
        self.space, self.samples, self.settings, self.key, self.caller = space, samples, settings, key, caller
        self.xp, self.dtype, self.place = array_namespace(samples), samples.dtype, device(samples)
        side = min(space.shape)
        self.rank = rank
        self.max_rank = min(side, settings.max_rank or max(2 * rank, rank + 10))
        ratio = oversampling(space, rank)
        few = ratio < FEW_SAMPLES
        # With a penalty, of data that are only close to low rank, following rank 1 first leaves less of the others.
        automatic = few and settings.lam == 0
        self.continued = (automatic if settings.continuation == "auto" else settings.continuation) and settings.p < 1
        self.goal = 1 if self.continued else rank
        kind = settings.preconditioner
        if kind == "auto":
            kind = "mean" if space.structured else "block" if ratio < BLOCK_BELOW and rank <= BLOCK_RANK else "scalar"
        if kind == "mean" and not space.structured:
            kind = "scalar"
        self.preconditioner = kind
        self.unit = eps_of(self.xp, self.dtype) / 2
        self.values_of_goal = []  # singular value beyond the goal, for every iteration spent at it

    def iterate(self, init, monitor, until):
        settings, steps = self.settings, []
        point = self.start(init)
        U, s, V = self.triplets(point, self.rank + 1, None)
        eps, change = self._smoothing(np.inf, s, 1.0, 0), 1.0
        start, status = perf_counter(), "max_iter"
        for n_iter in range(1, settings.max_iter + 1):
            active = min(max(int(np.sum(s > eps * ACTIVE)), 0), self.max_rank)
            if not active:  # everything is below the smoothing: the matrix is zero, or all its values are equal
                active = 1 if s[0] > 0 else 0
                eps = min(eps, 0.5 * s[0]) if active else eps
            if not active:
                status = "converged"
                break
            if s[0] < VANISHED:  # of samples of modulus one: a penalty has left nothing
                status = "converged"
                break
            before = point
            point, cg_iterations = self._least_squares(point, U[:, :active], s[:active], V[:, :active], eps, change)
            change = self.change(point, before)
            U, s, V = self.triplets(point, max(active, self.rank) + 1, V)
            U, s, V = self._beyond(point, U, s, V, eps)
            steps.append(Step(eps, active, self.goal, cg_iterations, change, perf_counter() - start))
            eps = self._smoothing(eps, s, change, n_iter)
            ended = monitor(change)
            status = self._ended(eps, s, change)
            if status:
                break
            if ended or (until is not None and until(steps)):
                status = "stopped" if ended else "until"
                break
        return Found(U, s, V, point, steps, status or "max_iter")

    def start(self, init):
        """Return the first matrix: that of `init`, or the samples and zeros elsewhere."""
        xp, (m, n) = self.xp, self.space.shape
        if init is not None:
            U, s, V = init
            L = U * from_host(s, xp, self.dtype, self.place)
            return Point(L, V, self.samples - self.space.sampled(L, conjugated(V)))
        L, R = (xp.zeros((side, 0), dtype=self.dtype, device=self.place) for side in (m, n))
        return Point(L, R, self.samples)

    def _least_squares(self, point, U, s, V, eps, change):
        """Return the next matrix and the number of conjugate gradient steps."""
        settings, space, xp = self.settings, self.space, self.xp
        q = eps ** (2 - settings.p)
        pairs, single = _moduli(s, eps, settings.p)
        shrink = q / (q + settings.lam * space.multiplicity)  # of the residuals at the samples
        # In a space without structure all is divided by `shrink`, the same for every sample.
        scale = q if space.structured else q + settings.lam
        kind = (xp, real_dtype(xp, self.dtype), self.place)
        weights = Weights(from_host(scale / (pairs - q), *kind), from_host(scale / (single - q), *kind))
        data_weight = xp.astype(shrink, kind[1], copy=False) if space.structured and settings.lam else 1.0
        tangent = Tangent(space, U, V, weights, data_weight)
        target = tangent.coordinates_of(point.L[:, :0], point.R[:, :0], self.samples * data_weight)
        gamma = tangent.coordinates_of(*point)
        tol = max(LEAST_CG_TOL, min(settings.cg_tol, change)) if settings.cg_tol > LEAST_CG_TOL else settings.cg_tol
        step, count = conjugate_gradients(
            tangent, target - tangent @ gamma, preconditioner(self.preconditioner, tangent), tol,
            floor_of(tangent, target), settings.cg_max_iter,
        )  # fmt: skip
        gamma = tangent.projected(gamma + step)
        L, R = tangent.factors(gamma)
        if not space.structured:
            shrink = float(shrink)
        elif settings.lam:
            shrink = data_weight
        else:
            shrink = 1.0
        return Point(L, R, (self.samples - tangent.samples(gamma)) * shrink), count

    def triplets(self, point, count, start):
        """Return leading singular triplets of the lifted matrix, by block Krylov steps from the right vectors given."""
        m, n = self.space.shape
        count = min(count, m, n)
        if min(m, n) <= DENSE_SIDE or 3 * count >= min(m, n):
            return self._all_triplets(point)
        M = self._operator(point)
        cold, warm = self.settings.krylov_steps
        fresh = TestColumns(M, "gaussian", self.key)
        steps = cold if start is None else warm
        if start is None or not self.settings.warm:
            start = orth(fresh(count))[0]
        elif start.shape[1] < count:
            start = orth(self.xp.concat([start, fresh(count - start.shape[1])], axis=1))[0]
        found = two_sided(
            M, count, start, tol=0.0, extra=0, max_basis=(steps + 2) * start.shape[1], max_passes=2 * steps + 1,
            verify=False, fresh=fresh, monitor=lambda error: False, caller=self.caller,
        )  # fmt: skip
        s = np.concatenate([found.s, np.zeros(max(0, count - len(found.s)))])
        return found.U, s[: found.U.shape[1]], found.V

    def _all_triplets(self, point):
        """Return all triplets by LAPACK."""
        m, n = self.space.shape
        right, left = self._products(point)
        eye = self.xp.eye(min(m, n), dtype=self.dtype, device=self.place)
        X = to_host(right(eye)) if n <= m else to_host(left(eye)).conj().T
        U, s, Vh = host_svd(X)
        return (
            from_host(U, self.xp, self.dtype, self.place),
            s,
            from_host(Vh.conj().T, self.xp, self.dtype, self.place),
        )

    def _products(self, point):
        space, (L, R, values) = self.space, point

        def right(X):
            out = space.right(values, X)
            if not L.shape[1]:
                return out
            return out + (space.smooth_right(L, R, X) if space.structured else L @ (adjoint(R) @ X))

        def left(X):
            out = space.left(values, X)
            if not L.shape[1]:
                return out
            return out + (space.smooth_left(L, R, X) if space.structured else R @ (adjoint(L) @ X))

        return right, left

    def _operator(self, point):
        right, left = self._products(point)
        shape = self.space.shape
        return Matrix("operator", Operator(right, left, shape, self.dtype, self.xp, self.place, self.caller))

    def _beyond(self, point, U, s, V, eps):
        """Look at more singular values while all that are known are active."""
        while s[-1] > eps * ACTIVE and len(s) <= self.max_rank and len(s) < min(self.space.shape):
            known = len(s)
            U, s, V = self.triplets(point, min(2 * known, self.max_rank + 1), V)
            if len(s) <= known:  # the others are zero
                break
        return U, s, V

    def _smoothing(self, eps, s, change, n_iter):
        """Return the next smoothing; it never grows."""
        settings, side = self.settings, min(self.space.shape)
        floor = 2 * self.unit * s[0]
        if settings.p == 1:
            # The convex problem is solved to about the smoothing: less than the tolerance asks for gains nothing.
            first = s[0] / side if np.isinf(eps) else NUCLEAR_DECAY * eps
            return max(min(first, eps), floor, NUCLEAR_FLOOR * settings.tol * s[0])
        self._advance(s, change, n_iter)
        value = s[self.goal] if self.goal < len(s) else 0.0
        factor = 1.0 if settings.p == 0 else side ** (-settings.p / (2 - settings.p))
        return max(min(eps, factor * value), floor)

    def _advance(self, s, change, n_iter):
        """Let the rank that the smoothing follows grow where the iteration has settled."""
        if not self.continued or self.goal >= self.rank or n_iter == 0:
            return
        self.values_of_goal.append(s[self.goal] if self.goal < len(s) else 0.0)
        values = self.values_of_goal
        slow = len(values) > 6 and values[-1] > 0.9 * values[-5]
        if n_iter >= 3 and (change < 1e-2 or slow):
            self.goal += 1
            self.values_of_goal = []

    def _ended(self, eps, s, change):
        settings = self.settings
        at_floor = eps <= 2 * self.unit * s[0] * ACTIVE
        if at_floor and settings.p < 1:
            return "converged"
        if self.goal < self.rank or change >= settings.tol:
            return ""
        # A rank that is too large has a last singular value of rounding; then the smoothing can only be near its floor.
        small = max(settings.tol**0.5 * s[min(self.rank, len(s)) - 1], NEAR_FLOOR * self.unit * s[0])
        if settings.lam > 0 or eps <= small:
            return "converged"
        return ""

    def change(self, new, old):
        """Return the norm of the difference over that of the new matrix, both to full relative precision."""
        xp = self.xp
        difference = Point(
            xp.concat([new.L, -old.L], axis=1), xp.concat([new.R, old.R], axis=1), new.values - old.values
        )
        size = self._norm(new)
        return self._norm(difference) / size if size > 0 else 0.0

    def _norm(self, point):
        """Return ``||G^*(L R^H) + P^* values||_F``; the factors are first made as small as their product is."""
        xp, space = self.xp, self.space
        total = float(xp.linalg.vector_norm(point.values)) ** 2
        if point.L.shape[1]:
            A, B, core = _compressed(point.L, point.R)
            at_samples = space.sampled(A, conjugated(B))
            if space.structured:
                total += float(np.trace(to_host(adjoint(A) @ space.smooth_right(A, B, B))).real)
            else:
                total += float(np.linalg.norm(core)) ** 2
            total += 2 * float(np.vdot(to_host(at_samples), to_host(point.values)).real)
        return max(total, 0.0) ** 0.5


def conjugated(X):
    """Return the complex conjugate, of real arrays themselves."""
    xp = array_namespace(X)
    return xp.conj(X) if xp.isdtype(X.dtype, "complex floating") else X


def _compressed(L, R):
    """Return A, B with ``L R^H = A B^H``, B orthonormal, and ``A^H`` in the basis of L: the core."""
    (P, X), (Q, Y) = (_thin_qr(F) for F in (L, R))
    core = X @ Y.conj().T
    xp = array_namespace(L)
    return P @ from_host(core, xp, L.dtype, device(L)), Q, core


def _thin_qr(F):
    return orth(F, "qr")


def _moduli(s, eps, p):
    """Return the inverse weights of pairs of active directions, and of an active and an inactive one."""
    if p == 0:
        return np.outer(s, s), s * eps
    power = (2 - p) / p
    return ((s[:, None] ** p + s[None, :] ** p) / 2) ** power, ((s**p + eps**p) / 2) ** power
