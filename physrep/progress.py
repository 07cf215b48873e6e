"""A progress bar where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY = 10.0


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many are done: a bar on a terminal, else a line every ten seconds."""
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
            of = f" of {total}" if total else ""
            print(f"{label}: {done}{of}, {now - start:.0f} s", file=sys.stderr, flush=True)
