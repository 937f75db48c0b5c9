"""Kronecker sums, the block-tridiagonal inverse, the quadratic model, and the recursions of KLD-WRM."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnla.optim as optim

EPS = np.finfo(float).eps


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def positive(seed, d):
    X = normal(seed, d, 2 * d)
    return X @ X.T / (2 * d) + 0.1 * np.eye(d)


def stacked(V):
    return V.T.ravel()


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, -1]))
def test_kronecker_sum_equals_the_dense_solve(seed, p, q, sign):
    A, B, C, D, V = (
        positive(seed, p),
        positive(seed + 1, q),
        positive(seed + 2, p),
        positive(seed + 3, q),
        normal(4, q, p),
    )
    if sign < 0:  # keep the sum positive definite
        C, D = (0.9 * X / np.max(np.linalg.eigvals(np.linalg.solve(Y, X)).real) for X, Y in ((C, A), (D, B)))
    K = np.kron(A, B) + sign * np.kron(C, D)
    exact = np.linalg.solve(K, stacked(V))
    found = optim.kron_sum_solve(A, B, C, D, V, sign=sign)
    assert np.abs(stacked(found) - exact).max() <= 1e-9 * (1 + np.abs(exact).max())


def chain(sizes, seed=0):
    """Factors of a chain of layers, with those of neighbours, of random samples."""
    A = [normal(seed, 60, sizes[0])]
    G = [normal(seed + 1, 60, sizes[-1])]
    for i, d in enumerate(sizes[1:-1]):
        A.append(np.tanh(A[-1] @ normal(seed + 2 + i, sizes[i], d)) + 0.3 * normal(seed + 20 + i, 60, d))
        G.append(
            G[-1] @ normal(seed + 40 + i, G[-1].shape[1], sizes[-2 - i])
            + 0.3 * normal(seed + 60 + i, 60, sizes[-2 - i])
        )
    G = G[::-1]
    own = [[X.T @ X / 60 for X in S] for S in (A, G)]
    off = [[X.T @ Y / 60 for X, Y in pairwise(S)] for S in (A, G)]
    return own[0], off[0], own[1], off[1]


def test_block_tridiagonal_inverse():
    A, A_off, G, G_off = chain([3, 2, 3, 2])
    F = optim.BlockTridiagonal(A, A_off, G, G_off)
    shapes = [(g.shape[0], a.shape[0]) for a, g in zip(A, G, strict=True)]
    ends = np.cumsum([0] + [q * p for q, p in shapes])

    def solve(v):
        blocks = [v[s:e].reshape(p, q).T for s, e, (q, p) in zip(ends[:-1], ends[1:], shapes, strict=True)]
        return np.concatenate([stacked(W) for W in F.solve(blocks)])

    inverse = np.stack([solve(column) for column in np.eye(ends[-1])], axis=1)
    assert np.abs(inverse - inverse.T).max() <= 1e-10 * np.abs(inverse).max()
    assert np.linalg.eigvalsh((inverse + inverse.T) / 2)[0] > 0
    assert np.abs(inverse[: ends[1], ends[2] :]).max() <= 1e-10
    forward = np.linalg.inv(inverse)
    scale = np.abs(forward).max()
    for i in range(3):
        own = slice(ends[i], ends[i + 1])
        assert np.abs(forward[own, own] - np.kron(A[i], G[i])).max() <= 1e-10 * scale
        if i < 2:
            after = slice(ends[i + 1], ends[i + 2])
            assert np.abs(forward[own, after] - np.kron(A_off[i], G_off[i])).max() <= 1e-10 * scale
    v = normal(9, ends[-1])
    assert np.abs(solve(v) - inverse @ v).max() <= 1e-10 * np.abs(inverse).max()
    alone = optim.BlockTridiagonal(A[:1], [], G[:1], [], lam=0.1)
    V = normal(10, *shapes[0])
    assert np.allclose(alone.solve([V])[0], optim.precondition(V, A[0], G[0], 0.1, mode="pi"))


@given(st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_quadratic_model_is_minimised_whatever_the_lengths(seed, power):
    scale = np.array([1.0, 10.0**power])
    K, b = positive(seed, 2) * np.outer(scale, scale), normal(seed, 2) * scale
    coef, value = optim.solve_quadratic_model(K, b)
    exact = -np.linalg.solve(K / np.outer(scale, scale), b / scale) / scale
    assert np.abs((coef - exact) * scale).max() <= 1e-9 * (1 + np.abs(exact * scale).max())
    assert abs(value - b @ exact / 2) <= 1e-9 * (1 + abs(value))


def test_quadratic_model_with_directions_that_say_nothing():
    coef, value = optim.solve_quadratic_model(np.diag([2.0, 0.0]), np.array([-4.0, 0.0]))
    assert (coef[0], abs(coef[1]), value) == (2, 0, -4)
    coef, value = optim.solve_quadratic_model(np.ones((2, 2)), -np.ones(2))  # parallel
    assert np.allclose(coef, 0.5)
    assert abs(value + 0.5) <= 1e-12
    coef, value = optim.solve_quadratic_model(np.diag([1.0, np.nan]), np.array([-1.0, np.nan]))
    assert (coef[0], coef[1], value) == (1, 0, -0.5)
    coef, value = optim.solve_quadratic_model(np.zeros((2, 2)), np.zeros(2))
    assert not coef.any()
    assert value == 0


def test_damping_controllers():
    damping = optim.LevenbergMarquardt(2.0, 0.5)
    assert [damping.update(rho) for rho in (0.8, 0.5, 0.1, np.nan, -np.inf)] == [1, 1, 2, 4, 8]
    search = optim.GammaSearch(1.0, 0.5, every=1)
    assert search.choose(search.candidates(1), [np.nan, 2.0, 1.0]) == 2
    for kind, text in ((optim.LevenbergMarquardt, "lam0"), (optim.GammaSearch, "gamma0")):
        with pytest.raises(ValueError, match=rf"{text} must be in \(0, inf\)"):
            kind(0.0, 0.5)


class Wake:
    """The models of KLD-WRM in dense form, each metric where it was measured."""

    def __init__(self, d, rho, quadratic):
        self.theta, self.rho, self.quadratic, self.terms = np.zeros(d), rho, quadratic, []

    def metric(self):
        return sum(w * F for w, F, _ in self.terms)

    def step(self, g, F, B, lam):
        """Return the exact minimiser."""
        new = 1.0 if not self.terms else 1 - self.rho
        self.terms = [(self.rho * w, M, theta) for w, M, theta in self.terms] + [(new, F, self.theta)]
        residual = sum(w * M @ (self.theta - theta) for w, M, theta in self.terms)
        s = -np.linalg.solve(lam * self.metric() + (B if self.quadratic else 0), g + lam * residual)
        self.theta = self.theta + s
        return s, residual


@pytest.mark.parametrize("quadratic", [False, True])
def test_recursion_equals_the_minimiser_of_the_wake(quadratic):
    d, rho, rng = 12, 0.7, np.random.default_rng(0)
    wake, before, lam_before = Wake(d, rho, quadratic), None, 1.0
    for step in range(15):
        g, F, B, lam = rng.standard_normal(d), positive(step, d), positive(100 + step, d), rng.uniform(0.5, 2)
        previous, Bs = before or (None, None)
        target = optim.kldwrm_gradient(g, previous, rho, lam / lam_before, Bs if quadratic else None)
        s, _ = wake.step(g, F, B, lam)
        found = -np.linalg.solve(lam * wake.metric() + (B if quadratic else 0), target)
        assert np.abs(found - s).max() <= 1e-10 * np.abs(s).max()
        before, lam_before = (g, B @ s), lam


def test_residual_recursion_holds_for_steps_of_any_kind():
    d, rho, rng = 12, 0.7, np.random.default_rng(1)
    wake, residual = Wake(d, rho, False), np.zeros(d)
    for step in range(15):
        _, exact = wake.step(np.zeros(d), positive(step, d), None, 1.0)
        assert np.abs(residual - exact).max() <= 1e-12 * (1 + np.abs(exact).max())
        taken = rng.standard_normal(d)
        wake.theta = wake.terms[-1][2] + taken
        residual = optim.kldwrm_residual(residual, wake.metric() @ taken, rho)


@pytest.mark.parametrize("solver", ["kron_sum", "factor_sum"])
def test_quadratic_step_of_a_layer(solver):
    A_bar, G_bar, A, G, g, lam = positive(0, 4), positive(1, 3), positive(2, 4), positive(3, 3), normal(4, 3, 4), 5.0
    if solver == "kron_sum":
        K = lam * np.kron(A_bar, G_bar) + np.kron(A, G)
    else:
        K = lam * np.kron(A_bar + A / lam, G_bar + G / lam)
    found = optim.kldwrm_step(g, A_bar, G_bar, A, G, lam, solver=solver)
    assert np.abs(stacked(found) + np.linalg.solve(K, stacked(g))).max() <= 1e-10
    with pytest.raises(ValueError, match="lam must be positive"):
        optim.kldwrm_step(g, A_bar, G_bar, A, G, 0.0)


def test_symmetric_divergence():
    z, w = normal(0, 5, 4), normal(1, 5, 4)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (z, w))
    exact = np.mean(np.sum((p - q) * np.log(p / q), axis=1)) / 2
    assert abs(optim.symmetric_kl(z, w) - exact) <= 1e-13
    step = 1e-6 * normal(2, 5, 4)
    change = (optim.symmetric_kl(z, w + step) - optim.symmetric_kl(z, w - step)) / 2
    assert abs(change - np.sum(optim.symmetric_kl_gradient(z, w) * step)) <= 1e-9 * np.linalg.norm(step)


def test_wrong_arguments_are_named():
    I = np.eye(2)
    with pytest.raises(ValueError, match="sign must be one of 1, -1"):
        optim.kron_sum_solve(I, I, I, I, I, sign=0)
    with pytest.raises(ValueError, match=r"rnla\.optim\.kron_sum_solve: A must have shape \(2, 2\)"):
        optim.kron_sum_solve(np.eye(3), I, I, I, I)
    with pytest.raises(ValueError, match="A_off and G_off one fewer"):
        optim.BlockTridiagonal([I, I], [], [I, I], [])
    with pytest.raises(ValueError, match="gradients must have 1 entries"):
        optim.BlockTridiagonal([I], [], [I], []).solve([])
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\)"):
        optim.kldwrm_gradient(I, I, 1.0, 1.0)
