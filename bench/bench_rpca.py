"""rnla.robust_pca against packages, dense alternating projections and principal component pursuit, at equal error."""

import math
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

import rnla
from bench import harness, rpca_peers, rpca_video
from bench.harness import number

SUCCESS = 1e-3  # relative error of L at which a draw of the table of tolerance counts as solved
EQUAL = 1e-5  # errors below this are equal; a faster answer above it is a loss


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--table", choices=sorted(TABLES), help="run this table only")
    parser.add_argument("--quick", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--video", type=Path, help="folder with escalator.npz and peds.npz, for table video")


def run(options, report):
    """Run the tables, one or all."""
    for name in [options.table] if options.table else list(TABLES):
        report.progress(f"table {name}")
        title, rows, columns = TABLES[name](options, report)
        report.add(title, rows)
        report.table(title, columns)


def problem(n, k, alpha, c, seed=0, **options):
    """Return A and L of the usual test problem."""
    drawn = rnla.datasets.robust_pca_problem(n, n, k, outliers=alpha, size=c, rng=seed, **options)
    return drawn.A, drawn.low_rank, drawn


def ours(A, k, **options):
    """Run rnla without its warnings: the tables show the errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        return rnla.robust_pca(A, k, rng=0, **options)


def error(L, exact):
    """Return the relative error of a low-rank part, given as an array or a result."""
    L = L.low_rank() if hasattr(L, "low_rank") else L
    return float(np.linalg.norm(L - exact) / np.linalg.norm(exact))


def race(label, A, L, k, name, peer, options=None, budget=20.0):
    """Return one row: riecur against a peer."""
    call = partial(ours, A, k, **(options or {}))
    result, theirs = call(), peer(A, k)
    times = harness.race(call, lambda: peer(A, k), repeats=7, budget=budget)
    return {
        "problem": label, "peer": name, "error_ours": error(result, L), "error_peer": error(theirs, L),
        "iterations": result.n_iter, "iterations_peer": getattr(theirs, "n_iter", None), **times,
    }  # fmt: skip


def table_solvers(options, report):
    """Ratios at equal error (B1 and the dense runs of B4)."""
    rows, k = [], 5
    methods = {
        "rnla ircur, resampled": partial(ours, method="ircur", tol=1e-6),
        "rnla ircur, fixed": partial(ours, method="ircur", tol=1e-6, resample=False),
        "rnla accaltproj": partial(ours, method="accaltproj"),
        "dense accaltproj": rpca_peers.dense_accaltproj,
        **{f"{name} (PyPI)": run for name, run in rpca_peers.PACKAGES.items()},
        "ialm, full SVDs": rpca_peers.full_ialm,
        "rnla ialm": lambda A, k: ours(A, None, method="ialm"),
    }
    for n in (300,) if options.quick else (1000, 2000, 4000):
        A, L, _ = problem(n, k, 0.1, 1.0)
        for name, peer in methods.items():
            if n > 1000 and name not in ("dense accaltproj", "rnla accaltproj", "rnla ircur, resampled"):
                continue
            report.progress(f"n={n} {name}")
            rows.append(race(f"n={n} k={k} alpha=0.1 c=1", A, L, k, name, peer))
        if n <= 1000:
            A, L, _ = problem(n, k, 0.1, 1.0)
            rows.append(ialm_race(A, L, f"n={n} k={k} alpha=0.1 c=1"))
    return "solvers", rows, RACE


def ialm_race(A, L, label):
    """Return the row of our pursuit against the same with full SVDs."""

    def call():
        return ours(A, None, method="ialm")

    result, theirs = call(), rpca_peers.full_ialm(A)
    times = harness.race(call, lambda: rpca_peers.full_ialm(A), repeats=3, budget=20.0)
    return {
        "problem": label, "peer": "rnla ialm against ialm, full SVDs", "error_ours": error(result, L),
        "error_peer": error(theirs, L), "iterations": result.n_iter, "iterations_peer": None, **times,
    }  # fmt: skip


def table_demos(options, report):
    """Run the demonstrations of two public codes (B2, B3)."""
    rows, scale = [], 10 if options.quick else 1
    A, L, _ = problem(2500 // scale, 5, 0.4, 1.0)
    label = f"n={2500 // scale} alpha=0.4 c=1"
    rows.append(race(label, A, L, 5, "rnla accaltproj", partial(ours, method="accaltproj")))
    rows.append(race(label, A, L, 5, "dense accaltproj", rpca_peers.dense_accaltproj))
    rows.append(race(label, A, L, 5, "rnla ircur, resampled", partial(ours, method="ircur", tol=1e-6)))
    n = 5000 // scale
    A, L, _ = problem(n, 5, 0.3, 5.0)
    count = min(n, math.ceil(3 * 5 * math.log(n)))
    sizes = {"n_rows": count, "n_cols": count}
    label = f"n={n} alpha=0.3 c=5, sample constant 3"
    for name, fixed in (("resampled", {}), ("fixed", {"resample": False})):
        peer = partial(ours, method="ircur", tol=1e-6, **sizes, **fixed)
        rows.append(race(label, A, L, 5, f"rnla ircur, {name}", peer, options=sizes))
    return "demonstrations", rows, RACE


def table_growth(options, report):
    """Time per iteration against n, and memory (B4)."""
    rows = []
    for n in (200, 400) if options.quick else (1000, 2000, 4000, 8000, 16000):
        A, L, _ = problem(n, 5, 0.3, 1.0)
        ours(A, 5)
        times = [harness.seconds(partial(ours, A, 5)) for _ in range(5)]
        result, peak = harness.peak_memory(partial(ours, A, 5))
        seconds = float(np.median(times))
        rows.append(
            {
                "n": n,
                "seconds": seconds,
                "iterations": result.n_iter,
                "each": seconds / result.n_iter,
                "error": error(result, L),
                "peak": None if peak is None else 1 + peak / A.nbytes,
            }
        )
        del A, L, result
    slope = np.polyfit(np.log([row["n"] for row in rows]), np.log([row["each"] for row in rows]), 1)[0]
    for row in rows:
        row["exponent"] = float(slope)
    columns = {
        "n": lambda row: str(row["n"]),
        "seconds": lambda row: f"{row['seconds']:.3f}",
        "iterations": lambda row: str(row["iterations"]),
        "ms an iteration": lambda row: f"{1e3 * row['each']:.1f}",
        "error": lambda row: number(row["error"]),
        "peak memory / input": lambda row: number(row["peak"], ".2f"),
        "exponent": lambda row: f"{row['exponent']:.2f}",
    }
    return "growth of the time of an iteration", rows, columns


def table_tolerance(options, report):
    """How many outliers are tolerated: successes of six draws (B5)."""
    rows, n, draws = [], 200 if options.quick else 1000, 2 if options.quick else 6
    settings = (
        ("riecur", 0.7, range(draws)), ("riecur", 0.9, range(draws)), ("ircur", 0.7, range(2)),
        ("accaltproj", 0.7, range(2)), ("accaltproj", 0.9, range(2)),
    )  # fmt: skip
    for method, decay, seeds in settings:
        for c in (1.0, 5.0):
            row = {"method": method, "decay": decay, "c": c}
            for alpha in (0.1, 0.3, 0.5, 0.7, 0.8, 0.85):
                solved, iterations, lied = 0, [], 0
                for seed in seeds:
                    A, L, _ = problem(n, 5, alpha, c, seed)
                    result = ours(A, 5, method=method, decay=decay)
                    good = error(result, L) < SUCCESS
                    solved, lied = solved + good, lied + (result.converged and not good)
                    iterations += [result.n_iter] if good else []
                row[f"{alpha:g}"] = {"solved": solved, "of": len(seeds), "iterations": iterations, "lied": lied}
            rows.append(row)
            report.progress(f"{method} {decay} c={c}")
    columns = {
        "method": lambda row: row["method"],
        "decay": lambda row: f"{row['decay']:g}",
        "c": lambda row: f"{row['c']:g}",
        **{f"alpha {a:g}": partial(_tolerated, name=f"{a:g}") for a in (0.1, 0.3, 0.5, 0.7, 0.8, 0.85)},
    }
    return "tolerance to outliers: solved / draws, iterations, wrong but called converged", rows, columns


def _tolerated(row, name):
    cell = row[name]
    its = cell["iterations"]
    span = f", {min(its)}-{max(its)} its" if its else ""
    return f"{cell['solved']}/{cell['of']}{span}" + (f", {cell['lied']} wrong" if cell["lied"] else "")


def table_hard(options, report):
    """Row scales, whole rows of outliers, a mean, missing entries (B6)."""
    n = 200 if options.quick else 500
    random = np.random.default_rng(0)
    problems = {f"row scales, sigma {s}": (*problem(n, 5, 0.1, 1.0, row_scale=s)[:2], None) for s in (1.0, 2.0, 3.0)}
    A, L, _ = problem(n, 5, 0.1, 1.0)
    A = A.copy()
    A[:20] = 100 * random.standard_normal((20, n))
    A[:, :20] = 100 * random.standard_normal((n, 20))
    problems["20 rows and 20 columns of noise"] = A, L, None
    A, L, _ = problem(n, 4, 0.15, 10.0)
    mean = 5 * random.standard_normal(n)
    problems["column means of 5 N(0, 1), rank 4 + 1"] = A + mean, L + mean, None
    A, L, drawn = problem(n, 5, 0.3, 5.0, missing=0.3)
    problems["30 % missing, 30 % outliers"] = A, L, drawn.mask
    rows = []
    for title, (A, L, mask) in problems.items():
        row = {"problem": title}
        for method in ("riecur", "ircur", "accaltproj", "ialm"):
            try:
                result = ours(A, None if method == "ialm" else 5, method=method, mask=mask)
            except ValueError:
                row[method] = None  # takes no mask
                continue
            inner = slice(20, None) if title.startswith("20 rows") else slice(None)
            row[method] = {
                "error": error(result.low_rank()[inner, inner], L[inner, inner]), "converged": result.converged
            }  # fmt: skip
        rows.append(row)
    columns = {
        "problem": lambda row: row["problem"],
        **{m: partial(_solved, name=m) for m in rows[0] if m != "problem"},
    }
    return "hard problems: error of L (and whether it is called converged)", rows, columns


def _solved(row, name):
    cell = row[name]
    return "-" if cell is None else f"{number(cell['error'])} ({'yes' if cell['converged'] else 'no'})"


def table_honesty(options, report):
    """Sixty problems with too many outliers: how many are solved, and how many wrong answers are called converged."""
    rows = []
    for alpha in (0.8, 0.85, 0.9, 0.95):
        solved = reported = wrong = 0
        for seed in range(3 if options.quick else 15):
            c, decay = (1.0, 5.0)[seed % 2], (0.7, 0.9, 0.7)[seed % 3]
            A, L, _ = problem(200 if options.quick else 500, 3, alpha, c, seed)
            result = ours(A, 3, decay=decay)
            good = error(result, L) < SUCCESS
            solved, reported = solved + good, reported + result.converged
            wrong += result.converged and not good
        rows.append({"alpha": alpha, "draws": seed + 1, "solved": solved, "reported": reported, "wrong": int(wrong)})
    names = ("alpha", "draws", "solved", "reported", "wrong")
    return "honesty", rows, {name: partial(lambda row, name: f"{row[name]:g}", name=name) for name in names}


def table_pcp(options, report):
    """Run the experiment of Candes et al., Table 1 (B8)."""
    n, rows = 100 if options.quick else 500, []
    for share in (0.05, 0.1):
        random = np.random.default_rng(0)
        r = n // 20
        L = random.normal(0, n**-0.5, (n, r)) @ random.normal(0, n**-0.5, (r, n))
        A, support = L.copy(), random.choice(n * n, round(share * n * n), replace=False)
        A.flat[support] += random.choice([-1.0, 1.0], len(support))
        for method in ("ialm", "admm"):
            start = time.perf_counter()
            result = ours(A, None, method=method, tol=1e-7, max_iter=1000)
            rows.append(
                {
                    "method": method,
                    "outliers": len(support),
                    "rank": result.rank,
                    "iterations": result.n_iter,
                    "seconds": time.perf_counter() - start,
                    "error": error(result, L),
                    "nnz": result.sparse(A).nnz,
                }
            )
    columns = {
        "method": lambda row: row["method"],
        "outliers": lambda row: str(row["outliers"]),
        "rank": lambda row: str(row["rank"]),
        "entries of S": lambda row: str(row["nnz"]),
        "iterations": lambda row: str(row["iterations"]),
        "error": lambda row: number(row["error"]),
        "seconds": lambda row: f"{row['seconds']:.2f}",
    }
    return "principal component pursuit, n=500, rank 25", rows, columns


RACE = {
    "problem": lambda row: row["problem"],
    "peer": lambda row: row["peer"],
    "ratio": lambda row: f"{row['ratio']:.2f}" + ("" if row["error_peer"] < EQUAL else " (peer is wrong)"),
    "ms peer / rnla": lambda row: f"{1e3 * row['seconds_peer']:.1f} / {1e3 * row['seconds_ours']:.1f}",
    "error peer / rnla": lambda row: f"{number(row['error_peer'])} / {number(row['error_ours'])}",
    "iterations peer / rnla": lambda row: f"{number(row['iterations_peer'], 'd')} / {row['iterations']}",
}
TABLES = {
    "solvers": table_solvers, "demos": table_demos, "growth": table_growth, "tolerance": table_tolerance,
    "hard": table_hard, "honesty": table_honesty, "pcp": table_pcp, "video": rpca_video.table,
}  # fmt: skip
