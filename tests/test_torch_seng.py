"""SENG: systems that are singular or overflow, statistics that are dropped."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import rnla.torch as rt
from rnla import optim
from rnla._errors import AccuracyWarning


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


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
    x = torch.randn(1, 6).repeat(16, 1)
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
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
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
    assert torch.allclose(before - 0.1 * model.weight.grad, model.weight, atol=1e-6)


def examples(model, x):
    """Return the gradient of the mean square for each example."""
    losses = [model(x[n : n + 1]).square().mean() for n in range(len(x))]
    return torch.stack([torch.autograd.grad(loss, model.weight)[0].reshape(-1) for loss in losses])


@pytest.mark.parametrize("make", [rt.BKFAC, rt.SENG])
@pytest.mark.parametrize("lengths", [(5, 7), (1, 5), (20, 3)])
@pytest.mark.parametrize("sizes", [(4, 3), (40, 30)])
def test_micro_batches_of_different_lengths(make, lengths, sizes):
    model = nn.Linear(*sizes, bias=False).double()
    damping = {"damping": 0.5, "sample": None, "momentum": 0.0, "weight_decay": 0.0} if make is rt.SENG else {}
    unseen = copy.deepcopy(model)
    opt = make(model, lr=1.0, loss_average=lambda n: 2 * n, rms_clip=None, **damping)
    before, each = model.weight.detach().clone(), []
    for T in lengths:
        x = torch.randn(3, T, sizes[0], dtype=torch.double)
        each.append(examples(unseen, x))
        (model(x).square().mean() / 2).backward()
    opt.step()
    if make is rt.BKFAC:
        assert opt.stats.ranks[""] == (min(sizes[0], 3 * sum(lengths)), min(sizes[1], 3 * sum(lengths)))
        return
    U = torch.cat(each)
    F = U.T @ U / len(U) + 0.5 * torch.eye(U.shape[1]).double()
    exact = torch.linalg.solve(F, U.mean(dim=0)).reshape(before.shape)
    error = (before - model.weight.detach() - exact).norm() / exact.norm()
    # Gradients of rank 20 are cut to 16.
    assert error <= (0.1 if max(lengths) == 20 and sizes == (40, 30) else 1e-10)


@pytest.mark.parametrize("correction", [None, "refresh"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_online_updates_follow_weight_sharing_and_form_no_matrix(sharing, correction, monkeypatch):
    model, x = nn.Linear(4, 3).double(), torch.randn(6, 5, 4, dtype=torch.double)
    if correction is None:

        def formed(*args, **kwargs):
            raise AssertionError("a factor was formed")

        for name in ("input_factor", "output_factor"):
            monkeypatch.setattr(f"rnla.torch._layers.{name}", formed)
    opt = rt.BKFAC(model, weight_sharing=sharing, correction=correction)
    z = model(x)
    z.retain_grad()
    z.sum(dim=1).square().mean().backward()
    opt.step()
    a, h = nn.functional.pad(x, (0, 1), value=1.0), z.grad
    a, h = (a.mean(dim=1), h.sum(dim=1)) if sharing == "reduce" else (a.reshape(-1, 5), h.reshape(-1, 3))
    state = opt._engine.curvatures[""].state
    assert torch.allclose(state.A_inv.dense(), a.T @ a / len(a), atol=1e-12)
    assert torch.allclose(state.G_inv.dense(), 6 * h.T @ h, atol=1e-12)
    assert (state.A.matrix is None) == (correction is None)


def test_convolutions_take_patches_of_few_images_and_keep_little(monkeypatch):
    from rnla.torch import _layers

    sizes, unfold = [], _layers.unfold2d

    def watched(*args, **options):
        X = unfold(*args, **options)
        sizes.append(X.nbytes)
        return X

    monkeypatch.setattr(_layers, "unfold2d", watched)
    model = nn.Conv2d(16, 32, 3, bias=False)
    unseen = copy.deepcopy(model)
    opt = rt.SENG(model, patch_bytes=50_000, lr=1.0, momentum=0.0, weight_decay=0.0, damping=0.5, sample=None)
    x = torch.randn(10, 16, 8, 8)
    x[1:] *= 0.1
    before = model.weight.detach().clone()
    each = examples(unseen, x).double()
    model(x).square().mean().backward()
    opt.step()
    assert max(sizes) <= 50_000
    # 16 positions of 144 inputs and 32 derivatives, not 32 * 144 entries of a gradient.
    assert opt.memory_usage() == 4 * 10 * 16 * (144 + 32)
    F = each.T @ each / 10 + 0.5 * torch.eye(each.shape[1]).double()
    exact = torch.linalg.solve(F, each.mean(dim=0)).reshape(before.shape)
    assert (before - model.weight.detach() - exact).norm() <= 0.05 * exact.norm()


def test_gradients_of_examples_in_few_positions():
    rng = np.random.default_rng(0)
    for N, R, p, q in ((3, 1, 4, 5), (3, 7, 4, 5), (3, 7, 50, 40), (3, 30, 50, 40), (3, 30, 40, 50)):
        a, h = rng.standard_normal((N, R, p)), rng.standard_normal((N, R, q))
        each = h.mT @ a
        few_a, few_h = optim._seng.example_rows(a, h)
        found = (few_h.mT @ few_a).reshape(each.shape)
        left_out = np.linalg.svd(each, compute_uv=False)[:, 16:]
        assert abs(np.linalg.norm(found - each) - np.linalg.norm(left_out)) <= 1e-10
        assert few_a.shape[1] in (1, 16)
    a[0, 0, 0] = np.nan
    assert not np.isfinite(optim._seng.example_rows(a, h)[0]).all()
