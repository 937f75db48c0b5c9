"""Orthonormalise the columns of a tall block: Cholesky QR with its test, sketched Cholesky QR, Householder QR."""

import numpy as np
from array_api_compat import is_dask_array

from rnla._backend import eps_of, host_svd, is_meta, to_host
from rnla._sketch import SparseSign
from rnla._tall import inner, joined, less, random_like, times, times_small, triangle

EPS_DOUBLE = float(np.finfo(np.float64).eps)
CHOLESKY_LIMIT = 10.0  # a diagonal of the Cholesky factor below this times sqrt(eps) ends the trust in it


def orth(Y, method="auto", *, overwrite=False):
    """Compute a QR factorisation of a tall block, by products with itself where its condition allows.

    Cholesky QR costs ``2 m b**2`` flops a round in matrix products, 5 to 8 times faster than Householder QR, but
    squares the condition number; a sketch of the block, factored first, takes that condition away.

    Parameters
    ----------
    Y : array, shape (m, b)
        Block with ``m >= b``.
    method : {"auto", "cholqr2", "rcholqr", "qr"}
        ``auto``: the first of the others whose test passes.
    overwrite : bool
        Q may take the memory of Y.

    Returns
    -------
    Q : array, shape (m, b)
        Orthonormal columns.
    R : array, shape (b, b)
        Upper triangular, on the host in double precision; ``Y = Q R``.

    References
    ----------
    .. [1] Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa, SIAM J. Sci. Comput. 42 (2020) (shifted Cholesky QR).
    .. [2] Balabanov, "Randomized Cholesky QR factorizations", arXiv 2210.09953.
    """
    if is_meta(Y) or method == "qr" or Y.shape[0] < 2 * Y.shape[1]:
        return _householder(Y)
    attempts = {"cholqr2": (_cholesky_twice,), "rcholqr": (_sketched,), "auto": (_cholesky_twice, _sketched)}[method]
    if is_dask_array(Y):  # the triangular factors of the chunks are a better preconditioner than a sketch, and as cheap
        attempts = attempts[:1]
    for attempt in attempts:
        factors = attempt(Y, overwrite)
        if factors is not None:
            return factors
    return _householder(Y)


def orth_factors(Y, *, overwrite=False):
    """Orthonormalise like `orth`, but leave the last small factor to a caller who multiplies by another one anyway.

    Returns
    -------
    X : array, shape (m, b)
        Columns that are orthonormal but for W.
    W, R : ndarray, shape (b, b)
        On the host in double precision; ``Q = X W`` has orthonormal columns and ``Y = Q R``.
    """
    first = cholesky_step(Y, overwrite) if not is_meta(Y) and Y.shape[0] >= 2 * Y.shape[1] else None
    second = first and cholesky_factor(inner(first[0], first[0]), eps_of_array(Y))
    if second is not None:
        return first[0], np.linalg.inv(second), second @ first[1]
    Q, R = orth(Y if first is None else first[0], overwrite=overwrite)
    return Q, np.eye(len(R)), R if first is None else R @ first[1]


def cholesky_step(Y, overwrite=False):
    """Return ``Y R^-1`` and ``R`` of one Cholesky QR, or None where rounding in ``Y^H Y`` forbids it."""
    eps = eps_of_array(Y)
    R = cholesky_factor(inner(Y, Y), eps)
    if R is None and eps > EPS_DOUBLE:
        # Summed in double precision the squares keep what the block has: condition numbers up to 1 / (100 eps).
        wide = widened(Y)
        R = cholesky_factor(inner(wide, wide), (CHOLESKY_LIMIT * eps) ** 2)
    if R is None:
        return None
    # One product with the inverse is faster than a triangular solve for every row of Y, and NumPy's inverse, which runs
    # in the BLAS that made the Gram matrix, is faster than a triangular one in SciPy's: two thread pools would compete.
    return times_small(Y, np.linalg.inv(R), overwrite=overwrite), R


def cholesky_factor(G, eps):
    """Return the upper factor of a Gram matrix computed with rounding `eps`, or None if it may be all rounding."""
    try:
        R = np.linalg.cholesky(G).conj().T
    except np.linalg.LinAlgError:
        return None
    diagonal = np.abs(np.diagonal(R))
    if not diagonal.size or diagonal.min() > CHOLESKY_LIMIT * np.sqrt(eps) * diagonal.max():
        return R
    return None


def widened(Y):
    """Return the block in double precision."""
    from array_api_compat import array_namespace

    xp = array_namespace(Y)
    return xp.astype(Y, xp.complex128 if xp.isdtype(Y.dtype, "complex floating") else xp.float64)


def eps_of_array(Y):
    """Return the rounding unit of the dtype of `Y`."""
    from array_api_compat import array_namespace

    return eps_of(array_namespace(Y), Y.dtype)


def project_out(Z, Q):
    """Return ``Z - Q (Q^H Z)`` and the coefficients ``Q^H Z`` on the host."""
    C = inner(Q, Z)
    return less(Z, Q, C), C


def orthonormal_block(Z, Q, *, floor, near=0):
    """Split a block into its part in the span of `Q` and an orthonormal basis of the rest: ``Z = Q C + P B``.

    Projection and Cholesky QR alternate, so that the second projection acts on columns of norm one and leaves no more
    than rounding of `Q` in each of them, however different their norms were.

    Parameters
    ----------
    Z : array, shape (n, b)
        Block to be split; not kept.
    Q : array, shape (n, c)
        Orthonormal columns; c may be 0.
    floor : float
        Directions of the rest with a norm up to this are rounding: left out of P, which has then fewer than b columns.
    near : int
        Z is known to have no more than rounding along the columns of Q before this one (as in a Krylov space of a
        Hermitian matrix): these wait for the second projection.

    Returns
    -------
    P : array, shape (n, r)
        Orthonormal, orthogonal to Q, ``r <= b``.
    B : ndarray, shape (r, b)
        Host, double precision.
    C : ndarray, shape (c, b)
        Host, double precision.
    """
    Z, C = project_out(Z, Q[:, near:] if near else Q)
    C = np.concatenate([np.zeros((near, C.shape[1]), C.dtype), C])
    P, B = _basis(Z, floor, max(Q.shape[0] - Q.shape[1], 0))
    for _ in range(3):
        if not P.shape[1]:
            return P, B, C
        P, correction = project_out(P, Q)
        C = C + correction @ B
        P, R = _again(P)
        B = R @ B
        # Columns that lost little length to this projection are as orthogonal to Q as rounding allows.
        if not correction.size or np.abs(correction).max() < 0.1 / np.sqrt(correction.size):
            break
    return P, B, C


def random_complement(Q, draw, count):
    """Return `count` orthonormal columns orthogonal to `Q`, fewer if the space has no more, from ``draw(count)``."""
    count = min(count, Q.shape[0] - Q.shape[1])
    # Standard normal columns keep a norm of about the root of the dimension that is left: far above this floor.
    return orthonormal_block(draw(count), Q, floor=1e4 * eps_of_array(Q))[0]


def _basis(Z, floor, room):
    """Factor ``Z = P B`` with at most `room` columns of P, in directions longer than `floor`."""
    factors = cholesky_step(Z) if Z.shape[1] <= room else None
    if factors is not None and np.abs(np.diagonal(factors[1])).min(initial=np.inf) > floor:
        return factors
    Q, R = orth(Z, "qr")
    U, s, Vh = host_svd(R)  # small: rank-revealing
    keep = min(int(np.sum(s > floor)), room)
    return times(Q, U[:, :keep]), s[:keep, None] * Vh[:keep]


def _again(P):
    """Orthonormalise columns that mostly are: one round of Cholesky QR is exact where the condition is below 2."""
    G = inner(P, P)
    if np.linalg.norm(G - np.eye(len(G))) > 0.5:
        return orth(P)
    R = np.linalg.cholesky(G).conj().T
    return times_small(P, np.linalg.inv(R)), R


def _cholesky_twice(Y, overwrite):
    first = cholesky_step(Y, overwrite)
    if first is None:
        return None
    # The condition of the first factor is below 2: it never fails the test that the block passed.
    Q, R = cholesky_step(first[0], True) or _householder(first[0])
    return Q, R @ first[1]


def _sketched(Y, overwrite):
    # A sparse sign sketch of 2 b rows keeps every length within a factor of about 4: Y R0^-1 has condition below 10.
    S = SparseSign(2 * Y.shape[1], Y.shape[0], seed=0x5EED)
    R0 = np.linalg.qr(to_host(S @ Y), mode="r")
    diagonal = np.abs(np.diagonal(R0))
    # Up to rounding itself: the tests of the Cholesky factors that follow see what the sketch could not.
    if not diagonal.min() > eps_of_array(Y) * diagonal.max():
        return None
    Y = times_small(Y, np.linalg.inv(R0), overwrite=overwrite)
    Q, R = _cholesky_twice(Y, True) or _householder(Y)
    return Q, R @ R0


def _householder(Y):
    from array_api_compat import array_namespace

    if is_dask_array(Y):
        return _in_chunks(Y)
    Q, R = array_namespace(Y).linalg.qr(Y)
    return Q, (R if is_meta(R) else to_host(R))


def _in_chunks(Y):
    """Factor a dask array: R from the triangular factors of the chunks in a tree (TSQR), Q by dividing by it.

    Dividing is safe as far as R tells directions from rounding, and leaves columns that Cholesky QR finishes. The
    others are replaced by random ones, as Householder's Q has arbitrary ones there.
    """
    _, s, Vh = host_svd(triangle(Y))
    width, count = Y.shape[1], min(Y.shape)
    keep = int(np.sum(s > 10 * eps_of_array(Y) * np.sqrt(width) * s[0])) if s[0] > 0 else 0
    if keep:
        P, R = times(Y, Vh[:keep].conj().T / s[:keep]), s[:keep, None] * Vh[:keep]
        for _ in range(3):
            L = np.linalg.cholesky(inner(P, P)).conj().T
            P, R = times(P, np.linalg.inv(L)), L @ R
            if np.linalg.cond(L) < 2:
                break
    else:
        P, R = Y[:, :0], np.zeros((0, width), Vh.dtype)
    if keep < count:
        P = joined(P, random_complement(P, lambda missing: random_like(Y, missing, 0x5EED), count - keep))
        R = np.concatenate([R, np.zeros((count - keep, width), R.dtype)])
    Q, R = np.linalg.qr(R)
    return times(P, Q), R
