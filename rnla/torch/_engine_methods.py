"""Methods that the optimizer and the preconditioner pass on to their engine."""

from typing import Any

from rnla.torch._copies import Copies, check_holder
from rnla.torch._engine import Engine

KEPT = ("_engine", "_caller", "_schedules", "_lr", "_trained")


class EngineMethods(Copies):
    """What a public class with an engine can be asked for between steps."""

    _engine: Engine

    def __getstate__(self):
        check_holder(self, self._engine.model)
        base: Any = super().__getstate__()
        return base | {name: value for name, value in vars(self).items() if name in KEPT}

    def _given(self):
        own = vars(self)
        scheduled = [(name, schedule) for (_, name), schedule in own.get("_schedules", {}).items()]
        return [*self._engine.options.items(), *own.get("defaults", {}).items(), *scheduled, ("lr", own.get("_lr"))]

    def sample_fisher(self, output, likelihood="softmax", *, class_dim=-1):
        """Collect statistics for targets drawn from the model, or exact ones; call it before ``loss.backward()``.

        Does nothing in steps without statistics. Gradients are left alone.

        Parameters
        ----------
        output : Tensor
            Outputs of the network, before the loss. Those of shape (N,) are of N examples with one component each, but
            for ``softmax``, where they are the classes of one.
        likelihood : {"softmax", "logistic", "squared", "gaussian"}
            Distribution that they stand for; the loss is its negative logarithm.
        class_dim : int
            Dimension of the classes or components.

        Raises
        ------
        ValueError
            If `likelihood` is not one of the above.
        """
        self._engine.collector.sample_fisher(output, likelihood, class_dim=class_dim)

    def skip_step(self):
        """Forget the statistics of passes after which there is no step, because their gradients were not finite."""
        self._engine.collector.discard()

    def remove_hooks(self):
        """Take the hooks off the model; the inverses stay as they are."""
        self._engine.collector.remove_hooks()

    @property
    def unsupported(self):
        """Names of trainable parameters that keep their plain gradients although nobody asked for it."""
        return list(self._engine.collector.unsupported)

    @property
    def stats(self):
        """Counters, times and ranks as `KFACStats`; reads them from the device."""
        return self._engine.stats

    def summary(self):
        """Return a table of the layers with their shapes, methods, ranks and memory."""
        return self._engine.summary()
