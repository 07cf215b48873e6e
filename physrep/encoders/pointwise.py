"""The pointwise half of a ConvNeXt block, in pieces that stay in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WHOLE = 2**25  # bytes; what is larger, glibc takes from the kernel anew every time, page by page
PIECE = 2**17  # elements; four times as many in the hidden layer are 2 MB in float32
aten = torch.ops.aten


def mix_channels(
    x: Tensor, y: Tensor, norm: nn.LayerNorm, expand: nn.Linear, contract: nn.Linear, gamma: Tensor
) -> Tensor:
    """Return x + gamma * contract(gelu(expand(norm(y)))) of x, y [B, D, *S], where the layers see D last.

    On a CPU a large hidden layer exists in pieces only, and again in the backward pass, once differentiable: that is
    faster than to write it out, and all that is kept is y.
    """
    hidden = y.numel() // y.shape[1] * expand.out_features * y.element_size()
    rows = y.movedim(1, -1)
    if x.device.type != "cpu" or hidden <= WHOLE or torch.compiler.is_compiling():
        whole: Tensor = x + (gamma * contract(F.gelu(expand(norm(rows))))).movedim(-1, 1)
        return whole
    weights = (norm.weight, norm.bias, expand.weight, expand.bias, contract.weight, contract.bias, gamma)
    refined: Tensor = _Pieces.apply(x.movedim(1, -1).flatten(0, -2), rows.flatten(0, -2), norm.eps, *weights)
    return refined.view(rows.shape).movedim(-1, 1)


class _Pieces(torch.autograd.Function):
    """The formula above on rows [M, D]. With gamma in the last layer's weights, no gradient needs that layer's output.

    Under autocast products are in its precision, residual, norm and sums over pieces in that of the weights.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, eps: float, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(y, *weights)
        ctx.eps = eps
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else y.dtype
        scale, shift, w1, b1, w2, b2, gamma = weights
        refined = torch.empty_like(x, dtype=torch.promote_types(x.dtype, gamma.dtype))
        with torch.autocast("cpu", enabled=False):
            w1, b1, w2, b2 = (w.to(ctx.dtype) for w in (w1, b1, gamma[:, None] * w2, gamma * b2))
            for a, b, out in zip(*map(_pieces, (x, y, refined)), strict=True):
                normed = F.layer_norm(b, scale.shape, scale, shift, eps).to(ctx.dtype)
                torch.add(a, F.linear(F.gelu(F.linear(normed, w1, b1)), w2, b2), out=out)
        return refined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, *weights = ctx.saved_tensors
        scale, shift, w1, b1, w2, b2, gamma = weights
        d_y = torch.empty_like(y)
        d_scale, d_shift, d_w1, d_b1, d_w2, d_b2 = map(torch.zeros_like, weights[:-1])
        with torch.autocast("cpu", enabled=False):
            low_w1, low_b1, low_w2 = (w.to(ctx.dtype) for w in (w1, b1, gamma[:, None] * w2))
            for b, g, out in zip(*map(_pieces, (y, grad, d_y)), strict=True):
                normed, *statistics = aten.native_layer_norm(b, scale.shape, scale, shift, ctx.eps)
                normed, pull = normed.to(ctx.dtype), g.to(ctx.dtype)
                hidden = F.linear(normed, low_w1, low_b1)
                d_w2 += pull.t() @ F.gelu(hidden)
                d_b2 += g.sum(0)
                d_hidden = aten.gelu_backward(pull @ low_w2, hidden)
                d_w1 += d_hidden.t() @ normed
                d_b1 += d_hidden.sum(0)
                d_normed = (d_hidden @ low_w1).to(y.dtype)
                d_b, d_s, d_t = aten.native_layer_norm_backward(
                    d_normed, b, scale.shape, *statistics, scale, shift, [True, True, True]
                )
                out.copy_(d_b)
                d_scale += d_s
                d_shift += d_t
            d_gamma = (w2 * d_w2).sum(1) + b2 * d_b2
        return grad, d_y, None, d_scale, d_shift, d_w1, d_b1, gamma[:, None] * d_w2, gamma * d_b2, d_gamma


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = rows.split(max(PIECE // rows.shape[1], 2048))
    return parts
