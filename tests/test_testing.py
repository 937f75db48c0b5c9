"""Tests of rnla.testing: the matrices must have the spectra they claim, and the counters must count."""

import array_api_strict
import numpy as np
import pytest

from rnla import testing


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize(("m", "n"), [(40, 25), (25, 40), (30, 30), (1, 5), (5, 1)])
def test_matrix_has_the_spectrum(m, n, dtype):
    sigma = testing.spectrum("poly1", min(m, n))
    A = testing.matrix_with_spectrum(m, n, sigma, rng=0, dtype=dtype)
    assert A.shape == (m, n)
    assert A.dtype == dtype
    # Weyl: a singular value moves by no more than the rounding error's norm.
    bound = 10 * np.finfo(dtype).eps * max(m, n) ** 0.5 * sigma[0]
    assert np.abs(np.linalg.svd(A, compute_uv=False) - sigma).max() <= bound


def test_fewer_singular_values_give_lower_rank():
    A = testing.matrix_with_spectrum(20, 15, [2.0, 1.0], rng=1)
    found = np.linalg.svd(A, compute_uv=False)
    assert np.abs(found - np.r_[2.0, 1.0, np.zeros(13)]).max() <= 100 * np.finfo(float).eps


def test_same_seed_gives_the_same_matrix_and_a_generator_moves_on():
    def make(rng):
        return testing.matrix_with_spectrum(8, 5, [1.0, 0.5], rng=rng)

    assert np.array_equal(make(3), make(3))
    generator = np.random.default_rng(0)
    assert not np.array_equal(make(generator), make(generator))


def test_haar_basis_has_no_preferred_direction():
    # The entries of a uniform unit vector of length m have mean 0 and variance 1 / m. Over N entries the mean of the
    # squares of an m-vector's first entry has standard deviation below sqrt(2 / N) / m; six of them fail with 1e-8.
    m, draws = 4, 2000
    generator = np.random.default_rng(5)
    first = np.array([testing.haar_basis(m, 2, rng=generator)[0] for _ in range(draws)])
    assert np.all(np.abs(first.mean(axis=0)) <= 6 / np.sqrt(m * draws))
    assert np.all(np.abs((first**2).mean(axis=0) - 1 / m) <= 6 * np.sqrt(2 / draws) / m)


def test_haar_basis_survives_an_ill_conditioned_draw(monkeypatch):
    def dependent(generator, shape, dtype):
        Y = np.random.default_rng(0).standard_normal(shape)
        Y[:, 1] = Y[:, 0] * (1 + 1e-12 * np.arange(shape[0]))
        return Y

    monkeypatch.setattr(testing, "_gaussian", dependent)
    testing.assert_orthonormal(testing.haar_basis(30, 4))


def test_haar_basis_of_many_columns_is_orthonormal():
    testing.assert_orthonormal(testing.haar_basis(500, 500, rng=0))


@pytest.mark.parametrize("name", ["slow", "poly1", "poly2", "exp", "expslow", "sshape", "step", "flat"])
def test_spectra_do_not_increase(name):
    sigma = testing.spectrum(name, 2000)
    assert sigma.shape == (2000,)
    assert np.isfinite(sigma).all()
    assert (sigma > 0).all()
    assert (np.diff(sigma) <= 0).all()


def test_sshape_is_the_published_formula():
    j = np.arange(1.0, 101)
    expected = 1e-4 + 1 / (1 + np.exp(j - 30))
    assert np.abs(testing.spectrum("sshape", 100) - expected).max() <= 4 * np.finfo(float).eps


def test_low_rank_plus_noise_is_within_the_noise_of_low_rank():
    m, n, rank, noise = 200, 100, 5, 0.1
    found = np.linalg.svd(testing.low_rank_plus_noise(m, n, rank=rank, noise=noise, rng=2), compute_uv=False)
    # Davidson and Szarek: the noise exceeds its bound by t / sqrt(m) with probability exp(-t**2 / 2); t = 7.
    largest = noise * (1 + np.sqrt(n / m) + 7 / np.sqrt(m))
    assert np.abs(found - np.r_[np.ones(rank), np.zeros(n - rank)]).max() <= largest
    assert found[rank] >= noise / 2


def test_kahan_hides_a_singular_value_far_below_its_diagonal():
    K = testing.kahan(60)
    assert np.array_equal(K, np.triu(K))
    assert np.linalg.svd(K, compute_uv=False)[-1] <= 1e-3 * K[-1, -1]


def test_hilbert():
    assert np.array_equal(testing.hilbert(3, 2), [[1, 1 / 2], [1 / 2, 1 / 3], [1 / 3, 1 / 4]])
    assert testing.hilbert(4, dtype=np.float32).dtype == np.float32


def test_assert_orthonormal_accepts_a_basis_of_any_library():
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 4)))[0]
    testing.assert_orthonormal(Q)
    testing.assert_orthonormal(array_api_strict.asarray(Q))
    testing.assert_orthonormal(Q.astype(np.complex64))
    testing.assert_orthonormal(np.empty((5, 0)))


def test_assert_orthonormal_rejects():
    Q = np.eye(5)[:, :3]
    Q[0, 1] = 1e-6
    with pytest.raises(AssertionError, match=r"1\.0e-06"):
        testing.assert_orthonormal(Q)
    testing.assert_orthonormal(Q, tol=1e-5)
    with pytest.raises(AssertionError, match="not finite"):
        testing.assert_orthonormal(np.full((4, 2), np.nan), tol=1.0)


def test_counting_operator_counts_reads_and_columns():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((5, 4)) + 1j * rng.standard_normal((5, 4))
    counted = testing.CountingOperator(A)
    X, y = np.ones((4, 3)), np.ones(5)
    assert np.array_equal(counted.matmat(X), A @ X)
    assert np.array_equal(counted.rmatvec(y), A.conj().T @ y)
    assert (counted.shape, counted.dtype) == (A.shape, A.dtype)
    assert (counted.passes, counted.matvecs) == (2, 4)


def test_counting_rows_counts_entries():
    A = np.arange(12.0).reshape(6, 2)
    counted = testing.CountingRows(A, chunk_rows=4)
    assert counted.chunks == (4, 2)
    assert np.array_equal(counted[:3], A[:3])
    assert counted.passes == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: testing.spectrum("linear", 3), "name must be one of slow"),
        (lambda: testing.matrix_with_spectrum(3, 2, [1.0, 1.0, 1.0]), r"1\.\.2"),
        (lambda: testing.matrix_with_spectrum(3, 2, [[1.0]]), r"got shape \(1, 1\)"),
        (lambda: testing.matrix_with_spectrum(3, 2, [-1.0]), "non-negative"),
        (lambda: testing.matrix_with_spectrum(3, 2, [np.nan]), "finite"),
        (lambda: testing.haar_basis(3, 4), r"1\.\.3"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert str(error.value).startswith("rnla.testing.")
