"""Which trajectories start from the same state: what an honest split has to keep together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from physrep.data.well import WellSplit, opened
from physrep.progress import track


def starts(split: WellSplit, fields: Sequence[str] = ()) -> list[str]:
    """Return a digest of every trajectory's first frame, in the split's order: equal means the same initial condition.

    `fields` are those that tell the states apart, all that vary in time by default; a field that is flat in the first
    frame (a fluid at rest) says nothing and is left out.
    """
    out = [""] * split.trajectories
    for number in track(np.unique(split.places[:, 0]).tolist(), f"first frames of {split.folder.parent.parent.name}"):
        header = split.headers[number]
        chosen = [f for f in header.fields if f.time_varying and (not fields or f.name in fields)]
        with opened(header.path) as file:
            for trajectory in (split.places[:, 0] == number).nonzero()[0].tolist():
                row, digest = int(split.places[trajectory, 1]), hashlib.blake2b(digest_size=16)
                for f in chosen:
                    frame = np.asarray(file[f.path][(row, 0) if f.sample_varying else 0])
                    if np.ptp(frame) > 0:
                        digest.update(f.name.encode() + np.ascontiguousarray(frame).tobytes())
                out[trajectory] = digest.hexdigest()
    return out
