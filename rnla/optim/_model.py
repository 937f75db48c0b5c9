"""Quadratic model of the loss along a few directions, and the damping that its predictions earn."""

import math

from rnla.optim._checks import check_shape, real_arrays


def solve_quadratic_model(K, b):
    """Minimise ``c^T K c / 2 + b^T c`` over the coefficients of a few directions.

    Parameters
    ----------
    K : array, shape (s, s)
        Curvature between the directions, symmetric positive semidefinite; the first direction is the main one.
    b : array, shape (s,)
        Products of the gradient with the directions.

    Returns
    -------
    coef : array, shape (s,)
        Minimiser, in double precision; the shortest one if directions are zero or parallel. If the model does not
        fall along it, that of the first direction alone.
    value : array, shape ()
        Value of the model there.

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If an argument is no array.

    Notes
    -----
    No value is read.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, section 7.

    Examples
    --------
    >>> coef, value = rnla.optim.solve_quadratic_model(np.array([[2.0]]), np.array([-4.0]))
    >>> coef.tolist(), float(value)
    ([2.0], -4.0)
    """
    caller = "rnla.optim.solve_quadratic_model"
    xp = real_arrays(caller, K=K, b=b)
    check_shape(K, (b.shape[0], b.shape[0]), "K", caller)
    K, b = xp.astype(K, xp.float64), xp.astype(b, xp.float64)
    size = xp.linalg.diagonal(K) ** 0.5
    unit = 1 / xp.where(size > 0, size, xp.ones_like(size))  # directions may differ by orders of magnitude in length
    scaled = K * unit[:, None] * unit
    w, Q = xp.linalg.eigh(xp.where(xp.isfinite(scaled), (scaled + scaled.T) / 2, xp.zeros_like(scaled)))
    some = w > 1e-12 * b.shape[0] * xp.max(xp.abs(w))
    inverse = xp.where(some, 1 / xp.where(some, w, xp.ones_like(w)), xp.zeros_like(w))
    coef = -unit * (Q @ (inverse * (Q.T @ (unit * b))))
    value = coef @ (K @ coef) / 2 + b @ coef
    first = xp.arange(b.shape[0]) == 0
    alone = xp.where(first, -b[0] / xp.where(K[0, 0] > 0, K[0, 0], xp.ones_like(value)), xp.zeros_like(b))
    alone = xp.where(K[0, 0] > 0, alone, xp.zeros_like(b))
    falls = value < 0
    coef = xp.where(falls, coef, alone)
    return coef, xp.where(falls, value, K[0, 0] * alone[0] ** 2 / 2 + b[0] * alone[0])


class LevenbergMarquardt:
    """Damping that shrinks while the quadratic model predicts the loss well, and grows when it does not.

    Parameters
    ----------
    lam0 : float
        Damping at the beginning, positive.
    w1 : float
        Factor in (0, 1).
    lo, hi : float
        Ratios of the change of the loss to the predicted one below and above which the damping is changed.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, section 6.5.

    Examples
    --------
    >>> damping = rnla.optim.LevenbergMarquardt(1.0, 0.5)
    >>> damping.update(0.9), damping.update(0.5), damping.update(0.1), damping.update(float("nan"))
    (0.5, 0.5, 1.0, 2.0)
    """

    def __init__(self, lam0, w1, lo=0.25, hi=0.75):
        _check_start("rnla.optim.LevenbergMarquardt", lam0=lam0, w1=w1)
        self.lam, self.w1, self.lo, self.hi = lam0, w1, lo, hi

    def update(self, rho):
        """Return the damping after a step with ratio `rho`; NaN counts as a poor one."""
        rho = float(rho)
        if rho > self.hi:
            self.lam *= self.w1
        elif not rho >= self.lo:
            self.lam /= self.w1
        return self.lam


class GammaSearch:
    """Damping of the Kronecker factors, chosen among neighbours by the value of the quadratic model.

    Parameters
    ----------
    gamma0 : float
        Value at the beginning, positive.
    w2 : float
        Factor in (0, 1) between neighbours.
    every : int
        Steps between searches.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, section 6.6.

    Examples
    --------
    >>> search = rnla.optim.GammaSearch(1.0, 0.5, every=2)
    >>> search.candidates(1), search.candidates(2)
    ([1.0], [1.0, 0.5, 2.0])
    >>> search.choose([1.0, 0.5, 2.0], [-1.0, -3.0, -2.0])
    0.5
    """

    def __init__(self, gamma0, w2, every=20):
        _check_start("rnla.optim.GammaSearch", gamma0=gamma0, w2=w2)
        self.gamma, self.w2, self.every = gamma0, w2, every

    def candidates(self, step):
        """Return the values to be tried at a step, counted from 1."""
        if step % self.every:
            return [self.gamma]
        return [self.gamma, self.w2 * self.gamma, self.gamma / self.w2]

    def choose(self, candidates, values):
        """Return the candidate with the least value of the model, and go on from it; NaN is never chosen."""
        values = [math.inf if math.isnan(float(value)) else float(value) for value in values]
        self.gamma = candidates[values.index(min(values))]
        return self.gamma


def _check_start(caller, **values):
    for (name, value), bound in zip(values.items(), (math.inf, 1.0), strict=True):
        if not 0 < value < bound:
            raise ValueError(f"{caller}: {name} must be in (0, {bound}); got {value}.")
