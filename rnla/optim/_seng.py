"""Sketchy empirical natural gradient: a damped solve with the gradients of single examples (SENG)."""

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import key_from_rng
from rnla.optim._checks import at_least_single, check_damping, check_shape, real_arrays


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
        Damping, positive.
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

    Notes
    -----
    ``O(N R p q)`` for the products with U, ``O((N R)**2 (p + q) + N**3)`` for the system.

    References
    ----------
    .. [1] Yang et al., J. Sci. Comput. 2022, arXiv 2006.05924.

    Examples
    --------
    >>> V, a, h = np.ones((1, 2)), np.array([[1.0, 0.0]]), np.array([[1.0]])
    >>> rnla.optim.seng_solve(V, a, h, 1.0, terms=1).tolist()
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
    a, h = at_least_single(a_bar), at_least_single(h) * terms**0.5
    rows_a, rows_h = xp.reshape(a, (N * R, -1)), xp.reshape(h, (N * R, -1))
    keys = np.random.default_rng(key_from_rng(rng, caller)) if sample is not None else None
    gram = _gram(rows_a, sample, keys) * _gram(rows_h, sample, keys)
    if R > 1:
        gram = xp.sum(xp.reshape(gram, (N, R, N, R)), axis=(1, 3))
    projected = xp.sum(xp.reshape((rows_h @ V) * rows_a, (N, -1)), axis=1)
    y = xp.linalg.solve(gram + lam * xp.eye(N, dtype=gram.dtype, device=device(gram)), projected[:, None])
    weighted = xp.reshape(h * y[:, :, None], (N * R, -1))
    return (V - weighted.T @ rows_a) / lam


def _gram(X, sample, keys):
    """Return ``X X^T``, or an unbiased estimate from some of the columns."""
    if sample is None or sample >= X.shape[1]:
        return X @ X.T
    chosen = np.sort(keys.choice(X.shape[1], sample, replace=False))
    part = array_namespace(X).take(X, array_namespace(X).asarray(chosen, device=device(X)), axis=1)
    return part @ part.T * (X.shape[1] / sample)
