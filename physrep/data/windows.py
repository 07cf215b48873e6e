"""Raw batches of windows, read where a sampler's keys say: from the files, or from what the cache holds of them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from physrep.data.cache import Kept
from physrep.data.sampler import Key, step_seed
from physrep.data.well import Array, Crop, WellSplit
from physrep.errors import UserError

Window = tuple[int, int, Crop]  # trajectory, first frame, where in the grid


class WindowDataset(Dataset[dict[str, Any]]):
    """Reads the windows that a sampler's keys name; holds no state, so workers and resumed runs agree.

    `crop` is {dim: [from, to]}. `loose` ({dim: cells}) is cut at a place that is a function of (seed, draw), anew for
    every window of a sample; along the axes in `periodic` it wraps around. A whole batch is read at once, in place.
    """

    def __init__(
        self,
        split: WellSplit,
        theta: Array,
        frames: int,
        stride: int,
        crop: dict[str, Sequence[int]],
        loose: dict[str, int],
        periodic: Sequence[str],
        seed: int,
        channels: Sequence[int] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.split, self.theta, self.frames, self.stride = split, theta.astype(np.float32), frames, stride
        self.crop, self.loose, self.periodic, self.seed, self.kept = crop, loose, periodic, seed, kept
        self.grid = dict(zip(split.header.dims, split.header.shape, strict=True))
        cells = {d: high - low for d, (low, high) in crop.items()} | loose
        self.shape = (len(channels or split.header.channels), frames, *(cells.get(d, n) for d, n in self.grid.items()))
        self.thin = tuple(3 + i for i, dim in enumerate(self.grid) if is_plane(crop, dim))
        self.read = kept.read if kept else partial(split.read, channels=channels)
        self._spare: list[Array] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spare": []}

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Return a batch: its `clip` [B, C, T, *S], or the `samples` to fetch where the cache lies on the device.

        A clip is float32 in the files' units, or float16 and standardised if it is from the cache. `draw` is the
        number of the batch's first sample.
        """
        samples = [self._windows(*key) for key in keys]
        trajectories = [key[1] for key in keys]
        raw = {"theta": torch.from_numpy(self.theta[trajectories]), "trajectory": torch.tensor(trajectories)}
        content = {"samples": samples} if self.kept and self.kept.device else {"clip": self.fetch(samples)}
        return content | raw | {"draw": keys[0][0]}

    def _windows(self, draw: int, trajectory: int, *starts: int) -> list[Window]:
        if not self.loose:
            return [(trajectory, start, self.crop) for start in starts]
        rng = np.random.default_rng(step_seed(self.seed, draw))
        return [(trajectory, start, self._place(rng)) for start in starts]

    def _place(self, rng: np.random.Generator) -> Crop:
        place = dict(self.crop)
        for dim, size in self.loose.items():
            start = int(rng.integers(self.grid[dim] if dim in self.periodic else self.grid[dim] - size + 1))
            place[dim] = (start, start + size)
        return place

    def fetch(self, samples: Sequence[Sequence[Window]]) -> Tensor:
        """Return the windows of every sample one after the other in time, [B, C, T, *S], where the cache lies.

        Raises UserError for a window of the files that is not finite.
        """
        channels, frames, *grid = self.shape
        shape = (len(samples), channels, frames * len(samples[0]), *grid)
        device = self.kept and self.kept.device
        dtype = torch.float16 if self.kept else torch.float32
        clip = torch.empty(shape, dtype=dtype, device=device) if device else self._memory(shape, dtype)
        for there, windows in zip(clip if device else clip.numpy(), samples, strict=True):
            for i, (trajectory, start, place) in enumerate(windows):
                self.read(trajectory, start, frames, self.stride, place, out=there[:, i * frames : (i + 1) * frames])
            if not (self.kept or _finite(there)):
                path = self.split.locate(windows[0][0])[0].path
                raise UserError(f"{path}: NaN or infinity in the window that starts at frame {windows[0][1]}; "
                                "remove the file or write it again")  # fmt: skip
        return clip.squeeze(self.thin)

    def _memory(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory from which a batch goes on without a copy: shared in a worker, pinned beside a GPU.

        Elsewhere the memory of earlier batches is used again when nobody holds them: the system clears new memory.
        """
        size = math.prod(shape) * dtype.itemsize
        if get_worker_info():
            memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
        elif torch.cuda.is_available():
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        else:
            spare = self._spare.pop() if self._spare else np.empty(0, np.uint8)
            spare = spare if spare.size >= size else np.empty(size, np.uint8)
            held = spare[:size]
            memory = torch.from_numpy(held)  # which holds the view, and so says when it is done with it
            weakref.finalize(held, self._spare.append, spare).atexit = False
        return memory.view(dtype).view(shape)


def _finite(values: Array) -> bool:
    seen = torch.from_numpy(values)
    return math.isfinite(seen.sum()) or bool(seen.isfinite().all())  # a sum is the faster look, but may overflow


def as_it_is(batch: Any) -> Any:
    """Collate nothing: the dataset returns whole batches."""
    return batch


def is_plane(crop: Mapping[str, Sequence[int]], dim: str) -> bool:
    """Say whether a crop leaves one cell of an axis, which is then dropped: a plane of a three-dimensional field."""
    return dim in crop and crop[dim][1] - crop[dim][0] == 1
