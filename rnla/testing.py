"""Matrices with known answers, an orthonormality check, and matrices that count how often they are read."""

import threading

import numpy as np

from rnla._backend import key_from_rng

# Spectra that the papers and the benchmarks use; j = 1, 2, ..., n.
_SPECTRA = {
    "slow": lambda j: j**-0.5,
    "poly1": lambda j: 1 / j,
    "poly2": lambda j: j**-2.0,
    "exp": lambda j: np.exp(-j / 7),
    "expslow": lambda j: np.exp(-j / 100),
    # 1 / (1 + exp(j - 30)), written so that the exponential cannot overflow.
    "sshape": lambda j: 1e-4 + 0.5 * (1 - np.tanh((j - 30) / 2)),
    "step": lambda j: np.where(j <= 20, 1.0, np.where(j <= 100, 0.1, 0.01)),
    "flat": lambda j: np.linspace(1, 0.9, j.size),
}


def spectrum(name, n):
    """Return `n` singular values that decay in a named way.

    Parameters
    ----------
    name : str
        ``slow`` is ``j**-0.5``, ``poly1`` ``1 / j``, ``poly2`` ``j**-2``, ``exp`` ``exp(-j / 7)``, ``expslow``
        ``exp(-j / 100)``, ``sshape`` ``1e-4 + 1 / (1 + exp(j - 30))``, ``step`` 20 ones, 80 times 0.1, then 0.01, and
        ``flat`` falls linearly from 1 to 0.9.
    n : int
        How many values.

    Returns
    -------
    numpy.ndarray
        Shape ``(n,)``, float64, non-increasing.

    Examples
    --------
    >>> rnla.testing.spectrum("poly1", 4).round(3).tolist()
    [1.0, 0.5, 0.333, 0.25]
    """
    if name not in _SPECTRA:
        raise ValueError(f"rnla.testing.spectrum: name must be one of {', '.join(_SPECTRA)}; got {name!r}.")
    return _SPECTRA[name](np.arange(1.0, n + 1))


def matrix_with_spectrum(m, n, sigma, *, rng=None, dtype=np.float64):
    """Return a dense matrix with the given singular values and singular vectors of uniform direction.

    It is ``(U * sigma) @ Vh`` with `U` and `V` from the Haar distribution, computed in double precision, so that the
    singular values are those asked for up to rounding in `dtype`.

    Parameters
    ----------
    m, n : int
        Shape.
    sigma : array_like
        At most ``min(m, n)`` non-negative numbers; fewer of them give a matrix of lower rank.
    rng : None, int or numpy.random.Generator
        Source of the singular vectors.
    dtype : dtype
        Real or complex floating type of the result.

    Returns
    -------
    numpy.ndarray
        Shape ``(m, n)``.

    Examples
    --------
    >>> A = rnla.testing.matrix_with_spectrum(6, 4, [3.0, 2.0, 1.0], rng=0)
    >>> (np.linalg.svd(A, compute_uv=False).round(12) + 0.0).tolist()
    [3.0, 2.0, 1.0, 0.0]
    """
    caller = "rnla.testing.matrix_with_spectrum"
    sigma = np.asarray(sigma, dtype=np.float64)
    if sigma.ndim != 1 or not 1 <= sigma.size <= min(m, n):
        raise ValueError(
            f"{caller}: sigma must be a vector of 1..{min(m, n)} numbers for shape {(m, n)}; got shape {sigma.shape}."
        )
    if not (np.isfinite(sigma).all() and (sigma >= 0).all()):
        raise ValueError(f"{caller}: sigma must be finite and non-negative; got {sigma}.")
    generator = _generator(rng, caller)
    wide = np.promote_types(dtype, np.float64)
    U = haar_basis(m, sigma.size, rng=generator, dtype=wide)
    V = haar_basis(n, sigma.size, rng=generator, dtype=wide)
    U *= sigma
    return (U @ V.conj().T).astype(dtype, copy=False)


def haar_basis(m, k, *, rng=None, dtype=np.float64):
    """Return `k` orthonormal columns of length `m`, uniformly distributed.

    They are the ``Q`` of a Gaussian matrix whose ``R`` has a positive diagonal. Cholesky QR, done twice, gives that
    factorisation in matrix products alone, several times faster than Householder's.

    Parameters
    ----------
    m, k : int
        Shape, ``k <= m``.
    rng : None, int or numpy.random.Generator
        Source of the Gaussian matrix.
    dtype : dtype
        Real or complex floating type, in which the arithmetic is done.

    Returns
    -------
    numpy.ndarray
        Shape ``(m, k)``, orthonormal to a few units of rounding.

    Examples
    --------
    >>> Q = rnla.testing.haar_basis(30, 5, rng=0)
    >>> rnla.testing.assert_orthonormal(Q)
    """
    if not 1 <= k <= m:
        raise ValueError(f"rnla.testing.haar_basis: k must be in 1..{m} for columns of length {m}; got {k}.")
    Y = _gaussian(_generator(rng, "rnla.testing.haar_basis"), (m, k), dtype)
    try:
        return _cholesky_qr(_cholesky_qr(Y))
    except np.linalg.LinAlgError:  # a nearly square Gaussian matrix is, rarely, too ill-conditioned
        Q, R = np.linalg.qr(Y)
        phases = np.diagonal(R) / np.abs(np.diagonal(R))
        return Q * phases


def low_rank_plus_noise(m, n, *, rank=20, noise=0.3, rng=None, dtype=np.float64):
    """Return a projection-like matrix, `rank` singular values equal to one, plus Gaussian noise.

    The noise has entries of standard deviation ``noise / sqrt(max(m, n))``; its singular values do not exceed
    ``noise * (1 + sqrt(min(m, n) / max(m, n)))`` by more than a few percent.

    Parameters
    ----------
    m, n : int
        Shape.
    rank : int
        How many singular values of the part without noise are one; the others are zero.
    noise : float
        Size of the noise.
    rng : None, int or numpy.random.Generator
        Source of the singular vectors and the noise.
    dtype : dtype
        Real or complex floating type of the result.

    Returns
    -------
    numpy.ndarray
        Shape ``(m, n)``.

    Examples
    --------
    >>> A = rnla.testing.low_rank_plus_noise(60, 40, rank=2, noise=0.01, rng=0)
    >>> np.linalg.svd(A, compute_uv=False)[:3].round(1).tolist()
    [1.0, 1.0, 0.0]
    """
    generator = _generator(rng, "rnla.testing.low_rank_plus_noise")
    A = matrix_with_spectrum(m, n, np.ones(rank), rng=generator, dtype=np.promote_types(dtype, np.float64))
    A += noise / np.sqrt(max(m, n)) * _gaussian(generator, (m, n), A.dtype)
    return A.astype(dtype, copy=False)


def kahan(n, *, theta=1.2, dtype=np.float64):
    """Return Kahan's triangular matrix, whose small singular value a pivoted QR does not reveal.

    Row ``i`` is ``sin(theta)**i`` times one on the diagonal and ``-cos(theta)`` to its right.

    Parameters
    ----------
    n : int
        Order.
    theta : float
        Angle in ``(0, pi)``.
    dtype : dtype
        Floating type of the result.

    Returns
    -------
    numpy.ndarray
        Shape ``(n, n)``, upper triangular.

    Examples
    --------
    >>> rnla.testing.kahan(2, theta=np.pi / 2).round(12).tolist()
    [[1.0, -0.0], [0.0, 1.0]]
    """
    rows = np.sin(theta) ** np.arange(n)
    unit = np.eye(n) - np.cos(theta) * np.triu(np.ones((n, n)), 1)
    return (rows[:, np.newaxis] * unit).astype(dtype, copy=False)


def hilbert(m, n=None, *, dtype=np.float64):
    """Return the Hilbert matrix ``1 / (i + j - 1)``, whose singular values decay exponentially.

    Parameters
    ----------
    m : int
        Number of rows.
    n : int, optional
        Number of columns; as many as rows if left out.
    dtype : dtype
        Floating type of the result.

    Returns
    -------
    numpy.ndarray
        Shape ``(m, n)``.

    Examples
    --------
    >>> rnla.testing.hilbert(2).round(3).tolist()
    [[1.0, 0.5], [0.5, 0.333]]
    """
    n = m if n is None else n
    return (1.0 / (np.arange(1, m + 1)[:, np.newaxis] + np.arange(n))).astype(dtype, copy=False)


def assert_orthonormal(Q, tol=None):
    """Raise ``AssertionError`` unless the columns of `Q` are orthonormal.

    Parameters
    ----------
    Q : array, shape (m, k)
        From any library that follows the array-API standard.
    tol : float, optional
        Bound on the spectral norm of ``Q^H Q - I``; ``100 * eps * sqrt(k)`` of the dtype of `Q` if left out.

    Examples
    --------
    >>> rnla.testing.assert_orthonormal(np.eye(3)[:, :2])
    >>> rnla.testing.assert_orthonormal(np.ones((3, 1)))
    Traceback (most recent call last):
    AssertionError: columns are not orthonormal: ||Q^H Q - I|| = 2.0e+00, allowed 2.2e-14.
    """
    from array_api_compat import array_namespace, device

    xp = array_namespace(Q)
    k = Q.shape[1]
    if tol is None:
        tol = 100 * float(xp.finfo(Q.dtype).eps) * k**0.5
    Qh = xp.conj(Q.T) if xp.isdtype(Q.dtype, "complex floating") else Q.T
    defect = Qh @ Q - xp.eye(k, dtype=Q.dtype, device=device(Q))
    if not bool(xp.all(xp.isfinite(defect))):
        raise AssertionError("columns are not orthonormal: Q^H Q is not finite.")
    error = float(xp.linalg.matrix_norm(defect, ord=2)) if k else 0.0
    if error > tol:
        raise AssertionError(f"columns are not orthonormal: ||Q^H Q - I|| = {error:.1e}, allowed {tol:.1e}.")


class CountingOperator:
    """A matrix known by its products only, which counts them.

    Parameters
    ----------
    A : numpy.ndarray or scipy sparse matrix
        What the products are with.

    Attributes
    ----------
    shape : tuple of int
        Shape of `A`.
    dtype : dtype
        Type of `A`.
    passes : int
        Products so far, of any width: how often `A` was read.
    matvecs : int
        Columns multiplied so far.

    Examples
    --------
    >>> A = rnla.testing.CountingOperator(np.eye(4))
    >>> Z = A.rmatmat(A.matmat(np.ones((4, 3))))
    >>> A.passes, A.matvecs
    (2, 6)
    """

    def __init__(self, A):
        self._A = A
        self._adjoint = A.conj().T
        self.shape = A.shape
        self.dtype = A.dtype
        self.passes = 0
        self.matvecs = 0

    def _count(self, X):
        self.passes += 1
        self.matvecs += 1 if X.ndim == 1 else X.shape[1]

    def matmat(self, X):
        """Return ``A @ X``."""
        self._count(X)
        return self._A @ X

    def rmatmat(self, Y):
        """Return ``A^H @ Y``."""
        self._count(Y)
        return self._adjoint @ Y

    # A vector is one column: the same product, and the same count.
    matvec = matmat
    rmatvec = rmatmat


class CountingRows:
    """A matrix stored in blocks of rows, like a file, which counts how much of it is read.

    It has what an HDF5 or Zarr data set shows: ``shape``, ``dtype``, ``ndim``, ``chunks`` and indexing.

    Parameters
    ----------
    A : numpy.ndarray, shape (m, n)
        The entries.
    chunk_rows : int
        Rows in a block.

    Examples
    --------
    >>> A = rnla.testing.CountingRows(np.eye(4), chunk_rows=2)
    >>> rows = A[:2], A[2:]
    >>> A.passes
    1.0
    """

    def __init__(self, A, chunk_rows):
        self._A = A
        self._entries_read = 0
        self._lock = threading.Lock()  # readers of blocks run in threads
        self.shape = A.shape
        self.dtype = A.dtype
        self.ndim = A.ndim
        self.chunks = (chunk_rows, A.shape[1])

    def __getitem__(self, index):
        """Return a copy of part of the matrix."""
        block = np.array(self._A[index])
        with self._lock:
            self._entries_read += block.size
        return block

    @property
    def passes(self):
        """Entries read so far over the number of entries."""
        return self._entries_read / self._A.size


def _generator(rng, caller):
    return np.random.default_rng(key_from_rng(rng, caller))


def _gaussian(generator, shape, dtype):
    if np.issubdtype(dtype, np.complexfloating):
        # Standard complex normal numbers: variance one in all, half of it in each part.
        parts = generator.standard_normal((*shape, 2))
        parts *= np.sqrt(0.5)
        return parts.view(np.complex128)[..., 0].astype(dtype, copy=False)
    return generator.standard_normal(shape).astype(dtype, copy=False)


def _cholesky_qr(Y):
    """Return the orthonormal factor of `Y`; raise ``LinAlgError`` if `Y` is too ill-conditioned for it."""
    from scipy.linalg import solve_triangular

    L = np.linalg.cholesky(Y.conj().T @ Y)  # Y^H Y = R^H R, and L = R^H
    diagonal = np.diagonal(L).real
    if diagonal.min() <= 10 * np.sqrt(np.finfo(L.dtype).eps) * diagonal.max():
        raise np.linalg.LinAlgError("columns are nearly dependent")
    # Q = Y R^-1, that is L Q^H = Y^H.
    return solve_triangular(L, Y.conj().T, lower=True, check_finite=False).conj().T
