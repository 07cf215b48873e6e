"""The run folder: what lies in it, how it is found again, how a frozen encoder is read from it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from omegaconf import DictConfig, OmegaConf

import physrep
from physrep.config import build, check, config_hash, diff, run_name
from physrep.errors import UserError, leads
from physrep.files import lock, read_yaml, write_text
from physrep.signatures import prefixes_of, signature_of

if TYPE_CHECKING:
    from physrep.encoders.base import Encoder
    from physrep.frozen import Frozen
    from physrep.objectives.base import Objective

PACKAGES = ("torch", "lightning", "torchmetrics", "h5py", "numpy", "omegaconf", "timm")


class UnreadableError(UserError):
    """A checkpoint is missing or damaged."""


def run_folder(cfg: DictConfig) -> Path:
    """Return where a config's run lies; makes nothing. Raises UserError if a run of another config lies there."""
    folder = Path(str(cfg.runs), str(cfg.experiment), run_name(cfg))
    if (folder / "config.yaml").exists():
        held = read_config(folder, cfg.allow)
        if config_hash(held) != config_hash(cfg):
            changes = "; ".join(diff(held, cfg))
            raise UserError(f"{folder}: holds a run of another config ({changes}); choose another name with run=NAME "
                            "or delete the folder")  # fmt: skip
    return folder


def read_config(folder: Path, allow: Sequence[str] = ()) -> DictConfig:
    """Return the config that a run folder holds, checked; what it may import is for the caller to `allow`, not for it.

    Raises UserError if the folder holds no config, or one that does not fit the code.
    """
    place = folder / "config.yaml"
    if not place.exists():
        raise UserError(f"{folder}: not a run folder (no config.yaml); name one that physrep.fit wrote, as run=FOLDER")
    remedy = "delete the run folder and train again"
    cfg = OmegaConf.create(read_yaml(place, remedy) | {"allow": list(allow)})
    missing = [key for key in ("data", "encoder", "objective", "seed", "choices") if key not in cfg]
    if missing:
        raise UserError(f"{place}: has no key {missing[0]}; {remedy}")
    check(cfg)
    return cfg


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made if need be, for this process alone. Raises UserError if another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / ".lock"
    with place.open("w") as file:
        if not lock(file, inherited=False):
            raise UserError(f"{folder}: is being trained by another process; wait for it, or choose another name with "
                            "run=NAME")  # fmt: skip
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def commit() -> str:
    """Return the commit of the code in use, with + if it has local changes; "" outside a checkout."""
    return (_git("rev-parse", "HEAD")[:12] + ("+" if _git("status", "--porcelain", "-uno") else "")).strip()


def _git(*words: str) -> str:
    here = Path(physrep.__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def record_provenance(folder: Path, fingerprint: str, step: int, scale: Mapping[str, Any]) -> None:
    """Note in provenance.json what this start runs on: code, packages, data, command and `scale` (ranks, windows, ...).

    A resumed run adds a start. Raises UserError if it began on other data.
    """
    place = folder / "provenance.json"
    try:
        known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {"starts": []}
    except ValueError as error:
        raise UserError(f"{place}: not JSON; delete it") from error
    if known["starts"] and known["fingerprint"] != fingerprint:
        raise UserError(f"{folder}: began on other data (fingerprint {known['fingerprint']}, now {fingerprint}); "
                        "choose another name with run=NAME or delete the folder")  # fmt: skip
    difference = _git("diff", "HEAD")
    if difference:
        write_text(folder / "diff.patch", difference + "\n")
    start = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": " ".join(sys.argv),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **scale,
    }
    write_text(place, json.dumps({"fingerprint": fingerprint, "starts": [*known["starts"], start]}, indent=1))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's plain contents, on the CPU. Raises UnreadableError if it is missing or damaged."""
    import torch

    if not path.exists():
        raise UnreadableError(f"{path}: no such checkpoint; train the run first: python -m physrep.fit with its config")
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UnreadableError(f"{path}: not a readable checkpoint ({reason}); delete it and run fit again") from error
    return contents


def own_checkpoint(place: Path, cfg: DictConfig) -> dict[str, Any]:
    """Return a run's checkpoint. Raises UserError if it is missing, damaged, foreign or of another config."""
    folder, checkpoint = place.parent.parent, read_checkpoint(place)
    if "physrep" not in checkpoint:
        raise UserError(f"{place}: was not written by physrep.fit; delete it and train the run again")
    if checkpoint["physrep"]["config"] != config_hash(cfg):
        raise UserError(
            f"{place}: is of another config than {folder}/config.yaml; train the run in a folder of its own"
        )
    return checkpoint


def resume_point(folder: Path, cfg: DictConfig) -> tuple[Path | None, int]:
    """Return the checkpoint that a run goes on from, and its step; (None, 0) for a new run.

    It is last.ckpt, or previous.ckpt where that is missing or damaged, which is said. Raises UserError if both are.
    """
    last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    place = last if last.exists() or not previous.exists() else previous
    if not place.exists():
        return None, 0
    try:
        return place, int(own_checkpoint(place, cfg)["global_step"])
    except UnreadableError:
        if place == previous or not previous.exists():
            raise
        step = int(own_checkpoint(previous, cfg)["global_step"])
        if leads():
            print(f"physrep: {last}: is damaged; goes on from {previous.name}, step {step}", file=sys.stderr)
        return previous, step


def build_encoder(cfg: DictConfig, meta: Mapping[str, Any]) -> Encoder:
    """Build the encoder of a config for data that `meta` describes; it is told what its signature asks for."""
    encoder: Encoder = build(cfg.encoder, **_told(cfg, "encoder", meta))
    return encoder


def build_objective(cfg: DictConfig, meta: Mapping[str, Any]) -> Objective:
    """Build the objective of a config with its encoder; it is told what its signature asks for."""
    encoder = build_encoder(cfg, meta)
    objective: Objective = build(cfg.objective, encoder=encoder, seed=cfg.seed, **_told(cfg, "objective", meta))
    return objective


def _told(cfg: DictConfig, group: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a target may ask to be told of its data, by the names in its signature."""
    facts = {
        "channels": len(meta["channels"]),
        "frames": meta["frames"],
        "parameters": len(meta["targets"]),
        "periodic": list(meta["periodic"]),
    }
    signature = signature_of(str(cfg[group]["_target_"]), prefixes_of(cfg.get("allow")), f"{group}._target_")
    return {name: value for name, value in facts.items() if name in signature}


def load(run: str | Path, allow: Sequence[str] = (), checkpoint: str = "last") -> Frozen:
    """Return a run's frozen encoder with its normaliser: `load(run).encode(clip)` takes a user's own raw arrays.

    Packages beside physrep's own that the run's config may import are named in `allow`; `checkpoint` is last, previous,
    best (by the online probe, which has seen valid's parameters) or step=N. Raises UserError where the run is broken.
    """
    from physrep.frozen import Frozen

    folder = Path(run)
    cfg = read_config(folder, allow)
    held = own_checkpoint(folder / "checkpoints" / f"{checkpoint}.ckpt", cfg)
    meta = held["physrep"]
    if "weights" in cfg.encoder:
        cfg.encoder.weights = None  # what the run began with, which may be gone by now
    objective = build_objective(cfg, meta)
    objective.load_state_dict(held["state_dict"], strict=True)
    return Frozen(objective, meta, step=int(held["global_step"]))


def digest(*parts: Any) -> str:
    """Return a short digest of plain values, for keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
