"""Preconditioned conjugate gradients solve what they say they solve, in few iterations, and report what they cannot."""

import math

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from semidefinite import KINDS, semidefinite, to_numpy, with_eigenvalues
from strategies import DTYPES, rounding

from rnla._backend import key_from_rng
from rnla._errors import ConvergenceWarning, NotPositiveDefiniteError
from rnla._kernel_matrix import KernelMatrix
from rnla._matrix import as_matrix
from rnla._pcg import SolveResult, _preconditioner, pcg
from rnla.testing import CountingOperator, spectrum

PRECONDS = ("nystrom", "rpcholesky", None)
BY_PRODUCTS = ("linear operator", "matvec", "functions")


def kernel_problem(n=800, seed=0):
    """Return a Gaussian kernel matrix of points in the plane, and a right-hand side."""
    rng = np.random.default_rng(seed)
    K = KernelMatrix(rng.uniform(size=(n, 2)), "gaussian", 0.3)
    return K.columns(np.arange(n)), rng.standard_normal(n)


def relative_residual(A, mu, x, b):
    A, x, b = (X.astype(np.promote_types(X.dtype, np.float64)) for X in (A, x, b))
    return np.linalg.norm(b - A @ x - mu * x, axis=0) / np.linalg.norm(b, axis=0)


# Solutions.


@pytest.mark.parametrize("precond", PRECONDS)
@given(problem=semidefinite(dtypes=("float64", "complex128")), mu=st.sampled_from([1e-2, 1.0, 100.0]),
       columns=st.integers(0, 4), tol=st.sampled_from([1e-4, 1e-10]))  # fmt: skip
def test_residuals_meet_the_tolerance(precond, problem, mu, columns, tol):
    A, w, _, seed = problem
    mu = mu * (w[0] if w[0] > 0 else 1.0)
    shape = len(A) if columns == 0 else (len(A), columns)
    b = np.random.default_rng(seed).standard_normal(shape).astype(A.dtype)
    result = pcg(A, b, mu=mu, precond=precond, tol=tol, rng=seed)
    assert result.converged
    assert result.x.shape == b.shape
    assert result.x.dtype == A.dtype
    residual = relative_residual(A, mu, result.x, b)
    assert np.all(residual <= tol + rounding(A, 1.0))
    assert np.all(np.abs(residual - result.residual) <= rounding(A, 1.0))
    # ||x - x*|| <= ||r|| / mu.
    solution = np.linalg.solve(A + mu * np.eye(len(A)), b)
    assert np.linalg.norm(result.x - solution) <= (tol + rounding(A, 1.0)) * np.linalg.norm(b) / mu
    assert len(result.history) == result.n_iter


@pytest.mark.parametrize("precond", PRECONDS)
@pytest.mark.parametrize("rank", ["auto", 1, 10, 40])
def test_every_rank_of_the_preconditioner_leads_to_the_solution(precond, rank):
    A = with_eigenvalues(spectrum("exp", 40), rng=0)
    b = np.random.default_rng(0).standard_normal((40, 3))
    result = pcg(A, b, mu=1e-6, precond=precond, rank=rank, tol=1e-9, rng=0)
    assert result.converged
    assert relative_residual(A, 1e-6, result.x, b).max() <= 1.01e-9
    assert result.rank == 0 if precond is None else result.rank <= 40


@pytest.mark.parametrize("precond", PRECONDS)
def test_a_positive_definite_matrix_needs_no_mu(precond):
    A = with_eigenvalues(spectrum("poly1", 200), rng=0)
    b = np.random.default_rng(0).standard_normal(200)
    result = pcg(A, b, precond=precond, tol=1e-10, rng=0)
    assert result.converged
    assert relative_residual(A, 0.0, result.x, b) <= 1.01e-10


def test_columns_converge_apart_and_zero_stays_zero():
    A = with_eigenvalues(spectrum("poly2", 100), rng=0)
    V = np.linalg.eigh(A)[1]
    b = np.stack([V[:, 0], np.zeros(100), np.ones(100), 1e-200 * np.ones(100), 1e200 * V[:, -1]], axis=1)
    result = pcg(A, b, mu=1e-3, precond=None, tol=1e-10, rng=0)
    assert result.converged
    assert np.all(result.x[:, 1] == 0)
    assert result.residual[1] == 0
    for j in (0, 2, 3, 4):
        size = np.abs(b[:, j]).max()
        assert relative_residual(A, 1e-3, result.x[:, j] / size, b[:, j] / size) <= 1.01e-10
    alone = pcg(A, b[:, 2], mu=1e-3, precond=None, tol=1e-10)
    assert np.linalg.norm(alone.x - result.x[:, 2]) <= 1e-6 * np.linalg.norm(alone.x)
    zero = pcg(A, np.zeros(100), mu=1e-3, rng=0)
    assert (zero.converged, zero.n_iter, zero.residual) == (True, 0, 0.0)


@pytest.mark.parametrize("precond", PRECONDS)
@pytest.mark.parametrize(
    ("dtype", "scale"), [("float64", 1e150), ("float64", 1e-150), ("float32", 1e25), ("float32", 1e-25)]
)
def test_scale_changes_nothing_but_the_solution(dtype, scale, precond):
    A = with_eigenvalues(spectrum("exp", 40), rng=0, dtype=dtype)
    b = np.random.default_rng(0).standard_normal(40).astype(dtype)
    plain = pcg(A, b, mu=1e-3, precond=precond, tol=1e-4, rng=0)
    scale = 2.0 ** round(math.log2(scale))
    result = pcg(A * A.dtype.type(scale), b, mu=1e-3 * scale, precond=precond, tol=1e-4, rng=0)
    assert result.converged
    assert np.abs(result.x.astype(float) * scale - plain.x).max() <= 1e3 * rounding(A, np.abs(plain.x).max())


def test_mu_far_above_the_matrix_and_a_zero_matrix():
    b = np.random.default_rng(0).standard_normal(30)
    for A in (np.zeros((30, 30)), 1e-100 * with_eigenvalues(spectrum("exp", 30), rng=0)):
        for precond in PRECONDS:
            result = pcg(A, b, mu=2.0, precond=precond, rng=0)
            assert result.converged
            assert np.abs(result.x - b / 2).max() <= rounding(A, 1.0)


# Iterations.


@pytest.mark.parametrize(("mu", "most", "plain"), [(1e-2, 15, 60), (1e-6, 15, 400)])
def test_few_iterations_where_plain_conjugate_gradients_need_many(mu, most, plain):
    A, b = kernel_problem()
    assert pcg(A, b, mu=mu, precond=None, tol=1e-8).n_iter >= plain
    for precond in ("nystrom", "rpcholesky"):
        result = pcg(A, b, mu=mu, precond=precond, tol=1e-8, rng=0)
        assert result.converged
        assert result.n_iter <= most
        assert relative_residual(A, mu, result.x, b) <= 1.01e-8


@pytest.mark.parametrize("mu", [1e-1, 1e-3, 1e-5])
def test_mean_condition_is_below_28(mu):
    n, draws = 120, 20
    w = spectrum("poly2", n)
    A = with_eigenvalues(w, rng=0)
    k = math.ceil(3 * np.sum(w / (w + mu))) + 1
    conditions = []
    for seed in range(draws):
        W, rank = _preconditioner(A, as_matrix(A, "test"), mu, "nystrom", k, key_from_rng(seed, "test"), "test")
        assert rank <= k
        inverse = np.eye(n) - W @ W.T
        values = np.linalg.eigvals(inverse @ (A + mu * np.eye(n))).real
        conditions.append(values.max() / values.min())
    # FTU, Theorem 5.1: E cond < 28 for k = ceil(3 d_eff) + 1; the mean of 20 draws has been below 10.
    assert np.mean(conditions) < 28


def test_the_rank_is_doubled_until_it_suffices_for_mu():
    A, b = kernel_problem(400)
    w = np.linalg.eigvalsh(A)[::-1]
    ranks = []
    for mu in (1.0, 1e-2, 1e-6):
        source = CountingOperator(A)
        result = pcg(source, b, mu=mu, rng=0)
        ranks.append(result.rank)
        needed = int(np.sum(w > mu))
        assert result.rank <= max(32, 2 * needed + 2)
        # One product for each doubling, one for each iteration and one for the residual.
        assert source.passes == math.log2(max(result.rank / 32, 1)) + 1 + result.n_iter + 1
    assert ranks == sorted(ranks)


def test_complete_preconditioner_solves_in_one_or_two_iterations():
    A = with_eigenvalues(spectrum("poly2", 50), rng=0)
    b = np.random.default_rng(0).standard_normal(50)
    for precond in ("nystrom", "rpcholesky"):
        assert pcg(A, b, mu=1e-4, precond=precond, rank=50, rng=0).n_iter <= 2


def test_kernel_matrix_is_never_formed():
    rng = np.random.default_rng(0)
    n = 1000
    K = KernelMatrix(rng.uniform(size=(n, 2)), "gaussian", 0.2)
    b = rng.standard_normal(n)
    result = pcg(K, b, mu=1e-3, precond="rpcholesky", rng=0)
    assert result.converged
    assert np.linalg.norm(K @ result.x + 1e-3 * result.x - b) <= 1.01e-8 * np.linalg.norm(b)
    assert K.evaluations <= (result.rank + 20) * n + (result.n_iter + 3) * (n * n / 2 + 2000 * n)


# Precision.


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("precond", ["nystrom", "rpcholesky"])
def test_single_precision(dtype, precond):
    A = with_eigenvalues(spectrum("exp", 100), rng=0, dtype=dtype)
    b = np.random.default_rng(0).standard_normal((100, 2)).astype(dtype)
    # Rounding of x alone leaves a residual of eps * ||A|| * ||x|| / ||b||, which is up to eps / mu. With mu not far
    # from the rounding of A, the preconditioner must still be positive definite.
    for mu, tol in ((1e-2, 1e-4), (1e-5, 1e-1)):
        result = pcg(A, b, mu=mu, precond=precond, tol=tol, rng=0)
        assert result.converged
        assert result.x.dtype == A.dtype
        assert relative_residual(A, mu, result.x, b).max() <= 2 * tol


def test_a_tolerance_below_rounding_is_reported():
    A = with_eigenvalues(np.logspace(0, -5, 60), rng=0, dtype="float32")
    b = np.ones(60, dtype="float32")
    with pytest.warns(ConvergenceWarning, match=r"rnla\.pcg: rounding stops the residual from falling, at a relative"):
        result = pcg(A, b, mu=1e-5, tol=1e-12, rng=0)
    assert not result.converged
    assert relative_residual(A, 1e-5, result.x, b) <= 0.1
    # What is reported is computed in the precision of the data: it has the rounding of A x.
    rounding = len(b) * np.finfo(A.dtype).eps * np.linalg.norm(result.x) / np.linalg.norm(b)
    assert abs(result.residual - relative_residual(A, 1e-5, result.x, b)) <= rounding
    assert result.residual <= rounding


def test_too_few_iterations_are_reported():
    A, b = kernel_problem(200)
    with pytest.warns(ConvergenceWarning, match=r"rnla\.pcg: max_iter = 3 reached"):
        result = pcg(A, b, mu=1e-6, precond=None, max_iter=3)
    assert (result.converged, result.n_iter, result.message) == (False, 3, "max_iter = 3 reached")
    assert result.residual == pytest.approx(relative_residual(A, 1e-6, result.x, b))
    assert "NOT converged" in repr(result)


def test_callback_ends_the_iteration():
    A, b = kernel_problem(200)
    seen = []

    def stop(record):
        seen.append(record)
        if len(seen) == 4:
            raise StopIteration

    result = pcg(A, b, mu=1e-6, precond=None, callback=stop)
    assert (result.converged, result.n_iter, result.message) == (False, 4, "ended by the callback")
    assert [record.iteration for record in seen] == [1, 2, 3, 4]
    assert list(result.history) == seen


def test_singular_systems_are_reported():
    A = np.diag([1.0, 1.0, 0.0])
    with pytest.warns(ConvergenceWarning, match="singular to working precision"):
        result = pcg(A, np.array([0.0, 0.0, 1.0]), precond=None)
    assert not result.converged
    # With a right-hand side in the range there is a solution.
    assert pcg(A, np.array([1.0, 2.0, 0.0]), precond=None).x.tolist() == [1.0, 2.0, 0.0]


# Inputs.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precond", PRECONDS)
def test_all_kinds_of_input_agree(tmp_path, kind, precond):
    A = with_eigenvalues(spectrum("exp", 60), rng=0, dtype="complex128")
    b = np.random.default_rng(0).standard_normal(60).astype(complex)
    source = KINDS[kind](A, tmp_path)
    if precond == "rpcholesky" and kind in BY_PRODUCTS:
        with pytest.raises(ValueError, match=r"^rnla\.pcg: A must be known by its entries"):
            pcg(source, b, mu=1e-3, precond=precond)
        return
    right = b
    if kind == "strict-device1" or kind.startswith("torch"):
        xp = array_api_compat.array_namespace(source)
        right = xp.asarray(b, device=array_api_compat.device(source))
    expected = pcg(A, b, mu=1e-3, precond=precond, tol=1e-9, rng=0)
    result = pcg(source, right, mu=1e-3, precond=precond, tol=1e-9, rng=0)
    assert result.converged
    assert np.linalg.norm(to_numpy(result.x) - expected.x) <= 2e-9 / 1e-3 * np.linalg.norm(b)


@pytest.mark.parametrize(
    "place", ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("precond", PRECONDS)
def test_solution_stays_on_the_device_of_the_input(place, dtype, precond):
    xp, device = place
    A = xp.asarray(with_eigenvalues(spectrum("exp", 40), rng=0, dtype=dtype), device=device)
    for shape in (40, (40, 2)):
        b = xp.asarray(np.ones(shape, dtype), device=device)
        x = pcg(A, b, mu=1e-2, precond=precond, tol=1e-4, rng=0).x
        assert array_api_compat.array_namespace(x) is array_api_compat.array_namespace(A)
        assert array_api_compat.device(x) == array_api_compat.device(A)
        assert (x.shape, x.dtype) == (b.shape, A.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_hand_sides_take_the_dtype_of_the_matrix(dtype):
    A = np.diag([1.0, 2.0, 4.0]).astype(dtype)
    for b in (np.array([1, 2, 4]), [1.0, 2.0, 4.0], np.array([True, True, True]), np.array([1, 2, 4], np.float32)):
        assert pcg(A, b, tol=1e-5).x.dtype == A.dtype


def test_a_seed_gives_one_result_and_inputs_are_left_alone():
    A, b = kernel_problem(100)
    before = A.copy(), b.copy()
    first, again = (pcg(A, b, mu=1e-4, rng=3) for _ in range(2))
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(A, before[0])
    assert np.array_equal(b, before[1])
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    pcg(A, b, mu=1e-4, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state
    assert isinstance(first, SolveResult)
    assert str(first) == repr(first)


# What is refused.


@pytest.mark.parametrize("precond", PRECONDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(precond, value):
    A, b = kernel_problem(60)
    A[3, 4] = A[4, 3] = value
    with pytest.raises(ValueError, match=r"^rnla\.pcg: A must be finite"):
        pcg(A, b, mu=1e-2, precond=precond, rank=60, rng=0)
    b[5] = value
    with pytest.raises(ValueError, match=r"^rnla\.pcg: b must be finite"):
        pcg(np.eye(60), b)


@pytest.mark.parametrize("precond", PRECONDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_indefinite_matrix_is_refused(precond, dtype):
    A = with_eigenvalues(np.append(spectrum("slow", 39), -0.5), rng=0, dtype=dtype)
    b = np.random.default_rng(0).standard_normal(40).astype(dtype)
    with pytest.raises(NotPositiveDefiniteError, match=r"^rnla\.pcg: A.* must be positive"):
        pcg(A, b, mu=0.1, precond=precond, rng=0)


INVALID = {
    "b length": ({"b": np.ones(19)}, ValueError, r"b must have shape \(20,\) or \(20, r\)"),
    "b empty": ({"b": np.ones((20, 0))}, ValueError, "b must have shape"),
    "b kind": ({"b": "ones"}, TypeError, "b must be an array of the library of A"),
    "b complex": ({"b": np.ones(20, complex)}, TypeError, "b must be real where A is"),
    "b dates": ({"b": np.zeros(20, "datetime64[s]")}, TypeError, "b must have a numeric dtype"),
    "mu": ({"mu": -1.0}, ValueError, "mu must be finite and not negative"),
    "tol": ({"tol": math.inf}, ValueError, "tol must be finite and not negative"),
    "precond": ({"precond": "jacobi"}, ValueError, "precond must be one of"),
    "rank": ({"rank": 21}, ValueError, "rank must be in 1..20"),
    "rank text": ({"rank": "big"}, TypeError, "rank must be an integer"),
    "max_iter": ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    "rng": ({"rng": -1}, ValueError, "rng as a seed must be a non-negative int"),
    "callback": ({"callback": 3}, TypeError, "callback must be callable"),
}


@pytest.mark.parametrize("case", INVALID)
def test_arguments_out_of_range_are_refused(case):
    options, error, text = INVALID[case]
    with pytest.raises(error, match=rf"^rnla\.pcg: {text}"):
        pcg(np.eye(20), **{"b": np.ones(20), **options})


def test_what_is_no_square_matrix_is_refused():
    with pytest.raises(ValueError, match=r"^rnla\.pcg: A must be square"):
        pcg(np.ones((3, 4)), np.ones(3))
    with pytest.raises(ValueError, match=r"^rnla\.pcg: A must be Hermitian"):
        pcg(np.triu(np.ones((40, 40))), np.ones(40), mu=1.0, rng=0)


@pytest.mark.parametrize("precond", ["nystrom", "rpcholesky"])
def test_no_advice_is_given_that_cannot_be_followed(precond):
    A = np.diag(np.arange(10.0, 40.0)) + np.triu(np.ones((30, 30)), 1)
    with pytest.raises(ValueError, match=r"^rnla\.pcg: A must be Hermitian; ") as caught:
        pcg(A, np.ones(30), precond=precond, rng=0)
    assert "check=False" not in str(caught.value)
