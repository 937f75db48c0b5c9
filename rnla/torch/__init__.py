"""What works on PyTorch's tensors alone, and is differentiated by it (extra ``torch``)."""

from rnla.torch._sqrt import sqrt_matvec

__all__ = ["sqrt_matvec"]
