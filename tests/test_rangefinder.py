"""Range finders obey the theorems of Halko, Martinsson and Tropp."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NAMED, problems, rounding

import rnla
from rnla import _rangefinder
from rnla._backend import key_from_rng
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum

# Above the rounding of (A A^H)^q A Omega, which has the condition number of A to the power 2 q + 1.
MILD = ("slow", "step", "flat", "poly1")


def outside(A, Q):
    return A - Q @ (Q.conj().T @ A)


def columns_for(A, seed, count):
    """Return the test matrix that a call with this seed applies to A."""
    key = key_from_rng(seed, "test")
    xp = array_api_compat.array_namespace(A)
    return rnla.sketch.test_matrix("gaussian", key, A.shape[1], count, xp=xp, device="cpu", dtype=A.dtype)


# Theorems that hold for every draw.


@given(problem=problems(names=NAMED, dtypes=("float64", "complex128"), sides=(2, 40)), p=st.integers(0, 10))
def test_the_error_is_within_the_deterministic_bound(problem, p):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=0, rng=seed)
    Omega = columns_for(A, seed, Q.shape[1])
    # The range is that of A Omega, whatever the orthonormalisation.
    Y = A @ Omega
    assert np.linalg.norm(outside(Y, Q)) <= problem.rounding * np.linalg.norm(Omega)
    _, _, Vh = np.linalg.svd(A)
    for split in range(1, k + 1):
        first, rest = Vh[:split] @ Omega, Vh[split:] @ Omega
        if np.linalg.cond(first) > 1e6:  # the pseudoinverse would carry the rounding of the product, not the theorem
            continue
        tail = np.zeros((Vh.shape[0] - split, Vh.shape[0] - split))
        np.fill_diagonal(tail, np.r_[sigma[split:], np.zeros(len(tail))][: len(tail)])
        coupling = tail @ rest @ np.linalg.pinv(first)
        for order in (2, "fro"):
            # HMT, Theorem 9.1.
            bound = np.hypot(np.linalg.norm(tail, order), np.linalg.norm(coupling, order)) if tail.size else 0.0
            assert np.linalg.norm(outside(A, Q), order) <= bound * (1 + 1e-8) + problem.rounding


@given(
    problem=problems(names=MILD, dtypes=("float64", "complex128"), sides=(2, 40)),
    p=st.integers(0, 6),
    q=st.integers(1, 3),
)
def test_power_iterations_take_the_root_of_the_error_of_the_power(problem, p, q):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=q, rng=seed)
    assert_orthonormal(Q)
    power = A.copy()
    for _ in range(q):
        power = A @ (A.conj().T @ power)
    # HMT, Theorem 9.2; what rounding adds to the power, its root adds to the bound.
    noise = (problem.rounding / sigma[0]) * sigma[0] ** (2 * q + 1)
    bound = (np.linalg.norm(outside(power, Q), 2) + noise) ** (1 / (2 * q + 1))
    assert np.linalg.norm(outside(A, Q), 2) <= bound + problem.rounding


@given(problem=problems(sides=(2, 40)), p=st.integers(0, 6), q=st.integers(0, 2))
def test_truncation_adds_at_most_one_singular_value(problem, p, q):
    A, sigma, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=q, rng=seed)
    result = rnla.svd(A, k, method="rsi", n_oversamples=p, n_iter=q, rng=seed)
    error = np.linalg.norm(A - result.to_dense(), 2)
    # HMT, Theorem 9.3.
    following = sigma[k] if k < len(sigma) else 0.0
    assert error <= following + np.linalg.norm(outside(A, Q), 2) + problem.rounding
    assert error >= following - problem.rounding


@given(
    problem=problems(),
    p=st.integers(0, 10),
    q=st.integers(0, 2),
    sketch=st.sampled_from(["gaussian", "rademacher", "uniform", "sparse"]),
)
def test_range_and_qb_of_a_rank_are_one(problem, p, q, sketch):
    A, _, k, seed = problem
    Q = rnla.range_finder(A, k, n_oversamples=p, n_iter=q, sketch=sketch, rng=seed)
    assert Q.shape == (A.shape[0], min(k + p, *A.shape))
    assert Q.dtype == A.dtype
    assert_orthonormal(Q)
    Q, B = result = rnla.qb(A, k, n_iter=q, sketch=sketch, rng=seed)
    assert (Q.shape, B.shape) == ((A.shape[0], k), (k, A.shape[1]))
    assert Q.dtype == B.dtype == A.dtype
    assert_orthonormal(Q)
    assert np.abs(B - Q.conj().T @ A).max() <= problem.rounding
    assert result.rank == result.info.rank == k
    assert result.info.converged
    if k == min(A.shape):
        assert np.linalg.norm(A - Q @ B) <= problem.rounding * k**0.5


# Theorems about the average over draws.

DRAWS = 80
SPECTRA = ["slow", "poly1", "poly2", "exp", "step"]


def tail_norm(sigma, power=1):
    return np.sqrt(np.sum(sigma ** (2 * power)))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    ("k", "p", "dtype"), [(3, 3, "float64"), (8, 5, "float64"), (8, 12, "float64"), (8, 5, "complex128")]
)
def test_average_errors_without_power_iterations(name, dtype, k, p):
    sigma = spectrum(name, 40)
    A = matrix_with_spectrum(50, 40, sigma, rng=k, dtype=dtype)
    errors = [outside(A, rnla.range_finder(A, k, n_oversamples=p, n_iter=0, rng=draw)) for draw in range(DRAWS)]
    frobenius, spectral = (np.array([np.linalg.norm(E, order) for E in errors]) for order in ("fro", 2))
    size = k + p
    growth, e = k / (p - 1), np.e
    # HMT, Theorems 10.5 and 10.6. Averages of 80 draws came out at 0.05 to 0.9 of these bounds.
    assert frobenius.mean() <= (1 + growth) ** 0.5 * tail_norm(sigma[k:])
    assert spectral.mean() <= (1 + growth**0.5) * sigma[k] + e * size**0.5 / p * tail_norm(sigma[k:])
    assert np.mean(frobenius**2) <= min((1 + r / (size - r - 1)) * tail_norm(sigma[r:]) ** 2 for r in range(size - 1))
    # Tropp and Webber, arXiv 2306.12418.
    assert np.mean(spectral**2) <= min(
        (1 + 2 * r / (size - r - 1)) * (sigma[r] ** 2 + e**2 / (size - r) * tail_norm(sigma[r:]) ** 2)
        for r in range(size - 1)
    )
    # Eckart-Young: no space of this dimension does better.
    assert frobenius.min() >= tail_norm(sigma[size:]) * (1 - 1e-12)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("q", [1, 2])
def test_average_errors_with_power_iterations(name, q):
    sigma, k, p = spectrum(name, 40), 6, 5
    A = matrix_with_spectrum(50, 40, sigma, rng=1)
    errors = [
        np.linalg.norm(outside(A, rnla.range_finder(A, k, n_oversamples=p, n_iter=q, rng=draw)), 2)
        for draw in range(DRAWS)
    ]
    # HMT, Corollary 10.10.
    power = 2 * q + 1
    inner = (1 + (k / (p - 1)) ** 0.5) * sigma[k] ** power + np.e * (k + p) ** 0.5 / p * tail_norm(sigma[k:], power)
    assert np.mean(errors) <= inner ** (1 / power)
    assert min(errors) >= sigma[k + p] * (1 - 1e-12)


@given(problem=problems(names=NAMED, dtypes=("float64", "complex128"), sides=(14, 40)), k=st.integers(2, 6))
def test_the_error_is_within_the_bound_in_probability(problem, k):
    A, sigma, _, seed = problem
    p = 8
    error = np.linalg.norm(outside(A, rnla.range_finder(A, k, n_oversamples=p, n_iter=0, rng=seed)), 2)
    # HMT, Corollary 10.9: fails with probability at most 6 exp(-p) = 2e-3 for each of the fixed examples; the bound is
    # in fact several times the error.
    bound = (1 + 17 * (1 + k / p) ** 0.5) * sigma[k] + 8 * (k + p) ** 0.5 / (p + 1) * tail_norm(sigma[k:])
    assert error <= bound + problem.rounding
    # HMT, eq. (1.9), with the safer constants 11 and 6 p**-p = 4e-7.
    assert error <= (1 + 11 * ((k + p) * min(A.shape)) ** 0.5) * sigma[k] + problem.rounding


def test_without_orthonormalisation_small_directions_would_be_lost():
    # eps**(1 / (2 q + 1)) = 1e-3 for q = 2: the matrix has ten values below that (HMT, Remark 4.3).
    sigma = np.logspace(0, -9, 20)
    A = matrix_with_spectrum(60, 50, np.r_[sigma, np.zeros(30)], rng=0)
    Q = rnla.range_finder(A, 20, n_oversamples=0, n_iter=2, rng=0)
    assert np.linalg.norm(outside(A, Q), 2) <= rounding(A, 1.0)


# Passes, libraries, arguments.


def test_passes_of_qb():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    for n_iter in (0, 1, 2):
        operator = CountingOperator(A)
        info = rnla.qb(operator, 5, n_iter=n_iter, rng=0).info
        assert info.passes == operator.passes == 2 * n_iter + 2
        assert info.matvecs == operator.matvecs == 5 * (2 * n_iter + 2)
        operator = CountingOperator(A)
        rnla.range_finder(operator, 5, n_iter=n_iter, rng=0)
        assert operator.passes == 2 * n_iter + 1
        rows = CountingRows(A, 16)
        rnla.range_finder(rows, 5, n_iter=n_iter, rng=0)
        assert rows.passes == n_iter + 1
        rows = CountingRows(A, 16)
        info = rnla.qb(rows, rtol=0.2, n_iter=n_iter, rng=0).info
        # Every block reads A 2 n_iter + 2 times, and the norm needs one read.
        assert info.passes == rows.passes == len(info.history) * (2 * n_iter + 2) + 1
        operator = CountingOperator(A)
        info = rnla.qb(operator, rtol=0.2, n_iter=n_iter, rng=0).info
        assert info.passes == operator.passes


@pytest.mark.parametrize("place", ["strict-device1", "torch"], indirect=True)
def test_other_libraries(place):
    xp, device = place
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    expected = rnla.qb(A, rtol=1e-2, rng=0)
    Q, B = rnla.qb(xp.asarray(A, device=device), rtol=1e-2, rng=0)
    assert array_api_compat.device(Q) == array_api_compat.device(B) == device
    assert Q.shape[1] == expected.rank
    assert_orthonormal(Q)
    assert array_api_compat.device(rnla.range_finder(xp.asarray(A, device=device), 4, rng=0)) == device


@pytest.mark.parametrize("place", ["torch-meta"], indirect=True)
def test_a_fixed_rank_reads_no_value(place):
    xp, device = place
    A = xp.empty((90, 70), dtype=xp.float32, device=device)
    assert rnla.range_finder(A, 4, rng=0).shape == (90, 14)
    Q, B = rnla.qb(A, 4, rng=0)
    assert (Q.shape, B.shape) == ((90, 4), (4, 70))


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"k": 0}, ValueError, "k must be in 1..20"), ({"k": 21}, ValueError, "k must be in 1..20"),
    ({"k": 2.0}, TypeError, "k must be an integer"), ({"n_iter": -1}, ValueError, "n_iter must be at least 0"),
    ({"n_iter": 1.0}, TypeError, "n_iter must be an integer"), ({"sketch": "x"}, ValueError, "sketch must be one of"),
    ({"rng": "x"}, TypeError, "rng must be"),
])  # fmt: skip
@pytest.mark.parametrize("function", ["qb", "range_finder"])
def test_bad_arguments(function, options, error, message):
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(error) as caught:
        getattr(rnla, function)(A, **{"k": 3, **options})
    assert str(caught.value).startswith(f"rnla.{function}: {message}")
    assert A.passes == 0


@pytest.mark.parametrize(("options", "error", "message"), [
    ({}, ValueError, "one of k, rtol and atol must be given"), ({"rtol": -1}, ValueError, "rtol must be finite"),
    ({"atol": float("nan")}, ValueError, "atol must be finite"),
    ({"k": 3, "norm": True}, ValueError, "norm must be one of 'fro', 2; got True"),
    ({"k": 3, "norm": "nuc"}, ValueError, "norm must be one of 'fro', 2"),
    ({"k": 3, "block_size": 0}, ValueError, "block_size must"),
    ({"rtol": 0.1, "callback": 3}, TypeError, "callback must be callable"),
])  # fmt: skip
def test_bad_arguments_of_qb(options, error, message):
    with pytest.raises(error) as caught:
        rnla.qb(np.ones((30, 20)), **options)
    assert str(caught.value).startswith(f"rnla.qb: {message}")


# Parts.


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(30, 4), (4, 30), (5, 5), (1, 1), (3, 0), (0, 3)])
def test_thin_svd(dtype, shape):
    X = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    U, s, Vh = _rangefinder.thin_svd(X)
    assert U.dtype == Vh.dtype == X.dtype
    assert s.dtype == X.real.dtype
    allowed = rounding(np.zeros((max(*shape, 1), 1), dtype), 10.0)
    assert np.abs((U * s) @ Vh - X).max(initial=0.0) <= allowed
    assert_orthonormal(U)
    assert_orthonormal(Vh.conj().T)


def test_thin_svd_keeps_small_values():
    sigma = np.logspace(0, -14, 8)
    X = matrix_with_spectrum(100, 8, sigma, rng=0)
    # By the eigenvalues of X^T X all below 1e-8 would be lost.
    assert np.abs(_rangefinder.thin_svd(X)[1] - sigma).max() <= rounding(X, 1.0) / 10


def test_squares_are_summed_in_double_precision():
    X = np.full((2**25, 1), 1.0, np.float32)
    X[1:] = 2.0**-12  # each of these is below the rounding of the sum in single precision
    assert abs(_rangefinder.column_squares(X)[0] - (1 + (2**25 - 1) * 2.0**-24)) <= 1e-9
