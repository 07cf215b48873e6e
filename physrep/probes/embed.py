"""Embeddings of a split, made once and kept under a key of everything that they depend on."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

import physrep
from physrep.data.module import WellDataModule
from physrep.errors import UserError
from physrep.files import whole_hdf5
from physrep.frozen import Frozen
from physrep.probes.baselines import statistics
from physrep.probes.features import Features, device
from physrep.progress import track
from physrep.run import digest

PARTS = "tokens", "theta", "trajectory"
HEADS = 8  # attentive probes split a token over this many heads


@dataclass(frozen=True)
class Source:
    """Where embeddings come from: a row's name, a function clip [B, C, T, H, W] -> tokens [B, N, D], its digest, the
    frozen run that it is of, if any, its layers that are to be embedded too, and the one that is meant, if any."""

    objective: str
    encoder: str
    encode: Callable[[Tensor], Tensor]
    digest: str
    dtype: torch.dtype = torch.float16
    model: Frozen | None = None
    layers: tuple[str, ...] = ()
    layer: str = ""

    def of(self, layer: str) -> str:
        """Return a digest of the source's output, or of one of its layers."""
        return f"{self.digest} layer {layer} {source_code('frozen.py')}" if layer else self.digest


def mean_source() -> Source:
    """The control that knows nothing: the same token for every clip, so that a probe can but predict the mean."""
    return Source("mean", "", lambda clip: torch.zeros(len(clip), 1, HEADS), "mean")


def statistics_source() -> Source:
    """The control of hand-made features, as one token, padded with zeros to a multiple of the probes' heads."""

    def encode(clip: Tensor) -> Tensor:
        x = statistics(clip)
        return torch.nn.functional.pad(x, (0, -x.shape[1] % HEADS)).unsqueeze(1)

    return Source(
        "statistics", "", encode, digest(inspect.getsource(sys.modules[statistics.__module__])), torch.float32
    )


def source_code(*things: Any) -> list[str]:
    """Return digests of the modules that instances' classes are written in, or of files by path in the package: of all
    in a folder."""
    here, found = Path(physrep.__file__).parent, []
    for thing in things:
        if isinstance(thing, str):
            found += [digest(p.read_text()) for p in sorted((here / thing).glob("*.py")) or [here / thing]]
        else:
            found.append(digest(inspect.getsource(sys.modules[type(thing).__module__])))
    return found


def precision(place: torch.device) -> torch.dtype:
    """What encoders compute in: bfloat16 on a GPU that has it, else float32.

    Few CPUs have it, those that do gain a factor of 1.2 to 1.7, and numbers would depend on which one it was.
    """
    fast = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def embed(source: Source, data: WellDataModule, split: str, cache: Path) -> Features:
    """Return a split's features on `device()`, from `cache` or else computed and kept there, whole or not at all.

    Every window is read once, `data.eval_step` frames apart, for all of the source's layers that the cache lacks.
    Raises UserError if an embedding is not finite.
    """
    windows = data.windows(split, data.eval_step)
    protocol = [data.split, data.frames, data.stride, data.eval_step, data.crop, data.size, data.normalise, data.scales]
    here = device()
    dtype = precision(here) if source.model else torch.float32

    reads = source_code("data/transforms.py", "data/windows.py", "data/reader.py")

    def place(layer: str) -> Path:
        key = digest(
            source.of(layer), data.fingerprint, split, len(windows), protocol, data.statistics, str(source.dtype),
            str(dtype), reads,
        )  # fmt: skip
        return cache / f"{source.objective}-{split}-{key}.h5"

    if (kept := _kept(place(source.layer))) is not None:
        return kept.to(here)
    wanted = {source.layer, *(layer for layer in source.layers if _kept(place(layer)) is None)}
    batches = data.loader(split, windows)
    seen: dict[str, list[Tensor]] = {layer: [] for layer in sorted(wanted)}
    about: list[tuple[Tensor, Tensor]] = []
    taps: AbstractContextManager[dict[str, Tensor]] = nullcontext({})
    if source.model:
        source.model.to(here)
        taps = source.model.tapped([*filter(None, seen)])
    with torch.inference_mode(), taps as tapped:
        for raw in track(batches, f"{source.objective}: embedding {split}", len(batches)):
            batch = data.prepare_batch(move_data_to_device(raw, here), augment=False)
            with torch.autocast(here.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
                found = {"": source.encode(batch["clip"])} | tapped
            for layer, parts in seen.items():
                if not torch.isfinite(found[layer]).all():
                    of = f"layer {layer} of " if layer else ""
                    raise UserError(f"{source.objective}: embeddings of {of}{data.folder}/data/{split} are not finite; "
                                    "train the run again")  # fmt: skip
                parts.append(found[layer].to(source.dtype))
            about.append((batch["theta"], batch["trajectory"]))
    theta, trajectory = (torch.cat(x) for x in zip(*about, strict=True))
    features = {layer: Features(torch.cat(seen.pop(layer)), theta, trajectory) for layer in sorted(wanted)}
    for layer, made in features.items():
        _keep(place(layer), made)
    return features[source.layer]


def _keep(place: Path, features: Features) -> None:
    with whole_hdf5(place) as file:
        for name in PARTS:
            file.create_dataset(name, data=np.asarray(getattr(features, name).cpu()))


def _kept(place: Path) -> Features | None:
    """Return what lies in the cache; nothing if it is absent or damaged."""
    if not place.exists():
        return None
    try:
        with h5py.File(place, "r") as file:
            return Features(**{k: torch.from_numpy(file[k][()]) for k in PARTS})
    except (OSError, KeyError):
        return None
