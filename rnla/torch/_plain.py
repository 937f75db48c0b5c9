"""State of optimizers as dicts, lists and tensors alone, which ``torch.load`` reads without trusting a pickle."""

import torch

from rnla.optim import BlockTridiagonal, DampedInverse, FactorInverse, FactorStats, KronSum, LayerState

KINDS = {kind.__name__: kind for kind in (FactorInverse, DampedInverse, FactorStats, LayerState, KronSum)}


def to_plain(value):
    """Return a value with its named tuples as dicts that name their kind; tensors are copied."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, BlockTridiagonal):
        return {"kind": "BlockTridiagonal", "fields": to_plain(vars(value))}
    if type(value).__name__ in KINDS:
        return {"kind": type(value).__name__, "fields": to_plain(value._asdict())}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {"kind": type(value).__name__, "fields": [to_plain(item) for item in value]}
    return value


def from_plain(value, device):
    """Return what `to_plain` was given, on a device."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().to(device)
    if not isinstance(value, dict):
        return value
    if set(value) != {"kind", "fields"}:
        return {key: from_plain(item, device) for key, item in value.items()}
    kind, fields = value["kind"], value["fields"]
    if kind in ("list", "tuple"):
        items = [from_plain(item, device) for item in fields]
        return items if kind == "list" else tuple(items)
    fields = from_plain(fields, device)
    if kind == "BlockTridiagonal":
        inverse = BlockTridiagonal.__new__(BlockTridiagonal)
        vars(inverse).update(fields)
        return inverse
    return KINDS[kind](**fields)
