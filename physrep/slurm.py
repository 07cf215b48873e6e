"""Runs under SLURM: an array with one run an element, through scripts/slurm.sbatch, and the probes after it.

An array's runs are the lines of logs/array-<digest>.txt in the experiment's folder, and its name has the digest of that
file. So squeue tells anybody which runs are queued or running, whatever became of the process that submitted them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from physrep.config import home
from physrep.errors import UserError

QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}
BIN = Path(sys.executable).parent  # first in PATH for jobs, which call `python`


class Element(NamedTuple):
    """What SLURM has of a run: `queued` or `running`, and the array's id."""

    state: str
    array: str


class Shape(NamedTuple):
    """What a job asks for: nodes, and on each as many tasks as devices, which are GPUs or not."""

    nodes: int
    devices: int
    gpus: bool = False

    def options(self) -> list[str]:
        """Return it as sbatch takes it."""
        gpus = [f"--gpus-per-node={self.devices}"] if self.gpus else []
        return [f"--nodes={self.nodes}", f"--ntasks-per-node={self.devices}", *gpus]


class Array(NamedTuple):
    """An array to be: the file that lists its runs, the text for it, and the command that submits it."""

    file: Path
    text: str
    command: list[str]


def parse(shape: str) -> Shape:
    """Read NODESxDEVICES. Raises UserError for anything else."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)):
        raise UserError(f"--slurm {shape}: expected NODESxDEVICES, such as 2x4 for two nodes with four GPUs each")
    return Shape(int(found[1]), int(found[2]))


def elements(folder: Path) -> dict[str, Element]:
    """Return the runs of an experiment's folder that SLURM has, by name; none where there is no squeue to ask.

    Raises UserError if squeue has no answer.
    """
    files = {name(file): file for file in (folder / "logs").glob("array-*.txt")}
    if not files or not shutil.which("squeue"):
        return {}
    out = {}
    asked = ["squeue", "--noheader", "--array", f"--name={','.join(files)}", "--format=%j %F %K %T"]
    for line in run(asked).splitlines():
        job, array, index, state = line.split()
        log = shlex.split(files[job].read_text().splitlines()[int(index) - 1])[0]
        out[Path(log).stem] = Element("queued" if state in QUEUED else "running", array)
    return out


def name(file: Path) -> str:
    """Return the name of the array whose runs a file lists."""
    return f"physrep-{file.parent.parent.name}-{file.stem.removeprefix('array-')}"


def array(folder: Path, runs: Sequence[Sequence[str]], shape: Shape, options: Sequence[str]) -> Array:
    """Make an array of runs, each of which is its log and its arguments; sbatch takes the `options`, too."""
    script, text = home() / "scripts" / "slurm.sbatch", "".join(shlex.join(each) + "\n" for each in runs)
    of = f"{folder.resolve()}\n{text}"  # SLURM's names are those of all users and folders
    file = folder / "logs" / f"array-{hashlib.sha256(of.encode()).hexdigest()[:8]}.txt"
    command = ["sbatch", "--parsable", f"--job-name={name(file)}", f"--array=1-{len(runs)}", *shape.options(),
               f"--output={file.with_suffix('.out')}", *options, str(script), str(file)]  # fmt: skip
    return Array(file, text, command)


def probes(folder: Path, words: Sequence[str], gpus: bool, options: Sequence[str]) -> list[str]:
    """Return the command that submits `python -m words...` on one device; when it runs is for `after` to say."""
    return ["sbatch", "--parsable", f"--job-name=physrep-{folder.name}-probe", *Shape(1, 1, gpus).options(),
            f"--output={folder / 'logs' / 'probe.out'}", "--open-mode=append", *options,
            f"--wrap={shlex.join(['python', '-m', *words])}"]  # fmt: skip


def after(arrays: Iterable[str]) -> str:
    """Return the option that has a job wait for all elements, however they end, and for a job of its own name."""
    return "--dependency=" + ",".join([*(f"afterany:{each}" for each in arrays), "singleton"])


def run(command: Sequence[str]) -> str:
    """Run a command of SLURM's and return what it printed. Raises UserError with what it complains of."""
    if not shutil.which(command[0]):
        raise UserError(f"{command[0]}: not found; go where SLURM's commands are, or look first with --print")
    done = subprocess.run(
        command, env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout.strip()
