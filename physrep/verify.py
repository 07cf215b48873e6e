"""Check a dataset: does it hold what The Well's format and the data's own class say of it?

Prints one verdict a line (ok, note or FAIL) and exits with 1 where something fails. Every file is opened and, with
fraction=1, every byte read, once. fraction=0.05 reads that share of each file's trajectories whole, at least one; what
says whether trajectories or initial conditions occur twice is read of all.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from physrep import errors
from physrep.config import build, cli
from physrep.data import checks
from physrep.data.checks import FAIL, NOTE, OK, Finding, Moments, Series, Trajectory
from physrep.data.well import Array, Field, Header, opened, read_header
from physrep.errors import UserError, did_you_mean
from physrep.files import read_yaml
from physrep.progress import track

if TYPE_CHECKING:
    from physrep.data.module import WellDataModule

SLAB = 8 << 20  # bytes read at once; up to ten times as much is held
EXAMPLES, FILES = 5, 3  # of what a check finds with one verdict, and of the files it finds it in
FEW = 3  # files: with less none can be told to be the odd one
UNREADABLE = (UserError, OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)  # of a broken file
SOUND = {
    "structure": "groups, attributes, flags, shapes and types are what The Well's reader needs",
    "order": "names, fields, scalars, grids, frames and boundaries are the same in all files",
    "content": "no file's fields or components look exchanged beside the others'",
    "time": "finite, rising and uniform",
    "coordinates": "finite, rising and uniform",
    "values": "all are finite",
    "motion": "no frame is frozen or comes again, no trajectory is at rest",
    "names": "no file's name contradicts its parameters",
    "targets": "all are there and vary",
    "copies": "no trajectory occurs twice",
    "starts": "no two trajectories start from the same state",
    "parameters": "",
    "statistics": "stats.yaml is that of the training data",
    "channels": "none is flat or redundant",
}


class Report(NamedTuple):
    """All findings by check, how many files they are about, and a line on what was read."""

    found: dict[str, list[Finding]]
    files: int
    about: str


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.verify`."""
    cfg = cli(argv, base="verify", doc=__doc__)
    if not 0 < cfg.fraction <= 1:
        raise UserError(f"fraction={cfg.fraction:g}: must be above 0 and at most 1")
    report = verify(build(cfg.data), cfg.fraction)
    for text in lines(report):
        print(text)
    if any(f.verdict == FAIL for each in report.found.values() for f in each):
        raise SystemExit(1)


def verify(data: WellDataModule, fraction: float = 1.0) -> Report:
    """Run every check on a dataset's files; raises UserError where there is no such dataset."""
    from physrep.data.splits import SPLITS

    folder = data.folder / "data"
    if not folder.is_dir():
        hint = did_you_mean(data.name, sorted(p.parent.name for p in data.folder.parent.glob("*/data")))
        raise UserError(f"{data.folder}: no such dataset; set data.root, download or simulate it{hint}")
    found: dict[str, list[Finding]] = {check: [] for check in SOUND}
    if set("[]") & set(str(folder)):
        found["structure"].append(Finding(NOTE, f"brackets in {folder} keep The Well's reader from finding files"))
    paths = {s: sorted(p for p in (folder / s).glob("[!.]*") if p.suffix in {".hdf5", ".h5"}) for s in SPLITS}
    found["structure"] += [Finding(FAIL, f"{folder / s} holds no .hdf5 file") for s in SPLITS if not paths[s]]
    headers, axes = dict[str, Header](), dict[str, dict[str, Array]]()
    for where, path in {f"{split}/{path.name}": path for split in SPLITS for path in paths[split]}.items():
        told = list(describe(path))
        try:
            headers[where], axes[where] = read_header(path), read_axes(path)
        except UNREADABLE as error:
            if all(f.verdict != FAIL for f in told):
                told.append(Finding(FAIL, str(error).removeprefix(f"{path}: ")))
        found["structure"] += placed(where, told)
    files, trajectories = sum(map(len, paths.values())), list[Trajectory]()
    if headers:
        total = sum(h.trajectories for h in headers.values())
        work = chain.from_iterable(scan(where, h, data.start, fraction) for where, h in headers.items())
        trajectories += track(work, f"verifying {data.name}", total)
        judge(found, data, headers, axes, trajectories, fraction < 1)
    size, whole = sum(h.bytes for h in headers.values()) / 1e9, sum(bool(t.stir) for t in trajectories)
    about = f"{len(headers)} of {files} files read, {size:.3g} GB, {whole} of {len(trajectories)} trajectories whole"
    return Report(found if headers else {"structure": found["structure"]}, files, f"{data.folder}: {about}")


def judge(
    found: dict[str, list[Finding]],
    data: WellDataModule,
    headers: Mapping[str, Header],
    axes: Mapping[str, Mapping[str, Array]],
    trajectories: Sequence[Trajectory],
    sampled: bool,
) -> None:
    """Add to `found` what the checks say of all that was read."""
    for where, header in headers.items():
        for name, values in axes[where].items():
            found["time" if name == "time" else "coordinates"] += placed(where, checks.rising(name, values))
        found["names"] += placed(where, checks.spelt(header.path.stem, header.scalars))
    for t in trajectories:
        for check, fault in t.faults:
            found[check] += placed(t.where, [fault])
    found["order"] += checks.alike(headers, axes)
    found["content"] += content(headers, trajectories)
    found["motion"] += checks.rest(trajectories)
    found["targets"] += checks.targets(headers, data.scales)
    found["copies"] += checks.copies(trajectories)
    found["starts"] += checks.leaks(trajectories, data.shared_starts and not (data.folder / "simulation.yaml").exists())
    found["parameters"] += checks.combinations(headers)
    found["statistics"] += statistics(data.folder / "stats.yaml", headers, trajectories, sampled)
    header, fields = next(iter(headers.values())), dict[str, tuple[Sequence[str], Sequence[Moments]]]()
    for field in header.fields:
        names = field.channels(header.dims)
        if moments := read_of(field, trajectories, len(names)):
            fields[field.name] = names, [m for _, m in moments]
    found["channels"] += checks.channels(fields)


def describe(path: Path) -> Iterator[Finding]:
    """Check one file's structure, as far as it can be opened."""
    try:
        with opened(path) as file:
            yield from checks.structure(file)
    except UNREADABLE as error:
        yield Finding(FAIL, str(error).removeprefix(f"{path}: "))


def read_axes(path: Path) -> dict[str, Array]:
    """Return a file's times and coordinates by name, float64."""
    with opened(path) as file:
        names = ["time", *map(str, file["dimensions"].attrs["spatial_dims"])]
        return {name: np.asarray(file[f"dimensions/{name}"], np.float64) for name in names}


def placed(where: str, findings: Iterable[Finding]) -> list[Finding]:
    """Say of findings which file they are about."""
    return [f._replace(where=where) for f in findings]


# --- One pass over the data


def scan(where: str, header: Header, start: Sequence[str], fraction: float) -> Iterator[Trajectory]:
    """Go once over a file and yield what is kept of its trajectories; a fraction of them is read whole.

    `start` names the fields whose first frames tell initial conditions apart, as physrep.data.starts has them.
    """
    rng = np.random.default_rng(zlib.crc32(where.encode()))
    chosen = rng.permutation(header.trajectories)[: max(1, round(fraction * header.trajectories))]
    common: dict[str, bytes] = {}  # digests of what is the same for all trajectories
    with opened(header.path) as file:
        for row in range(header.trajectories):
            edges, begin = dict(common), dict[str, bytes]()
            moments, moves = dict[str, Moments](), dict[str, tuple[Series, Array]]()
            faults = list[tuple[str, Finding]]()
            for field in header.fields:
                if field.name in common:
                    continue
                data, frames = file[field.path], range(header.frames if field.time_varying else 1)
                three, whole = (0, len(frames) // 2, len(frames) - 1), row in chosen or not field.sample_varying
                pieces = [frames] if whole else [frames[t : t + 1] for t in three]
                try:
                    parts = [read(data, field, row, each) for each in pieces]
                except (OSError, TypeError, ValueError) as error:
                    said = f"/{field.path}, trajectory {row}: cannot be read ({error})"
                    faults.append(("values", Finding(FAIL, said)))
                    edges[field.name] = f"{where} {row}".encode()
                    continue
                digests = [parts[0].digests[t] for t in three] if whole else [part.digests[0] for part in parts]
                edges[field.name] = b"".join(digests)
                if not field.sample_varying:
                    common[field.name] = edges[field.name]
                if field.time_varying and (not start or field.name in start) and not parts[0].uniform:
                    begin[field.name] = digests[0]
                for first, series in zip([0] if whole else three, parts, strict=True):
                    faults += [("values", f) for f in checks.finite(field.path, row, series, first)]
                if whole and not parts[0].bad.any():
                    moments[field.name] = summed(parts[0])
                    if len(frames) > 1:
                        moves[field.name] = parts[0], checks.moving(parts[0], data.dtype)
            faults += [("motion", f) for f in checks.motion(row, moves)]
            stir = checks.stir([each for _, each in moves.values()]) if row in chosen else ""
            yield Trajectory(where, row, joined(edges), joined(begin), moments, stir, tuple(faults))


def joined(digests: Mapping[str, bytes]) -> bytes:
    """Return one digest of several fields', empty for none."""
    text = b"".join(name.encode() + digests[name] for name in sorted(digests))
    return hashlib.sha256(text).digest()[:16] if digests else b""


def read(data: Any, field: Field, row: int, frames: range) -> Series:
    """Go once over frames of one trajectory of a field and keep sums and digests of each."""
    count, width = len(frames), prod(data.shape[data.ndim - field.rank :])
    sums, grams = np.zeros((count, width)), np.zeros((count, width, width))
    changes, bad = np.zeros((count - 1, width)), np.zeros(count, np.int64)
    digests, cells = [hashlib.sha256() for _ in frames], 0
    low, high, last = np.inf, -np.inf, np.empty(0)
    for at, slab in slabs(data, field, row, frames):
        for digest, frame in zip(digests[at:], slab, strict=False):
            digest.update(frame)
        if not at:
            low, high, cells = min(low, slab[0].min()), max(high, slab[0].max()), cells + slab[0].size // width
        x = np.moveaxis(slab.reshape(len(slab), -1, width), 2, 1).astype(np.float64, order="C")  # [t, K, cells]
        here = slice(at, at + len(x))
        with np.errstate(invalid="ignore", over="ignore"):
            total = x.sum(2)
            sums[here] += total
            grams[here] += x @ x.swapaxes(1, 2)
            if at:
                changes[at - 1] += ((x[0] - last) ** 2).sum(1)
            steps = np.diff(x, axis=0)
            changes[at : at + len(steps)] += np.einsum("tkp,tkp->tk", steps, steps)
        if not np.isfinite(total).all():
            bad[here] += np.count_nonzero(~np.isfinite(x), axis=(1, 2))
        last = x[-1]
    return Series(cells, sums, grams, changes, [d.digest()[:16] for d in digests], not low < high, bad)


def slabs(data: Any, field: Field, row: int, frames: range) -> Iterator[tuple[int, Array]]:
    """Yield (number of its first frame, frames) of one trajectory in pieces of at most SLAB bytes, each byte once.

    Where a frame is more than that, all frames of a part of the grid come before those of the next part.
    """
    head = (row,) * field.sample_varying
    grid = data.shape[len(head) + field.time_varying :]
    line = data.dtype.itemsize * prod(grid[1:])
    depth = min(grid[0], max(1, SLAB // line))
    many = max(1, SLAB // (depth * line))
    for first in range(0, grid[0], depth):
        for at in range(0, len(frames), many):
            some = frames[at : at + many]
            index = (*head, *(slice(some.start, some.stop),) * field.time_varying, slice(first, first + depth))
            piece = data[index]
            yield at, piece if field.time_varying else piece[None]


def summed(series: Series) -> Moments:
    """Add up the frames of a series."""
    frames, pairs = len(series.sums) * series.cells, len(series.changes) * series.cells
    return Moments(frames, series.sums.sum(0), series.grams.sum(0), pairs, series.changes.sum(0))


# --- Checks on what was read


def read_of(field: Field, trajectories: Iterable[Trajectory], width: int) -> list[tuple[Trajectory, Moments]]:
    """Return the trajectories of which a field was read, where it has so many components, and what was."""
    every = [(t, t.moments[field.name]) for t in trajectories if field.name in t.moments]
    return [(t, m) for t, m in every if len(m.total) == width]


def content(headers: Mapping[str, Header], trajectories: Sequence[Trajectory]) -> Iterator[Finding]:
    """Look for files whose fields, or components of fields, are exchanged; only files of the usual fields are told."""
    kept: dict[str, dict[str, list[Moments]]] = {where: {} for where in headers}
    for t in trajectories:
        for name, moments in t.moments.items():
            kept[t.where].setdefault(name, []).append(moments)
    kinds = {w: (h.dims, tuple(sorted((f.path, f.time_varying) for f in h.fields))) for w, h in headers.items()}
    usual = Counter(kinds.values()).most_common(1)[0][0]
    same = [w for w, h in headers.items() if kinds[w] == usual and len(kept[w]) == len(h.fields)]
    if len(same) < FEW:
        yield Finding(NOTE, f"{len(same)} files of one kind are too few to tell whether fields are exchanged in one")
        return
    looks = {w: {name: checks.look(moments) for name, moments in kept[w].items()} for w in same}
    header = headers[same[0]]
    for kind in {(f.rank, f.time_varying) for f in header.fields}:
        names = [f.name for f in header.fields if (f.rank, f.time_varying) == kind]
        yield from checks.exchanged({w: {name: looks[w][name] for name in names} for w in same}, "fields")
    for f in header.fields:
        parts = f.channels(header.dims)
        split = {w: {part: looks[w][f.name][i : i + 1] for i, part in enumerate(parts)} for w in same}
        yield from checks.exchanged(split, "components")


def statistics(
    path: Path, headers: Mapping[str, Header], trajectories: Sequence[Trajectory], sampled: bool
) -> Iterator[Finding]:
    """Hold stats.yaml against the training data."""
    if not path.exists():
        yield Finding(NOTE, "stats.yaml is not there: training makes it, The Well's reader needs it to normalise")
        return
    try:
        known = read_yaml(path, "delete it and it is made anew")
    except UserError as error:
        yield Finding(FAIL, str(error).removeprefix(f"{path.parent}/"))
        return
    if not all(isinstance(known.get(key), dict) for key in ("mean", "std")):
        yield Finding(FAIL, "stats.yaml has no mean and std; delete it and it is made anew")
        return
    if absent := [key for key in ("rms", "mean_delta", "std_delta", "rms_delta") if key not in known]:
        yield Finding(NOTE, f"stats.yaml has no {', '.join(absent)}, for which The Well's reader may ask")
    train = {where: h for where, h in headers.items() if where.startswith("train/")}
    header = next(iter(train.values()), None)
    for field in header.fields if header else ():
        names = field.channels(header.dims) if header else []
        here = read_of(field, (t for t in trajectories if t.where in train), len(names))
        files = Counter(t.where for t, _ in here)
        weights = np.array([train[t.where].trajectories / files[t.where] for t, _ in here])
        if here:
            yield from checks.statistics(known, field, names, [m for _, m in here], weights, sampled)


# --- The report


def lines(report: Report) -> Iterator[str]:
    """Write the findings, one verdict a line: what is said of several files together, and a few of each check."""
    count = Counter[str]()
    for check, findings in report.found.items():
        for verdict in (FAIL, NOTE):
            said: dict[str, list[str]] = {}
            for f in findings:
                if f.verdict == verdict:
                    said.setdefault(f.what, []).append(f.where)
            count[verdict] += len(said)
            for what, where in list(said.items())[:EXAMPLES]:
                yield line(verdict, check, places(where, report.files) + what)
            if rest := list(said.values())[EXAMPLES:]:
                files = len({where for each in rest for where in each if where})
                yield line(verdict, check, f"and {len(rest)} more" + (f", in {files} files" if files > 1 else ""))
        if all(f.verdict == OK for f in findings):
            yield line(OK, check, "; ".join(f.what for f in findings) or SOUND[check])
    yield line(FAIL if count[FAIL] else OK, "all", f"{report.about}: FAIL {count[FAIL]}, note {count[NOTE]}")


def line(verdict: str, check: str, what: str) -> str:
    """Write one verdict."""
    return f"{verdict:<5} {check:<12} {what}"


def places(where: Iterable[str], files: int) -> str:
    """Name the files of a finding, a few and how many more."""
    named = [each for each in dict.fromkeys(where) if each]
    if len(named) == files > 1:
        return "all files: "
    more = f" and {len(named) - FILES} more" if len(named) > FILES else ""
    return f"{', '.join(named[:FILES])}{more}: " if named else ""


if __name__ == "__main__":
    errors.run(main)
