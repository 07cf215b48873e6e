"""Depthwise convolution with a backward pass that is fast where PyTorch's own is not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 2**19  # elements of a tile in `weight_gradient`: 2 MB in float32


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the 'same' depthwise convolution of x [B, D, *S] (two or three axes) with weight [D, 1, *K], K odd.

    On a CPU the gradients are ours, once differentiable; elsewhere PyTorch's own, beside which ours are not measured.
    """
    if x.device.type != "cpu":
        conv = F.conv2d if x.ndim == 4 else F.conv3d
        return conv(x, weight, bias, padding=[k // 2 for k in weight.shape[2:]], groups=x.shape[1])
    if x.ndim == 4:  # frames are times that do not mix
        clip = x.movedim(1, -1).unsqueeze(0).movedim(-1, 1)
        return depthwise_conv(clip, weight.unsqueeze(2), bias).movedim(1, -1).squeeze(0).movedim(-1, 1)
    if x.shape[2] == 1 < weight.shape[2]:  # a frame has no neighbours in time
        return depthwise_conv(x.squeeze(2), weight[:, :, weight.shape[2] // 2], bias).unsqueeze(2)
    y: Tensor = _Depthwise.apply(x, weight, bias)
    return y


class _Depthwise(torch.autograd.Function):
    """On a CPU PyTorch's backward of a depthwise Conv3d takes ten to forty times its forward (pytorch#18631).

    Ours is two forward convolutions, nearly as fast as matrix products: the input's gradient with the flipped kernel,
    the weight's as `weight_gradient` says. Under autocast maps are kept in its precision, channels last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        x = x.to(dtype).contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight.to(dtype), bias.to(dtype), [k // 2 for k in weight.shape[2:]])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        kernel = weight.shape[2:]
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        return (
            _convolve(grad, weight.flip(2, 3, 4).to(grad.dtype), None, [k // 2 for k in kernel]) if of_x else None,
            weight_gradient(x, grad, kernel).to(weight.dtype) if of_weight else None,
            grad.sum((0, 2, 3, 4), dtype=weight.dtype) if of_bias else None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: Sequence[int]) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.conv3d(x, weight, bias, padding=pad, groups=x.shape[1])


def weight_gradient(x: Tensor, grad: Tensor, kernel: Sequence[int]) -> Tensor:
    """Correlate x with grad, both [B, D, T, H, W], at a kernel's offsets: [D, 1, *K], in float32 at least.

    That is a convolution of x with grad in the kernel's place; by samples, and by tiles that fit the cache.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    samples, d, t, h, w = x.shape
    p_t, p_h, p_w = (k // 2 for k in kernel)
    frames = t if p_t else min(max(TILE // (h * w * d), 1), t)
    rows = min(max(TILE // (frames * w * d), 1), h)
    x, grad = x.movedim(1, -1), grad.movedim(1, -1)
    total = x.new_zeros(d, 1, *kernel, dtype=dtype)
    for b, start, top in product(range(samples), range(0, t, frames), range(0, h, rows)):
        x_part, grad_part = (m[b : b + 1, start : start + frames] for m in (x, grad))
        tile = grad_part[:, :, top : top + rows].to(dtype)
        end = top + tile.shape[2]
        above, below = min(top, p_h), min(h - end, p_h)
        near = x_part[:, :, top - above : end + below].to(dtype)
        pad = [p_t, p_h, p_w]
        if rows < h:
            near = F.pad(near, (0, 0, 0, 0, p_h - above, p_h - below))
            pad[1] = 0
        total += _convolve(near.movedim(-1, 1), tile.movedim(-1, 0), None, pad).transpose(0, 1)
    return total
