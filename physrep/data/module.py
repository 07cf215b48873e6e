"""The data module: windows of a dataset in The Well's format, made ready for an objective on the device."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from physrep.data import transforms
from physrep.data.cache import Kept
from physrep.data.sampler import WindowSampler, step_seed
from physrep.data.splits import SPLITS, labelled, share_out
from physrep.data.starts import starts
from physrep.data.stats import channel_statistics, fingerprint, scaled, theta_statistics
from physrep.data.well import Array, Header, WellSplit
from physrep.data.windows import WindowDataset, as_it_is, is_plane
from physrep.data.workers import shield
from physrep.errors import UserError, did_you_mean

Clips = Literal["one", "frame", "next", "pair"]


class Batch(TypedDict):
    """What a loader yields, after the data module's work on the device."""

    clip: Tensor
    """[B, C, T, H, W] standardised fields; T holds the frames that the objective asked for"""
    theta: Tensor
    """[B, P] standardised physical parameters"""
    trajectory: Tensor
    """[B] int64, its number in the split"""


class WellDataModule(LightningDataModule):
    """Windows of any dataset in The Well's format; a subclass says what is known of a system's physics.

    `targets` maps the physical parameters to their scale (log10 or linear); `paper` takes the published scales.
    `channels` names channels or whole fields to keep; `independent` leaves out those that follow from the others.
    Sizes are in frames and cells of the file; `crop` is {dim: [from, to]}, for all splits, and drops an axis that it
    cuts to one cell. For training alone: `shift` moves clips along periodic axes, `symmetries` mirrors and transposes
    them as the equations allow, `cut` takes {dim: cells} at a random place, `dropout` is the share of channels that are
    set to their mean, clip by clip, `noise` is in units of the standardised fields. `cache` holds the training set, as
    cropped and standardised, once in half precision: in memory (`ram`) or on `disk` for all processes of a host, or on
    each one's `device`. Evaluation always reads the files, so that its numbers do not depend on it.
    Fields are standardised by the training split; `normalise=clip` does so again for each clip by itself, which takes
    its amplitude away (what is to be predicted keeps the scale of the clip before it).
    `split` is The Well's own (`well`), or shares all trajectories out anew: `holdout` keeps whole combinations of
    parameters for valid and test, `extrapolate` extreme values for test, and neither lets two splits start from one
    state. `labels` is the share of train's and valid's trajectories whose parameters are told to whom they are told.
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
        cache: Literal["ram", "disk", "device"] | None = None,
        normalise: Literal["train", "clip"] = "train",
        split: Literal["well", "holdout", "extrapolate"] = "well",
        labels: float = 1.0,
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
        if not 0 < labels <= 1:
            raise UserError(f"data.labels={labels}: is a share of the trajectories; give more than 0 and at most 1")
        self.dropout, self.cache, self.normalise = dropout, cache, normalise
        self.split, self.labels = split, labels
        self.clips: Clips = "one"
        self.told = False  # whether the objective reads the parameters, so that its windows are those labelled
        self.sealed = False  # whether test may not be looked at yet

    @cached_property
    def splits(self) -> dict[str, WellSplit]:
        """The three splits' trajectories, as `split` shares them out."""
        return self._found if self.split == "well" else self._share_out(*self._found.values())

    @cached_property
    def _found(self) -> dict[str, WellSplit]:
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

    def _share_out(self, train: WellSplit, *others: WellSplit) -> dict[str, WellSplit]:
        """Share out all trajectories as `split` says, and say how many each split gets."""
        every = [train, *others]
        theta = np.concatenate([split.theta(list(train.header.scalars)) for split in every])
        states = [state for split in every for state in starts(split, self.start)]
        found = share_out(self.split, theta, states, str(self.folder))
        said = ", ".join(f"{len(numbers)} {name}" for name, numbers in zip(SPLITS, found, strict=True))
        print(f"data.split={self.split}: {said} of {len(theta)} trajectories", file=sys.stderr)
        return {n: train.with_trajectories(others, chosen) for n, chosen in zip(SPLITS, found, strict=True)}

    def recurring(self, split: str) -> list[int]:
        """Return for each of a split's trajectories the first one that starts from the same state."""
        first: dict[str, int] = {}
        return [first.setdefault(state, i) for i, state in enumerate(starts(self.splits[split], self.start))]

    def files(self, split: str) -> WellSplit:
        """Return a split's files. Raises RuntimeError for test's while it is sealed, until all is chosen."""
        if self.sealed and split == "test":
            raise RuntimeError(f"{self.folder}: test is looked at before everything is chosen")
        return self.splits[split]

    @cached_property
    def shared(self) -> int:
        """How many of test's trajectories start from a state that one of train starts from: none but in `well`.

        Raises UserError for data that should have none, and for a trajectory that train or valid has.
        """
        if self.split != "well":
            return 0  # as they are shared out
        names = list(self.header.scalars)
        train, valid, test = (
            [*zip(starts(split, self.start), map(tuple, split.theta(names)), strict=True)]
            for split in self.splits.values()
        )
        seen, states = {*train, *valid}, {state for state, _ in train}
        found, same = sum(state in states for state, _ in test), sum(each in seen for each in test)
        published = self.shared_starts and not (self.folder / "simulation.yaml").exists()
        if same or (found and not published):
            what = f"{found} start from states that train has"
            if same:
                what = f"{same} trajectories of test are in train or valid"
            raise UserError(f"{self.folder}: {what}; download or simulate it again, or take data.split=holdout")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the data itself, the same on every machine."""
        return fingerprint(self._found.values())

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
        mean, std = (values[self.chosen] for values in self._fields)
        theta = self.theta("train")
        if not np.isfinite(theta).all():
            raise UserError(f"{self.folder}: a parameter declared log10 is not positive; set its scale in data.targets")
        theta_mean, theta_std = theta_statistics(theta)
        pairs = {"mean": mean, "std": std, "theta_mean": theta_mean, "theta_std": theta_std}
        return {k: [float(x) for x in v] for k, v in pairs.items()}

    @cached_property
    def _fields(self) -> tuple[Array, Array]:
        """Mean and std of all of the files' channels."""
        train, file, mark = self.splits["train"], "stats.yaml", self.fingerprint
        if self.split != "well":
            file, mark = f"stats_{self.split}.yaml", f"{mark} {hashlib.sha256(train.places.tobytes()).hexdigest()[:16]}"
        return channel_statistics(train, self.name, self.folder / file, mark)

    def theta(self, split: str) -> Array:
        """Return the target parameters on their declared scales, [trajectories, P]."""
        return scaled(self.files(split).theta(list(self.scales)), list(self.scales.values()))

    def labelled(self, split: str) -> Array:
        """Return the numbers of the split's trajectories whose parameters may be told: `labels` of train's and valid's.

        They are spread evenly over the combinations of parameters, a larger share holds a smaller one, and seeds differ
        in them: which trajectories have labels is part of what varies between seeds.
        """
        files = self.files(split)
        share = self.labels if split != "test" else 1.0
        return labelled(files.theta(list(files.header.scalars)), share, self.seed)

    def windows(self, split: str, step: int | None = None) -> Array:
        """Return (trajectory, first frame) of the split's windows of one clip, [M, 2]."""
        span = (self._frames_read() - 1) * self.stride + 1
        windows = self.files(split).windows(span, step or self.step)
        if self.told and self.labels < 1:
            windows = windows[np.isin(windows[:, 0], self.labelled(split))]
        if not len(windows):
            raise UserError(f"{self.folder}/data/{split}: holds no window; simulate or download more")
        return windows

    def setup(self, stage: str) -> None:
        """Open the files and read the statistics before the first batch; `stage` makes no difference."""
        if self.trainer:
            module = self.trainer.lightning_module
            self.clips, self.told = getattr(module, "clips", self.clips), getattr(module, "told", self.told)
        self._mean, self._std = (torch.tensor(self.statistics[k]) for k in ("mean", "std"))
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        step = self.batch_size * (self.trainer.accumulate_grad_batches if self.trainer else 1)
        windows = self.windows("train")
        self._sampler = WindowSampler(windows, self.seed, self.clips == "pair", True, rank, world, step)
        if not len(self._sampler):
            raise UserError(f"data.batch_size: a step of {world * step} windows ({world} ranks) is more than the "
                            f"{len(windows)} of {self.folder}; lower it")  # fmt: skip

    def _dataset(self, split: str, augment: bool) -> WindowDataset:
        mean, std = (np.array(self.statistics[k]) for k in ("theta_mean", "theta_std"))
        theta, loose = (self.theta(split) - mean) / std, {}
        if augment:
            grid = dict(zip(self.header.dims, self.header.shape, strict=True))
            loose = {dim: grid[dim] for dim in self.periodic if self.shift and dim not in self.crop} | self.cut
        frames, files = self._frames_read(), self.files(split)
        channels = self._read(augment)
        kept = self._kept if augment and self.cache else None
        return WindowDataset(
            files, theta, frames, self.stride, self.crop, loose, self.periodic, self.seed, channels, kept
        )

    def _read(self, augment: bool) -> list[int]:
        """Which of the files' channels are read: a symmetry may need those that are not kept."""
        return list(range(len(self.header.channels))) if augment and self.symmetries else self.chosen

    @cached_property
    def _kept(self) -> Kept:
        """The training set in half precision, which the first use fills."""
        channels = self._read(augment=True)
        mean, std = (torch.tensor(values[channels], dtype=torch.float32) for values in self._fields)
        kept = Kept(self.splits["train"], self.crop, channels, mean, std, self.fingerprint)
        if self.cache == "ram":
            kept.hold_in_memory(self.name)
        elif self.cache == "disk":
            kept.hold_on_disk(self.folder / "cache")
        else:
            kept.hold_on(self.trainer.strategy.root_device if self.trainer else torch.device("cpu"))
        return kept

    def _frames_read(self) -> int:
        """How many frames lie one after the other in a window: what `clips` asks for."""
        return {"one": self.frames, "pair": self.frames, "frame": self.frames + 1, "next": 2 * self.frames}[self.clips]

    def loader(self, split: str, windows: Array | None = None) -> DataLoader[dict[str, Any]]:
        """Return a loader over a split in the order of its files, every window once, `eval_step` frames apart."""
        windows = self.windows(split, self.eval_step) if windows is None else windows
        sampler = WindowSampler(windows, self.seed, self.clips == "pair", shuffle=False)
        return self._loader(self._dataset(split, augment=False), sampler=sampler, batch_size=self.batch_size)

    def _loader(self, dataset: WindowDataset, **order: Any) -> DataLoader[dict[str, Any]]:
        workers = 0 if dataset.kept and dataset.kept.device else self.num_workers
        return DataLoader(
            dataset,
            **order,
            collate_fn=as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=shield,
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the training loader: shuffled windows, an order that is a function of (seed, epoch)."""
        self._training = self._dataset("train", augment=True)
        return self._loader(self._training, sampler=self._sampler, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this rank's share of the validation batches: every window once, in an order that the seed fixes.

        Shuffled, so that a batch holds many trajectories, and of near-equal sizes: what is computed within a batch does
        not depend on the number of ranks. All have equally many batches, because sharded weights are gathered for each:
        some of the last `repeats`, which must not count.
        """
        windows = self.windows("valid", self.eval_step)
        keys = list(WindowSampler(windows, self.seed, self.clips == "pair", shuffle=True))
        self._batches, (rank, world) = -(-len(keys) // self.batch_size), (self._sampler.rank, self._sampler.world)
        ends = [len(keys) * i // self._batches for i in range(self._batches + 1)]
        parts = [keys[a:b] for a, b in pairwise(ends)]
        mine = [parts[i % self._batches] for i in range(rank, -(-self._batches // world) * world, world)]
        return self._loader(self._dataset("valid", augment=False), batch_sampler=mine)

    def repeats(self, batch_idx: int) -> bool:
        """Say whether this rank's validation batch is another's, too."""
        return batch_idx * self._sampler.world + self._sampler.rank >= self._batches

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the test loader, in file order."""
        return self.loader("test")

    def prepare_batch(self, raw: Mapping[str, Any], augment: bool) -> Batch:
        """Turn a loader's raw batch into a Batch on its device; `augment` changes it at random, by (seed, draw)."""
        clip = raw["clip"] if "clip" in raw else self._training.fetch(raw["samples"])
        standardised = clip.dtype == torch.float16  # as the cache holds it
        drawn = augment and bool(self.symmetries or self.dropout or self.noise)
        generator = torch.Generator(clip.device).manual_seed(step_seed(self.seed, raw["draw"])) if drawn else None
        alone = bool(generator and (self.symmetries or self.dropout)) and self.clips == "pair"
        clip = transforms.apart(clip) if alone else clip  # each clip of a pair has draws of its own
        if generator and self.symmetries:
            if standardised:
                mean, std = (torch.tensor(values, dtype=torch.float32, device=clip.device) for values in self._fields)
                clip, standardised = transforms.denormalise(clip, mean, std), False
            clip = transforms.mirror(clip, self._signs, generator)
            clip = transforms.transpose(clip, self._exchange, generator) if self._exchange else clip
            clip = clip if self.kept is None else clip[:, self.chosen]
        mean, std = (values.to(clip.device) for values in (self._mean, self._std))
        clip = clip.float() if standardised else transforms.normalise(clip, mean, std)
        if self.size:
            clip = transforms.resize(clip, self.size)
        if self.normalise == "clip":
            parts = clip.split(self.frames, 2) if self.clips == "pair" else [clip]
            clip = torch.cat([transforms.by_clip(part, self.frames) for part in parts], 2)
        if generator and self.dropout:
            clip = transforms.drop_channels(clip, self.dropout, generator)
        if generator and self.noise:
            clip = transforms.add_noise(clip, self.noise, generator)
        clip = transforms.together(clip) if alone else clip
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
        """Say which batch comes next, for a resumed run to enter the epoch where it stopped, and who shares a step."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, batch = divmod(done, int(self.trainer.num_training_batches)) if done else (0, 0)
        return {"epoch": epoch, "batch": batch, "ranks": self._sampler.world, "step": self._sampler.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Enter the epoch after the batches already seen; Lightning calls it after `setup`, before it iterates.

        Raises UserError if a step is shared out otherwise than it was.
        """
        was, now = f"{state_dict['ranks']} x {state_dict['step']}", f"{self._sampler.world} x {self._sampler.step}"
        if was != now:
            raise UserError(f"trainer.devices: the run began with steps of {was} windows (ranks x windows a rank), now "
                            f"{now}; start it on as many devices, or a new one with run=NAME")  # fmt: skip
        self._sampler.epoch, self._sampler.skip = state_dict["epoch"], state_dict["batch"] * self.batch_size

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
        about |= {"periodic": uncut, "normalise": self.normalise}
        return about | {"targets": self.scales, "fingerprint": self.fingerprint} | self.statistics
