"""Dense symmetric matrices: inverse, eigenpairs, largest eigenvalue."""

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from rnla._backend import eps_of
from rnla._sketch import test_matrix


def symmetrised(M):
    """Return ``(M + M^T) / 2``, of every matrix of a stack."""
    if is_torch_array(M):
        # Torch adds a transpose against its order in memory: four times as slow as to transpose in blocks before.
        return M.mT.clone(memory_format=array_namespace(M).contiguous_format).add_(M).mul_(0.5)
    return (M + M.mT) / 2


def ridged(M, delta):
    """Return ``M + delta I``, of every matrix of a stack with its own delta."""
    delta = delta[:, None, None] if M.ndim == 3 else delta
    return M + delta * array_namespace(M).eye(M.shape[-1], dtype=M.dtype, device=device(M))


def spd_inverse(M):
    """Return the inverse of a positive definite matrix by Cholesky, a third of the cost of a general inverse.

    A stack of matrices is inverted by one call where the library has one.

    Raises
    ------
    numpy.linalg.LinAlgError or RuntimeError
        If `M` is not positive definite to working precision.
    """
    xp = array_namespace(M)
    if is_numpy_array(M):
        if M.ndim == 3:
            return np.stack([spd_inverse(X) for X in M])
        from scipy.linalg import get_lapack_funcs

        potrf, potri = get_lapack_funcs(("potrf", "potri"), (M,))
        # The transpose of a C-ordered symmetric matrix is itself in Fortran order: no copy to reorder it.
        L, failed = potrf(M.T, lower=False)
        if failed:
            raise np.linalg.LinAlgError("Matrix is not positive definite")
        upper = np.triu(potri(L, lower=False)[0])
        return upper + np.triu(upper, 1).T
    L = xp.linalg.cholesky(M)
    if is_torch_array(M):
        return xp.cholesky_inverse(L)
    return symmetrised(xp.linalg.inv(M))


def eigenpairs(M):
    """Return eigenvalues, falling, and eigenvectors of a symmetric matrix or a stack of them."""
    xp = array_namespace(M)
    w, V = xp.linalg.eigh(M)
    return xp.flip(w, axis=-1), xp.flip(V, axis=-1)


def largest_eigenpair(M, *, steps=10, start=None, key=0):
    """Return the largest Ritz value and its vector after `steps` Lanczos steps, without reading a value.

    The basis is orthogonalised twice against all that came before, and the projection of `M` on it is formed from the
    products, so that an exhausted Krylov space does no harm: its further columns are rounding, made orthonormal.

    Parameters
    ----------
    M : array, shape (..., d, d)
        Symmetric, positive semidefinite: one matrix or a stack.
    steps : int
        Products with `M`.
    start : array, shape (..., d), optional
        Where the iteration starts: the vector of the time before. A random one is added to it.
    key : int
        Of the random start.

    Returns
    -------
    value : array, shape (...)
        Not above the largest eigenvalue, but for rounding.
    vector : array, shape (..., d, 1)
    """
    xp, d = array_namespace(M), M.shape[-1]
    tiny = float(xp.finfo(M.dtype).smallest_normal) ** 0.5
    v = test_matrix("gaussian", key, d, 1, xp=xp, dtype=M.dtype, device=device(M))
    if start is not None:
        v = start[..., None] + 0.1 * v / d**0.5
    elif M.ndim == 3:
        v = xp.broadcast_to(v, (*M.shape[:-1], 1))
    V = v / xp.linalg.vector_norm(v, axis=-2, keepdims=True)
    W = M @ V
    for _ in range(min(steps, d) - 1):
        v = W[..., -1:]
        for _ in range(2):
            v = v - V @ (V.mT @ v)
            v = v / (xp.linalg.vector_norm(v, axis=-2, keepdims=True) + tiny)
        V = xp.concat([V, v], axis=-1)
        W = xp.concat([W, M @ v], axis=-1)
    w, S = xp.linalg.eigh(symmetrised(V.mT @ W))
    return xp.clip(w[..., -1], min=0.0), V @ S[..., -1:]


def floor_of(values, M):
    """Return rounding of the largest of `values`, below which a damping is none."""
    xp = array_namespace(M)
    return eps_of(xp, M.dtype) * xp.clip(values, min=float(xp.finfo(M.dtype).smallest_normal) ** 0.5)
