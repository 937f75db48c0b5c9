"""Products with a CSR matrix and its adjoint: the compiled kernels against dense products."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from strategies import DTYPES

from rnla import kernels
from rnla.kernels import _csr, _threads


def problem(m, n, width, density, dtype, seed, indices=np.int32):
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        X = rng.standard_normal((*shape, 2))
        return (X @ [1, 1j]).astype(dtype) if np.dtype(dtype).kind == "c" else X[..., 0].astype(dtype)

    dense = numbers(m, n) * (rng.random((m, n)) < density)
    csr = sparse.csr_array(dense)
    parts = csr.data, csr.indices.astype(indices), csr.indptr.astype(indices), csr.shape
    return dense, parts, numbers(n, width), numbers(m, width)


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setattr(_csr, "SMALL", -1)  # SciPy does nothing here
    monkeypatch.setattr(_csr, "PANEL_ROWS", 16)


def close(result, exact, size):
    eps = np.finfo(exact.dtype).eps
    assert result.dtype == exact.dtype
    assert result.flags.c_contiguous
    return np.abs(result - exact).max(initial=0.0) <= 8 * eps * max(size, 1) * max(np.abs(exact).max(initial=0.0), 1)


@given(
    m=st.integers(1, 70),
    n=st.integers(1, 40),
    width=st.integers(0, 131),  # every size of register, alone and together
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    dtype=st.sampled_from(DTYPES),
    indices=st.sampled_from([np.int32, np.int64]),
    order=st.sampled_from("CF"),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_the_dense_matrix(m, n, width, density, dtype, indices, order, seed):
    A, parts, X, Y = problem(m, n, width, density, dtype, seed, indices)
    X, Y = np.asarray(X, order=order), np.asarray(Y, order=order)
    assert close(kernels.csr_matmat(*parts, X), A @ X, n)
    assert close(kernels.csr_rmatmat(*parts, Y), A.conj().T @ Y, m)


@pytest.mark.parametrize("dtype", DTYPES)
def test_panels_are_the_adjoint_in_pieces(dtype):
    A, parts, _, Y = problem(50, 30, 7, 0.2, dtype, 0)
    panels = kernels.adjoint_panels(*parts)
    assert [first for first, *_ in panels] == [0, 16, 32, 48]
    pieces = [
        sparse.csr_array((data, indices, indptr), shape=(30, min(16, 50 - first))).toarray()
        for first, data, indices, indptr in panels
    ]
    assert np.array_equal(np.concatenate(pieces, axis=1), A.conj().T)
    assert np.array_equal(kernels.csr_rmatmat(*parts, Y, lambda: panels), kernels.csr_rmatmat(*parts, Y))


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_for_the_product_is_used_again(dtype):
    A, parts, X, _ = problem(40, 30, 5, 0.2, dtype, 1)
    out = np.full((40, 5), np.nan, dtype)
    assert kernels.csr_matmat(*parts, X, out) is out
    assert close(out, A @ X, 30)
    by_columns = np.empty((40, 5), dtype, order="F")
    assert close(kernels.csr_matmat(*parts, X, by_columns), A @ X, 30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(monkeypatch, dtype):
    _, parts, X, Y = problem(300, 200, 21, 0.1, dtype, 2)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(_threads, "num_threads", lambda threads=threads: threads)
        results.append((kernels.csr_matmat(*parts, X), kernels.csr_rmatmat(*parts, Y)))
    for product, adjoint in results[1:]:
        assert np.array_equal(product, results[0][0])
        assert np.array_equal(adjoint, results[0][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_products_are_left_to_scipy(monkeypatch, dtype):
    monkeypatch.setattr(_csr, "SMALL", 10**9)
    monkeypatch.setattr(_csr, "_compiled", None)
    A, parts, X, Y = problem(40, 30, 5, 0.2, dtype, 3)
    assert close(kernels.csr_matmat(*parts, X), A @ X, 30)
    assert np.abs(kernels.csr_rmatmat(*parts, Y) - A.conj().T @ Y).max() <= 1e3 * np.finfo(dtype).eps
