"""Dask arrays of any chunking are decomposed block by block: long factors stay dask arrays, A is read as promised."""

import warnings

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, problems, rounding

import rnla
from rnla import _dask_graph, _matrix_dask, _tall
from rnla._matrix import as_matrix
from rnla._orth import orth
from rnla.testing import assert_orthonormal, matrix_with_spectrum, spectrum

METHODS = ("auto", "gram", "krylov", "rsi", "rowstream", "gnystrom", "qr", "dense")
SPARSE = (sp.csr_array, sp.csr_matrix, sp.coo_array, sp.csc_array)


@st.composite
def cuts(draw, length):
    """Draw the lengths of chunks that make up a side: one, equal ones, or ragged ones."""
    inner = draw(st.lists(st.integers(1, max(1, length - 1)), max_size=3, unique=True)) if length > 1 else []
    return tuple(np.diff([0, *sorted(inner), length]).tolist())


@st.composite
def chunked(draw, **options):
    """Draw a problem and its matrix as a dask array with chunks of any shape, dense or sparse."""
    problem = draw(problems(**options))
    chunks = tuple(draw(cuts(side)) for side in problem.A.shape)
    lazy = da.from_array(problem.A, chunks=chunks)
    kind = draw(st.sampled_from((None, *SPARSE)))
    return problem, lazy if kind is None else lazy.map_blocks(
        kind, dtype=lazy.dtype, meta=kind((0, 0), dtype=lazy.dtype)
    )


def counted(A, chunks):
    """Return A as a dask array, and a list that grows by the entries of each block that is loaded."""
    loads = []

    def load(B):
        loads.append(B.size)
        return B

    return da.from_array(A, chunks=chunks).map_blocks(load, dtype=A.dtype, meta=np.empty((0, 0), A.dtype)), loads


def host(X):
    return np.asarray(X)


# The products.


@pytest.mark.parametrize("view", ["plain", "centered", "scaled", "weighted", "adjoint"])
@settings(max_examples=10)
@given(chunked(sides=(1, 12)), st.booleans())
def test_products_are_those_of_the_dense_matrix(view, drawn, spread):
    problem, lazy = drawn
    A, M = problem.A, as_matrix(lazy, "test")
    if view == "centered":
        mean = M.col_mean()
        assert np.abs(mean - A.mean(axis=0)).max() <= rounding(A, np.abs(A).max())
        M, A = M.centered(mean), A - mean
    elif view == "scaled":
        M, A = M.scaled(0.5), 0.5 * A
    elif view == "weighted":
        weights = np.arange(1, A.shape[1] + 1).astype(A.real.dtype)
        M, A = M.column_scaled(weights), A * weights
    elif view == "adjoint":
        M, A = M.H, A.conj().T
    M = M.spread() if spread else M
    (m, n), rng = A.shape, np.random.default_rng(0)
    X, Y = (rng.standard_normal((side, 3)).astype(A.dtype) for side in (n, m))
    error = float(rounding(A, np.linalg.norm(problem.A) * A.shape[1] * 10)) + float(np.finfo(np.float32).tiny)
    Xs, Ys = (_tall.in_chunks(B, M, axis) for axis, B in ((1, X), (0, Y)))
    for found, wanted, side in (
        (M.matmat(Xs), A @ X, 0),
        (M.rmatmat(Ys), A.conj().T @ Y, 1),
        (M.gram_matmat(Xs), A.conj().T @ (A @ X), 1),
        (M.H.gram_matmat(Ys), A @ (A.conj().T @ Y), 0),
    ):
        assert isinstance(found, da.Array) == (M.far == side)
        assert found.dtype == A.dtype
        assert np.abs(host(found) - wanted).max() <= error * max(1, np.linalg.norm(A))
    assert M.fro_norm_sq() == pytest.approx(np.linalg.norm(A) ** 2, rel=1e-4, abs=error**2)


@settings(max_examples=10)
@given(chunked(sides=(1, 12), dtypes=("float64", "complex128")))
def test_one_read_gives_an_image_the_gram_product_and_the_norm(drawn):
    problem, lazy = drawn
    A = problem.A
    for M, B in ((as_matrix(lazy, "test"), A), (as_matrix(lazy, "test").H, A.conj().T)):
        X = np.random.default_rng(0).standard_normal((B.shape[1], 2)).astype(A.dtype)
        Y, Z, total = M.image_and_gram(X)
        error = 1e-13 * max(1, np.linalg.norm(A)) ** 2 * 100
        assert np.abs(Y - B @ X).max() <= error
        assert np.abs(Z - B.conj().T @ (B @ X)).max() <= error * max(1, np.linalg.norm(A))
        assert total == pytest.approx(np.linalg.norm(A) ** 2, rel=1e-12)


# The decompositions.


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6)
@given(data=st.data())
def test_any_chunking_gives_the_values_of_the_whole(method, data):
    problem, lazy = data.draw(chunked(names=("poly1", "low rank", "zero", "ties"), sides=(2, 25)))
    with warnings.catch_warnings():
        # Both runs say so where one pass does not resolve a value, or rounding stops the residual.
        warnings.simplefilter("ignore", rnla.AccuracyWarning)
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        U, S, Vh = result = rnla.svd(lazy, problem.k, method=method, tol=1e-6, rng=problem.seed)
    far = as_matrix(lazy, "test").spread().far
    assert isinstance(U, da.Array) == (far == 0)
    assert isinstance(Vh, da.Array) == (far == 1)
    assert U.dtype == Vh.dtype == problem.A.dtype
    assert U.shape == (problem.A.shape[0], problem.k)
    assert_orthonormal(host(U))
    assert_orthonormal(host(Vh).conj().T)
    if method not in ("rsi", "rowstream", "gnystrom") and result.info.converged:
        assert np.abs(S - problem.sigma[: problem.k]).max() <= 1e-5 * problem.sigma[0] + 10 * problem.rounding


@pytest.mark.parametrize("chunks", [(50, -1), (-1, 20), (50, 20)])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((200, 60), t) for t in DTYPES] + [((60, 200), t) for t in ("float32", "complex128")]
)
def test_one_seed_gives_the_result_of_the_matrix_in_memory(dtype, shape, chunks):
    A = matrix_with_spectrum(*shape, spectrum("poly2", 60), rng=0, dtype=dtype)
    options = {"method": "gram", "tol": 1e-10 if A.real.dtype == np.float64 else 1e-4, "rng": 3}
    ours, dense = rnla.svd(da.from_array(A, chunks=chunks), 5, **options), rnla.svd(A, 5, **options)
    error = 100 * rounding(A, 1.0)
    assert np.abs(ours.S - dense.S).max() <= error
    # Signs too: they are fixed by the entries of U.
    assert np.abs(host(ours.U) - dense.U).max() <= 1e3 * error
    assert np.abs(host(ours.Vh) - dense.Vh).max() <= 1e3 * error


@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-9])
@pytest.mark.parametrize("chunks", [(30, -1), (-1, 30), (40, 25)])
def test_a_precision_is_met(chunks, rtol):
    A = matrix_with_spectrum(90, 75, spectrum("exp", 75), rng=0)
    for decompose in (rnla.svd, rnla.qb):
        result = decompose(da.from_array(A, chunks=chunks), rtol=rtol, rng=0)
        assert result.info.converged
        assert np.linalg.norm(A - host(result.to_dense())) <= rtol * np.linalg.norm(A)


@pytest.mark.filterwarnings("ignore::rnla.ConvergenceWarning")
@pytest.mark.parametrize("chunks", [(20, -1), (-1, 20)])
def test_power_steps_cost_one_read_each(chunks):
    # A Krylov space of q + 1 blocks has q power steps: q + 1 reads for the values, one more for the vectors.
    shape, blocks = ((200, 60) if chunks[1] == -1 else (60, 200)), []
    lazy, loads = counted(matrix_with_spectrum(*shape, spectrum("slow", 60), rng=0), chunks)
    options = {"method": "gram", "tol": 1e-3, "verify": False, "rng": 0, "callback": blocks.append}
    result = rnla.svd(lazy, 5, **options)
    assert sum(loads) == (len(blocks) + 1) * lazy.size == result.info.passes * lazy.size
    blocks.clear(), loads.clear()
    rnla.svdvals(lazy, 5, **options)
    assert sum(loads) == len(blocks) * lazy.size


@pytest.mark.parametrize("n_iter", [0, 1, 3])
@pytest.mark.parametrize("chunks", [(20, -1), (-1, 20)])
def test_subspace_iteration_reads_twice_more_than_it_has_steps(chunks, n_iter):
    shape = (200, 60) if chunks[1] == -1 else (60, 200)
    lazy, loads = counted(matrix_with_spectrum(*shape, spectrum("slow", 60), rng=0), chunks)
    assert rnla.svd(lazy, 5, method="rsi", n_iter=n_iter, rng=0).info.passes == n_iter + 2
    assert sum(loads) == (n_iter + 2) * lazy.size


def test_one_pass_is_one_read():
    lazy, loads = counted(matrix_with_spectrum(200, 60, spectrum("poly2", 60), rng=0), (20, -1))
    result = rnla.svd(lazy, 5, max_passes=1, rng=0)
    assert result.info.passes == 1
    assert result.info.error_estimate is not None
    assert sum(loads) == lazy.size


@pytest.mark.parametrize("method", ["gram", "krylov", "rsi", "rowstream", "qr"])
def test_nothing_as_long_as_the_long_side_comes_into_memory(method, monkeypatch):
    m, n, k = 2000, 30, 4
    A = matrix_with_spectrum(m, n, spectrum("poly2", n), rng=0)
    largest = []

    def watched(*lazy):
        found = compute(*lazy)
        largest.extend(np.size(x) for x in found)
        return found

    compute = _dask_graph.computed
    for module in (_matrix_dask, _tall, _dask_graph):
        monkeypatch.setattr(module, "computed", watched)
    U, S, _ = rnla.svd(da.from_array(A, chunks=(100, -1)), k, method=method, rng=0)
    assert np.abs(S - spectrum("poly2", n)[:k]).max() <= 1e-2
    assert max(largest) < m
    # No more than the vectors that were asked for stays with the workers.
    assert U.nbytes == m * k * 8
    assert_orthonormal(host(U))


@pytest.mark.parametrize("cond", [1, 1e6, 1e12, np.inf])
def test_tall_blocks_are_made_orthonormal_whatever_their_condition(cond):
    s = np.logspace(0, -np.log10(cond), 8) if np.isfinite(cond) else np.r_[np.ones(3), np.zeros(5)]
    A = matrix_with_spectrum(300, 8, s, rng=0)
    Q, R = orth(da.from_array(A, chunks=(7, -1)))
    assert_orthonormal(host(Q))
    assert np.abs(host(Q) @ R - A).max() <= 1e-14
    assert np.abs(np.tril(R, -1)).max() <= 1e-14


def test_empty_chunks_do_not_matter():
    sigma = np.array([3.0, 2.0, 1.0])  # of rank 3: one pass finds all of it too
    A = matrix_with_spectrum(60, 20, sigma, rng=0)
    lazy = da.concatenate([da.empty((0, 20)), da.from_array(A[:25]), da.empty((0, 20)), da.from_array(A[25:])])
    for method in ("gram", "krylov", "rowstream"):
        U, S, _ = rnla.svd(lazy, 3, method=method, tol=1e-8, rng=0)
        assert np.abs(S - sigma).max() <= 1e-10
        assert_orthonormal(host(U))


def test_estimates_of_the_error_take_dask_arrays():
    A = matrix_with_spectrum(200, 40, spectrum("slow", 40), rng=0)
    lazy = da.from_array(A, chunks=(30, -1))
    result = rnla.svd(lazy, 5, rng=0)
    true = np.linalg.norm(A - host(result.to_dense()))
    assert result.error(lazy, num_samples=40, rng=1) == pytest.approx(true, rel=0.3)
    assert 0.7 * 6**-0.5 <= result.error(lazy, ord=2, rng=1) <= 1.01 * np.linalg.norm(A - host(result.to_dense()), 2)


# The clients of the core.


@pytest.mark.parametrize("chunks", [(60, -1), (-1, 7), (60, 7)])
def test_the_other_functions_agree_with_the_matrix_in_memory(chunks):
    A = matrix_with_spectrum(400, 30, spectrum("poly1", 30), rng=0)
    lazy, b = da.from_array(A, chunks=chunks), np.random.default_rng(0).standard_normal(400)
    for method in ("auto", "covariance", "gram"):
        ours, dense = (rnla.pca(X, 3, method=method, tol=1e-6, rng=0) for X in (lazy, A))
        assert np.abs(ours.explained_variance - dense.explained_variance).max() <= 1e-10
        assert np.abs(host(ours.components) - dense.components).max() <= 1e-4
        assert np.abs(host(ours.transform(lazy)) - dense.transform(A)).max() <= 1e-4
    ours, dense = (rnla.lstsq(X, b, method="spir", rng=0) for X in (lazy, A))
    assert np.abs(ours.x - dense.x).max() <= 1e-10
    H = A.T @ A
    tiles = da.from_array(H, chunks=(7, 11))
    assert np.abs(rnla.eigh(tiles, 3, rng=0, tol=1e-8)[0] - rnla.eigh(H, 3, rng=0, tol=1e-8)[0]).max() <= 1e-10
    assert np.abs(rnla.nystrom(tiles, 5, rng=0)[0] - rnla.nystrom(H, 5, rng=0)[0]).max() <= 1e-10
    Q = rnla.range_finder(lazy, 5, rng=0)
    assert np.abs(host(Q) - rnla.range_finder(A, 5, rng=0)).max() <= 1e-8


def test_sums_over_rows_run_where_the_rows_are(monkeypatch):
    A = matrix_with_spectrum(500, 12, spectrum("poly1", 12), rng=0)
    lazy = da.from_array(A, chunks=(50, -1))

    def refused(*_):
        raise AssertionError("rows were brought into memory")

    monkeypatch.setattr(_matrix_dask.Dask, "_whole", refused)
    ours, dense = (rnla.pca(X, 3, method="covariance", rng=0) for X in (lazy, A))
    assert np.abs(ours.explained_variance - dense.explained_variance).max() <= 1e-14
    ours, dense = (rnla.lstsq(X, np.ones(500), method="spir", rng=0) for X in (lazy, A))
    assert np.abs(ours.x - dense.x).max() <= 1e-11


# What is refused.


def test_a_block_that_raises_is_named():
    def fail(B, block_id):
        if block_id == (2, 1):
            raise OSError("disk on fire")
        return B

    lazy = da.ones((40, 20), chunks=(10, 10)).map_blocks(fail, dtype=float, meta=np.empty((0, 0)))
    message = r"^rnla\.svd: A must have blocks that can be computed; block \(2, 1\), rows 20\.\.29, columns 10\.\.19 "
    with pytest.raises(RuntimeError, match=message + "raised OSError: disk on fire$"):
        rnla.svd(lazy, 2, method="gram")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("decompose", [rnla.svd, rnla.qb, rnla.pca])
def test_a_block_that_is_not_finite_is_named(decompose, bad):
    A = matrix_with_spectrum(400, 70, spectrum("poly1", 70), rng=0)
    A[205, 33] = bad
    message = (
        rf"^rnla\.{decompose.__name__}: A must be finite; it has NaN or infinity in block \(4, 0\), rows 200\.\.249"
    )
    with pytest.raises(ValueError, match=message):
        decompose(da.from_array(A, chunks=(50, -1)), 3)


def test_chunks_of_unknown_size_are_refused():
    A = da.ones((20, 5), chunks=(5, 5))
    with pytest.raises(ValueError, match=r"^rnla\.svd: A must have known chunk sizes"):
        rnla.svd(A[A[:, 0] > 0], 2)


@pytest.mark.parametrize("chunk", [np.ones((4, 4), object), np.ma.ones((4, 4))])
def test_other_chunks_are_refused(chunk):
    with pytest.raises(TypeError, match=r"^rnla\.svd: A must have"):
        rnla.svd(da.from_array(chunk, chunks=2, asarray=False), 2)
