"""rnla.svd against its peers: time ratios at defaults and at equal error, memory, passes.

Every row is one race. Both sides are called once untimed, which gives their errors and their peak memory, and then
timed in turns; the ratio is the median of peer time over rnla time, so more than one means that rnla is faster.

sigma err    largest relative error of the k singular values
excess       ||A - U S Vh||_F over the least possible, minus one
residual     largest ||A v - s u|| or ||A^H u - s v|| over s
MB           rise of the resident memory of the process during the call (Linux's high-water mark)
passes       how often every entry of A was read (counted, or known from the peer's documentation)

The column "rnla at" says which tolerance rnla ran with: its default, the one given to the peer, or the loosest of a
ladder at which neither of the first two errors is larger than the peer's ("equal").
"""

import fnmatch
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import rnla
from bench import bench_memmap, bench_tables, figures, harness, peers, workloads
from bench.harness import number, tolerance

TABLE = "svd against peers"
DEFAULT_TOL = 1e-2
# The tolerances tried, loosest first, to stop at a peer's error.
LADDER = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12)
QUICK = ("10000x2000 1/i float*", "document-term float64")
QUICK_PEERS = ("scikit-learn", "ARPACK", "PROPACK", "torch")


def add_arguments(parser):
    """Add the options of this benchmark."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three cells and the fast peers, in under three minutes")
    size.add_argument("--tiny", action="store_true", help="matrices of a thousandth of the size: tests the benchmark")
    parser.add_argument("--only", metavar="PATTERN", help="cells whose name matches, such as '*graph*' or 'memmap'")
    parser.add_argument("--peers", metavar="PATTERN", default="*", help="peers whose name matches, such as 'scikit*'")
    parser.add_argument("--table", choices=sorted(bench_tables.TABLES), help="one of the small tables instead")
    parser.add_argument("--scratch", type=Path, help="where the memmap's file goes (default: TMPDIR)")
    parser.add_argument("--memmap-gb", type=float, default=8.0, help="size of that file (default 8)")


def run(options, report):
    """Run the cells that the options select, then the memmap and the tables, and print all."""
    if options.table:
        bench_tables.run(options.table, report)
        return
    repeats, budget = (2, 0.1) if options.tiny else (5, 2.0) if options.quick else (7, 3.0)
    for workload in selected(options):
        report.progress(workload.title)
        problem = workloads.load(workload)
        chosen = [c for c in contests(workload, options.quick) if fnmatch.fnmatch(c.peer.name, options.peers)]
        for row in cell(problem, chosen, repeats, budget, with_torch=fnmatch.fnmatch("torch", options.peers)):
            report.add(TABLE, [row])
            report.progress(f"  {row['peer']}: {number(row['ratio'], '.2f')} ({row.get('message', row['mode'])})")
    if report.content["tables"]:
        report.table(TABLE, COLUMNS)
        report.add(figures.TITLE, figures.verdicts(report.content["tables"][TABLE]))
        report.table(figures.TITLE, figures.COLUMNS)
    if not options.quick and options.peers == "*" and matches(options, "memmap"):
        gigabytes = 0.02 if options.tiny else options.memmap_gb
        bench_memmap.run(gigabytes, options.scratch, options.threads, report)
    if not (options.quick or options.tiny or options.only or options.peers != "*"):
        for table in ("B1", "B2", "B3", "B4"):
            bench_tables.run(table, report)


def selected(options):
    """Return the workloads to run."""
    found = workloads.workloads(0.03 if options.tiny else 1.0)
    if options.quick:
        found = [w for w in found if any(fnmatch.fnmatch(w.title, pattern) for pattern in QUICK)]
    return [workload for workload in found if matches(options, workload.title)]


def matches(options, name):
    """Say whether ``--only`` lets a cell through."""
    return options.only is None or fnmatch.fnmatch(name, options.only)


@dataclass(frozen=True)
class Contest:
    """A peer and the ways in which rnla is set against it."""

    peer: peers.Peer
    modes: tuple  # of "default", "equal", "sigma<=1e-4", "tol=1e-10"


def contests(workload, quick):
    """Return the contests of one cell; torch is not among them, for its niter depends on rnla's error."""
    tight = [("arpack", "tol=1e-10"), ("propack", "tol=1e-10")] if workload.dtype == np.float64 else []
    loose = ("equal", "sigma<=1e-4") if workload.kind == "sparse" else ("equal",)
    every = [
        Contest(peers.scikit_learn(), ("default", "equal")),
        Contest(peers.scipy_svds("arpack", 1e-4), loose),
        Contest(peers.scipy_svds("propack", 1e-4), ("equal",)),
        *(Contest(peers.scipy_svds(solver, 1e-10), (mode,)) for solver, mode in tight),
        Contest(peers.fbpca(), ("equal",)),
        Contest(peers.primme(1e-4), ("equal",)),
        Contest(peers.scipy_svds("lobpcg", 1e-4), ("equal",)),
        Contest(peers.dask_compressed(2), ("equal",)),
    ]
    return [
        contest
        for contest in every
        if contest.peer.installed
        and not (contest.peer.dense_only and workload.kind != "dense")
        and not (quick and not contest.peer.name.startswith(QUICK_PEERS))
    ]


@dataclass(frozen=True)
class Outcome:
    """What the untimed call of one method gave."""

    errors: object
    memory: int
    passes: float
    info: object = None  # rnla's own account


class Ours:
    """rnla.svd on one problem, run at most once untimed for each tolerance."""

    def __init__(self, problem):
        self.problem = problem
        self.outcomes = {}

    def call(self, tol):
        """Return the result at one tolerance."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rnla.ConvergenceWarning)  # the table shows the errors
            return rnla.svd(self.problem.A, self.problem.workload.k, tol=tol, rng=0)

    def at(self, tol):
        """Return the outcome at one tolerance."""
        if tol not in self.outcomes:
            result, memory = harness.peak_memory(lambda: self.call(tol))
            self.outcomes[tol] = Outcome(self.problem.errors(*result), memory, result.info.passes, result.info)
        return self.outcomes[tol]

    def tolerance(self, mode, peer):
        """Return the tolerance to run with against the outcome of a peer, or None if none is good enough."""
        if mode == "default":
            return DEFAULT_TOL
        if mode == "tol=1e-10":
            return 1e-10

        def good(tol):
            if mode == "equal":
                return self.at(tol).errors.no_larger_than(peer.errors)
            return self.at(tol).errors.sigma <= 1e-4

        return next((tol for tol in LADDER if good(tol)), None)


def cell(problem, selected_contests, repeats, budget, *, with_torch=True):
    """Yield the rows of one workload."""
    A, k = problem.A, problem.workload.k
    ours = Ours(problem)
    ours.call(DEFAULT_TOL)  # compilation
    if problem.workload.kind == "dense":
        if ours.at(DEFAULT_TOL).info.matvecs:  # a direct method does none
            yield bare_row(problem, ours, repeats, budget)
        if with_torch and peers.torch_lowrank(1).installed:
            selected_contests = [*selected_contests, Contest(matched_torch(problem, ours.at(DEFAULT_TOL)), ("equal",))]
    for contest in selected_contests:
        peers.warm_up(contest.peer)
        try:
            (result, passes), memory = harness.peak_memory(
                lambda contest=contest: peers.run_counted(contest.peer, A, k)
            )
            outcome = Outcome(problem.errors(*result), memory, passes)
        except Exception as error:  # a peer that gives up is a finding, not the end of the run
            yield failed_row(problem, contest.peer, error)
            continue
        for mode in contest.modes:
            tol = ours.tolerance(mode, outcome)
            times = {}
            if tol is not None:
                times = harness.race(
                    lambda tol=tol: ours.call(tol),
                    lambda peer=contest.peer: peer.run(A, k),
                    repeats=repeats,
                    budget=budget,
                )
            yield row(problem, contest.peer.name, mode, tol, times, outcome, tol and ours.at(tol))


def matched_torch(problem, ours):
    """Return torch.svd_lowrank with the most iterations at which it is not yet more accurate than ours."""
    matched = peers.torch_lowrank(1)
    peers.warm_up(matched)
    for niter in (2, 3, 4, 5, 6, 8, 10, 12, 16):
        peer = peers.torch_lowrank(niter)
        if not ours.errors.no_larger_than(problem.errors(*peer.run(problem.A, problem.workload.k))):
            break
        matched = peer
    return matched


def bare_row(problem, ours, repeats, budget):
    """Race rnla at its default against the matrix products that it did, and nothing else."""
    outcome = ours.at(DEFAULT_TOL)
    times = harness.race(
        lambda: ours.call(DEFAULT_TOL), bare_products(problem.A, outcome.info), repeats=repeats, budget=budget
    )
    return row(problem, "bare products", "default", DEFAULT_TOL, times, None, outcome)


def bare_products(A, info):
    """Return a call that multiplies by A and its adjoint in turns, as many columns as `info` tells, without allocating.

    The blocks are rows-first, and ``A.T @ Y`` is written that way round: OpenBLAS needs twice the time for
    ``(Y.T @ A).T``.
    """
    width = min(info.block_size, info.matvecs)
    full, rest = divmod(info.matvecs, width)
    m, n = A.shape
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, width)).astype(A.dtype)
    Y = rng.standard_normal((m, width)).astype(A.dtype)
    into_X, into_Y = np.empty_like(X), np.empty_like(Y)
    last = np.ascontiguousarray(X[:, :rest])
    into_last = np.empty((m, rest), A.dtype)

    def multiply():
        for product in range(full):
            if product % 2:
                np.matmul(A.T, Y, out=into_X)
            else:
                np.matmul(A, X, out=into_Y)
        if rest:
            np.matmul(A, last, out=into_last)

    multiply()
    return multiply


def row(problem, peer, mode, tol, times, peer_outcome, our_outcome):
    """Return one race as a flat record."""
    workload = problem.workload
    record = {
        "workload": workload.name,
        "kind": workload.kind,
        "dtype": np.dtype(workload.dtype).name,
        "k": workload.k,
        "peer": peer,
        "mode": mode,
        "tol": tol,
        "ratio": None,
        **times,
    }
    for side, outcome in (("peer", peer_outcome), ("ours", our_outcome)):
        record |= {
            f"sigma_{side}": outcome and outcome.errors.sigma,
            f"excess_{side}": outcome and outcome.errors.excess,
            f"residual_{side}": outcome and outcome.errors.residual,
            f"memory_{side}": outcome and outcome.memory,
            f"passes_{side}": outcome and outcome.passes,
        }
    if peer_outcome and our_outcome:
        record["no_larger_error"] = our_outcome.errors.no_larger_than(peer_outcome.errors)
    if our_outcome:
        info = our_outcome.info
        record |= {"method": info.method, "block_size": info.block_size, "converged": bool(info.converged)}
    return record


def failed_row(problem, peer, error):
    """Return the record of a peer that raised."""
    message = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
    return row(problem, peer.name, "failed", None, {"message": message}, None, None)


def _pair(name, form=".1e", scale=1):
    def text(record):
        sides = (record.get(f"{name}_{side}") for side in ("peer", "ours"))
        return " / ".join(number(value if value is None else value / scale, form) for value in sides)

    return text


def _setting(record):
    if record["tol"] is None:
        return "peer failed" if record["mode"] == "failed" else f"{record['mode']}: not reached"
    return (
        record["mode"]
        if record["mode"] in ("default", "tol=1e-10")
        else f"{record['mode']}: tol={tolerance(record['tol'])}"
    )


COLUMNS = {
    "workload": lambda record: record["workload"],
    "dtype": lambda record: record["dtype"],
    "peer": lambda record: record["peer"],
    "rnla at": _setting,
    "method": lambda record: record.get("method", "-"),
    "ratio": lambda record: number(record["ratio"], ".2f"),
    "seconds peer / rnla": _pair("seconds", ".3f"),
    "sigma err peer / rnla": _pair("sigma"),
    "excess peer / rnla": _pair("excess"),
    "residual peer / rnla": _pair("residual"),
    "MB peer / rnla": _pair("memory", ".0f", 1e6),
    "passes peer / rnla": _pair("passes", ".0f"),
}
