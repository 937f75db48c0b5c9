"""Images of digits: MNIST from the files that the user has, or the small set that scikit-learn brings."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
MEAN, DEVIATION = 0.1307, 0.3081  # of the training images, in [0, 1]
UNSIGNED_BYTE = 8  # the code of the type of the entries in the header


class Digits(NamedTuple):
    """Images as rows, normalised to mean 0 and variance 1, and their labels."""

    x_train: np.ndarray  # (n, pixels), float32
    y_train: np.ndarray  # (n,), int64
    x_test: np.ndarray
    y_test: np.ndarray
    name: str


def read_idx(path, caller="rnla.torch.demo"):
    """Read an array of bytes from an IDX file, compressed by gzip or not.

    Raises
    ------
    ValueError
        If the file is not of this kind, or shorter or longer than its header says.
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{caller}: {path} must be a complete gzip file; got {error}.") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise ValueError(f"{caller}: {path} must be an IDX file of bytes; got one that begins with {content[:4]!r}.")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    size = int(np.prod(shape, dtype=np.int64))
    if len(content) != start + size:
        raise ValueError(f"{caller}: {path} must hold {size} bytes of shape {shape}; got {len(content) - start}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def load_mnist(folder, caller="rnla.torch.demo"):
    """Return MNIST from the four files of its archive, with or without ``.gz``.

    Raises
    ------
    FileNotFoundError
        If the folder or a file is missing; the message names it.
    ValueError
        If a file is damaged, or images and labels do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{caller}: data must be a folder with the files of MNIST; {folder} is none.")
    arrays = []
    for name in FILES:
        found = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
        if not found:
            raise FileNotFoundError(f"{caller}: {folder} must hold {name}.gz; it does not.")
        arrays.append(read_idx(found[0], caller))
    for images, labels in (arrays[:2], arrays[2:]):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
            raise ValueError(
                f"{caller}: {folder} must hold n images and n labels; got shapes {images.shape} and {labels.shape}."
            )
    x_train, x_test = (((X / np.float32(255)) - MEAN) / DEVIATION for X in (arrays[0], arrays[2]))
    return Digits(
        x_train.reshape(len(x_train), -1).astype(np.float32), arrays[1].astype(np.int64),
        x_test.reshape(len(x_test), -1).astype(np.float32), arrays[3].astype(np.int64), "MNIST",
    )  # fmt: skip


def load_digits(caller="rnla.torch.demo"):
    """Return the 1797 images of 8 x 8 pixels of scikit-learn, every fifth of them for tests."""
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as error:
        raise ImportError(f"{caller}: without data it needs scikit-learn: pip install 'rnla[sklearn]'") from error
    x, y = bundled(return_X_y=True)
    x = ((x - x.mean()) / x.std()).astype(np.float32)
    test = np.arange(len(x)) % 5 == 0
    y = y.astype(np.int64)
    return Digits(x[~test], y[~test], x[test], y[test], "digits of scikit-learn")
