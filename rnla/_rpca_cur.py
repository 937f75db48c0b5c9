"""Robust CUR: the low-rank part that robust PCA has found, in some of its own rows and columns."""

import numpy as np

from rnla._backend import eps_of, from_host, to_host
from rnla._column_selection import pivots
from rnla._cur import CURResult
from rnla._rpca_entries import Entries, sparse_block
from rnla._submatrix import index_array


class RobustCUR(CURResult):
    """``L ~ C @ U @ R`` with columns and rows of L, the part of low rank; as an operator it is that of `CURResult`.

    Attributes
    ----------
    C : array, shape (m, r)
        ``L[:, cols]``: columns of A without their outliers. `r` is the numerical rank of L.
    U : array, shape (r, r)
        Inverse of ``L[rows][:, cols]``. Where it is ill-conditioned multiply by the result instead of the factors.
    R : array, shape (r, n)
        ``L[rows]``.
    cols, rows : array of int
        Distinct column and row numbers, none of them unresolved if that can be avoided.
    col_outliers : scipy.sparse.csr_array or cupyx.scipy.sparse.csr_matrix, shape (m, r)
        Outliers of these columns: ``A[:, cols] - C`` where it is large.
    row_outliers : scipy.sparse.csr_array or cupyx.scipy.sparse.csr_matrix, shape (r, n)
        Outliers of these rows.

    Examples
    --------
    >>> problem = rnla.datasets.robust_pca_problem(200, 150, 2, outliers=0.1, rng=0)
    >>> C, U, R = found = rnla.robust_pca(problem.A, 2, rng=0).to_cur(problem.A)
    >>> bool(np.abs(C @ U @ R - problem.low_rank).max() < 1e-4), C.shape, found.row_outliers.shape
    (True, (200, 2), (2, 150))
    """

    def __new__(cls, C, U, R, cols, rows, factors, info, col_outliers, row_outliers):
        self = super().__new__(cls, C, U, R, cols, rows, factors, info)
        self.col_outliers = col_outliers
        self.row_outliers = row_outliers
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*super().__getnewargs__(), self.col_outliers, self.row_outliers)


def robust_cur(result, A, mask=None):
    """Return a `RobustPCAResult` as a CUR decomposition; only the rows and columns that are chosen are read from `A`.

    Rows and columns are chosen by elimination with partial pivoting of the singular vectors, so that the intersection
    is no worse conditioned than L by a modest factor.
    """
    caller = "rnla.RobustPCAResult.to_cur"
    entries = Entries(A, mask, caller)
    if entries.shape != result.shape:
        raise ValueError(f"{caller}: A must have the shape {result.shape}; got {entries.shape}.")
    W, s, V = to_host(result.U), to_host(result.s), to_host(result.Vh).conj().T
    rank = int(np.sum(s > max(result.shape) * eps_of(entries.xp, entries.dtype) * s[0]))
    W, s, V = W[:, :rank], s[:rank], V[:, :rank]
    rows = _chosen(W, result.unresolved_rows)
    cols = _chosen(V, result.unresolved_cols)
    # C U R = (W s V_J^H) (V_J^-H s^-1 W_I^-1) (W_I s V^H): what cancels is left out of the factors that multiply.
    W_I, V_J = np.linalg.inv(W[rows]), np.linalg.inv(V[cols])
    core = (V_J.conj().T / s) @ W_I
    C, R = result.low_rank(cols=cols), result.low_rank(rows=rows)
    place = entries.xp, entries.dtype, entries.device
    across, down = entries.take(rows, cols)
    z_row, z_col = (np.asarray(z) for z in result.threshold)
    outliers = (
        _outliers(down, C, np.maximum(z_row[:, None], z_col[cols]), entries),
        _outliers(across, R.T, np.maximum(z_col[:, None], z_row[rows]), entries).T.tocsr(),
    )
    factors = from_host(W @ W_I, *place), R
    return RobustCUR(
        C, from_host(core, *place), R, index_array(entries.matrix, cols), index_array(entries.matrix, rows), factors,
        None, *outliers,
    )  # fmt: skip


def _chosen(factor, unresolved):
    """Return as many rows of a factor as it has columns, no unresolved ones if the others span enough."""
    good = np.setdiff1d(np.arange(len(factor)), unresolved)
    for index in (good, np.arange(len(factor))):
        rows = index[pivots("lupp", factor[index].T, factor.shape[1], 0, 0)] if len(index) else index
        if np.linalg.matrix_rank(factor[rows]) == factor.shape[1]:
            break
    return np.sort(rows)


def _outliers(part, L, bound, entries):
    """Return the residuals of sampled columns that are above their bounds, as a sparse matrix."""
    xp = entries.xp
    residual = part.X - L
    keep = xp.abs(residual) > xp.asarray(bound, device=entries.device)
    if part.observed is not None:
        keep = keep & part.observed
    return sparse_block(xp.where(keep, residual, xp.zeros_like(residual)), xp)
