"""Checks of the arguments of `rnla.optim`: real arrays of one library, decay rates, dampings."""

import numbers

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_dask_array


def real_arrays(caller, **arrays):
    """Return the namespace of arrays that must be real floating, dense and of one library; None is skipped."""
    arrays = {name: X for name, X in arrays.items() if X is not None}
    for name, X in arrays.items():
        if is_dask_array(X) or not is_array_api_obj(X) or isinstance(X, (np.matrix, np.ma.MaskedArray)):
            raise TypeError(
                f"{caller}: {name} must be an array of NumPy, CuPy, torch or another library of the array-API "
                f"standard; got {type(X).__module__}.{type(X).__name__}."
            )
    xp = array_namespace(*arrays.values())
    for name, X in arrays.items():
        if not xp.isdtype(X.dtype, "real floating"):
            raise ValueError(f"{caller}: {name} must be real floating; got dtype {X.dtype}.")
    return xp


def check_square(M, name, caller):
    """Raise unless `M` is a square matrix, or a vector that stands for a diagonal one."""
    if M.ndim == 1 or (M.ndim == 2 and M.shape[0] == M.shape[1]):
        return
    raise ValueError(f"{caller}: {name} must be square; got shape {tuple(M.shape)}.")


def check_shape(X, shape, name, caller):
    """Raise unless `X` has the shape."""
    if tuple(X.shape) != tuple(shape):
        raise ValueError(f"{caller}: {name} must have shape {tuple(shape)}; got {tuple(X.shape)}.")


def check_rho(rho, caller):
    """Raise unless a decay rate, where it is a number, is in [0, 1)."""
    if isinstance(rho, numbers.Real) and not 0 <= rho < 1:
        raise ValueError(f"{caller}: rho must be in [0, 1); got {rho}.")


def check_damping(lam, name, caller):
    """Raise if a damping that is a number is negative or not finite; one in an array is not read."""
    if isinstance(lam, numbers.Real) and not (lam >= 0 and np.isfinite(lam)):
        raise ValueError(f"{caller}: {name} must be finite and not negative; got {lam}.")


def scalar_like(value, X):
    """Return `value` as a 0-d array of the library, dtype and device of `X`, without a copy from the host."""
    xp = array_namespace(X)
    if is_array_api_obj(value):
        return xp.astype(value, X.dtype) if value.dtype != X.dtype else value
    return xp.full((), float(value), dtype=X.dtype, device=device(X))


def at_least_single(X):
    """Return `X` in single precision if its own is less."""
    xp = array_namespace(X)
    return xp.astype(X, xp.float32) if xp.finfo(X.dtype).bits < 32 else X
