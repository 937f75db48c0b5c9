"""KLD-WRM: steps that keep every old metric where it was measured (wake of regularised models)."""

from array_api_compat import array_namespace

from rnla._rangefinder import check_choice
from rnla.optim._checks import check_damping, check_rho, check_shape, real_arrays
from rnla.optim._kron import kron_sum_solve
from rnla.optim._precond import precondition, split_damping
from rnla.optim._symmetric import ridged


def kldwrm_gradient(g, g_prev, rho, lam_ratio, Bs_prev=None):
    """Compute the gradient of the model at the present point, if the step before was its exact minimiser.

    Parameters
    ----------
    g, g_prev : array, same shape
        Gradients of this step and the one before; `g_prev` None: the first step.
    rho : float
        Decay rate of the exponential average, in [0, 1).
    lam_ratio : float
        ``lam_k / lam_{k-1}``, which is ``lr_{k-1} / lr_k``.
    Bs_prev : array, same shape, optional
        Curvature of the model before times the step before, for the quadratic model (Q).

    Returns
    -------
    array
        ``g - rho lam_ratio (g_prev + Bs_prev)``.

    Raises
    ------
    ValueError
        If `rho` or a shape is not one of the above.
    TypeError
        If an argument is no array.

    References
    ----------
    .. [1] Puiu, ECML-PKDD 2022, arXiv 2204.04718.

    Examples
    --------
    >>> rnla.optim.kldwrm_gradient(np.array([1.0]), np.array([2.0]), 0.25, 1.0).tolist()
    [0.5]
    """
    caller = "rnla.optim.kldwrm_gradient"
    real_arrays(caller, g=g, g_prev=g_prev, Bs_prev=Bs_prev)
    check_rho(rho, caller)
    if g_prev is None:
        return g
    check_shape(g_prev, g.shape, "g_prev", caller)
    return g - rho * lam_ratio * (g_prev if Bs_prev is None else g_prev + Bs_prev)


def kldwrm_residual(r_prev, Fs_prev, rho):
    """Compute ``r_k = sum_i kappa_i rho^(k-i) F_i (theta_k - theta_i)`` from the one before, for steps of any kind.

    Parameters
    ----------
    r_prev : array
        Residual of the step before, 0 at the beginning.
    Fs_prev : array, same shape
        Averaged Fisher matrix of the step before times the step that was taken.
    rho : float
        Decay rate of the exponential average, in [0, 1).

    Returns
    -------
    array
        ``rho (r_prev + Fs_prev)``; the gradient of the model is ``g + lam r``.

    Raises
    ------
    ValueError
        If `rho` or a shape is not one of the above.
    TypeError
        If an argument is no array.

    References
    ----------
    .. [1] Puiu, ECML-PKDD 2022, arXiv 2204.04718.

    Examples
    --------
    >>> rnla.optim.kldwrm_residual(np.array([1.0]), np.array([3.0]), 0.5).tolist()
    [2.0]
    """
    caller = "rnla.optim.kldwrm_residual"
    real_arrays(caller, r_prev=r_prev, Fs_prev=Fs_prev)
    check_rho(rho, caller)
    check_shape(Fs_prev, r_prev.shape, "Fs_prev", caller)
    return rho * (r_prev + Fs_prev)


def kldwrm_step(g, A_bar, G_bar, A, G, lam, damping=0.0, *, mode="relative", solver="kron_sum"):
    """Compute the step of the quadratic model (Q) for a layer: ``-(lam A_bar kron G_bar + A kron G)^-1 g``.

    Parameters
    ----------
    g : array, shape (q, p)
        Gradient of the model, from `kldwrm_gradient` or `kldwrm_residual`.
    A_bar, G_bar : array, shape (p, p) and (q, q)
        Averaged factors.
    A, G : array, shape (p, p) and (q, q)
        Factors of this batch alone, the curvature of the model.
    lam : float
        Inverse of the learning rate, positive.
    damping : float
        Added to the averaged factors.
    mode : {"relative", "pi", "pi-fro"}
        How it is split, as for `split_damping`.
    solver : {"kron_sum", "factor_sum"}
        ``kron_sum``: exactly. ``factor_sum``: with ``(A_bar + A / lam) kron (G_bar + G / lam)``, as published.

    Returns
    -------
    array, shape (q, p)
        The step.

    Raises
    ------
    ValueError
        If an argument is not one of the above.
    TypeError
        If an argument is no array.

    Notes
    -----
    ``O(p**3 + q**3)``.

    Examples
    --------
    >>> I = np.eye(2)
    >>> rnla.optim.kldwrm_step(np.ones((2, 2)), I, I, I, I, 3.0)[0, 0].round(6).item()
    -0.25
    """
    caller = "rnla.optim.kldwrm_step"
    real_arrays(caller, g=g, A_bar=A_bar, G_bar=G_bar, A=A, G=G)
    check_choice(solver, "solver", ("kron_sum", "factor_sum"), caller)
    check_choice(mode, "mode", ("relative", "pi", "pi-fro"), caller)
    check_damping(damping, "damping", caller)
    if not lam > 0:
        raise ValueError(f"{caller}: lam must be positive; got {lam}.")
    if solver == "factor_sum":
        return -precondition(g, A_bar + A / lam, G_bar + G / lam, damping, mode=mode) / lam
    delta_A, delta_G = split_damping(A_bar, G_bar, damping, mode=mode)
    return -kron_sum_solve(ridged(A_bar, delta_A), ridged(G_bar, delta_G), A / lam, G, g) / lam


def symmetric_kl(logits_p, logits_q):
    """Compute the symmetric Kullback-Leibler divergence of softmax outputs, averaged over the examples.

    Parameters
    ----------
    logits_p, logits_q : array, shape (N, c)
        Outputs before the softmax.

    Returns
    -------
    array, shape ()
        Mean of ``sum (p - q) (log p - log q) / 2``.

    Raises
    ------
    ValueError
        If the shapes differ.
    TypeError
        If an argument is no array.

    Examples
    --------
    >>> z = np.array([[0.0, 1000.0]])
    >>> float(rnla.optim.symmetric_kl(z, z)), float(rnla.optim.symmetric_kl(z, -z))
    (0.0, 1000.0)
    """
    caller = "rnla.optim.symmetric_kl"
    xp = real_arrays(caller, logits_p=logits_p, logits_q=logits_q)
    check_shape(logits_q, logits_p.shape, "logits_q", caller)
    log_p, log_q = log_softmax(logits_p), log_softmax(logits_q)
    return xp.mean(xp.sum((xp.exp(log_p) - xp.exp(log_q)) * (log_p - log_q), axis=-1)) / 2


def symmetric_kl_gradient(logits_p, logits_q):
    """Compute the derivative of `symmetric_kl` with respect to `logits_q`.

    Parameters
    ----------
    logits_p, logits_q : array, shape (N, c)
        Outputs before the softmax.

    Returns
    -------
    array, shape (N, c)
        Derivative of the mean.

    Raises
    ------
    ValueError
        If the shapes differ.
    TypeError
        If an argument is no array.

    Examples
    --------
    >>> rnla.optim.symmetric_kl_gradient(np.zeros((1, 2)), np.zeros((1, 2))).tolist()
    [[0.0, 0.0]]
    """
    caller = "rnla.optim.symmetric_kl_gradient"
    xp = real_arrays(caller, logits_p=logits_p, logits_q=logits_q)
    check_shape(logits_q, logits_p.shape, "logits_q", caller)
    log_p, log_q = log_softmax(logits_p), log_softmax(logits_q)
    p, q = xp.exp(log_p), xp.exp(log_q)
    ratio = log_q - log_p
    centred = ratio - xp.sum(q * ratio, axis=-1, keepdims=True)
    return (q - p + q * centred) / (2 * logits_p.shape[0])


def log_softmax(z):
    """Return the logarithm of the softmax of every row."""
    xp = array_namespace(z)
    z = z - xp.max(z, axis=-1, keepdims=True)
    return z - xp.log(xp.sum(xp.exp(z), axis=-1, keepdims=True))
