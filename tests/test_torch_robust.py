"""K-FAC on bad numbers and in unusual training: what is not finite, empty, frozen, transformed or of half precision."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import batch, network, states, train
from torch import nn

import rnla.torch as rt
from rnla import AccuracyWarning


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("method", ["exact", "nystrom", "rsvd", "brand"])
@pytest.mark.parametrize("ekfac", [False, True])
def test_nothing_numerical_raises(method, ekfac):
    if ekfac and method in ("brand", "nystrom", "rsvd"):
        method = "eigh"
    model = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.LayerNorm(30), nn.Linear(30, 4))
    opt = rt.KFAC(model, lr=0.01, method=method, ekfac=ekfac, rank=5, factor_every=1, inverse_every=1, kl_clip=1e-3)
    (x, y), zero = batch(16), torch.zeros(16, 10)
    train(model, opt, 2, (x, y))
    for bad in (math.nan, math.inf, 1e25):
        opt.zero_grad()
        F.cross_entropy(model(x * bad), y).backward()
        if not opt.stats.skipped_steps:
            with pytest.warns(AccuracyWarning, match="a gradient had a NaN or an infinity"):
                opt.step()
        else:
            opt.step()
    assert opt.stats.skipped_updates > 0
    assert opt.stats.skipped_steps >= 2
    losses = train(model, opt, 3, (x, y))
    assert all(math.isfinite(loss) for loss in losses)
    dead = network(sizes=(10, 8, 4))
    with torch.no_grad():
        for p in dead.parameters():
            p.zero_()
    assert all(math.isfinite(v) for v in train(dead, rt.KFAC(dead, method=method, ekfac=ekfac, rank=5), 3, (zero, y)))


@pytest.mark.parametrize("part", ["decomposition", "inversion"])
def test_failed_inversions_keep_the_ones_before(part, monkeypatch):
    from rnla.optim import _inverse, _inverses, _representation

    model = network()
    opt = rt.KFAC(model, factor_every=1, inverse_every=1)
    train(model, opt, 2)
    kept = {name: state.damped for name, state in states(opt).items()}

    def broken(*args, **kwargs):
        raise np.linalg.LinAlgError("no convergence")

    names = ("largest_eigenpair",) if part == "decomposition" else ("spd_inverse", "eigenpairs")
    for module in (_inverse, _inverses) if part == "decomposition" else (_inverses, _representation):
        for name in names:
            monkeypatch.setattr(module, name, broken)
    with pytest.warns(AccuracyWarning, match="could not be decomposed"):
        train(model, opt, 2)
    assert opt.stats.failed_inversions == 12
    for name, state in states(opt).items():
        for inverse, before in zip(state.damped, kept[name], strict=True):
            assert torch.equal(inverse.matrix, before.matrix)
    strict = rt.KFAC(network(), strict=True)
    with pytest.raises(ValueError, match=r"rnla\.torch\.KFAC: factor A and G of layer 0\.0 could not be decomposed"):
        train(strict._engine.model, strict, 1)
    unknown = rt.KFAC(network())
    with pytest.warns(AccuracyWarning, match="could not be decomposed"):
        assert all(math.isfinite(loss) for loss in train(unknown._engine.model, unknown, 3))


@pytest.mark.parametrize("accelerator", [False, True])
@pytest.mark.parametrize("options", [
    {}, {"momentum": 0.9, "weight_decay": 1e-2}, {"momentum": 0.9, "nesterov": True, "decoupled": False},
    {"graft": "adam", "kl_clip": 1e-3}, {"skip": ("0",), "momentum": 0.5},
])  # fmt: skip
def test_a_gradient_that_is_not_finite_changes_no_weight(options, accelerator, monkeypatch):
    from rnla.torch import _engine

    if accelerator:
        monkeypatch.setattr(_engine, "free_to_read", lambda X: False)
    model, (x, y) = network(), batch()
    opt = rt.KFAC(model, factor_every=1, inverse_every=4, rng=0, **options)
    train(model, opt, 3)
    before = copy.deepcopy((model.state_dict(), [dict(state) for state in opt.state.values()]))
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    model[0][0].bias.grad[0] = math.inf
    with contextlib.nullcontext() if accelerator else pytest.warns(AccuracyWarning, match="changed no weight"):
        opt.step()
    assert opt.stats.skipped_steps == 1
    after = model.state_dict(), [dict(state) for state in opt.state.values()]
    for old, new in zip((before[0], *before[1]), (after[0], *after[1]), strict=True):
        assert all(torch.equal(new[name], X) for name, X in old.items())
    # On an accelerator the host learns of it when it reads values anyway, for new inverses.
    with pytest.warns(AccuracyWarning, match="changed no weight") if accelerator else contextlib.nullcontext():
        losses = train(model, opt, 5)
    assert losses[-1] < losses[0]
    assert opt.stats.skipped_steps == 1


def test_zero_grad_forgets_the_statistics_as_well():
    model, (x, y) = network(), batch()
    opt = rt.KFAC(model, factor_every=1)
    F.cross_entropy(model(1e3 * x), y).backward()  # of another loss, through this model
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    clean = network()
    other = rt.KFAC(clean, factor_every=1)
    F.cross_entropy(clean(x), y).backward()
    found, expected = (o._engine.collector.take() for o in (opt, other))
    assert all(torch.equal(found[name].A, expected[name].A) for name in expected)
    sampled = rt.KFAC(model, fisher="mc")
    sampled.sample_fisher(model(x))
    sampled.zero_grad()
    assert sampled._engine.collector.take()


def test_layers_that_are_not_used_or_empty_contribute_nothing():
    for layer, x in (
        (nn.Linear(4, 3), torch.randn(0, 4)), (nn.Conv2d(2, 3, 3), torch.randn(0, 2, 5, 5)),
        (nn.Embedding(5, 3), torch.zeros(0, dtype=torch.long)), (nn.LayerNorm(4), torch.randn(0, 4)),
    ):  # fmt: skip
        opt = rt.KFAC(layer)
        layer(x).sum().backward()
        assert not opt._engine.collector.take()
        with pytest.warns(UserWarning, match="no statistics"):
            opt.step()


def test_transforms_of_torch_func_are_no_training():
    model, (x, y) = network(), batch()
    opt = rt.KFAC(model, factor_every=1)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x, y):
        return F.cross_entropy(torch.func.functional_call(model, params, (x[None],)), y[None])

    torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, x, y)
    assert not opt._engine.collector.take()
    assert all(math.isfinite(v) for v in train(model, opt, 2))


def test_nothing_is_known_of_a_factor_only_until_it_is():
    model = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4))
    with torch.no_grad():
        model[2].weight.zero_()  # so the derivative at the first layer is zero in the first step
    opt = rt.KFAC(model, factor_every=1, inverse_every=50)
    x, y = batch(16)
    train(model, opt, 1, (x[:, :10], y % 4))
    assert opt.stats.ranks["0"][1] == 0
    train(model, opt, 1, (x[:, :10], y % 4))
    assert opt.stats.ranks["0"][1] == 6


def test_layers_that_thaw_are_preconditioned():
    model = network()
    model[0].requires_grad_(False)
    opt = rt.KFAC(model, factor_every=1, inverse_every=1)
    train(model, opt, 2)
    known = dict(opt._engine.curvatures)
    model[0].requires_grad_(True)
    train(model, opt, 2)
    assert set(opt._engine.curvatures) > set(known)
    assert all(opt._engine.curvatures[name] is curvature for name, curvature in known.items())
    assert all(curvature.ready for curvature in opt._engine.curvatures.values())
    # A parameter outside of the model is none that thawed.
    collector = opt._engine.collector
    opt.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert opt._engine.collector is not collector
    collector = opt._engine.collector
    train(model, opt, 1)
    assert opt._engine.collector is collector


def test_training_without_statistics_is_reported():
    model = network().eval()
    opt = rt.KFAC(model, factor_every=1)
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    with pytest.warns(UserWarning, match=r"model\.train\(\)"):
        opt.step()


@pytest.mark.parametrize("options", [{"graft": "adam"}, {"damping": 1e-6}])
def test_half_precision_is_no_less_than_single_inside(options):
    model = nn.Linear(20, 30).half()
    opt = rt.KFAC(model, **options)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(16, 20).half()).float().square().mean().backward()
        opt.step()
        assert torch.isfinite(model.weight).all()


def test_adam_grafting_goes_on_when_inverses_arrive_late():
    model, again = nn.Linear(300, 10), nn.Linear(300, 10)
    opt = rt.KFAC(model, graft="adam")
    data = torch.randn(8, 300), torch.arange(8)
    train(model, opt, 3, data)
    other = rt.KFAC(again, graft="adam")
    with pytest.warns(UserWarning, match="no factors"):
        other.load_state_dict(opt.state_dict(include_factors=False))
    assert all(math.isfinite(v) for v in train(again, other, 20, data))


@pytest.mark.parametrize("kind", ["groups", "named", "bad"])
def test_the_preconditioner_takes_parameters_as_optimizers_do(kind):
    model = network()
    params = {
        "groups": [{"params": list(model.parameters())}], "named": model.named_parameters(), "bad": [3]
    }[kind]  # fmt: skip
    if kind == "bad":
        with pytest.raises(TypeError, match="params must be tensors"):
            rt.KFACPreconditioner(model, params)
        return
    assert len(rt.KFACPreconditioner(model, params)._engine.curvatures) == 3
