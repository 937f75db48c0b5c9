"""Convolutions with many groups: one block whose factors are stacks."""

import copy

import pytest
import torch
from networks import weights
from torch import nn

import rnla.torch as rt
from rnla.torch._collect import Collector

M = 12  # groups


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def convolution(bias=True, **options):
    return nn.Conv1d(2 * M, 3 * M, 3, padding=1, groups=M, bias=bias, **options).double()


def found(model, passes, stacks, **options):
    """Statistics of all blocks for passes (inputs, weights of the outputs), some of which may have several inputs."""
    collector = Collector(model, stacks=stacks, loss_average=4, **options)
    collector.arm()
    for inputs, weight in passes:
        sum((model(x) * weight * (i + 1)).sum() for i, x in enumerate(inputs)).backward()
    return collector.take()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"weight_sharing": "reduce"}, {"patch_bytes": 3000}, {"max_factor_dim": 2}], ids=str
)
def test_factors_of_a_stack_are_those_of_every_group(options, bias):
    model = convolution(bias)
    x, weight = torch.randn(3, 5, 2 * M, 6).double(), torch.randn(5, 3 * M, 6).double()
    passes = [([x[0]], weight), ([x[1], x[2]], weight)]
    single, (stack,) = found(model, passes, False, **options), found(model, passes, True, **options).values()
    assert len(single) == M
    for name in ("A", "G"):
        each, whole = torch.stack([getattr(part, name) for part in single.values()]), getattr(stack, name)
        assert whole.ndim == (1 if "max_factor_dim" in options else 3)
        assert torch.allclose(each.reshape(whole.shape), whole, atol=1e-12)


def test_positions_of_a_stack_can_be_drawn():
    model, x, weight = convolution(), torch.randn(300, 2 * M, 6).double(), torch.randn(300, 3 * M, 6).double()
    whole, drawn = (found(model, [([x], weight)], True, max_positions=size, seed=0)[""] for size in (None, 3))
    # Half of 1800 positions: an error of 1 / sqrt(900) in each entry.
    for exact, part in ((whole.A, drawn.A), (whole.G, drawn.G)):
        assert 0 < (exact - part).norm() <= 0.15 * exact.norm()


def gradient(model, x, target):
    model.zero_grad()
    (model(x) - target).square().mean(dim=0).sum().backward()


@pytest.mark.parametrize("mode", ["relative", "pi", "pi-fro", "joint"])
@pytest.mark.parametrize("options", [{}, {"max_factor_dim": 5, "init": "identity"}, {"method": "seng"}], ids=str)
def test_a_stack_is_preconditioned_by_dense_solves_of_every_group(mode, options):
    model = convolution()
    opt = rt.KFAC(model, lr=1.0, damping=0.1, damping_mode=mode, rms_clip=None, ekfac=mode == "pi", **options)
    before, x = weights(model).clone(), torch.randn(20, 2 * M, 6).double()
    gradient(model, x, torch.randn(20, 3 * M, 6).double())
    V = torch.cat([model.weight.grad.flatten(1), model.bias.grad[:, None]], dim=1).reshape(M, 3, 7)
    opt.step()
    (curvature,) = opt._engine.curvatures.values()
    A, G = (X.matrix for X in (curvature.state.A, curvature.state.G))
    A = torch.stack([a.diag() for a in A.reshape(M, 7)]) if A.ndim == 1 else A
    a, g = torch.linalg.eigvalsh(A), torch.linalg.eigvalsh(G)
    W = []
    for i in range(M):
        if mode == "joint":
            block = torch.kron(G[i].contiguous(), A[i].contiguous()) + 0.1 * torch.eye(21).double()
            W.append(torch.linalg.solve(block, V[i].reshape(-1)).reshape(3, 7))
            continue
        mean = (lambda w: w.mean()) if mode == "pi" else (lambda w: w.square().mean().sqrt())
        pi = (mean(a[i]) / mean(g[i])).sqrt()
        dA, dG = (0.1 * a.max(), 0.1 * g.max()) if mode == "relative" else (pi * 0.1**0.5, 0.1**0.5 / pi)
        rest = curvature.state.A.identity  # of the identity with which the averages started
        dA, dG = dA + rest, dG + rest
        W.append(torch.linalg.solve(G[i] + dG * torch.eye(3), torch.linalg.solve(A[i] + dA * torch.eye(7), V[i].T).T))
    W = torch.cat(W)
    step = torch.cat([W[:, :-1].reshape(-1), W[:, -1]])
    assert torch.allclose(before - weights(model), step, atol=1e-10)


def test_training_goes_on_from_a_checkpoint_bit_for_bit():
    x, target = torch.randn(7, 2 * M, 6), torch.randn(7, 3 * M, 6)
    options = {"factor_every": 2, "inverse_every": 3, "momentum": 0.9}

    def steps(model, opt, count):
        for _ in range(count):
            gradient(model, x, target)
            opt.step()

    one, two = convolution().float(), convolution().float()
    opt = rt.KFAC(one, **options)
    steps(one, opt, 7)
    two.load_state_dict(one.state_dict())
    resumed = rt.KFAC(two, **options)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for model, each in ((one, opt), (two, resumed)):
        steps(model, each, 6)
    assert torch.equal(weights(one), weights(two))
    assert "12 groups" in opt.summary()
    assert "7, 3" in opt.summary()
    # Averages, eigenvectors and inverse eigenvalues.
    assert opt.memory_usage() >= 4 * M * (2 * 7 * 7 + 2 * 3 * 3 + 7 + 3)
    assert rt.KFAC(nn.Conv2d(3 * 8, 8, 3, groups=8))._engine.curvatures.keys() == {f"[{i}]" for i in range(8)}


def test_nothing_is_made_of_a_zero_factor_or_of_one_that_is_not_finite():
    model, x = convolution(), torch.randn(7, 2 * M, 6).double()
    opt = rt.KFAC(model, lr=0.1, factor_every=1, inverse_every=50)
    before = weights(model).clone()
    for scale in (float("nan"), 0.0):
        opt.zero_grad()
        (model(x) * scale).sum().backward()
        with pytest.warns(UserWarning, match="NaN") if scale else torch.no_grad():
            opt.step()
    assert torch.equal(weights(model), before)
    assert opt.stats.ranks == {"": (None, None)}
    assert opt.stats.skipped_updates == 1
    opt.zero_grad()
    model(x).square().mean().backward()
    opt.step()
    assert opt.stats.ranks == {"": (7, 3)}
    assert torch.isfinite(weights(model)).all()
    curvature = opt._engine.curvatures[""]
    kept, G = curvature.inverse, curvature.state.G._replace(matrix=torch.full((M, 3, 3), torch.nan).double())
    curvature.state = curvature.state._replace(G=G)
    assert curvature.refresh(opt._engine._config, 0.1, None) == ["A and G"]
    assert curvature.inverse is kept


def test_a_depthwise_network_learns():
    model = nn.Sequential(nn.Conv2d(1, 80, 1), nn.Conv2d(80, 80, 3, groups=80), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(80 * 4, 3))
    x = torch.randn(30, 1, 4, 4)
    y = x.flatten(1)[:, :3].argmax(dim=1)
    opt = rt.NysKFAC(model, lr=0.1, rng=0, factor_every=1, inverse_every=5)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert not opt.unsupported
