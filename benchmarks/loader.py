"""Windows per second from contiguous files in the page cache to a training batch: ours beside a plain loader.

`make bench` or `python -m benchmarks.loader`. It writes files of active_matter's geometry (256 x 256, 11 channels, 81
frames, one trajectory a file, 0.23 GB each) and small ones (64 x 64, 4 channels, 25 frames) to a temporary folder. All
rows of a table take turns in one process without workers; their best round counts. GB are those of float32 in the file.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from physrep.data.active_matter import ActiveMatter
from physrep.data.module import WellDataModule
from physrep.data.shear_flow import ShearFlow
from physrep.data.well import WellSplit, write

FRAMES, SIZE, BATCH, WINDOWS, ROUNDS = 32, 224, 2, 12, 4
FEW, MANY = 2, 12  # files
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = Callable[[], Any]


def make(folder: Path, kind: type[WellDataModule], fields: dict[str, int], shape: tuple[int, ...], files: int) -> None:
    """Write random fields ({name: rank}), `shape` [N, T, X, Y] in each file, and statistics that fit them."""
    rng = np.random.default_rng(0)
    coords = {dim: np.arange(float(n)) for dim, n in zip("xy", shape[2:], strict=True)}
    kinds = dict.fromkeys("xy", "PERIODIC")
    for i in range(files):
        values = {name: rng.random((*shape, *(2,) * rank), np.float32) for name, rank in fields.items()}
        theta = {name: 1.0 + (i + k) % 4 for k, name in enumerate(kind.targets)}
        place = folder / "data" / "train" / f"{i:02d}.hdf5"
        write(place, folder.name, values, theta, coords, np.arange(float(shape[1])), kinds)
    for split in ("valid", "test"):
        (folder / "data" / split).mkdir()
        (folder / "data" / split / "00.hdf5").hardlink_to(folder / "data" / "train" / "00.hdf5")
    flat = {key: {name: np.full((2,) * rank, value).tolist() for name, rank in fields.items()}
            for key, value in (("mean", 0.5), ("std", 12**-0.5))}  # fmt: skip
    (folder / "stats.yaml").write_text(str(flat))


class Plain(Dataset[Any]):
    """What one writes first: open, slice every field, move the components, stack; then resize and add noise."""

    def __init__(self, split: WellSplit, windows: np.ndarray, frames: int, finish: bool, keep: bool = False) -> None:
        self.split, self.windows, self.frames, self.finish = split, windows, frames, finish
        self.files = {h.path: h5py.File(h.path) for h in split.headers} if keep else {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, i: int) -> torch.Tensor:
        trajectory, start = self.windows[i].tolist()
        header, row = self.split.locate(trajectory)
        if self.files:
            clip = self.clip(self.files[header.path], row, start)
        else:
            with h5py.File(header.path) as file:
                clip = self.clip(file, row, start)
        if self.finish:
            clip = torch.nn.functional.interpolate(clip, (SIZE, SIZE), mode="bilinear")
            clip = clip + torch.randn_like(clip)
        return clip

    def clip(self, file: h5py.File, row: int, start: int) -> torch.Tensor:
        parts = []
        for field in self.split.header.fields:
            a = torch.from_numpy(file[field.path][row, start : start + self.frames])
            parts.append(a.reshape(*a.shape[:3], -1).movedim(-1, 0))
        return torch.cat(parts)


def floor(split: WellSplit, windows: np.ndarray) -> Row:
    """The windows' bytes by positional reads into one buffer: what no reader can beat without a cache of its own."""
    header = split.header
    places, handles = {}, {}
    for h in split.headers:
        with h5py.File(h.path) as file:
            nodes = [file[field.path] for field in h.fields]
            places[h.path] = [(node.id.get_offset(), math.prod(node.shape[2:]) * 4) for node in nodes]
        handles[h.path] = os.open(h.path, os.O_RDONLY)
    buffer = memoryview(bytearray(sum(frame for _, frame in places[header.path]) * FRAMES))

    def read() -> None:
        for trajectory, start in windows.tolist():
            h, row = split.locate(trajectory)
            filled = 0
            for begin, frame in places[h.path]:
                there = buffer[filled : filled + frame * FRAMES]
                os.preadv(handles[h.path], [there], begin + (row * h.frames + start) * frame)
                filled += frame * FRAMES

    return read


def raw(batches: DataLoader[Any], number: int) -> Row:
    """Batches as they go to the device."""
    return lambda: [None for _ in islice(batches, number)]


def ready(data: WellDataModule, batches: DataLoader[Any], number: int) -> Row:
    """Batches as they go into the encoder, prepared on this machine's accelerator, else on its CPU."""

    def run() -> None:
        for batch in islice(batches, number):
            moved = {k: v.to(DEVICE, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            data.prepare_batch(moved, augment=True)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run


def module(kind: type[WellDataModule], folder: Path, **options: Any) -> tuple[WellDataModule, DataLoader[Any]]:
    data = kind(folder.name, root=str(folder.parent), **options)
    data.setup("fit")
    return data, data.train_dataloader()


def seconds(rows: dict[str, Row]) -> dict[str, float]:
    """Return the best of some rounds, in which the rows take turns."""
    best = dict.fromkeys(rows, math.inf)
    for _ in range(ROUNDS):
        for name, row in rows.items():
            began = time.perf_counter()
            row()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def large(root: Path) -> None:
    """Windows of 92 MB."""
    fields = {"concentration": 0, "velocity": 1, "D": 2, "E": 2}
    make(root / "active_matter", ActiveMatter, fields, (1, 81, 256, 256), MANY)
    few = root / "few"
    few.mkdir()
    (few / "stats.yaml").hardlink_to(root / "active_matter" / "stats.yaml")
    for split in ("train", "valid", "test"):
        (few / "data" / split).mkdir(parents=True)
        for path in sorted((root / "active_matter" / "data" / split).iterdir())[:FEW]:
            (few / "data" / split / path.name).hardlink_to(path)
    split = WellSplit(few / "data" / "train")
    every = split.windows(FRAMES, 1)
    windows = every[np.random.default_rng(0).permutation(len(every))[:WINDOWS]]
    options = {"frames": FRAMES, "batch_size": BATCH}
    _, loader = module(ActiveMatter, few, **options)
    _, over_many = module(ActiveMatter, root / "active_matter", **options)
    resizing, loader_resizing = module(ActiveMatter, few, size=[SIZE, SIZE], noise=1.0, **options)
    cached, from_memory = module(ActiveMatter, few, cache="ram", size=[SIZE, SIZE], noise=1.0, **options)
    buffer = np.empty((len(split.header.channels), FRAMES, *split.header.shape), np.float32)

    def read() -> None:
        for trajectory, start in windows.tolist():
            split.read(trajectory, start, FRAMES, out=buffer)

    def plain(**how: Any) -> Row:
        return raw(DataLoader(Plain(split, windows, FRAMES, **how), batch_size=BATCH), WINDOWS)

    n = WINDOWS // BATCH
    rows = {
        "plain loader: h5py, resize and noise on the CPU": plain(finish=True),
        "plain loader without resize and noise": plain(finish=False),
        "the same, files kept open": plain(finish=False, keep=True),
    }
    try:
        from the_well.data import WellDataset
    except ImportError:
        print("the_well is not installed: no row for it")
    else:
        theirs = WellDataset(path=str(few), well_split_name="train", n_steps_input=FRAMES - 1, n_steps_output=1)
        chosen = np.random.default_rng(0).permutation(len(theirs))[:WINDOWS].tolist()
        rows["The Well's WellDataset"] = raw(DataLoader(Subset(theirs, chosen), batch_size=BATCH), WINDOWS)
    rows |= {
        "physrep, reading alone": read,
        "physrep, batch for the device": raw(loader, n),
        f"physrep, the same at random from {MANY} files": raw(over_many, n),
        f"physrep, prepared with resize and noise on {DEVICE}": ready(resizing, loader_resizing, n),
        "physrep from memory, batch for the device": raw(from_memory, n),
        f"physrep from memory, prepared on {DEVICE}": ready(cached, from_memory, n),
        "raw bytes": floor(split, windows),
    }
    rates = {name: WINDOWS / t for name, t in seconds(rows).items()}
    print(f"windows of {buffer.nbytes / 1e6:.1f} MB: {len(buffer)} channels, {FRAMES} frames, "
          f"{split.header.shape[0]} x {split.header.shape[1]}; batches of {BATCH}")  # fmt: skip
    print(f"{'':62s} windows/s   GB/s   x plain   % of raw")
    for name, rate in rates.items():
        of_plain, of_raw = rate / next(iter(rates.values())), 100 * rate / rates["raw bytes"]
        print(f"{name:62s} {rate:9.1f} {rate * buffer.nbytes / 1e9:6.2f} {of_plain:9.1f} {of_raw:10.0f}")


def small(root: Path) -> None:
    """The set that one starts with: where the time of a window is the time of Python."""
    folder = Path("datasets/shear_flow_small")
    if not folder.is_dir():
        folder = root / "small"
        make(folder, ShearFlow, {"tracer": 0, "pressure": 0, "velocity": 1}, (16, 25, 64, 64), 16)
    split, (frames, batch, n) = WellSplit(folder / "data" / "train"), (16, 32, 10)
    every = split.windows(frames, 1)
    windows = every[np.random.default_rng(0).permutation(len(every))[: batch * n]]
    rows = {"plain loader": raw(DataLoader(Plain(split, windows, frames, finish=False), batch_size=batch), n)}
    for where in (None, "ram"):
        for told, options in (("", {}), (", shifted and cut", {"shift": True, "cut": {"y": 64}})):
            data, batches = module(ShearFlow, folder, frames=frames, batch_size=batch, cache=where, **options)
            name = ("physrep from memory" if where else "physrep") + told
            rows |= {f"{name}: batch for the device": raw(batches, n),
                     f"{name}, prepared on {DEVICE}": ready(data, batches, n)}  # fmt: skip
    times = seconds(rows)
    print(f"\n{folder.name}: {len(split.header.channels)} channels, {frames} frames, "
          f"{split.header.shape[0]} x {split.header.shape[1]}; batches of {batch}")  # fmt: skip
    print(f"{'':62s}  ms/batch   x plain")
    for name, t in times.items():
        print(f"{name:62s} {1e3 * t / n:9.1f} {times['plain loader'] / t:9.1f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        large(Path(root))
        small(Path(root))


if __name__ == "__main__":
    main()
