"""Randomly pivoted Cholesky reads few columns, is exact in them, and obeys its law and its bound."""

import math
import pickle

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from semidefinite import KINDS, semidefinite, to_numpy, with_eigenvalues
from strategies import DTYPES, rounding

from rnla._errors import ConvergenceWarning, NotPositiveDefiniteError
from rnla._kernel_matrix import KernelMatrix
from rnla._rpcholesky import METHODS, CholeskyResult, rpcholesky
from rnla.testing import CountingOperator, CountingRows, spectrum

BY_PRODUCTS = ("linear operator", "matvec", "functions")  # kinds that have no diagonal


class Counted:
    """A matrix of which columns and blocks are asked for, with the number of entries read."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype
        self.entries, self.largest = 0, 0

    def _count(self, X):
        self.entries += X.size
        self.largest = max(self.largest, X.size)
        return X

    def diag(self):
        return self._count(self.A.diagonal())

    def columns(self, S):
        return self._count(self.A[:, S])

    def submatrix(self, S, T):
        return self._count(self.A[np.ix_(S, T)])


def wide(result):
    F = np.asarray(result.F)
    F = F.astype(np.promote_types(F.dtype, np.float64))
    return F @ F.conj().T


def clustered(n, seed=0):
    """Return points in clusters of very different sizes, and a few far away."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, 2)) * 8
    sizes = np.geomspace(1, 100, 12)
    which = rng.choice(12, size=n - 20, p=sizes / sizes.sum())
    return np.concatenate([centres[which] + rng.standard_normal((n - 20, 2)), 40 * rng.standard_normal((20, 2))])


# What holds for every draw.


@pytest.mark.parametrize("method", METHODS)
@given(problem=semidefinite(), block_size=st.sampled_from(["auto", 1, 3, 50]))
def test_columns_of_the_pivots_are_exact(method, problem, block_size):
    A, w, k, seed = problem
    F, pivots = result = rpcholesky(A, k, method=method, block_size=block_size, rng=seed)
    r = len(pivots)
    assert r <= k
    assert F.shape == (len(A), r)
    assert F.dtype == A.dtype
    assert len(set(pivots.tolist())) == r
    # A pivot is at least 100 eps of its diagonal entry: dividing by its root leaves no more than rounding.
    assert np.abs(A[:, pivots] - wide(result)[:, pivots]).max(initial=0.0) <= problem.rounding
    # F[pivots] is a Cholesky factor: lower triangular, with a positive diagonal.
    L = F[pivots]
    assert np.abs(np.triu(L, 1)).max(initial=0.0) <= 5 * math.sqrt(np.finfo(A.dtype).eps * max(w[0], 0.0))
    assert np.all(np.diagonal(L).real > 0)


@pytest.mark.parametrize("method", METHODS)
@given(problem=semidefinite())
def test_approximation_lies_below_the_matrix_and_its_trace_error_is_true(method, problem):
    A, w, k, seed = problem
    result = rpcholesky(A, k, method=method, rng=seed)
    rest = A - wide(result)
    slack = len(A) * problem.rounding  # entries below 100 eps of the diagonal count as zero
    assert np.linalg.eigvalsh(rest)[0] >= -slack
    assert abs(np.trace(rest).real - result.trace_error) <= slack
    # Eckart-Young in the trace norm.
    assert result.trace_error >= w[result.rank :].sum() - slack


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_of_rank_six_ends_at_six(method, dtype):
    rng = np.random.default_rng(0)
    G = rng.standard_normal((80, 6)) + (1j * rng.standard_normal((80, 6)) if np.dtype(dtype).kind == "c" else 0)
    A = (G @ G.conj().T).astype(dtype)
    result = rpcholesky(A, 30, method=method, rng=1)
    assert result.rank == 6
    assert result.F.shape == (80, 6)
    assert result.info.message == "rank of A reached"
    assert result.info.converged
    assert np.linalg.norm(A - wide(result)) <= 10 * rounding(A, np.linalg.norm(A, 2))


@pytest.mark.parametrize("method", METHODS)
def test_nasty_matrices(method):
    for A, rank in [
        (np.zeros((5, 5)), 0), (np.ones((5, 5)), 1), (np.array([[3.0]]), 1), (np.eye(7), 7),
        (np.diag([1.0, 0.0, 2.0]), 2), (np.kron(np.eye(3), np.ones((4, 4))), 3),
    ]:  # fmt: skip
        result = rpcholesky(A, len(A), method=method, rng=0)
        assert result.rank == rank
        assert np.abs(A - result.to_dense()).max() <= rounding(A, 1.0)
        assert result.trace_error == 0.0
    result = rpcholesky(np.zeros((5, 5)), 3, method=method, rng=0)
    assert (result @ np.ones((5, 2))).shape == (5, 2)


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e150), ("float64", 1e-150), ("complex64", 1e30),
                                              ("float32", 1e-30)])  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_scale_changes_nothing_but_the_factor(dtype, scale, method):
    A = with_eigenvalues(spectrum("exp", 40), rng=0, dtype=dtype)
    scale = 2.0 ** round(math.log2(scale))
    plain = rpcholesky(A, 12, method=method, rng=0)
    result = rpcholesky(A * A.real.dtype.type(scale), 12, method=method, rng=0)
    assert plain.pivots.tolist() == result.pivots.tolist()
    assert np.abs(result.F / np.sqrt(scale) - plain.F).max() <= 100 * rounding(A, 1.0)


# Entries read.


@given(problem=semidefinite(dtypes=("float64", "complex128"), names=("slow", "poly1", "flat"), sides=(2, 40)))
def test_simple_reads_the_diagonal_and_one_column_for_each_pivot(problem):
    for method in ("simple", "greedy", "uniform"):
        source = Counted(problem.A)
        result = rpcholesky(source, problem.k, method=method, rng=problem.seed)
        assert source.entries == (result.rank + 1) * len(problem.A)


@pytest.mark.parametrize("method", ["accelerated", "block"])
def test_blocks_read_little_more(method):
    n, k = 600, 60
    source = Counted(KernelMatrix(clustered(n), "gaussian", 2.0).columns(np.arange(n)))
    result = rpcholesky(source, k, method=method, rng=0)
    rounds = len(result.info.history)
    assert result.rank == k
    assert rounds < k
    # Of every block of proposals the entries among themselves are read too.
    assert (k + 1) * n < source.entries <= (k + 1) * n + rounds * result.info.block_size**2 + result.info.block_size * n
    assert source.largest <= result.info.block_size * n


def test_twenty_thousand_points_by_columns_only():
    n, k = 20_000, 40
    K = KernelMatrix(clustered(n), "gaussian", 3.0)
    result = rpcholesky(K, k, rng=0)
    assert result.rank == k
    rounds = len(result.info.history)
    assert K.evaluations <= (k + 1) * n + rounds * result.info.block_size**2
    # The interpolation property, at a sample of entries.
    S = np.random.default_rng(0).integers(0, n, 50)
    assert np.abs(K.submatrix(S, result.pivots) - result.F[S] @ result.F[result.pivots].T).max() <= 1e-13


# The law.


def pairs_of_pivots(method, A, draws, block_size):
    """Count the ordered pairs of the first two pivots."""
    counts = np.zeros((len(A), len(A)))
    for seed in range(draws):
        counts[tuple(rpcholesky(A, 2, method=method, block_size=block_size, check=False, rng=seed).pivots)] += 1
    return counts


def law_of_pairs(A):
    """Return the probability of each ordered pair of pivots under the law of the simple method."""
    d = np.diagonal(A)
    first = d / d.sum()
    rest = np.maximum(d[None, :] - A**2 / d[:, None], 0.0)  # row s: diagonal after pivot s
    np.fill_diagonal(rest, 0.0)
    return first[:, None] * rest / rest.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("method", "block_size"), [("simple", "auto"), ("accelerated", 2), ("accelerated", 8)])
def test_pivots_follow_the_law_of_the_simple_method(method, block_size):
    A = with_eigenvalues(np.array([1.0, 0.4, 0.1, 0.02, 0.01, 0.001]), rng=3) + np.diag([0, 0, 0.3, 0, 0, 0.05])
    draws = 1500
    expected = law_of_pairs(A) * draws
    counts = pairs_of_pivots(method, A, draws, block_size)
    # Pairs that are expected less than five times count as one class, if there are any that can happen.
    often = expected >= 5
    rare = [expected[~often].sum()] if (~often).any() and expected[~often].sum() > 0 else []
    observed = np.append(counts[often], counts[~often].sum() if rare else [])
    wanted = np.append(expected[often], rare)
    assert rare or counts[~often].sum() == 0
    statistic = np.sum((observed - wanted) ** 2 / wanted)
    # A chi-square test at level 1e-3, with fixed seeds.
    assert statistic <= chi2.isf(1e-3, len(wanted) - 1)


def test_accelerated_and_simple_have_the_same_mean_error():
    K = KernelMatrix(clustered(300), "gaussian", 2.0).columns(np.arange(300))
    errors = {
        method: np.array([rpcholesky(K, 30, method=method, check=False, rng=seed).trace_error for seed in range(60)])
        for method in ("simple", "accelerated")
    }
    a, b = errors.values()
    # Two means of one law: five standard errors of their difference fail with a probability of 6e-7.
    assert abs(a.mean() - b.mean()) <= 5 * math.sqrt((a.var() + b.var()) / 60)


@pytest.mark.parametrize("method", ["simple", "accelerated"])
@pytest.mark.parametrize("name", ["poly1", "poly2", "exp", "step"])
def test_mean_trace_error_is_within_its_bound(method, name):
    n, r, e, draws = 100, 5, 1.0, 40
    w = spectrum(name, n)
    A = with_eigenvalues(w, rng=0)
    tail = w[r:].sum()
    k = min(n, math.ceil(r / e + r * math.log(1 / (e * tail / w.sum()))))
    errors = [rpcholesky(A, k, method=method, rng=seed).trace_error for seed in range(draws)]
    # CETW, Theorem 5.1 (expectation); the mean of 40 draws has been well below it.
    assert np.mean(errors) <= (1 + e) * tail


def test_outliers_mislead_the_greedy_choice_only():
    n, k = 1000, 30
    rng = np.random.default_rng(0)
    # A smooth bulk, and points so far apart that each is a rank of its own with the same diagonal.
    X = np.concatenate([rng.standard_normal((n - 60, 2)), 1000 * np.arange(1, 61)[:, None] * [1.0, 1.0]])
    K = KernelMatrix(X, "gaussian", 1.0)
    error = {method: rpcholesky(K, k, method=method, rng=0).trace_error / n for method in METHODS}
    assert error["greedy"] > 1.5 * error["simple"]
    assert error["accelerated"] <= 1.3 * error["simple"]
    assert error["block"] <= 1.5 * error["simple"]


# To a precision.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [None, 60])
def test_precision_is_met_with_the_first_pivot_that_meets_it(method, k):
    A = with_eigenvalues(spectrum("exp", 80), rng=0)
    result = rpcholesky(A, k, rtol=1e-2, method=method, rng=0)
    assert result.info.converged
    assert result.info.message == "precision met"
    assert result.trace_error <= 1e-2 * np.trace(A)
    rest = np.trace(A) - np.cumsum(np.sum(np.abs(result.F) ** 2, axis=0))
    assert np.all(rest[:-1] > 1e-2 * np.trace(A))


def test_rank_reached_before_the_precision_is_reported():
    A = with_eigenvalues(spectrum("slow", 80), rng=0)
    with pytest.warns(ConvergenceWarning, match=r"rnla\.rpcholesky: rank 5 reached before the precision"):
        result = rpcholesky(A, 5, rtol=1e-3, rng=0)
    assert not result.info.converged


@pytest.mark.parametrize("method", METHODS)
def test_callback_ends_the_elimination(method):
    A = with_eigenvalues(spectrum("slow", 80), rng=0)
    seen = []

    def stop(record):
        seen.append(record)
        if record.iteration == 2:
            raise StopIteration

    result = rpcholesky(A, 60, method=method, block_size=5, rng=0, callback=stop)
    assert len(seen) == 2
    assert 2 <= result.rank < 60
    assert (result.info.converged, result.info.message) == (False, "ended by the callback")
    assert seen[1].error == pytest.approx(result.trace_error / np.trace(A))


# Inputs.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["accelerated", "simple"])
def test_all_kinds_of_input_agree(tmp_path, kind, method):
    A = with_eigenvalues(spectrum("exp", 60), rng=0, dtype="complex128")
    expected = rpcholesky(A, 12, method=method, rng=2)
    options = {"diag": A.diagonal().real} if kind in BY_PRODUCTS else {}
    F, pivots = rpcholesky(KINDS[kind](A, tmp_path), 12, method=method, rng=2, **options)
    assert to_numpy(pivots).tolist() == expected.pivots.tolist()
    assert np.abs(to_numpy(F) - expected.F).max() <= rounding(A, 100.0)


def test_products_are_with_unit_vectors_and_need_the_diagonal():
    A = with_eigenvalues(spectrum("exp", 60), rng=0)
    source = CountingOperator(A)
    rpcholesky(source, 12, method="simple", diag=A.diagonal(), rng=0)
    assert source.matvecs == 12
    with pytest.raises(ValueError, match=r"^rnla\.rpcholesky: diag must be given"):
        rpcholesky(source, 12, rng=0)
    rows = CountingRows(A, 16)
    result = rpcholesky(rows, 12, method="simple", rng=0)
    assert rows.passes == 13
    assert result.info.passes == 12


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "bool"])
def test_precision_of_the_input_is_kept(dtype):
    A = np.eye(30, dtype=dtype)
    assert rpcholesky(A, 5, rng=0).F.dtype == (np.dtype(dtype) if dtype in DTYPES else np.float64)


@pytest.mark.parametrize(
    "place", ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("method", METHODS)
def test_result_stays_on_the_device_of_the_input(place, dtype, method):
    xp, device = place
    A = xp.asarray(with_eigenvalues(spectrum("exp", 40), rng=0, dtype=dtype), device=device)
    for options in ({"k": 6}, {"rtol": 1e-2}):
        F, pivots = result = rpcholesky(A, method=method, rng=0, **options)
        for X in (F, pivots, result.to_dense(), result @ A):
            assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
            assert array_api_compat.device(X) == array_api_compat.device(A)
        assert F.dtype == A.dtype


def test_a_seed_gives_one_result_and_a_generator_is_advanced_once():
    A = with_eigenvalues(spectrum("slow", 40), rng=0)
    for method in ("accelerated", "block", "simple", "uniform"):
        first, again, other = (rpcholesky(A, 5, method=method, rng=seed) for seed in (3, 3, 4))
        assert np.array_equal(first.F, again.F)
        assert first.pivots.tolist() != other.pivots.tolist()
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    rpcholesky(A, 4, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


def test_result_is_an_operator_and_can_be_pickled():
    A = with_eigenvalues(spectrum("exp", 40), rng=0, dtype="complex128")
    result = rpcholesky(A, 10, rng=0)
    again = pickle.loads(pickle.dumps(result))
    assert isinstance(again, CholeskyResult)
    assert np.array_equal(again.F, result.F)
    assert (again.trace_error, again.info) == (result.trace_error, result.info)
    assert result.H is result
    assert result.shape == (40, 40)
    X = np.random.default_rng(0).standard_normal((40, 3))
    assert np.abs(result @ X - wide(result) @ X).max() <= rounding(A, 10.0)
    assert "F(40, 10), pivots(10,)" in repr(result)


# What is refused.


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [(3, 3), (slice(None), 3)])
def test_values_that_are_not_finite_are_refused(value, method, place):
    A = with_eigenvalues(spectrum("flat", 20), rng=0)
    A[place] = value
    A[place[::-1]] = value
    with pytest.raises(ValueError, match=r"^rnla\.rpcholesky: A must be finite"):
        rpcholesky(A, 20, method=method, rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.rpcholesky: A must be finite"):
        rpcholesky(Counted(A), 20, method=method, rng=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convert", [np.asarray, KINDS["sparse csr"]])
def test_a_matrix_that_is_visibly_not_hermitian_is_refused(dtype, convert):
    A = with_eigenvalues(spectrum("exp", 60), rng=0, dtype=dtype)
    skew = np.triu(np.ones((60, 60)), 1) * np.abs(A).max() * 0.1
    B = (A + skew).astype(dtype)
    B = convert(B) if convert is np.asarray else convert(B, None)
    with pytest.raises(ValueError, match=r"^rnla\.rpcholesky: A must be Hermitian"):
        rpcholesky(B, 5, rng=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", [True, False])
def test_a_matrix_that_is_clearly_indefinite_is_refused(method, dtype, check):
    rng = np.random.default_rng(0)
    G = rng.standard_normal((20, 3)).astype(dtype)
    for A in (
        -np.eye(20),
        np.diag(np.r_[np.ones(10), -np.ones(10)]),  # the trace cancels
        np.kron(np.eye(10), [[1.0, 2.0], [2.0, 1.0]]),  # the diagonal is positive
        G @ G.T - 0.5 * np.outer(G[:, 0], G[:, 0]) * 3,
    ):
        with pytest.raises(NotPositiveDefiniteError, match=r"^rnla\.rpcholesky: A must be positive semidefinite"):
            rpcholesky(A.astype(dtype), 20, method=method, check=check, rng=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("method", METHODS)
def test_rounding_of_small_pivots_is_no_indefiniteness(method, dtype, d):
    # Uniform pivots are often small: dividing by their root lifts the rounding of an entry to that of a square root.
    X = clustered(250, d) @ np.random.default_rng(0).standard_normal((2, d))
    for kernel in ("gaussian", "matern52", "matern12"):
        A = KernelMatrix(X.astype(dtype), kernel, 2.0 * d**0.5)
        for seed in range(3):
            result = rpcholesky(A, 150, method=method, rng=seed)
            assert 0 <= result.trace_error <= 250


def test_entries_beyond_a_zero_diagonal_are_seen():
    with pytest.raises(NotPositiveDefiniteError):
        rpcholesky(np.ones((20, 20)) - np.eye(20), 5, rng=0)


INVALID = {
    "k zero": ({"k": 0}, ValueError, "k must be in 1..20"),
    "k too large": ({"k": 21}, ValueError, "k must be in 1..20"),
    "k no integer": ({"k": 2.0}, TypeError, "k must be an integer"),
    "nothing asked": ({"k": None}, ValueError, "one of k and rtol must be given"),
    "rtol": ({"rtol": -1.0}, ValueError, "rtol must be finite and not negative"),
    "method": ({"method": "random"}, ValueError, "method must be one of"),
    "block_size": ({"block_size": 0}, ValueError, "block_size must be at least 1"),
    "block_size text": ({"block_size": "big"}, TypeError, "block_size must be an integer"),
    "diag": ({"diag": np.ones(19)}, ValueError, r"diag must have shape \(20,\)"),
    "check": ({"check": 2}, ValueError, "check must be one of True, False"),
    "rng": ({"rng": -1}, ValueError, "rng as a seed must be a non-negative int"),
    "callback": ({"callback": 3}, TypeError, "callback must be callable"),
}


@pytest.mark.parametrize("case", INVALID)
def test_arguments_out_of_range_are_refused(case):
    options, error, text = INVALID[case]
    with pytest.raises(error, match=rf"^rnla\.rpcholesky: {text}"):
        rpcholesky(np.eye(20), **{"k": 3, **options})


@pytest.mark.parametrize(("A", "error"), [(np.ones((3, 4)), ValueError), (np.ones(3), ValueError), ("A", TypeError)])
def test_what_is_no_square_matrix_is_refused(A, error):
    with pytest.raises(error, match=r"^rnla\.rpcholesky: A must be"):
        rpcholesky(A, 1)


def test_objects_that_break_their_promise_are_refused():
    for name, wrong in [("columns", lambda S: np.ones((19, len(S)))), ("submatrix", lambda S, T: np.ones(3)),
                        ("diag", lambda: np.ones(3)), ("diag", lambda: None)]:  # fmt: skip
        A = Counted(np.eye(20))
        setattr(A, name, wrong)
        with pytest.raises((ValueError, TypeError), match=r"^rnla\.rpcholesky: (A\.|diag)"):
            rpcholesky(A, 3, rng=0)
    A = Counted(np.eye(20))
    A.dtype = np.dtype("int32")
    with pytest.raises(TypeError, match=r"^rnla\.rpcholesky: A must have dtype"):
        rpcholesky(A, 3)
    A.shape = (20, 19)
    with pytest.raises(ValueError, match=r"^rnla\.rpcholesky: A must be square"):
        rpcholesky(A, 3)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_products_of_the_diagonal_may_be_out_of_range(scale):
    A = with_eigenvalues(1.0 / np.arange(1.0, 31.0), rng=0)
    found, wanted = (rpcholesky(X, 5, rng=0) for X in (A * scale, A))
    assert found.pivots.tolist() == wanted.pivots.tolist()
    assert abs(found.trace_error / scale / wanted.trace_error - 1) <= 1e-12
