"""A multilayer perceptron on plain arrays, and K-FAC steps for it: the optimizers without a framework.

Weights are a list of arrays (q, p), the bias as last column where a layer has one; every function is pure.
"""

from rnla.optim._adaptive_step import AdaptiveConfig, AdaptiveState, adaptive_step
from rnla.optim._kfac_step import KFACConfig, KFACState, StepInfo, kfac_step
from rnla.optim._perceptron import Pass, backward, forward, init, jvp

__all__ = [
    "AdaptiveConfig",
    "AdaptiveState",
    "KFACConfig",
    "KFACState",
    "Pass",
    "StepInfo",
    "adaptive_step",
    "backward",
    "forward",
    "init",
    "jvp",
    "kfac_step",
]
