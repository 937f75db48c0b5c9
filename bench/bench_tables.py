"""Small tables with one target each: accuracy in few passes (B1, B2), CPU time (B3), time on a tall matrix (B4)."""

import time
import warnings

import numpy as np
import scipy.sparse

import rnla
from bench import harness, peers
from bench.bench_choice import table_choice
from bench.harness import number, tolerance

# Tolerances tried, loosest first, where a table asks for the cost of a given error.
LADDER = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)


def run(name, report):
    """Run and print one table."""
    report.progress(f"table {name}")
    title, rows, columns = TABLES[name]()
    report.add(title, rows)
    report.table(title, columns)


def svd(A, k, tol):
    """Run rnla.svd without its warnings: the tables show the errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        return rnla.svd(A, k, tol=tol, rng=0)


def sigma_error(S, sigma):
    """Return the largest relative error of the singular values."""
    return float(np.max(np.abs(np.asarray(S, dtype=np.float64) - sigma[: len(S)]) / sigma[: len(S)]))


def table_b1():
    """1000x800, k=20, at defaults: worst error 1e-4 in at most 11 passes."""
    contenders = [peers.scikit_learn(), peers.torch_lowrank(2), peers.dask_compressed(0), peers.fbpca()]
    rows = []
    for name in ("slow", "poly1", "exp", "expslow", "sshape", "low rank + noise"):
        if name == "low rank + noise":
            A = rnla.testing.low_rank_plus_noise(1000, 800, rng=0)
            sigma = np.linalg.svd(A, compute_uv=False)
        else:
            sigma = rnla.testing.spectrum(name, 800)
            A = rnla.testing.matrix_with_spectrum(1000, 800, sigma, rng=0)
        result = svd(A, 20, 1e-2)
        rows.append(
            {
                "spectrum": name,
                "sigma_ours": sigma_error(result.S, sigma),
                "passes_ours": result.info.passes,
                **{peer.name: sigma_error(peer.run(A, 20)[1], sigma) for peer in contenders if peer.installed},
            }
        )
    columns = {
        "spectrum": lambda row: row["spectrum"],
        "rnla (<= 1e-4)": lambda row: number(row["sigma_ours"]),
        "rnla passes (<= 11)": lambda row: str(row["passes_ours"]),
    }
    for peer in contenders:
        columns[f"{peer.name}, {peer.passes((1000, 800), 20)} passes"] = lambda row, name=peer.name: number(
            row.get(name)
        )
    return "B1: 1000x800, k=20, worst relative error of the singular values", rows, columns


def table_b2():
    """1000x800 in blocks of 125 rows, 1/j, k=10: an error of 1e-6 in at most 5 reads of the data, counted."""
    sigma = rnla.testing.spectrum("poly1", 800)
    A = rnla.testing.matrix_with_spectrum(1000, 800, sigma, rng=0)
    rows = []
    for tol in LADDER:
        source = rnla.testing.CountingRows(A, chunk_rows=125)
        result = svd(source, 10, tol)
        rows.append(
            {
                "method": f"rnla tol={tolerance(tol)}",
                "sigma": sigma_error(result.S, sigma),
                "reads": source.passes,
                "reported": result.info.passes,
            }
        )
        if rows[-1]["sigma"] <= 1e-6:
            break
    for niter in range(5 if peers.dask_compressed(0).installed else 0):
        rows.append(_dask_reads(A, sigma, niter))
    columns = {
        "method": lambda row: row["method"],
        "error": lambda row: number(row["sigma"]),
        "reads (<= 5 at 1e-6)": lambda row: number(row["reads"], ".2f"),
        "passes reported": lambda row: number(row.get("reported"), ".0f"),
    }
    return "B2: 1000x800 in blocks of rows, 1/j, k=10", rows, columns


def _dask_reads(A, sigma, niter):
    import dask.array
    from dask.array.linalg import svd_compressed

    source = rnla.testing.CountingRows(A, chunk_rows=125)
    blocks = dask.array.from_array(source, chunks=source.chunks, name=False, meta=np.empty((0, 0)))
    S = svd_compressed(blocks, 10, n_power_iter=niter, seed=0, compute=True)[1].compute()
    return {"method": f"dask n_power_iter={niter}", "sigma": sigma_error(S, sigma), "reads": source.passes}


def table_b3():
    """Sparse 30000x15000, 225k non-zeros, k=20: CPU time relative to scikit-learn."""
    A = scipy.sparse.random_array(
        (30000, 15000), density=225_000 / 4.5e8, format="csr", rng=np.random.default_rng(0)
    ).astype(np.float64)
    sigma = peers.scipy_svds("arpack", 0).run(A, 20)[1]
    targets = [(5e-3, 1.1), (1e-8, 2.5)]
    rows = _relative_times(A, 20, sigma, targets, [peers.scipy_svds("arpack", 0)], clock=time.process_time)
    return "B3: sparse 30000x15000, 225k non-zeros, k=20, CPU time over scikit-learn's", rows, RELATIVE_COLUMNS


def table_b4():
    """Dense 10000x400, 1/j, k=20: time relative to scikit-learn."""
    sigma = rnla.testing.spectrum("poly1", 400)
    A = rnla.testing.matrix_with_spectrum(10000, 400, sigma, rng=0)
    targets = [(1e-6, 0.45), (7e-3, 0.4)]
    others = [peers.scipy_svds("arpack", 0), peers.scipy_svds("propack", 0), peers.torch_lowrank(2)]
    return (
        "B4: dense 10000x400, 1/j, k=20, time over scikit-learn's",
        _relative_times(A, 20, sigma, targets, others),
        RELATIVE_COLUMNS,
    )


def _relative_times(A, k, sigma, targets, others, clock=time.perf_counter):
    """Race rnla, at the loosest tolerance for each target error, and some peers against scikit-learn."""
    base = peers.scikit_learn()
    rows = [{"method": base.name, "sigma": sigma_error(base.run(A, k)[1], sigma), "relative": 1.0}]

    def add(method, call, error, target=None):
        times = harness.race(call, lambda: base.run(A, k), repeats=7, budget=5.0, clock=clock)
        rows.append({"method": method, "sigma": error, "relative": 1 / times["ratio"], "target": target})

    add("rnla default", lambda: svd(A, k, 1e-2), sigma_error(svd(A, k, 1e-2).S, sigma))
    for wanted, target in targets:
        for tol in LADDER:
            error = sigma_error(svd(A, k, tol).S, sigma)
            if error <= wanted:
                break
        add(
            f"rnla tol={tolerance(tol)}, for an error of {tolerance(wanted)}",
            lambda tol=tol: svd(A, k, tol),
            error,
            target,
        )
    for peer in others:
        if peer.installed:
            peers.warm_up(peer)
            error = sigma_error(peer.run(A, k)[1], sigma)
            add(peer.name, lambda peer=peer: peer.run(A, k), error)
    return rows


RELATIVE_COLUMNS = {
    "method": lambda row: row["method"],
    "relative time": lambda row: number(row["relative"], ".2f"),
    "target": lambda row: f"<= {row['target']}" if row.get("target") else "-",
    "error": lambda row: number(row["sigma"]),
}
TABLES = {"B1": table_b1, "B2": table_b2, "B3": table_b3, "B4": table_b4, "choice": table_choice}
