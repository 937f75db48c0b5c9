"""Optimizers in the comparisons of training: ours, torch's, and two packages where they are installed."""

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch

import rnla.torch


class Optimizer(NamedTuple):
    """How one is made for a model, and what to type where its package is missing."""

    make: Callable
    package: str = ""

    @property
    def installed(self):
        """Whether its package can be imported."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def ours(name, **options):
    """Return the maker of one of our optimizers; the class is looked up when it is used."""
    return Optimizer(lambda model, **others: getattr(rnla.torch, name)(model, **({"lr": 0.1} | options | others)))


def torchs(name, **options):
    """Return the maker of one of torch's optimizers, which has no intervals."""

    def make(model, *, factor_every=10, inverse_every=50, **others):
        return getattr(torch.optim, name)(model.parameters(), **(options | others))

    return Optimizer(make)


def soap(model, *, inverse_every=50, **_):
    """Make SOAP with a basis as rarely refreshed as our inverses."""
    from pytorch_optimizer import SOAP

    return SOAP(model.parameters(), lr=3e-3, precondition_frequency=inverse_every)


def singd(model, *, factor_every=10, **_):
    """Make the dense inverse-free method, whose factors follow every `factor_every` steps."""
    from singd.optim.optimizer import SINGD

    return SINGD(model, lr=0.01, damping=1e-3, T=factor_every)


# The first learning rates of the specification; all fall to a twentieth by a cosine where accuracies are compared.
OPTIMIZERS = {
    "SGD": torchs("SGD", lr=0.05),
    "SGD, momentum": torchs("SGD", lr=0.05, momentum=0.9),
    "Adam": torchs("AdamW", lr=1e-3, weight_decay=0.0),
    "KFAC, inverses": ours("KFAC", method="cholesky"),
    "KFAC, eigh": ours("KFAC", method="eigh"),
    "KFAC, eigenbases": ours("KFAC", method="eigh", damping_mode="joint"),  # applied in every step, as others do
    "RSKFAC": ours("RSKFAC", rng=0),
    "SREKFAC": ours("SREKFAC", rng=0),
    "SREKFAC, r=110": ours("SREKFAC", rng=0, rank=110, tail="trace"),
    "NysKFAC": ours("NysKFAC", rng=0),
    "SOAP": Optimizer(soap, "pytorch_optimizer"),
    "SINGD, dense": Optimizer(singd, "singd"),
}


# Other settings that are tried, so that the best of each can be compared: as many for each.
TUNED = {
    "SGD, momentum": [
        {"lr": lr, "weight_decay": decay} for lr in (0.02, 0.1, 0.2, 0.4) for decay in (0.0, 1e-3)
    ],
    "Adam": [{"lr": lr, "weight_decay": decay} for lr in (2e-3, 4e-3, 6e-3, 8e-3) for decay in (0.0, 0.3)],
    "NysKFAC": [
        {"lr": lr, "damping": 0.03, "weight_decay": 0.1, "rank": rank, "rho": rho}
        for lr in (0.05, 0.06) for rank in (110, 220) for rho in (0.85, 0.95)
    ],
}  # fmt: skip


def with_settings(optimizers):
    """Return some optimizers, and again with other settings, which their names list."""
    others = {
        ", ".join([name, *(f"{key} {value:g}" for key, value in options.items() if value)]): (
            optimizers[name]._replace(make=functools.partial(optimizers[name].make, **options))
        )
        for name, grid in TUNED.items() if name in optimizers
        for options in grid
    }  # fmt: skip
    return optimizers | others


def available(names):
    """Return the optimizers of these names that can be made; say which cannot."""
    missing = [name for name in names if not OPTIMIZERS[name].installed]
    for name in missing:
        package = OPTIMIZERS[name].package.replace("_", "-")
        print(f"{name} is left out: pip install {package}")
    return {name: OPTIMIZERS[name] for name in names if name not in missing}
