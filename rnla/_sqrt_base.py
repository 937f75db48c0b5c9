"""One view of positive definite matrices whose square root is cheap to apply."""

import math
import numbers
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla._backend import adjoint, eps_of, real_dtype, to_host
from rnla._newton_schulz import newton_schulz
from rnla._rangefinder import check_choice
from rnla._sqrt_inputs import check_update
from rnla._sqrt_kinds import Base, Diagonalised, Roots, Shifted, SparseFactors, product

ACCEPTED = (
    "a positive number, a vector (the diagonal), a Hermitian matrix, (eigenvalues, eigenvectors), SqrtRoots(S, S_inv), "
    "a sparse matrix, a list of (eigenvalues, eigenvectors) of Kronecker factors, a LinearOperator, or a former result"
)


@dataclass(frozen=True, eq=False)
class SqrtRoots:
    """A matrix given by its square root, and the inverse of that: of use where both are at hand, as in optimizers.

    Attributes
    ----------
    S : array, shape (n, n)
        Hermitian positive definite; the matrix is ``S @ S``.
    S_inv : array or None, shape (n, n)
        Its inverse.

    Examples
    --------
    >>> roots = rnla.SqrtRoots.from_dense(np.diag([4.0, 9.0]))
    >>> np.round(roots.S, 6).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """

    S: Any
    S_inv: Any = None

    @classmethod
    def from_dense(cls, A, method="eigh"):
        """Compute both roots of a Hermitian positive definite matrix.

        Parameters
        ----------
        A : array, shape (n, n)
            The matrix.
        method : {"eigh", "newton_schulz"}
            Eigendecomposition, or an iteration of matrix products only, which suits a GPU. In single precision, beyond
            a condition number of about 1e4, the former takes the place of the latter, with a warning.

        Returns
        -------
        SqrtRoots
            Library, device and dtype of `A`.
        """
        caller = "rnla.SqrtRoots.from_dense"
        check_choice(method, "method", ("eigh", "newton_schulz"), caller)
        _check_hermitian(A, caller)
        if method == "newton_schulz":
            roots = newton_schulz(A, caller)
            if roots is not None:
                return cls(*roots)
        base = Diagonalised.of_dense(A, caller)
        base.check_positive(caller)
        Q, root = base.Q, base.root
        return cls((Q * root) @ adjoint(Q), (Q / root) @ adjoint(Q))


def as_problem(A, Z, C, sign, bounds, caller):
    """Return what a public function was called with: the base, Z in the dtype that both share, C and the sign.

    An earlier result stands for its updated matrix: its base is taken, and both updates become one.
    """
    Z, C = check_update(Z, C, sign, caller)
    earlier = getattr(A, "update", None) if isinstance(getattr(A, "base", None), Base) else None
    base = as_base(A if earlier is None else A.base, Z.shape[0], Z, bounds, caller)
    xp = base.xp
    if array_namespace(Z) is not xp:
        raise TypeError(f"{caller}: Z must be an array of the library of A; got {type(Z).__module__}.")
    dtype = xp.result_type(Z.dtype, base.dtype)
    if earlier is None:
        return base, xp.astype(Z, dtype, copy=False), C, sign
    old, k = len(earlier.s), Z.shape[1]
    C = sign * (np.eye(k) if C is None else C)
    joint = np.zeros((old + k, old + k), dtype=C.dtype)
    joint[:old, :old], joint[old:, old:] = np.diag(earlier.s), C
    dtype = xp.result_type(dtype, earlier.Z.dtype)
    return base, xp.concat([xp.astype(X, dtype, copy=False) for X in (earlier.Z, Z)], axis=1), joint, 1


def as_base(A, n, like, bounds, caller):
    """Return the `Base` of any accepted kind of matrix.

    Parameters
    ----------
    A : see `ACCEPTED`
        The matrix.
    n : int
        Its order.
    like : array
        The update, whose library, device and precision a number takes.
    bounds : tuple of two floats, or None
        Ends of the spectrum, if the user knows them.
    caller : str
        Public function named in errors.
    """
    bounds = _checked_bounds(bounds, caller)
    if isinstance(A, Base):
        base = A
    elif isinstance(A, numbers.Real) and not isinstance(A, (bool, np.bool_)):
        base = _of_number(A, n, like, caller)
    elif isinstance(A, SqrtRoots):
        base = _of_roots(A, caller)
    elif isinstance(A, (tuple, list)):
        base = _of_eigenpairs(A, caller)
    elif hasattr(A, "tocsc"):
        base = _of_sparse(A, bounds, caller)
    elif is_array_api_obj(A):
        base = _of_array(A, n, like, caller)
    elif hasattr(A, "shape") and (hasattr(A, "matvec") or hasattr(A, "matmat")):
        base = _of_operator(A, bounds, caller)
    else:
        raise TypeError(f"{caller}: A must be {ACCEPTED}; got {type(A).__module__}.{type(A).__name__}.")
    if base.n != n:
        raise ValueError(f"{caller}: A must be of the order of the rows of Z, {n}; got {base.n}.")
    return base


def _of_number(A, n, like, caller):
    if not 0 < A < math.inf:
        raise ValueError(f"{caller}: A as a number must be positive and finite; got {A}.")
    xp = array_namespace(like)
    dtype = real_dtype(xp, like.dtype)
    return Diagonalised(xp.full((n,), float(A), dtype=dtype, device=device(like)), kind="scalar", dtype=like.dtype)


def _of_roots(roots, caller):
    S, T = roots.S, roots.S_inv
    _check_hermitian(S, caller, "S")
    if T is None:
        base = Diagonalised.of_dense(S, caller)
        return Diagonalised(base.d**2, base.Q, kind="dense", dtype=base.dtype)
    _check_hermitian(T, caller, "S_inv")
    if T.shape != S.shape:
        raise ValueError(f"{caller}: S_inv must have the shape of S, {tuple(S.shape)}; got {tuple(T.shape)}.")
    xp = array_namespace(S)
    probe = xp.ones((S.shape[0], 1), dtype=S.dtype, device=device(S))
    if float(xp.max(xp.abs(product(S, product(T, probe)) - probe))) > 1e-2:
        raise ValueError(f"{caller}: S_inv must be the inverse of S; their product is not the identity.")
    return Roots(S, T)


def _of_array(A, n, like, caller):
    xp = array_namespace(A)
    if not xp.isdtype(A.dtype, ("real floating", "complex floating")):
        if not xp.isdtype(A.dtype, ("integral", "bool")):
            raise TypeError(f"{caller}: A must be of a numeric dtype; got {A.dtype}.")
        A = xp.astype(A, xp.float64)
    if A.ndim == 0:
        return _of_number(float(A), n, like, caller)
    if A.ndim == 1:
        return Diagonalised(_checked_diagonal(A, caller))
    _check_hermitian(A, caller)
    return Diagonalised.of_dense(A, caller)


def _of_eigenpairs(A, caller):
    pairs = [A] if len(A) == 2 and getattr(A[0], "ndim", None) == 1 else A
    if not len(pairs) or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"{caller}: A must be {ACCEPTED}; got a {type(A).__name__} of other things.")
    for d, Q in pairs:
        if d.ndim != 1 or Q.ndim != 2 or Q.shape != (d.shape[0], d.shape[0]):
            raise ValueError(
                f"{caller}: eigenvalues and eigenvectors of A must have shapes (n,) and (n, n); got {tuple(d.shape)}, "
                f"{tuple(Q.shape)}."
            )
    lams, Qs = zip(*pairs, strict=True)
    d = _checked_diagonal(lams[0], caller)
    for lam in lams[1:]:
        xp = array_namespace(d)
        d = xp.reshape(d[:, None] * _checked_diagonal(lam, caller)[None, :], (-1,))
    kind = "eigenpairs" if len(pairs) == 1 else "kronecker"
    return Diagonalised(d, Qs[0] if len(Qs) == 1 else list(Qs), kind=kind, dtype=Qs[0].dtype)


def _of_sparse(A, bounds, caller):
    import array_api_compat.numpy as xp
    from scipy import sparse

    if not sparse.issparse(A):
        raise TypeError(f"{caller}: A must be a sparse matrix of SciPy; got {type(A).__module__}.{type(A).__name__}.")
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {A.shape}.")
    A = sparse.csr_array(A)
    if A.dtype.kind not in "fc":
        A = A.astype(float)
    dtype = A.dtype
    if not np.isfinite(A.data).all():
        raise ValueError(f"{caller}: A must be finite; it contains NaN or infinity.")
    if abs(A - A.conj().T).max() > 100 * np.finfo(A.dtype).eps * abs(A).max():
        raise ValueError(f"{caller}: A must be Hermitian.")
    factors = SparseFactors(A.astype(np.promote_types(dtype, np.float64)), dtype, caller)
    return Shifted(A.shape[0], dtype, xp, "cpu", lambda X: A @ X, factors, bounds, "sparse")


def _of_operator(A, bounds, caller):
    from rnla._matrix import as_matrix

    M = as_matrix(A, caller)
    if M.shape[0] != M.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {M.shape}.")
    solve: Any = getattr(A, "shift_solve", None)
    if bounds is None and solve is None:
        raise ValueError(f"{caller}: bounds must be given for a LinearOperator without shift_solve.")

    def checked_solve(tau, X):
        Y = solve(tau, X)
        if getattr(Y, "shape", None) != X.shape:
            raise ValueError(
                f"{caller}: A.shift_solve must return an array of shape {X.shape}; got {getattr(Y, 'shape', type(Y))}."
            )
        return Y

    return Shifted(
        M.shape[0], M.dtype, M.xp, M.device, partial(_operator_times, M), solve and checked_solve, bounds, "operator"
    )


def _operator_times(M, X):
    """Multiply a block that may be complex where the operator is real."""
    xp = M.xp
    if X.dtype == M.dtype or not xp.isdtype(X.dtype, "complex floating") or xp.isdtype(M.dtype, "complex floating"):
        return M.matmat(xp.astype(X, xp.result_type(X.dtype, M.dtype), copy=False))
    return M.matmat(xp.real(X)) + xp.astype(M.matmat(xp.imag(X)), X.dtype) * 1j


def _checked_diagonal(d, caller):
    xp = array_namespace(d)
    if xp.isdtype(d.dtype, "complex floating"):
        raise TypeError(f"{caller}: A as a diagonal, or eigenvalues of A, must be real; got {d.dtype}.")
    if not xp.isdtype(d.dtype, "real floating"):
        d = xp.astype(d, xp.float64)
    host = to_host(d)
    bad = ~np.isfinite(host)
    if bad.any():
        raise ValueError(f"{caller}: A must be finite; entry {int(np.argmax(bad))} of its diagonal is not.")
    if host.size and host.min() < 0:
        where = int(np.argmin(host))
        raise ValueError(f"{caller}: A must be positive; entry {where} of its diagonal is {host[where]:.3g}.")
    return d


def _check_hermitian(A, caller, name="A"):
    if not is_array_api_obj(A) or A.ndim != 2 or A.shape[0] != A.shape[1] or not A.shape[0]:
        raise ValueError(f"{caller}: {name} must be a square matrix; got shape {tuple(getattr(A, 'shape', ()))}.")
    xp = array_namespace(A)
    if not xp.isdtype(A.dtype, ("real floating", "complex floating")):
        raise TypeError(f"{caller}: {name} must be of a floating dtype; got {A.dtype}.")
    if not bool(xp.all(xp.isfinite(A))):
        raise ValueError(f"{caller}: {name} must be finite; it contains NaN or infinity.")
    top = float(xp.max(xp.abs(A)))
    if float(xp.max(xp.abs(A - adjoint(A)))) > 1e3 * eps_of(xp, A.dtype) * top:
        raise ValueError(f"{caller}: {name} must be Hermitian.")


def _checked_bounds(bounds, caller):
    if bounds is None:
        return None
    try:
        low, high = (float(x) for x in bounds)
    except (TypeError, ValueError):
        raise TypeError(f"{caller}: bounds must be two numbers, (low, high); got {bounds!r}.") from None
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"{caller}: bounds must be 0 <= low <= high; got {bounds}.")
    return low, high
