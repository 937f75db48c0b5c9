"""Settings that are numbers, functions of the step, or tables of steps from which a value holds; checked at once."""

import math
import numbers

import numpy as np
import torch

from rnla._rangefinder import check_choice, check_count
from rnla.optim import LayerConfig

SHARES = ("rho", "momentum")  # in [0, 1)
POSITIVE = ("lr", "rms_clip", "kl_clip")
COUNTS = {"factor_every": 1, "inverse_every": 1, "rank": 1, "products": 1, "oversampling": 0}
OPTIONAL = ("rms_clip", "kl_clip", "products")
FLAGS = ("warm_start", "ekfac", "sync_grads", "stagger", "strict")
DTYPES = (None, torch.float32, torch.float64)
CONFIG = ("rho", "ema", "method", "rank", "oversampling", "products", "tail", "warm_start", "damping_mode", "ekfac")


def at(value, step):
    """Return the value of a setting at a step."""
    if callable(value):
        return value(step)
    if isinstance(value, dict):
        begun = [first for first in value if first <= step]
        return value[max(begun)]
    return value


def current(name, value, step, caller):
    """Return the value of a setting at a step; raise if a function gives one that is not allowed."""
    found = at(value, step)
    if callable(value):  # tables have been checked
        check_setting(name, found, caller)
    return found


def varies(value):
    """Say whether a setting depends on the step."""
    return callable(value) or isinstance(value, dict)


def check_setting(name, value, caller):
    """Raise unless a setting, at the first step if it depends on that, has a value that is allowed."""
    if isinstance(value, dict):
        if 0 not in value or not all(isinstance(key, numbers.Integral) for key in value):
            raise ValueError(f"{caller}: {name} must be a table of steps that begins at 0; got {value!r}.")
        for entry in value.values():
            check_setting(name, entry, caller)
        return
    value = at(value, 0)
    if (value is None and name in OPTIONAL) or (name == "rank" and value == "adaptive"):
        return
    least = COUNTS.get(name)
    if least is not None:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{caller}: {name} must be an integer; got {type(value).__name__} {value!r}.")
        if value < least:
            raise ValueError(f"{caller}: {name} must be at least {least}; got {value}.")
        return
    check_number(name, value, caller)
    if name in SHARES:
        if not 0 <= value < 1:
            raise ValueError(f"{caller}: {name} must be in [0, 1); got {value}.")
    elif name in POSITIVE:
        # A schedule may end with a rate of zero.
        if not (math.isfinite(value) and (value > 0 or (value == 0 and name == "lr"))):
            raise ValueError(f"{caller}: {name} must be positive; got {value}.")
    elif not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{caller}: {name} must be finite and not negative; got {value}.")


def check_number(name, value, caller):
    """Raise unless a value is a real number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{caller}: {name} must be a number; got {type(value).__name__} {value!r}.")


def check_flag(name, value, caller):
    """Raise unless a value is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{caller}: {name} must be True or False; got {value!r}.")


def check_skip(skip, caller):
    """Raise unless modules to skip are given as a list of names or types."""
    if not isinstance(skip, (list, tuple, set, frozenset)) or not all(isinstance(s, (str, type)) for s in skip):
        raise TypeError(f"{caller}: skip must be a list or tuple of names or types of modules; got {skip!r}.")


def check_scaler(scaler, caller):
    """Raise unless a scaler of the loss is one of PyTorch."""
    if not isinstance(scaler, torch.amp.GradScaler | None):
        raise TypeError(f"{caller}: grad_scaler must be None or a torch.amp.GradScaler; got {type(scaler).__name__}.")


def check_options(options, caller):
    """Raise unless the settings of a preconditioner are allowed."""
    for name in ("damping", "rho", "factor_every", "inverse_every", "rank", "oversampling", "products", "rms_clip",
                 "kl_clip"):  # fmt: skip
        check_setting(name, options[name], caller)
    check_choice(options["ema"], "ema", ("const", "warmup"), caller)
    check_choice(options["init"], "init", (None, "identity"), caller)
    check_choice(options["graft"], "graft", (None, "sgd", "adam"), caller)
    for name in FLAGS:
        check_flag(name, options[name], caller)
    for name in ("factor_dtype", "inverse_dtype"):
        check_choice(options[name], name, DTYPES, caller)
    check_count(options["batch_dim"], "batch_dim", caller, least=0)
    if options["sample"] is not None:
        check_count(options["sample"], "sample", caller)
    check_number("grad_worker_fraction", options["grad_worker_fraction"], caller)
    if not 0 < options["grad_worker_fraction"] <= 1:
        raise ValueError(f"{caller}: grad_worker_fraction must be in (0, 1]; got {options['grad_worker_fraction']}.")
    if options["callback"] is not None and not callable(options["callback"]):
        raise TypeError(f"{caller}: callback must be None or callable; got {options['callback']!r}.")
    check_scaler(options["grad_scaler"], caller)
    method = "exact" if options["method"] == "seng" else options["method"]
    LayerConfig(
        method=method, tail=options["tail"], damping_mode=options["damping_mode"], ekfac=options["ekfac"]
    ).checked(caller)


def layer_config(options, step, caller="rnla.torch"):
    """Return the configuration of the layers at a step."""
    values = {name: current(name, options[name], step, caller) for name in CONFIG}
    if values["rank"] == "adaptive":
        values["rank"] = LayerConfig().rank
    return LayerConfig(**values)
