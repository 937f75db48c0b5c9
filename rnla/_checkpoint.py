"""The state of an iteration in a file, so that an interrupted run goes on from there."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from array_api_compat import is_numpy_array

from rnla._backend import from_host, to_host

FORMAT = "rnla checkpoint 1"
SAMPLE = (8, 512)  # rows and columns read at three places of a file to tell one matrix from another


class Checkpoint:
    """A file with the state of one run, replaced as a whole after every pass and removed at the end.

    Parameters
    ----------
    path : str or path-like
        The file; if it exists, the run whose state it holds goes on.
    settings : dict
        What must be the same in the run that goes on, in JSON types; the `seed` may be None, for that of the file.
    caller : str
        Public function named in errors.

    Attributes
    ----------
    passes : int
        Passes before the interruption; 0 for a run from the start.
    factor : float
        Power of two by which the matrix is scaled.
    seed : int or None
        That of the file, or else of the settings.

    Raises
    ------
    ValueError
        If the file is damaged, is no checkpoint, or is that of another run; or if there is no such folder.
    """

    def __init__(self, path, settings, caller):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"{caller}: checkpoint must be a path or None; got {type(path).__name__}.")
        self.path = Path(path)
        self._settings = json.loads(json.dumps(settings, default=lambda number: number.item()))
        self._caller = caller
        if not os.access(self.path.parent, os.W_OK | os.X_OK):  # now, and not after the first hour
            raise ValueError(f"{caller}: checkpoint must be in a folder that can be written to; got {self.path}.")
        self._state = self._matching() if self.path.exists() else None
        self._numbers, self._arrays = {}, {}
        self.seed, self.factor, self.passes = self._settings["seed"], 1.0, 0
        if self._state is not None:
            self.seed, self.factor = self._state["settings"]["seed"], self._state["factor"]
            self.passes = self._state["passes"]

    @property
    def said(self):
        """What the message of the result has to add."""
        return f", resumed after {counted(self.passes, 'pass')}" if self.passes else ""

    def once(self, name, compute, M):
        """Return an array that is computed before the iteration begins, or was in the run that is continued."""
        known = None if self._state is None else self._state[name]
        self._arrays[name] = compute() if known is None else restored(known, M)
        return self._arrays[name]

    def begin(self, counter, factor):
        """Note where the counters stand as the iteration begins; put them where they stood in the run before."""
        if self._state is not None:
            counter.passes, counter.matvecs = self._state["began"]
        self.factor = factor
        self._numbers = {"factor": factor, "began": (counter.passes, counter.matvecs)}

    def take(self):
        """Return the state to go on from, or None; once: if the iteration must begin anew, it does."""
        state, self._state = self._state, None
        return state

    def save(self, numbers, arrays):
        """Replace the file: whoever reads it finds the old state or the new one, never part of one.

        Parameters
        ----------
        numbers : dict
            In JSON types.
        arrays : dict
            Arrays of any library.
        """
        facts = {"format": FORMAT, "settings": {**self._settings, "seed": self.seed}, **self._numbers, **numbers}
        arrays = {name: X if is_numpy_array(X) else to_host(X) for name, X in {**self._arrays, **arrays}.items()}
        try:
            with open(self._temporary, "wb") as file:
                np.savez(file, facts=json.dumps(facts), **{name: _in_one_piece(X) for name, X in arrays.items()})
                file.flush()
                os.fsync(file.fileno())  # before the old state goes
            os.replace(self._temporary, self.path)
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise

    def remove(self):
        """Remove the file at the end of the run."""
        self.path.unlink(missing_ok=True)
        self._temporary.unlink(missing_ok=True)

    @property
    def _temporary(self):
        return self.path.with_name(f"{self.path.name}.part")

    def _matching(self):
        """Return the state in the file, if it is that of a run with these settings."""
        facts, arrays = self._read()
        for name, wanted in self._settings.items():
            found = facts["settings"].get(name)
            if found != wanted and not (name == "seed" and wanted is None):
                what = "A has other entries" if name == "fingerprint" else f"{name} was {found}, not {wanted}"
                raise ValueError(
                    f"{self._caller}: checkpoint {self.path} is that of another run: {what}. Go on "
                    "with the arguments of that run, or start again with another name or without the file."
                )
        return {**facts, **arrays}

    def _read(self):
        try:
            with open(self.path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']}")
        except PermissionError:
            raise
        except Exception as error:  # zip archives, headers and JSON each have their own way to be damaged
            raise ValueError(
                f"{self._caller}: checkpoint {self.path} is damaged or is no checkpoint "
                f"({str(error) or type(error).__name__}). Start again with another name, or without the file."
            ) from error
        return facts, arrays


def counted(count, noun):
    """Return such as ``1 pass`` and ``2 passes``."""
    return f"{count} {noun}{'' if count == 1 else 'es'}"


def saved_passes(path):
    """Return how many passes the run whose state is in the file has completed, or None if that cannot be read."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return int(json.loads(str(file["facts"]))["passes"])
    except Exception:  # of no use: `Checkpoint` will say why
        return None


def restored(X, M):
    """Return a saved array with the library, dtype and device of the matrix M, in the memory order it had."""
    if X.ndim == 2 and X.flags.f_contiguous:  # other libraries would take it for an array by rows
        return from_host(X.T, M.xp, M.dtype, M.device).T
    return from_host(X, M.xp, M.dtype, M.device)


def fingerprint(M):
    """Return a number for a few entries of a file or dense matrix: those at both ends and in the middle.

    Not for all of them: that would cost a pass. None for matrices whose entries are out of reach.
    """
    (m, n), storage = M.shape, M.storage.source
    rows, columns = SAMPLE
    read = getattr(storage, "read", None)
    if read is not None:  # about one chunk each, whatever the layout
        rows, columns = (min(a, g) if g > 1 else a for a, g in zip(SAMPLE, storage.grain, strict=True))
    elif storage.array is not None:
        read = lambda i, j: to_host(storage.array[i, j])  # noqa: E731
    else:
        return None
    digest = hashlib.sha256()
    for part in (0.0, 0.5, 1.0):
        i, j = (_aligned(part, side, length) for side, length in ((m, rows), (n, columns)))
        digest.update(np.ascontiguousarray(read(i, j)).tobytes())
    return digest.hexdigest()


def _aligned(part, side, length):
    start = int(part * (side - 1)) // length * length
    return slice(start, min(start + length, side))


def _in_one_piece(X):
    """Return the array itself or a copy in which no other columns lie between its own, in the same memory order."""
    if X.flags.c_contiguous or X.flags.f_contiguous:
        return X
    return np.asfortranarray(X) if abs(X.strides[0]) < abs(X.strides[1]) else np.ascontiguousarray(X)
