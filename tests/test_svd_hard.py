"""Matrices on which plain randomized methods fail: of low rank, with repeated or tiny values, of extreme scale."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, rounding, singular_values

import rnla
from rnla.testing import (
    CountingOperator,
    CountingRows,
    assert_orthonormal,
    hilbert,
    kahan,
    matrix_with_spectrum,
    spectrum,
)

ITERATIVE = ("krylov", "gram")
METHODS = ("auto", "dense", "qr", "rsi", "rowstream", "gnystrom", *ITERATIVE)


def svd(A, k, method="auto", **options):
    """Call `rnla.svd`; that one pass cannot tell small values from zero is said by an AccuracyWarning."""
    with warnings.catch_warnings():
        if method == "rowstream":
            warnings.simplefilter("ignore", rnla.AccuracyWarning)
        return rnla.svd(A, k, method=method, **options)


def in_files(A):
    return CountingRows(A, 16)


def assert_is_svd(result, k):
    """Assert that the factors are orthonormal, the values sorted, and nothing is NaN."""
    U, S, Vh = result
    assert_orthonormal(U)
    assert_orthonormal(Vh.conj().T)
    assert S.shape == (k,)
    assert np.all(S >= 0)
    assert np.all(np.diff(S) <= 0)
    assert result.info.residuals is None or np.all(np.isfinite(result.info.residuals))
    assert result.info.error_estimate is None or 0 <= result.info.error_estimate <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 7), (90, 70), (70, 90)])
def test_zero_matrix(method, dtype, shape):
    k = min(*shape, 5)
    result = svd(np.zeros(shape, dtype), k, method, rng=0)
    assert_is_svd(result, k)
    assert np.all(result.S == 0)
    assert result.info.converged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "bool"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1)])
def test_vectors(method, dtype, shape):
    rng = np.random.default_rng(0)
    A = (
        rng.integers(0, 2, shape).astype(dtype)
        if dtype in ("int64", "bool")
        else rng.standard_normal(shape).astype(dtype)
    )
    A[0, 0] = 1  # not zero
    result = svd(A, 1, method, rng=0)
    assert_is_svd(result, 1)
    wide = A.astype(np.promote_types(result.dtype, np.float64))
    norm = np.linalg.norm(wide)
    allowed = 50 * np.finfo(result.dtype).eps * norm
    assert abs(result.S[0] - norm) <= allowed
    assert np.abs(result.to_dense() - wide).max() <= allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(12, 12), (90, 70), (70, 90), (200, 66)])
def test_all_triplets(method, dtype, shape):
    n = min(shape)
    A = matrix_with_spectrum(*shape, spectrum("poly1", n), rng=3, dtype=dtype)
    result = svd(A, n, method, rng=0)
    assert_is_svd(result, n)
    # One pass forms A^H A X and divides it by singular values: it loses half of the digits.
    eps = np.finfo(dtype).eps
    allowed = rounding(A, 1.0) * (
        eps**-0.5 if method == "rowstream" else n if method in ("gram", "auto", "gnystrom") else 1
    )
    assert np.abs(result.S - singular_values(A)).max() <= allowed
    assert np.linalg.norm(A - result.to_dense(), 2) <= allowed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(90, 70), (70, 90)])
@pytest.mark.parametrize("r", [1, 5, 9])
def test_exact_low_rank_is_completed_by_orthonormal_vectors(method, dtype, shape, r):
    k, sigma = 10, np.r_[1.0 / np.arange(1, r + 1)]
    A = matrix_with_spectrum(*shape, sigma, rng=r, dtype=dtype)
    result = svd(A, k, method, rng=1)
    assert_is_svd(result, k)
    eps = np.finfo(dtype).eps
    # The stored matrix differs from one of rank r by the rounding of its entries, a perturbation of norm below
    # sqrt(m n) eps; one pass over it loses half of the digits.
    allowed = 100 * eps if method != "rowstream" else 100 * eps**0.5
    assert np.abs(result.S[:r] - sigma).max() <= max(allowed, 10 * r * eps)
    assert np.all(result.S[r:] <= allowed)
    assert np.linalg.norm(A - result.to_dense(), 2) <= 10 * allowed
    assert result.info.converged


@pytest.mark.parametrize(
    ("method", "view"),
    [
        (method, view)
        for method in METHODS
        for view in (np.asarray, CountingOperator, in_files)
        if (method, view) != ("rowstream", CountingOperator)  # an operator has no rows to stream
    ],
)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((dtype, scale) for dtype in ("float64", "complex128") for scale in (1e150, 1e-150)),
        *((dtype, scale) for dtype in ("float32", "complex64") for scale in (1e30, 1e-30)),
    ],
)
def test_extreme_scales(method, dtype, scale, view):
    sigma = spectrum("poly2", 70)
    A = matrix_with_spectrum(90, 70, sigma, rng=0, dtype=np.promote_types(dtype, np.float64))
    large = (A * scale).astype(dtype)
    result, plain = svd(view(large), 5, method, rng=0), svd(view(A.astype(dtype)), 5, method, rng=0)
    assert_is_svd(result, 5)
    eps = np.finfo(dtype).eps
    # Scaling by a number that is not a power of two rounds every entry once.
    allowed = (
        100
        * eps
        * (eps**-0.5 if method == "rowstream" else sigma[5] ** -1 if method in ("gram", "gnystrom", "auto") else 1)
    )
    assert np.abs(result.S.astype(float) / scale - plain.S).max() <= allowed
    if result.info.residuals is not None:
        assert np.all(result.info.residuals <= 1e-2 * result.S.astype(float) + allowed * scale)
    assert result.info.converged == plain.info.converged


@pytest.mark.parametrize("options", [{"rtol": 1e-3}, {"rtol": 1e-3, "center": True}])
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float64", 1e150), ("float64", 1e-150), ("float32", 1e30), ("float32", 1e-30)]
)
def test_fixed_precision_at_extreme_scales(dtype, scale, options):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    result, plain = rnla.svd((A * scale).astype(dtype), rng=0, **options), rnla.svd(A, rng=0, **options)
    assert result.rank == plain.rank
    assert np.abs(result.S.astype(float) / scale - plain.S).max() <= 100 * np.finfo(dtype).eps
    absolute = rnla.svd((A * scale).astype(dtype), atol=1e-3 * scale * np.linalg.norm(A), rng=0)
    assert abs(absolute.rank - rnla.svd(A, rtol=1e-3, rng=0).rank) <= 1


# Repeated singular values.


@pytest.mark.parametrize("method", ["auto", *ITERATIVE])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("width", [None, 8, 20])
@pytest.mark.parametrize("k", [20, 50, 55])
def test_fifty_ones_over_a_flat_tail(method, dtype, width, k):
    A = matrix_with_spectrum(220, 180, np.r_[np.ones(50), np.full(130, 0.1)], rng=5, dtype=dtype)
    exact = np.r_[np.ones(50), np.full(5, 0.1)][:k]
    result = rnla.svd(A, k, method=method, block_size=width, max_passes=500, rng=0)
    assert_is_svd(result, k)
    assert result.info.converged
    # Never too large, as a basis that has lost its orthogonality makes them; and none of the fifty is missing. The
    # error of a value is at most its residual squared over the gap.
    assert np.all(exact + rounding(A, 10.0) >= result.S)
    gap = np.where(exact == 1, 0.9, 0.1)
    assert np.all(exact - (1e-2 * exact) ** 2 / gap * 2 - rounding(A, 10.0) <= result.S)


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("tol", [1e-2, 1e-10])
@pytest.mark.parametrize("seed", range(5))
def test_multiplicity_beyond_the_block(method, tol, seed):
    sigma = np.r_[np.ones(20), spectrum("poly1", 60) / 4]
    A = matrix_with_spectrum(100, 80, sigma, rng=seed)
    result = rnla.svd(A, 20, method=method, block_size=8, tol=tol, max_passes=500, rng=seed)
    assert result.info.converged
    assert np.all(np.abs(result.S - 1) <= max(2 * tol**2, rounding(A, 1.0)))


def test_without_verification_copies_are_missed():
    # What the test before this one guards against: a Krylov space grown from 8 columns holds 8 copies at most.
    A = matrix_with_spectrum(100, 80, np.r_[np.ones(20), spectrum("poly1", 60) / 4], rng=0)
    result = rnla.svd(A, 20, method="krylov", block_size=8, tol=1e-10, verify=False, rng=0)
    assert result.info.converged
    assert np.sum(result.S > 0.5) < 20
    checked = rnla.svd(A, 20, method="krylov", block_size=8, tol=1e-10, rng=0)
    assert np.abs(checked.S - 1).max() <= rounding(A, 1.0)


@pytest.mark.parametrize("method", ITERATIVE)
@given(
    multiplicity=st.integers(1, 24),
    level=st.sampled_from([0.1, 0.5, 0.8]),
    width=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_copy_is_missed(method, multiplicity, level, width, seed):
    k, n = 12, 50
    sigma = np.r_[2.0, np.ones(multiplicity), np.full(n - 1 - multiplicity, level)]
    A = matrix_with_spectrum(60, n, sigma, rng=seed)
    result = rnla.svd(A, k, method=method, block_size=width, tol=1e-8, max_passes=500, rng=seed)
    assert result.info.converged
    # Four random columns have a share w of a missed direction that two rounds raise to 0.8**-8 w. It shows at level
    # 0.8 if w > 6e-4: a chi-square variable with 4 degrees of freedom, over 40, is less with probability 7e-5.
    assert np.abs(result.S - sigma[:k]).max() <= rounding(A, 10.0)


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("A", [np.eye(80), np.eye(80)[::-1], np.kron(np.eye(8), np.ones((10, 9))), np.ones((90, 80))])
@pytest.mark.parametrize("width", [None, 1, 3])
def test_matrices_of_zeros_and_ones(method, A, width):
    sigma = singular_values(A)
    result = rnla.svd(A, 12, method=method, block_size=width, max_passes=500, rng=0)
    assert_is_svd(result, 12)
    assert result.info.converged
    # Zeros come out as the root of a rounding error where A is squared.
    assert np.abs(result.S - sigma[:12]).max() <= rounding(A, sigma[0]) * 10


# Small singular values.


@pytest.mark.parametrize("method", ["auto", *ITERATIVE])
@pytest.mark.parametrize(("dtype", "decades"), [("float64", 12), ("complex128", 12), ("float32", 5), ("complex64", 5)])
def test_small_singular_values_are_not_lost_to_squaring(method, dtype, decades):
    sigma = np.logspace(0, -decades, 70)
    A = matrix_with_spectrum(90, 70, sigma, rng=0, dtype=dtype)
    result = rnla.svd(CountingOperator(A), 20 if method == "auto" else 66, method=method, max_passes=500, rng=0)
    k = result.rank
    assert_is_svd(result, k)
    assert result.info.converged
    if method == "gram":
        assert result.info.method == "gram+krylov"
    # Backward stable: an absolute error of eps times the norm, which leaves the smallest values four digits.
    assert np.all(np.abs(result.S - sigma[:k]) <= 1e-4 * sigma[:k] + rounding(A, 1.0) / 10)


@pytest.mark.parametrize("method", ["auto", *ITERATIVE])
@pytest.mark.parametrize("view", [np.asarray, CountingOperator, in_files])
@pytest.mark.parametrize("k", [10, 40])
def test_hilbert_and_kahan(method, view, k):
    for A in (hilbert(100, 80), kahan(80), kahan(80).T.copy()):
        sigma = singular_values(A)
        result = rnla.svd(view(A), k, method=method, max_passes=500, rng=0)
        assert_is_svd(result, k)
        assert result.info.converged
        assert np.all(np.abs(result.S - sigma[:k]) <= 3e-3 * sigma[:k] + rounding(A, sigma[0]))


@pytest.mark.parametrize("method", ["auto", "gram"])
def test_a_value_far_above_the_rest_does_not_hide_them(method):
    sigma = np.r_[1e9, 2.0 ** -np.arange(69.0)]
    A = matrix_with_spectrum(90, 70, sigma, rng=0)
    result = rnla.svd(A, 8, method=method, tol=1e-6, rng=0)
    assert result.info.converged
    assert np.all(np.abs(result.S - sigma[:8]) <= rounding(A, sigma[0]))


@pytest.mark.parametrize("method", ["auto", *ITERATIVE, "rsi"])
def test_graded_rows_and_empty_columns(method):
    A = np.random.default_rng(0).standard_normal((100, 80)) * np.logspace(0, -200, 100)[:, None]
    A[:, ::7] = 0
    result = rnla.svd(A, 10, method=method, rng=0)
    sigma = singular_values(A)
    assert_is_svd(result, 10)
    assert np.all(np.abs(result.S - sigma[:10]) <= 1e-3 * sigma[:10] + rounding(A, sigma[0]))


@pytest.mark.parametrize("method", ITERATIVE)
def test_restarts_converge_with_the_smallest_basis(method):
    sigma = spectrum("slow", 100)
    A = matrix_with_spectrum(120, 100, sigma, rng=0)
    result = rnla.svd(A, 8, method=method, block_size=4, max_basis=16, tol=1e-6, max_passes=500, rng=0)
    assert result.info.converged
    assert result.info.restarts > 0
    assert np.abs(result.S - sigma[:8]).max() <= rounding(A, 10.0)


@pytest.mark.parametrize("driver", ["dense", "qr", "rsi", "krylov", "gram"])
def test_divide_and_conquer_that_does_not_converge_is_replaced(monkeypatch, driver):
    def fails(*args, **options):
        raise np.linalg.LinAlgError("SVD did not converge")

    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    expected = rnla.svd(A, 5, method=driver, rng=0)
    monkeypatch.setattr(np.linalg, "svd", fails)
    result = rnla.svd(A, 5, method=driver, rng=0)
    assert np.abs(result.S - expected.S).max() <= rounding(A, 1.0)
    assert np.abs(result.to_dense() - expected.to_dense()).max() <= rounding(A, 10.0)


@pytest.mark.parametrize("seed", range(6))
def test_copies_that_come_in_last_are_waited_for(seed):
    # Found by the verification, a missed copy is small in the projected matrix at first and large in its last product.
    sigma = np.r_[np.full(7, 2.0), np.ones(9), 1 / np.arange(2, 586)]
    A = matrix_with_spectrum(600, 600, sigma, rng=1)
    result = rnla.svd(A, 20, method="gram", block_size=2, rng=2 * seed)
    assert result.info.converged
    assert np.abs(result.S - sigma[:20]).max() <= 1e-3
