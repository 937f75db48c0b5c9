"""Riccati equations: the residual is the one that is reported, the closed loop is stable, and dense solvers agree."""

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from matrix_equations import convection_diffusion, ends, mass, most_unstable, residual, rounding

import rnla
from rnla._errors import ConvergenceWarning, NotPositiveDefiniteError
from rnla._riccati import RiccatiResult, solve_riccati_lowrank

N = 60


def dense_solution(A, B, C, E=None, R=None, S=None):
    A, E = (M.toarray() if scipy.sparse.issparse(M) else M for M in (A, E))
    R = np.eye(B.shape[1]) if R is None else R
    # With its argument e the solver of SciPy leaves residuals up to 0.07 of C^T C for these problems.
    inverse = np.eye(len(A)) if E is None else np.linalg.inv(E)
    C, S = C @ inverse, None if S is None else inverse.T @ S
    return scipy.linalg.solve_continuous_are(A @ inverse, B, C.T @ C, R, s=S)


def true_residual(A, B, C, result, E=None, R=None, S=0.0, sigma=1):
    E = np.eye(A.shape[0]) if E is None else E
    R = np.eye(B.shape[1]) if R is None else R
    G = E.T @ (result.Z @ (result.Z.T @ B)) + S
    return residual(A, E, result.Z, C, sigma * G @ np.linalg.solve(R, G.T))


def distance(X, Y):
    return np.linalg.norm(X - Y, 2) / np.linalg.norm(Y, 2)


# Solutions.


@pytest.mark.parametrize("peclet", [0.0, 50.0, 400.0])
@pytest.mark.parametrize("with_mass", [False, True])
@pytest.mark.parametrize("method", ["radi", "newton", "dense"])
def test_solution_is_that_of_a_dense_solver(peclet, with_mass, method):
    A, E = convection_diffusion(N, peclet), mass(N) if with_mass else None
    B, C = ends(N)
    result = solve_riccati_lowrank(A, B, C, E=E, method=method)
    X = dense_solution(A, B, C, E)
    assert result.converged
    assert result.residual <= 1e-10
    # The residual is 1e-10 of C^T C, and the inverse of the closed loop's Lyapunov operator is at most 1: the least
    # eigenvalue of the diffusion is 10.
    assert distance(result.Z @ result.Z.T, X) <= 1e-8
    gain = B.T @ X @ (np.eye(N) if E is None else E.toarray())
    assert distance(result.K, gain) <= 1e-8
    assert most_unstable(A.toarray() - B @ result.K, E) < 0


@given(n=st.integers(1, 60), b=st.integers(1, 3), p=st.integers(1, 8), peclet=st.sampled_from([0.0, 30.0, 300.0]),
       sigma=st.sampled_from([1, -1]), with_mass=st.booleans(), sparse=st.booleans(),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_residual_is_the_one_that_is_reported(n, b, p, peclet, sigma, with_mass, sparse, seed):
    A, E = convection_diffusion(n, peclet), mass(n) if with_mass else None
    B, C = ends(n, b, p, seed)
    B /= 10 * np.linalg.norm(B, 2) * np.linalg.norm(C, 2)  # small enough for the positive equation
    A, E = (A, E) if sparse else (A.toarray(), None if E is None else E.toarray())
    result = solve_riccati_lowrank(A, B, C, E=E, positive=sigma < 0)
    assert result.converged
    found = true_residual(A, B, C, result, E, sigma=sigma)
    assert abs(found - result.residual) <= 1e-6 * result.residual + rounding(A, result.Z @ result.Z.T, C)
    closed = (A.toarray() if sparse else A) - sigma * B @ result.K
    assert most_unstable(closed, E) < 0


@pytest.mark.parametrize("method", ["radi", "newton", "dense"])
@pytest.mark.parametrize("cross", [False, True])
def test_weights_of_inputs_and_cross_terms(method, cross):
    A, (B, C) = convection_diffusion(N, 20.0), ends(N, 2, 3)
    R = np.array([[2.0, 0.5], [0.5, 1.0]])
    S = 0.3 * C.T @ np.random.default_rng(1).standard_normal((3, 2)) if cross else None
    E = mass(N)
    result = solve_riccati_lowrank(A, B, C, E=E, R=R, S=S, method=method)
    X = dense_solution(A, B, C, E, R, S)
    assert result.converged
    assert distance(result.Z @ result.Z.T, X) <= 1e-8
    gain = np.linalg.solve(R, B.T @ X @ E + (0.0 if S is None else S.T))
    assert distance(result.K, gain) <= 1e-8
    assert most_unstable(A.toarray() - B @ result.K, E) < 0
    assert true_residual(A, B, C, result, E, R, 0.0 if S is None else S) <= 1.01e-10 * np.linalg.norm(C, 2) ** 2


@pytest.mark.parametrize("method", ["radi", "dense"])
@pytest.mark.parametrize("cross", [False, True])
def test_positive_equation(method, cross):
    A, (B, C) = convection_diffusion(N, 50.0), ends(N)
    B = 0.02 * B
    S = 0.01 * C.T @ np.eye(2) if cross else np.zeros((N, 2))
    result = solve_riccati_lowrank(A, B, C, S=S, positive=True, method=method)
    assert result.converged
    assert true_residual(A, B, C, result, S=S, sigma=-1) <= 1.01e-10
    assert distance(result.K, B.T @ result.Z @ result.Z.T + S.T) <= 1e-8
    assert most_unstable(A.toarray() + B @ result.K) < 0


@pytest.mark.parametrize("method", ["radi", "dense"])
def test_positive_equation_without_solution(method):
    # The norm of the transfer function C (s - A)^-1 B at s = 0 is 20: the equation has a solution up to 1.
    A, ones = -np.eye(5), np.ones(5)
    with pytest.raises(ValueError, match="no stabilising"):
        solve_riccati_lowrank(A, 2.0 * ones, 2.0 * ones, positive=True, method=method)


def test_scalar_equation():
    # 2 a x - x^2 b^2 + c^2 = 0.
    for a, b, c in ((-1.0, 1.0, 2.0), (-100.0, 3.0, 1.0)):
        result = solve_riccati_lowrank(np.array([[a]]), np.array([b]), np.array([c]))
        assert abs(result.Z.item() ** 2 - (a + np.hypot(a, b * c)) / b**2) <= 1e-9 * c**2


# Unstable matrices.


@pytest.mark.parametrize("method", ["radi", "newton"])
@pytest.mark.parametrize("with_mass", [False, True])
def test_gain_makes_an_unstable_equation_solvable(method, with_mass):
    E = mass(N) if with_mass else scipy.sparse.eye_array(N, format="csr")
    A = convection_diffusion(N) + 100.0 * E  # three unstable eigenvalues
    B, C = ends(N)
    assert most_unstable(A, E) > 0
    weak = dense_solution(A, B, 0.1 * C, E)
    result = solve_riccati_lowrank(A, B, C, E=E, K0=B.T @ weak @ E, method=method, tol=1e-9)
    X = dense_solution(A, B, C, E)
    assert result.converged
    assert distance(result.Z @ result.Z.T, X) <= 1e-7
    assert most_unstable(A.toarray() - B @ result.K, E) < 0


@pytest.mark.parametrize("method", ["radi", "newton"])
def test_gain_without_constant_term_stabilises_with_least_energy(method):
    A, (B, _) = convection_diffusion(N) + 15.0 * scipy.sparse.eye_array(N), ends(N, 1)
    K0 = B.T @ dense_solution(A, B, np.eye(N))
    result = solve_riccati_lowrank(A, B, np.zeros((1, N)), K0=K0, method=method)
    assert result.converged
    before = np.sort(np.linalg.eigvals(A.toarray()).real)
    after = np.sort(np.linalg.eigvals(A.toarray() - B @ result.K).real)
    assert before[-1] > 0
    # The unstable eigenvalue is mirrored, the others stay.
    assert np.abs(np.sort([*before[:-1], -before[-1]]) - after).max() <= 1e-9 * np.abs(before).max()


def test_unstable_matrix_without_gain_raises():
    B, C = ends(N)
    A = convection_diffusion(N) + 1e4 * scipy.sparse.eye_array(N)
    for method in ("radi", "newton"):
        with pytest.raises(ValueError, match=r"diverges .* give a stabilising gain K0"):
            solve_riccati_lowrank(A, B, C, method=method)
    with pytest.raises(ValueError, match="give a stabilising gain K0"):
        solve_riccati_lowrank(A, B, C, K0=np.zeros((2, N)))


def test_few_unstable_eigenvalues_are_solved_or_refused():
    B, C = ends(N)
    for shift in (15.0, 40.0, 100.0):
        A = convection_diffusion(N) + shift * scipy.sparse.eye_array(N)
        try:
            result = solve_riccati_lowrank(A, B, C, tol=1e-8)
        except ValueError:
            continue
        assert result.converged
        assert most_unstable(A.toarray() - B @ result.K) < 0
        assert distance(result.Z @ result.Z.T, dense_solution(A, B, C)) <= 1e-7


def test_shift_may_be_an_eigenvalue_that_the_gain_has_moved():
    # The gain 2 mirrors the eigenvalue 1 to -1, which is then the best shift: A^T + s is singular.
    for method in ("radi", "newton"):
        result = solve_riccati_lowrank(np.eye(1), np.ones(1), np.zeros(1), K0=np.array([[2.0]]), method=method)
        assert result.converged
        assert abs(result.Z.item() ** 2 - 2) <= 1e-9


def test_dense_method_needs_no_stability():
    A, (B, C) = convection_diffusion(N) + 100.0 * scipy.sparse.eye_array(N), ends(N)
    result = solve_riccati_lowrank(A, B, C, method="dense", tol=1e-8)
    assert distance(result.Z @ result.Z.T, dense_solution(A, B, C)) <= 1e-8
    unreachable = np.zeros((N, 1))
    with pytest.raises(ValueError, match="no stabilising"):
        solve_riccati_lowrank(A, unreachable, C, method="dense")


# Options.


def test_formats_and_layouts_give_one_solution():
    A, E, (B, C) = convection_diffusion(30, 10.0), mass(30), ends(30, 1, 1)
    X = dense_solution(A, B, C, E)
    for form in ("csr", "csc", "coo", "bsr", "dia"):
        Z = solve_riccati_lowrank(A.asformat(form), B[:, 0], C[0], E=E.asformat(form)).Z
        assert distance(Z @ Z.T, X) <= 1e-8
    for left, right in ((A.toarray(), E), (A, E.toarray()), (np.asfortranarray(A.toarray()), E.toarray())):
        Z = solve_riccati_lowrank(left, B, C, E=right).Z
        assert distance(Z @ Z.T, X) <= 1e-8
    assert distance(solve_riccati_lowrank(A, B.tolist(), C.tolist(), E=E).K, B.T @ X @ E) <= 1e-8


def test_single_precision_stays():
    A, (B, C) = convection_diffusion(30), ends(30)
    single = solve_riccati_lowrank(A.astype(np.float32), B.astype(np.float32), C.astype(np.float32))
    assert single.Z.dtype == single.K.dtype == np.float32
    double = solve_riccati_lowrank(A.astype(np.float32), B.astype(np.float32), C)
    assert double.Z.dtype == double.K.dtype == np.float64
    X, Y = (Z @ Z.T for Z in (single.Z.astype(float), double.Z))
    assert distance(X, Y) <= 100 * np.finfo(np.float32).eps


def test_integers_are_computed_in_double_precision():
    A = np.diag([-1, -2, -3])
    result = solve_riccati_lowrank(A, np.ones(3, dtype=int), np.ones(3, dtype=int))
    assert result.Z.dtype == np.float64
    assert result.converged


def test_given_shifts_are_used_in_turn():
    A, (B, C) = convection_diffusion(N), ends(N)
    bounds = np.abs(np.linalg.eigvalsh(A.toarray()))[[-1, 0]]
    shifts = -rnla.adi_shifts(*bounds, 12) if hasattr(rnla, "adi_shifts") else -np.geomspace(*bounds, 12)
    result = solve_riccati_lowrank(A, B, C, shifts=shifts, max_iter=100)
    assert result.converged
    complex_ones = solve_riccati_lowrank(convection_diffusion(N, 400.0), B, C, max_iter=500,
                                         shifts=[-1e3, -4e4 + 4e4j, -4e4 - 4e4j, -1e4 + 2e4j])  # fmt: skip
    assert complex_ones.converged


def test_max_rank_keeps_the_leading_columns():
    A, (B, C) = convection_diffusion(N), ends(N)
    full = solve_riccati_lowrank(A, B, C)
    cut = solve_riccati_lowrank(A, B, C, max_rank=5)
    values = np.linalg.eigvalsh(full.Z @ full.Z.T)[::-1]
    assert cut.Z.shape == (N, 5)
    assert cut.converged
    assert "max_rank = 5" in cut.message
    assert abs(np.linalg.norm(full.Z @ full.Z.T - cut.Z @ cut.Z.T, 2) - values[5]) <= 1e-12 * values[0]
    assert abs(cut.residual - true_residual(A, B, C, cut)) <= 1e-6 * cut.residual
    assert np.array_equal(cut.K, full.K)


def test_zero_constant_term_has_the_zero_solution():
    A, (B, _) = convection_diffusion(N), ends(N)
    for method in ("radi", "newton"):
        result = solve_riccati_lowrank(A, B, np.zeros((2, N)), method=method)
        assert (result.Z.shape, result.converged, result.n_iter, result.residual) == ((N, 0), True, 0, 0.0)
        assert not result.K.any()
    no_input = solve_riccati_lowrank(A, np.zeros((N, 1)), np.ones(N))
    assert no_input.converged
    assert not no_input.K.any()


@pytest.mark.parametrize("scale", [1e-100, 1e-8, 1e8, 1e100])
def test_scale_changes_nothing_but_the_solution(scale):
    A, (B, C) = convection_diffusion(N), ends(N)
    plain = solve_riccati_lowrank(A, B, C)
    scaled = solve_riccati_lowrank(A, B / scale, C * scale)
    assert scaled.converged
    assert distance(scaled.Z / scale @ (scaled.Z / scale).T, plain.Z @ plain.Z.T) <= 1e-8


def test_history_and_callback():
    A, (B, C) = convection_diffusion(N), ends(N)
    seen = []
    result = solve_riccati_lowrank(A, B, C, callback=seen.append)
    assert tuple(seen) == result.history
    assert [record.iteration for record in seen] == list(range(1, result.n_iter + 1))
    assert seen[-1].error <= 1e-10

    def stop(record):
        if record.iteration == 3:
            raise StopIteration

    stopped = solve_riccati_lowrank(A, B, C, callback=stop)
    assert (stopped.converged, stopped.n_iter, stopped.message) == (False, 3, "ended by the callback")
    # What there is satisfies the equation up to the residual that is reported.
    assert abs(stopped.residual - true_residual(A, B, C, stopped)) <= 1e-6 * stopped.residual


def test_newton_converges_quadratically():
    A, (B, C) = convection_diffusion(N), ends(N)
    errors = [record.error for record in solve_riccati_lowrank(A, B, C, method="newton").history]
    assert len(errors) <= 4


def test_failures_are_reported():
    A, (B, C) = convection_diffusion(N), ends(N)
    with pytest.warns(ConvergenceWarning, match="max_iter = 4 reached"):
        result = solve_riccati_lowrank(A, B, C, max_iter=4)
    assert not result.converged
    assert "NOT converged" in repr(result)
    assert abs(result.residual - true_residual(A, B, C, result)) <= 1e-6 * result.residual
    with pytest.warns(ConvergenceWarning, match="rounding"):
        result = solve_riccati_lowrank(A, B, C, tol=1e-17)
    assert not result.converged


def test_repr_says_what_matters():
    result = solve_riccati_lowrank(-np.eye(3), np.ones(3), np.ones(3))
    assert isinstance(result, RiccatiResult)
    assert repr(result).startswith("RiccatiResult(Z(3, 1), K(1, 3), float64)\n  converged")


# Bad arguments.

GOOD = {"A": -np.eye(4), "B": np.ones((4, 2)), "C": np.ones((1, 4))}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"A": np.ones((4, 3))}, ValueError, "A must be square"),
        ({"A": np.ones(4)}, ValueError, "A must be square"),
        ({"A": -1j * np.eye(4)}, TypeError, "A must have a real dtype"),
        ({"A": "x"}, TypeError, "A must be a SciPy sparse matrix or a NumPy array"),
        ({"A": np.ma.masked_less(-np.eye(4), 0)}, TypeError, "A must be a SciPy"),
        ({"A": np.full((4, 4), np.nan)}, ValueError, "A must be finite"),
        ({"A": scipy.sparse.csr_array(np.diag([1.0, np.inf, 1.0, 1.0]))}, ValueError, "A must be finite"),
        ({"B": np.ones(3)}, ValueError, r"B must have shape \(4, k\)"),
        ({"B": np.full(4, np.nan)}, ValueError, "B must be finite"),
        ({"B": scipy.sparse.eye_array(4)}, TypeError, "B must be a NumPy array"),
        ({"C": np.ones((4, 1))}, ValueError, r"C must have shape \(k, 4\)"),
        ({"C": np.full(4, 1j)}, TypeError, "C must have a real dtype"),
        ({"E": np.ones((4, 4))}, ValueError, "E must be nonsingular"),
        ({"E": scipy.sparse.csr_array(np.diag([1.0, 0.0, 1.0, 1.0]))}, ValueError, "E must be nonsingular"),
        ({"E": np.eye(3)}, ValueError, "E must have the shape of A"),
        ({"R": np.eye(3)}, ValueError, "R must have shape"),
        ({"R": np.array([[1.0, 2.0], [0.0, 1.0]])}, ValueError, "R must be symmetric"),
        ({"R": np.diag([1.0, -1.0])}, NotPositiveDefiniteError, "R must be positive definite"),
        ({"S": np.ones((4, 1))}, ValueError, r"S must have shape \(4, 2\)"),
        ({"S": 5 * np.ones((4, 2))}, ValueError, "must be positive semidefinite"),
        ({"K0": np.ones((1, 4))}, ValueError, r"K0 must have shape \(2, 4\)"),
        ({"K0": np.ones((2, 4)), "positive": True}, ValueError, "positive must be False"),
        ({"method": "newton", "positive": True}, ValueError, "positive must be False"),
        ({"method": "sign"}, ValueError, "method must be one of"),
        ({"shifts": "wachspress"}, ValueError, "shifts must be 'projection'"),
        ({"shifts": [1.0]}, ValueError, "negative real parts"),
        ({"shifts": 3}, TypeError, "shifts must be"),
        ({"tol": 0.0}, ValueError, "tol must be positive"),
        ({"tol": "1e-8"}, TypeError, "tol must be"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
        ({"max_rank": 1.5}, TypeError, "max_rank must be an integer"),
        ({"callback": 3}, TypeError, "callback must be callable"),
    ],
)
def test_bad_arguments_are_named(change, error, match):
    arguments = GOOD | change
    A, B, C = (arguments.pop(name) for name in "ABC")
    with pytest.raises(error, match=f"rnla.solve_riccati_lowrank: .*{match}"):
        solve_riccati_lowrank(A, B, C, **arguments)
