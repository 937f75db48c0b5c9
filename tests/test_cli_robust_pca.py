import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

import rnla
import rnla.cli

SHAPE = (80, 40, 50)  # frames, height, width
VIDEO = rnla.datasets.moving_rectangles(*SHAPE, n_rectangles=2, rng=3)
REAL = Path(__file__).parents[2] / "shared" / "data" / "video"


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "video.npz", frames=VIDEO.frames.astype(np.uint8))
    return tmp_path / "video.npz"


def run(*args):
    return rnla.cli.main(["robust-pca", *(str(a) for a in args)])


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_video_becomes_factors_outliers_and_a_sheet(path, tmp_path, capsys):
    out, sheet = tmp_path / "out.npz", tmp_path / "sheet.png"
    assert run(path, "-k", 1, "--seed", 0, "--polish", 1, "-o", out, "--sheet", sheet) == 0
    printed = capsys.readouterr()
    assert "80 frames of 40 x 50, uint8 converted to float32" in printed.out
    assert "noise_floor: stopped at the noise level" in printed.out
    assert printed.out.count("written: ") == 2
    assert printed.err == ""
    assert files(tmp_path) == ["out.npz", "sheet.png", "video.npz"]
    with np.load(out, allow_pickle=False) as found:
        U, s, Vh = found["U"], found["s"], found["Vh"]
        parts = [found[f"outliers_{name}"] for name in ("data", "indices", "indptr")]
        assert found["frame_shape"].tolist() == [40, 50]
    assert U.dtype == np.float32
    background = ((U * s) @ Vh).T.reshape(SHAPE)
    # From eighty values of deviation 2 for each pixel the best fit is off by 2 / 80**0.5 = 0.22; bounds that come from
    # as few values leave some of the noise out, which costs up to as much again.
    assert np.sqrt(np.mean((background - VIDEO.background) ** 2)) < 2 * 0.22
    S = sparse.csr_array(tuple(parts), shape=(2000, 80))
    moving = VIDEO.foreground.reshape(80, -1).T
    assert np.abs(S.toarray())[moving].min() > 20
    with Image.open(sheet) as image:
        assert image.size == (3 * 50 + 4, 2 * 40 + 2)


@pytest.mark.parametrize("case", ["npy", "last", "float64", "key"])
def test_layouts_and_kinds_give_the_same(case, path, tmp_path, capsys):
    run(path, "-k", 1, "--seed", 0, "--json")
    expected = json.loads(capsys.readouterr().out)
    frames, options, file = VIDEO.frames.astype(np.uint8), [], tmp_path / "other.npy"
    if case == "last":
        frames, options = np.moveaxis(frames, 0, -1), ["--time-axis", "last"]
    if case == "float64":
        frames = frames.astype(np.float64)
    if case == "key":
        file, options = tmp_path / "two.npz", ["--key", "video"]
        np.savez(file, video=frames, other=np.eye(3))
    else:
        np.save(file, frames)
    assert run(file, "-k", 1, "--seed", 0, "--json", *options) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == [2000, 80]
    assert facts["frame_shape"] == [40, 50]
    assert facts["singular_values"] == pytest.approx(expected["singular_values"], rel=1e-3)
    assert facts["outlier_share"] == pytest.approx(expected["outlier_share"], rel=0.2)


def test_json_is_one_object_with_the_facts(path, capsys):
    assert run(path, "-k", 2, "--seed", 0, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rank"], facts["method"], facts["status"]) == (2, "riecur", "noise_floor")
    assert facts["converged"] is True
    assert facts["iterations"] > 1
    assert facts["seconds"] > 0
    assert 0 < facts["outlier_share"] < 0.1
    assert facts["unresolved_rows"] == facts["unresolved_cols"] == 0
    assert facts["output"] is facts["sheet"] is None


def test_a_matrix_of_any_kind(tmp_path, capsys):
    problem = rnla.datasets.robust_pca_problem(120, 90, 2, outliers=0.1, rng=0)
    np.save(tmp_path / "A.npy", problem.A)
    assert run(tmp_path / "A.npy", "-k", 2, "--seed", 0, "--json", "-o", tmp_path / "out.npz") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["status"], facts["outlier_share"], facts["frame_shape"]) == ("converged", pytest.approx(0.1), None)
    assert run(tmp_path / "A.npy", "-k", 2, "--sheet", tmp_path / "sheet.png") == 1
    assert "--sheet needs a video" in capsys.readouterr().err
    assert (
        run(tmp_path / "A.npy", "-k", 2, "--sheet", tmp_path / "s.png", "--shape", "12x10", "--frames", "0,5,89") == 0
    )
    with Image.open(tmp_path / "s.png") as image:
        assert image.size == (3 * 10 + 4, 3 * 12 + 4)
    assert run(tmp_path / "A.npy", "-k", 2, "--shape", "12x11") == 1
    assert "as many pixels as the matrix has rows, 120" in capsys.readouterr().err


def test_an_integer_matrix_is_converted_and_a_sparse_one_refused(tmp_path, capsys):
    np.save(tmp_path / "A.npy", np.outer(np.arange(1, 41), np.ones(30, int)))
    assert run(tmp_path / "A.npy", "-k", 1, "--seed", 0) == 0
    assert "40 x 30, int64 converted to float32" in capsys.readouterr().out
    sparse.save_npz(tmp_path / "S.npz", sparse.eye_array(30, format="csr"))
    assert run(tmp_path / "S.npz", "-k", 1) == 1
    assert "rnla robust-pca: A must have entries that can be read" in capsys.readouterr().err


def test_demo_compares_with_the_truth(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rnla.datasets, "moving_rectangles", lambda rng: VIDEO)
    assert run("--demo", "--seed", 0, "--sheet", tmp_path / "demo.png") == 0
    assert "background wrong by " in capsys.readouterr().out
    assert run("--demo", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["found"] > 0.99
    assert facts["right"] > 0.5


def test_not_converged_is_exit_code_1(path, tmp_path, capsys):
    assert run(path, "-k", 1, "--max-iter", 2, "-o", tmp_path / "out.npz") == 1
    printed = capsys.readouterr()
    assert "not converged: the tolerance was not met in 2 iterations" in printed.err
    assert "what was reached is in" in printed.err
    assert "out.npz" in files(tmp_path)


def test_every_option_reaches_robust_pca(path, monkeypatch):
    seen = {}

    def robust_pca(A, k, **options):
        seen.update(options, k=k)
        raise ValueError("rnla.robust_pca: enough.")

    monkeypatch.setattr(rnla, "robust_pca", robust_pca)
    line = f"{path} -k 3 --decay 0.9 --polish 2 --max-iter 50 --seed 11 --progress"
    assert run(*line.split()) == 1
    expected = {"decay": 0.9, "polish": 2, "max_iter": 50, "rng": 11, "progress": True, "method": "riecur", "k": 3}
    assert seen == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-k 1", "one of FILE and --demo is needed"),
        ("video.npz -k 1 --demo", "one of FILE and --demo is needed"),
        ("video.npz", "-k: --method riecur needs a rank"),
        ("video.npz -k 0", "must be an integer >= 1"),
        ("video.npz -k 1 -o out.txt", "the file must end in .npz"),
        ("video.npz -k 1 --sheet out.jpg", "the file must end in .png"),
        ("video.npz -k 1 -o video.npz", "would overwrite the input"),
        ("video.npz -k 1 --sheet nowhere/out.png", "there is no folder nowhere"),
        ("video.npz -k 1 --method magic", "invalid choice"),
        ("video.npz -k 1 --shape 3", "--shape"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(line, message, path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(*line.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert files(tmp_path) == ["video.npz"]


def test_damaged_and_missing_files_are_exit_code_1(tmp_path, capsys):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    for name, message in (("bad.npz", "cannot read a matrix from"), ("none.npz", "No such file")):
        assert run(tmp_path / name, "-k", 1) == 1
        assert message in capsys.readouterr().err
    np.save(tmp_path / "words.npy", np.full((2, 2, 2), "word"))
    assert run(tmp_path / "words.npy", "-k", 1) == 1
    assert "must hold a numeric array" in capsys.readouterr().err


@pytest.mark.skipif(not (REAL / "peds.npz").exists(), reason="the video is not part of the repository")
def test_a_real_video(capsys):
    run(REAL / "peds.npz", "-k", 1, "--seed", 0, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "noise_floor"
    assert facts["unresolved_rows"] < 100
    assert 0.02 < facts["outlier_share"] < 0.05  # 3.3 % with a prototype
