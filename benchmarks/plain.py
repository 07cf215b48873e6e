"""The model as one writes it, for tests and benchmarks to stand beside: every layer and gradient is PyTorch's own."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from physrep.encoders.conv import Block, ChannelNorm, ConvEncoder, ConvPredictor

Module = TypeVar("Module", bound=nn.Module)


def plain(module: Module, channels_last: bool = False) -> Module:
    """Copy a module with its weights; its convolutional parts become plain ones, channels first or last in memory."""
    forms = {Block: PlainBlock}
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
