"""Losses as negative log-likelihoods of the outputs of a network: value, derivative, samples, Fisher matrix."""

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import key_from_rng
from rnla._rangefinder import check_choice
from rnla.optim._kldwrm import log_softmax


class Likelihood(NamedTuple):
    """A loss, averaged over the examples.

    Attributes
    ----------
    value : callable
        ``(z, y) -> array, shape ()``: mean loss of outputs z (N, c).
    dz : callable
        ``(z, y) -> array, shape (N, c)``: its derivative.
    sample : callable
        ``(z, rng) -> y``: targets drawn from the distribution that z predicts.
    fisher_matmul : callable
        ``(z, v) -> array, shape (N, c)``: Fisher matrix of the outputs of every example times v, not averaged.
    fisher_columns : callable
        ``z -> list of array, shape (N, c)``: columns of a root of it, whose outer products add up to it.

    Examples
    --------
    >>> loss = rnla.optim.likelihood("softmax")
    >>> loss.dz(np.zeros((1, 2)), np.array([1])).tolist()
    [[0.5, -0.5]]
    """

    value: Any
    dz: Any
    sample: Any
    fisher_matmul: Any
    fisher_columns: Any


def likelihood(name):
    """Return a loss with what natural gradients need of it.

    Parameters
    ----------
    name : {"softmax", "logistic", "squared"}
        ``softmax``: integer targets (N,). ``logistic``: targets in [0, 1], shape (N, c), summed over the outputs.
        ``squared``: half the squared distance, a Gaussian of variance 1.

    Returns
    -------
    Likelihood
        Functions of arrays.

    Raises
    ------
    ValueError
        If `name` is not one of the above.

    Examples
    --------
    >>> rnla.optim.likelihood("squared").value(np.array([[3.0]]), np.array([[1.0]])).item()
    2.0
    """
    check_choice(name, "name", tuple(_LIKELIHOODS), "rnla.optim.likelihood")
    return _LIKELIHOODS[name]


def _softmax_value(z, y):
    return -array_namespace(z).mean(_picked(log_softmax(z), y))


def _softmax_dz(z, y):
    xp = array_namespace(z)
    return (xp.exp(log_softmax(z)) - _one_hot(z, y)) / z.shape[0]


def _softmax_sample(z, rng):
    xp = array_namespace(z)
    below = xp.cumulative_sum(xp.exp(log_softmax(z)), axis=-1) < _uniform(z, (z.shape[0], 1), rng)
    return xp.clip(xp.sum(xp.astype(below, xp.int64), axis=-1), max=z.shape[1] - 1)


def _softmax_fisher(z, v):
    xp = array_namespace(z)
    p = xp.exp(log_softmax(z))
    return p * (v - xp.sum(p * v, axis=-1, keepdims=True))


def _softmax_columns(z):
    xp = array_namespace(z)
    log_p = log_softmax(z)
    p, root = xp.exp(log_p), xp.exp(log_p / 2)
    hot = xp.eye(z.shape[1], dtype=z.dtype, device=device(z))
    return [root[:, c : c + 1] * (hot[c : c + 1, :] - p) for c in range(z.shape[1])]


def _logistic_value(z, y):
    xp = array_namespace(z)
    softplus = xp.log1p(xp.exp(-xp.abs(z))) + xp.clip(z, min=0.0)
    return xp.sum(softplus - y * z) / z.shape[0]


def _logistic(z):
    xp = array_namespace(z)
    return (1 + xp.tanh(z / 2)) / 2


def _logistic_dz(z, y):
    return (_logistic(z) - y) / z.shape[0]


def _logistic_sample(z, rng):
    xp = array_namespace(z)
    return xp.astype(_uniform(z, z.shape, rng) < _logistic(z), z.dtype)


def _logistic_fisher(z, v):
    p = _logistic(z)
    return p * (1 - p) * v


def _logistic_columns(z):
    p = _logistic(z)
    return _diagonal_columns((p * (1 - p)) ** 0.5)


def _squared_value(z, y):
    xp = array_namespace(z)
    return xp.sum((z - y) ** 2) / (2 * z.shape[0])


def _squared_dz(z, y):
    return (z - y) / z.shape[0]


def _squared_sample(z, rng):
    noise = np.random.default_rng(key_from_rng(rng, "rnla.optim.likelihood")).standard_normal(z.shape)
    return z + array_namespace(z).asarray(noise, dtype=z.dtype, device=device(z))


def _squared_fisher(z, v):
    return v


def _squared_columns(z):
    return _diagonal_columns(array_namespace(z).ones_like(z))


def _diagonal_columns(roots):
    xp, c = array_namespace(roots), roots.shape[-1]
    hot = xp.eye(c, dtype=roots.dtype, device=device(roots))
    return [roots * hot[i, :] for i in range(c)]


def _one_hot(z, y):
    xp = array_namespace(z)
    return xp.astype(y[:, None] == xp.arange(z.shape[1], dtype=y.dtype, device=device(z)), z.dtype)


def _picked(X, y):
    return array_namespace(X).sum(X * _one_hot(X, y), axis=-1)


def _uniform(z, shape, rng):
    drawn = np.random.default_rng(key_from_rng(rng, "rnla.optim.likelihood")).random(shape)
    return array_namespace(z).asarray(drawn, dtype=z.dtype, device=device(z))


_LIKELIHOODS = {
    "softmax": Likelihood(_softmax_value, _softmax_dz, _softmax_sample, _softmax_fisher, _softmax_columns),
    "logistic": Likelihood(_logistic_value, _logistic_dz, _logistic_sample, _logistic_fisher, _logistic_columns),
    "squared": Likelihood(_squared_value, _squared_dz, _squared_sample, _squared_fisher, _squared_columns),
}
