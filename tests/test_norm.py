"""Norms are bounds or within their precision, condition numbers within a factor, and ranks right."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator
from strategies import DTYPES, NAMED, problems, rounding
from test_svd_inputs import KINDS

from rnla._errors import ConvergenceWarning
from rnla._norm import cond, norm, rank
from rnla.testing import CountingOperator, hilbert, kahan, matrix_with_spectrum, spectrum

SPECTRA = (*NAMED, "expslow", "sshape")


@given(problem=problems(sides=(1, 60)))
def test_the_spectral_norm_is_a_lower_bound_and_near(problem):
    A, sigma, _, seed = problem
    for method in ("auto", "estimate", "exact"):
        value = norm(A, method=method, rng=seed)
        assert isinstance(value, float)
        assert value <= sigma[0] + problem.rounding
        # Two steps that change it by a quarter of a per cent each leave it within one per cent on all these spectra.
        assert value >= (1 - (0 if method == "exact" else 1e-2)) * sigma[0] - problem.rounding


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
def test_the_spectral_norm_of_larger_matrices(name, shape):
    A = CountingOperator(matrix_with_spectrum(*shape, spectrum(name, 300), rng=0))
    truth = spectrum(name, 300)[0]
    for rtol in (1e-2, 1e-6):
        value = norm(A, rtol=rtol, rng=0)
        assert (1 - rtol) * truth <= value <= truth * (1 + 1e-13)
    A.passes = 0
    norm(A, rng=0)
    assert A.passes <= 2 * 25


def test_the_basis_is_restarted():
    # Values so close that a hundred columns are not enough for the precision.
    sigma = np.linspace(1, 0, 3000) ** 0.25
    A = sp.dia_array((sigma[None], [0]), shape=(3000, 3000)).tocsr()
    assert 1 - 1e-7 <= norm(A, rtol=1e-8, rng=0) <= 1 + 1e-13


def test_a_spectral_norm_that_has_not_settled_is_reported(monkeypatch):
    monkeypatch.setattr("rnla._norm.MAX_STEPS", 3)
    A = CountingOperator(np.diag(np.linspace(1, 2, 200)))
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.norm: 3 steps made"):
        assert norm(A, rtol=1e-9, rng=0) <= 2 * (1 + 1e-13)


@given(problem=problems(sides=(1, 60)), known=st.booleans())
def test_the_frobenius_norm(problem, known):
    A, sigma, _, seed = problem
    truth = np.linalg.norm(sigma)
    if known:
        assert abs(norm(A, "fro", rng=seed) - truth) <= problem.rounding * len(sigma) ** 0.5
        return
    value = norm(CountingOperator(A), "fro", rng=seed)
    # The standard error asked for is one per cent; six of it.
    assert abs(value - truth) <= 6e-2 * truth + problem.rounding


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float64") for name in SPECTRA] + [("slow", "complex128"), ("exp", "complex128")]
)
def test_the_frobenius_estimate_is_unbiased(name, dtype):
    sigma = spectrum(name, 60)
    A = CountingOperator(matrix_with_spectrum(80, 60, sigma, rng=0, dtype=dtype))
    squares = np.array([norm(A, "fro", rtol=0.3, rng=draw) ** 2 for draw in range(200)])
    # Five standard errors: 6e-7.
    assert abs(squares.mean() - np.sum(sigma**2)) <= 5 * squares.std() / 200**0.5 + 1e-12


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nuclear_norm(name, dtype):
    sigma = spectrum(name, 150)
    A = matrix_with_spectrum(200, 150, sigma, rng=0, dtype=dtype)
    assert abs(norm(A, "nuc") - sigma.sum()) <= 150 * rounding(A, 1.0)
    # The standard error asked for is one per cent; five of it.
    assert abs(norm(A, "nuc", method="estimate", rng=0) - sigma.sum()) <= 5e-2 * sigma.sum()


@given(problem=problems(sides=(1, 30)))
def test_the_nuclear_norm_of_small_matrices(problem):
    A, sigma, _, seed = problem
    assert abs(norm(A, "nuc", rng=seed) - sigma.sum()) <= len(sigma) * problem.rounding
    # Squares lose what is below the root of the precision.
    lost = len(sigma) * (10 * problem.eps) ** 0.5 * sigma[0]
    with warnings.catch_warnings():
        # With as few rows the probes are many times the same: the standard error may stay just above rtol, and is said.
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimate = norm(A, "nuc", method="estimate", rng=seed)
    assert abs(estimate - sigma.sum()) <= 6e-2 * sigma.sum() + lost


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ord", [2, "fro", "nuc"])
def test_all_kinds_have_the_same_norms(tmp_path, kind, ord):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype="complex128")
    view = KINDS[kind](A, tmp_path)
    # From the same random vectors; the short side may be the other one, and squares of a sum in another order.
    assert abs(norm(view, ord, method="estimate", rng=3) - norm(A, ord, method="estimate", rng=3)) <= 1e-2
    truth = {2: 1.0, "fro": np.linalg.norm(spectrum("poly1", 70)), "nuc": spectrum("poly1", 70).sum()}[ord]
    assert abs(norm(view, ord, rng=3) - truth) <= 0.05 * truth
    if ord != "fro" or not kind.startswith(("linear", "matvec", "functions")):
        assert abs(norm(view, ord, method="exact") - truth) <= 1e-12 * truth


@pytest.mark.parametrize("ord", [2, "fro", "nuc"])
@pytest.mark.parametrize("method", ["auto", "estimate", "exact"])
@pytest.mark.parametrize("scale", [1e150, 1e-150, 1e200, 1e-200])
def test_extreme_scales(ord, method, scale):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    assert abs(norm(A * scale, ord, method=method, rng=0) / scale - norm(A, ord, method=method, rng=0)) <= 1e-10


@pytest.mark.parametrize("ord", [2, "fro", "nuc"])
@pytest.mark.parametrize("method", ["auto", "estimate", "exact"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_zero_and_of_vectors(ord, method, dtype):
    for shape in ((1, 1), (1, 90), (90, 1), (80, 90)):
        assert norm(np.zeros(shape, dtype), ord, method=method, rng=0) == 0
    for shape in ((1, 1), (1, 90), (90, 1)):
        A = np.full(shape, 2, dtype)
        expected = 2 * max(shape) ** 0.5
        assert abs(norm(A, ord, method=method, rng=0) - expected) <= 0.02 * expected


@pytest.mark.parametrize("ord", [2, "fro", "nuc"])
@pytest.mark.parametrize("method", ["auto", "estimate", "exact"])
def test_norms_of_what_is_not_finite(ord, method):
    for value in (np.nan, np.inf):
        for place in ((0, 0), (89, slice(None)), (slice(None), 69)):
            A = np.ones((90, 70))
            A[place] = value
            with pytest.raises(ValueError, match=r"^rnla\.norm: A must be finite"):
                norm(A, ord, method=method, rng=0)


# Condition numbers.


@given(problem=problems(sides=(1, 40)))
def test_exact_condition_numbers(problem):
    A, sigma, _, _ = problem
    value = cond(A, method="exact")
    if sigma[-1] <= 1e3 * problem.rounding:
        assert value >= 1 / (1e4 * len(sigma) * problem.eps * max(A.shape))
    else:
        assert abs(value * sigma[-1] / sigma[0] - 1) <= 10 * problem.rounding / sigma[-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(900, 20), (20, 900)])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_sketched_condition_numbers_are_within_a_factor_of_three(dtype, shape, form):
    for log in (0, 2, 5 if np.dtype(dtype) in ("float32", "complex64") else 12):
        A = matrix_with_spectrum(*shape, np.logspace(0, -log, 20), rng=0, dtype=dtype)
        view = sp.csr_array(A) if form == "sparse" else A
        for seed in range(5):
            ratio = cond(view, rng=seed) / 10.0**log
            # 4 n rows keep all lengths within 1 / 2 and 3 / 2, up to deviations that are larger for small n.
            assert 1 / 3 <= ratio <= 3.6
        assert cond(view, method="estimate", rng=0) == cond(view, rng=0)
        assert abs(cond(view, method="exact") / 10.0**log - 1) <= 0.1


def test_coherent_rows_are_not_missed():
    A = np.zeros((5000, 10))
    A[:10] = np.diag(10.0 ** -np.arange(10))
    for seed in range(10):
        assert 1 / 3 <= cond(A, rng=seed) / 1e9 <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_have_the_same_condition_number(tmp_path, kind):
    A = matrix_with_spectrum(90, 9, spectrum("poly1", 9), rng=0, dtype="complex128")
    assert 1 / 3 <= cond(KINDS[kind](A, tmp_path), rng=0) / 9 <= 3
    assert 1 / 3 <= cond(KINDS[kind](A.T.copy(), tmp_path), rng=0) / 9 <= 3
    assert abs(cond(KINDS[kind](A, tmp_path), method="exact") - 9) <= 1e-9


def test_condition_numbers_of_singular_and_scaled_matrices():
    assert cond(np.zeros((90, 3))) == np.inf
    assert cond(np.zeros((3, 3))) == np.inf
    assert cond(np.array([[3.0]])) == 1
    assert cond(np.ones((900, 3)), rng=0) >= 1e14
    for scale in (1e150, 1e-150):
        assert cond(np.full((90, 1), scale), rng=0) == 1
        assert abs(cond(np.diag([4.0, 1.0]) * scale) - 4) <= 1e-12
    assert 1e12 <= cond(hilbert(10)) <= 1e14
    with pytest.raises(ValueError, match=r"^rnla\.cond: method 'estimate' needs the entries of A along its long side"):
        cond(CountingOperator(np.ones((90, 3))), method="estimate")
    with pytest.raises(ValueError, match=r"^rnla\.cond: A must be finite"):
        cond(np.full((90, 3), np.nan))
    with pytest.raises(ValueError, match=r"^rnla\.cond: method must be one of 'auto', 'exact', 'estimate'; got 'svd'"):
        cond(np.eye(3), method="svd")


# Ranks.


@given(
    m=st.integers(1, 150), n=st.integers(1, 150), r=st.integers(0, 150), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_ranks_of_matrices_of_exact_rank(m, n, r, dtype, seed):
    r = min(m, n, r)
    A = matrix_with_spectrum(m, n, np.r_[np.linspace(1, 0.1, r), np.zeros(min(m, n) - r)], rng=seed, dtype=dtype)
    assert rank(A, rng=seed) == r


def test_the_examples_that_others_get_wrong():
    rng = np.random.default_rng(0)
    for seed in range(10):
        A = rng.standard_normal((500, 60)) @ rng.standard_normal((60, 400))
        assert rank(A, rng=seed) == 60
        B = rng.uniform(size=(100, 52))
        assert rank(B @ B.T, rtol=1e-10, rng=seed) == 52
        assert rank(B @ B.T, rng=seed) == 52


@given(
    name=st.sampled_from(("exp", "poly2", "graded")), log=st.floats(-11, -1),
    shape=st.sampled_from([(120, 90), (90, 120)]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_ranks_at_a_threshold_within_a_decaying_spectrum(name, log, shape, seed):
    sigma = np.logspace(0, -13, 90) if name == "graded" else spectrum(name, 90)
    A = matrix_with_spectrum(*shape, sigma, rng=seed)
    rtol = 10.0**log
    found = rank(A, rtol=rtol, rng=seed)
    # Values are right but for those within ten per cent of the threshold, which a projection may hold to be smaller.
    assert np.sum(sigma > 1.1 * rtol * sigma[0]) <= found <= np.sum(sigma > 0.999 * rtol * sigma[0])


def test_the_rank_of_larger_matrices_takes_few_products():
    A = CountingOperator(matrix_with_spectrum(600, 500, np.ones(70), rng=0))
    assert rank(A, rng=0) == 70
    assert A.matvecs == 128
    assert A.passes == 3


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_have_the_same_rank(tmp_path, kind):
    A = matrix_with_spectrum(90, 70, np.r_[np.ones(45), np.full(25, 1e-9)], rng=0, dtype="complex128")
    assert rank(KINDS[kind](A, tmp_path), rtol=1e-6, rng=0) == 45
    assert rank(KINDS[kind](A, tmp_path), rng=0) == 70
    assert rank(KINDS[kind](A[:, :8].copy(), tmp_path), rng=0) == 8


def test_ranks_of_special_matrices():
    assert rank(np.zeros((50, 40))) == 0
    assert rank(np.array([[5.0]])) == 1
    assert rank(np.ones((1, 90))) == rank(np.ones((90, 1))) == 1
    assert rank(kahan(90), rng=0) == np.linalg.matrix_rank(kahan(90))
    assert abs(rank(hilbert(100), rng=0) - np.linalg.matrix_rank(hilbert(100))) <= 1  # a value at the threshold
    for scale in (1e150, 1e-150):
        assert rank(scale * matrix_with_spectrum(90, 70, np.ones(33), rng=0), rng=0) == 33
    assert isinstance(rank(np.eye(3)), int)
    assert rank(np.eye(100, dtype=np.int64)) == 100


def test_what_is_not_finite_has_no_rank():
    A = np.ones((90, 70))
    A[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"^rnla\.rank: A must be finite"):
        rank(A)


@pytest.mark.parametrize(("function", "error", "options", "message"), [
    (norm, ValueError, {"ord": 1}, "ord must be one of 2, 'fro', 'nuc'; got 1."),
    (norm, ValueError, {"method": "lanczos"}, "method must be one of 'auto', 'exact', 'estimate'; got 'lanczos'."),
    (norm, ValueError, {"rtol": -1}, "rtol must be finite and not negative; got -1."),
    (norm, TypeError, {"rng": "a"}, "rng must be None"),
    (norm, ValueError, {"ord": "fro", "method": "exact"}, "method 'exact' needs the entries of A"),
    (rank, ValueError, {"rtol": -1}, "rtol must be finite and not negative; got -1."),
    (rank, TypeError, {"rtol": "a"}, "rtol must be a real number; got str 'a'."),
    (cond, ValueError, {"rng": -1}, "rng as a seed must be a non-negative int; got -1."),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_work(function, error, options, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(error) as caught:
        function(A, **options)
    assert str(caught.value).startswith(f"rnla.{function.__name__}: {message}")
    assert A.passes == 0


def test_an_adjoint_that_is_missing():
    A = LinearOperator((90, 70), matvec=lambda x: np.ones(90) * x.sum(), dtype=float)
    for call in (norm, lambda A: norm(A, "fro")):
        with pytest.raises(TypeError, match=r"^rnla\.norm: A must provide rmatvec"):
            call(A)
    assert rank(A, rng=0) == 1


def test_the_frobenius_norm_of_small_matrices_is_not_lost_where_signs_repeat():
    A = np.random.default_rng(0).standard_normal((6, 6))
    for seed in range(100):  # 12 products are enough to know all of it
        assert abs(norm(A, "fro", method="estimate", rng=seed) / np.linalg.norm(A) - 1) <= 1e-12


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_columns_are_not_singular_for_their_sketch(n):
    A = np.zeros((200, n))
    A[:2, 0] = 1.0  # of two rows of signs half agree
    A[2 : n + 1, 1:] = np.eye(n - 1)
    for seed in range(200):  # the failure probability of 64 rows of signs is below 1e-9
        assert cond(A, rng=seed) <= 3 * np.sqrt(2.0)
