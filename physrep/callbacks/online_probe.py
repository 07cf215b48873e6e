"""What the embeddings hold, while they are being learned."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from physrep import distributed
from physrep.data.module import WellDataModule
from physrep.errors import UserError
from physrep.metrics import between_within, effective_rank
from physrep.probes.closed_form import ridge_cv
from physrep.probes.features import Features

ROUNDING = 1e-6  # of the embeddings' size: closer than this they cannot be told apart


class OnlineProbe(Callback):
    """At every validation, embed the valid split and log how well ridge, cross-validated over its trajectories, reads
    each physical parameter (standardised MSE), the effective rank, and the spread across against within trajectories.

    No randomness is drawn and no weight touched: a run with it and a run without it end bitwise alike. Ranks embed
    their shares, and the first measures all. Raises UserError for a trained encoder that is `dead`.
    """

    def __init__(self, parameters: list[str], frames: int) -> None:
        self.parameters, self.frames = parameters, frames

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation's embeddings."""
        self._seen: list[tuple[Tensor, ...]] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Embed the first clip of every sample."""
        with torch.no_grad():
            tokens = pl_module.encode(batch["clip"][:, :, : self.frames])
        features = Features(tokens.float(), batch["theta"], batch["trajectory"])
        data = getattr(trainer, "datamodule", None)
        counts = 0 if isinstance(data, WellDataModule) and data.repeats(batch_idx) else len(tokens)
        self._seen.append((features.pooled[:counts], features.theta[:counts], features.trajectory[:counts]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the probe's errors and the embeddings' spread, the same on all ranks."""
        x, theta, groups = (distributed.rows(torch.cat(part)).cpu() for part in zip(*self._seen, strict=True))
        names = ["rank/effective", "std/between", "std/within", "probe/mse", *(f"probe/{p}" for p in self.parameters)]
        names = names if self.parameters and len(groups.unique()) > 2 else names[:3]
        if trainer.global_step and (end := dead(x)):
            raise distributed.agreed(UserError(
                f"{type(pl_module).__name__}: {end} at step {trainer.global_step}; try a lower objective.lr, "
                "trainer.precision=32 or more weight on the terms that keep embeddings apart"
            ))  # fmt: skip
        logs = torch.zeros(len(names))
        if distributed.rank() == 0:
            logs[:3] = torch.stack([effective_rank(x), *between_within(x, groups)])
            if len(names) > 3:
                errors = (ridge_cv(x, theta, groups)["predictions"] - theta).square().mean(0)
                logs[3:] = torch.cat([errors.mean()[None], errors])
        logs = distributed.told(logs.to(pl_module.device))
        pl_module.log_dict(dict(zip(names, logs, strict=True)))


def dead(x: Tensor) -> str:
    """Say why no training can mend an encoder with the embeddings x [M, D]; "" for one that may live, however badly.

    Where all rows are alike to rounding, no gradient tells them apart.
    """
    if not torch.isfinite(x).all():
        return "embeddings are not finite"
    alike = len(x) > 1 and not (x.std(0) > ROUNDING * x.square().mean().sqrt()).any()
    return "all clips have the same embedding" if alike else ""
