"""What doctests of the package and of README.md may use, and which files pytest must not import."""

import os

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - loads its BLAS too
from threadpoolctl import threadpool_limits

import rnla

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: one thread for each
    threadpool_limits(1)
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1"))

# A CUDA kernel compiles when its module is imported: without a GPU that only works in Numba's simulator.
collect_ignore_glob = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["rnla/kernels/_*_cuda.py"]


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["rnla"] = rnla
