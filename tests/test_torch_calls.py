"""Calls of layers as the hooks see them: which ones belong together, with which inputs, in a loss of how many terms."""

import pytest
import torch
from networks import statistics
from torch import nn
from torch.utils.checkpoint import checkpoint

import rnla.optim as optim
import rnla.torch as rt
from rnla.torch._collect import Collector


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def test_terms_of_the_loss_are_counted_at_the_outputs_of_a_convolution():
    model = nn.Conv2d(2, 3, 3, stride=2, bias=False).double()
    x, weight = torch.randn(4, 2, 9, 9).double(), torch.randn(4, 3, 4, 4).double()
    part = statistics(model, x, lambda z: (z * weight).sum() / 64, loss_average="batch+sequence")[1][""]
    rows = weight.movedim(1, -1).reshape(64, 3)
    assert torch.allclose(part.G, rows.T @ rows / 64)


class Flat(nn.Module):
    """Tokens (N, T, d), seen one by one by the first layer."""

    def __init__(self, flat):
        super().__init__()
        self.flat, self.first, self.last = flat, nn.Linear(4, 3).double(), nn.Linear(6 * 3, 2).double()

    def forward(self, x):
        z = self.first(x.reshape(-1, 4) if self.flat else x)
        return self.last(z.reshape(x.shape[0], -1))


def test_the_batch_is_that_of_the_model():
    model, x = Flat(False), torch.randn(5, 6, 4).double()
    flat = Flat(True)
    flat.load_state_dict(model.state_dict())
    found = [statistics(net, x, lambda z: z.square().mean(0).sum())[1] for net in (model, flat)]
    for name in ("first", "last"):
        assert torch.allclose(found[0][name].A, found[1][name].A)
        assert torch.allclose(found[0][name].G, found[1][name].G)
    # Without a call of the model, or where the examples come second, the inputs of the layer tell.
    sizes = []

    def loss_average(n):
        sizes.append(n)
        return n

    collector = Collector(flat, loss_average=loss_average)
    collector.arm()
    flat.first(x.reshape(-1, 4)).sum().backward()
    turned = Collector(model, loss_average=loss_average, batch_dim=1)
    turned.arm()
    model.first(x.transpose(0, 1)).sum().backward()
    # An input without a batch is one example, whatever the first dimension of that of the model.
    one = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(0), nn.Linear(3, 2))
    collector = Collector(one, loss_average=loss_average)
    collector.arm()
    one(torch.randn(2, 2, 2)).sum().backward()
    assert sizes == [30, 5, 1, 1]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = x.clone()
        x += self.layer(x)
        return x


def test_inputs_overwritten_under_autocast_are_those_of_the_call():
    x = torch.randn(16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = statistics(Residual(), x, lambda z: z.float().square().mean(), keep=False)[1]
    exact = optim.input_factor(x, bias=True)
    # Both factors of the product are rounded to 8 bits.
    assert (found["layer"].A - exact).norm() <= 2 * 2.0**-8 * exact.norm()


def test_sampling_sees_all_calls_of_the_model_that_led_to_the_outputs():
    model = nn.Sequential(nn.Linear(4, 3)).double()
    x, others = torch.randn(8, 4).double(), torch.randn(6, 4).double()
    collector = Collector(model, fisher="type2")
    collector.arm()

    def found(z):
        collector.sample_fisher(z, "squared")
        return collector.take()["0"]

    one = found(model(x))
    assert torch.allclose(one.G, torch.eye(3).double())
    twice = found(model(x) + model(x[:, :4]))
    assert twice.count == 16
    assert torch.allclose(twice.G, 2 * one.G)
    z = model(x)
    with torch.no_grad():
        model(others)
    assert torch.allclose(found(z).G, one.G)
    # Outputs of two passes, each with its own number of terms, whatever their order.
    z, other = model(x), model(others)
    collector.sample_fisher(z, "squared")
    both = found(other)
    assert both.count == 14
    assert torch.allclose(both.G, 2 * one.G)
    assert not collector._edges


def test_sampling_through_checkpoints_sees_their_calls_once():
    class Net(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    found = []
    for kind in (nn.Sequential, Net):
        torch.manual_seed(3)
        model = kind(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()
        collector = Collector(model, fisher="type2")
        collector.arm()
        collector.sample_fisher(model(torch.randn(8, 4).double()))
        found.append(collector.take())
    for name, part in found[0].items():
        assert torch.equal(part.G, found[1][name].G)
        assert part.count == found[1][name].count


def test_calls_with_sparse_or_nested_inputs_are_left_out_with_one_warning():
    model, x = nn.Linear(4, 3), torch.randn(6, 4)
    opt = rt.KFAC(model, lr=0.1, factor_every=1)
    with pytest.warns(UserWarning, match=r"the inputs of layer \(model\) are sparse or nested"):
        model(x.to_sparse()).square().mean().backward()
    # No second warning.
    ragged = model(torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged))
    (ragged.values().square().mean() + model(x).mean()).backward()
    opt.step()
    A = opt._engine.curvatures[""].state.A.matrix
    assert torch.allclose(A, optim.input_factor(x, bias=True))


class Chain(nn.Module):
    """A normalisation layer that is called twice."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(self.norm(x).sin())


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    ("make", "shape"), [(lambda: nn.LayerNorm(4), (6, 4)), (lambda: nn.GroupNorm(2, 4), (6, 4, 3, 5))]
)
def test_calls_of_a_normalisation_layer_add_up_in_every_example(make, shape, sharing):
    model, x, weight = Chain(make()).double(), torch.randn(*shape).double(), torch.randn(*shape).double()
    collector = Collector(model, weight_sharing=sharing)
    collector.arm()
    for half in range(2):  # each with a pass of its own
        rows = slice(3 * half, 3 * half + 3)
        ((model(x[rows]) * weight[rows]).sum() / 3).backward()
        assert not collector._open
    found = collector.take()["norm"]
    g = []
    for i in range(6):
        grads = torch.autograd.grad((model(x[i : i + 1]) * weight[i : i + 1]).sum(), list(model.parameters()))
        g.append(torch.stack(grads, dim=1))
    exact = sum(each[:, :, None] * each[:, None, :] for each in g) / 3
    assert torch.allclose(found.G, exact, atol=1e-10)


@pytest.mark.parametrize("fisher", ["mc", "type2"])
def test_outputs_of_shape_n_are_examples(fisher):
    found = []
    for last in (nn.Flatten(), nn.Flatten(0)):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), last).double()
        collector = Collector(model, fisher=fisher)
        collector.arm()
        passes, z = [], model(torch.randn(16, 4).double())
        z.register_hook(passes.append)
        collector.sample_fisher(z, "squared")
        assert len(passes) == 1
        found.append(collector.take())
    for name in ("0", "2"):
        assert torch.allclose(found[0][name].G, found[1][name].G)
    # Those of one example without a batch are its components.
    model = nn.Linear(4, 3).double()
    collector = Collector(model, fisher="type2")
    collector.arm()
    collector.sample_fisher(model(torch.randn(4).double()), "squared")
    assert torch.allclose(collector.take()[""].G, torch.eye(3).double())
