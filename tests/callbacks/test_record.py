"""metrics.csv across a resume, checkpoints that are whole or absent."""

import csv

import pytest
import torch

from physrep.callbacks.record import AtomicCheckpoints, MetricsCsv


def rows(path):
    with path.open() as f:
        return [(int(r["step"]), r["name"], float(r["value"])) for r in csv.DictReader(f)]


def test_a_resumed_run_goes_on_after_its_step(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsCsv(path, resumed_at=0)
    for step in (10, 20, 30):
        log.log_metrics({"train/loss": step / 7, "epoch": 0}, step)
    with path.open("a") as f:
        f.write("40,train/lo")
    MetricsCsv(path, resumed_at=30).log_metrics({"train/loss": 1.0, "new/name": 2.0}, 35)
    kept = [(10, "train/loss", 1.4285714), (20, "train/loss", 2.8571429)]
    assert rows(path) == [*kept, (35, "train/loss", 1.0), (35, "new/name", 2.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_checkpoint_is_whole_or_absent(tmp_path, monkeypatch):
    place = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"a": torch.ones(3)}, place)
    assert torch.equal(torch.load(place)["a"], torch.ones(3))

    def stop(_, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpoints().save_checkpoint({"a": torch.zeros(3)}, place)
    assert torch.equal(torch.load(place)["a"], torch.ones(3))
    assert [p.name for p in place.parent.iterdir()] == ["last.ckpt"]
