"""Train every run of a grid, then probe them: what is done is skipped, what fails is passed over.

    python -m physrep.sweep experiment=small
    python -m physrep.sweep objective=jepa,views seed=0,1,2
    python -m physrep.sweep experiment=small --jobs 2
    python -m physrep.sweep experiment=small --dry-run
    python -m physrep.sweep experiment=small --status
    python -m physrep.sweep experiment=small trainer=gpu --slurm 1x4 -- --partition=a100 --time=12:00:00

Commas make a grid of any keys; an experiment may hold a list of grids under `sweep`. What
stands after -- goes to sbatch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from physrep import errors, slurm, warm
from physrep.config import cli, compose, config_hash, grid
from physrep.errors import UserError
from physrep.files import lock, write_text
from physrep.progress import track

OPTIONS = {
    "--status": "say what is done and what its monitors say, and stop",
    "--jobs": "N: train so many runs side by side, each with its share of the processor's cores",
    "--slurm": "NODESxDEVICES: submit the runs to SLURM, each on so many nodes with so many devices, and the probes",
    "--print": "with --slurm: print what would be submitted, as shell commands, and stop",
}
TODO = ("failed", "pending")
PLAN = "planned.txt"
MONITORS = ("valid/loss", "valid/baseline", "probe/mse", "rank/effective", "std/between", "std/within")


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its command line, its folder and the hash of its config."""

    argv: list[str]
    folder: Path
    config: str = ""

    @property
    def log(self) -> Path:
        """Where the output of its fit goes; a sweep that runs it itself holds a lock on it."""
        return self.folder.parent / "logs" / f"{self.folder.name}.log"

    def status(self, known: Mapping[str, slurm.Element] | None = None) -> str:
        """Return done, running, queued, failed or pending, from the folders and from what SLURM has of the runs."""
        if (self.folder / "summary.json").exists():
            return "done"
        if known and self.folder.name in known:
            return known[self.folder.name].state
        if not self.log.exists():
            return "pending"
        with self.log.open("r+" if os.access(self.log, os.W_OK) else "r") as log:  # NFS locks what may be written
            return "failed" if lock(log) else "running"

    def metrics(self) -> dict[str, float]:
        """Return what a finished run measured last."""
        found: dict[str, float] = json.loads((self.folder / "summary.json").read_text())["metrics"]
        return found

    def last_line(self) -> str:
        """Return what the fit said last; srun's word comes after it and says less."""
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        return next((line for line in reversed(lines) if not line.startswith("srun: ")), "said nothing")

    def why(self) -> str:
        """Return why a fit failed: its last line, if that tells of a mistake; else something has ended it."""
        line = self.last_line()
        if line.startswith("physrep: ") or "Traceback (most recent call last)" in self.log.read_text():
            return line
        return f"was cut short, and the same command continues it; it last said: {line}"


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.sweep`; exit code 1 if a run failed, 2 if a dry one did."""
    asked, plain, extra = parse(argv)
    wanted = cells(plain, asked.slurm)
    if compose(wanted[0].argv).dry_run:
        if asked.slurm or asked.status:
            raise UserError(f"--dry-run: tries the runs here; leave out {'--slurm' if asked.slurm else '--status'}")
        rehearse(wanted, asked.jobs)
        return
    if asked.status:
        tell(wanted)
        return
    if not asked.print:
        plan(wanted)
    if asked.slurm:
        for folder in dict.fromkeys(cell.folder.parent for cell in wanted):
            here = [cell for cell in wanted if cell.folder.parent == folder]
            submit(here, asked.slurm._replace(gpus=uses_gpus(here)), probe(folder, plain), extra, asked.print)
        return
    status = statuses(wanted)
    print(counts(status), flush=True)
    fit_all([cell for cell, each in zip(wanted, status, strict=True) if each in TODO], asked.jobs, plain)
    tell(wanted)
    folders = dict.fromkeys(cell.folder.parent for cell in wanted if cell.status() == "done")
    codes = [subprocess.run([sys.executable, "-m", *probe(each, plain)], check=False).returncode for each in folders]
    if any(codes) or "failed" in statuses(wanted):
        raise SystemExit(max(codes, default=0) or 1)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return the options, the keys and values, and what stands after --. Raises UserError for a wrong option."""
    end = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--slurm", type=slurm.parse)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    try:
        asked, plain = parser.parse_known_args(argv[:end])
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name}: {error.message}") from None
    if any(argument.startswith("-") for argument in plain):
        cli([*plain], doc="\n".join([__doc__ or "", *(f"    {name:<9} {does}" for name, does in OPTIONS.items())]))
    if asked.jobs < 1:
        raise UserError(f"--jobs: {asked.jobs} runs side by side are none; give 1 or more")
    if not asked.slurm and (asked.print or argv[end:]):
        raise UserError(f"{'--print' if asked.print else '--'}: is for --slurm NODESxDEVICES; give that, too")
    return asked, [*plain, *(["dry_run=true"] if asked.dry_run else [])], list(argv[end + 1 :])


def cells(argv: Sequence[str], shape: slurm.Shape | None = None) -> list[Cell]:
    """Return the runs of a command line and of its experiment's `sweep`, each once and checked; raises UserError.

    With a shape, each is for so many nodes with so many devices.
    """
    from physrep.run import run_folder

    if any(argument.partition("=")[0] == "run" for argument in argv):
        raise UserError("run: is the name of one run, and a sweep names them by itself; leave it out")
    out: dict[Path, Cell] = {}
    for line, axis in [(each, axis) for each in grid(argv) for axis in axes(each)]:
        for values in itertools.product(*axis.values()):
            each = [*line, *(f"{key}={text(value)}" for key, value in zip(axis, values, strict=True))]
            if shape:  # only what differs: a run on one device has one name
                usual = {"num_nodes": 1, **compose(each).trainer}
                wanted = {"num_nodes": shape.nodes, "devices": shape.devices}
                each += [f"trainer.{key}={n}" for key, n in wanted.items() if usual.get(key) != n]
            cfg = compose(each)
            folder = run_folder(cfg)
            out.setdefault(folder, Cell(each, folder, config_hash(cfg)))
    for folder in {cell.folder.parent for cell in out.values()}:
        compose(probe(folder, argv)[1:])  # what cannot be probed is not trained
    return list(out.values())


def axes(line: Sequence[str]) -> list[dict[str, list[Any]]]:
    """Return the grids of a command line's experiment, without the keys that it gives: their lists are narrowed to its
    values, what stands alone is replaced.

    Raises UserError for values that no grid has, and for what is no grid.
    """
    given = dict(argument.partition("=")[::2] for argument in line)
    found: list[Mapping[str, Any]] = list(compose(line).sweep)
    if wrong := [each for each in found if not isinstance(each, Mapping)]:
        raise UserError(f"sweep: {wrong[0]} is no grid; write such as sweep=[{{objective: [jepa, views]}}]")
    if empty := [key for each in found for key, values in each.items() if is_list(values) and not values]:
        raise UserError(f"sweep: {empty[0]} has no value; give some")
    fits = [
        {key: v if is_list(v) else [v] for key, v in each.items() if key not in given}
        for each in found
        if all(value in map(text, each[key]) for key, value in given.items() if is_list(each.get(key)))
    ]
    if found and not fits:
        said = " ".join(f"{key}={value}" for key, value in given.items() if any(key in each for each in found))
        raise UserError(f"sweep: the experiment's grid has no run with {said}; leave a key out, or try --cfg")
    return fits or [{}]


def plan(cells: Sequence[Cell]) -> None:
    """Note in each experiment's folder, beside what is there, which runs are asked for: the report says what lacks."""
    for folder in dict.fromkeys(cell.folder.parent for cell in cells):
        held = {cell.folder.name: cell.config for cell in planned(folder)}
        held |= {cell.folder.name: cell.config for cell in cells if cell.folder.parent == folder}
        write_text(folder / PLAN, "".join(f"{name} {config}\n" for name, config in held.items()))


def planned(folder: Path) -> list[Cell]:
    """Return the runs that sweeps were asked for, by the plan in a folder, without their command lines."""
    file = folder / PLAN
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [Cell([], folder / name, *config) for name, *config in lines]


def text(value: Any) -> str:
    """Write a value as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def is_list(value: Any) -> bool:
    """Say whether a value of an experiment's grid is several."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def side_by_side(function: Callable[..., Any], calls: Iterable[Sequence[Any]], jobs: int) -> list[Any]:
    """Call a function with each of the arguments and its share of the cores' threads, so many side by side; return what
    comes of it, as they end. Interrupted, it starts no other and waits for those that have begun: they are interrupted
    with it, and save where they are."""
    threads = max((os.cpu_count() or 1) // jobs, 1) if jobs > 1 else None
    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(function, *arguments, threads) for arguments in calls]
        try:
            return [each.result() for each in track(as_completed(begun), "runs", len(begun))]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def fit_all(cells: Sequence[Cell], jobs: int, argv: Sequence[str]) -> None:
    """Train cells and probe them, so many side by side; the first run on some data is probed with its controls."""
    with_controls: set[tuple[str, ...]] = set()
    calls = []
    for cell in cells:
        data = tuple(sorted({argument for argument in cell.argv if argument.startswith("data")}))
        calls.append((cell, [*probe(cell.folder.parent, argv), *(["controls=[]"] if data in with_controls else [])]))
        with_controls.add(data)
    side_by_side(fit, calls, jobs)


def fit(cell: Cell, probes: Sequence[str], threads: int | None = None) -> None:
    """Train one cell and probe it, with all output in the log; one that runs elsewhere is left.

    Where its probes fail, those of the whole experiment, in the end, say why.
    """
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with claimed(cell.log) as log:
        if log is None:
            return
        print(shlex.join(["python", "-m", "physrep.fit", *cell.argv]), file=log, flush=True)
        warm.call(["physrep.fit", *cell.argv], log, threads)
    state = cell.status()
    print(f"{state:<8} {cell.folder}: {cell.last_line() if state == 'done' else cell.why()}", flush=True)
    if state == "done":
        with cell.log.open("a") as log:
            warm.call([*probes, f"run={cell.folder}"], log, threads)


def rehearse(cells: Sequence[Cell], jobs: int) -> None:
    """Build every cell and take a step, seeds aside, and say of each what it costs or what is wrong with it.

    Nothing is written where runs lie. Exit code 2 if one fails.
    """
    distinct = {tuple(a for a in cell.argv if not a.startswith("seed=")): cell for cell in reversed(cells)}
    with tempfile.TemporaryDirectory() as place:
        tried = [Cell(each.argv, Path(place, str(n), each.folder.name)) for n, each in enumerate(distinct.values())]
        good = side_by_side(rehearse_one, [(cell,) for cell in reversed(tried)], jobs)
    print(f"{len(good)} runs that differ by more than their seed: {sum(good)} ok, {len(good) - sum(good)} failed")
    if not all(good):
        raise SystemExit(2)


def rehearse_one(cell: Cell, threads: int | None = None) -> bool:
    """Try one cell in a process of its own, say in a line how that went, and return whether it went well."""
    cell.log.parent.mkdir(parents=True)
    with cell.log.open("w") as log:
        code = warm.call(["physrep.fit", *cell.argv, "dry_run=true"], log, threads)
    said = cell.last_line() if code >= 0 else f"was killed by signal {-code}"
    print(f"{'failed' if code else 'ok':<8} {cell.folder.name}: {said}", flush=True)
    return not code


@contextmanager
def claimed(path: Path) -> Iterator[TextIO | None]:
    """Open a run's log anew and hold it while in use; None if another process does, or the run is done by now."""
    with path.open("a") as log:
        if lock(log) and not (path.parent.parent / path.stem / "summary.json").exists():
            log.truncate(0)
            yield log
        else:
            yield None


def probe(folder: Path, argv: Sequence[str]) -> list[str]:
    """Return what Python runs (-m) to probe all finished runs of an experiment's folder, with its controls."""
    keys = ("probe", "controls", "labels", "layers", "allow")
    options = [a for a in argv if a.partition("=")[0].partition(".")[0] in keys]
    return ["physrep.probe", f"experiment={folder.name}", f"runs={folder.parent}", *options]


def statuses(cells: Sequence[Cell]) -> list[str]:
    """Return the status of every run, asking SLURM once a folder."""
    known = {folder: slurm.elements(folder) for folder in dict.fromkeys(cell.folder.parent for cell in cells)}
    return [cell.status(known[cell.folder.parent]) for cell in cells]


def tell(cells: Sequence[Cell]) -> None:
    """Print what the monitors of the runs that are done say, a line for each that is not, and how many are what."""
    status = statuses(cells)
    done = [cell for cell, each in zip(cells, status, strict=True) if each == "done"]
    width = max((len(cell.folder.name) for cell in done), default=0)
    if done:
        print(" " * width, *(f"{name:>14}" for name in MONITORS))
    for cell in done:
        found = cell.metrics()
        print(f"{cell.folder.name:<{width}}", *(f"{found[n]:14.4g}" if n in found else " " * 14 for n in MONITORS))
    for cell, each in zip(cells, status, strict=True):
        if each != "done":
            print(f"{each:<8} {cell.folder}" + (f": {cell.why()}" if each == "failed" else ""))
    print(counts(status))


def counts(status: Sequence[str]) -> str:
    """Say how many runs are what."""
    each = ", ".join(f"{status.count(name)} {name}" for name in ("done", "running", "queued", "failed", "pending"))
    return f"{len(status)} runs: {each}"


def uses_gpus(cells: Sequence[Cell]) -> bool:
    """Say whether one of the runs trains on GPUs."""
    return any(compose(cell.argv).trainer.get("accelerator") != "cpu" for cell in cells)


def submit(cells: Sequence[Cell], shape: slurm.Shape, then: list[str], options: list[str], show: bool) -> None:
    """Submit a folder's runs to SLURM, those that it has or that are done excepted, and what Python does after them.

    To `show` prints the shell commands for it instead.
    """
    folder = cells[0].folder.parent
    known = slurm.elements(folder)
    runs = [[str(cell.log), *cell.argv] for cell in cells if cell.status(known) in TODO]
    array = slurm.array(folder, runs, shape, options)
    probes = slurm.probes(folder, then, shape.gpus, options)
    others = sorted({element.array for element in known.values()})
    if show:
        print(f"export PATH={slurm.BIN}:$PATH\nmkdir -p {array.file.parent}")
        if runs:
            print(f"cat > {array.file} <<'END'\n{array.text}END\narray=$({shlex.join(array.command)})")
        print(shlex.join(probes), slurm.after([*others, *(["$array"] if runs else [])]))
        return
    print(f"{folder}: {counts([cell.status(known) for cell in cells])}")
    if runs:
        write_text(array.file, array.text)
        try:
            others.append(slurm.run(array.command).partition(";")[0])
        except UserError:
            array.file.unlink()  # of which SLURM knows nothing
            raise
        print(f"{folder}: {len(runs)} runs submitted as job {others[-1]}, their output goes to {folder}/logs")
    folder.joinpath("logs").mkdir(parents=True, exist_ok=True)
    job = slurm.run([*probes, slurm.after(others)]).partition(";")[0]
    print(f"{folder}: probes submitted as job {job}, for when they have ended")


if __name__ == "__main__":
    errors.run(main)
