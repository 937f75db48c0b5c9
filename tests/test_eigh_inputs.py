"""Every kind of input gives the same eigenvalues from the same seed; what is no Hermitian matrix is refused."""

import array_api_compat
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
import zarr
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from strategies import DTYPES, rounding

from rnla._eigh import eigh
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, haar_basis, spectrum

METHODS = ("dense", "krylov")


def hermitian(n=150, dtype="float64", seed=0):
    w = spectrum("poly1", n) * (-1.0) ** np.arange(n)
    V = haar_basis(n, n, rng=seed, dtype=np.promote_types(dtype, np.float64))
    A = (V * w) @ V.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def to_numpy(X):
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


def memmap(A, folder):
    (folder / "A.bin").write_bytes(A.tobytes())
    return np.memmap(folder / "A.bin", A.dtype, "r", shape=A.shape)


def hdf5(A, folder):
    return h5py.File(folder / "A.h5", "w").create_dataset("A", data=A, chunks=(16, A.shape[1]))


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
    "strict-device1": strict,
    "torch": lambda A, folder: torch.from_numpy(A.copy()),
    "torch with gradient": lambda A, folder: torch.from_numpy(A.copy()).requires_grad_(),
    "dask rows": lambda A, folder: da.from_array(A, chunks=(16, -1)),
    "dask tiles": lambda A, folder: da.from_array(A, chunks=(20, 30)),
    "hdf5": hdf5,
    "zarr": zarr_array,
    "rows": lambda A, folder: CountingRows(A, 16),
    "sparse csr": lambda A, folder: sp.csr_array(A),
    "sparse csc": lambda A, folder: sp.csc_array(A),
    "sparse matrix": lambda A, folder: sp.coo_matrix(A),
    "linear operator": lambda A, folder: aslinearoperator(A),
    "without adjoint": lambda A, folder: LinearOperator(A.shape, matvec=lambda x: A @ x, dtype=A.dtype),
    "functions": lambda A, folder: (lambda x: A @ x, None, A.shape, A.dtype),
    "list": lambda A, folder: A.tolist(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["LM", "BE"])
def test_all_kinds_have_the_same_eigenvalues(tmp_path, kind, method, which):
    A = hermitian(dtype="complex128")
    options = {"which": which, "method": method, "tol": 1e-7, "block_size": 15, "rng": 3}
    expected = eigh(A, 5, **options)
    w, V = result = eigh(KINDS[kind](A, tmp_path), 5, **options)
    # One draw of the start: the same arithmetic up to the order of sums.
    assert np.abs(to_numpy(w) - expected.eigenvalues).max() <= rounding(A, 1.0)
    assert_orthonormal(V)
    # Vectors are as good as residual over gap: between 1 / 5 and 1 / 7 a gap of 2 / 35.
    assert np.abs(to_numpy(result.to_dense()) - expected.to_dense()).max() <= 20 * 2e-7


@pytest.mark.parametrize("kind", KINDS)
def test_precision_for_all_kinds(tmp_path, kind):
    A = hermitian(300)
    result = eigh(KINDS[kind](A, tmp_path), rtol=0.3, method="krylov", rng=3)
    # Of operators, ||A|| and the error are means over 16 samples: 2 is beyond 8 standard deviations.
    assert np.linalg.norm(A - to_numpy(result.to_dense())) <= 2 * 0.3 * np.linalg.norm(A)


@pytest.mark.parametrize(
    "place", ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("options", [
    {"method": "dense"}, {"method": "krylov"}, {"method": "krylov", "block_size": 2, "which": "BE"},
    {"method": "krylov", "max_basis": 8, "block_size": 2, "tol": 1e-3}, {"rtol": 0.5, "method": "krylov"},
    {"rtol": 1e-5, "method": "dense"},
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_result_stays_on_the_device_of_the_input(place, options, dtype):
    xp, device = place
    A = xp.asarray(hermitian(dtype=dtype), device=device)
    w, V = result = eigh(A, None if "rtol" in options else 4, rng=0, max_passes=300, **options)
    for X in (w, V, result.to_dense(), result @ A, result.truncate(2).eigenvectors):
        assert array_api_compat.array_namespace(X) is array_api_compat.array_namespace(A)
        assert array_api_compat.device(X) == array_api_compat.device(A)
    assert V.dtype == A.dtype
    assert xp.isdtype(w.dtype, "real floating")
    assert_orthonormal(V)


@pytest.mark.parametrize("place", ["torch-meta"], indirect=True)
def test_dense_reads_no_value(place):
    xp, device = place
    A = xp.empty((90, 90), dtype=xp.complex64, device=device)
    for M in (None, A):
        w, V = eigh(A, 6, method="dense", M=M, rng=0)
        assert (w.shape, V.shape, w.dtype, V.dtype) == ((6,), (90, 6), xp.float32, xp.complex64)


def test_the_automatic_choice():
    A = hermitian(300)
    assert eigh(A[:100, :100], 5, rng=0).info.method == "dense"
    assert eigh(A, 5, rng=0).info.method == "krylov"
    assert eigh(A, 95, rng=0).info.method == "dense"
    assert eigh(sp.csr_array(A), 95, rng=0).info.method == "dense"
    assert eigh(sp.diags_array(spectrum("poly1", 1200)), 5, rng=0).info.method == "krylov"
    assert eigh(A[:200, :200], rtol=0.1, rng=0).info.method == "dense"


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_one_result(method):
    A = hermitian()
    first, again = (eigh(A, 4, method=method, rng=11) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert first.info.seed == again.info.seed != eigh(A, 4, method=method, rng=12).info.seed


def test_a_generator_is_advanced_by_one_draw():
    generator, twin = np.random.default_rng(5), np.random.default_rng(5)
    eigh(hermitian(), 4, rng=generator)
    twin.integers(0, 2**64, dtype=np.uint64)
    assert generator.bit_generator.state == twin.bit_generator.state


@pytest.mark.parametrize("sketch", ["gaussian", "rademacher", "uniform", "sparse"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_sketch(sketch, dtype):
    A = hermitian(dtype=dtype)
    w = eigh(A, 4, method="krylov", sketch=sketch, rng=0).eigenvalues
    assert np.abs(w - [1, -1 / 2, 1 / 3, -1 / 4]).max() <= 1e-3 + rounding(A, 1.0)


def test_the_input_is_never_changed():
    A = hermitian(12)
    for method in METHODS:
        copy = A.copy()
        result = eigh(copy, 12, method=method, rng=0)
        result.eigenvectors[:] = 0
        assert np.array_equal(copy, A)


# Not Hermitian.

NOT_HERMITIAN = {
    "general": lambda n, rng: rng.standard_normal((n, n)),
    "triangular": lambda n, rng: np.triu(rng.standard_normal((n, n))),
    "skew": lambda n, rng: (lambda B: B - B.T)(rng.standard_normal((n, n))),
    "complex symmetric": lambda n, rng: (lambda B: B + B.T)(rng.standard_normal((n, n, 2)) @ [1, 1j]),
    "skew-Hermitian": lambda n, rng: 1j * hermitian(n, "complex128"),
    "small general part": lambda n, rng: hermitian(n) + 1e-3 / n * rng.standard_normal((n, n)),
    "one entry": lambda n, rng: hermitian(n) + np.eye(n, k=n - 1),
}


@pytest.mark.parametrize("name", NOT_HERMITIAN)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("view", [np.asarray, sp.csr_array, CountingOperator, torch.from_numpy])
@pytest.mark.parametrize("dtype", ["double", "single"])
def test_what_is_not_hermitian_is_refused(name, method, view, dtype):
    A = NOT_HERMITIAN[name](150, np.random.default_rng(0))
    if dtype == "single":
        if name in ("small general part", "one entry"):
            pytest.skip("smaller than what single precision tells from rounding")
        A = A.astype(np.complex64 if np.iscomplexobj(A) else np.float32)
    with pytest.raises(ValueError, match=r"^rnla\.eigh: A must be Hermitian; got"):
        eigh(view(A), 5, method=method, rng=0)
    with pytest.raises(ValueError, match=r"^rnla\.eigh: A must be Hermitian; got"):
        eigh(view(A), rtol=0.1, method=method, rng=0)


def test_a_block_of_one_column_tells_too():
    with pytest.raises(ValueError, match=r"^rnla\.eigh: A must be Hermitian; got"):
        eigh(np.triu(np.ones((150, 150))), 1, method="krylov", block_size=1, rng=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_check_can_be_skipped(method):
    A = hermitian() + 1e-4 * np.random.default_rng(0).standard_normal((150, 150))
    w = eigh(A, 3, method=method, check=False, rng=0).eigenvalues
    # The part that is not Hermitian has norm 2e-4 * 150**0.5.
    assert np.abs(w - [1, -1 / 2, 1 / 3]).max() <= 3e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_rounding_is_not_taken_for_asymmetry(dtype, method):
    # Products of a matrix with its own transpose, and small entries that are all cancellation.
    B = haar_basis(200, 200, rng=0, dtype=np.promote_types(dtype, float)).astype(dtype)
    A = (B * np.r_[np.ones(100), 1e-3 * np.ones(100)].astype(dtype)) @ B.conj().T
    assert not np.array_equal(A, A.conj().T)
    assert eigh(A, 5, method=method, rng=0).info.converged


# Arguments out of range, and values that are not finite.

INVALID = {
    "k zero": ({"k": 0}, "k must be in 1..30 for A of shape (30, 30); got 0."),
    "k too large": ({"k": 31}, "k must be in 1..30 for A of shape (30, 30); got 31."),
    "nothing asked": ({"k": None}, "one of k, rtol and atol must be given; got none."),
    "which": ({"which": "SM"}, "which must be one of 'LM', 'LA', 'SA', 'BE'; got 'SM'."),
    "method": ({"method": "gram"}, "method must be one of 'auto', 'dense', 'krylov'; got 'gram'."),
    "verify": ({"verify": 2}, "verify must be one of True, False, 'auto'; got 2."),
    "check": ({"check": "auto"}, "check must be one of True, False; got 'auto'."),
    "sketch": ({"sketch": "srht"}, "sketch must be one of 'gaussian'"),
    "rtol negative": ({"rtol": -1.0}, "rtol must be finite and not negative; got -1.0."),
    "atol infinite": ({"atol": float("inf")}, "atol must be finite and not negative; got inf."),
    "tol nan": ({"tol": float("nan")}, "tol must be finite"),
    "n_oversamples": ({"n_oversamples": -1}, "n_oversamples must be at least 0; got -1."),
    "block_size": ({"block_size": 0}, "block_size must be at least 1; got 0."),
    "max_passes": ({"max_passes": 0}, "max_passes must be at least 1; got 0."),
    "max_basis": ({"k": 5, "max_basis": 4}, "max_basis must be at least k = 5; got 4."),
    "which and rtol": ({"rtol": 0.1, "which": "LA"}, "which must be 'LM' where rtol or atol sets the rank; got 'LA'."),
    "seed": ({"rng": -1}, "rng as a seed must be a non-negative int; got -1."),
    "solve without M": ({"solve": np.linalg.inv}, "solve must be None where there is no M; got"),
    "M and rtol": ({"rtol": 0.1, "M": np.eye(30)}, "M must be None where rtol or atol sets the rank"),
    "M of another shape": ({"M": np.eye(29)}, "M must have the shape (30, 30) of A; got (29, 29)."),
    "M without solve": ({"M": sp.eye_array(30)}, "solve must be given where M is not a dense array"),
    "M not finite": ({"M": np.full((30, 30), np.nan)}, "M must be finite"),
    "M one-dimensional": ({"M": np.ones(30)}, "M must be two-dimensional; got shape (30,)."),
}
WRONG_TYPE = {
    "k float": ({"k": 3.0}, "k must be an integer; got float 3.0."),
    "tol none": ({"tol": None}, "tol must be a real number; got NoneType None."),
    "block_size": ({"block_size": "auto"}, "block_size must be an integer; got str 'auto'."),
    "rng string": ({"rng": "seed"}, "rng must be None, a non-negative int"),
    "callback": ({"callback": 1}, "callback must be callable or None; got int."),
    "solve": ({"M": np.eye(30), "solve": 3}, "solve must be callable or None; got int."),
    "M string": ({"M": "eye"}, "M must be a 2-D array"),
    "M of another dtype": ({"M": np.eye(30, dtype="float32")}, "M must have the library, dtype and device of A"),
    "M of another library": ({"M": torch.eye(30, dtype=torch.float64)}, "M must have the library, dtype and device"),
}


@pytest.mark.parametrize("case", [*INVALID, *WRONG_TYPE])
def test_bad_arguments_are_refused_before_any_work(case):
    options, message = INVALID.get(case) or WRONG_TYPE[case]
    A = CountingOperator(np.eye(30))
    with pytest.raises(ValueError if case in INVALID else TypeError) as caught:
        eigh(A, **{"k": 3, **options})
    assert str(caught.value).startswith(f"rnla.eigh: {message}")
    assert A.passes == 0


@pytest.mark.parametrize(("A", "error"), [
    (np.ones(3), ValueError), (np.ones((0, 0)), ValueError), (np.ones((3, 2)), ValueError),
    (sp.csr_array((2, 3)), ValueError), (np.ones((2, 2), object), TypeError), (None, TypeError), ("A.npy", TypeError),
    (np.ma.masked_array(np.ones((2, 2))), TypeError),
])  # fmt: skip
def test_what_is_no_square_matrix_is_refused(A, error):
    with pytest.raises(error, match=r"^rnla\.eigh: A must "):
        eigh(A, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "value"),
    [({"k": 5, "method": "dense"}, np.nan), ({"k": 5, "method": "krylov"}, np.inf), ({"rtol": 0.1}, np.nan),
     ({"rtol": 0.1}, np.inf)],
)  # fmt: skip
def test_values_that_are_not_finite_are_refused(tmp_path, kind, options, value):
    A = hermitian(300)
    A[33, 21] = A[21, 33] = value
    with pytest.raises(ValueError, match=r"^rnla\.eigh: A must be finite"):
        eigh(KINDS[kind](A, tmp_path), rng=0, **options)


class Failing(CountingOperator):
    """An operator whose product number `bad` (none if None) has one entry that is not finite."""

    def __init__(self, A, bad):
        super().__init__(A)
        self.bad = bad

    def matmat(self, X):
        Y = super().matmat(X).copy()
        if self.passes - 1 == self.bad:
            Y[Y.shape[0] // 2, -1] = np.nan
        return Y


@pytest.mark.parametrize("options", [
    {"k": 12, "block_size": 4}, {"rtol": 0.1}, {"rtol": 1e-8}, {"k": 9, "M": np.eye(150)},
])  # fmt: skip
def test_every_product_of_an_operator_is_checked(options):
    A = hermitian()
    healthy = Failing(A, None)
    eigh(healthy, method="krylov", rng=0, **options)
    for bad in range(healthy.passes):
        with pytest.raises(ValueError, match=r"^rnla\.eigh: A must be finite"):
            eigh(Failing(A, bad), method="krylov", rng=0, **options)
