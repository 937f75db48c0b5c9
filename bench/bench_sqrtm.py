"""rnla.sqrt_update: error against rank, decay, accuracy, and time against eigendecompositions, copies and products."""

import functools
import importlib.util

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse

import rnla
from bench import harness
from bench.harness import number
from rnla._sqrt_base import as_base
from rnla._sqrt_krylov import lanczos
from rnla._sqrt_quadrature import canonical, interval

TOL = 1e-8  # of the tables of time
RANKS = (1, 2, 3, 4, 5, 6)
# Traces, Frobenius norms and entries [0, 1] of exact corrections, from arithmetic of 60 digits.
EXACT = {
    ("update", False): (0.477370659478268, 0.441892420916467, 0.108921510593196),
    ("update", True): (-257.712922008635, 243.717288440846, -87.9014292452364),
    ("tiny", False): (1.19366056537916e-11, 1.08768026602558e-11, 4.7940613150666e-12),
    ("tiny", True): (-7.82288951906786e-7, 7.7191690882363e-7, -2.22520614057707e-7),
    ("downdate", False): (-8.20789156052777, 7.15609527161095, -0.00036798025922821),
    ("downdate", True): (53.3411425318609, 49.6738670808093, 21.8753580197197),
}
# Errors at rank 6 in the specification (best, minimiser of the residual, Krylov space of A); its vectors are others.
PRINTED = {
    "uniform, root up": (6.3e-11, 8.8e-10, 4.0e-5), "uniform, root down": (1.2e-10, 5.9e-9, 4.7e-5),
    "uniform, inverse root up": (3.1e-10, 1.3e-8, 1.6e-3), "uniform, inverse root down": (3.7e-10, 7.3e-10, 1.4e-3),
    "logspace, root up": (4.1e-8, 5.6e-7, 2.0e-4), "logspace, root down": (5.2e-8, 8.4e-6, 2.5e-4),
    "logspace, inverse root up": (5.8e-8, 4.1e-4, 3.7e-2), "logspace, inverse root down": (6.9e-8, 1.3e-6, 2.1e-1),
}  # fmt: skip
# Relative errors of the Hessian in the specification for four directions, by the number of samples.
PRINTED_HESSIAN = {10**2: 1.8, 10**3: 0.59, 10**4: 0.19, 10**5: 0.047}
PRINTED_RACE = {"RADI of the square root": 1, "RADI, B the identity": 130, "SciPy": 8000}


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--table", choices=sorted(TABLES), help="run this table only")
    parser.add_argument("--quick", action="store_true", help="small sizes: tests the benchmark itself")


def run(options, report):
    """Run the tables, one or all."""
    harness.run_tables(TABLES, options, report)


def root_of(A, inverse):
    """Return a root by an eigendecomposition."""
    w, Q = np.linalg.eigh(A)
    return (Q * w ** (-0.5 if inverse else 0.5)) @ Q.T


def table_rank(options):
    """Error against the rank of the correction: ours, truncated, minimisers of the residual, Krylov space of A (E1)."""
    rng, rows = np.random.default_rng(0), []
    z = rng.standard_normal(100)
    for spectrum, d in (("uniform", rng.uniform(0, 1, 100)), ("logspace", np.logspace(-3, 3, 100))):
        for sign in (1, -1):
            column = 0.1 * z / np.linalg.norm(z)
            if sign < 0:
                column = column * min(1.0, 0.95 / np.linalg.norm(column / np.sqrt(d)))
            for inverse in (False, True):
                exact = root_of(np.diag(d) + sign * np.outer(column, column), inverse)
                ours = rnla.sqrt_update(d, column, sign=sign, inverse=inverse, tol=1e-13)
                name = f"{spectrum}, {'inverse ' if inverse else ''}root {'up' if sign > 0 else 'down'}"
                for rank in RANKS:
                    best, krylov = ours.truncate(rank=rank), by_krylov(d, column, sign, inverse, rank)
                    minimiser = by_residual(d, column, sign, best, 5 if options.quick else 300)
                    rows.append(
                        {
                            "case": name,
                            "rank": rank,
                            "error": relative(best.to_dense(), exact),
                            "error_minimiser": relative(minimiser, exact),
                            "error_krylov": relative(krylov, exact),
                            "printed": PRINTED[name] if rank == 6 else None,
                        }
                    )
    return "rank", rows, {
        "case": lambda row: row["case"], "rank": lambda row: str(row["rank"]),
        "rnla": lambda row: number(row["error"]), "least residual": lambda row: number(row["error_minimiser"]),
        "Krylov(A)": lambda row: number(row["error_krylov"]),
        "the same three, specification": lambda row: " ".join(map(number, row["printed"] or ())),
    }  # fmt: skip


def by_residual(d, z, sign, start, max_iter):
    """Return the root whose correction minimises the residual of Riccati's equation among those of the rank of `start`.

    The equation is ``X^2 + R X + X R = C`` for the old root R: with ``C = sign z z^T``, or what the update changes of
    the inverse. L-BFGS starts from the best approximation of the exact correction.
    """
    old, sense = np.sqrt(d), float(start.signs[0])
    C = sign * np.outer(z, z)
    if start.inverse:
        old = 1 / old
        C = -C / np.outer(d, d) / (1 + sign * z @ (z / d))

    def objective(flat):
        F = flat.reshape(start.P.shape)
        X = sense * F @ F.T
        residual = X @ X + old[:, None] * X + X * old - C
        G = residual @ X
        G = G + G.T + residual * old + old[:, None] * residual
        return np.sum(residual**2) / scale / 2, (2 * sense / scale) * (G @ F).ravel()

    scale = np.sum(C**2)
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "ftol": 0.0, "gtol": 0.0, "maxcor": 30}
    F = scipy.optimize.minimize(objective, start.P.ravel(), jac=True, method="L-BFGS-B", options=options).x
    F = F.reshape(start.P.shape)
    return np.diag(old) + sense * F @ F.T


def by_krylov(d, z, sign, inverse, rank):
    """Return the root from `rank` steps of block Lanczos with A."""
    base, update = as_base(d, len(d), z, None, "bench"), canonical(z[:, None], None, sign)
    span = interval(base, update, TOL, True, "bench")
    power = -0.5 if inverse else 0.5
    found, _ = lanczos(base, update, span, 1e-300, lambda x: np.abs(x) ** power, lambda _: False, max_steps=rank)
    return np.diag(d**power) + (found.P * found.signs) @ found.P.T


def relative(X, exact):
    """Return the relative error in the Frobenius norm."""
    return float(np.linalg.norm(X - exact) / np.linalg.norm(exact))


def table_decay(options):
    """Compare eigenvalues of a correction with their bound (E2)."""
    rng = np.random.default_rng(0)
    d, z = rng.uniform(0, 1, 100), rng.standard_normal(100)
    result = rnla.sqrt_update(d, z / np.linalg.norm(z), tol=1e-13)
    lam = np.linalg.eigvalsh(result.P.T @ result.P)[::-1]
    rows = [
        {"number": nu + 1, "value": float(lam[nu]), "bound": float(lam[0] * rnla.decay_bound(result.kappa, 1, nu))}
        for nu in range(min(10, len(lam)))
    ]
    return "decay", rows, {
        "number": lambda row: str(row["number"]), "eigenvalue": lambda row: number(row["value"]),
        "bound": lambda row: number(row["bound"]),
    }  # fmt: skip


def table_accuracy(options):
    """Errors relative to the correction, of ours and of a difference of two eigendecompositions (E4)."""
    d, i = 10.0 ** np.linspace(-5, 5, 16), np.arange(1, 17)
    z = np.sin(i) / 4
    cases = {"update": (z, 1), "tiny": (1e-6 * z, 1), "downdate": (0.3 * np.sin(i) * np.sqrt(d), -1)}
    rows = []
    for (case, inverse), exact in EXACT.items():
        z, sign = cases[case]
        result = rnla.sqrt_update(d, z, sign=sign, inverse=inverse, tol=1e-14, method="quadrature")
        peer = root_of(np.diag(d) + sign * np.outer(z, z), inverse) - np.diag(d ** (-0.5 if inverse else 0.5))
        rows.append(
            {
                "case": f"{case}, {'inverse root' if inverse else 'root'}",
                "rank": result.rank,
                "error": worst((result.P * result.signs) @ result.P.T, exact),
                "error_peer": worst(peer, exact),
            }
        )
    return "accuracy", rows, {
        "case": lambda row: row["case"], "rank": lambda row: str(row["rank"]),
        "rnla": lambda row: number(row["error"]), "eigh - eigh": lambda row: number(row["error_peer"]),
    }  # fmt: skip


def worst(X, exact):
    """Return the largest relative error of trace, Frobenius norm and one entry."""
    found = np.array([np.trace(X), np.linalg.norm(X), X[0, 1]])
    return float(np.abs(found / exact - 1).max())


def table_eigh(options):
    """Time against forming W and its root anew (E5), and where the two are equal."""
    rows = []
    for n in (60, 100) if options.quick else (60, 80, 100, 150, 200, 300, 600, 1000, 2000, 4000):
        for k in (1, 5, 20):
            rng = np.random.default_rng(0)
            d, Z = rng.uniform(size=n) + 1e-3, rng.standard_normal((n, k))
            ours = functools.partial(rnla.sqrt_update, d, Z, tol=TOL)
            result, exact = ours(), root_of(np.diag(d) + Z @ Z.T, False)
            times = harness.race(
                ours, lambda d=d, Z=Z: root_of(np.diag(d) + Z @ Z.T, False), repeats=9 if n < 1000 else 1, budget=10.0
            )
            error = float(np.linalg.norm(result.to_dense() - exact, 2) / np.linalg.norm(exact, 2)) if n <= 600 else None
            rows.append({"n": n, "k": k, "rank": result.rank, "method": result.method, "error": error, **times})
    return "eigh", rows, {
        "n": lambda row: str(row["n"]), "k": lambda row: str(row["k"]), "rank": lambda row: str(row["rank"]),
        "method": lambda row: row["method"], "ms": lambda row: number(1e3 * row["seconds_ours"], ".2f"),
        "ratio": lambda row: number(row["ratio"], ".3g"), "difference": lambda row: number(row["error"]),
    }  # fmt: skip


def table_rate(options):
    """Time against copying P, and the share of the rate of a large matrix product (E5), with the memory."""
    rows = []
    cases = ((10**4, 1), (10**4, 20)) if options.quick else ((10**6, 1), (2 * 10**5, 5), (10**5, 20))
    peak = product_rate(300 if options.quick else 2000)
    for n, k in cases:
        rng = np.random.default_rng(0)
        d, Z = rng.uniform(size=n) + 1e-3, rng.standard_normal((n, k))
        ours = functools.partial(rnla.sqrt_update, d, Z, tol=TOL)
        ours()
        result, memory = harness.peak_memory(ours)
        times = harness.race(ours, lambda P=result.P: P.copy(order="K"), repeats=7, budget=20.0)
        columns = k * result.n_nodes
        flops = 2 * n * columns * (columns / 2 + result.rank + k)
        rows.append(
            {
                "n": n, "k": k, "nodes": result.n_nodes, "rank": result.rank, "memory": memory,
                "share": flops / times["seconds_ours"] / peak, **times,
            }
        )  # fmt: skip
    return "rate", rows, {
        "n": lambda row: str(row["n"]), "k": lambda row: str(row["k"]), "nodes": lambda row: str(row["nodes"]),
        "rank": lambda row: str(row["rank"]), "ms": lambda row: number(1e3 * row["seconds_ours"], ".1f"),
        "times a copy of P": lambda row: number(1 / row["ratio"], ".1f"),
        "share of gemm": lambda row: number(row["share"], ".0%"),
        "MB": lambda row: number(row["memory"] and row["memory"] / 1e6, ".0f"),
    }  # fmt: skip


def product_rate(n):
    """Return the flops in a second of a product of two matrices."""
    A = np.random.default_rng(0).standard_normal((n, n))
    A @ A
    return 2 * n**3 / min(harness.seconds(lambda: A @ A) for _ in range(5))


def table_ica(options):
    """Error of a Hessian of independent component analysis, from the root of a matrix of weights (E3)."""
    rows = []
    for n in (100,) if options.quick else (10**2, 10**3, 10**4, 10**5):
        for m in (1, 2, 4):
            rng = np.random.default_rng(0)
            mixing, U = rng.standard_normal((20, 20)), rng.standard_normal((20, m))
            X = (mixing @ np.sign(rng.standard_normal((20, n)))).T
            V = X @ U
            shift, weight = (n - 1) / n**2 * np.sum(V**2), (2 * n - 2) / n**2
            half = rnla.sqrt_update(shift, weight**0.5 * V) @ X
            first, direct = half.T @ half, shift * X.T @ X + weight * (X.T @ V) @ (V.T @ X)
            second = (n + 1) / n * (X.T * np.sum(V**2, axis=1)) @ X
            hessian = 12 * n**2 / ((n - 1) * (n - 2) * (n - 3)) * (first - second)
            exact = mixing * (24 * np.sum((mixing.T @ U) ** 2, axis=1)) @ mixing.T
            rows.append(
                {
                    "n": n, "directions": m, "error": relative(hessian, exact), "error_root": relative(first, direct),
                    "printed": PRINTED_HESSIAN.get(n) if m == 4 else None,
                }
            )  # fmt: skip
    return "ica", rows, {
        "samples": lambda row: str(row["n"]), "directions": lambda row: str(row["directions"]),
        "error of the Hessian": lambda row: number(row["error"], ".2g"),
        "specification": lambda row: number(row["printed"], ".2g"),
        "root against the direct sum": lambda row: number(row["error_root"]),
    }  # fmt: skip


def table_race(options):
    """Time of the quadrature against solvers of Riccati's equation, for one column (E6)."""
    n = 40 if options.quick else 500
    rng = np.random.default_rng(0)
    d, z = rng.uniform(size=n) + 1e-3, rng.standard_normal(n)
    root, C = np.sqrt(d), np.outer(z, z)

    def ours():
        return rnla.sqrt_update(d, z, tol=1e-10).P

    def own():
        P, D, _ = rnla.solve_sqrt_riccati(d, z)
        return P * D**0.5

    def general():
        return rnla.solve_riccati_lowrank(scipy.sparse.diags_array(-root).tocsr(), np.eye(n), z).Z

    def dense():
        return scipy.linalg.solve_continuous_are(np.diag(-root), np.eye(n), C, np.eye(n))

    rows = []
    for name, peer in {"RADI of the square root": own, "RADI, B the identity": general, "SciPy": dense}.items():
        factors = [ours(), peer()]
        solutions = [factors[0] @ factors[0].T, factors[1] if peer is dense else factors[1] @ factors[1].T]
        residuals = [float(np.linalg.norm(X @ X + root[:, None] * X + X * root - C, 2)) / (z @ z) for X in solutions]
        rows.append(
            {
                "n": n, "peer": name, "error": residuals[0], "error_peer": residuals[1], "printed": PRINTED_RACE[name],
                **harness.race(ours, peer, repeats=5, budget=20.0),
            }
        )  # fmt: skip
    return "race", rows, {
        "n": lambda row: str(row["n"]), "peer": lambda row: row["peer"],
        "ms": lambda row: number(1e3 * row["seconds_ours"], ".2f"),
        "ratio": lambda row: number(row["ratio"], ".3g"), "specification": lambda row: str(row["printed"]),
        "residual": lambda row: number(row["error"]), "residual of the peer": lambda row: number(row["error_peer"]),
    }  # fmt: skip


def table_contour(options):
    """Time of a product with the inverse root, ten in succession, against the contour integral of linear_operator."""
    if not importlib.util.find_spec("linear_operator"):
        print("linear_operator is not installed: pip install linear_operator")
        return "contour", [], {"reason": lambda row: ""}
    import torch
    from linear_operator import settings
    from linear_operator.operators import DiagLinearOperator, LowRankRootLinearOperator
    from linear_operator.utils.contour_integral_quad import contour_integral_quad

    rows = []
    for n in (200,) if options.quick else (1000, 2000, 4000):
        rng = np.random.default_rng(0)
        d, Z, b = rng.uniform(size=n) + 0.01, rng.standard_normal((n, 5)) / n**0.5, rng.standard_normal(n)
        exact = root_of(np.diag(d) + Z @ Z.T, True) @ b
        tensors = [torch.from_numpy(x) for x in (d, Z, b[:, None])]
        W = LowRankRootLinearOperator(tensors[1]) + DiagLinearOperator(tensors[0])

        def peer(W=W, b=tensors[2]):
            with settings.minres_tolerance(1e-8), settings.num_contour_quadrature(15), torch.no_grad():
                solves, weights, *_ = contour_integral_quad(W, b, inverse=True)
                return (solves * weights).sum(0).numpy()[:, 0]

        def build(d=d, Z=Z):
            return rnla.inv_sqrt_update(d, Z, tol=1e-13)

        root = build()

        def ours(root=root, b=b):
            return root @ b

        errors = [float(np.linalg.norm(call() - exact) / np.linalg.norm(exact)) for call in (ours, peer)]
        whole = harness.race(lambda build=build, b=b: build() @ b, peer, repeats=7, budget=20.0)
        ten = harness.race(
            lambda ours=ours: [ours() for _ in range(10)], lambda peer=peer: [peer() for _ in range(10)],
            repeats=7, budget=20.0,
        )  # fmt: skip
        rows.append(
            {
                "n": n, "error": errors[0], "error_peer": errors[1], "ratio_whole": whole["ratio"],
                **ten, "seconds_ours": ten["seconds_ours"] / 10, "seconds_peer": ten["seconds_peer"] / 10,
            }
        )  # fmt: skip
    return "contour", rows, {
        "n": lambda row: str(row["n"]), "ms": lambda row: number(1e3 * row["seconds_ours"], ".3f"),
        "ratio": lambda row: number(row["ratio"], ".3g"),
        "ratio with the root built": lambda row: number(row["ratio_whole"], ".3g"),
        "error": lambda row: number(row["error"]), "error of the peer": lambda row: number(row["error_peer"]),
    }  # fmt: skip


TABLES = {
    "rank": table_rank,
    "decay": table_decay,
    "accuracy": table_accuracy,
    "eigh": table_eigh,
    "rate": table_rate,
    "ica": table_ica,
    "race": table_race,
    "contour": table_contour,
}
