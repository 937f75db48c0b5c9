"""Matrices with known singular values, drawn by Hypothesis, and the rounding that results on them may show."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from rnla.testing import matrix_with_spectrum, spectrum

DTYPES = ("float32", "float64", "complex64", "complex128")
NAMED = ("slow", "poly1", "poly2", "exp", "step", "flat")
NASTY = ("low rank", "ties", "graded", "one large", "zero")


class Problem(NamedTuple):
    """A dense matrix, its singular values by LAPACK in double precision, a rank and a seed."""

    A: np.ndarray
    sigma: np.ndarray
    k: int
    seed: int

    @property
    def eps(self):
        return float(np.finfo(self.A.dtype).eps)

    @property
    def rounding(self):
        """Error of a backward stable method: a modest multiple of eps times the norm."""
        return rounding(self.A, self.sigma[0])


def rounding(A, scale):
    return 50 * float(np.finfo(A.dtype).eps) * max(A.shape) ** 0.5 * scale


def values(name, n):
    """Return `n` singular values of a named spectrum."""
    j = np.arange(n)
    if name == "low rank":
        return np.where(j < (n + 2) // 3, 1.0 / (1 + j), 0.0)
    if name == "ties":
        return 2.0 ** -(j // 4)
    if name == "graded":
        return np.logspace(0, -12, n)
    if name == "one large":
        return np.where(j == 0, 1e6, 1.0)
    if name == "zero":
        return np.zeros(n)
    return spectrum(name, n)


def diagonals(rows, columns, values):
    """Return ``(row, column, value)`` for all rows and columns, with values that repeat along the diagonals.

    Where both sides are at least as long as `values`, all pairs of a value with a row or a column occur: what depends
    on two parameters at a time is tested without the product of all three.
    """
    return [
        (row, column, values[(i + j) % len(values)]) for i, row in enumerate(rows) for j, column in enumerate(columns)
    ]


def singular_values(A):
    return np.linalg.svd(A.astype(np.promote_types(A.dtype, np.float64)), compute_uv=False)


@st.composite
def problems(draw, *, names=NAMED + NASTY, dtypes=DTYPES, sides=(1, 50), tall=False):
    """Draw a `Problem`; with ``tall``, one that has at least as many rows as columns."""
    m, n = draw(st.integers(*sides)), draw(st.integers(*sides))
    if tall:
        m, n = max(m, n), min(m, n)
    sigma = values(draw(st.sampled_from(names)), min(m, n))
    seed = draw(st.integers(0, 2**32 - 1))
    A = matrix_with_spectrum(m, n, sigma, rng=seed, dtype=np.dtype(draw(st.sampled_from(dtypes))))
    return Problem(A, singular_values(A), draw(st.integers(1, min(m, n))), seed)
