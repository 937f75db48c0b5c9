"""Stochastic Lanczos quadrature: quadratic forms of functions of a Hermitian matrix from a few products."""

import math
from dataclasses import dataclass

import numpy as np

from rnla._backend import adjoint, check_finite, columns, eps_of, to_host
from rnla._orth import orth
from rnla._probing import Sample, conj, identity_images, probes, real
from rnla._rangefinder import check_count, check_range
from rnla._sketch import test_matrix
from rnla._tall import column_squares, like

HELD = 2**27  # numbers in the Lanczos bases held at a time: 1 GB in double precision
SLOWEST = 0.85  # largest ratio of two changes that is believed
DENSE = 1000  # up to this side all eigenvalues cost no more than as many products


def all_affordable(n, num_probes, steps):
    """Say whether the products of a quadrature would give the whole matrix."""
    return n <= min(DENSE, num_probes * steps)


def hermitian_product(M, caller):
    """Return ``X -> A X``; the first product is checked to be one with a Hermitian matrix, of a safe size."""
    checked = False

    def product(X):
        nonlocal checked
        Y = M.matmat(X)
        if not checked:
            check_range(M, X, Y, caller)
            check_finite(Y, caller, "A")
            _check_hermitian(X, Y, eps_of(M.xp, M.dtype), caller)
            checked = True
        return Y

    return product


@dataclass(frozen=True)
class Rule:
    """A Gauss quadrature for the spectral measure of one unit vector; `before` are those of one and two steps less."""

    nodes: np.ndarray
    weights: np.ndarray
    before: tuple  # empty if the Krylov space is complete: more steps change nothing

    def __call__(self, function):
        """Return the quadratic form of ``function(A)``, and its changes in the last step and the one before it."""
        value = float(function(self.nodes) @ self.weights)
        if not self.before:
            return value, 0.0, 0.0
        last, first = (float(function(nodes) @ weights) if len(nodes) else math.inf for nodes, weights in self.before)
        return value, value - last, last - first if math.isfinite(last) else math.inf


def slq_trace(product, M, function, U, values, num_probes, steps, key, caller):
    """Return one sample of ``tr function(B)`` for each probe, and what more Lanczos steps might change.

    Parameters
    ----------
    product : callable
        ``X -> B X`` for the Hermitian B.
    M : Matrix
        Gives the side, and library, dtype and device of blocks.
    function : callable
        Of an array of Ritz values.
    U, values : array, shape (n, k), and ndarray, shape (k,)
        Approximate eigenpairs of B. What they and a multiple c of the identity elsewhere say, ``U function(values)
        U^H + c (I - U U^H)``, is subtracted from the sample and its trace added: that changes the variance alone.
    num_probes, steps, key, caller
        Numbers of probes and of Lanczos steps, the key, the public function named in errors.

    Returns
    -------
    samples : ndarray, shape (num_probes,)
    change : float
        The last changes continued as a geometric series, to at most six times the last one.
    """
    n, count = M.shape[1], len(values)
    X = probes(M, "sphere", key, num_probes, 0)  # of another key or stream than U
    inside = np.abs(to_host(adjoint(U) @ X)) ** 2  # (k, num_probes)
    rules = lanczos(product, M, X / math.sqrt(n), steps, caller)
    forms, last, first = (n * np.array(part) for part in zip(*(rule(function) for rule in rules), strict=True))
    if count:
        leading = function(values)
        rest, part = forms - leading @ inside, n - inside.sum(axis=0)
        # The multiple comes from the other probes, so that the samples stay unbiased.
        others = part.sum() - part
        some = others > 1e-10 * n
        level = np.where(some, rest.sum() - rest, 0.0) / np.where(some, others, 1.0)
        forms = rest + leading.sum() + level * ((n - count) - part)
    return forms, _remaining(float(np.mean(last)), float(np.mean(first)))


def _remaining(last, first):
    """Continue two changes as a geometric series: the last one alone says too little where convergence is slow."""
    if not last or not math.isfinite(last):
        return abs(last)
    ratio = min(abs(last / first), SLOWEST) if first and math.isfinite(first) else SLOWEST
    return abs(last) * max(1.0, ratio / (1 - ratio))


def lanczos(product, M, X, steps, caller):
    """Return the Gauss quadratures of the spectral measures of the unit columns of X, as a list of `Rule`.

    Each column has its own Krylov space, whose basis is orthogonalised twice against all of itself; products are made
    with all columns at once.
    """
    group = max(1, HELD // (X.shape[0] * min(steps, X.shape[0])))
    if X.shape[1] > group:
        parts = [X[:, i : i + group] for i in range(0, X.shape[1], group)]
        return [rule for part in parts for rule in lanczos(product, M, part, steps, caller)]
    xp, eps, (n, count) = M.xp, eps_of(M.xp, M.dtype), X.shape
    steps = min(steps, n)
    V = xp.empty((count, steps, n), dtype=M.dtype, device=M.device)
    diagonal, beside, length = np.zeros((steps, count)), np.zeros((steps, count)), np.full(count, steps)
    W, scale, complete = X.T, np.zeros(count), np.zeros(count, bool)
    for step in range(steps):
        V[:, step, :] = W
        Y = product(W.T)
        check_finite(Y, caller, "A")
        basis, W = V[:, : step + 1, :], Y.T
        scale = np.maximum(scale, np.sqrt(column_squares(Y)))
        for _ in range(2):
            C = xp.matmul(conj(basis), W[:, :, None])  # (count, step + 1, 1)
            W = W - xp.matmul(xp.matrix_transpose(basis), C)[:, :, 0]
            diagonal[step] += to_host(real(C[:, -1, 0]))
        beside[step] = np.sqrt(column_squares(W.T))
        # What is left is rounding: the Krylov space is complete, and its quadrature exact.
        ended = (beside[step] <= 10 * eps * math.sqrt(n) * scale) | (step + 1 == n)
        complete |= ended
        length = np.minimum(length, np.where(ended, step + 1, steps))
        if complete.all():
            break
        W = W * like(np.where(ended, 0.0, 1.0 / np.where(ended, 1.0, beside[step])), W)[:, None]
    return [_rule(diagonal[:size, j], beside[: size - 1, j], complete[j]) for j, size in enumerate(length)]


def _rule(diagonal, beside, complete):
    """Return the quadrature of a Jacobi matrix; `complete` if more steps would not change it."""

    def solve(size):
        if not size:
            return np.zeros(0), np.zeros(0)
        T = np.diag(diagonal[:size]) + np.diag(beside[: size - 1], 1) + np.diag(beside[: size - 1], -1)
        nodes, S = np.linalg.eigh(T)
        return nodes, S[0] ** 2

    size = len(diagonal)
    nodes, weights = solve(size)
    return Rule(nodes, weights, () if complete else (solve(size - 1), solve(max(size - 2, 0))))


def ritz_pairs(M, count, key, caller):
    """Return Ritz vectors and values of a Hermitian A from a random range of `count` columns."""
    if not count:
        return columns(M.xp, M.shape[0], 0, dtype=M.dtype, device=M.device), np.zeros(0)
    X = test_matrix("gaussian", key, M.shape[1], count, xp=M.xp, device=M.device, dtype=M.dtype, stream=1)
    Y = M.matmat(X)
    check_range(M, X, Y, caller)
    check_finite(Y, caller, "A")
    Q = orth(Y)[0]
    Z = M.matmat(Q)
    check_finite(Z, caller, "A")
    H = to_host(adjoint(Q) @ Z)
    values, W = np.linalg.eigh((H + H.conj().T) / 2)
    return Q @ like(W, Q), values


def dense_eigenvalues(M, key, caller):
    """Return all eigenvalues, from products with the identity."""
    A = np.concatenate([to_host(Y) for _, Y in identity_images(Sample(M, "sphere", key, caller))], axis=1)
    _check_hermitian(np.eye(len(A)), A, eps_of(M.xp, M.dtype), caller)
    return np.linalg.eigvalsh((A + A.conj().T) / 2)


def _check_hermitian(X, Y, eps, caller):
    H = to_host(adjoint(X) @ Y)
    allowed = 100 * eps * math.sqrt(np.sum(column_squares(X)) * np.sum(column_squares(Y)))
    if np.linalg.norm(H - H.conj().T) > allowed:
        raise ValueError(f"{caller}: A must be Hermitian; its products show that it is not.")


def check_quadrature(num_probes, steps, rank, M, caller):
    """Raise unless the numbers of probes, of Lanczos steps and of Ritz pairs taken out are in their ranges."""
    check_count(num_probes, "num_probes", caller)
    check_count(steps, "steps", caller)
    if rank is not None:
        check_count(rank, "rank", caller, least=0)
        if rank > M.shape[0]:
            raise ValueError(f"{caller}: rank must be in 0..{M.shape[0]} for A of shape {M.shape}; got {rank}.")
