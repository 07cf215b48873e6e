"""Which trajectories start from the same state: what an honest split has to keep together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from physrep.data.well import Header, WellSplit, opened, version
from physrep.progress import track


def starts(split: WellSplit, fields: Sequence[str] = ()) -> list[str]:
    """Return a digest of every trajectory's first frame, in the split's order: equal means the same initial condition.

    `fields` are those that tell the states apart, by default all but those that all trajectories share; a field that is
    flat in the first frame (a fluid at rest) says nothing and is left out. Where all are, states are taken to differ.
    """
    found = {}
    for number in track(np.unique(split.places[:, 0]).tolist(), f"first frames of {split.folder.parent.parent.name}"):
        header = split.headers[number]
        found[number] = _of_file(header, tuple(fields), version(header.path))
    return [found[number][row] for number, row in split.places.tolist()]


@lru_cache(maxsize=10_000)  # probes of many runs read the same files
def _of_file(header: Header, fields: tuple[str, ...], version: tuple[str | int, ...]) -> list[str]:
    chosen = [f for f in header.fields if (f.time_varying or f.sample_varying) and (not fields or f.name in fields)]
    out = []
    with opened(header.path) as file:
        for row in range(header.trajectories):
            digest, flat = hashlib.blake2b(digest_size=16), True
            for f in chosen:
                frame = np.asarray(file[f.path][(row,) * f.sample_varying + (0,) * f.time_varying])
                if np.ptp(frame) > 0:
                    digest.update(f.name.encode() + np.ascontiguousarray(frame).tobytes())
                    flat = False
            if flat:
                digest.update(f"{header.path.absolute()} {row}".encode())
            out.append(digest.hexdigest())
    return out
