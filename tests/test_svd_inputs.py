"""Every kind of input, on every device, gives the same singular values from the same seed."""

import array_api_compat
import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from strategies import DTYPES, diagonals, rounding, singular_values

import rnla
from rnla.testing import CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum


@pytest.fixture(autouse=True)
def _threads():
    """Run dask's tasks in threads, as they run for users, and reads of blocks at the same time."""
    with dask.config.set(scheduler="threads"):
        yield


METHODS = ("auto", "dense", "qr", "rsi", "krylov", "gram", "rowstream", "gnystrom")


def to_numpy(X):
    if isinstance(X, (torch.Tensor, np.ndarray)):
        return np.asarray(X)
    if type(X).__module__.startswith("array_api_strict"):
        return np.from_dlpack(array_api_compat.to_device(X, array_api_compat.array_namespace(X).Device("CPU_DEVICE")))
    return np.asarray(X)


def strict(A, folder):
    import array_api_strict

    return array_api_strict.asarray(A, device=array_api_strict.Device("device1"))


def read_only(A, folder):
    A = A.copy()
    A.flags.writeable = False
    return A


def memmap(A, folder, order="C"):
    path = folder / f"{order}.bin"
    path.write_bytes(A.tobytes(order))
    return np.memmap(path, A.dtype, "r", shape=A.shape, order=order)


def hdf5(A, folder, chunks=(16, 70)):
    return h5py.File(folder / "A.h5", "w").create_dataset("A", data=A, chunks=tuple(map(min, chunks, A.shape)))


def zarr_array(A, folder):
    array = zarr.create_array({}, shape=A.shape, dtype=A.dtype, chunks=(20, 30))
    array[...] = A
    return array


KINDS = {
    "numpy": lambda A, folder: A.copy(),
    "fortran": lambda A, folder: np.asfortranarray(A),
    "strided": lambda A, folder: np.repeat(np.repeat(A, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda A, folder: A[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "memmap": memmap,
    "memmap fortran": lambda A, folder: memmap(A, folder, "F"),
    "strict-device1": strict,
    "torch": lambda A, folder: torch.from_numpy(A.copy()),
    "torch with gradient": lambda A, folder: torch.from_numpy(A.copy()).requires_grad_(),
    "dask rows": lambda A, folder: da.from_array(A, chunks=(16, -1)),
    "dask columns": lambda A, folder: da.from_array(A, chunks=(-1, 16)),
    "dask tiles": lambda A, folder: da.from_array(A, chunks=(20, 30)),
    "hdf5": hdf5,
    "hdf5 columns": lambda A, folder: hdf5(A, folder, (90, 8)),
    "zarr": zarr_array,
    "sparse csr": lambda A, folder: sp.csr_array(A),
    "sparse csc": lambda A, folder: sp.csc_array(A),
    "sparse matrix": lambda A, folder: sp.coo_matrix(A),
    "linear operator": lambda A, folder: aslinearoperator(A),
    "matvec": lambda A, folder: LinearOperator(A.shape, lambda x: A @ x, lambda y: A.conj().T @ y, dtype=A.dtype),
    "functions": lambda A, folder: (lambda x: A @ x, lambda y: A.conj().T @ y, A.shape, A.dtype),
}
BY_PRODUCTS = ("sparse", "linear", "matvec", "functions")  # kinds whose rows are out of reach


def same_draw(values):
    """Return kinds, methods and values for which there is one draw of the test matrix.

    The arithmetic is the same up to the order of sums, so the result is up to rounding.
    """
    cases = diagonals(KINDS, METHODS, values)
    return [case for case in cases if case[1] != "rowstream" or not case[0].startswith(BY_PRODUCTS)]


@pytest.mark.parametrize(("kind", "method", "shape"), same_draw([(90, 70), (70, 90)]))
def test_all_kinds_have_the_same_singular_values(tmp_path, kind, method, shape):
    A = matrix_with_spectrum(*shape, spectrum("poly1", 70), rng=0, dtype="complex128")
    # The Krylov methods may start from the other side where its storage suits them better: all converge to the same.
    options = {"tol": 1e-7, "block_size": 15, "rng": 3} if method in ("auto", "krylov", "gram") else {"rng": 3}
    expected = rnla.svd(A, 5, method=method, **options)
    U, S, Vh = result = rnla.svd(KINDS[kind](A, tmp_path), 5, method=method, **options)
    # Rounding of A^H A Omega, which one read of a block of rows forms, counts in units of the smallest value squared.
    allowed = rounding(A, 1.0) * (25 if method in ("auto", "gram", "rsi", "gnystrom") else eps_inverse_root(method))
    if method == "rowstream" and ("columns" in kind or "fortran" in kind):
        # Stored by columns, so the test matrix is applied from the other side: another draw of the same law.
        assert np.all(to_numpy(S) <= spectrum("poly1", 5) + allowed)
        assert np.all(to_numpy(S) >= 0.5 * expected.S)
    else:
        assert np.abs(to_numpy(S) - expected.S).max() <= allowed
        dense = to_numpy(U * S) @ to_numpy(Vh)
        # Vectors are as good as residual over gap: between 1 / 5 and 1 / 6 a gap of 1 / 30.
        assert np.abs(dense - expected.to_dense()).max() <= 25 * allowed + 30 * options.get("tol", 0.0)
    assert_orthonormal(U)
    assert U.shape == (shape[0], 5)
    assert Vh.shape == (5, shape[1])
    assert result.info.converged


def eps_inverse_root(method):
    return np.finfo(float).eps ** -0.5 if method == "rowstream" else 1


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind in KINDS
        for dtype in (*DTYPES, "int32", "uint8", "bool")
        if (kind, dtype in DTYPES) != ("torch with gradient", False)  # torch has no gradients of integers
    ],
)
def test_all_kinds_keep_precision_and_compute_integers_in_double(tmp_path, kind, dtype):
    if dtype in DTYPES:
        A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype)
        computed = np.dtype(dtype)
    else:
        A = np.random.default_rng(0).integers(0, 2, (90, 70)).astype(dtype)
        computed = np.dtype(float)
    sigma = singular_values(A.astype(computed))
    U, S, Vh = rnla.svd(KINDS[kind](A, tmp_path), 4, method="gram", tol=1e-3, rng=0)
    assert str(U.dtype).removeprefix("torch.").removeprefix("array_api_strict.") == computed.name
    assert U.dtype == Vh.dtype
    assert to_numpy(S).dtype == np.zeros(0, computed).real.dtype
    assert np.abs(to_numpy(S) - sigma[:4]).max() <= 2e-5 * sigma[0] + rounding(np.zeros(A.shape, computed), sigma[0])


@pytest.mark.parametrize(
    "place", ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_result_stays_on_the_device_of_the_input(place, method, dtype):
    xp, device = place
    A = xp.asarray(matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype), device=device)
    U, S, Vh = result = rnla.svd(A, 4, method=method, rng=0)
    for X in (U, S, Vh, result.to_dense(), result.H.U, result @ A.T, result.truncate(2).U):
        assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
        assert array_api_compat.device(X) == array_api_compat.device(A)
    assert U.dtype == Vh.dtype == A.dtype
    for options in ({"compute_uv": False}, {"center": True}, {"flip_sign": False}):
        part = rnla.svd(A, 4, method=method, rng=0, **options)
        assert array_api_compat.device(part if "compute_uv" in options else part[0]) == array_api_compat.device(A)
    Q, B = rnla.qb(A, rtol=0.1, rng=0)
    assert array_api_compat.device(Q) == array_api_compat.device(B) == array_api_compat.device(A)


@pytest.mark.parametrize("place", ["torch-meta"], indirect=True)
@pytest.mark.parametrize("method", ["dense", "qr", "rsi"])
@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (400, 20)])
@pytest.mark.parametrize("options", [{}, {"flip_sign": False}, {"center": True}])
def test_direct_methods_read_no_value(place, method, shape, options):
    xp, device = place
    A = xp.empty(shape, dtype=xp.complex64, device=device)
    U, S, Vh = result = rnla.svd(A, 6, method=method, rng=0, **options)
    assert (U.shape, S.shape, Vh.shape) == ((shape[0], 6), (6,), (6, shape[1]))
    assert (U.dtype, S.dtype, Vh.dtype) == (xp.complex64, xp.float32, xp.complex64)
    assert all(X.device.type == "meta" for X in (U, S, Vh, result.to_dense()))
    assert rnla.svdvals(A, 6, method=method, **options).shape == (6,)


# Seeds.


@pytest.mark.parametrize("method", ["rsi", "krylov", "gram", "rowstream", "gnystrom"])
def test_a_seed_gives_one_result(method):
    A = matrix_with_spectrum(90, 70, spectrum("slow", 70), rng=0)
    first, again = (rnla.svd(A, 4, method=method, rng=11) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    other = rnla.svd(A, 4, method=method, rng=12)
    assert not np.array_equal(first.S, other.S)
    assert first.info.seed == again.info.seed != other.info.seed
    free = [rnla.svd(A, 4, method=method, rng=None) for _ in range(2)]
    assert free[0].info.seed != free[1].info.seed


@pytest.mark.parametrize("call", [rnla.svd, rnla.svdvals, rnla.svds, rnla.qb, rnla.range_finder])
def test_a_generator_is_advanced_by_one_draw(call):
    A = matrix_with_spectrum(40, 30, spectrum("slow", 30), rng=0)
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    call(A, 4, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


def test_global_random_state_is_neither_read_nor_changed():
    A = matrix_with_spectrum(90, 70, spectrum("slow", 70), rng=0)
    results = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 - the global state is what this test is about
        torch.manual_seed(seed)
        before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        results.append(rnla.svd(A, 4, method="gram", rng=0))
        rnla.svd(torch.from_numpy(A), 4, method="rsi")
        rnla.randomized_svd(A, 4)
        assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(results[0].S, results[1].S)


def test_seeds_of_all_kinds_are_accepted():
    A = matrix_with_spectrum(40, 30, spectrum("slow", 30), rng=0)
    legacy = np.random.RandomState(3)
    for rng in (0, np.int64(3), 2**200, np.random.SeedSequence(4), np.random.default_rng(5), legacy, None):
        assert rnla.svd(A, 3, method="rsi", rng=rng).info.rank == 3


# Values that are not finite, and what else may not happen to an input.


@pytest.mark.parametrize(("kind", "method", "value"), same_draw([np.nan, np.inf, -np.inf]))
def test_values_that_are_not_finite_are_refused(tmp_path, kind, method, value):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    A[33, 21] = value
    with pytest.raises(ValueError, match=r"^rnla\.svd: A must be finite"):
        rnla.svd(KINDS[kind](A, tmp_path), 5, method=method, rng=0)


@pytest.mark.parametrize(
    ("kind", "options", "values"),
    diagonals(
        KINDS,
        [{"center": True}, {"rtol": 0.1}, {"atol": 0.1, "center": True}, {"compute_uv": False}],
        [[np.nan], [np.inf, -np.inf]],
    ),
)
def test_values_that_are_not_finite_are_refused_with_options(tmp_path, kind, options, values):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0)
    for row, value in enumerate(values):
        A[row, 21] = value
    k = None if "rtol" in options or "atol" in options else 5
    with pytest.raises(ValueError, match=r"^rnla\.svd: A must be finite"):
        rnla.svd(KINDS[kind](A, tmp_path), k, rng=0, **options)


def test_the_input_is_never_changed():
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    for method in METHODS:
        for center in (False, True):
            copy, sparse = A.copy(), sp.csr_array(A)
            rnla.svd(copy, 5, method=method, center=center, rng=0)
            if method != "rowstream":
                rnla.svd(sparse, 5, method=method, center=center, rng=0)
            assert np.array_equal(copy, A)
            assert np.array_equal(sparse.toarray(), A)
    result = rnla.svd(copy, 70, method="dense")
    result.U[:] = 0  # a result is not a view of the input
    assert np.array_equal(copy, A)


@pytest.mark.parametrize("kind", ["numpy", "torch", "hdf5", "sparse csr"])
@pytest.mark.parametrize("sketch", ["gaussian", "rademacher", "uniform", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sketch(tmp_path, kind, sketch, dtype):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype)
    for method in ("rsi", "krylov", "gram"):
        S = rnla.svdvals(KINDS[kind](A, tmp_path), 4, method=method, sketch=sketch, rng=0)
        assert np.abs(to_numpy(S) - spectrum("exp", 4)).max() <= 1e-4 + rounding(A, 1.0)


def test_rows_that_count_agree_with_the_file(tmp_path):
    A = matrix_with_spectrum(90, 70, spectrum("poly1", 70), rng=0)
    rows = rnla.svd(CountingRows(A, 16), 5, rng=0)
    file = rnla.svd(hdf5(A, tmp_path, (16, 70)), 5, rng=0)
    assert all(np.array_equal(x, y) for x, y in zip(rows, file, strict=True))
