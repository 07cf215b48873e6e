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
    except UserError as error:
        sys.exit(_say(str(error).rpartition("UserError: ")[2]))  # a loader's worker puts its traceback before it
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.exit(_say(f"{where}{error.strerror or error}"))
    except KeyboardInterrupt:
        print("physrep: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _say(message: str) -> int:
    print("physrep: " + " ".join(message.split()), file=sys.stderr)
    return 2
