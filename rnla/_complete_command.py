"""``rnla complete``: the missing entries of a matrix in a file."""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np

import rnla
from rnla._command_line import check_folder, complain, positive_integer, precision, replacing, seed

RANKS = (1, 2, 4, 8, 16, 24, 32)  # that "auto" compares, up to what the number of entries allows
LEAST_RATIO = 1.1  # entries over degrees of freedom


def add_complete(commands):
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "complete",
        help="fill the missing entries of a matrix",
        description="Fit a matrix of low rank to the entries that are known of the matrix in a file: those that are "
        "not NaN, or that a sparse matrix stores.",
        epilog="OUT.npz holds U, s, Vh and the centre of rows and columns: an entry is (U * s) @ Vh + rows[i] + "
        "cols[j]. Exit code: 0 done, 1 failed or not converged, 2 wrong command line.",
    )
    parser.add_argument("file", metavar="FILE", help=".npy .npz .mtx .mtx.gz; text of lines 'row column value'")
    parser.add_argument(
        "-k", type=_ranks, default="auto", metavar="RANK",
        help="rank; several (2,4,8) or 'auto' (the default): that with the smallest error at held-out entries",
    )  # fmt: skip
    parser.add_argument("--center", choices=("none", "mean", "columns", "rows", "both"), default="columns",
                        help="what is subtracted before the fit (default columns)")  # fmt: skip
    parser.add_argument(
        "--noise-std", type=_noise, default="auto", help="of an entry; 0: exact (default auto; for one rank)"
    )
    parser.add_argument("--key", help="name of the array in a .npz file that holds several")
    parser.add_argument(
        "--keep", type=_share, metavar="SHARE", help="hide all but this share of the entries, and tell the error there"
    )
    parser.add_argument("--tol", type=precision, default=1e-4, help="relative change that ends a fit (default 1e-4)")
    parser.add_argument(
        "--max-iter", type=positive_integer, default=100, help="most least-squares problems (default 100)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of what is hidden and held out (default 0)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.npz", help="write the factors to this file")
    parser.add_argument("--filled", type=Path, metavar="OUT.npy", help="write the whole matrix, what is known kept")
    parser.add_argument("--progress", action="store_true", help="show a bar")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=_complete, parser=parser)


def _complete(args):
    """Check the command line, compute, write, report."""
    for path, option, ending in ((args.output, "-o", ".npz"), (args.filled, "--filled", ".npy")):
        if path is not None:
            if path.suffix != ending:
                args.parser.error(f"argument {option}: the file must end in {ending}; got {path}")
            if path.resolve() == Path(args.file).resolve():
                args.parser.error(f"{path} would overwrite the input {args.file}")
            check_folder(args, path)
    rows, cols, values, shape = _entries(args)
    known = np.ones(len(values), bool)
    if args.keep is not None:
        known = np.random.default_rng(args.seed).random(len(values)) < args.keep
        if not known.any() or known.all():
            raise ValueError(f"--keep {args.keep} keeps {known.sum()} of {known.size} entries: nothing to compare with")
    entries = rows[known], cols[known], values[known]
    center = None if args.center == "none" else args.center
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.perf_counter()
        result, facts = _fitted(args, entries, shape, center)
        facts["seconds"] = time.perf_counter() - started
    if args.keep is not None:
        facts |= _compare(result, entries, (rows[~known], cols[~known], values[~known]))
    _write(args, result)
    _report(args, result, facts)
    for warning in caught:
        if not issubclass(warning.category, rnla.ConvergenceWarning):  # said below
            complain(args, f"warning: {str(warning.message).removeprefix('rnla.complete: ')}")
    if not result.converged:
        complain(args, f"not converged: {result.message}")
        return 1
    return 0


def _fitted(args, entries, shape, center):
    """Return the result, and what cross-validation has said of it."""
    options = {
        "center": center,
        "tol": args.tol,
        "max_iter": args.max_iter,
        "rng": args.seed,
        "progress": args.progress,
    }
    ranks = args.k
    if ranks == "auto":
        ranks = [
            k for k in RANKS if k == 1 or (k <= min(shape) and LEAST_RATIO * k * (sum(shape) - k) <= len(entries[0]))
        ]
    if len(ranks) == 1 and args.k != "auto":
        return rnla.complete(entries, ranks[0], shape=shape, noise_std=args.noise_std, **options), {}
    found = rnla.complete_cv(entries, ranks, shape=shape, **options)
    return found.best, {"held_out_rmse": found.rmse, "p": found.p, "reg_factor": found.reg_factor, "tried": ranks}


def _compare(result, entries, hidden):
    """Return the root mean square error at hidden entries, and that of the means of the columns."""
    rows, cols, values = hidden
    error = np.sqrt(np.mean(np.abs(values - result.entries(rows, cols)) ** 2))
    n = result.shape[1]
    number = np.bincount(entries[1], minlength=n)
    means = np.bincount(entries[1], weights=entries[2], minlength=n) / np.maximum(number, 1)
    means = np.where(number > 0, means, entries[2].mean())
    return {
        "hidden": len(values), "hidden_rmse": float(error),
        "column_mean_rmse": float(np.sqrt(np.mean((values - means[cols]) ** 2))),
    }  # fmt: skip


def _entries(args):
    """Return rows, columns and values of what is known, and the shape."""
    path = Path(args.file)
    if path.suffix not in (".npy", ".npz", ".mtx", ".gz"):
        return _from_text(path)
    A = rnla.datasets.load_matrix(args.file, key=args.key)
    if hasattr(A, "tocoo"):
        A = A.tocoo()
        return A.row.astype(np.int64), A.col.astype(np.int64), A.data.astype(float), A.shape
    A = np.asarray(A[...])
    if A.ndim != 2 or A.dtype.kind not in "biuf":
        raise ValueError(f"{args.file} must hold a real matrix; it holds shape {A.shape}, dtype {A.dtype}")
    A = A.astype(float)
    rows, cols = np.nonzero(~np.isnan(A))
    return rows, cols, A[rows, cols], A.shape


def _from_text(path):
    """Read lines 'row column value', with more columns or not, separated by blanks, tabs, commas or '::'."""
    try:
        text = path.read_text(encoding="utf-8").replace("::", " ").replace(",", " ")
        table = np.array([line.split()[:3] for line in text.splitlines() if line.strip()], dtype=float)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must have lines 'row column value': {error}") from error
    if table.ndim != 2 or table.shape[1] != 3 or not len(table):
        raise ValueError(f"{path} must have lines 'row column value'")
    rows, cols = (np.unique(table[:, j], return_inverse=True)[1] for j in (0, 1))
    return rows, cols, table[:, 2], (int(rows.max()) + 1, int(cols.max()) + 1)


def _write(args, result):
    if args.output:
        m, n = result.shape
        of_rows, of_cols = (np.zeros(m), np.zeros(n)) if result.center_ is None else result.center_[1:]
        with replacing(args.output) as file:
            np.savez_compressed(file, U=result.U, s=result.s, Vh=result.Vh, rows=of_rows, cols=of_cols)
    if args.filled:
        with replacing(args.filled) as file:
            np.save(file, result.to_dense(keep_observed=True))


def _report(args, result, facts):
    """Print what was found, as text or as one JSON object."""
    count = int(result.residual.shape[0])
    facts = {
        "file": args.file, "shape": list(result.shape), "entries": count, "rank": result.rank, "center": args.center,
        "converged": bool(result.converged), "message": result.message, "iterations": result.n_iter,
        "noise_std": float(result.noise_std), "reg": float(result.reg),
        "residual_rms": float(np.sqrt(np.mean(result.residual**2))),
        "singular_values": [float(s) for s in result.s],
        "output": str(args.output) if args.output else None,
        "filled": str(args.filled) if args.filled else None,
        **facts,
    }  # fmt: skip
    if args.json:
        print(json.dumps(facts, allow_nan=False))
        return
    m, n = result.shape
    print(f"{args.file}: {m} x {n}, {count} entries ({count / (m * n):.1%})")
    print(f"rank {result.rank}, {result.n_iter} iterations, {facts['seconds']:.3g} s: {result.message}")
    print(f"noise {result.noise_std:.3g}, residual {facts['residual_rms']:.3g} (root mean square)")
    if "held_out_rmse" in facts:
        chosen = f"p = {facts['p']:g}, error {facts['held_out_rmse']:.4g} at held-out entries"
        print(f"chosen of ranks {facts['tried']}: {chosen}")
    if "hidden" in facts:
        means = f"means of columns {facts['column_mean_rmse']:.4g}"
        print(f"error {facts['hidden_rmse']:.4g} at {facts['hidden']} hidden entries; {means}")
    for path in filter(None, (args.output, args.filled)):
        print(f"written: {path}")


def _ranks(text):
    return text if text == "auto" else [positive_integer(part) for part in text.split(",")]


def _noise(text):
    return text if text == "auto" else precision(text)


def _share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1); got {text}")
    return value
