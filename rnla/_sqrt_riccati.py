"""The Riccati equation of a square root that is corrected by a term of low rank."""

import math

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from array_api_compat import device as device_of

from rnla._backend import adjoint, check_finite, from_host, real_dtype, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._rangefinder import check_number, warn_not_converged
from rnla._rational import adi_shifts, node_count

CYCLES = 4  # how often all shifts are used before the iteration gives up


def solve_sqrt_riccati(base, Z, *, positive=False, tol=1e-10):
    """Solve ``S X + X S + X^2 = Z Z^H``, the equation of ``(A + Z Z^H)^(1/2) = S + X`` with ``S = A^(1/2)``.

    X is positive semidefinite and of low rank to any precision. Its columns come from shifted systems with S, with
    shifts that are the best for the interval of its eigenvalues.

    Parameters
    ----------
    base : array, shape (n,) or (n, n), or object
        A: positive numbers, its diagonal; or a Hermitian positive definite matrix, which is diagonalised; or an object
        with attributes ``shape``, ``dtype`` and ``bounds``, a pair that encloses the eigenvalues of A, and a method
        ``root_shift_solve(p, X)`` that returns ``(S + p I)^-1 X`` for ``p >= 0``.
    Z : array, shape (n, k) or (n,)
        Columns of the correction.
    positive : bool
        Solve ``S X + X S - X^2 = Z Z^H`` instead, the equation of ``(A - Z Z^H)^(1/2) = S - X``.
    tol : float
        Bound on the 2-norm of the residual over that of ``Z Z^H``.

    Returns
    -------
    P : array, shape (n, r)
        Columns, not orthonormal, in the library and on the device of `Z`.
    D : array, shape (r,)
        Positive numbers with ``X = (P * D) @ P^H``.
    residual : float
        What the iteration left over, relative to ``||Z Z^H||_2``.

    Raises
    ------
    ValueError
        If a shape is wrong, an entry is not finite, or a diagonal entry of `base` is not positive.
    NotPositiveDefiniteError
        If the matrix `base` is not positive definite or, with `positive`, ``A - Z Z^H`` is not; then its attribute
        ``gap`` is ``1 - ||A^(-1/2) Z||^2``.
    TypeError
        If an argument is of an unsupported kind or dtype, or the two are of different libraries.

    Warns
    -----
    ConvergenceWarning
        If the residual does not meet the tolerance.

    References
    ----------
    .. [1] Shmueli, Drineas, Avron, "Low-rank updates of matrix square roots", arXiv 2201.13156 (2022).
    .. [2] Benner, Bujanovic, Kuerschner, Saak, "RADI: a low-rank ADI-type algorithm for large scale algebraic Riccati
       equations", Numer. Math. 138 (2018).

    Examples
    --------
    >>> d, z = np.array([1.0, 4.0, 9.0]), np.array([1.0, 1.0, 1.0])
    >>> P, D, residual = rnla.solve_sqrt_riccati(d, z)
    >>> root = np.diag(np.sqrt(d)) + (P * D) @ P.T
    >>> bool(np.allclose(root @ root, np.diag(d) + np.outer(z, z)))
    True
    """
    caller = "rnla.solve_sqrt_riccati"
    check_number(tol, "tol", caller)
    if not 0 < tol < 1:
        raise ValueError(f"{caller}: tol must be in (0, 1); got {tol}.")
    Z = _columns(Z, caller)
    solve, (low, high), Q = _base(base, Z, caller)
    Z = Z if Q is None else adjoint(Q) @ Z
    size = _square_norm(Z)
    if positive:
        gap = 1 - _square_norm(solve(0.0, Z))  # ||A^{-1/2} Z||^2
        if gap <= 0:
            error = NotPositiveDefiniteError(f"{caller}: A - Z Z^H must be positive definite; its gap is {gap:.1e}.")
            error.gap = gap
            raise error
        low *= min(gap, 1.0)
    else:
        high += size
    P, D, rest = _iterate(solve, Z, -1.0 if positive else 1.0, math.sqrt(low), math.sqrt(high), tol, size, caller)
    return P if Q is None else Q @ P, D, rest / (size or 1.0)


def _iterate(solve, Z, sign, low, high, tol, size, caller):
    """Return the factors and the norm of the residual; shifts are for eigenvalues in ``[low, high]``."""
    xp, place, k = array_namespace(Z), device_of(Z), Z.shape[1]
    real = real_dtype(xp, Z.dtype)
    shifts = adi_shifts(low, high, node_count((high / low) ** 2, tol))
    U, D = Z[:, :0], xp.zeros((0,), dtype=real, device=place)
    identity = xp.eye(k, dtype=Z.dtype, device=place)
    R, rest = Z, size
    for step in range(CYCLES * len(shifts)):
        if rest <= tol * size:
            return U, D, rest
        p = float(shifts[step % len(shifts)])
        L, r = solve(p, xp.concat([U, R], axis=1)), U.shape[1]
        if r:
            # X is a term of low rank in S + X: Sherman, Morrison and Woodbury.
            G = adjoint(U) @ L
            L = L[:, r:] - L[:, :r] @ xp.linalg.solve(G[:, :r] + sign * _diagonal(1 / D, Z.dtype), G[:, r:])
        V = math.sqrt(2 * p) * L
        Y = identity + (sign / (2 * p)) * (adjoint(V) @ V)
        mu, W = xp.linalg.eigh(Y)
        if not bool(xp.all(mu > 0)):
            raise NotPositiveDefiniteError(
                f"{caller}: A - Z Z^H must be positive definite to working precision; it is not."
            )
        V = V @ W
        weights = 1 / mu
        U, D = xp.concat([U, V], axis=1), xp.concat([D, weights])
        R = R - math.sqrt(2 * p) * (V * xp.astype(weights, Z.dtype)[None, :]) @ adjoint(W)
        rest = _square_norm(R)
    if rest > tol * size:
        warn_not_converged(caller, f"{len(D)} columns leave a relative residual of {rest / size:.1e}")
    return U, D, rest


def _diagonal(d, dtype):
    xp = array_namespace(d)
    return xp.eye(d.shape[0], dtype=dtype, device=device_of(d)) * xp.astype(d, dtype)[None, :]


def _square_norm(R):
    """Return ``||R R^H||_2``."""
    return max(float(np.linalg.eigvalsh(to_host(adjoint(R) @ R))[-1]), 0.0) if R.shape[1] else 0.0


def _columns(Z, caller):
    if not is_array_api_obj(Z):
        raise TypeError(f"{caller}: Z must be an array; got {type(Z).__name__}.")
    if Z.ndim not in (1, 2):
        raise ValueError(f"{caller}: Z must have shape (n, k) or (n,); got {tuple(Z.shape)}.")
    Z = _floating(Z, "Z", caller)
    return Z[:, None] if Z.ndim == 1 else Z


def _floating(X, name, caller):
    xp = array_namespace(X)
    if xp.isdtype(X.dtype, ("bool", "integral")):
        X = xp.astype(X, xp.float64)
    if not xp.isdtype(X.dtype, ("real floating", "complex floating")):
        raise TypeError(f"{caller}: {name} must have a numeric dtype; got {X.dtype}.")
    check_finite(X, caller, name)
    return X


def _base(base, Z, caller):
    """Return the shifted solve with S, bounds on the eigenvalues of A, and the basis in which S is diagonal or None."""
    n, xp = Z.shape[0], array_namespace(Z)
    if callable(getattr(base, "root_shift_solve", None)):
        _check_shape(base.shape, ((n, n),), caller)
        low, high = (float(bound) for bound in base.bounds)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{caller}: base.bounds must satisfy 0 < low <= high; got {base.bounds}.")
        return base.root_shift_solve, (low, high), None
    if not is_array_api_obj(base) or array_namespace(base) is not xp:
        raise TypeError(
            f"{caller}: base must be an array of the library of Z, or have root_shift_solve; got {type(base).__name__}."
        )
    base = _floating(base, "base", caller)
    _check_shape(base.shape, ((n,), (n, n)), caller)
    Q = None
    if base.ndim == 2:
        skew = float(xp.max(xp.abs(base - adjoint(base))))
        if skew > 100 * float(xp.finfo(base.dtype).eps) * float(xp.max(xp.abs(base))):
            raise ValueError(f"{caller}: base must be Hermitian; it differs from its adjoint by {skew:.1e}.")
        base, Q = xp.linalg.eigh(base)
        if float(base[0]) <= 0:
            raise NotPositiveDefiniteError(
                f"{caller}: base must be positive definite; an eigenvalue is {float(base[0]):.1e}."
            )
        Q = xp.astype(Q, Z.dtype) if not xp.isdtype(Q.dtype, "complex floating") else Q
    d = to_host(base)
    if np.iscomplexobj(d) or d.min() <= 0:
        index = int(np.argmin(d.real))
        raise ValueError(f"{caller}: base must be real and positive; entry {index} is {d[index]}.")
    S = from_host(np.sqrt(d)[:, None], xp, Z.dtype, device_of(Z))
    return lambda p, X: X / (S + p), (float(d.min()), float(d.max())), Q


def _check_shape(shape, wanted, caller):
    if tuple(shape) not in wanted:
        raise ValueError(f"{caller}: base must have shape {' or '.join(map(str, wanted))}; got {tuple(shape)}.")
