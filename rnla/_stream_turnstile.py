"""Sketch of a matrix that changes anywhere, linear in the matrix: range, co-range and core (Tropp et al. 2019)."""

import math

import numpy as np
from array_api_compat import array_namespace, device

from rnla._backend import adjoint, check_finite, from_host, host_svd, to_host
from rnla._matrix_views import spans, wide_dtype
from rnla._orth import orth
from rnla._rangefinder import SAFE
from rnla._sketch import test_matrix
from rnla._stream_rows import pieces
from rnla._tall import column_squares

BLOCK_ENTRIES = 2**22  # of a test matrix made at a time: 32 MB in double precision
OMEGA, PSI, UPSILON, PHI, THETA = range(5)  # streams of the key


class TurnstileSketch:
    """State of ``mode="turnstile"``: ``Y = A Omega``, ``X = A^H Upsilon``, ``Z = Phi^H A Psi``, ``E = A^H Theta``.

    (The paper has the adjoints of Omega ... Psi.) Test matrices with as many rows as A are made again for the rows
    that are needed, those with as many rows as A has columns are kept.

    References
    ----------
    .. [1] Tropp, Yurtsever, Udell, Cevher, SIAM J. Sci. Comput. 41 (2019), Algorithms 3.1 to 4.1 and section 6.
    """

    def __init__(self, plan, place):
        xp, self.dtype, where = place
        self.plan = plan
        wide = {"dtype": wide_dtype(self.dtype, xp), "device": where}  # sums over many blocks
        self.X = xp.zeros((plan.n_cols, plan.width), **wide)
        self.E = xp.zeros((plan.n_cols, plan.error_sketch), **wide)
        self.Z = xp.zeros((plan.core, plan.core), **wide)
        self.Y = xp.zeros((plan.n_rows, plan.width), dtype=self.dtype, device=where)
        self.next_row = 0
        self._columns = None

    def __getstate__(self):
        return {**self.__dict__, "_columns": None}

    @property
    def place(self):
        """Namespace, dtype and device of the state."""
        return array_namespace(self.Y), self.dtype, device(self.Y)

    @property
    def matvecs(self):
        """Number of vectors multiplied by A and by its adjoint."""
        return 2 * self.plan.width + self.plan.core + self.plan.error_sketch

    def add(self, M, start, caller, theta=1.0, eta=1.0):
        """Replace A by ``theta A`` plus ``eta M`` in the rows from `start` on; nothing changes if M is refused."""
        xp, wide = M.xp, self.X.dtype
        width, W, parts = self.plan.width, self._columns_of_test(), []
        X = E = Z = 0.0
        for offset, B in pieces(M, caller):
            first, last = start + offset, start + offset + B.shape[0]
            right = B.matmat(W)  # B [Omega, Psi]
            left = B.rmatmat(xp.concat([self._rows(UPSILON, first, last), self._rows(THETA, first, last)], axis=1))
            core = adjoint(self._rows(PHI, first, last)) @ right[:, width:]
            for product in (right, left, core):
                check_finite(product, caller, "block")
            left = xp.astype(left, wide, copy=False)
            X, E, Z = X + left[:, :width], E + left[:, width:], Z + xp.astype(core, wide, copy=False)
            parts.append((first, last, right[:, :width]))
        if theta != 1:
            self.Y *= theta
            self.Z *= theta
            self.X *= theta.conjugate()
            self.E *= theta.conjugate()
        self.X += X * eta.conjugate()
        self.E += E * eta.conjugate()
        self.Z += Z * eta
        for first, last, rows in parts:
            self.Y[first:last, :] += rows * eta
        self.next_row = max(self.next_row, start + M.shape[0])

    def merge(self, other, shift, caller):
        """Add another sketch of the same plan."""
        self.X, self.E, self.Z = self.X + other.X, self.E + other.E, self.Z + other.Z
        self.Y = self.Y + other.Y
        self.next_row = max(self.next_row, other.next_row)

    def svd(self, k, rows, caller, folder):
        """Return U, s, V, with k columns, of the best approximation that the sketch knows; s on the host."""
        xp, dtype, where = self.place
        scale = self._scale()
        Q, P = orth(self.Y * scale)[0], orth(xp.astype(self.X * scale, dtype))[0]
        left = sum(to_host(adjoint(self._rows(PHI, *span)) @ Q[span[0] : span[1], :]) for span in self._spans())
        right = to_host(adjoint(self._columns_of_test()[:, self.plan.width :]) @ P)
        # Phi^H Q C P^H Psi = Z in the least-squares sense, by orthogonal factors from either side.
        half = _least_squares(left, to_host(self.Z) * scale)
        C = _least_squares(right, half.conj().T).conj().T
        W, s, Xh = host_svd(C)
        U = Q @ from_host(W[:, :k], xp, dtype, where)
        V = P @ from_host(Xh[:k].conj().T, xp, dtype, where)
        return U, s[:k] / scale, V

    def squares(self, U, S, Vh):
        """Return unbiased estimates of ``||A - U S Vh||_F**2`` and ``||A||_F**2``, times a power of two, and its root.

        They come from the error sketch, on which nothing else depends; None without it.
        """
        count, scale = self.plan.error_sketch, self._scale()
        if not count:
            return None, None, scale
        seen = sum(adjoint(U[first:last, :]) @ self._rows(THETA, first, last) for first, last in self._spans())
        rest = self.E - array_namespace(self.E).astype(adjoint(Vh) @ (S[:, None] * seen), self.E.dtype)
        return *(float(np.sum(column_squares(part * scale))) / count for part in (rest, self.E)), scale

    def arrays(self):
        """Return the state as arrays and as numbers."""
        return {"X": self.X, "Y": self.Y, "Z": self.Z, "E": self.E}, {"next_row": self.next_row}

    def restore(self, arrays, numbers):
        """Take over a state that `arrays` returned."""
        self.X, self.Y, self.Z, self.E = (arrays[name] for name in "XYZE")
        self.next_row = numbers["next_row"]

    def _scale(self):
        """Return a power of two that brings Y so near to one that its squares stay in range."""
        xp, dtype, _ = self.place
        low, high = SAFE["float32" if dtype in (xp.float32, xp.complex64) else "float64"]
        top = float(xp.max(xp.abs(self.Y)))
        return 1.0 if top == 0 or low <= top <= high else 2.0 ** -round(math.log2(top))

    def _rows(self, stream, first, last):
        """Return rows of one of the test matrices that have as many rows as A."""
        xp, dtype, where = self.place
        count = {UPSILON: self.plan.width, PHI: self.plan.core, THETA: self.plan.error_sketch}[stream]
        kind = "gaussian" if stream == THETA else self.plan.sketch
        place = {"xp": xp, "device": where, "dtype": dtype, "stream": stream, "row": first}
        return test_matrix(kind, self.plan.key, last - first, count, **place)

    def _spans(self):
        step = max(BLOCK_ENTRIES // self.plan.core, 1)
        return [(rows.start, rows.stop) for rows in spans(self.plan.n_rows, step)]

    def _columns_of_test(self):
        """Return ``[Omega, Psi]``."""
        if self._columns is None:
            xp, dtype, where = self.place
            plan, place = self.plan, {"xp": xp, "device": where, "dtype": dtype}
            self._columns = xp.concat(
                [
                    test_matrix(plan.sketch, plan.key, plan.n_cols, count, stream=stream, **place)
                    for stream, count in ((OMEGA, plan.width), (PSI, plan.core))
                ],
                axis=1,
            )
        return self._columns


def _least_squares(F, B):
    """Return the solution G of ``F G ~ B`` for a tall, well-conditioned F."""
    from scipy.linalg import solve_triangular

    Q, R = np.linalg.qr(F)
    return solve_triangular(R, Q.conj().T @ B, check_finite=False)
