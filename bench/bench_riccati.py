"""Riccati equations of rnla against pyMOR's low-rank RADI on a sparse problem, and SciPy's dense solver on small ones.

residual            2-norm of what the solution leaves of the equation, over that of C^T C, by one formula for all
"""

import functools
import importlib.util

import numpy as np
import scipy.linalg
import scipy.sparse

import rnla
from bench import harness
from bench.harness import number
from rnla._riccati import _Problem

SPARSE = "sparse: solve_riccati_lowrank against pyMOR's RADI"
DENSE = "dense: solve_riccati_lowrank against scipy.linalg.solve_continuous_are"
ROOT = "correction of a square root: solve_sqrt_riccati against general solvers"
CAPTIONS = {"sparse": SPARSE, "dense": DENSE, "root": ROOT}
TOL = 1e-10


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--table", choices=tuple(CAPTIONS), help="run one table only")


def run(options, report):
    """Fill and print the tables."""
    tables = {"sparse": sparse, "dense": dense, "root": root}
    for name, caption in CAPTIONS.items():
        if options.table in (None, name):
            report.progress(caption)
            report.add(caption, tables[name](options.tiny))
            report.table(caption, COLUMNS)


def convection_diffusion(side, wind):
    """Return the matrix of convection and diffusion on the unit square, with ``side**2`` unknowns, and B and C."""
    h = 1 / (side + 1)
    second = scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(side, side)) / h**2
    first = scipy.sparse.diags_array([-1.0, 1.0], offsets=[-1, 1], shape=(side, side)) / (2 * h)
    eye = scipy.sparse.eye_array(side)
    A = scipy.sparse.kron(eye, second - wind[0] * first) + scipy.sparse.kron(second - wind[1] * first, eye)
    grid = np.linspace(h, 1 - h, side)
    x = np.tile(grid, side)
    B = ((x > 0.1) & (x <= 0.3)).astype(float)
    C = ((x > 0.7) & (x <= 0.9)).astype(float)
    return A.tocsr(), B[:, None], (100 / C.sum()) * C[None, :]


def residual(A, B, C, Z):
    """Return the relative residual of ``Z Z^T``."""
    return _Problem(A, B, C, None, None, None, 1, "bench").residual(Z)


def sparse(tiny):
    """Race both RADI implementations, if pyMOR is installed."""
    rows = []
    for wind in ((0.0, 0.0), (20.0, 5.0), (400.0, 100.0)):
        A, B, C = convection_diffusion(12 if tiny else 100, wind)
        peer = pymor_radi(A, B, C) if importlib.util.find_spec("pymor") else None
        rows.append(row(f"2-D, wind {wind[0]:g} {wind[1]:g}, n = {A.shape[0]}", A, B, C, "pyMOR", peer, tiny))
    return rows


def dense(tiny):
    """Race the low-rank solver on dense matrices against the dense one."""
    rows = []
    for n in (30,) if tiny else (300, 600, 1000):
        h = 1 / (n + 1)
        A = scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n)).toarray() / h**2
        rng = np.random.default_rng(0)
        B, C = rng.standard_normal((n, 2)), rng.standard_normal((2, n))
        peer = functools.partial(dense_factor, A, B, C.T @ C)
        rows.append(row(f"1-D diffusion as an array, n = {n}", A, B, C, "SciPy", peer, tiny))
    return rows


def root(tiny):
    """Race the solver that knows that B is the identity against those that do not."""
    n = 40 if tiny else 500
    rng = np.random.default_rng(0)
    d, z = rng.uniform(size=n) + 1e-3, rng.standard_normal(n)
    S, C = np.diag(-np.sqrt(d)), z[None, :]
    ours = functools.partial(rnla.solve_sqrt_riccati, d, z, tol=TOL)
    peers = {
        "low-rank RADI": lambda: rnla.solve_riccati_lowrank(scipy.sparse.csr_array(S), np.eye(n), C, tol=TOL).Z,
        "SciPy": functools.partial(dense_factor, S, np.eye(n), C.T @ C),
    }
    P, D, _ = ours()
    rows = []
    for name, peer in peers.items():
        rows.append({
            "where": f"diagonal, one column, n = {n}", "peer": name, "iterations": None, "rank": len(D),
            "error_ours": residual(S, np.eye(n), C, P * np.sqrt(D)),
            "error_peer": residual(S, np.eye(n), C, peer()),
            **harness.race(ours, peer, repeats=3, budget=20.0),
        })  # fmt: skip
    return rows


def row(where, A, B, C, name, peer, tiny):
    """Return one row of a race against `peer`, which returns a factor of the solution; None is no race."""
    ours = functools.partial(rnla.solve_riccati_lowrank, A, B, C, tol=TOL)
    result = ours()
    found = {"where": where, "peer": name, "iterations": result.n_iter, "rank": result.Z.shape[1],
             "error_ours": residual(A, B, C, result.Z), "error_peer": None}  # fmt: skip
    if peer is None:
        return found | {"seconds_ours": harness.seconds(ours), "seconds_peer": None, "ratio": None, "repeats": 1}
    found["error_peer"] = residual(A, B, C, peer())
    return found | harness.race(ours, peer, repeats=2 if tiny else 5, budget=60.0)


def pymor_radi(A, B, C):
    """Return a function that solves with pyMOR and returns a factor."""
    from pymor.core.logger import set_log_levels
    from pymor.operators.numpy import NumpyMatrixOperator
    from pymor.solvers.matrix_equations.equations import RiccatiEquation
    from pymor.solvers.matrix_equations.radi import RADIRiccatiSolver

    set_log_levels({"pymor": "ERROR"})
    operator = NumpyMatrixOperator(scipy.sparse.csc_matrix(A))
    vectors = [operator.source.from_numpy(X) for X in (B, C.T)]
    equation = RiccatiEquation(operator, None, *vectors, trans=True)
    return lambda: RADIRiccatiSolver(radi_tol=TOL).solve(equation).to_numpy()


def dense_factor(A, B, Q):
    """Solve by SciPy and factor the solution, whose rounding errors may make it indefinite."""
    values, U = np.linalg.eigh(scipy.linalg.solve_continuous_are(A, B, Q, np.eye(B.shape[1])))
    return U * np.sqrt(np.maximum(values, 0.0))


COLUMNS = {
    "problem": lambda row: row["where"],
    "shifts": lambda row: number(row["iterations"], "d"),
    "rank": lambda row: str(row["rank"]),
    "peer": lambda row: row["peer"],
    "seconds peer / rnla": lambda row: f"{number(row['seconds_peer'], '.3f')} / {row['seconds_ours']:.3f}",
    "ratio": lambda row: number(row["ratio"], ".2f"),
    "residual rnla / peer": lambda row: f"{row['error_ours']:.1e} / {number(row['error_peer'])}",
}
