"""The control without training: what the architecture gives away by itself."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from physrep.data.module import Batch
from physrep.encoders.base import Encoder
from physrep.errors import UserError
from physrep.objectives.base import Objective


class Random(Objective):
    """The encoder as it is initialised, by the seed; `fit` keeps it as a run like any other, after no step.

    Raises UserError for pretrained weights, which would pose as the control.
    """

    trains: ClassVar[bool] = False

    def __init__(self, encoder: Encoder, **plan: Any) -> None:
        if encoder.weights:
            raise UserError("encoder.weights: objective=random is the untrained control; to probe weights as they are, "
                            "give the objective that they are of and trainer.max_steps=0")  # fmt: skip
        super().__init__(encoder, **plan)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return a loss of zero: there is nothing to learn."""
        return {"loss": batch["clip"].new_zeros(())}
