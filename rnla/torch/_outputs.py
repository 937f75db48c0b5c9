"""Outputs of a network with other weights, and how far they are from those of stored networks."""

from contextlib import contextmanager
from typing import Any

import torch
from torch.func import functional_call

from rnla.optim import symmetric_kl_gradient


class Outputs:
    """Outputs of a model for the arguments of its last call in training.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    blocks : dict of Block
        Its blocks.
    names : dict of str
        Names of the parameters by identity.
    """

    def __init__(self, model, blocks, names):
        self._model, self._blocks, self._names, self._last = model, blocks, names, LastCall()
        self._handle = model.register_forward_pre_hook(self._last, with_kwargs=True)

    @property
    def known(self):
        """Whether the model was called since the last step."""
        return self._last.arguments is not None

    def forget(self):
        """Forget the last call."""
        self._last.arguments = None

    def remove_hooks(self):
        """Take the hook off the model."""
        self._handle.remove()

    def divergence(self, names, stored, weights):
        """Return the gradient of the mean divergence from stored networks as a function of the steps of some blocks."""
        with _evaluation(self._model):
            logits = [self._at(blocks)[0] for blocks in stored]
        present = {name: self._blocks[name].weight().clone() for name in names}

        def gradient(steps):
            moved = {name: present[name] + s for name, s in zip(names, steps, strict=True)}
            with _evaluation(self._model), torch.enable_grad():
                z, tensors = self._at(moved)
            dz = sum(w * symmetric_kl_gradient(old, z.detach()) for w, old in zip(weights, logits, strict=True))
            found = torch.autograd.grad(z, list(tensors.values()), dz, allow_unused=True)
            found = [torch.zeros_like(X) if g is None else g for X, g in zip(tensors.values(), found, strict=True)]
            slopes = dict(zip(tensors, found, strict=True))
            return [
                self._blocks[name].matrix([slopes[id(p)] for p in self._blocks[name].parameters()]) for name in names
            ]

        return gradient

    def _at(self, weights):
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

    @property
    def idle(self):
        """Whether it does nothing, as a copy."""
        return not self._active

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
