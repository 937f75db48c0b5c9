"""Robust Tucker decomposition: the tensor of low rank is recovered from fibres, and a failure is reported."""

import math
import tracemalloc

import array_api_compat
import numpy as np
import pytest
from strategies import DTYPES

import rnla.tensors
from rnla import ConvergenceWarning
from rnla._backend import to_host
from rnla.tensors import robust_tucker
from rnla.testing import assert_orthonormal

LIMIT = 1e-4


def tucker(shape, ranks, *, outliers=0.1, size=1.0, dtype=float, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        X = rng.standard_normal(shape)
        return X + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else X

    L = normal(*ranks)
    for i, (d, r) in enumerate(zip(shape, ranks, strict=True)):
        L = np.moveaxis(np.tensordot(normal(d, r), L, axes=([1], [i])), 0, i)
    where = rng.random(shape) < outliers
    X = L + np.where(where, rng.uniform(-size, size, shape) * np.abs(L).mean(), 0)
    return X.astype(dtype), L.astype(dtype)


def error(result, L):
    return np.linalg.norm(to_host(result.to_dense()) - L) / np.linalg.norm(L)


@pytest.mark.parametrize(("sampling", "outliers"), [("fiber", 0.1), ("fiber", 0.3), ("chidori", 0.1), ("chidori", 0.3)])
@pytest.mark.parametrize("seed", range(2))
def test_recovery_from_resampled_fibres(sampling, outliers, seed):
    X, L = tucker((60, 70, 80), (3, 3, 3), outliers=outliers, seed=seed)
    result = robust_tucker(X, 3, sampling=sampling, rng=seed)
    assert result.converged
    assert error(result, L) <= LIMIT
    assert result.kept_fresh == pytest.approx(1 - outliers, abs=0.05)
    assert result.n_iter <= 45
    assert result.shape == X.shape
    for factor in result.factors:
        assert_orthonormal(factor)
    some = result.block([5, 2], None, [0, 1, 2])
    assert np.abs(some - L[[5, 2]][:, :, :3]).max() <= LIMIT * np.abs(L).max()


@pytest.mark.parametrize("sampling", ["fiber", "chidori"])
def test_recovery_from_one_sample_without_outliers(sampling):
    X, L = tucker((40, 50, 30), (2, 3, 2), outliers=0.0)
    result = robust_tucker(X, (2, 3, 2), sampling=sampling, resample=False, rng=0)
    assert result.converged
    assert error(result, L) <= 1e-10
    assert result.kept_fresh == 1


@pytest.mark.parametrize(("shape", "ranks"), [((200, 150), (3, 3)), ((20, 25, 20, 18), (2, 2, 2, 2))])
def test_two_and_four_modes(shape, ranks):
    X, L = tucker(shape, ranks, outliers=0.05)
    assert error(robust_tucker(X, ranks, rng=0), L) <= LIMIT


@pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_library_and_dtype(place, dtype):
    xp, device = place
    X, L = tucker((30, 35, 40), (2, 2, 2), dtype=dtype)
    host = robust_tucker(X, 2, rng=0)
    result = robust_tucker(xp.asarray(X, device=device), 2, rng=0)
    for part in (result.core, *result.factors):
        assert part.dtype == xp.asarray(X[:1, :1, :1], device=device).dtype
        assert array_api_compat.device(part) == device
    assert result.n_iter == host.n_iter
    assert error(result, L) <= LIMIT
    assert np.abs(to_host(result.to_dense()) - host.to_dense()).max() <= LIMIT * np.abs(L).max()


def test_order_in_memory_and_seed():
    X, L = tucker((30, 35, 40), (2, 2, 2))
    one, two = robust_tucker(X, 2, rng=3), robust_tucker(np.asfortranarray(X), 2, rng=3)
    assert np.abs(one.to_dense() - two.to_dense()).max() <= 1e-10 * np.abs(L).max()
    assert np.array_equal(one.core, robust_tucker(X, 2, rng=3).core)


def test_nothing_of_the_size_of_the_tensor_is_formed():
    X, _ = tucker((120, 110, 100), (2, 2, 2))
    robust_tucker(X, 2, rng=0)
    tracemalloc.start()
    robust_tucker(X, 2, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    block = math.prod(3 * 2 * math.log(d) for d in X.shape) * 8
    assert peak < X.nbytes / 3
    assert peak < 20 * block


def test_zero_and_full_rank():
    zero = robust_tucker(np.zeros((5, 6, 7)), 2, rng=0)
    assert zero.converged
    assert not zero.to_dense().any()
    X = np.random.default_rng(0).standard_normal((4, 3, 5))
    full = robust_tucker(X, (4, 3, 5), rng=0)
    assert np.abs(full.to_dense() - X).max() <= 1e-10


def test_failures_are_reported():
    X, L = tucker((40, 40, 40), (3, 3, 3), outliers=0.9, size=10.0)
    with pytest.warns(ConvergenceWarning, match=r"^rnla\.tensors\.robust_tucker: .*entries are explained"):
        result = robust_tucker(X, 3, rng=0)
    assert not result.converged
    assert error(result, L) > 1e-2
    assert "NOT converged" in repr(result)
    with pytest.warns(ConvergenceWarning, match="not met in 2 iterations"):
        assert robust_tucker(X, 3, max_iter=2, rng=0).n_iter == 2


def test_callback():
    X, _ = tucker((20, 20, 20), (1, 1, 1))
    seen = []
    result = robust_tucker(X, 1, callback=seen.append, rng=0)
    assert [record.error for record in seen] == [record.error for record in result.history]

    def stop(record):
        raise StopIteration

    with pytest.warns(ConvergenceWarning, match="stopped by the callback"):
        assert robust_tucker(X, 1, callback=stop, rng=0).n_iter == 1


GOOD = np.ones((4, 5, 6))


@pytest.mark.parametrize(
    ("X", "ranks", "options", "kind", "message"),
    [
        (GOOD.tolist(), 1, {}, TypeError, "X must be an array"),
        (GOOD.astype(int), 1, {}, TypeError, "X must be .* convert it to float32"),
        (np.ones(4), 1, {}, ValueError, "X must have two modes"),
        (np.ones((4, 0)), 1, {}, ValueError, "X must have two modes"),
        (GOOD * np.nan, 1, {}, ValueError, "X must be finite"),
        (GOOD, (1, 1), {}, ValueError, "ranks must be one number or one for each of 3 modes"),
        (GOOD, 5, {}, ValueError, "ranks must be at most"),
        (GOOD, (1, 1, 2), {}, ValueError, "ranks must be at most"),
        (GOOD, 0, {}, ValueError, "ranks must be"),
        (GOOD, 1, {"sampling": "all"}, ValueError, "sampling must be"),
        (GOOD, 1, {"tol": -1.0}, ValueError, "tol must be"),
        (GOOD, 1, {"decay": 1.0}, ValueError, "decay must be"),
        (GOOD, 1, {"max_iter": 0}, ValueError, "max_iter must be"),
        (GOOD, 1, {"rng": "x"}, TypeError, "rng must be"),
    ],
)
def test_arguments_that_are_refused(X, ranks, options, kind, message):
    with pytest.raises(kind, match=rf"^rnla\.tensors\.robust_tucker: {message}"):
        robust_tucker(X, ranks, **options)


def test_public_names():
    assert rnla.tensors.__all__ == ["RobustTuckerResult", "robust_tucker"]
