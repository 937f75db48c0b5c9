"""rnla.learn_transition_operator: solved problems by samples and steps, growth with the size, a road network.

solved    instances with an error of the operator below 1e-3
"""

import time
import warnings
from pathlib import Path

import numpy as np
import scipy.sparse

import rnla
from bench import harness
from bench.harness import number

RATIOS = (1.5, 1.8, 2.2, 2.6, 3.0, 4.0)
# Successes of 6 of a prototype, graphs of 60 nodes, rank 3.
PROTOTYPE = {
    ("erdos_renyi", 1): (3, 2, 6, 6, 6, 6), ("erdos_renyi", 2): (0, 0, 0, 3, 4, 5),
    ("erdos_renyi", 3): (0, 3, 5, 6, 6, 6), ("erdos_renyi", 5): (0, 2, 4, 6, 5, 6),
    ("erdos_renyi", 8): (0, 0, 1, 2, 5, 6), ("block_model", 1): (3, 2, 6, 6, 6, 6),
    ("block_model", 3): (2, 5, 6, 6, 6, 6), ("block_model", 5): (1, 5, 6, 6, 6, 6),
    ("block_model", 8): (0, 4, 5, 5, 6, 6),
}  # fmt: skip


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--table", choices=sorted(TABLES), help="run this table only")
    parser.add_argument("--quick", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with minnesota.npz")


def run(options, report):
    """Run the tables, one or all."""
    harness.run_tables(TABLES, options, report)


def learned(graph, n_steps, ratio, seed, **options):
    """Sample a graph's operator and learn it; return the result, its error and the seconds."""
    k, n = len(graph.s), len(graph.U)
    count = round(ratio * k * (2 * n - k))
    samples = rnla.datasets.space_time_samples((graph.U, graph.s, graph.Vh), n_steps, count, rng=seed)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = rnla.learn_transition_operator(samples, k, n=n, n_steps=n_steps, rng=0, **options)
    seconds = time.perf_counter() - begin
    left = np.hstack([result.U * result.s, -graph.U * graph.s])
    right = np.hstack([result.Vh.T, graph.Vh.T])
    error = np.linalg.norm(np.linalg.qr(left)[1] @ np.linalg.qr(right)[1].T) / np.linalg.norm(graph.s)
    return result, float(error), seconds


def table_phase(options):
    """Solved problems against the number of steps and of samples."""
    rows = []
    for (kind, n_steps), prototype in list(PROTOTYPE.items())[:: 5 if options.quick else 1]:
        row = {"kind": kind, "n_steps": n_steps, "prototype": list(prototype), "solved": []}
        for ratio in (2.6,) if options.quick else RATIOS:
            solved = 0
            for seed in range(1 if options.quick else 6):
                size = {"sizes": (20, 20, 20)} if kind == "block_model" else {"n": 60}
                graph = rnla.datasets.graph_operator(kind, k=3, rng=seed, **size)
                solved += learned(graph, n_steps, ratio, seed + 100, max_iter=120)[1] < 1e-3
            row["solved"].append(solved)
        rows.append(row)
    columns = {"graph": lambda row: row["kind"], "T": lambda row: str(row["n_steps"])}
    for i, ratio in enumerate(RATIOS):
        columns[f"{ratio}"] = lambda row, i=i: (
            f"{row['solved'][i]} ({row['prototype'][i]})" if i < len(row["solved"]) else "-"
        )
    return "phase: solved of 6 (prototype), by samples over degrees of freedom", rows, columns


def table_growth(options):
    """Time of a step of conjugate gradients against the number of nodes."""
    rows = []
    for n in (60, 120) if options.quick else (250, 500, 1000, 2000, 4000):
        rng = np.random.default_rng(0)
        U = np.linalg.qr(rng.standard_normal((n, 5)))[0]
        graph = rnla.datasets.graph_operator(scipy.sparse.eye_array(n), k=1)._replace(
            U=U, s=np.linspace(1.0, 0.6, 5), Vh=U.T
        )
        result, error, seconds = learned(graph, 5, 4.0, 0)
        steps = int(result.history.cg_iterations.sum())
        rows.append({
            "n": n, "iterations": result.n_iter, "ms": 1e3 * seconds / steps, "seconds": seconds, "error": error,
        })  # fmt: skip
    slope = np.polyfit(np.log([row["n"] for row in rows]), np.log([row["ms"] for row in rows]), 1)[0]
    for row in rows:
        row["slope"] = float(slope)
    return "growth", rows, {
        "n": lambda row: str(row["n"]), "iterations": lambda row: str(row["iterations"]),
        "s": lambda row: number(row["seconds"], ".2f"), "ms a step, all included": lambda row: number(row["ms"], ".2f"),
        "error": lambda row: number(row["error"]), "exponent": lambda row: number(row["slope"], ".2f"),
    }  # fmt: skip


def table_roads(options):
    """Learn the heat flow on the roads of Minnesota, from about a hundredth of its entries."""
    rows = []
    if options.data is None:
        print("give --data DIR with minnesota.npz")
    else:
        data = np.load(options.data / "minnesota.npz")
        n, ones = int(data["n"]), np.ones(len(data["row"]))
        W = scipy.sparse.coo_array((ones, (data["row"].astype(int), data["col"].astype(int))), shape=(n, n)).tocsr()
        graph = rnla.datasets.graph_operator(W + W.T, tau=200.0, k=5)
        for n_steps, ratio in ((1, 3.0), (5, 5.0)):
            result, error, seconds = learned(graph, n_steps, ratio, 0)
            share = ratio * 5 * (2 * n - 5) / (n * n * n_steps)
            rows.append({
                "n_steps": n_steps, "ratio": ratio, "share": share, "error": error, "seconds": seconds,
                "iterations": result.n_iter,
            })  # fmt: skip
    return "roads", rows, {
        "T": lambda row: str(row["n_steps"]), "samples / degrees": lambda row: str(row["ratio"]),
        "share of the entries": lambda row: f"{row['share']:.2%}", "error": lambda row: number(row["error"]),
        "iterations": lambda row: str(row["iterations"]), "s": lambda row: number(row["seconds"], ".1f"),
        "prototype": lambda row: "5e-12",
    }  # fmt: skip


TABLES = {"phase": table_phase, "growth": table_growth, "roads": table_roads}
