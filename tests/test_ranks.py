"""Many ranks are one process with their batches together: curves, validation, errors, launchers; and so is bf16."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from physrep.config import compose
from physrep.data.sampler import WindowSampler
from physrep.data.shear_flow import ShearFlow
from physrep.errors import UserError
from physrep.fit import fit
from physrep.objectives.base import Objective
from tests.launch import TINY, Fault, curves, launch, only_run, weights


@pytest.fixture(scope="module")
def argv(datasets):
    return [*TINY, f"data.root={datasets}", "objective=next_frame", "trainer.max_steps=20",
            "trainer.val_check_interval=10", "checkpoint_every=100"]  # fmt: skip


@pytest.fixture(scope="module")
def one(argv, tmp_path_factory):
    """The curves of a process with batches of four."""
    folder = tmp_path_factory.mktemp("one")
    fit(compose([*argv, f"runs={folder}", "data.batch_size=4"]))
    return curves(only_run(folder))


def differences(one, other):
    """Return the largest difference of the curves of each kind."""
    assert one.keys() == other.keys()
    kinds = {name.partition("/")[0] for _, name in one}
    return {kind: max(abs((one[key] or 0) - (other[key] or 0)) for key in one if key[1].startswith(f"{kind}/"))
            for kind in kinds}  # fmt: skip


def test_two_ranks_have_the_curve_of_one_process(argv, one, tmp_path):
    ended = launch([*argv, f"runs={tmp_path}", "data.batch_size=2"], tmp_path, 2)
    assert ended.codes == [0, 0], ended.said
    assert "2 x 2 x 1 = 4 windows a step (ranks x batch x accumulated), 18 steps an epoch" in ended.said
    assert ended.said.count("\n") == 2, "the second says nothing"
    found = differences(one, curves(only_run(tmp_path)))
    assert max(found.values()) < 1e-5, found


def test_gradients_that_stay_apart_are_noticed(argv, one, tmp_path):
    line = [*argv, f"runs={tmp_path}", "data.batch_size=2"]
    assert launch(line, tmp_path, 2, Fault("alone", "step", 0, rank=None)).codes == [0, 0]
    assert differences(one, curves(only_run(tmp_path)))["train"] > 1e-3


def test_accumulated_batches_are_one_batch(argv, one, tmp_path):
    fit(compose([*argv, f"runs={tmp_path}", "data.batch_size=2", "trainer.accumulate_grad_batches=2"]))
    found = differences(one, curves(only_run(tmp_path)))
    assert max(found[kind] for kind in ("valid", "probe", "rank", "std")) < 1e-5, found


def test_a_step_has_the_whole_global_batch_at_the_end_of_an_epoch_too(datasets):
    """24 windows, 5 a batch, 2 batches a step: two steps an epoch, and 4 windows are left out of each."""
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, step=13, batch_size=5)
    seen, steps = [], []

    class Counts(Objective):
        def losses(self, batch):
            seen.extend(batch["trajectory"].tolist())
            return {"loss": self.encoder.weight.square().sum()}

        def on_before_optimizer_step(self, optimizer):
            steps.append(len(seen))

    encoder = torch.nn.Linear(1, 1)
    trainer = Trainer(max_steps=7, accumulate_grad_batches=2, limit_val_batches=0, logger=False, accelerator="cpu",
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Counts(encoder), datamodule=data)
    assert steps == [10, 20, 30, 40, 50, 60, 70]
    assert trainer.current_epoch == 4
    epochs = [seen[i : i + 20] for i in range(0, 60, 20)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1, "others each time"


def test_ranks_share_whole_steps_in_the_order_of_one_process():
    windows = np.array([(i, t) for i in range(5) for t in range(5)])
    whole = list(WindowSampler(windows, 0, False, True, step=12))
    assert len(whole) == 24
    shares = [WindowSampler(windows, 0, False, True, rank, world=2, step=6) for rank in (0, 1)]
    assert [len(s) for s in shares] == [12, 12]
    assert [key for pair in zip(*shares, strict=True) for key in pair] == whole
    late = WindowSampler(windows, 0, False, True, 1, world=2, step=6)
    late.skip = 6
    assert list(late) == list(shares[1])[6:]
    assert len(WindowSampler(windows, 0, False, True, world=2, step=13)) == 0


@pytest.mark.parametrize("batch", [5, 12])
def test_validation_does_not_depend_on_the_number_of_ranks(argv, batch, tmp_path):
    """12 windows: 3 batches on 2 ranks, or one. With a loss over the batch, and masks drawn for it; weights at rest."""
    line = [*argv, f"data.batch_size={batch}", "objective=jepa", "objective.lr=0", "trainer.max_steps=1"]
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        ended = launch([*line, f"runs={folder}"], folder, ranks)
        assert ended.codes == [0] * ranks, ended.said
        found.append({key: value for key, value in curves(only_run(folder)).items() if key[0] == 1})
    assert found[0].keys() == found[1].keys() >= {(1, "valid/loss"), (1, "probe/mse"), (1, "rank/effective")}
    for key, value in found[0].items():
        assert found[1][key] == (value and pytest.approx(value, rel=1e-5)), key  # metrics.csv has six digits


def test_validation_batches_are_all_windows_once_and_mixed(datasets):
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, eval_step=2, batch_size=16)

    def shares(world):
        batches = []
        for rank in range(world):
            data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
            data.setup("fit")
            data._sampler.rank, data._sampler.world = rank, world
            loader = data.val_dataloader()
            order = [raw["trajectory"].tolist() for raw in loader]
            batches.append([b for i, b in enumerate(order) if not data.repeats(i)])
            assert len(order) == -(-6 // world)
        return [b for row in zip(*(x + [[]] * 6 for x in batches), strict=False) for b in row if b]

    one = shares(1)
    assert [len(b) for b in one] == [14] * 6, "84 windows in 6 parts, not 16 and a rest"
    assert sorted(i for b in one for i in b) == [i for i in range(12) for _ in range(7)]
    assert min(len(set(b)) for b in one) > 6
    for world in (2, 4, 8):
        assert shares(world) == one


@pytest.mark.parametrize(("fault", "codes", "said"), [
    (Fault("mistake", "step", 3, rank=1), [2, 2], "physrep: a mistake of one rank"),
    (Fault("nan", "step", 3, rank=1), [2, 0], "physrep: NextFrame: the loss is nan at step 3; try a lower"),
    (Fault("nan", "step", 10, rank=None), [2, 0], "physrep: NextFrame: embeddings are not finite at step 10; try"),
])  # fmt: skip
def test_a_mistake_is_told_once_and_ends_all(argv, fault, codes, said, tmp_path):
    ended = launch([*argv, f"runs={tmp_path}", "data.batch_size=2"], tmp_path, 2, fault)
    assert ended.codes == codes, ended.said
    lines = [line for line in ended.said.splitlines() if line.startswith("physrep: ")]
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert "Traceback" not in ended.said


def test_ranks_that_the_trainer_has_not_are_refused(argv, tmp_path):
    ended = launch([*argv, f"runs={tmp_path}", "data.batch_size=2"], tmp_path, 2, devices=1)
    assert ended.codes == [2, 2]
    assert ended.said == (
        "physrep: trainer.devices: 2 processes were started (nodes: 1) and the trainer has 1 (nodes: 1); "
        "set trainer.devices and trainer.num_nodes\n"
    )
    for more, said in (
        (["trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=1"], "a whole number of optimiser steps"),
        (["trainer.check_val_every_n_epoch=1"], "give a whole number of optimiser steps"),
        (["data.batch_size=9", "trainer.accumulate_grad_batches=9"], "a step of 81 windows"),
    ):
        with pytest.raises(UserError, match=said):
            fit(compose([*argv, f"runs={tmp_path}", *more]))
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.slow
def test_sharded_weights_train_and_resume_as_whole_ones_do(argv, tmp_path):
    line = [*argv, "objective=jepa_ema", "data.batch_size=2", "checkpoint_every=2", "trainer.max_steps=8"]
    found = []
    for name, fault in (("ddp", None), ("fsdp", Fault("SIGTERM", "step", 5, rank=1))):
        folder = tmp_path / name
        folder.mkdir()
        each = [*line, f"runs={folder}", f"trainer={name}", "trainer.accelerator=cpu", "trainer.precision=32"]
        if fault:
            assert launch(each, folder, 2, fault).codes == [75, 0]
        done = launch(each, folder, 2)
        assert done.codes == [0, 0], done.said
        found.append(only_run(folder))
    whole, sharded = (weights(folder) for folder in found)
    assert whole.keys() == sharded.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(sharded[name], weight, rtol=0, atol=1e-6)
    assert max(differences(*map(curves, found)).values()) < 1e-5


@pytest.mark.slow
def test_lightnings_launcher_starts_and_ends_all(argv, tmp_path):
    """The command that a user types: its first process killed, and told to stop after it has gone on."""
    line = [*argv, f"runs={tmp_path}", "data.batch_size=2", "data.num_workers=1", "trainer=ddp", "trainer.devices=2",
            "trainer.accelerator=cpu", "trainer.precision=32", "checkpoint_every=2"]  # fmt: skip
    for what, step, code, said in (("SIGKILL", 3, -9, "starts"), ("SIGTERM", 5, 75, "resumes at step 2")):
        ended = launch(line, tmp_path, 1, Fault(what, "step", step))
        assert ended.codes == [code], ended.said
        assert said in ended.said
        deadline = time.monotonic() + 15
        while subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout:
            assert time.monotonic() < deadline, "a rank or a worker is left"
            time.sleep(0.1)
    assert "physrep: SIGTERM: stopped at step 5; the same command continues" in ended.said
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_torchrun_starts_all(argv, tmp_path):
    line = [*argv, f"runs={tmp_path}", "data.batch_size=2", "trainer.devices=2", "trainer.max_steps=4"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "physrep.fit"]
    done = subprocess.run([*command, *line], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    provenance = json.loads((only_run(tmp_path) / "provenance.json").read_text())
    assert [start["ranks"] for start in provenance["starts"]] == [2]
    assert done.stdout.count("4 steps in") == 1


@pytest.mark.slow
def test_bf16_is_float32_to_the_spread_of_seeds(argv, tmp_path):
    """After 60 steps. The probe reads hardly anything from so few trajectories, the loss shows that bf16 trains."""

    def ends(precision, seed):
        folder = tmp_path / f"{precision}{seed}"
        folder.mkdir()
        ended = launch([*argv, f"runs={folder}", f"trainer.precision={precision}", f"seed={seed}",
                        "trainer.max_steps=60", "trainer.val_check_interval=60"], folder)  # fmt: skip
        assert ended.codes == [0], ended.said
        found = curves(only_run(folder))
        return torch.tensor([found[60, "probe/mse"], found[60, "valid/loss"]])

    whole = torch.stack([ends("32", seed) for seed in range(3)])
    half = ends("bf16-mixed", 0)
    assert (half != whole[0]).all(), "it is another precision"
    assert ((half - whole[0]).abs() < whole.amax(0) - whole.amin(0)).all(), (half, whole)
