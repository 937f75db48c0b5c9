"""``import rnla`` is cheap: what costs time or is optional waits for its first use."""

import json
import subprocess
import sys
from pathlib import Path

import rnla

LATE = {
    *("cupy", "dask", "h5py", "matplotlib", "numba", "PIL", "sklearn", "torch", "tqdm", "zarr"),
    *("rnla.cli", "rnla.decomposition", "rnla.plotting", "scipy.optimize", "scipy.stats"),
}


def test_import_loads_nothing_that_can_wait():
    program = "import json, sys, rnla; print(json.dumps(sorted(sys.modules)))"
    checkout = Path(rnla.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "rnla" in loaded
    assert not loaded & LATE
