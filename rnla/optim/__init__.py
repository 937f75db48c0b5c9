"""Curvature of neural networks on plain arrays: Kronecker factors, their inverses, and the steps that use them.

Everything runs on NumPy, CuPy, torch and other arrays of the standard, and returns arrays of the same library. A layer
has inputs a, outputs ``s = W a``, and its Fisher block is approximated by ``A kron G`` with ``A = E[a a^T]`` and
``G = E[g g^T]``, g the derivative of the loss at s; in matrix form ``(A kron G) vec V = vec(G V A)``.
"""

from rnla.optim import mlp
from rnla.optim._brand import brand_correction, brand_update
from rnla.optim._clip import graft, kl_clip, momentum_step, rms_clip
from rnla.optim._factors import FactorStats, ema_update, input_factor, norm_factor, output_factor, token_frequencies
from rnla.optim._inverse import factor_inverse
from rnla.optim._inverses import factor_inverses
from rnla.optim._kfac_layer import LayerConfig, LayerState
from rnla.optim._kldwrm import kldwrm_gradient, kldwrm_residual, kldwrm_step, symmetric_kl, symmetric_kl_gradient
from rnla.optim._kron import BlockTridiagonal, KronSum, kron_sum_solve
from rnla.optim._layers import refresh_layers
from rnla.optim._likelihood import Likelihood, likelihood
from rnla.optim._model import GammaSearch, LevenbergMarquardt, solve_quadratic_model
from rnla.optim._precond import ekfac_scale, norm_solve, precondition, split_damping
from rnla.optim._rank import choose_rank, ea_rank_bound
from rnla.optim._representation import DampedInverse, FactorInverse
from rnla.optim._seng import seng_solve
from rnla.optim._unfold import conv_input_factor, unfold1d, unfold2d

__all__ = [
    "BlockTridiagonal",
    "DampedInverse",
    "FactorInverse",
    "FactorStats",
    "GammaSearch",
    "KronSum",
    "LayerConfig",
    "LayerState",
    "LevenbergMarquardt",
    "Likelihood",
    "brand_correction",
    "brand_update",
    "choose_rank",
    "conv_input_factor",
    "ea_rank_bound",
    "ekfac_scale",
    "ema_update",
    "factor_inverse",
    "factor_inverses",
    "graft",
    "input_factor",
    "kl_clip",
    "kldwrm_gradient",
    "kldwrm_residual",
    "kldwrm_step",
    "kron_sum_solve",
    "likelihood",
    "mlp",
    "momentum_step",
    "norm_factor",
    "norm_solve",
    "output_factor",
    "precondition",
    "refresh_layers",
    "rms_clip",
    "seng_solve",
    "solve_quadratic_model",
    "split_damping",
    "symmetric_kl",
    "symmetric_kl_gradient",
    "token_frequencies",
    "unfold1d",
    "unfold2d",
]
