"""Windows per second of our reader, of plain h5py and of the raw file, over the same windows of the same files.

`make bench` or `python -m benchmarks.reader [DATASET_FOLDER]`; without a folder it writes a temporary dataset of
active_matter's geometry (256 x 256, 11 channels, 81 frames, one trajectory a file: 0.23 GB each).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from physrep.data.well import WellSplit, write

FRAMES, FILES, WINDOWS, REPEATS = 32, 2, 24, 3


def make(folder: Path) -> None:
    rng = np.random.default_rng(0)
    coords = {"x": np.arange(256.0), "y": np.arange(256.0)}
    kinds = {"x": "PERIODIC", "y": "PERIODIC"}
    for i in range(FILES):
        fields = {n: rng.random((1, 81, 256, 256, *(2,) * r), np.float32)
                  for n, r in (("concentration", 0), ("velocity", 1), ("D", 2), ("E", 2))}  # fmt: skip
        write(folder / f"{i}.hdf5", "active_matter", fields, {"zeta": float(i)}, coords, np.arange(81.0), kinds)


def plain(split: WellSplit, trajectory: int, start: int) -> np.ndarray:
    """A straightforward dataset's read: open, slice every field, move components, stack."""
    header, row = split.locate(trajectory)
    with h5py.File(header.path) as f:
        parts = []
        for field in header.fields:
            a = f[field.path][row, start : start + FRAMES]
            a = a.reshape(*a.shape[:3], -1)
            parts += [a[..., i] for i in range(a.shape[-1])]
        return np.stack(parts)


def raw(split: WellSplit, trajectory: int, start: int, buffer: bytearray) -> None:
    """The window's bytes by positional reads from contiguous files: the floor."""
    header, row = split.locate(trajectory)
    with h5py.File(header.path) as f:
        extents = [(f[x.path].id.get_offset(), f[x.path][0, 0].nbytes) for x in header.fields]
    handle = os.open(header.path, os.O_RDONLY)
    for offset, frame in extents:
        os.preadv(handle, [memoryview(buffer)[: frame * FRAMES]], offset + (row * header.frames + start) * frame)
    os.close(handle)


def rate(read: Callable[[int, int], object], windows: np.ndarray) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        for trajectory, start in windows.tolist():
            read(trajectory, start)
        best = min(best, time.perf_counter() - began)
    return len(windows) / best


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "data" / "train"
        if len(sys.argv) == 1:
            make(folder)
        split = WellSplit(folder)
        every = split.windows(FRAMES, 1)
        windows = every[np.random.default_rng(0).permutation(len(every))[:WINDOWS]]
        size = np.prod([len(split.header.channels), FRAMES, *split.header.shape]) * 4 / 1e6
        buffer = bytearray(int(size * 1e6))
        rows = {
            "plain h5py": rate(lambda i, t: plain(split, i, t), windows),
            "physrep": rate(lambda i, t: split.read(i, t, FRAMES), windows),
            "raw bytes": rate(lambda i, t: raw(split, i, t, buffer), windows),
        }
    print(f"windows of {size:.1f} MB, one process, page cache warm")
    for name, r in rows.items():
        print(f"{name:12s} {r:8.1f} windows/s  {r * size / 1e3:6.2f} GB/s  {r / rows['plain h5py']:5.2f} x plain")


if __name__ == "__main__":
    main()
