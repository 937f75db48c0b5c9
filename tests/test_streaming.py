"""A stream gives what one look at the whole matrix gives, in whatever pieces and order the matrix arrives."""

import copy
import math
import pickle
import re
import warnings
from itertools import pairwise

import array_api_compat
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from strategies import DTYPES, problems, rounding

import rnla
from rnla._streaming import StreamingSVD
from rnla.testing import CountingRows, assert_orthonormal, hilbert, matrix_with_spectrum, spectrum

MODES = ("rows", "turnstile")


def stream_of(A, k, cuts=(), *, order=None, **options):
    """Return a stream that has seen the rows of A in pieces between `cuts`, in the given order."""
    if options.get("mode") == "turnstile":
        options = {"n_rows": A.shape[0], **options}
    stream = StreamingSVD(A.shape[1], k, **options)
    edges = [0, *cuts, A.shape[0]]
    pieces = [(a, b) for a, b in pairwise(edges) if a < b]
    for place in range(len(pieces)) if order is None else order:
        a, b = pieces[place]
        stream.update(A[a:b], a)
    return stream


def final(stream, k=None):
    """Finalize; that one pass cannot resolve a small singular value is said by an AccuracyWarning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.AccuracyWarning)
        return stream.finalize(k)


def wide(A):
    return A.astype(np.promote_types(A.dtype, np.float64))


def lost(problem):
    """Return the rounding of ``A^H A Omega`` over singular values down to sqrt(eps): half of the digits."""
    return problem.rounding * problem.eps**-0.5


@st.composite
def pieces(draw, m):
    """Draw where to cut m rows, and in which order the pieces come."""
    cuts = sorted(draw(st.sets(st.integers(1, m - 1), max_size=5))) if m > 1 else []
    return cuts, draw(st.permutations(range(len(cuts) + 1)))


# What a result is.


@pytest.mark.parametrize("mode", MODES)
@given(problem=problems(), data=st.data())
def test_factors_are_orthonormal_sorted_and_of_the_dtype_of_the_blocks(mode, problem, data):
    A, _, k, seed = problem
    cuts, order = data.draw(pieces(A.shape[0]))
    stream = stream_of(A, k, cuts, order=order, mode=mode, rng=seed)
    U, S, Vh = result = final(stream)
    assert stream.shape == result.shape == A.shape
    assert (U.shape, S.shape, Vh.shape) == ((A.shape[0], k), (k,), (k, A.shape[1]))
    assert U.dtype == Vh.dtype == A.dtype
    assert S.dtype == A.real.dtype
    assert_orthonormal(U)
    assert_orthonormal(Vh.conj().T)
    assert np.all(S >= 0)
    assert np.all(np.diff(S) <= 0)
    assert result.info.rank == k
    assert result.info.passes == 1
    assert result.info.method == f"stream-{mode}"


# Rows.


@given(problem=problems(), data=st.data())
def test_rows_in_any_pieces_and_order_give_what_the_whole_gives(problem, data):
    A, _, k, seed = problem
    cuts, order = data.draw(pieces(A.shape[0]))
    in_pieces = final(stream_of(A, k, cuts, order=order, rng=seed))
    whole = final(stream_of(A, k, rng=seed))
    # Which singular values of Y are above its threshold may depend on rounding: those near it are of this size.
    allowed = lost(problem)
    assert np.abs(in_pieces.S - whole.S).max() <= allowed
    assert np.linalg.norm(A - wide(in_pieces.to_dense())) <= np.linalg.norm(A - wide(whole.to_dense())) + allowed * k


@given(problem=problems(names=("slow", "poly1", "flat", "step"), dtypes=("float64", "complex128")), data=st.data())
def test_of_a_well_conditioned_matrix_the_pieces_show_only_in_rounding(problem, data):
    A, _, k, seed = problem
    cuts, order = data.draw(pieces(A.shape[0]))
    in_pieces = final(stream_of(A, k, cuts, order=order, rng=seed))
    whole = final(stream_of(A, k, rng=seed))
    # Rounding of A^H A Omega over the smallest singular value of Y, which is that of A times that of a Gaussian matrix.
    allowed = 1e4 * problem.rounding
    assert np.abs(in_pieces.S - whole.S).max() <= allowed


@given(problem=problems(names=("slow", "poly1", "poly2", "step", "flat")))
def test_one_pass_gives_what_two_passes_with_the_same_columns_give(problem):
    A, _, k, seed = problem
    stream = stream_of(A, k, rng=seed)
    one = final(stream)
    # The same test matrix: Q = orth(A Omega), B = Q^H A.
    two = rnla.svd(A, k, method="rsi", n_iter=0, n_oversamples=stream.width - k, rng=seed)
    allowed = lost(problem)
    assert np.abs(one.S - two.S).max() <= allowed
    error = [np.linalg.norm(A - wide(result.to_dense())) for result in (one, two)]
    assert abs(error[0] - error[1]) <= allowed * k


@given(problem=problems(names=("slow", "poly1", "exp")))
def test_it_is_the_method_rowstream_of_svd(problem):
    A, _, k, seed = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.AccuracyWarning)
        expected = rnla.svd(A, k, method="rowstream", rng=seed)
    assert np.abs(final(stream_of(A, k, rng=seed)).S - expected.S).max() <= lost(problem)


def test_rows_obey_the_bound_in_expectation():
    m, n, k, extra = 60, 50, 5, 6
    sigma = spectrum("poly1", n)
    A = matrix_with_spectrum(m, n, sigma, rng=0)
    squares = [
        np.linalg.norm(A - stream_of(A, k, (20, 40), n_oversamples=extra, rng=seed).finalize(k + extra).to_dense()) ** 2
        for seed in range(60)
    ]
    # HMT 2011, Theorem 10.5: an expectation, and the mean of 60 draws is 0.3 to 0.9 of it.
    width = k + extra
    bound = min((1 + r / (width - r - 1)) * np.sum(sigma[r:] ** 2) for r in range(width - 1))
    assert np.mean(squares) <= bound


def test_small_singular_values_are_announced():
    A = matrix_with_spectrum(60, 40, [1.0, 0.5, 1e-11], rng=0)
    with pytest.warns(rnla.AccuracyWarning, match=r"^rnla\.StreamingSVD\.finalize: one pass resolves 2 of 3") as caught:
        result = stream_of(A, 3, rng=0).finalize()
    assert [warning.filename for warning in caught] == [__file__]
    assert np.abs(result.S - [1.0, 0.5, 0.0]).max() <= 1e-10


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_singular_values_are_left_out_before_they_do_harm(dtype):
    sigma = np.logspace(0, -12, 40)
    A = matrix_with_spectrum(60, 40, sigma, rng=0, dtype=dtype)
    result = final(stream_of(A, 30, (20, 30), rng=0))
    # Y = A Omega is divided by its singular values down to 10 sqrt(eps); what is below is lost, and no more.
    assert np.linalg.norm(A - wide(result.to_dense())) <= 1e3 * np.finfo(dtype).eps ** 0.5
    assert_orthonormal(result.U)
    assert np.all(sigma[:5] * (1 + 1e3 * rounding(A, 1.0)) >= result.S[:5])


def test_rows_that_never_came_are_zero():
    A = matrix_with_spectrum(50, 20, spectrum("poly1", 20), rng=0)
    stream = StreamingSVD(20, 4, n_rows=70, rng=0).update(A[:30], 5).update(A[30:], 40)
    padded = np.zeros((70, 20))
    padded[5:35], padded[40:60] = A[:30], A[30:]
    result, expected = stream.finalize(), stream_of(padded, 4, rng=0).finalize()
    assert np.abs(result.to_dense() - expected.to_dense()).max() <= 1e4 * rounding(A, 1.0)
    assert np.all(result.U[:5] == 0)
    few = StreamingSVD(20, 4, n_rows=70, rng=0).update(A[:2])
    U, S, _ = few.finalize()
    assert_orthonormal(U)
    assert np.all(S[2:] == 0)


# Turnstile.


@given(problem=problems(dtypes=("float64", "complex128")), data=st.data())
def test_a_turnstile_adds_up_changes_of_any_kind(problem, data):
    A, sigma, k, seed = problem
    m, n = A.shape
    cuts, order = data.draw(pieces(m))
    theta = data.draw(st.sampled_from([1.0, 0.5, -2.0, *([0.5 + 1j] if A.dtype == np.complex128 else [])]))
    random = np.random.default_rng(seed)
    first = random.standard_normal((m, n)).astype(A.dtype)
    stream = stream_of(first, k, cuts, order=order, mode="turnstile", rng=seed)
    # theta first + (A - theta first), by a sparse change and by rows
    stream.linear_update(sp.csr_array(A), theta=theta, eta=2)
    stream.linear_update(A, eta=-1)
    stream.linear_update(first, eta=-theta)
    once = stream_of(A, k, mode="turnstile", rng=seed)
    # Both sketches have the rounding of `first`; least squares with well-conditioned factors do not enlarge it by much.
    allowed = 1e3 * rounding(A, np.linalg.norm(first, 2) * 3 + sigma[0])
    assert np.abs(stream.finalize().S - once.finalize().S).max() <= allowed


@pytest.mark.parametrize("name", ["slow", "poly1", "poly2", "exp", "step"])
def test_a_turnstile_obeys_the_bound_in_expectation(name):
    m, n, width = 90, 70, 12
    sigma = spectrum(name, n)
    A = matrix_with_spectrum(m, n, sigma, rng=0)
    squares = []
    for seed in range(60):
        stream = StreamingSVD(n, 4, mode="turnstile", n_rows=m, n_oversamples=width - 4, rng=seed).update(A)
        squares.append(np.linalg.norm(A - stream.finalize(width).to_dense()) ** 2)
    core = 2 * width + 1
    # Theorem 5.1 of TYUC19, for real Gaussian numbers; the mean is 0.3 to 0.8 of it.
    best = min((width + r - 1) / (width - r - 1) * np.sum(sigma[r:] ** 2) for r in range(width - 1))
    assert np.mean(squares) <= (core - 1) / (core - width - 1) * best


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_turnstile_is_exact_on_low_rank(dtype):
    A = matrix_with_spectrum(90, 70, [3.0, 2.0, 1.0], rng=0, dtype=dtype)
    stream = stream_of(A, 3, (10, 50), order=[2, 0, 1], mode="turnstile", rng=0)
    result = stream.finalize()
    assert np.linalg.norm(A - result.to_dense()) <= 100 * rounding(A, 3.0)
    assert stream.error_estimate(result) <= 1e3 * rounding(A, 3.0)


@given(
    sizes=st.tuples(st.integers(20, 400), st.integers(20, 400)),
    k=st.integers(1, 10),
    spare=st.floats(1, 20),
    spectrum=st.sampled_from(["decaying", "flat"]),
)
def test_a_budget_is_kept_and_used(sizes, k, spare, spectrum):
    m, n = sizes
    budget = int(spare * (2 * k * (m + n) + (4 * k + 3) ** 2))
    stream = StreamingSVD(n, k, mode="turnstile", n_rows=m, budget=budget, spectrum=spectrum, rng=0)
    width, core = stream.width, stream._plan.core
    assert width * (m + n) + core**2 <= budget < width * (m + n) + (core + 1) ** 2
    assert k <= width <= min(m, n)
    if spectrum == "decaying":
        assert core >= 2 * width + 1
        wider = (width + 1) * (m + n) + (2 * width + 3) ** 2
        assert width == min(m, n) or wider > budget
    else:
        assert core >= width + 2


# Merging.


@pytest.mark.parametrize("mode", MODES)
@given(problem=problems(sides=(2, 50)), data=st.data())
def test_merged_streams_are_one_stream(mode, problem, data):
    A, _, k, seed = problem
    m, n = A.shape
    cut = data.draw(st.integers(1, m - 1))
    options = {"mode": mode, "n_rows": m, "rng": seed}
    first, second = StreamingSVD(n, k, **options).update(A[:cut]), StreamingSVD(n, k, **options).update(A[cut:], cut)
    before = pickle.dumps(second)
    merged = first.merge(second)
    assert merged is first
    assert pickle.dumps(second) == before
    whole = final(stream_of(A, k, **options))
    assert np.abs(final(merged).S - whole.S).max() <= lost(problem)


def state_of(stream):
    arrays, numbers = stream._state.arrays()
    return {name: np.asarray(X) for name, X in arrays.items()}, numbers


def same_bits(one, other):
    (arrays, numbers), (expected, others) = state_of(one), state_of(other)
    return numbers == others and all(np.array_equal(arrays[name], expected[name]) for name in expected)


@pytest.mark.parametrize("mode", MODES)
@given(dtype=st.sampled_from(["float32", "float64"]), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_merged_states_are_the_state_of_the_union_bit_by_bit_where_sums_are_exact(mode, dtype, seed, data):
    m, n = data.draw(st.integers(3, 60)), data.draw(st.integers(1, 30))
    # Small integers times signs: every sum is an integer below 2**24, which float32 holds.
    A = np.random.default_rng(seed).integers(-3, 4, (m, n)).astype(dtype)
    options = {"mode": mode, "n_rows": m, "sketch": "rademacher", "error_sketch": 0, "rng": seed}
    edges = [0, *sorted(data.draw(st.sets(st.integers(1, m - 1), min_size=1, max_size=4))), m]

    def merged():
        first, *rest = data.draw(st.permutations(list(pairwise(edges))))
        total = StreamingSVD(n, 1, **options).update(A[slice(*first)], first[0])
        for a, b in rest:
            total.merge(StreamingSVD(n, 1, **options).update(A[a:b], a))
        return total

    whole = StreamingSVD(n, 1, **options).update(A)
    for total in (merged(), merged()):
        assert same_bits(total, whole)
        assert all(np.array_equal(X, Y) for X, Y in zip(final(total), final(whole), strict=True))


@pytest.mark.parametrize("mode", MODES)
@given(problem=problems(sides=(3, 50)), data=st.data())
def test_merging_is_commutative_and_associative_to_rounding(mode, problem, data):
    A, sigma, k, seed = problem
    m, n = A.shape
    one, two = sorted(data.draw(st.sets(st.integers(1, m - 1), min_size=2, max_size=2)))
    options = {"mode": mode, "n_rows": m, "rng": seed}

    def part(a, b):
        return StreamingSVD(n, k, **options).update(A[a:b], a)

    x, y, z = (0, one), (one, two), (two, m)
    left = part(*x).merge(part(*y)).merge(part(*z))
    right = part(*x).merge(part(*y).merge(part(*z)))
    assert same_bits(part(*x).merge(part(*y)), part(*y).merge(part(*x)))
    (arrays, _), (others, _) = state_of(left), state_of(right)
    for name, X in arrays.items():
        # Every entry is a sum of three, the same three.
        allowed = 10 * np.finfo(X.dtype).eps * max(np.abs(X).max(initial=0.0), problem.rounding)
        if name in ("H", "Z"):  # where A is nearly lost beside what cancels, relative to what was added
            allowed += 10 * np.finfo(X.dtype).eps * (sigma[0] + sigma[0] ** 2) * 10 * (m + n)
        assert np.abs(X - others[name]).max(initial=0.0) <= allowed


def test_merging_places_rows_where_it_is_told():
    A = matrix_with_spectrum(50, 20, spectrum("poly1", 20), rng=0)
    whole = stream_of(A, 4, rng=0)
    first, second = stream_of(A[:30], 4, rng=0), stream_of(A[30:], 4, rng=0)
    first.merge(second, row_offset=30)
    allowed = 1e4 * rounding(A, 1.0)
    assert np.abs(first.finalize().to_dense() - whole.finalize().to_dense()).max() <= allowed
    empty = StreamingSVD(20, 4, rng=0)
    assert first.merge(empty) is first
    assert np.abs(empty.merge(whole).finalize().to_dense() - whole.finalize().to_dense()).max() <= allowed


@pytest.mark.parametrize("mode", MODES)
def test_streams_of_other_settings_are_not_merged(mode):
    options = {"mode": mode, "n_rows": 30, "rng": 0}
    A = np.ones((30, 20))
    stream = StreamingSVD(20, 3, **options).update(A)
    for name, value, word in (
        ("rng", 1, "seed"), ("n_oversamples", 4, "width"), ("sketch", "sparse", "sketch"),
        ("error_sketch", 0, "error_sketch"), ("mode", MODES[mode == "rows"], "mode"),
    ):  # fmt: skip
        other = StreamingSVD(20, 3, **{**options, name: value}).update(A)
        with pytest.raises(ValueError, match=rf"^rnla\.StreamingSVD\.merge: other must have the same {word}; got "):
            stream.merge(other)
    with pytest.raises(TypeError, match=r"^rnla\.StreamingSVD\.merge: other must be a StreamingSVD; got ndarray"):
        stream.merge(A)
    single = StreamingSVD(20, 3, **options).update(A.astype(np.float32))
    with pytest.raises(TypeError, match=r"^rnla\.StreamingSVD\.merge: other must have the library, dtype and device"):
        stream.merge(single)


# The error sketch.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_error_estimate_is_unbiased(mode, dtype):
    A = matrix_with_spectrum(40, 30, spectrum("poly1", 30), rng=0, dtype=dtype)
    differences, ratios = [], []
    for seed in range(200):
        stream = stream_of(A, 4, mode=mode, error_sketch=5, rng=seed)
        result = stream.finalize()
        true = np.linalg.norm(A - result.to_dense())
        estimate = stream.error_estimate(result)
        if seed == 0:
            assert estimate == pytest.approx(stream.error_estimate(), rel=1e-9)
        differences.append(estimate**2 - true**2)
        ratios.append(estimate / true)
        # A quotient of two estimates of five and more samples.
        assert 0.1 <= result.info.error_estimate / (true / np.linalg.norm(A)) <= 10
    # The mean of 200 draws is within 5 of its standard deviations: fails with probability 6e-7.
    assert abs(np.mean(differences)) <= 5 * np.std(differences) / 200**0.5
    # Relative standard deviation of the square at most sqrt(2 / 5).
    assert np.std(np.square(ratios)) <= (2 / 5) ** 0.5 * 1.3


@pytest.mark.parametrize("mode", MODES)
def test_the_error_of_a_truncation_can_be_estimated_too(mode):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    stream = stream_of(A, 8, mode=mode, error_sketch=60, rng=0)
    result = stream.finalize()
    for r in (1, 4, 8):
        part = result.truncate(r)
        true = np.linalg.norm(A - part.to_dense())
        assert 0.5 * true <= stream.error_estimate(part) <= 2 * true  # a deviation of 5 in standard deviations
    bare = stream_of(A, 8, mode=mode, error_sketch=0, rng=0)
    assert bare.finalize().info.error_estimate is None
    with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.error_estimate: error_sketch must be at least 1"):
        bare.error_estimate()
    with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.error_estimate: result must have shape \(90, 70\)"):
        stream.error_estimate(rnla.svd(A[:50], 3, rng=0))


# Files.


def in_file(stream, folder):
    path = folder / "stream.npz"
    stream.save(path)
    return StreamingSVD.load(path)


def in_file_spilled(stream, folder):
    path = folder / "stream.npz"
    stream.save(path)
    return StreamingSVD.load(path, spill=folder if stream.mode == "rows" else None)


COPIES = {
    "npz": in_file,
    "npz to disk": in_file_spilled,
    "pickle": lambda stream, folder: pickle.loads(pickle.dumps(stream)),
    "deepcopy": lambda stream, folder: copy.deepcopy(stream),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_goes_on_where_the_stream_was(tmp_path, how, mode, dtype):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype=dtype)
    options = {"mode": mode, "n_rows": 90, "sketch": "rademacher", "rng": 3}
    again = COPIES[how](StreamingSVD(70, 5, **options), tmp_path)  # nothing seen yet
    for stop in (40, 90):
        again.update(A[again._state.next_row if again._state else 0 : stop])
        result, expected = again.finalize(), stream_of(A[:stop], 5, (40,) if stop == 90 else (), **options).finalize()
        assert all(np.array_equal(x, y) for x, y in zip(result, expected, strict=True))
        assert result.dtype == dtype
        again = COPIES[how](again, tmp_path)
        assert all(np.array_equal(x, y) for x, y in zip(again.finalize(), expected, strict=True))
    assert again.error_estimate() > 0


def test_the_file_holds_no_pickled_objects_and_a_foreign_file_is_refused(tmp_path):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    path = tmp_path / "no suffix"
    stream_of(A, 5, rng=0).save(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert arrays["Y"].shape == (90, 15 + 5 + 10)  # k + (k + 10) + error_sketch
    assert arrays["H"].shape == (70, 20)
    assert all(X.dtype != object for X in arrays.values())
    np.savez(tmp_path / "foreign.npz", Y=A)
    with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.load: path must be a file written by Str"):
        StreamingSVD.load(tmp_path / "foreign.npz")


def test_rows_on_disk_give_the_same_and_leave_nothing(tmp_path):
    A = matrix_with_spectrum(300, 70, spectrum("poly1", 70), rng=0)
    spilled = stream_of(A, 5, (40, 200), order=[2, 0, 1], spill=tmp_path, rng=0)
    result, expected = spilled.finalize(), stream_of(A, 5, rng=0).finalize()
    assert isinstance(result.U, np.memmap)
    assert np.abs(result.to_dense() - expected.to_dense()).max() <= 1e4 * rounding(A, 1.0)
    assert spilled.error_estimate(result) == pytest.approx(spilled.error_estimate(expected), rel=1e-6)
    assert_orthonormal(np.asarray(result.U))
    assert list(tmp_path.iterdir()) == []  # files without a name
    other = stream_of(np.zeros((5, 70)), 5, rng=0)
    spilled.merge(other, row_offset=400)
    assert spilled.finalize().shape == (405, 70)


# Inputs.


def strict(A, folder):
    import array_api_strict

    return array_api_strict.asarray(A, device=array_api_strict.Device("device1"))


def memmap(A, folder):
    path = folder / "A.bin"
    path.write_bytes(A.tobytes())
    return np.memmap(path, A.dtype, "r", shape=A.shape)


def hdf5(A, folder):
    return h5py.File(folder / "A.h5", "w").create_dataset("A", data=A, chunks=(7, A.shape[1]))


def zarr_array(A, folder):
    array = zarr.create_array({}, shape=A.shape, dtype=A.dtype, chunks=(20, 30))
    array[...] = A
    return array


def read_only(A, folder):
    A = A.copy()
    A.flags.writeable = False
    return A


KINDS = {
    "fortran": lambda A, folder: np.asfortranarray(A),
    "strided": lambda A, folder: np.repeat(np.repeat(A, 2, 0), 3, 1)[::2, ::3],
    "read-only": read_only,
    "list": lambda A, folder: A.tolist(),
    "strict-device1": strict,
    "torch": lambda A, folder: torch.from_numpy(A.copy()),
    "memmap": memmap,
    "hdf5": hdf5,
    "zarr": zarr_array,
    "dask rows": lambda A, folder: da.from_array(A, chunks=(16, -1)),
    "dask tiles": lambda A, folder: da.from_array(A, chunks=(20, 30)),
    "sparse csr": lambda A, folder: sp.csr_array(A),
    "sparse coo": lambda A, folder: sp.coo_array(A),
    "linear operator": lambda A, folder: aslinearoperator(A),
}


def to_numpy(X):
    if type(X).__module__.startswith("array_api_strict"):
        X = array_api_compat.to_device(X, array_api_compat.array_namespace(X).Device("CPU_DEVICE"))
        return np.from_dlpack(X)
    return np.asarray(X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_blocks_of_every_kind(tmp_path, kind, mode, dtype):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0, dtype=dtype)
    B = KINDS[kind](A, tmp_path)
    stream = StreamingSVD(70, 5, mode=mode, n_rows=180, rng=0).update(B, 90).update(B, 0)
    result = stream.finalize()
    expected = stream_of(np.concatenate([A, A]), 5, mode=mode, rng=0).finalize()
    allowed = 1e4 * rounding(A, 1.0)
    assert np.abs(to_numpy(result.S) - expected.S).max() <= allowed
    assert np.abs(to_numpy(result.to_dense()) - expected.to_dense()).max() <= allowed
    if kind in ("strict-device1", "torch"):
        for X in (*result, stream.finalize(7).U):
            assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(B)
            assert array_api_compat.device(X) == array_api_compat.device(B)
    if kind != "strict-device1":
        stream.save(tmp_path / "s.npz")
        like = torch.empty(0) if kind == "torch" else None
        again = StreamingSVD.load(tmp_path / "s.npz", like=like).finalize()
        assert type(again.U) is type(result.U)
        assert np.abs(to_numpy(again.S) - expected.S).max() <= allowed


@pytest.mark.parametrize("mode", MODES)
def test_a_file_is_read_once(mode):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    rows = CountingRows(A, 16)
    StreamingSVD(70, 5, mode=mode, n_rows=90, rng=0).update(rows)
    assert rows.passes == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sketch", ["gaussian", "rademacher", "uniform", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sketch(mode, sketch, dtype):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype)
    result = final(stream_of(A, 6, (33,), mode=mode, sketch=sketch, rng=0))
    # A width of 22 and of 25 columns: what is left after 16 values is below 0.13 of the sixth.
    best = np.linalg.norm(spectrum("exp", 70)[6:])
    assert np.linalg.norm(A - result.to_dense()) <= 1.5 * best


@pytest.mark.parametrize("mode", MODES)
def test_integers_are_computed_in_double_precision(mode):
    A = np.random.default_rng(0).integers(-5, 5, (40, 30))
    assert stream_of(A, 4, mode=mode, rng=0).finalize().dtype == np.float64


def test_blocks_are_not_kept():
    A = np.random.default_rng(0).standard_normal((4000, 300))
    stream = stream_of(A, 2, (1000, 2000), rng=0)
    assert len(pickle.dumps(stream)) < 8 * (14 + 10) * (1.5 * 4000 + 300) + 10000 < A.nbytes / 5


def test_a_seed_gives_one_result_and_no_global_state_is_touched():
    A = matrix_with_spectrum(60, 40, spectrum("slow", 40), rng=0)
    np.random.seed(1)  # noqa: NPY002 - the global state is what this test is about
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (stream_of(A, 4, rng=seed).finalize() for seed in (7, 7, 8))
    assert np.array_equal(first.S, again.S)
    assert not np.array_equal(first.S, other.S)
    assert first.info.seed == again.info.seed != other.info.seed
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    StreamingSVD(40, 4, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


# Matrices on which plain methods fail.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 7), (90, 70), (70, 90)])
def test_zero_and_vectors(mode, dtype, shape):
    k = min(*shape, 5)
    for A in (np.zeros(shape, dtype), np.outer(np.arange(1, shape[0] + 1), np.ones(shape[1])).astype(dtype)):
        U, S, Vh = result = final(stream_of(A, k, mode=mode, rng=0))
        assert_orthonormal(U)
        assert_orthonormal(Vh.conj().T)
        allowed = 1e3 * rounding(A, np.linalg.norm(A))
        assert np.linalg.norm(A - result.to_dense()) <= allowed
        assert abs(S[0] - np.linalg.norm(A)) <= allowed


@pytest.mark.parametrize("mode", MODES)
def test_all_triplets(mode):
    for shape in ((12, 12), (40, 12), (12, 40)):
        A = matrix_with_spectrum(*shape, spectrum("poly1", 12), rng=3)
        result = final(stream_of(A, 12, (5,), mode=mode, rng=0))
        assert np.linalg.norm(A - result.to_dense()) <= 1e4 * rounding(A, 1.0)


@pytest.mark.parametrize("mode", MODES)
def test_hilbert(mode):
    A = hilbert(60, 40)
    sigma = np.linalg.svd(A, compute_uv=False)
    result = final(stream_of(A, 6, (30,), mode=mode, rng=0))
    assert np.abs(result.S - sigma[:6]).max() <= 1e-6 * sigma[0]
    assert np.all(sigma[:6] * (1 + 1e-6) >= result.S) or mode == "turnstile"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "scale"), [
    ("float64", 1e150), ("float64", 1e-150), ("complex128", 1e150), ("float32", 1e30), ("float32", 1e-30),
    ("float64", 1e170), ("float64", 1e-170),
])  # fmt: skip
def test_extreme_scales(mode, dtype, scale):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    large, plain = (stream_of((A * by).astype(dtype), 5, (30, 31), mode=mode, rng=0) for by in (scale, 1.0))
    result, expected = large.finalize(), plain.finalize()
    allowed, relative = 1e4 * rounding(A.astype(dtype), 1.0), 1e4 * float(np.finfo(dtype).eps)
    assert np.abs(result.S.astype(float) / scale - expected.S).max() <= allowed
    assert_orthonormal(result.U)
    assert result.info.error_estimate == pytest.approx(expected.info.error_estimate, rel=relative)
    assert large.error_estimate() / scale == pytest.approx(plain.error_estimate(), rel=relative)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_rows_of_very_different_scale(mode, order):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    A[45:] *= 1e140
    first, second = np.split(A, 2)
    allowed = 1e4 * rounding(A, 1e140)
    expected = np.linalg.svd(second, compute_uv=False)[0]
    result = final(stream_of(A, 5, (45,), order=order, mode=mode, rng=0))
    assert abs(result.S[0] - expected) <= 0.3 * expected
    merged = [StreamingSVD(70, 5, mode=mode, n_rows=90, rng=0).update(B, at) for B, at in ((first, 0), (second, 45))]
    other = final(merged[order[0]].merge(merged[order[1]]))
    assert np.abs(other.S - result.S).max() <= allowed


# What is refused.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["numpy", "rows", "sparse"])
def test_values_that_are_not_finite_are_refused_and_change_nothing(mode, value, kind):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    bad = A[40:].copy()
    bad[33, 21] = value
    stream = stream_of(A[:40], 5, mode=mode, n_rows=90, rng=0)
    before = stream.finalize()
    view = {"numpy": bad, "rows": CountingRows(bad, 16), "sparse": sp.csr_array(bad)}[kind]
    with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.update: block must be finite"):
        stream.update(view)
    assert all(np.array_equal(x, y) for x, y in zip(stream.finalize(), before, strict=True))
    stream.update(A[40:])
    whole = stream_of(A, 5, (40,), mode=mode, rng=0)
    assert np.array_equal(stream.finalize().S, whole.finalize().S)


def test_a_row_seen_before_is_refused():
    A = np.random.default_rng(0).standard_normal((30, 20))
    stream = StreamingSVD(20, 3, rng=0).update(A, 10)
    for offset in (0, 10, 39):
        with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.update: row_offset must not lead to rows"):
            stream.update(A[:15], offset)
    with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.merge: row_offset must not lead to rows"):
        stream.merge(copy.deepcopy(stream))
    assert stream.update(A[:10], 0).update(A).shape == (70, 20)


INVALID = {
    "n_cols": ({"n_cols": 0}, "n_cols must be at least 1; got 0."),
    "k zero": ({"k": 0}, "k must be at least 1; got 0."),
    "k large": ({"k": 21}, "k must be in 1..20 for n_rows = None and n_cols = 20; got 21."),
    "k rows": ({"k": 6, "n_rows": 5}, "k must be in 1..5 for n_rows = 5"),
    "mode": ({"mode": "columns"}, "mode must be one of 'rows', 'turnstile'; got 'columns'."),
    "n_rows missing": ({"mode": "turnstile"}, "n_rows must be given for mode 'turnstile'; got None."),
    "n_rows": ({"n_rows": 0}, "n_rows must be at least 1; got 0."),
    "n_oversamples": ({"n_oversamples": -1}, "n_oversamples must be at least 0; got -1."),
    "spectrum": ({"spectrum": "steep"}, "spectrum must be one of 'decaying', 'flat'; got 'steep'."),
    "sketch": ({"sketch": "srht"}, "sketch must be one of 'gaussian'"),
    "error_sketch": ({"error_sketch": -1}, "error_sketch must be at least 0; got -1."),
    "budget rows": ({"budget": 1000}, "budget must be None for mode 'rows', see n_oversamples; got 1000."),
    "budget small": ({"mode": "turnstile", "n_rows": 30, "budget": 10}, "budget must be at least 199 for k = 3"),
    "budget both": (
        {"mode": "turnstile", "n_rows": 30, "budget": 10**4, "n_oversamples": 3}, "n_oversamples must be 'auto' where",
    ),
    "spill": ({"spill": "/no/such/folder"}, "spill must be a folder; got '/no/such/folder'."),
    "spill mode": ({"mode": "turnstile", "n_rows": 30, "spill": "."}, "spill must be None for mode 'turnstile'"),
    "seed": ({"rng": -1}, "rng as a seed must be a non-negative int; got -1."),
}  # fmt: skip
WRONG_TYPE = {
    "n_cols": ({"n_cols": 2.0}, "n_cols must be an integer; got float 2.0."),
    "k": ({"k": "3"}, "k must be an integer; got str '3'."),
    "n_oversamples": ({"n_oversamples": None}, "n_oversamples must be an integer; got NoneType None."),
    "budget": ({"mode": "turnstile", "n_rows": 30, "budget": 1e4}, "budget must be an integer; got float 10000.0."),
    "rng": ({"rng": "seed"}, "rng must be None, a non-negative int"),
}


@pytest.mark.parametrize(("error", "case"), [(ValueError, c) for c in INVALID] + [(TypeError, c) for c in WRONG_TYPE])
def test_bad_arguments_are_refused(error, case):
    options, message = (INVALID if error is ValueError else WRONG_TYPE)[case]
    with pytest.raises(error, match=f"^{re.escape('rnla.StreamingSVD: ' + message)}"):
        StreamingSVD(**{"n_cols": 20, "k": 3, **options})


def test_bad_blocks_and_calls_are_refused():
    A = np.ones((30, 20))
    stream = StreamingSVD(20, 3, n_rows=40, rng=0)
    turnstile = StreamingSVD(20, 3, mode="turnstile", n_rows=30, rng=0)
    for function, message, error in (
        (lambda: stream.finalize(), "finalize: update must be called before; got no rows.", ValueError),
        (lambda: stream.update(A[:, :5]), "update: block must have 20 columns; got shape (30, 5).", ValueError),
        (lambda: stream.update(A[0]), "update: block must be two-dimensional; got shape (20,).", ValueError),
        (lambda: stream.update(A[:0]), "update: block must have at least one row", ValueError),
        (lambda: stream.update(None), "update: block must be a 2-D array", TypeError),
        (lambda: stream.update(A, -1), "update: row_offset must be at least 0; got -1.", ValueError),
        (lambda: stream.update(A, 1.0), "update: row_offset must be an integer; got float 1.0.", TypeError),
        (lambda: stream.update(A, 11), "update: row_offset must be in 0..10 for 30 of n_rows = 40 rows; got 11.",
         ValueError),
        (lambda: stream.linear_update(A), "linear_update: mode must be 'turnstile'; got 'rows'.", ValueError),
        (lambda: turnstile.linear_update(A[:9]), "linear_update: H must have shape (30, 20); got (9, 20).", ValueError),
        (lambda: turnstile.linear_update(A, theta=math.nan), "linear_update: theta must be finite", ValueError),
        (lambda: turnstile.linear_update(A, eta=1j), "linear_update: eta must be finite, and real", ValueError),
        (lambda: turnstile.linear_update(A, eta="x"), "linear_update: eta must be a number; got str.", TypeError),
        (lambda: turnstile.merge(turnstile, 3), "merge: row_offset must be 0 for mode 'turnstile'; got 3.", ValueError),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{re.escape('rnla.StreamingSVD.' + message)}"):
            function()
    stream.update(A)
    for k, error in ((0, ValueError), (14 + 3, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match=r"^rnla\.StreamingSVD\.finalize: k must be "):
            stream.finalize(k)
    for block in (A.astype(np.float32), A.astype(complex), torch.from_numpy(A)):
        with pytest.raises(TypeError, match=r"^rnla\.StreamingSVD\.update: block must have the library, dtype"):
            stream.update(block[:5])
    with pytest.raises(TypeError, match=r"^rnla\.StreamingSVD: spill must be None for blocks that are not NumPy's"):
        StreamingSVD(20, 3, spill=".").update(torch.from_numpy(A))
    other = StreamingSVD(20, 3, rng=0).update(A)
    with pytest.raises(ValueError, match=r"^rnla\.StreamingSVD\.merge: other must not go beyond n_rows = 40"):
        stream.merge(other, row_offset=30)
    assert repr(stream) == "StreamingSVD(mode='rows', k=3, 40 x 20, width 16)"
