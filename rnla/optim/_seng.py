"""Sketchy empirical natural gradient: a damped solve with the gradients of single examples (SENG)."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import eps_of, key_from_rng
from rnla.optim._checks import at_least_single, check_damping, check_shape, real_arrays, scalar_like
from rnla.optim._symmetric import eigenpairs, ridged, spd_inverse

RANK = 16  # of the gradient of an example that is used at many positions, as published
CHUNK_BYTES = 2**26  # of gradients of single examples in memory at a time


def seng_solve(V, a_bar, h, lam, *, terms, sample=None, rng=None):
    """Apply ``(lam I + F)^-1`` with the empirical Fisher block F of a layer, from the examples of a batch.

    With the gradients of single examples in the columns of U, ``F = U U^T`` and the inverse is
    ``(V - U (lam I + U^T U)^-1 U^T V) / lam``: a system as large as the batch. U is never formed.

    Parameters
    ----------
    V : array, shape (q, p)
        Gradient of the weights.
    a_bar : array, shape (N, p) or (N, R, p)
        Inputs, with the 1 of a bias.
    h : array, shape (N, q) or (N, R, q)
        Derivative of the reduced loss with respect to the outputs.
    lam : float
        Damping, not negative. It is raised to the trace of F times the square root of the rounding unit: below, nothing
        but rounding is left of the difference.
    terms : int
        Number of terms that the loss averages over.
    sample : int, optional
        Rows of `a_bar` and of `h` from which ``U^T U`` is estimated.
    rng : None, int or numpy.random.Generator
        Source of the choice.

    Returns
    -------
    array, shape (q, p)
        Preconditioned gradient.

    Raises
    ------
    ValueError
        If an argument is not one of the above.
    TypeError
        If an argument is no array.
    numpy.linalg.LinAlgError or RuntimeError
        If an array has a NaN or an infinity.

    Notes
    -----
    ``O(N R p q)`` for the products with U, ``O((N R)**2 (p + q) + N**3)`` for the system.

    References
    ----------
    .. [1] Yang et al., J. Sci. Comput. 2022, arXiv 2006.05924.

    Examples
    --------
    >>> V, a, h = np.ones((1, 2)), np.array([[1.0, 0.0]]), np.array([[1.0]])
    >>> rnla.optim.seng_solve(V, a, h, 1.0, terms=1).round(6).tolist()
    [[0.5, 1.0]]
    """
    caller = "rnla.optim.seng_solve"
    xp = real_arrays(caller, V=V, a_bar=a_bar, h=h)
    check_damping(lam, "lam", caller)
    check_shape(a_bar, (*h.shape[:-1], V.shape[1]), "a_bar", caller)
    check_shape(h, (*h.shape[:-1], V.shape[0]), "h", caller)
    if h.ndim == 2:
        a_bar, h = xp.expand_dims(a_bar, axis=1), xp.expand_dims(h, axis=1)
    N, R = h.shape[:2]
    (a, size_a), (h, size_h) = _at_most_one(at_least_single(a_bar)), _at_most_one(at_least_single(h) * terms**0.5)
    rows_a, rows_h = xp.reshape(a, (N * R, -1)), xp.reshape(h, (N * R, -1))
    keys = np.random.default_rng(key_from_rng(rng, caller)) if sample is not None else None
    gram = _gram(rows_a, sample, keys) * _gram(rows_h, sample, keys)
    if R > 1:
        gram = xp.sum(xp.reshape(gram, (N, R, N, R)), axis=(1, 3))
    # U y has an error of eps trace / (4 lam) times V; divided by lam, this keeps it below V / trace.
    least = (eps_of(xp, gram.dtype) ** 0.5) * xp.linalg.trace(gram) + float(xp.finfo(gram.dtype).smallest_normal) ** 0.5
    lam = xp.maximum(scalar_like(lam, gram) / size_a / size_a / size_h / size_h, least)
    projected = xp.sum(xp.reshape((rows_h @ V) * rows_a, (N, -1)), axis=1)
    y = _solve(ridged(gram, lam), projected[:, None], lam)
    weighted = xp.reshape(h * y[:, :, None], (N * R, -1))
    return (V - weighted.T @ rows_a) / lam / size_a / size_a / size_h / size_h


def example_rows(a_bar, h):
    """Return inputs and derivatives of few positions, with which examples have the same gradients, or nearly so.

    Parameters
    ----------
    a_bar : array, shape (N, R, p)
        Inputs.
    h : array, shape (N, R, q)
        Derivatives; the gradient of an example is ``h[n].T @ a_bar[n]``.

    Returns
    -------
    a_bar : array, shape (N, 16, p), (N, 1, p) or (N, 1, q p)
        One position stays as it is. Of more, the best approximation of rank 16, with zeros for positions that are not
        needed; or the gradient itself, as the input of a layer with one output, where that takes less memory.
    h : array, shape (N, 16, q), (N, 1, q) or (N, 1, 1)
    """
    xp, (N, R, p), q = array_namespace(a_bar, h), a_bar.shape, h.shape[2]
    if R == 1:
        return a_bar, h
    whole = q * p <= RANK * (q + p)
    if not whole and R <= RANK:
        return tuple(
            xp.concat([X, xp.zeros((N, RANK - R, X.shape[2]), dtype=X.dtype, device=device(X))], axis=1)
            for X in (a_bar, h)
        )
    step = max(CHUNK_BYTES // (q * p * xp.finfo(h.dtype).bits // 8), 1)
    parts = []
    for start in range(0, N, step):
        each = h[start : start + step, ...].mT @ a_bar[start : start + step, ...]
        if whole:
            rows = xp.reshape(each, (-1, 1, q * p))
            parts.append((rows, xp.ones_like(rows[..., :1])))
        else:
            parts.append(_leading(each) if q <= p else _leading(each.mT)[::-1])
    return tuple(xp.concat(X, axis=0) for X in zip(*parts, strict=True))


def _leading(each):
    """Return ``(U^T M, U^T)`` for matrices M of a stack and their leading left singular vectors U, or NaN."""
    xp = array_namespace(each)
    size = xp.max(xp.abs(each), axis=(1, 2), keepdims=True)
    unit = each / xp.where(size > 0, size, xp.ones_like(size))  # squares would leave the range of the dtype
    gram = unit @ unit.mT
    usable = xp.isfinite(xp.sum(gram, axis=(1, 2), keepdims=True))
    eye = xp.eye(gram.shape[1], dtype=gram.dtype, device=device(gram))
    try:
        _, U = xp.linalg.eigh(xp.where(usable, gram, eye))
    except (np.linalg.LinAlgError, RuntimeError):
        U = gram * xp.nan
    U = xp.where(usable, U, xp.full_like(U, xp.nan))[..., -RANK:].mT
    return U @ each, U


def _at_most_one(X):
    """Return an array divided by its largest entry where that is above 1, so that products do not overflow, and it."""
    xp = array_namespace(X)
    size = xp.clip(xp.max(xp.abs(X)), min=1.0)
    return X / size, size


def _solve(M, b, least):
    """Return the solution of a system with a positive definite matrix, the eigenvalues of which are `least` or more."""
    try:
        return spd_inverse(M) @ b
    except (np.linalg.LinAlgError, RuntimeError):  # rounding has made it indefinite
        w, Q = eigenpairs(M)
        return (Q / array_namespace(w).maximum(w, least)) @ (Q.T @ b)


def _gram(X, sample, keys):
    """Return ``X X^T``, or an unbiased estimate from some of the columns."""
    if sample is None or sample >= X.shape[1]:
        return X @ X.T
    chosen = np.sort(keys.choice(X.shape[1], sample, replace=False))
    part = array_namespace(X).take(X, array_namespace(X).asarray(chosen, device=device(X)), axis=1)
    return part @ part.T * (X.shape[1] / sample)
