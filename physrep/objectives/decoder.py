"""From an encoder's feature map back to fields, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from physrep.encoders.base import Encoder
from physrep.encoders.conv import Block
from physrep.errors import UserError

Cell = tuple[int, int, int]


class Decoder(nn.Module):
    """Turns features [B, D, t, h, w] into fields [B, C, t dt, h dh, w dw], for cells of (dt, dh, dw).

    A 1x1x1 convolution, `depth` ConvNeXt blocks of kernel 3 that let neighbours agree, and a linear map of every
    feature to its cell. Light, so that what the fields need is in the features.
    """

    def __init__(self, width: int, channels: int, cell: Sequence[int], hidden: int, depth: int) -> None:
        super().__init__()
        self.cell = tuple(cell)
        self.narrow = nn.Conv3d(width, hidden, 1)
        self.blocks = nn.Sequential(*(Block(hidden, (3, 3, 3), scale=0.1) for _ in range(depth)))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, channels * math.prod(cell))

    def forward(self, features: Tensor) -> Tensor:
        """Return the fields [B, C, T, H, W] of features [B, D, t, h, w]."""
        x = self.blocks(self.narrow(features)).movedim(1, -1)
        return join(self.head(self.norm(x)).unflatten(-1, (-1, *self.cell)))


def join(parts: Tensor) -> Tensor:
    """Lay cells [B, t, h, w, C, dt, dh, dw] out as fields [B, C, t dt, h dh, w dw]."""
    return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)


def check_floor(floor: float) -> float:
    """Return the floor of `nmse`, an objective's option; UserError where it is not positive."""
    if floor <= 0:
        raise UserError(f"objective.floor={floor}: must be more than 0; a channel may be still")
    return floor


def nmse(x: Tensor, y: Tensor, floor: float) -> Tensor:
    """Squared error of x [B, C, *S] in units of y's variance over S + floor, mean over samples and channels -> scalar.

    It is VRMSE squared. Quiet channels count as much as loud ones; the floor, in squared units of the standardised
    fields, keeps those that are still from counting more.
    """
    x, y = x.float().flatten(2), y.float().flatten(2)
    return ((x - y).square().mean(2) / (y.var(2, unbiased=False) + floor)).mean()


@torch.no_grad()
def footprint(encoder: Encoder, channels: int, frames: int, objective: str) -> Cell:
    """Return the frames and cells (dt, dh, dw) that one feature of an encoder stands for, found without computing.

    Raises UserError for an encoder whose map does not grow with the clip, and what the encoder raises for its frames.
    """
    if not encoder.keeps_scale:
        raise UserError(f"objective={objective}: decodes fields on their own scale, and {type(encoder).__name__} "
                        "normalises each clip; set objective=mpp, or encoder=conv_tiny or vit_nano")  # fmt: skip
    state = {k: v.to("meta") for k, v in (*encoder.named_parameters(), *encoder.named_buffers())}

    def cell(size: int) -> list[float]:
        clip = torch.empty(1, channels, frames, size, size, device="meta")
        features = functional_call(encoder, state, (clip,))
        return [n / m for n, m in zip(clip.shape[2:], features.shape[2:], strict=True)]

    refusals = []
    for size in (64, 240, 224, 432, 352, 416):  # strides up to 16 divide one of them
        try:
            one, two = cell(size), cell(2 * size)
            break
        except UserError as error:
            refusals.append(error)
    else:
        raise refusals[0]
    if one != two or any(n % 1 for n in one):
        raise UserError(f"objective={objective}: decodes a feature map that covers the clip evenly, which "
                        f"{type(encoder).__name__} does not make; set encoder=conv_tiny or vit_nano")  # fmt: skip
    dt, dh, dw = (int(n) for n in one)
    return dt, dh, dw
