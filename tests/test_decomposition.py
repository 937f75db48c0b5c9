"""The estimators are scikit-learn's to their users, right where those are not, and take every kind of matrix."""

import pickle
import subprocess
import sys
from pathlib import Path

import array_api_compat
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.decomposition as theirs
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import rnla
from rnla._principal_components import minka_dimension
from rnla.decomposition import PCA, IncrementalPCA, TruncatedSVD
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum

ESTIMATORS = [PCA, IncrementalPCA, TruncatedSVD]
EPS = float(np.finfo(np.float64).eps)


@pytest.fixture(params=ESTIMATORS, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def points(m, n, *, name="poly1", offset=3.0, seed=0, dtype=np.float64):
    A = matrix_with_spectrum(m, n, spectrum(name, min(m, n)), rng=seed)
    return (A + offset * np.random.default_rng(seed).standard_normal(n)).astype(dtype)


# scikit-learn's own checks set n_components = 1 for its own TruncatedSVD, whose default does not fit their smallest X.
# Some of their X have fewer independent columns than columns, which covariance_eigh, asked for all components, reports.
@pytest.mark.filterwarnings("ignore:rnla.pca. method 'covariance' does not resolve:rnla.AccuracyWarning")
@parametrize_with_checks(
    [
        PCA(),
        PCA(svd_solver="covariance_eigh", whiten=True),
        PCA(n_components=0.9, svd_solver="arpack"),
        IncrementalPCA(),
        IncrementalPCA(batch_size=10, whiten=True),
        TruncatedSVD(n_components=1),
        TruncatedSVD(n_components=1, algorithm="arpack"),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_parameters_and_their_defaults_are_scikit_learns(cls):
    assert cls().get_params() == getattr(theirs, cls.__name__)().get_params()


def test_fitted_attributes_are_scikit_learns(cls):
    A = points(40, 12)
    ours, peer = (found(n_components=3).fit(A) for found in (cls, getattr(theirs, cls.__name__)))
    assert set(vars(ours)) - {"info_"} == {name for name in vars(peer) if not name.startswith("_")}
    assert list(ours.get_feature_names_out()) == list(peer.get_feature_names_out())
    methods = {name for name in dir(peer) if name[0] != "_" and callable(getattr(peer, name))}
    assert methods <= set(dir(ours))


def agree(ours, peer, A, tol):
    """Compare everything two fitted estimators say; the components are well separated."""
    shared = [name for name in vars(peer) if name.endswith("_") and not name.startswith("_")]
    for name in shared:
        value, expected = getattr(ours, name), getattr(peer, name)
        assert np.shape(value) == np.shape(expected), name
        assert np.abs(np.asarray(value) - expected).max() <= tol * max(np.abs(expected).max(), 1), name
    T = peer.transform(A)
    assert np.abs(ours.transform(A) - T).max() <= tol * np.abs(T).max()
    assert np.abs(ours.inverse_transform(T) - peer.inverse_transform(T)).max() <= tol * np.abs(A).max()


@pytest.mark.parametrize("solver", ["auto", "full", "covariance_eigh", "arpack", "randomized"])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_agrees_with_scikit_learn(solver, whiten):
    A = points(90, 20)
    options = {"n_components": 4, "whiten": whiten, "random_state": 0}
    peer = theirs.PCA(svd_solver="full", **options).fit(A)
    # Residuals of 1e-8 relative to each singular value, over the gaps of 1/j, bound the error of the components.
    tol = 1e-8 if solver in ("auto", "randomized") else 0.0
    ours = PCA(svd_solver=solver, tol=tol, **options)
    T = ours.fit_transform(A)
    agree(ours, peer, A, 1e-6)
    assert np.abs(T - ours.transform(A)).max() <= 100 * EPS * np.abs(T).max()
    if not whiten:  # for whitened coordinates scikit-learn scales components that are not whitened
        assert ours.get_covariance() == pytest.approx(peer.get_covariance(), rel=1e-6, abs=1e-9)
        assert ours.get_precision() == pytest.approx(peer.get_precision(), rel=1e-6, abs=1e-6 / peer.noise_variance_)
        assert ours.score_samples(A) == pytest.approx(peer.score_samples(A), rel=1e-6)
        assert ours.score(A) == pytest.approx(peer.score(A), rel=1e-6)
    assert ours.get_covariance() @ ours.get_precision() == pytest.approx(np.eye(20), abs=1e-9)


@pytest.mark.parametrize("algorithm", ["randomized", "arpack"])
@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array, sp.csc_matrix])
def test_truncated_svd_agrees_with_scikit_learn(algorithm, convert):
    A = points(60, 25)
    A[A < 0.5] = 0
    peer = theirs.TruncatedSVD(4, algorithm="arpack", random_state=0).fit(A)
    ours = TruncatedSVD(4, algorithm=algorithm, tol=1e-8, random_state=0)
    T = ours.fit_transform(convert(A))
    agree(ours, peer, A, 1e-6)
    assert np.abs(T - ours.transform(A)).max() <= 100 * EPS * np.abs(T).max()


@pytest.mark.parametrize("batch_size", [None, 13, 40])
@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array])
def test_incremental_pca_agrees_with_scikit_learn(batch_size, convert):
    A = points(90, 20)
    options = {"n_components": 4, "batch_size": batch_size}
    ours, peer = IncrementalPCA(**options).fit(convert(A)), theirs.IncrementalPCA(**options).fit(A)
    # Not of the batch alone, like scikit-learn's: what all directions but the components have of the variance.
    noise = (A.var(axis=0, ddof=1).sum() - ours.explained_variance_.sum()) / 16
    assert ours.noise_variance_ == pytest.approx(noise)
    peer.noise_variance_ = ours.noise_variance_
    agree(ours, peer, A, 1e-9)


# --- what is computed


@given(
    m=st.integers(2, 60),
    n=st.integers(1, 30),
    part=st.floats(0, 1),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pca_of_any_shape(m, n, part, offset, seed):
    A = np.random.default_rng(seed).standard_normal((m, n)) + offset
    k = round(part * min(m, n))
    model = PCA(k).fit(A)
    S = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)
    rounding = 100 * EPS * max(offset, 1.0) * max(m, n) ** 0.5 * max(S[0], 1.0)
    assert model.components_.shape == (k, n)
    assert_orthonormal(model.components_.T)
    assert model.singular_values_ == pytest.approx(S[:k], abs=rounding)
    left = min(m, n) - k
    noise = np.sum(S[k:] ** 2) / (m - 1) / left if left else 0.0
    assert model.noise_variance_ == pytest.approx(noise, abs=rounding * S[0])
    assert model.info_.rank == k
    total = np.linalg.norm(S)
    error = np.linalg.norm(S[k:]) / total if total else 0.0
    assert model.info_.error_estimate == pytest.approx(error, abs=1e-6)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    n=st.integers(1, 20),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_incremental_pca_in_any_partition_is_pca_while_nothing_is_cut_off(sizes, n, offset, dtype, seed):
    # With n components nothing is cut off, so every partition gives the answer for all rows up to rounding.
    sizes = [max(sizes[0], n), *sizes[1:]]
    A = (np.random.default_rng(seed).standard_normal((sum(sizes), n)) + offset).astype(dtype)
    model = IncrementalPCA(n)
    for rows in np.split(A, np.cumsum(sizes)[:-1]):
        model.partial_fit(rows)
    wide, m = A.astype(np.float64), len(A)
    S = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)
    eps = float(np.finfo(dtype).eps)
    # In double precision means and variances are computed, so that of single precision only the stack is rounded.
    assert model.mean_ == pytest.approx(wide.mean(axis=0), rel=100 * EPS)
    assert model.var_ == pytest.approx(wide.var(axis=0), rel=1e3 * EPS * max(offset, 1.0), abs=1e3 * EPS * offset)
    assert model.singular_values_ == pytest.approx(S, abs=(100 * eps + 100 * EPS * offset) * max(m, 2) * max(S[0], 1))
    assert model.components_.dtype == dtype
    assert_orthonormal(model.components_.T)
    assert model.n_samples_seen_ == m
    if m > 1:
        assert model.explained_variance_ == pytest.approx(model.singular_values_**2 / (m - 1), rel=10 * eps)


def test_incremental_pca_cuts_off_from_below():
    # What is cut off is lost: by interlacing no singular value is too large, and the stack keeps the leading ones.
    A = points(200, 30, name="exp")
    S = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)
    model = IncrementalPCA(6, batch_size=20).fit(A)
    assert (model.singular_values_ <= S[:6] * (1 + 100 * EPS)).all()
    assert model.singular_values_[:3] == pytest.approx(S[:3], rel=0.1)
    again = clone(model).fit(A)
    assert model.fit(A).singular_values_ == pytest.approx(again.singular_values_, rel=10 * EPS)


def test_a_large_offset_costs_no_digits():
    # The default of scikit-learn's PCA, X^T X - m mu mu^T, is off fivefold here.
    rng = np.random.default_rng(0)
    A = rng.standard_normal((1000, 20)) * np.linspace(1, 0.1, 20) + 1e6
    S = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)
    for model in (PCA(5), PCA(5, svd_solver="covariance_eigh"), IncrementalPCA(20, batch_size=100)):
        found = model.fit(A).singular_values_
        assert np.abs(found[:5] / S[:5] - 1).max() <= 1e-9


@pytest.mark.parametrize("solver", ["auto", "full", "covariance_eigh", "arpack"])
@pytest.mark.parametrize("shape", [(600, 40), (60, 700), (50, 20)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_share_of_the_variance_sets_the_number_of_components(solver, shape, share):
    A = points(*shape, name="exp")
    peer = theirs.PCA(share, svd_solver="full").fit(A)
    ours = PCA(share, svd_solver=solver, tol=1e-6, random_state=0).fit(A)
    assert ours.n_components_ == peer.n_components_
    assert ours.explained_variance_ratio_.sum() > share
    assert ours.explained_variance_ratio_ == pytest.approx(peer.explained_variance_ratio_, rel=1e-6)
    assert ours.noise_variance_ == pytest.approx(peer.noise_variance_, rel=1e-4)


def test_the_most_probable_number_of_components():
    rng = np.random.default_rng(0)
    true = 4
    A = rng.standard_normal((300, true)) @ (3 * rng.standard_normal((true, 15))) + rng.standard_normal((300, 15))
    ours, peer = PCA("mle").fit(A), theirs.PCA("mle").fit(A)
    assert ours.n_components_ == peer.n_components_ == true
    assert ours.noise_variance_ == pytest.approx(peer.noise_variance_)
    assert minka_dimension(np.zeros(3), 10) == 1
    assert minka_dimension(np.ones(1), 10) == 1
    with pytest.raises(ValueError, match=r"'mle' needs n_samples >= n_features; got n_samples=15, n_features=300"):
        PCA("mle").fit(A.T)


def test_whitened_coordinates_have_unit_covariance_and_come_back():
    A = points(80, 10)
    for model in (PCA(whiten=True), IncrementalPCA(whiten=True, batch_size=20)):
        T = model.fit_transform(A)
        assert np.cov(T.T) == pytest.approx(np.eye(10), abs=1e-9)
        assert np.abs(model.inverse_transform(T) - A).max() <= 1e-9 * np.abs(A).max()
    A[:, 5:] = A[:, :5]  # rank 5: directions without variance
    model = PCA(whiten=True).fit(A)
    assert np.isfinite(model.transform(A)).all()
    assert np.abs(model.inverse_transform(model.transform(A)) - A).max() <= 1e-9 * np.abs(A).max()
    constant = PCA(2, whiten=True).fit(np.ones((5, 3)))
    assert (constant.transform(np.ones((5, 3))) == 0).all()


def test_the_likelihood_is_that_of_the_covariance():
    from scipy.stats import multivariate_normal

    A = points(120, 8)
    for model in (PCA(3).fit(A), PCA().fit(A), PCA(3, whiten=True).fit(A)):
        law = multivariate_normal(model.mean_, model.get_covariance())
        for view in (A, sp.csr_array(A), da.from_array(A, chunks=(50, 8)), aslinearoperator(A)):
            assert model.score_samples(view) == pytest.approx(law.logpdf(A), rel=1e-8)
    # The noise below which nothing can be told apart is that of each row, not of the largest one.
    tiny = PCA(3).fit(A)
    tiny.noise_variance_ = 1e-20
    inside = tiny.inverse_transform(tiny.transform(A))
    assert np.isfinite(tiny.score_samples(inside)).all()


def test_a_singular_covariance_is_refused_by_what_needs_its_inverse():
    wide = points(5, 9)
    model = PCA().fit(wide)
    assert model.noise_variance_ == 0
    for method, arguments in (("get_precision", ()), ("score_samples", (wide,)), ("score", (wide,))):
        with pytest.raises(np.linalg.LinAlgError, match=r"the covariance is singular: 5 components of 9 features"):
            getattr(model, method)(*arguments)
    assert model.get_covariance() == pytest.approx(np.cov(wide.T), abs=1e-9)


# --- what is taken


def kinds(A, tmp_path):
    """Every kind of input beyond scikit-learn's."""
    path = tmp_path / "A.npy"
    np.save(path, A)
    file = h5py.File(tmp_path / "A.h5", "w")
    chunks = (32, A.shape[1])
    stored = zarr.create_array(store=str(tmp_path / "A.zarr"), shape=A.shape, chunks=chunks, dtype=A.dtype)
    stored[:] = A
    return {
        "memmap": np.load(path, mmap_mode="r"),
        "dask rows": da.from_array(A, chunks=(32, A.shape[1])),
        "dask tiles": da.from_array(A, chunks=(32, 7)),
        "h5py": file.create_dataset("A", data=A, chunks=chunks),
        "zarr": stored,
        "operator": aslinearoperator(A),
        "counted": CountingOperator(A),
        "functions": (lambda x: A @ x, lambda y: A.T @ y, A.shape, A.dtype),
        "rows": CountingRows(A, 32),
        "sparse": sp.coo_array(A),
    }


def test_every_kind_of_matrix_gives_the_same(cls, tmp_path):
    A = points(150, 25)
    options = {} if cls is IncrementalPCA else {"random_state": 0}
    expected = cls(n_components=4, **options).fit(A)
    T = expected.transform(A)
    for kind, view in kinds(A, tmp_path).items():
        model = cls(n_components=4, **options)
        found = model.fit_transform(view)
        assert isinstance(found, np.ndarray), kind
        assert model.n_features_in_ == 25
        assert np.abs(found - T).max() <= 1e-9 * np.abs(T).max(), kind
        assert np.abs(expected.transform(view) - T).max() <= 1e-9 * np.abs(T).max(), kind
        assert model.singular_values_ == pytest.approx(expected.singular_values_, rel=1e-9)
        if kind not in ("operator", "counted", "functions"):  # whose total variance is estimated
            assert model.explained_variance_ratio_ == pytest.approx(expected.explained_variance_ratio_, rel=1e-9)
        else:  # 32 probes: the part that is estimated has a relative standard deviation of at most 1/4
            assert model.explained_variance_ratio_ == pytest.approx(expected.explained_variance_ratio_, rel=0.5)


def test_larger_matrices_are_iterated_on_and_read_few_times(tmp_path):
    A = points(900, 600, name="exp", offset=0.1)
    S = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)
    rows = CountingRows(A, 100)
    model = PCA(5, random_state=0).fit(rows)
    assert model.singular_values_ == pytest.approx(S[:5], rel=1e-3)
    assert model.info_.converged
    assert rows.passes <= 12
    operator = CountingOperator(A)
    model = TruncatedSVD(5, random_state=0).fit(operator)
    assert model.singular_values_ == pytest.approx(np.linalg.svd(A, compute_uv=False)[:5], rel=1e-3)
    assert operator.passes <= 16
    by_share = PCA(0.9, random_state=0).fit(sp.csr_array(A))
    shares = np.cumsum(S**2) / np.sum(S**2)
    assert by_share.n_components_ == np.searchsorted(shares, 0.9) + 1


def test_a_memory_map_is_not_read_into_memory(tmp_path, monkeypatch):
    import tracemalloc

    block = 2**19
    monkeypatch.setattr("rnla._matrix_blocks.BLOCK_BYTES", block)
    A = np.lib.format.open_memmap(tmp_path / "A.npy", "w+", np.float32, (20_000, 200))
    A[:] = np.random.default_rng(0).standard_normal((1, 200), dtype=np.float32)
    A[:, 0] += np.arange(20_000) % 7
    for model in (PCA(2, random_state=0), TruncatedSVD(2, random_state=0), IncrementalPCA(2, batch_size=300)):
        tracemalloc.start()
        model.fit(A)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # A few blocks (one is read ahead while one is centred and multiplied), and blocks of 12 columns as long as A.
        assert peak < 6 * block + 3 * 12 * len(A) * 8 < 0.6 * A.nbytes
        if not isinstance(model, TruncatedSVD):
            assert model.components_[0, 0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("place", ["strict", "strict-device1", "torch"], indirect=True)
def test_arrays_keep_their_library_and_device(place, cls):
    xp, device = place
    A = points(60, 12, dtype=np.float32)
    X = xp.asarray(A, device=device)
    model, peer = cls(n_components=3).fit(X), cls(n_components=3).fit(A)
    T = model.transform(X)
    for part in (model.components_, T, model.inverse_transform(T)):
        assert array_api_compat.device(part) == device
        assert part.dtype == xp.float32
    # And serve arrays of another library.
    assert isinstance(model.transform(A), np.ndarray)
    assert np.abs(model.transform(A) - peer.transform(A)).max() <= 1e-3
    if cls is PCA:
        assert array_api_compat.device(model.score_samples(X)) == device
        assert array_api_compat.device(model.get_covariance()) == device
        assert model.score(X) == pytest.approx(peer.score(A), rel=1e-3)
        assert array_api_compat.device(model.get_precision()) == device


def test_a_dask_array_of_coordinates_comes_back_lazily(cls):
    A = points(60, 12)
    model = cls(n_components=3).fit(A)
    T = model.transform(A)
    lazy = model.inverse_transform(da.from_array(T, chunks=(20, 2)))
    assert isinstance(lazy, da.Array)
    assert np.abs(lazy.compute() - model.inverse_transform(T)).max() <= 1e-12 * np.abs(A).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_precision_is_kept(cls, dtype):
    A = (10 * points(50, 8)).astype(dtype)
    expected = np.float64 if dtype == np.int32 else dtype
    for view in (A, sp.csr_array(A), da.from_array(A, chunks=(20, 8)), aslinearoperator(A)):
        model = cls(n_components=3).fit(view)
        assert model.components_.dtype == expected
        assert model.singular_values_.dtype == expected
        assert model.transform(view).dtype == expected


def test_input_is_never_overwritten(cls):
    A = points(40, 8)
    before = A.copy()
    options = {} if cls is TruncatedSVD else {"copy": False}
    model = cls(n_components=3, **options)
    model.inverse_transform(model.fit_transform(A))
    np.testing.assert_array_equal(A, before)


@pytest.mark.parametrize("factor", [1e150, 1e-150])
def test_extreme_scales(factor):
    A = points(60, 12)
    for model in (PCA(3, svd_solver="full"), TruncatedSVD(3)):
        expected = clone(model).fit(A).singular_values_
        assert model.fit(A * factor).singular_values_ / factor == pytest.approx(expected, rel=1e-9)


# --- what scikit-learn does with them


def test_in_a_pipeline_with_clone_and_pickle(cls):
    A = points(50, 8)
    model = make_pipeline(cls(n_components=3))
    T = model.fit_transform(A)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(A), model.transform(A))
    assert np.abs(clone(model).fit_transform(A) - T).max() <= 1e-9 * np.abs(T).max()


def test_one_seed_gives_one_result():
    A = points(800, 700)
    for cls, options in ((PCA, {}), (TruncatedSVD, {})):
        first, second, third = (cls(3, random_state=seed, **options).fit(A).components_ for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert (first != third).any()
        generator = np.random.RandomState(0)
        assert cls(3, random_state=generator, **options).fit(A).components_.shape == (3, 700)


def test_not_converged_is_never_silent():
    A = matrix_with_spectrum(1200, 1000, spectrum("flat", 1000), rng=0)
    with pytest.warns(rnla.ConvergenceWarning):
        model = PCA(3, svd_solver="arpack", random_state=0).fit(A)
    assert not model.info_.converged


# --- what is refused


@pytest.mark.parametrize(
    ("cls", "parameters", "message"),
    [
        (PCA, {"n_components": 13}, r"n_components must be in 0\.\.12 for n_samples=40, n_features=12; got 13"),
        (PCA, {"n_components": -1}, r"n_components must be at least 0; got -1"),
        (PCA, {"n_components": 1.5}, r"n_components must be an integer or in \(0, 1\); got 1\.5"),
        (PCA, {"n_components": "all"}, r"n_components must be one of 'mle'; got 'all'"),
        (PCA, {"svd_solver": "lapack"}, r"svd_solver must be one of 'auto', .*; got 'lapack'"),
        (PCA, {"tol": -1.0}, r"tol must be finite and not negative; got -1\.0"),
        (PCA, {"random_state": -1}, r"random_state as a seed must be a non-negative int; got -1"),
        (TruncatedSVD, {"n_components": 13}, r"n_components must be in 1\.\.12 for n_samples=40, n_features=12; got"),
        (TruncatedSVD, {"n_components": 0}, r"n_components must be at least 1; got 0"),
        (TruncatedSVD, {"algorithm": "full"}, r"algorithm must be one of 'randomized', 'arpack'; got 'full'"),
        (TruncatedSVD, {"tol": np.inf}, r"tol must be finite and not negative; got inf"),
        (IncrementalPCA, {"n_components": 13}, r"n_components must be in 1\.\.12 for a first batch of n_samples=40"),
        (IncrementalPCA, {"n_components": 5, "batch_size": 4}, r"n_components must be in 1\.\.4 for a first batch"),
        (IncrementalPCA, {"batch_size": 0}, r"batch_size must be at least 1; got 0"),
        (IncrementalPCA, {"n_components": 0}, r"n_components must be at least 1; got 0"),
    ],
)
def test_bad_parameters(cls, parameters, message):
    with pytest.raises(ValueError, match=rf"^rnla\.decomposition\.{cls.__name__}: {message}"):
        cls(**parameters).fit(points(40, 12))


@pytest.mark.parametrize("kind", ["array", "operator", "dask", "rows"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_input_that_is_not_finite(cls, kind, value):
    A = points(40, 12)
    model = cls(n_components=2).fit(A)
    A[3, 4] = value
    view = {
        "array": A,
        "operator": aslinearoperator(A),
        "dask": da.from_array(A, chunks=(20, 12)),
        "rows": CountingRows(A, 10),
    }[kind]
    for method in (model.transform, cls(n_components=2).fit):
        with pytest.raises(ValueError, match=r"finite|NaN|infinity"):
            method(view)
    if cls is PCA:
        with pytest.raises(ValueError, match=r"finite|NaN|infinity"):
            model.score(view)


def test_input_of_the_wrong_shape_or_kind(cls):
    A = points(40, 12)
    model = cls(n_components=2)
    with pytest.raises(NotFittedError):
        model.transform(A)
    with pytest.raises(NotFittedError):
        model.inverse_transform(A)
    model.fit(A)
    for view in (A[:, :5], aslinearoperator(A[:, :5]), da.from_array(A[:, :5])):
        with pytest.raises(ValueError, match=rf"^X has 5 features, but {cls.__name__} is expecting 12 features"):
            model.transform(view)
    for T in (np.ones((4, 3)), da.ones((4, 3))):
        with pytest.raises(ValueError, match=r"inverse_transform: X must have 2 columns; got shape \(4, 3\)"):
            model.inverse_transform(T)
    for view in (A.astype(complex), aslinearoperator(A.astype(complex)), da.from_array(A.astype(complex))):
        with pytest.raises(ValueError, match="Complex data not supported"):
            cls(n_components=2).fit(view)
    if cls is PCA:
        with pytest.raises(ValueError, match=r"at least 2 samples; got n_samples=1"):
            cls().fit(aslinearoperator(A[:1]))
    if cls is TruncatedSVD:
        with pytest.raises(ValueError, match=r"at least 2 features; got n_features=1"):
            cls(1).fit(aslinearoperator(A[:, :1]))


def test_incremental_pca_between_batches():
    A = points(40, 12)
    model = IncrementalPCA(3).partial_fit(A)
    with pytest.raises(ValueError, match=r"n_components must stay 3 between batches; got 5"):
        model.set_params(n_components=5).partial_fit(A)
    with pytest.raises(ValueError, match=r"X has 5 features, but IncrementalPCA is expecting 12"):
        model.set_params(n_components=3).partial_fit(A[:, :5])
    free = IncrementalPCA().partial_fit(A[:7])
    assert free.n_components_ == 7
    assert free.partial_fit(A[7:8]).n_components_ == 7  # one row is a batch
    single = IncrementalPCA(1).partial_fit(A[:1])
    assert single.explained_variance_.tolist() == [0.0]
    assert single.partial_fit(A[1:], check_input=False).n_samples_seen_ == 40


def test_what_to_install_without_scikit_learn():
    program = "import sys; sys.modules['sklearn'] = None; import rnla.decomposition"
    checkout = Path(rnla.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: rnla.decomposition: estimators need scikit-learn: pip install 'rnla[sklearn]'"
