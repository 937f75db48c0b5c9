"""How the eigenvalues of a Hermitian matrix are distributed, by stochastic Lanczos quadrature."""

import math
from dataclasses import dataclass

import numpy as np

from rnla._backend import adjoint, key_from_rng, to_host
from rnla._eigh import eigh
from rnla._matrix import as_matrix
from rnla._probing import probes, square
from rnla._quadrature import (
    all_affordable,
    check_quadrature,
    dense_eigenvalues,
    hermitian_product,
    lanczos,
)
from rnla._rangefinder import check_count, in_range
from rnla._tall import column_squares, like

FOUND = 1e-3  # largest residual, relative to the largest eigenvalue, of a Ritz pair that is taken for one of A


@dataclass(frozen=True)
class SpectralDensity:
    """How the eigenvalues of a Hermitian matrix are distributed, as point masses.

    Attributes
    ----------
    nodes : ndarray
        Places of the masses, ascending.
    weights : ndarray
        Their sizes: shares of the eigenvalues, not negative, with sum 1.
    n : int
        Number of eigenvalues.
    width : float
        What the quadrature resolves: the default of `density`.
    method : str
        ``"slq"``, or ``"exact"`` where the nodes are the eigenvalues.
    matvecs, passes : int
        Number of vectors multiplied by A, and of times all its entries were read.

    Examples
    --------
    >>> result = rnla.spectral_density(np.diag([1.0, 2.0, 2.0, 5.0]))
    >>> result.count(1.5, 3.0)
    2.0
    """

    nodes: np.ndarray
    weights: np.ndarray
    n: int
    width: float
    method: str
    matvecs: int
    passes: int

    def density(self, x, width=None):
        """Return the density at points: every mass spread to a normal distribution.

        Parameters
        ----------
        x : array_like
            Points.
        width : float, optional
            Standard deviation of the distribution.

        Returns
        -------
        ndarray
            Of the shape of `x`; its integral is 1.
        """
        x, width = np.asarray(x, dtype=np.float64), self.width if width is None else width
        z = (x[..., None] - self.nodes) / width
        return np.exp(-(z**2) / 2) @ self.weights / (math.sqrt(2 * math.pi) * width)

    def count(self, low, high):
        """Return the number of eigenvalues in an interval, ends included.

        Parameters
        ----------
        low, high : float
            Ends of the interval.

        Returns
        -------
        float
            Not rounded.
        """
        return float(self.n * np.sum(self.weights[(self.nodes >= low) & (self.nodes <= high)]))

    def __repr__(self):
        return (
            f"SpectralDensity({len(self.nodes)} nodes in [{self.nodes[0]:.4g}, {self.nodes[-1]:.4g}], n={self.n}, "
            f"{self.method}, {self.matvecs} products)"
        )


def spectral_density(A, *, num_probes=10, steps=50, rank=0, rng=None):
    """Estimate how the eigenvalues of a Hermitian matrix are distributed.

    Parameters
    ----------
    A : Hermitian matrix of any kind that `rnla.svd` accepts, shape (n, n)
        Only products with it are used. Up to ``n = num_probes * steps``, at most 1000, the answer is exact.
    num_probes : int
        Number of random vectors; the error of a count falls as ``num_probes**-0.5``.
    steps : int
        Steps of each Lanczos iteration: its nodes resolve the spectrum to about its width over `steps`.
    rank : int
        Leading eigenpairs to be looked for and, where they are found, taken out and added exactly.
    rng : None, int or numpy.random.Generator
        Source of the random vectors.

    Returns
    -------
    SpectralDensity
        Point masses; ``.density(x)`` spreads them, ``.count(low, high)`` sums them.

    Raises
    ------
    ValueError
        If `A` is not square, Hermitian and finite, or an argument is out of range.
    TypeError
        If `A` or another argument is of an unsupported kind.

    References
    ----------
    .. [1] Lin, Saad, Yang, SIAM Review 58 (2016).  [2] Chen, Trogdon, Ubaru, ICML 2021, arXiv 2105.06595.

    Examples
    --------
    >>> A = np.diag(np.linspace(-1.0, 1.0, 1000))
    >>> result = rnla.spectral_density(A, steps=30, rng=0)
    >>> abs(result.count(-2, 0) / 1000 - 0.5) < 0.05
    True
    """
    caller = "rnla.spectral_density"
    M = square(as_matrix(A, caller), caller)
    check_count(rank, "rank", caller, least=0)
    check_quadrature(num_probes, steps, rank, M, caller)
    key = key_from_rng(rng, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs

    def compute(M, _):
        n = M.shape[0]
        if all_affordable(n, num_probes, steps):
            return "exact", dense_eigenvalues(M, key, caller), np.full(n, 1.0 / n)
        product = hermitian_product(M, caller)
        X = probes(M, "sphere", key, num_probes, 0)
        product(X[:, :2])  # checks A, for an error that names this function
        ritz = np.zeros(0)
        if rank:
            pairs = eigh(M, rank, tol=FOUND, check=False, rng=key)
            # A pair that is not one of A would be a mass at the wrong place.
            found = np.nonzero(pairs.info.residuals <= FOUND * np.abs(to_host(pairs.eigenvalues)).max())[0]
            U, ritz = pairs.eigenvectors @ like(np.eye(rank)[:, found], X), to_host(pairs.eigenvalues).real[found]
            X = X - U @ (adjoint(U) @ X)
        rules = lanczos(product, M, X / like(np.sqrt(column_squares(X)), X), steps, caller)
        share = (n - len(ritz)) / n / num_probes
        nodes = np.concatenate([ritz, *(rule.nodes for rule in rules)])
        weights = np.concatenate([np.full(len(ritz), 1.0 / n), *(share * rule.weights for rule in rules)])
        return "slq", nodes, weights

    (method, nodes, weights), factor = in_range(compute, M)
    order = np.argsort(nodes)
    nodes = nodes[order] / factor
    width = (nodes[-1] - nodes[0]) / steps or (abs(nodes[0]) or 1.0) / steps
    spent = M.counter.matvecs - matvecs, M.counter.passes - passes
    return SpectralDensity(nodes, weights[order], M.shape[0], float(width), method, *spent)
