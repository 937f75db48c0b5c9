"""What the commands of the command line share: types of arguments, messages, files that are replaced at once."""

import argparse
import contextlib
import math
import os
import re
import sys

UNITS = {"": 1, "b": 1} | {f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)}
UNITS |= {f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)}


@contextlib.contextmanager
def replacing(path):
    """Open a new file that takes the place of `path` at the end, or vanishes if anything goes wrong.

    Parameters
    ----------
    path : pathlib.Path
        The file to write; whoever reads it sees the old one or the whole new one.

    Yields
    ------
    binary file
        In the same folder, because a file can only be renamed at once within one file system.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_folder(args, path):
    """End with exit code 2 if the folder of a file to write is missing."""
    if not path.parent.is_dir():
        args.parser.error(f"there is no folder {path.parent}")


def complain(args, message):
    """Print one line on stderr."""
    print(f"rnla {args.command}: {' '.join(message.split())}", file=sys.stderr)


def finite_or_none(x):
    """Return a number that JSON can hold."""
    return float(x) if x is not None and math.isfinite(x) else None


def positive_integer(text):
    """Read an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1; got {text}")
    return value


def size(text):
    """Read a number of bytes such as 64MB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    value = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number of bytes such as 64MB or 1GiB; got {text}")
    return value


def seed(text):
    """Read an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be an integer >= 0; got {text}")
    return value


def precision(text):
    """Read a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number >= 0; got {text}")
    return value
