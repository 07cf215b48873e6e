"""A split held once in half precision, standardised and cropped: in a file that a host's processes map, or on a device.

A file on disk lies there until somebody deletes it. One in memory goes with its last user; what a killed run left goes
when the next one is filled. Who uses a file holds a shared lock on it; who makes or removes one, the folder's.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from physrep.data import transforms
from physrep.data.reader import pieces
from physrep.data.well import Crop, WellSplit
from physrep.errors import UserError
from physrep.files import amount, free_bytes, whole
from physrep.progress import track

MEMORY = Path("/dev/shm")
PART = 1 << 23  # bytes that are read at once to fill a cache
PATIENCE = 20  # tenths of a second that a leaving process waits for others
LARGEST = torch.finfo(torch.float16).max


class Kept:
    """The chosen channels of a split within `crop`, standardised: [C, T, *S] float16 for every trajectory.

    `mark` stands for the data; another mark, crop, choice of channels or normalisation makes another `key`.
    """

    def __init__(
        self, split: WellSplit, crop: Crop, channels: Sequence[int], mean: Tensor, std: Tensor, mark: str
    ) -> None:
        """Plan what is held of `split`, whose `channels` have `mean` and `std` [C]; nothing is read yet."""
        self.split, self.crop, self.channels, self.mean, self.std = split, crop, channels, mean, std
        header = split.header
        ends = [tuple(crop.get(dim, (0, n))) for dim, n in zip(header.dims, header.shape, strict=True)]
        self.grid = [high - low for low, high in ends]
        self.shapes = [(len(channels), split.headers[i].frames, *self.grid) for i in split.places[:, 0].tolist()]
        self.bytes = 2 * sum(prod(shape) for shape in self.shapes)
        times = [h.path.stat().st_mtime_ns for h in split.headers]
        about = [mark, split.places.tolist(), times, ends, list(channels), mean.tolist(), std.tolist()]
        self.key = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        self.path = Path()
        self.device: torch.device | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"arrays", "_user"}}

    @cached_property
    def arrays(self) -> list[Any]:
        """Each trajectory's fields [C, T, *S], views of the file, which is mapped by the process that reads."""
        return self._cut(np.asarray(np.memmap(self.path, np.float16, "r")))

    def read(self, trajectory: int, start: int, frames: int, stride: int, crop: Crop, out: Any) -> None:
        """Fill `out` [C, T, *S] float16, an array or on the device a tensor; the arguments are WellSplit.read's."""
        source = self.arrays[trajectory]
        times = slice(start, start + (frames - 1) * stride + 1, stride)
        dims = zip(self.split.header.dims, self.grid, strict=True)
        axes = [pieces(n, *((0, n) if dim in self.crop else crop.get(dim, (0, n)))) for dim, n in dims]
        for cells in itertools.product(*axes):
            here = (slice(None), times, *(piece.source for piece in cells))
            there = (slice(None), slice(None), *(piece.target for piece in cells))
            out[there] = source[here]

    def hold_on(self, device: torch.device) -> None:
        """Fill a tensor on `device`, this process's own. Raises UserError where there is no room."""
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
        self._announce("device", str(device), free)
        arrays = self._cut(torch.empty(self.bytes // 2, dtype=torch.float16, device=device))
        for trajectory, first, values in self._parts(str(device)):
            arrays[trajectory][:, first : first + values.shape[1]] = values
        self.arrays, self.device = arrays, device

    def hold_in_memory(self, name: str) -> None:
        """Map a file in memory that the host's processes share. Raises UserError where there is no room to make it."""
        folder = (MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir())) / f"physrep-{os.getuid()}"
        self._map(folder / f"{name}-{self.key}.f16", "ram")
        weakref.finalize(self, _leave, self.path, self._user, os.getpid())

    def hold_on_disk(self, folder: Path) -> None:
        """Map a file in `folder`. Raises UserError where there is no room to make it."""
        self._map(folder / f"{self.split.folder.name}-{self.key}.f16", "disk")

    def _map(self, path: Path, where: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            if not path.exists():
                if where == "ram":
                    _sweep(path.parent)
                free = free_bytes(path.parent)
                self._announce(where, str(path), min(free, _free_memory()) if where == "ram" else free)
                self._write(path)
            self._user = path.open("rb")
            fcntl.flock(self._user, fcntl.LOCK_SH)

    def _announce(self, where: str, place: str, free: int) -> None:
        if self.bytes > free:
            raise UserError(f"data.cache={where}: {self.split.folder} takes {amount(self.bytes)}, {place} has "
                            f"{amount(free)} free; crop, keep fewer channels or hold it elsewhere")  # fmt: skip
        print(f"data.cache={where}: {self.split.folder} takes {amount(self.bytes)} in {place}", file=sys.stderr)

    def _write(self, path: Path) -> None:
        begins = np.cumsum([0] + [2 * prod(shape) for shape in self.shapes]).tolist()
        with whole(path) as temporary, temporary.open("wb") as file:
            for trajectory, first, values in self._parts(str(path)):
                _, frames, *grid = self.shapes[trajectory]
                for c, channel in enumerate(values.numpy()):
                    file.seek(begins[trajectory] + 2 * (c * frames + first) * prod(grid))
                    file.write(channel.data)
            file.flush()
            os.fsync(file.fileno())

    def _parts(self, label: str) -> Iterator[tuple[int, int, Tensor]]:
        """Read the split part by part: a trajectory, its first frame and what is held of those after it."""
        parts = []
        for trajectory, (channels, frames, *grid) in enumerate(self.shapes):
            step = max(PART // (4 * channels * prod(grid)), 1)
            parts += [(trajectory, first, min(step, frames - first)) for first in range(0, frames, step)]
        for trajectory, first, frames in track(parts, f"filling {label}"):
            clip = self.split.read(trajectory, first, frames, crop=self.crop, channels=self.channels)
            values = transforms.normalise(torch.from_numpy(clip)[None], self.mean, self.std)[0]
            if not all(abs(extreme) <= LARGEST for extreme in values.aminmax()):
                wrong = "NaN or infinity" if not np.isfinite(clip).all() else "values too far out for half precision"
                raise UserError(f"{self.split.locate(trajectory)[0].path}: {wrong} in frames {first} to "
                                f"{first + frames - 1}; write the file again, or set data.cache=null")  # fmt: skip
            yield trajectory, first, values.half()

    def _cut(self, flat: Any) -> list[Any]:
        ends = np.cumsum([prod(shape) for shape in self.shapes]).tolist()
        return [flat[end - prod(shape) : end].reshape(shape) for end, shape in zip(ends, self.shapes, strict=True)]


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Be the only one to make or remove caches in a folder. Raises BlockingIOError at once if not to `wait`."""
    with (folder / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(f"{folder}: another process fills a cache; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(path: Path, user: BinaryIO) -> None:
    """Remove a file that nobody else uses."""
    with suppress(BlockingIOError):
        fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            with path.open("rb") as user:
                _remove(path, user)


def _leave(path: Path, user: BinaryIO, pid: int) -> None:
    for _ in range(PATIENCE if os.getpid() == pid else 0):  # a worker that was forked has no say
        try:
            with _locked(path.parent, wait=False):
                _remove(path, user)
        except BlockingIOError:  # somebody leaves at the same time, or fills another cache: this process, perhaps
            time.sleep(0.1)
        except FileNotFoundError:  # the folder is gone
            break
        else:
            break
    user.close()


def _free_memory() -> int:
    """Return how many bytes of memory are to be had, as far as the system says."""
    said = Path("/proc/meminfo")
    lines = said.read_text().splitlines() if said.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), sys.maxsize)
