"""Sketching operators: distribution, blocks, products, distortion, and bad arguments."""

import itertools

import array_api_compat
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rnla import sketch

NAMES = [
    "Gaussian",
    "Rademacher",
    "Uniform",
    "SparseSign",
    "SparseStack",
    "CountSketch",
    "SRTT",
    "SRHT",
    "RowSample",
]
DENSE, SIGNS = NAMES[:3], NAMES[3:6]
KINDS = ["gaussian", "rademacher", "uniform", "sparse"]
every = pytest.mark.parametrize("name", NAMES)
with_values = pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch"], indirect=True)


def operator(name, d, n, **options):
    return getattr(sketch, name)(d, n, **options)


def normal(shape, dtype="float64", seed=0):
    X = np.random.default_rng(seed).standard_normal((*shape, 2))
    return (X @ [1, 1j]).astype(dtype) if np.dtype(dtype).kind == "c" else X[..., 0].astype(dtype)


def assert_close(X, Y, terms, scale=1.0, entries="float64"):
    """Compare two roundings of sums of `terms` products of size `scale` with an operator of dtype `entries`."""
    eps = max(np.finfo(dtype).eps for dtype in (X.dtype, Y.dtype, entries))
    assert X.shape == Y.shape
    assert abs(X - Y).max() <= 10 * terms * eps * scale


# Distribution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "kurtosis", "cdf"),
    [("gaussian", 3.0, stats.norm.cdf), ("uniform", 1.8, stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)).cdf)],
)
def test_continuous_entries_have_their_distribution(kind, kurtosis, cdf, dtype):
    n = 2_000_000
    x = sketch.test_matrix(kind, 2026, n // 8, 8, dtype=np.dtype(dtype)).ravel().astype(float)
    # Standard deviations of the sample moments for a normal sample; the uniform ones are smaller.
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs((x**2).mean() - 1) < 4 * np.sqrt(2 / n)
    assert abs((x**4).mean() - kurtosis) < 4 * np.sqrt(96 / n)
    assert stats.kstest(x, cdf, method="asymp").pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "values"), [("rademacher", {-1: 1 / 2, 1: 1 / 2}), ("sparse", {-2: 1 / 8, 0: 3 / 4, 2: 1 / 8})]
)
def test_discrete_entries_have_their_distribution(kind, values):
    X = sketch.test_matrix(kind, 2026, 2000, 300)
    found, counts = np.unique(X, return_counts=True)
    assert set(found) == set(values)
    for value, count in zip(found, counts, strict=True):
        p = values[value]
        assert abs(count - p * X.size) < 4 * np.sqrt(p * (1 - p) * X.size)
    # Columns are uncorrelated: 300 * 299 / 2 correlations of standard deviation 2000**-0.5, bound 5.5 (p = 2e-3).
    assert abs(np.triu(X.T @ X / 2000, 1)).max() < 5.5 / np.sqrt(2000)


def test_sparse_test_matrix_has_one_entry_in_every_four_columns():
    X = sketch.test_matrix("sparse", 3, 500, 40)
    assert (np.count_nonzero(X.reshape(500, 10, 4), axis=2) == 1).all()


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_entries_have_unit_variance_and_no_preferred_phase(kind, dtype):
    n = 200_000
    x = sketch.test_matrix(kind, 5, n // 4, 4, dtype=np.dtype(dtype)).ravel()
    assert x.dtype == dtype
    assert abs((abs(x) ** 2).mean() - 1) < 4 / np.sqrt(n)
    assert abs(x.mean()) < 4 / np.sqrt(n)
    assert abs((x**2).mean()) < 8 / np.sqrt(n)
    if kind == "rademacher":
        assert abs(abs(x) - 1).max() <= 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("name", ["SparseSign", "SparseStack", "CountSketch"])
def test_signed_rows_are_distinct_uniform_and_balanced(name):
    d, n = 20, 20000
    S = operator(name, d, n, seed=1)
    targets = S.targets(0, n)
    rows = np.sort(np.maximum(targets, ~targets), axis=1)
    assert (np.diff(rows, axis=1) > 0).all()
    expected = n * S.zeta / d
    assert abs(np.bincount(rows.ravel(), minlength=d) - expected).max() < 5 * np.sqrt(expected)
    assert abs((targets < 0).mean() - 0.5) < 2.5 / np.sqrt(targets.size)
    pairs = np.stack([rows[:, 0], targets[:, -1] < 0])
    assert abs(np.corrcoef(pairs.astype(float))[0, 1]) < 5 / np.sqrt(n)


# Blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 140), st.integers(1, 60), st.integers(0, 2**64 - 1))
def test_a_block_of_a_test_matrix_is_a_slice_of_the_whole(kind, dtype, row, n, start, l, key):
    dtype = np.dtype(dtype)
    whole = sketch.test_matrix(kind, key, 100, 200, dtype=dtype, stream=3)
    block = sketch.test_matrix(kind, key, n, l, dtype=dtype, stream=3, start=start, row=row)
    assert block.dtype == dtype
    assert np.array_equal(block, whole[row : row + n, start : start + l])


def test_a_wider_test_matrix_keeps_the_columns():
    narrow = sketch.test_matrix("gaussian", 1, 3000, 7)
    assert np.array_equal(sketch.test_matrix("gaussian", 1, 3000, 50)[:, :7], narrow)


@pytest.mark.parametrize("name", [*DENSE, "RowSample"])
def test_a_taller_operator_keeps_the_rows(name):
    small, large = (operator(name, d, 200, seed=4, scale="raw").to_array() for d in (11, 30))
    if name == "RowSample":  # its raw scale does not depend on d
        assert np.array_equal(small != 0, large[:11] != 0)
    assert_close(small, large[:11], 1, abs(small).max())


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_and_cols_are_slices_of_the_array(name, dtype):
    S = operator(name, 12, 100, seed=3, dtype=dtype)
    whole = S.to_array()
    assert whole.shape == S.shape == (12, 100)
    assert whole.dtype == S.dtype == dtype
    exact = np.array_equal if name not in ("SRTT", "SRHT") else lambda X, Y: assert_close(X, Y, 100) is None
    assert exact(S.rows(3, 7), whole[3:7])
    assert exact(S.cols(31, 90), whole[:, 31:90])


# Products ----------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("data", ["float32", "float64", "complex64", "complex128", "F", "sparse", "vector"])
def test_products_are_those_of_the_matrix(name, dtype, data):
    if np.dtype(dtype).kind == "c" and name not in DENSE:
        with pytest.raises(TypeError, match=f"{name}: dtype"):
            operator(name, 12, 100, dtype=dtype)
        return
    S = operator(name, 12, 100, seed=8, dtype=dtype)
    M = S.to_array()
    A = normal((100, 6), "float64" if data in ("F", "sparse", "vector") else data)
    Y = normal((12, 3), A.dtype)
    scale = abs(M).max() * max(abs(A).max(), abs(Y).max())
    dense = A
    if data == "F":
        A = np.asfortranarray(A)
    elif data == "vector":
        A = dense = A[:, 0]
    elif data == "sparse":
        A = sp.coo_array(np.where(abs(A) > 0.7, A, 0))
        dense = A.toarray()
    pairs = [
        (S @ A, M @ dense),
        (A.T @ S.T, dense.T @ M.T),
        (A.T @ S.H, dense.T @ M.conj().T),
        (S.T.H @ A, M.conj() @ dense),
        (S.H.H @ A, M @ dense),
        (S.H @ Y, M.conj().T @ Y),
        (S.T @ Y, M.T @ Y),
        (Y.T @ S, Y.T @ M),
    ]
    kind = "c" if "c" in (S.dtype.kind, A.dtype.kind) else "f"
    for ours, expected in pairs:
        assert ours.dtype.kind == kind
        assert np.finfo(ours.dtype).dtype == np.finfo(A.dtype).dtype  # the precision of the data
        assert_close(ours, expected, 100, scale, S.dtype)


@every
def test_the_sum_over_blocks_is_the_whole_product(name):
    S, A = operator(name, 30, 400, seed=2), normal((400, 5))
    cuts = [0, 1, 130, 131, 400]
    total = sum(S.apply(A[a:b], a) for a, b in itertools.pairwise(cuts))
    whole = S @ A
    assert np.linalg.norm(total - whole) <= 1e-13 * np.linalg.norm(whole)
    part = S.apply(sp.csr_array(A[130:131]), 130)
    assert_close(part, S.cols(130, 131) @ A[130:131], 400)


def test_tiles_of_a_large_operator_add_up(monkeypatch):
    S, A, Y = sketch.Gaussian(10, 300, seed=1), normal((300, 4)), normal((10, 4))
    products = S @ A, S @ sp.csc_array(A), S.H @ Y
    monkeypatch.setattr("rnla._sketch_operator._TILE", 70)
    for one, many in zip(products, (S @ A, S @ sp.csc_array(A), S.H @ Y), strict=True):
        assert_close(one, many, 300)


@every
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_adjoint_identity(name, n, d, seed):
    d = min(d, n)
    S = operator(name, d, n, seed=seed)
    x, y = normal((n,), seed=1), normal((d,), seed=2)
    left, right = (S @ x) @ y, x @ (S.H @ y)
    assert abs(left - right) <= 1e-12 * np.linalg.norm(S.to_array()) * np.linalg.norm(x) * np.linalg.norm(y)


@pytest.mark.parametrize("name", DENSE)
def test_complex_adjoint_identity(name):
    S = operator(name, 9, 50, seed=0, dtype="complex128")
    x, y = normal((50,), "complex128", 1), normal((9,), "complex128", 2)
    bound = 1e-12 * np.linalg.norm(x) * np.linalg.norm(y)
    assert abs(np.vdot(S @ x, y) - np.vdot(x, S.H @ y)) <= bound
    assert abs(y @ (S @ x) - x @ (S.T @ y)) <= bound


@every
def test_raw_scale_is_the_isometry_times_root_d(name):
    S, raw = (operator(name, 9, 64, seed=1, scale=scale).to_array() for scale in ("isometry", "raw"))
    assert_close(3.0 * S, raw, 1, abs(raw).max())


# Lengths and subspaces ---------------------------------------------------------------------------------------------


@every
def test_lengths_are_kept_in_expectation(name):
    draws, d, n = 2000, 8, 64
    x = normal((n,), seed=5)
    x /= np.linalg.norm(x)
    squares = np.array([np.sum((operator(name, d, n, seed=seed) @ x) ** 2) for seed in range(draws)])
    assert squares.std() > 0
    assert abs(squares.mean() - 1) < 4 * squares.std() / np.sqrt(draws)


@pytest.mark.parametrize("name", ["Gaussian", "SparseSign", "SparseStack", "SRTT"])
def test_a_coherent_subspace_is_not_collapsed(name):
    r, n = 20, 400
    d = 4 * r
    # Coherent: half of the subspace is spanned by unit vectors, as sparse sketches fear it.
    V = np.zeros((n, r))
    V[:10, :10] = np.eye(10)
    V[10:, 10:] = np.linalg.qr(normal((n - 10, 10)))[0]
    options = {"zeta": 8} if name == "SparseStack" else {}
    smallest = [np.linalg.svd(operator(name, d, n, seed=s, **options) @ V, compute_uv=False)[-1] for s in range(100)]
    assert min(smallest) >= 0.5 * (1 - np.sqrt(r / d))


def test_count_sketch_collapses_a_coherent_subspace():
    """Why it is never a default: of 60 unit vectors, two share a bucket of 240 almost surely."""
    V = np.eye(300)[:, :60]
    smallest = [np.linalg.svd(sketch.CountSketch(240, 300, seed=s) @ V, compute_uv=False)[-1] for s in range(5)]
    assert min(smallest) < 1e-12


def test_full_transforms_are_orthogonal():
    X = normal((48, 3))
    for S in (sketch.SRTT(48, 48, seed=0), sketch.SRTT(48, 48, 1, seed=0), sketch.SRHT(64, 48, seed=0)):
        assert_close(S.H @ (S @ X), X, 100, abs(X).max())


def test_row_sample_follows_its_probabilities():
    p = np.array([0.0, 1.0, 0.0, 2.0, 5.0])
    S = sketch.RowSample(8000, 5, p, seed=1)
    counts = np.bincount(S.indices, minlength=5)
    expected = 8000 * p / p.sum()
    assert (abs(counts - expected) <= 4 * np.sqrt(expected)).all()
    A = normal((5, 2))
    assert_close(S @ A, A[S.indices] / np.sqrt(expected[S.indices])[:, None], 1, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_operators_do_not_depend_on_the_number_of_threads(monkeypatch, name):
    n = 20000  # several blocks for each of two levels of the code
    A = normal((n, 12))

    def results():
        S = operator(name, 30, n, seed=1)
        kind = {"Rademacher": "rademacher", "Uniform": "uniform", "SparseSign": "sparse"}.get(name, "gaussian")
        return (
            S @ A,
            S.cols(0, 9000 if name not in ("SRTT", "SRHT") else 9),
            S.H @ A[:30],
            sketch.test_matrix(kind, 3, n, 20),
        )

    monkeypatch.setattr("rnla.kernels._threads.num_threads", lambda: 1)
    serial = results()
    monkeypatch.setattr("rnla.kernels._threads.num_threads", lambda: 2)
    assert all(np.array_equal(a, b) for a, b in zip(serial, results(), strict=True))


# Libraries and devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_test_matrix_has_the_library_and_device_asked_for(place, kind):
    xp, device = place
    for dtype in (xp.float32, xp.complex128):
        X = sketch.test_matrix(kind, 7, 40, 5, xp=xp, device=device, dtype=dtype)
        assert tuple(X.shape) == (40, 5)
        assert X.dtype == dtype
        assert array_api_compat.device(X) == device


@with_values
@pytest.mark.parametrize("kind", KINDS)
def test_test_matrix_has_the_same_values_in_every_library(place, kind):
    xp, device = place
    X = sketch.test_matrix(kind, 7, 40, 5, xp=xp, device=device, dtype=xp.float32)
    assert np.array_equal(to_numpy(X), sketch.test_matrix(kind, 7, 40, 5, dtype=np.float32))


@every
def test_products_stay_on_the_device_of_the_data(place, name):
    xp, device = place
    S = operator(name, 6, 40, seed=1)
    A = xp.asarray(normal((40, 3)), dtype=xp.float32, device=device)
    Y = xp.asarray(normal((6, 2)), dtype=xp.float32, device=device)
    products = [(S @ A, (6, 3)), (S.H @ Y, (40, 2)), (S.apply(A[:9, :], 4), (6, 3))]
    if not array_api_compat.is_array_api_strict_namespace(
        xp
    ):  # its arrays refuse to be the left operand of a foreign type
        products.append((A.T @ S.T, (3, 6)))
    for X, shape in products:
        assert tuple(X.shape) == shape
        assert X.dtype == xp.float32
        assert array_api_compat.device(X) == device
    block = S.cols(3, 9, xp=xp, device=device)
    assert array_api_compat.device(block) == device


@with_values
@every
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_products_have_the_same_values_in_every_library(place, name, dtype):
    xp, device = place
    S = operator(name, 6, 41, seed=1)  # an odd length has a middle row in the cosine transform
    A, Y = normal((41, 3), dtype), normal((6, 2), dtype)
    A_there, Y_there = (xp.asarray(X, device=device) for X in (A, Y))
    assert_close(to_numpy(S @ A_there), S @ A, 41, abs(A).max())
    assert_close(to_numpy(S.H @ Y_there), S.H @ Y, 41, abs(Y).max())


def to_numpy(X):
    import array_api_strict

    if hasattr(X, "get"):  # CuPy
        return X.get()
    if type(X).__module__.startswith("array_api_strict"):
        X = array_api_strict.asarray(X, device=array_api_strict.Device("CPU_DEVICE"))
    return np.asarray(X)


# Arguments ---------------------------------------------------------------------------------------------------------


@every
def test_a_seed_gives_one_operator(name):
    def array(seed):
        return operator(name, 5, 30, seed=seed).to_array()

    assert np.array_equal(array(3), array(np.int64(3)))
    assert not np.array_equal(array(3), array(4))
    generator = np.random.default_rng(0)
    assert not np.array_equal(array(generator), array(generator))
    assert not np.array_equal(array(None), array(None))


def test_integers_and_booleans_are_computed_in_float64():
    S, A = sketch.SparseSign(9, 20, seed=0), np.arange(40).reshape(20, 2)
    assert (S @ A).dtype == np.float64
    assert_close(S @ A, S @ A.astype(float), 20, 40.0)
    assert (S @ sp.csr_array(A % 3 == 0)).dtype == np.float64


@every
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"d": 0}, ValueError, "d must be at least 1; got 0"),
        ({"d": 2.5}, TypeError, "d must be an int; got float"),
        ({"n": True}, TypeError, "n must be an int; got bool"),
        ({"n": -3}, ValueError, "n must be at least 1; got -3"),
        ({"scale": "unit"}, ValueError, "scale must be 'isometry' or 'raw'; got 'unit'"),
        ({"dtype": "int32"}, TypeError, "dtype must be one of float32, float64.*got int32"),
        ({"dtype": "nonsense"}, TypeError, "dtype must be one of float32, float64.*got 'nonsense'"),
        ({"seed": "x"}, TypeError, "rng must be"),
    ],
)
def test_bad_arguments(name, options, error, match):
    arguments = {"d": 5, "n": 20} | options
    with pytest.raises(error, match=rf"rnla\.sketch\.{name}: {match}"):
        operator(name, arguments.pop("d"), arguments.pop("n"), **arguments)


@every
def test_bad_data(name):
    S = operator(name, 5, 20, seed=0)
    caller = rf"rnla\.sketch\.{name}: "
    with pytest.raises(ValueError, match=caller + r"S @ A needs A with 20 rows; got shape \(19, 2\)"):
        S @ np.ones((19, 2))
    with pytest.raises(ValueError, match=caller):
        S @ np.ones((20, 2, 2))
    with pytest.raises(TypeError, match=caller + ".*got list"):
        S @ [1.0] * 20
    with pytest.raises(TypeError, match=caller + ".*numeric dtype; got object"):
        S @ np.full((20, 2), None)
    with pytest.raises(TypeError, match=caller + ".*MaskedArray"):
        S @ np.ma.ones((20, 2))
    with pytest.raises(ValueError, match=caller + ".*with 5 rows"):
        S.H @ np.ones((20, 2))
    with pytest.raises(ValueError, match=caller):
        np.ones((3, 19)) @ S.T
    with pytest.raises(ValueError, match=caller + "row_offset"):
        S.apply(np.ones((4, 2)), 17)
    with pytest.raises(ValueError, match=caller + r"a range a:b .* got 3:3"):
        S.rows(3, 3)
    with pytest.raises(ValueError, match=caller + r"a range a:b .* <= 20; got 0:21"):
        S.cols(0, 21)


def test_bad_options_of_single_operators():
    with pytest.raises(ValueError, match=r"SparseSign: zeta must be at least 1; got 0"):
        sketch.SparseSign(5, 20, 0)
    with pytest.raises(TypeError, match=r"SparseStack: zeta must be an int; got float"):
        sketch.SparseStack(5, 20, 2.0)
    with pytest.raises(ValueError, match=r"SRTT: rounds must be an int of at least 1; got 0"):
        sketch.SRTT(5, 20, rounds=0)
    with pytest.raises(ValueError, match=r"SRTT: d must be in 1\.\.20 for n = 20; got 21"):
        sketch.SRTT(21, 20)
    with pytest.raises(ValueError, match=r"SRHT: d must be in 1\.\.32 for n = 20; got 33"):
        sketch.SRHT(33, 20)
    for p in (np.ones(19), -np.ones(20), np.zeros(20), np.full(20, np.nan)):
        with pytest.raises(ValueError, match=r"RowSample: p must have shape \(20,\)"):
            sketch.RowSample(5, 20, p)
    with pytest.raises(ValueError, match=r"test_matrix: kind must be one of gaussian.*got 'normal'"):
        sketch.test_matrix("normal", 0, 3, 2)
    with pytest.raises(TypeError, match=r"test_matrix: dtype must be one of float32.*got int64"):
        sketch.test_matrix("gaussian", 0, 3, 2, dtype=np.dtype("int64"))


def test_every_public_name_is_documented():
    assert sorted(sketch.__all__) == sorted([*NAMES, "test_matrix"])
    assert all(getattr(sketch, name).__doc__.count("Examples") == 1 for name in sketch.__all__)
    assert all(operator(name, 4, 16, seed=0).__repr__() == f"{name}(4, 16)" for name in NAMES)
    assert repr(sketch.Gaussian(4, 16, dtype="complex64").T) == "Gaussian(4, 16).T"
