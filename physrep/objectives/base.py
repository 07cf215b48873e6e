"""What every objective shares: optimiser, schedule, logging, randomness. A subclass writes `losses`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from physrep import distributed
from physrep.data.module import Batch, Clips, WellDataModule
from physrep.data.sampler import step_seed
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
    told: ClassVar[bool] = False
    """whether `losses` reads the physical parameters"""

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
        for key, value in {"lr": lr, "weight_decay": weight_decay, "warmup": warmup}.items():
            if value < 0:
                raise UserError(f"objective.{key}={value}: must be 0 or more")
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

    def configure_model(self) -> None:
        """Shard the weights over the devices of a node, block by block, where the strategy is one for that."""
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or isinstance(self, FSDPModule):
            return
        blocks = [module for each in self.modules() if isinstance(each, nn.ModuleList) for module in each]
        for module in [*reversed(blocks), self]:  # what lies within another first
            fully_shard(module, mesh=self.device_mesh)
        for name in ("training_step", "validation_step", "encode"):
            register_fsdp_forward_method(self, name)

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU, the same on all ranks, whose draws are a function of (seed, epoch, batch).

        What differs by sample is drawn for the batches of all ranks, of which each takes its `share`: so the number of
        ranks makes no difference. In validation the draws are the same in every epoch, and the loss's curve is the
        weights' alone.
        """
        epoch = self.current_epoch if self.training else -1
        return torch.Generator().manual_seed(step_seed(self.seed, epoch, self._batch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Minimise `losses(batch)["loss"]` and log every term, averaged over the ranks.

        Raises UserError, on all ranks, when the loss is not finite on one.
        """
        self._batch = batch_idx
        torch.manual_seed(step_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))  # for stochastic depth
        terms = self.losses(batch)
        if "loss" not in terms:
            raise UserError(f"{type(self).__name__}.losses: returns {', '.join(terms)} and no loss, which is minimised")
        means = distributed.mean(torch.stack([v.detach().float() for v in terms.values()]))
        logs = {f"train/{k}": v for k, v in zip(terms, means, strict=True)}
        if not torch.isfinite(logs["train/loss"]):
            raise distributed.agreed(UserError(
                f"{type(self).__name__}: the loss is {float(logs['train/loss'])} at step {self.global_step}; try a "
                "lower objective.lr, a longer objective.warmup or trainer.precision=32"
            ))  # fmt: skip
        self.log_dict(logs)
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation's terms."""
        self._valid: dict[str, Tensor] = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add every term on the valid split, times the batch's windows; statistics are of this rank's batch alone."""
        self._batch = batch_idx * distributed.world() + distributed.rank()
        with distributed.apart():
            terms = self.losses(batch)
        data = getattr(self.trainer, "datamodule", None)
        windows = 0 if isinstance(data, WellDataModule) and data.repeats(batch_idx) else len(batch["clip"])
        for name, value in terms.items():
            weighed = torch.stack([value.detach().double(), value.new_ones((), dtype=torch.float64)]) * windows
            self._valid[name] = self._valid.get(name, 0) + weighed

    def on_validation_epoch_end(self) -> None:
        """Log every term's mean over the windows of all ranks, at the number of optimiser steps taken."""
        sums, windows = distributed.total(torch.stack(list(self._valid.values()))).T
        self.log_dict({f"valid/{k}": v for k, v in zip(self._valid, (sums / windows).float(), strict=True)})
        self.log("step", float(self.global_step))

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


def positive(**options: float | None) -> None:
    """Raise UserError for an option of an objective that is given and not above 0."""
    for key, value in options.items():
        if value is not None and value <= 0:
            raise UserError(f"objective.{key}={value}: must be more than 0")
