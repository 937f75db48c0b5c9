"""Principal components are those of the centred matrix, whatever holds it and however far it is from the origin."""

import math

import array_api_compat
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import DTYPES

import rnla
from rnla._pca import marchenko_pastur_median, optimal_threshold, pca
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum


def points(m, n, *, offset=3.0, dtype=np.float64, seed=0, name="poly1"):
    A = matrix_with_spectrum(m, n, spectrum(name, min(m, n)), rng=seed, dtype=dtype)
    return (A + offset * np.random.default_rng(seed).standard_normal(n)).astype(dtype)


def reference(A, scale=False):
    """Singular values and components by LAPACK in double precision."""
    X = A.astype(np.promote_types(A.dtype, np.float64))
    X = X - X.mean(axis=0)
    if scale:
        X = X / X.std(axis=0, ddof=1)
    _, S, Vh = np.linalg.svd(X, full_matrices=False)
    return S, Vh, np.linalg.norm(X) ** 2


def check(result, A, k, tol, scale=False):
    S, _, total = reference(A, scale)
    m, n = A.shape
    singular_values = np.asarray(result.singular_values)
    assert result.components.shape == (k, n)
    assert result.n_samples == m
    assert_orthonormal(np.asarray(result.components).conj().T)
    assert np.abs(singular_values - S[:k]).max() <= tol * S[0]
    assert np.asarray(result.explained_variance) == pytest.approx(singular_values**2 / (m - 1), rel=1e-5)
    assert np.asarray(result.explained_variance_ratio) == pytest.approx(singular_values**2 / total, rel=1e-5)
    left = min(m, n) - k
    noise = max(total - np.sum(singular_values.astype(float) ** 2), 0) / (m - 1) / left if left else 0.0
    assert result.noise_variance == pytest.approx(noise, rel=1e-4, abs=1e-5 * total)


KINDS = {
    "dense": lambda A: A,
    "by columns": np.asfortranarray,
    "sparse": sp.csr_array,
    "dask": lambda A: da.from_array(A, chunks=(25, A.shape[1])),
    "file": lambda A: CountingRows(A, 20),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "covariance", "gram", "krylov", "dense"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_and_method_gives_the_components_of_the_centred_matrix(kind, method, dtype):
    A = points(90, 30, dtype=dtype)
    if kind == "sparse" and method == "covariance":
        with pytest.raises(ValueError, match=r"^rnla\.pca: method 'covariance' needs rows of A at hand"):
            pca(KINDS[kind](A), 4, method=method, rng=0)
        return
    eps = float(np.finfo(dtype).eps)
    # Squares of single precision do not resolve more.
    tol = 1e-2 if method == "covariance" and eps > 1e-10 else 1e-5
    result = pca(KINDS[kind](A), 4, method=method, tol=tol, rng=0)
    check(result, A, 4, 1e-8 + 100 * eps)
    assert result.components.dtype == dtype
    _, Vh, _ = reference(A)
    for component, exact in zip(np.asarray(result.components), Vh, strict=False):
        assert abs(np.vdot(component, exact)) >= 1 - 1e-4
        entry = component[np.argmax(np.abs(component))]
        assert entry.real > 0
        assert abs(entry.imag) <= 10 * eps


@given(
    m=st.integers(2, 60),
    n=st.integers(1, 40),
    part=st.floats(0, 1),
    scale=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_rank(m, n, part, scale, offset, seed):
    A = np.random.default_rng(seed).standard_normal((m, n)) * np.logspace(0, -2, n) + offset
    k = 1 + round(part * (min(m, n) - 1))
    result = pca(A, k, scale=scale, tol=1e-6, rng=seed)
    check(result, A, k, 1e-9 * max(offset, 1.0), scale)


@pytest.mark.parametrize("method", ["auto", "covariance", "gram"])
def test_a_large_offset_costs_no_digits(method):
    # Where the mean is a million standard deviations, X^T X - m mu mu^T has lost everything (49.75 instead of 10).
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 20)) * np.linspace(1, 0.1, 20)
    A = X + 1e6
    S = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)
    for view in (A, sp.csr_array(A)) if method != "covariance" else (A,):
        result = pca(view, 5, method=method, tol=1e-8, rng=0)
        assert np.abs(result.singular_values / S[:5] - 1).max() <= 1e-9


def test_scaling_leaves_constant_columns_alone():
    A = points(50, 6)
    A[:, 2] = 0.1  # whose mean is not exact
    result = pca(A, 3, scale=True, rng=0)
    assert result.scale[2] == 1
    assert abs(result.components[:, 2]).max() <= 1e-8
    kept = [0, 1, 3, 4, 5]
    S, _, _ = reference(A[:, kept], scale=True)
    assert result.singular_values == pytest.approx(S[:3], rel=1e-4)
    assert result.scale[kept] == pytest.approx(A[:, kept].std(axis=0, ddof=1))
    for view in (sp.csr_array(A), da.from_array(A, chunks=(20, 6)), np.asfortranarray(A)):
        assert pca(view, 3, scale=True, rng=0).singular_values == pytest.approx(result.singular_values, rel=1e-4)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transform_and_its_inverse(dtype, scale):
    A = points(60, 12, dtype=dtype)
    result = pca(A, 12, scale=scale, rng=0)
    T = result.transform(A)
    assert T.dtype == dtype
    eps = float(np.finfo(dtype).eps)
    assert np.abs(result.inverse_transform(T) - A).max() <= 1e3 * eps * np.abs(A).max()
    assert np.linalg.norm(T, axis=0) == pytest.approx(result.singular_values, rel=1e-3)
    for view in (sp.csr_array(A), da.from_array(A, chunks=(25, 5)), aslinearoperator(A)):
        assert np.abs(result.transform(view) - T).max() <= 1e3 * eps * np.abs(A).max() * np.abs(T).max()


def test_uncentred_is_the_svd():
    A = points(50, 20)
    result = pca(A, 5, center=False, tol=1e-8, rng=0)
    assert result.singular_values == pytest.approx(np.linalg.svd(A, compute_uv=False)[:5], rel=1e-9)
    assert (result.mean == 0).all()


def test_an_operator_is_centred_by_products_alone():
    A = points(80, 40, name="exp")
    counted = CountingOperator(A)
    result = pca(counted, 4, tol=1e-6, rng=0)
    S, _, total = reference(A)
    assert result.singular_values == pytest.approx(S[:4], rel=1e-9)
    # The variance that is left is estimated: of the total, a small part here.
    assert result.explained_variance_ratio == pytest.approx(S[:4] ** 2 / total, rel=0.5)
    assert result.info.passes == counted.passes
    with pytest.raises(ValueError, match=r"^rnla\.pca: scale=True needs the entries of A"):
        pca(counted, 4, scale=True)


@pytest.mark.parametrize("rows", ["tall", "wide"])
def test_a_precision_sets_the_number_of_components(rows):
    A = points(200, 30, name="exp") if rows == "tall" else points(30, 200, name="exp")
    S, _, total = reference(A)
    result = pca(A, rtol=0.1, rng=0)
    k = len(result.singular_values)
    assert np.sum(S[k:] ** 2) <= 0.01 * total * (1 + 1e-9)
    if rows == "tall":
        assert result.info.method == "covariance"
        assert np.sum(S[k - 1 :] ** 2) > 0.01 * total


def test_squares_are_not_trusted_below_their_rounding():
    A = matrix_with_spectrum(300, 20, np.logspace(0, -10, 20), rng=0)
    result = pca(A, 19, center=False, tol=1e-6, rng=0)
    assert result.info.method != "covariance"
    assert result.singular_values == pytest.approx(np.logspace(0, -10, 20)[:19], rel=1e-4)
    with pytest.warns(rnla.AccuracyWarning, match=r"^rnla\.pca: method 'covariance' does not resolve"):
        pca(A, 19, center=False, method="covariance")


def test_the_number_of_components_above_noise():
    rng = np.random.default_rng(1)
    m, n, true = 400, 100, 7
    signal = matrix_with_spectrum(m, n, np.r_[np.full(true, 100.0), np.zeros(n - true)], rng=2)
    A = signal + rng.standard_normal((m, n))
    result = pca(A, rank="gavish-donoho", rng=0)
    assert len(result.singular_values) == true
    assert len(pca(A, 3, rank="gavish-donoho", rng=0).singular_values) == 3
    # Gavish and Donoho 2014: 4 / sqrt(3) for known noise, 2.858 for unknown, square matrices; equation (5), to 0.02.
    assert optimal_threshold(1.0) == pytest.approx(4 / math.sqrt(3))
    assert optimal_threshold(1.0) / math.sqrt(marchenko_pastur_median(1.0)) == pytest.approx(2.858, abs=1e-3)
    for beta in (0.1, 0.5, 0.9):
        approximation = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
        assert optimal_threshold(beta) / math.sqrt(marchenko_pastur_median(beta)) == pytest.approx(
            approximation, abs=0.02
        )


@pytest.mark.parametrize("place", ["strict", "strict-device1", "torch"], indirect=True)
@pytest.mark.parametrize("method", ["auto", "covariance", "gram"])
def test_results_stay_in_the_library_of_the_input(place, method):
    xp, device = place
    A = points(90, 20, dtype=np.float32)
    result = pca(xp.asarray(A, device=device), 3, scale=True, method=method, rng=0)
    for name in ("components", "explained_variance", "explained_variance_ratio", "singular_values", "mean", "scale"):
        part = getattr(result, name)
        assert array_api_compat.device(part) == device
        assert part.dtype == xp.float32
    T = result.transform(xp.asarray(A, device=device))
    assert array_api_compat.device(T) == device
    assert array_api_compat.device(result.inverse_transform(T)) == device


def test_extreme_scales_and_degenerate_matrices():
    A = points(60, 12)
    S, _, _ = reference(A)
    for factor in (1e150, 1e-150):
        assert pca(A * factor, 4, tol=1e-6, rng=0).singular_values / factor == pytest.approx(S[:4], rel=1e-6)
    constant = pca(np.full((20, 5), 7.0), 2, rng=0)
    assert np.abs(constant.singular_values).max() <= 1e-12
    assert_orthonormal(constant.components.T)
    single = pca(np.arange(5.0)[:, None], 1, rng=0)
    assert single.components.tolist() == [[1.0]]
    assert single.explained_variance[0] == pytest.approx(2.5)


def test_repr_says_what_was_found():
    text = repr(pca(points(60, 12), 4, rng=0))
    assert text.startswith("PCAResult(4 components of 12 features, ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k must be in 1\.\.12"),
        ({"k": 13}, r"k must be in 1\.\.12"),
        ({"k": None}, r"one of k, rtol and rank must be given"),
        ({"center": "yes"}, r"center must be one of True, False; got 'yes'"),
        ({"scale": 2}, r"scale must be one of True, False; got 2"),
        ({"rank": "auto"}, r"rank must be one of None, 'gavish-donoho'; got 'auto'"),
        ({"k": None, "rank": "gavish-donoho", "rtol": 0.1}, r"only one of rtol and rank"),
        ({"tol": -1.0}, r"tol must be finite and not negative"),
        ({"method": "full"}, r"method must be one of 'covariance', 'auto'"),
        ({"A": np.ones((1, 12))}, r"A must have at least 2 rows"),
        ({"A": np.full((30, 12), np.nan)}, r"A must be finite"),
        ({"A": np.where(np.eye(30, 12) > 0, np.inf, 1.0)}, r"A must be finite"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"A": points(30, 12), "k": 3, **change}
    A, k = arguments.pop("A"), arguments.pop("k")
    with pytest.raises(ValueError, match=rf"^rnla\.pca: {message}"):
        pca(A, k, **arguments)


def test_new_rows_must_have_the_same_columns():
    result = pca(points(30, 12), 3, rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.PCAResult\.transform: A must have 12 columns; got shape \(4, 11\)"):
        result.transform(np.ones((4, 11)))


def test_complex_components_are_not_applied_to_real_rows():
    result = pca(points(30, 12, dtype=np.complex128), 3, rng=0)
    with pytest.raises(TypeError, match=r"^rnla\.PCAResult\.transform: A must be complex"):
        result.transform(points(30, 12))


def test_passes_are_bounded():
    A = points(300, 200, name="flat")
    with pytest.warns(rnla.ConvergenceWarning, match="max_passes = 4 reached"):
        assert not pca(A, 10, max_passes=4, tol=1e-6, rng=0).info.converged


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("method", ["auto", "covariance", "krylov"])
@pytest.mark.parametrize("standardise", [False, True])
def test_extreme_units(scale, method, standardise):
    A = points(80, 12)
    with np.errstate(over="ignore"):  # of a variance that is out of range
        found = pca(A * scale, 3, method=method, scale=standardise, rng=0)
    wanted = pca(A, 3, method=method, scale=standardise, rng=0)
    unit = 1.0 if standardise else scale
    assert np.abs(found.singular_values / unit / wanted.singular_values - 1).max() <= 1e-12
    assert np.abs(found.explained_variance_ratio - wanted.explained_variance_ratio).max() <= 1e-12
    assert abs(found.info.error_estimate - wanted.info.error_estimate) <= 1e-7
    if standardise:
        assert np.abs(found.scale / scale / wanted.scale - 1).max() <= 1e-12
