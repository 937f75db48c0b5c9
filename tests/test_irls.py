"""The iteration behind completion: against explicit weights, its rate, its condition, and what never increases."""

import numpy as np
import pytest
from completions import problem_of, relative_error, solved, space_of, structure, weighted_least_squares
from hypothesis import given, settings
from hypothesis import strategies as st

import rnla
from rnla import _entry_space
from rnla._entry_space import EntrySpace
from rnla._hankel_space import HankelSpace
from rnla._irls import Run, Settings, solve
from rnla._tangent_solve import Tangent, Weights, preconditioner
from rnla.kernels import _csr

EPS = np.finfo(float).eps
TIGHT = Settings(cg_tol=1e-14, cg_max_iter=2000, continuation=False)


def hankel_problem(n, k, n_steps, count, seed=0, window=None):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, k)))[0]
    A = (Q * rng.uniform(0.5, 1.0, k)) @ rng.standard_normal((k, n)) / n**0.5
    rows, cols, times, values = rnla.datasets.space_time_samples(A, n_steps, count, rng=seed)
    window = window or (n_steps + 2) // 2
    space = HankelSpace(*(x.astype(np.int32) for x in (rows, cols, times)), n, n_steps, window if n_steps > 1 else 1)
    values = values / abs(values).max()
    return space, values * np.broadcast_to(space.multiplicity, values.shape) ** 0.5, A


@pytest.mark.parametrize("lam", [0.0, 1e-2])
@pytest.mark.parametrize(("n_steps", "p"), [(1, 0.0), (1, 0.5), (4, 0.0)])
def test_iterates_are_those_of_explicit_weights(n_steps, p, lam):
    n, k = 7, 2
    if n_steps == 1:
        problem, _ = problem_of((n, n + 1), k, 1.6, seed=3)
        space, samples = space_of(problem), problem.values / abs(problem.values).max()
    else:
        space, samples, _ = hankel_problem(n, k, n_steps, 60)
    run = Run(space, samples, k, TIGHT._replace(lam=lam, p=p), 0, "test")
    point = run.start(None)
    U, s, V = run._all_triplets(point)
    eps = run._smoothing(np.inf, s, 1.0, 0)
    for step in range(4):
        active = int(np.sum(s > eps * (1 + 1e-10)))
        parts = U[:, :active], s[:active], V[:, :active]
        point, _ = run._least_squares(point, *parts, eps, 1.0)
        expected = weighted_least_squares(space, samples, *parts, eps, lam, p)
        U, s, V = run._all_triplets(point)
        found = (U * s) @ V.T
        # The explicit weights, whose condition is that of (sigma_1 / eps)^2, err by that much themselves.
        rounding = 1e3 * EPS * (s[0] / eps) ** 2
        assert np.linalg.norm(found - expected) <= max(1e-12, rounding) * np.linalg.norm(expected), step
        eps = run._smoothing(eps, s, 1.0, 1)


@given(st.integers(2, 5), st.integers(1, 6), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=12)
def test_operators_are_adjoint_and_the_structure_is_an_isometry(n, n_steps, complex_, seed):
    rng = np.random.default_rng(seed)
    window = int(rng.integers(1, n_steps + 1))
    count = int(rng.integers(1, n * n * n_steps + 1))
    rows, cols, times, _ = rnla.datasets.space_time_samples(np.eye(n), n_steps, count, rng=seed)
    space = HankelSpace(*(x.astype(np.int32) for x in (rows, cols, times)), n, n_steps, window)
    assert space.mult.sum() == space.blocks[0] * space.blocks[1]

    def normal(*shape):
        X = rng.standard_normal(shape)
        return X + 1j * rng.standard_normal(shape) if complex_ else X

    (m1, m2), w = space.shape, 3
    L, R, v, W, U = normal(m1, w), normal(m2, w), normal(count), normal(m2, 2), normal(m1, 2)
    tol = 50 * EPS * m1 * m2 * w
    inner = np.vdot(v, space.sampled(L, R.conj()))
    assert abs(inner - np.vdot(space.left(v, L), R).conj()) <= tol * np.linalg.norm(v) * 10
    assert abs(np.vdot(U, space.right(v, W)) - np.vdot(space.left(v, U), W)) <= tol * 10
    if space.structured:
        G = structure(space)
        np.testing.assert_allclose(G.T @ G, np.eye(G.shape[1]), atol=1e-14)
        M = (G @ (G.T @ (L @ R.conj().T).ravel())).reshape(m1, m2)
        np.testing.assert_allclose(space.smooth_right(L, R, W), M @ W, atol=tol * 10)
        np.testing.assert_allclose(space.smooth_left(L, R, U), M.conj().T @ U, atol=tol * 10)
        K = space.smoothing_matrix(R, 0)
        X = normal(m1, w)
        expected = space.smooth_right(X, R, R)
        found = (X.reshape(n, -1) @ K).reshape(m1, w)
        np.testing.assert_allclose(found, expected, atol=tol * 10)


def errors_of(problem, exact, k, **changed):
    """Return the relative errors of the iterates."""
    scale = abs(problem.values).max()
    errors, s = [], Settings(**{"cg_tol": 1e-8, "continuation": False, **changed})
    for count in range(4, 40):
        found = solve(space_of(problem), problem.values / scale, k, s._replace(max_iter=count), 0, "test")
        X = (found.U[:, :k] * found.s[:k] * scale) @ found.V[:, :k].T
        errors.append(np.linalg.norm(X - exact) / np.linalg.norm(exact))
        if errors[-1] < 1e-13 or found.status == "converged":
            break
    return np.array(errors)


def test_convergence_is_quadratic():
    problem, exact = problem_of((60, 50), 2, 3.0, condition=10.0)
    e = errors_of(problem, exact, 2)
    fast = [i for i in range(1, len(e) - 1) if e[i] < 1e-3 and e[i + 1] > 1e-13]
    last = fast[-1]
    assert np.log(e[last + 1] / e[last]) / np.log(e[last] / e[last - 1]) >= 1.7


def test_the_condition_does_not_depend_on_the_singular_values():
    problem, _ = problem_of((30, 30), 2, 3.0)
    space, V = space_of(problem), problem.Vh.T.copy()

    def extremes(condition):
        s = np.array([condition, 1.0])
        q = (1e-9) ** 2
        weights = Weights(q / (np.outer(s, s) - q), q / (s * 1e-9 - q))
        tangent = Tangent(space, problem.U, V, weights, 1.0)
        size = tangent.weights.shape[0]
        dense = np.array([tangent @ tangent.projected(x) for x in np.eye(size)])
        lam = np.linalg.eigvalsh((dense + dense.T) / 2)
        return lam[lam > 1e-6 * lam[-1]][[0, -1]]

    np.testing.assert_allclose(extremes(10.0), extremes(1e6), rtol=0.02)


def objective(s, eps):
    return np.sum(np.where(s >= eps, np.log(np.maximum(s, eps)), np.log(eps) + ((s / eps) ** 2 - 1) / 2))


def test_the_objective_never_increases_and_entries_are_interpolated():
    problem, _ = problem_of((25, 20), 2, 2.0, condition=10.0)
    space, samples = space_of(problem), problem.values / abs(problem.values).max()
    run = Run(space, samples, 2, TIGHT, 0, "test")
    point = run.start(None)
    U, s, V = run._all_triplets(point)
    eps = run._smoothing(np.inf, s, 1.0, 0)
    for _ in range(8):
        active = int(np.sum(s > eps * (1 + 1e-10)))
        before = objective(s, eps)
        point, _ = run._least_squares(point, U[:, :active], s[:active], V[:, :active], eps, 1.0)
        U, s, V = run._all_triplets(point)
        assert objective(s, eps) <= before + 1e-8 * abs(before)
        held = np.einsum("ij,ij->i", (U * s)[problem.rows], V[problem.cols])
        assert np.linalg.norm(held - samples) <= 1e-13 * np.linalg.norm(samples)
        smaller = run._smoothing(eps, s, 1.0, 1)
        assert smaller <= eps
        eps = smaller


@pytest.mark.parametrize("kind", ["none", "published", "scalar", "block"])
def test_preconditioners_change_the_way_and_not_the_result(kind):
    problem, exact = problem_of((40, 30), 2, 3.0, condition=100.0)
    found = solve(space_of(problem), problem.values, 2, Settings(preconditioner=kind, continuation=False), 0, "test")
    X = (found.U[:, :2] * found.s[:2]) @ found.V[:, :2].T
    assert found.status == "converged"
    assert np.linalg.norm(X - exact) <= 1e-11 * np.linalg.norm(exact)


def test_a_block_of_the_preconditioner_is_that_of_the_form():
    problem, _ = problem_of((12, 10), 2, 2.5)
    space, V = space_of(problem), problem.Vh.T.copy()
    weights = Weights(np.full((2, 2), 0.3), np.array([0.2, 0.4]))
    tangent = Tangent(space, problem.U, V, weights, 1.0)
    row = 5
    some = problem.cols[problem.rows == row]
    block = V[some].T @ V[some] + np.diag(weights.outer) + 1e-3 * space.density * np.eye(2)
    G2 = np.zeros((12, 2))
    G2[row] = [1.0, -2.0]
    G2 -= problem.U @ (problem.U.T @ G2)
    out = preconditioner("block", tangent)(tangent.joined(np.zeros((2, 2)), G2, np.zeros((10, 2))))
    expected = np.zeros_like(G2)
    for i in range(12):
        some = problem.cols[problem.rows == i]
        block = V[some].T @ V[some] + np.diag(weights.outer) + 1e-3 * space.density * np.eye(2)
        expected[i] = np.linalg.solve(block, G2[i])
    expected -= problem.U @ (problem.U.T @ expected)
    np.testing.assert_allclose(tangent.parts(out)[1], expected, atol=1e-12)


def test_the_nuclear_norm_is_that_of_soft_thresholding():
    problem, _ = problem_of((25, 20), 2, 4.0, noise=0.02)
    reg = 0.3
    by_weights = Settings(p=1.0, lam=reg, tol=1e-7, max_iter=60)
    found = solve(space_of(problem), problem.values, 12, by_weights, 0, "test")
    X, known = np.zeros(problem.shape), np.zeros(problem.shape, bool)
    known[problem.rows, problem.cols] = True
    data = np.zeros(problem.shape)
    data[problem.rows, problem.cols] = problem.values
    for _ in range(3000):
        U, s, Vh = np.linalg.svd(np.where(known, data, X), full_matrices=False)
        X = (U * np.maximum(s - reg, 0)) @ Vh
    assert np.linalg.norm((found.U * found.s) @ found.V.T - X) <= 2e-3 * np.linalg.norm(X)
    assert relative_error(solved(problem, 12, p=1.0, reg=reg, tol=1e-9, max_iter=1000), X) <= 1e-6


@pytest.mark.parametrize("dtype", ["float64", "float32", "complex128"])
def test_products_out_of_the_cache_are_those_within(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    m, n, w = 70, 50, 3
    rows, cols = (i.astype(np.int32) for i in np.nonzero(rng.random((m, n)) < 0.3))
    X, Y, values = (rng.standard_normal(shape).astype(dtype) for shape in ((n, w), (m, w), len(rows)))
    if dtype == "complex128":
        X, Y, values = X * (1 + 2j), Y * (2 - 1j), values * 1j ** np.arange(len(values))
    S = np.zeros((m, n), dtype)
    S[rows, cols] = values
    monkeypatch.setattr(_csr, "PANEL_ROWS", 16)
    for limit in (1 << 60, 0):
        for module, name in (
            (_entry_space, "_SMALL"),
            (_entry_space, "_NEAR"),
            (_entry_space, "_CACHED"),
            (_csr, "SMALL"),
        ):
            monkeypatch.setattr(module, name, limit)
        space = EntrySpace(rows, cols, (m, n))
        bound = 50 * np.finfo(dtype).eps * abs(S).max() * n
        assert abs(space.right(values, X) - S @ X).max() <= bound
        assert abs(space.left(values, Y) - S.conj().T @ Y).max() <= bound
        assert abs(space.sampled(Y, X) - (Y @ X.T)[rows, cols]).max() <= bound


def test_space_of_entries_on_torch_is_that_of_numpy():
    import torch

    problem, _ = problem_of((9, 8), 2, 1.5)
    space = space_of(problem)
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((8, 3)), rng.standard_normal((9, 3))
    there = EntrySpace(*(torch.from_numpy(x.astype(np.int64)) for x in (problem.rows, problem.cols)), problem.shape)
    values = torch.from_numpy(problem.values)
    for found, expected in (
        (there.right(values, torch.from_numpy(X)), space.right(problem.values, X)),
        (there.left(values, torch.from_numpy(Y)), space.left(problem.values, Y)),
        (there.sampled(torch.from_numpy(Y), torch.from_numpy(X)), space.sampled(Y, X)),
    ):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)
