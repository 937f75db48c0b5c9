"""Kronecker factors of layers with many groups, as one stack for the inputs and one for the derivatives."""

from array_api_compat import array_namespace

from rnla._backend import eps_of
from rnla.optim._checks import scalar_like
from rnla.optim._symmetric import eigenpairs, floor_of


def grouped_inverse(A, G, lam, groups, *, mode="relative", identity=(0.0, 0.0)):
    """Return the damped inverses of the blocks ``A_i kron G_i`` of all groups, for `grouped_direction`.

    Parameters
    ----------
    A, G : array, shape (groups, p, p) and (groups, q, q), or (groups * p,) and (groups * q,)
        Factors of every group, symmetric positive semidefinite, or their diagonals one after the other.
    lam : float
        Damping, not negative.
    groups : int
        Number of groups.
    mode : {"relative", "pi", "pi-fro", "joint"}
        As for `precondition`, but ``relative`` to the largest eigenvalue of all groups: one that sees next to nothing
        would take the longest step if it were measured by its own.
    identity : (float or array, float or array)
        To be added to the dampings of A and of G; not for ``joint``.

    Returns
    -------
    tuple
        Eigenvectors of G and of A, None for diagonals, and what is multiplied by in their basis.
    """
    (a, U_A), (g, U_G) = (_pairs(M, groups) for M in (A, G))
    xp = array_namespace(a)
    a_max, g_max = xp.max(a), xp.max(g)
    if mode == "joint":
        least = eps_of(xp, a.dtype) * a_max * g_max + float(xp.finfo(a.dtype).smallest_normal)
        return U_G, U_A, 1 / (g[:, :, None] * a[:, None, :] + xp.maximum(scalar_like(lam, a), least))
    if mode == "relative":
        deltas = lam * a_max, lam * g_max
    else:
        deltas = _split(a, g, lam, mode)
    delta_A, delta_G = (
        xp.maximum(delta, floor_of(largest, largest)) + weight
        for delta, largest, weight in zip(deltas, (a_max, g_max), identity, strict=True)
    )
    # Two factors: the product of small ones would leave the range of the dtype.
    return U_G, U_A, 1 / (g + delta_G)[:, :, None], 1 / (a + delta_A)[:, None, :]


def grouped_direction(V, inverse):
    """Apply the inverses of `grouped_inverse` to gradients, shape (groups, q, p)."""
    U_G, U_A, *weights = inverse
    V = V if U_G is None else U_G.mT @ V
    V = V if U_A is None else V @ U_A
    for weight in weights:
        V = V * weight
    V = V if U_G is None else U_G @ V
    return V if U_A is None else V @ U_A.mT


def _pairs(M, groups):
    """Return eigenvalues (groups, d) and eigenvectors, None for diagonals."""
    xp = array_namespace(M)
    if M.ndim == 1:
        return xp.reshape(M, (groups, -1)), None
    w, U = eigenpairs(M)
    return xp.clip(w, min=0.0), U


def _split(a, g, lam, mode):
    """Return the dampings (groups, 1) of A and of G that have the product `lam` in every group."""
    xp = array_namespace(a)
    mean_a, mean_g = (xp.mean(X if mode == "pi" else X**2, axis=-1, keepdims=True) for X in (a, g))
    usable, one = (mean_a > 0) & (mean_g > 0), xp.ones_like(mean_a)
    ratio = xp.sqrt(xp.where(usable, mean_a, one) / xp.where(usable, mean_g, one))
    ratio = ratio if mode == "pi" else xp.sqrt(ratio)
    gamma = scalar_like(lam, ratio) ** 0.5
    return ratio * gamma, gamma / ratio
