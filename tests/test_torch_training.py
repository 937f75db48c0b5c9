"""The training loop around K-FAC: checkpoints, micro-batches, scaled losses, bad numbers, hooks."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from networks import batch, network, states, train, weights
from torch import nn

import rnla.optim as optim
import rnla.torch as rt


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("make", [rt.KFAC, rt.NysKFAC, rt.EKFAC, rt.BKFAC, rt.SENG])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(make, tmp_path):
    options = {
        "factor_every": 2, "inverse_every": 4, "momentum": 0.9, "rng": 5, "graft": "adam", "rank": 6,
        "lr": lambda step: 0.1 / (1 + step),
    }  # fmt: skip
    sizes = (10, 300, 20, 4) if make in (rt.KFAC, rt.NysKFAC, rt.BKFAC) else (10, 20, 20, 4)
    if make is rt.NysKFAC:
        options |= {"method": "nystrom"}
    whole, data = network(sizes=sizes), batch(16)
    train(whole, make(whole, **options), 20, data)
    first = network(sizes=sizes)
    opt = make(first, **options)
    train(first, opt, 7, data)
    torch.save({"model": first.state_dict(), "opt": opt.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt")  # of tensors and numbers alone
    second = network(sizes=sizes)
    second.load_state_dict(saved["model"])
    opt = make(second, **options)
    opt.load_state_dict(saved["opt"])
    train(second, opt, 13, data)
    assert torch.equal(weights(whole), weights(second))


def test_checkpoints_that_do_not_fit_are_refused():
    opt = rt.KFAC(network())
    train(network(), opt, 1)
    small = opt.state_dict(include_factors=False)
    assert "layers" not in small["kfac"]
    fresh = rt.KFAC(network())
    with pytest.warns(UserWarning, match="the state has no factors"):
        fresh.load_state_dict(small)
    assert fresh.stats.steps == 1
    other = rt.KFAC(network(sizes=(10, 20, 21, 4)))
    before = other.state_dict()["kfac"]["step"]
    with pytest.raises(
        ValueError, match=r"rnla\.torch\.KFAC\.load_state_dict: layer '1\.0' must have shape \(21, 21\)"
    ):
        other.load_state_dict(opt.state_dict())
    assert other.state_dict()["kfac"]["step"] == before
    with pytest.raises(ValueError, match="which is none"):
        rt.KFAC(nn.Linear(10, 4)).load_state_dict(opt.state_dict())
    pre = rt.KFACPreconditioner(network())
    pre.load_state_dict(rt.KFACPreconditioner(network()).state_dict())


@pytest.mark.parametrize(("saved", "options", "text"), [
    ({"max_factor_dim": 15}, {}, r"average of G must have shape \(20, 20\); got \(20,\)"),
    ({}, {"max_factor_dim": 15}, r"average of G must have shape \(20,\); got \(20, 20\)"),
    ({}, {"factor_dtype": torch.float64}, "average of A must be of torch.float64; got torch.float32"),
    ({}, {"method": "brand"}, "no eigenpairs that could be updated"),
    ({"method": "brand"}, {}, "it has no averages"),
    ({"method": "brand"}, {"method": "brand", "correction": "partial"}, "it has no averages"),
    ({}, {"damping_mode": "joint"}, "no eigenpairs, which joint damping needs"),
    ({}, {"method": "seng"}, "'seng' of this optimizer; it was saved by method 'exact'"),
    ({}, {"method": "eigh", "rank": "adaptive"}, None),
    ({"method": "nystrom", "rank": "adaptive"}, {"method": "sre", "rank": 5, "damping_mode": "pi"}, None),
    ({"method": "eigh"}, {"damping_mode": "joint"}, None),
])  # fmt: skip
def test_what_a_checkpoint_has_must_be_of_use_to_the_method(saved, options, text):
    model, again = network(), network()
    opt = rt.KFAC(model, factor_every=1, inverse_every=2, **saved)
    train(model, opt, 3)
    other = rt.KFAC(again, factor_every=1, inverse_every=2, **options)
    if text is None:
        other.load_state_dict(opt.state_dict())
        assert all(math.isfinite(loss) for loss in train(again, other, 4))
        assert other.stats.failed_inversions == 0
        assert (other._engine.curvatures["0.0"].rank is None) == (options.get("rank") != "adaptive")
        return
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=rf"^rnla\.torch\.KFAC\.load_state_dict: layer '0.*' must fit method .*{text}"):
        other.load_state_dict(opt.state_dict())
    assert equal(before, other.state_dict())


def test_states_of_something_else_are_refused():
    model, options = network(), {"factor_every": 1}
    kfac, pre = rt.KFAC(model, **options), rt.KFACPreconditioner(model)
    wake, adaptive = rt.KLDWRM(model), rt.AdaptiveKFAC(model)
    for opt in (kfac, pre, wake, adaptive):
        name = f"rnla.torch.{type(opt).__name__}.load_state_dict"
        with pytest.raises(TypeError if opt is not kfac else ValueError, match=f"^{name}: state_dict must be"):
            opt.load_state_dict([])
        for state in (torch.optim.Adam(model.parameters()), *({kfac, pre, wake, adaptive} - {opt})):
            with pytest.raises(ValueError, match=f"^{name}: state_dict must be"):
                opt.load_state_dict(state.state_dict())
    with pytest.raises(ValueError, match=r"must be of variant and residual \['q', 'gradient'\]; got \['so', "):
        rt.KLDWRM(model, variant="q").load_state_dict(wake.state_dict())
    with pytest.raises(ValueError, match="must have tridiagonal=True; got False"):
        rt.AdaptiveKFAC(model, tridiagonal=True).load_state_dict(adaptive.state_dict())
    train(model, wake, 1)
    with pytest.raises(ValueError, match="eigenpairs for joint damping"):
        rt.KLDWRM(network(), damping_mode="joint").load_state_dict(wake.state_dict())
    partly = rt.KFAC(network(), skip=["0"]).state_dict()
    with pytest.raises(ValueError, match=r"must have layer '0\.0'; got 1\.0, 2"):
        kfac.load_state_dict(partly)


def test_a_state_takes_the_place_of_all_that_there_was():
    model, again, data = network(), network(), batch(16)
    opt, other = rt.KFAC(model, factor_every=1), rt.KFAC(again, factor_every=1, graft="adam")
    train(model, opt, 2, data)
    train(again, other, 2, data)
    with pytest.warns(UserWarning, match="collected anew|once there are new statistics"):
        other.load_state_dict(opt.state_dict(include_factors=False))
    assert all(state == optim.LayerState() for state in states(other).values())
    assert not other._engine._adam
    # The random subset of a solve is that of the optimizer that was stored.
    one, two, three = (network() for _ in range(3))
    first = rt.SENG(one, sample=4)
    train(one, first, 3, data)
    two.load_state_dict(one.state_dict())
    second = rt.SENG(two, sample=4)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(one, first, 3, data)
    train(two, second, 3, data)
    assert torch.equal(weights(one), weights(two))
    compiled = rt.KFAC(torch.compile(three, backend="eager"))
    assert compiled.state_dict()["kfac"]["layers"].keys() == opt.state_dict()["kfac"]["layers"].keys()


@pytest.mark.parametrize("options", [{}, {"method": "nystrom", "rank": 6}, {"ekfac": True}, {"fisher": "mc"}])
def test_micro_batches_are_one_batch(options):
    one, many, (x, y) = network(), network(), batch(64)
    common = {"lr": 0.1, "factor_every": 1, "inverse_every": 2, "rng": 0, **options}
    whole, parts = rt.KFAC(one, **common), rt.KFAC(many, loss_average=lambda n: 4 * n, **common)
    if options == {"fisher": "mc"}:  # other targets are drawn: only that it runs
        assert all(math.isfinite(v) for v in accumulate(many, parts, x, y))
        return
    train(one, whole, 4, (x, y))
    accumulate(many, parts, x, y)
    assert (weights(one) - weights(many)).abs().max() <= 2e-6


def accumulate(model, opt, x, y):
    losses = []
    for _ in range(4):
        opt.zero_grad()
        for k in range(4):
            z = model(x[16 * k : 16 * k + 16])
            opt.sample_fisher(z)
            loss = F.cross_entropy(z, y[16 * k : 16 * k + 16]) / 4
            loss.backward()
            losses.append(loss.item())
        opt.step()
    return losses


@pytest.mark.parametrize("given", [True, False])
def test_scaled_losses(given):
    plain, scaled, data = network(), network(), batch(32)
    options = {
        "lr": 0.1,
        "factor_every": 1,
        "inverse_every": 2,
        "momentum": 0.9,
        "weight_decay": 0.1,
        "decoupled": False,
    }
    train(plain, rt.KFAC(plain, **options), 6, data)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    opt = rt.KFAC(scaled, grad_scaler=scaler if given else None, **options)
    for k in range(6):
        opt.zero_grad()
        scaler.scale(F.cross_entropy(scaled(data[0]), data[1])).backward()
        if given and k % 2:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
    assert scaler.get_scale() > 2.0**10
    assert (weights(plain) - weights(scaled)).abs().max() <= 2e-6


def test_a_step_that_overflowed_changes_nothing():
    model, (x, y) = network(), batch()
    opt = rt.NysKFAC(model, factor_every=1, inverse_every=2, momentum=0.9)
    train(model, opt, 3)
    before = copy.deepcopy((opt.state_dict(), model.state_dict()))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    opt.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    model[0][0].weight.grad[0, 0] = math.inf
    scaler.step(opt)
    scaler.update()
    assert equal(before, (opt.state_dict(), model.state_dict()))
    assert not opt._engine.collector.take()
    assert scaler.get_scale() == 2.0
    opt.zero_grad()
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.unscale_(opt)
    with pytest.warns(UserWarning, match="give grad_scaler"):
        scaler.step(opt)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_half_precision_gives_statistics_in_single():
    model = network()
    opt = rt.NysKFAC(model, factor_every=1, inverse_every=1)
    x, y = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    opt.step()
    assert all(state.A.matrix.dtype == torch.float32 for state in states(opt).values())
    half = network(torch.bfloat16)
    opt = rt.EKFAC(half, factor_every=1, inverse_every=2, momentum=0.9)
    losses = train(half, opt, 10, (x.bfloat16(), y))
    assert losses[-1] < losses[0]
    mixed = network()
    opt = rt.NysKFAC(mixed, method="nystrom", factor_dtype=torch.float64, inverse_dtype=torch.float64, rank=5)
    train(mixed, opt, 3)
    assert states(opt)["0.0"].A.matrix.dtype == torch.float64
    assert states(opt)["0.0"].A_inv.U.dtype == torch.float32


def test_no_graph_survives_a_step():
    for options in ({}, {"fisher": "mc"}, {"ekfac": True}, {"weight_sharing": "reduce"}):
        model, (x, y) = network(), batch()
        opt = rt.KFAC(model, factor_every=1, **options)
        hidden = model[0](x)
        output = model[2](model[1](hidden))
        opt.sample_fisher(output)
        alive = [weakref.ref(node) for node in (hidden, output)]
        loss = F.cross_entropy(output, y)
        loss.backward()
        opt.step()
        del hidden, output, loss
        gc.collect()
        assert [ref() for ref in alive] == [None, None]
        # Passes that nobody differentiates leave nothing either.
        outputs = [weakref.ref(model(x)) for _ in range(3)]
        gc.collect()
        assert [ref() for ref in outputs[:2]] == [None, None]
    model = network()
    ref = weakref.ref(rt.KFAC(model)._engine.collector)
    gc.collect()
    assert ref() is None
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_recomputed_activations_count_once(reentrant, sharing):
    from torch.utils.checkpoint import checkpoint

    plain, saving, (x, y) = network(), network(), batch()
    opts = [rt.KFAC(model, factor_every=1, weight_sharing=sharing) for model in (plain, saving)]
    train(plain, opts[0], 2)
    for _ in range(2):
        opts[1].zero_grad()
        F.cross_entropy(saving[2](checkpoint(saving[1], saving[0](x), use_reentrant=reentrant)), y).backward()
        opts[1].step()
    assert torch.allclose(weights(plain), weights(saving), atol=1e-6)


class NoReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises where the host asks for a number, for which it would wait for an accelerator."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [
    {}, {"method": "nystrom", "rank": 5}, {"ekfac": True}, {"damping_mode": "joint"}, {"damping_mode": "pi"},
    {"graft": "adam", "momentum": 0.9, "weight_decay": 1e-3}, {"weight_sharing": "reduce"},
])  # fmt: skip
def test_steps_without_new_inverses_read_no_value(options, monkeypatch):
    from rnla.torch import _engine

    monkeypatch.setattr(_engine, "free_to_read", lambda X: False)  # as on an accelerator
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    x, y = torch.randn(8, 1, 4, 4), torch.arange(8) % 4
    opt = rt.KFAC(model, factor_every=2, inverse_every=5, kl_clip=1e-3, **options)
    train(model, opt, 1, (x, y))
    for _ in range(4):
        opt.zero_grad()
        with NoReads():
            F.cross_entropy(model(x), y).backward()
            opt.step()
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with NoReads(), pytest.raises(AssertionError, match="a value was read"):
        opt.step()


def test_hooks_do_not_get_in_the_way():
    model, (x, y) = network(), batch()
    opt = rt.KFAC(model, factor_every=1)
    clone, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (clone, loaded):
        F.cross_entropy(other(x), y).backward()
    with torch.no_grad():
        model(x)
    assert not opt._engine.collector.take()
    opt.remove_hooks()
    train(model, opt, 1)
    assert all(state.A.matrix is None for state in states(opt).values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_models_are_seen():
    model, plain = network(), network()
    opt = rt.KFAC(model, factor_every=2, inverse_every=2)
    train(torch.compile(model, backend="eager"), opt, 4)
    train(plain, rt.KFAC(plain, factor_every=2, inverse_every=2), 4)
    assert torch.allclose(weights(model), weights(plain), atol=1e-6)
