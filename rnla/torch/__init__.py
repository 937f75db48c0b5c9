"""What works on PyTorch's tensors alone: optimizers with curvature, and differentiable roots (extra ``torch``)."""

from rnla.torch._adaptive import AdaptiveKFAC
from rnla.torch._kfac import KFAC
from rnla.torch._kldwrm import KLDWRM
from rnla.torch._preconditioner import KFACPreconditioner
from rnla.torch._presets import BKFAC, EKFAC, RSKFAC, SENG, SREKFAC, NysKFAC
from rnla.torch._records import KFACRecord, KFACStats
from rnla.torch._sqrt import sqrt_matvec

__all__ = [
    "BKFAC",
    "EKFAC",
    "KFAC",
    "KLDWRM",
    "RSKFAC",
    "SENG",
    "SREKFAC",
    "AdaptiveKFAC",
    "KFACPreconditioner",
    "KFACRecord",
    "KFACStats",
    "NysKFAC",
    "sqrt_matvec",
]
