"""Every kind of base, library, device and precision gives the same roots; what cannot be taken is named."""

import array_api_compat
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from square_roots import diagonal_problem, on_place, rotated
from strategies import diagonals

import rnla
from rnla._backend import to_host
from rnla.testing import haar_basis

VALUES = ["numpy", "strict", "strict-device1", "torch"]  # places whose arrays have values


class Solvable(LinearOperator):
    """A matrix that is known by products and by shifted solves."""

    def __init__(self, A):
        super().__init__(A.dtype, A.shape)
        self.A = A

    def _matmat(self, X):
        return self.A @ X

    def _rmatmat(self, X):
        return self.A.conj().T @ X

    def shift_solve(self, tau, X):
        return np.linalg.solve(self.A + tau * np.eye(len(self.A)), X)


def roots_of(A, inverse=True):
    d, Q = np.linalg.eigh(A)
    S = (Q * np.sqrt(d)) @ Q.conj().T
    T = (Q / np.sqrt(d)) @ Q.conj().T
    return rnla.SqrtRoots((S + S.conj().T) / 2, (T + T.conj().T) / 2 if inverse else None)


D1, D2 = np.linspace(1, 3, 6), np.linspace(0.5, 2, 5)
Q1, Q2 = haar_basis(6, 6, rng=1), haar_basis(5, 5, rng=2)
A0 = np.kron((Q1 * D1) @ Q1.T, (Q2 * D2) @ Q2.T)
A0 = (A0 + A0.T) / 2
COMPLEX = np.exp(1j * np.arange(30))
A1 = A0 * COMPLEX[:, None] * COMPLEX.conj()
KINDS = {
    "number": lambda: (2.0, 2.0 * np.eye(30)),
    "NumPy number": lambda: (np.float64(2.0), 2.0 * np.eye(30)),
    "vector": lambda: (np.linspace(1, 2, 30), np.diag(np.linspace(1, 2, 30))),
    "vector of integers": lambda: (np.arange(1, 31), np.diag(np.arange(1.0, 31))),
    "dense": lambda: (A0, A0),
    "dense, complex": lambda: (A1, A1),
    "eigenpairs": lambda: (tuple(np.linalg.eigh(A0)), A0),
    "eigenpairs, complex": lambda: (tuple(np.linalg.eigh(A1)), A1),
    "roots": lambda: (roots_of(A0), A0),
    "roots, complex": lambda: (roots_of(A1), A1),
    "root alone": lambda: (roots_of(A0, inverse=False), A0),
    "sparse": lambda: (sp.csr_array(A0), A0),
    "sparse matrix, complex": lambda: (sp.coo_matrix(A1), A1),
    "sparse, of integers": lambda: (sp.csr_array(np.diag(np.arange(1, 31))), np.diag(np.arange(1.0, 31))),
    "Kronecker": lambda: ([(D1, Q1), (D2, Q2)], A0),
    "Kronecker, complex": lambda: ([(D1, Q1 + 0j), (D2, Q2)], A0),
    "operator with solves": lambda: (Solvable(A0), A0),
    "operator with solves, complex": lambda: (Solvable(A1), A1),
    "operator": lambda: (aslinearoperator(A0), A0),
    "operator, complex": lambda: (aslinearoperator(A1), A1),
}


def bounds_of(base):
    return (0.4, 7.0) if isinstance(base, LinearOperator) and not hasattr(base, "shift_solve") else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("update", ["real", "complex", "complex C", "down"])
def test_every_kind_of_base(kind, update):
    base, A = KINDS[kind]()
    rng = np.random.default_rng(0)
    Z, C, sign = rng.standard_normal((30, 2)), None, 1
    if update == "complex":
        Z = Z + 1j * rng.standard_normal((30, 2))
    elif update == "complex C":
        C = np.array([[1.0, 0.5j], [-0.5j, 2.0]])
    elif update == "down":
        Z, sign = 0.4 * Z / np.linalg.norm(Z, 2), -1
    W = A + Z @ (sign * np.eye(2) if C is None else C) @ Z.conj().T
    bounds = bounds_of(base)
    root, inverse = rnla.sqrt_pair_update(base, Z, C=C, sign=sign, bounds=bounds)
    x = rng.standard_normal((30, 2))
    for y in (x, x + 1j * x[::-1]):
        assert np.abs(root @ (root @ y) - W @ y).max() <= 1e-7 * np.linalg.norm(W)
        assert np.abs(inverse @ (root @ y) - y).max() <= 1e-6
        assert np.abs(root.solve(root @ y) - y).max() <= 1e-6
    assert np.iscomplexobj(root @ x) == (np.iscomplexobj(W) or "complex" in kind)
    assert root.residual_norm() <= 1e-7 * np.linalg.norm(W)
    assert inverse.residual_norm() <= 1e-6
    assert root.kappa >= 1
    assert "base" in repr(root)
    L = rnla.sqrt_factor_update(base, Z, C=C, sign=sign, bounds=bounds)
    assert np.abs(L @ (L.H @ np.eye(30)) - W).max() <= 1e-9
    assert np.abs(L.adjoint_solve(L.solve(W @ x)) - x).max() <= 1e-8
    if isinstance(base, LinearOperator):
        with pytest.raises(ValueError, match="log-determinant of an operator is not known"):
            root.logdet()
    else:
        assert root.logdet() == pytest.approx(np.linalg.slogdet(W)[1] / 2, abs=1e-9)
        assert L.logdet() == pytest.approx(np.linalg.slogdet(W)[1], abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_bases_of_further_updates(kind):
    base, A = KINDS[kind]()
    Z = np.random.default_rng(0).standard_normal((30, 3)) / 6
    W = A + Z[:, :2] @ Z[:, :2].T - 0.9 * np.outer(Z[:, 0], Z[:, 0]) + np.outer(Z[:, 2], Z[:, 2])
    root = rnla.sqrt_update(base, Z[:, :2], bounds=bounds_of(base))
    root = rnla.inv_sqrt_update(root, 0.9**0.5 * Z[:, 0], sign=-1)
    C = np.array([[1 + 0j]])
    again = rnla.sqrt_update(root, Z[:, 2], C=C)
    assert np.abs(again @ (again @ np.eye(30)) - W).max() <= 1e-7 * np.linalg.norm(W)
    stream = rnla.StreamingSqrt(root).update(Z[:, 2:])
    assert np.abs(stream.sqrt() @ (stream.sqrt() @ np.eye(30)) - W).max() <= 1e-7 * np.linalg.norm(W)
    L = rnla.sqrt_factor_update(root, Z[:, 2])
    assert np.abs(L @ (L.H @ np.eye(30)) - W).max() <= 1e-9


@pytest.mark.parametrize(
    ("kind", "place", "dtype"),
    diagonals(
        ("number", "vector", "dense", "eigenpairs", "kronecker", "roots"), VALUES, ("float32", "float64", "complex128")
    ),
    indirect=["place"],
)
def test_every_library_and_device(kind, place, dtype):
    device = place[1]
    d, Z = diagonal_problem(72, 2, 10.0, 0, dtype=dtype)
    real = "float32" if dtype == "float32" else "float64"
    A, Q, Z = rotated(d, Z, 0) if kind in ("dense", "eigenpairs", "roots") else (np.diag(d), None, Z)
    if kind == "kronecker":
        E, Q1, d2 = *np.linalg.eigh(np.array([[2.0, 1.0], [1.0, 3.0]])), d[:36]
        A, Q2 = np.kron(np.array([[2.0, 1.0], [1.0, 3.0]]), np.diag(d2)), np.eye(36)
        host = [(E, Q1), (d2, Q2)]
    elif kind == "number":
        A = 2.0 * np.eye(72)
    base = {
        "number": lambda: 2.0,
        "vector": lambda: on_place(d.astype(real), place),
        "dense": lambda: on_place(A.astype(dtype), place),
        "eigenpairs": lambda: (on_place(d.astype(real), place), on_place(Q.astype(dtype), place)),
        "kronecker": lambda: [(on_place(e.astype(real), place), on_place(V.astype(dtype), place)) for e, V in host],
        "roots": lambda: rnla.SqrtRoots.from_dense(on_place(A.astype(dtype), place)),
    }[kind]()
    X = on_place(Z.astype(dtype), place)
    tol = 1e-3 if dtype == "float32" else 1e-6
    W = A + Z @ Z.conj().T
    methods = ["auto"] + (["quadrature", "extended_krylov"] if kind in ("vector", "dense", "eigenpairs") else [])
    for method in methods:
        for result in rnla.sqrt_pair_update(base, X, method=method):
            Y = result @ X
            assert array_api_compat.device(Y) == device
            assert Y.dtype == result.dtype == X.dtype
            S = to_host(result.to_dense())
            exact = np.eye(72) if result.inverse else W
            found = S @ W @ S if result.inverse else S @ S
            assert np.abs(found - exact).max() <= tol * np.abs(exact).max()
            assert np.abs(to_host(result.solve(Y)) - to_host(X)).max() <= tol * np.abs(Z).max()
            assert result.truncate(rank=1).rank == 1
            assert np.isfinite(result.residual_norm())
            assert result.sample(3, rng=0).shape == (3, 72)
            assert np.abs(to_host(result.diagonal()) - np.diagonal(S).real).max() <= tol * np.abs(S).max() \
                if kind != "roots" else True  # fmt: skip
    L = rnla.sqrt_factor_update(base, X)
    assert np.abs(to_host(L @ (L.H @ X)) - W @ Z).max() <= tol * np.abs(W @ Z).max()
    assert array_api_compat.device(rnla.sample_mvn(base, X, 4, rng=0)) == device
    P, _ = rnla.function_update(base, X, "log") if kind != "roots" else (X, None)
    assert array_api_compat.device(P) == device
    stream = rnla.StreamingSqrt(base, n=72 if kind == "number" else None).update(X)
    assert array_api_compat.device(stream.inv_sqrt() @ X) == device
    assert stream.downdate(X).n_columns == 0


def test_single_precision_of_sparse_matrices_and_operators():
    A = sp.csr_array(A0.astype(np.float32))
    Z = np.ones((30, 1), np.float32)
    W = A0 + 1.0
    for base, bounds in ((A, None), (aslinearoperator(A0.astype(np.float32)), (0.4, 7.0))):
        root = rnla.sqrt_update(base, Z, bounds=bounds)
        Y = root @ (root @ np.eye(30, dtype=np.float32))
        assert Y.dtype == np.float32
        assert np.abs(Y - W).max() <= 1e-3


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
@pytest.mark.parametrize("dtype", [float, complex, np.float32])
def test_roots_from_dense(method, dtype):
    d, Z = diagonal_problem(40, 1, 100.0, 0)
    A = rotated(d, Z, 0)[0]
    if dtype is complex:
        A = A * np.exp(1j * np.arange(40))[:, None] * np.exp(-1j * np.arange(40))
    roots = rnla.SqrtRoots.from_dense(A.astype(dtype), method=method)
    tol = 1e-3 if dtype == np.float32 else 1e-10
    assert np.abs(roots.S @ roots.S - A).max() <= tol
    assert np.abs(roots.S @ roots.S_inv - np.eye(40)).max() <= tol


def test_newton_schulz_says_when_it_is_of_no_use():
    for kappa in (1e6, 3e4):
        A = rotated(np.logspace(-np.log10(kappa), 0, 20), np.ones((20, 1)), 0)[0].astype(np.float32)
        with pytest.warns(rnla.AccuracyWarning, match="few right digits in single .* the eigendecomposition is used"):
            roots = rnla.SqrtRoots.from_dense(A, method="newton_schulz")
        assert np.array_equal(roots.S_inv, rnla.SqrtRoots.from_dense(A).S_inv)
    A = rotated(np.logspace(-3.5, 0, 20), np.ones((20, 1)), 0)[0].astype(np.float32)
    assert not np.array_equal(
        rnla.SqrtRoots.from_dense(A, method="newton_schulz").S, rnla.SqrtRoots.from_dense(A).S
    )  # warnings are errors: none came
    with pytest.raises(ValueError, match="A must be positive definite for method='newton_schulz'"):
        rnla.SqrtRoots.from_dense(np.diag([1.0, -1.0]), method="newton_schulz")


Z5 = np.ones((5, 2))
D5 = np.arange(1.0, 6.0)
BAD = {
    "Z of three dimensions": (lambda: rnla.sqrt_update(D5, np.ones((5, 1, 1))), ValueError, r"Z must have shape"),
    "Z of objects": (lambda: rnla.sqrt_update(D5, np.array([None] * 5)), TypeError, "Z must be of a numeric dtype"),
    "Z of text": (lambda: rnla.sqrt_update(D5, "abc"), TypeError, "Z must be of a numeric dtype"),
    "Z not finite": (lambda: rnla.sqrt_update(D5, Z5 * np.nan), ValueError, "Z must be finite"),
    "Z too short": (lambda: rnla.sqrt_update(D5, Z5[:4]), ValueError, "A must be of the order of the rows of Z, 4"),
    "sign": (lambda: rnla.sqrt_update(D5, Z5, sign=2), ValueError, "sign must be 1 or -1; got 2"),
    "C of another shape": (lambda: rnla.sqrt_update(D5, Z5, C=np.eye(3)), ValueError, r"C must have shape \(2, 2\)"),
    "C not Hermitian": (lambda: rnla.sqrt_update(D5, Z5, C=[[0, 1], [2, 0]]), ValueError, "C must be Hermitian"),
    "C not finite": (lambda: rnla.sqrt_update(D5, Z5, C=np.full((2, 2), np.inf)), ValueError, "C must be"),
    "C of text": (lambda: rnla.sqrt_update(D5, Z5, C=[["a", "b"]] * 2), TypeError, "C must be of a numeric dtype"),
    "tol zero": (lambda: rnla.sqrt_update(D5, Z5, tol=0.0), ValueError, r"tol must be in \(0, 1\); got 0"),
    "tol of text": (lambda: rnla.sqrt_update(D5, Z5, tol="x"), TypeError, "tol must be a real number"),
    "rank": (lambda: rnla.sqrt_update(D5, Z5, rank=1.5), TypeError, "rank must be an integer"),
    "method": (lambda: rnla.sqrt_update(D5, Z5, method="x"), ValueError, "method must be one of 'auto', 'exact'"),
    "method exact": (lambda: rnla.sqrt_update(D5, Z5, method="exact"), ValueError, "cannot take a diagonal base"),
    "negative entry": (lambda: rnla.sqrt_update(D5 - 3, Z5), ValueError, "entry 0 of its diagonal is -2"),
    "infinite entry": (lambda: rnla.sqrt_update(D5 * [1, np.inf, 1, 1, 1], Z5), ValueError, "entry 1 of its diagonal"),
    "complex diagonal": (lambda: rnla.sqrt_update(D5 + 0j, Z5), TypeError, "must be real"),
    "negative number": (lambda: rnla.sqrt_update(-1.0, Z5), ValueError, "A as a number must be positive"),
    "bool": (lambda: rnla.sqrt_update(True, Z5), TypeError, "A must be a positive number, a vector"),
    "text": (lambda: rnla.sqrt_update("A", Z5), TypeError, "A must be a positive number, a vector"),
    "not square": (lambda: rnla.sqrt_update(Z5, Z5), ValueError, "A must be a square matrix"),
    "not Hermitian": (lambda: rnla.sqrt_update(np.triu(np.ones((5, 5))), Z5), ValueError, "A must be Hermitian"),
    "dense not finite": (lambda: rnla.sqrt_update(np.full((5, 5), np.inf), Z5), ValueError, "A must be finite"),
    "sparse not Hermitian": (lambda: rnla.sqrt_update(sp.eye_array(5, k=1) + sp.eye_array(5), Z5), ValueError,
                             "A must be Hermitian"),
    "sparse not square": (lambda: rnla.sqrt_update(sp.eye_array(5, 4), Z5), ValueError, "A must be square"),
    "sparse not finite": (lambda: rnla.sqrt_update(sp.diags_array(D5 * np.nan), Z5), ValueError, "A must be finite"),
    "pairs": (lambda: rnla.sqrt_update([1, 2, 3], Z5), TypeError, "A must be a positive number"),
    "shape of pairs": (lambda: rnla.sqrt_update((D5, np.eye(4)), Z5), ValueError, "eigenvalues and eigenvectors of A"),
    "S_inv no inverse": (lambda: rnla.sqrt_update(rnla.SqrtRoots(np.eye(5), 2 * np.eye(5)), Z5), ValueError,
                         "S_inv must be the inverse of S"),
    "S_inv of another shape": (lambda: rnla.sqrt_update(rnla.SqrtRoots(np.eye(5), np.eye(4)), Z5), ValueError,
                               "S_inv must have the shape of S"),
    "bounds missing": (lambda: rnla.sqrt_update(aslinearoperator(np.eye(5)), Z5), ValueError, "bounds must be given"),
    "bounds reversed": (lambda: rnla.sqrt_update(aslinearoperator(np.eye(5)), Z5, bounds=(2, 1)), ValueError,
                        "bounds must be 0 <= low <= high"),
    "bounds a number": (lambda: rnla.sqrt_update(aslinearoperator(np.eye(5)), Z5, bounds=1), TypeError, "bounds must"),
    "callback": (lambda: rnla.sqrt_update(D5, Z5, callback=1), TypeError, "callback must be callable"),
    "inverse": (lambda: rnla.inv_sqrt_update(D5, Z5, inverse=False), TypeError, "inverse is no option"),
    "product": (lambda: rnla.sqrt_update(D5, Z5) @ np.ones(4), ValueError, "X must have 5 rows"),
    "solve": (lambda: rnla.sqrt_update(D5, Z5).solve(np.ones(4)), ValueError, "X must have 5 rows"),
    "order of the residual": (lambda: rnla.sqrt_update(D5, Z5).residual_norm(1), ValueError, "ord must be 2 or 'fro'"),
    "diagonal": (lambda: rnla.sqrt_update(sp.diags_array(D5), Z5).diagonal(), ValueError, "diagonal of the root"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=f"^rnla.*{text}"):
        call()


@pytest.mark.parametrize("A", [np.diag([1.0, -1.0]), sp.diags_array([1.0, -1.0])])
def test_indefinite_bases_are_refused(A):
    with pytest.raises(rnla.NotPositiveDefiniteError, match="A must be positive semidefinite"):
        rnla.sqrt_update(A, np.ones(2))


def test_singular_sparse_base():
    L = sp.diags_array([np.array([1.0] + [2.0] * 98 + [1.0]), -np.ones(99), -np.ones(99)], offsets=[0, 1, -1])
    Z = np.random.default_rng(0).standard_normal((100, 2))
    root = rnla.sqrt_update(L, Z, tol=1e-6)
    W = L.toarray() + Z @ Z.T
    assert np.linalg.norm(root @ (root @ np.eye(100)) - W, 2) <= 5e-6 * np.linalg.norm(W, 2)
    assert rnla.sample_mvn(L, Z, 3, rng=0).shape == (3, 100)


def test_libraries_do_not_mix():
    import torch

    with pytest.raises(TypeError, match="Z must be an array of the library of A"):
        rnla.sqrt_update(D5, torch.ones(5, dtype=torch.float64))
    root = rnla.sqrt_update(torch.ones(5, dtype=torch.float64), torch.ones(5, 2, dtype=torch.float64), C=np.eye(2))
    assert (root @ torch.ones(5)).dtype == torch.float64


def test_krylov_methods_report_and_stop():
    base = roots_of(A0)
    Z = np.random.default_rng(0).standard_normal((30, 1))
    records = []
    rnla.sqrt_update(base, Z, method="extended_krylov", callback=records.append)
    assert len(records) > 2
    assert records[-1].error <= 1e-8

    def stop(record):
        raise StopIteration

    for A, bounds in ((base, None), (aslinearoperator(A0), (0.4, 7.0))):
        method = "extended_krylov" if bounds is None else "krylov"
        with pytest.warns(rnla.ConvergenceWarning, match="the tolerance 1e-08 was not met"):
            root = rnla.sqrt_update(A, Z, method=method, bounds=bounds, callback=stop)
        assert not root.converged
    with pytest.warns(rnla.AccuracyWarning, match="block Lanczos converges slowly"):
        rnla.sqrt_update(aslinearoperator(A0), Z, bounds=(1e-6, 7.0))


@pytest.mark.parametrize("method", ["krylov", "extended_krylov"])
def test_krylov_methods_say_that_steps_did_not_suffice(monkeypatch, method):
    monkeypatch.setattr("rnla._sqrt_krylov.MAX_STEPS", 3)
    d, Z = diagonal_problem(100, 2, 1e4, 0)
    with pytest.warns(rnla.ConvergenceWarning, match="was not met"):
        root = rnla.sqrt_update(d, Z, method=method)
    assert not root.converged
    assert root.error_estimate() >= np.linalg.norm(root @ root.to_dense() - np.diag(d) - Z @ Z.T, 2) / (
        2 * root.high**0.5
    )
