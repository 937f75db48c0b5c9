"""Fast Walsh-Hadamard transform of the columns of a matrix, in place."""

import sys

from array_api_compat import array_namespace, is_cupy_namespace, is_numpy_namespace

from rnla.kernels._threads import map_blocks

_COMPILE_FROM = 1 << 20  # entries from which the compiled kernel is worth importing Numba and compiling
_TILE_BYTES = 256  # columns per call: four cache lines of each row


def fwht(X):
    """Multiply `X` from the left by the Hadamard matrix with entries +1 and -1 (Sylvester's order, not scaled).

    Parameters
    ----------
    X : array, shape (n, c)
        n a power of two; floating, C-contiguous. Overwritten if it is a NumPy or CuPy array.

    Returns
    -------
    array
        The product: `X` itself for NumPy and CuPy. Applied twice it is ``n * X``.
    """
    xp = array_namespace(X)
    if is_cupy_namespace(xp):
        from rnla.kernels import _fwht_cuda

        return _fwht_cuda.launch(X)
    if not is_numpy_namespace(xp):
        return reference(X)
    if X.size < _COMPILE_FROM and "rnla.kernels._fwht_cpu" not in sys.modules:
        X[...] = reference(X)
        return X
    from rnla.kernels._fwht_cpu import transform

    real = X.view(X.real.dtype)  # the parts of a complex matrix are columns of their own
    map_blocks(lambda start, stop: transform(real, start, stop), real.shape[1], block=_TILE_BYTES // real.itemsize)
    return X


def reference(X):
    """Return the transform of `X` with the array-API standard alone."""
    xp = array_namespace(X)
    n, width = X.shape
    half = 1
    while half < n:
        pairs = xp.reshape(X, (n // (2 * half), 2, half, width))
        upper, lower = pairs[:, 0, :, :], pairs[:, 1, :, :]
        X = xp.reshape(xp.stack((upper + lower, upper - lower), axis=1), (n, width))
        half *= 2
    return X
