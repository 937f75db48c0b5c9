"""``rnla demo``: truncated SVD of a photograph and of a road network, against the full SVD by LAPACK."""

import statistics
import time

import numpy as np

import rnla

REPEATS = 3


def run(figure, seed):
    """Print the comparison and draw it.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Gets the photograph and two approximations, the road network, and the singular values of both.
    seed : int
        Seed of the randomized runs.
    """
    axes = figure.subplots(2, 3)

    image = rnla.datasets.load_photograph()
    print(f"photograph of a retina, {image.shape[0]} x {image.shape[1]}, dense")
    results, full = compare(image.astype(np.float64), (10, 50, 100), seed)
    _draw_photograph(axes[0], image, results[:2])
    _draw_spectrum(axes[1, 0], results[-1], full, "photograph")

    roads, xy = rnla.datasets.load_road_network()
    print(f"\nroad network of Minnesota, {roads.shape[0]} x {roads.shape[1]}, sparse, {roads.nnz} entries")
    results, full = compare(roads, (10, 50, 100), seed)
    _draw_roads(axes[1, 1], roads, xy, results[-1])
    _draw_spectrum(axes[1, 2], results[-1], full, "road network")


def compare(A, ranks, seed):
    """Print one line for each rank: errors and times of ``rnla.svd`` and of the full SVD by LAPACK.

    Parameters
    ----------
    A : array or sparse array, shape (m, n)
        The matrix; LAPACK gets a dense copy.
    ranks : sequence of int
        Ranks to compute.
    seed : int
        Seed of the randomized runs.

    Returns
    -------
    results : list of SVDResult
        One for each rank.
    S : numpy.ndarray
        All singular values by LAPACK.
    """
    dense = A.toarray() if hasattr(A, "toarray") else A
    np.linalg.svd(dense[:64, :64])  # the warm-up
    started = time.perf_counter()
    _, S, _ = np.linalg.svd(dense, full_matrices=False)
    lapack = time.perf_counter() - started
    norm = np.linalg.norm(S)
    print(f"LAPACK, all {S.size} singular triplets (one run): {lapack:.2f} s")
    print(f"rnla.svd at its defaults (median of {REPEATS} runs after one that is not timed, because it compiles):")
    print("rank   relative error   optimum    ratio      passes   seconds   LAPACK / rnla")
    results = []
    for k in ranks:
        result = rnla.svd(A, k, rng=seed)  # the warm-up
        seconds = statistics.median(_seconds(rnla.svd, A, k, rng=seed) for _ in range(REPEATS))
        error = np.linalg.norm(dense - result.to_dense()) / norm
        optimum = np.linalg.norm(S[k:]) / norm  # Eckart and Young: no matrix of rank k is closer
        print(
            f"{k:4}   {error:14.6f}   {optimum:.6f}   {error / optimum:.6f}   {result.info.passes:6}   {seconds:7.3f}"
            f"   {lapack / seconds:12.1f}x"
        )
        results.append(result)
    return results, S


def _seconds(function, *args, **kwargs):
    started = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - started


def _draw_photograph(axes, image, results):
    pictures = [("original", image)]
    for result in results:
        numbers = sum(part.size for part in result)
        title = f"rank {result.S.size}: {100 * numbers / image.size:.0f} % of the numbers"
        pictures.append((title, result.to_dense()))
    for ax, (title, picture) in zip(axes, pictures, strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title)
        ax.set_axis_off()


def _draw_spectrum(ax, result, S, title):
    from rnla.plotting import scree

    ax.plot(np.arange(1, S.size + 1), S, color="0.7", linewidth=4, label="LAPACK")
    scree(result, ax).get_lines()[-1].set_label("rnla.svd")
    ax.set_xlim(0, 2 * result.S.size)
    ax.set_ylim(S[min(2 * result.S.size, S.size) - 1], 1.2 * S[0])
    ax.set_title(f"singular values of the {title}")
    ax.legend()


def _draw_roads(ax, roads, xy, result):
    edges = roads.tocoo()
    once = edges.row < edges.col
    # One line with gaps (NaN) is drawn much faster than thousands of lines.
    segments = np.stack([xy[edges.row[once]], xy[edges.col[once]], np.full((once.sum(), 2), np.nan)], axis=1)
    ax.plot(*segments.reshape(-1, 2).T, color="0.8", linewidth=0.5, zorder=0)
    leverage = np.sum(result.U**2, axis=1)
    order = np.argsort(leverage)  # the large ones on top
    ax.scatter(*xy[order].T, c=leverage[order], s=6, cmap="viridis")
    ax.set_aspect(1 / np.cos(np.deg2rad(xy[:, 1].mean())))  # a degree of longitude is shorter than one of latitude
    ax.set_title(f"road network; yellow: weight in rank {result.S.size}")
    ax.set_axis_off()
