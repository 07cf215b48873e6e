"""Joint-embedding prediction in time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder, tokens
from physrep.encoders.conv import ConvPredictor
from physrep.losses import vicreg, weigh
from physrep.objectives.base import Objective


class Jepa(Objective):
    """Predict the next clip's embedding from this clip's; VICReg over positions keeps it from collapsing.

    As published (arXiv 2603.13227, section 3): one encoder for both clips, gradients through both, no projector; rows
    are all positions of the batch, shuffled and cut into `chunks`, with the terms averaged over chunks.
    """

    clips: ClassVar[Clips] = "next"

    def __init__(
        self,
        encoder: Encoder,
        hidden: int | None = None,
        sim: float = 2.0,
        std: float = 40.0,
        cov: float = 2.0,
        chunks: int = 5,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        self.predictor = ConvPredictor(encoder.width, hidden or 2 * encoder.width)
        self.weights, self.chunks = {"sim": sim, "std": std, "cov": cov}, chunks

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, sim, std and cov of a batch whose clips hold two clip lengths."""
        now, later = batch["clip"].chunk(2, dim=2)
        predicted = tokens(self.predictor(self.encoder(now))).flatten(0, 1)  # [B N, D]
        target = tokens(self.encoder(later)).flatten(0, 1)
        order = torch.randperm(len(target), generator=self.generator()).to(target.device)
        parts = [vicreg(predicted[i], target[i]) for i in order.chunk(self.chunks)]
        return weigh({k: torch.stack([p[k] for p in parts]).mean() for k in parts[0]}, **self.weights)
