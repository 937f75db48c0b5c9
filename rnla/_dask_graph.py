"""Run graphs of dask on the scheduler that is active, under names that a dashboard can show."""

import contextlib
import sys
import uuid

from rnla._matrix_views import spans

FAN_IN = 3  # partial sums added by one task: with their total, four blocks as long as a side of A in memory


def fails(*lazy):
    """Say whether dask objects cannot be computed."""
    try:
        computed(*lazy)
    except Exception:
        return True
    return False


def computed(*lazy):
    """Compute dask objects together, on the scheduler that is active."""
    import dask

    with _large_graphs():
        return dask.compute(*lazy)


def settled(*lazy):
    """Return dask arrays whose blocks are computed and stay with the workers."""
    import dask

    with _large_graphs():
        found = dask.persist(*lazy)
    if "distributed" in sys.modules:  # else they are computed already
        from distributed import futures_of, wait

        futures = futures_of(found)
        if futures:
            wait(futures)
        for future in futures:
            if future.status != "finished":
                future.result()  # raises
    return found


def _large_graphs():
    """Return a context in which a cluster does not warn that blocks of an argument come with the graph."""
    import dask

    # Setting it before the cluster's own defaults are loaded would hide them.
    if "distributed" not in sys.modules:
        return contextlib.nullcontext()
    return dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"})


def tasks(name, function, *operands):
    """Return one delayed call for each place of the lists of operands, under a name that a dashboard can show."""
    import dask

    task, run = dask.delayed(function, pure=False), uuid.uuid4().hex
    calls = enumerate(zip(*operands, strict=True))
    return [task(*parts, dask_key_name=(f"rnla-{name}-{run}", i)) for i, parts in calls]


def tree(name, add, parts):
    """Return the delayed result of ``add(list)`` over delayed objects, a few of them in each task."""
    while len(parts) > 1:
        parts = tasks(f"{name}-sum", add, [parts[group] for group in spans(len(parts), FAN_IN)])
    return parts[0]
