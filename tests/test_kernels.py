"""Random numbers, scatter and Walsh-Hadamard kernels: the CPU and GPU variants against the references.

The GPU variants run in Numba's simulator: ``NUMBA_ENABLE_CUDASIM=1 pytest tests/test_kernels.py -k cudasim``.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from rnla import kernels
from rnla.kernels import _fwht, _hankel, _philox, _sampled_product, _scatter

cudasim = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") != "1", reason="runs in the CUDA simulator: set NUMBA_ENABLE_CUDASIM=1"
)
real_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
all_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
ULPS = 4  # a GPU fuses multiply and add: normals agree to a few units in the last place of their radius


def normal(shape, dtype, seed):
    X = np.random.default_rng(seed).standard_normal((*shape, 2))
    return (X @ [1, 1j]).astype(dtype) if np.dtype(dtype).kind == "c" else X[..., 0].astype(dtype)


def random_targets(n, d, zeta, seed):
    rng = np.random.default_rng(seed)
    rows = np.argsort(rng.random((n, d)), axis=1)[:, :zeta].astype(np.int32)
    return np.where(rng.random(rows.shape) < 0.5, rows, ~rows)


def dense_operator(targets, d):
    S = np.zeros((d, targets.shape[0]))
    columns = np.arange(targets.shape[0])[:, None]
    S[np.maximum(targets, ~targets), columns] = np.where(targets < 0, -1, 1)
    return S


def radius_bound(out, dtype):
    """Bound the error of normals made with fused operations: their radius is below ``sqrt(2 log(2**53))``."""
    return ULPS * np.finfo(dtype).eps * np.maximum(abs(out), np.sqrt(2 * np.log(2.0**53)))


# Random numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, answer):
    assert tuple(int(w) for w in _philox.philox4x32(*map(np.uint64, counter), *map(np.uint64, key))) == answer


def test_words_follow_the_documented_counter_layout():
    key, stream, row, column = 0x0123456789ABCDEF, 5, 2**33 + 7, 11
    words = kernels.random_words(key, stream, _philox.SIGNS, (row, row + 1), (column, column + 1))[0, 0]
    counter = (row & 0xFFFFFFFF, row >> 32, column, stream * 8 + _philox.SIGNS)
    expected = _philox.philox4x32(*map(np.uint64, counter), np.uint64(0x89ABCDEF), np.uint64(0x01234567))
    assert words.dtype == np.uint32
    assert words.tolist() == [int(w) for w in expected]


def test_double_normals_are_box_muller_to_a_few_ulps():
    words = kernels.random_words(1, 0, 0, (0, 20000), (0, 1))[:, 0, :].T.astype(np.uint64)
    square, cosine, sine = _philox.polar_double(*words)
    half = np.uint64(6)
    u, v = (((a >> half) * 2**26 + (b >> half)).astype(np.longdouble) for a, b in (words[:2], words[2:]))
    u, v = (u + 0.5) / 2**52, (v + 0.5) / 2**52
    turns = np.rint(4 * v)  # whole quarter turns are taken off exactly; the rest is small, so sine keeps its digits
    angle = (4 * v - turns) * (np.longdouble("3.14159265358979323846264338327950288") / 2)
    quarter = turns.astype(int) % 4
    reference_cos = np.choose(quarter, [np.cos(angle), -np.sin(angle), -np.cos(angle), np.sin(angle)])
    reference_sin = np.choose(quarter, [np.sin(angle), np.cos(angle), -np.sin(angle), -np.cos(angle)])
    eps = np.finfo(np.float64).eps
    for value, reference in ((square, -2 * np.log(u)), (cosine, reference_cos), (sine, reference_sin)):
        assert (abs(value - reference) <= ULPS * eps * abs(reference)).all()


def test_single_normals_are_box_muller_to_a_few_ulps():
    w0, w1 = kernels.random_words(2, 0, 1, (0, 20000), (0, 1))[:, 0, :2].T.astype(np.uint64)
    square, cosine, sine = _philox.polar_single(w0, w1)
    u, v = (((w >> np.uint64(9)).astype(float) + 0.5) / 2**23 for w in (w0, w1))
    eps = np.finfo(np.float32).eps
    assert square.dtype == cosine.dtype == sine.dtype == np.float32
    for value, reference in ((square, -2 * np.log(u)), (cosine, np.cos(2 * np.pi * v)), (sine, np.sin(2 * np.pi * v))):
        assert (abs(value - reference) <= ULPS * eps * abs(reference)).all()


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_give_finite_normals(word):
    w = np.full(1, word, np.uint64)
    for square, cosine, sine in (_philox.polar_double(w, w, w, w), _philox.polar_single(w, w)):
        assert 0 < square[0] < 2 * np.log(2.0**54)
        assert np.isclose(cosine[0] ** 2 + sine[0] ** 2, 1, rtol=8 * np.finfo(cosine.dtype).eps)


blocks = st.tuples(st.integers(1, 700), st.integers(1, 9), st.integers(0, 2**33), st.integers(0, 9))


@real_dtypes
@given(blocks, st.integers(0, 2**64 - 1), st.integers(0, 2**29 - 1))
def test_compiled_normals_equal_the_reference_in_every_bit(dtype, block, key, stream):
    from rnla.kernels._philox_cpu import on_cpu

    n, width, row, col = block
    ours, reference = np.empty((n, width), dtype), np.empty((n, width), dtype)
    on_cpu(ours, key, stream, row, col)
    _philox.reference(reference, key, stream, row, col)
    assert np.array_equal(ours, reference)


def test_compiled_words_equal_the_reference(monkeypatch):
    from rnla.kernels._philox_cpu import words_on_cpu

    arguments = (2**63 + 9, 4, _philox.ROWS)
    words = np.empty((700, 3, 4), np.uint32)
    words_on_cpu(words, *arguments, 2**32 - 300, 5)
    monkeypatch.delitem(sys.modules, "rnla.kernels._philox_cpu")
    assert np.array_equal(words, kernels.random_words(*arguments, (2**32 - 300, 2**32 + 400), (5, 8)))


@real_dtypes
def test_a_block_of_normals_is_a_slice_of_the_whole(dtype):
    whole = kernels.fill_normal(np.empty((5000, 13), dtype), 3)
    for row, col, n, width in ((0, 0, 5000, 5), (4097, 1, 900, 7), (4999, 12, 1, 1), (130, 6, 2049, 7)):
        block = kernels.fill_normal(np.empty((n, width), dtype), 3, row=row, col=col)
        assert np.array_equal(block, whole[row : row + n, col : col + width])


@real_dtypes
def test_keys_streams_and_dtypes_are_uncorrelated(dtype):
    n = 20000
    draws = [(1, 0), (2, 0), (1 + 2**32, 0), (1, 1)]
    X = np.concatenate([kernels.fill_normal(np.empty((n, 2), dtype), key, stream) for key, stream in draws], axis=1)
    correlations = np.corrcoef(X.astype(float).T) - np.eye(8)
    # Each of 28 correlations has standard deviation n**-0.5; one exceeds 5 of them with probability 2e-5.
    assert abs(correlations).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("threads", [2, 3])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, threads):
    A, targets = normal((40000, 20), "float64", 0), random_targets(40000, 16, 8, 1)
    assert A.size * targets.shape[1] >= _scatter._COMPILE_FROM

    def results():
        normals = kernels.fill_normal(np.empty((9000, 7)), 5)
        words = kernels.random_words(5, 0, 0, (0, 9000), (0, 2))
        return normals, words, kernels.scatter_signs(A, targets, np.zeros((16, 20))), kernels.fwht(A[:1024, :].copy())

    monkeypatch.setattr("rnla.kernels._threads.num_threads", lambda: 1)
    serial = results()
    monkeypatch.setattr("rnla.kernels._threads.num_threads", lambda: threads)
    assert all(np.array_equal(a, b) for a, b in zip(serial, results(), strict=True))


def test_small_work_does_not_load_numba():
    code = (
        "import sys, numpy as np; from rnla import kernels; X = np.zeros((64, 4));"
        "kernels.fill_normal(X, 0); kernels.fwht(X);"
        "kernels.scatter_signs(X, np.zeros((64, 1), np.int32), X[:8].copy());"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_kernel_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"rnla\.kernels.*'no_such_kernel'"):
        kernels.no_such_kernel  # noqa: B018
    assert set(dir(kernels)) == set(kernels.__all__) == set(kernels._MODULE_OF)


# Scatter -----------------------------------------------------------------------------------------------------------


@all_dtypes
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("size", [(60, 5, 7, 3), (3000, 17, 300, 8)], ids=["small", "large"])
def test_scatter_is_the_product_with_the_dense_operator(dtype, layout, size):
    from rnla.kernels import _scatter_cpu  # noqa: F401 - once loaded, the compiled kernel serves every size

    n, d, width, zeta = size
    A = normal((n, 2 * width if layout == "strided" else width), dtype, 0)
    A = A[:, ::2] if layout == "strided" else np.asarray(A, order=layout)
    targets, start = random_targets(n, d, zeta, 1), normal((d, width), dtype, 2)
    result = kernels.scatter_signs(A, targets, start.copy())
    expected = start + dense_operator(targets, d) @ A
    rounding = n * np.finfo(dtype).eps * abs(A).max()
    assert result.dtype == A.dtype
    assert abs(result - expected).max() <= rounding
    assert abs(_scatter.reference(A, targets, start.copy()) - expected).max() <= rounding


@all_dtypes
def test_scatter_with_and_without_the_compiled_kernel_agree_in_every_bit(dtype):
    A, targets = normal((2000, 9), dtype, 0), random_targets(2000, 12, 4, 1)
    out = np.zeros((12, 9), dtype)
    assert A.size * targets.shape[1] < _scatter._COMPILE_FROM
    from rnla.kernels import _scatter_cpu  # noqa: F401 - from here on it is used

    assert np.array_equal(kernels.scatter_signs(A, targets, out.copy()), _scatter._on_scipy(A, targets, out.copy()))


# Walsh-Hadamard ----------------------------------------------------------------------------------------------------


@all_dtypes
@pytest.mark.parametrize("n", [1, 2, 16, 512])
def test_fwht_is_the_product_with_the_hadamard_matrix(dtype, n):
    from rnla.kernels import _fwht_cpu  # noqa: F401 - once loaded, the compiled kernel serves every size

    X = normal((n, 5), dtype, 0)
    Y = X.copy()
    result = kernels.fwht(Y)
    assert result is Y
    bound = (n + 10) * np.finfo(dtype).eps * max(1, abs(X).sum(axis=0).max())
    assert abs(Y - linalg.hadamard(n) @ X).max() <= bound
    assert np.array_equal(Y, _fwht.reference(X))


def test_fwht_twice_is_n_times_the_identity():
    X = normal((2048, 3), "float64", 0)
    Y = kernels.fwht(kernels.fwht(X.copy())) / 2048
    assert abs(Y - X).max() <= 22 * np.finfo(float).eps * np.linalg.norm(X, axis=0).max()


# Sampled products --------------------------------------------------------------------------------------------------


def sampled_problem(dtype, seed=0, n=30, count=200):
    rng = np.random.default_rng(seed)
    L, R = normal((n, 3, 4), dtype, seed), normal((n, 2, 4), dtype, seed + 1)
    rows, cols, times = np.sort(rng.integers(0, n, count)), rng.integers(0, n, count), rng.integers(1, 5, count)
    return L, R, *(x.astype(np.int32) for x in (rows, cols, times)), normal((count,), dtype, seed + 2)


def hankel_expected(L, R, rows, cols, times):
    """Return the samples, and the block Hankel matrix of some values, by loops."""
    out = np.zeros(len(rows), L.dtype)
    for e, (i, j, t) in enumerate(zip(rows, cols, times, strict=True)):
        for a in range(L.shape[1]):
            if 0 <= t - 1 - a < R.shape[1]:
                out[e] += L[i, a] @ R[j, t - 1 - a]
    return out


def scattered_expected(values, X, rows, cols, times, n, blocks):
    out = np.zeros((n, blocks, X.shape[2]), X.dtype)
    for e, (i, j, t) in enumerate(zip(rows, cols, times, strict=True)):
        for a in range(blocks):
            if 0 <= t - 1 - a < X.shape[1]:
                out[i, a] += values[e] * X[j, t - 1 - a]
    return out


@all_dtypes
@pytest.mark.parametrize("compiled", [True, False])
def test_sampled_products(dtype, compiled, monkeypatch):
    monkeypatch.setattr(_sampled_product, "_COMPILE_FROM", 0 if compiled else 1 << 60)
    L, R, rows, cols, _, _ = sampled_problem(dtype)
    L, R = L[:, 0], R[:, 0]
    expected = np.array([L[i] @ R[j] for i, j in zip(rows, cols, strict=True)])
    bound = 16 * np.finfo(dtype).eps * abs(L).max() * abs(R).max()
    for found in (kernels.sampled_product(L, R, rows, cols), _sampled_product.reference(L, R, rows, cols)):
        assert found.dtype == expected.dtype
        assert abs(found - expected).max() <= bound
    assert kernels.sampled_product(L, R, rows[:0], cols[:0]).shape == (0,)


@all_dtypes
def test_hankel_products(dtype):
    L, R, rows, cols, times, values = sampled_problem(dtype)
    ends = np.searchsorted(rows, np.arange(len(L) + 1))
    bound = 100 * np.finfo(dtype).eps * abs(L).max() * abs(R).max()
    expected = hankel_expected(L, R, rows, cols, times)
    for f in (kernels.hankel_sampled_product, _hankel.sampled_product_reference):
        assert abs(f(L, R, rows, cols, times) - expected).max() <= bound
    expected = scattered_expected(values, R, rows, cols, times, len(L), 3)
    for f in (kernels.hankel_scatter, _hankel.scatter_reference):
        assert abs(f(values, R, ends, cols, times, 3) - expected).max() <= bound * abs(values).max()


@pytest.mark.parametrize("place", ["numpy", "strict", "torch"], indirect=True)
def test_row_sums(place):
    xp, device = place
    rng = np.random.default_rng(0)
    X, rows = rng.standard_normal((50, 3)), np.sort(rng.integers(0, 20, 50))
    expected = np.array([X[rows == i].sum(axis=0) for i in range(20)])
    found = kernels.row_sums(xp.asarray(X, device=device), xp.asarray(rows, device=device), 20)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-13)


# GPU variants ------------------------------------------------------------------------------------------------------


@cudasim
@real_dtypes
@pytest.mark.parametrize("col", [0, 1, 3])
def test_cudasim_normals(dtype, col):
    from rnla.kernels import _philox_cuda

    out, reference = np.empty((3, 5), dtype), np.empty((3, 5), dtype)
    _philox_cuda.launch(out, 2**63 + 5, 2, 2**32 - 1, col, threads=4)
    _philox.reference(reference, 2**63 + 5, 2, 2**32 - 1, col)
    assert np.array_equal(out, reference)  # the simulator fuses nothing


@cudasim
@all_dtypes
def test_cudasim_scatter(dtype):
    from rnla.kernels import _scatter_cuda

    A, targets = normal((6, 3), dtype, 0), random_targets(6, 5, 2, 1)
    out = _scatter_cuda.launch(A, targets, np.zeros((5, 3), dtype), threads=4)
    assert abs(out - dense_operator(targets, 5) @ A).max() <= 6 * np.finfo(dtype).eps * abs(A).max()


@cudasim
@all_dtypes
def test_cudasim_fwht(dtype):
    from rnla.kernels import _fwht_cuda

    X = normal((8, 3), dtype, 0)
    assert np.array_equal(_fwht_cuda.launch(X.copy(), threads=4), _fwht.reference(X))


@cudasim
@all_dtypes
def test_cudasim_sampled_products(dtype):
    from rnla.kernels import _hankel_cuda, _sampled_product_cuda

    L, R, rows, cols, times, values = sampled_problem(dtype, n=4, count=7)
    bound = 100 * np.finfo(dtype).eps * abs(L).max() * abs(R).max()
    left, right = (np.ascontiguousarray(X[:, 0]) for X in (L, R))
    out = _sampled_product_cuda.launch(left, right, rows, cols, np.empty(7, dtype), threads=4)
    assert abs(out - _sampled_product.reference(left, right, rows, cols)).max() <= bound
    out = _hankel_cuda.sampled_product(L, R, rows, cols, times, np.empty(7, dtype), threads=4)
    assert abs(out - hankel_expected(L, R, rows, cols, times)).max() <= bound
    ends = np.searchsorted(rows, np.arange(5))
    out = _hankel_cuda.scatter(values, R, ends, cols, times, np.empty((4, 3, 4), dtype), threads=4)
    assert abs(out - scattered_expected(values, R, rows, cols, times, 4, 3)).max() <= bound * abs(values).max()


@pytest.mark.gpu
@real_dtypes
@pytest.mark.parametrize("place", ["cupy"], indirect=True)
def test_gpu_normals(place, dtype):
    xp, _ = place
    out = xp.asnumpy(kernels.fill_normal(xp.empty((3000, 7), dtype=dtype), 9, 1, 2**32 - 5, 3))
    reference = kernels.fill_normal(np.empty((3000, 7), dtype), 9, 1, 2**32 - 5, 3)
    assert (abs(out - reference) <= radius_bound(reference, dtype)).all()


@pytest.mark.gpu
@all_dtypes
@pytest.mark.parametrize("place", ["cupy"], indirect=True)
def test_gpu_scatter_and_fwht(place, dtype):
    xp, _ = place
    A, targets = normal((1024, 5), dtype, 0), random_targets(1024, 20, 8, 1)
    eps = np.finfo(dtype).eps * 1024 * abs(A).max()
    out = kernels.scatter_signs(xp.asarray(A), targets, xp.zeros((20, 5), dtype=dtype))
    assert abs(xp.asnumpy(out) - dense_operator(targets, 20) @ A).max() <= eps
    assert abs(xp.asnumpy(kernels.fwht(xp.asarray(A))) - _fwht.reference(A)).max() <= eps


def test_two_processes_never_write_the_same_file_of_compiled_code(tmp_path, monkeypatch):
    import numba

    from rnla.kernels._compiled import compiled

    def double(x):
        return x + x

    def fresh():
        kernel = compiled()(double)
        assert isinstance(kernel, numba.core.dispatcher.Dispatcher)
        return kernel

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    first, second = fresh(), fresh()  # as in two processes
    # Both have looked for compiled code before one of them has written any.
    monkeypatch.setattr(first._cache._cache_file, "_load_index", dict)
    monkeypatch.setattr(second._cache._cache_file, "_load_index", dict)
    assert (first(np.float32(1.5)), second(1.5)) == (3.0, 3.0)
    names = {file.name for file in tmp_path.rglob("*.nbc")}
    assert len(names) == 2
    third = fresh()
    for x in (np.float32(1.5), 1.5, 1j):  # the one that the index has lost is compiled again
        assert third(x) == 2 * x
    assert sum(third.stats.cache_hits.values()) == 1


def test_every_cached_kernel_is_safe_from_other_processes():
    import importlib
    import pkgutil

    import numba

    import rnla.kernels as kernels

    found = []
    for info in pkgutil.iter_modules(kernels.__path__):
        if info.name.endswith("_cpu"):
            module = importlib.import_module(f"rnla.kernels.{info.name}")
            found += [X for X in vars(module).values() if isinstance(X, numba.core.dispatcher.Dispatcher)]
    files = [getattr(kernel._cache, "_cache_file", None) for kernel in found]
    cached = [file for file in files if file is not None]
    assert len(cached) >= 20
    assert all(file._data_name(1) != file._data_name(1) for file in cached)
