"""Leading eigenvalues and eigenvectors of Hermitian matrices of any kind, with controlled error."""

import math

import numpy as np

from rnla._backend import adjoint, check_finite, eps_of, from_host, is_meta, key_from_rng, real_dtype, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._hermitian_basis import HERMITIAN, HermitianBasis, Metric, leading, speaking_of_m
from rnla._krylov import TestColumns
from rnla._lanczos import Found, Precision, grow, lanczos, smallest_rank
from rnla._lowrank import EighResult, SVDInfo
from rnla._matrix import as_matrix
from rnla._progress import Monitor
from rnla._rangefinder import (
    KINDS,
    SAFE,
    TRUSTED,
    check_choice,
    check_count,
    check_number,
    check_precision,
    in_range,
    warn_not_converged,
)
from rnla._sketch import test_matrix

METHODS = ("auto", "dense", "krylov")
WHICH = ("LM", "LA", "SA", "BE")

# The automatic choice.
DENSE_SIDE = 256  # up to this order LAPACK is the fastest
DENSE_SHARE = 3  # LAPACK, too, where k is more than one part in this of the order
SMALL_ENTRIES = 2**20  # up to this many entries a matrix that is not dense may be made so
WIDE_BLOCK = 96  # blocks of k + n_oversamples columns up to this width
TIGHT = 1e-5  # up to this tolerance blocks are halved
IN_BLOCKS = ("dense", "file", "dask")  # kinds whose products cost the same for one column and for many
CHEAP_BLOCKS = (8, 32)  # narrowest and widest block where products are cheap beside the orthogonalisation
MAX_PASSES = 40  # default bound, for blocks of k + n_oversamples columns
STREAM_METRIC = 4


def eigh(A, k=None, *, which="LM", M=None, solve=None, rtol=None, atol=None, tol=1e-2, method="auto", n_oversamples=10,
         block_size=None, max_basis=None, max_passes=None, verify="auto", sketch="gaussian", check=True, rng=None,
         callback=None, progress=False, block_bytes=None):  # fmt: skip
    """Compute `k` eigenvalues and eigenvectors at an end of the spectrum of a Hermitian matrix, the leading one first.

    Eigenvalues are **not ascending** as in `numpy.linalg.eigh`, but in the order of `which`: by default by falling
    modulus. A block Lanczos iteration runs until the residual of every pair is below `tol` times its eigenvalue. The
    error of an eigenvalue is of the order of the square of its residual over its distance to the others: the default
    gives four correct digits on most spectra. Eigenvalues that are tiny beside the norm of `A` need many steps;
    for those next to zero, give the inverse of `A` as an operator instead.

    Parameters
    ----------
    A : array, sparse matrix, LinearOperator, dask array, memmap or chunked file array, shape (n, n)
        Real symmetric or complex Hermitian; integers are computed in float64. Only products with `A` are used.
    k : int, optional
        Number of pairs, ``1 <= k <= n``; with `rtol` or `atol` the largest rank.
    which : {"LM", "LA", "SA", "BE"}
        Largest in modulus; largest, falling; smallest, rising; or from both ends in turn, the largest first.
    M : matrix of any kind that `A` may be, shape (n, n), optional
        Hermitian positive definite, with the dtype of `A`: solve ``A x = lambda M x``. Eigenvectors are then
        orthonormal in the inner product ``x^H M y``.
    solve : callable, optional
        Returns ``M^-1 W`` for an array W of shape (n, b). Needed where `M` is not a dense array, which is factored.
    rtol, atol : float, optional
        Fixed precision: return the smallest rank found with ``||A - V w V^H||_F <= max(rtol * ||A||_F, atol)``,
        though not below rounding.
    tol : float
        Convergence: bound on the residual of each pair relative to its eigenvalue. Residuals down at rounding of
        ``||A||`` are small enough always.
    method : {"auto", "dense", "krylov"}
        ``dense`` is LAPACK, exact; ``krylov`` the iteration; ``auto`` takes LAPACK where `n` is small or `k` not small
        beside it.
    n_oversamples : int
        Columns of a block beyond `k`.
    block_size, max_basis : int, optional
        Columns multiplied at a time, and kept at most.
    max_passes : int, optional
        Bound on the number of times `A` is read. By default 40, in proportion more where blocks are narrower than
        ``k + n_oversamples``.
    verify : bool or "auto"
        Before ending, look for copies of repeated eigenvalues that a narrow block cannot see; ``auto``: if the block
        is narrower than `k`.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of the random start.
    check : bool
        Refuse `A` if products with random vectors show that it is not Hermitian. With False nothing is compared, and
        the Hermitian part of what is seen of `A` is decomposed.
    rng : None, int, numpy.random.Generator or SeedSequence
        Source of the random start; one seed gives one result on every device, up to rounding.
    callback : callable, optional
        Called after each block with a record ``(iteration, error, seconds)``; the error is what is compared with
        `tol`. Raising StopIteration ends the iteration as soon as there are `k` pairs.
    progress : bool
        Show a progress bar (extra ``viz``).
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file, and for `M`.

    Returns
    -------
    EighResult
        ``eigenvalues`` (k,), real, in the order of `which`, and ``eigenvectors`` (n, k); library, device and dtype of
        `A`. ``.info.residuals`` estimates ``||A v - w v||`` for each pair; with `M`, that of ``M^-1 A`` in the norm of
        `M`.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not square, empty, not finite or visibly not Hermitian.
    TypeError
        If `A` or another argument is of an unsupported kind or dtype.
    NotPositiveDefiniteError
        If `M` is not positive definite.

    Warns
    -----
    ConvergenceWarning
        If `max_passes` or `k` is reached before the tolerance; ``.info.converged`` is then False.

    Notes
    -----
    Passes over `A`: one for every block, and one for ``||A||_F`` where `A` is in memory. Memory: ``max_basis`` columns
    of length n, twice that with `M`; those are in memory also where `A` is a dask array, whose blocks are multiplied
    where they are. Flops beyond the products: about ``4 n c**2`` for a basis of c columns.

    References
    ----------
    .. [1] Wu, Simon, SIAM J. Matrix Anal. Appl. 22 (2000) (thick restart).
    .. [2] Grimes, Lewis, Simon, SIAM J. Matrix Anal. Appl. 15 (1994) (block Lanczos in an inner product).
    .. [3] Musco, Musco, NeurIPS 2015 (convergence of block Krylov spaces without a gap).

    Examples
    --------
    >>> w, V = rnla.eigh(np.diag([3.0, -4.0, 1.0, 0.0]), 2, rng=0)
    >>> np.round(w, 6).tolist()
    [-4.0, 3.0]
    """
    caller = "rnla.eigh"
    H = as_matrix(A, caller, block_bytes=block_bytes)
    _check_options(
        H, k, caller, which=which, rtol=rtol, atol=atol, tol=tol, method=method, n_oversamples=n_oversamples,
        block_size=block_size, max_basis=max_basis, max_passes=max_passes, verify=verify, sketch=sketch, check=check,
    )  # fmt: skip
    B = _checked_metric(M, solve, H, rtol is not None or atol is not None, caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller, H)
    passes, matvecs = H.counter.passes, H.counter.matvecs
    limit = passes + max_passes if max_passes else math.inf
    try:
        B, unit = (None, 1.0) if B is None else _near_one(B, key, caller)
        (method, found, error), factor = in_range(
            lambda H, factor: _compute(
                H, B, solve if unit == 1 else solve and (lambda W: solve(W) / unit), k, factor, key, monitor, caller,
                which=which, rtol=rtol, atol=atol, tol=tol, method=method, n_oversamples=n_oversamples,
                block_size=block_size, max_basis=max_basis, max_passes=max_passes, limit=limit,
                verify=verify, sketch=sketch, check=check,
            ),
            H,
        )  # fmt: skip
    finally:
        monitor.close()

    w, V = found.values, found.V
    if is_meta(V):
        return EighResult(w, V)
    w, V = w / factor * unit, V * math.sqrt(unit) if unit != 1 else V
    message = "converged" if found.converged else "ended by the callback" if monitor.stopped else found.message
    if not found.converged and not monitor.stopped:
        warn_not_converged(caller, message)
    info = SVDInfo(
        method, H.counter.passes - passes, H.counter.matvecs - matvecs, found.restarts, found.converged,
        None if found.residuals is None else found.residuals / factor * unit, error, found.block, len(w), key, H.dtype,
        monitor.seconds, message, tuple(monitor.history),
    )  # fmt: skip
    return EighResult(from_host(w, H.xp, real_dtype(H.xp, H.dtype), H.device), V, info)


def _compute(H, B, solve, k, factor, key, monitor, caller, *, which, rtol, atol, tol, method, n_oversamples, block_size,
             max_basis, max_passes, limit, verify, sketch, check):  # fmt: skip
    """Run one method; return its name, its pairs and an estimate of the relative error."""
    n, by_precision = H.shape[0], rtol is not None or atol is not None
    width = min((k or 1) + n_oversamples, n)
    small = H.kind == "dense" or n * n <= SMALL_ENTRIES
    if method == "auto":
        exact = n <= DENSE_SIDE or (k is not None and DENSE_SHARE * width >= n)
        method = "dense" if small and exact else "krylov"
    precision = (rtol or 0.0, (atol or 0.0) * factor) if by_precision else None
    if method == "dense":
        return method, *_exact(H, B, k, which, precision, check, caller)
    metric = None if B is None else Metric(B, solve or _cholesky_solve(B, caller), caller)
    block = min(block_size or _block(H.kind, width, k or 1, tol), n)
    default = 5 * width if H.kind in IN_BLOCKS else max(4 * (k or 1), (k or 1) + 80)
    max_basis = min(max(max_basis or default, (k or 1) + 2 * block), n)
    capacity = min(max_basis + block, n)
    basis = HermitianBasis(H, capacity, TestColumns(H, sketch, key), caller, metric=metric, check=check)
    max_passes = max_passes or MAX_PASSES * -(-width // block)  # narrow blocks cost less a pass, and need more of them
    iteration = {
        "which": which, "tol": tol, "block": block, "extra": n_oversamples, "max_basis": max_basis,
        "budget": min(limit, H.counter.passes + max_passes), "verify": block < (k or 0) if verify == "auto" else verify,
        "monitor": monitor,
    }  # fmt: skip
    if by_precision:
        goal = Precision(H, rtol, (atol or 0.0) * factor, key, limit)
        most = max_basis if k else n // DENSE_SHARE if small else n
        met = grow(basis, goal, k, limit=most, budget=limit, monitor=monitor)
        if not met and not monitor.stopped and H.counter.passes + 1 <= limit:
            if k is None and small:  # so large a part of the whole spectrum is LAPACK's
                return "krylov+dense", *_exact(H, B, k, which, precision, check, caller)
            if k is not None and basis.multiplied < n:
                lanczos(basis, k, **{**iteration, "budget": min(limit, H.counter.passes + max_passes)})
        return method, *_truncated(basis, goal, k)
    found = lanczos(basis, k, **iteration)
    if not found.converged:
        found = found._replace(message=f"max_passes = {max_passes} reached with {found.message}")
    # The norm of A is one more pass, and costs little beside the iteration where A is in memory.
    affordable = B is None and H.kind in ("dense", "sparse") and H.counter.passes < limit
    total = H.fro_norm_sq() if affordable else None
    return method, found, None if total is None else _relative_error(found.values, total, H)


def _block(kind, width, k, tol):
    if kind not in IN_BLOCKS:
        narrow, wide = CHEAP_BLOCKS
        block = min(max(8 * -(-k // 40), narrow), wide)
        return block if tol > TIGHT else max(narrow, block // 2)
    if kind == "dense" and width > WIDE_BLOCK:
        return max(32, -(-width // 3))
    # A deep Krylov space of narrow blocks reaches a tight tolerance with fewer products.
    return width if kind != "dense" or tol > TIGHT else min(width, max(32, -(-width // 2)))


def _relative_error(w, total, H):
    """Return ``||A - V w V^H||_F / ||A||_F`` of Ritz pairs, from ``||A||_F**2``."""
    # A difference of squares says nothing below its own rounding: then the error is known to be smaller than that.
    return math.sqrt(max(1.0 - np.sum(w**2) / total, TRUSTED * eps_of(H.xp, H.dtype))) if total > 0 else 0.0


def _truncated(basis, goal, k):
    """Return the fewest Ritz pairs that meet a precision, and the error."""
    pairs, rest = basis.ritz("LM"), goal.rest_sq(basis)
    bound, norm = goal.bound(basis), goal.norm(basis)
    most = len(pairs.values) if k is None else min(k, len(pairs.values))
    rank = smallest_rank(pairs.values, rest, bound)
    met = rank <= most and rest <= bound**2
    rank = min(rank, most)
    error = math.sqrt(rest + float(np.sum(pairs.values[rank:] ** 2)))
    message = "precision met" if met else f"rank {rank} reached before the precision"
    found = Found(
        pairs.values[:rank], basis.vectors(pairs, rank), pairs.residuals[:rank], met, 0, max(rank, 1), message
    )
    if not math.isfinite(error):  # there was no pass left to measure it
        return found, None
    return found, error / norm if norm > 0 else 0.0


def _exact(H, B, k, which, precision, check, caller):
    """Decompose the whole matrix by LAPACK."""
    xp, X = H.xp, H.to_dense()
    H.counter.passes += H.array is not None  # otherwise counted by what formed X
    check_finite(X, caller, "A", H)
    if check and not is_meta(X):
        _check_entries(X, xp, caller)
    w, V = _lapack(xp, X) if B is None else _generalised(xp, X, B, caller)
    if is_meta(w):
        return Found(w[:k], V[:, :k], None, True, 0, H.shape[0]), None
    w = to_host(w)
    order = leading(w, which)
    top = float(np.abs(w).max()) or 1.0  # squares of what is divided by it stay in range
    total = float(np.sum((w / top) ** 2))
    met = True
    if precision is not None:
        bound = max(precision[0] * math.sqrt(total), precision[1] / top)
        rank = smallest_rank(w[order] / top, 0.0, bound)
        met, k = k is None or rank <= k, rank if k is None else min(k, rank)
    w = w[order]
    V = xp.take(V, xp.asarray(order[:k], device=H.device), axis=1)
    error = math.sqrt(float(np.sum((w[k:] / top) ** 2)) / total) if total > 0 else 0.0
    message = "precision met" if met else f"rank {k} reached before the precision"
    return Found(w[:k], V, np.zeros(k), met, 0, H.shape[0], message), error if B is None else None


def _lapack(xp, X):
    try:
        return xp.linalg.eigh(X)
    except np.linalg.LinAlgError:  # divide and conquer has, rarely, not converged where QR iteration does
        from scipy.linalg import eigh

        return eigh(X, driver="ev", check_finite=False)


def _generalised(xp, X, B, caller):
    """Reduce ``A x = lambda M x`` by the Cholesky factor of M to a standard problem."""
    L = _cholesky(xp, B.to_dense(), caller)
    C = xp.linalg.solve(L, adjoint(xp.linalg.solve(L, X)))
    w, Y = _lapack(xp, (C + adjoint(C)) / 2)
    return w, xp.linalg.solve(adjoint(L), Y)


def _cholesky(xp, X, caller):
    check_finite(X, caller, "M")
    try:
        return xp.linalg.cholesky(X)
    except (np.linalg.LinAlgError, RuntimeError) as error:  # torch's own error is a RuntimeError
        raise NotPositiveDefiniteError(f"{caller}: M must be positive definite, to working precision.") from error


def _cholesky_solve(B, caller):
    """Return the function ``W -> M^-1 W`` of a dense M."""
    xp, X = B.xp, B.to_dense()
    L = _cholesky(xp, X, caller)
    if isinstance(L, np.ndarray):
        from scipy.linalg import cho_solve

        return lambda W: cho_solve((L, True), W, check_finite=False)
    # The standard has no triangular solve: products with the inverse factor are as accurate as M is well conditioned.
    inverse = xp.linalg.inv(L)
    return lambda W: adjoint(inverse) @ (inverse @ W)


def _check_entries(X, xp, caller):
    """Raise unless a matrix equals its adjoint, but for an error that rounding may have left."""
    least, roots = HERMITIAN
    scale = float(xp.max(xp.abs(X)))
    defect = float(xp.max(xp.abs(X - adjoint(X))))
    if defect > max(least, roots * math.sqrt(eps_of(xp, X.dtype))) * scale:
        raise ValueError(
            f"{caller}: A must be Hermitian; got entries that differ from their mirror image by {defect / scale:.1e} "
            f"of the largest entry (check=False skips this test)."
        )


def _checked_metric(M, solve, H, by_precision, caller):
    """Return `M` as a Matrix, or None if there is none."""
    if M is None:
        if solve is not None:
            raise ValueError(f"{caller}: solve must be None where there is no M; got {type(solve).__name__}.")
        return None
    with speaking_of_m(caller):
        B = as_matrix(M, caller)
    if by_precision:
        raise ValueError(f"{caller}: M must be None where rtol or atol sets the rank; got shape {B.shape}.")
    if B.shape != H.shape:
        raise ValueError(f"{caller}: M must have the shape {H.shape} of A; got {B.shape}.")
    if B.xp is not H.xp or B.dtype != H.dtype or B.device != H.device:
        raise TypeError(
            f"{caller}: M must have the library, dtype and device of A, {H.xp.__name__} {H.dtype} {H.device}; got "
            f"{B.xp.__name__} {B.dtype} {B.device}."
        )
    if solve is not None and not callable(solve):
        raise TypeError(f"{caller}: solve must be callable or None; got {type(solve).__name__}.")
    if solve is None and B.kind != "dense":
        raise ValueError(
            f"{caller}: solve must be given where M is not a dense array: a function that returns M^-1 W, for example "
            f"scipy.sparse.linalg.splu(M).solve; got None for M of kind {B.kind!r}."
        )
    return B


def _near_one(B, key, caller):
    """Return M times a power of two, so that squares stay in range, and that power."""
    x = test_matrix("gaussian", key, B.shape[0], 1, stream=STREAM_METRIC, xp=B.xp, device=B.device, dtype=B.dtype)
    if is_meta(x):
        return B, 1.0
    with speaking_of_m(caller):
        y = B.matmat(x)
        check_finite(y, caller, "M")
    top = float(B.xp.max(B.xp.abs(y)))
    low, high = SAFE["float32" if B.dtype in (B.xp.float32, B.xp.complex64) else "float64"]
    if top == 0 or low <= top <= high:
        return B, 1.0
    unit = 2.0 ** -round(math.log2(top))
    return B.scaled(unit), unit


def _check_options(H, k, caller, *, which, rtol, atol, tol, method, n_oversamples, block_size, max_basis, max_passes,
                   verify, sketch, check):  # fmt: skip
    n, columns = H.shape
    if n != columns:
        raise ValueError(f"{caller}: A must be square; got shape {H.shape}.")
    check_precision(k, rtol, atol, H, caller)
    check_number(tol, "tol", caller)
    for value, name, choices in (
        (which, "which", WHICH), (method, "method", METHODS), (verify, "verify", (True, False, "auto")),
        (sketch, "sketch", KINDS), (check, "check", (True, False)),
    ):  # fmt: skip
        check_choice(value, name, choices, caller)
    check_count(n_oversamples, "n_oversamples", caller, least=0)
    for value, name in ((block_size, "block_size"), (max_basis, "max_basis"), (max_passes, "max_passes")):
        if value is not None:
            check_count(value, name, caller)
    if which != "LM" and (rtol is not None or atol is not None):
        raise ValueError(f"{caller}: which must be 'LM' where rtol or atol sets the rank; got {which!r}.")
    if max_basis is not None and max_basis < (k or 1):
        raise ValueError(f"{caller}: max_basis must be at least k = {k}; got {max_basis}.")
