"""Sketch of a matrix whose rows arrive once each: ``Y = A Omega`` row by row, and the sum ``H = A^H A Omega``."""

import math
import tempfile
import weakref
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_namespace

from rnla._backend import adjoint, check_finite, eps_of, from_host, host_svd, to_host
from rnla._errors import AccuracyWarning
from rnla._matrix import as_matrix
from rnla._matrix_views import spans, wide_dtype
from rnla._orth import orth, random_complement
from rnla._rangefinder import SAFE, thin_svd, warn
from rnla._sketch import test_matrix
from rnla._tall import column_squares, like

BLOCK_ENTRIES = 2**22  # of the sketch worked on together at the end: 32 MB in double precision


class Plan(NamedTuple):
    """What two streams must have in common to be merged: sizes and seed of the sketch."""

    mode: str
    n_cols: int
    n_rows: int | None
    width: int  # columns of Omega
    core: int  # rows of the core sketch; 0 if the rows arrive whole
    error_sketch: int
    sketch: str
    key: int


class RowSketch:
    """State of ``mode="rows"``.

    Y is kept in the units of A. H is quadratic in A and is kept in those of ``scale * A``, a power of two that holds
    its entries in range.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, SIAM J. Sci. Comput. 41 (2019), for the setting and the comparison.
    """

    def __init__(self, plan, place, store):
        xp, self.dtype, where = place
        self.plan = plan
        self.H = xp.zeros((plan.n_cols, plan.width), dtype=wide_dtype(self.dtype, xp), device=where)
        self.store = store
        self.scale = 1.0
        self.top = 0.0  # largest entry of Y so far
        self.seen = []  # ranges (first, last + 1) of rows, in order, with gaps between them
        self._columns = None

    def __getstate__(self):
        return {**self.__dict__, "_columns": None}

    @property
    def place(self):
        """Namespace, dtype and device of the state."""
        return array_namespace(self.H), self.dtype, device(self.H)

    @property
    def next_row(self):
        """The row after the last one that was seen."""
        return self.seen[-1][1] if self.seen else 0

    @property
    def matvecs(self):
        """Number of vectors multiplied by A and by its adjoint."""
        return 2 * self.plan.width + self.plan.error_sketch

    def add(self, M, start, caller, name="block"):
        """Add rows, the first of them in row `start`; nothing changes if they are refused, in an error about `name`."""
        seen = self._joined([(start, start + M.shape[0])], caller)
        width, W = self.plan.width, self._test_columns()
        H, scale, top = None, self.scale, self.top
        for offset, B in pieces(M, caller):
            Y = B.matmat(W)
            check_finite(Y, caller, name)
            largest = float(M.xp.max(M.xp.abs(Y)))
            scale, before = self._fitting(scale, top, largest), scale
            top = max(top, largest)
            # Two factors, so that neither the argument nor the product leaves the range of the dtype.
            part = B.rmatmat(Y[:, :width] * scale if scale != 1 else Y[:, :width])
            part = M.xp.astype(part, self.H.dtype, copy=False) * scale
            check_finite(part, caller, name)
            H = part if H is None else _rescaled(H, scale / before) + part
            self.store.put(start + offset, Y)  # rows count only once `seen` says so
        if scale != self.scale:
            self.H = _rescaled(self.H, scale / self.scale)
        self.H += H
        self.scale, self.top, self.seen = scale, top, seen

    def merge(self, other, shift, caller):
        """Add the rows of another sketch of the same plan, each `shift` rows further down."""
        seen = self._joined([(first + shift, last + shift) for first, last in other.seen], caller)
        scale = min(self.scale, other.scale) if self.top and other.top else (self if self.top else other).scale
        for start, Y in other.blocks():
            self.store.put(start + shift, Y)
        self.H = _rescaled(self.H, scale / self.scale) + _rescaled(other.H, scale / other.scale)
        self.scale, self.top, self.seen = scale, max(self.top, other.top), seen

    def svd(self, k, rows, caller, folder):
        """Return U, s, V, with k columns, of the best approximation that the sketch knows; s on the host."""
        xp, dtype, where = self.place
        eps = eps_of(xp, dtype)
        _, s, Zh = host_svd(self._triangle())
        keep = int(np.sum(s > 10 * math.sqrt(eps) * s[0])) if s[0] > 0 else 0
        if keep < min(k, len(s)) and s[keep] > 100 * eps * s[0]:
            # Dividing H by smaller values would blow up its rounding; only a second read could tell them from zero.
            warn(
                f"{caller}: one pass resolves {keep} of {k} singular values, those above {10 * math.sqrt(eps):.0e} of "
                "the largest.",
                AccuracyWarning,
            )
        # Y = (U0 s) Zh with orthonormal U0 = Y T, so that A^H U0 = H T.
        T = Zh[:keep].conj().T / s[:keep]
        V, s, Xh = thin_svd(xp.astype(self.H @ like(T, self.H), dtype))
        found = min(k, keep)
        U = self._left(T @ to_host(Xh)[:found].conj().T, rows, k, folder)
        V, s = V[:, :found], to_host(s)[:found]
        if found < k:
            # Fewer directions than asked for: zeros, and random orthonormal vectors.
            for stream, X in ((2, U), (3, V)):

                def draw(count, length=X.shape[0], stream=stream):
                    place = {"xp": xp, "device": where, "dtype": dtype}
                    return test_matrix("gaussian", self.plan.key, length, count, stream=stream, **place)

                fresh = random_complement(X[:, :found], draw, k - found)
                if X is U:
                    U[:, found:] = fresh
                else:
                    V = xp.concat([V, fresh], axis=1)
            s = np.concatenate([s, np.zeros(k - found)])
        return U, s / self.scale, V

    def squares(self, U, S, Vh):
        """Return unbiased estimates of ``||A - U S Vh||_F**2`` and ``||A||_F**2``, times a power of two, and its root.

        The first comes from products with `error_sketch` columns that nothing else depends on, and is None without
        them.
        """
        width, count, scale = self.plan.width, self.plan.error_sketch, self.scale
        image = S[:, None] * (Vh @ self._test_columns()[:, width:])
        error = norm = 0.0
        for start, Y in self.blocks():
            norm += float(np.sum(column_squares(Y * scale)))
            rest = Y[:, width:] - U[start : start + Y.shape[0], :] @ image
            error += float(np.sum(column_squares(rest * scale)))
        return (error / count if count else None), norm / (width + count), scale

    def blocks(self):
        """Return an iterator of (first row, rows of ``A [Omega, G]``) over what was seen."""
        step = max(BLOCK_ENTRIES // (self.plan.width + self.plan.error_sketch), 4 * self.plan.width)
        for first, last in self.seen:
            for rows in spans(last - first, step):
                yield first + rows.start, self.store.get(first + rows.start, first + rows.stop)

    def arrays(self):
        """Return the state as arrays and as numbers."""
        numbers = {"scale": self.scale, "top": self.top, "seen": self.seen}
        return {"Y": self.store.whole(self.next_row), "H": self.H}, numbers

    def restore(self, arrays, numbers):
        """Take over a state that `arrays` returned."""
        self.H, self.scale, self.top = arrays["H"], numbers["scale"], numbers["top"]
        self.seen = [tuple(span) for span in numbers["seen"]]
        for first, last in self.seen:
            self.store.put(first, arrays["Y"][first:last, :])

    def _joined(self, new, caller):
        """Return the ranges of rows with new ones added; refuse rows that were seen before."""
        ranges = sorted([*self.seen, *new])
        joined = ranges[:1]
        for first, last in ranges[1:]:
            if first < joined[-1][1]:
                raise ValueError(
                    f"{caller}: row_offset must not lead to rows seen before: mode 'rows' takes each row once; got row "
                    f"{first} again (mode='turnstile' adds to rows)."
                )
            if first == joined[-1][1]:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        return joined

    def _fitting(self, scale, top, largest):
        """Return a power of two that keeps the squares of ``scale * A`` in range."""
        low, high = SAFE["float32" if eps_of(array_namespace(self.H), self.dtype) > 1e-10 else "float64"]
        too_large = largest * scale > high
        too_small = top == 0 and 0 < largest < low  # later, small rows beside large ones may vanish
        return 2.0 ** -round(math.log2(largest)) if too_large or too_small else scale

    def _test_columns(self):
        """Return ``[Omega, G]``; G, for the error, is Gaussian whatever Omega is."""
        if self._columns is None:
            xp, dtype, where = self.place
            plan, place = self.plan, {"xp": xp, "device": where, "dtype": dtype}
            parts = [test_matrix(plan.sketch, plan.key, plan.n_cols, plan.width, **place)]
            if plan.error_sketch:
                parts.append(test_matrix("gaussian", plan.key, plan.n_cols, plan.error_sketch, stream=1, **place))
            self._columns = xp.concat(parts, axis=1)
        return self._columns

    def _triangle(self):
        """Return R of the QR factorisation of ``scale * Y``, from those of its blocks."""
        width, R = self.plan.width, None
        for _, Y in self.blocks():
            Rb = orth(Y[:, :width] * self.scale if self.scale != 1 else Y[:, :width])[1]
            R = Rb if R is None else np.linalg.qr(np.concatenate([R, Rb]), mode="r")
        return R

    def _left(self, T, rows, k, folder):
        """Return an array of k columns, the first of them ``scale * Y T`` made orthonormal."""
        xp, dtype, where = self.place
        width, found = self.plan.width, T.shape[1]
        if folder is None:
            U = xp.zeros((k, rows), dtype=dtype, device=where).T  # columns are contiguous
        else:
            with tempfile.TemporaryFile(dir=folder) as file:  # it lives as long as the array
                U = np.memmap(file, self.dtype, "w+", shape=(rows, k))
        if not found:
            return U
        T, G = from_host(T * self.scale, xp, dtype, where), 0.0
        for start, Y in self.blocks():
            part = Y[:, :width] @ T
            U[start : start + Y.shape[0], :found] = part
            G = G + to_host(adjoint(part) @ part)
        # Dividing by small values cost some orthogonality, up to sqrt(eps): one round of Cholesky QR restores it.
        C = like(np.linalg.inv(np.linalg.cholesky(G)).conj().T, T)
        for start, Y in self.blocks():
            part = slice(start, start + Y.shape[0])
            U[part, :found] = U[part, :found] @ C
        return U


def _rescaled(H, ratio):
    return H * ratio * ratio  # the square of the ratio alone may leave the range of a float


class MemoryRows:
    """Rows of a fixed width in an array that grows."""

    def __init__(self, array):
        self.array = array

    def put(self, start, rows):
        """Write rows."""
        held, stop = self.array.shape[0], start + rows.shape[0]
        if stop > held:
            xp = array_namespace(self.array)
            shape = max(stop, held + held // 2), self.array.shape[1]
            grown = xp.empty(shape, dtype=self.array.dtype, device=device(self.array))
            grown[:held, :] = self.array
            self.array = grown
        self.array[start:stop, :] = rows

    def get(self, start, stop):
        """Return rows, as a view."""
        return self.array[start:stop, :]

    def whole(self, count):
        """Return the first `count` rows."""
        return self.array[:count, :]


class DiskRows:
    """Rows of a fixed width in a file without a name, which vanishes with this object."""

    def __init__(self, folder, width, dtype):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this object lives
        weakref.finalize(self, self._file.close)
        self._width, self._dtype = width, np.dtype(dtype)

    def __reduce__(self):
        self._file.seek(0, 2)
        count = self._file.tell() // (self._width * self._dtype.itemsize)
        return MemoryRows, (self.get(0, count),)

    def put(self, start, rows):
        """Write rows."""
        self._seek(start)
        self._file.write(np.ascontiguousarray(rows).data)

    def get(self, start, stop):
        """Return rows, as an array in memory."""
        rows = np.zeros((stop - start, self._width), self._dtype)
        self._seek(start)
        self._file.readinto(rows.data)
        return rows

    def whole(self, count):
        """Return the first `count` rows, as a view of the file."""
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=(count, self._width))

    def _seek(self, row):
        self._file.seek(row * self._width * self._dtype.itemsize)


def row_store(plan, place, folder):
    """Return the store for the rows of Y: in memory, or in a file in `folder`."""
    xp, dtype, where = place
    width = plan.width + plan.error_sketch
    if folder is None:
        return MemoryRows(xp.empty((plan.n_rows or 0, width), dtype=dtype, device=where))
    if not is_numpy_namespace(xp):
        raise TypeError(f"rnla.StreamingSVD: spill must be None for blocks that are not NumPy's; got {xp.__name__}.")
    return DiskRows(folder, width, dtype)


def pieces(M, caller):
    """Yield (first row, matrix) for parts of a matrix that give both products in one read of it."""
    blocks = M.row_blocks() if M.kind in ("file", "dask") else None
    if blocks is None:
        yield 0, M
        return
    for start, B in blocks:
        yield start, as_matrix(B, caller)
