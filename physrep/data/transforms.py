"""What happens to a batch on the device: normalise, resize, add noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def normalise(clip: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Standardise every channel with the training split's statistics; clip [B, C, T, *S], mean and std [C]."""
    shape = (-1,) + (1,) * (clip.ndim - 2)
    rate = 1 / std.clamp_min(1e-8)
    return torch.addcmul((-mean * rate).view(shape), clip, rate.view(shape))


def resize(clip: Tensor, size: Sequence[int]) -> Tensor:
    """Resize the grid to `size` bilinearly, antialiased where it shrinks; clip [B, C, T, H, W]."""
    if list(clip.shape[-2:]) == list(size):
        return clip
    flat: Tensor = F.interpolate(clip.flatten(1, 2), tuple(size), mode="bilinear", antialias=True)
    resized: Tensor = flat.unflatten(1, clip.shape[1:3])
    return resized


def add_noise(clip: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add white noise, `std` in units of the standardised fields; clip [B, C, T, *S]."""
    noise = torch.randn(clip.shape, generator=generator, device=generator.device, dtype=clip.dtype)
    return clip + std * noise.to(clip.device)
