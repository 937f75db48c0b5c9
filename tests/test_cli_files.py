"""`rnla svd` on files larger than a block: sizes, progress in bytes, interrupted runs, URLs, clusters."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import fsspec
import h5py
import numpy as np
import pytest
import zarr
from test_cli import Terminal, assert_fails, files, run

import rnla
import rnla.cli
from rnla._checkpoint import saved_passes
from rnla.testing import matrix_with_spectrum

SLOW = np.arange(1.0, 81) ** -0.3
HOW = ("-k", 6, "--method", "gram", "--tol", 1e-6, "--seed", 5, "--block-bytes", "20kB")


@pytest.fixture
def A():
    return matrix_with_spectrum(300, 80, SLOW, rng=0)


@pytest.fixture
def path(A, tmp_path):
    np.save(tmp_path / "A.npy", A)
    return tmp_path / "A.npy"


def arrays(path):
    with np.load(path) as out:
        return [out[name] for name in ("U", "S", "Vh")]


# ---- --block-bytes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("64MB", 64_000_000),
        ("64 mb", 64_000_000),
        ("1.5GiB", 3 * 2**29),
        ("20kB", 20_000),
        ("20KiB", 20 * 1024),
        ("7B", 7),
        ("0.25TB", 250_000_000_000),
        ("2MiB", 2**21),
    ],
)
def test_sizes(text, value, path, monkeypatch):
    seen = {}

    def svd(A, k, **options):
        seen.update(options, mapped=isinstance(A, np.memmap))
        raise ValueError("enough")

    monkeypatch.setattr(rnla, "svd", svd)
    assert run("svd", path, "-k", 3, "--block-bytes", text) == 1
    assert seen["block_bytes"] == value
    assert seen["mapped"] == (value <= 300 * 80 * 8)  # what fits in one block is read at once


@pytest.mark.parametrize(
    "options",
    [
        "--block-bytes 0",
        "--block-bytes -1",
        "--block-bytes 64MBs",
        "--block-bytes 1e6",
        "--block-bytes nan",
        "--block-bytes 0.1B",
        "--checkpoint missing/state",
        "--checkpoint A.npy",
        "--checkpoint out.npz -o out.npz",
    ],
)
def test_wrong_options(options, path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    with pytest.raises(SystemExit) as ended:
        rnla.cli.main(["svd", "A.npy", "-k", "2", *options.split()])
    assert ended.value.code == 2
    assert "usage: rnla" in capsys.readouterr().err


def test_the_block_that_is_not_finite_is_named(A, tmp_path, capsys):
    A[123, 4] = np.nan
    np.save(tmp_path / "A.npy", A)
    rows = "A must be finite; it has NaN or infinity in rows 93..123."
    assert_fails(tmp_path, capsys, tmp_path / "A.npy", *HOW[:-1], 31 * 80 * 8, match=rows)


# ---- progress


def test_progress_knows_the_bytes_of_each_pass(path, A, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("svd", path, *HOW, "--json") == 0
    text = terminal.text
    assert f"/{A.nbytes / 1000:.0f}k" in text  # 192 kB in all
    passes = sorted({int(number) for number in re.findall(r"rnla\.svd pass (\d+)", text)})
    assert passes == list(range(1, passes[-1] + 1))
    assert passes[-1] == rnla.svd(np.load(path, mmap_mode="r"), 6, method="gram", tol=1e-6, rng=5).info.passes
    assert "error " in text
    assert "B/s" in text


# ---- --checkpoint


def stopping(monkeypatch, after, error):
    """Make `rnla.svd` raise in the callback after some blocks."""
    svd = rnla.svd

    def interrupted(*args, **options):
        def callback(record):
            if record.iteration == after:
                error()

        return svd(*args, callback=callback, **options)

    monkeypatch.setattr(rnla, "svd", interrupted)
    return lambda: monkeypatch.setattr(rnla, "svd", svd)


def control_c():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)  # the handler runs before this is over


def disk_full():
    raise OSError("the disk is gone")


@pytest.mark.parametrize("error", [control_c, terminate, disk_full])
def test_an_interrupted_run_says_how_to_go_on_and_does(error, path, tmp_path, capsys, monkeypatch):
    assert run("svd", path, *HOW, "--quiet", "-o", tmp_path / "expected.npz") == 0
    state, out = tmp_path / "state", tmp_path / "out.npz"
    command = ("svd", path, *HOW, "--checkpoint", state, "-o", out)
    before = signal.getsignal(signal.SIGTERM)
    restore = stopping(monkeypatch, 3, error)
    assert run(*command) == 1
    assert signal.getsignal(signal.SIGTERM) == before
    printed = capsys.readouterr()
    what = "the disk is gone" if error is disk_full else "interrupted"
    way = f"the state after 3 passes is in {state}: the same command goes on from there"
    assert printed == ("", f"rnla svd: {what}; {way}\n")
    assert files(tmp_path) == ["A.npy", "expected.npz", "state"]

    restore()
    assert run(*command) == 0
    printed = capsys.readouterr()
    assert printed.err == f"rnla svd: resuming from {state} after 3 passes\n"
    for x, y in zip(arrays(out), arrays(tmp_path / "expected.npz"), strict=True):
        np.testing.assert_array_equal(x, y)
    assert files(tmp_path) == ["A.npy", "expected.npz", "out.npz"]


def test_an_interruption_before_the_first_pass(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rnla, "svd", lambda *args, **options: control_c())
    assert run("svd", path, *HOW, "--checkpoint", tmp_path / "state") == 1
    assert capsys.readouterr().err == f"rnla svd: interrupted; there is no state in {tmp_path / 'state'}\n"


def test_quiet_and_json_with_a_state(path, tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    restore = stopping(monkeypatch, 1, control_c)
    assert run("svd", path, *HOW, "--checkpoint", state) == 1
    assert run("svd", path, *HOW, "--checkpoint", state, "--json") == 1
    assert "resuming from" in capsys.readouterr().err
    restore()
    assert run("svd", path, *HOW, "--checkpoint", state, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == f"rnla svd: resuming from {state} after 1 pass\n"
    assert json.loads(printed.out)["message"] == "converged, resumed after 1 pass"
    restore = stopping(monkeypatch, 1, control_c)
    run("svd", path, *HOW, "--checkpoint", state)
    restore()
    capsys.readouterr()
    assert run("svd", path, *HOW, "--checkpoint", state, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_state_that_does_not_fit_is_one_line(path, tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    restore = stopping(monkeypatch, 1, control_c)
    run("svd", path, *HOW, "--checkpoint", state)
    restore()
    capsys.readouterr()
    assert run("svd", path, *HOW, "--center", "--checkpoint", state, "--quiet") == 1
    assert "center was False, not True" in capsys.readouterr().err
    state.write_bytes(state.read_bytes()[:1000])
    assert run("svd", path, *HOW, "--checkpoint", state) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"rnla svd: checkpoint {state} is damaged or is no checkpoint")
    assert printed.err.count("\n") == 1
    state.unlink()
    assert run("svd", path, "-k", 6, "--method", "krylov", "--checkpoint", state) == 1
    assert "checkpoint must be None but for method 'gram'" in capsys.readouterr().err


KILLED = """
import os, signal, sys
import rnla.cli
from rnla._checkpoint import Checkpoint

save, seen = Checkpoint.save, []

def count(self, *args):
    save(self, *args)
    seen.append(1)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save = count
rnla.cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_is_taken_up_again(path, tmp_path, capsys):
    state, out = tmp_path / "state", tmp_path / "out.npz"
    command = [str(a) for a in ("svd", path, *HOW[:6], *HOW[8:], "--checkpoint", state, "-o", out)]  # without a seed
    assert subprocess.run([sys.executable, "-c", KILLED, *command], check=False).returncode == -9
    assert files(tmp_path) == ["A.npy", "state"]
    assert saved_passes(state) == 2
    assert run(*command) == 0
    assert capsys.readouterr().err == f"rnla svd: resuming from {state} after 2 passes\n"
    # |s_j - sigma_j| <= residual <= tol * sigma_j.
    np.testing.assert_allclose(arrays(out)[1], SLOW[:6], rtol=1e-6)
    assert files(tmp_path) == ["A.npy", "out.npz"]


# ---- URLs


@pytest.fixture
def memory():
    """Provide an empty file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_urls(A, memory, tmp_path, capsys):
    from zarr.storage import FsspecStore

    zarr.create_array(FsspecStore.from_url("memory://bucket/A.zarr"), data=A, chunks=(50, 80))
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["group/A"] = A
        file["B"] = A[:5]
    memory.pipe("/bucket/A.h5", content.getvalue())
    np.save(tmp_path / "with space.npy", A)
    local = (tmp_path / "with space.npy").as_uri()
    for url, key in (("memory://bucket/A.zarr", None), ("memory://bucket/A.h5", "group/A"), (local, None)):
        assert run("svd", url, *HOW, "--json", *(("--key", key) if key else ())) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["file"] == url
        np.testing.assert_allclose(facts["singular_values"], SLOW[:6], rtol=1e-6)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("memory://bucket/none.zarr", "No such file or directory: 'memory://bucket/none.zarr'"),
        ("memory://bucket/none.h5", "No such file or directory: 'memory://bucket/none.h5'"),
        ("file:///nowhere/none.npy", "No such file or directory: '/nowhere/none.npy'"),
        ("memory://bucket/A.npy", "path as a URL must end in one of .zarr, .h5, .hdf5; got memory://bucket/A.npy."),
        ("nothing://bucket/A.zarr", "cannot read a matrix from nothing://bucket/A.zarr: "),
    ],
)
def test_bad_urls(url, match, memory, tmp_path, capsys):
    assert_fails(tmp_path, capsys, url, "-k", 2, match=match)


def test_missing_packages_are_named(memory, monkeypatch, capsys, tmp_path):
    def no_s3(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", no_s3)
    wanted = "s3://bucket/A.h5 needs a package for its protocol, see fsspec: Install s3fs to access S3"
    assert_fails(tmp_path, capsys, "s3://bucket/A.h5", "-k", 2, match=wanted)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for ending in ("zarr", "h5"):
        wanted = f"s3://bucket/A.{ending} needs fsspec: pip install 'rnla[io]'"
        assert_fails(tmp_path, capsys, f"s3://bucket/A.{ending}", "-k", 2, match=wanted)


# ---- --scheduler


@pytest.fixture(scope="module")
def address():
    import distributed

    # In this process, so that it starts at once; what is sent is still packed and unpacked.
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("kind", ["npy", "h5", "zarr"])
def test_a_cluster_reads_the_file_itself(kind, A, address, tmp_path, capsys, monkeypatch):
    path = tmp_path / f"A.{kind}"
    if kind == "npy":
        np.save(path, A)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("A", data=A, chunks=(30, 80))
    else:
        zarr.create_array(path, data=A, chunks=(30, 80))
    monkeypatch.chdir(tmp_path)  # the workers are told the whole path
    how = ("-k", 6, "--tol", 1e-2, "--method", "gram", "--block-bytes", "60kB")
    assert run("svd", path.name, *how, "--scheduler", address, "-o", tmp_path / "out.npz") == 0
    assert f"A.{kind}: 300 x 80, float64" in capsys.readouterr().out
    U, S, Vh = arrays(tmp_path / "out.npz")
    # |s_j - sigma_j| <= residual <= tol * sigma_j.
    np.testing.assert_allclose(S, SLOW[:6], rtol=1e-2)
    assert np.linalg.norm(A - (U * S) @ Vh, 2) <= SLOW[6] + 1e-2


def test_a_cluster_with_a_checkpoint(path, address, tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    restore = stopping(monkeypatch, 2, control_c)
    assert run("svd", path, *HOW, "--scheduler", address, "--checkpoint", state) == 1
    restore()
    assert run("svd", path, *HOW, "--scheduler", address, "--checkpoint", state, "-o", tmp_path / "out.npz") == 0
    assert "resuming from" in capsys.readouterr().err
    np.testing.assert_allclose(arrays(tmp_path / "out.npz")[1], SLOW[:6], rtol=1e-6)


def test_clusters_that_cannot_be_used(path, tmp_path, capsys, address, monkeypatch):
    np.savez(tmp_path / "A.npz", A=np.eye(3))
    wanted = "a scheduler needs a .npy, .h5 or .zarr file, which is read in blocks; got"
    assert_fails(tmp_path, capsys, tmp_path / "A.npz", "-k", 2, "--scheduler", address, match=wanted)
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    wanted = "a scheduler needs dask.distributed: pip install"
    assert_fails(tmp_path, capsys, path, "-k", 2, "--scheduler", address, match=wanted)


def test_nobody_at_the_address(path, tmp_path, capsys, monkeypatch):
    import rnla._dask_file

    monkeypatch.setattr(rnla._dask_file, "TIMEOUT", 0.2)
    assert_fails(tmp_path, capsys, path, "-k", 2, "--scheduler", "tcp://127.0.0.1:9", match="127.0.0.1:9")
