"""Tests of the benchmark of optimizers: error columns agree with their definitions, tables hold what they say."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from bench import bench_optim, optim_factors, optim_peers, optim_training, optim_wake
from rnla.optim import factor_inverse
from rnla.torch import AdaptiveKFAC

QUICK = Namespace(quick=True, data=None, seeds=1, width=4, images=100, epochs=1, exact=False)


def table(name):
    title, rows, columns = bench_optim.TABLES[name](QUICK)
    assert title == name
    assert rows
    assert all(isinstance(text(row), str) for row in rows for text in columns.values())
    return rows


def test_error_of_a_direction_agrees_with_its_definition():
    found = optim_factors.synthetic(64)
    exact = [factor_inverse(M, method="eigh") for M in (found.A, found.G)]
    # Rounding of single precision, times the condition number 1 / damping of both factors.
    assert bench_optim.direction_error(found, *exact, 0.1) <= 100 * np.finfo(np.float32).eps / 0.1**2
    A, G, V = (X.double() for X in (found.A, found.G, found.gradient))
    inverses = [M + 0.1 * torch.linalg.eigvalsh(M)[-1] * torch.eye(64) for M in (A, G)]
    expected = torch.linalg.solve(inverses[1], torch.linalg.solve(inverses[0], V.T).T)
    low = [factor_inverse(M, method="sre", rank=10, tail="zero", rng=1) for M in (found.A, found.G)]
    deltas = [0.1 * inv.lmax for inv in low]
    V_low = low[1].solve(low[0].solve(found.gradient.T, deltas[0]).T, deltas[1]).double()
    error = float(torch.linalg.norm(V_low - expected) / torch.linalg.norm(expected))
    assert bench_optim.direction_error(found, *low, 0.1) == pytest.approx(error, rel=1e-3)


def test_made_up_factors_have_the_spectrum_that_is_claimed():
    for M in optim_factors.synthetic(128)[:2]:
        values = torch.linalg.eigvalsh(M)
        count = int((values > values[-1] / 33).sum())
        assert 20 <= count <= 41  # as networks on MNIST have
        assert optim_factors.largest(M) == pytest.approx(float(values[-1]), rel=0.05)


def test_factors_together_are_what_they_are_alone():
    assert all(row["difference"] < 1e-5 for row in table("layers"))


def test_the_bound_of_the_theorem_is_never_passed():
    assert all(row["count"] <= row["bound"] for row in table("theorem"))


def test_online_updates_are_exact_in_a_subspace():
    errors = [row["error"] for row in table("brand") if row["error"]]
    assert len(errors) == 1
    assert max(errors[0]) < 1e-11


def test_a_larger_rank_and_the_trace_tail_err_less():
    rows = table("direction")
    errors = {(row["rank"], row["method"], row["products"], row["tail"]): row["errors"] for row in rows}
    for method, products in {(row["method"], row["products"]) for row in rows}:
        for tail in ("zero", "trace"):
            few, many = (errors[rank, method, products, tail] for rank in (10, 20))
            assert all(b < a for a, b in zip(few, many, strict=True))
        zero, trace = (errors[20, method, products, tail] for tail in ("zero", "trace"))
        assert all(b < a for a, b in zip(zero, trace, strict=True))


@pytest.mark.parametrize("name", ["parts", "spectra", "mnist", "vgg"])
def test_a_quick_table_runs(name):
    for row in table(name):
        assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))


@pytest.mark.filterwarnings("ignore:Found un-supported parameter")  # of a peer, which keeps them as they are
def test_every_contender_takes_steps_on_both_networks():
    for name, optimizer in optim_peers.available(optim_peers.OPTIMIZERS).items():
        model = optim_training.vgg(2, 0)
        opt = optimizer.make(model, factor_every=1, inverse_every=1)
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(2):  # the first one of SOAP only takes in statistics
            torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
            opt.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), name


def test_the_published_network_has_its_number_of_parameters():
    assert sum(p.numel() for p in optim_wake.small_network(28, 0).parameters()) == 4712
    assert optim_wake.small_network(8, 0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_autoencoder_is_a_chain_with_a_linear_code():
    model = optim_wake.autoencoder((64, 30, 10, 30, 64))
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Linear", "Tanh", "Linear", "Linear", "Tanh", "Linear"]
    assert all(int((layer.weight != 0).sum(dim=1).max()) <= 15 for layer in model if hasattr(layer, "weight"))
    AdaptiveKFAC(model, likelihood="logistic", tridiagonal=True)
