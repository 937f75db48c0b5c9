"""``rnla complete`` on files of every kind."""

import json

import numpy as np
import pytest
import scipy.sparse
from completions import problem_of

from rnla.cli import main


@pytest.fixture
def table():
    problem, exact = problem_of((40, 30), 2, 4.0)
    X = np.full(problem.shape, np.nan)
    X[problem.rows, problem.cols] = problem.values
    return X, exact


def run(capsys, *arguments):
    code = main(["complete", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_files_of_every_kind(tmp_path, capsys, table):
    X, exact = table
    known = ~np.isnan(X)
    np.save(tmp_path / "A.npy", X)
    scipy.sparse.save_npz(tmp_path / "A.npz", scipy.sparse.csr_array((X[known], np.nonzero(known)), shape=X.shape))
    lines = [f"{i}\t{j}\t{float(X[i, j])!r}\t0" for i, j in np.argwhere(known)]
    (tmp_path / "A.data").write_text("\n".join(lines))
    for name in ("A.npy", "A.npz", "A.data"):
        code, facts, _ = run(
            capsys, tmp_path / name, "-k", 2, "--center", "none", "--noise-std", 0, "--tol", 1e-9,
            "-o", tmp_path / "out.npz", "--filled", tmp_path / "out.npy",
        )  # fmt: skip
        assert (code, facts["rank"], facts["converged"], facts["entries"]) == (0, 2, True, int(known.sum()))
        found = np.load(tmp_path / "out.npz")
        np.testing.assert_allclose((found["U"] * found["s"]) @ found["Vh"], exact, atol=1e-10)
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), exact, atol=1e-10)


def test_hidden_entries_tell_the_error(tmp_path, capsys, table):
    np.save(tmp_path / "A.npy", table[1] + 0.01 * np.random.default_rng(0).standard_normal(table[1].shape))
    code, facts, _ = run(capsys, tmp_path / "A.npy", "-k", "1,2", "--keep", "0.5", "--center", "none")
    assert code == 0
    assert facts["hidden"] + facts["entries"] == 1200
    assert facts["hidden_rmse"] < 0.5 * facts["column_mean_rmse"]
    assert main(["complete", str(tmp_path / "A.npy"), "-k", "2", "--keep", "0.5"]) == 0
    assert "hidden entries" in capsys.readouterr().out


def test_failures(tmp_path, capsys, table):
    np.save(tmp_path / "A.npy", table[0])
    (tmp_path / "A.txt").write_text("a b c\n")
    assert main(["complete", str(tmp_path / "A.txt")]) == 1
    assert "row column value" in capsys.readouterr().err
    assert main(["complete", str(tmp_path / "missing.npy")]) == 1
    code, facts, err = run(capsys, tmp_path / "A.npy", "-k", 9, "--max-iter", 2, "--noise-std", 0)
    assert (code, facts["converged"]) == (1, False)
    assert "not converged" in err
    for wrong in (["-k", "0"], ["--keep", "2"], ["-o", "out.txt"], ["--filled", str(tmp_path / "none" / "a.npy")]):
        with pytest.raises(SystemExit) as ended:
            main(["complete", str(tmp_path / "A.npy"), *wrong])
        assert ended.value.code == 2
