"""Signals that ask a run to stop: noted when they come, obeyed between optimiser steps, or at once before the first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN = 75  # exit code after SIGTERM or SIGUSR1: saved, start me again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # of one that a person stopped with Ctrl-C: saved, too


class Signals:
    """Within its block, notes the first SIGINT, SIGTERM or SIGUSR1 in `received`; a second SIGINT acts at once.

    While `at_once` is true, there is nothing to save and no rank that waits for this one: each ends the process.
    """

    def __init__(self) -> None:
        self.received = 0
        self.at_once = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")) == "1"

    def __enter__(self) -> Signals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self.at_once:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            name = signal.Signals(number).name
            os.write(2, f"physrep: {name}: stopped before the first step; the same command continues\n".encode())
            raise SystemExit(AGAIN)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            os.write(2, b"\nphysrep: stops after this step; Ctrl-C again stops at once\n")
