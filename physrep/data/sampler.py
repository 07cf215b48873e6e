"""The order of windows: a function of (seed, epoch), which may be entered part-way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.utils.data import Sampler

from physrep.data.well import Array

Key = tuple[int, ...]
PRIME = 1_000_003


def step_seed(*numbers: int) -> int:
    """Mix integers (seed, step, rank, ...) into the seed of a generator."""
    mixed = 0
    for n in numbers:
        mixed = (mixed * PRIME + n + 1) % (2**63 - 25)
    return mixed


class WindowSampler(Sampler[Key]):
    """Yield (draw, trajectory, first frame[, first frame of the second window]) for the windows [M, 2].

    The order depends on seed and epoch alone; `draw` numbers the samples of the whole run and seeds their noise. With
    `pair`, another window of the same trajectory is drawn (the same one where there is no other). Ranks take every
    `world`-th sample, and an epoch leaves out the windows that do not fill another step of `step` a rank.
    """

    def __init__(
        self, windows: Array, seed: int, pair: bool, shuffle: bool, rank: int = 0, world: int = 1, step: int = 1
    ) -> None:
        self.windows, self.seed, self.pair, self.shuffle = windows, seed, pair, shuffle
        self.rank, self.world, self.step = rank, world, step
        self.epoch = self.skip = 0
        first = [0, *((windows[1:, 0] != windows[:-1, 0]).nonzero()[0] + 1).tolist(), len(windows)]
        self.group = torch.tensor([(a, b) for a, b in pairwise(first) for _ in range(a, b)])

    def __len__(self) -> int:
        return len(self.windows) // (self.world * self.step) * self.step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (called by Lightning)."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(step_seed(self.seed, self.epoch))
        n = len(self.windows)
        order = torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)
        low, size = self.group[:, 0], self.group[:, 1] - self.group[:, 0]
        away = 1 + (torch.rand(n, generator=generator) * (size - 1)).long()
        partner = low + (torch.arange(n) - low + away) % size
        skip, self.skip = self.skip, 0
        for at in range(self.rank + skip * self.world, len(self) * self.world, self.world):
            i = int(order[at])
            trajectory, start = (int(v) for v in self.windows[i])
            second = (int(self.windows[int(partner[i]), 1]),) if self.pair else ()
            yield (self.epoch * n + at, trajectory, start, *second)
