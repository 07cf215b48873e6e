"""Data sets from plans: the same bytes whatever happens, nothing half-written, readable by The Well's own reader."""

from __future__ import annotations

import errno
import hashlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import physrep
from physrep.config import build, compose
from physrep.data.well import WellSplit
from physrep.errors import UserError
from physrep.simulate import engine
from physrep.simulate.engine import Ensemble, simulate

HOME = Path(physrep.__file__).parent.parent
SYSTEM = {
    "_target_": "physrep.simulate.engine.Ensemble",
    "solver": {"_target_": "physrep.simulate.shear_flow.ShearFlow", "grid": [16, 32]},
    "parameters": {"Reynolds": [50, 100], "Schmidt": [0.5, 2]},
    "trajectories": {"train": 3, "valid": 1, "test": 2},
    "frames": 3,
    "dt": 0.2,
}


SCRIPT = """
import sys
from omegaconf import OmegaConf
from physrep.simulate.engine import simulate

if __name__ == "__main__":
    simulate(OmegaConf.load(sys.argv[1]))
"""


def config(root: Path, workers: int = 1, name: str = "waves", **system: Any) -> Any:
    where = {"root": str(root), "name": name, "workers": workers, "device": "cpu"}
    return OmegaConf.create(where | {"system": SYSTEM | system})


def contents(folder: Path) -> dict[str, str]:
    """The hash of every dataset of every file."""
    out = {}
    for path in sorted(folder.rglob("*.hdf5")):
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
            for name in names:
                if isinstance(file[name], h5py.Dataset):
                    value = np.asarray(file[name])
                    out[f"{path.relative_to(folder)}/{name}"] = hashlib.sha256(value.tobytes()).hexdigest()
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set simulated without interruption by one worker."""
    root = tmp_path_factory.mktemp("datasets")
    simulate(config(root))
    return root / "waves"


def test_every_combination_has_a_file_in_every_split(whole: Path) -> None:
    names = {f"shear_flow_Reynolds_{re}_Schmidt_{sc}.hdf5" for re in (50, 100) for sc in (0.5, 2)}
    for split, count in {"train": 3, "valid": 1, "test": 2}.items():
        assert {path.name for path in (whole / "data" / split).iterdir()} == names
        held = WellSplit(whole / "data" / split)
        assert held.trajectories == 4 * count
        assert held.header.channels == ["tracer", "pressure", "velocity_x", "velocity_y"]
        assert np.unique(held.theta(["Reynolds", "Schmidt"]), axis=0).tolist() == [
            [50.0, 0.5], [50.0, 2.0], [100.0, 0.5], [100.0, 2.0]
        ]  # fmt: skip


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_two_workers(whole: Path, tmp_path: Path) -> None:
    simulate(config(tmp_path, workers=2))
    assert contents(tmp_path / "waves") == contents(whole)
    assert (tmp_path / "waves" / engine.MANIFEST).read_bytes() == (whole / engine.MANIFEST).read_bytes()


def test_another_seed_gives_other_flows(whole: Path, tmp_path: Path) -> None:
    simulate(config(tmp_path, seed=1))
    here, there = contents(tmp_path / "waves"), contents(whole)
    assert all(here[key] != there[key] for key in here if "_fields" in key)
    assert all(here[key] == there[key] for key in here if "dimensions" in key)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL])
def test_an_interrupted_run_leaves_whole_files_only_and_continues_to_the_same_bytes(tmp_path: Path, stop: int) -> None:
    many = {"trajectories": {"train": 6, "valid": 2, "test": 2}, "frames": 300}
    simulate(config(tmp_path, name="uninterrupted", **many))
    cfg, folder = config(tmp_path, workers=2, **many), tmp_path / "waves"
    OmegaConf.save(cfg, tmp_path / "cfg.yaml")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "cfg.yaml")]
    process = subprocess.Popen(command, cwd=HOME, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: any(folder.rglob("*.hdf5")))
    process.send_signal(stop)
    process.wait(30)
    until(lambda: not alive(process.pid))
    there = set(contents(folder))
    assert there and there < set(contents(tmp_path / "uninterrupted"))
    assert stop == signal.SIGKILL or not list(folder.rglob(".*"))
    simulate(cfg)
    assert contents(folder) == contents(tmp_path / "uninterrupted")
    assert not list(folder.rglob(".*"))


def until(done: Any, seconds: float = 30) -> None:
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < seconds
        time.sleep(0.002)


def alive(group: int) -> bool:
    """Whether any process of the group still runs."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(int(line.split()[0]) == group and not line.split()[1].startswith("Z") for line in listed.splitlines())


def test_what_is_there_is_not_simulated_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(Ensemble, "simulate", forbidden)
    simulate(config(whole.parent))


def test_a_folder_with_another_configuration_is_refused(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(
        UserError, match=r"waves: holds another simulation \(system.frames 3, now 4\); set name="
    ) as caught:
        simulate(config(whole.parent, frames=4))
    assert "\n" not in str(caught.value)
    assert contents(whole) == before


def test_a_folder_with_data_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "waves" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match="not simulated here"):
        simulate(config(tmp_path))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_combination_that_blows_up_is_named_and_not_written(tmp_path: Path, workers: int) -> None:
    antidiffusive = {"Reynolds": [50, -1], "Schmidt": [1, 2]}
    with pytest.raises(UserError, match=r"Reynolds -1, Schmidt \d is not stable"):
        simulate(config(tmp_path, workers, parameters=antidiffusive))
    assert not any("_-1_" in path.name for path in (tmp_path / "waves").rglob("*"))
    assert not list((tmp_path / "waves").rglob(".*"))


def test_a_full_disk_is_seen_before_anything_is_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match="needs 1 MB and the disk has 0 MB free"):
        simulate(config(tmp_path))


SMALL_FILES = """
import resource, sys
from omegaconf import OmegaConf
from physrep import errors
from physrep.simulate.engine import simulate

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    errors.run(lambda argv: simulate(OmegaConf.load(argv[0])))
"""


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(engine, "write", full)
    said = r"waves/data/train/shear_flow_\w+\.5\.hdf5: cannot be written \(No space left on device\)$"
    with pytest.raises(UserError, match=said):
        simulate(config(tmp_path))


@pytest.mark.slow
def test_a_worker_whose_disk_refuses_a_file_says_so(tmp_path: Path) -> None:
    OmegaConf.save(config(tmp_path, workers=2), tmp_path / "cfg.yaml")
    (tmp_path / "script.py").write_text(SMALL_FILES)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "cfg.yaml")]
    environment = os.environ | {"PYTHONPATH": str(HOME), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("physrep: ")]
    assert len(said) == 1 and said[0].endswith(".hdf5: cannot be written (File too large)")
    assert not list((tmp_path / "waves").rglob("*.hdf5*"))


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    simulate(config(tmp_path))
    train = tmp_path / "waves" / "data" / "train"
    dead, mine = train / ".a.hdf5.999999999", train / f".b.hdf5.{os.getpid()}"
    dead.touch()
    mine.touch()
    simulate(config(tmp_path))
    assert not dead.exists() and mine.exists()


def test_a_manifest_that_is_not_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "waves").mkdir()
    (tmp_path / "waves" / engine.MANIFEST).write_text("a: [1")
    with pytest.raises(UserError, match=r"waves/simulation\.yaml: not YAML; set name=\.\.\. or delete the folder$"):
        simulate(config(tmp_path))


@pytest.mark.parametrize("call", ["hand", "answer"])
def test_a_worker_that_died_is_told(call: str) -> None:
    here, there = multiprocessing.Pipe()
    there.close()
    with pytest.raises(UserError, match="workers: one ended early"):
        engine.hand(here, 1) if call == "hand" else engine.answer(here)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trajectories": {"train": 1, "val": 1}}, "val is no split"),
        ({"trajectories": {"train": 0}}, "must be at least 1"),
        ({"trajectories": {}}, "must be at least 1"),
        ({"frames": 0}, "must be at least 1"),
        ({"batch": 0}, "must be at least 1"),
        ({"dt": 0}, "system.dt: 0 is no time"),
        ({"dt": float("nan")}, "system.dt: nan is no time"),
        ({"solver": SYSTEM["solver"] | {"grid": [2, 16]}}, r"system.solver.grid: \[2, 16\] is no grid"),
        ({"parameters": {"Reynolds": [50, 50.0], "Schmidt": [1]}}, "occurs twice"),
    ],
)
def test_a_plan_that_cannot_be_written_is_refused(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        simulate(config(tmp_path, **wrong))
    assert not (tmp_path / "waves").exists()


def test_initial_states_are_distinct_over_trajectories_combinations_and_splits() -> None:
    ensemble: Ensemble = build(SYSTEM)
    places = list(itertools.product(("train", "valid", "test"), range(4), range(6)))
    states = torch.stack([ensemble.solver.initial(ensemble.generator(*place)).flatten() for place in places])
    distance = torch.cdist(states, states) + torch.eye(len(states)) * 1e9
    assert distance.min() > 0.1


def test_shared_initial_states_are_the_same_for_all_combinations_and_distinct_else() -> None:
    ensemble: Ensemble = build(SYSTEM | {"shared_initial": True})

    def state(*place: Any) -> torch.Tensor:
        return ensemble.solver.initial(ensemble.generator(*place))

    assert torch.equal(state("train", 0, 1), state("train", 3, 1))
    assert not torch.allclose(state("train", 0, 1), state("train", 0, 2))
    assert not torch.allclose(state("train", 0, 1), state("test", 0, 1))


def test_a_batch_is_only_a_matter_of_speed() -> None:
    small, large = (build(SYSTEM | {"batch": n}).simulate(2) for n in (1, 4))
    for split, fields in small.items():
        for name in fields:
            np.testing.assert_allclose(large[split][name], fields[name], rtol=1e-5, atol=1e-6)


def test_more_trajectories_begin_with_the_earlier_ones() -> None:
    few, more = (build(SYSTEM | {"trajectories": {"train": n}}).simulate(1)["train"] for n in (3, 5))
    for name in few:
        np.testing.assert_allclose(more[name][:3], few[name], rtol=1e-5, atol=1e-6)


def test_combinations_may_be_listed() -> None:
    pairs = [{"Reynolds": 100.0, "Schmidt": 1.0}, {"Reynolds": 200.0, "Schmidt": 0.5}]
    assert build(SYSTEM | {"parameters": pairs}).combinations() == pairs


def test_the_wells_own_reader_sees_the_same_numbers(whole: Path) -> None:
    reader = pytest.importorskip("the_well.data")
    data = reader.WellDataset(path=str(whole), well_split_name="test", n_steps_input=2, n_steps_output=1)
    ensemble: Ensemble = build(SYSTEM)
    assert len(data) == 8
    item, fields = data[3], ensemble.simulate(3)["test"]  # the second trajectory of the second file, Re 100, Sc 2
    flat = np.concatenate([v.reshape(*v.shape[:4], -1) for v in fields.values()], -1)
    np.testing.assert_array_equal(torch.cat([item["input_fields"], item["output_fields"]]).numpy(), flat[1])
    names = [data.metadata.field_names[rank] for rank in (0, 1)]
    assert names == [["tracer", "pressure"], ["velocity_x", "velocity_y"]]
    by_name = dict(zip(data.metadata.constant_scalar_names, item["constant_scalars"].tolist(), strict=True))
    assert by_name == ensemble.combinations()[3]
    assert item["boundary_conditions"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
    np.testing.assert_allclose(item["input_time_grid"].numpy(), [0.0, 0.2], rtol=1e-6)
    assert item["space_grid"].shape == (16, 32, 2)


def test_a_plan_that_does_not_fit_into_memory_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PROCESS", 10**15)
    with pytest.raises(UserError, match=r"workers: 2 need 2000000.* of memory .* lower workers"):
        engine.simulate(compose(["system=shear_flow", "preset=tiny", f"root={tmp_path}", "workers=2"], base="simulate"))
    assert not list(tmp_path.rglob("*.hdf5"))


def test_memory_counts_what_a_process_holds():
    ensemble = build(compose(["system=shear_flow", "preset=tiny"], base="simulate").system)
    size = 4 * 33 * 32 * 64 * 4  # bytes, frames, cells, channels of a trajectory
    assert ensemble.bytes_in_memory() == engine.PROCESS + (10 + 2 * 6 + 3 * 12) * size


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"Reynold": [1], "Reynolds": [50], "Schmidt": [1]},
            "Reynold: is no parameter of the system; did you mean Reynolds",
        ),
        ({"Reynolds": [50]}, "Schmidt: has no value"),
    ],
)
def test_the_parameters_are_those_of_the_system(tmp_path, parameters, said):
    with pytest.raises(UserError, match=rf"system\.parameters\.{said}"):
        simulate(config(tmp_path, parameters=parameters))
    assert not (tmp_path / "waves").exists()
