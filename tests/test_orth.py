"""Orthonormalisation holds for every condition number, and splits a block exactly."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES

from rnla import _orth
from rnla._backend import to_host
from rnla._orth import cholesky_factor, cholesky_step, orth, orth_factors, orthonormal_block, project_out
from rnla._tall import like
from rnla.testing import assert_orthonormal, haar_basis, matrix_with_spectrum


def graded(m, b, decades, dtype, seed):
    return matrix_with_spectrum(m, b, np.logspace(0, -decades, b), rng=seed, dtype=dtype)


def unit(dtype):
    return float(np.finfo(dtype).eps)


def wide(X):
    return X.astype(np.promote_types(X.dtype, np.float64))


@given(
    b=st.integers(1, 20),
    extra=st.integers(0, 80),
    decades=st.floats(0, 25),
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["auto", "qr"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_factorisation_at_any_condition_number(b, extra, decades, dtype, method, seed):
    Y = graded(b + extra, b, decades, dtype, seed)
    Q, R = orth(Y, method)
    assert Q.dtype == Y.dtype
    assert R.dtype == (np.complex128 if Y.dtype.kind == "c" else np.float64)
    assert_orthonormal(Q)
    # Backward stable: measured below 6e-16 in double precision with 60 columns.
    assert np.linalg.norm(wide(Q) @ R - Y) <= 20 * unit(dtype) * b**0.5 * np.linalg.norm(Y)
    assert np.linalg.norm(np.tril(R, -1)) <= 20 * unit(dtype) * np.linalg.norm(R)


@given(
    b=st.integers(1, 20),
    decades=st.floats(0, 6),
    dtype=st.sampled_from(["float64", "complex128"]),
    seed=st.integers(0, 99),
)
def test_cholesky_qr_twice_up_to_its_limit(b, decades, dtype, seed):
    Y = graded(100, b, decades, dtype, seed)
    Q, R = orth(Y, "cholqr2")
    assert_orthonormal(Q, 20 * unit(dtype) * b**0.5)
    assert np.linalg.norm(Q @ R - Y) <= 20 * unit(dtype) * b**0.5 * np.linalg.norm(Y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["cholqr2", "rcholqr", "qr", "auto"])
@pytest.mark.parametrize("decades", [0, 3, 5, 12, 18])
def test_every_method_is_orthonormal_or_gives_way_to_householder(dtype, method, decades):
    Y = graded(400, 20, decades, dtype, 3)
    Q, R = orth(Y, method)
    assert_orthonormal(Q)
    assert np.linalg.norm(wide(Q) @ R - Y) <= 20 * unit(dtype) * 20**0.5 * np.linalg.norm(Y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decades", [0, 2])
def test_cholesky_qr_is_used_where_it_may_be(monkeypatch, dtype, decades):
    def refuse(Y):
        raise AssertionError("Householder QR is five times slower")

    monkeypatch.setattr(_orth, "_householder", refuse)
    monkeypatch.setattr(_orth, "_sketched", refuse)
    assert_orthonormal(orth(graded(400, 20, decades, dtype, 0))[0])


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_squares_in_double_precision_keep_what_a_block_in_single_precision_has(monkeypatch, dtype):
    def refuse(Y, *_):
        raise AssertionError("Householder QR is five times slower")

    Y = graded(400, 20, 5, dtype, 0)
    assert cholesky_factor(to_host(Y.conj().T @ Y), unit(dtype)) is None
    for name in ("_householder", "_sketched"):
        monkeypatch.setattr(_orth, name, refuse)
    Q, R = orth(Y)
    assert_orthonormal(Q)
    assert np.linalg.norm(wide(Q) @ R - Y) <= 20 * unit(dtype) * 20**0.5 * np.linalg.norm(Y)


@given(decades=st.floats(0, 20), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99), overwrite=st.booleans())
def test_factors_are_those_of_orth_but_for_one_product(decades, dtype, seed, overwrite):
    Y = graded(90, 9, decades, dtype, seed)
    X, W, R = orth_factors(Y.copy(), overwrite=overwrite)
    Q = (wide(X) @ W).astype(dtype)
    assert_orthonormal(Q)
    assert np.linalg.norm(wide(Q) @ R - Y) <= 20 * unit(dtype) * 9**0.5 * np.linalg.norm(Y)


@pytest.mark.parametrize(("dtype", "decades"), [("float64", 12), ("complex128", 12)])
def test_a_sketch_takes_the_condition_away(monkeypatch, dtype, decades):
    def refuse(Y):
        raise AssertionError("Householder QR is five times slower")

    Y = graded(400, 20, decades, dtype, 0)
    assert cholesky_step(Y) is None  # else this would not need the sketch
    monkeypatch.setattr(_orth, "_householder", refuse)
    assert_orthonormal(orth(Y)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "cholqr2", "rcholqr", "qr"])
def test_rank_deficient_blocks(dtype, method):
    basis = haar_basis(100, 3, rng=0, dtype=dtype)
    repeated = np.repeat(basis, 4, axis=1)
    with_zero = np.concatenate([basis, np.zeros((100, 1), dtype), basis], axis=1)
    for Y in (repeated, with_zero, np.zeros((100, 5), dtype), np.ones((100, 5), dtype)):
        Q, R = orth(Y, method)
        assert_orthonormal(Q)
        assert np.linalg.norm(wide(Q) @ R - Y) <= 100 * unit(dtype) * max(np.linalg.norm(Y), 1)


SHAPES = [(1, 1), (5, 5), (6, 5), (9, 5), (10, 5), (100, 1)]


@pytest.mark.parametrize(
    ("shape", "method"),
    [*((shape, method) for shape in SHAPES for method in ("auto", "cholqr2", "rcholqr", "qr")), ((100, 0), "auto")],
)
def test_shapes(shape, method):
    Y = np.random.default_rng(0).standard_normal(shape)
    Q, R = orth(Y, method)
    assert Q.shape == shape
    assert R.shape == (shape[1], shape[1])
    assert_orthonormal(Q)
    assert np.abs(Q @ R - Y).max(initial=0.0) <= 20 * unit(float) * shape[1]


def test_the_test_of_cholesky_qr():
    rng = np.random.default_rng(0)
    eps = unit(float)
    X = rng.standard_normal((50, 4))
    G = X.T @ X
    R = cholesky_factor(G, eps)
    assert np.array_equal(R, np.triu(R))
    assert np.abs(R.T @ R - G).max() <= 10 * eps * np.abs(G).max()
    assert cholesky_factor(-G, eps) is None
    # A diagonal of 10 sqrt(eps) of the largest is all rounding: ten per cent more is believed, ten less is not.
    for factor, believed in ((1.1, True), (0.9, False)):
        G = np.diag([1.0, (factor * 10) ** 2 * eps])
        assert (cholesky_factor(G, eps) is not None) is believed


@pytest.mark.parametrize("place", ["strict-device1", "torch", "torch-meta"], indirect=True)
@pytest.mark.parametrize("method", ["auto", "qr"])
def test_other_libraries(place, method):
    xp, device = place
    Y = xp.asarray(graded(60, 6, 3, np.float32, 0), device=device)
    Q, R = orth(Y, method)
    assert array_api_compat.device(Q) == device
    assert Q.dtype == xp.float32
    if str(device) != "meta":
        assert isinstance(R, np.ndarray)
        assert_orthonormal(Q)
        P, B, C = orthonormal_block(Y, Q[:, :2], floor=0.0)
        assert array_api_compat.device(P) == device
        assert B.shape[1] == C.shape[1] == 6


# Splitting a block against a basis.


@given(
    c=st.integers(0, 12),
    b=st.integers(1, 12),
    inside=st.integers(0, 12),
    decades=st.floats(0, 12),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
)
def test_a_block_is_split_into_its_part_in_the_basis_and_an_orthonormal_rest(c, b, inside, decades, seed, dtype):
    n, eps = 60, unit(dtype)
    Q = haar_basis(n, c, rng=seed, dtype=dtype) if c else np.zeros((n, 0), dtype)
    Z = graded(n, b, decades, dtype, seed + 1)
    if c:  # some columns lie in the span of Q, up to rounding
        Z[:, :inside] = Q @ np.random.default_rng(seed).standard_normal((c, min(inside, b))).astype(dtype)
    floor = 10 * eps * np.linalg.norm(Z)
    P, B, C = orthonormal_block(Z.copy(), Q, floor=floor)
    assert P.shape[1] <= b
    assert B.shape == (P.shape[1], b)
    assert C.shape == (c, b)
    assert P.dtype == Z.dtype
    assert_orthonormal(P)
    assert_orthonormal(np.concatenate([Q, P], axis=1))
    # Directions up to `floor` may be dropped.
    assert np.linalg.norm(wide(Q) @ C + wide(P) @ B - Z) <= (b**0.5 + 20) * floor
    if c and inside >= b:
        assert P.shape[1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_dropped_above_the_floor(dtype):
    Q, floor = haar_basis(60, 5, rng=0, dtype=dtype), 1e-3
    # Orthogonal to Q, with norms on both sides of the floor.
    directions = orth(
        haar_basis(60, 12, rng=1, dtype=dtype) - Q @ (Q.conj().T @ haar_basis(60, 12, rng=1, dtype=dtype))
    )[0]
    norms = np.array([1, 0.5, 1.1e-3, 1.05e-3, 0.9e-3, 0.5e-3, 0, 0, 1, 1, 1, 1]).astype(dtype)
    P, B, C = orthonormal_block(directions * norms, Q, floor=floor)
    assert P.shape[1] == 8
    assert np.abs(np.linalg.svd(B, compute_uv=False) - np.sort(np.abs(norms))[::-1][:8]).max() <= 100 * unit(dtype)
    assert np.abs(C).max() <= 10 * unit(dtype)


def test_nearly_dependent_columns_are_orthogonal_to_the_basis():
    # The rest is 1e-10 of a block: projecting twice before normalising would leave 1e-6 of Q in it.
    Q = haar_basis(80, 10, rng=0)
    Z = Q[:, :4] + 1e-10 * haar_basis(80, 4, rng=1)
    P, B, C = orthonormal_block(Z, Q, floor=1e-14)
    assert P.shape[1] == 4
    assert_orthonormal(np.concatenate([Q, P], axis=1))
    assert np.abs(Q @ C + P @ B - Z).max() <= 100 * unit(float)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("along", [0.0, 1e-6, 1.0])
def test_columns_that_wait_for_the_second_projection_cost_no_digits(dtype, along):
    # Also where the promise is broken (`along`), only with one more round.
    Q, W = haar_basis(80, 10, rng=0, dtype=dtype), haar_basis(80, 4, rng=1, dtype=dtype)
    Z = (Q[:, 6:] + along * Q[:, :4] + 1e-2 * W).astype(dtype)
    Z -= (1 - along) * Q[:, :6] @ (Q[:, :6].conj().T @ Z)
    P, B, C = orthonormal_block(Z, Q, floor=1e-6, near=6)
    assert P.shape[1] == 4
    assert_orthonormal(np.concatenate([Q, P], axis=1))
    assert np.abs(wide(Q) @ C + wide(P) @ B - Z).max() <= 100 * unit(dtype)


def test_zero_and_empty_blocks():
    Q = haar_basis(30, 4, rng=0)
    P, B, C = orthonormal_block(np.zeros((30, 3)), Q, floor=0.0)
    assert (P.shape, B.shape, C.shape) == ((30, 0), (0, 3), (4, 3))
    P, B, C = orthonormal_block(np.zeros((30, 0)), Q, floor=0.0)
    assert (P.shape, B.shape, C.shape) == ((30, 0), (0, 0), (4, 0))
    full = np.eye(30)
    assert orthonormal_block(np.ones((30, 2)), full, floor=1e-10)[0].shape == (30, 0)


def test_project_out_and_like():
    Q, Z = haar_basis(30, 4, rng=0, dtype=np.complex64), haar_basis(30, 2, rng=1, dtype=np.complex64)
    rest, C = project_out(Z, Q)
    assert np.abs(Q.conj().T @ rest).max() <= 10 * unit(np.float32)
    assert C.dtype == np.complex128
    assert np.abs(C - to_host(Q.conj().T @ Z)).max() <= 10 * unit(np.float32)
    assert like(np.eye(3), Z).dtype == np.complex64
    assert like(np.eye(3), rest.real).dtype == np.float32
