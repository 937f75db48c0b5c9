"""The command line: ``rnla svd``, ``rnla robust-pca``, ``rnla complete``, ``rnla info`` and ``rnla demo``.

Exit codes: 0 done; 1 failed, or not converged; 2 the command line is wrong.
"""

import argparse
import contextlib
import importlib.util
import json
import re
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np

import rnla
from rnla._checkpoint import counted, saved_passes
from rnla._command_line import (
    check_folder,
    complain,
    finite_or_none,
    positive_integer,
    precision,
    replacing,
    seed,
    size,
)
from rnla._complete_command import add_complete
from rnla._robust_pca_command import add_robust_pca

METHODS = ("auto", "dense", "qr", "rsi", "krylov", "gram", "rowstream", "gnystrom")
PICTURE_ENDINGS = (".png", ".pdf", ".svg", ".jpg")


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the name of the program; those of the process by default.

    Returns
    -------
    int
        0 done; 1 failed or not converged. A wrong command line ends in ``SystemExit(2)``, as argparse does it.

    Examples
    --------
    >>> from rnla.cli import main
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = str(pathlib.Path(folder, "A.npy"))
    ...     np.save(path, np.diag([3.0, 2.0, 1.0]))
    ...     main(["svd", path, "-k", "2", "-o", str(pathlib.Path(folder, "out.npz")), "--quiet"])
    0
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        message = f"interrupted{_way_on(args)}"
    except OSError as error:
        message = f"{str(error) or type(error).__name__}{_way_on(args)}"
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        message = str(error) or type(error).__name__
    except MemoryError as error:
        message = f"out of memory: {error}{_way_on(args)}"
    complain(args, re.sub(r"^rnla[\w.]*: ", "", message))
    return 1


def _parser():
    """Build the parser; each command names the function that runs it."""
    parser = argparse.ArgumentParser(prog="rnla", description="Randomized low-rank linear algebra.")
    parser.add_argument("--version", action="version", version=f"rnla {rnla.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    svd = commands.add_parser(
        "svd",
        help="leading singular values and vectors of the matrix in a file",
        description="Compute the leading singular values and vectors of the matrix in a file and write U, S and Vh.",
        epilog="Exit code: 0 done, 1 failed or not converged, 2 wrong command line.",
    )
    svd.add_argument("file", metavar="FILE", help=".npy .npz .mtx .mtx.gz .h5 .zarr or an image; URL of a .zarr or .h5")
    svd.add_argument("-k", type=positive_integer, help="rank; with --rtol: the largest rank")
    svd.add_argument("--rtol", type=precision, help="stop at this relative Frobenius error instead of a given rank")
    svd.add_argument("--tol", type=precision, default=1e-2, help="relative residual of each triplet (default 1e-2)")
    svd.add_argument("--method", choices=METHODS, default="auto", help="default: auto")
    svd.add_argument("--center", action="store_true", help="subtract the mean of each column")
    svd.add_argument("--max-passes", type=positive_integer, help="limit on how often the matrix is read")
    svd.add_argument("--seed", type=seed, help="makes the result repeatable")
    svd.add_argument("--key", help="name of the matrix in a .npz, .h5 or .zarr file that holds several")
    svd.add_argument(
        "--block-bytes", type=size, metavar="SIZE", help="most to read of a file at a time: 64MB, 1GiB (default 64MiB)"
    )
    svd.add_argument(
        "--checkpoint", type=Path, metavar="STATE", help="keep the state in this file; go on from it if it is there"
    )
    svd.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on a dask cluster, tcp://host:port, whose workers see FILE, too"
    )
    svd.add_argument("-o", "--output", type=Path, metavar="OUT.npz", help="write the arrays U, S and Vh to this file")
    svd.add_argument("--plot", type=Path, metavar="PICTURE", help="draw the singular values into this file")
    svd.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    svd.add_argument("--quiet", action="store_true", help="print nothing but errors")
    svd.set_defaults(run=_svd, parser=svd)

    add_robust_pca(commands)
    add_complete(commands)

    info = commands.add_parser("info", help="versions, threads and devices")
    info.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    info.set_defaults(run=_info)

    demo = commands.add_parser("demo", help="run on data that ships with rnla and compare with LAPACK")
    demo.add_argument("-o", "--output", type=Path, default=Path("rnla-demo.png"), metavar="PICTURE")
    demo.add_argument("--seed", type=seed, default=0, help="default: 0")
    demo.set_defaults(run=_demo, parser=demo)
    return parser


def _svd(args):
    """``rnla svd``: check the command line, compute, write, report."""
    _check_svd_arguments(args)
    figure = _new_figure(6.4, 4.8) if args.plot else None

    with warnings.catch_warnings(record=True) as caught, _cluster(args), _termination(args):
        warnings.simplefilter("always")
        A = _load(args)
        result = _compute(args, A)
        if args.output:
            U, S, Vh = (np.asarray(part) for part in result)  # a cluster still holds its U
            with replacing(args.output) as file:
                np.savez(file, U=U, S=S, Vh=Vh)
    if figure is not None:
        _draw_scree(result, figure, args.plot)
    _report(args, A, result)
    for warning in caught:
        if not issubclass(warning.category, rnla.ConvergenceWarning):  # said below
            complain(args, f"warning: {warning.message}")
    if not result.info.converged:
        written = f"; what was reached is in {args.output}" if args.output else ""
        complain(args, f"not converged: {result.info.message}{written}")
        return 1
    return 0


def _load(args):
    """Open the file, in blocks where the command line says how large they are."""
    if args.scheduler:
        from rnla._dask_file import dask_matrix

        return dask_matrix(args.file, key=args.key, block_bytes=args.block_bytes, caller="rnla.cli")
    size = {} if args.block_bytes is None else {"map_from": args.block_bytes}
    return rnla.datasets.load_matrix(args.file, key=args.key, **size)


def _compute(args, A):
    """Call ``rnla.svd`` with what the command line says."""
    given = {name: getattr(args, name) for name in ("max_passes", "rtol", "block_bytes", "checkpoint")}
    options = {name: value for name, value in given.items() if value is not None}
    passes = saved_passes(args.checkpoint) if args.checkpoint else None
    if passes and not args.quiet:
        print(f"rnla svd: resuming from {args.checkpoint} after {counted(passes, 'pass')}", file=sys.stderr)
    return rnla.svd(
        A,
        args.k,
        tol=args.tol,
        method=args.method,
        center=args.center,
        rng=args.seed,
        # A bar is for somebody who looks on, and for that only if the package that draws it is there.
        progress=not args.quiet and sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None,
        **options,
    )


def _check_svd_arguments(args):
    """End with exit code 2 where the command line alone shows that it is wrong."""
    if args.k is None and args.rtol is None:
        args.parser.error("one of -k and --rtol is needed")
    if args.output and args.output.suffix != ".npz":
        args.parser.error(f"argument -o: the file must end in .npz; got {args.output}")
    if args.json and args.quiet:
        args.parser.error("argument --quiet: not allowed with argument --json")
    written = list(filter(None, (args.output, args.plot, args.checkpoint)))
    for path in written:
        if path.resolve() == Path(args.file.removeprefix("file://")).resolve():
            args.parser.error(f"{path} would overwrite the input {args.file}")
        check_folder(args, path)
    if len({path.resolve() for path in written}) < len(written):
        args.parser.error("arguments -o, --plot and --checkpoint: must be different files")
    if args.plot:
        _check_picture(args, args.plot)


def _cluster(args):
    if not args.scheduler:
        return contextlib.nullcontext()
    from rnla._dask_file import cluster

    return cluster(args.scheduler)


@contextlib.contextmanager
def _termination(args):
    """Treat a request to terminate like Ctrl-C where there is a state to speak of."""
    if not args.checkpoint or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _way_on(args):
    """Say where the state of an interrupted run is, if it has one."""
    checkpoint = getattr(args, "checkpoint", None)
    if checkpoint is None:
        return ""
    passes = saved_passes(checkpoint)
    if passes is None:
        return f"; there is no state in {checkpoint}"
    return f"; the state after {counted(passes, 'pass')} is in {checkpoint}: the same command goes on from there"


def _check_picture(args, path):
    if path.suffix not in PICTURE_ENDINGS:
        args.parser.error(f"the picture must end in one of {', '.join(PICTURE_ENDINGS)}; got {path}")


def _draw_scree(result, figure, path):
    from rnla.plotting import scree

    scree(result, figure.subplots()).set_title(f"{result.shape[0]} x {result.shape[1]}")
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def _report(args, A, result):
    """Print what was found, as text or as one JSON object."""
    info = result.info
    S = [float(s) for s in result.S]
    if args.json:
        facts = {
            "file": str(args.file),
            "shape": [int(n) for n in A.shape],
            "rank": len(S),
            "singular_values": S,
            "method": info.method,
            "passes": info.passes,
            "error_estimate": finite_or_none(info.error_estimate),
            "seconds": info.elapsed,
            "converged": bool(info.converged),
            "message": info.message,
            "output": str(args.output) if args.output else None,
            "plot": str(args.plot) if args.plot else None,
        }
        print(json.dumps(facts, allow_nan=False))
    elif not args.quiet:
        error = finite_or_none(info.error_estimate)
        print(f"{args.file}: {A.shape[0]} x {A.shape[1]}, {A.dtype}")
        print(f"rank {len(S)}, method {info.method}, {info.passes} passes, {info.elapsed:.3g} s")
        print("relative Frobenius error " + ("not known" if error is None else f"{error:.3g}"))
        print("singular values " + " ".join(f"{s:.4g}" for s in S[:8]) + (" ..." if len(S) > 8 else ""))
        for path in filter(None, (args.output, args.plot)):
            print(f"written: {path}")


def _new_figure(width, height):
    """Make a figure without a window; called before the work, to find out in time whether matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'rnla[viz]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _info(args):
    """``rnla info``: print versions, BLAS, threads and devices."""
    from rnla._environment import describe

    facts = describe()
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, version in facts["versions"].items():
        print(f"{name:18} {version or 'not installed'}")
    print(f"{'BLAS':18} {', '.join(facts['blas'])}")
    print(f"{'threads':18} {facts['threads']}")
    print(f"{'devices':18} {', '.join(facts['devices'])}")
    return 0


def _demo(args):
    """``rnla demo``: run on the data that ships with rnla."""
    from rnla._demo import run

    _check_picture(args, args.output)
    check_folder(args, args.output)
    started = time.perf_counter()
    figure = _new_figure(12, 8)
    run(figure, args.seed)
    with replacing(args.output) as file:
        figure.savefig(file, format=args.output.suffix[1:], dpi=100)
    print(f"\nwritten: {args.output} ({time.perf_counter() - started:.0f} s in all)")
    return 0
