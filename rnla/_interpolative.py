"""Interpolative decomposition: some columns (or rows) of a matrix, and the coefficients that give all the others."""

from typing import Any, NamedTuple

import numpy as np

from rnla._backend import adjoint, columns, eps_of, from_host, key_from_rng, to_host
from rnla._column_selection import (
    COLUMNS,
    choose,
    independent_columns,
    row_sketch,
    shortfall,
    to_precision,
)
from rnla._lowrank import Factors, LowRank, SVDInfo
from rnla._matrix import as_matrix
from rnla._orth import orth
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, check_rank, in_range, warn_not_converged
from rnla._submatrix import dense, index_array, sparse_adjoint, take_columns

METHODS = ("cpqr", "lupp", "arp", "rpqr", "leverage", "norm", "uniform")


def interp_decomp(A, k=None, *, rtol=None, axis=1, method="cpqr", n_oversamples=10, n_iter=1, coef="sketch", f=None,
                  rng=None):  # fmt: skip
    """Approximate `A` by `k` of its own columns: ``A ~ A[:, idx] @ P`` with ``P[:, idx] = I``.

    The columns are chosen on a sketch with ``k + n_oversamples`` rows.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it are used, and the chosen columns.
    k : int, optional
        Number of columns, ``1 <= k <= min(m, n)``; with `rtol` the largest number.
    rtol : float, optional
        Choose as many columns as ``||A - A[:, idx] P||_F <= rtol * ||A||_F`` needs. The error is computed where rows
        of A are at hand, and estimated from 20 products where not.
    axis : {1, 0}
        With 0 choose rows: ``A ~ P @ A[idx]`` with ``P[idx] = I``.
    method : {"cpqr", "lupp", "arp", "rpqr", "leverage", "norm", "uniform"}
        How: by pivoted QR of the sketch; by LU with partial pivoting of its transpose (cheapest); adaptive randomized
        pivoting on its leading right singular vectors, which has the error bound ``(k + 1)**0.5`` times the best in
        the mean square; randomly pivoted QR; drawn by leverage scores, by squared norms, or uniformly.
    n_oversamples : int
        Rows of the sketch beyond `k`.
    n_iter : int
        Power iterations of the sketch; each reads A twice.
    coef : {"sketch", "lstsq"}
        Find P from the sketch, or as the least-squares solution, which is the best for these columns and takes one
        more pass.
    f : float, optional
        Exchange columns until no entry of P, as found from the sketch, exceeds this modulus (strong rank-revealing
        QR); 2 is usual.
    rng : None, int or numpy.random.Generator
        Source of the sketch and of the draws.

    Returns
    -------
    IDResult
        ``idx`` (k,), an index vector, and ``P`` (k, n), or (m, k) for rows; library, device and dtype of `A`. Fewer
        than `k` where no more were independent; ``.info.message`` then says so.

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
    Passes over A: ``2 * n_iter + 1``, one more for ``coef="lstsq"``, and one for the columns where entries are out of
    reach. Flops beyond the products: about ``4 n k**2``, on the host.

    References
    ----------
    .. [1] Cheng, Gimbutas, Martinsson, Rokhlin, SIAM J. Sci. Comput. 26 (2005).
    .. [2] Dong, Martinsson, Adv. Comput. Math. 49 (2023), Algorithms 3 and 5 (``lupp`` and ``cpqr`` on a sketch).
    .. [3] Cortinovis, Kressner, arXiv 2412.13992 (``arp``), Theorem 2.1.
    .. [4] Gu, Eisenstat, SIAM J. Sci. Comput. 17 (1996), Theorem 3.2 (exchanges).

    Examples
    --------
    >>> A = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0, 0.0])
    >>> idx, P = rnla.interp_decomp(A, 1, rng=0)
    >>> idx.tolist(), np.round(P, 6).tolist()
    ([2], [[0.25, 0.5, 1.0, 0.0]])
    """
    caller = "rnla.interp_decomp"
    M = as_matrix(A, caller)
    check_target(k, rtol, M, caller)
    check_choice(axis, "axis", (1, 0), caller)
    check_choice(method, "method", METHODS, caller)
    check_choice(coef, "coef", ("sketch", "lstsq"), caller)
    check_count(n_oversamples, "n_oversamples", caller, least=0)
    check_count(n_iter, "n_iter", caller, least=0)
    if f is not None:
        check_number(f, "f", caller)
        if f <= 1:
            raise ValueError(f"{caller}: f must be above 1; got {f}.")
    key = key_from_rng(rng, caller)
    monitor = Monitor(None, False, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs
    options = {
        "method": method, "n_oversamples": n_oversamples, "n_iter": n_iter, "coef": coef, "f": f, "key": key,
        "caller": caller,
    }  # fmt: skip

    def run(M, _):
        def build(rank):
            return _skeleton(M, rank, **options)

        return (build(k), None, True) if rtol is None else to_precision(build, M, k, rtol, key, caller)

    (found, error, met), factor = in_range(run, M.H if axis == 0 else M)
    C, P = found.left if factor == 1 else found.left / factor, found.right
    message = describe(len(found.index), k, rtol, met)
    if not met:
        warn_not_converged(caller, message)
    info = SVDInfo(
        method, M.counter.passes - passes, M.counter.matvecs - matvecs, 0, met, None, error, len(found.index),
        len(found.index), key, M.dtype, monitor.seconds, message,
    )  # fmt: skip
    if axis == 0:
        C, P = sparse_adjoint(C), adjoint(P)
    return IDResult(index_array(M, found.index), P, C, axis, info)


class IDResult(LowRank):
    """``A ~ A[:, idx] @ P`` with ``P[:, idx] = I``, or ``A ~ P @ A[idx]`` with ``P[idx] = I`` for rows.

    Attributes
    ----------
    idx : array of int, shape (k,)
        Distinct column (or row) numbers.
    P : array, shape (k, n) or (m, k)
        Coefficients.
    skeleton : array or sparse matrix, shape (m, k) or (k, n)
        The chosen columns or rows; sparse if A is.
    axis : int
        1 for columns, 0 for rows.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> result = rnla.interp_decomp(np.diag([1.0, 3.0, 2.0]), 2, rng=0)
    >>> sorted(result.idx.tolist()), result.max_coefficient
    ([1, 2], 1.0)
    """

    _fields = ("idx", "P")

    def __new__(cls, idx, P, skeleton, axis=1, info=None):
        self = super().__new__(cls, (idx, P))
        self.skeleton = skeleton
        self.axis = axis
        self.info = info
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.skeleton, self.axis, self.info)

    idx = property(lambda self: self[0])
    P = property(lambda self: self[1])

    @property
    def max_coefficient(self):
        """Largest modulus of an entry of P: how much errors of the skeleton grow; usually below 2, never below 1."""
        return float(np.abs(to_host(self.P)).max(initial=0.0))

    @property
    def H(self):
        """The adjoint, as a pair of factors."""
        left, right = (adjoint(dense(X)) for X in self._factors())
        return Factors(right, left)

    def _factors(self):
        return (self.skeleton, self.P) if self.axis == 1 else (self.P, self.skeleton)


class _Skeleton(NamedTuple):
    index: np.ndarray
    left: Any  # the columns
    right: Any  # the coefficients


def _skeleton(M, k, *, method, n_oversamples, n_iter, coef, f, key, caller):
    """Return column numbers of the host, the columns, and the coefficients."""
    m, n = M.shape
    B = row_sketch(M, min(k + n_oversamples, m, n), n_iter, key, caller)
    rtol = max(m, n) * eps_of(M.xp, M.dtype)
    top = float(np.linalg.norm(B, axis=0).max())
    index = choose(method, B, k, key, COLUMNS, rtol * top)
    index = index[independent_columns(B[:, index], rtol, top)]
    if not len(index):
        empty = columns(M.xp, m, 0, dtype=M.dtype, device=M.device)
        return _Skeleton(index, empty, adjoint(columns(M.xp, n, 0, dtype=M.dtype, device=M.device)))
    P = _coefficients(B, index)
    if f is not None:
        index, P = _exchanged(B, index, P, f)
    C = take_columns(M, index)
    if coef == "lstsq":
        from scipy.linalg import solve_triangular

        Q, R = orth(dense(C))
        P = solve_triangular(R, to_host(M.rmatmat(Q)).conj().T, check_finite=False)
        P[:, index] = np.eye(len(index))
    return _Skeleton(index, C, from_host(P, M.xp, M.dtype, M.device))


def _coefficients(B, index):
    """Solve ``B[:, index] P = B`` in the least-squares sense, for independent columns of a small matrix."""
    from scipy.linalg import qr, solve_triangular

    Q, R, order = qr(B[:, index], mode="economic", pivoting=True, check_finite=False)
    P = np.empty((len(index), B.shape[1]), B.dtype)
    P[order] = solve_triangular(R, Q.conj().T @ B, check_finite=False)
    P[:, index] = np.eye(len(index))
    return P


def _exchanged(B, index, P, f):
    """Exchange columns while a coefficient exceeds `f`: each multiplies the volume of the columns by more than `f`."""
    index = index.copy()
    while np.abs(P).max() > f:
        row, column = np.unravel_index(np.argmax(np.abs(P)), P.shape)
        index[row] = column
        P = _coefficients(B, index)
    return index, P


def check_target(k, rtol, M, caller):
    """Raise unless a rank or a precision is given, each in its range."""
    if k is None and rtol is None:
        raise ValueError(f"{caller}: one of k and rtol must be given; got none.")
    if k is not None:
        check_rank(k, M, caller)
    if rtol is not None:
        check_number(rtol, "rtol", caller)


def describe(rank, k, rtol, met):
    """Say how a decomposition ended."""
    if rtol is None:
        return shortfall(rank, k)
    return f"precision met at rank {rank}" if met else f"rank {rank} reached before the precision"
