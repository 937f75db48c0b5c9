"""Conjugate gradients for positive definite systems, preconditioned by a low-rank approximation of the matrix."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_torch_array

from rnla._backend import adjoint, check_finite, eps_of, key_from_rng, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._matrix import as_matrix
from rnla._matrix_entries import entries_of
from rnla._nystrom import check_square, doubling
from rnla._progress import Monitor
from rnla._rangefinder import (
    check_choice,
    check_count,
    check_number,
    check_range,
    check_rank,
    in_range,
    thin_svd,
    warn_not_converged,
)
from rnla._rpcholesky import factorised
from rnla._tall import column_squares, like, times_small

START = 32  # rank of the first preconditioner that is tried
RANKS = (64, 1000)  # bounds of the largest rank that is tried by itself: ten roots of n between them
ENOUGH = 10.0  # a factorisation by columns suffices once the trace of its error is at most this many mu
CLEARLY = 100.0  # a curvature below minus this many rounding units of the norm is no rounding
MARGIN = 0.9  # part of the tolerance down to which the updated residual, which drifts from the true one, is driven
MAX_ITER = 5000  # default bound, for n from 500 on


@dataclass(frozen=True, eq=False)
class SolveResult:
    """Solution of a linear system, and how it was found.

    Attributes
    ----------
    x : array, shape (n,) or (n, r)
        Solution, in the library and dtype of the matrix.
    converged : bool
        Whether the residual of every right-hand side met the tolerance.
    n_iter : int
        Iterations, each one product with the matrix.
    residual : float or ndarray, shape (r,)
        ``||b - (A + mu I) x|| / ||b||``, from a product with `x` at the end.
    history : tuple of Record
        ``(iteration, error, seconds)`` of every iteration; the error is the largest relative residual.
    message : str
        Why it ended.
    rank : int
        Rank of the preconditioner.

    Examples
    --------
    >>> result = rnla.pcg(np.diag([4.0, 2.0, 1.0]), np.array([4.0, 4.0, 4.0]), rng=0)
    >>> result.converged, np.round(result.x, 6).tolist()
    (True, [1.0, 2.0, 4.0])
    """

    x: Any
    converged: bool
    n_iter: int
    residual: Any
    history: tuple
    message: str
    rank: int

    def __repr__(self):
        state = "converged" if self.converged else "NOT converged"
        return (
            f"SolveResult(x{tuple(self.x.shape)}, {self.x.dtype})\n  {state}: {self.message}; {self.n_iter} iterations,"
            f" relative residual {float(np.max(self.residual)):.2e}, preconditioner of rank {self.rank}"
        )

    __str__ = __repr__


def pcg(A, b, *, mu=0.0, precond="nystrom", rank="auto", tol=1e-8, max_iter=None, rng=None, callback=None,
        progress=False):  # fmt: skip
    """Solve ``(A + mu I) x = b`` for a positive semidefinite `A` by preconditioned conjugate gradients.

    The preconditioner inverts a low-rank approximation of `A` plus a multiple of the identity. Once its rank is about
    three times the effective dimension ``sum(w / (w + mu))`` of the eigenvalues w, the condition of the preconditioned
    system is below 28 on average, whatever that of `A`, and the number of iterations no longer depends on `mu`.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (n, n)
        Hermitian, positive semidefinite. Only products with it are used, and columns by ``precond="rpcholesky"``.
    b : array, shape (n,) or (n, r)
        Right-hand sides, in the library of `A`. Each has its own iteration; they share the products.
    mu : float
        Multiple of the identity, not negative; with 0 the matrix must be positive definite itself.
    precond : {"nystrom", "rpcholesky", None}
        Low-rank approximation. ``nystrom`` multiplies `A` by a block of random vectors; ``rpcholesky`` reads columns.
        None: plain conjugate gradients.
    rank : int or "auto"
        Its rank; ``auto``: doubled until the last eigenvalue is below `mu` (``rpcholesky``: grown until the trace of
        the error is below ``10 * mu``), at most ten times the root of n, and 1000.
    tol : float
        Bound on ``||b - (A + mu I) x|| / ||b||`` for each right-hand side.
    max_iter : int, optional
        Bound on the number of iterations; ``10 * n``, at most 5000.
    rng : None, int or numpy.random.Generator
        Source of the preconditioner.
    callback : callable, optional
        Called after each iteration with a record ``(iteration, error, seconds)``, the error being the largest relative
        residual. Raising StopIteration ends the iteration with what it has.
    progress : bool
        Show a progress bar.

    Returns
    -------
    SolveResult
        ``x``, of the shape of `b`, and ``converged``, ``n_iter``, ``residual``, ``history``, ``message``, ``rank``.

    Raises
    ------
    ValueError
        If an argument is out of range, `A` is not square, or `A` or `b` is not finite.
    NotPositiveDefiniteError
        If ``A + mu I`` has a clearly negative curvature along a search direction, or `A` along a random one.
    TypeError
        If `A` or `b` is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` is reached, or rounding stops the residual from falling, before the tolerance is met.

    Notes
    -----
    One product with r columns an iteration, and one at the end; the preconditioner of rank k costs one product with k
    columns and about ``20 n k**2`` flops, and ``4 n k r`` flops an iteration.

    References
    ----------
    .. [1] Frangella, Tropp, Udell, "Randomized Nystrom preconditioning", SIAM J. Matrix Anal. Appl. 44 (2023),
       Theorem 5.1.
    .. [2] Diaz, Epperly, Frangella, Tropp, Webber, "Robust, randomized preconditioning for kernel ridge regression",
       arXiv 2304.12465.

    Examples
    --------
    >>> K = rnla.KernelMatrix(np.linspace(0.0, 1.0, 300)[:, None], "gaussian", 0.1)
    >>> y = np.sin(np.linspace(0.0, 9.0, 300))
    >>> result = rnla.pcg(K, y, mu=1e-4, rng=0)
    >>> result.converged, result.n_iter < 20
    (True, True)
    """
    caller = "rnla.pcg"
    M = as_matrix(A, caller)
    check_square(M, caller)
    check_number(mu, "mu", caller)
    check_number(tol, "tol", caller)
    check_choice(precond, "precond", ("nystrom", "rpcholesky", None), caller)
    if rank != "auto":
        check_rank(rank, M, caller, "rank")
    if max_iter is not None:
        check_count(max_iter, "max_iter", caller)
    B, norms, single = _right_hand_sides(b, M, caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller)
    try:
        W, k = _preconditioner(A, M, mu, precond, rank, key, caller)

        def run(M, factor):
            iteration = _Iteration(M, B, mu * factor, W, monitor, caller)
            return iteration, iteration.run(tol, max_iter or min(10 * M.shape[0], MAX_ITER))

        (solved, message), factor = in_range(run, M)
    finally:
        monitor.close()
    converged = bool((solved.residual <= tol).all())
    if monitor.stopped and not converged:
        message = "ended by the callback"
    elif not converged:
        warn_not_converged(caller, f"{message}, at a relative residual of {solved.residual.max():.1e}")
    x = solved.X * like((norms * factor)[None, :], solved.X)
    return SolveResult(
        x[:, 0] if single else x, converged, solved.n_iter, float(solved.residual[0]) if single else solved.residual,
        tuple(monitor.history), message, k,
    )  # fmt: skip


class _Iteration:
    """Conjugate gradients for several right-hand sides of norm one or zero, with one product an iteration for all."""

    def __init__(self, M, B, mu, W, monitor, caller):
        self.M, self.B, self.mu, self.W = M, B, mu, W
        self.monitor, self.caller = monitor, caller
        self.X = M.xp.zeros_like(B)
        self.n_iter = 0
        self.residual = np.sqrt(column_squares(B))  # true, relative
        self.broken = self.residual == np.inf  # right-hand sides given up: none yet
        self.scale = 0.0  # lower bound of the norm of A + mu I

    def run(self, tol, max_iter):
        """Iterate until the true residuals are below `tol`, and return why it ended."""
        R, active = self.B, self.residual > 0
        while True:
            self._cycle(R, active, tol, max_iter)
            R = self.B - self._product(self.X)
            before, self.residual = self.residual, np.sqrt(column_squares(R))
            active = active & (self.residual > tol)
            if not active.any():
                return "converged"
            if self.n_iter >= max_iter:
                return f"max_iter = {max_iter} reached"
            active &= ~self.broken
            if not active.any():
                return "A + mu I is singular to working precision"
            # The residual that was updated had met the tolerance; rounding has parted it from the true one.
            if self.monitor.stopped or not (self.residual[active] <= 0.5 * before[active]).any():
                return "rounding stops the residual from falling"

    def _cycle(self, R, active, tol, max_iter):
        """Iterate from the residual R until the updated residuals are below the tolerance."""
        D = Z = self._preconditioned(R)
        rho = _dots(R, Z)
        while self.n_iter < max_iter and not self.monitor.stopped:
            active = active & (rho > 0) & ~self.broken
            if not active.any():
                return
            Q = self._product(D)
            curvature = _dots(D, Q)
            self.broken |= active & ~self._positive(curvature, D, Q, active)
            active &= ~self.broken
            step = like(np.where(active, rho / np.where(active, curvature, 1.0), 0.0)[None, :], D)
            self.X = self.X + D * step
            R = R - Q * step
            errors = np.sqrt(column_squares(R))
            self.n_iter += 1
            self.monitor(errors.max())
            active &= errors > MARGIN * tol
            Z = self._preconditioned(R)
            rho, previous = _dots(R, Z), rho
            # Directions of what is done become zero and stay so.
            beta = np.where(active, rho / np.where(active, previous, 1.0), 0.0)
            D = Z * like(np.where(active, 1.0, 0.0)[None, :], Z) + D * like(beta[None, :], D)

    def _positive(self, curvature, D, Q, active):
        """Say along which search directions A + mu I is positive; raise where it is clearly negative."""
        lengths = np.where(active, column_squares(D), 1.0)
        quotients = np.where(active, curvature, 1.0) / lengths
        self.scale = max(self.scale, math.sqrt(float(np.max(column_squares(Q) / lengths * active))))
        if quotients.min() < -CLEARLY * eps_of(self.M.xp, self.M.dtype) * self.scale:
            raise NotPositiveDefiniteError(
                f"{self.caller}: A + mu I must be positive definite; along a search direction its Rayleigh quotient is "
                f"{quotients.min() / self.scale:.1e} of its norm."
            )
        return quotients > 0

    def _product(self, X):
        Y = self.M.matmat(X)
        check_finite(Y, self.caller, "A")
        Y = Y + self.mu * X if self.mu else Y
        if self.n_iter == 0:
            check_range(self.M, None, Y, self.caller)
        return Y

    def _preconditioned(self, R):
        return R if self.W is None else R - self.W @ (adjoint(self.W) @ R)


def _preconditioner(A, M, mu, precond, rank, key, caller):
    """Return W with ``P^-1 = I - W W^H`` for the preconditioner P, or None, and its rank."""
    eps = eps_of(M.xp, M.dtype)
    if precond is None:
        return None, 0
    w, U = (_by_products if precond == "nystrom" else _by_columns)(A, M, mu, rank, key, caller)
    k = int(np.sum(w > 10 * eps * w.max(initial=0.0)))  # the others are rounding
    if k == 0:
        return None, 0
    w, U = w[:k], U[:, :k]
    # P = I + U D U^H agrees, up to a factor, with A + mu I on the range of U and is a multiple of I elsewhere. In low
    # precision its condition is limited: rounding of W must leave I - W W^H positive.
    rest = max(float(w[-1]) + mu, 100 * eps * float(w[0]))
    root = np.sqrt(np.maximum((w + mu) / rest - 1.0, 0.0))
    # By the Cholesky factor of the core, scaled with the eigenvalues, P is inverted as it is, not as it would be if
    # rounding had left U orthonormal.
    core = np.eye(k) + root[:, None] * to_host(adjoint(U) @ U) * root
    return times_small(U, root[:, None] * np.linalg.inv(np.linalg.cholesky(core)).conj().T), k


def _largest_rank(n, rank):
    low, high = RANKS
    return min(n, max(low, min(10 * math.isqrt(n), high))) if rank == "auto" else rank


def _by_products(A, M, mu, rank, key, caller):
    """Return eigenpairs of a Nystrom approximation, of a rank that is doubled until it suffices for mu."""
    limit, eps = _largest_rank(M.shape[0], rank), eps_of(M.xp, M.dtype)

    def run(M, factor):
        sketches = doubling(
            M, limit, start=START if rank == "auto" else limit, n_iter=0, sketch="gaussian", key=key, shift="auto",
            check=True, caller=caller,
        )  # fmt: skip
        for found in sketches:
            if found.w[-1] <= max(mu * factor, 10 * eps * found.w[0]):
                break
        return found

    found, factor = in_range(run, M)
    return found.w / factor, found.U


def _by_columns(A, M, mu, rank, key, caller):
    """Return eigenpairs of a randomly pivoted Cholesky factorisation."""
    own = callable(getattr(A, "columns", None))
    if M.kind == "operator" and not own:
        raise ValueError(f"{caller}: A must be known by its entries for precond 'rpcholesky'; got products only.")
    E = entries_of(A if own else M, None, caller)
    k = _largest_rank(E.n, rank)
    enough = ENOUGH * mu if rank == "auto" else 0.0
    silent = Monitor(None, False, caller)  # the iterations are those of the solver
    found = factorised(E, k, 0.0, enough, "accelerated", "auto", key, silent, True, caller)
    U, s, _ = thin_svd(found.F[:, : len(found.pivots)])
    return to_host(s).real ** 2, U


def _right_hand_sides(b, M, caller):
    """Return the right-hand sides as columns of norm one, their norms, and whether there is a single one."""
    xp, n = M.xp, M.shape[0]
    if isinstance(b, (list, tuple)):
        b = np.asarray(b)
    if not is_array_api_obj(b) or array_namespace(b) is not xp:
        raise TypeError(f"{caller}: b must be an array of the library of A, {xp.__name__}; got {type(b).__name__}.")
    if b.ndim not in (1, 2) or b.shape[0] != n or 0 in b.shape:
        raise ValueError(f"{caller}: b must have shape ({n},) or ({n}, r) for A of shape {M.shape}; got {b.shape}.")
    if not xp.isdtype(b.dtype, ("bool", "numeric")):
        raise TypeError(f"{caller}: b must have a numeric dtype; got {b.dtype}.")
    if xp.isdtype(b.dtype, "complex floating") and not xp.isdtype(M.dtype, "complex floating"):
        raise TypeError(f"{caller}: b must be real where A is; solve for its real and imaginary parts as two columns.")
    B = xp.astype(b.detach() if is_torch_array(b) else b, M.dtype)
    B = B[:, None] if b.ndim == 1 else B
    if not bool(xp.all(xp.isfinite(B))):
        raise ValueError(f"{caller}: b must be finite; it contains NaN or infinity.")
    # Through the largest entry, so that no square leaves the range.
    top = to_host(xp.max(xp.abs(B), axis=0)).real
    B = B / like(np.where(top > 0, top, 1.0)[None, :], B)
    norms = np.sqrt(column_squares(B))
    return B / like(np.where(norms > 0, norms, 1.0)[None, :], B), norms * top, b.ndim == 1


def _dots(X, Y):
    """Return the real inner products of the columns of two blocks, on the host."""
    xp = array_namespace(X)
    products = xp.conj(X) * Y if xp.isdtype(X.dtype, "complex floating") else X * Y
    return to_host(xp.sum(products, axis=0)).real
