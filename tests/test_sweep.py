"""Grids of runs: what they expand to, what is skipped, what a failed or a running one does to the rest; SLURM's share
in it with stand-ins for its commands (test_slurm.py has the real ones)."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from physrep import files, sweep
from physrep.config import cli
from physrep.errors import UserError
from physrep.fit import main as fit
from physrep.results import read
from physrep.slurm import Element
from physrep.sweep import Cell, cells, claimed, main, parse


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
    narrow = "sweep=[{objective: [jepa, views], encoder: conv_tiny}, {objective: [videomae], encoder: vit_nano}]"
    for objective, encoder in {"views": "conv_tiny", "videomae": "vit_nano"}.items():
        (cell,) = cells(["data=shear_flow_tiny", narrow, f"objective={objective}"])
        assert cell.folder.name.startswith(f"shear_flow_tiny-{objective}-{encoder}"), "lists are narrowed"
    with pytest.raises(UserError, match="sweep: the experiment's grid has no run with objective=random"):
        cells(["data=shear_flow_tiny", narrow, "objective=random"])
    for wrong, said in {"[3]": "sweep: 3 is no grid", "[{seed: []}]": "sweep: seed has no value"}.items():
        with pytest.raises(UserError, match=said):
            cells(["data=shear_flow_tiny", f"sweep={wrong}"])
    with pytest.raises(UserError, match=r"probe=ridge,attentive"):
        cells(["data=shear_flow_tiny", "objective=jepa,views", "probe=ridge,attentive"])
    both = cells(["experiment=mine,demo", "data=shear_flow_tiny", "seed=0"])
    assert len([cell for cell in both if cell.folder.parent.name == "mine"]) == 3
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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EBADF])
def test_status_without_locks(number, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    cell = Cell([], tmp_path / "dev" / "a")
    cell.log.parent.mkdir(parents=True)
    cell.log.touch()
    monkeypatch.setattr(files.fcntl, "flock", flock)
    assert cell.status() == "failed"
    assert cell.status({"a": Element("running", "17")}) == "running"
    with claimed(cell.log) as log:
        assert log is not None


def test_a_failed_run_stops_nothing_and_is_tried_again(tmp_path, monkeypatch, capsys):
    """With a stand-in for fit: 0 fails until a file appears, 1 is done at once; what is done is probed, and all of it
    once a sweep."""
    asked, probed = [], []

    def call(command, output, threads=None):
        if command[0] == "physrep.probe":
            probed.append([word for word in command if word.startswith(("run=", "controls="))])
            return 0
        cfg = dict(argument.split("=") for argument in command[1:])
        folder = next(c.folder for c in planned if f"seed={cfg['seed']}" in c.argv)
        if cfg["seed"] == "0" and not (tmp_path / "mended").exists():
            print("physrep: seed 0 is cursed", file=output, flush=True)
            return 2
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text('{"metrics": {"valid/loss": 2.5, "rank/effective": 1.25}}')
        return 0

    def run(command, check):
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, 0)

    argv = ["data=shear_flow_tiny", "seed=0,1", f"runs={tmp_path / 'runs'}"]
    planned = cells(argv)
    monkeypatch.setattr(sweep.warm, "call", call)
    monkeypatch.setattr(sweep.subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "2 runs: 1 done, 0 running, 0 queued, 1 failed, 0 pending" in said
    assert f"failed   {planned[0].folder}: physrep: seed 0 is cursed" in said
    assert probed == [["controls=[]", f"run={planned[1].folder}"]], "controls are the first run's"
    (tmp_path / "mended").touch()
    main(argv)
    assert probed[1:] == [[f"run={planned[0].folder}"]]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "2 runs: 1 done, 0 running, 0 queued, 1 failed, 0 pending"
    assert last == "2 runs: 2 done, 0 running, 0 queued, 0 failed, 0 pending"
    main([*argv, "--status"])
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split() == list(sweep.MONITORS)
    assert [line.split() for line in lines] == [[cell.folder.name, "2.5", "1.25"] for cell in planned]
    assert last == "2 runs: 2 done, 0 running, 0 queued, 0 failed, 0 pending"
    assert asked == [["experiment=dev", f"runs={tmp_path / 'runs'}"]] * 2


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Write commands that go before all others: {name: body of a shell script}; they find "$CALLS" to write to."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    calls.touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(calls))

    def write(commands):
        for name, body in commands.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        return calls

    return write


SBATCH = """printf '%q ' "$@" >> $CALLS; echo >> $CALLS; echo 17"""


def test_what_print_says_is_what_is_submitted(tmp_path, monkeypatch, capsys, stand_ins):
    monkeypatch.chdir(tmp_path)
    calls = stand_ins({"sbatch": SBATCH, "squeue": ""})
    argv = ["data=shear_flow_tiny", "seed=0,1", "objective=jepa", "data.dropout=0.1", "trainer=gpu", "probe=ridge"]
    options = ["--slurm", "2x4", "--", "--partition=a b"]
    main([*argv, *options[:2], "--print", *options[2:]])
    assert not (tmp_path / "runs").exists()
    subprocess.run(["bash", "-c", capsys.readouterr().out], check=True, capture_output=True)
    printed, held = calls.read_text(), {p.name: p.read_text() for p in Path("runs/dev/logs").iterdir()}
    calls.write_text("")
    main([*argv, *options])
    assert calls.read_text() == printed
    assert {p.name: p.read_text() for p in Path("runs/dev/logs").iterdir()} == held

    (name, text), (first, second) = held.popitem(), map(shlex.split, printed.splitlines())
    folders = [cell.folder for cell in cells([*argv, "trainer.num_nodes=2", "trainer.devices=4"])]
    for seed, (line, folder) in enumerate(zip(text.splitlines(), folders, strict=True)):
        log, *words = shlex.split(line)
        assert log == f"{folder.parent}/logs/{folder.name}.log"
        assert {f"seed={seed}", "objective=jepa", "trainer.num_nodes=2", "trainer.devices=4"} < set(words)
    assert {"--array=1-2", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=a b"} < set(first)
    assert Path(first[-2]).read_text().startswith("#!/bin/bash")
    assert first[-1] == f"runs/dev/logs/{name}"
    assert {"--nodes=1", "--gpus-per-node=1", "--dependency=afterany:17,singleton", "--partition=a b"} < set(second)
    assert "--wrap=python -m physrep.probe experiment=dev runs=runs probe=ridge" in second


def test_a_cluster_without_gpus_is_asked_for_none_and_one_device_has_one_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["data=shear_flow_tiny", "--slurm", "1x1", "--print"])
    said = capsys.readouterr().out
    assert "gpu" not in said
    assert "--nodes=1 --ntasks-per-node=1" in said
    (plain,) = cells(["data=shear_flow_tiny"])
    assert f"{plain.log} data=shear_flow_tiny\n" in said
    main(["data=shear_flow_tiny", "--slurm", "2x1", "--print"])
    assert f"{plain.folder.name}-num_nodes=2.log data=shear_flow_tiny trainer.num_nodes=2\n" in capsys.readouterr().out


def test_what_slurm_has_is_not_submitted_again(tmp_path, monkeypatch, capsys, stand_ins):
    """Two of an array of three are queued or running; the third and a fourth are new."""
    monkeypatch.chdir(tmp_path)
    calls = stand_ins({"sbatch": SBATCH, "squeue": ""})
    argv = ["data=shear_flow_tiny", "seed=0,1,2"]
    main([*argv, "--slurm", "1x1"])
    (file,) = Path("runs/dev/logs").glob("array-*.txt")
    name = re.search(r"--job-name=(\S+)", calls.read_text())[1]
    queue = f"{name} 12 1 PENDING\\n{name} 13 2 COMPLETING\\n"
    stand_ins({"squeue": f'[ "$3" = --name={name} ] && printf "{queue}"'})
    main([*argv, "--status"])
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "3 runs: 0 done, 1 running, 1 queued, 0 failed, 1 pending"
    calls.write_text("")
    main(["data=shear_flow_tiny", "seed=0,1,2,3", "--slurm", "1x1"])
    fits, probes = calls.read_text().splitlines()
    assert "--array=1-2 " in fits
    (other,) = set(Path("runs/dev/logs").glob("array-*.txt")) - {file}
    assert re.findall(r"seed=\d", other.read_text()) == ["seed=2", "seed=3"]
    assert "--dependency=afterany:12,afterany:13,afterany:17,singleton" in shlex.split(probes)
    stand_ins({"squeue": "echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1"})
    with pytest.raises(UserError, match=r"^squeue: slurm_load_jobs error: Unable to contact slurm controller$"):
        main([*argv, "--slurm", "1x1"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--slurm"], "--slurm: expected one argument"),
        (["--slurm", "4"], "--slurm 4: expected NODESxDEVICES"),
        (["--slurm", "0x1"], "--slurm 0x1: expected NODESxDEVICES"),
        (["--print"], "--print: is for --slurm"),
        (["--", "--time=1"], "--: is for --slurm"),
        (["--statsu"], "--statsu: no such option"),
    ],
)
def test_mistakes_in_options_are_one_line(argv, said):
    with pytest.raises(UserError, match=said):
        main(["data=shear_flow_tiny", *argv])


def test_a_dry_run_tries_what_differs_by_more_than_its_seed_and_writes_nothing(datasets, tmp_path, capsys):
    argv = ["data=shear_flow_tiny", f"data.root={datasets}", f"runs={tmp_path / 'runs'}", "objective=random",
            "seed=0,1", "data.frames=8,4"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--dry-run", "--jobs", "2"])
    assert stop.value.code == 2
    *lines, last = capsys.readouterr().out.splitlines()
    bad, good = sorted(lines)
    assert re.match(r"ok +shear_flow_tiny-random-conv_tiny-seed0: .* s a step on the CPU, .* GiB$", good)
    assert re.match(r"failed +shear_flow_tiny-random-conv_tiny-seed0-frames=4: physrep: encoder: strides .* 16", bad)
    assert last == "2 runs that differ by more than their seed: 1 ok, 1 failed"
    main([*argv[:-1], "dry_run=true"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("1 ok, 0 failed")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--slurm", "--status"])
def test_a_dry_run_is_of_no_use_with_some_options(option):
    for dry in ("--dry-run", "dry_run=true"):
        with pytest.raises(UserError, match=f"^--dry-run: tries the runs here; leave out {option}$"):
            main(["data=shear_flow_tiny", dry, option, *["1x1"][: option == "--slurm"]])


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 1), (2, 2), (1, 4)])
def test_a_fit_of_another_shape_than_slurm_started_ends_before_it_waits(nodes, tasks, datasets, tmp_path, monkeypatch):
    shape = {"NNODES": nodes, "NTASKS": tasks, "NTASKS_PER_NODE": tasks // nodes, "JOB_NAME": "physrep"}
    place = {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 1}
    for name, value in (shape | place).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(UserError, match=rf"^trainer.devices: {tasks} processes were started \(nodes: {nodes}\)"):
        fit(["data=shear_flow_tiny", f"data.root={datasets}", f"runs={tmp_path / 'runs'}", "data.batch_size=4",
             "trainer.devices=2"])  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_the_commands_of_the_page_on_clusters_compose(tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", Path("docs/cluster.md").read_text(), re.S)
    words = [shlex.split(line) for block in blocks for line in block.splitlines()]
    verbs = {"physrep.fit": cli, "physrep.sweep": lambda argv: cells([*parse(argv)[1], f"runs={tmp_path}", "seed=0"])}
    assert len(words) > 5
    for first, *rest in words:
        if first == "sbatch":
            script = rest.index("scripts/slurm.sbatch")
            assert Path(rest[script]).exists()
            assert {word[:2] for word in rest[:script]} == {"--"}
            verbs["physrep.fit"](rest[script + 1 :])
        else:
            assert [first, rest[0]] == ["python", "-m"]
            verbs[rest[1]](rest[2:])


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(75, "RUNNING", True), (75, "COMPLETING", False), (2, "RUNNING", False), (0, "RUNNING", False)],
)
@pytest.mark.parametrize("element", [None, 3])
def test_the_batch_script_asks_to_be_run_again(code, state, requeued, element, tmp_path, monkeypatch, stand_ins):
    script = Path("scripts/slurm.sbatch").resolve()
    monkeypatch.chdir(tmp_path)
    calls = stand_ins({
        "srun": f"""printf '%s\\n' "${{@: -2}}" > args; echo "said by the fit"
                    [ {code} = 75 ] && kill -TERM $PPID  # what ends a run may come to the script, too
                    exit {code}""",
        "squeue": f"""[[ "$*" = *--jobs=$EXPECTED* ]] && echo {state}""",
        "scontrol": 'echo "$@" >> $CALLS',
    })  # fmt: skip
    monkeypatch.setenv("EXPECTED", "11_3" if element else "12")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    argv = ["data.name=a b", "objective.note=it's"]
    if element:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(element))
        Path("runs").write_text("".join(shlex.join([f"log {n}", f"seed={n}", *argv]) + "\n" for n in range(1, 5)))
        argv, log = ["runs"], Path("log 3")
    done = subprocess.run(["bash", str(script), *argv], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert (log.read_text() if element else done.stdout) == "said by the fit\n"
    assert Path("args").read_text() == "data.name=a b\nobjective.note=it's\n"
    assert calls.read_text() == (f"requeue {os.environ['EXPECTED']}\n" if requeued else "")


@pytest.mark.slow
def test_from_a_grid_to_rows(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sweep"])
    argv = ["data=shear_flow_tiny", f"data.root={datasets}", f"runs={tmp_path}", "objective=jepa,views", "probe=ridge",
            "data.batch_size=8", "trainer.max_steps=2", "controls=[statistics]"]  # fmt: skip
    main(argv)
    rows = read(tmp_path / "dev" / "results.jsonl")
    assert {row.objective for row in rows} == {"statistics", "jepa", "views"}
