"""Weighted least squares in the tangent space of matrices of rank r, by preconditioned conjugate gradients.

Coordinates of the tangent space at ``U diag(s) V^H`` are ``gamma = (G1, G2, G3)`` with ``U^H G2 = 0`` and ``V^H G3 =
0``: ``T(gamma) = U G1 V^H + G2 V^H + U G3^H``, of rank 2r. They are kept in one vector.
"""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from rnla._backend import adjoint, eps_of, from_host, to_host

PATIENCE = 25  # steps without the residual halved that end a solve which has come far ...
LONG_PATIENCE = 60  # ... and one that has not
FLOOR = 5.0  # in units of rounding of the right-hand side; ten times that with the structure's averages
REGULARISATION = 1e-3  # of the blocks of the preconditioner, relative to the density of the samples


class Weights(NamedTuple):
    """Diagonal of the quadratic form in tangent coordinates."""

    inner: Any  # (r, r), of G1
    outer: Any  # (r,), of the columns of G2 and G3


class Tangent:
    """The quadratic form of one weighted least-squares problem.

    Parameters
    ----------
    space : EntrySpace or HankelSpace
        The samples.
    U, V : array, shapes (m, r) and (n, r)
        Orthonormal columns.
    weights : Weights
        Weight of every coordinate.
    data_weight : float or array, shape (N,)
        Weight of the samples.
    """

    def __init__(self, space, U, V, weights, data_weight):
        xp = self.xp = array_namespace(U)
        self.space, self.U, self.V, self.data_weight = space, U, V, data_weight
        (m, r), n = U.shape, V.shape[0]
        self.sizes = m, n, r
        self.complex = xp.isdtype(U.dtype, "complex floating")
        kind = {"dtype": U.dtype, "device": device(U)}
        self.Uh, self.Vh = adjoint(U), adjoint(V)
        self.weights = xp.concat([
            xp.reshape(weights.inner, (-1,)),
            xp.reshape(xp.broadcast_to(weights.outer[None, :], (m + n, r)), (-1,)),
        ])  # fmt: skip
        self.weights_of = weights
        self._L, self._Rc = xp.empty((m, 2 * r), **kind), xp.empty((n, 2 * r), **kind)
        self._L[:, r:] = U
        self._Rc[:, :r] = xp.conj(V) if self.complex else V

    def parts(self, gamma):
        """Return G1, G2, G3 as views of the vector."""
        (m, n, r), xp = self.sizes, self.xp
        a, b = r * r, r * r + m * r
        return xp.reshape(gamma[:a], (r, r)), xp.reshape(gamma[a:b], (m, r)), xp.reshape(gamma[b:], (n, r))

    def joined(self, G1, G2, G3):
        """Return the vector of three parts."""
        return self.xp.concat([self.xp.reshape(G, (-1,)) for G in (G1, G2, G3)])

    def factors(self, gamma):
        """Return L and R with ``T(gamma) = L R^H``."""
        G1, G2, G3 = self.parts(gamma)
        return self.xp.concat([self.U @ G1 + G2, self.U], axis=1), self.xp.concat([self.V, G3], axis=1)

    def samples(self, gamma):
        """Return the samples of ``T(gamma)``."""
        r = self.sizes[2]
        G1, G2, G3 = self.parts(gamma)
        self._L[:, :r] = self.U @ G1 + G2
        self._Rc[:, r:] = self.xp.conj(G3) if self.complex else G3
        return self.space.sampled(self._L, self._Rc)

    def coordinates(self, MV, MhU):
        """Return ``T^*(M)`` from ``M V`` and ``M^H U``."""
        G1 = self.Uh @ MV
        return self.joined(G1, MV - self.U @ G1, MhU - self.V @ adjoint(G1))

    def coordinates_of(self, L, R, values):
        """Return ``T^*`` of the lifted matrix with a factored part and samples."""
        space = self.space
        MV, MhU = space.right(values, self.V), space.left(values, self.U)
        if L.shape[1]:
            if space.structured:
                MV, MhU = MV + space.smooth_right(L, R, self.V), MhU + space.smooth_left(L, R, self.U)
            else:
                MV, MhU = MV + L @ (adjoint(R) @ self.V), MhU + R @ (adjoint(L) @ self.U)
        return self.coordinates(MV, MhU)

    def __matmul__(self, gamma):
        space = self.space
        values = self.samples(gamma) * self.data_weight
        MV, MhU = space.right(values, self.V), space.left(values, self.U)
        out = self.weights * gamma
        if space.structured:
            L, R = self.factors(gamma)
            MV, MhU = MV - space.smooth_right(L, R, self.V), MhU - space.smooth_left(L, R, self.U)
            out = out + gamma
        return out + self.coordinates(MV, MhU)

    def projected(self, gamma):
        """Remove what rounding has put along U into G2 and along V into G3."""
        G1, G2, G3 = self.parts(gamma)
        return self.joined(G1, G2 - self.U @ (self.Uh @ G2), G3 - self.V @ (self.Vh @ G3))


def preconditioner(kind, tangent):
    """Return a function of tangent vectors that is close to the inverse of the quadratic form.

    Parameters
    ----------
    kind : {"none", "published", "scalar", "block", "mean"}
        ``published`` is ``1 / (1 + w)``; ``scalar`` replaces the samples by their density; ``block`` has the exact
        diagonal block of every row of G2 and G3; ``mean`` the averages along antidiagonals, the samples by their
        density.
    tangent : Tangent
        The form.
    """
    space = tangent.space
    data = tangent.data_weight
    mean_weight = data if isinstance(data, float) else float(tangent.xp.mean(data))
    density = space.density * mean_weight
    if kind == "none":
        return lambda gamma: gamma
    if kind in ("published", "scalar"):
        scale = 1 / (tangent.weights + (1.0 if kind == "published" else density))
        return lambda gamma: scale * gamma
    inner = 1 / (tangent.weights_of.inner + density)
    if kind == "mean":
        rows, cols = (_mean_solver(tangent, axis, density) for axis in (0, 1))
    else:
        rows, cols = (_block_solver(tangent, axis, density) for axis in (0, 1))

    def apply(gamma):
        G1, G2, G3 = tangent.parts(gamma)
        return tangent.projected(tangent.joined(inner * G1, rows(G2), cols(G3)))

    return apply


def _block_solver(tangent, axis, density):
    """Return the product with the inverses of the r x r blocks that the rows of G2, or G3, have in the form."""
    space, xp, r = tangent.space, tangent.xp, tangent.sizes[2]
    X = tangent.V if axis == 0 else tangent.U
    Xc = xp.conj(X) if tangent.complex else X
    # The blocks are Hermitian: sums for their upper triangles are enough.
    upper = np.triu_indices(r)
    at = [xp.asarray(i, device=device(X)) for i in upper]
    outer = xp.take(Xc, at[0], axis=1) * xp.take(X, at[1], axis=1)
    ones = xp.ones(space.count, dtype=X.dtype, device=device(X)) * tangent.data_weight
    sums = space.right(ones, outer) if axis == 0 else space.left(ones, outer)
    place = np.zeros((r, r), dtype=np.int64)
    place[upper] = place.T[upper] = np.arange(len(upper[0]))
    blocks = xp.reshape(xp.take(sums, xp.asarray(place.reshape(-1), device=device(X)), axis=1), (-1, r, r))
    if tangent.complex:
        below = xp.asarray(np.tri(r, k=-1, dtype=bool), device=device(X))
        blocks = xp.where(below[None, :, :], xp.conj(blocks), blocks)
    where = device(X)
    diagonal = tangent.weights_of.outer + REGULARISATION * density
    blocks = blocks + xp.eye(r, dtype=X.dtype, device=where)[None, :, :] * diagonal[None, None, :]
    inverses = xp.linalg.inv(blocks)
    if is_numpy_array(X):
        return lambda G: np.einsum("ij,ijk->ik", G, inverses)
    return lambda G: xp.matmul(G[:, None, :], inverses)[:, 0, :]


def _mean_solver(tangent, axis, density):
    """Return the product with the inverse of the form of all blocks of one node, the same for every node."""
    space, xp, r = tangent.space, tangent.xp, tangent.sizes[2]
    X = tangent.V if axis == 0 else tangent.U
    form = -(1 - density) * space.smoothing_matrix(X, axis)
    blocks = space.blocks[axis]
    form[np.diag_indices(blocks * r)] += 1 + np.tile(to_host(tangent.weights_of.outer), blocks)
    inverse = from_host(np.linalg.inv(form), xp, X.dtype, device(X))

    def apply(G):
        return xp.reshape(xp.reshape(G, (space.n, blocks * r)) @ inverse, G.shape)

    return apply


def conjugate_gradients(tangent, residual, solve, tol, floor, max_iter):
    """Solve for the residual by preconditioned conjugate gradients.

    Parameters
    ----------
    tangent : Tangent
        The form, positive definite.
    residual : array
        Right-hand side, in tangent coordinates.
    solve : callable
        The preconditioner.
    tol, floor : float
        Norm of the residual at which it ends, relative to its first and absolute.
    max_iter : int
        Most steps.

    Returns
    -------
    x : array
        The iterate with the smallest residual.
    n_iter : int
        Number of steps.
    """
    xp = tangent.xp
    first = best = norm = _norm(xp, residual)
    halved, since = norm, 0
    x = best_x = xp.zeros_like(residual)
    direction, before = None, 1.0
    for step in range(max_iter):
        if norm <= max(tol * first, floor):
            return x, step
        z = solve(residual)
        rho = _dot(xp, residual, z)
        direction = z if direction is None else z + (rho / before) * direction
        image = tangent @ direction
        curvature = _dot(xp, direction, image)
        if not curvature > 0:  # rounding: nothing more to be gained
            return best_x, step
        x = x + (rho / curvature) * direction
        residual = residual - (rho / curvature) * image
        before, norm = rho, _norm(xp, residual)
        if norm < best:
            best, best_x = norm, x
        if norm <= halved / 2:
            halved, since = norm, 0
        else:
            since += 1
            if since >= (PATIENCE if best <= first / 100 else LONG_PATIENCE):
                return best_x, step + 1
    return best_x, max_iter


def floor_of(tangent, right_hand_side):
    """Return the norm of a residual that is rounding."""
    eps = eps_of(tangent.xp, right_hand_side.dtype) / 2
    return (10 if tangent.space.structured else 1) * FLOOR * eps * _norm(tangent.xp, right_hand_side)


def _dot(xp, x, y):
    if is_numpy_array(x):  # not by BLAS, whose threads cost more than such a sum where the cores are busy
        return float(np.einsum("i,i->", x.conj() if x.dtype.kind == "c" else x, y).real)
    product = xp.conj(x) * y if xp.isdtype(x.dtype, "complex floating") else x * y
    total = xp.sum(product)
    return float(xp.real(total) if xp.isdtype(x.dtype, "complex floating") else total)


def _norm(xp, x):
    return _dot(xp, x, x) ** 0.5
