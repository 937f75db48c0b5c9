"""The inverses of many layers: factors of equal size are decomposed together, whichever layers they belong to."""

from array_api_compat import array_namespace, device

from rnla._backend import key_from_rng
from rnla.optim._factors import FactorStats
from rnla.optim._inverse import resolved
from rnla.optim._inverses import damp_factors, factor_inverses
from rnla.optim._precond import split_damping
from rnla.optim._representation import FactorInverse

SIDES = ("A", "G")


def refresh_layers(states, configs, lams, *, rngs=None):
    """Refresh the inverses of several layers, as `LayerState.refresh` does that of one.

    Parameters
    ----------
    states : sequence of LayerState
        Layers; those without statistics stay as they are.
    configs : sequence of LayerConfig
        Of each layer.
    lams : sequence of float
        Damping of each layer.
    rngs : sequence, optional
        Source of the random blocks of each layer.

    Returns
    -------
    tuple of LayerState
        A factor that could not be decomposed or inverted keeps what was there; its representation says so in `outcome`.

    Notes
    -----
    Factors of equal size are decomposed as one stack, see `factor_inverses`.

    Examples
    --------
    >>> config = rnla.optim.LayerConfig()
    >>> states = [rnla.optim.LayerState().add_factors(c * np.eye(3), np.eye(2), config) for c in (1.0, 2.0)]
    >>> states = rnla.optim.refresh_layers(states, [config] * 2, [0.5] * 2)
    >>> [state.damped[0].matrix[0, 0].round(6).item() for state in states]
    [0.666667, 0.333333]
    """
    rngs = [None] * len(states) if rngs is None else rngs
    return damp_layers(represent_layers(states, configs, rngs), configs, lams, before=states)


def represent_layers(states, configs, rngs):
    """Return the states with their averages decomposed; Brand's updates have done so."""
    jobs = {
        (i, side): job(state, side, config, rng)
        for i, (state, config, rng) in enumerate(zip(states, configs, rngs, strict=True))
        if config.method != "brand" and state.A.matrix is not None and state.G.matrix is not None
        for side in SIDES
    }
    found = represent_factors(jobs)
    return tuple(
        state._replace(A_inv=found[i, "A"], G_inv=found[i, "G"]) if (i, "A") in found else state
        for i, state in enumerate(states)
    )


def job(state, side, config, rng):
    """Return what the decomposition of a factor needs: its average, representation, settings and seed."""
    stats, known = (state.A, state.A_inv) if side == "A" else (state.G, state.G_inv)
    method = resolved(config.method, stats.matrix.shape[0], config.rank, config.oversampling)
    if config.ekfac or (config.damping_mode == "joint" and method in ("exact", "cholesky")):
        method = "eigh"
    settings = method, config.rank, config.oversampling, config.products, config.tail
    key = (key_from_rng(rng, "rnla.optim.LayerState.refresh") + SIDES.index(side)) % 2**64
    return stats.matrix, known, known if config.warm_start else None, settings, key


def represent_factors(jobs):
    """Return the representations of factors, from a dict of `job`."""
    found, groups = {}, {}
    for name, (*_, settings, _) in jobs.items():
        groups.setdefault(settings, []).append(name)
    for (method, rank, oversampling, products, tail), names in groups.items():
        matrices, known, warms, _, keys = zip(*(jobs[name] for name in names), strict=True)
        inverses = factor_inverses(
            matrices, rngs=keys, warms=warms, fallbacks=known, method=method, rank=rank, oversampling=oversampling,
            products=products, tail=tail,
        )  # fmt: skip
        found |= zip(names, inverses, strict=True)
    return found


def damp_layers(states, configs, lams, *, before, damp=None):
    """Return the states with their representations damped; where that fails, as they were before.

    `damp` computes the damped inverses of a dict ``{(place, side): (representation, damping)}``.
    """
    states, wanted = list(states), {}
    for i, (state, config, lam) in enumerate(zip(states, configs, lams, strict=True)):
        if state.A_inv is None or state.G_inv is None:
            continue
        if config.ekfac and "identity" not in (state.A_inv.kind, state.G_inv.kind):
            # Entries of the old second moments belong to the old basis.
            product = state.G_inv.lam[:, None] * state.A_inv.lam
            states[i] = state._replace(scale=FactorStats(product), damped=None)
        elif config.damping_mode == "joint":
            states[i] = state._replace(damped=None)
        else:
            deltas = split_damping(state.A_inv, state.G_inv, lam, mode=config.damping_mode)
            # The identity with which an average began is not in its matrix: it is a damping that dies away.
            wanted[i, "A"] = state.A_inv, deltas[0] + state.A.identity
            wanted[i, "G"] = state.G_inv, deltas[1] + state.G.identity
    found = (damp or _damped)(wanted)
    for i in {i for i, _ in wanted}:
        states[i] = states[i]._replace(damped=tuple(found[i, side] for side in SIDES))
        for place, side in enumerate(SIDES):
            if found[i, side] is None:
                states[i] = _kept(states[i], before[i], place, f"{side}_inv")
    return tuple(states)


def _damped(wanted):
    inverses, deltas = zip(*wanted.values(), strict=True) if wanted else ((), ())
    return dict(zip(wanted, damp_factors(inverses, deltas), strict=True))


def _kept(state, before, place, name):
    """Return a state with what there was before for the factor that could not be inverted, or the identity."""
    inv, damped = getattr(before, name), before.damped and before.damped[place]
    if inv is None or damped is None:
        lam = getattr(state, name).lam
        zero = array_namespace(lam).zeros((), dtype=lam.dtype, device=device(lam))
        inv = FactorInverse(None, lam[:0], zero, getattr(state, name).dim, "identity", outcome="identity")
        damped = inv.damp(0.0)
    else:
        inv = inv._replace(outcome="kept")
    pair = list(state.damped)
    pair[place] = damped
    return state._replace(**{name: inv, "damped": tuple(pair)})
