"""rnla.complete: solved problems, condition, time to accuracy against other methods, noise, growth, tables of data.

error     of the matrix in the Frobenius norm, relative to the true one
solved    instances with an error below 1e-4
"""

import importlib.util
import time
import warnings
from pathlib import Path

import numpy as np

import rnla
from bench import completion_peers, harness
from bench.harness import number
from rnla import kernels
from rnla._entry_space import EntrySpace
from rnla._irls import Settings, solve
from rnla.kernels import _sampled_product

PUBLISHED = Settings(
    cg_tol=1e-5, cg_max_iter=500, preconditioner="published", continuation=False, krylov_steps=(20, 20), warm=False
)
# Median errors of MatrixIRLS in its paper and of a prototype of this library (100 and 5 instances, 1000 x 1000, k = 5).
PAPER = {
    (10.0, 1.5): (5.2e-13, 3.9e-14), (10.0, 1.6): (1.7e-13, 1.9e-14), (10.0, 2.0): (2.3e-14, 6.7e-15),
    (10.0, 3.0): (4.6e-15, 2.9e-15), (1e5, 1.7): (3.7e-4, 5.3e-14), (1e5, 1.8): (1.9e-4, 1.0e-14),
    (1e5, 2.0): (1.6e-14, 1.6e-14), (1e5, 3.0): (3.4e-15, 3.1e-15),
}  # fmt: skip
SOLVED = 1e-4


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--table", choices=sorted(TABLES), help="run this table only")
    parser.add_argument("--quick", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with camera256.npz and digits800.npz")


def run(options, report):
    """Run the tables, one or all."""
    harness.run_tables(TABLES, options, report)


def drawn(size, k, ratio, condition, seed, noise=0.0):
    """Return a problem and its true factors."""
    problem = rnla.datasets.completion_problem(
        (size, size), k, oversampling=ratio, condition=condition, noise=noise, rng=seed
    )
    return problem, (problem.U * problem.S, problem.Vh.T)


def error_of(L, R, truth):
    """Return the relative error of ``L @ R.T``, from factors."""
    left, right = np.hstack([L, -truth[0]]), np.hstack([R, truth[1]])
    return float(
        np.linalg.norm(np.linalg.qr(left)[1] @ np.linalg.qr(right)[1].T) / np.linalg.norm(np.linalg.qr(truth[0])[1])
    )


def completed(problem, k, **options):
    """Run `rnla.complete`, quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rnla.complete((problem.rows, problem.cols, problem.values), k, shape=problem.shape, rng=0, **options)


def table_few(options):
    """Errors with few samples."""
    size, seeds = (100, 2) if options.quick else (1000, 3)
    rows = []
    for (condition, ratio), (paper, prototype) in list(PAPER.items())[:: 4 if options.quick else 1]:
        errors, iterations, seconds = [], [], []
        for seed in range(seeds):
            problem, truth = drawn(size, 5, ratio, condition, seed)
            begin = time.perf_counter()
            result = completed(problem, 5, max_iter=150)
            seconds.append(time.perf_counter() - begin)
            errors.append(error_of(result.U * result.s, result.Vh.T, truth))
            iterations.append(result.n_iter)
        rows.append(
            {
                "condition": condition, "ratio": ratio, "error": float(np.median(errors)), "paper": paper,
                "prototype": prototype, "solved": sum(e < SOLVED for e in errors), "of": seeds,
                "iterations": float(np.median(iterations)), "seconds": float(np.median(seconds)),
            }
        )  # fmt: skip
    return "few", rows, {
        "condition": lambda row: number(row["condition"], ".0e"), "samples / degrees": lambda row: str(row["ratio"]),
        "paper": lambda row: number(row["paper"]), "prototype": lambda row: number(row["prototype"]),
        "rnla": lambda row: number(row["error"]), "solved": lambda row: f"{row['solved']} of {row['of']}",
        "iterations": lambda row: number(row["iterations"], ".0f"), "s": lambda row: number(row["seconds"], ".2f"),
    }  # fmt: skip


def table_condition(options):
    """Solve problems of condition ten billion, where the fixed-rank methods of the paper stay above 1e-6."""
    size, k = (100, 4) if options.quick else (1000, 10)
    cases = [("geometric", seed, k, 4.0, "4.0e-15, 30, -") for seed in range(1 if options.quick else 3)]
    cases.append(("with a plateau", 0, 3 * k, 3.0 if options.quick else 1.5, "1.5e-14, 45, 2.3e-5"))
    rows = []
    for name, seed, rank, ratio, paper in cases:
        problem, truth = drawn(size, rank, ratio, 1e10, seed)
        if name == "with a plateau":
            third = rank // 3
            S = np.concatenate([np.geomspace(1e10, 1e6, third), np.full(third, 1e5), np.geomspace(1e4, 1.0, third)])
            truth = problem.U * S, problem.Vh.T
            values = kernels.sampled_product(*truth, problem.rows, problem.cols)
            problem = problem._replace(S=S, values=values)
        result = completed(problem, rank)
        last = abs(float(result.s[-1]) / problem.S[-1] - 1)
        error = error_of(result.U * result.s, result.Vh.T, truth)
        rows.append({
            "singular values": name, "rank": rank, "ratio": ratio, "seed": seed, "error": error,
            "iterations": result.n_iter, "last": last, "paper": paper,
        })  # fmt: skip
    return "condition", rows, {
        "singular values": lambda row: row["singular values"], "rank": lambda row: str(row["rank"]),
        "samples / degrees": lambda row: str(row["ratio"]), "seed": lambda row: str(row["seed"]),
        "error": lambda row: number(row["error"]), "iterations": lambda row: str(row["iterations"]),
        "relative error of the smallest singular value": lambda row: number(row["last"]),
        "paper: error, iterations, smallest": lambda row: row["paper"],
    }  # fmt: skip


def table_speed(options):
    """Time against the published settings, to the same accuracy."""
    size = 150 if options.quick else 1000
    rows = []
    for condition, ratio in ((10.0, 2.0), (1e5, 2.5)):
        problem, truth = drawn(size, 5, ratio, condition, 0)
        space = EntrySpace(problem.rows.astype(np.int32), problem.cols.astype(np.int32), problem.shape)
        scale = abs(problem.values).max()

        def engine(settings, space=space, problem=problem, scale=scale):
            return solve(space, problem.values / scale, 5, settings, 0, "bench")

        found = [engine(settings) for settings in (Settings(), PUBLISHED)]
        errors = [error_of(x.U[:, :5] * x.s[:5] * scale, x.V[:, :5], truth) for x in found]
        times = harness.race(
            lambda engine=engine: engine(Settings()), lambda engine=engine: engine(PUBLISHED), repeats=3, budget=60.0
        )
        rows.append({
            "condition": condition, "ratio_samples": ratio, "error": errors[0], "error_peer": errors[1],
            "cg": sum(step.cg_iterations for step in found[0].steps),
            "cg_peer": sum(step.cg_iterations for step in found[1].steps), **times,
        })  # fmt: skip
    return "speed", rows, {
        "condition": lambda row: number(row["condition"], ".0e"), "samples": lambda row: str(row["ratio_samples"]),
        "s": lambda row: number(row["seconds_ours"], ".2f"),
        "ratio to the published settings": lambda row: number(row["ratio"], ".3g"),
        "conjugate gradients ours / theirs": lambda row: f"{row['cg']} / {row['cg_peer']}",
        "errors ours / theirs": lambda row: f"{number(row['error'])} / {number(row['error_peer'])}",
    }  # fmt: skip


def table_peers(options):
    """Time to an accuracy against other methods."""
    size = 150 if options.quick else 1000
    goal, patience = 1e-4, 3.0 if options.quick else 60.0
    rows = []
    for condition in (10.0, 1e3):
        problem, truth = drawn(size, 5, 4.0, condition, 0)
        entries = completion_peers.Entries(problem.rows, problem.cols, problem.values, problem.shape)
        begin = time.perf_counter()
        result = completed(problem, 5)
        ours = time.perf_counter() - begin
        error = error_of(result.U * result.s, result.Vh.T, truth)
        rows.append({"condition": condition, "method": "rnla.complete", "seconds": ours, "error": error, "ratio": 1.0})
        lam = 1e-3 * np.linalg.norm(entries.sparse.data)
        for name, method in {
            "SoftImpute, full SVD": lambda stop, e=entries, lam=lam: completion_peers.soft_impute(e, lam, stop=stop),
            "ScaledGD": lambda stop, e=entries: completion_peers.scaled_gd(e, 5, stop=stop),
            "ALS": lambda stop, e=entries: completion_peers.alternating_least_squares(e, 5, stop=stop),
            "fancyimpute's SoftImpute": lambda stop, e=entries: completion_peers.fancyimpute_soft_impute(e, 5),
        }.items():
            if "fancyimpute" in name and not _fancyimpute_works():
                print("fancyimpute is not installed, or cvxpy, which it imports: left out")
                continue
            begin = time.perf_counter()

            def stop(L, R, begin=begin, truth=truth):
                return time.perf_counter() - begin > patience or error_of(L, R, truth) < goal

            L, R = method(stop)
            seconds = time.perf_counter() - begin
            rows.append({
                "condition": condition, "method": name, "seconds": seconds, "error": error_of(L, R, truth),
                "ratio": seconds / ours,
            })  # fmt: skip
    return f"peers, to an error of {goal:g} or {patience:g} s", rows, {
        "condition": lambda row: number(row["condition"], ".0e"), "method": lambda row: row["method"],
        "s": lambda row: number(row["seconds"], ".2f"), "over rnla": lambda row: number(row["ratio"], ".3g"),
        "error": lambda row: number(row["error"]),
    }  # fmt: skip


def _fancyimpute_works():
    return all(importlib.util.find_spec(name) for name in ("fancyimpute", "cvxpy"))


def table_growth(options):
    """Time of an iteration against the size, with the same rank and oversampling."""
    rows = []
    for size in (100, 200) if options.quick else (500, 1000, 2000, 4000):
        problem, truth = drawn(size, 5, 4.0, 10.0, 0)
        result = completed(problem, 5)
        begin = time.perf_counter()
        result = completed(problem, 5)
        seconds = (time.perf_counter() - begin) / result.n_iter
        rows.append({"size": size, "ms": 1e3 * seconds, "error": error_of(result.U * result.s, result.Vh.T, truth)})
    slope = np.polyfit(np.log([row["size"] for row in rows]), np.log([row["ms"] for row in rows]), 1)[0]
    for row in rows:
        row["slope"] = float(slope)
    return "growth", rows, {
        "size": lambda row: str(row["size"]), "ms an iteration": lambda row: number(row["ms"], ".1f"),
        "error": lambda row: number(row["error"]), "exponent": lambda row: number(row["slope"], ".2f"),
    }  # fmt: skip


def table_noise(options):
    """Error against the least-squares fit that starts at the truth."""
    size = 80 if options.quick else 300
    rows = []
    for decibel in (10, 20, 40):
        for given in ("known", "auto"):
            clean, truth = drawn(size, 5, 4.0, 10.0, 0)
            tau = 10 ** (-decibel / 20) * float(np.sqrt(np.mean(clean.values**2)))
            problem, truth = drawn(size, 5, 4.0, 10.0, 0, noise=tau)
            entries = completion_peers.Entries(problem.rows, problem.cols, problem.values, problem.shape)
            oracle = error_of(*completion_peers.least_squares_oracle(entries, *truth), truth)
            result = completed(problem, 5, noise_std=tau if given == "known" else "auto")
            error = error_of(result.U * result.s, result.Vh.T, truth)
            rows.append({
                "decibel": decibel, "noise": given, "estimate": result.noise_std / tau, "ratio": error / oracle,
                "error": error,
            })  # fmt: skip
    return "noise", rows, {
        "dB": lambda row: str(row["decibel"]), "noise": lambda row: row["noise"],
        "its estimate / truth": lambda row: number(row["estimate"], ".3f"),
        "error": lambda row: number(row["error"]), "over that of the oracle": lambda row: number(row["ratio"], ".3f"),
    }  # fmt: skip


def table_data(options):
    """Root mean square errors at hidden entries of an image and a table of digits."""
    rows = []
    if options.data is None:
        print("give --data DIR with camera256.npz and digits800.npz")
    else:
        for name, key, center, ranks in (
            ("camera256", "image", "mean", (8, 16, 24, 32)), ("digits800", "X", "columns", (2, 4, 8, 16)),
        ):  # fmt: skip
            A = np.load(options.data / f"{name}.npz")[key].astype(float)
            for share in (0.3,) if options.quick else (0.3, 0.5):
                known = np.random.default_rng(0).random(A.shape) < share
                rows.append(_hidden(name, A, known, share, center, ranks))
    return "data", rows, {
        "data": lambda row: row["name"], "known": lambda row: f"{row['share']:.0%}",
        "column means": lambda row: number(row["means"], ".2f"),
        "SoftImpute, best of 10 by the test error": lambda row: number(row["soft"], ".2f"),
        "KNNImputer": lambda row: number(row["knn"], ".2f"),
        "rnla, by held-out entries": lambda row: number(row["ours"], ".2f"),
        "choice": lambda row: row["choice"],
        "s rnla / SoftImpute": lambda row: f"{row['seconds']:.0f} / {row['soft_seconds']:.0f}",
    }  # fmt: skip


def _hidden(name, A, known, share, center, ranks):
    from sklearn.impute import KNNImputer

    X = np.where(known, A, np.nan)

    def rmse(filled):
        return float(np.sqrt(np.mean((filled - A)[~known] ** 2)))

    means = np.nanmean(X) if center == "mean" else np.nanmean(X, axis=0)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rnla.complete_cv(X, ranks, center=center, rng=0)
    seconds = time.perf_counter() - begin
    rows, cols = np.nonzero(known)
    entries = completion_peers.Entries(rows, cols, (A - means)[known], A.shape)
    top = np.linalg.norm(entries.sparse.toarray(), 2)
    soft, filled, begin = np.inf, None, time.perf_counter()
    for lam in top * np.geomspace(0.5, 0.01, 10):
        L, R = completion_peers.soft_impute(entries, lam, X=filled)
        filled = L @ R.T
        soft = min(soft, rmse(filled + means))
    soft_seconds = time.perf_counter() - begin
    return {
        "name": name, "share": share, "means": rmse(np.broadcast_to(means, A.shape)), "soft": soft,
        "knn": rmse(KNNImputer().fit_transform(X)), "ours": rmse(found.best.to_dense()),
        "choice": f"k = {found.k}, p = {found.p:g}, factor {found.reg_factor:g}", "seconds": seconds,
        "soft_seconds": soft_seconds,
    }  # fmt: skip


def table_kernels(options):
    """Time the sampled product against gathered rows in blocks."""
    count, rows = 20_000 if options.quick else 1_000_000, []
    rng = np.random.default_rng(0)
    n = 200 if options.quick else 2000
    place = np.sort(rng.permutation(n * n)[:count])
    at = (place // n).astype(np.int32), (place % n).astype(np.int32)
    for dtype in ("float64", "float32"):
        L, R = (rng.standard_normal((n, 20)).astype(dtype) for _ in range(2))
        times = harness.race(
            lambda L=L, R=R: kernels.sampled_product(L, R, *at), lambda L=L, R=R: _sampled_product.reference(L, R, *at),
            repeats=9, budget=20.0,
        )  # fmt: skip
        difference = abs(kernels.sampled_product(L, R, *at) - _sampled_product.reference(L, R, *at)).max()
        rows.append({"dtype": dtype, "difference": float(difference), **times})
    return "kernels", rows, {
        "dtype": lambda row: row["dtype"], "ms": lambda row: number(1e3 * row["seconds_ours"], ".1f"),
        "ratio": lambda row: number(row["ratio"], ".3g"), "difference": lambda row: number(row["difference"]),
    }  # fmt: skip


def table_large(options):
    """Complete a matrix with sides of 1e5 and 1e7 entries, and watch the memory."""
    import psutil

    size, count = (2000, 60_000) if options.quick else (100_000, 10_000_000)
    rng = np.random.default_rng(0)
    U, V = rng.standard_normal((size, 10)), rng.standard_normal((size, 10))
    place = np.unique(rng.integers(0, size * size, count))
    rows, cols = place // size, place % size
    del place
    values = kernels.sampled_product(U, V, rows, cols)
    before = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = rnla.complete((rows, cols, values), 10, shape=(size, size), rng=0, tol=1e-6)
    seconds = time.perf_counter() - begin
    info = psutil.Process().memory_info()
    peak = getattr(info, "peak_wset", None) or _peak()
    error = error_of(result.U * result.s, result.Vh.T, (U, V))
    row = {
        "size": size, "entries": len(rows), "seconds": seconds, "iterations": result.n_iter, "error": error,
        "peak_gb": peak / 1e9, "before_gb": before / 1e9,
    }  # fmt: skip
    return "large", [row], {
        "size": lambda row: str(row["size"]), "entries": lambda row: str(row["entries"]),
        "s": lambda row: number(row["seconds"], ".0f"), "iterations": lambda row: str(row["iterations"]),
        "error": lambda row: number(row["error"]), "peak GB": lambda row: number(row["peak_gb"], ".2f"),
        "GB before": lambda row: number(row["before_gb"], ".2f"),
    }  # fmt: skip


def _peak():
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


TABLES = {
    "few": table_few,
    "condition": table_condition,
    "speed": table_speed,
    "peers": table_peers,
    "growth": table_growth,
    "noise": table_noise,
    "data": table_data,
    "kernels": table_kernels,
    "large": table_large,
}
