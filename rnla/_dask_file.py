"""A file as a dask array whose blocks the workers of a cluster read themselves."""

import contextlib
import os
from pathlib import Path

import numpy as np

from rnla._matrix import as_matrix
from rnla.datasets import load_matrix

TIMEOUT = 10  # seconds in which a scheduler must answer


@contextlib.contextmanager
def cluster(address):
    """Connect to a scheduler of dask.distributed, on which everything inside the ``with`` block then runs.

    Parameters
    ----------
    address : str
        Such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    ImportError
        If dask.distributed is not installed.
    OSError
        If nobody answers.
    RuntimeError
        If a block killed one worker after the other.
    """
    try:
        from dask.distributed import Client, KilledWorker
    except ImportError as error:
        raise ImportError("a scheduler needs dask.distributed: pip install 'rnla[dask]'") from error
    with Client(address, timeout=TIMEOUT, set_as_default=True):
        try:
            yield
        except KilledWorker as error:
            raise RuntimeError(f"workers died, perhaps for want of memory; try smaller blocks: {error}") from error


def dask_matrix(path, *, key, block_bytes, caller):
    """Open a file as a dask array; what travels to the workers is its name, never its content.

    Parameters
    ----------
    path : str
        A file that the workers see under the same name, or a URL.
    key : str or None
        As in `rnla.datasets.load_matrix`.
    block_bytes : int or None
        The most bytes of a block; whole chunks and, where they fit, whole rows or columns.
    caller : str
        Named in errors.

    Returns
    -------
    dask.array.Array
        Nothing is read yet.

    Raises
    ------
    ValueError
        If it is not a kind of file that can be read in blocks.
    """
    import dask.array as da

    A = load_matrix(path, key=key, map_from=0)
    M = as_matrix(A, caller, block_bytes=block_bytes)
    if M.kind != "file":
        raise ValueError(f"{caller}: a scheduler needs a .npy, .h5 or .zarr file, which is read in blocks; got {path}.")
    path = path if "://" in path else os.fspath(Path(path).resolve())
    chunks = tuple(_cut(side, tile) for side, tile in zip(M.shape, M.storage.tile, strict=True))
    meta = np.empty((0, 0), A.dtype)
    return da.map_blocks(_read, path, key, chunks=chunks, dtype=A.dtype, meta=meta, token="rnla-read")


def _cut(side, length):
    return tuple(min(length, side - start) for start in range(0, side, length))


def _read(path, key, block_info=None):
    place = tuple(slice(*edges) for edges in block_info[None]["array-location"])
    return np.array(load_matrix(path, key=key, map_from=0)[place])
