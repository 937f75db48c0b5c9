"""Samples of powers of an operator, as entries of the block Hankel matrix of these powers.

Block (a, b) of the Hankel matrix is ``X_(a+b-1)``, so that its rank is that of A where ``X_t = A^t``. With
``Z_t = sqrt(mult_t) X_t``, mult_t being the number of blocks that hold X_t, the map G from Z to the Hankel matrix is an
isometry, and ``G G^*`` averages along the antidiagonals. Rows of the Hankel matrix are ordered by node, then by block.
"""

import numpy as np
from array_api_compat import array_namespace, device

from rnla import kernels
from rnla._backend import adjoint, from_host, to_host


class HankelSpace:
    """Samples ``(X_t)_ij`` of T powers of an n x n operator.

    Parameters
    ----------
    rows, cols, times : array of int, shape (N,)
        Positions, sorted by row, each triple once; times from 1.
    n, n_steps : int
        Order of the operator and number of powers T.
    window : int
        Block rows of the Hankel matrix, in ``1..T``.
    """

    def __init__(self, rows, cols, times, n, n_steps, window):
        self.rows, self.cols, self.times = rows, cols, times
        self.n, self.n_steps = n, n_steps
        self.blocks = window, n_steps + 1 - window
        self.shape = n * self.blocks[0], n * self.blocks[1]
        self.structured = min(self.blocks) > 1  # one row or column of blocks is free of structure
        self.count = rows.shape[0]
        self.density = self.count / (n * n * n_steps)
        t = np.arange(1, n_steps + 1)
        self.mult = np.minimum(np.minimum(t, n_steps + 1 - t), min(self.blocks)).astype(float)
        xp = array_namespace(rows)
        of_samples = xp.take(xp.asarray(self.mult, device=device(rows)), times - 1)
        self.multiplicity = of_samples if self.structured else 1.0
        self._scale = of_samples**-0.5
        order = xp.argsort(cols)
        # For each side: the order of the samples by its nodes, where those of a node end, and the other positions.
        self._sides = (
            (None, _ends(xp, rows, n), cols, times),
            (order, _ends(xp, xp.take(cols, order), n), xp.take(rows, order), xp.take(times, order)),
        )

    def degrees(self, rank):
        """Return the degrees of freedom of an operator of some rank."""
        return rank * (2 * self.n - rank)

    def sampled(self, L, Rc):
        """Return ``P G^* (L @ Rc.T)`` for L and Rc with w columns."""
        (da, db), w = self.blocks, L.shape[1]
        xp = array_namespace(L)
        blocks = xp.reshape(L, (self.n, da, w)), xp.reshape(Rc, (self.n, db, w))
        out = kernels.hankel_sampled_product(*blocks, self.rows, self.cols, self.times)
        return out * self._scales(out)

    def right(self, values, X):
        """Return ``(G P^* values) @ X``."""
        return self._scattered(values, X, 0)

    def left(self, values, X):
        """Return ``(G P^* values)^H @ X``."""
        xp = array_namespace(X)
        values = xp.conj(values) if xp.isdtype(values.dtype, "complex floating") else values
        return self._scattered(values, X, 1)

    def smooth_right(self, L, R, W):
        """Return ``(G G^* (L R^H)) @ W``; nothing of order n^2 is formed."""
        return self._smooth(L, R, W, *self.blocks)

    def smooth_left(self, L, R, W):
        """Return ``(G G^* (L R^H))^H @ W``."""
        return self._smooth(R, L, W, *self.blocks[::-1])

    def smoothing_matrix(self, V, axis):
        """Return K with ``G G^* (X V^H) V = X K``, where a row of X and of the product holds all blocks of a node.

        Of the rows (axis 0), for V of the columns of the Hankel matrix; of the columns for axis 1. On the host.
        """
        da, db = self.blocks if axis == 0 else self.blocks[::-1]
        xp, r = array_namespace(V), V.shape[1]
        Q = xp.reshape(V, (self.n, db * r))
        return self._kernel(_gram(xp, Q, Q), da, db, r, r)

    def _scattered(self, values, X, side):
        xp, p = array_namespace(X), X.shape[1]
        d_out, d_in = self.blocks if side == 0 else self.blocks[::-1]
        order, ends, others, times = self._sides[side]
        values = values * self._scales(values)
        values = values if order is None else xp.take(values, order)
        out = kernels.hankel_scatter(values, xp.reshape(X, (self.n, d_in, p)), ends, others, times, d_out)
        return xp.reshape(out, (self.n * d_out, p))

    def _scales(self, values):
        xp = array_namespace(values)
        real = xp.float32 if values.dtype in (xp.float32, xp.complex64) else xp.float64
        return xp.astype(self._scale, real, copy=False)

    def _smooth(self, L, R, W, da, db):
        xp, w, p = array_namespace(W), L.shape[1], W.shape[1]
        C = _gram(xp, xp.reshape(R, (self.n, db * w)), xp.reshape(W, (self.n, db * p)))
        K = from_host(self._kernel(C, da, db, w, p), xp, W.dtype, device(W))
        return xp.reshape(xp.reshape(L, (self.n, da * w)) @ K, (self.n * da, p))

    def _kernel(self, C, da, db, w, p):
        """Return K (da w, da p) with ``K[a', a] = sum_b C[a + b - a', b] / mult_(a+b-1)``, from C (db w, db p)."""
        C = C.reshape(db, w, db, p)
        K = np.zeros((da, w, da, p), C.dtype)
        for a in range(da):
            for b in range(db):
                for before in range(max(0, a + b - db + 1), min(da, a + b + 1)):
                    K[before, :, a, :] += C[a + b - before, :, b, :] / self.mult[a + b]
        return K.reshape(da * w, da * p)


def _ends(xp, index, n):
    return xp.searchsorted(index, xp.arange(n + 1, dtype=index.dtype, device=device(index)))


def _gram(xp, X, Y):
    return to_host(adjoint(X) @ Y)
