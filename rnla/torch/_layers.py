"""Modules seen as linear layers: which inputs their weights meet, and what a batch says of their Fisher blocks."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from rnla.optim import (
    conv_input_factor,
    ekfac_scale,
    input_factor,
    norm_factor,
    output_factor,
    token_frequencies,
    unfold1d,
    unfold2d,
)
from rnla.optim._seng import example_rows
from rnla.torch._blocks import Block, Statistics, pooled

PATCH_BYTES = 2**28


class Sharing(NamedTuple):
    """How statistics treat the positions at which a weight is used, and how large a factor may be.

    Attributes
    ----------
    approx : {"expand", "reduce"}
        As for `rnla.optim.input_factor`.
    max_positions : int or None
        Random subset of the positions that is used.
    patch_bytes : int
        Most memory that patches take at a time.
    max_dim : int
        Larger factors are diagonal.
    batch_dim : int
        Dimension of the inputs of linear layers that counts the examples.
    keep : {None, "rows", "flat", "gradients"}
        Return inputs and derivatives one by one as well: of examples and positions; of either as one, N R of them, or N
        with `approx` "reduce"; or those of few positions that give the gradients of the examples.
    factors : bool
        Return the factors.
    """

    approx: str = "expand"
    max_positions: int | None = None
    patch_bytes: int = PATCH_BYTES
    max_dim: int = 8192
    batch_dim: int = 0
    keep: str | None = None
    factors: bool = True


class Layer:
    """A module, or several that share their weights, as one linear layer; `blocks` are its parts."""

    kind, grouped = "linear", False

    def __init__(self, name, module, weight, bias):
        self.name, self.modules, self.weight, self.bias = name, [module], weight, bias
        self.groups = getattr(module, "groups", 1) if self.kind == "conv" else 1
        if self.groups == 1 or self.grouped:
            self.blocks = [Block(name, self.kind, weight, bias, groups=self.groups)]
        else:
            size = weight.shape[0] // self.groups
            rows = [slice(i * size, (i + 1) * size) for i in range(self.groups)]
            self.blocks = [Block(f"{name}[{i}]", self.kind, weight, bias, part) for i, part in enumerate(rows)]

    def batched(self, x):
        """Say whether an input has a dimension that counts the examples."""
        return x.ndim > 1

    def examples(self, x, output, sharing):
        """Return the numbers of examples and of positions of a call."""
        if x.ndim == 1:
            return 1, 1
        N = x.shape[sharing.batch_dim if x.ndim > 2 else 0]
        return N, x.shape[:-1].numel() // max(N, 1)

    def stacked(self, hs, sharing):
        """Return several derivatives for one input as those of several batches."""
        if len(hs) == 1:
            return hs[0]
        if hs[0].ndim == 1:
            return torch.stack(hs)
        return torch.cat(hs, dim=sharing.batch_dim if hs[0].ndim > 2 else 0)

    def rows(self, module, x, h, sharing):
        """Return inputs (N, R, p), without the 1 of the bias, and derivatives (N, R, q)."""
        x, h = (X[None] if X.ndim == 1 else X for X in (x, h))
        if x.ndim > 2:
            x, h = (X.movedim(sharing.batch_dim, 0) for X in (x, h))
        return x.reshape(x.shape[0], -1, x.shape[-1]), h.reshape(h.shape[0], -1, h.shape[-1])

    def statistics(self, calls, sharing, terms, bases, rng):
        """Return the statistics of every block.

        Parameters
        ----------
        calls : list of (module, Tensor, Tensor)
            Module, input and derivative of the loss at the output, for every call in a pass.
        sharing : Sharing
            Treatment of the positions.
        terms : float
            Number of terms that the loss averages over.
        bases : list of (Tensor, Tensor) or None
            Eigenvectors of G and of A of every block for which second moments are wanted.
        rng : numpy.random.Generator
            Source of the subset of positions.
        """
        parts = [self.rows(module, x, h, sharing) for module, x, h in calls]
        dim = 1
        if len({a.shape[0] for a, _ in parts}) > 1:  # different batches: every row is an example
            dim, parts = (
                0,
                [(_repeated(a, h).reshape(-1, 1, a.shape[2]), h.reshape(-1, 1, h.shape[2])) for a, h in parts],
            )
        a, h = (X[0] if len(X) == 1 else torch.cat(X, dim=dim) for X in zip(*parts, strict=True))
        return [self._block(i, a, h, sharing, terms, bases[i], rng) for i in range(len(self.blocks))]

    def _block(self, i, a, h, sharing, terms, basis, rng):
        """Return the statistics of one group from rows."""
        a, h = self._group(i, a, h)
        chosen, A, G = (a, h, terms), None, None
        if sharing.approx == "expand" and _too_many(a, sharing):
            chosen = _subset(a, h, terms, sharing.max_positions, rng)
        if sharing.factors:
            A = self.input_factor(chosen[0], sharing)
            G = factor(
                chosen[1], sharing, lambda h, approx: output_factor(h, terms=chosen[2], approx=approx), chosen[2]
            )
        scale, rows, count = None, None, a.shape[0] * (a.shape[1] if sharing.approx == "expand" else 1)
        if basis is not None or sharing.keep is not None:
            a_bar = self.with_one(_repeated(a, h))
            if basis is not None:
                scale = _moments(h, a_bar, basis, terms)
            if sharing.keep is not None:
                rows = _kept(a_bar, h * terms**0.5, sharing)
        return Statistics(A, G, count, scale, rows)

    def input_factor(self, a, sharing):
        """Return the input factor of rows, or its diagonal where it is too large."""
        bias = self.bias is not None
        if a.shape[2] + bias <= sharing.max_dim:
            return input_factor(_flat(a), bias=bias, approx=sharing.approx)
        return factor(self.with_one(a), sharing, None, 1 / a.shape[0], mean=True)

    def with_one(self, a):
        """Return the rows with the 1 of a bias."""
        return a if self.bias is None else F.pad(a, (0, 1), value=1.0)

    def _group(self, i, a, h):
        if self.groups == 1:
            return a, h
        p, q = a.shape[2] // self.groups, h.shape[2] // self.groups
        return a[:, :, i * p : (i + 1) * p], h[:, :, i * q : (i + 1) * q]


class ConvLayer(Layer):
    """A convolution, the weights of which are used at every output position."""

    kind = "conv"

    def _options(self, module):
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        return {name: getattr(module, name) for name in names}

    def batched(self, x):
        """Say whether an input has a dimension that counts the examples."""
        return x.ndim == self.weight.ndim

    def _batched(self, x):
        return x if self.batched(x) else x[None]

    def stacked(self, hs, sharing):
        """Return several derivatives for one input as those of several batches."""
        return hs[0] if len(hs) == 1 else torch.cat([self._batched(h) for h in hs])

    def examples(self, x, output, sharing):
        """Return the numbers of examples and of output positions of a call."""
        output = self._batched(output)
        return output.shape[0], output.shape[2:].numel()

    def rows(self, module, x, h, sharing):
        """Return patches (N, T, p) and derivatives (N, T, q)."""
        unfold = unfold2d if self.weight.ndim == 4 else unfold1d
        return unfold(self._batched(x), **self._options(module)), self._derivatives(h)

    def _derivatives(self, h):
        return self._batched(h).flatten(2).mT

    def statistics(self, calls, sharing, terms, bases, rng):
        """Return the statistics of every block, patches of a few images at a time; see `Layer.statistics`."""
        wanted = any(basis is not None for basis in bases) or sharing.keep is not None
        small = self.blocks[0].p <= sharing.max_dim
        module, x, h = calls[0]
        few = not (sharing.max_positions and sharing.approx == "expand")
        if len(calls) == 1 and small and few and not wanted:
            return self._whole(module, x, h, sharing, terms)
        if len(calls) > 1:
            return super().statistics(calls, sharing, terms, bases, rng)
        return self._chunks(module, x, h, sharing, terms, bases, rng)

    def _whole(self, module, x, h, sharing, terms):
        x, h = self._batched(x), self._derivatives(h)
        factors = conv_input_factor(
            x, **self._options(module), groups=self.groups, bias=self.bias is not None, approx=sharing.approx,
            patch_bytes=sharing.patch_bytes,
        )  # fmt: skip
        count = h.shape[0] * (h.shape[1] if sharing.approx == "expand" else 1)
        found = []
        for i, A in enumerate(factors):
            part = self._group(i, h, h)[1]
            G = factor(part, sharing, lambda h, approx: output_factor(h, terms=terms, approx=approx), terms)
            found.append(Statistics(A, G, count))
        return found

    def _chunks(self, module, x, h, sharing, terms, bases, rng):
        x, h = self._batched(x), self._batched(h)
        x = _repeated(x, h)
        per_image = self.blocks[0].p * self.groups * h[0, 0].numel() * max(x.element_size(), 4)
        size = max(sharing.patch_bytes // per_image, 1)
        found = [[] for _ in self.blocks]
        for start in range(0, x.shape[0], size):
            a, part = self.rows(module, x[start : start + size], h[start : start + size], sharing)
            for i, basis in enumerate(bases):
                found[i].append(self._block(i, a, part, sharing, terms, basis, rng))
        return [pooled(parts) for parts in found]


class GroupedLayer(ConvLayer):
    """A convolution with many groups, the small factors of which are stacks."""

    grouped = True

    def statistics(self, calls, sharing, terms, bases, rng):
        """Return the statistics of the block, patches of a few images at a time; see `Layer.statistics`."""
        if len(calls) > 1:
            return Layer.statistics(self, calls, sharing, terms, bases, rng)
        module, x, h = calls[0]
        return self._chunks(module, x, h, sharing, terms, bases, rng)

    def _block(self, i, a, h, sharing, terms, basis, rng):
        """Return the statistics of all groups from rows."""
        count = a.shape[0] * (a.shape[1] if sharing.approx == "expand" else 1)
        if sharing.approx == "expand" and _too_many(a, sharing):
            a, h, terms = _subset(a, h, terms, sharing.max_positions, rng)
        a, h = (X.unflatten(2, (self.groups, -1)) for X in (a, h))
        a = self.with_one(a)
        if sharing.approx == "expand":
            a, h = a.flatten(0, 1), h.flatten(0, 1)
        else:
            a, h = a.mean(dim=1), h.sum(dim=1)
        return Statistics(_stack(a, 1 / a.shape[0], sharing), _stack(h, terms, sharing), count)


class EmbeddingLayer(Layer):
    """An embedding: its inputs are unit vectors, and the input factor is the diagonal of the frequencies."""

    kind = "embedding"

    def batched(self, x):
        """Say whether an input has a dimension that counts the examples."""
        return x.ndim > 0

    def examples(self, x, output, sharing):
        """Return the numbers of examples and of positions of a call."""
        N = x.shape[sharing.batch_dim if x.ndim > 1 else 0] if x.ndim else 1
        return N, x.numel() // max(N, 1)

    def stacked(self, hs, sharing):
        """Return several derivatives for one input as those of several batches."""
        return hs[0] if len(hs) == 1 else torch.cat([h.reshape(-1, h.shape[-1]) for h in hs])

    def statistics(self, calls, sharing, terms, bases, rng):
        """Return the statistics of the block; see `Layer.statistics`."""
        tokens = torch.cat([x.reshape(-1) for _, x, _ in calls])
        h = torch.cat([h.reshape(-1, h.shape[-1]) for _, _, h in calls])
        tokens = tokens.repeat(h.shape[0] // tokens.shape[0])
        module = calls[0][0]
        if module.padding_idx is not None:  # no gradient passes there
            h = h * (tokens != module.padding_idx)[:, None]
        A = token_frequencies(tokens, module.num_embeddings, padding=module.padding_idx, dtype=h.dtype)
        rows = sharing._replace(approx="expand")
        G = factor(h[:, None], rows, lambda h, approx: output_factor(h, terms=terms, approx=approx), terms)
        return [Statistics(A, G, tokens.numel())]


class NormLayer(Layer):
    """A normalisation layer: one block of size 1 or 2 for every channel."""

    kind = "norm"

    def examples(self, x, output, sharing):
        """Return the number of examples, and 1."""
        return x.shape[self._batch_dim(x, sharing)], 1

    def stacked(self, hs, sharing):
        """Return several derivatives for one input as those of several batches."""
        return hs[0] if len(hs) == 1 else torch.cat(hs, dim=self._batch_dim(hs[0], sharing))

    def _batch_dim(self, x, sharing):
        shape = getattr(self.modules[0], "normalized_shape", None)  # else examples come first, channels second
        return sharing.batch_dim if shape is not None and x.ndim > len(shape) + 1 else 0

    def statistics(self, calls, sharing, terms, bases, rng):
        """Return the statistics of the block; see `Layer.statistics`."""
        parts = []
        for module, x, h in calls:
            dim = self._batch_dim(h, sharing)
            x, h = self._rows(module, x.to(h.dtype).movedim(dim, 0), h.movedim(dim, 0))
            parts.append((_repeated(x, h), h))
        if len(parts) > 1 and len({h.shape[0] for _, h in parts}) == 1:  # calls are positions of the same examples
            sides = zip(*parts, strict=True)
            x, h = (torch.cat([X.reshape(X.shape[0], -1, X.shape[-1]) for X in side], dim=1) for side in sides)
            parts = [(x, h)]
        G = sum(norm_factor(x, h, terms=terms, shift=self.bias is not None) for x, h in parts)
        return [Statistics(None, G, 1)]

    def _rows(self, module, x, h):
        """Return normalised inputs and derivatives with the channels last."""
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            fixed = not module.training and module.running_mean is not None
            mean, var = (module.running_mean.to(x.dtype), module.running_var.to(x.dtype)) if fixed else (None, None)
            x = F.batch_norm(x, mean, var, training=not fixed, eps=module.eps)
        elif isinstance(module, torch.nn.GroupNorm):
            x = F.group_norm(x, module.num_groups, eps=module.eps)
        else:
            shape = module.normalized_shape
            norm = F.layer_norm if isinstance(module, torch.nn.LayerNorm) else F.rms_norm
            x = norm(x, shape, eps=module.eps)
            last = math.prod(shape)
            return tuple(
                X.reshape(-1, 1, last) if X.ndim == len(shape) else X.reshape(X.shape[0], -1, last) for X in (x, h)
            )
        return tuple(X if X.ndim == 2 else X.movedim(1, -1) for X in (x, h))


def factor(rows, sharing, full, weight, *, mean=False):
    """Return ``full(rows, approx)``, or its diagonal where it is too large: `weight` times the sum of squares."""
    if rows.shape[2] <= sharing.max_dim:
        return full(_flat(rows), sharing.approx)
    rows = rows.float() if rows.element_size() < 4 else rows
    if sharing.approx == "reduce":
        X = rows.mean(dim=1) if mean else rows.sum(dim=1)
    else:
        X, weight = rows.flatten(0, 1), weight / rows.shape[1] if mean else weight
    return (X * X).sum(dim=0) * weight


def _kept(a, h, sharing):
    """Return inputs and derivatives one by one, as they are wanted."""
    if sharing.keep == "gradients":
        return example_rows(a, h)
    if sharing.keep == "flat" and sharing.approx == "reduce":
        return a.mean(dim=1, keepdim=True), h.sum(dim=1, keepdim=True)
    return (a.reshape(-1, 1, a.shape[2]), h.reshape(-1, 1, h.shape[2])) if sharing.keep == "flat" else (a, h)


def _stack(rows, weight, sharing):
    """Return `weight` times the sum of outer products of rows (n, groups, d), or all diagonals in one vector."""
    if rows.shape[2] > sharing.max_dim:
        return (rows * rows).sum(dim=0).reshape(-1) * weight
    return rows.permute(1, 2, 0) @ rows.transpose(0, 1) * weight


def _flat(X):
    """Return (N, p) for (N, 1, p): one position is none."""
    return X[:, 0] if X.shape[1] == 1 else X


def _repeated(a, h):
    """Return the inputs as often as there are derivatives for them."""
    times = h.shape[0] // a.shape[0]
    return a if times == 1 else a.repeat(times, *[1] * (a.ndim - 1))


def _too_many(a, sharing):
    return sharing.max_positions is not None and a.shape[1] > sharing.max_positions


def _subset(a, h, terms, size, rng):
    """Return random positions, and the number of terms with which their sum estimates that over all."""
    R = a.shape[1]
    chosen = torch.as_tensor(sorted(rng.choice(R, size, replace=False).tolist()), device=a.device)
    return a[:, chosen], h[:, chosen], terms * R / size


def _moments(h, a_bar, basis, terms) -> Any:
    U_G, U_A = basis
    return ekfac_scale(_flat(h).to(U_G.dtype), _flat(a_bar).to(U_A.dtype), U_G, U_A, terms=terms)
