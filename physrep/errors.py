"""What a user did wrong, said in one line."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence


class UserError(Exception):
    """A mistake of the user's: one line that names the file or key, what is wrong and how to mend it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean a or b?" for the nearest known names, else what there is to choose from."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there is {', '.join(names)}" if names else ""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command's `main` on the command line; a user's mistake ends in one line and exit code 2."""
    try:
        try:
            main(sys.argv[1:])
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where a closed pipe has an answer
    except BrokenPipeError:  # as in `... | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (UserError, OSError) as error:
        sys.exit(say(error) if leads() else 2)
    except KeyboardInterrupt:
        if leads():
            print("physrep: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def say(error: UserError | OSError) -> int:
    """Tell of a mistake in one line; return the exit code."""
    if isinstance(error, UserError):
        message = str(error).rpartition("UserError: ")[2]  # a loader's worker puts its traceback before it
    else:
        message = f"{error.filename}: " * (error.filename is not None) + (error.strerror or str(error))
    print("physrep: " + " ".join(message.split()), file=sys.stderr)
    return 2


def leads() -> bool:
    """Say whether this process is the one of its node to tell what all ranks run into before they know each other."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"
