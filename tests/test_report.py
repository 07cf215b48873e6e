import csv
import io
import math
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from physrep import published, report, sweep
from physrep.errors import UserError
from physrep.figures import _ticks, budget, curves, drawn, efficiency, embedding, predictions
from physrep.metrics import draw, interval
from physrep.render import as_csv, latex, markdown, show, text
from physrep.results import append, make_rows
from physrep.tables import best, grids, table

N, WINDOWS = 30, 2
NOISE = {"mean": None, "statistics": 0.5, "random": 0.7, "supervised": 0.2, "jepa": 0.3, "vicreg": 0.4}


def rows(objective="jepa", probe="ridge", seed=0, parameters=("Reynolds", "Schmidt"), n=N, **changes):
    """Rows of a probe whose predictions are off by the objective's noise; the truth is on a grid of parameters."""
    rng = np.random.default_rng([seed, len(objective), len(probe)])
    truth = np.stack([np.resize([-1.0, 0.0, 1.0], n), np.linspace(-1.5, 1.5, n)], axis=1)[:, : len(parameters)]
    z = np.repeat(truth, WINDOWS, axis=0)
    noise = NOISE[objective]
    guess = np.zeros_like(z) if noise is None else z + noise * rng.standard_normal(z.shape)
    about = {
        "data": "shear_flow", "variant": "", "objective": objective,
        "encoder": "" if objective in ("mean", "statistics") else "conv",
        "probe": probe, "seed": seed, "splits": "well", "split": "test", "shared": 0, "labels": 1.0, "layer": "",
        "space": {"rank": 3.5, "between": 0.2, "within": 0.1},
        "cost": {"weights": 1000, "windows": 3200, "seconds": 12.5 + len(objective) + seed, "device": "cpu"},
        "run": f"runs/demo/{objective}-{seed}", "config": objective, "commit": "abc1234", "fingerprint": "f00d",
        "step": 100, "chosen": {},
    }  # fmt: skip
    if objective in ("mean", "statistics", "random"):
        about["cost"] = {**about["cost"], "windows": 0} if objective == "random" else {}
    return make_rows(
        torch.tensor(guess), torch.tensor(z), torch.arange(n).repeat_interleave(WINDOWS),
        scales={name: "linear" if name == "Schmidt" else "log10" for name in parameters},
        centers=[4.5, 5.0], spreads=[0.5, 3.0], plane=torch.tensor(z),
        key="/".join(map(str, [objective, probe, seed, *changes.values()])), **about | changes,
    )  # fmt: skip


def several(objectives=tuple(NOISE), probes=("attentive", "ridge"), seeds=2, **changes):
    made = []
    for objective in objectives:
        for seed in range(1 if objective in ("mean", "statistics") else seeds):
            for probe in probes:
                made += rows(objective, probe, seed, **changes)
    return made


def cell(sections, objective, probe, parameter, metric="mse", by="window", minus=""):
    place = (objective, probe, parameter, metric, by, minus)
    cells = sections[0].cells
    (found,) = [c for c in cells if (c.objective, c.probe, c.parameter, c.metric, c.by, c.minus) == place]
    return found


def test_cells_are_those_of_naive_loops():
    made = several(seeds=3)
    sections = table(made, resamples=60)
    counts = draw(range(N), 60, 0)

    def samples(objective, parameter):
        of = [r for r in made if (r.objective, r.probe, r.parameter) == (objective, "ridge", parameter)]
        return np.array([
            [sum(c * e for c, e in zip(count, row.squared_error, strict=True)) / count.sum() for count in counts]
            for row in of
        ])  # fmt: skip

    def same(got, *groups):
        want = interval(*groups, n=N)
        assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high))
        assert got.low < got.value < got.high

    both = {o: [samples(o, p) for p in ("Reynolds", "Schmidt")] for o in ("jepa", "random")}
    got = cell(sections, "jepa", "ridge", "Reynolds")
    of = [row for row in made if (row.objective, row.probe, row.parameter) == ("jepa", "ridge", "Reynolds")]
    assert got.value == pytest.approx(np.mean([row.value for row in of]))
    same(got, both["jepa"][0])
    jepa, base = (np.mean(both[objective], axis=0) for objective in ("jepa", "random"))
    same(cell(sections, "jepa", "ridge", "average"), jepa)
    same(cell(sections, "jepa", "ridge", "average", minus="random"), jepa, -base)
    assert got.seeds == 3 and cell(sections, "mean", "ridge", "average").value == pytest.approx(1, abs=0.35)


def test_no_interval_goes_beyond_what_a_metric_can_be():
    wild = [replace(row, squared_error=[9 * e for e in row.squared_error]) for row in rows(seed=1)]
    sections = table(rows() + wild, resamples=60)
    got = cell(sections, "jepa", "ridge", "average")
    assert got.low == 0 < got.high
    assert cell(sections, "jepa", "ridge", "average", "r2").high == 1


def test_mae_is_in_physical_units_and_by_trajectory_is_of_the_mean_prediction():
    (row, _) = rows()
    sections = table(rows(), resamples=20)
    assert cell(sections, "jepa", "ridge", "Reynolds", "mae").value == pytest.approx(np.mean(row.absolute_error))
    guess, truth = ([10 ** (4.5 + 0.5 * z) for z in values] for values in (row.prediction, row.truth))
    want = np.mean([abs(a - b) for a, b in zip(guess, truth, strict=True)])
    assert cell(sections, "jepa", "ridge", "Reynolds", "mae", "trajectory").value == pytest.approx(want)
    want = np.mean(np.subtract(row.prediction, row.truth) ** 2)
    assert cell(sections, "jepa", "ridge", "Reynolds", "mse", "trajectory").value == pytest.approx(want)


def test_the_order_of_rows_makes_no_difference():
    made = several() + rows("jepa", fingerprint="beef")
    want = table(made, resamples=50)
    random.Random(0).shuffle(made)
    got = table(made, resamples=50)
    assert text(got) == text(want) and markdown(got) == markdown(want) and as_csv(got) == as_csv(want)


def test_objectives_are_in_the_order_of_the_protocol():
    first = grids(table(several(["vicreg", "jepa", "supervised", "random", "statistics", "mean"]), resamples=10)[0])[0]
    assert [labels[0] for labels, _ in first.lines] == ["mean", "statistics", "random", "supervised", "jepa", "vicreg"]
    assert [labels[1] for labels, _ in first.lines] == ["1", "1", "2", "2", "2", "2"]
    assert first.heads == [(b, p) for b in ("attentive", "ridge") for p in ("average", "Reynolds", "Schmidt")]


def test_the_same_row_twice_counts_once():
    made = several()
    assert text(table(made + made[:7], resamples=50)) == text(table(made, resamples=50))


@pytest.mark.parametrize("change", [{"step": 200}, {"step": 50}, {"config": "00000000"}])
def test_of_what_was_probed_again_the_latest_counts_and_it_is_said(change):
    later = rows("jepa", **change)
    if "step" not in change:
        later = [replace(row, key=f"again/{row.key}") for row in later]
    (section,) = table(rows("jepa") + later + rows("random"), resamples=20)
    assert [row for row in section.rows if row.objective == "jepa"] == later
    assert section.notes[0] == (
        "Warning: jepa conv ridge, seed 0: rows of several configs, checkpoints or settings, the latest is shown."
    )


def test_a_probe_set_in_more_than_one_way_is_said():
    made = [*rows("jepa", seed=0, setting="a"), *rows("jepa", seed=1, setting="b"), *rows("random", setting="a")]
    (section,) = table(made, resamples=20)
    (warning,) = [note for note in section.notes if "ridge was fitted with more than one choice of its options" in note]
    assert warning.startswith("Warning: ")


def test_missing_cells_are_dashes_and_named():
    made = [row for row in several() if row.key not in ("jepa/ridge/0/Schmidt", "jepa/ridge/1/Schmidt")]
    made = [row for row in made if (row.objective, row.probe) != ("statistics", "attentive")]
    (section,) = table(made, resamples=20)
    (first, *_) = grids(section)
    lines = {labels[0]: [show(c) for c in cells] for labels, cells in first.lines}
    assert lines["jepa"][3] == "–" and lines["jepa"][5] == "–" and re.fullmatch(r"0\.\d+ \[.*\]", lines["jepa"][4])
    assert lines["statistics"][:3] == ["–"] * 3 and "–" not in lines["random"]
    (warning,) = [note for note in section.notes if "no rows" in note]
    assert "jepa conv, ridge Schmidt" in warning and "statistics, attentive Reynolds" in warning
    assert "| – |" in markdown([section])


def test_an_average_is_of_the_seeds_that_have_all_parameters():
    made = [row for row in several(seeds=3) if row.key != "jepa/ridge/2/Schmidt"]
    sections = table(made, resamples=20)
    assert cell(sections, "jepa", "ridge", "average").seeds == 2
    assert cell(sections, "jepa", "ridge", "Reynolds").seeds == 3
    want = np.mean([row.value for row in made if row.key.startswith(("jepa/ridge/0", "jepa/ridge/1"))])
    assert cell(sections, "jepa", "ridge", "average").value == pytest.approx(want)


def test_other_data_and_fingerprints_are_sections_of_their_own_with_a_warning():
    made = several(["random", "jepa"]) + rows(fingerprint="beef") + rows(data="rayleigh_benard")
    made += rows(splits="holdout") + rows(splits="extrapolate")
    sections = table(made, resamples=20)
    assert [(s.data, s.splits, s.fingerprint) for s in sections] == [
        ("rayleigh_benard", "well", "f00d"), ("shear_flow", "well", "beef"), ("shear_flow", "well", "f00d"),
        ("shear_flow", "holdout", "f00d"), ("shear_flow", "extrapolate", "f00d"),
    ]  # fmt: skip
    for section, sentence in zip(sections[2:], ["the dataset's own", "combinations", "extreme"], strict=True):
        assert sum(sentence in note for note in section.notes if "Warning" not in note) == 1
    warnings = [note for section in sections[3:] for note in section.notes if "trajectories of test have" in note]
    assert len(warnings) == 2
    assert all("30 trajectories of test have 30 combinations of parameters" in warning for warning in warnings)
    assert sections[1].notes[0] == "Warning: rows of test beef are not comparable with those of test f00d."
    assert "not comparable" in sections[2].notes[0] and "not comparable" not in " ".join(sections[0].notes)
    titles = [line for line in text(sections).splitlines() if line.startswith(("rayleigh", "shear"))]
    assert titles == [
        "rayleigh_benard, test", "shear_flow, test beef", "shear_flow, test f00d", "shear_flow, test of holdout",
        "shear_flow, test of extrapolate",
    ]  # fmt: skip


def test_what_weakens_a_table_is_said():
    def notes(made):
        return " ".join(table(made, resamples=20)[0].notes)

    sound = notes(several())
    assert "Warning" not in sound
    assert "fingerprint f00d; split test: 30 trajectories, 60 windows" in sound
    assert "Encoder: conv. Checkpoint at step: 100. Seeds: 0 (mean, statistics); 0, 1 (random" in sound
    assert "Reynolds log10, mean 4.5, deviation 0.5; Schmidt linear, mean 5, deviation 3" in sound
    assert "Commit: abc1234." in sound
    assert "12 trajectories are few" in notes(several(n=12))
    assert "different trajectories" in notes(rows() + rows("random", n=25))
    assert "7 of test's 30 trajectories start from a state that train has" in notes(rows(shared=7))
    assert "of one seed (mean, statistics) it is of trajectories alone." in sound
    assert "of one seed it is" in notes(several(["random", "jepa"]))
    assert "of one seed (all here) it is" in notes(several(["mean", "statistics"]))
    cost = {**rows()[0].cost, "windows": 6400}
    said = notes(several() + rows("vicreg", seed=5, cost=cost) + rows("jepa", seed=5, cost=cost))
    assert "Warning: budgets differ: windows seen are 3,200 (supervised, jepa, vicreg); 6,400 (jepa, vicreg)." in said
    changed = [replace(row, scale="linear") for row in rows("random")]
    assert "Reynolds is standardised in more than one way" in notes(rows() + changed)


def test_differences_are_to_the_baselines_that_are_asked_for():
    made = [r for e in ("conv", "vit") for r in several(["random", "jepa"], encoder=e)] + several(["statistics"])
    (section,) = table(made, resamples=30, baselines=["jepa", "statistics"])
    to_jepa, to_statistics = (grid for grid in grids(section) if "minus" in grid.title)
    assert to_jepa.title.startswith("MSE minus that of jepa, paired")
    assert [labels[:2] for labels, _ in to_jepa.lines] == [["random", "conv"], ["random", "vit"]]
    assert [labels[0] for labels, _ in to_statistics.lines] == ["random", "random", "jepa", "jepa"]
    values = {(c.objective, c.minus): c.value for c in section.cells if c.encoder == "conv" and c.parameter == "Schmidt"
              and c.probe == "ridge" and c.metric == "mse" and c.by == "window"}  # fmt: skip
    assert values["random", "jepa"] == pytest.approx(values["random", ""] - values["jepa", ""])
    assert "Differences: 36 are shown" in " ".join(section.notes)


def test_a_baseline_without_rows_is_one_line(tmp_path):
    append(tmp_path / "results.jsonl", rows())
    with pytest.raises(UserError, match=r"baselines: .*results\.jsonl has no rows of jep; did you mean jepa"):
        report.main([f"results={tmp_path / 'results.jsonl'}", "baselines=[random,jep]"])


def test_controls_that_lack_are_warned_of():
    said = [" ".join(table(made, resamples=5)[0].notes) for made in (several(["random", "jepa"]), several())]
    assert "Warning: no rows of mean, statistics, without which" in said[0] and "without which" not in said[1]


def test_differences_are_to_the_untrained_encoder_of_the_same_architecture():
    made = [r for e in ("conv", "vit") for r in several(["random", "jepa"], encoder=e)] + rows("mean", seed=0)
    (section,) = table(made, resamples=30)
    main, _, difference, _ = grids(section)
    assert main.stub == ["objective", "encoder", "seeds"]
    assert [labels[:2] for labels, _ in difference.lines] == [["jepa", "conv"], ["jepa", "vit"]]  # mean: which random?
    assert [c.minus for c in section.cells if c.objective == "random" and c.minus] == []
    (section,) = table(several(["random", "mean"]), resamples=30)
    assert [labels[0] for labels, _ in grids(section)[2].lines] == ["mean"]
    for other in ([], several(["random"], encoder="vit")):
        titles = [grid.title for grid in grids(table(several(["jepa"]) + other, resamples=30)[0])]
        assert len(titles) == 3 and not any("minus" in title for title in titles)  # nothing to compare with


GOLDEN = """\
shear_flow, test

Standardised MSE by window (lower is better; predicting the mean scores 1)

                  ridge
objective  seeds  Reynolds
--------------------------------------
mean       1      0.667 [0.475, 0.835]
random     1      0.250 [0.250, 0.250]
jepa       1      0.062 [0.062, 0.062]

Other metrics (MSE standardised, MAE in physical units)

                      ridge
parameter  objective  MSE by trajectory     R2 by window           R2 by trajectory       MAE by window      MAE by traj
------------------------------------------------------------------------------------------------------------------------
Reynolds   mean       0.667 [0.475, 0.835]  0.000 [-0.217, 0.000]  0.000 [-0.217, 0.000]  26.7 [19.0, 33.4]  26.7 [19.0,
Reynolds   random     0.250 [0.250, 0.250]  0.625 [0.454, 0.699]   0.625 [0.454, 0.699]   20.0 [20.0, 20.0]  20.0 [20.0,
Reynolds   jepa       0.062 [0.062, 0.062]  0.906 [0.863, 0.925]   0.906 [0.863, 0.925]   10.0 [10.0, 10.0]  10.0 [10.0,

MSE minus that of random, paired (below 0 is better; * interval excludes 0)

                  ridge
objective  seeds  Reynolds
-------------------------------------------
mean       1      0.417 [0.225, 0.585] *
jepa       1      -0.188 [-0.188, -0.188] *
"""


def exact(objective, off):
    truth = torch.tensor([-1.0, 0.0, 1.0]).repeat(10)[:, None].double()
    (first, _) = rows(objective)
    (row,) = make_rows(
        truth + off if off is not None else torch.zeros_like(truth), truth, torch.arange(30),
        scales={"Reynolds": "linear"}, centers=[100.0], spreads=[40.0], key=objective,
        **{k: getattr(first, k) for k in ("data", "objective", "encoder", "variant", "probe", "seed", "splits", "split",
                                          "shared",
                                          "labels", "layer", "space", "cost", "run", "config", "commit", "fingerprint",
                                          "step", "chosen")},
    )  # fmt: skip
    return row


def test_golden_table():
    sections = table([exact("jepa", 0.25), exact("random", -0.5), exact("mean", None)], resamples=2000)
    got = "\n".join(line[:120] for line in text(sections).splitlines())
    assert got.startswith("\n".join(line[:120] for line in GOLDEN.splitlines())), got
    page = markdown(sections, [{"predictions.png": "Predicted"}])
    assert "| jepa | 1 | **0.062 [0.062, 0.062]** |" in page and "| random | 1 | 0.250 [0.250, 0.250] |" in page
    assert "**-0.188 [-0.188, -0.188] \\***" in page and "![Predicted](predictions.png)" in page


def test_the_best_of_a_column_is_bold_once():
    page = markdown(table(several(), resamples=20))
    tables = page.split("###")[1:]
    for lines, groups in zip(tables, (1, 2, 1, 0), strict=True):
        body = [line.split(" | ") for line in lines.splitlines() if line.startswith("| ") and "---" not in line][1:]
        for column in range(2, len(body[0])):
            assert sum("**" in line[column] for line in body) == groups
    main = [line for line in tables[0].splitlines() if "**" in line]
    assert len(main) == 1 and main[0].startswith("| supervised |")
    rest = [line for line in tables[1].splitlines() if "**" in line]
    assert all("supervised" in line for line in rest)


@pytest.mark.parametrize("probes", [("attentive", "ridge"), ("attentive", "knn", "linear", "mlp", "ridge")])
@pytest.mark.parametrize("width", [160, 80])
def test_the_terminal_table_is_no_wider_than_the_terminal(probes, width):
    sections = table(several(probes=probes), resamples=20)
    got = text(sections, width)
    assert max(map(len, got.splitlines())) <= width
    shown = [c for c in sections[0].cells if c.metric == "mse" and (c.by == "window" or c.parameter != "average")]
    assert all(show(c) in got for c in shown)
    if width == 160:
        assert len([line for line in got.splitlines() if "attentive" in line and "ridge" in line]) == (len(probes) == 2)


@pytest.mark.parametrize(
    ("value", "metric", "minus", "want"),
    [
        (0.2314, "mse", "", "0.231"), (0.0123, "mse", "", "0.012"), (0.001234, "mse", "", "0.00123"),
        (12.3456, "mse", "", "12.346"), (1.5e7, "mse", "", "1.50e+07"), (1e-12, "mse", "", "1.00e-12"),
        (-0.00001, "r2", "", "0.000"), (-0.00001, "mse", "random", "0.000"), (-0.0314, "mse", "random", "-0.031"),
        (12345.6, "mae", "", "12300"), (0.00345, "mae", "", "0.00345"), (3.14159, "mae", "", "3.14"),
        (0.0, "mae", "", "0.00"),
    ],
)  # fmt: skip
def test_numbers_are_shown_with_three_digits(value, metric, minus, want):
    some = table(rows(), resamples=5)[0].cells[0]
    some = replace(some, metric=metric, minus=minus, value=value, low=value, high=value)
    assert show(some).split(" ")[0] == want
    assert show(replace(some, low=math.nan, high=math.nan)) == want
    assert show(replace(some, value=math.nan)) == show(None) == "–"


def test_csv_holds_every_cell_in_full():
    sections = table(several(), resamples=20)
    lines = list(csv.DictReader(io.StringIO(as_csv(sections))))
    assert len(lines) == len(sections[0].cells) and lines[0]["fingerprint"] == "f00d"
    for line, c in zip(lines, sections[0].cells, strict=True):
        assert (line["objective"], line["by"], line["minus"]) == (c.objective, c.by, c.minus)
        assert float(line["value"]) == c.value
        assert line["high"] == ("" if c.by == "run" else repr(c.high))


def test_latex_has_every_cell_and_is_balanced():
    sections = table(several(), resamples=50)
    made = latex(sections)
    for kind in ("table", "tabular"):
        assert made.count(rf"\begin{{{kind}}}") == made.count(rf"\end{{{kind}}}") == len(grids(sections[0]))
    assert made.count("{") == made.count("}")
    for grid in grids(sections[0]):
        for labels, cells in grid.lines:
            start, columns = " & ".join(labels).replace("_", r"\_"), len(grid.stub) + len(grid.heads)
            assert any(at.startswith(start) and at.count(" & ") == columns - 1 for at in made.splitlines())
            assert all(show(cell).rstrip(" *").replace("–", "--") in made for cell in cells)
    assert "\\textbf{" in made
    assert "%" not in made.replace("\\%", "").replace("{!}{%", "").split("\n", 1)[1]


def test_undefined_r2_is_a_dash_and_empty_in_csv():
    made = [replace(row, truth=[0.5] * N) for row in rows()]
    sections = table(made, resamples=20)
    assert show(cell(sections, "jepa", "ridge", "Reynolds", "r2")) == "–"
    assert ",r2,window,,,,,1\n" in as_csv(sections)


def test_the_report_is_made_again_from_the_rows_alone(tmp_path, capsys):
    results = tmp_path / "dev" / "results.jsonl"
    append(results, several(["random", "jepa", "vicreg"], ["ridge"]))
    command = [f"runs={tmp_path}", "experiment=dev", "resamples=50"]
    report.main(command)
    said = capsys.readouterr().out
    out = tmp_path / "dev" / "report"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    pictures = ["budget.png", "embedding.png", "predictions.png"]
    assert sorted(before) == [*pictures, "report.html", "table.csv", "table.md", "table.tex"]
    assert all(f"]({name})" in before["table.md"].decode() for name in pictures)
    assert "Missing" not in said
    for path in list(out.parent.iterdir()):
        if path != results:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    report.main(command)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before and capsys.readouterr().out == said
    assert max(map(len, said.splitlines())) <= max(160, len(str(out / "predictions.png")))
    elsewhere = tmp_path / "elsewhere"
    report.main(["experiment=dev", f"results={results}", f"out={elsewhere}", "resamples=50"])
    assert (elsewhere / "table.md").read_bytes() == before["table.md"]


def test_a_failed_report_leaves_the_old_files(tmp_path, monkeypatch):
    sections = table(rows(), resamples=20)
    report.write("dev", sections, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space"):
        report.write("dev", sections, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [None, ""])
def test_no_results_is_one_line_with_its_remedy(tmp_path, content):
    if content is not None:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev" / "results.jsonl").write_text(content)
    with pytest.raises(UserError) as caught:
        report.main([f"runs={tmp_path}", "experiment=dev"])
    want = f"{tmp_path}/dev/results.jsonl: no results; make them: python -m physrep.probe experiment=dev"
    assert str(caught.value) == want


def test_a_bootstrap_without_samples_is_refused(tmp_path):
    append(tmp_path / "dev" / "results.jsonl", rows())
    with pytest.raises(UserError, match="resamples=0: an interval needs samples"):
        report.main([f"runs={tmp_path}", "experiment=dev", "resamples=0"])


def test_sections_have_a_figure_each(tmp_path):
    written = report.write("dev", table(rows() + rows(fingerprint="beef"), resamples=20), tmp_path)
    assert [path.name for path in written] == [
        "report.html",
        "table.md",
        "table.csv",
        "table.tex",
        "predictions_1.png",
        "embedding_1.png",
        "predictions_2.png",
        "embedding_2.png",
    ]
    assert all(path.exists() for path in written)
    assert "(predictions_2.png)" in (tmp_path / "table.md").read_text("utf-8")


def test_the_figure_is_a_picture_with_an_axis_for_each_cell(tmp_path):
    made = [row for row in several(["mean", "random", "jepa"]) if (row.objective, row.probe) != ("mean", "ridge")]
    (section,) = table(made, resamples=20)
    figure = predictions(section)
    assert len(figure.axes) == 3 * 2 * 2
    corners = [axis.texts[0].get_text() for axis in figure.axes]
    assert corners.count("no rows") == 2
    want = cell([section], "jepa", "attentive", "Reynolds")
    r2 = cell([section], "jepa", "attentive", "Reynolds", "r2").value
    assert corners[2] == f"MSE {want.value:.3f}\nR² {r2:.2f}"
    assert [axis.get_title() for axis in figure.axes[:4]] == ["mean", "random", "jepa", ""]
    (report_path,) = [path for path in report.write("dev", [section], tmp_path) if path.name == "predictions.png"]
    picture = matplotlib.image.imread(report_path)
    height, width = picture.shape[:2]
    assert 800 < height < 3000 and 800 < width < 3000
    assert 0.02 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.5  # neither blank nor filled


def test_points_lie_where_the_rows_say_and_those_beyond_the_axes_at_their_edge():
    made = [replace(row, truth=np.linspace(-1, 1, N).tolist()) for row in rows("jepa", parameters=["Reynolds"])]
    made[0] = replace(made[0], prediction=[40.0, *made[0].prediction[1:]])
    (section,) = table(made, resamples=20)
    axis = predictions(section).axes[0]
    inside, _, above = (c.get_offsets() for c in axis.collections[:3])
    assert len(inside) == N - 1 and above.tolist() == [[4.0, 5.25]]  # log10; the truth is 4 to 5
    assert np.asarray(inside) == pytest.approx(np.stack([made[0].truth, made[0].prediction], 1)[1:] * 0.5 + 4.5)
    assert axis.get_xlim() == axis.get_ylim() == (3.75, 5.25)


def test_points_of_one_truth_stand_side_by_side_and_have_a_median_and_bars():
    (made, _) = rows("jepa")
    axis = predictions(table([made], resamples=20)[0]).axes[0]
    inside, _, _, bars, medians = axis.collections
    x, y = np.asarray(inside.get_offsets()).T
    truth = np.multiply(made.truth, 0.5) + 4.5
    assert np.ptp(x[made.truth == np.min(made.truth)]) == pytest.approx(0.25 * 9 / 10)  # half of the way to the next
    assert np.abs(x - truth).max() < 0.25 / 2 and len(set(x)) == N
    assert np.asarray(medians.get_offsets())[:, 0].tolist() == [4.0, 4.5, 5.0]
    assert medians.get_offsets()[1][1] == pytest.approx(np.median(y[np.isclose(truth, 4.5)]))
    (start, end), sd = bars.get_segments()[0], math.sqrt(made.squared_error[0] - (made.prediction[0] + 1) ** 2)
    assert (end[1] - start[1]) / 2 == pytest.approx(0.5 * sd)


class Seen(HTMLParser):
    """What a page shows: the text of its cells, its pictures, and whether its tags are balanced."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.images, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag in {"meta", "img"}:
            self.images += [value for name, value in attrs if name == "src"]
            return
        self.open.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src"}]
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data


def test_the_page_holds_all_cells_and_pictures_and_needs_no_other_file(tmp_path):
    sections = table(several(["mean", "random", "jepa", "vicreg"], run=str(tmp_path / "run <1>")), resamples=50)
    (tmp_path / "run <1>").mkdir()
    (tmp_path / "run <1>" / "metrics.csv").write_text(
        "step,name,value\n0,valid/loss,2\n9,valid/loss,1\n9,probe/mse,0.5\n"
    )
    report.write("dev & more", sections, tmp_path / "out")
    seen = Seen()
    seen.feed((tmp_path / "out" / "report.html").read_text())
    assert not seen.open
    shown = {cell.strip() for cell in seen.cells}
    assert {show(cell) for grid in grids(sections[0]) for _, cells in grid.lines for cell in cells} <= shown
    assert {row.key for row in sections[0].rows} | {str(tmp_path / "run <1>")} <= shown
    assert len(seen.images) == 4
    assert all(image.startswith("data:image/png;base64,iVBOR") for image in seen.images)
    assert not [link for link in seen.links if not link.startswith("#")]


def test_curves_are_of_the_runs_that_are_there(tmp_path):
    assert curves(table(several(), resamples=20)[0]) is None
    for objective, values in {"jepa": (4.0, 1.0), "vicreg": (3.0, 6.0)}.items():
        lines = [f"{10 * i},valid/loss,{value}" for i, value in enumerate(values)]
        (tmp_path / objective).mkdir()
        (tmp_path / objective / "metrics.csv").write_text("\n".join(["step,name,value", *lines]))
    made = [row for o in ("jepa", "vicreg") for row in rows(o, run=str(tmp_path / o))]
    axis = curves(table(made, resamples=20)[0]).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == [[1.0, 0.25], [1.0, 2.0]]
    assert [list(line.get_xdata()) for line in axis.lines] == [[0, 10], [0, 10]]


def wide():
    """Rows of everything there is: shares of labels, layers, seeds."""
    made = several()
    for objective in ("statistics", "random", "jepa"):
        for labels in (0.1, 0.01):
            for seed in range(1 if objective == "statistics" else 2):
                made += rows(objective, seed=seed, labels=labels)
    for objective in ("random", "jepa"):
        for layer in ("stage10", "stage2"):
            made += rows(objective, layer=layer)
    return made


def lay(sections, start):
    """The grid whose title starts so."""
    (grid,) = [grid for grid in grids(sections[0]) if grid.title.startswith(start)]
    return grid


def test_shares_of_labels_and_layers_have_tables_of_their_own():
    sections, alone = table(wide(), resamples=40), table(several(), resamples=40)
    for grid, same in zip(grids(sections[0])[:3], grids(alone[0])[:3], strict=True):
        assert grid == same
    grid = lay(sections, "Label efficiency (MSE by window, average")
    assert grid.heads == [("ridge", "1 %"), ("ridge", "10 %"), ("ridge", "100 %")]
    lines = {labels[0]: cells for labels, cells in grid.lines}
    assert set(lines) == {"statistics", "random", "jepa"} and lines["statistics"][0].seeds == 1
    want = [row.value for seed in range(2) for row in rows("jepa", seed=seed, labels=0.1)]
    assert lines["jepa"][1].value == pytest.approx(np.mean(want))
    grid = lay(sections, "By layer")
    assert grid.heads == [("ridge", "stage2"), ("ridge", "stage10"), ("ridge", "output")]
    assert [labels[:2] for labels, _ in grid.lines] == [["random", "1-2"], ["jepa", "1-2"]]
    notes = " ".join(sections[0].notes)
    assert "Label efficiency: probes are told" in notes and "Label efficiency" not in " ".join(alone[0].notes)
    for made in (markdown(sections), text(sections), latex(sections)):
        assert "By layer" in made and "Label efficiency" in made
    assert "0.01,," in as_csv(sections) and "1.0,stage10," in as_csv(sections)


def test_rows_of_a_share_of_labels_alone_make_a_report(tmp_path):
    sections = table(rows(labels=0.1) + rows(labels=0.5), resamples=20)
    assert [grid.title.split(" (")[0] for grid in grids(sections[0])] == ["Label efficiency", "Representation and cost"]
    assert [path.name for path in report.write("dev", sections, tmp_path)][4:] == ["efficiency.png"]


def test_what_a_representation_is_and_took_is_averaged_over_seeds():
    made = several(["statistics", "random", "jepa"]) + rows("jepa", "a_finetuned_probe", space={})
    made = [replace(row, space={} if row.objective == "statistics" else row.space) for row in made]
    sections = table(made, resamples=20)
    grid = lay(sections, "Representation and cost")
    lines = {labels[0]: (labels[1:], [show(cell) for cell in cells]) for labels, cells in grid.lines}
    assert lines == {
        "random": (["2", "cpu"], ["1,000", "100", "0", "19.0", "3.50", "0.200", "0.100"]),
        "jepa": (["2", "cpu"], ["1,000", "100", "3,200", "17.0", "3.50", "0.200", "0.100"]),
    }
    assert "| jepa | 2 | cpu | 1,000 | 100 | 3,200 | 17.0 | 3.50 | 0.200 | 0.100 |" in markdown(sections)
    assert "jepa,conv,,1.0,,,seconds,run,,17.0,,,2\n" in as_csv(sections)
    assert not [g for g in grids(table(rows("mean", space={}), resamples=5)[0]) if g.title.startswith("Repr")]


def test_published_numbers_stand_apart_and_only_on_request():
    made = several()
    plain, (section,) = table(made, resamples=20), table(made, resamples=20, beside=True)
    assert section.cells == plain[0].cells and grids(section)[:-1] == grids(plain[0])
    grid = grids(section)[-1]
    assert grid.title.startswith("Published, not by this code") and "published" not in text(plain).lower()
    lines = {labels[0]: [show(cell) for cell in cells] for labels, cells in grid.lines}
    assert grid.heads == [("published", f"{n} % of labels") for n in (10, 50, 100)]
    assert lines["JEPA"] == ["0.570", "0.400", "0.380"] and lines["MPP"] == ["–", "–", "0.590"]
    assert "2603.13227" in section.notes[-1] and "valid instead of test" in section.notes[-1]
    assert not best(grid) and "**0.380**" not in markdown([section])
    assert sum(",published," in line for line in as_csv([section]).splitlines()) == 8
    made = rows(data="shear_flow_small") + rows(splits="holdout")
    for other in table(made, resamples=20, beside=True):
        assert not other.published and "ublished" not in " ".join(other.notes)


def test_published_gains_are_those_that_the_abstract_claims():
    gains = [1 - of["JEPA"][1.0] / of["VideoMAE"][1.0] for of in published.MSE.values()]
    assert [round(100 * gain) for gain in gains] == [51, 43, 28]


def test_ticks_of_decades_have_no_negative_zero():
    (row, *_) = rows(parameters=["Reynolds"])
    assert _ticks(-0.5, 1.2, row)[1] == ["$10^{0}$", "$10^{1}$"]


def few(**changes):
    """Rows that are quickly drawn."""
    return [replace(row, plane=[]) for row in rows(parameters=["Reynolds"], **changes)]


def grid_of(tmp_path, monkeypatch):
    """An experiment of four seeds in the current folder, and its runs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "groups: {data: shear_flow_small}\nsweep: [{objective: jepa, seed: [0, 1, 2, 3]}]\n"
    )
    return sweep.cells(["experiment=mine", "runs=runs"])


def of(cell, **changes):
    """Rows of a planned run."""
    return few(run=str(cell.folder), config=cell.config, **changes)


def test_what_a_grid_lacks_is_said(tmp_path, monkeypatch, capsys):
    first, second, third, last = grid_of(tmp_path, monkeypatch)
    (tmp_path / "runs/mine/logs").mkdir(parents=True)
    second.log.write_text("physrep: loss is <nan> at step 7\n")
    last.log.write_text("runs: 3 of 9, 7 s\n")
    with pytest.raises(UserError, match="no results"):
        report.main(["experiment=mine", "resamples=20"])
    why = f"Failed: {second.folder.name}: physrep: loss is <nan> at step 7"
    assert why in capsys.readouterr().out, "also where nothing has a row"
    append("runs/mine/results.jsonl", of(first))
    for cell in (first, third):
        cell.folder.mkdir()
        (cell.folder / "summary.json").write_text("{}")
    third.log.write_text("runs/mine/three: 80 steps\nphysrep: three: probe ridge predicts what is not finite\n")
    report.main(["experiment=mine", "resamples=20"])
    want = "Missing: of 4 planned runs 2 failed, 1 not probed."
    out = tmp_path / "runs/mine/report"
    table = (out / "table.md").read_text()
    assert f"- {want}\n- {why}\n" in table
    assert f"- Not probed: {third.folder.name}: physrep: three: probe ridge predicts what is not finite\n" in table
    assert (
        f"- Failed: {last.folder.name}: was cut short, and the same command continues it; it last said: runs" in table
    )
    assert f"% {why}" in (out / "table.tex").read_text()
    assert "loss is &lt;nan&gt; at step 7" in (out / "report.html").read_text()
    assert capsys.readouterr().out.startswith(want)


def test_rows_are_enough(tmp_path, monkeypatch):
    """Where no run folder is left, or all runs have rows, the table is the rows' and nothing is missing."""
    runs = grid_of(tmp_path, monkeypatch)
    append("runs/mine/results.jsonl", [row for seed, run in enumerate(runs[:2]) for row in of(run, seed=seed)])
    (tmp_path / "runs/mine/logs").mkdir()
    report.main(["experiment=mine", "resamples=20"])
    alone = (tmp_path / "runs/mine/report/table.md").read_text()
    assert "Missing" not in alone
    for run in runs[2:]:
        run.folder.mkdir()
    half = Path("runs/mine/results.jsonl").read_text()
    report.main(["experiment=mine", "resamples=20"])
    assert (tmp_path / "runs/mine/report/table.md").read_text() == f"- Missing: of 4 planned runs 2 pending.\n\n{alone}"
    append("runs/mine/results.jsonl", [row for seed in (2, 3) for row in of(runs[seed], seed=seed)])
    report.main(["experiment=mine", "resamples=20"])
    assert "Missing" not in (tmp_path / "runs/mine/report/table.md").read_text()
    append("runs/mine/results.jsonl", [replace(row, probe="knn", key="knn") for row in of(runs[0])])
    report.main(["experiment=mine", "resamples=20"])
    said = (tmp_path / "runs/mine/report/table.md").read_text()
    assert said.startswith("- Missing: of 4 planned runs 3 probed in part.\n")
    Path("runs/mine/results.jsonl").write_text(half)
    sweep.plan([runs[0], sweep.Cell([], Path("runs/mine/other"))])
    sweep.plan([replace(runs[1], config="another")])
    report.main(["experiment=mine", "resamples=20"])
    want = "- Missing: of 3 planned runs 1 pending, 1 of another config.\n"
    said = (tmp_path / "runs/mine/report/table.md").read_text()
    assert said.startswith(want), "what sweeps were asked for is the plan"
    Path("runs/mine").rename("kept")
    report.main(["results=kept/results.jsonl", "resamples=20"])
    assert Path("kept/report/table.md").read_text() == said, "which goes with the rows"


def test_a_share_of_labels_or_a_layer_that_others_have_is_missed(tmp_path, monkeypatch, capsys):
    one, two, three, four = grid_of(tmp_path, monkeypatch)
    sweep.plan([one, two, three, four])
    made = [
        *of(one),
        *of(one, labels=0.1),
        *of(one, layer="stages1"),
        *of(two, seed=1),
        *of(two, seed=1, labels=0.1),
        *of(three, objective="supervised", seed=2, labels=0.1),
        *of(four, encoder="other", seed=3),
        *of(four, encoder="other", seed=3, labels=0.1),
    ]
    append("runs/mine/results.jsonl", made)
    report.main(["experiment=mine", "resamples=20"])
    assert capsys.readouterr().out.startswith("Missing: of 4 planned runs 1 probed in part.\n"), "two lacks its layer"
    append("runs/mine/results.jsonl", of(two, seed=1, layer="stages1"))
    report.main(["experiment=mine", "resamples=20"])
    assert "Missing" not in capsys.readouterr().out


def test_a_plan_that_cannot_be_read_is_said_and_no_more(tmp_path, monkeypatch, capsys):
    grid_of(tmp_path, monkeypatch)
    append("runs/mine/results.jsonl", few())
    (tmp_path / "experiments/mine/config.yaml").write_text("sweep: [{objective: jepe}]\n")
    report.main(["experiment=mine", "resamples=20"])
    assert capsys.readouterr().out.startswith("Warning: what the experiment plans is not known (objective=jepe:")


def test_figures_are_drawn_of_what_there_is():
    def names(made):
        return list(drawn(table(made, resamples=10)[0]))

    assert names([replace(row, plane=[]) for row in rows()]) == ["predictions"]
    assert names(wide()) == ["predictions", "efficiency", "budget", "embedding"]
    assert names(several(["random", "jepa"])) == ["predictions", "embedding"]  # one objective has a budget
    assert names(rows(layer="stage1")) == []
    shares = [*several(["random"]), *rows("jepa", labels=0.1), *rows("vicreg", labels=0.1)]
    assert names(shares) == ["predictions", "efficiency", "embedding"]  # nothing learned is told all labels


def test_curves_of_label_efficiency_pass_through_the_cells():
    sections = table(wide(), resamples=40)
    (axis,) = efficiency(sections[0]).axes
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"statistics", "random conv", "jepa conv"}  # the others have all labels only
    assert lines["jepa conv"].get_xdata().tolist() == [0.01, 0.1, 1.0]
    want = next(cells for labels, cells in lay(sections, "Label").lines if labels[0] == "jepa")
    assert lines["jepa conv"].get_ydata().tolist() == [cell.value for cell in want]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1 %", "10 %", "100 %"]


def test_errors_stand_over_seconds_or_windows_where_devices_differ():
    axis = budget(table(several(), resamples=20)[0]).axes[1]
    points = {bars.get_label(): bars.lines[0].get_xdata().tolist() for bars in axis.containers}
    assert points == {"supervised conv": [23.0], "jepa conv": [17.0], "vicreg conv": [19.0]}
    assert axis.get_xlabel() == "seconds of pretraining"
    levels = {line.get_label() for line in axis.lines} & {"mean", "statistics", "random conv"}
    assert len(levels) == 3
    made = [replace(row, cost={**row.cost, "device": row.seed}) if row.cost else row for row in several()]
    (section,) = table(made, resamples=20)
    assert "budget" not in drawn(section), "all saw as many windows"
    made = [replace(r, cost={**r.cost, "windows": 6400}) if r.objective == "jepa" else r for r in made]
    (section,) = table(made, resamples=20)
    assert "budget" in drawn(section)
    assert budget(section).axes[1].get_xlabel() == "windows seen in pretraining"


def test_planes_are_of_the_first_seed_and_coloured_by_the_parameter():
    made = several(["random", "jepa"], seeds=2)
    made = [replace(row, plane=[[row.seed + x, y] for x, y in row.plane]) for row in made]
    figure = embedding(table(made, resamples=10)[0])
    assert [axis.get_title() for axis in figure.axes[:4]] == ["random", "jepa", "", ""]
    (points,) = figure.axes[1].collections
    (row,) = [r for r in made if (r.objective, r.seed, r.probe, r.parameter) == ("jepa", 0, "ridge", "Reynolds")]
    assert points.get_offsets().tolist() == row.plane
    assert np.asarray(points.get_array()) == pytest.approx(np.multiply(row.truth, 0.5) + 4.5)


def test_many_objectives_stand_in_strips():
    made = [replace(row, objective=f"a_rather_long_name_{i}") for i in range(19) for row in rows(probe="ridge")]
    (section,) = table(made, resamples=10)
    figure = predictions(section)
    assert len(figure.axes) == 38 and figure.get_size_inches()[0] < 13
    assert figure.axes[0].get_title() == "a_rather_long_\nname_0"
    boxes = [axis.get_position() for axis in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len(embedding(section).axes) == 38 + 2 * 3  # and bars of colours


def test_variants_of_an_objective_are_lines_of_their_own():
    made = rows("random") + rows("jepa") + rows("jepa", variant="noise=0.3") + rows("vicreg", variant="cut=null")
    (section,) = table(made, resamples=20)
    labels = {line[0][0] for line in grids(section)[0].lines}
    assert labels == {"random", "jepa", "jepa, noise=0.3", "vicreg"}, "what all runs have in common is not said"
    assert not any("several configs" in note for note in section.notes)
