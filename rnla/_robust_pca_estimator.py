"""Principal components of samples some of whose entries are arbitrary, or missing (extra ``sklearn``)."""

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_dask_array

from rnla._backend import adjoint, check_finite, to_host
from rnla._matrix import as_matrix
from rnla._rangefinder import check_choice, check_count, check_number
from rnla._robust_code import check_decay, code_rows
from rnla._rpca import robust_pca
from rnla._rpca_result import RobustPCAResult
from rnla._sklearn_input import (
    FLOATS,
    Transformer,
    check_fitted,
    combination,
    key_of,
    name_of,
    placed,
    row_blocks,
    taken_as_it_is,
    validate_data,
)
from rnla._svd import flipped

CONVEX = ("ialm", "admm")  # find the rank themselves
MAX_CODE_ITER = 80
HALF = 0.5  # a sample of which less than this part of the usual share of entries is explained is not explained itself


class RobustPCA(Transformer):
    """Principal component analysis of samples with outliers: single entries, of any size, that are wrong or missing.

    `rnla.robust_pca` splits X into a matrix of low rank and the outliers; mean and components are those of the matrix
    of low rank. New samples may have outliers, too: `transform` leaves them out.

    Parameters
    ----------
    n_components : int
        Number of components, or a bound on it: data that need fewer get surplus ones of almost no variance.
    method : {"riecur", "ircur", "accaltproj", "altproj", "scaledgd", "gd", "ialm", "admm"}
        See `rnla.robust_pca`. ``ialm`` and ``admm`` find the rank; `n_components` is then a bound.
    center : bool
        Find the mean of the samples without outliers, and components of what remains. Not the mean of X, which outliers
        would move.
    missing : {"error", "nan"}
        Whether NaN is an error or an entry that is not observed, in `fit` and afterwards.
    decay : float
        Factor of the bound on residuals from one iteration to the next; 0.9 tolerates more outliers than 0.7.
    tol, max_iter
        When to stop; see `rnla.robust_pca`.
    noise_floor : float or "auto"
        Residuals up to this modulus are never outliers, in the units of X; ``"auto"`` is 1 where all entries are whole
        numbers, and 0 otherwise.
    polish : int
        Final fits to all of X; with noise, a smaller error.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of the samples of rows and columns.

    Attributes
    ----------
    components_ : array, shape (k, n_features)
        Orthonormal rows, leading first; the entry of largest modulus in each is positive.
    mean_ : array, shape (n_features,)
        Mean of the samples without outliers; zero if not `center`.
    explained_variance_, explained_variance_ratio_, singular_values_ : array, shape (k,)
        Variance along each component, its share of the variance of the part of low rank, and singular values of that.
    n_components_, n_samples_, n_features_in_, n_iter_ : int
        Sizes, and the number of iterations.
    converged_ : bool
        Whether the decomposition may be believed.
    outlier_fraction_ : float
        Estimated share of the entries of X that are outliers.
    unresolved_samples_ : ndarray of int
        Rows of X that are not explained, such as those of other origin than the rest; they do not count in the mean.
    noise_floor_ : float
        Residuals of new samples up to this modulus are no outliers: the bound that most samples of X ended with.
    result_ : RobustPCAResult
        The decomposition of X, of one rank more than there are components if `center`.

    See Also
    --------
    rnla.robust_pca : The function.

    Examples
    --------
    >>> from rnla.decomposition import RobustPCA
    >>> random = np.random.default_rng(0)
    >>> T = random.standard_normal((200, 2))
    >>> clean = T @ random.standard_normal((2, 50)) + 7
    >>> wrong = random.random(clean.shape) < 0.1
    >>> X = np.where(wrong, 100.0, clean)
    >>> model = RobustPCA(n_components=2, random_state=0).fit(X)
    >>> bool(np.abs(model.mean_ - clean.mean(axis=0)).max() < 1e-4)
    True
    >>> repaired = model.inverse_transform(model.transform(X))
    >>> bool(np.abs(repaired - clean).max() < 1e-3)
    True
    """

    def __init__(self, n_components=2, *, method="riecur", center=True, missing="error", decay=0.7, tol=1e-6,
                 max_iter=200, noise_floor="auto", polish=0, random_state=None):  # fmt: skip
        self.n_components = n_components
        self.method = method
        self.center = center
        self.missing = missing
        self.decay = decay
        self.tol = tol
        self.max_iter = max_iter
        self.noise_floor = noise_floor
        self.polish = polish
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.allow_nan = self.missing == "nan"
        return tags

    def fit(self, X, y=None, mask=None):
        """Find the mean and the components of X.

        Parameters
        ----------
        X : array, memory map, dask array, h5py or Zarr dataset, data frame or list, shape (n_samples, n_features)
            Samples, real.
        y : None
            Ignored.
        mask : array of bool, optional, shape (n_samples, n_features)
            True where X is observed.

        Returns
        -------
        RobustPCA
            The estimator.

        Warns
        -----
        ConvergenceWarning
            If the decomposition may not be believed.
        """
        M = self._matrix(X, reset=True, ensure_min_samples=2, ensure_min_features=2)
        m, n = M.shape
        self._check_parameters(m, n)
        if mask is None:
            mask = self._observed(X, M)
        rank = min(self.n_components + bool(self.center), m, n)
        self.result_ = robust_pca(
            M, None if self.method in CONVEX else rank, method=self.method, mask=mask, tol=self.tol,
            max_iter=self.max_iter, decay=self.decay, noise_floor=self.noise_floor, polish=self.polish,
            rng=np.random.default_rng(key_of(self)),
        )  # fmt: skip
        self._keep(self.result_)
        return self

    def fit_transform(self, X, y=None, mask=None):
        """Find the components of X and return the coordinates of its rows; see `fit` and `transform`."""
        return self.fit(X, mask=mask).transform(X)

    def transform(self, X, *, robust=True):
        """Return the coordinates of the rows of X along the components, outliers left out.

        Parameters
        ----------
        X : array, memory map, dask array, h5py or Zarr dataset, data frame or list, shape (n_samples, n_features)
            Samples. A file is not read into memory.
        robust : bool
            False: project the rows as they are.

        Returns
        -------
        array, shape (n_samples, n_components)
            In memory, in the library and dtype of X.
        """
        check_fitted(self)
        M = self._matrix(X, reset=False)
        if robust:
            return self._coded(M)[0]
        with np.errstate(over="ignore", invalid="ignore"):
            T = M.centered(placed(self.mean_, M)).matmat(adjoint(placed(self.components_, M)))
        check_finite(T, name_of(self), "X")  # a projection of rows with missing entries is none
        return T

    def inverse_transform(self, X):
        """Return the samples that have the coordinates X.

        Parameters
        ----------
        X : array of any kind, shape (n_samples, n_components)
            Coordinates, as `transform` returns them.

        Returns
        -------
        array, shape (n_samples, n_features)
            Samples without outliers; lazy if X is a dask array.
        """
        check_fitted(self)
        return combination(self, X, self.components_, self.mean_)

    def score_samples(self, X):
        """Return the share of the observed entries of every sample that mean and components explain.

        An entry is explained if its residual is at most ``noise_floor_``.

        Parameters
        ----------
        X : array, memory map, dask array, h5py or Zarr dataset, data frame or list, shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray, shape (n_samples,)
            Shares in [0, 1]; low ones are samples that the components do not explain.
        """
        check_fitted(self)
        return self._coded(self._matrix(X, reset=False))[1]

    def decompose(self, X):
        """Split samples, which need not be those of `fit`, into a matrix of low rank and outliers.

        Parameters
        ----------
        X : array, memory map, dask array, h5py or Zarr dataset, data frame or list, shape (n_samples, n_features)
            Samples.

        Returns
        -------
        L : RobustPCAResult
            Mean and components with the coordinates of the samples; `L.unresolved_rows` are not explained.
        S : scipy.sparse.csr_array or cupyx.scipy.sparse.csr_matrix, shape (n_samples, n_features)
            The outliers.
        """
        check_fitted(self)
        M = self._matrix(X, reset=False)
        T, shares, resolved = self._coded(M)
        xp, bad, kept = M.xp, np.flatnonzero(~resolved), float(np.mean(shares))
        left = xp.concat([T, xp.ones((T.shape[0], 1), dtype=T.dtype, device=M.device)], axis=1)
        right = xp.concat([placed(self.components_, M), placed(self.mean_, M)[None, :]], axis=0)
        U, s, V = _svd_of_product(left, adjoint(right))
        L = RobustPCAResult(
            U, s, adjoint(V), not len(bad), 0, (), f"{len(bad)} of {M.shape[0]} rows are not explained",
            "max_iter" if len(bad) else "converged",
            (np.full(M.shape[0], self.noise_floor_), np.zeros(M.shape[1])), kept, kept, bad, np.arange(0), [],
        )  # fmt: skip
        return L, L.sparse(M, mask=self._observed(X, M))

    def _keep(self, result):
        """Take mean and components from the factors, without the rows that are not explained."""
        xp, m = array_namespace(result.U), result.shape[0]
        self.unresolved_samples_ = np.asarray(result.unresolved_rows)
        good = np.setdiff1d(np.arange(m), self.unresolved_samples_)
        if len(good) < 2:
            good = np.arange(m)
        left = result.U * xp.astype(result.s, result.U.dtype)
        if len(good) < m:
            left = xp.take(left, xp.asarray(good, device=left.device), axis=0)
        weights = xp.mean(left, axis=0) if self.center else xp.zeros_like(left[0, :])
        _, S, V = _svd_of_product(left - weights, adjoint(result.Vh))
        k = min(self.n_components, S.shape[0])
        V, _ = flipped(xp.asarray(V[:, :k], copy=True), V[:, :k])
        variances = S**2 / (len(good) - 1)
        total = float(to_host(variances).sum())
        self.components_, self.singular_values_ = adjoint(V), xp.asarray(S[:k], copy=True)
        self.mean_ = weights @ result.Vh
        self.explained_variance_ = xp.asarray(variances[:k], copy=True)
        self.explained_variance_ratio_ = self.explained_variance_ / (total if total > 0 else 1.0)
        self.n_components_, self.n_samples_ = k, m
        self.n_iter_, self.converged_ = result.n_iter, result.converged
        self.outlier_fraction_ = 1 - result.kept_fresh
        # Components are as exact as X let them be: what fitted there must not count as an outlier of a new sample.
        self.noise_floor_ = max(float(np.median(to_host(z))) for z in result.threshold)

    def _coded(self, M):
        """Return coordinates of all rows, the share of their entries that is explained, and who is explained at all."""
        xp, V = M.xp, adjoint(placed(self.components_, M))
        mean, parts, shares, resolved = placed(self.mean_, M), [], [], []
        for B in row_blocks(M):
            B, seen = B - mean, None
            if self.missing == "nan":
                seen = ~xp.isnan(B)
                B = xp.where(seen, B, xp.zeros_like(B))
            code = code_rows(B, V, seen, self.decay, self.noise_floor_, MAX_CODE_ITER, name_of(self))
            within = xp.abs(B - code.C @ adjoint(V)) <= self.noise_floor_
            if seen is None:
                seen = xp.ones_like(within)
            counts = (to_host(xp.sum(xp.astype(x, xp.float64), axis=1)) for x in (within & seen, seen))
            share = next(counts) / np.maximum(next(counts), 1)
            parts.append(code.C)
            shares.append(share)
            resolved.append(code.converged & (share >= HALF * (1 - self.outlier_fraction_)))
        T = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        return T, np.concatenate(shares), np.concatenate(resolved)

    def _matrix(self, X, *, reset, **least):
        """Return X as a `Matrix` with rows, validated by scikit-learn where scikit-learn takes it."""
        caller, finite = name_of(self), "allow-nan" if self.missing == "nan" else True
        if not taken_as_it_is(X):
            X = validate_data(self, X, reset=reset, dtype=list(FLOATS), ensure_all_finite=finite, **least)
            return as_matrix(X, caller)
        M = as_matrix(X, caller)
        if M.kind not in ("dense", "file", "dask"):
            raise TypeError(f"{caller}: X must have entries that can be read; got {type(X).__name__}.")
        if not M.xp.isdtype(M.dtype, "real floating"):
            raise ValueError(f"{caller}: Complex data not supported, unlike by rnla.robust_pca; got {M.dtype}.")
        for name, side in zip(("samples", "features"), M.shape, strict=True):
            count = least.get(f"ensure_min_{name}", 1)
            if side < count:
                raise ValueError(f"{caller}: X must have at least {count} {name}; got n_{name}={side}.")
        validate_data(self, M, reset=reset, skip_check_array=True)
        return M

    def _observed(self, X, M):
        """Return where X is observed, or None if everywhere."""
        if self.missing != "nan":
            return None
        if M.array is not None:
            return ~M.xp.isnan(M.array)
        if is_dask_array(X):
            return ~array_namespace(X).isnan(X)
        if is_array_api_obj(X):  # a memory map
            return ~np.isnan(X)
        raise TypeError(f"{name_of(self)}: missing='nan' needs an array; of a {type(X).__name__} give mask.")

    def _check_parameters(self, m, n):
        caller = name_of(self)
        check_choice(self.missing, "missing", ("error", "nan"), caller)
        check_choice(self.center, "center", (True, False), caller)
        check_number(self.tol, "tol", caller)
        check_decay(self.decay, caller)
        if not isinstance(self.noise_floor, str) or self.noise_floor != "auto":
            check_number(self.noise_floor, "noise_floor", caller)
        check_count(self.n_components, "n_components", caller)
        if self.n_components > min(m, n):
            raise ValueError(
                f"{caller}: n_components must be in 1..{min(m, n)} for n_samples={m}, n_features={n}; got "
                f"{self.n_components}."
            )


def _svd_of_product(left, right):
    """Return U, s, V of ``left @ right^H`` for thin factors."""
    xp = array_namespace(left)
    Q_left, R_left = xp.linalg.qr(left)
    Q_right, R_right = xp.linalg.qr(right)
    U, s, Vh = xp.linalg.svd(R_left @ adjoint(R_right), full_matrices=False)
    return Q_left @ U, s, Q_right @ adjoint(Vh)
