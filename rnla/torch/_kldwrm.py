"""KLD-WRM for PyTorch models: K-FAC that keeps every old metric where it was measured."""

from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from rnla._backend import key_from_rng
from rnla._rangefinder import check_choice
from rnla.optim import LayerConfig, LayerState, momentum_step, refresh_layers, symmetric_kl_gradient
from rnla.optim._kfac_step import KFACConfig
from rnla.optim._wake import RESIDUALS, STORED, VARIANTS, memory_weights, wake_step
from rnla.torch._collect import Collector
from rnla.torch._plain import from_plain, to_plain
from rnla.torch._settings import at, check_setting, varies

MEMORY = {"so": 0.33, "q": 0.5, "qe": 0.5}  # decay rates of the published runs


class KLDWRM(torch.optim.Optimizer):
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
    loss_average, weight_sharing, skip
        As for `KFACPreconditioner`.
    rng : None, int or numpy.random.Generator
        Source of random blocks.

    Attributes
    ----------
    skipped_steps : int
        Steps that were left out because a gradient was not finite.

    Raises
    ------
    ValueError
        If an argument is not one of the above.

    Notes
    -----
    The numbers are those of `rnla.optim.mlp.kfac_step` with the same `variant`. Parameters that belong to no linear
    layer, convolution or embedding get plain gradient steps. The hyperparameters may be functions of the step. ``qe``
    evaluates all networks in evaluation mode, without dropout; it notes the arguments of the last call of the model in
    training mode. Neither loss scaling nor several processes are supported.

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

    def __init__(
        self, model, lr=0.01, *, variant="so", residual="gradient", q_solver="kron_sum", rho=None, damping=0.1,
        damping_mode="relative", momentum=0.0, nesterov=False, weight_decay=0.0, factor_every=10, inverse_every=50,
        kl_clip=None, rms_clip=0.07, method="exact", rank=220, oversampling=10, products=None, tail="trace",
        loss_average="batch", weight_sharing="expand", skip=(), rng=None,
    ):  # fmt: skip
        caller = "rnla.torch.KLDWRM"
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
        self._collector = Collector(
            model, skip=skip, norm_layers="skip", loss_average=loss_average, weight_sharing=weight_sharing,
            max_factor_dim=2**31, seed=self._config.seed, caller=caller,
        )  # fmt: skip
        self._model, self._blocks = model, self._collector.blocks
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
        self._last, self._handle, self.skipped_steps = LastCall(), None, 0
        if variant == "qe":
            self._handle = model.register_forward_pre_hook(self._last, with_kwargs=True)
        super().__init__(parameters, {"lr": at(lr, 0)})
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
        found, config = self._collector.take(), self._at_step()
        grads = {name: V for name, block in self._blocks.items() if (V := block.gradient()) is not None}
        others = [p for p in self._others if p.grad is not None]
        if not all(bool(torch.isfinite(X.sum())) for X in (*grads.values(), *(p.grad for p in others))):
            self.skipped_steps += 1
        elif config.lr == 0:  # as at the end of a schedule
            self._step += 1
        else:
            self._update_layers(found, config)
            self._advance(grads, found, config)
            for p in others:
                p.copy_(self._moved(p.detach(), p.grad + config.weight_decay * p, self._names[id(p)], config))
            self._step += 1
        self._last.arguments = None
        self._arm()
        return result

    def state_dict(self):
        """Return everything that the next steps need, as dicts, lists and tensors."""
        kept = {
            "step": self._step, "layers": self._layers, "wake": self._wake, "stored": self._stored,
            "buffers": self._buffers, "seed": self._config.seed, "skipped_steps": self.skipped_steps,
        }  # fmt: skip
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        return {"state": to_plain(kept), "param_groups": groups}

    def load_state_dict(self, state_dict):
        """Go on from a `state_dict` of an optimizer of the same model.

        Raises
        ------
        ValueError
            If a layer is missing, or its factors have other dimensions.
        """
        caller = "rnla.torch.KLDWRM.load_state_dict"
        device = self.param_groups[0]["params"][0].device
        kept = from_plain(state_dict["state"], device)
        for name, layer in kept["layers"].items():
            if name not in self._blocks:
                raise ValueError(f"{caller}: state_dict must be of the layers {list(self._blocks)}; got {name}.")
            block = self._blocks[name]
            for M, size in ((layer.A.matrix, block.p), (layer.G.matrix, block.q)):
                if M is not None and M.shape[0] != size:
                    raise ValueError(f"{caller}: {name} must have a factor of dimension {size}; got {M.shape[0]}.")
        self._step, self._layers, self._wake = kept["step"], kept["layers"], kept["wake"]
        self._stored, self._buffers = kept["stored"], kept["buffers"]
        self._config = self._config._replace(seed=kept["seed"])
        self._collector.seed, self.skipped_steps = kept["seed"], kept["skipped_steps"]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        self._collector.discard()
        self._collector.disarm()
        self._arm()

    def remove_hooks(self):
        """Take the hooks off the model; without statistics further steps use the inverses that there are."""
        self._collector.remove_hooks()
        if self._handle is not None:
            self._handle.remove()

    def _at_step(self):
        """Return the configuration of the present step."""
        values = {name: at(value, self._step) for name, value in self._settings.items()}
        if not varies(self._settings["lr"]):
            values["lr"] = self.param_groups[0]["lr"]
        inner = {name: values.pop(name) for name in ("rho", "rank", "oversampling", "products")}
        return self._config._replace(layer=self._config.layer._replace(**inner), **values)

    def _arm(self):
        """Collect in the passes before the next step, if it needs that."""
        if self._config.variant != "so" or self._step % at(self._settings["factor_every"], self._step) == 0:
            self._collector.arm(self._step)
        else:
            self._collector.disarm()

    def _update_layers(self, found, config):
        """Fold the statistics in, and refresh the inverses, where that is due."""
        damping = config.damping + config.weight_decay
        if self._step % config.factor_every == 0:
            for name, part in found.items():
                self._layers[name] = self._layers.get(name, LayerState()).add_factors(part.A, part.G, config.layer)
        if self._step % config.inverse_every == 0 and config.variant == "so":
            known = {i: name for i, name in enumerate(self._blocks) if name in self._layers}
            states, count = [self._layers[name] for name in known.values()], len(known)
            rngs = [np.random.SeedSequence([config.seed, self._step, i]) for i in known]
            states = refresh_layers(states, [config.layer] * count, [damping] * count, rngs=rngs)
            self._layers |= zip(known.values(), states, strict=True)

    def _advance(self, grads, found, config):
        """Move the weights of the blocks."""
        grads = {name: V + config.weight_decay * self._blocks[name].weight() for name, V in grads.items()}
        quadratic = config.variant != "so"
        names = [name for name in grads if name in self._layers and (not quadratic or name in found)]
        divergence, before = None, None
        if config.variant == "qe":
            before = {name: block.weight().clone() for name, block in self._blocks.items()}
            if self._stored and self._last.arguments is not None and names:
                divergence = self._divergence(names, config)
        updates, memories = [], ()
        if names:
            updates, _, memories, _ = wake_step(
                [grads[name] for name in names], [self._layers[name] for name in names],
                [tuple(found[name][:2]) for name in names] if quadratic else None,
                tuple(self._wake.get(name) for name in names), config.damping + config.weight_decay, config, divergence,
            )  # fmt: skip
        if before is not None and self._step % config.factor_every == 0:
            self._stored = [before, *self._stored[: STORED - 1]]
        # What a block was not used for is no step of its to be corrected by.
        self._wake = dict(zip(names, memories, strict=True))
        updates = {**grads, **dict(zip(names, updates, strict=True))}  # without statistics the plain gradient
        for name, V in updates.items():
            block = self._blocks[name]
            block.write_weight(self._moved(block.weight(), V, name, config))

    def _moved(self, W, V, name, config):
        """Return new weights; the weight decay is in V already."""
        W, buffer = momentum_step(
            W, V, self._buffers.get(name), config.lr, momentum=config.momentum, nesterov=config.nesterov
        )
        if buffer is not None:
            self._buffers[name] = buffer
        return W

    def _divergence(self, names, config):
        """Return the gradient of the mean divergence from the stored networks as a function of the steps."""
        weights = memory_weights(len(self._stored), config.layer.rho)
        with _evaluation(self._model):
            logits = [self._outputs(stored)[0] for stored in self._stored]
        present = {name: self._blocks[name].weight().clone() for name in names}

        def gradient(steps):
            moved = {name: present[name] + s for name, s in zip(names, steps, strict=True)}
            with _evaluation(self._model), torch.enable_grad():
                z, tensors = self._outputs(moved)
            dz = sum(w * symmetric_kl_gradient(old, z.detach()) for w, old in zip(weights, logits, strict=True))
            found = torch.autograd.grad(z, list(tensors.values()), dz, allow_unused=True)
            found = [torch.zeros_like(X) if g is None else g for X, g in zip(tensors.values(), found, strict=True)]
            slopes = dict(zip(tensors, found, strict=True))
            return [
                self._blocks[name].matrix([slopes[id(p)] for p in self._blocks[name].parameters()]) for name in names
            ]

        return gradient

    def _outputs(self, weights):
        """Return the outputs with other weights of some blocks, and the tensors that stood for the parameters."""
        with torch.no_grad():
            tensors = {}
            for name, W in weights.items():
                block = self._blocks[name]
                own = [tensors.setdefault(id(p), p.detach().clone()) for p in block.parameters()]
                for place, piece in zip(block.views(own), block.pieces(W), strict=True):
                    place.copy_(piece)
        for X in tensors.values():
            X.requires_grad_(torch.is_grad_enabled())
        args, kwargs = self._last.arguments
        z = functional_call(self._model, {self._names[key]: X for key, X in tensors.items()}, args, kwargs)
        if not isinstance(z, torch.Tensor) or z.ndim != 2:
            raise ValueError(
                f"rnla.torch.KLDWRM.step: the model must return logits of shape (N, c) for variant 'qe'; "
                f"got {tuple(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__}."
            )
        return z, tensors


class LastCall:
    """Hook that keeps the arguments of the last call of a model in training, until the step; a copy does nothing."""

    def __init__(self, active=True):
        self._active = active
        self.arguments: Any = None

    def __call__(self, module, args, kwargs):
        """Note the call."""
        if self._active and module.training and torch.is_grad_enabled():
            self.arguments = args, kwargs

    def __reduce__(self):
        return LastCall, (False,)


@contextmanager
def _evaluation(model):
    """Put the model in evaluation mode for a ``with`` block, and every module back in its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
