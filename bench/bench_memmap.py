"""rnla.svd of a file larger than the memory it may use: peak resident memory, reads of the file, time."""

import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench import harness
from bench.harness import number

TITLE = "memmap"
RANK = 50


def run(gigabytes, scratch, threads, report):
    """Write the file, decompose it in one fresh process per method, print the table, and delete the file."""
    # Less than a gigabyte is a test of the benchmark: a matrix of another shape, so that it still has many blocks.
    block_rows, n = (10000, 2000) if gigabytes >= 1 else (500, 100)
    blocks = max(2, round(gigabytes * 1e9 / (4 * block_rows * n)))
    size = 4 * blocks * block_rows * n
    folder = scratch or Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if free < 1.1 * size:
        raise SystemExit(
            f"bench svd: the memmap needs {size / 1e9:.1f} GB in {folder} (--scratch); free {free / 1e9:.1f}."
        )
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / "A.npy"
        report.progress(f"writing {size / 1e9:.2f} GB to {path}")
        sigma = write(path, blocks, block_rows, n)
        for method in ("rnla", "scikit-learn"):
            report.progress(f"memmap {method}")
            drop_from_cache(path)
            row = in_fresh_process(path, method, sigma, threads)
            report.add(TITLE, [{"gigabytes": size / 1e9, "shape": [blocks * block_rows, n], "method": method, **row}])
    report.table(TITLE, COLUMNS)


def write(path, blocks, block_rows, n):
    """Write a tall matrix with known singular values, a block of rows at a time; return the leading ones.

    Every block is the same matrix B with its rows shifted and their signs changed at random, so that A^T A is
    ``blocks * B^T B`` and the singular values of A are ``sqrt(blocks)`` times those of B.
    """
    import rnla

    sigma = rnla.testing.spectrum("slow", n)
    B = rnla.testing.matrix_with_spectrum(block_rows, n, sigma, rng=0, dtype=np.float32)
    rng = np.random.default_rng(1)
    A = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(blocks * block_rows, n))
    for block in range(blocks):
        signs = rng.choice(np.array([-1, 1], dtype=np.float32), size=(block_rows, 1))
        A[block * block_rows : (block + 1) * block_rows] = np.roll(B, block, axis=0) * signs
    A.flush()
    return np.sqrt(blocks) * sigma[: min(RANK, n // 10)]


def drop_from_cache(path):
    """Ask the system to forget the file's pages, so that the first read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_fresh_process(path, method, sigma, threads):
    """Decompose the file in a process of its own, whose peak memory is then that of the method."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    code = "from bench import bench_memmap; bench_memmap.child()"
    child = subprocess.run(
        [sys.executable, "-c", code, path, method, json.dumps(list(sigma))],
        env={**os.environ, **limits},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


def child():
    """Decompose the file named on the command line and print what it took as JSON."""
    path, method, sigma = sys.argv[1], sys.argv[2], np.array(json.loads(sys.argv[3]))
    k = len(sigma)
    A = np.load(path, mmap_mode="r")
    if method == "rnla":
        import rnla

        decompose = functools.partial(rnla.svd, rng=0)
    else:
        from sklearn.utils.extmath import randomized_svd

        decompose = functools.partial(randomized_svd, random_state=0)
    imported = peak_resident()
    start = time.perf_counter()
    result = decompose(A, k)
    seconds = time.perf_counter() - start
    peak = peak_resident()

    from bench import accuracy, peers  # only now: what they import is not the method's memory

    errors = accuracy.errors(A, *result, sigma, accuracy.norm_squared(A))
    passes = result.info.passes if method == "rnla" else peers.scikit_learn().passes(A.shape, k)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "imported": imported,
                "peak": peak,
                "passes": passes,
                "sigma": errors.sigma,
                "excess": errors.excess,
                "residual": errors.residual,
            }
        )
    )


def peak_resident():
    """Return the most memory, in bytes, that this process has had resident."""
    try:
        # Not ru_maxrss: on Linux a new process starts with that of its parent.
        return harness.status_bytes("VmHWM")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


COLUMNS = {
    "GB": lambda row: number(row["gigabytes"], ".2f"),
    "shape": lambda row: "x".join(map(str, row["shape"])),
    "method": lambda row: row["method"],
    "seconds": lambda row: number(row["seconds"], ".1f"),
    "peak MB resident (rnla: <= 1000)": lambda row: number(row["peak"] / 1e6, ".0f"),
    "of which imports": lambda row: number(row["imported"] / 1e6, ".0f"),
    "reads of the file": lambda row: number(row["passes"], ".0f"),
    "sigma err": lambda row: number(row["sigma"]),
    "excess": lambda row: number(row["excess"]),
    "residual": lambda row: number(row["residual"]),
}
