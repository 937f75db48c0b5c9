"""Iterations for least squares in preconditioned coordinates: refinement, CG, heavy ball, iterative sketching, LSQR."""

from typing import Any, NamedTuple

import numpy as np

from rnla._backend import adjoint, host_svd, to_host
from rnla._lstsq_system import Size, check_scale, host_squares
from rnla._sketch import test_matrix
from rnla._tall import column_squares, like

ROUNDS = 25  # refinements at most: beyond the second only condition numbers near 1 / eps need any
WINDOW = 5  # steps in which a residual must halve


class Outcome(NamedTuple):
    """A state with its norms, backward errors, and whether its method considers itself done."""

    state: Any
    size: Size
    error: np.ndarray
    settled: bool


def refine(system, state, inner, target, monitor, budget):
    """Repeat ``c = P^H A^H (b - A x)``, ``y = inner(c)``, ``x <- x + P y`` until the backward error is `target`.

    Two rounds make a solver of the preconditioned normal equations that is merely forward stable backward stable [1].

    References
    ----------
    .. [1] Epperly, Meier, Nakatsukasa, arXiv 2406.03468 (FOSSILS, SPIR).
    """
    best, last = None, np.inf
    for round_number in range(ROUNDS):
        c, size = system.residual(state)
        error = system.backward_error(c, size)
        worst = float(np.max(error))
        if best is None or worst < float(np.max(best.error)):
            best = Outcome(state, size, error, True)
        if not (monitor.stopped or len(monitor.history) >= budget):  # else the inner solver has used it up
            monitor(worst)
        exhausted = monitor.stopped or len(monitor.history) >= budget
        if worst <= target or exhausted or not worst <= 0.5 * last:
            break
        last = worst if round_number else np.inf  # the first round may begin at any error
        y = inner(c, size, round_number == 0)
        state = system.step(state, y)
    return best


def cholesky_solver(G):
    """Return ``c -> G^-1 c`` for a well-conditioned G, or None where rounding has made it indefinite."""
    try:
        inverse = np.linalg.inv(np.linalg.cholesky(G))
    except np.linalg.LinAlgError:
        return None
    if np.linalg.norm(inverse) * np.linalg.norm(G) ** 0.5 > 1e3 * len(G):
        return None
    return lambda c, size, first: adjoint(inverse) @ (inverse @ c)


def cg_solver(system, target, monitor, budget):
    """Return an inner solver: conjugate gradients for ``P^H A^H A P y = c``, started at ``y = c`` (SPIR)."""

    def solve(c, size, first):
        y = c
        residual = c - system.apply(y)
        p, rho = residual, host_squares(residual)
        while True:
            predicted = float(np.max(system.backward_error(residual, size)))
            monitor(predicted)
            if predicted <= target / 2 or monitor.stopped or len(monitor.history) >= budget:
                return y
            q = system.apply(p)
            curvature = np.sum(p.conj() * q, axis=0).real
            length = np.where(curvature > 0, rho / np.where(curvature > 0, curvature, 1.0), 0.0)
            y = y + length * p
            residual = residual - length * q
            update = length * np.sqrt(host_squares(p))
            if first and np.all(update <= system.update_floor(size)):
                return y
            rho, before = host_squares(residual), rho
            p = residual + np.where(before > 0, rho / np.where(before > 0, before, 1.0), 0.0) * p

    return solve


def heavy_ball_solver(system, d, target, monitor, budget):
    """Return an inner solver: ``y <- y + alpha (c - G y) + beta (y - y_before)``, rate ``sqrt(n / d)`` (FOSSILS)."""
    beta = system.factor.rank / d
    alpha = (1 - beta) ** 2

    def solve(c, size, first):
        y, update = c, np.zeros_like(c)
        sizes = []
        while True:
            residual = c - system.apply(y)
            predicted = float(np.max(system.backward_error(residual, size)))
            monitor(predicted)
            sizes.append(float(np.sqrt(np.sum(host_squares(residual)))))
            if predicted <= target / 2 or stalled(sizes) or monitor.stopped or len(monitor.history) >= budget:
                return y
            update = alpha * residual + beta * update
            y = y + update
            if first and np.all(np.sqrt(host_squares(update)) <= system.update_floor(size)):
                return y

    return solve


def iterative_sketching(system, state, d, target, monitor, budget):
    """Iterate ``x <- x + alpha P c + beta (x - x_before)``; forward stable, but not backward stable.

    References
    ----------
    .. [1] Epperly, SIAM J. Matrix Anal. Appl. 45 (2024), arXiv 2311.04362.
    """
    beta = system.factor.rank / d
    alpha = (1 - beta) ** 2
    update, sizes, best = 0.0, [], None
    while True:
        c, size = system.residual(state)
        error = system.backward_error(c, size)
        if best is None or np.max(error) < np.max(best.error):
            best = Outcome(state, size, error, False)
        monitor(float(np.max(error)))
        sizes.append(float(np.sqrt(np.sum(host_squares(c)))))
        if np.max(error) <= target or stalled(sizes) or monitor.stopped or len(monitor.history) >= budget:
            settled = bool(np.all(np.sqrt(host_squares(c)) <= system.update_floor(size)))
            return best._replace(settled=settled)
        update = alpha * c + beta * update
        state = system.step(state, update)


def stalled(sizes):
    """Say whether the last of some norms is not half of the one `WINDOW` steps before: rounding, or divergence."""
    return len(sizes) > WINDOW and not sizes[-1] <= 0.5 * sizes[-1 - WINDOW]


def lsqr(forward, backward, U, measure, target, monitor, budget, *, patient=False):
    """Minimise ``||U - F y||`` for every column of `U` by Golub-Kahan bidiagonalisation from ``y = 0``.

    Parameters
    ----------
    forward, backward : callable
        Products with F and with its adjoint, of blocks of columns.
    U : array, shape (m, k)
        Right-hand sides.
    measure : callable
        Error, per column, from ``(F^H r, ||r||, y)``; the iteration ends when the largest is `target`.
    patient : bool
        Go on where ``||F^H r||`` has not halved in `WINDOW` steps, as it will not for an ill-conditioned F.

    Returns
    -------
    y : array, shape (r, k)
    settled : bool
        Whether the target was met by the recurrences.

    References
    ----------
    .. [1] Paige, Saunders, ACM Trans. Math. Softw. 8 (1982).
    """
    U, beta = _normalised(U)
    V, alpha = _normalised(backward(U))
    W, Y = V, V * 0.0
    phi_bar, rho_bar, sizes = beta, alpha, []
    while True:
        U, beta = _normalised(forward(V) - _times(U, alpha))
        Vn, alpha = _normalised(backward(U) - _times(V, beta))
        rho = np.hypot(rho_bar, beta)
        safe = np.where(rho > 0, rho, 1.0)
        cosine, sine = rho_bar / safe, beta / safe
        phi, phi_bar = cosine * phi_bar, sine * phi_bar
        Y = Y + _times(W, phi / safe)
        W = Vn - _times(W, sine * alpha / safe)
        rho_bar, V = -cosine * alpha, Vn
        gradient = phi_bar * alpha * cosine
        error = float(np.max(measure(_times(V, gradient), np.abs(phi_bar), Y)))
        monitor(error)
        sizes.append(float(np.linalg.norm(gradient)))
        if error <= target or (not patient and stalled(sizes)):
            return Y, True
        if monitor.stopped or len(monitor.history) >= budget:
            return Y, False


def _normalised(X):
    norms = np.sqrt(column_squares(X))
    return _times(X, 1 / np.where(norms > 0, norms, 1.0)), norms


def _times(X, factors):
    return X * like(np.asarray(factors)[None, :], X)


def preconditioned_lsqr(system, state, target, monitor, budget, *, rounds=1):
    """Continue from a state by LSQR in the coordinates of P, from the left of a wide A; again for a further round."""
    best, settled = None, False
    for number in range(rounds + 1):
        c, size = system.residual(state)
        error = system.backward_error(c, size)
        last = np.inf if best is None else np.max(best.error)
        if best is None or np.max(error) < last:
            best = Outcome(state, size, error, settled)
        exhausted = number == rounds or monitor.stopped or len(monitor.history) >= budget
        if np.max(error) <= target or exhausted or not np.max(error) <= 0.5 * last:
            break
        (forward, backward), (start, errors) = system.lsqr_products(), system.lsqr_start(state)
        # The recurrences are up to a digit ahead of the error they stand for.
        y, settled = lsqr(forward, backward, start, errors, target / 10, monitor, budget)
        state = system.lsqr_end(state, y)
    return best._replace(settled=settled)


def in_row_space(system, target, monitor, *, floor, rcond):
    """Solve for the least norm in a basis W of the row space of a wide A; return an outcome and the rank, or None.

    ``A W`` is formed with the rounded entries of W and has the condition number of A, so that ``x = W y`` from a
    stable solution of the small ``(A W) y = b`` has a residual of rounding, whatever the error of W.
    """
    K, G = system.row_space()
    try:
        basis = np.linalg.inv(adjoint(np.linalg.cholesky(G)))  # W basis has orthonormal columns
    except np.linalg.LinAlgError:
        return None
    K = K @ basis
    U, sigma, Vh = host_svd(np.concatenate([K, system.damp * np.eye(K.shape[1])]) if system.damp else K)
    keep = int(np.sum(sigma > max(floor, rcond or 0.0) * sigma[0]))
    U, V = U[:, :keep], adjoint(Vh)[:, :keep]
    norm, best = np.linalg.norm(sigma), None
    x, z, r = system.zero(), np.zeros((K.shape[1], system.B.shape[1])), to_host(system.B)
    for _ in range(ROUNDS):
        rest = adjoint(U) @ (np.concatenate([r, -system.damp * z]) if system.damp else r)
        lengths, data = np.sqrt(column_squares(x)), np.linalg.norm(r, axis=0)
        weight = system.b_norm + norm * lengths
        error = np.sqrt(host_squares(rest)) / np.where(weight > 0, weight, 1.0)
        monitor(float(np.max(error)))
        better = best is None or np.max(error) <= 0.5 * np.max(best.error)
        if better:
            best = Outcome((x, None), Size(np.hypot(data, system.damp * lengths), data, lengths), error, True)
        if not better or np.max(error) <= target or monitor.stopped:
            break
        step = V @ (rest / sigma[:keep, None])
        x, z = system.along_rows(x, basis @ step), z + step
        r = to_host(system.B - system.M.matmat(x))
    return best, keep


def plain_lsqr(M, B, damp, start, target, monitor, budget, key, caller):
    """Run LSQR without preconditioner, whose iterations grow with the condition number of A.

    Return x, the norms of ``b - A x``, the errors, and whether the target was met. The errors are those of Paige and
    Saunders: the smaller of ``||A^H r|| / (||A||_F ||r||)`` and ``||r|| / (||A||_F ||x|| + ||b||)``.
    """
    (m, n), xp, place = M.shape, M.xp, {"dtype": M.dtype, "device": M.device}
    check_scale(to_host(M.rmatmat(B)), damp, M, caller)
    squares = M.fro_norm_sq()
    if squares is None:  # E ||A x||^2 = ||A||_F^2
        squares = float(np.mean(column_squares(M.matmat(test_matrix("gaussian", key, n, 8, xp=xp, **place)))))
    norm, b_norm = np.sqrt(squares + n * damp**2), np.sqrt(column_squares(B))
    X = xp.zeros((n, B.shape[1]), **place) if start is None else like(start, B)

    def forward(V):
        return xp.concat([M.matmat(V), damp * V]) if damp else M.matmat(V)

    def backward(U):
        return M.rmatmat(U[:m, :]) + damp * U[m:, :] if damp else M.rmatmat(U)

    def errors(gradient, residual, Y):
        weight = b_norm + norm * np.sqrt(column_squares(X + Y))
        slope = np.sqrt(column_squares(gradient)) / norm / np.where(residual > 0, residual, 1.0)
        return np.minimum(slope, residual / np.where(weight > 0, weight, 1.0))

    U = B if start is None else B - M.matmat(X)
    U = xp.concat([U, -damp * X]) if damp else U
    Y, settled = lsqr(forward, backward, U, errors, target, monitor, budget, patient=True)
    X, Y = X + Y, 0.0 * Y
    R = B - M.matmat(X)
    squares = column_squares(R)
    residual = np.sqrt(squares + damp**2 * column_squares(X))
    return X, np.sqrt(squares), errors(M.rmatmat(R) - damp**2 * X, residual, Y), settled
