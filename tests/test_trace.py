"""Estimates of traces are unbiased, as accurate as theory says, and honest about their error."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator
from strategies import DTYPES, diagonals
from test_svd_inputs import KINDS

from rnla._backend import key_from_rng
from rnla._errors import ConvergenceWarning
from rnla._matrix import as_matrix
from rnla._probing import probes
from rnla._trace import METHODS, PROBES, trace
from rnla.testing import CountingOperator, haar_basis, matrix_with_spectrum, spectrum

GENERAL = ("xtrace", "hutchpp", "hutchinson")


def hermitian(values, dtype="float64", rng=0):
    """Return a dense Hermitian matrix with the given eigenvalues."""
    Q = haar_basis(len(values), len(values), rng=rng, dtype=np.promote_types(dtype, "float64"))
    A = (Q * values) @ Q.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def example(name, dtype="float64", n=24):
    """Return a square matrix: positive definite, indefinite with a small trace, or not normal at all."""
    j = np.arange(n)
    if name == "psd":
        return hermitian(0.8**j, dtype)
    if name == "cancelling":
        return hermitian((-1.0) ** j * 0.9 ** (j // 2), dtype)
    return matrix_with_spectrum(n, n, 0.8**j, rng=1, dtype=dtype)


def samples(A, draws, num_matvecs, **options):
    return [trace(A, num_matvecs, rng=draw, **options) for draw in range(draws)]


ESTIMATES = [(name, method) for name in ("psd", "cancelling", "not normal") for method in GENERAL]


@pytest.mark.parametrize(
    ("estimate", "probe", "dtype"), diagonals([*ESTIMATES, ("psd", "xnystrace")], PROBES, ("float64", "complex128"))
)
def test_estimates_are_unbiased(estimate, probe, dtype):
    name, method = estimate
    A = example(name, dtype)
    draws = 120
    found = np.array([complex(result) for result in samples(A, draws, 12, method=method, probe=probe)])
    # Real and imaginary part of the mean: more than five standard errors off with probability 1e-6.
    error = found.mean() - np.trace(A)
    assert abs(error.real) <= 5 * found.real.std() / draws**0.5 + 1e-14
    assert abs(error.imag) <= 5 * found.imag.std() / draws**0.5 + 1e-14


def without(Omega, i):
    return np.delete(Omega, i, axis=1)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_xtrace_by_its_definition(dtype):
    """Leave each vector out for good: factor again, and multiply again."""
    A, n, width = example("not normal", dtype), 24, 6
    Omega = probes(as_matrix(A, "test"), "sphere", key_from_rng(5, "test"), width, 0)
    values = []
    for i in range(width):
        Q = np.linalg.qr(A @ without(Omega, i))[0]
        x = Omega[:, i] - Q @ (Q.conj().T @ Omega[:, i])
        x *= ((n - width + 1) / np.vdot(x, x).real) ** 0.5
        values.append(np.trace(Q.conj().T @ A @ Q) + np.vdot(x, A @ x))
    result = trace(A, 2 * width, method="xtrace", rng=5)
    assert abs(result.value - np.mean(values)) <= 1e-12
    assert abs(result.stderr - np.std(values, ddof=1) / width**0.5) <= 1e-12


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_xnystrace_by_its_definition(dtype):
    A, n, width = example("psd", dtype), 24, 8
    Omega = probes(as_matrix(A, "test"), "sphere", key_from_rng(5, "test"), width, 0)
    values = []
    for i in range(width):
        X = without(Omega, i)
        rest = A - A @ X @ np.linalg.solve(X.conj().T @ A @ X, X.conj().T @ A)
        Q = np.linalg.qr(X)[0]
        x = Omega[:, i] - Q @ (Q.conj().T @ Omega[:, i])
        x *= ((n - width + 1) / np.vdot(x, x).real) ** 0.5
        values.append(np.trace(A - rest) + np.vdot(x, rest @ x))
    result = trace(A, width, method="xnystrace", psd=True, rng=5)
    assert abs(result.value - np.mean(values).real) <= 1e-10
    assert abs(result.stderr - 2 * np.std(values, ddof=1) / width**0.5) <= 1e-10


@pytest.mark.parametrize(
    ("probe", "dtype"), [("gaussian", "float64"), ("rademacher", "float64"), ("gaussian", "complex128")]
)
def test_variance_of_hutchinson(probe, dtype):
    A, m, draws = example("cancelling", dtype), 6, 800
    off_diagonal = np.linalg.norm(A - np.diag(np.diag(A)))
    expected = {
        ("gaussian", "float64"): 2 * np.linalg.norm(A) ** 2,
        ("rademacher", "float64"): 2 * off_diagonal**2,
        ("gaussian", "complex128"): np.linalg.norm(A) ** 2,
    }[probe, dtype] / m
    found = np.var([result.value.real for result in samples(A, draws, m, method="hutchinson", probe=probe)], ddof=1)
    # The variance of a sample variance is (2 + excess kurtosis) / draws, and the excess is at most 12 / m = 2: five
    # standard deviations of it.
    assert abs(found / expected - 1) <= 5 * (4 / draws) ** 0.5


@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutchpp", "hutchinson", "auto"])
@pytest.mark.parametrize("decay", [0.7, 0.9, 0.99])
def test_standard_error_is_honest(method, decay):
    A = hermitian(decay ** np.arange(100.0))
    found = samples(A, 60, 40, method=method, psd=True)
    errors = np.array([result.value for result in found]) - np.trace(A)
    stated = np.array([result.stderr for result in found])
    # Root mean squares of 60 draws, which vary by some 15 per cent; the stated one is itself an estimate.
    ratio = np.sqrt(np.mean(errors**2) / np.mean(stated**2))
    assert 0.2 <= ratio <= 1.8


# The table of the specification: root mean square of the relative error for n = 1000. Probes of uniform direction see
# the eigenvalues alone, so that a diagonal matrix stands for all.
TABLE = [
    ("decay", 60, {"hutchinson": 7e-2, "hutchpp": 3e-4, "xtrace": 5e-6, "xnystrace": 7e-9}),
    ("poly2", 120, {"hutchinson": 9e-2, "hutchpp": 5e-4, "xtrace": 3e-4, "xnystrace": 2e-4}),
]


@pytest.mark.parametrize(("name", "m", "expected"), TABLE)
def test_table_of_errors(name, m, expected):
    j = np.arange(1000.0)
    values = 0.7**j if name == "decay" else (1 + j) ** -2
    A = sp.dia_array((values[None], [0]), shape=(1000, 1000)).tocsr()
    for method, error in expected.items():
        found = np.array([result.value for result in samples(A, 15, m, method=method)]) / values.sum() - 1
        # The root mean square of 15 errors is within a factor of two of its own expectation with probability 0.9999,
        # and the printed figures have one digit.
        assert np.sqrt(np.mean(found**2)) <= 2 * 1.5 * error
        if method != "hutchinson":
            assert np.sqrt(np.mean(found**2)) >= error / 3 / 2


def test_deflation_is_chosen_where_it_pays():
    n = 400
    assert trace(np.diag(0.9 ** np.arange(n)), 60, rng=0).method == "xtrace"
    assert trace(np.diag(0.9 ** np.arange(n)), 60, psd=True, rng=0).method == "xnystrace"
    assert trace(np.diag(np.linspace(1, 0.9, n)), 60, rng=0).method == "hutchinson"
    assert trace(np.diag(np.linspace(1, 0.9, n)), 60, psd=True, rng=0).method == "hutchinson"
    assert trace(np.diag(0.9 ** np.arange(n)), 3, rng=0).method == "hutchinson"  # too few to tell


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [7, 20, 41, 60])
@pytest.mark.parametrize("flat", [True, False])
def test_no_product_is_wasted_and_none_too_many_is_made(method, m, flat):
    A = CountingOperator(hermitian(np.ones(80) if flat else 0.9 ** np.arange(80)))
    result = trace(A, m, method=method, psd=True, rng=0)
    assert result.matvecs == A.matvecs
    assert result.passes == A.passes
    assert m - (2 if result.method in ("xtrace", "hutchpp") else 0) <= result.matvecs <= m


@given(
    n=st.integers(1, 40), rank=st.integers(0, 6), method=st.sampled_from(("xtrace", "hutchpp")),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_low_rank_is_found_and_the_trace_exact(n, rank, method, dtype, seed):
    rank = min(rank, n)
    A = matrix_with_spectrum(n, n, np.r_[np.ones(rank), np.zeros(n - rank)], rng=seed, dtype=dtype)
    if method == "xtrace" or rank < n:
        result = trace(A, 3 * (rank + 1), method=method, rng=seed)
        assert abs(result.value - np.trace(A)) <= 100 * n * np.finfo(dtype).eps
        assert result.stderr == 0


@given(n=st.integers(1, 40), rank=st.integers(0, 6), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_low_rank_is_exact_for_the_nystrom_estimate(n, rank, dtype, seed):
    A = hermitian(np.where(np.arange(n) < rank, 1.0, 0.0), dtype, rng=seed)
    result = trace(A, rank + 2, method="xnystrace", psd=True, rng=seed)
    # The shift that hides rounding acts on all of the space, and its trace is known to a few per cent.
    assert abs(result.value - min(rank, n)) <= 300 * n * np.finfo(dtype).eps
    assert isinstance(result.value, float)


@given(n=st.integers(1, 30), extra=st.integers(0, 9), method=st.sampled_from(METHODS), seed=st.integers(0, 2**32 - 1))
def test_as_many_products_as_columns_are_exact(n, extra, method, seed):
    A = np.random.default_rng(seed).standard_normal((n, n))
    operator = CountingOperator(A)
    result = trace(operator, n + extra, method=method, rng=seed)
    assert result.method == "exact"
    assert operator.matvecs == n
    assert result.stderr == 0
    assert abs(result.value - np.trace(A)) <= 10 * n * np.finfo(float).eps * np.abs(A).max()


def test_a_precision_is_met_and_products_are_reused():
    A = CountingOperator(hermitian(0.9 ** np.arange(400.0)))
    truth = (1 - 0.9**400) / 0.1
    for psd in (False, True):
        A.matvecs = 0
        result = trace(A, rtol=1e-4, psd=psd, rng=0)
        assert result.converged
        assert result.stderr <= 1e-4 * result.value
        # Three standard errors and a bit, once.
        assert abs(result.value - truth) <= 4e-4 * truth
        made = [made for made, _, _ in result.history]
        assert made == [40 * 2**i for i in range(len(made))]
        assert len(made) > 1
        assert A.matvecs == result.matvecs == made[-1]
        assert result.n_iter == len(made)


@pytest.mark.filterwarnings("ignore::rnla._errors.ConvergenceWarning")
@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutchpp", "hutchinson"])
def test_a_later_round_is_the_estimate_with_as_many_products(method):
    A = hermitian(0.95 ** np.arange(300.0))
    history = trace(A, 160, rtol=1e-30, method=method, rng=5).history
    once = trace(A, 160, method=method, rng=5)
    assert abs(history[-1][1] - once.value) <= 1e-10 * abs(once.value)
    assert abs(history[-1][2] - once.stderr) <= 1e-6 * once.stderr + 1e-13 * once.value


def test_a_precision_that_is_not_met_is_reported():
    A = hermitian(np.linspace(1, 2, 200))
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.trace: 50 products made before the precision was met"):
        result = trace(A, 50, rtol=1e-9, rng=0)
    assert not result.converged
    assert result.matvecs == 50
    assert "NOT converged" in str(result)
    exact = trace(A, rtol=1e-9, rng=0)  # without a limit all columns answer
    assert (exact.method, exact.stderr, exact.converged) == ("exact", 0.0, True)


def test_a_trace_that_cancels_needs_an_absolute_precision():
    values = np.r_[0.8 ** np.arange(100.0), -(0.8 ** np.arange(100.0))]
    A = hermitian(values)
    result = trace(A, atol=1e-3, rng=0)
    assert result.method == "xtrace"
    assert abs(result.value) <= 4e-3


def test_the_result_is_a_number():
    result = trace(hermitian(np.arange(1.0, 31.0)), 12, rng=0)
    assert float(result) == result.value
    assert complex(result) == result.value
    assert "products" in str(result)
    assert "+-" in str(result)
    with pytest.raises(AttributeError):
        result.value = 3.0
    assert isinstance(trace(hermitian(np.ones(30), "complex128"), 12, rng=0).value, complex)
    assert isinstance(trace(hermitian(np.ones(30), "complex128"), 12, psd=True, rng=0).value, float)


def test_one_sample_says_nothing_of_its_error():
    A = hermitian(np.ones(30))
    for method, m in (("hutchinson", 1), ("xtrace", 3), ("hutchpp", 4), ("auto", 1)):
        assert trace(A, m, method=method, rng=0).stderr == np.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutchpp", "hutchinson"])
def test_all_kinds_of_input_agree(tmp_path, kind, method):
    A = hermitian(0.8 ** np.arange(70.0), "complex128")
    expected = trace(A, 30, method=method, psd=True, rng=1)
    result = trace(KINDS[kind](A, tmp_path), 30, method=method, psd=True, rng=1)
    assert abs(result.value - expected.value) <= 1e-12
    assert abs(result.stderr - expected.stderr) <= 1e-12


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "bool"])
def test_precisions(dtype):
    A = (100 * example("psd", n=60)).astype(dtype)
    computed = A.astype(np.promote_types(dtype, "float32"))
    eps = np.finfo(computed.dtype if dtype in DTYPES else float).eps
    result = trace(A, 60, method="xtrace", rng=0)
    assert abs(result.value - np.trace(computed)) <= 100 * eps * np.abs(np.diag(computed)).sum() + 1e-300
    low = trace(A, 40, method="xtrace", rng=0)
    assert abs(low.value - np.trace(computed)) <= 6 * low.stderr + 1000 * eps * np.linalg.norm(computed)


def test_single_precision_reaches_its_rounding():
    A = hermitian(0.7 ** np.arange(200.0), "float32")
    for method in ("xtrace", "xnystrace"):
        result = trace(A, 80, method=method, rng=0)
        assert abs(result.value - 1 / 0.3) <= 200 * np.finfo(np.float32).eps / 0.3


@pytest.mark.parametrize("scale", [1e150, 1e-150])
@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutchpp", "hutchinson"])
def test_extreme_scales(scale, method):
    A = example("psd", n=60)
    expected, result = trace(A, 30, method=method, rng=0), trace(A * scale, 30, method=method, rng=0)
    assert abs(result.value / scale - expected.value) <= 1e-12
    assert abs(result.stderr / scale - expected.stderr) <= 1e-12
    assert abs(trace(A * scale, rtol=1e-3, rng=0).value / scale - np.trace(A)) <= 1e-2
    assert abs(trace(A * scale, atol=1e-3 * scale, rng=0).value / scale - np.trace(A)) <= 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_zero_matrix_and_one_entry(method, dtype):
    for n, m in ((50, 20), (50, 50), (1, 1), (2, 1 if method in ("auto", "hutchinson", "xnystrace") else 2)):
        assert trace(np.zeros((n, n), dtype), m, method=method, rng=0).value == 0
    assert trace(np.full((1, 1), 3, dtype), 5, method=method).value == 3
    assert trace(np.full((1, 1), 3, dtype), rtol=1e-3).value == 3


def test_the_adjoint_is_not_needed():
    A = example("not normal", n=60)
    forward = LinearOperator(A.shape, matvec=lambda x: A @ x, dtype=float)
    for method in ("xtrace", "hutchpp", "hutchinson", "auto"):
        assert np.isfinite(trace(forward, 30, method=method, rng=0).value)


def test_one_seed_gives_one_result():
    A = example("psd", n=60)
    assert trace(A, 30, rng=3) == trace(A, 30, rng=3)
    assert trace(A, 30, rng=3).value != trace(A, 30, rng=4).value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(method, value):
    for place in ((0, 0), (49, slice(None)), (slice(None), 3)):
        A = np.eye(50)
        A[place] = value
        for options in ({"num_matvecs": 20}, {"num_matvecs": 50}, {"rtol": 1e-3}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                with pytest.raises(ValueError, match=r"^rnla\.trace: A must be finite"):
                    trace(A, method=method, rng=0, **options)


def test_what_is_not_positive_semidefinite_is_refused():
    with pytest.raises(ValueError, match=r"^rnla\.trace: A must be positive semidefinite"):
        trace(-np.eye(50), 20, method="xnystrace", rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.trace: A must be Hermitian"):
        trace(np.triu(np.ones((50, 50))), 20, method="xnystrace", rng=0)


@pytest.mark.parametrize(("error", "options", "message"), [
    (ValueError, {}, "one of num_matvecs, rtol and atol must be given; got none."),
    (ValueError, {"num_matvecs": 0}, "num_matvecs must be at least 1; got 0."),
    (TypeError, {"num_matvecs": 3.0}, "num_matvecs must be an integer; got float 3.0."),
    (ValueError, {"num_matvecs": 1, "method": "xtrace"}, "num_matvecs must be at least 2 for method 'xtrace'; got 1."),
    (ValueError, {"num_matvecs": 2, "method": "hutchpp"}, "num_matvecs must be at least 3 for method 'hutchpp'"),
    (ValueError, {"rtol": -1}, "rtol must be finite and not negative; got -1."),
    (ValueError, {"atol": float("nan")}, "atol must be finite and not negative; got nan."),
    (TypeError, {"rtol": "1e-3"}, "rtol must be a real number; got str '1e-3'."),
    (ValueError, {"num_matvecs": 9, "method": "girard"}, "method must be one of 'auto', 'xtrace'"),
    (ValueError, {"num_matvecs": 9, "probe": "uniform"}, "probe must be one of 'sphere'"),
    (ValueError, {"num_matvecs": 9, "psd": "yes"}, "psd must be one of True, False; got 'yes'."),
    (ValueError, {"num_matvecs": 9, "rng": -1}, "rng as a seed must be a non-negative int; got -1."),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_work(error, options, message):
    A = CountingOperator(np.ones((30, 30)))
    with pytest.raises(error) as caught:
        trace(A, **options)
    assert str(caught.value).startswith(f"rnla.trace: {message}")
    assert A.passes == 0


def test_what_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"^rnla\.trace: A must be square; got shape \(3, 2\)"):
        trace(np.ones((3, 2)), 2)
    with pytest.raises(TypeError, match=r"^rnla\.trace: A must"):
        trace(None, 2)


def test_slow_decay_is_no_worse_than_hutchinson_by_much():
    values = spectrum("slow", 400)
    A = hermitian(values)

    def error(method):
        found = np.array([trace(A, 60, method=method, rng=draw).value for draw in range(20)])
        return np.sqrt(np.mean((found - values.sum()) ** 2))

    assert error("auto") <= 1.5 * error("hutchinson")


@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
def test_signs_that_repeat_are_not_taken_for_a_matrix_of_low_rank(method):
    # Two vectors of five signs agree up to a sign with probability 1/16: in 100 draws not once with one of 0.2 %.
    X = np.random.default_rng(0).standard_normal((5, 5))
    found = [trace(X @ X.T, 4, method=method, probe="rademacher", rng=seed) for seed in range(100)]
    assert all(result.stderr > 0 for result in found)
