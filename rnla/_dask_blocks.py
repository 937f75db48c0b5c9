"""What the tasks of a dask graph compute from one block of A, dense or sparse, and how their results are added.

Functions of a module, not of a class: workers in other processes find them by name.
"""

import numpy as np
from array_api_compat import array_namespace

from rnla._matrix_views import adjoint_product, gram_product, sum_of_squares, wide_dtype


def csr_blocks(A, dtype):
    """Return a dask array with sparse blocks of any kind as one whose blocks are CSR arrays of the given dtype."""
    from scipy.sparse import csr_array

    return A.map_blocks(_as_csr, dtype, dtype=dtype, meta=csr_array((0, 0), dtype=dtype), token="rnla-csr")


def _as_csr(B, dtype):
    from scipy.sparse import csr_array

    return csr_array(B.tocsr() if hasattr(B, "tocsr") else np.asarray(B)).astype(dtype, copy=False)


def added(parts):
    """Return the sum of a list of arrays."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def one(length):
    """Return the length of a chunk that holds one result of a block."""
    return 1


def same(x, axis, keepdims):
    """Return a block as it is: products are partial sums already."""
    return x


def sum_parts(parts, axis, keepdims, dtype):
    """Add partial products in place, in `dtype`; each has length 1 along `axis`."""
    total, owned = None, False
    for part in _flat(parts):
        xp = array_namespace(part)
        if total is None:
            total = xp.astype(part, dtype, copy=False)
            owned = total is not part
        elif owned:
            total += part
        else:
            total, owned = total + part, True
    return total if keepdims else total[:, 0, :] if axis in (1, (1,)) else total[0, :, :]


def _flat(parts):
    if isinstance(parts, list):
        for part in parts:
            yield from _flat(part)
    else:
        yield parts


def minus(B, mean):
    """Return a dense block less the mean of its columns; sparse ones are never made dense."""
    return B if mean is None or _is_sparse(B) else B - mean


def _is_sparse(B):
    return hasattr(B, "tocsr")


def forward(B, X, mean=None):
    """Return ``(B - mean) X`` with an axis of length 1 in the middle, over which blocks are summed."""
    Y = minus(B, mean) @ X
    return (Y - mean @ X if mean is not None and _is_sparse(B) else Y)[:, None, :]


def backward(B, Y, mean=None):
    """Return ``(B - mean)^H Y`` with such an axis in front."""
    return _adjoint_product(B, Y, mean)[None, :, :]


def gram(B, X, mean=None):
    """Return ``(B - mean)^H (B - mean) X`` for whole rows, with such an axis in front."""
    if not _is_sparse(B):
        return gram_product(minus(B, mean), X)[None, :, :]
    return _adjoint_product(B, B @ X if mean is None else B @ X - mean @ X, mean)[None, :, :]


def _adjoint_product(B, Y, mean):
    if not _is_sparse(B):
        return adjoint_product(minus(B, mean), Y)
    Z = B.conj().T @ Y
    return Z if mean is None else Z - mean.conj().T @ Y.sum(axis=0, keepdims=True)


def of_strip(function, means, start, strip, beside):
    """Apply `function` to whole rows that come as a list of blocks."""
    parts = [minus(B, mean) for B, mean in zip(strip, means, strict=True)]
    xp = array_namespace(*parts)
    return function(start, parts[0] if len(parts) == 1 else xp.concat(parts, axis=1), *beside)


def _entries(B, mean):
    return B.data if _is_sparse(B) else minus(B, mean)


def squares(B, mean=None, scale=1.0):
    """Return ``||scale (B - mean)||_F**2``, shape (1, 1)."""
    total = sum_of_squares(_entries(B, mean), scale)
    if mean is not None and _is_sparse(B):
        # ||B - 1 mean||^2: only the entries that are stored are looked at.
        sums, mean = np.asarray(B.sum(axis=0)).ravel(), np.asarray(mean).ravel() * scale
        total += float(B.shape[0] * np.sum(np.abs(mean) ** 2) - 2 * np.sum((mean.conj() * sums * scale).real))
    return np.full((1, 1), total)


def column_sums(B, mean=None):
    """Return the sums of the columns in double precision, shape (1, columns)."""
    if _is_sparse(B):
        sums = np.asarray(B.astype(np.promote_types(B.dtype, np.float64)).sum(axis=0))[None, :]
        return sums.reshape(1, -1) - (0 if mean is None else B.shape[0] * mean)
    xp = array_namespace(B)
    return xp.sum(minus(B, mean), axis=0, keepdims=True, dtype=wide_dtype(B.dtype, xp))


def column_squares(B, mean=None):
    """Return the squared norms of the columns in double precision, shape (1, columns)."""
    if _is_sparse(B):
        return np.asarray((abs(B).astype(np.float64) ** 2).sum(axis=0)).reshape(1, -1)
    xp = array_namespace(B)
    wide = xp.astype(xp.abs(minus(B, mean)), xp.float64)
    return xp.sum(wide * wide, axis=0, keepdims=True)


def all_finite(B, mean=None):
    """Return whether a block has neither NaN nor infinity, shape (1, 1)."""
    entries = _entries(B, None)
    xp = array_namespace(entries)
    return np.full((1, 1), bool(xp.all(xp.isfinite(entries))))


def touch(B):
    """Do nothing with a block but have it computed."""
    return B.shape is None
