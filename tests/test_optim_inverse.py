"""Low rank plus scaled identity: exact solves, approximations near the optimum, online updates equal to the average."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnla.optim as optim
from rnla._psd_block import block_range, default_shift, nystrom_pairs, ritz_pairs, singular_pairs
from rnla.testing import matrix_with_spectrum

EPS = np.finfo(float).eps
METHODS = ["eigh", "cholesky", "rsvd", "sre", "nystrom"]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def semidefinite(values, seed=0):
    Q = np.linalg.qr(normal(seed, len(values), len(values)))[0]
    M = (Q * values) @ Q.T
    return (M + M.T) / 2


@st.composite
def representations(draw):
    d, seed = draw(st.integers(1, 12)), draw(st.integers(0, 2**32 - 1))
    M = semidefinite(np.random.default_rng(seed).uniform(0, 2, d), seed)
    method, tail = draw(st.sampled_from(METHODS)), draw(st.sampled_from(["zero", "min", "trace"]))
    return optim.factor_inverse(M, method=method, rank=draw(st.integers(1, d)), tail=tail, rng=seed), seed


@given(representations(), st.floats(0.01, 10.0))
def test_solve_inverts_what_matmul_multiplies(drawn, delta):
    inv, seed = drawn
    X = normal(seed, inv.dim, 3)
    for found in (inv.solve(X, delta), inv.damp(delta).apply(X), inv.solve(X.T, delta, side="right").T):
        assert np.abs(inv.matmul(found) + delta * found - X).max() <= 1e-10
    assert np.abs(inv.damp(delta).apply(X.T, "right").T - found).max() <= 1e-10
    K = inv.solve(np.eye(inv.dim), delta)
    assert np.abs(K - K.T).max() <= 1e-10
    assert np.linalg.eigvalsh((K + K.T) / 2)[0] > 0
    dense = inv.dense(delta)
    assert abs(inv.logdet(delta) - np.linalg.slogdet(dense)[1]) <= 1e-9
    assert abs(inv.trace + inv.dim * delta - np.trace(dense)) <= 1e-10
    assert abs(inv.square_norm - np.sum(inv.dense() ** 2)) <= 1e-10
    assert inv.lmax <= np.linalg.eigvalsh(inv.dense())[-1] + 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_gives_the_dense_inverse(method):
    M = semidefinite(np.linspace(0.0, 3.0, 10))
    inv = optim.factor_inverse(M, method=method, rank=10, rng=0)
    assert np.abs(inv.solve(np.eye(10), 0.1) - np.linalg.inv(M + 0.1 * np.eye(10))).max() <= 1e-10


@pytest.mark.parametrize("tail", ["zero", "trace"])
@pytest.mark.parametrize("method", ["rsvd", "sre", "nystrom"])
def test_a_matrix_of_the_rank_asked_for_is_represented_exactly(method, tail):
    M = semidefinite(np.r_[np.linspace(1.0, 3.0, 5), np.zeros(35)])
    inv = optim.factor_inverse(M, method=method, rank=5, tail=tail, rng=1)
    assert np.abs(inv.dense() - M).max() <= 1e-10
    assert np.abs(inv.solve(np.eye(40), 0.1) - np.linalg.inv(M + 0.1 * np.eye(40))).max() <= 1e-10


@given(st.integers(1, 9), st.floats(0.01, 1.0))
def test_error_without_tail_is_that_of_the_first_eigenvalue_left_out(r, delta):
    values = 2.0 ** -np.arange(10.0)
    M = semidefinite(values)
    w, U = np.linalg.eigh(M)
    inv = optim.FactorInverse(U[:, ::-1][:, :r], w[::-1][:r], np.zeros(()), 10, "lowrank", "zero")
    error = np.linalg.norm(inv.solve(np.eye(10), delta) - np.linalg.inv(M + delta * np.eye(10)), 2)
    exact = values[r] / (delta * (delta + values[r]))
    assert abs(error - exact) <= 1e-9 * exact + 100 * EPS / delta


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_tail_keeps_the_trace(method, dtype):
    M = semidefinite(1 / np.arange(1, 201.0)).astype(dtype)
    inv = optim.factor_inverse(M, method=method, rank=20, rng=0)
    assert inv.trace.dtype == dtype
    assert abs(float(inv.trace) / float(np.trace(M, dtype=float)) - 1) <= (1e-10 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_near_the_optimum_and_ordered(seed):
    d, r, p = 600, 60, 10
    values = 1 / np.arange(1, d + 1.0)
    M = np.diag(values)  # a Gaussian block does not see the basis
    optimum = np.linalg.norm(values[r:])
    X = normal(seed, d, r + p)
    errors = {}
    for products in (1, 2):
        Q, Y = block_range(lambda X: values[:, None] * X, X, products)
        shift = default_shift(values.sum(), d, np.dtype(float), np)
        pairs = ("sre", ritz_pairs(Q, Y)), ("rsvd", singular_pairs(Q, Y)), ("nystrom", nystrom_pairs(Q, Y, shift))
        for method, (lam, U) in pairs:
            U, lam = U[:, :r], lam[:r]
            if method != "rsvd":  # Rayleigh-Ritz and Nystrom never overestimate
                assert np.all(lam <= values[:r] + 1e-12)
            errors[method, products] = np.linalg.norm(M - (U * lam) @ U.T) / optimum
        assert errors["nystrom", products] <= 1.02 * errors["rsvd", products]
        assert errors["rsvd", products] <= errors["sre", products]
    for method in ("rsvd", "sre", "nystrom"):
        assert errors[method, 2] <= 1.25
        inv = optim.factor_inverse(M, method=method, rank=r, products=2, tail="zero", rng=seed)
        assert np.linalg.norm(M - inv.dense()) <= 1.25 * optimum
        assert np.abs(inv.U.T @ inv.U - np.eye(r)).max() <= 100 * EPS


def test_a_warm_start_with_one_product_equals_two_cold_ones():
    d, r = 300, 30
    M = np.diag(1 / np.arange(1, d + 1.0))
    moved = M + 0.02 * semidefinite(1 / np.arange(1, d + 1.0), 3)
    best = np.linalg.norm(np.sort(np.linalg.eigvalsh(moved))[:-r])

    def error(**options):
        inv = optim.factor_inverse(moved, method="sre", rank=r, tail="zero", rng=7, **options)
        return np.linalg.norm(moved - inv.dense()) / best

    warm = optim.factor_inverse(M, method="eigh")
    warm = warm._replace(U=warm.U[:, :r], lam=warm.lam[:r], kind="lowrank")
    assert error(products=1, warm=warm) <= error(products=2) < error(products=1)


def test_a_warm_start_finds_directions_that_are_new():
    d = 200
    old, new = np.zeros(d), np.zeros(d)
    old[:10], new[100:110] = 1.0, 5.0
    warm = optim.factor_inverse(np.diag(old), rank=20, method="nystrom", rng=0)
    inv = optim.factor_inverse(np.diag(new), rank=20, method="nystrom", rng=0, warm=warm)
    assert np.abs(inv.lam[:10] - 5).max() <= 1e-10


def test_the_rank_of_an_average_is_bounded():
    values = {(0.95, 0.03, 0.1, 256): 114 * 256, (0.9, 0.1, 0.5, 1): 29, (0.5, 0.01, 0.1, 1): 10, (0, 0.1, 1, 3): 3}
    for arguments, bound in values.items():
        assert optim.ea_rank_bound(*arguments) == bound


@given(st.floats(0.05, 0.97), st.floats(0.01, 0.9), st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_bound_on_the_rank_is_never_exceeded(rho, eps, n, steps, seed):
    d = 30
    rng = np.random.default_rng(seed)
    blocks = [rng.standard_normal((d, n)) * rng.uniform(0.1, 1) for _ in range(steps)]
    M = blocks[0] @ blocks[0].T
    for X in blocks[1:]:
        M = rho * M + (1 - rho) * X @ X.T
    w = np.linalg.eigvalsh(M)
    alpha = min(w[-1] / max(np.linalg.norm(X, 2) ** 2 for X in blocks), 1.0)
    assert np.sum(w > eps * w[-1] * (1 + 1e-9)) <= optim.ea_rank_bound(rho, eps, alpha * (1 - 1e-9), n)


def test_online_update_equals_the_average_before_truncation():
    X, Y = normal(0, 40, 5), normal(1, 40, 4)
    inv = optim.brand_update(optim.brand_update(None, X, 0.0, rank=5), Y, 0.9, rank=5)
    M = 0.9 * X @ X.T + 0.1 * Y @ Y.T
    assert np.abs(inv.dense() - M).max() <= 1e-12 * np.linalg.norm(M)
    assert np.abs(inv.U.T @ inv.U - np.eye(9)).max() <= 1e-12


def test_online_updates_in_a_subspace_do_not_spoil_the_basis():
    d, n, r = 300, 8, 40
    basis, rng = np.linalg.qr(normal(0, d, 30))[0], np.random.default_rng(1)
    inv, M = None, np.zeros((d, d))
    for step in range(200):
        X = basis @ rng.standard_normal((30, n))
        rho = 0.95 if step else 0.0
        inv = optim.brand_update(inv, X, rho, rank=r)
        M = rho * M + (1 - rho) * X @ X.T
    assert inv.rank == 30
    assert np.abs(inv.U.T @ inv.U - np.eye(30)).max() <= 1e-9
    assert np.linalg.norm(inv.dense() - M) <= 1e-9 * np.linalg.norm(M)


def test_online_update_by_nothing_and_by_known_directions():
    X = normal(0, 20, 4)
    inv = optim.brand_update(None, X, 0.5, rank=4)
    still = optim.brand_update(inv, np.zeros((20, 2)), 0.5, rank=4)
    assert np.allclose(still.dense(), inv.dense() / 2)
    more = optim.brand_update(inv, X[:, :2], 0.5, rank=4)
    assert more.rank == 4
    assert np.allclose(more.dense(), (inv.dense() + X[:, :2] @ X[:, :2].T) / 2)
    assert optim.brand_update(inv, np.full((20, 1), np.nan), 0.5, rank=4) is inv
    assert optim.brand_update(None, np.zeros((20, 2)), 0.5, rank=4).kind == "identity"


def test_online_update_cuts_one_step_late_and_keeps_the_trace():
    M, X = semidefinite(1 / np.arange(1, 101.0)), normal(1, 100, 5)
    inv = optim.factor_inverse(M, method="sre", rank=10, rng=0)
    after = optim.brand_update(inv, X, 0.9, rank=10)
    assert after.rank == 15
    assert abs(after.trace - (0.9 * np.trace(M) + 0.1 * np.sum(X**2))) <= 1e-10
    spoilt = after._replace(U=after.U * 1.1)
    fixed = optim.brand_update(spoilt, X, 0.9, rank=15)
    assert np.abs(fixed.U.T @ fixed.U - np.eye(fixed.rank)).max() <= 1e-12


def test_correction_by_the_matrix_brings_the_error_down():
    M = semidefinite(1 / np.arange(1, 61.0))
    stale = optim.factor_inverse(M, method="sre", rank=20, rng=0)
    stale = stale._replace(lam=stale.lam[::-1] * 0.5)
    fixed = optim.brand_correction(stale, M, fraction=0.5, rng=0)
    assert np.linalg.norm(M - fixed.dense()) < np.linalg.norm(M - stale.dense())
    assert np.all(np.diff(fixed.lam) <= 0)
    assert abs(fixed.trace - np.trace(M)) <= 1e-10


def test_rank_moves_towards_the_error_wanted():
    M = np.diag(0.9 ** np.arange(200.0))
    ranks = {}
    for rank in (10, 35, 80):
        inv = optim.factor_inverse(M, method="sre", rank=rank, tail="zero", rng=0)
        chosen, error = optim.choose_rank(M, inv, rank, rng=0)
        ranks[rank] = chosen - rank
        exact = np.linalg.norm(M - inv.dense()) / np.linalg.norm(M)
        assert 0.4 * exact <= error <= 2.5 * exact  # 8 probes: the square is a mean of 8 chi-square variables
    assert ranks == {10: 10, 35: -10 if 0.9**35 < 0.026 else 0, 80: -10}


def test_a_bad_factor_never_raises_unless_asked():
    good, bad = semidefinite(1 / np.arange(1, 31.0)), np.full((30, 30), np.nan)
    known = optim.factor_inverse(good, method="nystrom", rank=5, rng=0)
    kept = optim.factor_inverse(bad, method="nystrom", rank=5, warm=known)
    assert kept.outcome == "kept"
    assert kept.U is known.U
    nothing = optim.factor_inverse(bad, method="eigh")
    assert (nothing.kind, nothing.outcome) == ("identity", "identity")
    dead = optim.factor_inverse(np.zeros((30, 30)))
    assert (dead.kind, dead.outcome, float(dead.lmax)) == ("identity", "ok", 0.0)
    X = normal(0, 30, 2)
    assert np.array_equal(dead.solve(X, 0.1), X)
    with pytest.raises(ValueError, match="M must be finite"):
        optim.factor_inverse(bad, strict=True)
    # Indefinite by far more than rounding: no ridge helps.
    indefinite = np.diag(np.r_[np.ones(20), -np.ones(10)])
    assert optim.factor_inverse(indefinite, method="nystrom", rank=25, rng=0).outcome == "identity"
    with pytest.raises(np.linalg.LinAlgError):
        optim.factor_inverse(indefinite, method="nystrom", rank=25, rng=0, strict=True)


def test_a_decomposition_that_fails_is_tried_again_with_a_ridge(monkeypatch):
    from rnla.optim import _inverse

    M, tried = semidefinite(1 / np.arange(1, 21.0)).astype(np.float32), []

    def fails_once(M):
        tried.append(M.dtype)
        if len(tried) == 1:
            raise np.linalg.LinAlgError
        return original(M)

    original = _inverse.eigenpairs
    monkeypatch.setattr(_inverse, "eigenpairs", fails_once)
    inv = optim.factor_inverse(M, method="eigh")
    assert (inv.outcome, tried) == ("retried", [np.float32, np.float64])
    assert inv.U.dtype == np.float32
    assert np.abs(inv.dense() - M).max() <= 20 * np.finfo(np.float32).eps


def test_automatic_method_and_objects_that_only_multiply():
    assert optim.factor_inverse(np.eye(128), rank=5).kind == "dense"
    assert optim.factor_inverse(np.eye(300), rank=150).kind == "dense"
    assert optim.factor_inverse(np.eye(300), rank=5, rng=0).kind == "lowrank"
    values = 1 / np.arange(1, 201.0)

    class Diagonal:
        shape, dtype = (200, 200), np.dtype(float)

        def __matmul__(self, X):
            return values[:, None] * X

        def trace(self):
            return values.sum()

    inv = optim.factor_inverse(Diagonal(), rank=20, rng=0)
    assert np.array_equal(inv.lam, optim.factor_inverse(np.diag(values), rank=20, rng=0, method="nystrom").lam)
    with pytest.raises(ValueError, match="for an M that is no array"):
        optim.factor_inverse(Diagonal(), method="eigh")


def test_diagonal_factors():
    lam = np.array([0.0, 2.0, 1.0])
    inv = optim.factor_inverse(lam)
    X = normal(0, 3, 2)
    assert np.allclose(inv.solve(X, 0.5), X / (lam + 0.5)[:, None])
    assert np.allclose(inv.solve(X.T, 0.5, side="right"), X.T / (lam + 0.5))
    assert (float(inv.lmax), float(inv.trace)) == (2.0, 3.0)


@settings(max_examples=5)
@given(st.sampled_from(METHODS))
def test_libraries_agree(method):
    import array_api_strict
    import torch

    M, X = semidefinite(1 / np.arange(1, 151.0) ** 2), normal(1, 150, 2)
    results = [
        np.asarray(optim.factor_inverse(xp(M), method=method, rank=30, rng=0).solve(xp(X), 0.01))
        for xp in (np.asarray, torch.asarray, array_api_strict.asarray)
    ]
    assert all(np.abs(result - results[0]).max() <= 1e-10 / 0.01 for result in results)  # magnified by the damping
    again = optim.factor_inverse(M, method=method, rank=30, rng=0).solve(X, 0.01)
    assert np.array_equal(again, results[0])


def test_single_precision_stays_and_small_eigenvalues_do_no_harm():
    M = matrix_with_spectrum(300, 300, 0.5 ** np.arange(300.0), rng=0)
    M = (M @ M.T).astype(np.float32)
    for method in ("rsvd", "sre", "nystrom"):
        inv = optim.factor_inverse(M, method=method, rank=60, rng=0)
        assert (inv.U.dtype, inv.lam.dtype, inv.tail.dtype) == (np.float32,) * 3
        assert np.abs(inv.U.T @ inv.U - np.eye(60)).max() <= 1e-5
        assert np.linalg.norm(inv.dense() - M) <= 1e-5


def test_wrong_arguments_are_named():
    M = np.eye(4)
    for options, text in (
        ({"method": "svd"}, "method must be one of"), ({"tail": "max"}, "tail must be one of"),
        ({"rank": 0}, "rank must be at least 1"), ({"products": 0}, "products must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"rnla\.optim\.factor_inverse: {text}"):
            optim.factor_inverse(M, **options)
    with pytest.raises(ValueError, match="M must be square"):
        optim.factor_inverse(np.ones((2, 3)))
    with pytest.raises(TypeError, match="M must be an array"):
        optim.factor_inverse([[1.0]])
    with pytest.raises(ValueError, match="delta must be finite and not negative"):
        optim.factor_inverse(M).solve(M, -1.0)
    with pytest.raises(ValueError, match="inv must be of kind"):
        optim.brand_update(optim.factor_inverse(M), M, 0.5, rank=2)
    with pytest.raises(ValueError, match=r"X must have shape \(4, n\)"):
        optim.brand_update(optim.factor_inverse(M, method="eigh"), np.eye(3), 0.5, rank=2)
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\)"):
        optim.ea_rank_bound(0.5, 1.0, 0.5, 1)
