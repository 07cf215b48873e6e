"""Operator discovery: the clip's embedding is the equation that carries its last frame to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from physrep.data.module import Batch, Clips
from physrep.encoders.base import Encoder, tokens
from physrep.encoders.operator_unet import NORM_GROUPS, OperatorUNet
from physrep.errors import UserError
from physrep.objectives.base import Objective

GROUPS = {"read": "adapters", "write": "adapters", "expand": "pointwise", "contract": "pointwise"}
"""the generator of a layer's weights, as published; "kernels" for the others"""


class Disco(Objective):
    """Read a clip, write the weights of a small operator for each sample, integrate it to the frame after (DISCO).

    After Morel et al. 2025 (arXiv 2504.19496), with any encoder as hypernetwork: the mean of its tokens, mapped to
    `latent` dimensions if that is given, is the embedding, from which a perceptron of width `head` makes the weights
    of an operator U-Net of width `start` and `levels` levels; `steps` of RK4 with plain backpropagation stand for the
    published adaptive solver. The last frame is standardised by sample and channel and then carried; the loss is the
    Gaussian likelihood of the frame after, its variance that of the target over space + `floor`.
    """

    clips: ClassVar[Clips] = "frame"
    limits: Tensor

    def __init__(
        self,
        encoder: Encoder,
        channels: int,
        periodic: Sequence[bool],
        latent: int | None = None,
        head: int = 768,
        start: int = 8,
        levels: int = 4,
        steps: int = 4,
        floor: float = 1e-4,
        **plan: Any,
    ) -> None:
        for key, value in {"start": start, "levels": levels, "steps": steps, "head": head}.items():
            if value < 1:
                raise UserError(f"objective.{key}={value}: must be 1 or more")
        if start % NORM_GROUPS:
            raise UserError(f"objective.start={start}: must be a multiple of {NORM_GROUPS}, the groups of the norms")
        if floor <= 0:
            raise UserError(f"objective.floor={floor}: must be more than 0; a frame may be the same everywhere")
        super().__init__(encoder, **plan)
        self.periodic, self.levels, self.steps, self.floor = all(periodic), levels, steps, floor
        operator = OperatorUNet(channels, start, levels, self.periodic)
        layers = dict(operator.named_parameters())
        self.shapes = {name: w.shape for name, w in layers.items()}
        self.register_buffer("limits", torch.stack([w.detach().abs().max() for w in layers.values()]))
        self.rate = partial(functional_call, operator.to("meta"))  # holds no weights: those are the samples' own
        self.latent = nn.Linear(encoder.width, latent) if latent else nn.Identity()
        self.head = nn.Sequential(nn.Linear(latent or encoder.width, head), nn.GELU(), nn.Linear(head, head), nn.GELU())
        self.groups = {
            group: [n for n in layers if _group(n) == group] for group in ("pointwise", "kernels", "adapters")
        }
        self.generators = nn.ModuleDict(
            {group: nn.Linear(head, sum(layers[n].numel() for n in names)) for group, names in self.groups.items()}
        )

    def encode(self, clip: Tensor) -> Tensor:
        """Return the embedding of one standardised clip [B, C, T, H, W] as its only token, [B, 1, latent].

        Raises UserError for a grid that the operator cannot halve `levels` times.
        """
        cell = 2**self.levels
        grid = [int(n) for n in clip.shape[3:]]
        if any(n % cell or n < (cell if self.periodic else 2 * cell) for n in grid):
            walls = "" if self.periodic else f", {2 * cell} or more"
            raise UserError(f"objective.levels={self.levels}: sides of a grid must be multiples of {cell}{walls}, not "
                            f"{grid} (H, W); change it, data.crop, data.cut or data.size")  # fmt: skip
        token: Tensor = self.latent(tokens(self.encoder(clip)).mean(1, keepdim=True))
        return token

    def weights(self, latent: Tensor) -> dict[str, Tensor]:
        """Return the weights of the operator's layers by name, [B, *shape] each, of embeddings [B, latent]."""
        hidden, raw = self.head(latent), dict[str, Tensor]()
        for group, names in self.groups.items():
            made = self.generators[group](hidden).float()
            raw |= zip(names, made.split([self.shapes[n].numel() for n in names], dim=1), strict=True)
        scale = self.limits.square().mean().sqrt()
        return {
            name: bounded(raw[name], limit, scale).unflatten(1, shape)
            for (name, shape), limit in zip(self.shapes.items(), self.limits, strict=True)
        }

    def integrate(self, weights: dict[str, Tensor], state: Tensor) -> Tensor:
        """Carry states [B, C, H, W] over a frame, each by the operator of its own weights, [B, *shape] by name."""

        def one(weights: dict[str, Tensor], state: Tensor) -> Tensor:
            return rk4(lambda x: self.rate(weights, (x[None],))[0], state, self.steps)

        carried: Tensor = vmap(one)(weights, state)
        return carried

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, nrmse and baseline, the loss of the last frame as the answer; clips hold one frame more."""
        past, future = batch["clip"][:, :, :-1], batch["clip"][:, :, -1]
        weights = self.weights(self.encode(past)[:, 0])
        last = past[:, :, -1]
        mean, square = last.mean((2, 3), keepdim=True), self.variance(last)
        with torch.autocast(last.device.type, enabled=False):
            state, target = ((x - mean) / square.sqrt() for x in (last, future))
            predicted = self.integrate(weights, state)
        moves = (square > 2 * self.floor).any(1, keepdim=True)  # in a flat frame the norms' gradients overflow
        predicted = torch.where(moves, predicted, state)
        variance = (self.variance(future) / square).expand_as(target)
        return {
            "loss": F.gaussian_nll_loss(predicted, target, variance),
            "nrmse": ((predicted - target).square() / variance).mean((2, 3)).sqrt().mean(),
            "baseline": F.gaussian_nll_loss(state, target, variance),
        }

    def variance(self, field: Tensor) -> Tensor:
        """Return the variance over space + `floor` of fields [B, C, H, W], [B, C, 1, 1]."""
        return field.var((2, 3), correction=0, keepdim=True) + self.floor


def _group(layer: str) -> str:
    return GROUPS.get(layer.partition(".")[0], "kernels")


def bounded(raw: Tensor, limit: Tensor, scale: Tensor) -> Tensor:
    """Return weights between -2 and 2 times `limit`, near zero limit / scale times `raw`."""
    return 2 * limit * torch.tanh(raw / (2 * scale))


def rk4(rate: Callable[[Tensor], Tensor], state: Tensor, steps: int) -> Tensor:
    """Carry a state over one unit of time by classical Runge-Kutta steps of dx/dt = rate(x)."""
    h = 1 / steps
    for _ in range(steps):
        a = rate(state)
        b = rate(state + h / 2 * a)
        c = rate(state + h / 2 * b)
        d = rate(state + h * c)
        state = state + h / 6 * (a + 2 * b + 2 * c + d)
    return state
