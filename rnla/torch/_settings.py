"""Settings that are numbers, functions of the step, or tables of steps from which a value holds; checked at once."""

import math
import numbers

from rnla._rangefinder import check_choice
from rnla.optim import LayerConfig

SHARES = ("rho", "momentum")  # in [0, 1)
POSITIVE = ("lr", "rms_clip", "kl_clip")
COUNTS = {"factor_every": 1, "inverse_every": 1, "rank": 1, "products": 1, "oversampling": 0}
OPTIONAL = ("rms_clip", "kl_clip", "products")
CONFIG = ("rho", "ema", "method", "rank", "oversampling", "products", "tail", "warm_start", "damping_mode", "ekfac")


def at(value, step):
    """Return the value of a setting at a step."""
    if callable(value):
        return value(step)
    if isinstance(value, dict):
        begun = [first for first in value if first <= step]
        return value[max(begun)]
    return value


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
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{caller}: {name} must be a number; got {type(value).__name__} {value!r}.")
    if name in SHARES:
        if not 0 <= value < 1:
            raise ValueError(f"{caller}: {name} must be in [0, 1); got {value}.")
    elif name in POSITIVE:
        # A schedule may end with a rate of zero.
        if not (math.isfinite(value) and (value > 0 or (value == 0 and name == "lr"))):
            raise ValueError(f"{caller}: {name} must be positive; got {value}.")
    elif not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{caller}: {name} must be finite and not negative; got {value}.")


def check_options(options, caller):
    """Raise unless the settings of a preconditioner are allowed."""
    for name in ("damping", "rho", "factor_every", "inverse_every", "rank", "oversampling", "products", "rms_clip",
                 "kl_clip"):  # fmt: skip
        check_setting(name, options[name], caller)
    check_choice(options["ema"], "ema", ("const", "warmup"), caller)
    check_choice(options["init"], "init", (None, "identity"), caller)
    check_choice(options["graft"], "graft", (None, "sgd", "adam"), caller)
    method = options["method"]
    if method != "seng":
        LayerConfig(
            method=method, tail=options["tail"], damping_mode=options["damping_mode"], ekfac=options["ekfac"]
        ).checked(caller)


def layer_config(options, step):
    """Return the configuration of the layers at a step."""
    values = {name: at(options[name], step) for name in CONFIG}
    if values["rank"] == "adaptive":
        values["rank"] = LayerConfig().rank
    return LayerConfig(**values)
