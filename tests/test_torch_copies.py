"""Copies and pickles of optimizers train the copy of the model, or say why they cannot."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import batch, network, train, weights
from torch import nn

import rnla.torch as rt


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": saved}
INTERVALS = {"factor_every": 2, "inverse_every": 3}


def half(step):
    return 0.1 if step < 5 else 0.05


@pytest.fixture(params=WAYS)
def copied(request):
    return WAYS[request.param]


@pytest.mark.parametrize(("make", "options"), [
    (rt.KFAC, {"rms_clip": half, "kl_clip": 1e-2, "weight_decay": 1e-3}), (rt.SENG, {"sample": 4}),
    (rt.NysKFAC, {"method": "nystrom", "rank": 5, "graft": "adam"}), (rt.EKFAC, {}), (rt.BKFAC, {"rank": 5}),
    (rt.KLDWRM, {"variant": "so"}), (rt.KLDWRM, {"variant": "qe"}),
])  # fmt: skip
def test_a_copy_trains_the_copied_model_as_the_first_one_goes_on(make, options, copied):
    model = network()
    opt = make(model, lr=0.1, momentum=0.5, **INTERVALS, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    train(model, opt, 4)
    scheduler.step()
    again, other, clock = copied((model, opt, scheduler))
    before = weights(model)
    losses = train(again, other, 4)
    clock.step()
    train(again, other, 3)
    assert torch.equal(before, weights(model))
    assert train(model, opt, 4) == losses
    scheduler.step()
    train(model, opt, 3)
    assert torch.equal(weights(model), weights(again))
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == 0.025
    count = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in again.modules()] == count


def test_settings_and_counters_go_along(copied):
    model = nn.Sequential(network(), nn.Linear(4, 4))
    groups = [
        {"params": model[0].parameters(), "lr": half},
        {"params": model[1].parameters(), "precondition": False, "damping": 0.3},
    ]
    opt = rt.KFAC(model, groups, factor_every=1)
    train(model, opt, 3)
    again, other = copied((model, opt))
    assert other.stats._replace(seconds=None) == opt.stats._replace(seconds=None)
    assert other.stats.seconds == opt.stats.seconds
    assert other.summary() == opt.summary()
    train(model, opt, 4)
    train(again, other, 4)
    assert torch.equal(weights(model), weights(again))
    assert [group["lr"] for group in other.param_groups] == [0.05, 0.1]
    opt.remove_hooks()
    again, other = copied((model, opt))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in again.modules())


def test_other_classes_are_copied_too(copied):
    model, (x, y) = network(), batch()
    pre = rt.KFACPreconditioner(model, lr=half, kl_clip=1e-2, **INTERVALS)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    again, other, descent = copied((model, pre, sgd))
    for net, first, second in ((model, pre, sgd), (again, other, descent)):
        for _ in range(4):
            second.zero_grad()
            F.cross_entropy(net(x), y).backward()
            first.step()
            second.step()
    assert torch.equal(weights(model), weights(again))
    assert other.stats.ranks["0.0"] == (11, 20)
    model = network()
    opt = rt.AdaptiveKFAC(model, lam0=1.0)

    def steps(net, opt):
        def closure():
            z = net(x)
            return F.cross_entropy(z, y), z

        return [float(opt.step(closure)) for _ in range(3)]

    steps(model, opt)
    again, other = copied((model, opt))
    assert steps(model, opt) == steps(again, other)
    assert torch.equal(weights(model), weights(again))


def test_what_cannot_be_copied_is_named():
    model = network()
    for opt in (rt.KFAC(model, lr=lambda step: 0.1), rt.KLDWRM(model, lr=lambda step: 0.1)):
        assert copy.deepcopy(opt).param_groups[0]["lr"] == 0.1
        with pytest.raises(TypeError, match=f"{type(opt).__name__}: lr must be a function of a module"):
            pickle.dumps(opt)
    with pytest.raises(TypeError, match="factor_every must be a function of a module"):
        pickle.dumps(rt.KFACPreconditioner(model, rank={0: 5, 3: 4}, factor_every=lambda step: 1))
    for make in (rt.KFAC, rt.AdaptiveKFAC):
        model = network()
        model.optimizer = make(model)
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="a model that holds its optimizer cannot be copied"):
                copied(model)
    opt = rt.KFAC(network())
    opt._engine.sharer = object()
    with pytest.raises(TypeError, match="among several processes it cannot be copied or pickled"):
        pickle.dumps(opt)
