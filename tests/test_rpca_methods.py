"""The other methods of robust PCA: each is its textbook iteration, recovers where it should, and ends honestly."""

import math
import warnings

import array_api_compat
import dask.array as da
import numpy as np
import pytest

import rnla
from rnla import _altproj, _pcp
from rnla._backend import to_host
from rnla._errors import ConvergenceWarning
from rnla._ircur import cur_factors
from rnla._progress import Monitor
from rnla._rpca_entries import Entries
from rnla.datasets import robust_pca_problem
from rnla.kernels import _threshold_pass, threshold_pass
from rnla.testing import assert_orthonormal

CONVEX = ("ialm", "admm")
STREAMED = ("accaltproj", "altproj", "scaledgd")


def solve(A, k, method, **options):
    return rnla.robust_pca(A, None if method in CONVEX else k, method=method, rng=0, **options)


def error(result, problem):
    L = to_host(result.low_rank())
    return np.linalg.norm(L - problem.low_rank) / np.linalg.norm(problem.low_rank)


@pytest.mark.parametrize(
    ("method", "options", "outliers"),
    [
        ("ircur", {}, 0.3),
        ("ircur", {"resample": False}, 0.1),
        ("accaltproj", {}, 0.5),
        ("accaltproj", {"decay": 0.9}, 0.6),
        ("altproj", {}, 0.1),
        ("scaledgd", {}, 0.5),
        ("ialm", {}, 0.1),
    ],
)
@pytest.mark.parametrize("size", [1.0, 5.0])
def test_recovers_the_matrix_in_its_regime(method, options, outliers, size):
    problem = robust_pca_problem(300, 250, 3, outliers=outliers, size=size, rng=1)
    result = solve(problem.A, 3, method, **options)
    assert result.converged
    assert result.status == "converged"
    assert result.rank == 3
    assert error(result, problem) < 100 * 1e-6
    assert result.kept_fresh == pytest.approx(1 - outliers, abs=0.02)
    assert_orthonormal(result.U)
    assert_orthonormal(result.Vh.T)
    S = result.sparse(problem.A).toarray() != 0
    wide = np.abs(problem.A - problem.low_rank) > 1e-3 * np.abs(problem.low_rank).mean()
    assert not (S & ~problem.outliers).any()
    assert S[wide].all()


def test_plain_descent_leaves_out_what_is_large_for_its_row_and_column():
    problem = robust_pca_problem(200, 150, 2, outliers=0.05, rng=1)
    result = solve(problem.A, 2, "gd", outliers=0.1)  # no row or column has more
    assert result.converged
    assert error(result, problem) < 100 * 1e-6
    z_row, z_col = result.threshold
    residual = np.abs(problem.A - result.low_rank())
    assert result.sparse(problem.A).nnz == (residual > np.maximum(z_row[:, None], z_col)).sum()


@pytest.mark.parametrize("method", CONVEX)
@pytest.mark.parametrize("share", [0.05, 0.1])
def test_principal_component_pursuit_finds_rank_and_support(method, share):
    # Candes, Li, Ma, Wright (2011), section 4.1, at a smaller size.
    n, random = 200, np.random.default_rng(3)
    k = n // 20
    L = random.standard_normal((n, k)) @ random.standard_normal((k, n)) / n
    S, where = np.zeros(n * n), random.choice(n * n, round(share * n * n), replace=False)
    S[where] = random.choice([-1.0, 1.0], len(where))
    S = S.reshape(n, n)
    result = rnla.robust_pca(L + S, method=method, rng=0)
    assert result.converged
    assert result.rank == k
    assert np.linalg.norm(result.low_rank() - L) < 1e-5 * np.linalg.norm(L)
    found = result.sparse(L + S).toarray()
    assert ((found != 0) == (S != 0)).all()
    # A - L - S = O(tol ||L||_F) entry by entry.
    assert np.abs(found - S).max() < 10 * 1e-6 * np.linalg.norm(L)


def dense_ialm(A, tol, count):
    """Iterate with full singular value decompositions and stored L, S and Y."""
    lam, norm = max(A.shape) ** -0.5, np.linalg.norm(A, 2)
    mu, S = 1.25 / norm, np.zeros_like(A)
    Y = A / max(norm, np.abs(A).max() / lam)
    most = 1e7 * mu
    for iteration in range(1, count + 1):  # noqa: B007 - returned
        U, s, Vh = np.linalg.svd(A - S + Y / mu, full_matrices=False)
        L = (U * np.maximum(s - 1 / mu, 0)) @ Vh
        X = A - L + Y / mu
        S = np.sign(X) * np.maximum(np.abs(X) - lam / mu, 0)
        Y = Y + mu * (A - L - S)
        mu = min(1.5 * mu, most)
        if np.linalg.norm(A - L - S) < tol * np.linalg.norm(L):
            break
    return L, S, iteration


def test_pursuit_with_random_sketches_is_that_with_full_decompositions():
    problem = robust_pca_problem(240, 200, 4, outliers=0.1, rng=5)
    L, S, n_iter = dense_ialm(problem.A, 1e-7, 100)
    result = rnla.robust_pca(problem.A, method="ialm", tol=1e-7, rng=0)
    assert result.n_iter == n_iter
    assert result.rank == 4
    assert np.linalg.norm(result.low_rank() - L) < 1e-6 * np.linalg.norm(L)
    found = result.sparse(problem.A).toarray()
    assert np.linalg.norm(found - S) < 1e-6 * np.linalg.norm(L)
    # Entries of S that are no larger than what A - L - S leaves elsewhere are not told from it.
    missed = (found == 0) & (S != 0)
    assert np.abs(S[missed]).max(initial=0) <= 2 * result.threshold[0][0]


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_accelerated_projections_without_forming_anything_are_the_dense_formula(dtype, monkeypatch):
    monkeypatch.setattr("rnla._rpca_entries.BLOCK_BYTES", 8 * 80 * 33)
    m, n, k, decay = 120, 80, 3, 0.7
    problem = robust_pca_problem(m, n, k, outliers=0.2, size=3.0, dtype=dtype, rng=2)
    A, points, bounds = problem.A, [], []
    step, note = _altproj.retract_and_next, _altproj.Run.note

    def recorded(x, xi):
        points.append(x)
        return step(x, xi)

    def noted(run, z, sums, **settled):
        bounds.append(z)
        return note(run, z, sums, **settled)

    monkeypatch.setattr(_altproj, "retract_and_next", recorded)
    monkeypatch.setattr(_altproj.Run, "note", noted)
    with pytest.warns(ConvergenceWarning):
        result = rnla.robust_pca(A, k, method="accaltproj", max_iter=5, rng=0)
    x, z = points[0], bounds[0]
    U, s, V, beta = x.U, x.s, x.V, 0.5 * (m * n) ** -0.25
    assert z == pytest.approx(beta * s[0])
    for t in range(1, 6):
        L = (U * s) @ V.conj().T
        Z = np.where(np.abs(A - L) > z, L, A)
        P, Q = U @ U.conj().T, V @ V.conj().T
        projected = P @ Z + Z @ Q - P @ Z @ Q
        W, every, Xh = np.linalg.svd(projected)
        U, s, V = W[:, :k], every[:k], Xh[:k].conj().T
        z = beta * (every[k] + decay**t * s[0])
        if t < 5:
            assert bounds[t] == pytest.approx(z, rel=1e-9)
    L = (U * s) @ V.conj().T
    assert np.linalg.norm(result.low_rank() - L) < 1e-10 * np.linalg.norm(L)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("width", [12, 60])  # full singular value decomposition of U, and iterations from near vectors
def test_factors_are_those_of_the_cur_decomposition(dtype, width):
    random, m, n, k = np.random.default_rng(1), 90, 80, 3

    def normal(*shape):
        X = random.standard_normal(shape)
        return X + 1j * random.standard_normal(shape) if dtype is np.complex128 else X

    P, Q = normal(m, k), normal(n, k)
    E = 1e-3 * normal(m, n)
    I, J = (np.sort(random.choice(side, width, replace=False)) for side in (m, n))
    A = P @ Q.conj().T + E
    left, right = cur_factors(E[:, J], E[I, :].T, P, Q, P[I], Q[J], I)
    U, s, Vh = np.linalg.svd(A[np.ix_(I, J)])
    inverse = (Vh[:k].conj().T / s[:k]) @ U[:, :k].conj().T
    dense = A[:, J] @ inverse @ A[I, :]
    assert np.linalg.norm(left @ right.conj().T - dense) < 1e-8 * np.linalg.norm(dense)


@pytest.mark.parametrize("method", ["ircur", *STREAMED, "ialm"])
@pytest.mark.parametrize("place", ["strict-device1", "torch"], indirect=True)
def test_result_stays_in_the_library_of_the_input(method, place):
    xp, device = place
    problem = robust_pca_problem(120, 100, 2, outliers=0.1, rng=1)
    result = solve(xp.asarray(problem.A, device=device), 2, method)
    assert all(array_api_compat.device(X) == device for X in (result.U, result.s, result.Vh))
    assert error(result, problem) < 100 * 1e-6


@pytest.mark.parametrize("method", ["ircur", *STREAMED, "ialm", "admm"])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.complex128])
def test_dtype_is_kept(method, dtype):
    problem = robust_pca_problem(150, 120, 2, outliers=0.1, dtype=dtype, rng=1)
    result = solve(problem.A, 2, method, tol=1e-5, max_iter=400)
    assert result.converged
    assert result.U.dtype == result.Vh.dtype == dtype
    assert error(result, problem) < 100 * 1e-5


@pytest.mark.parametrize("method", ["ircur", *STREAMED, "ialm"])
@pytest.mark.parametrize("kind", ["dask", "memmap"])
def test_matrices_out_of_memory_give_the_same(method, kind, tmp_path):
    problem = robust_pca_problem(150, 120, 2, outliers=0.1, rng=1)
    if kind == "dask":
        A = da.from_array(problem.A, chunks=(40, 120))
    else:
        np.save(tmp_path / "A.npy", problem.A)
        A = np.load(tmp_path / "A.npy", mmap_mode="r")
    result = solve(A, 2, method)
    assert result.converged
    assert error(result, problem) < 100 * 1e-6
    if method != "ircur":  # which draws from a pool
        assert np.abs(result.low_rank() - solve(problem.A, 2, method).low_rank()).max() < 1e-8 * result.s[0]


@pytest.mark.parametrize("method", ["ircur", "accaltproj", "scaledgd", "ialm"])
def test_entries_under_the_mask_are_never_looked_at(method):
    problem = robust_pca_problem(200, 150, 2, outliers=0.1, missing=0.2, rng=1)
    result = solve(problem.A, 2, method, mask=problem.mask)
    assert result.converged
    assert error(result, problem) < 100 * 1e-6
    other = np.where(problem.mask, problem.A, 1e9)
    assert np.array_equal(solve(other, 2, method, mask=problem.mask).low_rank(), result.low_rank())


@pytest.mark.parametrize("method", ["ircur", *STREAMED])
@pytest.mark.parametrize(
    "options", [{"outliers": 0.9}, {"outliers": 0.1, "noise": 1e-3}, {"outliers": 0.1, "noise": 1e-5}], ids=str
)
def test_a_bound_that_sinks_below_what_fits_is_not_reported_as_converged(method, options):
    problem = robust_pca_problem(200, 150, 3, rng=1, **options)
    with pytest.warns(ConvergenceWarning, match="count as outliers"):
        result = solve(problem.A, 3, method)
    assert not result.converged
    assert result.status == "collapsed"


@pytest.mark.parametrize("method", ["ircur", *STREAMED, "gd", *CONVEX])
def test_too_few_iterations_warn(method):
    problem = robust_pca_problem(60, 50, 2, outliers=0.1, rng=1)
    with pytest.warns(ConvergenceWarning, match="not met in 3 iterations"):
        result = solve(problem.A, 2, method, max_iter=3, **({"outliers": 0.1} if method == "gd" else {}))
    assert not result.converged
    assert result.status == "max_iter"
    assert [record.iteration for record in result.history] == [1, 2, 3]


@pytest.mark.parametrize("method", ["ircur", *STREAMED, "gd", *CONVEX])
def test_zero_nan_and_the_callback(method):
    own = {"outliers": 0.1} if method == "gd" else {}
    result = solve(np.zeros((40, 30)), 2, method, **own)
    assert result.converged
    assert result.status == "zero"
    assert not result.low_rank().any()
    problem = robust_pca_problem(60, 50, 2, outliers=0.1, rng=1)
    A = problem.A.copy()
    A[3, :] = np.nan
    with pytest.raises(ValueError, match="must be finite where it is observed"):
        solve(A, 2, method, **own)

    def stop(record):
        if record.iteration == 2:
            raise StopIteration

    with pytest.warns(ConvergenceWarning, match="stopped by the callback"):
        assert solve(problem.A, 2, method, callback=stop, **own).n_iter == 2


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("accaltproj", {"polish": 1}, "polish is no option of method='accaltproj', which has decay"),
        ("altproj", {"decay": 0.5}, "decay is no option of method='altproj', which has none of its own"),
        ("ircur", {"update": "project"}, "update is no option of method='ircur'"),
        ("riecur", {"lam": 0.1}, "lam is no option of method='riecur'"),
        ("ialm", {"lam": -1.0}, "lam must be finite and not negative"),
        ("scaledgd", {"outliers": 0.1}, "outliers is no option"),
        ("gd", {}, "outliers must be given for method='gd'"),
        ("gd", {"outliers": 1.0}, r"outliers must be a share in \[0, 1\)"),
        ("gd", {"outliers": 0.1, "mask": np.ones((20, 15), bool)}, "mask must be None for method='gd'"),
    ],
)
def test_arguments_that_a_method_does_not_have_are_refused(method, options, message):
    with pytest.raises(ValueError, match=rf"^rnla\.robust_pca: {message}"):
        solve(np.ones((20, 15)), 2, method, **options)


@pytest.mark.parametrize("method", CONVEX)
def test_convex_methods_find_the_rank_themselves(method, monkeypatch):
    with pytest.raises(ValueError, match=r"^rnla\.robust_pca: k must be None for method="):
        rnla.robust_pca(np.ones((20, 15)), 2, method=method)
    monkeypatch.setattr(_pcp, "LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match=r"^rnla\.robust_pca: A must be in memory, or no larger than"):
        rnla.robust_pca(da.ones((20, 15), chunks=(5, 15)), method=method)


def test_rank_is_needed_elsewhere():
    with pytest.raises(TypeError, match=r"^rnla\.robust_pca: k must be an integer"):
        rnla.robust_pca(np.ones((20, 15)), method="accaltproj")
    with pytest.raises(ValueError, match=r"^rnla\.robust_pca: A must be an array in memory for method='gd'"):
        rnla.robust_pca(da.ones((20, 15), chunks=(5, 15)), 1, method="gd", outliers=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("masked", [False, True])
def test_threshold_pass_is_its_formula(dtype, order, masked):
    random, m, n, k = np.random.default_rng(0), 600, 130, 3  # more rows than one block, more entries than one piece

    def normal(*shape):
        X = random.standard_normal(shape)
        return (X + 1j * random.standard_normal(shape) if dtype is np.complex128 else X).astype(dtype)

    L, R, W = normal(m, k), normal(n, k), normal(m, k)
    X = np.asarray(L @ R.conj().T + (random.random((m, n)) < 0.2) * normal(m, n), order=order)
    observed = random.random((m, n)) < 0.7 if masked else None
    P, Q, sums = threshold_pass(X, observed, L, R, W, 0.5)
    E = X - L @ R.conj().T
    kept = (np.abs(E) <= 0.5) & (True if observed is None else observed)
    E = np.where(kept, E, 0)
    tol = 100 * float(np.finfo(dtype).eps) * math.sqrt(m)
    assert P.dtype == Q.dtype == dtype
    assert np.abs(P - E @ R).max() < tol * np.abs(E).sum(axis=1).max()
    assert np.abs(Q - E.conj().T @ W).max() < tol * np.abs(E).sum(axis=0).max()
    assert sums[2] == kept.sum()
    assert sums[:2] == pytest.approx([np.sum(np.abs(E) ** 2), np.sum(np.abs(X[kept]) ** 2)], rel=tol)
    reference = _threshold_pass._reference(X, observed, L, R, W, 0.5)
    assert reference[2] == pytest.approx(sums, rel=tol)
    X[17, 5] = np.nan
    assert np.isnan(threshold_pass(X, None, L, R, W, 0.5)[2][0])


def test_each_iteration_of_accelerated_projections_reads_the_matrix_once():
    problem = robust_pca_problem(150, 120, 2, outliers=0.1, rng=1)
    A = da.from_array(problem.A, chunks=(50, 120))
    passes = []
    for max_iter in (2, 4):
        entries = Entries(A, None, "test")
        monitor = Monitor(None, False, "test")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _altproj.accaltproj(entries, 2, tol=1e-9, max_iter=max_iter, monitor=monitor, decay=0.7, key=0)
        passes.append(entries.matrix.counter.passes)
    assert passes[1] - passes[0] == 2
