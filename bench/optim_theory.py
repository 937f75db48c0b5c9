"""What theorems promise of Kronecker factors: few eigenvalues, updates in linear time; and what each part costs."""

import functools

import numpy as np
import torch

from bench import harness
from bench.harness import number
from bench.optim_factors import ACTS, BATCH, RHO, factors, mnist
from rnla.optim import (
    LayerConfig,
    LayerState,
    brand_update,
    ea_rank_bound,
    factor_inverse,
    likelihood,
    mlp,
)

RANK = 110
# Relative to forward and backward at width 1024 in the prototype (SRE): statistics / 10, inversion / 50, application.
PROTOTYPE_PARTS = {"sre r=110": (0.13, 0.09, 1.4)}


def table_theorem(options):
    """Eigenvalues above a share of the largest, and the bound that holds in every dimension (7)."""
    rows = []
    for width in (64, 128) if options.quick else (256, 1024):
        found = factors(options.data, width)
        for name, M, alpha in (("A", found.A, found.alphas[0]), ("G", found.G, found.alphas[1])):
            values = torch.linalg.eigvalsh(M.double())
            for eps in (0.1, 0.03, 0.01):
                rows.append({
                    "case": f"{name}, width {width}", "rho": RHO, "eps": eps, "alpha": alpha, "n": BATCH, "dim": width,
                    "count": int((values > eps * values.max()).sum()),
                    "bound": ea_rank_bound(RHO, eps, min(alpha, 1.0), BATCH), "draws": 1,
                })  # fmt: skip
    for rho, eps, n in ((0.5, 0.1, 1), (0.9, 0.1, 2), (0.7, 0.03, 4)):
        rows.append(_random_averages(rho, eps, n, 20 if options.quick else 200))
    return "theorem", rows, {
        "case": lambda row: row["case"], "rho": lambda row: str(row["rho"]), "eps": lambda row: str(row["eps"]),
        "alpha": lambda row: number(row["alpha"], ".2f"), "columns of a term": lambda row: str(row["n"]),
        "eigenvalues above eps": lambda row: str(row["count"]), "bound": lambda row: str(row["bound"]),
        "dimension": lambda row: str(row["dim"]), "draws": lambda row: str(row["draws"]),
    }  # fmt: skip


def _random_averages(rho, eps, n, draws):
    """Return the draw that comes nearest to the bound, of random averages of any size of their terms."""
    rng, worst = np.random.default_rng(0), None
    for _ in range(draws):
        d, M, most = 120, 0.0, 0.0
        for i in range(60):
            X = rng.standard_normal((d, n)) * rng.uniform(0, 1) / d**0.5
            most = max(most, np.linalg.norm(X, 2) ** 2)
            M = X @ X.T if i == 0 else rho * M + (1 - rho) * X @ X.T
        values = np.linalg.eigvalsh(M)
        alpha, count = min(values[-1] / most, 1.0), int(np.sum(values > eps * values[-1]))
        row = {
            "case": "random terms", "rho": rho, "eps": eps, "alpha": alpha, "n": n, "dim": d, "count": count,
            "bound": ea_rank_bound(rho, eps, alpha, n), "draws": draws,
        }  # fmt: skip
        if worst is None or count * worst["bound"] > worst["count"] * row["bound"]:
            worst = row
    return worst


def table_brand(options):
    """Time of an online update against the dimension, beside a decomposition of the matrix (7)."""
    rows, rank, n = [], 20 if options.quick else RANK, 8 if options.quick else 32
    sizes = (250, 500, 1000) if options.quick else (1000, 2000, 4000, 8000, 16000)
    for d in sizes:
        rng = np.random.default_rng(0)
        X = torch.from_numpy(rng.standard_normal((d, 2 * rank)).astype(np.float32) / d**0.5)
        new = torch.from_numpy(rng.standard_normal((d, n)).astype(np.float32) / d**0.5)
        inv = brand_update(None, X, 0.0, rank=rank)
        update = functools.partial(brand_update, inv, new, RHO, rank=rank)
        update()
        row = {"d": d, "seconds_ours": float(np.median([harness.seconds(update) for _ in range(7)])), "ratio": None}
        row["error"] = _brand_error(d, n) if d == sizes[0] else None
        if d <= 4000:
            M = RHO * (X @ X.T) + (1 - RHO) * new @ new.T
            sketch = functools.partial(factor_inverse, M, method="nystrom", rank=rank, rng=0)
            sketch()
            row |= harness.race(update, sketch, repeats=5, budget=5)
        rows.append(row)
    slope = np.polyfit(np.log([row["d"] for row in rows]), np.log([row["seconds_ours"] for row in rows]), 1)[0]
    for row in rows:
        row["slope"] = float(slope)
    return "brand", rows, {
        "d": lambda row: str(row["d"]), "ms": lambda row: number(1e3 * row["seconds_ours"], ".2f"),
        "Nystrom of the matrix / update": lambda row: number(row["ratio"], ".2f"),
        "exponent (linear: 1)": lambda row: number(row["slope"], ".2f"),
        "error, defect after 200 updates": lambda row: "{:.1e}, {:.1e}".format(*row["error"]) if row["error"] else "-",
        "specification; without the guard": lambda row: "7e-15, 1e-14; 13 %, 1" if row["error"] else "",
    }  # fmt: skip


def _brand_error(d, n):
    """Return the error against the dense average and the loss of orthogonality, for data in 30 dimensions."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((d, 30)))[0]
    inv, M = None, np.zeros((d, d))
    for step in range(200):
        X = basis @ rng.standard_normal((30, n))
        rho = RHO if step else 0.0
        inv = brand_update(inv, X, rho, rank=40)
        M = rho * M + (1 - rho) * X @ X.T
    defect = np.abs(inv.U.T @ inv.U - np.eye(inv.rank)).max()
    return [float(np.linalg.norm(inv.dense() - M) / np.linalg.norm(M)), float(defect)]


CONFIGS = {
    "exact (Cholesky)": LayerConfig(method="cholesky"),
    "RS r=220, 9 products": LayerConfig(method="rsvd", rank=220, products=9, tail="zero", warm_start=False),
    "sre r=110": LayerConfig(method="sre", rank=110, products=4, warm_start=False),
    "auto r=110, warm": LayerConfig(method="auto", rank=110),
}


def table_parts(options):
    """Statistics every 10 steps, inversions every 50 and their application, over forward and backward (7)."""
    width, rows = 128 if options.quick else 1024, []
    loss = likelihood("softmax")
    if options.data is None:
        rng = np.random.default_rng(0)
        x, y = torch.from_numpy(rng.standard_normal((BATCH, 784)).astype(np.float32)), torch.arange(BATCH) % 10
    else:
        x, y = (X[:BATCH] for X in mnist(str(options.data)))
    params = mlp.init([784, width, width, 10], 0, xp=torch, dtype=torch.float32)

    def passes():
        z, cache = mlp.forward(params, x, ACTS)
        return cache, *mlp.backward(params, cache, loss.dz(z, y))

    cache, grads, hs = passes()
    base = float(np.median([harness.seconds(passes) for _ in range(9)]))
    for name, config in CONFIGS.items():
        config = config._replace(rank=min(config.rank, width // 4))

        def statistics(layers, config=config):
            parts = zip(layers, cache.inputs, hs, strict=True)
            return [layer.add(a, h, config, terms=BATCH) for layer, a, h in parts]

        def inversion(layers, config=config):
            return [layer.refresh(config, 0.1, rng=i) for i, layer in enumerate(layers)]

        def application(layers, config=config):
            return [layer.direction(g, config, 0.1) for layer, g in zip(layers, grads, strict=True)]

        layers = inversion(statistics([LayerState() for _ in params]))  # so that what follows starts warm
        times = []
        for part, every in ((statistics, 10), (inversion, 50), (application, 1)):
            measured = [harness.seconds(functools.partial(part, layers)) for _ in range(5)]
            times.append(float(np.median(measured)) / base / every)
        rows.append({"method": name, "width": width, "base": base, "parts": times, "sum": sum(times)})
    return "parts", rows, {
        "method": lambda row: row["method"], "width": lambda row: str(row["width"]),
        "forward + backward, ms": lambda row: number(1e3 * row["base"], ".1f"),
        "statistics / 10, inversion / 50, application": lambda row: ", ".join(f"{t:.2f}" for t in row["parts"]),
        "sum (goal 0.5)": lambda row: number(row["sum"], ".2f"),
        "prototype": lambda row: ", ".join(map(str, PROTOTYPE_PARTS.get(row["method"], ()))),
    }  # fmt: skip


TABLES = {"theorem": table_theorem, "brand": table_brand, "parts": table_parts}
