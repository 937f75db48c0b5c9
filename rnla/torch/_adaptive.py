"""K-FAC that chooses its own step length, momentum and damping, for PyTorch models."""

import contextlib
import warnings

import torch
from torch.func import functional_call, jvp

from rnla._backend import key_from_rng
from rnla._rangefinder import check_choice, check_count
from rnla.optim import LayerConfig
from rnla.optim import likelihood as likelihood_of
from rnla.optim._adaptive_step import (
    AdaptiveConfig,
    AdaptiveState,
    Problem,
    adaptive_update,
    neighbour_factors,
    part_of_batch,
)
from rnla.optim._inverse import METHODS
from rnla.torch._adaptive_checks import check_chain, check_ranges, checked_parameters, checked_result
from rnla.torch._checkpoint import check_keys, decoded, encoded, size_of
from rnla.torch._collect import LIKELIHOODS, Collector
from rnla.torch._copies import NO_ARGUMENTS, Rebuilt
from rnla.torch._find import unwrapped
from rnla.torch._layer_methods import LayerMethods, check_factors, check_one_process
from rnla.torch._settings import check_flag


class AdaptiveKFAC(LayerMethods, Rebuilt, torch.optim.Optimizer):
    """K-FAC of Martens and Grosse with everything in it: no learning rate, hardly anything to tune.

    Each step is the minimiser of a quadratic model with the exact Fisher matrix along the preconditioned gradient and
    the last step; how well the model predicted the loss sets its damping, and the damping of the factors is searched
    for. It wants large batches, of some hundred examples at least.

    Parameters
    ----------
    model : torch.nn.Module
        Every trainable parameter must belong to a linear layer or a convolution. Without dropout: the loss is computed
        twice and must be the same function.
    likelihood : {"softmax", "logistic", "gaussian"}
        The loss as a negative log-likelihood of the outputs, averaged over the batch: ``cross_entropy``; binary
        cross-entropy with logits, summed over the outputs; half the squared distance.
    lam0 : float
        Damping of the quadratic model at the beginning.
    eta : float
        Coefficient of ``||weights||**2 / 2``, which is added to the loss here.
    lam_every, gamma_every, inverse_every : int
        Steps between updates of that damping, searches for the damping of the factors, and refreshed inverses.
    statistics_share, model_share : float
        Shares of the batch for the statistics, which take a further pass with targets drawn from the model, and for
        the products with the exact Fisher matrix.
    momentum : bool
        Let the model combine the new direction with the last step.
    tridiagonal : bool
        Invert the block-tridiagonal approximation: for models that are a chain of linear layers.
    reject : bool
        Undo a step that raised the loss, and raise the damping.
    averaging : float
        Largest weight of the past in the average of the weights; see `averaged`.
    rho, method, rank, oversampling, products, tail
        As for `rnla.optim.LayerConfig`.
    weight_sharing : {"expand", "reduce"}
        As for `rnla.optim.input_factor`.
    max_factor_dim : int
        Larger factors are diagonal; there must be none with `tridiagonal`.
    rng : None, int or numpy.random.Generator
        Source of the targets that are drawn, and of random blocks.

    Attributes
    ----------
    info : dict
        Of the last step; see `rnla.optim.mlp.adaptive_step`.
    skipped_steps : int
        Steps that changed no weight, because the loss or a gradient was not finite.

    Raises
    ------
    ValueError
        If an argument is out of its range, a parameter has no block, or with `tridiagonal` the model is no chain.

    Notes
    -----
    A step costs a forward and backward pass of the batch, one of `statistics_share` of it, two tangent passes of
    `model_share` of it (every `gamma_every` steps three times two), and every `lam_every` steps a forward pass more.
    The numbers are those of `rnla.optim.mlp.adaptive_step`. Neither scaled losses nor several processes are supported.

    References
    ----------
    .. [1] Martens, Grosse, ICML 2015, arXiv 1503.05671.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import AdaptiveKFAC
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> x = torch.randn(120, 4)
    >>> y = x[:, :3].argmax(dim=1)
    >>> def closure():
    ...     output = model(x)
    ...     return torch.nn.functional.cross_entropy(output, y), output
    >>> opt = AdaptiveKFAC(model, lam0=1.0, rng=0)
    >>> losses = [float(opt.step(closure)) for _ in range(20)]
    >>> losses[-1] < 0.5 * losses[0]
    True
    """

    _caller = "rnla.torch.AdaptiveKFAC"
    nu = 1.0  # nothing is clipped

    def __init__(
        self, model, *, likelihood="softmax", lam0=150.0, eta=1e-5, lam_every=5, gamma_every=20, inverse_every=20,
        statistics_share=1 / 8, model_share=1 / 4, momentum=True, tridiagonal=False, reject=False, averaging=0.99,
        rho=0.95, method="exact", rank=220, oversampling=10, products=None, tail="trace", weight_sharing="expand",
        max_factor_dim=8192, rng=None,
    ):  # fmt: skip
        self._arguments = {name: value for name, value in locals().items() if name not in NO_ARGUMENTS}
        self._wrapped, caller = model, self._caller
        check_choice(likelihood, "likelihood", tuple(LIKELIHOODS), caller)
        for name, value in (("lam_every", lam_every), ("gamma_every", gamma_every), ("inverse_every", inverse_every)):
            check_count(value, name, caller)
        bare = unwrapped(model, caller)
        check_ranges(caller, lam0, eta, averaging, rho, statistics_share, model_share)
        check_count(rank, "rank", caller)
        check_count(oversampling, "oversampling", caller, least=0)
        if products is not None:
            check_count(products, "products", caller)
        for name, flag in (("momentum", momentum), ("tridiagonal", tridiagonal), ("reject", reject)):
            check_flag(name, flag, caller)
        check_choice(method, "method", METHODS, caller)
        layer = LayerConfig(rho, "warmup", method, rank, oversampling, products, tail, damping_mode="pi")
        key = key_from_rng(rng, caller)
        seed = rng if isinstance(rng, int) else key
        self._config = AdaptiveConfig(
            (), LIKELIHOODS[likelihood], lam0, eta, lam_every, gamma_every, inverse_every, statistics_share,
            model_share, momentum, tridiagonal, reject, layer.checked(caller), averaging, seed,
        )  # fmt: skip
        check_one_process(caller)
        self._collector = Collector(
            bare, norm_layers="skip", fisher="mc", weight_sharing=weight_sharing, max_factor_dim=max_factor_dim,
            seed=seed, caller=caller,
        )  # fmt: skip
        self._model, self._blocks = model, list(self._collector.blocks.values())
        parameters = checked_parameters(model, self._blocks, caller)
        if tridiagonal:
            check_chain(self._blocks, self._collector.layers, max_factor_dim, caller)
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._state, self.info, self._max_dim = AdaptiveState(), {}, max_factor_dim
        self.skipped_steps, self._failed, self._seconds, self._warned = 0, 0, {}, set()
        self.unsupported: list[str] = []  # all parameters have a block
        super().__init__(parameters, {})

    def step(self, closure):
        """Take one step.

        Parameters
        ----------
        closure : callable
            Calls the model once on the batch and returns ``(loss, output)``, without a backward pass. The first
            dimension of the inputs and of `output` counts the examples.

        Returns
        -------
        Tensor, shape ()
            The loss before the step. Where it is not finite, the weights stay and the damping is raised.
        """
        caller = "rnla.torch.AdaptiveKFAC.step"
        if not self._model.training:
            raise ValueError(f"{caller}: the model must be in training mode, model.train(); it is in evaluation mode.")
        with torch.enable_grad(), _calls(self._model) as calls:
            loss, output = checked_result(closure(), caller)
        if not calls:
            raise ValueError(f"{caller}: closure must call the model; it did not.")
        parameters = self.param_groups[0]["params"]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        grads = {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)}
        with torch.no_grad():
            loss = loss.detach()
            if not all(map(_finite, (loss, *grads.values()))):
                return self._refuse(loss)
            V = [block.matrix([grads[id(p)] for p in block.parameters()]) for block in self._blocks]
            problem = Problem(
                likelihood_of(self._config.loss), loss, V, lambda W: self._loss(W, closure),
                lambda: self._statistics(calls[0], output.shape[0]),
                lambda D: self._tangents(calls[0], output.shape[0], D),
            )  # fmt: skip
            before = self._known_layers()
            moved, self._state, self.info = adaptive_update(self._weights(), self._state, problem, self._config)
            self._write(moved)
            known = {name: layer.A_inv for name, layer in before.items()}
            layers = self._known_layers()
            self._count_lost({name: layer for name, layer in layers.items() if layer.A_inv is not known.get(name)})
        return loss

    @contextlib.contextmanager
    def averaged(self):
        """Put the average of the weights into the model for a ``with`` block: it is often better than the last ones."""
        before = self._weights()
        with torch.no_grad():
            self._write(self._state.average or before)
        try:
            yield
        finally:
            with torch.no_grad():
                self._write(before)

    def memory_usage(self):
        """Return the bytes of averages, inverses, the last step and the average of the weights."""
        inverse = self._state.inverse
        return size_of([*self._state[:-1], vars(inverse) if self._config.tridiagonal and inverse else inverse])

    def state_dict(self, include_factors=True):
        """Return everything that the next steps need, as dicts, lists and tensors.

        Parameters
        ----------
        include_factors : bool
            With the averages of the factors and their inverses. Without, the state is smaller, and they are collected
            anew.
        """
        state = self._state if include_factors else self._state._replace(layers=(), neighbours=(), inverse=None)
        return {"state": encoded(state._asdict()), "blocks": [block.name for block in self._blocks],
                "seed": self._config.seed, "tridiagonal": self._config.tridiagonal, "complete": include_factors,
                "param_groups": []}  # fmt: skip

    def load_state_dict(self, state_dict):
        """Go on from a `state_dict` of an optimizer of the same model.

        Raises
        ------
        ValueError
            If the layers are others, or it is the state of another kind of optimizer.
        """
        caller = f"{self._caller}.load_state_dict"
        check_keys(state_dict, ("state", "blocks", "seed", "tridiagonal", "complete"), caller)
        names, tridiagonal = [block.name for block in self._blocks], self._config.tridiagonal
        if state_dict["blocks"] != names:
            raise ValueError(f"{caller}: state_dict must be of the layers {names}; got {state_dict['blocks']}.")
        state = AdaptiveState(**decoded(state_dict["state"], self.param_groups[0]["params"][0].device))
        for block, W in zip(self._blocks, state.average or [], strict=False):
            if tuple(W.shape) != (block.q, block.p):
                raise ValueError(f"{caller}: {block.name} must have shape {(block.q, block.p)}; got {tuple(W.shape)}.")
        for block, layer in zip(self._blocks, state.layers, strict=False):
            check_factors(block, layer, self._max_dim, caller)
        if state_dict["tridiagonal"] != tridiagonal:
            raise ValueError(
                f"{caller}: state_dict must have tridiagonal={tridiagonal}; got {state_dict['tridiagonal']}."
            )
        if not state_dict["complete"]:
            self._warn_of_missing_factors()
        self._state = state
        self._config = self._config._replace(seed=state_dict["seed"])
        self._collector.seed = state_dict["seed"]

    def remove_hooks(self):
        """Take the hooks off the model; no further step can be taken."""
        self._collector.remove_hooks()

    def _known_layers(self):
        return dict(zip((block.name for block in self._blocks), self._state.layers, strict=False))

    def _steps_taken(self):
        return self._state.step

    def _weights(self):
        # Copies: a view would follow the weights as they are written.
        return [block.weight().clone() for block in self._blocks]

    def _write(self, weights):
        for block, W in zip(self._blocks, weights, strict=True):
            block.write_weight(W)

    def _refuse(self, loss):
        self.skipped_steps += 1
        lam = self._config.lam0 if self._state.lam is None else self._state.lam
        lam = lam / (19 / 20) ** self._config.lam_every
        self._state = self._state._replace(lam=lam)
        self.info = {"loss": loss, "lam": lam, "gamma": self._state.gamma, "ratio": None}
        return loss

    def _loss(self, weights, closure):
        """Return the loss at other weights."""
        before = self._weights()
        self._write(weights)
        try:
            return closure()[0].detach()
        finally:
            self._write(before)

    def _statistics(self, call, size):
        """Return the factors of every block for drawn targets, and those of neighbours."""
        step, config = self._state.step + 1, self._config
        args, kwargs = _part(call, size, part_of_batch(size, config.statistics_share, step))
        self._collector.arm(
            step,
            keep=dict.fromkeys((block.name for block in self._blocks), ("rows", True)) if config.tridiagonal else None,
        )
        with torch.enable_grad():
            self._collector.sample_fisher(self._model(*args, **kwargs), config.loss)
        self._collector.disarm()
        found = self._collector.take()
        missing = [block.name for block in self._blocks if block.name not in found]
        if missing:
            raise ValueError(f"rnla.torch.AdaptiveKFAC.step: the model must use {', '.join(missing)}; it did not.")
        found = [found[block.name] for block in self._blocks]
        neighbours = []
        if config.tridiagonal:
            if any(part.rows[0].shape[1] > 1 for part in found):
                raise ValueError("rnla.torch.AdaptiveKFAC.step: with tridiagonal inputs must have shape (N, d).")
            inputs, hs = ([part.rows[i][:, 0] for part in found] for i in (0, 1))
            neighbours = neighbour_factors(inputs, [h / h.shape[0] ** 0.5 for h in hs])
        return [(part.A, part.G) for part in found], neighbours

    def _tangents(self, call, size, directions):
        """Return outputs for a part of the batch, and their derivatives along directions."""
        args, kwargs = _part(call, size, part_of_batch(size, self._config.model_share, self._state.step))
        primals = {self._names[id(p)]: p.detach() for p in self.param_groups[0]["params"]}
        changes, z = [], None
        for direction in directions:
            tangents = {name: torch.zeros_like(p) for name, p in primals.items()}
            for block, V in zip(self._blocks, direction, strict=True):
                places = block.views([tangents[self._names[id(p)]] for p in block.parameters()])
                for place, piece in zip(places, block.pieces(V), strict=True):
                    place.copy_(piece)
            with warnings.catch_warnings():
                # On its first use PyTorch registers rules by a function that it deprecates.
                warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
                z, change = jvp(lambda W: functional_call(self._model, W, args, kwargs), (primals,), (tangents,))
            changes.append(change)
        return z, changes


@contextlib.contextmanager
def _calls(model):
    """Yield a list that gets the arguments of every call of the model."""
    calls = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _part(call, size, rows):
    """Return the arguments of a call for some examples: tensors whose first dimension counts all of them are cut."""

    def cut(value):
        return value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == size else value

    args, kwargs = call
    return tuple(cut(value) for value in args), {key: cut(value) for key, value in kwargs.items()}


def _finite(X):
    return bool(torch.isfinite(X.sum()))
