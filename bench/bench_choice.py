"""The thresholds of ``method="auto"``: each case near one of them is run in every way that it chooses between.

A threshold is right where the automatic choice is not slower than the alternatives on either side of it.
"""

import functools
import warnings

import numpy as np
import scipy.sparse

import rnla
from bench import harness
from bench.harness import number

TITLE = "choice: time of each alternative over that of the automatic choice (below one: the choice is wrong)"
DENSE_OR_KRYLOV = {"dense": {"method": "dense"}, "gram": {"method": "gram"}}
QR_OR_KRYLOV = {"qr": {"method": "qr"}, "gram": {"method": "gram"}}
# Threshold, shape, k, alternatives.
CASES = (
    *(("DENSE_SIDE", (n, n), 5, DENSE_OR_KRYLOV) for n in (48, 64, 96, 128, 256)),
    *(("DENSE_SIDE", (20000, n), 5, QR_OR_KRYLOV) for n in (48, 64, 96, 128)),
    *(("DENSE_SHARE", (1000, 1000), k, DENSE_OR_KRYLOV) for k in (100, 200, 300, 400, 600)),
    *(("DENSE_LIMIT", (n, n), n // 3, DENSE_OR_KRYLOV) for n in (1500, 3000)),
    *(("QR_ASPECT", (a * 600, 600), 300, {"dense": {"method": "dense"}, "qr": {"method": "qr"}}) for a in (1, 2, 3, 5)),
    *(("QR_WIDTH", (20000, 30 * blocks), 20, QR_OR_KRYLOV) for blocks in (3, 5, 6, 8, 12)),
    *(
        ("WIDE_BLOCK", (4000, 4000), k, {f"block {b}": {"method": "gram", "block_size": b} for b in (k + 10, k // 3)})
        for k in (50, 80, 120, 200)
    ),
)
SPARSE_WIDTHS = (4, 8, 16, 32, 60)


def table_choice():
    """Run every case and return the table."""
    rows = [measure(threshold, dense(shape), k, ways) for threshold, shape, k, ways in CASES]
    A = scipy.sparse.random_array((100_000, 30_000), density=1e-3, format="csr", rng=np.random.default_rng(0))
    ways = {f"block {b}": {"method": "gram", "block_size": b} for b in SPARSE_WIDTHS}
    rows += [measure("CHEAP_BLOCKS (sparse)", A, k, ways) for k in (10, 50)]
    return TITLE, rows, COLUMNS


@functools.lru_cache(maxsize=1)
def dense(shape):
    """Return a dense matrix whose spectrum decays slowly: where it decays fast, every method is quick."""
    return rnla.testing.matrix_with_spectrum(*shape, rnla.testing.spectrum("slow", min(shape)), rng=0)


def measure(threshold, A, k, ways):
    """Race each of some ways of computing the SVD of A against the automatic choice."""

    def call(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rnla.ConvergenceWarning)
            return rnla.svd(A, k, rng=0, **options)

    chosen = call().info
    ratios = {}
    for name, options in ways.items():
        call(**options)
        race = harness.race(call, lambda options=options: call(**options), repeats=5, budget=1.0)
        ratios[name] = race["ratio"]
    return {
        "threshold": threshold,
        "shape": list(A.shape),
        "k": k,
        "chosen": chosen.method,
        "block_size": chosen.block_size,
        "seconds": race["seconds_ours"],
        "ratios": ratios,
    }


COLUMNS = {
    "threshold": lambda row: row["threshold"],
    "shape": lambda row: "x".join(map(str, row["shape"])),
    "k": lambda row: str(row["k"]),
    "chosen": lambda row: f"{row['chosen']} {row['block_size'] or ''}".strip(),
    "seconds": lambda row: number(row["seconds"], ".4f"),
    "alternatives": lambda row: ", ".join(f"{name}: {ratio:.2f}" for name, ratio in row["ratios"].items()),
}
