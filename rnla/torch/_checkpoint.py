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


def saved_layers(curvatures, config):
    """Return the state of the curvatures of all layers, by name."""
    return {
        name: {
            "q": curvature.block.q, "p": curvature.block.p, "method": curvature.method(config),
            **{key: encoded(getattr(curvature, key)) for key in curvature.SAVED},
        }
        for name, curvature in curvatures.items()
    }  # fmt: skip


def restore(curvature, entry):
    """Give a new curvature what `saved_layers` has of its layer."""
    rank = getattr(curvature, "rank", None)
    for key in curvature.SAVED:
        setattr(curvature, key, decoded(entry[key], curvature.block.weight_parameter.device))
    if "rank" in curvature.SAVED and None in (rank, curvature.rank):
        curvature.rank = rank  # not adaptive, or not before


def check_keys(state, keys, caller):
    """Raise unless a state has some keys."""
    if not isinstance(state, dict):
        raise TypeError(f"{caller}: state_dict must be a dict; got {type(state).__name__}.")
    if not state.keys() >= set(keys):
        raise ValueError(
            f"{caller}: state_dict must be that of such an optimizer, with {', '.join(keys)}; "
            f"got {', '.join(map(str, state)) or 'an empty one'}."
        )


def check_layers(layers, curvatures, config, caller):
    """Raise unless saved layers are those of a model and can be used by its curvatures."""
    for name in layers:
        if name not in curvatures:
            raise ValueError(f"{caller}: state_dict must have layers of the model; got {name!r}, which is none.")
    for name, curvature in curvatures.items():
        if name not in layers:
            raise ValueError(f"{caller}: state_dict must have layer {name!r}; got {', '.join(layers) or 'none'}.")
        block, entry, layer = curvature.block, layers[name], f"{caller}: layer {name!r}"
        if (entry["q"], entry["p"]) != (block.q, block.p):
            raise ValueError(f"{layer} must have shape {(block.q, block.p)}; got {(entry['q'], entry['p'])}.")
        wanted, reason = curvature.method(config), None
        if entry.keys() != {"q", "p", "method", *curvature.SAVED}:
            reason = f"it was saved by method {entry['method']!r}"
        elif hasattr(curvature, "misfit"):
            reason = curvature.misfit(decoded(entry["state"], block.weight_parameter.device), config)
        if reason is not None:
            raise ValueError(f"{layer} must fit method {wanted!r} of this optimizer; {reason}.")
