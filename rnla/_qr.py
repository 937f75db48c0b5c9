"""QR factorisations: by Cholesky QR of tall matrices, and with column pivots chosen on a sketch."""

import math

import numpy as np

from rnla._backend import adjoint, columns, eps_of, is_meta, key_from_rng, to_host
from rnla._lowrank import Factors, LowRank, SVDInfo
from rnla._matrix import as_matrix
from rnla._orth import orth, project_out
from rnla._progress import Monitor
from rnla._rangefinder import (
    TRUSTED,
    check_choice,
    check_number,
    check_range,
    check_rank,
    in_range,
    sampled_error,
    warn_not_converged,
)
from rnla._sketch import SparseSign, test_matrix
from rnla._submatrix import dense, index_array, take_columns
from rnla._tall import column_squares, like, times_small

UNPIVOTED = ("auto", "cholesky", "householder")
PIVOTED = ("auto", "cqrrpt", "rqrcp")
TALL = 3  # from this ratio of the sides, all pivots are chosen on one sketch of 2 n rows, ...
FEWEST = 64  # ... at least these: in fewer, two columns of the sketch agree but for a sign every now and then
WHOLE = 128  # up to this many pivots are chosen on one sketch of a few rows more ...
BLOCK = 64  # ... and otherwise in blocks of this many
EXTRA = 10  # rows of such a sketch beyond the pivots
SPREAD = 10.0  # condition number up to which one Cholesky factorisation gives orthonormal columns


def qr(A, k=None, *, pivoting=False, rtol=None, method="auto", rng=None):
    """Factor ``A = Q R``, or ``A[:, P] = Q R`` with column pivoting that reveals the rank.

    With pivoting, the columns are ordered by a pivoted QR of a small sketch of A, and A itself meets matrix products
    only. The result is thin and of the rank r that was found: diagonal entries of R below
    ``max(min(m, n), max(m, n)**0.5) * eps`` times the largest count as zero.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        One that is not a dense array is formed as one, unless it is pivoted and `k` is given or it is not tall.
    k : int, optional
        With pivoting: stop after `k` columns.
    pivoting : bool
        Permute the columns so that leading ones are well-conditioned.
    rtol : float, optional
        With pivoting: stop as soon as ``||A[:, P] - Q R||_F <= rtol * ||A||_F``.
    method : {"auto", "cholesky", "householder", "cqrrpt", "rqrcp"}
        Without pivoting: ``cholesky`` is Cholesky QR of a tall matrix, twice or after a sketch as its condition needs;
        ``householder`` is LAPACK's. With pivoting: ``cqrrpt`` chooses all pivots on one sparse sketch of ``2 n`` rows,
        at least 64, and is for dense matrices of at least 3 times as many rows as columns; ``rqrcp`` chooses them block
        by block on a sketch that is updated.
    rng : None, int or numpy.random.Generator
        Source of the sketch; without pivoting it does not matter.

    Returns
    -------
    QRResult or PivotedQRResult
        ``Q`` (m, r) with orthonormal columns, ``R`` (r, n) upper triangular and, with pivoting, ``P`` (n,), an index
        vector (SciPy's convention); library, device and dtype of `A`. Without pivoting ``r = min(m, n)``.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not two-dimensional or not finite.
    TypeError
        If `A` is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If `k` columns are reached before the precision.

    Notes
    -----
    ``cqrrpt``: about ``5 m n**2`` flops in matrix products and a memory of two times Q. ``rqrcp``: one product with
    some more rows than a block, and for every block one with A^H; ``4 m n k`` flops.

    References
    ----------
    .. [1] Melnichenko, Balabanov, Murray, Demmel, Mahoney, Luszczek, arXiv 2311.08316 (CQRRPT), Algorithm 1.
    .. [2] Duersch, Gu, SIAM J. Sci. Comput. 39 (2017) (randomized QRCP with sample updates).

    Examples
    --------
    >>> A = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 5.0], [1.0, 2.0, 7.0]])
    >>> Q, R, P = rnla.qr(A, pivoting=True, rng=0)
    >>> R.shape, bool(np.allclose(A[:, P], Q @ R))
    ((2, 3), True)
    """
    caller = "rnla.qr"
    M = as_matrix(A, caller)
    check_choice(pivoting, "pivoting", (True, False), caller)
    check_choice(method, "method", PIVOTED if pivoting else UNPIVOTED, caller)
    if k is not None:
        check_rank(k, M, caller)
    if rtol is not None:
        check_number(rtol, "rtol", caller)
    for value, name in ((k, "k"), (rtol, "rtol")):
        if value is not None and not pivoting:
            raise ValueError(f"{caller}: {name} must be None unless pivoting=True; got {value}.")
    if method == "cqrrpt" and M.shape[0] < M.shape[1]:
        raise ValueError(f"{caller}: method 'cqrrpt' needs at least as many rows as columns; got shape {M.shape}.")
    key = key_from_rng(rng, caller)
    monitor = Monitor(None, False, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs
    if pivoting and method == "auto":
        tall = M.shape[0] >= TALL * M.shape[1]
        method = "cqrrpt" if tall and (k is None or M.kind == "dense") else "rqrcp"
    if pivoting:
        run = _cqrrpt if method == "cqrrpt" else _rqrcp
        (Q, R, P, error), factor = in_range(lambda M, _: run(M, k, rtol, key, caller), M)
        met = rtol is None or error <= max(rtol, max(M.shape) * eps_of(M.xp, M.dtype))
        message = _outcome(Q.shape[1], k, rtol, met, M)
    else:
        (Q, R), factor = in_range(lambda M, _: _unpivoted(M, method, key, caller), M)
        P, error, met, message = None, None, True, "complete"
    if not met:
        warn_not_converged(caller, message)
    info = SVDInfo(
        "householder" if method == "auto" and M.shape[0] < 2 * M.shape[1] else method.replace("auto", "cholesky"),
        M.counter.passes - passes, M.counter.matvecs - matvecs, 0, met, None, error, Q.shape[1], Q.shape[1], key,
        M.dtype, monitor.seconds, message,
    )  # fmt: skip
    R = R / factor if factor != 1 else R
    return PivotedQRResult(Q, R, index_array(M, P), info) if pivoting else QRResult(Q, R, info)


class QRResult(LowRank):
    """``A = Q @ R`` with orthonormal columns of Q and upper triangular R, as of ``numpy.linalg.qr``.

    Attributes
    ----------
    Q : array, shape (m, r)
        Orthonormal columns.
    R : array, shape (r, n)
        Upper triangular.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> Q, R = rnla.qr(np.array([[3.0], [4.0]]))
    >>> np.round(abs(R), 6).tolist()
    [[5.0]]
    """

    _fields: tuple = ("Q", "R")

    def __new__(cls, Q, R, info=None):
        self = super().__new__(cls, (Q, R))
        self.info = info
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.info)

    Q = property(lambda self: self[0])
    R = property(lambda self: self[1])

    @property
    def H(self):
        """The adjoint ``R^H Q^H``, as a pair of factors."""
        left, right = self._factors()
        return Factors(adjoint(right), adjoint(left))

    def _factors(self):
        return self.Q, self.R


class PivotedQRResult(QRResult):
    """``A[:, P] = Q @ R``, SciPy's convention; as an operator the result stands for A, its columns in their own order.

    Attributes
    ----------
    Q : array, shape (m, r)
        Orthonormal columns; r is the rank found.
    R : array, shape (r, n)
        Upper trapezoidal, its diagonal decreasing but for a modest factor.
    P : array of int, shape (n,)
        A permutation of the column numbers.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> result = rnla.qr(np.diag([1.0, 3.0, 2.0]), pivoting=True, rng=0)
    >>> result.P.tolist(), np.round(result.to_dense(), 6).tolist()
    ([1, 2, 0], [[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    """

    _fields = ("Q", "R", "P")

    def __new__(cls, Q, R, P, info=None):
        self = tuple.__new__(cls, (Q, R, P))
        self.info = info
        return self

    P = property(lambda self: self[2])

    def _factors(self):
        from array_api_compat import array_namespace

        xp = array_namespace(self.P)
        return self.Q, xp.take(self.R, xp.argsort(self.P), axis=1)


def pivoted_triangle(B):
    """Return R and the order of the columns of a pivoted QR factorisation of a small matrix of the host."""
    from scipy.linalg import qr

    R, order = qr(B, mode="r", pivoting=True, check_finite=False)
    return R[: min(B.shape)], order


def numerical_rank(R, floor):
    """Return how many leading diagonal entries of a pivoted R are above `floor`."""
    small = np.flatnonzero(~(np.abs(np.diagonal(R)) > floor))
    return int(small[0]) if small.size else min(R.shape)


def _threshold(M):
    """Return which part of the longest column counts as zero.

    The rounding of A is ``eps`` in every column; a sketch adds a random walk of ``max(m, n)`` roundings.
    """
    return max(min(M.shape), math.sqrt(max(M.shape))) * eps_of(M.xp, M.dtype)


def _outcome(rank, k, rtol, met, M):
    if not met:
        return f"rank {rank} reached before the precision"
    if rtol is not None:
        return f"precision met at rank {rank}"
    wanted = min(M.shape) if k is None else k
    return "complete" if rank == wanted else f"A has numerical rank {rank}, below {wanted}"


def _unpivoted(M, method, key, caller):
    X = M.to_dense()
    M.counter.passes += M.array is not None  # otherwise counted by what formed X
    x = test_matrix("rademacher", key, M.shape[0], 1, xp=M.xp, device=M.device, dtype=M.dtype)
    check_range(M, None, adjoint(x) @ X, caller)
    Q, R = orth(X, "qr" if method == "householder" else "auto", overwrite=M.array is None)
    return Q, R if is_meta(R) else like(R, Q)


def _cqrrpt(M, k, rtol, key, caller):
    """Pivot on a sparse sketch of 2 n rows, take its triangle away from A, and make the rest orthonormal.

    The sketch changes no length by more than a factor of ``1 +- 2**-0.5``: what is left has condition below 6 [1].
    Return Q, R, the order, and the relative error of a truncation.
    """
    X = M.to_dense()
    M.counter.passes += M.array is not None
    xp, (m, n) = M.xp, M.shape
    rows = max(2 * n, FEWEST)
    B = SparseSign(rows, m, seed=key) @ X if rows < m else X  # which has no more rows than its sketch would have
    check_range(M, None, B, caller)
    Rs, order = pivoted_triangle(to_host(B))
    rank = numerical_rank(Rs, _threshold(M) * abs(Rs[0, 0]))
    count = rank if k is None or rtol is not None else min(rank, k)
    if count == 0:
        Q, R = columns(xp, m, 0, dtype=M.dtype, device=M.device), xp.zeros((0, n), dtype=M.dtype, device=M.device)
        return Q, R, order, 0.0
    # Rs = D W with W well-conditioned: inverted in this form, no digits are lost to the spread of the diagonal. Its
    # rows are put where the columns of A are, so that A needs no permuted copy.
    diagonal = np.diagonal(Rs)[:count]
    T = np.zeros((n, count), Rs.dtype)
    T[order[:count]] = np.linalg.inv(Rs[:count, :count] / diagonal[:, None]) / diagonal
    Y = X @ like(T, X)
    G = to_host(adjoint(Y) @ Y)
    squares = np.linalg.eigvalsh(G)
    if squares[0] * SPREAD**2 > squares[-1]:
        L = np.linalg.cholesky(G).conj().T
        Q = times_small(Y, np.linalg.inv(L), overwrite=True)
    else:
        Q, L = orth(Y, overwrite=True)
    R = L @ Rs[:count]
    if count < rank:
        # Beyond the first columns the sketch knows R only up to its distortion.
        R[:, count:] = to_host(adjoint(Q) @ X)[:, order[count:]]
    keep, error = _truncated(R, 0.0, rtol, k)
    if keep < count:
        Q, R = xp.asarray(Q[:, :keep], copy=True), R[:keep]
    return Q, like(R, X), order, error


def _truncated(R, rest, rtol, k):
    """Return how many rows of R a precision needs, at most `k`, and the relative error; `rest` is outside of R."""
    count = len(R)
    if rtol is None:
        return count, None
    tails = np.sqrt(np.append(np.cumsum(np.sum(np.abs(R) ** 2, axis=1)[::-1])[::-1], 0.0) + rest**2)
    wanted = int(np.argmax(tails <= max(rtol * tails[0], tails[-1])))
    keep = wanted if k is None else min(wanted, k)
    return keep, float(tails[keep] / tails[0]) if tails[0] > 0 else 0.0


def _rqrcp(M, k, rtol, key, caller):
    """Choose pivots block by block on a Gaussian sketch, from which what the factors hold is subtracted.

    Q grows by the projected pivot columns, R by the rows ``Q_i^H A``: A is never changed. Return Q, R, the order, and
    the relative error if a precision is asked for.
    """
    xp, (m, n) = M.xp, M.shape
    limit = min(m, n) if k is None else k
    block = limit if limit <= WHOLE else BLOCK
    place = {"xp": xp, "device": M.device, "dtype": M.dtype}
    exact = block + EXTRA >= m  # the sketch would have no fewer rows than A
    G = xp.eye(m, dtype=M.dtype, device=M.device) if exact else test_matrix("gaussian", key, m, block + EXTRA, **place)
    Bh = M.rmatmat(G)  # the sketch G^H A, as columns
    check_range(M.H, G, Bh, caller)
    floor = _threshold(M) * math.sqrt(float(np.max(column_squares(adjoint(Bh)))))
    total = M.fro_norm_sq() if rtol is not None else None
    Q = columns(xp, m, 0, dtype=M.dtype, device=M.device)
    Rh = columns(xp, n, 0, dtype=M.dtype, device=M.device)  # R^H, its rows in the order of the columns of A
    chosen, error, blocks = np.zeros(0, int), math.inf, 0
    while len(chosen) < limit:
        B = to_host(adjoint(Bh))
        B[:, chosen] = 0.0  # but for rounding
        Rs, order = pivoted_triangle(B)
        new = order[: min(block, limit - len(chosen), numerical_rank(Rs, floor))]
        if not len(new):
            error = 0.0
            break
        Qi = _orthonormal(dense(take_columns(M, new)), Q)
        Rih = M.rmatmat(Qi)
        Q, Rh = xp.concat([Q, Qi], axis=1), xp.concat([Rh, Rih], axis=1)
        chosen, blocks = np.append(chosen, new), blocks + 1
        if rtol is not None:
            error, norm = _remaining(M, Q, Rh, total, blocks, key)
            if error <= rtol * norm:
                break
        if len(chosen) < limit:
            Bh = Bh - Rih @ (adjoint(Qi) @ G)
    others = np.ones(n, bool)
    others[chosen] = False
    order = np.concatenate([chosen, np.flatnonzero(others)])
    R = xp.triu(adjoint(xp.take(Rh, index_array(M, order), axis=0)))
    if rtol is None:
        return Q, R, order, None
    keep, error = _truncated(to_host(R), error, rtol, k)
    return (Q[:, :keep], R[:keep, :], order, error)


def _orthonormal(Y, Q):
    """Orthonormalise pivot columns against Q; the second projection acts on columns of norm one."""
    if not Q.shape[1]:
        return orth(Y)[0]
    Qi = orth(project_out(Y, Q)[0])[0]
    return orth(project_out(Qi, Q)[0])[0]


def _remaining(M, Q, Rh, total, blocks, key):
    """Return ``||A - Q R||_F`` and ``||A||_F``, as `rnla.qb` does: a difference of squares, or from a sample."""
    captured = float(np.sum(column_squares(Rh)))
    if total is not None and total - captured > TRUSTED * eps_of(M.xp, M.dtype) * total * math.sqrt(blocks):
        return math.sqrt(total - captured), math.sqrt(total)
    error = sampled_error(M, Q, Rh, "fro", "gaussian", key + 1)[0]
    return error, math.sqrt(captured + error**2 if total is None else total)
