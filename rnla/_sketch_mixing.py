"""Sketching operators that mix the rows by a fast orthogonal transform and keep a sample of them."""

import numbers

import numpy as np
from array_api_compat import array_namespace, device

from rnla import kernels
from rnla._dct import dct, idct
from rnla._sketch_operator import Operator, is_sparse
from rnla._test_matrix import test_matrix
from rnla.kernels import _philox


class _Mixing(Operator):
    """Operators that mix all rows by a fast transform and keep `d` of them; a subclass gives `_mix` and `_unmix`."""

    _complex_allowed = False

    def __init__(self, d, n, *, seed, dtype, scale):
        super().__init__(d, n, seed=seed, dtype=dtype, scale=scale)
        self._mixed = self._mixed_length()
        if d > self._mixed:
            raise ValueError(f"{self._name}: d must be in 1..{self._mixed} for n = {n}; got {d}.")
        # The rows with the d smallest of one random 64-bit number each: a sample without replacement.
        words = kernels.random_words(self.key, 0, _philox.SAMPLE, (0, self._mixed), (0, 1))
        self._kept = np.sort(np.argsort(words.view(np.uint64)[:, 0, 0], kind="stable")[: self.shape[0]])
        self._factor = float(np.sqrt(self._mixed * (1.0 / d if scale == "isometry" else 1.0)))

    def _mixed_length(self):
        return self.shape[1]

    def _signs(self, X, column, lo, hi):
        """Return the random signs of the rows ``lo:hi`` in round `column`, as a column like `X`."""
        xp = array_namespace(X)
        signs = test_matrix("rademacher", self.key, hi - lo, 1, start=column, row=lo)
        return xp.asarray(signs, dtype=X.dtype, device=device(X))

    def _signed(self, A, offset):
        """Return `A` with the random signs of the first round, between rows of zeros."""
        xp, stop = array_namespace(A), offset + A.shape[0]
        X = xp.zeros((self._mixed, A.shape[1]), dtype=A.dtype, device=device(A))
        X[offset:stop, :] = A * self._signs(A, 0, offset, stop)
        return X

    def _product(self, A, offset):
        A = A.toarray() if is_sparse(A) else A
        xp = array_namespace(A)
        kept = xp.asarray(self._kept, device=device(A))
        return xp.take(self._mix(A, offset), kept, axis=0) * self._factor

    def _adjoint_product(self, Y):
        xp = array_namespace(Y)
        # The standard has no assignment to rows by index: take them from Y and a row of zeros behind it.
        place = np.full(self._mixed, self.shape[0])
        place[self._kept] = np.arange(self.shape[0])
        padded = xp.concat((Y, xp.zeros_like(Y[:1, :])))
        return self._unmix(xp.take(padded, xp.asarray(place, device=device(Y)), axis=0)) * self._factor


class SRTT(_Mixing):
    """Random signs and a cosine transform, repeated, then a uniform sample of the rows; ``n log(n) c`` operations.

    One round fails for some coherent subspaces; two rounds are as reliable as `Gaussian`.

    Parameters
    ----------
    d, n : int
        Shape, ``d <= n``: the operator maps vectors of length `n` to length `d`.
    rounds : int
        Number of times that signs and transform are applied.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines signs and sample.
    dtype : dtype
        float32 or float64; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> S = rnla.sketch.SRTT(256, 256, seed=0)  # nothing is left out: an orthogonal matrix
    >>> np.allclose(S.H @ (S @ np.eye(256)), np.eye(256))
    True
    """

    def __init__(self, d, n, rounds=2, *, seed=None, dtype=np.float64, scale="isometry"):
        super().__init__(d, n, seed=seed, dtype=dtype, scale=scale)
        if not isinstance(rounds, numbers.Integral) or rounds < 1:
            raise ValueError(f"{self._name}: rounds must be an int of at least 1; got {rounds!r}.")
        self.rounds = int(rounds)

    def _mix(self, A, offset):
        X = self._signed(A, offset)
        for column in range(1, self.rounds):
            X = dct(X) * self._signs(X, column, 0, self.shape[1])
        return dct(X)

    def _unmix(self, X):
        for column in reversed(range(self.rounds)):
            X = idct(X) * self._signs(X, column, 0, self.shape[1])
        return X


class SRHT(_Mixing):
    """Random signs and a Walsh-Hadamard transform, then a uniform sample of the rows; ``n log(n) c`` operations.

    Rows are padded with zeros to a power of two. With one round of mixing, prefer `SRTT` for coherent data.

    Parameters
    ----------
    d, n : int
        Shape, `d` at most the next power of two to `n`: the operator maps vectors of length `n` to length `d`.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines signs and sample.
    dtype : dtype
        float32 or float64; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> S = rnla.sketch.SRHT(40, 1000, seed=0)
    >>> np.allclose(abs(S.to_array()), 1 / np.sqrt(40))
    True
    """

    def __init__(self, d, n, *, seed=None, dtype=np.float64, scale="isometry"):
        super().__init__(d, n, seed=seed, dtype=dtype, scale=scale)

    def _mixed_length(self):
        return 1 << (self.shape[1] - 1).bit_length()

    def _mix(self, A, offset):
        return kernels.fwht(self._signed(A, offset)) * self._mixed**-0.5

    def _unmix(self, X):
        X = kernels.fwht(X)[: self.shape[1], :] * self._mixed**-0.5
        return X * self._signs(X, 0, 0, self.shape[1])
