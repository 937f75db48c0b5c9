"""Lyapunov equations: the residual is the one that is reported, and dense solvers agree."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from matrix_equations import convection_diffusion, ends, mass, residual, rounding

from rnla._errors import ConvergenceWarning
from rnla._lyapunov import LyapunovResult, solve_lyapunov_lowrank

N = 120


@given(n=st.integers(1, 60), p=st.integers(1, 8), peclet=st.sampled_from([0.0, 30.0, 300.0]), with_mass=st.booleans(),
       method=st.sampled_from(["adi", "dense"]), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_residual_is_the_one_that_is_reported(n, p, peclet, with_mass, method, seed):
    A, E = convection_diffusion(n, peclet), mass(n) if with_mass else None
    C = ends(n, 1, p, seed)[1]
    result = solve_lyapunov_lowrank(A, C, E=E, method=method)
    assert result.converged
    found = residual(A, np.eye(n) if E is None else E, result.Z, C, 0.0)
    assert abs(found - result.residual) <= 1e-6 * result.residual + rounding(A, result.Z @ result.Z.T, C)


@pytest.mark.parametrize("peclet", [0.0, 50.0, 400.0])
def test_solution_is_that_of_a_dense_solver(peclet):
    A, C = convection_diffusion(N, peclet), ends(N)[1]
    result = solve_lyapunov_lowrank(A, C)
    X = scipy.linalg.solve_continuous_lyapunov(A.toarray().T, -C.T @ C)
    # The least eigenvalue of the symmetric part of A is 10: the residual is divided by 20 at least.
    bound = 1e-10 * np.linalg.norm(C, 2) ** 2 / 20
    assert np.linalg.norm(result.Z @ result.Z.T - X, 2) <= bound + rounding(A, X, C) * np.linalg.norm(X, 2)
    assert len(result.history) == result.n_iter
    assert isinstance(result, LyapunovResult)
    assert repr(result).startswith(f"LyapunovResult(Z({N}, ")


def test_unstable_matrices_are_refused():
    C = ends(N)[1]
    for shift in (15.0, 1000.0):
        A = convection_diffusion(N) + shift * scipy.sparse.eye_array(N)
        for method in ("adi", "dense"):
            with pytest.raises(ValueError, match=r"rnla.solve_lyapunov_lowrank: A must be stable"):
                solve_lyapunov_lowrank(A, C, method=method)
    with pytest.raises(ValueError, match="A must be stable"):
        solve_lyapunov_lowrank(np.eye(2), np.ones(2), shifts=[-1.0])  # the shifted matrix is singular


def test_zero_constant_term_rank_and_failure():
    A, C = convection_diffusion(N), ends(N)[1]
    zero = solve_lyapunov_lowrank(A, np.zeros(N))
    assert (zero.Z.shape, zero.converged, zero.n_iter, zero.residual) == ((N, 0), True, 0, 0.0)
    cut = solve_lyapunov_lowrank(A, C, max_rank=4)
    assert cut.Z.shape == (N, 4)
    with pytest.warns(ConvergenceWarning, match="max_iter = 3 reached"):
        assert not solve_lyapunov_lowrank(A, C, max_iter=3).converged


def test_other_equation_by_transposition():
    A, E, (B, _) = convection_diffusion(N, 50.0), mass(N), ends(N)
    Z = solve_lyapunov_lowrank(A.T, B.T, E=E.T).Z
    assert residual(A.T, E.T, Z, B.T, 0.0) <= 1.01e-10


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((np.ones((3, 2)), np.ones(3)), ValueError, "A must be square"),
        ((-np.eye(3), np.ones(2)), ValueError, "C must have shape"),
        ((-np.eye(3), np.full(3, np.inf)), ValueError, "C must be finite"),
        ((-np.eye(3), "x"), TypeError, "C must be a NumPy array"),
    ],
)
def test_bad_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=f"rnla.solve_lyapunov_lowrank: {match}"):
        solve_lyapunov_lowrank(*arguments)
