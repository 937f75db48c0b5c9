"""Square roots of matrices after a low-rank update, as the root from before and a correction of low rank."""

import numbers
from functools import partial

import numpy as np

from rnla._corrected_sqrt import LowRankCorrectedSqrt
from rnla._errors import AccuracyWarning
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, warn, warn_not_converged
from rnla._rational import node_count, zolotarev_nodes
from rnla._sqrt_base import as_problem
from rnla._sqrt_inputs import checked_tol
from rnla._sqrt_kinds import Diagonalised
from rnla._sqrt_krylov import (
    LANCZOS_LIMIT,
    dense_correction,
    extended_krylov,
    lanczos,
    rational_krylov,
)
from rnla._sqrt_quadrature import Correction, canonical, interval, on_diagonal, on_scalar, on_shifted

METHODS = ("auto", "exact", "quadrature", "extended_krylov", "krylov", "dense")
SMALL = 64  # order up to which the correction is dense where the quadrature has as many columns as rows; beyond,
DENSE_SIDE, DENSE_KAPPA = 4096, 1e8  # and up to this order and condition, where it has twice as many


def sqrt_update(A, Z, *, C=None, sign=1, inverse=False, tol=None, rank=None, method="auto", bounds=None,
                callback=None):  # fmt: skip
    """Return the square root of ``W = A + Z C Z^H`` as the root of A and a correction of low rank.

    The correction is accurate relative to itself, however small Z is; nothing of size n x n is formed.

    Parameters
    ----------
    A : number, vector, matrix, pair, sparse matrix, operator, SqrtRoots or earlier result
        Hermitian positive definite. A number stands for a multiple of the identity, a vector for a diagonal, a pair for
        ``(eigenvalues, eigenvectors)``, a list of pairs for a Kronecker product, `SqrtRoots` for a matrix whose root is
        known, an earlier result for its W. A dense matrix is diagonalised, once for this call. Operators need `bounds`,
        or a method ``shift_solve(tau, X)``.
    Z : array, shape (n,) or (n, k)
        Columns of the update; real or complex.
    C : array, optional, shape (k, k)
        Hermitian, may be indefinite; the identity by default.
    sign : {1, -1}
        -1 subtracts ``Z C Z^H``.
    inverse : bool
        Return ``W^(-1/2)`` instead.
    tol : float, optional
        Precision, relative to the norms of the roots, and to the correction for all but extreme cases; 1e-8 in double
        and 1e-6 in single precision.
    rank : int, optional
        Largest rank of the correction, cut from the exact one; by default as many as `tol` needs, about
        ``k log(4 / tol) log(4 sqrt(kappa)) / pi**2``.
    method : {"auto", "exact", "quadrature", "extended_krylov", "krylov", "dense"}
        A formula (multiples of the identity), sums over Zolotarev's nodes (diagonal, dense and sparse A), Krylov
        spaces of the root and its inverse (`SqrtRoots`), block Lanczos (operators), or dense eigendecompositions
        (small n).
    bounds : tuple of two floats, optional
        Ends of the spectrum of `A`, of sparse matrices and operators.
    callback : callable, optional
        Called with ``(iteration, error, seconds)`` by the Krylov methods.

    Returns
    -------
    LowRankCorrectedSqrt
        An operator: ``@``, ``solve``, ``to_dense``, ``logdet``, ``sample``, ``diagonal``, ``residual_norm`` ...

    Raises
    ------
    NotPositiveDefiniteError
        If W is not positive definite: ``.gap`` is its smallest eigenvalue relative to A.
    ValueError
        If a shape, a bound or an option is wrong, or something is not finite.
    TypeError
        If `A` is of an unsupported kind.

    Warns
    -----
    ConvergenceWarning
        If a Krylov method does not meet the tolerance.
    AccuracyWarning
        If `tol` is below what the dtype gives, or block Lanczos meets a condition number above 1e5.

    Notes
    -----
    Diagonal A: ``2 n k N (k N / 2 + r)`` flops for N nodes, N and r / k being 10 to 30, and memory of ``n r``.

    References
    ----------
    .. [1] Shmueli, Drineas, Avron, arXiv 2201.13156.
    .. [2] Hale, Higham, Trefethen, SIAM J. Numer. Anal. 46 (2008).
    .. [3] Beckermann, Kressner, Schweitzer, SIAM J. Matrix Anal. Appl. 39 (2018) (``krylov``).
    .. [4] Fasi, Higham, Liu, SIAM J. Matrix Anal. Appl. 44 (2023) (multiples of the identity).

    Examples
    --------
    >>> root = rnla.sqrt_update(np.arange(1.0, 6.0), np.ones(5))
    >>> W = np.diag(np.arange(1.0, 6.0)) + 1.0
    >>> bool(np.allclose(root @ (root @ np.eye(5)), W))
    True
    """
    caller = "rnla.sqrt_update"
    return _updated(A, Z, C, sign, (bool(inverse),), tol, rank, method, bounds, callback, caller)[0]


def inv_sqrt_update(A, Z, **options):
    """Return ``(A + Z C Z^H)^(-1/2)``: `sqrt_update` with ``inverse=True``.

    Parameters
    ----------
    A, Z
        As for `sqrt_update`.
    **options
        Its options.

    Returns
    -------
    LowRankCorrectedSqrt
        The inverse root.

    Examples
    --------
    >>> T = rnla.inv_sqrt_update(np.array([3.0, 3.0]), np.array([1.0, 0.0]))
    >>> np.round((T @ np.eye(2)).diagonal(), 6).tolist()
    [0.5, 0.57735]
    """
    if "inverse" in options:
        raise TypeError("rnla.inv_sqrt_update: inverse is no option; use sqrt_update.")
    return sqrt_update(A, Z, inverse=True, **options)


def sqrt_pair_update(A, Z, *, C=None, sign=1, tol=None, rank=None, method="auto", bounds=None, callback=None):
    """Return the root and the inverse root of ``A + Z C Z^H``, for little more than one of them costs.

    Parameters
    ----------
    A, Z, C, sign, tol, rank, method, bounds, callback
        As for `sqrt_update`.

    Returns
    -------
    root, inverse : LowRankCorrectedSqrt
        ``W^(1/2)`` and ``W^(-1/2)``.

    Examples
    --------
    >>> S, T = rnla.sqrt_pair_update(np.array([1.0, 4.0]), np.array([1.0, 1.0]))
    >>> np.round(S @ (T @ np.array([1.0, 2.0])), 6).tolist()
    [1.0, 2.0]
    """
    caller = "rnla.sqrt_pair_update"
    return tuple(_updated(A, Z, C, sign, (False, True), tol, rank, method, bounds, callback, caller))


def function_update(A, Z, f, *, C=None, sign=1, tol=None, n_poles=None, bounds=None):
    """Return ``f(A + Z C Z^H) - f(A)`` as a Hermitian matrix of low rank.

    Parameters
    ----------
    A, Z
        As for `sqrt_update`; `A` must be diagonal, dense, sparse, or solve shifted systems.
    f : float, "log" or callable
        A power, the logarithm, or a function of an array of eigenvalues.
    C, sign
        As for `sqrt_update`.
    tol : float, optional
        Precision relative to the correction at which columns are dropped; 1e-8 in double and 1e-6 in single precision.
    n_poles : int, optional
        Poles of the rational Krylov space; by default those of the root to the precision `tol`, a quarter more for
        roots, half as many again for other powers between -1/2 and 1/2, twice as many beyond.
    bounds : tuple of two floats, optional
        Ends of the spectrum of `A`, of sparse matrices and operators.

    Returns
    -------
    P : array, shape (n, r)
        Columns.
    signs : ndarray, shape (r,)
        The correction is ``P diag(signs) P^H``.

    References
    ----------
    .. [1] Beckermann, Cortinovis, Kressner, Schweitzer, SIAM J. Numer. Anal. 59 (2021).

    Examples
    --------
    >>> P, signs = rnla.function_update(np.array([1.0, 2.0, 3.0]), np.ones(3), "log")
    >>> W = np.diag([1.0, 2.0, 3.0]) + 1.0
    >>> bool(abs(((P * signs) @ P.T).trace() - np.log(np.linalg.eigvalsh(W)).sum() + np.log(6)) < 1e-8)
    True
    """
    caller = "rnla.function_update"
    function, more = _function(f, caller)
    base, Z, C, sign = as_problem(A, Z, C, sign, bounds, caller)
    tol = checked_tol(tol, Z, caller)
    if not hasattr(base, "shift_solve") or getattr(base, "solvable", True) is False:
        raise TypeError(f"{caller}: A must be diagonal, dense, sparse, or have shift_solve; got a {base.kind} base.")
    update = canonical(Z, C, sign)
    span = interval(base, update, tol, True, caller)
    if not update.Z.shape[1]:
        return update.Z, np.zeros(0)
    if n_poles is None:
        n_poles = int(np.ceil(more * node_count(span.high / span.low, tol)))
    check_count(n_poles, "n_poles", caller)
    poles, _ = zolotarev_nodes(span.low, span.high, n_nodes=n_poles)
    found = rational_krylov(base, update, poles, function, tol)
    return found.P, found.signs


def _function(f, caller):
    """Return a function of eigenvalues, and how many poles it needs relative to the root."""
    if callable(f):
        return f, 2.0
    if isinstance(f, str) and f == "log":
        return np.log, 1.5
    if isinstance(f, numbers.Real) and not isinstance(f, bool) and np.isfinite(f):
        return partial(_power, exponent=float(f)), 1.25 if abs(f) == 0.5 else 1.5 if abs(f) < 0.5 else 2.0
    raise TypeError(f"{caller}: f must be a power, 'log' or callable; got {f!r}.")


def _power(x, exponent):
    return np.abs(x) ** exponent


def _updated(A, Z, C, sign, inverses, tol, rank, method, bounds, callback, caller, headroom=1.0):
    """Return a `LowRankCorrectedSqrt` for every flag of `inverses`; `headroom` widens the interval of the nodes."""
    check_choice(method, "method", METHODS, caller)
    if rank is not None:
        check_count(rank, "rank", caller, least=0)
    monitor = Monitor(callback, False, caller)
    base, Z, C, sign = as_problem(A, Z, C, sign, bounds, caller)
    tol = checked_tol(tol, Z, caller)
    update = canonical(Z, C, sign)
    span = interval(base, update, tol, True in inverses, caller)
    span = span._replace(high=headroom * span.high)
    chosen = _chosen(method, base, update, span, tol, caller)
    if not update.Z.shape[1]:
        found = [(Correction(update.Z, np.zeros(0), 0), True)] * len(inverses)
    elif chosen == "quadrature":
        run = on_diagonal if isinstance(base, Diagonalised) else on_shifted
        found = [(correction, True) for correction in run(base, update, span, tol, inverses)]
    else:
        found = [_by_other(chosen, base, update, span, tol, inverse, monitor, caller) for inverse in inverses]
    if not all(met for _, met in found):
        warn_not_converged(caller, f"{chosen}: the tolerance {tol:g} was not met")
    out = []
    for inverse, (correction, met) in zip(inverses, found, strict=True):
        result = LowRankCorrectedSqrt(
            base, correction.P, correction.signs, update, inverse, tol, span.low, span.high, correction.n_nodes, chosen,
            met,
        )  # fmt: skip
        out.append(result if rank is None else result.truncate(rank=rank))
    return out


def _by_other(method, base, update, span, tol, inverse, monitor, caller):
    if method == "exact":
        return on_scalar(base, update, inverse), True
    if method == "dense":
        return dense_correction(base, update, tol, inverse), True
    if method == "extended_krylov":
        return extended_krylov(base, update, span, tol, inverse, monitor)
    if span.high / span.low > LANCZOS_LIMIT:
        warn(
            f"{caller}: block Lanczos converges slowly at a condition number of {span.high / span.low:.1e}; give A "
            "with shift_solve", AccuracyWarning,
        )  # fmt: skip
    return lanczos(base, update, span, tol, partial(_power, exponent=-0.5 if inverse else 0.5), monitor)


def _chosen(method, base, update, span, tol, caller):
    """Return the method that is run."""
    able = {
        "exact": base.kind == "scalar",
        "quadrature": isinstance(base, Diagonalised) or getattr(base, "solvable", False),
        "extended_krylov": base.kind == "roots" or isinstance(base, Diagonalised),
        "krylov": True,
        "dense": base.kind != "operator",
    }
    if method != "auto":
        if not able[method]:
            raise ValueError(f"{caller}: method={method!r} cannot take a {base.kind} base.")
        return method
    if able["exact"]:
        return "exact"
    columns, kappa = update.Z.shape[1] * node_count(span.high / span.low, tol), span.high / span.low
    small = columns >= (1 if base.n <= SMALL else 2) * base.n and base.n <= DENSE_SIDE
    if small and kappa <= DENSE_KAPPA and able["dense"] and base.has_roots:
        return "dense"
    return next(name for name in ("quadrature", "extended_krylov", "krylov") if able[name])
