"""Random test matrices, any block of which can be made without the rest."""

import numpy as np
from array_api_compat import is_cupy_namespace, is_numpy_namespace

from rnla import kernels
from rnla.kernels import _philox

KINDS = ("gaussian", "rademacher", "uniform", "sparse")
_BLOCK = 1 << 16  # entries per call of a thread; what is computed does not depend on it
_DTYPES = ("float32", "float64", "complex64", "complex128")


def test_matrix(kind, key, n, l, *, xp=np, device=None, dtype=None, stream=0, start=0, row=0):  # noqa: PT028 - not a test
    """Return a block of the unit-variance random matrix of a key.

    The matrix has infinitely many rows and columns; entry (i, j) depends on the kind, key, stream, dtype, i and j
    alone. So more columns, or blocks of rows made apart, agree exactly with one larger block.

    Parameters
    ----------
    kind : {'gaussian', 'rademacher', 'uniform', 'sparse'}
        Normal; +1 or -1 (in the complex case a point of the unit circle); uniform on an interval around zero; in
        each row and each four columns one entry 2 or -2 and three zeros.
    key : int
        64-bit key.
    n, l : int
        Numbers of rows and columns.
    xp : namespace
        Array library of the result. On CuPy, normals are made on the GPU; other libraries get a copy of NumPy's.
    device : object
        Device of the result, in the words of `xp`.
    dtype : dtype of `xp`
        float32, float64 (the default), complex64 or complex128.
    stream : int
        Number below 2**29 that tells matrices of one key apart.
    start, row : int
        Column and row of the infinite matrix at which the block starts.

    Returns
    -------
    array, shape (n, l)
        C-contiguous; a torch ``meta`` tensor if that is the device.

    Examples
    --------
    >>> whole = rnla.sketch.test_matrix("gaussian", 7, 100, 8)
    >>> block = rnla.sketch.test_matrix("gaussian", 7, 20, 3, row=50, start=5)
    >>> np.array_equal(block, whole[50:70, 5:8])
    True
    """
    if kind not in KINDS:
        raise ValueError(f"rnla.sketch.test_matrix: kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    dtype = xp.float64 if dtype is None else dtype
    if str(device) == "meta":
        return xp.empty((n, l), dtype=dtype, device=device)
    name = next((name for name in _DTYPES if dtype == getattr(xp, name)), None)
    if name is None:
        raise TypeError(f"rnla.sketch.test_matrix: dtype must be one of {', '.join(_DTYPES)}; got {dtype}.")
    if is_cupy_namespace(xp) and kind == "gaussian":
        with xp.cuda.Device(device):
            return _fill(xp.empty((n, l), dtype=dtype), kind, key, stream, row, start)
    out = _fill(np.empty((n, l), name), kind, key, stream, row, start)
    return out if is_numpy_namespace(xp) else xp.asarray(out, device=device)


test_matrix.__test__ = False  # pytest takes the name for a test


def _fill(out, kind, key, stream, row, col):
    parts = out
    if out.dtype.kind == "c" and kind in ("gaussian", "uniform"):
        # Real and imaginary part are columns 2 j and 2 j + 1 of the real matrix: E |entry|**2 = 1 after halving.
        parts, col = out.view(out.real.dtype), 2 * col
    if kind == "gaussian":
        kernels.fill_normal(parts, key, stream, row, col)
    else:
        fill = {"rademacher": _fill_signs, "uniform": _fill_uniform, "sparse": _fill_sparse}[kind]
        if kind == "rademacher" and out.dtype.kind == "c":
            fill = _fill_phases
        per_counter = 2 if fill in (_fill_uniform, _fill_phases) else 128
        _philox.load_compiled(parts.size // per_counter)
        kernels.map_blocks(
            lambda lo, hi: fill(parts[lo:hi], key, stream, row + lo, col),
            out.shape[0],
            block=max(1, _BLOCK // max(1, out.shape[1])),
        )
    if parts is not out:
        out *= out.dtype.type(np.sqrt(0.5))
    return out


def _fill_uniform(out, key, stream, row, col):
    out[...] = (_uniform(out.shape, key, stream, row, col) - 0.5) * np.sqrt(12.0)


def _fill_phases(out, key, stream, row, col):
    out[...] = np.exp(2j * np.pi * _uniform(out.shape, key, stream, row, col))


def _uniform(shape, key, stream, row, col):
    """Return doubles ``(52 bits + 1/2) / 2**52``, two of each counter."""
    first, last = col // 2, -(-(col + shape[1]) // 2)
    words = kernels.random_words(key, stream, _philox.UNIFORM, (row, row + shape[0]), (first, last)) >> np.uint32(6)
    pairs = words.reshape(shape[0], -1, 2)
    u = (pairs[:, :, 0] * 2.0**26 + pairs[:, :, 1] + 0.5) * 2.0**-52
    return u[:, col - 2 * first : col - 2 * first + shape[1]]


def _fill_signs(out, key, stream, row, col):
    _fill_from_bits(out, _SIGNS, _philox.SIGNS, key, stream, row, col)


def _fill_sparse(out, key, stream, row, col):
    _fill_from_bits(out, _SPARSE, _philox.SPARSE, key, stream, row, col)


def _fill_from_bits(out, entries_of_byte, kind, key, stream, row, col):
    """Translate each byte of the counters to eight columns: 128 columns per counter."""
    n, width = out.shape
    first, last = col // 128, -(-(col + width) // 128)
    words = kernels.random_words(key, stream, kind, (row, row + n), (first, last))
    octets = words.astype("<u4", copy=False).view(np.uint8).reshape(n, -1)
    skip = col - 128 * first
    octets = octets[:, skip // 8 : -(-(skip + width) // 8)]
    block = entries_of_byte.astype(out.dtype)[octets].reshape(n, -1)
    out[...] = block[:, skip % 8 : skip % 8 + width]


def _sparse_entries():
    """Map a byte to eight columns: of each half, two bits choose the place and one the sign of its entry."""
    table = np.zeros((256, 2, 4))
    for half in range(2):
        bits = np.arange(256) >> (4 * half) & 15
        table[np.arange(256), half, bits & 3] = np.where(bits & 4, -2.0, 2.0)
    return table.reshape(256, 8)


_SIGNS = 1.0 - 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
_SPARSE = _sparse_entries()
