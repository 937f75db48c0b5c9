"""`lstsq`: backward stable at every condition number, on every kind of input, with rank, ridge and least norm."""

import warnings

import array_api_compat
import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from strategies import DTYPES

from rnla import ConvergenceWarning, _lstsq
from rnla._lstsq import lstsq
from rnla.testing import CountingOperator, CountingRows, haar_basis, matrix_with_spectrum

EPS = float(np.finfo(float).eps)
STABLE = ("spir", "fossils")
ITERATIVE = ("spir", "fossils", "itersketch", "lsqr")
METHODS = ("auto", "spir", "fossils", "itersketch", "lsqr", "sketch", "direct")
SHAPES = ((600, 40), (40, 600), (60, 40), (40, 60))


def cases(methods, *shapes):
    """Return the pairs of a method and a shape that it is for."""
    return [(method, (m, n)) for method in methods for m, n in shapes if m >= n or method not in _lstsq.TALL_METHODS]


def problem(m, n, cond, residual, seed, dtype="float64"):
    """Return A with logarithmic singular values, b and the solution x, with ``||b - A x|| = residual``."""
    rng = np.random.default_rng(seed)
    wide = np.promote_types(dtype, "float64")
    Q = haar_basis(m, n + 1, rng=rng, dtype=wide)
    V = haar_basis(n, n, rng=rng, dtype=wide)
    A = ((Q[:, :n] * np.logspace(0, -np.log10(cond), n)) @ V.conj().T).astype(dtype)
    x = rng.standard_normal(n)
    x /= np.linalg.norm(x)
    return A, (A @ x + residual * Q[:, n]).astype(dtype), x


def backward_error(A, b, x):
    """Return Karlson and Walden's estimate, within sqrt(2) of the least ``||[dA, theta db]||_F``, over ``||A||_F``."""
    exact = np.clongdouble if np.iscomplexobj(A) else np.longdouble  # rounding of the test must not count
    wide = A.astype(exact)
    r = b.astype(exact) - wide @ x.astype(exact)
    gradient = (wide.conj().T @ r).astype(np.promote_types(A.dtype, np.float64))
    _, s, Vh = np.linalg.svd(A.astype(gradient.dtype), full_matrices=False)
    norm = np.linalg.norm(s)
    weight = np.hypot(np.linalg.norm(b), norm * np.linalg.norm(x))
    shift = norm * float(np.linalg.norm(r.astype(gradient.dtype))) / weight
    return np.linalg.norm((Vh @ gradient) / np.hypot(s, shift)) / weight


def forward_bound(A, x, residual):
    """Return what a backward error of a few eps does to x: Wedin's bound, in the norm of x."""
    s = np.linalg.svd(A.astype(np.promote_types(A.dtype, "float64")), compute_uv=False)
    cond, eps = s[0] / s[-1], float(np.finfo(A.dtype).eps)
    return 30 * eps * A.shape[1] ** 0.5 * cond * (np.linalg.norm(x) + cond * residual / s[0])


# Accuracy.


@pytest.mark.parametrize("residual", [1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("cond", [1e1, 1e5, 1e10, 1e12, 1e14, 1e15])
@pytest.mark.parametrize("way", ["spir", "spir by products", "fossils", "direct"])
def test_backward_error_is_rounding_at_every_condition_number(way, cond, residual):
    A, b, _ = problem(1000, 40, cond, residual, 0)
    result = lstsq(aslinearoperator(A) if "products" in way else A, b, method=way.split()[0], rng=1)
    assert backward_error(A, b, result.x) <= 10 * EPS
    assert result.converged
    # The estimate knows A by its sketch, whose singular values are within a factor 1 +- sqrt(1 / 4) of those of A.
    assert result.backward_error <= _lstsq.ROUNDING * EPS
    assert result.resnorm == pytest.approx(np.linalg.norm(b - A @ result.x), rel=1e-6, abs=100 * EPS)


@given(st.integers(40, 200), st.integers(1, 20), st.floats(0, 6), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1),
       st.sampled_from(["spir", "fossils", "direct"]))  # fmt: skip
def test_agrees_with_lapack(m, n, digits, dtype, seed, method):
    eps = float(np.finfo(dtype).eps)
    cond = 10.0 ** min(digits, -0.4 * np.log10(eps))
    A, b, _ = problem(m, n, cond, 0.1, seed, dtype)
    result = lstsq(A, b, method=method, rng=seed)
    wide = np.promote_types(dtype, "float64")
    x, (square,), rank, _ = np.linalg.lstsq(A.astype(wide), b.astype(wide))
    assert result.x.dtype == A.dtype
    assert result.rank == rank == n
    assert np.linalg.norm(result.x - x) <= forward_bound(A, x, 0.1)
    # The residual is minimal: it moves by the square of the error, and by rounding of its own.
    assert result.resnorm == pytest.approx(np.sqrt(square), rel=100 * eps * np.sqrt(m))
    assert backward_error(A, b, result.x) <= 10 * eps


def test_table_of_methods():
    # core.md 14.1; the reference has 1.3e-16, 4e-17, 2e-13, 3e-14 and 9e-12 in this order.
    A, b, _ = problem(4000, 50, 1e12, 1e-6, 0)
    bounds = {"spir": 2e-15, "fossils": 2e-15, "itersketch": 1e-11, "lsqr": 1e-11, "sketch": 1e-9, "direct": 2e-15}
    for method, bound in bounds.items():
        result = lstsq(A, b, method=method, rng=0)
        assert backward_error(A, b, result.x) <= bound, method
        assert result.method == method


@pytest.mark.parametrize("ratio", [8, 12, 20])
def test_iterative_sketching_converges_at_the_rate_of_its_distortion(ratio):
    n = 100
    A, b, _ = problem(6000, n, 1e3, 1.0, 0)
    rates = []
    for seed in range(5):
        errors = [record.error for record in lstsq(A, b, method="itersketch", sketch_ratio=ratio, rng=seed).history]
        last = max(i for i, error in enumerate(errors) if error > 1e-13)
        # At the best alpha and beta the error of step k is k * rate**k: both roots of the recurrence are the same.
        rates.append((errors[last] / (last + 1) / errors[2] * 3) ** (1 / (last - 2)))
    # sqrt(n / d), for a Gaussian sketch as n grows [Epperly 2024]; the mean over 5 fixed seeds is within 10 percent.
    assert np.mean(rates) == pytest.approx(ratio**-0.5, rel=0.1)


def test_sketched_residual_is_larger_by_the_share_of_its_rows():
    n, ratio = 40, 12
    A, b, _ = problem(4000, n, 1e3, 1.0, 0)
    shares = [lstsq(A, b, method="sketch", sketch_ratio=ratio, rng=seed).resnorm ** 2 - 1 for seed in range(20)]
    # E ||r||**2 = 1 + n / (d - n - 1) for a Gaussian sketch; each of 20 has a relative deviation of sqrt(2 / n).
    expected = n / (ratio * n - n - 1)
    assert np.mean(shares) == pytest.approx(expected, rel=4 * np.sqrt(2 / n / 20))


# Rank, ridge, least norm.


@pytest.mark.parametrize(("method", "shape"), cases(["auto", "spir", "fossils", "lsqr", "direct"], *SHAPES))
def test_rank_deficient_gives_the_solution_of_least_norm(shape, method):
    A = matrix_with_spectrum(*shape, np.logspace(0, -3, 25), rng=0)
    b = np.random.default_rng(1).standard_normal(shape[0])
    result = lstsq(A, b, method=method, rng=0)
    x = np.linalg.pinv(A, rcond=1e-10) @ b
    assert result.rank == 25
    # Wedin's bound: with a residual of the size of b, rounding counts with the square of the condition number, 1e6.
    assert np.linalg.norm(result.x - x) <= 100 * EPS * 1e6 * np.linalg.norm(b)
    assert np.linalg.norm(result.x) <= np.linalg.norm(x) * (1 + 1e-8)


@pytest.mark.parametrize("method", ["spir", "direct"])
@pytest.mark.parametrize("shape", [(600, 40), (40, 600)])
def test_rcond_truncates_as_numpy_does(shape, method):
    sigma = np.logspace(0, -8, 40)
    A = matrix_with_spectrum(*shape, sigma, rng=0)
    b = np.random.default_rng(1).standard_normal(shape[0])
    rcond = np.sqrt(sigma[19] * sigma[20])  # 0.8 of the smallest value that is kept: no sketch alone could tell
    result = lstsq(A, b, method=method, rcond=rcond, rng=0)
    x, _, rank, _ = np.linalg.lstsq(A, b, rcond=rcond)
    assert result.rank == rank == 20
    # The kept space is known to eps / gap, gap 0.3 * sigma[19] = 4e-5: counts with 1 / sigma[19] = 8e3.
    assert np.linalg.norm(result.x - x) <= 1000 * EPS / 4e-5 * 8e3 * np.linalg.norm(b)


def test_rcond_with_a_gap_for_every_method():
    A = matrix_with_spectrum(600, 40, np.r_[np.logspace(0, -2, 20), np.full(20, 1e-9)], rng=0)
    b = np.random.default_rng(1).standard_normal(600)
    x = np.linalg.lstsq(A, b, rcond=1e-6)[0]
    for method in (*ITERATIVE, "direct"):
        for B in (A, aslinearoperator(A)):
            result = lstsq(B, b, method=method, rcond=1e-6, rng=0)
            assert result.rank == 20
            # The kept space of a sketch is off by the gap, 1e-9 / 1e-2, where that of A itself is right to rounding.
            assert np.linalg.norm(result.x - x) <= 100 * 1e-7 * np.linalg.norm(x), method


def test_rank_is_that_of_columns_scaled_to_one():
    A = matrix_with_spectrum(600, 40, np.logspace(0, -2, 40), rng=0) * np.logspace(0, -30, 40)
    x = np.logspace(0, 30, 40)
    result = lstsq(A, A @ x, rng=0)
    assert result.rank == 40
    assert np.allclose(result.x / x, 1.0, rtol=1e-10)


@pytest.mark.parametrize(("method", "shape"), cases(["auto", *ITERATIVE, "direct"], *SHAPES))
@pytest.mark.parametrize("damp", [1e-6, 1e-1, 30.0])
def test_damp_equals_the_augmented_system(shape, method, damp):
    m, n = shape
    A = matrix_with_spectrum(m, n, np.logspace(0, -4, 40), rng=0)
    b = np.random.default_rng(1).standard_normal(m)
    result = lstsq(A, b, method=method, damp=damp, rng=0)
    x = np.linalg.lstsq(np.vstack([A, damp * np.eye(n)]), np.r_[b, np.zeros(n)])[0]
    assert result.rank == 40
    # Condition number 1e4 at most, and its square for the residual.
    assert np.linalg.norm(result.x - x) <= 1000 * EPS * 1e8 * np.linalg.norm(x)
    assert result.resnorm == pytest.approx(np.linalg.norm(b - A @ x), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("cond", [1e2, 1e8, 1e12])
@pytest.mark.parametrize("way", ["spir", "spir by products", "lsqr", "direct"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_wide_gives_the_solution_of_least_norm(cond, way, dtype):
    A = matrix_with_spectrum(40, 800, np.logspace(0, -np.log10(cond), 40), rng=0, dtype=dtype)
    y = np.random.default_rng(1).standard_normal(800)
    b = A @ y
    result = lstsq(aslinearoperator(A) if "products" in way else A, b, method=way.split()[0], rng=0)
    _, s, Vh = np.linalg.svd(A, full_matrices=False)
    x = Vh.conj().T @ (Vh @ y)
    assert np.linalg.norm(result.x - x) <= 100 * EPS * cond * np.linalg.norm(x)
    assert np.linalg.norm(b - A @ result.x) <= 20 * EPS * np.linalg.norm(s) * np.linalg.norm(x)
    assert result.converged


def test_wide_sketch_is_near():
    A = matrix_with_spectrum(40, 800, np.logspace(0, -2, 40), rng=0)
    x = np.linalg.lstsq(A, np.ones(40))[0]
    assert np.linalg.norm(lstsq(A, np.ones(40), method="sketch", rng=0).x - x) <= 2 * np.linalg.norm(x)


# Right-hand sides.


@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (500, 35), (35, 500)))
def test_right_hand_sides_do_not_disturb_each_other(method, shape):
    A = matrix_with_spectrum(*shape, np.logspace(0, -3, 35), rng=0)
    B = A @ np.random.default_rng(1).standard_normal((shape[1], 4)) * [1.0, 1e-200, 0.0, 1e200]
    result = lstsq(A, B, method=method, rng=0)
    assert result.x.shape == (shape[1], 4)
    assert result.resnorm.shape == result.backward_error.shape == (4,)
    for j in range(4):
        single = lstsq(A, B[:, j], method=method, rng=0)
        assert single.x.shape == (shape[1],)
        assert isinstance(single.resnorm, float)
        scale = max(np.abs(single.x).max(), 1e-300)
        # The least accurate methods stop at different steps for one and for several columns.
        assert np.abs(result.x[:, j] - single.x).max() <= 1e-9 * scale
    assert not result.x[:, 2].any()


@pytest.mark.parametrize("shape", [(500, 35), (35, 500), (50, 35)])
def test_complex_right_hand_side_of_a_real_matrix(shape):
    A = matrix_with_spectrum(*shape, np.logspace(0, -3, 35), rng=0)
    rng = np.random.default_rng(1)
    b = rng.standard_normal(shape[0]) + 1j * rng.standard_normal(shape[0])
    result = lstsq(A, b, rng=0)
    assert result.x.dtype == np.complex128
    x = np.linalg.lstsq(A.astype(complex), b)[0]
    assert np.linalg.norm(result.x - x) <= 1000 * EPS * 1e6 * np.linalg.norm(b)
    assert result.resnorm == pytest.approx(np.linalg.norm(b - A @ x), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("method", ["auto", *ITERATIVE, "direct"])
@pytest.mark.parametrize("cond", [10.0, 1e4, 1e6])
def test_single_precision(dtype, method, cond):
    A, b, _ = problem(1000, 40, cond, 1e-2, 0, dtype)
    result = lstsq(A, b, method=method, rng=0)
    eps = float(np.finfo(dtype).eps)
    assert result.x.dtype == A.dtype
    bound = 10 * eps if method not in ("itersketch", "lsqr") else 10 * eps * cond
    assert backward_error(A, b, result.x) <= bound
    assert result.converged


# Inputs.


def to_numpy(X):
    if type(X).__module__.startswith("array_api_strict"):
        X = array_api_compat.to_device(X, array_api_compat.array_namespace(X).Device("CPU_DEVICE"))
        return np.from_dlpack(X)
    return np.asarray(X)


def read_only(A, folder):
    A = A.copy()
    A.flags.writeable = False
    return A


def memmap(A, folder):
    (folder / "A.bin").write_bytes(A.tobytes())
    return np.memmap(folder / "A.bin", A.dtype, "r", shape=A.shape)


KINDS = {
    "fortran": lambda A, folder: np.asfortranarray(A),
    "strided": lambda A, folder: np.repeat(np.repeat(A, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda A, folder: A[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "memmap": memmap,
    "dask rows": lambda A, folder: da.from_array(A, chunks=(100, -1)),
    "dask columns": lambda A, folder: da.from_array(A, chunks=(-1, 16)),
    "dask tiles": lambda A, folder: da.from_array(A, chunks=(100, 30)),
    "hdf5": lambda A, folder: h5py.File(folder / "A.h5", "w").create_dataset("A", data=A, chunks=(16, 20)),
    "sparse csr": lambda A, folder: sp.csr_array(A),
    "sparse csc": lambda A, folder: sp.csc_array(A),
    "linear operator": lambda A, folder: aslinearoperator(A),
    "functions": lambda A, folder: (lambda x: A @ x, lambda y: A.conj().T @ y, A.shape, A.dtype),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (500, 70), (70, 500)))
def test_all_kinds_of_matrix(tmp_path, kind, method, shape):
    A = matrix_with_spectrum(*shape, np.logspace(0, -2, 70), rng=0, dtype="complex128")
    rng = np.random.default_rng(1)
    b = rng.standard_normal((shape[0], 2)) + 1j * rng.standard_normal((shape[0], 2))
    result = lstsq(KINDS[kind](A, tmp_path), b, method=method, rng=0)
    expected = np.linalg.lstsq(A, b)[0]
    scale = np.linalg.norm(expected)
    if method == "sketch":
        # The distortion e = sqrt(1 / 7) makes residuals, times the condition number, errors.
        assert np.linalg.norm(result.x - expected) <= 3 * 100 * np.linalg.norm(b)
    else:
        assert np.linalg.norm(result.x - expected) <= 1e4 * EPS * 1e4 * scale
    assert result.rank == 70


@pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch", "cupy"], indirect=True)
@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (300, 35), (35, 300)))
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_result_stays_on_the_device_of_the_input(place, method, shape, dtype):
    xp, device = place
    A, b = matrix_with_spectrum(*shape, np.logspace(0, -1, 35), rng=0, dtype=dtype), np.ones(shape[0], dtype)
    result = lstsq(xp.asarray(A, device=device), xp.asarray(b, device=device), method=method, damp=1e-3, rng=0)
    assert array_api_compat.device(result.x) == device
    assert result.x.dtype == getattr(xp, dtype)
    expected = lstsq(A, b, method=method, damp=1e-3, rng=0)
    scale = np.linalg.norm(expected.x)
    assert np.linalg.norm(to_numpy(result.x) - expected.x) <= 1e3 * 10 * float(np.finfo(dtype).eps) * scale
    assert isinstance(result.resnorm, float)


def test_a_file_is_read_few_times():
    A, b, x = problem(5000, 60, 1e8, 0.0, 0)
    rows = CountingRows(A, 500)
    result = lstsq(rows, b, rng=0)
    # Once for the sketch, once for the Gram matrix, and the refinements.
    assert result.passes <= 5
    assert rows.passes == pytest.approx(result.passes)
    assert np.linalg.norm(result.x - x) <= forward_bound(A, x, 0.0)


def test_an_operator_is_multiplied_few_times():
    A, b, x = problem(3000, 50, 1e8, 0.0, 0)
    counting = CountingOperator(A)
    result = lstsq(counting, b, method="spir", rng=0)
    # 50 columns for the sketch; two or three rounds of about log(1e8) / log(sqrt(12)) = 15 steps, two products each.
    assert counting.matvecs <= 50 + 2 * 3 * 20
    assert np.linalg.norm(result.x - x) <= forward_bound(A, x, 0.0)


@pytest.mark.parametrize("shape", [(2000, 200), (200, 900)])
@pytest.mark.parametrize("damp", [0.0, 0.1])
@pytest.mark.parametrize("wrap", [lambda A: A, aslinearoperator])
def test_large_sparse_without_a_short_side_is_solved_without_preconditioner(monkeypatch, shape, damp, wrap):
    monkeypatch.setattr(_lstsq, "FACTOR_SIDE", 100)
    A = sp.random_array(shape, density=0.02, rng=np.random.default_rng(0), format="csr")
    A = A + sp.diags_array(np.ones(200), shape=shape)
    b = np.ones(shape[0])
    result = lstsq(wrap(A), b, damp=damp, rng=0)
    assert result.method == "lsqr"
    assert result.rank is None
    x = np.linalg.lstsq(np.vstack([A.toarray(), damp * np.eye(shape[1])]), np.r_[b, np.zeros(shape[1])])[0]
    assert np.linalg.norm(result.x - x) <= 1e-9 * np.linalg.norm(x)
    if shape[0] > shape[1]:
        again = lstsq(wrap(A), b, damp=damp, x0=x, rng=0)
        assert again.n_iter < result.n_iter / 2


def test_integers_and_lists():
    result = lstsq([[1, 0], [0, 2], [0, 0]], [1, 1, 3])
    assert np.allclose(result.x, [1.0, 0.5])
    assert result.resnorm == pytest.approx(3.0)


def test_torch_with_gradient():
    A = torch.from_numpy(matrix_with_spectrum(400, 35, np.ones(35), rng=0)).requires_grad_()
    b = torch.ones(400, dtype=torch.float64).requires_grad_()
    assert not lstsq(A, b, method="spir", rng=0).x.requires_grad


# Nasty matrices.


@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (1, 7), (7, 1), (1, 1), (400, 1), (1, 400), (400, 3)))
def test_few_rows_or_columns(shape, method):
    A = np.random.default_rng(0).standard_normal(shape)
    b = A @ np.ones(shape[1])  # consistent: even the sketched solution is exact
    result = lstsq(A, b, method=method, rng=0)
    x = np.linalg.lstsq(A, b)[0]
    if method == "sketch" and shape[0] < shape[1]:
        assert np.isfinite(result.x).all()
    else:
        assert np.linalg.norm(result.x - x) <= 1e-11 * np.linalg.norm(x)


@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (200, 35), (35, 200), (40, 35)))
def test_zero_matrix_and_zero_right_hand_side(shape, method):
    b = np.ones(shape[0])
    result = lstsq(np.zeros(shape), b, method=method, rng=0)
    assert result.rank == 0
    assert result.converged
    assert not result.x.any()
    assert result.resnorm == pytest.approx(np.linalg.norm(b))
    assert not lstsq(np.zeros(shape), b, method=method, damp=0.5, rng=0).x.any()
    A = matrix_with_spectrum(*shape, np.ones(35), rng=0)
    result = lstsq(A, np.zeros(shape[0]), method=method, rng=0)
    assert not result.x.any()
    assert result.resnorm == 0.0
    assert result.converged


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (300, 35), (35, 300), (40, 35)))
@pytest.mark.parametrize("damp", [0.0, 0.1])
def test_extreme_scales(scale, method, shape, damp):
    A = matrix_with_spectrum(*shape, np.logspace(0, -2, 35), rng=0)
    b = A @ np.ones(shape[1])
    expected = lstsq(A, b, method=method, damp=damp, rng=0)
    for wrap in (lambda A: A, sp.csr_array):
        result = lstsq(wrap(scale * A), b, method=method, damp=scale * damp, rng=0)
        error = np.linalg.norm(scale * result.x - expected.x)
        assert error <= (1e-9 if wrap is not sp.csr_array or method != "sketch" else 1.0) * np.linalg.norm(expected.x)
    result = lstsq(A, scale * b, method=method, damp=damp, rng=0)
    assert np.linalg.norm(result.x / scale - expected.x) <= 1e-9 * np.linalg.norm(expected.x)
    assert result.resnorm == pytest.approx(scale * expected.resnorm, rel=1e-3, abs=1e-13 * scale)


@pytest.mark.parametrize("method", [*STABLE, "direct"])
def test_hilbert_and_kahan(method):
    n = 40
    i = np.arange(400)[:, None]
    hilbert = 1.0 / (i + np.arange(n) + 1)
    kahan = np.zeros((400, n))
    kahan[:n] = np.sin(1.2) ** np.arange(n)[:, None] * (np.eye(n) - np.cos(1.2) * np.triu(np.ones((n, n)), 1))
    for A in (hilbert, kahan):
        b = np.random.default_rng(0).standard_normal(400)
        # The Hilbert matrix is numerically of rank 12 or so: what is dropped counts as a change of A.
        assert backward_error(A, b, lstsq(A, b, method=method, rng=0).x) <= 100 * EPS


def test_coherent_rows():
    # All information about half of the columns is in as many rows: uniform sampling would miss them.
    rng = np.random.default_rng(0)
    A = np.zeros((4000, 60))
    A[:30, :30] = 1e6 * rng.standard_normal((30, 30))
    A[30:, 30:] = rng.standard_normal((3970, 30))
    b = rng.standard_normal(4000)
    for method in STABLE:
        assert backward_error(A, b, lstsq(A, b, method=method, rng=0).x) <= 10 * EPS


# What is asked for.


def test_starting_point_saves_iterations():
    A, b, _ = problem(1000, 40, 1e6, 1.0, 0)
    x = np.linalg.lstsq(A, b)[0]
    for method in ITERATIVE:
        options = {"method": method, "rng": 0, "tol": 1e-11}
        cold = lstsq(aslinearoperator(A), b, **options)
        warm = lstsq(aslinearoperator(A), b, x0=x, **options)
        assert warm.n_iter < cold.n_iter, method


def test_tolerance_ends_earlier():
    A, b, _ = problem(1000, 40, 1e6, 1.0, 0)
    for method in ITERATIVE:
        loose, tight = (lstsq(aslinearoperator(A), b, method=method, tol=tol, rng=0) for tol in (1e-4, 1e-11))
        assert loose.n_iter < tight.n_iter
        assert backward_error(A, b, loose.x) <= 2e-4
        assert backward_error(A, b, tight.x) <= 2e-11


def test_not_converged_is_not_silent():
    A, b, _ = problem(1000, 40, 1e10, 1.0, 0)
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.lstsq: backward error .* after 3 iterations\.$"):
        result = lstsq(aslinearoperator(A), b, method="spir", max_iter=3, rng=0)
    assert not result.converged
    assert result.n_iter == 3
    assert "NOT converged" in repr(result)
    with pytest.warns(ConvergenceWarning):
        assert not lstsq(A, b, method="sketch", tol=1e-12, rng=0).converged


@pytest.mark.parametrize("method", ITERATIVE)
def test_callback_can_end_the_iteration(method):
    A, b, _ = problem(1000, 40, 1e10, 1.0, 0)
    seen = []

    def callback(record):
        seen.append(record)
        if record.iteration == 2:
            raise StopIteration

    result = lstsq(aslinearoperator(A), b, method=method, callback=callback, rng=0)
    assert [record.iteration for record in seen] == [1, 2]
    assert result.message == "ended by the callback"
    assert not result.converged
    assert np.isfinite(result.x).all()


def test_same_seed_same_result():
    A, b, _ = problem(1000, 40, 1e8, 1.0, 0)
    first, second, other = (lstsq(A, b, rng=rng) for rng in (3, 3, 4))
    assert np.array_equal(first.x, second.x)
    assert first.seed == second.seed != other.seed


def test_result_says_what_it_is():
    A, b, _ = problem(1000, 40, 10.0, 1.0, 0)
    text = repr(lstsq(A, b, method="spir", rng=0))
    assert "x(40,)" in text
    assert "spir: converged" in text


# Refused.


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("method", "shape"), cases(METHODS, (200, 35), (35, 200), (40, 35)))
def test_values_that_are_not_finite(value, method, shape):
    A = matrix_with_spectrum(*shape, np.ones(35), rng=0)
    b = np.ones(shape[0])
    for place in ((0, 0), (shape[0] - 1, shape[1] - 1)):
        bad = A.copy()
        bad[place] = value
        for wrapped in (bad, sp.csr_array(bad)):
            with pytest.raises(ValueError, match=r"^rnla\.lstsq: A must be finite"):
                lstsq(wrapped, b, method=method, rng=0)
    b[-1] = value
    with pytest.raises(ValueError, match=r"^rnla\.lstsq: b must be finite"):
        lstsq(A, b, method=method, rng=0)


INVALID = {
    "b short": ({"b": np.ones(29)}, ValueError, r"b must have shape \(30,\) or \(30, c\) for A of shape \(30, 20\)"),
    "b scalar": ({"b": 1.0}, ValueError, "b must have shape"),
    "b cube": ({"b": np.ones((30, 1, 1))}, ValueError, "b must have shape"),
    "b without columns": ({"b": np.ones((30, 0))}, ValueError, "b must have shape"),
    "b text": ({"b": np.array(["a"] * 30)}, TypeError, "b must"),
    "b masked": ({"b": np.ma.ones(30)}, TypeError, "b must be a plain array"),
    "b of another library": ({"b": torch.ones(30)}, TypeError, "b must be an array of"),
    "method": ({"method": "qr"}, ValueError, "method must be one of 'auto'"),
    "damp": ({"damp": -1.0}, ValueError, "damp must be finite and not negative"),
    "damp kind": ({"damp": "1"}, TypeError, "damp must be a real number"),
    "tol": ({"tol": -1.0}, ValueError, "tol must be finite and not negative"),
    "tol kind": ({"tol": "forward"}, TypeError, "tol must be a real number"),
    "sketch_ratio": ({"sketch_ratio": 1}, ValueError, "sketch_ratio must be above 1; got 1"),
    "rcond": ({"rcond": 1.5}, ValueError, "rcond must be below 1"),
    "rcond negative": ({"rcond": -1.0}, ValueError, "rcond must be finite and not negative"),
    "x0 long": ({"x0": np.ones(21), "method": "spir"}, ValueError, r"x0 must have shape \(20,\)"),
    "x0 columns": ({"x0": np.ones((20, 2)), "method": "spir"}, ValueError, "x0 must have as many columns as b"),
    "x0 complex": ({"x0": 1j * np.ones(20), "method": "spir"}, TypeError, "x0 must be real"),
    "x0 direct": ({"x0": np.ones(20), "method": "direct"}, ValueError, "x0 must be None for method 'direct'"),
    "x0 nan": ({"x0": np.full(20, np.nan), "method": "spir"}, ValueError, "x0 must be finite"),
    "max_iter": ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    "rng": ({"rng": "seed"}, TypeError, "rng must be"),
    "callback": ({"callback": 1}, TypeError, "callback must be callable"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_arguments(name):
    options, error, message = INVALID[name]
    b = options.get("b", np.ones(30))
    with pytest.raises(error, match=r"^rnla\.lstsq: " + message):
        lstsq(np.ones((30, 20)), b, **{key: value for key, value in options.items() if key != "b"})


def test_what_only_a_tall_matrix_has():
    with pytest.raises(ValueError, match=r"x0 must be None for a wide A"):
        lstsq(np.ones((20, 30)), np.ones(20), x0=np.ones(30))
    for method in _lstsq.TALL_METHODS:
        with pytest.raises(ValueError, match=rf"^rnla\.lstsq: method '{method}' needs a tall A"):
            lstsq(np.ones((20, 30)), np.ones(20), method=method)


def test_an_operator_without_adjoint():
    A = LinearOperator((300, 35), lambda x: np.ones(300) * x.sum(), dtype=float)
    with pytest.raises(TypeError, match=r"^rnla\.lstsq: A must provide rmatvec"):
        lstsq(A, np.ones(300), method="spir", rng=0)


def test_arguments_are_not_changed():
    A, b, _ = problem(500, 40, 1e3, 1.0, 0)
    x0 = np.ones(40)
    copies = A.copy(), b.copy(), x0.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ITERATIVE:
            lstsq(A, b, x0=x0, method=method, rng=0)
    assert all(np.array_equal(old, new) for old, new in zip(copies, (A, b, x0), strict=True))


@pytest.mark.parametrize("method", ["spir", "fossils", "itersketch", "lsqr"])
def test_one_column_is_not_zero_for_a_sketch_of_few_rows(method):
    A = np.zeros((200, 1))
    A[:2] = 1.0  # the signs of two rows cancel in 4 rows of a sketch with probability 1/16
    for seed in range(50):
        result = lstsq(A, np.ones(200), method=method, sketch_ratio=4, rng=seed)
        assert result.rank == 1
        assert abs(result.x[0] - 1) <= 1e-12
