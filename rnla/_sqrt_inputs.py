"""Arguments that all updates of matrix roots share."""

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from rnla._backend import adjoint, eps_of
from rnla._errors import AccuracyWarning
from rnla._rangefinder import check_number, warn

USUAL = {8: 1e-8, 4: 1e-6}  # tolerances by bytes of a real number
LEAST = {8: 1e-15, 4: 1e-6}


def check_update(Z, C, sign, caller):
    """Return Z as a block of columns and C, checked."""
    if not is_array_api_obj(Z):
        Z = np.asarray(Z)
    xp = array_namespace(Z)
    if not xp.isdtype(Z.dtype, ("real floating", "complex floating")):
        if not xp.isdtype(Z.dtype, ("integral", "bool")):
            raise TypeError(f"{caller}: Z must be of a numeric dtype; got {Z.dtype}.")
        Z = xp.astype(Z, xp.float64)
    if Z.ndim not in (1, 2) or not Z.shape[0]:
        raise ValueError(f"{caller}: Z must have shape (n,) or (n, k); got {tuple(Z.shape)}.")
    Z = Z[:, None] if Z.ndim == 1 else Z
    if not bool(xp.all(xp.isfinite(Z))):
        raise ValueError(f"{caller}: Z must be finite; it contains NaN or infinity.")
    if isinstance(sign, bool) or sign not in (1, -1):
        raise ValueError(f"{caller}: sign must be 1 or -1; got {sign!r}.")
    if C is None:
        return Z, None
    C = C if is_array_api_obj(C) else xp.asarray(np.asarray(C), dtype=Z.dtype)
    k = Z.shape[1]
    if tuple(C.shape) != (k, k):
        raise ValueError(f"{caller}: C must have shape ({k}, {k}); got {tuple(C.shape)}.")
    if not bool(xp.all(xp.isfinite(C))):
        raise ValueError(f"{caller}: C must be finite; it contains NaN or infinity.")
    top = float(xp.max(xp.abs(C))) if k else 0.0
    if k and float(xp.max(xp.abs(C - adjoint(C)))) > 1e3 * eps_of(xp, Z.dtype) * top:
        raise ValueError(f"{caller}: C must be Hermitian.")
    return Z, C


def default_tol(Z):
    """Return the tolerance of a precision."""
    return USUAL[_bytes(Z)]


def checked_tol(tol, Z, caller):
    """Return the tolerance; below what the precision gives it is raised, with a warning."""
    if tol is None:
        return default_tol(Z)
    check_number(tol, "tol", caller)
    if not 0 < tol < 1:
        raise ValueError(f"{caller}: tol must be in (0, 1); got {tol}.")
    least = LEAST[_bytes(Z)]
    if tol < least:
        warn(f"{caller}: tol={tol:g} is below what {Z.dtype} gives; {least:g} is used", AccuracyWarning)
        return least
    return float(tol)


def _bytes(Z):
    return 4 if eps_of(array_namespace(Z), Z.dtype) > 1e-10 else 8
