"""Prediction of what masks hide, in the latent space of a slow teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from physrep.data.module import Batch, Clips
from physrep.distributed import gather, share, world
from physrep.encoders.base import Encoder, tokens
from physrep.encoders.vit import Grid, VisionTransformer, transformer
from physrep.errors import UserError
from physrep.losses import covariance, variance_hinge, weigh
from physrep.objectives.base import Objective, positive
from physrep.objectives.teacher import Teacher
from physrep.objectives.videomae import MaskDecoder

ASPECT = (0.75, 1.5)  # height over width of a block, in tokens
GROUP = 8  # clips of a rank whose masks are cut to one size


class MaskedLatent(Objective):
    """Predict, of the tubelets that blocks hide from the encoder, the embeddings of a teacher who sees the whole clip
    (V-JEPA, Bardes et al. 2024; V-JEPA 2, Assran et al. 2025).

    `masks` are pairs of a number of blocks and the share of the frame that each hides, at all times; the encoder sees
    what one of them leaves, once for each. So that tokens make a tensor, masks are cut to the smallest of eight clips
    of a rank (V-JEPA's to that of a whole batch: the larger it is, the less is seen). The teacher is an average of the
    encoder that keeps the part `ema` at each optimiser step, so 1 / (1 - ema) should be far fewer than the steps of a
    run; it is what probes get. Targets are its tokens after the final norm, standardised over the width; the loss is
    L1. Positions are the encoder's sines and cosines, not V-JEPA 2's rotations. The predictor, thrown away after
    training, has half the encoder's `width` and `depth`, and `heads` to suit (V-JEPA 2's: 384, 12, 12).

    `vicreg` weighs VICReg's 25 std + cov of each clip's mean over what the encoder makes of its visible tubelets, with
    the clips of all ranks as rows. Where 0.01 did best (github.com/jpakdel/active_matter_JEPA, nothing hidden) every
    token was a row; but tokens can differ within a clip and tell clips apart no better, and their means cannot.

    `baseline` is the loss of the batch's mean target at each place: above it nothing is known of the clip, and near
    zero the targets have collapsed.
    """

    clips: ClassVar[Clips] = "one"
    encoder: VisionTransformer

    def __init__(
        self,
        encoder: Encoder,
        masks: Sequence[tuple[int, float]] = ((8, 0.15), (2, 0.7)),
        ema: float = 0.99925,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        vicreg: float = 0.0,
        **plan: Any,
    ) -> None:
        vit = transformer(encoder, "masked_latent")
        super().__init__(vit, **plan)
        if not masks or any(number < 1 or not 0 < share < 1 for number, share in masks):
            raise UserError(f"objective.masks: {masks} are not pairs of a number of blocks and the share of the frame "
                            "that each hides; choose such as [[8, 0.15], [2, 0.7]]")  # fmt: skip
        positive(width=width, depth=depth, heads=heads)
        self.masks, self.vicreg = masks, vicreg
        width = width or vit.width // 2
        heads = heads or math.gcd(max(vit.heads // 2, 1), width)
        if width % heads:
            raise UserError(f"objective.heads: {heads} do not divide objective.width={width}; choose a divisor")
        self.predictor = MaskDecoder(
            vit.width, width, -(-len(vit.blocks) // 2) if depth is None else depth, heads, vit.width, vit.positions
        )
        self.teacher = Teacher(vit, ema)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, l1 and baseline, and with `vicreg` std and cov, means over the masks, of a batch of clips."""
        clip, generator = batch["clip"], self.generator()
        with torch.no_grad():
            whole = tokens(self.teacher(clip)).float()
            target = F.layer_norm(whole, whole.shape[2:])  # [B, N, D]
            away = (target - target.mean(0)).abs().mean(2)
        drawn = [self._errors(clip, target, away, mask, generator) for mask in self.masks]
        parts = [{"l1": l1.mean(), "baseline": baseline.mean()} for l1, baseline, _ in drawn]
        if self.vicreg:
            for part, (*_, means) in zip(parts, drawn, strict=True):
                rows = gather(means)
                part |= {"std": variance_hinge(rows), "cov": covariance(rows)}
        terms = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        baseline = terms.pop("baseline")
        return weigh(terms, l1=1.0, std=25 * self.vicreg, cov=self.vicreg) | {"baseline": baseline}

    def _errors(
        self, clip: Tensor, target: Tensor, away: Tensor, mask: tuple[int, float], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for every clip and one kind of mask, loss and baseline [B] and the mean of what is seen [B, D]."""
        grid = self.encoder.grid(clip)
        blocks = draw_blocks(grid, *mask, len(clip) * world(), generator)
        found = []
        for begin in range(0, len(clip), GROUP):
            mine, all_ranks = slice(begin, begin + GROUP), slice(begin * world(), (begin + GROUP) * world())
            context, hidden = (share(x).to(clip.device) for x in split(blocks[all_ranks], grid[0], generator))
            seen = self.encoder.visible(clip[mine], context)
            predicted = self.predictor(seen, context, hidden, grid)
            wanted = target[mine].gather(1, hidden[..., None].expand_as(predicted))
            l1 = (predicted.float() - wanted).abs().mean((1, 2))
            found.append((l1, away[mine].gather(1, hidden).mean(1), seen.mean(1)))
        l1, baseline, means = (torch.cat(each) for each in zip(*found, strict=True))
        return l1, baseline, means

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step; the teacher follows."""
        super().optimizer_step(*args, **kwargs)
        self.teacher.update_parameters(self.encoder)

    def encode(self, clip: Tensor) -> Tensor:
        """Return the teacher's tokens [B, N, D] of one standardised clip, after the final norm."""
        return tokens(self.teacher(clip))


def draw_blocks(grid: Grid, number: int, share: float, batch: int, generator: torch.Generator) -> Tensor:
    """Draw what blocks of one size, each of a `share` of the frame, cover in (h, w), [B, h, w] bool.

    The size is the batch's, positions are each sample's own. A block that would cover the last free place is left out,
    with those after it. UserError where there is but one place.
    """
    h, w = grid[1:]
    if h * w < 2:
        raise UserError("objective: a clip of one patch leaves nothing to hide beside it; lower encoder.patch")
    area, (low, high) = int(share * h * w), ASPECT
    aspect = low + (high - low) * torch.rand((), generator=generator).item()
    height, width = min(max(round(math.sqrt(area * aspect)), 1), h), min(max(round(math.sqrt(area / aspect)), 1), w)
    if (height, width) == (h, w):
        height, width = (h, w - 1) if w > 1 else (h - 1, w)
    inside = []
    for cells, size in ((h, height), (w, width)):
        away = torch.arange(cells) - torch.randint(cells - size + 1, (batch, number, 1), generator=generator)
        inside.append((away >= 0) & (away < size))  # [B, number, cells]
    covered = (inside[0][..., None] & inside[1][..., None, :]).cumsum(1) > 0  # by the first, by the first two, ...
    last = (~covered.flatten(2).all(2)).sum(1) - 1
    return covered[torch.arange(batch), last]


def split(blocks: Tensor, times: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split tubelets into those that blocks [B, h, w] leave and cover at all times, [B, M] and [B, K] int64, ascending.

    Indices over (t, h, w). M and K are the smallest of the samples; of those that have more, some are drawn.
    """
    covered = blocks.flatten(1).repeat(1, times)
    drawn = []
    for chosen in (~covered, covered):
        order = torch.rand(chosen.shape, generator=generator).masked_fill(~chosen, -1.0)
        drawn.append(order.topk(int(chosen.sum(1).min())).indices.sort(1).values)
    return drawn[0], drawn[1]
