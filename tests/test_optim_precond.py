"""Preconditioned gradients equal the dense solves; clipping and grafting do what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnla.optim as optim

EPS = np.finfo(float).eps
MODES = ["pi", "pi-fro", "relative", "joint"]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def factor(seed, d, n=None):
    X = normal(seed, d, n or 2 * d)
    return X @ X.T / X.shape[1]


def column_solve(K, V):
    """Solve for V with its columns stacked."""
    return np.linalg.solve(K, V.T.ravel()).reshape(V.T.shape).T


@st.composite
def layers(draw):
    seed, p, q = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 6)), draw(st.integers(2, 6))
    A, G = factor(seed, p), factor(seed + 1, q)
    return normal(seed + 2, q, p), A, G, seed


@given(layers(), st.floats(0.01, 2.0), st.sampled_from(MODES))
def test_exact_factors_give_the_dense_solve(layer, lam, mode):
    V, A, G, _ = layer
    if mode == "joint":
        K = np.kron(A, G) + lam * np.eye(V.size)
    else:
        dA, dG = optim.split_damping(A, G, lam, mode=mode)
        K = np.kron(A + dA * np.eye(len(A)), G + dG * np.eye(len(G)))
    exact = column_solve(K, V)
    assert np.abs(optim.precondition(V, A, G, lam, mode=mode) - exact).max() <= 1e-9 * (1 + np.abs(exact).max())
    kinds = [optim.factor_inverse(M, method="eigh" if mode == "joint" else "cholesky") for M in (A, G)]
    assert np.abs(optim.precondition(V, *kinds, lam, mode=mode) - exact).max() <= 1e-9 * (1 + np.abs(exact).max())


@pytest.mark.parametrize("kind_A", ["lowrank", "eigh", "diagonal"])
@pytest.mark.parametrize("kind_G", ["lowrank", "eigh", "diagonal"])
@pytest.mark.parametrize("tail", ["zero", "min", "trace"])
def test_joint_damping_of_every_pair_of_kinds_is_the_dense_solve(kind_A, kind_G, tail):
    def represented(M, kind):
        if kind == "diagonal":
            return optim.factor_inverse(np.diagonal(M))
        return optim.factor_inverse(M, method="eigh" if kind == "eigh" else "sre", rank=3, tail=tail, rng=0)

    V = normal(2, 7, 9)
    A, G = represented(factor(0, 9), kind_A), represented(factor(1, 7), kind_G)
    exact = column_solve(np.kron(A.dense(), G.dense()) + 0.1 * np.eye(V.size), V)
    assert np.abs(optim.precondition(V, A, G, 0.1, mode="joint") - exact).max() <= 1e-9


@given(layers(), st.floats(0.01, 2.0), st.integers(1, 5))
def test_low_rank_factors_give_the_dense_solve(layer, lam, rank):
    V, A, G, seed = layer
    inverses = [optim.factor_inverse(M, method="nystrom", rank=rank, rng=seed) for M in (A, G)]
    dA, dG = optim.split_damping(*inverses, lam, mode="relative")
    exact = np.linalg.solve(inverses[1].dense(dG), V) @ np.linalg.inv(inverses[0].dense(dA))
    found = optim.precondition(V, *inverses, lam)
    assert np.abs(found - exact).max() <= 1e-10 * (1 + np.abs(exact).max())
    damped = inverses[0].damp(dA), inverses[1].damp(dG)
    assert np.abs(optim.precondition(V, *damped) - found).max() <= 1e-10 * (1 + np.abs(exact).max())


def test_split_of_the_damping():
    A, G = 4 * np.eye(3), np.eye(2)
    for mode in ("pi", "pi-fro"):
        dA, dG = optim.split_damping(A, G, 0.01, mode=mode)
        assert abs(dA * dG - 0.01) <= 1e-15
        # The norms that enter are means of eigenvalues; only for "pi" the ratio is squared away.
        assert abs(dA / dG - 4) <= 1e-12
    assert optim.split_damping(0 * A, G, 0.01, mode="pi") == (0.1, 0.1)
    A, G = factor(0, 30), factor(1, 20)
    dA, dG = optim.split_damping(A, G, 0.1, mode="relative")
    assert 0.9 * np.linalg.norm(A, 2) <= dA / 0.1 <= np.linalg.norm(A, 2) * (1 + 1e-12)
    inverses = [optim.factor_inverse(M, method="eigh") for M in (A, G)]
    for mode in ("pi", "pi-fro"):
        assert np.allclose(optim.split_damping(*inverses, 0.1, mode=mode), optim.split_damping(A, G, 0.1, mode=mode))


def test_relative_damping_makes_the_direction_blind_to_scale():
    V, A, G = normal(0, 4, 5), factor(1, 5), factor(2, 4)
    V1, V2 = optim.precondition(V, A, G, 0.1), optim.precondition(V, 7 * A, 3 * G, 0.1)
    assert np.abs(V1 - 21 * V2).max() <= 1e-10


def test_a_dead_layer_keeps_its_gradient():
    V, zero = normal(0, 4, 5), optim.factor_inverse(np.zeros((5, 5)))
    G = optim.factor_inverse(factor(1, 4), method="eigh")
    dG = optim.split_damping(zero, G, 0.1, mode="relative")[1]
    assert np.allclose(optim.precondition(V, zero, G, 0.1), np.linalg.solve(G.dense(dG), V))
    assert np.array_equal(optim.precondition(V, zero, G, 0.1, mode="joint"), V)


@pytest.mark.parametrize("R", [None, 3])
def test_ekfac_is_nearer_than_kfac_and_keeps_the_trace(R):
    N, p, q = 6, 4, 3
    a, h = (normal(i, *((N, d) if R is None else (N, R, d))) for i, d in ((0, p), (1, q)))
    each = np.einsum("n...q,n...p->nqp", h, a) if R is None else np.einsum("nrq,nrp->nqp", h, a)
    rows = each.transpose(0, 2, 1).reshape(N, -1)
    F = N * rows.T @ rows
    A, G = optim.input_factor(a), optim.output_factor(h, terms=N)
    (g, U_G), (w, U_A) = np.linalg.eigh(G), np.linalg.eigh(A)
    S = optim.ekfac_scale(h, a, U_G, U_A, terms=N)
    K = np.kron(U_A, U_G)
    ekfac = (K * S.T.ravel()) @ K.T
    assert np.linalg.norm(F - ekfac) <= np.linalg.norm(F - np.kron(A, G))
    assert abs(np.trace(ekfac) - np.trace(F)) <= 1e-12 * np.trace(F)
    V = normal(2, q, p)
    inverses = [optim.FactorInverse(U, lam, lam[0], len(lam), "eigen") for U, lam in ((U_A, w), (U_G, g))]
    found = optim.precondition(V, *inverses, 0.1, scale=S)
    assert np.abs(found - column_solve(ekfac + 0.1 * np.eye(p * q), V)).max() <= 1e-10


def test_reparametrised_inputs_do_not_change_the_function_change():
    # A layer that sees T a with an invertible affine T makes the same change of the outputs, as the damping vanishes.
    N, d, q = 40, 4, 3
    a, h = normal(0, N, d), normal(1, N, q)
    T, shift = normal(2, d, d) + 3 * np.eye(d), normal(3, d)
    changes = []
    for x in (a, a @ T.T + shift):
        x = np.concatenate([x, np.ones((N, 1))], axis=1)
        V = optim.precondition(h.T @ x, optim.input_factor(x), optim.output_factor(h, terms=N), 1e-18, mode="pi")
        changes.append(x @ V.T)
    assert np.abs(changes[0] - changes[1]).max() <= 1e-6 * np.abs(changes[0]).max()


def test_example_wise_solve_equals_the_dense_one():
    for shape in ((6,), (5, 3)):
        a, h, V = normal(0, *shape, 4), normal(1, *shape, 3), normal(2, 3, 4)
        N = shape[0]
        each = (h.reshape(N, -1, 3).mT @ a.reshape(N, -1, 4)).transpose(0, 2, 1).reshape(N, -1)
        exact = column_solve(N * each.T @ each + 0.5 * np.eye(12), V)
        found = optim.seng_solve(V, a, h, 0.5, terms=N)
        assert np.abs(found - exact).max() <= 1e-10
    sampled = optim.seng_solve(V, a, h, 50.0, terms=N, sample=3, rng=0)
    assert np.linalg.norm(sampled - V / 50) < np.linalg.norm(V / 50)


def test_clipping():
    V, g = normal(0, 3, 4), normal(1, 3, 4)
    positive = V * np.sign(np.sum(V * g))
    nu = optim.kl_clip([positive, positive], [g, g], 0.5, 1e-4)
    assert abs(nu**2 * 0.5**2 * 2 * np.sum(positive * g) - 1e-4) <= 1e-15
    assert optim.kl_clip([positive], [g], 0.5, 1e9) == 1
    assert optim.kl_clip([-positive], [g], 0.5, 1e-4) == 1
    assert optim.kl_clip([positive * np.nan], [g], 0.5, 1e-4) == 1
    assert abs(np.sqrt(np.mean(optim.rms_clip(V, 0.07) ** 2)) - 0.07) <= 1e-15
    assert np.array_equal(optim.rms_clip(V, 100.0), V)
    assert np.array_equal(optim.rms_clip(0 * V, 0.07), 0 * V)
    assert np.isfinite(optim.graft(0 * V, g)).all()
    with pytest.raises(ValueError, match="updates and grads must be of one length"):
        optim.kl_clip([], [], 0.1, 1.0)


def test_momentum_is_that_of_torch():
    import torch

    for nesterov in (False, True):
        W, buffer, reference = normal(0, 3), None, torch.from_numpy(normal(0, 3)).requires_grad_()
        peer = torch.optim.SGD([reference], lr=0.1, momentum=0.9, nesterov=nesterov)
        for step in range(4):
            V = normal(step + 1, 3)
            W, buffer = optim.momentum_step(W, V, buffer, 0.1, momentum=0.9, nesterov=nesterov)
            reference.grad = torch.from_numpy(V)
            peer.step()
        assert np.abs(W - reference.detach().numpy()).max() <= 100 * EPS


@pytest.mark.parametrize("mode", MODES)
def test_steps_read_no_value(place, mode):
    xp, device = place
    V = xp.asarray(normal(0, 4, 6), device=device)
    U, lam = xp.asarray(np.eye(6)[:, :2], device=device), xp.asarray(np.array([2.0, 1.0]), device=device)
    A = optim.FactorInverse(U, lam, lam[1] / 2, 6)
    G = optim.FactorInverse(U[:4, ...], lam, lam[1] / 2, 4)
    W = optim.rms_clip(optim.precondition(V, A, G, 0.1, mode=mode), 0.07)
    W = W * optim.kl_clip([W], [V], 0.1, 1e-3)
    assert W.shape == V.shape
    assert W.dtype == V.dtype


def test_wrong_arguments_are_named():
    V, A, G = np.ones((2, 3)), np.eye(3), np.eye(2)
    with pytest.raises(ValueError, match=r"rnla\.optim\.precondition: mode must be one of 'relative'|mode must be one"):
        optim.precondition(V, A, G, 0.1, mode="both")
    with pytest.raises(ValueError, match="lam must be finite and not negative"):
        optim.precondition(V, A, G, -0.1)
    with pytest.raises(ValueError, match=r"A must have dimension 3 for V of shape \(2, 3\)"):
        optim.precondition(V, G, G, 0.1)
    with pytest.raises(ValueError, match="lam must be given"):
        optim.precondition(V, A, G)
    dense = optim.factor_inverse(A, method="cholesky")
    with pytest.raises(ValueError, match="A must have eigenpairs"):
        optim.precondition(V, dense, G, 0.1, mode="joint")
    with pytest.raises(ValueError, match="A is damped already"):
        optim.precondition(V, dense.damp(0.1), G, 0.1)
    with pytest.raises(TypeError, match="G must be an array"):
        optim.precondition(V, A, [[1.0]], 0.1)
    low = optim.factor_inverse(A, method="sre", rank=1, rng=0)
    with pytest.raises(ValueError, match="scale must come with all eigenvectors"):
        optim.precondition(V, low, G, 0.1, scale=V)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-12, 1.0, 1e12, 1e20, 1e30])
def test_blocks_of_normalisation_layers_of_every_scale(scale):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((5, 2, 2))
    blocks, V = X @ X.transpose(0, 2, 1), rng.standard_normal((5, 2))
    expected = np.linalg.solve(blocks + 0.1 * np.eye(2), V[:, :, None])[:, :, 0]
    blocks, delta = (scale * blocks).astype(np.float32), np.float32(0.1 * scale)
    found = optim.norm_solve(blocks, (scale * V).astype(np.float32), delta)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_clipping_bounds_what_overflows():
    for V, c in ((np.full((4, 4), 1e20, np.float32), 0.07), (np.full((300, 300), 100.0, np.float16), 0.07),
                 (np.full(5, 1e300), 2.0)):  # fmt: skip
        clipped = optim.rms_clip(V, c)
        assert clipped.dtype == V.dtype
        assert np.allclose(clipped, c, rtol=1e-3)
    assert np.isfinite(optim.graft(np.full(4, 1e30, np.float32), np.ones(4, np.float32))).all()
