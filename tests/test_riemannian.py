"""The fixed-rank manifold: projections are projections, the retraction is the best approximation, descent arrives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES

from rnla import _riemannian as manifold
from rnla._backend import real_dtype, to_host
from rnla._riemannian import Point, Tangent
from rnla.testing import assert_orthonormal

VALUES = pytest.mark.parametrize("place", ["numpy", "strict", "strict-device1", "torch"], indirect=True)
SHAPES = st.tuples(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1))


def numpy_point(m, n, k, dtype=np.float64, key=1):
    import array_api_compat

    xp = array_api_compat.array_namespace(np.empty(0))
    return manifold.random_point(m, n, k, key, xp=xp, dtype=np.dtype(dtype), device="cpu")


def dense(x):
    return (to_host(x.U) * to_host(x.s)) @ to_host(x.V).conj().T


def dense_tangent(x, xi):
    left, right = manifold.factors_of(x, xi)
    return to_host(left) @ to_host(right)


def draw(m, n, dtype, seed):
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((m, n))
    return (Z + 1j * rng.standard_normal((m, n)) if np.dtype(dtype).kind == "c" else Z).astype(dtype)


def best(A, k):
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    return (U[:, :k] * s[:k]) @ Vh[:k]


def tolerance(dtype, m, n):
    return 50 * float(np.finfo(dtype).eps) * max(m, n)


def assert_point(x, k):
    assert_orthonormal(x.U)
    assert_orthonormal(x.V)
    s = to_host(x.s)
    assert s.shape == (k,)
    assert np.all(np.diff(s) <= 0)
    assert np.all(s >= 0)


@given(shape=SHAPES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32 - 1))
def test_projection_is_an_orthogonal_projection(shape, dtype, seed):
    m, n, k = shape[0], shape[1], 1 + round(shape[2] * (min(shape[:2]) - 1))
    x = numpy_point(m, n, k, dtype, seed)
    Z, Y = draw(m, n, dtype, seed), draw(m, n, dtype, seed + 1)
    tol = tolerance(dtype, m, n) * float(max(np.linalg.norm(Z), np.linalg.norm(Y), 1)) ** 2
    xi, eta = manifold.project(x, Z), manifold.project(x, Y)
    PZ, PY = dense_tangent(x, xi), dense_tangent(x, eta)
    assert PZ.dtype.kind == np.dtype(dtype).kind
    assert np.abs(dense_tangent(x, manifold.project(x, PZ.astype(dtype))) - PZ).max() <= tol
    assert abs(np.vdot(PZ, Y) - np.vdot(Z, PY)) <= tol
    assert abs(np.linalg.norm(PZ) - manifold.norm(xi)) <= tol
    assert abs(np.vdot(PZ, PY).real - manifold.inner(xi, eta)) <= tol
    assert np.abs(x.U.conj().T @ xi.Up).max() <= tol
    assert np.abs(x.V.conj().T @ xi.Vp).max() <= tol
    X = dense(x)
    assert np.abs(dense_tangent(x, manifold.project(x, X.astype(dtype))) - X).max() <= tol * k
    assert manifold.distance_to_tangent_space(x, Z) == pytest.approx(np.linalg.norm(Z - PZ), abs=tol)


@given(
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["full", "rank one", "only M", "zero", "rounding"]),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_retraction_is_the_best_approximation(shape, dtype, kind, size, seed):
    m, n, k = shape[0], shape[1], 1 + round(shape[2] * (min(shape[:2]) - 1))  # 2 k > m is drawn too
    x = numpy_point(m, n, k, dtype, seed)
    xi = manifold.times(size, manifold.random_tangent(x, seed))
    if kind == "rank one":
        xi = Tangent(xi.M, xi.Up[:, :1] @ np.ones((1, k), dtype), xi.Vp[:, :1] @ np.ones((1, k), dtype))
    if kind in ("only M", "zero"):
        xi = Tangent(xi.M * (kind == "only M"), 0 * xi.Up, 0 * xi.Vp)
    if kind == "rounding":  # Up with rounding along U, as sums of many tangent vectors have
        xi = Tangent(xi.M, xi.Up + float(np.finfo(dtype).eps) * size * x.U, xi.Vp)
    target = dense(x) + dense_tangent(x, xi)
    y = manifold.retract(x, xi)
    assert_point(y, k)
    assert y.U.dtype == np.dtype(dtype)
    error = np.linalg.norm(target - dense(y))
    scale = tolerance(dtype, m, n) * (k + size)
    assert error <= np.linalg.norm(target - best(target, k)) + scale


def test_retraction_agrees_to_second_order():
    x = numpy_point(60, 40, 5)
    xi = manifold.random_tangent(x, 3)
    errors = []
    for t in (1e-1, 1e-2, 1e-3, 1e-4):
        moved = dense(manifold.retract(x, manifold.times(t, xi)))
        errors.append(np.linalg.norm(moved - dense(x) - t * dense_tangent(x, xi)) / t**2)
    # The third order adds O(t); at t = 1e-4 rounding of 1e-15 ||X|| is 1e-6 of t**2.
    assert errors == pytest.approx([errors[-1]] * 4, rel=0.1)
    assert errors[1:] == pytest.approx([errors[-1]] * 3, rel=0.02)


def test_transport_projects_at_the_new_point():
    x, y = numpy_point(30, 20, 3, key=1), numpy_point(30, 20, 3, key=2)
    xi = manifold.random_tangent(x, 4)
    expected = manifold.project(y, dense_tangent(x, xi))
    for part, exact in zip(manifold.transport(x, xi, y), expected, strict=True):
        assert np.abs(part - exact).max() <= 1e-13
    assert manifold.norm(manifold.transport(x, xi, x)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_oblique_projection(dtype):
    x = numpy_point(50, 40, 4, dtype)
    rng = np.random.default_rng(0)
    I, J = (np.sort(rng.choice(side, 12, replace=False)) for side in (50, 40))
    Z = draw(50, 40, dtype, 1)

    def oblique(Z):
        return dense_tangent(x, manifold.project_sampled(x, Z[:, J], Z[I], I, J))

    PZ = oblique(Z)
    tol = 1e-12 * np.linalg.norm(PZ)
    assert np.abs(oblique(PZ) - PZ).max() <= tol
    assert manifold.distance_to_tangent_space(x, PZ) <= 10 * tol
    tangent = dense_tangent(x, manifold.random_tangent(x, 5))
    assert np.abs(oblique(tangent) - tangent).max() <= tol
    other = draw(50, 40, dtype, 2)  # nothing but the rows I and the columns J is seen
    other[I], other[:, J] = Z[I], Z[:, J]
    assert np.array_equal(oblique(other), PZ)
    with_all = manifold.project_sampled(x, Z, Z, np.arange(50), np.arange(40))
    assert np.abs(dense_tangent(x, with_all) - dense_tangent(x, manifold.project(x, Z))).max() <= tol


def test_oblique_projection_is_the_derivative_of_the_truncated_cur_map():
    x = numpy_point(50, 40, 4)
    I, J = np.arange(0, 48, 4), np.arange(0, 40, 4)
    X, E = dense(x), draw(50, 40, float, 7)
    P = dense_tangent(x, manifold.project_sampled(x, E[:, J], E[I], I, J))

    def cur(A):
        U, s, Vh = np.linalg.svd(A[np.ix_(I, J)])
        return A[:, J] @ ((Vh[:4].T / s[:4]) @ U[:, :4].T) @ A[I]

    steps = (1e-4, 1e-5, 1e-6)
    rest = [np.linalg.norm(cur(X + t * E) - X - t * P) / t**2 for t in steps]
    assert rest == pytest.approx([rest[0]] * 3, rel=0.05)


def test_tangent_of_splits_any_factors():
    x = numpy_point(20, 15, 3, "complex128")
    A, B, C = draw(20, 3, complex, 0), draw(3, 15, complex, 1), draw(3, 3, complex, 2)
    xi = manifold.tangent_of(x, A, B, C)
    Vh = x.V.conj().T
    assert np.abs(dense_tangent(x, xi) - (A @ Vh + x.U @ B - x.U @ C @ Vh)).max() <= 1e-13
    assert np.abs(x.U.conj().T @ xi.Up).max() <= 1e-14


@VALUES
def test_every_library(place):
    xp, device = place
    for dtype in (xp.float32, xp.complex128):
        x = manifold.random_point(12, 9, 2, 1, xp=xp, dtype=dtype, device=device)
        xi = manifold.random_tangent(x, 2)
        y = manifold.retract(x, xi)
        moved = manifold.transport(x, xi, y)
        assert all(part.dtype == dtype for part in (*xi, y.U, y.V, *moved))
        assert y.s.dtype == real_dtype(xp, dtype)
        assert manifold.norm(xi) == pytest.approx(1, rel=1e-5)
        target = dense(x) + dense_tangent(x, xi)
        assert np.abs(dense(y) - best(target, 2)).max() <= 1e-5
        host = numpy_point(12, 9, 2, "float32" if dtype == xp.float32 else "complex128")
        assert np.abs(dense(x) - dense(host)).max() <= 1e-5  # one key, one point, everywhere


class Completion:
    """``||P(X - A)||_F**2 / 2`` with the projector on observed entries."""

    def __init__(self, A, seen):
        self.A, self.seen = A, seen

    def gradient(self, x):
        return (dense(x) - self.A) * self.seen

    def curvature(self, x, xi):
        return float(np.sum((dense_tangent(x, xi) * self.seen) ** 2))


def start(A, k):
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    return Point(U[:, :k], s[:k], Vh[:k].T)


def count_steps(cost, x, **options):
    errors = []
    y, converged = manifold.minimize(x, cost.gradient, cost.curvature, monitor=errors.append, **options)
    return y, converged, errors


def test_descent_completes_a_matrix_and_conjugate_directions_are_faster():
    rng = np.random.default_rng(0)
    L = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 50))
    seen = rng.random(L.shape) < 0.5
    cost = Completion(L * seen, seen)
    x = start(2 * L * seen, 3)
    steps = {}
    for conjugate in (True, False):
        y, converged, errors = count_steps(cost, x, tol=1e-9, max_iter=500, conjugate=conjugate)
        assert converged
        assert errors[-1] <= 1e-9
        assert np.linalg.norm(dense(y) - L) <= 1e-7 * np.linalg.norm(L)
        steps[conjugate] = len(errors)
    assert steps[True] < steps[False]


def test_descent_finds_the_best_approximation_of_a_dense_matrix():
    A = draw(30, 20, float, 1) @ np.diag(np.logspace(0, -2, 20))
    cost = Completion(A, np.ones_like(A, dtype=bool))
    y, converged, _ = count_steps(cost, numpy_point(30, 20, 4), tol=1e-8, max_iter=2000)
    assert converged
    assert np.linalg.norm(dense(y) - best(A, 4)) <= 1e-5 * np.linalg.norm(A)


def test_descent_ends_where_it_is_told():
    A = draw(30, 20, float, 1)
    cost = Completion(A, np.ones_like(A, dtype=bool))
    x = numpy_point(30, 20, 4)
    seen = []
    y, converged = manifold.minimize(
        x, cost.gradient, cost.curvature, monitor=lambda error: seen.append(error) or len(seen) == 2
    )
    assert len(seen) == 2
    assert not converged
    again, converged = manifold.minimize(start(A, 4), cost.gradient, cost.curvature, max_iter=0)
    assert len(again.s) == 4
    assert not converged  # of no steps nothing is known, but where the gradient is zero
    exact = start(best(A, 4), 4)
    cost = Completion(dense(exact), cost.seen)
    y, _ = manifold.minimize(exact, cost.gradient, cost.curvature, tol=1e-8)
    assert np.linalg.norm(dense(y) - dense(exact)) <= 1e-10
