"""Problems of robust PCA whose answer is known."""

from typing import NamedTuple

import numpy as np

from rnla._backend import check_rng


class RobustPCAProblem(NamedTuple):
    """A matrix, and what it is the sum of.

    Examples
    --------
    >>> problem = rnla.datasets.robust_pca_problem(30, 20, 2, outliers=0.1, rng=0)
    >>> int(problem.outliers.sum()), bool((problem.A == problem.low_rank)[~problem.outliers].all())
    (60, True)
    """

    A: np.ndarray  # (m, n)
    low_rank: np.ndarray  # (m, n)
    outliers: np.ndarray  # (m, n) of bool: where A has an arbitrary value added
    mask: np.ndarray | None  # (m, n) of bool: where A is observed


def robust_pca_problem(m, n, k, *, outliers=0.1, size=1.0, condition=None, noise=0.0, row_scale=0.0, missing=0.0,
                       dtype=float, rng=None):  # fmt: skip
    """Draw a matrix of rank `k`, some of whose entries have arbitrary values added.

    ``L = X Y^T`` with standard normal factors, as in the experiments of [1]_.

    Parameters
    ----------
    m, n, k : int
        Shape and rank.
    outliers : float
        Share of the entries that are outliers, exactly ``round(outliers * m * n)`` of them.
    size : float
        Values added are uniform between -`size` and `size` times the mean modulus of L.
    condition : float, optional
        Ratio of the largest to the smallest of k singular values in geometric progression, the largest ``sqrt(m n)``.
    noise : float
        Standard deviation of Gaussian noise on all entries, relative to the mean modulus of L.
    row_scale : float
        Every row is scaled by ``exp(row_scale * g)`` with a standard normal g.
    missing : float
        Share of the entries that are not observed; they are NaN.
    dtype : dtype
        Of the matrix; complex ones have complex factors and outliers.
    rng : None, int or numpy.random.Generator
        Source of randomness.

    Returns
    -------
    RobustPCAProblem
        ``A, low_rank, outliers, mask``; `mask` is None if nothing is missing.

    References
    ----------
    .. [1] Cai, Cai, Wei, J. Mach. Learn. Res. 20 (2019), section 3.

    Examples
    --------
    >>> problem = rnla.datasets.robust_pca_problem(100, 80, 3, outliers=0.2, rng=0)
    >>> problem.A.shape, int(np.linalg.matrix_rank(problem.low_rank)), int(problem.outliers.sum())
    ((100, 80), 3, 1600)
    """
    caller = "rnla.datasets.robust_pca_problem"
    _check_sizes(m, n, k, caller)
    for name, value in (("outliers", outliers), ("missing", missing)):
        if not 0 <= value <= 1:
            raise ValueError(f"{caller}: {name} must be a share in [0, 1]; got {value}.")
    dtype = np.dtype(dtype)
    if dtype.kind not in "fc":
        raise TypeError(f"{caller}: dtype must be real or complex floating; got {dtype}.")
    check_rng(rng, caller)
    random = np.random.default_rng(rng)

    def normal(*shape):
        X = random.standard_normal(shape)
        return X + 1j * random.standard_normal(shape) if dtype.kind == "c" else X

    if condition is None:
        L = normal(m, k) @ normal(k, n)
    else:
        U, V = (np.linalg.qr(normal(side, k))[0] for side in (m, n))
        L = (U * (np.sqrt(m * n) * np.geomspace(1, 1 / condition, k))) @ V.conj().T
    L *= np.exp(row_scale * random.standard_normal((m, 1)))
    mean = np.abs(L).mean()
    where = np.zeros(m * n, bool)
    where[random.choice(m * n, round(outliers * m * n), replace=False)] = True
    where = where.reshape(m, n)
    A = L + noise * mean * normal(m, n) if noise else L.copy()
    values = random.uniform(-size, size, where.sum()) * mean
    if dtype.kind == "c":
        values = values * np.exp(2j * np.pi * random.random(where.sum()))
    A[where] += values
    mask = None
    if missing:
        mask = random.random((m, n)) >= missing
        A[~mask] = np.nan
    return RobustPCAProblem(A.astype(dtype), L.astype(dtype), where, mask)


def _check_sizes(m, n, k, caller):
    for name, value in (("m", m), ("n", n), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{caller}: {name} must be an integer; got {type(value).__name__} {value!r}.")
    if min(m, n) < 1 or not 1 <= k <= min(m, n):
        raise ValueError(f"{caller}: k must be in 1..min(m, n) with positive m, n; got m={m}, n={n}, k={k}.")
