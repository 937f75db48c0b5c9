"""Length of a step: clipping by the change of the distribution or by the mean square, grafting, momentum."""

import numpy as np
from array_api_compat import array_namespace

from rnla.optim._checks import at_least_single, real_arrays


def kl_clip(updates, grads, lr, kappa):
    """Compute the factor that bounds the change of the distribution by all updates of a step.

    Parameters
    ----------
    updates, grads : list of array
        Preconditioned gradients of all layers, and the gradients.
    lr : float
        Learning rate.
    kappa : float
        Bound, usually 1e-3.

    Returns
    -------
    array, shape ()
        ``min(1, sqrt(kappa / (lr**2 sum <V, grad>)))``; 1 where the sum is not positive.

    Raises
    ------
    ValueError
        If `updates` is empty, or the lists have different lengths.

    Examples
    --------
    >>> rnla.optim.kl_clip([2 * np.ones((1, 2))], [np.ones((1, 2))], 0.1, 0.01).round(6).item()
    0.5
    """
    if not len(updates) or len(updates) != len(grads):
        raise ValueError(
            f"rnla.optim.kl_clip: updates and grads must be of one length, not 0; got {len(updates)} and {len(grads)}."
        )
    return divergence_factor(updates, grads, lr, kappa)[0]


def divergence_factor(updates, grads, lr, kappa):
    """Return the factor of `kl_clip`, and whether there was anything to compute it from: the sum is positive; 0-d."""
    xp = array_namespace(*updates, *grads)
    product = sum(xp.sum(V * g) for V, g in zip(updates, grads, strict=True))
    total, one = product * lr**2, xp.ones_like(product)
    usable = total > 0  # false for NaN as well
    factor = xp.where(usable, xp.minimum(one, xp.sqrt(kappa / xp.where(usable, total, one))), one)
    return factor, product > 0


def rms_clip(V, c):
    """Scale an update down to a root mean square of at most `c`.

    Parameters
    ----------
    V : array
        Update of one layer.
    c : float
        Largest root mean square of its entries, 0.07 in RS-KFAC.

    Returns
    -------
    array
        ``min(1, c sqrt(size) / ||V||) V``; V itself where it has a NaN or an infinity.

    Raises
    ------
    TypeError
        If `V` is no array.

    Examples
    --------
    >>> rnla.optim.rms_clip(np.array([[3.0, 4.0]]), 0.5**0.5).round(6).tolist()
    [[0.6, 0.8]]
    """
    xp = real_arrays("rnla.optim.rms_clip", V=V)
    factor = _at_most_one(c * _size(V) ** 0.5, _norm(at_least_single(V)))
    return V * (factor if factor.dtype == V.dtype else xp.astype(factor, V.dtype))


def graft(V, reference):
    """Scale an update to the length of the step of another method.

    Parameters
    ----------
    V, reference : array, same shape
        Update of one layer, and the step whose length it gets.

    Returns
    -------
    array
        ``V ||reference|| / ||V||``; `V` itself if it is zero.

    Raises
    ------
    TypeError
        If an argument is no array.

    Examples
    --------
    >>> rnla.optim.graft(np.array([3.0, 4.0]), np.array([0.0, 10.0])).tolist()
    [6.0, 8.0]
    """
    xp = real_arrays("rnla.optim.graft", V=V, reference=reference)
    norm = _norm(V)
    some = norm > 0
    one = xp.ones_like(norm)
    return V * xp.where(some, _norm(reference) / xp.where(some, norm, one), one)


def momentum_step(W, V, buffer, lr, *, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Compute new weights from an update: heavy ball or Nesterov momentum, decoupled weight decay.

    Parameters
    ----------
    W, V : array, same shape
        Weights, and their preconditioned gradient.
    buffer : array, same shape, or None
        Momentum so far.
    lr : float
        Learning rate.
    momentum : float
        Share of the buffer that stays.
    nesterov : bool
        Look ahead by one step of the buffer.
    weight_decay : float
        The weights shrink by ``lr * weight_decay``, outside of preconditioning and momentum.

    Returns
    -------
    W : array
        New weights.
    buffer : array or None
        New momentum.

    Raises
    ------
    TypeError
        If an argument is no array.

    Examples
    --------
    >>> W, buffer = rnla.optim.momentum_step(np.ones(2), np.ones(2), None, 0.5, momentum=0.9)
    >>> rnla.optim.momentum_step(W, np.ones(2), buffer, 0.5, momentum=0.9)[0].round(6).tolist()
    [-0.45, -0.45]
    """
    real_arrays("rnla.optim.momentum_step", W=W, V=V, buffer=buffer)
    if momentum:
        buffer = V if buffer is None else momentum * buffer + V
        V = V + momentum * buffer if nesterov else buffer
    if weight_decay:
        W = W * (1 - lr * weight_decay)
    return W - lr * V, buffer


def _size(V):
    size = 1
    for n in V.shape:
        size *= n
    return size


def _norm(V):
    """Return the Euclidean norm, 0-d, also where the squares of the entries overflow."""
    xp = array_namespace(V)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = xp.linalg.vector_norm(V)
    small = float(xp.finfo(V.dtype).smallest_normal) ** 0.75
    return xp.where(xp.isfinite(norm), norm, xp.linalg.vector_norm(V * small) / small)


def _at_most_one(bound, norm):
    """Return ``min(1, bound / norm)``, 0-d, 1 for a norm that is zero or not finite."""
    xp = array_namespace(norm)
    usable, one = (norm > 0) & xp.isfinite(norm), xp.ones_like(norm)
    return xp.where(usable, xp.minimum(one, bound / xp.where(usable, norm, one)), one)
