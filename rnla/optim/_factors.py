"""Kronecker factors of the Fisher matrix of a layer, and their exponential average."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace, device, is_array_api_obj

from rnla._rangefinder import check_choice
from rnla.optim._checks import at_least_single, check_rho, check_shape, real_arrays, scalar_like
from rnla.optim._symmetric import symmetrised

APPROX = ("expand", "reduce")


def input_factor(a, *, bias=False, approx="expand"):
    """Compute the factor ``A = E[a a^T]`` of the inputs of a layer, with a 1 appended to `a` where it has a bias.

    Parameters
    ----------
    a : array, shape (N, d) or (N, R, d)
        Inputs for N examples, at R positions each at which the weight is used.
    bias : bool
        Whether the layer has a bias; its 1 comes last.
    approx : {"expand", "reduce"}
        ``expand``: every position counts as an example. ``reduce``: the mean over the positions is the input.

    Returns
    -------
    array, shape (p, p)
        Symmetric; ``p = d + bias``; in single precision where the inputs have less.

    Raises
    ------
    ValueError
        If a shape, a dtype or `approx` is not one of the above.
    TypeError
        If `a` is no array.

    Notes
    -----
    ``N R p**2`` multiplications; a copy of `a` only for ``reduce`` and for half precision.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671.
    .. [2] Eschenhagen et al., NeurIPS 2023, arXiv 2311.00636 (expand and reduce).

    Examples
    --------
    >>> rnla.optim.input_factor(np.array([[1.0, 2.0], [3.0, 0.0]]), bias=True).tolist()
    [[5.0, 1.0, 2.0], [1.0, 2.0, 1.0], [2.0, 1.0, 1.0]]
    """
    caller = "rnla.optim.input_factor"
    X = _rows(a, "a", approx, "mean", caller)
    xp, count = array_namespace(X), X.shape[0]
    A = symmetrised(X.T @ X) / count
    if not bias:
        return A
    mean = xp.mean(X, axis=0)[:, None]
    one = xp.ones((1, 1), dtype=A.dtype, device=device(A))
    return xp.concat([xp.concat([A, mean], axis=1), xp.concat([mean.T, one], axis=1)], axis=0)


def output_factor(h, *, terms, approx="expand"):
    """Compute the factor ``G = E[g g^T]`` of the gradients at the output of a layer.

    Parameters
    ----------
    h : array, shape (N, q) or (N, R, q)
        Derivative of the loss, as reduced, with respect to the outputs: it contains ``1 / terms``.
    terms : int
        Number of terms that the loss averages over: N for a mean over the batch, N times the number of output positions
        for a mean over both, 1 for a sum.
    approx : {"expand", "reduce"}
        ``expand``: every position counts as an example. ``reduce``: the derivatives are summed over the positions.

    Returns
    -------
    array, shape (q, q)
        ``terms * sum h h^T``, symmetric.

    Raises
    ------
    ValueError
        If a shape, a dtype, `terms` or `approx` is not one of the above.
    TypeError
        If `h` is no array.

    Notes
    -----
    ``N R q**2`` multiplications.

    Examples
    --------
    >>> h = np.array([[1.0, -1.0], [0.0, 2.0]]) / 2  # of a loss averaged over two examples
    >>> rnla.optim.output_factor(h, terms=2).tolist()
    [[0.5, -0.5], [-0.5, 2.5]]
    """
    caller = "rnla.optim.output_factor"
    X = _rows(h, "h", approx, "sum", caller)
    if not is_array_api_obj(terms) and not terms > 0:
        raise ValueError(f"{caller}: terms must be positive; got {terms}.")
    return symmetrised(X.T @ X) * terms


def token_frequencies(tokens, vocabulary, *, padding=None, dtype=None):
    """Compute the diagonal of the input factor of an embedding: the share of each token.

    Parameters
    ----------
    tokens : integer array, any shape
        Indices in ``0..vocabulary - 1``.
    vocabulary : int
        Number of rows of the embedding.
    padding : int, optional
        Token whose share is set to zero.
    dtype : dtype, optional
        Floating dtype of the result; single precision by default.

    Returns
    -------
    array, shape (vocabulary,)
        Relative frequencies.

    Raises
    ------
    ValueError
        If `tokens` is not of integers.

    Notes
    -----
    A sort, and ``vocabulary`` binary searches; the (vocabulary, vocabulary) matrix is never formed.

    Examples
    --------
    >>> rnla.optim.token_frequencies(np.array([[0, 2], [2, 3]]), 4).tolist()
    [0.25, 0.0, 0.5, 0.25]
    """
    xp = array_namespace(tokens)
    if not xp.isdtype(tokens.dtype, "integral"):
        raise ValueError(f"rnla.optim.token_frequencies: tokens must be integers; got dtype {tokens.dtype}.")
    flat = xp.sort(xp.reshape(tokens, (-1,)))
    each = xp.arange(vocabulary, dtype=flat.dtype, device=device(flat))
    counts = xp.searchsorted(flat, each, side="right") - xp.searchsorted(flat, each, side="left")
    share = xp.astype(counts, dtype or xp.float32) / flat.shape[0]
    return share if padding is None else xp.where(each == padding, xp.zeros_like(share), share)


def norm_factor(x, h, *, terms, shift=True):
    """Compute the Fisher blocks of the scale and shift of a normalisation layer, one for each channel.

    Parameters
    ----------
    x : array, shape (N, c) or (N, R, c)
        Normalised inputs, before scale and shift.
    h : array, same shape
        Derivative of the reduced loss with respect to the outputs.
    terms : int
        Number of terms that the loss averages over.
    shift : bool
        Whether the layer has a shift.

    Returns
    -------
    array, shape (c, 2, 2), or (c, 1, 1) without shift
        ``terms * sum_n g_n g_n^T`` with ``g_n = (sum_r x h, sum_r h)``.

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    ``O(N R c)``.

    Examples
    --------
    >>> rnla.optim.norm_factor(np.array([[1.0], [2.0]]), np.array([[1.0], [-1.0]]), terms=1)[0].tolist()
    [[5.0, 3.0], [3.0, 2.0]]
    """
    caller = "rnla.optim.norm_factor"
    xp = real_arrays(caller, x=x, h=h)
    check_shape(h, x.shape, "h", caller)
    x, h = at_least_single(x), at_least_single(h)
    middle = tuple(range(1, h.ndim - 1))
    parts = [x * h, h] if shift else [x * h]
    g = xp.stack([xp.sum(X, axis=middle) if middle else X for X in parts], axis=-1)  # (N, c, 2)
    g = xp.permute_dims(g, (1, 2, 0))
    return (g @ g.mT) * terms


def ema_update(prev, new, rho, count, *, mode="const"):
    """Compute the next exponential average ``rho_k prev + (1 - rho_k) new``; drop a `new` that is not finite.

    Parameters
    ----------
    prev : array or None
        Average so far; None: there is none, and the result is `new`.
    new : array, same shape
        Next term.
    rho : float
        Decay rate in [0, 1).
    count : int or array, shape ()
        Number of terms in `prev`.
    mode : {"const", "warmup"}
        ``const``: ``rho_k = rho``, so that the weights are ``rho**k, (1 - rho) rho**(k - 1), ..., 1 - rho``.
        ``warmup``: ``rho_k = min(1 - 1 / (count + 1), rho)``, a plain mean at the beginning.

    Returns
    -------
    array
        In the dtype of `prev`, or of `new` if that is at least single precision.

    Raises
    ------
    ValueError
        If `rho`, `mode` or a shape is not one of the above.

    Notes
    -----
    No value is read, so nothing waits for an accelerator. A `new` that is dropped leaves `prev`, or zeros without one.

    Examples
    --------
    >>> M = rnla.optim.ema_update(None, np.eye(2), 0.9, 0)
    >>> rnla.optim.ema_update(M, 2 * np.eye(2), 0.9, 1)[0, 0].round(6).item()
    1.1
    """
    caller = "rnla.optim.ema_update"
    xp = real_arrays(caller, prev=prev, new=new)
    check_rho(rho, caller)
    check_choice(mode, "mode", ("const", "warmup"), caller)
    new = at_least_single(new)
    usable = _usable(new)
    if prev is None:
        return xp.where(usable, new, xp.zeros_like(new))
    check_shape(new, prev.shape, "new", caller)
    new = xp.astype(new, prev.dtype)
    return xp.where(usable, prev + _share(rho, count, mode, prev) * (new - prev), prev)


class FactorStats(NamedTuple):
    """Exponential average of a factor, with what became of its terms.

    Attributes
    ----------
    matrix : array or None
        Average: (d, d), the diagonal (d,), or a stack of blocks (c, 2, 2); None before the first term.
    count : array, shape (), or 0
        Number of terms that were used.
    skipped : array, shape (), or 0
        Number of terms that were dropped because they had a NaN or an infinity.
    identity : array, shape (), or float
        Weight of the identity with which the average started, to be added to the damping: 0, or with
        ``FactorStats(identity=1.0)`` the product of all decay rates. It is not in `matrix`, which keeps its low rank.

    Examples
    --------
    >>> stats = rnla.optim.FactorStats().update(np.eye(2), 0.9).update(3 * np.eye(2), 0.9)
    >>> stats.matrix[0, 0].round(6).item(), int(stats.count)
    (1.2, 2)
    """

    matrix: Any = None
    count: Any = 0
    skipped: Any = 0
    identity: Any = 0.0

    def update(self, new, rho, *, mode="const"):
        """Return the statistics with one more term; see `ema_update`."""
        caller = "rnla.optim.FactorStats.update"
        xp = real_arrays(caller, new=new)
        check_rho(rho, caller)
        check_choice(mode, "mode", ("const", "warmup"), caller)
        new = at_least_single(new)
        if new.ndim > 1:  # whatever rounding, or a sum over machines, has made of it
            new = symmetrised(new)
        usable, started = _usable(new), type(self.identity) is not float or self.identity != 0.0
        prev = self.matrix
        if prev is None:
            prev = xp.zeros_like(new)
        check_shape(new, prev.shape, "new", caller)
        new = xp.astype(new, prev.dtype)
        used = xp.astype(usable, prev.dtype)
        if started:  # the identity is the zeroth term
            share = 1 - scalar_like(rho, prev) if mode == "const" else _share(rho, self.count, mode, prev)
            identity = scalar_like(self.identity, prev) * (1 - share * used)
        else:
            share, identity = _share(rho, self.count, mode, prev), 0.0
        matrix = xp.where(usable, prev + share * (new - prev), prev)
        one = xp.astype(usable, xp.int64)
        return FactorStats(matrix, self.count + one, self.skipped + (1 - one), identity)


def _rows(X, name, approx, reduce, caller):
    """Return the inputs or output gradients as rows that count as one example each."""
    xp = real_arrays(caller, **{name: X})
    check_choice(approx, "approx", APPROX, caller)
    if X.ndim not in (2, 3) or 0 in X.shape:
        raise ValueError(f"{caller}: {name} must have shape (N, d) or (N, R, d), none of them 0; got {tuple(X.shape)}.")
    X = at_least_single(X)
    if X.ndim == 2:
        return X
    if approx == "expand":
        return xp.reshape(X, (-1, X.shape[2]))
    return xp.mean(X, axis=1) if reduce == "mean" else xp.sum(X, axis=1)


def _usable(new):
    # A sum that overflows although every entry is finite counts as not finite: such a factor has no use.
    xp = array_namespace(new)
    return xp.isfinite(xp.sum(new))


def _share(rho, count, mode, like):
    """Return the weight of the new term, 1 for the first one."""
    xp = array_namespace(like)
    count = scalar_like(count, like)
    share = xp.where(count == 0, xp.ones_like(count), 1 - scalar_like(rho, like))
    return share if mode == "const" else xp.maximum(1 / (count + 1), share)
