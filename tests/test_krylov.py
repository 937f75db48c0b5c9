"""The block Krylov iterations keep their invariants, and end for the right reason."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems, rounding

import rnla
from rnla._krylov import ShortBasis, TestColumns, _missed, short_side, two_sided
from rnla._matrix import as_matrix
from rnla._orth import orth
from rnla._progress import Monitor
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, haar_basis, matrix_with_spectrum, spectrum

DOUBLE = ("float64", "complex128")


def options(M, seed=0, **changes):
    """Return the keywords that the two iterations share."""
    common = {
        "tol": 1e-2, "extra": 4, "max_basis": M.shape[1], "max_passes": 500, "verify": False,
        "fresh": TestColumns(M, "gaussian", seed), "monitor": Monitor(None, False, "test"), "caller": "test",
    }  # fmt: skip
    return common | changes


def run_two_sided(A, k, block, **changes):
    M = as_matrix(A, "test")
    settings = options(M, **changes)
    return two_sided(M, k, orth(settings["fresh"](block))[0], **settings)


def run_short_side(A, k, block, **changes):
    M = as_matrix(A, "test")
    return short_side(M, k, block=block, keep_images=True, **options(M, **changes))


# The basis of the short side.


@given(
    problem=problems(dtypes=DOUBLE, sides=(8, 40), tall=True),
    block=st.integers(1, 5),
    steps=st.integers(1, 8),
    restart=st.booleans(),
    images=st.booleans(),
)
def test_the_recurrence_of_the_short_basis(problem, block, steps, restart, images):
    A, sigma, _, seed = problem
    M = as_matrix(A, "test")
    n = A.shape[1]
    fresh = TestColumns(M, "gaussian", seed)
    basis = ShortBasis(M, n, images, "test")
    P = orth(fresh(min(block, n)))[0]
    for step in range(steps):
        if basis.size + P.shape[1] > n or not P.shape[1]:
            break
        P, B = basis.expand(P, fresh)
        Q = basis.Q
        assert_orthonormal(np.concatenate([Q, P], axis=1))
        T = basis._T[: basis.size, : basis.size]
        allowed = problem.rounding * max(sigma[0], np.finfo(float).tiny) * 4
        # A^H A Q = Q T + P B E_last^H, also after a restart, whose coupling is all in the last block.
        left = A.conj().T @ (A @ Q) - Q @ T
        left[:, left.shape[1] - B.shape[1] :] -= P @ B
        if restart and step > 1:
            # The coupling of the kept vectors is in T only; the recurrence holds for the projection.
            left = Q.conj().T @ left
        assert np.linalg.norm(left) <= allowed
        assert np.array_equal(T, T.conj().T)
        if images:
            assert np.linalg.norm(basis.Y - A @ Q) <= problem.rounding
        values, S = basis.ritz()
        assert np.all(values >= 0)
        assert np.all(np.diff(values) <= 0)
        assert np.all(np.sqrt(values) <= sigma[: len(values)] + np.sqrt(allowed))
        if restart and step == 1 and basis.size > 2:
            before = values[:2].copy()
            basis.restart(values, S, 2)
            assert basis.size == 2
            assert_orthonormal(basis.Q)
            assert np.abs(basis.ritz()[0] - before).max() <= allowed


@given(problem=problems(dtypes=DOUBLE, sides=(1, 40)), block=st.integers(1, 8), restarts=st.booleans())
def test_the_adjoint_relation_of_the_two_sided_iteration_is_exact(problem, block, restarts):
    A, _, k, _ = problem
    block, n = min(block, A.shape[1]), A.shape[1]
    k = min(k, 8)
    found = run_two_sided(A, k, block, max_basis=min(k + 2 * block, n) if restarts else n)
    U, s, V = found.U, found.s, found.V
    assert found.converged
    assert_orthonormal(U)
    assert_orthonormal(V)
    # A^H U = V S to rounding; all of the residual is on the other side, and known exactly.
    assert np.linalg.norm(A.conj().T @ U - V * s) <= problem.rounding
    residuals = np.linalg.norm(A @ V - U * s, axis=0)
    assert np.abs(residuals - found.residuals).max(initial=0.0) <= problem.rounding


@pytest.mark.parametrize("run", [run_two_sided, run_short_side])
@given(problem=problems(dtypes=DOUBLE, sides=(20, 40), tall=True), block=st.integers(1, 6))
def test_restarts_change_what_is_kept_and_not_what_is_found(run, problem, block):
    A, sigma, _, _ = problem
    k = 4
    found = run(A, k, block, tol=1e-6, max_basis=k + 2 * block + 2, verify=True)
    assert found.converged
    count = len(found.s)  # lower than k where the rank is
    assert np.all(sigma[count:k] <= problem.rounding)
    # Converged: residuals of 1e-6 sigma and, of values that are squared, the root of their rounding.
    allowed = 2e-6 * k**0.5 * sigma[0] + problem.rounding
    small = sigma[:count] < 1e-7 * sigma[0]
    assert np.all((np.abs(found.s - sigma[:count]) <= allowed) | small)


# Why an iteration ends.


@pytest.mark.parametrize("run", [run_two_sided, run_short_side])
def test_rank_below_k_ends_with_what_there_is(run):
    A = matrix_with_spectrum(60, 40, [3.0, 2.0, 1.0], rng=0)
    found = run(A, 8, 5, verify=True)
    assert found.converged
    assert np.abs(found.s[:3] - [3, 2, 1]).max() <= rounding(A, 10.0)
    assert np.all(found.s[3:] <= 1e-6)


@pytest.mark.parametrize("run", [run_two_sided, run_short_side])
def test_tolerances_are_met_and_not_exceeded_by_far(run):
    A = matrix_with_spectrum(200, 150, spectrum("slow", 150), rng=0)
    passes = []
    for tol in (1e-1, 1e-2, 1e-4, 1e-8):
        M = as_matrix(A, "test")
        settings = options(M, tol=tol, monitor=(monitor := Monitor(None, False, "test")))
        if run is run_two_sided:
            found = two_sided(M, 5, orth(settings["fresh"](10))[0], **settings)
        else:
            found = short_side(M, 5, block=10, keep_images=True, **settings)
        assert found.converged
        residuals = np.linalg.norm(A @ found.V - found.U * found.s, axis=0) / found.s
        assert residuals.max() <= 2 * tol
        # The step before had not met the tolerance.
        errors = [record.error for record in monitor.history]
        assert errors[-1] <= tol < errors[-2]
        passes.append(M.counter.passes)
    assert passes == sorted(set(passes))


@pytest.mark.parametrize("method", ["gram", "krylov"])
@pytest.mark.parametrize("view", [np.asarray, CountingOperator, lambda A: CountingRows(A, 16)])
def test_the_history_shows_the_way_to_the_tolerance(method, view):
    A = matrix_with_spectrum(150, 120, spectrum("poly1", 120), rng=0)
    info = rnla.svd(view(A), 10, method=method, block_size=4, tol=1e-5, rng=0).info
    errors = [record.error for record in info.history]
    assert [record.iteration for record in info.history] == list(range(1, len(errors) + 1))
    assert errors[0] == np.inf  # fewer triplets than asked for
    assert errors[-1] <= 1e-5
    assert all(np.diff([record.seconds for record in info.history]) >= 0)
    assert info.residuals.max() <= 1e-5 * 1.0
    assert 0 < info.history[-1].seconds <= info.elapsed


@pytest.mark.parametrize("view", [np.asarray, CountingOperator, lambda A: CountingRows(A, 16)])
@pytest.mark.parametrize("max_passes", [4, 6, 9, 12])
def test_one_method_continues_another_within_one_budget(view, max_passes):
    sigma = np.logspace(0, -12, 100)
    A = matrix_with_spectrum(150, 100, sigma, rng=0)
    options = {"method": "gram", "block_size": 8, "tol": 1e-3, "rng": 0}
    with pytest.warns(rnla.ConvergenceWarning, match=f"max_passes = {max_passes} reached "):
        result = rnla.svd(view(A), 80, max_passes=max_passes, **options)
    assert not result.info.converged
    assert max_passes - 2 <= result.info.passes <= max_passes
    assert [record.iteration for record in result.info.history] == list(range(1, len(result.info.history) + 1))
    assert np.abs(result.S[:4] / sigma[:4] - 1).max() <= 0.5
    enough = rnla.svd(view(A), 80, max_passes=500, **options)
    assert enough.info.converged
    assert enough.info.method == "gram+krylov"
    assert np.all(np.abs(enough.S - sigma[:80]) <= 1e-3 * sigma[:80] + rounding(A, 1.0) / 10)


@pytest.mark.parametrize("method", ["gram", "krylov"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_verification_with_no_room_left(method, width):
    # All triplets of a matrix narrower than the columns that look for missed copies, and blocks narrower still.
    for n in (2, 3, 4, 5, 6):
        for seed in range(20):
            sigma = 1.0 / np.arange(1, n + 1) ** 2
            A = matrix_with_spectrum(n, n, sigma, rng=seed)
            result = rnla.svd(A, n, method=method, block_size=width, tol=0.1, verify=True, max_passes=500, rng=seed)
            assert result.info.converged
            assert np.abs(result.S - sigma).max() <= 0.01 * n


# Missed copies.


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_missed_directions_are_found_and_absent_ones_are_not(dtype):
    sigma = np.r_[np.ones(8), np.full(42, 0.5)]
    U, V = haar_basis(60, 50, rng=0, dtype=dtype), haar_basis(50, 50, rng=1, dtype=dtype)
    M = as_matrix(((U * sigma) @ V.conj().T).astype(dtype), "test")
    for seed in range(20):
        fresh = TestColumns(M, "gaussian", seed)
        assert _missed(M, V[:, :8], 1.0, 1.0, 1e-2, fresh) is None
        # Five of the eight known: the sixth value of A is 1, that of the known ones 0.5.
        G = _missed(M, np.concatenate([V[:, :5], V[:, 8:11]], axis=1), 1.0, 0.5, 1e-2, fresh)
        assert_orthonormal(G)
        # Its directions lean to the missing ones: two rounds amplify them by (1 / 0.5)**4.
        assert np.linalg.norm(V[:, 5:8].conj().T @ G) > 1


@pytest.mark.parametrize("method", ["gram", "krylov"])
def test_verification_is_on_for_narrow_blocks_alone(method):
    A = matrix_with_spectrum(150, 120, spectrum("poly1", 120), rng=0)
    counts = {}
    for verify in ("auto", True, False):
        for width in (4, 10):
            counts[verify, width] = rnla.svd(
                CountingOperator(A), 8, method=method, block_size=width, verify=verify, rng=0
            ).info
    assert counts["auto", 4].passes == counts[True, 4].passes > counts[False, 4].passes
    assert counts["auto", 10].passes == counts[False, 10].passes < counts[True, 10].passes
    # Four columns, twice through A^H A and once more through A.
    assert counts[True, 4].matvecs - counts[False, 4].matvecs == 4 * 5


@pytest.mark.parametrize("method", ["gram", "krylov"])
def test_without_time_to_verify_nothing_is_claimed(method):
    # Eight columns converge on eight of the twenty ones and on smaller values, long before the budget for a check.
    sigma = np.r_[np.ones(20), np.full(60, 0.01) * spectrum("slow", 60)]
    A = matrix_with_spectrum(100, 80, sigma, rng=0)
    for passes in range(3, 14):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = rnla.svd(A, 20, method=method, block_size=8, max_passes=passes, rng=0)
        complete = np.abs(result.S - 1).max() <= 1e-3
        assert complete or not result.info.converged
        assert result.info.converged == (not caught)


# Random columns.


def test_fresh_columns_are_those_of_one_test_matrix():
    M = as_matrix(np.ones((30, 20)), "test")
    fresh = TestColumns(M, "gaussian", 5)
    parts = [fresh(3), fresh(1), fresh(4)]
    assert np.array_equal(np.concatenate(parts, axis=1), rnla.sketch.test_matrix("gaussian", 5, 20, 8))


@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128"])
def test_complex_and_single_precision_keep_their_dtype(dtype):
    A = matrix_with_spectrum(60, 40, spectrum("exp", 40), rng=0, dtype=dtype)
    for run in (run_two_sided, run_short_side):
        found = run(A, 5, 5)
        assert found.U.dtype == found.V.dtype == A.dtype
        assert found.s.dtype == np.float64  # small work is done in double precision
        assert_orthonormal(found.U)
