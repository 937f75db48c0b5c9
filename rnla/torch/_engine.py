"""What all K-FAC optimizers do in a step: take in statistics, refresh inverses, precondition, clip."""

import time
import warnings

import numpy as np
import torch

from rnla._backend import key_from_rng
from rnla._errors import AccuracyWarning
from rnla._rangefinder import check_choice, check_count
from rnla.optim import graft, rms_clip
from rnla.optim._clip import divergence_factor
from rnla.torch._checkpoint import check_keys, check_layers, decoded, encoded, restore, saved_layers, size_of
from rnla.torch._collect import Collector
from rnla.torch._copies import remove_idle
from rnla.torch._curvature import CORRECTIONS, curvature_of, refreshed
from rnla.torch._distributed import Sharer
from rnla.torch._find import unwrapped
from rnla.torch._records import KFACRecord, KFACStats
from rnla.torch._report import table
from rnla.torch._settings import check_options, current, layer_config

DEFAULTS = {
    "damping": 0.1, "damping_mode": "relative", "rho": 0.95, "ema": "const", "init": None, "factor_every": 10,
    "inverse_every": 50, "method": "exact", "rank": 220, "oversampling": 10, "products": None, "tail": "trace",
    "warm_start": True, "ekfac": False, "fisher": "empirical", "loss_average": "batch", "weight_sharing": "expand",
    "max_positions": None, "patch_bytes": None, "batch_dim": 0, "kl_clip": None, "rms_clip": 0.07, "graft": None,
    "norm_layers": "unit", "skip": (), "max_factor_dim": 8192, "factor_dtype": None, "inverse_dtype": None,
    "grad_scaler": None, "process_group": None, "grad_worker_fraction": 1.0, "sync_grads": False, "stagger": False,
    "correction": None, "correction_every": 5, "sample": None, "rng": None, "strict": False, "callback": None,
}  # fmt: skip
COLLECTED = (
    "skip", "norm_layers", "fisher", "loss_average", "weight_sharing", "max_positions", "patch_bytes",
    "max_factor_dim", "batch_dim", "grad_scaler", "seed",
)  # fmt: skip
BETAS, EPS = (0.9, 0.999), 1e-8  # of the Adam step to whose length an update is brought


class Engine:
    """Curvature of a model and the updates that it gives; the public classes hold one."""

    def __init__(self, model, options, caller):
        unknown = sorted(set(options) - set(DEFAULTS))
        if unknown:
            raise TypeError(f"{caller}: unknown argument {', '.join(unknown)}; allowed are {', '.join(DEFAULTS)}.")
        self.model, self.options, self._caller = unwrapped(model, caller), DEFAULTS | options, caller
        check_options(self.options, caller)
        check_choice(self.options["correction"], "correction", CORRECTIONS, caller)
        check_count(self.options["correction_every"], "correction_every", caller)
        rng, key = self.options["rng"], key_from_rng(self.options["rng"], caller)
        # Seeds of single steps are made from it, as rnla.optim.mlp.kfac_step makes them.
        self.options["seed"] = int(rng) if isinstance(rng, (int, np.integer)) else key
        self.steps, self.curvatures, self.nu, self.collector, self._skipped_steps = 0, {}, 1.0, None, 0
        self.seconds, self._unclipped_steps = {"inversion": 0.0, "preconditioning": 0.0}, 0
        self._selected, self._groups, self._warned, self._adam = None, {}, set(), {}
        self._config = layer_config(self.options, 0)
        self.sharer = Sharer.of(self.options, caller)

    def __getstate__(self):
        if self.sharer is not None:
            raise TypeError(f"{self._caller}: among several processes it cannot be copied or pickled; use state_dict.")
        seconds = {"statistics": self.collector.seconds, **self.seconds}
        kept = {name: self.options[name] for name in DEFAULTS}
        return {
            "made": (self.model, kept, self._caller), "selected": (self._selected, self._group_list),
            "state": self.state_dict(), "seconds": seconds, "warned": self._warned, "removed": self.collector.removed,
        }  # fmt: skip

    def __setstate__(self, state):
        remove_idle(state["made"][0])
        Engine.__init__(self, *state["made"])
        self._warned = state["warned"]
        self.select(*state["selected"])
        self.load_state_dict(state["state"])
        self.collector.seconds, self.seconds = state["seconds"].pop("statistics"), state["seconds"]
        if state["removed"]:
            self.collector.remove_hooks()

    def select(self, params=None, groups=()):
        """Precondition the layers of some parameters, all if None; what is known of layers is kept."""
        if self.collector is not None:
            self.collector.remove_hooks()
        self._selected = params
        self.collector = Collector(
            self.model, params=None if params is None else {id(p) for p in params}, stacks=True, caller=self._caller,
            **{name: self.options[name] for name in COLLECTED},
        )  # fmt: skip
        self.regroup(groups)
        known, self.curvatures = self.curvatures, {}
        for name, block in self.collector.blocks.items():
            self.curvatures[name] = known.get(name) or curvature_of(block, self.options)
        if self.sharer is not None:
            self.sharer.assign(self.curvatures)
            self.collector.rank = self.sharer.rank
        if self.collector.unsupported:
            self.warn_once(
                "unsupported", "these parameters keep their gradients, because their modules are of no supported kind: "
                f"{', '.join(self.collector.unsupported)}", UserWarning,
            )  # fmt: skip
        self.arm()

    def regroup(self, groups):
        """Take over the settings of parameter groups."""
        self._group_list = list(groups)
        self._groups = {id(p): group for group in groups for p in group["params"]}

    def arm(self):
        """Prepare the hooks for the next step."""
        config = layer_config(self.options, self.steps, self._caller)
        if self.steps % self.setting("factor_every"):
            self.collector.disarm()
            return
        bases = {name: curvature.basis(config) for name, curvature in self.curvatures.items()}
        self.collector.arm(
            self.steps,
            bases={name: basis for name, basis in bases.items() if basis is not None},
            keep={name: kept for name, curvature in self.curvatures.items() if (kept := curvature.wants_rows(config))},
        )

    def updates(self, lr, *, grad_scale=None, decay=None, finite=None):
        """Take in the statistics, refresh what is due, and return the preconditioned gradients.

        Parameters
        ----------
        lr : callable
            Learning rate of a block.
        grad_scale : float or Tensor, optional
            Multiple of the loss whose gradients there are.
        decay : callable, optional
            Gradient of the weight decay in the loss, for a block and its padding; None where there is none.
        finite : Tensor, shape (), optional
            Where it is false, all gradients count as zero.

        Returns
        -------
        list of (Block, Tensor)
            Blocks with a gradient, and their clipped updates (q, p).
        """
        self._config = layer_config(self.options, self.steps)
        self._take(grad_scale)
        self._refresh()
        start = time.perf_counter()
        found = []
        for name, curvature in self.curvatures.items():
            block = curvature.block
            g = block.gradient(curvature.padding)
            if g is None:
                continue
            g = g.float() if g.element_size() < 4 else g
            g = g if grad_scale is None else g / grad_scale
            if finite is not None:
                g = torch.where(finite, g, 0.0)
            pull = None if decay is None else decay(block, curvature.padding)
            g = g if pull is None else g + pull
            found.append((block, g, self._direction(name, curvature, g)))
        updates = [(block, V[:, : block.p]) for block, V in self._clipped(found, lr)]
        self.seconds["preconditioning"] += time.perf_counter() - start
        return updates

    def check_gradients(self, params):
        """Say whether all gradients are finite: None if they are, as far as the host knows without waiting, else 0-d.

        Norms that single precision cannot hold count as infinite. What is not finite is counted.
        """
        grads = [p.grad for p in params if p.grad is not None and p.grad.numel()]
        if not grads:
            return None
        grads = [g.coalesce().values() if g.is_sparse else g for g in grads]
        norms = torch._foreach_norm([g.float() if g.element_size() < 4 else g for g in grads])
        finite = torch.isfinite(torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])).all()
        if free_to_read(finite):
            self._skipped_steps += not bool(finite)
            self._warn_of_skipped()
            return None if finite else finite
        self._skipped_steps = self._skipped_steps + (~finite).to(torch.int64)
        return finite

    def _warn_of_skipped(self):
        if int(self._skipped_steps):
            text = "a gradient had a NaN or an infinity, and the step changed no weight"
            self.warn_once("gradients", text, AccuracyWarning)

    def finish(self, start):
        """Count the step, prepare the next one and call the callback."""
        record = KFACRecord(self.steps, self.nu, time.perf_counter() - start)
        self.steps += 1
        self.arm()
        if self.options["callback"] is not None:
            self.options["callback"](record)

    def setting(self, name, block=None):
        """Return a setting at this step, that of the parameter group of a block if it has one."""
        group = {} if block is None else self._groups.get(id(block.weight_parameter), {})
        return current(name, group[name] if name in group else self.options[name], self.steps, self._caller)

    def _take(self, grad_scale):
        """Fold what was collected into the averages."""
        if not self.collector.armed:
            return
        found = self.collector.take(grad_scale if self.options["grad_scaler"] is None else None)
        if self.sharer is not None:
            found = self.sharer.averaged(found)
        if not found and any(c.block.weight_parameter.grad is not None for c in self.curvatures.values()):
            reason = "layers are observed in training mode: call model.train()"
            if self.options["fisher"] != "empirical":
                reason = (
                    f"call sample_fisher before the backward pass for fisher={self.options['fisher']!r}, and "
                    "checkpoint with use_reentrant=False"
                )
            self.warn_once("no statistics", f"{reason}; there are gradients, but no statistics", UserWarning)
        for name, part in found.items():
            self.curvatures[name].add(part, self._config)

    def _refresh(self):
        """Refresh the inverses that are due, and those of layers of which nothing was known before."""
        every, count = self.setting("inverse_every"), len(self.curvatures)
        due = []
        for i, (name, curvature) in enumerate(self.curvatures.items()):
            shift = i * every // count if self.options["stagger"] else 0
            wanting = not curvature.ready or (self.collector.armed and curvature.blank)
            if curvature.informed and (wanting or (self.steps + shift) % every == 0):
                rng = np.random.SeedSequence([self.options["seed"], self.steps, i])
                due.append((name, curvature, self.setting("damping", curvature.block), rng))
        if not due:
            return
        self._warn_of_skipped()  # the one place that waits for an accelerator anyway
        start = time.perf_counter()
        lost = refreshed(due, self._config, self.sharer)
        self.seconds["inversion"] += time.perf_counter() - start
        for name, factors in lost.items():
            if factors:
                text = f"factor {' and '.join(factors)} of layer {name} could not be decomposed"
                if self.options["strict"]:
                    raise ValueError(f"{self._caller}: {text}.")
                self.warn_once(name, f"{text}; the inverse of the time before is used", AccuracyWarning)

    def _direction(self, name, curvature, g):
        if self.sharer is not None and not self.sharer.works_on(name):
            return self.sharer.received(name, g)
        V = curvature.direction(g, self._config, self.setting("damping", curvature.block), self.steps)
        return V if self.sharer is None else self.sharer.sent(name, V)

    def _clipped(self, found, lr):
        """Bring the updates to the length that the options allow."""
        result = []
        for block, g, V in found:
            if self.options["graft"] is not None:
                # Without the columns of zeros, of which there are none before the first inverses.
                V = graft(V, g if self.options["graft"] == "sgd" else self._adam_step(block, g[:, : block.p]))
            limit = self.setting("rms_clip", block)
            # Columns of zeros count for nothing.
            filled = (block.q * block.p / V.numel()) ** 0.5
            result.append((block, V if limit is None else rms_clip(V, limit * filled)))
        kappa = self.setting("kl_clip")
        if kappa is None or not result:
            return result
        rates = [lr(block) for block, _ in result]
        if len(set(rates)) == 1:
            self.nu, usable = divergence_factor([V for _, V in result], [g for _, g, _ in found], rates[0], kappa)
        else:
            products = zip(result, found, rates, strict=True)
            scaled = [(V * rate, g * rate) for (_, V), (_, g, _), rate in products]
            self.nu, usable = divergence_factor([V for V, _ in scaled], [g for _, g in scaled], 1.0, kappa)
        self._unclipped_steps = self._unclipped_steps + (~usable).to(torch.int64)
        return [(block, V * self.nu) for block, V in result]

    def _adam_step(self, block, g):
        """Return the step of Adam."""
        m, v, count = self._adam.get(block.name, (torch.zeros_like(g), torch.zeros_like(g), 0))
        m, v, count = m.lerp(g, 1 - BETAS[0]), v.lerp(g * g, 1 - BETAS[1]), count + 1
        self._adam[block.name] = m, v, count
        return m / (1 - BETAS[0] ** count) / ((v / (1 - BETAS[1] ** count)).sqrt() + EPS)

    def warn_once(self, key, text, category):
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"{self._caller}: {text}.", category, stacklevel=_outside())

    @property
    def stats(self):
        """Return the counters; reads them from the device."""
        curvatures = self.curvatures.values()
        return KFACStats(
            self.steps,
            int(self._skipped_steps),
            int(sum(curvature.skipped() for curvature in curvatures)),
            sum(curvature.failed for curvature in curvatures),
            {"statistics": self.collector.seconds, **self.seconds},
            {name: curvature.ranks() for name, curvature in self.curvatures.items()},
            float(self.nu),
            int(self._unclipped_steps),
        )

    def summary(self):
        """Return a table of the layers."""
        head = ("layer", "kind", "q", "p", "method", "ranks (A, G)", "memory")
        rows = [head]
        for name, curvature in self.curvatures.items():
            block = curvature.block
            ranks = ", ".join("-" if rank is None else str(rank) for rank in curvature.ranks())
            size = size_of([encoded(getattr(curvature, key)) for key in curvature.SAVED])
            rows.append(
                (name or "(model)", block.kind, str(block.q), str(block.p), curvature.method(self._config), ranks,
                 f"{size / 2**20:.1f} MiB")
            )  # fmt: skip
        return table(rows)

    def memory_usage(self):
        """Return the bytes of averages and inverses."""
        return size_of(saved_layers(self.curvatures, self._config))

    def state_dict(self, include_factors=True):
        """Return the state as dicts of tensors and numbers."""
        state = {
            "step": self.steps, "seed": self.options["seed"], "nu": float(self.nu),
            "skipped_steps": int(self._skipped_steps), "unclipped_steps": int(self._unclipped_steps),
            "complete": include_factors,
        }  # fmt: skip
        if include_factors:
            state |= {"layers": saved_layers(self.curvatures, self._config), "adam": encoded(self._adam)}
        return state

    def check_state(self, state, caller):
        """Raise unless a state fits the model."""
        check_keys(state, ("step", "seed", "nu", "skipped_steps", "unclipped_steps", "complete"), caller)
        if state["complete"]:
            check_keys(state, ("layers", "adam"), caller)
            check_layers(state["layers"], self.curvatures, layer_config(self.options, state["step"]), caller)

    def load_state_dict(self, state):
        """Take over a state, in place of all that there was."""
        self.steps, self.options["seed"], self.nu = state["step"], state["seed"], state["nu"]
        self._skipped_steps, self._unclipped_steps = state["skipped_steps"], state["unclipped_steps"]
        self.collector.seed = state["seed"]
        self.collector.discard()
        if not state["complete"]:
            warnings.warn(
                f"{self._caller}: the state has no factors; gradients are preconditioned again once there are new "
                "statistics.", UserWarning, stacklevel=_outside(),
            )  # fmt: skip
        for name, known in list(self.curvatures.items()):
            self.curvatures[name] = curvature = curvature_of(known.block, self.options)
            if state["complete"]:
                restore(curvature, state["layers"][name])
        self._adam = {
            name: decoded(entry, self.curvatures[name].block.weight_parameter.device)
            for name, entry in state.get("adam", {}).items()
        }
        self.arm()


def free_to_read(X):
    """Say whether the host can read a value without waiting for an accelerator."""
    return X.device.type == "cpu"


def _outside():
    """Return the level of the first frame outside of this package, for warnings."""
    import sys

    frame, level = sys._getframe(1), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("rnla.", "torch.")):
        frame, level = frame.f_back, level + 1
    return level
