"""Dense methods of robust PCA as their papers state them, and packages, each as ``run(A, k) -> L``."""

import contextlib
import importlib.util
import io

import numpy as np


def dense_accaltproj(A, k, tol=1e-6, max_iter=200, decay=0.7):
    """Accelerated alternating projections with dense iterates; the SVDs are of 2 k x 2 k matrices but for the first."""
    from rnla import svd

    m, n = A.shape
    beta = 1 / (2 * (m * n) ** 0.25)
    norm = np.linalg.norm(A)
    sigma = svd(A, 1, tol=1e-2, rng=0).S[0]
    S = np.where(np.abs(A) > 4 * beta * sigma, A, 0)
    U, s, Vh = svd(A - S, k, tol=1e-2, rng=0)
    L = (U * s) @ Vh
    E = A - L
    S = np.where(np.abs(E) > beta * s[0], E, 0)
    for t in range(1, max_iter + 1):
        Z = A - S
        ZV, ZhU = Z @ Vh.T, Z.T @ U
        M = U.T @ ZV
        Q, R = np.linalg.qr(ZV - U @ M)
        P, T = np.linalg.qr(ZhU - Vh.T @ M.T)
        W, s, Yh = np.linalg.svd(np.block([[M, T.T], [R, np.zeros((k, k))]]))
        bound = beta * (s[k] + decay**t * s[0])
        U = np.hstack([U, Q]) @ W[:, :k]
        Vh = Yh[:k] @ np.vstack([Vh, P.T])
        L = (U * s[:k]) @ Vh
        E = A - L
        S = np.where(np.abs(E) > bound, E, 0)
        if np.linalg.norm(E - S) <= tol * norm:
            break
    return L


def full_ialm(A, k=None, tol=1e-7, max_iter=1000):
    """Principal component pursuit by the inexact augmented Lagrangian method, with LAPACK's SVDs."""
    m, n = A.shape
    lam = 1 / np.sqrt(max(m, n))
    two = np.linalg.norm(A, 2)
    Y = A / max(two, np.abs(A).max() / lam)
    mu = 1.25 / two
    top, norm = mu * 1e7, np.linalg.norm(A)
    S = np.zeros_like(A)
    for _ in range(max_iter):
        U, s, Vh = np.linalg.svd(A - S + Y / mu, full_matrices=False)
        s = np.maximum(s - 1 / mu, 0)
        r = np.count_nonzero(s)
        L = (U[:, :r] * s[:r]) @ Vh[:r]
        S = A - L + Y / mu
        S = np.sign(S) * np.maximum(np.abs(S) - lam / mu, 0)
        Z = A - L - S
        Y += mu * Z
        mu = min(1.5 * mu, top)
        if np.linalg.norm(Z) <= tol * norm:
            break
    return L


def rpca_package(A, k):
    """PyPI's rpca: accelerated alternating projections."""
    import rpca

    # It subtracts the means of the columns, which raises the rank by one.
    model = rpca.RobustPCA(n_components=k + 1, max_iter=200, tol=1e-6, gamma=0.7, verbose=False)
    with contextlib.redirect_stdout(io.StringIO()):
        model.fit(A)
    return model.low_rank_ + model.mean_


def pyrpca_package(A, k=None):
    """PyPI's pyrpca: the inexact augmented Lagrangian method."""
    import pyrpca

    L, _ = pyrpca.rpca_pcp_ialm(A, 1 / np.sqrt(max(A.shape)), verbose=False)
    return L


PACKAGES = {
    name: run
    for name, module, run in (("rpca", "rpca", rpca_package), ("pyrpca", "pyrpca", pyrpca_package))
    if importlib.util.find_spec(module)
}
