"""rnla.pca against scikit-learn's PCA and TruncatedSVD: sparse, dense and tall, and far from the origin."""

import numpy as np
import scipy.sparse.linalg

import rnla
from bench import harness
from bench.harness import number

TITLE = "pca"
LADDER = (0.5, 0.2, 0.1, 0.05, 0.02, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--tiny", action="store_true", help="small sizes: tests the benchmark itself")


def run(options, report):
    """Run all cases and print the table."""
    for case in (sparse, tall, offset):
        report.progress(case.__name__)
        report.add(TITLE, case(0.02 if options.tiny else 1.0))
    report.table(TITLE, COLUMNS)


def sparse(scale):
    """Race centred sparse PCA, 1e5 x 3e4 with 4e6 non-zeros, k = 50, at scikit-learn's error."""
    from sklearn.decomposition import PCA, TruncatedSVD

    k = 50 if scale == 1 else 5
    rows = []
    for dtype in (np.float64, np.float32):
        A = rnla.datasets.document_term(
            int(1e5 * scale), int(3e4 * scale), int(4e6 * scale**2) + 1000, rng=0, dtype=np.float64
        )
        mean = np.asarray(A.mean(axis=0)).ravel()
        centred = scipy.sparse.linalg.LinearOperator(
            A.shape,
            matvec=lambda x, A=A, mean=mean: A @ x - mean @ x,
            rmatvec=lambda y, A=A, mean=mean: A.T @ y - mean * y.sum(),
            dtype=A.dtype,
        )
        exact = {}
        for name, matrix in (("centred", centred), ("plain", A)):
            exact[name] = np.sort(scipy.sparse.linalg.svds(matrix, k, return_singular_vectors=False))[::-1]
        A = A.astype(dtype)
        peers = (
            ("sklearn PCA arpack", lambda A=A: PCA(k, svd_solver="arpack", random_state=0).fit(A), "centred"),
            ("sklearn TruncatedSVD", lambda A=A: TruncatedSVD(k, random_state=0).fit(A), "plain"),
        )
        for name, fit, problem in peers:
            rows.append(_race(A, k, name, fit, exact[problem], {"center": problem == "centred"}, equal=True))
            rows.append(_race(A, k, name, fit, exact[problem], {"center": True}, sigma=exact["centred"]))
    return rows


def tall(scale):
    """Race dense PCA of 2e5 x 500, k = 50."""
    from sklearn.decomposition import PCA

    m, n = int(2e5 * scale), 500 if scale == 1 else 50
    k = 50 if scale == 1 else 5
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((n, n)) / np.sqrt(np.arange(1, n + 1))[:, None]
    rows = []
    for dtype in (np.float64, np.float32):
        A = (rng.standard_normal((m, n)) @ mixing + rng.standard_normal(n)).astype(dtype)
        X = A.astype(np.float64)
        exact = np.sqrt(np.linalg.eigvalsh((X - X.mean(axis=0)).T @ (X - X.mean(axis=0)))[::-1][:k])
        for solver in ("covariance_eigh", "randomized"):
            fit = lambda solver=solver, A=A: PCA(k, svd_solver=solver, random_state=0).fit(A)  # noqa: E731
            rows.append(_race(A, k, f"sklearn PCA {solver}", fit, exact, {}))
    return rows


def offset(scale):
    """Compare the accuracy a million standard deviations away from the origin."""
    from sklearn.decomposition import PCA

    m, n = max(int(20000 * scale), 1000), 50
    X = rnla.testing.matrix_with_spectrum(m, n, 10.0 ** -np.linspace(-1, 1, n), rng=0)
    A = X + 1e6
    exact = np.linalg.svd(A - A.mean(axis=0), compute_uv=False)[:5]
    return [_race(A, 5, "sklearn PCA auto, offset 1e6", lambda: PCA(5, random_state=0).fit(A), exact, {"tol": 1e-6})]


def _race(A, k, name, fit, exact, options, *, equal=False, sigma=None):
    theirs = _error(fit().singular_values_, exact)
    tol = options.get("tol", 1e-2)
    if equal:  # the loosest tolerance at which the error is not larger
        for tol in LADDER:
            if _error(rnla.pca(A, k, tol=tol, rng=0, **options).singular_values, exact) <= theirs:
                break
    settings = {**options, "tol": tol}
    result = rnla.pca(A, k, rng=0, **settings)
    times = harness.race(lambda: rnla.pca(A, k, rng=0, **settings), fit, repeats=5, budget=10.0)
    return {
        "shape": list(A.shape),
        "dtype": A.dtype.name,
        "k": k,
        "peer": name,
        "center": settings.get("center", True),
        "tol": tol,
        "method": result.info.method,
        "error_peer": theirs,
        "error_ours": _error(result.singular_values, exact if sigma is None else sigma),
        **times,
    }


def _error(S, exact):
    return float(np.max(np.abs(np.asarray(S, dtype=np.float64) / exact - 1)))


COLUMNS = {
    "shape": lambda record: "x".join(map(str, record["shape"])),
    "dtype": lambda record: record["dtype"],
    "peer": lambda record: record["peer"],
    "rnla": lambda record: f"{record['method']}, tol={record['tol']:g}{'' if record['center'] else ', not centred'}",
    "ratio": lambda record: number(record["ratio"], ".2f"),
    "seconds peer / rnla": lambda record: f"{record['seconds_peer']:.3f} / {record['seconds_ours']:.3f}",
    "sigma err peer / rnla": lambda record: f"{number(record['error_peer'])} / {number(record['error_ours'])}",
}
