"""Corrections of square roots are accurate relative to themselves, of the rank they must have, and say their error."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from square_roots import (
    EXACT,
    dense_correction,
    diagonal_problem,
    exact_correction,
    full,
    rotated,
    tabulated,
    updates,
)

import rnla
from rnla import kernels

EPS = 2.0**-52


def norm(X):
    return np.linalg.norm(X, 2)


@given(updates(), st.sampled_from([1e-4, 1e-8, 1e-12]), st.sampled_from(["auto", "quadrature"]))
def test_roots_square_to_the_updated_matrix(problem, tol, method):
    d, Z, C, sign = problem
    n, C0 = len(d), full(C, Z, sign)
    W = np.diag(d) + Z @ C0 @ Z.conj().T
    w = np.linalg.eigvalsh(W)
    root, inverse = rnla.sqrt_pair_update(d, Z, C=C, sign=sign, tol=tol, method=method)
    S, T = root.to_dense(), inverse.to_dense()
    size = max(d.max(), w[-1])
    assert norm(S @ S - W) <= (5 * tol + 100 * n * EPS) * size
    # Rounding in W is seen through the inverse root as its condition.
    low = min(d.min(), root.low)
    assert norm(T @ W @ T - np.eye(n)) <= 5 * tol * np.sqrt(root.kappa) + 1e3 * n * EPS * root.kappa
    assert root.low <= w[0] * (1 + 1e-6) + 100 * EPS * size
    assert root.high >= w[-1] * (1 - 1e-10)
    for result, exact in ((root, exact_correction(np.diag(d), Z, C0, False)),
                          (inverse, exact_correction(np.diag(d), Z, C0, True))):  # fmt: skip
        loss = 100 * n * EPS * size / low * max(norm(exact), 1e-300)  # of the reference
        assert norm(dense_correction(result) - exact) <= result.error_bound() + loss
        assert result.rank <= n or method == "quadrature"


@given(updates(), st.sampled_from([1e-4, 1e-8]))
def test_sign_and_rank_of_the_correction(problem, tol):
    d, Z, C, sign = problem
    for inverse in (False, True):
        result = rnla.sqrt_update(d, Z, C=C, sign=sign, inverse=inverse, tol=tol, method="quadrature")
        if C is None:
            assert (result.signs == (-sign if inverse else sign)).all()
        k = len(result.update.s)
        assert result.rank <= rnla.correction_rank(result.kappa, k, tol / 10)
        assert result.n_nodes * k == rnla.correction_rank(result.kappa, k, tol)


@given(n=st.integers(2, 60), k=st.integers(1, 3), kappa=st.sampled_from([1e2, 1e4, 1e6]),
       inverse=st.booleans(), down=st.booleans(), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_singular_values_decay_as_zolotarev_says(n, k, kappa, inverse, down, seed):
    d, Z = diagonal_problem(n, k, kappa, seed, gap=0.1 if down else None)
    result = rnla.sqrt_update(d, Z, sign=-1 if down else 1, inverse=inverse, tol=1e-13, method="quadrature")
    sigma = np.linalg.svd(dense_correction(result), compute_uv=False)
    for nu in range(1, (n - 1) // k + 1):
        assert sigma[k * nu] <= rnla.decay_bound(result.kappa, k, nu) * sigma[0] + 1e-13 * sigma[0]


@pytest.mark.parametrize(("case", "inverse"), EXACT)
@pytest.mark.parametrize(("tol", "digits"), [(1e-8, 2e-5), (1e-13, 1e-10)])
def test_corrections_known_to_sixty_digits(case, inverse, tol, digits):
    d, z, sign = tabulated(case)
    result = rnla.sqrt_update(d, z, sign=sign, inverse=inverse, tol=tol)
    X = dense_correction(result)
    assert (np.trace(X), np.linalg.norm(X), X[0, 1]) == pytest.approx(EXACT[case, inverse], rel=digits)
    assert result.rank <= 16


@pytest.mark.parametrize("method", ["quadrature", "dense"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-8])
def test_a_tiny_update_is_accurate_relative_to_its_own_correction(method, inverse, size):
    d = np.logspace(-3, 3, 40)
    Z = np.random.default_rng(0).standard_normal((40, 2))
    Z = Z * (size * d.min() ** 0.5 / norm(Z))
    result = rnla.sqrt_update(d, Z, inverse=inverse, tol=1e-12, method=method)
    first = (Z @ Z.T) / (np.sqrt(d)[:, None] + np.sqrt(d))
    if inverse:
        first = -first / np.sqrt(d[:, None] * d)
    # The term of second order is below size**2 relative to the first.
    assert norm(dense_correction(result) - first) <= (2000 * 1e-12 + 10 * size**2) * norm(first)


@given(updates(max_n=30), st.integers(0, 2**32 - 1))
def test_solve_undoes_the_product(problem, seed):
    d, Z, C, sign = problem
    x = np.random.default_rng(seed).standard_normal((len(d), 2))
    root, inverse = rnla.sqrt_pair_update(d, Z, C=C, sign=sign)
    scale = np.sqrt(root.kappa) * np.abs(x).max() * len(d)
    assert np.abs(root.solve(root @ x) - x).max() <= 1e3 * EPS * scale
    assert np.abs(inverse.solve(inverse @ x) - x).max() <= 1e3 * EPS * scale
    assert np.abs(inverse @ (root @ x) - x).max() <= 10 * 1e-8 * scale
    assert np.abs(root.solve(root @ x[:, 0]) - x[:, 0]).max() <= 1e3 * EPS * scale


@given(updates(max_n=30), st.integers(0, 2**32 - 1))
def test_invariances(problem, seed):
    d, Z, C, sign = problem
    rng = np.random.default_rng(seed)
    X = dense_correction(rnla.sqrt_update(d, Z, C=C, sign=sign, tol=1e-10))
    tolerance = 10 * 1e-10 * norm(X) + 1e3 * EPS * np.sqrt(d.max())
    V = np.linalg.qr(rng.standard_normal((Z.shape[1],) * 2))[0]
    turned = rnla.sqrt_update(d, Z @ V, C=None if C is None else V.T @ C @ V, sign=sign, tol=1e-10)
    order, c = rng.permutation(len(d)), 7.0
    moved = rnla.sqrt_update(d[order], Z[order], C=C, sign=sign, tol=1e-10)
    scaled = rnla.sqrt_update(c * d, c**0.5 * Z, C=C, sign=sign, tol=1e-10)
    assert norm(dense_correction(turned) - X) <= tolerance
    assert norm(dense_correction(moved) - X[np.ix_(order, order)]) <= tolerance
    assert norm(dense_correction(scaled) / c**0.5 - X) <= tolerance
    if C is None:
        twice = rnla.sqrt_update(d, np.concatenate([Z, Z], axis=1) / 2**0.5, sign=sign, tol=1e-10)
        assert norm(dense_correction(twice) - X) <= tolerance


@given(updates(max_n=30), st.booleans(), st.floats(0, 1))
def test_residuals_and_the_bounds_from_them_hold_for_any_rank(problem, inverse, part):
    d, Z, C, sign = problem
    n, C0 = len(d), full(C, Z, sign)
    W = np.diag(d) + Z @ C0 @ Z.conj().T
    result = rnla.sqrt_update(d, Z, C=C, sign=sign, inverse=inverse, tol=1e-12)
    cut = result.truncate(rank=round(part * result.rank))
    assert cut.rank == round(part * result.rank)
    S = cut.to_dense()
    R = S @ W @ S - np.eye(n) if inverse else S @ S - W
    rounding = 1e3 * n * EPS * (result.kappa if inverse else norm(W))
    assert abs(cut.residual_norm() - norm(R)) <= rounding
    assert abs(cut.residual_norm("fro") - np.linalg.norm(R)) <= rounding
    w, Q = np.linalg.eigh(W)
    exact = (Q * w ** (-0.5 if inverse else 0.5)) @ Q.conj().T
    error = norm(S - exact)
    loss = 100 * n * EPS * np.sqrt(result.kappa) * norm(exact) * (np.sqrt(result.kappa) if inverse else 1)
    assert error <= cut.error_bound() + loss
    if inverse:
        rho = norm(R)
        if rho < 1 and np.linalg.eigvalsh(S)[0] > 0:
            assert error <= (1 - np.sqrt(1 - rho)) * norm(exact) + loss
    elif np.linalg.eigvalsh(S)[0] > 0:
        assert error <= norm(R) / (np.linalg.eigvalsh(S)[0] + np.sqrt(w[0])) * (1 + 1e-6) + loss
        assert error <= cut.error_estimate() * (1 + 1e-6) + loss or C is not None
        assert norm(R) <= error * (2 * norm(exact) + error) + rounding


@pytest.mark.parametrize("gap", [0.5, 1e-4, 1e-8])
@pytest.mark.parametrize("inverse", [False, True])
def test_downdates_that_leave_little(gap, inverse):
    d, Z = diagonal_problem(50, 2, 1e3, 0, gap=gap)
    result = rnla.sqrt_update(d, Z, sign=-1, inverse=inverse)
    w, Q = np.linalg.eigh(np.diag(d) - Z @ Z.T)
    exact = (Q * w ** (-0.5 if inverse else 0.5)) @ Q.T
    # The small eigenvalue is known to eps relative to the norm of A, its inverse root to that over the gap.
    assert norm(result.to_dense() - exact) <= (1e-7 + 1e3 * EPS * d.max() / w[0]) * norm(exact)


@pytest.mark.parametrize("excess", [0.0, 1e-3, 3.0])
def test_downdates_that_leave_nothing_are_refused(excess):
    d, Z = diagonal_problem(50, 2, 1e3, 0, gap=-excess)
    with pytest.raises(rnla.NotPositiveDefiniteError, match=r"^rnla\.sqrt_update: the updated matrix") as caught:
        rnla.sqrt_update(d, Z, sign=-1)
    assert caught.value.gap == pytest.approx(-excess, abs=1e-12)


def test_an_indefinite_update():
    d = np.linspace(1, 2, 60)
    Z = np.random.default_rng(0).standard_normal((70, 2))[:60] / 12
    C = np.array([[0.0, 1.0], [1.0, 0.0]])
    for method in ("auto", "quadrature", "extended_krylov", "krylov", "dense"):
        result = rnla.sqrt_update(d, Z, C=C, method=method)
        assert set(result.signs) == {1.0, -1.0}
        W = np.diag(d) + Z @ C @ Z.T
        assert norm(result @ result.to_dense() - W) <= 1e-7


@given(n=st.integers(1, 30), k=st.integers(1, 5), signs=st.sampled_from([1, -1, 0]), seed=st.integers(0, 2**32 - 1))
def test_multiples_of_the_identity_are_exact(n, k, signs, seed):
    alpha, Z = 3.0, np.random.default_rng(seed).standard_normal((n, k))
    Z = Z / max(norm(Z), 1e-3)
    C = np.diag(np.where(np.arange(k) % 2, -1.0, 1.0)) if signs == 0 else None
    for inverse in (False, True):
        result = rnla.sqrt_update(alpha, Z, C=C, sign=signs or 1, inverse=inverse)
        exact = exact_correction(alpha * np.eye(n), Z, full(C, Z, signs or 1), inverse)
        assert result.method == "exact"
        assert result.rank <= min(n, k)
        assert norm(dense_correction(result) - exact) <= 100 * n * EPS
        if C is None:
            assert result.rank == min(n, k)


@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("method", ["auto", "quadrature"])
def test_a_singular_base_has_a_root_but_no_inverse(tol, method):
    rng = np.random.default_rng(0)
    d, Z = np.concatenate([np.zeros(50), rng.uniform(0, 1, 150)]), rng.standard_normal((200, 3))
    result = rnla.sqrt_update(d, Z, tol=tol, method=method)
    w, Q = np.linalg.eigh(np.diag(d) + Z @ Z.T)
    error = norm(result.to_dense() - (Q * np.sqrt(np.maximum(w, 0))) @ Q.T)
    loss = 3 * np.sqrt(EPS * w[-1])  # the root of the rounding in eigenvalues of zero
    assert error <= tol * np.sqrt(w[-1]) + loss
    assert error <= min(result.error_bound(), result.error_estimate()) + loss
    for call in (lambda: rnla.inv_sqrt_update(d, Z), lambda: rnla.sqrt_update(d, Z, sign=-1), result.logdet,
                 lambda: result.solve(Z), lambda: rnla.sqrt_factor_update(d, Z)):  # fmt: skip
        with pytest.raises(rnla.NotPositiveDefiniteError, match="A must be positive definite"):
            call()


METHODS = ["quadrature", "extended_krylov", "krylov", "dense"]


@given(n=st.integers(1, 40), k=st.integers(1, 3), down=st.booleans(), inverse=st.booleans(),
       dtype=st.sampled_from([float, complex]), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_all_methods_agree(n, k, down, inverse, dtype, seed):
    d, Z = diagonal_problem(n, k, 1e3, seed, gap=0.1 if down else None, dtype=dtype)
    found = [dense_correction(rnla.sqrt_update(d, Z, sign=-1 if down else 1, inverse=inverse, method=method))
             for method in METHODS]  # fmt: skip
    size = norm(found[-1])
    for X in found[:-1]:
        assert norm(X - found[-1]) <= 10 * 1e-8 * max(size, (1 / d.min() if inverse else d.max()) ** 0.5)


def test_graded_rows_keep_their_digits():
    rng = np.random.default_rng(0)
    d, rows = np.logspace(-6, 6, 30), np.logspace(-3, 3, 30)
    Z = rows[:, None] * rng.standard_normal((30, 3))
    C = np.diag([1.0, 2.0, 0.5])
    X = dense_correction(rnla.sqrt_update(d, Z, C=C, tol=1e-14, method="quadrature"))
    Y = dense_correction(rnla.sqrt_update(d, Z * np.sqrt(np.diagonal(C)), tol=1e-14, method="quadrature"))
    scale = np.sqrt(np.diagonal(X))
    assert (np.abs(X - Y) / (scale[:, None] * scale)).max() <= 1e-9


@given(n=st.integers(1, 8), k=st.integers(0, 12), dtype=st.sampled_from(["float32", "float64", "complex128"]),
       inverse=st.booleans(), mixed=st.booleans(), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_any_small_shape(n, k, dtype, inverse, mixed, seed):
    d, Z = diagonal_problem(n, k, 100.0, seed, gap=0.5, dtype=dtype)
    Z, C = Z.astype(dtype), np.diag(np.where(np.arange(k) % 2, -1.0, 1.0)) if mixed else None
    d = d.astype("float32" if dtype == "float32" else float)
    for base in (d, 2.0, np.diag(d)):
        A = 2.0 * np.eye(n) if np.ndim(base) == 0 else np.diag(d)
        Z0 = 0.1 * Z if np.ndim(base) == 0 else Z
        result = rnla.sqrt_update(base, Z0, C=C, inverse=inverse, tol=1e-6)
        W = A + Z0 @ full(C, Z0, 1) @ Z0.conj().T
        S = result.to_dense()
        assert S.dtype == dtype
        residual = S @ W @ S - np.eye(n) if inverse else S @ S - W
        assert norm(residual) <= 1e-3 * max(norm(W), 1) * (10 if inverse else 1)
        if k == 0:
            assert result.rank == 0


@pytest.mark.parametrize("inverse", [False, True])
def test_no_update_is_no_correction(inverse):
    d = np.arange(1.0, 6.0)
    for A in (d, 2.0, np.diag(d), sp.diags_array(d)):
        for Z in (np.zeros(5), np.zeros((5, 2)), np.zeros((5, 0))):
            result = rnla.sqrt_update(A, Z, inverse=inverse)
            assert result.rank == 0
            assert result.truncate(rank=0).rank == 0
            exact = (2.0 * np.ones(5) if np.ndim(A) == 0 else d) ** (-0.5 if inverse else 0.5)
            assert result @ np.ones(5) == pytest.approx(exact, rel=1e-7)
            assert result.solve(result @ np.ones(5)) == pytest.approx(1, rel=1e-7)
            assert result.residual_norm() <= 1e-12


@pytest.mark.parametrize("kappa", [10.0, 1e4, 1e6])
def test_single_precision(kappa):
    d, Z = diagonal_problem(100, 3, kappa, 0)
    single, Z = d.astype(np.float32), Z.astype(np.float32)
    for inverse, loss in ((False, 1e-5), (True, 1e-5 * kappa**0.5)):
        result = rnla.sqrt_update(single, Z, inverse=inverse)
        assert result.P.dtype == (result @ Z).dtype == np.float32
        exact = exact_correction(np.diag(single.astype(float)), Z.astype(float), np.eye(3), inverse)
        assert norm(dense_correction(result) - exact) <= loss * norm(exact)
    with pytest.warns(rnla.AccuracyWarning, match=r"tol=1e-10 is below what float32 gives; 1e-06 is used"):
        rnla.sqrt_update(single, Z, tol=1e-10)


def test_rank_is_cut_from_the_exact_correction():
    d, Z = diagonal_problem(100, 2, 1e4, 0)
    result = rnla.sqrt_update(d, Z, tol=1e-12)
    cut = rnla.sqrt_update(d, Z, tol=1e-12, rank=5)
    lam = np.linalg.eigvalsh(dense_correction(result))
    assert cut.rank == 5
    assert norm(dense_correction(result) - dense_correction(cut)) == pytest.approx(np.sort(lam)[-6], rel=1e-6)
    assert result.truncate(tol=1e-3).rank == np.count_nonzero(lam > 1e-3 * lam[-1])
    for options in ({}, {"rank": 2, "tol": 0.1}, {"rank": -1}):
        with pytest.raises(ValueError, match=r"^rnla\.LowRankCorrectedSqrt\.truncate"):
            result.truncate(**options)


def test_diagonal_trace_logdet_and_operator():
    d, Z = diagonal_problem(40, 2, 1e3, 0, dtype=complex)
    A, Q, Z = rotated(d, Z, 1)
    W = A + Z @ Z.conj().T
    for base in (A, (d, Q), [(d, Q)]):
        for inverse in (False, True):
            result = rnla.sqrt_update(base, Z, inverse=inverse, tol=1e-12)
            S = result.to_dense()
            assert result.diagonal() == pytest.approx(np.diagonal(S).real, rel=1e-10)
            assert result.trace() == pytest.approx(np.trace(S).real, rel=1e-10)
            assert result.logdet() == pytest.approx((-0.5 if inverse else 0.5) * np.linalg.slogdet(W)[1], abs=1e-10)
            operator = aslinearoperator(result.as_linear_operator())
            assert np.abs(operator @ np.eye(40) - S).max() <= 1e-10
            assert result.H is result
            assert result.shape == (40, 40)
            assert "W^(-1/2)" in repr(result) or not inverse
            assert np.abs(result.matvec(np.ones(40)) - S.sum(axis=1)).max() <= 1e-9


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("k", [1, 2])
def test_compiled_sweeps_are_those_of_blas(monkeypatch, dtype, k):
    rng, n = np.random.default_rng(0), 40_001
    d, Z = (rng.random(n) + 1e-2).astype(dtype), rng.standard_normal((n, k)).astype(dtype)
    tau, _ = rnla.zolotarev_nodes(1e-2, 1e2, n_nodes=7)
    B = rng.standard_normal((7 * k, 5)).astype(dtype)
    found = []
    for columns in (0, 2):
        monkeypatch.setattr("rnla.kernels._sqrt_sweep._COMPILE_COLUMNS", columns)
        found.append((*kernels.sqrt_sweep_gram(d, Z, tau), kernels.sqrt_sweep_product(d, Z, tau, B)))
    assert found[1][2].dtype == dtype
    for X, Y in zip(*found, strict=True):
        assert np.abs(X - Y).max() <= 1e3 * np.finfo(dtype).eps * np.abs(X).max()
    Yt = (1 / (d[:, None] + tau.astype(dtype)))[:, :, None] * Z[:, None, :]
    exact = np.einsum("ia,ijb->jab", Z.astype(float), Yt.astype(float))
    assert np.abs(found[1][0] - exact).max() <= 1e3 * np.finfo(dtype).eps * np.abs(exact).max()


def test_no_array_of_order_squared():
    import tracemalloc

    n, rng = 100_000, np.random.default_rng(0)
    d, Z = rng.random(n) + 1e-3, rng.standard_normal((n, 3)) / n**0.5
    tracemalloc.start()
    result = rnla.sqrt_update(d, Z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * result.P.nbytes + 64e6


@pytest.mark.parametrize(
    ("f", "values"), [("log", np.log), (-0.25, lambda x: x**-0.25), (0.25, lambda x: x**0.25), (np.sqrt, np.sqrt),
                      (-0.75, lambda x: x**-0.75), (0.5, np.sqrt), (-1.0, lambda x: 1 / x)],
)  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_other_functions(f, values, sign, size):
    d, Z = diagonal_problem(60, 2, 1e3, 0, gap=0.1)
    A, _, Z = rotated(d, size * Z, 0)
    P, signs = rnla.function_update(A, Z, f, sign=sign)
    a, Qa = np.linalg.eigh(A)
    w, Qw = np.linalg.eigh(A + sign * Z @ Z.T)
    exact = (Qw * values(w)) @ Qw.T - (Qa * values(a)) @ Qa.T
    assert norm((P * signs) @ P.T - exact) <= 1e-8 * norm(exact) + 1e-12 * np.abs(values(a)).max()


def test_functions_of_single_precision_and_their_arguments():
    d, Z = diagonal_problem(30, 2, 1e2, 0)
    P, _ = rnla.function_update(d.astype(np.float32), Z.astype(np.float32), "log")
    assert P.dtype == np.float32
    assert rnla.function_update(d, 0 * Z, "log")[0].shape == (30, 0)
    with pytest.raises(TypeError, match=r"^rnla\.function_update: f must be a power, 'log' or callable; got 'exp'"):
        rnla.function_update(d, Z, "exp")
    with pytest.raises(ValueError, match="n_poles must be at least 1"):
        rnla.function_update(d, Z, "log", n_poles=0)
    with pytest.raises(TypeError, match=r"A must be diagonal, dense, sparse, or have shift_solve"):
        rnla.function_update(aslinearoperator(np.diag(d)), Z, "log", bounds=(0.1, 10))
