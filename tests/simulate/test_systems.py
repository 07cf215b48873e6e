"""Every system of conf/system: its presets can be built, and what it writes is in The Well's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import physrep
from physrep.config import build, compose
from physrep.data.well import WellSplit
from physrep.simulate.engine import Ensemble, check, simulate

SYSTEMS = sorted(path.stem for path in (Path(physrep.__file__).parent.parent / "conf" / "system").glob("*.yaml"))
KNOWN = {
    "active_matter": (["L", "zeta", "alpha"], ["PERIODIC", "PERIODIC"], 11),
    "gray_scott": (["F", "k"], ["PERIODIC", "PERIODIC"], 2),
    "rayleigh_benard": (["Rayleigh", "Prandtl"], ["PERIODIC", "WALL"], 4),
    "shear_flow": (["Reynolds", "Schmidt"], ["PERIODIC", "PERIODIC"], 4),
}


@pytest.mark.parametrize("preset", ["tiny", "small", "medium"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_preset_is_a_plan(system: str, preset: str) -> None:
    cfg = compose([f"system={system}", f"preset={preset}"], base="simulate")
    ensemble: Ensemble = build(cfg.system)
    check(ensemble)
    assert cfg.name == f"{system}_{preset}"
    assert len(ensemble.combinations()) >= 4
    assert {split for split, count in ensemble.trajectories.items() if count > 1} == {"train", "valid", "test"}
    state = ensemble.solver.initial(ensemble.generator("train", 0, 0))
    assert state.dtype == torch.float64 and torch.isfinite(state).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_a_system_writes_is_the_wells(system: str, tmp_path: Path) -> None:
    trajectories = "system.trajectories={train: 2, valid: 1, test: 1}"
    changes = [f"system={system}", "preset=tiny", f"root={tmp_path}", "name=few", "workers=1", trajectories]
    cfg = compose([*changes, "system.frames=4"], base="simulate")
    simulate(cfg)
    ensemble: Ensemble = build(cfg.system)
    names, boundaries, channels = KNOWN[system]

    split = WellSplit(tmp_path / "few" / "data" / "train")
    assert (split.header.dataset, split.header.frames) == (ensemble.solver.name, 4)
    assert split.header.shape == ensemble.solver.grid
    assert list(split.header.scalars) == names
    assert [split.header.boundaries[dim] for dim in "xy"] == boundaries
    assert len(split.header.channels) == channels
    values = np.stack([split.read(trajectory, 0, 4) for trajectory in range(split.trajectories)])
    assert np.isfinite(values).all() and (np.diff(values, axis=2) != 0).any((2, 3, 4)).all()
    combinations = [tuple(c.values()) for c in ensemble.combinations()]
    theta = split.theta(names[-2:])
    np.testing.assert_allclose(sorted(set(map(tuple, theta))), sorted(combinations), rtol=1e-6)

    reader = pytest.importorskip("the_well.data")
    data = reader.WellDataset(path=str(tmp_path / "few"), well_split_name="train", n_steps_input=3, n_steps_output=1)
    assert len(data) == split.trajectories == 2 * len(combinations)
    for index in (0, len(data) - 1):
        item = data[index]
        fields = torch.cat([item["input_fields"], item["output_fields"]]).movedim(-1, 0)
        np.testing.assert_array_equal(fields.numpy(), values[index])
        assert item["constant_scalars"][-2:].tolist() == pytest.approx(theta[index].tolist())
    kinds = {"PERIODIC": 2.0, "WALL": 0.0}
    assert item["boundary_conditions"].tolist() == [[kinds[kind]] * 2 for kind in boundaries]
    x, y = ensemble.solver.coords().values()
    np.testing.assert_allclose(item["space_grid"][:, 0, 0].numpy(), x.numpy(), rtol=1e-6)
    np.testing.assert_allclose(item["space_grid"][0, :, 1].numpy(), y.numpy(), rtol=1e-6)
