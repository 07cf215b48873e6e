"""Freed memory stays with the process: a large tensor's pages are not asked for again."""

import ctypes
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from physrep import memory
if sys.argv[1] == "keep":
    memory.keep()
torch.ones(20_000_000).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(19_000_000).sum()  # glibc before 2.38 gives an aligned block more than it asks for, so not all of its own
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_large_tensors_are_given_pages_once():
    faults = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["leave"] > 5_000, "76 MB are 18,500 pages"
    assert faults["keep"] < faults["leave"] / 10
