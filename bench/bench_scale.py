"""rnla.svd of files larger than memory, as they are and through dask, against dask and scikit-learn at equal error."""

import contextlib
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import scale_data, scale_model
from bench.harness import number

TABLE = "larger than memory"
WEAK = "weak scaling: as many bytes for each worker"
CALIBRATION = "settings of svd_compressed"
USUAL_POWER = 2  # power iterations of svd_compressed: those that its users mostly ask for
POLL = 0.1  # seconds between two looks at a running method


@dataclass(frozen=True)
class Run:
    """One way to decompose the file, or to read it."""

    title: str
    method: str
    scheduler: str = "none"  # "none", "threads" or "cluster"
    workers: int = 0
    compute: bool = True  # of svd_compressed: compute, and load, at each use; False: hold what is used again
    layouts: tuple = scale_data.LAYOUTS
    part: float = 1.0  # of the rows of blocks, for weak scaling
    aim: str = ""  # "usual": svd_compressed as it is mostly called, and rnla with as few passes as give its error;
    # "equal": rnla with as few passes as give the error of svd_compressed at its most accurate


RUNS = (
    Run("read once", "read once"),
    Run("rnla, file", "rnla.svd of the file"),
    Run("rnla, dask, threads", "rnla.svd of dask", "threads"),
    Run("rnla, dask, 1 worker", "rnla.svd of dask", "cluster", 1),
    Run("rnla, dask, 2 workers", "rnla.svd of dask", "cluster", 2),
    Run("svd_compressed, compute=True, threads", "svd_compressed", "threads"),
    Run("svd_compressed, compute=False, threads", "svd_compressed", "threads", compute=False),
    Run("svd_compressed, compute=True, 2 workers", "svd_compressed", "cluster", 2),
    Run("rnla, dask, threads, passes for equal error", "rnla.svd of dask", "threads", aim="equal"),
    Run("rnla, dask, threads, few passes", "rnla.svd of dask", "threads", aim="usual"),
    Run("svd_compressed as usual, compute=True, threads", "svd_compressed", "threads", aim="usual"),
    Run("rnla.svd_stream, one pass", "rnla.svd_stream", layouts=("tall",)),
    Run("IncrementalPCA", "IncrementalPCA"),
    Run("half of the rows: rnla, dask, 1 worker", "rnla.svd of dask", "cluster", 1, layouts=("tall",), part=0.5),
)


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--gb", type=float, default=8.0, help="size of each file (default 8; 24 is more than memory)")
    parser.add_argument("--tiny", action="store_true", help="files of a megabyte: tests the benchmark itself")
    parser.add_argument("--only", metavar="PATTERN", help="what matches, such as 'tall: rnla*' or 'model'")
    parser.add_argument("--scratch", type=Path, help="where the files go (default: TMPDIR)")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one method (default 3600)")
    parser.add_argument("--memory-gb", type=float, help="memory for one method and its workers (default: 90%% of all)")


def run(options, report):
    """Write one file after the other, run everything on it, delete it, and print the tables."""
    gigabytes = 0.001 if options.tiny else options.gb
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the file is deleted then, too
    try:
        for layout in scale_data.LAYOUTS:
            chosen = [run for run in RUNS if layout in run.layouts and wanted(options, f"{layout}: {run.title}")]
            if chosen:
                decompose(scale_data.plan(layout, gigabytes), chosen, options, report)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if TABLE in report.content["tables"]:
        report.table(TABLE, COLUMNS)
        weak = weak_scaling(report.content["tables"][TABLE])
        if weak:
            report.add(WEAK, weak)
            report.table(WEAK, WEAK_COLUMNS)
    if wanted(options, "model"):
        scale_model.run(report)


def wanted(options, name):
    """Say whether ``--only`` lets something through."""
    return options.only is None or fnmatch.fnmatch(name, options.only)


def decompose(plan, chosen, options, report):
    """Run methods on one file, each in a fresh process and with the file dropped from the cache."""
    folder = options.scratch or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < 1.1 * plan.size:
        raise SystemExit(
            f"bench scale: the {plan.layout} file needs {plan.size / 1e9:.1f} GB in {folder} (--scratch); free "
            f"{free / 1e9:.1f}."
        )
    with vanishing(folder) as own:
        report.progress(f"writing {plan.size / 1e9:.3f} GB to {own}")
        path, settings, rows = scale_data.write(plan, own), None, []
        for run in chosen:
            if (run.aim or run.method == "svd_compressed") and settings is None:
                settings = settings_for(plan, path, rows, options, report)
            row = measured(run, plan, path, settings, options)
            rows.append(row)
            row["over_read"] = over(row, [r for r in rows if r["title"] == "read once"])
            # rnla on the same scheduler: its error is no larger, where the peer could reach it.
            row["over_rnla"] = over(row, [r for r in rows if r["title"] == rival(run)])
            report.add(TABLE, [row])
            took = (
                f"{number(row.get('seconds'), '.1f')} s, errors {number(row.get('sigma'))} {number(row.get('excess'))}"
            )
            report.progress(f"{plan.layout}: {run.title}: {row['outcome']}, {took}")


@contextlib.contextmanager
def vanishing(folder):
    """Give a new folder, and delete it in the end, whatever ends it."""
    own = Path(tempfile.mkdtemp(dir=folder, prefix="rnla-bench-"))
    try:
        yield own
    except BaseException:
        # Zarr writes in a thread of its own: what is under way there comes back after it was deleted.
        for _ in range(10):
            shutil.rmtree(own, ignore_errors=True)
            time.sleep(0.1)
        raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def rival(run):
    """Return the title of the run of rnla that a peer is compared with."""
    scheduler = {"none": "file", "threads": "dask, threads", "cluster": f"dask, {run.workers} workers"}[run.scheduler]
    return None if run.part != 1 else f"rnla, {scheduler}" + (", few passes" if run.aim else "")


def over(row, others):
    """Return the seconds of a row over those of another, if both were measured."""
    found = [other["seconds"] for other in others if "seconds" in other]
    return row["seconds"] / found[0] if found and "seconds" in row else None


def settings_for(plan, path, rows, options, report):
    """Return how svd_compressed and rnla are to be called so that their errors are equal, either way.

    With ``iterator`` and ``power`` svd_compressed is as accurate as rnla was by default, in the fewest reads; with
    ``max_passes`` rnla is as accurate as svd_compressed, as usual and in that setting. If nothing that is tried is, the
    most accurate is taken.
    """
    outcome, tried = in_fresh_process({**job_of(RUNS[0], plan, path, None, options), "method": "calibrate"}, options)
    if tried is None:
        raise SystemExit(f"bench scale: {CALIBRATION} could not be found out: {outcome}.")
    ours, peers = ([row for row in tried if (row["iterator"] is None) == mine] for mine in (True, False))
    usual = next(row for row in peers if (row["iterator"], row["power"]) == ("power", USUAL_POWER))
    measured = [row for row in rows if row["title"].startswith("rnla, ") and "sigma" in row] or [usual]
    equal = equal_or_best(peers, {name: max(row[name] for row in measured) for name in ("sigma", "excess")})
    few, same = (equal_or_best(ours, {name: row[name] for name in ("sigma", "excess")}) for row in (usual, equal))
    chosen = (equal, few, same)
    report.add(CALIBRATION, [{"layout": plan.layout, **row, "chosen": row in chosen} for row in tried])
    return {
        "iterator": equal["iterator"],
        "power": equal["power"],
        "max_passes": {"usual": few["reads"], "equal": same["reads"]},
    }


def equal_or_best(tried, target):
    """Return the one with the fewest reads whose errors are all within the target, or else the most accurate one."""
    distance = [max(row[name] / max(target[name], 1e-16) for name in target) for row in tried]
    enough = [row for row, far in zip(tried, distance, strict=True) if far <= 1]
    if enough:
        return min(enough, key=lambda row: row["reads"])
    return tried[distance.index(min(distance))]


def measured(run, plan, path, settings, options):
    """Return the row of one method."""
    scale_data.forget(path)
    job = job_of(run, plan, path, settings, options)
    outcome, found = in_fresh_process(job, options)
    size = plan.size * job["down"] / plan.grid[0]
    row = {
        "layout": plan.layout, "title": run.title, "scheduler": run.scheduler, "workers": run.workers,
        "shape": [job["down"] * plan.block[0], plan.shape[1]], "chunk": list(plan.block), "gigabytes": size / 1e9,
        "k": plan.rank, "outcome": outcome,
    }  # fmt: skip
    if found is None:
        return row
    # dask loads through a function that counts. A map or a Zarr array is read whole in every pass.
    counted = found.pop("loaded")
    found["bytes"] = counted or found.get("passes", 0) * size
    return row | found | {"loads": found["bytes"] / size}


def job_of(run, plan, path, settings, options):
    """Return what the child process needs to know."""
    if run.aim:
        settings = {"iterator": "power", "power": USUAL_POWER, "max_passes": settings["max_passes"][run.aim]}
    elif settings is not None:
        settings = {**settings, "max_passes": None}
    return {
        "layout": plan.layout, "block": plan.block, "grid": plan.grid, "method": run.method, "path": str(path),
        "scheduler": run.scheduler, "workers": run.workers, "compute": run.compute, "settings": settings,
        "down": max(1, round(run.part * plan.grid[0])), "threads": options.threads, "memory": memory_limit(options),
        "folder": str(path.parent), "log": str(path.parent / "loads"),
    }  # fmt: skip


def memory_limit(options):
    """Return how many bytes a method and its workers may hold together."""
    import psutil

    return int(1e9 * options.memory_gb) if options.memory_gb else int(0.9 * psutil.virtual_memory().total)


def in_fresh_process(job, options):
    """Run one method in a process of its own; return how it ended and what it found, or None."""
    Path(job["log"]).unlink(missing_ok=True)
    # dask runs blocks side by side: BLAS threads beneath would compete for the same cores.
    blas = 1 if job["scheduler"] != "none" else options.threads
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(blas))
    root = str(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory(dir=job["folder"]) as own:
        result, errors = Path(own) / "result.json", Path(own) / "stderr"
        with errors.open("w") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "bench.scale_child", json.dumps(job), result],
                env={**os.environ, **limits, "PYTHONPATH": root},
                cwd=root, stdout=stderr, stderr=stderr, start_new_session=True,
            )  # fmt: skip
            try:
                outcome = watched(child, result, options.timeout, job["memory"])
            finally:
                end(child)
        if outcome == "failed":
            lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
            outcome = f"failed: {lines[-1][:200] if lines else f'exit code {child.returncode}'}"
        return outcome, json.loads(result.read_text()) if result.exists() else None


def watched(child, result, timeout, memory):
    """Wait for a child; it and its workers are ended beyond the limits, which hold until there is a result."""
    start = time.monotonic()
    while child.poll() is None:
        if not result.exists():
            if time.monotonic() - start > timeout:
                return f"out of time (> {timeout:g} s)"
            if held(child.pid) > memory:
                return f"out of memory (> {memory / 1e9:.1f} GB)"
        time.sleep(POLL)
    if child.returncode == -signal.SIGKILL:
        return "killed by the system"
    return "done" if child.returncode == 0 else "failed"


def held(pid):
    """Return the memory of a process and its children that is not a mapped file, in bytes."""
    import psutil

    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            memory = process.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
        except psutil.NoSuchProcess:
            continue
    return total


def end(child):
    """End a child and its workers, which share its session, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def weak_scaling(rows):
    """Return seconds of half of the rows on one worker, of all on two, and the share of the speed that is kept."""
    found = {row["title"]: row for row in rows if row["layout"] == "tall" and row.get("seconds")}
    half, whole = (found.get(name) for name in ("half of the rows: rnla, dask, 1 worker", "rnla, dask, 2 workers"))
    if half is None or whole is None:
        return []
    each = [
        {"workers": row["workers"], "gigabytes": row["gigabytes"], "seconds": row["seconds"], "loads": row["loads"]}
        for row in (half, whole)
    ]
    # As many bytes for each worker: but the number of passes is that of the iteration, and is taken out.
    pace = [row["seconds"] / row["loads"] for row in each]
    return [{**row, "efficiency": pace[0] / own} for row, own in zip(each, pace, strict=True)]


def megabytes(row, name):
    values = row.get(name)
    if not values:
        return "-"
    return ", ".join(f"{value / 1e6:.0f}" for value in (values if isinstance(values, list) else [values]))


COLUMNS = {
    "file": lambda row: f"{row['layout']} {row['gigabytes']:.3g} GB",
    "shape": lambda row: "x".join(map(str, row["shape"])),
    "method": lambda row: row["title"] + (f", q={row['power']} {row['iterator']}" if "power" in row else ""),
    "outcome": lambda row: row["outcome"],
    "seconds": lambda row: number(row.get("seconds"), ".1f"),
    "over one read": lambda row: number(row["over_read"], ".1f"),
    "over rnla": lambda row: number(row["over_rnla"], ".2f"),
    "passes": lambda row: number(row.get("passes"), ".0f"),
    "GB read": lambda row: number(row["bytes"] / 1e9 if "bytes" in row else None, ".3g"),
    "as reads": lambda row: number(row.get("loads"), ".2f"),
    "peak MB client": lambda row: megabytes(row, "peak_client"),
    "peak MB workers": lambda row: megabytes(row, "peak_workers"),
    "sigma err": lambda row: number(row.get("sigma")),
    "excess": lambda row: number(row.get("excess")),
}
WEAK_COLUMNS = {
    "workers": lambda row: str(row["workers"]),
    "GB": lambda row: number(row["gigabytes"], ".3g"),
    "seconds": lambda row: number(row["seconds"], ".1f"),
    "reads": lambda row: number(row["loads"], ".2f"),
    "speed kept, for each read": lambda row: number(row["efficiency"], ".2f"),
}
