"""Two clips of one trajectory as views of its physics."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from physrep.data.module import Batch, Clips
from physrep.data.sampler import step_seed
from physrep.distributed import gather
from physrep.encoders.base import Encoder, tokens
from physrep.errors import UserError, did_you_mean
from physrep.losses import barlow_twins, directions, lejepa, nt_xent, vicreg, weigh
from physrep.objectives.base import Objective, positive

WEIGHTS = {  # the papers': std is a sum over views in VICReg's, ours a mean; LeJEPA's distance is from the centre
    "vicreg": {"sim": 25.0, "std": 50.0, "cov": 1.0},
    "barlow": {"on": 1.0, "off": 0.005},
    "ntxent": {"ntxent": 1.0},
    "sigreg": {"sim": 0.95 / 4, "sigreg": 0.05},
}


class Views(Objective):
    """Embed two clips of one trajectory alike: what stays the same over time is, with the flow's state, its parameters.

    Tokens are pooled to mean and standard deviation and projected; `loss` on the pairs of all ranks' batches is VICReg
    (Bardes et al. 2022), Barlow Twins (Zbontar et al. 2021), NT-Xent (Chen et al. 2020) with `temperature`, or LeJEPA
    (Balestriero and LeCun 2025), with SIGReg along `slices` directions. `weights` replaces published weights by term.
    """

    clips: ClassVar[Clips] = "pair"

    def __init__(
        self,
        encoder: Encoder,
        projection: int = 256,
        loss: Literal["vicreg", "barlow", "ntxent", "sigreg"] = "vicreg",
        weights: dict[str, float] | None = None,
        temperature: float = 0.1,
        slices: int = 1024,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        positive(temperature=temperature, slices=slices, projection=projection)
        self.projector = projector(2 * encoder.width, projection)
        self.loss, self.weights = loss, WEIGHTS[loss] | (weights or {})
        if unknown := self.weights.keys() - WEIGHTS[loss]:
            name = min(unknown)
            raise UserError(f"objective.weights.{name}: no term of {loss}{did_you_mean(name, WEIGHTS[loss])}")
        self.temperature, self.slices = temperature, slices

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and its terms of a batch whose clips hold two clip lengths; UserError for one sample."""
        check_several(self, batch)
        x, y = (self.projector(gather(pool(tokens(self.encoder(clip))))) for clip in batch["clip"].chunk(2, dim=2))
        match self.loss:
            case "vicreg":
                terms = vicreg(x, y)
            case "barlow":
                terms = barlow_twins(x, y)
            case "ntxent":
                terms = {"ntxent": nt_xent(x, y, gather(batch["trajectory"]), self.temperature)}
            case "sigreg":
                terms = lejepa(x, y, draw_slices(self, x.shape[1], self.slices))
        return weigh(terms, **self.weights)


def check_several(objective: Objective, batch: Batch) -> None:
    """Raise UserError for a training batch of one sample."""
    if objective.training and len(batch["clip"]) < 2:
        raise UserError("data.batch_size=1: samples are compared within a batch; raise it")


def pool(x: Tensor) -> Tensor:
    """Return mean and standard deviation over tokens, [B, N, D] -> [B, 2D]."""
    return torch.cat([x.mean(1), (x.var(1, unbiased=False) + 1e-6).sqrt()], dim=1)


def projector(width: int, projection: int) -> nn.Sequential:
    """Make the two layers [N, width] -> [N, projection] that a loss sees and probes do not."""
    return nn.Sequential(
        nn.Linear(width, projection),
        nn.BatchNorm1d(projection),
        nn.ReLU(),
        nn.Linear(projection, projection),
    )


def draw_slices(objective: Objective, width: int, number: int) -> Tensor:
    """Draw SIGReg's directions [D, K], anew for every optimiser step and alike on all ranks; fixed in validation."""
    step = objective.global_step if objective.training else -1
    return directions(width, number, step_seed(objective.seed, step, *b"slices"))
