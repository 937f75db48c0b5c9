"""Small networks for the optimizers on PyTorch, with data, and loops that train them."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from rnla.torch._collect import Collector


def network(dtype=torch.float32, sizes=(10, 20, 20, 4)):
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Linear(p, q), nn.Tanh()) for p, q in itertools.pairwise(sizes)]
    layers[-1] = layers[-1][0]
    return nn.Sequential(*layers).to(dtype)


def batch(n=64, dtype=torch.float32, d=10):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(2)).to(dtype)
    return x, (x[:, :4] + x[:, 4:8] ** 2).argmax(dim=1)


def train(model, opt, steps, data=None, loss=F.cross_entropy):
    x, y = data or batch(dtype=next(model.parameters()).dtype)
    losses = []
    for _ in range(steps):
        opt.zero_grad()
        value = loss(model(x), y)
        value.backward()
        opt.step()
        losses.append(value.item())
    return losses


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def states(opt):
    return {name: curvature.state for name, curvature in opt._engine.curvatures.items()}


def statistics(model, x, loss, keep=True, **options):
    """Statistics of all blocks after one pass."""
    collector = Collector(model, **options)
    collector.arm(keep=dict.fromkeys(collector.blocks, ("rows", True)) if keep else None)
    model.zero_grad()
    loss(model(x)).backward()
    return collector, collector.take()
