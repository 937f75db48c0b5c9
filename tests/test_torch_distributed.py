"""Two processes that share the work of K-FAC take the steps of one."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import rnla.torch as rt
from rnla.torch import _distributed

# One worker runs the two processes once, for all tests.
pytestmark = pytest.mark.xdist_group("torch_distributed")

CASES = {
    "exact": {"momentum": 0.9, "weight_decay": 0.01},
    "nystrom": {"method": "nystrom", "rank": 6, "oversampling": 3, "kl_clip": 1e-2},
    "ekfac": {"ekfac": True},
    "joint": {"damping_mode": "joint"},
    "memory": {"grad_worker_fraction": 0.5},
    "memory-nystrom": {"method": "nystrom", "rank": 6, "grad_worker_fraction": 0.5, "damping_mode": "pi"},
    "reduce": {"weight_sharing": "reduce", "stagger": True},
    "grouped": {"grad_worker_fraction": 0.5, "damping_mode": "joint"},
}


class Net(nn.Module):
    def __init__(self, name=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv1d(3, 6, 3), nn.LayerNorm(24), nn.Linear(24, 25)
        self.wide = nn.Sequential(nn.Conv1d(6, 12, 1), nn.Conv1d(12, 6, 1)) if name == "grouped" else nn.Identity()
        if name == "grouped":
            self.wide.insert(1, nn.Conv1d(12, 12, 3, padding=1, groups=12))
        self.head = nn.Linear(25, 4)  # with the bias the layer before is square

    def forward(self, x):
        x = self.fc(self.norm(self.wide(self.conv(x)).relu().flatten(1))).relu()
        return self.head(x)


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 3, 6, generator=generator), torch.randint(0, 4, (64,), generator=generator)


def optimizer(model, **options):
    return rt.KFAC(model, lr=0.1, factor_every=1, inverse_every=2, rng=0, **options)


def train(model, opt, x, y, steps=3):
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def work(rank, folder):
    """Train on a share of the data; what came out is written to the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, y = (X[32 * rank : 32 * rank + 32] for X in data())
    results = {}
    for name, options in CASES.items():
        model = Net(name)
        train(model, optimizer(model, sync_grads=True, **options), x, y)
        results[name] = weights(model)
    model = Net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    opt = optimizer(wrapped, **CASES["exact"])
    train(wrapped, opt, x, y)
    results["wrapped"] = weights(model)
    results["owners"] = opt._engine.sharer._owners
    pre = rt.KFACPreconditioner(Net(), sync_grads=True, fisher="mc", factor_every=1, rng=0)
    z = pre._engine.model(x)
    pre.sample_fisher(z)
    F.cross_entropy(z, y).backward()
    pre.step()
    results["preconditioner"] = torch.cat([p.grad.reshape(-1) for p in pre._engine.model.parameters()])
    # A layer that one process alone used: its inputs are those of that process.
    model = nn.ModuleList([nn.Linear(18, 4), nn.Linear(18, 4)])
    pre = rt.KFACPreconditioner(model, factor_every=1, rng=0)
    F.cross_entropy(model[rank](x.flatten(1)), y).backward()
    pre.step()
    states = [curvature.state for curvature in pre._engine.curvatures.values()]
    results["unused"] = torch.cat([M.reshape(-1) for s in states for M in (s.A.matrix, s.G.matrix)])
    # Gradients that only one process has, and sparse ones, are averaged as well.
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(9, 18, sparse=True), nn.Linear(18, 4), nn.Linear(18, 4), nn.Linear(18, 4)])
    opt = optimizer(model, sync_grads=True, skip=("3",))
    for _ in range(3):
        opt.zero_grad()
        F.cross_entropy(model[1 + rank](model[0](y + rank)), y).backward()
        opt.step()
    results["partial"] = weights(model)
    messages = []
    wrong = [{"grad_worker_fraction": 0.3}, {"grad_worker_fraction": 2.0}, {"method": "brand"}]
    for options in (*wrong, {"ekfac": True, "grad_worker_fraction": 0.5}):
        try:
            rt.KFAC(Net(), **options)
        except ValueError as error:
            messages.append(str(error))
    results["messages"] = messages
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not dist.is_available():  # pragma: no cover - a build of PyTorch without it
        pytest.fail("torch.distributed is missing from this build of PyTorch")
    folder = tmp_path_factory.mktemp("processes")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", [*CASES, "wrapped"])
def test_two_processes_are_one(results, name):
    options = {key: v for key, v in CASES.get(name, CASES["exact"]).items() if key != "grad_worker_fraction"}
    model = Net(name)
    train(model, optimizer(model, **options), *data())
    # Both hold the same weights to the last bit; the sums over 64 examples are rounded in another order.
    assert torch.equal(results[0][name], results[1][name])
    assert (results[0][name] - weights(model)).abs().max() <= 2e-6


def test_other_results_are_the_same_everywhere(results):
    for name in ("preconditioner", "unused", "partial"):
        assert torch.equal(results[0][name], results[1][name])
    assert results[0]["owners"] == results[1]["owners"]
    assert set(results[0]["owners"].values()) == {0, 1}


def test_a_layer_used_by_one_process_has_its_inputs(results):
    x = data()[0]
    size = 19 * 19 + 4 * 4  # of A and G
    for rank, found in enumerate(results[0]["unused"].split(size)):
        a = torch.cat([x[32 * rank : 32 * rank + 32].flatten(1), torch.ones(32, 1)], dim=1)
        assert torch.allclose(found[: 19 * 19].view(19, 19), a.T @ a / 32, atol=1e-6)


def test_bad_arguments_are_named(results):
    messages = results[0]["messages"]
    assert len(messages) == 4
    assert messages[0].startswith("rnla.torch.KFAC: grad_worker_fraction must be a share of the 2 processes")
    assert messages[1] == "rnla.torch.KFAC: grad_worker_fraction must be in (0, 1]; got 2.0."
    assert messages[2] == "rnla.torch.KFAC: method='brand' is for one process; got 2."
    assert messages[3] == "rnla.torch.KFAC: grad_worker_fraction must be 1 for ekfac; got 0.5."


def test_longest_tasks_go_first():
    costs = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 3.0, "e": 3.0}
    assert _distributed.longest_first(costs, 2) == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}
    assert set(_distributed.longest_first(costs, 1).values()) == {0}


def test_triangles_and_messages():
    M = torch.randn(5, 5)
    M = M + M.T
    flat = _distributed.packed(M)
    assert flat.shape == (15,)
    assert torch.equal(_distributed.unpacked(flat, M.shape), M)
    stack = torch.randn(4, 2, 2)
    assert torch.equal(_distributed.unpacked(_distributed.packed(stack), stack.shape), stack)
    large = [torch.zeros(2**21), torch.zeros(2**22), torch.zeros(2**22), torch.zeros(3, dtype=torch.float64)]
    assert [len(bucket) for bucket in _distributed.buckets(large)] == [2, 1, 1]
