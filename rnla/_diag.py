"""Diagonal and row norms of a matrix that is known by its products."""

import numpy as np

from rnla._backend import adjoint, key_from_rng, to_host
from rnla._matrix import as_matrix
from rnla._probing import (
    BLOCK,
    PILOT,
    Basis,
    Sample,
    check_least,
    conj,
    deflation_pays,
    identity_images,
    nystrom_core,
    real,
    square,
)
from rnla._rangefinder import check_choice, check_count, in_range
from rnla._tall import column_squares, like

METHODS = ("auto", "xdiag", "xnysdiag", "diagpp", "hutchinson")
LEAST = {"xdiag": 2, "diagpp": 3}  # products that a method needs; one for the others


def diag(A, num_matvecs, *, method="auto", psd=False, rng=None):
    """Estimate the diagonal of a square matrix from products.

    Parameters
    ----------
    A : square matrix of any kind that `rnla.svd` accepts, shape (n, n)
        ``xdiag`` and ``diagpp`` need products with its adjoint too.
    num_matvecs : int
        Number of products, with `A` and its adjoint together. From n on the diagonal is exact.
    method : {"auto", "xdiag", "xnysdiag", "diagpp", "hutchinson"}
        ``xnysdiag`` is for positive semidefinite matrices. ``auto`` is ``xdiag``, or ``xnysdiag`` if `psd`, but
        ``hutchinson`` where the first 20 products see a flat spectrum or a nearly diagonal matrix.
    psd : bool
        `A` is known to be Hermitian and positive semidefinite.
    rng : None, int or numpy.random.Generator
        Source of the random signs (of random phases, if `A` is complex).

    Returns
    -------
    array, shape (n,)
        Unbiased; library, device and dtype of `A`.

    Raises
    ------
    ValueError
        If `A` is not square or not finite, or an argument is out of range.
    TypeError
        If `A` or another argument is of an unsupported kind.

    Notes
    -----
    The variance of ``hutchinson`` is the sum of the squares in each row off the diagonal over `num_matvecs`. Memory
    beyond `A`: ``3 n num_matvecs`` numbers.

    References
    ----------
    .. [1] Epperly, Tropp, Webber, SIAM J. Matrix Anal. Appl. 45 (2024), arXiv 2301.07825, section 2.4 (XDiag).
    .. [2] Baston, Nakatsukasa, arXiv 2201.10684 (Diag++).  [3] Bekas, Kokiopoulou, Saad, Appl. Numer. Math. 57 (2007).

    Examples
    --------
    >>> rnla.diag(np.diag([4.0, 3.0, 2.0, 1.0]), 2, rng=0).tolist()  # exact: nothing is off the diagonal
    [4.0, 3.0, 2.0, 1.0]
    """
    caller = "rnla.diag"
    M = square(as_matrix(A, caller), caller)
    check_count(num_matvecs, "num_matvecs", caller)
    check_choice(method, "method", METHODS, caller)
    check_choice(psd, "psd", (True, False), caller)
    check_least(num_matvecs, LEAST.get(method, 1), method, M, caller)
    key = key_from_rng(rng, caller)
    values, factor = in_range(lambda M, _: _diagonal(Sample(M, "rademacher", key, caller), num_matvecs, method, psd), M)
    return values / factor if factor != 1 else values


def row_norms(A, num_matvecs, *, squared=True, rng=None):
    """Estimate the squared norms of the rows of a matrix from products.

    Half of the products find a basis of the range; the rows of the projection have known norms, and the products that
    found it, each left out in turn, tell what the projection misses. The error of a row is relative to its own norm.

    Parameters
    ----------
    A : matrix of any kind that `rnla.svd` accepts, shape (m, n)
        Only products with it and its adjoint are used.
    num_matvecs : int
        Number of products, at least 2; from n on the norms are exact.
    squared : bool
        With False, return the square roots.
    rng : None, int or numpy.random.Generator
        Source of the random signs.

    Returns
    -------
    array, shape (m,)
        Real, unbiased if squared, but that values below zero are set to zero; library, device and precision of `A`.

    Raises
    ------
    ValueError
        If `num_matvecs` is out of range, or `A` is not two-dimensional or not finite.
    TypeError
        If `A` is of an unsupported kind.

    References
    ----------
    .. [1] Epperly, Tropp, SIAM J. Sci. Comput. 46 (2024), arXiv 2207.06342 (leave-one-out).

    Examples
    --------
    >>> A = np.outer([1.0, 2.0, 3.0], [0.6, 0.0, 0.8, 0.0, 0.0])
    >>> np.round(rnla.row_norms(A, 4, rng=0), 6).tolist()
    [1.0, 4.0, 9.0]
    """
    caller = "rnla.row_norms"
    M = as_matrix(A, caller)
    check_count(num_matvecs, "num_matvecs", caller)
    check_choice(squared, "squared", (True, False), caller)
    check_least(num_matvecs, 2, "xrownorm", M, caller)
    key = key_from_rng(rng, caller)
    squares, factor = in_range(lambda M, _: _row_squares(Sample(M, "rademacher", key, caller), num_matvecs), M)
    if not squared:
        return M.xp.sqrt(squares) / factor
    return squares / factor / factor if factor != 1 else squares


def _diagonal(sample, count, method, psd):
    M = sample.M
    xp, n = M.xp, M.shape[0]
    if count >= n:
        return xp.concat([xp.linalg.diagonal(Y[start : start + Y.shape[1], :]) for start, Y in identity_images(sample)])
    if method == "auto":
        method = _choose_diag(sample, count, psd)
    if method == "hutchinson":
        total = xp.sum(conj(sample.Omega) * sample.Y, axis=1)
        while sample.count < count:
            X, Y = sample.draw(min(BLOCK, count - sample.count))
            total = total + xp.sum(conj(X) * Y, axis=1)
        return total / count
    if method == "xnysdiag":
        return _xnysdiag(sample, count)
    width = count // 2 if method == "xdiag" else count // 3
    basis = Basis(sample, M.rmatmat)
    basis.grow(width)
    Q, Z = basis.Q, basis.Z
    known = xp.sum(Q * conj(Z), axis=1)
    if basis.complete:
        return known
    if method == "diagpp":
        X, Y = sample.draw(width)
        return known + xp.sum(conj(X) * (Y - Q @ (adjoint(Z) @ X)), axis=1) / width
    S, lengths = basis.left_out()
    S = like(S, Q)
    T = Q @ S  # (I - Q_i Q_i^H) A omega_i = T_i d_i
    return known + xp.sum(T * (conj(sample.Omega[:, :width]) * like(lengths, Q) - conj(Z @ S)), axis=1) / width


def _xnysdiag(sample, count):
    xp = sample.M.xp
    sample.grow(count)
    if not sample.squares.any():
        return sample.Y[:, 0]
    core = nystrom_core(sample.Omega, sample.Y, sample.caller)
    F, Z = core.Q @ like(core.G, core.Q), core.Q @ like(core.Z, core.Q)
    rest = conj(sample.Omega) * Z * like(core.left_out, Z) - conj(Z) * Z
    values = xp.sum(conj(F) * F, axis=1) + xp.sum(rest, axis=1) / count - core.shift
    return xp.astype(xp.real(values), values.dtype) if xp.isdtype(values.dtype, "complex floating") else values


def _choose_diag(sample, count, psd):
    """Compare the spread of the plain estimates of the diagonal with what deflation leaves of A."""
    width = min(PILOT, count if psd else count // 2)
    if width < 2:
        return "hutchinson"
    sample.grow(width)
    mean = sample.M.xp.sum(conj(sample.Omega) * sample.Y, axis=1) / width
    spread = (np.sum(sample.squares) - width * column_squares(mean[:, None])[0]) / (width - 1)
    if not deflation_pays(sample, spread):
        return "hutchinson"
    return "xnysdiag" if psd else "xdiag"


def _row_squares(sample, count):
    M = sample.M
    xp, n = M.xp, M.shape[1]
    if count >= n:
        return sum(xp.sum(xp.abs(Y) ** 2, axis=1) for _, Y in identity_images(sample))
    width = count // 2
    basis = Basis(sample, M.rmatmat)
    basis.grow(width)
    Q = basis.Q
    K = to_host(adjoint(basis.Z) @ basis.Z)
    known = xp.sum(real(conj(Q) * (Q @ like(K, Q))), axis=1)  # of Q Q^H A
    if basis.complete:
        return xp.maximum(known, xp.zeros_like(known))
    S, lengths = basis.left_out()
    T, U = Q @ like(S, Q), Q @ like(K @ S, Q)
    weights = np.sum(S.conj() * (K @ S), axis=0).real - lengths**2
    # Rows of Q_i Q_i^H A, of the rest times omega_i, and twice the product of the two.
    terms = real(conj(T) * (T * like(weights, T) - 2 * U + 2 * sample.Y[:, :width] * like(lengths, T)))
    values = known + xp.sum(terms, axis=1) / width
    return xp.maximum(values, xp.zeros_like(values))
