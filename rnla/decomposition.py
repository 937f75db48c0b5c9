"""scikit-learn's estimators of low rank, on every kind of matrix that rnla reads (extra ``sklearn``).

Parameters and fitted attributes are those of the classes of the same name in ``sklearn.decomposition``. `PCA` and
`TruncatedSVD` have one attribute more, ``info_``: how they were computed and how far they converged. `RobustPCA` and
`LowRankZCA` have no namesake there.
"""

import math
import numbers
from dataclasses import replace

import numpy as np
from array_api_compat import array_namespace

from rnla._backend import adjoint, check_finite, eps_of, to_host
from rnla._incremental_pca import IncrementalPCA
from rnla._pca import left_out, pca
from rnla._principal_components import PrincipalComponents, minka_dimension
from rnla._rangefinder import check_choice, check_count, check_number
from rnla._robust_pca_estimator import RobustPCA
from rnla._sklearn_input import Transformer, check_fitted, combination, key_of, matrix_of, name_of, placed
from rnla._svd import QR_ASPECT, flipped, svd_as
from rnla._zca import LowRankZCA

__all__ = ["PCA", "IncrementalPCA", "LowRankZCA", "RobustPCA", "TruncatedSVD"]

EXACT_SIDE = 500  # up to this longer side PCA computes exactly, as scikit-learn's does ...
EXACT_ENTRIES = 2**20  # ... and up to this many entries, if it is asked for more than the residual of an iteration


class PCA(PrincipalComponents):
    """Principal component analysis, with the interface of ``sklearn.decomposition.PCA``.

    `rnla.pca` does the work: dense data are centred block by block, so that a large mean costs no digits; sparse
    matrices are centred without being made dense; memory maps, dask arrays, HDF5 and Zarr datasets are read in blocks;
    a ``LinearOperator`` is known by its products only. Arrays of other libraries keep their library and device.

    Parameters
    ----------
    n_components : int, float, "mle" or None
        Number of components; a number in (0, 1) asks for as many as explain more than that share of the variance;
        ``"mle"`` for Minka's estimate; None for ``min(n_samples, n_features)`` (one less with ``"arpack"``).
    copy : bool
        Accepted for compatibility: X is never overwritten.
    whiten : bool
        Divide coordinates by their standard deviations.
    svd_solver : {"auto", "full", "covariance_eigh", "arpack", "randomized"}
        ``full`` is LAPACK on all of X. ``covariance_eigh`` takes the eigenvectors of the sum of the squares of centred
        blocks; where rows are not at hand, as in sparse matrices, it is ``arpack``. ``arpack`` iterates until singular
        values are exact to rounding, or is ``full`` for small X. ``randomized`` iterates until residuals are below
        `tol`. ``auto`` is ``full`` for small X, and chooses as `rnla.pca` does otherwise.
    tol : float
        Bound on the residual of each component relative to its singular value. 0 stands for the default: the square
        root of the rounding unit for ``arpack``, 0.01 for ``auto`` and ``randomized``, whose singular values have then
        an error of the order of its square.
    iterated_power, n_oversamples, power_iteration_normalizer
        Accepted for compatibility: `tol` decides when the iteration ends.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of the test matrix.

    Attributes
    ----------
    components_ : array, shape (k, n_features)
        Orthonormal rows, leading first; the entry of largest modulus in each is positive.
    explained_variance_, explained_variance_ratio_, singular_values_ : array, shape (k,)
        Variance along each component, its share of the total, and singular values of the centred matrix.
    mean_ : array, shape (n_features,)
        Mean of every column.
    n_components_, n_samples_, n_features_in_ : int
        Sizes.
    noise_variance_ : float
        Mean variance along the directions that were left out.
    info_ : SVDInfo
        How it was computed.

    See Also
    --------
    rnla.pca : The function.

    Examples
    --------
    >>> from rnla.decomposition import PCA
    >>> X = np.array([[-1, -1], [-2, -1], [-3, -2], [1, 1], [2, 1], [3, 2]])
    >>> model = PCA(n_components=1).fit(X)
    >>> np.round(model.explained_variance_ratio_, 4).tolist()
    [0.9924]
    >>> model.transform(X).shape
    (6, 1)
    """

    def __init__(self, n_components=None, *, copy=True, whiten=False, svd_solver="auto", tol=0.0, iterated_power="auto",
                 n_oversamples=10, power_iteration_normalizer="auto", random_state=None):  # fmt: skip
        self.n_components = n_components
        self.copy = copy
        self.whiten = whiten
        self.svd_solver = svd_solver
        self.tol = tol
        self.iterated_power = iterated_power
        self.n_oversamples = n_oversamples
        self.power_iteration_normalizer = power_iteration_normalizer
        self.random_state = random_state

    def fit(self, X, y=None):
        """Find the components of X.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Samples, real.
        y : None
            Ignored.

        Returns
        -------
        PCA
            The estimator.
        """
        self._fit(X)
        return self

    def fit_transform(self, X, y=None):
        """Find the components of X and return the coordinates of its rows; see `fit` and `transform`."""
        return self._coordinates(self._fit(X))

    def score_samples(self, X):
        """Return the log-likelihood of every sample under the Gaussian model of `get_covariance`.

        Works on blocks of rows and needs no matrix of n_features x n_features.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Samples.

        Returns
        -------
        array, shape (n_samples,)
            Log-likelihoods.

        References
        ----------
        .. [1] Tipping, Bishop, J. R. Stat. Soc. B 61 (1999).
        """
        check_fitted(self)
        return self._log_likelihoods(matrix_of(self, X, reset=False))

    def score(self, X, y=None):
        """Return the mean of `score_samples`.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Samples.
        y : None
            Ignored.

        Returns
        -------
        float
            Mean log-likelihood.
        """
        return float(np.mean(to_host(self.score_samples(X))))

    def _fit(self, X):
        M = matrix_of(self, X, reset=True, ensure_min_samples=2)
        m, n = M.shape
        self._check_parameters(m, n)
        options = {"method": self._method(M), "rng": np.random.default_rng(key_of(self))}
        exact = self.svd_solver in ("arpack", "covariance_eigh") and options["method"] == "auto"
        tol = self.tol or (math.sqrt(eps_of(M.xp, M.dtype)) if exact else None)
        if tol:
            options["tol"] = tol
        wanted = self.n_components
        if wanted is None:
            wanted = max(min(m, n) - (self.svd_solver == "arpack"), 1)
        if wanted == "mle":
            result = pca(M, min(m, n), **options)
            k = minka_dimension(to_host(result.explained_variance), m)
        elif isinstance(wanted, numbers.Integral):
            result, k = pca(M, max(int(wanted), 1), **options), int(wanted)
        else:
            result = _by_share(M, float(wanted), options)
            shares = np.cumsum(to_host(result.explained_variance_ratio))
            k = min(int(np.searchsorted(shares, wanted, side="right")) + 1, shares.size)
        self._keep(result, k)
        return M

    def _keep(self, result, k):
        """Take over the first `k` components; the variance of the others is noise."""
        found, side = result.components.shape[0], min(result.n_samples, result.components.shape[1])
        xp, variances = array_namespace(result.components), to_host(result.explained_variance)
        left = variances[k:].sum() + result.noise_variance * (side - found)
        names = ("components", "explained_variance", "explained_variance_ratio", "singular_values")
        for name in names:  # of a part a copy: a view would keep the whole in memory
            whole = getattr(result, name)
            setattr(self, f"{name}_", whole if k == found else xp.asarray(whole[:k, ...], copy=True))
        self.mean_ = result.mean
        self.n_samples_ = result.n_samples
        self.n_components_ = k
        self.noise_variance_ = float(left) / (side - k) if k < side else 0.0
        total = variances.sum() + result.noise_variance * (side - found)
        error = math.sqrt(left / total) if total > 0 else 0.0
        self.info_ = result.info if k == found else replace(result.info, rank=k, error_estimate=error)

    def _check_parameters(self, m, n):
        caller, wanted = name_of(self), self.n_components
        solvers = ("auto", "full", "covariance_eigh", "arpack", "randomized")
        check_choice(self.svd_solver, "svd_solver", solvers, caller)
        check_number(self.tol, "tol", caller)
        if isinstance(wanted, str):
            check_choice(wanted, "n_components", ("mle",), caller)
            if m < n:
                raise ValueError(
                    f"{caller}: n_components='mle' needs n_samples >= n_features; got n_samples={m}, n_features={n}."
                )
        elif isinstance(wanted, numbers.Real) and not isinstance(wanted, numbers.Integral):
            if not 0 < wanted < 1:
                raise ValueError(f"{caller}: n_components must be an integer or in (0, 1); got {wanted}.")
        elif wanted is not None:
            check_count(wanted, "n_components", caller, least=0)
            if wanted > min(m, n):
                raise ValueError(
                    f"{caller}: n_components must be in 0..{min(m, n)} for n_samples={m}, n_features={n}; got {wanted}."
                )

    def _method(self, M):
        solver, side, entries = self.svd_solver, max(M.shape), math.prod(M.shape)
        if solver == "covariance_eigh" and M.kind in ("dense", "file", "dask") and M.row_blocks() is not None:
            return "covariance"
        if (
            solver == "full"
            or (solver == "auto" and (side <= EXACT_SIDE or self.n_components == "mle"))
            or (solver in ("arpack", "covariance_eigh") and entries <= EXACT_ENTRIES)
        ):
            return _exact_method(M)
        return "auto"


def _by_share(M, share, options):
    """Return at least as many components as explain more than `share` of the variance."""
    if options["method"] in ("dense", "qr"):
        return pca(M, min(M.shape), **options)
    # The precision is a bound; a hair less leaves room for the rule that more than the share must be explained.
    result = pca(M, rtol=math.sqrt(1 - share) * (1 - 1e-6), **options)
    if result.info.method == "covariance":
        return result
    # A basis found to a precision is a little larger than it must be; its singular values are those of the basis.
    return pca(M, result.components.shape[0], **options)


class TruncatedSVD(Transformer):
    """Truncated singular value decomposition, with the interface of ``sklearn.decomposition.TruncatedSVD``.

    Not centred; known as latent semantic analysis where X is a matrix of documents and terms. `rnla.svd` does the work,
    on every kind of matrix that it accepts.

    Parameters
    ----------
    n_components : int
        Number of components, at most ``min(n_samples, n_features)``.
    algorithm : {"randomized", "arpack"}
        ``randomized`` iterates until residuals are below `tol`, ``arpack`` until singular values are exact to rounding.
    n_iter : int
        Accepted for compatibility: `tol` decides when the iteration ends.
    n_oversamples : int
        Columns of a block beyond `n_components`.
    power_iteration_normalizer : {"auto", "QR", "LU", "none"}
        Accepted for compatibility.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of the test matrix.
    tol : float
        Bound on the residual of each component relative to its singular value. 0 stands for the default: 0.01 for
        ``randomized``, the square root of the rounding unit for ``arpack``.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Orthonormal rows, leading first; the entry of largest modulus in each is positive.
    explained_variance_, explained_variance_ratio_ : array, shape (n_components,)
        Variance of the coordinates, and its share of the variance of X; of an operator, whose entries are out of reach,
        the latter is an estimate.
    singular_values_ : array, shape (n_components,)
        Of X.
    n_features_in_ : int
        Number of columns.
    info_ : SVDInfo
        How it was computed.

    See Also
    --------
    rnla.svd : The function.

    Examples
    --------
    >>> from rnla.decomposition import TruncatedSVD
    >>> model = TruncatedSVD(n_components=2).fit(np.diag([3.0, 2.0, 1.0]))
    >>> np.round(model.singular_values_, 6).tolist()
    [3.0, 2.0]
    """

    def __init__(self, n_components=2, *, algorithm="randomized", n_iter=5, n_oversamples=10,
                 power_iteration_normalizer="auto", random_state=None, tol=0.0):  # fmt: skip
        self.n_components = n_components
        self.algorithm = algorithm
        self.n_iter = n_iter
        self.n_oversamples = n_oversamples
        self.power_iteration_normalizer = power_iteration_normalizer
        self.random_state = random_state
        self.tol = tol

    def fit(self, X, y=None):
        """Find the components of X.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Real.
        y : None
            Ignored.

        Returns
        -------
        TruncatedSVD
            The estimator.
        """
        self.fit_transform(X)
        return self

    def fit_transform(self, X, y=None):
        """Find the components of X and return the coordinates of its rows; see `fit` and `transform`."""
        M = matrix_of(self, X, reset=True, ensure_min_features=2)
        caller, (m, n), k = name_of(self), M.shape, self.n_components
        check_choice(self.algorithm, "algorithm", ("randomized", "arpack"), caller)
        check_number(self.tol, "tol", caller)
        check_count(k, "n_components", caller)
        if k > min(m, n):
            raise ValueError(
                f"{caller}: n_components must be in 1..{min(m, n)} for n_samples={m}, n_features={n}; got {k}."
            )
        key = key_of(self)
        options = {"n_oversamples": self.n_oversamples, "flip_sign": False, "rng": np.random.default_rng(key)}
        tol = self.tol or (math.sqrt(eps_of(M.xp, M.dtype)) if self.algorithm == "arpack" else None)
        if tol:
            options["tol"] = tol
        if max(m, n) <= EXACT_SIDE:
            options["method"] = _exact_method(M)
        U, S, Vh = result = svd_as(caller, M, k, **options)
        V, _ = flipped(M.xp.asarray(adjoint(Vh), copy=True), U)
        T = M.matmat(V)  # not U * S, which differs from what transform will return by the residuals
        self.components_, self.singular_values_ = adjoint(V), S
        self.explained_variance_ = M.xp.var(T, axis=0)
        captured = float(to_host(self.explained_variance_).sum())
        variance = _total_variance(M, V, captured, key)
        self.explained_variance_ratio_ = self.explained_variance_ / (variance if variance > 0 else 1.0)
        self.info_ = result.info
        return T

    def transform(self, X):
        """Return the coordinates of the rows of X along the components.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Rows. A sparse X is not made dense, a file not read into memory.

        Returns
        -------
        array, shape (n_samples, n_components)
            In memory, in the library and dtype of X.
        """
        check_fitted(self)
        M = matrix_of(self, X, reset=False)
        with np.errstate(over="ignore", invalid="ignore"):
            T = M.matmat(adjoint(placed(self.components_, M)))
        check_finite(T, name_of(self), "X")
        return T

    def inverse_transform(self, X):
        """Return the rows that have the coordinates X.

        Parameters
        ----------
        X : array of any kind, shape (n_samples, n_components)
            Coordinates, as `transform` returns them.

        Returns
        -------
        array, shape (n_samples, n_features)
            Rows; lazy if X is a dask array.
        """
        check_fitted(self)
        return combination(self, X, self.components_)


def _total_variance(M, V, captured, key):
    """Return the sum of the variances of all columns of A, of which those along V have `captured`."""
    view = M.centered(M.col_mean())
    total = view.fro_norm_sq()
    if total is not None:
        return total / M.shape[0]
    return captured + left_out(view, V, key) / M.shape[0]


def _exact_method(M):
    return "qr" if max(M.shape) >= QR_ASPECT * min(M.shape) else "dense"
