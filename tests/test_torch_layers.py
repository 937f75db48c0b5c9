"""Layers as the optimizers on PyTorch see them: factors, blocks, kinds of Fisher matrix, what is left out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import states, statistics, train, weights
from torch import nn

import rnla.optim as optim
import rnla.torch as rt
from rnla.torch._collect import Collector


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@st.composite
def convolutions(draw):
    """Options of a convolution with 4 input and 6 output channels, and the size of its images."""
    d, one = draw(st.integers(1, 2)), st.integers(1, 3)
    kernel, stride, dilation = (tuple(draw(one) for _ in range(d)) for _ in range(3))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"])))
    options = {
        "kernel_size": kernel, "stride": 1 if padding == "same" else stride, "dilation": dilation, "padding": padding,
        "padding_mode": mode, "groups": draw(st.sampled_from([1, 2])), "bias": draw(st.booleans()),
    }  # fmt: skip
    return options, [draw(st.integers(7, 9)) for _ in range(d)]


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@given(convolutions(), st.integers(0, 2**16))
def test_gradient_of_a_convolution_is_that_of_its_patches(convolution, seed):
    options, size = convolution
    torch.manual_seed(seed)
    model = (nn.Conv1d if len(size) == 1 else nn.Conv2d)(4, 6, **options).double()
    x = torch.randn(5, 4, *size).double()
    weight = torch.randn_like(model(x))
    collector, found = statistics(model, x, lambda z: (z * weight).sum(), loss_average=None)
    assert len(found) == options["groups"]
    for block_name, part in found.items():
        a, h = part.rows
        block = collector.blocks[block_name]
        gradient = torch.einsum("nrq,nrp->qp", h, a)
        assert (gradient - block.gradient()).abs().max() <= 1e-10 * (1 + gradient.abs().max())
        # Without rows, patches are taken a few images at a time.
        lean = statistics(model, x, lambda z: (z * weight).sum(), False, loss_average=None, patch_bytes=5000)[1]
        assert (lean[block_name].A - part.A).abs().max() <= 1e-12 * part.A.abs().max()
        assert (lean[block_name].G - part.G).abs().max() <= 1e-12 * part.G.abs().max()
        assert torch.allclose(part.A, torch.einsum("nri,nrj->ij", a, a) / (a.shape[0] * a.shape[1]))


def test_groups_are_layers_of_their_own():
    grouped = nn.Conv2d(4, 6, 3, groups=2).double()
    parts = [nn.Conv2d(2, 3, 3).double() for _ in range(2)]
    for i, part in enumerate(parts):
        part.weight.data.copy_(grouped.weight[3 * i : 3 * i + 3])
        part.bias.data.copy_(grouped.bias[3 * i : 3 * i + 3])
    x = torch.randn(7, 4, 5, 5).double()
    target = torch.randn(7, 6, 3, 3).double()
    options = {"lr": 0.1, "momentum": 0.5, "rms_clip": 0.01}
    opts = [rt.KFAC(model, **options) for model in (grouped, *parts)]
    for _ in range(2):
        for opt in opts:
            opt.zero_grad()
        (grouped(x) - target).square().mean(dim=0).sum().backward()
        outputs = [part(x[:, 2 * i : 2 * i + 2]) for i, part in enumerate(parts)]
        (torch.cat(outputs, dim=1) - target).square().mean(dim=0).sum().backward()
        for opt in opts:
            opt.step()
    assert torch.allclose(grouped.weight, torch.cat([part.weight for part in parts]), atol=1e-12)
    assert torch.allclose(grouped.bias, torch.cat([part.bias for part in parts]), atol=1e-12)


@pytest.mark.parametrize("c", [3.0, 1e-2])
def test_output_factor_scales_with_the_square_of_the_loss(c):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(18, 4)).double()
    x = torch.randn(6, 2, 8).double()
    one, many = (statistics(model, x, lambda z, s=s: s * z.square().mean())[1] for s in (1.0, c))
    for name, part in one.items():
        assert torch.allclose(many[name].G, c * c * part.G, rtol=1e-9)
        assert part.A is None or torch.allclose(many[name].A, part.A)


@pytest.mark.parametrize(
    ("average", "terms"), [("batch", 5), ("batch+sequence", 35), (None, 1), (9, 9), (lambda n: 2 * n, 10)]
)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_of_a_layer_at_many_positions(average, terms, sharing):
    model = nn.Linear(3, 2).double()
    x, weight = torch.randn(5, 7, 3).double(), torch.randn(5, 7, 2).double()
    part = statistics(model, x, lambda z: (z * weight).sum(), loss_average=average, weight_sharing=sharing)[1][""]
    assert torch.allclose(part.A, optim.input_factor(x, bias=True, approx=sharing))
    assert torch.allclose(part.G, optim.output_factor(weight, terms=terms, approx=sharing))
    # The length may come first as well.
    turned = statistics(
        model, x.mT.permute(2, 0, 1), lambda z: (z * weight.transpose(0, 1)).sum(), loss_average=average,
        weight_sharing=sharing, batch_dim=1,
    )[1][""]  # fmt: skip
    assert torch.allclose(part.A, turned.A)
    assert torch.allclose(part.G, turned.G)


@pytest.mark.parametrize("options", [{}, {"weight_sharing": "reduce"}, {"ekfac": True}])
def test_calls_of_a_shared_module_are_positions(options):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3, dtype=torch.float64)
            self.other = copy.deepcopy(self.layer)
            self.other.weight, self.other.bias = self.layer.weight, self.layer.bias

        def forward(self, x):
            return self.layer(x[:, 0]) + self.other(x[:, 1]) ** 2 + self.layer(x[:, 2])

    class Once(Twice):
        def forward(self, x):
            # The order in which calls are seen: backwards.
            z = self.layer(x)
            return z[:, 0] + z[:, 1] ** 2 + z[:, 2]

    x, results = torch.randn(8, 3, 4).double(), []
    for kind in (Twice, Once):
        torch.manual_seed(3)
        model = kind()
        opt = rt.KFAC(model, lr=0.1, factor_every=1, inverse_every=3, **options)
        for _ in range(5):
            opt.zero_grad()
            model(x).square().sum(dim=1).mean().backward()
            opt.step()
        results.append(weights(model))
    assert torch.allclose(*results, atol=1e-10)


def test_embedding_is_a_linear_layer_of_unit_vectors():
    table = nn.Embedding(7, 3, dtype=torch.float64, padding_idx=2)
    dense = nn.Linear(7, 3, bias=False, dtype=torch.float64)
    dense.weight.data.copy_(table.weight.T)
    tokens = torch.tensor([[0, 1, 2, 2], [3, 1, 1, 4], [0, 6, 5, 2]])  # nothing but the padding is unseen
    hot = F.one_hot(tokens, 7).double() * (tokens != 2)[..., None]
    weight = torch.randn(3, 4, 3).double() * (tokens != 2)[..., None]
    opts = [rt.KFAC(model, lr=0.1, damping_mode="pi", rms_clip=None) for model in (table, dense)]
    for _ in range(3):
        for model, opt, x in ((table, opts[0], tokens), (dense, opts[1], hot)):
            opt.zero_grad()
            (model(x) * weight).sum(dim=(1, 2)).square().mean().backward()
            opt.step()
    assert torch.allclose(table.weight, dense.weight.T, atol=1e-9)
    assert states(opts[0])[""].A.matrix.shape == (7,)
    sparse = nn.Embedding(7, 3, dtype=torch.float64, sparse=True)
    opt = rt.KFAC(sparse, momentum=0.9)
    sparse(tokens).square().mean().backward()
    opt.step()
    assert torch.isfinite(sparse.weight).all()


NORMS = {
    "layer": (lambda: nn.LayerNorm(4), (6, 5, 4)), "layer2": (lambda: nn.LayerNorm((3, 4), bias=False), (6, 3, 4)),
    "group": (lambda: nn.GroupNorm(2, 4), (6, 4, 5)), "rms": (lambda: nn.RMSNorm(4), (6, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_blocks_of_normalisation_are_those_of_single_examples(name):
    make, shape = NORMS[name]
    model, x = make().double(), torch.randn(*shape).double()
    weight = torch.randn(*shape).double()
    found = statistics(model, x, lambda z: (z * weight).sum() / 6, keep=False)[1][""]
    total = 0.0
    for i in range(6):
        grads = torch.autograd.grad((model(x[i : i + 1]) * weight[i : i + 1]).sum(), list(model.parameters()))
        g = torch.stack([grad.reshape(-1) for grad in grads], dim=1)
        total = total + g[:, :, None] * g[:, None, :] / 6
    assert torch.allclose(found.G, total, atol=1e-10)
    opt = rt.KFAC(model, lr=1.0, damping_mode="pi", damping=0.1, rms_clip=None)
    before = torch.stack([p.detach().reshape(-1).clone() for p in model.parameters()], dim=1)
    opt.zero_grad()
    ((model(x) * weight).sum() / 6).backward()
    gradient = torch.stack([p.grad.reshape(-1) for p in model.parameters()], dim=1)
    opt.step()
    after = torch.stack([p.detach().reshape(-1) for p in model.parameters()], dim=1)
    exact = torch.linalg.solve(total + 0.1 * torch.eye(total.shape[1]).double(), gradient[:, :, None])[:, :, 0]
    assert torch.allclose(before - after, exact, atol=1e-9)


def test_frozen_batch_norm_uses_its_running_moments():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    model[0].eval()
    model[0].running_mean += 1
    x = torch.randn(8, 3).double()
    found = statistics(model, x, lambda z: z.square().mean(), keep=False)[1]["0"]
    h = torch.autograd.grad(model(x).square().mean(), model[0].bias)[0]
    assert found.G.shape == (3, 2, 2)
    assert torch.isfinite(h).all()
    model.eval()
    assert not statistics(model, x, lambda z: z.square().mean())[1]


def test_large_factors_are_diagonal_and_positions_can_be_drawn():
    model = nn.Linear(6, 3).double()
    x = torch.randn(9, 6).double()
    options = {"lr": 0.1, "max_factor_dim": 5}
    opt = rt.KFAC(model, **options)
    train(model, opt, 2, (x, torch.arange(9) % 3))
    state = states(opt)[""]
    assert state.A.matrix.shape == (7,)
    assert state.G.matrix.shape == (3, 3)
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    x = torch.randn(200, 2, 8, 8).double()
    weight = torch.randn(200, 3, 8, 8).double()
    whole, part = (
        statistics(conv, x, lambda z: (z * weight).sum(), max_positions=size, seed=0)[1][""] for size in (None, 16)
    )
    # A quarter of the positions, 3200 in all: an error of 1 / sqrt(3200) in each entry.
    for exact, drawn in ((whole.A, part.A), (whole.G, part.G)):
        assert 0 < (exact - drawn).norm() <= 0.15 * exact.norm()


# ---- kinds of Fisher matrix


def test_sampled_targets_tend_to_the_exact_fisher_matrix():
    model = nn.Linear(4, 3).double()
    x = torch.randn(1, 4).double().repeat(2000, 1)
    found = {}
    for fisher in ("mc", "type2"):
        collector = Collector(model, fisher=fisher, seed=0)
        collector.arm()
        z = model(x)
        collector.sample_fisher(z)
        F.cross_entropy(z, torch.zeros(2000, dtype=torch.int64)).backward()
        found[fisher] = collector.take()[""]
        assert model.weight.grad is not None
    p = z[0].detach().softmax(0)
    exact = torch.diag(p) - torch.outer(p, p)
    assert torch.allclose(found["type2"].G, exact, atol=1e-12)
    assert torch.allclose(found["type2"].A, found["mc"].A)
    assert (found["mc"].G - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("fisher", ["mc", "type2"])
def test_sampling_leaves_gradients_alone_and_is_asked_for(fisher):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
    opt = rt.KFAC(model, fisher=fisher, factor_every=2, rng=0)
    x, y = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    z = model(x)
    F.cross_entropy(z, y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    opt.zero_grad()
    z = model(x)
    opt.sample_fisher(z)
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(z, y).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    opt.step()
    assert all(int(state.A.count) == 1 for state in states(opt).values())
    z = model(x)
    opt.sample_fisher(z)  # not due
    F.cross_entropy(z, y).backward()
    opt.step()
    F.cross_entropy(model(x), y).backward()
    with pytest.warns(UserWarning, match="call sample_fisher before the backward pass"):
        opt.step()
    assert all(int(state.A.count) == 1 for state in states(opt).values())


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.fc = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.partly = nn.Linear(4, 3)
        self.partly.bias.requires_grad_(False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        x = self.normed(self.fc(x) * self.scale)
        return self.partly(self.frozen(self.attention(x, x, x)[0])).mean(dim=1)


def test_what_is_not_supported_is_named_and_takes_plain_steps():
    with pytest.warns(UserWarning, match=r"rnla\.torch\.KFAC: these parameters keep their gradients.*scale.*attention"):
        opt = rt.KFAC(Odd(), lr=0.1)
    model = opt._engine.model
    assert set(opt._engine.curvatures) == {"fc", "unused", "partly"}
    kept = {
        "scale",
        "normed.bias",
        "normed.parametrizations.weight.original0",
        "normed.parametrizations.weight.original1",
    }
    assert kept | {
        f"attention.{n}" for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    } == set(opt.unsupported)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, opt, 1, (torch.randn(6, 5, 4), torch.arange(6) % 3))
    after = dict(model.named_parameters())
    for name in kept:
        assert torch.allclose(after[name], before[name] - 0.1 * after[name].grad, atol=1e-7)
    for name in ("unused.weight", "frozen.weight", "partly.bias"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["partly.weight"], before["partly.weight"])
    assert states(opt)["unused"].A.matrix is None
    quiet = rt.KFAC(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)), norm_layers="skip", skip=["0"])
    assert not quiet.unsupported
    assert set(quiet._engine.curvatures) == {"2"}
    typed = rt.KFAC(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), skip=[nn.Linear])
    assert set(typed._engine.curvatures) == {"1"}


def test_weights_of_two_kinds_of_module_have_no_block():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

    with pytest.warns(UserWarning, match=r"table\.weight"):
        opt = rt.KFAC(Tied())
    assert not opt._engine.curvatures


class Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Named(nn.Conv2d):
    """A subclass that computes what its parent does."""


def test_layers_that_compute_something_of_their_own_have_no_block():
    model = nn.Sequential(Same(2, 3, 3), Standardised(3, 3, 1), ChannelNorm(3), Named(3, 3, 1))
    with pytest.warns(UserWarning, match=r"0\.weight, 0\.bias, 1\.weight, 1\.bias, 2\.weight, 2\.bias"):
        opt = rt.KFAC(model)
    assert set(opt._engine.curvatures) == {"3"}
    model(torch.randn(4, 2, 2, 2)).square().mean().backward()
    opt.step()
