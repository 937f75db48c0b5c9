"""Rational approximation on an interval: Zolotarev's nodes for the inverse square root, and shifts of ADI."""

import math
import numbers

import numpy as np

SMALL = 1e-9  # moduli below which elliptic functions are hyperbolic to rounding
TINY = 1e-12  # relative width below which an interval is a point


def zolotarev_nodes(m, M, *, n_nodes=None, tol=None):
    """Return nodes and weights of the best rational approximation to the inverse square root on ``[m, M]``.

    ``x**-0.5 ~ sum_j w[j] / (x + tau[j])`` with a relative error of ``4 exp(-pi**2 n_nodes / log(4 sqrt(M / m)))``,
    equal in modulus at the extremes; all nodes and weights are positive, so that sums with positive definite matrices
    in the place of x do not cancel.

    Parameters
    ----------
    m, M : float
        Ends of the interval, ``0 < m <= M``.
    n_nodes : int, optional
        Number of nodes.
    tol : float, optional
        Relative error; the number of nodes follows from it. One of the two must be given.

    Returns
    -------
    tau, w : ndarray, shape (n_nodes,)
        Nodes in increasing order, with ``tau[j] tau[-1 - j] = m M``, and weights.

    Raises
    ------
    ValueError
        If the interval is not positive or not exactly one of `n_nodes` and `tol` is given.

    References
    ----------
    .. [1] Hale, Higham, Trefethen, SIAM J. Numer. Anal. 46 (2008), section 4.
    .. [2] Beckermann, Townsend, SIAM J. Matrix Anal. Appl. 38 (2017).

    Examples
    --------
    >>> tau, w = rnla.zolotarev_nodes(1.0, 100.0, n_nodes=4)
    >>> np.round(tau, 4).tolist()
    [0.2292, 3.5643, 28.0556, 436.2948]
    >>> x = np.array([1.0, 7.0, 100.0])
    >>> bool(np.all(np.abs(x**0.5 * (w / (x[:, None] + tau)).sum(axis=1) - 1) < 1e-4))
    True
    """
    caller = "rnla.zolotarev_nodes"
    _check_interval(m, M, "m", "M", caller)
    if (n_nodes is None) == (tol is None):
        raise ValueError(f"{caller}: n_nodes or tol must be given, and not both; got n_nodes={n_nodes}, tol={tol}.")
    if tol is not None:
        _check_tol(tol, caller)
        n_nodes = node_count(M / m, tol)
    _check_count(n_nodes, "n_nodes", caller)
    m, M = float(m), float(M)
    M = max(M, m * (1 + TINY))
    modulus = math.sqrt(m / M)
    period, s = _elliptic(modulus, n_nodes)
    tau = m * s**2
    w = 2 * period * math.sqrt(m) / (math.pi * n_nodes) * np.sqrt((1 + s**2) * (1 + (modulus * s) ** 2))
    # The error oscillates between -e and something a little above e: scaled, both have the same modulus. Its extremes
    # are known: at the first end, and where the elliptic functions have the argument that they have at the first node.
    s = np.array([0.0, s[0]])
    x = m * (1 + s**2) / (1 + (modulus * s) ** 2)
    value = np.sqrt(x) * (w / (x[:, None] + tau)).sum(axis=1)
    return tau, w * (2 / value.sum())


def adi_shifts(a, b, n):
    """Return the shifts with which ADI converges fastest for a spectrum in ``[a, b]`` (Wachspress).

    Parameters
    ----------
    a, b : float
        Ends of the interval, ``0 < a <= b``.
    n : int
        Number of shifts.

    Returns
    -------
    ndarray, shape (n,)
        Positive shifts in decreasing order.

    Examples
    --------
    >>> np.round(rnla.adi_shifts(1.0, 10.0, 3), 6).tolist()
    [8.378904, 3.162278, 1.193474]
    """
    caller = "rnla.adi_shifts"
    _check_interval(a, b, "a", "b", caller)
    _check_count(n, "n", caller)
    a, b = float(a), max(float(b), float(a) * (1 + TINY))
    _, s = _elliptic(a / b, n)
    return b * np.sqrt((1 + (a / b * s) ** 2) / (1 + s**2))


def node_count(kappa, tol):
    """Return how many nodes give the relative error `tol` on an interval whose ends have the ratio `kappa`."""
    return max(1, math.ceil(math.log(4 / tol) * math.log(4 * math.sqrt(max(kappa, 1.0))) / math.pi**2))


def correction_rank(kappa, k, tol):
    """Return a rank with which the root of an update of rank `k` is known to the relative precision `tol`.

    Parameters
    ----------
    kappa : float
        Ratio of the ends of an interval that holds the eigenvalues before and after the update.
    k : int
        Rank of the update.
    tol : float
        Precision in the 2-norm, relative to the correction.

    Returns
    -------
    int
        ``k ceil(log(4 / tol) log(4 sqrt(kappa)) / pi**2)``.

    Examples
    --------
    >>> rnla.correction_rank(1e6, 1, 1e-8)
    17
    """
    caller = "rnla.correction_rank"
    _check_kappa(kappa, caller)
    _check_count(k, "k", caller, least=0)
    _check_tol(tol, caller)
    return k * node_count(kappa, tol)


def decay_bound(kappa, k, nu):
    """Bound the singular value number ``1 + k nu`` of the correction of a root, relative to the first.

    Parameters
    ----------
    kappa : float
        Ratio of the ends of an interval that holds the eigenvalues before and after the update.
    k : int
        Rank of the update. The bound does not depend on it, the index does.
    nu : int or array of int
        How many times `k` values are left out.

    Returns
    -------
    float or ndarray
        ``min(1, 4 exp(-nu pi**2 / log(4 sqrt(kappa))))``.

    References
    ----------
    .. [1] Beckermann, Townsend, SIAM J. Matrix Anal. Appl. 38 (2017).

    Examples
    --------
    >>> bool(rnla.decay_bound(1e6, 1, 17) < 1e-8)
    True
    """
    caller = "rnla.decay_bound"
    _check_kappa(kappa, caller)
    _check_count(k, "k", caller)
    bound = np.minimum(1.0, 4 * np.exp(-np.asarray(nu) * math.pi**2 / math.log(4 * math.sqrt(kappa))))
    return float(bound) if np.ndim(bound) == 0 else bound


def _elliptic(modulus, count):
    """Return the complementary quarter period of a small `modulus`, and sc at the midpoints of `count` parts of it.

    The elliptic functions have the complementary modulus, near 1; descending on the small one loses no digits.
    """
    a, b = 1.0, modulus
    for _ in range(60):
        if abs(a - b) <= 2e-16 * a:
            break
        a, b = (a + b) / 2, math.sqrt(a * b)
    period = math.pi / (2 * a)
    t = (np.arange(count) + 0.5) * period / count
    reflected = t > period / 2
    s = _sc(np.where(reflected, period - t, t), modulus)
    return period, np.where(reflected, 1 / (modulus * s), s)


def _sc(u, modulus):
    """Return sn / cn for the complement of `modulus`, by Landen's transformation."""
    steps, v, k = [], np.array(u, dtype=float), modulus
    while k > SMALL:
        k = (k / (1 + math.sqrt((1 - k) * (1 + k)))) ** 2
        steps.append(k)
        v /= 1 + k
    s = np.sinh(v)
    for k in reversed(steps):
        s = (1 + k) * s / (1 - k * s**2)
    return s


def _check_interval(low, high, name_low, name_high, caller):
    for name, value in ((name_low, low), (name_high, high)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{caller}: {name} must be a real number; got {type(value).__name__} {value!r}.")
    if not (0 < low <= high < math.inf):
        raise ValueError(
            f"{caller}: {name_low} and {name_high} must satisfy 0 < {name_low} <= {name_high}; got {low}, {high}."
        )


def _check_kappa(kappa, caller):
    if isinstance(kappa, bool) or not isinstance(kappa, numbers.Real) or not 1 <= kappa < math.inf:
        raise ValueError(f"{caller}: kappa must be a finite number of at least 1; got {kappa!r}.")


def _check_tol(tol, caller):
    if isinstance(tol, bool) or not isinstance(tol, numbers.Real) or not 0 < tol < 4:
        raise ValueError(f"{caller}: tol must be a number in (0, 4); got {tol!r}.")


def _check_count(value, name, caller, least=1):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{caller}: {name} must be an integer; got {type(value).__name__} {value!r}.")
    if value < least:
        raise ValueError(f"{caller}: {name} must be at least {least}; got {value}.")
