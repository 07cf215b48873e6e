"""What every objective shares: optimiser, schedule, logging, randomness. A subclass writes `losses`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from physrep.data.module import Batch, Clips, WellDataModule
from physrep.data.sampler import step_seed
from physrep.distributed import mean
from physrep.encoders.base import Encoder, tokens
from physrep.errors import UserError
from physrep.optim import adamw, warmup_cosine


class Objective(LightningModule):
    """Trains an encoder without labels. Subclasses write `losses(batch) -> {"loss": ..., term: ...}`.

    `clips` is what a sample holds: one clip, a clip and the frame after it, a clip and the clip after it, or a pair of
    clips of one trajectory, joined along time. `encode` gives probes the tokens [B, N, D] of one clip.
    """

    clips: ClassVar[Clips] = "one"
    trains: ClassVar[bool] = True

    def __init__(
        self,
        encoder: Encoder,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.plan = {"lr": lr, "weight_decay": weight_decay, "betas": tuple(betas)}
        self.warmup, self.seed = warmup, seed
        self._batch = 0
        self.config = ""  # the hash of the config that this run is of, for its checkpoints

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalars by name; `loss` is what is minimised."""
        raise NotImplementedError

    def encode(self, clip: Tensor) -> Tensor:
        """Return the tokens [B, N, D] of one standardised clip [B, C, T, H, W]: what probes see."""
        return tokens(self.encoder(clip))

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU, the same on all ranks, whose draws are a function of (seed, epoch, batch).

        What differs by sample is drawn for the batches of all ranks, of which each takes its `share`: so the number of
        ranks makes no difference. In validation the draws are the same in every epoch, and the loss's curve is the
        weights' alone.
        """
        epoch = self.current_epoch if self.training else -1
        return torch.Generator().manual_seed(step_seed(self.seed, epoch, self._batch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Minimise `losses(batch)["loss"]` and log every term. Raises UserError when it is not finite."""
        self._batch = batch_idx
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))  # for stochastic depth
        terms = self.losses(batch)
        if not torch.isfinite(mean(terms["loss"].detach())):  # of all ranks: none waits for one that stopped
            raise UserError(f"{type(self).__name__}: the loss is {float(terms['loss'])} at step {self.global_step}; "
                            "try a lower objective.lr, a longer objective.warmup or trainer.precision=32")  # fmt: skip
        self.log_dict({f"train/{k}": v.detach() for k, v in terms.items()})
        return terms["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log every term on the valid split, averaged over its windows."""
        self._batch = batch_idx
        terms = self.losses(batch)
        self.log_dict({f"valid/{k}": v for k, v in terms.items()}, batch_size=len(batch["clip"]), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep beside the weights what `physrep.load` needs: channels, normaliser, frames, targets, as plain values."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, WellDataModule):
            checkpoint["physrep"] = {"config": self.config, **data.meta()}

    def configure_optimizers(self) -> Any:
        """AdamW with decay groups; linear warm-up and cosine per optimiser step."""
        optimizer = adamw(self, **self.plan)  # type: ignore[arg-type]
        schedule = warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches), self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def positive(**options: float) -> None:
    """Raise UserError for an option of an objective that is not above 0."""
    for key, value in options.items():
        if value <= 0:
            raise UserError(f"objective.{key}={value}: must be more than 0")
