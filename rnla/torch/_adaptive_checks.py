"""What AdaptiveKFAC refuses: settings out of range, models with other layers, closures that return something else."""

import itertools
import math

import torch

from rnla.torch._settings import check_number


def checked_result(result, caller):
    """Return the loss and the outputs that a closure gave, or raise if they are something else."""
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(X, torch.Tensor) for X in result):
        raise TypeError(f"{caller}: closure must return the tensors (loss, output); got {type(result).__name__}.")
    loss, output = result
    if loss.ndim or not loss.requires_grad:
        raise ValueError(f"{caller}: closure must return a scalar loss with its graph; got shape {tuple(loss.shape)}.")
    if output.ndim != 2:
        raise ValueError(f"{caller}: closure must return outputs of shape (N, c); got {tuple(output.shape)}.")
    return loss, output


def checked_parameters(model, blocks, caller):
    """Return the parameters of the blocks, or raise if others are trained."""
    if any(block.kind == "embedding" for block in blocks):
        names = [block.name for block in blocks if block.kind == "embedding"]
        raise ValueError(f"{caller}: the model must have linear layers and convolutions only; it has {names}.")
    own = {id(p): p for block in blocks for p in block.parameters()}
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if others or not own:
        raise ValueError(
            f"{caller}: every trainable parameter must belong to a linear layer or a convolution; "
            f"got {', '.join(others) or 'none'}. Others may be frozen by requires_grad_(False)."
        )
    return list(own.values())


def check_chain(blocks, layers, most, caller):
    """Raise unless every layer is linear, small, and takes as many inputs as the one before has outputs."""
    large = [block for block in blocks if max(block.p, block.q) > most]
    if large:
        raise ValueError(f"{caller}: with tridiagonal no factor may be larger than max_factor_dim; got {large}.")
    linear = all(block.kind == "linear" for block in blocks) and all(len(layer.modules) == 1 for layer in layers)
    fits = linear and all(
        after.p == before.q + (after.bias_parameter is not None) for before, after in itertools.pairwise(blocks)
    )
    if not fits:
        raise ValueError(f"{caller}: with tridiagonal the model must be a chain of linear layers; got {blocks}.")


def check_ranges(caller, lam0, eta, averaging, rho, *shares):
    """Raise unless numbers are in their ranges."""
    values = (lam0, eta, averaging, rho, *shares)
    for name, value in zip(("lam0", "eta", "averaging", "rho", "statistics_share", "model_share"), values, strict=True):
        check_number(name, value, caller)
        if not math.isfinite(value):
            raise ValueError(f"{caller}: {name} must be finite; got {value}.")
    if not lam0 > 0:
        raise ValueError(f"{caller}: lam0 must be positive; got {lam0}.")
    if not eta >= 0:
        raise ValueError(f"{caller}: eta must not be negative; got {eta}.")
    for name, value in (("averaging", averaging), ("rho", rho)):
        if not 0 <= value < 1:
            raise ValueError(f"{caller}: {name} must be in [0, 1); got {value}.")
    for name, value in zip(("statistics_share", "model_share"), shares, strict=True):
        if not 0 < value <= 1:
            raise ValueError(f"{caller}: {name} must be in (0, 1]; got {value}.")
