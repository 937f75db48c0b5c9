import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import io, sparse

import rnla
import rnla._demo
import rnla.cli

SIGMA = np.r_[10.0, 5.0, 2.0, 1.0, np.full(16, 0.01)]


@pytest.fixture
def A():
    return rnla.testing.matrix_with_spectrum(40, 20, SIGMA, rng=0)


@pytest.fixture
def path(tmp_path, A):
    np.save(tmp_path / "A.npy", A)
    return tmp_path / "A.npy"


def run(*args):
    return rnla.cli.main([str(a) for a in args])


def files(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- rnla svd


def test_svd_writes_the_leading_triplets(path, tmp_path, A, capsys):
    assert run("svd", path, "-k", 4, "--tol", 1e-6, "--seed", 0, "-o", tmp_path / "out.npz") == 0
    with np.load(tmp_path / "out.npz") as out:
        assert sorted(out.files) == ["S", "U", "Vh"]
        U, S, Vh = out["U"], out["S"], out["Vh"]
    # |s_j - sigma_j| <= residual <= tol * sigma_j; the next value is 100 times smaller than sigma_4.
    np.testing.assert_allclose(S, SIGMA[:4], rtol=1e-6)
    error = np.linalg.norm(A - (U * S) @ Vh, 2)
    assert SIGMA[4] * (1 - 1e-10) <= error <= SIGMA[4] + 1e-6 * SIGMA[0]
    printed = capsys.readouterr()
    assert f"{path}: 40 x 20, float64" in printed.out
    assert "rank 4" in printed.out
    assert "written: " in printed.out
    assert files(tmp_path) == ["A.npy", "out.npz"]


def test_svd_to_a_tolerance_finds_the_rank(path, capsys):
    rtol = 1.5 * np.linalg.norm(SIGMA[3:]) / np.linalg.norm(SIGMA)
    assert run("svd", path, "--rtol", rtol, "--seed", 0, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rank"] >= 3
    assert np.linalg.norm(SIGMA[facts["rank"] :]) <= rtol * np.linalg.norm(SIGMA)


def test_json_is_one_object_with_the_facts(path, tmp_path, capsys):
    arguments = ("--method", "dense", "--json", "-o", tmp_path / "out.npz", "--plot", tmp_path / "scree.png")
    assert run("svd", path, "-k", 3, *arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    facts = json.loads(printed.out)
    assert facts["file"] == str(path)
    assert facts["shape"] == [40, 20]
    assert facts["rank"] == 3
    np.testing.assert_allclose(facts["singular_values"], SIGMA[:3], rtol=1e3 * np.finfo(float).eps)
    assert facts["method"] == "dense"
    assert facts["passes"] >= 1
    assert facts["seconds"] >= 0
    assert facts["converged"] is True
    assert facts["output"] == str(tmp_path / "out.npz")
    assert facts["plot"] == str(tmp_path / "scree.png")
    optimum = np.linalg.norm(SIGMA[3:]) / np.linalg.norm(SIGMA)
    assert facts["error_estimate"] == pytest.approx(optimum, rel=1e-6)


def test_unknown_error_is_null_in_json(path, capsys, monkeypatch):
    U, S, Vh = np.linalg.svd(np.eye(3))
    info = SimpleNamespace(
        method="krylov", passes=1, elapsed=0.1, converged=True, message="", error_estimate=float("nan")
    )
    result = SimpleNamespace(U=U, S=S, Vh=Vh, info=info)
    monkeypatch.setattr(rnla, "svd", lambda *args, **kwargs: result)
    assert run("svd", path, "-k", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["error_estimate"] is None
    assert run("svd", path, "-k", 3) == 0
    assert "relative Frobenius error not known" in capsys.readouterr().out


def test_every_option_reaches_svd(path, monkeypatch):
    seen = {}

    def svd(A, k, **options):
        seen.update(options, k=k)
        raise ValueError("rnla.svd: enough.")

    monkeypatch.setattr(rnla, "svd", svd)
    line = f"svd {path} -k 3 --rtol 0.1 --tol 1e-5 --method krylov --center --max-passes 7 --seed 11"
    assert run(*line.split()) == 1
    assert seen.pop("progress") is False  # stderr is no terminal here
    expected = {"k": 3, "rtol": 0.1, "tol": 1e-5, "method": "krylov", "center": True, "max_passes": 7, "rng": 11}
    assert seen == expected


def test_quiet_prints_nothing(path, capsys):
    assert run("svd", path, "-k", 3, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_same_seed_same_file(path, tmp_path):
    for name in ("a.npz", "b.npz"):
        assert run("svd", path, "-k", 3, "--seed", 5, "--method", "krylov", "-o", tmp_path / name) == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        for name in ("U", "S", "Vh"):
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("name", ["A.npz", "A.mtx", "A.h5", "A.png"])
def test_svd_of_other_kinds_of_files(tmp_path, name, capsys):
    A = np.round(rnla.testing.matrix_with_spectrum(40, 20, 1000 * SIGMA, rng=0)) % 256
    if name == "A.npz":
        sparse.save_npz(tmp_path / name, sparse.csr_array(A))
    elif name == "A.mtx":
        io.mmwrite(tmp_path / name, sparse.coo_array(A))
    elif name == "A.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file["group/A"] = A
            file["group/B"] = A[:5]
    else:
        Image.fromarray(A.astype(np.uint8)).save(tmp_path / name)
    key = ("--key", "group/A") if name == "A.h5" else ()
    assert run("svd", tmp_path / name, "-k", 2, "--tol", 1e-8, "--json", *key) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = np.linalg.svd(A, compute_uv=False)[:2]
    np.testing.assert_allclose(facts["singular_values"], expected, rtol=1e-8)


def test_plot_is_a_picture_with_something_on_it(path, tmp_path):
    assert run("svd", path, "-k", 4, "--quiet", "--plot", tmp_path / "scree.png") == 0
    with Image.open(tmp_path / "scree.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 5
    assert len(np.unique(pixels)) > 10
    assert files(tmp_path) == ["A.npy", "scree.png"]


# ---- failures of rnla svd: one line, exit code 1, nothing left behind


def assert_fails(tmp_path, capsys, *args, match):
    before = files(tmp_path)
    assert run("svd", *args, "-o", tmp_path / "out.npz", "--plot", tmp_path / "scree.png") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("rnla svd: ")
    assert printed.err.count("\n") == 1
    assert match in printed.err
    assert "Traceback" not in printed.err
    assert files(tmp_path) == before


def write_bad(folder, name):
    """Write a file that is cut off, of another kind, or not allowed; return its path."""
    path = folder / name.split("-")[-1]
    if name == "short-A.npy":
        np.save(path, np.ones((20, 20)))
    elif name == "short-A.npz":
        np.savez(path, A=np.ones((20, 20)))
    elif name == "short-A.mtx":
        io.mmwrite(path, sparse.coo_array(np.ones((20, 20))))
    elif name == "short-A.h5":
        with h5py.File(path, "w") as file:
            file["A"] = np.ones((20, 20))
    elif name == "short-A.png":
        Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)).save(path)
    elif name == "object-A.npy":
        np.save(path, np.array([[{}, 1]], dtype=object), allow_pickle=True)
    elif name == "text-A.npy":
        np.save(path, np.array([["a"]]))
    elif name == "vector-A.npy":
        np.save(path, np.ones(4))
    elif name == "wrong-A.npy":
        path.write_text("1 2 3")
    if name.startswith("short-"):
        whole = path.read_bytes()
        path.write_bytes(whole[: 3 * len(whole) // 4])
    return path


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("short-A.npy", "cannot read a matrix from"),
        ("short-A.npz", "cannot read a matrix from"),
        ("short-A.mtx", "cannot read a matrix from"),
        ("short-A.h5", "cannot read a matrix from"),
        ("short-A.png", "cannot read a matrix from"),
        ("object-A.npy", "cannot read a matrix from"),
        ("wrong-A.npy", "cannot read a matrix from"),
        ("text-A.npy", "must hold a numeric matrix"),
        ("vector-A.npy", "must hold a numeric matrix"),
        ("missing-A.npy", "No such file"),
        ("missing-A.csv", "must be one of .npy"),
    ],
)
def test_bad_file(tmp_path, capsys, name, match):
    assert_fails(tmp_path, capsys, write_bad(tmp_path, name), "-k", 2, match=match)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
def test_matrix_that_is_not_finite(tmp_path, capsys, kind, bad):
    A = np.ones((30, 20))
    A[17, 5] = bad
    path = tmp_path / f"A.{kind}"
    if kind == "npy":
        np.save(path, A)
    elif kind == "npz":
        sparse.save_npz(path, sparse.csr_array(A))
    else:
        with h5py.File(path, "w") as file:
            file["A"] = A
    assert_fails(tmp_path, capsys, path, "-k", 2, match="A must be finite")


def test_rank_that_is_too_large_for_the_matrix(path, tmp_path, capsys):
    assert_fails(tmp_path, capsys, path, "-k", 21, match="k must be in 1..20 for A of shape (40, 20); got 21.")


def test_failure_while_writing_leaves_the_old_file(path, tmp_path, capsys, monkeypatch):
    (tmp_path / "out.npz").write_bytes(b"old")

    def savez(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    assert_fails(tmp_path, capsys, path, "-k", 2, match="No space left on device")
    assert (tmp_path / "out.npz").read_bytes() == b"old"


@pytest.mark.parametrize("where", ["svd", "savez"])
def test_interrupt_leaves_nothing_behind(path, tmp_path, capsys, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((rnla, "svd") if where == "svd" else (np, "savez")), interrupt)
    assert_fails(tmp_path, capsys, path, "-k", 2, match="interrupted")


def test_memory_that_does_not_suffice(path, tmp_path, capsys, monkeypatch):
    def svd(*args, **kwargs):
        raise MemoryError("Unable to allocate 1 PiB\nfor an array")

    monkeypatch.setattr(rnla, "svd", svd)
    assert_fails(tmp_path, capsys, path, "-k", 2, match="out of memory: Unable to allocate 1 PiB for an array")


def test_plot_without_matplotlib_fails_before_the_work(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(rnla, "svd", None)
    assert_fails(tmp_path, capsys, path, "-k", 2, match="pip install 'rnla[viz]'")


def test_a_result_that_did_not_converge_is_written_and_said_so(tmp_path, capsys):
    np.save(tmp_path / "A.npy", rnla.testing.matrix_with_spectrum(300, 200, np.linspace(1, 0.9, 200), rng=0))
    arguments = ("--method", "krylov", "--tol", 1e-12, "--max-passes", 3, "--seed", 0, "-o", tmp_path / "out.npz")
    assert run("svd", tmp_path / "A.npy", "-k", 20, "--json", *arguments) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["converged"] is False
    assert printed.err.startswith("rnla svd: not converged: ")
    assert printed.err.endswith(f"; what was reached is in {tmp_path / 'out.npz'}\n")
    assert printed.err.count("\n") == 1
    with np.load(tmp_path / "out.npz") as out:
        assert out["S"].shape == (20,)


def test_other_warnings_become_one_line_each(path, capsys, monkeypatch):
    import warnings

    svd = rnla.svd

    def warn_and_compute(*args, **kwargs):
        warnings.warn("the last values are\nuncertain", rnla.AccuracyWarning, stacklevel=2)
        return svd(*args, **kwargs)

    monkeypatch.setattr(rnla, "svd", warn_and_compute)
    assert run("svd", path, "-k", 2) == 0
    assert capsys.readouterr().err == "rnla svd: warning: the last values are uncertain\n"


# ---- usage: exit code 2


@pytest.mark.parametrize(
    "line",
    [
        "",
        "svd",
        "nothing",
        "svd A.npy",
        "svd A.npy -k 0",
        "svd A.npy -k 2.5",
        "svd A.npy -k 2 --tol -1",
        "svd A.npy -k 2 --tol nan",
        "svd A.npy --rtol inf",
        "svd A.npy -k 2 --method best",
        "svd A.npy -k 2 --max-passes 0",
        "svd A.npy -k 2 --seed -1",
        "svd A.npy -k 2 -o out.txt",
        "svd A.npy -k 2 -o missing/out.npz",
        "svd A.npz -k 2 -o A.npz",
        "svd A.npy -k 2 --plot scree.doc",
        "svd A.npy -k 2 --json --quiet",
        "demo -o picture.doc",
        "demo -o missing/picture.png",
        "demo --seed x",
        "info --yaml",
    ],
)
def test_wrong_command_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        rnla.cli.main(line.split())
    assert ended.value.code == 2
    assert "usage: rnla" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        rnla.cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rnla {rnla.__version__}\n"


# ---- progress


class Terminal:
    """A stderr that says it is a terminal and keeps what is written."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_progress_is_drawn_on_a_terminal_only(path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    arguments = ("svd", path, "-k", 4, "--tol", 1e-8, "--method", "krylov")
    assert run(*arguments) == 0
    assert "rnla.svd" in terminal.text
    assert "blocks" in terminal.text
    terminal.text = ""
    assert run(*arguments, "--quiet") == 0
    assert terminal.text == ""


def test_no_progress_without_tqdm(path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run("svd", path, "-k", 4) == 0
    assert terminal.text == ""


# ---- rnla info, rnla demo, python -m rnla


def test_info_as_text_and_as_json(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    assert run("info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"]["h5py"] == h5py.__version__
    assert facts["threads"] >= 1
    assert facts["devices"][0] == "cpu"
    assert facts["blas"]
    for name, version in facts["versions"].items():
        assert f"{name} " in text
        assert (version or "not installed") in text


def test_info_counts_the_threads_it_may_use(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run("info", "--json") == 0
    assert json.loads(capsys.readouterr().out)["threads"] == 1


def test_compare_prints_true_errors(capsys):
    A = rnla.testing.matrix_with_spectrum(60, 50, 1 / np.arange(1.0, 51), rng=0)
    results, S = rnla._demo.compare(sparse.csr_array(A), (2, 5), 0)
    np.testing.assert_allclose(S, 1 / np.arange(1.0, 51), rtol=1e4 * np.finfo(float).eps)
    assert [result.S.size for result in results] == [2, 5]
    for line, k in zip(capsys.readouterr().out.splitlines()[-2:], (2, 5), strict=True):
        columns = line.split()
        optimum = np.linalg.norm(S[k:]) / np.linalg.norm(S)
        assert int(columns[0]) == k
        assert float(columns[2]) == pytest.approx(optimum, abs=1e-6)  # printed with six digits
        assert float(columns[1]) == pytest.approx(float(columns[3]) * optimum, abs=2e-6)
        assert 1 - 1e-6 <= float(columns[3]) < 1.1
        assert columns[-1].endswith("x")


def test_demo_prints_a_table_and_draws_a_picture(tmp_path, capsys, monkeypatch):
    # A part of the roads: of all 2642 LAPACK alone needs most of a minute.
    roads, xy = rnla.datasets.load_road_network()
    monkeypatch.setattr(rnla.datasets, "load_road_network", lambda: (roads[:800, :800], xy[:800]))
    monkeypatch.setattr(rnla._demo, "REPEATS", 1)
    assert run("demo", "-o", tmp_path / "demo.png") == 0
    text = capsys.readouterr().out
    assert "photograph" in text
    assert "road network" in text
    rows = [line.split() for line in text.splitlines() if line.endswith("x")]
    assert [int(row[0]) for row in rows] == [10, 50, 100] * 2
    assert all(0.999999 <= float(row[3]) < 1.05 for row in rows)
    with Image.open(tmp_path / "demo.png") as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    assert pixels.shape == (800, 1200)
    top, bottom = np.array_split(pixels, 2)
    # Photographs above, plots on white below; each third of both rows has something on it.
    for part in (*np.array_split(top, 3, axis=1), *np.array_split(bottom, 3, axis=1)):
        assert part.std() > 10
    assert files(tmp_path) == ["demo.png"]


def test_python_m_rnla_is_the_command(path):
    checkout = Path(rnla.cli.__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "rnla", "svd", str(path), "-k", "99"]
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "rnla svd: k must be in 1..20 for A of shape (40, 20); got 99.\n"
