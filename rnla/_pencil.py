"""The matrices of a matrix equation: what may be passed, products with them, and one factorisation for every shift."""

import sys

import numpy as np

from rnla._backend import check_finite

DTYPES = "a real dtype: float64, float32, integer or bool"
KEPT_BYTES = 2**30  # of factors that wait for their shift to come again
PIVOT = 0.1  # a diagonal entry is taken as pivot if it is at least this part of its column
PANEL = 4  # columns that SuperLU takes together; its default is for more fill than discretised planes have


class Pencil:
    """A and E, and solutions of systems with ``A^T + s E^T``.

    Parameters
    ----------
    A, E : sparse matrix or ndarray, shape (n, n)
        Real; E may be None, for the identity.
    caller : str
        Public function named in errors.
    """

    def __init__(self, A, E, caller):
        A = _square(A, "A", caller)
        self.n = A.shape[0]
        self.dtype = _result_dtype(A)
        self.sparse = _is_sparse(A)
        # The rows of A are the columns of A^T: transposing copies nothing.
        self.AT = A.T.astype(float)
        self.ET = None
        if E is not None:
            E = _square(E, "E", caller)
            if E.shape != A.shape:
                raise ValueError(f"{caller}: E must have the shape of A, {A.shape}; got {E.shape}.")
            self.dtype = np.promote_types(self.dtype, _result_dtype(E))
            if _is_sparse(E) != self.sparse:
                E = _csr(E) if self.sparse else E.toarray()
            self.ET = E.T.astype(float)
        self._shifted = self._identity() if self.ET is None else self.ET
        self._options = _ordering(abs(self.AT) + abs(self._shifted)) if self.sparse else {}
        self._kept, self._kept_bytes = {}, 0
        self._check_nonsingular(caller)

    def times(self, X):
        """Return ``A X``."""
        return self.AT.T @ X

    def times_E(self, X):
        """Return ``E X``."""
        return X if self.ET is None else self.ET.T @ X

    def adjoint_E(self, X):
        """Return ``E^T X``."""
        return X if self.ET is None else self.ET @ X

    def solver(self, s, keep=False):
        """Return the function that solves ``(A^T + s E^T) Y = X``; with `keep` its factors wait for the next call.

        Raises ``numpy.linalg.LinAlgError`` if the matrix is singular.
        """
        if s in self._kept:
            return self._kept[s]
        solve, size = self._factored(self.AT + s * self._shifted)
        if keep and self._kept_bytes + size <= KEPT_BYTES:
            self._kept[s] = solve
            self._kept_bytes += size
        return solve

    def dense(self):
        """Return A and E as arrays."""
        A, E = self.AT.T, self._shifted.T
        return (A.toarray(), E.toarray()) if self.sparse else (A, E)

    def _identity(self):
        if not self.sparse:
            return np.eye(self.n)
        from scipy.sparse import eye_array

        return eye_array(self.n, format="csc")

    def _factored(self, M):
        return _sparse_factors(M, self._options) if self.sparse else _dense_factors(M)

    def _check_nonsingular(self, caller):
        if self.ET is None:
            return
        try:
            self._factored(self.ET)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"{caller}: E must be nonsingular; its LU factorisation has a zero pivot.") from error


def thin(X, name, rows, caller, *, by_rows=False):
    """Return a thin real matrix as an array with `rows` rows (with `by_rows`: that many columns), and its dtype."""
    X = np.asarray(X) if isinstance(X, (list, tuple)) else X
    shape = f"(k, {rows})" if by_rows else f"({rows}, k)"
    if type(X) is not np.ndarray:
        raise TypeError(f"{caller}: {name} must be a NumPy array of shape {shape}; got {type(X).__name__}.")
    if X.ndim == 1:
        X = X[None, :] if by_rows else X[:, None]
    if X.ndim != 2 or X.shape[1 if by_rows else 0] != rows:
        raise ValueError(f"{caller}: {name} must have shape {shape} or ({rows},); got {X.shape}.")
    dtype = _checked_dtype(X, name, caller)
    X = X.astype(float)
    check_finite(X, caller, name)
    return X, dtype


def _square(A, name, caller):
    if _is_sparse(A):
        A = _csr(A) if A.ndim == 2 else A
        entries = A.data
    elif type(A) is np.ndarray or type(A) is np.memmap:
        A = entries = np.asarray(A)
    else:
        raise TypeError(f"{caller}: {name} must be a SciPy sparse matrix or a NumPy array; got {type(A).__name__}.")
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise ValueError(f"{caller}: {name} must be square and not empty; got shape {A.shape}.")
    _checked_dtype(A, name, caller)
    if not np.isfinite(entries).all():
        raise ValueError(f"{caller}: {name} must be finite; it contains NaN or infinity.")
    return A


def _is_sparse(A):
    sparse = sys.modules.get("scipy.sparse")  # A cannot be of a module that nobody imported
    return sparse is not None and sparse.issparse(A)


def _csr(A):
    from scipy.sparse import csr_array

    return csr_array(A)


def _checked_dtype(X, name, caller):
    if X.dtype.kind not in "biuf" or X.dtype.itemsize > 8 or X.dtype == np.float16:
        raise TypeError(f"{caller}: {name} must have {DTYPES}; got {X.dtype}.")
    return _result_dtype(X)


def _result_dtype(X):
    return np.dtype(X.dtype if X.dtype == np.float32 else np.float64)


def _ordering(pattern):
    """Return how SuperLU should order a matrix of this pattern."""
    pattern.data[:] = 1.0
    if abs(pattern - pattern.T).nnz:
        return {"permc_spec": "COLAMD"}
    # Pivots from the diagonal keep the fill of a symmetric pattern low; the threshold keeps the factors accurate.
    options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": PIVOT, "options": {"SymmetricMode": True}}
    return options | {"panel_size": PANEL, "relax": PANEL}


def _sparse_factors(M, options):
    from scipy.sparse.linalg import splu

    try:
        lu = splu(M.tocsc(), **options)
    except RuntimeError as error:  # an exact zero; anything else in SuperLU is a MemoryError
        raise np.linalg.LinAlgError(str(error)) from error
    _check_pivots(abs(lu.U.diagonal()))

    def solve(X):
        if np.iscomplexobj(X) and not np.iscomplexobj(M):
            return lu.solve(np.ascontiguousarray(X.real)) + 1j * lu.solve(np.ascontiguousarray(X.imag))
        return lu.solve(np.asarray(X, dtype=M.dtype))

    return solve, lu.nnz * (M.dtype.itemsize + 4)


def _dense_factors(M):
    from scipy.linalg import get_lapack_funcs

    getrf, getrs = get_lapack_funcs(("getrf", "getrs"), (M,))
    lu, pivots, _ = getrf(M)
    _check_pivots(abs(np.diagonal(lu)))
    return lambda X: getrs(lu, pivots, X)[0], lu.nbytes


def _check_pivots(pivots):
    if not pivots.min() > np.finfo(float).eps * pivots.max():
        raise np.linalg.LinAlgError("a pivot is zero to working precision")
