"""K-FAC as an optimizer of PyTorch."""

import time
from collections.abc import Iterable

import torch

from rnla.torch._engine import DEFAULTS, Engine
from rnla.torch._engine_methods import EngineMethods
from rnla.torch._settings import at, check_flag, check_setting, current, varies
from rnla.torch._zero_grad import ForgetsStatistics

GROUP = ("lr", "momentum", "weight_decay", "damping", "rms_clip")  # settings that a group of parameters may have
FLAGS = ("nesterov", "decoupled", "precondition")


class KFAC(EngineMethods, ForgetsStatistics, torch.optim.Optimizer):
    """Kronecker-factored approximate curvature (K-FAC), with exact inverses unless `method` says otherwise.

    Hooks collect the statistics of the layers during the forward and backward passes of the training loop, which stays
    that of any other optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        The network. Linear layers, convolutions of signals and images, embeddings and normalisation layers are
        preconditioned; other parameters take plain gradient steps, see `unsupported`. So do convolutions and
        normalisation layers of subclasses with a ``forward`` of their own.
    params : iterable of Tensor or dict, optional
        Parameters or parameter groups; all of the model by default. Groups may set ``lr``, ``momentum``, ``nesterov``,
        ``weight_decay``, ``decoupled``, ``damping``, ``rms_clip`` and ``precondition``, which is False for plain steps.
        A layer is preconditioned if all its trainable parameters are there; for `damping` and `rms_clip` the group of
        its weight counts.
    lr : float
        Learning rate.
    momentum : float
        Share of the last step that is kept, in [0, 1).
    nesterov : bool
        Look ahead by one step of the momentum.
    weight_decay : float
        Coefficient of half the square of the weights.
    decoupled : bool
        Shrink the weights by ``lr * weight_decay`` in each step; else the decay is part of the gradient, before it is
        preconditioned.
    **options : object
        All other arguments are those of `KFACPreconditioner`, by name: ``damping=0.1``, ``rho=0.95``,
        ``factor_every=10``, ``inverse_every=50``, ``method="exact"``, ``rank=220``, ``rms_clip=0.07``,
        ``kl_clip=None``, ``fisher="empirical"``, ``loss_average="batch"``, ``weight_sharing="expand"``, ``skip=()``,
        ``rng=None`` and so on.

    Raises
    ------
    ValueError, TypeError
        If an argument is not one of the above.

    See Also
    --------
    NysKFAC : The recommended settings.

    Notes
    -----
    All numbers may be functions of the step or tables ``{first step: value}``, whose values are checked as they come;
    the schedulers of PyTorch work as well.
    A convolution with more than 8 groups, such as a depthwise one, is clipped as one layer. The factors of its groups
    are small: they are inverted exactly, whatever `method` says, and without EKFAC; ``damping_mode="relative"`` is
    relative to the largest eigenvalue of all groups. With fewer groups each one is a layer of its own.

    In every step the gradient of a layer is multiplied by two inverses: ``2 q p (q + p)`` flops for dense ones,
    ``4 q p (r_A + r_G)`` for low rank.

    With mixed precision, statistics are taken in single precision, and a step whose gradients overflowed changes
    nothing. Give `grad_scaler` if gradients are unscaled before the step.

    In several processes, statistics are averaged and inversions shared, in the default process group or
    `process_group`; ``sync_grads=True`` averages the gradients, which DistributedDataParallel does itself. A share
    `grad_worker_fraction` of the processes preconditions each layer and sends the update to the others (KAISA).

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671.
    .. [2] Grosse, Martens, ICML 2016, arXiv 1602.01407 (convolutions).
    .. [3] Pauloski et al., SC 2021, arXiv 2107.01739 (several processes).

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import KFAC
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> x = torch.randn(64, 5)
    >>> y = x[:, :1] * x[:, 1:2]
    >>> optimizer = KFAC(model, lr=0.3)
    >>> losses = []
    >>> for _ in range(40):
    ...     optimizer.zero_grad()
    ...     loss = (model(x) - y).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     losses.append(loss.item())
    >>> losses[-1] < 0.5 * losses[0]
    True
    """

    _step_supports_amp_scaling = True

    def __init__(
        self, model, params=None, lr=0.1, *, momentum=0.0, nesterov=False, weight_decay=0.0, decoupled=True, **options
    ):
        self._caller = f"rnla.torch.{type(self).__name__}"
        self._schedules, self._engine = {}, None
        values = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        for name, value in values.items():
            check_setting(name, value, self._caller)
        check_flag("nesterov", nesterov, self._caller)
        check_flag("decoupled", decoupled, self._caller)
        if isinstance(params, torch.Tensor) or not isinstance(params, Iterable | None):
            raise TypeError(f"{self._caller}: params must be a list of parameters or groups; got {params!r}.")
        engine = Engine(model, options, self._caller)
        shared = {name: engine.options[name] for name in ("damping", "rms_clip")}
        flags = {"nesterov": nesterov, "decoupled": decoupled, "precondition": True}
        params = list(model.parameters() if params is None else params)
        if not params:
            raise ValueError(f"{self._caller}: params must not be empty; got none.")
        super().__init__(params, values | flags | shared)
        self._engine = engine
        self._select()

    def add_param_group(self, param_group):
        """Add parameters to those that are trained; new layers are preconditioned from their next statistics on."""
        given = set(param_group) if isinstance(param_group, dict) else set()
        common = sorted(given & DEFAULTS.keys() - set(GROUP))
        if common:
            raise ValueError(
                f"{self._caller}: groups may set {', '.join(GROUP + FLAGS)}; got {', '.join(common)}, which "
                "holds for all parameters."
            )
        for name in given & set(GROUP):
            check_setting(name, param_group[name], self._caller)
        for name in given & set(FLAGS):
            check_flag(name, param_group[name], self._caller)
        super().add_param_group(param_group)
        group, place = self.param_groups[-1], len(self.param_groups) - 1
        for name in GROUP:
            if varies(group[name]):  # the group has numbers, which a checkpoint can hold
                self._schedules[place, name] = group[name]
                group[name] = at(group[name], 0)
        if getattr(self, "_engine", None) is not None:
            self._select()

    def _select(self):
        groups = [group for group in self.param_groups if group["precondition"]]
        self._engine.select([p for group in groups for p in group["params"]], groups)
        self._trained = {p for p in self._all() if p.requires_grad}

    def _all(self):
        return (p for group in self.param_groups for p in group["params"])

    def step(self, closure=None):
        """Take a step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients.

        Returns
        -------
        Tensor or None
            The loss, from `closure`.

        Raises
        ------
        ValueError
            With ``strict=True``, if a factor could not be decomposed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        start, engine = time.perf_counter(), self._engine
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and float(found_inf):
            engine.collector.discard()
            return loss
        if found_inf is not None and getattr(self, "grad_scale", None) is None and not engine.options["grad_scaler"]:
            engine.warn_once(
                "grad_scaler", "gradients were unscaled before the step: give grad_scaler, else the statistics keep "
                "the scale of the loss", UserWarning,
            )  # fmt: skip
        for (place, name), schedule in self._schedules.items():
            self.param_groups[place][name] = current(name, schedule, engine.steps, self._caller)
        with torch.no_grad():
            self._take_step(getattr(self, "grad_scale", None))
        engine.finish(start)
        return loss

    @property
    def _collector(self):
        return self._engine.collector

    def _take_step(self, grad_scale):
        """Precondition, and move the weights."""
        engine = self._engine
        if engine.sharer is not None and engine.options["sync_grads"]:
            engine.sharer.average_gradients(self._all())
        of = {id(p): group for group in self.param_groups for p in group["params"]}

        def decay(block, padding):
            groups = [of[id(p)] for p in block.parameters()]
            rates = [0.0 if group["decoupled"] else group["weight_decay"] for group in groups]
            if not any(rates):
                return None
            pulls = [p.detach() * rate for p, rate in zip(block.parameters(), rates, strict=True)]
            return block.matrix(pulls, padding)

        finite = engine.check_gradients(self._all())
        updates = engine.updates(
            lambda block: of[id(block.weight_parameter)]["lr"], grad_scale=grad_scale, decay=decay, finite=finite
        )
        moves = {id(group): [] for group in self.param_groups}
        covered = set()
        for block, V in updates:
            parts = zip(block.parameters(), block.views(), block.pieces(V), strict=True)
            for p, view, piece in parts:
                if p.grad is not None:
                    covered.add(id(p))
                    moves[id(of[id(p)])].append((p, view, piece, block))
        for group in self.param_groups:
            plain = [p for p in group["params"] if p.grad is not None and id(p) not in covered]
            self._move(group, moves[id(group)], plain, grad_scale, finite)
        if any(p.requires_grad and p not in self._trained for p in self._all()):
            self._select()  # frozen before

    def _move(self, group, moves, plain, grad_scale, finite):
        """Apply weight decay, momentum and the step to the parameters of a group; nothing where `finite` is false."""
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        weights, steps = [move[1] for move in moves], [move[2] for move in moves]
        buffers = [block.part(self._buffer(p)) for p, _, _, block in moves] if momentum else []
        for p in plain:
            g = p.grad.to_dense() if p.grad.is_sparse else p.grad
            g = g if grad_scale is None else g / grad_scale
            g = g if finite is None else torch.where(finite.to(g.device), g, 0.0)
            weights.append(p.detach())
            steps.append(g if group["decoupled"] or not decay else g.add(p, alpha=decay))
            if momentum:
                buffers.append(self._buffer(p))
        if not weights:
            return
        steps = [s if s.dtype == W.dtype else s.to(W.dtype) for s, W in zip(steps, weights, strict=True)]
        keep = 1.0 if finite is None else finite.to(weights[0].device, torch.float32)
        if momentum:
            _scale(buffers, 1 - (1 - momentum) * keep)
            torch._foreach_add_(buffers, steps)
            steps = torch._foreach_add(steps, buffers, alpha=momentum) if group["nesterov"] else buffers
            if finite is not None:
                steps = [step * keep.to(step.device) for step in steps]
        if decay and group["decoupled"]:
            _scale(weights, 1 - lr * decay * keep)
        torch._foreach_add_(weights, steps, alpha=-lr)

    def _buffer(self, p):
        """Return the momentum of a parameter."""
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return self.state[p]["momentum_buffer"]

    def memory_usage(self):
        """Return the bytes of averages, inverses and momentum."""
        buffers = (X for state in self.state.values() for X in state.values())
        return self._engine.memory_usage() + sum(X.nbytes for X in buffers if isinstance(X, torch.Tensor))

    def state_dict(self, include_factors=True):
        """Return the state, for `torch.save`; without factors it is small, and they are collected anew."""
        return super().state_dict() | {"kfac": self._engine.state_dict(include_factors)}

    def load_state_dict(self, state_dict):
        """Take over a state; training goes on as if it had not been interrupted.

        Parameters
        ----------
        state_dict : dict
            From `state_dict`.

        Raises
        ------
        ValueError
            If a layer has another shape, or the parameter groups differ.
        """
        state, caller = dict(state_dict), f"{self._caller}.load_state_dict"
        if "kfac" not in state:
            raise ValueError(f"{caller}: state_dict must be that of a K-FAC optimizer; got keys {', '.join(state)}.")
        kfac = state.pop("kfac")
        self._engine.check_state(kfac, caller)
        super().load_state_dict(state)
        # Loading makes new groups.
        groups = [group for group in self.param_groups if group["precondition"]]
        self._engine.regroup(groups)
        self._engine.load_state_dict(kfac)


def _scale(tensors, factor):
    """Multiply tensors by a number, or a 0-d tensor, in place."""
    if isinstance(factor, torch.Tensor):
        for X in tensors:
            X.mul_(factor.to(X.device))
    else:
        torch._foreach_mul_(tensors, factor)
