"""What the array-API standard lacks: keys for random numbers, finite checks, triangular solves and Cholesky."""

import numbers

import numpy as np


def adjoint(X):
    """Return the conjugate transpose of a matrix, as a view where the library has views."""
    from array_api_compat import array_namespace

    xp = array_namespace(X)
    return xp.conj(X.T) if xp.isdtype(X.dtype, "complex floating") else X.T


def key_from_rng(rng, caller):
    """Reduce `rng` to the 64-bit key from which all random numbers of one call are made.

    A generator is advanced by one draw, so that two calls in a row differ; a seed always gives the same key.

    Parameters
    ----------
    rng : None, int, numpy.random.Generator, numpy.random.SeedSequence or numpy.random.RandomState
        Source of randomness, as in SPEC 7.
    caller : str
        Public function named in the error.

    Returns
    -------
    int
        A key in ``[0, 2**64)``.
    """
    check_rng(rng, caller)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 2**64, dtype=np.uint64))
    if isinstance(rng, np.random.RandomState):
        high, low = rng.randint(0, 2**32, size=2, dtype=np.uint64)
        return int(high) << 32 | int(low)
    if not isinstance(rng, np.random.SeedSequence):
        rng = np.random.SeedSequence(None if rng is None else int(rng))
    return int(rng.generate_state(1, np.uint64)[0])


def check_rng(rng, caller, name="rng"):
    """Raise unless `rng` is a source of randomness; draws nothing."""
    kinds = (np.random.Generator, np.random.RandomState, np.random.SeedSequence, numbers.Integral, type(None))
    if isinstance(rng, (bool, np.bool_)) or not isinstance(rng, kinds):
        raise TypeError(
            f"{caller}: {name} must be None, a non-negative int, a numpy.random.Generator, SeedSequence or "
            f"RandomState; got {type(rng).__name__}."
        )
    if isinstance(rng, numbers.Integral) and rng < 0:
        raise ValueError(f"{caller}: {name} as a seed must be a non-negative int; got {rng}.")


def is_meta(X):
    """Say whether `X` is a torch tensor on the ``meta`` device, which has a shape but no values."""
    return getattr(getattr(X, "device", None), "type", None) == "meta"


def check_finite(X, caller, name, M=None):
    """Raise ``ValueError`` if `X`, a product with the argument `name`, has a NaN or an infinity.

    With the `Matrix` M of that argument the error names the block of a file or dask array that has it, for at most one
    more read.
    """
    from array_api_compat import array_namespace, is_numpy_array

    if is_meta(X):
        return
    if is_numpy_array(X):
        # A sum is one read without a temporary; only when it is not finite (NaN, Inf or overflow) look at the entries.
        with np.errstate(all="ignore"):
            if np.isfinite(X.sum()) or np.isfinite(X).all():
                return
    else:
        xp = array_namespace(X)
        if bool(xp.all(xp.isfinite(X))):
            return
    where = None if M is None else M.storage.source.locate_nonfinite()
    found = "its products contain NaN or infinity" if where is None else f"it has NaN or infinity in {where}"
    raise ValueError(f"{caller}: {name} must be finite; {found}.")


def real_dtype(xp, dtype):
    """Return the real dtype of the same precision as `dtype`."""
    if xp.isdtype(dtype, "real floating"):
        return dtype
    return xp.float32 if dtype == xp.complex64 else xp.float64


def eps_of(xp, dtype):
    """Return the rounding unit ``2**-52`` or ``2**-23`` of a floating dtype, as a Python float."""
    return float(xp.finfo(dtype).eps)


def to_host(X):
    """Return a small array as NumPy, in double precision: the place of all k x k work."""
    from array_api_compat import is_cupy_array, is_dask_array, is_numpy_array, is_torch_array

    if is_dask_array(X):
        X = X.compute()
    if is_numpy_array(X):
        host = X
    elif is_torch_array(X):
        host = X.detach().resolve_conj().cpu().numpy()
    elif is_cupy_array(X):
        host = X.get()
    else:
        host = _host_by_dlpack(X)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)


def from_host(X, xp, dtype, device):
    """Return a NumPy array as an array of `xp` with the given dtype and device."""
    from array_api_compat import is_numpy_namespace

    if xp.isdtype(dtype, "real floating") and np.iscomplexobj(X):
        X = X.real
    if is_numpy_namespace(xp):
        return X.astype(dtype, copy=False)
    X = np.ascontiguousarray(X)
    # A single row or column in reverse counts as contiguous with its negative stride, which torch refuses.
    return xp.asarray(X.copy() if min(X.strides, default=0) < 0 else X, dtype=dtype, device=device)


def columns(xp, rows, count, *, dtype, device):
    """Return an uninitialised (rows, count) array whose columns are contiguous: the order BLAS multiplies fastest."""
    return xp.empty((count, rows), dtype=dtype, device=device).T


def _host_by_dlpack(X):
    from array_api_compat import array_namespace, to_device

    xp = array_namespace(X)
    for device in ("cpu", None):  # array-api-strict calls its host "CPU_DEVICE" and knows no other name for it
        try:
            return np.from_dlpack(to_device(X, device or xp.Device("CPU_DEVICE")))
        except (ValueError, AttributeError, TypeError):
            continue
    raise TypeError(f"rnla: cannot bring an array of {type(X).__module__} to the host.")


def host_svd(X):
    """Return the thin SVD of a small matrix on the host; never fails on finite input."""
    try:
        return np.linalg.svd(X, full_matrices=False)
    except np.linalg.LinAlgError:  # divide and conquer has, rarely, not converged where QR iteration does
        from scipy.linalg import svd

        return svd(X, full_matrices=False, lapack_driver="gesvd", check_finite=False)
