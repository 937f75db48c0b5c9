"""Orthogonal discrete cosine transform of the columns of a matrix, in any array library."""

import math

from array_api_compat import array_namespace, device, is_numpy_namespace

from rnla import kernels


def dct(X):
    """Multiply `X` (n, c), floating, from the left by the orthogonal DCT-II matrix."""
    xp = array_namespace(X)
    if is_numpy_namespace(xp):
        from scipy import fft

        return fft.dct(X, axis=0, norm="ortho", workers=kernels.num_threads())
    if xp.isdtype(X.dtype, "complex floating"):
        return _join(xp, dct(xp.real(X)), dct(xp.imag(X)))
    # Makhoul (1980): the transform is the real part of a twisted FFT of the even rows, then the odd ones backwards.
    n = X.shape[0]
    V = xp.fft.fft(_complex(xp, xp.concat((X[::2, :], xp.flip(X[1::2, :], axis=0)))), axis=0)
    return xp.real(V * _twist(X, xp, -1.0)) * _scale(X, xp, math.sqrt(2.0 / n), math.sqrt(1.0 / n))


def idct(X):
    """Multiply `X` (n, c), floating, from the left by the transpose of the orthogonal DCT-II matrix."""
    xp = array_namespace(X)
    if is_numpy_namespace(xp):
        from scipy import fft

        return fft.idct(X, axis=0, norm="ortho", workers=kernels.num_threads())
    if xp.isdtype(X.dtype, "complex floating"):
        return _join(xp, idct(xp.real(X)), idct(xp.imag(X)))
    n = X.shape[0]
    Y = X * _scale(X, xp, math.sqrt(n / 2.0), math.sqrt(n))
    reverse = xp.concat((xp.zeros_like(Y[:1, :]), xp.flip(Y[1:, :], axis=0)))
    v = xp.real(xp.fft.ifft(_join(xp, Y, -reverse) * _twist(X, xp, 1.0), axis=0))
    out = xp.zeros_like(X)
    out[::2, :] = v[: (n + 1) // 2, :]
    out[1::2, :] = xp.flip(v[(n + 1) // 2 :, :], axis=0)
    return out


def _complex(xp, X):
    return xp.astype(X, xp.complex64 if X.dtype == xp.float32 else xp.complex128)


def _join(xp, real, imag):
    return _complex(xp, real) + 1j * _complex(xp, imag)


def _twist(X, xp, sign):
    """Return ``exp(sign * i pi k / (2 n))`` as a column."""
    angle = xp.arange(X.shape[0], dtype=X.dtype, device=device(X)) * (sign * math.pi / (2 * X.shape[0]))
    return _join(xp, xp.cos(angle), xp.sin(angle))[:, None]


def _scale(X, xp, rest, first):
    scale = xp.full((X.shape[0], 1), rest, dtype=X.dtype, device=device(X))
    scale[0, 0] = first
    return scale
