"""Columns and rows are distinct entries of A, and what they span is as good as the theorems say."""

import pickle

import array_api_compat
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
from hypothesis import given
from strategies import DTYPES, problems, rounding
from test_svd_inputs import KINDS, to_numpy

from rnla._cur import METHODS, cur
from rnla._errors import ConvergenceWarning
from rnla.testing import CountingOperator, assert_orthonormal, hilbert, kahan, matrix_with_spectrum, spectrum

CORES = ("optimal", "cross")
GREEDY = ("arp", "osinsky", "deim", "qdeim", "lupp", "cpqr")


def tail(sigma, k):
    return float(np.linalg.norm(sigma[k:]))


def basis(C):
    return scipy.linalg.qr(C, mode="economic")[0]


def column_error(A, cols):
    Q = basis(A[:, cols])
    return np.linalg.norm(A - Q @ (Q.conj().T @ A))


# What a CUR decomposition is.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("core", CORES)
@given(problem=problems())
def test_columns_and_rows_are_distinct_and_those_of_the_matrix(method, core, problem):
    A, _, k, seed = problem
    C, U, R = result = cur(A, k, method=method, core=core, rng=seed)
    cols, rows = result.cols, result.rows
    r = len(cols)
    assert r == result.info.rank <= k
    assert len(set(cols.tolist())) == r
    assert len(set(rows.tolist())) == len(rows)
    assert len(rows) <= (min(2 * r, A.shape[0]) if core == "cross" else r)
    assert np.array_equal(C, A[:, cols])
    assert np.array_equal(R, A[rows])
    assert U.shape == (r, len(rows))
    assert U.dtype == A.dtype
    assert result.shape == A.shape
    assert result.info.message == ("complete" if r == k else f"found {r} independent of k = {k}")
    assert np.isfinite(result.to_dense()).all()


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems())
def test_the_optimal_core_is_the_projection_on_columns_and_rows(method, problem):
    A, sigma, k, seed = problem
    result = cur(A, k, method=method, rng=seed)
    right = result.factors[1]
    if not result.info.rank:
        return
    wide = A.astype(np.promote_types(A.dtype, float))
    error = np.linalg.norm(wide - result.to_dense()) ** 2
    # ||A - P_C A P_R||^2 is at most the sum of both one-sided errors. Bases of C and of R are as accurate as rounding
    # of A against the smallest value that counted as independent: measured by the bases of the result itself.
    assert_orthonormal(right.conj().T)
    P_R = right.conj().T.astype(wide.dtype)
    rows_error = np.linalg.norm(wide - (wide @ P_R) @ P_R.conj().T) ** 2
    columns_error = column_error(wide, result.cols) ** 2
    assert error <= columns_error + rows_error + 100 * problem.rounding * sigma[0]


def test_the_three_factors_multiply_to_the_result_where_they_are_well_conditioned():
    for core in CORES:
        for dtype in DTYPES:
            A = matrix_with_spectrum(60, 50, spectrum("slow", 50), rng=0, dtype=dtype)
            C, U, R = result = cur(A, 8, core=core, rng=0)
            assert np.abs(C @ U @ R - result.to_dense()).max() <= 10 * rounding(A, 1.0)


@pytest.mark.parametrize("core", CORES)
def test_the_core_is_the_one_of_its_definition(core):
    A = matrix_with_spectrum(60, 50, spectrum("slow", 50), rng=0)
    C, U, R = result = cur(A, 8, core=core, rng=0)
    if core == "optimal":
        expected = np.linalg.pinv(C) @ A @ np.linalg.pinv(R)
    else:
        expected = np.linalg.pinv(A[np.ix_(result.rows, result.cols)])
        assert len(result.rows) == 16
    # Condition numbers of C, R and the block are below 10.
    assert np.abs(U - expected).max() <= 1e3 * rounding(A, 1.0) * np.abs(expected).max()


# Guarantees.


@pytest.mark.parametrize("method", GREEDY)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_of_rank_k_is_exact_and_of_lower_rank_says_so(method, core, dtype):
    generator = np.random.default_rng(0)
    A = (generator.standard_normal((80, 12)) @ generator.standard_normal((12, 60))).astype(dtype)
    for k in (12, 20, 60):
        result = cur(A, k, method=method, core=core, rng=1)
        assert result.info.rank == 12
        assert ("found 12 independent" in result.info.message) == (k > 12)
        assert np.linalg.norm(A - result.to_dense()) <= 100 * rounding(A, np.linalg.norm(A, 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("core", CORES)
def test_a_zero_matrix_has_no_independent_columns(method, core):
    result = cur(np.zeros((6, 4)), 2, method=method, core=core, rng=0)
    assert result.info.rank == 0
    assert result.info.message == "found 0 independent of k = 2"
    assert np.array_equal(result.to_dense(), np.zeros((6, 4)))


@pytest.mark.parametrize("name", ["poly1", "exp", "step"])
def test_adaptive_randomized_pivoting_obeys_its_bound_in_the_mean(name):
    sigma = spectrum(name, 40)
    A = matrix_with_spectrum(60, 40, sigma, rng=0)
    for k in (4, 9):
        columns, rows = [], []
        for seed in range(40):
            result = cur(A, k, method="arp", rng=seed)
            columns.append(column_error(A, result.cols) ** 2)
            rows.append(column_error(A.T, result.rows) ** 2)
        # E ||A - C C^+ A||_F^2 <= (k + 1) ||A - A_k||_F^2, an equality for an oblique projection of larger error.
        assert np.mean(columns) <= (k + 1) * tail(sigma, k) ** 2
        # Rows are drawn on the range of C: the bound holds with the error of C in place of that of A_k.
        assert np.mean(rows) <= (k + 1) * np.mean(columns)


@given(
    problem=problems(names=("slow", "poly1", "poly2", "exp", "step"), dtypes=("float64", "complex128"), sides=(3, 50))
)
def test_osinsky_obeys_its_bound_always(problem):
    A, sigma, k, seed = problem
    result = cur(A, k, method="osinsky", rng=seed)
    allowed = np.sqrt(k + 1) * tail(sigma, k) + 100 * problem.rounding
    assert column_error(A, result.cols) <= allowed
    assert column_error(A.conj().T, result.rows) <= allowed


@pytest.mark.parametrize("method", ["deim", "qdeim"])
@given(problem=problems(names=("slow", "poly1", "poly2", "exp"), dtypes=("float64", "complex128"), sides=(3, 50)))
def test_empirical_interpolation_obeys_its_bound(method, problem):
    A, sigma, k, seed = problem
    result = cur(A, k, method=method, rng=seed)
    if result.info.rank < k:
        return
    U, _, Vh = np.linalg.svd(A, full_matrices=False)
    # Sorensen and Embree, Theorem 4.1: (eta_p + eta_q) sigma_{k+1}, eta the norm of the inverse of the chosen rows.
    eta_p = np.linalg.norm(np.linalg.inv(Vh[:k, result.cols]), 2)
    eta_q = np.linalg.norm(np.linalg.inv(U[result.rows, :k]), 2)
    following = sigma[k] if k < len(sigma) else 0.0
    error = np.linalg.norm(A - result.to_dense(), 2)
    assert error <= (eta_p + eta_q) * following * (1 + 1e-8) + 100 * (eta_p + eta_q) * problem.rounding


# Measured error over that of the best subspace (Frobenius), at exactly k columns and rows.
MEASURED = {
    "arp": 4.0,
    "osinsky": 1.9,
    "deim": 2.2,
    "qdeim": 2.2,
    "lupp": 5.5,
    "cpqr": 2.2,
    "leverage": 18.0,
    "uniform": 31.0,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["slow", "poly1", "exp"])
def test_errors_are_those_of_the_reference(method, name):
    sigma = spectrum(name, 200)
    A = matrix_with_spectrum(250, 200, sigma, rng=0)
    ratios = [np.linalg.norm(A - cur(A, 20, method=method, rng=seed).to_dense()) / tail(sigma, 20) for seed in range(5)]
    assert 1 <= np.mean(ratios) <= 1.2 * MEASURED[method]


@pytest.mark.parametrize("name", ["slow", "poly1", "exp"])
def test_twice_as_many_rows_make_the_cross_core_safe(name):
    sigma = spectrum(name, 200)
    A = matrix_with_spectrum(250, 200, sigma, rng=0)
    for method in ("cpqr", "lupp", "qdeim"):
        ratios = [
            np.linalg.norm(A - cur(A, 20, method=method, core="cross", rng=seed).to_dense()) / tail(sigma, 20)
            for seed in range(5)
        ]
        assert np.mean(ratios) <= 5.5  # measured 2.1 to 5.5; with as many rows as columns 5 to 10


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("method", GREEDY)
def test_small_singular_values_survive(core, method):
    """With pseudoinverses of C, R or the block the error would be 9e-6."""
    sigma = spectrum("exp", 300)
    A = matrix_with_spectrum(400, 300, sigma, rng=0)
    result = cur(A, 180, method=method, core=core, rng=0)
    assert result.info.rank == 180
    # Reference: 3.8e-11 (optimal) and 1.1e-10 (cross), where the best is 1.4e-11.
    assert np.linalg.norm(A - result.to_dense()) <= 20 * tail(sigma, 180)


@pytest.mark.parametrize("make", [lambda: kahan(60), lambda: hilbert(60), lambda: hilbert(90, 40)])
@pytest.mark.parametrize("method", GREEDY)
def test_hard_matrices(make, method):
    A = make()
    sigma = np.linalg.svd(A, compute_uv=False)
    for core in CORES:
        result = cur(A, 10, method=method, core=core, rng=0)
        assert result.info.rank == 10
        # 2 sqrt(k + 1) is the bound for columns and rows of osinsky; the others stay near it here.
        assert np.linalg.norm(A - result.to_dense()) <= 30 * tail(sigma, 10) + 100 * rounding(A, sigma[0])


def test_the_error_estimate_is_the_error():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    for method in METHODS:
        result = cur(A, 8, method=method, rng=0)
        error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
        assert abs(result.info.error_estimate - error) <= 1e-10
    assert cur(A, 8, core="cross", rng=0).info.error_estimate is None


# To a precision.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-4])
def test_precision_is_met(method, core, rtol):
    sigma = spectrum("exp", 80)
    A = matrix_with_spectrum(100, 80, sigma, rng=0)
    result = cur(A, rtol=rtol, method=method, core=core, rng=0)
    error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
    assert error <= rtol
    assert abs(result.info.error_estimate - error) <= 1e-10
    assert result.info.converged
    best = int(np.sum(np.sqrt(np.cumsum(sigma[::-1] ** 2))[::-1] > rtol * np.linalg.norm(sigma)))
    assert best <= result.info.rank <= (2 * best + 12 if method in GREEDY else 80)


def test_a_precision_out_of_reach_of_k_is_reported():
    A = matrix_with_spectrum(100, 80, spectrum("slow", 80), rng=0)
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.cur: rank 5 reached before the precision"):
        result = cur(A, 5, rtol=1e-3, rng=0)
    assert (result.info.rank, result.info.converged) == (5, False)


# Every kind of input, scale and device.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "core"),
    [("cpqr", "optimal"), ("lupp", "cross"), ("arp", "optimal"), ("uniform", "cross"), ("deim", "optimal")],
)
def test_all_kinds_give_the_same_columns_and_rows(tmp_path, kind, method, core):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype="complex128")
    expected = cur(A, 6, method=method, core=core, rng=3)
    result = cur(KINDS[kind](A, tmp_path), 6, method=method, core=core, rng=3)
    assert sp.issparse(result.C) == sp.issparse(result.R) == kind.startswith("sparse")
    dense = to_numpy(result.to_dense())
    if method in ("arp", "deim"):
        # Singular vectors come from LAPACK or an iteration, as suits the kind: near ties may fall either way.
        assert np.linalg.norm(A - dense) <= 7 * tail(spectrum("exp", 70), 6)
        return
    assert to_numpy(result.cols).tolist() == expected.cols.tolist()
    assert to_numpy(result.rows).tolist() == expected.rows.tolist()
    assert np.abs(dense - expected.to_dense()).max() <= 1e3 * rounding(A, 1.0)
    assert np.abs(to_numpy(result.U) - expected.U).max() <= 1e4 * rounding(A, np.abs(expected.U).max())


@pytest.mark.parametrize("kind", ["sparse csr", "linear operator", "hdf5", "dask tiles"])
def test_osinsky_on_a_sketch_of_the_error_where_it_cannot_be_formed(tmp_path, kind):
    sigma = spectrum("exp", 70)
    A = matrix_with_spectrum(90, 70, sigma, rng=0)
    stored = KINDS[kind](A, tmp_path)
    for seed in range(5):
        result = cur(stored, 6, method="osinsky", rng=seed)
        # Lengths are known up to the distortion of a sketch with 32 rows: a factor of 2 is far outside.
        assert column_error(A, to_numpy(result.cols)) <= 2 * np.sqrt(7) * tail(sigma, 6)


@pytest.mark.parametrize(
    "place", ["numpy", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("method", METHODS)
def test_result_stays_on_the_device_of_the_input(place, dtype, method):
    xp, device = place
    host = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype)
    A = xp.asarray(host, device=device)
    for options in ({"k": 5}, {"k": 5, "core": "cross"}, {"rtol": 0.1}):
        result = cur(A, method=method, rng=0, **options)
        for X in (*result, result.cols, result.rows, *result.factors, result.to_dense(), result.H.to_dense()):
            assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
            assert array_api_compat.device(X) == array_api_compat.device(A)
        assert all(X.dtype == A.dtype for X in result)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("core", CORES)
def test_extreme_scales(scale, method, core):
    A = matrix_with_spectrum(60, 50, spectrum("exp", 50), rng=0)
    plain, scaled = (cur(factor * A, 6, method=method, core=core, rng=0) for factor in (1.0, scale))
    assert np.array_equal(scaled.C, (scale * A)[:, scaled.cols])
    assert np.array_equal(scaled.R, (scale * A)[scaled.rows])
    errors = [np.linalg.norm(A - plain.to_dense()), np.linalg.norm(A - scaled.to_dense() / scale)]
    assert abs(errors[1] - errors[0]) <= 1e3 * rounding(A, 1.0)
    assert np.abs(scaled.C / scale @ (scaled.U * scale) @ (scaled.R / scale) - scaled.to_dense() / scale).max() <= 1e-9


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (5, 5)])
def test_small_shapes(shape):
    A = np.random.default_rng(0).standard_normal(shape)
    for method in METHODS:
        for core in CORES:
            result = cur(A, min(shape), method=method, core=core, rng=0)
            assert np.abs(result.to_dense() - A).max() <= 1e3 * rounding(A, 10.0)


def test_promised_passes():
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    for n_iter in (0, 1, 2):
        # One more for the norm that the error estimate divides by.
        assert cur(A, 5, n_iter=n_iter, rng=0).info.passes == 2 * n_iter + 3
        assert cur(A, 5, n_iter=n_iter, core="cross", rng=0).info.passes == 2 * n_iter + 1
        counting = CountingOperator(A)
        info = cur(counting, 5, n_iter=n_iter, rng=0).info
        assert info.passes == counting.passes == 2 * n_iter + 4
        assert info.matvecs == counting.matvecs
    for method in METHODS:
        counting = CountingOperator(A)
        info = cur(counting, 5, method=method, rng=0).info
        assert (info.passes, info.matvecs) == (counting.passes, counting.matvecs)


def test_sparse_factors_stay_sparse():
    A = sp.random_array((300, 200), density=0.03, rng=np.random.default_rng(0), format="csr")
    for core in CORES:
        result = cur(A, 20, core=core, rng=0)
        assert sp.issparse(result.C)
        assert sp.issparse(result.R)
        assert (abs(result.C - A[:, result.cols]).sum(), abs(result.R - A[result.rows]).sum()) == (0, 0)
        X = np.random.default_rng(1).standard_normal((200, 3))
        assert np.allclose(result @ X, result.C @ (result.U @ (result.R @ X)), atol=1e-10)


def test_a_seed_gives_one_result_and_a_generator_is_advanced_by_one_draw():
    A = matrix_with_spectrum(60, 50, spectrum("slow", 50), rng=0)
    for method in METHODS:
        first, again = (cur(A, 5, method=method, rng=11) for _ in range(2))
        assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    cur(A, 5, method="arp", rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


def test_results_pickle_and_estimate_their_error():
    A = matrix_with_spectrum(60, 50, spectrum("exp", 50), rng=0)
    result = cur(A, 8, rng=0)
    copy = pickle.loads(pickle.dumps(result))
    assert all(np.array_equal(x, y) for x, y in zip(copy, result, strict=True))
    assert np.array_equal(copy.to_dense(), result.to_dense())
    norm = np.linalg.norm(A - result.to_dense(), 2)
    assert 0.5 * norm <= result.error(A, ord=2, rng=1) <= norm * (1 + 1e-10)
    assert repr(result).startswith("CURResult(C(60, 8), U(8, 8), R(8, 50)")


# What is refused.


@pytest.mark.parametrize(("options", "message"), [
    ({}, "one of k and rtol must be given; got none."),
    ({"k": 0}, "k must be in 1..20 for A of shape (30, 20); got 0."),
    ({"k": 21}, "k must be in 1..20 for A of shape (30, 20); got 21."),
    ({"rtol": -1.0}, "rtol must be finite and not negative; got -1.0."),
    ({"k": 3, "method": "svd"}, "method must be one of 'arp', 'osinsky', 'deim', 'qdeim', 'lupp', 'cpqr', 'leverage', "
                                "'uniform'; got 'svd'."),
    ({"k": 3, "core": "best"}, "core must be one of 'optimal', 'cross'; got 'best'."),
    ({"k": 3, "n_oversamples": -1}, "n_oversamples must be at least 0; got -1."),
    ({"k": 3, "n_iter": -1}, "n_iter must be at least 0; got -1."),
    ({"k": 3, "rng": -1}, "rng as a seed must be a non-negative int; got -1."),
])  # fmt: skip
def test_arguments_out_of_range_are_refused_before_any_work(options, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        cur(A, **options)
    assert str(caught.value) == f"rnla.cur: {message}"
    assert A.passes == 0


@pytest.mark.parametrize("options", [{"k": 3.0}, {"rtol": "1"}, {"k": 3, "n_iter": 1.5}])
def test_arguments_of_a_wrong_type_are_refused(options):
    with pytest.raises(TypeError, match=r"^rnla\.cur: "):
        cur(np.ones((30, 20)), **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["numpy", "torch", "sparse csr", "hdf5", "linear operator"])
@pytest.mark.parametrize("options", [*({"k": 5, "method": method} for method in METHODS), {"rtol": 0.1}])
def test_values_that_are_not_finite_are_refused(tmp_path, value, kind, options):
    A = matrix_with_spectrum(60, 50, spectrum("exp", 50), rng=0)
    A[33, 21] = value
    with pytest.raises(ValueError, match=r"^rnla\.cur: A must be finite"):
        cur(KINDS[kind](A, tmp_path), rng=0, **options)
