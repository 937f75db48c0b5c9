"""Problems for the tests of matrix equations: discretised convection and diffusion, and what dense algebra says."""

import numpy as np
import scipy.linalg
import scipy.sparse


def convection_diffusion(n, peclet=0.0):
    """Return the finite-difference matrix of ``x'' - peclet x'`` on the unit interval, as a CSR array."""
    h = 1 / (n + 1)
    bands = [1 / h**2 + peclet / (2 * h), -2 / h**2, 1 / h**2 - peclet / (2 * h)]
    return scipy.sparse.diags_array(bands, offsets=[-1, 0, 1], shape=(n, n)).tocsr()


def mass(n):
    """Return the mass matrix of linear finite elements on as many nodes, with unit mean row sum."""
    return scipy.sparse.diags_array([1 / 6, 2 / 3, 1 / 6], offsets=[-1, 0, 1], shape=(n, n)).tocsr()


def ends(n, b=2, p=2, seed=0):
    """Return random B of shape (n, b) and C of shape (p, n)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, b)), rng.standard_normal((p, n))


def residual(A, E, Z, W, quadratic):
    """Return ``A^T X E + E^T X A + W^T W - quadratic`` for ``X = Z Z^T``, relative to ``||W^T W||``, all in full."""
    A, E = (M.toarray() if scipy.sparse.issparse(M) else M for M in (A, E))
    X = Z @ Z.T
    R = A.T @ X @ E + E.T @ X @ A + W.T @ W - quadratic
    return np.linalg.norm(R, 2) / np.linalg.norm(W, 2) ** 2


def rounding(A, X, W):
    """Return what rounding leaves of a relative residual: ``eps`` times its largest term, for a modest constant."""
    A = A.toarray() if scipy.sparse.issparse(A) else A
    return 100 * np.finfo(float).eps * np.linalg.norm(A, 2) * np.linalg.norm(X, 2) / np.linalg.norm(W, 2) ** 2


def most_unstable(A, E=None):
    """Return the largest real part of an eigenvalue."""
    A = A.toarray() if scipy.sparse.issparse(A) else A
    E = E.toarray() if scipy.sparse.issparse(E) else E
    return scipy.linalg.eigvals(A, E).real.max()
