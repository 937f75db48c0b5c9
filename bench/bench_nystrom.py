"""Positive semidefinite matrices: Nystrom and pivoted Cholesky against their bounds and peers, pcg against plain CG."""

import functools
import importlib.util
import math

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

import rnla
from bench import harness
from bench.harness import number

TITLE = "Nystrom approximation, pivoted Cholesky and preconditioned conjugate gradients"
METHODS = ("accelerated", "simple", "block", "greedy", "uniform")
PARTS = ("errors", "pivots", "speed", "solve")


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--only", choices=PARTS, help="one part")


def run(options, report):
    """Run the parts and print their tables."""
    for part, (function, title, columns) in zip(PARTS, TABLES, strict=True):
        if options.only in (None, part):
            report.progress(part)
            report.add(title, function(options.tiny))
            report.table(title, columns)


# Errors of Nystrom approximations (section 7.2).


def nystrom_errors(tiny):
    """Compare mean errors over 20 draws with the best of the rank and their bounds."""
    n, k, draws = (60, 10, 3) if tiny else (600, 30, 20)
    return [_errors(name, n, k, draws) for name in ("slow", "poly1", "poly2", "exp", "step", "flat")]


def _errors(name, n, k, draws):
    w = rnla.testing.spectrum(name, n)
    V = rnla.testing.haar_basis(n, n, rng=0)
    A = (V * w) @ V.T
    A = (A + A.T) / 2
    found = []
    for seed in range(draws):
        result = rnla.nystrom(A, k, rng=seed)
        rest = np.linalg.eigvalsh(A - result.to_dense())
        estimate = np.linalg.norm(result.eigenvalues) / math.sqrt(result.info.error_estimate**-2 - 1)
        found.append((rest.sum(), rest[-1], rest[0], estimate, np.linalg.norm(rest)))
    trace, spectral, _, estimate, frobenius = np.mean(found, axis=0)
    tail = np.append(np.cumsum(w[::-1])[::-1], 0.0)
    return {
        "spectrum": name,
        "n": n,
        "k": k,
        "trace": trace,
        "trace best": tail[k],
        "trace bound": min((1 + r / (k - r - 1)) * tail[r] for r in range(k - 1)),
        "spectral": spectral,
        "spectral bound": min(
            (1 + 2 * (k - p) / (p - 1)) * w[k - p] + 2 * math.e**2 * k / (p**2 - 1) * tail[k - p]
            for p in range(2, k - 1)
        ),
        "estimate": estimate / frobenius,
        "lowest": min(part[2] for part in found) / w[0],
    }


ERROR_COLUMNS = {
    "spectrum": lambda row: row["spectrum"],
    "trace error / best": lambda row: f"{row['trace']:.2e} / {row['trace best']:.2e}",
    "of its bound": lambda row: f"1/{row['trace bound'] / row['trace']:.1f}",
    "spectral error": lambda row: number(row["spectral"]),
    "of its bound (1/16 to 1/43)": lambda row: f"1/{row['spectral bound'] / row['spectral']:.1f}",
    "estimated / true Frobenius": lambda row: f"{row['estimate']:.2f}",
    "lowest eigenvalue of the error (>= -1e-13)": lambda row: f"{row['lowest']:.1e}",
}


# Choice of pivots (section 7.3).


def points(n, *, outliers=None, rng=0):
    """Return points of the plane in clusters of very different sizes, and some far away from each other."""
    generator = np.random.default_rng(rng)
    outliers = n // 25 if outliers is None else outliers
    centres = generator.standard_normal((20, 2)) * 8
    sizes = np.geomspace(1, 100, 20)
    which = generator.choice(20, size=n - outliers, p=sizes / sizes.sum())
    bulk = centres[which] + generator.standard_normal((n - outliers, 2))
    return np.concatenate([bulk, 300 * generator.standard_normal((outliers, 2))])


def pivot_errors(tiny):
    """Compare the trace errors of the ways to choose pivots with the best of the rank."""
    n, ranks, draws = (120, (10,), 2) if tiny else (1500, (50, 150), 10)
    K = rnla.KernelMatrix(points(n), "gaussian", 2.0)
    A = K.columns(np.arange(n))
    w = np.linalg.eigvalsh(A)[::-1]
    rows = []
    for k in ranks:
        row = {"n": n, "k": k, "best": w[k:].sum() / n}
        for method in METHODS:
            row[method] = float(
                np.mean([rnla.rpcholesky(A, k, method=method, rng=r).trace_error / n for r in range(draws)])
            )
        rows.append(row)
    return rows


PIVOT_COLUMNS = {
    "k": lambda row: str(row["k"]),
    "best": lambda row: f"{row['best']:.4f}",
    **{name: functools.partial(lambda row, name: f"{row[name]:.4f}", name=name) for name in METHODS},
}


# Speed of pivoted Cholesky.


def cholesky_speed(tiny):
    """Race `accelerated` against `simple`, and against scikit-learn's Nystroem, which takes columns uniformly."""
    sizes = [(400, 40)] if tiny else [(1500, 150), (20_000, 200), (20_000, 1000)]
    rows = []
    for n, k in sizes:
        X = points(n)
        K = rnla.KernelMatrix(X, "gaussian", 2.0)
        ours = functools.partial(rnla.rpcholesky, K, k, rng=0)
        start = K.evaluations
        result = ours()
        evaluated = (K.evaluations - start) / n
        simple = functools.partial(rnla.rpcholesky, K, k, method="simple", rng=0)
        rows.append(_raced(n, k, ours, result, evaluated, "simple", simple, simple().trace_error / n, 1 / 0.6))
        if importlib.util.find_spec("sklearn"):
            peer = functools.partial(_scikit_learn, X, k)
            error = 1 - float(np.linalg.norm(peer()) ** 2) / n
            rows.append(_raced(n, k, ours, result, evaluated, "scikit-learn Nystroem", peer, error, None))
    return rows


def _raced(n, k, ours, result, evaluated, name, peer, peer_error, target):
    times = harness.race(ours, peer, repeats=7, budget=30.0)
    return {
        "where": f"{n} points, k={k}",
        "evaluated": evaluated,
        "peer": name,
        "error_ours": result.trace_error / n,
        "error_peer": peer_error,
        "target": target,
        **times,
    }


def _scikit_learn(X, k):
    from sklearn.kernel_approximation import Nystroem

    return Nystroem(kernel="rbf", gamma=1 / 8, n_components=k, random_state=0).fit_transform(X)


SPEED_COLUMNS = {
    "problem": lambda row: row["where"],
    "columns evaluated": lambda row: f"{row['evaluated']:.1f}",
    "peer": lambda row: row["peer"],
    "seconds peer / rnla": lambda row: f"{row['seconds_peer']:.3f} / {row['seconds_ours']:.3f}",
    "ratio": lambda row: number(row["ratio"], ".2f"),
    "wanted": lambda row: number(row["target"], ".2f"),
    "trace error peer / rnla": lambda row: f"{row['error_peer']:.4f} / {row['error_ours']:.4f}",
}


# Solving.


def solve(tiny):
    """Race pcg against conjugate gradients without preconditioner and Cholesky, to a residual of 1e-8."""
    sizes = [200] if tiny else [800, 5000]
    rows = []
    for n in sizes:
        X = np.random.default_rng(0).uniform(size=(n, 2))
        A = rnla.KernelMatrix(X, "gaussian", 0.3).columns(np.arange(n))
        b = np.random.default_rng(1).standard_normal(n)
        for mu in (1e-2, 1e-6):
            plain = rnla.pcg(A, b, mu=mu, precond=None, tol=1e-8, max_iter=20 * n)
            for precond in ("nystrom", "rpcholesky"):
                rows.append(_solved(A, b, mu, precond, plain))
    return rows


def _solved(A, b, mu, precond, plain):
    n = len(b)
    ours = functools.partial(rnla.pcg, A, b, mu=mu, precond=precond, tol=1e-8, rng=0)
    shifted = A + mu * np.eye(n)
    direct = functools.partial(scipy.linalg.solve, shifted, b, assume_a="pos")
    iterative = functools.partial(scipy.sparse.linalg.cg, shifted, b, rtol=1e-8, maxiter=20 * n)
    result = ours()
    against_cg = harness.race(ours, iterative, repeats=5, budget=10.0)
    against_direct = harness.race(ours, direct, repeats=5, budget=10.0)
    return {
        "where": f"n={n}, mu={mu:.0e}, {precond}",
        "rank": result.rank,
        "iterations": result.n_iter,
        "plain": plain.n_iter,
        "residual": result.residual,
        "residual_cg": float(np.linalg.norm(b - shifted @ iterative()[0]) / np.linalg.norm(b)),
        "residual_direct": float(np.linalg.norm(b - shifted @ direct()) / np.linalg.norm(b)),
        "seconds_ours": against_cg["seconds_ours"],
        "ratio_cg": against_cg["ratio"],
        "ratio_direct": against_direct["ratio"],
    }


SOLVE_COLUMNS = {
    "problem": lambda row: row["where"],
    "rank": lambda row: str(row["rank"]),
    "iterations / plain": lambda row: f"{row['iterations']} / {row['plain']}",
    "seconds": lambda row: f"{row['seconds_ours']:.4f}",
    "ratio to SciPy cg": lambda row: number(row["ratio_cg"], ".2f"),
    "ratio to SciPy Cholesky": lambda row: number(row["ratio_direct"], ".2f"),
    "residual rnla / cg / Cholesky": lambda row: (
        f"{row['residual']:.1e} / {row['residual_cg']:.1e} / {row['residual_direct']:.1e}"
    ),
}

TABLES = (
    (nystrom_errors, "Nystrom approximation: mean errors of 20 draws", ERROR_COLUMNS),
    (pivot_errors, "Trace error relative to the trace, by the choice of pivots (Gaussian kernel)", PIVOT_COLUMNS),
    (cholesky_speed, "Accelerated randomly pivoted Cholesky by columns", SPEED_COLUMNS),
    (solve, "(A + mu I) x = b to a residual of 1e-8, Gaussian kernel", SOLVE_COLUMNS),
)
