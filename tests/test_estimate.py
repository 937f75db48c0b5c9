"""Estimates of errors are unbiased, or bounds, as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems, rounding

import rnla
from rnla._estimate import POWER_STEPS, leave_one_out, residual_norm, square_norm
from rnla.testing import CountingOperator, CountingRows, matrix_with_spectrum, spectrum


def zero_like(A):
    """Return a rank-1 result that is zero, so that the error is A itself."""
    m, n = A.shape
    return rnla.SVDResult(np.eye(m, 1, dtype=A.dtype), np.zeros(1, A.real.dtype), np.eye(1, n, dtype=A.dtype))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", ["slow", "poly1", "exp"])
@pytest.mark.parametrize("num_samples", [1, 5])
def test_square_of_the_frobenius_estimate_is_unbiased(dtype, name, num_samples):
    A = matrix_with_spectrum(30, 20, spectrum(name, 20), rng=0, dtype=dtype)
    result = rnla.svd(A, 3, method="rsi", n_oversamples=0, n_iter=0, rng=0)
    true = np.linalg.norm(A - result.to_dense()) ** 2
    draws = 600
    squares = np.array([result.error(A, num_samples=num_samples, rng=draw) ** 2 for draw in range(draws)]) / true
    deviation = (2 / num_samples) ** 0.5
    # Mean 1 with a standard error of at most deviation / sqrt(draws); five of them fail with probability 6e-7.
    assert abs(squares.mean() - 1) <= 5 * deviation / draws**0.5
    # Relative variance at most 2 / r: the sample variance of these skew variables is within 50 per cent.
    assert 0 < squares.std() <= 1.5 * deviation


@given(problem=problems(names=("slow", "poly1", "poly2", "exp", "flat", "step"), sides=(1, 40)))
def test_spectral_estimate_is_a_lower_bound_and_near(problem):
    A, sigma, k, seed = problem
    result = rnla.svd(A, k, method="dense")
    for approximation, norm in ((zero_like(A), sigma[0]), (result, sigma[k] if k < len(sigma) else 0.0)):
        estimate = approximation.error(A, ord=2, rng=seed)
        assert estimate <= norm + problem.rounding
        # Ten columns and six steps gave 0.79 to 1 of the norm on all test spectra.
        assert estimate >= 0.79 * norm - problem.rounding


def test_errors_of_every_kind_of_input_agree():
    from scipy.sparse import csr_array

    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    result = rnla.svd(A, 5, rng=0)
    for ord in ("fro", 2):
        expected = result.error(A, ord=ord, rng=3)
        for view in (csr_array(A), CountingOperator(A), CountingRows(A, 16), np.asfortranarray(A)):
            assert abs(result.error(view, ord=ord, rng=3) - expected) <= rounding(A, 1.0)


def test_the_adjoint_and_qb_have_the_same_errors():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype="complex128")
    result = rnla.svd(A, 5, rng=0)
    sigma = spectrum("poly1", 70)
    assert abs(result.H.error(A.conj().T, ord=2, rng=0) - sigma[5]) <= 0.21 * sigma[5]
    Q, B = qb = rnla.qb(A, 20, rng=0)
    assert qb.error(A, ord=2, rng=0) <= np.linalg.norm(A - Q @ B, 2) + rounding(A, 1.0)
    assert qb.H.error(A.conj().T, ord=2, rng=0) >= 0.79 * np.linalg.norm(A - Q @ B, 2)


def test_work_of_an_estimate():
    A = CountingOperator(np.random.default_rng(0).standard_normal((90, 70)))
    result = rnla.svd(A, 5, rng=0)
    A.passes = A.matvecs = 0
    result.error(A, num_samples=7)
    assert (A.passes, A.matvecs) == (1, 7)
    A.passes = A.matvecs = 0
    result.error(A, ord=2, num_samples=7)
    assert A.passes <= 2 * POWER_STEPS


def test_more_samples_than_columns_and_tiny_matrices():
    A = np.array([[3.0, 4.0]])
    assert abs(zero_like(A).error(A, ord=2, num_samples=100) - 5) <= 50 * np.finfo(float).eps
    exact = rnla.svd(A, 1)
    for ord in ("fro", 2):
        assert exact.error(A, ord=ord, num_samples=100) <= 50 * np.finfo(float).eps * 5
        assert exact.error(A, ord=ord, num_samples=1) <= 50 * np.finfo(float).eps * 5 * 4


@pytest.mark.parametrize("ord", ["fro", 2])
@pytest.mark.parametrize("scale", [1e150, 1e-150])
def test_errors_at_extreme_scales(ord, scale):
    A = matrix_with_spectrum(60, 40, spectrum("poly1", 40), rng=0)
    result = rnla.svd(A, 3, method="dense")
    scaled = rnla.svd(A * scale, 3, method="dense")
    expected = result.error(A, ord=ord, rng=0)
    assert abs(scaled.error(A * scale, ord=ord, rng=0) / scale - expected) <= rounding(A, 1.0)


@pytest.mark.parametrize(("options", "message"), [
    ({"ord": "nuc"}, "ord must be 'fro' or 2; got 'nuc'"), ({"ord": 1}, "ord must be 'fro' or 2; got 1"),
    ({"num_samples": 0}, "num_samples must be at least 1; got 0"), ({"rng": -1}, "rng as a seed must"),
])  # fmt: skip
def test_bad_arguments(options, message):
    A = np.eye(9)
    with pytest.raises(ValueError, match=message):
        rnla.svd(A, 2).error(A, **options)


def test_another_matrix_is_refused():
    result = rnla.svd(np.eye(9), 2)
    with pytest.raises(ValueError, match=r"A must have the shape \(9, 9\) of the result; got \(9, 8\)"):
        result.error(np.ones((9, 8)))
    with pytest.raises(ValueError, match="A must be finite"):
        result.error(np.full((9, 9), np.nan))
    with pytest.raises(TypeError, match="A must be"):
        result.error(None)


# The error of a range finder from its own factors.


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", ["slow", "poly1", "exp"])
@pytest.mark.parametrize("width", [5, 10])
def test_leave_one_out_is_unbiased_for_one_column_less(dtype, name, width):
    A = matrix_with_spectrum(30, 20, spectrum(name, 20), rng=0, dtype=dtype)
    draws = 500
    estimates, errors = [], []
    for draw in range(draws):
        Omega = rnla.sketch.test_matrix("gaussian", draw, 20, width, dtype=np.dtype(dtype))
        Y = A @ Omega
        estimates.append(leave_one_out(np.linalg.qr(Y)[1]) ** 2)
        Q = np.linalg.qr(Y[:, 1:])[0]
        errors.append(np.linalg.norm(A - Q @ (Q.conj().T @ A)) ** 2)
    # Both means have a standard error; their difference exceeds five of its own with probability 6e-7.
    spread = np.hypot(np.std(estimates), np.std(errors)) / draws**0.5
    assert abs(np.mean(estimates) - np.mean(errors)) <= 5 * spread
    assert spread <= 0.1 * np.mean(errors)


def test_leave_one_out_is_zero_where_a_column_is_superfluous():
    R = np.triu(np.ones((4, 4)))
    R[3, 3] = 0
    assert leave_one_out(R) == 0
    assert leave_one_out(np.zeros((3, 3))) == 0
    assert leave_one_out(np.diag([2.0, 2.0])) == 2


@given(exponent=st.integers(-140, 140), dtype=st.sampled_from(["float64", "complex128"]))
def test_square_norm(exponent, dtype):
    X = np.full((5, 3), 10.0**exponent).astype(dtype)
    assert abs(square_norm(X) / (15 * 10.0 ** (2 * exponent)) - 1) <= 100 * np.finfo(float).eps


def test_square_norm_is_summed_in_double_precision():
    X = np.full((2**20 + 1, 1), 2.0**-12, np.float32)
    X[0] = 1
    assert abs(square_norm(X) - (1 + 2.0**-4)) <= 1e-12


def test_residual_norm_names_its_caller():
    with pytest.raises(ValueError, match=r"^rnla\.cur: ord must be"):
        residual_norm(np.eye(3), rnla.svd(np.eye(3), 1), 3, 1, 0, "rnla.cur")
