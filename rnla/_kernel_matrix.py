"""Kernel matrices of points, known by their columns and products: the whole n x n matrix is never formed."""

import math

import numpy as np
from array_api_compat import (
    array_namespace,
    device,
    is_array_api_obj,
    is_dask_array,
    is_numpy_namespace,
    is_torch_array,
)

from rnla._backend import is_meta
from rnla._matrix_views import spans
from rnla._rangefinder import check_choice, check_number

FEW = 16  # up to this dimension distances come from differences: exact for near points, and as fast as a product
TILE = 2**16  # entries evaluated at a time by one thread: they stay in its cache
BLOCK = 2**21  # entries held at a time by a product: 16 MB in double precision


class KernelMatrix:
    """The symmetric positive semidefinite matrix ``K[i, j] = kernel(X[i], X[j])``, evaluated where it is needed.

    With ``r = ||x - y||_2 / bandwidth`` the kernels are ``gaussian`` ``exp(-r**2 / 2)``, ``laplace``
    ``exp(-||x - y||_1 / bandwidth)``, ``matern12`` ``exp(-r)``, ``matern32`` ``(1 + s) * exp(-s)`` with
    ``s = sqrt(3) * r``, and ``matern52`` ``(1 + s + s**2 / 3) * exp(-s)`` with ``s = sqrt(5) * r``.

    Every function of rnla that needs products only takes it as `A` if `X` is a NumPy array; `rnla.rpcholesky`, which
    needs few columns, takes it with any `X`.

    Parameters
    ----------
    X : array, shape (n, d)
        Points, of any array library; integers are computed in float64.
    kernel : {"gaussian", "laplace", "matern12", "matern32", "matern52"}
        Function of two points.
    bandwidth : float
        Length over which it decays.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n)``.
    dtype, xp, device
        Of the points, and of all that is evaluated.
    evaluations : int
        Entries evaluated so far.

    Raises
    ------
    ValueError
        If `X` is not two-dimensional, empty or not finite, or an argument is out of range.
    TypeError
        If `X` is not a dense array of numbers.

    Notes
    -----
    A product with l columns evaluates about half of the entries, in ``n**2 * (d + l)`` multiplications; it holds 16 MB
    of them at a time.

    Examples
    --------
    >>> K = rnla.KernelMatrix(np.array([[0.0], [1.0], [3.0]]), "laplace", 1.0)
    >>> np.round(K.columns([0])[:, 0], 4).tolist()
    [1.0, 0.3679, 0.0498]
    >>> np.round(K @ np.ones(3), 4).tolist()
    [1.4177, 1.5032, 1.1851]
    """

    __array_ufunc__ = None  # NumPy shall not take it for a number

    def __init__(self, X, kernel="gaussian", bandwidth=1.0):
        caller = "rnla.KernelMatrix"
        check_choice(kernel, "kernel", tuple(_KERNELS), caller)
        check_number(bandwidth, "bandwidth", caller)
        if bandwidth == 0:
            raise ValueError(f"{caller}: bandwidth must be positive; got {bandwidth}.")
        X, self.xp = _dense_points(X, caller)
        self.kernel, self.bandwidth = kernel, float(bandwidth)
        self.shape, self.dtype, self.device = (X.shape[0], X.shape[0]), X.dtype, device(X)
        self.evaluations = 0
        # Differences do not need it, but inner products of points far from the origin would lose what tells them apart.
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            X = (X - self.xp.mean(X, axis=0, keepdims=True)) / self.bandwidth
        _check_distances(self.xp, X, bandwidth, caller)
        # One row for each coordinate: the long side is contiguous, here and in every block.
        self._points = np.ascontiguousarray(X.T) if is_numpy_namespace(self.xp) else self.xp.asarray(X.T, copy=True)

    ndim = 2
    T = property(lambda self: self, doc="The transpose: the matrix itself.")
    H = property(lambda self: self, doc="The adjoint: the matrix itself.")

    def __repr__(self):
        d = self._points.shape[0]
        return f"KernelMatrix({self.shape[0]} points in {d} dimensions, {self.kernel!r}, bandwidth={self.bandwidth:g})"

    def diag(self):
        """Return the diagonal, shape (n,): ones."""
        self.evaluations += self.shape[0]
        return self.xp.ones(self.shape[0], dtype=self.dtype, device=self.device)

    def columns(self, S):
        """Return the columns with the indices `S`, shape (n, len(S)).

        Parameters
        ----------
        S : sequence or array of int
            Column indices.
        """
        return self._evaluate(self._take(S), self._points).T

    def submatrix(self, S, T):
        """Return the entries in rows `S` and columns `T`, shape (len(S), len(T)).

        Parameters
        ----------
        S, T : sequence or array of int
            Row and column indices.
        """
        return self._evaluate(self._take(S), self._take(T))

    def matmat(self, V):
        """Return the product with `V`, by blocks of rows.

        Parameters
        ----------
        V : array, shape (n, l)
            Columns to be multiplied.
        """
        n = self.shape[0]
        if V.ndim != 2 or V.shape[0] != n:
            raise ValueError(f"rnla.KernelMatrix: a factor must have {n} rows; got shape {tuple(V.shape)}.")
        xp = self.xp
        out = xp.zeros((n, V.shape[1]), dtype=xp.result_type(self.dtype, V.dtype), device=self.device)
        for rows in spans(n, max(BLOCK // n, 1)):
            # Entries on the right of the diagonal block serve for those below it.
            block = self._evaluate(self._points[:, rows], self._points[:, rows.start :])
            out[rows, :] += block @ V[rows.start :, :]
            if rows.stop < n:
                out[rows.stop :, :] += block[:, rows.stop - rows.start :].T @ V[rows, :]
        return out

    rmatmat = matmat

    def __matmul__(self, V):
        return self.matmat(V) if V.ndim != 1 else self.matmat(V[:, None])[:, 0]

    def _take(self, S):
        xp = self.xp
        return xp.take(self._points, xp.asarray(S, device=self.device), axis=1)

    def _evaluate(self, left, right):
        """Return the kernel between two sets of points, shape (p, q), contiguous along the second."""
        p, q = left.shape[1], right.shape[1]
        self.evaluations += p * q
        products = self.kernel != "laplace" and left.shape[0] > FEW
        if products:  # in double precision: rounding of the inner products is divided by the bandwidth squared
            left, right = (self.xp.astype(part, self.xp.float64, copy=False) for part in (left, right))
        inner = left.T @ right if products else None
        if not is_numpy_namespace(self.xp):
            return self.xp.astype(self._values(left, right, inner), self.dtype, copy=False)
        out = np.empty((p, q), self.dtype) if inner is None or inner.dtype != self.dtype else inner

        def work(start, stop):
            part = slice(start, stop)
            with np.errstate(under="ignore"):  # a setting of each thread
                out[:, part] = self._values(left, right[:, part], None if inner is None else inner[:, part])

        from rnla.kernels import map_blocks

        map_blocks(work, q, block=max(TILE // max(p, 1), 1))
        return out

    def _values(self, left, right, inner):
        if inner is not None:
            total = _from_products(self.xp, left, right, inner)
        else:
            total = _summed(left, right, self.xp.abs if self.kernel == "laplace" else _square)
        return _KERNELS[self.kernel](self.xp, total)


def _dense_points(X, caller):
    """Return the points in the type in which they are computed with, and their namespace."""
    if isinstance(X, (list, tuple)):
        X = np.asarray(X)
    if isinstance(X, (np.matrix, np.ma.MaskedArray)) or not is_array_api_obj(X) or is_dask_array(X):
        raise TypeError(f"{caller}: X must be a dense array; got {type(X).__module__}.{type(X).__name__}.")
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{caller}: X must be two-dimensional and not empty; got shape {tuple(X.shape)}.")
    xp = array_namespace(X)
    if xp.isdtype(X.dtype, ("bool", "integral")):
        X = xp.astype(X, xp.float64)
    elif not xp.isdtype(X.dtype, "real floating") or xp.finfo(X.dtype).bits not in (32, 64):
        raise TypeError(f"{caller}: X must have an integer, float32 or float64 dtype; got {X.dtype}.")
    if is_torch_array(X):
        X = X.detach()
    if not is_meta(X) and not bool(xp.all(xp.isfinite(X))):
        raise ValueError(f"{caller}: X must be finite; it contains NaN or infinity.")
    return X, xp


def _check_distances(xp, points, bandwidth, caller):
    """Raise if squares of distances, in units of the bandwidth, would overflow."""
    limit = math.sqrt(float(xp.finfo(points.dtype).max) / points.shape[1]) / 4
    if not is_meta(points) and not float(xp.max(xp.abs(points))) <= limit:
        raise ValueError(
            f"{caller}: bandwidth must be so large that squared distances in its units are finite; got {bandwidth}."
        )


def _square(x):
    return x * x


def _summed(left, right, function):
    """Return the sum over the coordinates of a function of the difference, for all pairs of points."""
    total = function(left[0, :][:, None] - right[0, :][None, :])
    for c in range(1, left.shape[0]):
        total += function(left[c, :][:, None] - right[c, :][None, :])
    return total


def _from_products(xp, left, right, inner):
    """Return the squared distances of all pairs of points from their inner products."""
    lengths = xp.sum(left * left, axis=0)[:, None] + xp.sum(right * right, axis=0)[None, :]
    squares = lengths - 2 * inner
    # What is left of equal points is rounding: its root, in a kernel that is not smooth at zero, would be far larger.
    return xp.where(squares > 8 * float(xp.finfo(squares.dtype).eps) * lengths, squares, xp.zeros_like(squares))


def _matern32(xp, squares):
    s = math.sqrt(3) * xp.sqrt(squares)
    return (1 + s) * xp.exp(-s)


def _matern52(xp, squares):
    s = math.sqrt(5) * xp.sqrt(squares)
    return (1 + s + s * s / 3) * xp.exp(-s)


_KERNELS = {
    "gaussian": lambda xp, squares: xp.exp(-0.5 * squares),
    "laplace": lambda xp, total: xp.exp(-total),  # of the sum of absolute differences; the others: of squares
    "matern12": lambda xp, squares: xp.exp(-xp.sqrt(squares)),
    "matern32": _matern32,
    "matern52": _matern52,
}
