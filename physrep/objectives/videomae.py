"""Masked autoencoding of space-time tubelets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physrep.data.module import Batch, Clips
from physrep.distributed import share, world
from physrep.encoders.base import Encoder
from physrep.encoders.vit import Grid, Positions, VisionTransformer, blocks, pick, table, transformer
from physrep.errors import UserError
from physrep.objectives.base import Objective, positive


class VideoMae(Objective):
    """Fill in the tubelets that a tube mask hides, from the few that the encoder sees (VideoMAE, Tong et al. 2022).

    The decoder, thrown away after training, has `width` (half the encoder's), `depth` (a third of it, 4 at most: as
    published) and `heads`. The target is the standardised field or, as published, a tubelet's own (`patch`): less its
    mean, over its standard deviation + `eps`, channel by channel, which hides amplitudes and magnifies what is nearly
    flat; hence an `eps` far above VideoMAE's 1e-6. `baseline` is the loss of `fill` or of the mean of what is visible,
    whichever is lower in the batch: below it the encoder has learned more than smoothness.
    """

    clips: ClassVar[Clips] = "one"
    encoder: VisionTransformer

    def __init__(
        self,
        encoder: Encoder,
        channels: int,
        ratio: float = 0.9,
        target: Literal["zscore", "patch"] = "zscore",
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        eps: float = 1e-2,
        **plan: Any,
    ) -> None:
        vit = transformer(encoder, "videomae")
        super().__init__(vit, **plan)
        if not 0 < ratio < 1:
            raise UserError(f"objective.ratio: {ratio} is not a share to hide; choose one between 0 and 1, such as 0.9")
        positive(eps=eps, width=width, depth=depth, heads=heads)
        self.ratio, self.target, self.eps = ratio, target, eps
        width = width or vit.width // 2
        depth = min(4, -(-len(vit.blocks) // 3)) if depth is None else depth
        heads = heads or math.gcd(max(vit.heads // 2, 1), width)
        if width % heads:
            raise UserError(f"objective.heads: {heads} do not divide objective.width={width}; choose a divisor")
        self.decoder = MaskDecoder(vit.width, width, depth, heads, channels * math.prod(vit.cell), vit.positions)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss and, but in training, baseline: mean squared errors over the hidden tubelets."""
        clip, encoder = batch["clip"], self.encoder
        grid = encoder.grid(clip)
        drawn = [share(x) for x in tube_mask(grid, self.ratio, len(clip) * world(), self.generator())]
        keep, hidden = (tubes(places.to(clip.device), grid) for places in drawn)
        predicted = self.decoder(encoder.visible(clip, keep), keep, hidden, grid)
        target = self._target(pick(clip, encoder.cell, hidden))
        loss = F.mse_loss(predicted.float(), target.flatten(2))
        if self.training:
            return {"loss": loss}
        with torch.no_grad():
            mean = pick(clip, encoder.cell, keep).mean((1, 3, 4, 5), keepdim=True).expand(target.shape)
            nearest = pick(fill(clip, encoder.cell[1:], drawn[0].to(clip.device)), encoder.cell, hidden)
            baseline = torch.stack([F.mse_loss(self._target(x), target) for x in (nearest, mean)]).min()
        return {"loss": loss, "baseline": baseline}

    def _target(self, tubelets: Tensor) -> Tensor:
        return patch_normalise(tubelets.float(), self.eps) if self.target == "patch" else tubelets.float()


class MaskDecoder(nn.Module):
    """Predicts hidden tubelets from encoded visible ones: a narrow transformer over both, a mask token for the hidden.

    Half as wide as ViT-S and ViT-B, with 4 blocks: 2.1 and 7.7 M weights in blocks, norm and head at 3 channels.
    """

    def __init__(self, inputs: int, width: int, depth: int, heads: int, outputs: int, positions: Positions) -> None:
        super().__init__()
        self.positions = positions
        self.bridge = nn.Linear(inputs, width, bias=False)
        self.mask = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.blocks = blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, outputs)
        for layer in (self.bridge, self.head):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, seen: Tensor, keep: Tensor, hidden: Tensor, grid: Grid) -> Tensor:
        """Predict tubelets `hidden` [B, K] from the tokens `seen` [B, M, D] of those at `keep` [B, M], [B, K, O]."""
        places = table(self.positions, grid, len(self.mask), self.mask.device).to(self.mask.dtype)
        tokens = torch.cat([self.bridge(seen) + places[keep], self.mask + places[hidden]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        predicted: Tensor = self.head(self.norm(tokens[:, keep.shape[1] :]))
        return predicted


def tube_mask(grid: Grid, ratio: float, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw which places of (h, w) are visible and which hidden at all times, [B, m] and [B, h w - m] int64, ascending.

    floor(ratio h w) are hidden, one at least and not all; UserError where there is but one place.
    """
    places = grid[1] * grid[2]
    if places < 2:
        raise UserError("objective: a clip of one patch leaves nothing to hide beside it; lower encoder.patch")
    count = min(max(int(ratio * places), 1), places - 1)
    order = torch.rand(batch, places, generator=generator).argsort(dim=1)
    return order[:, count:].sort(dim=1).values, order[:, :count].sort(dim=1).values


def tubes(places: Tensor, grid: Grid) -> Tensor:
    """Return the tubelets [B, t m] at places [B, m] at all times, slot after slot."""
    starts = grid[1] * grid[2] * torch.arange(grid[0], device=places.device)
    return (places[:, None] + starts[:, None]).flatten(1)


def patch_normalise(tubelets: Tensor, eps: float) -> Tensor:
    """Standardise tubelets [B, K, C, dt, dh, dw], each channel of each by its own mean and unbiased std + eps."""
    pixels = (3, 4, 5)
    return (tubelets - tubelets.mean(pixels, keepdim=True)) / (tubelets.std(pixels, keepdim=True) + eps)


def fill(clip: Tensor, patch: Sequence[int], keep: Tensor) -> Tensor:
    """Fill a clip [B, C, T, H, W] from its visible patches `keep` [B, m]: every cell as the cell nearest to it in the
    patch whose centre is nearest."""
    (dh, dw), (height, width) = patch, clip.shape[3:]
    grid, size = (height // dh, width // dw), torch.tensor(patch, device=clip.device)
    every = torch.cartesian_prod(*(torch.arange(n, device=clip.device) for n in grid))  # [h w, 2]
    seen = every[keep]
    away = torch.cdist((every * size).float(), (seen * size).float(), compute_mode="donot_use_mm_for_euclid_dist")
    corner = size * seen.gather(1, away.argmin(2)[..., None].expand(-1, -1, 2)).unflatten(1, grid)
    top, left = corner.repeat_interleave(dh, 1).repeat_interleave(dw, 2).unbind(3)  # [B, H, W]
    row = torch.arange(height, device=clip.device)[:, None].clamp(top, top + dh - 1)
    column = torch.arange(width, device=clip.device).clamp(left, left + dw - 1)
    source = (row * width + column).flatten(1)[:, None, None].expand(*clip.shape[:3], -1)
    return clip.flatten(3).gather(3, source).view_as(clip)
