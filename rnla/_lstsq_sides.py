"""Right-hand sides and starting points of a solver: checked, scaled, as blocks of columns in the library of A."""

from typing import Any, NamedTuple

import numpy as np

from rnla._backend import check_finite, from_host, to_host
from rnla._tall import like


class Sides(NamedTuple):
    """Right-hand sides as the methods want them, and the way back."""

    B: Any  # (m, k), of the dtype of A, each column scaled to a largest entry of about one
    scale: np.ndarray  # (k,), powers of two
    vector: bool
    split: bool  # complex, for a real A: real and imaginary parts are columns of their own

    def restored(self, solution, factor):
        """Return x, the norms of the residual and the backward errors for b as it was given."""
        from array_api_compat import array_namespace

        X = solution.x * like((self.scale * factor)[None, :], solution.x)
        resnorm, error = solution.resnorm * self.scale, solution.error
        if self.split:
            xp, half = array_namespace(X), X.shape[1] // 2
            dtype = xp.complex64 if X.dtype == xp.float32 else xp.complex128
            X = xp.astype(X[:, :half], dtype) + 1j * xp.astype(X[:, half:], dtype)
            resnorm = np.hypot(resnorm[:half], resnorm[half:])
            error = np.maximum(error[:half], error[half:])
        if self.vector:
            return X[:, 0], float(resnorm[0]), float(error[0])
        return X, resnorm, error


def right_hand_sides(b, M, caller):
    """Return `b` as `Sides`, or raise."""
    B, vector = _block(b, M, M.shape[0], "b", caller)
    check_finite(B, caller, "b")
    xp = M.xp
    split = xp.isdtype(B.dtype, "complex floating") and not xp.isdtype(M.dtype, "complex floating")
    if split:
        B = xp.concat([xp.real(B), xp.imag(B)], axis=1)
    top = to_host(xp.max(xp.abs(B), axis=0)).real
    scale = 2.0 ** np.round(np.log2(np.where(top > 0, top, 1.0)))
    B = xp.astype(B, xp.float64, copy=False) if not xp.isdtype(B.dtype, "complex floating") else B
    B = B * from_host(1 / scale[None, :], xp, xp.float64, M.device)
    return Sides(xp.astype(B, M.dtype, copy=False), scale, vector, split)


def starting_point(x0, sides, M, method, caller):
    """Return x0 on the host in the units of the scaled right-hand sides, or None."""
    if x0 is None:
        return None
    if M.shape[0] < M.shape[1]:
        raise ValueError(f"{caller}: x0 must be None for a wide A, whose least solution is unique; got an array.")
    if method in ("direct", "sketch"):
        raise ValueError(f"{caller}: x0 must be None for method {method!r}, which does not iterate; got an array.")
    X, vector = _block(x0, M, M.shape[1], "x0", caller)
    check_finite(X, caller, "x0")
    X, real = to_host(X), M.xp.isdtype(M.dtype, "real floating")
    if np.iscomplexobj(X) and real and not sides.split:
        raise TypeError(f"{caller}: x0 must be real, as A and b are; got {x0.dtype}.")
    X = np.concatenate([X.real, X.imag], axis=1) if sides.split else X
    if vector != sides.vector or X.shape[1] != sides.B.shape[1]:
        raise ValueError(f"{caller}: x0 must have as many columns as b; got shape {tuple(x0.shape)}.")
    return X / sides.scale


def _block(b, M, rows, name, caller):
    """Return `b` as a floating block of columns in the library of A, and whether it was a vector."""
    from array_api_compat import array_namespace, is_array_api_obj, is_dask_array, is_numpy_namespace

    if is_dask_array(b):
        b = b.compute()
    if is_numpy_namespace(M.xp) and not (is_array_api_obj(b) and not isinstance(b, np.ndarray)):
        if isinstance(b, (np.matrix, np.ma.MaskedArray)):
            raise TypeError(f"{caller}: {name} must be a plain array; got {type(b).__module__}.{type(b).__name__}.")
        b = np.asarray(b)
    xp = M.xp
    if not is_array_api_obj(b) or array_namespace(b) is not xp:
        raise TypeError(f"{caller}: {name} must be an array of {xp.__name__}, as A is; got {type(b).__module__} array.")
    if not xp.isdtype(b.dtype, ("bool", "numeric")):
        raise TypeError(f"{caller}: {name} must have a numeric dtype; got {b.dtype}.")
    if b.ndim not in (1, 2) or b.shape[0] != rows or (b.ndim == 2 and b.shape[1] < 1):
        raise ValueError(
            f"{caller}: {name} must have shape ({rows},) or ({rows}, c) for A of shape {M.shape}; got {tuple(b.shape)}."
        )
    b = b.detach() if hasattr(b, "detach") else b
    if not xp.isdtype(b.dtype, ("real floating", "complex floating")):
        b = xp.astype(b, xp.float64)
    return (b[:, None], True) if b.ndim == 1 else (b, False)
