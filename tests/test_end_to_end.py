"""From nothing to a table, by the commands a user types."""

import csv
import subprocess
import sys

import pytest


def physrep(verb, *arguments, cwd):
    command = [sys.executable, "-m", f"physrep.{verb}", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_simulate_fit_probe_report(tmp_path):
    small = ["data=shear_flow_tiny",  "data.batch_size=8", "trainer.max_steps=4"]  # fmt: skip
    physrep("simulate", "system=shear_flow", "preset=tiny", cwd=tmp_path)
    for objective in ("random", "jepa", "views"):
        physrep("fit", "experiment=demo", f"objective={objective}", *small, cwd=tmp_path)
    physrep("probe", "experiment=demo", *small, "probe.attentive.epochs=2", cwd=tmp_path)
    table = physrep("report", "experiment=demo", cwd=tmp_path)
    for name in ("mean", "statistics", "random", "jepa", "views"):
        assert name in table
    folder = tmp_path / "runs" / "demo" / "report"
    tables = {"table.md", "table.csv", "table.tex"}
    assert {p.name for p in folder.iterdir()} == {
        *tables,
        "report.html",
        "predictions.png",
        "budget.png",
        "embedding.png",
    }
    with (folder / "table.csv").open() as f:
        assert {r["objective"] for r in csv.DictReader(f)} == {"mean", "statistics", "random", "jepa", "views"}
    before = (tmp_path / "runs" / "demo" / "results.jsonl").read_bytes()
    said = physrep("simulate", "system=shear_flow", "preset=tiny", cwd=tmp_path)
    said += physrep("fit", "experiment=demo", "objective=jepa", *small, cwd=tmp_path)
    said += physrep("probe", "experiment=demo", *small, "probe.attentive.epochs=2", cwd=tmp_path)
    assert "of which 4 are there" in said
    assert "done already" in said
    assert "complete already" in said
    assert (tmp_path / "runs" / "demo" / "results.jsonl").read_bytes() == before
