"""Linear least squares by sketched preconditioners, as accurate as a direct solver and faster on tall matrices."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_numpy_array

from rnla._backend import adjoint, eps_of, key_from_rng, to_host
from rnla._lstsq_iterations import (
    Outcome,
    cg_solver,
    cholesky_solver,
    heavy_ball_solver,
    in_row_space,
    iterative_sketching,
    plain_lsqr,
    preconditioned_lsqr,
    refine,
)
from rnla._lstsq_sides import right_hand_sides, starting_point
from rnla._lstsq_system import Tall, Wide, check_scale, exactly_truncated, factored, sketch
from rnla._matrix import as_matrix
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, in_range, warn_not_converged
from rnla._tall import column_squares, like

METHODS = ("auto", "spir", "fossils", "itersketch", "lsqr", "sketch", "direct")
TALL_METHODS = ("fossils", "itersketch")
DIRECT_SIDE = 32  # up to this short side, and ...
DIRECT_ENTRIES = 2**16  # ... up to this size, LAPACK is the fastest
ASPECT = 4  # least ratio of the sides at which a sketch is smaller than the matrix
DENSE_ENTRIES = 2**26  # up to this size a matrix that is not dense may be made so
FACTOR_SIDE = 4096  # largest short side for which a sketch of a sparse matrix, which is dense, is made
SKETCH_ENTRIES = 2**26  # of a sketch with the larger of the two ratios
RATIO, GRAM_RATIO = 12, 4  # rows of the sketch over its columns: for iterations, and where none depends on it
GRAM_SIDE, GRAM_SHARE = 512, 32  # the Gram matrix of a dense A P costs less than 20 reads up to these columns
MAX_ITER = 200  # of preconditioned methods, each of whose loops takes about 30
ROUNDING = 8  # units of rounding in the backward error of a result that counts as backward stable


@dataclass(frozen=True, repr=False, eq=False)
class LstsqResult:
    """Solution of a least squares problem, and how good it is.

    Attributes
    ----------
    x : array, shape (n,) or (n, c)
        The solution; library, device and dtype of A (complex also if b is).
    resnorm : float or ndarray, shape (c,)
        ``||b - A x||`` for every right-hand side.
    rank : int or None
        Numerical rank of A; None where nothing was factored.
    converged : bool
        Whether the tolerance was met.
    n_iter : int
        Products with ``A^H A``, and evaluations of the residual.
    history : tuple of Record
        ``(iteration, error, seconds)`` of each; the error is the largest backward error.
    message : str
        Why it ended.
    backward_error : float or ndarray, shape (c,)
        Estimate of the least relative change of A (columns scaled to a norm of one) and b, in the Frobenius norm, that
        makes x the exact solution.
    method : str
        Method that was run.
    passes : int
        Number of times all entries of A were read.
    seed : int
        64-bit key of all random numbers.
    elapsed : float
        Seconds.

    Examples
    --------
    >>> result = rnla.lstsq([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [1.0, 1.0, 3.0])
    >>> np.round(result.x, 12).tolist(), result.rank, round(result.resnorm, 12)
    ([1.0, 0.5], 2, 3.0)
    """

    x: Any
    resnorm: Any
    rank: int | None
    converged: bool
    n_iter: int
    history: tuple
    message: str
    backward_error: Any
    method: str
    passes: int
    seed: int
    elapsed: float

    def __repr__(self):
        state = "converged" if self.converged else "NOT converged"
        error, residual = float(np.max(self.backward_error)), float(np.max(self.resnorm))
        return (
            f"LstsqResult(x{tuple(self.x.shape)}, {self.x.dtype})\n  {self.method}: {state} ({self.message}), "
            f"rank {self.rank}, residual {residual:.3e}, backward error {error:.1e}, {self.n_iter} iterations, "
            f"{self.passes} passes, {self.elapsed:.2g} s"
        )


def lstsq(A, b, *, method="auto", damp=0.0, tol="backward", sketch_ratio=None, rcond=None, x0=None, max_iter=None,
          rng=None, callback=None, progress=False, block_bytes=None):  # fmt: skip
    """Solve ``min ||b - A x||`` (with `damp`: ``||b - A x||**2 + damp**2 ||x||**2``), of least norm if not unique.

    For tall `A` a sketch of ``4 n`` to ``12 n`` rows gives a preconditioner, and refinement a solution as accurate as
    that of Householder QR, for any condition number. For wide `A`, the solution of least norm, by a sketch from the
    right.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it, and blocks of its rows where it has any, are used.
    b : array, shape (m,) or (m, c)
        Right-hand sides, solved together; converted to the precision of `A`.
    method : {"auto", "spir", "fossils", "itersketch", "lsqr", "sketch", "direct"}
        ``spir`` and ``fossils`` are backward stable: rounds of refinement, each by conjugate gradients or heavy-ball
        steps on the preconditioned normal equations. ``spir`` forms these n equations explicitly where that costs less
        than about twenty reads of `A`, and takes LSQR for a wide `A` whose rows are out of reach. ``itersketch`` and
        ``lsqr`` are forward stable, ``sketch`` is the solution of the sketched problem alone, whose squared residual is
        larger by a share of about ``n / d``. ``fossils`` and ``itersketch`` are for tall `A`. ``direct`` is Householder
        QR and the SVD of its triangular factor. ``auto``: ``spir`` if one side is at least four times the other and
        both are large enough, else ``direct``; for a large sparse matrix without a short side, ``lsqr`` without
        preconditioner.
    damp : float
        Ridge parameter, as in ``scipy.sparse.linalg.lsqr``; nothing is appended to `A`.
    tol : float or "backward"
        Largest backward error to accept; "backward" is that of rounding in the dtype of `A`.
    sketch_ratio : float, optional
        Rows of the sketch, at least 20, over the short side of `A`; 12 by default, 4 where no iteration depends on it.
    rcond : float, optional
        Drop singular values up to this share of the largest. By default the columns of a tall `A` are scaled to a norm
        of one first, and only what rounding makes uncertain (30 eps) is dropped. ``spir`` on dense `A` and ``direct``
        truncate the SVD of `A` itself, the others that of the sketch, whose values are right within a factor of
        ``1 +- sqrt(n / d)``.
    x0 : array, shape (n,) or (n, c), optional
        Where to start, instead of from the sketched solution. Not for wide `A`, ``direct`` and ``sketch``.
    max_iter : int, optional
        Bound on ``n_iter``; 200 by default, without preconditioner four times the short side.
    rng : None, int, numpy.random.Generator or SeedSequence
        Source of the sketch.
    callback : callable, optional
        Called after each iteration with a record ``(iteration, error, seconds)``; the error is the largest estimated
        backward error. Raising StopIteration ends the iteration with what it has.
    progress : bool
        Show a progress bar (extra ``viz``).
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file.

    Returns
    -------
    LstsqResult
        ``x``, ``resnorm``, ``rank``, ``converged``, ``backward_error`` ...

    Raises
    ------
    ValueError
        If an argument is out of range or of the wrong shape, or `A` or `b` is not finite.
    TypeError
        If an argument is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If the tolerance is not met; ``converged`` is then False.

    Notes
    -----
    Reads of a tall dense `A` with up to 512 columns (any file): one for the sketch, one for the ``3 m n**2`` flops of
    the Gram matrix of ``A P``, one for each refinement and for the last check, 1 to 3 up to condition number 1e12.
    Elsewhere one for the sketch (n products with an operator), and about 25 with two products each. Further flops
    ``O(d n**2)``; further memory the sketch, d times n numbers, and one block of rows. A matrix that is neither tall
    nor wide enough for a sketch is brought into memory. Of a tall dask array the rows are sketched and multiplied where
    they are; b and one residual for each right-hand side are in memory.

    References
    ----------
    .. [1] Epperly, Meier, Nakatsukasa, arXiv 2406.03468 (FOSSILS and SPIR, backward stability).
    .. [2] Epperly, arXiv 2311.04362 (iterative sketching).
    .. [3] Meng, Saunders, Mahoney, SIAM J. Sci. Comput. 36 (2014) (LSRN).

    Examples
    --------
    >>> A = rnla.testing.matrix_with_spectrum(2000, 40, np.logspace(0, -10, 40), rng=0)
    >>> result = rnla.lstsq(A, A @ np.ones(40), rng=0)
    >>> result.rank, result.method, bool(result.backward_error < 2e-15)
    (40, 'spir', True)
    """
    caller = "rnla.lstsq"
    M = as_matrix(A, caller, block_bytes=block_bytes)
    _check_options(M, method, damp, tol, sketch_ratio, rcond, max_iter, caller)
    sides = right_hand_sides(b, M, caller)
    start = starting_point(x0, sides, M, method, caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller, M)
    passes = M.counter.passes
    try:
        task = _Task(method, sketch_ratio, rcond, tol, max_iter, key, monitor, caller)
        solution, factor = in_range(
            lambda M, factor: _solve(M, sides.B, damp * factor, None if start is None else start / factor, task), M
        )
    finally:
        monitor.close()
    x, resnorm, error = sides.restored(solution, factor)
    eps = eps_of(M.xp, M.dtype)
    worst = float(np.max(error))
    accept = ROUNDING * eps if tol == "backward" else tol
    converged = worst <= accept or (tol == "backward" and solution.settled)
    if monitor.stopped and worst > accept:
        converged, message = False, "ended by the callback"
    elif converged:
        message = solution.message if worst > accept else f"backward error at most {accept:.1e}"
    else:
        message = f"backward error {worst:.1e} above {accept:.1e} after {len(monitor.history)} iterations"
        warn_not_converged(caller, message)
    return LstsqResult(
        x, resnorm, solution.rank, converged, len(monitor.history), tuple(monitor.history), message, error,
        solution.method, M.counter.passes - passes, key, monitor.seconds,
    )  # fmt: skip


class _Task(NamedTuple):
    method: str
    sketch_ratio: float | None
    rcond: float | None
    tol: Any
    max_iter: int | None
    key: int
    monitor: Any
    caller: str


class _Solution(NamedTuple):
    x: Any  # (n, k), in the library of A
    resnorm: np.ndarray
    error: np.ndarray
    rank: int | None
    method: str
    settled: bool  # the method has done what it can, whatever the backward error
    message: str


def _solve(M, B, damp, start, task):
    """Run one method on A in a safe range, with ``B`` (m, k) in its dtype."""
    method = _choose(M) if task.method == "auto" else task.method
    short, eps, settings = min(M.shape), eps_of(M.xp, M.dtype), (task.monitor, task.max_iter or 4 * min(M.shape))
    if method == "direct":
        return _direct(M, B, damp, task)
    done = "updates at the level of rounding"
    if task.method == "auto" and method == "lsqr":
        target = 4 * eps if task.tol == "backward" else task.tol
        x, norms, errors, settled = plain_lsqr(M, B, damp, start, target, *settings, task.key, task.caller)
        return _Solution(x, norms, errors, None, method, settled, done)
    wide = M.shape[0] < M.shape[1]
    T = M.H if wide else M
    explicit = method == "spir" and _forms_gram(T, B.shape[1])
    ratio = task.sketch_ratio
    if ratio is None:
        ratio = GRAM_RATIO if explicit or RATIO * short**2 > SKETCH_ENTRIES else RATIO
    # In fewer rows than 20 a column of signs cancels every now and then.
    d = max(math.ceil(ratio * short), short + 20 if task.sketch_ratio is None else max(short, 20))
    X = sketch(T, None if wide or explicit else B, d, damp, task.key, task.caller)
    # The sums of the sketch have zeta m / d terms, and their rounding that many random signs.
    floor = eps * (30 + math.sqrt(8 * T.shape[0] / (d * short)))
    rcond = None if explicit else task.rcond  # the Gram matrix will tell the singular values of A itself
    factor = factored(X, short, floor=floor, rcond=rcond, equilibrate=task.rcond is None and not wide)
    if factor.rank == 0:
        return _zero(M, B, method)
    system = (Wide if wide else Tall)(M, B, damp, factor)
    if wide:
        outcome, rank = _least_norm(system, method, explicit, floor, task)
    else:
        outcome, rank = _iterate(system, method, explicit, d, start, task)
    x = outcome.state[0] if wide else like(outcome.state, B)
    return _Solution(
        x, outcome.size.data, outcome.error, rank, method, outcome.settled and method not in ("spir", "fossils"),
        "sketched solution" if method == "sketch" else done,
    )  # fmt: skip


def _choose(M):
    """Choose a method from the shape and the kind of A; the thresholds are those at the head of this file."""
    short, long = sorted(M.shape)
    small = short < DIRECT_SIDE or long < ASPECT * short or short * long <= DIRECT_ENTRIES
    if M.kind == "dense":
        return "direct" if small else "spir"
    if small and short * long <= DENSE_ENTRIES:
        return "direct"
    return "lsqr" if short > FACTOR_SIDE else "spir"


def _forms_gram(T, count):
    """Say whether one product of all rows with P is cheaper than the reads of A that it saves."""
    if T.kind == "dense":
        return T.shape[1] <= max(GRAM_SIDE, GRAM_SHARE * count)
    return T.kind in ("file", "dask") and T.storage.row_blocks() is not None


def _iterate(system, method, explicit, d, start, task):
    """Run one preconditioned method on a tall A; return its outcome and the rank."""
    factor = system.factor
    target, accept, budget = _limits(system.eps, task)
    settings = target, task.monitor, budget
    inner = None
    if explicit:
        G, y = system.gram()
        if task.rcond is not None:
            factor = exactly_truncated(factor, G, task.rcond)
            system = Tall(system.M, system.B, system.damp, factor)
            G, y = np.eye(factor.rank), np.zeros((factor.rank, system.B.shape[1]))
        inner = cholesky_solver(G)
        y = np.zeros_like(y) if inner is None else inner(y, None, True)
    else:
        y = factor.start if start is None else None
    state = system.start(y) if start is None else system.rounded(start)
    if method == "sketch":
        c, size = system.residual(state)
        return Outcome(state, size, system.backward_error(c, size), True), factor.rank
    if method == "itersketch":
        return iterative_sketching(system, state, d, *settings), factor.rank
    if method == "lsqr":
        return preconditioned_lsqr(system, state, *settings), factor.rank
    outcome = None
    if inner is not None:
        outcome = refine(system, state, inner, *settings)
        state = outcome.state
    monitor = task.monitor
    if outcome is None or (np.max(outcome.error) > accept and len(monitor.history) < budget and not monitor.stopped):
        inner = heavy_ball_solver(system, d, *settings) if method == "fossils" else cg_solver(system, *settings)
        outcome = refine(system, state, inner, *settings)
    return outcome, factor.rank


def _least_norm(system, method, explicit, floor, task):
    """Run one method on a wide A; return its outcome and the rank."""
    target, accept, budget = _limits(system.eps, task)
    rank = system.factor.rank
    if method == "sketch":
        state = system.start(adjoint(system.factor.P) @ to_host(system.B))
        c, size = system.residual(state)
        return Outcome(state, size, system.backward_error(c, size), True), rank
    if explicit:
        found = in_row_space(system, target, task.monitor, floor=floor, rcond=task.rcond)
        if found is not None and (np.max(found[0].error) <= accept or task.rcond is not None):
            return found
    rounds = 3 if method == "spir" else 1
    return preconditioned_lsqr(system, (system.zero(), 0.0), target, task.monitor, budget, rounds=rounds), rank


def _limits(eps, task):
    """Return the backward error to aim at, the one to be content with, and the number of iterations."""
    target, accept = (eps, ROUNDING * eps) if task.tol == "backward" else (task.tol, task.tol)
    return target, accept, task.max_iter or MAX_ITER


def _direct(M, B, damp, task):
    """Solve by Householder QR of ``[A b]``, or of ``A^H``, and the SVD of the triangular factor."""
    (m, n), xp, place = M.shape, M.xp, {"dtype": M.dtype, "device": M.device}
    A = M.to_dense()
    M.counter.passes += M.array is not None  # otherwise counted by what formed A
    check_scale(to_host(xp.max(xp.abs(A), axis=0)), damp, M, task.caller)
    short = min(m, n)
    options = {"floor": eps_of(xp, M.dtype) * (30 + math.sqrt(short)), "rcond": task.rcond,
               "equilibrate": task.rcond is None and m >= n}  # fmt: skip
    T, S = (A, B) if m >= n else (adjoint(A), B[:0, :])
    if damp:
        T = xp.concat([T, damp * xp.eye(short, **place)])
        S = xp.concat([S, xp.zeros((T.shape[0] - S.shape[0], S.shape[1]), **place)])
    if m >= n and S.shape[1] <= n:  # Q^H b comes with the factorisation, and Q is never formed
        TS = xp.concat([T, S], axis=1)
        X = np.linalg.qr(TS, mode="r") if is_numpy_array(TS) else xp.linalg.qr(TS)[1]
    else:
        Q, X = xp.linalg.qr(T)
        X = xp.concat([X, adjoint(Q) @ S], axis=1) if m >= n else X
    factor = factored(to_host(X), short, **options)
    if factor.rank == 0:
        return _zero(M, B, "direct")
    system = (Tall if m >= n else Wide)(as_matrix(A, task.caller), B, damp, factor)
    if m >= n:
        state = system.start(factor.start)
    else:
        y = adjoint(factor.P) @ to_host(B)
        # A^H w = Q (R w), R w = U y: the product with A^H itself would round in the size of w.
        state = (Q @ like(factor.U @ y, B))[:n, :], factor.P @ y
    c, size = system.residual(state)
    x = like(state, B) if m >= n else state[0]
    return _Solution(x, size.data, system.backward_error(c, size), factor.rank, "direct", True, "direct solution")


def _zero(M, B, method):
    """Return the solution for a matrix of zeros."""
    count = B.shape[1]
    X = M.xp.zeros((M.shape[1], count), dtype=M.dtype, device=M.device)
    return _Solution(X, np.sqrt(column_squares(B)), np.zeros(count), 0, method, True, "A is zero")


def _check_options(M, method, damp, tol, sketch_ratio, rcond, max_iter, caller):
    check_choice(method, "method", METHODS, caller)
    if M.shape[0] < M.shape[1] and method in TALL_METHODS:
        raise ValueError(f"{caller}: method {method!r} needs a tall A; got shape {M.shape}, try 'spir' or 'lsqr'.")
    check_number(damp, "damp", caller)
    if tol != "backward":
        check_number(tol, "tol", caller)
    if sketch_ratio is not None:
        check_number(sketch_ratio, "sketch_ratio", caller)
        if not sketch_ratio > 1:
            raise ValueError(f"{caller}: sketch_ratio must be above 1; got {sketch_ratio}.")
    if rcond is not None:
        check_number(rcond, "rcond", caller)
        if not rcond < 1:
            raise ValueError(f"{caller}: rcond must be below 1; got {rcond}.")
    if max_iter is not None:
        check_count(max_iter, "max_iter", caller)
