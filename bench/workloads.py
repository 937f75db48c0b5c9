"""The matrices of the SVD benchmark, each with its leading singular values."""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg

import rnla
from bench import accuracy

RANK = 50
SHAPES = ((10000, 2000), (2000, 10000), (4000, 4000))
SPECTRA = {
    "1/i": lambda i: 1 / i,
    "i^-0.5": lambda i: i**-0.5,
    "exp(-i/20)+1e-3": lambda i: np.exp(-i / 20) + 1e-3,
    "50 ones over 0.1": lambda i: np.where(i <= 50, 1.0, 0.1),
}


@dataclass(frozen=True)
class Workload:
    """One matrix to decompose."""

    name: str
    kind: str  # "dense" or "sparse"
    make: object  # () -> matrix in float64
    dtype: type
    k: int
    known_sigma: object = None  # exact singular values, where the construction gives them

    @property
    def title(self):
        """Name and dtype."""
        return f"{self.name} {np.dtype(self.dtype).name}"


@dataclass(frozen=True)
class Problem:
    """A workload in memory, with what its results are compared with."""

    workload: Workload
    A: object
    sigma: np.ndarray  # the k leading singular values
    norm_sq: float

    def errors(self, U, S, Vh):
        """Compare a result with the best possible one."""
        return accuracy.errors(self.A, U, S, Vh, self.sigma, self.norm_sq)


def workloads(scale=1.0):
    """Return all workloads of the table; `scale` shrinks them, and the rank, for a test of the benchmark itself."""
    k = RANK if scale == 1 else 5
    dense = [
        dense_workload(tuple(int(side * scale) for side in shape), name, dtype, k)
        for shape in SHAPES
        for name in SPECTRA
        for dtype in (np.float64, np.float32)
    ]
    return dense + [
        Workload(name, "sparse", make, dtype, k)
        for name, make in (
            ("document-term", functools.partial(document_term, scale)),
            ("power-law graph", functools.partial(power_law_graph, scale)),
        )
        for dtype in (np.float64, np.float32)
    ]


def load(workload):
    """Make the matrix of a workload and its reference."""
    A = workload.make().astype(workload.dtype, copy=False)
    norm_sq = accuracy.norm_squared(A)
    sigma = workload.known_sigma
    if sigma is None:
        sigma = scipy.sparse.linalg.svds(
            A.astype(np.float64), workload.k, tol=0, return_singular_vectors=False, rng=np.random.default_rng(0)
        )
        sigma = np.sort(sigma)[::-1]
    return Problem(workload, A, np.asarray(sigma[: workload.k], dtype=np.float64), norm_sq)


def dense_workload(shape, spectrum, dtype, k):
    """Return the workload with prescribed singular values."""
    sigma = SPECTRA[spectrum](np.arange(1.0, min(shape) + 1))
    return Workload(
        f"{shape[0]}x{shape[1]} {spectrum}", "dense", functools.partial(dense, shape, spectrum), dtype, k, sigma
    )


@functools.lru_cache(maxsize=1)
def dense(shape, spectrum):
    """Return the matrix of a dense workload in float64; the last one is kept for the other precision."""
    m, n = shape
    if m < n:
        U, V = bases((n, m))
        return np.ascontiguousarray(((U * SPECTRA[spectrum](np.arange(1.0, m + 1))) @ V.T).T)
    U, V = bases(shape)
    return (U * SPECTRA[spectrum](np.arange(1.0, n + 1))) @ V.T


@functools.lru_cache(maxsize=1)
def bases(shape):
    """Return singular vectors of uniform direction; one pair serves all spectra of a shape."""
    m, n = shape
    return rnla.testing.haar_basis(m, n, rng=0), rnla.testing.haar_basis(n, n, rng=1)


@functools.lru_cache(maxsize=1)
def document_term(scale):
    """Return word counts of documents with Zipf's law, 100000 x 30000 and 4e6 non-zeros at scale 1."""
    shape = int(100_000 * scale), int(30_000 * scale)
    return rnla.datasets.document_term(*shape, int(4_000_000 * scale), rng=0, dtype=np.float64)


@functools.lru_cache(maxsize=1)
def power_law_graph(scale):
    """Return the adjacency matrix of a graph with a power law of degrees, 100000 vertices at scale 1."""
    n = int(100_000 * scale)
    graph = rnla.datasets.power_law_graph(n, int(1_000_000 * scale), exponent=2.2, rng=0)
    return scipy.sparse.csr_array(graph).astype(np.float64)
