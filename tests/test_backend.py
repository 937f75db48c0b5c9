"""Keys, finite checks, and the way of small arrays to the host and back."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnla._backend import (
    adjoint,
    check_finite,
    columns,
    eps_of,
    from_host,
    is_meta,
    key_from_rng,
    real_dtype,
    to_host,
)

VALUED = ["numpy", "strict", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)]
DTYPES = ["float32", "float64", "complex64", "complex128"]


def sample(dtype):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4, 3))
    return (X + 1j * rng.standard_normal((4, 3)) if dtype.startswith("complex") else X).astype(dtype)


@pytest.mark.parametrize("place", VALUED, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_to_the_host_and_back(place, dtype):
    xp, device = place
    X = sample(dtype)
    A = xp.asarray(X, device=device)
    host = to_host(A)
    assert type(host) is np.ndarray
    assert host.dtype == np.promote_types(dtype, np.float64)
    assert np.array_equal(host, X)
    assert np.array_equal(to_host(adjoint(A)), X.conj().T)
    back = from_host(host, xp, getattr(xp, dtype), device)
    assert back.dtype == A.dtype
    assert array_api_compat.device(back) == array_api_compat.device(A)
    assert np.array_equal(to_host(back), X)
    assert np.array_equal(to_host(from_host(host.T, xp, getattr(xp, dtype), device)), X.T)
    assert not is_meta(A)


def test_torch_lazy_conjugates_and_gradients_reach_the_host():
    torch = pytest.importorskip("torch")
    X = sample("complex128")
    lazy = torch.from_numpy(X.copy()).conj()
    assert lazy.is_conj()
    assert np.array_equal(to_host(lazy), X.conj())
    assert np.array_equal(to_host(torch.from_numpy(X.copy()).requires_grad_()), X)


def test_a_complex_matrix_with_real_values_may_become_real():
    assert (
        from_host(np.eye(2) * (1 + 0j), array_api_compat.array_namespace(np.eye(2)), np.float32, "cpu").dtype
        == np.float32
    )


@pytest.mark.parametrize("place", [*VALUED, "torch-meta"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_layout(place, dtype):
    xp, device = place
    kind = getattr(xp, dtype)
    A = columns(xp, 5, 3, dtype=kind, device=device)
    assert tuple(A.shape) == (5, 3)
    assert A.dtype == kind
    assert array_api_compat.device(A) == array_api_compat.device(xp.empty((1,), device=device))
    single = dtype in ("float32", "complex64")
    assert eps_of(xp, kind) == (2.0**-23 if single else 2.0**-52)
    assert real_dtype(xp, kind) == (xp.float32 if single else xp.float64)
    assert tuple(adjoint(A).shape) == (3, 5)
    assert is_meta(A) == (str(device) == "meta")


def test_columns_are_contiguous():
    xp = array_api_compat.array_namespace(np.eye(2))
    assert columns(xp, 7, 3, dtype=np.float64, device="cpu").flags.f_contiguous
    assert columns(xp, 7, 0, dtype=np.float64, device="cpu").shape == (7, 0)


# Finite checks.


@pytest.mark.parametrize("place", VALUED, indirect=True)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_that_is_not_finite_is_found(place, value, dtype):
    xp, device = place
    X = sample(dtype)
    check_finite(xp.asarray(X, device=device), "rnla.svd", "A")
    for row in range(4):
        bad = X.copy()
        bad[row, row % 3] = value
        with pytest.raises(ValueError, match=r"^rnla\.svd: A must be finite; its products contain NaN or infinity\.$"):
            check_finite(xp.asarray(bad, device=device), "rnla.svd", "A")


def test_finite_values_whose_sum_overflows_are_finite():
    check_finite(np.full((3, 3), 1e308), "rnla.svd", "A")
    check_finite(np.full((3, 3), 3e38, np.float32), "rnla.svd", "A")
    check_finite(np.full((2, 2), 1e308 * (1 + 1j)), "rnla.svd", "A")
    # Infinities of both signs, whose sum is NaN, are not hidden by it.
    with pytest.raises(ValueError, match="must be finite"):
        check_finite(np.array([[np.inf, -np.inf]]), "rnla.svd", "A")


def test_a_tensor_without_values_is_not_looked_at():
    torch = pytest.importorskip("torch")
    assert check_finite(torch.empty(3, 2, device="meta"), "rnla.svd", "A") is None  # a look would raise


# Keys.


@given(seed=st.integers(0, 2**300))
def test_a_seed_gives_one_key_of_64_bits(seed):
    key = key_from_rng(seed, "rnla.svd")
    assert type(key) is int
    assert 0 <= key < 2**64
    assert key_from_rng(seed, "rnla.svd") == key
    assert key_from_rng(np.random.SeedSequence(seed), "rnla.svd") == key


def test_keys_of_different_seeds_differ():
    keys = {key_from_rng(seed, "rnla.svd") for seed in range(10**4)}
    # Two of 1e4 random 64-bit numbers agree with probability 3e-12.
    assert len(keys) == 10**4
    assert np.mean([key >> 63 for key in keys]) == pytest.approx(0.5, abs=0.05)  # 10 standard deviations


def test_fresh_keys_differ():
    assert key_from_rng(None, "rnla.svd") != key_from_rng(None, "rnla.svd")  # agree with probability 2**-64


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox, np.random.MT19937, np.random.SFC64])
def test_a_generator_moves_on_by_one_draw(bits):
    generator, twin = np.random.Generator(bits(1)), np.random.Generator(bits(1))
    keys = [key_from_rng(generator, "rnla.svd") for _ in range(3)]
    assert keys == [int(twin.integers(0, 2**64, dtype=np.uint64)) for _ in range(3)]
    assert len(set(keys)) == 3
    assert generator.standard_normal() == twin.standard_normal()


def test_a_legacy_generator_moves_on():
    legacy, twin = (np.random.RandomState(1) for _ in range(2))
    keys = [key_from_rng(legacy, "rnla.svd") for _ in range(100)]
    assert len(set(keys)) == 100
    assert all(0 <= key < 2**64 for key in keys)
    assert key_from_rng(twin, "rnla.svd") == keys[0]
    assert max(keys) >= 2**63  # all 64 bits are used: 100 keys below it have probability 2**-100


@pytest.mark.parametrize("rng", [True, np.True_, 1.0, "0", [1, 2], np.random, object()])
def test_what_is_no_source_of_randomness_is_refused(rng):
    with pytest.raises(TypeError, match=r"^rnla\.qb: rng must be None, a non-negative int, .*; got"):
        key_from_rng(rng, "rnla.qb")


@pytest.mark.parametrize("rng", [-1, np.int64(-5)])
def test_negative_seeds_are_refused(rng):
    with pytest.raises(ValueError, match=r"^rnla\.qb: rng as a seed must be a non-negative int; got -"):
        key_from_rng(rng, "rnla.qb")
