"""When a run's checkpoints are written, and how it stops where it can go on from."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from physrep import distributed
from physrep.callbacks.signals import AGAIN, INTERRUPTED, Signals
from physrep.errors import UserError


class Checkpoints(Checkpoint):
    """Write last.ckpt every `every` optimiser steps, before each validation and when a signal asks to stop.

    Always at the end of a step, so there is one way to resume: a run that ended in a validation begins with it. Beside
    it lie the one before (previous.ckpt), the weights of least probe/mse (best.ckpt) and those of the latest `keep`
    regular checkpoints (step=N.ckpt).
    """

    def __init__(self, folder: Path, every: int, keep: int, signals: Signals) -> None:
        self.folder, self.every, self.keep, self.signals = folder, every, keep, signals
        self.best, self.saved, self.validated = math.inf, -1, -1
        self._stop = 0

    def state_dict(self) -> dict[str, Any]:
        """Remember the best score."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Recall the best score."""
        self.best = state_dict["best"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning's handler of SIGTERM away: it communicates where it is called, and ranks are elsewhere."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, or validate where the checkpoint was written for it, before the first step.

        Raises UserError for an epoch of broken steps. After the last step of an epoch Lightning goes on in the next
        without counting it as begun, and a second resume would take it for the one before.
        """
        if trainer.num_training_batches % trainer.accumulate_grad_batches:
            raise distributed.agreed(UserError(
                f"trainer.limit_train_batches: {trainer.num_training_batches} batches an epoch are no multiple of "
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}"
            ))  # fmt: skip
        self._listen(pl_module)
        self._leave(trainer)
        epoch: Any = trainer.fit_loop.epoch_progress
        if trainer.fit_loop.restarted_mid_epoch and epoch.current.processed == epoch.current.started:
            epoch.increment_ready()
            epoch.increment_started()
        if trainer.global_step and self._validates(trainer):
            trainer.fit_loop.epoch_loop.val_loop.restarting = False
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop before the next step: by now the last one is logged."""
        self._leave(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint where one is due."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._listen(pl_module)
        step = trainer.global_step
        if self._stop or self._validates(trainer) or step % self.every == 0:
            self.save(trainer)
            self._listen(pl_module)  # that may have taken a while
        if self.keep and step % self.every == 0:
            trainer.save_checkpoint(self.folder / f"step={step}.ckpt", weights_only=True)
            if trainer.is_global_zero:
                for old in sorted(self.folder.glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))[: -self.keep]:
                    old.unlink()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the validation."""
        self._listen(pl_module)
        self._leave(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop inside of a validation."""
        self._listen(pl_module)
        self._leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best weights."""
        self.validated = trainer.global_step
        score = float(trainer.callback_metrics.get("probe/mse", math.inf))
        if score < self.best:
            self.best = score
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)

    def tidy(self, start: Path | None) -> None:
        """Remove what a kill has left half written, and a damaged last.ckpt before it takes the place of its elder."""
        for half in self.folder.glob(".*"):
            half.unlink()
        if start and start.stem != "last":
            (self.folder / "last.ckpt").unlink(missing_ok=True)

    def save(self, trainer: Trainer) -> None:
        """Write last.ckpt."""
        self.saved = trainer.global_step
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)

    def _validates(self, trainer: Trainer) -> bool:
        """Whether a validation follows the optimiser step just taken."""
        batches = trainer.global_step * trainer.accumulate_grad_batches
        return bool(trainer.enable_validation) and batches % int(trainer.val_check_interval) == 0

    def _listen(self, module: LightningModule) -> None:
        self._stop = distributed.most(self.signals.received, module.device)

    def _leave(self, trainer: Trainer) -> None:
        """End the process if a signal asked for it on any rank: the first speaks for all."""
        if not self._stop:
            return
        if not trainer.is_global_zero:
            raise SystemExit(0)
        name, code = signal.Signals(self._stop).name, INTERRUPTED if self._stop == signal.SIGINT else AGAIN
        print(f"physrep: {name}: stopped at step {trainer.global_step}; the same command continues", file=sys.stderr)
        raise SystemExit(code)
