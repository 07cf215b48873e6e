"""Commands in forked processes: as `python -m` runs them, with their output, exit codes, threads and locks."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from physrep import warm
from physrep.files import lock

SCRIPT = """
import os, signal, sys, time, torch
from multiprocessing import Process

def say():
    print("a child", flush=True)

if __name__ == "__main__":
    print(sys.argv, __spec__.name, torch.get_num_threads(), "lightning.pytorch" in sys.modules)
    print("an error", file=sys.stderr)
    child = Process(target=say)
    child.start()
    child.join()
    if "kill" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    while "wait" in sys.argv and not os.path.exists("stop"):
        time.sleep(0.05)
    sys.exit(3 * ("fail" in sys.argv))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "spoken.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return "spoken"


def test_runs_as_python_m_does_and_returns_the_exit_code(module, tmp_path):
    for argv, code in (["a=b c"], 0), (["fail"], 3), (["kill"], -signal.SIGKILL):
        with (tmp_path / "log").open("w") as log:
            assert warm.call([module, *argv], log, threads=1) == code
        if code != -signal.SIGKILL:
            lines = set((tmp_path / "log").read_text().splitlines())
            assert lines == {f"{[str(tmp_path / 'spoken.py'), *argv]} spoken 1 True", "an error", "a child"}


def test_a_lock_is_held_until_both_have_closed_the_file(module, tmp_path):
    with (tmp_path / "log").open("a") as log:
        assert lock(log)
        thread = threading.Thread(target=warm.call, args=([module, "wait"], log))
        thread.start()
        while "a child" not in (tmp_path / "log").read_text():
            time.sleep(0.05)
    with (tmp_path / "log").open("a") as other:
        assert not lock(other)
        (tmp_path / "stop").touch()
        thread.join()
        assert lock(other)


def test_a_command_line_interrupted_in_its_terminal_interrupts_what_it_called(module, tmp_path):
    code = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background commands ignore
from physrep import warm
sys.exit(warm.call(['spoken', 'wait'], open('log', 'w')))"""
    caller = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL,
                              env=os.environ | {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"})  # fmt: skip
    while not (tmp_path / "log").exists() or "a child" not in (tmp_path / "log").read_text():
        time.sleep(0.05)
    os.killpg(caller.pid, signal.SIGINT)
    caller.wait(30)
    end = time.monotonic() + 30
    while "KeyboardInterrupt" not in (tmp_path / "log").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
