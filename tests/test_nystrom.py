"""Nystrom approximations obey their theorems: between zero and A, near A, exact where they can be."""

import math
import pickle

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semidefinite import KINDS, eigenvalues, semidefinite, to_numpy, with_eigenvalues
from strategies import DTYPES, rounding

from rnla._errors import ConvergenceWarning, NotPositiveDefiniteError
from rnla._nystrom import START, nystrom
from rnla._sketch import test_matrix
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, hilbert, spectrum

SKETCHES = ("gaussian", "rademacher", "uniform", "sparse")


def wide(result):
    """Form the approximation in double precision."""
    w, V = (np.asarray(x).astype(np.promote_types(x.dtype, np.float64)) for x in result)
    return (V * w) @ V.conj().T


def norms(X):
    """Return the spectral, Frobenius and trace norm."""
    s = np.linalg.svd(X, compute_uv=False)
    return np.array([s[0], np.sqrt(np.sum(s**2)), s.sum()])


# What holds for every draw.


@pytest.mark.parametrize("n_iter", [0, 2])
@given(problem=semidefinite(), sketch=st.sampled_from(SKETCHES))
def test_eigenpairs_are_orthonormal_sorted_and_of_the_dtype_of_the_input(n_iter, problem, sketch):
    A, w, k, seed = problem
    found, V = result = nystrom(A, k, n_iter=n_iter, sketch=sketch, rng=seed)
    assert (found.shape, V.shape) == ((k,), (len(A), k))
    assert found.dtype == A.real.dtype
    assert V.dtype == A.dtype
    assert_orthonormal(V)
    assert np.all(found >= 0)
    assert np.all(np.diff(found) <= 0)
    # Weyl: the approximation is at most A.
    assert np.all(found <= w[:k] + problem.rounding)
    assert result.info.passes == n_iter + 1
    assert result.info.rank == k


@pytest.mark.parametrize("n_iter", [0, 1])
@given(problem=semidefinite(), sketch=st.sampled_from(SKETCHES))
def test_approximation_lies_between_zero_and_the_matrix(n_iter, problem, sketch):
    approximation = wide(nystrom(problem.A, problem.k, n_iter=n_iter, sketch=sketch, rng=problem.seed))
    assert np.linalg.eigvalsh(problem.A - approximation)[0] >= -problem.rounding
    assert np.linalg.eigvalsh(approximation)[0] >= -problem.rounding


@given(problem=semidefinite(dtypes=("float64", "complex128")))
def test_no_projection_on_the_same_vectors_is_nearer(problem):
    A, _, k, seed = problem
    result = nystrom(A, k, rng=seed)
    Q = np.linalg.qr(test_matrix("gaussian", result.info.seed, len(A), k, dtype=A.dtype))[0]
    # A - A<Q> = A^(1/2) (I - P) A^(1/2) with the projector P on A^(1/2) Q: in every unitarily invariant norm below
    # A - Q Q^H A.
    assert np.all(norms(A - wide(result)) <= norms(A - Q @ (Q.conj().T @ A)) + len(A) * problem.rounding)


@given(problem=semidefinite(dtypes=("float64", "complex128"), names=("slow", "poly1", "flat", "step", "ties")))
def test_action_on_the_test_matrix_is_that_of_the_matrix(problem):
    A, _, k, seed = problem
    result = nystrom(A, k, rng=seed)
    Q = np.linalg.qr(test_matrix("gaussian", result.info.seed, len(A), k, dtype=A.dtype))[0]
    # The shift of eps * ||A|| is divided by the smallest eigenvalue of the compression, at least the smallest of A.
    assert np.linalg.norm(wide(result) @ Q - A @ Q, 2) <= problem.rounding * problem.w[0] / problem.w[-1]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_a_matrix_of_low_rank_is_recovered(dtype, n, seed, extra):
    r = (n + 2) // 3
    w = np.where(np.arange(n) < r, 1.0 / (1 + np.arange(n)), 0.0)
    A = with_eigenvalues(w, rng=seed, dtype=dtype)
    k = min(r + extra, n)
    for n_iter in (0, 1):
        result = nystrom(A, k, n_iter=n_iter, rng=seed)
        # Recovery divides by the smallest eigenvalue of a compression of A: that of a square Gaussian matrix of order
        # r times w_r. It is below n**-4 with a probability of about n**-3 for a square one; seeds are fixed.
        assert np.linalg.norm(A - wide(result), 2) <= 100 * max(n, 3) ** (4 if extra < 3 else 2) * rounding(A, 1.0)
        assert np.all(result.eigenvalues[r:] <= rounding(A, 100.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_many_columns_as_rows_give_the_eigenvalues(dtype):
    A = with_eigenvalues(spectrum("poly2", 50), rng=0, dtype=dtype)
    w, V = nystrom(A, 50, rng=1)
    assert np.abs(w - eigenvalues(A)).max() <= rounding(A, 1.0)
    assert np.linalg.norm(A @ V - V * w, 2) <= 10 * rounding(A, 1.0)


@pytest.mark.parametrize("matrix", [np.zeros((5, 5)), np.ones((5, 5)), np.array([[3.0]]), hilbert(40), np.eye(7)])
def test_nasty_matrices(matrix):
    n = len(matrix)
    for k in {1, 2, n // 2, n} - {0}:
        if k <= n:
            result = nystrom(matrix, k, rng=0)
            assert_orthonormal(result.eigenvectors)
            assert np.linalg.eigvalsh(matrix - wide(result))[0] >= -rounding(matrix, np.linalg.norm(matrix, 2))
    assert np.linalg.norm(matrix - wide(nystrom(matrix, n, rng=0))) <= 10 * rounding(matrix, n)


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e150), ("float64", 1e-150), ("complex64", 1e30),
                                              ("float32", 1e-30)])  # fmt: skip
def test_scale_changes_nothing_but_the_eigenvalues(dtype, scale):
    A = with_eigenvalues(spectrum("exp", 40), rng=0, dtype=dtype)
    for options in ({"k": 12}, {"rtol": 0.05}, {"rtol": 0.05, "norm": 2}, {"atol": 0.05}):
        scaled = {**options, "atol": 0.05 * scale} if "atol" in options else options
        plain, result = nystrom(A, rng=0, **options), nystrom(A * A.real.dtype.type(scale), rng=0, **scaled)
        assert result.rank == plain.rank
        assert np.abs(result.eigenvalues / scale - plain.eigenvalues).max() <= 10 * rounding(A, 1.0)


# In expectation.


@pytest.mark.parametrize("name", ["slow", "poly1", "poly2", "exp", "step", "flat"])
def test_mean_errors_are_within_their_bounds(name):
    n, k, draws = 60, 14, 60
    w = spectrum(name, n)
    A = with_eigenvalues(w, rng=0)
    errors = [norms(A - wide(nystrom(A, k, rng=seed))) for seed in range(draws)]
    spectral, _, trace = np.mean(errors, axis=0)
    tail = np.append(np.cumsum(w[::-1])[::-1], 0.0)  # tail[r]: sum beyond the r-th
    # E tr <= (1 + r / (k - r - 1)) sum_{i > r} w_i for each r (TYUC17b, Theorem 4.1, real).
    assert trace <= min((1 + r / (k - r - 1)) * tail[r] for r in range(k - 1))
    # FTU, Proposition 2.2.
    assert spectral <= min(
        (1 + 2 * (k - p) / (p - 1)) * w[k - p] + 2 * math.e**2 * k / (p**2 - 1) * tail[k - p] for p in range(2, k - 1)
    )


@pytest.mark.parametrize(("name", "sketch", "dtype"), [("slow", "gaussian", "float64"), ("poly1", "uniform", "float64"),
                                                       ("exp", "gaussian", "complex128")])  # fmt: skip
def test_error_estimate_is_unbiased_for_one_column_less(name, sketch, dtype):
    A = with_eigenvalues(spectrum(name, 40), rng=0, dtype=dtype)
    k, draws = 10, 200
    estimates, true = [], []
    for seed in range(draws):
        result = nystrom(A, k, sketch=sketch, rng=seed)
        norm = np.linalg.norm(result.eigenvalues)
        estimate = norm / math.sqrt(result.info.error_estimate**-2 - 1)  # relative to hypot(norm, estimate)
        estimates.append(estimate**2)
        true.append(np.linalg.norm(A - wide(nystrom(A, k - 1, sketch=sketch, rng=seed))) ** 2)
    deviation = math.hypot(np.std(estimates), np.std(true)) / draws**0.5
    # Both means estimate the same number; five standard errors fail with a probability of 6e-7.
    assert abs(np.mean(estimates) - np.mean(true)) <= 5 * deviation


def test_power_iterations_help():
    A = with_eigenvalues(spectrum("slow", 100), rng=0)
    errors = [np.linalg.norm(A - wide(nystrom(A, 20, n_iter=q, rng=0)), 2) for q in (0, 1, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1.2 * spectrum("slow", 100)[20]  # the best of rank 20


# To a precision.


@pytest.mark.parametrize("n_iter", [0, 1])
@pytest.mark.parametrize("norm", ["fro", 2])
@pytest.mark.parametrize(
    ("name", "rtol"), [("exp", 1e-1), ("exp", 1e-6), ("poly1", 0.1), ("poly2", 1e-3), ("slow", 0.3)]
)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_precision_is_met(name, rtol, norm, n_iter, dtype):
    w = spectrum(name, 120)
    A = with_eigenvalues(w, rng=0, dtype=dtype)
    result = nystrom(A, rtol=rtol, norm=norm, n_iter=n_iter, rng=1)
    assert result.info.converged
    error = np.linalg.norm(A - wide(result), norm)
    size = np.linalg.norm(A, norm)
    # The Frobenius error is estimated with a standard error added twice; the spectral one from below, by a power method
    # that gave 0.79 of the norm or more.
    assert error <= rtol * size * (1.05 if norm == "fro" else 1 / 0.79)
    # No rank that is needed is passed by more than the doubling allows.
    tail = np.sqrt(np.cumsum(w[::-1] ** 2))[::-1] if norm == "fro" else w
    best = int(np.sum(tail > rtol * size))
    assert best <= result.rank <= max(6 * best, START)
    if norm == "fro":
        assert error / size / 4 <= result.info.error_estimate <= rtol * 1.05


def test_every_product_is_used():
    A = with_eigenvalues(spectrum("poly2", 400), rng=0)
    source = CountingOperator(A)
    result = nystrom(source, rtol=1e-3, rng=5)
    columns = START * 2 ** (len(result.info.history) - 1)
    assert source.matvecs == result.info.matvecs == columns
    assert source.passes == result.info.passes == len(result.info.history)
    whole = nystrom(A, columns, rng=5)
    # The doubled test matrix is the one of the whole rank: columns do not depend on how many are made.
    assert np.abs(whole.eigenvalues[: result.rank] - result.eigenvalues).max() <= rounding(A, 10.0)


def test_precision_below_rounding_ends_at_the_whole_matrix():
    A = with_eigenvalues(spectrum("slow", 50), rng=0)
    result = nystrom(A, rtol=0.0, rng=0)
    assert result.info.converged
    assert np.linalg.norm(A - wide(result)) <= rounding(A, 50.0)


def test_rank_reached_before_the_precision_is_reported():
    A = with_eigenvalues(spectrum("slow", 100), rng=0)
    with pytest.warns(ConvergenceWarning, match=r"rnla\.nystrom: rank 20 reached before the precision"):
        result = nystrom(A, 20, rtol=1e-3, rng=0)
    assert result.rank == 20
    assert not result.info.converged
    assert result.info.history[-1].error > 1e-3


def test_callback_ends_the_doubling():
    A = with_eigenvalues(spectrum("slow", 100), rng=0)
    seen = []

    def stop(record):
        seen.append(record)
        raise StopIteration

    result = nystrom(A, rtol=1e-6, rng=0, callback=stop)
    assert len(seen) == 1
    assert (result.rank, result.info.converged, result.info.message) == (START, False, "ended by the callback")


@given(problem=semidefinite(dtypes=("float64",), names=("low rank", "zero", "ties", "graded")))
def test_precision_of_nasty_matrices(problem):
    result = nystrom(problem.A, rtol=1e-6, rng=problem.seed)
    assert result.info.converged
    assert np.linalg.norm(problem.A - wide(result)) <= 2e-6 * np.linalg.norm(problem.A) + problem.rounding


# Shift.


def test_the_shift_belongs_to_both_products_and_is_subtracted():
    w = np.array([1.0, 0.5, 0.25] + [0.0] * 37)
    A = with_eigenvalues(w, rng=0)
    for shift in (1e-3, 1e-8):
        # (A + nu I)<X> - nu on the range: exact where A + nu I has the eigenvalue nu only outside the range of A.
        result = nystrom(A, 8, shift=shift, rng=0)
        assert np.all(result.eigenvalues <= w[:8] + rounding(A, 1.0))
        assert np.abs(result.eigenvalues - w[:8]).max() <= 100 * shift
    with_shift_of_core_only = 1e-3
    assert abs(nystrom(A, 40, shift=with_shift_of_core_only, rng=0).eigenvalues[0] - 1.0) <= rounding(A, 1.0)
    assert nystrom(A, 8, shift=0.0, rng=0).eigenvalues[3] <= rounding(A, 1.0)


# Inputs.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"k": 12}, {"k": 12, "n_iter": 1}, {"rtol": 1e-2}, {"rtol": 1e-2, "norm": 2}])
def test_all_kinds_of_input_agree(tmp_path, kind, options):
    A = with_eigenvalues(spectrum("exp", 60), rng=0, dtype="complex128")
    expected = nystrom(A, rng=2, **options)
    w, _ = result = nystrom(KINDS[kind](A, tmp_path), rng=2, **options)
    assert np.abs(to_numpy(w) - expected.eigenvalues).max() <= rounding(A, 10.0)
    dense = to_numpy(result.to_dense())
    # Pairs next to the rounding of the shift are free to turn; their product is not.
    assert np.abs(dense - expected.to_dense()).max() <= rounding(A, 100.0)
    assert result.info.passes == expected.info.passes


@pytest.mark.parametrize("dtype", [*DTYPES, "int32", "bool"])
def test_precision_of_the_input_is_kept(dtype):
    A = np.eye(30, dtype=dtype)
    w, V = nystrom(A, 5, rng=0)
    assert V.dtype == (np.dtype(dtype) if dtype in DTYPES else np.float64)
    assert w.dtype == V.real.dtype


@pytest.mark.parametrize(
    "place", ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize(
    "options", [{"k": 6}, {"k": 6, "n_iter": 2}, {"rtol": 0.1}, {"rtol": 0.1, "n_iter": 1, "norm": 2}]
)
def test_result_stays_on_the_device_of_the_input(place, dtype, options):
    xp, device = place
    A = xp.asarray(with_eigenvalues(spectrum("exp", 40), rng=0, dtype=dtype), device=device)
    w, V = result = nystrom(A, rng=0, **options)
    for X in (w, V, result.to_dense(), result @ A):
        assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
        assert array_api_compat.device(X) == array_api_compat.device(A)
    assert V.dtype == A.dtype


@pytest.mark.parametrize("place", ["torch-meta"], indirect=True)
@pytest.mark.parametrize("n_iter", [0, 2])
def test_fixed_rank_reads_no_value(place, n_iter):
    xp, device = place
    w, V = nystrom(xp.empty((90, 90), dtype=xp.complex64, device=device), 6, n_iter=n_iter, rng=0)
    assert (w.shape, V.shape) == ((6,), (90, 6))
    assert (w.dtype, V.dtype) == (xp.float32, xp.complex64)


def test_one_read_of_the_rows():
    A = with_eigenvalues(spectrum("exp", 60), rng=0)
    source = CountingRows(A, 16)
    nystrom(source, 10, rng=0)
    assert source.passes == 1


def test_a_seed_gives_one_result_and_a_generator_is_advanced_once():
    A = with_eigenvalues(spectrum("slow", 40), rng=0)
    assert np.array_equal(nystrom(A, 5, rng=3).eigenvalues, nystrom(A, 5, rng=3).eigenvalues)
    assert not np.array_equal(nystrom(A, 5, rng=3).eigenvalues, nystrom(A, 5, rng=4).eigenvalues)
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    nystrom(A, 4, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


def test_result_is_an_operator_and_can_be_pickled():
    A = with_eigenvalues(spectrum("exp", 40), rng=0)
    result = nystrom(A, 10, rng=0)
    again = pickle.loads(pickle.dumps(result))
    assert np.array_equal(again.eigenvalues, result.eigenvalues)
    assert result.H is result
    true = np.linalg.norm(A - wide(result))
    # Root of a mean of 200 squares, each of relative variance at most 2: within 50 per cent at five deviations.
    assert abs(result.error(A, num_samples=40, rng=7) / true - 1) <= 0.5
    assert abs(result.info.error_estimate * np.linalg.norm(A) / true - 1) <= 1.0


# What is refused.


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"k": 5}, {"k": 5, "n_iter": 2}, {"rtol": 0.1}, {"rtol": 1e-3, "norm": 2}])
@pytest.mark.parametrize("kind", ["numpy", "sparse csr", "linear operator", "torch", "dask rows"])
def test_values_that_are_not_finite_are_refused(tmp_path, value, options, kind):
    A = with_eigenvalues(spectrum("exp", 60), rng=0)
    A[33, 21] = A[21, 33] = value
    with pytest.raises(ValueError, match=r"^rnla\.nystrom: A must be finite"):
        nystrom(KINDS[kind](A, tmp_path), rng=0, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_that_is_visibly_not_hermitian_is_refused(dtype):
    A = with_eigenvalues(spectrum("exp", 60), rng=0, dtype=dtype)
    skew = np.triu(np.ones((60, 60)), 1) * np.float32(1e-1)
    with pytest.raises(ValueError, match=r"^rnla\.nystrom: A must be Hermitian"):
        nystrom(A + skew.astype(dtype), 5, rng=0)
    nystrom(A + (1e-3 * np.finfo(dtype).eps ** (1 / 3) * skew).astype(dtype), 5, rng=0)
    assert nystrom(A + (A[::-1] * 0.01).astype(dtype), 2, check=False, rng=0).rank == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("w", [
    np.append(spectrum("exp", 39), -0.5),
    np.r_[np.ones(20), -np.ones(20)],  # the trace cancels
    -spectrum("slow", 40),
], ids=["one negative", "cancelling trace", "negative"])  # fmt: skip
def test_a_matrix_that_is_clearly_indefinite_is_refused(dtype, w):
    A = with_eigenvalues(w, rng=0, dtype=dtype)
    with pytest.raises(NotPositiveDefiniteError, match=r"^rnla\.nystrom: A must be positive semidefinite"):
        nystrom(A, 30, rng=0)
    with pytest.raises(ValueError, match="positive semidefinite"):  # which it is, too
        nystrom(A, rtol=1e-8, rng=0)


INVALID = {
    "k zero": ({"k": 0}, ValueError, "k must be in 1..20"),
    "k too large": ({"k": 21}, ValueError, "k must be in 1..20"),
    "k no integer": ({"k": 2.0}, TypeError, "k must be an integer"),
    "nothing asked": ({"k": None}, ValueError, "one of k, rtol and atol must be given"),
    "rtol": ({"rtol": -1.0}, ValueError, "rtol must be finite and not negative"),
    "atol": ({"atol": math.nan}, ValueError, "atol must be finite and not negative"),
    "norm": ({"norm": "nuc"}, ValueError, "norm must be one of 'fro', 2"),
    "n_iter": ({"n_iter": -1}, ValueError, "n_iter must be at least 0"),
    "sketch": ({"sketch": "srht"}, ValueError, "sketch must be one of"),
    "shift": ({"shift": -1.0}, ValueError, "shift must be finite and not negative"),
    "shift text": ({"shift": "big"}, TypeError, "shift must be a real number"),
    "check": ({"check": 2}, ValueError, "check must be one of True, False"),
    "rng": ({"rng": -1}, ValueError, "rng as a seed must be a non-negative int"),
    "callback": ({"callback": 3}, TypeError, "callback must be callable"),
}


@pytest.mark.parametrize("case", INVALID)
def test_arguments_out_of_range_are_refused(case):
    options, error, text = INVALID[case]
    with pytest.raises(error, match=rf"^rnla\.nystrom: {text}"):
        nystrom(np.eye(20), **{"k": 3, **options})


@pytest.mark.parametrize(("A", "error"), [(np.ones((3, 4)), ValueError), (np.ones(3), ValueError), ("A", TypeError)])
def test_what_is_no_square_matrix_is_refused(A, error):
    with pytest.raises(error, match=r"^rnla\.nystrom: A must be"):
        nystrom(A, 1)
