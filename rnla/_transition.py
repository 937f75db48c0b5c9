"""rnla.learn_transition_operator: an operator from scattered entries of its first powers.

The data's way: samples of all times -> divided by c^t, so that powers have one size -> the block Hankel matrix of the
powers, whose rank is that of the operator, completed by the iteration of `_irls` -> its first blocks are the operator.
"""

import math

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_numpy_array

from rnla._backend import adjoint, from_host, host_svd, key_from_rng, real_dtype, to_host
from rnla._completion import KNOWN_RANK, failure
from rnla._completion_noise import estimated_noise, penalty
from rnla._completion_result import history_of
from rnla._errors import AccuracyWarning
from rnla._hankel_space import HankelSpace
from rnla._irls import Settings, oversampling, solve
from rnla._observed import floating, observed
from rnla._orth import orth
from rnla._progress import Monitor
from rnla._rangefinder import check_choice, check_count, check_number, warn, warn_not_converged
from rnla._transition_result import TransitionResult


def learn_transition_operator(samples, k, *, n=None, n_steps=None, window=None, time_scale="auto", noise_std=0.0,
                              reg=None, tol=1e-9, max_iter=400, cg_tol=1e-2, cg_max_iter=300, continuation="auto",
                              rng=None, callback=None, progress=False):  # fmt: skip
    """Learn a linear operator of low rank from scattered entries of its first powers.

    What is observed are a few entries ``(A^t)_ij`` at each of several times: how a signal that starts at node j arrives
    at node i after t steps. Entries of later powers count as much as those of A itself, so that a network can be
    learned from sensors that each report now and then.

    Parameters
    ----------
    samples : tuple of rows, cols, times, values, or sequence of matrices
        Entries, times from 1; or one partly observed matrix for each time, in any form that `complete` takes.
    k : int
        Rank of A, or an upper bound, ``1 <= k <= n``.
    n : int, optional
        Order of A, if `samples` are entries; the largest index plus one by default.
    n_steps : int, optional
        Number of powers T; the largest time by default.
    window : int, optional
        Block rows of the Hankel matrix, in ``1 .. T``; ``(T + 2) // 2`` by default. Its ends do not work for T > 2.
    time_scale : float, "auto" or None
        Entries of A^t are divided by its t-th power; ``"auto"`` fits it to their size. Essential where eigenvalues are
        far from modulus one.
    noise_std : float or "auto"
        Standard deviation of the noise in a sample, or ``"auto"`` to estimate it in a first run. With `time_scale` the
        noise of the samples divided counts, in the mean.
    reg : float, optional
        Regularisation lam instead; 0 interpolates.
    tol, max_iter, cg_tol, cg_max_iter, continuation
        As for `complete`.
    rng : None, int or numpy.random.Generator
        Source of the starting vectors of the first singular value decomposition.
    callback : callable, optional
        Called with ``(iteration, error, seconds)``; StopIteration ends the run.
    progress : bool
        Show a bar.

    Returns
    -------
    TransitionResult
        ``U, s, Vh``, powers, predictions, and how far to trust them.

    Raises
    ------
    ValueError
        If an argument or an index is out of range; if a sample is given twice, is NaN or infinite.
    TypeError
        If `samples` or an argument is of another kind.

    Warns
    -----
    ConvergenceWarning
        If the iteration did not converge.
    AccuracyWarning
        If `k` has more degrees of freedom than there are samples.

    Notes
    -----
    Rank ``k (2 n - k)`` numbers need about three times as many samples, of whatever times [1]_. A step of conjugate
    gradients costs ``O(N k T + n k^2 T^2)``, memory is ``O(N + n k T)``: nothing of order n^2 is formed.

    References
    ----------
    .. [1] Kuemmerle, Maggioni, Tang, IEEE Trans. Inf. Theory 70 (2024), arXiv 2212.00746.

    Examples
    --------
    >>> graph = rnla.datasets.graph_operator("block_model", sizes=(15, 15), k=2, rng=0)
    >>> samples = rnla.datasets.space_time_samples((graph.U, graph.s, graph.Vh), 3, 500, rng=0)
    >>> result = rnla.learn_transition_operator(samples, 2, rng=0)
    >>> bool(np.abs(result.to_dense() - graph.to_dense()).max() < 1e-9)
    True
    """
    caller = "rnla.learn_transition_operator"
    rows, cols, times, values, n, n_steps = _entries(samples, n, n_steps, caller)
    window = _check(
        k, n, n_steps, window, time_scale, noise_std, reg, tol, max_iter, cg_tol, cg_max_iter, continuation, caller
    )
    settings = Settings(tol=tol, max_iter=max_iter, cg_tol=cg_tol, cg_max_iter=cg_max_iter, continuation=continuation)
    key, monitor = key_from_rng(rng, caller), Monitor(callback, progress, caller)
    try:
        problem = _Problem(rows, cols, times, values, n, n_steps, window, time_scale, settings, key, caller, monitor)
        return problem.result(k, noise_std, reg)
    finally:
        monitor.close()


class _Problem:
    """Scaled samples and how to iterate on them."""

    def __init__(self, rows, cols, times, values, n, n_steps, window, time_scale, settings, key, caller, monitor):
        xp = array_namespace(values)
        self.space = HankelSpace(rows, cols, times, n, n_steps, window)
        self.settings, self.key, self.caller, self.monitor = settings, key, caller, monitor
        self.time_scale = _scale_of(times, values, n_steps, time_scale)
        shrunk = self.time_scale ** -to_host(times).real
        values = values * from_host(shrunk, xp, real_dtype(xp, values.dtype), device(values))
        self.scale = float(xp.max(xp.abs(values))) or 1.0
        # Of noise of one size the mean variance is what the rule needs.
        self.noise_factor = float(np.sqrt(np.mean(shrunk**2))) / self.scale
        root = xp.astype(xp.asarray(self.space.multiplicity**0.5), real_dtype(xp, values.dtype))
        self.samples = values / self.scale * root

    def run(self, rank, *, lam=0.0, until=None, init=None):
        """Iterate at one rank."""
        settings = self.settings._replace(lam=lam)
        return solve(
            self.space, self.samples, rank, settings, self.key, self.caller, init=init, monitor=self.monitor,
            until=until,
        )  # fmt: skip

    def result(self, k, noise_std, reg):
        """Iterate, once or twice, and say what came of it."""
        ratio = oversampling(self.space, k)
        if ratio < 1:
            warn(
                f"{self.caller}: k = {k} has {self.space.degrees(k)} degrees of freedom, more than the "
                f"{self.space.count} samples: a smaller k is needed.", AccuracyWarning,
            )  # fmt: skip
        found, tau = None, 0.0
        if reg is not None:
            lam = float(reg) / self.scale**2
        else:
            if noise_std == "auto":
                found, tau = estimated_noise(self, k)
            else:
                tau = noise_std * self.noise_factor
            lam = penalty(self.space, tau, KNOWN_RANK, 0.0)
        if found is None or tau:
            found = self.run(k, lam=lam)
        converged = found.status == "converged"
        message = failure(found, lam, ratio, "samples")
        if not converged and found.status != "stopped":
            warn_not_converged(self.caller, message)
        return self._packed(found, k, lam, tau, converged, message, ratio)

    def _packed(self, found, k, lam, tau, converged, message, ratio):
        """Take the operator from the first blocks, in orthonormal factors."""
        space, xp = self.space, array_namespace(self.samples)
        k = min(k, len(found.s))
        left = found.U[:, :k] * from_host(found.s[:k] * self.scale, xp, self.samples.dtype, device(self.samples))
        left = xp.reshape(left, (space.n, space.blocks[0], k))
        right = xp.permute_dims(xp.reshape(adjoint(found.V[:, :k]), (k, space.n, space.blocks[1])), (0, 2, 1))
        (Q, X), (P, Y) = orth(left[:, 0, :] * self.time_scale, "qr"), orth(adjoint(right[:, 0, :]), "qr")
        W, s, Zh = host_svd(X @ Y.conj().T)
        kind = (xp, self.samples.dtype, device(self.samples))
        return TransitionResult(
            Q @ from_host(W, *kind), from_host(s, xp, real_dtype(xp, self.samples.dtype), kind[2]),
            from_host(Zh, *kind) @ adjoint(P), self.time_scale, space.n_steps, converged, len(found.steps),
            history_of(found.steps, self.scale), message, lam * self.scale**2, tau / self.noise_factor, ratio, left,
            right,
        )  # fmt: skip


def _scale_of(times, values, n_steps, time_scale):
    """Return c: given, one, or fitted to the sizes of the samples at each time."""
    if time_scale != "auto":
        return 1.0 if time_scale is None else float(time_scale)
    times, squares = to_host(times).real.astype(int), np.abs(to_host(values)) ** 2
    number = np.bincount(times, minlength=n_steps + 1)[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = 0.5 * np.log(np.bincount(times, weights=squares, minlength=n_steps + 1)[1:] / number)
    known = np.isfinite(level)
    if known.sum() < 2:
        return 1.0
    return float(np.exp(np.polyfit(np.arange(1, n_steps + 1)[known], level[known], 1)[0]))


def _entries(samples, n, n_steps, caller):
    """Return sorted samples, the order and the number of steps."""
    if isinstance(samples, (tuple, list)) and len(samples) == 4 and all(np.ndim(x) == 1 for x in samples):
        rows, cols, times, values = samples
    else:
        rows, cols, times, values, n, n_steps = _of_matrices(samples, n, n_steps, caller)
    values = floating(values if is_array_api_obj(values) else np.asarray(values), caller, "samples")
    xp, index = array_namespace(values), []
    for x, name in ((rows, "rows"), (cols, "cols"), (times, "times")):
        x = x if is_array_api_obj(x) else np.asarray(x)
        if not array_namespace(x).isdtype(x.dtype, "integral"):
            raise TypeError(f"{caller}: {name} must be integers; got {x.dtype}.")
        if x.shape != values.shape or not x.shape[0]:
            raise ValueError(f"{caller}: {name} and values must have one length, at least 1; got {x.shape[0]}.")
        index.append(xp.astype(xp.asarray(x, device=device(values)), xp.int64))
    ends = [(int(xp.min(x)), int(xp.max(x))) for x in index]
    n = max(ends[0][1], ends[1][1]) + 1 if n is None else n
    n_steps = ends[2][1] if n_steps is None else n_steps
    for value, name in ((n, "n"), (n_steps, "n_steps")):
        check_count(value, name, caller)
    for (low, high), name, first, last in zip(
        ends, ("rows", "cols", "times"), (0, 0, 1), (n - 1, n - 1, n_steps), strict=True
    ):
        if low < first or high > last:
            raise ValueError(f"{caller}: {name} must be in {first}..{last}; got {low}..{high}.")
    if not bool(xp.all(xp.isfinite(values))):
        raise ValueError(f"{caller}: values must be finite; got NaN or infinity.")
    place = (index[0] * n + index[1]) * n_steps + index[2] - 1
    order = xp.argsort(place)
    place = xp.take(place, order)
    if place.shape[0] > 1 and bool(xp.any(place[1:] == place[:-1])):
        raise ValueError(f"{caller}: every sample must be given once; got a row, column and time twice.")
    index = [xp.take(x, order) for x in index]
    if is_numpy_array(values):
        index = [x.astype(np.int32) for x in index]
    return *index, xp.take(values, order), n, n_steps


def _of_matrices(samples, n, n_steps, caller):
    """Return the samples of a sequence of partly observed matrices."""
    if not isinstance(samples, (tuple, list)) or not samples:
        raise TypeError(
            f"{caller}: samples must be (rows, cols, times, values) or a sequence of matrices; got "
            f"{type(samples).__name__}."
        )
    found = [observed(X, caller) for X in samples]
    shapes = {x.shape for x in found}
    if len(shapes) > 1 or found[0].shape[0] != found[0].shape[1]:
        raise ValueError(f"{caller}: samples must be square matrices of one shape; got {sorted(shapes)}.")
    xp = found[0].xp
    for value, name, own in ((n, "n", found[0].shape[0]), (n_steps, "n_steps", len(found))):
        if value not in (None, own):
            raise ValueError(f"{caller}: {name} must be {own} or None for these matrices; got {value}.")
    times = xp.concat([xp.full_like(x.rows, t + 1) for t, x in enumerate(found)])
    joined = (xp.concat([getattr(x, name) for x in found]) for name in ("rows", "cols"))
    return *joined, times, xp.concat([x.values for x in found]), found[0].shape[0], len(found)


def _check(k, n, n_steps, window, time_scale, noise_std, reg, tol, max_iter, cg_tol, cg_max_iter, continuation, caller):
    """Raise for arguments that are out of range; return the window."""
    check_count(k, "k", caller)
    if k > n:
        raise ValueError(f"{caller}: k must be in 1..{n}; got {k}.")
    if window is None:
        window = (n_steps + 2) // 2 if n_steps > 1 else 1
    check_count(window, "window", caller)
    if window > n_steps:
        raise ValueError(f"{caller}: window must be in 1..{n_steps}; got {window}.")
    if n_steps > 2 and window in (1, n_steps):
        warn(f"{caller}: with window = {window} of {n_steps} steps recovery usually fails.", AccuracyWarning)
    if time_scale not in ("auto", None):
        check_number(time_scale, "time_scale", caller)
        if not 0 < time_scale < math.inf:
            raise ValueError(f"{caller}: time_scale must be positive, 'auto' or None; got {time_scale}.")
    for value, name in ((noise_std, "noise_std"), (reg, "reg"), (tol, "tol"), (cg_tol, "cg_tol")):
        if value is not None and value != "auto":
            check_number(value, name, caller)
    for value, name in ((max_iter, "max_iter"), (cg_max_iter, "cg_max_iter")):
        check_count(value, name, caller)
    check_choice(continuation, "continuation", (True, False, "auto"), caller)
    return window
