"""A deep autoencoder by K-FAC that tunes itself, and KLD-WRM on MNIST."""

import itertools
import statistics
import time

import numpy as np
import torch

import rnla.torch
from bench.harness import number
from rnla.optim import mlp
from rnla.torch._mnist import load_digits, load_mnist
from rnla.torch._training import accuracy

SIZES = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
# Squared errors of an image of the training data in the prototype, by the number of iterations.
PROTOTYPE_ERRORS = {
    "AdaptiveKFAC": {100: 13.4, 150: 8.7, 200: 6.7, 250: 5.0},
    "without momentum": {150: 15.3, 200: 9.9, 250: 6.6},
    "block-tridiagonal": {100: 12.6, 150: 7.8},
    "Adam": {100: 24.2, 200: 16.1, 500: 9.0, 1200: 5.4},
    "Nesterov": {300: 26.2, 500: 18.9},
}
CODERS = {
    "AdaptiveKFAC": lambda model: rnla.torch.AdaptiveKFAC(model, likelihood="logistic", rng=0),
    "without momentum": lambda model: rnla.torch.AdaptiveKFAC(model, likelihood="logistic", momentum=False, rng=0),
    "block-tridiagonal": lambda model: rnla.torch.AdaptiveKFAC(model, likelihood="logistic", tridiagonal=True, rng=0),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "Nesterov": lambda model: torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9, nesterov=True),
}
# Mean of epochs 4-8, seed 0, in the prototype, by variant and learning rate.
PROTOTYPE_WAKE = {
    ("K-FAC", 0.01): 97.1, ("SO", 0.01): 96.5, ("Q", 0.01): 95.9, ("K-FAC", 0.015): 95.8, ("SO", 0.015): 96.6,
    ("K-FAC", 0.02): 95.4, ("Q", 0.02): 96.8,
}  # fmt: skip
VARIANTS = {"K-FAC": 0.95, "SO": 0.33, "Q": 0.5, "QE": 0.5}  # and their decay rates


def table_autoencoder(options):
    """Error of a deep autoencoder against iterations and time (4)."""
    sizes, milestones, batch = SIZES, PROTOTYPE_ERRORS, 1000
    if options.quick:
        sizes, batch = (64, 30, 10, 30, 64), 200
        milestones = {name: {10: None, 20: None} for name in PROTOTYPE_ERRORS}
    if options.data is None:
        x = torch.from_numpy(load_digits().x_train)
    else:
        x = torch.from_numpy(load_mnist(options.data, "bench").x_train[:20_000])
    x = (x - x.min()) / (x.max() - x.min())  # brightness in [0, 1]
    sizes = (x.shape[1], *sizes[1:-1], x.shape[1])
    rows = []
    for name, make in CODERS.items():
        model = autoencoder(sizes)
        rows += _errors(name, model, make(model), x, batch, milestones[name])
    last = {row["optimizer"]: row for row in rows}
    seconds = last["Adam"]["seconds"] / last["Adam"]["iterations"]
    for row in rows:
        row["over_adam"] = row["seconds"] / row["iterations"] / seconds
    return "autoencoder", rows, {
        "optimizer": lambda row: row["optimizer"], "iterations": lambda row: str(row["iterations"]),
        "error of an image": lambda row: number(row["error"], ".2f"),
        "prototype": lambda row: number(row["prototype"], ".1f"), "s": lambda row: number(row["seconds"], ".1f"),
        "iteration over Adam's": lambda row: number(row["over_adam"], ".2f"),
    }  # fmt: skip


def autoencoder(sizes):
    """Return a chain of linear layers with tanh between, a linear code, and 15 incoming weights for each unit."""
    weights = mlp.init(sizes, 0, kind="sparse")
    parts = []
    for i, (d, q) in enumerate(itertools.pairwise(sizes)):
        layer = torch.nn.Linear(d, q)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(0.5 * weights[i][:, :-1]))
            layer.bias.zero_()
        parts.append(layer)
        if i not in (len(sizes) // 2 - 1, len(sizes) - 2):  # the code and the logits are linear
            parts.append(torch.nn.Tanh())
    return torch.nn.Sequential(*parts)


def _errors(name, model, optimizer, x, batch, milestones):
    """Train, and return a row for each number of iterations that is asked for."""
    rng, rows, spent = torch.Generator().manual_seed(0), [], 0.0

    def loss_of(part):
        z = model(part)
        return torch.nn.functional.binary_cross_entropy_with_logits(z, part, reduction="sum") / len(part), z

    for k in range(1, max(milestones) + 1):
        part = x[torch.randperm(len(x), generator=rng)[:batch]]
        start = time.perf_counter()
        if isinstance(optimizer, rnla.torch.AdaptiveKFAC):
            optimizer.step(lambda part=part: loss_of(part))
        else:
            optimizer.zero_grad()
            loss_of(part)[0].backward()
            optimizer.step()
        spent += time.perf_counter() - start
        if k in milestones:
            with torch.no_grad():
                error = sum(float(((torch.sigmoid(model(X)) - X) ** 2).sum()) for X in x.split(1000)) / len(x)
            rows.append({
                "optimizer": name, "iterations": k, "error": error, "seconds": spent, "prototype": milestones[k],
            })  # fmt: skip
    return rows


def table_wake(options):
    """Train the published network on MNIST by K-FAC and KLD-WRM for a grid of learning rates (5)."""
    if options.data is None:
        digits = load_digits()
        side, epochs, rates, seeds, batch = 8, 2, (0.05,), 1, 128
    else:
        digits = load_mnist(options.data, "bench")
        count = 1000 if options.quick else options.images
        digits = digits._replace(x_train=digits.x_train[:count], y_train=digits.y_train[:count])
        side, epochs, batch = 28, 2 if options.quick else options.epochs, 512
        rates, seeds = ((0.01,), 1) if options.quick else ((0.01, 0.015, 0.02), min(options.seeds, 2))
    names = [name for name in VARIANTS if name != "QE" or options.exact or options.quick]
    x, y, x_test, y_test = (torch.from_numpy(np.ascontiguousarray(X)) for X in digits[:4])
    x, x_test = (X.reshape(-1, 1, side, side) for X in (x, x_test))
    raw = x_test * 0.3081 + 0.1307  # as the published logs have tested
    rows = []
    for name in names:
        for lr in rates:
            runs = [_wake_run(name, lr, seed, (x, y), [(x_test, y_test), (raw, y_test)], epochs, batch)
                    for seed in range(seeds)]  # fmt: skip
            rows.append({
                "method": name, "lr": lr, "seeds": seeds, "seconds": statistics.median(run[2] for run in runs),
                "best": [max(run[0]) for run in runs], "late": [statistics.mean(run[0][epochs // 2 :]) for run in runs],
                "raw": [max(run[1]) for run in runs], "last": [statistics.mean(run[0][-10:]) for run in runs],
                "prototype": None if options.quick else PROTOTYPE_WAKE.get((name, lr)),
            })  # fmt: skip

    def listed(key):
        return lambda row: " / ".join(f"{100 * value:.2f}" for value in row[key])

    return "wake", rows, {
        "method": lambda row: row["method"], "lr": lambda row: str(row["lr"]),
        "best %, by seed": listed("best"), "mean of the second half": listed("late"),
        "mean of the last 10 epochs": listed("last"), "best, test images not normalised": listed("raw"),
        "prototype (epochs 4-8)": lambda row: number(row["prototype"], ".1f"),
        "s an epoch": lambda row: number(row["seconds"], ".1f"),
    }  # fmt: skip


def small_network(side, seed):
    """Return the published network of 4712 parameters, for images of 28 pixels or a smaller side."""
    kernel = 5 if side == 28 else 3
    left = ((side - kernel + 1) // 2 - kernel + 1) // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 5, kernel), torch.nn.MaxPool2d(2), torch.nn.ReLU(),
            torch.nn.Conv2d(5, 7, kernel), torch.nn.MaxPool2d(2 if left else 1), torch.nn.ReLU(),
            torch.nn.Flatten(), torch.nn.Linear(7 * max(left, 1) ** 2, 30), torch.nn.ReLU(),
            torch.nn.Dropout(0.5), torch.nn.Linear(30, 10),
        )  # fmt: skip


def _wake_run(name, lr, seed, data, tests, epochs, batch):
    """Return the accuracies on both forms of the test images after each epoch, and the seconds of an epoch."""
    model, (x, y) = small_network(data[0].shape[-1], seed), data
    common = {
        "lr": lr, "damping": 0.01, "kl_clip": 0.1, "weight_decay": 1e-3, "factor_every": 30, "inverse_every": 30,
        "rho": VARIANTS[name], "rng": seed, "rms_clip": 2.0 if name in ("Q", "QE") else None,
    }  # fmt: skip
    if name == "K-FAC":
        optimizer = rnla.torch.KFAC(model, method="eigh", damping_mode="joint", **common)
    else:
        # The quadratic model cannot have the joint damping that was published.
        mode = {"damping_mode": "joint", "method": "eigh"} if name == "SO" else {"damping_mode": "pi"}
        optimizer = rnla.torch.KLDWRM(model, variant=name.lower(), **mode, **common)
    order, found, spent = torch.Generator().manual_seed(seed), [[] for _ in tests], 0.0
    with torch.random.fork_rng(devices=[]):  # of the dropout
        torch.manual_seed(seed)
        for _ in range(epochs):
            model.train()
            start = time.perf_counter()
            for rows in torch.randperm(len(x), generator=order).split(batch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
            spent += time.perf_counter() - start
            for shares, test in zip(found, tests, strict=True):
                shares.append(accuracy(model, *test))
    return *found, spent / epochs


TABLES = {"autoencoder": table_autoencoder, "wake": table_wake}
