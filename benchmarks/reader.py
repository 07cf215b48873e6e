"""Windows per second of our reader, of plain h5py and of the raw files, over the same windows of contiguous files.

`make bench` or `python -m benchmarks.reader [DATASET_FOLDER]`; without a folder it writes a temporary dataset of
active_matter's geometry (256 x 256, 11 channels, 81 frames, one trajectory a file: 0.23 GB each).
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from physrep.data.well import Header, WellSplit, write

FRAMES, FILES, WINDOWS, REPEATS = 32, 2, 24, 3


def make(folder: Path) -> None:
    rng = np.random.default_rng(0)
    coords = {"x": np.arange(256.0), "y": np.arange(256.0)}
    kinds = {"x": "PERIODIC", "y": "PERIODIC"}
    for i in range(FILES):
        fields = {n: rng.random((1, 81, 256, 256, *(2,) * r), np.float32)
                  for n, r in (("concentration", 0), ("velocity", 1), ("D", 2), ("E", 2))}  # fmt: skip
        write(folder / f"{i}.hdf5", "active_matter", fields, {"zeta": float(i)}, coords, np.arange(81.0), kinds)


def reopening(split: WellSplit, trajectory: int, start: int) -> np.ndarray:
    """A straightforward dataset's read: open, slice every field, move components, stack."""
    with h5py.File(split.locate(trajectory)[0].path) as file:
        return plain(split, file, trajectory, start)


def plain(split: WellSplit, file: h5py.File, trajectory: int, start: int) -> np.ndarray:
    """The same from a file that is open already."""
    header, row = split.locate(trajectory)
    parts = []
    for field in header.fields:
        a = file[field.path][row, start : start + FRAMES]
        a = a.reshape(*a.shape[:3], -1)
        parts += [a[..., i] for i in range(a.shape[-1])]
    return np.stack(parts)


def extents(file: h5py.File, header: Header) -> list[tuple[int, int]]:
    """Where each field begins in the file and how many bytes a frame of it has."""
    nodes = [file[field.path] for field in header.fields]
    return [(node.id.get_offset(), math.prod(node.shape[2:]) * node.dtype.itemsize) for node in nodes]


def raw(handle: int, places: list[tuple[int, int]], first: int, buffer: memoryview) -> None:
    """The window's bytes by positional reads, `first` being its frame counted over the file: the floor."""
    filled = 0
    for offset, frame in places:
        os.preadv(handle, [buffer[filled : filled + frame * FRAMES]], offset + first * frame)
        filled += frame * FRAMES


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
        buffer = memoryview(bytearray(int(size * 1e6)))
        files = {header.path: h5py.File(header.path) for header in split.headers}
        places = {header.path: extents(files[header.path], header) for header in split.headers}
        handles = {path: os.open(path, os.O_RDONLY) for path in files}

        def floor(trajectory: int, start: int) -> None:
            header, row = split.locate(trajectory)
            raw(handles[header.path], places[header.path], row * header.frames + start, buffer)

        rows = {
            "h5py, reopening": rate(lambda i, t: reopening(split, i, t), windows),
            "h5py, kept open": rate(lambda i, t: plain(split, files[split.locate(i)[0].path], i, t), windows),
            "physrep": rate(lambda i, t: split.read(i, t, FRAMES), windows),
            "raw bytes": rate(floor, windows),
        }
    print(f"windows of {size:.1f} MB, one process, page cache warm")
    for name, r in rows.items():
        print(
            f"{name:15s} {r:8.1f} windows/s  {r * size / 1e3:6.2f} GB/s  {r / rows['h5py, reopening']:5.2f} x the first"
        )


if __name__ == "__main__":
    main()
