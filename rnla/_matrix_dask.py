"""Products with a dask array: one task per block, sums in a tree, run by whatever scheduler is active.

A block of columns of length m or n is either in memory or, on the side of A that is cut into chunks, a dask array with
one chunk per chunk of A: see `Dask.spread`. Every product is one graph, run when it is asked for, so that a pass over A
has ended when the call returns. Blocks of the argument travel inside the graph: the scheduler can send them again if a
worker is lost.
"""

import uuid
from functools import partial
from itertools import pairwise

import numpy as np
from array_api_compat import is_dask_array

from rnla import _dask_blocks as blocks
from rnla._dask_graph import FAN_IN, computed, fails, settled, tasks, tree
from rnla._matrix_views import Storage, spans, wide_dtype

STRIP_BYTES = 256 * 2**20  # largest row (or column) of chunks that may be held to read it once instead of twice
PROBED = 8  # blocks that are tried at a time to find out which one cannot be computed


class Dask(Storage):
    """A dask array with known chunks, dense or sparse; A itself is never computed as a whole.

    `mean` is subtracted from every row: from the entries of a dense block, implicitly from a sparse one.
    """

    def __init__(self, A, xp, device, caller, *, sparse=False, mean=None, far=None):
        super().__init__(tuple(int(side) for side in A.shape), A.dtype, xp, device)
        self.dask_array = A
        self.caller, self.sparse, self.mean, self.far = caller, sparse, mean, far
        rows, columns = A.chunks
        row_strip = max(rows) * self.shape[1] * A.dtype.itemsize
        column_strip = max(columns) * self.shape[0] * A.dtype.itemsize
        self.one_pass_gram = len(columns) == 1 or row_strip <= STRIP_BYTES
        self.one_pass_adjoint_gram = len(rows) == 1 or column_strip <= STRIP_BYTES

    def spread(self):
        """Return the view whose products along the side that is cut into chunks, or the longer one, stay dask arrays.

        `far` is then that side: 0 for ``matmat``, 1 for ``rmatmat``.
        """
        cut = [len(chunks) > 1 for chunks in self.dask_array.chunks]
        far = int(self.shape[1] > self.shape[0]) if cut[0] == cut[1] else int(cut[1])
        return self._like(far=far)

    @property
    def far_chunks(self):
        return None if self.far is None else self.dask_array.chunks[self.far]

    def centered(self, mean):
        return self._like(mean=mean if self.mean is None else self.mean + mean)

    def matmat(self, X, out=None):
        return self._result(self._forward(X), 0)

    def rmatmat(self, Y, out=None):
        return self._result(self._backward(Y), 1)

    def gram_matmat(self, X):
        if not self.one_pass_gram:
            return super().gram_matmat(X)
        columns = self.dask_array.chunks[1]
        if len(columns) > 1:  # the blocks of a row are held until their sum is known
            return self._result(self._backward(self._forward(X).astype(self.dtype)), 1)
        operands = self._literal(X, (columns, X.shape[1:])), "jk"
        return self._result(self._summed("gram", blocks.gram, 0, self._wide, *operands), 1)

    def adjoint_gram_matmat(self, Y):
        if not self.one_pass_adjoint_gram:
            return super().adjoint_gram_matmat(Y)
        return self._result(self._forward(self._backward(Y).astype(self.dtype)), 0)

    def image_and_gram(self, X):
        if not self.one_pass_gram:
            return None
        Y = self._forward(X).astype(self.dtype)
        return self._once(Y, self._backward(Y), 0)

    def adjoint_image_and_gram(self, Y):
        if not self.one_pass_adjoint_gram:
            return None
        W = self._backward(Y).astype(self.dtype)
        return self._once(W, self._forward(W), 1)

    def both_products(self, X, Y):
        products = self._forward(X).astype(self.dtype), self._backward(Y).astype(self.dtype)
        return self._run(lambda: computed(*products))

    def sum_over_rows(self, function, *beside):
        if self.sparse or not self.one_pass_gram:
            return None
        rows = [slice(*edge) for edge in pairwise(self._edges(0))]
        parts = [[X[part, :] for X in beside] for part in rows]
        mean = None if self.mean is None else self.mean[None, :]
        means = [None if mean is None else mean[:, a:b] for a, b in pairwise(self._edges(1))]
        strips = [list(strip) for strip in self.dask_array.to_delayed()]
        starts = [part.start for part in rows]
        sums = tasks("rows", partial(blocks.of_strip, function, means), starts, strips, parts)
        return self._run(lambda: computed(tree("rows", blocks.added, sums))[0])

    def row_blocks(self):
        if self.sparse or not self.one_pass_gram:
            return None
        return ((a, self._whole((slice(a, b), slice(None)))) for a, b in pairwise(self._edges(0)))

    def column_blocks(self):
        if self.sparse or not self.one_pass_adjoint_gram:
            return None
        return ((a, self._whole((slice(None), slice(a, b)))) for a, b in pairwise(self._edges(1)))

    def fro_norm_sq(self, scale=1.0):
        squares = self._over_blocks("norm", partial(blocks.squares, scale=scale), np.float64, by_column=False)
        return float(self._run(lambda: computed(squares.sum())[0]))

    def col_mean(self):
        sums = self._over_blocks("mean", blocks.column_sums, self._wide, by_column=True)
        return self.xp.astype(self._run(lambda: computed(sums.sum(axis=0))[0]) / self.shape[0], self.dtype)

    def column_squares(self):
        if self.mean is not None and self.sparse:
            return None  # would cancel
        squares = self._over_blocks("squares", blocks.column_squares, self.xp.float64, by_column=True)
        return self._run(lambda: computed(squares.sum(axis=0))[0])

    def locate_nonfinite(self):
        flags = self._over_blocks("finite", blocks.all_finite, np.bool_, by_column=False)
        bad = np.argwhere(~computed(flags)[0])
        return self._place(*bad[0]) if len(bad) else None

    @property
    def _wide(self):
        return wide_dtype(self.dtype, self.xp)

    def _like(self, **changes):
        settings = {"sparse": self.sparse, "mean": self.mean, "far": self.far, **changes}
        return Dask(self.dask_array, self.xp, self.device, self.caller, **settings)

    def _forward(self, X):
        """Return the lazy ``A X``, summed in double precision where a row has several blocks."""
        columns = self.dask_array.chunks[1]
        dtype = self.dtype if len(columns) == 1 else self._wide
        return self._summed("forward", blocks.forward, 1, dtype, self._literal(X, (columns, X.shape[1:])), "jk")

    def _backward(self, Y):
        """Return the lazy ``A^H Y`` in double precision."""
        rows = self.dask_array.chunks[0]
        return self._summed("adjoint", blocks.backward, 0, self._wide, self._literal(Y, (rows, Y.shape[1:])), "ik")

    def _summed(self, name, product, axis, dtype, operand, index):
        """Sum the products of the blocks with those of one operand over an axis: 1 for ``A X``, 0 for ``A^H Y``."""
        import dask.array as da

        meta = self.xp.empty((0, 0), dtype=dtype)
        parts = da.blockwise(
            product, "ijk", self.dask_array, "ij", operand, index, *self._mean(), dtype=dtype, meta=meta[:, :, None],
            adjust_chunks={"ij"[axis]: blocks.one}, token=f"rnla-{name}", align_arrays=False, concatenate=True,
        )  # fmt: skip
        add = partial(blocks.sum_parts, dtype=dtype)
        return da.reduction(
            parts, blocks.same, add, combine=add, axis=axis, concatenate=False, split_every=FAN_IN, dtype=dtype,
            meta=meta, name=f"rnla-{name}-sum",
        )  # fmt: skip

    def _over_blocks(self, name, function, dtype, *, by_column):
        """Return the lazy results of ``function(block, mean)``, a row of numbers for each block or a single one."""
        import dask.array as da

        return da.blockwise(
            function, "ij", self.dask_array, "ij", *self._mean(), dtype=dtype, meta=self.xp.empty((0, 0), dtype=dtype),
            adjust_chunks={"i": blocks.one} if by_column else {"i": blocks.one, "j": blocks.one},
            token=f"rnla-{name}", align_arrays=False, concatenate=True,
        )  # fmt: skip

    def _mean(self):
        """Return the operand for `blockwise` that is the mean, if there is one."""
        if self.mean is None:
            return ()
        return self._literal(self.mean[None, :], ((1,), self.dask_array.chunks[1])), "qj"

    def _literal(self, X, chunks):
        """Return `X` as a dask array; one in memory goes into the graph, in pieces that are sent where needed."""
        import dask.array as da

        if is_dask_array(X):
            return X if X.chunks == chunks else X.rechunk(chunks)
        return da.from_array(X, chunks=chunks, name=f"rnla-operand-{uuid.uuid4().hex}", asarray=False)

    def _result(self, lazy, side):
        lazy = lazy.astype(self.dtype)
        if self.far == side:
            return self._run(lambda: settled(lazy)[0])
        return self._run(lambda: computed(lazy)[0])

    def _once(self, Y, Z, side):
        """Compute a product, that of it with the adjoint, and ``||A||_F**2`` in one read of A."""
        total = self._over_blocks("norm", blocks.squares, np.float64, by_column=False).sum()
        if self.far == side:
            Y, Z, total = self._run(lambda: settled(Y, Z, total))
            return Y, *computed(Z, total)
        return self._run(lambda: computed(Y, Z, total))

    def _edges(self, axis):
        return np.cumsum([0, *self.dask_array.chunks[axis]]).tolist()

    def _whole(self, index):
        block = self.dask_array[index]
        block = block if self.mean is None else block - self.mean[None, index[1]]
        return self._run(lambda: computed(block)[0])

    def _place(self, i, j):
        """Name a block in an error."""
        (a, b), (c, d) = (self._edges(axis)[place : place + 2] for axis, place in ((0, i), (1, j)))
        return f"block ({i}, {j}), rows {a}..{b - 1}, columns {c}..{d - 1}"

    def _run(self, graph):
        """Run a graph; if a block cannot be computed, say which."""
        try:
            return graph()
        except (MemoryError, ImportError):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("distributed", "asyncio", "concurrent")):
                raise  # the cluster's failure, not that of a block
            place = self._failing()
            if place is None:
                raise
            raise RuntimeError(
                f"{self.caller}: A must have blocks that can be computed; {place} raised {type(error).__name__}: "
                f"{error}"
            ) from error

    def _failing(self):
        """Return the words that name the first block that raises, or None; reads A up to there."""
        delayed = self.dask_array.to_delayed()
        places = list(np.ndindex(delayed.shape))
        probes = tasks("probe", blocks.touch, list(delayed.ravel()))
        for group in spans(len(places), PROBED):
            if fails(*probes[group]):
                return next((self._place(*places[i]) for i in range(len(places))[group] if fails(probes[i])), None)
        return None
