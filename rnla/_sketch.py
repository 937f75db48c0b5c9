"""Sketching operators: random matrices of few rows that keep the geometry of a subspace.

Each is an operator `S` of shape (d, n) with products ``S @ A``, ``A @ S.T``, ``S.H @ Y``; it stores a key and makes
the entries it needs. ``scale='isometry'`` (default) means ``E |S x|**2 = |x|**2``, ``scale='raw'`` entries of unit
variance. Products have the library, device and precision of the data. (Where a library refuses a foreign right
operand, as ``array_api_strict`` does, write ``(S @ A.T).T`` for ``A @ S.T``.)

References
----------
.. [1] Martinsson, Tropp, "Randomized numerical linear algebra", Acta Numerica 29 (2020), sections 8 and 9.
.. [2] Chenakkod, Derezinski, Dong, Rudelson, "Optimal embedding dimension for sparse subspace embeddings" (2024).
.. [3] Camano, Epperly, Meyer, Tropp, "Faster linear algebra algorithms with structured random matrices" (2025).
"""

import numpy as np

from rnla._sketch_mixing import SRHT, SRTT
from rnla._sketch_operator import Operator
from rnla._sketch_sparse import CountSketch, RowSample, SparseSign, SparseStack
from rnla._test_matrix import test_matrix

__all__ = [
    "SRHT",
    "SRTT",
    "CountSketch",
    "Gaussian",
    "Rademacher",
    "RowSample",
    "SparseSign",
    "SparseStack",
    "Uniform",
    "test_matrix",
]


class _Dense(Operator):
    def rows(self, a, b, *, xp=np, device=None):
        self._check_range(a, b, 0)
        return self._block(0, self.shape[1], a, b, xp, device)

    def cols(self, a, b, *, xp=np, device=None):
        self._check_range(a, b, 1)
        return self._block(a, b, 0, self.shape[0], xp, device)

    def _block(self, lo, hi, a, b, xp, device):
        # The long side of a test matrix is its first: S is its transpose, and more rows of S keep the first ones.
        dtype = getattr(xp, self.dtype.name)
        block = test_matrix(self._kind, self.key, hi - lo, b - a, xp=xp, device=device, dtype=dtype, start=a, row=lo)
        return block.T if self._unit == 1.0 else block.T * self._unit


class Gaussian(_Dense):
    """Independent normal entries: the reference, with the best understood guarantees; ``2 d n c`` operations.

    A larger `d` with the same seed keeps the rows of the smaller one (with ``scale='raw'`` exactly).

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to length `d`.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the entries.
    dtype : dtype
        float32, float64, complex64 or complex128; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> S = rnla.sketch.Gaussian(200, 1000, seed=0)
    >>> x = np.ones(1000)
    >>> bool(abs(np.linalg.norm(S @ x) / np.linalg.norm(x) - 1) < 0.2)
    True
    >>> np.array_equal(S.cols(10, 20), S.to_array()[:, 10:20])
    True
    """

    _kind = "gaussian"


class Rademacher(_Dense):
    """Independent entries +1 and -1 before scaling; in the complex case points of the unit circle.

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to length `d`.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the entries.
    dtype : dtype
        float32, float64, complex64 or complex128; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> np.unique(rnla.sketch.Rademacher(4, 50, seed=0, scale="raw").to_array()).tolist()
    [-1.0, 1.0]
    """

    _kind = "rademacher"


class Uniform(_Dense):
    """Independent entries, uniform on ``(-sqrt(3), sqrt(3))`` before scaling.

    Parameters
    ----------
    d, n : int
        Shape: the operator maps vectors of length `n` to length `d`.
    seed : None, int, numpy.random.Generator or numpy.random.SeedSequence
        Source of the 64-bit key that determines the entries.
    dtype : dtype
        float32, float64, complex64 or complex128; the data may be of another one.
    scale : {'isometry', 'raw'}
        Keep lengths in expectation, or entries of unit variance.

    Examples
    --------
    >>> S = rnla.sketch.Uniform(4, 50, seed=0, scale="raw")
    >>> bool(abs(S.to_array()).max() < np.sqrt(3))
    True
    """

    _kind = "uniform"
