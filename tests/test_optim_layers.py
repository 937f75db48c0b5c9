"""Factors of many layers together: the same as one by one, whatever is wrong with some of them."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnla.optim as optim
from rnla._backend import to_host
from rnla._psd_stack import stack_pairs
from rnla.optim import _inverses
from rnla.optim._inverses import damp_factors

METHODS = ["auto", "exact", "eigh", "cholesky", "rsvd", "sre", "nystrom"]


def semidefinite(d, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    M = (Q * rng.uniform(0.5, 2.0) / np.arange(1, d + 1.0) ** 1.5) @ Q.T
    return ((M + M.T) / 2).astype(dtype)


def library(name):
    if name == "torch":
        import torch

        return torch.asarray
    if name == "strict":
        import array_api_strict

        return array_api_strict.asarray
    return np.asarray


NASTY = ("fine", "fine", "fine", "nan", "infinity", "zero", "diagonal", "indefinite")


@st.composite
def problems(draw):
    """Return factors of few different sizes, some of them bad."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 7, 60]), min_size=1, max_size=7))
    factors = []
    for i, d in enumerate(sizes):
        M, kind = semidefinite(d, i), draw(st.sampled_from(NASTY))
        if kind in ("nan", "infinity"):
            M[0, -1] = np.nan if kind == "nan" else np.inf
        elif kind == "zero":
            M *= 0
        elif kind == "indefinite":
            M = M - 2 * np.eye(d) * (np.arange(d) == d - 1)
        factors.append(M.diagonal().copy() if kind == "diagonal" else M)
    return factors


@settings(max_examples=40)
@given(problems(), st.sampled_from(METHODS), st.sampled_from(["numpy", "torch", "strict"]), st.booleans())
def test_factors_together_are_what_they_are_alone(factors, method, name, warm_start):
    xp, count = library(name), len(factors)
    factors = [xp(M) for M in factors]
    options = {"method": method, "rank": 5, "oversampling": 4}
    warms = [None] * count
    if warm_start:
        warms = [optim.factor_inverse(M, **options, rng=i) for i, M in enumerate(factors)]
    together = optim.factor_inverses(factors, rngs=range(50, 50 + count), warms=warms, **options)
    for i, (M, inv) in enumerate(zip(factors, together, strict=True)):
        alone = optim.factor_inverse(M, rng=50 + i, warm=warms[i], **options)
        assert (inv.kind, inv.rank, inv.outcome) == (alone.kind, alone.rank, alone.outcome)
        assert inv.tail_rule == alone.tail_rule
        X = xp(np.eye(inv.dim))
        bare = np.isfinite(np.asarray(alone.lam)).all()
        if bare:
            difference = np.asarray(inv.matmul(X)) - np.asarray(alone.matmul(X))
            assert np.abs(difference).max(initial=0) <= 1e-9
            assert abs(float(inv.lmax) - float(alone.lmax)) <= 1e-9
    damped = damp_factors(together, [0.1] * count)
    for inv, inverse in zip(together, damped, strict=True):
        X = np.eye(inv.dim)
        product = np.asarray(inverse.apply(xp(X)))
        assert np.abs(product - np.asarray(inv.damp(0.1).apply(xp(X)))).max(initial=0) <= 1e-9


def test_one_decomposition_serves_all_factors_of_a_size(monkeypatch):
    calls = []

    def counted(M, *args, **kwargs):
        calls.append(M.shape)
        return stack_pairs(M, *args, **kwargs)

    monkeypatch.setattr(_inverses, "stack_pairs", counted)
    sizes = (60, 50, 60, 50, 60, 40)
    factors = [semidefinite(d, i) for i, d in enumerate(sizes)]
    optim.factor_inverses(factors, method="nystrom", rank=8)
    assert sorted(calls) == [(2, 50, 50), (3, 60, 60)]
    calls.clear()
    monkeypatch.setattr(_inverses, "STACK_BYTES", 2 * 8 * 60**2)
    optim.factor_inverses([semidefinite(60, i) for i in range(5)], method="sre", rank=8)
    assert calls == [(2, 60, 60), (2, 60, 60)]  # what is left over is one matrix, treated alone


@pytest.mark.parametrize("method", ["rsvd", "sre", "nystrom"])
def test_blocks_that_rounding_spoils_are_treated_alone(method):
    # After two products in single precision, columns of the fast spectrum differ by 1e-16.
    fast = semidefinite(80, 0, np.float32) @ np.diag(np.float32(10.0) ** -np.arange(0, 80.0)).astype(np.float32)
    factors = [(fast @ fast.T).astype(np.float32), semidefinite(80, 1, np.float32)]
    for inv, M in zip(optim.factor_inverses(factors, method=method, rank=20, rngs=[0, 1]), factors, strict=True):
        alone = optim.factor_inverse(M, method=method, rank=20, rng=0)
        assert np.linalg.norm(inv.dense() - M) <= 1.1 * np.linalg.norm(alone.dense() - M) + 1e-5
        assert np.abs(inv.U.T @ inv.U - np.eye(20)).max() <= 1e-5


@pytest.mark.parametrize(
    "place", ["numpy", "strict-device1", "torch", pytest.param("cupy", marks=pytest.mark.gpu)], indirect=True
)
@pytest.mark.parametrize("method", ["exact", "eigh", "rsvd", "sre", "nystrom"])
def test_stacks_stay_where_they_are(place, method):
    xp, device = place
    factors = [semidefinite(60, i) for i in range(3)]
    found = optim.factor_inverses([xp.asarray(M, device=device) for M in factors], method=method, rank=8, rngs=range(3))
    expected = optim.factor_inverses(factors, method=method, rank=8, rngs=range(3))
    for inv, other, damped in zip(found, expected, damp_factors(found, [0.1] * 3), strict=True):
        assert array_api_compat.device(damped.apply(xp.eye(60, device=device, dtype=xp.float64))) == inv.lam.device
        assert np.abs(to_host(inv.dense()) - other.dense()).max() <= 1e-10


def test_a_failing_stack_is_taken_apart(monkeypatch):
    def broken(*args, **kwargs):
        raise np.linalg.LinAlgError

    for name in ("stack_pairs", "largest_eigenpair", "eigenpairs"):
        monkeypatch.setattr(_inverses, name, broken)
    factors = [semidefinite(60, i) for i in range(3)]
    for method in METHODS:
        for inv in optim.factor_inverses(factors, method=method, rank=8):
            assert inv.outcome == "ok"


@pytest.mark.parametrize(("method", "mode", "ekfac"), [
    ("exact", "relative", False), ("nystrom", "pi", False), ("exact", "joint", False), ("exact", "relative", True),
    ("auto", "pi-fro", False), ("brand", "relative", False),
])  # fmt: skip
def test_layers_together_are_what_they_are_alone(method, mode, ekfac):
    config = optim.LayerConfig(method=method, damping_mode=mode, ekfac=ekfac, rank=6)
    rng, states = np.random.default_rng(0), []
    for p, q in ((40, 40), (40, 12), (12, 5)):
        state = optim.LayerState()
        for _ in range(3):
            state = state.add(rng.standard_normal((9, p)), rng.standard_normal((9, q)), config, terms=9)
        states.append(state)
    states.append(optim.LayerState())
    together = optim.refresh_layers(states, [config] * 4, [0.1] * 4, rngs=[0, 1, 2, 3])
    assert together[-1] == states[-1]
    for i, (state, found) in enumerate(zip(states[:-1], together, strict=False)):
        V = np.ones((state.G_inv or found.G_inv).dim)[:, None] * np.arange(1.0, found.A_inv.dim + 1)
        alone = state.refresh(config, 0.1, rng=i)
        assert np.allclose(found.direction(V, config, 0.1), alone.direction(V, config, 0.1), rtol=1e-9, atol=1e-12)


def test_a_factor_that_cannot_be_inverted_keeps_what_was_there(monkeypatch):
    from rnla.optim import _representation

    def broken(*args, **kwargs):
        raise np.linalg.LinAlgError

    config, M = optim.LayerConfig(), semidefinite(30, 0)
    state = optim.LayerState().add_factors(M, np.ones(4), config)
    known = state.refresh(config, 0.1)
    for name in ("spd_inverse", "eigenpairs"):
        monkeypatch.setattr(_representation, name, broken)
    found = known.add_factors(2 * M, np.ones(4), config).refresh(config, 0.1)
    assert (found.A_inv.outcome, found.G_inv.outcome) == ("kept", "ok")
    assert found.damped[0] is known.damped[0]
    first = state.refresh(config, 0.1)
    assert (first.A_inv.outcome, first.G_inv.outcome) == ("identity", "ok")
    V = np.ones((4, 30))
    assert np.allclose(first.direction(V, config, 0.1), V / 1.1)


def test_wrong_lists_are_named():
    factors = [np.eye(3)] * 2
    with pytest.raises(ValueError, match=r"rnla\.optim\.factor_inverses: rngs must have 2 entries, as factors; got 1"):
        optim.factor_inverses(factors, rngs=[0])
    with pytest.raises(ValueError, match=r"rnla\.optim\.factor_inverses: method must be one of"):
        optim.factor_inverses(factors, method="svd")
    with pytest.raises(TypeError, match="M must be an array"):
        optim.factor_inverses([[[1.0]]])
    assert optim.factor_inverses([]) == []
