"""``rnla robust-pca``: background and moving objects of a video, or the outliers of any matrix in a file."""

import json
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rnla
from rnla._command_line import check_folder, complain, finite_or_none, positive_integer, replacing, seed
from rnla._png import write_png
from rnla._rpca import OPTIONS
from rnla._video_sheet import video_sheet

FINDS_RANK = ("ialm", "admm")
DEMO_RANK = 1


class Task(NamedTuple):
    """The matrix to work on, and what is known of it."""

    A: Any  # (m, n), floating
    shape: tuple | None  # (height, width) of a frame, if it is a video
    name: str
    kind: str  # one line of the report
    truth: Any  # MovingRectangles, or None


def add_robust_pca(commands):
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "robust-pca",
        help="split a video into background and moving objects, or a matrix into low rank and outliers",
        description="Split the video or the matrix in a file into a part of low rank and outliers. The columns of the "
        "matrix of a video are its frames.",
        epilog="OUT.npz holds U, s, Vh of the part of low rank, and the outliers as a sparse matrix in CSR format: "
        "outliers_data, outliers_indices, outliers_indptr. Exit code: 0 done, 1 failed or not converged, 2 wrong "
        "command line.",
    )
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help=".npz or .npy with an array (frames, height, width), or any matrix"
    )
    parser.add_argument(
        "-k", type=positive_integer, help="rank of the background: 1 or 2 for a camera that stands still"
    )
    parser.add_argument("--demo", action="store_true", help="no file: a made-up video of which the answer is known")
    parser.add_argument("--time-axis", choices=("first", "last"), default="first", help="of the array; default: first")
    parser.add_argument("--key", help="name of the array in a .npz, .h5 or .zarr file that holds several")
    parser.add_argument("--shape", type=_frame_shape, metavar="HxW", help="of a frame, if FILE is a matrix of frames")
    parser.add_argument("--method", choices=tuple(OPTIONS), default="riecur", help="default: riecur")
    parser.add_argument("--decay", type=float, help="factor of the bound on outliers; 0.9 tolerates more than 0.7")
    parser.add_argument("--polish", type=int, help="final fits to all entries: a smaller error under noise")
    parser.add_argument("--max-iter", type=positive_integer, help="most iterations (default 200)")
    parser.add_argument("--seed", type=seed, help="makes the result repeatable")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.npz", help="write factors and outliers to this file")
    parser.add_argument(
        "--sheet", type=Path, metavar="OUT.png", help="draw frame, background and outliers of some frames side by side"
    )
    parser.add_argument("--frames", type=_frame_numbers, metavar="T,T", help="frames on the sheet; default: 0 and half")
    parser.add_argument("--progress", action="store_true", help="show a bar")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=_robust_pca, parser=parser)


def _robust_pca(args):
    """Check the command line, compute, write, report."""
    _check_arguments(args)
    task = _demo_video(args) if args.demo else _load(args)
    if args.sheet and task.shape is None:
        raise ValueError("--sheet needs a video, (frames, height, width), or --shape of the frames in the columns")
    given = {name: getattr(args, name) for name in ("decay", "polish", "max_iter")}
    options = {name: value for name, value in given.items() if value is not None}
    k = args.k or (DEMO_RANK if args.demo and args.method not in FINDS_RANK else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.perf_counter()
        result = rnla.robust_pca(task.A, k, method=args.method, rng=args.seed, progress=args.progress, **options)
        seconds = time.perf_counter() - started
        outliers = result.sparse(task.A)
    if args.output:
        _write(args.output, task, result, outliers)
    if args.sheet:
        sheet = video_sheet(task.A, result, task.shape, args.frames)
        with replacing(args.sheet) as file:
            write_png(file, sheet)
    _report(args, task, result, outliers, seconds)
    for warning in caught:
        if not issubclass(warning.category, rnla.ConvergenceWarning):  # said below
            complain(args, f"warning: {warning.message}")
    if not result.converged:
        written = f"; what was reached is in {args.output}" if args.output else ""
        complain(args, f"not converged: {result.message}{written}")
        return 1
    return 0


def _check_arguments(args):
    """End with exit code 2 where the command line alone shows that it is wrong."""
    error = args.parser.error
    if args.demo == (args.file is not None):
        error("one of FILE and --demo is needed, and not both")
    if args.k is None and not args.demo and args.method not in FINDS_RANK:
        error(f"argument -k: --method {args.method} needs a rank")
    for path, option, ending in ((args.output, "-o", ".npz"), (args.sheet, "--sheet", ".png")):
        if path is None:
            continue
        if path.suffix != ending:
            error(f"argument {option}: the file must end in {ending}; got {path}")
        if args.file and path.resolve() == Path(args.file.removeprefix("file://")).resolve():
            error(f"{path} would overwrite the input {args.file}")
        check_folder(args, path)


def _demo_video(args):
    video = rnla.datasets.moving_rectangles(rng=args.seed or 0)
    A, shape = _matrix_of(video.frames)
    return Task(A, shape, "demo", f"{len(video.frames)} frames of {shape[0]} x {shape[1]}", video)


def _load(args):
    """Open the file: a video if it is an array of three dimensions, or else whatever matrix it holds."""
    array = _array_of_three(args)
    if array is not None:
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{args.file} must hold a numeric array; it holds dtype {array.dtype}")
        frames = np.moveaxis(array, -1, 0) if args.time_axis == "last" else array
        A, shape = _matrix_of(frames)
        return Task(A, shape, args.file, f"{len(frames)} frames of {shape[0]} x {shape[1]}{_change(array, A)}", None)
    given = rnla.datasets.load_matrix(args.file, key=args.key)
    A = given
    if given.dtype.kind in "biu" and not hasattr(given, "tocsr"):
        A = np.asarray(given[...], np.float32)
    if args.shape and args.shape[0] * args.shape[1] != A.shape[0]:
        raise ValueError(f"--shape must have as many pixels as the matrix has rows, {A.shape[0]}; got {args.shape}")
    return Task(A, args.shape, args.file, f"{A.shape[0]} x {A.shape[1]}{_change(given, A)}", None)


def _array_of_three(args):
    """Return the array of three dimensions in a .npy or .npz file, or None if it holds something else."""
    path = Path(args.file)
    if path.suffix not in (".npy", ".npz") or (path.suffix == ".npz" and not zipfile.is_zipfile(path)):
        return None  # missing and damaged files are reported by what opens matrices
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return found if found.ndim == 3 else None
        with found:
            names = [args.key] if args.key else found.files
            if len(names) > 1 or names[0] not in found.files:
                return None
            array = found[names[0]]
            return array if array.ndim == 3 else None
    except OSError:
        raise
    except Exception as error:  # parsers raise anything when they meet damaged bytes
        raise ValueError(f"cannot read an array from {args.file}: {str(error) or type(error).__name__}") from error


def _matrix_of(frames):
    """Return the matrix with a column for each frame, in floating point, and the shape of a frame."""
    dtype = frames.dtype if frames.dtype in (np.float32, np.float64) else np.float32
    height, width = frames.shape[1:]
    return np.ascontiguousarray(frames.reshape(len(frames), -1).T, dtype=dtype), (height, width)


def _change(given, A):
    return f", {A.dtype}" if given.dtype == A.dtype else f", {given.dtype} converted to {A.dtype}"


def _write(path, task, result, outliers):
    arrays = {
        "U": result.U, "s": result.s, "Vh": result.Vh, "outliers_data": outliers.data,
        "outliers_indices": outliers.indices, "outliers_indptr": outliers.indptr,
        "unresolved_rows": result.unresolved_rows, "unresolved_cols": result.unresolved_cols,
    }  # fmt: skip
    if task.shape is not None:
        arrays["frame_shape"] = np.array(task.shape)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def _report(args, task, result, outliers, seconds):
    """Print what was found, as text or as one JSON object."""
    share = outliers.nnz / (result.shape[0] * result.shape[1])
    facts = {
        "file": task.name,
        "shape": list(result.shape),
        "frame_shape": None if task.shape is None else list(task.shape),
        "rank": result.rank,
        "method": args.method,
        "status": result.status,
        "converged": bool(result.converged),
        "message": result.message,
        "iterations": result.n_iter,
        "outlier_share": share,
        "kept_fresh": finite_or_none(result.kept_fresh),
        "unresolved_rows": len(result.unresolved_rows),
        "unresolved_cols": len(result.unresolved_cols),
        "singular_values": [float(s) for s in result.s],
        "seconds": seconds,
        "output": str(args.output) if args.output else None,
        "sheet": str(args.sheet) if args.sheet else None,
    }
    if task.truth is not None:
        facts |= _compare(task, result, outliers)
    if args.json:
        print(json.dumps(facts, allow_nan=False))
        return
    print(f"{task.name}: {task.kind}")
    print(f"rank {result.rank}, method {args.method}, {result.n_iter} iterations, {seconds:.3g} s")
    print(f"{result.status}: {result.message}")
    rows, cols = ("pixels", "frames") if task.shape else ("rows", "columns")
    print(f"outliers {share:.2%} of the entries; not explained: {facts['unresolved_rows']} {rows}, "
          f"{facts['unresolved_cols']} {cols}")  # fmt: skip
    if task.truth is not None:
        print(f"background wrong by {facts['background_rms']:.2g} grey levels (root mean square); of the moving pixels "
              f"{facts['found']:.1%} found, of those found {facts['right']:.1%} right")  # fmt: skip
    for path in filter(None, (args.output, args.sheet)):
        print(f"written: {path}")


def _compare(task, result, outliers):
    """Return how far background and outliers of the made-up video are from the truth."""
    background, _ = _matrix_of(task.truth.background)
    moving, _ = _matrix_of(task.truth.foreground)
    found = outliers.toarray() != 0
    both = np.count_nonzero(found & (moving != 0))
    return {
        "background_rms": float(np.sqrt(np.mean((result.low_rank() - background) ** 2))),
        "found": both / max(np.count_nonzero(moving), 1),
        "right": both / max(np.count_nonzero(found), 1),
    }


def _frame_shape(text):
    height, width = (positive_integer(part) for part in text.lower().split("x"))
    return height, width


def _frame_numbers(text):
    return [seed(part) for part in text.split(",")]
