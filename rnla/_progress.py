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
    """

    def __init__(self, callback, progress, caller):
        if callback is not None and not callable(callback):
            raise TypeError(f"{caller}: callback must be callable or None; got {type(callback).__name__}.")
        self.history = []
        self.stopped = False
        self._callback = callback
        self._bar = _bar(caller) if progress else None
        self._start = perf_counter()

    @property
    def seconds(self):
        """Seconds since the call began."""
        return perf_counter() - self._start

    def __call__(self, error):
        """Note one iteration; return True if the user wants to stop."""
        record = Record(len(self.history) + 1, float(error), self.seconds)
        self.history.append(record)
        if self._bar is not None:
            self._bar.set_postfix_str(f"error {record.error:.1e}", refresh=False)
            self._bar.update()
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


def _bar(caller):
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"{caller}: progress=True needs tqdm: pip install 'rnla[viz]'") from error
    return tqdm(desc=caller, unit=" blocks", leave=False)
