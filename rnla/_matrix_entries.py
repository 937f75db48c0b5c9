"""Access to single columns and entries of a square matrix, for algorithms that read few of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from rnla._backend import adjoint
from rnla._matrix import as_matrix


@dataclass(frozen=True)
class Entries:
    """A square matrix of which columns are asked for, by arrays of indices in its own library.

    Attributes
    ----------
    n : int
        Order.
    dtype, xp, device
        Of all that is returned.
    diag : array, shape (n,)
        Diagonal.
    columns, submatrix : callable
        ``columns(S)`` has shape (n, len(S)), ``submatrix(S, T)`` shape (len(S), len(T)).
    matrix : Matrix or None
        What the columns are of; None for an object that evaluates them itself.
    stored : bool
        Whether entries are at hand without a product or an evaluation.
    """

    n: int
    dtype: Any
    xp: Any
    device: Any
    diag: Any
    columns: Callable
    submatrix: Callable
    matrix: Any = None
    stored: bool = False

    @property
    def shape(self):
        """Shape (n, n)."""
        return self.n, self.n

    @property
    def passes(self):
        """Times all entries were read so far."""
        return self.matrix.counter.passes if self.matrix else 0

    def indices(self, S):
        """Return indices of the host in the library and on the device of the entries."""
        return self.xp.asarray(np.asarray(S, dtype=np.int64), device=self.device)


def entries_of(A, diag, caller):
    """Wrap an object with ``diag()``, ``columns(S)`` and ``submatrix(S, T)``, or any kind of matrix.

    Parameters
    ----------
    A : object
        The matrix.
    diag : array or None
        Diagonal, where it cannot be read from A.
    caller : str
        Public function named in errors.

    Returns
    -------
    Entries
        Access to it.
    """
    if hasattr(A, "shape") and all(callable(getattr(A, name, None)) for name in ("diag", "columns", "submatrix")):
        return _of_object(A, diag, caller)
    M = as_matrix(A, caller)
    if M.shape[0] != M.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {M.shape}.")
    diag = np.asarray(diag) if isinstance(diag, (list, tuple)) else diag
    if M.array is not None:
        return _of_array(M, diag)
    if M.kind == "sparse":
        return _of_sparse(M, diag)
    return _of_products(M, diag, caller)


def _of_array(M, diag):
    X, xp = M.array, M.xp
    fortran = is_numpy_array(X) and X.flags.f_contiguous

    def columns(S):  # rows of a Hermitian matrix are its columns; either may be the contiguous ones
        return rows_at(X.T, S).T if fortran else adjoint(rows_at(X, S))

    def submatrix(S, T):
        return X[np.ix_(S, T)] if is_numpy_array(X) else xp.take(xp.take(X, S, axis=0), T, axis=1)

    diag = xp.linalg.diagonal(X) if diag is None else diag
    return Entries(M.shape[0], M.dtype, xp, M.device, diag, columns, submatrix, M, True)


def _of_sparse(M, diag):
    csr = M.storage.csr

    def columns(S):
        return adjoint(csr[S].toarray())

    def submatrix(S, T):
        return csr[S][:, T].toarray()

    diag = csr.diagonal() if diag is None else diag
    return Entries(M.shape[0], M.dtype, M.xp, M.device, diag, columns, submatrix, M, True)


def _of_products(M, diag, caller):
    xp = M.xp
    if diag is None:
        blocks = M.row_blocks()
        if blocks is None:
            raise ValueError(f"{caller}: diag must be given for an A known by its products only; got None.")
        diag = xp.concat([xp.linalg.diagonal(B[:, start : start + B.shape[0]]) for start, B in blocks])

    def columns(S):
        unit = xp.arange(M.shape[0], device=M.device)[:, None] == S[None, :]
        return M.matmat(xp.astype(unit, M.dtype))

    def submatrix(S, T):
        return rows_at(columns(T), S)

    return Entries(M.shape[0], M.dtype, xp, M.device, diag, columns, submatrix, M)


def rows_at(X, S):
    """Return the rows of an array with the indices `S`."""
    # NumPy's take would first copy an array that is not stored by rows, all of it.
    return X[S, :] if is_numpy_array(X) else array_namespace(X).take(X, S, axis=0)


def _of_object(A, diag, caller):
    shape = tuple(A.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(f"{caller}: A must be square and not empty; got shape {shape}.")
    own = A.diag()
    try:
        xp = array_namespace(own)
    except TypeError as error:
        raise TypeError(f"{caller}: A.diag() must return an array; got {type(own).__name__}.") from error
    dtype = getattr(A, "dtype", own.dtype)
    if not any(dtype == getattr(xp, name) for name in ("float32", "float64", "complex64", "complex128")):
        raise TypeError(f"{caller}: A must have dtype float32, float64, complex64 or complex128; got {dtype}.")

    def checked(block, expected, name):
        if tuple(block.shape) != expected:
            raise ValueError(f"{caller}: A.{name} must return shape {expected}; got {tuple(block.shape)}.")
        return xp.astype(block, dtype, copy=False)

    def columns(S):
        return checked(A.columns(S), (shape[0], S.shape[0]), "columns(S)")

    def submatrix(S, T):
        return checked(A.submatrix(S, T), (S.shape[0], T.shape[0]), "submatrix(S, T)")

    return Entries(shape[0], dtype, xp, device(own), own if diag is None else diag, columns, submatrix)
