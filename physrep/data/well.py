"""The Well's HDF5 format: its only reader and writer (facts: https://polymathic-ai.org/the_well/data_format)."""

from __future__ import annotations

import copy
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from physrep.data.reader import Cut, Reader, pieces
from physrep.errors import UserError, did_you_mean
from physrep.files import whole_hdf5

Array = NDArray[Any]
Crop = Mapping[str, Sequence[int]]
OPEN_FILES = 64


@dataclass(frozen=True)
class Field:
    """One field of a file: a scalar (rank 0), vector (1) or tensor (2) over the grid."""

    name: str
    rank: int
    sample_varying: bool = True
    time_varying: bool = True

    def channels(self, dims: Sequence[str]) -> list[str]:
        """Return the names of the flattened components, in storage order: velocity -> velocity_x, velocity_y."""
        if self.rank == 0:
            return [self.name]
        return [f"{self.name}_{''.join(index)}" for index in itertools.product(dims, repeat=self.rank)]

    @property
    def path(self) -> str:
        """The dataset's place in the file."""
        return f"t{self.rank}_fields/{self.name}"


@dataclass(frozen=True)
class Header:
    """What one file says of itself; orders come from its `field_names` attributes, never from key order."""

    path: Path
    dataset: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    trajectories: int
    frames: int
    fields: tuple[Field, ...]
    scalars: dict[str, Array] = field(compare=False)
    boundaries: dict[str, str] = field(compare=False)
    bytes: int = field(compare=False, default=0)

    @cached_property
    def channels(self) -> list[str]:
        """The names of the channels [C]."""
        return [name for f in self.fields for name in f.channels(self.dims)]

    @cached_property
    def components(self) -> list[tuple[str, tuple[str, ...]]]:
        """What each channel is: its field's name and its component's axes, () for a scalar, ("x", "y") for D_xy."""
        return [(f.name, axes) for f in self.fields for axes in itertools.product(self.dims, repeat=f.rank)]


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; a file that is missing, damaged or of another format is a UserError."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "not a readable HDF5 file"
        raise UserError(f"{path}: {reason}; download or simulate it again") from error
    with file:
        yield file


def read_header(path: Path) -> Header:
    """Read and check one file's description, without reading a field. Raises UserError naming what is missing."""
    return _read_header(path, version(path))


def version(path: Path) -> tuple[str | int, ...]:
    """Return what changes with a file: what was read of it holds as long as this is the same. UserError without one."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; download or simulate it again") from error
    return str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@lru_cache(maxsize=10_000)  # probes of many runs read the same files
def _read_header(path: Path, version: tuple[str | int, ...]) -> Header:
    with opened(path) as file:
        for group in ("dimensions", "scalars", "t0_fields", "t1_fields", "t2_fields"):
            if group not in file:
                raise UserError(f"{path}: group /{group} is missing; the file is not in The Well's format")
        dims = tuple(_names(path, file["dimensions"], "spatial_dims"))
        fields = tuple(_read_field(path, file, rank, name) for rank in range(3)
                       for name in _names(path, file[f"t{rank}_fields"], "field_names"))  # fmt: skip
        if not fields:
            raise UserError(f"{path}: lists no field in t0_fields, t1_fields or t2_fields; simulate or download again")
        trajectories = int(_attribute(path, file, "n_trajectories"))
        time = _dataset(path, file, "dimensions/time")
        frames = time.shape[-1]
        shape = tuple(_dataset(path, file, f"dimensions/{dim}").shape[-1] for dim in dims)
        for f in fields:
            want = (trajectories,) * f.sample_varying + (frames,) * f.time_varying + shape + (len(dims),) * f.rank
            if file[f.path].shape != want:
                raise UserError(f"{path}: /{f.path} has shape {file[f.path].shape}, but {want} follows from the "
                                "rest of the file; write it again")  # fmt: skip
        return Header(
            path=path,
            dataset=str(_attribute(path, file, "dataset_name")),
            dims=dims,
            shape=shape,
            trajectories=trajectories,
            frames=frames,
            fields=fields,
            scalars={
                n: _read_scalar(path, file, n, trajectories) for n in _names(path, file["scalars"], "field_names")
            },
            boundaries=_read_boundaries(file),
            bytes=path.stat().st_size,
        )


def _attribute(path: Path, node: Any, name: str) -> Any:
    if name not in node.attrs:
        raise UserError(f"{path}: attribute {name} of {node.name} is missing; the file is not in The Well's format")
    return node.attrs[name]


def _names(path: Path, node: Any, attribute: str) -> list[str]:
    return [n.decode() if isinstance(n, bytes) else str(n) for n in _attribute(path, node, attribute)]


def _dataset(path: Path, file: Any, name: str) -> Any:
    if name not in file:
        raise UserError(f"{path}: dataset /{name} is missing; the file is not in The Well's format")
    return file[name]


def _read_field(path: Path, file: Any, rank: int, name: str) -> Field:
    node = _dataset(path, file, f"t{rank}_fields/{name}")
    return Field(name, rank, *(bool(_attribute(path, node, flag)) for flag in ("sample_varying", "time_varying")))


def _read_scalar(path: Path, file: Any, name: str, trajectories: int) -> Array:
    node = _dataset(path, file, f"scalars/{name}")
    value = np.asarray(node[()], dtype=np.float64)
    if node.attrs.get("time_varying", False):
        value = value[..., 0]
    return np.broadcast_to(value, (trajectories,))


def _read_boundaries(file: Any) -> dict[str, str]:
    kinds = {}
    for node in file.get("boundary_conditions", {}).values():
        associated = [str(d) for d in node.attrs.get("associated_dims", [])]
        if len(associated) == 1:
            kinds[associated[0]] = str(node.attrs.get("bc_type", "OPEN")).upper()
    return kinds


class WellSplit:
    """The files of one split as one sequence of trajectories, read window by window.

    Files are opened in the process that reads, at most `OPEN_FILES` at once, so an instance may travel to workers.
    """

    def __init__(self, folder: Path, like: Header | None = None) -> None:
        """Index `folder`'s files; each must agree with `like` (default: the first) in fields, scalars and shape."""
        self.folder = folder
        paths = sorted(p for p in folder.glob("*") if p.suffix in {".hdf5", ".h5"} and not p.name.startswith("."))
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; set data.root, download the dataset or simulate it")
        if not paths:
            raise UserError(f"{folder}: holds no .hdf5 file; download the dataset or simulate it")
        self.headers = [read_header(path) for path in paths]
        for header in self.headers:
            _check_alike(header, like or self.headers[0])
        self.places = np.array([(i, row) for i, h in enumerate(self.headers) for row in range(h.trajectories)])
        self._handles: OrderedDict[Path, Reader] = OrderedDict()
        self._pid = os.getpid()

    @property
    def header(self) -> Header:
        """The first file's header, which speaks for all."""
        return self.headers[0]

    @property
    def trajectories(self) -> int:
        """How many trajectories the split holds."""
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": OrderedDict()}

    def locate(self, trajectory: int) -> tuple[Header, int]:
        """Return the file that holds a trajectory and its place in that file."""
        file, row = self.places[trajectory].tolist()
        return self.headers[file], row

    def with_trajectories(self, others: Sequence[WellSplit], chosen: Array) -> WellSplit:
        """Return a split of the `chosen` of all trajectories of this one and then the others, numbered anew."""
        every = [self, *others]
        found = copy.copy(self)
        found.headers = [h for split in every for h in split.headers]
        begins = np.cumsum([0] + [len(split.headers) for split in every])
        places = [split.places + np.array([begin, 0]) for split, begin in zip(every, begins, strict=False)]
        found.places = np.concatenate(places)[chosen]
        found._handles = OrderedDict()
        return found

    def theta(self, names: Sequence[str]) -> Array:
        """Return the named simulation parameters of every trajectory, [trajectories, P] in physical units."""
        for name in names:
            if name not in self.header.scalars:
                hint = did_you_mean(name, self.header.scalars)
                raise UserError(
                    f"{self.header.path}: /scalars holds no {name!r}, which the dataset names as a target{hint}"
                )
        values = [(self.headers[file].scalars[n][row]) for file, row in self.places for n in names]
        return np.array(values, np.float64).reshape(self.trajectories, len(names))

    def windows(self, span: int, step: int) -> Array:
        """Return every (trajectory, first frame) with `span` frames after it, `step` frames apart, [M, 2] int64."""
        out = [np.empty((0, 2), np.int64)]
        for trajectory, file in enumerate(self.places[:, 0]):
            header = self.headers[file]
            if header.frames < span:
                raise UserError(f"{header.path}: has {header.frames} frames, a window needs {span}; "
                                "lower data.frames or data.stride")  # fmt: skip
            starts = np.arange(0, header.frames - span + 1, step)
            out.append(np.stack([np.full_like(starts, trajectory), starts], 1))
        return np.concatenate(out)

    def read(
        self,
        trajectory: int,
        start: int,
        frames: int,
        stride: int = 1,
        crop: Crop | None = None,
        channels: Sequence[int] | None = None,
        out: Array | None = None,
    ) -> Array:
        """Return one window of one trajectory, [C, T, S1..SD] float32; `crop` ({dim: [from, to]}) cuts at the read.

        A crop that ends beyond its axis goes on at the axis's beginning, as on a periodic domain. `channels` picks
        some by number, rising; the other fields are not read. `out` is filled if given; its channels are contiguous.
        """
        header, row = self.locate(trajectory)
        where = (crop or {}).get
        grid = tuple(pieces(n, *where(dim, (0, n))) for dim, n in zip(header.dims, header.shape, strict=True))
        chosen = range(len(header.channels)) if channels is None else channels
        if out is None:
            out = np.empty((len(chosen), frames, *(axis[-1].target.stop for axis in grid)), np.float32)
        reader, first, at = self._open(header.path), 0, 0
        for f in header.fields:
            width = len(header.dims) ** f.rank
            parts = [c - first for c in chosen if first <= c < first + width]
            first += width
            if parts:
                times = range(start, start + (frames - 1) * stride + 1, stride) if f.time_varying else None
                here = out[at : at + len(parts)]
                reader.read(f.path, Cut(row if f.sample_varying else None, times, grid), parts, here)
                if not f.time_varying:
                    here[:, 1:] = here[:, :1]
            at += len(parts)
        return out

    def _open(self, path: Path) -> Reader:
        if self._pid != os.getpid():
            self._handles, self._pid = OrderedDict(), os.getpid()
        if path not in self._handles:
            if len(self._handles) >= OPEN_FILES:
                self._handles.popitem(last=False)[1].close()
            try:
                self._handles[path] = Reader(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be opened ({error}); download or simulate it again") from error
        self._handles.move_to_end(path)
        return self._handles[path]


def _check_alike(header: Header, first: Header) -> None:
    def said(h: Header) -> dict[str, Any]:
        return {
            "dataset_name": h.dataset,
            "fields": [(f.name, f.rank) for f in h.fields],
            "scalars": list(h.scalars),
            "grid": dict(zip(h.dims, h.shape, strict=True)),
        }

    for (what, here), there in zip(said(header).items(), said(first).values(), strict=True):
        if here != there:
            raise UserError(f"{header.path}: its {what} {here} disagree with {there} of {first.path}; "
                            "keep files of one dataset, written in one order, in one folder")  # fmt: skip


def write(
    path: Path,
    dataset: str,
    fields: Mapping[str, Array],
    scalars: Mapping[str, float],
    coords: Mapping[str, Array],
    times: Array,
    boundaries: Mapping[str, str],
    constants: Mapping[str, float] | None = None,
) -> None:
    """Write one file of The Well's format: whole, or not at all (temporary name, then rename).

    fields: {name: [N, T, S1..SD] or [..., D] or [..., D, D]}, kept in this order within a rank; scalars: the simulation
    parameters that vary over files; constants: further scalars; boundaries: {dim: PERIODIC, WALL or OPEN}.
    """
    dims = list(coords)
    trajectories = next(iter(fields.values())).shape[0]
    text = h5py.string_dtype()

    def describe(node: Any, **attributes: Any) -> Any:
        for name, value in attributes.items():
            is_text = isinstance(value, list) and all(isinstance(v, str) for v in value)
            node.attrs[name] = np.array(value, dtype=text) if is_text else value
        return node

    with whole_hdf5(path) as file:
        describe(file, dataset_name=dataset, grid_type="cartesian", n_spatial_dims=len(dims),
                 n_trajectories=trajectories, simulation_parameters=list(scalars), **scalars)  # fmt: skip
        group = describe(file.create_group("dimensions"), spatial_dims=dims)
        for name, values in {"time": times, **coords}.items():
            node = group.create_dataset(name, data=np.asarray(values, np.float32))
            describe(node, sample_varying=False, time_varying=name == "time")
        for dim, kind in boundaries.items():
            node = file.create_group(f"boundary_conditions/{dim}_{kind.lower()}")
            describe(node, associated_dims=[dim], associated_fields=[], bc_type=kind.upper(),
                     sample_varying=False, time_varying=False)  # fmt: skip
            mask = np.zeros(len(coords[dim]), bool)
            mask[[0, -1]] = True  # without this The Well's own reader takes the axis for open
            node.create_dataset("mask", data=mask)
            node.create_dataset("values", data=np.zeros(2, np.float32))
        every = {**(constants or {}), **scalars}
        group = describe(file.create_group("scalars"), field_names=list(every))
        for name, value in every.items():
            node = group.create_dataset(name, data=np.float32(value))
            describe(node, sample_varying=False, time_varying=False)
        for rank in range(3):
            here = {n: a for n, a in fields.items() if a.ndim - 2 - len(dims) == rank}
            group = describe(file.create_group(f"t{rank}_fields"), field_names=list(here))
            for name, values in here.items():
                half = values.dtype == np.float16
                node = group.create_dataset(name, data=np.asarray(values, np.float16 if half else np.float32))
                describe(node, dim_varying=np.ones(len(dims), bool), sample_varying=True, time_varying=True)
                if rank == 2:
                    describe(node, symmetric=True, antisymmetric=False)
