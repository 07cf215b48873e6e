"""The collectives, all of them: differentiable, and the identity where there is one process.

Backward gives the gradient of the sum of all ranks' losses. DDP then averages the ranks' gradients, which makes it the
gradient of the mean loss. So a loss on gathered rows, which is the same on every rank, and a loss that is a mean over
a rank's own rows both have the gradient that one process has with the whole batch: no factor is to be set anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics.utilities.distributed import gather_all_tensors

from physrep.errors import UserError

_apart = ContextVar("apart", default=False)


def world() -> int:
    """Return how many processes there are, asked when called: the group is made after an objective is."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _apart.get() else 1


def rank() -> int:
    """Return which of them this is."""
    return dist.get_rank() if world() > 1 else 0


@contextmanager
def apart() -> Iterator[None]:
    """Let this rank be the only one for a while: where ranks have unequally many batches, none may wait for another."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


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
    rows[:, rank()] = x
    summed: Tensor = _Sum.apply(rows)
    return summed.flatten(0, 1)


def share(x: Tensor) -> Tensor:
    """Return this rank's rows of what was drawn for the batches of all, x [world B, ...] -> [B, ...]."""
    return x if world() == 1 else x[rank() :: world()]


def mean(x: Tensor) -> Tensor:
    """Return the mean of x over the ranks, of x's shape."""
    if world() == 1:
        return x
    summed: Tensor = _Sum.apply(x)
    return summed / world()


def total(x: Tensor) -> Tensor:
    """Return the sum of x over the ranks, of x's shape; no gradient."""
    if world() > 1:
        dist.all_reduce(x := x.clone())
    return x


def most(number: int, device: torch.device) -> int:
    """Return the largest of the ranks' numbers."""
    if world() == 1:
        return number
    dist.all_reduce(x := torch.tensor(number, device=device), dist.ReduceOp.MAX)
    return int(x)


def rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, rank after rank, of which each has any number; no gradient."""
    return x if world() == 1 else torch.cat(gather_all_tensors(x))


def told(x: Tensor) -> Tensor:
    """Return the first rank's x, whose shape is the others' too."""
    if world() > 1:
        dist.broadcast(x := x.clone(), 0)
    return x


def first_to_fail() -> bool:
    """Say whether no other rank has failed before this one, which is then the one to tell why.

    Where the first rank is gone, and the count with it, another has.
    """
    if world() == 1:
        return True
    try:
        return int(dist.distributed_c10d._get_default_store().add("failed", 1)) == 1
    except RuntimeError:
        return False


def agreed(error: UserError) -> UserError | SystemExit:
    """Return what a rank raises for what all ranks have found: the first tells it, the others end quietly."""
    return error if rank() == 0 else SystemExit(0)
