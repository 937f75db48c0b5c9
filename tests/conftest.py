"""Fixtures and Hypothesis profiles shared by the tests."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, nothing about the code: no deadline, no "too slow".
settings.register_profile(
    "ci", derandomize=True, max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")  # --hypothesis-profile=deep overrides it


@pytest.fixture(scope="session", autouse=True)
def _dask_in_this_thread():
    """Run dask's tasks one after the other; tests of dask's threads and of a cluster ask for them.

    Graphs of tiny blocks in threads wait for one another more than they compute.
    """
    import dask

    with dask.config.set(scheduler="synchronous"):
        yield


PLACES = [
    "numpy",
    "strict",  # the array-API standard and nothing more
    "strict-device1",  # the same on a pretended device: mixing with host arrays raises
    "torch",
    "torch-meta",  # shapes without values: reading a value raises
    pytest.param("cupy", marks=pytest.mark.gpu),
]


@pytest.fixture(params=PLACES)
def place(request):
    """Array namespace and device, ``(xp, device)``.

    A test that needs values leaves out torch's ``meta`` device by naming its places:
    ``@pytest.mark.parametrize("place", ["numpy", "strict", "torch"], indirect=True)``.
    """
    name = request.param
    if name == "numpy":
        return array_api_compat.array_namespace(np.empty(0)), "cpu"
    if name.startswith("strict"):
        import array_api_strict

        return array_api_strict, array_api_strict.Device("device1" if name == "strict-device1" else "CPU_DEVICE")
    if name.startswith("torch"):
        import array_api_compat.torch as xp
        import torch

        return xp, torch.device("meta" if name == "torch-meta" else "cpu")
    if name == "cupy":
        if "gpu" not in request.config.getoption("markexpr"):
            pytest.skip("needs a CUDA device: run with -m gpu")
        import array_api_compat.cupy as xp
        import cupy

        return xp, cupy.cuda.Device(0)
    raise ValueError(f"place must be one of the names in PLACES; got {name!r}.")
