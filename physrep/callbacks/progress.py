"""Progress of training: Lightning's bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

LINE_EVERY = 15.0


class PlainProgress(Callback):
    """Print step, loss, rate and time left every fifteen seconds, for logs."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock at the step a resumed run enters with."""
        self._first, self._start = trainer.global_step, time.monotonic()
        self._said = self._start

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Print a line if it is time for one."""
        now, step = time.monotonic(), trainer.global_step
        if now - self._said < LINE_EVERY or step == self._first or not trainer.is_global_zero:
            return
        self._said = now
        rate = (step - self._first) / (now - self._start)
        left = (int(trainer.estimated_stepping_batches) - step) / rate
        loss = float(outputs["loss"])
        print(f"step {step}: loss {loss:.4g}, {rate:.3g} steps/s, {left:.0f} s left", file=sys.stderr, flush=True)


def progress() -> Callback:
    """Return the callback that suits where standard error goes."""
    return TQDMProgressBar(refresh_rate=10) if sys.stderr.isatty() else PlainProgress()
