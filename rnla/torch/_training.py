"""One training loop for every optimizer that is compared: loss against time, accuracy after each epoch."""

import contextlib
import math
import time
from typing import NamedTuple

import torch

LOG_EVERY = 5  # steps between points of the curve
LAST_RATE = 0.05  # of the first learning rate, at the end of the cosine


class Run(NamedTuple):
    """What a training run gave.

    Attributes
    ----------
    name : str
        Optimizer.
    seconds, losses : list of float
        Curve of the training loss, each point the mean since the one before.
    epoch_seconds, accuracies : list of float
        Seconds of training until the end of each epoch, and the share of test images recognised then.
    finite : bool
        Whether the loss stayed finite; the run ends where it does not.

    Examples
    --------
    >>> from rnla.torch._training import Run
    >>> Run("SGD", [0.1], [2.3], [1.0], [0.9], True).accuracies
    [0.9]
    """

    name: str
    seconds: list[float]
    losses: list[float]
    epoch_seconds: list[float]
    accuracies: list[float]
    finite: bool


def network(width, inputs, seed):
    """Return a perceptron with two hidden layers of `width` units and ten outputs.

    Parameters
    ----------
    width, inputs : int
        Units of each hidden layer, and of the input.
    seed : int
        Of the first weights.

    Returns
    -------
    torch.nn.Sequential
        In single precision on the CPU.

    Examples
    --------
    >>> from rnla.torch._training import network
    >>> sum(W.numel() for W in network(8, 4, 0).parameters())
    202
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(inputs, width), torch.nn.ReLU(),
            torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, 10),
        )  # fmt: skip


def train(name, model, optimizer, data, *, epochs, batch_size, seed=0, quiet=True):
    """Train a classifier with cross-entropy and a cosine schedule, and say how it went.

    Parameters
    ----------
    name : str
        For the progress bar and the result.
    model : torch.nn.Module
        Gives the logits of a batch.
    optimizer : torch.optim.Optimizer
        Of the parameters of `model`.
    data : tuple of (Tensor, Tensor, Tensor, Tensor)
        Inputs and labels for training and for the test, on the device of `model`.
    epochs, batch_size : int
        An incomplete last batch is left out.
    seed : int
        Of the order of the examples.
    quiet : bool
        Show no progress bar.

    Returns
    -------
    Run
        Curves of loss and accuracy.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch._training import network, train
    >>> x, y = torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8)
    >>> model = network(16, 4, 0)
    >>> run = train("SGD", model, torch.optim.SGD(model.parameters(), lr=0.5), (x, y, x, y), epochs=20, batch_size=16)
    >>> run.accuracies[-1]
    1.0
    """
    x, y, x_test, y_test = data
    steps = len(x) // batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * k / (epochs * steps))) / 2
    )
    order = torch.Generator().manual_seed(seed)
    run, spent = Run(name, [], [], [], [], True), 0.0
    with _bar(name, epochs * steps, quiet) as bar:
        for _ in range(epochs):
            model.train()
            permutation = torch.randperm(len(x), generator=order).to(x.device)
            started, pending = time.perf_counter(), []
            for k in range(steps):
                rows = permutation[k * batch_size : (k + 1) * batch_size]
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
                schedule.step()
                pending.append(loss.detach())
                if len(pending) == LOG_EVERY or k == steps - 1:  # the only place that waits for an accelerator
                    run.losses.append(float(torch.stack(pending).mean()))
                    run.seconds.append(spent + time.perf_counter() - started)
                    bar.update(len(pending))
                    pending = []
                    if not math.isfinite(run.losses[-1]):
                        return run._replace(finite=False)
            spent += time.perf_counter() - started
            run.epoch_seconds.append(spent)
            run.accuracies.append(accuracy(model, x_test, y_test))
            bar.set_postfix(accuracy=f"{run.accuracies[-1]:.4f}")
    return run


def accuracy(model, x, y, batch_size=1000):
    """Compute the share of examples that a classifier recognises.

    Parameters
    ----------
    model : torch.nn.Module
        Gives the logits of a batch.
    x, y : Tensor
        Inputs and labels.
    batch_size : int
        Examples at a time.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> import torch
    >>> from rnla.torch._training import accuracy
    >>> accuracy(torch.nn.Identity(), torch.eye(3), torch.tensor([0, 1, 1]))
    0.6666666666666666
    """
    model.eval()
    with torch.no_grad():
        hits = sum(
            int((model(part).argmax(dim=1) == labels).sum())
            for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)
        )
    return hits / len(x)


def table(runs):
    """Sum up training runs, one row each.

    Parameters
    ----------
    runs : list of Run
        The accuracy that the first one reaches at its end is the target of the others.

    Returns
    -------
    list of dict
        Seconds of an epoch, last loss, last and best accuracy in percent, and seconds until the target at the end of
        an epoch, None where it was not reached.

    Examples
    --------
    >>> from rnla.torch._training import Run, table
    >>> runs = [Run("SGD", [], [0.3], [1.0, 2.0], [0.8, 0.9], True), Run("Adam", [], [0.2], [3.0], [0.95], True)]
    >>> [row["seconds to target"] for row in table(runs)]
    [2.0, 3.0]
    """
    target = runs[0].accuracies[-1] if runs and runs[0].accuracies else math.inf
    rows = []
    for run in runs:
        reached = [t for t, share in zip(run.epoch_seconds, run.accuracies, strict=True) if share >= target]
        rows.append({
            "optimizer": run.name,
            "seconds per epoch": run.epoch_seconds[-1] / len(run.epoch_seconds) if run.epoch_seconds else None,
            "last loss": run.losses[-1] if run.losses else None,
            "test accuracy %": 100 * run.accuracies[-1] if run.finite and run.accuracies else None,
            "best %": 100 * max(run.accuracies) if run.accuracies else None,
            "seconds to target": reached[0] if reached else None,
        })  # fmt: skip
    return rows


class _Silent:
    """Stands in for a progress bar."""

    def update(self, count):
        pass

    def set_postfix(self, **values):
        pass


def _bar(name, total, quiet):
    if quiet:
        return contextlib.nullcontext(_Silent())
    from tqdm import tqdm

    return tqdm(desc=f"{name:8}", total=total, unit="step")
