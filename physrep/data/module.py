"""The data module: windows of a dataset in The Well's format, made ready for an objective on the device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from physrep.data import transforms
from physrep.data.sampler import Key, WindowSampler, step_seed
from physrep.data.stats import channel_statistics, fingerprint, scaled, theta_statistics
from physrep.data.well import Array, Crop, Header, WellSplit
from physrep.errors import UserError, did_you_mean

SPLITS = ("train", "valid", "test")
Clips = Literal["one", "frame", "next", "pair"]


class Batch(TypedDict):
    """What a loader yields, after the data module's work on the device."""

    clip: Tensor
    """[B, C, T, H, W] standardised fields; T holds the frames that the objective asked for"""
    theta: Tensor
    """[B, P] standardised physical parameters"""
    trajectory: Tensor
    """[B] int64, the unit of independence"""


class WindowDataset(Dataset[dict[str, Any]]):
    """Reads the windows that a sampler's keys name; holds no state, so workers and resumed runs agree.

    `crop` is {dim: [from, to]}. `loose` ({dim: cells}) is cut at a place that is a function of (seed, draw), anew for
    every window of a sample; along the axes in `periodic` it wraps around.
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
    ) -> None:
        self.split, self.theta, self.frames, self.stride = split, theta.astype(np.float32), frames, stride
        self.crop, self.loose, self.periodic, self.seed, self.channels = crop, loose, periodic, seed, channels
        thin = [2 + i for i, dim in enumerate(split.header.dims) if is_plane(crop, dim)]
        self.thin = tuple(thin)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        draw, trajectory, *starts = key
        rng = np.random.default_rng(step_seed(self.seed, draw))
        read = partial(self.split.read, trajectory, frames=self.frames, stride=self.stride, channels=self.channels)
        parts = [read(t, crop=self._place(rng)).squeeze(self.thin) for t in starts]
        clip = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if not np.isfinite(clip).all():
            path = self.split.locate(trajectory)[0].path
            raise UserError(f"{path}: NaN or infinity in the window that starts at frame {starts[0]}; "
                            "remove the file or write it again")  # fmt: skip
        return {"clip": clip, "theta": self.theta[trajectory], "trajectory": trajectory, "draw": draw}

    def _place(self, rng: np.random.Generator) -> Crop:
        grid = dict(zip(self.split.header.dims, self.split.header.shape, strict=True))
        place = dict(self.crop)
        for dim, size in self.loose.items():
            start = int(rng.integers(grid[dim] if dim in self.periodic else grid[dim] - size + 1))
            place[dim] = (start, start + size)
        return place


def is_plane(crop: Mapping[str, Sequence[int]], dim: str) -> bool:
    """Say whether a crop leaves one cell of an axis, which is then dropped: a plane of a three-dimensional field."""
    return dim in crop and crop[dim][1] - crop[dim][0] == 1


class WellDataModule(LightningDataModule):
    """Windows of any dataset in The Well's format; a subclass says what is known of a system's physics.

    `targets` maps the physical parameters to their scale (log10 or linear); `paper` takes the published scales.
    `channels` names channels or whole fields to keep; `independent` leaves out those that follow from the others.
    Sizes are in frames and cells of the file; `crop` is {dim: [from, to]}, for all splits, and drops an axis that it
    cuts to one cell. For training alone: `shift` moves clips along periodic axes, `symmetries` mirrors and transposes
    them as the equations allow, `cut` takes {dim: cells} at a random place, `dropout` is the share of channels that are
    set to their mean, clip by clip, `noise` is in units of the standardised fields.
    """

    targets: ClassVar[dict[str, str]] = {}
    paper_targets: ClassVar[dict[str, str]] = {}
    """the scales of arXiv 2603.13227, where it has the dataset: what `targets=paper` takes"""
    start: ClassVar[tuple[str, ...]] = ()
    """the fields whose first frame tells one initial condition from another; () for all"""
    redundant: ClassVar[tuple[str, ...]] = ()
    """channels that follow from the others or hardly vary: what `channels=independent` leaves out"""
    mirrors: ClassVar[tuple[str, ...]] = ()
    """axes whose reflection, with the signs of vectors and tensors, turns a solution into a solution"""
    transposes: ClassVar[bool] = False
    """whether exchanging the two axes does so, too"""
    shared_starts: ClassVar[bool] = False
    """whether the published files start from the same states in several files or splits"""

    def __init__(
        self,
        name: str,
        root: str | None = None,
        targets: dict[str, str] | Literal["paper"] | None = None,
        channels: list[str] | Literal["independent"] | None = None,
        frames: int = 16,
        stride: int = 1,
        step: int = 1,
        eval_step: int | None = None,
        crop: dict[str, list[int]] | None = None,
        size: list[int] | None = None,
        shift: bool = False,
        symmetries: bool = False,
        cut: dict[str, int] | None = None,
        dropout: float = 0.0,
        noise: float = 0.0,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"frames": frames, "stride": stride, "step": step, "batch_size": batch_size}
        counts |= {"eval_step": 1 if eval_step is None else eval_step, "size": min(size or [1])}
        for key, value in counts.items():
            if value < 1:
                raise UserError(f"data.{key}={value}: must be 1 or more")
        for key, amount in {"num_workers": num_workers, "noise": noise}.items():
            if amount < 0:
                raise UserError(f"data.{key}={amount}: must be 0 or more")
        for dim, ends in (crop or {}).items():
            if len(ends) != 2:
                raise UserError(f"data.crop.{dim}: {list(ends)} is no range of cells; give two numbers, [from, to]")
        base = Path(root or os.environ.get("THE_WELL_DATA_DIR") or "datasets")
        self.folder = base / name
        self.name: str = name
        if targets == "paper" and not self.paper_targets:
            raise UserError("data.targets=paper: arXiv 2603.13227 has not this dataset; give scales by name")
        named = self.paper_targets if targets == "paper" else self.targets if targets is None else targets
        self.scales = dict(named)
        self.kept = channels
        self.symmetries = symmetries
        self.frames, self.stride, self.step, self.eval_step = frames, stride, step, eval_step or frames
        self.crop: dict[str, Sequence[int]] = dict(crop or {})
        self.size, self.shift, self.cut, self.noise = size, shift, cut or {}, noise
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        if not 0 <= dropout < 1:
            raise UserError(f"data.dropout={dropout}: is a share of the channels; give 0 or more and less than 1")
        self.dropout = dropout
        self.clips: Clips = "one"

    @cached_property
    def splits(self) -> dict[str, WellSplit]:
        """The three splits' files, checked against the first training file."""
        if not (self.folder / "data").is_dir():
            near = sorted(p.parent.name for p in self.folder.parent.glob("*/data"))
            hint = did_you_mean(self.name, near)
            raise UserError(f"{self.folder}: no such dataset; set data.root, download or simulate it{hint}")
        train = WellSplit(self.folder / "data" / "train")
        splits = {"train": train} | {s: WellSplit(self.folder / "data" / s, train.header) for s in SPLITS[1:]}
        for name, scale in self.scales.items():
            if scale not in {"log10", "linear"}:
                raise UserError(f"data.targets.{name}: no such scale {scale!r}; choose log10 or linear")
        grid = dict(zip(train.header.dims, train.header.shape, strict=True))
        axes = [dim for dim in grid if not is_plane(self.crop, dim)]
        if self.size and len(self.size) != len(axes):
            axes_named = ", ".join(axes)
            raise UserError(f"data.size: {self.size} is not of the clips' axes {axes_named}; give {len(axes)} numbers")
        for dim, size in self.cut.items():
            if dim not in grid or not 0 < size <= grid[dim]:
                raise UserError(f"data.cut.{dim}: {size} cells do not fit the grid {grid} of {self.folder}")
            if dim in self.crop:
                raise UserError(f"data.cut.{dim}: data.crop cuts {dim} already; give one of them")
        for dim, (low, high) in self.crop.items():
            if dim not in grid:
                raise UserError(f"data.crop.{dim}: {self.folder} has no such axis{did_you_mean(dim, grid)}")
            if not 0 <= low < high <= grid[dim]:
                raise UserError(f"data.crop.{dim}: [{low}, {high}] lies outside the grid {grid} of {self.folder}")
        return splits

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the data itself, the same on every machine."""
        return fingerprint(self.splits.values())

    @property
    def channels(self) -> list[str]:
        """The channels' names, [C]."""
        return [self.header.channels[i] for i in self.chosen]

    @cached_property
    def chosen(self) -> list[int]:
        """The numbers of the channels that are kept, in the files' order."""
        names, fields = self.header.channels, [field for field, _ in self.header.components]
        if self.kept is None:
            return list(range(len(names)))
        if self.kept == "independent":
            if not self.redundant:
                raise UserError(f"data.channels=independent: {type(self).__name__} names none that follow from others; "
                                "give names, or leave it out for all")  # fmt: skip
            return [i for i, name in enumerate(names) if name not in self.redundant]
        if not self.kept:
            raise UserError("data.channels: is empty; name some, or leave it out for all")
        for name in self.kept:
            if name not in {*names, *fields}:
                raise UserError(f"data.channels: {self.folder} has no {name!r}{did_you_mean(name, [*names, *fields])}")
        return [i for i, name in enumerate(names) if name in self.kept or fields[i] in self.kept]

    @cached_property
    def statistics(self) -> dict[str, list[float]]:
        """Mean and std of the channels [C] and of the scaled parameters [P], over the training split."""
        every = channel_statistics(self.splits["train"], self.name, self.folder / "stats.yaml", self.fingerprint)
        mean, std = (values[self.chosen] for values in every)
        theta = self.theta("train")
        if not np.isfinite(theta).all():
            raise UserError(f"{self.folder}: a parameter declared log10 is not positive; set its scale in data.targets")
        theta_mean, theta_std = theta_statistics(theta)
        pairs = {"mean": mean, "std": std, "theta_mean": theta_mean, "theta_std": theta_std}
        return {k: [float(x) for x in v] for k, v in pairs.items()}

    def theta(self, split: str) -> Array:
        """Return the target parameters on their declared scales, [trajectories, P]."""
        return scaled(self.splits[split].theta(list(self.scales)), list(self.scales.values()))

    def windows(self, split: str, step: int | None = None) -> Array:
        """Return (trajectory, first frame) of the split's windows of one clip, [M, 2]."""
        span = (self._frames_read() - 1) * self.stride + 1
        windows = self.splits[split].windows(span, step or self.step)
        if not len(windows):
            raise UserError(f"{self.folder}/data/{split}: holds no window; simulate or download more")
        return windows

    def setup(self, stage: str) -> None:
        """Open the files and read the statistics before the first batch; `stage` makes no difference."""
        if self.trainer:
            self.clips = getattr(self.trainer.lightning_module, "clips", self.clips)
        self._mean, self._std = (torch.tensor(self.statistics[k]) for k in ("mean", "std"))
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        self._sampler = WindowSampler(self.windows("train"), self.seed, self.clips == "pair", True, rank, world)
        if len(self._sampler) < self.batch_size:
            n = len(self._sampler)
            raise UserError(
                f"data.batch_size: {self.batch_size} is more than the {n} windows of {self.folder}; lower it"
            )

    def _dataset(self, split: str, augment: bool) -> WindowDataset:
        mean, std = (np.array(self.statistics[k]) for k in ("theta_mean", "theta_std"))
        theta, loose = (self.theta(split) - mean) / std, {}
        if augment:
            grid = dict(zip(self.header.dims, self.header.shape, strict=True))
            loose = {dim: grid[dim] for dim in self.periodic if self.shift and dim not in self.crop} | self.cut
        frames, files = self._frames_read(), self.splits[split]
        kept = None if self.kept is None or (augment and self.symmetries) else self.chosen
        return WindowDataset(files, theta, frames, self.stride, self.crop, loose, self.periodic, self.seed, kept)

    def _frames_read(self) -> int:
        """How many frames lie one after the other in a window: what `clips` asks for."""
        return {"one": self.frames, "pair": self.frames, "frame": self.frames + 1, "next": 2 * self.frames}[self.clips]

    def loader(self, split: str, windows: Array | None = None) -> DataLoader[dict[str, Any]]:
        """Return a loader over a split in the order of its files, every window once, `eval_step` frames apart."""
        windows = self.windows(split, self.eval_step) if windows is None else windows
        sampler = WindowSampler(windows, self.seed, self.clips == "pair", shuffle=False)
        return self._loader(self._dataset(split, augment=False), sampler, drop_last=False)

    def _loader(self, dataset: WindowDataset, sampler: WindowSampler, drop_last: bool) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the training loader: shuffled windows, an order that is a function of (seed, epoch)."""
        return self._loader(self._dataset("train", augment=True), self._sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the validation loader, in file order."""
        return self.loader("valid")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the test loader, in file order."""
        return self.loader("test")

    def prepare_batch(self, raw: Mapping[str, Any], augment: bool) -> Batch:
        """Turn a loader's raw batch into a Batch on its device; `augment` changes it at random, by (seed, draw)."""
        clip = raw["clip"]
        generator = torch.Generator().manual_seed(step_seed(self.seed, int(raw["draw"][0])))
        if augment and self.symmetries:
            clip = transforms.mirror(clip, self._signs, generator)
            clip = transforms.transpose(clip, self._exchange, generator) if self._exchange else clip
            clip = clip if self.kept is None else clip[:, self.chosen]
        clip = transforms.normalise(clip, self._mean.to(clip.device), self._std.to(clip.device))
        if self.size:
            clip = transforms.resize(clip, self.size)
        if augment and self.dropout:
            clip = transforms.drop_channels(clip, self.dropout, generator)
        if augment and self.noise:
            clip = transforms.add_noise(clip, self.noise, generator)
        return {"clip": clip, "theta": raw["theta"], "trajectory": raw["trajectory"]}

    @property
    def periodic(self) -> list[str]:
        """The names of the periodic grid axes."""
        return [dim for dim in self.header.dims if self.header.boundaries.get(dim) == "PERIODIC"]

    @property
    def header(self) -> Header:
        """The header of the first training file, which speaks for all."""
        return self.splits["train"].header

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise, resize and, in training, add noise where the batch now lies."""
        return self.prepare_batch(batch, augment=bool(self.trainer and self.trainer.training))

    def state_dict(self) -> dict[str, Any]:
        """Say how many batches the run has seen, so that a resumed run enters the epoch where it stopped."""
        assert self.trainer is not None
        return {"batches": self.trainer.fit_loop.epoch_loop.batch_progress.total.processed}  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Enter the epoch after the batches already seen; Lightning calls it after `setup`, before it iterates."""
        self._sampler.epoch, done = divmod(state_dict["batches"], len(self._sampler) // self.batch_size)
        self._sampler.skip = done * self.batch_size

    @cached_property
    def _signs(self) -> list[list[int]]:
        """What mirroring each axis multiplies each of the files' channels by; [] for an axis without mirror."""
        parts = [axes for _, axes in self.header.components]
        return [[(-1) ** axes.count(dim) for axes in parts] if dim in self.mirrors else [] for dim in self.dims]

    @cached_property
    def _exchange(self) -> list[int]:
        """Which of the files' channels takes each one's place when the axes are exchanged; [] for no symmetry."""
        grid = [self.cut.get(dim, n) for dim, n in zip(self.dims, self.grid(), strict=True)]
        if not self.transposes or len(set(grid)) > 1:
            return []
        other, parts = dict(zip(self.dims, reversed(self.dims), strict=True)), self.header.components
        return [parts.index((field, tuple(other[axis] for axis in axes))) for field, axes in parts]

    @property
    def dims(self) -> list[str]:
        """The names of a clip's grid axes."""
        return [dim for dim in self.header.dims if not is_plane(self.crop, dim)]

    def grid(self) -> list[int]:
        """Return the cells [H, W] (or [X, Y, Z]) of an evaluated clip before it is resized."""
        grid = dict(zip(self.header.dims, self.header.shape, strict=True))
        return [high - low for low, high in (self.crop.get(dim, (0, grid[dim])) for dim in self.dims)]

    def meta(self) -> dict[str, Any]:
        """Return what a frozen encoder must know of its data, as plain values."""
        uncut = [dim in self.periodic and dim not in {*self.crop, *self.cut} for dim in self.dims]
        about = {"channels": self.channels, "frames": self.frames, "grid": self.grid(), "size": self.size}
        about["periodic"] = uncut
        return about | {"targets": self.scales, "fingerprint": self.fingerprint} | self.statistics
