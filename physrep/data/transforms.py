"""What happens to a batch on the device: normalise, resize, mirror, transpose, drop channels, add noise.

Generators lie on the clip's device, where drawing costs least; a GPU's numbers are other than a CPU's of the same seed.
"""

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


def by_clip(clip: Tensor, frames: int) -> Tensor:
    """Standardise every channel of every clip [B, C, T, *S] by its own first `frames`; what is flat becomes zero."""
    axes = tuple(range(2, clip.ndim))
    std, mean = torch.std_mean(clip[:, :, :frames], axes, correction=0, keepdim=True)
    return (clip - mean) / (std + 1e-5)  # of the training split's: below it is rounding


def denormalise(clip: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return a standardised clip to the files' units; clip [B, C, T, *S], mean and std [C]."""
    shape = (-1,) + (1,) * (clip.ndim - 2)
    return torch.addcmul(mean.view(shape), clip, std.clamp_min(1e-8).view(shape))


def resize(clip: Tensor, size: Sequence[int]) -> Tensor:
    """Resize the grid to `size` bilinearly, antialiased where it shrinks; clip [B, C, T, H, W]."""
    if list(clip.shape[-2:]) == list(size):
        return clip
    flat: Tensor = F.interpolate(clip.flatten(1, 2), tuple(size), mode="bilinear", antialias=True)
    resized: Tensor = flat.unflatten(1, clip.shape[1:3])
    return resized


def apart(clip: Tensor) -> Tensor:
    """Return the two clips of every sample as samples of their own, [B, C, 2T, *S] -> [2B, C, T, *S]."""
    clips: Tensor = clip.unflatten(2, (2, -1)).movedim(2, 1).flatten(0, 1)
    return clips


def together(clips: Tensor) -> Tensor:
    """Undo `apart`, [2B, C, T, *S] -> [B, C, 2T, *S]."""
    clip: Tensor = clips.unflatten(0, (-1, 2)).movedim(1, 2).flatten(2, 3)
    return clip


def mirror(clip: Tensor, signs: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
    """Mirror samples along a random choice of axes; clip [B, C, T, *S] in physical units.

    `signs` [axes][C] is what each channel is multiplied by, [] for an axis that is left as it is.
    """
    for axis, sign in enumerate(signs, start=3):
        chosen = _uniform(clip.shape[:1], generator) < 0.5
        if sign:
            factors = torch.tensor(sign, dtype=clip.dtype, device=clip.device).view(-1, *(1,) * (clip.ndim - 2))
            clip = torch.where(chosen.view(-1, *(1,) * (clip.ndim - 1)), clip.flip(axis) * factors, clip)
    return clip


def transpose(clip: Tensor, exchange: Sequence[int], generator: torch.Generator) -> Tensor:
    """Exchange the grid axes of a random half of the samples, and the components with them; clip [B, C, T, S, S]."""
    chosen = _uniform(clip.shape[:1], generator) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1, 1), clip[:, list(exchange)].transpose(-1, -2), clip)


def drop_channels(clip: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a random `share` of the channels of every standardised clip [B, C, T, *S] to zero, their mean."""
    kept = _uniform(clip.shape[:2], generator) >= share
    return clip * kept.view(*kept.shape, *(1,) * (clip.ndim - 2))


def add_noise(clip: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add white noise, `std` in units of the standardised fields; clip [B, C, T, *S]."""
    noise = torch.randn(clip.shape, generator=generator, device=clip.device, dtype=clip.dtype)
    return torch.add(clip, noise, alpha=std, out=noise)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
