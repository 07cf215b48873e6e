"""What must hold in a dataset of The Well's format: small checks, each a generator of findings.

`where` is a file by its split and name ("train/a.hdf5"); T frames, K components of a field, F files.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np

from physrep.data.well import Array, Field, Header
from physrep.errors import did_you_mean

OK, NOTE, FAIL = "ok", "note", "FAIL"
ROOT = ("dataset_name", "grid_type", "n_spatial_dims", "n_trajectories")
GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields", "t2_fields")
KINDS = ("PERIODIC", "WALL", "OPEN")
FLAGS = ("sample_varying", "time_varying")
ROUNDING = 4  # units in the last place: a change that is less, in the root mean square, is no motion
TOLERANCE = 0.01  # of a channel's standard deviation: by how much stats.yaml may be off
CLIP = 1e-4  # The Well's own normalisation divides by no less
FAR, NEAR = 8.0, 6.0  # robust sigmas from the median file: above is alien, below at home
SPREAD = 0.1  # least such sigma, in standard deviations (of a mean) or of a logarithm


class Finding(NamedTuple):
    """What a check has to say of a file, or of all of them where `where` is empty."""

    verdict: str
    what: str
    where: str = ""


class Series(NamedTuple):
    """What one pass over a trajectory of a field keeps of every frame."""

    cells: int
    sums: Array  # [T, K]
    grams: Array  # [T, K, K], sums of products of components
    changes: Array  # [T - 1, K], sums of squared differences from frame to frame
    digests: list[bytes]  # [T], of the bits
    uniform: bool  # whether the first frame is one number throughout
    bad: Array  # [T], how many values are not finite


class Moments(NamedTuple):
    """Sums over a trajectory of a field."""

    values: int
    total: Array  # [K]
    gram: Array  # [K, K]
    pairs: int
    change: Array  # [K]


class Trajectory(NamedTuple):
    """What is kept of a trajectory; `moments` by field, of those read whole."""

    where: str
    row: int
    state: bytes  # digest of its first, middle and last frame
    start: bytes  # digest of its initial condition; empty where that is uniform
    moments: dict[str, Moments]
    stir: str  # what `stir` says; empty where it was not read whole
    faults: tuple[tuple[str, Finding], ...]  # what is wrong with it, by check

    @property
    def split(self) -> str:
        """The split that it belongs to."""
        return self.where.partition("/")[0]


# --- One file's description


def structure(file: h5py.File) -> Iterator[Finding]:
    """Hold a file against everything that The Well's own reader needs, and say what that or ours passes over."""
    yield from _lacking(file, ROOT)
    groups = {name: file[name] for name in GROUPS if isinstance(file.get(name), h5py.Group)}
    yield from (Finding(FAIL, f"group /{name} is missing") for name in GROUPS if name not in groups)
    yield from (Finding(NOTE, f"/{name} is no part of the format; nobody reads it") for name in {*file} - {*GROUPS})
    count, frames, grid = int(file.attrs.get("n_trajectories", -1)), -1, dict[str, int]()
    if "dimensions" in groups:
        frames, grid = yield from _axes(groups["dimensions"], count)
    if grid and len(grid) != file.attrs.get("n_spatial_dims", len(grid)):
        yield Finding(FAIL, f"n_spatial_dims is {file.attrs['n_spatial_dims']}, but spatial_dims are {', '.join(grid)}")
    if grid and "boundary_conditions" in groups:
        yield from _boundaries(groups["boundary_conditions"], grid)
    leading = {"sample_varying": count, "time_varying": frames}
    scalars = _listed(groups.get("scalars"), "field_names")
    for rank in range(3):
        if grid and f"t{rank}_fields" in groups:
            yield from _fields(groups[f"t{rank}_fields"], leading, grid, rank, scalars)
    if "scalars" in groups:
        yield from _scalars(groups["scalars"], leading)
        yield from _parameters(file)


def _lacking(node: Any, names: Iterable[str]) -> Iterator[Finding]:
    yield from (Finding(FAIL, f"attribute {n} of {node.name} is missing") for n in names if n not in node.attrs)


def _listed(node: Any, attribute: str) -> list[str]:
    """Return the names that an attribute lists, none where it is missing."""
    names: Any = [] if node is None else np.atleast_1d(node.attrs.get(attribute, []))
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _axes(group: Any, count: int) -> Generator[Finding, None, tuple[int, dict[str, int]]]:
    """Check time and coordinates; return the frames and the cells of each axis, -1 where they are not known."""
    yield from _lacking(group, ["spatial_dims"])
    sizes = dict.fromkeys(["time", *_listed(group, "spatial_dims")], -1)
    for name in sizes:
        node = group.get(name)
        if not isinstance(node, h5py.Dataset):
            yield Finding(FAIL, f"dataset {group.name}/{name} is missing")
            continue
        sizes[name] = node.shape[-1] if node.shape else -1
        yield from _lacking(node, ["sample_varying"])
        if name == "time" and "time_varying" not in node.attrs:
            yield Finding(NOTE, f"attribute time_varying of {node.name} is missing; readers do without it")
        if name != "time" and node.attrs.get("time_varying", False):
            yield Finding(FAIL, f"{node.name} varies in time, which no reader supports")
        varying = bool(node.attrs.get("sample_varying", False))
        if node.ndim != 1 + varying or (varying and count >= 0 and len(node) != count):
            want = f"({count}, n)" if varying else "(n,)"
            yield Finding(FAIL, f"{node.name} has shape {node.shape}, but {want} follows from its flag")
        elif varying:
            yield Finding(NOTE, f"{node.name} differs from trajectory to trajectory, which our reader passes over")
    return sizes.pop("time"), sizes


def _fields(
    group: Any, leading: Mapping[str, int], grid: Mapping[str, int], rank: int, scalars: Sequence[str]
) -> Iterator[Finding]:
    for node in (yield from _members(group, (*FLAGS, "dim_varying"))):
        full = np.atleast_1d(node.attrs.get("dim_varying", [True] * len(grid)))
        if len(full) != len(grid) or not full.all():
            said = ", ".join(str(bool(each)) for each in full)
            yield Finding(FAIL, f"{node.name} has dim_varying [{said}]: every axis must be stored in full")
        yield from _shape(node, leading, (*grid.values(), *(len(grid),) * rank))
        if node.name.rpartition("/")[2] in scalars:
            yield Finding(FAIL, f"{node.name} has the name of a scalar; The Well's reader mixes them up")


def _scalars(group: Any, leading: Mapping[str, int]) -> Iterator[Finding]:
    for node in (yield from _members(group, FLAGS)):
        yield from _shape(node, leading, ())
        if node.attrs.get("time_varying", False):
            yield Finding(NOTE, f"{node.name} varies in time; our reader takes its first value")
        if not np.isfinite(node[()]).all():
            yield Finding(FAIL, f"{node.name} is not finite")


def _members(group: Any, flags: Sequence[str]) -> Generator[Finding, None, list[Any]]:
    """Check what a group lists; return the fields or scalars that are there."""
    yield from _lacking(group, ["field_names"])
    if getattr(group.attrs.get("field_names"), "dtype", np.dtype("O")).kind == "S":
        yield Finding(NOTE, f"field_names of {group.name} is fixed-width; The Well's reader takes the names for bytes")
    listed, found = _listed(group, "field_names"), []
    for name in listed:
        node = group.get(name)
        if not isinstance(node, h5py.Dataset):
            yield Finding(FAIL, f"dataset {group.name}/{name} is listed, but missing")
            continue
        yield from _lacking(node, flags)
        if node.dtype in (np.dtype("f8"), np.dtype("f2")):
            yield Finding(NOTE, f"{node.name} is {node.dtype}: The Well's reader gives all fields the widest type")
        elif node.dtype != np.dtype("f4"):
            yield Finding(FAIL, f"{node.name} is {node.dtype.str}, not float32")
        found.append(node)
    for name in group:
        if name not in listed:
            yield Finding(NOTE, f"{group.name}/{name} is not in field_names, so nobody reads it")
    return found


def _shape(node: Any, leading: Mapping[str, int], rest: tuple[int, ...]) -> Iterator[Finding]:
    want = (*(size for flag, size in leading.items() if node.attrs.get(flag, False)), *rest)
    if all(flag in node.attrs for flag in FLAGS) and min(want, default=0) >= 0 and node.shape != want:
        yield Finding(FAIL, f"{node.name} has shape {node.shape}, but {want} follows from the rest of the file")


def _parameters(file: Any) -> Iterator[Finding]:
    """Hold the root's copies of the parameters against the scalars."""
    if "simulation_parameters" not in file.attrs:
        yield Finding(NOTE, "attribute simulation_parameters of / is missing; readers do without it")
    for name in _listed(file, "simulation_parameters"):
        node = file["scalars"].get(name)
        if name not in file.attrs or not isinstance(node, h5py.Dataset):
            gone = "as an attribute of /" if name not in file.attrs else "in /scalars"
            yield Finding(NOTE, f"simulation_parameters lists {name}, which is missing {gone}")
        elif node.size == 1 and not np.allclose(file.attrs[name], node[()], rtol=1e-6, atol=0):
            here, there = (np.ravel(each)[0] for each in (file.attrs[name], node[()]))
            yield Finding(FAIL, f"attribute {name} of / is {here:g}, but {node.name} is {there:g}")


def _boundaries(group: Any, grid: Mapping[str, int]) -> Iterator[Finding]:
    sides: dict[str, list[str]] = {dim: [] for dim in grid}
    for node in group.values():
        yield from _lacking(node, ["bc_type", "associated_dims"])
        kind, dims = str(node.attrs.get("bc_type", "")).upper(), _listed(node, "associated_dims")
        if kind not in KINDS and kind:
            yield Finding(FAIL, f"bc_type of {node.name} is {kind}: it must be one of {', '.join(KINDS)}")
        if unknown := [dim for dim in dims if dim not in grid]:
            yield Finding(FAIL, f"{node.name} is a boundary of {unknown[0]}, which is no spatial dimension")
            continue
        if len(dims) == 1:
            sides[dims[0]].append(kind)
        elif dims:
            yield Finding(NOTE, f"{node.name} bounds {' and '.join(dims)} together, which our reader passes over")
        yield from _mask(node, kind, tuple(grid[dim] for dim in dims))
    for dim, kinds in sides.items():
        if len(set(kinds)) > 1:
            yield Finding(NOTE, f"the sides of {dim} differ ({', '.join(kinds)}); our reader keeps the last")
        if not kinds:
            yield Finding(NOTE, f"{dim} has no boundary condition of its own; readers take it for open")


def _mask(node: Any, kind: str, want: tuple[int, ...]) -> Iterator[Finding]:
    if not isinstance(node.get("mask"), h5py.Dataset):
        yield Finding(FAIL, f"dataset {node.name}/mask is missing")
        return
    mask, silent = np.asarray(node["mask"], bool), "The Well's reader takes the axis for open"
    if mask.shape != want and min(want, default=-1) >= 0:
        yield Finding(FAIL, f"{node.name}/mask has shape {mask.shape}, not {want}")
    elif not mask.any():
        yield Finding(FAIL, f"{node.name}/mask is False throughout: {silent}")
    elif mask.ndim == 1 and not (mask[[0, -1]].all() if kind == "PERIODIC" else mask[[0, -1]].any()):
        yield Finding(
            FAIL, f"{node.name}/mask is False at {'an end' if mask[[0, -1]].any() else 'both ends'}: {silent}"
        )


def rising(name: str, values: Array) -> Iterator[Finding]:
    """Hold times or coordinates, [n] or [N, n], to be finite and rising; say where they are not uniform."""
    steps, unit = np.diff(np.asarray(values, np.float64)), np.abs(values).max(initial=0) * np.finfo(np.float32).eps
    if not np.isfinite(values).all():
        yield Finding(FAIL, f"{name} is not finite")
    elif name != "time" and steps.size and (steps < 0).all():
        yield Finding(NOTE, f"{name} falls from {values.flat[0]:g} to {values.flat[-1]:g}")
    elif not (steps > 0).all():
        at = int(np.argmax(~(steps > 0).reshape(-1, steps.shape[-1]).all(0)))
        yield Finding(FAIL, f"{name} does not rise from entry {at} to {at + 1}")
    elif steps.size and np.ptp(steps, -1).max() > 1e-3 * steps.mean() + 4 * unit:
        yield Finding(NOTE, f"{name} is not uniform: steps of {steps.min():.3g} to {steps.max():.3g}")


def spelt(stem: str, scalars: Mapping[str, Array]) -> Iterator[Finding]:
    """Hold the parameters that a file's name spells (`name_value`) against its scalars."""
    for name, values in scalars.items():
        found = re.search(rf"(?:^|_){re.escape(name)}_(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?=_|$)", stem)
        if found and not all(_agree(found[1], float(value)) for value in np.unique(values)):
            yield Finding(FAIL, f"the name says {name} {found[1]}, /scalars/{name} is {values[0]:g}")


def _agree(text: str, value: float) -> bool:
    """Whether a number in a name is the value, or its first digits without the point: At_0625, omega_18."""
    digits = f"{abs(value):.9f}".replace(".", "").lstrip("0")
    short = text.isdigit() and not value.is_integer() and digits.startswith(text.lstrip("0"))
    return short or math.isclose(float(text), value, rel_tol=1e-3, abs_tol=1e-12)


# --- Files beside one another


def alike(headers: Mapping[str, Header], axes: Mapping[str, Mapping[str, Array]]) -> Iterator[Finding]:
    """Name every file whose description is not that of most: readers take the first file's for all."""
    told = {where: _description(header) for where, header in headers.items()}
    for what, (verdict, _) in next(iter(told.values())).items():
        said = {where: each[what][1] for where, each in told.items()}
        usual, times = Counter(said.values()).most_common(1)[0]
        for where, here in said.items():
            if here != usual:
                yield Finding(verdict, f"{what}: {here}; in {times} of {len(said)} files {usual}", where)
    for name in sorted({name for each in axes.values() for name in each}):
        kinds = Counter(each[name].tobytes() for each in axes.values() if name in each)
        if len(kinds) > 1:
            yield Finding(NOTE, f"{name} takes {len(kinds)} different courses in {kinds.total()} files")


def _description(h: Header) -> dict[str, tuple[str, str]]:
    """Return what files are to agree in, with the verdict where they do not."""
    grid = [f"{dim} {n}" for dim, n in zip(h.dims, h.shape, strict=True)]
    flags = sorted(f"{f.name}{' sample' * f.sample_varying}{' time' * f.time_varying}" for f in h.fields)
    return {
        "dataset_name": (FAIL, h.dataset),
        "fields": (FAIL, ", ".join(f"{f.name} (rank {f.rank})" for f in h.fields)),
        "scalars": (FAIL, ", ".join(h.scalars) or "none"),
        "grid": (FAIL, ", ".join(grid)),
        "frames": (NOTE, str(h.frames)),
        "what fields vary with": (NOTE, ", ".join(flags)),
        "boundaries": (NOTE, ", ".join(f"{dim} {kind}" for dim, kind in sorted(h.boundaries.items())) or "none"),
    }


def targets(headers: Mapping[str, Header], scales: Mapping[str, str]) -> Iterator[Finding]:
    """Hold the parameters that are to be estimated to be there, to vary and to be positive where they are log10."""
    for name, scale in scales.items():
        there = {where: h.scalars[name] for where, h in headers.items() if name in h.scalars}
        for where, h in headers.items():
            if where not in there:
                said = f"/scalars holds no {name!r}, which is a target{did_you_mean(name, h.scalars)}"
                yield Finding(FAIL, said, where)
            elif scale == "log10" and not (there[where] > 0).all():
                yield Finding(FAIL, f"target {name} is {there[where].min():g}, so it has no log10", where)
        values = np.concatenate(list(there.values()) or [np.empty(0)])
        if len(values) and (values == values[0]).all():
            yield Finding(FAIL, f"target {name} is {values[0]:g} in every file: there is nothing to estimate")


def combinations(headers: Mapping[str, Header]) -> Iterator[Finding]:
    """Count each split's combinations of parameters, and those of valid and test that train does not have."""
    seen: dict[str, set[tuple[float, ...]]] = {}
    for where, h in headers.items():
        rows = np.stack([*h.scalars.values(), np.zeros(h.trajectories)], 1)
        seen.setdefault(where.partition("/")[0], set()).update(map(tuple, rows.tolist()))
    names = list(next(iter(headers.values())).scalars)
    said = ", ".join(f"{split} {len(combos)}" for split, combos in seen.items())
    yield Finding(OK, f"combinations of {', '.join(names)}: {said}" if names else "there are none")
    for split, combos in seen.items():
        if new := sorted(combos - seen.get("train", combos)):
            example = ", ".join(f"{name} {value:g}" for name, value in zip(names, new[0], strict=False))
            many = f"{len(new)} of {split}'s {len(combos)} combinations"
            yield Finding(NOTE, f"{many} are not in train, such as {example}")


def exchanged(features: Mapping[str, Mapping[str, Array]], kind: str) -> Iterator[Finding]:
    """Name the files in which two fields, or components, are in each other's place; `features` by file and name.

    Beside the medians over files one of the two must be alien (FAR) where it is and both at home (NEAR, and twice as
    near) in the other's place: extreme physics moves a field away from its median, but not two into each other's.
    """
    where, names = list(features), list(next(iter(features.values())))
    x = np.array([[features[w][name] for name in names] for w in where])  # [F, U, K, 3]
    centre = np.median(x, 0)  # [U, K, 3]
    least = SPREAD * np.stack([np.exp(centre[..., 1]), *[np.ones_like(centre[..., 1])] * 2], -1)
    scale = np.maximum(1.4826 * np.median(np.abs(x - centre), 0), least)
    distance = np.abs((x[:, :, None] - centre) / scale).max((-1, -2))  # [F, U, U]: of one's data from another's median
    for a, b in itertools.combinations(range(len(names)), 2):
        alien = np.maximum(distance[:, a, a], distance[:, b, b])
        home = np.maximum(distance[:, a, b], distance[:, b, a])
        for i in np.flatnonzero((alien > FAR) & (home < np.minimum(NEAR, alien / 2))):
            how = f"{alien[i]:.0f} robust sigmas from other files, {home[i]:.1f} once exchanged"
            yield Finding(FAIL, f"{kind} {names[a]} and {names[b]} are exchanged ({how})", where[i])


def look(moments: Sequence[Moments]) -> Array:
    """Return what a field looks like in a file: mean, log std and log of its relative change a frame, [K, 3]."""
    mean, std = mean_std(moments)
    pairs, change = sum(m.pairs for m in moments), np.sum([m.change for m in moments], 0)
    rate = np.sqrt(change / pairs) / np.maximum(std, 1e-30) if pairs else np.ones_like(std)
    return np.stack([mean, np.log(np.maximum(std, 1e-30)), np.log(np.maximum(rate, 1e-30))], -1)


# --- What a trajectory holds


def finite(path: str, row: int, series: Series, first: int = 0) -> Iterator[Finding]:
    """Say how many values of a trajectory are not finite; `first` is the number of the series's first frame."""
    if series.bad.any():
        at, count = first + int(np.argmax(series.bad > 0)), int(series.bad.sum())
        yield Finding(FAIL, f"/{path}, trajectory {row}, frame {at}: NaN or infinity, {count} values in all")


def moving(series: Series, dtype: Any) -> Array:
    """Return whether a field moves from frame to frame by more than rounding, [T - 1] bool."""
    unit = ROUNDING * max(np.finfo(each).eps for each in (dtype, np.float32) if np.issubdtype(each, np.floating))
    size = np.trace(series.grams, axis1=1, axis2=2).mean()
    return np.asarray(series.changes.sum(1) > unit**2 * size)


def motion(row: int, fields: Mapping[str, tuple[Series, Array]]) -> Iterator[Finding]:
    """Find frames that are frozen amid motion or come again after it; `fields` gives a series and what `moving` says.

    A field at rest, from its first frame on or for good at the end, is none of this; nor are uniform frames alike.
    """
    said: dict[str, list[str]] = {}
    for name, (series, moves) in fields.items():
        last, frozen, again = dict[bytes, int](), list[int](), list[tuple[int, int]]()
        for t, (digest, uniform) in enumerate(zip(series.digests, _uniform(series), strict=True)):
            before = last.get(digest)
            if before == t - 1 and moves[:before].any() and moves[t:].any():
                frozen.append(before)
            elif before is not None and not uniform and moves[before:t].any():
                again.append((before, t))
            last[digest] = t
        if frozen:
            what = f"frame {frozen[0]} is frozen amid motion ({len(frozen)} such)"
            said.setdefault(what, []).append(name)
        if again:
            what = f"frame {again[0][0]} comes again as frame {again[0][1]} ({len(again)} such)"
            said.setdefault(what, []).append(name)
    for what, names in said.items():
        yield Finding(FAIL, f"trajectory {row}: {what} in {', '.join(names)}")


def _uniform(series: Series) -> Array:
    """Return whether each component is one number throughout a frame, but for rounding, [T] bool."""
    square = series.cells * np.diagonal(series.grams, axis1=1, axis2=2)
    return np.asarray((square - series.sums**2 <= 1e-12 * square).all(1))


def stir(moves: Sequence[Array]) -> str:
    """Return what a trajectory does, from what `moving` says of its fields: it moves, rests, stops or waits."""
    some = np.any(moves, 0) if len(moves) else np.array([True])
    if not some.any():
        return "rests" if len(some) else "moves"
    return "stops" if not some[-1] else "moves" if some[0] else "waits"


def rest(trajectories: Sequence[Trajectory]) -> Iterator[Finding]:
    """Count the trajectories that are at rest, wholly, at the end or at the start."""
    kinds = {"rests": "are at rest throughout", "stops": "come to rest for good", "waits": "are at rest at first"}
    read = [t for t in trajectories if t.stir]
    for kind, said in kinds.items():
        if files := Counter(t.where for t in read if t.stir == kind):
            places = f"; most, {max(files.values())}, in {files.most_common(1)[0][0]}"
            yield Finding(NOTE, f"{files.total()} of {len(read)} trajectories {said}{places}")


# --- Splits


def copies(trajectories: Sequence[Trajectory]) -> Iterator[Finding]:
    """Name the files with trajectories that are there already: with the same first, middle and last frames."""
    first, found = dict[bytes, Trajectory](), dict[tuple[str, str], list[str]]()
    for t in trajectories:
        other = first.setdefault(t.state, t)
        if other is not t:
            said = f"trajectory {t.row} is trajectory {other.row} of {other.where}"
            found.setdefault((t.where, other.where), []).append(said)
    for (where, _), all_said in found.items():
        more = f", and {len(all_said) - 1} more of it" if len(all_said) > 1 else ""
        yield Finding(FAIL, all_said[0] + more, where)


def leaks(trajectories: Sequence[Trajectory], shared: bool) -> Iterator[Finding]:
    """Find initial conditions that occur in two splits (known of the data where `shared`) or several times in one."""
    splits: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        if t.start:
            splits.setdefault(t.split, []).append(t)
    done: dict[str, dict[bytes, Trajectory]] = {}
    for split, here in splits.items():
        states = {t.start: t for t in reversed(here)}
        for other, there in done.items():
            if both := [t for t in here if t.start in there]:
                like = there[both[0].start]
                said = f"leakage: {len(both)} of {split}'s {len(here)} trajectories start from a state of {other}'s"
                such = f"such as trajectory {both[0].row} of {both[0].where} and {like.row} of {like.where}"
                yield Finding(NOTE if shared else FAIL, f"{said}, {such}")
        if len(states) < len(here):
            yield Finding(NOTE, f"{split}'s {len(here)} trajectories start from {len(states)} distinct states")
        done[split] = states


# --- Statistics


def mean_std(moments: Sequence[Moments]) -> tuple[Array, Array]:
    """Return mean and population standard deviation of a field's components, [K] each."""
    count, total = sum(m.values for m in moments), np.sum([m.total for m in moments], 0)
    mean = total / count
    square = np.sum([np.diag(m.gram) for m in moments], 0) / count
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def statistics(
    known: Mapping[str, Any],
    field: Field,
    names: Sequence[str],
    moments: Sequence[Moments],
    weights: Array,
    sampled: bool,
) -> Iterator[Finding]:
    """Hold the mean and std that stats.yaml has of a field against train's trajectories, within the sampling error.

    `weights` says for how many trajectories of its file each one stands, `sampled` whether that is more than itself.
    """
    try:
        told = [np.ravel(np.asarray(known[key][field.name], np.float64)) for key in ("mean", "std")]
    except (KeyError, TypeError, ValueError):
        told = []
    if [len(each) for each in told] != [len(names)] * 2:
        yield Finding(FAIL, f"stats.yaml has no mean and std of {len(names)} numbers of {field.name}")
        return
    counts = weights * [m.values for m in moments]  # [n]
    first = np.stack([m.total / m.values for m in moments])  # [n, K], every trajectory's mean
    second = np.stack([np.diag(m.gram) / m.values for m in moments])
    mean = np.average(first, 0, counts)
    std = np.sqrt(np.maximum(np.average(second, 0, counts) - mean**2, 0))
    error = np.zeros((2, len(mean)))
    if sampled:
        n, square = len(moments), second - 2 * mean * first
        error[0] = first.std(0, ddof=1) / n**0.5 if n > 1 else np.inf
        error[1] = square.std(0, ddof=1) / n**0.5 / np.maximum(2 * std, 1e-30) if n > 1 else np.inf
    margin = TOLERANCE * std + CLIP * np.abs(mean)  # the second term for the four decimals of The Well's files
    for key, here, there, by in zip(("mean", "std"), told, (mean, std), margin + 6 * error, strict=True):
        for name, a, b, most in zip(names, here, there, by, strict=True):
            if not abs(a - b) <= most:
                yield Finding(FAIL, f"stats.yaml: {key} of {name} is {a:.5g}, but {b:.5g} in train")


def channels(fields: Mapping[str, tuple[Sequence[str], Sequence[Moments]]]) -> Iterator[Finding]:
    """Note the channels that hardly vary and those that another component of the field gives exactly.

    `fields` gives the names of a field's components and what was read of it.
    """
    flat, redundant = list[str](), list[str]()
    for names, moments in fields.values():
        gram = np.sum([m.gram for m in moments], 0)
        for i, (name, mean, std) in enumerate(zip(names, *mean_std(moments), strict=True)):
            if std < max(TOLERANCE * abs(mean), CLIP):
                flat.append(f"{name} (mean {mean:.3g}, std {std:.3g})")
            for j, sign in itertools.product(range(i), (1, -1)):
                size = gram[i, i] + gram[j, j]
                if size > 0 and size - 2 * sign * gram[i, j] <= 1e-10 * size:
                    redundant.append(f"{name} = {'-' * (sign < 0)}{names[j]}")
    if flat:
        yield Finding(NOTE, f"flat or nearly so: {', '.join(flat)}")
    if redundant:
        yield Finding(NOTE, f"redundant: {', '.join(redundant)}")
