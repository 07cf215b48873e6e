"""The shipped batch script and `sweep --slurm` on a real SLURM of two nodes, started here in a folder of its own.

`make test-slurm` runs them; they need munged, slurmctld, slurmd and SLURM's commands.
"""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from physrep.results import read

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
missing = [tool for tool in TOOLS if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"no SLURM here: {', '.join(missing)} not found"),
]

SCRIPT = Path("scripts/slurm.sbatch").resolve()
SLOW = '''
import time
from pathlib import Path

from physrep.objectives.jepa import Jepa


class Slow(Jepa):
    """JEPA that takes its time over a step while the file slow-SEED exists; its weights are not concerned."""

    def losses(self, batch):
        if Path(f"slow-{self.seed}").exists():
            time.sleep(0.5)
        return super().losses(batch)
'''
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-2] PriorityTier=2
"""


class Cluster:
    """Commands in a working folder of its own, with data, an objective that can be slowed down, and SLURM."""

    def __init__(self, place: Path, env: dict[str, str]) -> None:
        self.place, self.env = place, env

    def call(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.place, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *options: str) -> str:
        return self.call("sbatch", "--parsable", *options)

    def ended(self, job: str) -> str:
        """Return a job's exit code and signal once it has ended."""
        self.until(f"the end of job {job}", lambda: not self.call("squeue", "--noheader", f"--jobs={job}"))
        return re.search(r"ExitCode=(\S+)", self.call("scontrol", "show", "job", job))[1]

    def physrep(self, verb: str, *argv: str) -> str:
        return self.call(sys.executable, "-m", f"physrep.{verb}", *argv)

    def jobs(self) -> list[str]:
        return self.call("squeue", "--noheader", "--array", "--format=%j").split()

    def until(self, what: str, true, seconds: float = 90.0):
        """Wait for what comes true and return it; else say what the logs say."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := true():
                return found
            time.sleep(0.3)
        logs = [p for p in [*self.place.glob("**/*.out"), *self.place.glob("**/logs/*.log")] if "tb" not in p.parts]
        told = "".join(f"\n--- {p}\n{p.read_text()[-3000:]}" for p in logs)
        raise AssertionError(f"{what}: not within {seconds:.0f} s\n{self.call('squeue')}{told}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    place = tmp_path_factory.mktemp("slurm")
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    (place / "slurm.conf").write_text(CONF.format(host=host, ports=ports, user=user, place=place))
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o600)
    (place / "state").mkdir()
    work = place / "work"
    (work / "conf" / "objective").mkdir(parents=True)
    (work / "slow.py").write_text(SLOW)
    (work / "conf" / "objective" / "slow.yaml").write_text("_target_: slow.Slow\n")
    env = os.environ | {
        "SLURM_CONF": str(place / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        "PYTHONPATH": str(work),
        "MASTER_ADDR": "127.0.0.1",  # the nodes' names are known to SLURM alone
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    made = Cluster(work, env)
    munge = [f"--{kind}-file={place}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={place}/munge.socket", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    daemons = []
    try:
        for command in commands:
            mortal = ["setpriv", "--pdeathsig", "TERM", *command]
            with (place / "daemons.log").open("a") as log:
                daemons.append(subprocess.Popen(mortal, env=env, stdout=log, stderr=log))
            if command[0] == "munged":
                made.until("munge", (place / "munge.socket").exists, 20)
        made.until("two idle nodes", lambda: "2 idle" in made.call("sinfo", "-h", "-p", "main", "-o", "%D %t"), 30)
        yield made
        made.call("scancel", "--full", f"--user={user}")
        made.until("an empty queue", lambda: not made.jobs(), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def arguments(datasets: Path, *more: str) -> list[str]:
    return [
        "data=shear_flow_tiny", f"data.root={datasets}", "data.batch_size=4", "data.frames=8", "data.noise=0.1",
        "objective=slow", "allow=[slow.]", "objective.warmup=3", "encoder.widths=[4,8]", "encoder.depths=[1,1]",
        "encoder.strides=[[4,4,4],[2,2,2]]", "encoder.kernels=[[3,3],[3,3]]", "trainer.val_check_interval=31",
        "trainer.log_every_n_steps=1", "checkpoint_every=2", *more,
    ]  # fmt: skip


def step(run: Path) -> int:
    """The optimiser step of a run's last checkpoint; 0 while there is none."""
    with suppress(FileNotFoundError):
        return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    return 0


def only_run(runs: Path) -> Path:
    (folder,) = (config.parent for config in runs.glob("*/*/config.yaml"))
    return folder


def test_two_ranks_preempted_requeued_and_out_of_time_end_bitwise_the_same(cluster, datasets):
    """Preempted by a job of another partition, requeued by hand, told by SLURM that the time limit is near."""
    argv = arguments(datasets, "trainer.max_steps=150", "trainer.num_nodes=2")
    two = ["--nodes=2", "--ntasks-per-node=1"]
    assert cluster.ended(cluster.sbatch("--output=whole.out", *two, str(SCRIPT), *argv, "runs=whole")) == "0:0"
    (cluster.place / "slow-0").touch()
    job = cluster.sbatch("--output=cut.out", "--signal=USR1@1", *two, str(SCRIPT), *argv, "runs=cut")
    runs, out = cluster.place / "cut", cluster.place / "cut.out"
    cluster.until("a first start", lambda: list(runs.glob("*/*/config.yaml")))
    run = only_run(runs)
    cluster.until("three steps", lambda: step(run) >= 3)
    cluster.sbatch("--partition=urgent", "--output=urgent.out", *two, "--wrap=sleep 1")
    cluster.until("a second start", lambda: out.read_text().count("resumes at step") == 1)
    reached = step(run)
    cluster.until("more steps", lambda: step(run) >= reached + 3)
    cluster.call("scontrol", "requeue", job)
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    cluster.until("a third start", lambda: out.read_text().count("resumes at step") == 2)
    assert out.read_text().count("physrep: SIGTERM: stopped at step") == 2
    cluster.until("the signal before the time limit", lambda: "SIGUSR1: stopped at step" in out.read_text())
    (cluster.place / "slow-0").unlink()
    assert cluster.ended(job) == "0:0"
    assert (run / "summary.json").exists()
    assert "Restarts=3" in cluster.call("scontrol", "show", "job", job)
    starts = json.loads((run / "provenance.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [2] * 4
    whole = only_run(cluster.place / "whole")
    one, other = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, run))
    assert one["global_step"] == other["global_step"] == 150
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name]), name
    assert (whole / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


def test_another_number_of_tasks_than_devices_ends_at_once(cluster, datasets):
    one = ["--output=tasks.out", "--nodes=1", "--ntasks-per-node=1", str(SCRIPT)]
    assert cluster.ended(cluster.sbatch(*one, *arguments(datasets, "trainer.devices=2", "runs=tasks"))) == "2:0"
    (said,) = [line for line in (cluster.place / "tasks.out").read_text().splitlines() if line.startswith("physrep: ")]
    assert "1 processes were started" in said
    assert not (cluster.place / "tasks").exists()


def test_an_array_leaves_what_is_done_and_goes_on_past_what_fails(cluster, datasets):
    """Seed 0 is done already, 1 has a file where its folder should be, 3 is slow: signalled, then cancelled."""
    argv = arguments(datasets, "trainer.max_steps=60", "probe=ridge", "runs=array")
    cluster.physrep("fit", *argv)
    sweep = [*argv, "seed=0,1,2,3", "--slurm", "1x1"]
    shown = cluster.physrep("sweep", *sweep, "--print")
    logs = [cluster.place / line.split()[0] for line in shown.splitlines() if line.startswith("array/dev/logs/")]
    assert [f"seed{n}" in log.name for n, log in zip((1, 2, 3), logs, strict=True)] == [True] * 3
    assert not (cluster.place / "array" / "dev" / "logs").exists(), "--print writes nothing"
    runs = [log.parent.parent / log.stem for log in logs]
    runs[0].write_text("a file where the run should lie")
    (cluster.place / "slow-3").touch()

    said = cluster.physrep("sweep", *sweep, "--", "--hold")
    array, probes = re.search(r"3 runs submitted as job (\d+),.*probes submitted as job (\d+)", said, re.S).groups()
    said = cluster.physrep("sweep", *sweep)
    assert "4 runs: 1 done, 0 running, 3 queued, 0 failed, 0 pending" in said
    assert "runs submitted" not in said
    assert sum("probe" not in job for job in cluster.jobs()) == 3
    cluster.call("scontrol", "release", array, probes)

    def status(counts: str) -> str:
        said = cluster.physrep("sweep", *sweep, "--status")
        return said if said.endswith(f"4 runs: {counts}") else ""

    told = cluster.until("one more done", lambda: status("2 done, 1 running, 0 queued, 1 failed, 0 pending"))
    assert f"failed   {runs[0].relative_to(cluster.place)}: physrep: " in told
    cluster.until("a few steps", lambda: step(runs[2]) >= 3)
    cluster.call("scancel", "--signal=USR1", f"{array}_3")
    cluster.until("a second start of the third", lambda: logs[2].read_text().count("resumes at step") == 1)
    assert "Restarts=0" in cluster.call("scontrol", "show", "job", f"{array}_1"), "an element requeues itself alone"
    cluster.call("scancel", f"{array}_3")
    cluster.until("the cancelled one stays away", lambda: status("2 done, 0 running, 0 queued, 2 failed, 0 pending"))
    cluster.until("the probes", lambda: not cluster.jobs())
    results = cluster.place / "array" / "dev" / "results.jsonl"
    assert {row.seed for row in read(results)} == {0, 2}

    runs[0].unlink()
    (cluster.place / "slow-3").unlink()
    assert "2 runs submitted" in cluster.physrep("sweep", *sweep)
    cluster.until("the rest", lambda: not cluster.jobs())
    assert status("4 done, 0 running, 0 queued, 0 failed, 0 pending")
    assert logs[2].read_text().count("resumes at step") == 2
    assert {row.seed for row in read(results)} == {0, 1, 2, 3}
    assert len(read(results)) == len({row.key for row in read(results)}) == 8
