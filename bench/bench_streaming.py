"""rnla.StreamingSVD against the sketches of Tropp et al. (2019) at equal storage, and against scikit-learn's stream."""

import math
import statistics

import numpy as np

import rnla
from bench import harness
from bench.harness import number

ERRORS = "excess error at equal storage"
TIMES = "seconds a block"
RANK = 10
DRAWS = 5


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")


def run(options, report):
    """Measure the errors, then the times, and print both tables."""
    scale = 0.12 if options.tiny else 1.0
    for name in SPECTRA:
        report.progress(f"{ERRORS}: {name}")
        report.add(ERRORS, [error_row(name, int(1000 * scale), int(96 * (0.5 if options.tiny else 1)))])
    report.table(ERRORS, ERROR_COLUMNS)
    for rows, n, k in ((1000, 2000, 50), (5000, 500, 20), (200, 1000, 20)):
        for dtype in (np.float64, np.float32):
            report.progress(f"{TIMES}: {rows} x {n} {np.dtype(dtype).name}")
            sizes = (rows, n, k) if scale == 1 else (rows // 20, n // 20, 5)
            report.add(TIMES, [time_row(*sizes, dtype, blocks=10)])
    report.table(TIMES, TIME_COLUMNS)


# The error, for as many stored numbers.


def error_row(name, n, width):
    """Compare one pass over the rows with the sketch of Tropp et al., for ``width * 2 n`` numbers and rank 10."""
    A = SPECTRA[name](n)
    sigma = np.linalg.svd(A, compute_uv=False)
    best = math.sqrt(np.sum(sigma[RANK:] ** 2))
    budget = width * 2 * n
    sizes = list(divisions(budget, n))
    # The oracle knows which division of its budget will turn out best; nobody does beforehand.
    by_size = [
        statistics.median(excess(A, best, tyuc19(A, *size, RANK, np.random.default_rng(draw))) for draw in range(DRAWS))
        for size in sizes
    ]
    oracle = int(np.argmin(by_size))
    row = {"spectrum": name, "shape": [n, n], "budget": budget, "oracle_sizes": sizes[oracle]}
    row["excess_oracle"] = by_size[oracle]
    streams = {"rows": {"mode": "rows", "n_oversamples": width - RANK}}
    for kind in ("decaying", "flat"):
        streams[kind] = {"mode": "turnstile", "n_rows": n, "budget": budget, "spectrum": kind}
    for label, settings in streams.items():
        row[f"excess_{label}"] = statistics.median(
            excess(A, best, streamed(A, settings, draw).to_dense()) for draw in range(DRAWS)
        )
    return row


def divisions(budget, n):
    """Yield widths and core sizes that a budget allows."""
    for width in range(RANK + 2, budget // (2 * n) + 1, 4):
        core = math.isqrt(budget - 2 * n * width)
        if core >= width + 2:
            yield width, core


def streamed(A, settings, seed):
    """Return the result of a stream that sees A in four blocks of rows."""
    stream = rnla.StreamingSVD(A.shape[1], RANK, error_sketch=0, rng=seed, **settings)
    for block in np.array_split(A, 4):
        stream.update(block)
    return stream.finalize()


def tyuc19(A, width, core, k, random):
    """Return the approximation of Tropp, Yurtsever, Udell, Cevher (2019), Algorithms 4.1 and 4.2, cut to rank k."""
    m, n = A.shape
    left, right = random.standard_normal((width, m)), random.standard_normal((n, width))
    Phi, Psi = random.standard_normal((core, m)), random.standard_normal((core, n))
    P = np.linalg.qr((left @ A).T)[0]
    Q = np.linalg.qr(A @ right)[0]
    half = np.linalg.lstsq(Phi @ Q, Phi @ A @ Psi.T, rcond=None)[0]
    C = np.linalg.lstsq(Psi @ P, half.T, rcond=None)[0].T
    U, s, Vh = np.linalg.svd(C)
    return (Q @ (U[:, :k] * s[:k])) @ (Vh[:k] @ P.T)


def excess(A, best, approximation):
    """Return by how much the error exceeds the least possible one, relatively."""
    return float(np.linalg.norm(A - approximation) / best - 1)


def square(sigma):
    """Return a matrix with the given singular values."""
    return rnla.testing.matrix_with_spectrum(len(sigma), len(sigma), sigma, rng=0)


SPECTRA = {
    "1/j": lambda n: square(rnla.testing.spectrum("poly1", n)),
    "1/j^2": lambda n: square(rnla.testing.spectrum("poly2", n)),
    "exp(-j/7)": lambda n: square(rnla.testing.spectrum("exp", n)),
    "low rank + noise": lambda n: rnla.testing.low_rank_plus_noise(n, n, rank=RANK, noise=0.3, rng=0),
}

ERROR_COLUMNS = {
    "spectrum": lambda row: row["spectrum"],
    "shape": lambda row: "x".join(map(str, row["shape"])),
    "numbers stored": lambda row: str(row["budget"]),
    "rows": lambda row: number(row["excess_rows"]),
    "TYUC19, best sizes afterwards": lambda row: number(row["excess_oracle"]),
    "those sizes": lambda row: "width {}, core {}".format(*row["oracle_sizes"]),
    "turnstile": lambda row: number(row["excess_decaying"]),
    "turnstile, spectrum='flat'": lambda row: number(row["excess_flat"]),
}


# The time.


def time_row(rows, n, k, dtype, *, blocks):
    """Race a stream of dense blocks of rows, from the first block to the components, against IncrementalPCA."""
    from sklearn.decomposition import IncrementalPCA

    sigma = rnla.testing.spectrum("poly1", min(n, blocks * rows))
    X = rnla.testing.matrix_with_spectrum(blocks * rows, n, sigma, rng=0)
    X = (X - X.mean(axis=0)).astype(dtype)  # scikit-learn subtracts the mean: here there is none to subtract
    parts = np.array_split(X, blocks)

    def ours():
        stream = rnla.StreamingSVD(n, k, rng=0)
        for part in parts:
            stream.update(part)
        return stream.finalize().Vh

    def peer():
        pca = IncrementalPCA(k)
        for part in parts:
            pca.partial_fit(part)
        return pca.components_

    total = np.linalg.norm(X.astype(np.float64)) ** 2
    best = math.sqrt(total - np.sum(np.linalg.svd(X.astype(np.float64), compute_uv=False)[:k] ** 2))
    errors = [excess_of_components(X, components(), best) for components in (ours, peer)]
    times = harness.race(ours, peer, repeats=9, budget=20.0)
    return {
        "rows": rows, "n": n, "k": k, "dtype": np.dtype(dtype).name, "blocks": blocks,
        "excess_ours": errors[0], "excess_peer": errors[1], **times,
    }  # fmt: skip


def excess_of_components(X, Vh, best):
    """Return the excess of the projection on some rows, orthonormalised in double precision."""
    V = np.linalg.qr(np.asarray(Vh, dtype=np.float64).T)[0]
    return excess(X, best, (X @ V) @ V.T)


TIME_COLUMNS = {
    "block": lambda row: f"{row['rows']}x{row['n']}",
    "k": lambda row: str(row["k"]),
    "dtype": lambda row: row["dtype"],
    "seconds a block, IncrementalPCA / rnla": lambda row: (
        f"{row['seconds_peer'] / row['blocks']:.4f} / {row['seconds_ours'] / row['blocks']:.4f}"
    ),
    "ratio": lambda row: number(row["ratio"], ".2f"),
    "excess error IncrementalPCA / rnla": lambda row: f"{number(row['excess_peer'])} / {number(row['excess_ours'])}",
}
