"""Algebraic Riccati equations with terms of low rank, solved in low-rank form."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rnla._errors import NotPositiveDefiniteError
from rnla._lyapunov import check_options, judged, semidefinite_factor, summary
from rnla._pencil import Pencil, thin
from rnla._progress import Monitor
from rnla._radi import MARGIN, NoSolution, Unstable, checked_shifts, compressed, indefinite_norm, radi
from rnla._rangefinder import check_choice

EPS = float(np.finfo(float).eps)
INNER = 0.1  # part of the tolerance for the Lyapunov equations of Newton's method
ADVICE = "if A, or the pencil (A, E), is not stable, give a stabilising gain K0 (with method='radi' or method='newton')"
UNSOLVABLE = "the pencil (A, E) may have to be stable or stabilisable, or with positive=True B and C smaller"


@dataclass(frozen=True, eq=False, repr=False)
class RiccatiResult:
    """Solution ``X = Z Z^T`` of a Riccati equation, its gain, and how they were found.

    Attributes
    ----------
    Z : ndarray, shape (n, r)
        Factor of the solution.
    K : ndarray, shape (b, n)
        Gain ``R^-1 (B^T X E + S^T)``: ``u = -K x`` is the optimal control, and the pencil of ``A - B K`` and E is
        stable; with `positive`, that of ``A + B K`` and E.
    residual : float
        2-norm of the residual of ``Z Z^T`` over that of the constant term, computed from `Z` at the end.
    converged : bool
        Whether the residual met the tolerance, before a cut by `max_rank`.
    n_iter : int
        Number of records in `history`.
    history : tuple of Record
        ``(iteration, error, seconds)`` after every shift, or every step of Newton's method; the error is the relative
        residual.
    message : str
        Why it ended.

    Examples
    --------
    >>> result = rnla.solve_riccati_lowrank(np.array([[-1.0]]), np.array([1.0]), np.array([np.sqrt(3.0)]))
    >>> np.round(result.Z @ result.Z.T, 6).tolist(), np.round(result.K, 6).tolist()
    ([[1.0]], [[1.0]])
    """

    Z: Any
    K: Any
    residual: float
    converged: bool
    n_iter: int
    history: tuple
    message: str

    def __repr__(self):
        return f"RiccatiResult(Z{self.Z.shape}, K{self.K.shape}, {self.Z.dtype})\n  {summary(self)}"


def solve_riccati_lowrank(A, B, C, *, E=None, R=None, S=None, positive=False, K0=None, tol=1e-10, max_iter=300,
                          max_rank=None, method="radi", shifts="projection", callback=None):  # fmt: skip
    """Solve ``A^T X E + E^T X A - E^T X B R^-1 B^T X E + C^T C = 0`` for large A, a few columns B and a few rows C.

    X is the stabilising solution, the one of linear-quadratic control: ``u = -K x`` minimises the integral of
    ``|C x|^2 + u^T R u`` along ``E x' = A x + B u``. Its eigenvalues decay fast, so that a thin factor Z with
    ``X = Z Z^T`` holds all of it; X itself is never formed. For the filter equation pass the transposes of
    `A`, `E`, `C` and `B` as `A`, `E`, `B` and `C`.

    Parameters
    ----------
    A : sparse matrix or ndarray, shape (n, n)
        Real. All eigenvalues of the pencil (A, E) should have negative real parts, or `K0` be given. Without it a few
        unstable ones may do no harm; if they do, the divergence is noticed.
    B : ndarray, shape (n, b) or (n,)
        Input matrix.
    C : ndarray, shape (p, n) or (n,)
        Output matrix.
    E : sparse matrix or ndarray, shape (n, n), optional
        Nonsingular mass matrix; the identity if left out.
    R : ndarray, shape (b, b), optional
        Symmetric positive definite weight of the inputs; the identity if left out.
    S : ndarray, shape (n, b), optional
        Cross weight: the integrand has the further term ``2 x^T S u``, and ``E^T X B + S`` takes the place of
        ``E^T X B``. ``C^T C - S R^-1 S^T`` must be positive semidefinite.
    positive : bool
        Take the quadratic term with a plus, as in bounds of the H-infinity norm. The pencil must then be stable.
    K0 : ndarray, shape (b, n), optional
        Gain that stabilises: the eigenvalues of the pencil of ``A - B K0`` and E have negative real parts.
    tol : float
        Bound on the 2-norm of the residual over that of the constant term.
    max_iter : int
        Bound on the number of shifts (in each step of Newton's method, which has at most that many).
    max_rank : int, optional
        Bound on the columns of Z; the leading ones are kept. The gain is that of the full Z.
    method : {"radi", "newton", "dense"}
        ``radi``: one low-rank iteration; with `K0`, one for a Lyapunov equation and one for the rest. ``newton``: a
        sequence of Lyapunov equations. ``dense``: Schur decomposition of a matrix of shape (2 n, 2 n), for small n.
    shifts : "projection" or sequence of complex
        ``projection``: each from a small problem, projected onto the last columns. Or numbers with negative real parts,
        used in turn, a complex one together with its conjugate; their factorisations are kept up to 1 GiB.
    callback : callable, optional
        Called after each iteration with a record ``(iteration, error, seconds)``; raising StopIteration ends with what
        there is.

    Returns
    -------
    RiccatiResult
        ``Z``, ``K``, and ``residual``, ``converged``, ``n_iter``, ``history``, ``message``.

    Raises
    ------
    ValueError
        If a shape or an option is wrong, an argument is not finite, E is singular, the iteration diverges as it does
        for an unstable pencil, or a stabilising solution does not exist.
    NotPositiveDefiniteError
        If R is not positive definite.
    TypeError
        If an argument is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` is reached, or rounding keeps the residual above the tolerance.

    Notes
    -----
    A shift costs one sparse factorisation of ``A^T + s E^T`` and a solution with ``p + b`` columns. Computed in double
    precision; Z and K have single precision if all arguments have.

    References
    ----------
    .. [1] Benner, Bujanovic, Kuerschner, Saak, "RADI: a low-rank ADI-type algorithm for large scale algebraic Riccati
       equations", Numer. Math. 138 (2018).

    Examples
    --------
    >>> import scipy.sparse
    >>> A = scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(500, 500))
    >>> result = rnla.solve_riccati_lowrank(A, np.ones(500), np.ones(500))
    >>> result.converged, result.Z.shape[1] < 30, result.K.shape
    (True, True, (1, 500))
    """
    caller = "rnla.solve_riccati_lowrank"
    check_options(tol, max_iter, max_rank, caller)
    check_choice(method, "method", ("radi", "newton", "dense"), caller)
    if positive and (K0 is not None or method == "newton"):
        raise ValueError(f"{caller}: positive must be False with K0 or method 'newton'; got {positive!r}.")
    problem = _Problem(A, B, C, E, R, S, -1 if positive else 1, caller)
    T0 = None if K0 is None else problem.feedback(K0)
    if T0 is not None and problem.scale == 0:
        problem.scale = float(np.linalg.norm(T0 - problem.S, 2)) ** 2  # nothing but stability is asked for
    shifts = checked_shifts(shifts, caller)
    monitor = Monitor(callback, False, caller)
    options = {"scale": problem.scale, "max_iter": max_iter, "shifts": shifts}
    try:
        F, T, met = _solved(problem, T0, method, tol, options, monitor)
    except Unstable as error:
        advice = UNSOLVABLE if positive else ADVICE
        raise ValueError(f"{caller}: the iteration diverges ({error}); {advice}.") from error
    except NoSolution as error:
        raise ValueError(
            f"{caller}: the equation seems to have no stabilising solution X >= 0; {UNSOLVABLE}."
        ) from error
    residual = problem.residual(F)
    converged, message = judged(residual, met, tol, max_iter, monitor, caller)
    if max_rank is not None and F.shape[1] > max_rank:
        F = F[:, :max_rank]
        residual = problem.residual(F)
        message += f"; cut to max_rank = {max_rank}"
    Z, K = F.astype(problem.dtype), problem.gain(T).astype(problem.dtype)
    return RiccatiResult(Z, K, residual, converged, len(monitor.history), tuple(monitor.history), message)


class _Problem:
    """The equation in the form that the iterations solve: weight I, and the cross term moved into A and C.

    With ``R = L L^T``, the columns of ``B L^-T`` take the place of B, and ``T = (E^T X B + S) L^-T`` of shape (n, b)
    stands for the gain ``L^-T T^T``.
    """

    def __init__(self, A, B, C, E, R, S, sigma, caller):
        self.caller, self.sigma = caller, sigma
        self.pencil = Pencil(A, E, caller)
        n = self.pencil.n
        B, b_dtype = thin(B, "B", n, caller)
        C, c_dtype = thin(C, "C", n, caller, by_rows=True)
        self.dtype = np.promote_types(np.promote_types(b_dtype, c_dtype), self.pencil.dtype)
        b = B.shape[1]
        self.root = np.eye(b) if R is None else _weight_root(R, b, caller)
        self.B = self._scaled(B)
        self.S = np.zeros((n, b)) if S is None else self._scaled(self._checked(S, "S", (n, b)))
        self.W = self._constant_factor(C.T)  # the constant term is W W^T
        self.scale = float(np.linalg.norm(self.W, 2)) ** 2 if self.W.size else 0.0

    def feedback(self, K):
        """Return T for a gain of the user."""
        return self._checked(K, "K0", self.B.shape[::-1]).T @ self.root

    def gain(self, T):
        """Return the gain for T."""
        return np.linalg.solve(self.root.T, T.T)

    def residual(self, Z):
        """Return the relative residual of ``Z Z^T``."""
        pencil, r, b, p = self.pencil, Z.shape[1], self.B.shape[1], self.W.shape[1]
        EZ = pencil.adjoint_E(Z)
        AZ = pencil.AT @ Z - self.sigma * (self.S @ (self.B.T @ Z))
        core = np.diag([0.0] * (2 * r) + [-float(self.sigma)] * b + [1.0] * p)
        core[:r, r : 2 * r] = core[r : 2 * r, :r] = np.eye(r)
        return indefinite_norm([AZ, EZ, EZ @ (Z.T @ self.B), self.W], core) / (self.scale or 1.0)

    def _scaled(self, X):
        return np.linalg.solve(self.root, X.T).T

    def _checked(self, X, name, shape):
        X, _ = thin(X, name, shape[1] if name == "K0" else shape[0], self.caller, by_rows=name == "K0")
        if X.shape != shape:
            raise ValueError(f"{self.caller}: {name} must have shape {shape}; got {X.shape}.")
        return X

    def _constant_factor(self, W):
        """Return a factor of ``W W^T - sigma S S^T``."""
        if not self.S.any():
            return W
        if self.sigma < 0:
            return np.hstack([W, self.S])
        both = np.hstack([W, self.S])
        signs = np.where(np.arange(both.shape[1]) < W.shape[1], 1.0, -1.0)
        Q, small = np.linalg.qr(both)
        values, U = np.linalg.eigh((small * signs) @ small.T)
        rounding = 100 * len(values) * EPS * np.linalg.norm(small, 2) ** 2
        if values[0] < -rounding:
            raise ValueError(
                f"{self.caller}: C^T C - S R^-1 S^T must be positive semidefinite; got an eigenvalue {values[0]:.1e}."
            )
        kept = values > rounding
        return Q @ (U[:, kept] * np.sqrt(values[kept]))


def _weight_root(R, b, caller):
    R, _ = thin(R, "R", b, caller)
    if R.shape != (b, b) or np.abs(R - R.T).max(initial=0.0) > 100 * EPS * np.abs(R).max(initial=0.0):
        raise ValueError(f"{caller}: R must be symmetric of shape {(b, b)}; got shape {R.shape}.")
    try:
        return np.linalg.cholesky(R)
    except np.linalg.LinAlgError as error:
        raise NotPositiveDefiniteError(f"{caller}: R must be positive definite; it is not.") from error


def _solved(problem, T0, method, tol, options, monitor):
    """Return a factor of X, the feedback T of X, and whether the tolerance is met."""
    if method == "dense":
        return _dense(problem)
    if problem.scale == 0:
        return np.zeros((problem.pencil.n, 0)), problem.S if T0 is None else T0, True
    target = MARGIN * tol * problem.scale
    if method == "newton":
        return _newton(problem, problem.S if T0 is None else T0, target, options, monitor)
    if T0 is not None:
        return _from_gain(problem, T0, target, options, monitor)
    pencil, B, S, sigma = problem.pencil, problem.B, problem.S, problem.sigma
    found = radi(pencil, B, sigma * S, problem.W, sigma, target=target, monitor=monitor, **options)
    return compressed(found.F), S + found.K, found.converged


def _newton(problem, T, target, options, monitor):
    """Solve a Lyapunov equation for every gain until the gain no longer changes (Newton and Kleinman)."""
    while True:
        found, next_T = _lyapunov_step(problem, T, INNER * target, options, None)
        change = next_T - T
        size = indefinite_norm([found.R, change], np.diag([1.0] * found.R.shape[1] + [-1.0] * change.shape[1]))
        monitor(size / problem.scale)
        T = next_T
        if size <= target or len(monitor.history) >= options["max_iter"] or monitor.stopped:
            return compressed(found.F), T, size <= target


def _from_gain(problem, T, target, options, monitor):
    """Take one step of Newton's method; what it leaves over solves an equation with a positive quadratic term."""
    first, next_T = _lyapunov_step(problem, T, target, options, monitor)
    rest = radi(problem.pencil, problem.B, next_T, next_T - T, -1, target=target, monitor=monitor, **options)
    return compressed(first.F, rest.F), next_T - rest.K, first.converged and rest.converged


def _lyapunov_step(problem, T, target, options, monitor):
    """Solve for the cost of the feedback T, and return the feedback that is optimal for this cost."""
    R = np.hstack([problem.W, T - problem.S])
    found = radi(problem.pencil, problem.B, T, R, 0, target=target, monitor=monitor, **options)
    return found, problem.S + found.K


def _dense(problem):
    """Solve by the stable invariant subspace of the Hamiltonian matrix, and one step of Newton's method."""
    from scipy.linalg import schur, solve_continuous_lyapunov

    A, E = problem.pencil.dense()
    B, sigma = problem.B, problem.sigma
    n = len(A)
    W = np.linalg.solve(E.T, problem.W)
    G = np.linalg.solve(E.T, (A - sigma * B @ problem.S.T).T).T  # A E^-1
    # Scaled so that both off-diagonal blocks have one norm.
    ratio = np.linalg.norm(W) / (np.linalg.norm(B) or 1.0) or 1.0
    H = np.block([[G, -sigma * ratio * (B @ B.T)], [-(W @ W.T) / ratio, -G.T]])
    _, U, count = schur(H, sort="lhp")
    if count != n or np.linalg.cond(U[:n, :n]) > 1 / EPS:
        raise NoSolution
    X = ratio * np.linalg.solve(U[:n, :n].T, U[n:, :n].T).T
    X = (X + X.T) / 2
    GX, BX = G.T @ X, B.T @ X
    rest = GX + GX.T - sigma * BX.T @ BX + W @ W.T
    F = semidefinite_factor(X + solve_continuous_lyapunov((G - sigma * B @ BX).T, -rest))
    if F is None:
        raise NoSolution
    return F, problem.S + E.T @ (F @ (F.T @ B)), True
