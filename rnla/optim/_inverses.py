"""Many Kronecker factors at once: those of equal size are decomposed, and inverted, as one stack."""

import contextlib

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_dask_array, is_numpy_array

from rnla._backend import key_from_rng, to_host
from rnla._psd_block import default_shift
from rnla._psd_stack import stack_pairs
from rnla.optim._inverse import (
    check_settings,
    factor_inverse,
    known_vectors,
    products_of,
    rank_of,
    resolved,
    start_block,
    starts,
)
from rnla.optim._representation import DampedInverse, FactorInverse, tail_of
from rnla.optim._symmetric import eigenpairs, largest_eigenpair, ridged, spd_inverse, symmetrised

STACK_BYTES = 2**26  # of the matrices that are copied into one stack
LARGE = 384  # dimension from which blocks are large enough to keep a CPU busy: one by one they stay in its cache
PAIRS = {"rsvd": "singular", "sre": "ritz", "nystrom": "nystrom"}


def factor_inverses(factors, *, rngs=None, warms=None, fallbacks=None, method="auto", rank=None, oversampling=10,
                    products=None, tail="trace"):  # fmt: skip
    """Represent several factors as `factor_inverse` does each of them, with one decomposition for all of equal size.

    Parameters
    ----------
    factors : list
        Each as for `factor_inverse`.
    rngs : list, optional
        ``rng`` of each factor.
    warms, fallbacks : list of FactorInverse or None, optional
        ``warm`` and ``fallback`` of each factor.
    method, rank, oversampling, products, tail
        As for `factor_inverse`, for all.

    Returns
    -------
    list of FactorInverse
        As from `factor_inverse`, to rounding and signs of eigenvectors.

    Raises
    ------
    ValueError, TypeError
        As `factor_inverse`, or if a list has another length than `factors`.

    Notes
    -----
    Stacks are copies of the factors, of 64 MB at most. Factors that are not finite, that need a second attempt, or that
    are no square arrays are treated one by one. On an accelerator a stack takes as many calls of the library as one
    factor.

    Examples
    --------
    >>> factors = [np.diag([3.0, 1.0]), np.diag([5.0, 2.0]), np.eye(3)]
    >>> [inv.lmax.round(3).item() for inv in rnla.optim.factor_inverses(factors, method="eigh")]
    [3.0, 5.0, 1.0]
    """
    factors, caller = list(factors), "rnla.optim.factor_inverses"
    check_settings(method, rank, oversampling, products, tail, caller)
    lists = {"rngs": rngs, "warms": warms, "fallbacks": fallbacks}
    for name, values in lists.items():
        lists[name] = [None] * len(factors) if values is None else list(values)
        if len(lists[name]) != len(factors):
            raise ValueError(f"{caller}: {name} must have {len(factors)} entries, as factors; got {len(lists[name])}.")
    rngs, warms, fallbacks = lists.values()
    options = {"method": method, "rank": rank, "oversampling": oversampling, "products": products, "tail": tail}
    found = dict(enumerate([None] * len(factors)))
    for places in _stacks(factors, warms):
        stack = [[values[i] for i in places] for values in (factors, rngs, warms)]
        found |= zip(places, _together(*stack, **options), strict=True)
    return [
        found[i] or factor_inverse(M, rng=rngs[i], warm=warms[i], fallback=fallbacks[i], **options)
        for i, M in enumerate(factors)
    ]


def damp_factors(inverses, deltas):
    """Compute ``inv.damp(delta)`` for several representations; dense ones of equal size are inverted together.

    Returns
    -------
    list of DampedInverse or None
        None where the inversion failed.
    """
    found = [None] * len(inverses)
    dense = [i for i, inv in enumerate(inverses) if inv.kind == "dense" and not is_numpy_array(inv.matrix)]
    for places in _equal({i: inverses[i].matrix for i in dense}):
        xp = array_namespace(inverses[places[0]].lam)
        floored = [xp.reshape(inverses[i].floored(deltas[i]), ()) for i in places]
        try:
            stack = spd_inverse(ridged(xp.stack([inverses[i].matrix for i in places]), xp.stack(floored)))
        except (np.linalg.LinAlgError, RuntimeError):
            continue
        for k, (i, delta) in enumerate(zip(places, floored, strict=True)):
            found[i] = DampedInverse(xp.zeros_like(delta), None, None, _own(stack, k), delta)
    for i, (inv, delta) in enumerate(zip(inverses, deltas, strict=True)):
        if found[i] is None:
            with contextlib.suppress(np.linalg.LinAlgError, RuntimeError):
                found[i] = inv.damp(delta)
    return found


def _stacks(factors, warms):
    """Return lists of the places of square arrays whose decompositions are of one kind."""
    square = {
        i: M for i, M in enumerate(factors)
        if is_array_api_obj(M) and not is_dask_array(M) and M.ndim == 2 and M.shape[0] == M.shape[1]
        and (warms[i] is None or starts(warms[i], M.shape[0]))
    }  # fmt: skip
    vectors = {i: known_vectors(warms[i]) for i in square}
    return _equal(square, {i: None if U is None else U.shape[1] for i, U in vectors.items()})


def _equal(arrays, labels=None):
    """Return lists of two or more places with arrays of one library, size, dtype, device and label, in one stack."""
    groups = {}
    for i, M in arrays.items():
        key = array_namespace(M), M.shape[0], M.dtype, device(M), None if labels is None else labels[i]
        groups.setdefault(key, []).append(i)
    result = []
    for (_, d, *_), places in groups.items():
        most = max(STACK_BYTES // (8 * d * d), 1)
        result += [places[k : k + most] for k in range(0, len(places), most)]
    return [places for places in result if len(places) > 1]


def _together(factors, rngs, warms, *, method, rank, oversampling, products, tail):
    """Return the representations of factors of one size, None for those that must be treated alone."""
    xp, d = array_namespace(factors[0]), factors[0].shape[0]
    rank = rank_of(rank, d)
    method, width = resolved(method, d, rank, oversampling), min(rank + oversampling, d)
    if method in PAIRS and (2 * width > d or (d >= LARGE and "cpu" in str(device(factors[0])).lower())):
        return [None] * len(factors)
    M = xp.stack(factors)
    traces = xp.sum(xp.astype(xp.linalg.diagonal(M), xp.float64), axis=-1)
    usable = xp.isfinite(xp.sum(M, axis=(1, 2))) & (traces > 0)
    # The identity in place of a matrix that would end the decomposition of all.
    eye = xp.eye(d, dtype=M.dtype, device=device(M))
    M, traces = xp.where(usable[:, None, None], M, eye), xp.where(usable, traces, xp.full_like(traces, float(d)))
    try:
        if method in ("exact", "cholesky"):
            start = None
            if any(warm is not None and warm.U is not None for warm in warms):
                none = xp.zeros((d,), dtype=M.dtype, device=device(M))
                start = xp.stack([none if warm is None or warm.U is None else warm.U[:, 0] for warm in warms])
            value, U = largest_eigenpair(M, start=start)
            lam, rank = value[:, None], 1
        elif method == "eigh":
            (lam, U), rank = eigenpairs(symmetrised(M)), d
        else:
            known = [known_vectors(warm) for warm in warms]
            X = [
                start_block(U, key_from_rng(rng, "rnla.optim.factor_inverses"), d, width, oversampling, factors[0])
                for U, rng in zip(known, rngs, strict=True)
            ]
            products = products_of(products, method, known[0])
            lam, U, safe = stack_pairs(
                M, xp.stack(X), products, method=PAIRS[method], shift=default_shift(traces, d, M.dtype, xp)
            )
            usable, lam, U = usable & safe, lam[:, :rank], U[..., :rank]
    except (np.linalg.LinAlgError, RuntimeError):
        return [None] * len(factors)
    fine = to_host(usable & xp.isfinite(xp.sum(lam, axis=-1)))
    lam = xp.clip(lam, min=0.0)
    if method in ("exact", "cholesky"):
        return [
            FactorInverse(_own(U, i), _own(lam, i), lam[i, 0] * 0, d, "dense", tail, factors[i]) if good else None
            for i, good in enumerate(fine)
        ]
    kind = "eigen" if rank == d else "lowrank"
    return [
        FactorInverse(_own(U, i), _own(lam, i), tail_of(lam[i, ...], traces[i], d, tail), d, kind, tail)
        if good
        else None
        for i, good in enumerate(fine)
    ]


def _own(stack, i):
    """Return one array of a stack in memory of its own: the others may be replaced, saved or counted apart from it."""
    return array_namespace(stack).asarray(stack[i, ...], copy=True)
