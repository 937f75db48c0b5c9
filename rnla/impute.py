"""scikit-learn's imputers, by completion of a matrix of low rank (extra ``sklearn``)."""

import warnings

import numpy as np
import scipy.sparse

from rnla._backend import check_rng, key_from_rng
from rnla._completion import check, completed
from rnla._completion_cv import complete_cv
from rnla._completion_result import CompletionResult, fold_in
from rnla._irls import Settings
from rnla._observed import Observed, observed
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number

try:
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("rnla.impute: estimators need scikit-learn: pip install 'rnla[sklearn]'") from error

__all__ = ["LowRankImputer"]

FLOATS = (np.float64, np.float32)


class LowRankImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill missing values of a table by a matrix of low rank.

    `rnla.complete` fits the rows that are given in `fit`; `transform` fills new rows by ridge regression of what they
    have on the factors of the columns. Values that are there are returned unchanged.

    Parameters
    ----------
    k : int, sequence of int or None
        Rank; of several, that with the smallest error at a tenth of the values, held out, together with the strength of
        the regularisation (see `rnla.complete_cv`). None looks for the rank of exact data, and bounds that of noisy
        data by what the number of values allows.
    center : {"columns", "rows", "both", "mean", None}
        What is subtracted before the fit.
    noise_std : float or "auto"
        Standard deviation of the noise in a value; ``"auto"`` estimates it.
    reg : float or None
        Regularisation lam instead of that which the noise demands.
    clip : tuple of float, "data" or None
        Bounds of filled values; ``"data"``: those of each column in `fit`.
    missing_values : float
        What marks a missing value of a dense table; entries that a sparse matrix does not store are missing.
    tol : float
        Relative change at which the fit ends.
    max_iter : int
        Most least-squares problems.
    rng : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of starting vectors and of the values held out.

    Attributes
    ----------
    completion_ : CompletionResult
        The fit.
    components_ : ndarray, shape (rank, n_features)
        Rows of Vh.
    singular_values_ : ndarray, shape (rank,)
        Singular values.
    noise_std_ : float
        Standard deviation of the noise, given or estimated.
    empty_features_ : ndarray of int
        Columns without a value in `fit`, which are filled with 0.
    n_iter_ : int
        Number of least-squares problems of the last run.
    n_features_in_ : int
        Number of columns.

    See Also
    --------
    rnla.complete : The fit, for matrices of any kind and size.

    Examples
    --------
    >>> from rnla.impute import LowRankImputer
    >>> X = np.outer(np.arange(1.0, 9.0), [1.0, 2.0, 3.0, 4.0])
    >>> X[1, 2] = X[4, 0] = np.nan
    >>> np.round(LowRankImputer(1, center=None).fit_transform(X)[[1, 4], [2, 0]], 6).tolist()
    [6.0, 5.0]
    """

    def __init__(self, k=None, *, center="columns", noise_std="auto", reg=None, clip=None, missing_values=np.nan,
                 tol=1e-4, max_iter=100, rng=None):  # fmt: skip
        self.k = k
        self.center = center
        self.noise_std = noise_std
        self.reg = reg
        self.clip = clip
        self.missing_values = missing_values
        self.tol = tol
        self.max_iter = max_iter
        self.rng = rng

    def fit(self, X, y=None):
        """Fit the low-rank matrix.

        Parameters
        ----------
        X : array, data frame or sparse matrix, shape (n_samples, n_features)
            Rows with missing values: NaN, or not stored.
        y : None
            Ignored.

        Returns
        -------
        LowRankImputer
            The estimator.
        """
        self._fitted(X)
        return self

    def fit_transform(self, X, y=None):
        """Fit, and return the rows with missing values filled.

        Parameters
        ----------
        X : array, data frame or sparse matrix, shape (n_samples, n_features)
            Rows with missing values.
        y : None
            Ignored.

        Returns
        -------
        ndarray, shape (n_samples, n_features)
            Rows without missing values.
        """
        X, entries = self._fitted(X)
        return self._filled(self.completion_.to_dense(), X, entries)

    def transform(self, X):
        """Return rows with missing values filled.

        Parameters
        ----------
        X : array, data frame or sparse matrix, shape (n_samples, n_features)
            Rows with missing values; one without any value gets the centre.

        Returns
        -------
        ndarray, shape (n_samples, n_features)
            Rows without missing values.
        """
        check_is_fitted(self, "completion_")
        X, entries = self._entries(X, reset=False)
        if entries is None:
            result = self.completion_
            centre = (
                np.zeros(X.shape[1]) if result.center_ is None else result.center_.cols + result.center_.rows.mean()
            )
            fit = np.broadcast_to(centre.astype(X.dtype), X.shape).copy()
        elif entries.count == X.shape[0] * X.shape[1]:
            fit = np.empty(X.shape, X.dtype)
        else:
            fit = fold_in(self.completion_, entries)
        return self._filled(fit, X, entries)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _fitted(self, X):
        caller = "rnla.impute.LowRankImputer"
        self._check_parameters(caller)
        X, entries = self._entries(X, reset=True)
        if entries is None:
            raise ValueError(f"{caller}: X must have at least one value; got none.")
        key = self._key(caller)
        side = min(entries.shape)
        settings = Settings(tol=self.tol, max_iter=self.max_iter)
        with warnings.catch_warnings():
            # Columns and rows with few values are no mistake in a table: those without any are reported below.
            warnings.filterwarnings("ignore", message=".*observed entries.*not determined")
            if np.ndim(self.k):
                triple = entries.rows, entries.cols, entries.values
                ranks = sorted({min(int(k), side) for k in self.k})
                found = complete_cv(
                    triple, ranks, shape=entries.shape, center=self.center, tol=self.tol, max_iter=self.max_iter,
                    rng=np.random.default_rng(key),
                )  # fmt: skip
                self.completion_: CompletionResult = found.best
            else:
                k = None if self.k is None else min(self.k, side)
                check(entries, k, settings, self.noise_std if self.reg is None else 0.0, self.reg, self.center, caller)
                self.completion_ = completed(
                    entries, k, settings, key, caller, Monitor(None, False, caller),
                    noise_std=self.noise_std if self.reg is None else 0.0, reg=self.reg, center=self.center,
                )  # fmt: skip
        self._describe(entries)
        return X, entries

    def _describe(self, entries):
        result = self.completion_
        self.components_, self.singular_values_ = result.Vh, result.s
        self.noise_std_, self.n_iter_ = result.noise_std, result.n_iter
        counts = entries.counts()[1]
        self.empty_features_ = np.flatnonzero(counts == 0)
        if self.empty_features_.size:
            warnings.warn(
                f"rnla.impute.LowRankImputer: {self.empty_features_.size} columns have no value and are filled with 0: "
                f"{self.empty_features_[:5].tolist()}", UserWarning, stacklevel=4,
            )  # fmt: skip
        if isinstance(self.clip, str):
            low, high = np.full(entries.shape[1], np.inf), np.full(entries.shape[1], -np.inf)
            np.minimum.at(low, entries.cols, entries.values)
            np.maximum.at(high, entries.cols, entries.values)
            self._bounds = low, high
        else:
            self._bounds = self.clip

    def _filled(self, fit, X, entries):
        """Clip the fit, and put in what is known."""
        out = fit.astype(X.dtype, copy=False)
        out[:, self.empty_features_] = 0
        if self._bounds is not None:
            low, high = self._bounds
            known = np.ones(out.shape[1], bool)
            known[self.empty_features_] = False
            out = np.where(known, np.clip(out, low, high), out).astype(X.dtype, copy=False)
        if entries is not None:
            out[entries.rows, entries.cols] = entries.values
        return out

    def _entries(self, X, *, reset):
        """Return X as validated, and its `Observed` entries, None if it has none."""
        caller = "rnla.impute.LowRankImputer"
        finite = "allow-nan" if self.missing_values is None or np.isnan(self.missing_values) else True
        X = validate_data(
            self, X, reset=reset, accept_sparse=("csr", "csc"), dtype=list(FLOATS), ensure_all_finite=finite
        )
        if scipy.sparse.issparse(X):
            if np.isnan(X.data).any():
                raise ValueError(f"{caller}: Input X contains NaN: stored values of a sparse matrix must be numbers.")
            return (X, observed(X, caller)) if X.nnz else (X, None)
        known = ~np.isnan(X) if finite == "allow-nan" else self.missing_values != X
        if not known.any():
            return X, None
        return X, _of_table(X, known)

    def _key(self, caller):
        check_rng(self.rng, caller)
        return key_from_rng(self.rng, caller)

    def _check_parameters(self, caller):
        if np.ndim(self.k):
            for k in self.k:
                check_count(k, "k", caller)
        elif self.k is not None:
            check_count(self.k, "k", caller)
        check_choice(self.center, "center", (None, "mean", "columns", "rows", "both"), caller)
        check_number(self.tol, "tol", caller)
        check_count(self.max_iter, "max_iter", caller)
        if isinstance(self.clip, str):
            check_choice(self.clip, "clip", ("data",), caller)
        elif self.clip is not None and (len(self.clip) != 2 or not self.clip[0] <= self.clip[1]):
            raise ValueError(f"{caller}: clip must be a pair (low, high), 'data' or None; got {self.clip!r}.")


def _of_table(X, known):
    rows, cols = np.nonzero(known)
    return Observed(rows.astype(np.int32), cols.astype(np.int32), X[known], X.shape)
