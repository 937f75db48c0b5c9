"""Low-rank ADI iteration for Riccati and Lyapunov equations, with shifts from small projected problems."""

import cmath
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

SPAN = 6  # last columns of the factor, at least, onto which the next problem is projected
REAL = 1e-8  # imaginary parts below this part of the modulus are rounding
GROWTH = 1e6  # of the residual, beyond which the iteration diverges
NUDGE = 1 + 2**-10  # moves a shift that is an eigenvalue
AMPLIFIED = 100.0  # by the feedback: beyond it a solution is refined
MARGIN = 0.5  # part of the tolerance for the recursion; the rest is for rounding and for columns that are dropped


class Unstable(Exception):
    """The iteration diverges, as it does if the pencil has an eigenvalue in the right half-plane."""


class NoSolution(Exception):
    """The equation with a positive quadratic term has no stabilising solution."""


@dataclass(frozen=True)
class Iterated:
    """The factor F of ``X = F F^T``, ``E^T X B``, and the factor R of the residual ``R R^T``."""

    F: Any  # (n, r)
    K: Any  # (n, b)
    R: Any  # (n, p)
    converged: bool


def radi(pencil, B, T, R, sigma, *, target, scale, max_iter, shifts, monitor):
    """Solve ``G^T X E + E^T X G - sigma E^T X B B^T X E + R R^T = 0`` with ``G = A - B T^T``.

    Parameters
    ----------
    pencil : Pencil
        A and E. The pencil of G and E should be stable.
    B : ndarray, shape (n, b)
        Input matrix; may have no columns.
    T : ndarray, shape (n, b)
        Feedback that is in force from the start.
    R : ndarray, shape (n, p)
        Factor of the constant term.
    sigma : {1, -1, 0}
        Sign of the quadratic term; 0 for a Lyapunov equation.
    target : float
        Norm of the residual at which to stop.
    scale : float
        By which residuals are divided for the monitor.
    max_iter : int
        Bound on the number of factorisations.
    shifts : "projection" or tuple of complex
        The latter are used in turn.
    monitor : Monitor or None
        Told the residual after each shift.

    Returns
    -------
    Iterated

    Raises
    ------
    Unstable, NoSolution
        See there.
    """
    K, blocks = np.zeros_like(B), []
    first = size = _square_norm(R)
    count = 0
    while size > target and count < max_iter and not (monitor and monitor.stopped):
        feedback = T + sigma * K
        if shifts == "projection":
            s = _projected_shift(pencil, _recent(blocks, R), B, feedback, R, sigma)
        else:
            s = shifts[count % len(shifts)]
        s, solve = _solver(pencil, s, shifts != "projection")
        F, R, K = (_single if isinstance(s, float) else _pair)(pencil, solve, s, B, T, R, K, sigma)
        blocks.append(F)
        count += 1
        size = _square_norm(R)
        if monitor:
            monitor(size / scale)
        if not size <= GROWTH * first:
            raise Unstable(f"the residual grew by {size / first:.1e} in {count} steps")
    F = np.hstack(blocks) if blocks else np.zeros((pencil.n, 0))
    return Iterated(F, K, R, bool(size <= target))


def _solver(pencil, s, keep):
    """Return a shift for which ``A^T + s E^T`` is regular, and the function that solves with it."""
    try:
        return s, pencil.solver(s, keep)
    except np.linalg.LinAlgError:
        s *= NUDGE  # the feedback may have mirrored an unstable eigenvalue to s
    try:
        return s, pencil.solver(s, keep)
    except np.linalg.LinAlgError as error:
        raise Unstable(f"{-s:.3g} is an eigenvalue of the pencil") from error


def _single(pencil, solve, s, B, T, R, K, sigma):
    """Do the step of a real shift."""
    return _step(pencil, solve, s, B, T + sigma * K, R, K, sigma)


def _pair(pencil, solve, s, B, T, R, K, sigma):
    """Do the steps of a complex shift and its conjugate, after which all is real again."""

    def solve_conjugate(X):
        return np.conj(solve(np.conj(X)))

    first, R, K = _step(pencil, solve, s, B, T + sigma * K, R, K, sigma)
    second, R, K = _step(pencil, solve_conjugate, s.conjugate(), B, T + sigma * K, R, K, sigma)
    F = np.hstack([first, second])
    # F F^H is real, of rank at most the number of columns of F.
    Q, small = np.linalg.qr(np.hstack([F.real, F.imag]))
    U, values, _ = np.linalg.svd(small)
    kept = F.shape[1]
    return Q @ (U[:, :kept] * values[:kept]), np.ascontiguousarray(R.real), np.ascontiguousarray(K.real)


def _step(pencil, solve, s, B, feedback, R, K, sigma):
    """Return the new columns of the factor, and the next R and K."""
    from scipy.linalg import solve_triangular

    p = R.shape[1]
    width = math.sqrt(-2 * s.real)
    V = width * _closed_loop_solution(pencil, solve, s, B, feedback, R)
    VB = V.conj().T @ B
    Y = np.eye(p) + (sigma / (-2 * s.real)) * (VB @ VB.conj().T)
    try:
        root = np.linalg.cholesky(Y)
    except np.linalg.LinAlgError as error:
        raise (NoSolution if sigma < 0 else Unstable("it overflows")) from error
    F = solve_triangular(root, V.conj().T, lower=True).conj().T  # V Y^-1 V^H = F F^H
    W = pencil.adjoint_E(solve_triangular(root, F.T, lower=True, trans="T").T)  # E^T V Y^-1
    return F, R + width * W, K + W @ VB


def _closed_loop_solution(pencil, solve, s, B, feedback, R):
    """Return ``(A^T + s E^T - T B^T)^-1 R`` for the feedback T."""
    p, b = R.shape[1], B.shape[1]
    both = solve(np.hstack([R, feedback]).astype(complex if isinstance(s, complex) else float))
    V, N = both[:, :p], both[:, p:]
    if b == 0:
        return V
    # Sherman, Morrison and Woodbury: the feedback is a term of low rank in a matrix that is already factored.
    gains = B.T @ N
    V = V + N @ np.linalg.solve(np.eye(b) - gains, B.T @ V)
    if np.linalg.norm(gains) > AMPLIFIED:
        # The shift is near an eigenvalue that the feedback has moved: the two terms cancel.
        rest = R - pencil.AT @ V - s * pencil.adjoint_E(V) + feedback @ (B.T @ V)
        D = solve(rest)
        V = V + D + N @ np.linalg.solve(np.eye(b) - gains, B.T @ D)
    return V


def _recent(blocks, R):
    """Return an orthonormal basis of the last columns of the factor."""
    wanted = max(R.shape[1], SPAN)
    last, count = [], 0
    for block in reversed(blocks):
        if count >= wanted:
            break
        last.insert(0, block)
        count += block.shape[1]
    return np.linalg.qr(np.hstack(last)[:, -wanted:] if last else R)[0]


def _projected_shift(pencil, Q, B, feedback, R, sigma):
    """Return the stable eigenvalue that matters most for the solution of the projected residual equation."""
    from scipy.linalg import block_diag, eig, eigvals

    Bp, Rp = Q.T @ B, Q.T @ R
    Ep = Q.T @ pencil.times_E(Q)
    Ap = Q.T @ pencil.times(Q) - Bp @ (feedback.T @ Q)
    # Scaled to a constant term of norm one; otherwise the second half of the eigenvectors sinks into rounding.
    size = _square_norm(Rp) or 1.0
    H = np.block([[Ap, sigma * size * (Bp @ Bp.T)], [Rp @ Rp.T / size, -Ap.T]])
    M = None if pencil.ET is None else block_diag(Ep, Ep.T)
    values, vectors = eig(H, M)
    k = Q.shape[1]
    X, Y = vectors[:k], vectors[k:]
    cross = np.abs(np.sum(X * (Ep.T @ Y), axis=0))
    weight = np.sum(np.abs(Y) ** 2, axis=0) / np.maximum(cross, np.finfo(float).tiny)
    stable = np.isfinite(values) & (values.real < 0) & np.isfinite(weight)
    if stable.any():
        s = complex(values[np.argmax(np.where(stable, weight, -1.0))])
    else:
        s = complex(-np.abs(eigvals(Ap, None if pencil.ET is None else Ep).real).max())
    return tidy(s) if s.real < 0 else -(float(np.linalg.norm(Ap)) or 1.0)


def tidy(s):
    """Return a shift as a float, or as a complex number of the upper half-plane."""
    if abs(s.imag) <= REAL * abs(s):
        return float(s.real)
    return complex(s.real, abs(s.imag))


def checked_shifts(shifts, caller):
    """Return the shifts that a user gives, one of each conjugate pair."""
    if isinstance(shifts, str):
        if shifts != "projection":
            raise ValueError(f"{caller}: shifts must be 'projection' or a sequence of numbers; got {shifts!r}.")
        return shifts
    try:
        found = [complex(s) for s in shifts]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{caller}: shifts must be 'projection' or a sequence of numbers; got {shifts!r}.") from error
    if not found or not all(cmath.isfinite(s) and s.real < 0 for s in found):
        raise ValueError(f"{caller}: shifts must be finite and have negative real parts; got {shifts!r}.")
    return tuple(dict.fromkeys(tidy(s) for s in found))


def compressed(plus, minus=None, max_rank=None):
    """Return Z of few columns with ``Z Z^T = plus plus^T - minus minus^T``, which must be semidefinite."""
    F = plus if minus is None else np.hstack([plus, minus])
    if F.shape[1] == 0:
        return F
    Q, small = np.linalg.qr(F)
    if minus is None:
        U, values, _ = np.linalg.svd(small)
        squares = values**2
    else:
        signs = np.where(np.arange(F.shape[1]) < plus.shape[1], 1.0, -1.0)
        squares, U = np.linalg.eigh((small * signs) @ small.T)
        squares, U = squares[::-1], U[:, ::-1]
    kept = int(np.sum(squares > np.finfo(float).eps * squares[0]))
    kept = kept if max_rank is None else min(kept, max_rank)
    return Q @ (U[:, :kept] * np.sqrt(squares[:kept]))


def indefinite_norm(blocks, core):
    """Return the 2-norm of ``F core F^T`` for the blocks F side by side."""
    small = np.linalg.qr(np.hstack(blocks), mode="r")
    return float(np.abs(np.linalg.eigvalsh(small @ core @ small.T)).max(initial=0.0))


def _square_norm(R):
    """Return ``||R R^T||_2``."""
    return float(np.linalg.norm(R.T @ R, 2)) if R.size else 0.0
