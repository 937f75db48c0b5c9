"""Truncated SVD of a matrix that arrives in pieces and is never kept."""

import json
import math
from pathlib import Path
from time import perf_counter

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, from_host, key_from_rng, real_dtype, to_host
from rnla._lowrank import SVDInfo, SVDResult
from rnla._matrix import as_matrix
from rnla._rangefinder import KINDS, check_choice, check_count
from rnla._stream_rows import Plan, RowSketch, row_store
from rnla._stream_turnstile import TurnstileSketch
from rnla._svd import flipped

NAME = "rnla.StreamingSVD"
FORMAT = "rnla.StreamingSVD 1"


class StreamingSVD:
    """Truncated SVD of a matrix that arrives in pieces, each of which is seen once and never kept.

    What is kept is a random sketch: ``width * (m + n)`` numbers and a few more for the matrix of shape (m, n) seen so
    far, ``width`` about ``2 k``. Sketches of parts of the matrix, made elsewhere with the same seed, can be merged.

    Parameters
    ----------
    n_cols : int
        Columns of the matrix.
    k : int
        Rank that is wanted, ``1 <= k <= n_cols``.
    mode : {"rows", "turnstile"}
        ``rows``: every row arrives whole, once, in any order. As accurate as two passes over the matrix with ``width``
        columns. ``turnstile``: any part may be changed by adding to it, any number of times; less accurate by far.
    n_rows : int, optional
        Rows of the matrix; needed by ``turnstile``. Rows that never arrive are zero.
    n_oversamples : int or "auto"
        Columns of the sketch beyond `k`; ``auto`` is ``k + 10`` for rows and ``3 * k + 1`` for turnstile.
    budget : int, optional
        Instead of `n_oversamples`, for ``turnstile``: how many numbers the sketch may have.
    spectrum : {"decaying", "flat"}
        How a budget is divided: wide sketches of rows and columns for singular values that decay, a large core for
        those that end in a flat tail of noise.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the test matrices.
    error_sketch : int
        Further columns that measure the error; 0 for none.
    spill : path, optional
        For ``rows``: a folder. Whatever grows with the number of rows is then kept there, in files without a name, and
        U is a memory-mapped array.
    rng : None, int, numpy.random.Generator or SeedSequence
        Source of the test matrices; sketches that are to be merged must have the same seed.

    Attributes
    ----------
    shape : tuple of int
        Of the matrix seen so far.
    k, mode, width : int, str, int
        As given, and the columns of the sketch: the largest rank of a result.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of a wrong type.

    Notes
    -----
    Library, device and dtype are those of the first block. A block of r rows costs ``4 r n width`` flops for rows and
    about ``8 r n width`` for turnstile; a result ``O((m + n) width**2)``, and does not end the stream.

    With rows, ``Y = A Omega`` and ``A^H A Omega`` are both known after the last row, hence ``U^H A`` for a basis U of
    the range of Y, without a second look at A: the Rayleigh-Ritz step of two passes [1]_. It divides by the singular
    values of Y, so that those below ``10 * sqrt(eps)`` of the largest are lost. A turnstile sketch has the range, the
    range of the adjoint and a core [2]_; with Gaussian numbers, and without the truncation to k,
    ``E ||A - U S Vh||_F**2 <= (s - 1) / (s - w - 1) * (w + r - 1) / (w - r - 1) * tau**2`` for every ``r < w - 1``,
    where w is the width, ``s = 2 w + 1`` the size of the core and ``tau**2`` the sum of the squares of all singular
    values but the r largest.

    References
    ----------
    .. [1] Halko, Martinsson, Tropp, SIAM Review 53 (2011), sections 5.1 and 5.5.
    .. [2] Tropp, Yurtsever, Udell, Cevher, SIAM J. Sci. Comput. 41 (2019), Theorem 5.1 and section 6.

    Examples
    --------
    >>> A = rnla.testing.matrix_with_spectrum(60, 20, [3.0, 2.0, 1.0], rng=0)
    >>> stream = rnla.StreamingSVD(20, 2, rng=0)
    >>> for block in np.split(A, 4):
    ...     _ = stream.update(block)
    >>> U, S, Vh = stream.finalize()
    >>> stream.shape, np.round(S, 6).tolist()
    ((60, 20), [3.0, 2.0])
    """

    def __init__(self, n_cols, k, *, mode="rows", n_rows=None, n_oversamples="auto", budget=None, spectrum="decaying",
                 sketch="gaussian", error_sketch=10, spill=None, rng=None):  # fmt: skip
        check_count(n_cols, "n_cols", NAME)
        check_choice(mode, "mode", ("rows", "turnstile"), NAME)
        if n_rows is not None:
            check_count(n_rows, "n_rows", NAME)
        elif mode == "turnstile":
            raise ValueError(f"{NAME}: n_rows must be given for mode 'turnstile'; got None.")
        short = n_cols if n_rows is None else min(n_rows, n_cols)
        check_count(k, "k", NAME)
        if k > short:
            raise ValueError(f"{NAME}: k must be in 1..{short} for n_rows = {n_rows} and n_cols = {n_cols}; got {k}.")
        check_choice(spectrum, "spectrum", ("decaying", "flat"), NAME)
        check_choice(sketch, "sketch", KINDS, NAME)
        check_count(error_sketch, "error_sketch", NAME, least=0)
        if n_oversamples != "auto":
            check_count(n_oversamples, "n_oversamples", NAME, least=0)
        if mode == "rows" and budget is not None:
            raise ValueError(f"{NAME}: budget must be None for mode 'rows', see n_oversamples; got {budget!r}.")
        if mode == "turnstile" and spill is not None:
            raise ValueError(f"{NAME}: spill must be None for mode 'turnstile'; got {spill!r}.")
        if spill is not None and not Path(spill).is_dir():
            raise ValueError(f"{NAME}: spill must be a folder; got {spill!r}.")
        extra = (k + 10 if mode == "rows" else 3 * k + 1) if n_oversamples == "auto" else n_oversamples
        width, core = min(k + extra, short), 0
        if mode == "turnstile":
            core = 2 * width + 1
            if budget is not None:
                if n_oversamples != "auto":
                    raise ValueError(f"{NAME}: n_oversamples must be 'auto' where there is a budget; got {extra}.")
                check_count(budget, "budget", NAME)
                width, core = _divided(budget, n_rows, n_cols, k, spectrum)
        self.k, self.mode, self._spill = int(k), mode, spill
        rows = None if n_rows is None else int(n_rows)
        key = key_from_rng(rng, NAME)
        self._plan = Plan(mode, int(n_cols), rows, int(width), int(core), int(error_sketch), sketch, key)
        self._state = None

    @property
    def shape(self):
        """Shape of the matrix seen so far, or of the whole where `n_rows` was given."""
        seen = 0 if self._state is None else self._state.next_row
        return (seen if self._plan.n_rows is None else self._plan.n_rows), self._plan.n_cols

    @property
    def width(self):
        """Columns of the sketch: the largest rank of a result."""
        return self._plan.width

    def __repr__(self):
        return f"StreamingSVD(mode={self.mode!r}, k={self.k}, {self.shape[0]} x {self.shape[1]}, width {self.width})"

    def __getstate__(self):
        return {**self.__dict__, "_spill": None}  # rows on disk travel inside, to where there may be no such folder

    def update(self, block, row_offset=None):
        """Take in some rows: whole new ones with ``rows``, an addition to rows with ``turnstile``.

        Parameters
        ----------
        block : matrix of any kind that `rnla.svd` accepts, shape (r, n_cols)
            The rows. A file or a dask array is read in blocks, once.
        row_offset : int, optional
            Row of the matrix that the first of them is; by default they follow the last row seen.

        Returns
        -------
        StreamingSVD
            The stream itself.

        Raises
        ------
        ValueError
            If the block has a wrong shape, or NaN or infinity, or rows that were seen before; the stream is unchanged.
        TypeError
            If its library, device or dtype is not that of the first block.
        """
        caller = f"{NAME}.update"
        M = self._as_block(block, "block", caller)
        if row_offset is not None:
            check_count(row_offset, "row_offset", caller, least=0)
        start = row_offset if row_offset is not None else 0 if self._state is None else self._state.next_row
        rows = self._plan.n_rows
        if rows is not None and start + M.shape[0] > rows:
            raise ValueError(
                f"{caller}: row_offset must be in 0..{rows - M.shape[0]} for {M.shape[0]} of n_rows = {rows} rows; got "
                f"{start}."
            )
        self._add(M, int(start), caller)
        return self

    def linear_update(self, H, theta=1, eta=1):
        """Replace the matrix A by ``theta * A + eta * H``; for ``mode="turnstile"``.

        Parameters
        ----------
        H : matrix of any kind that `rnla.svd` accepts, shape (n_rows, n_cols)
            The change: a sparse one costs little.
        theta, eta : number
            Factors; complex ones need a complex stream.

        Returns
        -------
        StreamingSVD
            The stream itself.

        Raises
        ------
        ValueError
            If the mode is ``rows``, or H has a wrong shape, or NaN or infinity; the stream is unchanged.
        TypeError
            If the library, device or dtype of H is not that of the first block, or a factor is not a number.
        """
        caller = f"{NAME}.linear_update"
        if self.mode != "turnstile":
            raise ValueError(f"{caller}: mode must be 'turnstile'; got {self.mode!r}.")
        M = self._as_block(H, "H", caller)
        if M.shape != self.shape:
            raise ValueError(f"{caller}: H must have shape {self.shape}; got {M.shape}.")
        is_real = M.xp.isdtype(M.dtype, "real floating")
        theta, eta = (_factor(value, name, is_real, caller) for name, value in (("theta", theta), ("eta", eta)))
        self._add(M, 0, caller, theta=theta, eta=eta)
        return self

    def merge(self, other, row_offset=0):
        """Add the matrix of another stream to that of this one.

        With ``rows`` the two must have seen different rows. With ``turnstile`` the matrices are added.

        Parameters
        ----------
        other : StreamingSVD
            With the same sizes and the same seed; is not changed.
        row_offset : int
            For ``rows``: the row of this matrix that row 0 of the other one is.

        Returns
        -------
        StreamingSVD
            The stream itself.

        Raises
        ------
        ValueError
            If the settings or seeds differ, or rows were seen by both; the stream is unchanged.
        TypeError
            If `other` is no stream, or differs in library, device or dtype.
        """
        caller = f"{NAME}.merge"
        if not isinstance(other, StreamingSVD):
            raise TypeError(f"{caller}: other must be a StreamingSVD; got {type(other).__name__}.")
        check_count(row_offset, "row_offset", caller, least=0)
        for name, ours, theirs in zip(Plan._fields, self._plan, other._plan, strict=True):
            # Whether the number of rows was known beforehand makes no difference to a sketch of rows.
            if ours != theirs and not (name == "n_rows" and self.mode == "rows"):
                what = "seed" if name == "key" else name
                raise ValueError(f"{caller}: other must have the same {what}; got {theirs} beside {ours}.")
        if self.mode == "turnstile" and row_offset:
            raise ValueError(f"{caller}: row_offset must be 0 for mode 'turnstile'; got {row_offset}.")
        if other._state is None:
            return self
        rows, last = self._plan.n_rows, row_offset + other._state.next_row
        if rows is not None and last > rows:
            raise ValueError(f"{caller}: other must not go beyond n_rows = {rows}; got rows up to {last}.")
        if self._state is None:
            self._state = self._new_state(other._state.place)
        self._check_place(other._state.place, "other", caller)
        self._state.merge(other._state, int(row_offset), caller)
        return self

    def finalize(self, k=None):
        """Compute the singular triplets of the matrix seen so far; the stream can go on after it.

        Parameters
        ----------
        k : int, optional
            Rank, at most `width`; by default that of the constructor.

        Returns
        -------
        SVDResult
            ``U`` (m, k), ``S`` (k,), ``Vh`` (k, n). ``.info.error_estimate`` is the relative error, estimated from the
            error sketch.

        Raises
        ------
        ValueError
            If `k` is out of range, or nothing has been seen.

        Warns
        -----
        AccuracyWarning
            If with ``rows`` the smallest singular values are too small to be resolved in one pass.
        """
        return self._result(self.k if k is None else k, f"{NAME}.finalize")

    def _result(self, k, caller):
        start = perf_counter()
        check_count(k, "k", caller)
        if self._state is None:
            raise ValueError(f"{caller}: update must be called before; got no rows.")
        most = min(self.width, *self.shape)
        if k > most:
            raise ValueError(
                f"{caller}: k must be in 1..{most} for shape {self.shape} and width {self.width}; got {k}."
            )
        xp, dtype, where = self._state.place
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            U, s, V = self._state.svd(int(k), self.shape[0], caller, self._spill)
            U, V = flipped(U, V)
            S, Vh = from_host(s, xp, real_dtype(xp, dtype), where), adjoint(V)
            error, norm, _ = self._state.squares(U, S, Vh)
        relative = None if error is None else math.sqrt(error / norm) if norm > 0 else 0.0
        info = SVDInfo(
            f"stream-{self.mode}", 1, self._state.matvecs, 0, True, None, relative, self.width, int(k), self._plan.key,
            dtype, perf_counter() - start, "one pass",
        )  # fmt: skip
        return SVDResult(U, S, Vh, info)

    def error_estimate(self, result=None):
        """Estimate ``||A - U S Vh||_F`` for the matrix A seen so far, without A.

        The square is an unbiased estimate with relative standard deviation at most ``(2 / error_sketch)**0.5``.

        Parameters
        ----------
        result : SVDResult, optional
            What to compare with A, of its shape; by default ``finalize()``. Truncations of one result can be compared.

        Returns
        -------
        float
            The estimate, in the units of A.

        Raises
        ------
        ValueError
            If there is no error sketch, nothing has been seen, or the shape of `result` is wrong.
        """
        caller = f"{NAME}.error_estimate"
        if not self._plan.error_sketch:
            raise ValueError(f"{caller}: error_sketch must be at least 1; the stream was made with 0.")
        result = self.finalize() if result is None else result
        if self._state is None or result.shape != self.shape:
            raise ValueError(f"{caller}: result must have shape {self.shape}; got {result.shape}.")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            error, _, scale = self._state.squares(*result)
        return math.sqrt(error) / scale

    def save(self, path):
        """Write the state to a file, from which `load` makes the same stream.

        Parameters
        ----------
        path : path
            Written exactly there, in NumPy's ``.npz`` format, without pickled objects.
        """
        settings = {"format": FORMAT, "k": self.k, "plan": self._plan._asdict()}
        arrays = {}
        if self._state is not None:
            state, settings["state"] = self._state.arrays()
            xp, dtype, _ = self._state.place
            settings["dtype"] = next(name for name in _DTYPES if getattr(xp, name) == dtype)
            arrays = {name: _as_numpy(X) for name, X in state.items()}
        with Path(path).open("wb") as file:
            np.savez(file, settings=np.array(json.dumps(settings)), **arrays)

    @classmethod
    def load(cls, path, *, like=None, spill=None):
        """Return the stream that `save` wrote.

        Parameters
        ----------
        path : path
            The file.
        like : array, optional
            Its library and device are those of the stream; by default NumPy.
        spill : path, optional
            A folder for what grows with the number of rows, as in the constructor.

        Returns
        -------
        StreamingSVD
            A stream that goes on where the other was.

        Raises
        ------
        ValueError
            If the file was not written by `save`.
        """
        caller = f"{NAME}.load"
        with np.load(path, allow_pickle=False) as file:
            settings = json.loads(file["settings"].item()) if "settings" in file else {}
            if settings.get("format") != FORMAT:
                raise ValueError(f"{caller}: path must be a file written by StreamingSVD.save; got {str(path)!r}.")
            plan = Plan(**settings["plan"])
            self = cls(plan.n_cols, settings["k"], mode=plan.mode, n_rows=plan.n_rows, spill=spill)
            self._plan = plan
            if "state" in settings:
                like = np.empty(0) if like is None else like
                xp, where = array_namespace(like), device(like)
                arrays = {name: xp.asarray(file[name], device=where) for name in file.files if name != "settings"}
                dtype = xp.empty(0, dtype=getattr(xp, settings["dtype"])).dtype
                self._state = self._new_state((xp, dtype, where))
                self._state.restore(arrays, settings["state"])
        return self

    def _as_block(self, block, name, caller):
        try:
            M = as_matrix(block, caller)
        except (TypeError, ValueError) as error:  # which speaks of A
            raise type(error)(str(error).replace(f"{caller}: A ", f"{caller}: {name} ", 1)) from None
        if M.shape[1] != self._plan.n_cols:
            raise ValueError(f"{caller}: {name} must have {self._plan.n_cols} columns; got shape {M.shape}.")
        if self._state is not None:
            self._check_place((M.xp, M.dtype, M.device), name, caller)
        return M

    def _check_place(self, place, name, caller):
        if place != self._state.place:
            (xp, dtype, where), wanted = place, self._state.place
            raise TypeError(
                f"{caller}: {name} must have the library, dtype and device of the first block, {wanted[0].__name__} "
                f"{wanted[1]} {wanted[2]}; got {xp.__name__} {dtype} {where}."
            )

    def _add(self, M, start, caller, **options):
        state = self._state or self._new_state((M.xp, M.dtype, M.device))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # every product is checked
            state.add(M, start, caller, **options)
        self._state = state

    def _new_state(self, place):
        if self.mode == "turnstile":
            return TurnstileSketch(self._plan, place)
        return RowSketch(self._plan, place, row_store(self._plan, place, self._spill))


_DTYPES = ("float32", "float64", "complex64", "complex128")


def _divided(budget, m, n, k, spectrum):
    """Return width w and core size s of a turnstile sketch with ``w (m + n) + s**2 <= budget``."""
    most = min(m, n)
    choices = []
    for width in range(k, most + 1):
        core = math.isqrt(max(budget - width * (m + n), 0))
        # For a spectrum that decays, a core of twice the width, and the largest width that leaves room for it [2, 5.4].
        if core < (2 * width + 1 if spectrum == "decaying" else width + 2):
            break
        # For a flat tail, what minimises the bound on the error after k values that stand out of it.
        rest = (width + k - 1) / (width - k - 1) if width > k + 1 else math.inf
        bound = -width if spectrum == "decaying" else (core - 1) / (core - width - 1) * rest
        choices.append((bound, width, core))
    if not choices:
        least = k * (m + n) + (2 * k + 1) ** 2
        raise ValueError(f"{NAME}: budget must be at least {least} for k = {k} and shape {(m, n)}; got {budget}.")
    return min(choices)[1:]


def _factor(value, name, is_real, caller):
    """Return a factor as a float, or as a complex number where the stream is complex."""
    try:
        number = complex(value)
    except (TypeError, ValueError):
        raise TypeError(f"{caller}: {name} must be a number; got {type(value).__name__}.") from None
    if not (math.isfinite(number.real) and math.isfinite(number.imag)) or (is_real and number.imag):
        raise ValueError(f"{caller}: {name} must be finite, and real for a real matrix; got {value}.")
    return number if number.imag else number.real


def _as_numpy(X):
    """Return a state array on the host, in its own precision; memory-mapped rows stay where they are."""
    if isinstance(X, np.ndarray):
        return X
    xp = array_namespace(X)
    double = to_host(X)
    if X.dtype not in (xp.float32, xp.complex64):
        return double
    return double.astype(np.complex64 if double.dtype.kind == "c" else np.float32)
