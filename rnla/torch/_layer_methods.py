"""Methods of the optimizers that keep the states of the layers of their model themselves."""

import warnings
from typing import Any

import torch.distributed as dist

from rnla._errors import AccuracyWarning
from rnla.torch._checkpoint import size_of
from rnla.torch._collect import Collector
from rnla.torch._engine import _outside
from rnla.torch._find import _skipped, find_layers
from rnla.torch._records import KFACStats
from rnla.torch._report import table


class LayerMethods:
    """What such an optimizer can be asked for between steps."""

    _caller: str
    _collector: Collector
    _warned: set
    unsupported: list[str]
    param_groups: list[Any]
    nu: Any
    _unclipped_steps = 0

    def add_param_group(self, param_group):
        """Refuse: the parameters are those that the model had when the optimizer was made."""
        if self.param_groups:
            raise NotImplementedError(
                f"{self._caller}.add_param_group: the parameters are those of the model; make a new optimizer where it "
                "has others."
            )
        super().add_param_group(param_group)  # type: ignore[misc]

    @property
    def stats(self):
        """Counters, times and ranks as `KFACStats`; reads them from the device."""
        layers = self._known_layers()
        return KFACStats(
            steps=self._steps_taken(),
            skipped_steps=self.skipped_steps,
            skipped_updates=int(sum(part.skipped for layer in layers.values() for part in (layer.A, layer.G))),
            failed_inversions=self._failed,
            seconds={"statistics": self._collector.seconds, **self._seconds},
            ranks={name: ranks(layers.get(name)) for name in self._collector.blocks},
            nu=float(self.nu),
            unclipped_steps=self._unclipped_steps,
        )

    def summary(self):
        """Return a table of the layers with their shapes, methods, ranks and memory."""
        head = ("layer", "kind", "q", "p", "method", "ranks (A, G)", "memory")
        rows, layers = [head], self._known_layers()
        for name, block in self._collector.blocks.items():
            layer = layers.get(name)
            sides = ", ".join("-" if rank is None else str(rank) for rank in ranks(layer))
            rows.append(
                (name or "(model)", block.kind, str(block.q), str(block.p), self._config.layer.method, sides,
                 f"{size_of(layer) / 2**20:.1f} MiB")
            )  # fmt: skip
        return table(rows)

    def _overflowed(self, grad_scale):
        """Say whether the scaler of the loss found a gradient that is not finite."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            return False
        if not float(found_inf) and grad_scale is None and self._collector.grad_scaler is None:
            text = "gradients were unscaled before the step: give grad_scaler, else the statistics keep the scale of"
            self._warn_once("grad_scaler", f"{text} the loss", UserWarning)
        return bool(float(found_inf))

    def _count_lost(self, layers):
        """Count the factors that could not be decomposed in the last refresh, of layers by name, and warn of each."""
        for name, layer in layers.items():
            lost = [
                side
                for side, inv in (("A", layer.A_inv), ("G", layer.G_inv))
                if inv is not None and inv.outcome in ("kept", "identity")
            ]
            self._failed += len(lost)
            if lost:
                text = f"factor {' and '.join(lost)} of layer {name} could not be decomposed"
                self._warn_once(name, f"{text}; the inverse of the time before is used", AccuracyWarning)

    def _find_unsupported(self, parameters, skip, names):
        """Note the parameters that get plain steps although nobody asked for it, and warn of them."""
        left_out = {
            id(p)
            for name, module in self._collector.model.named_modules() if _skipped(name, module, skip)
            for p in module.parameters(recurse=False)
        }  # fmt: skip
        self.unsupported = [names[id(p)] for p in parameters if id(p) not in left_out]
        if self.unsupported:
            text = "these parameters take plain gradient steps, as their modules are of no supported kind or too large"
            self._warn_once("unsupported", f"{text}: {', '.join(self.unsupported)}", UserWarning)

    def _warn_of_missing_factors(self):
        text = "the state has no factors; gradients are preconditioned again once there are new statistics"
        warnings.warn(f"{self._caller}: {text}.", UserWarning, stacklevel=_outside())

    def _warn_once(self, key, text, category):
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"{self._caller}: {text}.", category, stacklevel=_outside())


def check_one_process(caller):
    """Raise if several processes train together, each of which would have statistics of its own."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(f"{caller}: torch.distributed must have one process; got {dist.get_world_size()}.")


def ranks(layer):
    """Return the ranks of the inverses of a LayerState, None before there are any."""
    if layer is None:
        return None, None
    inverses = layer.A_inv, layer.G_inv
    return tuple(None if inv is None else inv.dim if inv.kind == "dense" else inv.rank for inv in inverses)


def large_modules(model, skip, most, caller):
    """Return the names of modules with a factor of more than a dimension."""
    layers, _ = find_layers(model, skip=skip, norm_layers="skip", caller=caller)
    large = {
        id(module) for layer in layers for module in layer.modules if any(max(b.p, b.q) > most for b in layer.blocks)
    }
    return [name for name, module in model.named_modules() if id(module) in large]


def check_factors(block, layer, most, caller):
    """Raise unless the averages of a layer have the shapes that a block wants: vectors above a dimension."""
    for side, M, size in (("A", layer.A.matrix, block.p), ("G", layer.G.matrix, block.q)):
        diagonal = size > most or (block.kind == "embedding" and side == "A")
        if M is not None and M.shape[0] != size:
            raise ValueError(f"{caller}: {block.name} must have a factor of dimension {size}; got {M.shape[0]}.")
        if M is not None and (M.ndim == 1) != diagonal:
            kind = "diagonal" if diagonal else "a matrix"
            raise ValueError(f"{caller}: factor {side} of {block.name} must be {kind}; got shape {tuple(M.shape)}.")
