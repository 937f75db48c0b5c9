"""Lyapunov equations with a constant term of low rank, solved in low-rank form."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rnla._pencil import Pencil, thin
from rnla._progress import Monitor
from rnla._radi import MARGIN, Unstable, checked_shifts, compressed, indefinite_norm, radi
from rnla._rangefinder import check_choice, check_count, check_number, warn_not_converged


@dataclass(frozen=True, eq=False, repr=False)
class LyapunovResult:
    """Solution ``X = Z Z^T`` of a Lyapunov equation, and how it was found.

    Attributes
    ----------
    Z : ndarray, shape (n, r)
        Factor of the solution.
    residual : float
        2-norm of the residual of ``Z Z^T`` over that of ``C^T C``, computed from `Z` at the end.
    converged : bool
        Whether the residual met the tolerance, before a cut by `max_rank`.
    n_iter : int
        Number of shifts, each with one factorisation at most; a complex pair counts once.
    history : tuple of Record
        ``(iteration, error, seconds)`` after every shift; the error is the relative residual.
    message : str
        Why it ended.

    Examples
    --------
    >>> result = rnla.solve_lyapunov_lowrank(-np.eye(2), np.array([2.0, 0.0]))
    >>> np.round(result.Z @ result.Z.T, 6).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """

    Z: Any
    residual: float
    converged: bool
    n_iter: int
    history: tuple
    message: str

    def __repr__(self):
        return f"LyapunovResult(Z{self.Z.shape}, {self.Z.dtype})\n  {summary(self)}"


def solve_lyapunov_lowrank(A, C, *, E=None, tol=1e-10, max_iter=300, max_rank=None, method="adi",
                           shifts="projection", callback=None):  # fmt: skip
    """Solve ``A^T X E + E^T X A + C^T C = 0`` for a large stable pencil and a few rows C.

    The eigenvalues of X decay fast: a thin factor Z with ``X = Z Z^T`` holds all of it, and X itself is never formed.
    For the other equation, ``A X E^T + E X A^T + B B^T = 0``, pass the transposes of `A`, `E` and `B`.

    Parameters
    ----------
    A : sparse matrix or ndarray, shape (n, n)
        Real. All eigenvalues of the pencil (A, E) must have negative real parts.
    C : ndarray, shape (p, n) or (n,)
        Factor of the constant term.
    E : sparse matrix or ndarray, shape (n, n), optional
        Nonsingular mass matrix; the identity if left out.
    tol : float
        Bound on the 2-norm of the residual over that of ``C^T C``.
    max_iter : int
        Bound on the number of shifts.
    max_rank : int, optional
        Bound on the columns of Z; the leading ones are kept.
    method : {"adi", "dense"}
        ``adi``: low-rank ADI iteration. ``dense``: Schur decomposition of A as an array, for small n.
    shifts : "projection" or sequence of complex
        ``projection``: each from a small problem, projected onto the last columns. Or numbers with negative real parts,
        used in turn, a complex one together with its conjugate; their factorisations are kept up to 1 GiB.
    callback : callable, optional
        Called after each shift with a record ``(iteration, error, seconds)``; raising StopIteration ends the iteration
        with what it has.

    Returns
    -------
    LyapunovResult
        ``Z``, and ``residual``, ``converged``, ``n_iter``, ``history``, ``message``.

    Raises
    ------
    ValueError
        If a shape or an option is wrong, an argument is not finite, E is singular, or the pencil is found to be
        unstable.
    TypeError
        If an argument is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If `max_iter` is reached, or rounding keeps the residual above the tolerance.

    Notes
    -----
    Computed in double precision; Z has single precision if all arguments have.

    References
    ----------
    .. [1] Benner, Kuerschner, Saak, "Self-generating and efficient shift parameters in ADI methods for large Lyapunov
       and Sylvester equations", Electron. Trans. Numer. Anal. 43 (2014).

    Examples
    --------
    >>> import scipy.sparse
    >>> A = scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(500, 500))
    >>> result = rnla.solve_lyapunov_lowrank(A, np.ones(500))
    >>> result.converged, result.Z.shape[1] < 30
    (True, True)
    """
    caller = "rnla.solve_lyapunov_lowrank"
    pencil = Pencil(A, E, caller)
    C, dtype = thin(C, "C", pencil.n, caller, by_rows=True)
    check_options(tol, max_iter, max_rank, caller)
    check_choice(method, "method", ("adi", "dense"), caller)
    shifts = checked_shifts(shifts, caller)
    monitor = Monitor(callback, False, caller)
    R, none = C.T, np.zeros((pencil.n, 0))
    scale = float(np.linalg.norm(C, 2)) ** 2 if C.size else 0.0
    try:
        if scale == 0:
            F, met = none, True
        elif method == "dense":
            F, met = _dense(pencil, C), True
        else:
            found = radi(pencil, none, none, R, 0, target=MARGIN * tol * scale, scale=scale, max_iter=max_iter,
                         shifts=shifts, monitor=monitor)  # fmt: skip
            F, met = found.F, found.converged
    except Unstable as error:
        raise ValueError(
            f"{caller}: A must be stable, the pencil (A, E) with E; it seems not to be: {error}."
        ) from error
    Z = compressed(F)
    residual = _residual(pencil, Z, R) / (scale or 1.0)
    converged, message = judged(residual, met, tol, max_iter, monitor, caller)
    if max_rank is not None and Z.shape[1] > max_rank:
        Z = Z[:, :max_rank]
        residual = _residual(pencil, Z, R) / scale
        message += f"; cut to max_rank = {max_rank}"
    Z = Z.astype(np.promote_types(dtype, pencil.dtype))
    return LyapunovResult(Z, residual, converged, len(monitor.history), tuple(monitor.history), message)


def check_options(tol, max_iter, max_rank, caller):
    """Raise unless the options that all matrix equations share are in their ranges."""
    check_number(tol, "tol", caller)
    if tol == 0:
        raise ValueError(f"{caller}: tol must be positive; got {tol}.")
    check_count(max_iter, "max_iter", caller)
    if max_rank is not None:
        check_count(max_rank, "max_rank", caller)


def judged(residual, met, tol, max_iter, monitor, caller):
    """Return whether an iteration converged and why it ended; warn if it failed."""
    if residual <= tol:
        return True, "converged"
    if monitor.stopped:
        return False, "ended by the callback"
    if met:
        message = "rounding keeps the residual above the tolerance"
    else:
        message = f"max_iter = {max_iter} reached"
    warn_not_converged(caller, f"{message}, at a relative residual of {residual:.1e}")
    return False, message


def summary(result):
    """Return the last line of what a result prints."""
    state = "converged" if result.converged else "NOT converged"
    return f"{state}: {result.message}; {result.n_iter} iterations, relative residual {result.residual:.2e}"


def semidefinite_factor(X):
    """Return a factor of a symmetric array, or None if it is clearly not positive semidefinite."""
    values, U = np.linalg.eigh((X + X.T) / 2)
    limit = len(values) * np.finfo(float).eps * np.abs(values).max()
    # Condition squared: what an unstable pencil leaves is of the order of the solution itself.
    if values[0] < -np.sqrt(np.finfo(float).eps) * np.abs(values).max():
        return None
    kept = values > limit
    return U[:, kept] * np.sqrt(values[kept])


def _dense(pencil, C):
    from scipy.linalg import eigvals, solve_continuous_lyapunov

    A, E = pencil.dense()
    G = np.linalg.solve(E.T, A.T)  # (A E^-1)^T
    W = np.linalg.solve(E.T, C.T)
    if eigvals(G).real.max() >= 0:
        raise Unstable("an eigenvalue of it is not in the left half-plane")
    F = semidefinite_factor(solve_continuous_lyapunov(G, -W @ W.T))
    if F is None:
        raise Unstable("the solution is indefinite")
    return F


def _residual(pencil, Z, R):
    r, p = Z.shape[1], R.shape[1]
    core = np.zeros((2 * r + p, 2 * r + p))
    core[:r, r : 2 * r] = core[r : 2 * r, :r] = np.eye(r)
    core[2 * r :, 2 * r :] = np.eye(p)
    return indefinite_norm([pencil.AT @ Z, pencil.adjoint_E(Z), R], core)
