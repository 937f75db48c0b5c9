"""Eigenpairs obey the theorems, whatever the dtype, the spectrum and the end that is wanted."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import DTYPES, rounding
from strategies import values as decaying

from rnla import ConvergenceWarning
from rnla._eigh import eigh
from rnla.testing import CountingOperator, assert_orthonormal, haar_basis, hilbert, spectrum

WHICH = ("LM", "LA", "SA", "BE")
METHODS = ("dense", "krylov", "auto")
SPECTRA = ("slow", "poly1", "exp", "step", "low rank", "ties", "one large", "zero")
SIGNS = ("positive", "negative", "alternating", "pairs")


class Problem(NamedTuple):
    """A Hermitian matrix, its eigenvalues by LAPACK in double precision (rising), a rank and a seed."""

    A: np.ndarray
    w: np.ndarray
    k: int
    seed: int

    @property
    def eps(self):
        return float(np.finfo(self.A.dtype).eps)

    @property
    def norm(self):
        return float(np.abs(self.w).max())

    @property
    def rounding(self):
        """Error of a backward stable method: a modest multiple of eps times the norm."""
        return rounding(self.A, self.norm)

    @property
    def noise(self):
        """Residual at which the iteration is content: 100 units of rounding of the norm."""
        return max(100.0, 2 * len(self.w) ** 0.5) * self.eps * self.norm


def hermitian(w, seed, dtype="float64"):
    """Return a Hermitian matrix with given eigenvalues and Haar eigenvectors."""
    V = haar_basis(len(w), len(w), rng=seed, dtype=np.promote_types(dtype, np.float64))
    A = (V * w) @ V.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def signed(sizes, signs):
    """Give signs to moduli; ``pairs`` takes every second one twice, once with each sign."""
    j = np.arange(len(sizes))
    if signs == "pairs":
        return np.where(j % 2 == 0, sizes, -sizes[j - j % 2])
    return sizes * {"positive": 1.0, "negative": -1.0, "alternating": (-1.0) ** j}[signs]


def eigenvalues(A):
    return np.linalg.eigvalsh(A.astype(np.promote_types(A.dtype, np.float64)))


def wanted(w, which):
    """Return rising eigenvalues in the order of `which`, written out anew."""
    if which == "LM":
        return np.array(sorted(w, key=lambda x: (-abs(x), -x)))
    if which == "BE":
        ends = [(w[-1 - i // 2] if i % 2 == 0 else w[i // 2]) for i in range(len(w))]
        return np.array(ends)
    return w[::-1] if which == "LA" else w


def outward(w, which):
    """Return a number for each value that grows as it moves towards its end of the spectrum."""
    w = np.asarray(w, float)
    if which == "BE":
        return w * (-1.0) ** np.arange(len(w))
    return {"LM": np.abs(w), "LA": w, "SA": -w}[which]


@st.composite
def problems(draw, *, names=SPECTRA, signs=SIGNS, dtypes=DTYPES, sides=(1, 50)):
    n = draw(st.integers(*sides))
    w = signed(decaying(draw(st.sampled_from(names)), n), draw(st.sampled_from(signs)))
    seed = draw(st.integers(0, 2**32 - 1))
    A = hermitian(w, seed, draw(st.sampled_from(dtypes)))
    return Problem(A, eigenvalues(A), draw(st.integers(1, n)), seed)


def residual_norms(A, w, V):
    wide = np.promote_types(A.dtype, np.float64)
    A, V = A.astype(wide), V.astype(wide)
    return np.linalg.norm(A @ V - V * w.astype(float), axis=0)


# Every method, every end, every dtype: what a partial eigendecomposition is.


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems(), which=st.sampled_from(WHICH))
def test_vectors_are_orthonormal_and_values_in_the_order_of_which(method, problem, which):
    A, w, k, seed = problem
    values, V = result = eigh(A, k, which=which, method=method, max_passes=500, rng=seed)
    assert (values.shape, V.shape) == ((k,), (len(w), k))
    assert V.dtype == A.dtype
    assert values.dtype == A.real.dtype
    assert_orthonormal(V)
    ends = outward(values, which)
    if which == "BE":
        assert np.all(np.diff(ends[0::2]) <= 0)
        assert np.all(np.diff(ends[1::2]) <= 0)
    else:
        assert np.all(np.diff(ends) <= 0)
    assert result.info.rank == k


@given(problem=problems(), which=st.sampled_from(WHICH))
def test_dense_agrees_with_lapack(problem, which):
    A, w, k, _ = problem
    values, V = eigh(A, k, which=which, method="dense")
    assert np.abs(outward(values, which) - outward(wanted(w, which)[:k], which)).max() <= problem.rounding
    assert np.all(residual_norms(A, values, V) <= problem.rounding)


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems(), which=st.sampled_from(WHICH))
def test_values_do_not_reach_beyond_those_of_the_matrix(method, problem, which):
    A, w, k, seed = problem
    values = eigh(A, k, which=which, method=method, max_passes=500, rng=seed).eigenvalues
    # Cauchy interlacing for both ends; for the moduli, the singular values of a compression.
    assert np.all(outward(values, which) <= outward(wanted(w, which)[:k], which) + problem.rounding)


@pytest.mark.parametrize("method", METHODS)
@given(problem=problems(), which=st.sampled_from(WHICH))
def test_error_obeys_pythagoras(method, problem, which):
    A, w, k, seed = problem
    result = eigh(A, k, which=which, method=method, max_passes=500, rng=seed)
    error = np.linalg.norm(A - result.to_dense().astype(np.promote_types(A.dtype, float)))
    rest = np.sum(w**2) - np.sum(result.eigenvalues.astype(float) ** 2)
    # For Ritz pairs V^H A V = diag(w), so ||A - V w V^H||^2 = ||A||^2 - sum w^2; squares carry rounding of the norm.
    assert abs(error**2 - rest) <= 4 * problem.rounding * problem.norm * len(w)


@given(
    problem=problems(),
    which=st.sampled_from(WHICH),
    tol=st.sampled_from([1e-1, 1e-2, 1e-4]),
    width=st.sampled_from([None, 1, 3, 8]),
)
def test_a_converged_residual_is_no_larger_than_reported(problem, which, tol, width):
    A, _, k, seed = problem
    values, V = result = eigh(A, k, which=which, method="krylov", tol=tol, block_size=width, max_passes=500, rng=seed)
    assert result.info.converged
    assert result.info.message == "converged"
    residuals = residual_norms(A, values, V)
    assert np.all(residuals <= result.info.residuals + problem.rounding)
    assert np.all(residuals <= tol * np.abs(values) + problem.noise + problem.rounding)


@given(problem=problems(names=("slow", "poly1", "exp", "low rank", "ties")), which=st.sampled_from(WHICH),
       width=st.sampled_from([None, 2, 8]))  # fmt: skip
def test_values_converge_to_those_of_lapack(problem, which, width):
    A, w, k, seed = problem
    tol = 1e-6 if problem.eps < 1e-10 else 1e-3
    values = eigh(A, k, which=which, method="krylov", tol=tol, block_size=width, max_passes=500, rng=seed).eigenvalues
    # Orthonormal vectors with residuals R pair up with eigenvalues no further away than ||R||. That they are the
    # leading ones holds for almost every start, and `verify` looks for missed copies.
    allowed = k**0.5 * (tol * np.abs(values).max() + problem.noise) + problem.rounding
    assert np.abs(outward(values, which) - outward(wanted(w, which)[:k], which)).max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["slow", "poly1", "poly2", "exp", "step"])
@pytest.mark.parametrize("signs", SIGNS)
def test_default_tolerance_gives_four_digits(dtype, name, signs):
    w = signed(spectrum(name, 150), signs)
    A = hermitian(w, 7, dtype)
    for which in ("LM",) if signs in ("positive", "negative") else WHICH:
        result = eigh(A, 10, which=which, method="krylov", rng=3)
        assert result.info.converged
        assert result.info.passes <= 20
        exact = outward(wanted(np.sort(w), which)[:10], which)
        # Residual squared over the gap, with gaps of a tenth of the value and more.
        assert np.all(np.abs(outward(result.eigenvalues, which) / exact - 1) <= 1e-3 + rounding(A, 1.0) / exact)


@given(problem=problems(names=("poly1", "exp", "slow"), dtypes=("float64", "complex128"), sides=(5, 40)))
def test_krylov_on_the_whole_space_is_lapack(problem):
    A, w, _, seed = problem
    n = len(w)
    result = eigh(A, n, which="SA", method="krylov", block_size=4, max_basis=n, tol=0, max_passes=500, rng=seed)
    assert np.abs(result.eigenvalues - w).max() <= problem.rounding
    assert np.linalg.norm(A - result.to_dense(), 2) <= problem.rounding


@pytest.mark.parametrize("which", WHICH)
@settings(max_examples=10)  # for each of the four, of seven runs
@given(problem=problems(names=("slow", "poly1"), dtypes=("float64", "complex128"), sides=(20, 50)))
def test_values_move_outwards_with_the_passes(which, problem):
    A, _, k, seed = problem
    k = min(k, 5)
    before = np.full(k, -np.inf)
    for passes in range(1, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            values = eigh(
                A, k, which=which, method="krylov", block_size=k, max_basis=50, max_passes=passes, tol=1e-12,
                verify=False, rng=seed,
            ).eigenvalues  # fmt: skip
        assert np.all(before - problem.rounding <= outward(values, which))  # the spaces are nested
        before = outward(values, which)


# Passes, warnings, callbacks.


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("width", [None, 3])
def test_passes_and_products_are_counted(which, width):
    A = CountingOperator(hermitian(signed(spectrum("slow", 150), "alternating"), 0))
    info = eigh(A, 5, which=which, method="krylov", block_size=width, rng=0).info
    assert (info.passes, info.matvecs) == (A.passes, A.matvecs)
    if width is None:
        assert info.passes == len(info.history)  # A is read once for every block


@pytest.mark.parametrize("max_passes", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("view", [np.asarray, CountingOperator])
def test_max_passes_is_a_bound_and_the_best_so_far_is_returned(view, width, max_passes):
    w = np.r_[np.ones(12), spectrum("flat", 138) * 0.9]
    A = hermitian(w, 0)
    with pytest.warns(ConvergenceWarning, match=rf"^rnla\.eigh: max_passes = {max_passes} reached ") as caught:
        values, V = result = eigh(
            view(A), 10, method="krylov", block_size=width, max_passes=max_passes, tol=1e-9, rng=0
        )
    info = result.info
    assert not info.converged
    assert [str(warning.message) for warning in caught] == [f"rnla.eigh: {info.message}."]
    assert caught[0].filename == __file__
    assert max_passes - 1 <= info.passes <= max_passes
    assert values.shape == (10,)
    assert_orthonormal(V)
    assert np.all(residual_norms(A, values, V) <= info.residuals + rounding(A, 1.0))


def test_nothing_is_claimed_that_could_not_be_verified():
    A = hermitian(np.r_[np.ones(5), np.zeros(145)], 0)
    with pytest.warns(ConvergenceWarning, match="repeated eigenvalues not ruled out"):
        result = eigh(A, 8, method="krylov", block_size=4, max_passes=4, rng=0)
    assert not result.info.converged


def test_a_callback_follows_and_ends_the_iteration():
    A = hermitian(spectrum("slow", 150), 0)
    records = []
    result = eigh(A, 5, method="krylov", tol=1e-9, callback=records.append, rng=0)
    assert result.info.history == tuple(records)
    assert records[-1].error <= 1e-9 < records[-2].error

    def stop(record):
        raise StopIteration

    for width in (None, 2):
        values, V = stopped = eigh(A, 5, method="krylov", block_size=width, tol=1e-9, callback=stop, rng=0)
        assert not stopped.info.converged
        assert stopped.info.message == "ended by the callback"
        assert values.shape == (5,)
        assert_orthonormal(V)


# Symmetries.


@given(problem=problems(dtypes=("float64", "complex128"), names=("poly1", "exp", "slow")),
       which=st.sampled_from(WHICH), power=st.integers(-300, 300), method=st.sampled_from(METHODS))  # fmt: skip
def test_scaling_by_a_power_of_two_scales_the_values(problem, which, power, method):
    A, _, k, seed = problem
    original = eigh(A, k, which=which, method=method, max_passes=500, rng=seed).eigenvalues
    scaled = eigh(A * 2.0**power, k, which=which, method=method, max_passes=500, rng=seed).eigenvalues
    assert np.abs(outward(scaled, which) / 2.0**power - outward(original, which)).max() <= 1e-4 * problem.norm


@given(problem=problems(dtypes=("float64", "complex128"), names=("poly1", "slow"), signs=("alternating", "positive")))
def test_the_negative_has_the_negative_values(problem):
    A, _, k, seed = problem
    options = {"method": "krylov", "max_passes": 500, "tol": 1e-7, "rng": seed}
    upper, lower = eigh(A, k, which="LA", **options), eigh(-A, k, which="SA", **options)
    assert np.abs(upper.eigenvalues + lower.eigenvalues).max() <= problem.rounding


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_both_ends_are_nested(method):
    A = hermitian(signed(spectrum("slow", 150), "alternating"), 0)
    w = eigenvalues(A)
    for k in (1, 2, 5):
        values = eigh(A, k, which="BE", method=method, tol=1e-8, rng=0).eigenvalues
        assert np.abs(values - wanted(w, "BE")[:k]).max() <= rounding(A, 1.0)
    result = eigh(A, 5, which="BE", method=method, tol=1e-8, rng=0)
    assert np.abs(result.truncate(2).eigenvalues - w[[-1, 0]]).max() <= rounding(A, 1.0)


# Matrices on which plain methods fail.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 9, 150])
@pytest.mark.parametrize("which", WHICH)
def test_zero_matrix(method, dtype, n, which):
    result = eigh(np.zeros((n, n), dtype), min(n, 5), which=which, method=method, rng=0)
    assert np.all(result.eigenvalues == 0)
    assert_orthonormal(result.eigenvectors)
    assert result.info.converged


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "bool"])
@pytest.mark.parametrize("method", METHODS)
def test_one_by_one(dtype, method):
    w, V = eigh(np.ones((1, 1), dtype), 1, method=method, rng=0)
    assert abs(w[0] - 1) <= 1e-6
    assert abs(abs(V[0, 0]) - 1) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("r", [1, 5, 9])
@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("which", WHICH)
def test_rank_below_k(dtype, r, width, which):
    w = signed(1.0 / np.arange(1, r + 1), "alternating")
    A = hermitian(np.r_[w, np.zeros(150 - r)], r, dtype)
    values, V = result = eigh(A, 10, which=which, method="krylov", block_size=width, max_passes=200, rng=1)
    assert_orthonormal(V)
    assert result.info.converged
    exact = wanted(np.sort(np.r_[w, np.zeros(150 - r)]), which)[:10]
    assert np.abs(outward(values, which) - outward(exact, which)).max() <= rounding(A, 1.0)
    assert np.all(residual_norms(A, values, V) <= 1e-2 * np.abs(values) + 4 * rounding(A, 1.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "scale"), [
    *((dtype, scale) for dtype in ("float64", "complex128") for scale in (1e150, 1e-150)),
    *((dtype, scale) for dtype in ("float32", "complex64") for scale in (1e30, 1e-30)),
])  # fmt: skip
def test_extreme_scales(method, dtype, scale):
    A = hermitian(signed(spectrum("poly2", 150), "alternating"), 0, np.promote_types(dtype, np.float64))
    for view in (np.asarray, CountingOperator):
        large = eigh(view((A * scale).astype(dtype)), 5, method=method, rng=0)
        plain = eigh(view(A.astype(dtype)), 5, method=method, rng=0)
        assert_orthonormal(large.eigenvectors)
        # Scaling by a number that is not a power of two rounds every entry once.
        allowed = 10 * rounding(A.astype(dtype), 1.0)
        assert np.abs(large.eigenvalues.astype(float) / scale - plain.eigenvalues).max() <= allowed
        assert large.info.converged
        assert np.all(large.info.residuals <= 1e-2 * np.abs(large.eigenvalues.astype(float)) + allowed * scale)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("tol", [1e-2, 1e-10])
@pytest.mark.parametrize("seed", range(3))
def test_multiplicity_beyond_the_block(which, tol, seed):
    inner = np.linspace(-0.25, 0.25, 140)
    A = hermitian(np.r_[np.ones(20), -np.ones(20), inner], seed)
    result = eigh(A, 20, which=which, method="krylov", block_size=8, tol=tol, max_passes=500, rng=seed)
    assert result.info.converged
    # Error at most residual squared over the gap.
    assert np.all(1 - np.abs(result.eigenvalues) <= 4 * tol**2 + rounding(A, 1.0))


def test_without_verification_copies_are_missed():
    # What the test before this one guards against: a Krylov space grown from 8 columns holds 8 copies at most.
    A = hermitian(np.r_[np.ones(20), spectrum("poly1", 160) / 4], 0)
    options = {"method": "krylov", "block_size": 8, "tol": 1e-6, "rng": 0}
    blind = eigh(A, 20, verify=False, **options)
    assert blind.info.converged
    assert np.sum(blind.eigenvalues > 0.5) < 20
    assert np.abs(eigh(A, 20, **options).eigenvalues - 1).max() <= rounding(A, 1.0)


@given(multiplicity=st.integers(1, 24), level=st.sampled_from([0.1, 0.5, 0.8]), width=st.integers(1, 8),
       which=st.sampled_from(WHICH), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_no_copy_is_missed(multiplicity, level, width, which, seed):
    k, n = 12, 60
    upper = np.r_[2.0, np.ones(multiplicity), np.full(n // 2 - 1 - multiplicity, level)]
    w = np.r_[upper, -upper]
    A = hermitian(w, seed)
    result = eigh(A, k, which=which, method="krylov", block_size=width, tol=1e-8, max_passes=500, rng=seed)
    assert result.info.converged
    # The probe is a Krylov space of five steps: of the four distinct values it misses none, with probability one.
    exact = wanted(np.sort(w), which)[:k]
    assert np.abs(outward(result.eigenvalues, which) - outward(exact, which)).max() <= rounding(A, 10.0)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("width", [None, 1, 3])
@pytest.mark.parametrize("A", [
    np.eye(140), np.eye(140)[::-1], np.kron(np.eye(14), np.ones((10, 10))), np.ones((140, 140)), hilbert(140),
])  # fmt: skip
def test_matrices_of_zeros_and_ones_and_hilbert(A, width, which):
    w = eigenvalues(A)
    # The smallest eigenvalues of the Hilbert matrix are below rounding of its norm: any of that size is right.
    values, V = result = eigh(A, 12, which=which, method="krylov", block_size=width, max_passes=500, rng=0)
    assert result.info.converged
    assert_orthonormal(V)
    allowed = 1e-3 * np.abs(values) + 4 * rounding(A, np.abs(w).max())
    assert np.all(np.abs(outward(values, which) - outward(wanted(w, which)[:12], which)) <= allowed)


def test_pairs_of_equal_modulus_and_a_trace_that_cancels():
    w = signed(spectrum("poly1", 150), "pairs")
    A = hermitian(w, 3)
    result = eigh(A, 20, method="krylov", tol=1e-8, rng=0)
    # k is even: no pair is cut, and each modulus appears with both signs.
    assert np.abs(np.sort(result.eigenvalues) - np.sort(w[:20])).max() <= rounding(A, 1.0)


def test_restarts_converge_with_the_smallest_basis():
    A = hermitian(signed(spectrum("slow", 150), "alternating"), 0)
    for which in WHICH:
        result = eigh(A, 8, which=which, method="krylov", block_size=4, max_basis=16, tol=1e-6, max_passes=500, rng=0)
        assert result.info.converged
        assert result.info.restarts > 0
        exact = wanted(eigenvalues(A), which)[:8]
        assert np.abs(outward(result.eigenvalues, which) - outward(exact, which)).max() <= rounding(A, 10.0)


# Fixed precision.


@given(problem=problems(sides=(2, 50), dtypes=("float64", "complex128")), rtol=st.sampled_from([0.5, 1e-1, 1e-3, 1e-9]),
       method=st.sampled_from(METHODS))  # fmt: skip
def test_precision_is_met_by_a_rank_near_the_smallest(problem, rtol, method):
    A, w, _, seed = problem
    norm = np.linalg.norm(w)
    result = eigh(A, rtol=rtol, method=method, rng=seed)
    error = np.linalg.norm(A - result.to_dense())
    # Where it cannot be a difference of squares, the error is the mean over 16 samples, whose square has a relative
    # standard deviation of up to 8**-0.5: twice the bound is beyond 8 deviations.
    assert error <= 2 * rtol * norm + problem.rounding
    sizes = np.sort(np.abs(w))[::-1]
    tails = np.sqrt(np.append(np.cumsum(sizes[::-1] ** 2)[::-1], 0.0))
    best = int(np.argmax(tails <= 2 * rtol * norm + problem.rounding))  # Eckart-Young
    assert result.rank >= best
    assert result.info.converged
    if method == "dense":
        assert result.rank <= int(np.argmax(tails <= rtol * norm * (1 - 1e-9)))


@pytest.mark.parametrize("view", [np.asarray, CountingOperator])
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-5, 1e-9])
def test_precision_of_a_large_matrix(view, rtol):
    w = signed(spectrum("exp", 800), "alternating")
    A = hermitian(w, 0)
    norm = np.linalg.norm(w)
    result = eigh(view(A), rtol=rtol, method="krylov", rng=0)
    assert result.info.method == "krylov"
    assert np.linalg.norm(A - result.to_dense()) <= (1 if view is np.asarray and rtol > 1e-6 else 2) * rtol * norm
    tails = np.sqrt(np.append(np.cumsum(w[::-1] ** 2)[::-1], 0.0))
    assert result.rank <= 1.3 * np.argmax(tails <= rtol * norm) + 3
    assert result.info.error_estimate <= rtol
    absolute = eigh(view(A), atol=rtol * norm, method="krylov", rng=0)
    assert abs(absolute.rank - result.rank) <= (0 if view is np.asarray else 3)


def test_precision_that_needs_most_of_the_spectrum_is_handed_to_lapack():
    A = hermitian(spectrum("flat", 300), 0)
    result = eigh(A, rtol=0.1, rng=0)
    assert result.info.method == "krylov+dense"
    assert np.linalg.norm(A - result.to_dense()) <= 0.1 * np.linalg.norm(A)


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_k_bounds_the_rank(method):
    A = hermitian(spectrum("slow", 300), 0)
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.eigh: rank 10 reached before the precision\.$"):
        result = eigh(A, 10, rtol=1e-3, method=method, rng=0)
    assert result.rank == 10
    assert not result.info.converged
    assert np.abs(result.eigenvalues / spectrum("slow", 10) - 1).max() <= 1e-3
    assert result.info.error_estimate == pytest.approx(np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A))
    plain = eigh(A, 250, rtol=0.5, method=method, rng=0)
    assert plain.rank < 250
    assert plain.info.converged


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e150), ("float64", 1e-150), ("float32", 1e30)])
@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_precision_at_extreme_scales(dtype, scale, method):
    A = hermitian(spectrum("exp", 300), 0)
    large, plain = (eigh(X, rtol=1e-3, method=method, rng=0) for X in ((A * scale).astype(dtype), A))
    assert large.rank == plain.rank
    absolute = eigh((A * scale).astype(dtype), atol=1e-3 * scale * np.linalg.norm(A), method=method, rng=0)
    assert abs(absolute.rank - plain.rank) <= 1


def test_max_passes_bounds_the_precision_too():
    A = CountingOperator(hermitian(spectrum("slow", 300), 0))
    for passes in (1, 2, 4):
        before = A.passes
        with pytest.warns(ConvergenceWarning):
            result = eigh(A, rtol=1e-3, method="krylov", max_passes=passes, rng=0)
        assert A.passes - before == result.info.passes <= passes
        assert_orthonormal(result.eigenvectors)


def test_float32_does_not_promise_what_it_cannot_hold():
    A = hermitian(spectrum("exp", 300), 0, "float32")
    result = eigh(A, rtol=1e-12, method="krylov", rng=0)
    assert np.linalg.norm(A - result.to_dense()) <= 100 * np.finfo("float32").eps * np.linalg.norm(A)


@given(problem=problems(sides=(3, 40), dtypes=("float64",)))
def test_reported_error_is_that_of_the_result(problem):
    A, w, k, seed = problem
    assume(problem.norm > 0)
    result = eigh(A, k, method="krylov", max_passes=500, rng=seed)
    true = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(w)
    # A difference of squares resolves no less than the root of 100 units of rounding.
    assert abs(result.info.error_estimate - true) <= 2 * (100 * problem.eps) ** 0.5


@pytest.mark.parametrize("block_size", [1, 4])
def test_copies_that_lie_along_waiting_columns_are_not_missed(block_size):
    # Twenty ones, of which a block sees few: the others end in the columns that wait, where a few random columns,
    # orthogonal to these, cannot find them. Wrong values are 0.9 in modulus.
    w = np.concatenate([np.ones(20), np.full(10, -0.9), 0.1 * np.random.default_rng(0).random(270)])
    V = haar_basis(300, 300, rng=0)
    A = (V * w) @ V.T
    for seed in range(3):
        result = eigh((A + A.T) / 2, 25, block_size=block_size, method="krylov", max_passes=400, rng=seed)
        assert result.info.converged
        assert np.abs(result.eigenvalues - [*[1.0] * 20, *[-0.9] * 5]).max() <= 1e-3
