"""Multiple physics pretraining: predict the next frame."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from physrep.data.module import Batch, Clips
from physrep.encoders.avit import AViT, Destem, published, revin
from physrep.encoders.base import Encoder, tokens
from physrep.errors import UserError
from physrep.objectives.base import Objective
from physrep.pretrained import load_pretrained


class Mpp(Objective):
    """Predict the frame after a clip, in the clip's own scale (McCabe et al. 2023).

    Mean over samples and channels of the squared error over `floor` plus the frame's mean square: 1e-7 as published, on
    raw fields; ours are standardised and come near zero where a flow decays, hence 1e-3 of their variance. `amplitude`
    appends to every token what the normalising took, the clip's mean and log std by channel (D + 2 C wide).

    Needs an AViT, UserError for another encoder; where that has `weights`, the de-stem is taken from the same file. The
    whole model has the published state dict but for `encoder.` before all names outside `debed.`.
    """

    clips: ClassVar[Clips] = "frame"
    encoder: AViT

    def __init__(self, encoder: Encoder, floor: float = 1e-3, amplitude: bool = False, **plan: Any) -> None:
        if not isinstance(encoder, AViT):
            raise UserError(f"objective=mpp: needs an axial vision transformer, not {type(encoder).__name__}; set "
                            "encoder=avit_nano, avit_tiny, avit_small, avit_base or avit_large")  # fmt: skip
        if floor <= 0:
            raise UserError(f"objective.floor={floor}: must be more than 0; a frame may be zero everywhere")
        super().__init__(encoder, **plan)
        self.debed = Destem(encoder.width, encoder.stem, encoder.states)
        if encoder.weights:
            load_pretrained(self.debed, encoder.weights, published(self.debed, "debed."))
        self.floor, self.amplitude = floor, amplitude

    def predict(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the frame [B, C, H, W] after a clip [B, C, T, H, W]; drop path draws from `generator`."""
        x, mean, std = revin(clip)
        last = self.encoder.stack(x, generator)[:, :, -1]
        predicted: Tensor = self.debed(last, self.encoder.labels) * std[:, :, 0] + mean[:, :, 0]
        return predicted

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, nrmse, the mean of its roots by sample and channel, and baseline, the last frame's as answer."""
        clip, target = batch["clip"][:, :, :-1], batch["clip"][:, :, -1]
        error = relative_error(self.predict(clip, self.generator() if self.training else None), target, self.floor)
        still = relative_error(clip[:, :, -1], target, self.floor)
        return {"loss": error.mean(), "nrmse": error.sqrt().mean(), "baseline": still.mean()}

    def encode(self, clip: Tensor) -> Tensor:
        """Return the last frame's tokens [B, N, D] of one standardised clip [B, C, T, H, W]; with `amplitude` wider."""
        seen = tokens(self.encoder(clip))
        if not self.amplitude:
            return seen
        _, mean, std = revin(clip)
        taken = torch.cat([mean, std.log()], 1)[:, None, :, 0, 0, 0]  # [B, 1, 2 C]
        return torch.cat([seen, taken.expand(-1, seen.shape[1], -1)], 2)


def relative_error(predicted: Tensor, target: Tensor, floor: float) -> Tensor:
    """Mean squared error over `floor` plus the target's mean square, of frames [B, C, H, W] -> [B, C], in float32."""
    error, size = (x.float().square().mean((-2, -1)) for x in (predicted - target, target))
    return error / (floor + size)
