"""Traces of functions and log-determinants: exact for small matrices, unbiased, and close after deflation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, diagonals
from test_svd_inputs import KINDS
from test_trace import hermitian

from rnla._errors import ConvergenceWarning, NotPositiveDefiniteError
from rnla._trace_fun import logdet, trace_fun
from rnla.testing import CountingOperator, hilbert

FUNCTIONS = {"exp": np.exp, "square": np.square, "root of modulus": lambda x: np.sqrt(np.abs(x)), "one": np.ones_like}


def kernel(n, mu, rng=0):
    """Return a Gaussian kernel matrix of points on a line plus `mu` times the identity, and its eigenvalues."""
    points = np.random.default_rng(rng).uniform(size=n)
    A = np.exp(-((points[:, None] - points[None]) ** 2) / (2 * 0.05**2)) + mu * np.eye(n)
    return A, np.linalg.eigvalsh(A)


@given(
    n=st.integers(1, 40), name=st.sampled_from(sorted(FUNCTIONS)), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_small_matrices_are_exact(n, name, dtype, seed):
    A = hermitian(np.random.default_rng(seed).standard_normal(n), dtype, rng=seed)
    operator = CountingOperator(A)
    result = trace_fun(operator, FUNCTIONS[name], rng=seed)
    expected = FUNCTIONS[name](np.linalg.eigvalsh(A.astype(np.promote_types(dtype, float)))).sum()
    # The root has a steep slope at zero: there an eigenvalue off by eps is a root off by its root.
    eps = np.finfo(dtype).eps
    assert abs(result.value - expected) <= 100 * n * (eps**0.5 if name.startswith("root") else eps * np.exp(5))
    assert (result.method, result.stderr, operator.matvecs) == ("exact", 0.0, n)


@pytest.mark.parametrize(
    ("rank", "values", "dtype"),
    diagonals((0, 5, None), ("decay", "both signs", "flat"), ("float64", "complex128")),
)
def test_estimates_are_unbiased(rank, values, dtype):
    j = np.arange(60.0)
    values = {"decay": 3 * 0.8**j, "both signs": np.cos(j) * 0.9**j, "flat": 1 + j / 60}[values]
    A, draws = hermitian(values, dtype), 150
    found = np.array([trace_fun(A, np.exp, num_probes=4, steps=12, rank=rank, rng=draw).value for draw in range(draws)])
    # Twelve steps give a polynomial of degree 23: exact up to 3**24 / 24! = 5e-13 here. The mean of the samples is more
    # than five standard errors off with probability 6e-7.
    assert abs(found.mean() - np.exp(values).sum()) <= 5 * found.std() / draws**0.5 + 1e-10


def test_deflation_lowers_the_error():
    values = 5 * 0.8 ** np.arange(300.0)
    A, truth = hermitian(values), np.exp(values).sum()

    def error(rank):
        found = [trace_fun(A, np.exp, rank=rank, rng=draw).value for draw in range(6)]
        return np.sqrt(np.mean((np.array(found) - truth) ** 2))

    plain = error(0)
    assert error(20) <= 0.1 * plain
    assert error(None) <= 0.1 * plain


def test_standard_error_is_honest():
    values = 5 * 0.9 ** np.arange(300.0)
    A, truth = hermitian(values), np.exp(values).sum()
    found = [trace_fun(A, np.exp, rank=10, rng=draw) for draw in range(40)]
    errors, stated = np.array([r.value for r in found]) - truth, np.array([r.stderr for r in found])
    # Root mean squares of 40 draws.
    assert 0.5 <= np.sqrt(np.mean(errors**2) / np.mean(stated**2)) <= 1.6


@pytest.mark.filterwarnings("ignore::rnla._errors.ConvergenceWarning")
def test_quadratic_functions_need_two_steps():
    # A quadrature of s nodes is exact up to degree 2 s - 1, and ||A v||**2 has no error on the sphere but the spread.
    A = hermitian(np.linspace(1, 2, 100))
    found = trace_fun(A, np.square, num_probes=5, steps=2, rank=0, rng=0)
    more = trace_fun(A, np.square, num_probes=5, steps=12, rank=0, rng=0)
    assert abs(found.value - more.value) <= 1e-12 * found.value


def test_identity_and_invariant_spaces_end_the_iteration():
    for values in (np.ones(300), np.repeat([1.0, 2.0, 5.0], 100), np.r_[np.ones(299), 1e8]):
        result = trace_fun(np.diag(values), np.log1p, rank=0, num_probes=6, rng=0)
        assert abs(result.value - np.log1p(values).sum()) <= 5 * result.stderr + 1e-10
        assert result.converged
    operator = CountingOperator(2 * np.eye(300))
    assert abs(trace_fun(operator, np.log, rank=0, rng=0).value - 300 * np.log(2)) <= 1e-10
    assert operator.passes == 1


def test_too_few_steps_are_reported():
    A = hermitian(np.logspace(-6, 0, 300))
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.trace_fun: more Lanczos steps might change"):
        result = trace_fun(A, lambda x: 1 / x, num_probes=3, steps=3, rank=0, rng=0)
    assert not result.converged


# The log-determinant.


def test_the_example_of_the_specification():
    # A kernel matrix of side 800 and 1e-2 times the identity: after deflation of rank 60 ten probes of ten steps.
    A, values = kernel(800, 1e-2)
    truth = np.log(values).sum()
    result = logdet(A, num_probes=10, steps=10, rank=60, mu=1e-2, rng=0)
    assert abs(result.value - truth) <= 2e-8
    unknown = logdet(A, num_probes=10, steps=10, rank=60, rng=0)
    assert abs(unknown.value - truth) <= max(5 * unknown.stderr, 1e-6)
    assert unknown.stderr <= 1e-4
    automatic = logdet(A, mu=1e-2, rng=0)
    assert abs(automatic.value - truth) <= max(5 * automatic.stderr, 1e-6)
    assert automatic.stderr <= 1e-2


@pytest.mark.parametrize(
    ("rank", "mu", "dtype"),
    [(0, None, "float64"), (10, None, "complex128"), (10, 0.05, "float64"), (None, None, "float64"),
     (None, None, "complex128"), (None, 0.1, "complex128")],
)  # fmt: skip
def test_log_determinants_are_unbiased(dtype, rank, mu):
    values = 3 * 0.8 ** np.arange(60.0) + 0.1
    A, draws = hermitian(values, dtype), 100
    found = np.array([logdet(A, num_probes=3, steps=19, rank=rank, mu=mu, rng=draw).value for draw in range(draws)])
    # 19 steps on a spectrum of condition 31 leave an error of ((sqrt(31) - 1) / (sqrt(31) + 1))**38 = 1e-6 a value.
    assert abs(found.mean() - np.log(values).sum()) <= 5 * found.std() / draws**0.5 + 60e-6


@given(n=st.integers(1, 40), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_small_log_determinants_are_exact(n, dtype, seed):
    values = np.random.default_rng(seed).uniform(0.5, 2, n)
    A = hermitian(values, dtype, rng=seed)
    assert abs(logdet(A, rng=seed).value - np.log(values).sum()) <= 100 * n * np.finfo(dtype).eps


@pytest.mark.filterwarnings("ignore::rnla._errors.ConvergenceWarning")  # of the case without deflation
@pytest.mark.parametrize("scale", [1e150, 1e-150])
def test_extreme_scales(scale):
    A, _ = kernel(300, 1e-2)
    for options in ({"rank": 30}, {"rank": 0}, {}):
        expected = logdet(A, num_probes=4, rng=0, **options).value
        result = logdet(A * scale, num_probes=4, rng=0, **options).value
        assert abs(result - expected - 300 * np.log(scale)) <= 1e-6
    expected = trace_fun(A, np.sqrt, rank=10, num_probes=4, rng=0).value
    result = trace_fun(A * scale, np.sqrt, rank=10, num_probes=4, rng=0).value
    assert abs(result / scale**0.5 - expected) <= 1e-6


def test_single_precision():
    A, values = kernel(400, 1.0)
    result = logdet(A.astype(np.float32), rank=40, mu=1.0, rng=0)
    assert abs(result.value - np.log(values).sum()) <= 5 * result.stderr + 400 * 50 * np.finfo(np.float32).eps


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_input_agree(tmp_path, kind):
    A = hermitian(0.8 ** np.arange(70.0) + 0.1, "complex128")
    view, options = KINDS[kind](A, tmp_path), {"num_probes": 3, "steps": 10, "rng": 1}
    for rank in (0, 8):
        expected, result = (logdet(X, rank=rank, **options) for X in (A, view))
        assert abs(result.value - expected.value) <= 1e-10
        expected, result = (trace_fun(X, np.sqrt, rank=rank, **options) for X in (A, view))
        assert abs(result.value - expected.value) <= 1e-10
        assert abs(result.stderr - expected.stderr) <= 1e-10
    assert abs(logdet(view).value - logdet(A).value) <= 1e-10


def test_what_has_no_logarithm_is_refused():
    for A in (np.zeros((30, 30)), -np.eye(30), np.diag(np.r_[np.ones(29), -1]), np.diag(np.r_[np.ones(299), -3])):
        for rank in (0, 5, None):
            with pytest.raises(NotPositiveDefiniteError, match=r"^rnla\.logdet: A must be positive"):
                logdet(A, rank=rank, rng=0)
    for rank in (0, 10, None):
        with pytest.raises(NotPositiveDefiniteError):
            logdet(np.zeros((300, 300)), rank=rank, rng=0)


def test_what_is_not_hermitian_is_refused():
    for n in (30, 300):
        A = np.triu(np.ones((n, n)))
        for rank in (0, 10):
            with pytest.raises(ValueError, match=r"^rnla\.trace_fun: A must be Hermitian"):
                trace_fun(A, np.exp, rank=rank, rng=0)
            with pytest.raises(ValueError, match=r"^rnla\.logdet: A must be Hermitian"):
                logdet(A, rank=rank, rng=0)
    assert np.isfinite(logdet(hilbert(6)).value)


def test_functions_are_checked():
    A = np.diag(np.linspace(-1, 1, 300))
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match=r"^rnla\.trace_fun: f must be finite on the spectrum of A"),
    ):
        trace_fun(A, np.log, rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.trace_fun: f must map an array to a real array"):
        trace_fun(A, lambda x: 1.0, rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.trace_fun: f must map an array to a real array"):
        trace_fun(A, lambda x: x * 1j, rng=0)
    with pytest.raises(TypeError, match=r"^rnla\.trace_fun: f must be callable; got str"):
        trace_fun(A, "exp")


@pytest.mark.parametrize("call", [lambda A, **o: trace_fun(A, np.cos, **o), logdet], ids=["trace_fun", "logdet"])
def test_values_that_are_not_finite_are_refused(call):
    for n in (50, 300):
        for place in ((0, 0), (n - 1, slice(None))):
            A = np.eye(n)
            A[place] = np.nan
            for rank in (0, 10, None):
                with pytest.raises(ValueError, match=r"A must be finite"):
                    call(A, rank=rank, rng=0)


@pytest.mark.parametrize(("error", "options", "message"), [
    (ValueError, {"num_probes": 0}, "num_probes must be at least 1; got 0."),
    (TypeError, {"num_probes": 1.5}, "num_probes must be an integer; got float 1.5."),
    (ValueError, {"steps": 0}, "steps must be at least 1; got 0."),
    (ValueError, {"rank": -1}, "rank must be at least 0; got -1."),
    (ValueError, {"rank": 31}, "rank must be in 0..30 for A of shape (30, 30); got 31."),
    (ValueError, {"mu": -1.0}, "mu must be finite and not negative; got -1.0."),
    (TypeError, {"mu": "a"}, "mu must be a real number; got str 'a'."),
    (ValueError, {"rng": -1}, "rng as a seed must be a non-negative int; got -1."),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_work(error, options, message):
    A = CountingOperator(np.ones((30, 30)))
    with pytest.raises(error) as caught:
        logdet(A, **options)
    assert str(caught.value).startswith(f"rnla.logdet: {message}")
    if "mu" not in options:
        with pytest.raises(error) as caught:
            trace_fun(A, np.exp, **options)
        assert str(caught.value).startswith(f"rnla.trace_fun: {message}")
    assert A.passes == 0


def test_one_probe_and_one_step():
    A = hermitian(np.linspace(1, 2, 300))
    with pytest.warns(ConvergenceWarning):
        assert np.isfinite(trace_fun(A, np.log, num_probes=1, steps=1, rng=0).value)
    one = trace_fun(A, np.log, num_probes=1, steps=10, rank=5, rng=0)
    assert one.stderr == np.inf
    assert abs(one.value - np.log(np.linspace(1, 2, 300)).sum()) <= 10
