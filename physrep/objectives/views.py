"""Two clips of one trajectory as views of its physics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder, tokens
from physrep.losses import vicreg, weigh
from physrep.objectives.base import Objective


class Views(Objective):
    """Embed two clips of one trajectory alike: what stays the same over time is, with the flow's state, its parameters.

    Tokens are pooled to mean and standard deviation and projected; VICReg on the pairs (Bardes et al. 2022).
    """

    clips: ClassVar[Clips] = "pair"

    def __init__(
        self,
        encoder: Encoder,
        projection: int = 256,
        sim: float = 25.0,
        std: float = 50.0,
        cov: float = 1.0,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        self.projector = nn.Sequential(
            nn.Linear(2 * encoder.width, projection),
            nn.BatchNorm1d(projection),
            nn.ReLU(),
            nn.Linear(projection, projection),
        )
        self.weights = {"sim": sim, "std": std, "cov": cov}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, sim, std and cov of a batch whose clips hold two clip lengths."""
        first, second = (self.projector(pool(tokens(self.encoder(clip)))) for clip in batch["clip"].chunk(2, dim=2))
        return weigh(vicreg(first, second), **self.weights)


def pool(x: Tensor) -> Tensor:
    """Return mean and standard deviation over tokens, [B, N, D] -> [B, 2D]."""
    return torch.cat([x.mean(1), (x.var(1, unbiased=False) + 1e-6).sqrt()], dim=1)
