"""Arithmetic of tall blocks of columns: arrays in memory, or dask arrays whose rows lie with the workers.

On the side of a dask array that is cut into chunks (`Matrix.far`), a block of columns is a dask array with one chunk of
rows for each of them, computed and kept there. Every function here runs one graph for those, brings only matrices as
small as the number of columns into memory, and is the plain expression for other arrays.
"""

from functools import partial

import numpy as np
from array_api_compat import array_namespace, is_dask_array, is_numpy_array

from rnla._backend import adjoint, from_host, to_host
from rnla._dask_graph import computed, settled, tasks, tree
from rnla._matrix_views import spans
from rnla._sketch import test_matrix

PIVOT_ENTRIES = 2**16  # that are looked at together: they and their moduli stay in the cache
IN_PLACE = 2**22  # entries from which a block is overwritten where it may be: 32 MB in double precision


def test_columns(M, axis, kind, key, count, *, start=0, stream=0):  # noqa: PT028 - not a test
    """Return `count` columns of the test matrix of a key, as long as side `axis` of M and of its dtype and place."""
    options = {"xp": M.xp, "dtype": M.dtype, "device": M.device, "start": start, "stream": stream}
    if M.far != axis:
        return test_matrix(kind, key, M.shape[axis], count, **options)
    return _drawn(M.far_chunks, partial(test_matrix, kind, key, l=count, **options), count, M)


test_columns.__test__ = False  # pytest takes the name for a test


def inner(X, Y):
    """Return ``X^H Y`` on the host in double precision."""
    if not is_dask_array(X):
        return to_host(adjoint(X) @ Y)
    return computed(tree("inner", sum, tasks("inner", _inner, _blocks(X), _blocks(Y))))[0]


def times(Y, T):
    """Return ``Y T`` for a small matrix of the host, or of the library of Y."""
    if not is_dask_array(Y):
        return Y @ (like(T, Y) if isinstance(T, np.ndarray) else T)
    return _mapped("times", _times, T.shape[1], Y, T=to_host(T))


def scale_columns(Y, factors):
    """Return Y with its columns multiplied by numbers of the host; an array in memory is overwritten."""
    if is_dask_array(Y):
        return _mapped("scale", _scaled, Y.shape[1], Y, T=factors)
    Y *= like(factors, Y)
    return Y


def pivots(Y):
    """Return, on the host, the entry of largest modulus in each column.

    Entries within 1e-6 of the largest count as equal, and the first is taken: rounding must not choose.
    """
    if is_dask_array(Y):
        blocks = _blocks(Y)
        largest = np.stack(computed(*tasks("largest", _largest, blocks)))
    else:
        # Blocks of rows: temporaries the size of Y would cost more than the arithmetic.
        step = max(PIVOT_ENTRIES // Y.shape[1], 1) if is_numpy_array(Y) else Y.shape[0]
        blocks = [Y[rows, :] for rows in spans(Y.shape[0], step)]
        largest = np.stack([_largest(B) for B in blocks])
    enough = largest.max(axis=0) * (1 - 1e-6)
    chosen = [blocks[place][:, column] for column, place in enumerate(np.argmax(largest >= enough, axis=0))]
    found = np.empty(Y.shape[1], np.complex128)
    for column, entries in enumerate(computed(*chosen) if is_dask_array(Y) else chosen):
        entries = to_host(entries)
        found[column] = entries[np.argmax(np.abs(entries) >= enough[column])]
    return found


def in_chunks(X, M, axis):
    """Return a block of columns on side `axis` of M as the dask array that it is to be for the user."""
    if M.far != axis or X is None or is_dask_array(X):
        return X
    import dask.array as da

    return da.from_array(X, chunks=(M.far_chunks, X.shape[1:]), name=False, asarray=False)


def times_small(Y, T, *, overwrite=False):
    """Return ``Y T`` for a small square matrix of the host; a large NumPy array can be overwritten, by rows."""
    if not (overwrite and is_numpy_array(Y) and Y.size > IN_PLACE):
        return times(Y, T)
    T = like(T, Y)
    step = IN_PLACE // 8 // Y.shape[1]
    for start in range(0, len(Y), step):
        Y[start : start + step] = Y[start : start + step] @ T
    return Y


def less(Y, Q, C):
    """Return ``Y - Q C`` for a small matrix of the host."""
    if is_dask_array(Y):
        return _mapped("less", _less, Y.shape[1], Y, Q, T=np.asarray(C))
    rest = Q @ like(C, Q)
    # Fresh memory costs as much as the subtraction.
    return np.subtract(Y, rest, out=rest) if is_numpy_array(Y) and rest.dtype == Y.dtype else Y - rest


def joined(X, Y):
    """Return ``[X, Y]``."""
    if is_dask_array(X):
        return _mapped("join", _joined, X.shape[1] + Y.shape[1], X, Y)
    return array_namespace(X).concat([X, Y], axis=1)


def part(X, stop):
    """Return the first `stop` columns, without keeping the others in memory."""
    if is_dask_array(X):
        return _mapped("part", _part, stop, X, T=stop)
    return array_namespace(X).asarray(X[:, :stop], copy=True)


def triangle(Y):
    """Return the triangular factor of a QR factorisation of a dask array, from those of its chunks."""
    return computed(tree("triangle", _triangle, tasks("triangle", _triangle, [[B] for B in _blocks(Y)])))[0]


def random_like(Y, count, key):
    """Return `count` Gaussian columns laid out like the dask array Y."""
    draw = partial(test_matrix, "gaussian", key, l=count, dtype=Y.dtype, xp=array_namespace(Y._meta))
    return _drawn(Y.chunks[0], draw, count, Y)


def column_squares(X):
    """Return the squared norms of the columns of a block, on the host in double precision."""
    if is_dask_array(X):
        return computed(tree("squares", sum, tasks("squares", column_squares, _blocks(X))))[0]
    xp = array_namespace(X)
    wide = xp.complex128 if xp.isdtype(X.dtype, "complex floating") else xp.float64
    return to_host(xp.sum(xp.abs(xp.astype(X, wide)) ** 2, axis=0)).real


def like(X, Y):
    """Return the host matrix `X` in the library, precision and device of `Y`; beside a dask array it stays small."""
    from array_api_compat import device

    if is_dask_array(Y):
        Y = Y._meta
    return from_host(X, array_namespace(Y), Y.dtype, device(Y))


def _blocks(Y):
    """Return the chunks of rows of a dask array; one that the user has cut by columns too is put together there."""
    return list(Y.rechunk({1: -1}).to_delayed().ravel())


def _mapped(name, function, count, *blocks, **options):
    """Apply a function to the chunks of dask arrays with equal rows; the result has one chunk of `count` columns."""
    import dask.array as da

    first = blocks[0]
    lazy = da.map_blocks(
        function, *blocks, chunks=(first.chunks[0], (count,)), dtype=first.dtype, meta=first._meta,
        token=f"rnla-{name}", **options,
    )  # fmt: skip
    return settled(lazy)[0]


def _drawn(rows, draw, count, Y):
    import dask.array as da

    meta = getattr(Y, "_meta", None)
    meta = Y.xp.empty((0, 0), dtype=Y.dtype) if meta is None else meta
    lazy = da.map_blocks(
        _draw, chunks=(rows, (count,)), dtype=Y.dtype, meta=meta, token="rnla-draw", draw=draw, sizes=tuple(rows)
    )
    return settled(lazy)[0]


def _draw(draw, sizes, block_id=None):
    i = block_id[0]
    return draw(n=sizes[i], row=sum(sizes[:i]))


def _largest(B):
    xp = array_namespace(B)
    return to_host(xp.max(xp.abs(B), axis=0))


def _scaled(Y, T):
    return Y * like(T, Y)


def _inner(X, Y):
    return to_host(adjoint(X) @ Y)


def _times(Y, T):
    return Y @ like(T, Y)


def _less(Y, Q, T):
    return Y - Q @ like(T, Q)


def _joined(X, Y):
    return array_namespace(X).concat([X, Y], axis=1)


def _part(X, T):
    return array_namespace(X).asarray(X[:, :T], copy=True)


def _triangle(parts):
    return np.linalg.qr(np.concatenate([X if is_numpy_array(X) else to_host(X) for X in parts]), mode="r")
