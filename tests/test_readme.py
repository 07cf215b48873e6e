"""Every command and every block of Python in README.md works."""

import re
import shlex
from pathlib import Path

import pytest

from physrep.config import compose, grid
from physrep.fit import main as fit

README = Path("README.md").read_text()
BLOCKS = dict.fromkeys(re.findall(r"```(\w+)\n(.*?)```", README, re.S))
COMMANDS = [line.split(" #")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
VERBS = {"fit": "config", "probe": "config", "sweep": "config"} | {
    verb: verb for verb in ("simulate", "report", "show", "verify", "download")
}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.M))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c])
def test_command(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert words[1] in targets()
    elif words[:2] == ["python", "-m"]:
        package, _, verb = words[2].partition(".")
        assert package == "physrep"
        options = [w for w in words[3:] if w.startswith("-")]
        assert set(options) <= {"--help", "--cfg", "--list", "--dry-run", "--status"}
        if "--list" not in options:
            for line in grid([w for w in words[3:] if not w.startswith("-")]):
                compose(line, VERBS[verb])
    else:
        assert words[0] in {"git", "cd", "tensorboard"}, f"{command}: nothing tests it"


def test_two_commands_do_everything():
    assert {"make demo", "make test"} <= set(COMMANDS)
    assert len(README.splitlines()) < 250


def test_python_blocks_run(datasets, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    fit(["data=shear_flow_tiny", f"data.root={datasets}", f"runs={runs}", "trainer.max_steps=2"])  # fmt: skip
    (run,) = (runs / "dev").iterdir()
    blocks = [text for kind, text in BLOCKS if kind == "python"]
    assert blocks
    for text in blocks:
        if "physrep.load" in text:
            exec(re.sub(r'physrep\.load\("[^"]*"\)', f"physrep.load({str(run)!r})", text), {})
        else:
            compile(text, "README.md", "exec")
