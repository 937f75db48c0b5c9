"""KLD-WRM for PyTorch models: K-FAC that keeps every old metric where it was measured."""

import time

import numpy as np
import torch

from rnla._backend import key_from_rng
from rnla._errors import AccuracyWarning
from rnla._rangefinder import check_choice
from rnla.optim import LayerConfig, LayerState, momentum_step, refresh_layers
from rnla.optim._kfac_step import KFACConfig
from rnla.optim._wake import RESIDUALS, STORED, VARIANTS, memory_weights, wake_step
from rnla.torch._checkpoint import check_keys, decoded, encoded, size_of
from rnla.torch._collect import Collector
from rnla.torch._copies import NO_ARGUMENTS, Rebuilt
from rnla.torch._find import unwrapped
from rnla.torch._layer_methods import LayerMethods, check_factors, check_one_process, large_modules
from rnla.torch._outputs import Outputs
from rnla.torch._settings import at, check_flag, check_scaler, check_setting, check_skip, current, varies
from rnla.torch._zero_grad import ForgetsStatistics

MEMORY = {"so": 0.33, "q": 0.5, "qe": 0.5}  # decay rates of the published runs


class KLDWRM(LayerMethods, Rebuilt, ForgetsStatistics, torch.optim.Optimizer):
    """Wake of Kullback-Leibler-regularised models: K-FAC in which old metrics stay where they were measured.

    The exponential average of K-FAC re-centres the metrics of all earlier steps at the present weights. Here each one
    keeps measuring the distance from the weights at which it was taken; in effect the gradient is corrected by what
    the steps since then have done. Statistics are those of the targets of the batch (empirical Fisher matrix).

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    lr : float or callable
        Learning rate, the inverse of the weight of the metrics; a function of the step, or scheduled as any other.
    variant : {"so", "q", "qe"}
        ``so``: linear model of the loss, second-order divergence; one stored gradient, else the cost of K-FAC. ``q``:
        quadratic model with the curvature of the batch. ``qe``: that with the exact divergence of the outputs from
        those of three stored networks, by 7 inner steps; for classifiers.
    residual : {"gradient", "exact"}
        Correct by the last gradient, as if the last step had been an exact minimiser, or by the steps that were taken.
    q_solver : {"kron_sum", "factor_sum"}
        ``q`` and ``qe``: solve with the sum of Kronecker products exactly, or with the product of sums, as published.
    rho : float, optional
        Decay rate of the average: 0.33 for ``so``, 0.5 for the others by default, as published.
    damping, damping_mode
        As for `rnla.optim.precondition`; not ``joint`` for ``q`` and ``qe``.
    momentum, nesterov, weight_decay
        As for `rnla.optim.momentum_step`, but the decay is part of the gradient, and added to the damping.
    factor_every, inverse_every : int
        Steps between statistics in the average, and between inverses.
    kl_clip, rms_clip : float, optional
        As for `rnla.optim.kl_clip` and `rnla.optim.rms_clip`.
    method, rank, oversampling, products, tail
        As for `rnla.optim.LayerConfig`, for ``so``.
    loss_average, weight_sharing, skip, grad_scaler
        As for `KFACPreconditioner`.
    max_factor_dim : int
        Larger factors are diagonal for ``so``; for the others the layer takes plain gradient steps.
    rng : None, int or numpy.random.Generator
        Source of random blocks.

    Attributes
    ----------
    skipped_steps : int
        Steps that were left out because a gradient was not finite.
    unsupported : list of str
        Names of trainable parameters that take plain gradient steps although nobody asked for it.
    nu : Tensor or float
        Factor of the last clipping by the divergence.

    Raises
    ------
    ValueError
        If an argument is not one of the above.

    Notes
    -----
    The numbers are those of `rnla.optim.mlp.kfac_step` with the same `variant`. Parameters that belong to no linear
    layer, convolution or embedding get plain gradient steps, and a warning names them. The hyperparameters may be
    functions of the step. ``qe`` evaluates all networks in evaluation mode, without dropout; it notes the arguments of
    the last call of the model in training mode. With scaled losses, a step whose gradients overflowed changes nothing;
    give `grad_scaler` if gradients are unscaled before the step. Several processes are not supported.

    References
    ----------
    .. [1] Puiu, ECML-PKDD 2022, arXiv 2204.04718.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import KLDWRM
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> x = torch.randn(60, 4)
    >>> y = x[:, :3].argmax(dim=1)
    >>> opt = KLDWRM(model, lr=0.2, variant="so", factor_every=1, inverse_every=1)
    >>> losses = []
    >>> for _ in range(30):
    ...     opt.zero_grad()
    ...     loss = torch.nn.functional.cross_entropy(model(x), y)
    ...     loss.backward()
    ...     _ = opt.step()
    ...     losses.append(float(loss.detach()))
    >>> losses[-1] < 0.7 * losses[0]
    True
    """

    _caller = "rnla.torch.KLDWRM"
    _step_supports_amp_scaling = True

    def __init__(
        self, model, lr=0.01, *, variant="so", residual="gradient", q_solver="kron_sum", rho=None, damping=0.1,
        damping_mode="relative", momentum=0.0, nesterov=False, weight_decay=0.0, factor_every=10, inverse_every=50,
        kl_clip=None, rms_clip=0.07, method="exact", rank=220, oversampling=10, products=None, tail="trace",
        loss_average="batch", weight_sharing="expand", skip=(), max_factor_dim=8192, grad_scaler=None, rng=None,
    ):  # fmt: skip
        self._arguments = {name: value for name, value in locals().items() if name not in NO_ARGUMENTS}
        self._wrapped, caller = model, self._caller
        model = unwrapped(model, caller)
        check_flag("nesterov", nesterov, caller)
        check_skip(skip, caller)
        check_scaler(grad_scaler, caller)
        check_choice(variant, "variant", VARIANTS[1:], caller)
        check_choice(residual, "residual", RESIDUALS, caller)
        check_choice(q_solver, "q_solver", ("kron_sum", "factor_sum"), caller)
        self._settings = {
            "lr": lr, "rho": MEMORY[variant] if rho is None else rho, "damping": damping, "momentum": momentum,
            "weight_decay": weight_decay, "factor_every": factor_every, "inverse_every": inverse_every, "rank": rank,
            "kl_clip": kl_clip, "rms_clip": rms_clip, "oversampling": oversampling, "products": products,
        }  # fmt: skip
        for name, value in self._settings.items():
            check_setting(name, value, caller)
        if rank == "adaptive":
            raise ValueError(f"{caller}: rank must be an integer, or one for each step; got 'adaptive'.")
        key = key_from_rng(rng, caller)
        if variant != "so" and damping_mode == "joint":
            raise ValueError(f"{caller}: damping_mode must split the damping for variant {variant!r}; got 'joint'.")
        layer = LayerConfig(method=method, tail=tail, damping_mode=damping_mode).checked(caller)
        if method == "brand":
            raise ValueError(f"{caller}: method must be one that keeps the averages; got 'brand'.")
        self._config = KFACConfig(
            (), nesterov=nesterov, layer=layer, variant=variant, residual=residual, q_solver=q_solver,
            seed=rng if isinstance(rng, int) else key,
        )  # fmt: skip
        check_one_process(caller)
        large = large_modules(model, skip, max_factor_dim, caller) if variant != "so" else []
        self._collector = Collector(
            model, skip=[*skip, *large], norm_layers="skip", loss_average=loss_average, weight_sharing=weight_sharing,
            max_factor_dim=max_factor_dim, grad_scaler=grad_scaler, seed=self._config.seed, caller=caller,
        )  # fmt: skip
        self._blocks = self._collector.blocks
        if variant != "so" and any(block.kind == "embedding" for block in self._blocks.values()):
            raise ValueError(
                f"{caller}: variant must be 'so' for a model with embeddings, or skip them; got {variant!r}."
            )
        own = {id(p) for block in self._blocks.values() for p in block.parameters()}
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._others = [p for p in parameters if id(p) not in own]
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._step, self._layers, self._wake, self._buffers = 0, {}, {}, {}
        self._stored: list = []
        self._max_dim, self.nu, self.skipped_steps, self._failed = max_factor_dim, 1.0, 0, 0
        self._seconds, self._warned = {"inversion": 0.0, "preconditioning": 0.0}, set()
        self._outputs = Outputs(model, self._blocks, self._names) if variant == "qe" else None
        super().__init__(parameters, {"lr": at(lr, 0)})
        self._find_unsupported(self._others, skip, self._names)
        self._arm()

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step from the gradients of the parameters.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients anew.

        Returns
        -------
        Tensor or None
            What `closure` returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        grad_scale = getattr(self, "grad_scale", None)
        if self._overflowed(grad_scale):
            self._forget()
            return result
        found = self._collector.take(grad_scale if self._collector.grad_scaler is None else None)
        config = self._at_step()
        grads = {name: V for name, block in self._blocks.items() if (V := block.gradient()) is not None}
        others = {self._names[id(p)]: (p, p.grad) for p in self._others if p.grad is not None}
        if grad_scale is not None:
            grads = {name: V / grad_scale for name, V in grads.items()}
            others = {name: (p, g / grad_scale) for name, (p, g) in others.items()}
        if not all(bool(torch.isfinite(X.sum())) for X in (*grads.values(), *(g for _, g in others.values()))):
            self.skipped_steps += 1
            text = "a gradient had a NaN or an infinity, and the step changed no weight"
            self._warn_once("gradients", text, AccuracyWarning)
        elif config.lr == 0:  # as at the end of a schedule
            self._step += 1
        else:
            self._update_layers(found, config)
            self._advance(grads, found, config)
            for name, (p, g) in others.items():
                p.copy_(self._moved(p.detach(), g + config.weight_decay * p, name, config))
            self._step += 1
        self._forget()
        self._arm()
        return result

    def skip_step(self):
        """Forget the statistics of passes after which there is no step, because their gradients were not finite."""
        self._forget()

    def memory_usage(self):
        """Return the bytes of averages, inverses, momentum, and of what is remembered of earlier steps."""
        return size_of([self._layers, self._wake, self._stored, self._buffers])

    def state_dict(self, include_factors=True):
        """Return everything that the next steps need, as dicts, lists and tensors.

        Parameters
        ----------
        include_factors : bool
            With the averages, the inverses and the memory of earlier steps. Without, the state is small, and they are
            collected anew.
        """
        kept = {
            "step": self._step, "layers": self._layers, "wake": self._wake, "stored": self._stored,
            "buffers": self._buffers, "seed": self._config.seed, "skipped_steps": self.skipped_steps,
            "unclipped_steps": self._unclipped_steps, "complete": include_factors,
        }  # fmt: skip
        if not include_factors:
            kept |= {"layers": {}, "wake": {}, "stored": []}
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        kind = [self._config.variant, self._config.residual]  # what the memory of the steps is
        return {"state": encoded(kept), "kind": kind, "param_groups": groups}

    def load_state_dict(self, state_dict):
        """Go on from a `state_dict` of an optimizer of the same model.

        Raises
        ------
        ValueError
            If it is the state of another model or variant, or of another kind of optimizer.
        """
        caller = "rnla.torch.KLDWRM.load_state_dict"
        check_keys(state_dict, ("state", "kind", "param_groups"), caller)
        kind = [self._config.variant, self._config.residual]
        if state_dict["kind"] != kind:
            raise ValueError(f"{caller}: state_dict must be of variant and residual {kind}; got {state_dict['kind']}.")
        device = self.param_groups[0]["params"][0].device
        kept = decoded(state_dict["state"], device)
        for name, layer in kept["layers"].items():
            if name not in self._blocks:
                raise ValueError(f"{caller}: state_dict must be of the layers {list(self._blocks)}; got {name}.")
            check_factors(self._blocks[name], layer, self._max_dim, caller)
            dense = any(inv is not None and inv.kind == "dense" for inv in (layer.A_inv, layer.G_inv))
            if dense and self._config.layer.damping_mode == "joint":
                raise ValueError(f"{caller}: {name} must have eigenpairs for joint damping; it was saved without any.")
        if not kept["complete"]:
            self._warn_of_missing_factors()
        self._step, self._layers, self._wake = kept["step"], kept["layers"], kept["wake"]
        self._stored, self._buffers = kept["stored"], kept["buffers"]
        self._config = self._config._replace(seed=kept["seed"])
        self._collector.seed, self.skipped_steps = kept["seed"], kept["skipped_steps"]
        self._unclipped_steps = kept["unclipped_steps"]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        self._collector.discard()
        self._collector.disarm()
        self._arm()

    def remove_hooks(self):
        """Take the hooks off the model; without statistics further steps use the inverses that there are."""
        self._collector.remove_hooks()
        if self._outputs is not None:
            self._outputs.remove_hooks()

    def _known_layers(self):
        return self._layers

    def _steps_taken(self):
        return self._step

    def _forget(self):
        """Forget what the passes before the step have left."""
        self._collector.discard()
        if self._outputs is not None:
            self._outputs.forget()

    def _at_step(self):
        """Return the configuration of the present step."""
        values = {name: current(name, value, self._step, self._caller) for name, value in self._settings.items()}
        if not varies(self._settings["lr"]):
            values["lr"] = self.param_groups[0]["lr"]
        inner = {name: values.pop(name) for name in ("rho", "rank", "oversampling", "products")}
        return self._config._replace(layer=self._config.layer._replace(**inner), **values)

    def _arm(self):
        """Collect in the passes before the next step, if it needs that."""
        every = current("factor_every", self._settings["factor_every"], self._step, self._caller)
        if self._config.variant != "so" or self._step % every == 0:
            self._collector.arm(self._step)
        else:
            self._collector.disarm()

    def _update_layers(self, found, config):
        """Fold the statistics in, and refresh the inverses, where that is due."""
        damping = config.damping + config.weight_decay
        if self._step % config.factor_every == 0:
            for name, part in found.items():
                self._layers[name] = self._layers.get(name, LayerState()).add_factors(part.A, part.G, config.layer)
        if config.variant == "so":
            self._refresh(config, damping)

    def _refresh(self, config, damping):
        """Refresh the inverses where that is due, and where nothing was known before."""
        due, start = self._step % config.inverse_every == 0, time.perf_counter()
        known = {
            i: name
            for i, name in enumerate(self._blocks)
            if name in self._layers and (due or _blank(self._layers[name], self._step % config.factor_every == 0))
        }
        states, count = [self._layers[name] for name in known.values()], len(known)
        rngs = [np.random.SeedSequence([config.seed, self._step, i]) for i in known]
        states = refresh_layers(states, [config.layer] * count, [damping] * count, rngs=rngs)
        fresh = dict(zip(known.values(), states, strict=True))
        self._layers |= fresh
        self._count_lost(fresh)
        self._seconds["inversion"] += time.perf_counter() - start

    def _advance(self, grads, found, config):
        """Move the weights of the blocks."""
        start = time.perf_counter()
        grads = {name: V + config.weight_decay * self._blocks[name].weight() for name, V in grads.items()}
        quadratic = config.variant != "so"
        names = [name for name in grads if name in self._layers and (not quadratic or name in found)]
        divergence, before = None, None
        if config.variant == "qe":
            before = {name: block.weight().clone() for name, block in self._blocks.items()}
            if self._stored and self._outputs.known and names:
                weights = memory_weights(len(self._stored), config.layer.rho)
                divergence = self._outputs.divergence(names, self._stored, weights)
        updates, memories = [], ()
        if names:
            updates, self.nu, memories, failed, usable = wake_step(
                [grads[name] for name in names], [self._layers[name] for name in names],
                [tuple(found[name][:2]) for name in names] if quadratic else None,
                tuple(self._wake.get(name) for name in names), config.damping + config.weight_decay, config, divergence,
            )  # fmt: skip
            self._failed, self._unclipped_steps = self._failed + len(failed), self._unclipped_steps + (not bool(usable))
            for i in failed:
                text = f"the quadratic model of layer {names[i]} could not be solved; it is left out of the step"
                self._warn_once(names[i], text, AccuracyWarning)
        if before is not None and self._step % config.factor_every == 0:
            self._stored = [before, *self._stored[: STORED - 1]]
        # What a block was not used for is no step of its to be corrected by.
        self._wake = dict(zip(names, memories, strict=True))
        updates = {**grads, **dict(zip(names, updates, strict=True))}  # without statistics the plain gradient
        for name, V in updates.items():
            block = self._blocks[name]
            block.write_weight(self._moved(block.weight(), V, name, config))
        self._seconds["preconditioning"] += time.perf_counter() - start

    def _moved(self, W, V, name, config):
        """Return new weights; the weight decay is in V already."""
        W, buffer = momentum_step(
            W, V, self._buffers.get(name), config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        if buffer is not None:
            self._buffers[name] = buffer
        return W


def _blank(layer, informed):
    """Say whether a layer has no inverse yet, or with new statistics one that knows nothing."""
    inverses = layer.A_inv, layer.G_inv
    return any(inv is None for inv in inverses) or (informed and any(inv.kind == "identity" for inv in inverses))
