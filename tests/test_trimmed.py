"""Kernels of robust PCA: the compiled loops are the references, for every dtype, mask and order in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES

from rnla import kernels
from rnla._submatrix import taken
from rnla.kernels import _trimmed, _trimmed_cpu

ORDERS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "reversed": lambda X: np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1],
    "strided": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
}


def draw(shape, dtype, rng):
    X = rng.standard_normal(shape)
    return (X + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else X).astype(dtype)


def problem(dtype, order, masked, m=150, n=60, c=33, k=4, seed=0):
    rng = np.random.default_rng(seed)
    X = ORDERS[order](draw((m, n), dtype, rng))
    index = np.sort(rng.choice(n, c, replace=False))
    observed = None
    if masked:
        observed = rng.random((m, n)) < 0.6
        observed[3], observed[4, index] = False, False
        observed[4, index[:k]] = True
        observed = ORDERS[order](observed)
        X[~observed] = np.nan
    return X, index, observed, draw((m, k), dtype, rng), draw((c, k), dtype, rng)


def dense_residuals(X, index, observed, L, R, share):
    """Compute residuals and order statistics as their definitions say."""
    E = X[:, index] - L @ R.conj().T
    q = np.empty(len(E))
    for i, row in enumerate(np.abs(E)):
        there = np.sort(row if observed is None else row[observed[i, index]])
        k = L.shape[1]
        q[i] = there[k + int(share * (len(there) - k - 1))] if len(there) > k else -1
    return E, q


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_three_steps(dtype, order, masked, compiled, monkeypatch):
    monkeypatch.setattr(_trimmed, "_COMPILE_FROM", 0 if compiled else 1 << 60)
    X, index, observed, L, R = problem(dtype, order, masked)
    before = X.copy()
    tol = 200 * float(np.finfo(dtype).eps)
    E, q = kernels.sampled_residuals(X, index, observed, L, R, 0.1)
    exact_E, exact_q = dense_residuals(X, index, observed, L, R, 0.1)
    assert E.dtype == dtype
    assert q.dtype == E.real.dtype
    assert np.array_equal(np.isnan(E), np.isnan(exact_E))
    assert np.nanmax(np.abs(E - exact_E)) <= tol
    assert np.abs(q - exact_q).max() <= tol
    assert np.array_equal(X, before, equal_nan=True)

    bound = np.abs(np.random.default_rng(1).standard_normal(len(E))).astype(q.dtype) * 3
    bound[5] = 0
    keep = np.abs(E) <= bound[:, None]  # False for NaN
    model = L @ R.conj().T
    kept_E, K, sums = kernels.keep_within(E.copy(), bound, L, R)
    assert np.array_equal(K, keep.astype(dtype))
    assert np.array_equal(kept_E, np.where(keep, E, 0))
    data = np.where(keep, np.nan_to_num(E) + model, 0)
    assert sums == pytest.approx(
        np.stack([(np.abs(kept_E) ** 2).sum(1), (np.abs(data) ** 2).sum(1), keep.sum(1)], axis=1), rel=tol, abs=tol
    )

    ridge = 1e-3
    C = kernels.trimmed_fit(kept_E, K, R, ridge)
    assert C.dtype == dtype
    for i in range(len(E)):
        G = R.T.astype(complex) @ (keep[i][:, None] * R.conj()) + ridge * np.eye(4)
        exact = np.linalg.solve(G, R.T @ kept_E[i])
        # C[i] G_i = E[i] R with G_i = R^H diag(K) R, so G_i^T C[i]^T = R^T E[i]^T.
        assert np.abs(C[i] - exact).max() <= tol * np.linalg.cond(G) * max(np.abs(exact).max(), 1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_marked(value, compiled, monkeypatch):
    monkeypatch.setattr(_trimmed, "_COMPILE_FROM", 0 if compiled else 1 << 60)
    X, index, observed, L, R = problem("float64", "C", True)
    X[10, index[observed[10, index]][0]] = value
    _, q = kernels.sampled_residuals(X, index, observed, L, R, 0.1)
    assert np.flatnonzero(np.isnan(q)).tolist() == [10]
    assert q[3] == q[4] == -1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(0, 39), st.booleans())
def test_select_is_the_order_statistic(values, place, ties):
    x = np.round(np.array(values), 1) if ties else np.array(values)
    place %= len(x)
    assert _trimmed_cpu.select(x.copy(), len(x), place) == np.sort(x)[place]
    x = np.append(x, np.inf)
    assert _trimmed_cpu.select(x.copy(), len(x), place) == np.sort(x)[place]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("axis", [0, 1])
def test_taken_copies_no_more_than_it_returns(order, axis):
    import tracemalloc

    X = ORDERS[order](np.random.default_rng(0).standard_normal((400, 300)))
    index = np.array([3, 5, 7])
    tracemalloc.start()
    part = taken(X, index, axis)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(part, np.take(X, index, axis=axis))
    assert peak < X.nbytes / 4
