"""A robust CUR decomposition: columns and rows of the low-rank part, and the outliers in them."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from strategies import DTYPES

import rnla
from rnla._backend import to_host
from rnla.datasets import robust_pca_problem

LIMIT = 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_rows_and_outliers(dtype):
    problem = robust_pca_problem(200, 150, 3, outliers=0.2, dtype=dtype, rng=0)
    C, U, R = found = rnla.robust_pca(problem.A, 3, rng=0).to_cur(problem.A)
    L = problem.low_rank
    limit = LIMIT * np.abs(L).max()
    assert C.dtype == U.dtype == R.dtype == found.to_dense().dtype == dtype
    assert (C.shape, U.shape, R.shape) == ((200, 3), (3, 3), (3, 150))
    assert np.abs(C - L[:, found.cols]).max() <= limit
    assert np.abs(R - L[found.rows]).max() <= limit
    assert np.abs(found.to_dense() - L).max() <= limit
    assert np.abs(C @ U @ R - L).max() <= 10 * limit
    S = problem.A - L
    large = np.abs(S) > 1e-3 * np.abs(L).mean()
    for part, exact in (
        (found.col_outliers, np.s_[:, found.cols]),
        (found.row_outliers, np.s_[found.rows]),
    ):
        assert part.dtype == dtype
        assert np.abs(part.toarray() - S[exact]).max() <= limit
        assert not np.any(large[exact] & (part.toarray() == 0))
        assert not np.any(~problem.outliers[exact] & (part.toarray() != 0))
    for other in (copy.copy(found), pickle.loads(pickle.dumps(found))):
        assert np.array_equal(other.to_dense(), found.to_dense())
        assert other.col_outliers.nnz == found.col_outliers.nnz


def test_the_operator_form_is_as_accurate_as_the_result_for_ill_conditioned_matrices():
    problem = robust_pca_problem(200, 200, 4, outliers=0.1, condition=1e6, rng=1)
    result = rnla.robust_pca(problem.A, 4, rng=0)
    found = result.to_cur(problem.A)
    L = result.low_rank()
    # Partial pivoting of k = 4 columns: entries of the interpolation are below 2**(k - 1), of W_I^-1 below 2**k n**0.5.
    assert np.linalg.norm(found.to_dense() - L) <= 200 * np.finfo(float).eps * 200**0.5 * np.linalg.norm(L)
    assert np.linalg.norm(found.factors[0], 2) <= 16 * 200**0.5


def test_unresolved_rows_and_columns_are_not_chosen():
    problem = robust_pca_problem(300, 250, 3, outliers=0.1, rng=0)
    A = problem.A.copy()
    rng = np.random.default_rng(0)
    A[:8], A[:, :8] = 100 * rng.standard_normal((8, 250)), 100 * rng.standard_normal((300, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        result = rnla.robust_pca(A, 3, rng=0)
    found = result.to_cur(A)
    assert min(found.rows.min(), found.cols.min()) >= 8
    good = np.s_[8:, 8:]
    assert np.abs(found.to_dense() - problem.low_rank)[good].max() <= LIMIT * np.abs(problem.low_rank).max()


def test_numerical_rank_mask_and_libraries():
    import torch

    problem = robust_pca_problem(200, 150, 2, outliers=0.1, missing=0.2, rng=0)
    A, mask = torch.asarray(problem.A), torch.asarray(problem.mask)
    found = rnla.robust_pca(A, 2, mask=mask, rng=0).to_cur(A, mask=mask)
    assert isinstance(found.C, torch.Tensor)
    assert np.abs(to_host(found.to_dense()) - problem.low_rank).max() <= LIMIT * np.abs(problem.low_rank).max()
    assert not found.row_outliers.toarray()[~problem.mask[to_host(found.rows).astype(int)]].any()
    flat = np.outer(np.arange(1.0, 31), np.ones(20))
    assert rnla.robust_pca(flat, 3, rng=0).to_cur(flat).C.shape == (30, 1)
    zero = np.zeros((30, 20))
    empty = rnla.robust_pca(zero, 2, rng=0).to_cur(zero)
    assert empty.C.shape == (30, 0)
    assert not empty.to_dense().any()
    with pytest.raises(ValueError, match=r"^rnla\.RobustPCAResult\.to_cur: A must have the shape \(30, 20\)"):
        rnla.robust_pca(flat, 1, rng=0).to_cur(flat.T)
