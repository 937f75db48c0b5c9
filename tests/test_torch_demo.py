"""The demonstration: files of images read or refused, training that learns, files written whole, schedules."""

import csv
import gzip
import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rnla.torch
from rnla.torch import demo
from rnla.torch._mnist import FILES, load_digits, load_mnist, read_idx
from rnla.torch.schedules import rs_kfac_cifar


def idx(X):
    sizes = b"".join(n.to_bytes(4, "big") for n in X.shape)
    return bytes((0, 0, 8, X.ndim)) + sizes + X.astype(np.uint8).tobytes()


def archive(folder, counts=(60, 20), side=6, compress=True):
    """Write a small MNIST whose images show their label: row k of an image of k is bright."""
    rng = np.random.default_rng(0)
    for i, count in enumerate(counts):
        y = rng.integers(0, side, count)
        x = rng.integers(0, 60, (count, side, side))
        x[np.arange(count), y] += 180
        for name, X in zip(FILES[2 * i : 2 * i + 2], (x, y), strict=True):
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(X)))
            else:
                (folder / name).write_bytes(idx(X))
    return folder


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_file_of_images_is_read_back(tmp_path_factory, shape, compress, seed):
    X = np.random.default_rng(seed).integers(0, 256, shape)
    path = tmp_path_factory.mktemp("idx") / "X"
    path.write_bytes(gzip.compress(idx(X)) if compress else idx(X))
    found = read_idx(path)
    assert found.shape == X.shape
    assert np.array_equal(found, X)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda b: gzip.compress(b)[:-12], "must be a complete gzip file"),
        (lambda b: gzip.compress(b)[:12] + b"xxxxxxxxxxxx", "must be a complete gzip file"),
        (lambda b: b[:-1], r"must hold 24 bytes of shape \[4, 6\]; got 23"),
        (lambda b: b + b"0", "got 25"),
        (lambda b: b"PNG" + b, "must be an IDX file of bytes"),
        (lambda b: b"", "must be an IDX file of bytes"),
        (lambda b: bytes((0, 0, 13)) + b[3:], "must be an IDX file of bytes"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, text):
    (tmp_path / "X").write_bytes(change(idx(np.ones((4, 6)))))
    with pytest.raises(ValueError, match=rf"rnla\.torch\.demo: .*X {text}|{text}"):
        read_idx(tmp_path / "X")


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_is_normalised_and_split(tmp_path, compress):
    digits = load_mnist(archive(tmp_path, compress=compress))
    assert digits.x_train.shape == (60, 36)
    assert digits.x_test.shape == (20, 36)
    assert digits.x_train.dtype == np.float32
    raw = read_idx(next(tmp_path.glob(f"{FILES[0]}*"))).reshape(60, 36)
    assert np.abs(digits.x_train * 0.3081 + 0.1307 - raw / 255).max() < 1e-6
    assert digits.y_train.dtype == np.int64


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder"):
        load_mnist(tmp_path / "none")
    archive(tmp_path)
    (tmp_path / f"{FILES[3]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {FILES[3]}.gz"):
        load_mnist(tmp_path)
    (tmp_path / FILES[3]).write_bytes(idx(np.zeros(19)))
    with pytest.raises(ValueError, match="n images and n labels"):
        load_mnist(tmp_path)


def test_the_small_set_needs_no_file():
    digits = load_digits()
    assert len(digits.x_train) + len(digits.x_test) == 1797
    assert abs(np.concatenate([digits.x_train, digits.x_test]).std() - 1) < 1e-5


def table_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_trains_and_writes_a_picture_and_tables(tmp_path, capsys, quiet):
    out = tmp_path / "new" / "folder"
    command = ["mnist", "--data", str(archive(tmp_path)), "--epochs", "6", "--width", "20", "--batch-size", "12"]
    command += ["--optimizers", "Adam,SGD", "--out", str(out)]
    assert demo.main(command + ["--quiet"] * quiet) == 0
    shown = capsys.readouterr()
    assert "written:" in shown.out
    assert ("step/s" in shown.err or "s/step" in shown.err) is not quiet
    assert sorted(path.name for path in out.iterdir()) == ["mnist-curves.csv", "mnist.csv", "mnist.png"]
    assert (out / "mnist.png").read_bytes()[:4] == b"\x89PNG"
    rows = table_of(out / "mnist.csv")
    assert [row["optimizer"] for row in rows] == ["Adam", "SGD"]
    assert float(rows[0]["seconds to target"]) > 0
    assert float(rows[1]["test accuracy %"]) > 50
    curve = [row for row in table_of(out / "mnist-curves.csv") if row["optimizer"] == "SGD"]
    assert float(curve[-1]["loss"]) < 0.5 * float(curve[0]["loss"])
    assert all(float(a["seconds"]) < float(b["seconds"]) for a, b in itertools.pairwise(curve))


def test_every_optimizer_of_the_demonstration_learns():
    digits = load_digits()
    data = tuple(torch.from_numpy(np.ascontiguousarray(X)) for X in digits[:4])
    for name, make in demo.OPTIMIZERS.items():
        model = demo.network(64, 64, 0)
        run = demo.train(name, model, make(model), data, epochs=4, batch_size=32)
        assert run.finite
        assert run.accuracies[-1] > 0.8, name


def test_one_seed_gives_one_result_and_leaves_the_global_generator():
    state = torch.random.get_rng_state()
    x, y = torch.eye(6).repeat(4, 1), torch.arange(6).repeat(4)

    def run(seed):
        model = demo.network(8, 6, seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        return demo.train("SGD", model, optimizer, (x, y, x, y), epochs=3, batch_size=6, seed=seed).losses

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_that_diverges_ends_and_says_so():
    x, y = 1e3 * torch.eye(6).repeat(4, 1), torch.arange(6).repeat(4)
    model = demo.network(8, 6, 0)
    run = demo.train("SGD", model, torch.optim.SGD(model.parameters(), lr=1e30), (x, y, x, y), epochs=9, batch_size=6)
    assert not run.finite
    assert len(run.losses) < 5
    assert demo.table([run])[0]["test accuracy %"] is None


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--data", "no/such/folder"], 1, "must be a folder with the files of MNIST; no/such/folder is none"),
        (["--epochs", "0"], 2, "must be an integer >= 1; got 0"),
        (["--optimizers", "SGD,Newton"], 2, "must be among SGD, Adam, KFAC, RSKFAC, NysKFAC; got Newton"),
        (["--device", "abacus"], 1, "rnla.torch.demo: "),
    ],
)
def test_bad_options_end_with_one_line(capsys, tmp_path, options, code, text):
    try:
        found = demo.main(["mnist", "--quiet", "--out", str(tmp_path), *options])
    except SystemExit as end:
        found = end.code
    assert found == code
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_old_picture_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "mnist.png"
    path.write_bytes(b"old")

    def broken(self, content):
        with open(self, "wb") as file:
            file.write(content[:2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        demo._write(path, b"new picture")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Epoch, then learning rate, damping, rank, oversampling, steps between inversions, as published.
PUBLISHED = [
    (1, 0.3, 0.1, 220, 10, 50), (2, 0.1, 0.1, 220, 10, 50), (12, 0.1, 0.1, 220, 10, 50), (13, 0.03, 0.1, 220, 10, 50),
    (15, 0.03, 0.1, 230, 10, 50), (18, 0.01, 0.1, 230, 10, 50), (20, 0.01, 0.1, 230, 10, 30),
    (22, 0.01, 0.1, 230, 11, 30), (25, 0.01, 0.05, 230, 11, 30), (27, 0.003, 0.05, 230, 11, 30),
    (30, 0.003, 0.05, 230, 12, 30), (35, 0.003, 0.01, 230, 12, 30), (40, 0.001, 0.01, 230, 12, 30),
    (50, 0.001, 0.01, 230, 12, 30),
]  # fmt: skip


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"epoch{row[0]}")
@pytest.mark.parametrize("steps", [1, 196, None])
def test_published_schedule(row, steps):
    settings = rs_kfac_cifar(steps)
    steps = steps or 196
    names = ("lr", "damping", "rank", "oversampling", "inverse_every")
    for step in ((row[0] - 1) * steps, row[0] * steps - 1):  # first and last step of the epoch
        assert tuple(settings[name](step) for name in names) == row[1:]


@pytest.mark.parametrize("name", ["RSKFAC", "SREKFAC"])
def test_optimizers_take_the_published_schedule(name):
    x, y = torch.eye(6).repeat(8, 1), torch.arange(6).repeat(8)
    model, losses = demo.network(16, 6, 0), []
    optimizer = getattr(rnla.torch, name)(model, rng=0, **rs_kfac_cifar(4))
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_weight_decay_begins_at_step_200_and_schedules_can_be_stored():
    settings = pickle.loads(pickle.dumps(rs_kfac_cifar()))
    assert [settings["weight_decay"](step) for step in (0, 199, 200, 9000)] == [0.0, 0.0, 7e-4, 7e-4]
    assert settings["factor_every"] == 10
    with pytest.raises(ValueError, match=r"^rnla\.torch\.schedules\.rs_kfac_cifar: steps_per_epoch must be positive"):
        rs_kfac_cifar(0)
