import json
import multiprocessing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from physrep.errors import UserError
from physrep.results import Row, append, inverse, make_rows, read

ABOUT = {
    "data": "shear_flow",
    "objective": "jepa",
    "encoder": "conv",
    "variant": "",
    "probe": "ridge",
    "seed": 0,
    "splits": "well",
    "split": "test",
    "shared": 0,
    "labels": 1.0,
    "layer": "",
    "space": {"rank": 3.5, "between": 0.2, "within": 0.1},
    "cost": {"weights": 1000, "windows": 3200, "seconds": 12.5, "device": "cpu"},
    "run": "runs/demo/a",
    "config": "c0ffee",
    "commit": "abc1234",
    "fingerprint": "f00d",
    "step": 100,
    "chosen": {"strength": 0.1},
}


def windows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    trajectory = torch.tensor([7, 3, 3, 7, 9, 3])
    theta = {3: (0.5, -1.0), 7: (-0.5, 1.0), 9: (1.5, 0.0)}
    truth = torch.tensor([theta[int(t)] for t in trajectory])
    return truth + torch.randn(6, 2, generator=generator), truth, trajectory


def rows(key="run/ridge", **changes):
    prediction, truth, trajectory = windows()
    scales = {"Reynolds": "log10", "Schmidt": "linear"}
    return make_rows(
        prediction, truth, trajectory, scales=scales, centers=[4.5, 2.0], spreads=[0.5, 3.0], key=key, plane=truth,
        **ABOUT | changes,
    )  # fmt: skip


def test_a_row_says_which_of_its_trajectories_start_alike():
    first = [*range(10)]
    assert {tuple(row.starts) for row in rows()} == {tuple(row.starts) for row in rows(starts=first)} == {()}
    first[9] = 7
    assert [row.starts for row in rows(starts=first)] == [[3, 7, 7]] * 2


def test_rows_equal_loops_over_windows():
    prediction, truth, trajectory = windows()
    for p, row in enumerate(rows()):
        assert row.n == 6 and row.trajectories == [3, 7, 9] and row.windows == [3, 2, 1]
        assert row.value == pytest.approx(np.mean([(prediction[m, p] - truth[m, p]).item() ** 2 for m in range(6)]))
        for i, t in enumerate(row.trajectories):
            pairs = [(prediction[m, p].item(), truth[m, p].item()) for m in range(6) if trajectory[m] == t]
            assert row.truth[i] == pytest.approx(pairs[0][1])
            assert row.prediction[i] == pytest.approx(sum(a for a, _ in pairs) / len(pairs))
            assert row.squared_error[i] == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / len(pairs))

            def units(z, p=p):
                return 10 ** (4.5 + 0.5 * z) if p == 0 else 2 + 3 * z

            assert row.absolute_error[i] == pytest.approx(sum(abs(units(a) - units(b)) for a, b in pairs) / len(pairs))
        assert np.average(row.squared_error, weights=row.windows) == pytest.approx(row.value)


def test_inverse_gives_physical_units():
    reynolds, schmidt = rows()
    assert inverse([0.0, 1.0], reynolds) == pytest.approx([10**4.5, 1e5])
    assert inverse(-1.0, schmidt) == pytest.approx(-1.0)


def test_rows_survive_the_file_exactly(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    assert append(path, rows()) == 2
    assert read(path) == rows()
    assert [row.key for row in read(path)] == ["run/ridge/Reynolds", "run/ridge/Schmidt"]


def test_rows_without_the_last_two_fields_are_older_ones(tmp_path):
    made = rows()
    old = [{k: v for k, v in asdict(row).items() if k not in ("setting", "starts")} for row in made]
    (tmp_path / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in old))
    assert read(tmp_path / "results.jsonl") == [replace(row, setting="", starts=[]) for row in made]


def test_a_key_that_is_there_is_skipped_and_the_first_number_stays(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second = rows()
    append(path, [first])
    before = path.read_bytes()
    other = replace(first, value=9.0)
    assert append(path, [other]) == 0 and path.read_bytes() == before
    assert append(path, [other, second, replace(second, value=9.0)]) == 1
    assert read(path) == [first, second] and path.read_bytes().startswith(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_prediction_that_is_not_finite_is_refused(value):
    prediction, truth, trajectory = windows()
    prediction[2, 0] = value
    with pytest.raises(UserError, match=r"runs/demo/a: probe ridge predicts Reynolds that is not finite"):
        make_rows(
            prediction, truth, trajectory, scales={"Reynolds": "log10", "b": "linear"},
            centers=[4, 0], spreads=[1, 1], key="k", **ABOUT,
        )  # fmt: skip


def test_truth_that_varies_within_a_trajectory_is_refused():
    prediction, truth, trajectory = windows()
    truth[1, 1] += 0.1
    with pytest.raises(ValueError, match="b varies within"):
        make_rows(
            prediction, truth, trajectory, scales={"a": "linear", "b": "linear"},
            centers=[0, 0], spreads=[1, 1], key="k", **ABOUT,
        )  # fmt: skip


def broken(change):
    values = asdict(rows()[0])
    change(values)
    return json.dumps(values)


BROKEN = {
    '{"data": "shear_fl': "Unterminated string",
    "": "Expecting value",
    "[]": "must be a mapping",
    broken(lambda v: v.update(colour="red")): "unexpected keyword argument 'colour'",
    broken(lambda v: v.pop("key")): "missing 1 required positional argument: 'key'",
    broken(lambda v: v.update(value=float("nan"))): "value is not float",
    broken(lambda v: v.update(seed="0")): "seed is not int",
    broken(lambda v: v.update(scale="ln")): "scale is not",
    broken(lambda v: v.update(truth=[1.0, None, 2.0])): "truth is not",
    broken(lambda v: v.update(truth=[1.0])): "one entry for each",
    broken(lambda v: v.update(trajectories=[3, 3, 9])): "one entry for each",
}


@pytest.mark.parametrize("line", BROKEN, ids=BROKEN.values())
def test_a_broken_line_is_named_with_its_remedy(tmp_path, line):
    path = tmp_path / "results.jsonl"
    append(path, rows())
    good = path.read_text()
    path.write_text(good + line + "\n" + good)
    with pytest.raises(UserError, match=r"line 3: not a row \(.*\); delete the line and run the probe") as caught:
        read(path)
    assert BROKEN[line] in str(caught.value)
    with pytest.raises(UserError, match="line 3"):
        append(path, rows("other"))
    assert line in path.read_text()


def test_a_last_line_without_its_end_does_not_break_later_rows(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, rows())
    path.write_text(path.read_text().rstrip("\n"))
    append(path, rows("other"))
    assert len(read(path)) == 4


def test_a_kill_while_writing_leaves_the_old_rows(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    append(path, rows())

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            append(path, rows("other"))
    assert read(path) == rows()
    assert append(path, rows("other")) == 2


def test_a_full_disk_is_an_oserror_and_leaves_the_old_rows(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    append(path, rows())

    def full(path, text, encoding):
        path.open("w").write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        append(path, rows("other"))
    assert read(path) == rows()


def _write(path, name):
    for i in range(10):
        append(path, rows(f"{name}/{i}"))


def test_processes_append_at_once_and_none_loses_rows(tmp_path):
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        if path.exists():
            assert len(read(path)) % 2 == 0  # whole pairs at any time
    assert [worker.exitcode for worker in workers] == [0] * 4
    keys = [row.key for row in read(path)]
    assert sorted(keys) == sorted({f"{n}/{i}/{p}" for n in "abcd" for i in range(10) for p in ("Reynolds", "Schmidt")})


def test_a_row_is_plain_json():
    for row in rows():
        assert isinstance(row, Row) and json.loads(json.dumps(asdict(row), allow_nan=False)) == asdict(row)
