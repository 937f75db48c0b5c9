"""What is known of the Fisher block of a layer, and the gradient that it preconditions."""

import functools

import torch
import torch.nn.functional as F

from rnla.optim import (
    FactorInverse,
    FactorStats,
    LayerConfig,
    LayerState,
    brand_correction,
    choose_rank,
    ema_update,
    precondition,
)
from rnla.optim._layers import SIDES, damp_layers, job, represent_factors
from rnla.torch._grouped_curvature import Grouped
from rnla.torch._single_curvature import Sketched, Unit

CORRECTIONS = (None, "refresh", "partial")
LINE, WIDE = 16, 256  # numbers in a cache line of 64 bytes; width from which on it matters


class Kronecker:
    """Kronecker factored curvature of a block.

    Parameters
    ----------
    block : Block
        Its weights.
    options : dict
        Of the preconditioner.
    """

    SAVED = ("state", "rank", "refreshed", "failed", "dropped")

    def __init__(self, block, options):
        self.block, self.failed, self.dropped, self.refreshed, self.rank = block, 0, 0, 0, None
        self.max_dim = options["max_factor_dim"]
        self._wide = None, None  # the damped inverses, and their padded form
        start = FactorStats(identity=1.0) if options["init"] == "identity" else FactorStats()
        self.state = LayerState(start, start)
        self._dtypes = options["factor_dtype"], options["inverse_dtype"]
        self._correction, self._every = options["correction"], options["correction_every"]
        self._fixed = {}
        if block.kind == "embedding" or max(block.p, block.q) > options["max_factor_dim"]:
            self._fixed["ekfac"] = False
        brand = options["method"] == "brand" and block.kind == "linear" and not self._fixed
        if options["method"] in ("brand", "seng") and not brand:
            self._fixed["method"] = "auto"
        if options["rank"] == "adaptive":
            self.rank = min(LayerConfig().rank, max(block.p, block.q))

    def config(self, config):
        """Return the configuration of this block."""
        fixed = self._fixed if self.rank is None else {**self._fixed, "rank": self.rank}
        return config._replace(**fixed) if fixed else config

    @property
    def ready(self):
        """Whether inverses have been computed."""
        return self.refreshed > 0

    @property
    def blank(self):
        """Whether a factor is represented by the identity, because it was zero or not finite."""
        return any(inv is not None and inv.kind == "identity" for inv in (self.state.A_inv, self.state.G_inv))

    @property
    def informed(self):
        """Whether there are statistics."""
        return self.state.A_inv is not None or self.state.A.matrix is not None

    def method(self, config):
        """Return the method of the inverses."""
        config = self.config(config)
        return f"{'ekfac, ' if config.ekfac else ''}{config.method}"

    def wants_rows(self, config):
        """Return how inputs and derivatives are wanted one by one, and whether factors are; None for factors alone."""
        return ("flat", self._correction is not None) if self.config(config).method == "brand" else None

    def basis(self, config):
        """Return the eigenvectors in which second moments are wanted, or None."""
        if not self.config(config).ekfac or self.state.scale.matrix is None:
            return None
        vectors = [inv.U for inv in (self.state.G_inv, self.state.A_inv)]
        return None if any(U is None for U in vectors) else tuple(vectors)

    def add(self, found, config):
        """Take in the statistics of a batch."""
        config = self.config(config)
        scale = self.state.scale
        if found.scale is not None and scale.matrix is not None:
            mean = ema_update(scale.matrix, found.scale, config.rho, 1)
            self.state = self.state._replace(scale=scale._replace(matrix=mean))
        if config.method == "brand":
            a, h = (_flat(X) for X in found.rows)
            if not bool(torch.isfinite(a.square().sum() + h.square().sum())):
                self.dropped += 1
                return
            self.state = self.state.add(a, h, config, terms=1)
            if self._correction is None:
                return
        self.state = self.state.add_factors(self._cast(found.A, 0), self._cast(found.G, 0), config)

    def misfit(self, state, config):
        """Say why training cannot go on from a state, None if it can."""
        config, block = self.config(config), self.block
        large = block.kind == "embedding" or block.p > self.max_dim, block.q > self.max_dim
        for side, stats, size, diagonal in zip(SIDES, (state.A, state.G), (block.p, block.q), large, strict=True):
            shape = (size,) if diagonal else (size, size)
            if stats.matrix is not None and tuple(stats.matrix.shape) != shape:
                return f"its average of {side} must have shape {shape}; got {tuple(stats.matrix.shape)}"
            dtype = self._dtypes[0] or self._work()
            if stats.matrix is not None and stats.matrix.dtype != dtype:
                return f"its average of {side} must be of {dtype}; got {stats.matrix.dtype}"
        if state.A_inv is None:
            return None
        kinds = {state.A_inv.kind, state.G_inv.kind}
        if config.method == "brand" and not kinds <= {"lowrank", "eigen", "identity"}:
            return "it has no eigenpairs that could be updated"
        if config.damping_mode == "joint" and "dense" in kinds:
            return "it has no eigenpairs, which joint damping needs"
        if state.A.matrix is None and (config.method != "brand" or self._correction is not None):
            return "it has no averages"
        return None

    def begin_refresh(self, config, rng):
        """Return the state from which new inverses are made: in their dtype, with online updates corrected."""
        self.refreshed += 1
        state, dtype = self.state, self._dtypes[1]
        if dtype is not None and state.A.matrix is not None:
            parts = [stats._replace(matrix=self._cast(stats.matrix, 1)) for stats in (state.A, state.G)]
            inverses = [inv and _in_dtype(inv, dtype) for inv in (state.A_inv, state.G_inv)]
            state = state._replace(A=parts[0], G=parts[1], A_inv=inverses[0], G_inv=inverses[1])
        return self._corrected(state, config, rng)

    def finish_refresh(self, state, config, rng):
        """Keep a refreshed state; return the factors that could not be decomposed."""
        lost = [
            name
            for name, inv in (("A", state.A_inv), ("G", state.G_inv))
            if inv is not None and inv.outcome in ("kept", "identity")
        ]
        self.failed += len(lost)
        self.state = _narrowed(state, self.state, self._work())
        self._pad(refreshed=True)
        if self.rank is not None and config.method in ("auto", "rsvd", "sre", "nystrom"):
            self._adapt(rng)
        return lost

    def _corrected(self, state, config, rng):
        """Return the state with eigenpairs from the matrix, where online updates are corrected now and then."""
        if config.method != "brand" or self._correction is None or self.refreshed % self._every:
            return state
        if self._correction == "refresh":
            return state.represent(config._replace(method="nystrom"), rng=rng)
        pairs = zip((state.A_inv, state.G_inv), (state.A.matrix, state.G.matrix), strict=True)
        A_inv, G_inv = (brand_correction(inv, M, rng=rng) if inv.U is not None else inv for inv, M in pairs)
        return state._replace(A_inv=A_inv, G_inv=G_inv)

    def _adapt(self, rng):
        """Move the rank to where the measured error is wanted."""
        ranks = [
            choose_rank(stats.matrix, inv, self.rank, rng=rng)[0]
            for stats, inv in ((self.state.A, self.state.A_inv), (self.state.G, self.state.G_inv))
            if inv.kind == "lowrank" and stats.matrix.dtype == inv.lam.dtype
        ]
        self.rank = max(ranks, default=self.rank)

    @property
    def padding(self):
        """Columns of zeros that gradients get, so that their rows begin at cache lines: products are a third faster."""
        p = self.block.p
        return -p % LINE if self.state.damped is not None and self.block.kind == "linear" and p > WIDE else 0

    def _pad(self, refreshed=False):
        """Return the damped inverses for gradients with columns of zeros, kept until there are others."""
        known, padded = self._wide
        damped, k = self.state.damped, self.padding
        if not k or known is damped:
            return damped if not k else padded
        A, G = damped
        U, matrix, base = (X if X is None else F.pad(X, shape) for X, shape in (
            (A.U, (0, 0, 0, k)), (A.matrix, (0, k, 0, k)), (A.base if A.base.ndim else None, (0, k))
        ))  # fmt: skip
        wide = A._replace(U=U, matrix=matrix, base=A.base if base is None else base)
        # What is kept are views of these: the padding costs no memory.
        p = self.block.p
        narrow = A._replace(U=U if U is None else U[:p], matrix=matrix if matrix is None else matrix[:p, :p])
        self.state = self.state._replace(damped=(narrow, G))
        if U is not None and refreshed:  # else online updates may have given it others since
            self.state = self.state._replace(A_inv=self.state.A_inv._replace(U=U[:p]))
        self._wide = self.state.damped, (wide, G)
        return wide, G

    def direction(self, V, config, damping, step):
        """Return the preconditioned gradient, V itself before there are inverses; V has `padding`."""
        if not self.ready:
            return V
        dtype = self._work()
        V = V if V.dtype == dtype else V.to(dtype)
        if self.padding:
            return precondition(V, *self._pad())
        return self.state.direction(V, self.config(config), damping)

    def skipped(self):
        """Return the number of terms that were not finite, 0-d or 0."""
        return self.state.A.skipped + self.state.G.skipped + self.dropped

    def ranks(self):
        """Return the ranks of the inverses, None before there are any."""
        inverses = self.state.A_inv, self.state.G_inv
        return tuple(None if inv is None else inv.dim if inv.kind == "dense" else inv.rank for inv in inverses)

    def _cast(self, M, place):
        dtype = self._dtypes[place]
        return M if dtype is None or M.dtype == dtype else M.to(dtype)

    def _work(self):
        dtype = self.block.weight_parameter.dtype
        return torch.float32 if dtype.itemsize < 4 else dtype


def curvature_of(block, options):
    """Return what keeps the curvature of a block."""
    if block.kind == "norm":
        return Unit(block, options)
    if block.groups > 1:
        return Grouped(block, options)
    if options["method"] == "seng" and block.kind != "embedding":
        return Sketched(block, options)
    return Kronecker(block, options)


def refreshed(due, config, sharer=None):
    """Compute new inverses for the layers of a list (name, curvature, damping, rng), those of equal size together.

    Returns
    -------
    dict
        For every layer the factors that could not be decomposed, for which what was there stays.
    """
    due = [entry for entry in due if sharer is None or sharer.works_on(entry[0])]
    others = [entry for entry in due if not isinstance(entry[1], Kronecker)]
    lost = {name: curvature.refresh(config, damping, rng) for name, curvature, damping, rng in others}
    names, curvatures, dampings, rngs = (
        zip(*(entry for entry in due if isinstance(entry[1], Kronecker)), strict=True)
        if len(others) < len(due) else ((),) * 4
    )  # fmt: skip
    configs = [curvature.config(config) for curvature in curvatures]
    begun = [c.begin_refresh(own, rng) for c, own, rng in zip(curvatures, configs, rngs, strict=True)]
    jobs = {
        (i, side): job(state, side, own, rng)
        for i, (state, own, rng) in enumerate(zip(begun, configs, rngs, strict=True))
        if own.method != "brand"
        for side in SIDES
    }
    found = represent_factors(jobs) if sharer is None else sharer.represented(names, jobs)
    states = [
        state._replace(A_inv=found[i, "A"], G_inv=found[i, "G"]) if (i, "A") in found else state
        for i, state in enumerate(begun)
    ]
    damp = None if sharer is None else functools.partial(sharer.damped, names)
    states = damp_layers(states, configs, dampings, before=begun, damp=damp)
    parts = zip(names, curvatures, states, configs, rngs, strict=True)
    return lost | {name: c.finish_refresh(state, own, rng) for name, c, state, own, rng in parts}


def _flat(X):
    return X[:, 0] if X.shape[1] == 1 else X


def _in_dtype(value, dtype):
    """Return a representation or an inverse in a dtype."""

    def cast(X):
        return X.to(dtype) if isinstance(X, torch.Tensor) and X.is_floating_point() else X

    return type(value)(*map(cast, value))


def _narrowed(state, before, dtype):
    """Return a state with its averages as they were before, and what is applied at every step in the dtype of work."""

    def cast(inv):
        if inv is None or (isinstance(inv, FactorInverse) and inv.lam.dtype == dtype):
            return inv
        return _in_dtype(inv, dtype)

    damped = state.damped and tuple(inv if inv.delta.dtype == dtype else _in_dtype(inv, dtype) for inv in state.damped)
    scale = state.scale
    if scale.matrix is not None and scale.matrix.dtype != dtype:
        scale = scale._replace(matrix=scale.matrix.to(dtype))
    return state._replace(
        A=before.A, G=before.G, A_inv=cast(state.A_inv), G_inv=cast(state.G_inv), damped=damped, scale=scale
    )
