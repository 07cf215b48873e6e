"""Trained probes: all learning rates in one pass over cached features, learning rate and epoch selected on valid."""

from __future__ import annotations

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
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from physrep.data.sampler import step_seed
from physrep.errors import UserError
from physrep.probes.closed_form import LIMIT
from physrep.probes.features import Features, Standardiser
from physrep.probes.heads import AttentiveHead, LinearHead, MLPHead


def order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the rows of n windows in the order of an epoch, a function of (seed, epoch)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(step_seed(seed, epoch)))


def at_once(x: Tensor, theta: Tensor) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader whose one batch is all there is."""
    dataset: Any = [(x, theta)]
    return DataLoader(dataset, batch_size=None)


class Probe(LightningModule):
    """A copy of one head for each learning rate, trained side by side; keeps copy and epoch of least MSE on valid.

    A copy is one vector of all its weights, and the head is called once, with the weights of all. One of Lightning's
    batches is a whole split, (x, theta): what it does between batches takes longer than a step of a linear head.
    """

    automatic_optimization = False

    def __init__(
        self, head: nn.Module, lrs: Sequence[float], weight_decay: float, batch_size: int, steps: int, seed: int
    ) -> None:
        super().__init__()
        start = parameters_to_vector(head.parameters()).detach()
        self.copies = nn.ParameterList(start.clone() for _ in lrs)
        self.shapes = {name: w.shape for name, w in head.named_parameters()}
        self.lrs, self.weight_decay = tuple(lrs), weight_decay
        self.batch_size, self.steps, self.seed = batch_size, steps, seed
        self.best, self.chosen = head.requires_grad_(False), {"lr": 0.0, "epoch": 0, "valid_mse": math.inf}

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised features [B, N, D] or [B, F] to the prediction of each copy, [K, B, P]."""
        parts = torch.stack(list(self.copies)).split([shape.numel() for shape in self.shapes.values()], dim=1)
        weights = {name: w.unflatten(1, shape) for (name, shape), w in zip(self.shapes.items(), parts, strict=True)}
        predicted: Tensor = functional_call(self.best, weights, (x.float(),))
        return predicted

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Train for an epoch: AdamW on the MSE, with one learning rate a copy, each falling to zero along a cosine."""
        x, theta = batch
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        schedule: Any = self.lr_schedulers()
        for rows in order(len(x), self.seed, self.current_epoch).to(x.device).split(self.batch_size):
            optimizer.zero_grad()
            (self(x[rows]) - theta[rows]).square().mean((1, 2)).sum().backward()  # copies share no weight
            optimizer.step()
            schedule.step()

    def mse(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return the MSE of each copy, [K]; infinite where it has diverged."""
        parts = zip(x.split(256), theta.split(256), strict=True)
        errors = torch.stack([(self(part) - right).square().sum((1, 2)) for part, right in parts])
        return (errors.sum(0) / theta.numel()).nan_to_num(math.inf)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Keep the best copy if it is better than any before."""
        mse = self.mse(*batch)
        i = int(mse.argmin())
        if float(mse[i]) < self.chosen["valid_mse"]:
            vector_to_parameters(self.copies[i].detach().clone(), self.best.parameters())
            self.chosen = {"lr": self.lrs[i], "epoch": self.current_epoch + 1, "valid_mse": float(mse[i])}

    def configure_optimizers(self) -> Any:
        """Make the optimiser of all copies and its schedule."""
        groups = [{"params": [copy], "lr": lr} for copy, lr in zip(self.copies, self.lrs, strict=True)]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=True)
        return [optimizer], [CosineAnnealingLR(optimizer, self.steps)]


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
            return torch.cat([head(self.standardise.whole(part).float()) for part in x.split(256)])


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
        if min(lrs) <= 0 or weight_decay < 0:
            raise UserError(f"probe: lrs {list(lrs)} must be more than 0, and weight_decay {weight_decay} not less")
        self.epochs, self.batch_size, self.lrs = epochs, batch_size, tuple(lrs)
        self.weight_decay, self.seed = weight_decay, seed

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make the head for features of this width, with its initial weights."""
        raise NotImplementedError

    def fit(self, train: Features, valid: Features) -> Head:
        """Train every copy on train; select learning rate and epoch on valid. UserError if all of them diverge."""
        x, x_valid = getattr(train, self.needs), getattr(valid, self.needs)
        pooled = self.needs == "pooled"
        standardise = Standardiser.of(x, LIMIT if pooled else math.inf, layer_norm=not pooled)
        x, x_valid = standardise.whole(x), standardise.whole(x_valid)
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would reseed GPUs too
            head, steps = self.head(x.shape[-1], train.theta.shape[1]), self.epochs * -(-len(x) // self.batch_size)
            probe = Probe(head, self.lrs, self.weight_decay, self.batch_size, steps, self.seed)
            trainer = Trainer(
                max_epochs=self.epochs,
                accelerator="gpu" if x.is_cuda else "cpu",
                devices=[x.device.index] if x.is_cuda else 1,
                plugins=[LightningEnvironment()],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=sys.stderr.isatty(),
                num_sanity_val_steps=0,
            )
            trainer.fit(probe, at_once(x, train.theta), at_once(x_valid, valid.theta))
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
        if hidden < 1:
            raise UserError(f"probe.mlp.hidden={hidden}: must be 1 or more")
        self.hidden = hidden

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make a perceptron with one hidden layer."""
        return MLPHead(width, outputs, self.hidden)


class Attentive(Trained):
    """A head with one learned query that attends to all tokens; features of a single token leave its MLP."""

    needs: Literal["pooled", "tokens"] = "tokens"

    def __init__(self, heads: int = 8, mlp_ratio: float = 4.0, **plan: Any) -> None:
        super().__init__(**plan)
        if heads < 1 or mlp_ratio <= 0:
            raise UserError(f"probe.attentive: heads={heads} must be 1 or more, and mlp_ratio={mlp_ratio} more than 0")
        self.heads, self.mlp_ratio = heads, mlp_ratio

    def head(self, width: int, outputs: int) -> nn.Module:
        """Make an attentive head."""
        return AttentiveHead(width, outputs, self.heads, self.mlp_ratio, normalised=True)


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
