"""Preconditioner that rewrites gradients in place: K-FAC and its randomised forms in front of any optimizer."""

import time

import torch

from rnla.torch._engine import Engine
from rnla.torch._engine_methods import EngineMethods
from rnla.torch._settings import check_setting, current

CALLER = "rnla.torch.KFACPreconditioner"


class KFACPreconditioner(EngineMethods):
    """Kronecker-factored preconditioner of the gradients, to be used before the step of any optimizer.

    Hooks collect the statistics of the layers during the forward and backward passes of the training loop, which stays
    as it is: call `step` between ``loss.backward()`` and ``optimizer.step()``.

    Parameters
    ----------
    model : torch.nn.Module
        The network. Linear layers, convolutions of signals and images, embeddings and normalisation layers are
        preconditioned, other parameters keep their gradients; see `unsupported`. So do convolutions and normalisation
        layers of subclasses with a ``forward`` of their own. For convolutions with many groups see `KFAC`.
    params : iterable of Tensor, optional
        The parameters that are trained; all by default. A layer needs all its trainable parameters among them.
    damping : float
        Damping in the sense of `damping_mode`.
    damping_mode : {"relative", "pi", "pi-fro", "joint"}
        As for `rnla.optim.precondition`; ``relative`` to the largest eigenvalue of each factor.
    rho : float
        Decay rate of the averages of the factors, in [0, 1).
    ema : {"const", "warmup"}
        As for `rnla.optim.ema_update`.
    init : {None, "identity"}
        Let the averages start from the identity.
    factor_every, inverse_every : int
        Steps between statistics, and between new inverses.
    method, rank, oversampling, products, tail : object
        Inverses of the factors, as for `rnla.optim.factor_inverse`; ``method="brand"`` updates eigenpairs of linear
        layers online, and ``"seng"`` solves with the gradients of single examples. ``rank="adaptive"`` measures the
        error and moves the rank.
    warm_start : bool
        Start a decomposition from the one before.
    ekfac : bool
        Keep second moments in the eigenbasis (EKFAC).
    fisher : {"empirical", "mc", "type2"}
        ``empirical``: from the targets of the batch, which is not the Fisher matrix but needs nothing of the loop.
        ``mc``: from targets drawn from the model, ``type2``: exact, one backward pass for each output; both need
        `sample_fisher` between the forward and the backward pass.
    loss_average : {"batch", "batch+sequence", None}, int or callable
        What the loss averages over: the batch, the batch and the output positions of the layer that comes last, nothing
        (a sum), or the number of terms, which may depend on the size of the batch. For a loss that is divided by K
        micro-batches: ``lambda n: K * n``. The size of the batch is dimension 0 of the first tensor that the model is
        called with; where a layer is called without the model, or `batch_dim` is not 0, that of the layer's inputs.
    weight_sharing : {"expand", "reduce"}
        Treatment of weights that are used at many positions, as for `rnla.optim.input_factor`.
    max_positions : int, optional
        Use a random subset of the positions.
    patch_bytes : int, optional
        Most memory that the patches of a convolution take at a time, 256 MiB by default.
    batch_dim : int
        Dimension of sequences that counts the examples; 1 for layouts (length, batch, features).
    kl_clip : float, optional
        As for `rnla.optim.kl_clip`, for the learning rate `lr`.
    rms_clip : float, optional
        As for `rnla.optim.rms_clip`, for every layer.
    graft : {None, "sgd", "adam"}
        Bring the update of each layer to the length of the gradient, or of the step of Adam.
    norm_layers : {"unit", "skip"}
        Whether normalisation layers have blocks, of size 2 for each channel.
    skip : list or tuple of str or type
        Names, or types, of modules to leave alone.
    max_factor_dim : int
        Larger factors are diagonal.
    factor_dtype, inverse_dtype : torch.dtype, optional
        Of the averages, and in which they are decomposed.
    grad_scaler : torch.amp.GradScaler, optional
        Scaler of the loss. Needed where gradients are unscaled before the step.
    process_group : torch.distributed.ProcessGroup, optional
        Processes that train one model; all of them by default, if ``torch.distributed`` is initialised.
    grad_worker_fraction : float
        Share of the processes that precondition each layer; see `KFAC`.
    sync_grads : bool
        Average the gradients over the processes; DistributedDataParallel does so itself.
    stagger : bool
        Refresh a few layers in every step instead of all in one.
    correction : {None, "refresh", "partial"}
        For ``method="brand"``: from the averaged matrix decompose anew, or correct a part of the eigenvectors.
    correction_every : int
        At every that many refreshed inverses.
    sample : int, optional
        For ``method="seng"``: entries of the inputs and derivatives from which products are estimated.
    rng : None, int or numpy.random.Generator
        Source of everything random.
    strict : bool
        Raise where an inverse fails, instead of going on with the one before.
    callback : callable, optional
        Called after each step with a `KFACRecord`.
    lr : float, optional
        Learning rate of the optimizer that follows, for `kl_clip`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not one of the above.

    Notes
    -----
    All numbers may be functions of the step or tables ``{first step: value}``. Steps without statistics and without new
    inverses wait for no accelerator.

    With a scaler of the loss, give `grad_scaler`, and call ``scaler.unscale_(optimizer)`` before `step`; where a
    gradient overflowed, call `skip_step` instead.

    Examples
    --------
    >>> import torch
    >>> from rnla.torch import KFACPreconditioner
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> preconditioner = KFACPreconditioner(model, method="nystrom", rank=2, rng=0)
    >>> model(torch.randn(8, 3)).square().mean().backward()
    >>> preconditioner.step()
    >>> optimizer.step()
    """

    def __init__(self, model, params=None, *, lr=None, **options):
        caller = CALLER
        self._engine, self._lr = Engine(model, options, caller), lr
        if lr is not None:
            check_setting("lr", lr, caller)
        elif self._engine.options["kl_clip"] is not None:
            raise ValueError(f"{caller}: lr must be given for kl_clip; got None.")
        self._engine.select(None if params is None else _parameters(params, caller))

    def step(self):
        """Replace the gradients by the preconditioned ones."""
        start, engine = time.perf_counter(), self._engine
        lr = 1.0 if self._lr is None else current("lr", self._lr, engine.steps, CALLER)
        with torch.no_grad():
            if engine.sharer is not None and engine.options["sync_grads"]:
                engine.sharer.average_gradients(engine.model.parameters())
            for block, V in engine.updates(lambda block: lr):
                block.write_gradient(V)
        engine.finish(start)

    def memory_usage(self):
        """Return the bytes of averages and inverses."""
        return self._engine.memory_usage()

    def state_dict(self, include_factors=True):
        """Return the state, for `torch.save`; without factors it is small, and they are collected anew."""
        return self._engine.state_dict(include_factors)

    def load_state_dict(self, state_dict):
        """Take over a state; training goes on as if it had not been interrupted.

        Raises
        ------
        ValueError
            If a layer has another shape.
        """
        self._engine.check_state(state_dict, "rnla.torch.KFACPreconditioner.load_state_dict")
        self._engine.load_state_dict(state_dict)


def _parameters(params, caller):
    """Return the tensors of an iterable of parameters, of named ones, or of parameter groups."""
    found = []
    for entry in params:
        if isinstance(entry, dict):
            found += _parameters(entry["params"], caller)
            continue
        p = entry[1] if isinstance(entry, tuple) else entry
        if not isinstance(p, torch.Tensor):
            raise TypeError(f"{caller}: params must be tensors, named ones or groups of them; got {type(p).__name__}.")
        found.append(p)
    return found
