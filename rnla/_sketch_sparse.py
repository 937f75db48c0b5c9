"""Sketching operators with few non-zero entries in each column or row."""

import numbers

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_namespace

from rnla import kernels
from rnla._sketch_operator import Operator, is_sparse, to_namespace
from rnla._test_matrix import test_matrix
from rnla.kernels import _philox


class _Signs(Operator):
    """Operators with a few entries ``+-value`` in each column; a subclass gives `_targets`."""

    _complex_allowed = False

    def __init__(self, d, n, zeta, *, seed, dtype, scale):
        super().__init__(d, n, seed=seed, dtype=dtype, scale=scale)
        if not isinstance(zeta, numbers.Integral) or isinstance(zeta, bool):
            raise TypeError(f"{self._name}: zeta must be an int; got {type(zeta).__name__}.")
        if zeta < 1:
            raise ValueError(f"{self._name}: zeta must be at least 1; got {zeta}.")
        self.zeta = min(int(zeta), self.shape[0])
        self._value = float(np.sqrt((1.0 if scale == "isometry" else self.shape[0]) / self.zeta))

    def targets(self, a, b):
        """Return where the entries of the columns ``a:b`` are.

        Parameters
        ----------
        a, b : int
            Range of columns.

        Returns
        -------
        numpy.ndarray, shape (b - a, zeta)
            int32: row r if the entry is positive, ``~r`` if it is negative.
        """
        self._check_range(a, b, 1)
        out = np.empty((b - a, self.zeta), np.int32)
        counters = -(-self.zeta // 4)
        _philox.load_compiled((b - a) * counters)

        def fill(lo, hi):
            words = kernels.random_words(self.key, 0, _philox.ROWS, (a + lo, a + hi), (0, counters))
            words = words.reshape(hi - lo, -1)[:, : self.zeta].T.astype(np.uint64)
            # The high bits of a word choose the row and the lowest one the sign: independent up to d / 2**32.
            rows = self._rows_of(words)
            out[lo:hi] = np.where(words & np.uint64(1), ~rows, rows).T

        kernels.map_blocks(fill, b - a, block=1 << 12)
        return out

    def rows(self, a, b, *, xp=np, device=None):
        self._check_range(a, b, 0)
        return to_namespace(self._csc(0, self.shape[1]).tocsr()[a:b].toarray(), xp, device)

    def cols(self, a, b, *, xp=np, device=None):
        return to_namespace(self._csc(a, b).toarray(), xp, device)

    def _csc(self, a, b):
        from scipy.sparse import csc_array

        targets = self.targets(a, b)
        values = np.where(targets < 0, -self._value, self._value).astype(self.dtype).ravel()
        ends = np.arange(0, targets.size + 1, self.zeta)
        return csc_array((values, np.maximum(targets, ~targets).ravel(), ends), shape=(self.shape[0], b - a))

    def _product(self, A, offset):
        if is_sparse(A):
            return (self._csc(offset, offset + A.shape[0]).astype(A.real.dtype) @ A).toarray()
        xp = array_namespace(A)
        out = xp.zeros((self.shape[0], A.shape[1]), dtype=A.dtype, device=device(A))
        return kernels.scatter_signs(A, self.targets(offset, offset + A.shape[0]), out) * self._value

    def _adjoint_product(self, Y):
        if not is_numpy_namespace(array_namespace(Y)):
            return super()._adjoint_product(Y)
        return self._csc(0, self.shape[1]).astype(Y.real.dtype).T @ Y


class SparseSign(_Signs):
    """In each column ``zeta`` entries ``+-1 / sqrt(zeta)`` in different rows; ``2 zeta n c`` operations.

    As reliable as `Gaussian` from ``zeta = 8`` on, also for coherent subspaces; two or fewer entries are not.

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to length `d`.
    zeta : int
        Non-zero entries per column; at most `d` are used.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the entries.
    dtype : dtype
        float32 or float64; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> S = rnla.sketch.SparseSign(40, 1000, seed=0)
    >>> np.unique(np.count_nonzero(S.to_array(), axis=0)).tolist()
    [8]
    >>> A = np.ones((1000, 3))
    >>> np.allclose(S.apply(A[:600], 0) + S.apply(A[600:], 600), S @ A)
    True
    """

    def __init__(self, d, n, zeta=8, *, seed=None, dtype=np.float64, scale="isometry"):
        super().__init__(d, n, zeta, seed=seed, dtype=dtype, scale=scale)

    def _rows_of(self, words):
        # Floyd's sample without replacement: the t-th draw is from one value more, which replaces a repetition.
        rows = np.empty(words.shape, np.int32)
        for t in range(self.zeta):
            size = self.shape[0] - self.zeta + t + 1
            rows[t] = words[t] * np.uint64(size) >> np.uint64(32)
            repeated = np.zeros(words.shape[1], bool)
            for earlier in rows[:t]:
                repeated |= earlier == rows[t]
            rows[t, repeated] = size - 1
        return rows


class SparseStack(_Signs):
    """``zeta`` stacked `CountSketch` matrices, each in a slice of the rows; ``2 zeta n c`` operations.

    Cheaper to generate than `SparseSign`; ``zeta = 4`` keeps every vector of a subspace of dimension ``d / 2`` from
    being mapped near zero [1]_.

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to length `d`.
    zeta : int
        Non-zero entries per column; at most `d` are used.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the entries.
    dtype : dtype
        float32 or float64; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    References
    ----------
    .. [1] Camano, Epperly, Meyer, Tropp, "Faster linear algebra algorithms with structured random matrices" (2025).

    Examples
    --------
    >>> S = rnla.sketch.SparseStack(40, 1000, seed=0)
    >>> np.unique(np.count_nonzero(S.to_array()[:10], axis=0)).tolist()
    [1]
    """

    def __init__(self, d, n, zeta=4, *, seed=None, dtype=np.float64, scale="isometry"):
        super().__init__(d, n, zeta, seed=seed, dtype=dtype, scale=scale)

    def _rows_of(self, words):
        edges = np.arange(self.zeta + 1, dtype=np.uint64) * np.uint64(self.shape[0]) // np.uint64(self.zeta)
        return (edges[:-1, None] + (words * np.diff(edges)[:, None] >> np.uint64(32))).astype(np.int32)


class CountSketch(SparseStack):
    """One entry +1 or -1 in each column; ``2 n c`` operations.

    Safe only from `d` about the square of the dimension of the subspace on.

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to length `d`.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the entries.
    dtype : dtype
        float32 or float64; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> S = rnla.sketch.CountSketch(40, 1000, seed=0)
    >>> np.unique(abs(S.to_array()).sum(axis=0)).tolist()
    [1.0]
    """

    def __init__(self, d, n, *, seed=None, dtype=np.float64, scale="isometry"):
        super().__init__(d, n, 1, seed=seed, dtype=dtype, scale=scale)


class RowSample(Operator):
    """Rows of the data, drawn independently with given probabilities and scaled by ``1 / sqrt(d p)``.

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to `d` of their entries.
    p : None or array, shape (n,)
        Probabilities up to a common factor, such as squared row norms or leverage scores; None means uniform.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the sample.
    dtype : dtype
        float32 or float64; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance on average.

    Examples
    --------
    >>> S = rnla.sketch.RowSample(5, 4, p=[0, 1, 0, 3], seed=0)
    >>> np.unique(S.indices).tolist()
    [1, 3]
    """

    _complex_allowed = False

    def __init__(self, d, n, p=None, *, seed=None, dtype=np.float64, scale="isometry"):
        super().__init__(d, n, seed=seed, dtype=dtype, scale=scale)
        p = np.ones(n) if p is None else np.asarray(p, dtype=np.float64)
        if p.shape != (n,) or not np.isfinite(p).all() or (p < 0).any() or not p.any():
            raise ValueError(
                f"{self._name}: p must have shape ({n},) and finite non-negative entries that are not all zero; "
                f"got shape {p.shape}."
            )
        p = p / p.max()
        ends = np.cumsum(p)
        u = 0.5 + test_matrix("uniform", self.key, self.shape[0], 1)[:, 0] / np.sqrt(12.0)
        # "right" skips rows of probability zero; rounding may lift u * total to the last end, hence the minimum.
        self.indices = np.minimum(np.searchsorted(ends, u * ends[-1], side="right"), np.flatnonzero(p)[-1])
        self._weights = self._unit * np.sqrt(ends[-1] / p[self.indices])

    def rows(self, a, b, *, xp=np, device=None):
        self._check_range(a, b, 0)
        out = np.zeros((b - a, self.shape[1]), self.dtype)
        out[np.arange(b - a), self.indices[a:b]] = self._weights[a:b]
        return to_namespace(out, xp, device)

    def cols(self, a, b, *, xp=np, device=None):
        self._check_range(a, b, 1)
        inside = np.flatnonzero((a <= self.indices) & (self.indices < b))
        out = np.zeros((self.shape[0], b - a), self.dtype)
        out[inside, self.indices[inside] - a] = self._weights[inside]
        return to_namespace(out, xp, device)

    def _product(self, A, offset):
        if is_sparse(A):
            block = self._csr()[:, offset : offset + A.shape[0]].astype(A.real.dtype)
            return (block @ A).toarray()
        xp = array_namespace(A)
        local = self.indices - offset
        inside = (local >= 0) & (local < A.shape[0])
        weights = xp.asarray(np.where(inside, self._weights, 0.0)[:, None], dtype=A.dtype, device=device(A))
        local = xp.asarray(np.where(inside, local, 0), device=device(A))
        return xp.take(A, local, axis=0) * weights

    def _adjoint_product(self, Y):
        if not is_numpy_namespace(array_namespace(Y)):
            return super()._adjoint_product(Y)
        return self._csr().astype(Y.real.dtype).T @ Y

    def _csr(self):
        from scipy.sparse import csr_array

        d = self.shape[0]
        return csr_array((self._weights.astype(self.dtype), self.indices, np.arange(d + 1)), shape=self.shape)
