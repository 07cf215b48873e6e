"""Every shipped experiment: its cells compose, and take a step on files of their sets' shapes."""

import shutil
from pathlib import Path

import pytest
import torch

from physrep.config import build, compose
from physrep.errors import UserError
from physrep.fit import main as fit
from physrep.objectives.teacher import Teacher
from physrep.run import build_objective
from physrep.sweep import cells
from tests.data.test_real_shapes import LAYOUTS, publish

EXPERIMENTS = sorted(path.parent.name for path in Path("experiments").glob("*/config.yaml"))
PUBLISHED = ("active_matter", "shear_flow", "rayleigh_benard")
WELL = [name for name in EXPERIMENTS if compose([f"experiment={name}"]).choices.data in PUBLISHED]
SIMULATED = {
    "active_matter": (64, 64),
    "gray_scott": (64, 64),
    "rayleigh_benard": (128, 32),
    "shear_flow": (64, 128),
}  # the grids of their small sets


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_cells_compose_and_have_names_of_their_own(name, tmp_path):
    planned = cells([f"experiment={name}", f"runs={tmp_path}", "seed=0"])
    assert len({cell.folder for cell in planned}) == len(planned) > 0
    assert {cell.folder.parent.name for cell in planned} == {name}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Small files: those of The Well's sets, and with the grids of the simulated ones."""
    folder = tmp_path_factory.mktemp("sets")
    for name in PUBLISHED:
        publish(folder / name, name, LAYOUTS[name], n=2, frames=33)
    for name, grid in SIMULATED.items():
        dims, _, *rest = LAYOUTS[name]
        publish(folder / f"{name}_small", name, (dims, grid, *rest), n=2, frames=25)
    yield folder
    shutil.rmtree(folder)


def each(name):
    """The distinct cells of an experiment: those of one seed."""
    return cells([f"experiment={name}", "seed=0"])


def kinds(name):
    """One cell for each encoder and objective, and one for each dataset at least."""
    found, data = {}, list(PUBLISHED)
    for cell in each(name):
        choices = compose(cell.argv).choices
        key = (choices.encoder, choices.objective)
        if key not in found or (choices.data in data and choices.data != compose(found[key].argv).choices.data):
            found[key] = cell
            data = [d for d in data if d != choices.data] or list(PUBLISHED)
    return found.values()


KINDS = [cell for name in WELL for cell in kinds(name)]
ENCODERS = sorted({word for cell in KINDS for word in cell.argv if word.startswith("encoder=")})


@pytest.mark.slow
@pytest.mark.parametrize("argv", [pytest.param(cell.argv, id=cell.folder.name) for cell in KINDS])
def test_the_wells_cells_take_a_step(argv, root, tmp_path, capsys):
    """On files of their shapes, and with the published sizes; resized to fewer cells, for the time it takes."""
    small = ["trainer=cpu", "data.size=[64,64]", "data.batch_size=2", f"data.root={root}", f"runs={tmp_path}"]
    fit([*argv, *small, "dry_run=true"])
    said = capsys.readouterr().out
    assert "losses loss " in said and "nan" not in said
    assert not list(tmp_path.iterdir()), "a dry run leaves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in WELL])
def test_every_cell_on_a_simulated_set_takes_a_step(name, root, tmp_path, capsys):
    """With all of its options, on files of the set's shapes; of two trajectories, which leave none to hold out."""
    wrong = {}
    for argv in dict.fromkeys(tuple(a for a in cell.argv if not a.startswith("data.split=")) for cell in each(name)):
        try:
            fit([*argv, "data.batch_size=2", f"data.root={root}", f"runs={tmp_path}", "dry_run=true"])
        except UserError as error:
            wrong[" ".join(argv)] = str(error)
        else:
            said = capsys.readouterr().out
            if "losses loss " not in said or "nan" in said:
                wrong[" ".join(argv)] = said
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", WELL)
def test_every_cell_on_the_wells_data_builds_and_encodes_its_own_size(name, root, monkeypatch):
    """224 x 224, as its file says; weights and clips are shapes alone, which no average can be taken of."""
    monkeypatch.setattr(Teacher, "update_parameters", lambda *_: None)
    wrong = {}
    for cell in each(name):
        cfg = compose([*cell.argv, f"data.root={root}"])
        data = build(cfg.data, seed=0)
        assert data.size == [224, 224]
        try:
            with torch.device("meta"):
                objective = build_objective(cfg, data.meta())
                clip = torch.zeros(2, len(data.channels), data.frames, *data.size)
                assert objective.encode(clip).shape[::2] == (2, objective.encoder.width)
        except UserError as error:
            wrong[cell.folder.name] = str(error)
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_wells_encoders_encode_a_clip_of_the_published_size(encoder):
    node = build(compose([encoder]).encoder, channels=11)
    with torch.inference_mode():
        features = node(torch.randn(1, 11, 16, 224, 224))
    assert features.shape[:2] == (1, node.width)
    assert features.isfinite().all()
