"""Kernels of rnla against the NumPy or SciPy call that does the same."""

import functools

import numpy as np

import rnla
from bench import harness
from bench.harness import number
from rnla import kernels

TITLE = "kernels"


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")


def run(options, report):
    """Race every kernel and print the table."""
    scale = 0.02 if options.tiny else 1.0
    for race in (sparse_products, sparse_sign_sketch, normal_numbers):
        for dtype in (np.float64, np.float32):
            report.progress(f"{race.__name__} {np.dtype(dtype).name}")
            report.add(TITLE, race(dtype, scale))
    report.table(TITLE, COLUMNS)


def sparse_products(dtype, scale):
    """Race products of 64 columns with a CSR matrix and its adjoint; 1e5 x 3e4 with 4e6 non-zeros."""
    m, n, nnz = int(100_000 * scale), int(30_000 * scale), int(4_000_000 * scale)
    A = rnla.datasets.document_term(m, n, nnz, rng=0, dtype=dtype)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 64)).astype(dtype)
    Y = rng.standard_normal((m, 64)).astype(dtype)
    parts = A.data, A.indices, A.indptr, A.shape
    where = f"{m}x{n}, {A.nnz} non-zeros, 64 columns"
    panels = kernels.adjoint_panels(*parts)
    once = row("csr_rmatmat, one call", where, dtype, None, lambda: kernels.csr_rmatmat(*parts, Y), "scipy A.T @ Y",
               lambda: A.T @ Y)  # fmt: skip
    product = row("csr_matmat", where, dtype, 2.0, lambda: kernels.csr_matmat(*parts, X), "scipy A @ X", lambda: A @ X)
    # As a decomposition calls it, which multiplies many times by one matrix: A^H is stored by rows before.
    adjoint = row("csr_rmatmat, A^H stored", where, dtype, 2.0, lambda: kernels.csr_rmatmat(*parts, Y, lambda: panels),
                  "scipy A.T @ Y", lambda: A.T @ Y)  # fmt: skip
    return [product, adjoint, once]


def sparse_sign_sketch(dtype, scale):
    """Race a sparse-sign sketch (400 of 65536 rows, 200 columns) against a dense one that is already drawn (B7)."""
    d, n, c = max(16, int(400 * scale)), int(65536 * scale), 200
    A = np.random.default_rng(0).standard_normal((n, c)).astype(dtype)
    sketch = rnla.sketch.SparseSign(d, n, seed=0, dtype=dtype)
    dense = sketch.to_array(np)
    where = f"{d}x{n} times {n}x{c}"
    # The same matrix as a dense array: the products agree, and the time is that of any dense sketch.
    return [row("sparse-sign sketch", where, dtype, 1 / 0.15, lambda: sketch @ A, "dense product", lambda: dense @ A)]


def normal_numbers(dtype, scale):
    """Race the counter-based normal numbers against NumPy's generator; 65536 x 60."""
    shape = int(65536 * scale), 60
    ours, theirs = np.empty(shape, dtype), np.empty(shape, dtype)
    fill = functools.partial(kernels.fill_normal, ours, 0)
    draw = functools.partial(np.random.default_rng(0).standard_normal, dtype=dtype, out=theirs)
    return [row("normal numbers", f"{shape[0]}x{shape[1]}", dtype, None, fill, "numpy standard_normal", draw)]


def row(kernel, where, dtype, target, ours, peer_name, peer):
    """Race two calls that return the same array (or fill one with random numbers, where nothing can be compared)."""
    first, second = ours(), peer()
    comparable = first is not None and kernel != "normal numbers"
    error = float(np.max(np.abs(first - second)) / np.max(np.abs(second))) if comparable else None
    times = harness.race(ours, peer, repeats=15, budget=5.0)
    return {
        "kernel": kernel,
        "where": where,
        "dtype": np.dtype(dtype).name,
        "peer": peer_name,
        "target": target,
        "difference": error,
        **times,
    }


COLUMNS = {
    "kernel": lambda record: record["kernel"],
    "shape": lambda record: record["where"],
    "dtype": lambda record: record["dtype"],
    "peer": lambda record: record["peer"],
    "seconds peer / rnla": lambda record: f"{record['seconds_peer']:.4f} / {record['seconds_ours']:.4f}",
    "ratio": lambda record: number(record["ratio"], ".2f"),
    "wanted": lambda record: number(record["target"], ".2f"),
    "largest relative difference": lambda record: number(record["difference"]),
}
