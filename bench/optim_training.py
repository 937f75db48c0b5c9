"""Whole training steps, and training to an accuracy: our optimizers, torch's, and peers, with equal intervals."""

import functools
import statistics
import time

import numpy as np
import torch

from bench.harness import number
from bench.optim_peers import available, with_settings
from rnla.torch._mnist import load_digits, load_mnist
from rnla.torch._training import network, table, train

BATCH, FACTOR_EVERY, INVERSE_EVERY = 256, 10, 50
STEP_NAMES = (
    "SGD", "Adam", "KFAC, inverses", "KFAC, eigh", "KFAC, eigenbases", "RSKFAC", "SREKFAC, r=110", "NysKFAC",
)  # fmt: skip
STEP_PEERS = "SOAP", "SINGD, dense"
# Time of a step at width 1024 over that of plain SGD in the prototype and of other libraries there.
PROTOTYPE_STEP = {
    "SGD": 1.0, "Adam": 1.45, "SREKFAC, r=110": 2.5, "RSKFAC": 3.4, "KFAC, inverses": 4.1, "SINGD, dense": 6.8,
    "KFAC, eigenbases": 8.0, "SOAP": 14.0, "NysKFAC": "goal 2.5",
}  # fmt: skip
TRAIN_NAMES = ("SGD, momentum", "Adam", "KFAC, inverses", "KFAC, eigh", "RSKFAC", "SREKFAC, r=110", "NysKFAC")
# Test accuracies of the prototype after 3 epochs of MNIST and 5 epochs of the images, one seed.
PROTOTYPE_MNIST = {
    "SGD, momentum": 95.5, "Adam": 95.8, "KFAC, eigh": 97.4, "SREKFAC, r=110": 97.3, "RSKFAC": 97.4,
}  # fmt: skip
PROTOTYPE_VGG = {"SGD, momentum": 52, "KFAC, inverses": 61.5, "SREKFAC, r=110": 59.5}


def table_step(options):
    """Time of a training step with its share of statistics and inversions, over that of plain SGD (2)."""
    rows = []
    for width in (32, 64) if options.quick else (512, 1024, 2048):
        # A step of the peers takes seconds at the largest width; the goal is set for the one before.
        optimizers = available(STEP_NAMES if width > 1024 else STEP_NAMES + STEP_PEERS)
        cycles = 1 if options.quick or width > 1024 else 2
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.standard_normal((BATCH, 784)).astype(np.float32))
        y = torch.arange(BATCH) % 10
        contenders = {name: _Steps(optimizer, width, x, y) for name, optimizer in optimizers.items()}
        times = {name: [] for name in contenders}
        for cycle in range(cycles + 1):
            spent = dict.fromkeys(contenders, 0.0)
            for _ in range(INVERSE_EVERY):  # in turns, so that all see the same state of the machine
                for name, steps in contenders.items():
                    spent[name] += steps.seconds()
            for name in contenders if cycle else ():  # the first one warms up
                times[name].append(spent[name])
        base, ours = times["SGD"], times["NysKFAC"]
        for name, values in times.items():
            rows.append({
                "optimizer": name, "width": width, "ms": 1e3 * statistics.median(values) / INVERSE_EVERY,
                "over_sgd": statistics.median(t / b for t, b in zip(values, base, strict=True)),
                "over_nys": statistics.median(t / b for t, b in zip(values, ours, strict=True)),
                "prototype": PROTOTYPE_STEP.get(name) if width == 1024 else None,
            })  # fmt: skip
    return "step", rows, {
        "optimizer": lambda row: row["optimizer"], "width": lambda row: str(row["width"]),
        "ms a step": lambda row: number(row["ms"], ".1f"), "over plain SGD": lambda row: number(row["over_sgd"], ".2f"),
        "over NysKFAC": lambda row: number(row["over_nys"], ".2f"),
        "prototype and others": lambda row: str(row["prototype"] or "-"),
    }  # fmt: skip


class _Steps:
    """One network and its optimizer."""

    def __init__(self, optimizer, width, x, y):
        self.model, self.x, self.y = network(width, x.shape[1], 0), x, y
        self.optimizer = optimizer.make(self.model, factor_every=FACTOR_EVERY, inverse_every=INVERSE_EVERY)

    def seconds(self):
        """Return the seconds of the next step."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        return time.perf_counter() - start


def table_mnist(options):
    """Train 784-512-512-10 on 20,000 images of MNIST for 3 epochs: accuracy, and time to that of SGD (3)."""
    if options.data is None:
        digits, epochs, batch, width = load_digits(), 2, 64, 64
    else:
        digits, epochs, batch, width = load_mnist(options.data, "bench"), 3, BATCH, 512
        count = 2000 if options.quick else 20_000
        digits = digits._replace(x_train=digits.x_train[:count], y_train=digits.y_train[:count])
    data = tuple(torch.from_numpy(np.ascontiguousarray(X)) for X in digits[:4])
    make = functools.partial(network, 64 if options.quick else width, data[0].shape[1])
    return "mnist", _compared(make, data, epochs, batch, options, PROTOTYPE_MNIST), COLUMNS


def table_vgg(options):
    """Train a small VGG on 5,000 images of CIFAR-10 for 5 epochs, compared in the same way (3)."""
    if options.data is None or not options.data.is_file():
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((200, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, 200)
        x[np.arange(200), 0, y, :] += 4.0
        parts, epochs, batch, width = (x[:150], y[:150], x[150:], y[150:]), 2, 50, 4
    else:
        content = np.load(options.data)
        mean, deviation = (np.float32(v).reshape(3, 1, 1) for v in ([0.491, 0.483, 0.446], [0.245, 0.243, 0.261]))
        images = [(content[f"x_{part}"][:n] / np.float32(255) - mean) / deviation for part, n in _SPLIT]
        labels = [content[f"y_{part}"][:n].astype(np.int64) for part, n in _SPLIT]
        parts, epochs, batch, width = (images[0], labels[0], images[1], labels[1]), 5, 125, options.width
    if options.quick:
        parts, epochs, width = tuple(X[:250] for X in parts), 2, 4
    data = tuple(torch.from_numpy(X) for X in parts)
    return "vgg", _compared(functools.partial(vgg, width), data, epochs, batch, options, PROTOTYPE_VGG), COLUMNS


_SPLIT = (("train", 5000), ("test", 1000))


def vgg(width, seed):
    """Return five convolutions, each with batch normalisation and pooling, and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, before = [], 3
        for channels in (width, 2 * width, 4 * width, 4 * width, 8 * width):
            layers += [
                torch.nn.Conv2d(before, channels, 3, padding=1), torch.nn.BatchNorm2d(channels), torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            ]  # fmt: skip
            before = channels
        return torch.nn.Sequential(
            *layers, torch.nn.Flatten(), torch.nn.Linear(before, 32 * width), torch.nn.ReLU(),
            torch.nn.Linear(32 * width, 10),
        )  # fmt: skip


def _compared(make, data, epochs, batch, options, prototype):
    """Train with every optimizer and seed; the target of a seed is what SGD reaches at its end."""
    found, contenders = {}, available(TRAIN_NAMES)
    if prototype is PROTOTYPE_MNIST and not options.quick:  # the other table takes too long for other settings
        contenders = with_settings(contenders)
    for seed in range(1 if options.quick else options.seeds):
        runs = []
        for name, optimizer in contenders.items():
            model = make(seed)
            made = optimizer.make(model, factor_every=FACTOR_EVERY, inverse_every=INVERSE_EVERY)
            runs.append(train(name, model, made, data, epochs=epochs, batch_size=batch, seed=seed))
        for row in table(runs):
            found.setdefault(row["optimizer"], []).append(row)
    rows = []
    for name, seeds in found.items():
        reached = [row["seconds to target"] for row in seeds if row["seconds to target"] is not None]
        accuracies = [row["test accuracy %"] or 0.0 for row in seeds]
        rows.append({
            "optimizer": name, "seconds": statistics.median(row["seconds per epoch"] or np.inf for row in seeds),
            "accuracy": statistics.mean(accuracies), "spread": max(accuracies) - min(accuracies),
            "to_target": statistics.median(reached) if reached else None, "reached": len(reached),
            "seeds": len(seeds), "prototype": None if options.quick else prototype.get(name),
        })  # fmt: skip
    return rows


COLUMNS = {
    "optimizer": lambda row: row["optimizer"],
    "s an epoch": lambda row: number(row["seconds"], ".2f"),
    "test accuracy %": lambda row: number(row["accuracy"], ".2f"),
    "spread": lambda row: number(row["spread"], ".2f"),
    "s to the accuracy of SGD": lambda row: number(row["to_target"], ".2f"),
    "reached": lambda row: f"{row['reached']} of {row['seeds']}",
    "prototype %": lambda row: number(row["prototype"], ".1f"),
}
TABLES = {"step": table_step, "mnist": table_mnist, "vgg": table_vgg}
