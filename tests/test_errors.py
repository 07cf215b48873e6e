"""What a command's end looks like: one line and an exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from physrep import errors
from physrep.errors import UserError

HOME = Path(errors.__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("seed: is no number"), "seed: is no number"),
        (UserError("Traceback\n  ...\nphysrep.errors.UserError: a.hdf5: truncated\n"), "a.hdf5: truncated"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("cannot open\nthe file"), "cannot open the file"),
    ],
)
def test_a_mistake_or_the_disk_ends_in_one_line_and_code_2(error, said, capsys):
    def main(_):
        raise error

    with pytest.raises(SystemExit) as caught:
        errors.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"physrep: {said}\n"


def test_an_error_of_the_programs_keeps_its_traceback():
    def main(_):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        errors.run(main)


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "print('y' * 99999, flush=True)"])
def test_a_closed_pipe_ends_quietly(end):
    code = f"from physrep import errors\ndef main(_):\n  input()\n  print('x')\n  {end}\nerrors.run(main)"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], cwd=HOME, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout and process.stderr and process.stdin
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(30) == 0 and process.stderr.read() == ""
    process.stderr.close()
