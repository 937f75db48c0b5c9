"""Eigenpairs of a Kronecker factor: all of them, or a few from products with a random block; never an exception."""

import functools
import math

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla._backend import eps_of, key_from_rng
from rnla._psd_block import block_range, default_shift, nystrom_pairs, ritz_pairs, singular_pairs
from rnla._rangefinder import check_choice, check_count
from rnla._sketch import test_matrix
from rnla.optim._checks import check_square, real_arrays
from rnla.optim._representation import FactorInverse, tail_of
from rnla.optim._symmetric import eigenpairs, largest_eigenpair, ridged, symmetrised

METHODS = ("auto", "exact", "eigh", "cholesky", "rsvd", "sre", "nystrom")
TAILS = ("zero", "min", "trace")
PRODUCTS = {"rsvd": 9, "sre": 4, "nystrom": 2}
RANK, SMALL = 220, 128  # default rank; dimension up to which nothing is faster than an exact inverse
RIDGE = 10.0  # of this many rounding units of the mean eigenvalue for a second attempt


def factor_inverse(M, *, method="auto", rank=None, oversampling=10, products=None, tail="trace", rng=None, warm=None,
                   fallback=None, strict=False):  # fmt: skip
    """Represent a positive semidefinite factor so that it is inverted cheaply at every step, for every damping.

    Parameters
    ----------
    M : array, shape (d, d) or (d,), or an object with ``M @ X``, ``shape`` and ``trace``
        Symmetric; a vector is the diagonal of a diagonal matrix.
    method : {"auto", "exact", "eigh", "cholesky", "rsvd", "sre", "nystrom"}
        ``eigh``: all eigenpairs. ``cholesky``, ``exact``: M is kept and inverted once for each damping. From products
        with a random block: ``rsvd``, singular values and right singular vectors of the projected M; ``sre``, Ritz
        pairs; ``nystrom``, the most accurate of the three. ``auto``: ``exact`` up to dimension 128 or where a block
        would have half of all columns, else ``nystrom``.
    rank : int, optional
        Eigenpairs kept, 220 by default, at most d.
    oversampling : int
        Further columns of the block.
    products : int, optional
        Products that build the range, one more is made; 9 for ``rsvd``, 4 for ``sre``, 2 for ``nystrom``, or 1 from a
        warm start.
    tail : {"trace", "zero", "min"}
        What the other directions get: the mean of the eigenvalues left out, which keeps the trace; nothing; the least
        eigenvalue kept.
    rng : None, int or numpy.random.Generator
        Source of the block.
    warm : FactorInverse, optional
        Of a matrix near M: its vectors start the block, beside `oversampling` or more random columns.
    fallback : FactorInverse, optional
        Returned where M is not finite or cannot be decomposed; `warm` by default, else the identity.
    strict : bool
        Raise instead.

    Returns
    -------
    FactorInverse
        Arrays of the library, device and dtype of M. A zero M gives the identity.

    Raises
    ------
    ValueError
        If an argument is not one of the above or, with `strict`, M has a NaN or an infinity.
    TypeError
        If M is of an unsupported kind.
    numpy.linalg.LinAlgError
        With `strict`, if the decomposition fails, also of ``M + 10 eps tr(M) / d I`` in double precision.

    Notes
    -----
    ``2 d**2 b (products + 1)`` flops for b = rank + oversampling columns, ``O(d b**2)`` for their orthogonalisation.

    References
    ----------
    .. [1] Puiu, arXiv 2206.15397 (``rsvd`` and ``sre``).
    .. [2] Tropp, Yurtsever, Udell, Cevher, NeurIPS 2017, Algorithm 3 (``nystrom``).

    Examples
    --------
    >>> M = np.diag(1.0 / np.arange(1, 301) ** 2)
    >>> inv = rnla.optim.factor_inverse(M, rank=20, rng=0)
    >>> inv.kind, inv.rank, bool(np.isclose(inv.trace, np.trace(M)))
    ('lowrank', 20, True)
    >>> V = np.ones((300, 1))
    >>> exact = V[:, 0] / (np.diag(M) + 0.01)
    >>> bool(np.linalg.norm(inv.solve(V, 0.01)[:, 0] - exact) < 0.05 * np.linalg.norm(exact))
    True
    """
    caller = "rnla.optim.factor_inverse"
    check_settings(method, rank, oversampling, products, tail, caller)
    operator = _checked(M, caller)
    d = M.shape[0]
    rank = rank_of(rank, d)
    method = "nystrom" if operator and method == "auto" else resolved(method, d, rank, oversampling)
    if operator and method not in PRODUCTS:
        raise ValueError(f"{caller}: method must be one of {', '.join(map(repr, PRODUCTS))} for an M that is no array.")
    if not starts(warm, d) and warm is not None:
        fallback, warm = (fallback or warm) if warm.dim == d else fallback, None
    key = key_from_rng(rng, caller) if method in PRODUCTS else 0

    def attempt(M, trace):
        if len(M.shape) == 1:
            return _finished(None, M, None, trace, "diagonal", tail)
        if method in ("exact", "cholesky"):
            start = None if warm is None or warm.U is None else warm.U[:, 0]
            value, U = largest_eigenpair(M, start=start)
            return FactorInverse(U, value[None], value * 0, d, "dense", tail, M)
        if method == "eigh":
            lam, U = eigenpairs(symmetrised(M))
            return _finished(U, lam, d, trace, "eigen", tail)
        U, lam = _from_products(M, method, rank, oversampling, products, key, warm, trace)
        return _finished(U, lam, rank, trace, "eigen" if rank == d else "lowrank", tail)

    return _attempts(M, attempt, warm if fallback is None else fallback, operator, strict, caller)


def check_settings(method, rank, oversampling, products, tail, caller):
    """Raise unless the settings of a decomposition are allowed."""
    check_choice(method, "method", METHODS, caller)
    check_choice(tail, "tail", TAILS, caller)
    if rank is not None:
        check_count(rank, "rank", caller)
    check_count(oversampling, "oversampling", caller, least=0)
    if products is not None:
        check_count(products, "products", caller)


def rank_of(rank, d):
    """Return the number of eigenpairs kept in dimension d."""
    return min(RANK if rank is None else rank, d)


def resolved(method, d, rank, oversampling):
    """Return the method that ``auto`` stands for in dimension d, or `method` itself."""
    if method != "auto":
        return method
    return "exact" if d <= SMALL or 2 * (rank + oversampling) >= d else "nystrom"


def starts(warm, d):
    """Say whether a representation can start a decomposition in dimension d."""
    return isinstance(warm, FactorInverse) and warm.kind not in ("diagonal", "identity") and warm.dim == d


def known_vectors(warm):
    """Return the vectors with which a block begins, or None."""
    return None if warm is None or warm.U is None or warm.kind == "dense" else warm.U


def start_block(known, key, d, width, oversampling, like):
    """Return a block of columns, those known first and at least `oversampling` random ones after them."""
    xp = array_namespace(like)
    draw = functools.partial(test_matrix, "gaussian", key, d, xp=xp, dtype=like.dtype, device=device(like))
    if known is None:
        return draw(width)
    known = known[:, : max(width - oversampling, 0)]
    return xp.concat([known, draw(width - known.shape[1]) / d**0.5], axis=1)


def products_of(products, method, known):
    """Return the number of products that build the range."""
    if products is None:
        return 1 if method == "nystrom" and known is not None else PRODUCTS[method]
    return products


def _checked(M, caller):
    """Say whether M is an object that only multiplies."""
    if is_array_api_obj(M):
        real_arrays(caller, M=M)
        check_square(M, "M", caller)
        return False
    if not all(hasattr(M, name) for name in ("__matmul__", "shape", "trace")) or hasattr(M, "dask"):
        real_arrays(caller, M=M)  # a TypeError that names what is accepted
    shape = tuple(M.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{caller}: M must be square; got shape {shape}.")
    return True


def _attempts(M, attempt, fallback, operator, strict, caller):
    """Run `attempt` on M, then on M in double precision with a ridge; then fall back."""
    d = M.shape[0]
    trace = float(M.trace() if callable(M.trace) else M.trace) if operator else _finite_trace(M)
    if math.isfinite(trace) and trace <= 0 and not (not operator and _any_nonzero(M)):
        return _identity(M, fallback, "ok")
    if math.isfinite(trace):
        for outcome in ("ok", "retried"):
            try:
                found = attempt(M, trace) if outcome == "ok" else _ridged(M, attempt, trace, d)
                if math.isfinite(float(array_namespace(found.lam).sum(found.lam))):
                    return found._replace(outcome=outcome)
            except (np.linalg.LinAlgError, RuntimeError):
                if strict and (outcome == "retried" or operator):
                    raise
            if operator:
                break
    if strict:
        raise ValueError(f"{caller}: M must be finite; got NaN or infinity.")
    if fallback is not None:
        return fallback._replace(outcome="kept")
    return _identity(M, fallback, "identity")


def _ridged(M, attempt, trace, d):
    """Return the result for M with a ridge in double precision, in the dtype of M."""
    xp = array_namespace(M)
    wide = xp.astype(M, xp.float64)
    ridge = RIDGE * eps_of(xp, M.dtype) * abs(trace) / d
    found = attempt(ridged(wide, ridge) if M.ndim == 2 else wide + ridge, trace + ridge * d)

    def narrow(X):
        return None if X is None else xp.astype(X, M.dtype)

    return found._replace(
        U=narrow(found.U), lam=narrow(found.lam), tail=narrow(found.tail), matrix=narrow(found.matrix)
    )


def _from_products(M, method, rank, oversampling, products, key, warm, trace):
    """Return eigenvectors and eigenvalues from products with a block of columns."""
    d, known = M.shape[0], known_vectors(warm)
    xp, like = _library(M, known)
    X = start_block(known, key, d, min(rank + oversampling, d), oversampling, like)
    products = products_of(products, method, known)
    Q, Y = block_range(lambda X: M @ X, X, products, orthonormal=method != "nystrom")
    if method == "sre":
        lam, U = ritz_pairs(Q, Y)
    elif method == "rsvd":
        lam, U = singular_pairs(Q, Y)
    else:
        lam, U = nystrom_pairs(Q, Y, default_shift(trace, d, Y.dtype, xp))
    # A copy: a view would keep the further columns in memory.
    return xp.asarray(U[:, :rank], copy=True), lam[:rank]


def _library(M, known):
    """Return the namespace of the products of M, and an array of their dtype and device."""
    if known is None and is_array_api_obj(M):
        known = M
    if known is None:
        known = np.zeros(1, getattr(M, "dtype", np.float64))
    return array_namespace(known), known


def _finished(U, lam, rank, trace, kind, rule):
    """Clip the eigenvalues and choose the tail."""
    xp = array_namespace(lam)
    lam = xp.clip(lam, min=0.0)
    if kind == "diagonal":
        return FactorInverse(None, lam, xp.zeros_like(lam[0]), lam.shape[0], kind, rule)
    d = U.shape[0]
    return FactorInverse(U, lam, tail_of(lam, trace, d, rule), d, kind, rule)


def _identity(M, known, outcome):
    xp, like = _library(M, None if known is None else known.lam)
    lam = xp.zeros((0,), dtype=like.dtype, device=device(like))
    tail = xp.zeros((), dtype=like.dtype, device=device(like))
    return FactorInverse(None, lam, tail, M.shape[0], "identity", outcome=outcome)


def _finite_trace(M):
    """Return the trace, or NaN where M has a NaN or an infinity; one transfer to the host."""
    xp = array_namespace(M)
    diagonal = xp.linalg.diagonal(M) if M.ndim == 2 else M
    trace = xp.sum(xp.astype(diagonal, xp.float64))
    finite = xp.isfinite(xp.sum(M))
    return float(xp.where(finite, trace, xp.nan * trace))


def _any_nonzero(M):
    xp = array_namespace(M)
    return bool(xp.any(M != 0))
