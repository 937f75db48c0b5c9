"""One training step of a perceptron by K-FAC, EKFAC, their randomised forms, or KLD-WRM, as a pure function."""

from typing import Any, NamedTuple

import numpy as np

from rnla._rangefinder import check_choice
from rnla.optim._clip import momentum_step
from rnla.optim._factors import input_factor, output_factor
from rnla.optim._kfac_layer import LayerConfig, LayerState
from rnla.optim._kldwrm import symmetric_kl_gradient
from rnla.optim._layers import refresh_layers
from rnla.optim._likelihood import likelihood
from rnla.optim._perceptron import backward, forward
from rnla.optim._wake import RESIDUALS, STORED, VARIANTS, clipped, memory_weights, wake_step

FISHERS = ("empirical", "mc", "type2")


class KFACConfig(NamedTuple):
    """Options of `kfac_step`.

    Attributes
    ----------
    acts : tuple of str
        Activation of each layer, as for `rnla.optim.mlp.forward`.
    loss : {"softmax", "logistic", "squared"}
        As for `rnla.optim.likelihood`.
    lr, momentum, nesterov, weight_decay
        As for `rnla.optim.momentum_step`; in KLD-WRM the weight decay is part of the gradient and of the damping.
    damping : float
        In the sense of ``layer.damping_mode``.
    factor_every, inverse_every : int
        Steps between statistics, and between refreshed inverses.
    fisher : {"empirical", "mc", "type2"}
        Statistics from the targets of the batch, from targets drawn from the model, or exact: one backward pass for
        each output.
    kl_clip, rms_clip : float or None
        As for `rnla.optim.kl_clip` and `rnla.optim.rms_clip`.
    layer : LayerConfig
        How factors are averaged and inverted.
    variant : {"kfac", "so", "q", "qe"}
        ``so``, ``q``, ``qe``: KLD-WRM with a linear model, a quadratic model, and a quadratic model with the exact
        divergence.
    residual : {"gradient", "exact"}
        KLD-WRM: the gradient of the step before, as if that had been an exact minimiser, or the residual of the steps
        that were taken.
    seed : int
        Of everything random.
    q_solver : {"kron_sum", "factor_sum"}
        As for `rnla.optim.kldwrm_step`.

    Examples
    --------
    >>> rnla.optim.mlp.KFACConfig(acts=("relu", "linear")).lr
    0.1
    """

    acts: tuple[str, ...]
    loss: str = "softmax"
    lr: float = 0.1
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    damping: float = 0.1
    factor_every: int = 10
    inverse_every: int = 50
    fisher: str = "empirical"
    kl_clip: float | None = None
    rms_clip: float | None = 0.07
    layer: LayerConfig = LayerConfig()
    variant: str = "kfac"
    residual: str = "gradient"
    seed: int = 0
    q_solver: str = "kron_sum"


class KFACState(NamedTuple):
    """State between calls of `kfac_step`; a new one has nothing.

    Attributes
    ----------
    step : int
        Number of steps taken.
    layers : tuple of LayerState
        Statistics and inverses.
    momentum : tuple of array or None
        Momentum of each layer.
    wake : tuple of (array, array, float) or array
        KLD-WRM: for each layer the gradient, the curvature times the step, and the learning rate of the step before; or
        the residual.
    stored : tuple of list of array
        QE: weights of the networks whose outputs are kept near.

    Examples
    --------
    >>> rnla.optim.mlp.KFACState().step
    0
    """

    step: int = 0
    layers: tuple[LayerState, ...] = ()
    momentum: tuple[Any, ...] = ()
    wake: tuple[Any, ...] = ()
    stored: tuple[Any, ...] = ()


class StepInfo(NamedTuple):
    """What a step did.

    Attributes
    ----------
    loss : array, shape ()
        Before the step.
    nu : array, shape (), or 1.0
        Factor of the clipping by the divergence.
    updates : list of array
        Preconditioned and clipped gradient of each layer.

    Examples
    --------
    >>> rnla.optim.mlp.StepInfo(0.5, 1.0, []).nu
    1.0
    """

    loss: Any
    nu: Any
    updates: list[Any]


def kfac_step(params, state, batch, cfg):
    """Take one training step.

    Parameters
    ----------
    params : list of array, shapes (q, p)
        Weights.
    state : KFACState
        From the step before.
    batch : (array, array)
        Inputs and targets.
    cfg : KFACConfig
        Options; may differ from step to step, so that everything can follow a schedule.

    Returns
    -------
    params : list of array
        New weights.
    state : KFACState
        New state.
    info : StepInfo
        Loss before the step, and the update.

    Raises
    ------
    ValueError
        If an option is not one of those allowed.

    Notes
    -----
    Only refreshed inverses read values of arrays; other steps do not wait for an accelerator.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((64, 5)), rng.integers(0, 3, 64)
    >>> params, state = rnla.optim.mlp.init([5, 8, 3], 0), rnla.optim.mlp.KFACState()
    >>> cfg = rnla.optim.mlp.KFACConfig(acts=("tanh", "linear"), lr=0.3)
    >>> losses = []
    >>> for _ in range(30):
    ...     params, state, info = rnla.optim.mlp.kfac_step(params, state, (x, y), cfg)
    ...     losses.append(float(info.loss))
    >>> losses[-1] < 0.7 * losses[0]
    True
    """
    caller = "rnla.optim.mlp.kfac_step"
    check_choice(cfg.variant, "variant", VARIANTS, caller)
    check_choice(cfg.fisher, "fisher", FISHERS, caller)
    check_choice(cfg.residual, "residual", RESIDUALS, caller)
    cfg.layer.checked(caller)
    loss, (x, y) = likelihood(cfg.loss), batch
    z, cache = forward(params, x, cfg.acts)
    grads, hs = backward(params, cache, loss.dz(z, y))
    layers = state.layers or tuple(LayerState() for _ in params)
    decayed = cfg.variant != "kfac" and cfg.weight_decay
    damping = cfg.damping + cfg.weight_decay if decayed else cfg.damping
    if state.step % cfg.factor_every == 0:
        layers = with_statistics(layers, params, z, cache, hs, loss, cfg, state.step)
    if state.step % cfg.inverse_every == 0:
        rngs = [np.random.SeedSequence([cfg.seed, state.step, i]) for i in range(len(layers))]
        layers = refresh_layers(layers, [cfg.layer] * len(layers), [damping] * len(layers), rngs=rngs)
    if decayed:
        grads = [g + cfg.weight_decay * W for g, W in zip(grads, params, strict=True)]
    stored = state.stored
    if cfg.variant == "kfac":
        wake, updates = (), [layer.direction(g, cfg.layer, damping) for layer, g in zip(layers, grads, strict=True)]
        updates, nu, _ = clipped(updates, grads, cfg)
    else:
        factors = divergence = None
        if cfg.variant != "so":
            factors = [
                (input_factor(a), output_factor(h, terms=x.shape[0])) for a, h in zip(cache.inputs, hs, strict=True)
            ]
        if cfg.variant == "qe" and stored:
            divergence = _divergence(params, x, stored, cfg)
        updates, nu, wake, *_ = wake_step(grads, layers, factors, state.wake, damping, cfg, divergence)
    if cfg.variant == "qe" and state.step % cfg.factor_every == 0:
        stored = (list(params), *stored[: STORED - 1])
    buffers = state.momentum or (None,) * len(params)
    moved = [
        momentum_step(
            W, V, buffer, cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov,
            weight_decay=0.0 if decayed else cfg.weight_decay,
        )
        for W, V, buffer in zip(params, updates, buffers, strict=True)
    ]  # fmt: skip
    info = StepInfo(loss.value(z, y), nu, updates)
    after = KFACState(state.step + 1, layers, tuple(buffer for _, buffer in moved), wake, stored)
    return [W for W, _ in moved], after, info


def with_statistics(layers, params, z, cache, hs, loss, cfg, step):
    """Return the layers with the statistics of a batch; `hs` are the derivatives for its own targets."""
    terms = z.shape[0]
    if cfg.fisher == "mc":
        y = loss.sample(z, np.random.SeedSequence([cfg.seed, step, 2**20]))
        hs = backward(params, cache, loss.dz(z, y))[1]
    if cfg.fisher != "type2":
        return tuple(
            layer.add(a, h, cfg.layer, terms=terms) for layer, a, h in zip(layers, cache.inputs, hs, strict=True)
        )
    factors = [0.0] * len(params)
    for column in loss.fisher_columns(z):
        hs = backward(params, cache, column / terms)[1]
        factors = [G + output_factor(h, terms=terms) for G, h in zip(factors, hs, strict=True)]
    return tuple(
        layer.add_factors(input_factor(a), G, cfg.layer)
        for layer, a, G in zip(layers, cache.inputs, factors, strict=True)
    )


def _divergence(params, x, stored, cfg):
    """Return the gradient of the mean divergence from stored networks as a function of the steps (QE)."""
    weights = memory_weights(len(stored), cfg.layer.rho)
    logits = [forward(old, x, cfg.acts)[0] for old in stored]

    def gradient(steps):
        moved = [W + s for W, s in zip(params, steps, strict=True)]
        z, cache = forward(moved, x, cfg.acts)
        dz = sum(w * symmetric_kl_gradient(old, z) for w, old in zip(weights, logits, strict=True))
        return backward(moved, cache, dz)[0]

    return gradient
