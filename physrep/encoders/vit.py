"""Vision transformer over space-time tubelets, as VideoMAE's and V-JEPA's; masked objectives show it some of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from physrep.encoders.base import Encoder, drop_rates, through
from physrep.errors import UserError
from physrep.pretrained import Channels, State, load_pretrained, videomae

Grid = tuple[int, int, int]
Positions = Literal["sinusoid", "sincos3d"]


class VisionTransformer(Encoder):
    """Pre-norm transformer; one token a tubelet of `tubelet` frames by `patch` cells, fixed positions, final norm.

    clip [B, C, T, H, W] -> [B, D, t, h, w], for any clip that tubelet and patch divide (UserError otherwise). Its
    defaults are ViT-S/16 (21.9 M weights at 3 channels). Linear layers start Xavier uniform, as VideoMAE's (Tong et
    al. 2022). A masked objective calls `visible` or, for tokens of its own between, `embed` and `attend`. Positions are
    absolute: on a grid larger than that of training some were never seen, so train on what is probed (data.cut=null).
    The first `recompute` blocks keep less memory and take longer.

    `weights` is a file of VideoMAE's, of its authors or of Hugging Face, or a run's last.ckpt; `weights_channels` says
    what becomes of a patch embedding of other channels. VideoMAE's know `positions=sinusoid`; `heads` is not in a file.
    """

    layers: ClassVar[tuple[str, int]] = ("blocks", -1)

    def __init__(
        self,
        channels: int,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int | Sequence[int] = 16,
        tubelet: int = 2,
        positions: Positions = "sincos3d",
        drop_path: float = 0.0,
        recompute: int = 0,
        weights: str | None = None,
        weights_channels: Channels = "error",
    ) -> None:
        super().__init__()
        self.recompute = recompute
        h, w = (patch, patch) if isinstance(patch, int) else patch
        if min(tubelet, h, w) < 1:
            raise UserError(f"encoder: tubelet={tubelet} and patch={[h, w]} must be 1 or more")
        self.width, self.heads, self.cell, self.positions = width, heads, (tubelet, h, w), positions
        self.patch = nn.Conv3d(channels, width, self.cell, self.cell)
        self.blocks = blocks(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.weights = weights
        if weights:
            load_pretrained(self, weights, self._names, weights_channels)

    def forward(self, clip: Tensor) -> Tensor:
        """Return the feature map [B, D, t, h, w] of a clip [B, C, T, H, W]."""
        features: Tensor = self.attend(self.embed(clip)).transpose(1, 2).unflatten(2, self.grid(clip))
        return features

    def grid(self, clip: Tensor) -> Grid:
        """Return the tokens along time, height and width of a clip [B, C, T, H, W]; UserError if they do not fit it."""
        size = clip.shape[2:]
        if any(n % c or not n for n, c in zip(size, self.cell, strict=True)):
            raise UserError(f"encoder: tubelets of {list(self.cell)} do not divide a clip of {list(size)} (T, H, W); "
                            "change data.frames, data.crop, data.size, encoder.tubelet or encoder.patch")  # fmt: skip
        t, h, w = (n // c for n, c in zip(size, self.cell, strict=True))
        return t, h, w

    def embed(self, clip: Tensor) -> Tensor:
        """Return every tubelet of a clip embedded, with its position, [B, N, D]; index over (t, h, w)."""
        grid = self.grid(clip)
        return self._linear(cells(clip, self.cell).flatten(1, 3)) + self._table(grid)

    def attend(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, M, D] after all blocks and the final norm; in any order and number."""
        for i, block in enumerate(self.blocks):
            tokens = through(block, tokens, recompute=i < self.recompute)
        normed: Tensor = self.norm(tokens)
        return normed

    def visible(self, clip: Tensor, keep: Tensor) -> Tensor:
        """Encode the tubelets `keep` [B, M] int64, index over (t, h, w), as if there were no others, [B, M, D].

        It equals `attend(embed(clip)[keep])`, and embeds only what is seen.
        """
        grid = self.grid(clip)
        return self.attend(self._linear(pick(clip, self.cell, keep)) + self._table(grid)[keep])

    def _linear(self, tubelets: Tensor) -> Tensor:
        """Embed tubelets [B, M, C, dt, dh, dw], [B, M, D]; on a CPU a convolution takes longer."""
        return F.linear(tubelets.flatten(2), self.patch.weight.flatten(1), self.patch.bias)

    def _names(self, state: State) -> State:
        if self.positions != "sinusoid" and any(name.endswith(".q_bias") for name in state):
            raise UserError("encoder.weights: VideoMAE's know other positions; set encoder.positions=sinusoid")
        return videomae(state)

    def _table(self, grid: Grid) -> Tensor:
        weight = self.patch.weight
        return table(self.positions, grid, self.width, weight.device).to(weight.dtype)


def transformer(encoder: Encoder, objective: str) -> VisionTransformer:
    """Return an encoder that can be shown some tokens only; UserError for any that is not a VisionTransformer."""
    if not isinstance(encoder, VisionTransformer):
        raise UserError(f"objective={objective}: hides tokens of a vision transformer, which {type(encoder).__name__} "
                        "is not; set encoder=vit_nano, vit_tiny, vit_small or vit_base")  # fmt: skip
    return encoder


def blocks(width: int, depth: int, heads: int, drop_path: float = 0.0) -> nn.ModuleList:
    """Make a transformer's blocks, stochastic depth rising to `drop_path`; UserError if heads do not divide width."""
    if width % heads:
        raise UserError(f"encoder.heads: {heads} do not divide a width of {width}; choose a divisor")
    made = nn.ModuleList(Block(width, heads, qkv_bias=True, drop_path=rate) for rate in drop_rates(drop_path, depth))
    for module in made.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return made


def cells(clip: Tensor, cell: Sequence[int]) -> Tensor:
    """View a clip [B, C, T, H, W] as cells of (time, height, width), [B, t, h, w, C, dt, dh, dw]."""
    for axis, size in zip((2, 4, 6), cell, strict=True):
        clip = clip.unflatten(axis, (-1, size))
    return clip.permute(0, 2, 4, 6, 1, 3, 5, 7)


def pick(clip: Tensor, cell: Sequence[int], index: Tensor) -> Tensor:
    """Return the cells `index` [B, M] int64 (over (t, h, w)) of a clip [B, C, T, H, W], [B, M, C, dt, dh, dw]."""
    parts = cells(clip, cell)
    row = torch.arange(len(clip), device=index.device)[:, None]
    t, h, w = torch.unravel_index(index, parts.shape[1:4])
    return parts[row, t, h, w]


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def table(kind: Positions, grid: Grid, width: int, device: torch.device) -> Tensor:
    """Return the fixed positions [N, width] of a grid (t, h, w): sines and cosines, interleaved.

    sinusoid: of the flat index, as in VideoMAE; sincos3d: a third of the width for each axis.
    """
    if kind == "sinusoid":
        found = waves(torch.arange(grid[0] * grid[1] * grid[2], device="cpu"), width)
    else:
        axes = torch.meshgrid(*(torch.arange(n, device="cpu") for n in grid), indexing="ij")
        found = torch.cat([waves(axis.flatten(), 2 * -(-width // 6)) for axis in axes], dim=1)[:, :width]
    return found.float().to(device)


def waves(index: Tensor, width: int) -> Tensor:
    """Return sine and cosine of index [N] at wavelengths from 2 pi to 20,000 pi, interleaved, [N, width] float64."""
    rate = 10_000.0 ** -(torch.arange(0, width, 2, device="cpu", dtype=torch.float64) / width)
    angle = index[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]
