"""Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, SC 2011) and normals made from it.

Every number is a function of (key, stream, kind, row, column) alone. Only integer operations, the correctly rounded
operations ``+ - * / sqrt`` and polynomials are used, written once in `philox4x32`, `polar_double` and `polar_single`
for arrays and for scalars: NumPy, the compiled CPU kernel and the GPU kernel run the same source. NumPy and the CPU
kernel agree in every bit (neither fuses multiply and add), so the faster one may be chosen by size; a GPU fuses, and
agrees to a few units in the last place.
"""

import sys

import numpy as np

from rnla.kernels._threads import map_blocks

# Kinds of numbers; each has counters of its own, so that no two share bits.
NORMAL_DOUBLE, NORMAL_SINGLE, SIGNS, UNIFORM, SPARSE, ROWS, SAMPLE = range(7)

LOW = np.uint64(0xFFFFFFFF)
HALF_WORD = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

# From this many numbers on, the compiled kernel is worth importing Numba (0.5 s) and compiling or reading its cache.
_COMPILE_FROM, _COMPILE_FROM_COUNTERS = 1 << 20, 1 << 17
_CELLS = 1 << 13  # counters per block of the NumPy path: its temporaries stay in the cache
_ROWS_PER_CALL = 1 << 11


def philox4x32(c0, c1, c2, c3, k0, k1):
    """Return the four 32-bit words of a counter; words, counter and key are 32-bit values held as uint64."""
    for _ in range(10):
        p0 = c0 * _M0
        p1 = c2 * _M1
        c0 = (p1 >> HALF_WORD) ^ c1 ^ k0
        c1 = p1 & LOW
        c2 = (p0 >> HALF_WORD) ^ c3 ^ k1
        c3 = p0 & LOW
        k0 = (k0 + _W0) & LOW
        k1 = (k1 + _W1) & LOW
    return c0, c1, c2, c3


# Double precision. Logarithm and sine are fdlibm's, on [sqrt(1/2), sqrt(2)] and [-pi/4, pi/4]: error below 1 ulp.
_U6, _U26, _U50, _U52 = (np.uint64(n) for n in (6, 26, 50, 52))
_LOG_SHIFT = np.uint64(0x3FF0000000000000 - 0x3FE6A09E00000000)  # splits the binades at sqrt(1/2) instead of 1
_LOG_LOW = np.uint64(0x3FE6A09E00000000)
_MANTISSA = np.uint64((1 << 52) - 1)
_ONE, _EIGHTH_TURN, _QUARTER_TURN = np.int64(1), np.uint64(1 << 49), np.int64(1 << 50)


def polar_double(w0, w1, w2, w3):
    """Return ``-2 log(u), cos(2 pi v), sin(2 pi v)`` for uniform doubles u of (w0, w1) and v of (w2, w3).

    ``u = (52 bits + 1/2) / 2**52`` is exact, hence never 0 or 1 (with 53 bits the last one would round up to 1).
    """
    u = (np.float64(np.int64(((w0 >> _U6) << _U26) + (w1 >> _U6))) + 0.5) * 2.0**-52
    bits = np.float64(u).view(np.uint64) + _LOG_SHIFT
    exponent = np.float64(np.int64(bits >> _U52) - np.int64(1023))
    f = np.uint64((bits & _MANTISSA) + _LOG_LOW).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = w * (0.3999999999940941908 + w * (0.2222219843214978396 + w * 0.1531383769920937332))
    even = 0.2857142874366239149 + w * (0.1818357216161805012 + w * 0.1479819860511658591)
    series = odd + z * (0.6666666666666735130 + w * even)
    h = 0.5 * f * f
    log = s * (h + series) + exponent * 1.90821492927058770002e-10 - h + f + exponent * 6.93147180369123816490e-01

    turn = ((w2 >> _U6) << _U26) + (w3 >> _U6)
    quadrant = np.int64((turn + _EIGHTH_TURN) >> _U50)
    x = (np.float64(np.int64(turn) - quadrant * _QUARTER_TURN) + 0.5) * 2.0**-50 * 1.5707963267948966
    z = x * x
    tail = 2.75573137070700676789e-06 + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)
    tail = 8.33333333332248946124e-03 + z * (-1.98412698298579493134e-04 + z * tail)
    sine = x + x * z * (-1.66666666666666324348e-01 + z * tail)
    tail = -2.75573143513906633035e-07 + z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)
    tail = -1.38888888888741095749e-03 + z * (2.48015872894767294178e-05 + z * tail)
    h = 0.5 * z
    one = 1.0 - h
    cosine = one + (((1.0 - one) - h) + z * z * (4.16666666666666019037e-02 + z * tail))

    # Products with 0 and 1 instead of branches: the same lines serve arrays and vectorised loops, without rounding.
    swap = np.float64(quadrant & _ONE)
    keep = 1.0 - swap
    sign_cos = 1.0 - 2.0 * np.float64(((quadrant + _ONE) >> _ONE) & _ONE)
    sign_sin = 1.0 - 2.0 * np.float64((quadrant >> _ONE) & _ONE)
    return -2.0 * log, sign_cos * (keep * cosine + swap * sine), sign_sin * (keep * sine + swap * cosine)


# Single precision: logarithm of FreeBSD's logf, sine and cosine of Cephes' sinf; every constant is typed, because a
# plain literal would make Numba compute in double precision.
_U9, _U23 = np.uint64(9), np.uint32(23)
_LOG_SHIFT_32, _LOG_LOW_32 = np.uint32(0x3F800000 - 0x3F3504F3), np.uint32(0x3F3504F3)
_MANTISSA_32 = np.uint32((1 << 23) - 1)
_I1, _I21, _I127, _EIGHTH = np.int32(1), np.int32(21), np.int32(127), np.int32(1 << 20)
_F05, _F1, _F2 = np.float32(0.5), np.float32(1), np.float32(2)
_F2M21, _F2M23, _HALF_PI = np.float32(2.0**-21), np.float32(2.0**-23), np.float32(np.pi / 2)
_LN2_HIGH, _LN2_LOW = np.float32(6.9313812256e-01), np.float32(9.0580006145e-06)
_L1, _L2 = np.float32(0.66666662693), np.float32(0.40000972152)
_L3, _L4 = np.float32(0.28498786688), np.float32(0.24279078841)
_S1, _S2, _S3 = np.float32(-1.6666654611e-1), np.float32(8.3321608736e-3), np.float32(-1.9515295891e-4)
_C1, _C2, _C3 = np.float32(4.166664568298827e-2), np.float32(-1.388731625493765e-3), np.float32(2.443315711809948e-5)


def polar_single(w0, w1):
    """Return ``-2 log(u), cos(2 pi v), sin(2 pi v)`` for uniform singles ``u, v = (23 bits + 1/2) / 2**23``."""
    u = (np.float32(np.int32(w0 >> _U9)) + _F05) * _F2M23
    bits = np.uint32(np.float32(u).view(np.uint32) + _LOG_SHIFT_32)
    exponent = np.float32(np.int32(bits >> _U23) - _I127)
    f = np.uint32((bits & _MANTISSA_32) + _LOG_LOW_32).view(np.float32) - _F1
    s = f / (_F2 + f)
    z = s * s
    w = z * z
    h = _F05 * f * f
    log = s * (h + (z * (_L1 + w * _L3) + w * (_L2 + w * _L4))) + exponent * _LN2_LOW - h + f + exponent * _LN2_HIGH

    turn = np.int32(w1 >> _U9)
    quadrant = (turn + _EIGHTH) >> _I21
    x = (np.float32(turn - (quadrant << _I21)) + _F05) * _F2M21 * _HALF_PI
    z = x * x
    sine = x + x * z * (_S1 + z * (_S2 + z * _S3))
    cosine = _F1 - _F05 * z + z * z * (_C1 + z * (_C2 + z * _C3))
    swap = np.float32(quadrant & _I1)
    keep = _F1 - swap
    sign_cos = _F1 - _F2 * np.float32(((quadrant + _I1) >> _I1) & _I1)
    sign_sin = _F1 - _F2 * np.float32((quadrant >> _I1) & _I1)
    return -_F2 * log, sign_cos * (keep * cosine + swap * sine), sign_sin * (keep * sine + swap * cosine)


def split_key(key):
    """Return the two 32-bit halves of a 64-bit key, as uint64."""
    return np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)


def random_words(key, stream, kind, rows, counters):
    """Return the words of counters ``(row, counter)``, on one core of the CPU.

    Callers share the rows out by `map_blocks`.

    Parameters
    ----------
    key, stream, kind : int
        Which sequence: a 64-bit key, a stream below 2**29, and one of the kinds of this module.
    rows : tuple of int
        Half-open range of indices along the long side.
    counters : tuple of int
        Half-open range of indices along the short side, each below 2**32.

    Returns
    -------
    numpy.ndarray
        Shape (rows, counters, 4), uint32.
    """
    (a, b), (c, d) = rows, counters
    out = np.empty((b - a, d - c, 4), np.uint32)
    if "rnla.kernels._philox_cpu" in sys.modules:
        from rnla.kernels._philox_cpu import words_on_cpu

        words_on_cpu(out, key, stream, kind, a, c)
        return out
    for lo, hi in _row_chunks(0, b - a, d - c):
        for q, word in enumerate(_words(key, stream, kind, (a + lo, a + hi), (c, d))):
            out[lo:hi, :, q] = word
    return out


def load_compiled(n_counters):
    """Load the compiled kernel if the blocks that are about to be made have enough counters in all."""
    if n_counters >= _COMPILE_FROM_COUNTERS:
        import rnla.kernels._philox_cpu  # noqa: F401 - `random_words` finds it in sys.modules


def fill_normal(out, key, stream=0, row=0, col=0):
    """Fill `out` with the standard normal numbers of rows ``row, row + 1, ...`` and columns ``col, col + 1, ...``.

    Parameters
    ----------
    out : numpy.ndarray or cupy.ndarray
        Shape (n, l), float32 or float64, C-contiguous; overwritten. The numbers of the two dtypes are unrelated.
    key, stream : int
        Which matrix: a 64-bit key and a stream below 2**29.
    row, col : int
        Place of ``out[0, 0]`` in the infinite matrix of that key and stream.

    Returns
    -------
    array
        `out`.
    """
    if type(out).__module__.partition(".")[0] == "cupy":
        from rnla.kernels import _philox_cuda

        return _philox_cuda.launch(out, key, stream, row, col)
    kernel = reference
    if out.size >= _COMPILE_FROM or "rnla.kernels._philox_cpu" in sys.modules:
        from rnla.kernels._philox_cpu import on_cpu as kernel
    map_blocks(
        lambda start, stop: kernel(out[start:stop], key, stream, row + start, col), out.shape[0], block=_ROWS_PER_CALL
    )
    return out


def reference(out, key, stream, row, col):
    """Fill `out` like `fill_normal`, with NumPy's operations on blocks that fit in the cache."""
    n, width = out.shape
    double = out.dtype == np.float64
    kind, per_counter = (NORMAL_DOUBLE, 2) if double else (NORMAL_SINGLE, 4)
    first, last = col // per_counter, -(-(col + width) // per_counter)
    for lo, hi in _row_chunks(0, n, last - first):
        w0, w1, w2, w3 = _words(key, stream, kind, (row + lo, row + hi), (first, last))
        polar = [polar_double(w0, w1, w2, w3)] if double else [polar_single(w0, w1), polar_single(w2, w3)]
        block = np.empty((*w0.shape, per_counter), out.dtype)
        for p, (square, cosine, sine) in enumerate(polar):
            radius = np.sqrt(square)
            np.multiply(radius, cosine, out=block[:, :, 2 * p])
            np.multiply(radius, sine, out=block[:, :, 2 * p + 1])
        skip = col - first * per_counter
        out[lo:hi] = block.reshape(hi - lo, -1)[:, skip : skip + width]


def _row_chunks(start, stop, n_counters):
    step = max(1, _CELLS // max(1, n_counters))
    return ((lo, min(lo + step, stop)) for lo in range(start, stop, step))


def _words(key, stream, kind, rows, counters):
    """Return the four words of each counter as arrays of shape (rows, counters)."""
    row = np.arange(*rows, dtype=np.uint64)[:, None]
    col = np.arange(*counters, dtype=np.uint64)[None, :]
    return philox4x32(row & LOW, row >> HALF_WORD, col, np.uint64(stream * 8 + kind), *split_key(key))
