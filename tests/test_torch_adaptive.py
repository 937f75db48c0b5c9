"""AdaptiveKFAC: the numbers of the array version, every option, models it must refuse, state that is carried on."""

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnla.optim import mlp
from rnla.torch._adaptive import AdaptiveKFAC

SIZES = [6, 8, 7, 4]
ACTS = ("tanh", "relu", "linear")
LOSSES = {
    "softmax": torch.nn.functional.cross_entropy,
    "logistic": lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(z),
    "gaussian": lambda z, y: ((z - y) ** 2).sum() / (2 * len(z)),
}


def chain(sizes=SIZES, bias=True, dtype=torch.float64, seed=0):
    """Return a chain of linear layers, tanh before and ReLU after the middle."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        acts = [torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.Identity()]
        layers = [torch.nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)]
        parts = [part for pair in zip(layers, acts[-len(layers) :], strict=True) for part in pair]
        return torch.nn.Sequential(*parts).to(dtype)


def batch(likelihood="softmax", n=60, d=SIZES[0], c=SIZES[-1], seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, d)))
    z = x @ torch.from_numpy(rng.standard_normal((d, c)))
    y = {"softmax": z.argmax(dim=1), "logistic": (z > 0).double(), "gaussian": z}[likelihood]
    return x, y


def closure_of(model, x, y, likelihood="softmax"):
    def closure():
        output = model(x)
        return LOSSES[likelihood](output, y), output

    return closure


def matrices(model):
    linear = [module for module in model if isinstance(module, torch.nn.Linear)]
    parts = [m.weight if m.bias is None else torch.cat([m.weight, m.bias[:, None]], dim=1) for m in linear]
    return [part.detach().clone().numpy() for part in parts]


def largest_difference(model, params):
    return max(np.abs(W - V).max() for W, V in zip(matrices(model), params, strict=True))


@pytest.mark.parametrize("likelihood", LOSSES)
@pytest.mark.parametrize("options", [{}, {"tridiagonal": True}, {"reject": True, "momentum": False}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_steps_are_those_of_the_array_version(likelihood, options, bias):
    model, (x, y) = chain(bias=bias), batch(likelihood)
    common = {"lam0": 2.0, "gamma_every": 4, "inverse_every": 6, **options}
    opt = AdaptiveKFAC(model, likelihood=likelihood, rng=3, **common)
    cfg = mlp.AdaptiveConfig(ACTS, likelihood.replace("gaussian", "squared"), seed=3, **common)
    params, state = matrices(model), mlp.AdaptiveState()
    closure = closure_of(model, x, y, likelihood)
    for _ in range(20):
        loss = opt.step(closure)
        params, state, info = mlp.adaptive_step(params, state, (x.numpy(), y.numpy()), cfg)
        assert float(loss) <= float(opt.info["loss"])  # which has the penalty of the weights
        assert abs(float(opt.info["loss"] - info["loss"])) <= 1e-9 * (1 + abs(float(info["loss"])))
    # Rounding of 20 steps, each of which magnifies it by up to the inverse of the damping.
    assert largest_difference(model, params) <= 1e-9 * (1 + max(np.abs(W).max() for W in params))
    assert (opt.info["lam"], opt.info["gamma"]) == pytest.approx((info["lam"], info["gamma"]), rel=1e-9)
    with opt.averaged():
        assert largest_difference(model, state.average) <= 1e-9 * (1 + max(np.abs(W).max() for W in params))
    assert largest_difference(model, params) <= 1e-9 * (1 + max(np.abs(W).max() for W in params))


@settings(max_examples=8)
@given(st.integers(2, 6), st.integers(1, 9), st.integers(20, 50), st.sampled_from(sorted(LOSSES)), st.integers(0, 99))
def test_the_model_falls_and_the_loss_with_it(d, width, n, likelihood, seed):
    model, (x, y) = chain([d, width, 3], seed=seed), batch(likelihood, n, d, 3, seed)
    opt = AdaptiveKFAC(
        model, likelihood=likelihood, lam0=1.0, statistics_share=1.0, model_share=1.0, reject=True, rng=0
    )
    losses = []
    for _ in range(8):
        losses.append(float(opt.step(closure_of(model, x, y, likelihood))))
        assert float(opt.info["model"]) <= 0
    # Rejected steps leave the loss, others lower it, up to the penalty of the weights.
    penalty = 1e-5 * sum(float((p.detach() ** 2).sum()) for p in model.parameters())
    assert all(after <= before + penalty for before, after in itertools.pairwise(losses))


def test_a_convolution_trains():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(),
            torch.nn.Conv2d(4, 4, 3, stride=2, groups=2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(36, 3),
        )  # fmt: skip
        x, y = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
    x[torch.arange(64), 0, y] += 2.0
    opt = AdaptiveKFAC(model, lam0=1.0, rng=0)
    losses = [float(opt.step(closure_of(model, x, y))) for _ in range(25)]
    assert losses[-1] < 0.1 * losses[0]


def test_gradients_are_left_alone_and_nothing_is_kept_alive():
    model, (x, y) = chain(), batch()
    opt, closure = AdaptiveKFAC(model, lam0=1.0, rng=0), closure_of(model, x, y)
    opt.step(closure)
    assert all(p.grad is None for p in model.parameters())
    assert not any(isinstance(W, torch.Tensor) and W.requires_grad for W in opt._state.last)
    opt.remove_hooks()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("tridiagonal", [False, True])
def test_a_stored_optimizer_goes_on_bit_for_bit(tridiagonal):
    x, y = batch()

    def fresh():
        model = chain()
        return model, AdaptiveKFAC(model, lam0=1.0, tridiagonal=tridiagonal, rng=5), closure_of(model, x, y)

    model, opt, closure = fresh()
    for _ in range(20):
        opt.step(closure)
    first, opt, closure = fresh()
    for _ in range(7):
        opt.step(closure)
    file = io.BytesIO()
    torch.save((first.state_dict(), opt.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second, opt, closure = fresh()
    second.load_state_dict(weights)
    opt.load_state_dict(state)
    for _ in range(13):
        opt.step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match="must be of the layers"):
        AdaptiveKFAC(chain([6, 4])).load_state_dict(state)
    with pytest.raises(ValueError, match=r"0 must have shape \(5, 7\); got \(8, 7\)"):
        AdaptiveKFAC(chain([6, 5, 7, 4])).load_state_dict(state)


def test_a_loss_that_is_not_finite_changes_nothing_but_the_damping():
    model, (x, y) = chain(), batch()
    opt = AdaptiveKFAC(model, lam0=1.0, rng=0)
    opt.step(closure_of(model, x, y))
    before, lam = matrices(model), opt._state.lam
    assert np.isnan(float(opt.step(closure_of(model, x * float("nan"), y))))
    assert largest_difference(model, before) == 0
    assert opt.info["lam"] == lam / 0.95**5
    opt.step(closure_of(model, x, y))
    assert all(np.isfinite(W).all() for W in matrices(model))


@pytest.mark.parametrize("tridiagonal", [False, True])
def test_what_it_says_of_itself(tridiagonal):
    model, (x, y) = chain(), batch()
    options = {"lam0": 1.0, "tridiagonal": tridiagonal, "inverse_every": 50, "rng": 0}
    opt, closure = AdaptiveKFAC(model, **options), closure_of(model, x, y)
    assert opt.unsupported == []
    assert opt.memory_usage() == 0
    first = float(opt.step(closure))
    for _ in range(4):
        opt.step(closure)
    assert np.isnan(float(opt.step(closure_of(model, x * float("nan"), y))))
    stats = opt.stats
    assert (stats.steps, stats.skipped_steps, stats.skipped_updates, stats.failed_inversions) == (5, 1, 0, 0)
    ranks = {"0": (7, 8), "2": (9, 7), "4": (8, 4)}
    assert stats.ranks == (dict.fromkeys(ranks, (None, None)) if tridiagonal else ranks)
    assert stats.seconds["statistics"] > 0
    assert [line.split()[:4] for line in opt.summary().splitlines()[2:]] == [
        ["0", "linear", "8", "7"], ["2", "linear", "7", "9"], ["4", "linear", "4", "8"],
    ]  # fmt: skip
    assert opt.memory_usage() >= 8 * (7 * 7 + 8 * 8 + 9 * 9 + 7 * 7 + 8 * 8 + 4 * 4)
    small = opt.state_dict(include_factors=False)
    assert not small["state"]["layers"]["fields"]
    again = AdaptiveKFAC(model, **options)
    with pytest.warns(UserWarning, match="the state has no factors") as caught:
        again.load_state_dict(small)
    assert caught[0].filename == __file__
    losses = [float(again.step(closure)) for _ in range(5)]
    assert losses[-1] < losses[0] < first
    assert again.stats.steps == 10


def test_large_factors_are_diagonal():
    model, (x, y) = chain(), batch()
    opt, closure = AdaptiveKFAC(model, lam0=1.0, max_factor_dim=7, rng=0), closure_of(model, x, y)
    losses = [float(opt.step(closure)) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert [(layer.A.matrix.ndim, layer.G.matrix.ndim) for layer in opt._state.layers] == [(2, 1), (1, 2), (1, 2)]
    with pytest.raises(ValueError, match=r"with tridiagonal no factor may be larger than max_factor_dim; got \[Block"):
        AdaptiveKFAC(model, max_factor_dim=8, tridiagonal=True)
    with pytest.raises(ValueError, match=r"factor G of 0 must be a matrix; got shape \(8,\)"):
        AdaptiveKFAC(chain()).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"state_dict must be that of .* got state, param_groups"):
        opt.load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


def test_more_parameters_and_more_processes_are_refused(monkeypatch):
    opt = AdaptiveKFAC(chain())
    with pytest.raises(NotImplementedError, match=r"^rnla\.torch\.AdaptiveKFAC\.add_param_group: the parameters are"):
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(
        ValueError, match=r"^rnla\.torch\.AdaptiveKFAC: torch\.distributed must have one process; got 2"
    ):
        AdaptiveKFAC(chain())


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.one(x) + self.two(x)


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (chain, {"lam0": 0}, r"lam0 must be positive; got 0\."),
        (chain, {"eta": -1}, "eta must not be negative"),
        (chain, {"model_share": 0}, r"model_share must be in \(0, 1\]"),
        (chain, {"averaging": 1}, r"averaging must be in \[0, 1\)"),
        (chain, {"likelihood": "hinge"}, "likelihood must be one of 'softmax', 'logistic'"),
        (chain, {"method": "lu"}, "method must be one of"),
        (chain, {"lam_every": 0}, "lam_every must be"),
        (Branches, {"tridiagonal": True}, "must be a chain of linear layers"),
        (lambda: torch.nn.Conv2d(1, 1, 2), {"tridiagonal": True}, "must be a chain of linear layers"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), {}, r"got 1\.weight, 1\.bias\."),
        (lambda: torch.nn.Embedding(3, 2), {}, "linear layers and convolutions only"),
        (torch.nn.Tanh, {}, "got none"),
        (chain, {"rank": 0}, "rank must be at least 1"),
        (chain, {"products": 0}, "products must be at least 1"),
        (chain, {"oversampling": -2}, "oversampling must be at least 0"),
        (chain, {"eta": float("inf")}, "eta must be finite"),
        (chain, {"method": "brand"}, "method must be one of"),
        (chain, {"lam0": "a"}, "lam0 must be a number"),
        (chain, {"momentum": 0.9}, "momentum must be True or False"),
    ],
)
def test_bad_arguments_are_named(model, options, text):
    with pytest.raises((ValueError, TypeError), match=r"^rnla\.torch\.AdaptiveKFAC: .*" + text):
        AdaptiveKFAC(model(), **options)


@pytest.mark.parametrize(
    ("closure", "error", "text"),
    [
        (lambda m, x, y: m(x).sum(), TypeError, r"must return the tensors \(loss, output\); got Tensor"),
        (lambda m, x, y: (m(x), m(x)), ValueError, "must return a scalar loss"),
        (lambda m, x, y: (m(x).sum().detach(), m(x)), ValueError, "must return a scalar loss"),
        (lambda m, x, y: (m(x).sum(), m(x)[0]), ValueError, r"outputs of shape \(N, c\); got \(4,\)"),
        (lambda m, x, y: (m[0].weight.sum(), x), ValueError, "must call the model"),
    ],
)
def test_bad_closures_are_named(closure, error, text):
    model, (x, y) = chain(), batch()
    with pytest.raises(error, match=rf"^rnla\.torch\.AdaptiveKFAC\.step: .*{text}"):
        AdaptiveKFAC(model, rng=0).step(lambda: closure(model, x, y))


def test_evaluation_mode_is_refused():
    model, (x, y) = chain(), batch()
    with pytest.raises(ValueError, match="must be in training mode"):
        AdaptiveKFAC(model.eval(), rng=0).step(closure_of(model, x, y))
