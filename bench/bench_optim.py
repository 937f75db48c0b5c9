"""rnla.optim and rnla.torch: inverses of Kronecker factors, whole steps, and training against other optimizers."""

import functools
from pathlib import Path

import numpy as np
import torch

from bench import harness, optim_theory, optim_training, optim_wake
from bench.harness import number
from bench.optim_factors import factors
from rnla.optim import factor_inverse, factor_inverses, precondition

RANK, OVERSAMPLING = 110, 10
WIDTHS = (256, 512, 1024, 2048)
# Speed-ups over an eigendecomposition in the prototype, by the width.
PROTOTYPE = {
    "SRE, 4 products": (1.2, 1.9, 4.3, 10.9), "SRE, 2 products": (1.8, 3.6, 7.2, 18.0),
    "torch.svd_lowrank, niter=4": (0.4, 1.0, 1.7, 4.0), "Cholesky inverse": (22.5, 3.75, 2.2, 3.1),
}  # fmt: skip
# The same for rank 220 and others, with the errors of the direction at damping 0.1 and 0.01: widths 1024 and 2048.
PROTOTYPE_SETTINGS = {
    "published RS": ((1.1, 0.018, 0.217), (2.9, 0.015, 0.170)),
    "published SRE": ((1.9, 0.019, 0.219), (4.9, 0.016, 0.175)),
    "Nystrom r=220, warm": ((2.9, 0.013, 0.136), (20, 0.014, 0.139)),
    "Nystrom r=110, warm": ((6.5, 0.034, 0.270), (46, 0.030, 0.259)),
    "Nystrom r=220, cold": ((3.1, 0.018, 0.157), (22, 0.017, 0.155)),
}
SETTINGS = {
    "published RS": {"method": "rsvd", "rank": 220, "products": 9, "tail": "zero"},
    "published SRE": {"method": "sre", "rank": 220, "products": 4, "tail": "zero"},
    "Nystrom r=220, warm": {"method": "nystrom", "rank": 220, "products": 1, "warm": True},
    "Nystrom r=110, warm": {"method": "nystrom", "rank": 110, "products": 1, "warm": True},
    "Nystrom r=220, cold": {"method": "nystrom", "rank": 220, "products": 1},
    "Nystrom r=220, cold, 2 products": {"method": "nystrom", "rank": 220, "products": 2},
    "Nystrom r=220, warm, p=60": {
        "method": "nystrom", "rank": 220, "products": 1, "warm": True, "oversampling": 60,
    },
}  # fmt: skip
# Errors at width 1024 and rank 110 after 2 products (SRE), by the damping and the tail, in the prototype.
PROTOTYPE_TAILS = {
    (0.1, "zero"): 0.056, (0.1, "min"): 0.074, (0.1, "trace"): 0.044,
    (0.01, "zero"): 0.51, (0.01, "min"): 0.53, (0.01, "trace"): 0.30,
    (0.001, "zero"): 3.05, (0.001, "min"): 0.96, (0.001, "trace"): 0.69,
}  # fmt: skip
# Numbers of eigenvalues above 1/33 and 1/1000 of the largest, of A and of G, by the width, in the prototype.
PROTOTYPE_COUNTS = {
    256: (20, 203, 41, 247),
    512: (27, 289, 30, 336),
    1024: (32, 336, 40, 452),
    2048: (26, 281, 33, 468),
}


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--table", choices=sorted(TABLES), help="run this table only")
    parser.add_argument("--quick", action="store_true", help="small sizes: tests the benchmark itself")
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST; of the table vgg: cifar10_12k.npz")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each optimizer (default 3)")
    parser.add_argument(
        "--width", type=int, default=32, help="channels of the first layer of the table vgg (default 32)"
    )
    parser.add_argument("--images", type=int, default=20_000, help="for training, of the table wake (default 20000)")
    parser.add_argument("--epochs", type=int, default=8, help="of the table wake (default 8)")
    parser.add_argument("--exact", action="store_true", help="QE as well in the table wake: about five times as slow")


def run(options, report):
    """Run the tables, one or all."""
    harness.run_tables(TABLES, options, report)


def widths(options):
    """Return the widths of the hidden layers."""
    return (64, 128) if options.quick else WIDTHS


def table_inversion(options):
    """Time of one inversion against the width, relative to an eigendecomposition (1)."""
    rows = []
    for width in widths(options):
        found = factors(options.data, width)
        A = found.A
        warm = factor_inverse(found.A_before, method="nystrom", rank=RANK, oversampling=OVERSAMPLING, rng=0)
        sketch = functools.partial(factor_inverse, rank=RANK, oversampling=OVERSAMPLING, rng=1)
        calls = {
            "torch.linalg.eigh": torch.linalg.eigh,
            "Cholesky inverse": lambda M: torch.cholesky_inverse(torch.linalg.cholesky(M + 1e-2 * torch.eye(len(M)))),
            "torch.svd_lowrank, niter=4": lambda M: torch.svd_lowrank(M, min(RANK + OVERSAMPLING, len(M)), niter=4),
            "RS, 9 products": functools.partial(sketch, method="rsvd", products=9),
            "SRE, 4 products": functools.partial(sketch, method="sre", products=4),
            "SRE, 2 products": functools.partial(sketch, method="sre", products=2),
            "Nystrom, 2 products": functools.partial(sketch, method="nystrom", products=2),
            "Nystrom, 1 product, warm": functools.partial(sketch, method="nystrom", products=1, warm=warm),
        }
        for name, call in calls.items():
            call(A)
            rows.append({
                "method": name, "width": width, "error": _representation_error(call(A), A),
                "prototype": dict(zip(WIDTHS, PROTOTYPE.get(name, ()), strict=False)).get(width),
                **harness.race(lambda call=call, A=A: call(A), lambda A=A: torch.linalg.eigh(A), repeats=7, budget=10),
            })  # fmt: skip
    for row in rows:  # the exponent of the three largest widths
        same = [other for other in rows if other["method"] == row["method"]][-3:]
        sizes, times = ([np.log(other[key]) for other in same] for key in ("width", "seconds_ours"))
        row["slope"] = float(np.polyfit(sizes, times, 1)[0])
    return "inversion", sorted(rows, key=lambda row: row["method"]), {
        "method": lambda row: row["method"], "width": lambda row: str(row["width"]),
        "ms": lambda row: number(1e3 * row["seconds_ours"], ".1f"),
        "speed-up over eigh": lambda row: number(row["ratio"], ".2f"),
        "prototype": lambda row: number(row["prototype"], ".1f"),
        "Frobenius error": lambda row: number(row["error"]),
        "exponent (goal <= 2.2)": lambda row: number(row["slope"], ".2f"),
    }  # fmt: skip


def _representation_error(result, M):
    """Return ``||M - M'||_F / ||M||_F`` for what a method returns, or None for an inverse."""
    if isinstance(result, torch.Tensor):
        return None
    if hasattr(result, "dense"):
        return float(torch.linalg.norm(result.dense() - M) / torch.linalg.norm(M))
    if len(result) == 2:
        return float(torch.linalg.norm((result[1] * result[0]) @ result[1].T - M) / torch.linalg.norm(M))
    return float(torch.linalg.norm((result[0] * result[1]) @ result[2].T - M) / torch.linalg.norm(M))


def direction_error(found, A_inv, G_inv, damping):
    """Return ``||V - V_exact||_F / ||V_exact||_F`` of the preconditioned gradient."""
    wide = [X.double() for X in (found.gradient, found.A, found.G)]
    exact = precondition(*wide, damping)
    V = precondition(found.gradient, A_inv, G_inv, damping).double()
    return float(torch.linalg.norm(V - exact) / torch.linalg.norm(exact))


def table_settings(options):
    """Compare published settings with ours: time, and error of the preconditioned gradient (1)."""
    rows = []
    for i, width in enumerate((128, 192) if options.quick else (1024, 2048)):
        found = factors(options.data, width)
        for name, setting in SETTINGS.items():
            base = {"oversampling": OVERSAMPLING, **setting, "rank": min(setting["rank"], width // 3)}
            warm_start = base.pop("warm", False)

            def invert(M, warm=None, base=base):
                return factor_inverse(M, rng=1, warm=warm, **base)

            starts = [invert(M) if warm_start else None for M in (found.A_before, found.G_before)]
            A_inv, G_inv = (invert(M, warm) for M, warm in zip((found.A, found.G), starts, strict=True))

            def ours(invert=invert, warm=starts[0], A=found.A):
                return invert(A, warm)

            def code(A=found.A, width=width):
                return torch.svd_lowrank(A, min(230, width), niter=4)

            def eigh(A=found.A):
                return torch.linalg.eigh(A)

            ours(), code(), eigh()
            published = SETTINGS["published RS"]
            reference = functools.partial(
                factor_inverse, found.A, method="rsvd", rank=min(published["rank"], width // 3), products=9,
                oversampling=OVERSAMPLING, tail="zero", rng=1,
            )  # fmt: skip
            rows.append({
                "setting": name, "width": width, **harness.race(ours, eigh, repeats=5, budget=10),
                "over_rs": harness.race(ours, reference, repeats=5, budget=10)["ratio"],
                "over_code": harness.race(ours, code, repeats=5, budget=10)["ratio"],
                "errors": [direction_error(found, A_inv, G_inv, damping) for damping in (0.1, 0.01)],
                "prototype": None if options.quick or name not in PROTOTYPE_SETTINGS else PROTOTYPE_SETTINGS[name][i],
            })  # fmt: skip
        base = next(row for row in rows if row["width"] == width)["errors"]
        for row in rows:
            if row["width"] == width:
                accurate = all(ours <= theirs for ours, theirs in zip(row["errors"], base, strict=True))
                row["met"] = bool(accurate and row["over_rs"] >= 2.5)
    return "settings", rows, {
        "setting": lambda row: row["setting"], "width": lambda row: str(row["width"]),
        "speed-up over eigh": lambda row: number(row["ratio"], ".1f"),
        "over published RS": lambda row: number(row["over_rs"], ".1f"),
        "over its code (torch.svd_lowrank)": lambda row: number(row["over_code"], ".1f"),
        "error at 0.1 / 0.01": lambda row: " / ".join(number(e, ".3f") for e in row["errors"]),
        "prototype": lambda row: "{} ({} / {})".format(*row["prototype"]) if row["prototype"] else "-",
        ">= 2.5x cheaper, error no larger": lambda row: "yes" if row["met"] else "no",
    }  # fmt: skip


def table_layers(options):
    """Time to decompose the factors of many layers of one size: together, and one by one."""
    rows, count = [], 4 if options.quick else 24
    for d, method in ((16, "exact"), (64, "exact"), (128, "exact"), (64, "eigh"), (300, "nystrom")):
        generator = torch.Generator().manual_seed(d)
        scales = 1 / torch.arange(1, d + 1) ** 0.75
        X = torch.randn(count, d, d, generator=generator) * scales
        factors = list(X @ X.mT / d)
        settings = {"method": method, "rank": 40}

        def together(factors=factors, settings=settings, count=count):
            return factor_inverses(factors, rngs=range(count), **settings)

        def alone(factors=factors, settings=settings):
            return [factor_inverse(M, rng=i, **settings) for i, M in enumerate(factors)]

        pairs = list(zip(together(), alone(), strict=True))
        error = max(float(torch.linalg.norm(A.dense() - B.dense()) / torch.linalg.norm(B.dense())) for A, B in pairs)
        rows.append({
            "method": method, "dim": d, "factors": count, "difference": error,
            **harness.race(together, alone, repeats=7, budget=10),
        })  # fmt: skip
    return "layers", rows, {
        "method": lambda row: row["method"], "dimension": lambda row: str(row["dim"]),
        "factors": lambda row: str(row["factors"]), "ms together": lambda row: number(1e3 * row["seconds_ours"], ".2f"),
        "one by one, times as long": lambda row: number(row["ratio"], ".2f"),
        "relative difference": lambda row: number(row["difference"]),
    }  # fmt: skip


def table_spectra(options):
    """Count the eigenvalues above 1/33 and 1/1000 of the largest, against the width (6)."""
    rows = []
    for width in widths(options):
        found = factors(options.data, width)
        counts = []
        for M in (found.A, found.G):
            values = torch.linalg.eigvalsh(M.double())
            counts += [int((values > values.max() * share).sum()) for share in (1 / 33, 1e-3)]
        rows.append({"width": width, "counts": counts, "prototype": PROTOTYPE_COUNTS.get(width)})
    return "spectra", rows, {
        "width": lambda row: str(row["width"]),
        "A: above 1/33, 1/1000": lambda row: "{}, {}".format(*row["counts"][:2]),
        "G: above 1/33, 1/1000": lambda row: "{}, {}".format(*row["counts"][2:]),
        "prototype: A, G": lambda row: "{}, {}; {}, {}".format(*row["prototype"]) if row["prototype"] else "-",
    }  # fmt: skip


def table_direction(options):
    """Error of the preconditioned gradient against rank, tail, method and products (6)."""
    rows = []
    found = factors(options.data, 128 if options.quick else 1024)
    for rank in (10, 20) if options.quick else (50, 110, 220):
        for method, products in (("sre", 1), ("sre", 2), ("sre", 4), ("rsvd", 9), ("nystrom", 1), ("nystrom", 2)):
            for tail in ("zero", "min", "trace"):
                inverses = [
                    factor_inverse(M, method=method, products=products, rank=rank, tail=tail, rng=1)
                    for M in (found.A, found.G)
                ]
                known = not options.quick and (rank, method, products) == (RANK, "sre", 2)
                dampings = (0.1, 0.01, 0.001)
                rows.append({
                    "rank": rank, "method": method, "products": products, "tail": tail,
                    "errors": [direction_error(found, *inverses, damping) for damping in dampings],
                    "prototype": [PROTOTYPE_TAILS[damping, tail] for damping in dampings] if known else None,
                })  # fmt: skip
    return "direction", rows, {
        "rank": lambda row: str(row["rank"]), "method": lambda row: row["method"],
        "products": lambda row: str(row["products"]), "tail": lambda row: row["tail"],
        "error at 0.1, 0.01, 0.001": lambda row: ", ".join(number(e, ".3f") for e in row["errors"]),
        "prototype": lambda row: ", ".join(map(str, row["prototype"] or ())),
    }  # fmt: skip


TABLES = {
    "inversion": table_inversion,
    "settings": table_settings,
    "layers": table_layers,
    "spectra": table_spectra,
    "direction": table_direction,
    **optim_theory.TABLES,
    **optim_training.TABLES,
    **optim_wake.TABLES,
}
