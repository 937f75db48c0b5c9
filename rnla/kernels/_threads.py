"""Run a serial, GIL-free kernel over blocks of rows on several cores."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_state = threading.local()


def num_threads():
    """Count the threads that a kernel may use: the limits that BLAS obeys.

    Returns
    -------
    int
        The smallest of the cores this process may run on, the BLAS environment variables, and the limits in force
        in the BLAS libraries already loaded (so ``threadpoolctl.threadpool_limits`` holds here too).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in _VARIABLES:
        value = os.environ.get(name, "").split(",")[0]
        if value.isdigit() and int(value) > 0:
            cores = min(cores, int(value))
    return min(cores, _blas_limit())


def map_blocks(function, n_items, *, block, threads=None):
    """Call ``function(start, stop)`` over ``[0, n_items)`` in blocks, on as many cores as BLAS may use.

    The partition depends on `block` alone: results do not change with the number of threads as long as each block
    writes its own part of the output.

    Parameters
    ----------
    function : callable
        Called with two integers; should release the GIL.
    n_items : int
        Number of items.
    block : int
        Items per call.
    threads : int, optional
        How many to use; by default as many as `num_threads` says.
    """
    spans = [(start, min(start + block, n_items)) for start in range(0, n_items, block)]
    # A call from inside a worker runs inline: waiting there for the pool it keeps busy would be for ever.
    threads = 1 if getattr(_state, "working", False) else min(threads or num_threads(), len(spans))
    if threads <= 1:
        for span in spans:
            function(*span)
        return
    pending = iter(spans)  # next() on a list iterator is atomic under the GIL: the pool shares one queue

    def work():
        _state.working = True
        try:
            for span in pending:
                function(*span)
        finally:
            _state.working = False

    futures = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for future in futures:
            future.result()


@lru_cache(maxsize=4)
def _pool(pid, threads):  # the process id keeps a forked child from waiting for threads it does not have
    return ThreadPoolExecutor(max_workers=threads - 1, thread_name_prefix="rnla")


def _blas_limit():
    controller = _controller(os.getpid())
    if controller is None:
        return os.cpu_count() or 1
    limits = [lib.num_threads for lib in controller.lib_controllers if lib.user_api == "blas"]
    return max(1, min(limits, default=os.cpu_count() or 1))


@lru_cache(maxsize=1)
def _controller(pid):
    try:
        import threadpoolctl
    except ImportError:  # not a dependency: without it the environment variables alone decide
        return None
    return threadpoolctl.ThreadpoolController()
