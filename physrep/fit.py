"""Pretrain an encoder with a self-supervised objective on a dataset of simulations.

The run's folder is a function of the config: the same command continues what was interrupted and leaves what is done.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from physrep import errors
from physrep.config import build, cli, config_hash
from physrep.errors import UserError

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule
    from physrep.objectives.base import Objective


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.fit`."""
    cfg = cli(argv, base="config", doc=__doc__)
    if cfg.dry_run:
        dry_run(cfg)
    else:
        fit(cfg)


def assemble(cfg: DictConfig) -> tuple[WellDataModule, Objective]:
    """Build data module and objective of a config, and try the encoder on the clips' sizes; weights follow the seed."""
    import torch

    from physrep.run import build_objective

    data: WellDataModule = build(cfg.data, seed=cfg.seed)
    torch.manual_seed(cfg.seed)
    objective = build_objective(cfg, data.meta())
    objective.config, data.clips = config_hash(cfg), objective.clips
    data.setup("fit")
    if len(data.dims) != 2:
        raise UserError(f"data.crop: clips of {data.name} have the axes {', '.join(data.dims)} and encoders take two; "
                        f"cut one to a plane, such as data.crop.{data.dims[-1]}=[0,1]")  # fmt: skip
    cut = [data.cut.get(dim, n) for dim, n in zip(data.dims, data.grid(), strict=True)]
    with torch.inference_mode():
        for grid in {tuple(data.size or data.grid()), tuple(data.size or cut)}:
            objective.encode(torch.zeros(1, len(data.channels), data.frames, *grid))
    return data, objective


def fit(cfg: DictConfig) -> Path:
    """Train a config to its end, from where it was left, and return its run folder; a mistake leaves no folder."""
    import logging
    import warnings

    from physrep.files import write_text
    from physrep.run import last_checkpoint, record_provenance, run_folder

    folder = run_folder(cfg)
    summary, last = folder / "summary.json", folder / "checkpoints" / "last.ckpt"
    if summary.exists():
        print(f"{folder}: done already")
        return folder
    data, objective = assemble(cfg)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    step = int(last_checkpoint(folder, cfg)["global_step"]) if last.exists() else 0
    trainer = make_trainer(cfg, folder, data, step)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    record_provenance(folder, data.fingerprint, step)
    print(f"{folder}: {f'resumes at step {step}' if step else 'starts'}, {describe(objective)}", file=sys.stderr)
    began = time.monotonic()
    if objective.trains:
        trainer.fit(objective, datamodule=data, ckpt_path=str(last) if step else None, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.save_checkpoint(last)
    if not objective.trains or trainer.global_step % trainer.val_check_batch:
        trainer.validate(objective, datamodule=data, verbose=False)
    if not objective.trains:
        trainer.save_checkpoint(last)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if math.isfinite(v)}
    write_text(summary, json.dumps({"step": trainer.global_step, "metrics": metrics}, indent=1))
    shown = ", ".join(f"{k} {v:.3g}" for k, v in metrics.items() if k in {"valid/loss", "probe/mse", "rank/effective"})
    print(f"{folder}: {trainer.global_step} steps in {time.monotonic() - began:.0f} s; {shown}")
    return folder


def make_trainer(cfg: DictConfig, folder: Path, data: WellDataModule, step: int) -> Any:
    """Build Lightning's trainer with the run's loggers, monitors and checkpoints; nothing is written yet."""
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger

    from physrep.callbacks.online_probe import OnlineProbe
    from physrep.callbacks.progress import progress
    from physrep.callbacks.record import AtomicCheckpoints, MetricsCsv

    checkpoints = ModelCheckpoint(
        folder / "checkpoints",
        filename="last",
        every_n_train_steps=cfg.checkpoint_every,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    trainer = build(
        cfg.trainer,
        callbacks=[checkpoints, OnlineProbe(list(data.scales), data.frames), LearningRateMonitor(), progress()],
        logger=[
            TensorBoardLogger(folder, name="", version="tb", purge_step=step),
            MetricsCsv(folder / "metrics.csv", step),
        ],
        plugins=[AtomicCheckpoints()],
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    if trainer.world_size > 1:
        raise UserError("trainer.devices: more than one process is not supported yet; set trainer.devices=1")
    return trainer


def describe(objective: Objective) -> str:
    """Say how many weights an objective and its encoder have."""
    encoder, whole = (sum(w.numel() for w in m.parameters()) for m in (objective.encoder, objective))
    return f"{encoder:,} encoder weights, {whole:,} in all"


def dry_run(cfg: DictConfig) -> None:
    """Build everything, compute a gradient twice and print shapes, memory and the time that the run will take."""
    import resource

    data, objective = assemble(cfg)
    batch = data.prepare_batch(next(iter(data.train_dataloader())), augment=True)
    print(f"clip {list(batch['clip'].shape)} (B, C, T, H, W): {', '.join(data.channels)}")
    print(f"theta {list(batch['theta'].shape)}: {', '.join(f'{k} ({v})' for k, v in data.scales.items())}")
    clip = batch["clip"][:1, :, : data.frames]
    print(f"{describe(objective)}; tokens {list(objective.encode(clip).shape)[1:]} (N, D) a clip")
    for last in (False, True):
        start = time.monotonic()
        terms = objective.losses(batch)
        if objective.trains:
            terms["loss"].backward()
        seconds = time.monotonic() - start
        if last:
            print("losses " + ", ".join(f"{k} {float(v.detach()):.4g}" for k, v in terms.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    steps = cfg.trainer.max_steps
    windows = len(data.windows("train"))
    print(f"{seconds:.3g} s a step on the CPU, peak memory {peak:.2g} GiB")
    print(f"{windows} training windows, {steps} steps of {data.batch_size} are {steps * data.batch_size / windows:.3g} "
          f"epochs and about {steps * seconds / 60:.3g} minutes")  # fmt: skip


if __name__ == "__main__":
    errors.run(main)
