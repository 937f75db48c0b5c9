"""Products with the root of a diagonal-plus-low-rank matrix, differentiable in the matrix and the vector."""

from typing import NamedTuple

from rnla._rangefinder import check_number
from rnla._rational import node_count, zolotarev_nodes

try:
    import torch
except ImportError as error:
    raise ImportError("rnla.torch: needs PyTorch: pip install 'rnla[torch]'") from error

CALLER = "rnla.torch.sqrt_matvec"


def sqrt_matvec(d, Z, b, inverse=False, tol=None):
    """Return ``W^(1/2) b`` for ``W = diag(d) + Z Z^T``, with derivatives in d, Z and b.

    For samplers inside an objective: with b standard normal, the product is a Gaussian vector of covariance W (of
    precision W for the inverse root) as a smooth function of the parameters. Derivatives are sums over the same nodes
    as the product, at the cost of one more product; nothing of size n x n is formed.

    Parameters
    ----------
    d : Tensor, shape (n,)
        Positive diagonal.
    Z : Tensor, shape (n, k)
        Columns.
    b : Tensor, shape (n,) or (n, c)
        Vectors.
    inverse : bool
        Multiply by ``W^(-1/2)`` instead.
    tol : float, optional
        Precision relative to the norm of the root; 1e-8 in double and 1e-6 in single precision.

    Returns
    -------
    Tensor
        Of the shape of `b`. It can be differentiated once.

    Raises
    ------
    ValueError
        If a shape is wrong, or `d` is not positive.
    TypeError
        If a dtype is not real floating, or dtypes differ.

    See Also
    --------
    rnla.sqrt_update : The root itself.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import sqrt_matvec
    >>> d, Z = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.zeros(2, 1, dtype=torch.float64)
    >>> y = sqrt_matvec(d, Z, torch.tensor([2.0, 4.0], dtype=torch.float64))
    >>> y.sum().backward()
    >>> [round(x, 6) for x in d.grad.tolist()]
    [1.0, 2.0]
    """
    _check(d, Z, b)
    if tol is None:
        tol = 1e-6 if d.dtype == torch.float32 else 1e-8
    check_number(tol, "tol", CALLER)
    if not 0 < tol < 1:
        raise ValueError(f"{CALLER}: tol must be in (0, 1); got {tol}.")
    y = _Product.apply(d, Z, b[:, None] if b.ndim == 1 else b, bool(inverse), float(tol))
    return y[:, 0] if b.ndim == 1 else y


class _Product(torch.autograd.Function):
    """``sum w (b - tau (W + tau)^-1 b)``, or ``sum w (W + tau)^-1 b`` for the inverse."""

    @staticmethod
    def forward(ctx, d, Z, b, inverse, tol):
        low = float(d.min())
        high = float(d.max()) + float(torch.linalg.matrix_norm(Z, 2)) ** 2 if Z.shape[1] else float(d.max())
        tau, w = zolotarev_nodes(low, high, n_nodes=node_count(high / low, tol))
        ctx.save_for_backward(d, Z, b)
        ctx.nodes, ctx.inverse = list(zip(tau.tolist(), w.tolist(), strict=True)), inverse
        return _product(d, Z, b, ctx.nodes, inverse)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        d, Z, b = ctx.saved_tensors
        d_bar, Z_bar, b_bar = torch.zeros_like(d), torch.zeros_like(Z), torch.zeros_like(b)
        for tau, w in ctx.nodes:
            node = _node(d, Z, tau)
            u, v = _solve(node, g), _solve(node, b)
            # W-bar is the sum of c u v^T; of a symmetric matrix only its symmetric part counts.
            c = -w if ctx.inverse else w * tau
            d_bar += c * (u * v).sum(dim=1)
            Z_bar += c * (u @ (v.T @ Z) + v @ (u.T @ Z))
            b_bar += w * (u if ctx.inverse else g - tau * u)
        return d_bar, Z_bar, b_bar, None, None


class _Node(NamedTuple):
    """Factors of ``W + tau`` by Woodbury's formula."""

    scale: torch.Tensor  # (n, 1): 1 / (d + tau)
    Y: torch.Tensor  # (n, k): (diag(d) + tau)^-1 Z
    Z: torch.Tensor
    factor: torch.Tensor  # (k, k): Cholesky factor of I + Z^T Y


def _node(d, Z, tau):
    scale = (1 / (d + tau))[:, None]
    Y = scale * Z
    K = torch.eye(Z.shape[1], dtype=Z.dtype, device=Z.device) + Z.T @ Y
    return _Node(scale, Y, Z, torch.linalg.cholesky(K))


def _solve(node, b):
    x = node.scale * b
    return x - node.Y @ torch.cholesky_solve(node.Z.T @ x, node.factor)


def _product(d, Z, b, nodes, inverse):
    total = torch.zeros_like(b)
    for tau, w in nodes:
        x = _solve(_node(d, Z, tau), b)
        total += w * (x if inverse else b - tau * x)
    return total


def _check(d, Z, b):
    for name, X in (("d", d), ("Z", Z), ("b", b)):
        if not isinstance(X, torch.Tensor) or X.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{CALLER}: {name} must be a tensor of float32 or float64; got {getattr(X, 'dtype', type(X))}."
            )
        if X.dtype != d.dtype:
            raise TypeError(f"{CALLER}: {name} must have the dtype of d, {d.dtype}; got {X.dtype}.")
    n = d.shape[0] if d.ndim == 1 else 0
    if n == 0 or Z.ndim != 2 or Z.shape[0] != n or b.ndim not in (1, 2) or b.shape[0] != n:
        raise ValueError(
            f"{CALLER}: d, Z and b must have shapes (n,), (n, k) and (n,) or (n, c); got {tuple(d.shape)}, "
            f"{tuple(Z.shape)} and {tuple(b.shape)}."
        )
    if not bool((d > 0).all()) or not all(bool(torch.isfinite(X).all()) for X in (d, Z, b)):
        raise ValueError(f"{CALLER}: d must be positive, and d, Z and b finite.")
