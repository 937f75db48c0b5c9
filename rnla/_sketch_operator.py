"""What all sketching operators share: products, blocks, transposes and checks of their arguments."""

import numbers

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_namespace

from rnla._backend import key_from_rng

_TILE = 1 << 22  # entries of the operator that are formed at a time


class Operator:
    """What the operators share: products, blocks and checks. A subclass gives `cols` or better `_product`."""

    __array_ufunc__ = None  # so that ``A @ S.T`` asks S
    _complex_allowed = True

    def __init__(self, d, n, *, seed=None, dtype=np.float64, scale="isometry"):
        self._name = f"rnla.sketch.{type(self).__name__}"
        for letter, size in (("d", d), ("n", n)):
            if not isinstance(size, numbers.Integral) or isinstance(size, bool):
                raise TypeError(f"{self._name}: {letter} must be an int; got {type(size).__name__}.")
            if size < 1:
                raise ValueError(f"{self._name}: {letter} must be at least 1; got {size}.")
        if scale not in ("isometry", "raw"):
            raise ValueError(f"{self._name}: scale must be 'isometry' or 'raw'; got {scale!r}.")
        allowed = ("float32", "float64", "complex64", "complex128")[: 4 if self._complex_allowed else 2]
        try:
            self.dtype = np.dtype(dtype)
        except TypeError:
            raise TypeError(f"{self._name}: dtype must be one of {', '.join(allowed)}; got {dtype!r}.") from None
        if self.dtype.name not in allowed:
            raise TypeError(f"{self._name}: dtype must be one of {', '.join(allowed)}; got {self.dtype}.")
        self.shape = (int(d), int(n))
        self.key = key_from_rng(seed, self._name)
        self.scale = scale
        self._unit = self.shape[0] ** -0.5 if scale == "isometry" else 1.0  # factor of unit-variance entries

    def __repr__(self):
        return f"{type(self).__name__}{self.shape}"

    @property
    def T(self):
        """Transpose, as an operator."""
        return _view(self, transposed=True, conjugate=False)

    @property
    def H(self):
        """Conjugate transpose, as an operator."""
        return _view(self, transposed=True, conjugate=True)

    def __matmul__(self, A):
        A, vector = self._data(A, self.shape[1], "S @ A needs A")
        out = self._product(A, 0)
        return out[:, 0] if vector else out

    def __rmatmul__(self, A):
        return _right_product(self.T, A)

    def apply(self, block, row_offset=0):
        """Return the part of ``S @ A`` that comes from some rows of A; the sum over all parts is the product.

        Parameters
        ----------
        block : array or sparse matrix, shape (r, c)
            Rows ``row_offset:row_offset + r`` of A.
        row_offset : int
            Place of the first of them.

        Returns
        -------
        array, shape (d, c)
            ``S[:, row_offset:row_offset + r] @ block``.
        """
        block, vector = self._data(block, None, "apply needs block")
        if not 0 <= row_offset <= self.shape[1] - block.shape[0]:
            raise ValueError(
                f"{self._name}: row_offset must be in 0..n - {block.shape[0]} for a block of {block.shape[0]} rows "
                f"and n = {self.shape[1]}; got {row_offset}."
            )
        out = self._product(block, row_offset)
        return out[:, 0] if vector else out

    def rows(self, a, b, *, xp=np, device=None):
        """Return the rows ``a:b`` as an array of `xp`, without making the others where the kind allows it."""
        self._check_range(a, b, 0)
        identity = np.zeros((self.shape[0], b - a), self.dtype)
        identity[np.arange(a, b), np.arange(b - a)] = 1
        return to_namespace(np.conj(self._adjoint_product(identity)).T, xp, device)

    def cols(self, a, b, *, xp=np, device=None):
        """Return the columns ``a:b`` as an array of `xp`, without making the others where the kind allows it."""
        self._check_range(a, b, 1)
        return to_namespace(self._product(np.eye(b - a, dtype=self.dtype), a), xp, device)

    def to_array(self, xp=np, device=None):
        """Return the whole matrix as an array of `xp`."""
        return self.cols(0, self.shape[1], xp=xp, device=device)

    def _tiles(self, n):
        step = max(1, _TILE // self.shape[0])
        return ((lo, min(lo + step, n)) for lo in range(0, n, step))

    def _product(self, A, offset):
        """Return the columns of S from `offset` on times A, in tiles of the dense operator."""
        if is_sparse(A):
            A, xp, place = A.tocsr(), np, None
            dtype = np.result_type(A.dtype, np.complex64 if self.dtype.kind == "c" else A.dtype)
        else:
            xp, place, dtype = array_namespace(A), device(A), self._dtype_with(A)
            A = xp.astype(A, dtype, copy=False)
        out = None
        for lo, hi in self._tiles(A.shape[0]):
            S = xp.astype(self.cols(offset + lo, offset + hi, xp=xp, device=place), dtype, copy=False)
            part = (A[lo:hi].T @ S.T).T if is_sparse(A) else S @ A[lo:hi, :]
            out = part if out is None else out + part
        return out

    def _adjoint_product(self, Y):
        """Return ``S^H Y`` in tiles of the dense operator."""
        xp, dtype = array_namespace(Y), self._dtype_with(Y)
        Y = xp.astype(Y, dtype, copy=False)
        parts = []
        for lo, hi in self._tiles(self.shape[1]):
            S = xp.astype(self.cols(lo, hi, xp=xp, device=device(Y)), dtype, copy=False)
            parts.append((xp.conj(S) if self.dtype.kind == "c" else S).T @ Y)
        return parts[0] if len(parts) == 1 else xp.concat(parts)

    def _dtype_with(self, A):
        """Return the precision of `A`; complex if `A` or the operator is."""
        xp = array_namespace(A)
        if self.dtype.kind == "c" and not xp.isdtype(A.dtype, "complex floating"):
            return xp.complex64 if A.dtype == xp.float32 else xp.complex128
        return A.dtype

    def _data(self, A, rows, what):
        """Return `A` as a floating two-dimensional array or sparse matrix, and whether it was a vector."""
        if isinstance(A, (np.matrix, np.ma.MaskedArray)):
            raise TypeError(f"{self._name}: {what} as an array or sparse matrix; got {type(A).__name__}.")
        if is_sparse(A):
            floating = A.dtype.kind in "fc"
            A = A if floating else A.astype(np.float64)
            vector = False
        else:
            try:
                xp = array_namespace(A)
            except TypeError:
                raise TypeError(f"{self._name}: {what} as an array or sparse matrix; got {type(A).__name__}.") from None
            vector = A.ndim == 1
            A = A[:, None] if vector else A
            if not xp.isdtype(A.dtype, ("bool", "numeric")):
                raise TypeError(f"{self._name}: {what} of a numeric dtype; got {A.dtype}.")
            if not xp.isdtype(A.dtype, ("real floating", "complex floating")):
                A = xp.astype(A, xp.float64)
        if A.ndim != 2 or rows not in (None, A.shape[0]):
            raise ValueError(f"{self._name}: {what} with {rows or 'some'} rows; got shape {tuple(A.shape)}.")
        return A, vector

    def _check_range(self, a, b, axis):
        if not 0 <= a < b <= self.shape[axis]:
            raise ValueError(f"{self._name}: a range a:b must satisfy 0 <= a < b <= {self.shape[axis]}; got {a}:{b}.")


def _view(operator, *, transposed, conjugate):
    if operator.dtype.kind != "c":
        conjugate = transposed  # of a real operator, S^T is S^H and conj(S) is S
    return _View(operator, transposed, conjugate) if transposed or conjugate else operator


class _View:
    """Transpose, adjoint or conjugate of an operator."""

    __array_ufunc__ = None

    def __init__(self, operator, transposed, conjugate):
        self._of, self._transposed, self._conjugate = operator, transposed, conjugate
        self.shape, self.dtype = operator.shape[:: -1 if transposed else 1], operator.dtype

    def __repr__(self):
        return f"{self._of!r}.{'H' if self._transposed and self._conjugate else 'T' if self._transposed else 'conj'}"

    @property
    def T(self):
        return _view(self._of, transposed=not self._transposed, conjugate=self._conjugate)

    @property
    def H(self):
        return _view(self._of, transposed=not self._transposed, conjugate=not self._conjugate)

    def __matmul__(self, A):
        A, vector = self._of._data(A, self.shape[1], "the product needs an array")
        A = A.toarray() if is_sparse(A) and self._transposed else A
        flip = self._transposed != self._conjugate  # S^T Y = conj(S^H conj(Y)), conj(S) A = conj(S conj(A))
        A = _conj(A) if flip else A
        out = self._of._adjoint_product(A) if self._transposed else self._of._product(A, 0)
        out = _conj(out) if flip else out
        return out[:, 0] if vector else out

    def __rmatmul__(self, A):
        return _right_product(self.T, A)


def _right_product(transposed, A):
    if getattr(A, "ndim", 0) < 2:
        return transposed @ A
    return (transposed @ A.T).T


def is_sparse(A):
    if not hasattr(A, "tocsr"):  # only then is SciPy's package needed
        return False
    from scipy.sparse import issparse

    return issparse(A)


def _conj(A):
    if is_sparse(A):
        return A.conj()
    xp = array_namespace(A)
    return xp.conj(A) if xp.isdtype(A.dtype, "complex floating") else A


def to_namespace(X, xp, device):
    return X if is_numpy_namespace(xp) else xp.asarray(X, device=device)
