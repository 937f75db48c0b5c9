"""Choose columns that span a matrix, from a small sketch of its rows or from its singular vectors.

A rule looks at a matrix B of few rows on the host and returns distinct column numbers. On a sketch it works with the
rows of A as they are; on an orthonormal basis V^H of the leading row space, with that space alone.
"""

import math

import numpy as np

from rnla._backend import adjoint, eps_of, host_svd, to_host
from rnla._estimate import square_norm
from rnla._orth import eps_of_array, orth
from rnla._progress import Monitor
from rnla._qr import pivoted_triangle
from rnla._rangefinder import adaptive_qb, check_range
from rnla._sketch import test_matrix
from rnla._tall import column_squares, like

# What a rule for a subspace does to its basis V^H: adaptive randomized pivoting [1] draws columns by what is left of
# their norm; DEIM is Gaussian elimination with partial pivoting of V, as expanding its recursion shows.
ON_SUBSPACE = {"arp": "rpqr", "deim": "lupp", "qdeim": "cpqr", "leverage": "norm"}
SKETCH, COLUMNS, ROWS, MORE_ROWS, SAMPLE = 1, 2, 3, 4, 5  # streams of random numbers of one key
SAFETY = 1.2  # error of well-chosen columns over that of the best subspace, for the first guess of a rank
GROWTH = 8  # a rank that was too small grows by one part in this
SAMPLES = 20  # vectors from which an error is estimated
REFRESH = 1e-4  # squared norms are updated by subtraction until they have fallen this much


def row_sketch(M, count, n_iter, key, caller):
    """Return a sketch of the rows of A, shape (count, n), on the host: ``G^H A``, or ``Q^H A`` after power iterations.

    Reads A ``2 * n_iter + 1`` times.
    """
    place = {"xp": M.xp, "device": M.device, "dtype": M.dtype}
    G = test_matrix("gaussian", key, M.shape[0], count, stream=SKETCH, **place)
    Y = M.rmatmat(G)
    check_range(M.H, G, Y, caller)
    for _ in range(n_iter):
        Y = M.rmatmat(orth(M.matmat(orth(Y)[0]))[0])
    return to_host(adjoint(Y))


def choose(method, B, k, key, stream, floor):
    """Return at most `k` columns of the sketch `B` by any method of `pivots` or of `ON_SUBSPACE`."""
    if method in ON_SUBSPACE:
        _, s, Vh = host_svd(B)
        method, B = ON_SUBSPACE[method], Vh[: min(k, int(np.sum(s > floor)))]
    return pivots(method, B, k, key, stream)


def pivots(rule, B, k, key, stream):
    """Return at most `k` distinct columns of a small matrix `B` by one rule.

    Parameters
    ----------
    rule : {"cpqr", "lupp", "rpqr", "norm", "uniform"}
        Pivoted QR; LU with partial pivoting of ``B^T``; drawn by the squared norms of what the columns before leave
        of each; drawn by squared norms, without replacement; drawn without looking.
    B : ndarray, shape (l, n)
        Small matrix of the host.
    k : int
        How many columns.
    key, stream : int
        Source of the draws.

    Returns
    -------
    ndarray of int
        Fewer than `k` where B has lower rank than that and the rule can tell.
    """
    k = min(k, B.shape[1])
    if rule == "cpqr":
        return pivoted_triangle(B)[1][:k]
    if rule == "lupp":
        return _row_order(B.T)[:k]
    uniforms = 0.5 + test_matrix("uniform", key, B.shape[1] if rule != "rpqr" else k, 1, stream=stream)[:, 0] / 12**0.5
    if rule == "rpqr":
        return _randomly_pivoted(B, uniforms)
    weights = np.sum(np.abs(B) ** 2, axis=0) if rule == "norm" else np.ones(B.shape[1])
    with np.errstate(divide="ignore"):
        times = -np.log(uniforms) / weights  # arrival of independent clocks: the first k are a draw without replacement
    return np.argsort(times, kind="stable")[: min(k, np.count_nonzero(weights))]


def _row_order(X):
    """Return the order of the rows of X (n, l) in Gaussian elimination with partial pivoting."""
    from scipy.linalg import get_lapack_funcs

    (getrf,) = get_lapack_funcs(("getrf",), (X,))
    order = np.arange(len(X))
    for step, row in enumerate(getrf(X)[1]):
        order[[step, row]] = order[[row, step]]
    return order


def _randomly_pivoted(B, uniforms):
    """Draw columns one by one, each by the squared norm of its part orthogonal to those before."""
    B = B.copy()
    squares = np.sum(np.abs(B) ** 2, axis=0)
    reference = squares.sum()
    least = (max(B.shape) * np.finfo(np.float64).eps) ** 2 * reference
    chosen, pending = [], []  # unit vectors that are not yet taken out of B
    for u in uniforms:
        ends = np.cumsum(squares)
        if not ends[-1] > least:
            break
        s = min(int(np.searchsorted(ends, u * ends[-1], side="right")), int(np.flatnonzero(squares)[-1]))
        q = B[:, s]
        for _ in range(2 if pending else 0):
            basis = np.stack(pending, axis=1)
            q = q - basis @ (basis.conj().T @ q)
        chosen.append(s)
        pending.append(q / np.linalg.norm(q))
        squares = np.maximum(squares - np.abs(pending[-1].conj() @ B) ** 2, 0.0)
        squares[chosen] = 0.0
        if squares.sum() < REFRESH * reference:  # a difference of squares has lost digits: start from what is left
            basis = np.stack(pending, axis=1)
            for _ in range(2):
                B -= basis @ (basis.conj().T @ B)
            pending = []
            squares = np.sum(np.abs(B) ** 2, axis=0)
            squares[chosen] = 0.0
            reference = squares.sum()
    return np.array(chosen, dtype=int)


def osinsky(E, V, floor):
    """Choose a column for each column of `V`, so that the error grows by no more than ``k + 1`` in squares.

    With ``E = A - A V V^H``, columns J chosen here have ``||A - A_J V_J^-H V^H||_F**2 <= (k + 1) ||E||_F**2``: each
    step takes the column whose own error, against its weight in the subspace, is least, which is at most the mean.

    Parameters
    ----------
    E : array, shape (l, n)
        Error of the subspace, or a sketch of its rows. Not changed.
    V : ndarray, shape (n, k)
        Orthonormal columns, on the host.
    floor : float
        Rounding in the norm of a column of E.

    Returns
    -------
    ndarray of int, shape (k,)
        Distinct columns.

    References
    ----------
    .. [1] Osinsky, "Close to optimal column approximations with a single SVD", arXiv 2308.09068.
    """
    squares = column_squares(E)
    V = V.copy()
    weights = np.zeros((len(V), V.shape[1]), V.dtype)  # of the columns taken, in every column
    taken = np.zeros((E.shape[0], V.shape[1]), V.dtype)  # their errors at that time
    chosen = []
    for step in range(V.shape[1]):
        norms = np.sum(np.abs(V) ** 2, axis=1)
        norms[chosen] = 0.0
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            s = int(np.argmin(np.where(norms > 0, (squares + floor**2) / norms, np.inf)))
        nu = math.sqrt(norms[s])
        u = V[s].conj() / nu
        w = V @ u
        f = to_host(E[:, s]) - taken[:, :step] @ weights[s, :step].conj()
        along = to_host(adjoint(E) @ like(f[:, None], E))[:, 0] - weights[:, :step] @ (taken[:, :step].conj().T @ f)
        w_nu = w / nu
        change = np.abs(w_nu) ** 2 * np.linalg.norm(f) ** 2 - 2 * (w_nu.conj() * along).real
        squares = np.maximum(squares + change, 0.0)
        V -= w[:, None] * u.conj()
        weights[:, step], taken[:, step] = w_nu, f
        chosen.append(s)
    return np.array(chosen, dtype=int)


def independent(X, index):
    """Drop numerically dependent columns of a tall block; return Q, R of the others and their numbers in `index`."""
    Q, R = orth(X)
    keep = independent_columns(R, max(X.shape) * eps_of_array(X))
    if len(keep) < len(index):
        from array_api_compat import array_namespace, device

        xp = array_namespace(X)
        Q, R = orth(xp.take(X, xp.asarray(keep, device=device(X)), axis=1))
    return Q, R, index[keep]


def independent_columns(B, rtol, top=None):
    """Return, in their order, the columns of a small matrix that a pivoted QR finds independent.

    Those below `rtol` times `top`, by default the largest norm of a column, are not.
    """
    if 0 in B.shape:
        return np.zeros(0, int)
    R, order = pivoted_triangle(B)
    diagonal = np.abs(np.diagonal(R))
    return np.sort(order[: int(np.sum(diagonal > rtol * (diagonal[0] if top is None else top)))])


def to_precision(build, M, k, rtol, key, caller):
    """Return ``build(rank)``, its relative error and whether that meets `rtol`, for the first rank tried that does.

    ``build`` returns something whose ``left`` and ``right`` multiply to the approximation; the first rank is that of a
    subspace which is a little more precise.
    """
    limit = k or min(M.shape)
    s = adaptive_qb(
        M, limit, rtol / SAFETY, None, "fro", n_iter=1, block_size="auto", sketch="gaussian", key=key,
        monitor=Monitor(None, False, caller), caller=caller,
    )[1]  # fmt: skip
    rank = max(len(s), 1)
    while True:
        found = build(rank)
        error = relative_error(M, found.left, found.right, key)
        met = error <= max(rtol, max(M.shape) * eps_of(M.xp, M.dtype))
        if met or rank == limit or found.left.shape[1] < rank:
            return found, error, met
        rank = min(limit, rank + max(1, rank // GROWTH))


def relative_error(M, left, right, key):
    """Return ``||A - L R||_F / ||A||_F``: exact where rows of A are at hand, else from a few random vectors."""
    blocks = M.row_blocks()
    if blocks is None:
        place = {"xp": M.xp, "device": M.device, "dtype": M.dtype}
        G = test_matrix("gaussian", key, M.shape[1], SAMPLES, stream=SAMPLE, **place)
        Y = M.matmat(G)
        rest, total = square_norm(Y - left @ (right @ G)), square_norm(Y)
    else:
        rest = total = 0.0
        for start, B in blocks:
            total += square_norm(B)
            rest += square_norm(B - left[start : start + B.shape[0], :] @ right)
    return math.sqrt(rest / total) if total > 0 else 0.0


def shortfall(rank, k):
    """Say how the rank that was found compares with the one asked for."""
    return "complete" if rank == k else f"found {rank} independent of k = {k}"
