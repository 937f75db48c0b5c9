"""Nystrom approximation of positive semidefinite matrices: one product with A, in its numerically stable form."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rnla._backend import (
    adjoint,
    check_finite,
    columns,
    eps_of,
    from_host,
    is_meta,
    key_from_rng,
    real_dtype,
    to_host,
)
from rnla._errors import NotPositiveDefiniteError
from rnla._lowrank import EighResult, SVDInfo
from rnla._matrix import as_matrix
from rnla._orth import eps_of_array, orth, orthonormal_block, random_complement
from rnla._progress import Monitor
from rnla._rangefinder import (
    KINDS,
    check_choice,
    check_count,
    check_number,
    check_precision,
    check_range,
    in_range,
    thin_svd,
    warn_not_converged,
)
from rnla._sketch import test_matrix
from rnla._tall import column_squares, like, times_small

START = 16  # columns of the first block where a precision sets the rank
CLEARLY = 100.0  # an eigenvalue below minus this many rounding units of the norm is no rounding
SAMPLES = 8  # fresh vectors, where the sketch itself does not tell its error
POWER_STEPS = 4  # of the block power method for the spectral norm of the error
RETRIES = 7  # shifts tried, each ten times the one before; the third suffices for what passes as semidefinite


def nystrom(A, k=None, *, rtol=None, atol=None, norm="fro", n_iter=0, sketch="gaussian", shift="auto", check=True,
            rng=None, callback=None, progress=False, block_bytes=None):  # fmt: skip
    """Approximate a positive semidefinite matrix by ``A X (X^H A X)^+ (A X)^H`` for a random `X` of `k` columns.

    The approximation lies between zero and `A`, has the same action on `X`, and is at least as near to `A` as the
    projection of `A` on the range of `X`, from the same single read of `A`. With a precision, the number of columns is
    doubled until it is met, and every product made is used.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (n, n)
        Hermitian, positive semidefinite. Only products with it are used.
    k : int, optional
        Rank of the result; with `rtol` or `atol` the largest rank.
    rtol, atol : float, optional
        End when ``||A - V diag(w) V^H|| <= max(rtol * ||A||, atol)``, as estimated without bias from the columns used.
    norm : {"fro", 2}
        Norm in which the precision is meant; for 2 each doubling reads `A` up to five times more.
    n_iter : int
        Power iterations on `X`, each one more pass, for spectra that hardly decay.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the test matrix.
    shift : float or "auto"
        Multiple of the identity that is added to `A` for stability, and subtracted from the eigenvalues at the end;
        ``auto``: rounding of the norm of `A`. Ten times more is tried where it does not suffice.
    check : bool
        Refuse an `A` whose compression ``X^H A X`` is not Hermitian.
    rng : None, int or numpy.random.Generator
        Source of the test matrix.
    callback : callable, optional
        Called after each doubling with a record ``(iteration, error, seconds)``, the error relative to ``||A||``.
    progress : bool
        Show a progress bar.
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file.

    Returns
    -------
    EighResult
        ``eigenvalues`` (k,), non-negative and non-increasing, ``eigenvectors`` (n, k); ``.info.error_estimate`` is the
        relative Frobenius error, estimated from the sketch alone; with power iterations None unless a precision asks.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not square, visibly not Hermitian or not finite.
    NotPositiveDefiniteError
        If a compression of `A` has a clearly negative eigenvalue, below -100 rounding units of the norm.
    TypeError
        If `A` is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If the largest rank is reached before the precision.

    Notes
    -----
    One product with k columns, ``n_iter`` more, and about ``14 n k**2`` flops; memory for 4 blocks of shape (n, k),
    also where `A` is a dask array. For a real Gaussian test matrix and any ``r <= k - 2`` the expected trace of the
    error is at most ``1 + r / (k - r - 1)`` times the sum of all eigenvalues beyond the r-th.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming
       data", NeurIPS 2017, Algorithm 3.
    .. [2] Frangella, Tropp, Udell, SIAM J. Matrix Anal. Appl. 44 (2023), Algorithm 2.1, Proposition 2.2.
    .. [3] Epperly, Tropp, SIAM J. Sci. Comput. 46 (2024), arXiv 2207.06342 (leave-one-out error).

    Examples
    --------
    >>> w, V = rnla.nystrom(np.diag([4.0, 1.0, 0.0, 0.0, 0.0]), 3, rng=0)
    >>> np.round(w, 6).tolist()
    [4.0, 1.0, 0.0]
    >>> rnla.nystrom(np.diag(0.1 ** np.arange(40.0)), rtol=1e-4, rng=0).rank <= 10
    True
    """
    caller = "rnla.nystrom"
    M = as_matrix(A, caller, block_bytes=block_bytes)
    check_square(M, caller)
    check_precision(k, rtol, atol, M, caller)
    check_choice(norm, "norm", ("fro", 2), caller)
    check_count(n_iter, "n_iter", caller, least=0)
    check_choice(sketch, "sketch", KINDS, caller)
    check_choice(check, "check", (True, False), caller)
    if not (isinstance(shift, str) and shift == "auto"):
        check_number(shift, "shift", caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller, M)
    passes, matvecs = M.counter.passes, M.counter.matvecs
    adaptive, limit = rtol is not None or atol is not None, k or M.shape[0]

    def run(M, factor):
        sketches = doubling(
            M, limit, start=START if adaptive else limit, n_iter=n_iter, sketch=sketch, key=key,
            shift=shift if shift == "auto" else shift * factor, check=check, caller=caller,
        )  # fmt: skip
        if not adaptive:
            return next(sketches), True
        bound = rtol or 0.0, (atol or 0.0) * factor
        return _to_precision(M, sketches, bound, norm, key, monitor, caller)

    try:
        (found, met), factor = in_range(run, M)
    finally:
        monitor.close()
    if is_meta(found.U):
        return EighResult(found.w, found.U)
    message = "fixed rank" if not adaptive else "precision met"
    if not met:
        message = f"rank {len(found.w)} reached before the precision"
        if monitor.stopped:
            message = "ended by the callback"
        else:
            warn_not_converged(caller, message)
    norm_of = math.hypot(float(np.linalg.norm(found.w)), found.error or 0.0)
    info = SVDInfo(
        "nystrom", M.counter.passes - passes, M.counter.matvecs - matvecs, 0, met, None,
        None if found.error is None else found.error / norm_of if norm_of else 0.0, found.block, len(found.w), key,
        M.dtype, monitor.seconds, message, tuple(monitor.history),
    )  # fmt: skip
    w = from_host(found.w / factor, M.xp, real_dtype(M.xp, M.dtype), M.device)
    return EighResult(w, found.U, info)


class Sketched(NamedTuple):
    """Eigenpairs of a Nystrom approximation."""

    w: Any  # (k,) on the host, non-increasing
    U: Any  # (n, k)
    error: float | None  # estimate of the Frobenius error, where the sketch tells it
    upper: float | None  # the same plus twice the standard error of its square
    block: int  # columns multiplied last


def doubling(M, limit, *, start, n_iter, sketch, key, shift, check, caller):
    """Yield Nystrom approximations of rank `start`, twice that, and so on up to `limit`; no product is made twice.

    The test matrix is held as ``Omega T`` with orthonormal Omega: a Gaussian matrix that is nearly square is
    ill-conditioned. T is None once the columns are no longer those of the test matrix.
    """
    xp, n = M.xp, M.shape[0]
    draw = partial(test_matrix, sketch, key, n, xp=xp, dtype=M.dtype, device=M.device)
    fresh = partial(test_matrix, "gaussian", key, n, stream=1, xp=xp, dtype=M.dtype, device=M.device)
    Omega = Y = columns(xp, n, 0, dtype=M.dtype, device=M.device)
    T, used, count = np.zeros((0, 0)), 0, min(start, limit)
    while count:
        # Columns of the test matrix have norms of about the root of the dimension that is left: far above this floor.
        X, B, C = _split(draw(count, start=used), Omega, 1e4 * eps_of(xp, M.dtype))
        for step in range(n_iter):
            Z = _product(M, X, caller, first=used == 0 and step == 0)
            X = _split(Z, Omega, None)[0]
        if n_iter or X.shape[1] < count:
            T = None
        if X.shape[1] < count:  # the rank of A is below k, or that of a test matrix of signs
            span = xp.concat([Omega, X], axis=1)
            X = xp.concat([X, random_complement(span, fresh, count - X.shape[1])], axis=1)
        Z = _product(M, X, caller, first=used == 0 and n_iter == 0)
        if T is not None and not is_meta(X):
            T = np.block([[T, C], [np.zeros((count, used)), B]])
        Omega, Y = (X, Z) if not used else (xp.concat([Omega, X], axis=1), xp.concat([Y, Z], axis=1))
        used += count
        yield _factored(Omega, Y, T, shift, check, count, caller)
        count = min(used, limit - used)


def check_square(M, caller):
    """Raise unless the matrix is square."""
    if M.shape[0] != M.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {M.shape}.")


def _product(M, X, caller, *, first):
    Z = M.matmat(X)
    if first:
        check_range(M, X, Z, caller)
    check_finite(Z, caller, "A", M)
    return Z


def _split(Z, Q, floor):
    """Return P, B, C with ``Z = Q C + P B`` and P orthonormal, orthogonal to Q; without Q as wide as Z."""
    if not Q.shape[1]:
        P, B = orth(Z)
        return P, B, np.zeros((0, Z.shape[1]))
    if floor is None:  # Z is a product with A, and has its rounding
        floor = eps_of_array(Z) * math.sqrt(Z.shape[0] * float(np.max(column_squares(Z))))
    return orthonormal_block(Z, Q, floor=floor)


def _factored(Omega, Y, T, shift, check, count, caller):
    """Turn ``Y = A Omega`` into eigenpairs of ``Y (Omega^H Y)^-1 Y^H``."""
    if is_meta(Y):
        U, s, _ = thin_svd(Y)
        return Sketched(s, U, None, None, count)
    n, k = Omega.shape
    eps, scale = eps_of_array(Y), math.sqrt(float(np.sum(column_squares(Y))))
    H = to_host(adjoint(Omega) @ Y)
    skew = np.linalg.norm(H - H.conj().T)
    # A random compression keeps this share of the norms of A and of A - A^H alike.
    if check and skew > eps ** (1 / 3) * math.sqrt(k / n) * scale:
        advice = " Pass check=False to use the Hermitian part of it." if caller == "rnla.nystrom" else ""
        raise ValueError(
            f"{caller}: A must be Hermitian; for random X, X^H A X differs from its adjoint by a relative "
            f"{skew / (math.sqrt(k / n) * scale):.1e}.{advice}"
        )
    H = (H + H.conj().T) / 2
    if scale == 0:
        return Sketched(np.zeros(k), Omega, 0.0, 0.0, count)
    C, nu = _shifted_cholesky(H, eps * scale, shift, caller)
    inverse = np.linalg.inv(C)
    # The shift belongs to A, so to both of its products: added to the core alone it would bias the result.
    F = times_small(Y + nu * Omega, inverse, overwrite=True)
    U, s, Zh = thin_svd(F)
    s = to_host(s).real
    w = np.maximum(s**2 - nu, 0.0)
    error = upper = 0.0
    if k < n:
        error, upper = _leave_one_out(T, inverse, s[:, None] * to_host(Zh))
    return Sketched(w, U, error, upper, count)


def _shifted_cholesky(H, unit, shift, caller):
    """Return the upper Cholesky factor of ``H + nu I``, and nu; `unit` is the rounding of H."""
    nu = unit if shift == "auto" else shift
    for attempt in range(RETRIES):
        try:
            C = np.linalg.cholesky(H + nu * np.eye(len(H))).conj().T
            if np.diagonal(C).real.min() ** 2 >= nu / 2:  # else rounding has eaten most of the shift
                return C, nu
        except np.linalg.LinAlgError:
            pass
        lowest = np.linalg.eigvalsh(H)[0] if attempt == 0 else 0.0
        if lowest < -CLEARLY * unit:
            break
        nu = max(10 * nu, unit)
    raise NotPositiveDefiniteError(
        f"{caller}: A must be positive semidefinite; a compression of it has the eigenvalue {lowest:.3g}."
    )


def _leave_one_out(T, inverse, core):
    """Estimate the Frobenius error from the sketch itself: root of an unbiased estimate of its square, and more.

    The approximation without the i-th column x of the test matrix is wrong on x by ``Y H^-1 e_i / (H^-1)_ii``, and x is
    independent of it. With F = Y C^-1 and N = (C T)^-1 this is ``F N^H e_i / ||e_i^T N||**2``; `core` is F up to a
    factor with orthonormal columns.
    """
    if T is None or np.abs(np.diagonal(T)).min() <= 1e-6 * np.abs(np.diagonal(T)).max():
        return None, None
    N = np.linalg.inv(T) @ inverse
    squares = np.sum(np.abs(core @ N.conj().T) ** 2, axis=0) / np.sum(np.abs(N) ** 2, axis=1) ** 2
    return _root_mean(squares)


def _root_mean(squares):
    """Return the root of the mean, and of the mean plus twice its standard error."""
    mean = float(np.mean(squares))
    return math.sqrt(mean), math.sqrt(mean + 2 * float(np.std(squares)) / math.sqrt(len(squares)))


def _to_precision(M, sketches, bound, norm, key, monitor, caller):
    """Take the first approximation that meets the precision, without the eigenpairs that it does not need."""
    rtol, atol = bound
    for found in sketches:
        reference = float(np.linalg.norm(found.w)) if norm == "fro" else float(found.w[0])
        allowed = max(rtol * reference, atol)  # no more than asked: the norms of A are not smaller
        error = found.upper
        if error is None or (norm == 2 and error > allowed):
            error = _sampled_error(M, found, norm, key, caller)
        monitor(error / reference if reference else 0.0)
        if error <= allowed or monitor.stopped:
            break
    met = error <= allowed
    if not met:
        return found, False
    tail = np.sqrt(np.cumsum(found.w[::-1] ** 2))[::-1]
    keep = int(np.sum((tail if norm == "fro" else found.w) > allowed - error))
    if found.error is None and norm == "fro":
        found = found._replace(error=error)
    if keep < len(found.w):
        U = M.xp.asarray(found.U[:, :keep], copy=True)  # a view would keep all columns in memory
        total = None if found.error is None else found.error + float(tail[keep])
        found = found._replace(w=found.w[:keep], U=U, error=total)
    return found, True


def _sampled_error(M, found, norm, key, caller):
    """Estimate the norm of the error from its products with fresh random vectors."""
    n = M.shape[0]
    X = test_matrix("gaussian", key, n, min(SAMPLES, n), stream=2, xp=M.xp, device=M.device, dtype=M.dtype)
    left = found.U * like(found.w[None, :], found.U)

    def error_times(X):
        return _product(M, X, caller, first=False) - left @ (adjoint(found.U) @ X)

    Z = error_times(X)
    if norm == "fro":
        return _root_mean(column_squares(Z))[1]
    for _ in range(POWER_STEPS):
        if float(np.max(column_squares(Z))) == 0:
            return 0.0
        Z = error_times(orth(Z)[0])
    return math.sqrt(float(np.linalg.norm(to_host(adjoint(Z) @ Z), 2)))
