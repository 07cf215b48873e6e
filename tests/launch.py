"""Fits in processes of their own, forked from one that has imported everything: a second each instead of eight.

Ranks find each other as torchrun's do, by their environment; and as under torchrun, the end of one by an error is soon
the end of all.
"""

from __future__ import annotations

import csv
import importlib.util
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

import physrep.callbacks.progress
from physrep import errors, fit
from physrep.callbacks.progress import Callback

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.launch", "physrep.callbacks.checkpoints", "physrep.callbacks.record",
                              "physrep.callbacks.online_probe", "physrep.objectives.jepa", "physrep.data.shear_flow",
                              "lightning.pytorch.loggers", "torch.utils.tensorboard"])  # fmt: skip
PATIENCE = 5.0  # seconds that torchrun would give the others, roughly

TINY = [
    "data=shear_flow_tiny", "data.frames=8", "data.step=5", "encoder.widths=[4,8]", "encoder.depths=[1,1]",
    "encoder.strides=[[4,4,4],[2,2,2]]", "encoder.kernels=[[3,3],[3,3]]", "objective.warmup=3",
    "trainer.log_every_n_steps=1",
]  # fmt: skip


class Fault(NamedTuple):
    """What befalls one rank (None: each) in the `step`-th optimiser step, its validation or its checkpoint, or before
    the first one: in the "assembly" or the "setup" of the trainer.

    A signal; "error", "mistake" (a UserError) or "nan" (its loss); or "alone": from then on gradients stay its own.
    """

    what: str
    where: str
    step: int
    rank: int | None = 0


class Ended(NamedTuple):
    """How the ranks of a run ended, and what they said."""

    codes: list[int]
    said: str


class Saboteur(Callback):
    """Makes a fault happen."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def assemble(self, cfg):
        """Stand for fit.assemble."""
        if self.fault.where == "assembly":
            self.happen()
        return assemble(cfg)

    def setup(self, trainer, module, stage) -> None:
        if self.fault.where == "setup":
            self.happen()

    def on_before_backward(self, trainer, module, loss) -> None:
        self.trainer = trainer
        if self.fault.where == "step" and trainer.global_step == self.fault.step - 1:
            self.happen()

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, *_) -> None:
        if self.fault.where == "validation" and trainer.global_step == self.fault.step and batch_idx == 1:
            self.happen()

    def save(self, checkpoint, file) -> None:
        """Stand for torch.save; half of the file is written when it happens."""
        save(checkpoint, file)
        if self.fault.where == "checkpoint" and checkpoint["global_step"] == self.fault.step:
            whole = Path(file.name).read_bytes() if not file.flush() else b""
            os.truncate(file.fileno(), len(whole) // 2)
            self.happen()
            file.seek(0)
            file.write(whole)

    def on_train_batch_start(self, trainer, *_) -> None:
        if self.fault.what == "alone" and trainer.global_step == self.fault.step:
            trainer.strategy.model.require_backward_grad_sync = False

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if self.fault.what == "nan" and trainer.global_step == self.fault.step:
            next(module.parameters()).data.fill_(torch.nan)

    def happen(self) -> None:
        if self.fault.what in {"alone", "nan"}:
            return
        if self.fault.what == "error":
            raise ValueError("sabotage")
        if self.fault.what == "mistake":
            raise errors.UserError("a mistake of one rank")
        self.fault = self.fault._replace(where="past")
        workers = multiprocessing.active_children() if self.fault.what != "SIGKILL" else []  # as SLURM and terminals do
        processes = [*(str(worker.pid) for worker in workers), str(os.getpid())]
        subprocess.run(["kill", f"-{self.fault.what[3:]}", *processes], check=True)


save, assemble = torch.save, fit.assemble


def work(argv: list[str], environment: dict[str, str], fault: Fault | None, log: str) -> None:
    """Be one rank of `python -m physrep.fit argv`, its output in a log."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= environment
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in a process of its own
    sys.argv = ["fit", *argv]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("physrep.fit")  # what Lightning starts other ranks with
    if fault and fault.rank in {None, int(environment.get("RANK", 0))}:
        saboteur = Saboteur(fault)
        physrep.callbacks.progress.progress = lambda: saboteur
        torch.save, fit.assemble = saboteur.save, saboteur.assemble
    errors.run(fit.main)


def launch(
    argv: list[str], folder: Path, ranks: int = 1, fault: Fault | None = None, devices: int | None = None
) -> Ended:
    """Run `python -m physrep.fit argv` as so many processes, with their log in a folder; the trainer has `devices`."""
    common = {}
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks),
                  "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
        argv = [*argv, f"trainer.devices={devices or ranks}"]
    log = folder / "log"
    log.unlink(missing_ok=True)
    processes = []
    for rank in range(ranks):
        own = common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if common else {})
        processes.append(FORKS.Process(target=work, args=(argv, own, fault, str(log))))
        processes[-1].start()
    deadline = time.monotonic() + 120
    while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
        if any(p.exitcode for p in processes):
            deadline = min(deadline, time.monotonic() + PATIENCE)
        time.sleep(0.02)
    for p in processes:
        p.kill()
        p.join()
    return Ended([p.exitcode for p in processes], log.read_text())


def only_run(runs: Path) -> Path:
    """Return the folder of the only run below `runs`."""
    (folder,) = (p.parent for p in runs.glob("*/*/config.yaml"))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a run ended with."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def curves(folder: Path) -> dict[tuple[int, str], float | None]:
    """Return the rows of metrics.csv by (step, name), each there once; NaN, which equals nothing, as None."""
    with (folder / "metrics.csv").open() as file:
        rows = [(int(r["step"]), r["name"], None if r["value"] == "nan" else float(r["value"]))
                    for r in csv.DictReader(file)]  # fmt: skip
    found = {(step, name): value for step, name, value in rows}
    assert len(found) == len(rows), "a step is there twice"
    return found
