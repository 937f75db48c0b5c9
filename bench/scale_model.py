"""What a decomposition costs on a cluster that nobody has at hand: bytes, memory and seconds, and what is assumed."""

import math
from dataclasses import dataclass

from bench.harness import number
from rnla._dask_graph import FAN_IN

TITLE = "cost model: 10 TB of float32 on 100 workers"
DOUBLE = 8  # bytes of an entry of a partial sum


@dataclass(frozen=True)
class Cluster:
    """The machines, all alike."""

    workers: int = 100
    disk: float = 1e9  # bytes a second that each worker reads of the matrix
    network: float = 1.25e9  # bytes a second into and out of each worker
    flops: float = 200e9  # a second of each worker, in products of tall blocks in single precision
    threads: int = 4  # blocks that a worker holds at the same time, and one more that is being read
    fan_in: int = FAN_IN  # partial sums that one task adds


@dataclass(frozen=True)
class Job:
    """The decomposition."""

    shape: tuple
    k: int
    steps: int  # power steps, or blocks of the Krylov iteration
    oversamples: int = 10
    itemsize: int = 4
    block_bytes: int = 128 * 2**20
    reads_per_step: int = 1  # 2 where no worker can hold a whole row of chunks


def cost(job, cluster):
    """Return bytes, memory per worker and seconds of a decomposition.

    Parameters
    ----------
    job : Job
        ``steps`` products with ``A^H A``, and two more reads: the first sketch or last test, and U.
    cluster : Cluster
        The machines.

    Returns
    -------
    dict
        ``reads`` of the matrix; ``network_pass``, bytes over the network in one pass; ``memory``, bytes per worker;
        ``seconds_pass``, the largest of reading and multiplying, plus sending; ``seconds``.
    """
    m, n = job.shape
    width, workers = job.k + job.oversamples, cluster.workers
    reads = job.reads_per_step * job.steps + 2
    size = job.itemsize * m * n
    # Each worker is sent X whole, once, and gives back one sum of A^H (A X), in double precision.
    sent, summed = n * width * job.itemsize, n * width * DOUBLE
    levels = max(1, math.ceil(math.log(workers, cluster.fan_in)))
    # Down and up a tree: a node passes `fan_in` copies on, and takes in `fan_in` sums, at every level.
    sending = levels * cluster.fan_in * (sent + summed) / cluster.network
    reading = size / workers / cluster.disk
    multiplying = 4 / job.reads_per_step * m * n * width / workers / cluster.flops
    tall = math.ceil(m / workers) * width * job.itemsize
    # What a task adds are sums as long as its block is wide: the whole of n if blocks have whole rows.
    piece = n if job.reads_per_step == 1 else min(n, math.isqrt(job.block_bytes // job.itemsize))
    adding = (cluster.fan_in + 1) * piece * width * DOUBLE
    return {
        "size": size,
        "reads": reads,
        "network_pass": workers * (sent + summed),
        "memory": (cluster.threads + 1) * job.block_bytes + 2 * tall + cluster.threads * adding + sent,
        "bound": 4 * job.block_bytes + 4 * (math.ceil(m / workers) + n) * width * job.itemsize,
        "reading": reading,
        "multiplying": multiplying,
        "sending": sending,
        "seconds_pass": max(reading, multiplying) + sending,
        "seconds": reads * (max(reading, multiplying) + sending),
    }


CASES = {
    "tall": Job((1_250_000_000, 2000), 50, 3),
    "square": Job((1_600_000, 1_562_500), 50, 3, reads_per_step=2),
}


def run(report):
    """Print the model and what it assumes."""
    cluster = Cluster()
    rows = [{"case": name, "shape": job.shape, "k": job.k, **cost(job, cluster)} for name, job in CASES.items()]
    report.add(TITLE, rows)
    report.table(TITLE, COLUMNS)
    print(
        f"\nAssumes: {cluster.workers} workers alike; {cluster.disk / 1e9:g} GB/s from the store and "
        f"{cluster.network / 1e9:g} GB/s of network for each, both at once and undisturbed; "
        f"{cluster.flops / 1e9:g} GFLOP/s in float32; reading overlaps multiplying, sending does not; X reaches every "
        f"worker once a pass, down a tree of {cluster.fan_in}; every worker adds up its own partial sums, in double "
        f"precision, before one of them goes up the same tree; {cluster.threads} threads a worker, with a block of "
        f"{CASES['tall'].block_bytes / 2**20:.0f} MiB each and one being read; tall factors stay where they are, two "
        "of them at a time; 3 power steps; no worker is lost, no task waits for the scheduler."
    )


COLUMNS = {
    "matrix": lambda row: row["case"],
    "shape": lambda row: "x".join(f"{side:.3g}" for side in row["shape"]),
    "k": lambda row: str(row["k"]),
    "TB": lambda row: number(row["size"] / 1e12, ".1f"),
    "reads": lambda row: str(row["reads"]),
    "GB over the network a pass": lambda row: number(row["network_pass"] / 1e9, ".2f"),
    "GB of memory a worker (bound)": lambda row: f"{row['memory'] / 1e9:.1f} ({row['bound'] / 1e9:.1f})",
    "s a pass: read / multiply / send": lambda row: (
        f"{row['reading']:.0f} / {row['multiplying']:.0f} / {row['sending']:.1f}"
    ),
    "minutes": lambda row: number(row["seconds"] / 60, ".0f"),
}
