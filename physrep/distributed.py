"""The collectives, all of them: differentiable, and the identity where there is one process.

Backward gives the gradient of the sum of all ranks' losses. DDP then averages the ranks' gradients, which makes it the
gradient of the mean loss. So a loss on gathered rows, which is the same on every rank, and a loss that is a mean over
a rank's own rows both have the gradient that one process has with the whole batch: no factor is to be set anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world() -> int:
    """Return how many processes there are, asked when called: the group is made after an objective is."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Sum(torch.autograd.Function):
    """The sum over ranks; every rank's result holds every rank's input, so its adjoint is the sum again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Sum.apply(*grads)


def gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks in the order that one process has them in, x [B, ...] -> [world B, ...].

    Ranks have equally many rows, and rank r those that `share` gives it: r, r + world, r + 2 world, ...
    """
    if world() == 1:
        return x
    rows = x.new_zeros(len(x), world(), *x.shape[1:])
    rows[:, dist.get_rank()] = x
    summed: Tensor = _Sum.apply(rows)
    return summed.flatten(0, 1)


def share(x: Tensor) -> Tensor:
    """Return this rank's rows of what was drawn for the batches of all, x [world B, ...] -> [B, ...]."""
    return x if world() == 1 else x[dist.get_rank() :: world()]


def mean(x: Tensor) -> Tensor:
    """Return the mean of x over the ranks, of x's shape."""
    if world() == 1:
        return x
    summed: Tensor = _Sum.apply(x)
    return summed / world()
