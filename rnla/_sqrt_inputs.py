"""Arguments that all updates of matrix roots share."""

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from rnla._backend import eps_of, to_host
from rnla._errors import AccuracyWarning
from rnla._rangefinder import check_number, warn

USUAL = {8: 1e-8, 4: 1e-6}  # tolerances by bytes of a real number
LEAST = {8: 1e-15, 4: 1e-6}


def check_update(Z, C, sign, caller):
    """Return Z as a block of columns, and C on the host, checked."""
    if not is_array_api_obj(Z):
        Z = np.asarray(Z)
        if Z.dtype.kind not in "biufc":
            raise TypeError(f"{caller}: Z must be of a numeric dtype; got {Z.dtype}.")
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
    C = to_host(C) if is_array_api_obj(C) else np.asarray(C)
    k = Z.shape[1]
    if C.shape != (k, k):
        raise ValueError(f"{caller}: C must have shape ({k}, {k}); got {C.shape}.")
    if C.dtype.kind not in "biufc":
        raise TypeError(f"{caller}: C must be of a numeric dtype; got {C.dtype}.")
    C = C.astype(complex if C.dtype.kind == "c" else float)
    if not np.isfinite(C).all():
        raise ValueError(f"{caller}: C must be finite; it contains NaN or infinity.")
    if np.abs(C - C.conj().T).max(initial=0.0) > 1e3 * eps_of(xp, Z.dtype) * np.abs(C).max(initial=0.0):
        raise ValueError(f"{caller}: C must be Hermitian.")
    if C.dtype.kind == "c" and not xp.isdtype(Z.dtype, "complex floating"):
        if C.imag.any():
            return xp.astype(Z, xp.complex64 if _bytes(Z) == 4 else xp.complex128), C
        C = C.real
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
