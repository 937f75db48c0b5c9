"""The names of SciPy and scikit-learn give what they give there."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array
from scipy.sparse.linalg import aslinearoperator
from scipy.sparse.linalg import svds as scipy_svds
from sklearn.utils.extmath import randomized_svd as sklearn_svd
from strategies import problems, rounding

import rnla
from rnla.testing import CountingOperator, matrix_with_spectrum, spectrum


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("view", [np.asarray, csr_array, aslinearoperator])
def test_svds_agrees_with_scipy(dtype, view):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype=dtype)
    U, S, Vh = rnla.svds(view(A), rng=0)
    their_U, their_S, their_Vh = scipy_svds(A, rng=0)
    assert S.shape == (6,)
    allowed = rounding(A, 1.0)
    # Descending here, ascending there.
    assert np.abs(S - their_S[::-1]).max() <= allowed
    ours, theirs = (U * S) @ Vh, (their_U * their_S) @ their_Vh
    # Vectors are as good as the residual, the root of rounding, over the gap of 1 / 42.
    assert np.abs(ours - theirs).max() <= 42 * np.finfo(dtype).eps ** 0.5


def test_svds_on_a_sparse_matrix_with_close_values():
    A = random_array((300, 200), density=0.05, rng=np.random.default_rng(0), format="csr")
    S = rnla.svds(A, 10, return_singular_vectors=False, rng=0)
    assert np.abs(S - scipy_svds(A, 10, return_singular_vectors=False, rng=0)[::-1]).max() <= rounding(
        np.zeros(A.shape), S[0]
    )


def test_svds_options():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    default = rnla.svds(CountingOperator(A), 4, rng=0)
    same = rnla.svds(A, 4, tol=np.finfo(float).eps ** 0.5, rng=0)
    loose = rnla.svds(CountingOperator(A), 4, tol=1e-2, rng=0)
    assert np.abs(default.S - same.S).max() <= rounding(A, 1.0)
    assert loose.info.passes < default.info.passes
    with pytest.warns(rnla.ConvergenceWarning):
        short = rnla.svds(CountingOperator(A), 4, maxiter=4, rng=0)
    assert short.info.passes <= 4
    values = rnla.svds(A, 4, return_singular_vectors=False, rng=0)
    assert not isinstance(values, tuple)
    assert np.abs(values - default.S).max() <= rounding(A, 1.0)
    assert rnla.svds(A, 4, method="rsi", n_iter=1, rng=0).info.method == "rsi"
    single = rnla.svds(matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype="float32"), 4, rng=0)
    assert single.info.converged  # the tolerance follows the dtype


@given(problem=problems(), p=st.integers(0, 10), n_iter=st.integers(0, 3), flip=st.booleans())
def test_randomized_svd_is_subspace_iteration_with_these_settings(problem, p, n_iter, flip):
    A, _, k, seed = problem
    options = {"n_oversamples": p, "n_iter": n_iter, "flip_sign": flip}
    alias = rnla.randomized_svd(A, k, random_state=seed, **options)
    plain = rnla.svd(A, k, method="rsi", rng=seed, **options)
    assert alias.info.method == "rsi"
    assert all(np.array_equal(x, y) for x, y in zip(alias, plain, strict=True))


@pytest.mark.parametrize(
    ("name", "view"),
    [(name, np.asarray) for name in ("slow", "poly1", "poly2", "exp", "step", "flat")] + [("poly1", csr_array)],
)
@pytest.mark.parametrize("n_iter", ["auto", 0, 2])
def test_randomized_svd_is_as_accurate_as_scikit_learn(name, view, n_iter):
    sigma = spectrum(name, 80)
    A = matrix_with_spectrum(120, 80, sigma, rng=0)

    def errors(function):
        found = (function(view(A), 7, n_iter=n_iter, random_state=seed) for seed in range(20))
        return np.mean([np.linalg.norm(A - (U * S) @ Vh, 2) for U, S, Vh in found])

    # The same algorithm with other random numbers: the means over 20 draws differ by their standard errors.
    assert errors(rnla.randomized_svd) <= 1.1 * errors(sklearn_svd) + rounding(A, 1.0)


@pytest.mark.parametrize(("k", "q"), [(1, 7), (7, 7), (8, 4), (40, 4)])
def test_automatic_power_iterations_are_those_of_scikit_learn(k, q):
    A = CountingOperator(matrix_with_spectrum(100, 80, spectrum("slow", 80), rng=0))
    assert rnla.randomized_svd(A, k, random_state=0).info.passes == 2 * q + 2


def test_signs_are_those_of_scikit_learn():
    A = matrix_with_spectrum(120, 80, spectrum("exp", 80), rng=0)
    ours, theirs = rnla.randomized_svd(A, 5, random_state=0), sklearn_svd(A, 5, random_state=0)
    assert np.abs(ours.U - theirs[0]).max() <= 1e-6
    assert np.abs(ours.Vh - theirs[2]).max() <= 1e-6


def test_names_of_arguments():
    theirs = inspect.signature(sklearn_svd).parameters
    ours = inspect.signature(rnla.randomized_svd).parameters
    assert {"M", "n_components", "n_oversamples", "n_iter", "flip_sign", "random_state"} <= set(ours)
    assert all(ours[name].default == theirs[name].default for name in ours if name != "random_state" and name in theirs)
    scipys = inspect.signature(scipy_svds).parameters
    ours = inspect.signature(rnla.svds).parameters
    shared = {"k", "tol", "maxiter", "return_singular_vectors", "rng"}
    assert shared <= set(ours) & set(scipys)
    assert all(ours[name].default == scipys[name].default for name in shared)


@pytest.mark.parametrize(("function", "arguments", "options", "error", "message"), [
    ("svds", (0,), {}, ValueError, "k must be in 1..20 for A of shape (30, 20); got 0."),
    ("svds", (2.0,), {}, TypeError, "k must be an integer; got float 2.0."),
    ("svds", (2,), {"tol": -1}, ValueError, "tol must be finite and not negative; got -1."),
    ("svds", (2,), {"tol": "x"}, TypeError, "tol must be a real number; got str 'x'."),
    ("svds", (2,), {"maxiter": 0}, ValueError, "maxiter must be at least 1; got 0."),
    ("svds", (2,), {"rng": "x"}, TypeError, "rng must be None"),
    ("randomized_svd", (0,), {}, ValueError, "n_components must be in 1..20"),
    ("randomized_svd", (21,), {}, ValueError, "n_components must be in 1..20"),
    ("randomized_svd", ("3",), {}, TypeError, "n_components must be an integer; got str '3'."),
    ("randomized_svd", (None,), {}, TypeError, "n_components must be an integer; got NoneType"),
    ("randomized_svd", (3,), {"n_iter": -1}, ValueError, "n_iter must be at least 0; got -1."),
    ("randomized_svd", (3,), {"n_iter": "many"}, TypeError, "n_iter must be"),
    ("randomized_svd", (3,), {"random_state": "x"}, TypeError, "random_state must be None"),
])  # fmt: skip
def test_errors_name_the_alias_and_its_argument(function, arguments, options, error, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(error) as caught:
        getattr(rnla, function)(A, *arguments, **options)
    assert str(caught.value).startswith(f"rnla.{function}: {message}")
    assert A.passes == 0
