"""What a loader's workers do with signals that are meant for the main process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any


def shield(worker: int) -> None:
    """Leave signals to the main process, which needs its workers to finish a step: a terminal's Ctrl-C goes to all
    processes, and so do SLURM's SIGTERM and SIGUSR1. Only the main process's own SIGTERM ends a worker, and its death.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    if sys.platform == "linux" and main:  # elsewhere nobody can say who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of the threads to come, too
        threading.Thread(target=_obey, args=(main.pid,), daemon=True).start()
    if main:
        threading.Thread(target=_outlive, args=(main,), daemon=True).start()


def _outlive(main: Any) -> None:
    main.join()  # also where a fork server is the parent
    os._exit(1)


def _obey(main: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
