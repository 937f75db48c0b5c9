"""State of optimizers as dicts, lists, tensors and numbers, which ``torch.load`` reads without trusting a pickle."""

import torch

from rnla.optim import BlockTridiagonal, DampedInverse, FactorInverse, FactorStats, KronSum, LayerState

KINDS = {kind.__name__: kind for kind in (DampedInverse, FactorInverse, FactorStats, LayerState, KronSum)}


def encoded(value):
    """Return a value with its named tuples as dicts that name their kind; tensors are not copied."""
    if isinstance(value, BlockTridiagonal):
        return {"kind": "BlockTridiagonal", "fields": encoded(vars(value))}
    if type(value).__name__ in KINDS:
        return {"kind": type(value).__name__, "fields": encoded(value._asdict())}
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {"kind": type(value).__name__, "fields": [encoded(item) for item in value]}
    return value


def decoded(value, device):
    """Return what `encoded` was given, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if not isinstance(value, dict):
        return value
    if set(value) != {"kind", "fields"}:
        return {key: decoded(item, device) for key, item in value.items()}
    kind, fields = value["kind"], value["fields"]
    if kind in ("list", "tuple"):
        items = [decoded(item, device) for item in fields]
        return items if kind == "list" else tuple(items)
    fields = decoded(fields, device)
    if kind == "BlockTridiagonal":
        inverse = BlockTridiagonal.__new__(BlockTridiagonal)
        vars(inverse).update(fields)
        return inverse
    return KINDS[kind](**fields)


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
