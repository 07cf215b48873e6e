"""Video ConvNeXt: the paper's encoder and predictor (arXiv 2603.13227), and strided siblings of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from physrep.encoders.base import Encoder, through
from physrep.encoders.depthwise import depthwise_conv
from physrep.encoders.pointwise import mix_channels
from physrep.errors import UserError


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, *S]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised map, [B, C, *S]."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """ConvNeXt residual block: depthwise conv, layer norm, expansion by four, GELU, layer scale (Liu et al. 2022)."""

    def __init__(self, width: int, kernel: Sequence[int], scale: float = 1e-6) -> None:
        super().__init__()
        shape = (width, 1, *kernel)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(width))
        bound = 1 / math.sqrt(math.prod(kernel))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined map; x [B, D, *S], two or three grid axes as the kernel has."""
        same = x.view_as(x)  # made before y, so that autograd adds its gradient to y's, in place
        y = depthwise_conv(x, self.weight, self.bias)
        return mix_channels(same, y, self.norm, self.expand, self.contract, self.gamma)


class ConvEncoder(Encoder):
    """Five-stage video ConvNeXt; its defaults are the paper's encoder (2,466,928 weights at 4 channels).

    clip [B, C, T, H, W] -> [B, D, t, h, w] with D the last width; `strides` are those of the stem and of each
    transition, as (time, height, width); a stage whose kernel has two axes works frame by frame, as the paper's last.
    The first `recompute` stages keep less memory and take longer.
    Raises UserError for a clip that the strides do not divide.
    """

    layers: ClassVar[tuple[str, int]] = ("stages", 1)

    def __init__(
        self,
        channels: int,
        widths: Sequence[int] = (16, 32, 64, 128, 128),
        depths: Sequence[int] = (3, 3, 3, 9, 3),
        stem: Sequence[int] = (1, 4, 4),
        strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernels: Sequence[Sequence[int]] = ((7, 7, 7), (7, 7, 7), (7, 7, 7), (7, 7, 7), (7, 7)),
        scale: float = 1e-6,
        recompute: int = 0,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        sizes = {"widths": len(widths), "depths": len(depths), "strides": len(strides), "kernels": len(kernels)}
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{n} {name}" for name, n in sizes.items())
            raise UserError(f"encoder: {said}; give one of each per stage")
        for kernel in kernels:
            if any(k < 1 or k % 2 == 0 for k in kernel):
                raise UserError(f"encoder.kernels: {list(kernel)} has no middle; give odd sizes")
        if min(stem) < 1:
            raise UserError(f"encoder.stem: {list(stem)}: must be 1 or more each")
        self.width = widths[-1]
        self.flat = [len(kernel) == 2 for kernel in kernels]
        self.total = [math.prod(s[axis] for s in strides) for axis in range(3)]
        padding = "same" if math.prod(strides[0]) == 1 else "valid"
        self.stem = nn.Sequential(_conv(channels, widths[0], stem, strides[0], padding), ChannelNorm(widths[0]))
        self.down = nn.ModuleList(
            nn.Sequential(ChannelNorm(a), _conv(a, b, s, s, "valid"))
            for a, b, s in zip(widths, widths[1:], strides[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(w, k, scale) for _ in range(n)))
            for w, k, n in zip(widths, kernels, depths, strict=True)
        )

    def forward(self, clip: Tensor) -> Tensor:
        """Return the feature map [B, D, t, h, w] of a clip [B, C, T, H, W]."""
        if any(n % s for n, s in zip(clip.shape[2:], self.total, strict=True)):
            raise UserError(f"encoder: strides {self.total} do not divide a clip of {list(clip.shape[2:])} "
                            "(T, H, W); change data.frames, data.crop, data.size or encoder.strides")  # fmt: skip
        x: Tensor = clip.contiguous(memory_format=torch.channels_last_3d)
        for i, (down, stage, flat) in enumerate(zip([self.stem, *self.down], self.stages, self.flat, strict=True)):
            x = down(x)
            x = through(partial(frame_by_frame, stage) if flat else stage, x, recompute=i < self.recompute)
        return x


def _conv(a: int, b: int, kernel: Sequence[int], stride: Sequence[int], padding: str) -> nn.Conv3d:
    (t, h, w), (dt, dh, dw) = kernel, stride
    return nn.Conv3d(a, b, (t, h, w), (dt, dh, dw), padding)


def frame_by_frame(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a two-dimensional module to every frame of x [B, D, t, h, w]."""
    y: Tensor = module(x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last))
    frames: Tensor = y.unflatten(0, (len(x), x.shape[2]))
    return frames.transpose(1, 2)


class ConvPredictor(nn.Module):
    """The paper's predictor, frame by frame: widen by a 2x2 conv, a ConvNeXt block, narrow (801,664 weights at 128)."""

    def __init__(self, width: int, hidden: int, kernel: Sequence[int] = (7, 7), scale: float = 1e-6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, hidden, 2, padding=1), Block(hidden, kernel, scale), nn.Conv2d(hidden, width, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the predicted feature map, [B, D, t, h, w] as the input."""
        return frame_by_frame(self.layers, features)
