"""What preconditioners tell of themselves: counters, and a record of each step."""

from typing import Any, NamedTuple


class KFACStats(NamedTuple):
    """Counters of a preconditioner.

    Attributes
    ----------
    steps : int
        Steps taken.
    skipped_steps : int
        Steps that changed no weight, because a gradient had a NaN or an infinity.
    skipped_updates : int
        Statistics that were dropped because they had a NaN or an infinity.
    failed_inversions : int
        Decompositions that failed, after which the ones of the time before were kept.
    seconds : dict of float
        Time in ``statistics``, ``inversion`` and ``preconditioning``, as the host saw it.
    ranks : dict of (int or None, int or None)
        Ranks of A and G of every layer.
    nu : float
        Factor of the last clipping by the divergence.
    unclipped_steps : int
        Steps in which that factor was 1 because the product of updates and gradients was not positive.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import KFAC
    >>> KFAC(torch.nn.Linear(3, 2)).stats.steps
    0
    """

    steps: int
    skipped_steps: int
    skipped_updates: int
    failed_inversions: int
    seconds: dict[str, float]
    ranks: dict[str, tuple[Any, Any]]
    nu: float
    unclipped_steps: int


class KFACRecord(NamedTuple):
    """What a callback is told of a step.

    Attributes
    ----------
    iteration : int
        Number of the step, from 0.
    nu : Tensor or float
        Factor of the clipping by the divergence.
    seconds : float
        Time in the step.

    Examples
    --------
    >>> from rnla.torch import KFACRecord
    >>> KFACRecord(0, 1.0, 0.01).iteration
    0
    """

    iteration: int
    nu: Any
    seconds: float
