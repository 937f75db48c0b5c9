"""The generalised problem ``A x = lambda M x``, against LAPACK and in the inner product of M."""

import array_api_compat
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator, splu
from strategies import DTYPES

from rnla import NotPositiveDefiniteError
from rnla._eigh import eigh
from rnla.testing import CountingOperator, haar_basis, spectrum

WHICH = ("LM", "LA", "SA", "BE")


def hermitian(w, seed, dtype):
    V = haar_basis(len(w), len(w), rng=seed, dtype=np.promote_types(dtype, np.float64))
    A = (V * w) @ V.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def problem(n, seed, dtype, condition):
    """Return A and M with ``M^-1 A`` of eigenvalues 1, -1/2, 1/3 ..., and these, rising."""
    w = spectrum("poly1", n) * (-1.0) ** np.arange(n)
    wide = np.promote_types(dtype, np.float64)
    M = hermitian(np.logspace(0, -np.log10(condition), n), seed, wide)
    L = np.linalg.cholesky(M)
    A = L @ hermitian(w, seed + 1, wide) @ L.conj().T
    return ((A + A.conj().T) / 2).astype(dtype), M.astype(dtype), np.sort(w)


def wanted(w, which):
    if which == "LM":
        return w[np.argsort(-np.abs(w))]
    if which == "BE":
        return np.array([(w[-1 - i // 2] if i % 2 == 0 else w[i // 2]) for i in range(len(w))])
    return w[::-1] if which == "LA" else w


@pytest.mark.parametrize("method", ["dense", "krylov"])
@given(which=st.sampled_from(WHICH), n=st.integers(1, 60), dtype=st.sampled_from(DTYPES), data=st.data(),
       condition=st.sampled_from([1.0, 1e2, 1e6]), width=st.sampled_from([None, 2]),
       seed=st.integers(0, 2**32 - 2))  # fmt: skip
def test_eigenpairs_in_the_inner_product_of_m(method, which, n, dtype, data, condition, width, seed):
    eps = float(np.finfo(dtype).eps)
    condition = min(condition, 1e-2 / eps)
    A, M, w = problem(n, seed, dtype, condition)
    k = data.draw(st.integers(1, n))
    tol = 1e-6 if eps < 1e-10 else 1e-3
    values, V = result = eigh(
        A, k, which=which, M=M, method=method, tol=tol, block_size=width, max_passes=500, rng=seed
    )
    assert result.info.converged
    wide = np.promote_types(dtype, np.float64)
    A, M, V = A.astype(wide), M.astype(wide), V.astype(wide)
    # M has norm one, and is known to rounding of its entries.
    slack = 100 * eps * condition * n**0.5
    assert np.linalg.norm(V.conj().T @ M @ V - np.eye(k), 2) <= slack
    residuals = np.linalg.solve(np.linalg.cholesky(M), A @ V - M @ V * values)
    assert np.all(np.linalg.norm(residuals, axis=0) <= tol * np.abs(values) + 3 * slack)
    assert np.abs(np.abs(values) - np.abs(wanted(w, which)[:k])).max() <= k**0.5 * tol + 3 * slack


@pytest.mark.parametrize("kind", ["sparse", "operator"])
@pytest.mark.parametrize("which", WHICH)
def test_sparse_pencil(kind, which):
    # The mass matrix of linear elements on a graded mesh, and a tridiagonal A of both signs.
    n = 400
    h = 1.0 / (1 + np.arange(n + 1.0)) ** 0.2
    M = sp.diags_array([h[1:-1] / 6, (h[:-1] + h[1:]) / 3, h[1:-1] / 6], offsets=[-1, 0, 1], format="csc")
    sizes = spectrum("poly1", n) * (-1.0) ** np.arange(n)
    A = sp.diags_array([sizes[1:] / 3, sizes, sizes[1:] / 3], offsets=[-1, 0, 1], format="csr")
    solve, given = splu(M).solve, M if kind == "sparse" else aslinearoperator(M)
    values, V = result = eigh(A, 6, which=which, M=given, solve=solve, method="krylov", tol=1e-6, max_passes=500, rng=0)
    assert result.info.converged
    exact = wanted(scipy.linalg.eigh(A.toarray(), M.toarray(), eigvals_only=True), which)[:6]
    # The error is the square of the residual over the gap, and the gaps are more than a hundredth.
    assert np.abs(values - exact).max() <= 1e-9 * np.abs(exact).max()
    assert np.abs(V.T @ (M @ V) - np.eye(6)).max() <= 1e-12


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_the_identity_changes_nothing(method):
    A, _, _ = problem(150, 0, "float64", 1.0)
    plain, general = (eigh(A, 6, M=M, method=method, tol=1e-8, rng=0) for M in (None, np.eye(150)))
    assert np.abs(plain.eigenvalues - general.eigenvalues).max() <= 1e-13
    assert np.abs(plain.to_dense() - general.to_dense()).max() <= 1e-6


@pytest.mark.parametrize("scales", [(1e150, 1.0), (1e-150, 1.0), (1.0, 1e100), (1.0, 1e-100), (1e150, 1e60)])
@pytest.mark.parametrize("method", ["dense", "krylov"])
@pytest.mark.parametrize("solve", [False, True])
def test_extreme_scales(scales, method, solve):
    A, M, _ = problem(150, 0, "float64", 10.0)
    plain = eigh(A, 5, M=M, method=method, rng=0)
    A, M = A * scales[0], M * scales[1]
    result = eigh(A, 5, M=M, solve=(lambda W: np.linalg.solve(M, W)) if solve else None, method=method, rng=0)
    ratio = scales[0] / scales[1]
    assert result.info.converged
    assert np.abs(result.eigenvalues / ratio - plain.eigenvalues).max() <= 1e-8
    V = result.eigenvectors * scales[1] ** 0.5
    assert np.abs(V.T @ (M / scales[1]) @ V - np.eye(5)).max() <= 1e-12
    assert np.all(result.info.residuals <= 1e-2 * np.abs(result.eigenvalues))


@pytest.mark.parametrize(
    "place", ["numpy", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("method", ["dense", "krylov"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_result_stays_on_the_device_of_the_input(place, method, dtype):
    xp, device = place
    A, M, w = problem(150, 0, dtype, 10.0)
    values, V = eigh(xp.asarray(A, device=device), 4, M=xp.asarray(M, device=device), method=method, rng=0)
    assert array_api_compat.device(V) == array_api_compat.device(values) == device
    assert V.dtype == xp.asarray(A, device=device).dtype
    found = [float(value) for value in values]
    assert np.abs(np.array(found) - wanted(w, "LM")[:4]).max() <= 1e-3


def test_restarts_and_narrow_blocks():
    A, M, w = problem(200, 0, "float64", 1e3)
    result = eigh(A, 6, M=M, block_size=2, max_basis=14, tol=1e-6, method="krylov", max_passes=500, rng=0)
    assert result.info.restarts > 0
    assert np.abs(result.eigenvalues - wanted(w, "LM")[:6]).max() <= 1e-8


def test_copies_are_found():
    M = hermitian(np.logspace(0, -2, 150), 0, "float64")
    L = np.linalg.cholesky(M)
    A = L @ hermitian(np.r_[np.ones(12), np.linspace(0, 0.25, 138)], 1, "float64") @ L.T
    result = eigh(A, 12, M=M, block_size=3, tol=1e-6, method="krylov", max_passes=500, rng=0)
    assert np.abs(result.eigenvalues - 1).max() <= 1e-9


@pytest.mark.parametrize("method", ["dense", "krylov"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_m_that_is_not_positive_definite_is_refused(method, dtype):
    A, M, _ = problem(150, 0, dtype, 10.0)
    for wrong in (-M, np.zeros_like(M), M - np.eye(150, dtype=dtype) / 2, np.ones_like(M)):
        with pytest.raises(NotPositiveDefiniteError, match=r"^rnla\.eigh: M must be positive definite"):
            eigh(A, 5, M=wrong, method=method, rng=0)
    operator = aslinearoperator((M - np.eye(150) / 2).astype(dtype))
    with pytest.raises(NotPositiveDefiniteError, match=r"^rnla\.eigh: M must be positive definite"):
        eigh(A, 5, M=operator, solve=lambda W: W, method="krylov", check=False, rng=0)


def test_solve_that_is_wrong_is_refused():
    A, M, _ = problem(150, 0, "float64", 10.0)
    with pytest.raises(ValueError, match=r"^rnla\.eigh: A must be Hermitian, and solve must be the inverse of M; got"):
        eigh(A, 5, M=M, solve=lambda W: W, method="krylov", rng=0)
    for wrong in (lambda W: W[:3], lambda W: None, lambda W: W.astype("float32")):
        with pytest.raises(ValueError, match=r"^rnla\.eigh: solve must return an array of shape"):
            eigh(A, 5, M=M, solve=wrong, method="krylov", rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.eigh: solve must be finite"):
        eigh(A, 5, M=M, solve=lambda W: W * np.nan, method="krylov", rng=0)
    not_finite = LinearOperator(M.shape, matvec=lambda x: x * np.inf, dtype=float)
    with pytest.raises(ValueError, match=r"^rnla\.eigh: M must be finite"):
        eigh(A, 5, M=not_finite, solve=lambda W: W, method="krylov", rng=0)


def test_passes_are_those_over_a():
    A, M, _ = problem(150, 0, "float64", 10.0)
    counting = CountingOperator(A)
    info = eigh(counting, 5, M=M, method="krylov", rng=0).info
    assert (info.passes, info.matvecs) == (counting.passes, counting.matvecs)
    assert info.error_estimate is None
