"""What the embeddings hold, while they are being learned."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from physrep.metrics import between_within, effective_rank
from physrep.probes.closed_form import ridge_cv
from physrep.probes.features import Features


class OnlineProbe(Callback):
    """At every validation, embed the valid split and log how well ridge, cross-validated over its trajectories, reads
    each physical parameter (standardised MSE), the effective rank, and the spread across against within trajectories.

    No randomness is drawn and no weight touched: a run with it and a run without it end bitwise alike.
    """

    def __init__(self, parameters: list[str], frames: int) -> None:
        self.parameters, self.frames = parameters, frames

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation's embeddings."""
        self._seen: list[tuple[torch.Tensor, ...]] = []

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Embed the first clip of every sample."""
        with torch.no_grad():
            tokens = pl_module.encode(batch["clip"][:, :, : self.frames])
        self._seen.append((tokens.float().cpu(), batch["theta"].cpu(), batch["trajectory"].cpu()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the probe's errors and the embeddings' spread."""
        features = Features(*(torch.cat(x) for x in zip(*self._seen, strict=True)))
        x, groups = features.pooled, features.trajectory
        between, within = between_within(x, groups)
        logs: dict[str, Any] = {"rank/effective": effective_rank(x), "std/between": between, "std/within": within}
        if self.parameters and len(groups.unique()) > 2:
            errors = (ridge_cv(x, features.theta, groups)["predictions"] - features.theta).square().mean(0)
            logs |= {f"probe/{name}": float(e) for name, e in zip(self.parameters, errors, strict=True)}
            logs["probe/mse"] = float(errors.mean())
        pl_module.log_dict(logs, rank_zero_only=True)
