"""Trace of a matrix that is known by its products, with an estimate of the error."""

import numpy as np

from rnla._backend import adjoint, key_from_rng, to_host
from rnla._matrix import as_matrix
from rnla._orth import EPS_DOUBLE
from rnla._probing import (
    BLOCK,
    PILOT,
    Basis,
    EstimateResult,
    Sample,
    check_least,
    deflation_pays,
    identity_images,
    mean_and_error,
    nystrom_core,
    square,
)
from rnla._rangefinder import check_choice, check_count, check_number, in_range, warn_not_converged

METHODS = ("auto", "xtrace", "xnystrace", "hutchpp", "hutchinson")
PROBES = ("sphere", "rademacher", "gaussian")
LEAST = {"xtrace": 2, "hutchpp": 3}  # products that a method needs; one for the others
FIRST = 40  # products of the first round where a precision is asked for


def trace(A, num_matvecs=None, *, rtol=None, atol=None, method="auto", psd=False, probe="sphere", rng=None):
    """Estimate the trace of a square matrix from a given number of products, or to a given precision.

    The error of ``hutchinson`` falls as ``num_matvecs**-0.5``. The other methods first take out what a few products
    see of the range of `A`: where its singular values decay, their error falls as fast as these do. For a matrix in
    memory `numpy.trace` is exact and costs nothing.

    Parameters
    ----------
    A : square matrix of any kind that `rnla.svd` accepts, shape (n, n)
        Need not be Hermitian. Only products with it are used, none with its adjoint.
    num_matvecs : int, optional
        Number of products; with `rtol` or `atol` the largest number. From n on the trace is exact.
    rtol, atol : float, optional
        Double the number of products, keeping those made, until ``stderr <= max(rtol * abs(value), atol)``.
    method : {"auto", "xtrace", "xnystrace", "hutchpp", "hutchinson"}
        ``xnystrace`` is for positive semidefinite matrices, for which it is the most accurate. ``auto`` is
        ``xtrace``, or ``xnystrace`` if `psd`, but ``hutchinson`` where the first 20 products see a flat spectrum.
    psd : bool
        `A` is known to be Hermitian and positive semidefinite.
    probe : {"sphere", "rademacher", "gaussian"}
        Distribution of the random vectors; ``sphere`` is uniform on the sphere of radius ``sqrt(n)``. Of ``rademacher``
        vectors that find the range, one that depends on the others, as in a dimension below 64 may be, is drawn again.
    rng : None, int or numpy.random.Generator
        Source of the random vectors.

    Returns
    -------
    EstimateResult
        ``value`` and ``stderr``. The values are unbiased; ``stderr`` of ``xnystrace`` is twice the spread of its
        samples, which are correlated.

    Raises
    ------
    ValueError
        If `A` is not square or not finite, an argument is out of range, or `A` is seen not to be positive
        semidefinite by ``xnystrace``.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Warns
    -----
    ConvergenceWarning
        If `num_matvecs` is reached before the precision.

    Notes
    -----
    Memory beyond `A`: ``2 n num_matvecs`` numbers, none of that order for ``hutchinson``; about
    ``3 n num_matvecs**2`` flops beyond the products. For a symmetric matrix the variance of ``hutchinson`` is
    ``2 ||A||_F**2 / num_matvecs`` with ``gaussian`` probes and ``2 (||A||_F**2 - sum_i a_ii**2) / num_matvecs`` with
    ``rademacher`` ones.

    References
    ----------
    .. [1] Epperly, Tropp, Webber, SIAM J. Matrix Anal. Appl. 45 (2024), arXiv 2301.07825 (XTrace, XNysTrace).
    .. [2] Meyer, Musco, Musco, Woodruff, SOSA 2021, arXiv 2010.09649 (Hutch++).

    Examples
    --------
    >>> A = np.diag(0.5 ** np.arange(100))
    >>> result = rnla.trace(A, 40, rng=0)
    >>> abs(result.value - 2) < 1e-3, result.matvecs
    (True, 40)
    """
    caller = "rnla.trace"
    M = square(as_matrix(A, caller), caller)
    check_budget(num_matvecs, rtol, atol, caller)
    check_choice(method, "method", METHODS, caller)
    check_choice(psd, "psd", (True, False), caller)
    check_choice(probe, "probe", PROBES, caller)
    check_least(num_matvecs, LEAST.get(method, 1), method, M, caller)
    key = key_from_rng(rng, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs

    def rounds(M, factor):
        target = None if rtol is None and atol is None else (rtol or 0.0, (atol or 0.0) * factor)
        return _rounds(Sample(M, probe, key, caller), num_matvecs, target, method, psd)

    (method, history, converged), factor = in_range(rounds, M)
    is_real = psd or not M.xp.isdtype(M.dtype, "complex floating")
    history = tuple(
        (made - matvecs, number(value / factor, is_real), float(stderr / factor)) for made, value, stderr in history
    )
    message = "converged" if converged else f"{history[-1][0]} products made before the precision was met"
    if rtol is None and atol is None:
        message = "given number of products"
    elif not converged:
        warn_not_converged(caller, message)
    made, value, stderr = history[-1]
    return EstimateResult(value, stderr, converged, method, made, M.counter.passes - passes, message, history)


def _rounds(sample, limit, target, method, psd):
    """Estimate the trace, with twice as many products in each round; return the method, the rounds, and whether met."""
    n, counter = sample.M.shape[0], sample.M.counter
    limit = n if limit is None else min(limit, n)
    count, history, estimator = limit if target is None else min(FIRST, limit), [], None
    while True:
        if count == n:
            method, value, stderr = "exact", _exact(sample), 0.0
        else:
            if method == "auto":
                method = _choose(sample, count, psd)
            estimator = estimator or {"xtrace": XTrace, "xnystrace": xnystrace, "hutchpp": HutchPP,
                                      "hutchinson": hutchinson}[method](sample)  # fmt: skip
            value, stderr = estimator(count)
        history.append((counter.matvecs, value, stderr))
        met = target is None or stderr <= max(target[0] * abs(value), target[1])
        if met or count == limit:
            return method, history, bool(met)
        count = min(2 * count, limit)


def _choose(sample, count, psd):
    """Choose a method from the part of A that the first products see; they are the first of any method."""
    width = min(PILOT, count if psd else count // 2)
    if width < 2:
        return "hutchinson"
    sample.grow(width)
    if not deflation_pays(sample, float(np.mean(sample.squares))):  # the mean is that of ||A||_F**2
        return "hutchinson"
    return "xnystrace" if psd else "xtrace"


def _exact(sample):
    """Return the trace from products with all columns of the identity."""
    return sum(np.trace(to_host(Y[start : start + Y.shape[1], :])) for start, Y in identity_images(sample))


def hutchinson(sample):
    """Return the mean of ``omega^H A omega`` as a function of the number of products."""

    def estimate(count):
        while sample.count < count:
            sample.draw(min(BLOCK, count - sample.count))
        return mean_and_error(sample.quadratic)

    return estimate


class XTrace:
    """Estimate a trace by leaving each of the columns that find the range out in turn (Algorithm 1.1 of [1])."""

    def __init__(self, sample):
        self.basis = Basis(sample, sample.M.matmat)

    def __call__(self, count):
        """Return value and standard error from `count` products."""
        basis, sample = self.basis, self.basis.sample
        basis.grow(count // 2)
        Q, Z, R, Omega = basis.Q, basis.Z, basis.R, sample.Omega
        H = to_host(adjoint(Q) @ Z)
        if basis.complete:
            return np.trace(H), 0.0
        n, width = Omega.shape
        S, _ = basis.left_out()
        W = to_host(adjoint(Q) @ Omega)
        lost = np.sum(S.conj() * W, axis=0)
        kept = W - S * lost  # Q kept is the projection of Omega on the basis that each column was not used for
        quadratic = _outside(sample.quadratic[:width], to_host(adjoint(Omega) @ Z), R, H, kept)
        if sample.probe == "sphere":
            # The direction of a probe in the space left is uniform; its length there is noise.
            squares = n - np.sum(np.abs(W) ** 2, axis=0) + np.abs(lost) ** 2
            quadratic = quadratic * ((n - width + 1) / np.maximum(squares, EPS_DOUBLE * n))
        return mean_and_error(np.trace(H) - np.sum(S.conj() * (H @ S), axis=0) + quadratic)


class HutchPP:
    """Estimate a trace from a basis of the range, its images, and probes orthogonal to it: a third of products each."""

    def __init__(self, sample):
        self.basis = Basis(sample, sample.M.matmat)
        self.rest = Sample(sample.M, sample.probe, (sample.key + 1) % 2**64, sample.caller)

    def __call__(self, count):
        """Return value and standard error from `count` products."""
        basis, rest, width = self.basis, self.rest, count // 3
        basis.grow(width)
        Q, Z = basis.Q, basis.Z
        H = to_host(adjoint(Q) @ Z)
        if basis.complete:
            return np.trace(H), 0.0
        rest.grow(width)
        W = to_host(adjoint(Q) @ rest.Omega)
        images = to_host(adjoint(rest.Omega) @ Z), to_host(adjoint(Q) @ rest.Y)
        quadratic = _outside(rest.quadratic, *images, H, W)
        if rest.probe == "sphere":
            n = Q.shape[0]
            quadratic = quadratic * ((n - width) / np.maximum(n - np.sum(np.abs(W) ** 2, axis=0), EPS_DOUBLE * n))
        value, stderr = mean_and_error(quadratic)
        return np.trace(H) + value, stderr


def xnystrace(sample):
    """Return the estimate from Nystrom approximations without each of the products, as a function of their number."""

    def estimate(count):
        sample.grow(count)
        if not sample.squares.any():
            return 0.0, 0.0
        n, width = sample.Omega.shape
        core = nystrom_core(sample.Omega, sample.Y, sample.caller)
        gain = np.diagonal(np.linalg.inv(core.gram)).real * (n - width + 1) if sample.probe == "sphere" else 1.0
        samples = np.sum(np.abs(core.G) ** 2) - np.sum(np.abs(core.Z) ** 2, axis=0) + gain * core.left_out**2
        value, stderr = mean_and_error(samples)
        # The samples share almost all of their vectors: the true spread of their mean is up to three times theirs.
        return value - core.shift * n, 2 * stderr

    return estimate


def _outside(quadratic, rows, images, H, W):
    """Return ``x^H A x`` for ``x = omega - Q w``, from ``omega^H A omega``, ``omega^H A Q``, ``Q^H A omega`` and H."""
    return quadratic - np.sum(rows.T * W, axis=0) + np.sum(W.conj() * (H @ W - images), axis=0)


def number(value, is_real):
    """Return a scalar as a Python float or complex number."""
    return float(np.real(value)) if is_real else complex(value)


def check_budget(num_matvecs, rtol, atol, caller):
    """Raise unless a number of products or a precision is given, each in its range."""
    if num_matvecs is None and rtol is None and atol is None:
        raise ValueError(f"{caller}: one of num_matvecs, rtol and atol must be given; got none.")
    if num_matvecs is not None:
        check_count(num_matvecs, "num_matvecs", caller)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None:
            check_number(value, name, caller)
