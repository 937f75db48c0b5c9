"""Orthonormal bases of the range of a matrix: of fixed rank, to a tolerance, and from a single pass."""

import math
import numbers
import sys
import warnings

import numpy as np

from rnla._backend import adjoint, check_finite, eps_of, from_host, host_svd, is_meta, key_from_rng, to_host
from rnla._errors import ConvergenceWarning
from rnla._lowrank import QBResult, SVDInfo
from rnla._matrix import as_matrix
from rnla._orth import orth, orth_factors, orthonormal_block
from rnla._progress import Monitor
from rnla._tall import column_squares, inner, joined, less, like, test_columns, times

KINDS = ("gaussian", "rademacher", "uniform", "sparse")
TRUSTED = 100.0  # ||A||^2 - ||B||^2 is believed down to this many rounding units of ||A||^2 a block
# Bounds on the entries of A X between which squares of squares neither overflow nor lose digits to underflow.
SAFE = {"float64": (1e-60, 1e60), "float32": (1e-4, 1e8)}


class OutOfRange(Exception):
    """Entries so large or small that their squares leave the range of the dtype: start again with `factor` times A."""

    def __init__(self, factor):
        super().__init__(f"scale by {factor}")
        self.factor = factor


def check_range(M, X, product, caller, *, power=1):
    """Check the first product with A (or, ``power=2``, with A^H A): NaN is refused, an extreme scale is reported.

    `product` is A itself if `X` is None.

    Raises
    ------
    ValueError
        If A X has a NaN or an infinity.
    OutOfRange
        If A must be scaled.
    """
    if is_meta(product):
        return
    xp = M.xp
    low, high = SAFE["float32" if M.dtype in (xp.float32, xp.complex64) else "float64"]
    top = float(xp.max(xp.abs(product)))
    if math.isfinite(top) and low**power <= top <= high**power:
        return
    # A^H A X may have overflowed or vanished where A X did not; A X itself tells.
    y = product if power == 1 else M.matmat(X[:, :1])
    check_finite(y, caller, "A", M)
    top = float(xp.max(xp.abs(y)))
    if top > 0 and abs(math.log2(top)) > 10:
        raise OutOfRange(2.0 ** -round(math.log2(top)))


def power_range(M, count, n_iter, sketch, key, caller):
    """Return an orthonormal basis, shape (m, count), of the range of ``(A A^H)^n_iter A Omega``.

    Orthonormalises after every product: otherwise all below ``eps**(1 / (2 n_iter + 1)) * sigma_1`` is lost (HMT,
    Remark 4.3). Reads A ``2 n_iter + 1`` times, or ``n_iter + 1`` where the storage forms A^H (A X) in one read.
    """
    X = test_columns(M, 1, sketch, key, count)
    if M.one_pass_gram and M.far != 1:
        for step in range(n_iter):
            Z = M.gram_matmat(X)
            if step == 0:
                check_range(M, X, Z, caller, power=2)
            X = orth(Z)[0]
        Y = M.matmat(X)
        if n_iter == 0:
            check_range(M, X, Y, caller)
        return orth(Y)[0]
    Y = M.matmat(X)
    check_range(M, X, Y, caller)
    Q = orth(Y)[0]
    for _ in range(n_iter):
        if M.H.one_pass_gram:
            Q = orth(M.H.gram_matmat(Q))[0]
            continue
        X = orth(M.rmatmat(Q))[0]
        Q = orth(M.matmat(X))[0]
    return Q


def range_finder(A, k, *, n_oversamples=10, n_iter=2, sketch="gaussian", rng=None, block_bytes=None):
    """Compute an orthonormal basis that captures most of the range of `A`.

    Reads `A` ``2 * n_iter + 1`` times (``n_iter + 1`` times for files and dask arrays).

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it are used.
    k : int
        Target rank.
    n_oversamples : int
        Columns beyond `k`; more of them lower the risk of a poor basis.
    n_iter : int
        Power iterations; each shrinks the tail by a further ``(sigma_{k+1} / sigma_k)**2``.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the test matrix.
    rng : None, int or numpy.random.Generator
        Source of the test matrix.
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file.

    Returns
    -------
    array, shape (m, min(k + n_oversamples, m, n))
        Orthonormal columns Q; ``Q @ (Q^H @ A)`` approximates A.

    Raises
    ------
    ValueError
        If `k` is out of range, or `A` is not two-dimensional or not finite.
    TypeError
        If `A` is of an unsupported kind or dtype.

    References
    ----------
    .. [1] Halko, Martinsson, Tropp, SIAM Review 53 (2011), Algorithms 4.3 and 4.4, Theorem 10.6.

    Examples
    --------
    >>> Q = rnla.range_finder(np.diag([3.0, 2.0, 0.0, 0.0]), 2, n_oversamples=0, rng=0)
    >>> bool(np.abs(Q[2:]).max() < 1e-12)
    True
    """
    caller = "rnla.range_finder"
    M = as_matrix(A, caller, block_bytes=block_bytes).spread()
    check_rank(k, M, caller)
    check_count(n_oversamples, "n_oversamples", caller, least=0)
    check_count(n_iter, "n_iter", caller, least=0)
    check_choice(sketch, "sketch", KINDS, caller)
    count = min(k + n_oversamples, *M.shape)
    key = key_from_rng(rng, caller)
    return in_range(lambda M, _: power_range(M, count, n_iter, sketch, key, caller), M)[0]


def qb(A, k=None, *, rtol=None, atol=None, norm="fro", n_iter=1, block_size="auto", sketch="gaussian", rng=None,
       callback=None, progress=False, block_bytes=None):  # fmt: skip
    """Factor ``A ~ Q B`` with orthonormal Q, to a given rank or to a given precision.

    With a precision, columns are added block by block until the error is met, then the surplus ones are dropped. Each
    block reads `A` ``2 * n_iter + 2`` times.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it are used.
    k : int, optional
        Rank; with `rtol` or `atol` the largest rank.
    rtol, atol : float, optional
        End when ``||A - Q B|| <= max(rtol * ||A||, atol)``.
    norm : {"fro", 2}
        Norm in which the precision is meant; 2 is estimated by a power method.
    n_iter : int
        Power iterations for every block.
    block_size : int or "auto"
        Columns added at a time.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the test matrix.
    rng : None, int or numpy.random.Generator
        Source of the test matrix.
    callback : callable, optional
        Called after each block with a record ``(iteration, error, seconds)``, the error relative to ``||A||``.
    progress : bool
        Show a progress bar.
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file.

    Returns
    -------
    QBResult
        ``Q`` (m, r), ``B`` (r, n); ``.info`` says whether the precision was met.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not two-dimensional or not finite.
    TypeError
        If `A` is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        If the largest rank is reached before the precision.

    References
    ----------
    .. [1] Yu, Gu, Li, SIAM J. Matrix Anal. Appl. 39 (2018), Algorithm 2 (randQB_EI), Theorem 3.

    Examples
    --------
    >>> A = np.diag([1.0, 0.1, 0.01, 0.001])
    >>> rnla.qb(A, rtol=0.05, rng=0).rank
    2
    """
    caller = "rnla.qb"
    M = as_matrix(A, caller, block_bytes=block_bytes).spread()
    check_precision(k, rtol, atol, M, caller)
    check_choice(norm, "norm", ("fro", 2), caller)
    check_count(n_iter, "n_iter", caller, least=0)
    check_choice(sketch, "sketch", KINDS, caller)
    if block_size != "auto":
        check_count(block_size, "block_size", caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller, M)
    passes, matvecs = M.counter.passes, M.counter.matvecs

    def run(M, factor):
        if rtol is None and atol is None:
            Q = power_range(M, k, n_iter, sketch, key, caller)
            return Q, adjoint(M.rmatmat(Q)), True, None
        U, s, V, met, error = adaptive_qb(
            M, k or min(M.shape), rtol, atol and atol * factor, norm, n_iter=n_iter, block_size=block_size,
            sketch=sketch, key=key, monitor=monitor, caller=caller,
        )  # fmt: skip
        return U, adjoint(V * like(s, V)), met, error

    (Q, B, converged, error), factor = in_range(run, M)
    monitor.close()
    B = B / factor if factor != 1 else B
    message = "precision met" if converged else f"rank {Q.shape[1]} reached before the precision"
    if rtol is None and atol is None:
        message = "fixed rank"
    if not converged and monitor.stopped:
        message = "ended by the callback"
    elif not converged:
        warn_not_converged(caller, message)
    info = SVDInfo(
        "qb", M.counter.passes - passes, M.counter.matvecs - matvecs, 0, converged, None, error, Q.shape[1], Q.shape[1],
        key, M.dtype, monitor.seconds, message, tuple(monitor.history),
    )  # fmt: skip
    return QBResult(Q, B, info)


def adaptive_qb(M, k, rtol, atol, norm, *, n_iter, block_size, sketch, key, monitor, caller, budget=math.inf):
    """Grow ``Q B`` by blocks until the error is below the precision.

    Return U, s, V with ``Q B = U s V^H`` and the surplus dropped, whether the precision is met, and the relative error.

    The squared error is ``||A||_F**2 - ||B||_F**2``, free of charge but a difference: once it is near its rounding, or
    if ``||A||_F`` is out of reach, fresh random vectors are multiplied by the residual instead.
    """
    xp, (m, n) = M.xp, M.shape
    width = max(10, -(-n // 100)) if block_size == "auto" else block_size
    eps, total = eps_of(xp, M.dtype), M.fro_norm_sq()
    Q = Bh = None  # B^H: appended as columns
    captured, used, scale, blocks, converged, error = 0.0, 0, 0.0, 0, False, math.inf
    sampled, samples = 0.0, 0
    while not converged and (Q is None or Q.shape[1] < k) and not monitor.stopped:
        if blocks and M.counter.passes + 2 * n_iter + 2 > budget:
            break
        count = min(width, k - (0 if Q is None else Q.shape[1]))
        X = test_columns(M, 1, sketch, key, count, start=used)
        used, blocks = used + count, blocks + 1
        Y = M.matmat(X)
        if blocks == 1:
            check_range(M, X, Y, caller)
            Q, Bh = Y[:, :0], X[:, :0]
        check_finite(Y, caller, "A", M)
        if total is None:  # E ||A x||^2 = ||A||_F^2
            sampled, samples = sampled + float(np.sum(column_squares(Y))), samples + count
        scale = max(scale, math.sqrt(float(np.max(column_squares(Y)))))
        floor = eps * math.sqrt(max(m, n)) * scale
        Qi = orthonormal_block(less(Y, Q, inner(Bh, X)), Q, floor=floor)[0]
        for _ in range(n_iter if Qi.shape[1] else 0):
            Z = orth(less(M.rmatmat(Qi), Bh, inner(Q, Qi)))[0]
            Qi = orthonormal_block(less(M.matmat(Z), Q, inner(Bh, Z)), Q, floor=0.0)[0]
        exhausted = Qi.shape[1] < count
        Bih = M.rmatmat(Qi)
        Q, Bh = joined(Q, Qi), joined(Bh, Bih)
        captured += float(np.sum(column_squares(Bih)))
        norm_sq = total if total is not None else max(sampled / samples, captured)
        bound = max((rtol or 0.0) * math.sqrt(norm_sq), atol or 0.0)
        gap = norm_sq - captured
        if norm == "fro" and total is not None and gap > TRUSTED * eps * norm_sq * math.sqrt(blocks):
            error = math.sqrt(gap)
        else:
            error, reference = sampled_error(M, Q, Bh, norm, sketch, key + 1)
            bound = max((rtol or 0.0) * (reference if norm == 2 else math.sqrt(norm_sq)), atol or 0.0)
        converged = error <= bound or exhausted
        monitor(error / math.sqrt(norm_sq) if norm_sq else 0.0)
        width = width if block_size != "auto" else min(128, math.ceil(1.5 * width))
    slack = math.sqrt(max(bound**2 - error**2, 0.0)) if norm == "fro" else max(bound - error, 0.0)
    V, s, Wh = thin_svd(Bh)  # B^H = V s W^H, so Q B = (Q W) s V^H
    s = to_host(s).real
    tail = np.sqrt(np.cumsum(s[::-1] ** 2))[::-1] if norm == "fro" else s
    keep = int(np.sum(tail > slack))
    relative = None
    if norm == "fro" and norm_sq > 0:
        relative = math.sqrt(error**2 + float(np.sum(s[keep:] ** 2))) / math.sqrt(norm_sq)
    return times(Q, to_host(adjoint(Wh))[:, :keep]), s[:keep], V[:, :keep], converged, relative


def sampled_error(M, Q, Bh, norm, sketch, key, *, count=8, steps=4):
    """Estimate ``||A - Q B||`` and ``||A||_2`` from products of the residual with fresh random vectors."""
    G = test_columns(M, 1, "gaussian", key % 2**64, count)
    Y = less(M.matmat(G), Q, inner(Bh, G))
    top = float(np.linalg.norm(inner(Bh, Bh), 2)) ** 0.5
    if norm == "fro":
        return math.sqrt(float(np.sum(column_squares(Y))) / count), top
    estimate = 0.0
    for _ in range(steps):
        G = less(M.rmatmat(Y), Bh, inner(Q, Y))
        if float(np.max(column_squares(G))) == 0:
            return estimate, top
        G = orth(G)[0]
        Y = less(M.matmat(G), Q, inner(Bh, G))
        estimate = float(np.linalg.norm(inner(Y, Y), 2)) ** 0.5
    return estimate, top


def thin_svd(X):
    """Return U, S, Vh of a tall or wide block in its own library: QR of the long side, then the SVD of the small R.

    Never by way of the eigenvalues of ``X^H X``: those lose all singular values below ``sqrt(eps) * sigma_1``.
    """
    from array_api_compat import array_namespace, device, is_dask_array

    xp = array_namespace(X)
    if is_meta(X) or 0 in X.shape:
        return tuple(xp.linalg.svd(X, full_matrices=False))
    if X.shape[0] < X.shape[1] and not is_dask_array(X):
        V, s, Uh = thin_svd(adjoint(X))
        return adjoint(Uh), s, adjoint(V)
    Q, W, R = orth_factors(X)
    U, s, Vh = host_svd(R)
    if is_dask_array(X):
        X = X._meta
        xp = array_namespace(X)
    real = xp.float32 if X.dtype in (xp.float32, xp.complex64) else xp.float64
    return times(Q, W @ U), from_host(s, xp, real, device(X)), like(Vh, X)


def in_range(compute, M, factor=1.0):
    """Return ``compute(M, 1)`` or, if squares of entries overflow, that of M times a power of two; and the power.

    A power that is known already may be given as `factor`.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # every product is checked
        try:
            return compute(M if factor == 1 else M.scaled(factor), factor), factor
        except OutOfRange as out:
            factor *= out.factor
            return compute(M.scaled(factor), factor), factor


def check_rank(k, M, caller, name="k"):
    """Raise unless `k` is an integer in ``1..min(m, n)``."""
    if isinstance(k, (bool, np.bool_)) or not isinstance(k, numbers.Integral):
        raise TypeError(f"{caller}: {name} must be an integer; got {type(k).__name__} {k!r}.")
    if not 1 <= k <= min(M.shape):
        raise ValueError(f"{caller}: {name} must be in 1..{min(M.shape)} for A of shape {M.shape}; got {k}.")


def check_precision(k, rtol, atol, M, caller):
    """Raise unless a rank or a precision is given, each in its range."""
    if k is None and rtol is None and atol is None:
        raise ValueError(f"{caller}: one of k, rtol and atol must be given; got none.")
    if k is not None:
        check_rank(k, M, caller)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None:
            check_number(value, name, caller)


def check_number(value, name, caller):
    """Raise unless `value` is a finite real number that is not negative."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{caller}: {name} must be a real number; got {type(value).__name__} {value!r}.")
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{caller}: {name} must be finite and not negative; got {value}.")


def check_count(value, name, caller, *, least=1):
    """Raise unless `value` is an integer, at least `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{caller}: {name} must be an integer; got {type(value).__name__} {value!r}.")
    if value < least:
        raise ValueError(f"{caller}: {name} must be at least {least}; got {value}.")


def check_choice(value, name, choices, caller):
    """Raise unless `value` is one of `choices`."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        raise ValueError(f"{caller}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def warn_not_converged(caller, message):
    """Issue a ConvergenceWarning at the line of the user's call."""
    warn(f"{caller}: {message}.", ConvergenceWarning)


def warn(text, category):
    """Issue a warning at the first line outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "rnla":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
