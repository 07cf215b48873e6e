"""Depthwise convolution with a backward pass that is fast where PyTorch's own is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the 'same' depthwise convolution of x [B, D, *S] (two or three axes) with weight [D, 1, *K], K odd."""
    pad = [k // 2 for k in weight.shape[2:]]
    if x.ndim == 4:
        return F.conv2d(x, weight, bias, padding=pad, groups=x.shape[1])
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.conv3d(x, weight, bias, padding=pad, groups=x.shape[1])
    return _Depthwise3d.apply(x, weight, bias, pad)  # type: ignore[no-any-return]


class _Depthwise3d(torch.autograd.Function):
    """On a CPU PyTorch's backward of a depthwise Conv3d takes some forty times its forward (pytorch#18631).

    The input's gradient is a forward convolution with the flipped kernel; the weight's is a correlation, by FFT.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, pad: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pad = pad
        return F.conv3d(x, weight, bias, padding=pad, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        d_x = d_w = None
        if ctx.needs_input_grad[0]:
            d_x = F.conv3d(grad, weight.flip(2, 3, 4), padding=ctx.pad, groups=x.shape[1])
        if ctx.needs_input_grad[1]:
            d_w = _weight_gradient(x, grad, ctx.pad).to(weight.dtype)
        return d_x, d_w, grad.sum((0, 2, 3, 4)), None


def _weight_gradient(x: Tensor, grad: Tensor, pad: list[int]) -> Tensor:
    """Correlate x with grad, both [B, D, T, H, W], at the kernel's offsets: [D, 1, *K]."""
    size = [max(n + p, 2 * p + 1) for n, p in zip(x.shape[2:], pad, strict=True)]
    spectrum = (torch.fft.rfftn(x, s=size, dim=(2, 3, 4)) * torch.fft.rfftn(grad, s=size, dim=(2, 3, 4)).conj()).sum(0)
    full: Tensor = torch.fft.irfftn(spectrum, s=size, dim=(1, 2, 3))
    for axis, p in enumerate(pad, 1):
        full = full.roll(p, axis).narrow(axis, 0, 2 * p + 1)
    return full.unsqueeze(1)
