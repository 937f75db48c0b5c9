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
    return Optimizer(
        lambda model, lr=0.1, **intervals: getattr(rnla.torch, name)(model, lr=lr, **(options | intervals))
    )


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
    "SGD": Optimizer(lambda model, lr=0.05, **_: torch.optim.SGD(model.parameters(), lr=lr)),
    "SGD, momentum": Optimizer(lambda model, lr=0.05, **_: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)),
    "Adam": Optimizer(lambda model, lr=1e-3, **_: torch.optim.Adam(model.parameters(), lr=lr)),
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


# Other first learning rates that are tried, so that the best of each can be compared.
RATES = {
    "SGD, momentum": (0.02, 0.1, 0.2, 0.4),
    "Adam": (5e-4, 2e-3, 4e-3, 8e-3),
    "NysKFAC": (0.05, 0.2, 0.3),
}  # fmt: skip


def with_rates(optimizers):
    """Return some optimizers, and again with other learning rates: names without and with ``, lr=``."""
    others = {
        f"{name}, lr={lr:g}": optimizers[name]._replace(make=functools.partial(optimizers[name].make, lr=lr))
        for name, rates in RATES.items() if name in optimizers
        for lr in rates
    }  # fmt: skip
    return optimizers | others


def available(names):
    """Return the optimizers of these names that can be made; say which cannot."""
    missing = [name for name in names if not OPTIMIZERS[name].installed]
    for name in missing:
        package = OPTIMIZERS[name].package.replace("_", "-")
        print(f"{name} is left out: pip install {package}")
    return {name: OPTIMIZERS[name] for name in names if name not in missing}
