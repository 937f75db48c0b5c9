"""Traces of functions of Hermitian matrices, among them the log-determinant, by stochastic Lanczos quadrature."""

import math

import numpy as np

from rnla._backend import adjoint, eps_of, key_from_rng, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._matrix import as_matrix
from rnla._probing import PILOT, EstimateResult, Sample, deflation_pays, mean_and_error, nystrom_core, square
from rnla._quadrature import (
    all_affordable,
    check_quadrature,
    dense_eigenvalues,
    hermitian_product,
    ritz_pairs,
    slq_trace,
)
from rnla._rangefinder import check_number, in_range, warn_not_converged
from rnla._tall import column_squares, like

LARGEST_RANK = 160  # that logdet deflates by itself
LEVEL = 0.1  # it stops where the smallest eigenvalue taken out exceeds those left by so little, relative to their mean


def trace_fun(A, f, *, num_probes=10, steps=20, rank=None, rng=None):
    """Estimate the trace of a function of a Hermitian matrix.

    The sum of `f` over the eigenvalues, from the Gauss quadratures that Lanczos iterations from random vectors give.
    What the leading Ritz pairs say of ``f(A)`` is taken out of each sample and added exactly.

    Parameters
    ----------
    A : Hermitian matrix of any kind that `rnla.svd` accepts, shape (n, n)
        Only products with it are used. Up to ``n = num_probes * steps``, at most 1000, the answer is exact.
    f : callable
        Maps an array of real numbers, in the range of the eigenvalues, to an array of real numbers.
    num_probes : int
        Number of random vectors; the error falls as ``num_probes**-0.5``.
    steps : int
        Steps of each Lanczos iteration: exact for polynomials of degree ``2 * steps - 1``.
    rank : int, optional
        Number of Ritz pairs taken out; two products each. By default as many as a quarter of the Lanczos products,
        but none where the first 20 products see a flat spectrum.
    rng : None, int or numpy.random.Generator
        Source of the random vectors.

    Returns
    -------
    EstimateResult
        ``value`` and ``stderr``, which includes what more Lanczos steps might change.

    Raises
    ------
    ValueError
        If `A` is not square, Hermitian and finite, `f` is not finite on its spectrum, or another argument is out of
        range.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Warns
    -----
    ConvergenceWarning
        If more Lanczos steps might change the value by more than the spread of the samples.

    Notes
    -----
    Reads `A` ``steps + 2`` times. Memory: ``num_probes * steps * n`` numbers, at most 1 GB at a time: where they are
    more, groups of probes follow each other and each reads `A` again.

    References
    ----------
    .. [1] Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017) (stochastic Lanczos quadrature).
    .. [2] Persson, Kressner, SIAM J. Matrix Anal. Appl. 44 (2023) (deflation by low-rank approximation).

    Examples
    --------
    >>> A = np.diag(np.linspace(1.0, 2.0, 50))
    >>> result = rnla.trace_fun(A, np.sqrt, rng=0)
    >>> bool(np.isclose(result.value, np.sqrt(np.linspace(1.0, 2.0, 50)).sum())), result.method
    (True, 'exact')
    """
    caller = "rnla.trace_fun"
    M = square(as_matrix(A, caller), caller)
    if not callable(f):
        raise TypeError(f"{caller}: f must be callable; got {type(f).__name__}.")
    check_quadrature(num_probes, steps, rank, M, caller)
    key = key_from_rng(rng, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs

    def compute(M, factor):
        def function(values):
            return values_of(f, values / factor, caller)

        if all_affordable(M.shape[0], num_probes, steps):
            return np.array([np.sum(function(dense_eigenvalues(M, key, caller)))]), None
        count = _rank(M, rank, num_probes, steps, key, caller)
        U, ritz = ritz_pairs(M, count, key, caller)
        return slq_trace(hermitian_product(M, caller), M, function, U, ritz, num_probes, steps, key, caller)

    (samples, change), _ = in_range(compute, M)
    return _result(samples, change, M, passes, matvecs, caller)


def logdet(A, *, num_probes=10, steps=20, rank=None, mu=None, rng=None):
    """Estimate the logarithm of the determinant of a Hermitian positive definite matrix.

    With a Nystrom approximation as preconditioner, ``P = A_nys + mu I``, it is ``logdet P``, which is known, and the
    trace of ``log(P^-1/2 A P^-1/2)``, from stochastic Lanczos quadrature: a matrix near the identity has little to
    guess. For ``A = K + mu I`` with a positive semidefinite K of decaying spectrum, give `mu`.

    Parameters
    ----------
    A : Hermitian positive definite matrix of any kind that `rnla.svd` accepts, shape (n, n)
        Only products with it are used. Up to ``n = num_probes * steps``, at most 1000, the answer is exact.
    num_probes : int
        Number of random vectors; the error falls as ``num_probes**-0.5``.
    steps : int
        Steps of each Lanczos iteration.
    rank : int, optional
        Rank of the Nystrom approximation; 0 for none. By default it is doubled from 20 until its smallest eigenvalue
        is near the mean of those left out, up to 160, and 0 where the first 20 products see a flat spectrum.
    mu : float, optional
        A number that `A` minus `mu` times the identity is still positive semidefinite for; estimated if left out.
    rng : None, int or numpy.random.Generator
        Source of the random vectors.

    Returns
    -------
    EstimateResult
        ``value`` and ``stderr``, which includes what more Lanczos steps might change.

    Raises
    ------
    NotPositiveDefiniteError
        If `A` is seen not to be positive definite (a ``ValueError``).
    ValueError
        If `A` is not square, Hermitian and finite, or an argument is out of range.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Warns
    -----
    ConvergenceWarning
        If more Lanczos steps might change the value by more than the spread of the samples.

    Notes
    -----
    ``rank + num_probes * steps`` products in about ``steps + 3`` reads of `A`; memory as for `trace_fun`.

    References
    ----------
    .. [1] Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017).
    .. [2] Frangella, Tropp, Udell, SIAM J. Matrix Anal. Appl. 44 (2023) (Nystrom preconditioner).

    Examples
    --------
    >>> A = np.diag([1.0, 2.0, 4.0])
    >>> bool(np.isclose(float(rnla.logdet(A)), np.log(8)))
    True
    """
    caller = "rnla.logdet"
    M = square(as_matrix(A, caller), caller)
    check_quadrature(num_probes, steps, rank, M, caller)
    if mu is not None:
        check_number(mu, "mu", caller)
    key = key_from_rng(rng, caller)
    passes, matvecs = M.counter.passes, M.counter.matvecs

    def compute(M, factor):
        n, known = M.shape[0], -M.shape[0] * math.log(factor)

        def logarithm(values):
            if values.size and values.min() <= 0:
                raise NotPositiveDefiniteError(f"{caller}: A must be positive definite; it has Ritz values <= 0.")
            return np.log(values)

        if all_affordable(n, num_probes, steps):
            return np.array([np.sum(logarithm(dense_eigenvalues(M, key, caller))) + known]), None
        sample = Sample(M, "gaussian", (key + 1) % 2**64, caller)  # not of the key of the probes
        U, values, level = nystrom_preconditioner(sample, rank, (mu or 0.0) * factor)
        known += float(np.sum(np.log(values / level))) + n * math.log(level)
        scales = like(np.sqrt(level / values) - 1, U)

        def whiten(X):  # P^-1/2 X times the root of the level, by which the product is divided
            return X + U @ (scales[:, None] * (adjoint(U) @ X))

        def preconditioned(X):
            return whiten(M.matmat(whiten(X))) / level

        product = preconditioned if U.shape[1] else hermitian_product(M, caller)
        samples, change = slq_trace(product, M, logarithm, U[:, :0], np.zeros(0), num_probes, steps, key, caller)
        return samples + known, change

    (samples, change), _ = in_range(compute, M)
    return _result(samples, change, M, passes, matvecs, caller)


def nystrom_preconditioner(sample, rank, mu):
    """Return U, values and level of ``P = U values U^H + level (I - U U^H)``, near a positive definite A."""
    M = sample.M
    n = M.shape[0]
    width = min(PILOT, n // 4) if rank is None else rank
    if not width:
        return sample.Omega, np.zeros(0), 1.0
    while True:
        sample.grow(width)
        if not sample.squares.any():
            raise NotPositiveDefiniteError(f"{sample.caller}: A must be positive definite; its products are zero.")
        if rank is None and width <= PILOT and not deflation_pays(sample, float(np.mean(sample.squares))):
            return sample.Omega[:, :0], np.zeros(0), 1.0
        known = mu or _floor(sample)
        Y = sample.Y - known * sample.Omega if known else sample.Y
        core = nystrom_core(sample.Omega, Y, sample.caller)
        W, s, _ = np.linalg.svd(core.G)
        values = np.maximum(s**2 - core.shift, 0.0)
        # What one more random vector would see of A less its approximation, over n: the mean eigenvalue left.
        left = max(float(np.mean(core.left_out**2)) / n - core.shift, 0.0)
        level = max(known + left, eps_of(M.xp, M.dtype) * s[0] ** 2)
        if rank is not None or values[-1] <= LEVEL * level or 2 * width > min(LARGEST_RANK, n // 4):
            return core.Q @ like(W, core.Q), values + level, level
        width *= 2


def _floor(sample):
    """Return a number near the smallest eigenvalue, if A less it seems positive semidefinite, else 0.

    The least Rayleigh quotient among combinations of the random vectors comes down to the eigenvalue where the rest of
    A has lower rank than there are vectors, as for ``K + mu I``. Its residual says how near it is; without that margin
    the Nystrom approximation of the difference would have a spurious eigenvalue, residual**2 over margin.
    """
    Omega, Y = sample.Omega, sample.Y
    W = np.linalg.inv(np.linalg.cholesky(to_host(adjoint(Omega) @ Omega)))
    H = W @ to_host(adjoint(Omega) @ Y) @ W.conj().T
    values, S = np.linalg.eigh((H + H.conj().T) / 2)
    c = W.conj().T @ S[:, :1]
    x = Omega @ like(c, Omega)
    return max(float(values[0] - np.sqrt(column_squares(Y @ like(c, Y) - float(values[0]) * x)[0])), 0.0)


def values_of(f, values, caller):
    """Return ``f(values)`` as float64, checked."""
    found, shape = np.asarray(f(values)), values.shape
    if found.shape != shape or found.dtype.kind not in "fiub":
        raise ValueError(
            f"{caller}: f must map an array to a real array of its shape {shape}; got {found.dtype} {found.shape}."
        )
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        where = values[~np.isfinite(found)][0]
        raise ValueError(f"{caller}: f must be finite on the spectrum of A; f({where:.6g}) is not.")
    return found


def _rank(M, rank, num_probes, steps, key, caller):
    """Return the number of Ritz pairs to be taken out."""
    if rank is not None:
        return rank
    if M.shape[0] < 4:
        return 0
    sample = Sample(M, "gaussian", (key + 1) % 2**64, caller)
    sample.grow(min(PILOT, M.shape[0] // 4))
    pays = deflation_pays(sample, float(np.mean(sample.squares)))
    return min(M.shape[0] // 4, max(PILOT, num_probes * steps // 4)) if pays else 0


def _result(samples, change, M, passes, matvecs, caller):
    spent = M.counter.matvecs - matvecs, M.counter.passes - passes
    if change is None:
        return EstimateResult(float(samples[0]), 0.0, True, "exact", *spent, "all eigenvalues computed", ())
    value, stderr = mean_and_error(samples)
    change = abs(change)
    converged = math.isfinite(change) and change <= max(stderr, math.sqrt(np.finfo(float).eps) * abs(value))
    message = "converged" if converged else f"more Lanczos steps might change the value by {change:.1e}"
    if not converged:
        warn_not_converged(caller, message)
    return EstimateResult(float(value), math.hypot(stderr, change), bool(converged), "slq", *spent, message, ())
