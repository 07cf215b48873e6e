"""Prediction in time of an embedding held to be Gaussian."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from physrep.data.module import Batch, Clips
from physrep.distributed import gather
from physrep.encoders.base import Encoder, tokens
from physrep.losses import sigreg, weigh
from physrep.objectives.base import Objective, positive
from physrep.objectives.views import check_several, draw_slices, pool, projector


class LeJepa(Objective):
    """Predict the next clip's embedding from this clip's; SIGReg on both keeps them from collapsing.

    LeJEPA (Balestriero and LeCun 2025) in the form of LeWorldModel (arXiv 2603.19312): one embedding a clip, pooled and
    projected through a batch norm, gradients through both clips. The statistic is over the clips of all ranks; of a
    collapsed embedding it grows with their number, so small batches leave it a small say.
    """

    clips: ClassVar[Clips] = "next"

    def __init__(
        self,
        encoder: Encoder,
        projection: int = 256,
        sim: float = 1.0,
        sigreg: float = 0.1,
        slices: int = 1024,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        positive(slices=slices, projection=projection)
        self.projector = projector(2 * encoder.width, projection)
        self.predictor = nn.Sequential(
            nn.Linear(projection, 2 * projection), nn.GELU(), nn.Linear(2 * projection, projection)
        )
        self.weights, self.slices = {"sim": sim, "sigreg": sigreg}, slices

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, sim and sigreg of a batch whose clips hold two clip lengths; UserError for one sample."""
        check_several(self, batch)
        now, later = (
            self.projector(gather(pool(tokens(self.encoder(clip))))) for clip in batch["clip"].chunk(2, dim=2)
        )
        slices = draw_slices(self, now.shape[1], self.slices)
        terms = {
            "sim": (self.predictor(now).float() - later.float()).square().mean(),
            "sigreg": 0.5 * (sigreg(now, slices) + sigreg(later, slices)),
        }
        return weigh(terms, **self.weights)
