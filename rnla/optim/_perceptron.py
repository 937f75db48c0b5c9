"""Multilayer perceptron on plain arrays: forward, backward and tangent passes."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from rnla._backend import key_from_rng
from rnla._rangefinder import check_choice
from rnla.optim._checks import check_shape, real_arrays
from rnla.optim._kfac_layer import with_one

ACTIVATIONS = ("linear", "relu", "tanh", "logistic")
SPARSE_INPUTS = 15  # of each unit, in the sparse initialisation


class Pass(NamedTuple):
    """What a forward pass leaves for the backward one.

    Attributes
    ----------
    inputs : list of array, shapes (N, p)
        Input of each layer, with the 1 of the bias.
    outputs : list of array, shapes (N, q)
        Output of each layer, after its activation.
    acts : tuple of str
        Activations.

    Examples
    --------
    >>> z, cache = rnla.optim.mlp.forward([np.ones((1, 3))], np.ones((4, 2)), ("linear",))
    >>> cache.inputs[0].shape
    (4, 3)
    """

    inputs: list[Any]
    outputs: list[Any]
    acts: tuple[str, ...]


def init(sizes, rng, kind="glorot", xp=np, dtype=None, device=None):
    """Draw the weights of a perceptron; biases are zero.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of units, from the inputs to the outputs.
    rng : None, int or numpy.random.Generator
        Source of the weights.
    kind : {"glorot", "sparse"}
        ``glorot``: uniform with variance ``2 / (p + q)``. ``sparse``: 15 normal weights for each unit, the others zero
        (Martens 2010).
    xp : namespace
        Library of the arrays.
    dtype, device : object, optional
        In the words of `xp`; double precision by default.

    Returns
    -------
    list of array, shapes (sizes[i + 1], sizes[i] + 1)
        Weights, the bias as last column.

    Raises
    ------
    ValueError
        If `kind` is not one of the above.

    Examples
    --------
    >>> [W.shape for W in rnla.optim.mlp.init([4, 3, 2], 0)]
    [(3, 5), (2, 4)]
    """
    caller = "rnla.optim.mlp.init"
    check_choice(kind, "kind", ("glorot", "sparse"), caller)
    generator = np.random.default_rng(key_from_rng(rng, caller))
    weights = []
    for d, q in pairwise(sizes):
        W = np.zeros((q, d + 1))
        if kind == "glorot":
            W[:, :d] = generator.uniform(-1, 1, (q, d)) * (6 / (d + q)) ** 0.5
        else:
            count = min(SPARSE_INPUTS, d)
            for row in W:
                row[generator.choice(d, count, replace=False)] = generator.standard_normal(count)
        weights.append(xp.asarray(W, dtype=dtype or xp.float64, device=device))
    return weights


def forward(params, x, acts):
    """Compute the outputs of a perceptron.

    Parameters
    ----------
    params : list of array, shapes (q, p)
        Weights; a layer has a bias if p is one more than the width of its input.
    x : array, shape (N, d) or (N, R, d)
        Inputs; at R positions the same network is used.
    acts : sequence of {"linear", "relu", "tanh", "logistic"}
        Activation of each layer.

    Returns
    -------
    z : array, shape (N, c) or (N, R, c)
        Outputs.
    cache : Pass
        For `backward` and `jvp`.

    Raises
    ------
    ValueError
        If there is not one activation for each layer, or shapes do not fit.
    TypeError
        If `x` is no array.

    Examples
    --------
    >>> rnla.optim.mlp.forward([np.array([[1.0, 2.0]])], np.array([[3.0]]), ("linear",))[0].tolist()
    [[5.0]]
    """
    caller = "rnla.optim.mlp.forward"
    real_arrays(caller, x=x)
    if len(acts) != len(params):
        raise ValueError(f"{caller}: acts must have one entry for each of {len(params)} layers; got {len(acts)}.")
    inputs, outputs = [], []
    for i, (W, act) in enumerate(zip(params, acts, strict=True)):
        check_choice(act, f"acts[{i}]", ACTIVATIONS, caller)
        if W.shape[1] == x.shape[-1] + 1:
            x = with_one(x)
        check_shape(x, (*x.shape[:-1], W.shape[1]), f"the input of layer {i}", caller)
        inputs.append(x)
        x = _activated(x @ W.T, act)
        outputs.append(x)
    return x, Pass(inputs, outputs, tuple(acts))


def backward(params, cache, dz):
    """Compute the gradients of a perceptron, and the derivatives at the output of each layer.

    Parameters
    ----------
    params : list of array, shapes (q, p)
        Weights.
    cache : Pass
        From `forward`.
    dz : array, shape (N, c) or (N, R, c)
        Derivative of the loss with respect to the outputs of the network.

    Returns
    -------
    grads : list of array, shapes (q, p)
        Gradients of the weights.
    hs : list of array, shapes (N, q)
        Derivatives with respect to the output of each layer before its activation.

    Raises
    ------
    ValueError
        If `dz` has not the shape of the outputs.

    Examples
    --------
    >>> params, x = [np.array([[1.0, 2.0]])], np.array([[3.0]])
    >>> z, cache = rnla.optim.mlp.forward(params, x, ("linear",))
    >>> rnla.optim.mlp.backward(params, cache, np.array([[1.0]]))[0][0].tolist()
    [[3.0, 1.0]]
    """
    check_shape(dz, cache.outputs[-1].shape, "dz", "rnla.optim.mlp.backward")
    grads, hs = [], []
    for i in range(len(params) - 1, -1, -1):
        h = dz * _slope(cache.outputs[i], cache.acts[i])
        grads.append(_rows(h).T @ _rows(cache.inputs[i]))
        hs.append(h)
        if i:
            dz = h @ params[i][:, : cache.outputs[i - 1].shape[-1]]
    return grads[::-1], hs[::-1]


def jvp(params, cache, direction):
    """Compute the derivative of the outputs of a perceptron along a change of its weights.

    Parameters
    ----------
    params : list of array, shapes (q, p)
        Weights.
    cache : Pass
        From `forward`.
    direction : list of array, shapes (q, p)
        Change of the weights.

    Returns
    -------
    array, shape (N, c) or (N, R, c)
        Change of the outputs, to first order.

    Raises
    ------
    ValueError
        If there is not one change for each layer.

    Examples
    --------
    >>> params, x = [np.array([[1.0, 2.0]])], np.array([[3.0]])
    >>> cache = rnla.optim.mlp.forward(params, x, ("linear",))[1]
    >>> rnla.optim.mlp.jvp(params, cache, [np.array([[1.0, 1.0]])]).tolist()
    [[4.0]]
    """
    if len(direction) != len(params):
        raise ValueError(
            f"rnla.optim.mlp.jvp: direction must have one entry for each of {len(params)} layers; got {len(direction)}."
        )
    change = None
    for i, (W, V) in enumerate(zip(params, direction, strict=True)):
        s = cache.inputs[i] @ V.T
        if change is not None:
            s = s + change @ W[:, : change.shape[-1]].T
        change = s * _slope(cache.outputs[i], cache.acts[i])
    return change


def _activated(s, act):
    xp = array_namespace(s)
    if act == "relu":
        return xp.clip(s, min=0.0)
    if act == "tanh":
        return xp.tanh(s)
    return (1 + xp.tanh(s / 2)) / 2 if act == "logistic" else s


def _slope(y, act):
    """Return the derivative of the activation, from its value."""
    xp = array_namespace(y)
    if act == "relu":
        return xp.astype(y > 0, y.dtype)
    if act == "tanh":
        return 1 - y * y
    return y * (1 - y) if act == "logistic" else xp.ones_like(y)


def _rows(X):
    return array_namespace(X).reshape(X, (-1, X.shape[-1]))
