"""What every benchmark shares: interleaved ratios, peak memory, the machine, and the report."""

import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("numpy", "scipy", "numba", "scikit-learn", "torch", "dask", "distributed", "zarr", "fbpca", "primme")


def race(ours, peer, *, repeats, budget, clock=time.perf_counter):
    """Time two calls in turns and return their median seconds and the median of peer time over our time.

    Turns make both sides see the same state of the machine. Both must have been called once before, untimed: imports,
    JIT compilation, page faults. After three turns the race ends when `budget` seconds are spent, after one turn when
    three times as much is.
    """
    pairs = []
    start = time.perf_counter()
    for turn in range(repeats):
        spent = time.perf_counter() - start
        if (turn >= 3 and spent > budget) or (turn >= 1 and spent > 3 * budget):
            break
        if turn % 2:
            pairs.append((seconds(ours, clock), seconds(peer, clock)))
        else:
            pairs.append((seconds(peer, clock), seconds(ours, clock))[::-1])
    return {
        "seconds_ours": statistics.median(ours for ours, _ in pairs),
        "seconds_peer": statistics.median(peer for _, peer in pairs),
        "ratio": statistics.median(peer / ours for ours, peer in pairs),
        "repeats": len(pairs),
    }


def seconds(call, clock=time.perf_counter):
    """Return the seconds that one call takes."""
    start = clock()
    call()
    return clock() - start


def peak_memory(call):
    """Return the result of `call` and by how many bytes the resident memory of the process rose during it.

    Resident memory counts what every library allocates (NumPy, Fortran work arrays, torch), which tracemalloc does
    not. The kernel's high-water mark is reset first; where it cannot be (other systems than Linux) the rise is None.
    """
    gc.collect()
    try:
        # Memory that the allocator kept from earlier calls would be used again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
    except (OSError, AttributeError):
        return call(), None
    result = call()
    return result, max(0, status_bytes("VmHWM") - before)


def status_bytes(name):
    """Return one memory figure of this process from Linux, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def limit_threads(threads):
    """Hold BLAS and the peers to `threads` threads from now on."""
    import numpy  # noqa: F401  (loads the BLAS that is to be limited)
    import scipy.linalg  # noqa: F401

    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
    if importlib.util.find_spec("primme"):
        import primme  # noqa: F401  (may bring a BLAS of its own)
    if importlib.util.find_spec("dask"):
        import dask

        dask.config.set(scheduler="threads", num_workers=threads)
    if importlib.util.find_spec("threadpoolctl"):
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
    else:
        print("threadpoolctl is not installed: the environment alone limits the threads of BLAS", file=sys.stderr)


def machine(threads):
    """Return what a reader needs to judge the figures: machine, system, versions, threads and load."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": _thread_pools(),
        "versions": {name: _version(name) for name in VERSIONS},
        "date": time.strftime("%Y-%m-%d"),
    }


def _thread_pools():
    if not importlib.util.find_spec("threadpoolctl"):
        return []
    from threadpoolctl import threadpool_info

    return sorted({f"{pool['internal_api']} {pool['version'] or ''}".strip() for pool in threadpool_info()})


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class Report:
    """Collects rows in named tables and writes them to JSON as they come, so that a long run can be cut short."""

    def __init__(self, benchmark, path):
        self.path = path
        self.content = {"benchmark": benchmark, "machine": {}, "tables": {}}
        self.start = time.perf_counter()

    def header(self, threads):
        """Print and keep the description of the machine."""
        about = self.content["machine"] = machine(threads)
        print(f"{about['cpu']}, {about['cores']} cores, {threads} threads, load {about['load']}, {about['system']}")
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        print(f"Python {about['python']}, {versions}, {', '.join(about['blas'])}", flush=True)

    def add(self, title, rows):
        """Add rows (dicts) to a table and write the file."""
        self.content["tables"].setdefault(title, []).extend(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1, default=float) + "\n")
        partial.replace(self.path)

    def table(self, title, columns):
        """Print a table as Markdown; `columns` maps each heading to a function from the row to its text."""
        rows = self.content["tables"].get(title, [])
        lines = [list(columns)] + [[text(row) for text in columns.values()] for row in rows]
        widths = [max(len(line[c]) for line in lines) for c in range(len(columns))]
        cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        cells.insert(1, ["-" * width for width in widths])
        print(f"\n### {title}\n")
        print("\n".join("| " + " | ".join(line) + " |" for line in cells), flush=True)

    def progress(self, text):
        """Say on stderr what is being run, with the seconds since the start."""
        print(f"[{time.perf_counter() - self.start:6.0f} s] {text}", file=sys.stderr, flush=True)

    def close(self):
        """Say where the results are."""
        self.progress(f"results in {self.path}")


def run_tables(tables, options, report):
    """Run the table that the options name, or all: functions of the options that return title, rows and columns."""
    for name in [options.table] if options.table else list(tables):
        report.progress(f"table {name}")
        title, rows, columns = tables[name](options)
        report.add(title, rows)
        report.table(title, columns)


def tolerance(tol):
    """Write a tolerance the short way: 1e-4."""
    return f"{tol:g}" if tol >= 1e-3 or tol == 0 else f"{tol:.0e}".replace("e-0", "e-")


def number(value, form=".1e"):
    """Format a number for a table; a dash where there is none."""
    return "-" if value is None else format(value, form)
