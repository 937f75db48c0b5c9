"""Training steps on plain arrays: the same numbers in every library, variants that meet where they should."""

import numpy as np
import pytest

import rnla.optim as optim
from rnla._backend import to_host
from rnla.optim import mlp

EPS = np.finfo(float).eps
SIZES, ACTS = [6, 8, 4], ("tanh", "linear")


def problem(xp=np, device=None, n=60):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, SIZES[0]))
    y = np.argmax(x @ rng.standard_normal((SIZES[0], SIZES[-1])), axis=1)
    return xp.asarray(x, device=device), xp.asarray(y, device=device)


def train(cfg, steps, xp=np, device=None, *, step=mlp.kfac_step, state=None):
    batch, params = problem(xp, device), mlp.init(SIZES, 1, xp=xp, device=device)
    state, losses, infos = state or mlp.KFACState(), [], []
    for _ in range(steps):
        params, state, info = step(params, state, batch, cfg)
        losses.append(float(info["loss"] if isinstance(info, dict) else info.loss))
        infos.append(info)
    return params, state, losses, infos


def config(variant="kfac", *, lr=0.3, layer=None, **options):
    layer = layer or optim.LayerConfig(rank=4, oversampling=2)
    return mlp.KFACConfig(ACTS, lr=lr, layer=layer, variant=variant, factor_every=2, inverse_every=4, **options)


LAYERS = {
    "exact": {}, "eigh": {"method": "eigh"}, "rsvd": {"method": "rsvd", "tail": "zero"}, "sre": {"method": "sre"},
    "nystrom": {"method": "nystrom"}, "auto": {"method": "auto", "damping_mode": "joint"}, "brand": {"method": "brand"},
    "ekfac": {"ekfac": True}, "pi": {"damping_mode": "pi"}, "warmup": {"ema": "warmup", "method": "nystrom"},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_inverse_trains_and_libraries_agree(name):
    import array_api_compat.torch as xp
    import torch

    cfg = config(layer=optim.LayerConfig(rank=4, oversampling=2)._replace(**LAYERS[name]))
    params, _, losses, _ = train(cfg, 20)
    assert losses[-1] < 0.8 * losses[0]
    again = train(cfg, 20)[0]
    assert all(np.array_equal(W, V) for W, V in zip(params, again, strict=True))
    other = train(cfg, 20, xp, torch.device("cpu"))[0]
    # Rounding of 20 steps, each of which magnifies it by up to the inverse of the relative damping.
    assert all(np.abs(W - V.numpy()).max() <= 1e-9 * (1 + np.abs(W).max()) for W, V in zip(params, other, strict=True))


@pytest.mark.parametrize("name", ["exact", "nystrom", "brand", "ekfac", "auto"])
def test_the_standard_is_enough_on_a_device_that_is_not_the_host(name):
    import array_api_strict as xp

    cfg = config(layer=optim.LayerConfig(rank=4, oversampling=2)._replace(**LAYERS[name]), fisher="mc")
    reference, other = train(cfg, 5)[0], train(cfg, 5, xp, xp.Device("device1"))[0]
    assert all(np.abs(W - to_host(V)).max() <= 1e-9 for W, V in zip(reference, other, strict=True))


@pytest.mark.parametrize("fisher", ["empirical", "mc", "type2"])
@pytest.mark.parametrize("clip", [{}, {"kl_clip": 1e-3, "rms_clip": None}, {"momentum": 0.9, "nesterov": True}])
def test_options_of_a_step(fisher, clip):
    _, _, losses, infos = train(config(lr=0.1, fisher=fisher, weight_decay=1e-3, **clip), 25)
    assert losses[-1] < losses[0]
    assert all(0 < float(info.nu) <= 1 for info in infos)


def test_a_full_rank_sketch_is_exact():
    exact = train(config(layer=optim.LayerConfig(method="eigh")), 10)[0]
    full = train(config(layer=optim.LayerConfig(method="nystrom", rank=50)), 10)[0]
    assert all(np.abs(W - V).max() <= 1e-8 for W, V in zip(exact, full, strict=True))


@pytest.mark.parametrize("variant", ["so", "q", "qe"])
@pytest.mark.parametrize("residual", ["gradient", "exact"])
def test_wake_of_models_trains(variant, residual):
    cfg = config(variant, lr=0.1, residual=residual, layer=optim.LayerConfig(rho=0.3), weight_decay=1e-4)
    _, state, losses, _ = train(cfg._replace(factor_every=1, inverse_every=1), 30)
    assert losses[-1] < losses[0]
    assert len(state.stored) == (3 if variant == "qe" else 0)


def test_without_memory_the_linear_wake_is_kfac_without_averaging():
    layer = optim.LayerConfig(rho=0.0)
    plain, wake = (train(config(v, layer=layer, rms_clip=None), 8)[0] for v in ("kfac", "so"))
    assert all(np.array_equal(W, V) for W, V in zip(plain, wake, strict=True))


def test_exact_divergence_with_inner_steps_of_length_zero_is_the_quadratic_wake(monkeypatch):
    from rnla.optim import _wake

    monkeypatch.setattr(_wake, "INNER_LR", 0.0)
    layer = optim.LayerConfig(rho=0.5)
    q, qe = (train(config(v, lr=0.1, layer=layer), 8)[0] for v in ("q", "qe"))
    assert all(np.abs(W - V).max() <= 100 * EPS for W, V in zip(q, qe, strict=True))


@pytest.mark.parametrize("tridiagonal", [False, True])
def test_adaptive_steps_fall_as_predicted(tridiagonal):
    cfg = mlp.AdaptiveConfig(ACTS, lam0=1.0, tridiagonal=tridiagonal, statistics_share=1.0, model_share=1.0)
    _, state, losses, infos = train(cfg, 25, step=mlp.adaptive_step, state=mlp.AdaptiveState())
    assert losses[-1] < 0.5 * losses[0]
    assert all(float(info["model"]) < 0 for info in infos)
    ratios = [info["ratio"] for info in infos if info["ratio"] is not None]
    assert len(ratios) == 5
    assert state.lam != 1.0
    # Each step minimises over the last one as well, so it is predicted to fall at least as far as without.
    alone = cfg._replace(momentum=False)
    assert losses[-1] < train(alone, 25, step=mlp.adaptive_step, state=mlp.AdaptiveState())[2][0]


def test_adaptive_step_solves_a_quadratic_problem_at_once():
    # One linear layer, squared loss, one output: the Fisher matrix is the Hessian, and A kron G with G = 1 is exact.
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((400, 5)), rng.standard_normal((5, 1))
    params, batch = [np.zeros((1, 6))], (x, x @ target)
    layer = optim.LayerConfig(ema="warmup", damping_mode="pi", method="eigh")
    cfg = mlp.AdaptiveConfig(
        ("linear",), "squared", lam0=1e-8, eta=0.0, statistics_share=1.0, model_share=1.0, layer=layer
    )
    params, _, _ = mlp.adaptive_step(params, mlp.AdaptiveState(), batch, cfg)
    # G is sampled, a multiple of 1, which the step length takes back; the damping of 1e-4 / sqrt(G) is left.
    assert np.abs(params[0][0, :5] - target[:, 0]).max() <= 1e-3


def test_a_step_that_raises_the_loss_is_undone():
    batch, params = problem(), mlp.init(SIZES, 1)
    cfg = mlp.AdaptiveConfig(ACTS, lam0=1e-9, reject=True, statistics_share=0.05, model_share=0.02)
    state, losses = mlp.AdaptiveState(), []
    for _ in range(15):
        params, state, info = mlp.adaptive_step(params, state, batch, cfg)
        losses.append(float(info["loss"]))
    assert np.all(np.diff(losses) <= 1e-9)


def test_layer_state_before_statistics_and_for_online_updates():
    layer, config_ = optim.LayerState(), optim.LayerConfig(method="brand", rank=3)
    V = np.ones((2, 4))
    assert layer.refresh(config_, 0.1).direction(V, config_, 0.1) is V
    a, h = np.random.default_rng(0).standard_normal((5, 3)), np.random.default_rng(1).standard_normal((5, 2))
    layer = layer.add(a, h, config_, terms=5, bias=True)
    assert np.allclose(layer.A_inv.dense(), optim.input_factor(a, bias=True))
    assert np.allclose(layer.G_inv.dense(), optim.output_factor(h, terms=5))
    G, A = layer.G_inv.dense(), layer.A_inv.dense()
    assert np.allclose(layer.curvature(V), G @ V @ A)


def test_a_layer_at_many_positions_and_with_a_bias():
    a, h = np.random.default_rng(0).standard_normal((6, 3, 4)), np.random.default_rng(1).standard_normal((6, 3, 2))
    with_one = np.concatenate([a, np.ones((6, 3, 1))], axis=-1)
    for approx in ("expand", "reduce"):
        factors = optim.input_factor(with_one, approx=approx), optim.output_factor(h, terms=6, approx=approx)
        for method in ("exact", "brand"):
            config_ = optim.LayerConfig(method=method)
            layer = optim.LayerState().add(a, h, config_, terms=6, bias=True, approx=approx)
            V = np.ones((2, 5))
            assert np.allclose(layer.curvature(V), factors[1] @ V @ factors[0])
    # EKFAC in the exact basis of one batch, met again: the second moments are then the average of two kinds.
    config_ = optim.LayerConfig(ekfac=True, rho=0.5, damping_mode="joint")
    layer = optim.LayerState().add(a, h, config_, terms=6, bias=True).refresh(config_, 0.1)
    first = layer.scale.matrix
    assert np.allclose(first, np.outer(layer.G_inv.lam, layer.A_inv.lam))
    layer = layer.add(a, h, config_, terms=6, bias=True)
    new = optim.ekfac_scale(h, with_one, layer.G_inv.U, layer.A_inv.U, terms=6)
    assert np.allclose(layer.scale.matrix, (first + new) / 2)
    assert np.allclose(
        layer.direction(V, config_, 0.1), optim.precondition(V, layer.A_inv, layer.G_inv, 0.1, scale=(first + new) / 2)
    )


def test_identity_at_the_start_is_a_damping_that_dies_away():
    config_ = optim.LayerConfig(rho=0.5)
    a, h = np.random.default_rng(0).standard_normal((9, 4)), np.random.default_rng(1).standard_normal((9, 3)) / 9
    start = optim.FactorStats(identity=1.0)
    layer = optim.LayerState(start, start).add(a, h, config_, terms=9).refresh(config_, 0.1)
    A, G = optim.input_factor(a) / 2, optim.output_factor(h, terms=9) / 2
    dA, dG = optim.split_damping(A, G, 0.1, mode="relative")
    V = np.ones((3, 4))
    exact = np.linalg.solve(G + (dG + 0.5) * np.eye(3), V) @ np.linalg.inv(A + (dA + 0.5) * np.eye(4))
    assert np.allclose(layer.direction(V, config_, 0.1), exact)


def test_wrong_arguments_are_named():
    batch, params = problem(), mlp.init(SIZES, 1)
    for options, text in (
        ({"variant": "sgd"}, "variant must be one of"), ({"fisher": "true"}, "fisher must be one of"),
        ({"layer": optim.LayerConfig(method="svd")}, "method must be one of"),
        ({"layer": optim.LayerConfig(method="brand", ekfac=True)}, "method must give all eigenvectors"),
        ({"loss": "l1"}, "name must be one of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            mlp.kfac_step(params, mlp.KFACState(), batch, config()._replace(**options))
    with pytest.raises(ValueError, match="acts must have one entry"):
        mlp.forward(params, batch[0], ("tanh",))
    with pytest.raises(ValueError, match="kind must be one of"):
        mlp.init(SIZES, 0, "zeros")
    with pytest.raises(ValueError, match="the input of layer 0 must have shape"):
        mlp.forward(params, np.ones((3, 5)), ACTS)
