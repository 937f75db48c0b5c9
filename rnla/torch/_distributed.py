"""Work shared by the processes that train one model: statistics, decompositions, preconditioned gradients."""

import torch
import torch.distributed as dist

from rnla.optim import DampedInverse, FactorInverse
from rnla.optim._inverses import damp_factors
from rnla.optim._layers import SIDES, represent_factors
from rnla.torch._blocks import Statistics

BUCKET_BYTES = 25 * 2**20  # of one message
KINDS = ("lowrank", "eigen", "dense", "diagonal", "identity")
OUTCOMES = ("ok", "retried", "kept", "identity")


class Sharer:
    """Processes in a grid: those of a row exchange updates, those of a worker group precondition the same layers.

    With W workers for each layer, worker group j has the ranks ``j W, ..., (j + 1) W - 1``, and row r the ranks
    ``r, r + W, r + 2 W, ...``, one from each group.

    Parameters
    ----------
    group : ProcessGroup or None
        The processes.
    workers : int
        Processes that precondition a layer.
    rule : str
        Of the tails of representations.
    """

    def __init__(self, group, workers, rule):
        self._rule = rule
        self._group, self._world, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self._workers, self._ranks = workers, dist.get_process_group_ranks(group or dist.group.WORLD)
        self._place, self._row = divmod(self.rank, workers)
        self._worker_group = self._row_group = group
        if workers < self._world:
            first = self._place * workers
            self._worker_group = self._new(range(first, first + workers))
            self._row_group = self._new(range(self._row, self._world, workers))
        self._places, self._owners, self._curvatures = {}, {}, {}

    @classmethod
    def of(cls, options, caller):
        """Return what shares the work of a preconditioner, or None for one process."""
        group = options["process_group"]
        if not (dist.is_available() and dist.is_initialized()):
            if group is not None:
                raise ValueError(f"{caller}: process_group needs torch.distributed.init_process_group first.")
            return None
        world, fraction = dist.get_world_size(group), options["grad_worker_fraction"]
        if world == 1:
            return None
        workers = round(fraction * world)
        if not 1 <= workers <= world or world % workers or abs(workers - fraction * world) > 1e-6 * world:
            raise ValueError(
                f"{caller}: grad_worker_fraction must be a share of the {world} processes that divides them evenly; "
                f"got {fraction}."
            )
        if options["method"] in ("brand", "seng"):
            raise ValueError(f"{caller}: method={options['method']!r} is for one process; got {world}.")
        if options["ekfac"] and workers < world:
            raise ValueError(f"{caller}: grad_worker_fraction must be 1 for ekfac; got {fraction}.")
        return cls(group, workers, options["tail"])

    def assign(self, curvatures):
        """Distribute layers over the worker groups, and factors over the workers of a group."""
        self._curvatures = curvatures
        costs = {
            name: {side: float(getattr(c.block, "p" if side == "A" else "q")) ** 3 for side in SIDES}
            for name, c in curvatures.items()
            if c.block.kind != "norm" and c.block.groups == 1  # others are small: every worker computes them
        }
        groups = longest_first(
            {name: sum(parts.values()) for name, parts in costs.items()}, self._world // self._workers
        )
        self._places = dict.fromkeys(curvatures, 0) | groups
        self._owners = {}
        for place in range(self._world // self._workers):
            parts = {
                (name, side): cost
                for name, sides in costs.items()
                if groups[name] == place
                for side, cost in sides.items()
            }
            self._owners |= longest_first(parts, self._workers)

    def works_on(self, name):
        """Say whether this process preconditions a layer."""
        return self._workers == self._world or self._places[name] == self._place

    def sent(self, name, V):
        """Send the update of a layer to those of the row that do not work on it."""
        if self._workers < self._world:
            p = self._curvatures[name].block.p
            dist.broadcast(V[:, :p].contiguous(), self._source(name), group=self._row_group)
        return V

    def received(self, name, g):
        """Return the update of a layer from the one of the row that works on it."""
        V = torch.empty_like(g[:, : self._curvatures[name].block.p], memory_format=torch.contiguous_format)
        dist.broadcast(V, self._source(name), group=self._row_group)
        return V

    def average_gradients(self, params):
        """Replace gradients by their mean over the processes; one that a process does not have is zero there."""
        params = [p for p in params if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in params], dtype=torch.float32, device=self._device())
        dist.all_reduce(used, group=self._group)
        for p, count in zip(params, used.tolist(), strict=True):
            if count and p.grad is None:
                p.grad = torch.zeros_like(p)
            elif p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.to_dense()
        grads = [p.grad for p in params if p.grad is not None]
        for dtype in sorted({g.dtype for g in grads}, key=str):
            self._mean([g for g in grads if g.dtype == dtype])

    def averaged(self, found):
        """Return the statistics of all processes together, the same ones on each.

        Derivatives are those of the loss of each process, whose mean is the loss of all; so the output factors are
        averaged, and the input factors over the processes that used the layer.
        """
        used = torch.zeros(len(self._curvatures), dtype=torch.float32, device=self._device())
        for i, name in enumerate(self._curvatures):
            used[i] = name in found
        dist.all_reduce(used, group=self._group)
        shares = {
            name: count / self._world for name, count in zip(self._curvatures, used.tolist(), strict=True) if count
        }
        messages, shapes = [], {}
        for name in shares:
            parts = found[name][:2] if name in found else self._zeros(name)
            scale = found[name].scale if name in found else None
            parts = [*parts, scale if scale is not None else self._zero_scale(name)]
            shapes[name] = parts
            messages += [X.reshape(-1).clone() if i == 2 else packed(X) for i, X in enumerate(parts) if X is not None]
        self._mean(messages)
        result, place = {}, iter(messages)
        for name, share in shares.items():
            A, G = (X if X is None else unpacked(next(place), X.shape) for X in shapes[name][:2])
            scale = shapes[name][2]  # of any shape, a square one among them, which is not symmetric
            scale = scale if scale is None else next(place).view(scale.shape)
            result[name] = Statistics(A if A is None else A / share, G, 1, scale)
        return result

    def represented(self, names, jobs):
        """Return the representations of the factors of this group, each computed by its owner; see `job`."""
        found = represent_factors({key: task for key, task in jobs.items() if self._owns(names, key)})
        if self._workers == 1:
            return found
        head = torch.zeros((len(jobs), 3), dtype=torch.int64, device=self._device())
        for i, key in enumerate(jobs):
            if key in found:
                inv = found[key]
                rank = 0 if inv.U is None else inv.U.shape[1]
                head[i] = torch.tensor([KINDS.index(inv.kind), OUTCOMES.index(inv.outcome), rank])
        dist.all_reduce(head, group=self._worker_group)
        for (key, (M, known, *_)), (kind, outcome, rank) in zip(jobs.items(), head.tolist(), strict=True):
            kind, outcome = KINDS[kind], OUTCOMES[outcome]
            if outcome == "kept":
                found[key] = known._replace(outcome=outcome)
                continue
            d, inv = M.shape[0], found.get(key)
            count = 0 if kind == "identity" else d if kind == "diagonal" else rank
            flat = M.new_empty(d * rank + count + 1) if inv is None else _flat(inv)
            dist.broadcast(flat, self._owner(names, key), group=self._worker_group)
            # On the owner as well: another order in memory would round differently.
            U = flat[: d * rank].view(d, rank) if rank else None
            lam, tail = flat[d * rank : d * rank + count], flat[-1]
            found[key] = FactorInverse(U, lam, tail, d, kind, self._rule, M if kind == "dense" else None, outcome)
        return found

    def damped(self, names, wanted):
        """Return damped inverses, None where that fails; owners send dense ones to the others."""
        dense = {
            key for key, (inv, _) in wanted.items()
            if inv.kind == "dense" or (inv.kind in ("lowrank", "eigen") and 2 * inv.rank > inv.dim)
        }  # fmt: skip
        mine = [key for key in wanted if key not in dense or self._workers == 1 or self._owns(names, key)]
        inverses, deltas = zip(*(wanted[key] for key in mine), strict=True) if mine else ((), ())
        found = dict(zip(mine, damp_factors(inverses, deltas), strict=True))
        for key in wanted if self._workers > 1 else ():
            if key not in dense:
                continue
            inv, own = wanted[key][0], found.get(key)
            d = inv.dim
            if own is None:
                flat = inv.lam.new_full((d * d + 1,), torch.nan)
            else:
                flat = torch.cat([own.matrix.reshape(-1), own.delta.reshape(1)])
            dist.broadcast(flat, self._owner(names, key), group=self._worker_group)
            # The same numbers everywhere, on the owner as well.
            found[key] = (
                DampedInverse(torch.zeros_like(flat[-1]), None, None, flat[:-1].view(d, d), flat[-1])
                if bool(torch.isfinite(flat[-1])) else None
            )  # fmt: skip
        return found

    def _owns(self, names, key):
        return self._owners[names[key[0]], key[1]] == self._row

    def _owner(self, names, key):
        """Return the rank that computes a factor."""
        return self._ranks[self._place * self._workers + self._owners[names[key[0]], key[1]]]

    def _mean(self, tensors):
        """Average tensors over the processes in place, many in one message."""
        for bucket in buckets(tensors):
            flat = torch.cat([X.reshape(-1) for X in bucket]) if len(bucket) > 1 else bucket[0].reshape(-1).contiguous()
            dist.all_reduce(flat, group=self._group)
            flat /= self._world
            for X, part in zip(bucket, flat.split([X.numel() for X in bucket]), strict=True):
                X.copy_(part.view(X.shape))

    def _zeros(self, name):
        """Return zeros of the shapes of the statistics of a layer that this process did not use."""
        curvature = self._curvatures[name]
        block, like = curvature.block, curvature.block.weight_parameter
        dtype = torch.float32 if like.dtype.itemsize < 4 else like.dtype
        if block.kind == "norm":
            return None, torch.zeros((block.q, block.p, block.p), dtype=dtype, device=like.device)
        if block.groups > 1:
            return curvature.zeros(dtype, like.device)
        large = [block.kind == "embedding" or block.p > curvature.max_dim, block.q > curvature.max_dim]
        shapes = [(d,) if diagonal else (d, d) for d, diagonal in zip((block.p, block.q), large, strict=True)]
        return tuple(torch.zeros(shape, dtype=dtype, device=like.device) for shape in shapes)

    def _zero_scale(self, name):
        """Return zeros for the second moments where the others have them."""
        matrix = getattr(self._curvatures[name].state, "scale", None)
        return None if matrix is None or matrix.matrix is None else torch.zeros_like(matrix.matrix)

    def _source(self, name):
        return self._ranks[self._places[name] * self._workers + self._row]

    def _new(self, places):
        return dist.new_group([self._ranks[i] for i in places], use_local_synchronization=True)

    def _device(self):
        return next(iter(self._curvatures.values())).block.weight_parameter.device


def longest_first(costs, count):
    """Assign tasks to workers, the longest first and each to the one with the least work; ties go by name.

    Returns
    -------
    dict
        Worker of every task; the busiest has at most 4/3 of the least possible (Graham 1969).
    """
    loads, found = [0.0] * count, {}
    for key, cost in sorted(costs.items(), key=lambda item: (-item[1], item[0])):
        worker = loads.index(min(loads))
        loads[worker] += cost
        found[key] = worker
    return found


def packed(X):
    """Return the upper triangle of a symmetric matrix as a vector; other tensors as they are, in one piece."""
    if X.ndim == 2 and X.shape[0] == X.shape[1]:
        i, j = torch.triu_indices(*X.shape, device=X.device)
        return X[i, j]
    return X.reshape(-1).clone()


def unpacked(flat, shape):
    """Return the tensor of which `packed` made a vector."""
    if len(shape) == 2 and shape[0] == shape[1]:
        i, j = torch.triu_indices(*shape, device=flat.device)
        X = flat.new_empty(shape)
        X[i, j] = flat
        X[j, i] = flat
        return X
    return flat.view(shape)


def buckets(tensors):
    """Yield lists of tensors of one dtype that fit a message, in order."""
    bucket, size = [], 0
    for X in tensors:
        if bucket and (size + X.nbytes > BUCKET_BYTES or X.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(X)
        size += X.nbytes
    if bucket:
        yield bucket


def _flat(inv):
    parts = [] if inv.U is None else [inv.U.reshape(-1)]
    return torch.cat([*parts, inv.lam, inv.tail.reshape(1)])
