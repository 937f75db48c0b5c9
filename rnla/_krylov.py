"""Randomized block Krylov iterations for leading singular triplets, with thick restart.

`short_side` builds an orthonormal basis Q of the short side only, from products with A^H A, and reads singular triplets
off T = Q^H A^H A Q; the long side is touched once, at the end. It squares singular values: those below about
sqrt(eps / tol) of the largest are lost. `two_sided` orthonormalises both sides and has no such limit.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from rnla._backend import adjoint, check_finite, columns, eps_of, host_svd, to_host
from rnla._checkpoint import restored
from rnla._orth import orth, orth_factors, orthonormal_block, random_complement
from rnla._rangefinder import check_range
from rnla._tall import column_squares, inner, joined, like, test_columns, times, times_small

VERIFY_PASSES = 5  # of `_missed`


class Triplets(NamedTuple):
    """Approximate singular triplets of a matrix, and how the iteration that found them ended."""

    U: Any  # (m, k) or None
    s: np.ndarray  # (k,) on the host
    V: Any  # (n, k)
    residuals: np.ndarray | None  # (k,) estimates of max(||A v - s u||, ||A^H u - s v||)
    converged: bool
    restarts: int
    block: int
    message: str = ""  # how far it came
    noise: float = 0.0  # rounding of the smallest value, relative, where squares were formed
    squared_away: bool = False  # small singular values are lost to squaring: continue with `two_sided`


class TestColumns:
    """Ever new columns of one random test matrix."""

    __test__ = False  # not for pytest

    def __init__(self, M, kind, key):
        self._M, self._kind, self._key, self.used = M, kind, key, 0

    def __call__(self, count):
        """Return the next `count` columns, shape (n, count)."""
        X = test_columns(self._M, 1, self._kind, self._key, count, start=self.used)
        self.used += count
        return X


class ShortBasis:
    """An orthonormal basis Q of part of the short side, T = Q^H A^H A Q and, if wanted, the images A Q."""

    def __init__(self, M, capacity, keep_images, caller):
        self.M, self.caller, self.size, self.scale = M, caller, 0, 0.0
        self._near = 0  # A^H A times the next block has no part along the columns of Q before this one
        place = {"dtype": M.dtype, "device": M.device}
        self._Q = columns(M.xp, M.shape[1], capacity, **place)
        self._Y = columns(M.xp, M.shape[0], capacity, **place) if keep_images else None
        self._Z = columns(M.xp, M.shape[1], 0, **place)
        complex_data = M.xp.isdtype(M.dtype, "complex floating")
        self._T = np.zeros((capacity, capacity), np.complex128 if complex_data else np.float64)
        self.eps = eps_of(M.xp, M.dtype)

    @property
    def Q(self):
        return self._Q[:, : self.size]

    @property
    def Y(self):
        return self._Y[:, : self.size]

    def expand(self, X, fresh):
        """Append the orthonormal block X; return the next block P and B in ``A^H A Q = Q T + P B E_last^H``."""
        first, last = self.size, self.size + X.shape[1]
        self._Q[:, first:last] = X
        self.size = last
        Z = self._gram(self._Q[:, first:last], first, last)
        if first == 0 and self._Y is None:
            check_range(self.M, X, Z, self.caller, power=2)
        check_finite(Z, self.caller, "A", self.M)
        self.scale = max(self.scale, float(np.sqrt(np.max(np.diagonal(to_host(adjoint(Z) @ Z)).real))))
        P, B, C = orthonormal_block(Z, self.Q, floor=self.eps * self.scale, near=self._near)
        self._near = first
        self._T[:last, first:last] = C
        self._T[first:last, :last] = C.conj().T
        self._T[first:last, first:last] = (C[first:] + C[first:].conj().T) / 2
        return self._filled(P, B, X.shape[1], fresh)

    def ritz(self):
        """Return the eigenvalues, descending and not negative, and eigenvectors of T."""
        values, S = np.linalg.eigh(self._T[: self.size, : self.size])
        return np.maximum(values[::-1], 0.0), S[:, ::-1]

    def restart(self, values, S, keep):
        """Keep the leading Ritz vectors alone."""
        S = like(S[:, :keep], self._Q)
        self._Q[:, :keep] = self.Q @ S
        if self._Y is not None:
            self._Y[:, :keep] = self.Y @ S
        self._T[:] = 0
        self._T[np.arange(keep), np.arange(keep)] = values[:keep]
        self.size, self._near = keep, 0

    def parts(self):
        """Return the numbers and the arrays from which `take` makes the same basis again."""
        images = {} if self._Y is None else {"Y": self.Y}
        T = self._T[: self.size, : self.size]
        return {"size": self.size, "near": self._near, "scale": self.scale}, {"Q": self.Q, "T": T, **images}

    def take(self, state):
        """Become the basis of a saved state."""
        self.size, self._near, self.scale = state["size"], state["near"], state["scale"]
        self._Q[:, : self.size] = restored(state["Q"], self.M)
        self._T[: self.size, : self.size] = state["T"]
        if self._Y is not None:
            self._Y[:, : self.size] = restored(state["Y"], self.M)

    def _gram(self, X, first, last):
        if self._Y is None:
            return self.M.gram_matmat(X)
        Y = self.M.matmat(X, out=self._Y[:, first:last])
        if first == 0:
            check_range(self.M, X, Y, self.caller)
        if not (isinstance(Y, np.ndarray) and np.may_share_memory(Y, self._Y)):
            self._Y[:, first:last] = Y
        if self._Z.shape[1] != X.shape[1]:
            self._Z = columns(self.M.xp, *X.shape, dtype=X.dtype, device=self.M.device)
        return self.M.rmatmat(self._Y[:, first:last], out=self._Z)

    def _filled(self, P, B, width, fresh):
        """Replace what an invariant subspace took from the next block by fresh random directions."""
        width = min(width, self.M.shape[1] - self.size)
        missing = width - P.shape[1]
        if missing <= 0:
            return P[:, :width], B[:width]
        known = self.M.xp.concat([self.Q, P], axis=1)
        extra = random_complement(known, fresh, missing)
        return self.M.xp.concat([P, extra], axis=1), np.concatenate([B, np.zeros((extra.shape[1], B.shape[1]))])


def short_side(M, k, *, tol, block, extra, max_basis, max_passes, keep_images, verify, fresh, monitor, caller,
               saved=None):  # fmt: skip
    """Find leading singular triplets of a matrix from a block Krylov space of ``A^H A``.

    Each step reads A and A^H once, or A alone where the storage can form ``A^H (A X)`` in one read. Memory: `max_basis`
    columns of the short side n, and as many of m if the images are kept (saving the last pass).

    Parameters
    ----------
    M : Matrix
        With ``m >= n`` for the cost named.
    k : int
        Number of triplets.
    tol : float
        Relative to each singular value: bound on the estimated residuals.
    block, extra : int
        Columns of a block; Ritz vectors kept beyond `k`.
    max_basis, max_passes : int
        Bounds on the columns of the basis and on the reads of A.
    keep_images : bool
        Keep ``A Q`` in memory.
    verify : bool
        Look for copies of repeated singular values that a narrow block cannot see.
    fresh : TestColumns
        Random columns.
    monitor : Monitor
        Told of every block.
    caller : str
        Public function named in errors.
    saved : Checkpoint, optional
        Where to begin, if it holds a state, and where to write the state after every block.

    Returns
    -------
    Triplets
        ``U`` is None unless the images are kept.

    References
    ----------
    .. [1] Musco, Musco, NeurIPS 2015, Algorithm 2.  [2] Tropp, Webber, arXiv 2306.12418, section 7.
    .. [3] Wu, Simon, SIAM J. Matrix Anal. Appl. 22 (2000) (thick restart).
    """
    n = M.shape[1]
    budget = M.counter.passes + max_passes - (0 if keep_images else 1)
    step = 2 if keep_images or not M.one_pass_gram else 1
    basis = ShortBasis(M, min(n, max_basis), keep_images, caller)
    state = None if saved is None else saved.take()
    P = orth(fresh(block))[0] if state is None else None
    restarts, triplets = 0, None
    while True:
        if state is None:
            width = P.shape[1]
            P, B = basis.expand(P, fresh)
            if saved is not None:
                _save(saved, basis, P, B, width, restarts, fresh, monitor)
        else:
            P, B, width, restarts = _resume(state, basis, fresh, monitor)
            state = None
        values, S = basis.ritz()
        residuals, noise = _short_residuals(values, S, B, k, basis)
        # Values lost to squaring (noise above tol) are not waited for: `two_sided` will find them.
        done = basis.size >= k and bool(np.all((residuals <= tol) | (noise > tol)))
        done = basis.size == n or (done and _stay(values, S, B, k, tol + noise, basis.eps))
        stopped = monitor(np.max(residuals[:k], initial=0.0) if basis.size >= k else np.inf)
        spent = M.counter.passes + step > budget
        lost = bool(np.any(noise > tol)) or basis.size < k
        if done and verify and basis.size < n and not (lost or stopped):
            # Nothing is claimed that was to be verified and could not be.
            done = M.counter.passes + VERIFY_PASSES <= budget
            triplets = _, s, V = _short_triplets(basis, values, S, B, P, k)
            missed = _missed(M, V, s[0], s[-1], tol, fresh) if done else None
            if missed is not None:
                done, spent = False, M.counter.passes + step > budget
            if missed is not None and not spent:
                # A copy was missed: the block is narrower than some multiplicity. Widen it, by what was found first.
                known = M.xp.concat([basis.Q, P], axis=1)
                wide = random_complement(known, partial(_with_fresh, missed, fresh), 3 * width)
                P, triplets = M.xp.concat([P, wide], axis=1)[:, : max_basis - k], None
        if done or stopped or spent:
            break
        if basis.size + P.shape[1] > max_basis and basis.size > k:
            keep = min(basis.size, max(k, min(max_basis - P.shape[1], k + max(P.shape[1], extra, k // 2))))
            basis.restart(values, S, keep)
            restarts += 1
    U, s, V = triplets or _short_triplets(basis, values, S, B, P, min(k, basis.size))
    message = f"residual {residuals.max():.1e}, tol {tol:.1e}"
    if basis.size >= k and not done and np.all(residuals <= tol):
        message += ", repeated singular values not ruled out"
    return Triplets(U, s, V, residuals[: len(s)] * s, done, restarts, block, message, float(noise.max()), lost)


def _save(saved, basis, P, B, width, restarts, fresh, monitor):
    """Write what the iteration knows after a block: to go on from it gives the same numbers, bit for bit."""
    counter = basis.M.counter
    numbers = {
        "passes": counter.passes, "matvecs": counter.matvecs, "columns": fresh.used, "width": width,
        "restarts": restarts, "history": monitor.history, "seconds": monitor.seconds,
    }  # fmt: skip
    own, arrays = basis.parts()
    saved.save({**numbers, **own}, {"P": P, "B": B, **arrays})


def _resume(state, basis, fresh, monitor):
    """Put everything where it was as `_save` wrote it; return P, B, the width of the block and the restarts."""
    M = basis.M
    basis.take(state)
    M.counter.passes, M.counter.matvecs, fresh.used = state["passes"], state["matvecs"], state["columns"]
    monitor.resume(state["history"], state["seconds"], state["passes"])
    return restored(state["P"], M), state["B"], state["width"], state["restarts"]


def _short_residuals(values, S, B, k, basis):
    """Estimate the relative residuals of the leading triplets, and the part of them that is rounding."""
    count = min(k, len(values))
    last = S[len(S) - B.shape[1] :]
    lam = values[:count]
    with np.errstate(divide="ignore", invalid="ignore"):
        coupling = np.linalg.norm(B @ last[:, :count], axis=0)
        # `_short_triplets` takes half a step more than the Ritz pairs of T. Its residual is (I - UU^H) A v, in which
        # only the last, not yet expanded block has a part: about ||(I - P_Y) A Q_last|| times the weight of that block.
        positive = values > basis.eps * values[0]
        inverse = (last[:, positive] / values[positive]) @ last[:, positive].conj().T
        unseen = 1.0 / np.sqrt(max(np.linalg.eigvalsh(inverse)[0], 1e-300))
        relative = np.where(lam > 0, coupling / lam * np.minimum(1.0, unseen / np.sqrt(lam)), 0.0)
        noise = np.where(lam > 0, 4 * basis.eps * values[0] / lam, np.inf)
    return relative, noise


def _stay(values, S, B, k, tol, eps):
    """Say whether the half step of `_short_triplets` leaves the leading values where they are.

    A direction that has just come in, such as a missed copy, may be small in T and large with its last product: it
    would take the place of a triplet whose residual was tested.
    """
    _, _, _, squares, _ = _half_step(values, S, B, eps)
    k = min(k, len(squares))
    return bool(np.all(squares[::-1][:k] <= values[:k] * (1 + tol[:k])))


def _half_step(values, S, B, eps):
    """Return the values and vectors above rounding, the last rows of N, and the eigenpairs of ``N^H N``, ascending."""
    positive = values > 16 * eps * values[0]
    values, S = values[positive], S[:, positive]
    tail = (B @ S[len(S) - B.shape[1] :]) / np.sqrt(values)
    squares, Z = np.linalg.eigh(np.diag(values) + tail.conj().T @ tail)
    return values, S, tail, squares, Z


def _short_triplets(basis, values, S, B, P, k):
    """Form singular triplets from a basis, using its last product too.

    With ``T = S diag(values) S^H`` the columns of ``U = Y S values**-0.5`` are orthonormal and
    ``A^H U = [Q S, P] N``, ``N = [values**0.5; B S_last values**-0.5]``: the SVD of N gives triplets of ``U U^H A``.
    """
    values, S, tail, squares, Z = _half_step(values, S, B, basis.eps)
    root = np.sqrt(values)
    k = min(k, len(values))
    s, Z = np.sqrt(np.maximum(squares[::-1][:k], 0.0)), Z[:, ::-1][:, :k]
    V = basis.Q @ like(S @ (root[:, None] * Z / s), basis._Q) + P @ like(tail @ Z / s, basis._Q)
    V, W, R = orth_factors(V)
    if basis._Y is None:
        return None, s, V @ like(W, V)
    U, W2, R2 = orth_factors(basis.Y @ like(S @ (Z / root[:, None]), basis._Q), overwrite=True)
    # U^H A V, with both bases made orthonormal to rounding: R and R2 are the identity up to (sigma_1 / sigma_k)**2 eps.
    X, s, Yh = host_svd(np.linalg.solve(R2.conj().T, s[:, None] * R.conj().T))
    return times_small(U, W2 @ X, overwrite=True), s, V @ like(W @ Yh.conj().T, V)


def two_sided(M, k, start, *, tol, extra, max_basis, max_passes, verify, fresh, monitor, caller):
    """Find leading singular triplets by block Golub-Kahan iteration with both bases orthonormal to rounding.

    Holds ``A^H Q = P R`` with Q (m, c), P (n, c') and a small R; each step reads A and A^H once and needs
    ``8 (m + n) c**2`` flops of orthogonalisation in all.

    Parameters
    ----------
    M : Matrix
        Of any shape.
    k : int
        Number of triplets; fewer are returned if A has lower rank.
    start : array, shape (n, b)
        First block: random, or approximate right singular vectors.
    tol, extra, max_basis, max_passes, verify, fresh, monitor, caller
        As for `short_side`.

    Returns
    -------
    Triplets
        All parts given.

    References
    ----------
    .. [1] Tropp, Webber, arXiv 2306.12418, Algorithm A.1.
    """
    eps, block = eps_of(M.xp, M.dtype), start.shape[1]
    budget = M.counter.passes + max_passes
    Q, P = None, start[:, :0]
    R, X, Zh, s = np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0)
    residuals, top, restarts, converged, before = np.zeros(0), 0.0, 0, False, np.inf
    W, old, random = start, 0, True  # W = [last block of P (old columns), directions outside P]
    while True:
        if M.counter.passes + 1 > budget:  # only ever after the first block: its residuals would need another pass
            X, s, Zh = host_svd(R)
            residuals = np.full(min(k, len(s)), np.inf)
            break
        Y = M.matmat(W)
        if not len(R):
            check_range(M, W, Y, caller)
        check_finite(Y, caller, "A", M)
        top = max(top, float(np.sqrt(np.max(column_squares(Y), initial=0.0))))
        Q = Y[:, :0] if Q is None else Q
        floor = eps * np.sqrt(max(M.shape)) * top  # rounding of a product, whose terms err at random
        Qi, B, _ = orthonormal_block(Y, Q, floor=floor)
        X, s, Zh = host_svd(R)
        # A P X = Q Z S + Qi B X_last, and A^H Q Z = P X S: the residual is what the last block of P has outside Q.
        residuals = np.linalg.norm(B[:, :old] @ X[len(X) - old :, :k], axis=0)
        excess = float(np.max(residuals - tol * s[:k], initial=0.0))
        # Down at rounding, whose size is not known exactly, go on while it helps.
        settled = excess <= eps * top or (2 * excess > before and excess <= 4 * eps * np.sqrt(max(M.shape)) * top)
        exhausted = Qi.shape[1] == 0 and random  # random directions outside P see nothing new: the range is complete
        converged = exhausted or (len(s) >= k and settled)
        before = excess if len(s) >= k else np.inf
        error = np.max(residuals[:k] / np.maximum(s[:k], eps * top), initial=0.0) if len(s) >= k else np.inf
        stopped = len(s) > 0 and monitor(error)  # before the first triplets there is nothing to stop with
        spent = len(s) > 0 and M.counter.passes + 2 > budget
        missed = None
        if converged and verify and not (exhausted or stopped):
            converged = M.counter.passes + VERIFY_PASSES <= budget  # nothing is claimed that could not be verified
            spent = spent or not converged
            missed = _missed(M, times(P, X[:, :k]), s[0], s[k - 1], tol, fresh) if converged else None
        converged = converged and missed is None
        if stopped or spent or converged:
            break
        if Q.shape[1] + Qi.shape[1] > max_basis and len(s) > k:
            keep = max(k, min(k + max(extra, k // 2), max_basis - Qi.shape[1], len(s)))
            Q, P, R = times(Q, Zh[:keep].conj().T), times(P, X[:, :keep]), np.diag(s[:keep])
            restarts += 1
        Q = joined(Q, Qi)
        Pi, Ri, C = orthonormal_block(M.rmatmat(Qi), P, floor=floor)
        P = joined(P, Pi)
        R = np.block([[R, C], [np.zeros((len(Ri), R.shape[1])), Ri]])
        W, old, random = Pi, Pi.shape[1], False
        if missed is not None or not old:  # a copy was missed, or the space is invariant: look elsewhere
            wide = block if missed is None else 3 * block
            W = joined(Pi, random_complement(P, partial(_with_fresh, missed, fresh), wide))
            random = True
        if not W.shape[1]:  # P is the whole space, and A times all of it is in Q
            X, s, Zh = host_svd(R)
            residuals, converged = np.zeros(min(k, len(s))), True
            break
    k = min(k, len(s))
    U, V = times(Q, Zh[:k].conj().T), times(P, X[:, :k])
    worst = np.max(residuals[:k] / np.maximum(s[:k], eps * top), initial=0.0)
    message = f"residual {worst:.1e}, tol {tol:.1e}"
    return Triplets(U, s[:k], V, residuals[:k], converged, restarts, block, message)


def _with_fresh(found, fresh, count):
    """Return `count` columns: those that were found, if any, then fresh random ones."""
    if found is None:
        return fresh(count)
    known = found[:, :count]
    return array_namespace(found).concat([known, fresh(count - known.shape[1])], axis=1)


def _missed(M, V, top, smallest, tol, fresh, *, width=4, rounds=2):
    """Return directions outside V on which A is larger than `smallest`, or None if random ones show none.

    A Krylov space grown from b columns holds at most b copies of a repeated singular value, and its residuals cannot
    tell that there are more.
    """
    floor = eps_of(M.xp, M.dtype) * top
    G = random_complement(V, fresh, width)
    for _ in range(rounds):
        if not G.shape[1]:
            return None
        G = orthonormal_block(M.gram_matmat(G), V, floor=floor * top)[0]
    Y = M.matmat(G)
    found = float(np.sqrt(np.linalg.norm(inner(Y, Y), 2))) if G.shape[1] else 0.0
    # Values that have converged to tol are known to about tol**2: what is larger by no more is not a missed copy.
    return G if found > smallest * (1 + max(1e-3, tol**2)) + 100 * floor * np.sqrt(M.shape[1]) else None
