"""rnla.impute.LowRankImputer: the conventions of scikit-learn, and new rows."""

import numpy as np
import pytest
import scipy.sparse
from completions import problem_of
from sklearn.utils.estimator_checks import parametrize_with_checks

from rnla.impute import LowRankImputer


@parametrize_with_checks([LowRankImputer(1)])
def test_estimator_checks(estimator, check):
    check(estimator)


def table(noise=0.0):
    problem, exact = problem_of((60, 20), 2, 4.0, noise=noise)
    exact = exact + np.arange(20.0)
    X = np.full(problem.shape, np.nan)
    X[problem.rows, problem.cols] = exact[problem.rows, problem.cols]
    return X, exact


def test_new_rows_are_filled_as_the_old_ones():
    X, exact = table()
    imputer = LowRankImputer(3, tol=1e-9, rng=0)
    filled = imputer.fit_transform(X)
    np.testing.assert_allclose(filled, exact, atol=1e-6)
    np.testing.assert_allclose(imputer.transform(X), filled, atol=1e-8)
    known = ~np.isnan(X)
    assert np.array_equal(filled[known], X[known])
    empty = imputer.transform(np.full((1, 20), np.nan))
    assert np.isfinite(empty).all()


def test_sparse_tables_and_names():
    X, _ = table()
    known = ~np.isnan(X)
    sparse = scipy.sparse.csr_array((X[known], np.nonzero(known)), shape=X.shape)
    dense = LowRankImputer(3, rng=0).fit(X)
    np.testing.assert_allclose(LowRankImputer(3, rng=0).fit_transform(sparse), dense.transform(X), atol=1e-3)
    names = [f"c{j}" for j in range(20)]
    assert dense.get_feature_names_out(names).tolist() == names


def test_columns_without_values_are_kept_and_reported():
    X, _ = table()
    X[:, 4] = np.nan
    imputer = LowRankImputer(3, rng=0)
    with pytest.warns(UserWarning, match="1 columns have no value"):
        filled = imputer.fit_transform(X)
    assert filled.shape == X.shape
    assert not filled[:, 4].any()
    assert imputer.empty_features_.tolist() == [4]


def test_choice_of_rank_bounds_and_other_marks():
    X, exact = table(noise=0.05)
    bounded = LowRankImputer([1, 2], clip="data", rng=0).fit(X)
    filled = bounded.transform(X)
    assert (filled >= np.nanmin(X, axis=0) - 1e-12).all()
    assert (filled <= np.nanmax(X, axis=0) + 1e-12).all()
    missing = np.isnan(X)
    marked = LowRankImputer(2, missing_values=-1.0, rng=0).fit_transform(np.where(missing, -1.0, X))
    error = np.sqrt(np.mean((marked - exact)[missing] ** 2))
    assert error < 0.5 * np.sqrt(np.mean((exact - exact.mean(axis=0))[missing] ** 2))
    for options, text in (({"k": 0}, "k must"), ({"center": "x"}, "center must"), ({"clip": (2, 1)}, "clip must")):
        with pytest.raises(ValueError, match=text):
            LowRankImputer(**{"k": 1, **options}).fit(X)
