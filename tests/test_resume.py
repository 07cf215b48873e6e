"""Interrupted equals uninterrupted, bitwise: whatever ends a run, wherever it is, the same command goes on."""

import json
import shutil
from itertools import product

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from physrep.config import compose
from physrep.errors import UserError
from physrep.run import load, resume_point
from tests.launch import TINY, Fault, curves, launch, only_run, weights

CODES = {"SIGKILL": -9, "SIGTERM": 75, "SIGUSR1": 75, "SIGINT": 130, "error": 1}
PLACES = {"step": 5, "validation": 4, "checkpoint": 6}  # the optimiser step; an epoch has three of them, of two batches
MATRIX = [
    pytest.param(what, where, ranks, marks=[pytest.mark.slow] * (ranks > 1))
    for ranks, what, where in product((1, 2), CODES, PLACES)
]


@pytest.fixture(scope="module")
def argv(datasets):
    return [
        *TINY, f"data.root={datasets}", "data.noise=0.1", "data.shift=true", "data.num_workers=1", "objective=jepa",
        "trainer.accumulate_grad_batches=2", "trainer.max_steps=8", "trainer.val_check_interval=4",
        "checkpoint_every=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """Return the command line for so many ranks and the run that nothing interrupts, each trained once."""
    known = {}

    def of(ranks):
        if ranks not in known:
            folder, line = tmp_path_factory.mktemp("whole"), [*argv, f"data.batch_size={4 // ranks}"]
            assert launch([*line, f"runs={folder}"], folder, ranks).codes == [0] * ranks
            known[ranks] = line, only_run(folder)
        return known[ranks]

    return of


def summary(folder):
    """Return a run's summary but for the seconds that it took."""
    held = json.loads((folder / "summary.json").read_text())
    del held["cost"]["seconds"]
    return held


def same(one, other):
    """Hold two run folders against one another: weights, curves, and the last validation's summary."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert curves(one) == curves(other)
    assert summary(one) == summary(other)
    assert {p.name for p in (other / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert torch.load(one / "checkpoints" / "best.ckpt")["global_step"] == torch.load(
        other / "checkpoints" / "best.ckpt")["global_step"]  # fmt: skip


@pytest.mark.parametrize(("what", "where", "ranks"), MATRIX)
def test_every_end_is_a_pause(whole, tmp_path, what, where, ranks):
    line, uninterrupted = whole(ranks)
    line = [*line, f"runs={tmp_path}"]
    fault = Fault(what, where, PLACES[where], rank=0 if where == "checkpoint" else ranks - 1)
    ended = launch(line, tmp_path, ranks, fault)
    if CODES[what] in (75, 130):
        assert ended.codes == [CODES[what], *[0] * (ranks - 1)], ended.said
        assert f"physrep: {what}: stopped at step {PLACES[where]}; the same command continues" in ended.said
        assert "Traceback" not in ended.said
    else:
        assert ended.codes[fault.rank] == CODES[what], ended.said
        assert all(ended.codes), "no rank waits for another that is gone"
    again = launch(line, tmp_path, ranks)
    assert again.codes == [0] * ranks, again.said
    step = PLACES[where] if CODES[what] in (75, 130) or where == "validation" else 4
    assert f"resumes at step {step}" in again.said
    assert again.said.count("\n") == 2, again.said
    same(uninterrupted, only_run(tmp_path))


@pytest.mark.parametrize(("what", "where", "ranks", "said"), [
    ("SIGTERM", "assembly", 1, "physrep: SIGTERM: stopped before the first step; the same command continues"),
    ("SIGINT", "assembly", 1, "physrep: interrupted; the same command continues"),
    ("SIGUSR1", "setup", 1, "physrep: SIGUSR1: stopped at step 0; the same command continues"),
    ("SIGINT", "setup", 1, "physrep: SIGINT: stopped at step 0; the same command continues"),
    ("SIGTERM", "step", 1, "physrep: SIGTERM: stopped at step 1; the same command continues"),
    pytest.param("SIGTERM", "assembly", 2, "physrep: SIGTERM: stopped at step 0; the same command continues",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_a_signal_before_or_in_the_first_step(whole, tmp_path, what, where, ranks, said):
    line, uninterrupted = whole(ranks)
    line = [*line, f"runs={tmp_path}"]
    ended = launch(line, tmp_path, ranks, Fault(what, where, 1, rank=ranks - 1))
    assert ended.codes == [CODES[what], *[0] * (ranks - 1)], ended.said
    assert ended.said.splitlines()[-1] == said
    assert "Traceback" not in ended.said
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path != tmp_path / "log"]
    assert not [name for name in left if name.startswith(".")], "nothing half-written"
    assert bool(left) == (ranks > 1 or where != "assembly"), "a process that is alone leaves no folder"
    assert ("last.ckpt" in left) == (where == "step")
    assert launch(line, tmp_path, ranks).codes == [0] * ranks
    same(uninterrupted, only_run(tmp_path))


def test_a_run_without_steps_stops_in_its_validation(argv, tmp_path):
    line = [*argv, "objective=random", "data.batch_size=4", f"runs={tmp_path}"]
    ended = launch(line, tmp_path, 1, Fault("SIGTERM", "validation", 0))
    assert ended.codes == [75], ended.said
    assert ended.said.splitlines()[-1] == "physrep: SIGTERM: stopped at step 0; the same command continues"
    assert launch(line, tmp_path).codes == [0]
    assert weights(only_run(tmp_path))


def test_again_and_again_at_the_ends_of_epochs(whole, tmp_path):
    line, uninterrupted = whole(1)
    line = [*line, f"runs={tmp_path}"]
    for step in (3, 6, 7):
        ended = launch(line, tmp_path, 1, Fault("SIGTERM", "step", step))
        assert ended.codes == [75], ended.said
    assert launch(line, tmp_path).codes == [0]
    same(uninterrupted, only_run(tmp_path))
    starts = json.loads((only_run(tmp_path) / "provenance.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 3, 6, 7]
    assert {(s["ranks"], s["batch"], s["accumulated"], s["global_batch"]) for s in starts} == {(1, 4, 2, 8)}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, argv, tmp_path):
    line, uninterrupted = whole(1)
    line = [*line, f"runs={tmp_path}"]
    assert launch(line, tmp_path, 1, Fault("SIGKILL", "step", 8)).codes == [-9]
    folder = only_run(tmp_path)
    last, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    last.write_bytes(last.read_bytes()[:5000])
    kept = previous.read_bytes()
    ended = launch(line, tmp_path, 1, Fault("SIGKILL", "checkpoint", 6))
    assert "last.ckpt: is damaged; goes on from previous.ckpt, step 4" in ended.said
    assert previous.read_bytes() == kept, "what is damaged takes nobody's place"
    assert launch(line, tmp_path).codes == [0]
    same(uninterrupted, folder)
    for place in (last, previous):
        place.write_bytes(place.read_bytes()[:5000])
    cfg = compose(line)
    for place in (previous, last):
        with pytest.raises(UserError, match=rf"{place.name}: not a readable checkpoint"):
            resume_point(folder, cfg)
        place.unlink()
    assert resume_point(folder, cfg) == (None, 0)


def test_tensorboard_goes_on_without_a_second_version(whole, tmp_path):
    line, uninterrupted = whole(1)
    line = [*line, f"runs={tmp_path}"]
    assert launch(line, tmp_path, 1, Fault("SIGKILL", "step", 8)).codes == [-9]
    assert launch(line, tmp_path).codes == [0]
    found = []
    for folder in (uninterrupted, only_run(tmp_path)):
        events = EventAccumulator(str(folder / "tb")).Reload()
        rows = [(e.step, name, str(e.value)) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
        assert len(set(rows)) == len(rows)
        found.append(set(rows))
    assert found[0] == found[1]
    assert {step for step, name, _ in found[0] if name == "valid/loss"} == {4, 8}


def test_other_checkpoints_stay_if_asked(whole, argv, tmp_path):
    line, uninterrupted = whole(1)
    assert launch([*line, f"runs={tmp_path}", "keep=2"], tmp_path).codes == [0]
    folder = only_run(tmp_path)
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", "best.ckpt", "step=6.ckpt", "step=8.ckpt"}
    assert folder.name == uninterrupted.name, "they make no other run"
    again, first = weights(folder), weights(uninterrupted)
    assert all(torch.equal(weight, first[name]) for name, weight in again.items()), "the same config, the same weights"
    assert [load(folder, checkpoint=name).step for name in ("last", "step=6")] == [8, 6]
    best = min((value, step) for (step, name), value in curves(folder).items() if name == "probe/mse")[1]
    assert load(folder, checkpoint="best").step == best


def test_a_run_on_other_ranks_is_refused(whole, tmp_path):
    line, uninterrupted = whole(1)
    folder = tmp_path / "dev" / uninterrupted.name
    shutil.copytree(uninterrupted, folder)
    (folder / "summary.json").unlink()
    for name in ("last", "previous"):
        place = folder / "checkpoints" / f"{name}.ckpt"
        held = torch.load(place, weights_only=True)
        held["ShearFlow"]["ranks"] = 2
        torch.save(held, place)
    ended = launch([*line, f"runs={tmp_path}"], tmp_path)
    assert ended.codes == [2]
    assert "the run began with steps of 2 x 8 windows (ranks x windows a rank), now 1 x 8" in ended.said
