"""`zero_grad` of optimizers that observe the passes of the training."""

from typing import Any


class ForgetsStatistics:
    """Optimizer that takes its statistics from the passes that give the gradients, and forgets both together."""

    _collector: Any

    def zero_grad(self, set_to_none=True):
        """Forget the gradients, and with them the statistics of the passes that gave them.

        Parameters
        ----------
        set_to_none : bool
            Set them to None, not to zero.
        """
        super().zero_grad(set_to_none)  # type: ignore[misc]
        if self._collector.fisher == "empirical":  # others are collected before, by sample_fisher
            self._collector.discard()
