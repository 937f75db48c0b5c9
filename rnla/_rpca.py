"""Robust PCA: a matrix as the sum of one of low rank and one of few, arbitrary entries."""

import numbers

import numpy as np

from rnla._altproj import accaltproj, altproj
from rnla._backend import adjoint, key_from_rng
from rnla._ircur import ircur
from rnla._pcp import admm, ialm
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, check_rank, warn_not_converged
from rnla._riecur import LOUD, riecur
from rnla._riemannian import Point
from rnla._robust_code import check_decay
from rnla._rpca_entries import Entries, Samples
from rnla._rpca_gradient import gd, scaledgd
from rnla._rpca_rescue import judge, polish
from rnla._rpca_result import RobustPCAResult

SAMPLED = ("decay", "n_rows", "n_cols", "rows", "cols", "resample")
OPTIONS = {  # what each method has beyond k, mask, tol, max_iter, rng, callback, progress, block_bytes
    "riecur": (*SAMPLED, "update", "noise_floor", "polish", "init"),
    "ircur": SAMPLED,
    "accaltproj": ("decay",),
    "altproj": (),
    "scaledgd": ("decay",),
    "gd": ("outliers",),
    "ialm": ("lam",),
    "admm": ("lam",),
}
ALL_ENTRIES = {  # methods that read the whole of A in every iteration
    "accaltproj": accaltproj, "altproj": altproj, "scaledgd": scaledgd, "gd": gd, "ialm": ialm, "admm": admm,
}  # fmt: skip
DEFAULTS = {
    "decay": 0.7, "n_rows": None, "n_cols": None, "rows": None, "cols": None, "resample": True, "update": "trimmed",
    "noise_floor": "auto", "polish": 0, "lam": None, "outliers": None, "init": None,
}  # fmt: skip
UNRESOLVED = 0.01  # share of the rows, or columns, that may stay unexplained by a fit to the level of noise
SAMPLE = 4.0  # rows and columns are sampled by this constant times k log n


def robust_pca(A, k=None, *, method="riecur", mask=None, tol=1e-6, max_iter=200, decay=0.7, n_rows=None, n_cols=None,
               rows=None, cols=None, resample=True, update="trimmed", noise_floor="auto", polish=0, lam=None,
               outliers=None, init=None, rng=None, callback=None, progress=False, block_bytes=None):  # fmt: skip
    """Split `A` into a matrix of rank `k` and a sparse one of outliers, which may be of any size.

    ``A = L + S`` (and noise): L is returned in factors, S computed when it is asked for. The default method looks at a
    few sampled rows and columns in each iteration and forms nothing of the size of A.

    Parameters
    ----------
    A : array, memory map, dask array, h5py or Zarr dataset, shape (m, n)
        Real or complex floating, dense.
    k : int
        Rank of L, or a bound on it, ``1 <= k <= min(m, n)``. ``ialm`` and ``admm`` find it: leave it out.
    method : {"riecur", "ircur", "accaltproj", "altproj", "scaledgd", "gd", "ialm", "admm"}
        ``riecur``: least squares on sampled rows and columns with large residuals left out, along the manifold of
        matrices of rank k; then rows and columns that came out wrong are fitted again. ``ircur``: CUR decompositions
        of a sample, large residuals replaced by the fit. The others read all of A in every iteration: accelerated and
        plain alternating projections, (scaled) gradient descent on factors, and principal component pursuit, the
        convex problem, by the inexact or the plain augmented Lagrangian method.
    mask : array of bool, optional, shape (m, n)
        True where A is observed. Other entries may be NaN; they are never looked at.
    tol : float
        Residual of the entries that are no outliers, relative to these entries, at which an iteration ends.
    max_iter : int
        Most iterations.
    decay : float
        Factor of the bound above which residuals count as outliers, from one iteration to the next, in (0, 1).
        0.7 recovers from up to 70 % outliers, 0.9 from up to 85 %, in three times as many iterations.
    n_rows, n_cols : int, optional
        Rows and columns that are sampled; about ``4 k log m`` and ``4 k log n`` by default.
    rows, cols : vector of int, optional
        The rows and columns to sample in every iteration.
    resample : bool
        Draw a new sample in every iteration.
    update : {"trimmed", "project"}
        Leave outliers out of the fits, or set their residuals to zero.
    noise_floor : float or "auto"
        Residuals up to this modulus are never outliers, in the units of A; ``"auto"`` is 1 where all entries are whole
        numbers, such as grey levels, and 0 otherwise.
    polish : int
        Final fits to all entries that are no outliers, each in one read of A: with noise, a smaller error.
    lam : float, optional
        Weight of the outliers in the convex problem; ``max(m, n)**-0.5`` by default.
    outliers : float, optional
        Bound on the share of outliers in any row or column, below 1, which ``gd`` must know.
    init : RobustPCAResult or tuple of U, s, Vh, optional
        Where to start.
    rng : None, int or numpy.random.Generator
        Source of the samples.
    callback : callable, optional
        Called with ``(iteration, error, seconds)`` after each iteration; StopIteration ends the run.
    progress : bool
        Show a bar.
    block_bytes : int, optional
        The most bytes that one block read from a file holds.

    Returns
    -------
    RobustPCAResult
        ``U, s, Vh`` of L, ``sparse(A)`` for S, how far to trust them, and why the iteration ended.

    Raises
    ------
    ValueError
        If an argument is out of range, an option is not one of the method, or an observed entry that was read is NaN
        or infinite.
    TypeError
        If `A` is sparse, an operator, or not floating.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not met, rows or columns are not explained, or residuals are too large for noise.

    Notes
    -----
    ``riecur``: each iteration reads ``m |J| + n |I|`` entries and takes ``O((m |J| + n |I|) k**2)`` flops,
    ``O(n k**3 log n)`` in all. Of a matrix that is not in memory three times as many rows and columns are read in one
    pass and samples drawn from those; a second pass judges the result. The formulation is our own, with the ingredients
    that [1]_ names.

    Options of the methods: ``ircur`` has `decay` and those of the sample; ``accaltproj`` and ``scaledgd`` have `decay`,
    ``gd`` has `outliers`, ``ialm`` and ``admm`` have `lam`. ``accaltproj``, ``altproj`` and ``scaledgd`` read blocks of
    rows, once an iteration (``altproj`` twice) and a few times before the first. ``gd`` sorts rows and columns of a
    matrix in memory and takes no mask. ``ialm`` and ``admm`` hold three arrays of the size of A; "converged" means that
    the convex problem is solved, whose L is the wanted one if outliers are few enough; their `tol` is relative to L.
    Only ``riecur`` has an end of its own for data with noise: elsewhere the bound of the outliers sinks into it, which
    is reported. Entries that are not observed take the values of the fit.

    References
    ----------
    .. [1] Hamm, Meskini, Cai, arXiv 2206.09042 (``riecur``).
    .. [2] Cai, Hamm, Huang, Li, Wang, IEEE Signal Process. Lett. 28 (2021) (``ircur``).
    .. [3] Cai, Cai, Wei, J. Mach. Learn. Res. 20 (2019) (``accaltproj``).  [4] Netrapalli et al., NIPS 2014
       (``altproj``).  [5] Cai, Liu, Yin, NeurIPS 2021 (``scaledgd``).  [6] Yi, Park, Chen, Caramanis, NIPS 2016
       (``gd``).  [7] Lin, Chen, Ma, arXiv 1009.5055 (``ialm``).  [8] Candes, Li, Ma, Wright, J. ACM 58 (2011)
       (``admm``).

    Examples
    --------
    >>> A = np.outer(np.arange(1.0, 41.0), np.ones(30))
    >>> A[3, 5], A[7, 7] = 1000.0, -1000.0
    >>> result = rnla.robust_pca(A, 1, rng=0)
    >>> result.sparse(A).nnz, np.round(result.low_rank([3], [5]), 6).tolist()
    (2, [[4.0]])
    """
    caller = "rnla.robust_pca"
    check_choice(method, "method", tuple(OPTIONS), caller)
    given = {
        "decay": decay, "n_rows": n_rows, "n_cols": n_cols, "rows": rows, "cols": cols, "resample": resample,
        "update": update, "noise_floor": noise_floor, "polish": polish, "lam": lam, "outliers": outliers, "init": init,
    }  # fmt: skip
    options = _options(method, given, caller)
    entries = Entries(A, mask, caller, block_bytes)
    _check(entries, k, method, tol, max_iter, options, caller)
    key = key_from_rng(rng, caller)
    monitor = Monitor(callback, progress, caller, entries.matrix)
    common = {"tol": tol, "max_iter": max_iter, "monitor": monitor}
    try:
        found, floor = _run(entries, k, method, options, key, common)
        return _result(entries, found, options, floor, tol, key, caller)
    finally:
        monitor.close()


def _run(entries, k, method, options, key, common):
    settings = dict(options)
    if settings.get("init") is not None:
        settings["init"] = _point(settings["init"], entries, k)
    if "resample" not in options:
        return ALL_ENTRIES[method](entries, k, key=key, **settings, **common)
    n_rows, n_cols = _sample_sizes(entries, k, options)
    fixed = {name: settings.pop(name) for name in ("rows", "cols", "resample")}
    samples = Samples(entries, n_rows, n_cols, key, **fixed)
    for name in ("n_rows", "n_cols", "polish"):
        settings.pop(name, None)
    return (riecur if method == "riecur" else ircur)(entries, samples, k, **settings, **common)


def _result(entries, found, options, floor, tol, key, caller):
    status = found.status
    random = np.random.Generator(np.random.Philox(key).jumped())
    hard, rescue = "lam" not in options and "outliers" not in options, "update" in options and status != "zero"
    wide = tol if status == "converged" and hard else None
    judgement = judge(entries, found.point, (found.z_row, found.z_col), wide, random, noise_floor=floor, rescue=rescue)
    point, (z_row, z_col) = judgement.point, judgement.bounds
    for _ in range(options.get("polish", 0)):
        point, z_row = polish(entries, point)
        z_row, z_col = np.maximum(z_row, floor), np.zeros_like(z_col)
    unresolved = len(judgement.bad_rows) + len(judgement.bad_cols)
    # Among noise a few rows of thousands, such as pixels of a clock, say nothing about the rest; they are reported.
    few = status == "noise_floor" and all(
        len(bad) <= UNRESOLVED * side
        for bad, side in zip((judgement.bad_rows, judgement.bad_cols), entries.shape, strict=True)
    )
    message = {
        "converged": "the tolerance was met",
        "zero": "the matrix is zero",
        "noise_floor": f"stopped at the noise level, residuals {found.scale:.2g} of the entries of L",
        "stopped": "stopped by the callback",
        "collapsed": "entries that fit came to count as outliers: noise, a rank too small, or too many real outliers",
        "max_iter": f"the tolerance was not met in {len(found.records)} iterations",
    }[status]
    loud = status == "noise_floor" and found.scale > LOUD
    if loud:
        message += ": the rank is too small, or there are more outliers than can be told apart"
    if unresolved:
        message += f"; {len(judgement.bad_rows)} rows and {len(judgement.bad_cols)} columns are not explained"
    converged = status in ("converged", "zero", "noise_floor") and not loud and (few or not unresolved)
    if not converged:
        warn_not_converged(caller, message)
    return RobustPCAResult(
        point.U, point.s, adjoint(point.V), converged, len(found.records), found.records, message, status,
        (z_row, z_col), found.kept, judgement.kept_fresh, judgement.bad_rows, judgement.bad_cols, judgement.rescued,
    )  # fmt: skip


def _options(method, given, caller):
    """Return the options that the method has; one that it has not must not have been given."""
    allowed = OPTIONS[method]
    for name, value in given.items():
        default = DEFAULTS[name]
        same = value is default or (isinstance(value, (numbers.Number, str)) and value == default)
        if name not in allowed and not same:
            has = ", ".join(allowed) or "none of its own"
            raise ValueError(f"{caller}: {name} is no option of method={method!r}, which has {has}.")
    return {name: given[name] for name in allowed}


def _check(entries, k, method, tol, max_iter, options, caller):
    if "lam" not in options:
        check_rank(k, entries.matrix, caller)
    elif k is not None:
        raise ValueError(f"{caller}: k must be None for method={method!r}, which finds the rank; got {k!r}.")
    if method == "gd":
        _check_descent(entries, options["outliers"], caller)
    if options.get("lam") is not None:
        check_number(options["lam"], "lam", caller)
    check_number(tol, "tol", caller)
    check_count(max_iter, "max_iter", caller)
    if "decay" in options:
        check_decay(options["decay"], caller)
    if "update" in options:
        check_choice(options["update"], "update", ("trimmed", "project"), caller)
        check_count(options["polish"], "polish", caller, least=0)
        if options["noise_floor"] != "auto":
            check_number(options["noise_floor"], "noise_floor", caller)
    for axis, name, count in ((0, "rows", "n_rows"), (1, "cols", "n_cols")):
        if options.get(count) is not None:
            check_count(options[count], count, caller)
            if not k < options[count] <= entries.shape[axis]:
                raise ValueError(
                    f"{caller}: {count} must be in {k + 1}..{entries.shape[axis]} for k={k}; got {options[count]}."
                )
        if options.get(name) is not None:
            options[name] = _checked_index(options[name], entries.shape[axis], name, k, caller)


def _check_descent(entries, outliers, caller):
    if outliers is None:
        raise ValueError(f"{caller}: outliers must be given for method='gd': a bound on their share; got None.")
    check_number(outliers, "outliers", caller)
    if not outliers < 1:
        raise ValueError(f"{caller}: outliers must be a share in [0, 1); got {outliers}.")
    if entries.mask is not None:
        raise ValueError(f"{caller}: mask must be None for method='gd', which compares all entries; got a mask.")
    if entries.array is None:
        raise ValueError(f"{caller}: A must be an array in memory for method='gd', which sorts columns and rows.")


def _checked_index(index, side, name, k, caller):
    index = np.asarray(index)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise TypeError(f"{caller}: {name} must be a vector of integers; got {index.dtype}, shape {index.shape}.")
    if not len(index) or index.min() < 0 or index.max() >= side or len(np.unique(index)) < len(index):
        raise ValueError(f"{caller}: {name} must be distinct numbers in 0..{side - 1}; got {index}.")
    if len(index) < k:
        raise ValueError(f"{caller}: {name} must be at least k={k}; got {len(index)} of them.")
    return np.sort(index)


def _sample_sizes(entries, k, options):
    sizes = []
    for side, count, given in zip(entries.shape, ("n_rows", "n_cols"), ("rows", "cols"), strict=True):
        if options[given] is not None:
            sizes.append(len(options[given]))
        else:
            sizes.append(options[count] or min(side, max(k + 1, int(np.ceil(SAMPLE * k * np.log(side))))))
    return sizes


def _point(init, entries, k):
    """Return the start that a caller gives: an earlier result, or U, s, Vh."""
    U, s, Vh = (init.U, init.s, init.Vh) if hasattr(init, "s") else init
    if U.shape != (entries.shape[0], k) or Vh.shape != (k, entries.shape[1]) or s.shape != (k,):
        raise ValueError(
            f"{entries.caller}: init must have factors of rank {k} of shape {entries.shape}; got shapes {U.shape}, "
            f"{s.shape}, {Vh.shape}."
        )
    return Point(U, s, adjoint(Vh))
