"""Damping of Kronecker factors, and the preconditioned gradient."""

from array_api_compat import array_namespace, is_torch_array

from rnla._backend import eps_of
from rnla._rangefinder import check_choice
from rnla.optim._checks import at_least_single, check_damping, check_shape, check_square, real_arrays, scalar_like
from rnla.optim._representation import DampedInverse, FactorInverse
from rnla.optim._symmetric import eigenpairs, largest_eigenpair, symmetrised

MODES = ("pi", "pi-fro", "relative", "joint")
CHUNK_BYTES = 2**26  # of per-example gradients in memory at a time


def split_damping(A, G, lam, *, mode):
    """Split a damping of ``A kron G`` into one for each factor.

    Parameters
    ----------
    A, G : array, shape (p, p) and (q, q), or FactorInverse
        Symmetric positive semidefinite.
    lam : float or array, shape ()
        Damping, not negative.
    mode : {"pi", "pi-fro", "relative"}
        ``pi``: ``pi sqrt(lam)`` and ``sqrt(lam) / pi``, where ``pi**2`` is the ratio of the mean eigenvalues, or for
        ``pi-fro`` of the root mean square ones; 1 if one of them is zero. ``relative``: ``lam`` times the largest
        eigenvalue of each.

    Returns
    -------
    delta_A, delta_G : array, shape ()
        Dampings of A and of G.

    Raises
    ------
    ValueError
        If `lam`, `mode` or a shape is not one of the above.
    TypeError
        If a factor is no array.

    Notes
    -----
    No value is read. The largest eigenvalue of an array takes 10 products with it.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671, section 6.3.

    Examples
    --------
    >>> delta_A, delta_G = rnla.optim.split_damping(4 * np.eye(3), np.eye(2), 0.01, mode="pi")
    >>> float(delta_A), float(delta_G)
    (0.2, 0.05)
    """
    caller = "rnla.optim.split_damping"
    check_choice(mode, "mode", MODES[:3], caller)
    check_damping(lam, "lam", caller)
    for name, M in (("A", A), ("G", G)):
        if not isinstance(M, FactorInverse):
            real_arrays(caller, **{name: M})
            check_square(M, name, caller)
    if mode == "relative":
        return lam * _largest(A), lam * _largest(G)
    mean = _mean_square if mode == "pi-fro" else _mean
    a, g = mean(A), mean(G)
    xp = array_namespace(a, g)
    usable = (a > 0) & (g > 0)
    one = xp.ones_like(a)
    ratio = xp.sqrt(xp.where(usable, a, one) / xp.where(usable, g, one))
    gamma = xp.sqrt(scalar_like(lam, ratio))
    return ratio * gamma, gamma / ratio


def precondition(V, A, G, lam=None, *, mode="relative", scale=None):
    """Apply the damped inverse of a Kronecker product to a gradient in matrix form.

    Parameters
    ----------
    V : array, shape (q, p)
        Gradient of the weights of a layer, the bias as last column.
    A, G : array, FactorInverse or DampedInverse, dimensions p and q
        Factors. Arrays are inverted exactly.
    lam : float or array, shape (), optional
        Damping; left out where A and G are damped already.
    mode : {"relative", "pi", "pi-fro", "joint"}
        As for `split_damping`; ``joint``: ``(A kron G + lam I)^-1``, from eigenpairs or arrays.
    scale : array, shape (q, p), optional
        Second moments in the eigenbasis, from `ekfac_scale`, which replace the products of eigenvalues.

    Returns
    -------
    array, shape (q, p)
        ``(G + delta_G)^-1 V (A + delta_A)^-1``, or ``(A kron G + lam I)^-1 vec V`` in matrix form.

    Raises
    ------
    ValueError
        If an argument is not one of the above, or needs eigenpairs of a factor that has none.
    TypeError
        If an argument is no array.

    Notes
    -----
    Two thin products for each factor of low rank, ``4 p q (r_A + r_G)`` flops; no value is read.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671.
    .. [2] George et al., NeurIPS 2018, arXiv 1806.03884 (`scale`).

    Examples
    --------
    >>> V = np.array([[1.0, 2.0]])
    >>> rnla.optim.precondition(V, np.diag([1.0, 3.0]), np.eye(1), 1.0, mode="joint").tolist()
    [[0.5, 0.5]]
    """
    caller = "rnla.optim.precondition"
    real_arrays(caller, V=V)
    check_choice(mode, "mode", MODES, caller)
    if lam is None:
        if not (isinstance(A, DampedInverse) and isinstance(G, DampedInverse)):
            raise ValueError(f"{caller}: lam must be given where A and G are not damped; got None.")
        return _applied(V, A, G)
    check_damping(lam, "lam", caller)
    factors = []
    for name, M, size in (("A", A, V.shape[1]), ("G", G, V.shape[0])):
        if isinstance(M, DampedInverse):
            raise ValueError(f"{caller}: {name} is damped already: lam must be None; got {lam}.")
        if not isinstance(M, FactorInverse):
            real_arrays(caller, **{name: M})
            check_square(M, name, caller)
            M = _exact(M)
        if M.dim != size:
            raise ValueError(f"{caller}: {name} must have dimension {size} for V of shape {V.shape}; got {M.dim}.")
        factors.append(M)
    A, G = factors
    if scale is not None:
        return _scaled(V, A, G, lam, scale, caller)
    if mode == "joint":
        return _joint(V, A, G, lam, caller)
    delta_A, delta_G = split_damping(A, G, lam, mode=mode)
    return A.solve(G.solve(V, delta_G), delta_A, "right")


def ekfac_scale(h, a_bar, U_G, U_A, *, terms):
    """Compute the second moments of the gradients of single examples in a Kronecker-factored basis.

    Parameters
    ----------
    h : array, shape (N, q) or (N, R, q)
        Derivative of the reduced loss with respect to the outputs of the layer.
    a_bar : array, shape (N, p) or (N, R, p)
        Inputs, with the 1 of a bias.
    U_G, U_A : array, shape (q, q) and (p, p)
        Orthonormal bases.
    terms : int
        Number of terms that the loss averages over.

    Returns
    -------
    array, shape (q, p)
        ``terms * sum_n (U_G^T (sum_r h a^T) U_A)**2``, entry by entry: in this basis the diagonal nearest to the block.

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If an argument is no array.

    Notes
    -----
    For one position the product of two matrices of squares; else the gradients of a few examples at a time.

    References
    ----------
    .. [1] George et al., NeurIPS 2018, arXiv 1806.03884.

    Examples
    --------
    >>> rnla.optim.ekfac_scale(np.array([[2.0]]), np.array([[1.0, 3.0]]), np.eye(1), np.eye(2), terms=1).tolist()
    [[4.0, 36.0]]
    """
    caller = "rnla.optim.ekfac_scale"
    xp = real_arrays(caller, h=h, a_bar=a_bar, U_G=U_G, U_A=U_A)
    check_shape(a_bar, (*h.shape[:-1], U_A.shape[0]), "a_bar", caller)
    check_shape(h, (*h.shape[:-1], U_G.shape[0]), "h", caller)
    H, X = at_least_single(h) @ U_G, at_least_single(a_bar) @ U_A
    if h.ndim == 2:
        return (H**2).T @ X**2 * terms
    size = U_G.shape[1] * U_A.shape[1] * xp.finfo(H.dtype).bits // 8
    step, total = max(CHUNK_BYTES // size, 1), 0.0
    for start in range(0, h.shape[0], step):
        each = H[start : start + step, ...].mT @ X[start : start + step, ...]
        total = total + xp.sum(each**2, axis=0)
    return total * terms


def norm_solve(blocks, V, delta):
    """Apply the damped inverses of a stack of blocks of size 1 or 2, in closed form.

    Parameters
    ----------
    blocks : array, shape (c, k, k)
        Symmetric positive semidefinite, k = 1 or 2, as from `norm_factor`.
    V : array, shape (c, k)
        Gradients.
    delta : float or array, shape () or (c,)
        Damping, positive.

    Returns
    -------
    array, shape (c, k)
        ``(block + delta I)^-1`` times each gradient.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> rnla.optim.norm_solve(np.array([[[1.0, 0.0], [0.0, 3.0]]]), np.array([[2.0, 4.0]]), 1.0).tolist()
    [[1.0, 1.0]]
    """
    caller = "rnla.optim.norm_solve"
    xp = real_arrays(caller, blocks=blocks, V=V)
    check_damping(delta, "delta", caller)
    check_shape(V, blocks.shape[:2], "V", caller)
    if blocks.shape[1] == 1:
        return V / (blocks[:, :, 0] + delta)
    a, b, c = blocks[:, 0, 0] + delta, blocks[:, 0, 1], blocks[:, 1, 1] + delta
    size = xp.maximum(a, c)  # squares of small or large blocks would leave the range of the dtype
    a, b, c, v, w = a / size, b / size, c / size, V[:, 0] / size, V[:, 1] / size
    det = a * c - b * b
    return xp.stack([(c * v - b * w) / det, (a * w - b * v) / det], axis=1)


def _applied(V, A, G):
    """Return ``(G + delta_G)^-1 V (A + delta_A)^-1``, of two low-rank sides with one large product less than apart."""
    if A.U is None or G.U is None:
        return A.apply(G.apply(V), "right")
    xp = array_namespace(V)
    left, right = G.U.T @ V, V @ A.U
    right = G.base * right + G.U @ (G.weights[:, None] * (left @ A.U))
    # U_G (...) + (...) U_A^T as one product, whose result is the only large array besides the scaled V.
    tall = xp.concat([right * A.weights, G.U], axis=1)
    flat = xp.concat([A.U.T, (G.weights * A.base)[:, None] * left], axis=0)
    W, base = tall @ flat, A.base * G.base
    if is_torch_array(W):
        return W.addcmul_(V, base)  # without a matrix for the product
    W += base * V
    return W


def _exact(M):
    """Return all eigenpairs of an array as a factor."""
    if M.ndim == 1:
        return FactorInverse(None, M, M[0] * 0, M.shape[0], "diagonal")
    w, U = eigenpairs(symmetrised(M))
    w = array_namespace(w).clip(w, min=0.0)
    return FactorInverse(U, w, w[0], M.shape[0], "eigen")


def _rotations(A, G, caller):
    for name, M in (("A", A), ("G", G)):
        if M.kind == "dense":
            raise ValueError(f"{caller}: {name} must have eigenpairs (method='eigh' or low rank); got kind 'dense'.")
    return A, G


def _scaled(V, A, G, lam, scale, caller):
    """Divide by the second moments in the eigenbasis."""
    _rotations(A, G, caller)
    check_shape(scale, V.shape, "scale", caller)
    if "lowrank" in (A.kind, G.kind):
        raise ValueError(f"{caller}: scale must come with all eigenvectors of A and G (method='eigh').")
    W = V if A.U is None else V @ A.U
    W = (W if G.U is None else G.U.T @ W) / (scale + lam)
    W = W if G.U is None else G.U @ W
    return W if A.U is None else W @ A.U.T


def _joint(V, A, G, lam, caller):
    """Return ``(A kron G + lam I)^-1`` applied to V, for eigenpairs and low rank plus scaled identity alike.

    A side with all its eigenvectors is turned into a diagonal one. With ``c(x, y) = 1 / (x y + lam)`` a side of low
    rank has the value of its tail everywhere, and differences from it on its eigenvectors.
    """
    _rotations(A, G, caller)
    if "identity" in (A.kind, G.kind):
        return V
    xp = array_namespace(V)
    # Rounding of the largest product, as the damping of one factor has it.
    least = eps_of(xp, V.dtype) * A.lmax * G.lmax + float(xp.finfo(V.dtype).smallest_normal)
    lam = xp.maximum(scalar_like(lam, V), least)
    U_A, U_G = A.U, G.U
    if A.kind == "eigen":
        V = V @ U_A
    if G.kind == "eigen":
        V = U_G.T @ V
    a, g = A.lam, G.lam[:, None]
    if A.kind == "lowrank" and G.kind == "lowrank":
        right, left = V @ U_A, U_G.T @ V
        rest = 1 / (A.tail * G.tail + lam)
        only_a, only_g = 1 / (a * G.tail + lam), 1 / (A.tail * g + lam)
        core = (1 / (a * g + lam) - only_a - only_g + rest) * (left @ U_A)
        return rest * V + (right * (only_a - rest)) @ U_A.T + U_G @ ((only_g - rest) * left + core @ U_A.T)
    if G.kind == "lowrank":
        rest = 1 / (a * G.tail + lam)
        W = V * rest + U_G @ ((1 / (a * g + lam) - rest) * (U_G.T @ V))
    elif A.kind == "lowrank":
        rest = 1 / (A.tail * g + lam)
        W = V * rest + ((1 / (a * g + lam) - rest) * (V @ U_A)) @ U_A.T
    else:
        W = V / (a * g + lam)
    if G.kind == "eigen":
        W = U_G @ W
    return W @ U_A.T if A.kind == "eigen" else W


def _largest(M):
    if isinstance(M, FactorInverse):
        return M.lmax
    return array_namespace(M).max(M) if M.ndim == 1 else largest_eigenpair(M)[0]


def _mean(M):
    if isinstance(M, FactorInverse):
        return M.trace / M.dim
    xp = array_namespace(M)
    return xp.mean(M) if M.ndim == 1 else xp.linalg.trace(M) / M.shape[0]


def _mean_square(M):
    """Return the root mean square eigenvalue."""
    xp = array_namespace(M.lam if isinstance(M, FactorInverse) else M)
    if isinstance(M, FactorInverse):
        return xp.sqrt(M.square_norm / M.dim)
    return xp.linalg.vector_norm(M) / M.shape[0] ** 0.5
