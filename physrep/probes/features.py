"""What a probe is given: the frozen embeddings of a split, with the physical parameters to be read from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from physrep.errors import UserError

PART = 16  # windows that are worked on at once, so that what is in between stays in a CPU's cache


def device() -> torch.device:
    """Where encoders embed and probes are fitted: a GPU if there is one (Apple's has no float64)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class Features:
    """The embeddings of M windows: tokens [M, N, D] of any float type, standardised theta [M, P], trajectory [M]."""

    tokens: Tensor
    theta: Tensor
    trajectory: Tensor

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.theta) == len(self.trajectory):
            raise ValueError("tokens, theta and trajectory must have one row a window")

    def __len__(self) -> int:
        """Return M, the number of windows."""
        return len(self.tokens)

    def to(self, place: torch.device) -> Features:
        """Return the same features on a device."""
        return Features(self.tokens.to(place), self.theta.to(place), self.trajectory.to(place))

    def of(self, trajectories: Sequence[int]) -> Features:
        """Return the features of some trajectories."""
        rows = torch.isin(self.trajectory, torch.as_tensor(trajectories, device=self.trajectory.device))
        return self if rows.all() else Features(self.tokens[rows], self.theta[rows], self.trajectory[rows])

    @cached_property
    def pooled(self) -> Tensor:
        """Mean and standard deviation over the tokens, [M, 2D] float32; the mean alone, [M, D], of a single token."""
        if self.tokens.shape[1] == 1:
            return self.tokens[:, 0].float()
        parts = []
        for part in self.tokens.split(PART):
            mean = part.float().mean(1, keepdim=True)
            parts.append(torch.cat([mean[:, 0], (part - mean).square_().mean(1).sqrt_()], 1))
        return torch.cat(parts)


def plane(train: Features, features: Features) -> Tensor:
    """Return where features lie along the two principal components of train's, standardised, [M, 2].

    A component's largest entry is positive; narrower features have zeros.
    """
    standardise = Standardiser.of(train.pooled, 5.0)
    x = standardise(train.pooled.double())
    _, vectors = torch.linalg.eigh(x.T @ x)
    axes = vectors[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    found = standardise(features.pooled.double()) @ axes
    return torch.nn.functional.pad(found, (0, 2 - found.shape[1]))


class Predictor(Protocol):
    """A fitted probe: the standardised parameters [M, P] float32 of features, and what was chosen on valid."""

    @property
    def chosen(self) -> dict[str, Any]:
        """What was selected on valid, in plain numbers and lists."""

    def __call__(self, features: Features) -> Tensor:
        """Predict the standardised parameters of features, [M, P] float32."""


class Estimator(Protocol):
    """A probe before it is fitted; `needs` says whether it reads the tokens or only their pooled statistics."""

    needs: Literal["pooled", "tokens"]

    def fit(self, train: Features, valid: Features) -> Predictor:
        """Fit on train and select on valid; test never comes here."""


@dataclass(frozen=True, eq=False)
class Standardiser:
    """z = (x - mean) / scale of the last axis, cut at +-limit; features that do not vary in train become zero.

    Where `layer_norm` is set, every row is then brought to mean 0 and standard deviation 1 by itself.
    """

    mean: Tensor
    scale: Tensor
    limit: float = math.inf
    layer_norm: bool = False

    @classmethod
    def of(cls, x: Tensor, limit: float = math.inf, layer_norm: bool = False) -> Standardiser:
        """Take the statistics of every axis but the last, x [..., D], in float64; UserError if they are not finite."""
        total = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        square = total.clone()
        for part in x.split(PART):
            rows = part.reshape(-1, x.shape[-1]).double()
            total += rows.sum(0)
            square += rows.square().sum(0)
        mean = total / (x.numel() // x.shape[-1])
        std = (square / (x.numel() // x.shape[-1]) - mean.square()).clamp_min(0).sqrt()
        if not torch.isfinite(std).all():
            raise UserError(
                "features of the train split are not finite; the run has diverged: probe an earlier checkpoint"
            )
        return cls(mean, torch.where(std > 1e-6 * mean.abs(), std, math.inf), limit, layer_norm)

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise x [..., D]; half precision comes out as float32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        z = (x - self.mean.to(x)).div_(self.scale.to(x))
        z = z if math.isinf(self.limit) else z.clamp_(-self.limit, self.limit)
        return torch.nn.functional.layer_norm(z, z.shape[-1:]) if self.layer_norm else z

    def whole(self, x: Tensor) -> Tensor:
        """Standardise all windows at once, x [M, ..., D], in the precision that they have."""
        z = torch.empty_like(x)
        for part, place in zip(x.split(PART), z.split(PART), strict=True):
            place.copy_(self(part))
        return z
