"""Estimators of traces, diagonals, log-determinants, norms and ranks: accuracy tables, and time against peers."""

import functools
import warnings

import numpy as np
import scipy.linalg.interpolative
import scipy.sparse
import scipy.sparse.linalg

import rnla
from bench import harness
from bench.harness import number

TITLES = {
    "trace": "trace: root mean square of the relative error",
    "diag": "diagonal: root mean square of the relative error in the 2-norm",
    "logdet": "log-determinant of a kernel matrix plus 1e-2 I",
    "norm": "norms and condition numbers",
    "rank": "rank",
}
# Printed in the specification for n = 1000: at equal numbers of products the errors are those of the papers.
REFERENCE = {
    ("0.7**j", 60): {"hutchinson": 7e-2, "hutchpp": 3e-4, "xtrace": 5e-6, "xnystrace": 7e-9},
    ("1/j**2", 120): {"hutchinson": 9e-2, "hutchpp": 5e-4, "xtrace": 3e-4, "xnystrace": 2e-4},
    ("flat", 100): {"hutchinson": 1.3e-3, "hutchpp": 2.1e-3, "xtrace": 1.5e-3},
}


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--table", choices=[*TITLES], help="one table only")


def run(options, report):
    """Run the tables and print them."""
    tables = {"trace": traces, "diag": diagonals, "logdet": log_determinants, "norm": norms, "rank": ranks}
    for name in [options.table] if options.table else tables:
        report.progress(f"table {name}")
        report.add(TITLES[name], tables[name](options.tiny))
        report.table(TITLES[name], COLUMNS[name])


def spectra(n):
    """Return the eigenvalues of the tables by name."""
    j = np.arange(float(n))
    return {"0.7**j": 0.7**j, "1/j**2": (1.0 + j) ** -2, "flat": 3.0 - 2.0 * j / (n - 1)}


def traces(tiny):
    """Root mean square errors of every method, beside those of the specification, and what they say of themselves."""
    n, draws = (100, 5) if tiny else (1000, 100)
    rows = []
    for (name, m), expected in REFERENCE.items():
        values = spectra(n)[name]
        # Probes of uniform direction see the eigenvalues alone: a diagonal matrix stands for all.
        A = scipy.sparse.dia_array((values[None], [0]), shape=(n, n)).tocsr()
        m = min(m, n // 3)
        for method in ("hutchinson", "hutchpp", "xtrace", "xnystrace", "auto"):
            found = [rnla.trace(A, m, method=method, rng=draw) for draw in range(draws)]
            errors = np.array([result.value for result in found]) / values.sum() - 1
            stated = np.array([result.stderr for result in found]) / values.sum()
            rows.append(
                {
                    "spectrum": name,
                    "matvecs": m,
                    "method": method if method != "auto" else f"auto: {found[0].method}",
                    "reference": None if tiny else expected.get(method),
                    "error": float(np.sqrt(np.mean(errors**2))),
                    "bias": float(np.mean(errors) / (np.std(errors) / draws**0.5 or 1.0)),
                    "stated": float(np.sqrt(np.mean(stated**2))),
                }
            )
    return rows


def diagonals(tiny):
    """Errors of the diagonal of a matrix with random eigenvectors."""
    n, draws = (100, 3) if tiny else (1000, 20)
    rows = []
    Q = rnla.testing.haar_basis(n, n, rng=0)
    for (name, m), _ in REFERENCE.items():
        A = (Q * spectra(n)[name]) @ Q.T
        truth, m = np.diag(A), min(m, n // 3)
        for method in ("hutchinson", "diagpp", "xdiag", "xnysdiag"):
            errors = [np.linalg.norm(rnla.diag(A, m, method=method, rng=draw) - truth) for draw in range(draws)]
            error = float(np.sqrt(np.mean(np.square(errors))) / np.linalg.norm(truth))
            rows.append({"spectrum": name, "matvecs": m, "method": method, "error": error})
    return rows


def log_determinants(tiny):
    """Plain quadrature and quadrature after deflation, and the time of the latter against Cholesky's."""
    rows = []
    for n in (120,) if tiny else (800, 4000):
        points = np.random.default_rng(0).uniform(size=n)  # on a line: as many effective dimensions as in the reference
        A = np.exp(-((points[:, None] - points[None]) ** 2) / (2 * 0.05**2)) + 1e-2 * np.eye(n)
        truth = 2 * np.sum(np.log(np.diag(np.linalg.cholesky(A))))
        cases = {
            "20 steps x 30, no deflation (ref -3493 +- 11)": {"steps": 20, "num_probes": 30, "rank": 0},
            "10 x 10, rank 60, mu given (ref 2e-8)": {"steps": 10, "num_probes": 10, "rank": 60, "mu": 1e-2},
            "10 x 10, rank 60": {"steps": 10, "num_probes": 10, "rank": 60},
            "defaults, mu given": {"mu": 1e-2},
            "defaults": {},
        }
        for name, options in cases.items():
            if tiny:
                options = {**options, "num_probes": 3, "rank": min(options.get("rank", 20), 20)}
            ours = functools.partial(_quietly, rnla.logdet, A, rng=0, **options)
            peer = functools.partial(np.linalg.slogdet, A)
            result = ours()
            peer()
            rows.append(
                {
                    "side": n,
                    "options": name,
                    "truth": truth,
                    "error": abs(result.value - truth),
                    "stated": result.stderr,
                    "matvecs": result.matvecs,
                    **harness.race(ours, peer, repeats=7, budget=5.0),
                }
            )
    return rows


def norms(tiny):
    """Norms and condition numbers against SciPy's and NumPy's."""
    m, n = (200, 150) if tiny else (4000, 3000)
    tall = (1000, 20) if tiny else (100_000, 100)
    rows = []
    for name in ("slow", "poly1", "flat"):
        sigma = rnla.testing.spectrum(name, n)
        A = rnla.testing.matrix_with_spectrum(m, n, sigma, rng=0)
        operator = scipy.sparse.linalg.aslinearoperator(A)
        peers = {
            "scipy estimate_spectral_norm": lambda A=A: scipy.linalg.interpolative.estimate_spectral_norm(
                A, rng=np.random.default_rng(0)
            ),
            "scipy svds(k=1)": lambda A=A: scipy.sparse.linalg.svds(A, 1, return_singular_vectors=False)[0],
        }
        for peer, call in peers.items():
            rows.append(_race(f"norm 2, {name}", (m, n), lambda A=A: rnla.norm(A, rng=0), peer, call, sigma[0]))
        total = float(np.linalg.norm(sigma))
        rows.append(_race(f"norm fro, {name}", (m, n), lambda A=A: rnla.norm(A, "fro"), "numpy norm",
                          lambda A=A: float(np.linalg.norm(A)), total))  # fmt: skip
        rows.append(_race(f"norm fro of an operator, {name}", (m, n), lambda X=operator: rnla.norm(X, "fro", rng=0),
                          "numpy norm of the array", lambda A=A: float(np.linalg.norm(A)), total))  # fmt: skip
        rows.append(_race(f"norm nuc, {name}", (m, n), lambda A=A: _quietly(rnla.norm, A, "nuc", rng=0), "numpy norm",
                          lambda A=A: float(np.linalg.norm(A, "nuc")), float(sigma.sum()), repeats=2))  # fmt: skip
    A = rnla.testing.matrix_with_spectrum(*tall, np.logspace(0, -8, tall[1]), rng=0)
    for method in ("estimate", "exact"):
        rows.append(_race(f"cond, {method}", tall, lambda method=method: rnla.cond(A, method=method, rng=0),
                          "numpy cond", lambda: float(np.linalg.cond(A)), 1e8))  # fmt: skip
    return rows


def ranks(tiny):
    """Ranks against SciPy's and NumPy's."""
    m, n = (200, 150) if tiny else (1000, 800)
    rng = np.random.default_rng(0)
    B = rng.uniform(size=(100, 52))
    cases = {
        "rank 60": (rng.standard_normal((m, 60)) @ rng.standard_normal((60, n)), 1e-10, 60),
        "B B^T, B 100x52 uniform": (B @ B.T, 1e-10, 52),
        "exp(-j / 7) above 1e-6": (
            rnla.testing.matrix_with_spectrum(m, n, rnla.testing.spectrum("exp", n), rng=0),
            1e-6,
            int(np.sum(rnla.testing.spectrum("exp", n) > 1e-6 * np.exp(-1 / 7))),
        ),
    }
    rows = []
    for name, (A, rtol, truth) in cases.items():
        peers = {
            "scipy estimate_rank": lambda A=A, rtol=rtol: scipy.linalg.interpolative.estimate_rank(
                A, rtol, rng=np.random.default_rng(0)
            ),
            "numpy matrix_rank": lambda A=A, rtol=rtol: int(np.linalg.matrix_rank(A, rtol=rtol)),
        }
        for peer, call in peers.items():
            ours = functools.partial(rnla.rank, A, rtol=rtol, rng=0)
            row = _race(name, A.shape, ours, peer, call, truth)
            rows.append({**row, "rank_ours": ours(), "rank_peer": call()})
    return rows


def _race(what, shape, ours, peer_name, peer, truth, repeats=7):
    value, other = ours(), peer()
    return {
        "what": what,
        "where": f"{shape[0]}x{shape[1]}",
        "peer": peer_name,
        "truth": truth,
        "error": abs(value - truth) / truth,
        "error_peer": abs(other - truth) / truth,
        **harness.race(ours, peer, repeats=repeats, budget=5.0),
    }


def _quietly(function, *arguments, **options):
    """Run without warnings of convergence: the tables show the errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        return function(*arguments, **options)


RATIO = {
    "seconds peer / rnla": lambda row: f"{row['seconds_peer']:.4f} / {row['seconds_ours']:.4f}",
    "ratio": lambda row: number(row["ratio"], ".2f"),
}
ERRORS = {
    "what": lambda row: row["what"],
    "shape": lambda row: row["where"],
    "peer": lambda row: row["peer"],
}
COLUMNS = {
    "trace": {
        "spectrum": lambda row: row["spectrum"],
        "products": lambda row: str(row["matvecs"]),
        "method": lambda row: row["method"],
        "reference": lambda row: number(row["reference"]),
        "error": lambda row: number(row["error"]),
        "bias / its standard error": lambda row: number(row["bias"], ".1f"),
        "stderr": lambda row: number(row["stated"]),
    },
    "diag": {
        "spectrum": lambda row: row["spectrum"],
        "products": lambda row: str(row["matvecs"]),
        "method": lambda row: row["method"],
        "error": lambda row: number(row["error"]),
    },
    "logdet": {
        "n": lambda row: str(row["side"]),
        "options": lambda row: row["options"],
        "truth": lambda row: number(row["truth"], ".3f"),
        "error": lambda row: number(row["error"]),
        "stderr": lambda row: number(row["stated"]),
        "products": lambda row: str(row["matvecs"]),
        **{key.replace("peer", "slogdet"): column for key, column in RATIO.items()},
    },
    "norm": {
        **ERRORS,
        **RATIO,
        "error rnla": lambda row: number(row["error"]),
        "error peer": lambda row: number(row["error_peer"]),
    },
    "rank": {
        **ERRORS,
        **RATIO,
        "true": lambda row: str(row["truth"]),
        "rnla": lambda row: str(row["rank_ours"]),
        "that of the peer": lambda row: str(row["rank_peer"]),
    },
}
