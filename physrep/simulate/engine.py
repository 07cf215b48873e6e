"""From a plan to a data set: one job for each parameter combination, worker processes, whole files, continuation."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from physrep.config import build
from physrep.data.splits import SPLITS
from physrep.data.well import write
from physrep.errors import UserError, did_you_mean
from physrep.files import amount, free_bytes, read_yaml, write_text
from physrep.progress import track

MANIFEST = "simulation.yaml"
PROCESS = 650_000_000  # bytes of a process with torch, before it simulates


class Solver(Protocol):
    """What a system must offer; `fields` gives the tensor rank of each field, in the order in which they are stored."""

    name: ClassVar[str]
    fields: ClassVar[Mapping[str, int]]
    boundaries: ClassVar[Mapping[str, str]]
    parameters: ClassVar[Sequence[str]]  # the names of the physical ones
    grid: tuple[int, int]
    constants: Mapping[str, float]  # of the system, stored beside the parameters

    def coords(self) -> dict[str, Tensor]:
        """Return the coordinates of the grid, one 1-D tensor a dimension."""

    def initial(self, generator: torch.Generator) -> Tensor:
        """Draw one initial state."""

    def simulate(self, theta: Mapping[str, Tensor], initial: Tensor, frames: int, dt: float) -> dict[str, Tensor]:
        """Return the fields [B, T, Nx, Ny, ...] that follow from initial states [B, ...] at parameters [B]."""


@dataclass(frozen=True)
class Ensemble:
    """The plan of a data set: every combination of the physical parameters, and so many trajectories of each.

    `parameters` is a grid {name: values} or a list of combinations [{name: value}]. The initial state of a trajectory
    depends on (seed, split, combination, number) alone, so that more trajectories keep the earlier ones; with
    `shared_initial` all combinations start from the same states, as in The Well.
    """

    solver: Solver
    parameters: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]]
    trajectories: Mapping[str, int]
    frames: int
    dt: float
    seed: int = 0
    shared_initial: bool = False
    batch: int = 12

    def combinations(self) -> list[dict[str, float]]:
        """Return the parameter combinations, the last name varying fastest."""
        if isinstance(self.parameters, Mapping):
            grid = itertools.product(*self.parameters.values())
            return [dict(zip(self.parameters, map(float, values), strict=True)) for values in grid]
        return [{name: float(value) for name, value in each.items()} for each in self.parameters]

    def stem(self, combination: Mapping[str, float]) -> str:
        """Return the name of a combination's files."""
        return "_".join([self.solver.name, *(f"{name}_{value:g}" for name, value in combination.items())])

    def shape(self, field: str) -> tuple[int, ...]:
        """Return the shape of one trajectory of a field, [T, Nx, Ny, ...]."""
        return (self.frames, *self.solver.grid, *(len(self.solver.grid),) * self.solver.fields[field])

    def bytes_per_trajectory(self) -> int:
        """Return what a trajectory takes on disk."""
        return sum(4 * math.prod(self.shape(field)) for field in self.solver.fields)

    def bytes_in_memory(self) -> int:
        """Return about what a process needs: itself, a combination's trajectories, a file twice, a batch thrice."""
        held = sum(self.trajectories.values()) + 2 * max(self.trajectories.values()) + 3 * self.batch
        return PROCESS + held * self.bytes_per_trajectory()

    def generator(self, split: str, combination: int, trajectory: int) -> torch.Generator:
        """Return the source of randomness of one trajectory."""
        place = (self.seed, SPLITS.index(split), 0 if self.shared_initial else 1 + combination, trajectory)
        state = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> 1))

    @torch.no_grad()
    def simulate(self, index: int) -> dict[str, dict[str, NDArray[np.float32]]]:
        """Return the trajectories [N, T, Nx, Ny, ...] of one combination by split and field.

        Raises UserError where a trajectory is not finite.
        """
        combination, solver = self.combinations()[index], self.solver
        places = [(split, number) for split, count in self.trajectories.items() for number in range(count)]
        out = {split: {field: np.empty((count, *self.shape(field)), np.float32) for field in solver.fields}
               for split, count in self.trajectories.items()}  # fmt: skip
        for part in np.array_split(np.arange(len(places)), math.ceil(len(places) / self.batch)):
            here = [places[place] for place in part]
            initial = torch.stack([solver.initial(self.generator(split, index, number)) for split, number in here])
            theta = {name: torch.full((len(here),), v, dtype=torch.float64) for name, v in combination.items()}
            for field, values in solver.simulate(theta, initial, self.frames, self.dt).items():
                if not torch.isfinite(values).all():
                    said = ", ".join(f"{name} {value:g}" for name, value in combination.items())
                    raise UserError(f"{solver.name}: the simulation at {said} is not stable; take a finer "
                                    "system.solver.grid or leave this combination out")  # fmt: skip
                for (split, number), value in zip(here, values.cpu().numpy(), strict=True):
                    out[split][field][number] = value
        return out

    def write(self, folder: Path, index: int) -> None:
        """Simulate one combination and write its files, one a split; nothing is written before all of it is sound."""
        combination = self.combinations()[index]
        for split, fields in self.simulate(index).items():
            write(
                file_of(folder, split, self.stem(combination)),
                self.solver.name,
                fields,
                combination,
                {dim: values.cpu().numpy() for dim, values in self.solver.coords().items()},
                np.arange(self.frames) * self.dt,
                self.solver.boundaries,
                self.solver.constants,
            )


def file_of(folder: Path, split: str, stem: str) -> Path:
    """Return where the trajectories of one combination and split lie."""
    return folder / "data" / split / f"{stem}.hdf5"


def simulate(cfg: DictConfig) -> None:
    """Simulate the ensemble `cfg.system` into the folder <root>/<name>, from where an earlier run of it stopped.

    `cfg` is what `compose(argv, base="simulate")` gives; the files do not depend on `cfg.workers` (default: one a
    core). Raises UserError for a folder that holds anything else, a full disk and an unstable combination.
    """
    on_gpu = str(cfg.device).startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        raise UserError(f"device={cfg.device}: no GPU can be used here; set device=cpu")
    folder = Path(cfg.root, cfg.name)
    ensemble: Ensemble = build(cfg.system)
    check(ensemble)
    config = {"allow": cfg.get("allow"), "system": OmegaConf.to_container(cfg.system, resolve=True)}
    claim(folder, config)
    sweep(folder)
    stems = [ensemble.stem(combination) for combination in ensemble.combinations()]
    todo = [
        index
        for index, stem in enumerate(stems)
        if not all(file_of(folder, split, stem).exists() for split in ensemble.trajectories)
    ]
    each = sum(ensemble.trajectories.values())
    size, free = each * ensemble.bytes_per_trajectory(), free_bytes(folder)
    had = f", of which {len(stems) - len(todo)} are there" if len(todo) < len(stems) else ""
    if cfg.workers is not None and cfg.workers < 1:
        raise UserError(f"workers={cfg.workers}: must be 1 or more; leave it out for one a core")
    workers = min(len(todo), cfg.workers or (1 if on_gpu else len(os.sched_getaffinity(0))))
    memory, there = workers * ensemble.bytes_in_memory(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(
        f"{folder}: {len(stems)} parameter combinations of {each} trajectories{had}, {amount(len(stems) * size)}; "
        + (f"{workers} processes, about {amount(memory)} of memory" if todo else "all there"),
        flush=True,
    )
    if memory > there:
        raise UserError(f"workers: {workers} need {amount(memory)} of memory and the machine has {amount(there)}; "
                        "lower workers, system.batch or system.trajectories")  # fmt: skip
    if len(todo) * size > free:
        raise UserError(f"{folder}: needs {amount(len(todo) * size)} and the disk has {amount(free)} free; "
                        "set root=... to another disk or lower system.trajectories")  # fmt: skip
    try:
        for _ in track(run(config, folder, todo, workers), folder.name, len(todo)):
            pass
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error


def check(ensemble: Ensemble) -> None:
    """Raise UserError where the plan makes no sense: unknown splits, nothing to do, one file name for two."""
    if unknown := set(ensemble.trajectories) - set(SPLITS):
        raise UserError(f"system.trajectories: {', '.join(sorted(unknown))} is no split; there is {', '.join(SPLITS)}")
    if not ensemble.trajectories or min(*ensemble.trajectories.values(), ensemble.frames, ensemble.batch) < 1:
        raise UserError("system: every split of system.trajectories, system.frames and system.batch must be at least 1")
    if not 0 < ensemble.dt < math.inf:
        raise UserError(f"system.dt: {ensemble.dt:g} is no time from frame to frame; give a number above 0")
    grid = list(ensemble.solver.grid)
    if len(grid) != 2 or min(grid) < 4:
        raise UserError(f"system.solver.grid: {grid} is no grid; give two numbers of at least 4")
    if not ensemble.combinations():
        raise UserError("system.parameters: there is no combination of values; give some for every parameter")
    known = ensemble.solver.parameters
    for combination in ensemble.combinations():
        for name in sorted(combination.keys() ^ set(known)):
            hint = did_you_mean(name, known) if name in combination else "; give values"
            said = "is no parameter of the system" if name in combination else "has no value"
            raise UserError(f"system.parameters.{name}: {said}{hint}")
    stems = [ensemble.stem(combination) for combination in ensemble.combinations()]
    if doubles := {stem for stem in stems if stems.count(stem) > 1}:
        raise UserError(f"system.parameters: {min(doubles)} occurs twice; give every combination once")


def claim(folder: Path, config: dict[str, Any]) -> None:
    """Write what the folder is for, or make sure that it already is for that; raises UserError naming what differs."""
    path = folder / MANIFEST
    if path.exists():
        there, here = leaves(read_yaml(path, "set name=... or delete the folder")), leaves(config)
        differ = [f"{key} {there.get(key, 'unset')}, now {here.get(key, 'unset')}"
                  for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]  # fmt: skip
        if differ:
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise UserError(f"{folder}: holds another simulation ({'; '.join(differ[:3])}{more}); "
                            "set name=... or delete the folder")  # fmt: skip
    elif (folder / "data").exists():
        raise UserError(f"{folder}: holds data that were not simulated here ({MANIFEST} is missing); set name=...")
    else:
        write_text(path, OmegaConf.to_yaml(OmegaConf.create(config)))


def sweep(folder: Path) -> None:
    """Remove the half-written files of killed processes; one that still lives keeps its own."""
    for path in (*folder.glob(f".{MANIFEST}.*"), *folder.glob("data/*/.*.hdf5.*")):
        if not Path("/proc", path.suffix[1:]).exists():
            path.unlink(missing_ok=True)


def leaves(node: Any, key: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    if not isinstance(node, Mapping):
        return {key: node}
    return {k: v for name, inner in node.items() for k, v in leaves(inner, f"{key}.{name}" if key else name).items()}


def run(config: Any, folder: Path, jobs: Sequence[int], workers: int) -> Iterator[int]:
    """Do the jobs in this process (one worker) or in several, and yield each when its files are there."""
    if workers <= 1:
        threads = torch.get_num_threads()
        try:
            ensemble = prepare(config)
            for job in jobs:
                ensemble.write(folder, job)
                yield job
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    waiting, processes, pipes = list(reversed(jobs)), [], list[Any]()
    # The workers inherit the mask: an interrupt is for us to answer, and one that comes meanwhile is kept for us.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, config, folder), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
            hand(here, waiting.pop())
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        while pipes:
            ready: list[Any] = wait(pipes)
            for pipe in ready:
                yield answer(pipe)
                if waiting:
                    hand(pipe, waiting.pop())
                else:
                    pipes.remove(pipe)
                    pipe.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        for process in processes:
            process.terminate()
            process.join()


ENDED = UserError("workers: one ended early, perhaps for want of memory; lower workers=...")


def hand(pipe: Any, job: int) -> None:
    """Give a worker its next job."""
    try:
        pipe.send(job)
    except ConnectionError:
        raise ENDED from None


def answer(pipe: Any) -> int:
    """Return the job that a worker has done; raises what stopped it, an OSError of the disk's included."""
    try:
        said = pipe.recv()
    except (EOFError, ConnectionError):
        raise ENDED from None
    if isinstance(said, Exception):
        raise said
    return int(said)


def serve(pipe: Connection, config: Any, folder: Path) -> None:
    """Do the jobs that come through the pipe until it closes, which it also does when the parent is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that no temporary file stays
    ensemble = prepare(config)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # done: the parent need not hurry us
            return
        try:
            ensemble.write(folder, job)
        except (UserError, OSError) as error:
            pipe.send(error)
        else:
            pipe.send(job)


def prepare(config: Any) -> Ensemble:
    """Build the ensemble in a process that is to simulate it, with one thread."""
    torch.set_num_threads(1)
    torch.empty(31 << 20, dtype=torch.uint8)  # freed at once: makes glibc keep the memory that every step takes anew
    ensemble: Ensemble = build(OmegaConf.create(config).system)
    return ensemble
