"""Two real videos, and objects put into a real background: the table `video` of bench_rpca (B7)."""

import time
import warnings

import numpy as np

import rnla
from bench.harness import number


def robust_pca(D, k, **options):
    """Run rnla without its warnings: the table shows how it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        return rnla.robust_pca(D, k, rng=0, **options)


def table(options, report):
    """Two real videos, and objects put into a real background (B7)."""
    if options.video is None:
        return "video: --video was not given", [], {"": lambda row: ""}
    rows = []
    for name in ("escalator", "peds"):
        frames = np.load(options.video / f"{name}.npz")["frames"]
        if options.quick:
            frames = frames[:, ::4, ::4]
        D = np.ascontiguousarray(frames.reshape(len(frames), -1).T.astype(np.float32))
        median = np.median(D, axis=1, keepdims=True)
        peers = {"riecur 1": (1, {}), "riecur 2": (2, {}), "ialm": (None, {"method": "ialm"})}
        times = {}
        for label, (k, extra) in peers.items():
            report.progress(f"{name} {label}")
            robust_pca(D, k, **extra)
            start = time.perf_counter()
            result = robust_pca(D, k, **extra)
            times[label] = time.perf_counter() - start
            L = result.low_rank()
            rows.append(
                {
                    "video": name,
                    "method": label,
                    "status": result.status,
                    "rank": result.rank,
                    "iterations": result.n_iter,
                    "density": result.sparse(D).nnz / D.size,
                    "rms": float(np.sqrt(np.mean((L - median) ** 2))),
                    "seconds": times[label],
                }
            )
        for row in rows:
            if row["video"] == name:
                row["ratio"] = times["ialm"] / row["seconds"]
    rows += composite(np.load(options.video / "peds.npz")["frames"], options)
    columns = {
        "video": lambda row: row["video"],
        "method": lambda row: row["method"],
        "status": lambda row: row["status"],
        "rank": lambda row: str(row["rank"]),
        "iterations": lambda row: str(row["iterations"]),
        "density of S": lambda row: f"{row['density']:.1%}",
        "rms to median / background": lambda row: f"{row['rms']:.2f}",
        "F-measure": lambda row: number(row.get("f"), ".3f"),
        "seconds": lambda row: f"{row['seconds']:.2f}",
        "ialm / this": lambda row: number(row.get("ratio"), ".1f"),
    }
    return "video", rows, columns


def composite(frames, options):
    """Return rows of a video with a known background: rectangles that move before a median image of real frames."""
    random = np.random.default_rng(0)
    if options.quick:
        frames = frames[:, ::4, ::4]
    background = np.median(frames, axis=0)
    height, width = background.shape
    count = 40 if options.quick else 150
    scale = 1 + 0.03 * np.sin(2 * np.pi * np.arange(count) / 75)
    clean = background[None] * scale[:, None, None]
    video, truth = clean + random.normal(0, 2, clean.shape), np.zeros(clean.shape, bool)
    for _ in range(8):
        h, w = random.integers(8, 17), random.integers(6, 13)
        y, x, speed = random.integers(0, height - h), random.integers(0, width), random.integers(1, 4)
        contrast = random.choice([-60, -40, 40, 60])
        for t in range(count):
            left = (x + speed * t) % max(1, width - w)
            video[t, y : y + h, left : left + w] += contrast
            truth[t, y : y + h, left : left + w] = True
    D, clean, truth = (
        X.reshape(count, -1).T for X in (np.clip(np.round(video), 0, 255).astype(np.float32), clean, truth)
    )
    D, rows, times = np.ascontiguousarray(D), [], {}
    runs = {
        "riecur 1": (1, {}), "riecur 2": (2, {}), "riecur 1, polish": (1, {"polish": 1}),
        "riecur 2, polish": (2, {"polish": 1}), "accaltproj 2": (2, {"method": "accaltproj"}),
        "ircur 2": (2, {"method": "ircur"}), "ialm": (None, {"method": "ialm"}),
    }  # fmt: skip
    for label, (k, extra) in runs.items():
        start = time.perf_counter()
        result = robust_pca(D, k, **extra)
        times[label] = time.perf_counter() - start
        L = result.low_rank()
        found = np.abs(D - L) > np.maximum(result.threshold[0][:, None], result.threshold[1][None, :])
        hit = np.count_nonzero(found & truth)
        rows.append(
            {
                "video": "composite",
                "method": label,
                "status": result.status,
                "rank": result.rank,
                "iterations": result.n_iter,
                "density": found.mean(),
                "rms": float(np.sqrt(np.mean((L - clean) ** 2))),
                "f": 2 * hit / max(1, np.count_nonzero(found) + np.count_nonzero(truth)),
                "seconds": times[label],
            }
        )
    for row in rows:
        row["ratio"] = times["ialm"] / row["seconds"]
    return rows
