"""What every encoder is."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from physrep.errors import UserError


class Encoder(nn.Module):
    """Maps a clip [B, C, T, H, W] to a feature map [B, D, t, h, w]; `width` is D."""

    width: int
    weights: str | None = None
    """the file that its weights were read from, if any"""
    layers: ClassVar[tuple[str, int]]
    """the module list that a clip passes through, and the axis of the channels in its members' output"""
    keeps_scale: bool = True
    """False of an encoder that normalises each clip: the fields' own scale cannot be decoded from its features"""

    def forward(self, clip: Tensor) -> Tensor:
        """Return the feature map [B, D, t, h, w] of a clip [B, C, T, H, W]."""
        raise NotImplementedError


def through(module: Callable[..., Tensor], *inputs: Tensor, recompute: bool) -> Tensor:
    """Apply a module; to `recompute` keeps what enters it alone, and computes it again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        y: Tensor = checkpoint(module, *inputs, use_reentrant=False)
        return y
    return module(*inputs)


def drop_rates(drop_path: float, depth: int) -> list[float]:
    """Return each block's rate of stochastic depth, which rises to `drop_path`; UserError for no rate."""
    if not 0 <= drop_path < 1:
        raise UserError(f"encoder.drop_path={drop_path}: give 0 or more and less than 1")
    return [drop_path * i / max(depth - 1, 1) for i in range(depth)]


def tokens(features: Tensor) -> Tensor:
    """Lay a feature map [B, D, t, h, w] out as tokens [B, N, D]."""
    return features.flatten(2).transpose(1, 2)
