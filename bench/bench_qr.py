"""rnla.qr, interp_decomp, cur and the exact svd by QR against LAPACK and scipy.linalg.interpolative."""

import functools
import math

import numpy as np
import scipy.linalg
import scipy.linalg.interpolative as interpolative

import rnla
from bench import harness
from bench.harness import number

PIVOTED = "pivoted QR of tall matrices against LAPACK geqp3 (B6)"
THIN = "full thin SVD of tall matrices against LAPACK gesdd (B5)"
SKELETONS = "interpolative decomposition and CUR against scipy.linalg.interpolative"
# Columns beyond k that rnla is given, in turn, until its error is not larger than the peer's at k. SciPy's randomized
# mode keeps thousands of rows of its transform: its columns are those of the pivoted QR of A itself.
MORE = (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 75, 100, 150)
SETTINGS = {"interp_decomp": {"n_oversamples": 100, "coef": "lstsq"}, "cur": {}}


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--only", choices=("pivoted", "thin", "skeletons"), help="one of the three tables")


def run(options, report):
    """Run the tables and print them."""
    tables = {
        "thin": (THIN, thin_svd, THIN_COLUMNS),
        "skeletons": (SKELETONS, skeletons, SKELETON_COLUMNS),
        "pivoted": (PIVOTED, pivoted, PIVOTED_COLUMNS),
    }
    for name, (title, rows, columns) in tables.items():
        if options.only not in (None, name):
            continue
        for row in rows(options.tiny):
            report.progress(f"{name}: {row['where']} {row.get('setting', '')}: ratio {row['ratio']:.2f}")
            report.add(title, [row])
        report.table(title, columns)


def pivoted(tiny):
    """Yield races of the pivoted QR, 20000 x 200 at several condition numbers and 200000 x 500 (the figure)."""
    shapes = [(600, 20)] if tiny else [(20_000, 200), (200_000, 500)]
    for m, n in shapes:
        for condition in (1e2, 1e10, 1e15) if n < 500 else (1e10,):
            A = rnla.testing.matrix_with_spectrum(m, n, np.geomspace(1, 1 / condition, n), rng=0)
            ours = functools.partial(rnla.qr, A, pivoting=True, rng=0)
            peer = functools.partial(scipy.linalg.qr, A, mode="economic", pivoting=True, check_finite=False)
            (Q, R, P), reference = ours(), peer()
            tails = trailing_norms(R) / trailing_norms(reference[1])[: len(R)]
            row = {
                "where": f"{m}x{n}, condition {condition:.0e}",
                "target": 3.0 if n >= 500 else None,
                "rank": len(R),
                "orthogonality": defect(Q),
                "orthogonality_peer": defect(reference[0]),
                "residual": residual(A, Q, R, P),
                "residual_peer": residual(A, *reference),
                "tails": float(tails.max()),
            }
            del Q, R, P, reference
            yield {**row, **harness.race(ours, peer, repeats=3, budget=60.0)}


def thin_svd(tiny):
    """Yield races of the exact SVD of a tall matrix through its triangular factor: 100000 x 100, 100000 x 60."""
    shapes = [(900, 10)] if tiny else [(100_000, 100), (100_000, 60)]
    for m, n in shapes:
        for condition in (1e3, 1e6, 1e12):
            A = rnla.testing.matrix_with_spectrum(m, n, np.geomspace(1, 1 / condition, n), rng=0)
            ours = functools.partial(rnla.svd, A, n, method="qr")
            peer = functools.partial(scipy.linalg.svd, A, full_matrices=False, check_finite=False)
            (U, S, Vh), (Up, Sp, Vhp) = ours(), peer()
            row = {
                "where": f"{m}x{n}, condition {condition:.0e}",
                "target": 2.0 if condition <= 1e6 else 1.0,
                "orthogonality": max(defect(U), defect(Vh.T)),
                "orthogonality_peer": max(defect(Up), defect(Vhp.T)),
                "residual": float(np.linalg.norm(A - (U * S) @ Vh) / np.linalg.norm(S)),
                "residual_peer": float(np.linalg.norm(A - (Up * Sp) @ Vhp) / np.linalg.norm(S)),
            }
            yield {**row, **harness.race(ours, peer, repeats=7, budget=20.0)}


def skeletons(tiny):
    """Yield races of column and CUR decompositions at equal error: 4000 x 4000, k = 100, three spectra."""
    n, k = (240, 8) if tiny else (4000, 100)
    for name in ("slow", "poly1", "exp"):
        sigma = rnla.testing.spectrum(name, n)
        if name == "exp":  # the same decay over k as over 20 values
            sigma = np.exp(-np.arange(1, n + 1) / (7 * k / 20))
        A = rnla.testing.matrix_with_spectrum(n, n, sigma, rng=0)
        best = float(np.linalg.norm(sigma[k:]))
        columns = functools.partial(interpolative.interp_decomp, A, k, rng=0)
        joined = functools.partial(scipy_cur, A, k)
        peers = (
            ("interp_decomp", "interp_decomp", columns, id_error(A, k, *columns())),
            ("cur", "interp_decomp", columns, id_error(A, k, *columns())),
            ("cur", "CUR by two interp_decomp", joined, float(np.linalg.norm(A - product(*joined())))),
        )
        for function, peer_name, peer, peer_error in peers:
            for more in MORE:
                ours = functools.partial(getattr(rnla, function), A, k + more, rng=0, **SETTINGS[function])
                error = float(np.linalg.norm(A - ours().to_dense()))
                if more == 0:
                    same_k = error
                if error <= peer_error:
                    break
            yield {
                "function": function,
                "peer": peer_name,
                "where": f"{n}x{n} {name}, k = {k}",
                "setting": f"{k + more} columns",
                "target": 3.0,
                "error": error / best,
                "error_peer": peer_error / best,
                "error_same_k": same_k / best,
                "equal": error <= peer_error,
                **harness.race(ours, peer, repeats=7, budget=20.0),
            }


def scipy_cur(A, k):
    """Return the factors of a CUR decomposition with SciPy's columns, its rows of these, and the optimal core."""
    cols = interpolative.interp_decomp(A, k, rng=0)[0][:k]
    C = A[:, cols]
    rows = interpolative.interp_decomp(C.T.copy(), k, rng=0)[0][:k]
    Q_C, Q_R = np.linalg.qr(C)[0], np.linalg.qr(A[rows].T)[0]
    return Q_C, Q_C.T @ (A @ Q_R), Q_R.T


def product(left, core, right):
    """Return the product of three factors."""
    return left @ core @ right


def id_error(A, k, order, coefficients):
    """Return the Frobenius error of SciPy's interpolative decomposition."""
    return float(np.linalg.norm(A[:, order[k:]] - A[:, order[:k]] @ coefficients))


def trailing_norms(R):
    """Return ``||R[i:, i:]||_F`` for every i."""
    return np.sqrt(np.cumsum(np.sum(R**2, axis=1)[::-1])[::-1])


def defect(Q):
    """Return ``||Q^T Q - I||_2``."""
    return float(np.linalg.norm(Q.T @ Q - np.eye(Q.shape[1]), 2))


def residual(A, Q, R, P):
    """Return ``||A[:, P] - Q R||_F / ||A||_F``, by blocks of rows."""
    squares = total = 0.0
    for start in range(0, len(A), 20_000):
        B = A[start : start + 20_000][:, P]
        squares += np.linalg.norm(B - Q[start : start + 20_000] @ R) ** 2
        total += np.linalg.norm(B) ** 2
    return math.sqrt(squares / total)


def _pair(name, form=".1e"):
    return lambda row: f"{number(row[name + '_peer'], form)} / {number(row[name], form)}"


TIMES = {
    "seconds peer / rnla": lambda row: f"{row['seconds_peer']:.3f} / {row['seconds_ours']:.3f}",
    "ratio": lambda row: number(row["ratio"], ".2f"),
    "wanted": lambda row: number(row["target"], ".2f"),
}
PIVOTED_COLUMNS = {
    "matrix": lambda row: row["where"],
    **TIMES,
    "rank": lambda row: str(row["rank"]),
    "orthogonality peer / rnla": _pair("orthogonality"),
    "residual peer / rnla": _pair("residual"),
    "largest trailing norm over geqp3's": lambda row: number(row["tails"], ".2f"),
}
THIN_COLUMNS = {
    "matrix": lambda row: row["where"],
    **TIMES,
    "orthogonality peer / rnla": _pair("orthogonality"),
    "residual peer / rnla": _pair("residual"),
}
SKELETON_COLUMNS = {
    "function": lambda row: row["function"],
    "peer": lambda row: row["peer"],
    "matrix": lambda row: row["where"],
    "rnla with": lambda row: row["setting"],
    **TIMES,
    "error / best, peer / rnla": _pair("error", ".3f"),
    "rnla with k": lambda row: number(row["error_same_k"], ".3f"),
    "no larger": lambda row: "yes" if row["equal"] else "NO",
}
