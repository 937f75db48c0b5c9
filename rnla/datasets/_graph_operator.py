"""Random graphs and the diffusion operators on them."""

from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import eigsh

from rnla._backend import check_rng

KINDS = ("erdos_renyi", "block_model", "barabasi_albert", "swiss_roll")
DENSE = 1500  # nodes up to which all eigenvalues are computed, by LAPACK


class GraphOperator(NamedTuple):
    """A symmetric operator on the nodes of a graph, in factors: ``(U * s) @ Vh``.

    Examples
    --------
    >>> graph = rnla.datasets.graph_operator("erdos_renyi", 30, p=0.2, k=4, rng=0)
    >>> graph.U.shape, graph.adjacency.shape
    ((30, 4), (30, 30))
    """

    adjacency: scipy.sparse.csr_array  # (n, n), symmetric, a loop at nodes without neighbours
    U: np.ndarray  # (n, k), orthonormal columns
    s: np.ndarray  # (k,), non-negative, non-increasing
    Vh: np.ndarray  # (k, n): rows of U, with the signs of the eigenvalues
    positions: np.ndarray | None  # (n, 2) or (n, 3), where the graph has some

    def to_dense(self):
        """Return the operator as an array of shape (n, n)."""
        return (self.U * self.s) @ self.Vh


def graph_operator(kind, n=None, *, operator="heat", tau=1.0, k=None, p=0.15, sizes=None, p_in=0.4, p_out=0.05,
                   n_edges=3, n_neighbors=8, rng=None):  # fmt: skip
    """Make an operator that spreads what is on the nodes of a graph along its edges.

    Parameters
    ----------
    kind : {"erdos_renyi", "block_model", "barabasi_albert", "swiss_roll"} or sparse matrix
        A random graph, or the adjacency matrix of one's own, symmetric with entries that are not negative.
        ``erdos_renyi`` has each edge with probability `p`; ``block_model`` with `p_in` within the groups `sizes` and
        `p_out` between them; ``barabasi_albert`` grows with `n_edges` for every new node, preferably to those that
        have many; ``swiss_roll`` joins points of a rolled-up surface with their `n_neighbors` nearest.
    n : int, optional
        Number of nodes, of a random graph but for the block model.
    operator : {"heat", "random_walk"}
        ``exp(-tau L)`` with the normalised Laplacian ``L = I - D^(-1/2) W D^(-1/2)``, or ``I - L``.
    tau : float
        Time of the heat flow.
    k : int, optional
        Keep so many eigenvalues, those of the largest modulus; all by default.
    p, sizes, p_in, p_out, n_edges, n_neighbors
        Of the random graphs, see `kind`.
    rng : None, int or numpy.random.Generator
        Source of randomness.

    Returns
    -------
    GraphOperator
        ``adjacency, U, s, Vh, positions``.

    Examples
    --------
    >>> graph = rnla.datasets.graph_operator("block_model", sizes=(10, 10), k=2, rng=0)
    >>> float(np.round(graph.s[0], 6))  # heat is conserved along the leading eigenvector
    1.0
    """
    caller = "rnla.datasets.graph_operator"
    check_rng(rng, caller)
    rng = np.random.default_rng(rng)
    if operator not in ("heat", "random_walk"):
        raise ValueError(f"{caller}: operator must be 'heat' or 'random_walk'; got {operator!r}.")
    positions = None
    if scipy.sparse.issparse(kind):
        W = kind
    elif kind == "erdos_renyi":
        W = _blocks(rng, (_count(n, caller),), p, p)
    elif kind == "block_model":
        if sizes is None:
            raise ValueError(f"{caller}: sizes must be given for kind='block_model'.")
        W = _blocks(rng, tuple(sizes), p_in, p_out)
    elif kind == "barabasi_albert":
        W = _preferential(rng, _count(n, caller), n_edges)
    elif kind == "swiss_roll":
        W, positions = _swiss_roll(rng, _count(n, caller), n_neighbors)
    else:
        raise ValueError(f"{caller}: kind must be a sparse matrix or one of {', '.join(KINDS)}; got {kind!r}.")
    W = _with_loops(scipy.sparse.csr_array(W, dtype=float))
    if k is not None and not 1 <= k <= W.shape[0]:
        raise ValueError(f"{caller}: k must be in 1..{W.shape[0]}; got {k}.")
    lam, U = _eigenpairs(W, operator, k)
    if operator == "heat":
        lam = np.exp(tau * (lam - 1))  # of I - L before
    order = np.argsort(-np.abs(lam), kind="stable")[:k]
    lam, U = lam[order], U[:, order]
    return GraphOperator(W, U, np.abs(lam), (U * np.where(lam < 0, -1.0, 1.0)).T, positions)


def _count(n, caller):
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 2:
        raise ValueError(f"{caller}: n must be an integer of at least 2; got {n!r}.")
    return int(n)


def _blocks(rng, sizes, inside, outside):
    """Return a graph with edges of one probability inside groups and another between them."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    n = len(group)
    upper = np.triu(rng.random((n, n)) < np.where(group[:, None] == group[None, :], inside, outside), 1)
    return scipy.sparse.csr_array(upper | upper.T)


def _preferential(rng, n, count):
    """Return a graph that grows: a new node is joined to `count` ends of edges drawn at random."""
    start = min(count + 1, n)
    edges = [(i, j) for i in range(start) for j in range(i)]
    ends = [node for edge in edges for node in edge]
    for node in range(start, n):
        chosen = set()
        while len(chosen) < count:
            chosen.add(int(ends[rng.integers(len(ends))]))
        edges += [(node, other) for other in chosen]
        ends += [end for other in chosen for end in (node, other)]
    rows, cols = np.array(edges).T
    ones = np.ones(2 * len(rows))
    return scipy.sparse.csr_array((ones, (np.concatenate([rows, cols]), np.concatenate([cols, rows]))), shape=(n, n))


def _swiss_roll(rng, n, count):
    """Return the graph of nearest neighbours of points on a rolled-up strip, and the points."""
    from scipy.spatial import cKDTree

    angle, height = 1.5 * np.pi * (1 + 2 * rng.random(n)), 21 * rng.random(n)
    points = np.stack([angle * np.cos(angle), height, angle * np.sin(angle)], axis=1)
    _, near = cKDTree(points).query(points, min(count, n - 1) + 1)
    rows = np.repeat(np.arange(n), near.shape[1] - 1)
    W = scipy.sparse.csr_array((np.ones(rows.size), (rows, near[:, 1:].ravel())), shape=(n, n))
    return W.maximum(W.T), points


def _with_loops(W):
    """Add a loop at every node without an edge: its row could not be normalised."""
    alone = np.asarray(W.sum(axis=1)).ravel() == 0
    return scipy.sparse.csr_array(W + scipy.sparse.diags_array(alone.astype(float))) if alone.any() else W


def _eigenpairs(W, operator, k):
    """Return eigenvalues and vectors of the normalised adjacency: those that the operator makes largest."""
    scale = scipy.sparse.diags_array(np.asarray(W.sum(axis=1)).ravel() ** -0.5)
    N = scipy.sparse.csr_array(scale @ W @ scale)
    n = N.shape[0]
    if k is None or n <= DENSE or k >= n - 1:
        return np.linalg.eigh(N.toarray())
    start = np.sqrt(np.asarray(W.sum(axis=1)).ravel())
    return eigsh(N, k, which="LA" if operator == "heat" else "LM", v0=start + 0.1, tol=1e-13)
