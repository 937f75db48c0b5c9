"""Truncated SVD of rows that come in blocks from an iterator: in one pass, or in a few if it can be started again."""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

from rnla._backend import check_finite, check_rng, columns, to_host
from rnla._lowrank import SVDResult
from rnla._matrix import Matrix, as_matrix
from rnla._matrix_views import Storage, wide_dtype
from rnla._progress import Monitor
from rnla._rangefinder import KINDS, check_choice, check_count, check_number
from rnla._stream_rows import pieces
from rnla._streaming import StreamingSVD
from rnla._svd import relative_error, svd_as

NAME = "rnla.svd_stream"
SQUARES = (1e-200, 1e200)  # a sum of squares outside of these may have lost digits, or all, to the range of a double


def svd_stream(blocks, k, *, max_passes=None, tol=1e-2, n_oversamples="auto", error_sketch=10, sketch="gaussian",
               rng=None, callback=None, progress=False):  # fmt: skip
    """Compute the leading `k` singular triplets of a matrix whose rows come in blocks.

    An iterator can be read once, and one pass must do. From anything that can be read again, the block Krylov iteration
    of `rnla.svd` gets its accuracy in a few passes. No block is kept, and the number of rows need not be known.

    Parameters
    ----------
    blocks : iterator, or iterable or function that can be read again
        What gives blocks of consecutive rows: a generator or another iterator (one pass); a list or any other object
        that gives a new iterator each time, or a function without arguments that returns one (a few passes). Every
        block is a matrix of any kind that `rnla.svd` accepts, sparse ones too, with the columns, library, device and
        dtype of the first; cut it as you like, and differently in every pass.
    k : int
        Rank of the result, at most the number of rows and of columns.
    max_passes : int, optional
        Bound on the number of times the blocks are read; 1 asks for the method of one pass. By default that of
        `rnla.svd`, and 1 for an iterator.
    tol : float
        Convergence of several passes: bound on the residual of each triplet relative to its singular value.
    n_oversamples : int or "auto"
        Columns multiplied beyond `k`; ``auto`` is 10 for several passes and ``k + 10`` for one.
    error_sketch : int
        For one pass: further columns that measure the error; 0 for none.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the test matrix.
    rng : None, int, numpy.random.Generator or SeedSequence
        Source of the test matrix.
    callback : callable, optional
        Called after each pass with a record ``(iteration, error, seconds)``: the largest residual that is compared with
        `tol`, or the estimated error of one pass. Raising StopIteration ends the iteration with what it has.
    progress : bool
        Show a progress bar (extra ``viz``).

    Returns
    -------
    SVDResult
        ``U`` (m, k) in the order of the rows, ``S`` (k,), ``Vh`` (k, n). ``.info.error_estimate`` is the relative error
        ``||A - U S Vh||_F / ||A||_F``.

    Raises
    ------
    ValueError
        If an argument is out of range, there is no block, a block has another width or NaN or infinity, or a second
        read gives another number of rows.
    TypeError
        If `blocks` or a block is of an unsupported kind, or the library, dtype or device of a block differ.
    OSError
        If `blocks` itself raises where a block is due. All errors about a block have its number, from 0.

    Warns
    -----
    ConvergenceWarning
        If `max_passes` is reached before the tolerance; ``.info.converged`` is then False.
    AccuracyWarning
        If one pass cannot resolve the smallest singular values.

    See Also
    --------
    StreamingSVD : the state of one pass, to be fed, merged, saved and asked at any time.

    Notes
    -----
    Several passes: each forms ``A^H (A X)`` for a block X of ``k + n_oversamples`` columns, which costs one read, and a
    last one ``A V``. Memory: U, ``5 (k + n_oversamples)`` columns of length n, and a block. The first pass counts the
    rows, and sums their squares for the error: a difference of squares, exact but for values below ``10 * sqrt(eps)``,
    which are reported as that; None if the entries of a block cannot be reached. One pass: see `StreamingSVD`; its
    error is an unbiased estimate in the square.

    Examples
    --------
    >>> A = rnla.testing.matrix_with_spectrum(60, 20, [3.0, 2.0, 1.0], rng=0)
    >>> def blocks():  # as if from files, one after the other
    ...     for start in range(0, 60, 25):
    ...         yield A[start : start + 25]
    >>> few, one = rnla.svd_stream(blocks, 2, rng=0), rnla.svd_stream(blocks(), 2, rng=0)
    >>> np.round(few.S, 6).tolist(), np.round(one.S, 6).tolist(), one.info.passes
    ([3.0, 2.0], [3.0, 2.0], 1)
    """
    check_count(k, "k", NAME)
    check_number(tol, "tol", NAME)
    if n_oversamples != "auto":
        check_count(n_oversamples, "n_oversamples", NAME, least=0)
    check_count(error_sketch, "error_sketch", NAME, least=0)
    check_choice(sketch, "sketch", KINDS, NAME)
    check_rng(rng, NAME)
    if max_passes is not None:
        check_count(max_passes, "max_passes", NAME)
    iterator, again = _opened(blocks)
    if again is None and max_passes not in (None, 1):
        raise ValueError(
            f"{NAME}: max_passes must be None or 1 for an iterator, which can be read once; got {max_passes}. Give a "
            "function that returns a new iterator, or a list."
        )
    read = numbered(iterator)
    first = next(read, None)
    if first is None:
        raise ValueError(f"{NAME}: blocks must give at least one block; got none.")
    like = Kind.of(first[2])
    _check_rank(k, math.inf, like.width)
    read = _with_first([first], read)
    del first  # or it would be in memory to the end
    if again is None or max_passes == 1:
        return _in_one_pass(read, k, like.width, n_oversamples, error_sketch, sketch, rng, callback, progress)
    source = RowBlocks(read, again, like, k)
    U, S, Vh = result = svd_as(
        NAME, Matrix("stream", source), k, method="gram", tol=tol, max_passes=max_passes, sketch=sketch, rng=rng,
        n_oversamples=10 if n_oversamples == "auto" else n_oversamples, callback=callback, progress=progress,
    )  # fmt: skip
    return SVDResult(U, S, Vh, _with_error(result, source))


def _in_one_pass(read, k, n, n_oversamples, error_sketch, sketch, rng, callback, progress):
    monitor = Monitor(callback, progress, NAME)
    try:
        stream = StreamingSVD(n, k, n_oversamples=n_oversamples, sketch=sketch, error_sketch=error_sketch, rng=rng)
        for name, row, M in read:
            stream._add(M, row, NAME, name=name)
        _check_rank(k, *stream.shape)
        U, S, Vh = result = stream._result(k, NAME)
        error = result.info.error_estimate
        monitor(math.nan if error is None else error)
    finally:
        monitor.close()
    info = dataclasses.replace(result.info, elapsed=monitor.seconds, history=tuple(monitor.history))
    return SVDResult(U, S, Vh, info)


def _with_error(result, source):
    """Return the info of a result with its relative error, from the squares that the first pass summed."""
    info, total, scale = result.info, source.total, 1.0
    if total is None:
        return info
    S = to_host(result.S)
    if S[0] > 0 and not SQUARES[0] < total < SQUARES[1]:
        scale = 2.0 ** -round(math.log2(S[0]))
        total = source.fro_norm_sq(scale)
        info = dataclasses.replace(info, passes=info.passes + 1)
    return dataclasses.replace(info, error_estimate=relative_error(source, scale * S, total))


class Kind(NamedTuple):
    """What all blocks have in common."""

    width: int
    xp: Any
    dtype: Any
    device: Any

    @classmethod
    def of(cls, M):
        """Return the kind of a block."""
        return cls(M.shape[1], M.xp, M.dtype, M.device)

    def __str__(self):
        return f"{self.xp.__name__} {self.dtype} {self.device}"


class RowBlocks(Storage):
    """A matrix whose blocks of rows can be read again; how many rows there are is known after the first read."""

    one_pass_gram = True

    def __init__(self, read, again, like, k):
        super().__init__((math.inf, like.width), like.dtype, like.xp, like.device)
        self.total = 0.0  # sum of the squares of all entries; None if those of a block are out of reach
        self._read, self._again, self._like, self._k = read, again, like, k
        self._reads = 0

    def gram_matmat(self, X):
        first = self._read is not None
        Z = self.xp.zeros((self.shape[1], X.shape[1]), dtype=wide_dtype(self.dtype, self.xp), device=self.device)
        for name, _, M in self._blocks():
            for _, B in pieces(M, NAME):
                if first and self.total is not None:
                    squares = B.fro_norm_sq()
                    self.total = None if squares is None else self.total + squares
                Y = B.matmat(X)
                check_finite(Y, NAME, name)
                Z += self.xp.astype(B.rmatmat(Y), Z.dtype, copy=False)
        return self.xp.astype(Z, self.dtype, copy=False)

    def matmat(self, X, out=None):
        Y = columns(self.xp, self.shape[0], X.shape[1], dtype=self.dtype, device=self.device)
        for name, row, M in self._blocks():
            for start, B in pieces(M, NAME):
                part = B.matmat(X)
                check_finite(part, NAME, name)
                Y[row + start : row + start + B.shape[0], :] = part
        return Y

    def rmatmat(self, Y, out=None):
        Z = self.xp.zeros((self.shape[1], Y.shape[1]), dtype=wide_dtype(self.dtype, self.xp), device=self.device)
        for name, row, M in self._blocks():
            for start, B in pieces(M, NAME):
                part = B.rmatmat(Y[row + start : row + start + B.shape[0], :])
                check_finite(part, NAME, name)
                Z += self.xp.astype(part, Z.dtype, copy=False)
        return self.xp.astype(Z, self.dtype, copy=False)

    def fro_norm_sq(self, scale=1.0):
        return sum(B.storage.fro_norm_sq(scale) for _, _, M in self._blocks() for _, B in pieces(M, NAME))

    def _blocks(self):
        """Read all blocks once more; the first read goes on with what was opened to look at the first block."""
        read, self._read = self._read or numbered(self._again(), self._like), None
        self._reads += 1
        rows, expected = 0, self.shape[0]
        for name, row, M in read:
            rows = row + M.shape[0]
            if rows > expected:
                break
            yield name, row, M
        if math.isinf(expected):
            _check_rank(self._k, rows, self.shape[1])
            self.shape = rows, self.shape[1]
        elif rows != expected:
            more = "more than " if rows > expected else ""
            raise ValueError(
                f"{NAME}: blocks must give the same rows every time; got {expected} rows at first and "
                f"{more}{min(rows, expected)} in read {self._reads}."
            )


def numbered(iterator, like=None):
    """Yield (name, first row, block as a Matrix), and let no error pass that does not name its block."""
    row = 0
    for number in itertools.count():
        name = f"block {number}"
        try:
            block = next(iterator)
        except StopIteration:
            return
        except MemoryError:
            raise
        except Exception as error:  # whatever the user's own reader raises; the same kind as of a file
            why = f"{type(error).__name__}: {error}"
            raise OSError(f"{NAME}: blocks cannot be read at {name}, from row {row} on: {why}") from error
        try:
            M = as_matrix(block, NAME)
        except (TypeError, ValueError) as error:  # which speaks of A
            raise type(error)(str(error).replace(f"{NAME}: A ", f"{NAME}: {name} ", 1)) from None
        kind = Kind.of(M)
        like = like or kind
        if kind.width != like.width:
            raise ValueError(f"{NAME}: {name} must have {like.width} columns, as block 0; got shape {M.shape}.")
        if kind != like:
            raise TypeError(f"{NAME}: {name} must have the library, dtype and device of block 0, {like}; got {kind}.")
        following = row + M.shape[0]
        yield name, row, M
        row = following
        del block, M  # not beside the next one


def _with_first(first, rest):
    """Yield what was taken out to be looked at, and the rest; unlike itertools.chain, keep neither."""
    while first:
        yield first.pop()
    yield from rest


def _opened(blocks):
    """Return an iterator, and a function that opens another one, or None if there is only this one."""
    if len(getattr(blocks, "shape", ())) == 2:
        raise TypeError(
            f"{NAME}: blocks must give blocks of rows; got a matrix, {type(blocks).__name__} of shape {blocks.shape}: "
            "see rnla.svd."
        )
    if hasattr(blocks, "__iter__") or hasattr(blocks, "__getitem__"):
        iterator = iter(blocks)
        return iterator, None if iterator is blocks else lambda: iter(blocks)
    if not callable(blocks):
        raise TypeError(
            f"{NAME}: blocks must be an iterator, an iterable or a function that returns one; got "
            f"{type(blocks).__name__}."
        )
    return _called(blocks), lambda: _called(blocks)


def _called(function):
    found = function()
    if not (hasattr(found, "__iter__") or hasattr(found, "__getitem__")):
        raise TypeError(f"{NAME}: blocks must be a function that returns an iterator; it returned {found!r}.")
    return iter(found)


def _check_rank(k, rows, n):
    if k > min(rows, n):
        seen = "rows" if math.isinf(rows) else f"{rows} rows in all,"
        raise ValueError(f"{NAME}: k must be in 1..{min(rows, n)} for {seen} of {n} columns; got {k}.")
