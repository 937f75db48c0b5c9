"""Records, callbacks and bars follow an iteration without changing it."""

import builtins
import re
import sys

import numpy as np
import pytest

import rnla
from rnla._matrix_blocks import Blocked
from rnla._progress import Monitor, Record
from rnla.testing import CountingOperator, CountingRows, assert_orthonormal, matrix_with_spectrum, spectrum

A = matrix_with_spectrum(150, 120, spectrum("slow", 120), rng=0)
VIEWS = [np.asarray, CountingOperator, lambda A: CountingRows(A, 16)]
CALLS = {
    "gram": lambda M, **options: rnla.svd(M, 10, method="gram", tol=1e-5, rng=0, **options),
    "krylov": lambda M, **options: rnla.svd(M, 10, method="krylov", tol=1e-5, rng=0, **options),
    "gram+krylov": lambda M, **options: rnla.svd(M, 10, method="gram", tol=1e-14, max_passes=500, rng=0, **options),
    "svd to a precision": lambda M, **options: rnla.svd(M, rtol=0.3, rng=0, **options),
    "qb to a precision": lambda M, **options: rnla.qb(M, rtol=0.3, rng=0, **options),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("call", CALLS)
def test_the_callback_is_told_what_the_history_keeps(call, view):
    records = []
    result = CALLS[call](view(A), callback=records.append)
    assert tuple(records) == result.info.history
    assert len(records) > 1
    assert all(isinstance(record, Record) for record in records)
    assert [record.iteration for record in records] == list(range(1, len(records) + 1))
    assert all(record._fields == ("iteration", "error", "seconds") for record in records)
    assert np.all(np.diff([record.seconds for record in records]) >= 0)
    assert records[-1].error <= (0.3 if "precision" in call else 1e-5)
    quiet = CALLS[call](view(A))
    assert all(np.array_equal(x, y) for x, y in zip(result, quiet, strict=True))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_stop_iteration_ends_with_what_there_is(call, view, last):
    def stop(record):
        seen.append(record.iteration)
        if record.iteration == last:
            raise StopIteration

    seen = []
    result = CALLS[call](view(A), callback=stop)  # no warning: the user knows
    assert seen == list(range(1, last + 1))
    assert not result.info.converged
    assert "callback" in result.info.message
    left, right = result[0], result[-1]
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()
    assert_orthonormal(left)
    error = np.linalg.norm(A - result.to_dense()) / np.linalg.norm(A)
    assert error < 1
    if "precision" not in call:
        assert result.rank == 10
        sigma = spectrum("slow", 10)
        assert np.all(sigma * (1 + 1e-10) >= result.S)
        assert np.all(result.S[:5] >= 0.3 * sigma[:5])


def test_a_stop_at_convergence_is_convergence():
    total = len(rnla.svd(A, 10, method="gram", rng=0).info.history)

    def stop(record):
        if record.iteration == total:
            raise StopIteration

    assert rnla.svd(A, 10, method="gram", rng=0, callback=stop).info.converged


@pytest.mark.parametrize("call", CALLS)
def test_other_exceptions_of_a_callback_are_the_users(call):
    class Mine(Exception):
        pass

    def fail(record):
        raise Mine

    with pytest.raises(Mine):
        CALLS[call](A, callback=fail)
    with pytest.raises(Mine):
        CALLS[call](A, callback=fail, progress=True)


@pytest.mark.parametrize("callback", [3, "print", [print]])
@pytest.mark.parametrize("function", ["svd", "qb"])
def test_what_cannot_be_called_is_refused(callback, function):
    with pytest.raises(TypeError, match=rf"^rnla\.{function}: callback must be callable or None; got "):
        getattr(rnla, function)(A, 3, callback=callback)


@pytest.mark.parametrize("call", CALLS)
def test_the_bar_goes_to_standard_error_and_is_removed(call, capsys):
    result = CALLS[call](A, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    name = "rnla.qb" if call.startswith("qb") else "rnla.svd"
    assert name in shown.err
    assert "blocks" in shown.err
    assert shown.err.rstrip(" ").endswith("\r")  # the line is wiped
    quiet = CALLS[call](A)
    assert all(np.array_equal(x, y) for x, y in zip(result, quiet, strict=True))


FILE_CALLS = {
    "rnla.svd": lambda M: rnla.svd(M, 10, method="gram", tol=1e-5, rng=0, progress=True),
    "rnla.qb": lambda M: rnla.qb(M, rtol=0.3, rng=0, progress=True),
    "rnla.eigh": lambda M: rnla.eigh(M, 5, method="krylov", rng=0, progress=True),
    "rnla.nystrom": lambda M: rnla.nystrom(M, 20, n_iter=2, rng=0, progress=True),
    "rnla.pca": lambda M: rnla.pca(M, 5, method="gram", rng=0, progress=True),
    "rnla.lstsq": lambda M: rnla.lstsq(M, np.ones(len(A)), method="spir", rng=0, progress=True),
}


@pytest.mark.parametrize("name", FILE_CALLS)
def test_the_bar_of_a_file_fills_once_a_pass(name, capsys, monkeypatch):
    square = name in ("rnla.eigh", "rnla.nystrom")
    rows = CountingRows(A.T @ A if square else A, 16)
    size = rows.shape[0] * rows.shape[1] * 8
    hooks = []
    init = Blocked.__init__

    def note(self, *args, **options):
        init(self, *args, **options)
        hooks.append(self.after_block)

    monkeypatch.setattr(Blocked, "__init__", note)
    FILE_CALLS[name](rows)
    shown = capsys.readouterr().err
    numbers = [int(number) for number in re.findall(rf"{re.escape(name)} pass (\d+)", shown)]
    assert max(numbers) >= 2
    assert set(numbers) == set(range(1, max(numbers) + 1))
    assert f"/{size / 1000:.0f}k" in shown  # of 144 or 115.2 kB
    assert "blocks" not in shown
    assert hooks
    assert not any(hooks)  # nothing is told once the bar is gone


def test_without_a_bar_nothing_is_written(capsys):
    for call in CALLS.values():
        call(A)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without_tqdm(name, *args, **options):
        if name.split(".")[0] == "tqdm":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    with pytest.raises(ImportError, match=r"^rnla\.svd: progress=True needs tqdm: pip install 'rnla\[viz\]'$"):
        rnla.svd(A, 3, progress=True)


def test_monitor():
    records = []
    monitor = Monitor(records.append, False, "rnla.test")
    assert monitor(1) is False
    assert monitor(0.5) is False
    assert [(record.iteration, record.error) for record in records] == [(1, 1.0), (2, 0.5)]
    assert monitor.history == records
    assert not monitor.stopped
    before = monitor.seconds
    assert monitor.seconds >= before >= records[-1].seconds >= 0
    monitor.close()

    def stop(record):
        raise StopIteration

    monitor = Monitor(stop, False, "rnla.test")
    assert monitor(1.0) is True
    assert monitor.stopped
    assert len(monitor.history) == 1
