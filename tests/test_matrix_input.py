"""What is not a matrix of numbers is refused at once, and outputs of operators are not trusted."""

import itertools

import dask.array as da
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator

from rnla._matrix import as_matrix

CALLER = "rnla.svd"
SERIAL = itertools.count()  # HDF5 files in memory must have different names


def hdf5(**content):
    handle = h5py.File(f"refused {next(SERIAL)}", "w", driver="core", backing_store=False)
    return handle.create_dataset("A", **content)


ones = np.ones((3, 2))
UNSUPPORTED = {
    "numpy.matrix": lambda: np.asmatrix(ones),
    "masked": lambda: np.ma.masked_array(ones, ones > 2),
    "object": lambda: ones.astype(object),
    "string": lambda: ones.astype(str),
    "datetime": lambda: ones.astype("datetime64[s]"),
    "timedelta": lambda: ones.astype("timedelta64[s]"),
    "record": lambda: np.zeros((3, 2), [("x", float)]),
    "nested strings": lambda: [["a", "b"]],
    "nested objects": lambda: [[None, None]],
    "long double": lambda: ones.astype(np.longdouble),
    "sparse long double": lambda: sp.csr_array(ones).astype(np.longdouble),
    "dask object": lambda: da.from_array(ones.astype(object), chunks=2),
    "dask masked": lambda: da.ma.masked_greater(da.from_array(ones), 2),
    "torch sparse": lambda: torch.ones(3, 2).to_sparse(),
    "text": lambda: "A.npy",
    "none": lambda: None,
    "mapping": lambda: {"A": ones},
    "file": lambda: hdf5(dtype="f8").file,
    "hdf5 text": lambda: hdf5(data=np.array([[b"a", b"b"]])),
    "too few functions": lambda: (lambda x: x, lambda y: y, (2, 2)),
    "dtype of functions": lambda: (lambda x: x, lambda y: y, (2, 2), "no such type"),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_kinds_and_dtypes_are_refused(kind):
    with pytest.raises(TypeError, match=rf"^{CALLER}: A must .*; got "):
        as_matrix(UNSUPPORTED[kind](), CALLER)


INVALID = {
    "number": lambda: np.float64(1.0),
    "vector": lambda: np.ones(3),
    "list of numbers": lambda: [1.0, 2.0],
    "stack": lambda: np.ones((2, 2, 2)),
    "no rows": lambda: np.ones((0, 2)),
    "no columns": lambda: np.ones((2, 0)),
    "ragged": lambda: [[1.0, 2.0], [3.0]],
    "empty list": lambda: [[]],
    "sparse vector": lambda: sp.coo_array(np.ones(3)),
    "sparse without rows": lambda: sp.csr_array((0, 3)),
    "torch vector": lambda: torch.ones(3),
    "dask stack": lambda: da.ones((2, 2, 2)),
    "dask unknown chunks": lambda: (x := da.ones((6, 2), chunks=(3, 2)))[x[:, 0] > 0],
    "operator without rows": lambda: (lambda x: x, None, (0, 2), float),
    "hdf5 vector": lambda: hdf5(data=np.ones(3)),
    "hdf5 null": lambda: hdf5(dtype="f8"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_shapes_are_refused(kind):
    with pytest.raises(ValueError, match=rf"^{CALLER}: A must .*; got "):
        as_matrix(INVALID[kind](), CALLER)


def test_operator_without_adjoint_is_refused_when_the_adjoint_is_needed():
    class OnlyForward:
        shape, dtype = (3, 2), np.dtype(float)

        def matvec(self, x):
            return ones @ x

    operators = [
        OnlyForward(),
        LinearOperator((3, 2), matvec=lambda x: ones @ x, dtype=float),
        (lambda x: ones @ x, None, (3, 2), float),
    ]
    for operator in operators:
        M = as_matrix(operator, CALLER)
        np.testing.assert_array_equal(M.matmat(np.ones((2, 2))), np.full((3, 2), 2.0))
        with pytest.raises(TypeError, match=rf"^{CALLER}: A must provide rmatvec or rmatmat"):
            M.rmatmat(ones)


def operator_returning(output):
    class Returning:
        shape, dtype = (3, 2), np.dtype(float)

        def matmat(self, X):
            return output

        def rmatmat(self, Y):
            return output

    return Returning()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.ones((2, 2)), r"shape \(3, 4\) for an array of shape \(2, 4\); got \(2, 2\)"),
        (np.ones(3), r"got \(3,\)"),
        (np.ones((3, 4), object), "numeric array of .*numpy; got ndarray of dtype object"),
        ([[1.0] * 4] * 3, "got list of dtype none"),
        (None, "got NoneType"),
        (sp.csr_array(np.ones((3, 4))), "got csr_array"),
        (torch.ones(3, 4), "got Tensor"),
        (np.ones((3, 4), complex), "returned complex128, but A has the real dtype float64"),
    ],
)
def test_outputs_of_operators_are_not_trusted(output, message):
    M = as_matrix(operator_returning(output), CALLER)
    with pytest.raises(ValueError, match=rf"^{CALLER}: matmat of A.*{message}"):
        M.matmat(np.ones((2, 4)))


@pytest.mark.parametrize("length", [1, 2, 4])
def test_vectors_of_the_wrong_length_are_refused(length):
    def wrong(x):
        return np.ones(length)

    for operator in (LinearOperator((3, 2), matvec=wrong, rmatvec=wrong, dtype=float), (wrong, wrong, (3, 2), float)):
        with pytest.raises(ValueError, match=rf"^{CALLER}: matmat of A"):
            as_matrix(operator, CALLER).matmat(np.ones((2, 2)))
    with pytest.raises(ValueError, match=rf"^{CALLER}: rmatmat of A"):
        as_matrix((wrong, lambda y: np.ones(5), (3, 2), float), CALLER).rmatmat(np.ones((3, 2)))
