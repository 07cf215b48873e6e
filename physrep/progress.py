"""A progress bar where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY = 10.0


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many are done and how long is left: a bar, off a terminal a line in ten seconds."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, leave=False)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= LINE_EVERY:
            said = now
            took = now - start
            of, left = (f" of {total}", f", about {spell(took / done * (total - done))} left") if total else ("", "")
            print(f"{label}: {done}{of}, {took:.0f} s{left}", file=sys.stderr, flush=True)


def spell(seconds: float) -> str:
    """Write a duration as its size asks for: 40 s, 12 min, 1.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
