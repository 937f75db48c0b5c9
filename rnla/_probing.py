"""Random vectors and their images under a matrix, and what leaving each of them out in turn tells of the others."""

import math
from dataclasses import dataclass

import numpy as np

from rnla._backend import adjoint, check_finite, columns, eps_of, to_host
from rnla._errors import NotPositiveDefiniteError
from rnla._estimate import leave_one_out
from rnla._orth import EPS_DOUBLE, orth, orthonormal_block, widened
from rnla._rangefinder import check_range
from rnla._sketch import test_matrix
from rnla._tall import column_squares, like

PILOT = 20  # products from which an automatic choice is made
SHARE = 0.2  # of the variance: where the pilot takes out less than this, deflation does not pay
BLOCK = 64  # columns multiplied at a time where none need be kept
ENTRIES = 2**22  # of the identity formed at a time, if these are more columns than a block
FEW_SIGNS = 64  # above this dimension random signs are linearly independent but for a probability below 1e-15


@dataclass(frozen=True)
class EstimateResult:
    """A random estimate of one number, and how far it may be off.

    ``float(result)`` is the value. The error is below ``2 * stderr`` in about 95 of 100 cases.

    Attributes
    ----------
    value : float or complex
        The estimate; complex for a complex matrix that is not known to be Hermitian.
    stderr : float
        Estimate of its standard deviation; 0 where the value is exact up to rounding, infinite where one sample
        tells nothing about it.
    converged : bool
        Whether the precision was met; True where none was asked for.
    method : str
        Method that was run; ``"exact"`` where as many products as columns were allowed.
    matvecs : int
        Number of vectors multiplied by A or by its adjoint.
    passes : int
        Number of times all entries of A were read.
    message : str
        Why it ended.
    history : tuple
        ``(matvecs, value, stderr)`` of every round.

    Examples
    --------
    >>> result = rnla.trace(np.diag([1.0, 2.0, 3.0]), 3)
    >>> float(result), result.stderr, result.method
    (6.0, 0.0, 'exact')
    """

    value: float | complex
    stderr: float
    converged: bool
    method: str
    matvecs: int
    passes: int
    message: str
    history: tuple = ()

    @property
    def n_iter(self):
        """Number of rounds."""
        return len(self.history)

    def __float__(self):
        return float(self.value)  # type: ignore[arg-type]  # a TypeError of Python's for a complex value

    def __complex__(self):
        return complex(self.value)

    def __str__(self):
        state = "" if self.converged else ", NOT converged"
        return f"{self.value:.8g} +- {self.stderr:.1e} ({self.method}, {self.matvecs} products{state})"


class Sample:
    """Random vectors Omega and their images ``Y = A Omega``, of which there can always be more."""

    def __init__(self, M, probe, key, caller):
        self.M, self.probe, self.key, self.caller = M, probe, key, caller
        self.Omega, self.Y = (columns(M.xp, size, 0, dtype=M.dtype, device=M.device) for size in M.shape[::-1])
        self.quadratic = np.zeros(0)  # omega^H y of all vectors drawn, if A is square
        self.squares = np.zeros(0)  # ||y||**2
        self.next = 0  # column of the random vectors of the key

    @property
    def count(self):
        """Number of vectors multiplied."""
        return len(self.squares)

    def draw(self, count):
        """Return `count` new random vectors and their images."""
        return self._multiplied(self._fresh(count))

    def _fresh(self, count):
        X = probes(self.M, self.probe, self.key, count, self.next)
        self.next += count
        return X

    def _multiplied(self, X):
        M = self.M
        Y = M.matmat(X)
        if not self.count:
            check_range(M, X, Y, self.caller)
        check_finite(Y, self.caller, "A")
        if M.shape[0] == M.shape[1]:
            self.quadratic = np.concatenate([self.quadratic, column_products(X, Y)])
        self.squares = np.concatenate([self.squares, column_squares(Y)])
        return X, Y

    def grow(self, count):
        """Keep `count` vectors and their images in all."""
        if count > self.Omega.shape[1]:
            X, Y = self._multiplied(self._independent(count - self.Omega.shape[1]))
            self.Omega, self.Y = self.M.xp.concat([self.Omega, X], axis=1), self.M.xp.concat([self.Y, Y], axis=1)

    def _independent(self, count):
        """Return new random vectors that are linearly independent of each other and of those kept.

        In a low dimension vectors of signs repeat. Their images would then be taken for those of a matrix of low rank,
        in which nothing is left to estimate.
        """
        X, xp = self._fresh(count), self.M.xp
        if self.probe != "rademacher" or self.M.shape[1] > FEW_SIGNS:
            return X
        kept = self.Omega
        while np.linalg.matrix_rank(to_host(xp.concat([kept, X], axis=1))) < kept.shape[1] + X.shape[1]:
            for j in range(X.shape[1]):
                longer = xp.concat([kept, X[:, j : j + 1]], axis=1)
                kept = longer if np.linalg.matrix_rank(to_host(longer)) == longer.shape[1] else kept
            X = self._fresh(self.Omega.shape[1] + count - kept.shape[1])
        return xp.concat([kept[:, self.Omega.shape[1] :], X], axis=1)

    @property
    def floor(self):
        """Rounding in a column of Y."""
        return eps_of(self.M.xp, self.M.dtype) * math.sqrt(max(self.M.shape) * self.squares.max(initial=0.0))


class Basis:
    """An orthonormal basis Q of the images of a sample, ``Y = Q R``, with its own images ``Z = A Q`` or ``A^H Q``."""

    def __init__(self, sample, product):
        M = sample.M
        self.sample, self.product = sample, product
        self.Q, self.Z = (columns(M.xp, M.shape[0], 0, dtype=M.dtype, device=M.device) for _ in range(2))
        self.R = np.zeros((0, 0))

    @property
    def complete(self):
        """Whether Q is all of the range of A: the sample has superfluous columns, or as many as A can have."""
        return self.R.shape[0] < self.R.shape[1] or self.R.shape[1] >= min(self.sample.M.shape)

    def grow(self, count):
        """Take `count` columns of the sample into the basis in all; products with old columns are kept."""
        known, sample = self.R.shape[1], self.sample
        if count <= known or self.complete:
            return
        sample.grow(count)
        P, B, C = orthonormal_block(sample.Y[:, known:count], self.Q, floor=sample.floor)
        Z = self.product(P) if P.shape[1] else None
        self.R = np.block([[self.R, C], [np.zeros((len(B), known)), B]])
        if Z is not None:
            check_finite(Z, sample.caller, "A")
            concat = sample.M.xp.concat
            self.Q, self.Z = concat([self.Q, P], axis=1), Z if not known else concat([self.Z, Z], axis=1)

    def left_out(self):
        """Return unit vectors s_i, the columns of S, and lengths d_i.

        Without column i of the sample the basis loses the direction ``Q s_i``, and ``d_i = s_i^H r_i`` is what that
        column has along it.
        """
        inverse = np.linalg.inv(self.R)
        lengths = 1.0 / np.linalg.norm(inverse, axis=1)
        return (lengths[:, None] * inverse).conj().T, lengths


def probes(M, probe, key, count, start):
    """Return columns ``start : start + count`` of the random vectors of a key."""
    kind = "gaussian" if probe == "sphere" else probe
    X = test_matrix(kind, key, M.shape[1], count, xp=M.xp, device=M.device, dtype=M.dtype, start=start)
    if probe == "sphere":
        X = X * like(np.sqrt(M.shape[1] / column_squares(X)), X)
    return X


class SquaredNorm:
    """Estimate ``||A||_F**2`` from products with A and its adjoint, each column of the sample left out in turn."""

    def __init__(self, sample):
        self.basis = Basis(sample, sample.M.rmatmat)

    def __call__(self, count):
        """Return value and standard error from `count` products."""
        basis = self.basis
        basis.grow(count // 2)
        K = to_host(adjoint(basis.Z) @ basis.Z)
        if basis.complete:
            return float(np.trace(K).real), 0.0
        S, lengths = basis.left_out()
        return mean_and_error(np.trace(K).real - np.sum(S.conj() * (K @ S), axis=0).real + lengths**2)


@dataclass(frozen=True)
class NystromCore:
    """A Nystrom approximation ``A + shift I ~ F F^H`` with ``F = Q G``, and what it loses without each column.

    The approximation without column i is ``F F^H - z_i z_i^H`` with ``z_i = Q Z[:, i]``, and ``z_i^H omega_i`` is
    ``left_out[i]``; so ``left_out[i]**2`` is the value of ``A + shift I`` less that approximation for omega_i.
    """

    Q: object
    G: np.ndarray
    Z: np.ndarray
    left_out: np.ndarray
    gram: np.ndarray  # Omega^H Omega
    shift: float


def nystrom_core(Omega, Y, caller):
    """Form a `NystromCore` from random vectors and their images, with a shift that hides rounding.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, arXiv 1706.05736, Algorithm 3.  [2] Epperly, Tropp, Webber, section 2.3.
    """
    n, width = Omega.shape
    eps = eps_of_block(Y)
    wide = widened if eps > EPS_DOUBLE else lambda X: X
    size = math.sqrt(np.sum(column_squares(Y)))
    H, gram = (to_host(adjoint(wide(Omega)) @ wide(X)) for X in (Y, Omega))
    if np.linalg.norm(H - H.conj().T) > 100 * eps * size * math.sqrt(n * width):
        raise ValueError(f"{caller}: A must be Hermitian; its products show that it is not.")
    shift = eps * size / math.sqrt(n)
    for _ in range(7):
        try:
            C = np.linalg.cholesky((H + H.conj().T) / 2 + shift * gram).conj().T
            break
        except np.linalg.LinAlgError:
            shift *= 10
    else:
        raise NotPositiveDefiniteError(f"{caller}: A must be positive semidefinite; its products show that it is not.")
    # From the orthogonal factors of the shifted Y, not from Y^H Y: that would square the spectrum once more.
    Q, R = orth(Y + shift * Omega)
    # Reversed, the lower triangular C^T is upper triangular, which a general solver takes for its own factor U: a back
    # substitution in the BLAS that did the rest, whose threads SciPy's would have to wait for.
    G = np.linalg.solve(C.T[::-1, ::-1], R.T[::-1])[::-1].T
    inverse = np.linalg.inv(C)
    left_out = 1.0 / np.linalg.norm(inverse, axis=1)
    return NystromCore(Q, G, (G @ inverse.conj().T) * left_out, left_out, gram, shift)


def mean_and_error(samples):
    """Return the mean of samples and its standard error, which one sample alone leaves unknown."""
    if len(samples) < 2:
        return np.mean(samples), math.inf
    return np.mean(samples), float(np.std(samples, ddof=1)) / math.sqrt(len(samples))


def deflation_pays(sample, total):
    """Say whether a basis of the images of a sample takes out a good part of `total`, a variance."""
    return not sample.squares.any() or leave_one_out(orth(sample.Y)[1]) ** 2 <= (1 - SHARE) * total


def identity_images(sample):
    """Yield the first of some columns of the identity, and their images; never are all of them held."""
    M = sample.M
    n, xp = M.shape[1], M.xp
    step = max(BLOCK, ENTRIES // n)
    for start in range(0, n, step):
        X = xp.eye(n, min(step, n - start), k=-start, dtype=M.dtype, device=M.device)
        Y = M.matmat(X)
        if start == 0:
            check_range(M, X, Y, sample.caller)
        check_finite(Y, sample.caller, "A")
        yield start, Y


def column_products(X, Y):
    """Return ``x_j^H y_j`` of the columns of two blocks, on the host, summed in double precision."""
    from array_api_compat import array_namespace

    xp = array_namespace(X)
    if eps_of_block(X) > EPS_DOUBLE:
        X, Y = widened(X), widened(Y)
    return to_host(xp.sum(conj(X) * Y, axis=0))


def eps_of_block(X):
    """Return the rounding unit of the dtype of an array."""
    from array_api_compat import array_namespace

    return eps_of(array_namespace(X), X.dtype)


def conj(X):
    """Return the complex conjugate; the standard has none of real arrays."""
    from array_api_compat import array_namespace

    xp = array_namespace(X)
    return xp.conj(X) if xp.isdtype(X.dtype, "complex floating") else X


def real(X):
    """Return the real part."""
    from array_api_compat import array_namespace

    xp = array_namespace(X)
    return xp.real(X) if xp.isdtype(X.dtype, "complex floating") else X


def square(M, caller):
    """Return M; raise unless it is square."""
    if M.shape[0] != M.shape[1]:
        raise ValueError(f"{caller}: A must be square; got shape {M.shape}.")
    return M


def check_least(num_matvecs, least, method, M, caller):
    """Raise if a method needs more products, unless so many give the exact answer."""
    if num_matvecs is not None and num_matvecs < min(least, M.shape[1]):
        raise ValueError(f"{caller}: num_matvecs must be at least {least} for method {method!r}; got {num_matvecs}.")
