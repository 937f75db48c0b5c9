"""What doctests of the package and of README.md may use, and which files pytest must not import."""

import os

import numpy as np
import pytest

import rnla

# A CUDA kernel compiles when its module is imported: without a GPU that only works in Numba's simulator.
collect_ignore_glob = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["rnla/kernels/_*_cuda.py"]


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    doctest_namespace["np"] = np
    doctest_namespace["rnla"] = rnla
