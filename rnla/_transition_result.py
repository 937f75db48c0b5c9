"""A transition operator in factors, and its powers."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from rnla import kernels
from rnla._completion_result import IRLSHistory


@dataclass(frozen=True, eq=False, repr=False)
class TransitionResult:
    """``A ~ (U * s) @ Vh``, learned from entries of its powers.

    Attributes
    ----------
    U, s, Vh : array, shapes (n, k), (k,), (k, n)
        Orthonormal columns and rows, s non-increasing.
    time_scale : float
        The c with which entries of A^t were divided by c^t.
    n_steps : int
        Number of powers of which samples could be given.
    converged : bool
        Whether the result may be believed.
    n_iter : int
        Number of reweighted least-squares problems.
    history : IRLSHistory
        Arrays ``eps, rank, cg_iterations, relative_change, seconds``.
    message : str
        Why it ended, and of a failure the likely cause.
    reg, noise_std : float
        Regularisation and standard deviation of the noise, given or estimated.
    oversampling : float
        Number of samples over the ``2 n k - k^2`` degrees of freedom.

    Examples
    --------
    >>> graph = rnla.datasets.graph_operator("erdos_renyi", 30, p=0.3, k=2, rng=0)
    >>> samples = rnla.datasets.space_time_samples((graph.U, graph.s, graph.Vh), 3, 500, rng=0)
    >>> result = rnla.learn_transition_operator(samples, 2, n=30, rng=0)
    >>> result.converged, bool(np.abs(result.power(2) - graph.to_dense() @ graph.to_dense()).max() < 1e-9)
    (True, True)
    """

    U: Any
    s: Any
    Vh: Any
    time_scale: float
    n_steps: int
    converged: bool
    n_iter: int
    history: IRLSHistory
    message: str
    reg: float
    noise_std: float
    oversampling: float
    _left: Any = field(repr=False)  # (n, d1, k): block rows of the factored Hankel matrix of A^t / c^t
    _right: Any = field(repr=False)  # (k, d2, n)

    @property
    def rank(self):
        """Rank of A."""
        return int(self.s.shape[0])

    def to_dense(self):
        """Return A as an array of shape (n, n)."""
        return self.power(1)

    def power(self, t):
        """Return A^t as an array of shape (n, n).

        Up to `n_steps` it is what was fitted to the samples at t, beyond that a product of factors.

        Parameters
        ----------
        t : int
            Exponent, at least 1.
        """
        L, R = self._factors(t)
        return L @ R

    def entries(self, rows, cols, t=1):
        """Return entries of A^t, without forming it elsewhere.

        Parameters
        ----------
        rows, cols : array of int, shape (N,)
            Positions.
        t : int
            Exponent, at least 1.

        Returns
        -------
        array, shape (N,)
            Values.
        """
        L, R = self._factors(t)
        xp = array_namespace(L)
        index = []
        for x, name in ((rows, "rows"), (cols, "cols")):
            x = xp.asarray(x if is_array_api_obj(x) else np.asarray(x), device=device(L))
            if x.shape[0] and not (int(xp.min(x)) >= 0 and int(xp.max(x)) < L.shape[0]):
                raise ValueError(f"TransitionResult.entries: {name} must be in 0..{L.shape[0] - 1}.")
            index.append(x)
        return kernels.sampled_product(L, R.T, *index)

    def predict(self, x0, n_steps):
        """Return the states that follow `x0`: ``A x0, A^2 x0, ...``.

        Parameters
        ----------
        x0 : array, shape (n,)
            State at time 0.
        n_steps : int
            Number of steps.

        Returns
        -------
        array, shape (n_steps, n)
            One state a row.
        """
        xp = array_namespace(self.U)
        if tuple(x0.shape) != (self.U.shape[0],):
            raise ValueError(f"TransitionResult.predict: x0 must have shape ({self.U.shape[0]},); got {x0.shape}.")
        left = self.U * xp.astype(self.s, self.U.dtype)
        out = []
        for _ in range(n_steps):
            x0 = left @ (self.Vh @ x0)
            out.append(x0)
        return xp.stack(out)

    def __repr__(self):
        n, k = self.U.shape
        end = f"converged after {self.n_iter} iterations" if self.converged else f"not converged: {self.message}"
        return f"TransitionResult({n} x {n}, rank {k}, {self.n_steps} steps, {end})"

    def _factors(self, t):
        """Return factors of A^t: the mean over the blocks of the Hankel matrix that hold it, or a product."""
        if isinstance(t, bool) or not isinstance(t, (int, np.integer)) or t < 1:
            raise ValueError(f"TransitionResult: t must be an integer of at least 1; got {t!r}.")
        xp = array_namespace(self.U)
        if t == 1:
            return self.U * xp.astype(self.s, self.U.dtype), self.Vh
        if t <= self.n_steps:
            d1, d2 = self._left.shape[1], self._right.shape[1]
            blocks = [(a, t - 1 - a) for a in range(d1) if 0 <= t - 1 - a < d2]
            scale = self.time_scale**t / len(blocks)
            return (
                xp.concat([self._left[:, a, :] * scale for a, _ in blocks], axis=1),
                xp.concat([self._right[:, b, :] for _, b in blocks], axis=0),
            )
        left = self.U * xp.astype(self.s, self.U.dtype)
        step = self.Vh @ left
        for _ in range(t - 1):
            left = left @ step
        return left, self.Vh
