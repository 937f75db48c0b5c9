"""CUR decomposition: a matrix from some of its columns and some of its rows, joined by a small core."""

from typing import Any, NamedTuple

import numpy as np

from rnla._backend import adjoint, check_finite, columns, eps_of, host_svd, key_from_rng, to_host
from rnla._column_selection import (
    COLUMNS,
    MORE_ROWS,
    ON_SUBSPACE,
    ROWS,
    SKETCH,
    choose,
    independent,
    independent_columns,
    osinsky,
    pivots,
    row_sketch,
    to_precision,
)
from rnla._interpolative import check_target, describe
from rnla._lowrank import Factors, LowRank, SVDInfo
from rnla._matrix import as_matrix
from rnla._progress import Monitor
from rnla._rangefinder import TRUSTED, check_choice, check_count, check_range, in_range, warn_not_converged
from rnla._sketch import test_matrix
from rnla._submatrix import dense, index_array, take_columns, take_rows
from rnla._svd import svd_as
from rnla._tall import like

METHODS = ("arp", "osinsky", "deim", "qdeim", "lupp", "cpqr", "leverage", "uniform")
BY_SVD = ("arp", "osinsky", "deim", "qdeim", "leverage")  # choose from leading singular vectors
CUT = 10.0  # singular values of a row block below this many rounding units count as zero


def cur(A, k=None, *, rtol=None, method="cpqr", core="optimal", n_oversamples=10, n_iter=1, rng=None):
    """Approximate `A` by `k` of its columns and `k` of its rows: ``A ~ C @ U @ R``.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it are used, and the chosen columns and rows.
    k : int, optional
        Number of columns, ``1 <= k <= min(m, n)``; with `rtol` the largest number.
    rtol : float, optional
        Choose as many as ``||A - C U R||_F <= rtol * ||A||_F`` needs. The error is computed where rows of A are at
        hand, and estimated from 20 products where not.
    method : {"arp", "osinsky", "deim", "qdeim", "lupp", "cpqr", "leverage", "uniform"}
        How columns and rows are chosen. ``cpqr`` and ``lupp`` (cheapest) work on a sketch, and on an orthonormal basis
        of the columns for the rows. The others but ``uniform`` need leading singular vectors, from `rnla.svd`:
        adaptive randomized pivoting, with ``E ||A - C C^+ A||_F**2 <= (k + 1) ||A - A_k||_F**2``; Osinsky's greedy
        rule, with that bound always; discrete empirical interpolation by elimination or by pivoted QR; leverage scores.
    core : {"optimal", "cross"}
        ``optimal`` is ``U = C^+ A R^+``, the best for these columns and rows, by one more pass. ``cross`` is the
        pseudoinverse of ``A[rows][:, cols]``, for which twice as many rows as columns are taken; no more of A is read.
    n_oversamples : int
        Rows of the sketch, or singular vectors, computed beyond `k`.
    n_iter : int
        Power iterations of the sketch.
    rng : None, int or numpy.random.Generator
        Source of the sketch and of the draws.

    Returns
    -------
    CURResult
        ``C`` (m, k), ``U`` (k, k) or (k, 2 k), ``R``, with index vectors ``.cols`` and ``.rows``; library, device and
        dtype of `A`; C and R are sparse if `A` is. Fewer than `k` columns where no more were independent;
        ``.info.message`` then says so.

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
    U can be as ill-conditioned as A. The result as an operator (``result @ X``, ``result.to_dense()``) therefore uses
    orthonormal bases of C and R and the core between them; so does all that is computed here.

    Passes over A: ``2 * n_iter + 1``, or those of `rnla.svd`; one for the optimal core; one each for columns and rows
    where entries are out of reach. ``osinsky`` forms the error of the subspace, as large as A, for dense A, and works
    on a sketch of it for other kinds. Flops beyond the products: about ``6 (m + n) k**2``.

    References
    ----------
    .. [1] Dong, Martinsson, Adv. Comput. Math. 49 (2023) (``lupp``, ``cpqr``).
    .. [2] Cortinovis, Kressner, arXiv 2412.13992 (``arp``).  [3] Osinsky, arXiv 2308.09068 (``osinsky``).
    .. [4] Sorensen, Embree, SIAM J. Sci. Comput. 38 (2016) (``deim``), Theorem 4.1.
    .. [5] Mahoney, Drineas, PNAS 106 (2009) (``leverage``).

    Examples
    --------
    >>> A = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0, 0.0])
    >>> C, U, R = result = rnla.cur(A, 1, rng=0)
    >>> result.cols.tolist(), result.rows.tolist(), bool(np.allclose(C @ U @ R, A))
    ([2], [2], True)
    """
    caller = "rnla.cur"
    M = as_matrix(A, caller)
    check_target(k, rtol, M, caller)
    check_choice(method, "method", METHODS, caller)
    check_choice(core, "core", ("optimal", "cross"), caller)
    check_count(n_oversamples, "n_oversamples", caller, least=0)
    check_count(n_iter, "n_iter", caller, least=0)
    key = key_from_rng(rng, caller)
    monitor = Monitor(None, False, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs
    options = {
        "method": method, "core": core, "n_oversamples": n_oversamples, "n_iter": n_iter, "key": key, "caller": caller
    }  # fmt: skip

    def run(M, _):
        def build(rank):
            return _factors(M, rank, **options)

        if rtol is None:
            found = build(k)
            return found, _error(M, found), True
        return to_precision(build, M, k, rtol, key, caller)

    (found, error, met), factor = in_range(run, M)
    message = describe(len(found.cols), k, rtol, met)
    if not met:
        warn_not_converged(caller, message)
    info = SVDInfo(
        method, M.counter.passes - passes, M.counter.matvecs - matvecs, 0, met, None, error, len(found.cols),
        len(found.cols), key, M.dtype, monitor.seconds, message,
    )  # fmt: skip
    C, U, R, left = found.C, found.U, found.R, found.left
    if factor != 1:
        C, U, R, left = C / factor, U * factor, R / factor, left / factor
    return CURResult(C, U, R, index_array(M, found.cols), index_array(M, found.rows), (left, found.right), info)


class CURResult(LowRank):
    """``A ~ C @ U @ R``, with columns and rows of A itself.

    Attributes
    ----------
    C : array or sparse matrix, shape (m, k)
        ``A[:, cols]``.
    U : array, shape (k, k) or (k, 2 k)
        Core. Where it is ill-conditioned multiply by the result instead of the three factors.
    R : array or sparse matrix, shape (k, n) or (2 k, n)
        ``A[rows]``.
    cols, rows : array of int
        Distinct column and row numbers.
    factors : tuple of two arrays
        A well-conditioned factorisation of the same approximation, (m, k) and (k, n), which products use.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> result = rnla.cur(np.diag([1.0, 3.0, 2.0]), 2, rng=0)
    >>> sorted(result.cols.tolist()), np.round(result.to_dense(), 6).tolist()
    ([1, 2], [[0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    """

    _fields = ("C", "U", "R")

    def __new__(cls, C, U, R, cols, rows, factors, info=None):
        self = super().__new__(cls, (C, U, R))
        self.cols = cols
        self.rows = rows
        self.factors = factors
        self.info = info
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.cols, self.rows, self.factors, self.info)

    C = property(lambda self: self[0])
    U = property(lambda self: self[1])
    R = property(lambda self: self[2])

    @property
    def H(self):
        """The adjoint, as a pair of factors."""
        left, right = self.factors
        return Factors(adjoint(right), adjoint(left))

    def _factors(self):
        return self.factors


class _Found(NamedTuple):
    cols: np.ndarray
    rows: np.ndarray
    C: Any
    U: Any
    R: Any
    left: Any  # left @ right is C U R, in factors that are no worse conditioned than A
    right: Any
    captured: float | None  # ||C U R||_F**2 where that is a projection of A


def _factors(M, k, *, method, core, n_oversamples, n_iter, key, caller):
    cols, subspace = _choose_columns(M, k, method, n_oversamples, n_iter, key, caller)
    if not len(cols):
        return _nothing(M)
    C = take_columns(M, cols)
    check_range(M, None, dense(C), caller)
    Q, R_C, found = independent(dense(C), cols)
    if not len(found):
        return _nothing(M)
    if len(found) < len(cols):
        cols, C = found, take_columns(M, found)
    rows = _choose_rows(M, Q, method, subspace, n_oversamples, key, core == "cross")
    return (_cross if core == "cross" else _optimal)(M, cols, C, Q, R_C, rows, caller)


def _choose_columns(M, k, method, n_oversamples, n_iter, key, caller):
    """Return column numbers and, for methods that use them, the leading left singular vectors and a rounding floor."""
    m, n = M.shape
    rtol = max(m, n) * eps_of(M.xp, M.dtype)
    if method == "uniform":
        return pivots(method, np.empty((0, n)), k, key, COLUMNS), None
    if method not in BY_SVD:
        B = row_sketch(M, min(k + n_oversamples, m, n), n_iter, key, caller)
        top = float(np.linalg.norm(B, axis=0).max())
        cols = choose(method, B, k, key, COLUMNS, rtol * top)
        return cols[independent_columns(B[:, cols], rtol, top)], None
    U, S, Vh = svd_as(caller, M, k, n_oversamples=n_oversamples, rng=key)
    check_range(M, None, U * S, caller)
    S = to_host(S)
    rank = int(np.sum(rtol * S[0] < S))
    U, Vh = U[:, :rank], Vh[:rank, :]
    floor = CUT * eps_of(M.xp, M.dtype) * S[0]
    if not rank:
        return np.zeros(0, int), None
    if method == "osinsky":
        cols = osinsky(_subspace_error(M, adjoint(Vh), n_oversamples, key), to_host(adjoint(Vh)), floor)
    else:
        cols = pivots(ON_SUBSPACE[method], to_host(Vh), rank, key, COLUMNS)
    return cols, (U, floor)


def _choose_rows(M, Q, method, subspace, n_oversamples, key, doubled):
    """Return as many row numbers as Q, an orthonormal basis of the columns, has columns, or twice as many."""
    count = Q.shape[1]
    if method in BY_SVD and method != "arp":
        U, floor = subspace
        basis = to_host(adjoint(U))
    else:
        basis = to_host(adjoint(Q))
    rule = {"osinsky": "cpqr", "uniform": "uniform", "lupp": "lupp"}.get(method, ON_SUBSPACE.get(method, "cpqr"))
    if method == "osinsky":
        rows = osinsky(_subspace_error(M.H, U, n_oversamples, key), basis.conj().T, floor)[:count]
    else:
        rows = pivots(rule, basis, count, key, ROWS)
    others = np.setdiff1d(np.arange(M.shape[0]), rows) if doubled else rows[:0]
    if len(others):
        rows = np.concatenate([rows, others[pivots(rule, basis[:, others], count, key, MORE_ROWS)]])
    return rows


def _subspace_error(M, V, n_oversamples, key):
    """Return ``A - A V V^H``, or a sketch of its rows where A is not a dense array."""
    if M.kind == "dense":
        return M.to_dense() - M.matmat(V) @ adjoint(V)
    count = min(2 * (V.shape[1] + n_oversamples), M.shape[0])
    place = {"xp": M.xp, "device": M.device, "dtype": M.dtype}
    Y = M.rmatmat(test_matrix("gaussian", key, M.shape[0], count, stream=SKETCH, **place))
    return adjoint(Y - V @ (adjoint(V) @ Y))


def _optimal(M, cols, C, Q, R_C, rows, caller):
    """Join by ``C^+ A R^+``, as ``Q (Q^H A Q_R) Q_R^H`` with orthonormal bases Q and Q_R of C and R^H."""
    from scipy.linalg import solve_triangular

    R = take_rows(M, rows)
    check_finite(dense(R), caller, "A")
    Q_R, R_R, independent_rows = independent(adjoint(dense(R)), rows)
    if len(independent_rows) < len(rows):
        rows, R = independent_rows, take_rows(M, independent_rows)
    W = M.matmat(Q_R)
    check_finite(W, caller, "A")
    core = to_host(adjoint(Q) @ W)
    U = solve_triangular(R_C, core, check_finite=False)
    U = solve_triangular(R_R, U.conj().T, check_finite=False).conj().T
    captured = float(np.sum(np.abs(core) ** 2))
    return _Found(cols, rows, C, like(U, Q), R, Q @ like(core, Q), adjoint(Q_R), captured)


def _cross(M, cols, C, Q, R_C, rows, caller):
    """Join by the pseudoinverse of ``A[rows][:, cols]``.

    That block is ``Q[rows] R_C``, so that ``C A[rows, cols]^+ R = Q Q[rows]^+ R``: only rows of Q, which are as
    well-conditioned as they were chosen, meet a pseudoinverse.
    """
    from scipy.linalg import solve_triangular

    R = take_rows(M, rows)
    check_finite(dense(R), caller, "A")
    W, s, Zh = host_svd(to_host(M.xp.take(Q, index_array(M, rows), axis=0)))
    keep = s > CUT * eps_of(M.xp, M.dtype) * s[0]
    inverse = (Zh[keep].conj().T / s[keep]) @ W[:, keep].conj().T
    U = solve_triangular(R_C, inverse, check_finite=False)
    return _Found(cols, rows, C, like(U, Q), R, Q, like(inverse, Q) @ dense(R), None)


def _nothing(M):
    """Return the decomposition of a matrix of rank zero."""
    m, n = M.shape
    none = np.zeros(0, int)
    tall, wide = (columns(M.xp, side, 0, dtype=M.dtype, device=M.device) for side in (m, n))
    U = M.xp.zeros((0, 0), dtype=M.dtype, device=M.device)
    return _Found(none, none, tall, U, adjoint(wide), tall, adjoint(wide), 0.0)


def _error(M, found):
    """Return the relative error of a projection where ``||A||_F`` costs little, else None."""
    if found.captured is None or M.kind not in ("dense", "sparse"):
        return None
    total = M.fro_norm_sq()
    if total == 0:
        return 0.0
    # A difference of squares says nothing below its own rounding: then the error is known to be smaller than that.
    return float(np.sqrt(max(1.0 - found.captured / total, TRUSTED * eps_of(M.xp, M.dtype))))
