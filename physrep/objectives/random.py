"""The control without training: what the architecture gives away by itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from physrep.data.module import Batch
from physrep.objectives.base import Objective


class Random(Objective):
    """The encoder as it is initialised, by the seed; `fit` keeps it as a run like any other, after no step."""

    trains: ClassVar[bool] = False

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return a loss of zero: there is nothing to learn."""
        return {"loss": batch["clip"].new_zeros(())}
