"""Command line of the benchmarks."""

import argparse
import sys
from pathlib import Path

from bench import (
    bench_completion,
    bench_eigh,
    bench_import,
    bench_kernels,
    bench_lstsq,
    bench_nystrom,
    bench_optim,
    bench_pca,
    bench_qr,
    bench_riccati,
    bench_rpca,
    bench_scale,
    bench_sqrtm,
    bench_streaming,
    bench_svd,
    bench_trace,
    bench_transition,
    harness,
)

BENCHMARKS = {
    "svd": bench_svd,
    "completion": bench_completion,
    "eigh": bench_eigh,
    "pca": bench_pca,
    "nystrom": bench_nystrom,
    "optim": bench_optim,
    "qr": bench_qr,
    "lstsq": bench_lstsq,
    "riccati": bench_riccati,
    "rpca": bench_rpca,
    "sqrtm": bench_sqrtm,
    "trace": bench_trace,
    "transition": bench_transition,
    "streaming": bench_streaming,
    "scale": bench_scale,
    "kernels": bench_kernels,
    "import": bench_import,
}


def parser():
    """Return the parser of ``python -m bench``."""
    top = argparse.ArgumentParser(prog="python -m bench", description="Ratios to peers, both errors beside them.")
    commands = top.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        command = commands.add_parser(name, description=module.__doc__, help=module.__doc__.splitlines()[0])
        command.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows and the machine")
        command.add_argument("--threads", type=int, default=2, help="threads of BLAS and of every peer (default 2)")
        module.add_arguments(command)
    return top


def result_name(options):
    """Return the name of the results: a part of a benchmark must not overwrite those of the whole."""
    settings = vars(options)
    sizes = [size for size in ("quick", "tiny") if settings.get(size)]
    if settings.get("gb") and not sizes:
        sizes = [f"{settings['gb']:g}gb"]
    part = ["part"] if settings.get("only") or settings.get("peers", "*") != "*" else []
    return "-".join([options.benchmark, *sizes, *filter(None, [settings.get("table")]), *part])


def main(arguments=None):
    """Run one benchmark, print its tables as Markdown and write them as JSON."""
    options = parser().parse_args(arguments)
    harness.limit_threads(options.threads)
    report = harness.Report(options.benchmark, options.json or harness.RESULTS / f"{result_name(options)}.json")
    report.header(options.threads)
    BENCHMARKS[options.benchmark].run(options, report)
    report.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
