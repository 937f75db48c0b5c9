"""Zolotarev's nodes have the error they promise, on every interval that double precision resolves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnla


def relative_error(tau, w, m, M):
    x = np.geomspace(m, M, 4001)
    return np.abs(np.sqrt(x) * (w / (x[:, None] + tau)).sum(axis=1) - 1).max()


@given(decades=st.floats(0.1, 16), n_nodes=st.integers(2, 80), scale=st.floats(-8, 8))
def test_error_is_that_of_zolotarev(decades, n_nodes, scale):
    m = 10.0**scale
    M = m * 10.0**decades
    tau, w = rnla.zolotarev_nodes(m, M, n_nodes=n_nodes)
    assert (tau > 0).all()
    assert (np.diff(tau) > 0).all()
    assert (w > 0).all()
    assert np.abs(tau * tau[::-1] / (m * M) - 1).max() <= 1e-12
    bound = 4 * math.exp(-(math.pi**2) * n_nodes / math.log(4 * math.sqrt(M / m)))
    assert relative_error(tau, w, m, M) <= 1.05 * bound + 2e-14  # the rounding of the sum over the nodes


@given(decades=st.floats(0, 16), digits=st.floats(1, 14))
def test_number_of_nodes_follows_from_the_tolerance(decades, digits):
    M, tol = 10.0**decades, 10.0**-digits
    tau, w = rnla.zolotarev_nodes(1.0, M, tol=tol)
    assert relative_error(tau, w, 1.0, M) <= 1.01 * tol + 2e-14
    assert rnla.correction_rank(M, 3, tol) == 3 * len(tau)


def test_values_known_from_elsewhere():
    tau, w = rnla.zolotarev_nodes(1, 100, n_nodes=4)
    assert tau == pytest.approx([0.229202847673, 3.56434655399, 28.0556333356, 436.294753818], rel=1e-11)
    # The published weights are not balanced: they differ by one factor.
    assert w / w[0] == pytest.approx(np.array([0.652857499833, 1.27880380808, 3.58776507476, 28.4838302168])
                                     / 0.652857499833, rel=1e-10)  # fmt: skip
    assert relative_error(tau, w, 1, 100) == pytest.approx(8.93e-5, rel=1e-2)
    tau, w = rnla.zolotarev_nodes(1, 1e6, n_nodes=8)
    assert tau[[0, 7]] == pytest.approx([0.293664560981, 3405245.75611], rel=1e-11)
    assert relative_error(tau, w, 1, 1e6) == pytest.approx(2.94e-4, rel=1e-2)
    assert rnla.adi_shifts(1, 10, 3) == pytest.approx([8.37890359, 3.16227766, 1.19347357], rel=1e-8)


@pytest.mark.parametrize("kappa", [1e2, 1e4, 1e6, 1e8, 1e12, 1e16, 1e24])
def test_no_digits_are_lost_to_the_condition(kappa):
    tau, w = rnla.zolotarev_nodes(1.0, kappa, tol=1e-15)
    assert relative_error(tau, w, 1.0, kappa) <= 5e-14


def test_an_interval_may_be_a_point():
    tau, w = rnla.zolotarev_nodes(2.0, 2.0, n_nodes=3)
    assert relative_error(tau, w, 2.0, 2.0) <= 1e-5
    assert rnla.adi_shifts(2.0, 2.0, 3) == pytest.approx([2.0] * 3, rel=1e-6)


@given(decades=st.floats(0.1, 8), n=st.integers(1, 12))
def test_adi_shifts_are_within_the_interval(decades, n):
    shifts = rnla.adi_shifts(1.0, 10.0**decades, n)
    assert (np.diff(shifts) < 0).all()
    assert shifts.min() >= 1 - 1e-12
    assert shifts.max() <= 10.0**decades * (1 + 1e-12)


def test_decay_bound():
    assert rnla.decay_bound(1e6, 2, 0) == 1
    assert (np.diff(rnla.decay_bound(1e6, 1, np.arange(1, 9))) <= 0).all()
    assert rnla.decay_bound(1e6, 1, rnla.correction_rank(1e6, 1, 1e-8)) <= 1e-8


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: rnla.zolotarev_nodes(0, 1, n_nodes=2), ValueError, r"^rnla\.zolotarev_nodes: m and M must satisfy"),
        (lambda: rnla.zolotarev_nodes(2, 1, n_nodes=2), ValueError, "m and M must satisfy"),
        (lambda: rnla.zolotarev_nodes("1", 1, n_nodes=2), TypeError, "m must be a real number"),
        (lambda: rnla.zolotarev_nodes(1, 2), ValueError, "n_nodes or tol must be given"),
        (lambda: rnla.zolotarev_nodes(1, 2, n_nodes=2, tol=0.1), ValueError, "n_nodes or tol must be given"),
        (lambda: rnla.zolotarev_nodes(1, 2, tol=0.0), ValueError, "tol must be"),
        (lambda: rnla.zolotarev_nodes(1, 2, n_nodes=0), ValueError, "n_nodes must be at least 1"),
        (lambda: rnla.adi_shifts(1, 2, 1.5), TypeError, "n must be an integer"),
        (lambda: rnla.correction_rank(0.5, 1, 0.1), ValueError, "kappa must be"),
        (lambda: rnla.correction_rank(2, -1, 0.1), ValueError, "k must be at least 0"),
        (lambda: rnla.decay_bound(np.inf, 1, 1), ValueError, "kappa must be"),
    ],
)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
