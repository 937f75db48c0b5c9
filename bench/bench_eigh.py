"""rnla.eigh against LAPACK's partial eigensolver and ARPACK, both at the loosest tolerance that gives the same error.

eigenvalue error    largest |w - exact| over |exact|, exact being ARPACK's at full accuracy
residual            largest ||A v - w v|| over |w|
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

import rnla
from bench import harness
from bench.harness import number, tolerance

TITLE = "eigh against peers"
GOAL = 1e-6
LADDER = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-6, 1e-8, 0.0)  # tolerances tried, loosest first


@dataclass(frozen=True)
class Workload:
    """One matrix, how many pairs of it are wanted and from which end, and the ratios that are wanted."""

    name: str
    make: object  # (n, dtype) -> matrix
    n: int
    k: int
    which: str
    wanted: dict  # peer -> ratio


WORKLOADS = (
    Workload("Gaussian kernel", lambda n, dtype: kernel(n, dtype), 5000, 50, "LM", {"LAPACK": 10.0, "ARPACK": 2.0}),
    Workload("indefinite, 1/j", lambda n, dtype: indefinite(n, dtype), 4000, 50, "BE", {}),
    Workload("graph, sparse", lambda n, dtype: graph(n, dtype), 100_000, 20, "LA", {}),
)


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")


def run(options, report):
    """Race every workload in both precisions and print the table."""
    for workload in WORKLOADS:
        for dtype in (np.float64, np.float32):
            report.progress(f"{workload.name} {np.dtype(dtype).name}")
            n, k = (workload.n // 20, 5) if options.tiny else (workload.n, workload.k)
            report.add(TITLE, rows(workload, n, k, dtype, repeats=2 if options.tiny else 7))
    report.table(TITLE, COLUMNS)


def kernel(n, dtype):
    """Return the Gaussian kernel matrix of random points of a cube: eigenvalues fall by five digits to the 50th."""
    X = np.random.default_rng(0).uniform(size=(n, 3))
    squares = np.sum(X**2, axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * X @ X.T, 0.0)
    return np.exp(-distances / (2 * 0.5**2)).astype(dtype)


def indefinite(n, dtype):
    """Return a matrix with eigenvalues 1, -1/2, 1/3, -1/4 ..."""
    V = rnla.testing.haar_basis(n, n, rng=0)
    A = (V * ((-1.0) ** np.arange(n) / np.arange(1, n + 1))) @ V.T
    return ((A + A.T) / 2).astype(dtype)


def graph(n, dtype):
    """Return the adjacency matrix of a random graph whose degrees fall off like a power."""
    rng = np.random.default_rng(0)
    ends = (n * rng.uniform(size=(2, 10 * n)) ** 3).astype(int)
    A = scipy.sparse.coo_array((np.ones(10 * n, dtype), ends), shape=(n, n)).tocsr()
    return (A + A.T).tocsr()


def rows(workload, n, k, dtype, repeats):
    """Race one matrix against every peer that can take it."""
    A, which = workload.make(n, dtype), workload.which
    wide = A.astype(np.float64)
    exact = arpack(wide, k, which, 0.0)[0]
    goal = max(GOAL, 300 * float(np.finfo(dtype).eps) * float(np.max(np.abs(exact)) / np.min(np.abs(exact))))
    calls = {"ARPACK": functools.partial(arpack, A, k, which)}
    if not scipy.sparse.issparse(A):
        calls["LAPACK"] = functools.partial(lapack, A, k, which)
    found = []
    tol, ours = loosest(lambda tol: rnla.eigh(A, k, which=which, tol=tol, rng=0), wide, exact, goal)
    for name, call in calls.items():
        peer_tol, theirs = loosest(call, wide, exact, goal)
        times = harness.race(
            lambda tol=tol: rnla.eigh(A, k, which=which, tol=tol, rng=0),
            functools.partial(call, peer_tol),
            repeats=repeats,
            budget=20.0,
        )
        found.append({
            "matrix": f"{workload.name}, {n}x{n}, k = {k}", "dtype": np.dtype(dtype).name, "peer": name, "tol": tol,
            "peer_tol": peer_tol, "ours": ours, "theirs": theirs, "wanted": workload.wanted.get(name),
            "decay": float(np.min(np.abs(exact)) / np.max(np.abs(exact))), **times,
        })  # fmt: skip
    return found


def loosest(solve, wide, exact, goal):
    """Return the loosest tolerance whose eigenvalues are within `goal`, and the errors there."""
    for tol in LADDER:
        result = solve(tol)
        found = errors(wide, *result, exact)
        if found["error"] <= goal:
            break
    return tol, {**found, "passes": result.info.passes if hasattr(result, "info") else None}


def errors(A, w, V, exact):
    """Compare eigenpairs in any order with exact eigenvalues in any order."""
    V = V.astype(np.float64)
    residuals = np.linalg.norm(A @ V - V * w, axis=0) / np.abs(w)
    return {
        "error": float(np.max(np.abs(np.sort(w) - np.sort(exact)) / np.abs(np.sort(exact)))),
        "residual": float(np.max(residuals)),
    }


def arpack(A, k, which, tol):
    """Run ARPACK by way of SciPy."""
    start = np.random.default_rng(0).standard_normal(A.shape[0]).astype(A.dtype)
    return scipy.sparse.linalg.eigsh(A, k, which=which, tol=tol, v0=start)


def lapack(A, k, which, tol):
    """Run LAPACK on the part of the spectrum that is wanted; it has no way to ask for both ends at once."""
    n = A.shape[0]
    if which == "BE":
        w, V = scipy.linalg.eigh(A)
        ends = np.r_[: k // 2, n - (k - k // 2) : n]
        return w[ends], V[:, ends]
    # For a positive definite matrix the largest in modulus are the upper end.
    return scipy.linalg.eigh(A, subset_by_index=(n - k, n - 1))


COLUMNS = {
    "matrix": lambda record: record["matrix"],
    "dtype": lambda record: record["dtype"],
    "last / first": lambda record: number(record["decay"]),
    "peer": lambda record: record["peer"],
    "tol rnla / peer": lambda record: f"{tolerance(record['tol'])} / {tolerance(record['peer_tol'])}",
    "eigenvalue error rnla / peer": lambda record: f"{record['ours']['error']:.1e} / {record['theirs']['error']:.1e}",
    "residual rnla / peer": lambda record: f"{record['ours']['residual']:.1e} / {record['theirs']['residual']:.1e}",
    "passes": lambda record: number(record["ours"]["passes"], "d"),
    "seconds peer / rnla": lambda record: f"{record['seconds_peer']:.3f} / {record['seconds_ours']:.3f}",
    "ratio": lambda record: number(record["ratio"], ".2f"),
    "wanted": lambda record: number(record["wanted"], ".1f"),
}
