"""Principal components of data that come in batches (extra ``sklearn``)."""

import math
from typing import Any

from array_api_compat import array_namespace, device

from rnla._backend import adjoint, check_finite, to_host
from rnla._matrix import as_matrix
from rnla._matrix_views import spans
from rnla._principal_components import PrincipalComponents
from rnla._rangefinder import check_count, thin_svd
from rnla._sklearn_input import matrix_of, name_of, rows_of
from rnla._svd import flipped


class IncrementalPCA(PrincipalComponents):
    """Principal component analysis of data that come in batches, as ``sklearn.decomposition.IncrementalPCA``.

    Keeps the leading components of all rows seen so far: exact as long as what is cut off after every batch is zero,
    otherwise an approximation whose variances are too small. A batch of b rows costs one thin SVD of
    ``n_components + b + 1`` rows.

    Parameters
    ----------
    n_components : int or None
        Number of components; None for the smaller side of the first batch.
    whiten : bool
        Divide coordinates by their standard deviations.
    copy : bool
        Accepted for compatibility: X is never overwritten.
    batch_size : int or None
        Rows that `fit` takes at a time; None for ``5 * n_features``.

    Attributes
    ----------
    components_ : array, shape (k, n_features)
        Orthonormal rows, leading first; the entry of largest modulus in each is positive.
    explained_variance_, explained_variance_ratio_, singular_values_ : array, shape (k,)
        Variance along each component, its share of the total, and singular values.
    mean_, var_ : array, shape (n_features,)
        Mean and variance of every column of all rows seen, in double precision; the variance has the number of rows in
        the denominator.
    noise_variance_ : float
        Mean variance along all directions that were left out.
    n_components_, n_samples_seen_, batch_size_, n_features_in_ : int
        Sizes.

    References
    ----------
    .. [1] Ross, Lim, Lin, Yang, Int. J. Computer Vision 77 (2008).
    .. [2] Chan, Golub, LeVeque, The American Statistician 37 (1983) (means and variances).

    Examples
    --------
    >>> from rnla.decomposition import IncrementalPCA
    >>> model = IncrementalPCA(n_components=1)
    >>> for start in range(0, 100, 20):
    ...     model = model.partial_fit(np.outer(np.arange(start, start + 20), [3.0, 4.0]))
    >>> np.round(model.components_, 6).tolist(), model.n_samples_seen_
    ([[0.6, 0.8]], 100)
    """

    components_: Any  # set by `fit` and `partial_fit`
    singular_values_: Any
    mean_: Any
    var_: Any

    def __init__(self, n_components=None, *, whiten=False, copy=True, batch_size=None):
        self.n_components = n_components
        self.whiten = whiten
        self.copy = copy
        self.batch_size = batch_size

    def fit(self, X, y=None):
        """Find the components of X, `batch_size` rows at a time; rows seen before are forgotten.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Samples, real. Of a sparse matrix one batch at a time is made dense.
        y : None
            Ignored.

        Returns
        -------
        IncrementalPCA
            The estimator.
        """
        M = matrix_of(self, X, reset=True)
        m, n = M.shape
        for name in ("n_components", "batch_size"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name, name_of(self))
        self.batch_size_ = self.batch_size or 5 * n
        self.n_samples_seen_ = 0
        batches = spans(m, self.batch_size_)
        if len(batches) > 1 and m - batches[-1].start < (self.n_components or 0):
            batches[-2:] = [slice(batches[-2].start, m)]  # the last one is too short for a batch of its own
        for rows in batches:
            self._update(rows_of(M, rows))
        return self

    def partial_fit(self, X, y=None, check_input=True):
        """Add the rows of X, as one batch.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Samples, real; made dense. The first batch must have at least `n_components` rows.
        y : None
            Ignored.
        check_input : bool
            With False, scikit-learn does not look at X.

        Returns
        -------
        IncrementalPCA
            The estimator.
        """
        seen = getattr(self, "n_samples_seen_", 0)
        M = matrix_of(self, X, reset=not seen) if check_input else as_matrix(X, name_of(self))
        if self.n_components is not None:
            check_count(self.n_components, "n_components", name_of(self))
        self.n_samples_seen_ = seen
        self._update(rows_of(M, slice(0, M.shape[0])))
        return self

    def _update(self, B):
        """Add the rows of the dense block B."""
        xp, (b, n), seen = array_namespace(B), B.shape, self.n_samples_seen_
        k = self._count(b, n)
        dtype = self.components_.dtype if seen else B.dtype
        mean = xp.sum(B, axis=0, dtype=xp.float64) / b
        check_finite(mean, name_of(self), "X")
        X = xp.astype(B, xp.float64) - mean
        # The sum of the deviations is rounding of the mean: without it the variance is right to rounding.
        squares = xp.sum(X * X, axis=0) - xp.sum(X, axis=0) ** 2 / b
        rows, total = [xp.astype(X, dtype)], seen + b
        if seen:
            shift, weight = mean - self.mean_, seen * b / total
            kept = self.singular_values_[:, None] * self.components_
            rows = [kept, *rows, xp.astype(math.sqrt(weight) * shift[None, :], dtype)]
            mean = self.mean_ + shift * (b / total)
            squares = squares + self.var_ * seen + shift**2 * weight
        _, S, Vh = thin_svd(xp.concat(rows, axis=0))
        V, _ = flipped(xp.asarray(adjoint(Vh[:k, :]), copy=True), xp.zeros((n, k), dtype=dtype, device=device(B)))

        self.components_, self.singular_values_ = adjoint(V), xp.asarray(S[:k], copy=True)
        self.mean_, self.var_ = mean, squares / total
        self.n_components_, self.n_samples_seen_ = k, total
        variance, left = float(xp.sum(squares)), min(total, n) - k
        explained = self.singular_values_**2
        self.explained_variance_ = explained / max(total - 1, 1)
        self.explained_variance_ratio_ = explained / (variance if variance > 0 else 1.0)
        noise = max(variance - float(to_host(explained).sum()), 0.0) / max(total - 1, 1)
        self.noise_variance_ = noise / left if left > 0 else 0.0

    def _count(self, b, n):
        """Return the number of components after a batch of b rows."""
        wanted, found = self.n_components, self.components_.shape[0] if self.n_samples_seen_ else None
        if found is None and wanted is not None and wanted > min(b, n):
            raise ValueError(
                f"{name_of(self)}: n_components must be in 1..{min(b, n)} for a first batch of n_samples={b} and "
                f"n_features={n}; got {wanted}."
            )
        if found is not None and wanted not in (None, found):
            raise ValueError(f"{name_of(self)}: n_components must stay {found} between batches; got {wanted}.")
        return found or wanted or min(b, n)
