"""Range finders obey the theorems of Halko, Martinsson and Tropp, and `qb` meets the precision it is asked for."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NAMED, problems, rounding

import rnla
from rnla import _rangefinder
from rnla._backend import key_from_rng
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum

# Above the rounding of (A A^H)^q A Omega, which has the condition number of A to the power 2 q + 1.
MILD = ("slow", "step", "flat", "poly1")


def outside(A, Q):
    return A - Q @ (Q.conj().T @ A)


def columns_for(A, seed, count):
    """Return the test matrix that a call with this seed applies to A."""
    key = key_from_rng(seed, "test")
    xp = array_api_compat.array_namespace(A)
    return rnla.sketch.test_matrix("gaussian", key, A.shape[1], count, xp=xp, device="cpu", dtype=A.dtype)


# Theorems that hold for every draw.


@given(problem=problems(names=NAMED, dtypes=("float64", "complex128"), sides=(2, 40)), p=st.integers(0, 10))
def test_the_error_is_within_the_deterministic_bound(problem, p):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=0, rng=seed)
    Omega = columns_for(A, seed, Q.shape[1])
    # The range is that of A Omega, whatever the orthonormalisation.
    Y = A @ Omega
    assert np.linalg.norm(outside(Y, Q)) <= problem.rounding * np.linalg.norm(Omega)
    _, _, Vh = np.linalg.svd(A)
    for split in range(1, k + 1):
        first, rest = Vh[:split] @ Omega, Vh[split:] @ Omega
        if np.linalg.cond(first) > 1e6:  # the pseudoinverse would carry the rounding of the product, not the theorem
            continue
        tail = np.zeros((Vh.shape[0] - split, Vh.shape[0] - split))
        np.fill_diagonal(tail, np.r_[sigma[split:], np.zeros(len(tail))][: len(tail)])
        coupling = tail @ rest @ np.linalg.pinv(first)
        for order in (2, "fro"):
            # HMT, Theorem 9.1.
            bound = np.hypot(np.linalg.norm(tail, order), np.linalg.norm(coupling, order)) if tail.size else 0.0
            assert np.linalg.norm(outside(A, Q), order) <= bound * (1 + 1e-8) + problem.rounding


@given(problem=problems(names=MILD, dtypes=("float64", "complex128"), sides=(2, 40)), p=st.integers(0, 6), q=st.integers(1, 3))
def test_power_iterations_take_the_root_of_the_error_of_the_power(problem, p, q):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=q, rng=seed)
    assert_orthonormal(Q)
    power = A.copy()
    for _ in range(q):
        power = A @ (A.conj().T @ power)
    # HMT, Theorem 9.2; what rounding adds to the power, its root adds to the bound.
    noise = (problem.rounding / sigma[0]) * sigma[0] ** (2 * q + 1)
    bound = (np.linalg.norm(outside(power, Q), 2) + noise) ** (1 / (2 * q + 1))
    assert np.linalg.norm(outside(A, Q), 2) <= bound + problem.rounding


@given(problem=problems(sides=(2, 40)), p=st.integers(0, 6), q=st.integers(0, 2))
def test_truncation_adds_at_most_one_singular_value(problem, p, q):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=q, rng=seed)
    result = rnla.svd(A, k, method="rsi", n_oversamples=p, n_iter=q, rng=seed)
    error = np.linalg.norm(A - result.to_dense(), 2)
    # HMT, Theorem 9.3.
    following = sigma[k] if k < len(sigma) else 0.0
    assert error <= following + np.linalg.norm(outside(A, Q), 2) + problem.rounding
    assert error >= following - problem.rounding


@given(problem=problems(), p=st.integers(0, 10), q=st.integers(0, 2), sketch=st.sampled_from(["gaussian", "rademacher", "uniform", "sparse"]))
def test_range_and_qb_of_a_rank_are_one(problem, p, q, sketch):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=q, sketch=sketch, rng=seed)
    assert Q.shape == (A.shape[0], min(k + p, *A.shape))
    assert Q.dtype == A.dtype
    assert_orthonormal(Q)
    Q, B = result = rnla.qb(A, k, n_iter=q, sketch=sketch, rng=seed)
    assert (Q.shape, B.shape) == ((A.shape[0], k), (k, A.shape[1]))
    assert Q.dtype == B.dtype == A.dtype
    assert_orthonormal(Q)
    assert np.abs(B - Q.conj().T @ A).max() <= problem.rounding
    assert result.rank == result.info.rank == k
    assert result.info.converged
    if k == min(A.shape):
        assert np.linalg.norm(A - Q @ B) <= problem.rounding * k**0.5


# Theorems about the average over draws.

DRAWS = 80
SPECTRA = ["slow", "poly1", "poly2", "exp", "step"]


def tail_norm(sigma, power=1):
    return np.sqrt(np.sum(sigma ** (2 * power)))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("k", "p"), [(3, 3), (8, 5), (8, 12)])
def test_average_errors_without_power_iterations(name, dtype, k, p):
    sigma = spectrum(name, 40)
    A = matrix_with_spectrum(50, 40, sigma, rng=k, dtype=dtype)
    errors = [outside(A, rnla.range_finder(A, k, n_oversamples=p, n_iter=0, rng=draw)) for draw in range(DRAWS)]
    frobenius, spectral = (np.array([np.linalg.norm(E, order) for E in errors]) for order in ("fro", 2))
    size = k + p
    growth, e = k / (p - 1), np.e
    # HMT, Theorems 10.5 and 10.6. Averages of 80 draws came out at 0.05 to 0.9 of these bounds.
    assert frobenius.mean() <= (1 + growth) ** 0.5 * tail_norm(sigma[k:])
    assert spectral.mean() <= (1 + growth**0.5) * sigma[k] + e * size**0.5 / p * tail_norm(sigma[k:])
    assert np.mean(frobenius**2) <= min((1 + r / (size - r - 1)) * tail_norm(sigma[r:]) ** 2 for r in range(size - 1))
    # Tropp and Webber, arXiv 2306.12418.
    assert np.mean(spectral**2) <= min(
        (1 + 2 * r / (size - r - 1)) * (sigma[r] ** 2 + e**2 / (size - r) * tail_norm(sigma[r:]) ** 2)
        for r in range(size - 1)
    )
    # Eckart-Young: no space of this dimension does better.
    assert frobenius.min() >= tail_norm(sigma[size:]) * (1 - 1e-12)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("q", [1, 2])
def test_average_errors_with_power_iterations(name, q):
    sigma, k, p = spectrum(name, 40), 6, 5
    A = matrix_with_spectrum(50, 40, sigma, rng=1)
    errors = [
        np.linalg.norm(outside(A, rnla.range_finder(A, k, n_oversamples=p, n_iter=q, rng=draw)), 2) for draw in range(DRAWS)
    ]
    # HMT, Corollary 10.10.
    power = 2 * q + 1
    inner = (1 + (k / (p - 1)) ** 0.5) * sigma[k] ** power + np.e * (k + p) ** 0.5 / p * tail_norm(sigma[k:], power)
    assert np.mean(errors) <= inner ** (1 / power)
    assert min(errors) >= sigma[k + p] * (1 - 1e-12)


@given(problem=problems(names=NAMED, dtypes=("float64", "complex128"), sides=(14, 40)), k=st.integers(2, 6))
def test_the_error_is_within_the_bound_in_probability(problem, k):
    A, sigma, _, seed = problem
    p = 8
    error = np.linalg.norm(outside(A, rnla.range_finder(A, k, n_oversamples=p, n_iter=0, rng=seed)), 2)
    # HMT, Corollary 10.9: fails with probability at most 6 exp(-p) = 2e-3 for each of the fixed examples; the bound is
    # in fact several times the error.
    bound = (1 + 17 * (1 + k / p) ** 0.5) * sigma[k] + 8 * (k + p) ** 0.5 / (p + 1) * tail_norm(sigma[k:])
    assert error <= bound + problem.rounding
    # HMT, eq. (1.9), with the safer constants 11 and 6 p**-p = 4e-7.
    assert error <= (1 + 11 * ((k + p) * min(A.shape)) ** 0.5) * sigma[k] + problem.rounding


def test_without_orthonormalisation_small_directions_would_be_lost():
    # eps**(1 / (2 q + 1)) = 1e-3 for q = 2: the matrix has ten values below that (HMT, Remark 4.3).
    sigma = np.logspace(0, -9, 20)
    A = matrix_with_spectrum(60, 50, np.r_[sigma, np.zeros(30)], rng=0)
    Q = rnla.range_finder(A, 20, n_oversamples=0, n_iter=2, rng=0)
    assert np.linalg.norm(outside(A, Q), 2) <= rounding(A, 1.0)


# Fixed precision.


def optimal_rank(sigma, allowed):
    tails = np.sqrt(np.cumsum(sigma[::-1] ** 2))[::-1]
    return int(np.sum(tails > allowed))


@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
@given(
    problem=problems(names=("slow", "poly1", "poly2", "exp", "step", "low rank", "ties"), sides=(1, 60)),
    rtol=st.sampled_from([0.9, 0.3, 0.1, 1e-2]),
)
def test_the_precision_is_met_by_a_rank_near_the_optimal(function, problem, rtol):
    A, sigma, _, seed = problem
    norm = np.linalg.norm(sigma)
    result = function(A, rtol=rtol, rng=seed)
    error = np.linalg.norm(A - result.to_dense())
    assert result.info.converged
    # A difference of squares with the rounding of its two terms; see `TRUSTED`.
    assert error <= rtol * norm + 20 * problem.eps**0.5 * norm * (problem.eps**0.5 / rtol + problem.eps**0.5)
    assert abs(result.info.error_estimate * norm - error) <= 0.01 * error + 100 * problem.eps**0.5 * norm * problem.eps**0.25
    best = optimal_rank(sigma, rtol * norm)
    # One power iteration and surplus columns: at most a fifth more than the least possible rank, and two.
    assert best - 1 <= result.rank <= 1.2 * best + 2
    assert_orthonormal(result[0])


@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("kind", [np.asarray, CountingOperator, lambda A: CountingRows(A, 16)])
@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
def test_precisions_below_the_root_of_rounding(rtol, kind, function):
    # ||A||^2 - ||B||^2 is zero to rounding where the relative error is 1e-8: it must not be believed.
    sigma = np.exp(-np.arange(80.0) / 2)
    A = matrix_with_spectrum(120, 80, sigma, rng=0)
    result = function(kind(A), rtol=rtol, rng=0)
    error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
    # The error is estimated from eight random vectors: three times too small with a probability of at most 1e-3, that of
    # a chi-square variable with 8 degrees of freedom below 8 / 9.
    assert error <= 3 * rtol
    assert result.info.converged
    best = optimal_rank(sigma, rtol * np.linalg.norm(sigma))
    assert best - 2 <= result.rank <= 1.2 * best + 6


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-5])
def test_precisions_in_single_precision(rtol):
    sigma = np.exp(-np.arange(80.0) / 2)
    A = matrix_with_spectrum(120, 80, sigma, rng=0, dtype="float32")
    result = rnla.qb(A, rtol=rtol, rng=0)
    error = np.linalg.norm(A - result.to_dense().astype(float)) / np.linalg.norm(sigma)
    assert error <= 3 * rtol
    assert result.rank <= 1.2 * optimal_rank(sigma, rtol * np.linalg.norm(sigma)) + 6


@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
@pytest.mark.parametrize("rtol", [0.0, 1e-18])
def test_precision_below_rounding_ends_with_everything_there_is(function, rtol):
    A = matrix_with_spectrum(60, 40, spectrum("slow", 40), rng=0)
    with pytest.warns(rnla.ConvergenceWarning, match=rf"^rnla\.{function.__name__}: rank 40 reached before the precision"):
        result = function(A, rtol=rtol, rng=0)
    assert not result.info.converged
    assert result.rank == 40
    assert np.linalg.norm(A - result.to_dense()) <= rounding(A, 1.0) * 40**0.5


@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
def test_rank_is_a_cap(function):
    sigma = spectrum("slow", 80)
    A = matrix_with_spectrum(120, 80, sigma, rng=0)
    with pytest.warns(rnla.ConvergenceWarning, match="rank 15 reached before the precision") as caught:
        result = function(A, 15, rtol=1e-2, rng=0)
    assert [warning.filename for warning in caught] == [__file__]
    assert result.rank == 15
    assert not result.info.converged
    assert result.info.message == "rank 15 reached before the precision"
    error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
    assert error <= 1.1 * tail_norm(sigma[15:]) / tail_norm(sigma)
    assert abs(result.info.error_estimate / error - 1) <= 0.01
    # A cap that is not reached changes nothing.
    loose = function(A, 60, rtol=0.5, rng=0)
    assert loose.info.converged
    assert loose.rank < 30


@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_absolute_precision_and_the_looser_of_two(function, dtype):
    sigma = spectrum("exp", 60)
    A = matrix_with_spectrum(90, 60, 1e4 * sigma, rng=0, dtype=dtype)
    norm = 1e4 * tail_norm(sigma)
    absolute = function(A, atol=0.1 * norm, rng=0)
    relative = function(A, rtol=0.1, rng=0)
    assert absolute.rank == relative.rank
    assert np.linalg.norm(A - absolute.to_dense()) <= 0.1 * norm * (1 + rounding(A, 1.0))
    assert function(A, rtol=1e-3, atol=0.1 * norm, rng=0).rank == relative.rank
    assert function(A, rtol=0.1, atol=1e-3, rng=0).rank == relative.rank
    assert function(A, atol=2 * norm, rng=0).rank == 0


@pytest.mark.parametrize("name", ["exp", "poly1", "step"])
@pytest.mark.parametrize("rtol", [0.3, 0.05, 1e-3])
def test_spectral_precision(name, rtol):
    sigma = spectrum(name, 80)
    A = matrix_with_spectrum(120, 80, sigma, rng=0)
    result = rnla.qb(A, rtol=rtol, norm=2, rng=0)
    # A block power method of four steps sees at least 0.79 of a norm.
    assert np.linalg.norm(A - result.to_dense(), 2) <= rtol / 0.79
    assert result.info.converged
    best = int(np.sum(sigma > rtol))
    assert best - 1 <= result.rank <= 1.2 * best + 10


@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
@pytest.mark.parametrize("r", [1, 7, 10, 23])
def test_exact_low_rank_is_found(function, r):
    A = matrix_with_spectrum(90, 70, 1.0 / np.arange(1, r + 1), rng=r)
    for rtol in (1e-6, 1e-10, 1e-13):
        result = function(A, rtol=rtol, rng=0)
        assert result.rank == r
        assert np.linalg.norm(A - result.to_dense()) <= rounding(A, 1.0)
        assert result.info.converged


@pytest.mark.parametrize("function", [rnla.svd, rnla.qb])
@pytest.mark.parametrize("option", [{"rtol": 0.1}, {"atol": 0.1}, {"rtol": 0.0}])
@pytest.mark.parametrize("view", [np.asarray, CountingOperator])
def test_zero_needs_no_columns(function, option, view):
    left, *_, right = result = function(view(np.zeros((9, 7))), rng=0, **option)
    assert (left.shape, right.shape) == ((9, 0), (0, 7))
    assert result.info.converged
    assert np.array_equal(result.to_dense(), np.zeros((9, 7)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 40)])
def test_fixed_precision_of_small_shapes(shape):
    A = matrix_with_spectrum(*shape, spectrum("poly1", min(shape)), rng=0)
    for function in (rnla.svd, rnla.qb):
        result = function(A, rtol=1e-3, rng=0)
        assert np.linalg.norm(A - result.to_dense()) <= 1e-3 * np.linalg.norm(A)


def test_blocks_of_any_size_meet_the_precision():
    sigma = spectrum("poly1", 80)
    A = matrix_with_spectrum(120, 80, sigma, rng=0)
    ranks = {}
    for block_size in (1, 3, 10, 40, "auto"):
        for n_iter in (0, 1, 2):
            result = rnla.qb(A, rtol=0.2, block_size=block_size, n_iter=n_iter, rng=0)
            assert np.linalg.norm(A - result.to_dense()) <= 0.2 * np.linalg.norm(A)
            ranks[block_size, n_iter] = result.rank
    assert max(ranks.values()) <= 2.5 * optimal_rank(sigma, 0.2 * tail_norm(sigma))


def test_passes_of_qb():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    for n_iter in (0, 1, 2):
        operator = CountingOperator(A)
        info = rnla.qb(operator, 5, n_iter=n_iter, rng=0).info
        assert info.passes == operator.passes == 2 * n_iter + 2
        assert info.matvecs == operator.matvecs == 5 * (2 * n_iter + 2)
        operator = CountingOperator(A)
        rnla.range_finder(operator, 5, n_iter=n_iter, rng=0)
        assert operator.passes == 2 * n_iter + 1
        rows = CountingRows(A, 16)
        rnla.range_finder(rows, 5, n_iter=n_iter, rng=0)
        assert rows.passes == n_iter + 1
        rows = CountingRows(A, 16)
        info = rnla.qb(rows, rtol=0.2, n_iter=n_iter, rng=0).info
        # Every block reads A 2 n_iter + 2 times, and the norm needs one read.
        assert info.passes == rows.passes == len(info.history) * (2 * n_iter + 2) + 1
        operator = CountingOperator(A)
        info = rnla.qb(operator, rtol=0.2, n_iter=n_iter, rng=0).info
        assert info.passes == operator.passes


def test_the_error_falls_from_block_to_block():
    A = matrix_with_spectrum(120, 80, spectrum("poly1", 80), rng=0)
    errors = [record.error for record in rnla.qb(A, rtol=0.1, block_size=5, rng=0).info.history]
    assert len(errors) > 3
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] <= 0.1


@pytest.mark.parametrize("place", ["strict-device1", "torch"], indirect=True)
def test_other_libraries(place):
    xp, device = place
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    expected = rnla.qb(A, rtol=1e-2, rng=0)
    Q, B = rnla.qb(xp.asarray(A, device=device), rtol=1e-2, rng=0)
    assert array_api_compat.device(Q) == array_api_compat.device(B) == device
    assert Q.shape[1] == expected.rank
    assert_orthonormal(Q)
    assert array_api_compat.device(rnla.range_finder(xp.asarray(A, device=device), 4, rng=0)) == device


@pytest.mark.parametrize("place", ["torch-meta"], indirect=True)
def test_a_fixed_rank_reads_no_value(place):
    xp, device = place
    A = xp.empty((90, 70), dtype=xp.float32, device=device)
    assert rnla.range_finder(A, 4, rng=0).shape == (90, 14)
    Q, B = rnla.qb(A, 4, rng=0)
    assert (Q.shape, B.shape) == ((90, 4), (4, 70))


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"k": 0}, ValueError, "k must be in 1..20"), ({"k": 21}, ValueError, "k must be in 1..20"),
    ({"k": 2.0}, TypeError, "k must be an integer"), ({"n_iter": -1}, ValueError, "n_iter must be at least 0"),
    ({"n_iter": 1.0}, TypeError, "n_iter must be an integer"), ({"sketch": "x"}, ValueError, "sketch must be one of"),
    ({"rng": "x"}, TypeError, "rng must be"),
])  # fmt: skip
@pytest.mark.parametrize("function", ["qb", "range_finder"])
def test_bad_arguments(function, options, error, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(error) as caught:
        getattr(rnla, function)(A, **{"k": 3, **options})
    assert str(caught.value).startswith(f"rnla.{function}: {message}")
    assert A.passes == 0


@pytest.mark.parametrize(("options", "error", "message"), [
    ({}, ValueError, "one of k, rtol and atol must be given"), ({"rtol": -1}, ValueError, "rtol must be finite"),
    ({"atol": float("nan")}, ValueError, "atol must be finite"), ({"k": 3, "norm": "nuc"}, ValueError, "norm must be one of 'fro', 2"),
    ({"k": 3, "norm": True}, ValueError, "norm must be one of"), ({"k": 3, "block_size": 0}, ValueError, "block_size must"),
    ({"rtol": 0.1, "callback": 3}, TypeError, "callback must be callable"),
])  # fmt: skip
def test_bad_arguments_of_qb(options, error, message):
    with pytest.raises(error) as caught:
        rnla.qb(np.ones((30, 20)), **options)
    assert str(caught.value).startswith(f"rnla.qb: {message}")


# Parts.


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(30, 4), (4, 30), (5, 5), (1, 1), (3, 0), (0, 3)])
def test_thin_svd(dtype, shape):
    X = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    U, s, Vh = _rangefinder.thin_svd(X)
    assert U.dtype == Vh.dtype == X.dtype
    assert s.dtype == X.real.dtype
    allowed = rounding(np.zeros((max(*shape, 1), 1), dtype), 10.0)
    assert np.abs((U * s) @ Vh - X).max(initial=0.0) <= allowed
    assert_orthonormal(U)
    assert_orthonormal(Vh.conj().T)


def test_thin_svd_keeps_small_values():
    sigma = np.logspace(0, -14, 8)
    X = matrix_with_spectrum(100, 8, sigma, rng=0)
    # By the eigenvalues of X^T X all below 1e-8 would be lost.
    assert np.abs(_rangefinder.thin_svd(X)[1] - sigma).max() <= rounding(X, 1.0) / 10


def test_squares_are_summed_in_double_precision():
    X = np.full((2**25, 1), 1.0, np.float32)
    X[1:] = 2.0**-12  # each of these is below the rounding of the sum in single precision
    assert abs(_rangefinder.column_squares(X)[0] - (1 + (2**25 - 1) * 2.0**-24)) <= 1e-9
