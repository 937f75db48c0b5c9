"""Curvature of a convolution with many groups, whose small factors are treated as stacks."""

from typing import Any

import numpy as np
import torch

from rnla.optim import FactorStats, LayerState
from rnla.optim._grouped import grouped_direction, grouped_inverse


class Grouped:
    """Kronecker factored curvature of every group, by products of stacks; inverses are exact, without EKFAC."""

    SAVED = ("state", "inverse", "failed")
    padding = 0

    def __init__(self, block, options):
        self.block, self.failed, self.max_dim = block, 0, options["max_factor_dim"]
        start = FactorStats(identity=1.0) if options["init"] == "identity" else FactorStats()
        self.state = LayerState(start, start)
        self._dtypes = options["factor_dtype"], options["inverse_dtype"]
        self.inverse: Any = None  # of `grouped_inverse`; empty where a factor was zero or could not be decomposed

    @property
    def ready(self):
        """Whether inverses have been computed."""
        return self.inverse is not None

    @property
    def blank(self):
        """Whether gradients stay as they are, for want of a factor that can be inverted."""
        return self.inverse == ()

    @property
    def informed(self):
        """Whether there are statistics."""
        return self.state.A.matrix is not None

    def method(self, config):
        """Return the method of the inverses."""
        return f"{self.block.groups} groups"

    def wants_rows(self, config):
        """Say whether inputs and derivatives are wanted one by one: never."""
        return False

    def basis(self, config):
        """Return None: there are no second moments."""

    def add(self, found, config):
        """Take in the statistics of a batch."""
        A, G = (_cast(M, self._dtypes[0]) for M in (found.A, found.G))
        self.state = self.state.add_factors(A, G, config)

    def refresh(self, config, damping, rng):
        """Compute new inverses; return the factors for which that failed."""
        A, G = (_cast(stats.matrix, self._dtypes[1]) for stats in (self.state.A, self.state.G))
        if not bool((A != 0).any() & (G != 0).any()):
            self.inverse = ()
            return []
        try:
            inverse = grouped_inverse(
                A, G, damping, self.block.groups, mode=config.damping_mode,
                identity=(self.state.A.identity, self.state.G.identity),
            )  # fmt: skip
        except (np.linalg.LinAlgError, RuntimeError):
            self.failed, self.inverse = self.failed + 1, self.inverse or ()
            return ["A and G"]
        dtype = self.block.weight_parameter.dtype
        dtype = torch.float32 if dtype.itemsize < 4 else dtype
        self.inverse = tuple(X if X is None else _cast(X, dtype) for X in inverse)
        return []

    def direction(self, V, config, damping, step):
        """Return the preconditioned gradient, V itself before there are inverses."""
        if not self.inverse:
            return V
        stack = V.to(self.inverse[-1].dtype).reshape(self.block.groups, -1, self.block.p)
        return grouped_direction(stack, self.inverse).reshape(V.shape)

    def zeros(self, dtype, device):
        """Return zeros of the shapes of the factors."""
        m, p, q = self.block.groups, self.block.p, self.block.q // self.block.groups
        shapes = [(m * d,) if d > self.max_dim else (m, d, d) for d in (p, q)]
        return tuple(torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)

    def skipped(self):
        """Return the number of terms that were not finite, 0-d or 0."""
        return self.state.A.skipped + self.state.G.skipped

    def ranks(self):
        """Return the sizes of the factors of a group, None before there are inverses."""
        return (self.block.p, self.block.q // self.block.groups) if self.inverse else (None, None)


def _cast(M, dtype):
    return M if dtype is None or M.dtype == dtype else M.to(dtype)
