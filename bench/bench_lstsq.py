"""Least squares of rnla against LAPACK on dense tall matrices, and against SciPy's LSQR and LSMR on sparse ones."""

import functools

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

import rnla
from bench import harness
from bench.harness import number
from rnla._lstsq import lstsq

DENSE = "dense: rnla.lstsq against scipy.linalg.lstsq (gelsy)"
METHODS = "relative backward errors, 4000 x 50, condition 1e12, residual 1e-6 (core.md 14.1)"
SPARSE = "sparse: rnla.lstsq against SciPy"
EPS = float(np.finfo(float).eps)
# Shape, columns of b, ratio wanted (B8 of core.md wants 1 / 0.35).
CASES = (((100_000, 100), 1, 3.0), ((200_000, 500), 1, 3.0), ((100_000, 100), 20, None))
REFERENCE = {
    "direct": 1.4e-16, "sketch": 9e-12, "lsqr": 3e-14, "lsqr without preconditioner": 3e-11, "itersketch": 2e-13,
    "spir": 1.3e-16, "fossils": 4e-17,
}  # fmt: skip


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--table", choices=("methods", "dense", "sparse"), help="run one table only")


def run(options, report):
    """Fill and print the tables."""
    scale = 0.01 if options.tiny else 1.0
    wanted = (options.table,) if options.table else ("methods", "dense", "sparse")
    if "methods" in wanted:
        report.progress("backward errors of the methods")
        report.add(METHODS, methods(scale))
        report.table(METHODS, METHOD_COLUMNS)
    if "dense" in wanted:
        for shape, count, target in CASES:
            report.progress(f"dense {shape}, {count} right-hand sides")
            report.add(DENSE, dense((int(shape[0] * scale) + 4 * shape[1], shape[1]), count, target))
        report.table(DENSE, COLUMNS)
    if "sparse" in wanted:
        for cond in (1e2, 1e6):
            report.progress(f"sparse, columns scaled over {cond:.0e}")
            report.add(SPARSE, sparse(scale, cond))
        report.table(SPARSE, COLUMNS)


def problem(shape, cond, residual, count=1, seed=0):
    """Return A of the given condition number, and right-hand sides with the given residual norm."""
    m, n = shape
    rng = np.random.default_rng(seed)
    Q = rnla.testing.haar_basis(m, n, rng=rng)
    V = rnla.testing.haar_basis(n, n, rng=rng)
    U = rng.standard_normal((m, count))
    U -= Q @ (Q.T @ U)
    U /= np.linalg.norm(U, axis=0)
    A = (Q * np.logspace(0, -np.log10(cond), n)) @ V.T
    x = rng.standard_normal((n, count))
    b = A @ (x / np.linalg.norm(x, axis=0)) + residual * U
    return A, b[:, 0] if count == 1 else b


def backward_error(A, b, x, factors=None):
    """Return the largest relative backward error over the columns, by the estimate of Karlson and Walden.

    `factors` are the singular values and ``Vh`` of A, or of its triangular factor.
    """
    s, Vh = factors or right_factors(A)
    b, x = (X.reshape(len(X), -1) for X in (b, x))
    r = b - A @ x
    norm = np.linalg.norm(s)
    weight = np.hypot(np.linalg.norm(b, axis=0), norm * np.linalg.norm(x, axis=0))
    shift = norm * np.linalg.norm(r, axis=0) / weight
    return float(np.max(np.linalg.norm((Vh @ (A.T @ r)) / np.hypot(s[:, None], shift), axis=0) / weight))


def right_factors(A):
    """Return singular values and right singular vectors of a tall dense matrix."""
    _, s, Vh = np.linalg.svd(np.linalg.qr(A, mode="r"))
    return s, Vh


def dense(shape, count, target):
    """Race lstsq and gelsy on one problem of condition 1e10."""
    A, b = problem(shape, 1e10, 1e-3, count)
    factors = right_factors(A)
    ours, peer = functools.partial(lstsq, A, b, rng=0), functools.partial(gelsy, A, b)
    result, x = ours(), peer()
    return [{
        "where": f"{shape[0]}x{shape[1]}, {count} right-hand side{'s' * (count > 1)}", "peer": "gelsy",
        "method": result.method, "target": target, "passes": result.passes,
        "error_ours": backward_error(A, b, result.x, factors), "error_peer": backward_error(A, b, x, factors),
        **harness.race(ours, peer, repeats=9, budget=60.0),
    }]  # fmt: skip


def gelsy(A, b):
    """Solve by LAPACK's complete orthogonal factorisation; no time goes to SciPy's own check of the entries."""
    return scipy.linalg.lstsq(A, b, lapack_driver="gelsy", check_finite=False)[0]


def methods(scale):
    """Return the backward error of every method beside that of the reference prototype."""
    A, b = problem((4000, 50), 1e12, 1e-6)
    factors = right_factors(A)
    rows = []
    for method, reference in REFERENCE.items():
        if method == "lsqr without preconditioner":
            x = scipy.sparse.linalg.lsqr(A, b, atol=0, btol=0, conlim=0, iter_lim=200)[0]
            iterations = 200
        else:
            result = lstsq(A, b, method=method, rng=0)
            x, iterations = result.x, result.n_iter
        error = backward_error(A, b, x, factors)
        rows.append({"method": method, "error": error, "reference": reference, "iterations": iterations})
    rows.append({"method": "gelsy", "error": backward_error(A, b, gelsy(A, b), factors), "reference": None,
                 "iterations": None})  # fmt: skip
    return rows


def sparse(scale, spread):
    """Race lstsq against LSQR and LSMR on a sparse matrix whose columns have norms over a range of `spread`."""
    m, n = int(100_000 * scale) + 2000, max(int(500 * scale), 100)
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((m, n), density=min(1.0, 10 / n), format="csr", rng=rng)
    A = scipy.sparse.csr_array(A @ scipy.sparse.diags_array(np.logspace(0, -np.log10(spread), n)))
    A = A + 0.1 * scipy.sparse.csr_array(A[:, rng.permutation(n)])  # so that scaling of the columns is not all
    b = A @ np.ones(n) + 1e-3 * rng.standard_normal(m)
    factors = right_factors(A.toarray())
    ours = functools.partial(lstsq, A, b, rng=0)
    peers = {
        "lsqr": lambda: scipy.sparse.linalg.lsqr(A, b, atol=1e-15, btol=1e-15, conlim=0, iter_lim=20 * n)[0],
        "lsmr": lambda: scipy.sparse.linalg.lsmr(A, b, atol=1e-15, btol=1e-15, conlim=0, maxiter=20 * n)[0],
    }
    result, rows = ours(), []
    for name, peer in peers.items():
        rows.append({
            "where": f"{m}x{n}, {A.nnz} non-zeros, columns over {spread:.0e}", "peer": name, "method": result.method,
            "target": None, "passes": result.passes, "error_ours": backward_error(A, b, result.x, factors),
            "error_peer": backward_error(A, b, peer(), factors),
            **harness.race(ours, peer, repeats=5, budget=30.0),
        })  # fmt: skip
    return rows


COLUMNS = {
    "problem": lambda row: row["where"],
    "method": lambda row: row["method"],
    "passes": lambda row: str(row["passes"]),
    "peer": lambda row: row["peer"],
    "seconds peer / rnla": lambda row: f"{row['seconds_peer']:.3f} / {row['seconds_ours']:.3f}",
    "ratio": lambda row: number(row["ratio"], ".2f"),
    "wanted": lambda row: number(row["target"], ".2f"),
    "backward error rnla / peer": lambda row: f"{row['error_ours']:.1e} / {row['error_peer']:.1e}",
}
METHOD_COLUMNS = {
    "method": lambda row: row["method"],
    "iterations": lambda row: number(row["iterations"], "d"),
    "backward error": lambda row: number(row["error"]),
    "reference": lambda row: number(row["reference"]),
}
