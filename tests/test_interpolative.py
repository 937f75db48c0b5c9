"""Chosen columns are distinct, reproduce themselves exactly, and come close to the best subspace."""

import pickle

import array_api_compat
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, problems, rounding
from test_svd_inputs import KINDS, to_numpy

from rnla._column_selection import osinsky, pivots
from rnla._errors import ConvergenceWarning
from rnla._interpolative import METHODS, interp_decomp
from rnla.testing import CountingOperator, haar_basis, kahan, matrix_with_spectrum, spectrum

GREEDY = ("cpqr", "lupp", "arp", "rpqr")  # choose columns that complement each other
DRAWN = ("leverage", "norm", "uniform")


def wide(X):
    return X.astype(np.promote_types(X.dtype, np.float64))


def tail(sigma, k):
    return float(np.linalg.norm(sigma[k:]))


def projection_error(A, columns):
    """Return ``||A - C C^+ A||_F`` for C = A[:, columns], by LAPACK."""
    Q = scipy.linalg.qr(A[:, columns], mode="economic")[0]
    return np.linalg.norm(A - Q @ (Q.conj().T @ A))


# What an interpolative decomposition is.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1])
@given(problem=problems(), coef=st.sampled_from(["sketch", "lstsq"]))
def test_columns_are_distinct_and_reproduce_themselves(method, axis, problem, coef):
    A, _, k, seed = problem
    idx, P = result = interp_decomp(A, k, axis=axis, method=method, coef=coef, rng=seed)
    r = len(idx)
    assert r == result.info.rank <= k
    assert len(set(idx.tolist())) == r
    assert P.dtype == A.dtype
    assert np.isfinite(P).all()
    if axis == 1:
        assert P.shape == (r, A.shape[1])
        assert np.array_equal(P[:, idx], np.eye(r))
        assert np.array_equal(result.skeleton, A[:, idx])
        assert np.allclose(result.to_dense(), A[:, idx] @ P, rtol=0, atol=problem.rounding)
    else:
        assert P.shape == (A.shape[0], r)
        assert np.array_equal(P[idx], np.eye(r))
        assert np.array_equal(result.skeleton, A[idx])
        assert np.allclose(result.to_dense(), P @ A[idx], rtol=0, atol=problem.rounding)
    assert result.info.message == ("complete" if r == k else f"found {r} independent of k = {k}")
    largest = np.abs(P).max(initial=0.0)
    assert abs(result.max_coefficient - largest) <= 4 * problem.eps * largest


@pytest.mark.parametrize("method", GREEDY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_of_rank_k_is_exact_and_of_lower_rank_says_so(method, dtype):
    generator = np.random.default_rng(0)
    A = (generator.standard_normal((80, 12)) @ generator.standard_normal((12, 60))).astype(dtype)
    for k in (12, 20, 60):
        for coef in ("sketch", "lstsq"):
            result = interp_decomp(A, k, method=method, coef=coef, rng=1)
            assert result.info.rank == 12
            assert ("found 12 independent" in result.info.message) == (k > 12)
            # Rounding of A times the growth of the coefficients.
            growth = np.linalg.norm(result.P, 2)
            assert np.linalg.norm(A - result.to_dense()) <= 10 * growth * rounding(A, np.linalg.norm(A, 2))


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_no_independent_columns(method):
    for axis in (0, 1):
        result = interp_decomp(np.zeros((6, 4)), 2, axis=axis, method=method, rng=0)
        assert result.info.rank == 0
        assert result.info.message == "found 0 independent of k = 2"
        assert np.array_equal(result.to_dense(), np.zeros((6, 4)))


def test_repeated_columns_are_taken_once():
    A = np.repeat(np.random.default_rng(0).standard_normal((30, 5)), 6, axis=1)
    for method in METHODS:
        result = interp_decomp(A, 8, method=method, rng=3)
        assert len(set((result.idx // 6).tolist())) == len(result.idx) <= 5


# How good it is.


# Errors over that of the best subspace, of the reference implementation (1000 x 800, k = 20, one power iteration),
# for the spectra j^-1/2, 1 / j and exp(-j / 7).
REFERENCE = {
    "cpqr": (1.16, 1.31, 1.53),
    "lupp": (1.20, 1.45, 1.92),
    "arp": (1.20, 1.54, 2.26),
    "uniform": (1.22, 1.57, 2.38),
}


@pytest.mark.parametrize("method", REFERENCE)
@pytest.mark.parametrize(("name", "column"), [("slow", 0), ("poly1", 1), ("exp", 2)])
def test_errors_are_those_of_the_reference(method, name, column):
    sigma = spectrum(name, 200)
    A = matrix_with_spectrum(250, 200, sigma, rng=0)
    ratios = [
        np.linalg.norm(A - interp_decomp(A, 20, method=method, coef="lstsq", rng=seed).to_dense()) / tail(sigma, 20)
        for seed in range(10)
    ]
    # The smaller matrix changes the mean by less than its spread; drawn columns vary by about half.
    assert 1 <= np.mean(ratios) <= REFERENCE[method][column] * (1.2 if method in ("cpqr", "lupp") else 1.5)


def test_least_squares_coefficients_are_the_best():
    A = matrix_with_spectrum(250, 200, spectrum("poly1", 200), rng=0)
    sketch, best = (interp_decomp(A, 20, coef=coef, n_iter=0, rng=1) for coef in ("sketch", "lstsq"))
    assert np.array_equal(sketch.idx, best.idx)
    errors = [np.linalg.norm(A - result.to_dense()) for result in (sketch, best)]
    assert errors[1] < errors[0]
    assert abs(errors[1] - projection_error(A, best.idx)) <= rounding(A, 1.0)


@pytest.mark.parametrize("k", [5, 10])
def test_adaptive_randomized_pivoting_obeys_its_bound_in_the_mean(k):
    sigma = spectrum("exp", 40)
    A = matrix_with_spectrum(60, 40, sigma, rng=0)
    V = np.linalg.svd(A)[2][:k]
    squares = [projection_error(A, pivots("rpqr", V, k, seed, 2)) ** 2 for seed in range(100)]
    # Equality holds for an oblique projection; the orthogonal one stays well below.
    assert np.mean(squares) <= (k + 1) * tail(sigma, k) ** 2
    oblique = []
    for seed in range(1000):
        J = pivots("rpqr", V, k, seed, 2)
        oblique.append(np.linalg.norm(A - A[:, J] @ np.linalg.solve(V[:, J], V)) ** 2)
    # Heavy-tailed: the mean of 1000 draws scatters by less than a half.
    assert 0.5 <= np.mean(oblique) / ((k + 1) * tail(sigma, k) ** 2) <= 2


def test_draws_follow_the_determinant():
    """Columns of an orthonormal basis are drawn with probability ``|det V_J|**2``, whatever their order."""
    V = haar_basis(5, 2, rng=0).T
    counts = np.zeros((5, 5))
    n = 2000
    for seed in range(n):
        i, j = sorted(pivots("rpqr", V, 2, seed, 2).tolist())
        counts[i, j] += 1
    for i in range(5):
        for j in range(i + 1, 5):
            p = np.linalg.det(V[:, [i, j]]) ** 2
            assert abs(counts[i, j] / n - p) <= 5 * np.sqrt(p * (1 - p) / n)  # 10 cells: fails once in 10^5


@given(
    problem=problems(names=("slow", "poly1", "exp", "graded", "step"), dtypes=("float64", "complex128"), sides=(4, 40))
)
def test_osinsky_obeys_its_bound_always(problem):
    A, sigma, k, _ = problem
    _, S, Vh = np.linalg.svd(A, full_matrices=False)
    k = min(k, int(np.sum(1e-9 * S[0] < S)))
    V = Vh[:k].conj().T
    E = A - (A @ V) @ V.conj().T
    J = osinsky(E, V, 10 * problem.eps * S[0])
    assert len(set(J.tolist())) == k
    oblique = np.linalg.norm(A - A[:, J] @ np.linalg.solve(V[J].conj().T, V.conj().T))
    growth = np.linalg.norm(np.linalg.inv(V[J]), 2)
    assert oblique <= np.sqrt(k + 1) * tail(sigma, k) + 10 * growth * problem.rounding


def test_rules_on_subspaces_are_those_of_their_papers():
    V = haar_basis(30, 6, rng=0)
    # Discrete empirical interpolation: where the next vector differs most from its interpolant in the places so far.
    places = [int(np.argmax(abs(V[:, 0])))]
    for j in range(1, 6):
        rest = V[:, j] - V[:, :j] @ np.linalg.solve(V[places, :j], V[places, j])
        places.append(int(np.argmax(abs(rest))))
    assert pivots("lupp", V.T, 6, 0, 0).tolist() == places
    assert pivots("cpqr", V.T, 6, 0, 0).tolist() == scipy.linalg.qr(V.T, pivoting=True)[2][:6].tolist()


def test_drawing_without_replacement_follows_the_weights():
    B = np.diag([1.0, 2.0, 3.0])[:, [0, 1, 2]]
    first = [int(pivots("norm", B, 1, seed, 2)[0]) for seed in range(1000)]
    p = np.array([1.0, 4.0, 9.0]) / 14
    assert np.all(np.abs(np.bincount(first) / 1000 - p) <= 5 * np.sqrt(p * (1 - p) / 1000))
    assert sorted(pivots("uniform", B, 3, 0, 2).tolist()) == [0, 1, 2]
    assert sorted(pivots("norm", np.array([[1.0, 0.0, 1.0]]), 3, 0, 2).tolist()) == [0, 2]


def test_randomly_pivoted_selection_keeps_its_digits_on_graded_matrices():
    A = matrix_with_spectrum(60, 50, np.geomspace(1, 1e-13, 50), rng=0)
    chosen = pivots("rpqr", A, 30, 0, 2)
    assert len(set(chosen.tolist())) == 30
    # By subtraction of squares alone everything below 1e-8 would be drawn at random.
    assert projection_error(A, chosen) <= 30 * np.linalg.norm(np.geomspace(1, 1e-13, 50)[30:])


@pytest.mark.parametrize("make", [lambda: kahan(60), lambda: matrix_with_spectrum(80, 60, spectrum("exp", 60), rng=0)])
@pytest.mark.parametrize("f", [1.01, 2.0])
def test_exchanges_bound_the_coefficients(make, f):
    A = make()
    result = interp_decomp(A, 20, method="uniform", f=f, rng=0)
    assert result.max_coefficient <= f
    free = interp_decomp(A, 20, method="uniform", rng=0)
    assert free.max_coefficient > f
    assert len(set(result.idx.tolist())) == 20
    assert np.linalg.norm(A - result.to_dense()) < np.linalg.norm(A - free.to_dense())


def test_coefficients_are_small():
    for name in ("slow", "poly1", "exp"):
        A = matrix_with_spectrum(250, 200, spectrum(name, 200), rng=0)
        assert 1 <= interp_decomp(A, 20, rng=0).max_coefficient <= 2


@pytest.mark.parametrize("method", ["cpqr", "lupp", "arp", "rpqr"])
def test_small_singular_values_survive(method):
    sigma = spectrum("exp", 300)
    A = matrix_with_spectrum(400, 300, sigma, rng=0)
    result = interp_decomp(A, 180, method=method, coef="lstsq", rng=0)
    assert result.info.rank == 180  # sigma_180 is 7e-12 of sigma_1
    assert np.linalg.norm(A - result.to_dense()) <= 10 * tail(sigma, 180) + 100 * rounding(A, sigma[0])


# To a precision.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-4])
def test_precision_is_met(method, axis, rtol):
    sigma = spectrum("exp", 80)
    A = matrix_with_spectrum(100, 80, sigma, rng=0)
    result = interp_decomp(A, rtol=rtol, axis=axis, method=method, rng=0)
    error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
    assert error <= rtol
    assert abs(result.info.error_estimate - error) <= 1e-10
    assert result.info.converged
    best = int(np.sum(np.sqrt(np.cumsum(sigma[::-1] ** 2))[::-1] > rtol * np.linalg.norm(sigma)))
    assert best <= result.info.rank <= (2 * best + 10 if method in GREEDY else 80)


def test_precision_of_an_operator_is_met_by_the_estimate():
    A = matrix_with_spectrum(100, 80, spectrum("exp", 80), rng=0)
    for seed in range(5):
        result = interp_decomp(CountingOperator(A), rtol=1e-3, rng=seed)
        error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
        # 20 samples: the squared ratio has a relative standard deviation of at most (2 / 20)**0.5 twice; 4 of them.
        assert error <= 1e-3 * np.sqrt(1 + 4 * 2 * (2 / 20) ** 0.5)


def test_precision_zero_ends_at_the_rank():
    generator = np.random.default_rng(0)
    A = generator.standard_normal((50, 7)) @ generator.standard_normal((7, 40))
    result = interp_decomp(A, rtol=0.0, rng=0)
    assert result.info.rank == 7
    assert result.info.converged
    assert interp_decomp(np.zeros((5, 4)), rtol=0.1, rng=0).info.rank == 0


def test_a_precision_out_of_reach_of_k_is_reported():
    A = matrix_with_spectrum(100, 80, spectrum("slow", 80), rng=0)
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.interp_decomp: rank 5 reached before the precision"):
        result = interp_decomp(A, 5, rtol=1e-3, rng=0)
    assert (result.info.rank, result.info.converged) == (5, False)


# Every kind of input, scale and device.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("coef", ["sketch", "lstsq"])
def test_all_kinds_give_the_same_columns(tmp_path, kind, axis, coef):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype="complex128")
    expected = interp_decomp(A, 6, axis=axis, coef=coef, rng=3)
    result = interp_decomp(KINDS[kind](A, tmp_path), 6, axis=axis, coef=coef, rng=3)
    assert to_numpy(result.idx).tolist() == expected.idx.tolist()
    assert np.abs(to_numpy(result.P) - expected.P).max() <= 1e3 * rounding(A, 1.0)
    assert np.abs(to_numpy(result.to_dense()) - expected.to_dense()).max() <= 1e3 * rounding(A, 1.0)
    assert sp.issparse(result.skeleton) == kind.startswith("sparse")
    if kind.startswith("sparse"):
        X = np.ones((A.shape[0], 2), complex)
        assert np.allclose(result.H @ X, expected.H @ X, atol=1e-10)


@pytest.mark.parametrize(
    "place", ["numpy", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("axis", [0, 1])
def test_result_stays_on_the_device_of_the_input(place, dtype, axis):
    xp, device = place
    A = xp.asarray(matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype), device=device)
    for options in ({"k": 5}, {"k": 5, "coef": "lstsq"}, {"rtol": 0.1}, {"k": 5, "method": "arp", "f": 2}):
        result = interp_decomp(A, axis=axis, rng=0, **options)
        for X in (*result, result.skeleton, result.to_dense(), result.H.to_dense()):
            assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
            assert array_api_compat.device(X) == array_api_compat.device(A)
        assert result.P.dtype == result.skeleton.dtype == A.dtype


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("options", [{}, {"coef": "lstsq"}, {"method": "arp"}, {"method": "norm"}, {"axis": 0}])
def test_extreme_scales(scale, options):
    A = matrix_with_spectrum(60, 50, spectrum("exp", 50), rng=0)
    plain, scaled = (interp_decomp(factor * A, 6, rng=0, **options) for factor in (1.0, scale))
    assert np.array_equal(plain.idx, scaled.idx)
    assert np.abs(plain.P - scaled.P).max() <= 1e3 * rounding(A, 1.0)
    chosen = (scale * A)[:, scaled.idx] if scaled.axis else (scale * A)[scaled.idx]
    assert np.array_equal(scaled.skeleton, chosen)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (5, 5)])
def test_small_shapes(shape):
    A = np.random.default_rng(0).standard_normal(shape)
    for method in METHODS:
        for axis in (0, 1):
            result = interp_decomp(A, min(shape), axis=axis, method=method, rng=0)
            assert np.abs(result.to_dense() - A).max() <= 1e3 * rounding(A, 10.0)


@pytest.mark.parametrize(("n_iter", "coef", "passes"), [(0, "sketch", 1), (1, "sketch", 3), (2, "lstsq", 6)])
def test_promised_passes(n_iter, coef, passes):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    assert interp_decomp(A, 5, n_iter=n_iter, coef=coef, rng=0).info.passes == passes
    counting = CountingOperator(A)
    info = interp_decomp(counting, 5, n_iter=n_iter, coef=coef, rng=0).info
    # The columns of an operator are products with columns of the identity.
    assert info.passes == counting.passes == passes + 1
    assert info.matvecs == counting.matvecs


def test_a_seed_gives_one_result_and_a_generator_is_advanced_by_one_draw():
    A = matrix_with_spectrum(60, 50, spectrum("slow", 50), rng=0)
    for method in METHODS:
        first, again = (interp_decomp(A, 5, method=method, rng=11) for _ in range(2))
        assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    interp_decomp(A, 5, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


def test_results_pickle_and_estimate_their_error():
    A = matrix_with_spectrum(60, 50, spectrum("exp", 50), rng=0)
    for axis in (0, 1):
        result = interp_decomp(A, 8, axis=axis, rng=0)
        copy = pickle.loads(pickle.dumps(result))
        assert all(np.array_equal(x, y) for x, y in zip(copy, result, strict=True))
        assert np.array_equal(copy.to_dense(), result.to_dense())
        # A lower bound of the norm, by a block power method.
        norm = np.linalg.norm(A - result.to_dense(), 2)
        assert 0.5 * norm <= result.error(A, ord=2, rng=1) <= norm * (1 + 1e-10)
        assert repr(result).startswith("IDResult(idx(8,), P")


# What is refused.


@pytest.mark.parametrize(("options", "message"), [
    ({}, "one of k and rtol must be given; got none."),
    ({"k": 0}, "k must be in 1..20 for A of shape (30, 20); got 0."),
    ({"k": 21}, "k must be in 1..20 for A of shape (30, 20); got 21."),
    ({"rtol": -1.0}, "rtol must be finite and not negative; got -1.0."),
    ({"k": 3, "axis": 2}, "axis must be one of 1, 0; got 2."),
    ({"k": 3, "method": "svd"}, "method must be one of 'cpqr', 'lupp', 'arp', 'rpqr', 'leverage', 'norm', 'uniform'; "
                                "got 'svd'."),
    ({"k": 3, "coef": "best"}, "coef must be one of 'sketch', 'lstsq'; got 'best'."),
    ({"k": 3, "n_oversamples": -1}, "n_oversamples must be at least 0; got -1."),
    ({"k": 3, "n_iter": -1}, "n_iter must be at least 0; got -1."),
    ({"k": 3, "f": 1.0}, "f must be above 1; got 1.0."),
    ({"k": 3, "rng": -1}, "rng as a seed must be a non-negative int; got -1."),
])  # fmt: skip
def test_arguments_out_of_range_are_refused_before_any_work(options, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        interp_decomp(A, **options)
    assert str(caught.value) == f"rnla.interp_decomp: {message}"
    assert A.passes == 0


@pytest.mark.parametrize("options", [{"k": 3.0}, {"rtol": "1"}, {"k": 3, "n_iter": 1.5}, {"k": 3, "f": "2"}])
def test_arguments_of_a_wrong_type_are_refused(options):
    with pytest.raises(TypeError, match=r"^rnla\.interp_decomp: "):
        interp_decomp(np.ones((30, 20)), **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["numpy", "torch", "sparse csr", "hdf5", "linear operator"])
@pytest.mark.parametrize("options", [{"k": 5}, {"k": 5, "coef": "lstsq"}, {"rtol": 0.1}, {"k": 5, "axis": 0}])
def test_values_that_are_not_finite_are_refused(tmp_path, value, kind, options):
    A = matrix_with_spectrum(60, 50, spectrum("exp", 50), rng=0)
    A[33, 21] = value
    with pytest.raises(ValueError, match=r"^rnla\.interp_decomp: A must be finite"):
        interp_decomp(KINDS[kind](A, tmp_path), rng=0, **options)
