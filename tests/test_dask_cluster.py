"""On a cluster of processes the answer is right, whatever happens to the workers, and nothing is left behind."""

import gc
import os
import signal
import threading
import time
import warnings

import dask.array as da
import numpy as np
import pytest

import rnla
from rnla.testing import assert_orthonormal, matrix_with_spectrum, spectrum

LIMIT = 500 * 2**20  # bytes of memory of a worker, most of which its imports need


@pytest.fixture(scope="module")
def client():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of processes and sockets that a cluster opens and closes in its own way
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=LIMIT
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client


pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.xdist_group("cluster"),  # one cluster for all
]


def slowly(A, chunks, seconds):
    """Return A as a dask array, each block of which takes some time to load."""

    def load(B):
        time.sleep(seconds)
        return B

    return da.from_array(A, chunks=chunks).map_blocks(load, dtype=A.dtype, meta=np.empty((0, 0), A.dtype))


def scheduled(client):
    """Return the number of tasks that the scheduler knows, once it has come to rest."""
    for _ in range(100):
        gc.collect()
        count = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        if not count:
            break
        time.sleep(0.05)
    return count


def in_memory(client):
    """Return the bytes of all results that the workers hold."""

    def total(dask_scheduler):
        return sum(task.nbytes for task in dask_scheduler.tasks.values() if task.state == "memory")

    for _ in range(100):
        before, found = client.run_on_scheduler(total), time.sleep(0.02) or client.run_on_scheduler(total)
        if before == found:
            break
    return found


@pytest.mark.parametrize("method", ["gram", "rsi", "rowstream", "krylov"])
def test_the_result_is_that_of_threads_and_stays_with_the_workers(client, method):
    A = matrix_with_spectrum(2000, 60, spectrum("poly2", 60), rng=0)
    lazy = da.from_array(A, chunks=(500, -1))
    U, S, Vh = rnla.svd(lazy, 5, method=method, rng=0)
    assert isinstance(U, da.Array)
    assert isinstance(Vh, np.ndarray)
    dense = rnla.svd(A, 5, method=method, rng=0)
    assert np.abs(S - dense.S).max() <= 1e-6
    assert in_memory(client) <= 2 * U.nbytes  # its blocks, and none of what they were made from
    assert_orthonormal(U.compute())
    assert np.abs(np.abs(np.sum(U.compute() * dense.U, axis=0)) - 1).max() <= 1e-4
    del U
    assert scheduled(client) == 0


def test_wide_arrays_keep_their_right_vectors_with_the_workers(client):
    A = matrix_with_spectrum(50, 1500, spectrum("poly2", 50), rng=0)
    U, S, Vh = rnla.svd(da.from_array(A, chunks=(-1, 300)), 5, rng=0)
    assert isinstance(U, np.ndarray)
    assert isinstance(Vh, da.Array)
    assert np.abs(S - spectrum("poly2", 50)[:5]).max() <= 1e-6
    assert_orthonormal(Vh.compute().T)


def test_a_worker_that_is_killed_costs_time_but_no_digit(client):
    A = matrix_with_spectrum(4000, 80, spectrum("poly1", 80), rng=0)
    lazy = slowly(A, (200, -1), 0.05)
    whole = rnla.svd(da.from_array(A, chunks=(200, -1)), 6, rng=0)
    victim = min(client.run(os.getpid).values())
    killed = []

    def kill(record):
        if record.iteration == 1:
            # In the middle of the next pass, which takes half a second.
            threading.Timer(0.2, lambda: killed.append(os.kill(victim, signal.SIGKILL))).start()

    result = rnla.svd(lazy, 6, rng=0, callback=kill)
    assert killed
    assert result.info.passes == whole.info.passes
    assert np.abs(result.S - whole.S).max() <= 1e-12
    assert np.abs(result.U.compute() - whole.U.compute()).max() <= 1e-10
    client.wait_for_workers(2, timeout=30)
    assert victim not in client.run(os.getpid).values()


def test_an_interrupted_run_leaves_no_task(client):
    lazy = slowly(matrix_with_spectrum(2000, 60, spectrum("slow", 60), rng=0), (100, -1), 0.01)

    def interrupt(record):
        if record.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rnla.svd(lazy, 5, method="gram", tol=1e-8, rng=0, callback=interrupt)
    assert scheduled(client) == 0


def test_matrices_larger_than_the_memory_of_the_workers(client):
    blocks, rows, n = 60, 2500, 1000  # 1.2 GB, beside 1 GB that two workers have in all

    def block(block_id=None):
        x, y = np.arange(rows) + rows * block_id[0], 1.0 / np.arange(1, n + 1)
        return np.stack([np.cos(x), np.sin(3 * x)], axis=1) @ np.stack([y, y * y])

    lazy = da.map_blocks(block, chunks=((rows,) * blocks, (n,)), dtype=float, meta=np.empty((0, 0)))
    assert lazy.nbytes > 2 * LIMIT
    before = set(client.run(os.getpid).values())
    U, S, Vh = rnla.svd(lazy, 2, rng=0)
    assert set(client.run(os.getpid).values()) == before  # a worker over its limit would have been restarted
    # The rank is 2.
    first, last = block((0, 0)), block((blocks - 1, 0))
    assert np.abs((U[:rows].compute() * S) @ Vh - first).max() <= 1e-10
    assert np.abs((U[-rows:].compute() * S) @ Vh - last).max() <= 1e-10


def test_the_dashboard_names_what_is_done(client):
    def names(dask_scheduler):
        return list(dask_scheduler.task_prefixes)

    A = da.from_array(matrix_with_spectrum(300, 40, spectrum("slow", 40), rng=0), chunks=(60, -1))
    for method in ("gram", "krylov"):
        rnla.svd(A, 4, method=method, rng=0)
    rnla.pca(A, 3, method="covariance", rng=0)
    seen = client.run_on_scheduler(names)
    for wanted in ("gram", "forward", "adjoint", "inner", "times", "less", "join", "rows"):
        assert any(name.startswith(f"rnla-{wanted}") for name in seen), wanted


def test_bad_blocks_are_named_and_nothing_hangs(client):
    def fail(B, block_id):
        if block_id == (3, 0):
            raise OSError("disk on fire")
        return B

    A = np.ones((500, 40))
    A[120, 7] = np.nan
    with pytest.raises(ValueError, match=r"^rnla\.svd: A must be finite; .* block \(1, 0\), rows 100\.\.199"):
        rnla.svd(da.from_array(A, chunks=(100, -1)), 2, method="gram")
    lazy = da.ones((500, 40), chunks=(100, -1)).map_blocks(fail, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(RuntimeError, match=r"block \(3, 0\), rows 300\.\.399, .* raised OSError: disk on fire$"):
        rnla.svd(lazy, 2, method="gram")
    assert scheduled(client) == 0
