"""A result unpacks like NumPy's, acts as the matrix it stands for, and survives copying."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems

import rnla
from rnla._lowrank import Factors
from rnla.testing import CountingOperator, matrix_with_spectrum, spectrum


def wide(X):
    return X.astype(np.promote_types(X.dtype, np.float64))


@given(problem=problems(sides=(2, 30)), width=st.integers(1, 4))
def test_svd_result_is_the_product_of_its_factors(problem, width):
    A, _, k, seed = problem
    U, S, Vh = result = rnla.svd(A, k, rng=seed)
    dense = (wide(U) * S) @ wide(Vh)
    allowed = problem.rounding
    assert isinstance(result, tuple)
    assert len(result) == 3
    assert result.U is U
    assert result.S is S
    assert result.Vh is Vh
    assert result.shape == A.shape
    assert result.dtype == A.dtype
    assert result.rank == k
    assert np.abs(result.to_dense() - dense).max() <= allowed
    X = np.random.default_rng(seed).standard_normal((A.shape[1], width)).astype(A.dtype)
    assert np.abs(result @ X - dense @ X).max() <= allowed * np.linalg.norm(X)
    assert (result @ X).shape == (A.shape[0], width)
    assert (result @ X[:, 0]).shape == (A.shape[0],)
    assert np.abs(result.H.to_dense() - dense.conj().T).max() <= allowed
    assert result.H.shape == A.shape[::-1]
    assert result.H.info is result.info
    assert np.array_equal(result.H.H.to_dense(), result.to_dense())
    # <y, A x> = <A^H y, x>
    Y = np.random.default_rng(seed + 1).standard_normal((A.shape[0], width)).astype(A.dtype)
    left, right = wide(Y).conj().T @ wide(result @ X), wide(result.H @ Y).conj().T @ wide(X)
    assert np.abs(left - right).max() <= allowed * np.linalg.norm(X) * np.linalg.norm(Y)


@given(problem=problems(sides=(2, 30)), data=st.data())
def test_truncation_keeps_the_leading_triplets(problem, data):
    A, sigma, k, _ = problem
    result = rnla.svd(A, k, method="dense")
    r = data.draw(st.integers(0, k))
    less = result.truncate(r)
    assert isinstance(less, rnla.SVDResult)
    assert less.rank == r
    assert less.shape == A.shape
    assert np.array_equal(less.S, result.S[:r])
    following = sigma[r] if r < len(sigma) else 0.0
    assert abs(np.linalg.norm(A - wide(less.to_dense()), 2) - following) <= problem.rounding
    assert np.all(less @ np.ones(A.shape[1], A.dtype) == 0) or r > 0


@pytest.mark.parametrize("r", [-1, 4, 100])
def test_truncation_out_of_range_is_refused(r):
    with pytest.raises(ValueError, match=rf"^SVDResult\.truncate: r must be in 0\.\.3; got {r}\.$"):
        rnla.svd(np.eye(9), 3).truncate(r)
    with pytest.raises(ValueError, match=rf"^QBResult\.truncate: r must be in 0\.\.3; got {r}\.$"):
        rnla.qb(np.eye(9), 3).truncate(r)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_every_decomposition_is_truncated_to_the_best_of_a_rank(dtype, scale):
    A = matrix_with_spectrum(30, 20, spectrum("poly1", 20), rng=0, dtype=dtype) * scale
    H = A @ A.conj().T / scale
    results = [
        rnla.qr(A), rnla.qr(A, 8, pivoting=True, rng=0), rnla.qb(A, 8, rng=0), rnla.qb(A, 8, rng=0).H,
        rnla.interp_decomp(A, 8, rng=0), rnla.interp_decomp(sp.csr_array(A), 8, axis=0, rng=0), rnla.cur(A, 8, rng=0),
        rnla.cur(A, 8, core="cross", rng=0), rnla.rpcholesky(H, 8, rng=0), rnla.nystrom(H, 8, rng=0),
    ]  # fmt: skip
    for result in results:
        dense = result.to_dense() / scale
        sigma = np.linalg.svd(dense, compute_uv=False)
        for r in (0, 3, result.rank):
            less = result.truncate(r)
            assert less.rank == r
            assert less.shape == result.shape
            assert less.dtype == dtype
            # The best of a rank: Eckart and Young.
            assert abs(np.linalg.norm(dense - less.to_dense() / scale, 2) - sigma[r:].max(initial=0.0)) <= 1e-13


@given(problem=problems(sides=(2, 30)), data=st.data())
def test_truncation_knows_its_error(problem, data):
    A, _, k, _ = problem
    r = data.draw(st.integers(0, k))
    for B in (A, A @ A.conj().T):
        result = rnla.svd(B, k, method="dense") if B is A else rnla.eigh(B, k, method="dense", check=False)
        less = result.truncate(r)
        norm = np.linalg.norm(wide(B)) or 1.0
        error = np.linalg.norm(wide(B) / norm - wide(less.to_dense()) / norm)
        # An error below the root of rounding is not resolved by a difference of squares.
        assert abs(less.info.error_estimate - error) <= (100 * problem.eps * max(A.shape)) ** 0.5
        assert less.info.rank == r
        assert less.info.residuals is None or less.info.residuals.shape == (r,)


@given(problem=problems(sides=(2, 30)))
def test_qb_result_is_the_product_of_its_factors(problem):
    A, _, k, seed = problem
    Q, B = result = rnla.qb(A, k, rng=seed)
    dense = wide(Q) @ wide(B)
    assert result.Q is Q
    assert result.B is B
    assert (result.shape, result.dtype, result.rank) == (A.shape, A.dtype, k)
    assert np.abs(result.to_dense() - dense).max() <= problem.rounding
    assert np.abs(result.H.to_dense() - dense.conj().T).max() <= problem.rounding
    assert isinstance(result.H, Factors)
    assert np.array_equal(result.H.H.to_dense(), result.to_dense())
    x = np.ones(A.shape[1], A.dtype)
    assert np.abs(result @ x - dense @ x).max() <= problem.rounding * len(x) ** 0.5


def results():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    svd, qb = rnla.svd(A, 3, rng=0), rnla.qb(A, rtol=0.3, rng=0)
    return [svd, svd.H, svd.truncate(2), qb, qb.H, rnla.SVDResult(*svd)]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("index", range(6))
def test_copies_and_pickles_are_equal(duplicate, index):
    original = results()[index]
    other = duplicate(original)
    assert type(other) is type(original)
    assert all(np.array_equal(x, y) for x, y in zip(original, other, strict=True))
    assert repr(other) == repr(original)
    if hasattr(original, "info") and original.info is not None:
        assert str(other.info) == str(original.info)
        for name in ("method", "passes", "seed", "dtype", "message", "history", "error_estimate"):
            assert getattr(other.info, name) == getattr(original.info, name)
    assert np.array_equal(other.to_dense(), original.to_dense())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(protocol):
    original = results()[0]
    other = pickle.loads(pickle.dumps(original, protocol))
    assert np.array_equal(other.to_dense(), original.to_dense())
    assert other.info.seed == original.info.seed


def test_results_of_torch_are_pickled():
    result = rnla.svd(torch.eye(90, dtype=torch.float64), 3, rng=0)
    other = pickle.loads(pickle.dumps(result))
    assert torch.equal(other.U, result.U)
    assert other.info.dtype == torch.float64


def test_repr_says_shapes_method_and_state():
    A = matrix_with_spectrum(90, 70, spectrum("flat", 70), rng=0)
    good = rnla.svd(A, 3, method="krylov", rng=0)
    assert repr(good).startswith("SVDResult(U(90, 3), S(3,), Vh(3, 70), float64)\n  krylov: converged, rank 3, ")
    assert f"{good.info.passes} passes" in repr(good)
    assert f"relative error {good.info.error_estimate:.2e}" in repr(good)
    with pytest.warns(rnla.ConvergenceWarning):
        bad = rnla.svd(A, 3, method="krylov", max_passes=4, tol=1e-9, rng=0)
    assert "krylov: NOT converged" in repr(bad)
    assert repr(rnla.SVDResult(*good)) == "SVDResult(U(90, 3), S(3,), Vh(3, 70), float64)"
    assert repr(rnla.qb(A, 3, rng=0)).startswith("QBResult(Q(90, 3), B(3, 70), float64)\n  qb: converged, rank 3")


def test_info_is_frozen_and_complete():
    A = matrix_with_spectrum(150, 120, spectrum("poly1", 120), rng=0, dtype="float32")
    info = rnla.svd(A, 5, rng=7).info
    with pytest.raises(AttributeError):
        info.passes = 0
    assert info.method == "gram"
    assert info.dtype == np.float32
    assert info.rank == 5
    assert info.block_size == 15
    assert info.restarts == 0
    assert info.converged is True
    assert info.message == "converged"
    assert info.residuals.shape == (5,)
    assert 0 < info.elapsed < 600
    assert 0 <= info.seed < 2**64
    again = rnla.svd(A, 5, rng=7).info
    assert again.seed == info.seed


@pytest.mark.parametrize("method", ["dense", "qr", "rsi", "krylov", "gram", "rowstream"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("name", ["slow", "poly2", "exp", "low"])
def test_error_estimate_is_the_error(method, dtype, name):
    sigma = np.ones(3) if name == "low" else spectrum(name, 70)
    A = matrix_with_spectrum(90, 70, sigma, rng=0, dtype=dtype)
    result = rnla.svd(A, 10, method=method, rng=0)
    error = np.linalg.norm(A - wide(result.to_dense())) / np.linalg.norm(sigma)
    # A difference of squares knows the square of the error to some rounding of its terms, and says no less than that.
    eps = np.finfo(dtype).eps
    assert abs(result.info.error_estimate**2 - error**2) <= 200 * (eps**0.5 * 0.1 if method == "rowstream" else eps)
    assert result.info.error_estimate >= 0


def test_error_estimate_is_left_out_where_it_would_cost_a_pass():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    operator = CountingOperator(A)
    assert rnla.svd(operator, 5, rng=0).info.error_estimate is None
    assert rnla.svd(A, 5, rng=0).info.error_estimate is not None
