"""A block of the Fisher matrix in a module: its gradient and weights as one matrix, and the statistics of a batch."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class Statistics(NamedTuple):
    """Factors of a block from one batch, or from several that are pooled.

    Attributes
    ----------
    A : Tensor, shape (p, p), (p,) or (m, p, p), or None
        Input factor, its diagonal, or those of m groups; None for normalisation layers, and where factors are not
        wanted.
    G : Tensor, shape (q, q), (q,), (m, q, q) or (q, k, k), or None
        Output factor, its diagonal, those of m groups, or the blocks of a normalisation layer.
    count : int
        Number of inputs over which `A` averages.
    scale : Tensor, shape (q, p), or None
        Second moments in the eigenbasis, for EKFAC.
    rows : (Tensor, Tensor) or None
        Inputs (N, R, p) with the 1 of the bias, and derivatives (N, R, q) of a loss with one term, for methods that
        want them one by one; see `Sharing`.
    """

    A: Any
    G: Any
    count: int = 1
    scale: Any = None
    rows: Any = None

    def unscaled(self, scale):
        """Return the statistics of a loss of which `scale` times the derivatives were taken."""
        square = scale * scale
        rows = None if self.rows is None else (self.rows[0], self.rows[1] / scale)
        G = None if self.G is None else self.G / square
        return self._replace(G=G, scale=None if self.scale is None else self.scale / square, rows=rows)


class Block:
    """Weights that share a Kronecker factored block: those of a layer, or of one group of a convolution.

    Where a convolution has many groups, one block has the factors of all of them as stacks.

    Attributes
    ----------
    name : str
        Name of the module, with ``[group]`` where a convolution has several.
    kind : {"linear", "conv", "embedding", "norm"}
        Kind of the module.
    groups : int
        Number of factors in a stack, 1 for a block that is none.
    q, p : int
        Shape of the weights as a matrix, the bias as last column. An embedding has its vectors as columns; a
        normalisation layer one row, (scale, shift), for each channel.
    """

    def __init__(self, name, kind, weight, bias, rows=None, groups=1):
        self.name, self.kind, self.weight_parameter, self.bias_parameter, self._rows = name, kind, weight, bias, rows
        self.groups = groups
        shape = weight.shape if rows is None else (rows.stop - rows.start, *weight.shape[1:])
        if kind == "norm":
            self.q, width = weight.numel(), 1
        else:
            self.q, width = shape[0], weight[0].numel()
        if kind == "embedding":
            self.q, width = width, self.q
        self.p = width + (bias is not None)

    def __repr__(self):
        return f"Block({self.name!r}, {self.kind!r}, q={self.q}, p={self.p})"

    def parameters(self):
        """Return the parameters of which the block has a part: the weight, and the bias if there is one."""
        return [self.weight_parameter] if self.bias_parameter is None else [self.weight_parameter, self.bias_parameter]

    def views(self, tensors=None):
        """Return the parts of the parameters, or of tensors of their shapes, that belong to the block."""
        tensors = [p.detach() for p in self.parameters()] if tensors is None else tensors
        return [self.part(X) for X in tensors]

    def part(self, X):
        """Return the part of a tensor of the shape of a parameter that belongs to the block."""
        return X if self._rows is None else X[self._rows]

    def gradient(self, padding=0):
        """Return the gradient as a matrix (q, p), or None where the weight has none, with further columns of zeros."""
        if self.weight_parameter.grad is None:
            return None
        grads = [p.grad for p in self.parameters()]
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters(), grads, strict=True)]
        return self.matrix([g.to_dense() if g.is_sparse else g for g in grads], padding)

    def weight(self, padding=0):
        """Return the weights as a matrix (q, p), a copy where there is a bias, with further columns of zeros."""
        return self.matrix([p.detach() for p in self.parameters()], padding)

    def matrix(self, tensors, padding=0):
        """Return tensors of the shapes of the parameters as a matrix (q, p), with further columns of zeros."""
        W, *rest = self.views(tensors)
        parts = [W.T if self.kind == "embedding" else W.reshape(self.q, -1), *(X.reshape(self.q, 1) for X in rest)]
        if padding:
            parts.append(W.new_zeros(self.q, padding))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def pieces(self, V):
        """Return a matrix (q, p) as tensors of the shapes of `views`."""
        W = V if self.bias_parameter is None else V[:, :-1]
        W = W.T if self.kind == "embedding" else W
        shapes = [X.shape for X in self.views()]
        return (
            [W.reshape(shapes[0])] if self.bias_parameter is None else [W.reshape(shapes[0]), V[:, -1].view(shapes[1])]
        )

    def write_gradient(self, V):
        """Replace the gradient by a matrix (q, p)."""
        for p in self.parameters():
            if p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.to_dense()
        grads = [torch.empty_like(p) if p.grad is None else p.grad for p in self.parameters()]
        for place, piece, p in zip(self.views(grads), self.pieces(V), self.parameters(), strict=True):
            if p.grad is not None:  # a frozen bias keeps none
                place.copy_(piece)

    def write_weight(self, W):
        """Replace the weights by a matrix (q, p)."""
        for place, piece in zip(self.views(), self.pieces(W), strict=True):
            place.copy_(piece)


def pooled(parts):
    """Return the statistics of several passes as those of one: inputs averaged, output factors added.

    The output factor of a sum of losses is the sum of theirs; each carries the number of terms of its own loss.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    count = sum(part.count for part in parts)
    A = None if first.A is None else sum(part.A * (part.count / count) for part in parts)
    scales = [part.scale for part in parts]
    scale = None if any(S is None for S in scales) else sum(scales)
    G = None if first.G is None else sum(part.G for part in parts)
    rows = None
    if all(part.rows is not None for part in parts):
        rows = tuple(torch.cat(X) for X in zip(*_alike([part.rows for part in parts]), strict=True))
    return Statistics(A, G, count, scale, rows)


def _alike(rows):
    """Return inputs and derivatives that have the same gradients and, in all pairs, the same shapes but for N."""
    if len({(a.shape[1:], h.shape[1:]) for a, h in rows}) == 1:
        return rows
    if len({(a.shape[2], h.shape[2]) for a, h in rows}) == 1:  # positions of zeros add nothing
        most = max(a.shape[1] for a, _ in rows)
        return [tuple(F.pad(X, (0, 0, 0, most - X.shape[1])) for X in pair) for pair in rows]
    # Some are gradients already, as the inputs of a layer with one output.
    each = [(h.mT @ a).reshape(a.shape[0], 1, -1) for a, h in rows]
    return [(g, torch.ones_like(g[..., :1])) for g in each]
