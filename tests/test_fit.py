"""Fitting: the run folder, resume bitwise after SIGKILL, what a user can get wrong."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import physrep
from physrep.config import compose
from physrep.errors import UserError
from physrep.fit import assemble, fit, main
from physrep.run import run_folder

CONF = Path("conf").resolve()


def arguments(datasets: Path, runs: Path, *more: str) -> list[str]:
    return [
        "data=shear_flow_tiny", f"data.root={datasets}", f"runs={runs}", "data.batch_size=4", "data.frames=8",
        "encoder.widths=[4,8]", "encoder.depths=[1,1]", "encoder.strides=[[4,4,4],[2,2,2]]",
        "encoder.kernels=[[3,3],[3,3]]",
        "objective.warmup=3", "trainer.max_steps=12", "trainer.val_check_interval=5", "trainer.log_every_n_steps=2",
        "checkpoint_every=4", *more,
    ]  # fmt: skip


def only_run(runs: Path) -> Path:
    (folder,) = (p.parent for p in runs.glob("*/*/config.yaml"))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def finished(datasets, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    main(arguments(datasets, runs, "objective=jepa", "data.noise=0.1"))
    return only_run(runs)


def test_a_run_folder_holds_everything(finished):
    assert {p.name for p in finished.iterdir()} >= {
        "config.yaml", "provenance.json", "summary.json", "metrics.csv", "checkpoints", "tb",
    }  # fmt: skip
    assert finished.name.startswith("shear_flow_tiny-jepa-conv_tiny-seed0")
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    with (finished / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    names = {r["name"] for r in rows}
    assert names >= {"train/loss", "valid/loss", "probe/Reynolds", "probe/Schmidt", "probe/mse", "rank/effective",
                     "std/between", "std/within"}  # fmt: skip
    assert [int(r["step"]) for r in rows if r["name"] == "valid/loss"] == [5, 10, 12]
    provenance = json.loads((finished / "provenance.json").read_text())
    assert len(provenance["fingerprint"]) == 16
    assert provenance["starts"][0]["packages"]["torch"] == version("torch")
    assert json.loads((finished / "summary.json").read_text())["step"] == 12
    assert list((finished / "tb").glob("events*"))


def test_a_finished_run_is_left_alone(finished, datasets, capsys):
    before = (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    main(arguments(datasets, finished.parent.parent, "objective=jepa", "data.noise=0.1"))
    assert "done already" in capsys.readouterr().out
    assert (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_checkpoints_hold_plain_things_only(finished):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["physrep"]["channels"] == ["tracer", "pressure", "velocity_x", "velocity_y"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["jepa", "views"])
def test_killed_and_started_again_ends_bitwise_the_same(objective, datasets, tmp_path):
    """SIGKILL in the middle of an epoch (30 batches), after the checkpoint of step 36."""
    more = [f"objective={objective}", "data.noise=0.1", "data.shift=true", "trainer.max_steps=70", "checkpoint_every=9",
            "trainer.val_check_interval=7"]  # fmt: skip
    if objective == "jepa":
        more.append("data.num_workers=2")
    main(arguments(datasets, tmp_path / "whole", *more))
    command = [sys.executable, "-m", "physrep.fit", *arguments(datasets, tmp_path / "cut", *more)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    last = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        last = next((tmp_path / "cut").glob("*/*/checkpoints/last.ckpt"), None)
        if last and torch.load(last, weights_only=True)["global_step"] >= 36:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 36 <= reached < 70
    folder = only_run(tmp_path / "cut")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"resumes at step {reached}" in done.stderr
    whole, cut = weights(only_run(tmp_path / "whole")), weights(folder)
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name
    with (folder / "metrics.csv").open() as f:
        steps = [int(r["step"]) for r in csv.DictReader(f) if r["name"] == "train/loss"]
    assert steps == sorted(set(steps)), "the curve goes on without a second version"
    assert len(json.loads((folder / "provenance.json").read_text())["starts"]) == 2


def test_another_config_in_the_folder_is_refused(finished, datasets):
    with pytest.raises(UserError, match=r"holds a run of another config \(.*objective\.sim.*\)") as error:
        main(arguments(datasets, finished.parent.parent, "objective=jepa", "data.noise=0.1", "objective.sim=7",
                       f"run={finished.name}"))  # fmt: skip
    assert "\n" not in str(error.value)


def test_a_config_gives_its_own_folder(datasets, tmp_path):
    from physrep.config import compose, run_name

    names = {run_name(compose(arguments(datasets, tmp_path, *more)))
             for more in ([], ["seed=1"], ["objective.sim=7"], ["objective=views"], ["data.noise=0.5"])}  # fmt: skip
    assert len(names) == 5
    assert run_name(compose(arguments(datasets, tmp_path))) == run_name(
        compose(arguments(Path("/elsewhere"), tmp_path))
    )


def test_dry_run_writes_nothing(datasets, tmp_path, capsys):
    main([*arguments(datasets, tmp_path / "runs"), "--dry-run"])
    said = capsys.readouterr().out
    assert "clip [4, 4, 16, 16, 32]" in said
    assert "minutes" in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_steps_as_training_does(datasets, tmp_path, monkeypatch):
    """The objective's own optimiser, and what the objective does at a step."""
    from physrep.objectives.jepa import Jepa

    made, teachers, own = [], [], Jepa.configure_optimizers

    def configure(self):
        made.append(own(self)["optimizer"])
        teachers.append(self.teacher)
        return made[-1]

    monkeypatch.setattr(Jepa, "configure_optimizers", configure)
    main([*arguments(datasets, tmp_path, "objective=jepa_ema"), "--dry-run"])
    (optimizer,), (teacher,) = made, teachers
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}
    assert int(teacher.n_averaged) == 3, "as it was made, and at each step"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["trainer.devices=0"], r"trainer: .*devices=0"),
        (["trainer=gpu", "trainer.strategy=dpp"], "trainer: .*invalid strategy name"),
        (["trainer=ddp", "trainer.check_val_every_n_epoch=1"], r"trainer\.val_check_interval: give a whole number"),
    ],
)
def test_a_dry_run_tries_the_trainer(more, said, datasets, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        main([*arguments(datasets, tmp_path, *more), "--dry-run"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        ["trainer=gpu", "trainer.max_epochs=3"],
        ["trainer=fsdp"],
        ["trainer=ddp", "trainer.strategy=fsdp"],
        ["trainer=slurm", "trainer.num_nodes=2", "trainer.devices=4"],
    ],
)
def test_a_dry_run_needs_no_hardware(more, datasets, tmp_path, capsys):
    main([*arguments(datasets, tmp_path, *more), "--dry-run"])
    assert "minutes in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["objective=jpea"], "did you mean jepa"),
        (["objective.sim_coef=2"], "did you mean sim"),
        (["objectve.sim=2"], "did you mean objective"),
        (["trainer.max_step=2"], "did you mean max_steps"),
        (["trainer.max_steps=abc"], "expected int"),
        (["data.name=shear_flow_tinny"], "no such dataset.*did you mean shear_flow_tiny"),
        (["data.frames=12"], "a window needs 24"),
        (["data.frames=4"], "strides"),
        (["trainer.max_steps=-1"], r"trainer\.max_steps=-1: must be 1 or more"),
        (["trainer.accumulate_grad_batches=0"], r"trainer\.accumulate_grad_batches=0: must be 1 or more"),
        (["checkpoint_every=0"], "checkpoint_every=0: must be 1 or more"),
        (["run=../evil"], r"run=\.\./evil: is a name, not a path"),
        (["data.batch_size=4000"], "data.batch_size"),
    ],
)
def test_mistakes_are_one_line(datasets, tmp_path, more, said):
    with pytest.raises(UserError, match=said) as error:
        main(arguments(datasets, tmp_path / "runs", *more))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("runs/*/*/checkpoints/*"))


def test_exit_code_two_and_no_traceback(datasets, tmp_path):
    (tmp_path / "runs").write_text("a file where the runs should lie")
    cases = {
        "no such group": arguments(datasets, tmp_path / "other", "objectiv=jepa"),
        str(tmp_path / "runs"): arguments(datasets, tmp_path / "runs"),
    }
    for said, argv in cases.items():
        done = subprocess.run([sys.executable, "-m", "physrep.fit", *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert said in done.stderr or "did you mean objective" in done.stderr
        assert done.stderr.startswith("physrep: ")


def test_a_mistake_leaves_no_folder(datasets, tmp_path):
    for more in (["data.frames=4"], ["trainer.devices=0"], ["objective.hidden=0.5"]):
        with pytest.raises(UserError) as error:
            main(arguments(datasets, tmp_path / "runs", *more))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "runs").exists()


def test_a_mistake_that_the_first_step_meets_leaves_no_folder(datasets, tmp_path):
    with pytest.raises(UserError, match=r"data\.batch_size=1: samples are compared within a batch"):
        main(arguments(datasets, tmp_path / "runs", "objective=views", "data.batch_size=1"))
    assert not list(tmp_path.glob("runs/*/*"))


def test_one_process_at_a_time_trains_a_run(datasets, tmp_path):
    argv = arguments(datasets, tmp_path / "runs")
    folder = run_folder(compose(argv))
    hold = """import sys, pathlib, physrep.run
with physrep.run.claim(pathlib.Path(sys.argv[1])): input('held')"""
    with subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as other:  # fmt: skip
        assert other.stdout.read(4) == "held"
        with pytest.raises(UserError, match=f"^{folder}: is being trained by another process; wait for it, or"):
            main(argv)
        assert {path.name for path in folder.iterdir()} == {".lock"}
        other.communicate("\n")
    main(argv)
    assert (folder / "summary.json").exists() and not (folder / ".lock").exists()


def test_a_foreign_checkpoint_is_not_resumed(finished, datasets, tmp_path):
    folder = tmp_path / "runs" / "dev" / finished.name
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    other = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    other["physrep"]["config"] = "00000000"
    torch.save(other, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="is of another config"):
        main(arguments(datasets, tmp_path / "runs", "objective=jepa", "data.noise=0.1"))


def test_a_dataset_without_targets_can_be_trained_on(datasets, tmp_path):
    main(arguments(datasets, tmp_path, "data=well", "data.name=shear_flow_tiny", "trainer.max_steps=2"))
    with (only_run(tmp_path) / "metrics.csv").open() as f:
        names = {r["name"] for r in csv.DictReader(f)}
    assert "rank/effective" in names
    assert "probe/mse" not in names


def test_objectives_are_plain_lightning(datasets):
    """In a user's own script: a Trainer, the data module, and no run folder."""
    from lightning.pytorch import Trainer

    from physrep.data.shear_flow import ShearFlow
    from physrep.encoders.conv import ConvEncoder
    from physrep.objectives.jepa import Jepa

    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, batch_size=4)
    encoder = ConvEncoder(4, (4, 8), (1, 1), (4, 4, 4), ((4, 4, 4), (2, 2, 2)), ((3, 3), (3, 3)))
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Jepa(encoder), datamodule=data)
    assert data.clips == "next", "the data module serves what the objective asks for"


def test_damaged_and_foreign_checkpoints(finished, tmp_path):
    import physrep

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    frozen = physrep.load(copy)
    assert frozen.step == 12
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("- 8\n", "- 12\n", 1))
    with pytest.raises(UserError, match="is of another config"):
        physrep.load(copy)
    (copy / "config.yaml").write_text(config)
    last = copy / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"last\.ckpt: not a readable checkpoint"):
        physrep.load(copy)
    last.unlink()
    with pytest.raises(UserError, match="no such checkpoint"):
        physrep.load(copy)
    with pytest.raises(UserError, match="not a run folder"):
        physrep.load(tmp_path)


def test_load_encodes_a_users_arrays(finished, datasets):
    import physrep
    from physrep.data.shear_flow import ShearFlow

    frozen = physrep.load(finished)
    data = ShearFlow("shear_flow_tiny", root=str(datasets), frames=8, batch_size=4)
    data.setup("probe")
    raw = next(iter(data.test_dataloader()))
    tokens = frozen.encode(raw["clip"])
    assert tokens.shape == (4, 8, 8)
    assert not tokens.requires_grad
    prepared = data.prepare_batch(raw, augment=False)["clip"]
    torch.testing.assert_close(tokens, frozen.encode(prepared, normalised=True))
    with pytest.raises(UserError, match="expected .* with channels tracer, pressure"):
        frozen.encode(raw["clip"][:, :3])


def test_random_is_kept_as_it_was_initialised(datasets, tmp_path):
    argv = ["data=shear_flow_tiny", f"data.root={datasets}", f"runs={tmp_path}", "objective=random", "seed=3"]
    folder = fit(compose(argv))
    made = assemble(compose(argv))[1].encoder.state_dict()
    kept = physrep.load(folder)
    assert kept.step == 0
    assert all(torch.equal(made[k], v) for k, v in kept.objective.encoder.state_dict().items())
    assert "probe/mse" in json.loads((folder / "summary.json").read_text())["metrics"]
    assert fit(compose(argv)) == folder
