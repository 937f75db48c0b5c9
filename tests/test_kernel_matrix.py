"""Kernel matrices agree with their definition, entry by entry and as products, and evaluate no more than they must."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from semidefinite import to_numpy
from strategies import rounding

from rnla import _kernel_matrix
from rnla._kernel_matrix import FEW, KernelMatrix
from rnla._matrix import as_matrix
from rnla._svd import svd

KERNELS = ("gaussian", "laplace", "matern12", "matern32", "matern52")


def dense(X, kernel, h):
    """Return the matrix by its definition, from SciPy's distances."""
    X = np.asarray(X, dtype=float)
    r = cdist(X, X) / h
    if kernel == "laplace":
        return np.exp(-cdist(X, X, "cityblock") / h)
    if kernel == "gaussian":
        return np.exp(-(r**2) / 2)
    if kernel == "matern12":
        return np.exp(-r)
    if kernel == "matern32":
        return (1 + 3**0.5 * r) * np.exp(-(3**0.5) * r)
    return (1 + 5**0.5 * r + 5 * r**2 / 3) * np.exp(-(5**0.5) * r)


def allowed(K, d, smooth=True):
    """Return the rounding of entries: of distances from inner products, eps times the squared norms, or its root."""
    eps = float(np.finfo(to_numpy(K.diag()).dtype).eps)
    size = np.sum(to_numpy(K._points) ** 2, axis=0).max()
    return 20 * eps * (1 + d) if d <= FEW else 20 * eps * (1 + size) if smooth else 20 * np.sqrt(eps * (1 + size))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(n=st.integers(1, 40), d=st.sampled_from([1, 2, 5, FEW, FEW + 1, 60]), seed=st.integers(0, 2**32 - 1),
       h=st.sampled_from([0.1, 1.0, 7.5]))  # fmt: skip
def test_entries_and_products_agree_with_the_definition(kernel, dtype, n, d, seed, h):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(dtype)
    X[n // 2 :] = X[: n - n // 2]  # some points twice
    K, expected = KernelMatrix(X, kernel, h), dense(X, kernel, h)
    slack = allowed(K, d, smooth=kernel != "matern12")
    S, T = rng.integers(0, n, 3), rng.integers(0, n, 4)
    assert np.array_equal(K.diag(), np.ones(n))
    assert np.abs(K.columns(S) - expected[:, S]).max() <= slack
    assert np.abs(K.submatrix(S, T) - expected[np.ix_(S, T)]).max() <= slack
    assert np.array_equal(np.diagonal(K.submatrix(S, S)), np.ones(3))
    V = rng.standard_normal((n, 3)).astype(dtype)
    bound = n * (slack + np.finfo(dtype).eps) * np.abs(V).max()
    assert np.abs(K @ V - expected @ V).max() <= bound
    assert np.abs(K @ V[:, 0] - expected @ V[:, 0]).max() <= bound
    assert (K @ V).dtype == K.columns(S).dtype == K.dtype == dtype
    # Positive semidefinite up to the error of the entries.
    assert np.linalg.eigvalsh(K.submatrix(range(n), range(n)).astype(float))[0] >= -n * slack


@pytest.mark.parametrize("kernel", KERNELS)
def test_products_by_blocks_of_rows_never_form_the_matrix(kernel, monkeypatch):
    monkeypatch.setattr(_kernel_matrix, "BLOCK", 1000)
    monkeypatch.setattr(_kernel_matrix, "TILE", 64)
    n = 150
    X = np.random.default_rng(0).standard_normal((n, 3))
    K = KernelMatrix(X, kernel, 1.0)
    largest = 0
    evaluate = K._evaluate

    def watched(left, right):
        nonlocal largest
        block = evaluate(left, right)
        largest = max(largest, block.size)
        return block

    K._evaluate = watched
    V = np.random.default_rng(1).standard_normal((n, 4))
    assert np.abs(K @ V - dense(X, kernel, 1.0) @ V).max() <= rounding(V, n)
    assert largest <= 1000
    # By symmetry about half of the entries are evaluated: the upper triangle, in blocks of six rows.
    assert K.evaluations <= n * (n + 6) / 2 + n


def test_evaluations_are_counted():
    K = KernelMatrix(np.random.default_rng(0).standard_normal((50, 2)))
    K.diag()
    K.columns([1, 2])
    K.submatrix([0, 1, 2], [3, 4])
    assert K.evaluations == 50 + 100 + 6


def test_points_far_from_the_origin_keep_their_distances():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 30))
    far = X + 1e6
    K, expected = KernelMatrix(far, "gaussian", 5.0), dense(far, "gaussian", 5.0)
    assert np.abs(K.submatrix(range(40), range(40)) - expected).max() <= 1e3 * np.finfo(float).eps * 30


def test_every_algorithm_takes_it_as_a_matrix():
    X = np.linspace(0.0, 1.0, 200)[:, None]
    K, A = KernelMatrix(X, "gaussian", 0.2), dense(X, "gaussian", 0.2)
    M = as_matrix(K, "test")
    assert (M.kind, M.shape, M.dtype) == ("operator", (200, 200), np.float64)
    S = svd(K, 5, rng=0).S
    assert np.abs(S - np.linalg.svd(A, compute_uv=False)[:5]).max() <= 1e-4 * S[0]
    assert K.T is K
    assert K.H is K


@pytest.mark.parametrize(
    "place", ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [2, 30])
def test_results_stay_on_the_device_of_the_points(place, kernel, d):
    xp, device = place
    points = np.random.default_rng(0).standard_normal((30, d))
    X, h = xp.asarray(points, device=device), d**0.5
    K, expected = KernelMatrix(X, kernel, h), dense(points, kernel, h)
    S = xp.asarray([3, 7], device=device)
    V = xp.asarray(np.ones((30, 2)), device=device)
    for found, true in ((K.columns(S), expected[:, [3, 7]]), (K.submatrix(S, [1]), expected[[3, 7], :][:, [1]]),
                        (K @ V, expected @ np.ones((30, 2))), (K.diag(), np.ones(30))):  # fmt: skip
        assert array_api_compat.array_namespace(found) is array_api_compat.array_namespace(X)
        assert array_api_compat.device(found) == array_api_compat.device(X)
        assert found.dtype == X.dtype
        assert np.abs(to_numpy(found) - true).max() <= 1e-10


def test_integers_are_computed_in_double_and_the_points_are_left_alone():
    X = np.arange(12).reshape(6, 2)
    before = X.copy()
    assert KernelMatrix(X, "laplace", 2).dtype == np.float64
    assert KernelMatrix(X.tolist(), "laplace", 2.0).shape == (6, 6)
    assert np.array_equal(X, before)


@pytest.mark.parametrize(("arguments", "error", "text"), [
    ((np.ones(3),), ValueError, "X must be two-dimensional"),
    ((np.ones((0, 3)),), ValueError, "X must be two-dimensional and not empty"),
    (("points",), TypeError, "X must be a dense array"),
    ((np.ones((3, 2), complex),), TypeError, "X must have an integer, float32 or float64 dtype"),
    ((np.array([[np.nan]]),), ValueError, "X must be finite"),
    ((np.ones((3, 2)), "cauchy"), ValueError, "kernel must be one of"),
    ((np.ones((3, 2)), "gaussian", 0.0), ValueError, "bandwidth must be positive"),
    ((np.ones((3, 2)), "gaussian", -1.0), ValueError, "bandwidth must be finite and not negative"),
    ((np.ones((3, 2)), "gaussian", "wide"), TypeError, "bandwidth must be a real number"),
    ((np.array([[0.0], [1.0]]), "gaussian", 1e-300), ValueError, "bandwidth must be so large"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(arguments, error, text):
    with pytest.raises(error, match=rf"^rnla\.KernelMatrix: {text}"):
        KernelMatrix(*arguments)


def test_factors_of_the_wrong_shape_are_refused():
    K = KernelMatrix(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"^rnla\.KernelMatrix: a factor must have 3 rows"):
        K @ np.ones((4, 2))
