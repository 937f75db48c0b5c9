"""Curvature that is not Kronecker factored: of normalisation layers, and from the gradients of single examples."""

from typing import Any

import numpy as np
import torch

from rnla.optim import FactorStats, norm_solve, seng_solve

SENG_BYTES = 2**28  # of gradients of single examples


class Unit:
    """Curvature of a normalisation layer: a block for each channel."""

    SAVED = ("state", "blocks", "largest", "delta", "failed")
    padding, blank = 0, False

    def __init__(self, block, options):
        self.block, self.failed = block, 0
        start = FactorStats(identity=1.0) if options["init"] == "identity" else FactorStats()
        self.state, self.blocks, self.largest, self.delta = start, None, None, None

    @property
    def ready(self):
        """Whether there is something to precondition with."""
        return self.blocks is not None

    @property
    def informed(self):
        """Whether there are statistics."""
        return self.state.matrix is not None

    def method(self, config):
        """Return the method of the inverses."""
        return "blocks"

    def wants_rows(self, config):
        """Return None: inputs and derivatives are not wanted one by one."""

    def basis(self, config):
        """Return None: there are no second moments."""

    def add(self, found, config):
        """Take in the statistics of a batch."""
        self.state = self.state.update(found.G, config.rho, mode=config.ema)

    def refresh(self, config, damping, rng):
        """Take over the average, and the damping that goes with it."""
        self.blocks = self.state.matrix
        largest = torch.linalg.eigvalsh(self.blocks).amax()
        tiny = torch.finfo(largest.dtype).tiny ** 0.5
        least = torch.finfo(largest.dtype).eps * largest.clamp(min=tiny)
        scaled = damping * largest if config.damping_mode == "relative" else torch.full_like(largest, float(damping))
        self.largest, self.delta = largest, torch.maximum(scaled, least) + self.state.identity
        return []

    def direction(self, V, config, damping, step):
        """Return the preconditioned gradient; V itself where all blocks are zero."""
        if not self.ready:
            return V
        W = norm_solve(self.blocks, V.to(self.blocks.dtype), self.delta).to(V.dtype)
        return torch.where(self.largest > 0, W, V)

    def skipped(self):
        """Return the number of terms that were not finite, 0-d or 0."""
        return self.state.skipped

    def ranks(self):
        """Return the size of the blocks."""
        return (None, self.block.p)


class Sketched:
    """Curvature of SENG: the gradients of single examples of the last batch for which they were collected."""

    SAVED = ("state", "failed", "dropped")
    padding, blank = 0, False

    def __init__(self, block, options):
        self.block, self.failed, self.dropped = block, 0, 0
        self._sample, self._seed = options["sample"], options["seed"]
        self.state: Any = None

    @property
    def ready(self):
        """Whether there is something to precondition with."""
        return self.state is not None

    informed = ready

    def method(self, config):
        """Return the method of the inverses."""
        return "seng"

    def wants_rows(self, config):
        """Say that the gradients of the examples are wanted, and no factors."""
        return "gradients", False

    def basis(self, config):
        """Return None: there are no second moments."""

    def add(self, found, config):
        """Take in the statistics of a batch."""
        a, h = found.rows
        if not bool(torch.isfinite(h.sum() + a.sum())):
            self.dropped += 1
            return
        N, size = a.shape[0], (a[0].numel() + h[0].numel()) * a.element_size()
        kept = max(SENG_BYTES // size, 1)
        if kept < N:
            a, h = a[:kept].clone(), h[:kept] * (N / kept) ** 0.5
        self.state = (a[:, 0], h[:, 0]) if a.shape[1] == 1 else (a, h)

    def refresh(self, config, damping, rng):
        """Do nothing: the system is solved in every step."""
        return []

    def direction(self, V, config, damping, step):
        """Return the preconditioned gradient; V itself where the system could not be solved."""
        if not self.ready:
            return V
        a, h = self.state
        # The gradient of an example as the only input of a layer with one output.
        single = h.shape[-1] == 1 and a.shape[-1] == V.numel()
        W = V.reshape(1, -1) if single else V
        rng = np.random.SeedSequence([self._seed, step])
        try:
            W = seng_solve(W.to(a.dtype), a, h, damping, terms=1, sample=self._sample, rng=rng)
        except (np.linalg.LinAlgError, RuntimeError):
            self.failed += 1
            return V
        W = W.reshape(V.shape).to(V.dtype)
        return torch.where(torch.isfinite(W.sum()), W, V)

    def skipped(self):
        """Return the number of batches that were not finite."""
        return self.dropped

    def ranks(self):
        """Return the number of gradients."""
        return (None, None if self.state is None else self.state[0].shape[0])
