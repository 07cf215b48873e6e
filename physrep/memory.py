"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep() -> None:
    """Have glibc keep what is freed, so that the next step's large tensors need no fresh pages, cleared one by one.

    By default it maps every block above 32 MB anew, which takes a third of a large training step on a CPU. Elsewhere,
    and where another allocator is loaded, nothing changes.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
