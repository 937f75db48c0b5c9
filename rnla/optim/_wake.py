"""The step of KLD-WRM for the layers of any network, with what it remembers of the step before."""

import contextlib

import numpy as np
from array_api_compat import array_namespace, device

from rnla.optim._clip import divergence_factor, rms_clip
from rnla.optim._kldwrm import kldwrm_gradient, kldwrm_residual, kldwrm_step

VARIANTS = ("kfac", "so", "q", "qe")
RESIDUALS = ("gradient", "exact")
STORED, INNER, INNER_LR, INNER_MOMENTUM, KL_SCALE = 3, 7, 0.1, 0.5, 330.0  # of QE, as published


@np.errstate(all="ignore")
def wake_step(grads, layers, factors, wake, damping, cfg, divergence=None):
    """Compute the update of KLD-WRM for any network.

    Parameters
    ----------
    grads : list of array, shapes (q, p)
        Gradients, with that of the weight decay.
    layers : sequence of LayerState
        Averages, and inverses for the linear model.
    factors : list of (array, array), or None
        Factors of this batch alone, the curvature of the quadratic model.
    wake : tuple
        As in `KFACState`; None for a layer that the step before did not use.
    damping : float
        Of the averages.
    cfg : KFACConfig
        Of which `variant`, `residual`, `q_solver`, `lr`, `layer` and the clips count.
    divergence : callable, optional
        ``steps -> list of array``: gradient of the divergence from the stored networks after steps; for ``qe``.

    Returns
    -------
    updates : list of array
        V of steps ``-lr V``, clipped.
    nu : array, shape (), or 1.0
        Factor of the clipping by the divergence.
    wake : tuple
        For the next step.
    failed : list of int
        Places of the layers for which the quadratic model could not be solved.
    usable : array, shape (), or True
        Whether updates and gradients had a positive product, without which `nu` is 1.
    """
    targets, failed = _wake_gradients(grads, wake, cfg), []
    if cfg.variant == "so":
        factors = None
        updates = [layer.direction(g, cfg.layer, damping) for layer, g in zip(layers, targets, strict=True)]
        updates = [_finite_or(V, g * 0) for V, g in zip(updates, targets, strict=True)]
    else:
        solved = [
            _solved(g, layer, pair, damping, cfg) for g, layer, pair in zip(targets, layers, factors, strict=True)
        ]
        failed = [i for i, (_, used) in enumerate(solved) if used is not factors[i]]
        updates, factors = ([entry[k] for entry in solved] for k in (0, 1))
        if divergence is not None:
            updates = _nearer(updates, grads, factors, divergence, cfg)
    updates, nu, usable = clipped(updates, targets, cfg)
    return updates, nu, _wake(wake, grads, updates, layers, factors, cfg), failed, usable


def _solved(g, layer, factors, damping, cfg):
    """Return the update of the quadratic model for a layer, and the factors of the batch that it was made with.

    Where those are not finite, or too large to be worked with, they are left out: that is the linear model. Where not
    even that has a solution, the layer stays where it is.
    """
    none = tuple(X * 0 for X in _known(layer))
    for pair, wide in ((factors, False), (factors, True), (none, True)):
        update = _attempt(g, layer, pair, wide, damping, cfg)
        if update is not None:
            return update, pair
    return g * 0, none


def _attempt(g, layer, factors, wide, damping, cfg):
    """Return the update of the quadratic model in the precision of the factors or in double, None if that fails."""
    xp = array_namespace(g)
    dtype = xp.float64 if wide else factors[0].dtype
    A_bar, G_bar, A, G = (xp.astype(X, dtype) for X in (*_known(layer), *factors))
    options = {"mode": cfg.layer.damping_mode, "solver": cfg.q_solver}
    with contextlib.suppress(np.linalg.LinAlgError, RuntimeError):
        step = kldwrm_step(xp.astype(g, dtype), A_bar, G_bar, A, G, 1 / cfg.lr, damping, **options)
        update = xp.astype(-step / cfg.lr, g.dtype)
        return update if bool(xp.isfinite(xp.sum(update))) else None
    return None


def _known(layer):
    """Return the averages of a layer; the identity for one that is zero, which says nothing."""
    result = []
    for M in (layer.A.matrix, layer.G.matrix):
        xp = array_namespace(M)
        eye = xp.eye(M.shape[0], dtype=M.dtype, device=device(M))
        result.append(xp.where(xp.linalg.trace(M) > 0, M, eye))
    return result


def _finite_or(X, other):
    """Return an array, or another one where it is not finite."""
    xp = array_namespace(X)
    return xp.where(xp.isfinite(xp.sum(X)), X, other)


def clipped(updates, grads, cfg):
    """Return the updates after both clips, the factor of the one by the divergence, and whether it had one."""
    if cfg.rms_clip is not None:
        updates = [rms_clip(V, cfg.rms_clip) for V in updates]
    if cfg.kl_clip is None:
        return updates, 1.0, True
    nu, usable = divergence_factor(updates, grads, cfg.lr, cfg.kl_clip)
    return [nu * V for V in updates], nu, usable


def _wake_gradients(grads, wake, cfg):
    """Return the gradients of the model, for KLD-WRM; a memory may be None, as at the first step."""
    wake = wake or (None,) * len(grads)
    if cfg.residual == "exact":
        targets = [g if r is None else g + r / cfg.lr for g, r in zip(grads, wake, strict=True)]
    else:
        memories = [(None, None, cfg.lr) if memory is None else memory for memory in wake]
        targets = [
            kldwrm_gradient(g, before, cfg.layer.rho, lr / cfg.lr, Bs)
            for g, (before, Bs, lr) in zip(grads, memories, strict=True)
        ]
    return [_finite_or(target, g) for target, g in zip(targets, grads, strict=True)]


def _wake(wake, grads, updates, layers, factors, cfg):
    """Return what the next step needs to know of this one."""
    steps = [-cfg.lr * V for V in updates]
    if cfg.residual == "exact":
        residuals = wake or (None,) * len(steps)
        return tuple(
            _finite_or(kldwrm_residual(s * 0 if r is None else r, layer.curvature(s), cfg.layer.rho), s * 0)
            for r, layer, s in zip(residuals, layers, steps, strict=True)
        )
    products = [None] * len(steps)
    if factors is not None:
        products = [_finite_or(G @ s @ A, s * 0) for s, (A, G) in zip(steps, factors, strict=True)]
    return tuple((g, Bs, cfg.lr) for g, Bs in zip(grads, products, strict=True))


def _nearer(updates, grads, factors, divergence, cfg):
    """Return updates moved towards the minimum of the model with the exact divergence from stored networks (QE)."""
    steps = [-cfg.lr * V for V in updates]
    buffers, scale = [s * 0 for s in steps], 1 / (2 * cfg.lr * KL_SCALE)
    for _ in range(INNER):
        slopes = [
            g + G @ s @ A + scale * d
            for g, s, (A, G), d in zip(grads, steps, factors, divergence(steps), strict=True)
        ]  # fmt: skip
        if cfg.rms_clip is not None:
            slopes = [rms_clip(slope, cfg.rms_clip) for slope in slopes]
        buffers = [INNER_MOMENTUM * b + slope for b, slope in zip(buffers, slopes, strict=True)]
        steps = [s - INNER_LR * cfg.lr * b for s, b in zip(steps, buffers, strict=True)]
    # Inner steps that diverge lead nowhere: the step of the quadratic model stands.
    return [_finite_or(-s / cfg.lr, V) for s, V in zip(steps, updates, strict=True)]


def memory_weights(count, rho):
    """Return the weights of stored networks, the latest first; they sum to 1."""
    weights = [rho**j for j in range(count)]
    return [w / sum(weights) for w in weights]
