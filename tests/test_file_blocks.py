"""What one block of a file may hold, and errors that name the block."""

import threading

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from test_matrix import peak_memory

import rnla
from rnla._matrix import as_matrix
from rnla.testing import matrix_with_spectrum

CALLER = "rnla.test"
M, N = 400, 60
B = np.ones(M)
FUNCTIONS = {
    "svd": lambda A, **how: rnla.svd(A, 3, method="gram", rng=0, **how),
    "svdvals": lambda A, **how: rnla.svdvals(A, 3, method="krylov", rng=0, **how),
    "pca": lambda A, **how: rnla.pca(A, 3, rng=0, **how),
    "qb": lambda A, **how: rnla.qb(A, rtol=0.5, rng=0, **how),
    "range_finder": lambda A, **how: rnla.range_finder(A, 3, rng=0, **how),
    "lstsq": lambda A, **how: rnla.lstsq(A, B, method="spir", rng=0, **how),
    "eigh": lambda A, **how: rnla.eigh(A, 3, method="krylov", rng=0, **how),
    "nystrom": lambda A, **how: rnla.nystrom(A, 3, rng=0, **how),
}
MORE = {
    "pca by svd": lambda A, **how: rnla.pca(A, 3, method="gram", scale=True, rng=0, **how),
    "exact": lambda A, **how: rnla.svd(A, 3, method="qr", rng=0, **how),
    "one pass": lambda A, **how: rnla.svd(A, 3, max_passes=1, rng=0, **how),
    "centred": lambda A, **how: rnla.svd(A, 3, center=True, method="gram", rng=0, **how),
    "to a precision": lambda A, **how: rnla.svd(A, rtol=0.5, rng=0, **how),
    "svds": lambda A, **how: rnla.svds(A, 3, rng=0, **how),
    "exact eigh": lambda A, **how: rnla.eigh(A, 3, method="dense", rng=0, **how),
}


class Dataset:
    """A chunked file that notes what is read of it, and fails where it is told to."""

    def __init__(self, A, chunks, bad=None):
        self.A, self.shape, self.dtype, self.chunks, self.bad = A, A.shape, A.dtype, chunks, bad
        self.largest = self.entries = 0

    def __getitem__(self, key):
        block = self.A[key]
        if self.bad is not None and key[0].start <= self.bad < key[0].stop:
            raise RuntimeError("error -5 while unpacking")
        self.entries += block.size
        self.largest = max(self.largest, block.nbytes)
        return block


def problem(name):
    if name in ("eigh", "nystrom", "exact eigh"):
        X = matrix_with_spectrum(N, N, 1 / np.arange(1.0, N + 1), rng=0)
        return X @ X.T
    return matrix_with_spectrum(M, N, 1 / np.arange(1.0, N + 1), rng=0)


@pytest.mark.parametrize("name", [*FUNCTIONS, *MORE])
def test_no_block_is_larger_than_asked_for(name):
    A = problem(name)
    dataset = Dataset(A, (4, N))
    call = (FUNCTIONS | MORE)[name]
    result = call(dataset, block_bytes=10_000)
    assert 0 < dataset.largest <= 10_000
    large = call(Dataset(A, (4, N)))
    for x, y in zip(arrays(result), arrays(large), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)  # the same up to the order of sums
    call(A, block_bytes=10_000)  # ignored


def arrays(result):
    if isinstance(result, np.ndarray):
        return (result,)
    if isinstance(result, tuple):
        return tuple(result)
    return (result.x,) if hasattr(result, "x") else (result.components, result.mean)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (0, ValueError, "block_bytes must be at least 1; got 0"),
        (-5, ValueError, "block_bytes must be at least 1; got -5"),
        (1e6, TypeError, "block_bytes must be an integer or None; got float 1000000.0"),
        (True, TypeError, "block_bytes must be an integer or None; got bool True"),
        ("64MB", TypeError, "block_bytes must be an integer or None; got str '64MB'"),
    ],
)
def test_sizes_that_are_none(name, value, error, match):
    with pytest.raises(error, match=rf"^rnla\.{name}: {match}"):
        FUNCTIONS[name](problem(name), block_bytes=value)


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    chunks=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    block_bytes=st.integers(1, 8 * 3600),
    dtype=st.sampled_from([np.float32, np.float64, np.int16]),
)
def test_both_products_in_one_read_wherever_a_row_of_chunks_fits(shape, chunks, block_bytes, dtype):
    A = np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)
    m, n = shape
    rows, columns = min(chunks[0], m), min(chunks[1], n)
    dataset = Dataset(A, chunks)
    view = as_matrix(dataset, CALLER, block_bytes=block_bytes)
    item = max(A.itemsize, view.dtype.itemsize)
    assert view.one_pass_gram == (rows * n * item <= block_bytes // item * item)
    assert view.H.one_pass_gram == (columns * m * item <= block_bytes // item * item)
    X, Y = np.ones((n, 2), view.dtype), np.ones((m, 2), view.dtype)
    wide = A.astype(float)
    for work, wanted in (
        (lambda: view.gram_matmat(X), wide.T @ (wide @ X)),
        (lambda: view.H.gram_matmat(Y), wide @ (wide.T @ Y)),
    ):
        dataset.entries, passes = 0, view.counter.passes
        np.testing.assert_allclose(work(), wanted, rtol=1e-5)  # sums of integers: exact but for those beyond 2**24
        assert dataset.entries == (view.counter.passes - passes) * A.size
    # Not above the limit, but for one chunk.
    assert dataset.largest <= max(block_bytes, rows * columns * A.itemsize)


@pytest.mark.parametrize("block_bytes", [2**16, 2**18, 2**20])
def test_peak_memory_is_two_blocks(block_bytes, tmp_path):
    A = np.random.default_rng(0).standard_normal((8192, 64))  # 4 MiB
    np.save(tmp_path / "rows.npy", A)
    np.save(tmp_path / "columns.npy", np.asfortranarray(A.T.copy()))
    with h5py.File(tmp_path / "A.h5", "w") as handle:
        files = [
            handle.create_dataset("rows", data=A, chunks=(64, 64)),
            handle.create_dataset("columns", data=A.T, chunks=(64, 64)),
            zarr.create_array(tmp_path / "A.zarr", data=A, chunks=(64, 64)),
            np.load(tmp_path / "rows.npy", mmap_mode="r"),
            np.load(tmp_path / "columns.npy", mmap_mode="r"),
        ]
        for file in files:
            view = as_matrix(file, CALLER, block_bytes=block_bytes)
            view = view if view.one_pass_gram and view.shape[0] > view.shape[1] else view.H
            X = np.ones((view.shape[1], 2))
            view.gram_matmat(X)  # what libraries allocate once is not counted
            # A third one for a moment, between the end of one read and that of one product; places of the blocks.
            blocks, rest = (3, 2**15)
            if isinstance(file, zarr.Array):  # chunks that are being unpacked, and the machinery for many at a time
                blocks, rest = 5, 2**18
            assert peak_memory(lambda view=view, X=X: view.gram_matmat(X)) <= blocks * block_bytes + rest
        l, (m, n) = 15, A.shape
        peak = peak_memory(lambda: rnla.svd(files[3], 5, method="gram", rng=0, block_bytes=block_bytes))
        assert peak <= 4 * block_bytes + 8 * 4 * (m + n) * l


def test_the_next_block_is_read_while_the_present_one_is_used():
    begun = [threading.Event() for _ in range(4)]

    class Waiting(Dataset):
        def __getitem__(self, key):
            begun[key[0].start // 10].set()
            assert threading.current_thread() is not threading.main_thread()
            return super().__getitem__(key)

    view = as_matrix(Waiting(np.ones((40, 10)), (10, 10)), CALLER, block_bytes=800)
    for number, (first, _) in enumerate(view.row_blocks()):
        assert first == 10 * number
        if number < 3:
            assert begun[number + 1].wait(10)  # with this block still in use
        assert not any(event.is_set() for event in begun[number + 2 :])  # and no more than one ahead


# ---- errors that name the block


@pytest.mark.parametrize("name", [*FUNCTIONS, *MORE])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_one_block_is_found(name, bad):
    A = problem(name)
    A[37, 5] = bad
    caller = name if name in (*FUNCTIONS, "svds") else {"pca by svd": "pca", "exact eigh": "eigh"}.get(name, "svd")
    pattern = rf"^rnla\.{caller}: A must be finite; it has NaN or infinity in rows 36\.\.3[0-9]\.$"
    with pytest.raises(ValueError, match=pattern):
        (FUNCTIONS | MORE)[name](Dataset(A, (4, N)), block_bytes=4 * N * 8)
    if name in FUNCTIONS:
        with pytest.raises(ValueError, match=rf"^rnla\.{caller}: A must be finite; "):
            FUNCTIONS[name](A)


def test_blocks_are_named_by_the_columns_where_these_are_cut():
    A = problem("svd")
    A[37, 55] = np.nan
    by_columns, tiles, wide = Dataset(A, (M, 10)), Dataset(A, (40, 10)), Dataset(A.T, (10, 40))
    for dataset, size, place in (
        (by_columns, M * 10, "rows 0..399, columns 50..59"),
        (tiles, 400, "rows 0..39, columns 50..59"),
        (wide, 400, "rows 50..59, columns 0..39"),
    ):
        with pytest.raises(ValueError, match=rf"it has NaN or infinity in {place}\.$"):
            rnla.svd(dataset, 3, method="gram", rng=0, block_bytes=size * 8)


def test_looking_for_nan_costs_one_read_at_most():
    A = problem("svd")
    A[-1, -1] = np.nan
    dataset = Dataset(A, (4, N))
    with pytest.raises(ValueError, match=r"rows 396\.\.399"):
        rnla.svd(dataset, 3, method="gram", rng=0, block_bytes=4 * N * 8)
    assert dataset.entries <= 3 * A.size  # the product, the vector that tells overflow from NaN, the search


def test_products_that_overflow_are_not_blamed_on_a_block():
    A = np.full((400, 60), 3e38, np.float32)
    with pytest.raises(ValueError, match=r"A must be finite; its products contain NaN or infinity\.$"):
        rnla.svdvals(Dataset(A, (4, N)), 1, method="gram", rng=0, block_bytes=1000)


@pytest.mark.parametrize("name", [*FUNCTIONS, *MORE])
def test_a_chunk_that_cannot_be_read_is_named(name):
    dataset = Dataset(problem(name), (4, N), bad=37)
    caller = name if name in (*FUNCTIONS, "svds") else {"pca by svd": "pca", "exact eigh": "eigh"}.get(name, "svd")
    pattern = rf"^rnla\.{caller}: A cannot be read in rows 36\.\.39: error -5 while unpacking$"
    before = threading.active_count()
    with pytest.raises(OSError, match=pattern) as raised:
        (FUNCTIONS | MORE)[name](dataset, block_bytes=4 * N * 8)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert threading.active_count() == before  # the reading thread has ended


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_a_damaged_chunk_on_disk(kind, tmp_path):
    A = np.random.default_rng(0).standard_normal((400, 60))
    if kind == "hdf5":
        with h5py.File(tmp_path / "A.h5", "w") as handle:
            A_file = handle.create_dataset("A", data=A, chunks=(40, 60), compression="gzip", fletcher32=True)
            chunk = A_file.id.get_chunk_info(3)
        with open(tmp_path / "A.h5", "r+b") as stream:
            stream.seek(chunk.byte_offset + chunk.size // 2)
            stream.write(b"damaged!")
        with h5py.File(tmp_path / "A.h5") as handle:
            check_damage(handle["A"])
    else:
        A_file = zarr.create_array(tmp_path / "A.zarr", data=A, chunks=(40, 60))
        chunk = tmp_path / "A.zarr" / "c" / "3" / "0"
        chunk.write_bytes(chunk.read_bytes()[:1000])
        check_damage(A_file)


def check_damage(A):
    with pytest.raises(OSError, match=r"^rnla\.svd: A cannot be read in rows 120\.\.159: ."):
        rnla.svd(A, 3, method="gram", rng=0, block_bytes=40 * 60 * 8)


def test_an_error_in_the_middle_of_a_product_does_not_hang():
    def fail(record):
        raise ZeroDivisionError

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        rnla.svd(Dataset(problem("svd"), (4, N)), 3, method="gram", rng=0, block_bytes=2000, callback=fail)
    blocks = as_matrix(Dataset(problem("svd"), (4, N)), CALLER, block_bytes=2000).row_blocks()
    next(blocks)
    blocks.close()
    assert threading.active_count() == before
