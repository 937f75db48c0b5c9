"""Positive semidefinite matrices with known eigenvalues, drawn by Hypothesis, and every kind of input made of them."""

from typing import NamedTuple

import array_api_compat
import dask.array as da
import h5py
import numpy as np
import scipy.sparse as sp
import torch
import zarr
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from strategies import DTYPES, NAMED, NASTY, rounding, values

from rnla.testing import haar_basis


class Semidefinite(NamedTuple):
    """A Hermitian matrix, its eigenvalues by LAPACK in double precision (non-increasing), a rank and a seed."""

    A: np.ndarray
    w: np.ndarray
    k: int
    seed: int

    @property
    def rounding(self):
        return rounding(self.A, self.w[0])


def with_eigenvalues(w, *, rng, dtype="float64"):
    """Return a Hermitian matrix with the given eigenvalues and eigenvectors of uniform direction."""
    V = haar_basis(len(w), len(w), rng=rng, dtype=np.promote_types(dtype, np.float64))
    A = (V * w) @ V.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def eigenvalues(A):
    """Return the eigenvalues by LAPACK in double precision, non-increasing."""
    return np.linalg.eigvalsh(A.astype(np.promote_types(A.dtype, np.float64)))[::-1]


@st.composite
def semidefinite(draw, *, names=NAMED + NASTY, dtypes=DTYPES, sides=(1, 40)):
    """Draw a `Semidefinite`."""
    n = draw(st.integers(*sides))
    seed = draw(st.integers(0, 2**32 - 1))
    A = with_eigenvalues(
        values(draw(st.sampled_from(names)), n), rng=seed, dtype=np.dtype(draw(st.sampled_from(dtypes)))
    )
    return Semidefinite(A, eigenvalues(A), draw(st.integers(1, n)), seed)


def to_numpy(X):
    """Bring an array of any library to NumPy."""
    if type(X).__module__.startswith("array_api_strict"):
        X = array_api_compat.to_device(X, array_api_compat.array_namespace(X).Device("CPU_DEVICE"))
        return np.from_dlpack(X)
    return np.asarray(X)


def _read_only(A, folder):
    A = A.copy()
    A.flags.writeable = False
    return A


def _strict(A, folder):
    import array_api_strict

    return array_api_strict.asarray(A, device=array_api_strict.Device("device1"))


def _memmap(A, folder):
    path = folder / "A.bin"
    path.write_bytes(A.tobytes())
    return np.memmap(path, A.dtype, "r", shape=A.shape)


def _zarr(A, folder):
    array = zarr.create_array({}, shape=A.shape, dtype=A.dtype, chunks=(20, 30))
    array[...] = A
    return array


KINDS = {
    "numpy": lambda A, folder: A.copy(),
    "fortran": lambda A, folder: np.asfortranarray(A),
    "strided": lambda A, folder: np.repeat(np.repeat(A, 2, 0), 3, 1)[::2, ::3],
    "read-only": _read_only,
    "memmap": _memmap,
    "strict-device1": _strict,
    "torch": lambda A, folder: torch.from_numpy(A.copy()),
    "torch with gradient": lambda A, folder: torch.from_numpy(A.copy()).requires_grad_(),
    "dask rows": lambda A, folder: da.from_array(A, chunks=(16, -1)),
    "dask tiles": lambda A, folder: da.from_array(A, chunks=(20, 30)),
    "hdf5": lambda A, folder: h5py.File(folder / "A.h5", "w").create_dataset("A", data=A, chunks=(16, len(A))),
    "zarr": _zarr,
    "sparse csr": lambda A, folder: sp.csr_array(A),
    "sparse csc": lambda A, folder: sp.csc_array(A),
    "linear operator": lambda A, folder: aslinearoperator(A),
    "matvec": lambda A, folder: LinearOperator(A.shape, lambda x: A @ x, lambda y: A @ y, dtype=A.dtype),
    "functions": lambda A, folder: (lambda x: A @ x, None, A.shape, A.dtype),  # no adjoint is needed
}
