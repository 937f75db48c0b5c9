"""The result of robust PCA: a factored low-rank matrix, and outliers on demand."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_namespace

from rnla._rpca_cur import robust_cur
from rnla._rpca_entries import Entries, sparse_block


class RobustRecord(NamedTuple):
    """What is known after each iteration."""

    iteration: int  # from 1
    error: float  # the quantity that is compared with the tolerance
    threshold: float  # modulus of a residual beyond which it is an outlier (the median over rows)
    kept: float  # share of the entries looked at that are no outliers
    seconds: float  # since the call


@dataclass(frozen=True, eq=False, repr=False)
class RobustPCAResult:
    """``A = L + S``: L of low rank in factors, S sparse and computed when it is asked for.

    Attributes
    ----------
    U, s, Vh : array, shapes (m, k), (k,), (k, n)
        ``L = (U * s) @ Vh``, with orthonormal columns and rows, and s non-increasing in the units of A.
    converged : bool
        Whether L may be believed: the tolerance was met, or noise was reached, and rows and columns are resolved (all
        but one in a hundred, where there is noise).
    n_iter : int
        Number of iterations.
    history : tuple of RobustRecord
        ``(iteration, error, threshold, kept, seconds)`` of each iteration.
    message : str
        Why it ended.
    status : {"converged", "noise_floor", "collapsed", "max_iter", "stopped", "zero"}
        ``noise_floor``: the residuals were noise before the tolerance was met; ``collapsed``: the bound of the outliers
        has sunk below what fits; ``stopped``: by the callback.
    threshold : tuple of two arrays, shapes (m,) and (n,)
        An entry of row i and column j is an outlier if its residual is above the larger of both bounds.
    kept : float
        Share of the entries looked at in the last iteration that were fitted: 1 - `kept` estimates the outliers'.
    kept_fresh : float
        The same of entries drawn anew at the end.
    unresolved_rows, unresolved_cols : ndarray of int
        Rows and columns that L does not explain.
    rescued : list of (int, int)
        How many rows and columns each round of the rescue has fitted again.

    Examples
    --------
    >>> problem = rnla.datasets.robust_pca_problem(200, 150, 2, outliers=0.1, rng=0)
    >>> result = rnla.robust_pca(problem.A, 2, rng=0)
    >>> result.converged, bool(np.abs(result.low_rank() - problem.low_rank).max() < 1e-4)
    (True, True)
    >>> result.sparse(problem.A).nnz
    3000
    """

    U: Any
    s: Any
    Vh: Any
    converged: bool
    n_iter: int
    history: tuple
    message: str
    status: str
    threshold: tuple
    kept: float
    kept_fresh: float
    unresolved_rows: np.ndarray
    unresolved_cols: np.ndarray
    rescued: list

    @property
    def shape(self):
        """Shape (m, n) of the matrix."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def rank(self):
        """Rank of L."""
        return self.U.shape[1]

    def low_rank(self, rows=None, cols=None):
        """Return a block of L as a dense array.

        Parameters
        ----------
        rows, cols : slice or index vector, optional
            Which; all by default, and then the whole matrix is formed.
        """
        U, Vh = self.U, self.Vh
        U = U if rows is None else _some(U, rows, 0)
        Vh = Vh if cols is None else _some(Vh, cols, 1)
        return (U * array_namespace(U).astype(self.s, U.dtype)) @ Vh

    def sparse(self, A, threshold=None, mask=None):
        """Return the outliers of `A` as a sparse matrix, computed a block of rows at a time.

        Parameters
        ----------
        A : array, dask array, memory map or dataset, shape (m, n)
            The matrix that was decomposed.
        threshold : float, optional
            Modulus of a residual beyond which it is an outlier; by default the larger one of the result's own for the
            row and the column.
        mask : array of bool, optional
            True where A is observed; other entries are no outliers.

        Returns
        -------
        scipy.sparse.csr_array or cupyx.scipy.sparse.csr_matrix, shape (m, n)
            ``A - L`` where it is large.
        """
        parts = [part for _, part in self.outlier_blocks(A, threshold, mask)]
        if is_cupy_namespace(array_namespace(self.U)):
            from cupyx.scipy import sparse

            return sparse.vstack(parts, format="csr")
        from scipy import sparse

        return sparse.vstack(parts, format="csr")

    def outlier_blocks(self, A, threshold=None, mask=None):
        """Yield ``(slice of rows, sparse block)`` over `A`; see `sparse`."""
        caller = "rnla.RobustPCAResult.outlier_blocks"
        xp, where = array_namespace(self.U), device(self.U)
        if threshold is None:
            z_row, z_col = (xp.asarray(np.asarray(z), dtype=self.s.dtype, device=where) for z in self.threshold)
        elif not threshold >= 0:
            raise ValueError(f"{caller}: threshold must be non-negative; got {threshold}.")
        for start, B, seen in self._blocks(A, mask, caller):
            rows = slice(start, start + B.shape[0])
            residual = B - self.low_rank(rows)
            size = xp.abs(residual)
            bound = threshold if threshold is not None else xp.maximum(z_row[rows][:, None], z_col[None, :])
            keep = size > bound
            if seen is not None:
                keep = keep & seen
            yield rows, sparse_block(xp.where(keep, residual, xp.zeros_like(residual)), xp)

    def residual_norm(self, A, mask=None):
        """Return ``||A - L - S||_F / ||A||_F`` over the observed entries; one read of A."""
        caller = "rnla.RobustPCAResult.residual_norm"
        xp, where = array_namespace(self.U), device(self.U)
        z_row, z_col = (xp.asarray(np.asarray(z), dtype=self.s.dtype, device=where) for z in self.threshold)
        total = left = 0.0
        for start, B, seen in self._blocks(A, mask, caller):
            rows = slice(start, start + B.shape[0])
            size = xp.abs(B - self.low_rank(rows))
            inlier = size <= xp.maximum(z_row[rows][:, None], z_col[None, :])
            if seen is not None:
                inlier = inlier & seen
            rest = xp.where(inlier, size, xp.zeros_like(size))
            total += float(xp.sum(xp.astype(xp.abs(B), xp.float64) ** 2))
            left += float(xp.sum(xp.astype(rest, xp.float64) ** 2))
        return float(np.sqrt(left / total)) if total > 0 else 0.0

    def to_cur(self, A, mask=None):
        """Return L as a CUR decomposition: `rank` of its own columns and rows, and the outliers of A in them.

        The rows and columns are chosen from the factors by pivoted elimination, cleaned of outliers, and joined by the
        inverse of their intersection: a robust CUR decomposition of `A`.

        Parameters
        ----------
        A : array, dask array, memory map or dataset, shape (m, n)
            The matrix that was decomposed; only the chosen rows and columns are used.
        mask : array of bool, optional
            True where A is observed; other entries are no outliers.

        Returns
        -------
        RobustCUR
            ``C, U, R``, ``.cols, .rows``, and ``.col_outliers, .row_outliers`` of ``A[:, cols]`` and ``A[rows]``.
        """
        return robust_cur(self, A, mask)

    def _blocks(self, A, mask, caller):
        entries = Entries(A, mask, caller)
        if entries.shape != self.shape:
            raise ValueError(f"{caller}: A must have the shape {self.shape}; got {entries.shape}.")
        return entries.row_blocks()

    def __repr__(self):
        m, n = self.shape
        state = "converged" if self.converged else "NOT converged"
        outliers = f"{1 - self.kept_fresh:.1%} outliers"
        head = f"RobustPCAResult({m} x {n}, rank {self.rank}, {outliers})"
        return f"{head}\n  {state} after {self.n_iter} iterations: {self.message}"


def _some(X, index, axis):
    if isinstance(index, slice):
        return X[index, :] if axis == 0 else X[:, index]
    xp = array_namespace(X)
    return xp.take(X, xp.asarray(np.asarray(index), device=device(X)), axis=axis)
