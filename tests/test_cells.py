"""Every shipped experiment: its cells compose, and those of The Well's own data take a step on files of its shapes."""

from pathlib import Path

import pytest

from physrep.config import compose
from physrep.fit import main as fit
from physrep.sweep import cells
from tests.data.test_real_shapes import LAYOUTS, publish

EXPERIMENTS = sorted(path.parent.name for path in Path("experiments").glob("*/config.yaml"))
PUBLISHED = ("active_matter", "shear_flow", "rayleigh_benard")
WELL = [name for name in EXPERIMENTS if compose([f"experiment={name}"]).choices.data in PUBLISHED]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_cells_compose_and_have_names_of_their_own(name, tmp_path):
    planned = cells([f"experiment={name}", f"runs={tmp_path}", "seed=0"])
    assert len({cell.folder for cell in planned}) == len(planned) > 0
    assert {cell.folder.parent.name for cell in planned} == {name}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("well")
    for name in PUBLISHED:
        publish(folder / name, name, LAYOUTS[name], n=2, frames=33)
    return folder


def kinds(name):
    """One cell for each encoder and objective, and one for each dataset at least."""
    found, data = {}, list(PUBLISHED)
    for cell in cells([f"experiment={name}", "seed=0"]):
        choices = compose(cell.argv).choices
        key = (choices.encoder, choices.objective)
        if key not in found or (choices.data in data and choices.data != compose(found[key].argv).choices.data):
            found[key] = cell
            data = [d for d in data if d != choices.data] or list(PUBLISHED)
    return found.values()


@pytest.mark.slow
@pytest.mark.parametrize("argv", [pytest.param(c.argv, id=c.folder.name) for name in WELL for c in kinds(name)])
def test_the_wells_cells_take_a_step(argv, root, tmp_path, capsys):
    """On files of their shapes, and with the published sizes; resized to fewer cells, for the time it takes."""
    small = ["trainer=cpu", "data.size=[64,64]", "data.batch_size=2", f"data.root={root}", f"runs={tmp_path}"]
    fit([*argv, *small, "dry_run=true"])
    said = capsys.readouterr().out
    assert "losses loss " in said and "nan" not in said
    assert not list(tmp_path.iterdir()), "a dry run leaves nothing"
