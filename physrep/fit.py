"""Pretrain an encoder with a self-supervised objective on a dataset of simulations.

The run's folder is a function of the config: the same command continues what was interrupted and leaves what is done.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from physrep import errors, memory
from physrep.config import build, cli, config_hash
from physrep.errors import UserError

if TYPE_CHECKING:
    from physrep.callbacks.checkpoints import Checkpoints
    from physrep.callbacks.signals import Signals
    from physrep.data.module import WellDataModule
    from physrep.objectives.base import Objective


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.fit`."""
    cfg = cli(argv, base="config", doc=__doc__)
    check_values(cfg)
    if cfg.dry_run:
        dry_run(cfg)
    else:
        fit(cfg)


def check_values(cfg: DictConfig) -> None:
    """Raise UserError for numbers of the run and its trainer that make no sense."""
    least = {"trainer.max_steps": 1, "trainer.accumulate_grad_batches": 1, "checkpoint_every": 1, "keep": 0}
    for key, low in least.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and value < low:
            raise UserError(f"{key}={value}: must be {low} or more")
    if cfg.run is not None and Path(str(cfg.run)).name != str(cfg.run):
        raise UserError(f"run={cfg.run}: is a name, not a path; runs=FOLDER and experiment=NAME say where it lies")


def assemble(cfg: DictConfig) -> tuple[WellDataModule, Objective]:
    """Build data module and objective of a config, and try the encoder on the clips' sizes; weights follow the seed."""
    import torch

    from physrep.run import build_objective

    data: WellDataModule = build(cfg.data, seed=cfg.seed)
    torch.manual_seed(cfg.seed)
    objective = build_objective(cfg, data.meta())
    objective.config, data.clips, data.told = config_hash(cfg), objective.clips, objective.told
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
    """Train a config to its end, from where it was left, and return its run folder; a mistake leaves no folder.

    Every rank calls it, and the first writes. A signal that asks to stop ends the process: see docs/training.md.
    """
    from physrep.callbacks.signals import Signals
    from physrep.run import run_folder

    memory.keep()
    with Signals() as signals:
        folder = run_folder(cfg)
        if not (folder / "summary.json").exists():
            conduct(cfg, folder, signals)
        elif errors.leads():
            print(f"{folder}: done already")
    return folder


def conduct(cfg: DictConfig, folder: Path, signals: Signals) -> None:
    """Assemble a run, train it and sum it up, in its folder."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from physrep.callbacks.checkpoints import Checkpoints
    from physrep.files import write_text
    from physrep.run import claim, record_provenance, resume_point

    data, objective = assemble(cfg)
    hush()
    start, step = resume_point(folder, cfg)
    checkpoints = Checkpoints(folder / "checkpoints", cfg.checkpoint_every, cfg.keep, signals)
    trainer = make_trainer(cfg, folder, data, step, checkpoints)
    data.trainer = trainer
    data.setup("fit")  # again, as one of its ranks
    if cfg.compile:
        compile_blocks(objective, trainer.strategy.root_device)
    if trainer.local_rank and isinstance(trainer.strategy.cluster_environment, LightningEnvironment):
        die_with_parent()
    scale = scale_of(trainer, data)
    signals.at_once = False  # from here on there is something to end well
    with claim(folder) if trainer.is_global_zero else nullcontext():
        if trainer.is_global_zero:
            if (folder / "summary.json").exists() or resume_point(folder, cfg) != (start, step):
                raise UserError(f"{folder}: another process has trained it meanwhile; the same command continues")
            write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            record_provenance(folder, data.fingerprint, step, scale)
            checkpoints.tidy(start)
            how = f"resumes at step {step}" if step else "starts"
            print(f"{folder}: {how}, {describe(objective)}; {scale['ranks']} x "
                  f"{scale['batch']} x {scale['accumulated']} = {scale['global_batch']} windows a step (ranks x batch "
                  f"x accumulated), {scale['steps_an_epoch']} steps an epoch, {scale['precision']}",
                  file=sys.stderr)  # fmt: skip
        began = time.monotonic()
        try:
            train(trainer, checkpoints, objective, data, start)
        except (UserError, SystemExit) as error:
            mistake = not isinstance(error, SystemExit) or error.code == 2
            if trainer.is_global_zero and mistake and not trainer.global_step:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if math.isfinite(v) and k != "step"}
        if trainer.is_global_zero:
            summary = {"step": trainer.global_step, "metrics": metrics, "cost": cost(trainer, objective, scale)}
            write_text(folder / "summary.json", json.dumps(summary, indent=1))
            shown = [k for k in metrics if k in {"valid/loss", "probe/mse", "rank/effective"}]
            said = ", ".join(f"{k} {metrics[k]:.3g}" for k in shown)
            print(f"{folder}: {trainer.global_step} steps in {time.monotonic() - began:.0f} s; {said}")


def hush() -> None:
    """Keep Lightning's hints off the terminal: what it refuses is told all the same."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of DDP, which copies such gradients


def train(
    trainer: Any, checkpoints: Checkpoints, objective: Objective, data: WellDataModule, start: Path | None
) -> None:
    """Fit from the checkpoint `start` and validate. What one rank runs into ends them all and is told once."""
    from physrep import distributed

    try:
        if objective.trains:
            trainer.fit(objective, datamodule=data, ckpt_path=start and str(start), weights_only=True)
            if checkpoints.saved != trainer.global_step:
                checkpoints.save(trainer)
        if checkpoints.validated != trainer.global_step and (trainer.limit_val_batches or not objective.trains):
            trainer.validate(objective, datamodule=data, verbose=False)
        if not objective.trains:
            checkpoints.save(trainer)
    except BaseException as error:
        if trainer.strategy.launcher and not isinstance(error, SystemExit):
            trainer.strategy.launcher.kill(signal.SIGKILL)  # ranks that wait for this one
        if isinstance(error, SystemExit) and error.code == 1 and trainer.interrupted:  # Lightning's for Ctrl-C
            raise KeyboardInterrupt from None
        if distributed.world() > 1 and isinstance(error, (UserError, OSError, RuntimeError)):
            if not distributed.first_to_fail():
                raise SystemExit(2) from None
            if isinstance(error, (UserError, OSError)):
                raise SystemExit(errors.say(error)) from None
        raise


def die_with_parent() -> None:
    """Have Linux kill this process when the one that launched it dies, which may be too sudden for a last word."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def make_trainer(cfg: DictConfig, folder: Path, data: WellDataModule, step: int, checkpoints: Checkpoints) -> Any:
    """Build Lightning's trainer with the run's loggers, monitors and checkpoints; nothing is written yet.

    Raises UserError if it is one of another number of processes than were started, or validates within a step.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.callbacks import Timer
    from lightning.pytorch.loggers import TensorBoardLogger

    from physrep.callbacks.online_probe import OnlineProbe
    from physrep.callbacks.progress import progress
    from physrep.callbacks.record import AtomicCheckpoints, LearningRates, MetricsCsv

    slurm, torchrun = SLURMEnvironment.detect(), TorchElasticEnvironment.detect()
    trainer = build(
        cfg.trainer,
        callbacks=[checkpoints, OnlineProbe(list(data.scales), data.frames), LearningRates(), Timer(), progress()],
        logger=[
            TensorBoardLogger(folder, name="", version="tb", purge_step=step),
            MetricsCsv(folder / "metrics.csv", step),
        ],
        plugins=[AtomicCheckpoints(), *([SLURMEnvironment(auto_requeue=False)] if slurm else [])],
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    nodes, asked = trainer.num_nodes, trainer.num_nodes * trainer.num_devices
    started = os.environ["WORLD_SIZE"] if torchrun else os.environ["SLURM_NTASKS"] if slurm else asked
    over = os.environ["SLURM_NNODES"] if slurm else nodes
    if (int(over), int(started)) != (nodes, asked):
        raise UserError(f"trainer.devices: {started} processes were started (nodes: {over}) and the trainer has "
                        f"{asked} (nodes: {nodes}); set trainer.devices and trainer.num_nodes")  # fmt: skip
    check_interval(trainer)
    trainer.val_check_interval *= trainer.accumulate_grad_batches  # Lightning counts batches
    return trainer


def check_interval(trainer: Any) -> None:
    """Raise UserError for a trainer that does not validate by optimiser steps."""
    if not isinstance(trainer.val_check_interval, int) or trainer.check_val_every_n_epoch is not None:
        raise UserError("trainer.val_check_interval: give a whole number of optimiser steps, and leave "
                        "trainer.check_val_every_n_epoch=null")  # fmt: skip


def scale_of(trainer: Any, data: WellDataModule) -> dict[str, Any]:
    """Say on what a run runs, and how many windows make an optimiser step."""
    import torch

    world, accumulated, device = trainer.world_size, trainer.accumulate_grad_batches, trainer.strategy.root_device
    step, number = world * data.batch_size * accumulated, torch.get_num_threads()
    threads = f"{number} threads" if number > 1 else "1 thread"
    return {
        "ranks": world,
        "batch": data.batch_size,
        "accumulated": accumulated,
        "global_batch": step,
        "steps_an_epoch": len(data.windows("train")) // step,
        "precision": trainer.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {threads}",
    }


def cost(trainer: Any, objective: Objective, scale: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a run took, over all of its starts: the encoder's weights, windows seen, seconds, on what."""
    from lightning.pytorch.callbacks import Timer

    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    return {
        "weights": sum(w.numel() for w in objective.encoder.parameters()),
        "windows": trainer.global_step * scale["global_batch"],
        "seconds": round(timer.time_elapsed(), 1),
        "device": f"{scale['ranks']} x {scale['device']}",
    }


def compile_blocks(objective: Objective, device: Any) -> None:
    """Compile what an architecture repeats, the members of its module lists. UserError where there is no compiler."""
    import torch

    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"compile=true: torch.compile does not work here ({reason}); install a C++ compiler such as "
                        "g++, or leave it out") from None  # fmt: skip
    torch._dynamo.config.recompile_limit = 64  # one entry for every width, batch size and mode
    for modules in [m for m in objective.modules() if isinstance(m, torch.nn.ModuleList)]:
        for module in modules:
            module.compile()


def describe(objective: Objective) -> str:
    """Say how many weights an objective and its encoder have."""
    encoder, whole = (sum(w.numel() for w in m.parameters()) for m in (objective.encoder, objective))
    return f"{encoder:,} encoder weights, {whole:,} in all"


def dry_run(cfg: DictConfig) -> None:
    """Build everything, take two steps on the CPU and print shapes and what a step and the run cost, that last."""
    import resource

    memory.keep()
    data, objective = assemble(cfg)
    trainer = stand_in(cfg)
    objective.trainer = trainer
    trainer.strategy.connect(objective)
    if objective.trains:
        trainer.strategy.setup_optimizers(trainer)
    batch = data.prepare_batch(next(iter(data.train_dataloader())), augment=True)
    say = partial(print, flush=True)  # before a mistake, also where both go to one file
    say(f"clip {list(batch['clip'].shape)} (B, C, T, H, W): {', '.join(data.channels)}")
    say(f"theta {list(batch['theta'].shape)}: {', '.join(f'{k} ({v})' for k, v in data.scales.items())}")
    clip = batch["clip"][:1, :, : data.frames]
    say(f"{describe(objective)}; tokens {list(objective.encode(clip).shape)[1:]} (N, D) a clip")
    for step in (0, 1):
        start = time.monotonic()
        terms = objective.losses(batch)
        if objective.trains:
            terms["loss"].backward()
        gradient = time.monotonic() - start
        for optimizer in trainer.strategy.optimizers:
            objective.optimizer_step(0, step, optimizer)
            optimizer.zero_grad()
        update = time.monotonic() - start - gradient
    say("losses " + ", ".join(f"{k} {float(v.detach()):.4g}" for k, v in terms.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    steps, batches = cfg.trainer.max_steps, trainer.accumulate_grad_batches
    windows, each, seconds = len(data.windows("train")), data.batch_size * batches, gradient * batches + update
    say(f"{windows} training windows, {steps} steps of {each} (one device's) are {steps * each / windows:.3g} epochs")
    minutes = steps * seconds / 60
    say(f"{seconds:.3g} s a step on the CPU, about {minutes:.3g} minutes in all, peak memory {peak:.2g} GiB")


def stand_in(cfg: DictConfig) -> Any:
    """Build Lightning's trainer as far as a CPU can, so that it refuses what it would refuse where the run trains.

    Other accelerators and their devices become one CPU; epochs, which Lightning would load data for, are left out.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    changes: dict[str, Any] = {"max_epochs": -1}
    if cfg.trainer.get("accelerator") != "cpu":
        changes |= {"accelerator": "cpu", "devices": 1}
        if "fsdp" in str(cfg.trainer.get("strategy")):  # Lightning's own, for GPUs alone
            changes["strategy"] = "ddp"
    hush()
    node = OmegaConf.merge(cfg, {"trainer": changes}).trainer
    trainer = build(node, plugins=[LightningEnvironment()], logger=False, enable_progress_bar=False)
    check_interval(trainer)
    return trainer


if __name__ == "__main__":
    errors.run(main)
