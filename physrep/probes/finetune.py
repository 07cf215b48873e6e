"""Fine-tuning: what a pretrained encoder can do when it is told the answer. No probe of a frozen representation."""

from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from physrep.data.module import Batch, Clips, WellDataModule
from physrep.errors import UserError
from physrep.frozen import Frozen
from physrep.objectives.base import positive
from physrep.optim import adamw, warmup_cosine
from physrep.probes.features import Features, device
from physrep.probes.heads import AttentiveHead
from physrep.probes.module import quiet
from physrep.progress import track


class FineTune:
    """Train a run's encoder and an attentive head on the parameters, end to end, for `steps` of the data's batches.

    The weights of least MSE on valid are kept, of `checks` looks at it. What `encode` reads is unfrozen, so a teacher
    where probes get one. The result is a function of the run, the data and `seed`.
    """

    needs: Literal["clips"] = "clips"

    def __init__(
        self,
        steps: int = 500,
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup: int = 50,
        checks: int = 5,
        seed: int = 0,
    ) -> None:
        if not 1 <= checks <= steps:
            raise UserError(f"probe: checks={checks} must be one or more and no more than steps={steps}")
        positive(lr=lr)
        self.steps, self.checks, self.seed, self.warmup = steps, checks, seed, warmup
        self.plan = {"lr": lr, "weight_decay": weight_decay}

    def fit(self, frozen: Frozen, data: WellDataModule) -> Tuned:
        """Fine-tune a copy of a run's model on train and select the step on valid. UserError if it diverges."""
        began = time.perf_counter()
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            model = Model(frozen, len(data.scales), self.plan, self.warmup)
            trainer = Trainer(
                max_steps=self.steps,
                val_check_interval=max(self.steps // self.checks, 1),
                check_val_every_n_epoch=None,
                devices=1,
                plugins=[LightningEnvironment()],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=sys.stderr.isatty(),
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            trainer.fit(model, datamodule=data)
        if not math.isfinite(model.chosen["valid_mse"]):
            raise UserError(f"probe.lr: fine-tuning has diverged with {self.plan['lr']}; lower it")
        model.load_state_dict(model.best)
        spent = {"windows": self.steps * data.batch_size, "seconds": round(time.perf_counter() - began, 1)}
        return Tuned(model.eval().to(device()), data, model.chosen, spent)


class Model(LightningModule):
    """A copy of a run's objective with a head on its tokens; keeps the weights of least MSE on valid."""

    clips: ClassVar[Clips] = "one"
    told: ClassVar[bool] = True

    def __init__(self, frozen: Frozen, outputs: int, plan: dict[str, float], warmup: int) -> None:
        super().__init__()
        self.objective = copy.deepcopy(frozen.objective).cpu().requires_grad_(True)
        data = frozen.meta
        clip = torch.zeros(1, len(data["channels"]), data["frames"], *(data["size"] or data["grid"]))
        with torch.inference_mode():
            width = self.objective.encode(clip).shape[2]
        self.head = AttentiveHead(width, outputs)
        self.head.out.reset_parameters()  # zeros would keep the encoder from the first gradient
        self.plan, self.warmup = plan, warmup
        self.best: dict[str, Any] = {}
        self.chosen: dict[str, Any] = {"step": 0, "valid_mse": math.inf}

    def forward(self, clip: Tensor) -> Tensor:
        """Predict the standardised parameters [B, P] float32 of clips [B, C, T, H, W]."""
        theta: Tensor = self.head(self.objective.encode(clip)).float()
        return theta

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the MSE of a batch."""
        mse: Tensor = (self(batch["clip"]) - batch["theta"]).square().mean()
        return mse

    def on_validation_epoch_start(self) -> None:
        """Begin the sum of squared errors."""
        self._errors: list[Tensor] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the squared errors of a batch."""
        self._errors.append((self(batch["clip"]) - batch["theta"]).square().mean(1))

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if they are better than any before."""
        mse = float(torch.cat(self._errors).mean())
        if mse < self.chosen["valid_mse"]:
            self.best = copy.deepcopy(self.state_dict())
            self.chosen = {"step": self.global_step, "valid_mse": mse}

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and cosine, on what probes get of the model and on the head."""
        optimizer = adamw(self, betas=(0.9, 0.95), **self.plan)
        schedule = warmup_cosine(optimizer, int(self.trainer.estimated_stepping_batches), self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned model, the data it was tuned on, what was chosen on valid, and what tuning took."""

    model: Model
    data: WellDataModule
    chosen: dict[str, Any]
    cost: dict[str, float]

    def predict(self, split: str) -> tuple[Tensor, Features]:
        """Return predictions [M, P] for the windows of a split, and their parameters and trajectories as features."""
        batches, found = self.data.loader(split), []
        with torch.inference_mode():
            for raw in track(batches, f"finetune: {split}", len(batches)):
                batch = self.data.prepare_batch(move_data_to_device(raw, self.model.device), augment=False)
                found.append((self.model(batch["clip"]), batch["theta"], batch["trajectory"]))
        predicted, theta, trajectory = (torch.cat(parts) for parts in zip(*found, strict=True))
        return predicted, Features(predicted[:, None], theta, trajectory)
