"""Positive definite matrices and updates of them, and the exact corrections of their roots."""

import numpy as np
from array_api_compat import array_namespace
from hypothesis import strategies as st

from rnla.testing import haar_basis

# Traces, Frobenius norms and entries [0, 1] of exact corrections, from arithmetic of 60 digits.
EXACT = {
    ("update", False): (0.477370659478268, 0.441892420916467, 0.108921510593196),
    ("update", True): (-257.712922008635, 243.717288440846, -87.9014292452364),
    ("tiny", False): (1.19366056537916e-11, 1.08768026602558e-11, 4.7940613150666e-12),
    ("tiny", True): (-7.82288951906786e-7, 7.7191690882363e-7, -2.22520614057707e-7),
    ("downdate", False): (-8.20789156052777, 7.15609527161095, -0.00036798025922821),
    ("downdate", True): (53.3411425318609, 49.6738670808093, 21.8753580197197),
}


def tabulated(case):
    """Return diagonal, column and sign of a case of `EXACT`."""
    d, i = 10.0 ** np.linspace(-5, 5, 16), np.arange(1, 17)
    z = np.sin(i) / 4
    return {"update": (d, z, 1), "tiny": (d, 1e-6 * z, 1), "downdate": (d, 0.3 * np.sin(i) * np.sqrt(d), -1)}[case]


def diagonal_problem(n, k, kappa, seed, *, gap=None, dtype=float, size=1.0):
    """Return a diagonal and columns; with `gap`, columns whose square can be subtracted, that much being left."""
    rng = np.random.default_rng(seed)
    d = kappa ** rng.uniform(-0.5, 0.5, n)
    Z = rng.standard_normal((n, k))
    if np.dtype(dtype).kind == "c":
        Z = Z + 1j * rng.standard_normal((n, k))
    if gap is not None:
        V = Z / (np.linalg.norm(Z, 2) or 1.0)
        return d, np.sqrt(d)[:, None] * V * np.sqrt(1 - gap)
    return d, size * Z


def exact_correction(A, Z, C, inverse):
    """Return the correction from eigendecompositions, without a difference of nearly equal roots."""
    update = Z @ C @ Z.conj().T
    a, Qa = np.linalg.eigh(A)
    w, Qw = np.linalg.eigh(A + (update + update.conj().T) / 2)
    a, w = np.sqrt(np.maximum(a, 0)), np.sqrt(np.maximum(w, 0))
    X = (Qw.conj().T @ update @ Qa) / (w[:, None] + a)
    if inverse:
        X = -X / (w[:, None] * a)
    X = Qw @ X @ Qa.conj().T
    return (X + X.conj().T) / 2


def dense_correction(root):
    P = np.asarray(root.P)
    return (P * root.signs) @ P.conj().T


def rotated(d, Z, seed):
    """Return a dense matrix with eigenvalues d, its eigenvectors and Z in its place."""
    Q = haar_basis(len(d), len(d), rng=seed)
    A = (Q * d) @ Q.T
    return (A + A.T) / 2, Q, Q @ Z


def on_place(X, place):
    xp, device = place
    return xp.asarray(X, device=device)


def library(X):
    return array_namespace(X)


@st.composite
def updates(draw, max_n=40, max_k=4):
    """Draw diagonal, columns, C (or None) and sign of an update that leaves a positive definite matrix."""
    n, k = draw(st.integers(1, max_n)), draw(st.integers(1, max_k))
    kappa = draw(st.sampled_from([1.0, 1e2, 1e4, 1e6, 1e8]))
    kind = draw(st.sampled_from(["update", "downdate", "mixed"]))
    dtype = draw(st.sampled_from([float, complex]))
    seed = draw(st.integers(0, 2**32 - 1))
    gap = None if kind == "update" else draw(st.sampled_from([0.5, 1e-2, 1e-4]))
    d, Z = diagonal_problem(n, k, kappa, seed, gap=gap, dtype=dtype, size=draw(st.sampled_from([1e-6, 1e-2, 1.0])))
    if kind != "mixed":
        return d, Z, None, 1 if kind == "update" else -1
    rng = np.random.default_rng(seed)
    C = rng.standard_normal((k, k)) + (1j * rng.standard_normal((k, k)) if dtype is complex else 0)
    C = C + C.conj().T
    return d, Z, C / max(np.abs(np.linalg.eigvalsh(C)).max(), 1e-300), 1


def full(C, Z, sign):
    return sign * (np.eye(Z.shape[1]) if C is None else C)
