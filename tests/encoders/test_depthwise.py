"""The depthwise convolution against PyTorch's own, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from physrep.encoders.depthwise import depthwise_conv


@pytest.mark.parametrize("kernel", [(3, 5, 7), (7, 7, 7), (1, 3, 3)])
@pytest.mark.parametrize("grid", [(5, 9, 6), (2, 4, 4), (1, 8, 8)])
def test_gradients_equal_pytorchs(kernel, grid):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    plain = F.conv3d(x, weight, bias, padding=[k // 2 for k in kernel], groups=3)
    ours = depthwise_conv(x, weight, bias)
    assert torch.equal(ours, plain)
    pull = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), pull) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_float32_is_close():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 8, 32, 32), torch.randn(8, 1, 7, 7, 7), torch.randn(8)
    for t in (x, weight, bias):
        t.requires_grad_()
    plain = F.conv3d(x, weight, bias, padding=3, groups=8)
    pull = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), pull)
                      for y in (depthwise_conv(x, weight, bias), plain)), strict=True):  # fmt: skip
        assert float((a - b).norm() / b.norm()) < 1e-5


def test_double_backward_is_refused():
    x = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    weight, bias = torch.randn(2, 1, 3, 3, 3, requires_grad=True), torch.zeros(2)
    (grad,) = torch.autograd.grad(depthwise_conv(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_two_dimensions():
    x, weight, bias = torch.randn(2, 3, 6, 7), torch.randn(3, 1, 5, 5), torch.randn(3)
    assert torch.equal(depthwise_conv(x, weight, bias), F.conv2d(x, weight, bias, padding=2, groups=3))
