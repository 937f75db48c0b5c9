"""Truncated singular value decomposition of matrices of any kind, with controlled error."""

from functools import partial

import numpy as np

from rnla._backend import adjoint, check_finite, eps_of, from_host, host_svd, is_meta, key_from_rng, real_dtype, to_host
from rnla._checkpoint import Checkpoint, fingerprint
from rnla._krylov import TestColumns, Triplets, short_side, two_sided
from rnla._lowrank import SVDInfo, SVDResult
from rnla._matrix import as_matrix
from rnla._onepass import generalized_nystrom, row_stream
from rnla._orth import orth, orth_factors, random_complement
from rnla._progress import Monitor
from rnla._rangefinder import (
    KINDS,
    TRUSTED,
    adaptive_qb,
    check_choice,
    check_count,
    check_number,
    check_precision,
    check_range,
    in_range,
    power_range,
    thin_svd,
    warn_not_converged,
)
from rnla._tall import in_chunks, joined, part, pivots, scale_columns, test_columns, times, times_small

METHODS = ("auto", "dense", "qr", "rsi", "krylov", "gram", "rowstream", "gnystrom")

# The automatic choice. `python -m bench svd --table choice` measures these thresholds again.
DENSE_SIDE = 64  # up to this short side LAPACK's SVD is the fastest
DENSE_SHARE = 3  # LAPACK, too, where k is more than one part in this of the short side ...
DENSE_LIMIT = 3000  # ... and the short side is at most this
QR_ASPECT = 3  # from this ratio of the sides, LAPACK runs on the triangular factor instead
QR_WIDTH = 6  # an exact SVD by QR beats an iteration where the short side is at most this many blocks
WIDE_BLOCK = 96  # blocks of k + n_oversamples columns up to this width
SMALL_ENTRIES = 2**20  # up to this many entries a matrix that is not dense may be made so
IN_BLOCKS = ("dense", "file", "dask", "stream")  # kinds whose products cost the same for one column and for many
MAX_PASSES = 40  # default bound, for blocks of k + n_oversamples columns
TIGHT = 1e-5  # up to this tolerance blocks are halved
CHEAP_BLOCKS = (8, 32)  # narrowest and widest block where products are cheap beside the orthogonalisation


def svd(A, k=None, *, rtol=None, atol=None, tol=1e-2, method="auto", n_oversamples=10, n_iter=2, block_size=None,
        max_basis=None, max_passes=None, compute_uv=True, center=False, flip_sign=True, verify="auto",
        sketch="gaussian", rng=None, callback=None, progress=False, block_bytes=None, checkpoint=None):  # fmt: skip
    """Compute the leading `k` singular triplets of `A`, or as many as a precision needs.

    By default a block Krylov iteration runs until the residual of every triplet is below `tol` times its singular
    value. The error of a singular value is of the order of the square of its residual: the default gives four correct
    digits on most spectra, in 4 to 12 passes over `A`.

    Parameters
    ----------
    A : array, sparse matrix, LinearOperator, dask array, memmap or chunked file array, shape (m, n)
        Real or complex; integers are computed in float64. Only products with `A` and its adjoint are used.
    k : int, optional
        Rank of the result, ``1 <= k <= min(m, n)``; with `rtol` or `atol` the largest rank.
    rtol, atol : float, optional
        Fixed precision: return the smallest rank found with ``||A - U S Vh||_F <= max(rtol * ||A||_F, atol)``.
    tol : float
        Convergence: bound on the residual of each triplet relative to its singular value.
    method : {"auto", "dense", "qr", "rsi", "krylov", "gram", "rowstream", "gnystrom"}
        ``dense`` is LAPACK, ``qr`` an orthogonal factorisation and the SVD of its small factor, both exact.
        ``gram`` is block Krylov with orthogonalisation on the short side only and continues with ``krylov``, which
        orthogonalises both sides, where small singular values demand it. ``rsi`` is subspace iteration with `n_iter`
        steps and no test. ``rowstream`` and ``gnystrom`` do not adapt and read `A` once and twice.
        ``auto`` chooses from the shape and kind of `A`; see the user guide.
    n_oversamples : int
        Columns of a block beyond `k`.
    n_iter : int
        Power iterations of ``rsi``.
    block_size, max_basis : int, optional
        Columns multiplied at a time, and kept at most, by the Krylov methods.
    max_passes : int, optional
        Bound on the number of times `A` is read; 1 chooses ``rowstream``. By default 40, in proportion more where
        blocks are narrower than ``k + n_oversamples``.
    compute_uv : bool
        With False, return the singular values alone.
    center : bool
        Subtract the mean of every column, implicitly (one pass more).
    flip_sign : bool
        Make the entry of largest modulus in every column of U real and positive. Vectors of a repeated singular value
        remain free to rotate.
    verify : bool or "auto"
        Before ending, look for copies of repeated singular values that a narrow block cannot see; ``auto``: if the
        block is narrower than `k`.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the test matrix.
    rng : None, int, numpy.random.Generator or SeedSequence
        Source of the test matrix; one seed gives one result on every device, up to rounding.
    callback : callable, optional
        Called after each block with a record ``(iteration, error, seconds)``; the error is what is compared with
        `tol`. Raising StopIteration ends the iteration with what it has.
    progress : bool
        Show a progress bar (extra ``viz``).
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file.
    checkpoint : path, optional
        A file for the state of method ``gram``, replaced after every pass and removed at the end. If it exists, the
        run that was interrupted goes on, with the same arguments (`rng` may be None), to the same result bit for bit.

    Returns
    -------
    SVDResult
        ``U`` (m, k), ``S`` (k,) non-increasing, ``Vh`` (k, n); library, device and dtype of `A`. The array ``S`` alone
        with ``compute_uv=False``. Of a dask array, the factor along the side that is cut into chunks, or the longer
        one if both are, is a dask array whose blocks stay with the workers: ``U`` of a tall array.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not two-dimensional, empty or not finite, or `checkpoint` is damaged
        or that of another run.
    TypeError
        If `A` or another argument is of an unsupported kind or dtype.
    OSError
        If a block of a file cannot be read.

    Warns
    -----
    ConvergenceWarning
        If `max_passes` or `k` is reached before the tolerance; ``.info.converged`` is then False.
    AccuracyWarning
        If the method that was asked for cannot resolve the smallest singular values in the dtype of `A`.

    Notes
    -----
    Passes over `A`: two for every block, and one at the end for sparse matrices and files; one for every block of a
    file or dask array whose rows can be multiplied in one read. Memory: ``max_basis`` columns of the short side, and of
    the long side for dense `A`. Flops beyond the products: about ``4 n c**2`` for a basis of c columns of length n.

    Dask arrays: a product is one graph with a task per block, on the scheduler that is active; in the memory of the
    caller are `max_basis` columns of the side that is not kept with the workers, and theirs holds that many of the
    other for ``krylov`` and the precision runs, ``k + n_oversamples`` elsewhere. `A` is read in one go as above if a
    row (column) of blocks has up to 256 MiB or is one block. ``dense`` brings `A` into memory, as ``auto`` does below
    one million entries.

    References
    ----------
    .. [1] Halko, Martinsson, Tropp, SIAM Review 53 (2011).
    .. [2] Musco, Musco, NeurIPS 2015 (block Krylov).
    .. [3] Tropp, Webber, arXiv 2306.12418 (analysis and numerically stable forms).

    Examples
    --------
    >>> U, S, Vh = rnla.svd(np.diag([3.0, 2.0, 1.0, 0.0]), 2, rng=0)
    >>> np.round(S, 6).tolist()
    [3.0, 2.0]
    """
    return _svd(
        A, k, "rnla.svd", rtol=rtol, atol=atol, tol=tol, method=method, n_oversamples=n_oversamples, n_iter=n_iter,
        block_size=block_size, max_basis=max_basis, max_passes=max_passes, compute_uv=compute_uv, center=center,
        flip_sign=flip_sign, verify=verify, sketch=sketch, rng=rng, callback=callback, progress=progress,
        block_bytes=block_bytes, checkpoint=checkpoint,
    )  # fmt: skip


def svdvals(A, k=None, **options):
    """Compute the leading `k` singular values of `A`.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        The matrix.
    k : int, optional
        Number of singular values; may be left out if `rtol` or `atol` is given.
    **options
        Those of `rnla.svd`, but for `compute_uv`.

    Returns
    -------
    array, shape (k,)
        Non-increasing.

    Examples
    --------
    >>> np.round(rnla.svdvals(np.diag([3.0, 2.0, 1.0]), 2, rng=0), 6).tolist()
    [3.0, 2.0]
    """
    return svd_as("rnla.svdvals", A, k, **{**options, "compute_uv": False})


def svd_as(caller, A, k, **options):
    """Run `svd` for a function of another name, which its errors will show."""
    known = svd.__kwdefaults__ or {}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{caller}: unexpected option {unknown[0]!r}; rnla.svd has {', '.join(known)}.")
    return _svd(A, k, caller, **{**known, **options})


def _svd(A, k, caller, *, rng, callback, progress, center, block_bytes, checkpoint, **options):
    M = as_matrix(A, caller, block_bytes=block_bytes).spread()
    _check_options(M, k, caller, **options)
    key, saved = key_from_rng(rng, caller), None
    if checkpoint is not None:
        saved = _opened(checkpoint, M, k, center, caller, seed=None if rng is None else key, **options)
        key = saved.seed = key if saved.seed is None else saved.seed
    monitor = Monitor(callback, progress, caller, M)
    passes, matvecs = M.counter.passes, M.counter.matvecs
    try:
        if center:
            with np.errstate(over="ignore", invalid="ignore"):  # of a mean that is not finite: found in the products
                M = M.centered(M.col_mean() if saved is None else saved.once("mean", M.col_mean, M))
        (method, found, error), factor = in_range(
            lambda M, factor: _compute(M, k, factor, key, monitor, caller, saved, **options),
            M,
            1.0 if saved is None else saved.factor,
        )
    finally:
        monitor.close()

    U, S, V = found.U, found.s / factor, found.V
    if is_meta(U):
        return SVDResult(U, S, adjoint(V)) if options["compute_uv"] else S
    message = "converged" if found.converged else "ended by the callback" if monitor.stopped else found.message
    if saved is not None:
        message += saved.said
        saved.remove()
    if not found.converged and not monitor.stopped:
        warn_not_converged(caller, message)
    info = SVDInfo(
        method, M.counter.passes - passes, M.counter.matvecs - matvecs, found.restarts, found.converged,
        None if found.residuals is None else found.residuals / factor, error, found.block, len(S), key, M.dtype,
        monitor.seconds, message, tuple(monitor.history),
    )  # fmt: skip
    S = from_host(S, M.xp, real_dtype(M.xp, M.dtype), M.device)
    if not options["compute_uv"]:
        return S
    U, V = (in_chunks(X, M, axis) for axis, X in enumerate((U, V)))
    if options["flip_sign"]:
        U, V = flipped(U, V)
    return SVDResult(U, S, adjoint(V), info)


def _compute(M, k, factor, key, monitor, caller, saved, *, rtol, atol, method, n_oversamples, n_iter, max_passes,
             sketch, compute_uv, flip_sign, **krylov):  # fmt: skip
    """Run one method; return its name, its triplets and an estimate of the relative error."""
    if saved is not None:
        saved.begin(M.counter, factor)
    limit = M.counter.passes + max_passes if max_passes else np.inf
    if rtol is not None or atol is not None:
        U, s, V, met, error = adaptive_qb(
            M, k or min(M.shape), rtol, atol and atol * factor, "fro", n_iter=1, block_size="auto", sketch=sketch,
            key=key, monitor=monitor, caller=caller, budget=limit,
        )  # fmt: skip
        ended = f"max_passes = {max_passes} or rank {len(s)}" if max_passes else f"rank {len(s)}"
        message = "precision met" if met else f"{ended} reached before the precision"
        return "qb", Triplets(U, s, V, None, met, 0, max(len(s), 1), message), error
    if method == "auto":
        method = _choose(M, k, n_oversamples, max_passes)
    count = min(k + n_oversamples, *M.shape)
    if method in ("dense", "qr"):
        return method, *_exact(M, k, method, caller)
    if method == "rsi":
        Q = power_range(M, count, n_iter, sketch, key, caller)
        V, s, Zh = thin_svd(M.rmatmat(Q))
        found = _direct(times(Q, adjoint(Zh)), s, V, k, count)
    elif method in ("rowstream", "gnystrom"):
        one_pass = row_stream if method == "rowstream" else generalized_nystrom
        U, s, V, total = one_pass(M, k, n_oversamples, sketch, key, caller)
        found = _completed(_direct(U, s, V, k, count), M, k, key)
        return method, found, None if total is None else relative_error(M, found.s, total)
    else:
        method, found = _iterate(
            M, k, key, monitor, caller, method, n_oversamples, max_passes, sketch, compute_uv, saved, **krylov
        )
    found = _completed(found, M, k, key)
    # The norm of A is one more pass, and costs little beside the method where A is in memory.
    affordable = M.kind in ("dense", "sparse") and not is_meta(found.V) and M.counter.passes < limit
    total = M.fro_norm_sq() if affordable else None
    return method, found, None if total is None else relative_error(M, found.s, total)


def _opened(path, M, k, center, caller, *, seed, rtol, atol, method, compute_uv, flip_sign, n_iter, **same):
    """Return the checkpoint of a run that can have one."""
    if rtol is not None or atol is not None:
        raise ValueError(f"{caller}: checkpoint must be None where rtol or atol sets the rank; got {path!r}.")
    chosen = _choose(M, k, same["n_oversamples"], same["max_passes"]) if method == "auto" else method
    if chosen != "gram":
        choice = ", the choice of 'auto' for this A" if method == "auto" else ""
        raise ValueError(f"{caller}: checkpoint must be None but for method 'gram'; got method {chosen!r}{choice}.")
    settings = {
        "shape": M.shape, "dtype": str(M.dtype), "kind": M.kind, "k": k, "center": bool(center), **same, "seed": seed,
        "products in one read, by rows and by columns (as block_bytes and chunks allow)":
            (M.one_pass_gram, M.H.one_pass_gram),
        "fingerprint": fingerprint(M),
    }  # fmt: skip
    return Checkpoint(path, settings, caller)


def _choose(M, k, n_oversamples, max_passes):
    """Choose a method from the shape and the kind of A; the thresholds are those at the head of this file."""
    short, long = sorted(M.shape)
    width = k + n_oversamples
    if max_passes == 1:
        return "rowstream"
    if M.kind == "dense" or short * long <= SMALL_ENTRIES:
        tall = long >= QR_ASPECT * short
        if short <= DENSE_SIDE or (DENSE_SHARE * width >= short and short <= DENSE_LIMIT):
            return "qr" if tall else "dense"
        if tall and short <= QR_WIDTH * width and M.kind == "dense":
            return "qr"
    return "gram"


def _exact(M, k, method, caller):
    if method == "qr" and M.far == 1 and M.shape[0] <= M.shape[1]:
        found, error = _exact(M.H, k, method, caller)
        return found._replace(U=found.V, V=found.U), error
    if method == "qr" and M.far == 0 and M.shape[0] >= M.shape[1]:  # A itself, one chunk wide
        X = M.matmat(M.xp.eye(M.shape[1], dtype=M.dtype, device=M.device))
    else:
        X = M.to_dense()
    M.counter.passes += M.array is not None  # otherwise counted by what formed X
    check_finite(X, caller, "A", M)
    if method == "qr":
        check_range(M, None, X, caller)
        U, s, Vh = thin_svd(X)
    else:
        U, s, Vh = _lapack(M.xp, X)
    V = adjoint(Vh)
    if is_meta(s):
        return Triplets(U[:, :k], s[:k], V[:, :k], None, True, 0, k), None
    s = to_host(s)
    squares = (s / max(s[0], np.finfo(s.dtype).tiny)) ** 2
    error = float(np.sqrt(squares[k:].sum() / squares.sum())) if s[0] > 0 else 0.0
    U, V = (part(X, k) for X in (U, V))  # a view would keep all columns in memory
    return Triplets(U, s[:k], V, np.zeros(k), True, 0, min(M.shape)), error


def _lapack(xp, X):
    try:
        return xp.linalg.svd(X, full_matrices=False)
    except np.linalg.LinAlgError:  # divide and conquer has, rarely, not converged where QR iteration does
        from scipy.linalg import svd

        return svd(X, full_matrices=False, lapack_driver="gesvd", check_finite=False)


def _direct(U, s, V, k, block):
    s = s[:k] if is_meta(s) else to_host(s[:k])
    return Triplets(U[:, :k], s, V[:, :k], None, True, 0, block)


def _iterate(M, k, key, monitor, caller, method, n_oversamples, max_passes, sketch, compute_uv, saved, *, tol,
             block_size, max_basis, verify):  # fmt: skip
    """Run the Krylov methods on the short side, or on the side on which one read gives ``A^H (A X)``."""
    swap = M.shape[0] < M.shape[1] and (M.H.one_pass_gram or not M.one_pass_gram) if M.far is None else M.far == 1
    W = M.H if swap else M
    side = W.shape[1]
    block = min(block_size or _block(M.kind, k, k + n_oversamples, tol), side)
    default = 5 * (k + n_oversamples) if M.kind in IN_BLOCKS else max(4 * k, k + 80)
    basis = min(max(max_basis or default, k + 2 * block), side)
    limits = {
        "tol": tol, "extra": n_oversamples, "verify": block < k if verify == "auto" else verify, "monitor": monitor,
        "fresh": TestColumns(W, sketch, key), "caller": caller,
    }  # fmt: skip
    # Narrow blocks cost less a pass and need more of them.
    max_passes = max_passes or MAX_PASSES * max(1, -(-(k + n_oversamples) // block))
    budget = W.counter.passes + max_passes
    if method == "gram":
        # Elsewhere one more pass at the end costs less than the memory, if there is one left.
        images = M.kind in ("dense", "operator") or (max_passes < 3 and not W.one_pass_gram)
        found = short_side(
            W, k, block=block, max_basis=basis, max_passes=max_passes, keep_images=images, saved=saved, **limits
        )
        if found.squared_away and not monitor.stopped:
            left = budget - W.counter.passes
            if not found.converged:
                pass  # the passes are spent already
            elif left < 2:
                found = found._replace(converged=False, message="small singular values not resolved")
            else:
                method = "gram+krylov"
                start = joined(found.V, limits["fresh"](min(n_oversamples + 1, side)))[:, :side]
                found = two_sided(W, k, orth(start)[0], max_basis=basis, max_passes=left, **limits)
        if found.U is None and (compute_uv or found.noise > np.sqrt(eps_of(W.xp, W.dtype))):
            found = _with_left(W, found)
    else:
        found = two_sided(W, k, orth(limits["fresh"](block))[0], max_basis=basis, max_passes=max_passes, **limits)
    if not found.converged:
        found = found._replace(message=f"max_passes = {max_passes} reached with {found.message}")
    return method, found._replace(U=found.V, V=found.U) if swap else found


def _with_left(M, found):
    """Form the left vectors by one more pass; with it the values lose no digits to squaring."""
    U, W, R = orth_factors(M.matmat(found.V), overwrite=True)
    X, s, Zh = host_svd(R)
    U, V = times_small(U, W @ X, overwrite=True), times(found.V, Zh.conj().T)
    # The new vectors mix old ones: within a cluster, where residuals are small by luck, arbitrarily.
    return found._replace(U=U, s=s, V=V, residuals=np.abs(Zh) @ found.residuals)


def _block(kind, k, width, tol):
    if kind == "dense":
        if width > WIDE_BLOCK:
            return max(32, -(-width // 3))
        # A deep Krylov space of narrow blocks reaches a tight tolerance with fewer products.
        return width if tol > TIGHT else min(width, max(32, -(-width // 2)))
    if kind in IN_BLOCKS:
        return width
    narrow, wide = CHEAP_BLOCKS
    block = min(max(8 * -(-k // 40), narrow), wide)
    return block if tol > TIGHT else max(narrow, block // 2)


def _completed(found, M, k, key):
    """Fill up with zero singular values and random orthonormal vectors if A has lower rank than `k`."""
    missing = k - len(found.s)
    if missing <= 0:
        return found
    parts = []
    for X, axis in ((found.U, 0), (found.V, 1)):
        if X is not None:
            draw = partial(test_columns, M, axis, "gaussian", key, stream=axis + 1)
            X = joined(X, random_complement(X, draw, missing))
        parts.append(X)
    padding = np.zeros(missing)
    unknown = padding if found.converged else padding + np.inf  # zeros may stand in for triplets not found yet
    residuals = None if found.residuals is None else np.concatenate([found.residuals, unknown])
    return found._replace(U=parts[0], V=parts[1], s=np.concatenate([found.s, padding]), residuals=residuals)


def relative_error(M, s, total):
    """Return ``||A - U S Vh||_F / ||A||_F`` of a projection, from ``||A||_F**2``."""
    # A difference of squares says nothing below its own rounding: then the error is known to be smaller than that.
    floor = TRUSTED * eps_of(M.xp, M.dtype)
    return float(np.sqrt(max(1.0 - np.sum(s**2) / total, floor))) if total > 0 else 0.0


def flipped(U, V):
    """Turn every pair of vectors so that the entry of U of largest modulus is real and positive."""
    if not U.shape[1]:
        return U, V
    pivot = pivots(U)
    modulus = np.abs(pivot)
    unit = np.where(modulus > 0, pivot / np.where(modulus > 0, modulus, 1.0), 1.0)
    if (unit == 1.0).all():
        return U, V
    unit = unit.conj()
    return scale_columns(U, unit), scale_columns(V, unit)


def _check_options(M, k, caller, *, rtol, atol, tol, method, n_oversamples, n_iter, block_size, max_basis, max_passes,
                   compute_uv, flip_sign, verify, sketch):  # fmt: skip
    check_precision(k, rtol, atol, M, caller)
    check_number(tol, "tol", caller)
    check_choice(method, "method", METHODS, caller)
    check_choice(verify, "verify", (True, False, "auto"), caller)
    check_choice(sketch, "sketch", KINDS, caller)
    check_count(n_oversamples, "n_oversamples", caller, least=0)
    check_count(n_iter, "n_iter", caller, least=0)
    for value, name in ((block_size, "block_size"), (max_basis, "max_basis"), (max_passes, "max_passes")):
        if value is not None:
            check_count(value, name, caller)
    if method != "auto" and (rtol is not None or atol is not None):
        raise ValueError(f"{caller}: method must be 'auto' where rtol or atol sets the rank; got {method!r}.")
    if max_passes == 1 and method not in ("auto", "dense", "qr", "rowstream"):
        raise ValueError(f"{caller}: max_passes must be at least 2 for method {method!r}; got 1.")
    if max_basis is not None and max_basis < min(k or 1, *M.shape):
        raise ValueError(f"{caller}: max_basis must be at least k = {k}; got {max_basis}.")
