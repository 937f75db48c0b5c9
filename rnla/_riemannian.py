"""The manifold of matrices of rank k: points, tangent vectors, projections, retraction, and descent along it.

A point ``X = U diag(s) V^H`` and a tangent vector ``U M V^H + Up V^H + U Vp^H`` with ``U^H Up = 0`` and ``V^H Vp = 0``
are kept as factors; nothing of the size of X is formed. [1]_ has the geometry.

.. [1] Vandereycken, SIAM J. Optim. 23 (2013), sections 2 and 3.
"""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, eps_of, from_host, host_svd, real_dtype, to_host
from rnla._matrix import as_matrix
from rnla._orth import orth
from rnla._sketch import test_matrix

RESTART = 0.1  # two successive gradients this far from orthogonal end a sequence of conjugate directions


class Point(NamedTuple):
    """A matrix ``U diag(s) V^H`` of rank k."""

    U: Any  # (m, k), orthonormal columns
    s: Any  # (k,), real, positive, non-increasing
    V: Any  # (n, k), orthonormal columns


class Tangent(NamedTuple):
    """A tangent vector ``U M V^H + Up V^H + U Vp^H`` at a point."""

    M: Any  # (k, k)
    Up: Any  # (m, k), orthogonal to U
    Vp: Any  # (n, k), orthogonal to V


def random_point(m, n, k, key, *, xp, dtype, device):
    """Draw a point with singular subspaces that are uniform, and singular values k, k - 1, ..., 1."""
    place = {"xp": xp, "dtype": dtype, "device": device}
    Y, Z = (test_matrix("gaussian", key, side, k, stream=stream, **place) for stream, side in enumerate((m, n)))
    (U, _), (V, _) = orth(Y), orth(Z)
    return Point(U, from_host(np.arange(k, 0, -1.0), xp, real_dtype(xp, dtype), device), V)


def random_tangent(x, key):
    """Draw a tangent vector at `x` of norm 1 whose direction is uniform."""
    xp = array_namespace(x.U)
    place = {"xp": xp, "dtype": x.U.dtype, "device": device(x.U)}
    k = x.s.shape[0]
    sides = k, x.U.shape[0], x.V.shape[0]
    M, A, B = (test_matrix("gaussian", key, side, k, stream=i, **place) for i, side in enumerate(sides))
    xi = Tangent(M, A - x.U @ (adjoint(x.U) @ A), B - x.V @ (adjoint(x.V) @ B))
    return times(1 / norm(xi), xi)


def inner(xi, eta):
    """Return the real Frobenius inner product of two tangent vectors at one point."""
    xp, total = array_namespace(xi.M), 0.0
    for a, b in zip(xi, eta, strict=True):
        total += float(xp.sum(xp.real(xp.conj(a) * b) if _is_complex(a) else a * b))
    return total


def norm(xi):
    """Return the Frobenius norm of a tangent vector."""
    return float(np.sqrt(inner(xi, xi)))


def times(alpha, xi):
    """Return ``alpha * xi``."""
    return Tangent(*(alpha * part for part in xi))


def plus(xi, eta):
    """Return the sum of two tangent vectors at one point."""
    return Tangent(*(a + b for a, b in zip(xi, eta, strict=True)))


def tangent_of(x, A, B, C):
    """Return ``A V^H + U B - U C V^H`` for A (m, k), B (k, n) and C (k, k) as a tangent vector at `x`."""
    UA, BV = adjoint(x.U) @ A, B @ x.V
    return Tangent(UA + BV - C, A - x.U @ UA, adjoint(B) - x.V @ adjoint(BV))


def factors_of(x, xi):
    """Return (m, 2 k) and (2 k, n) arrays whose product is the tangent vector `xi` at `x`."""
    xp = array_namespace(x.U)
    return xp.concat([x.U @ xi.M + xi.Up, x.U], axis=1), xp.concat([adjoint(x.V), adjoint(xi.Vp)], axis=0)


def project(x, Z):
    """Return the orthogonal projection of `Z` on the tangent space at `x`, from two products with Z.

    Parameters
    ----------
    x : Point
        Where.
    Z : Matrix, or any kind that `rnla.svd` accepts, shape (m, n)
        Only ``Z V`` and ``Z^H U`` are computed.
    """
    Z = as_matrix(Z, "rnla._riemannian.project")
    return project_products(x, Z.matmat(x.V), Z.rmatmat(x.U))


def project_products(x, ZV, ZhU):
    """Return the projection of a matrix that is known by ``Z V`` (m, k) and ``Z^H U`` (n, k)."""
    M = adjoint(x.U) @ ZV
    return Tangent(M, ZV - x.U @ M, ZhU - x.V @ adjoint(M))


def project_sampled(x, Z_J, Z_I, I, J):
    """Return the oblique projection on the tangent space at `x` that sees some rows and columns of Z only.

    ``Z_J (V_J^H)^+ V^H + U U_I^+ Z_I - U U_I^+ Z_IJ (V_J^H)^+ V^H`` is the derivative at X of the CUR decomposition
    with the rows I and the columns J, cut to rank k.

    Parameters
    ----------
    x : Point
        Where; the rows I of U and the rows J of V must have rank k.
    Z_J : array, shape (m, len(J))
        Columns of Z.
    Z_I : array, shape (len(I), n)
        Rows of Z.
    I, J : ndarray of int
        Which.
    """
    xp, where = array_namespace(x.U), device(x.U)
    I, J = (xp.asarray(np.asarray(index), device=where) for index in (I, J))
    left, right = pseudoinverse(xp.take(x.U, I, axis=0)), adjoint(pseudoinverse(xp.take(x.V, J, axis=0)))
    A = Z_J @ right
    return tangent_of(x, A, left @ Z_I, left @ xp.take(A, I, axis=0))


def pseudoinverse(X):
    """Return the pseudoinverse of a thin array (rows, k) of full rank, (k, rows); what is below rounding is dropped."""
    U, s, Vh = host_svd(to_host(X))
    xp = array_namespace(X)
    keep = s > eps_of(xp, X.dtype) * max(X.shape) * s[0]
    return from_host((Vh[keep].conj().T / s[keep]) @ U[:, keep].conj().T, xp, X.dtype, device(X))


def retract(x, xi):
    """Return the best approximation of rank k to ``x + xi``, a point; ``O((m + n) k**2)`` flops."""
    return retract_and_next(x, xi)[0]


def retract_and_next(x, xi):
    """Return the best approximation of rank k to ``x + xi``, and the largest singular value that it leaves out.

    References
    ----------
    .. [1] Absil, Oseledets, Comput. Optim. Appl. 62 (2015), section 3.3.
    """
    k, xp = x.s.shape[0], array_namespace(x.U)
    (P, R), (Q, T) = _complement(x.U, xi.Up), _complement(x.V, xi.Vp)
    core = np.zeros((k + len(R), k + len(T)), dtype=R.dtype)
    core[:k, :k] = np.diag(to_host(x.s)) + to_host(xi.M)
    core[k:, :k], core[:k, k:] = R, T.conj().T
    left, s, right = host_svd(core)
    place = xp, x.U.dtype, device(x.U)
    U, V = xp.concat([x.U, P], axis=1), xp.concat([x.V, Q], axis=1)
    following = float(s[k]) if len(s) > k else 0.0
    s = from_host(s[:k], xp, real_dtype(xp, x.U.dtype), device(x.U))
    return Point(U @ from_host(left[:, :k], *place), s, V @ from_host(right[:k].conj().T, *place)), following


def transport(x, xi, y):
    """Return the tangent vector `xi` at `x` projected on the tangent space at `y`."""
    left, right = factors_of(x, xi)
    return project_products(y, left @ (right @ y.V), adjoint(right) @ (adjoint(left) @ y.U))


def distance_to_tangent_space(x, A):
    """Return ``||A - P(A)||_F`` for a dense array; forms it, so for small ones, in tests."""
    left, right = factors_of(x, project(x, A))
    return float(np.linalg.norm(to_host(A - left @ right)))


def minimize(x, gradient, curvature, *, tol=1e-8, max_iter=100, conjugate=True, monitor=None):
    """Descend from `x` along the manifold, for a cost that is quadratic on all matrices.

    Steps are exact minimisers along the tangent direction. Conjugate directions (Polak and Ribiere) are transported by
    projection; without `conjugate` the directions are those of steepest descent.

    Parameters
    ----------
    x : Point
        Start.
    gradient : callable
        ``gradient(x)`` is the gradient of the cost on all matrices: of any kind that has products.
    curvature : callable
        ``curvature(x, xi)`` is the second derivative of the cost along the tangent vector `xi` at `x`.
    tol : float
        The norm of the gradient, relative to the first, at which it ends.
    max_iter : int
        Most steps.
    conjugate : bool
        Whether to combine directions.
    monitor : callable, optional
        Called with the relative norm of the gradient after each step; ends the descent if it returns True.

    Returns
    -------
    x : Point
        The last point.
    converged : bool
        Whether `tol` was met.
    """
    g = project(x, gradient(x))
    first = size = norm(g)
    direction = times(-1.0, g)
    for _ in range(max_iter):
        if size <= tol * first:
            return x, True
        slope = inner(g, direction)
        if slope >= 0:  # no descent: start over
            direction, slope = times(-1.0, g), -(size**2)
        bend = curvature(x, direction)
        if bend <= 0:
            return x, False
        step = times(-slope / bend, direction)
        y = retract(x, step)
        new = project(y, gradient(y))
        moved = transport(x, g, y)
        overlap = inner(new, moved)
        new_size = norm(new)
        beta = 0.0
        if conjugate and abs(overlap) < RESTART * new_size * size:
            beta = max(0.0, (new_size**2 - overlap) / size**2)
        direction = plus(times(-1.0, new), times(beta, transport(x, direction, y)))
        x, g, size = y, new, new_size
        if monitor is not None and monitor(size / first if first else 0.0):
            break
    return x, size <= tol * first


def _complement(U, Y):
    """Return orthonormal P, orthogonal to U, and a host array R with ``Y = P R``, as many columns as Y has rank."""
    xp, room = array_namespace(U), U.shape[0] - U.shape[1]
    Q, R = orth(Y)
    left, s, right = host_svd(R)
    keep = s > 4 * eps_of(xp, Y.dtype) * max(Y.shape) * s[0] if s.size else s > 0
    keep[room:] = False
    P = Q @ from_host(left[:, keep], xp, Y.dtype, device(Y))
    R = s[keep, None] * right[keep]
    if not keep.any():
        return P, R
    # Weak directions of Y carry relatively much of the rounding along U: taken out once more.
    P, T = orth(P - U @ (adjoint(U) @ P))
    return P, T @ R


def _is_complex(X):
    return array_namespace(X).isdtype(X.dtype, "complex floating")
