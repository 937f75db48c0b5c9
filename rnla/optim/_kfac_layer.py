"""What an optimizer keeps for a layer, and what it does with it: add statistics, refresh inverses, precondition."""

from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from rnla._rangefinder import check_choice
from rnla.optim._brand import brand_update
from rnla.optim._checks import at_least_single
from rnla.optim._factors import FactorStats, ema_update, input_factor, output_factor
from rnla.optim._inverse import METHODS, TAILS
from rnla.optim._layers import damp_layers, refresh_layers, represent_layers
from rnla.optim._precond import MODES, ekfac_scale, precondition


class LayerConfig(NamedTuple):
    """How the factors of a layer are averaged, inverted and damped.

    Attributes
    ----------
    rho, ema
        As for `ema_update`.
    method, rank, oversampling, products, tail
        As for `factor_inverse`; ``method="brand"`` updates eigenpairs online and keeps no matrix.
    warm_start : bool
        Start a decomposition from the one before.
    damping_mode : {"relative", "pi", "pi-fro", "joint"}
        As for `precondition`.
    ekfac : bool
        Keep second moments in the eigenbasis.

    Examples
    --------
    >>> rnla.optim.LayerConfig(rank=110).tail
    'trace'
    """

    rho: float = 0.95
    ema: str = "const"
    method: str = "exact"
    rank: int = 220
    oversampling: int = 10
    products: int | None = None
    tail: str = "trace"
    warm_start: bool = True
    damping_mode: str = "relative"
    ekfac: bool = False

    def checked(self, caller):
        """Return the configuration, or raise if an option is not one of those allowed."""
        check_choice(self.method, "method", (*METHODS, "brand"), caller)
        check_choice(self.tail, "tail", TAILS, caller)
        check_choice(self.damping_mode, "damping_mode", MODES, caller)
        if self.ekfac and self.method == "brand":
            raise ValueError(f"{caller}: method must give all eigenvectors for ekfac; got 'brand'.")
        return self


class LayerState(NamedTuple):
    """Statistics of a layer and what was made of them; a new one has nothing.

    Attributes
    ----------
    A, G : FactorStats
        Averages of the factors; empty for ``method="brand"``.
    A_inv, G_inv : FactorInverse or None
        Their representations at the last refresh.
    damped : (DampedInverse, DampedInverse) or None
        Inverses as they are applied, for A and G; None for joint damping and for EKFAC, which need no more than those.
    scale : FactorStats
        Second moments in the eigenbasis, for EKFAC.

    Examples
    --------
    >>> a, h = np.eye(3), np.ones((3, 2)) / 3
    >>> config = rnla.optim.LayerConfig()
    >>> state = rnla.optim.LayerState().add(a, h, config, terms=3).refresh(config, 0.1)
    >>> state.direction(np.ones((2, 3)), config, 0.1).shape
    (2, 3)
    """

    A: FactorStats = FactorStats()
    G: FactorStats = FactorStats()
    A_inv: Any = None
    G_inv: Any = None
    damped: Any = None
    scale: FactorStats = FactorStats()

    def add(self, a, h, config, *, terms, bias=False, approx="expand"):
        """Return the state with the statistics of a batch; arguments as for `input_factor` and `output_factor`."""
        state = self
        if config.method == "brand":
            X, Y = _columns(a, h, terms, bias, approx)
            return self.add_columns(X, Y, config)
        if config.ekfac:
            state = state.add_moments(with_one(a) if bias else a, h, config, terms=terms)
        A = input_factor(a, bias=bias, approx=approx)
        return state.add_factors(A, output_factor(h, terms=terms, approx=approx), config)

    def add_factors(self, A, G, config):
        """Return the state with the factors of a batch, which may have been put together from parts."""
        return self._replace(
            A=self.A.update(A, config.rho, mode=config.ema), G=self.G.update(G, config.rho, mode=config.ema)
        )

    def add_columns(self, X, Y, config):
        """Return the state with ``A = X X^T`` and ``G = Y Y^T`` of a batch, in the form of eigenpairs (Brand)."""
        first = self.A_inv is None
        rho = 0.0 if first else config.rho
        ranks = (min(config.rank, M.shape[0]) for M in (X, Y))
        A_inv, G_inv = (
            brand_update(inv, columns, rho, rank=rank)
            for inv, columns, rank in zip((self.A_inv, self.G_inv), (X, Y), ranks, strict=True)
        )
        if first:
            A_inv, G_inv = (inv and inv._replace(tail_rule=config.tail) for inv in (A_inv, G_inv))
        return self._replace(A_inv=A_inv, G_inv=G_inv)

    def add_moments(self, a_bar, h, config, *, terms):
        """Return the state with the second moments of a batch in the present eigenbasis, if there is one yet."""
        if self.A_inv is None or self.scale.matrix is None:
            return self
        new = ekfac_scale(h, a_bar, _basis(self.G_inv), _basis(self.A_inv), terms=terms)
        mean = ema_update(self.scale.matrix, new, config.rho, 1)
        return self._replace(scale=self.scale._replace(matrix=mean))

    def refresh(self, config, lam, *, rng=None):
        """Return the state with new inverses for the damping `lam`; without statistics the state itself."""
        return refresh_layers([self], [config], [lam], rngs=[rng])[0]

    def represent(self, config, *, rng=None):
        """Return the state with the averages decomposed, which needs no damping; Brand's updates have done so."""
        return represent_layers([self], [config], [rng])[0]

    def damp(self, config, lam):
        """Return the state with the inverses that it has damped anew."""
        return damp_layers([self], [config._replace(ekfac=False)], [lam], before=[self])[0]

    def direction(self, V, config, lam):
        """Return the preconditioned gradient; `V` itself before the first refresh."""
        if self.A_inv is None or self.G_inv is None:
            return V
        V = at_least_single(V)
        if config.ekfac and self.scale.matrix is not None:
            return precondition(V, self.A_inv, self.G_inv, _ekfac_damping(self, config, lam), scale=self.scale.matrix)
        if config.damping_mode == "joint":
            return precondition(V, self.A_inv, self.G_inv, lam, mode="joint")
        return V if self.damped is None else precondition(V, *self.damped)

    def curvature(self, V):
        """Return ``G V A``, the product of the averaged block with a step."""
        A, G = self.A, self.G
        if A.matrix is None:
            return self.A_inv.matmul(self.G_inv.matmul(V).T).T
        left = G.matrix @ V if G.matrix.ndim == 2 else G.matrix[:, None] * V
        return left @ A.matrix if A.matrix.ndim == 2 else left * A.matrix


def with_one(a):
    """Return the inputs with a 1 appended to each."""
    xp = array_namespace(a)
    return xp.concat([a, xp.ones((*a.shape[:-1], 1), dtype=a.dtype, device=device(a))], axis=-1)


def _columns(a, h, terms, bias, approx):
    """Return X and Y with ``A = X X^T`` and ``G = Y Y^T``."""
    xp = array_namespace(a)
    a, h = at_least_single(with_one(a) if bias else a), at_least_single(h)
    if approx == "reduce" and a.ndim == 3:
        a, h = xp.mean(a, axis=1), xp.sum(h, axis=1)
    rows_a, rows_h = (xp.reshape(X, (-1, X.shape[-1])) for X in (a, h))
    return rows_a.T / rows_a.shape[0] ** 0.5, rows_h.T * terms**0.5


def _basis(inv):
    if inv.U is not None:
        return inv.U
    return array_namespace(inv.lam).eye(inv.dim, dtype=inv.lam.dtype, device=device(inv.lam))


def _ekfac_damping(state, config, lam):
    """Return the damping of the second moments: relative to the largest one where the mode says so."""
    if config.damping_mode != "relative":
        return lam
    return lam * array_namespace(state.scale.matrix).max(state.scale.matrix)
