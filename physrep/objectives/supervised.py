"""The control with labels: what the encoder can do when it is told the answer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder, tokens
from physrep.errors import UserError
from physrep.objectives.base import Objective
from physrep.probes.heads import AttentiveHead


class Supervised(Objective):
    """Regress the standardised parameters of the physics, encoder and attentive probe's head end to end.

    A control and no pretraining: the only objective that reads `theta`, of `data.labels` of the trajectories. Probes
    are given the encoder's tokens, without the head. Raises UserError where the data name no parameter.
    """

    clips: ClassVar[Clips] = "one"
    told: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, parameters: int, **plan: Any) -> None:
        super().__init__(encoder, **plan)
        if parameters < 1:
            raise UserError("objective=supervised: the data name no parameter to learn; give data.targets.NAME=log10")
        self.head = AttentiveHead(encoder.width, parameters)
        self.head.out.reset_parameters()  # zeros, where a probe starts, would keep the encoder from the first gradient

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss and mse, which are the same, of a batch."""
        mse = (self.head(tokens(self.encoder(batch["clip"]))).float() - batch["theta"]).square().mean()
        return {"loss": mse, "mse": mse}
