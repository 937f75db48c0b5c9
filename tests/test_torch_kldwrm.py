"""KLD-WRM: the numbers of the array version, layers that come and go, refused models, state that is carried on."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnla._errors import AccuracyWarning
from rnla.optim import LayerConfig, kldwrm_step, mlp, split_damping
from rnla.torch._kldwrm import KLDWRM

SIZES, ACTS = [6, 8, 4], ("tanh", "linear")
INTERVALS = {"factor_every": 2, "inverse_every": 4}


def network(sizes=SIZES, seed=0, extra=()):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        a, b, c = sizes
        return torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.Tanh(), *extra, torch.nn.Linear(b, c)).double()


def batch(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, SIZES[0]))
    y = np.argmax(x @ rng.standard_normal((SIZES[0], SIZES[-1])), axis=1)
    return torch.from_numpy(x), torch.from_numpy(y)


def matrices(model):
    linear = [module for module in model if isinstance(module, torch.nn.Linear)]
    return [torch.cat([m.weight, m.bias[:, None]], dim=1).detach().clone().numpy() for m in linear]


def train(model, opt, steps, data=None, schedule=None):
    x, y = data or batch()
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
@pytest.mark.parametrize("residual", ["gradient", "exact"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"q_solver": "factor_sum", "kl_clip": 1e-2, "rms_clip": None},
        {"momentum": 0.5, "nesterov": True, "weight_decay": 1e-3},
    ],
    ids=["plain", "kl", "momentum"],
)
def test_steps_are_those_of_the_array_version(variant, residual, options):
    model, (x, y) = network(), batch()
    params, state = matrices(model), mlp.KFACState()
    opt = KLDWRM(model, lr=0.1, variant=variant, residual=residual, rho=0.5, rng=3, **INTERVALS, **options)
    cfg = mlp.KFACConfig(
        ACTS, lr=0.1, variant=variant, residual=residual, layer=LayerConfig(rho=0.5), seed=3, **INTERVALS, **options
    )
    for _ in range(20):
        (loss,) = train(model, opt, 1)
        params, state, info = mlp.kfac_step(params, state, (x.numpy(), y.numpy()), cfg)
        assert abs(loss - float(info.loss)) <= 1e-9
    # Rounding of 20 steps, each of which magnifies it by up to the inverse of the relative damping.
    largest = max(np.abs(W).max() for W in params)
    assert all(np.abs(W - V).max() <= 1e-9 * (1 + largest) for W, V in zip(matrices(model), params, strict=True))


@pytest.mark.parametrize("method", ["nystrom", "sre", "eigh"])
def test_linear_variant_with_low_rank_inverses(method):
    model, (x, y) = network(), batch()
    params, state = matrices(model), mlp.KFACState()
    opt = KLDWRM(model, lr=0.1, method=method, rank=4, oversampling=2, rng=1, **INTERVALS)
    layer = LayerConfig(rho=0.33, method=method, rank=4, oversampling=2)
    cfg = mlp.KFACConfig(ACTS, lr=0.1, variant="so", layer=layer, seed=1, **INTERVALS)
    losses = train(model, opt, 20)
    for _ in range(20):
        params, state, _ = mlp.kfac_step(params, state, (x.numpy(), y.numpy()), cfg)
    assert all(np.abs(W - V).max() <= 1e-9 for W, V in zip(matrices(model), params, strict=True))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", ["so", "q"])
def test_damping_that_is_split_by_the_traces(variant):
    model, (x, y) = network(), batch()
    params, state = matrices(model), mlp.KFACState()
    train(model, KLDWRM(model, lr=0.1, variant=variant, rho=0.5, damping_mode="pi", **INTERVALS), 10)
    cfg = mlp.KFACConfig(ACTS, lr=0.1, variant=variant, layer=LayerConfig(rho=0.5, damping_mode="pi"), **INTERVALS)
    for _ in range(10):
        params, state, _ = mlp.kfac_step(params, state, (x.numpy(), y.numpy()), cfg)
    assert all(np.abs(W - V).max() <= 1e-9 for W, V in zip(matrices(model), params, strict=True))


@pytest.mark.parametrize("mode", ["relative", "pi", "pi-fro"])
@pytest.mark.parametrize("solver", ["kron_sum", "factor_sum"])
def test_a_step_of_the_quadratic_model_solves_its_equations(mode, solver):
    rng = np.random.default_rng(0)
    A_bar, A, G_bar, G = (X @ X.T for X in (rng.standard_normal((d, d)) for d in (4, 4, 3, 3)))
    g, lam, damping = rng.standard_normal((3, 4)), 7.0, 0.3
    if solver == "kron_sum":
        delta_A, delta_G = split_damping(A_bar, G_bar, damping, mode=mode)
        F = lam * np.kron(A_bar + delta_A * np.eye(4), G_bar + delta_G * np.eye(3)) + np.kron(A, G)
    else:
        left, right = A_bar + A / lam, G_bar + G / lam
        delta_A, delta_G = split_damping(left, right, damping, mode=mode)
        F = lam * np.kron(left + delta_A * np.eye(4), right + delta_G * np.eye(3))
    step = kldwrm_step(g, A_bar, G_bar, A, G, lam, damping, mode=mode, solver=solver)
    exact = -np.linalg.solve(F, g.T.ravel()).reshape(4, 3).T
    assert np.abs(step - exact).max() <= 1e3 * np.finfo(float).eps * np.linalg.cond(F) * np.abs(exact).max()


@settings(max_examples=6)
@given(
    st.sampled_from(["so", "q", "qe"]), st.sampled_from(["gradient", "exact"]), st.floats(0.0, 0.9),
    st.floats(0.02, 0.2), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_it_trains_and_stays_finite(variant, residual, rho, lr, every, seed):
    model = network(seed=seed)
    opt = KLDWRM(model, lr=lr, variant=variant, residual=residual, rho=rho, factor_every=every, inverse_every=every)
    losses = train(model, opt, 15, batch(seed=seed))
    assert losses[-1] < losses[0]


def test_without_memory_the_linear_variant_does_not_look_back():
    exact, gradient = (network(), network())
    for model, residual in ((exact, "exact"), (gradient, "gradient")):
        train(model, KLDWRM(model, lr=0.1, rho=0.0, residual=residual, **INTERVALS), 8)
    assert all(np.array_equal(W, V) for W, V in zip(matrices(exact), matrices(gradient), strict=True))


def test_schedules_and_functions_of_the_step_are_the_same():
    def rate(step):
        return 0.1 * 0.9**step

    by_function, by_scheduler = network(), network()
    train(by_function, KLDWRM(by_function, lr=rate, damping=lambda k: 0.1 + 0 * k, **INTERVALS), 10)
    opt = KLDWRM(by_scheduler, lr=0.1, **INTERVALS)
    train(by_scheduler, opt, 10, schedule=torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 0.9**k))
    # The scheduler multiplies the first rate by a power, the function computes it: one rounding apart.
    assert all(np.abs(W - V).max() <= 1e-12 for W, V in zip(matrices(by_function), matrices(by_scheduler), strict=True))


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
def test_a_rate_of_zero_at_the_end_of_a_schedule_moves_nothing(variant):
    model = network()
    opt = KLDWRM(model, lr={0: 0.1, 3: 0.0, 5: 0.1}, variant=variant, **INTERVALS)
    train(model, opt, 3)
    before = matrices(model)
    train(model, opt, 2)
    assert all(np.array_equal(W, V) for W, V in zip(before, matrices(model), strict=True))
    train(model, opt, 1)
    assert not np.array_equal(before[0], matrices(model)[0])


@pytest.mark.filterwarnings("ignore:rnla.torch.KLDWRM. these parameters take plain")
@pytest.mark.parametrize("variant", ["so", "q", "qe"])
def test_a_convolution_with_normalisation_and_dropout_trains(variant):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Dropout(0.1), torch.nn.Linear(144, 3),
        )  # fmt: skip
        x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
        x[torch.arange(64), 0, y] += 2.0
        opt = KLDWRM(model, lr=0.1, variant=variant, factor_every=1, inverse_every=1)
        losses = train(model, opt, 15, (x, y))
    assert losses[-1] < 0.6 * losses[0]
    assert model.training
    assert model[4].training


def test_a_layer_that_a_step_does_not_use_keeps_its_factor_and_is_not_corrected():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(3, 2)}).double()
    opt = KLDWRM(model, lr=0.1, variant="q", factor_every=1)
    x, y = torch.eye(3).double(), torch.tensor([0, 1, 1])
    for used in ("a", "a", "b", "a", "b"):
        before = {name: layer.weight.detach().clone() for name, layer in model.items()}
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model[used](x), y).backward()
        opt.step()
        other = "b" if used == "a" else "a"
        assert torch.equal(model[other].weight, before[other])
        assert not torch.equal(model[used].weight, before[used])
        assert list(opt._wake) == [used]


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
def test_a_gradient_that_is_not_finite_changes_nothing(variant):
    model, (x, y) = network(), batch()
    opt = KLDWRM(model, lr=0.1, variant=variant, **INTERVALS)
    train(model, opt, 2)
    before, state = matrices(model), copy.deepcopy(opt.state_dict())
    with pytest.warns(AccuracyWarning, match="a gradient had a NaN or an infinity"):
        train(model, opt, 1, (x * float("nan"), y))
    assert opt.skipped_steps == opt.stats.skipped_steps == 1
    assert all(np.array_equal(W, V) for W, V in zip(before, matrices(model), strict=True))
    assert opt.state_dict()["state"]["step"] == state["state"]["step"]
    assert all(np.isfinite(loss) for loss in train(model, opt, 5))


@pytest.mark.filterwarnings("ignore:rnla.torch.KLDWRM. the quadratic model")
@pytest.mark.parametrize("scale", [1e9, 1e20])
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("so", {}), ("so", {"residual": "exact"}), ("q", {"damping_mode": "pi"}), ("q", {"residual": "exact"}),
        ("q", {"q_solver": "factor_sum"}), ("qe", {}),
    ],
)  # fmt: skip
def test_large_gradients_neither_raise_nor_spoil_the_weights(variant, options, scale):
    model, (x, y) = network().float(), batch()
    opt = KLDWRM(model, lr=0.1, variant=variant, factor_every=1, inverse_every=1, rng=0, **options)
    for factor in (1, 1, scale, 1, 1):
        before = matrices(model)
        opt.zero_grad()
        (factor * torch.nn.functional.cross_entropy(model(x.float()), y)).backward()
        opt.step()
        # The clip of a layer, 0.07 of the root mean square.
        for W, V in zip(matrices(model), before, strict=True):
            assert np.abs(W - V).max() <= 0.0071 * W.size**0.5 + (variant == "qe") * 0.0071 * W.size**0.5


def test_inner_steps_that_diverge_are_not_taken():
    model, (x, y) = network(), batch()
    opt = KLDWRM(model, lr=0.1, variant="qe", factor_every=1, rms_clip=None, damping=1e8, rng=0)
    train(model, opt, 2)
    for _ in range(3):
        opt.zero_grad()
        (1e60 * torch.nn.functional.cross_entropy(model(x), y)).backward()
        opt.step()
    assert all(np.isfinite(W).all() for W in matrices(model))


def test_the_quadratic_model_takes_layers_without_curvature():
    params = [np.zeros((3, 5)), np.zeros((4, 4))]
    x, y = np.eye(4), np.arange(4)
    cfg = mlp.KFACConfig(ACTS, lr=0.1, variant="q", factor_every=5, inverse_every=5)
    state = mlp.KFACState()
    for _ in range(4):  # the second layer is zero at first: nothing passes to the first one
        params, state, _ = mlp.kfac_step(params, state, (x, y), cfg)
    assert all(np.isfinite(W).all() and np.abs(W).max() < 1 for W in params)


@pytest.mark.filterwarnings("ignore:rnla.torch.KLDWRM. these parameters take plain")
@pytest.mark.parametrize("variant", ["so", "q", "qe"])
def test_a_stored_optimizer_goes_on_bit_for_bit(variant):
    def fresh():
        model = network(extra=[torch.nn.LayerNorm(8)])
        return model, KLDWRM(model, lr=0.1, variant=variant, momentum=0.5, rng=5, **INTERVALS)

    model, opt = fresh()
    train(model, opt, 20)
    first, opt = fresh()
    train(first, opt, 7)
    file = io.BytesIO()
    torch.save((first.state_dict(), opt.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second, opt = fresh()
    second.load_state_dict(weights)
    opt.load_state_dict(state)
    train(second, opt, 13)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"0 must have a factor of dimension 6; got 7"):
        KLDWRM(network([5, 8, 4], extra=[torch.nn.LayerNorm(8)]), variant=variant).load_state_dict(state)
    with pytest.raises(ValueError, match="must be of the layers"):
        KLDWRM(torch.nn.Linear(3, 2), variant=variant).load_state_dict(state)
    text = r"factor A of \d must be diagonal; got shape" if variant == "so" else "must be of the layers"
    with pytest.raises(ValueError, match=text):
        KLDWRM(fresh()[0], variant=variant, max_factor_dim=4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"state_dict must be that of .* got state, param_groups"):
        opt.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


@pytest.mark.parametrize("variant", ["so", "qe"])
def test_models_are_copied_and_pickled_and_hooks_can_be_removed(variant):
    model, (x, _) = network(), batch()
    opt = KLDWRM(model, lr=0.1, variant=variant)
    model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(other(x), model(x)) for other in copies)
    assert not any(getattr(hook, "arguments", None) for other in copies for hook in other._forward_pre_hooks.values())
    opt.remove_hooks()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_closure_is_called_with_gradients():
    model, (x, y) = network(), batch()
    opt = KLDWRM(model, lr=0.1)

    def closure():
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [float(opt.step(closure).detach()) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
@pytest.mark.parametrize("given", [False, True])
def test_scaled_losses(variant, given):
    plain, scaled, (x, y) = network(), network(), batch()
    options = {"lr": 0.1, "variant": variant, "momentum": 0.5, "damping_mode": "pi", "rng": 0, **INTERVALS}
    train(plain, KLDWRM(plain, **options), 6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    opt = KLDWRM(scaled, grad_scaler=scaler if given else None, **options)
    for k in range(6):
        opt.zero_grad()
        scaler.scale(torch.nn.functional.cross_entropy(scaled(x), y)).backward()
        if given and k % 2:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
    assert scaler.get_scale() > 2.0**10
    # Powers of two scale without rounding.
    assert all(np.abs(W - V).max() <= 1e-12 for W, V in zip(matrices(plain), matrices(scaled), strict=True))


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
def test_a_step_that_overflowed_changes_nothing(variant):
    model, (x, y) = network(), batch()
    opt = KLDWRM(model, lr=0.1, variant=variant, momentum=0.5, factor_every=1, inverse_every=1)
    train(model, opt, 3)
    before = repr(opt.state_dict()), matrices(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    opt.zero_grad()
    scaler.scale(torch.nn.functional.cross_entropy(model(x), y)).backward()
    model[0].weight.grad[0, 0] = float("inf")
    scaler.step(opt)
    scaler.update()
    assert repr(opt.state_dict()) == before[0]
    assert all(np.array_equal(W, V) for W, V in zip(before[1], matrices(model), strict=True))
    assert not opt._collector.take()
    opt.zero_grad()
    scaler.scale(torch.nn.functional.cross_entropy(model(x), y)).backward()
    scaler.unscale_(opt)
    with pytest.warns(UserWarning, match="give grad_scaler"):
        scaler.step(opt)


def test_statistics_of_other_passes_are_forgotten():
    for forget in ("zero_grad", "skip_step"):
        model, (x, y) = network(), batch()
        opt = KLDWRM(model, lr=0.1, rng=0, **INTERVALS)
        (1e3 * torch.nn.functional.cross_entropy(model(x), y)).backward()
        getattr(opt, forget)()
        train(model, opt, 1)
        other = network()
        train(other, KLDWRM(other, lr=0.1, rng=0, **INTERVALS), 1)
        assert all(np.array_equal(W, V) for W, V in zip(matrices(model), matrices(other), strict=True))


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
def test_what_it_says_of_itself(variant):
    model = network(extra=[torch.nn.LayerNorm(8)])
    with pytest.warns(UserWarning, match="take plain gradient steps, .*: 2.weight, 2.bias") as caught:
        opt = KLDWRM(model, lr=0.1, variant=variant, kl_clip=1e-4, factor_every=1, inverse_every=1)
    assert caught[0].filename == __file__
    assert opt.unsupported == ["2.weight", "2.bias"]
    assert not KLDWRM(network(extra=[torch.nn.LayerNorm(8)]), skip=[torch.nn.LayerNorm]).unsupported
    assert opt.memory_usage() == 0
    train(model, opt, 3)
    stats = opt.stats
    assert (stats.steps, stats.skipped_steps, stats.skipped_updates, stats.failed_inversions) == (3, 0, 0, 0)
    ranks = {"0": (7, 8), "3": (9, 4)}
    assert stats.ranks == (ranks if variant == "so" else dict.fromkeys(ranks, (None, None)))
    assert stats.nu < 1
    assert stats.seconds["statistics"] > 0
    assert [line.split()[:4] for line in opt.summary().splitlines()[2:]] == [
        ["0", "linear", "8", "7"], ["3", "linear", "4", "9"],
    ]  # fmt: skip
    averages = 8 * (7 * 7 + 8 * 8 + 9 * 9 + 4 * 4)
    assert opt.memory_usage() >= averages
    small = opt.state_dict(include_factors=False)
    assert not small["state"]["layers"]
    again = KLDWRM(model, lr=0.1, variant=variant, skip=[torch.nn.LayerNorm], factor_every=2, inverse_every=50)
    with pytest.warns(UserWarning, match="the state has no factors"):
        again.load_state_dict(small)
    assert again.stats.steps == 3
    assert again.memory_usage() == 0
    losses = train(model, again, 10)
    assert losses[-1] < losses[0]
    assert variant != "so" or again.stats.ranks == stats.ranks  # inverses as soon as there are statistics


def test_large_factors_are_diagonal_or_their_layer_is_plain():
    model = network()
    opt = KLDWRM(model, lr=0.1, max_factor_dim=7, residual="exact", **INTERVALS)
    losses = train(model, opt, 10)
    assert losses[-1] < losses[0]
    assert {name: (layer.A.matrix.ndim, layer.G.matrix.ndim) for name, layer in opt._layers.items()} == {
        "0": (2, 1), "2": (1, 2),
    }  # fmt: skip
    with pytest.warns(UserWarning, match="2.weight, 2.bias"):
        opt = KLDWRM(model, lr=0.1, variant="q", max_factor_dim=8, **INTERVALS)
    assert list(opt._blocks) == ["0"]
    assert opt.unsupported == ["2.weight", "2.bias"]
    losses = train(model, opt, 5)
    assert losses[-1] < losses[0]
    with pytest.warns(UserWarning, match="weight, bias"):
        KLDWRM(torch.nn.Linear(9, 2), variant="q", max_factor_dim=8)


def test_more_parameters_and_more_processes_are_refused(monkeypatch):
    opt = KLDWRM(network())
    with pytest.raises(
        NotImplementedError, match=r"^rnla\.torch\.KLDWRM\.add_param_group: the parameters are those of"
    ):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"^rnla\.torch\.KLDWRM: torch\.distributed must have one process; got 2"):
        KLDWRM(network())


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (network, {"lr": -1}, r"lr must be positive; got -1\."),
        (network, {"variant": "kfac"}, "variant must be one of 'so', 'q', 'qe'"),
        (network, {"residual": "none"}, "residual must be one of"),
        (network, {"q_solver": "cg"}, "q_solver must be one of"),
        (network, {"rho": 1.0}, r"rho must be in \[0, 1\)"),
        (network, {"method": "lu"}, "method must be one of"),
        (network, {"method": "brand"}, "method must be one that keeps the averages"),
        (network, {"variant": "q", "damping_mode": "joint"}, "damping_mode must split the damping for variant 'q'"),
        (network, {"rank": "adaptive"}, "rank must be an integer"),
        (network, {"rng": -1}, "rng as a seed must be"),
        (network, {"factor_every": 0}, "factor_every must be at least 1"),
        (lambda: torch.nn.Embedding(4, 2), {"variant": "q"}, "variant must be 'so' for a model with embeddings"),
    ],
)
def test_bad_arguments_are_named(model, options, text):
    with pytest.raises(ValueError, match=r"^rnla\.torch\.KLDWRM: .*" + text):
        KLDWRM(model(), **options)


def test_outputs_that_are_no_logits_are_named():
    model = torch.nn.Linear(3, 2)
    opt = KLDWRM(model, lr=0.1, variant="qe", factor_every=1)
    with pytest.raises(ValueError, match=r"must return logits of shape \(N, c\) for variant 'qe'; got \(4, 5, 2\)"):  # noqa: PT012
        for _ in range(2):
            model(torch.ones(4, 5, 3)).sum().backward()
            opt.step()
