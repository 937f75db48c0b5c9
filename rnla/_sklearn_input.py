"""How scikit-learn estimators take every kind of matrix that rnla reads (extra ``sklearn``)."""

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_dask_array, is_numpy_array

from rnla._backend import adjoint, check_rng, from_host, key_from_rng, to_host
from rnla._matrix import as_matrix
from rnla._matrix_views import spans

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("rnla.decomposition: estimators need scikit-learn: pip install 'rnla[sklearn]'") from error

BLOCK_ENTRIES = 2**22  # entries of dense rows in memory at a time: 32 MB
FLOATS = (np.float64, np.float32)


class Transformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An estimator with rows ``components_``, and what scikit-learn wants to know of it."""

    @property
    def _n_features_out(self):
        return self.components_.shape[0]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def name_of(estimator):
    """Return the public name of an estimator, for errors."""
    return f"rnla.decomposition.{type(estimator).__name__}"


def key_of(estimator):
    """Return the key of all random numbers of one fit."""
    check_rng(estimator.random_state, name_of(estimator), "random_state")
    return key_from_rng(estimator.random_state, name_of(estimator))


def check_fitted(estimator):
    """Raise the NotFittedError of scikit-learn unless `components_` are known."""
    check_is_fitted(estimator, "components_")


def matrix_of(estimator, X, *, reset, **least):
    """Return X as a `Matrix`; note the number and the names of its columns (`reset`), or compare them with those noted.

    What scikit-learn takes is validated by scikit-learn, with its messages; the rest by rnla, product by product.

    Parameters
    ----------
    estimator : BaseEstimator
        Whose input it is.
    X : matrix of any kind that `rnla.svd` accepts, data frame or nested list
        Samples.
    reset : bool
        X is what the estimator is fitted to.
    **least
        ``ensure_min_samples`` and ``ensure_min_features``.
    """
    caller = name_of(estimator)
    if not taken_as_it_is(X):
        X = validate_data(estimator, X, reset=reset, accept_sparse=("csr", "csc"), dtype=list(FLOATS), **least)
        return as_matrix(X, caller)
    M = as_matrix(X, caller)
    if not M.xp.isdtype(M.dtype, "real floating"):
        raise ValueError(f"{caller}: Complex data not supported, unlike by rnla.pca and rnla.svd; got {M.dtype}.")
    for name, side in zip(("samples", "features"), M.shape, strict=True):
        count = least.get(f"ensure_min_{name}", 1)
        if side < count:
            raise ValueError(f"{caller}: X must have at least {count} {name}; got n_{name}={side}.")
    validate_data(estimator, M, reset=reset, skip_check_array=True)
    return M


def taken_as_it_is(X):
    """Say whether X is of a kind that scikit-learn's validation would refuse, read into memory or move to the host."""
    return (
        isinstance(X, np.memmap)
        or (is_array_api_obj(X) and not is_numpy_array(X))
        or all(hasattr(X, name) for name in ("chunks", "shape", "dtype"))
        or hasattr(X, "matmat")
        or hasattr(X, "matvec")
        or type(X).__module__.startswith("cupyx.")
        or (isinstance(X, tuple) and len(X) == 4 and callable(X[0]))
    )


def placed(part, M):
    """Return a fitted array in the library and dtype and on the device of a matrix."""
    if array_namespace(part) is M.xp and device(part) == M.device:
        return M.xp.astype(part, M.dtype, copy=False)
    return from_host(to_host(part), M.xp, M.dtype, M.device)


def combination(estimator, T, components, mean=None):
    """Return ``T @ components + mean`` for coordinates of any kind, lazily for a dask array."""
    caller, k = name_of(estimator), components.shape[0]
    if not taken_as_it_is(T):
        T = check_array(T, input_name="X", accept_sparse=("csr", "csc"), dtype=list(FLOATS))
    shape = tuple(getattr(T, "shape", ()))
    if len(shape) == 2 and shape[1] != k:
        raise ValueError(f"{caller}.inverse_transform: X must have {k} columns; got shape {shape}.")
    if is_dask_array(T):
        X = T.rechunk({1: -1}) @ to_host(components)
        return X if mean is None else X + to_host(mean)
    M = as_matrix(T, caller)
    X = M.matmat(placed(components, M))
    return X if mean is None else X + placed(mean, M)


def row_blocks(M):
    """Return an iterator of dense blocks of rows of any kind of matrix."""
    blocks = M.row_blocks()
    if blocks is not None:
        return (B for _, B in blocks)
    return (rows_of(M, rows) for rows in spans(M.shape[0], max(BLOCK_ENTRIES // M.shape[1], 1)))


@np.errstate(over="ignore", invalid="ignore")  # in products with what is not finite, which is found afterwards
def rows_of(M, rows):
    """Return a slice of rows as a dense array, read without the others where the storage allows it."""
    if M.array is not None:
        return M.array[rows, :]
    if M.kind == "sparse":
        return M.storage.csr[rows].toarray()
    if M.kind == "dask":
        return M.storage.dask_array[rows, :].compute()
    if M.kind == "file":
        return M.storage.read(rows, slice(0, M.shape[1]))
    index = M.xp.arange(M.shape[0], device=M.device)[:, None]
    wanted = M.xp.arange(rows.start, rows.stop, device=M.device)[None, :]
    return adjoint(M.rmatmat(M.xp.astype(index == wanted, M.dtype)))
