"""Trained probes: all learning rates in one pass over cached features, learning rate and epoch selected on valid."""

from __future__ import annotations

import copy
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Sampler, TensorDataset

from physrep.data.sampler import step_seed
from physrep.errors import UserError
from physrep.probes.closed_form import LIMIT
from physrep.probes.features import Features, Standardiser
from physrep.probes.heads import AttentiveHead, LinearHead, MLPHead


class Shuffled(Sampler[Tensor]):
    """The rows of n windows in batches; the order of an epoch is a function of (seed, epoch)."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(step_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.n, generator=generator).split(self.batch_size))


class Probe(LightningModule):
    """A copy of one head for each learning rate, trained side by side; keeps copy and epoch of least MSE on valid."""

    def __init__(self, head: nn.Module, standardise: Standardiser, lrs: Sequence[float], weight_decay: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in lrs)
        self.standardise, self.lrs, self.weight_decay = standardise, tuple(lrs), weight_decay
        self.best, self.chosen = head, {"lr": 0.0, "epoch": 0, "valid_mse": math.inf}

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, N, D] or [B, F] to the prediction of each copy, [K, B, P]."""
        x = self.standardise(x)
        return torch.stack([head(x) for head in self.heads])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Sum the MSE of the copies, which share no weight."""
        x, theta = batch
        loss: Tensor = (self(x) - theta).square().mean((1, 2)).sum()
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin the sum of squared errors of each copy."""
        self.error = torch.zeros(len(self.heads), device=self.device)
        self.count = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add the squared errors of a batch."""
        x, theta = batch
        self.error += (self(x) - theta).square().sum((1, 2))
        self.count += theta.numel()

    def on_validation_epoch_end(self) -> None:
        """Keep the best copy if it is better than any before; a copy that has diverged is never the best."""
        mse = (self.error / self.count).nan_to_num(math.inf)
        i = int(mse.argmin())
        if float(mse[i]) < self.chosen["valid_mse"]:
            self.best = copy.deepcopy(self.heads[i])
            self.chosen = {"lr": self.lrs[i], "epoch": self.current_epoch + 1, "valid_mse": float(mse[i])}

    def configure_optimizers(self) -> Any:
        """AdamW with one learning rate a copy, each falling to zero along a cosine."""
        groups = [{"params": list(h.parameters()), "lr": lr} for h, lr in zip(self.heads, self.lrs, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)
        schedule = CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted head with the standardisation of its input."""

    head: nn.Module
    standardise: Standardiser
    needs: Literal["pooled", "tokens"]
    chosen: dict[str, Any]

    def __call__(self, features: Features) -> Tensor:
        """Predict the standardised parameters of features, [M, P] float32, where the features lie."""
        x = getattr(features, self.needs)
        head = self.head.to(x.device)
        with torch.no_grad():
            return torch.cat([head(self.standardise(part)) for part in x.split(256)])


class Trained:
    """A head trained by AdamW on cached features; subclasses say which head, and what it reads.

    Every learning rate trains its own copy from the same start. Inputs are standardised with the statistics of train,
    tokens per channel over windows and tokens, pooled features also cut as for ridge. The result is a function of the
    features and `seed`; global random states are left alone.
    """

    needs: Literal["pooled", "tokens"] = "pooled"

    def __init__(
        self,
        epochs: int = 30,
        batch_size: int = 64,
        lrs: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3),
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        if not (epochs >= 1 and batch_size >= 1 and len(lrs) >= 1):
            raise UserError("probe: epochs, batch_size and the number of lrs must be one or more")
        self.epochs, self.batch_size, self.lrs = epochs, batch_size, tuple(lrs)
        self.weight_decay, self.seed = weight_decay, seed

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make the head for features of this width, with its initial weights."""
        raise NotImplementedError

    def fit(self, train: Features, valid: Features) -> Head:
        """Train every copy on train; select learning rate and epoch on valid. UserError if all of them diverge."""
        x, x_valid = getattr(train, self.needs), getattr(valid, self.needs)
        standardise = Standardiser.of(x, LIMIT if self.needs == "pooled" else math.inf)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reseed GPUs too
            probe = Probe(self.head(x.shape[-1], train.theta.shape[1]), standardise, self.lrs, self.weight_decay)
            trainer = Trainer(
                max_epochs=self.epochs,
                devices=1,
                plugins=[LightningEnvironment()],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=sys.stderr.isatty(),
                num_sanity_val_steps=0,
            )
            batches = Shuffled(len(train), self.batch_size, self.seed)
            in_order = torch.arange(len(valid)).split(256)
            trainer.fit(
                probe,
                DataLoader(TensorDataset(x, train.theta), sampler=batches, batch_size=None),
                DataLoader(TensorDataset(x_valid, valid.theta), sampler=in_order, batch_size=None),
            )
        if not math.isfinite(probe.chosen["valid_mse"]):
            raise UserError(f"probe.lrs: every head has diverged with {list(self.lrs)}; lower them")
        return Head(probe.best.eval(), standardise, self.needs, probe.chosen)


class Linear(Trained):
    """A linear head on pooled features, by gradient descent."""

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make an affine map."""
        return LinearHead(width, outputs)


class MLP(Trained):
    """A head with one hidden layer on pooled features."""

    def __init__(self, hidden: int = 256, **plan: Any) -> None:
        super().__init__(**plan)
        self.hidden = hidden

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make a perceptron with one hidden layer."""
        return MLPHead(width, outputs, self.hidden)


class Attentive(Trained):
    """A head with one learned query that attends to all tokens; features of a single token leave its MLP."""

    needs: Literal["pooled", "tokens"] = "tokens"

    def __init__(self, heads: int = 8, mlp_ratio: float = 4.0, **plan: Any) -> None:
        super().__init__(**plan)
        self.heads, self.mlp_ratio = heads, mlp_ratio

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make an attentive head."""
        return AttentiveHead(width, outputs, self.heads, self.mlp_ratio)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Lightning's advice on devices and loaders, which a probe's user cannot act on."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        log.setLevel(level)
