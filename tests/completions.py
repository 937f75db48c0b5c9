"""Problems of matrix completion, and their solution by dense linear algebra, for several test files."""

import numpy as np

import rnla
from rnla._entry_space import EntrySpace


def problem_of(shape, k, oversampling, condition=1.0, seed=0, **options):
    """Return a problem and the dense matrix."""
    problem = rnla.datasets.completion_problem(
        shape, k, oversampling=oversampling, condition=condition, rng=seed, **options
    )
    return problem, (problem.U * problem.S) @ problem.Vh


def solved(problem, k=None, **options):
    """Complete the entries of a problem."""
    options = {"rng": 0, **options}
    return rnla.complete((problem.rows, problem.cols, problem.values), k, shape=problem.shape, **options)


def relative_error(found, exact):
    """Return the relative error of a result in the Frobenius norm."""
    return np.linalg.norm(found.to_dense() - exact) / np.linalg.norm(exact)


def space_of(problem):
    """Return the `EntrySpace` of a problem."""
    return EntrySpace(problem.rows.astype(np.int32), problem.cols.astype(np.int32), problem.shape)


def lifting(space):
    """Return the matrix that maps all entries of the lifted matrix to the samples: ``P G^*``, dense."""
    n = space.shape[1]
    rows = []
    for e in range(space.count):
        unit = np.zeros(space.count)
        unit[e] = 1.0
        rows.append(space.right(unit, np.eye(n)).ravel())
    return np.array(rows)


def weighted_least_squares(space, samples, U, s, V, eps, lam=0.0, p=0.0):
    """Solve one weighted least-squares problem with explicit weights; return the lifted matrix."""
    m, n = space.shape
    left = np.concatenate([U, np.linalg.svd(U)[0][:, U.shape[1] :]], axis=1)
    right = np.concatenate([V, np.linalg.svd(V)[0][:, V.shape[1] :]], axis=1)
    si, sj = (np.concatenate([s, np.full(side - len(s), eps)]) for side in (m, n))
    H = np.outer(si, sj) if p == 0 else ((si[:, None] ** p + sj[None, :] ** p) / 2) ** ((2 - p) / p)
    basis = np.kron(left, right)  # of vec of rows
    weight = (basis / H.ravel()) @ basis.T
    P = lifting(space)
    if space.structured:  # coordinates of the space: its average over blocks
        G = structure(space)
        weight, P = G.T @ weight @ G, P @ G
    else:
        G = np.eye(m * n)
    if lam == 0:  # minimise x W x with P x = y
        inverse = np.linalg.inv(weight)
        x = inverse @ P.T @ np.linalg.solve(P @ inverse @ P.T, samples)
    else:
        D = np.diag(1 / (lam * np.broadcast_to(space.multiplicity, samples.shape)))
        x = np.linalg.solve(weight + P.T @ D @ P, P.T @ D @ samples)
    return (G @ x).reshape(m, n)


def structure(space):
    """Return G: an orthonormal basis of the block Hankel matrices in the order of the rows of the lifted matrix."""
    n, (d1, d2) = space.n, space.blocks
    columns = []
    for t in range(space.n_steps):
        blocks = [(a, t - a) for a in range(d1) if 0 <= t - a < d2]
        for i in range(n):
            for j in range(n):
                X = np.zeros((n, d1, n, d2))
                for a, b in blocks:
                    X[i, a, j, b] = len(blocks) ** -0.5
                columns.append(X.ravel())
    return np.array(columns).T
