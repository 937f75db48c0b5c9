"""QR factorisations are orthonormal, triangular, exact to rounding, and with pivoting reveal the rank."""

import pickle

import array_api_compat
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, problems, rounding, singular_values
from test_svd_inputs import KINDS, to_numpy

from rnla._errors import ConvergenceWarning
from rnla._qr import qr
from rnla.testing import CountingOperator, assert_orthonormal, hilbert, kahan, matrix_with_spectrum, spectrum

WIDE = {"float32": np.float64, "float64": np.float64, "complex64": np.complex128, "complex128": np.complex128}


def wide(X):
    return np.asarray(X).astype(WIDE[X.dtype.name])


def residual(A, result):
    Q, R, *P = result
    A = wide(A)
    return np.linalg.norm((A[:, P[0]] if P else A) - wide(Q) @ wide(R))


def cut(A, sigma):
    """Largest Frobenius norm of what a rank decision at ``n * eps`` drops, and rounding."""
    # The pivot dropped is the longest remaining column, up to the distortion of the sketch (below 4) and its length
    # relative to ||A||_2 (at most 1 / 0.3): the others are no longer.
    return 20 * max(A.shape) ** 1.5 * float(np.finfo(A.dtype).eps) * sigma[0]


def assert_triangular(R):
    assert np.array_equal(np.triu(R), R)


# Without pivoting.


@pytest.mark.parametrize("method", ["auto", "cholesky", "householder"])
@given(problem=problems(sides=(1, 90)))
def test_unpivoted_factors(method, problem):
    A = problem.A
    Q, R = result = qr(A, method=method, rng=problem.seed)
    short = min(A.shape)
    assert (Q.shape, R.shape) == ((A.shape[0], short), (short, A.shape[1]))
    assert Q.dtype == R.dtype == A.dtype
    assert_orthonormal(Q)
    assert_triangular(R)
    assert residual(A, result) <= problem.rounding
    assert result.info.converged


def test_unpivoted_factors_of_ill_conditioned_matrices():
    for dtype in DTYPES:
        eps = np.finfo(dtype).eps
        for condition in (1e2, 1e6, 1e10, 1e18):
            A = matrix_with_spectrum(400, 40, np.geomspace(1, 1 / condition, 40), rng=0, dtype=dtype)
            result = qr(A)
            assert_orthonormal(result.Q)
            assert residual(A, result) <= 100 * eps * 40**0.5


@pytest.mark.parametrize("place", ["torch-meta"], indirect=True)
@pytest.mark.parametrize("shape", [(90, 20), (20, 90), (30, 30)])
def test_unpivoted_qr_reads_no_value(place, shape):
    xp, device = place
    Q, R = qr(xp.empty(shape, dtype=xp.float32, device=device))
    assert Q.device.type == R.device.type == "meta"
    assert (Q.shape, R.shape) == ((shape[0], min(shape)), (min(shape), shape[1]))


# With pivoting.


@pytest.mark.parametrize("method", ["auto", "cqrrpt", "rqrcp"])
@given(problem=problems(sides=(1, 90)))
def test_pivoted_factors(method, problem):
    A, sigma, _, seed = problem
    if method == "cqrrpt" and A.shape[0] < A.shape[1]:
        A = A.T.copy()
    Q, R, P = result = qr(A, pivoting=True, method=method, rng=seed)
    r = result.info.rank
    assert (Q.shape, R.shape) == ((A.shape[0], r), (r, A.shape[1]))
    assert Q.dtype == R.dtype == A.dtype
    assert sorted(P.tolist()) == list(range(A.shape[1]))
    assert_orthonormal(Q)
    assert_triangular(R)
    assert residual(A, result) <= cut(A, sigma)
    # What stands below a rank decision at n * eps is rounding: a matrix of exact rank has no more columns, and one of
    # well-separated values no fewer. The constants are the distortion of the sketch and the growth of pivoted QR.
    certain = np.sum(sigma > 100 * max(A.shape) ** 1.5 * problem.eps * max(sigma[0], 1e-300))
    assert certain <= r <= np.sum(sigma > 0)
    if "complete" not in result.info.message:
        assert f"numerical rank {r}" in result.info.message


@pytest.mark.parametrize("method", ["cqrrpt", "rqrcp"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 17, 40])
def test_exact_rank_is_found(method, dtype, rank):
    generator = np.random.default_rng(rank)
    B, C = generator.standard_normal((300, rank)), generator.standard_normal((rank, 60))
    A = (B @ C).astype(dtype)
    result = qr(A, pivoting=True, method=method, rng=1)
    assert result.info.rank == rank
    assert result.info.message == f"A has numerical rank {rank}, below 60"
    assert residual(A, result) <= 10 * rounding(A, np.linalg.norm(A))


@pytest.mark.parametrize("method", ["cqrrpt", "rqrcp"])
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_pivots_are_as_good_as_those_of_lapack(method, condition):
    sigma = np.geomspace(1, 1 / condition, 200)
    A = matrix_with_spectrum(2000, 200, sigma, rng=3)
    result = qr(A, pivoting=True, method=method, rng=4)
    reference = scipy.linalg.qr(A, mode="r", pivoting=True)[0][:200]
    # Reference implementation: at most 1.13 for a sketch of 2 n rows; blocks of 64 on 74 rows see less of the tail.
    ratio = trailing_norms(result.R) / trailing_norms(reference)
    assert ratio.max() <= (1.2 if method == "cqrrpt" else 1.5) * 1.2
    diagonal = np.abs(np.diagonal(result.R)) / sigma
    assert np.all((diagonal > 0.2 / 1.5) & (diagonal < 4.7 * 1.5))
    assert np.linalg.norm(result.Q.T @ result.Q - np.eye(200)) <= 2e-14 * 5
    assert residual(A, result) <= 1e-15 * 200**0.5


def trailing_norms(R):
    return np.sqrt(np.cumsum(np.sum(R**2, axis=1)[::-1])[::-1])


def test_a_condition_beyond_rounding_is_cut():
    A = matrix_with_spectrum(2000, 200, np.geomspace(1, 1e-20, 200), rng=3)
    for method in ("cqrrpt", "rqrcp"):
        result = qr(A, pivoting=True, method=method, rng=4)
        assert 100 < result.info.rank < 170
        assert_orthonormal(result.Q)
        # Reference implementation: 5e-14 where the rank is cut.
        assert residual(A, result) <= 1e-13


@pytest.mark.parametrize(
    "make", [lambda: kahan(80), lambda: hilbert(80), lambda: hilbert(300, 40), lambda: hilbert(40, 90)]
)
def test_hard_matrices(make):
    A = make()
    result = qr(A, pivoting=True, rng=0)
    assert_orthonormal(result.Q)
    assert residual(A, result) <= cut(A, singular_values(A))


@pytest.mark.parametrize("shape", [(300, 60), (60, 300), (200, 200)])
def test_large_pivoted_factors_are_made_in_blocks(shape):
    A = matrix_with_spectrum(*shape, spectrum("poly1", min(shape)), rng=0)
    result = qr(A, pivoting=True, method="rqrcp", rng=0)
    assert result.info.rank == min(shape)
    assert_orthonormal(result.Q)
    assert residual(A, result) <= rounding(A, np.linalg.norm(A))
    ratio = trailing_norms(result.R) / trailing_norms(scipy.linalg.qr(A, mode="r", pivoting=True)[0][: min(shape)])
    assert ratio.max() <= 1.8


@pytest.mark.parametrize(("method", "shape"), [("cqrrpt", (300, 60)), ("rqrcp", (300, 60)), ("rqrcp", (60, 300))])
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_partial_factors_are_the_leading_ones(method, shape, dtype):
    A = matrix_with_spectrum(*shape, spectrum("exp", 60), rng=0, dtype=dtype)
    Q, R, P = result = qr(A, 12, pivoting=True, method=method, rng=0)
    assert (Q.shape, R.shape, result.info.rank) == ((shape[0], 12), (12, shape[1]), 12)
    assert_orthonormal(Q)
    assert_triangular(R)
    # R is the projection Q^H A: the error is the orthogonal complement, and near the best for pivoted columns.
    projected = wide(Q).conj().T @ wide(A)[:, P]
    assert np.linalg.norm(projected - R) <= 10 * rounding(A, 3.0)
    assert residual(A, result) <= 3 * np.linalg.norm(spectrum("exp", 60)[12:])


@pytest.mark.parametrize("method", ["cqrrpt", "rqrcp"])
@given(problem=problems(names=("poly1", "exp", "graded"), dtypes=("float64", "complex128"), sides=(10, 80), tall=True),
       rtol=st.sampled_from([0.3, 1e-2, 1e-5, 1e-9]))  # fmt: skip
def test_precision_is_met_and_not_far_exceeded(method, problem, rtol):
    A, sigma, _, seed = problem
    result = qr(A, pivoting=True, rtol=rtol, method=method, rng=seed)
    norm = np.linalg.norm(A)
    error = residual(A, result)
    # Below 1e-7 `rqrcp` samples the error by 8 vectors: a relative standard deviation of at most 1 / 2 of the square.
    assert error <= rtol * norm * (1 if rtol > 1e-7 or method == "cqrrpt" else 2) + problem.rounding
    assert result.info.converged
    assert abs(result.info.error_estimate * norm - error) <= (1e-6 if rtol > 1e-7 else 1) * error + problem.rounding
    best = int(np.sum(np.sqrt(np.cumsum(sigma[::-1] ** 2))[::-1] > rtol * norm))
    assert best <= result.info.rank <= 2 * best + 10


def test_a_precision_out_of_reach_of_k_is_reported():
    A = matrix_with_spectrum(300, 60, spectrum("slow", 60), rng=0)
    for method in ("cqrrpt", "rqrcp"):
        with pytest.warns(ConvergenceWarning, match=r"^rnla\.qr: rank 5 reached before the precision"):
            result = qr(A, 5, pivoting=True, rtol=1e-3, method=method, rng=0)
        assert result.info.rank == 5
        assert not result.info.converged


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize(
    "options", [{}, {"pivoting": True}, {"pivoting": True, "k": 5}, {"pivoting": True, "rtol": 0.1}]
)
@pytest.mark.parametrize("shape", [(90, 20), (40, 50)])
def test_extreme_scales(scale, options, shape):
    A = matrix_with_spectrum(*shape, spectrum("poly1", min(shape)), rng=0)
    plain, scaled = (qr(factor * A, rng=0, **options) for factor in (1.0, scale))
    assert_orthonormal(scaled.Q)
    assert np.abs(scaled.R / scale - plain.R).max() <= 20 * rounding(A, 1.0)


# Every kind of input.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(90, 20), (40, 50)])
@pytest.mark.parametrize("options", [{}, {"pivoting": True}, {"pivoting": True, "k": 6, "method": "rqrcp"}])
def test_all_kinds_give_the_same_factors(tmp_path, kind, shape, options):
    A = matrix_with_spectrum(*shape, spectrum("poly1", min(shape)), rng=0, dtype="complex128")
    expected = qr(A, rng=3, **options)
    result = qr(KINDS[kind](A, tmp_path), rng=3, **options)
    assert np.abs(to_numpy(result.to_dense()) - expected.to_dense()).max() <= 10 * rounding(A, 1.0)
    if options:
        assert to_numpy(result.P).tolist() == expected.P.tolist()


@pytest.mark.parametrize(
    "place", ["numpy", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("shape", [(90, 20), (40, 50), (160, 150)])
@pytest.mark.parametrize("options", [{}, {"pivoting": True}, {"pivoting": True, "rtol": 0.05}])
def test_result_stays_on_the_device_of_the_input(place, dtype, shape, options):
    xp, device = place
    host = matrix_with_spectrum(*shape, spectrum("poly1", min(shape)), rng=0, dtype=dtype)
    A = xp.asarray(host, device=device)
    result = qr(A, rng=0, **options)
    for X in (*result, result.to_dense(), result.H.to_dense(), result @ A.T):
        assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
        assert array_api_compat.device(X) == array_api_compat.device(A)
    assert result.Q.dtype == result.R.dtype == A.dtype
    if "rtol" not in options:
        assert np.abs(to_numpy(result.to_dense()) - host).max() <= 10 * rounding(host, 1.0)


def test_the_input_is_never_changed():
    for options in ({}, {"pivoting": True}, {"pivoting": True, "k": 5}):
        A = matrix_with_spectrum(90, 20, spectrum("poly1", 20), rng=0)
        copy = A.copy()
        qr(copy, **options)
        assert np.array_equal(copy, A)


def test_a_seed_gives_one_result_and_a_generator_is_advanced_by_one_draw():
    A = matrix_with_spectrum(90, 20, spectrum("slow", 20), rng=0)
    first, again = (qr(A, pivoting=True, rng=11) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    qr(A, pivoting=True, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


def test_passes_are_counted():
    A = matrix_with_spectrum(90, 40, spectrum("poly1", 40), rng=0)
    for options in ({}, {"pivoting": True}, {"k": 5, "pivoting": True}):
        counting = CountingOperator(A)
        info = qr(counting, **options).info
        assert (info.passes, info.matvecs) == (counting.passes, counting.matvecs)


# The result as a tuple and an operator.


def test_results_unpack_multiply_and_pickle():
    A = matrix_with_spectrum(30, 20, spectrum("poly1", 20), rng=0)
    X = np.random.default_rng(1).standard_normal((20, 3))
    for options in ({}, {"pivoting": True}):
        result = qr(A, rng=0, **options)
        assert np.allclose(result @ X, A @ X, atol=rounding(A, 10.0))
        assert np.allclose(result.H @ A, A.T @ A, atol=rounding(A, 10.0))
        assert result.error(A, rng=1) <= rounding(A, 10.0)
        copy = pickle.loads(pickle.dumps(result))
        assert all(np.array_equal(x, y) for x, y in zip(copy, result, strict=True))
        assert copy.info.method == result.info.method
        assert repr(result).startswith("PivotedQRResult(Q" if options else "QRResult(Q")


# What is refused.


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 3}, "k must be None unless pivoting=True; got 3."),
    ({"rtol": 0.1}, "rtol must be None unless pivoting=True; got 0.1."),
    ({"pivoting": True, "k": 0}, "k must be in 1..20 for A of shape (30, 20); got 0."),
    ({"pivoting": True, "rtol": -1.0}, "rtol must be finite and not negative; got -1.0."),
    ({"pivoting": 1}, "pivoting must be one of True, False; got 1."),
    ({"method": "cqrrpt"}, "method must be one of 'auto', 'cholesky', 'householder'; got 'cqrrpt'."),
    ({"pivoting": True, "method": "cholesky"}, "method must be one of 'auto', 'cqrrpt', 'rqrcp'; got 'cholesky'."),
    ({"rng": -1}, "rng as a seed must be a non-negative int; got -1."),
])  # fmt: skip
def test_arguments_out_of_range_are_refused_before_any_work(options, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        qr(A, **options)
    assert str(caught.value) == f"rnla.qr: {message}"
    assert A.passes == 0


@pytest.mark.parametrize("options", [{"pivoting": True, "k": 3.0}, {"pivoting": True, "rtol": "1"}, {"rng": "seed"}])
def test_arguments_of_a_wrong_type_are_refused(options):
    with pytest.raises(TypeError, match=r"^rnla\.qr: "):
        qr(np.ones((30, 20)), **options)


def test_cqrrpt_needs_a_tall_matrix():
    with pytest.raises(ValueError, match=r"^rnla\.qr: method 'cqrrpt' needs at least as many rows"):
        qr(np.ones((20, 30)), pivoting=True, method="cqrrpt")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options", [{}, {"pivoting": True}, {"pivoting": True, "method": "rqrcp"}, {"pivoting": True, "k": 2}]
)
@pytest.mark.parametrize("shape", [(90, 20), (40, 50)])
def test_values_that_are_not_finite_are_refused(value, options, shape):
    A = matrix_with_spectrum(*shape, spectrum("poly1", 20), rng=0)
    A[33, 11] = value
    with pytest.raises(ValueError, match=r"^rnla\.qr: A must be finite"):
        qr(A, rng=0, **options)


@pytest.mark.parametrize("shape", [(9, 1), (9, 2), (30, 3), (200, 3), (2, 2), (8, 8)])
def test_few_columns_are_independent_in_their_sketch(shape):
    A = np.zeros(shape)
    A[: shape[1]] = np.linalg.qr(np.random.default_rng(0).standard_normal((shape[1],) * 2))[0]
    for seed in range(100):  # in a sketch of 2 n rows of signs, a tenth of these have dependent columns
        Q, R, P = qr(A, pivoting=True, method="cqrrpt", rng=seed)
        assert R.shape == (shape[1],) * 2
        assert np.abs(Q @ R - A[:, P]).max() <= 1e-14
