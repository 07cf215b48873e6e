"""DISCO's operator: a small U-Net whose weights another network makes (arXiv 2504.19496)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 4
Mode = Literal["circular", "reflect"]


class OperatorUNet(nn.Module):
    """Maps a state [B, C, H, W] to its rate of change, [B, C, H, W]: a function of weights and state.

    3x3 to `start` channels, 3x3, Down `levels` times, a residual 1x1 bottleneck, Up as often, 3x3, 3x3 to C: 158,624
    weights at the published 4 channels, width 8 and 4 levels. No layer has a bias and no norm has weights, so that all
    weights zero give zero. A periodic domain is padded around; any other by reflection, with one more channel in that
    marks its border. H and W are multiples of 2^levels; `start` is one of NORM_GROUPS.
    """

    def __init__(self, channels: int, start: int = 8, levels: int = 4, periodic: bool = True) -> None:
        super().__init__()
        self.periodic = periodic
        widths = [start * 2**level for level in range(levels + 1)]
        mode: Mode = "circular" if periodic else "reflect"
        self.read = _conv3x3(channels + (not periodic), start, mode)
        self.first = _conv3x3(start, start, mode)
        self.down = nn.ModuleList(Down(width, mode) for width in widths[:-1])
        self.expand = nn.Conv2d(widths[-1], 2 * widths[-1], 1, bias=False)
        self.contract = nn.Conv2d(2 * widths[-1], widths[-1], 1, bias=False)
        self.up = nn.ModuleList(Up(width, mode) for width in reversed(widths[:-1]))
        self.last = _conv3x3(start, start, mode)
        self.write = _conv3x3(start, channels, mode)

    def forward(self, state: Tensor) -> Tensor:
        """Return the rate of change, [B, C, H, W]."""
        x = state if self.periodic else torch.cat([state, _border(state)], dim=1)
        x = _activate(self.first(_activate(self.read(x))))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = x + self.contract(_activate(self.expand(x)))
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
        rate: Tensor = self.write(_activate(self.last(x)))
        return rate


class Down(nn.Module):
    """Halve the grid and double the channels: strided 2x2, depthwise 3x3, [B, D, H, W] -> [B, 2D, H/2, W/2]."""

    def __init__(self, width: int, mode: Mode) -> None:
        super().__init__()
        self.coarsen = nn.Conv2d(width, 2 * width, 2, stride=2, bias=False)
        self.mix = _conv3x3(2 * width, 2 * width, mode, groups=2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the coarser map."""
        return _activate(self.mix(self.coarsen(x)))


class Up(nn.Module):
    """Double the grid, halve the channels, join the skip: [B, 2D, H, W] and [B, D, 2H, 2W] -> [B, D, 2H, 2W].

    Transposed 2x2, then a 3x3 of both in D groups of two channels: as a depthwise one whose outputs are added in twos,
    since PyTorch's own backward of that takes five times as long on a CPU.
    """

    def __init__(self, width: int, mode: Mode) -> None:
        super().__init__()
        self.refine = nn.ConvTranspose2d(2 * width, width, 2, stride=2, bias=False)
        self.mix = _conv3x3(2 * width, 2 * width, mode, groups=2 * width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the finer map."""
        return _activate(self.mix(torch.cat([self.refine(x), skip], dim=1)).unflatten(1, (-1, 2)).sum(2))


def _conv3x3(a: int, b: int, mode: Mode, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, groups=groups, bias=False, padding_mode=mode)


def _activate(x: Tensor) -> Tensor:
    return F.gelu(F.group_norm(x, NORM_GROUPS))


def _border(state: Tensor) -> Tensor:
    """Make a channel [B, 1, H, W] that is one along the grid's border and zero within."""
    b, _, h, w = state.shape
    return F.pad(state.new_zeros(b, 1, h - 2, w - 2), (1, 1, 1, 1), value=1.0)
