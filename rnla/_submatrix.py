"""Some columns or rows of a matrix of any kind: taken from storage where it allows, by products otherwise."""

import numpy as np
from array_api_compat import array_namespace

from rnla._backend import adjoint
from rnla._matrix_memory import Dense, Sparse
from rnla._matrix_views import Adjoint, Scaled


def take_columns(M, index):
    """Return ``A[:, index]`` for an index vector of the host.

    Entries in memory are copied; of a sparse matrix the result is sparse. Any other kind is multiplied by columns of
    the identity, in one pass.

    Parameters
    ----------
    M : Matrix
        The matrix.
    index : ndarray of int, shape (k,)
        Column numbers.

    Returns
    -------
    array or sparse matrix, shape (m, k)
        Library, device and dtype of `M`.
    """
    part = _stored(M.storage, index, 1)
    return M.matmat(_unit_columns(M, index, M.shape[1])) if part is None else part


def take_rows(M, index):
    """Return ``A[index, :]`` for an index vector of the host; see `take_columns`."""
    part = _stored(M.storage, index, 0)
    return adjoint(M.rmatmat(_unit_columns(M, index, M.shape[0]))) if part is None else part


def taken(X, index, axis):
    """Return ``xp.take`` of a matrix; NumPy's own copies all of a matrix first that is not contiguous by rows."""
    if isinstance(X, np.ndarray) and not X.flags.c_contiguous:
        if X.flags.f_contiguous:
            return np.take(X.T, index, axis=1 - axis).T
        return X[index, :] if axis == 0 else X[:, index]
    return array_namespace(X).take(X, index, axis=axis)


def dense(X):
    """Return a part that may be sparse as an array."""
    return X.toarray() if is_sparse(X) else X


def is_sparse(X):
    """Say whether a part taken from a matrix is a sparse matrix, of SciPy or CuPy."""
    return hasattr(X, "toarray") and hasattr(X, "nnz")


def sparse_adjoint(X):
    """Return the conjugate transpose of a part that may be sparse."""
    return X.conj().T if is_sparse(X) else adjoint(X)


def index_array(M, index):
    """Return an index vector of the host in the library and on the device of the matrix."""
    return M.xp.asarray(np.asarray(index, np.int64), device=M.device)


def _stored(storage, index, axis):
    """Return the part where the entries are in memory, else None."""
    if isinstance(storage, Scaled):
        part = _stored(storage.inner, index, axis)
        return None if part is None else storage.alpha * part
    if isinstance(storage, Adjoint):
        part = _stored(storage.inner, index, 1 - axis)
        return None if part is None else sparse_adjoint(part)
    if isinstance(storage, Dense):
        return taken(storage.array, storage.xp.asarray(index, device=storage.device), axis)
    if isinstance(storage, Sparse):
        return storage.csr[index, :] if axis == 0 else storage.csr[:, index]
    return None


def _unit_columns(M, index, length):
    E = np.zeros((length, len(index)))
    E[index, np.arange(len(index))] = 1.0
    return M.xp.asarray(E, dtype=M.dtype, device=M.device)
