"""Prediction of the next frame, in the fields themselves."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder
from physrep.objectives.base import Objective, positive
from physrep.objectives.decoder import Decoder, check_floor, footprint, nmse


class NextFrame(Objective):
    """Predict the frame after a clip, or its change (`delta`) from the last one, from the clip's features alone.

    Pixels against Jepa's latents, at an equal encoder: any whose map covers the clip (UserError for others). The error
    counts in units of the target's variance + `floor`; `baseline` is that of the last frame as the answer.
    """

    clips: ClassVar[Clips] = "frame"

    def __init__(
        self,
        encoder: Encoder,
        channels: int,
        frames: int,
        target: Literal["frame", "delta"] = "frame",
        hidden: int | None = None,
        depth: int = 2,
        floor: float = 1e-2,
        **plan: Any,
    ) -> None:
        super().__init__(encoder, **plan)
        positive(hidden=hidden)
        dt, dh, dw = footprint(encoder, channels, frames, "next_frame")
        self.decoder = Decoder(encoder.width * (frames // dt), channels, (1, dh, dw), hidden or encoder.width, depth)
        self.target, self.floor = target, check_floor(floor)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss and baseline of a batch whose clips hold one frame more."""
        past, future = batch["clip"][:, :, :-1], batch["clip"][:, :, -1]
        features = self.encoder(past).flatten(1, 2).unsqueeze(2)  # [B, D t, 1, h, w]
        predicted = self.decoder(features)[:, :, 0]
        last = past[:, :, -1]
        if self.target == "delta":
            future, last = future - last, torch.zeros_like(last)
        return {"loss": nmse(predicted, future, self.floor), "baseline": nmse(last, future, self.floor)}
