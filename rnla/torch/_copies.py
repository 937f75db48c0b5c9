"""Copies and pickles of optimizers: they go on training the copy of the model, on which hooks are registered anew."""

import copy
import pickle
import types
from typing import Any

NO_ARGUMENTS = ("self", "model", "__class__")  # among the local variables at the beginning of a constructor


class Copies:
    """What a class with hooks on a model needs to be copied and pickled, together with the model or alone."""

    def __deepcopy__(self, memo):
        new = memo[id(self)] = object.__new__(type(self))
        state = copy.deepcopy(self.__getstate__(), memo)
        getattr(new, "__setstate__", vars(new).update)(state)
        return new

    def __reduce_ex__(self, protocol):
        for name, value in self._given():
            for function in value.values() if isinstance(value, dict) else (value,):
                if isinstance(function, types.FunctionType) and not _importable(function):
                    raise TypeError(
                        f"rnla.torch.{type(self).__name__}: {name} must be a function of a module, so that it can be "
                        f"pickled; got {function.__qualname__}. Its state_dict holds no functions."
                    )
        return super().__reduce_ex__(protocol)

    def _given(self):
        """Return the names and values of the arguments of which functions may be among."""
        raise NotImplementedError


class Rebuilt(Copies):
    """Optimizer whose copies are made from its model, its arguments `_arguments` and its `state_dict`."""

    def __getstate__(self):
        check_holder(self, self._wrapped)
        return {
            "model": self._wrapped, "arguments": self._arguments, "saved": self.state_dict(),
            "removed": self._collector.removed,
        }  # fmt: skip

    def __setstate__(self, state):
        remove_idle(state["model"])
        kind: Any = type(self)
        kind.__init__(self, state["model"], **state["arguments"])
        self.load_state_dict(state["saved"])
        if state["removed"]:
            self.remove_hooks()

    def _given(self):
        return self._arguments.items()


def check_holder(optimizer, model):
    """Raise if a model has its optimizer as an attribute: a copy would be needed before the model is there."""
    if any(value is optimizer for module in model.modules() for value in vars(module).values()):
        raise TypeError(
            f"rnla.torch.{type(optimizer).__name__}: a model that holds its optimizer cannot be copied or pickled; "
            "keep them apart, as in (model, optimizer)."
        )


def remove_idle(model):
    """Take hooks off a model that do nothing, because they are copies of those of an optimizer."""
    for module in model.modules():
        for hooks, flags in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if getattr(hook, "idle", False)]:
                del hooks[key]
                flags.pop(key, None)


def _importable(function):
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError):
        return False
    return True
