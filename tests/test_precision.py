"""`svd` and `qb` to a precision: it is met, by hardly more columns than it needs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems, rounding

import rnla
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum


def tail_norm(sigma):
    return np.sqrt(np.sum(sigma**2))


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
    assert (
        abs(result.info.error_estimate * norm - error)
        <= 0.01 * error + 100 * problem.eps**0.5 * norm * problem.eps**0.25
    )
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
    # The error is estimated from eight random vectors: a third of it comes out with a probability of at most 1e-3, of
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
    with pytest.warns(
        rnla.ConvergenceWarning, match=rf"^rnla\.{function.__name__}: rank 40 reached before the precision"
    ):
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


def test_the_error_falls_from_block_to_block():
    A = matrix_with_spectrum(120, 80, spectrum("poly1", 80), rng=0)
    errors = [record.error for record in rnla.qb(A, rtol=0.1, block_size=5, rng=0).info.history]
    assert len(errors) > 3
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] <= 0.1
