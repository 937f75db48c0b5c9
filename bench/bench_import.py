"""Import time of rnla against that of sklearn.utils.extmath, in fresh processes taken in turns."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench.harness import number

TITLE = "import"
PEERS = ("sklearn.utils.extmath", "scipy.sparse.linalg", "numpy")
HEAVY = ("torch", "cupy", "dask", "matplotlib", "numba", "h5py", "zarr")
MEASURE = """
import json, sys, time
start = time.perf_counter()
__import__(sys.argv[1])
print(json.dumps([time.perf_counter() - start, sorted(set(sys.argv[2:]) & set(sys.modules))]))
"""


def add_arguments(parser):
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=9, help="processes per module (default 9)")


def run(options, report):
    """Time the imports and print the table."""
    once("rnla")  # writes the compiled files
    rows = []
    for peer in PEERS:
        once(peer)
        pairs = [(once(peer)[0], once("rnla")[0]) for _ in range(options.repeats)]
        rows.append(
            {
                "peer": peer,
                "ratio": statistics.median(theirs / ours for theirs, ours in pairs),
                "seconds_peer": statistics.median(theirs for theirs, _ in pairs),
                "seconds_ours": statistics.median(ours for _, ours in pairs),
                "loaded": once("rnla")[1],
            }
        )
    report.add(TITLE, rows)
    report.table(TITLE, COLUMNS)


def once(module):
    """Return the seconds that one import takes in a fresh process, and which heavy packages it loaded."""
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, module, *HEAVY],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout)


COLUMNS = {
    "peer": lambda row: row["peer"],
    "seconds peer / rnla": lambda row: f"{row['seconds_peer']:.3f} / {row['seconds_ours']:.3f}",
    "rnla over peer (sklearn: <= 0.60)": lambda row: number(1 / row["ratio"], ".2f"),
    "heavy packages rnla loads": lambda row: ", ".join(row["loaded"]) or "none",
}
