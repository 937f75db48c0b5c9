"""K-FAC for PyTorch: the numbers of the array core, its options, and what it refuses."""

import pickle

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import batch, network, states, train, weights
from torch import nn

import rnla.optim as optim
import rnla.torch as rt
from rnla.optim import mlp

PRESETS = (rt.KFAC, rt.RSKFAC, rt.SREKFAC, rt.NysKFAC, rt.EKFAC, rt.BKFAC, rt.SENG)
SMALL = {"rank": 6, "oversampling": 4}


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


CORE = {
    "KFAC": (rt.KFAC, {}, {}),
    "RSKFAC": (rt.RSKFAC, SMALL, {"method": "rsvd", "products": 9, "tail": "zero", "warm_start": False}),
    "SREKFAC": (rt.SREKFAC, SMALL, {"method": "sre", "products": 4, "tail": "zero", "warm_start": False}),
    "NysKFAC": (rt.NysKFAC, {**SMALL, "method": "nystrom"}, {"method": "nystrom"}),
    "EKFAC": (rt.EKFAC, {}, {"ekfac": True}),
    "BKFAC": (rt.BKFAC, SMALL, {"method": "brand"}),
    "joint": (rt.KFAC, {"damping_mode": "joint"}, {"damping_mode": "joint"}),
    "pi": (rt.KFAC, {"damping_mode": "pi", "ema": "warmup"}, {"damping_mode": "pi", "ema": "warmup"}),
}


@pytest.mark.parametrize("fisher", ["empirical", "mc"])
@pytest.mark.parametrize("name", CORE)
def test_twenty_steps_are_those_of_the_array_core(name, fisher):
    make, options, layer = CORE[name]
    # The null space of a factor has no basis of its own, so EKFAC needs more examples than units.
    sizes, n = ((10, 20, 20, 4) if name == "EKFAC" else (10, 300, 20, 4)), 64
    x, y = batch(n, torch.float64)
    params = mlp.init(list(sizes), 1, xp=xp)
    config = mlp.KFACConfig(
        ("tanh", "tanh", "linear"), lr=0.02, factor_every=2, inverse_every=4, momentum=0.9, nesterov=True,
        weight_decay=1e-3, kl_clip=1e-2 if name == "pi" else None, seed=3, fisher=fisher,
        layer=optim.LayerConfig(rank=6, oversampling=4)._replace(**layer),
    )  # fmt: skip
    model = network(torch.float64, sizes)
    opt = make(
        model, lr=0.02, factor_every=2, inverse_every=4, momentum=0.9, nesterov=True, weight_decay=1e-3, rng=3,
        kl_clip=config.kl_clip, fisher=fisher, **options,
    )  # fmt: skip
    blocks = list(opt._engine.collector.blocks.values())
    for block, W in zip(blocks, params, strict=True):
        block.write_weight(W)
    state = mlp.KFACState()
    for _ in range(20):
        params, state, info = mlp.kfac_step(params, state, (x, y), config)
        opt.zero_grad()
        z = model(x)
        opt.sample_fisher(z)
        loss = F.cross_entropy(z, y)
        loss.backward()
        opt.step()
        assert loss.item() == pytest.approx(float(info.loss), rel=1e-9)
    for block, W in zip(blocks, params, strict=True):
        assert (block.weight() - W).abs().max() <= 1e-9 * W.abs().max()


def test_preconditioner_before_plain_descent_is_the_optimizer():
    one, two = network(torch.float64), network(torch.float64)
    opt = rt.NysKFAC(one, lr=0.05, factor_every=2, inverse_every=4, rng=0)
    pre = rt.KFACPreconditioner(two, method="auto", rank=110, factor_every=2, inverse_every=4, rng=0)
    sgd, (x, y) = torch.optim.SGD(two.parameters(), lr=0.05), batch(dtype=torch.float64)
    for _ in range(8):
        sgd.zero_grad()
        F.cross_entropy(two(x), y).backward()
        pre.step()
        sgd.step()
    train(one, opt, 8)
    assert (weights(one) - weights(two)).abs().max() <= 1e-12
    assert pre.stats.steps == 8


@pytest.mark.parametrize("make", PRESETS)
def test_every_preset_trains_in_single_precision(make):
    model = network()
    lr = {"SENG": 1.0}.get(make.__name__, 0.1)
    opt = make(model, lr=lr, factor_every=2, inverse_every=4, rng=0)
    losses = train(model, opt, 40)
    assert losses[-1] < 0.5 * losses[0]
    again = network()
    train(again, make(again, lr=lr, factor_every=2, inverse_every=4, rng=0), 40)
    assert torch.equal(weights(model), weights(again))
    lines = opt.summary().splitlines()
    assert len(lines) == 5
    assert opt.memory_usage() > 0


def test_single_precision_follows_double():
    results = []
    for dtype in (torch.float32, torch.float64):
        model = network(dtype)
        train(model, rt.KFAC(model, lr=0.05, factor_every=2, inverse_every=4, rng=0), 20)
        results.append(weights(model).double())
    assert (results[0] - results[1]).norm() <= 1e-3 * results[1].norm()


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_preconditioning_it_is_gradient_descent(nesterov):
    one, two = network(torch.float64), network(torch.float64)
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01}
    opt = rt.KFAC(one, [{"params": one.parameters(), "precondition": False}], decoupled=False, **options)
    sgd = torch.optim.SGD(two.parameters(), **options)
    train(one, opt, 5)
    train(two, sgd, 5)
    assert torch.allclose(weights(one), weights(two), atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_every_parameter_has_the_weight_decay_of_its_group(decoupled):
    one, two = network(torch.float64), network(torch.float64)
    x, y = batch(dtype=torch.float64)

    def groups(model, decay):
        parameters = dict(model.named_parameters())
        return [
            {"params": [p for name, p in parameters.items() if "weight" in name], "weight_decay": decay},
            {"params": [p for name, p in parameters.items() if "bias" in name], "weight_decay": 0.0, "lr": 0.05},
        ]

    options = {"lr": 0.1, "momentum": 0.5, "factor_every": 1, "inverse_every": 2, "decoupled": decoupled}
    train(one, rt.KFAC(one, groups(one, 0.5), **options), 4)
    opt = rt.KFAC(two, groups(two, 0.0), **options)
    for _ in range(4):
        opt.zero_grad()
        F.cross_entropy(two(x), y).backward()
        with torch.no_grad():
            for p in opt.param_groups[0]["params"]:
                if decoupled:
                    p.mul_(1 - 0.1 * 0.5)
                else:
                    p.grad.add_(p, alpha=0.5)
        opt.step()
    assert torch.allclose(weights(one), weights(two), atol=1e-12)


def test_parameter_groups_and_schedules():
    model = network(torch.float64)
    groups = [
        {"params": model[0].parameters(), "lr": 0.0},
        {"params": model[1].parameters(), "damping": {0: 0.5, 2: 0.1}, "rms_clip": None},
        {"params": model[2].parameters(), "lr": lambda step: 0.1 * 0.5**step, "precondition": False},
    ]
    opt = rt.KFAC(model, groups, lr=0.2, rank=lambda step: 5, kl_clip=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.1)
    assert set(opt._engine.curvatures) == {"0.0", "1.0"}
    before = [weights(layer) for layer in model]
    train(model, opt, 3)
    assert torch.equal(before[0], weights(model[0]))
    assert not torch.equal(before[1], weights(model[1]))
    assert [group["lr"] for group in opt.param_groups] == [0.0, 0.2, 0.025]
    assert opt.param_groups[1]["damping"] == 0.1
    scheduler.step()
    assert opt.param_groups[1]["lr"] == pytest.approx(0.02)
    pickle.dumps(opt.state_dict())
    rest = nn.Linear(4, 4, dtype=torch.float64)
    model.append(rest)
    opt.add_param_group({"params": rest.parameters()})
    assert set(opt._engine.curvatures) == {"0.0", "1.0", "3"}
    train(model, opt, 8)
    assert opt._engine.curvatures["3"].ready


@pytest.mark.parametrize("options", [
    {"stagger": True}, {"graft": "sgd"}, {"graft": "adam", "rms_clip": None}, {"init": "identity"}, {"kl_clip": 1e-3},
    {"method": "brand", "correction": "refresh", "correction_every": 2}, {"rank": "adaptive", "method": "nystrom"},
    {"method": "brand", "correction": "partial", "correction_every": 2}, {"rank": {0: 3, 5: 6}, "method": "sre"},
])  # fmt: skip
def test_options_train(options):
    model, records = network(sizes=(10, 300, 20, 4) if options.get("rank") == "adaptive" else (10, 20, 20, 4)), []
    opt = rt.KFAC(model, lr=0.05, factor_every=2, inverse_every=3, rng=0, callback=records.append, **options)
    losses = train(model, opt, 30)
    assert losses[-1] < losses[0]
    assert [record.iteration for record in records] == list(range(30))
    stats = opt.stats
    assert (stats.steps, stats.skipped_updates, stats.failed_inversions) == (30, 0, 0)
    assert all(seconds >= 0 for seconds in stats.seconds.values())
    assert 0 < stats.nu <= 1
    if options.get("rank") == "adaptive":
        assert opt._engine.curvatures["0.0"].rank == 220 - 10 * 10  # far more than 64 examples fill
    if isinstance(options.get("rank"), dict):
        assert stats.ranks["0.0"] == (6, 6)


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.2)])
def test_steps_that_could_not_be_clipped_are_counted(rates):
    model = network()
    groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(model[:2], rates, strict=True)]
    opt = rt.KFAC(model[:2], groups, kl_clip=1e-3, loss_average=None)
    train(model, opt, 2)
    assert opt.stats.unclipped_steps == 0
    for _ in range(2):
        opt.zero_grad()
        (0 * model(batch()[0])).sum().backward()  # no descent
        opt.step()
    assert (opt.stats.unclipped_steps, opt.stats.nu) == (2, 1.0)
    wake = rt.KLDWRM(network(), kl_clip=1e-3, factor_every=1)
    train(wake._wrapped, wake, 2, loss=lambda z, y: (0 * z).sum())
    assert wake.stats.unclipped_steps == 2
    for group in opt.param_groups:
        group["lr"] = 0.0  # as at the end of a schedule: the product is positive
    train(model, opt, 1)
    assert opt.stats.unclipped_steps == 2


def test_staggered_refreshes_are_spread():
    model, times = network(), []
    opt = rt.KFAC(model, stagger=True, inverse_every=6, factor_every=1)
    for _ in range(13):
        before = {name: state.damped for name, state in states(opt).items()}
        train(model, opt, 1)
        times.append(sum(state.damped is not before[name] for name, state in states(opt).items()))
    assert times[0] == 3
    assert times[1:7] == times[7:13]
    assert sorted(times[1:7]) == [0, 0, 0, 1, 1, 1]


def test_single_examples_give_the_damped_empirical_fisher_matrix():
    model, (x, y) = network(torch.float64, (10, 4)), batch(12, torch.float64)
    W, b = model[0].weight, model[0].bias
    opt = rt.SENG(model, lr=1.0, momentum=0.0, weight_decay=0.0, damping=0.5, sample=None)
    before = torch.cat([W, b[:, None]], dim=1).detach().clone()
    train(model, opt, 1, (x, y))
    moved = before - torch.cat([W, b[:, None]], dim=1).detach()
    h = F.softmax(x @ before[:, :-1].T + before[:, -1], dim=1) - F.one_hot(y, 4)
    U = torch.einsum("nq,np->nqp", h, F.pad(x, (0, 1), value=1.0)).reshape(12, -1)
    exact = torch.linalg.solve(U.T @ U / 12 + 0.5 * torch.eye(44).double(), U.mean(dim=0))
    assert torch.allclose(moved.reshape(-1), exact, atol=1e-10)
    conv = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 4)).double()
    losses = train(conv, rt.SENG(conv, lr=1.0, factor_every=1), 20, (torch.randn(12, 2, 8).double(), y))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", PRESETS)
def test_every_preset_takes_every_kind_of_layer(make):
    model = nn.Sequential(
        nn.Embedding(9, 6), nn.LayerNorm(6), nn.Conv1d(5, 4, 3, groups=1), nn.ReLU(inplace=True), nn.GroupNorm(2, 4),
        nn.Conv1d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    opt = make(model, lr=0.05, factor_every=2, inverse_every=2, rng=0)
    assert not opt.unsupported
    losses = train(model, opt, 30, (torch.randint(9, (16, 5)), torch.arange(16) % 4))
    assert losses[-1] < losses[0]
    assert [line.split()[1] for line in opt.summary().splitlines()[2:]] == [
        "embedding", "norm", "conv", "norm", "conv", "conv", "linear",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"lr": -1}, ValueError, r"rnla\.torch\.KFAC: lr must be positive; got -1\."),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"rho": 1.5}, ValueError, "rho must be in"),
        ({"damping": "big"}, TypeError, "damping must be a number"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"factor_every": 2.5}, TypeError, "factor_every must be an integer"),
        ({"method": "svd"}, ValueError, "method must be"),
        ({"fisher": "true"}, ValueError, "fisher must be one of"),
        ({"graft": "rms"}, ValueError, "graft must be one of"),
        ({"loss_average": "mean"}, ValueError, "loss_average must be"),
        ({"skip": ["7"]}, ValueError, "skip must have names"),
        ({"dampening": 1}, TypeError, "unknown argument dampening"),
        ({"rms_clip": 0.0}, ValueError, "rms_clip must be positive"),
        ({"damping": {5: 1.0}}, ValueError, "damping must be a table of steps that begins at 0"),
        ({"weight_sharing": "both"}, ValueError, "weight_sharing must be"),
        ({"rng": "x"}, TypeError, "rng"),
        ({"correction": "full"}, ValueError, "correction must be one of"),
        ({"params": []}, ValueError, "params must not be"),
        ({"norm_layers": "all"}, ValueError, "norm_layers must be"),
        ({"process_group": 1}, ValueError, "process_group needs"),
        ({"patch_bytes": 0}, ValueError, "patch_bytes must be"),
        ({"max_factor_dim": 0}, ValueError, "max_factor_dim must be"),
        ({"batch_dim": 1.5}, TypeError, "batch_dim must be an integer"),
        ({"factor_dtype": torch.float16}, ValueError, r"factor_dtype must be one of None, torch\.float32"),
        ({"inverse_dtype": torch.bfloat16}, ValueError, "inverse_dtype must be one of"),
        ({"callback": 3}, TypeError, r"callback must be None or callable; got 3\."),
        ({"grad_scaler": 3}, TypeError, r"grad_scaler must be None or a torch\.amp\.GradScaler; got int"),
        ({"method": "seng", "sample": -1}, ValueError, "sample must be at least 1"),
        ({"sample": 1.5}, TypeError, "sample must be an integer"),
        ({"method": "seng", "tail": "none"}, ValueError, "tail must be one of"),
        ({"method": "seng", "damping_mode": "none"}, ValueError, "damping_mode must be one of"),
        ({"grad_worker_fraction": -2}, ValueError, r"grad_worker_fraction must be in \(0, 1\]; got -2\."),
        ({"grad_worker_fraction": "a"}, TypeError, "grad_worker_fraction must be a number"),
        ({"stagger": "yes"}, TypeError, "stagger must be True or False; got 'yes'"),
        ({"nesterov": 1}, TypeError, "nesterov must be True or False"),
        ({"skip": 3}, TypeError, "skip must be a list or tuple of names or types of modules; got 3"),
        ({"skip": (3,)}, TypeError, "skip must be"),
        ({"skip": "0"}, TypeError, "skip must be .*; got '0'"),
        ({"params": 0.1}, TypeError, r"params must be a list of parameters or groups; got 0\.1"),
        ({"loss_average": np.int64(0)}, ValueError, "loss_average must be"),
    ],
)
def test_bad_arguments_are_named(options, error, text):
    with pytest.raises(error, match=text):
        rt.KFAC(network(), **options)


SCHEDULED = ("factor_every", "inverse_every", "rank", "rho", "damping", "rms_clip", "lr", "momentum")


@pytest.mark.parametrize("name", SCHEDULED)
def test_later_values_of_functions_are_checked(name):
    good = 1 if name in ("factor_every", "inverse_every", "rank") else 0.5
    for make in (rt.KFAC, rt.KLDWRM):
        model = network()
        opt = make(model, **{name: lambda step: good if step < 2 else -1})
        train(model, opt, 1)
        with pytest.raises(ValueError, match=rf"^rnla\.torch\.{make.__name__}: {name} must be"):
            train(model, opt, 2)
        assert torch.isfinite(weights(model)).all()


def test_settings_of_groups_are_checked():
    parameters = list(network().parameters())
    for group, error, text in (
        ({"rank": 5}, ValueError, "groups may set lr, momentum, .*; got rank, which holds for all parameters"),
        ({"precondition": 1}, TypeError, "precondition must be True or False"),
        ({"damping": -1}, ValueError, "damping must be"),
    ):
        with pytest.raises(error, match=rf"^rnla\.torch\.KFAC: {text}"):
            rt.KFAC(network(), [{"params": parameters, **group}])
    model = network()
    opt = rt.KFAC(model, [{"params": model.parameters(), "name": "of the caller"}], loss_average=np.int64(64))
    train(model, opt, 1)


def test_other_bad_arguments_are_named():
    for make in (rt.KFACPreconditioner, rt.KLDWRM, rt.AdaptiveKFAC):
        with pytest.raises(TypeError, match=rf"{make.__name__}: model must be a torch\.nn\.Module; got int"):
            make(3)
    for options, text in (({"skip": "0"}, "skip must be a list"), ({"grad_scaler": 1}, "grad_scaler must be None or")):
        with pytest.raises(TypeError, match=rf"^rnla\.torch\.KLDWRM: {text}"):
            rt.KLDWRM(network(), **options)
    with pytest.raises(TypeError, match="model must be"):
        rt.KFAC([torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="lr must be given for kl_clip"):
        rt.KFACPreconditioner(network(), kl_clip=1e-3)
    with pytest.raises(ValueError, match="must be initialised"):
        rt.KFAC(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="likelihood must be one of"):
        rt.KFAC(network()).sample_fisher(torch.zeros(2, 2), "poisson")
