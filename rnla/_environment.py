"""What rnla runs on: versions of packages, BLAS, threads and devices (``rnla info``)."""

import ctypes
import importlib
import platform
from importlib import metadata

import numpy as np

PACKAGES = ("rnla", "numpy", "scipy", "numba", "array-api-compat")
OPTIONAL_PACKAGES = ("cupy", "torch", "dask", "h5py", "zarr", "matplotlib", "pillow", "tqdm", "scikit-learn")
GPU_DRIVERS = ("libcuda.so.1", "nvcuda.dll", "libamdhip64.so")


def describe():
    """Collect what a report of a problem should state.

    Returns
    -------
    dict
        ``versions`` (package to version, or None if not installed), ``platform``, ``blas`` (list of str), ``threads``
        (int) and ``devices`` (list of str); all of it fit for JSON.

    Examples
    --------
    >>> from rnla._environment import describe
    >>> sorted(describe())
    ['blas', 'devices', 'platform', 'threads', 'versions']
    """
    from rnla.kernels._threads import num_threads

    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES + OPTIONAL_PACKAGES}
    return {
        "versions": versions,
        "platform": platform.platform(),
        "blas": _blas(),
        "threads": num_threads(),
        "devices": ["cpu", *_gpus()],
    }


def _version(name):
    """Return the version of an installed distribution without importing it, or None."""
    if name == "cupy":  # its distributions are named after the CUDA release: cupy-cuda13x
        found = (d for d in metadata.distributions() if (d.name or "").lower().startswith("cupy"))
        return next((d.version for d in found), None)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _blas():
    """Name the BLAS libraries in use, or the one that NumPy was built with if that cannot be told."""
    try:
        import threadpoolctl
    except ImportError:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return [f"{blas['name']} {blas.get('version', '')}".strip()]
    import scipy.linalg  # noqa: F401  SciPy may bring a BLAS of its own; only loaded ones are listed

    loaded = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    return [f"{b['internal_api']} {b['version'] or ''} ({b['num_threads']} threads)" for b in loaded]


def _gpus():
    """Name the GPUs that an installed library can use."""
    if not any(map(_loads, GPU_DRIVERS)):
        return []  # no driver: spares the seconds that importing torch takes
    found = []
    for name, count_devices in (("cupy", _cupy_devices), ("torch", _torch_devices)):
        if _version(name) is not None:
            found += [f"{name} {device}" for device in count_devices(importlib.import_module(name))]
    return found


def _loads(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cupy_devices(cupy):
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:  # a driver, but no device that this release of CUDA can use
        return []
    return [f"cuda:{i} {cupy.cuda.runtime.getDeviceProperties(i)['name'].decode()}" for i in range(count)]


def _torch_devices(torch):
    return [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
