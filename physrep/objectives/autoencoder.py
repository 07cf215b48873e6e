"""Reconstruction of the clip itself."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder
from physrep.objectives.base import Objective, positive
from physrep.objectives.decoder import Decoder, check_floor, footprint, nmse


class Autoencoder(Objective):
    """Encode a clip and decode it again; every channel's error counts in units of its variance in the clip + `floor`.

    The bottleneck is the feature map, so any encoder will do whose map covers the clip (UserError for others); the
    mean as the answer scores 1.
    """

    clips: ClassVar[Clips] = "one"

    def __init__(
        self,
        encoder: Encoder,
        channels: int,
        frames: int,
        hidden: int | None = None,
        depth: int = 2,
        floor: float = 1e-2,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        positive(hidden=hidden)
        cell = footprint(encoder, channels, frames, "autoencoder")
        self.decoder = Decoder(encoder.width, channels, cell, hidden or encoder.width, depth)
        self.floor = check_floor(floor)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch of clips."""
        return {"loss": nmse(self.decoder(self.encoder(batch["clip"])), batch["clip"], self.floor)}
