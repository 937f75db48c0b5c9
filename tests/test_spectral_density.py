"""Spectral densities are distributions, and count eigenvalues."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES
from test_svd_inputs import KINDS
from test_trace import hermitian

from rnla._spectral_density import spectral_density
from rnla.testing import CountingOperator


@given(n=st.integers(1, 40), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_small_matrices_are_exact(n, dtype, seed):
    values = np.sort(np.random.default_rng(seed).standard_normal(n))
    result = spectral_density(hermitian(values, dtype, rng=seed))
    assert result.method == "exact"
    assert np.abs(result.nodes - values).max() <= 100 * n * np.finfo(dtype).eps
    assert np.allclose(result.weights, 1 / n)
    assert result.count(-100, 100) == pytest.approx(n)


@pytest.mark.parametrize("dtype", ["float64", "complex128", "float32"])
@pytest.mark.parametrize("rank", [0, 6])
def test_the_masses_are_a_distribution_with_the_right_moments(dtype, rank):
    values = np.r_[np.linspace(-1, 1, 194), 8.0 + np.arange(6)]
    A = hermitian(values, dtype)
    result = spectral_density(A, num_probes=4, steps=20, rank=rank, rng=0)
    eps = np.finfo(dtype).eps
    assert np.all(result.weights >= 0)
    assert abs(result.weights.sum() - 1) <= 100 * eps
    assert np.all(np.diff(result.nodes) >= 0)
    spread = values[-1] - values[0]
    assert result.nodes[0] >= -1 - 100 * eps * spread
    assert result.nodes[-1] <= 13 + 100 * eps * spread
    # Moments are Hutchinson estimates: within five standard deviations of them for the eigenvalues not taken out.
    for power in (1, 2):
        rest = values[: 200 - rank] ** power
        allowed = 5 * np.sqrt(2 * np.sum((rest - rest.mean()) ** 2) / 4) / 200 + 1000 * eps
        assert abs(result.nodes**power @ result.weights - np.mean(values**power)) <= allowed
    assert abs(result.count(5, 20) - 6) <= (1e-3 if rank else 5 * np.sqrt(2 * 6 / 4))


def test_a_density_integrates_to_one_and_has_the_right_shape():
    A = np.diag(np.linspace(-1, 1, 2000))
    result = spectral_density(A, num_probes=20, steps=30, rng=0)
    x = np.linspace(-2, 2, 4001)
    density = result.density(x)
    assert density.shape == x.shape
    assert abs(np.trapezoid(density, x) - 1) <= 1e-6
    # Uniform on [-1, 1]: one half; 20 probes of 2000 eigenvalues are off by a few per cent at the resolution asked for.
    inner = result.density(np.linspace(-0.8, 0.8, 50), width=0.2)
    assert np.abs(inner - 0.5).max() <= 0.1
    assert result.density(0.0).shape == ()
    assert "nodes in" in repr(result)


def test_deflated_pairs_that_were_not_found_are_not_masses():
    # A flat spectrum has no leading pairs to be found: nothing is taken out, and nothing is counted twice.
    A = hermitian(np.linspace(1, 2, 200))
    result = spectral_density(A, num_probes=4, steps=20, rank=10, rng=0)
    assert abs(result.weights.sum() - 1) <= 1e-12
    assert len(result.nodes) <= 4 * 20 + 10


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_input_agree(tmp_path, kind):
    A = hermitian(0.8 ** np.arange(70.0), "complex128")
    for options in ({"num_probes": 2, "steps": 8, "rank": 3, "rng": 1}, {}):
        expected, result = (spectral_density(X, **options) for X in (A, KINDS[kind](A, tmp_path)))
        assert np.abs(result.nodes - expected.nodes).max() <= 1e-9
        assert np.abs(result.weights - expected.weights).max() <= 1e-9


@pytest.mark.parametrize("scale", [1e150, 1e-150])
def test_extreme_scales(scale):
    A = hermitian(0.8 ** np.arange(70.0))
    for options in ({"num_probes": 2, "steps": 8, "rank": 3, "rng": 1}, {}):
        expected, result = (spectral_density(X, **options) for X in (A, A * scale))
        assert np.abs(result.nodes / scale - expected.nodes).max() <= 1e-9


def test_constant_spectra_and_zero():
    for value in (0.0, 3.0):
        for n in (1, 10, 1200):
            result = spectral_density(value * np.eye(n), rng=0)
            assert np.abs(result.nodes - value).max() <= 1e-12
            assert np.all(np.isfinite(result.density(np.linspace(-1, 4, 5))))


@pytest.mark.parametrize(("error", "options", "message"), [
    (ValueError, {"num_probes": 0}, "num_probes must be at least 1; got 0."),
    (ValueError, {"steps": 0}, "steps must be at least 1; got 0."),
    (TypeError, {"rank": None}, "rank must be an integer; got NoneType None."),
    (ValueError, {"rank": 31}, "rank must be in 0..30 for A of shape (30, 30); got 31."),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_work(error, options, message):
    A = CountingOperator(np.ones((30, 30)))
    with pytest.raises(error) as caught:
        spectral_density(A, **options)
    assert str(caught.value).startswith(f"rnla.spectral_density: {message}")
    assert A.passes == 0


def test_bad_matrices_are_refused():
    triangular, unknown = np.triu(np.ones((9, 9))), np.full((9, 9), np.nan)
    for A, message in ((np.ones((3, 2)), "square"), (triangular, "Hermitian"), (unknown, "finite")):
        with pytest.raises(ValueError, match=rf"^rnla\.spectral_density: A must be {message}"):
            spectral_density(A)
