"""Commands in processes that have PyTorch and Lightning loaded: a fork takes no time, the import takes seconds."""

from __future__ import annotations

import atexit
import operator
import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing import get_context, get_start_method, reduction, set_start_method
from typing import Any, TextIO

LOADED = ["lightning.pytorch", "timm.layers", "torch.utils.tensorboard"]  # our own code is read anew for every call


class Output:
    """An open file as another process gets it: with its lock, which holds until both have closed it."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.methodcaller("detach"), (reduction.DupFd(self.file.fileno()),)


def call(command: Sequence[str], output: TextIO, threads: int | None = None) -> int:
    """Run what stands after `python -m`, module and arguments, and return its exit code, below zero for a signal.

    What it prints goes to `output`; it computes with so many `threads`, if that is given.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    process = context.Process(target=_run, args=(command, Output(output), threads, get_start_method()))
    process.start()
    process.join()
    return process.exitcode or 0


def _run(command: Sequence[str], output: int, threads: int | None, method: str) -> None:
    import torch

    set_start_method(method, force=True)  # of a loader's workers
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    sys.argv = [*command]
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # as processes of multiprocessing do from Python 3.13 on
