"""Statistics of the training split, kept in The Well's own stats.yaml beside the data."""

from __future__ import annotations

import errno
import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from physrep.data.well import Array, Field, Header, WellSplit, opened
from physrep.errors import UserError
from physrep.files import read_yaml, write_text
from physrep.progress import track

CHUNK = 8  # trajectories read at once


def fingerprint(splits: Iterable[WellSplit]) -> str:
    """Return a digest of the files' names, sizes, parameters and first and last frames: the same on every machine."""
    digest = hashlib.sha256()
    for split in splits:
        for h in split.headers:
            digest.update(f"{split.folder.name}/{h.path.name} {h.bytes} {h.shape} {h.frames}".encode())
            for name, values in h.scalars.items():
                digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
            with opened(h.path) as file:
                for f in h.fields:
                    data = file[f.path]
                    digest.update(data[(0,) * (data.ndim - len(h.dims) - f.rank)].tobytes())
                    digest.update(data[(-1,) * (data.ndim - len(h.dims) - f.rank)].tobytes())
    return digest.hexdigest()[:16]


def channel_statistics(split: WellSplit, name: str, path: Path, mark: str) -> tuple[Array, Array]:
    """Return mean and standard deviation of every channel, [C] each, from `path` or else computed and written there.

    A stats.yaml without our mark is The Well's own and taken as it is; one with another mark is out of date and made
    anew. Raises UserError for a field that is not finite.
    """
    header, known = split.header, dict[str, Any]()
    if path.exists():
        known = read_yaml(path, "delete it and it is made anew")
        if "mean" not in known or "std" not in known:
            raise UserError(f"{path}: not a statistics file (no mean, std); delete it and it is made anew")
    if not known or known.get("fingerprint", mark) != mark:
        known = _compute(split, name) | {"fingerprint": mark}
        _save(path, OmegaConf.to_yaml(known))
    try:
        mean, std = (np.concatenate([np.ravel(known[k][f.name]) for f in header.fields]) for k in ("mean", "std"))
    except KeyError as error:
        raise UserError(f"{path}: has no statistics of field {error}; delete it and they are made anew") from error
    return mean, std


def _save(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        print(f"{path}: the folder is read-only, so these statistics are not kept", file=sys.stderr)


def _compute(split: WellSplit, name: str) -> dict[str, dict[str, Any]]:
    """Mean, std and rms of every component and of its frame-to-frame difference, in float64 over the whole split."""
    header = split.header
    sums = {f.name: np.zeros((6, len(header.dims) ** f.rank)) for f in header.fields}
    rows = {i: split.places[split.places[:, 0] == i, 1] for i in np.unique(split.places[:, 0])}
    pieces = [(split.headers[i], f, some[n : n + CHUNK]) for i, some in rows.items() for f in header.fields
              for n in range(0, len(some), CHUNK)]  # fmt: skip
    for h, f, some in track(pieces, f"statistics of {name}"):
        sums[f.name] += _moments(h, f, np.sort(some))
    out: dict[str, dict[str, Any]] = {k: {} for k in ("mean", "std", "rms", "mean_delta", "std_delta", "rms_delta")}
    for f in header.fields:
        count, total, square, d_count, d_total, d_square = sums[f.name]
        for suffix, (n, s, q) in {"": (count, total, square), "_delta": (d_count, d_total, d_square)}.items():
            if not n.any():
                continue
            mean = s / n
            values = {"mean": mean, "std": np.sqrt(np.maximum(q / n - mean**2, 0)), "rms": np.sqrt(q / n)}
            for key, value in values.items():
                out[key + suffix][f.name] = value.reshape((len(header.dims),) * f.rank).tolist()
    return out


def _moments(header: Header, f: Field, rows: Array) -> Array:
    with opened(header.path) as file:
        x = np.asarray(file[f.path][rows if f.sample_varying else slice(None)], np.float64)
    if not np.isfinite(x).all():
        raise UserError(f"{header.path}: /{f.path} holds NaN or infinity in trajectories {rows[0]}-{rows[-1]}; "
                        "remove the file or write it again")  # fmt: skip
    axis = int(f.sample_varying)
    d = np.diff(x, axis=axis) if f.time_varying else np.empty((0, *x.shape[1:]))

    def flat(a: Array) -> Array:
        return a.reshape(-1, len(header.dims) ** f.rank)

    return np.stack([m for a in map(flat, (x, d)) for m in (np.full(a.shape[1], len(a)), a.sum(0), (a**2).sum(0))])


def theta_statistics(theta: Array) -> tuple[Array, Array]:
    """Return mean and population standard deviation of the (scaled) parameters over training trajectories, [P] each."""
    spread = theta.std(0)
    return theta.mean(0), np.where(spread > 0, spread, 1.0)


def scaled(theta: Array, scales: Sequence[str]) -> Array:
    """Take the parameters whose declared scale is log10 to it, [.., P]."""
    if not len(scales):
        return theta
    return np.stack([np.log10(v) if s == "log10" else v for v, s in zip(theta.T, scales, strict=True)], -1)
