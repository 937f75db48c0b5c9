"""Blocks of rows give what the matrix gives: to the precision of one pass, or in a few passes to that of rnla.svd."""

import math
import re
import warnings
import weakref
from itertools import pairwise

import array_api_compat
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import DTYPES, problems, rounding

import rnla
from rnla import svd_stream
from rnla.testing import CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum


class Source:
    """Gives the rows of A in blocks, any number of times, and counts how often it was read to the end."""

    def __init__(self, A, cuts=(), convert=lambda block: block):
        self.edges = [0, *cuts, A.shape[0]]
        self.A, self.convert, self.reads = A, convert, 0

    def __call__(self):
        for start, stop in pairwise(self.edges):
            yield self.convert(self.A[start:stop])
        self.reads += 1

    __iter__ = __call__


def every(step, m):
    return range(step, m, step)


def wide(A):
    return A.astype(np.promote_types(A.dtype, np.float64))


def quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.AccuracyWarning)
        return svd_stream(*args, **options)


@st.composite
def cuts(draw, m):
    return sorted(draw(st.sets(st.integers(1, m - 1), max_size=5))) if m > 1 else []


# What a result is.


@pytest.mark.parametrize("passes", [None, 1])
@given(problem=problems(), data=st.data())
def test_factors_are_orthonormal_sorted_and_in_the_order_of_the_rows(passes, problem, data):
    A, sigma, k, seed = problem
    source = Source(A, data.draw(cuts(A.shape[0])))
    U, S, Vh = result = quietly(source, k, max_passes=passes, rng=seed)
    assert (U.shape, S.shape, Vh.shape) == ((A.shape[0], k), (k,), (k, A.shape[1]))
    assert U.dtype == Vh.dtype == A.dtype
    assert S.dtype == A.real.dtype
    assert_orthonormal(U)
    assert_orthonormal(Vh.conj().T)
    assert np.all(S >= 0)
    assert np.all(np.diff(S) <= 0)
    assert source.reads == result.info.passes
    assert result.info.rank == k
    if passes is None and result.info.converged:
        # Rayleigh-Ritz values with relative residuals below tol; the default finds every copy of a repeated one.
        assert np.all(np.abs(S - sigma[:k]) <= 1e-2 * sigma[:k] + 10 * problem.rounding)
        best = math.sqrt(np.sum(sigma[k:] ** 2))
        assert np.linalg.norm(A - wide(result.to_dense())) <= best + 1e-2 * k**0.5 * sigma[0] + 10 * problem.rounding


@given(problem=problems(names=("slow", "poly1", "flat", "step"), dtypes=("float64", "complex128")), data=st.data())
def test_how_the_rows_are_cut_shows_only_in_rounding(problem, data):
    A, _, k, seed = problem
    m = A.shape[0]
    whole = svd_stream([A], k, rng=seed)
    parts = svd_stream(Source(A, data.draw(cuts(m))), k, rng=seed)
    # Sums over blocks, of squares; the decision to end may fall either way where a residual is at its bound.
    if whole.info.passes == parts.info.passes:
        assert np.abs(whole.S - parts.S).max() <= 1e4 * problem.rounding


@given(problem=problems(names=("slow", "poly1", "poly2", "step")))
def test_it_is_the_method_gram_of_a_matrix_in_a_file(problem):
    A, _, k, seed = problem
    blocks = svd_stream(Source(A, every(7, A.shape[0])), k, rng=seed)
    file = rnla.svd(CountingRows(A, 7), k, method="gram", rng=seed)
    if A.shape[0] >= A.shape[1] and blocks.info.passes == file.info.passes:
        allowed = problem.rounding * problem.eps**-0.5  # squares were formed on the way
        assert np.abs(blocks.S - file.S).max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_iterator_is_read_once_and_gives_what_the_stream_gives(dtype):
    A = matrix_with_spectrum(90, 40, spectrum("poly1", 40), rng=0, dtype=dtype)
    result = svd_stream(iter(np.split(A, 3)), 5, rng=3)
    stream = rnla.StreamingSVD(40, 5, rng=3)
    for block in np.split(A, 3):
        stream.update(block)
    for found, expected in zip(result, stream.finalize(), strict=True):
        assert np.array_equal(found, expected)
    assert result.info.passes == 1
    assert result.info.method == "stream-rows"
    forced = svd_stream(np.split(A, 3), 5, max_passes=1, rng=3)
    assert np.array_equal(forced.U, result.U)


@pytest.mark.parametrize("kind", ["list", "iterable", "function", "3-D array"])
def test_what_can_be_read_again_is_read_a_few_times(kind):
    A = matrix_with_spectrum(600, 80, spectrum("poly1", 80), rng=0)
    source = Source(A, every(50, 600))
    blocks = {
        "list": np.split(A, 12), "iterable": source, "function": lambda: source(), "3-D array": A.reshape(12, 50, 80),
    }[kind]  # fmt: skip
    result = svd_stream(blocks, 10, rng=0)
    exact = spectrum("poly1", 80)[:10]
    assert result.info.converged
    assert 3 <= result.info.passes <= 6
    assert np.max(np.abs(result.S - exact) / exact) <= 1e-4  # the square of tol
    if kind in ("iterable", "function"):
        assert source.reads == result.info.passes


@pytest.mark.parametrize("passes", [2, 3, 4])
def test_max_passes_bounds_the_reads_and_more_of_them_help(passes):
    A = matrix_with_spectrum(300, 200, spectrum("slow", 200), rng=0)
    source = Source(A, every(64, 300))
    with pytest.warns(rnla.ConvergenceWarning, match=rf"^rnla\.svd_stream: max_passes = {passes} reached") as caught:
        result = svd_stream(source, 10, tol=1e-8, max_passes=passes, rng=0)
    assert [warning.filename for warning in caught] == [__file__]
    assert source.reads == result.info.passes == passes
    assert not result.info.converged
    one = svd_stream(source, 10, max_passes=1, n_oversamples=10, rng=0)
    assert np.all(result.S >= one.S * (1 - 1e-12))  # the same columns, and a Krylov space that contains theirs


def test_small_singular_values_are_resolved_by_further_passes():
    A = matrix_with_spectrum(200, 60, np.logspace(0, -11, 60), rng=0)
    source = Source(A, every(30, 200))
    result = svd_stream(source, 50, rng=0)
    assert result.info.method == "gram+krylov"
    assert source.reads == result.info.passes
    assert np.max(np.abs(result.S - np.logspace(0, -11, 60)[:50])) <= 10 * rounding(A, 1.0)
    with pytest.warns(rnla.AccuracyWarning, match=r"^rnla\.svd_stream: one pass resolves \d+ of 50"):
        svd_stream(source(), 50, rng=0)


# The error.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["slow", "poly2"])
def test_the_error_of_a_few_passes_is_exact_down_to_what_a_difference_of_squares_can_tell(dtype, name):
    A = matrix_with_spectrum(90, 70, spectrum(name, 70), rng=0, dtype=dtype)
    result = svd_stream(Source(A, every(20, 90)), 8, rng=0)
    true = np.linalg.norm(A - wide(result.to_dense())) / np.linalg.norm(A)
    floor = 10 * np.finfo(dtype).eps ** 0.5
    assert result.info.error_estimate == pytest.approx(true, rel=1e-3) or true < result.info.error_estimate <= floor
    assert svd_stream([np.zeros((9, 7), dtype)], 2, rng=0).info.error_estimate == 0


def test_the_error_of_one_pass_is_unbiased():
    A = matrix_with_spectrum(40, 30, spectrum("poly1", 30), rng=0)
    differences = []
    for seed in range(200):
        result = svd_stream(iter(np.split(A, 4)), 4, rng=seed, error_sketch=5)
        true = np.linalg.norm(A - result.to_dense())
        differences.append((result.info.error_estimate * np.linalg.norm(A)) ** 2 / true**2)
    # Of a quotient the mean is biased by the variance of its denominator, at most 2 / 15 here, and that of the mean of
    # 200 draws with relative deviation sqrt(2 / 5) + sqrt(2 / 15) is 0.07: 5 of those fail with probability 6e-7.
    assert abs(np.mean(differences) - 1) <= 2 / 15 + 5 * 0.07
    assert svd_stream(iter([A]), 4, error_sketch=0, rng=0).info.error_estimate is None


def test_blocks_known_by_products_have_no_error_estimate():
    A = matrix_with_spectrum(60, 40, spectrum("poly1", 40), rng=0)
    result = svd_stream([aslinearoperator(A[:30]), aslinearoperator(A[30:])], 4, rng=0)
    assert result.info.error_estimate is None
    assert np.max(np.abs(result.S - spectrum("poly1", 40)[:4])) <= 1e-3


# Inputs.


def strict(A):
    import array_api_strict

    return array_api_strict.asarray(A, device=array_api_strict.Device("device1"))


KINDS = {
    "fortran": np.asfortranarray,
    "list": lambda A: A.tolist(),
    "sparse": sp.csr_array,
    "sparse coo": sp.coo_array,
    "rows of a file": lambda A: CountingRows(A, 4),
    "dask": lambda A: da.from_array(A, chunks=(6, -1)),
    "torch": lambda A: torch.from_numpy(A.copy()),
    "strict-device1": strict,
}


def to_numpy(X):
    if type(X).__module__.startswith("array_api_strict"):
        X = array_api_compat.to_device(X, array_api_compat.array_namespace(X).Device("CPU_DEVICE"))
        return np.from_dlpack(X)
    return np.asarray(X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [None, 1])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_blocks_of_every_kind(kind, passes, dtype):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype=dtype)
    result = svd_stream(Source(A, (10, 40), KINDS[kind]), 5, max_passes=passes, rng=0)
    expected = svd_stream(Source(A, (10, 40)), 5, max_passes=passes, rng=0)
    allowed = 1e4 * rounding(A, 1.0)
    assert np.abs(to_numpy(result.S) - expected.S).max() <= allowed
    assert np.abs(to_numpy(result.to_dense()) - expected.to_dense()).max() <= allowed
    assert result.info.error_estimate == pytest.approx(expected.info.error_estimate, rel=1e-6)
    assert result.info.passes == expected.info.passes
    if kind in ("torch", "strict-device1"):
        block = KINDS[kind](A)
        for X in result:
            assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(block)
            assert array_api_compat.device(X) == array_api_compat.device(block)


@pytest.mark.parametrize("passes", [None, 1])
def test_integers_are_computed_in_double_precision_and_files_read_once_a_pass(passes):
    A = np.random.default_rng(0).integers(-5, 5, (40, 30))
    files = [CountingRows(A[:20], 8), CountingRows(A[20:], 8)]
    result = svd_stream(files, 4, max_passes=passes, rng=0)
    assert result.dtype == np.float64
    assert [file.passes for file in files] == [result.info.passes] * 2


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e160), ("float64", 1e-170), ("float32", 1e30)])
@pytest.mark.parametrize("passes", [None, 1])
def test_extreme_scales(dtype, scale, passes):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    large, plain = (
        svd_stream(Source((A * by).astype(dtype), (30, 31)), 5, max_passes=passes, rng=0) for by in (scale, 1.0)
    )
    assert np.abs(large.S.astype(float) / scale - plain.S).max() <= 1e4 * rounding(A.astype(dtype), 1.0)
    assert large.info.error_estimate == pytest.approx(plain.info.error_estimate, rel=1e-4)


@pytest.mark.parametrize("passes", [None, 1])
def test_no_block_is_kept(passes):
    A = np.random.default_rng(0).standard_normal((50, 30))
    alive, most = set(), []

    def blocks():
        for number in range(20):
            block = A + number
            alive.add(number)
            weakref.finalize(block, alive.discard, number)
            most.append(len(alive))
            yield block
            del block

    svd_stream(blocks, 2, max_passes=passes, rng=0)
    # The new one, and the one before in the hands of the loop that multiplies.
    assert max(most) <= 2
    assert not alive


# Callback.


def test_the_callback_is_told_of_every_pass_and_may_end_it():
    A = matrix_with_spectrum(90, 70, spectrum("slow", 70), rng=0)
    records = []

    def stop(record):
        records.append(record)
        if record.iteration == 2:
            raise StopIteration

    result = svd_stream([A], 5, tol=1e-10, callback=stop, rng=0)
    assert [record.iteration for record in records] == [1, 2]
    assert result.info.passes == 3
    one = svd_stream(iter([A]), 5, callback=records.append, rng=0)
    assert records[-1].error == one.info.error_estimate == one.info.history[0].error


# What is refused.


@pytest.mark.parametrize("again", [True, False])
def test_bad_blocks_are_named_by_their_number(again):
    A = np.random.default_rng(0).standard_normal((30, 20))
    bad = A.copy()
    bad[3, 4] = np.nan

    def broken():
        yield A
        yield A
        raise KeyError("lost")

    def run(blocks, k=3):
        with np.errstate(invalid="ignore"):
            return svd_stream(blocks if again else iter(blocks), k, rng=0)

    for blocks, error, message in (
        ([A, A[:, :19]], ValueError, "block 1 must have 20 columns, as block 0; got shape (30, 19)."),
        ([A, A, A.astype(np.float32)], TypeError, "block 2 must have the library, dtype and device of block 0, "),
        ([A, torch.from_numpy(A)], TypeError, "block 1 must have the library, dtype and device of block 0, "),
        ([A, bad], ValueError, "block 1 must be finite; its products contain NaN or infinity."),
        ([A, sp.csr_array(bad)], ValueError, "block 1 must be finite; its products contain NaN or infinity."),
        ([A, A.astype(object)], TypeError, "block 1 must have a boolean, integer, float or complex dtype"),
        ([A[0]], ValueError, "block 0 must be two-dimensional; got shape (20,)."),
        ([A, A[:0]], ValueError, "block 1 must have at least one row and one column; got shape (0, 20)."),
        ([A, None], TypeError, "block 1 must be a 2-D array"),
        ([], ValueError, "blocks must give at least one block; got none."),
        ([A[:2], A[:2]], ValueError, "k must be in 1..4 for 4 rows in all, of 20 columns; got 5."),
    ):
        with pytest.raises(error, match=f"^{re.escape('rnla.svd_stream: ' + message)}"):
            run(blocks, 5 if "k must" in message else 3)
    with pytest.raises(OSError, match=r"^rnla\.svd_stream: blocks cannot be read at block 2, from row 60 on: KeyError"):
        svd_stream(broken if again else broken(), 3, rng=0)


def test_a_second_read_must_give_the_same_number_of_rows():
    A = np.random.default_rng(0).standard_normal((300, 60))

    def changing(lengths):
        lengths = iter(lengths)
        return lambda: np.array_split(A[: next(lengths)], 3)

    for lengths, got in (((300, 200), "200"), ((200, 300, 300), "more than 200")):
        with pytest.raises(ValueError, match=rf"^rnla\.svd_stream: blocks must give the same rows .* {got} in read 2"):
            svd_stream(changing(lengths), 5, rng=0)
    used_up = iter(np.split(A, 3))
    with pytest.raises(ValueError, match=r"300 rows at first and 0 in read 2\.$"):
        svd_stream(lambda: used_up, 5, rng=0)
    later_bad = iter([A, A * np.nan])
    with pytest.raises(ValueError, match=r"^rnla\.svd_stream: block 0 must be finite"):
        svd_stream(lambda: [next(later_bad)], 5, rng=0)


A = np.ones((30, 20))
INVALID = {
    "k zero": (ValueError, ([A], 0), {}, "k must be at least 1; got 0."),
    "k type": (TypeError, ([A], 2.0), {}, "k must be an integer; got float 2.0."),
    "k": (ValueError, ([A], 21), {}, "k must be in 1..20 for rows of 20 columns; got 21."),
    "matrix": (TypeError, (A, 3), {}, "blocks must give blocks of rows; got a matrix, ndarray of shape (30, 20)"),
    "sparse": (TypeError, (sp.csr_array(A), 3), {}, "blocks must give blocks of rows; got a matrix, csr_array"),
    "number": (
        TypeError,
        (3, 3),
        {},
        "blocks must be an iterator, an iterable or a function that returns one; got int",
    ),
    "function": (TypeError, (lambda: None, 3), {}, "blocks must be a function that returns an iterator; it returned N"),
    "iterator": (ValueError, (iter([A]), 3), {"max_passes": 2}, "max_passes must be None or 1 for an iterator, which"),
    "max_passes": (ValueError, ([A], 3), {"max_passes": 0}, "max_passes must be at least 1; got 0."),
    "tol": (ValueError, ([A], 3), {"tol": -1.0}, "tol must be finite and not negative; got -1.0."),
    "n_oversamples": (ValueError, ([A], 3), {"n_oversamples": -1}, "n_oversamples must be at least 0; got -1."),
    "error_sketch": (ValueError, ([A], 3), {"error_sketch": -1}, "error_sketch must be at least 0; got -1."),
    "sketch": (ValueError, ([A], 3), {"sketch": "srht"}, "sketch must be one of 'gaussian'"),
    "rng": (TypeError, ([A], 3), {"rng": "x"}, "rng must be None, a non-negative int"),
    "callback": (TypeError, ([A], 3), {"callback": 3}, "callback must be callable or None; got int."),
    "callback 1": (TypeError, (iter([A]), 3), {"callback": 3}, "callback must be callable or None; got int."),
}


@pytest.mark.parametrize("case", INVALID)
def test_bad_arguments_are_refused(case):
    error, args, options, message = INVALID[case]
    with pytest.raises(error, match=f"^{re.escape('rnla.svd_stream: ' + message)}"):
        svd_stream(*args, **options)
