"""Eigenpairs of a stack of positive semidefinite matrices: as `_psd_block`, with one call of the library for all.

Small matrices leave an accelerator idle between the calls for each of them. What `_psd_block` does on the host in
double precision is done here where the stack lies, in double precision too.
"""

from array_api_compat import array_namespace

from rnla._backend import eps_of
from rnla._orth import CHOLESKY_LIMIT, EPS_DOUBLE


def stack_pairs(M, X, products, *, method, shift=None):
    """Return the eigenvalues, falling, and vectors of every matrix of a stack from a block of columns.

    Parameters
    ----------
    M : array, shape (s, n, n)
        Symmetric positive semidefinite, real.
    X : array, shape (s, n, b)
        Start blocks, ``2 b <= n``.
    products : int
        Products that build the range; one more is made.
    method : {"ritz", "singular", "nystrom"}
        As the functions of `_psd_block` of these names.
    shift : array, shape (s,), optional
        For ``nystrom``.

    Returns
    -------
    lam : array, shape (s, b)
        Eigenvalues.
    U : array, shape (s, n, b)
        Their vectors.
    safe : array of bool, shape (s,)
        Whether rounding allowed the orthonormalisation of all blocks of a matrix; the pairs of others are wrong.

    Raises
    ------
    Exception
        That of the library where a Cholesky factorisation fails.
    """
    xp, wide = array_namespace(M), array_namespace(M).float64
    safe = xp.ones(M.shape[:1], dtype=xp.bool, device=M.device)
    for _ in range(products):
        X, _, fine = _cholesky_qr(M @ X)
        safe = safe & fine
    if method != "nystrom":
        X, _, fine = _cholesky_qr(X)
        safe = safe & fine
    Y = M @ X
    if method == "ritz":
        w, V = xp.linalg.eigh(_symmetric(xp.astype(X.mT @ Y, wide)))
        return xp.astype(xp.flip(w, axis=-1), M.dtype), X @ xp.astype(xp.flip(V, axis=-1), M.dtype), safe
    if method == "nystrom":
        nu = xp.astype(shift, wide)[:, None, None]
        H = _symmetric(xp.astype(X.mT @ Y, wide))
        C = xp.linalg.cholesky(H + nu * xp.eye(H.shape[-1], dtype=wide, device=M.device))
        Y = (Y + xp.astype(nu, M.dtype) * X) @ xp.astype(xp.linalg.inv(C), M.dtype).mT
    first, R, fine = _cholesky_qr(Y)
    again, second, finer = _cholesky_qr(first)
    R, safe = second @ R, safe & fine & finer
    if method == "singular":
        V, values, _ = xp.linalg.svd(R)
    else:
        w, V = (xp.flip(Z, axis=-1) for Z in xp.linalg.eigh(R @ R.mT))
        values = xp.clip(w - nu[:, :, 0], min=0.0)
    return xp.astype(values, M.dtype), again @ xp.astype(V, M.dtype), safe


def _cholesky_qr(Y):
    """Return ``Y R^-1``, R in double precision, and whether its rounding is harmless."""
    xp = array_namespace(Y)
    Z = xp.astype(Y, xp.float64)
    R = xp.linalg.cholesky(Z.mT @ Z).mT
    diagonal = xp.linalg.diagonal(R)
    limit = CHOLESKY_LIMIT * max(CHOLESKY_LIMIT * eps_of(xp, Y.dtype), EPS_DOUBLE**0.5)
    safe = xp.min(diagonal, axis=-1) > limit * xp.max(diagonal, axis=-1)
    return Y @ xp.astype(xp.linalg.inv(R), Y.dtype), R, safe


def _symmetric(H):
    return (H + H.mT) / 2
