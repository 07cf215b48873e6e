"""The depthwise convolution against PyTorch's own, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from physrep.encoders import depthwise
from physrep.encoders.depthwise import depthwise_conv

SHAPES = [  # [B, D, T, H, W] and the kernel: odd sides, fewer frames than the kernel, one frame, one cell
    ((2, 3, 5, 9, 6), (3, 5, 7)),
    ((1, 17, 2, 4, 4), (7, 7, 7)),
    ((3, 2, 1, 8, 8), (3, 3, 3)),
    ((2, 4, 9, 11, 5), (1, 3, 3)),
    ((1, 5, 4, 1, 1), (3, 5, 7)),
    ((2, 3, 13, 7), (7, 7)),
    ((1, 16, 1, 5), (3, 7)),
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other cell": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


def plain(x, weight, bias):
    conv = F.conv2d if x.ndim == 4 else F.conv3d
    return conv(x, weight, bias, padding=[k // 2 for k in weight.shape[2:]], groups=x.shape[1])


def draw(shape, kernel, dtype=torch.float64):
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(shape[1], 1, *kernel, dtype=dtype)
    return x, weight.requires_grad_(), torch.randn(shape[1], dtype=dtype, requires_grad=True)


def gradients(conv, x, weight, bias):
    x = x.detach().requires_grad_()
    y = conv(x, weight, bias)
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y, *torch.autograd.grad(y, (x, weight, bias), pull.to(y))]


@pytest.mark.parametrize("tile", [1, 100, depthwise.TILE])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "kernel"), SHAPES)
def test_output_and_gradients_equal_pytorchs(shape, kernel, layout, tile, monkeypatch):
    monkeypatch.setattr(depthwise, "TILE", tile)
    x, weight, bias = draw(shape, kernel)
    ours = gradients(depthwise_conv, LAYOUTS[layout](x), weight, bias)
    for a, b in zip(ours, gradients(plain, x, weight, bias), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("shape", "kernel"), [((2, 2, 2, 3, 4), (3, 3, 5)), ((2, 2, 3, 4), (3, 5))])
def test_numerical_derivatives(shape, kernel):
    x, weight, bias = draw(shape, kernel)
    assert torch.autograd.gradcheck(depthwise_conv, (x.requires_grad_(), weight, bias))


@pytest.mark.parametrize(("shape", "kernel"), [((2, 8, 8, 32, 32), (7, 7, 7)), ((8, 32, 16, 16), (7, 7))])
def test_float32_is_close_to_float64(shape, kernel, monkeypatch):
    monkeypatch.setattr(depthwise, "TILE", 2**14)
    double = draw(shape, kernel)
    ours = gradients(depthwise_conv, *(t.detach().float().requires_grad_() for t in double))
    for a, b in zip(ours, gradients(plain, *double), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6


def test_autocast_keeps_the_weights_gradient_in_float32(monkeypatch):
    """Maps are rounded to bfloat16, 2^-9 of a number; sums of the rounded are exact to 1e-5 of float64's."""
    monkeypatch.setattr(depthwise, "TILE", 2**12)
    x, weight, bias = (t.detach().float().requires_grad_() for t in draw((2, 8, 6, 24, 24), (5, 7, 7)))
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv(x, weight, bias)
    pull = torch.randn_like(y)
    d_x, d_weight, d_bias = torch.autograd.grad(y, (x, weight, bias), pull)
    assert y.dtype == torch.bfloat16
    assert {d.dtype for d in (d_x, d_weight, d_bias)} == {torch.float32}
    rounded = [t.detach().bfloat16().double().requires_grad_() for t in (x, weight, bias)]
    z = plain(*rounded)
    e_x, e_weight, e_bias = torch.autograd.grad(z, rounded, pull.double())
    for a, b, tolerance in ((y, z, 3e-3), (d_x, e_x, 3e-3), (d_weight, e_weight, 1e-5), (d_bias, e_bias, 3e-3)):
        assert float((a - b).norm() / b.norm()) < tolerance


def test_double_backward_is_refused():
    x, weight, bias = draw((1, 2, 4, 4, 4), (3, 3, 3))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(depthwise_conv(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_gradients_are_bitwise_the_same_again(monkeypatch):
    monkeypatch.setattr(depthwise, "TILE", 2**12)
    drawn = draw((2, 16, 6, 20, 20), (7, 7, 7), torch.float32)
    assert all(map(torch.equal, gradients(depthwise_conv, *drawn), gradients(depthwise_conv, *drawn)))


def test_frozen_weights_and_no_device():
    x, weight, bias = draw((1, 3, 4, 5, 6), (3, 3, 3))
    (d_x,) = torch.autograd.grad(depthwise_conv(x.requires_grad_(), weight.detach(), bias.detach()).sum(), x)
    assert d_x.shape == x.shape
    assert depthwise_conv(*(t.to("meta") for t in (x, weight, bias))).shape == x.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("shape", "kernel"), SHAPES)
def test_a_gpu_gives_the_same(shape, kernel):
    drawn = draw(shape, kernel)
    there = gradients(depthwise_conv, *(t.detach().cuda().requires_grad_() for t in drawn))
    for a, b in zip(there, gradients(plain, *drawn), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-10, rtol=1e-10)
