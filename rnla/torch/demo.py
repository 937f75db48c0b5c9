"""``python -m rnla.torch.demo mnist``: train one network by SGD, Adam and the K-FAC family, and draw loss against time.

All K-FAC optimizers have the same intervals, all runs the same first weights, batches and schedule of the learning
rate; the time is that of training alone.
"""

import argparse
import csv
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch

from rnla.torch._mnist import Digits, load_digits, load_mnist
from rnla.torch._training import network, table, train

FACTOR_EVERY, INVERSE_EVERY = 10, 50
# Batches of 256 suit sixty thousand images; the small set would have too few steps.
BATCH = {"MNIST": 256, "digits of scikit-learn": 32}


def _kfac(name, **options):
    def make(model):
        import rnla.torch

        intervals = {"factor_every": FACTOR_EVERY, "inverse_every": INVERSE_EVERY}
        return getattr(rnla.torch, name)(model, lr=0.1, **intervals, **options)

    return make


OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "KFAC": _kfac("KFAC"),
    "RSKFAC": _kfac("RSKFAC", rng=0),
    "NysKFAC": _kfac("NysKFAC", rng=0),
}


def main(arguments=None):
    """Run the demonstration.

    Parameters
    ----------
    arguments : list of str, optional
        Command line; that of the process by default.

    Returns
    -------
    int
        0, or 1 where data could not be read or a file could not be written.

    Examples
    --------
    >>> from rnla.torch.demo import main
    >>> main(["mnist", "--data", "no/such/folder", "--quiet"])
    1
    """
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.optimizers if name not in OPTIMIZERS]
    if unknown:
        options.parser.error(f"--optimizers must be among {', '.join(OPTIMIZERS)}; got {', '.join(unknown)}")
    try:
        _check_packages(options)
        options.out.mkdir(parents=True, exist_ok=True)
        digits = load_digits() if options.data is None else load_mnist(options.data)
        if options.images:
            digits = digits._replace(x_train=digits.x_train[: options.images], y_train=digits.y_train[: options.images])
        batch_size = min(options.batch_size or BATCH[digits.name], len(digits.x_train))
        runs = _all_runs(digits, batch_size, options)
        rows = table(runs)
        print(_text(rows))
        _write(options.out / "mnist.csv", _csv(rows))
        _write(options.out / "mnist-curves.csv", _csv(_curve_rows(runs)))
        _write(options.out / "mnist.png", _picture(runs, f"{digits.name}, {len(digits.x_train)} images"))
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"{'' if str(error).startswith('rnla') else 'rnla.torch.demo: '}{error}", file=sys.stderr)
        return 1
    print(f"written: {', '.join(str(options.out / name) for name in ('mnist.png', 'mnist.csv', 'mnist-curves.csv'))}")
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="python -m rnla.torch.demo", description=__doc__)
    parser.add_argument("task", choices=["mnist"], help="what to train")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the four IDX files of MNIST; without it the small "
                        "set of digits that scikit-learn brings")  # fmt: skip
    parser.add_argument("--epochs", type=_positive, default=5, help="passes over the data (default 5)")
    parser.add_argument("--width", type=_positive, default=512, help="units of both hidden layers (default 512)")
    parser.add_argument("--batch-size", type=_positive, help="default 256, or 32 without --data")
    parser.add_argument("--images", type=_positive, help="train on the first so many images only")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    parser.add_argument("--optimizers", type=lambda text: text.split(","), default=list(OPTIMIZERS), metavar="A,B",
                        help=f"which of {','.join(OPTIMIZERS)} (default all)")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where to train (default cpu)")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="for the picture and the tables")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(parser=parser)
    return parser


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {text}")
    return value


def _check_packages(options):
    for name in ("matplotlib",) if options.quiet else ("matplotlib", "tqdm"):
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(f"rnla.torch.demo: needs {name}: pip install 'rnla[torch,viz]'") from error


def _all_runs(digits: Digits, batch_size, options):
    """Train the same network with every optimizer."""
    data = tuple(torch.from_numpy(np.ascontiguousarray(X)).to(options.device) for X in digits[:4])
    runs = []
    for name in options.optimizers:
        model = network(options.width, digits.x_train.shape[1], options.seed).to(options.device)
        optimizer = OPTIMIZERS[name](model)
        runs.append(
            train(name, model, optimizer, data, epochs=options.epochs, batch_size=batch_size, seed=options.seed,
                  quiet=options.quiet)
        )  # fmt: skip
    return runs


def _cell(value):
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"


def _text(rows):
    lines = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _curve_rows(runs):
    return [
        {"optimizer": run.name, "seconds": t, "loss": loss}
        for run in runs
        for t, loss in zip(run.seconds, run.losses, strict=True)
    ]


def _picture(runs, title):
    """Return a picture of loss and accuracy against time as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        left.plot(run.seconds, run.losses, label=run.name, linewidth=1)
        right.plot(run.epoch_seconds, run.accuracies, marker="o", markersize=3, label=run.name)
    left.set(xlabel="seconds of training", ylabel="training loss", yscale="log", title=title)
    right.set(xlabel="seconds of training", ylabel="test accuracy")
    left.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _write(path, content):
    """Write a whole file or none: the old one stays until the new one is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
