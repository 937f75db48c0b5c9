"""Low-rank approximation from two independent sketches, ``A X`` and ``Y^H A`` (generalized Nystrom)."""

from time import perf_counter

from array_api_compat import array_namespace

from rnla._backend import adjoint, from_host, is_meta, key_from_rng, real_dtype, to_host
from rnla._lowrank import SVDInfo, SVDResult
from rnla._matrix import Counter, Matrix, as_matrix
from rnla._matrix_views import Storage, adjoint_product, wide_dtype
from rnla._onepass import generalized_nystrom as from_two_sketches
from rnla._rangefinder import KINDS, check_choice, check_count, check_rank, in_range
from rnla._sketch import test_matrix
from rnla._svd import flipped


def generalized_nystrom(A, k, *, n_oversamples=None, sketch="gaussian", rng=None):
    """Compute a truncated SVD from one product with `A` and one with its adjoint, neither of which needs the other.

    For a matrix that can be multiplied from either side, once: by two machines at the same time, or in one read of a
    file. Where A can be read twice, `rnla.svd` is far more accurate, and where whole rows come along, so is
    ``rnla.svd(A, k, max_passes=1)``.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only the two products are used.
    k : int
        Rank of the result, ``1 <= k <= min(m, n)``.
    n_oversamples : int, optional
        Columns of X beyond `k`; Y has half as many columns again as X. By default ``max(10, k // 2)``: no power
        iteration repairs what a narrow sketch misses.
    sketch : {"gaussian", "rademacher", "uniform", "sparse"}
        Distribution of X and Y.
    rng : None, int, numpy.random.Generator or SeedSequence
        Source of X and Y.

    Returns
    -------
    SVDResult
        ``U`` (m, k), ``S`` (k,), ``Vh`` (k, n); library, device and dtype of `A`. ``.info.error_estimate`` is None:
        nothing that was computed tells the error, but ``result.error(A)`` does, for one more product.

    Raises
    ------
    ValueError
        If an argument is out of range, or `A` is not two-dimensional, empty or not finite.
    TypeError
        If `A` or another argument is of an unsupported kind or dtype.

    Notes
    -----
    ``A ~ A X (Y^H A X)^+ Y^H A``, computed as ``Q (Y^H Q)^+ (Y^H A)`` with ``Q = orth(A X)`` and the pseudoinverse as a
    least-squares problem: the formula itself would lose half of the digits [1]_. X has ``r = k + n_oversamples``
    columns and Y ``r + l`` with ``l = ceil(r / 2)``. For real Gaussian Y, and before the truncation to rank k,

        ``E ||A - A'||_F**2 = (1 + r / (l - 1)) * E ||A - Q Q^H A||_F**2``,

    about three times the squared error of the projection on Q. On a flat spectrum the singular values are far too
    large.

    Passes: one over files and dask arrays whose rows or columns can be read whole, otherwise one for each product.
    Flops: those of ``2.5 r`` products with vectors, and ``O((m + n) r**2)``. Memory: ``O((m + n) r)``.

    References
    ----------
    .. [1] Nakatsukasa, "Fast and stable randomized low-rank matrix approximation", arXiv 2009.11392.
    .. [2] Tropp, Yurtsever, Udell, Cevher, SIAM J. Matrix Anal. Appl. 38 (2017), Theorem 4.3.

    Examples
    --------
    >>> A = rnla.testing.matrix_with_spectrum(40, 30, [4.0, 2.0, 1.0], rng=0)
    >>> U, S, Vh = rnla.generalized_nystrom(A, 3, rng=0)
    >>> np.round(S, 6).tolist()
    [4.0, 2.0, 1.0]
    """
    caller = "rnla.generalized_nystrom"
    M = as_matrix(A, caller)
    check_rank(k, M, caller)
    if n_oversamples is not None:
        check_count(n_oversamples, "n_oversamples", caller, least=0)
    check_choice(sketch, "sketch", KINDS, caller)
    extra = max(10, k // 2) if n_oversamples is None else n_oversamples
    key = key_from_rng(rng, caller)
    passes, matvecs, start = M.counter.passes, M.counter.matvecs, perf_counter()

    def compute(M, factor):
        return from_two_sketches(_read_once(M, k + extra, sketch, key), k, extra, sketch, key, caller)[:3]

    (U, S, V), factor = in_range(compute, M)
    if is_meta(U):
        return SVDResult(U[:, :k], S[:k], adjoint(V[:, :k]))
    s = to_host(S)[:k] / factor
    U, V = flipped(U[:, :k], V[:, :k])
    info = SVDInfo(
        "gnystrom", M.counter.passes - passes, M.counter.matvecs - matvecs, 0, True, None, None, k + extra, k, key,
        M.dtype, perf_counter() - start, "two sketches",
    )  # fmt: skip
    return SVDResult(U, from_host(s, M.xp, real_dtype(M.xp, M.dtype), M.device), adjoint(V), info)


def _read_once(M, width, sketch, key):
    """Return M or, if it is read in whole rows or columns, a view that makes both products in one read of it."""
    if M.kind not in ("file", "dask") or (M.kind == "file" and M.row_blocks() is None and M.H.row_blocks() is None):
        return M
    count = min(width, *M.shape)
    more = min(count + -(-count // 2), M.shape[0])
    Y = test_matrix(sketch, key, M.shape[0], more, stream=1, xp=M.xp, device=M.device, dtype=M.dtype)
    return Matrix(M.kind, _TwoProducts(M, Y), Counter())


class _TwoProducts(Storage):
    """A matrix that forms ``A^H Y``, for the Y that will be asked for, in the read that makes ``A X``."""

    def __init__(self, M, Y):
        super().__init__(M.shape, M.dtype, M.xp, M.device)
        self.matrix, self.Y, self.AhY = M, Y, None

    def matmat(self, X, out=None):
        M = self.matrix
        M.counter.matvecs += X.shape[1] + self.Y.shape[1]
        products = M.storage.both_products(X, self.Y)
        if products is not None:
            M.counter.passes += 1
            AX, self.AhY = products
        elif M.row_blocks() is not None:
            AX, self.AhY = _both_products(M.row_blocks(), X, self.Y)
        else:
            self.AhY, AX = _both_products(M.H.row_blocks(), self.Y, X)
        return AX

    def rmatmat(self, Y, out=None):
        if self.AhY is not None and Y.shape == self.Y.shape and bool(self.xp.all(Y == self.Y)):
            return self.AhY
        return self.matrix.rmatmat(Y)


def _both_products(blocks, X, Y):
    """Return ``B X`` and ``B^H Y`` of the matrix whose rows come in blocks."""
    xp = array_namespace(X)
    parts, total = [], 0.0
    for start, B in blocks:
        parts.append(B @ X)
        product = adjoint_product(B, Y[start : start + B.shape[0], :])
        total = xp.astype(product, wide_dtype(X.dtype, xp), copy=False) + total  # a sum over many blocks
    return xp.concat(parts, axis=0), xp.astype(total, X.dtype, copy=False)
