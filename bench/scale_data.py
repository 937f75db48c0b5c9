"""Files larger than memory with known singular values: written, read, forgotten and compared with, block by block."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import rnla
from bench import bench_memmap

LAYOUTS = ("tall", "square")


@dataclass(frozen=True)
class Plan:
    """What a file holds: the block B it is made of, and how often."""

    layout: str
    block: tuple  # rows and columns of B, and of a chunk
    grid: tuple  # blocks down and across

    @property
    def shape(self):
        return self.block[0] * self.grid[0], self.block[1] * self.grid[1]

    @property
    def size(self):
        return 4 * self.shape[0] * self.shape[1]

    @property
    def sigma(self):
        """Singular values of B."""
        return rnla.testing.spectrum("slow", min(self.block))

    @property
    def rank(self):
        """Number of triplets that are asked for."""
        return min(bench_memmap.RANK, self.block[1] // 10)

    def leading(self, blocks_down):
        """Return the leading singular values of the upper `blocks_down` rows of blocks."""
        return np.sqrt(blocks_down * self.grid[1]) * self.sigma[: self.rank]


def plan(layout, gigabytes):
    """Return what to write for a size; less than a gigabyte is a test of the benchmark, with smaller blocks."""
    large = gigabytes >= 1
    if layout == "tall":
        block = (10000, 2000) if large else (500, 100)
        return Plan(layout, block, (max(2, round(gigabytes * 1e9 / (4 * block[0] * block[1]))), 1))
    side = 4000 if large else 200
    count = max(4, round(gigabytes * 1e9 / (4 * side**2)))
    down = math.isqrt(count)
    return Plan(layout, (side, side), (down, -(-count // down)))


def write(plan, folder):
    """Write the matrix and return its path: rows in an .npy file, or square chunks in a Zarr array.

    Every block is ``P_i B Q_j`` with permutations of changing signs, so that A is ``[P_1; P_2; ...] B [Q_1, Q_2, ...]``
    and its singular values are those of B times the root of the number of blocks. Signs at random keep the means of the
    columns near zero: centring changes nothing that can be seen.
    """
    if plan.layout == "tall":
        path = folder / "A.npy"
        bench_memmap.write(path, plan.grid[0], *plan.block)
        return path
    import zarr

    path, side = folder / "A.zarr", plan.block[0]
    B, rng = generator(plan), np.random.default_rng(1)
    # Not compressed: random digits do not shrink, and the bytes on the disk are then those of the matrix.
    A = zarr.create_array(store=str(path), shape=plan.shape, chunks=plan.block, dtype="float32", compressors=None)
    down, across = (rng.choice(np.array([-1, 1], dtype=np.float32), size=(count, side)) for count in plan.grid)
    for i in range(plan.grid[0]):
        strip = np.roll(B, i, axis=0) * down[i][:, None]
        for j in range(plan.grid[1]):
            block = np.roll(strip, j, axis=1) * across[j]
            A[i * side : (i + 1) * side, j * side : (j + 1) * side] = block
    return path


def generator(plan):
    """Return the block B."""
    return rnla.testing.matrix_with_spectrum(*plan.block, plan.sigma, rng=0, dtype=np.float32)


def forget(path):
    """Ask the system to drop the file, or the files of the folder, from its cache."""
    for file in [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]:
        bench_memmap.drop_from_cache(file)


class Source:
    """Rectangles of the file as arrays; the bytes of each load are appended to `log`, from whatever process.

    Reads instead of mapping: mapped pages would count as memory of the process.
    """

    def __init__(self, path, log=None):
        self.path, self.log = Path(path), log
        if self.path.suffix == ".npy":
            mapped = np.load(self.path, mmap_mode="r")
            self.shape, self.dtype, self._offset = mapped.shape, mapped.dtype, mapped.offset
        else:
            import zarr

            array = zarr.open_array(str(self.path), mode="r")
            self.shape, self.dtype = array.shape, array.dtype
        self.ndim = 2

    def __getitem__(self, index):
        (top, bottom, _), (left, right, _) = (part.indices(side) for part, side in zip(index, self.shape, strict=True))
        if self.path.suffix == ".npy":
            n = self.shape[1]
            start, count = self._offset + top * n * self.dtype.itemsize, (bottom - top) * n
            B = np.fromfile(self.path, self.dtype, count, offset=start).reshape(-1, n)[:, left:right]
        else:
            import zarr

            B = zarr.open_array(str(self.path), mode="r")[top:bottom, left:right]
        if self.log is not None:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{B.nbytes}\n".encode())  # one short append is not torn apart by another
            os.close(descriptor)
        return B


def loaded_bytes(log):
    """Return the sum of the loads that were noted."""
    return sum(int(line) for line in Path(log).read_text().split()) if Path(log).exists() else 0


def errors(source, block, rows, U, S, Vh, sigma):
    """Return the largest relative error of the singular values and the excess error, from one read by blocks.

    As `accuracy.errors`, for a U that may be a dask array and is looked at a block of rows at a time. Without U the
    approximation is the projection on the rows of Vh, which is the best that U could give.
    """
    S, V = np.asarray(S, dtype=np.float64), np.asarray(Vh, dtype=np.float64).T
    if S.shape != sigma.shape or not (np.isfinite(S).all() and np.isfinite(V).all()):
        raise ValueError(f"a result of {S.shape} singular values, or one that is not finite, cannot be compared")
    if U is None:
        V = np.linalg.qr(V)[0]
    norm_sq = fit = 0.0
    gram = np.zeros((len(S), len(S)))
    for top in range(0, rows, block[0]):
        strip = slice(top, min(top + block[0], rows))
        AV = np.zeros((strip.stop - top, len(S)))
        for left in range(0, source.shape[1], block[1]):
            columns = slice(left, left + block[1])
            B = source[strip, columns].astype(np.float64)
            norm_sq += float(np.vdot(B, B))
            AV += B @ V[columns]
        if U is None:
            fit += np.sum(AV**2)
        else:
            part = U[strip]
            part = np.asarray(part.compute() if hasattr(part, "compute") else part, dtype=np.float64)
            fit += 2 * np.sum(part * S * AV)
            gram += part.T @ part
    residual_sq = norm_sq - fit + np.sum(gram * np.outer(S, S) * (V.T @ V))
    return {
        "sigma": float(np.max(np.abs(S - sigma) / sigma)),
        "excess": float(np.sqrt(max(residual_sq, 0.0) / (norm_sq - np.sum(sigma**2))) - 1),
    }
