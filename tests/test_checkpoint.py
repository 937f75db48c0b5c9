"""Interrupted runs go on from the last completed pass to the same result, bit for bit."""

import json
import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rnla
import rnla._svd
from rnla._checkpoint import saved_passes
from rnla.testing import matrix_with_spectrum

K = 6
SLOW = np.arange(1.0, 81) ** -0.3
HOW = {"method": "gram", "tol": 1e-6, "max_basis": 30, "block_bytes": 20_000}


class Interrupted(BaseException):
    """What nobody catches."""


@pytest.fixture
def A():
    return matrix_with_spectrum(300, 80, SLOW, rng=0)


@pytest.fixture
def file(A, tmp_path):
    np.save(tmp_path / "A.npy", A)
    return np.load(tmp_path / "A.npy", mmap_mode="r")


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state.npz"


def on_disk(A, folder, kind):
    if kind == "memory":
        return A
    if kind == "memmap":
        np.save(folder / "A.npy", A)
        return np.load(folder / "A.npy", mmap_mode="r")
    handle = h5py.File(f"{kind} {A.shape} {A.dtype}", "w", driver="core", backing_store=False)
    return handle.create_dataset("A", data=A, chunks=(50, A.shape[1]) if kind == "rows" else (A.shape[0], 10))


def run(A, stop=None, **options):
    """Run `rnla.svd`, interrupted in the callback after block number `stop`."""

    def callback(record):
        if record.iteration == stop:
            raise Interrupted

    return rnla.svd(A, K, callback=callback, **{**HOW, "rng": 5, **options})


def assert_same(result, expected):
    for x, y in zip(result, expected, strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
    for name in ("passes", "matvecs", "restarts", "converged", "method", "seed"):
        assert getattr(result.info, name) == getattr(expected.info, name), name
    records, wanted = ([record[:2] for record in found.info.history] for found in (result, expected))
    assert records == wanted


VARIANTS = {
    "plain": {},
    "centred": {"center": True},
    "narrow blocks": {"block_size": 3, "verify": True, "tol": 1e-2},
    "no convergence": {"max_passes": 4},
    "small values": {"tol": 1e-12, "max_passes": 200},
    "scaled up": {"factor": 1e-120},
}


@pytest.mark.filterwarnings("ignore::rnla.ConvergenceWarning")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["memmap", "rows", "columns", "memory"])
def test_a_run_interrupted_anywhere_ends_as_if_it_had_not_been(kind, variant, A, tmp_path, state):
    options = dict(VARIANTS[variant])
    A = A * options.pop("factor", 1.0)
    if variant == "small values":
        A = matrix_with_spectrum(300, 80, 10.0 ** -np.arange(80.0), rng=0)
    if kind == "columns":
        A = A.T.copy()
    A = on_disk(A, tmp_path, kind)
    expected = run(A, **options)
    blocks = len(expected.info.history)
    assert blocks >= 1
    for stop in range(1, blocks + 1):
        with pytest.raises(Interrupted):
            run(A, stop, checkpoint=state, **options)
        passes = saved_passes(state)  # in the second phase of gram+krylov, those of the first
        assert 0 < passes <= expected.info.passes
        result = run(A, checkpoint=state, **options)
        assert_same(result, expected)
        assert f", resumed after {passes} pass" in result.info.message
        assert not list(tmp_path.glob("state*"))


@given(
    dtype=st.sampled_from(["float32", "float64", "complex64", "complex128"]),
    shape=st.sampled_from([(90, 40), (40, 90), (60, 60)]),
    block_bytes=st.integers(1, 30_000),
    stops=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_several_interruptions_of_any_matrix(tmp_path_factory, dtype, shape, block_bytes, stops, seed):
    folder = tmp_path_factory.mktemp("run")
    A = matrix_with_spectrum(*shape, np.arange(1.0, 41) ** -0.5, dtype=dtype, rng=seed)
    A = on_disk(A, folder, "memmap")
    options = {"rng": seed, "tol": 1e-2, "block_bytes": block_bytes}
    expected = run(A, **options)
    for stop in stops:
        try:
            result = run(A, stop, checkpoint=folder / "state", **options)
            break
        except Interrupted:
            pass
    else:
        result = run(A, checkpoint=folder / "state", **options)
    assert_same(result, expected)
    assert os.listdir(folder) == ["A.npy"]


class Failing:
    """A dataset that raises on one read."""

    def __init__(self, A, last=None):
        self.A, self.shape, self.dtype, self.chunks, self.reads, self.last = A, A.shape, A.dtype, (100, 80), 0, last

    def __getitem__(self, key):
        self.reads += 1
        if self.reads == self.last:
            raise OSError("the disk is gone")
        return self.A[key]


def test_a_reader_that_fails_on_any_read(A, state):
    whole = Failing(A)
    options = {"tol": 1e-2, "block_bytes": 64_000}
    expected = run(whole, **options)
    reads = whole.reads
    for last in range(1, reads + 3 + 1):  # three more for the fingerprint
        with pytest.raises(OSError, match=r"^rnla\.svd: A cannot be read in rows \d+\.\.\d+.*: the disk is gone$"):
            run(Failing(A, last), checkpoint=state, **options)
        fresh = Failing(A)
        saved = saved_passes(state) or 0
        assert_same(run(fresh, checkpoint=state, **options), expected)
        assert fresh.reads == reads + 3 - 3 * saved  # nothing is read twice but the pass that failed


def test_without_a_seed_the_one_of_the_file_is_taken(file, state, monkeypatch):
    with pytest.raises(Interrupted):
        run(file, 2, rng=None, checkpoint=state)
    result = run(file, rng=None, checkpoint=state)
    monkeypatch.setattr(rnla._svd, "key_from_rng", lambda rng, caller: result.info.seed)
    assert_same(result, run(file))


def test_a_generator_goes_on_with_the_same_key(file, state):
    expected = run(file, rng=np.random.default_rng(3))
    with pytest.raises(Interrupted):
        run(file, 1, rng=np.random.default_rng(3), checkpoint=state)
    assert_same(run(file, rng=np.random.default_rng(3), checkpoint=state), expected)


def test_values_alone_and_vectors_share_a_state(file, state):
    with pytest.raises(Interrupted):
        run(file, 2, checkpoint=state)
    S = rnla.svdvals(file, K, rng=5, checkpoint=str(state), **HOW)
    np.testing.assert_array_equal(S, rnla.svdvals(file, K, rng=5, **HOW))


def test_the_end_by_callback_is_an_end(file, state):
    def callback(record):
        raise StopIteration

    assert rnla.svd(file, K, rng=5, callback=callback, checkpoint=state, **HOW).info.message == "ended by the callback"
    assert not state.exists()


def test_other_libraries_of_arrays(A, state):
    T = torch.asarray(A)
    expected = run(T)
    with pytest.raises(Interrupted):
        run(T, 3, checkpoint=state)
    result = run(T, checkpoint=state)
    assert all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))


def test_time_before_the_interruption_counts(file, state):
    with pytest.raises(Interrupted):
        run(file, 2, checkpoint=state)
    rewrite(state, seconds=1000.0)
    info = run(file, checkpoint=state).info
    assert info.elapsed >= info.history[-1].seconds >= 1000.0


# ---- files that will not do


def rewrite(state, **changes):
    """Change facts in a state file."""
    with np.load(state) as file:
        arrays = {name: file[name] for name in file.files}
    facts = json.loads(str(arrays.pop("facts"))) | changes
    np.savez(state, facts=json.dumps(facts), **arrays)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tol": 1e-5}, r"tol was 1e-06, not 1e-05"),
        ({"rng": 6}, r"seed was \d+, not \d+"),
        ({"k": 7}, r"k was 6, not 7"),
        ({"n_oversamples": 11}, r"n_oversamples was 10, not 11"),
        ({"max_basis": 40}, r"max_basis was 30, not 40"),
        ({"max_passes": 30}, r"max_passes was None, not 30"),
        ({"center": True}, r"center was False, not True"),
        ({"sketch": "rademacher"}, r"sketch was gaussian, not rademacher"),
        ({"block_bytes": 8}, r"\(as block_bytes and chunks allow\) was"),
        ({"rows": 299}, r"shape was \[300, 80\], not \[299, 80\]"),
        ({"dtype": np.float32}, r"dtype was float64, not float32"),
        ({"first": 7.0}, r"A has other entries"),
    ],
)
def test_the_state_of_another_run_is_refused(change, match, A, file, state, tmp_path):
    with pytest.raises(Interrupted):
        run(file, 2, checkpoint=state)
    before = state.read_bytes()
    change = dict(change)
    B = A[: change.pop("rows", 300)].astype(change.pop("dtype", np.float64))
    B[0, 0] = change.pop("first", B[0, 0])
    np.save(tmp_path / "B.npy", B)
    B = np.load(tmp_path / "B.npy", mmap_mode="r")
    k = change.pop("k", K)
    with pytest.raises(ValueError, match=match) as raised:
        rnla.svd(B, k, checkpoint=state, **{**HOW, "rng": 5, **change})
    assert str(raised.value).startswith(f"rnla.svd: checkpoint {state} is that of another run: ")
    assert "start again" in str(raised.value)
    assert state.read_bytes() == before


def test_a_state_may_move_to_blocks_of_another_size(file, state):
    expected = run(file)
    with pytest.raises(Interrupted):
        run(file, 2, checkpoint=state)
    result = run(file, checkpoint=state, block_bytes=40_000)
    np.testing.assert_allclose(result.S, expected.S, rtol=1e-6**2 * 1e3)  # both within tol**2 of the same values


def test_a_file_cut_off_or_damaged_anywhere_is_refused(file, state):
    with pytest.raises(Interrupted):
        run(file, 2, checkpoint=state)
    whole = state.read_bytes()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(state) as archive:
        starts = [info.header_offset + 200 for info in archive.infolist()]  # inside of each array
    damaged = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in starts]
    damaged += [rng.bytes(500), b"PK\x03\x04", b"{}"]
    for content in damaged:
        state.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"^rnla\.svd: checkpoint .* is damaged or is no checkpoint \(.*\)\. Start "
        ):
            run(file, checkpoint=state)
        assert state.read_bytes() == content  # it may be something else of the user's


def test_other_files_are_refused_and_left_alone(A, file, state, tmp_path):
    for wrong in (tmp_path / "A.npy", tmp_path / "other.npz", tmp_path / "pickled.npz"):
        if wrong.name == "other.npz":
            np.savez(wrong, A=A)
        elif wrong.name == "pickled.npz":
            np.savez(wrong, facts=np.array({"format": "rnla checkpoint 1"}, dtype=object), allow_pickle=True)
        before = wrong.read_bytes()
        with pytest.raises(ValueError, match="is damaged or is no checkpoint"):
            run(file, checkpoint=wrong)
        assert wrong.read_bytes() == before
    assert saved_passes(tmp_path / "other.npz") is None


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "krylov"}, ValueError, r"checkpoint must be None but for method 'gram'; got method 'krylov'\."),
        ({"method": "auto", "n_oversamples": 25}, ValueError, r"got method 'qr', the choice of 'auto' for this A\."),
        ({"method": "rsi"}, ValueError, r"but for method 'gram'; got method 'rsi'"),
        ({"method": "auto", "rtol": 0.1}, ValueError, r"checkpoint must be None where rtol or atol sets the rank"),
        ({"checkpoint": "missing/state.npz"}, ValueError, r"in a folder that can be written to; got missing"),
        ({"checkpoint": 3}, TypeError, r"checkpoint must be a path or None; got int"),
    ],
)
def test_where_there_can_be_no_checkpoint(options, error, match, file, state):
    with pytest.raises(error, match=match) as raised:
        run(file, **{"checkpoint": state, **options})
    assert str(raised.value).startswith("rnla.svd: ")


def test_a_failure_to_write_leaves_the_state_before(file, state, monkeypatch):
    with pytest.raises(Interrupted):
        run(file, 2, checkpoint=state)
    before, savez = state.read_bytes(), np.savez

    def full(stream, **arrays):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        run(file, checkpoint=state)
    monkeypatch.setattr(np, "savez", savez)
    assert state.read_bytes() == before
    assert sorted(p.name for p in state.parent.iterdir()) == ["A.npy", "state.npz"]
    assert_same(run(file, checkpoint=state), run(file))


KILLED = """
import os, signal, sys
import numpy as np
import rnla
from rnla._checkpoint import Checkpoint

save, savez, seen = Checkpoint.save, np.savez, []

def count(self, *args):
    seen.append(1)
    save(self, *args)
    if len(seen) == 3 and "between" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)

def halfway(stream, **arrays):
    if len(seen) < 4:
        return savez(stream, **arrays)
    stream.write(b"half of it")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.save, np.savez = count, halfway
rnla.svd(np.load(sys.argv[1], mmap_mode="r"), 6, rng=5, checkpoint=sys.argv[2], method="gram", tol=1e-6, max_basis=30,
         block_bytes=20_000)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["between", "while writing"])
def test_a_killed_process(moment, file, state):
    command = [sys.executable, "-c", KILLED, file.filename, str(state), moment]
    assert subprocess.run(command, check=False).returncode == -9
    assert saved_passes(state) == 3
    result = run(file, checkpoint=state)
    assert "resumed after 3 passes" in result.info.message
    assert_same(result, run(file))
    assert [p.name for p in state.parent.iterdir()] == ["A.npy"]
