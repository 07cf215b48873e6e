"""The probe command, end to end on a tiny set: rows, skipping, mistakes."""

import json
import re
import shutil
from pathlib import Path

import h5py
import pytest

from physrep import probe
from physrep.data import transforms
from physrep.errors import UserError
from physrep.fit import main as fit
from physrep.render import markdown
from physrep.results import read
from physrep.tables import table


def arguments(datasets: Path, runs: Path, *more: str) -> list[str]:
    return [
        "data=shear_flow_tiny", f"data.root={datasets}", f"runs={runs}", "data.batch_size=8", "data.frames=8",
        "encoder.widths=[4,8]", "encoder.depths=[1,1]", "encoder.strides=[[4,4,4],[2,2,2]]",
        "encoder.kernels=[[3,3],[3,3]]",
        "trainer.max_steps=6", "objective.warmup=2", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def probed(datasets, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    for objective in ("random", "jepa", "views"):
        fit(arguments(datasets, runs, f"objective={objective}"))
    probe.main(arguments(datasets, runs, "controls=[mean,statistics]", "probe.attentive.epochs=2"))
    return runs


def test_a_row_for_every_objective_probe_and_parameter(probed):
    rows = read(probed / "dev" / "results.jsonl")
    assert {(r.objective, r.probe, r.parameter) for r in rows} == {
        (o, p, t) for o in ("mean", "statistics", "random", "jepa", "views") for p in ("ridge", "attentive, epochs=2")
        for t in ("Reynolds", "Schmidt")
    }  # fmt: skip
    assert len(rows) == 20
    for row in rows:
        assert row.split == "test"
        assert row.data == "shear_flow_tiny"
        assert row.scale == "log10"
        assert len(row.trajectories) == 12
        assert row.n == 12 * 2
        assert len(row.fingerprint) == 16
        assert row.encoder == ("" if row.objective in {"mean", "statistics"} else "conv_tiny")
        assert row.step == (6 if row.objective in {"jepa", "views"} else 0)
        assert (row.splits, row.shared, row.labels, row.layer) == ("well", 0, 1.0, "")
        assert set(row.space) == {"rank", "between", "within"} and len(row.plane) == 12
        trained = row.objective in {"jepa", "views"}
        assert not row.cost if row.encoder == "" else row.cost["windows"] == 6 * 8 * trained
        assert row.encoder == "" or (row.cost["weights"] > 1000 and (row.cost["seconds"] > 0) == trained)
    value = {(r.objective, r.probe, r.parameter): r.value for r in rows}
    assert value["mean", "ridge", "Reynolds"] == pytest.approx(1.0, abs=1e-4), "predicting the mean scores 1"
    assert value["statistics", "ridge", "Reynolds"] < 0.5


def test_run_again_recomputes_nothing(probed, datasets, capsys, monkeypatch):
    before = (probed / "dev" / "results.jsonl").read_bytes()
    monkeypatch.setattr("physrep.probes.embed.embed", lambda *_: pytest.fail("embedded again"))
    probe.main(arguments(datasets, probed, "controls=[mean,statistics]", "probe.attentive.epochs=2"))
    assert "complete already" in capsys.readouterr().out
    assert (probed / "dev" / "results.jsonl").read_bytes() == before


def test_one_run_and_another_probe(probed, datasets):
    (run,) = (probed / "dev").glob("*views*")
    probe.main(arguments(datasets, probed, f"run={run}", "probe=knn"))
    rows = [r for r in read(probed / "dev" / "results.jsonl") if r.probe == "knn"]
    assert [(r.objective, r.parameter, r.run) for r in rows] == [
        ("views", p, str(run)) for p in ("Reynolds", "Schmidt")
    ]


def test_choices_that_are_named_pick_the_runs(probed, datasets, capsys):
    probe.main([*arguments(datasets, probed, "probe=ridge", "objective=jepa"), "--dry-run"])
    said = capsys.readouterr().out
    assert "jepa" in said and "views" not in said and "random" not in said


def test_other_settings_and_windows_stand_beside_the_usual_ones(probed, datasets, tmp_path):
    shutil.copytree(probed / "dev", tmp_path / "dev")
    line = arguments(datasets, tmp_path, "probe=ridge", "objective=jepa")
    probe.main([*line, "data.eval_step=4"])
    probe.main([*line, "probe.ridge.strengths=[0.1,1]"])
    rows = [row for row in read(tmp_path / "dev" / "results.jsonl") if row.objective == "jepa"]
    assert {row.probe for row in rows if "strengths" in row.probe} == {"ridge, strengths=[0.1,1]"}
    ours = [row for row in rows if "eval_step=4" in row.variant]
    assert len(ours) == 2 and all(row.n > 24 for row in ours)
    (section,) = table(rows, 20)
    assert not any("the latest is shown" in note for note in section.notes)


def test_what_cannot_be_probed_is_said_and_passed_over(probed, datasets, tmp_path, capsys):
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl"))
    (broken,) = (tmp_path / "dev").glob("*jepa*")
    (broken / "checkpoints" / "last.ckpt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"last\.ckpt: not a readable checkpoint"):
        probe.main(arguments(datasets, tmp_path, "probe=ridge"))
    assert {row.objective for row in read(tmp_path / "dev" / "results.jsonl")} == {"random", "views"}


def test_finetune_is_for_runs_and_says_so(probed, datasets, tmp_path, capsys):
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl", "embeddings"))
    tuned = ["probe=finetune", "probe.finetune.steps=2", "probe.finetune.checks=1", "controls=[statistics]"]
    probe.main(arguments(datasets, tmp_path, *tuned))
    assert "statistics: has no encoder to unfreeze, no finetune" in capsys.readouterr().err
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {(r.objective, r.probe, r.chosen["step"]) for r in rows} == {
        (objective, "finetune, steps=2, checks=1", 2) for objective in ("random", "jepa", "views")
    }
    (section,) = table(rows, 100)
    assert re.search(r"finetune trains the encoder too, on \d+ windows in \d+ s \(median\)\.", markdown([section]))


def test_finetune_sees_no_noise_of_pretraining(probed, datasets, tmp_path, monkeypatch):
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl", "embeddings"))
    monkeypatch.setattr(transforms, "add_noise", lambda *_: pytest.fail("noise in a probe"))
    noisy = ["data.noise=0.5", "data.dropout=0.25", "objective=random", "probe=finetune", "probe.finetune.steps=2"]
    probe.main(arguments(datasets, tmp_path, *noisy, "probe.finetune.checks=1"))
    (row, _) = read(tmp_path / "dev" / "results.jsonl")
    assert "dropout=0.25" in row.variant and "noise=0.5" in row.variant


def test_unfinished_runs_are_skipped_or_refused(probed, datasets, tmp_path, capsys):
    (run,) = (probed / "dev").glob("*jepa*")
    copy = tmp_path / "runs" / "dev" / "copy"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    with pytest.raises(UserError, match="holds no finished run"):
        probe.main(arguments(datasets, tmp_path / "runs", "probe=ridge"))
    assert "not finished, skipped" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not finished"):
        probe.main(arguments(datasets, tmp_path / "runs", f"run={copy}", "probe=ridge"))


def test_mistakes(probed, datasets, tmp_path):
    cases = {
        "holds no finished run of data=shear_flow_tiny; train one first": arguments(datasets, tmp_path),
        "did you mean mean": arguments(datasets, tmp_path, "controls=[maen]"),
        "not a run folder": arguments(datasets, tmp_path, f"run={tmp_path}"),
        "names no parameter to estimate": arguments(datasets, tmp_path, "controls=[mean]", "data.targets={}"),
        "did you mean ridge": arguments(datasets, tmp_path, "probe=rigde"),
        "probe: is empty": arguments(datasets, tmp_path, "probe=[]"),
        "labels: is empty": arguments(datasets, tmp_path, "labels=[]"),
        "labels: half is no share": arguments(datasets, tmp_path, "labels=[half]"),
        "lrs .-1. must be more than 0": arguments(datasets, probed, "probe=linear", "probe.linear.lrs=[-1]"),
        r"probe\.mlp\.hidden=0": arguments(datasets, probed, "probe=mlp", "probe.mlp.hidden=0"),
        "holds no finished run of data=shear_flow_tiny objective=videomae": arguments(
            datasets, probed, "objective=videomae"
        ),
    }
    for said, argv in cases.items():
        with pytest.raises(UserError, match=said) as error:
            probe.main(argv)
        assert "\n" not in str(error.value)
    results = tmp_path / "dev" / "results.jsonl"
    results.parent.mkdir(parents=True)
    lines = (probed / "dev" / "results.jsonl").read_text().splitlines()
    results.write_text(lines[0] + "\n" + lines[1][:50] + "\n")
    with pytest.raises(UserError, match=r"results\.jsonl line 2: not a row"):
        probe.main(arguments(datasets, tmp_path, "controls=[mean]", "probe=ridge"))


def test_rows_are_plain_json(probed):
    for line in (probed / "dev" / "results.jsonl").read_text().splitlines():
        assert set(json.loads(line)) >= {"config", "commit", "key", "chosen"}


def test_controls_and_runs_are_probed_on_the_same_windows(probed, datasets, tmp_path):
    """Whatever the command line changes of the data holds for both, and a run's own data need not be named again."""
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl", "embeddings"))
    (run,) = (tmp_path / "dev").glob("*views*")
    probe.main([f"run={run}", "controls=[statistics]", "probe=ridge", "data.eval_step=4"])
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {r.objective for r in rows} == {"statistics", "views"}
    assert {(r.data, r.n, r.fingerprint) for r in rows} == {("shear_flow_tiny", 12 * 4, rows[0].fingerprint)}
    assert {r.encoder for r in rows} == {"", "conv_tiny"}


def test_dry_run_says_what_is_to_do(probed, datasets, capsys):
    before = (probed / "dev" / "results.jsonl").read_bytes()
    probe.main([*arguments(datasets, probed, "controls=[mean]", "probe=[ridge,linear]"), "--dry-run"])
    said = capsys.readouterr().out
    assert "mean: ridge on 48 train, 24 valid, 24 test windows, done" in said
    assert "mean: linear on 48 train, 24 valid, 24 test windows, to do" in said
    assert (probed / "dev" / "results.jsonl").read_bytes() == before


def test_a_strangers_run_may_not_import_what_it_likes(probed, tmp_path):
    (run,) = (probed / "dev").glob("*views*")
    copy = tmp_path / "stranger"
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    text = config.read_text().replace("allow: []", "allow: [posix.]")
    target = "_target_: physrep.objectives.views.Views"
    assert target in text
    config.write_text(text.replace(target, f"{target}\n  projection: {{_target_: posix.getcwd}}"))
    with pytest.raises(UserError, match="posix.getcwd is not allowed"):
        probe.main([f"run={copy}", "probe=ridge"])


def test_label_fractions_are_rows_of_their_own(probed, datasets, tmp_path, capsys):
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl"))
    fit(arguments(datasets, tmp_path, "objective=supervised", "data.labels=0.25"))
    line = arguments(datasets, tmp_path, "probe=[ridge,attentive]", "probe.attentive.epochs=1", "labels=[0.25,1]")
    probe.main(line)
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {(r.objective, r.labels) for r in rows} == {
        *((o, share) for o in ("random", "jepa", "views") for share in (0.25, 1.0)), ("supervised", 0.25)
    }  # fmt: skip
    assert "jepa, 25 % of labels: ridge" in capsys.readouterr().err
    assert {r.n for r in rows} == {24}, "test is whole"
    assert len({r.key for r in rows}) == len(rows)
    value = {(r.labels, r.parameter): r.value for r in rows if (r.objective, r.probe) == ("views", "ridge")}
    assert value[0.25, "Reynolds"] != value[1.0, "Reynolds"]
    with pytest.raises(UserError, match="labels: 2 is no share"):
        probe.main([*line, "labels=[2]"])


def test_layers_are_read_one_by_one(probed, datasets, tmp_path):
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl"))
    line = arguments(datasets, tmp_path, "probe=[ridge,attentive]", "probe.attentive.epochs=1", "controls=[statistics]")
    probe.main([*line, "layers=all"])
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {r.layer for r in rows if r.objective == "statistics"} == {""}
    assert {(r.probe, r.layer) for r in rows if r.objective == "jepa"} == {
        ("ridge", ""), ("attentive, epochs=1", ""), ("ridge", "1"), ("ridge", "2")}  # fmt: skip
    value = {(r.layer, r.parameter): r.value for r in rows if (r.objective, r.probe) == ("jepa", "ridge")}
    assert value["2", "Reynolds"] == pytest.approx(value["", "Reynolds"], rel=1e-3), "the last layer is the output"
    assert value["1", "Reynolds"] != pytest.approx(value["", "Reynolds"], rel=1e-3)
    with pytest.raises(UserError, match="layers: conv_tiny has layers 1 to 2, not 3"):
        probe.main([*line, "layers=[3]"])
    with pytest.raises(UserError, match="layers: attentive reads no layers; add ridge"):
        probe.main([*line[:-3], "probe=attentive", "controls=[]", "layers=all"])


def test_a_run_is_not_probed_on_what_it_was_trained_on(probed, datasets):
    (run,) = (probed / "dev").glob("*views*")
    with pytest.raises(UserError, match="was trained with well and has seen what holdout tests on"):
        probe.main(arguments(datasets, probed, f"run={run}", "data.split=holdout"))


def test_held_out_physics_from_training_to_rows(datasets, tmp_path):
    line = arguments(datasets, tmp_path, "objective=random", "data.split=holdout", "controls=[statistics]")
    fit(line)
    probe.main([*line, "probe=ridge"])
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {(r.objective, r.splits) for r in rows} == {("random", "holdout"), ("statistics", "holdout")}
    assert all(len(set(r.truth)) == 1 and len(r.trajectories) == 12 for r in rows), "one pair of four is test's"


def test_a_run_is_held_to_the_data_it_was_trained_on(probed, own_datasets, tmp_path):
    shutil.copytree(probed / "dev", tmp_path / "dev", ignore=shutil.ignore_patterns("*.jsonl", "embeddings"))
    (run,) = (tmp_path / "dev").glob("*views*")
    path = next((own_datasets / "shear_flow_tiny" / "data" / "train").glob("*.hdf5"))
    with h5py.File(path, "r+") as file:
        file["t0_fields/tracer"][0] += 0.1
    with pytest.raises(
        UserError, match=r"was trained on other data than .*shear_flow_tiny now holds \(fingerprint differs"
    ):
        probe.main(arguments(own_datasets, tmp_path, f"run={run}", "probe=ridge"))


def test_labels_of_training_are_no_key_of_a_probe(probed, datasets):
    with pytest.raises(UserError, match=r"data\.labels: is for training; say labels=\[\.\.\.\]"):
        probe.main(arguments(datasets, probed, "data.labels=0.1"))
