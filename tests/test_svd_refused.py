"""`svd` refuses values that are not finite, wherever they appear, and arguments out of range."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import rnla
from rnla.testing import CountingOperator, matrix_with_spectrum, spectrum

METHODS = ("auto", "dense", "qr", "rsi", "krylov", "gram", "rowstream", "gnystrom")


@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [(0, 0), (89, 69), (89, slice(None)), (slice(None), 69)])
def test_one_entry_anywhere_is_enough(dtype, method, place):
    A = matrix_with_spectrum(90, 70, spectrum("exp", 70), rng=0, dtype=dtype)
    A[place] = np.nan
    with pytest.raises(ValueError, match=r"^rnla\.svd: A must be finite"):
        rnla.svd(A, 5, method=method, rng=0)


class Failing(CountingOperator):
    """An operator whose product number `bad` (none if None) has one entry that is not finite."""

    def __init__(self, A, bad, value):
        super().__init__(A)
        self.bad, self.value = bad, value

    def _spoiled(self, Y):
        if self.passes - 1 == self.bad:
            Y = Y.copy()
            Y[Y.shape[0] // 2, -1] = self.value
        return Y

    def matmat(self, X):
        return self._spoiled(super().matmat(X))

    def rmatmat(self, Y):
        return self._spoiled(super().rmatmat(Y))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("call", [
    *({"function": "svd", "k": 12, "method": method} for method in METHODS if method != "rowstream"),
    {"function": "svd", "k": 12, "method": "gram", "block_size": 4, "verify": True},
    {"function": "svd", "k": 12, "method": "krylov", "block_size": 4, "verify": True},
    {"function": "svd", "k": 12, "center": True},
    {"function": "svd", "rtol": 0.1},
    {"function": "svd", "rtol": 1e-7},  # below what a difference of squares resolves: the error is sampled
    {"function": "qb", "k": 12},
    {"function": "qb", "rtol": 0.1, "norm": 2},
    {"function": "range_finder", "k": 12},
], ids=lambda call: "-".join(str(x) for x in call.values()))  # fmt: skip
def test_every_product_of_an_operator_is_checked(value, call):
    A = matrix_with_spectrum(120, 100, spectrum("exp", 100), rng=0)
    function, k, options = getattr(rnla, call["function"]), call.get("k"), dict(call)
    options.pop("k", None)
    options.pop("function")
    healthy = Failing(A, None, value)
    function(healthy, k, rng=0, **options)
    missed = []
    for bad in range(healthy.passes):
        try:
            function(Failing(A, bad, value), k, rng=0, **options)
            missed.append(bad)
        except ValueError as error:
            assert str(error).startswith(f"rnla.{call['function']}: A must be finite")  # noqa: PT017 - in a loop
    assert missed == []


# Arguments out of range.

INVALID = {
    "k zero": ({"k": 0}, "k must be in 1..20 for A of shape (30, 20); got 0."),
    "k too large": ({"k": 25}, "k must be in 1..20 for A of shape (30, 20); got 25."),
    "k negative": ({"k": -1}, "k must be in 1..20"),
    "nothing asked": ({"k": None}, "one of k, rtol and atol must be given; got none."),
    "rtol negative": ({"rtol": -1e-3}, "rtol must be finite and not negative; got -0.001."),
    "rtol nan": ({"rtol": float("nan")}, "rtol must be finite and not negative; got nan."),
    "atol infinite": ({"atol": float("inf")}, "atol must be finite and not negative; got inf."),
    "tol negative": ({"tol": -1}, "tol must be finite and not negative; got -1."),
    "tol nan": ({"tol": float("nan")}, "tol must be finite"),
    "method": ({"method": "lanczos"}, "method must be one of 'auto', 'dense'"),
    "verify": ({"verify": "yes"}, "verify must be one of True, False, 'auto'; got 'yes'."),
    "sketch": ({"sketch": "srht"}, "sketch must be one of 'gaussian'"),
    "n_oversamples": ({"n_oversamples": -1}, "n_oversamples must be at least 0; got -1."),
    "n_iter": ({"n_iter": -2}, "n_iter must be at least 0; got -2."),
    "block_size": ({"block_size": 0}, "block_size must be at least 1; got 0."),
    "max_passes": ({"max_passes": 0}, "max_passes must be at least 1; got 0."),
    "max_basis": ({"k": 5, "max_basis": 4}, "max_basis must be at least k = 5; got 4."),
    "seed": ({"rng": -1}, "rng as a seed must be a non-negative int; got -1."),
}
WRONG_TYPE = {
    "k float": ({"k": 3.0}, "k must be an integer; got float 3.0."),
    "k bool": ({"k": True}, "k must be an integer; got bool True."),
    "k string": ({"k": "3"}, "k must be an integer; got str '3'."),
    "rtol string": ({"rtol": "1e-3"}, "rtol must be a real number; got str '1e-3'."),
    "rtol bool": ({"rtol": True}, "rtol must be a real number"),
    "atol complex": ({"atol": 1j}, "atol must be a real number"),
    "tol none": ({"tol": None}, "tol must be a real number; got NoneType None."),
    "n_iter float": ({"n_iter": 1.5}, "n_iter must be an integer; got float 1.5."),
    "n_iter auto": ({"n_iter": "auto"}, "n_iter must be an integer; got str 'auto'."),
    "block_size": ({"block_size": "auto"}, "block_size must be an integer; got str 'auto'."),
    "max_passes": ({"max_passes": 3.5}, "max_passes must be an integer; got float 3.5."),
    "rng string": ({"rng": "seed"}, "rng must be None, a non-negative int"),
    "rng bool": ({"rng": False}, "rng must be None, a non-negative int"),
    "callback": ({"callback": 1}, "callback must be callable or None; got int."),
}


@pytest.mark.parametrize("case", [*INVALID, *WRONG_TYPE])
@pytest.mark.parametrize("function", ["svd", "svdvals"])
def test_bad_arguments_are_refused_before_any_work(case, function):
    options, message = INVALID.get(case) or WRONG_TYPE[case]
    A = CountingOperator(np.ones((30, 20)))
    with pytest.raises(ValueError if case in INVALID else TypeError) as caught:
        getattr(rnla, function)(A, **{"k": 3, **options})
    assert str(caught.value).startswith(f"rnla.{function}: {message}")
    assert A.passes == 0


@pytest.mark.parametrize(("A", "error"), [
    (np.ones(3), ValueError), (np.ones((2, 2, 2)), ValueError), (np.ones((0, 3)), ValueError),
    (np.ones((3, 0)), ValueError), ([[]], ValueError), (sp.csr_array((0, 3)), ValueError),
    (np.ones((3, 2), object), TypeError), (np.ones((3, 2), str), TypeError), (None, TypeError), ("A.npy", TypeError),
    (np.ma.masked_array(np.ones((3, 2))), TypeError), (np.ones((3, 2), "M8[s]"), TypeError), (3.0, TypeError),
])  # fmt: skip
@pytest.mark.parametrize("function", ["svd", "svdvals", "svds", "randomized_svd", "qb", "range_finder"])
def test_what_is_no_matrix_is_refused(A, error, function):
    with pytest.raises(error, match=rf"^rnla\.{function}: (A|M) must "):
        getattr(rnla, function)(A, 1)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_numpy_matrix_is_refused():
    with pytest.raises(TypeError, match=r"^rnla\.svd: A must be a plain array"):
        rnla.svd(np.asmatrix(np.ones((3, 2))), 1)


def test_outputs_of_operators_of_the_wrong_shape_are_refused():
    for wrong in (lambda X: np.ones((29, X.shape[1])), lambda X: np.ones(30), lambda X: None, lambda X: X[:1]):
        A = CountingOperator(np.ones((90, 70)))
        A.matmat = wrong
        with pytest.raises(ValueError, match=r"^rnla\.svd: matmat of A"):
            rnla.svd(A, 3)
        A = CountingOperator(np.ones((90, 70)))
        A.rmatmat = wrong
        with pytest.raises(ValueError, match=r"^rnla\.svd: rmatmat of A"):
            rnla.svd(A, 3)


def test_an_operator_without_adjoint_is_refused():
    A = LinearOperator((90, 70), matvec=lambda x: np.ones(90) * x.sum(), dtype=float)
    with pytest.raises(TypeError, match=r"^rnla\.svd: A must provide rmatvec"):
        rnla.svd(A, 3)


def test_one_pass_needs_rows_or_columns():
    for A in (aslinearoperator(np.eye(90)), sp.eye_array(90, format="csr")):
        with pytest.raises(ValueError, match=r"^rnla\.svd: method 'rowstream' needs the rows or columns of A"):
            rnla.svd(A, 3, method="rowstream")
