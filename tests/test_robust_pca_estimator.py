"""The mean and the components are those of the samples without their outliers; scikit-learn's checks pass."""

import pickle

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.decomposition as theirs
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import rnla
from rnla.decomposition import RobustPCA
from rnla.testing import assert_orthonormal

M, N, K = 300, 80, 4
EPS = float(np.finfo(np.float64).eps)


# The X of these checks are noise, of which two components and a mean leave much: the most iterations end every fit.
@pytest.mark.filterwarnings("ignore:rnla.robust_pca:rnla.ConvergenceWarning")
@parametrize_with_checks(
    [
        RobustPCA(max_iter=20),
        RobustPCA(1, center=False, decay=0.8, max_iter=20),
        RobustPCA(missing="nan", polish=1, max_iter=20),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def samples(seed=0, *, share=0.15, dtype=np.float64):
    """Return X with outliers of +-20, and the clean samples of rank K about their mean."""
    random = np.random.default_rng(seed)
    clean = random.standard_normal((M, K)) @ random.standard_normal((K, N)) + 5 * random.standard_normal(N)
    wrong = random.random(clean.shape) < share
    X = clean + np.where(wrong, random.choice([-20.0, 20.0], clean.shape), 0.0)
    return X.astype(dtype), clean.astype(dtype)


def sine(V, W):
    """Return the sine of the largest angle between the spaces of two sets of orthonormal rows."""
    return np.linalg.norm(V - (V @ W.T) @ W, 2)


@pytest.fixture(scope="module")
def fitted():
    X, clean = samples()
    return RobustPCA(K, random_state=0).fit(X), X, clean


def test_mean_and_components_are_those_of_the_clean_samples(fitted):
    model, X, clean = fitted
    peer = theirs.PCA(K, svd_solver="full").fit(clean)
    # Measured with a prototype: 2e-6, 4e-6 and 1e-5 at tol = 1e-6.
    assert np.abs(model.mean_ - peer.mean_).max() <= 1e-4 * np.abs(peer.mean_).max()
    assert sine(model.components_, peer.components_) <= 1e-4
    assert sine(theirs.PCA(K).fit(X).components_, peer.components_) > 0.5
    assert model.singular_values_ == pytest.approx(peer.singular_values_, rel=1e-4)
    assert model.explained_variance_ == pytest.approx(peer.explained_variance_, rel=2e-4)
    assert model.explained_variance_ratio_ == pytest.approx(peer.explained_variance_ratio_, rel=2e-4)
    assert_orthonormal(model.components_.T)
    largest = np.abs(model.components_).argmax(axis=1)
    assert (model.components_[np.arange(K), largest] > 0).all()


def test_fitted_attributes(fitted):
    model, X, _ = fitted
    assert model.converged_
    assert model.n_iter_ == model.result_.n_iter > 0
    # 20 000 fresh entries or all 24 000; binomial, 6 deviations fail with probability 2e-9.
    assert abs(model.outlier_fraction_ - 0.15) < 6 * (0.15 * 0.85 / 20_000) ** 0.5
    assert model.unresolved_samples_.size == 0
    assert (model.n_components_, model.n_samples_, model.n_features_in_) == (K, *X.shape)
    assert 0 < model.noise_floor_ < 1e-3
    assert list(model.get_feature_names_out())[:2] == ["robustpca0", "robustpca1"]


def test_transform_leaves_outliers_out(fitted):
    model, X, clean = fitted
    T = (clean - model.mean_) @ model.components_.T
    size = np.abs(T).max()
    assert np.abs(model.transform(X) - T).max() <= 1e-4 * size
    assert np.abs(model.inverse_transform(model.transform(X)) - clean).max() <= 1e-4 * np.abs(clean).max()
    assert np.abs(model.transform(X, robust=False) - T).max() > 0.1 * size
    projected = (X - model.mean_) @ model.components_.T
    assert model.transform(X, robust=False) == pytest.approx(projected, abs=1e3 * EPS * np.abs(X).max())


def test_fit_transform_is_fit_and_transform():
    X, _ = samples(1)
    T = RobustPCA(K, random_state=0).fit_transform(X)
    np.testing.assert_array_equal(T, RobustPCA(K, random_state=0).fit(X).transform(X))


def test_score_samples_is_the_share_of_inliers(fitted):
    model, X, clean = fitted
    assert model.score_samples(X) == pytest.approx((clean == X).mean(axis=1), abs=1e-12)
    foreign = np.random.default_rng(3).standard_normal((20, N)) * 5
    assert np.median(model.score_samples(foreign)) < 0.6


def test_decompose_splits_new_samples(fitted):
    model = fitted[0]
    other = samples(0, share=0.0)[1][:10] * 1.0
    other[:, 7] += 50
    L, S = model.decompose(other)
    assert L.shape == other.shape
    assert L.converged
    assert L.unresolved_rows.size == 0
    assert np.abs(L.low_rank() - samples(0, share=0.0)[1][:10]).max() <= 1e-3
    assert isinstance(S, sp.csr_array)
    assert (S.nnz, set(S.indices)) == (10, {7})
    assert S[:, [7]].toarray() == pytest.approx(np.full((10, 1), 50.0), abs=1e-3)


def test_foreign_samples_are_reported_and_do_not_count():
    X, clean = samples(2)
    X[:15] = np.random.default_rng(0).standard_normal((15, N)) * 500
    with pytest.warns(rnla.ConvergenceWarning, match="15 rows and 0 columns are not explained"):
        model = RobustPCA(K, random_state=0).fit(X)
    assert not model.converged_
    assert model.unresolved_samples_.tolist() == list(range(15))
    assert np.abs(model.mean_ - clean[15:].mean(axis=0)).max() <= 1e-3


@pytest.mark.parametrize("as_mask", [False, True])
def test_missing_entries(as_mask):
    X, clean = samples(4, share=0.05)
    seen = np.random.default_rng(1).random(X.shape) < 0.8
    X[~seen] = np.nan
    if as_mask:
        model = RobustPCA(K, random_state=0, missing="nan").fit(X, mask=seen)
    else:
        model = RobustPCA(K, random_state=0, missing="nan").fit(X)
    assert sine(model.components_, theirs.PCA(K).fit(clean).components_) <= 1e-4
    filled = model.inverse_transform(model.transform(X))
    assert np.abs(filled - clean).max() <= 1e-3 * np.abs(clean).max()
    share = (clean == X).sum(axis=1) / seen.sum(axis=1)
    assert model.score_samples(X) == pytest.approx(share, abs=1e-12)
    _, S = model.decompose(X)
    assert np.isfinite(S.data).all()
    assert S.nnz == (seen & (clean != X)).sum()
    with pytest.raises(ValueError, match="NaN"):
        RobustPCA(K).fit(X)
    with pytest.raises(ValueError, match=r"X"):
        model.transform(X, robust=False)


def test_without_centering():
    random = np.random.default_rng(0)
    clean = random.standard_normal((M, K)) @ random.standard_normal((K, N))
    X = np.where(random.random(clean.shape) < 0.1, 30.0, clean)
    model = RobustPCA(K, center=False, random_state=0).fit(X)
    assert (model.mean_ == 0).all()
    assert model.result_.rank == K
    assert sine(model.components_, np.linalg.svd(clean, full_matrices=False)[2][:K]) <= 1e-4


@pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch"], indirect=True)
def test_library_device_and_dtype_of_the_input(place):
    import array_api_compat

    xp, device = place
    X, clean = samples(5, dtype=np.float32)
    A = xp.asarray(X, device=device)
    model = RobustPCA(K, random_state=0).fit(A)
    T = model.transform(A)
    for x in (model.components_, model.mean_, model.singular_values_, T, model.inverse_transform(T)):
        assert array_api_compat.device(x) == array_api_compat.device(A)
        assert x.dtype == A.dtype
    expected = RobustPCA(K, random_state=0).fit(X)
    back = expected.inverse_transform(expected.transform(X))
    assert np.abs(back - clean).max() <= 1e-2 * np.abs(clean).max()


def test_dask_and_memory_maps(tmp_path, fitted):
    model, X, clean = fitted
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    for A in (da.from_array(X, chunks=(100, N)), mapped):
        found = RobustPCA(K, random_state=0).fit(A)
        assert sine(found.components_, model.components_) <= 1e-4
        T = found.transform(A)
        assert np.abs(found.inverse_transform(T) - clean).max() <= 1e-3 * np.abs(clean).max()
        assert found.score_samples(A) == pytest.approx(model.score_samples(X), abs=1e-12)


def test_grey_levels_have_a_noise_floor():
    video = rnla.datasets.moving_rectangles(40, 30, 40, n_rectangles=2, rng=0)
    model = RobustPCA(1, random_state=0).fit(video.frames.reshape(40, -1))
    assert model.noise_floor_ >= 1.0


def test_seed_pipeline_clone_and_pickle(fitted):
    model, X, _ = fitted
    again = clone(model).fit(X)
    np.testing.assert_array_equal(again.components_, model.components_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).transform(X), model.transform(X))
    T = make_pipeline(RobustPCA(K, random_state=0), StandardScaler()).fit_transform(X)
    assert T.shape == (M, K)
    assert repr(RobustPCA(3, decay=0.9)) == "RobustPCA(decay=0.9, n_components=3)"


def test_what_is_refused():
    X, _ = samples(6)
    for options, message in (
        ({"n_components": 0}, "n_components must be an integer|n_components must be at least"),
        ({"n_components": N + 1}, r"n_components must be in 1\.\.80"),
        ({"missing": "drop"}, "missing must be one of"),
        ({"center": "yes"}, "center must be one of"),
        ({"decay": 1.5}, r"decay must be in \(0, 1\)"),
        ({"tol": -1.0}, "tol must be finite"),
        ({"noise_floor": -1.0}, "noise_floor must be finite"),
        ({"method": "magic"}, "method must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            RobustPCA(**options).fit(X)
    with pytest.raises(TypeError, match="entries that can be read"):
        RobustPCA().fit(sp.linalg.aslinearoperator(X))
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        RobustPCA().fit(sp.csr_array(X))
    with pytest.raises(ValueError, match="Complex data not supported"):
        RobustPCA().fit(da.from_array(X + 0j, chunks=(100, N)))
    with pytest.raises(ValueError, match="at least 2 samples; got n_samples=1"):
        RobustPCA().fit(da.from_array(X[:1], chunks=(1, N)))
    with pytest.raises(NotFittedError):
        RobustPCA().transform(X)


# ---- the coding of rows in a space that is not exact, as that of a fit is not


@pytest.mark.parametrize("error", [0.0, 1e-7, 1e-6, 1e-4, 1e-2])
def test_inliers_are_kept_in_a_space_that_is_not_exact(error):
    random = np.random.default_rng(0)
    V = np.linalg.qr(random.standard_normal((N, K)))[0]
    clean = 10 * random.standard_normal((M, K)) @ V.T
    wrong = random.random(clean.shape) < 0.15
    nearly = np.linalg.qr(V + error * random.standard_normal(V.shape))[0]
    result = rnla.robust_code(clean + 20 * wrong, nearly)
    assert np.abs(np.median(result.kept) - 0.85) < 0.03
    assert result.converged.all()


def test_rows_whose_residuals_are_below_the_noise_floor_are_done_soon():
    random = np.random.default_rng(0)
    V = np.linalg.qr(random.standard_normal((N, K)))[0]
    Y = 100 * random.standard_normal((M, K)) @ V.T + 0.1 * random.standard_normal((M, N))
    Y[:, :8] += 50
    result = rnla.robust_code(Y, V, noise_floor=5.0)
    assert result.converged.all()
    assert result.n_iter < 40
    assert (result.kept == 1 - 8 / N).all()
