"""Train every run of a grid, then probe them: what is done is skipped, what fails is passed over.

    python -m physrep.sweep experiment=objectives
    python -m physrep.sweep objective=jepa,views seed=0,1,2
    python -m physrep.sweep experiment=objectives --status

Commas make a grid of any keys; an experiment may hold a list of grids under `sweep`.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from physrep import errors
from physrep.config import cli, compose, grid
from physrep.errors import UserError
from physrep.progress import track

STATUS = "--status"
MONITORS = ("valid/loss", "valid/baseline", "probe/mse", "rank/effective", "std/between", "std/within")


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its command line and its folder."""

    argv: list[str]
    folder: Path

    @property
    def log(self) -> Path:
        """Where the output of its fit goes; whoever runs the cell holds a lock on it."""
        return self.folder.parent / "logs" / f"{self.folder.name}.log"

    def status(self) -> str:
        """Return done, running, failed or pending, from what lies in the folders."""
        if (self.folder / "summary.json").exists():
            return "done"
        if not self.log.exists():
            return "pending"
        with self.log.open() as log:
            return "failed" if lock(log) else "running"

    def metrics(self) -> dict[str, float]:
        """Return what a finished run measured last."""
        found: dict[str, float] = json.loads((self.folder / "summary.json").read_text())["metrics"]
        return found

    def last_line(self) -> str:
        """Return what the fit said last."""
        return next((line for line in reversed(self.log.read_text().splitlines()) if line.strip()), "said nothing")


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.sweep`; exit code 1 if a run failed."""
    plain = [argument for argument in argv if argument != STATUS]
    if any(argument.startswith("-") for argument in plain):
        cli(
            [a for a in plain if a.startswith("-")],
            doc=f"{__doc__}\n    {STATUS:<12} say what is done and what its monitors say, and stop",
        )
    planned = cells(plain)
    if STATUS in argv:
        tell(planned)
        return
    todo = [cell for cell in planned if cell.status() != "done"]
    print(f"{len(planned)} runs, {len(planned) - len(todo)} done already", flush=True)
    for cell in track(todo, "runs"):
        fit(cell)
    tell(planned)
    for folder in {cell.folder.parent for cell in planned if cell.status() == "done"}:
        probe(folder, plain)
    if any(cell.status() == "failed" for cell in planned):
        raise SystemExit(1)


def cells(argv: Sequence[str]) -> list[Cell]:
    """Return the runs of a command line and of its experiment's `sweep`, each once and checked; raises UserError."""
    from physrep.run import run_folder

    lines = grid(argv)
    axes: list[Mapping[str, Any]] = list(compose(lines[0]).sweep) or [{}]
    fixed = {argument.partition("=")[0] for argument in argv}
    if "run" in fixed:
        raise UserError("run: is the name of one run, and a sweep names them by itself; leave it out")
    out: dict[Path, Cell] = {}
    for line, axis in itertools.product(lines, axes):
        free = {key: value if is_list(value) else [value] for key, value in axis.items() if key not in fixed}
        for values in itertools.product(*free.values()):
            each = [*line, *(f"{key}={text(value)}" for key, value in zip(free, values, strict=True))]
            folder = run_folder(compose(each))
            out.setdefault(folder, Cell(each, folder))
    return list(out.values())


def text(value: Any) -> str:
    """Write a value as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def is_list(value: Any) -> bool:
    """Say whether a value of an experiment's grid is several."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def fit(cell: Cell) -> None:
    """Train one cell in a process of its own, with its output in the log; a cell that is running elsewhere is left."""
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with claimed(cell.log) as log:
        if log is None:
            return
        command = [sys.executable, "-m", "physrep.fit", *cell.argv]
        print(shlex.join(["python", *command[1:]]), file=log, flush=True)
        subprocess.run(command, stdout=log, stderr=log, check=False)
    print(f"{cell.status():<8} {cell.folder}: {cell.last_line()}", flush=True)


@contextmanager
def claimed(path: Path) -> Iterator[TextIO | None]:
    """Open a run's log anew and hold it while in use; None if another process does, or the run is done by now."""
    with path.open("a") as log:
        if lock(log) and not (path.parent.parent / path.stem / "summary.json").exists():
            log.truncate(0)
            yield log
        else:
            yield None


def lock(file: TextIO) -> bool:
    """Take the lock on an open file, without waiting."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def probe(folder: Path, argv: Sequence[str]) -> None:
    """Probe all finished runs of an experiment's folder, with its controls."""
    keys = ("probe", "controls", "allow", "dry_run")
    options = [a for a in argv if a.partition("=")[0].partition(".")[0] in keys]
    where = [f"experiment={folder.name}", f"runs={folder.parent}"]
    command = [sys.executable, "-m", "physrep.probe", *where, *options]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def tell(planned: Sequence[Cell]) -> None:
    """Print what the monitors of the runs that are done say, a line for each that is not, and how many are what."""
    status = [cell.status() for cell in planned]
    done = [cell for cell, each in zip(planned, status, strict=True) if each == "done"]
    width = max((len(cell.folder.name) for cell in done), default=0)
    if done:
        print(" " * width, *(f"{name:>14}" for name in MONITORS))
    for cell in done:
        found = cell.metrics()
        print(f"{cell.folder.name:<{width}}", *(f"{found[n]:14.4g}" if n in found else " " * 14 for n in MONITORS))
    for cell, each in zip(planned, status, strict=True):
        if each != "done":
            print(f"{each:<8} {cell.folder}" + (f": {cell.last_line()}" if each == "failed" else ""))
    counts = ", ".join(f"{status.count(each)} {each}" for each in ("done", "running", "failed", "pending"))
    print(f"{len(planned)} runs: {counts}")


if __name__ == "__main__":
    errors.run(main)
