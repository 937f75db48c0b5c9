"""Hooks that take the inputs of layers and the derivatives at their outputs, and a buffer in which they wait."""

import numbers
import time
import warnings
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch

from rnla._rangefinder import check_choice, check_count
from rnla.optim import likelihood as likelihood_of
from rnla.torch._blocks import pooled
from rnla.torch._find import find_layers
from rnla.torch._layers import PATCH_BYTES, Sharing
from rnla.torch._settings import check_skip

FISHERS = ("empirical", "mc", "type2")
LIKELIHOODS = {"softmax": "softmax", "logistic": "logistic", "squared": "squared", "gaussian": "squared"}


class Collector:
    """Statistics of the layers of a model, collected by hooks while armed, and handed out when asked for.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    params, skip, norm_layers
        As for `find_layers`.
    fisher : {"empirical", "mc", "type2"}
        Whether the ordinary backward pass is used, or only what `sample_fisher` computes.
    loss_average : {"batch", "batch+sequence", None}, int or callable
        What the loss averages over; see `KFACPreconditioner`.
    weight_sharing : {"expand", "reduce"}
        As for `rnla.optim.input_factor`.
    max_positions : int, optional
        Random subset of the positions at which a weight is used.
    patch_bytes : int, optional
        Most memory that the patches of a convolution take at a time.
    max_factor_dim : int
        Larger factors are diagonal.
    batch_dim : int
        Dimension of the inputs of linear layers that counts the examples.
    stacks : bool
        Whether convolutions with many groups have one block, which is a stack.
    grad_scaler : torch.amp.GradScaler, optional
        Its scale at the time of the backward pass is taken out.
    seed : int
        Of the random subsets and targets.
    caller : str
        Named in errors.

    Attributes
    ----------
    layers : list of Layer
        Modules with blocks.
    blocks : dict of Block
        Blocks by name.
    unsupported : list of str
        Parameters without a block.
    seconds : float
        Time spent on statistics, as the host saw it.
    rank : int
        Of the process among those that train together; each draws other targets.
    removed : bool
        Whether the hooks have been taken off.
    """

    def __init__(
        self, model, *, params=None, skip=(), norm_layers="unit", fisher="empirical", loss_average="batch",
        weight_sharing="expand", max_positions=None, patch_bytes=None, max_factor_dim=8192, batch_dim=0,
        stacks=False, grad_scaler=None, seed=0, caller="rnla.torch.Collector",
    ):  # fmt: skip
        check_choice(fisher, "fisher", FISHERS, caller)
        check_choice(norm_layers, "norm_layers", ("unit", "skip"), caller)
        check_choice(weight_sharing, "weight_sharing", ("expand", "reduce"), caller)
        check_count(max_factor_dim, "max_factor_dim", caller)
        for name, value in (("max_positions", max_positions), ("patch_bytes", patch_bytes)):
            if value is not None:
                check_count(value, name, caller)
        _check_average(loss_average, caller)
        check_skip(skip, caller)
        self.model, self.fisher, self.loss_average, self._caller = model, fisher, loss_average, caller
        self.grad_scaler, self.seed = grad_scaler, seed
        self.sharing = Sharing(weight_sharing, max_positions, patch_bytes or PATCH_BYTES, max_factor_dim, batch_dim)
        self.layers, self.unsupported = find_layers(
            model, params=params, skip=skip, norm_layers=norm_layers, stacks=stacks, caller=caller
        )
        self.blocks = {block.name: block for layer in self.layers for block in layer.blocks}
        self._switch = [False]  # shared with the hooks
        self._step, self._bases, self._keep = 0, {}, {}
        self.seconds, self.rank, self.removed = 0.0, 0, False
        self._found, self._open, self._edges, self._samples, self._last = {}, {}, [], 0, 1
        self._batch, self._calls = None, {}  # of the call of the model that is running; of layers, not yet complete
        self._warned = False
        self._handles = [
            module.register_forward_hook(Hook(self, i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
            for module in layer.modules
        ]
        # After those of the layers, of which the model may be one.
        self._handles.append(model.register_forward_pre_hook(Hook(self, "enter"), with_kwargs=True))
        self._handles.append(model.register_forward_hook(Hook(self, "leave"), with_kwargs=True))
        weakref.finalize(self, _remove, self._handles)

    def arm(self, step=0, *, bases=None, keep=None):
        """Collect from now on.

        Parameters
        ----------
        step : int
            Seeds what is random in this step.
        bases : dict of (Tensor, Tensor), optional
            Eigenvectors of G and A of the blocks whose second moments are wanted.
        keep : dict of (str, bool), optional
            How inputs and derivatives of blocks are wanted one by one, and whether their factors are; see `Sharing`.
        """
        self._switch[0] = True
        self._step, self._bases, self._keep = step, bases or {}, keep or {}

    @property
    def armed(self):
        """Whether hooks collect."""
        return self._switch[0]

    def disarm(self):
        """Collect no more; what has been collected stays."""
        self._switch[0] = False

    def take(self, grad_scale=None):
        """Return the statistics of every block that was used since the last time, by name, and forget them.

        Parameters
        ----------
        grad_scale : float or Tensor, optional
            Multiple of the loss of which the derivatives were taken.

        Returns
        -------
        dict of Statistics
            The first two fields of each are A and G.
        """
        for index in list(self._open):
            self._close(index)
        found = {name: pooled(parts) for name, parts in self._found.items()}
        self.discard()
        return found if grad_scale is None else {name: part.unscaled(grad_scale) for name, part in found.items()}

    def discard(self):
        """Forget what was collected."""
        self._found, self._open, self._edges, self._samples = {}, {}, [], 0
        self._batch, self._calls = None, {}

    def remove_hooks(self):
        """Take the hooks off the model; nothing is collected any more."""
        _remove(self._handles)
        self.removed = True
        self.disarm()

    def sample_fisher(self, output, likelihood="softmax", *, class_dim=-1):
        """Collect statistics for targets drawn from the model, or exact ones, with passes that leave `.grad` alone.

        Parameters
        ----------
        output : Tensor
            Outputs of the network for the batch, before the loss, with their graph. Those of shape (N,) are of N
            examples, but for ``softmax``.
        likelihood : {"softmax", "logistic", "squared", "gaussian"}
            As for `rnla.optim.likelihood`.
        class_dim : int
            Dimension of the classes or components.
        """
        check_choice(likelihood, "likelihood", tuple(LIKELIHOODS), f"{self._caller}.sample_fisher")
        if not self.armed or not self._edges or not output.requires_grad:
            return
        # The graph is that of the outputs: their derivatives are computed in at least single precision.
        z = output.detach().movedim(class_dim, -1)
        z = z.float() if z.element_size() < 4 else z
        last = self._edges[-1]
        single = z.ndim == 1 and likelihood != "softmax" and self.layers[last.index].batched(last.x)
        flat, loss = z.reshape(-1, 1 if single else z.shape[-1]), likelihood_of(LIKELIHOODS[likelihood])
        if self.fisher == "mc":
            parts = [self._samples, self.rank] if self._samples or self.rank else []
            y = loss.sample(flat, np.random.SeedSequence([self.seed, self._step, 2**20, *parts]))
            columns = [loss.dz(flat, y) * flat.shape[0]]
        else:
            columns = loss.fisher_columns(flat)
        self._samples += 1
        scale = 1.0 if output.element_size() >= 4 else 2.0**10  # derivatives of a mean are too small for half precision
        self._backward(output, columns, z.shape, class_dim, scale)

    def _backward(self, output, columns, shape, class_dim, scale):
        """Collect the derivatives of one pass for each column; that of the outputs is given."""
        edges, self._edges = self._edges, []  # checkpoints call their layers once more
        terms = self._terms(edges[-1].size)
        arrived = [[] for _ in edges]
        for column in columns:
            dz = (column * (scale / terms)).reshape(shape).movedim(-1, class_dim).to(output.dtype)
            hs = torch.autograd.grad(output, [edge.edge for edge in edges], dz, retain_graph=True, allow_unused=True)
            for found, h in zip(arrived, hs, strict=True):
                if h is not None:
                    found.append(h)
        reached = [(edge, hs) for edge, hs in zip(edges, arrived, strict=True) if hs]
        # Calls that had no part in these outputs may have one in others; graphs live on until the step at most.
        self._edges = [edge for edge, hs in zip(edges, arrived, strict=True) if not hs]
        if reached:
            exact = self._terms(reached[-1][0].size)  # the last call may be of a pass of another size
            scale, terms = scale if exact == terms else scale * exact / terms, exact
        for edge, hs in reached:
            h = self.layers[edge.index].stacked(hs, self.sharing)
            self._add(edge.index, edge.module, edge.x, h, terms, scale)
        for index in list(self._open):  # no further calls led to these outputs
            self._close(index)

    def enter(self, values):
        """Note the batch of a call of the model: dimension 0 of its first tensor."""
        first = next((X for X in values if isinstance(X, torch.Tensor) and X.ndim), None)
        self._batch = None if first is None or self.sharing.batch_dim else first.size(0)  # nested ones have no shape

    def leave(self):
        """Note that the call is over: layers may be called without the model."""
        self._batch = None

    def record(self, index, module, x, output):
        """Note a call of a layer; the derivative at its output arrives later."""
        if not torch.is_grad_enabled() or not self.model.training:
            return
        if not isinstance(output, torch.Tensor) or not output.requires_grad or _transformed():
            return
        if x.layout != torch.strided or x.is_nested:
            self._leave_out(index)
            return
        if not output.numel() or not x.numel():  # an expert without tokens: it was not used
            return
        if index in self._open:  # of a pass that has ended
            self._close(index)
        self._calls[index] = self._calls.get(index, 0) + 1
        layer, x = self.layers[index], x.detach()
        if x.is_floating_point() and x.dtype != output.dtype:
            # Under autocast the graph has a copy, and x itself may be overwritten after the call.
            x = x.to(output.dtype)
        size, positions = layer.examples(x, output, self.sharing)
        if layer.kind != "norm":
            self._last = size * positions
        if self._batch and layer.batched(x):
            size = self._batch
        if self.fisher != "empirical":
            # Not the output itself, which what follows may overwrite.
            edge = torch.autograd.graph.get_gradient_edge(output)
            self._edges.append(_Call(index, module, x, size, edge))
            return
        this = weakref.ref(self)

        def arrived(h):
            collector = this()
            if collector is not None and collector.armed:
                collector._add(index, module, x, h.detach(), collector._terms(size), collector._loss_scale())

        output.register_hook(arrived)

    def _leave_out(self, index):
        """Warn of calls that give no statistics, once for all layers."""
        if not self._warned:
            self._warned = True
            name = self.layers[index].name or "(model)"
            text = f"{self._caller}: the inputs of layer {name} are sparse or nested; statistics leave such calls out."
            warnings.warn(text, UserWarning, stacklevel=2)

    def _add(self, index, module, x, h, terms, scale):
        """Take what arrived for a call; where calls belong together, it waits for the others."""
        h = h.float() if h.element_size() < 4 else h
        h = h if scale == 1.0 else h / scale
        x = x.to(h.dtype) if x.is_floating_point() else x
        with torch.no_grad():
            self._open.setdefault(index, []).append((module, x, h, terms))
            if not self._incomplete(index):
                self._close(index)

    def _incomplete(self, index):
        """Say whether further calls of one pass must be awaited: what is not a sum over positions needs all of them."""
        layer = self.layers[index]
        if layer.kind == "norm":
            return len(self._open[index]) < self._calls.get(index, 0)
        names = {block.name for block in layer.blocks}
        return self.sharing.approx == "reduce" or not names.isdisjoint(self._keep) or not names.isdisjoint(self._bases)

    def _close(self, index):
        """Turn the calls of a pass into statistics."""
        layer, calls = self.layers[index], self._open.pop(index)
        self._calls.pop(index, None)
        keep, factors = self._keep.get(layer.blocks[0].name, (None, True))
        sharing = self.sharing._replace(keep=keep, factors=factors)
        bases = [self._bases.get(block.name) for block in layer.blocks]
        rng = np.random.default_rng([self.seed, self._step, index, len(self._found)])
        start = time.perf_counter()
        with torch.no_grad():
            found = layer.statistics([call[:3] for call in calls], sharing, calls[0][3], bases, rng)
        for block, part in zip(layer.blocks, found, strict=True):
            self._found.setdefault(block.name, []).append(part)
        self.seconds += time.perf_counter() - start

    def _terms(self, size):
        """Return the number of terms that the loss averages over, for a batch of a size."""
        average = self.loss_average
        if callable(average):
            return average(size)
        return {"batch": size, "batch+sequence": self._last, None: 1}.get(average, average)

    def _loss_scale(self):
        scaler = self.grad_scaler
        if scaler is None or not scaler.is_enabled():
            return 1.0
        return scaler.get_scale() if scaler._scale is None else scaler._scale


class _Call(NamedTuple):
    """A call whose derivative is asked for later."""

    index: int
    module: torch.nn.Module
    x: torch.Tensor
    size: int
    edge: torch.autograd.graph.GradientEdge


class Hook:
    """Forward hook of a layer, or hook before or after that of the model.

    Copies of the model get one that does nothing, and so has a model whose collector is gone.
    """

    def __init__(self, collector=None, index=None):
        self._switch: list[bool] = [False]
        self._run: Any = None
        if collector is not None:
            # Made here, because it loads the compiler, as making any optimizer does; importing this module does not.
            self._switch = collector._switch
            self._run = torch.compiler.disable(_passing(weakref.ref(collector), index))

    def __call__(self, module, args, kwargs, output=None):
        """Pass the call on."""
        if self._switch[0]:  # compiled code without this call is used in steps without statistics
            self._run(module, args, kwargs, output)

    @property
    def idle(self):
        """Whether it does nothing, as a copy."""
        return self._run is None

    def __reduce__(self):
        return Hook, ()


def _passing(reference, index):
    """Return a function that passes calls of a layer on, or of the model if `index` is "enter" or "leave"."""

    def run(module, args, kwargs, output):
        collector = reference()
        if collector is None:
            return
        if index == "enter":
            collector.enter([*args, *kwargs.values()])
        elif index == "leave":
            collector.leave()
        else:
            collector.record(index, module, args[0] if args else next(iter(kwargs.values())), output)

    return run


def _remove(handles):
    for handle in handles:
        handle.remove()


def _check_average(value, caller):
    if value is None or callable(value) or (isinstance(value, str) and value in ("batch", "batch+sequence")):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"{caller}: loss_average must be 'batch', 'batch+sequence', None, a positive int or callable; "
            f"got {value!r}."
        )


def _transformed():
    """Say whether a transform of torch.func runs, whose derivatives are none of the training."""
    return torch._C._functorch.maybe_current_level() is not None
