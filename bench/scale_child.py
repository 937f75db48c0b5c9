"""One decomposition of bench_scale in a process of its own: ``python -m bench.scale_child SPECIFICATION RESULT``."""

import contextlib
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from bench import scale_data
from bench.bench_memmap import peak_resident

MAX_POWER = 6  # more power iterations of a peer are not tried ...
MAX_PASSES = 8  # ... nor more passes of rnla
OVERSAMPLES = 10  # of rnla and of dask alike


def main():
    """Run the method, write what it took, then compare with the file and write that too.

    The file of results appears when the clock has stopped: the parent's limits end there.
    """
    job, result = json.loads(sys.argv[1]), Path(sys.argv[2])
    plan = scale_data.Plan(job["layout"], tuple(job["block"]), tuple(job["grid"]))
    if job["method"] == "calibrate":
        publish(result, calibrated(job, plan))
        return
    with scheduler(job) as client:
        found, row = METHODS[job["method"]](job, plan, client)
        row["peak_client"] = peak_resident()
        row["peak_workers"] = [] if client is None else list(client.run(peak_resident).values())
        row["loaded"] = scale_data.loaded_bytes(job["log"])
        publish(result, row)
        if found is not None:
            sigma, source = plan.leading(job["down"]), scale_data.Source(job["path"])
            row |= scale_data.errors(source, plan.block, job["down"] * plan.block[0], *found, sigma)
            publish(result, row)


def publish(path, row):
    """Write a result in one piece."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(row))
    partial.replace(path)


@contextlib.contextmanager
def scheduler(job):
    """Give dask threads of this process, or a cluster of processes with one thread each."""
    if job["scheduler"] == "none":
        yield None
        return
    import dask

    if job["scheduler"] == "threads":
        with dask.config.set(scheduler="threads", num_workers=job["threads"]):
            yield None
        return
    from distributed import Client, LocalCluster

    settings = {
        "n_workers": job["workers"], "processes": True, "threads_per_worker": 1, "dashboard_address": None,
        "memory_limit": job["memory"] // job["workers"], "local_directory": job["folder"],
    }  # fmt: skip
    with LocalCluster(**settings) as cluster, Client(cluster) as client:
        client.wait_for_workers(job["workers"])
        yield client


def read_once(job, plan, client):
    """Read the file a block at a time, and do nothing else."""
    source, start = scale_data.Source(job["path"]), time.perf_counter()
    for top in range(0, plan.shape[0], plan.block[0]):
        for left in range(0, plan.shape[1], plan.block[1]):
            source[top : top + plan.block[0], left : left + plan.block[1]]
    return None, {"seconds": time.perf_counter() - start, "passes": 1}


def rnla_file(job, plan, client):
    """rnla.svd of the memory map or the Zarr array itself."""
    import rnla

    if plan.layout == "tall":
        A = np.load(job["path"], mmap_mode="r")
    else:
        import zarr

        A = zarr.open_array(job["path"], mode="r")
    start = time.perf_counter()
    result = rnla.svd(A, plan.rank, rng=0)
    return tuple(result), {"seconds": time.perf_counter() - start, "passes": result.info.passes}


def rnla_stream(job, plan, client):
    """rnla.svd_stream of an iterator: one pass."""
    import rnla

    blocks, start = blocks_of_rows(scale_data.Source(job["path"]), plan), time.perf_counter()
    result = rnla.svd_stream(blocks, plan.rank, rng=0)
    return tuple(result), {"seconds": time.perf_counter() - start, "passes": 1}


def rnla_dask(job, plan, client):
    """rnla.svd of a dask array."""
    import rnla

    A = lazy(job, plan)
    few = (job["settings"] or {}).get("max_passes")
    start = time.perf_counter()
    with warnings.catch_warnings():
        if few:  # on purpose
            warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        U, S, Vh = result = rnla.svd(A, plan.rank, max_passes=few, rng=0)
    (U,) = settled(client, U)
    return (U, S, Vh), {"seconds": time.perf_counter() - start, "passes": result.info.passes}


def svd_compressed(job, plan, client):
    """dask.array.linalg.svd_compressed, with U left in the blocks that it is computed in."""
    from dask.array.linalg import svd_compressed

    A = lazy(job, plan)
    iterator, power = job["settings"]["iterator"], job["settings"]["power"]
    settings = {"n_oversamples": OVERSAMPLES, "compute": job["compute"], "seed": 0}
    start = time.perf_counter()
    U, S, Vh = settled(client, *svd_compressed(A, plan.rank, iterator, power, **settings))
    S, Vh = np.asarray(S), np.asarray(Vh)
    return (U, S, Vh), {"seconds": time.perf_counter() - start, "iterator": iterator, "power": power}


def incremental_pca(job, plan, client):
    """Run scikit-learn's IncrementalPCA over blocks of rows: one pass, without U."""
    from sklearn.decomposition import IncrementalPCA

    pca, start = IncrementalPCA(plan.rank), time.perf_counter()
    for block in blocks_of_rows(scale_data.Source(job["path"]), plan):
        pca.partial_fit(block)
    seconds = time.perf_counter() - start
    return (None, pca.singular_values_, pca.components_), {"seconds": seconds, "passes": 1}


METHODS = {
    "read once": read_once,
    "rnla.svd of the file": rnla_file,
    "rnla.svd_stream": rnla_stream,
    "rnla.svd of dask": rnla_dask,
    "svd_compressed": svd_compressed,
    "IncrementalPCA": incremental_pca,
}


def blocks_of_rows(source, plan):
    """Yield rows as a reader without dask would take them: as many as a row of chunks has, if they fit in 160 MB."""
    # Rows across many chunks are cut again after reading: IncrementalPCA takes the SVD of each block.
    step = max(1, min(plan.block[0], 4 * 10**7 // plan.shape[1]))
    for top in range(0, plan.shape[0], plan.block[0]):
        strip = source[top : top + plan.block[0], :]
        for start in range(0, len(strip), step):
            if len(strip) - start >= plan.rank:  # of fewer rows IncrementalPCA refuses a block
                yield strip[start : start + step]


def lazy(job, plan):
    """Return the upper `down` rows of blocks as a dask array whose loads are noted."""
    import dask.array

    source = scale_data.Source(job["path"], job["log"])
    A = dask.array.from_array(source, chunks=plan.block, name="bench-file", meta=np.empty((0, 0), np.float32))
    return A[: job["down"] * plan.block[0]]


def settled(client, *arrays):
    """Compute arrays where their blocks are, and wait for them."""
    import dask

    arrays = dask.persist(*arrays)
    if client is not None:
        import distributed

        distributed.wait([x for x in arrays if dask.is_dask_collection(x)])
        for x in arrays:  # a task that failed counts as done
            for future in distributed.futures_of(x):
                if future.status == "error":
                    future.result()
    return arrays


def calibrated(job, plan):
    """Return the errors on B of svd_compressed, for power iterations of both kinds, and of rnla, for few passes.

    A has the singular values of B, scaled, and a Gaussian test matrix sees nothing else of it: the errors on A are
    those on B, but for the draw. The default kind of power iteration does not orthonormalise in between: in single
    precision more of it can do harm.
    """
    import dask.array
    from dask.array.linalg import svd_compressed

    import rnla
    from rnla._matrix import as_matrix

    B = scale_data.generator(plan)
    small, rows = dask.array.from_array(B, chunks=(-(-len(B) // 4), -1)), []

    def add(factors, **setting):
        errors = scale_data.errors(B, B.shape, len(B), *dask.compute(*factors), plan.sigma[: plan.rank])
        rows.append({**setting, **errors})

    for iterator in ("power", "QR"):
        for power in range(MAX_POWER + 1):
            settings = {"n_oversamples": OVERSAMPLES, "compute": True, "seed": 0}
            factors = svd_compressed(small, plan.rank, iterator, power, **settings)
            add(factors, iterator=iterator, power=power, reads=2 * power + 2)
    M = as_matrix(lazy(job, plan), "bench")  # a step reads B once; A perhaps twice, where its chunks are square
    per_step = 1 if M.one_pass_gram or M.H.one_pass_gram else 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rnla.ConvergenceWarning)
        for steps in range(1, MAX_PASSES // per_step):
            factors = rnla.svd(small, plan.rank, method="gram", max_passes=steps + 1, rng=0)
            add(factors, iterator=None, power=None, reads=per_step * steps + 1)
    return rows


if __name__ == "__main__":
    main()
