"""The Riccati equation of a corrected square root: both signs, every kind of base, every library."""

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnla._backend import to_host
from rnla._errors import ConvergenceWarning, NotPositiveDefiniteError
from rnla._rational import correction_rank
from rnla._sqrt_riccati import solve_sqrt_riccati
from rnla.testing import haar_basis

VALUES = ["numpy", "strict", "strict-device1", "torch"]  # places whose arrays have values


def problem(n, k, kappa, dtype, seed):
    """Return a diagonal, and columns that may be added to it or, after the root of it, taken away."""
    rng = np.random.default_rng(seed)
    d = kappa ** rng.uniform(-0.5, 0.5, n)
    Z = rng.standard_normal((n, k))
    if np.dtype(dtype).kind == "c":
        Z = Z + 1j * rng.standard_normal((n, k))
    Z = np.sqrt(d)[:, None] * Z
    return d, (Z * (0.7 / (np.linalg.norm(Z / np.sqrt(d)[:, None], 2) or 1.0))).astype(dtype)


def relative_residual(S, X, Z, positive):
    return (
        np.linalg.norm(S @ X + X @ S + (-1 if positive else 1) * X @ X - Z @ Z.conj().T, 2) / np.linalg.norm(Z, 2) ** 2
    )


class RootByEigenvalues:
    """A base that is known by solutions of shifted systems only."""

    def __init__(self, A):
        self.shape, self.dtype = A.shape, A.dtype
        d, self.Q = np.linalg.eigh(A)
        self.bounds, self.S = (d[0], d[-1]), np.sqrt(d)

    def root_shift_solve(self, p, X):
        return self.Q @ ((self.Q.conj().T @ X) / (self.S + p)[:, None])


@given(n=st.integers(1, 40), k=st.integers(0, 3), kappa=st.sampled_from([1.0, 1e3, 1e6]), positive=st.booleans(),
       dtype=st.sampled_from(["float64", "complex128"]), kind=st.sampled_from(["diagonal", "dense", "object"]),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_equation_holds_for_every_base(n, k, kappa, positive, dtype, kind, seed):
    d, Z = problem(n, k, kappa, dtype, seed)
    if kind == "diagonal":
        base, A = d, np.diag(d)
    else:
        Q = haar_basis(n, n, rng=seed).astype(dtype)
        A, Z = (Q * d) @ Q.conj().T, Q @ Z
        A = (A + A.conj().T) / 2
        base = A if kind == "dense" else RootByEigenvalues(A)
    P, D, residual = solve_sqrt_riccati(base, Z, positive=positive)
    assert residual <= 1e-10
    assert np.all(D > 0)
    assert P.shape == (n, len(D))
    if k:
        values, Q = np.linalg.eigh(A)
        S, X = (Q * np.sqrt(np.abs(values))) @ Q.conj().T, (P * D) @ P.conj().T
        # An eigenvalue decomposition has the root of A to eps times the norm of A over the least root.
        rounding = 1000 * n * np.finfo(float).eps * values[-1] / np.linalg.norm(Z, 2) ** 2 * (1 + kappa**0.5)
        assert relative_residual(S, X, Z, positive) <= 1.01e-10 + rounding
        root = S + (-X if positive else X)
        assert np.linalg.eigvalsh(root)[0] > 0


@pytest.mark.parametrize("kappa", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("positive", [False, True])
def test_number_of_columns_is_that_of_the_theory(kappa, positive):
    d, Z = problem(400, 1, kappa, "float64", 0)
    _, D, _ = solve_sqrt_riccati(d, Z, positive=positive, tol=1e-8)
    # The interval of the roots has the ratio sqrt(kappa); ADI halves the exponent that quadrature has.
    assert len(D) <= 2 * correction_rank(4 * kappa, 1, 1e-8)


@pytest.mark.parametrize("place", VALUES, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_result_stays_in_the_library_of_the_input(place, dtype):
    xp, device = place
    host_d, host_Z = problem(20, 2, 1e2, dtype, 0)
    d = xp.asarray(host_d, dtype=xp.float32 if dtype in ("float32", "complex64") else xp.float64, device=device)
    Z = xp.asarray(host_Z, device=device)
    P, D, _ = solve_sqrt_riccati(d, Z, tol=1e-6)
    assert P.dtype == Z.dtype
    assert D.dtype == d.dtype
    assert array_api_compat.device(P) == array_api_compat.device(D) == device
    X = (to_host(P) * to_host(D)) @ to_host(P).conj().T
    eps = float(xp.finfo(d.dtype).eps)
    assert relative_residual(np.diag(np.sqrt(host_d)), X, host_Z, False) <= 1e-6 + 1000 * eps
    dense = xp.asarray(np.diag(host_d).astype(dtype), device=device)
    Q, E, _ = solve_sqrt_riccati(dense, Z, tol=1e-6)
    Y = (to_host(Q) * to_host(E)) @ to_host(Q).conj().T
    assert np.linalg.norm(X - Y) <= 1e4 * eps * np.linalg.norm(X) + 1e-5 * np.linalg.norm(X)


def test_one_column_and_integers():
    P, D, _ = solve_sqrt_riccati(np.array([1, 4, 9]), np.array([1, 2, 3]))
    z = np.array([1.0, 2.0, 3.0])
    root = np.diag([1.0, 2.0, 3.0]) + (P * D) @ P.T
    assert np.allclose(root @ root, np.diag([1.0, 4.0, 9.0]) + np.outer(z, z), rtol=0, atol=1e-8)
    P, D, residual = solve_sqrt_riccati(np.ones(3), np.zeros((3, 2)))
    assert (P.shape, D.shape, residual) == ((3, 0), (0,), 0.0)


def test_impossible_downdate_tells_the_gap():
    with pytest.raises(NotPositiveDefiniteError, match=r"gap is -1.0e\+00") as caught:
        solve_sqrt_riccati(np.array([1.0, 2.0]), np.array([1.0, np.sqrt(2.0)]), positive=True)
    assert abs(caught.value.gap + 1) <= 1e-15


@pytest.mark.parametrize("gap", [0.5, 1e-4, 1e-8])
def test_downdate_with_a_small_gap(gap):
    d = np.geomspace(1e-2, 1.0, 30)
    z = np.sqrt(d) * np.sqrt((1 - gap) / 30)
    P, D, _ = solve_sqrt_riccati(d, z, positive=True)
    assert relative_residual(np.diag(np.sqrt(d)), (P * D) @ P.T, z[:, None], True) <= 1.01e-10


def test_tolerance_out_of_reach_is_reported():
    base = RootByEigenvalues(np.diag(np.geomspace(1.0, 1e8, 50)))
    base.bounds = (1.0, 1.0)  # wrong: the shifts are useless
    with pytest.warns(ConvergenceWarning, match="relative residual"):
        solve_sqrt_riccati(base, 1e-3 * np.ones((50, 1)))


@pytest.mark.parametrize(
    ("base", "Z", "error", "match"),
    [
        (np.ones(3), np.ones(2), ValueError, r"base must have shape \(2,\) or \(2, 2\)"),
        (np.array([1.0, -1.0]), np.ones(2), ValueError, "base must be real and positive; entry 1"),
        (np.array([1.0, np.nan]), np.ones(2), ValueError, "base must be finite"),
        (np.ones(2), np.array([1.0, np.inf]), ValueError, "Z must be finite"),
        (np.ones(2), np.ones((2, 1, 1)), ValueError, "Z must have shape"),
        (np.ones(2), [1.0, 1.0], TypeError, "Z must be an array"),
        ([1.0, 1.0], np.ones(2), TypeError, "base must be an array"),
        (np.array([[1.0, 1.0], [0.0, 1.0]]), np.ones(2), ValueError, "base must be Hermitian"),
        (np.diag([1.0, -1.0]), np.ones(2), NotPositiveDefiniteError, "base must be positive definite"),
    ],
)
def test_bad_arguments_are_named(base, Z, error, match):
    with pytest.raises(error, match=f"rnla.solve_sqrt_riccati: {match}"):
        solve_sqrt_riccati(base, Z)
    for tol in (0.0, 1.0):
        with pytest.raises(ValueError, match="tol must be in"):
            solve_sqrt_riccati(np.ones(2), np.ones(2), tol=tol)
