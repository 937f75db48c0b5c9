"""Which modules of a model are layers with Kronecker factored blocks, and which parameters are left over."""

from torch import nn
from torch.nn.parameter import UninitializedParameter

from rnla.torch._layers import ConvLayer, EmbeddingLayer, GroupedLayer, Layer, NormLayer

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
KINDS = ((nn.Linear, Layer), ((nn.Conv1d, nn.Conv2d), ConvLayer), (nn.Embedding, EmbeddingLayer), (NORMS, NormLayer))
METHODS = ("forward", "_conv_forward")  # of convolutions and normalisation layers
STACK_GROUPS = 8  # a block for each group: beyond, the calls for them take longer than the work, and a stack is faster
MAX_GROUPS = 64  # where there are no stacks


def find_layers(model, *, params=None, skip=(), norm_layers="unit", stacks=False, caller="rnla.torch.Collector"):
    """Return the layers of a model, and the names of trainable parameters that belong to none.

    Parameters
    ----------
    model : torch.nn.Module
        The network.
    params : collection of int, optional
        Identities of the parameters that are to be trained; all by default.
    skip : sequence of str or type
        Names of modules, which stand for all that they contain, or types of modules to leave out.
    norm_layers : {"unit", "skip"}
        Whether normalisation layers have blocks.
    stacks : bool
        Whether convolutions with more than 8 groups have one block, which is a stack; else there is one for each
        group, and none for more than 64.
    caller : str
        Named in errors.

    Returns
    -------
    layers : list of Layer
        In the order of the modules.
    unsupported : list of str
        Names of parameters for which there is no block although nobody left them out.

    Raises
    ------
    ValueError
        If a name in `skip` is that of no module, or a parameter is not initialised yet.
    """
    names = {name for name, _ in model.named_modules()}
    unknown = [s for s in skip if isinstance(s, str) and s not in names]
    if unknown:
        raise ValueError(f"{caller}: skip must have names of modules; got {', '.join(unknown)}.")
    layers, left_out, taken, excluded = [], set(), {}, _inside(model, nn.MultiheadAttention)
    uses = _uses(model)
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if any(isinstance(p, UninitializedParameter) for p in own):
            raise ValueError(f"{caller}: the parameters of {name} must be initialised; run the model once before.")
        if _skipped(name, module, skip) or (norm_layers == "skip" and isinstance(module, NORMS)):
            left_out.update(map(id, own))
            continue
        layer = None if id(module) in excluded else _layer(name, module, own, params, stacks)
        if layer is None:
            continue
        key = id(layer.weight)
        if key in taken and _alike(taken[key], layer):
            taken[key].modules.append(module)
        elif uses[key] == 1 or all(_alike(layer, other) for other in _owners(model, layer)):
            taken[key] = layer
            layers.append(layer)
    covered = {id(p) for layer in layers for block in layer.blocks for p in block.parameters()}
    wanted = [
        (name, p) for name, p in model.named_parameters() if p.requires_grad and (params is None or id(p) in params)
    ]
    return layers, [name for name, p in wanted if id(p) not in covered | left_out]


def unwrapped(model, caller):
    """Return the model inside of wrappers, which would be part of the names: of several processes, of the compiler."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module; got {type(model).__name__}.")
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def _layer(name, module, own, params, stacks=False):
    """Return the layer that a module is, or None."""
    make = next((make for kind, make in KINDS if isinstance(module, kind)), None)
    weight, bias = (module._parameters.get(key) for key in ("weight", "bias"))  # not what a parametrization computes
    if make is None or weight is None or not weight.requires_grad or not weight.is_floating_point():
        return None
    if make is ConvLayer and stacks and module.groups > STACK_GROUPS:
        make = GroupedLayer
    if make is ConvLayer and module.groups > MAX_GROUPS:
        return None
    if params is not None and any(id(p) not in params for p in own):
        return None
    if len(own) > 1 + (bias is not None):  # parameters that a subclass has added have a meaning of their own
        return None
    # What a subclass pads, rescales or appends in a forward of its own, the hooks do not see.
    if make not in (Layer, EmbeddingLayer) and not all(_of_torch(type(module), method) for method in METHODS):
        return None
    return make(name, module, weight, bias if bias is not None and bias.requires_grad else None)


def _of_torch(kind, method):
    """Say whether a type of module has the method of a module of PyTorch."""
    owner = next((base for base in kind.__mro__ if method in vars(base)), None)
    return owner is None or owner.__module__.startswith("torch.nn.")


def _alike(layer, other):
    return layer.kind == other.kind == "linear" and layer.weight is other.weight and layer.bias is other.bias


def _uses(model):
    """Return how many modules hold each parameter."""
    count = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            count[id(p)] = count.get(id(p), 0) + 1
    return count


def _owners(model, layer):
    """Yield the modules that hold the weights of a layer, as layers; a weight used in two ways has no block."""
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if any(p is layer.weight for p in own):
            yield _layer(name, module, own, None) or NormLayer(name, module, layer.weight, None)


def _skipped(name, module, skip):
    named = any(isinstance(s, str) and (name == s or name.startswith(f"{s}.")) for s in skip)
    return named or isinstance(module, tuple(s for s in skip if not isinstance(s, str)))


def _inside(model, kind):
    """Return the identities of the modules inside those of a kind, which use their weights and do not call them."""
    return {id(child) for module in model.modules() if isinstance(module, kind) for child in module.modules()}
