"""Linear systems with sums of Kronecker products, and the block-tridiagonal K-FAC inverse."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace

from rnla._rangefinder import check_choice
from rnla.optim._checks import check_damping, check_shape, check_square, real_arrays
from rnla.optim._precond import split_damping
from rnla.optim._symmetric import eigenpairs, floor_of, ridged, spd_inverse, symmetrised

LEAST = 1e-4  # a difference of Kronecker products is positive; rounding must not let it come nearer to zero


class KronSum(NamedTuple):
    """``A kron B + sign C kron D``, factored for solves.

    Attributes
    ----------
    K1, K2 : array, shape (p, p) and (q, q)
        Congruences that make A and B the identity, and C and D diagonal.
    divisor : array, shape (q, p)
        Eigenvalues of the sum after both.

    Examples
    --------
    >>> I = np.eye(2)
    >>> rnla.optim.KronSum.factored(I, I, 3 * I, I).solve(np.ones((2, 2))).tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """

    K1: Any
    K2: Any
    divisor: Any

    @classmethod
    def factored(cls, A, B, C, D, sign=1):
        """Factor the sum; see `kron_sum_solve`."""
        K1, s1 = _congruence(A, C)
        K2, s2 = _congruence(B, D)
        product = s2[:, None] * s1[None, :]
        if sign > 0:
            return cls(K1, K2, 1 + product)
        return cls(K1, K2, array_namespace(product).clip(1 - product, min=LEAST))

    def solve(self, V):
        """Return the solution for the right-hand side `V` (q, p)."""
        return self.K2 @ ((self.K2.T @ V @ self.K1) / self.divisor) @ self.K1.T


def kron_sum_solve(A, B, C, D, V, *, sign=1):
    """Solve ``B X A + sign D X C = V`` for symmetric matrices, of which A and B are positive definite.

    Parameters
    ----------
    A, B : array, shape (p, p) and (q, q)
        Positive definite.
    C, D : array, shape (p, p) and (q, q)
        Positive semidefinite.
    V : array, shape (q, p)
        Right-hand side.
    sign : {1, -1}
        For -1 the sum must be positive definite; its eigenvalues relative to ``A kron B`` are taken as 1e-4 at least.

    Returns
    -------
    array, shape (q, p)
        ``(A kron B + sign C kron D)^-1 vec V`` in matrix form, columns stacked.

    Raises
    ------
    ValueError
        If an argument is not one of the above.
    TypeError
        If an argument is no array.

    Notes
    -----
    Two eigendecompositions for each side, ``O(p**3 + q**3)``.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, appendix B.

    Examples
    --------
    >>> A, I = np.diag([1.0, 2.0]), np.eye(2)
    >>> rnla.optim.kron_sum_solve(A, I, I, I, np.ones((2, 2))).round(6).tolist()
    [[0.5, 0.333333], [0.5, 0.333333]]
    """
    caller = "rnla.optim.kron_sum_solve"
    real_arrays(caller, A=A, B=B, C=C, D=D, V=V)
    check_choice(sign, "sign", (1, -1), caller)
    for name, M, side in (("A", A, 1), ("C", C, 1), ("B", B, 0), ("D", D, 0)):
        check_square(M, name, caller)
        check_shape(M, (V.shape[side], V.shape[side]), name, caller)
    return KronSum.factored(A, B, C, D, sign).solve(V)


class BlockTridiagonal:
    """Inverse of the block-tridiagonal K-FAC approximation of the Fisher matrix of a chain of layers.

    The Fisher matrix is taken as the precision of a chain in which the gradient of a layer depends on that of the next
    layer alone; its inverse is block-tridiagonal, and it agrees with the Kronecker factors on the tridiagonal blocks.

    Parameters
    ----------
    A_diag, G_diag : list of array, shapes (p_i, p_i) and (q_i, q_i)
        Factors of each layer.
    A_off, G_off : list of array, shapes (p_i, p_{i+1}) and (q_i, q_{i+1})
        ``E[a_i a_{i+1}^T]`` and ``E[g_i g_{i+1}^T]`` of neighbouring layers, one fewer.
    lam : float
        Damping, split by `split_damping` with ``pi`` and added to the diagonal factors.

    Raises
    ------
    ValueError
        If the lists or shapes do not fit.

    Notes
    -----
    Four eigendecompositions for each layer when it is made.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, section 4.3.

    Examples
    --------
    >>> I = np.eye(2)
    >>> F = rnla.optim.BlockTridiagonal([2 * I, I], [0 * I], [I, I], [0 * I])
    >>> [W[0, 0].round(6).item() for W in F.solve([I, I])]
    [0.5, 1.0]
    """

    def __init__(self, A_diag, A_off, G_diag, G_off, *, lam=0.0):
        caller = "rnla.optim.BlockTridiagonal"
        count = len(A_diag)
        if count < 1 or len(G_diag) != count or len(A_off) != count - 1 or len(G_off) != count - 1:
            raise ValueError(
                f"{caller}: A_diag and G_diag must have one factor for each layer, A_off and G_off one fewer; got "
                f"{count}, {len(G_diag)}, {len(A_off)} and {len(G_off)}."
            )
        check_damping(lam, "lam", caller)
        for name, off, diag in (("A_off", A_off, A_diag), ("G_off", G_off, G_diag)):
            for i, X in enumerate(off):
                check_shape(X, (diag[i].shape[0], diag[i + 1].shape[0]), f"{name}[{i}]", caller)
        A, G = [], []
        for X, Y in zip(A_diag, G_diag, strict=True):
            delta_X, delta_Y = split_damping(X, Y, lam, mode="pi")
            A.append(ridged(X, delta_X))
            G.append(ridged(Y, delta_Y))
        # Regression of each layer on the next one.
        self._Psi_A = [X @ spd_inverse(A[i + 1]) for i, X in enumerate(A_off)]
        self._Psi_G = [X @ spd_inverse(G[i + 1]) for i, X in enumerate(G_off)]
        self._sigma = [
            KronSum.factored(A[i], G[i], symmetrised(P @ A[i + 1] @ P.T), symmetrised(R @ G[i + 1] @ R.T), -1)
            for i, (P, R) in enumerate(zip(self._Psi_A, self._Psi_G, strict=True))
        ]
        self._last = spd_inverse(A[-1]), spd_inverse(G[-1])

    def solve(self, gradients):
        """Return the preconditioned gradients ``[W_1, ...]`` of gradients ``[V_1, ...]`` of shapes (q_i, p_i)."""
        if len(gradients) != len(self._sigma) + 1:
            raise ValueError(
                f"rnla.optim.BlockTridiagonal.solve: gradients must have {len(self._sigma) + 1} entries; "
                f"got {len(gradients)}."
            )
        A_inv, G_inv = self._last
        solved = [
            sigma.solve(V - R @ after @ P.T)
            for sigma, P, R, V, after in zip(
                self._sigma, self._Psi_A, self._Psi_G, gradients[:-1], gradients[1:], strict=True
            )
        ]
        solved.append(G_inv @ gradients[-1] @ A_inv)
        out = solved[:1]
        for P, R, before, Z in zip(self._Psi_A, self._Psi_G, solved[:-1], solved[1:], strict=True):
            out.append(Z - R.T @ before @ P)
        return out


def _congruence(A, C):
    """Return K and s with ``K^T A K = I`` and ``K^T C K = diag(s)``."""
    w, V = eigenpairs(symmetrised(A))
    # A damping below the rounding of the largest eigenvalue may leave others that are negative.
    w = array_namespace(w).maximum(w, floor_of(w[0], A))
    half = (V / w**0.5) @ V.T
    s, E = eigenpairs(symmetrised(half @ C @ half))
    return half @ E, s
