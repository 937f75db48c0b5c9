"""SENG: systems that are singular or overflow, statistics that are dropped."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import rnla.torch as rt
from rnla import optim
from rnla._errors import AccuracyWarning


@pytest.mark.parametrize("size", [1e3, 1e10, 1e20])
def test_equal_examples_with_large_gradients_are_solved(size):
    V, a, h = np.ones((2, 3)), np.ones((8, 3)), np.ones((8, 2)) * size
    a, h, V = (X.astype(np.float32) for X in (a, h, V))
    step = optim.seng_solve(V, a, h, 0.5, terms=1)
    # All eight gradients and V are one direction, of which F has the eigenvalue 8 * 6 * size**2.
    exact = 1 / (0.5 + 48 * size**2)
    assert np.abs(step.astype(float) - exact).max() <= 2 * exact


def test_a_damping_of_zero_is_one_that_rounding_allows():
    a, h = np.random.default_rng(0).standard_normal((2, 30, 3))
    V, each = h.T @ a, np.einsum("nq,np->nqp", h, a).reshape(30, -1)
    step = optim.seng_solve(V, a, h, 0.0, terms=1)
    damping = np.finfo(float).eps ** 0.5 * np.sum(each**2)
    exact = np.linalg.solve(each.T @ each + damping * np.eye(9), V.reshape(-1)).reshape(3, 3)
    assert np.linalg.norm(step - exact) <= np.linalg.norm(V) / np.sum(each**2)


@pytest.mark.parametrize(
    ("scale", "options"), [(1e6, {}), (1e18, {}), (1.0, {"damping": 0.0}), (1.0, {"sample": 2})], ids=str
)
def test_steps_neither_raise_nor_spoil_the_weights(scale, options):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    opt = rt.SENG(model, factor_every=1, rng=0, **options)
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).repeat(16, 1)
    for _ in range(3):
        opt.zero_grad()
        (model(x) * scale).sum(1).mean().backward()
        opt.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert opt.stats.failed_inversions == 0


def train(model, opt, x, factors):
    for factor in factors:
        opt.zero_grad()
        (factor * model(x).square().mean()).backward()
        opt.step()


def test_batches_that_are_not_finite_are_counted(monkeypatch):
    model, x = nn.Linear(4, 3), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    opt = rt.SENG(model, factor_every=1)
    with pytest.warns(AccuracyWarning, match="changed no weight"):
        train(model, opt, x, (1.0, math.nan, 1.0))
    assert opt.stats.skipped_updates == 1

    def broken(*args, **kwargs):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr("rnla.torch._single_curvature.seng_solve", broken)
    opt = rt.SENG(model, lr=0.1, momentum=0.0, weight_decay=0.0)
    before, loss = model.weight.detach().clone(), model(x).square().mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
    assert opt.stats.failed_inversions == 1
    assert torch.equal(before - 0.1 * model.weight.grad, model.weight)
