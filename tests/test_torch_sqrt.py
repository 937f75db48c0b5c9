"""The differentiable product with a root: right, and with the right derivatives."""

import numpy as np
import pytest

import rnla

torch = pytest.importorskip("torch")
from rnla.torch import sqrt_matvec  # noqa: E402


def tensors(n=12, k=2, c=3, dtype=torch.float64):
    rng = np.random.default_rng(0)
    parts = rng.uniform(0.1, 2, n), rng.standard_normal((n, k)), rng.standard_normal((n, c) if c else n)
    return [torch.tensor(X, dtype=dtype, requires_grad=True) for X in parts]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
@pytest.mark.parametrize("c", [0, 3])
def test_product_is_that_of_the_root(inverse, dtype, tol, c):
    d, Z, b = tensors(c=c, dtype=dtype)
    root = rnla.sqrt_update(d.detach(), Z.detach(), inverse=inverse)
    y = sqrt_matvec(d, Z, b, inverse)
    assert y.dtype == dtype
    assert y.shape == b.shape
    assert (y - root @ b.detach()).abs().max() <= tol


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_derivatives_agree_with_differences(inverse, k):
    d, Z, b = tensors(k=k)
    assert torch.autograd.gradcheck(lambda *X: sqrt_matvec(*X, inverse, 1e-12), (d, Z, b), rtol=1e-5, atol=1e-7)


def test_derivative_of_a_scalar_is_known():
    # b^T W^(1/2) b for Z = 0 is the sum of b^2 sqrt(d).
    d, Z, b = tensors(c=0)
    Z = torch.zeros_like(Z, requires_grad=True)
    (b.detach() @ sqrt_matvec(d, Z, b)).backward()
    assert torch.allclose(d.grad, b.detach() ** 2 / (2 * d.detach().sqrt()), rtol=1e-6)
    assert torch.allclose(b.grad, b.detach() * d.detach().sqrt(), rtol=1e-6)
    assert Z.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda d, Z, b: (-d, Z, b), ValueError, r"^rnla\.torch\.sqrt_matvec: d must be positive"),
        (lambda d, Z, b: (d, Z[1:], b), ValueError, "must have shapes"),
        (lambda d, Z, b: (d, Z.float(), b), TypeError, "Z must have the dtype of d"),
        (lambda d, Z, b: (d, Z, b.detach().numpy()), TypeError, "b must be a tensor"),
        (lambda d, Z, b: (d, Z, b, False, 2.0), ValueError, r"tol must be in \(0, 1\)"),
    ],
)
def test_bad_arguments_are_named(change, error, text):
    with pytest.raises(error, match=text):
        sqrt_matvec(*change(*tensors()))
