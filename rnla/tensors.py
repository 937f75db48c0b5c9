"""Decompositions of tensors: robust Tucker decomposition from a few fibres."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_numpy_array

from rnla._backend import eps_of, from_host, host_svd, key_from_rng, to_host
from rnla._orth import orth
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, warn_not_converged
from rnla._robust_code import check_decay
from rnla._rpca_result import RobustRecord

__all__ = ["RobustTuckerResult", "robust_tucker"]

SAMPLE = 3.0  # fibres and slices are sampled by this constant times rank times the logarithm of how many there are
BELIEVED = 0.5  # least share of fresh entries that a result must explain


@dataclass(frozen=True, eq=False, repr=False)
class RobustTuckerResult:
    """``X = L + S``: L of low multilinear rank in factors, S sparse.

    Attributes
    ----------
    core : array, shape (r_1, ..., r_N)
        L is this multiplied by ``factors[i]`` in every mode.
    factors : tuple of array, shapes (d_i, r_i)
        Orthonormal columns.
    converged : bool
        Whether the tolerance was met and most entries drawn anew are explained.
    n_iter : int
        Number of iterations.
    history : tuple of RobustRecord
        ``(iteration, error, threshold, kept, seconds)`` of each iteration.
    message : str
        Why it ended.
    threshold : float
        Modulus of a residual beyond which an entry is an outlier.
    kept_fresh : float
        Share of the entries drawn anew at the end that are no outliers.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = np.einsum("i,j,k->ijk", *(rng.standard_normal(30) for _ in range(3)))
    >>> result = rnla.tensors.robust_tucker(X, 1, rng=0)
    >>> result.core.shape, bool(np.abs(result.to_dense() - X).max() < 1e-8)
    ((1, 1, 1), True)
    """

    core: Any
    factors: tuple
    converged: bool
    n_iter: int
    history: tuple
    message: str
    threshold: float
    kept_fresh: float

    @property
    def shape(self):
        """Shape of the tensor."""
        return tuple(factor.shape[0] for factor in self.factors)

    def block(self, *indices):
        """Return the entries of L where index vectors, one for each mode, or None for all, cross."""
        xp, where = array_namespace(self.core), device(self.core)
        parts = [
            factor if index is None else xp.take(factor, xp.asarray(np.asarray(index), device=where), axis=0)
            for factor, index in zip(self.factors, indices, strict=True)
        ]
        return _multiplied(self.core, parts)

    def to_dense(self):
        """Return all of L."""
        return self.block(*(None for _ in self.factors))

    def __repr__(self):
        state = "converged" if self.converged else "NOT converged"
        head = f"RobustTuckerResult({' x '.join(map(str, self.shape))}, ranks {tuple(self.core.shape)})"
        return f"{head}\n  {state} after {self.n_iter} iterations: {self.message}"


def robust_tucker(X, ranks, *, sampling="fiber", resample=True, tol=1e-6, max_iter=200, decay=0.7, rng=None,
                  callback=None, progress=False):  # fmt: skip
    """Split a tensor into one of low multilinear rank and a sparse one of outliers of any size.

    Each iteration looks at a small block of X and a few fibres of each mode, replaces entries far from the present
    estimate by it, and joins the rest to a CUR decomposition of the tensor. Nothing of the size of X is formed.

    Parameters
    ----------
    X : array, shape (d_1, ..., d_N)
        Real or complex floating, two modes or more.
    ranks : int or sequence of int
        Rank of the unfolding in each mode.
    sampling : {"fiber", "chidori"}
        Fibres drawn from all, or those that cross the sampled block.
    resample : bool
        Draw a new sample in every iteration, which tolerates more outliers.
    tol : float
        Residual of the sampled entries that are no outliers, relative to these entries, at which it ends.
    max_iter : int
        Most iterations.
    decay : float
        Factor of the bound above which residuals count as outliers, from one iteration to the next, in (0, 1).
    rng : None, int or numpy.random.Generator
        Source of the samples.
    callback : callable, optional
        Called with ``(iteration, error, seconds)`` after each iteration; StopIteration ends the run.
    progress : bool
        Show a bar.

    Returns
    -------
    RobustTuckerResult
        ``core`` and ``factors`` of L; library, device and dtype of `X`.

    Raises
    ------
    ValueError
        If an argument is out of range, or an entry that was read is not finite.
    TypeError
        If `X` is not a floating array.

    Warns
    -----
    ConvergenceWarning
        If the tolerance was not met, or less than half of the entries drawn anew are explained.

    References
    ----------
    .. [1] Cai, Chao, Huang, Needell, arXiv 2305.04080.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = np.einsum("abc,ia,jb,kc->ijk", rng.standard_normal((2, 2, 2)), *rng.standard_normal((3, 40, 2)))
    >>> corrupted = np.where(rng.random(X.shape) < 0.1, 10 * rng.standard_normal(X.shape), X)
    >>> result = rnla.tensors.robust_tucker(corrupted, 2, rng=0)
    >>> result.converged, bool(np.abs(result.to_dense() - X).max() < 1e-3)
    (True, True)
    """
    caller = "rnla.tensors.robust_tucker"
    ranks = _checked(X, ranks, caller)
    check_choice(sampling, "sampling", ("fiber", "chidori"), caller)
    check_number(tol, "tol", caller)
    check_count(max_iter, "max_iter", caller)
    check_decay(decay, caller)
    random = np.random.Generator(np.random.Philox(key_from_rng(rng, caller)))
    monitor = Monitor(callback, progress, caller)
    core, factors, z, records, status = None, None, math.inf, [], "max_iter"
    sample = _draw(X, ranks, sampling, random)
    data = _read(X, sample, caller)
    z0 = max(float(array_namespace(X).max(array_namespace(X).abs(part))) for part in data)
    floor = 4 * eps_of(array_namespace(X), X.dtype) * z0
    try:
        for step in range(max_iter):
            if resample and step:
                sample = _draw(X, ranks, sampling, random)
                data = _read(X, sample, caller)
            z = max(z0 * decay**step, floor)
            models = None if core is None else _evaluated(core, factors, sample)
            cleaned, error, kept = _cleaned(data, models, z)
            core, factors = _joined(cleaned, sample, ranks)
            records.append(RobustRecord(step + 1, error, z, kept, monitor.seconds))
            if monitor(error):
                status = "stopped"
                break
            if error < tol:
                status = "converged"
                break
    finally:
        monitor.close()
    core, factors = _orthonormal(core, factors)
    bound = max(3 * z, 10 * tol * _rms(core, factors))
    fresh = _draw(X, ranks, "fiber", random)
    _, _, kept_fresh = _cleaned(_read(X, fresh, caller), _evaluated(core, factors, fresh), bound)
    message = {
        "converged": "the tolerance was met",
        "stopped": "stopped by the callback",
        "max_iter": f"the tolerance was not met in {max_iter} iterations",
    }[status]
    if kept_fresh < BELIEVED:
        message += f"; only {kept_fresh:.0%} of the entries are explained"
    converged = status == "converged" and kept_fresh >= BELIEVED
    if not converged:
        warn_not_converged(caller, message)
    return RobustTuckerResult(core, factors, converged, len(records), tuple(records), message, bound, kept_fresh)


class _Sample(NamedTuple):
    """Indices of a block, one vector for each mode, and of fibres of each mode: those of the other modes."""

    block: list
    fibers: list  # of arrays (N, |J_i|); row i, of the fibre's own mode, is not used


def _draw(X, ranks, sampling, random):
    shape = tuple(X.shape)
    block = [_some(d, SAMPLE * r * math.log(d), r, random) for d, r in zip(shape, ranks, strict=True)]
    fibers = []
    for i, r in enumerate(ranks):
        others = [1 if j == i else d for j, d in enumerate(shape)]
        if sampling == "chidori":
            grid = np.meshgrid(*([0] if j == i else index for j, index in enumerate(block)), indexing="ij")
            fibers.append(np.stack([index.ravel() for index in grid]))
        else:
            count = math.prod(others)
            chosen = _some(count, SAMPLE * r * math.log(count), r, random)
            fibers.append(np.stack(np.unravel_index(chosen, others)))
    return _Sample(block, fibers)


def _some(count, wanted, least, random):
    wanted = min(count, max(least + 1, math.ceil(wanted)))
    return np.sort(random.choice(count, wanted, replace=False, shuffle=False))


def _read(X, sample, caller):
    """Return the block and the fibres, (d_i, |J_i|) for each mode i."""
    shape = tuple(X.shape)
    parts = [_entries(X, np.ix_(*sample.block))]
    for i, index in enumerate(sample.fibers):
        places = [index[j][None, :] if j != i else np.arange(d)[:, None] for j, d in enumerate(shape)]
        parts.append(_entries(X, places))
    xp = array_namespace(X)
    if not all(bool(xp.all(xp.isfinite(part))) for part in parts):
        raise ValueError(f"{caller}: X must be finite; entries that were read are not.")
    return parts


def _entries(X, places):
    """Return ``X[places]`` for index arrays that broadcast."""
    if is_numpy_array(X):
        return X[tuple(places)]
    xp, shape = array_namespace(X), tuple(X.shape)
    flat = sum(place * math.prod(shape[j + 1 :]) for j, place in enumerate(places))
    index = xp.asarray(flat.ravel(), device=device(X))
    return xp.reshape(xp.take(xp.reshape(X, (-1,)), index), flat.shape)


def _evaluated(core, factors, sample):
    """Return what the estimate has in place of the block and of the fibres."""
    xp, where = array_namespace(core), device(core)

    def rows(factor, index):
        return xp.take(factor, xp.asarray(index, device=where), axis=0)

    parts = [_multiplied(core, [rows(factor, index) for factor, index in zip(factors, sample.block, strict=True)])]
    for i, index in enumerate(sample.fibers):
        product = xp.ones((index.shape[1], 1), dtype=core.dtype, device=where)
        for j, factor in enumerate(factors):  # row-wise Khatri-Rao product, the last mode the fastest
            if j != i:
                wide = product[:, :, None] * rows(factor, index[j])[:, None, :]
                product = xp.reshape(wide, (index.shape[1], -1))
        parts.append(factors[i] @ (_unfolded(core, i) @ product.T))
    return parts


def _cleaned(data, models, z):
    """Replace outliers by the model; return that, the error of the others relative to their size, and their share."""
    xp = array_namespace(*data)
    cleaned, error, size, kept, count = [], 0.0, 0.0, 0.0, 0
    for part, model in zip(data, models or map(xp.zeros_like, data), strict=True):
        residual = part - model
        keep = xp.abs(residual) <= z
        cleaned.append(xp.where(keep, part, model))
        inside = xp.astype(keep, xp.float64)
        error += float(xp.sum(inside * xp.astype(xp.abs(residual), xp.float64) ** 2))
        size += float(xp.sum(inside * xp.astype(xp.abs(part), xp.float64) ** 2))
        kept, count = kept + float(xp.sum(inside)), count + math.prod(part.shape)
    return cleaned, math.sqrt(error / size) if size > 0 else 0.0, kept / count


def _joined(cleaned, sample, ranks):
    """Return core and factors of the tensor's CUR decomposition: the block times ``C_i (C_i[I_i])^+`` in each mode."""
    core, factors = cleaned[0], []
    xp, dtype, where = array_namespace(core), core.dtype, device(core)
    for i, (C, index, r) in enumerate(zip(cleaned[1:], sample.block, ranks, strict=True)):
        U, s, Vh = host_svd(to_host(xp.take(C, xp.asarray(index, device=where), axis=0)))
        inverse = np.divide(1, s[:r], out=np.zeros(len(s[:r])), where=s[:r] > 4 * eps_of(xp, dtype) * s[0])
        factors.append(C @ from_host(Vh[:r].conj().T * inverse, xp, dtype, where))
        core = _mode_product(core, from_host(U[:, :r].conj().T, xp, dtype, where), i)
    return core, tuple(factors)


def _orthonormal(core, factors):
    xp, where, found = array_namespace(core), device(core), []
    for i, factor in enumerate(factors):
        Q, R = orth(factor)
        found.append(Q)
        core = _mode_product(core, from_host(R, xp, core.dtype, where), i)
    return core, tuple(found)


def _rms(core, factors):
    count = math.prod(factor.shape[0] for factor in factors)
    return float(np.linalg.norm(to_host(core)) / math.sqrt(count))


def _multiplied(core, factors):
    for i, factor in enumerate(factors):
        core = _mode_product(core, factor, i)
    return core


def _mode_product(T, M, mode):
    """Return T with M applied to its mode: ``M`` (p, d), mode of length d."""
    xp = array_namespace(T)
    return xp.moveaxis(xp.tensordot(M, T, axes=([1], [mode])), 0, mode)


def _unfolded(T, mode):
    xp = array_namespace(T)
    return xp.reshape(xp.moveaxis(T, mode, 0), (T.shape[mode], -1))


def _checked(X, ranks, caller):
    """Return the ranks as a tuple, one for each mode."""
    if not is_array_api_obj(X):
        raise TypeError(f"{caller}: X must be an array; got {type(X).__name__}.")
    if not array_namespace(X).isdtype(X.dtype, ("real floating", "complex floating")):
        raise TypeError(f"{caller}: X must be real or complex floating; got {X.dtype}: convert it to float32 first.")
    if X.ndim < 2 or 0 in X.shape:
        raise ValueError(f"{caller}: X must have two modes or more, none of them empty; got shape {tuple(X.shape)}.")
    ranks = (ranks,) * X.ndim if isinstance(ranks, (int, np.integer)) else tuple(ranks)
    if len(ranks) != X.ndim:
        raise ValueError(f"{caller}: ranks must be one number or one for each of {X.ndim} modes; got {ranks}.")
    size = math.prod(X.shape)
    for r, d in zip(ranks, X.shape, strict=True):
        check_count(r, "ranks", caller)
        if r > min(d, size // d) or r > math.prod(ranks) // r:
            raise ValueError(
                f"{caller}: ranks must be at most the sides of X and the products of the other ranks, for shape "
                f"{tuple(X.shape)}; got {ranks}."
            )
    return tuple(map(int, ranks))
