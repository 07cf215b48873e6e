"""Joint-embedding prediction in time."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from physrep import distributed
from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder, tokens
from physrep.encoders.conv import ConvPredictor
from physrep.losses import lejepa, vicreg, weigh
from physrep.objectives.base import Objective, positive
from physrep.objectives.teacher import Teacher
from physrep.objectives.views import draw_slices, projector

SLICES = 256  # directions of SIGReg: the rows are many, and so a few will do


class Jepa(Objective):
    """Predict the next clip's embedding from this clip's; VICReg over positions keeps it from collapsing.

    As published (arXiv 2603.13227, section 3): one encoder for both clips, gradients through both, no projector; rows
    are all positions of the batch, shuffled and cut into `chunks`, with the terms averaged over chunks.

    Options: SIGReg, on predictions and targets, in the place of VICReg's statistics (`loss`); a projector of width
    `projection` between rows and loss; `stop_gradient` through the later clip; embedding that by a teacher, an average
    of encoder and projector that keeps the part `ema` at each optimiser step and that probes get; statistics over each
    rank's own rows, as published, instead of those of all ranks (`gather=False`).
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
        loss: Literal["vicreg", "sigreg"] = "vicreg",
        sigreg: float = 0.2,
        projection: int = 0,
        stop_gradient: bool = False,
        ema: float = 0.0,
        gather: bool = True,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        positive(chunks=chunks, hidden=hidden)
        self.predictor = ConvPredictor(encoder.width, hidden or 2 * encoder.width)
        self.projector = projector(encoder.width, projection) if projection else nn.Identity()
        self.weights, self.chunks = {"sim": sim, "std": std, "cov": cov, "sigreg": sigreg}, chunks
        self.loss, self.stop_gradient, self.gather = loss, stop_gradient, gather
        self.teacher = Teacher(self.student, ema) if ema else None

    @property
    def student(self) -> nn.ModuleList:
        """What embeds the later clip, or what its teacher is an average of: encoder and projector."""
        return nn.ModuleList([self.encoder, self.projector])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, sim and the statistics' terms of a batch whose clips hold two clip lengths."""
        now, later = batch["clip"].chunk(2, dim=2)
        embed, project = (self.teacher.module if self.teacher else self.student).children()
        rows = [tokens(self.predictor(self.encoder(now))), tokens(embed(later))]  # [B, N, D]
        if self.gather:
            rows = [distributed.gather(x) for x in rows]
        predicted, target = (p(x.flatten(0, 1)) for p, x in zip((self.projector, project), rows, strict=True))
        if self.stop_gradient:
            target = target.detach()
        terms = vicreg
        if self.loss == "sigreg":
            terms = partial(lejepa, directions=draw_slices(self, target.shape[1], SLICES))
        order = torch.randperm(len(target), generator=self.generator()).to(target.device)
        parts = [terms(predicted[i], target[i]) for i in order.chunk(self.chunks)]
        return weigh({k: torch.stack([p[k] for p in parts]).mean() for k in parts[0]}, **self.weights)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step; the teacher follows."""
        super().optimizer_step(*args, **kwargs)
        if self.teacher:
            self.teacher.update_parameters(self.student)

    def encode(self, clip: Tensor) -> Tensor:
        """Return the tokens [B, N, D] of one standardised clip, the teacher's if there is one."""
        encoder = next(self.teacher.module.children()) if self.teacher else self.encoder
        return tokens(encoder(clip))
