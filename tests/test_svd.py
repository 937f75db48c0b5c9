"""Singular triplets obey the theorems, whatever the method, the dtype and the spectrum."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DTYPES, NAMED, problems, rounding, singular_values

import rnla
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum

EXACT = ("dense", "qr")
ITERATIVE = ("krylov", "gram")
PROJECTIONS = (*EXACT, "rsi", *ITERATIVE, "rowstream")  # their result is U U^H A
METHODS = (*PROJECTIONS, "gnystrom", "auto")


def svd(A, k, method, **options):
    """Call `rnla.svd`; where one pass cannot resolve a small singular value, its warning to that effect is expected."""
    with warnings.catch_warnings():
        if method == "rowstream":
            warnings.simplefilter("ignore", rnla.AccuracyWarning)
        return rnla.svd(A, k, method=method, **options)


def slack(problem, result):
    """Return the rounding of each singular value; what squares A, or divides by a singular value, has more of it."""
    S = np.maximum(result.S.astype(float), problem.eps * problem.sigma[0])
    if result.info.method == "rowstream":
        return problem.rounding * max(problem.eps**-0.5, 1.0) * np.ones_like(S)
    if result.info.method == "gram" and problem.sigma[0] > 0:
        return problem.rounding * problem.sigma[0] / S.min() * np.ones_like(S)
    return problem.rounding * np.ones_like(S)


def true_residuals(A, result):
    U, S, Vh = (X.astype(np.promote_types(A.dtype, np.float64)) for X in result)
    V = Vh.conj().T
    right, left = A @ V - U * S, A.conj().T @ U - V * S
    return np.maximum(np.linalg.norm(right, axis=0), np.linalg.norm(left, axis=0))


# Every method, every dtype: what a truncated SVD is.


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems())
def test_factors_are_orthonormal_sorted_and_of_the_dtype_of_the_input(method, problem):
    A, _, k, seed = problem
    U, S, Vh = result = svd(A, k, method, rng=seed)
    assert (U.shape, S.shape, Vh.shape) == ((A.shape[0], k), (k,), (k, A.shape[1]))
    assert U.dtype == Vh.dtype == A.dtype
    assert S.dtype == A.real.dtype
    assert_orthonormal(U)
    assert_orthonormal(Vh.conj().T)
    assert np.all(S >= 0)
    assert np.all(np.diff(S) <= 0)
    assert result.info.rank == k


@pytest.mark.parametrize("method", EXACT)
@given(problem=problems())
def test_exact_methods_agree_with_lapack(method, problem):
    A, sigma, k, _ = problem
    result = svd(A, k, method)
    assert np.abs(result.S - sigma[:k]).max() <= problem.rounding
    # Eckart-Young: no matrix of rank k is nearer.
    error = np.linalg.norm(A - result.to_dense().astype(np.promote_types(A.dtype, float)), 2)
    assert error <= (sigma[k] if k < len(sigma) else 0.0) + problem.rounding


@pytest.mark.parametrize("method", PROJECTIONS)
@given(problem=problems())
def test_singular_values_are_lower_bounds(method, problem):
    result = svd(problem.A, problem.k, method, rng=problem.seed)
    # Cauchy interlacing: s_j(U^H A) <= sigma_j(A).
    assert np.all(problem.sigma[: problem.k] + slack(problem, result) >= result.S)


@pytest.mark.parametrize("method", [*EXACT, "rsi", *ITERATIVE])
@given(problem=problems())
def test_error_of_a_projection_obeys_pythagoras(method, problem):
    A, sigma, k, seed = problem
    result = svd(A, k, method, rng=seed)
    total, captured = np.sum(sigma**2), np.sum(result.S.astype(float) ** 2)
    error = np.linalg.norm(A - result.to_dense().astype(np.promote_types(A.dtype, float)))
    # ||A - U U^H A||_F^2 = ||A||_F^2 - ||U^H A||_F^2; both squares carry the rounding of A's norm.
    assert abs(error**2 - (total - captured)) <= problem.rounding * sigma[0] * k


@pytest.mark.parametrize("method", ITERATIVE)
@given(problem=problems(), tol=st.sampled_from([1e-1, 1e-2, 1e-4]), width=st.sampled_from([None, 1, 3, 8]))
def test_a_converged_residual_is_no_larger_than_reported(method, problem, tol, width):
    A, sigma, k, seed = problem
    assume(tol > 100 * problem.eps)
    result = rnla.svd(A, k, method=method, tol=tol, block_size=width, max_passes=500, rng=seed)
    assert result.info.converged
    assert result.info.message == "converged"
    residuals = true_residuals(A, result)
    # The estimate of `gram` bounds a residual that mixes the last blocks; a factor of 2 covers the mixing.
    assert np.all(residuals <= 2 * result.info.residuals + slack(problem, result))
    assert np.all(residuals <= 2 * tol * sigma[:k] + slack(problem, result) + 10 * problem.rounding)


@pytest.mark.parametrize("method", ITERATIVE)
@given(problem=problems(), width=st.sampled_from([None, 2, 8]))
def test_singular_values_converge_to_those_of_lapack(method, problem, width):
    A, sigma, k, seed = problem
    tol = 1e-6 if problem.eps < 1e-10 else 1e-3
    result = rnla.svd(A, k, method=method, tol=tol, block_size=width, max_passes=500, rng=seed)
    # Weyl: orthonormal U, V with residuals R pair up with singular values no further away than ||R||. That they are the
    # leading ones holds for almost every start, and `verify` looks for missed copies.
    allowed = k**0.5 * tol * sigma[:k] + slack(problem, result)
    assert np.all(np.abs(result.S - sigma[:k]) <= allowed)


@pytest.mark.parametrize("method", ITERATIVE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["slow", "poly1", "poly2", "exp", "expslow", "step"])
def test_default_tolerance_gives_four_digits(method, dtype, name):
    sigma = spectrum(name, 90)
    A = matrix_with_spectrum(120, 90, sigma, rng=7, dtype=dtype)
    result = rnla.svd(A, 10, method=method, rng=3)
    assert result.info.converged
    # Section "Stop rule": 1e-4 but for flat spectra, where 3e-3 is what a residual of 1e-2 allows.
    allowed = 3e-3 if name == "expslow" else 1e-4
    assert np.all(np.abs(result.S / sigma[:10] - 1) <= allowed + rounding(A, 1.0) / sigma[:10] ** 2)


@given(problem=problems(names=("poly1", "poly2", "exp"), dtypes=("float64", "complex128"), sides=(10, 50), tall=True))
def test_krylov_on_the_whole_space_is_lapack(problem):
    A, sigma, _, seed = problem
    n = A.shape[1]
    result = rnla.svd(A, n, method="krylov", block_size=4, max_basis=n, tol=0, max_passes=500, rng=seed)
    assert np.abs(result.S - sigma).max() <= problem.rounding
    assert np.linalg.norm(A - result.to_dense(), 2) <= problem.rounding


# In how many passes, and what they buy.


@given(
    problem=problems(tall=True, names=NAMED, dtypes=("float64", "complex128")), p=st.integers(0, 8), q=st.integers(0, 3)
)
def test_krylov_finds_no_less_than_subspace_iteration_with_the_same_passes(problem, p, q):
    A, _, k, seed = problem
    options = {"n_oversamples": p, "rng": seed}
    subspace = rnla.svd(CountingOperator(A), k, method="rsi", n_iter=q, **options)
    block = min(k + p, A.shape[1])
    # A tolerance that squares allow: 4 eps (sigma_1 / sigma_k)**2 is below it in these spectra.
    options.update(block_size=block, max_basis=A.shape[1], tol=1e-7, verify=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        # One product more than the 2 q + 2 of subspace iteration: it only measures the residual.
        krylov = rnla.svd(A, k, method="krylov", max_passes=2 * q + 3, **options)
        gram = rnla.svd(CountingOperator(A), k, method="gram", max_passes=2 * q + 2, **options)
    assert subspace.info.passes == 2 * q + 2
    for result in (krylov, gram):
        # The space of subspace iteration, (A A^H)^q A Omega, is part of the Krylov space.
        assert np.all(subspace.S - slack(problem, result) - problem.rounding <= result.S)


@pytest.mark.parametrize("method", ITERATIVE)
@given(problem=problems(names=NAMED, sides=(20, 50)))
def test_singular_values_grow_with_the_passes(method, problem):
    A, _, k, seed = problem
    k = min(k, 5)
    before = np.zeros(k)
    for passes in range(3, 12, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rnla.ConvergenceWarning)
            result = rnla.svd(
                A, k, method=method, block_size=k, max_basis=50, max_passes=passes, tol=1e-7, verify=False, rng=seed
            )
        assert np.all(before - slack(problem, result) <= result.S)
        before = result.S
    assert before[0] > 0


COUNTED = [
    (method, kind) for method in METHODS for kind in ("operator", "rows") if (method, kind) != ("rowstream", "operator")
]


@pytest.mark.parametrize(("method", "kind"), COUNTED)
@pytest.mark.parametrize("shape", [(120, 80), (80, 120)])
@pytest.mark.parametrize("center", [False, True])
def test_passes_and_products_are_counted(method, kind, shape, center):
    A = matrix_with_spectrum(*shape, spectrum("slow", 80), rng=0)
    counting = CountingOperator(A) if kind == "operator" else CountingRows(A, 16)
    info = svd(counting, 5, method, center=center, rng=0).info
    assert info.passes == counting.passes
    if kind == "operator":
        assert info.matvecs == counting.matvecs
    assert info.matvecs > 0 or method in EXACT


def test_promised_passes():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    for n_iter in range(4):
        assert rnla.svd(CountingOperator(A), 5, method="rsi", n_iter=n_iter, rng=0).info.passes == 2 * n_iter + 2
        rows = CountingRows(A, 16)
        assert rnla.svd(rows, 5, method="rsi", n_iter=n_iter, rng=0).info.passes == rows.passes == n_iter + 2
    for method, passes in (("rowstream", 1), ("gnystrom", 2), ("dense", 1), ("qr", 1)):
        rows = CountingRows(A, 16)
        assert svd(rows, 5, method, rng=0).info.passes == rows.passes == passes
    rows = CountingRows(A, 16)
    assert rnla.svd(rows, 5, max_passes=1, rng=0).info.method == "rowstream"
    assert rows.passes == 1


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_file_is_read_once_for_every_block_and_once_at_the_end(method):
    A = matrix_with_spectrum(120, 70, spectrum("poly1", 70), rng=0)
    rows = CountingRows(A, 16)
    info = rnla.svd(rows, 5, method=method, rng=0).info
    blocks = len(info.history)
    # The first product of `krylov` has no triplets to report yet.
    assert rows.passes == (blocks + 1 if method == "gram" else 2 * blocks + 1)


@pytest.mark.parametrize("kind", ["dense", "operator", "rows", "sparse"])
@pytest.mark.parametrize("method", ["auto", *ITERATIVE])
@pytest.mark.parametrize("max_passes", [2, 3, 4, 5, 6, 9])
def test_max_passes_is_a_bound_and_the_best_so_far_is_returned(kind, method, max_passes):
    from scipy.sparse import csr_array

    sigma = np.r_[np.ones(12), spectrum("flat", 108) * 0.9]
    A = matrix_with_spectrum(150, 120, sigma, rng=0)
    view = {"dense": A, "operator": CountingOperator(A), "rows": CountingRows(A, 16), "sparse": csr_array(A)}[kind]
    with pytest.warns(rnla.ConvergenceWarning, match=rf"^rnla\.svd: max_passes = {max_passes} reached ") as caught:
        U, S, Vh = result = rnla.svd(view, 10, method=method, max_passes=max_passes, tol=1e-9, rng=0)
    info = result.info
    assert not info.converged
    assert [str(warning.message) for warning in caught] == [f"rnla.svd: {info.message}."]
    # Bounded, and used: a step takes at most two passes.
    assert max_passes - 1 <= info.passes <= max_passes
    assert_orthonormal(U)
    assert_orthonormal(Vh.T)
    # A block that was multiplied twice sees a good part of the largest values; none is overestimated.
    assert np.all(S[:8] >= 0.3)
    assert np.all(sigma[:10] + rounding(A, 1.0) >= S)
    # What is not known to be small is not said to be: also of zeros that stand in for triplets not found yet.
    assert np.all(true_residuals(A, result) <= 2 * info.residuals + rounding(A, 1.0))


@pytest.mark.parametrize("function", [rnla.svd, rnla.svdvals, rnla.svds])
def test_a_warning_points_at_the_line_of_the_call(function):
    A = matrix_with_spectrum(120, 100, spectrum("flat", 100), rng=0)
    option = {"maxiter" if function is rnla.svds else "max_passes": 4}
    with pytest.warns(rnla.ConvergenceWarning) as caught:
        function(A, 5, tol=1e-9, rng=0, **option)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(rnla.ConvergenceWarning) as caught:
        function(A, 5, rtol=1e-9, rng=0)
    assert [warning.filename for warning in caught] == [__file__]


# Exactness of symmetries.


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems(dtypes=("float64", "complex128"), names=("poly1", "exp", "slow")), power=st.integers(-300, 300))
def test_scaling_by_a_power_of_two_scales_the_singular_values(method, problem, power):
    A, _, k, seed = problem
    original = svd(A, k, method, rng=seed)
    scaled = svd(A * 2.0**power, k, method, rng=seed)
    allowed = slack(problem, original) * (100 if method == "gnystrom" else 1)
    assert np.all(np.abs(scaled.S / 2.0**power - original.S) <= allowed)
    assert scaled.info.method == original.info.method


# "gnystrom" multiplies from the left by a random matrix, whose rows stay where they are.
@pytest.mark.parametrize("method", [*PROJECTIONS, "auto"])
@given(problem=problems(dtypes=("float64", "complex128"), names=("poly1", "slow"), sides=(2, 40), tall=True))
def test_permuting_the_rows_of_a_tall_matrix_permutes_u(method, problem):
    A, sigma, k, seed = problem
    order = np.random.default_rng(seed).permutation(A.shape[0])
    original = svd(A, k, method, rng=seed)
    permuted = svd(A[order], k, method, rng=seed)
    # Values 1 / j and j**-0.5 are separated: a perturbation of a product by its rounding moves the result by as much.
    allowed = slack(problem, original).max()
    assert np.abs(permuted.S - original.S).max() <= allowed
    assert np.abs(permuted.to_dense() - original.to_dense()[order]).max() <= len(sigma) * 10 * allowed


@pytest.mark.parametrize("method", [*EXACT, *ITERATIVE])
@given(problem=problems(dtypes=("float64", "complex128"), names=("poly1", "slow")))
def test_the_adjoint_has_the_adjoint_factors(method, problem):
    A, _, k, seed = problem
    assume(A.shape[0] != A.shape[1])  # a square matrix has no short side to start from in both cases
    original, swapped = svd(A, k, method, rng=seed), svd(A.conj().T, k, method, rng=seed)
    allowed = slack(problem, original)
    assert np.all(np.abs(original.S - swapped.S) <= allowed)
    assert np.abs(original.to_dense() - swapped.to_dense().conj().T).max() <= 10 * len(problem.sigma) * allowed.max()


# The rest of the interface.


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems(names=("poly1", "exp", "low rank")))
def test_values_alone_are_those_of_the_whole(method, problem):
    A, _, k, seed = problem
    result = svd(A, k, method, rng=seed)
    alone = svd(A, k, method, compute_uv=False, rng=seed)
    assert not isinstance(alone, tuple)
    assert alone.dtype == A.real.dtype
    assert np.all(np.abs(alone - result.S) <= slack(problem, result))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.AccuracyWarning)
        assert np.array_equal(rnla.svdvals(A, k, method=method, rng=seed), alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_flip_sign_makes_the_largest_entry_of_u_positive(dtype, method, shape):
    A = matrix_with_spectrum(*shape, spectrum("poly1", 40), rng=1, dtype=dtype)
    eps = np.finfo(dtype).eps
    U, S, _ = result = svd(A, 6, method, rng=0)
    size = np.abs(U)
    for j in range(6):
        # The first of the entries within 1e-6 of the largest is real and positive.
        pivot = U[np.flatnonzero(size[:, j] >= size[:, j].max() * (1 - 1e-6))[0], j]
        assert pivot.real > 0
        assert abs(pivot.imag) <= 4 * eps
    free = svd(A, 6, method, flip_sign=False, rng=0)
    assert np.array_equal(free.S, S)
    assert np.abs(free.to_dense() - result.to_dense()).max() <= rounding(A, 1.0)
    other = svd(A, 6, method, rng=1)
    if method not in ("rsi", "rowstream", "gnystrom"):  # these are not accurate enough to compare vectors
        assert np.abs(np.sum(other.U.conj() * U, axis=0) - 1).max() <= 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [1.0, 1e6])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_centering_is_subtraction_of_the_column_means(method, offset, dtype):
    noise = matrix_with_spectrum(90, 70, spectrum("slow", 70), rng=2, dtype=dtype)
    A = noise + offset * np.random.default_rng(0).standard_normal(70) * (1 + 1j if dtype == "complex128" else 1)
    mean = A.mean(axis=0)
    result = svd(A, 6, method, center=True, rng=5)
    explicit = svd(A - mean, 6, method, rng=5)
    # A mean of numbers of size `offset`, and a difference of such numbers, each round by eps * offset.
    allowed = rounding(A, 1.0) * max(offset, 10.0) * (10 if method in ("gnystrom", "rowstream") else 1)
    assert np.abs(result.S - explicit.S).max() <= allowed
    assert np.abs(result.to_dense() - explicit.to_dense()).max() <= 10 * allowed
    if method in (*EXACT, *ITERATIVE):
        assert np.abs(result.S / singular_values(A - mean)[:6] - 1).max() <= 1e-3
        assert np.abs(np.ones(90) @ result.U).max() <= 90**0.5 * allowed / result.S[-1] * 10
