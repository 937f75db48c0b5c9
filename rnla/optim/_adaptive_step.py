"""One step of K-FAC as Martens and Grosse have it: momentum, step size and damping from the exact quadratic model."""

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from rnla.optim._factors import input_factor, output_factor
from rnla.optim._kfac_layer import LayerConfig, LayerState
from rnla.optim._kron import BlockTridiagonal
from rnla.optim._layers import damp_layers, represent_layers
from rnla.optim._likelihood import likelihood
from rnla.optim._model import GammaSearch, LevenbergMarquardt, solve_quadratic_model
from rnla.optim._perceptron import backward, forward, jvp
from rnla.optim._precond import precondition


class AdaptiveConfig(NamedTuple):
    """Options of `adaptive_step`, with the published defaults.

    Attributes
    ----------
    acts, loss
        As for `KFACConfig`.
    lam0 : float
        Damping of the quadratic model at the beginning.
    eta : float
        Coefficient of ``||weights||**2 / 2`` in the loss.
    lam_every, gamma_every, inverse_every : int
        Steps between updates of that damping, searches for the damping of the factors, and refreshed inverses, which
        the first three steps have, too.
    statistics_share, model_share : float
        Shares of the batch for the statistics and for the products with the exact Fisher matrix.
    momentum : bool
        Let the model combine the new direction with the last step.
    tridiagonal : bool
        Invert the block-tridiagonal approximation.
    reject : bool
        Undo a step that raised the loss, and raise the damping.
    layer : LayerConfig
        How factors are averaged and inverted.
    averaging : float
        Largest weight of the past in the average of the weights.
    seed : int
        Of everything random.

    Examples
    --------
    >>> rnla.optim.mlp.AdaptiveConfig(acts=("tanh", "linear")).lam0
    150.0
    """

    acts: tuple[str, ...]
    loss: str = "softmax"
    lam0: float = 150.0
    eta: float = 1e-5
    lam_every: int = 5
    gamma_every: int = 20
    inverse_every: int = 20
    statistics_share: float = 1 / 8
    model_share: float = 1 / 4
    momentum: bool = True
    tridiagonal: bool = False
    reject: bool = False
    layer: LayerConfig = LayerConfig(ema="warmup", damping_mode="pi")
    averaging: float = 0.99
    seed: int = 0


class AdaptiveState(NamedTuple):
    """State between calls of `adaptive_step`; a new one has nothing.

    Attributes
    ----------
    step : int
        Number of steps taken.
    layers : tuple of LayerState
        Statistics and inverses.
    neighbours : tuple of (array, array)
        Averages of ``a_i a_{i+1}^T`` and ``g_i g_{i+1}^T``, for the block-tridiagonal inverse.
    lam, gamma : float or None
        Damping of the model and of the factors.
    last : list of array or None
        Last step.
    average : list of array or None
        Average of the weights.
    inverse : list of (DampedInverse, DampedInverse), BlockTridiagonal or None
        Inverses at the damping `gamma`.

    Examples
    --------
    >>> rnla.optim.mlp.AdaptiveState().step
    0
    """

    step: int = 0
    layers: tuple[LayerState, ...] = ()
    neighbours: tuple[Any, ...] = ()
    lam: float | None = None
    gamma: float | None = None
    last: Any = None
    average: Any = None
    inverse: Any = None


def adaptive_step(params, state, batch, cfg):
    """Take one training step that chooses its own length, momentum and damping.

    Parameters
    ----------
    params : list of array, shapes (q, p)
        Weights.
    state : AdaptiveState
        From the step before.
    batch : (array, array)
        Inputs and targets; of some hundred examples at least.
    cfg : AdaptiveConfig
        Options.

    Returns
    -------
    params : list of array
        New weights; ``state.average`` has their average.
    state : AdaptiveState
        New state.
    info : dict
        ``loss`` before the step, ``model`` the predicted change, ``coef`` of direction and last step, ``lam``,
        ``gamma``, and ``ratio`` of the change of the loss to the prediction, where it was measured.

    Raises
    ------
    ValueError
        If an option is not one of those allowed.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, algorithm 2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((200, 5)), rng.integers(0, 3, 200)
    >>> params, state = rnla.optim.mlp.init([5, 8, 3], 0), rnla.optim.mlp.AdaptiveState()
    >>> cfg = rnla.optim.mlp.AdaptiveConfig(acts=("tanh", "linear"), lam0=1.0)
    >>> losses = []
    >>> for _ in range(20):
    ...     params, state, info = rnla.optim.mlp.adaptive_step(params, state, (x, y), cfg)
    ...     losses.append(float(info["loss"]))
    >>> losses[-1] < 0.9 * losses[0]
    True
    """
    cfg.layer.checked("rnla.optim.mlp.adaptive_step")
    loss, (x, y), step = likelihood(cfg.loss), batch, state.step + 1
    z, cache = forward(params, x, cfg.acts)
    grads = backward(params, cache, loss.dz(z, y))[0]

    def value(moved):
        return loss.value(forward(moved, x, cfg.acts)[0], y)

    def statistics():
        part = x[part_of_batch(x.shape[0], cfg.statistics_share, step), ...]
        z, cache = forward(params, part, cfg.acts)
        y = loss.sample(z, np.random.SeedSequence([cfg.seed, step, 2**20]))
        hs = backward(params, cache, loss.dz(z, y))[1]
        count = part.shape[0]
        factors = [
            (input_factor(a), output_factor(h, terms=count)) for a, h in zip(cache.inputs, hs, strict=True)
        ]  # fmt: skip
        return factors, neighbour_factors(cache.inputs, hs) if cfg.tridiagonal else []

    def tangents(directions):
        z, cache = forward(params, x[part_of_batch(x.shape[0], cfg.model_share, state.step), ...], cfg.acts)
        return z, [jvp(params, cache, D) for D in directions]

    problem = Problem(loss, loss.value(z, y), grads, value, statistics, tangents)
    return adaptive_update(params, state, problem, cfg)


class Problem(NamedTuple):
    """What a step asks of a network and a batch; weights are lists of arrays (q, p).

    Attributes
    ----------
    loss : Likelihood
        Of the outputs.
    before : array, shape ()
        Loss, without the penalty of the weights.
    grads : list of array
        Its gradients.
    value : callable
        ``weights -> array, shape ()``: loss of the same batch at other weights.
    statistics : callable
        ``() -> (factors, neighbours)``: the factors (A, G) of every layer for targets drawn from the model, from a part
        of the batch, and for the block-tridiagonal inverse those of neighbouring layers.
    tangents : callable
        ``directions -> (z, changes)``: outputs for a part of the batch, and their derivative along each direction.
    """

    loss: Any
    before: Any
    grads: list[Any]
    value: Any
    statistics: Any
    tangents: Any


def adaptive_update(params, state, problem, cfg):
    """Take one step of `adaptive_step` for any network; returns what that returns."""
    step = state.step + 1
    w1, w2 = (19 / 20) ** cfg.lam_every, (19 / 20) ** (cfg.gamma_every / 2)
    lam = cfg.lam0 if state.lam is None else state.lam
    gamma = math.sqrt(lam + cfg.eta) if state.gamma is None else state.gamma

    before = problem.before + _penalty(params, cfg.eta)
    grads = [g + cfg.eta * W for g, W in zip(problem.grads, params, strict=True)]
    factors, off = problem.statistics()
    state = _with_statistics(state, factors, off, cfg, step)
    search = GammaSearch(gamma, w2, cfg.gamma_every)
    candidates = search.candidates(step)
    due = step <= 3 or step % cfg.inverse_every == 0
    tried = [
        _candidate(state, grads, problem, lam, value, cfg, due or value != gamma or state.inverse is None)
        for value in candidates
    ]
    gamma = search.choose(candidates, [value for _, value, _, _ in tried])
    delta, value, coef, inverse = tried[candidates.index(gamma)]

    moved = [W + s for W, s in zip(params, delta, strict=True)]
    ratio = None
    if step % cfg.lam_every == 0 or cfg.reject:
        after = problem.value(moved) + _penalty(moved, cfg.eta)
        predicted = float(value)
        ratio = float(after - before) / predicted if predicted else math.nan
    damping = LevenbergMarquardt(lam, w1)
    if step % cfg.lam_every == 0:
        damping.update(ratio)
    if cfg.reject and not ratio >= 0:  # the model falls: a negative ratio is a loss that rose
        moved, delta, damping.lam = list(params), None, lam / w1
    share = min(1 - 1 / step, cfg.averaging)
    average = moved if state.average is None else [
        share * old + (1 - share) * W for old, W in zip(state.average, moved, strict=True)
    ]  # fmt: skip
    info = {"loss": before, "model": value, "coef": coef, "lam": damping.lam, "gamma": gamma, "ratio": ratio}
    after = state._replace(step=step, lam=damping.lam, gamma=gamma, last=delta, average=average, inverse=inverse)
    return moved, after, info


def _penalty(params, eta):
    return sum(array_namespace(W).sum(W * W) for W in params) * eta / 2


def part_of_batch(total, share, step):
    """Return the rows of a batch that a step looks at: another part each time."""
    count = max(round(share * total), 1)
    start = (step * count) % max(total - count + 1, 1)
    return slice(start, start + count)


def neighbour_factors(inputs, hs):
    """Return ``E[a_i a_{i+1}^T]`` and ``E[g_i g_{i+1}^T]`` of neighbouring layers; the loss is a mean over rows."""
    count = inputs[0].shape[0]
    return [
        (a.T @ b / count, g.T @ h * count)
        for a, b, g, h in zip(inputs[:-1], inputs[1:], hs[:-1], hs[1:], strict=True)
    ]  # fmt: skip


def _with_statistics(state, factors, off, cfg, step):
    """Return the state with the statistics of a batch, and new inverses where they are due."""
    layers = state.layers or tuple(LayerState() for _ in factors)
    layers = tuple(layer.add_factors(A, G, cfg.layer) for layer, (A, G) in zip(layers, factors, strict=True))
    if not cfg.tridiagonal:
        return _refreshed(state._replace(layers=layers), cfg, step)
    share = 1 - min(1 - 1 / step, cfg.layer.rho)
    old = state.neighbours or off
    neighbours = tuple(
        (A + share * (new_A - A), G + share * (new_G - G)) for (A, G), (new_A, new_G) in zip(old, off, strict=True)
    )
    return state._replace(layers=layers, neighbours=neighbours)


def _refreshed(state, cfg, step):
    unknown = any(layer.A_inv is None for layer in state.layers)
    if not (step <= 3 or step % cfg.inverse_every == 0 or unknown):
        return state
    rngs = [np.random.SeedSequence([cfg.seed, step, i]) for i in range(len(state.layers))]
    return state._replace(layers=represent_layers(state.layers, [cfg.layer] * len(rngs), rngs))


def _candidate(state, grads, problem, lam, gamma, cfg, fresh):
    """Return the step for one damping of the factors, the value of the model, and the coefficients."""
    inverse = state.inverse
    if cfg.tridiagonal:
        if fresh:
            A, G = ([getattr(layer, side).matrix for layer in state.layers] for side in ("A", "G"))
            off_A, off_G = ([pair[i] for pair in state.neighbours] for i in (0, 1))
            inverse = BlockTridiagonal(A, off_A, G, off_G, lam=gamma**2)
        directions = [-V for V in inverse.solve(grads)]
    else:
        if fresh:
            count = len(state.layers)
            layers = damp_layers(state.layers, [cfg.layer] * count, [gamma**2] * count, before=state.layers)
            inverse = [layer.damped for layer in layers]
        directions = [-precondition(g, *damped) for g, damped in zip(grads, inverse, strict=True)]
    spanned = [directions] if state.last is None or not cfg.momentum else [directions, state.last]
    coef, value = _model(spanned, grads, problem, lam + cfg.eta)
    xp = array_namespace(grads[0])
    coef = xp.astype(coef, grads[0].dtype)
    step = [sum(coef[i] * D[j] for i, D in enumerate(spanned)) for j in range(len(grads))]
    return step, value, coef, inverse


def _model(directions, grads, problem, damping):
    """Minimise the quadratic model with the exact Fisher matrix of a part of the batch along the directions."""
    z, changes = problem.tangents(directions)
    xp, count = array_namespace(z), z.shape[0]
    images = [problem.loss.fisher_matmul(z, change) for change in changes]

    def inner(X, Y):
        return sum(xp.sum(V * W) for V, W in zip(X, Y, strict=True))

    K = xp.stack([
        xp.stack([
            xp.sum(change * image) / count + damping * inner(D, E) for image, E in zip(images, directions, strict=True)
        ])
        for change, D in zip(changes, directions, strict=True)
    ])  # fmt: skip
    return solve_quadratic_model(K, xp.stack([inner(grads, D) for D in directions]))
