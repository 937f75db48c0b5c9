"""Coordinates along principal components and the Gaussian model that they make (extra ``sklearn``)."""

import math

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, check_finite, eps_of, to_host
from rnla._sklearn_input import Transformer, check_fitted, combination, matrix_of, name_of, placed, row_blocks


class PrincipalComponents(Transformer):
    """An estimator that has ``components_``, ``explained_variance_``, ``mean_`` and ``noise_variance_`` when fitted."""

    def transform(self, X):
        """Return the coordinates of the rows of X along the components.

        Parameters
        ----------
        X : matrix of any kind that `rnla.svd` accepts, data frame or nested list, shape (n_samples, n_features)
            Samples. A sparse X is not made dense, a file not read into memory.

        Returns
        -------
        array, shape (n_samples, n_components)
            In memory, in the library and dtype of X.
        """
        check_fitted(self)
        return self._coordinates(matrix_of(self, X, reset=False))

    def inverse_transform(self, X):
        """Return the samples that have the coordinates X.

        Parameters
        ----------
        X : array of any kind, shape (n_samples, n_components)
            Coordinates, as `transform` returns them.

        Returns
        -------
        array, shape (n_samples, n_features)
            Samples; lazy if X is a dask array.
        """
        check_fitted(self)
        weights = self.components_ * self._deviations()[:, None] if self.whiten else self.components_
        return combination(self, X, weights, self.mean_)

    def get_covariance(self):
        """Return the covariance of the model: that of the components, and equal noise in all other directions.

        Unlike scikit-learn's it does not depend on `whiten`, which changes coordinates, not data.

        Returns
        -------
        array, shape (n_features, n_features)
            ``components_.T @ diag(explained_variance_ - noise_variance_) @ components_ + noise_variance_ * eye``.
        """
        check_fitted(self)
        noise = float(self.noise_variance_)
        return self._model_matrix(self._model_variances() - noise, noise)

    def get_precision(self):
        """Return the inverse of `get_covariance`, without inverting it.

        Returns
        -------
        array, shape (n_features, n_features)
            The inverse.

        Raises
        ------
        numpy.linalg.LinAlgError
            If the covariance is singular: no noise, and fewer components than features or one without variance.
        """
        check_fitted(self)
        variances, noise = self._regular_variances("get_precision"), float(self.noise_variance_)
        if self.components_.shape[0] == self.components_.shape[1]:
            return self._model_matrix(1 / variances, 0.0)
        return self._model_matrix(1 / variances - 1 / noise, 1 / noise)

    def _coordinates(self, M):
        mean, components = placed(self.mean_, M), placed(self.components_, M)
        with np.errstate(over="ignore", invalid="ignore"):
            T = M.centered(mean).matmat(adjoint(components))
        check_finite(T, name_of(self), "X")
        return T / placed(self._deviations(), M) if self.whiten else T

    def _log_likelihoods(self, M):
        """Return the log-density of the model at every row, from blocks of rows."""
        variances = placed(self._regular_variances("score_samples"), M)
        mean, components = placed(self.mean_, M), placed(self.components_, M)
        xp, noise, (k, n) = M.xp, float(self.noise_variance_), components.shape
        distances = []  # of Mahalanobis, squared
        for B in row_blocks(M):
            check_finite(B, name_of(self), "X")
            B = B - mean
            C = B @ adjoint(components)
            distance = xp.sum(C * C / variances, axis=1)
            if k < n:
                # What is left is formed: ||b||**2 - ||c||**2 would cancel where the noise is small.
                rest = B - C @ components
                distance = distance + xp.sum(rest * rest, axis=1) / noise
            distances.append(distance)
        log_volume = float(np.log(to_host(variances)).sum()) + ((n - k) * math.log(noise) if k < n else 0.0)
        return -0.5 * (xp.concat(distances) + (n * math.log(2 * math.pi) + log_volume))

    def _deviations(self):
        """Return the standard deviation along each component; where that is only rounding, a bound of it."""
        xp = array_namespace(self.explained_variance_)
        deviations = xp.sqrt(self.explained_variance_)
        floor = eps_of(xp, deviations.dtype) * float(xp.max(deviations)) if deviations.shape[0] else 0.0
        return xp.where(deviations > floor, deviations, xp.full_like(deviations, floor or 1.0))

    def _model_variances(self):
        """Return the variances of the components in the model, which are not below the noise."""
        xp, variances = array_namespace(self.explained_variance_), self.explained_variance_
        noise = xp.full_like(variances, float(self.noise_variance_))
        return xp.where(variances > noise, variances, noise)

    def _regular_variances(self, method):
        variances = self._model_variances()
        k, n = self.components_.shape
        least = float(variances[-1]) if k else math.inf
        if (k < n and not self.noise_variance_ > 0) or not least > 0:
            raise np.linalg.LinAlgError(
                f"{name_of(self)}.{method}: the covariance is singular: {k} components of {n} features, the least with "
                f"variance {least:.3g}, and noise_variance_={self.noise_variance_:.3g}."
            )
        return variances

    def _model_matrix(self, weights, rest):
        V = self.components_
        xp, n = array_namespace(V), V.shape[1]
        return (adjoint(V) * weights) @ V + rest * xp.eye(n, dtype=V.dtype, device=device(V))


def minka_dimension(variances, n_samples):
    """Return the most probable number of principal components of Gaussian data.

    Parameters
    ----------
    variances : ndarray, shape (n,)
        All eigenvalues of the covariance, non-increasing.
    n_samples : int
        Number of samples.

    Returns
    -------
    int
        In ``1..max(n - 1, 1)``.

    References
    ----------
    .. [1] Minka, "Automatic choice of dimensionality for PCA", NIPS 2000.
    """
    from scipy.special import gammaln

    n = variances.size
    tiny = np.finfo(np.float64).tiny
    floor = max(float(variances[0]) * np.finfo(np.float64).eps, tiny)
    halves = (n - np.arange(n)) / 2
    frames = np.cumsum(gammaln(halves) - halves * math.log(math.pi) - math.log(2))  # log of the prior of k directions
    evidence = np.full(n, -np.inf)
    for k in range(1, n):
        if variances[k - 1] <= floor:
            break
        noise = max(float(variances[k:].mean()), floor)
        model = np.concatenate([variances[:k], np.full(n - k, noise)])
        gaps = (variances[:k, None] - variances) * (1 / model - 1 / model[:k, None])
        later = np.arange(n) > np.arange(k)[:, None]
        curvature = np.sum(np.log(np.maximum(gaps[later], tiny)) + math.log(n_samples))
        free = n * k - k * (k + 1) / 2
        evidence[k] = (
            frames[k - 1]
            - n_samples / 2 * (np.log(variances[:k]).sum() + (n - k) * math.log(noise))
            + (free + k) / 2 * math.log(2 * math.pi)
            - curvature / 2
            - k / 2 * math.log(n_samples)
        )
    return max(int(np.argmax(evidence)), 1)
