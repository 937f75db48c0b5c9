"""What all decompositions share: they are tuples, carry `info`, and multiply like the matrix they stand for."""

import math
from dataclasses import dataclass, replace

import numpy as np

from rnla._backend import adjoint, from_host, host_svd, real_dtype, to_host


class LowRank(tuple):
    """Base of the results: a tuple of factors, with `info`, that multiplies like the matrix it approximates.

    A subclass names its fields in `_fields` and gives in `_factors` the two whose product is the approximation.
    """

    __slots__ = ()
    _fields: tuple = ()

    @property
    def shape(self):
        """Shape (m, n) of the approximation."""
        left, right = self._factors()
        return (left.shape[0], right.shape[1])

    @property
    def dtype(self):
        """Dtype of the factors."""
        return self._factors()[0].dtype

    @property
    def rank(self):
        """Number of columns of the left factor."""
        return self._factors()[0].shape[1]

    def __matmul__(self, X):
        left, right = self._factors()
        return left @ (right @ X)

    def to_dense(self):
        """Form the approximation as one (m, n) array; ``2 m n k`` flops."""
        left, right = self._factors()
        return left @ right

    def truncate(self, r):
        """Return the best approximation of rank `r` to this one, an `SVDResult`; ``4 (m + n) k**2`` flops.

        Parameters
        ----------
        r : int
            ``0 <= r <= rank``.
        """
        from array_api_compat import array_namespace, device

        _check_rank(self, r)
        left, right = (X.toarray() if hasattr(X, "toarray") else X for X in self._factors())
        xp, where = array_namespace(left), device(left)
        (Q, R), (P, T) = xp.linalg.qr(left), xp.linalg.qr(adjoint(right))
        U, S, Vh = host_svd(to_host(R) @ to_host(T).conj().T)
        U, Vh = (from_host(X, xp, left.dtype, where) for X in (U[:, :r], Vh[:r]))
        info = getattr(self, "info", None)
        info = info and replace(info, rank=int(r), residuals=None, error_estimate=None)
        return SVDResult(Q @ U, from_host(S[:r], xp, real_dtype(xp, left.dtype), where), Vh @ adjoint(P), info)

    def error(self, A, ord="fro", num_samples=10, rng=None):
        """Estimate the distance to `A` from a few products with it.

        Parameters
        ----------
        A : matrix of any kind that `rnla.svd` accepts
            The matrix that was approximated.
        ord : {"fro", 2}
            ``"fro"``: root of an unbiased estimate of the squared Frobenius norm of the difference, from
            `num_samples` Gaussian vectors; relative standard deviation at most ``(2 * num_samples)**-0.5``.
            ``2``: a lower bound of the spectral norm, by a block power method.
        num_samples : int
            Number of random vectors.
        rng : None, int or numpy.random.Generator
            Source of randomness; should differ from the one the decomposition was made with.

        Returns
        -------
        float
            The estimate, in the units of `A`.

        References
        ----------
        .. [1] Martinsson, Tropp, Acta Numerica 29 (2020), sections 4.8 and 12.
        """
        from rnla._estimate import residual_norm

        return residual_norm(A, self, ord, num_samples, rng)

    def __repr__(self):
        fields = ", ".join(f"{name}{tuple(x.shape)}" for name, x in zip(self._fields, self, strict=True))
        info = getattr(self, "info", None)
        return f"{type(self).__name__}({fields}, {self.dtype})" + (f"\n  {info}" if info is not None else "")


@dataclass(frozen=True)
class SVDInfo:
    """How a decomposition was computed and how good it is.

    Attributes
    ----------
    method : str
        Method that was run; two names joined by ``+`` where one continued the other.
    passes : int
        Number of times all entries of A were read.
    matvecs : int
        Number of vectors multiplied by A or by its adjoint.
    restarts : int
        Thick restarts of a Krylov iteration.
    converged : bool
        Whether the tolerance was met.
    residuals : ndarray or None, shape (k,)
        Estimates of ``max(||A v - s u||, ||A^H u - s v||)`` for each triplet, in the units of A; None where the method
        computes none.
    error_estimate : float or None
        Estimate of the relative error ``||A - U S Vh||_F / ||A||_F``; None where it would cost a pass over A.
    block_size : int
        Columns multiplied at a time.
    rank : int
        Number of triplets returned.
    seed : int
        64-bit key of all random numbers.
    dtype : dtype
        Of the computation.
    elapsed : float
        Seconds.
    message : str
        Why it ended.
    history : tuple of Record
        ``(iteration, error, seconds)`` of every block.

    Examples
    --------
    >>> info = rnla.svd(np.diag([3.0, 2.0, 1.0]), 1, rng=0).info
    >>> info.converged, info.method
    (True, 'dense')
    """

    method: str
    passes: int
    matvecs: int
    restarts: int
    converged: bool
    residuals: np.ndarray | None
    error_estimate: float | None
    block_size: int
    rank: int
    seed: int
    dtype: object
    elapsed: float
    message: str
    history: tuple = ()

    def __str__(self):
        state = "converged" if self.converged else "NOT converged"
        error = "" if self.error_estimate is None else f", relative error {self.error_estimate:.2e}"
        return f"{self.method}: {state}, rank {self.rank}, {self.passes} passes{error}, {self.elapsed:.2g} s"


class SVDResult(LowRank):
    """``A ~ (U * S) @ Vh``, with the names and the order of ``numpy.linalg.svd``.

    Unpacks as ``U, S, Vh``; ``.info`` tells how it was computed; ``result @ X`` multiplies by the approximation.

    Attributes
    ----------
    U : array, shape (m, k)
        Orthonormal columns.
    S : array, shape (k,)
        Real, non-increasing, in the units of A.
    Vh : array, shape (k, n)
        Orthonormal rows.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> result = rnla.svd(np.diag([3.0, 2.0, 1.0]), 2, rng=0)
    >>> U, S, Vh = result
    >>> result.rank, result.shape
    (2, (3, 3))
    >>> np.round(result.truncate(1).to_dense(), 6).tolist()
    [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    _fields = ("U", "S", "Vh")

    def __new__(cls, U, S, Vh, info=None):
        self = super().__new__(cls, (U, S, Vh))
        self.info = info
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.info)

    U = property(lambda self: self[0])
    S = property(lambda self: self[1])
    Vh = property(lambda self: self[2])

    @property
    def H(self):
        """The adjoint, as an `SVDResult`."""
        return SVDResult(adjoint(self.Vh), self.S, adjoint(self.U), self.info)

    def truncate(self, r):
        """Return the leading `r` triplets.

        Parameters
        ----------
        r : int
            ``0 <= r <= rank``.
        """
        _check_rank(self, r)
        return SVDResult(self.U[:, :r], self.S[:r], self.Vh[:r, :], _info_of_leading(self.info, self.S, r))

    def _factors(self):
        return self.U * self.S, self.Vh


class EighResult(LowRank):
    """``A ~ (eigenvectors * eigenvalues) @ eigenvectors^H``; NumPy's field names, but the leading eigenvalue first.

    Attributes
    ----------
    eigenvalues : array, shape (k,)
        Real, in the order that was asked for (``numpy.linalg.eigh`` has them ascending).
    eigenvectors : array, shape (n, k)
        Orthonormal columns.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> w, V = result = rnla.eigh(np.diag([1.0, -3.0, 2.0]), 2, rng=0)
    >>> np.round(w, 6).tolist(), result.rank
    ([-3.0, 2.0], 2)
    """

    _fields = ("eigenvalues", "eigenvectors")

    def __new__(cls, eigenvalues, eigenvectors, info=None):
        self = super().__new__(cls, (eigenvalues, eigenvectors))
        self.info = info
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.info)

    eigenvalues = property(lambda self: self[0])
    eigenvectors = property(lambda self: self[1])

    @property
    def H(self):
        """The adjoint: the result itself, which is Hermitian."""
        return self

    def truncate(self, r):
        """Return the leading `r` pairs.

        Parameters
        ----------
        r : int
            ``0 <= r <= rank``.
        """
        _check_rank(self, r)
        w = self.eigenvalues
        return EighResult(w[:r], self.eigenvectors[:, :r], _info_of_leading(self.info, w, r))

    def _factors(self):
        return self.eigenvectors * self.eigenvalues, adjoint(self.eigenvectors)


class QBResult(LowRank):
    """``A ~ Q @ B`` with orthonormal columns of Q and ``B = Q^H A``.

    Attributes
    ----------
    Q : array, shape (m, r)
        Orthonormal columns.
    B : array, shape (r, n)
        Projected matrix.
    info : SVDInfo
        How it was computed.

    Examples
    --------
    >>> Q, B = rnla.qb(np.outer([3.0, 4.0], [1.0, 0.0, 0.0]), rtol=1e-8, rng=0)
    >>> Q.shape, B.shape
    ((2, 1), (1, 3))
    """

    _fields = ("Q", "B")

    def __new__(cls, Q, B, info=None):
        self = super().__new__(cls, (Q, B))
        self.info = info
        return self

    def __getnewargs__(self):  # for copy and pickle
        return (*self, self.info)

    Q = property(lambda self: self[0])
    B = property(lambda self: self[1])

    @property
    def H(self):
        """The adjoint ``B^H Q^H``, as a pair of factors."""
        return Factors(adjoint(self.B), adjoint(self.Q))

    def _factors(self):
        return self.Q, self.B


class Factors(LowRank):
    """A plain product ``left @ right``, such as the adjoint of a decomposition that has no name for it."""

    _fields = ("left", "right")

    def __new__(cls, left, right):
        return super().__new__(cls, (left, right))

    def __getnewargs__(self):  # for copy and pickle
        return tuple(self)

    @property
    def H(self):
        """The adjoint."""
        return Factors(adjoint(self[1]), adjoint(self[0]))

    def _factors(self):
        return tuple(self)


def _check_rank(result, r):
    if not 0 <= r <= result.rank:
        raise ValueError(f"{type(result).__name__}.truncate: r must be in 0..{result.rank}; got {r}.")


def _info_of_leading(info, values, r):
    """Return what is known of the first `r` of some singular values or eigenvalues, and of the error without others."""
    if info is None or r == values.shape[0]:
        return info
    error, residuals = info.error_estimate, info.residuals
    if error is not None:
        squares = np.abs(to_host(values))
        squares = (squares / (squares.max() or 1.0)) ** 2
        # Of the squared norm of A the values hold all but the square of the error.
        share = squares[:r].sum() / (squares.sum() or 1.0)
        error = math.sqrt(1.0 - share * (1.0 - error**2)) if squares.any() else error
    return replace(info, rank=int(r), residuals=None if residuals is None else residuals[:r], error_estimate=error)
