"""What a run leaves on disk while it trains: a tidy metrics.csv and checkpoints that are whole or absent."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from physrep.files import whole

HEADER = ["step", "name", "value"]


class MetricsCsv(Logger):
    """Append every logged value as a line `step,name,value`; a resumed run goes on after the step it resumes from."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        super().__init__()
        self.path, self._resumed_at = path, resumed_at
        self._begun = False

    @property
    def name(self) -> str:
        """Lightning asks for one; the folder is the run's own."""
        return ""

    @property
    def version(self) -> str:
        """Lightning asks for one; a run has one version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the values of one step; before the first, drop what another start wrote of the steps to come."""
        if not self._begun and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [r for r in csv.reader(file) if len(r) == 3 and r[0].isdigit() and int(r[0]) < self._resumed_at]
            with whole(self.path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([HEADER, *rows])
        self._begun = True
        with self.path.open("a", newline="") as file:
            if not file.tell():
                csv.writer(file).writerow(HEADER)
            csv.writer(file).writerows([step, k, f"{v:.8g}"] for k, v in metrics.items() if k != "epoch")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave them to config.yaml."""


class LearningRates(LearningRateMonitor):
    """Log the learning rate once a step, also where a step is accumulated over several batches."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Log it with the step's first batch."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_start(trainer)


class AtomicCheckpoints(TorchCheckpointIO):
    """Write a checkpoint beside its place and rename it there, so that a kill leaves the one before.

    What last.ckpt was becomes previous.ckpt; between the two renamings there is no last.ckpt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        path = Path(path)
        with whole(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == "last.ckpt" and path.exists():
                path.replace(path.with_name("previous.ckpt"))
