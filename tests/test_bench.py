"""Tests of the benchmark: a wrong error column or a wrong ratio would make every figure worthless."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from bench import accuracy, figures, harness
from rnla import testing

ROOT = Path(__file__).parent.parent


def truncated(A, k):
    U, S, Vh = np.linalg.svd(A, full_matrices=False)
    return U[:, :k], S[:k], Vh[:k]


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array])
def test_errors_agree_with_their_definitions(convert):
    k, sigma = 4, testing.spectrum("poly1", 20)
    A = testing.matrix_with_spectrum(30, 20, sigma, rng=0)
    U, S, Vh = truncated(A + 1e-3 * testing.hilbert(30, 20), k)
    found = accuracy.errors(convert(A), U, S, Vh, sigma[:k], accuracy.norm_squared(convert(A)))
    best = np.linalg.norm(sigma[k:])
    rounding = 100 * np.finfo(float).eps
    assert found.sigma == pytest.approx(np.max(np.abs(S - sigma[:k]) / sigma[:k]), rel=rounding / found.sigma)
    excess = np.linalg.norm(A - (U * S) @ Vh) / best - 1
    assert abs(found.excess - excess) <= rounding * (1 / best) ** 2
    right = np.linalg.norm(A @ Vh.T - U * S, axis=0) / S
    left = np.linalg.norm(A.T @ U - Vh.T * S, axis=0) / S
    assert abs(found.residual - max(right.max(), left.max())) <= rounding
    assert found.sigma > found.floors[0]


def test_exact_result_is_within_the_floors():
    sigma = testing.spectrum("slow", 40)
    for dtype in (np.float32, np.float64):
        A = testing.matrix_with_spectrum(60, 40, sigma, rng=1, dtype=dtype)
        found = accuracy.errors(A, *truncated(A, 5), sigma[:5], accuracy.norm_squared(A))
        assert found.sigma <= found.floors[0]
        assert abs(found.excess) <= found.floors[1]
        assert found.no_larger_than(found)


def test_a_worse_result_is_larger():
    sigma = testing.spectrum("slow", 40)
    A = testing.matrix_with_spectrum(60, 40, sigma, rng=1)
    norm_sq = accuracy.norm_squared(A)
    U, S, Vh = truncated(A, 5)
    exact = accuracy.errors(A, U, S, Vh, sigma[:5], norm_sq)
    wrong_values = accuracy.errors(A, U, S * 1.01, Vh, sigma[:5], norm_sq)
    wrong_vectors = accuracy.errors(A, U[:, [1, 0, 2, 3, 4]], S, Vh, sigma[:5], norm_sq)
    assert exact.no_larger_than(wrong_values)
    assert not wrong_values.no_larger_than(exact)
    assert not wrong_vectors.no_larger_than(exact)


def test_a_result_of_the_wrong_size_or_with_nan_is_refused():
    A = np.eye(6)
    U, S, Vh = truncated(A, 3)
    with pytest.raises(ValueError, match="cannot be compared"):
        accuracy.errors(A, U[:, :2], S[:2], Vh[:2], np.ones(3), 6.0)
    with pytest.raises(ValueError, match="cannot be compared"):
        accuracy.errors(A, U, S * np.nan, Vh, np.ones(3), 6.0)


def test_race_takes_turns_and_reports_medians():
    now = [0.0]
    ours, theirs = itertools.cycle([1.0, 2.0, 3.0]), itertools.repeat(4.0)
    order = []

    def take(name, durations):
        order.append(name)
        now[0] += next(durations)

    result = harness.race(
        lambda: take("ours", ours), lambda: take("theirs", theirs), repeats=3, budget=60.0, clock=lambda: now[0]
    )
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert result == {"seconds_ours": 2.0, "seconds_peer": 4.0, "ratio": 2.0, "repeats": 3}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_peak_memory_sees_what_is_freed_again():
    size = 64 * 2**20
    result, rise = harness.peak_memory(lambda: float(np.ones(size // 8).sum()))
    assert result == size // 8
    assert 0.9 * size <= rise <= 1.5 * size


def test_a_figure_that_was_not_reached_is_not_met():
    def row(ratio, **errors):
        return {
            "kind": "dense",
            "peer": "scikit-learn",
            "mode": "equal",
            "ratio": ratio,
            "workload": "w",
            "dtype": "d",
        } | errors

    rows = [row(5.0, no_larger_error=True), row(None), row(2.0, no_larger_error=True)]
    (verdict,) = figures.verdicts(rows)
    assert (verdict["met"], verdict["cells"], verdict["worst"]) == (1, 3, None)


def test_the_benchmark_runs(tmp_path):
    results = tmp_path / "svd.json"
    command = [sys.executable, "-m", "bench", "svd", "--tiny", "--only", "120x120 1/i float64", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "| 120x120 1/i | float64 | bare products" in done.stdout
    rows = json.loads(results.read_text())["tables"]["svd against peers"]
    bare = rows[0]
    assert bare["ratio"] > 0
    assert bare["passes_ours"] >= 2
    assert bare["sigma_ours"] <= 1e-2  # the default tolerance bounds the residual, and the error is its square
