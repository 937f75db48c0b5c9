"""Matrices known only through products: LinearOperator, pairs of functions, anything with ``@`` and an adjoint."""

from array_api_compat import array_namespace

from rnla._backend import check_finite
from rnla._matrix_views import Storage


class Operator(Storage):
    """A matrix given by two functions of a block of columns, whose outputs are not trusted."""

    def __init__(self, forward, backward, shape, dtype, xp, device, caller):
        super().__init__(shape, dtype, xp, device)
        self.forward = forward
        self.backward = backward
        self.caller = caller

    def matmat(self, X, out=None):
        return self._checked("matmat", self.forward, X, self.shape[0])

    def rmatmat(self, Y, out=None):
        missing = f"{self.caller}: A must provide rmatvec or rmatmat, for products with its adjoint; it has neither."
        if self.backward is None:
            raise TypeError(missing)
        try:
            return self._checked("rmatmat", self.backward, Y, self.shape[1])
        except NotImplementedError as error:  # how a SciPy LinearOperator says that it was given no rmatvec
            raise TypeError(missing) from error

    def _checked(self, name, function, X, rows):
        try:
            Y = function(X)
        except ValueError as error:
            raise ValueError(f"{self.caller}: {name} of A failed for an array of shape {X.shape}: {error}") from error
        xp, expected = self.xp, (rows, X.shape[1])
        try:
            known = array_namespace(Y) is xp
        except TypeError:
            known = False
        if not known or not xp.isdtype(Y.dtype, ("bool", "numeric")):
            described = f"{type(Y).__name__} of dtype {getattr(Y, 'dtype', 'none')}"
            raise ValueError(
                f"{self.caller}: {name} of A must return a numeric array of {xp.__name__}; got {described}."
            )
        if tuple(Y.shape) != expected:
            raise ValueError(
                f"{self.caller}: {name} of A of shape {self.shape} must return shape {expected} for an array of shape "
                f"{tuple(X.shape)}; got {tuple(Y.shape)}."
            )
        if xp.isdtype(Y.dtype, "complex floating") and not xp.isdtype(self.dtype, "complex floating"):
            raise ValueError(f"{self.caller}: {name} of A returned {Y.dtype}, but A has the real dtype {self.dtype}.")
        Y = xp.astype(xp.asarray(Y), self.dtype, copy=False)
        check_finite(Y, self.caller, "A")  # of stored entries the first product tells; here each may go wrong
        return Y


def by_columns(function):
    """Extend a function of one vector to blocks of columns."""

    def product(X):
        xp = array_namespace(X)
        columns = [xp.asarray(function(X[:, j])) for j in range(X.shape[1])]
        return xp.stack([y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y for y in columns], axis=-1)

    return product


def products_of(A):
    """Return the functions ``X -> A X`` and ``Y -> A^H Y`` of a duck-typed `A`; the second may be None."""
    if hasattr(A, "matmat"):
        forward = A.matmat
    elif hasattr(A, "matvec"):
        forward = by_columns(A.matvec)
    else:
        forward = A.__matmul__
    if hasattr(A, "rmatmat"):
        backward = _rmatmat(A)
    elif hasattr(A, "rmatvec"):
        backward = by_columns(A.rmatvec)
    elif hasattr(A, "H"):
        backward = A.H.__matmul__
    elif hasattr(A, "T"):
        backward = _conjugated(A.T.__matmul__)
    else:
        backward = None
    return forward, backward


def _rmatmat(A):
    def product(Y):
        try:
            return A.rmatmat(Y)
        except TypeError:
            if hasattr(A, "rmatvec"):
                A.rmatvec(Y[:, 0])  # given no rmatvec, SciPy's rmatmat calls None; its rmatvec says what is missing
            raise

    return product


def _conjugated(transpose):
    def product(Y):
        xp = array_namespace(Y)
        if xp.isdtype(Y.dtype, "complex floating"):
            return xp.conj(transpose(xp.conj(Y)))
        return transpose(Y)

    return product
