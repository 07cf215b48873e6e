"""What every encoder is."""

from __future__ import annotations

from torch import Tensor, nn


class Encoder(nn.Module):
    """Maps a clip [B, C, T, H, W] to a feature map [B, D, t, h, w]; `width` is D."""

    width: int
    keeps_scale: bool = True
    """False of an encoder that normalises each clip: the fields' own scale cannot be decoded from its features"""

    def forward(self, clip: Tensor) -> Tensor:
        """Return the feature map [B, D, t, h, w] of a clip [B, C, T, H, W]."""
        raise NotImplementedError


def tokens(features: Tensor) -> Tensor:
    """Lay a feature map [B, D, t, h, w] out as tokens [B, N, D]."""
    return features.flatten(2).transpose(1, 2)
