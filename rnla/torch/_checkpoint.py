"""State of the curvature as nested dicts of tensors and numbers, which `torch.save` writes and reads safely."""

import torch

from rnla.optim import DampedInverse, FactorInverse, FactorStats, LayerState

KINDS = {kind.__name__: kind for kind in (DampedInverse, FactorInverse, FactorStats, LayerState)}


def encoded(value):
    """Return a state as dicts, lists, tensors and numbers."""
    if type(value).__name__ in KINDS:
        return {"type": type(value).__name__, **{name: encoded(getattr(value, name)) for name in value._fields}}
    if isinstance(value, tuple):
        return [encoded(entry) for entry in value]
    return value


def decoded(value, like):
    """Return what `encoded` was given, on the device of a tensor."""
    if isinstance(value, torch.Tensor):
        return value.to(like.device)
    if isinstance(value, dict):
        fields = {name: decoded(entry, like) for name, entry in value.items() if name != "type"}
        return KINDS[value["type"]](**fields)
    return tuple(decoded(entry, like) for entry in value) if isinstance(value, list) else value


def tensors(value):
    """Yield the tensors in a state."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from tensors(entry)


def size_of(value):
    """Return the bytes of the tensors in a state, each storage counted once."""
    storages = {X.untyped_storage().data_ptr(): X.untyped_storage().nbytes() for X in tensors(value)}
    return sum(storages.values())
