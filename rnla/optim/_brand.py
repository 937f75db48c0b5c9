"""Online update of a low-rank factor by new columns, without the matrix (Brand)."""

import numpy as np
from array_api_compat import array_namespace

from rnla._backend import adjoint, eps_of, host_svd, key_from_rng, to_host
from rnla._orth import orth, orthonormal_block
from rnla._psd_block import ritz_pairs
from rnla._rangefinder import check_count
from rnla._tall import like, times
from rnla.optim._checks import check_rho, check_square, real_arrays, scalar_like
from rnla.optim._representation import FactorInverse, tail_of

# Share of ||X|| up to which a new direction is rounding, in single precision and in double.
DEPENDENT = {True: 1e-5, False: 1e-12}


def brand_update(inv, X, rho, *, rank):
    """Update eigenpairs of M to those of ``rho M + (1 - rho) X X^T``, without M.

    Exact for the eigenpairs that `inv` holds. They are cut to `rank` first, not at the end: the new directions must be
    used at least once, or those that arrive slowly would never stay.

    Parameters
    ----------
    inv : FactorInverse or None
        Of kind ``lowrank``, ``eigen`` or ``identity``; None: M is zero.
    X : array, shape (d, n)
        New columns.
    rho : float
        Decay rate in [0, 1).
    rank : int
        Eigenpairs of M that are used.

    Returns
    -------
    FactorInverse
        With at most ``rank + n`` eigenpairs, and the trace that the update gives if the tail follows the trace.

    Raises
    ------
    ValueError
        If `rho`, `rank`, a shape or the kind of `inv` is not one of the above.
    TypeError
        If `X` is no array.

    Notes
    -----
    ``O(d (rank + n)**2)``: linear in the dimension. Directions of X that are in the span of U up to rounding add no
    column, so data that stay in a subspace do not spoil the basis. A column that is not finite leaves `inv` as it is.

    References
    ----------
    .. [1] Brand, Linear Algebra Appl. 415 (2006). Puiu, arXiv 2210.08494.

    Examples
    --------
    >>> X = np.eye(5)[:, :2]
    >>> inv = rnla.optim.brand_update(None, X, 0.0, rank=3)
    >>> rnla.optim.brand_update(inv, 2 * X, 0.5, rank=3).lam.round(6).tolist()
    [2.5, 2.5]
    """
    caller = "rnla.optim.brand_update"
    xp = real_arrays(caller, X=X)
    check_rho(rho, caller)
    check_count(rank, "rank", caller)
    if X.ndim != 2 or (inv is not None and X.shape[0] != inv.dim):
        raise ValueError(f"{caller}: X must have shape ({'d' if inv is None else inv.dim}, n); got {tuple(X.shape)}.")
    if inv is not None and inv.kind not in ("lowrank", "eigen", "identity"):
        raise ValueError(f"{caller}: inv must be of kind 'lowrank', 'eigen' or 'identity'; got {inv.kind!r}.")
    d, rule = X.shape[0], "trace" if inv is None else inv.tail_rule
    Y = X * (1 - rho) ** 0.5
    square = float(xp.sum(xp.astype(Y, xp.float64) ** 2))
    if not np.isfinite(square):
        return inv
    if inv is None or inv.U is None:
        U, lam, trace = X[:, :0], X[0, :0], square
    else:
        rank = min(rank, inv.rank)
        U, lam = _orthonormal(inv.U[:, :rank]), inv.lam[:rank]
        trace = rho * float(inv.trace) + square
    D = rho * to_host(lam)
    Q, B, C = orthonormal_block(Y, U, floor=DEPENDENT[eps_of(xp, X.dtype) > 1e-10] * square**0.5)
    if not U.shape[1] and not Q.shape[1]:
        return FactorInverse(None, lam, scalar_like(0.0, lam), d, "identity", rule)
    # Y = U C + Q B, so the new matrix is [U Q] K [U Q]^T.
    S = np.concatenate([C, B])
    K = S @ S.T
    K[np.arange(len(D)), np.arange(len(D))] += D
    w, V = np.linalg.eigh((K + K.T) / 2)
    keep = min(len(w), d)
    basis = xp.concat([U, Q], axis=1)
    lam = like(np.maximum(w[::-1][:keep], 0.0), X)
    U = times(basis, np.ascontiguousarray(V[:, ::-1][:, :keep]))
    return FactorInverse(U, lam, tail_of(lam, trace, d, rule), d, "eigen" if keep == d else "lowrank", rule)


def brand_correction(inv, M, *, fraction=0.2, rng=None):
    """Correct some eigenpairs of a factor that `brand_update` has maintained, by products with the matrix.

    Parameters
    ----------
    inv : FactorInverse
        Of kind ``lowrank`` or ``eigen``.
    M : array, shape (d, d)
        The matrix that `inv` stands for.
    fraction : float
        Share of the eigenvectors that are drawn; they are replaced by the Ritz vectors of M in their span.
    rng : None, int or numpy.random.Generator
        Source of the choice.

    Returns
    -------
    FactorInverse
        With the trace of M if the tail follows the trace.

    Raises
    ------
    ValueError
        If `fraction` is not in (0, 1], or `M` is not square.

    Notes
    -----
    One product of M with ``fraction * r`` columns.

    References
    ----------
    .. [1] Puiu, arXiv 2210.08494 (B-R-C).

    Examples
    --------
    >>> M = np.diag([4.0, 3.0, 2.0, 0.0])
    >>> inv = rnla.optim.factor_inverse(M, method="sre", rank=3, rng=0)
    >>> inv = inv._replace(lam=inv.lam / 2)
    >>> rnla.optim.brand_correction(inv, M, fraction=1.0, rng=0).lam.round(6).tolist()
    [4.0, 3.0, 2.0]
    """
    caller = "rnla.optim.brand_correction"
    xp = real_arrays(caller, M=M, U=inv.U)
    check_square(M, "M", caller)
    if not 0 < fraction <= 1:
        raise ValueError(f"{caller}: fraction must be in (0, 1]; got {fraction}.")
    rank = inv.rank
    count = max(round(fraction * rank), 1)
    drawn = np.random.default_rng(key_from_rng(rng, caller)).permutation(rank)
    chosen, others = (_index(np.sort(part), inv.U) for part in (drawn[:count], drawn[count:]))
    Q = xp.take(inv.U, chosen, axis=1)
    ritz, vectors = ritz_pairs(Q, M @ Q)
    lam = xp.concat([xp.clip(ritz, min=0.0), xp.take(inv.lam, others)])
    U = xp.concat([vectors, xp.take(inv.U, others, axis=1)], axis=1)
    order = xp.argsort(lam, descending=True)
    lam, U = xp.take(lam, order), xp.take(U, order, axis=1)
    return inv._replace(U=U, lam=lam, tail=tail_of(lam, xp.linalg.trace(M), inv.dim, inv.tail_rule))


def _orthonormal(U):
    """Return the columns as they are, or orthonormal again once rounding has added up."""
    G = to_host(adjoint(U) @ U)
    defect = np.abs(G - np.eye(len(G))).max(initial=0.0)
    if defect <= 3 * eps_of(array_namespace(U), U.dtype) ** 0.5:
        return U
    Q, R = orth(U)
    # The nearest orthonormal columns: a triangular factor would turn the later eigenvectors only.
    W, _, Zh = host_svd(R)
    return times(Q, W @ Zh)


def _index(values, X):
    from array_api_compat import device

    return array_namespace(X).asarray(values, device=device(X))
