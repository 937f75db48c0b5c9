"""Estimates of diagonals and row norms are unbiased, exact where they can be, and the same for every kind of input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, diagonals, problems
from test_svd_inputs import KINDS, to_numpy
from test_trace import example, hermitian, without

from rnla._backend import key_from_rng
from rnla._diag import METHODS, diag, row_norms
from rnla._matrix import as_matrix
from rnla._probing import Sample, probes
from rnla.testing import CountingOperator, matrix_with_spectrum

GENERAL = ("xdiag", "diagpp", "hutchinson")


def unbiased(found, truth):
    """Say whether the mean of samples, one in each row, is within five standard errors of the truth, in all entries."""
    spread = np.sqrt(np.var(found.real, axis=0) + np.var(found.imag, axis=0)) / len(found) ** 0.5
    return np.all(np.abs(found.mean(axis=0) - truth) <= 5 * spread + 1e-13)


@pytest.mark.parametrize(
    ("name", "method", "dtype"),
    [
        *diagonals(("psd", "cancelling", "not normal"), GENERAL, ("float64", "complex128")),
        ("psd", "xnysdiag", "float64"),
        ("psd", "xnysdiag", "complex128"),
    ],
)
def test_estimates_are_unbiased(name, method, dtype):
    A = example(name, dtype)
    found = np.array([diag(A, 12, method=method, rng=draw) for draw in range(300)])
    # Fails with probability 24 * 6e-7 for normal means (complex ones: less).
    assert unbiased(found, np.diag(A))


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("m", [8, 15])
def test_row_norms_are_unbiased(dtype, m):
    A = matrix_with_spectrum(30, 24, 0.9 ** np.arange(24), rng=1, dtype=dtype) * np.linspace(0.1, 2, 30)[:, None]
    found = np.array([row_norms(A, m, rng=draw) for draw in range(400)])
    assert found.dtype == np.float64
    assert np.mean(found == 0) <= 0.02  # what is cut off at zero adds to the mean
    assert unbiased(found, np.linalg.norm(A, axis=1) ** 2)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_estimates_by_their_definition(dtype):
    """Leave each vector out for good: factor again, and multiply again."""
    A, width = example("not normal", dtype), 6
    P = example("psd", dtype)
    Omega = probes(as_matrix(A, "test"), "rademacher", key_from_rng(5, "test"), width, 0)
    general, nystrom, rows = [], [], []
    for i in range(width):
        X, x = without(Omega, i), Omega[:, i]
        Q = np.linalg.qr(A @ X)[0]
        B = Q @ (Q.conj().T @ A)
        general.append(np.diag(B) + x.conj() * ((A - B) @ x))
        norms = np.linalg.norm(B, axis=1) ** 2 + np.abs((A - B) @ x) ** 2
        rows.append(norms + 2 * ((B @ x).conj() * ((A - B) @ x)).real)
        B = P @ X @ np.linalg.solve(X.conj().T @ P @ X, X.conj().T @ P)
        nystrom.append(np.diag(B) + x.conj() * ((P - B) @ x))
    assert np.abs(diag(A, 2 * width, method="xdiag", rng=5) - np.mean(general, axis=0)).max() <= 1e-12
    assert np.abs(diag(P, width, method="xnysdiag", rng=5) - np.mean(nystrom, axis=0).real).max() <= 1e-10
    assert np.abs(row_norms(A, 2 * width, rng=5) - np.maximum(np.mean(rows, axis=0), 0)).max() <= 1e-12


def test_variance_of_the_plain_estimate_is_what_is_off_the_diagonal():
    A, m, draws = example("cancelling"), 6, 800
    found = np.var([diag(A, m, method="hutchinson", rng=draw) for draw in range(draws)], axis=0, ddof=1)
    expected = (np.linalg.norm(A, axis=1) ** 2 - np.diag(A) ** 2) / m
    # Five standard deviations of a sample variance, with an excess kurtosis of at most 2.
    assert np.all(np.abs(found / expected - 1) <= 5 * (4 / draws) ** 0.5)


@pytest.mark.parametrize(("psd", "method"), [(False, "xdiag"), (True, "xnysdiag")])
def test_deflation_pays_where_the_spectrum_decays(psd, method):
    A = hermitian(0.8 ** np.arange(200.0))

    def error(method):
        found = np.array([diag(A, 60, method=method, rng=draw) for draw in range(10)])
        return np.sqrt(np.mean((found - np.diag(A)) ** 2))

    # Of 0.8**j there is 1e-3 left after 30 vectors, and 1e-6 after 60.
    assert error(method) <= (1e-4 if psd else 1e-2) * error("hutchinson")
    assert error("diagpp") <= 0.1 * error("hutchinson")
    assert np.abs(diag(A, 60, psd=psd, rng=0) - diag(A, 60, method=method, rng=0)).max() <= 1e-12


def test_automatic_choice_of_the_plain_estimate():
    flat = hermitian(np.linspace(1, 0.9, 200))
    assert np.abs(diag(flat, 60, rng=0) - diag(flat, 60, method="hutchinson", rng=0)).max() <= 1e-12
    nearly_diagonal = np.diag(0.8 ** np.arange(200.0)) + 1e-9
    error = np.abs(diag(nearly_diagonal, 60, rng=0) - np.diag(nearly_diagonal)).max()
    assert error <= 1e-9 * 5 * (200 / 60) ** 0.5


@given(n=st.integers(1, 40), rank=st.integers(0, 6), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_low_rank_is_exact(n, rank, dtype, seed):
    rank = min(rank, n)
    A = matrix_with_spectrum(n, n, np.r_[np.ones(rank), np.zeros(n - rank)], rng=seed, dtype=dtype)
    rounding = 200 * n**0.5 * np.finfo(dtype).eps
    m = 3 * (rank + 1)
    assert np.abs(diag(A, m, method="xdiag", rng=seed) - np.diag(A)).max() <= rounding
    assert np.abs(diag(A, m, method="diagpp", rng=seed) - np.diag(A)).max() <= rounding
    assert np.abs(row_norms(A, m, rng=seed) - np.linalg.norm(A, axis=1) ** 2).max() <= rounding
    A = hermitian(np.where(np.arange(n) < rank, 1.0, 0.0), dtype, rng=seed)
    assert np.abs(diag(A, m, method="xnysdiag", rng=seed) - np.diag(A)).max() <= 5 * rounding


@given(problem=problems(sides=(1, 30)), method=st.sampled_from(METHODS))
def test_as_many_products_as_columns_are_exact(problem, method):
    A, sigma, _, seed = problem
    m, n = A.shape
    operator = CountingOperator(A)
    squares = row_norms(operator, n, rng=seed)
    assert operator.matvecs == n
    assert np.abs(squares - np.linalg.norm(A, axis=1) ** 2).max() <= problem.rounding * sigma[0]
    assert squares.dtype == A.real.dtype
    roots = row_norms(A, n, squared=False, rng=seed)
    assert np.abs(roots - np.linalg.norm(A, axis=1)).max() <= problem.rounding
    S = A[: min(m, n), : min(m, n)]
    operator = CountingOperator(S)
    assert np.array_equal(diag(operator, len(S), method=method, rng=seed), np.diag(S))
    assert operator.matvecs == len(S)


def test_row_norms_are_relative_to_each_row():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((2000, 300)) * 10.0 ** rng.uniform(-3, 3, 2000)[:, None]
    ratio = row_norms(A, 100, rng=0) / np.linalg.norm(A, axis=1) ** 2
    # 50 samples of a flat spectrum: the squared length of a row is off by sqrt(2 / 50) = 0.2, and of 2000 rows none by
    # more than five times that.
    assert np.all(np.abs(ratio - 1) <= 5 * 0.2)
    assert 0.1 <= np.std(ratio) <= 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["xdiag", "xnysdiag", "diagpp", "hutchinson"])
def test_all_kinds_of_input_agree(tmp_path, kind, method):
    A = hermitian(0.8 ** np.arange(70.0), "complex128")
    view = KINDS[kind](A, tmp_path)
    expected, result = diag(A, 30, method=method, rng=1), diag(view, 30, method=method, rng=1)
    assert np.abs(to_numpy(result) - expected).max() <= 1e-12
    assert "complex128" in str(result.dtype)
    assert np.abs(to_numpy(row_norms(view, 30, rng=1)) - row_norms(A, 30, rng=1)).max() <= 1e-12


@pytest.mark.parametrize("dtype", [*DTYPES, "int32"])
def test_precision_is_kept(dtype):
    A = (100 * example("psd", n=60)).astype(dtype)
    computed = np.dtype(dtype if dtype in DTYPES else "float64")
    for method in ("xdiag", "xnysdiag", "diagpp", "hutchinson"):
        if dtype != "int32" or method != "xnysdiag":  # rounded to integers it is not positive semidefinite
            assert diag(A, 40, method=method, rng=0).dtype == computed
    assert row_norms(A, 40, rng=0).dtype == np.zeros(0, computed).real.dtype
    assert np.abs(diag(A, 60, rng=0) - np.diag(A)).max() <= 1e-4


@pytest.mark.parametrize("scale", [1e150, 1e-150])
def test_extreme_scales(scale):
    A = example("psd", n=60)
    for method in ("xdiag", "xnysdiag", "diagpp", "hutchinson"):
        difference = diag(A * scale, 30, method=method, rng=0) / scale - diag(A, 30, method=method, rng=0)
        assert np.abs(difference).max() <= 1e-12
    for m in (30, 60):
        difference = row_norms(A * scale, m, squared=False, rng=0) / scale - row_norms(A, m, squared=False, rng=0)
        assert np.abs(difference).max() <= 1e-10


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_zero_matrix_and_one_entry(dtype):
    for method in METHODS:
        assert not diag(np.zeros((50, 50), dtype), 20, method=method, rng=0).any()
        assert diag(np.full((1, 1), 3, dtype), 1, method=method).tolist() == [3]
    assert not row_norms(np.zeros((50, 40), dtype), 20, rng=0).any()
    assert row_norms(np.full((1, 1), 3, dtype), 1).tolist() == [9]
    assert np.allclose(row_norms(np.ones((1, 60), dtype), 10, rng=0), 60, rtol=1e-5)
    assert np.allclose(row_norms(np.ones((60, 1), dtype), 1, rng=0), 1)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_refused(method):
    for place in ((0, 0), (49, slice(None)), (slice(None), 3)):
        A = np.eye(50)
        A[place] = np.nan
        for m in (20, 50):
            with pytest.raises(ValueError, match=r"^rnla\.diag: A must be finite"):
                diag(A, m, method=method, rng=0)
            with pytest.raises(ValueError, match=r"^rnla\.row_norms: A must be finite"):
                row_norms(A, m, rng=0)


@pytest.mark.parametrize(("function", "error", "options", "message"), [
    (diag, ValueError, {"num_matvecs": 0}, "num_matvecs must be at least 1; got 0."),
    (diag, TypeError, {"num_matvecs": None}, "num_matvecs must be an integer; got NoneType None."),
    (diag, ValueError, {"num_matvecs": 1, "method": "xdiag"}, "num_matvecs must be at least 2 for method 'xdiag'"),
    (diag, ValueError, {"num_matvecs": 9, "method": "bekas"}, "method must be one of 'auto', 'xdiag'"),
    (diag, ValueError, {"num_matvecs": 9, "psd": 2}, "psd must be one of True, False; got 2."),
    (diag, ValueError, {"num_matvecs": 9, "rng": -1}, "rng as a seed must be a non-negative int; got -1."),
    (row_norms, ValueError, {"num_matvecs": 0}, "num_matvecs must be at least 1; got 0."),
    (row_norms, ValueError, {"num_matvecs": 1}, "num_matvecs must be at least 2"),
    (row_norms, ValueError, {"num_matvecs": 9, "squared": None}, "squared must be one of True, False; got None."),
    (row_norms, TypeError, {"num_matvecs": 9, "rng": "a"}, "rng must be None"),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_work(function, error, options, message):
    A = CountingOperator(np.ones((30, 30)))
    with pytest.raises(error) as caught:
        function(A, **options)
    assert str(caught.value).startswith(f"rnla.{function.__name__}: {message}")
    assert A.passes == 0


def test_what_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"^rnla\.diag: A must be square; got shape \(3, 2\)"):
        diag(np.ones((3, 2)), 2)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_vectors_of_signs_that_are_kept_are_independent(n):
    for seed in range(100):  # two of five signs agree up to a sign with probability 1/16
        sample = Sample(as_matrix(np.eye(n), "test"), "rademacher", seed, "test")
        for count in (1, n - 1, n):
            sample.grow(count)
            assert np.linalg.matrix_rank(sample.Omega) == sample.count == count
        assert np.array_equal(np.abs(sample.Omega), np.ones((n, n)))
        assert np.array_equal(sample.Y, sample.Omega)
