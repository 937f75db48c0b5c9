"""Kronecker factors for the benchmarks of the optimizers: of a network on MNIST, or made with the same spectrum."""

import functools
from typing import NamedTuple

import numpy as np
import torch

from rnla.optim import FactorStats, input_factor, likelihood, mlp, output_factor
from rnla.torch._mnist import load_mnist

BATCH, RHO, STEPS, GAP = 256, 0.95, 100, 25
ACTS = ("relu", "relu", "linear")
LAYER = 1  # of the hidden layer, from w units to w units


class Factors(NamedTuple):
    """Averaged factors of the hidden layer, those of `GAP` steps before, and a gradient of the present network."""

    A: torch.Tensor
    G: torch.Tensor
    A_before: torch.Tensor
    G_before: torch.Tensor
    gradient: torch.Tensor
    alphas: tuple[float, float]  # largest eigenvalue over the largest squared norm of a term, of A and of G


def factors(data, width):
    """Return the factors for a hidden layer of `width` units, made up if `data` is None."""
    return synthetic(width) if data is None else trained(str(data), width)


@functools.cache
def trained(data, width):
    """Train 784-w-w-10 by SGD with momentum for 100 batches, and average the factors of every batch."""
    images, labels = mnist(data)
    loss = likelihood("softmax")
    params = mlp.init([images.shape[1], width, width, 10], 0, xp=torch, dtype=torch.float32)
    buffers = [torch.zeros_like(W) for W in params]
    order = np.random.default_rng(0)
    A, G, before, norms = FactorStats(), FactorStats(), (), [0.0, 0.0]
    for step in range(STEPS):
        rows = torch.from_numpy(order.choice(len(images), BATCH, replace=False))
        z, cache = mlp.forward(params, images[rows], ACTS)
        grads, hs = mlp.backward(params, cache, loss.dz(z, labels[rows]))
        new_A, new_G = input_factor(cache.inputs[LAYER]), output_factor(hs[LAYER], terms=BATCH)
        norms = [max(old, largest(new)) for old, new in zip(norms, (new_A, new_G), strict=True)]
        A, G = A.update(new_A, RHO), G.update(new_G, RHO)
        if step == STEPS - 1 - GAP:
            before = A.matrix, G.matrix
        buffers = [0.9 * b + g for b, g in zip(buffers, grads, strict=True)]
        params = [W - 0.05 * b for W, b in zip(params, buffers, strict=True)]
    alphas = tuple(largest(M.matrix) / norm for M, norm in zip((A, G), norms, strict=True))
    return Factors(A.matrix, G.matrix, *before, grads[LAYER], alphas)


@functools.cache
def synthetic(width):
    """Average samples of a covariance with the eigenvalues that networks on MNIST show: about 3.7 i^-1.4."""
    rng = np.random.default_rng(0)
    d = np.arange(1, width + 1)
    roots = np.sqrt(np.minimum(1.0, 3.7 * d**-1.41))
    sides, before, alphas = [], [], []
    for _ in range(2):
        Q = torch.from_numpy(np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32))
        root = Q * torch.from_numpy(roots.astype(np.float32))
        stats, norm = FactorStats(), 0.0
        for step in range(STEPS):
            X = torch.from_numpy(rng.standard_normal((BATCH, width)).astype(np.float32)) @ root.T
            new = input_factor(X)
            norm = max(norm, largest(new))
            stats = stats.update(new, RHO)
            if step == STEPS - 1 - GAP:
                before.append(stats.matrix)
        sides.append(stats.matrix)
        alphas.append(largest(stats.matrix) / norm)
    gradient = torch.from_numpy(rng.standard_normal((width, width)).astype(np.float32))
    gradient = sides[1] @ gradient @ sides[0]  # as gradients do, it lies where the factors are large
    return Factors(*sides, *before, gradient, tuple(alphas))


@functools.cache
def mnist(data, count=None):
    """Return normalised images and labels as tensors."""
    digits = load_mnist(data, "bench")
    return torch.from_numpy(digits.x_train[:count]), torch.from_numpy(digits.y_train[:count])


def largest(M):
    """Return the largest eigenvalue to about 1e-3, by 20 products."""
    v = torch.ones(len(M), 1)
    for _ in range(20):
        v = M @ v
        v = v / (v.norm() + 1e-30)
    return float((v.T @ M @ v)[0, 0])
