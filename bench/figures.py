"""The figures that rnla.svd promises, checked against the rows of the benchmark."""

from bench.harness import number

TITLE = "figures"


def dense(row):
    """Say whether a row is of a dense workload."""
    return row["kind"] == "dense"


def sparse(row):
    """Say whether a row is of a sparse workload."""
    return row["kind"] == "sparse"


def against(*names, mode):
    """Return a test for rows that race one of some peers in one mode."""
    return lambda row: row["peer"].startswith(names) and row["mode"] == mode


# What, which rows, least ratio of peer time to our time, and whether our errors must not be larger.
FIGURES = (
    ("dense, default against scikit-learn", (dense, against("scikit-learn", mode="default")), 2.0, True),
    ("dense, at scikit-learn's error", (dense, against("scikit-learn", mode="equal")), 3.0, True),
    ("dense, bare products over all", (dense, against("bare", mode="default")), 1 / 1.5, False),
    ("dense, at torch's error", (dense, against("torch", mode="equal")), 1.0, True),
    ("dense, at ARPACK's error", (dense, against("ARPACK", mode="equal")), 1.0, True),
    ("dense, at PROPACK's error", (dense, against("PROPACK", mode="equal")), 1.0, True),
    ("dense, at fbpca's error", (dense, against("fbpca", mode="equal")), 1.0, True),
    ("dense, at PRIMME's error", (dense, against("PRIMME", mode="equal")), 1.0, True),
    ("dense, tol=1e-10, ARPACK and PROPACK", (dense, against("ARPACK", "PROPACK", mode="tol=1e-10")), 1.0, False),
    ("sparse, at scikit-learn's error", (sparse, against("scikit-learn", mode="equal")), 3.0, True),
    ("sparse, sigma error 1e-4, ARPACK tol=1e-4", (sparse, against("ARPACK", mode="sigma<=1e-4")), 2.0, False),
    ("sparse, tol=1e-10, ARPACK", (sparse, against("ARPACK", mode="tol=1e-10")), 1.0, False),
)


def verdicts(rows):
    """Return, for each figure that the rows touch, the least ratio, where it was, and in how many cells it holds."""
    found = []
    for name, tests, target, compare_errors in FIGURES:
        chosen = [row for row in rows if all(test(row) for test in tests)]
        if not chosen:
            continue

        def holds(row, target=target, compare_errors=compare_errors):
            fast = row["ratio"] is not None and row["ratio"] >= target
            return fast and (not compare_errors or row["no_larger_error"])

        # A row without a ratio is one where rnla did not reach the peer's error: the worst there is.
        worst = min(chosen, key=lambda row: -1.0 if row["ratio"] is None else row["ratio"])
        found.append(
            {
                "figure": name,
                "target": target,
                "worst": worst["ratio"],
                "where": f"{worst['workload']} {worst['dtype']}",
                "cells": len(chosen),
                "met": sum(map(holds, chosen)),
            }
        )
    return found


COLUMNS = {
    "figure": lambda row: row["figure"],
    "least ratio wanted": lambda row: number(row["target"], ".2f"),
    "least ratio seen": lambda row: number(row["worst"], ".2f"),
    "in": lambda row: row["where"],
    "cells that meet it": lambda row: f"{row['met']} of {row['cells']}",
}
