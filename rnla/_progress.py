"""Follow a long iteration: history, the user's callback, a progress bar."""

from time import perf_counter
from typing import NamedTuple


class Record(NamedTuple):
    """What a callback is told after each iteration."""

    iteration: int  # from 1
    error: float  # the quantity that is compared with the tolerance
    seconds: float  # since the call


class Monitor:
    """Collect the records of one call and pass them on.

    Parameters
    ----------
    callback : callable or None
        Called with each `Record`; raising StopIteration asks the iteration to end with what it has.
    progress : bool
        Show a bar on the standard error stream.
    caller : str
        Public function named in the bar and in errors.
    M : Matrix, optional
        If it is read from a file, the bar shows the bytes of each pass.
    """

    def __init__(self, callback, progress, caller, M=None):
        if callback is not None and not callable(callback):
            raise TypeError(f"{caller}: callback must be callable or None; got {type(callback).__name__}.")
        self.history = []
        self.stopped = False
        self._callback = callback
        self._bar = _bar(caller, M) if progress else None
        self._start = perf_counter()

    def resume(self, history, seconds, passes):
        """Go on after an interruption, with the history, the time and the passes of what went before."""
        self.history[:] = [Record(int(iteration), float(error), float(s)) for iteration, error, s in history]
        self._start -= seconds
        if isinstance(self._bar, _Passes):
            self._bar.start(passes + 1)

    @property
    def seconds(self):
        """Seconds since the call began."""
        return perf_counter() - self._start

    def __call__(self, error):
        """Note one iteration; return True if the user wants to stop."""
        record = Record(len(self.history) + 1, float(error), self.seconds)
        self.history.append(record)
        if self._bar is not None:
            self._bar.note(f"error {record.error:.1e}")
        if self._callback is not None:
            try:
                self._callback(record)
            except StopIteration:
                self.stopped = True
        return self.stopped

    def close(self):
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _bar(caller, M):
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"{caller}: progress=True needs tqdm: pip install 'rnla[viz]'") from error
    if M is not None and M.kind == "file":
        return _Passes(tqdm, caller, M.storage.source)
    return _Blocks(tqdm(desc=caller, unit=" blocks", leave=False))


class _Blocks:
    """A bar that counts the blocks of an iteration."""

    def __init__(self, bar):
        self._bar = bar

    def note(self, text):
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def close(self):
        self._bar.close()


class _Passes:
    """A bar that fills with the bytes of a file once in every pass."""

    def __init__(self, tqdm, caller, file):
        self._caller, self._file, self._number = caller, file, 1
        self._total = file.shape[0] * file.shape[1] * file.itemsize
        self._bar = tqdm(desc=self._title(), total=self._total, unit="B", unit_scale=True, leave=False)
        file.after_block.append(self._read)

    def start(self, number):
        """Begin another pass."""
        self._number = number
        self._bar.set_description_str(self._title(), refresh=False)
        self._bar.reset()

    def note(self, text):
        self._bar.set_postfix_str(text)

    def close(self):
        if self._read in self._file.after_block:
            self._file.after_block.remove(self._read)
        self._bar.close()

    def _title(self):
        return f"{self._caller} pass {self._number}"

    def _read(self, entries):
        if self._bar.n >= self._total:
            self.start(self._number + 1)
        self._bar.update(entries * self._file.itemsize)
