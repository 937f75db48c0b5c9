"""rnla.complete: exact recovery, noise, rank, invariance, degenerate and bad input."""

import warnings

import numpy as np
import pytest
import scipy.sparse
from completions import problem_of, relative_error, solved
from hypothesis import given, settings
from hypothesis import strategies as st

import rnla

EPS = np.finfo(float).eps


def test_exact_recovery():
    problem, exact = problem_of((200, 150), 4, 3.0, condition=1e3)
    result = solved(problem, 4)
    assert result.converged
    assert result.n_iter <= 40
    assert relative_error(result, exact) < 1e-12
    assert np.abs(result.residual).max() <= 1e-11 * np.abs(problem.values).max()
    assert result.history.eps.shape == (result.n_iter,)
    assert np.all(np.diff(result.history.eps) <= 0)


def test_condition_of_ten_billion():
    problem, exact = problem_of((150, 150), 5, 4.0, condition=1e10)
    result = solved(problem, 5)
    assert result.converged
    assert relative_error(result, exact) < 1e-13
    assert abs(result.s[-1] / problem.S[-1] - 1) <= 1e-4


@given(
    st.integers(20, 40), st.integers(20, 40), st.integers(1, 3), st.floats(0, 5), st.sampled_from("fdFD"),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=10)
def test_random_problems_are_solved_or_reported(m, n, k, decades, kind, seed):
    problem, exact = problem_of((m, n), k, 3.5, condition=10**decades, seed=seed, dtype=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        result = solved(problem, k)
    assert result.U.dtype == np.dtype(kind)
    eps = np.finfo(kind).eps
    if result.converged and decades < 3:
        assert relative_error(result, exact) <= 1e5 * eps
        np.testing.assert_allclose(result.U.conj().T @ result.U, np.eye(k), atol=100 * eps)


def test_forms_of_input_agree():
    problem, exact = problem_of((30, 25), 2, 4.0)
    dense = np.full(problem.shape, np.nan)
    dense[problem.rows, problem.cols] = problem.values
    known = ~np.isnan(dense)
    sparse = scipy.sparse.coo_array((problem.values, (problem.rows, problem.cols)), shape=problem.shape)
    import dask.array
    import torch

    shuffled = np.random.default_rng(0).permutation(problem.values.size)
    triple = tuple(x[shuffled] for x in (problem.rows, problem.cols, problem.values))
    cases = [
        (dense, {}), (np.where(known, dense, 7.0), {"mask": known}), (sparse, {}), (sparse.tocsr(), {}),
        (np.ma.array(np.where(known, dense, 0), mask=~known), {}), (dask.array.from_array(dense, chunks=(8, 25)), {}),
        (triple, {"shape": problem.shape}), (torch.from_numpy(dense), {}),
        (tuple(torch.from_numpy(x) for x in triple), {"shape": problem.shape}),
    ]  # fmt: skip
    reference = solved(problem, 2).to_dense()
    for A, options in cases:
        result = rnla.complete(A, 2, rng=0, **options)
        assert type(result.U) is (torch.Tensor if "torch" in type(A if not isinstance(A, tuple) else A[2]).__module__
                                  else np.ndarray)  # fmt: skip
        np.testing.assert_allclose(np.asarray(result.to_dense()), reference, atol=1e-10 * abs(exact).max())


def test_explicit_zeros_of_a_sparse_matrix_are_observed():
    rows, cols = [0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 2, 0, 1, 2, 0, 2]
    A = np.outer([1.0, 2, 0, 4], [1.0, 1, 1])
    stored = scipy.sparse.csr_array((A[rows, cols], (rows, cols)), shape=(4, 3))
    assert stored.nnz == 8
    np.testing.assert_allclose(rnla.complete(stored, 1).to_dense(), A, atol=1e-12)


def test_invariance():
    problem, exact = problem_of((40, 30), 2, 3.5, condition=10.0)
    reference = solved(problem, 2).to_dense()
    size = abs(exact).max()
    transposed = rnla.complete((problem.cols, problem.rows, problem.values), 2, shape=problem.shape[::-1], rng=0)
    np.testing.assert_allclose(transposed.to_dense().T, reference, atol=1e-9 * size)
    order = np.random.default_rng(0).permutation(40)
    permuted = rnla.complete((order[problem.rows], problem.cols, problem.values), 2, shape=problem.shape, rng=0)
    np.testing.assert_allclose(permuted.to_dense()[order], reference, atol=1e-9 * size)
    for scale in (1e-150, 1e150):
        scaled = rnla.complete((problem.rows, problem.cols, scale * problem.values), 2, shape=problem.shape, rng=0)
        np.testing.assert_allclose(scaled.to_dense() / scale, reference, atol=1e-10 * size)
    again = solved(problem, 2).to_dense()
    assert np.array_equal(again, reference)


@pytest.mark.parametrize("k", [1, 3])
def test_the_rank_is_found(k):
    problem, exact = problem_of((60, 60), k, 3.5, condition=100.0 if k > 1 else 1.0, seed=1)
    result = solved(problem)
    assert result.rank == k
    assert result.converged
    assert relative_error(result, exact) < 1e-10


def test_a_rank_too_large_by_one_does_little_harm():
    problem, exact = problem_of((80, 70), 3, 4.0, condition=10.0)
    assert relative_error(solved(problem, 4), exact) < 1e-8


def least_squares_from_the_truth(problem, exact, k):
    """Alternate least squares for the factors, from those of the truth: the best that is known of noisy entries."""
    L, R = problem.U * problem.S, problem.Vh.T.copy()
    for _ in range(30):
        for X, Y, here, there in ((L, R, problem.rows, problem.cols), (R, L, problem.cols, problem.rows)):
            for i in range(len(X)):
                some = here == i
                X[i] = np.linalg.lstsq(Y[there[some]], problem.values[some], rcond=None)[0]
    return np.linalg.norm(L @ R.T - exact) / np.linalg.norm(exact)


def test_noise():
    k = 3
    _, exact = problem_of((100, 80), k, 4.0, condition=5.0)
    tau = 0.1 * np.sqrt(np.mean(exact**2))
    problem, exact = problem_of((100, 80), k, 4.0, condition=5.0, noise=tau)
    oracle = least_squares_from_the_truth(problem, exact, k)
    assert relative_error(solved(problem, k, noise_std=tau), exact) <= 1.1 * oracle
    estimated = solved(problem, k, noise_std="auto")
    assert abs(estimated.noise_std / tau - 1) <= 0.1
    assert relative_error(estimated, exact) <= 1.12 * oracle
    searched = solved(problem)
    assert searched.rank == k
    assert relative_error(searched, exact) <= 1.2 * oracle


def test_noise_that_is_not_there_is_not_found():
    problem, exact = problem_of((80, 70), 3, 4.0)
    result = solved(problem, 3, noise_std="auto")
    assert result.noise_std == 0
    assert relative_error(result, exact) < 1e-12


def test_results_evaluate_entries_operators_and_new_rows():
    problem, exact = problem_of((60, 40), 3, 4.0, condition=10.0)
    result = solved(problem, 3)
    size = abs(exact).max()
    X = result.to_dense()
    rows, cols = np.array([3, 59, 0]), np.array([1, 39, 7])
    np.testing.assert_allclose(result.entries(rows, cols), X[rows, cols], atol=1e-13 * size)
    op = result.to_linear_operator()
    y = np.random.default_rng(0).standard_normal((60, 2))
    np.testing.assert_allclose(op.rmatmat(y), X.T @ y, atol=1e-12)
    kept = result.to_dense(keep_observed=True)
    assert np.array_equal(kept[problem.rows, problem.cols], problem.values)
    new = np.random.default_rng(1).standard_normal((5, 3)) @ problem.Vh
    given = np.where(np.random.default_rng(2).random(new.shape) < 0.5, new, np.nan)
    given[4] = np.nan
    found = result.fold_in(given)
    np.testing.assert_allclose(found[:4], new[:4], atol=1e-8)
    np.testing.assert_allclose(found[4], 0, atol=1e-12)
    assert "rank 3" in repr(result)


@pytest.mark.parametrize("center", ["mean", "columns", "rows", "both"])
def test_centring(center):
    problem, exact = problem_of((60, 50), 2, 5.0)
    shift = {
        "mean": np.full((60, 50), 3.0), "columns": np.arange(50.0)[None, :] + np.zeros((60, 1)),
        "rows": np.arange(60.0)[:, None] + np.zeros(50), "both": np.add.outer(np.arange(60.0), np.arange(50.0)),
    }[center]  # fmt: skip
    A = exact + shift
    values = A[problem.rows, problem.cols]
    result = rnla.complete((problem.rows, problem.cols, values), 4, shape=A.shape, center=center, rng=0)
    assert np.linalg.norm(result.to_dense() - A) <= 1e-6 * np.linalg.norm(A)
    y = np.random.default_rng(0).standard_normal((50, 2))
    np.testing.assert_allclose(result.to_linear_operator() @ y, result.to_dense() @ y, rtol=1e-9, atol=1e-9)


def test_degenerate_problems():
    full = np.outer(np.arange(1.0, 5.0), np.ones(3)) + np.eye(4, 3)
    U, s, Vh = np.linalg.svd(full)
    np.testing.assert_allclose(rnla.complete(full, 2).to_dense(), (U[:, :2] * s[:2]) @ Vh[:2], atol=1e-9)
    zero = rnla.complete(np.array([[0.0, np.nan], [0.0, 0.0]]), 1)
    assert (zero.rank, zero.converged) == (0, True)
    assert not zero.to_dense().any()
    row = rnla.complete(np.array([[1.0, 2.0, 3.0]]), 1)
    np.testing.assert_allclose(row.to_dense(), [[1, 2, 3]], atol=1e-12)
    constant = np.full((6, 5), 2.0)
    constant[1, 2] = np.nan
    np.testing.assert_allclose(rnla.complete(constant, 1).to_dense(), 2.0, atol=1e-12)


def test_rows_without_entries_are_finite_and_reported():
    A = np.outer(np.arange(1.0, 7.0), np.arange(1.0, 6.0))
    A[2] = np.nan
    with pytest.warns(rnla.AccuracyWarning, match="1 rows and 0 columns"):
        result = rnla.complete(A, 1)
    X = result.to_dense()
    assert np.isfinite(X).all()
    np.testing.assert_allclose(X[2], 0, atol=1e-12)
    np.testing.assert_allclose(X[3], A[3], atol=1e-12)


def test_too_few_entries_are_reported():
    problem, _ = problem_of((40, 40), 3, 1.1, seed=2)
    with pytest.warns(rnla.ConvergenceWarning, match="oversampling 1.10"):
        result = solved(problem, 3, max_iter=25)
    assert not result.converged
    assert "too few entries" in result.message
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solved(problem, 8, max_iter=3)
    said = " ".join(str(warning.message) for warning in caught)
    assert "degrees of freedom" in said
    assert "fewer than 8 observed entries" in said


def test_callback_and_start():
    problem, exact = problem_of((60, 50), 2, 3.5)
    seen = []

    def stop(record):
        seen.append(record)
        if len(seen) == 3:
            raise StopIteration

    stopped = solved(problem, 2, callback=stop)
    assert (len(seen), stopped.converged, stopped.message) == (3, False, "stopped by the callback")
    result = solved(problem, 2)
    again = solved(problem, 2, init=result)
    assert again.n_iter <= 3
    assert relative_error(again, exact) < 1e-12


def test_memory_is_that_of_the_entries():
    import tracemalloc

    n, count = 4000, 60_000
    rng = np.random.default_rng(0)
    U, V = rng.standard_normal((2, n, 2))
    place = rng.permutation(np.unique(rng.integers(0, n * n, count)))
    rows, cols = place // n, place % n
    values = np.einsum("ij,ij->i", U[rows], V[cols])
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rnla.complete((rows, cols, values), 2, shape=(n, n), max_iter=3, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n / 4  # a quarter of one dense matrix


@pytest.mark.parametrize(
    ("A", "options", "error", "text"),
    [
        (([0, 0], [1, 1], [1.0, 2.0]), {"shape": (2, 2)}, ValueError, "given once"),
        (([0, 5], [1, 1], [1.0, 2.0]), {"shape": (2, 2)}, ValueError, "rows must be in 0..1"),
        (([0, 1], [1, -1], [1.0, 2.0]), {"shape": (2, 2)}, ValueError, "cols must be in 0..1"),
        (([0, 1], [1, 1], [1.0, np.nan]), {"shape": (2, 2)}, ValueError, "finite"),
        (([0.0, 1], [1, 1], [1.0, 2.0]), {"shape": (2, 2)}, TypeError, "rows must be integers"),
        (([0, 1], [1, 1], [1.0, 2.0]), {}, ValueError, "shape must be"),
        (np.eye(3), {"shape": (3, 3)}, ValueError, "shape must be None"),
        (np.full((3, 3), np.nan), {}, ValueError, "at least one observed"),
        (np.array([[1.0, np.inf], [1, 2]]), {}, ValueError, "finite"),
        (np.eye(3), {"mask": np.eye(3)}, TypeError, "mask must be boolean"),
        (np.eye(3), {"mask": np.eye(2, dtype=bool)}, ValueError, "shape of A"),
        (scipy.sparse.eye_array(3), {"mask": np.eye(3, dtype=bool)}, ValueError, "mask must be None"),
        (np.eye(3), {"k": 4}, ValueError, "k must be in 1..3"),
        (np.eye(3), {"k": 0}, ValueError, "k must be"),
        (np.eye(3), {"p": 1.5}, ValueError, "p must be in"),
        (np.eye(3), {"reg": -1.0}, ValueError, "reg must be"),
        (np.eye(3), {"noise_std": -1.0}, ValueError, "noise_std must be"),
        (np.eye(3), {"noise_std": 1.0, "reg": 1.0}, ValueError, "noise_std must be 0"),
        (np.eye(3), {"center": "left"}, ValueError, "center must be"),
        (np.eye(3), {"preconditioner": "ilu"}, ValueError, "preconditioner must be"),
        (np.array([["a", "b"]]), {}, TypeError, "dtype"),
        ("text", {}, TypeError, "A must be"),
        (np.ones(3), {}, ValueError, "two-dimensional"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(A, options, error, text):
    A = tuple(np.array(x) for x in A) if isinstance(A, tuple) else A
    options = {"k": 1, **options}
    with pytest.raises(error, match=text):
        rnla.complete(A, **options)


def test_cross_validation():
    _, exact = problem_of((50, 40), 2, 5.0)
    tau = 0.05 * np.sqrt(np.mean(exact**2))
    problem, exact = problem_of((50, 40), 2, 5.0, noise=tau)
    entries = problem.rows, problem.cols, problem.values
    found = rnla.complete_cv(entries, (1, 2), reg_factors=(0.3, 1.0), p=0.0, shape=problem.shape, rng=0)
    assert found.k == 2
    assert len(found.scores) == 4
    assert found.rmse == min(score.rmse for score in found.scores)
    assert relative_error(found.best, exact) < 0.1
    with pytest.raises(ValueError, match="holdout"):
        rnla.complete_cv(entries, (1,), shape=problem.shape, holdout=1.5)
    with pytest.raises(ValueError, match="reg_factors"):
        rnla.complete_cv(entries, (1,), shape=problem.shape, reg_factors=())
    with pytest.raises(TypeError, match="option 'kk'"):
        rnla.complete_cv(entries, (1,), shape=problem.shape, kk=3)
