"""Settings that follow the step, as published; every value may be passed to an optimizer in place of a number."""

import bisect
import math

# First epochs, counted from 1, and the values from then on (Puiu, arXiv 2206.15397 and its code).
_LEARNING_RATE = {1: 0.3, 2: 0.1, 13: 0.03, 18: 0.01, 27: 0.003, 40: 0.001}
_DAMPING = {1: 0.1, 25: 0.05, 35: 0.01}
_RANK = {1: 220, 15: 230}
_OVERSAMPLING = {1: 10, 22: 11, 30: 12}
_INVERSE_EVERY = {1: 50, 20: 30}
_DECAY_FROM = 200  # step
_CIFAR_IMAGES, _BATCH = 50_000, 256


def rs_kfac_cifar(steps_per_epoch=None):
    """Return the settings with which RS-KFAC and SRE-KFAC were published: VGG-16 with batch norm on CIFAR-10.

    Parameters
    ----------
    steps_per_epoch : int, optional
        Of the training loop; 196 by default, for 50,000 images in batches of 256.

    Returns
    -------
    dict
        Arguments of the optimizers, ``lr``, ``damping``, ``rank``, ``oversampling``, ``inverse_every`` and
        ``weight_decay`` as functions of the step, counted from 0, the others as numbers. The published runs have 50
        epochs.

    Raises
    ------
    ValueError
        If `steps_per_epoch` is not positive.

    Notes
    -----
    With ``opt.lr`` from here, no learning rate scheduler is needed. The baseline of exact K-FAC in the paper inverts
    every 30 steps throughout and has damping 0.1 up to epoch 34 and 0.01 from then on; pass ``inverse_every=30`` and
    ``damping`` for it.

    References
    ----------
    .. [1] Puiu, arXiv 2206.15397.

    Examples
    --------
    >>> from rnla.torch.schedules import rs_kfac_cifar
    >>> settings = rs_kfac_cifar(100)
    >>> settings["lr"](0), settings["lr"](100), settings["inverse_every"](1899), settings["inverse_every"](1900)
    (0.3, 0.1, 50, 30)
    """
    if steps_per_epoch is None:
        steps_per_epoch = math.ceil(_CIFAR_IMAGES / _BATCH)
    if not steps_per_epoch >= 1:
        raise ValueError(
            f"rnla.torch.schedules.rs_kfac_cifar: steps_per_epoch must be positive; got {steps_per_epoch}."
        )
    by_epoch = {
        "lr": _LEARNING_RATE, "damping": _DAMPING, "rank": _RANK, "oversampling": _OVERSAMPLING,
        "inverse_every": _INVERSE_EVERY,
    }  # fmt: skip
    schedules = {name: _ByEpoch(values, steps_per_epoch) for name, values in by_epoch.items()}
    return schedules | {
        "weight_decay": _AfterStep(_DECAY_FROM, 7e-4), "rho": 0.95, "factor_every": 10, "damping_mode": "relative",
        "rms_clip": 0.07, "momentum": 0.0, "fisher": "empirical",
    }  # fmt: skip


class _ByEpoch:
    """Value of the last epoch of a table that has begun; an object, because a closure cannot be pickled."""

    def __init__(self, values, steps_per_epoch):
        self._first, self._values, self._steps = sorted(values), values, steps_per_epoch

    def __call__(self, step):
        epoch = step // self._steps + 1
        return self._values[self._first[bisect.bisect_right(self._first, epoch) - 1]]


class _AfterStep:
    """Zero, and from a step on a value."""

    def __init__(self, start, value):
        self._start, self._value = start, value

    def __call__(self, step):
        return self._value if step >= self._start else 0.0
