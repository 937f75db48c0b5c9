"""Whitening by a diagonal-plus-low-rank covariance: its roots are exact, and it undoes itself."""

import pickle

import array_api_compat
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rnla.decomposition import LowRankZCA
from rnla.testing import CountingRows


@parametrize_with_checks([LowRankZCA(), LowRankZCA(1, noise="diagonal")])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def samples(m=400, n=60, k=3, dtype=float):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((m, k)) @ rng.standard_normal((k, n))
    return (X + rng.uniform(0.2, 0.4, n) * rng.standard_normal((m, n)) + 5).astype(dtype)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_transform_is_the_inverse_root_of_the_covariance(noise, dtype):
    X = samples(dtype=dtype)
    model = LowRankZCA(3, noise=noise, random_state=0).fit(X)
    W = model.get_covariance()
    lam, Q = np.linalg.eigh(W)
    Y = model.transform(X)
    tol = 1e-3 if dtype == np.float32 else 1e-6
    assert Y.dtype == dtype
    assert np.abs(Y - (X - X.mean(axis=0)) @ (Q / np.sqrt(lam)) @ Q.T).max() <= tol * np.abs(Y).max()
    assert np.abs(model.inverse_transform(Y) - X).max() <= tol * np.abs(X).max()
    total = X.var(axis=0, ddof=1, dtype=float)
    found = np.diagonal(W) if noise == "diagonal" else np.trace(W)
    assert found == pytest.approx(total if noise == "diagonal" else total.sum(), rel=1e-3)


def test_data_of_the_model_become_white():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20_000, 3)) @ rng.standard_normal((3, 20)) + 0.3 * rng.standard_normal((20_000, 20))
    Y = LowRankZCA(3, random_state=0).fit_transform(X)
    # Entries of a sample covariance deviate by (2 / 20 000)**0.5 = 0.01; 6 deviations fail with probability 1e-6.
    assert np.abs(np.cov(Y.T) - np.eye(20)).max() <= 0.06


def test_a_pickled_model_still_whitens():
    X = samples()
    model = LowRankZCA(3, random_state=0).fit(X)
    assert (pickle.loads(pickle.dumps(model)).transform(X) == model.transform(X)).all()


def test_all_components_whiten_exactly():
    X = samples(400, 8)
    Y = LowRankZCA(8, random_state=0).fit_transform(X)
    assert np.cov(Y.T) == pytest.approx(np.eye(8), abs=1e-6)


@pytest.mark.parametrize(
    "kind", [sp.csr_array, lambda A: da.from_array(A, chunks=(100, 60)), lambda A: CountingRows(A, 90)]
)
def test_every_kind_of_matrix(kind):
    X = samples()
    exact = LowRankZCA(3, noise="diagonal", random_state=0).fit(X)
    model = clone(exact).fit(kind(X))
    assert model.noise_variance_ == pytest.approx(exact.noise_variance_, rel=1e-3)
    assert np.abs(model.transform(kind(X)) - exact.transform(X)).max() <= 1e-3


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_other_libraries(noise):
    import torch

    X = samples()
    model = LowRankZCA(3, noise=noise, random_state=0).fit(torch.from_numpy(X))
    Y = model.transform(torch.from_numpy(X))
    assert array_api_compat.is_torch_array(Y)
    assert np.abs(Y.numpy() - model.transform(X)).max() <= 1e-6
    assert array_api_compat.is_torch_array(model.inverse_transform(Y))


def test_directions_without_variance_are_not_amplified():
    X = samples()
    X[:, 5] = 1.0
    for noise in ("isotropic", "diagonal"):
        Y = LowRankZCA(3, noise=noise, random_state=0).fit_transform(X)
        assert np.isfinite(Y).all()
        assert np.abs(Y[:, 5]).max() <= 1e-6
    assert (LowRankZCA(3).fit_transform(np.ones((5, 4))) == 0).all()
    assert make_pipeline(StandardScaler(), LowRankZCA(3)).fit_transform(X).shape == X.shape


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n_components": 0}, ValueError, r"^rnla\.decomposition\.LowRankZCA: n_components must be at least 1"),
        ({"noise": "white"}, ValueError, "noise must be one of 'isotropic', 'diagonal'"),
        ({"floor": -1.0}, ValueError, "floor must be finite and not negative"),
        ({"tol": 2.0}, ValueError, "tol must be in"),
    ],
)
def test_bad_parameters_are_named(options, error, text):
    with pytest.raises(error, match=text):
        LowRankZCA(**{"n_components": 2, **options}).fit(samples())


def test_bad_input_is_named():
    model = LowRankZCA(2).fit(samples())
    with pytest.raises(ValueError, match="X must have 60 columns"):
        model.inverse_transform(np.ones((3, 2)))
