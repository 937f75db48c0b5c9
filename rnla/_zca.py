"""Whitening that stays close to the data, by a diagonal-plus-low-rank covariance (extra ``sklearn``)."""

import numpy as np

from rnla._backend import adjoint, check_finite, to_host
from rnla._matrix import as_matrix
from rnla._pca import pca
from rnla._rangefinder import check_choice, check_count, check_number
from rnla._sklearn_input import (
    FLOATS,
    Transformer,
    check_array,
    check_fitted,
    key_of,
    matrix_of,
    name_of,
    placed,
    row_blocks,
    taken_as_it_is,
)
from rnla._sqrtm import sqrt_pair_update

ROUNDS, CALM = 100, 1e-6  # of the variances of noise: at most so many, or until they change by less


class LowRankZCA(Transformer):
    """Whitening by the symmetric inverse root of the covariance (ZCA), of data with very many features.

    The covariance is modelled as ``W = D + Z Z^T``: the principal components, and noise on the diagonal. Samples are
    mapped to ``W^(-1/2) (x - mean)``: of all whitenings that which changes samples least. No array of
    ``n_features**2`` numbers is formed.

    Parameters
    ----------
    n_components : int
        Number of principal components, at most; those that the data do not have are left out.
    noise : {"isotropic", "diagonal"}
        ``isotropic``: the mean variance of what the components leave, along every direction beside them (probabilistic
        PCA). ``diagonal``: what they leave of the variance of each feature; W has then the right diagonal. For features
        whose noise differs much.
    floor : float
        Smallest variance of the noise, relative to the mean variance of the features. Directions in which the data
        hardly vary are not amplified beyond it.
    tol : float or None
        Precision of the roots; see `rnla.sqrt_update`.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of the test matrix of the components.

    Attributes
    ----------
    components_ : array, shape (k, n_features)
        Principal components, orthonormal rows.
    explained_variance_ : array, shape (k,)
        Variance along each.
    noise_variance_ : array, shape (n_features,)
        Diagonal of D.
    mean_ : array, shape (n_features,)
        Mean of every feature.
    n_components_, n_samples_, n_features_in_ : int
        Sizes.

    See Also
    --------
    rnla.sqrt_update : The roots.

    Examples
    --------
    >>> from rnla.decomposition import LowRankZCA
    >>> X = np.random.default_rng(0).standard_normal((500, 3)) @ np.array([[3.0, 2, 0], [0, 1, 0], [0, 0, 1]])
    >>> white = LowRankZCA(2, random_state=0).fit_transform(X)
    >>> (np.abs(np.round(np.cov(white.T), 2))).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, n_components=10, *, noise="isotropic", floor=1e-6, tol=None, random_state=None):
        self.n_components = n_components
        self.noise = noise
        self.floor = floor
        self.tol = tol
        self.random_state = random_state

    def __getstate__(self):
        state = super().__getstate__()  # the roots hold modules, which cannot be pickled: they are made again
        return {name: value for name, value in state.items() if name not in ("_pair", "_place")}

    @property
    def _n_features_out(self):
        return self.n_features_in_

    def fit(self, X, y=None):
        """Find mean, components and noise of X.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or list, shape (n_samples, n_features)
            Samples, real.
        y : None
            Ignored.

        Returns
        -------
        LowRankZCA
            The estimator.
        """
        caller = name_of(self)
        check_count(self.n_components, "n_components", caller)
        check_choice(self.noise, "noise", ("isotropic", "diagonal"), caller)
        check_number(self.floor, "floor", caller)
        M = matrix_of(self, X, reset=True, ensure_min_samples=2)
        m, n = M.shape
        found = pca(M, min(self.n_components, m - 1, n), tol=1e-4, rng=np.random.default_rng(key_of(self)))
        xp = M.xp
        self.mean_, self.components_ = found.mean, found.components
        self.explained_variance_ = found.explained_variance
        self.n_samples_, self.n_components_ = m, found.components.shape[0]
        total = xp.zeros((n,), dtype=M.dtype, device=M.device)
        for B in row_blocks(M):
            total = total + xp.sum((B - self.mean_) ** 2, axis=0)
        variances = total / (m - 1)
        least = max(float(xp.mean(variances)) * self.floor, float(xp.finfo(M.dtype).tiny))
        if not float(xp.max(variances)) > 0:
            least = 1.0  # samples that are all equal: any multiple of zero is zero
        noise = xp.full_like(variances, max(float(found.noise_variance), least))
        if self.noise == "diagonal":
            for _ in range(ROUNDS):
                # The variance along a component is in part that of the noise, which depends on it in turn.
                left = variances - xp.sum(self._columns(self.components_, self.explained_variance_, noise) ** 2, axis=1)
                noise, old = xp.where(left > least, left, xp.full_like(left, least)), noise
                if float(xp.max(xp.abs(noise - old))) <= CALM * float(xp.max(noise)):
                    break
        self.noise_variance_ = noise
        self._place = None
        self._pair = self._roots(M)
        self._place = M.xp.__name__, M.dtype, M.device
        return self

    def transform(self, X):
        """Whiten samples.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or list, shape (n_samples, n_features)
            Samples. A file is read block by block.

        Returns
        -------
        array, shape (n_samples, n_features)
            Whitened samples, in the library and dtype of X.
        """
        check_fitted(self)
        M = matrix_of(self, X, reset=False)
        mean, root = placed(self.mean_, M), self._roots(M)[1]
        parts = [adjoint(root @ adjoint(B - mean)) for B in row_blocks(M)]
        Y = parts[0] if len(parts) == 1 else M.xp.concat(parts, axis=0)
        check_finite(Y, name_of(self), "X")
        return Y

    def inverse_transform(self, X):
        """Return the samples that `transform` maps to X.

        Parameters
        ----------
        X : array, shape (n_samples, n_features)
            Whitened samples.

        Returns
        -------
        array, shape (n_samples, n_features)
            Samples.
        """
        check_fitted(self)
        if not taken_as_it_is(X):
            X = check_array(X, dtype=list(FLOATS))
        M = as_matrix(X, name_of(self))
        if M.shape[1] != self.n_features_in_:
            raise ValueError(
                f"{name_of(self)}.inverse_transform: X must have {self.n_features_in_} columns; got shape {M.shape}."
            )
        mean, root = placed(self.mean_, M), self._roots(M)[0]
        parts = [adjoint(root @ adjoint(B)) + mean for B in row_blocks(M)]
        return parts[0] if len(parts) == 1 else M.xp.concat(parts, axis=0)

    def get_covariance(self):
        """Return W as an array of shape (n_features, n_features), of use for small data."""
        check_fitted(self)
        Z = to_host(self._columns(self.components_, self.explained_variance_, self.noise_variance_))
        return np.diag(to_host(self.noise_variance_)) + Z @ Z.T

    def _roots(self, M):
        """Return root and inverse root of W in the library and dtype, and on the device, of a matrix."""
        if getattr(self, "_place", None) == (M.xp.__name__, M.dtype, M.device):
            return self._pair
        d = placed(self.noise_variance_, M)
        Z = self._columns(placed(self.components_, M), placed(self.explained_variance_, M), d)
        # With one variance for all features the correction is exact and has the rank of the components.
        base = d if self.noise == "diagonal" else float(d[0])
        return sqrt_pair_update(base, Z, tol=self.tol)

    def _columns(self, components, variances, noise):
        """Return Z."""
        weights = variances - components**2 @ noise
        weights = (weights + abs(weights)) / 2
        return (components * (weights**0.5)[:, None]).T
