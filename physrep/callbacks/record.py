"""What a run leaves on disk while it trains: a tidy metrics.csv and checkpoints that are whole or absent."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from physrep.files import whole

HEADER = ["step", "name", "value"]


class MetricsCsv(Logger):
    """Append every logged value as a line `step,name,value`; a resumed run goes on after the step it resumes from."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        super().__init__()
        self.path = path
        if path.exists():
            with path.open(newline="") as file:
                rows = [r for r in csv.reader(file) if len(r) == 3 and r[0].isdigit() and int(r[0]) < resumed_at]
            with whole(path) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([HEADER, *rows])

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
        """Append the values of one step."""
        with self.path.open("a", newline="") as file:
            if not file.tell():
                csv.writer(file).writerow(HEADER)
            csv.writer(file).writerows([step, k, f"{v:.6g}"] for k, v in metrics.items() if k != "epoch")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave them to config.yaml."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Write a checkpoint beside its place and rename it there, so that a kill leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        with whole(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
