"""Robust PCA by `riecur`: L and the outliers are recovered, from any kind of matrix, and a wrong answer is not hidden.

Recovery is probabilistic: of the regimes here each was solved for every one of 10 seeds or more by a prototype, so a
failure probability above 5 % for any single problem would have shown with probability 0.4 each; the seeds are fixed.
"""

import tracemalloc
import warnings

import array_api_compat
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import DTYPES

import rnla
from rnla import ConvergenceWarning
from rnla._backend import to_host
from rnla._rpca_entries import BLOCK_BYTES
from rnla.datasets import robust_pca_problem
from rnla.testing import CountingRows, assert_orthonormal

TOL = 1e-6  # the default
LIMIT = 100 * TOL
VALUES = pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch"], indirect=True)


def error(result, low_rank):
    L = to_host(result.U) * to_host(result.s) @ to_host(result.Vh)
    return np.linalg.norm(L - low_rank) / np.linalg.norm(low_rank)


def assert_recovered(problem, result, limit=LIMIT):
    assert result.converged, result.message
    assert result.status == "converged"
    assert not len(result.unresolved_rows)
    assert not len(result.unresolved_cols)
    assert error(result, problem.low_rank) <= limit
    assert_orthonormal(result.U)
    assert_orthonormal(result.Vh.conj().T)
    assert np.all(np.diff(result.s) <= 0)


# What is recovered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "k", "outliers", "size"),
    [(500, 5, 0.3, 1), (500, 5, 0.5, 5), (500, 8, 0.3, 1), (300, 3, 0.6, 1), (200, 2, 0.4, 10), (400, 3, 0.7, 1)],
)
@pytest.mark.parametrize("seed", range(3))
def test_exact_recovery(n, k, outliers, size, seed):
    problem = robust_pca_problem(n, n, k, outliers=outliers, size=size, rng=seed)
    result = rnla.robust_pca(problem.A, k, rng=seed)
    assert_recovered(problem, result)
    assert result.kept_fresh == pytest.approx(1 - outliers, abs=0.02)
    assert result.n_iter <= 45


@settings(max_examples=15)
@given(
    m=st.integers(200, 400),
    n=st.integers(200, 400),
    k=st.integers(1, 3),
    outliers=st.floats(0, 0.5),
    size=st.sampled_from([0.2, 1.0, 20.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_recovery_of_any_problem(m, n, k, outliers, size, seed):
    problem = robust_pca_problem(m, n, k, outliers=outliers, size=size, rng=seed)
    result = rnla.robust_pca(problem.A, k, rng=seed)
    assert_recovered(problem, result)


def test_a_slower_decay_recovers_from_more_outliers():
    problem = robust_pca_problem(500, 500, 4, outliers=0.77, rng=1)
    assert_recovered(problem, rnla.robust_pca(problem.A, 4, decay=0.9, rng=0))


def test_support_and_values_of_the_outliers():
    problem = robust_pca_problem(300, 250, 3, outliers=0.2, rng=0)
    result = rnla.robust_pca(problem.A, 3, rng=0)
    S = problem.A - problem.low_rank
    found = result.sparse(problem.A)
    large = np.abs(S) > 1e-3 * np.abs(problem.low_rank).mean()
    support = found.toarray() != 0
    assert not np.any(large & ~support)
    assert not np.any(support & ~problem.outliers)
    assert np.linalg.norm(found.toarray() - S) <= 1e-5 * np.linalg.norm(S)
    blocks = list(result.outlier_blocks(problem.A))
    assert [rows.start for rows, _ in blocks] == sorted(rows.start for rows, _ in blocks)
    assert sum(part.nnz for _, part in blocks) == found.nnz
    assert result.sparse(problem.A, threshold=np.inf).nnz == 0
    assert result.sparse(problem.A, threshold=0.0).nnz >= found.nnz
    assert result.residual_norm(problem.A) <= LIMIT
    some = result.low_rank([3, 1], slice(0, 5))
    assert np.abs(some - problem.low_rank[[3, 1], :5]).max() <= LIMIT * np.abs(problem.low_rank).max()
    with pytest.raises(ValueError, match="threshold must be non-negative"):
        result.sparse(problem.A, threshold=-1.0)
    with pytest.raises(ValueError, match=r"A must have the shape \(300, 250\)"):
        result.sparse(problem.A[:-1])


@pytest.mark.parametrize("power", [-300, -3, 3, 300])
def test_scaling_by_a_power_of_two_changes_nothing_else(power):
    problem = robust_pca_problem(120, 100, 2, rng=0)
    one, other = (rnla.robust_pca(A, 2, rng=0) for A in (problem.A, problem.A * 2.0**power))
    assert other.n_iter == one.n_iter
    assert np.abs(other.U - one.U).max() <= 1e-12
    assert np.abs(other.Vh - one.Vh).max() <= 1e-12
    assert other.s * 2.0**-power == pytest.approx(one.s, rel=1e-12)


def test_transposition_permutation_and_sign():
    problem = robust_pca_problem(200, 150, 2, outliers=0.3, rng=0)
    rows, cols = np.random.default_rng(0).permutation(200), np.random.default_rng(1).permutation(150)
    for change in (lambda X: X.T, lambda X: -X, lambda X: X[rows][:, cols], np.asfortranarray, lambda X: X[::-1]):
        assert error(rnla.robust_pca(change(problem.A), 2, rng=0), change(problem.low_rank)) <= LIMIT


def test_without_outliers_it_is_a_truncated_svd():
    problem = robust_pca_problem(200, 150, 3, outliers=0.0, rng=0)
    result = rnla.robust_pca(problem.A, 3, rng=0)
    assert result.n_iter <= 2
    assert error(result, problem.low_rank) <= 1e-13
    assert result.sparse(problem.A).nnz == 0
    assert result.kept == result.kept_fresh == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_constant_matrices(dtype):
    zero = rnla.robust_pca(np.zeros((30, 20), dtype), 2, rng=0)
    assert zero.status == "zero"
    assert zero.converged
    assert zero.U.dtype == dtype
    assert_orthonormal(zero.U)
    assert not zero.low_rank().any()
    constant = rnla.robust_pca(np.full((30, 20), 3, dtype), 2, rng=0)
    assert constant.converged
    assert np.abs(constant.low_rank() - 3).max() <= 100 * np.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (2, 2), (15, 15), (40, 15)])
def test_full_rank_reproduces_the_matrix(shape):
    A = np.random.default_rng(0).standard_normal(shape)
    result = rnla.robust_pca(A, min(shape), rng=0)
    assert result.converged
    assert np.abs(result.low_rank() - A).max() <= 1e-12


@pytest.mark.parametrize("excess", [1, 3])
def test_a_rank_that_is_too_large_does_no_harm(excess):
    problem = robust_pca_problem(300, 250, 4, rng=0)
    result = rnla.robust_pca(problem.A, 4 + excess, rng=0)
    assert error(result, problem.low_rank) <= LIMIT
    assert result.s[4] <= LIMIT * result.s[0]


@pytest.mark.parametrize("deficit", [1, 2])
def test_a_rank_that_is_too_small_warns(deficit):
    problem = robust_pca_problem(300, 250, 4, rng=0)
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.robust_pca: .*the rank is too small"):
        result = rnla.robust_pca(problem.A, 4 - deficit, rng=0)
    assert not result.converged
    assert "NOT converged" in repr(result)


@pytest.mark.parametrize("condition", [1e2, 1e5])
def test_ill_conditioned_low_rank_parts(condition):
    problem = robust_pca_problem(300, 300, 4, condition=condition, rng=1)
    assert_recovered(problem, rnla.robust_pca(problem.A, 4, rng=0))


def test_small_matrices_of_rank_one():
    solved = 0
    for seed in range(20):
        problem = robust_pca_problem(10, 10, 1, outliers=0.1, size=10, rng=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = rnla.robust_pca(problem.A, 1, rng=seed)
        solved += error(result, problem.low_rank) <= LIMIT
    assert solved >= 18  # some of these have entries of L below the outliers' that cannot be told from them


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_rows_of_very_different_scales(sigma):
    problem = robust_pca_problem(400, 300, 3, outliers=0.1, row_scale=sigma, rng=2)
    result = rnla.robust_pca(problem.A, 3, rng=0)
    assert_recovered(problem, result)
    assert result.rescued  # rows of large scale look like outliers until they are fitted on their own
    rows = np.linalg.norm(result.low_rank() - problem.low_rank, axis=1) / np.linalg.norm(problem.low_rank, axis=1)
    assert np.median(rows) <= LIMIT


@pytest.mark.parametrize("size", [10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_whole_rows_and_columns_of_noise_are_reported_and_do_not_disturb(size, seed):
    problem = robust_pca_problem(400, 300, 4, outliers=0.1, rng=seed)
    rng = np.random.default_rng(seed)
    rows, cols = (np.sort(rng.choice(side, 15, replace=False)) for side in (400, 300))
    A = problem.A.copy()
    scale = size * np.abs(problem.low_rank).mean()
    A[rows], A[:, cols] = scale * rng.standard_normal((15, 300)), scale * rng.standard_normal((400, 15))
    with pytest.warns(ConvergenceWarning, match="15 rows and 15 columns are not explained"):
        result = rnla.robust_pca(A, 4, rng=seed)
    assert not result.converged
    assert np.array_equal(result.unresolved_rows, rows)
    assert np.array_equal(result.unresolved_cols, cols)
    good = np.ix_(np.setdiff1d(np.arange(400), rows), np.setdiff1d(np.arange(300), cols))
    L = problem.low_rank[good]
    assert np.linalg.norm(result.low_rank()[good] - L) <= LIMIT * np.linalg.norm(L)


# Noise --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1e-2, 5e-2])
def test_noise_is_not_taken_for_outliers(noise):
    problem = robust_pca_problem(400, 300, 4, outliers=0.1, noise=noise, size=5, rng=0)
    result = rnla.robust_pca(problem.A, 4, rng=0)
    assert result.status == "noise_floor"
    assert result.converged
    assert result.message.startswith("stopped at the noise level")
    assert result.kept_fresh == pytest.approx(0.9, abs=0.03)
    assert error(result, problem.low_rank) <= 2 * noise


@pytest.mark.parametrize("noise", [1e-3, 5e-2])
def test_polish_reaches_the_error_of_least_squares_on_the_true_inliers(noise):
    n, k = 400, 5
    problem = robust_pca_problem(n, n, k, outliers=0.1, noise=noise, size=5, rng=1)
    sigma = noise * np.abs(problem.low_rank).mean()
    oracle = sigma * np.sqrt(2 * n * k / 0.9) / np.linalg.norm(problem.low_rank)
    plain, once, twice = (
        error(rnla.robust_pca(problem.A, k, rng=0, polish=polish), problem.low_rank) / oracle for polish in (0, 1, 2)
    )
    # Random in the data: over 20 seeds the ratio was 1.00 to 1.08 with polish and 1.7 to 3 without.
    assert once <= 1.12
    assert twice <= 1.12
    assert plain >= 1.4


def test_polish_keeps_mask_and_precision():
    problem = robust_pca_problem(200, 150, 2, outliers=0.1, missing=0.3, rng=0)
    plain, polished = (rnla.robust_pca(problem.A, 2, mask=problem.mask, polish=p, rng=0) for p in (0, 2))
    assert error(polished, problem.low_rank) <= error(plain, problem.low_rank) / 10  # it contracts, without noise
    assert_recovered(problem, polished)


def test_grey_levels_have_a_noise_floor_of_one():
    problem = robust_pca_problem(300, 200, 2, outliers=0.1, size=20, rng=0)
    A, L = np.round(100 * problem.A), 100 * problem.low_rank
    result = rnla.robust_pca(A, 2, rng=0)
    assert result.converged
    assert result.kept_fresh == pytest.approx(0.9, abs=0.02)
    assert np.abs(result.low_rank() - L).max() <= 2
    fraction = rnla.robust_pca(A, 2, noise_floor=0.0, rng=0)
    assert fraction.kept_fresh <= result.kept_fresh + 0.01


# Missing entries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.3, 0.7])
def test_missing_entries(missing):
    problem = robust_pca_problem(400, 350, 3, outliers=0.3, missing=missing, rng=0)
    assert np.isnan(problem.A).any()
    assert_recovered(problem, rnla.robust_pca(problem.A, 3, mask=problem.mask, rng=0))


@pytest.mark.parametrize("kind", ["array", "file", "small"])
def test_entries_under_the_mask_are_not_looked_at(kind):
    shape = (40, 30) if kind == "small" else (300, 250)  # compiled loops and references
    problem = robust_pca_problem(*shape, 2, outliers=0.1, missing=0.2, rng=0)
    results = []
    for value in (np.nan, 0.0, 1e300, -np.inf):
        A = np.where(problem.mask, problem.A, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            results.append(
                rnla.robust_pca(CountingRows(A, 32) if kind == "file" else A, 2, mask=problem.mask, polish=1, rng=0)
            )
        outliers = results[-1].sparse(A, mask=problem.mask).toarray()
        assert not outliers[~problem.mask].any()
        assert results[-1].residual_norm(A, mask=problem.mask) <= 1
    first = results[0]
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(other.threshold, first.threshold, strict=True))
        assert all(np.array_equal(getattr(other, name), getattr(first, name)) for name in ("U", "s", "Vh"))


def test_rows_with_too_few_entries_are_reported():
    problem = robust_pca_problem(300, 200, 3, outliers=0.1, missing=0.2, rng=0)
    mask = problem.mask.copy()
    mask[7], mask[:, 11] = False, False
    mask[9, 2:] = False
    with pytest.warns(ConvergenceWarning, match="2 rows and 1 columns are not explained"):
        result = rnla.robust_pca(problem.A, 3, mask=mask, rng=0)
    assert result.unresolved_rows.tolist() == [7, 9]
    assert result.unresolved_cols.tolist() == [11]
    assert np.isfinite(result.low_rank()).all()
    good = np.ix_(np.setdiff1d(np.arange(300), [7, 9]), np.setdiff1d(np.arange(200), [11]))
    difference = (result.low_rank() - problem.low_rank)[good]
    assert np.linalg.norm(difference) <= LIMIT * np.linalg.norm(problem.low_rank)


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("outliers", [0.0, 0.1, 0.2])
def test_cross_concentrated_samples_complete_a_matrix(share, outliers):
    problem, mask, rows, cols = cross_problem(share, outliers)
    result = rnla.robust_pca(problem.A, 3, mask=mask, rows=rows, cols=cols, rng=0)
    assert result.status == "converged"
    assert error(result, problem.low_rank) <= LIMIT


def test_cross_concentrated_samples_that_are_too_few_are_no_silent_failure():
    problem, mask, rows, cols = cross_problem(0.06, 0.1)
    with pytest.warns(ConvergenceWarning):
        result = rnla.robust_pca(problem.A, 3, mask=mask, rows=rows, cols=cols, rng=0)
    assert not result.converged
    assert error(result, problem.low_rank) > 1e-3


def cross_problem(share, outliers):
    """Draw a matrix of which a share of 120 rows and 120 columns is observed, and nothing else."""
    problem = robust_pca_problem(500, 500, 3, outliers=outliers, rng=3)
    rng = np.random.default_rng(0)
    rows, cols = (np.sort(rng.choice(500, 120, replace=False)) for _ in range(2))
    cross = np.zeros((500, 500), bool)
    cross[rows], cross[:, cols] = True, True
    mask = cross & (rng.random((500, 500)) < share)
    return problem._replace(A=np.where(mask, problem.A, np.nan)), mask, rows, cols


# Honesty ------------------------------------------------------------------------------------------------------------


def test_wrong_answers_are_not_reported_as_converged(capsys):
    rng, lies, solved = np.random.default_rng(0), 0, 0
    for seed in range(30):
        problem = robust_pca_problem(150, 150, 2, outliers=rng.uniform(0.7, 0.95), size=rng.choice([1, 5]), rng=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = rnla.robust_pca(problem.A, 2, rng=seed)
        good = error(result, problem.low_rank) <= 1e-3
        solved += good
        lies += result.converged and not good
    print(f"solved {solved} of 30, wrong and reported as converged {lies}")
    assert lies <= 1  # 5 %


def test_noise_alone_is_not_explained():
    with pytest.warns(ConvergenceWarning):
        result = rnla.robust_pca(np.random.default_rng(0).standard_normal((200, 150)), 3, rng=0)
    assert not result.converged


# Seeds, libraries, kinds of matrices --------------------------------------------------------------------------------


def test_a_seed_determines_the_result():
    A = robust_pca_problem(150, 100, 2, rng=0).A
    one, two, other = (rnla.robust_pca(A, 2, rng=seed) for seed in (5, 5, 6))
    assert np.array_equal(one.U, two.U)
    assert [r[:-1] for r in one.history] == [r[:-1] for r in two.history]
    assert not np.array_equal(one.U, other.U)
    assert rnla.robust_pca(A, 2, rng=np.random.default_rng(5)).converged


@VALUES
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_library_and_dtype(place, dtype):
    xp, device = place
    problem = robust_pca_problem(80, 60, 2, outliers=0.2, missing=0.2, dtype=dtype, rng=3)
    A, mask = (xp.asarray(X, device=device) for X in (problem.A, problem.mask))
    result = rnla.robust_pca(A, 2, mask=mask, polish=1, rng=0)
    host = rnla.robust_pca(problem.A, 2, mask=problem.mask, polish=1, rng=0)
    for X in (result.U, result.Vh, result.low_rank(), result.low_rank([0, 3], slice(0, 2))):
        assert X.dtype == A.dtype
        assert array_api_compat.device(X) == device
    assert result.n_iter == host.n_iter
    assert result.converged
    assert error(result, problem.low_rank) <= LIMIT
    assert np.abs(to_host(result.low_rank()) - host.low_rank()).max() <= LIMIT * np.abs(problem.low_rank).max()
    same = [result.sparse(X, mask=problem.mask if X is problem.A else mask).nnz for X in (A,)]
    assert same == [host.sparse(problem.A, mask=problem.mask).nnz]
    assert result.residual_norm(A, mask=mask) <= LIMIT


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_precision_and_complex(dtype):
    problem = robust_pca_problem(300, 300, 3, outliers=0.3, dtype=dtype, rng=1)
    result = rnla.robust_pca(problem.A, 3, rng=0)
    assert result.U.dtype == result.Vh.dtype == dtype
    assert result.s.dtype == np.empty(0, dtype).real.dtype
    assert_recovered(problem, result)
    assert result.sparse(problem.A).dtype == dtype


def kinds(folder):
    import dask.array as da
    import h5py
    import zarr

    def memmap(A, order):
        file = np.memmap(folder / order, A.dtype, "w+", shape=A.shape, order=order)
        file[:] = A
        return file

    def zarr_array(A):
        array = zarr.create_array({}, shape=A.shape, dtype=A.dtype, chunks=(70, 60))
        array[:] = A
        return array

    return {
        "memmap by rows": lambda A: memmap(A, "C"),
        "memmap by columns": lambda A: memmap(A, "F"),
        "hdf5": lambda A: h5py.File(folder / "A.h5", "w").create_dataset("A", data=A, chunks=(50, 40)),
        "zarr": zarr_array,
        "dask rows": lambda A: da.from_array(A, chunks=(64, A.shape[1])),
        "dask columns": lambda A: da.from_array(A, chunks=(A.shape[0], 64)),
        "dask both": lambda A: da.from_array(A, chunks=(64, 64)),
        "counting": lambda A: CountingRows(A, 33),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", kinds(None))
def test_every_kind_of_matrix(kind, masked, tmp_path):
    problem = robust_pca_problem(300, 200, 2, outliers=0.2, missing=0.2 * masked, rng=0)
    A = kinds(tmp_path)[kind](problem.A)
    result = rnla.robust_pca(A, 2, mask=problem.mask, rng=0)
    assert error(result, problem.low_rank) <= LIMIT
    assert result.converged
    host = result.sparse(problem.A, mask=problem.mask)
    if kind != "dask columns":
        assert result.sparse(A, mask=problem.mask).nnz == host.nnz


@pytest.mark.parametrize("kind", ["rows", "file", "columns"])
def test_the_result_does_not_depend_on_the_chunks(kind):
    import dask.array as da

    problem = robust_pca_problem(300, 200, 2, outliers=0.2, rng=0)
    results = []
    for size in (17, 64, 150):
        A = {
            "rows": lambda size=size: da.from_array(problem.A, chunks=(size, 200)),
            "columns": lambda size=size: da.from_array(problem.A, chunks=(300, size)),
            "file": lambda size=size: CountingRows(problem.A, size),
        }[kind]()
        results.append(rnla.robust_pca(A, 2, rng=0))
    for other in results[1:]:
        assert np.array_equal(other.U, results[0].U)
        assert np.array_equal(other.s, results[0].s)
        assert np.array_equal(other.unresolved_rows, results[0].unresolved_rows)


@pytest.mark.parametrize("resample", [True, False])
def test_a_file_is_read_once_to_iterate_and_once_to_judge(resample):
    problem = robust_pca_problem(400, 300, 3, outliers=0.1, rng=0)
    A = CountingRows(problem.A, 50)
    result = rnla.robust_pca(A, 3, resample=resample, rng=0)
    assert_recovered(problem, result)
    assert not result.rescued
    assert A.passes <= 2
    A = CountingRows(problem.A, 50)
    rnla.robust_pca(A, 3, resample=resample, polish=1, rng=0)
    assert A.passes <= 3


def test_memory_is_a_fraction_of_the_matrix():
    n, k = 4000, 5
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, k)) @ rng.standard_normal((k, n))
    A[rng.integers(0, n, 100_000), rng.integers(0, n, 100_000)] = 10.0
    rnla.robust_pca(A[:500, :500], k, rng=0)  # what is loaded on first use
    tracemalloc.start()
    try:
        result = rnla.robust_pca(A, k, rng=0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = result.sparse(A)
        _, sparse_peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.converged
    assert peak < 0.4 * A.nbytes
    assert sparse_peak - before < 8 * BLOCK_BYTES + 3 * 12 * found.nnz


# Options ------------------------------------------------------------------------------------------------------------


def test_the_plain_update_and_fixed_samples():
    problem = robust_pca_problem(300, 300, 3, outliers=0.2, rng=0)
    for options in ({"update": "project"}, {"resample": False}, {"n_rows": 100, "n_cols": 90}):
        assert_recovered(problem, rnla.robust_pca(problem.A, 3, rng=0, **options))
    rows = np.arange(0, 300, 3)
    result = rnla.robust_pca(problem.A, 3, rows=rows, cols=rows[::-1], rng=0)  # any order
    assert_recovered(problem, result)


def test_a_start_that_is_right_leaves_little_to_do():
    problem = robust_pca_problem(300, 300, 3, outliers=0.1, rng=0)
    first = rnla.robust_pca(problem.A, 3, rng=0)
    for init in (first, (first.U, first.s, first.Vh)):
        again = rnla.robust_pca(problem.A, 3, init=init, rng=1)
        assert_recovered(problem, again)
        assert again.n_iter <= 3
    with pytest.raises(ValueError, match=r"^rnla\.robust_pca: init must have factors of rank 2"):
        rnla.robust_pca(problem.A, 2, init=first)


def test_callback_and_progress(capsys):
    A = robust_pca_problem(100, 80, 2, outliers=0.2, rng=0).A
    seen = []
    result = rnla.robust_pca(A, 2, rng=0, callback=seen.append)
    assert [record.iteration for record in seen] == list(range(1, result.n_iter + 1))
    assert [record.error for record in seen] == [record.error for record in result.history]
    assert result.history[-1].error < TOL
    assert result.history[-1].kept == result.kept

    def stop(record):
        if record.iteration == 3:
            raise StopIteration

    with pytest.warns(ConvergenceWarning, match="stopped by the callback"):
        stopped = rnla.robust_pca(A, 2, rng=0, callback=stop)
    assert stopped.n_iter == 3
    assert stopped.status == "stopped"
    assert not stopped.converged
    assert rnla.robust_pca(A, 2, rng=0, progress=True).converged
    assert "robust_pca" in capsys.readouterr().err


def test_max_iter_warns():
    A = robust_pca_problem(100, 80, 2, outliers=0.2, rng=0).A
    with pytest.warns(ConvergenceWarning, match="not met in 2 iterations"):
        result = rnla.robust_pca(A, 2, max_iter=2, rng=0)
    assert (result.status, result.converged, result.n_iter) == ("max_iter", False, 2)
    assert np.isfinite(result.low_rank()).all()


def test_result_describes_itself():
    result = rnla.robust_pca(robust_pca_problem(100, 80, 2, outliers=0.2, rng=0).A, 2, rng=0)
    assert repr(result).startswith("RobustPCAResult(100 x 80, rank 2, 2")
    assert (result.shape, result.rank) == ((100, 80), 2)
    with pytest.raises(AttributeError):
        result.converged = False


# Refused ------------------------------------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).standard_normal((30, 20))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ValueError, {"k": 0}, "k must be"),
        (ValueError, {"k": 21}, "k must be"),
        (ValueError, {"tol": -1.0}, "tol must be"),
        (ValueError, {"max_iter": 0}, "max_iter must be"),
        (ValueError, {"method": "svd"}, "method must be"),
        (ValueError, {"lam": 0.1}, "lam is no option of method='riecur'"),
        (ValueError, {"outliers": 0.1}, "outliers is no option of method='riecur'"),
        (ValueError, {"decay": 1.0}, "decay must be in"),
        (ValueError, {"decay": 0}, "decay must be in"),
        (ValueError, {"update": "none"}, "update must be"),
        (ValueError, {"polish": -1}, "polish must be"),
        (ValueError, {"noise_floor": -1.0}, "noise_floor must be"),
        (ValueError, {"k": 5, "n_rows": 5}, r"n_rows must be in 6\.\.30"),
        (ValueError, {"n_cols": 21}, r"n_cols must be in 3\.\.20"),
        (ValueError, {"rows": [1, 1, 2]}, "rows must be distinct"),
        (ValueError, {"cols": [1, 2, 20]}, r"cols must be distinct numbers in 0\.\.19"),
        (ValueError, {"cols": [-1, 2, 3]}, r"cols must be distinct numbers in 0\.\.19"),
        (ValueError, {"rows": [1]}, "rows must be at least k=2"),
        (TypeError, {"rows": [0.5, 1.5]}, "rows must be a vector of integers"),
        (TypeError, {"mask": np.ones((30, 20))}, "mask must be boolean"),
        (ValueError, {"mask": np.ones((20, 30), bool)}, r"mask must have the shape of A, \(30, 20\)"),
        (TypeError, {"rng": "seed"}, "rng must be"),
    ],
)
def test_arguments_that_are_refused(kind, options, message):
    with pytest.raises(kind, match=rf"^rnla\.robust_pca: {message}"):
        rnla.robust_pca(GOOD, **{"k": 2, **options})


@pytest.mark.parametrize(
    ("A", "kind", "message"),
    [
        (np.ones((9, 9), np.int64), TypeError, "A must be .* convert it to float32"),
        (np.ones((9, 9), np.uint8), TypeError, "A must be .* convert it to float32"),
        (np.ones((9, 9), bool), TypeError, "A must be .* convert it to float32"),
        (sp.csr_array(np.eye(9)), TypeError, "A must have entries that can be read"),
        (sp.coo_matrix(np.eye(9)), TypeError, "A must have entries that can be read"),
        (aslinearoperator(np.eye(9)), TypeError, "A must have entries that can be read"),
        (np.ones(9), ValueError, "A must be two-dimensional"),
        (np.full((9, 9), np.nan), ValueError, "A must be finite where it is observed"),
        (np.full((9, 9), -np.inf), ValueError, "A must be finite where it is observed"),
    ],
)
def test_matrices_that_are_refused(A, kind, message):
    with pytest.raises(kind, match=rf"^rnla\.robust_pca: {message}"):
        rnla.robust_pca(A, 2, rng=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(60, 50), (400, 300)])
def test_an_observed_entry_that_is_not_finite(value, shape):
    problem = robust_pca_problem(*shape, 2, missing=0.2, rng=0)
    A = np.where(problem.mask, problem.A, 0.0)
    A[5] = value
    for mask in (None, problem.mask):
        with pytest.raises(ValueError, match=r"^rnla\.robust_pca: A must be finite where it is observed"):
            rnla.robust_pca(A, 2, mask=mask, rng=0)


# robust_code --------------------------------------------------------------------------------------------------------


def coding_problem(p, n, k, outliers, *, size=1e3, noise=0.0, dtype=float, seed=0):
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.standard_normal((n, k)) + (1j * rng.standard_normal((n, k)) if dtype is complex else 0))[0]
    C = rng.standard_normal((p, k)) * np.sqrt(n)
    Y = C @ V.conj().T + noise * rng.standard_normal((p, n))
    where = np.argsort(rng.random((p, n)), axis=1) < round(outliers * n)
    return np.where(where, Y + size * rng.standard_normal((p, n)), Y).astype(dtype), V.astype(dtype), C, where


@pytest.mark.parametrize(("n", "outliers"), [(200, 0.5), (200, 0.6), (1000, 0.75)])
@pytest.mark.parametrize("dtype", [float, complex])
def test_rows_are_coded_exactly_under_large_outliers(n, outliers, dtype):
    Y, V, C, where = coding_problem(60, n, 5, outliers, dtype=dtype)
    result = rnla.robust_code(Y, V)
    assert np.abs(result.C - C).max() <= 1e-5 * np.abs(C).max()
    assert result.converged.all()
    assert result.kept == pytest.approx(1 - where.mean(axis=1), abs=1e-2)
    assert result.history[-1] == 1
    assert result.message == "60 of 60 rows converged"
    plain = Y @ V
    assert np.abs(plain - C).max() >= 0.05 * np.abs(C).max()


def test_codes_of_noisy_rows_are_as_good_as_least_squares_on_the_true_inliers():
    Y, V, C, where = coding_problem(200, 400, 4, 0.3, noise=0.01, size=10.0)
    result = rnla.robust_code(Y, V)
    oracle = np.stack([np.linalg.lstsq(V[~w], y[~w], rcond=None)[0] for y, w in zip(Y, where, strict=True)])
    assert result.converged.all()
    assert np.linalg.norm(result.C - C) <= 1.1 * np.linalg.norm(oracle - C)


@VALUES
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_codes_in_every_library(place, dtype):
    xp, device = place
    Y, V, C, _ = coding_problem(20, 100, 3, 0.3, size=10.0)
    Y[3, 10:20] = np.nan
    mask = np.isfinite(Y)
    arrays = (xp.asarray(X.astype(dtype), device=device) for X in (Y, V))
    result = rnla.robust_code(*arrays, mask=xp.asarray(mask, device=device))
    assert array_api_compat.device(result.C) == device
    assert np.abs(to_host(result.C) - C).max() <= 1e-4 * np.abs(C).max()
    assert result.converged.all()


def test_codes_of_rows_of_no_use():
    Y, V, _, _ = coding_problem(6, 50, 3, 0.0)
    Y[0], Y[1] = 0.0, np.random.default_rng(1).standard_normal(50)
    mask = np.ones(Y.shape, bool)
    mask[2], mask[3, 3:] = False, False
    result = rnla.robust_code(Y, V, mask=mask)
    assert np.isfinite(result.C).all()
    assert result.converged.tolist() == [True, True, False, False, True, True] or not result.converged[[2, 3]].any()
    assert not result.C[0].any()
    one = rnla.robust_code(Y[4:5], V)
    assert np.abs(one.C - result.C[4]).max() <= 1e-10
    none = rnla.robust_code(Y[:0], V)
    assert none.C.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"V": np.eye(20)[:, :2]}, ValueError, "V must have as many rows as Y has columns"),
        ({"V": np.ones((30, 2))}, ValueError, "V must have orthonormal columns"),
        ({"V": np.eye(30, dtype="f4")[:, :2]}, TypeError, "V must have the dtype of Y"),
        ({"Y": np.ones((4, 30), int)}, TypeError, "Y must be real or complex floating"),
        ({"Y": [[1.0] * 30]}, TypeError, "Y must be an array"),
        ({"Y": np.ones(30)}, ValueError, "Y must be two-dimensional"),
        ({"Y": np.full((4, 30), np.nan)}, ValueError, "Y must be finite where it is observed; row 0"),
        ({"mask": np.ones((4, 29), bool)}, ValueError, "mask must be boolean"),
        ({"decay": 1.0}, ValueError, "decay must be in"),
        ({"noise_floor": -1.0}, ValueError, "noise_floor must be"),
        ({"max_iter": 0}, ValueError, "max_iter must be"),
    ],
)
def test_codes_that_are_refused(change, kind, message):
    arguments = {"Y": np.ones((4, 30)), "V": np.eye(30)[:, :2], **change}
    with pytest.raises(kind, match=rf"^rnla\.robust_code: {message}"):
        rnla.robust_code(arguments.pop("Y"), arguments.pop("V"), **arguments)


# The generator ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_problem_is_what_it_says(dtype):
    problem = robust_pca_problem(60, 50, 3, outliers=0.13, size=2.0, missing=0.25, dtype=dtype, rng=0)
    assert problem.A.dtype == problem.low_rank.dtype == dtype
    assert problem.outliers.sum() == round(0.13 * 3000)
    assert np.array_equal(np.isnan(problem.A), ~problem.mask)
    inlier = problem.mask & ~problem.outliers
    assert np.array_equal(problem.A[inlier], problem.low_rank[inlier])
    assert np.linalg.matrix_rank(problem.low_rank) == 3
    S = np.abs(problem.A - problem.low_rank)[problem.mask & problem.outliers]
    assert S.max() <= 2 * np.abs(problem.low_rank).mean() * 1.001
    again = robust_pca_problem(60, 50, 3, outliers=0.13, size=2.0, missing=0.25, dtype=dtype, rng=0)
    assert np.array_equal(again.A, problem.A, equal_nan=True)


def test_options_of_the_problem():
    s = np.linalg.svd(robust_pca_problem(60, 50, 3, condition=100.0, rng=0).low_rank, compute_uv=False)
    assert s[:3] == pytest.approx(np.sqrt(3000) * np.array([1, 0.1, 0.01]))
    noisy = robust_pca_problem(200, 150, 3, outliers=0.0, noise=0.1, rng=0)
    assert (noisy.A - noisy.low_rank).std() == pytest.approx(0.1 * np.abs(noisy.low_rank).mean(), rel=0.02)
    scaled = robust_pca_problem(500, 100, 3, row_scale=2.0, rng=0).low_rank
    assert np.log(np.abs(scaled).mean(axis=1)).std() == pytest.approx(2, rel=0.15)
    assert robust_pca_problem(5, 4, 4, rng=0).mask is None


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((5, 4, 5), {}, ValueError, "k must be in"),
        ((0, 4, 1), {}, ValueError, "k must be in"),
        ((5, 4, True), {}, TypeError, "k must be an integer"),
        ((5.0, 4, 1), {}, TypeError, "m must be an integer"),
        ((5, 4, 1), {"outliers": 1.5}, ValueError, "outliers must be a share"),
        ((5, 4, 1), {"missing": -0.1}, ValueError, "missing must be a share"),
        ((5, 4, 1), {"dtype": int}, TypeError, "dtype must be real or complex"),
        ((5, 4, 1), {"rng": "no"}, TypeError, "rng must be"),
    ],
)
def test_problems_that_are_refused(arguments, options, kind, message):
    with pytest.raises(kind, match=rf"^rnla\.datasets\.robust_pca_problem: {message}"):
        robust_pca_problem(*arguments, **options)
