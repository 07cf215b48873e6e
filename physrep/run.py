"""The run folder: what lies in it, how it is found again, how a frozen encoder is read from it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from omegaconf import DictConfig, OmegaConf

import physrep
from physrep.config import build, config_hash, diff, run_name
from physrep.errors import UserError

if TYPE_CHECKING:
    from physrep.frozen import Frozen

PACKAGES = ("torch", "lightning", "torchmetrics", "h5py", "numpy", "omegaconf", "timm")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def open_run(cfg: DictConfig) -> Path:
    """Return the config's run folder, made if absent. Raises UserError if it holds another config."""
    folder = Path(str(cfg.runs), str(cfg.experiment), run_name(cfg))
    place = folder / "config.yaml"
    if place.exists():
        held = read_config(folder)
        if config_hash(held) != config_hash(cfg):
            changes = "; ".join(diff(held, cfg))
            raise UserError(f"{folder}: holds a run of another config ({changes}); choose another name with run=NAME "
                            "or delete the folder")  # fmt: skip
    else:
        write_text(place, OmegaConf.to_yaml(cfg, resolve=True))
    return folder


def read_config(folder: Path) -> DictConfig:
    """Return the config that a run folder holds. Raises UserError if it holds none."""
    place = folder / "config.yaml"
    if not place.exists():
        raise UserError(f"{folder}: not a run folder (no config.yaml); name one that physrep.fit wrote, as run=FOLDER")
    cfg = OmegaConf.load(place)
    assert isinstance(cfg, DictConfig)
    return cfg


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


def record_provenance(folder: Path, fingerprint: str, step: int) -> None:
    """Note in provenance.json what this start runs on: code, packages, data, command; a resumed run adds a start."""
    place = folder / "provenance.json"
    known: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {"starts": []}
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
    }
    write_text(place, json.dumps({"fingerprint": fingerprint, "starts": [*known["starts"], start]}, indent=1))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint's plain contents, on the CPU. Raises UserError if it is missing or damaged."""
    import torch

    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; train the run first: python -m physrep.fit with its config")
    try:
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, BadZipFile, pickle.UnpicklingError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); delete it and run fit again") from error
    return contents


def load(run: str | Path) -> Frozen:
    """Return a run's frozen encoder with its normaliser: `load(run).encode(clip)` takes a user's own raw arrays."""
    from physrep.frozen import Frozen

    folder = Path(run)
    cfg = read_config(folder)
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    if "physrep" not in checkpoint:
        raise UserError(f"{folder}/checkpoints/last.ckpt: was not written by physrep.fit; train the run again")
    meta = checkpoint["physrep"]
    objective = build(cfg.objective, encoder=build(cfg.encoder, channels=len(meta["channels"])), seed=cfg.seed)
    wanted, held = objective.state_dict(), checkpoint["state_dict"]
    wrong = sorted(
        k for k in wanted.keys() | held.keys() if k not in wanted or k not in held or wanted[k].shape != held[k].shape
    )
    if wrong:
        raise UserError(f"{folder}/checkpoints/last.ckpt: is of another config than {folder}/config.yaml "
                        f"({len(wrong)} weights differ, first {wrong[0]}); train it again elsewhere")  # fmt: skip
    objective.load_state_dict(held, strict=True)
    return Frozen(objective, meta, step=int(checkpoint["global_step"]))


def digest(*parts: Any) -> str:
    """Return a short digest of plain values, for keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
