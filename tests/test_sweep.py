"""Grids of runs: what they expand to, what is skipped, what a failed or a running one does to the rest."""

import sys
from pathlib import Path

import pytest
import yaml

from physrep import sweep
from physrep.errors import UserError
from physrep.results import read
from physrep.sweep import Cell, cells, claimed, main


def test_commas_and_the_experiment_span_the_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "sweep": [
            {"objective": ["jepa", "views"], "encoder": "conv_tiny"},
            {"objective": "views", "encoder": "conv_small", "data.cut": None},
        ]
    }
    Path("experiments/mine").mkdir(parents=True)
    Path("experiments/mine/config.yaml").write_text(yaml.safe_dump(config))
    planned = cells(["experiment=mine", "data=shear_flow_tiny", "seed=0,1"])
    pairs = [("jepa", "conv_tiny"), ("views", "conv_tiny"), ("views", "conv_small")]
    end = {"conv_tiny": "", "conv_small": "-cut=null"}
    names = {f"shear_flow_tiny-{o}-{e}-seed{s}{end[e]}" for o, e in pairs for s in (0, 1)}
    assert {cell.folder.name for cell in planned} == names
    assert {cell.folder.parent for cell in planned} == {Path("runs/mine")}
    one = cells(["experiment=mine", "data=shear_flow_tiny", "objective=jepa"])
    assert [cell.folder.name for cell in one] == [
        "shear_flow_tiny-jepa-conv_tiny-seed0",
        "shear_flow_tiny-jepa-conv_small-seed0-cut=null",
    ]
    with pytest.raises(UserError, match=r"objective=jep: no such choice; did you mean jepa"):
        cells(["objective=views,jep"])
    with pytest.raises(UserError, match="run: is the name of one run"):
        cells(["seed=0,1", "run=mine"])


def test_status_follows_the_folder_and_the_lock(tmp_path):
    cell = Cell([], tmp_path / "dev" / "a")
    assert cell.status() == "pending"
    cell.log.parent.mkdir(parents=True)
    with claimed(cell.log) as log:
        assert log is not None
        assert cell.status() == "running"
        with claimed(cell.log) as second:
            assert second is None
        print("physrep: out of luck", file=log, flush=True)
    assert cell.status() == "failed"
    assert cell.last_line() == "physrep: out of luck"
    cell.folder.mkdir()
    (cell.folder / "summary.json").write_text("{}")
    assert cell.status() == "done"
    with claimed(cell.log) as log:
        assert log is None, "done by another sweep in the meantime"
    assert cell.last_line() == "physrep: out of luck"


def test_a_failed_run_stops_nothing_and_is_tried_again(tmp_path, monkeypatch, capsys):
    """With a stand-in for fit: 0 fails until a file appears, 1 is done at once; probe is asked for once a sweep."""
    asked = []
    monkeypatch.setattr(sweep, "probe", lambda folder, argv: asked.append(folder))

    def run(command, stdout, stderr, check):
        cfg = dict(argument.split("=") for argument in command[3:])
        folder = next(c.folder for c in planned if f"seed={cfg['seed']}" in c.argv)
        if cfg["seed"] == "0" and not (tmp_path / "mended").exists():
            print("physrep: seed 0 is cursed", file=stdout)
        else:
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text('{"metrics": {"valid/loss": 2.5, "rank/effective": 1.25}}')

    argv = ["data=shear_flow_tiny", "seed=0,1", f"runs={tmp_path / 'runs'}"]
    planned = cells(argv)
    monkeypatch.setattr(sweep.subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "2 runs: 1 done, 0 running, 1 failed, 0 pending" in said
    assert f"failed   {planned[0].folder}: physrep: seed 0 is cursed" in said
    (tmp_path / "mended").touch()
    main(argv)
    assert "2 runs, 1 done already" in (said := capsys.readouterr().out)
    assert "2 runs: 2 done, 0 running, 0 failed, 0 pending" in said
    main([*argv, "--status"])
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split() == list(sweep.MONITORS)
    assert [line.split() for line in lines] == [[cell.folder.name, "2.5", "1.25"] for cell in planned]
    assert last == "2 runs: 2 done, 0 running, 0 failed, 0 pending"
    assert asked == [tmp_path / "runs" / "dev"] * 2


@pytest.mark.slow
def test_from_a_grid_to_rows(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep"])
    argv = ["data=shear_flow_tiny", f"data.root={datasets}", f"runs={tmp_path}", "objective=jepa,views", "probe=ridge",
            "data.batch_size=8", "trainer.max_steps=2", "controls=[statistics]"]  # fmt: skip
    main(argv)
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {row.objective for row in rows} == {"statistics", "jepa", "views"}
