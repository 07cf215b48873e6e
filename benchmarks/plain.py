"""The model as one writes it, for tests and benchmarks to stand beside: every layer and gradient is PyTorch's own."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physrep.encoders.avit import InstanceNorm, RmsInstanceNorm, Spatial, Stem, Temporal
from physrep.encoders.conv import Block, ChannelNorm, ConvEncoder, ConvPredictor
from physrep.encoders.vit import VisionTransformer

Module = TypeVar("Module", bound=nn.Module)


def plain(module: Module, channels_last: bool = False) -> Module:
    """Copy a module with its weights; what is our own in it becomes plain, convolutions channels first or last."""
    forms: dict[type[nn.Module], type[nn.Module]] = {
        Block: PlainBlock,
        VisionTransformer: PlainTransformer,
        Stem: PlainStem,
        Temporal: PlainTemporal,
        Spatial: PlainSpatial,
        InstanceNorm: PlainInstanceNorm,
        RmsInstanceNorm: PlainRmsNorm,
    }
    if not channels_last:
        forms |= {ChannelNorm: PlainNorm, ConvEncoder: PlainEncoder, ConvPredictor: PlainPredictor}
    module = copy.deepcopy(module)
    for part in module.modules():
        part.__class__ = forms.get(type(part), type(part))
    return module


class PlainBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        conv = F.conv2d if x.ndim == 4 else F.conv3d
        y = conv(x, self.weight, self.bias, padding=[k // 2 for k in self.weight.shape[2:]], groups=x.shape[1])
        y = self.gamma * self.contract(F.gelu(self.expand(self.norm(y.movedim(1, -1)))))
        return x + y.movedim(-1, 1)


class PlainNorm(ChannelNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).contiguous()


class PlainEncoder(ConvEncoder):
    def forward(self, clip: Tensor) -> Tensor:
        x = clip
        for down, stage, flat in zip([self.stem, *self.down], self.stages, self.flat, strict=True):
            x = frames(stage, down(x)) if flat else stage(down(x))
        return x


class PlainPredictor(ConvPredictor):
    def forward(self, features: Tensor) -> Tensor:
        return frames(self.layers, features)


def frames(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), x.shape[2])).transpose(1, 2)


class PlainTransformer(VisionTransformer):
    def embed(self, clip: Tensor) -> Tensor:
        return self.patch(clip).flatten(2).transpose(1, 2) + self._table(self.grid(clip))

    def visible(self, clip: Tensor, keep: Tensor) -> Tensor:
        return self.attend(self.embed(clip).gather(1, keep[:, :, None].expand(-1, -1, self.width)))


class PlainStem(Stem):
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.in_proj(torch.einsum("dc,nchw->ndhw", weight, x) + bias[:, None, None])


def mix(self: Temporal | Spatial, x: Tensor, axes: dict[int, bool]) -> Tensor:
    packed = self.input_head(self.norm1(x.flatten(0, 1))).unflatten(1, (self.heads, 3, -1))
    q, k, v = packed.unflatten(0, x.shape[:2]).permute(3, 0, 1, 5, 6, 2, 4)
    q, k = self.qnorm(q).to(v), self.knorm(k).to(v)
    mixed = []
    for axis, wraps in axes.items():
        rows = [part.movedim(axis, 3).transpose(3, 4) for part in (q, k, v)]
        bias = self.rel_pos_bias(q.shape[axis], wraps).to(v)
        q_rows, k_rows, v_rows = (r.flatten(0, 2) for r in rows)
        y = F.scaled_dot_product_attention(q_rows, k_rows, v_rows, attn_mask=bias)
        mixed.append(y.view_as(rows[0]).transpose(3, 4).movedim(3, axis))
    y = torch.stack(mixed).mean(0).flatten(4).movedim(4, 2)
    return self.output_head(self.norm2(y.flatten(0, 1))).unflatten(0, x.shape[:2])


class PlainTemporal(Temporal):
    mix = mix

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return x + keep * self.gamma[:, None, None] * self.mix(x, {1: False})


class PlainSpatial(Spatial):
    mix = mix

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = x + keep[0] * self.gamma_att[:, None, None] * self.mix(x, self.axes)
        y = self.mlp_norm(self.mlp(x.movedim(2, -1)).movedim(-1, 2).flatten(0, 1)).unflatten(0, x.shape[:2])
        return x + keep[1] * self.gamma_mlp[:, None, None] * y


class PlainInstanceNorm(InstanceNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=self.weight, bias=self.bias)


class PlainRmsNorm(RmsInstanceNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.std((-2, -1), keepdim=True) + 1e-8) * self.weight[:, None, None]
