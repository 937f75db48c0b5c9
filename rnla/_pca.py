"""Principal component analysis of matrices of any kind: centred without being copied or made dense."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from rnla._backend import adjoint, check_finite, eps_of, from_host, key_from_rng, real_dtype, to_host
from rnla._dask_graph import computed
from rnla._errors import AccuracyWarning
from rnla._lowrank import SVDInfo
from rnla._matrix import as_matrix
from rnla._matrix_views import RUN, adjoint_product, spans, wide_dtype
from rnla._progress import Monitor
from rnla._rangefinder import (
    check_choice,
    check_number,
    check_precision,
    check_range,
    in_range,
    warn,
    warn_not_converged,
)
from rnla._sketch import test_matrix
from rnla._svd import METHODS, flipped, svd_as

COVARIANCE_SIDE = 1500  # features up to which the covariance matrix may be formed ...
COVARIANCE_BLOCKS = 12  # ... if they are at most this many times k + 10: else a Krylov iteration multiplies less
TINY = 1e-280  # squares below it may have lost digits to underflow
LARGE_ENTRIES = 2**26  # of a block of rows in double precision that is squared as it is
FIRST_ROWS = 256  # whose mean is the origin about which the others are summed
CANCELLATION = 4.0  # squares of a mean to be subtracted, over the largest eigenvalue: five times its rounding at most
UNSEEN = 1e-12  # or relative rounding of the smallest eigenvalue that is asked for
PROBES = 32  # random vectors that estimate the variance which is left, where the entries are out of reach


@dataclass(frozen=True, eq=False, repr=False)
class PCAResult:
    """Principal components, and how much of the variance they explain.

    Attributes
    ----------
    components : array, shape (k, n)
        Orthonormal rows, leading first; the entry of largest modulus in each is positive.
    explained_variance : array, shape (k,)
        Variance along each component, with ``m - 1`` in the denominator; in the squared units of A.
    explained_variance_ratio : array, shape (k,)
        The same over the total variance.
    singular_values : array, shape (k,)
        Of the centred (and scaled) matrix.
    mean : array, shape (n,)
        Mean of every column; zero if it was not to be subtracted.
    n_samples : int
        Number m of rows.
    scale : array or None, shape (n,)
        Standard deviation by which every column was divided.
    noise_variance : float
        Mean variance along the directions that were left out.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> A = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    >>> result = rnla.pca(A, 1, rng=0)
    >>> bool(np.allclose(result.inverse_transform(result.transform(A)), A))
    True
    """

    components: Any
    explained_variance: Any
    explained_variance_ratio: Any
    singular_values: Any
    mean: Any
    n_samples: int
    scale: Any
    noise_variance: float
    info: SVDInfo

    def transform(self, A):
        """Return the coordinates of the rows of `A` along the components, shape (rows, k); A is not made dense.

        Parameters
        ----------
        A : matrix of any kind that `rnla.svd` accepts, shape (rows, n)
            Rows in the units of the matrix that was analysed. The coordinates of a dask array whose rows are cut into
            chunks are a dask array, computed and held by the workers.
        """
        caller = "rnla.PCAResult.transform"
        M = as_matrix(A, caller).spread()
        n = self.components.shape[1]
        if M.shape[1] != n:
            raise ValueError(f"{caller}: A must have {n} columns; got shape {M.shape}.")
        weights = to_host(self.components).conj().T
        if self.scale is not None:
            weights = weights / to_host(self.scale)[:, None]
        mean = to_host(self.mean)
        if np.iscomplexobj(weights) and not M.xp.isdtype(M.dtype, "complex floating"):
            raise TypeError(f"{caller}: A must be complex, as the matrix that was analysed; got dtype {M.dtype}.")
        mean = from_host(mean, M.xp, M.dtype, M.device)
        Y = M.centered(mean).matmat(from_host(weights, M.xp, M.dtype, M.device))
        check_finite(Y, caller, "A")
        return Y

    def inverse_transform(self, T):
        """Return the rows of shape (n,) that have the coordinates `T`.

        Parameters
        ----------
        T : array, shape (rows, k)
            Coordinates along the components.
        """
        X = T @ self.components
        return (X if self.scale is None else X * self.scale) + self.mean

    def __repr__(self):
        k, n = self.components.shape
        share = float(to_host(self.explained_variance_ratio).sum())
        return f"PCAResult({k} components of {n} features, {share:.1%} of the variance)\n  {self.info}"


def pca(A, k=None, *, center=True, scale=False, rtol=None, rank=None, tol=1e-2, method="auto", max_passes=None,
        rng=None, callback=None, progress=False, block_bytes=None):  # fmt: skip
    """Find the directions in which the rows of `A` vary most.

    Passes over `A`: for ``covariance`` one in all, two if the first rows do not tell where the others are; else one for
    the means, one more for `scale`, those of `rnla.svd`, and one for the total variance. Dense matrices are centred by
    blocks, sparse ones implicitly.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        One sample in every row.
    k : int, optional
        Number of components, ``1 <= k <= min(m, n)``; may be left out if `rtol` or `rank` is given.
    center : bool
        Subtract the mean of every column.
    scale : bool
        Divide every column by its standard deviation, columns without variance excepted.
    rtol : float, optional
        As many components as bring the rest below `rtol` times the Frobenius norm of the centred matrix.
    rank : {"gavish-donoho"}, optional
        As many components as exceed what noise of unknown level would show: singular values above a multiple of their
        median. Needs half of all singular values; assumes white noise and a signal of low rank.
    tol : float
        Bound on the residual of each triplet relative to its singular value, as in `rnla.svd`.
    method : {"auto", "covariance"} or a method of `rnla.svd`
        ``covariance``: eigenvectors of the sum of the squares of centred blocks, exact for singular values above
        ``sqrt(eps)`` of the largest. ``auto`` takes it for few features, if it resolves what is asked for.
    max_passes : int, optional
        Bound on the passes of an iteration over `A`, as in `rnla.svd`.
    rng : None, int or numpy.random.Generator
        Source of the test matrix.
    callback : callable, optional
        Called after each block with a record ``(iteration, error, seconds)``.
    progress : bool
        Show a progress bar.
    block_bytes : int, optional
        The most bytes that one block read from a file holds, 64 MiB by default, though at least one chunk; two blocks
        are in memory at a time. Ignored where `A` is no file.

    Returns
    -------
    PCAResult
        Components, variances, mean; ``.transform`` and ``.inverse_transform``.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not two-dimensional, has fewer than two rows or is not finite.
    TypeError
        If `A` is of an unsupported kind or dtype.

    Warns
    -----
    ConvergenceWarning
        As `rnla.svd`.
    AccuracyWarning
        If ``method="covariance"`` cannot resolve the smallest component.

    References
    ----------
    .. [1] Halko, Martinsson, Shkolnisky, Tygert, SIAM J. Sci. Comput. 33 (2011).
    .. [2] Gavish, Donoho, IEEE Trans. Inf. Theory 60 (2014) (`rank`).

    Examples
    --------
    >>> points = np.outer(np.arange(5.0), [3.0, 4.0]) + 1e6
    >>> result = rnla.pca(points, 1, rng=0)
    >>> np.round(result.components, 6).tolist(), round(float(result.explained_variance_ratio[0]), 6)
    ([[0.6, 0.8]], 1.0)
    """
    caller = "rnla.pca"
    M = as_matrix(A, caller, block_bytes=block_bytes)
    m, n = M.shape
    if m < 2:
        raise ValueError(f"{caller}: A must have at least 2 rows to have a variance; got shape {M.shape}.")
    check_choice(center, "center", (True, False), caller)
    check_choice(scale, "scale", (True, False), caller)
    check_choice(rank, "rank", (None, "gavish-donoho"), caller)
    if k is None and rtol is None and rank is None:
        raise ValueError(f"{caller}: one of k, rtol and rank must be given; got none.")
    if k is not None or rank is None:
        check_precision(k, rtol, None, M, caller)
    elif rtol is not None:
        raise ValueError(f"{caller}: only one of rtol and rank can be given; got rtol={rtol} and rank={rank!r}.")
    check_number(tol, "tol", caller)
    check_choice(method, "method", ("covariance", *METHODS), caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller, M)
    passes, matvecs = M.counter.passes, M.counter.matvecs

    try:
        count = k if rank is None else max(k or 0, min(m, n) // 2 + 1)  # up to the median
        squared = method == "covariance" or (method == "auto" and _few_features(M, count, rtol))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
            mean, moments = _moments(M) if squared and center and not scale else (None, None)
            if mean is None:
                mean = M.col_mean() if center else M.xp.zeros((n,), dtype=M.dtype, device=M.device)
        check_finite(mean, caller, "A", M)

        def run(view, factor):
            deviation = _standard_deviations(view, mean * factor, key, caller) if scale else None
            view = view if deviation is None else view.column_scaled(1 / deviation)
            if squared:
                known = moments if factor == 1 else None
                found = _by_covariance(view, known, count, rtol, tol, method == "covariance", key, monitor, caller)
                if found is not None:
                    return found, deviation
            monitor.close()  # the decomposition shows its own
            options = {"callback": callback, "progress": progress, "rng": key, "max_passes": max_passes}
            result = svd_as(caller, view, count, rtol=rtol, tol=tol, method=method, flip_sign=False, **options)
            s, V, total = to_host(result.S), adjoint(result.Vh), view.fro_norm_sq()
            if total is None:
                total = float(np.sum(s**2)) + left_out(view, V, key)
            _check_squares(view, total, key, caller)
            return (s, V, result.info, total), deviation

        ((s, V, info, total), deviation), factor = in_range(run, M.centered(mean) if center else M)
    finally:
        monitor.close()
    if rank is not None:
        s, V = _above_noise(s, V, m, n, k)
    V, _ = flipped(V, M.xp.asarray(V, copy=True))
    if scale:  # what was decomposed has no unit
        deviation, factor = deviation / factor if factor != 1 else deviation, 1.0
    spent = M.counter.passes - passes, M.counter.matvecs - matvecs
    return _result(M, s, V, mean, deviation, total, info, factor, *spent)


def _result(M, s, V, mean, deviation, total, info, factor, passes, matvecs):
    """Return the result of what was computed of `factor` times A."""
    m, n = M.shape
    real = real_dtype(M.xp, M.dtype)
    left = min(m, n) - len(s)
    noise = max(total - float(np.sum(s**2)), 0.0) / (m - 1) / left / factor / factor if left > 0 else 0.0
    ratio = s**2 / total if total > 0 else np.zeros_like(s)
    error = math.sqrt(max(1.0 - float(ratio.sum()), 100 * eps_of(M.xp, M.dtype))) if total > 0 else 0.0
    parts = {name: getattr(info, name) for name in info.__dataclass_fields__}
    info = SVDInfo(**{**parts, "passes": passes, "matvecs": matvecs, "rank": len(s), "error_estimate": error})
    variance = s**2 / (m - 1) / factor / factor
    variance, ratio, S = (from_host(values, M.xp, real, M.device) for values in (variance, ratio, s / factor))
    return PCAResult(adjoint(V), variance, ratio, S, mean, m, deviation, noise, info)


def _few_features(view, count, rtol):
    m, n = view.shape
    wanted = n if count is None else count + 10
    return (
        view.kind in ("dense", "file", "dask")
        and n <= COVARIANCE_SIDE
        and n <= COVARIANCE_BLOCKS * wanted
        and m >= 2 * n
        and (rtol is None or rtol**2 > 1e4 * eps_of(view.xp, view.dtype))
        and view.row_blocks() is not None
    )


def _moments(M):
    """Return the mean of the rows and the sum of the squares of what is left, from one read of them; or None, None.

    The second is (n, n), and comes with the norm of the correction that was subtracted: sums are about the mean of the
    first rows, or about zero if that is near.
    """
    xp, m = M.xp, M.shape[0]
    first = _first_rows(M)
    if first is None:
        return None, None
    wide = to_host(first)
    shift = wide.mean(axis=0)
    rest = wide - shift
    squares = rest @ rest.conj().T
    if not (np.isfinite(shift).all() and np.isfinite(squares).all()):
        return None, None
    largest = np.linalg.eigvalsh(squares)[-1]
    if _harmless(len(wide) * np.sum(np.abs(shift) ** 2), largest, largest, eps_of(xp, M.dtype)):
        shift = np.zeros_like(shift)  # saves a copy of every block
    x0 = from_host(shift, xp, M.dtype, M.device)
    total = M.sum_over_rows(partial(_moments_of_rows, x0)) if shift.any() else _moments_about_zero(M)
    if total is None:
        return None, None
    total = to_host(total)
    G, offset = total[:-1], total[-1] / m
    if not np.all(np.isfinite(G)):
        return None, None
    G = G - m * np.outer(offset.conj(), offset)
    known = (G + G.conj().T) / 2, m * float(np.sum(np.abs(offset) ** 2))
    return from_host(to_host(x0) + offset, xp, M.dtype, M.device), known


def _harmless(correction, largest, smallest, eps):
    """Say whether the rounding of a correction shows in no eigenvalue: beside that of the largest, or at all."""
    return correction <= CANCELLATION * largest or eps * correction <= UNSEEN * smallest


def _first_rows(M):
    """Return some rows without reading the others, or None."""
    rows = slice(0, min(FIRST_ROWS, M.shape[0]))
    if M.array is not None:
        return M.array[rows, :]
    if M.kind == "file" and getattr(M.storage, "row_tile", None):  # no more than the block that the user allows
        return M.storage.read(slice(0, min(rows.stop, M.storage.row_tile[0])), slice(0, M.shape[1]))
    if M.kind == "dask":
        blocks = M.storage.source.dask_array[rows, :]
        return None if M.storage.source.sparse else computed(blocks)[0]
    return None


def _moments_about_zero(M):
    if M.array is None:
        return M.sum_over_rows(partial(_moments_of_rows, None))
    # Nothing is copied: blocks may be as large as BLAS likes them, in single precision as far as its sums are exact.
    M.counter.passes += 1
    entries = LARGE_ENTRIES if eps_of(M.xp, M.dtype) < 1e-10 else LARGE_ENTRIES // 4
    blocks = (M.array[rows, :] for rows in spans(M.shape[0], max(entries // M.shape[1], 1)))
    return sum(_moments_of_rows(None, 0, rows) for rows in blocks)


def _moments_of_rows(x0, start, rows):
    """Return the sum of the squares of rows less x0, and as one more row that of the rows themselves, less x0."""
    xp = array_namespace(rows)
    rows = rows if x0 is None else rows - x0
    wide = wide_dtype(rows.dtype, xp)
    whole = rows.shape[0] - rows.shape[0] % RUN
    # Runs are added in their own precision, and the runs in double: as exact as the products, and twice as fast.
    runs = xp.sum(xp.reshape(rows[:whole, :], (-1, RUN, rows.shape[1])), axis=1)
    sums = xp.sum(runs, axis=0, dtype=wide) + xp.sum(rows[whole:, :], axis=0, dtype=wide)
    return xp.concat([xp.astype(adjoint_product(rows, rows), wide, copy=False), sums[None, :]], axis=0)


def _by_covariance(view, known, count, rtol, tol, insist, key, monitor, caller):
    """Return s, V, info and the sum of all squares, or None if squares cannot resolve what is asked for.

    What `_moments` knows saves the read.
    """
    from scipy.linalg import eigh

    xp, n, eps = view.xp, view.shape[1], eps_of(view.xp, view.dtype)
    G, correction = (None, 0.0) if known is None else known
    if G is None:
        with np.errstate(over="ignore", invalid="ignore"):
            G = view.sum_over_rows(_gram_of_rows)
        if G is None:
            raise ValueError(f"{caller}: method 'covariance' needs rows of A at hand; got A of kind {view.kind!r}.")
        G = to_host(G)
    _check_squares(view, float(np.trace(G).real), key, caller)
    kept = n if count is None else count
    values, vectors = eigh(G, subset_by_index=(n - kept, n - 1), check_finite=False)
    if not _harmless(correction, values[-1], values[0], eps):  # rows that drift
        return _by_covariance(view, None, count, rtol, tol, insist, key, monitor, caller)
    values, vectors, trace = np.maximum(values[::-1], 0.0), vectors[:, ::-1], float(np.trace(G).real)
    met = True
    if rtol is not None:
        left = trace - np.cumsum(values)
        enough = np.flatnonzero(left <= (rtol**2) * trace)
        met = enough.size > 0
        kept = int(enough[0]) + 1 if met else kept
        values, vectors = values[:kept], vectors[:, :kept]
    # Rounding of the smallest eigenvalue, against the error that a Krylov iteration leaves in a singular value: about
    # the square of its residual.
    resolved = 4 * eps * values[0] <= max(tol**2, tol / 100) * values[-1]
    if not resolved and not insist:
        return None
    if not resolved:
        warn(f"{caller}: method 'covariance' does not resolve the smallest component; try 'auto'.", AccuracyWarning)
    message = "exact" if met else f"rank {kept} reached before the precision"
    if not met:
        warn_not_converged(caller, message)
    monitor(0.0)
    info = SVDInfo("covariance", 0, 0, 0, met, None, None, n, kept, key, view.dtype, monitor.seconds, message,
                   tuple(monitor.history))  # fmt: skip
    return np.sqrt(values), from_host(vectors, xp, view.dtype, view.device), info, trace


def _gram_of_rows(start, rows):
    xp = array_namespace(rows)
    return xp.astype(adjoint_product(rows, rows), wide_dtype(rows.dtype, xp), copy=False)  # sums over many blocks


def _standard_deviations(view, mean, key, caller):
    """Return the standard deviation of every column of a centred matrix; one where there is no variance."""
    xp, m = view.xp, view.shape[0]
    squares = view.column_squares()
    if squares is None:
        raise ValueError(f"{caller}: scale=True needs the entries of A; got A of kind {view.kind!r}.")
    squares = to_host(squares).real
    _check_squares(view, float(squares.sum()), key, caller)
    check_finite(squares, caller, "A", view)
    deviation = np.sqrt(squares / (m - 1))
    # A column is constant if what is left of it is rounding of its mean.
    rounding = 10 * eps_of(xp, view.dtype) * np.abs(to_host(mean))
    deviation = np.where(deviation > rounding, deviation, 1.0)
    return from_host(deviation, xp, real_dtype(xp, view.dtype), view.device)


def _check_squares(view, total, key, caller):
    """Ask for another scale if the sum of the squares of all entries has left the range of double precision."""
    if not TINY < total < math.inf:  # or is zero: a product tells
        x = test_matrix("gaussian", key, view.shape[1], 1, xp=view.xp, device=view.device, dtype=view.dtype)
        check_range(view, None, view.matmat(x), caller)


def left_out(view, V, key):
    """Estimate ``||A - A V V^H||_F**2`` from products with random vectors; relative deviation at most 1/4."""
    G = test_matrix("gaussian", key, view.shape[1], PROBES, stream=3, xp=view.xp, device=view.device, dtype=view.dtype)
    Y = view.matmat(G - V @ (adjoint(V) @ G))
    return float(np.sum(np.abs(to_host(Y)) ** 2)) / PROBES


def _above_noise(s, V, m, n, k):
    """Cut off what white noise of unknown level would show (Gavish, Donoho 2014)."""
    beta = min(m, n) / max(m, n)
    half = min(m, n) // 2
    median = s[half] if min(m, n) % 2 else (s[half - 1] + s[half]) / 2
    threshold = optimal_threshold(beta) / math.sqrt(marchenko_pastur_median(beta)) * median
    keep = max(int(np.sum(s > threshold)), 1)
    keep = min(keep, k or keep)
    return s[:keep], V[:, :keep]


def optimal_threshold(beta):
    """Return the optimal hard threshold for singular values, in units of ``sqrt(n)`` times the noise level."""
    return math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))


def marchenko_pastur_median(beta):
    """Return the median of the law of the eigenvalues of white noise with aspect ratio `beta`."""
    from scipy.integrate import quad
    from scipy.optimize import brentq

    lower, upper = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(angle):  # x = middle + half * cos(angle): the square roots at both ends become smooth
        half = (upper - lower) / 2
        x = (upper + lower) / 2 - half * math.cos(angle)
        return (half * math.sin(angle)) ** 2 / (2 * math.pi * beta * max(x, 1e-300))

    angle = brentq(lambda end: quad(density, 0, end)[0] - 0.5, 0, math.pi)
    return (upper + lower) / 2 - (upper - lower) / 2 * math.cos(angle)
