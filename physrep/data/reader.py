"""Windows of one HDF5 file's fields: positional reads of what lies contiguous in it, h5py for all else."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from physrep.errors import UserError

Array = NDArray[Any]
GAP = 1 << 15  # bytes: so many are read in vain as fast as what lies behind them is asked for by a call of its own
CHUNK = 1 << 20  # bytes: what has to be sorted in memory is read in parts that stay in the processor's cache
LONG_RUN = 1024  # cells: h5py reads shorter runs faster as whole frames, to be cut in memory


class Piece(NamedTuple):
    """Cells of an axis that lie side by side: the first, how many, and where the first goes."""

    first: int
    cells: int
    to: int

    @property
    def source(self) -> slice:
        """Which cells to take."""
        return slice(self.first, self.first + self.cells)

    @property
    def target(self) -> slice:
        """Where they go."""
        return slice(self.to, self.to + self.cells)


Axis = tuple[Piece, ...]
Grid = tuple[Axis, ...]


class Cut(NamedTuple):
    """What to take of a field; one that is the same for all trajectories or frames has no such axis."""

    row: int | None
    times: range | None
    grid: Grid


class Place(NamedTuple):
    """Where a field lies in its file."""

    node: Any
    shape: tuple[int, ...]
    begin: int | None
    """the offset of its first byte, if it is contiguous and float32 as in memory"""


class Plan(NamedTuple):
    """How to read a cut grid by position: in runs along one axis of [T, *S], with the axes behind it whole."""

    along: int
    step: tuple[int, ...]
    """bytes from one cell to the next along each axis of [T, *S]"""
    as_it_lies: bool
    """whether a run goes straight to its place; else it is sorted in memory"""


class Reader:
    """One open file; where a field lies is learned when it is first read."""

    def __init__(self, path: Path) -> None:
        """Open `path`; raises OSError where HDF5 does."""
        self.path = path
        self._file = h5py.File(path, "r", driver="sec2")
        self._handle = self._file.id.get_vfd_handle()
        self._places: dict[str, Place] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, name: str, cut: Cut, parts: Sequence[int], out: Array) -> None:
        """Fill `out` [C, T, *S], its channels contiguous float32, with the components `parts` of the field `name`.

        Raises UserError where the file is damaged or ends too early.
        """
        try:
            if name not in self._places:
                self._places[name] = _place(self._file[name])
            place = self._places[name]
            if place.begin is None:
                _by_h5py(place, cut, parts, out)
            else:
                self._by_position(place.shape, place.begin, cut, parts, out)
        except OSError as error:
            raise UserError(f"{self.path}: /{name} cannot be read; download or simulate it again") from error

    def _by_position(self, shape: tuple[int, ...], begin: int, cut: Cut, parts: Sequence[int], out: Array) -> None:
        row, times, grid = cut
        head = (row is not None) + (times is not None)
        inner = prod(shape[head + len(grid) :])
        along, step, as_it_lies = _plan(shape[head : head + len(grid)], inner, grid)
        if row is not None:
            begin += row * step[0] * (1 if times is None else shape[1])
        axes = (_frames(times), *grid)
        whole = shape[head + along : head + len(grid)]
        rows = max(CHUNK // step[along], 1)
        for lead in itertools.product(*(_singles(axis) for axis in axes[:along])):
            offset = begin + sum(cell * size for (cell, _), size in zip(lead, step, strict=False))
            index: tuple[Any, ...] = (slice(None), *(to for _, to in lead))
            there = out[index]
            for first, cells, to in axes[along]:
                if as_it_lies:
                    self._fill(there[0, to : to + cells], offset + first * step[along])
                    continue
                for done in range(0, cells, rows):
                    n = min(rows, cells - done)
                    block = np.empty((n, *whole, inner), np.float32)
                    self._fill(block, offset + (first + done) * step[along])
                    _sort(block, ((Piece(0, n, to + done),), *grid[along:]), parts, there)

    def _fill(self, out: Array, offset: int) -> None:
        """Read as many bytes as `out` has; raises OSError where the file ends before."""
        left = memoryview(out.data).cast("B")
        while left:
            n = os.preadv(self._handle, [left], offset)
            if not n:
                raise OSError("the file ends too early")
            left, offset = left[n:], offset + n


@lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], inner: int, grid: Grid) -> Plan:
    """Choose along which axis of a field [T, *shape, inner] to read, so that neither calls nor bytes are wasted."""
    step = [4 * inner]
    for n in reversed(shape):
        step.insert(0, n * step[0])
    along = len(shape)
    while along and (shape[along - 1] - sum(piece.cells for piece in grid[along - 1])) * step[along] < GAP:
        along -= 1
    uncut = all(axis == ((0, n, 0),) for axis, n in zip(grid[along:], shape[along:], strict=True))
    as_it_lies = uncut and inner == 1
    while not as_it_lies and along < len(shape) and step[along] > CHUNK:
        along += 1
    return Plan(along, tuple(step), as_it_lies)


def _place(node: Any) -> Place:
    as_in_memory = node.id.get_type() == h5py.h5t.NATIVE_FLOAT and node.id.get_storage_size() == node.nbytes
    return Place(node, node.shape, node.id.get_offset() if as_in_memory and node.chunks is None else None)


def _by_h5py(place: Place, cut: Cut, parts: Sequence[int], out: Array) -> None:
    row, times, grid = cut
    head: tuple[int | slice, ...] = () if row is None else (row,)
    head += () if times is None else (slice(times.start, times.stop),)
    shape, frames = place.shape[len(head) :], (Piece(0, out.shape[1], 0),)
    whole = _run(shape, grid) < LONG_RUN
    for cells in [()] if whole else itertools.product(*grid):
        values = place.node[head + tuple(piece.source for piece in cells)]
        values = values[None] if times is None else values[:: times.step]
        block = values.reshape(*values.shape[: 1 + len(grid)], -1)
        axes = grid if whole else tuple((Piece(0, piece.cells, piece.to),) for piece in cells)
        _sort(block, (frames, *axes), parts, out)


@lru_cache(maxsize=1024)
def pieces(n: int, low: int, high: int) -> Axis:
    """Return the cells low to high, modulo n, of an axis of n."""
    low, high = low % n, low % n + high - low
    if high <= n:
        return (Piece(low, high - low, 0),)
    return Piece(low, n - low, 0), Piece(0, high - n, n - low)


def _run(shape: Sequence[int], grid: Grid) -> int:
    """Return how many numbers of the cut lie side by side in the file, at the least."""
    run = prod(shape[len(grid) :])
    for n, axis in zip(reversed(shape[: len(grid)]), reversed(grid), strict=True):
        shortest = min(piece.cells for piece in axis)
        run *= shortest
        if shortest < n:
            break
    return run


def _sort(block: Array, axes: Grid, parts: Sequence[int], out: Array) -> None:
    """Copy the components `parts` of a block [*S, components], cut along its `axes`, to out [C, *S]."""
    for cells in itertools.product(*axes):
        values, there = block[tuple(piece.source for piece in cells)], tuple(piece.target for piece in cells)
        for part, channel in zip(parts, out, strict=True):
            channel[there] = values[..., part]


def _singles(axis: Axis) -> list[tuple[int, int]]:
    """Return an axis cell by cell: its number and where it goes."""
    return [(piece.first + i, piece.to + i) for piece in axis for i in range(piece.cells)]


def _frames(times: range | None) -> Axis:
    """Return time as an axis: in one piece where the frames lie side by side."""
    if times is None:
        return (Piece(0, 1, 0),)
    if times.step == 1:
        return (Piece(times.start, len(times), 0),)
    return tuple(Piece(t, 1, i) for i, t in enumerate(times))
