"""Every kind of input gives the same products as the dense matrix, in the promised number of reads."""

import itertools
import os
import sys
import tracemalloc

import array_api_compat
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from rnla import _matrix_blocks, _matrix_dask, _matrix_views
from rnla._backend import eps_of
from rnla._matrix import as_matrix

CALLER = "rnla.svd"
SERIAL = itertools.count()  # HDF5 files in memory must have different names


class Products:
    """An operator in the manner of PyLops."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype

    def matmat(self, X):
        return self.A @ X

    def rmatmat(self, Y):
        return self.A.conj().T @ Y


class Multiplied:
    """An object with ``@`` and either ``.H`` or ``.T``."""

    def __init__(self, A, adjoint):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype
        if adjoint == "H":
            self.H = A.conj().T
        else:
            self.T = A.T

    def __matmul__(self, X):
        return self.A @ X


class Spy:
    """A chunked dataset that counts the entries read and remembers the largest read."""

    def __init__(self, A, chunks):
        self.A, self.shape, self.dtype, self.chunks = A, A.shape, A.dtype, chunks
        self.entries = self.largest = 0

    def __getitem__(self, key):
        block = self.A[key]
        assert block.ndim == 2
        self.entries += block.size
        self.largest = max(self.largest, block.size)
        return block


def in_larger(A, step=1, reverse=False):
    """Return a view with the values of `A` whose rows are `step` apart, or run backwards."""
    home = np.zeros((2 * A.shape[0], step * A.shape[1] + 1), A.dtype)
    view = home[::2, : step * A.shape[1] : step]
    view = view[::-1, ::-1] if reverse else view
    view[...] = A
    return view


def read_only(A):
    A = A.copy()
    A.flags.writeable = False
    return A


def memmap(A, folder, order="C", mode="r"):
    path = folder / f"{A.dtype.str[1:]}-{order}-{A.shape}.bin"
    with open(path, "wb") as stream:
        stream.write(A.tobytes(order))
    return np.memmap(path, A.dtype, mode, shape=A.shape, order=order)


def hdf5_file():
    return h5py.File(f"memory {next(SERIAL)}", "w", driver="core", backing_store=False)


def hdf5(A, folder, chunks):
    handle = hdf5_file()
    chunks = chunks and tuple(min(c, s) for c, s in zip(chunks, A.shape, strict=True))
    return handle.create_dataset("A", data=A, chunks=chunks)


def zarr_array(A, folder, chunks):
    array = zarr.create_array({}, shape=A.shape, dtype=A.dtype, chunks=chunks)
    array[...] = A
    return array


def wide_index(A, folder):
    csr = sp.csr_array(A)
    csr.indices, csr.indptr = csr.indices.astype(np.int64), csr.indptr.astype(np.int64)
    return csr


def duplicated(A, folder):
    half = sp.coo_array(A)
    rows, columns = half.coords
    # Thirds would round: the halves of a binary number add up exactly, and integers are split as x + 0.
    first = half.data if A.dtype.kind == "i" else half.data / 2
    rest = np.zeros_like(first) if A.dtype.kind == "i" else first
    data = np.concatenate([first, rest])[::-1]
    order = np.argsort(np.concatenate([rows, rows])[::-1], kind="stable")
    columns = np.concatenate([columns, columns])[::-1]
    indptr = np.concatenate([[0], np.cumsum(2 * np.bincount(rows, minlength=A.shape[0]))])
    return sp.csr_array((data[order], columns[order], indptr), shape=A.shape)


def strict(name):
    import array_api_strict as xp

    return lambda A, folder: xp.asarray(A, device=xp.Device(name))


def torch_conjugate(A, folder):
    tensor = torch.from_numpy(np.ascontiguousarray(A.conj()))
    return tensor.conj() if tensor.is_complex() else tensor


KINDS = {
    "c": lambda A, folder: A.copy(),
    "fortran": lambda A, folder: np.asfortranarray(A),
    "strided": lambda A, folder: in_larger(A, 3),
    "leading dimension": lambda A, folder: in_larger(A),
    "reversed": lambda A, folder: in_larger(A, 1, reverse=True),
    "read-only": lambda A, folder: read_only(A),
    "memmap c": memmap,
    "memmap fortran": lambda A, folder: memmap(A, folder, "F"),
    "memmap reversed": lambda A, folder: memmap(A[::-1, ::-1], folder)[::-1, ::-1],
    "memmap copy-on-write": lambda A, folder: memmap(A, folder, "C", "c"),
    **{
        f"sparse {f}": (lambda A, folder, f=f: sp.coo_array(A).asformat(f))
        for f in ("csr", "csc", "coo", "bsr", "lil", "dok", "dia")
    },
    "sparse matrix": lambda A, folder: sp.csr_matrix(A),
    "sparse int64": wide_index,
    "sparse duplicates": duplicated,
    "aslinearoperator": lambda A, folder: aslinearoperator(A),
    "matvec only": lambda A, folder: LinearOperator(
        A.shape, matvec=lambda x: A @ x, rmatvec=lambda y: A.conj().T @ y, dtype=A.dtype
    ),
    "pylops-like": lambda A, folder: Products(A),
    "object with H": lambda A, folder: Multiplied(A, "H"),
    "object with T": lambda A, folder: Multiplied(A, "T"),
    "functions": lambda A, folder: (lambda x: A @ x, lambda y: A.conj().T @ y, A.shape, A.dtype),
    "strict": strict("CPU_DEVICE"),
    "strict-device1": strict("device1"),
    "torch": lambda A, folder: torch.from_numpy(np.ascontiguousarray(A)),
    "torch transposed": lambda A, folder: torch.from_numpy(np.ascontiguousarray(A.T)).T,
    "torch strided": lambda A, folder: torch.from_numpy(np.repeat(np.repeat(A, 2, 0), 3, 1))[::2, ::3],
    "torch conjugate": torch_conjugate,
    "torch with gradient": lambda A, folder: torch.from_numpy(np.ascontiguousarray(A)).requires_grad_(
        A.dtype.kind != "i"
    ),
    "dask rows": lambda A, folder: da.from_array(A, chunks=(8, -1)),
    "dask columns": lambda A, folder: da.from_array(A, chunks=(-1, 9)),
    "dask tiles": lambda A, folder: da.from_array(A, chunks=(9, 7)),
    "hdf5 rows": lambda A, folder: hdf5(A, folder, (2, 1000)),
    "hdf5 columns": lambda A, folder: hdf5(A, folder, (1000, 3)),
    "hdf5 tiles": lambda A, folder: hdf5(A, folder, (4, 5)),
    "hdf5 contiguous": lambda A, folder: hdf5(A, folder, None),
    "zarr rows": lambda A, folder: zarr_array(A, folder, (2, A.shape[1])),
    "zarr tiles": lambda A, folder: zarr_array(A, folder, (3, 4)),
}
DTYPES = ["float32", "float64", "complex64", "complex128", "int64"]


@st.composite
def matrices(draw, dtypes=tuple(DTYPES)):
    """Draw a dense matrix with some zeros, and blocks for its products, from normal numbers."""
    m, n, width = draw(st.integers(1, 25)), draw(st.integers(1, 25)), draw(st.integers(1, 4))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    A = normal(rng, (m, n), dtype) * (rng.random((m, n)) < 0.7).astype(dtype)
    return A, normal(rng, (n, width), computing(dtype)), normal(rng, (m, width), computing(dtype))


def normal(rng, shape, dtype):
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    X = rng.standard_normal(shape)
    return (X + 1j * rng.standard_normal(shape) if dtype.kind == "c" else X).astype(dtype)


def computing(dtype):
    if dtype.kind in "iub":
        return np.dtype("float64")
    return np.dtype({2: "float32"}.get(dtype.itemsize, dtype.newbyteorder("=")))


def block(M, X):
    return M.xp.asarray(np.array(X), device=M.device)


def to_numpy(Y):
    if type(Y).__module__.startswith("array_api_strict"):
        import array_api_strict

        Y = Y.to_device(array_api_strict.Device("CPU_DEVICE"))
    return np.asarray(Y.resolve_conj() if isinstance(Y, torch.Tensor) else Y)


def assert_close(computed, exact, size, scale, dtype):
    """Compare with the error bound of a sum of `size` terms, in the Frobenius norm."""
    assert to_numpy(computed).dtype == dtype
    assert computed.shape == exact.shape
    # A complex product rounds four times where a real one rounds once.
    error = np.linalg.norm(to_numpy(computed).astype(exact.dtype) - exact)
    assert error <= 4 * (size + 4) * np.finfo(dtype).eps * scale


def cancellation(B, mean):
    """Return by how much the rounding of ``B - 1 mean^T``, of the size of both terms, exceeds the difference."""
    difference = np.linalg.norm(B - mean)
    return (np.linalg.norm(B) + np.sqrt(B.shape[0]) * np.linalg.norm(mean)) / (difference or 1.0)


def assert_products(M, A, X, Y, spread=1.0):
    """Check products of M and M.H with the reference A; `spread` is the norm of what cancels, over the norm of A."""
    dtype, size, norm = X.dtype, sum(A.shape), np.linalg.norm
    wide = np.complex128 if dtype.kind == "c" else np.float64
    A, X, Y, Xb, Yb = A.astype(wide), X.astype(wide), Y.astype(wide), block(M, X), block(M, Y)
    AH, scale = A.conj().T, spread * norm(A)
    for view, B, Z, Zb in ((M, A, X, Xb), (M.H, AH, Y, Yb), (M.H.H, A, X, Xb)):
        assert view.shape == B.shape
        assert_close(view.matmat(Zb), B @ Z, size, scale * norm(Z), dtype)
        assert_close(view.gram_matmat(Zb), B.conj().T @ (B @ Z), size, scale**2 * norm(Z), dtype)
    assert_close(M.rmatmat(Yb), AH @ Y, size, scale * norm(Y), dtype)
    assert_close(M.H.rmatmat(Xb), A @ X, size, scale * norm(X), dtype)
    assert_close(M.to_dense(), A, size, scale, dtype)
    for view, B in ((M, A), (M.H, AH)):
        if (blocks := view.row_blocks()) is not None:
            for start, rows in blocks:
                assert_close(rows, B[start : start + rows.shape[0]], 1, scale, dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("matrices")


@pytest.fixture
def _small_blocks(monkeypatch):
    """Run with limits on memory so low that every matrix needs many tiles and two passes."""
    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", 200)
    monkeypatch.setattr(_matrix_blocks, "RUN_BYTES", 16)
    monkeypatch.setattr(_matrix_dask, "STRIP_BYTES", 200)


def assert_agree(kind, folder, problem):
    A, X, Y = problem
    M = as_matrix(KINDS[kind](A, folder), CALLER)
    assert M.shape == A.shape
    assert array_api_compat.device(block(M, X)) == M.device
    assert_products(M, A, X, Y)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("dask")])
@given(problem=matrices())
def test_products_agree_with_the_dense_matrix(kind, folder, problem):
    assert_agree(kind, folder, problem)


# Graphs of tasks take a hundred times as long; tests of dask draw their chunks too.
@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("dask")])
@settings(max_examples=8)
@given(problem=matrices())
def test_products_with_dask_agree_with_the_dense_matrix(kind, folder, problem):
    assert_agree(kind, folder, problem)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith(("memmap", "hdf5", "zarr", "dask"))])
@pytest.mark.parametrize("dtype", ["float32", "complex128", "int64"])
def test_products_do_not_depend_on_the_blocks(kind, dtype, tmp_path):
    rng, dtype = np.random.default_rng(7), np.dtype(dtype)
    for shape in ((19, 11), (11, 19), (1, 20), (20, 1)):
        A = normal(rng, shape, dtype)
        X, Y = (normal(rng, (side, 3), computing(dtype)) for side in reversed(shape))
        M = as_matrix(KINDS[kind](A, tmp_path), CALLER)
        assert_products(M, A, X, Y)
        mean = normal(rng, shape[1], X.dtype)
        assert_products(M.centered(mean), A - mean, X, Y, spread=cancellation(A, mean))


VIEWED = [
    "c",
    "fortran",
    "memmap c",
    "sparse csr",
    "pylops-like",
    "strict-device1",
    "torch",
    "dask tiles",
    "hdf5 tiles",
]


@pytest.mark.parametrize("kind", VIEWED)
@given(problem=matrices(), offset=st.integers(-50, 50), power=st.integers(-20, 20), view=st.integers(0, 5))
def test_views_compose(kind, folder, problem, offset, power, view):
    A, X, Y = problem
    A, alpha = A + A.dtype.type(offset), 2.0**power
    wide = A.astype(np.result_type(A.dtype, np.float64))
    AH = wide.conj().T
    M = as_matrix(KINDS[kind](A, folder), CALLER)
    column_mean = M.col_mean()
    assert_close(column_mean, wide.mean(axis=0), A.shape[0], np.linalg.norm(wide), X.dtype)
    mean, row_mean = to_numpy(column_mean).astype(wide.dtype), AH.mean(axis=0).astype(X.dtype)
    V, B, subtracted = [
        (M.scaled(alpha), alpha * wide, 0 * mean),
        (M.centered(column_mean), wide - mean, mean),
        (M.centered(column_mean).centered(column_mean), wide - 2 * mean, 2 * mean),
        (M.scaled(alpha).centered(alpha * column_mean), alpha * (wide - mean), alpha * mean),
        (M.centered(column_mean).scaled(alpha), alpha * (wide - mean), alpha * mean),
        (M.H.centered(block(M, row_mean)), AH - row_mean, row_mean),
    ][view]
    if not B.any():
        return
    cancelled = cancellation(B + subtracted, subtracted)
    assert_products(V, B, *((X, Y) if view < 5 else (Y, X)), spread=cancelled)
    if (total := V.fro_norm_sq()) is not None:
        exact = np.linalg.norm(B) ** 2
        assert abs(total - exact) <= 8 * A.size * np.finfo(X.dtype).eps * exact * cancelled**2


@pytest.mark.parametrize("kind", [k for k in KINDS if "operator" not in k and "strict" not in k])
@given(problem=matrices())
def test_norm_is_right_to_rounding_of_the_entries(kind, folder, problem):
    A, _, _ = problem
    M = as_matrix(KINDS[kind](A, folder), CALLER)
    total, exact = M.fro_norm_sq(), np.linalg.norm(A.astype(np.complex128)) ** 2
    if M.kind == "operator":
        assert total is None
        assert M.counter.passes == 0
    else:
        assert abs(total - exact) <= 4 * max(A.size * np.finfo(np.float64).eps, eps_of(M.xp, M.dtype)) * exact
        assert M.counter.passes == 1


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_norm_in_single_precision_is_summed_in_double(dtype):
    A = np.abs(np.random.default_rng(0).standard_normal((999, 1001))).astype(dtype)  # of one sign: errors would add up
    exact = np.linalg.norm(A.astype(np.complex128)) ** 2
    assert abs(as_matrix(A, CALLER).fro_norm_sq() / exact - 1) <= np.finfo(dtype).eps / 4
    # Squares of entries this large and small are not in the range of single precision.
    for scale in (1e25, 1e-25):
        B = A * np.float32(scale)
        assert as_matrix(B, CALLER).fro_norm_sq() == pytest.approx(exact * scale**2, rel=1e-6)


@given(problem=matrices(("float64", "complex128")))
def test_nested_sequences_of_numbers_are_arrays(problem):
    A, X, Y = problem
    assert_products(as_matrix(A.tolist(), CALLER), A, X, Y)
    assert_products(as_matrix(tuple(map(tuple, A.tolist())), CALLER), A, X, Y)


@pytest.mark.parametrize("kind", ["c", "memmap c", "hdf5 rows"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float16", ">f8", ">f4", ">c8"])
def test_other_dtypes_are_computed_in_the_nearest_that_blas_knows(kind, dtype, tmp_path):
    rng, dtype = np.random.default_rng(3), np.dtype(dtype)
    A = rng.random((9, 6)) < 0.5 if dtype.kind == "b" else normal(rng, (9, 6), dtype)
    X, Y = normal(rng, (6, 2), computing(dtype)), normal(rng, (9, 2), computing(dtype))
    assert_products(as_matrix(KINDS[kind](A, tmp_path), CALLER), A, X, Y)


def test_bfloat16_is_computed_in_single_precision():
    assert as_matrix(torch.ones(3, 2, dtype=torch.bfloat16), CALLER).dtype == torch.float32


def test_arrays_are_copied_only_where_blas_could_not_take_them():
    A = np.arange(12.0).reshape(4, 3)
    unaligned = np.frombuffer(b"x" + A.tobytes(), np.uint8)[1:].view(np.float64).reshape(4, 3)
    taken = [A, A.T, A[::2], A[:, :2], A.T[:2], A[:, 1:2], A[1:2], in_larger(A)]
    copied = [
        A[:, ::2],
        A[::-1],
        A[:, ::-1],
        np.broadcast_to(A[0], (4, 3)),
        np.broadcast_to(A[:, :1], (4, 3)),
        unaligned,
    ]
    for B in taken:
        assert np.shares_memory(as_matrix(B, CALLER).array, B)
    for B in copied:
        stored = as_matrix(B, CALLER).array
        assert not np.shares_memory(stored, B)
        np.testing.assert_array_equal(stored, B)
    csr = sp.csr_array(A)
    assert np.shares_memory(as_matrix(csr, CALLER).storage.csr.data, csr.data)


def test_sparse_input_with_duplicates_is_left_as_it_was():
    A = sp.csr_array((np.ones(3), np.array([1, 0, 1]), np.array([0, 3])), shape=(1, 2))
    M = as_matrix(A, CALLER)
    assert M.nnz == 2
    assert A.nnz == 3
    np.testing.assert_array_equal(A.indices, [1, 0, 1])


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("adjoint", [False, True])
def test_dense_products_fill_the_given_array(dtype, adjoint):
    rng = np.random.default_rng(0)
    A = normal(rng, (5, 4), np.dtype(dtype))
    M = as_matrix(A, CALLER).H if adjoint else as_matrix(A, CALLER)
    X, Y = normal(rng, (M.shape[1], 2), M.dtype), normal(rng, (M.shape[0], 2), M.dtype)
    for product, Z, rows in ((M.matmat, X, M.shape[0]), (M.rmatmat, Y, M.shape[1])):
        out = np.empty((rows, 2), M.dtype)
        assert product(Z, out=out) is out
        np.testing.assert_array_equal(out, product(Z))


def test_passes_and_columns_are_counted_on_all_views_together(tmp_path):
    A = np.random.default_rng(0).standard_normal((30, 20))
    X, Y = A[:20, :3].copy(), A[:, :2].copy()
    for kind, make in KINDS.items():
        M = as_matrix(make(A, tmp_path), CALLER)
        M.matmat(block(M, X))
        M.scaled(2.0).rmatmat(block(M, Y))
        assert (M.counter.passes, M.counter.matvecs) == (2, 5)
        fused = M.kind in ("file", "dask")
        assert M.one_pass_gram == fused, kind
        M.gram_matmat(block(M, X))
        assert (M.counter.passes, M.counter.matvecs) == (3 if fused else 4, 11)
        assert M.H.counter is M.counter
        M.col_mean()
        assert M.counter.passes == (4 if fused else 5)


def test_gram_of_a_file_reads_every_entry_once():
    A = np.random.default_rng(0).standard_normal((40, 30))
    dataset = Spy(A, (4, 30))
    M = as_matrix(dataset, CALLER)
    assert dataset.entries == 0  # nothing is read before it is needed
    for step, work in enumerate(
        [
            lambda: M.gram_matmat(A[:30, :2].copy()),
            lambda: M.H.gram_matmat(A[:, :2].copy()),
            lambda: M.scaled(2.0).gram_matmat(A[:30, :2].copy()),
            lambda: M.centered(A[0]).gram_matmat(A[:30, :2].copy()),
            M.fro_norm_sq,
            M.col_mean,
            M.to_dense,
        ]
    ):
        work()
        assert dataset.entries == (step + 1) * A.size
        assert M.counter.passes == step + 1


@pytest.mark.parametrize(
    ("chunks", "limit", "one_pass", "adjoint_one_pass"),
    [
        ((4, 30), 240, True, False),  # rows fit, columns of chunks do not
        ((40, 2), 240, False, True),
        ((5, 5), 240, True, True),
        ((10, 10), 240, False, False),
        (None, 240, True, False),  # runs of 8 entries in 40 rows are too many
        (None, 320, True, True),
    ],
)
def test_reads_stay_below_the_limit_and_follow_the_chunks(chunks, limit, one_pass, adjoint_one_pass, monkeypatch):
    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", 8 * limit)
    monkeypatch.setattr(_matrix_blocks, "RUN_BYTES", 64)
    A = np.random.default_rng(0).standard_normal((40, 30))
    dataset = Spy(A, chunks)
    M = as_matrix(dataset, CALLER)
    assert (M.one_pass_gram, M.H.one_pass_gram) == (one_pass, adjoint_one_pass)
    X, Y = A[:30, :2].copy(), A[:, :2].copy()
    scale = np.linalg.norm(A) ** 2
    assert_close(M.gram_matmat(X), A.T @ (A @ X), 70, scale * np.linalg.norm(X), X.dtype)
    assert dataset.entries == (1 if one_pass else 2) * A.size == M.counter.passes * A.size
    assert_close(M.H.gram_matmat(Y), A @ (A.T @ Y), 70, scale * np.linalg.norm(Y), X.dtype)
    assert dataset.entries == M.counter.passes * A.size
    assert dataset.largest <= limit


def test_small_integers_are_read_in_blocks_of_their_size_in_double_precision(monkeypatch):
    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", 800)
    dataset = Spy(np.ones((60, 10), np.uint8), (1, 10))
    as_matrix(dataset, CALLER).matmat(np.ones((10, 1)))
    assert dataset.largest == 100


def test_sums_over_many_blocks_of_single_precision_are_kept_in_double(monkeypatch):
    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", 64)
    A = np.full((20000, 1), 0.1, np.float32)
    exact = 20000 * float(A[0, 0]) ** 2
    # Sixteen rows a block. One running sum in single precision is off by far more than the bound.
    running = np.cumsum(A[:, 0] ** 2, dtype=np.float32)[-1]
    bound = 16 * np.finfo(np.float32).eps * exact
    assert abs(running - exact) > bound
    M = as_matrix(Spy(A, (1, 1)), CALLER)
    assert abs(M.gram_matmat(np.ones((1, 1), np.float32))[0, 0] - exact) <= bound
    assert abs(M.rmatmat(A)[0, 0] - exact) <= bound


def test_gram_of_a_dask_array_loads_every_block_once():
    A = np.random.default_rng(0).standard_normal((40, 30))
    loads = []

    def load(B):
        loads.append(B.size)
        return B

    lazy = da.from_array(A, chunks=(9, 7)).map_blocks(load, meta=np.empty((0, 0)))
    M = as_matrix(lazy, CALLER)
    loads.clear()
    X = A[:30, :2].copy()
    for passes, work in enumerate(
        [lambda: M.gram_matmat(X), lambda: M.matmat(X), lambda: M.H.gram_matmat(A[:, :2].copy()), M.fro_norm_sq]
    ):
        work()
        assert sum(loads) == (passes + 1) * A.size
    assert M.counter.passes == 4


def peak_memory(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_products_with_files_is_a_few_blocks(tmp_path, monkeypatch):
    limit = 2**18
    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", limit)
    A = np.random.default_rng(0).standard_normal((8192, 128))  # 8 MiB
    with h5py.File(tmp_path / "A.h5", "w") as handle:
        rows = handle.create_dataset("rows", data=A, chunks=(64, 128))
        columns = handle.create_dataset("columns", data=A, chunks=(8192, 1))
        zarr_rows = zarr.create_array(tmp_path / "A.zarr", shape=A.shape, dtype=A.dtype, chunks=(256, 128))
        zarr_rows[...] = A
        X, Y = np.ones((128, 2)), np.ones((8192, 2))
        for dataset in (rows, columns, zarr_rows, memmap(A, tmp_path), memmap(A, tmp_path, "F")):
            M = as_matrix(dataset, CALLER)
            M.matmat(X)  # what libraries allocate once is not counted
            for work in (
                lambda M=M: M.matmat(X),
                lambda M=M: M.rmatmat(Y),
                lambda M=M: M.gram_matmat(X),
                lambda M=M: M.centered(X[:, 0]).gram_matmat(X),
                M.fro_norm_sq,
                M.col_mean,
            ):
                # Three tiles (multiplied, ready, being read), temporaries of one, and thin blocks of 128 KiB.
                assert peak_memory(work) <= 8 * limit < A.nbytes / 3


def test_memory_of_products_with_dask_is_a_few_blocks():
    import dask

    lazy = da.random.default_rng(0).random((16384, 64), chunks=(1024, 64))  # blocks of 512 KiB
    M = as_matrix(lazy, CALLER)
    X, Y = np.ones((64, 2)), np.ones((16384, 2))
    with dask.config.set(scheduler="synchronous"):
        for work in (lambda: M.matmat(X), lambda: M.rmatmat(Y), lambda: M.gram_matmat(X)):
            work()
            assert peak_memory(work) <= 2**22 == lazy.nbytes / 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("order", ["C", "F"])
def test_pages_of_a_memory_map_do_not_stay_in_the_process(order, tmp_path, monkeypatch):
    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", 2**18)
    A = np.ones((4096, 512))  # 16 MiB
    mapped = memmap(A, tmp_path, order)
    as_matrix(mapped, CALLER).gram_matmat(np.ones((512, 1)))
    assert resident_kib(mapped.filename) <= 2**10
    np.asarray(mapped).sum()
    assert resident_kib(mapped.filename) == 2**14  # what a plain read leaves


def resident_kib(path):
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if line.rstrip().endswith(os.fspath(path)):
                return int(next(x for x in lines if x.startswith("Rss:")).split()[1])
    raise AssertionError(f"{path} is not mapped")


def test_changes_of_a_copy_on_write_map_survive(tmp_path):
    A = np.ones((2000, 20))
    mapped = memmap(A, tmp_path, mode="c")
    mapped[3] = 7.0
    A[3] = 7.0
    np.testing.assert_array_equal(as_matrix(mapped, CALLER).matmat(np.ones((20, 1))), A.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(mapped, A)


def test_failure_to_read_reaches_the_caller(monkeypatch):
    class Broken(Spy):
        def __getitem__(self, key):
            if self.entries:
                raise OSError("the disk is gone")
            return super().__getitem__(key)

    monkeypatch.setattr(_matrix_blocks, "BLOCK_BYTES", 800)
    M = as_matrix(Broken(np.ones((30, 10)), (5, 10)), CALLER)
    with pytest.raises(OSError, match="disk is gone"):
        M.matmat(np.ones((10, 1)))


@pytest.mark.parametrize("kind", ["c", "fortran", "torch", "memmap c", "hdf5 tiles", "dask tiles", "strict-device1"])
def test_centering_keeps_the_digits_of_data_with_a_large_offset(kind, tmp_path):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((60, 40)) + 1e8
    mean = A.mean(axis=0)
    X = rng.standard_normal((40, 3))
    exact = A - mean  # without rounding: the terms are within a factor of two (Sterbenz)
    M = as_matrix(KINDS[kind](A, tmp_path), CALLER)
    view = M.centered(block(M, mean))
    assert_close(view.matmat(block(M, X)), exact @ X, 40, np.linalg.norm(exact) * np.linalg.norm(X), X.dtype)
    assert abs(view.fro_norm_sq() / np.linalg.norm(exact) ** 2 - 1) <= exact.size * np.finfo(float).eps


def test_norm_of_centered_sparse_data_does_not_cancel():
    A = np.full((50, 8), 1e8) + np.random.default_rng(0).standard_normal((50, 8))
    mean = A.mean(axis=0)
    exact = np.linalg.norm(A - mean) ** 2
    total = as_matrix(sp.csr_array(A), CALLER).centered(mean).fro_norm_sq()
    assert abs(total - exact) <= A.size * np.finfo(float).eps * exact


@pytest.mark.parametrize("kind", ["c", "sparse csr", "hdf5 rows", "dask tiles", "pylops-like"])
@pytest.mark.parametrize("power", [-700, 700])
def test_scaled_views_neither_overflow_nor_underflow(kind, power, tmp_path):
    rng = np.random.default_rng(0)
    A, X = rng.standard_normal((12, 9)), rng.standard_normal((9, 2))
    M = as_matrix(KINDS[kind](np.ldexp(A, power), tmp_path), CALLER).scaled(2.0**-power)
    exact = A.T @ (A @ X)
    assert_close(M.gram_matmat(X), exact, 21, np.linalg.norm(A) ** 2 * np.linalg.norm(X), X.dtype)
    if M.kind != "operator":
        assert abs(M.fro_norm_sq() / np.linalg.norm(A) ** 2 - 1) <= A.size * np.finfo(float).eps


def test_meta_tensors_give_shapes_without_values():
    M = as_matrix(torch.empty(7, 5, device="meta"), CALLER)
    X = torch.empty(5, 2, device="meta")
    assert M.matmat(X).shape == (7, 2)
    assert M.gram_matmat(X).shape == (5, 2)
    assert M.H.matmat(M.matmat(X)).shape == (5, 2)
    assert M.centered(M.col_mean()).gram_matmat(X).device.type == "meta"
    assert M.device == X.device


def test_torch_records_no_graph():
    M = as_matrix(torch.ones(4, 3, dtype=torch.float64, requires_grad=True), CALLER)
    assert not M.matmat(torch.ones(3, 2, dtype=torch.float64)).requires_grad


def test_a_matrix_is_passed_through_and_refuses_blocks_of_another_dtype():
    M = as_matrix(np.ones((3, 2), np.float32), CALLER)
    assert as_matrix(M, "rnla.qb") is M
    with pytest.raises(ValueError, match=r"2 rows and dtype float32; got shape \(2, 1\), float64"):
        M.matmat(np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"3 rows"):
        M.rmatmat(np.ones((2, 1), np.float32))


def test_dtype_of_an_operator_may_be_missing_or_integer():
    A = np.ones((3, 2))
    for dtype in (None, "int32"):
        M = as_matrix((lambda x: A @ x, lambda y: A.T @ y, (3, 2), dtype), CALLER)
        assert M.dtype == np.float64


@given(complex_dtype=st.booleans(), order=st.sampled_from("CF"), seed=st.integers(0, 50))
def test_gram_in_panels_is_the_product_with_the_adjoint(complex_dtype, order, seed):
    draw = np.random.default_rng(seed)
    B, X = (draw.standard_normal(shape) for shape in [(41, 7), (7, 3)])
    if complex_dtype:
        B, X = B + 1j * draw.standard_normal(B.shape), X + 1j * draw.standard_normal(X.shape)
    B = np.asarray(B, order=order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_matrix_views, "PANEL_BYTES", 10 * 7 * B.itemsize)  # four panels and one more row
        found = _matrix_views.gram_product(B, X)
    np.testing.assert_allclose(found, B.conj().T @ (B @ X), rtol=1e-13, atol=1e-12)
