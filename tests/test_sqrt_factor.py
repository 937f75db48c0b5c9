"""Factors of the rank of the update are exact, and samples have the covariance that was asked for."""

import numpy as np
import pytest
from hypothesis import given
from square_roots import diagonal_problem, full, rotated, updates

import rnla

EPS = 2.0**-52
DRAWS = 100_000


@given(updates())
def test_factor_is_exact(problem):
    d, Z, C, sign = problem
    n, C0 = len(d), full(C, Z, sign)
    W = np.diag(d) + Z @ C0 @ Z.conj().T
    L = rnla.sqrt_factor_update(d, Z, C=C, sign=sign)
    size, kappa = np.linalg.norm(W, 2), np.linalg.cond(W)
    assert np.linalg.norm(L @ (L.H @ np.eye(n)) - W, 2) <= 100 * n * EPS * max(size, d.max())
    x = np.random.default_rng(0).standard_normal((n, 2))
    loss = 1e3 * n * EPS * np.sqrt(max(kappa, size / d.min())) * np.linalg.norm(x)
    assert np.linalg.norm(L.solve(L @ x) - x) <= loss
    assert np.linalg.norm(L.H.solve(L.H @ x) - x) <= loss
    assert np.linalg.norm(L.adjoint_solve(L.H @ x[:, 0]) - x[:, 0]) <= loss
    assert L.logdet() == pytest.approx(np.linalg.slogdet(W)[1], abs=1e-11 + 100 * n * EPS * kappa)
    assert L.shape == (n, n)


def empirical(x):
    return x.T @ x.conj() / len(x)


def check_covariance(x, W):
    n = len(W)
    assert x.shape == (DRAWS, n)
    assert np.abs(x.mean(axis=0)).max() <= 6 * np.sqrt(np.diagonal(W).real.max() / DRAWS)
    error = np.abs(empirical(x) - W)
    # Entry (i, j) has the variance (W_ii W_jj + |W_ij|^2) / DRAWS; beyond six deviations it is once in 5e8.
    d = np.diagonal(W).real
    assert (error <= 6 * np.sqrt((np.outer(d, d) + np.abs(W) ** 2) / DRAWS)).all()


@pytest.mark.parametrize("dtype", [float, complex])
@pytest.mark.parametrize("sign", [1, -1])
def test_covariance_of_samples(sign, dtype):
    d, Z = diagonal_problem(5, 2, 10.0, 0, gap=0.3, dtype=dtype)
    A, _, Z = rotated(d, Z, 0)
    W = A + sign * Z @ Z.conj().T
    inverse = np.linalg.inv(W)
    L = rnla.sqrt_factor_update(A, Z, sign=sign)
    root, inverse_root = rnla.sqrt_pair_update(A, Z, sign=sign)
    for covariance, draws in (
        (W, [L.sample, root.sample, L.H.sample, lambda n, rng: rnla.sample_mvn(A, Z, n, sign=sign, rng=rng)]),
        (inverse, [L.sample_precision, inverse_root.sample,
                   lambda n, rng: rnla.sample_mvn(A, Z, n, sign=sign, precision=True, rng=rng)]),
    ):  # fmt: skip
        for draw in draws:
            x = draw(DRAWS, rng=1)
            check_covariance(x, covariance)
            assert (draw(DRAWS, rng=1) == x).all()


def test_draws_of_one_generator_differ():
    d, Z, rng = np.ones(3), np.ones(3), np.random.default_rng(0)
    for options in ({}, {"precision": True}):
        assert (rnla.sample_mvn(d, Z, 4, rng=rng, **options) != rnla.sample_mvn(d, Z, 4, rng=rng, **options)).all()
    assert rnla.sample_mvn(d, np.zeros((3, 0)), 4, rng=0).shape == (4, 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda L: rnla.sample_mvn(np.ones(3), np.ones(3), 0), ValueError, r"^rnla\.sample_mvn: size must be at least"),
        (lambda L: rnla.sample_mvn(np.ones(3), np.ones(3), 1, rng="a"), TypeError, "rng must be None"),
        (lambda L: L.sample(1.5), TypeError, r"^rnla\.SqrtFactor\.sample: size must be an integer"),
        (lambda L: L.sample_precision(0), ValueError, r"^rnla\.SqrtFactor\.sample_precision: size"),
        (lambda L: L @ np.ones(4), ValueError, "X must have 3 rows"),
        (lambda L: L.solve(np.ones(4)), ValueError, "b must have 3 rows"),
        (lambda L: rnla.sqrt_factor_update(np.ones(3), np.ones(3), sign=-1), rnla.NotPositiveDefiniteError, "updated"),
    ],
)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call(rnla.sqrt_factor_update(np.ones(3), np.ones(3)))


def test_repr():
    assert repr(rnla.sqrt_factor_update(np.ones(3), np.ones(3))) == "SqrtFactor(n=3, rank 1 on a diagonal base)"
