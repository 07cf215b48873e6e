"""Tables of results: what rows come to over seeds and trajectories, with intervals, and how it is laid out."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import compress

import numpy as np

from physrep import published
from physrep.metrics import BOUNDS, draw, errors, interval, paired, scores, states
from physrep.progress import track
from physrep.results import Row

FIRST = ("mean", "statistics", "random", "supervised")  # controls head a table, the others follow by name
CONTROLS = FIRST[:3]  # which every table needs
BASELINES = ("random",)
AVERAGE = "average"
UNFROZEN = "finetune"
FEW = 24  # starting states, under which a bootstrap's intervals are known to be too narrow
NAMES = {"mse": "MSE", "r2": "R2", "mae": "MAE"}
COST = {"weights": "encoder weights", "steps": "optimiser steps", "windows": "windows seen", "seconds": "seconds"}
SPACE = {"rank": "effective rank", "between": "std between trajectories", "within": "std within"}
OUTPUT = "output"
SPLITS = {
    "well": "Splits are the dataset's own: test has the parameter values of train, so that a score is not of new ones.",
    "holdout": "Splits holdout: train has every value of the parameters, but none of test's combinations of them.",
    "extrapolate": "Splits extrapolate: test has the extreme values of the parameters, which train has not.",
}
Label = tuple[str, str]  # objective, encoder
Place = tuple[str, str, str, float, str]  # and probe, share of labels, layer


@dataclass(frozen=True)
class Cell:
    """One number of a table, what it is a number of, and its 95 % interval; NaN is undefined."""

    objective: str
    encoder: str
    probe: str
    labels: float
    layer: str
    parameter: str
    metric: str
    by: str  # window or trajectory; run: of pretraining and features; published: not of ours
    minus: str  # the baseline of a paired difference, else ""
    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Section:
    """What may be compared: the rows of one dataset, way to split it and fingerprint, their cells, and their notes."""

    data: str
    splits: str
    split: str
    fingerprint: str
    rows: list[Row]
    cells: list[Cell]
    notes: list[str]
    published: list[Cell] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """A table to print: labels under `stub`, then cells under (probe, name) heads; None is missing."""

    title: str
    stub: list[str]
    heads: list[tuple[str, str]]
    lines: list[tuple[list[str], list[Cell | None]]]


def order(objective: str, *rest: str) -> tuple[int, str, tuple[str, ...]]:
    """Return the key that sorts objectives as tables show them."""
    return (FIRST.index(objective) if objective in FIRST else len(FIRST), objective, rest)


def plain(of: Row | Cell) -> bool:
    """Say whether a row or cell is of the main tables: of all labels and the encoder's output."""
    return of.labels == 1 and not of.layer


# --- From rows to cells ---


def table(
    rows: Iterable[Row],
    resamples: int = 10_000,
    seed: int = 0,
    beside: bool = False,
    baselines: Sequence[str] = BASELINES,
) -> list[Section]:
    """Return a section for each dataset, way to split it and fingerprint; where rows are of one place, the last counts.

    `beside` adds the published numbers to those datasets, split as they come, that have some; differences are paired
    with each of `baselines`, objectives.
    """
    apart: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in _told_apart(rows):
        apart[row.data, row.splits, row.split, row.fingerprint].append(row)
    sections = []
    ways = list(SPLITS)
    for of, found in sorted(apart.items(), key=lambda item: (item[0][0], ways.index(item[0][1]), item[0][2:])):
        kept, warnings = _latest(found)
        others = [
            f"{split} {mark}" for *way, split, mark in sorted(apart) if way == [*of[:2]] and (split, mark) != of[2:]
        ]
        if others:
            warnings.insert(0, f"rows of {of[2]} {of[3]} are not comparable with those of {', '.join(others)}")
        ids = sorted({trajectory for row in kept for trajectory in row.trajectories})
        starts = _starts(kept, ids)
        cells = [*_cells(kept, ids, starts, resamples, seed, baselines), *_costs(kept)]
        notes = [f"Warning: {warning}." for warning in [*warnings, *_doubts(kept, ids, starts)]]
        notes += _notes(kept, cells, ids, starts, resamples)
        theirs = list(_published(of[0])) if beside and of[1] == "well" else []
        notes += [f"Published: {published.SOURCE}. {published.DIFFERS}"] if theirs else []
        sections.append(Section(*of, kept, cells, notes, theirs))
    return sections


def _told_apart(rows: Iterable[Row]) -> Iterator[Row]:
    """Add to an objective's name what its runs were given, where runs of one objective and encoder differ in it."""
    held = list(rows)
    variants: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    for row in held:
        variants[row.data, row.splits, row.objective, row.encoder].add(row.variant)
    for row in held:
        several = len(variants[row.data, row.splits, row.objective, row.encoder]) > 1
        yield replace(row, objective=f"{row.objective}, {row.variant}") if several and row.variant else row


def _latest(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Keep for each place in the table and seed the last row, and warn of others."""
    found: dict[tuple[Place, int, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[_place(row), row.seed, row.parameter][row.key] = row
    many = {f"{_named(place)}, seed {seed}" for (place, seed, _), some in found.items() if len(some) > 1}
    warnings = [
        f"{name}: rows of several configs, checkpoints or settings, the latest is shown" for name in sorted(many)
    ]
    return [list(some.values())[-1] for _, some in sorted(found.items())], warnings


def _place(row: Row) -> Place:
    return row.objective, row.encoder, row.probe, row.labels, row.layer


def _named(place: Place) -> str:
    said = [*place[:3], share(place[3]) if place[3] < 1 else "", place[4]]
    return " ".join(filter(None, said))


def share(labels: float) -> str:
    """Write a share of labels: `10 %`."""
    return f"{100 * labels:.3g} %"


def _starts(rows: Sequence[Row], ids: Sequence[int]) -> list[int]:
    """Return for each of the trajectories the first that starts from the same state, by the rows."""
    found = {i: i for i in ids}
    for row in rows:
        found.update(zip(row.trajectories, row.starts, strict=False))
    return list(found.values())


def _cells(
    rows: Sequence[Row],
    ids: Sequence[int],
    starts: Sequence[int],
    resamples: int,
    seed: int,
    baselines: Sequence[str],
) -> Iterator[Cell]:
    counts = draw(starts, resamples, seed)
    parameters = sorted({row.parameter for row in rows})
    places: dict[Place, dict[str, list[Row]]] = defaultdict(lambda: {name: [] for name in parameters})
    for row in rows:
        places[_place(row)][row.parameter].append(row)
    columns = {place: _columns(places[place]) for place in sorted(places, key=_rank)}
    for place, column in track(columns.items(), f"intervals of {rows[0].data}"):
        bases = {name: columns.get(_baseline(name, place, columns), {}) for name in baselines}
        for name, found in column.items():
            about, seeds = (*place, name), len(found[0])
            for by in ("window", "trajectory"):
                wrong = [errors(some, ids, by) for some in found]
                samples, n = [scores(each, counts) for each in wrong], states(wrong, starts)
                for metric, within in BOUNDS.items():
                    if (name, metric) != (AVERAGE, "mae"):  # of different units
                        mean = np.mean([sample[metric] for sample in samples], axis=0)
                        at = interval(mean, n=n, within=within)
                        yield Cell(*about, metric, by, "", at.value, at.low, at.high, seeds)
            for minus, base in bases.items():
                if name in base and column is not base:
                    a, b = ([errors(some, ids, "window") for some in side] for side in (found, base[name]))
                    at = paired(a, b, counts, starts)
                    yield Cell(*about, "mse", "window", minus, at.value, at.low, at.high, seeds)


def _rank(place: Place) -> tuple[object, ...]:
    objective, encoder, probe, labels, layer = place
    return order(objective, encoder, probe), -labels, depth(layer)


def depth(layer: str) -> tuple[object, ...]:
    """Return the key that sorts layers by the numbers in their names, the output last."""
    parts = re.split(r"(\d+)", layer)
    return not layer, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _costs(rows: Sequence[Row]) -> Iterator[Cell]:
    """Return what pretraining took and the space that features fill, means over the seeds of an objective."""
    runs: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: (bool(row.layer), -row.labels, not row.space)):
        runs[row.objective, row.encoder].setdefault(row.seed, row)
    for (objective, encoder), found in sorted(runs.items(), key=lambda run: order(*run[0])):
        said = [{**row.space, **row.cost, **({"steps": row.step} if row.cost else {})} for row in found.values()]
        for metric in (*COST, *SPACE):
            values = [each[metric] for each in said if each.get(metric) is not None]
            if values:
                about = (objective, encoder, "", 1.0, "", "", metric, "run", "")
                yield Cell(*about, float(np.mean(values)), math.nan, math.nan, len(values))


def _published(data: str) -> Iterator[Cell]:
    for method, found in published.MSE.get(data, {}).items():
        for labels, value in found.items():
            about = (method, published.ENCODERS[method], "attentive", labels, "", AVERAGE, "mse", "published", "")
            yield Cell(*about, value, math.nan, math.nan, 1)


def _columns(found: Mapping[str, list[Row]]) -> dict[str, list[list[Row]]]:
    """Return the rows, a seed each, of the parameters a column is of: all, for the seeds that have all, or one."""
    common = set.intersection(*({row.seed for row in rows} for rows in found.values()))
    columns = {name: [rows] for name, rows in found.items() if rows}
    if len(found) > 1 and common:
        columns[AVERAGE] = [[row for row in rows if row.seed in common] for rows in found.values()]
    return columns


def _baseline(name: str, place: Place, places: Iterable[Place]) -> Place:
    """Return what to compare with: an objective of the same encoder, or where either has none the only one there is.

    Of a variant it is the same variant of it, where there is one.
    """
    _, comma, variant = place[0].partition(", ")
    if (same := (f"{name}{comma}{variant}", *place[1:])) in places:
        return same
    there = [other for other in places if other[0] == name and other[2:] == place[2:]]
    return there[0] if len(there) == 1 and not (place[1] and there[0][1]) else (name, *place[1:])


def _doubts(rows: Sequence[Row], ids: Sequence[int], starts: Sequence[int]) -> Iterator[str]:
    if len({(tuple(row.trajectories), tuple(row.windows)) for row in rows}) > 1:
        yield "rows are scored on different trajectories or windows; differences are of those they share"
    for name in sorted({row.parameter for row in rows}):
        if len({(row.scale, f"{row.center:.4g}", f"{row.spread:.4g}") for row in rows if row.parameter == name}) > 1:
            yield f"{name} is standardised in more than one way, so that its rows are not comparable"
    if rows[0].splits != "well":
        truth = {row.parameter: dict(zip(row.trajectories, row.truth, strict=True)) for row in rows}
        held = len({tuple(each.get(i) for each in truth.values()) for i in ids})
        yield (f"{len(ids)} trajectories of test have {held} combinations of parameters; intervals are over the states "
               "that they start from alone")  # fmt: skip
    if (n := len(set(starts))) < FEW:
        what = "trajectories are" if n == len(ids) else "starting states are" if n > 1 else "starting state is"
        yield f"{n} {what} few, so that intervals are too narrow" if n > 1 else f"{n} {what} too few for intervals"
    if shared := max(row.shared for row in rows):
        yield (f"{shared} of {rows[0].split}'s {len(ids)} trajectories start from a state that train has, too: "
               "scores are optimistic")  # fmt: skip
    if len(seen := _by_value(row for row in rows if row.cost.get("windows"))) > 1:
        yield f"budgets differ: windows seen are {_listed(seen)}"
    settings: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        settings[row.probe].add(row.setting)
    for probe in sorted(name for name, some in settings.items() if len(some) > 1):
        yield f"{probe} was fitted with more than one choice of its options, or by more than one version of its code"
    there = {row.objective.partition(", ")[0] for row in rows}
    if absent := [name for name in CONTROLS if name not in there]:
        yield f"no rows of {', '.join(absent)}, without which nothing says whether anything was learnt"
    rows = [row for row in rows if plain(row)]
    lines, columns = {(r.objective, r.encoder) for r in rows}, {(r.probe, r.parameter) for r in rows}
    cells = {(r.objective, r.encoder, r.probe, r.parameter) for r in rows}
    missing = [f"{' '.join(filter(None, a))}, {' '.join(b)}" for a in lines for b in columns if (*a, *b) not in cells]
    if missing:
        yield f"no rows (–) for {'; '.join(sorted(missing))}"


def _tuned(rows: Sequence[Row]) -> str:
    """Say that fine-tuning trains encoders, and for how long."""
    if not any(row.probe.startswith(UNFROZEN) for row in rows):
        return ""
    spent = [row.cost[UNFROZEN] for row in rows if UNFROZEN in row.cost]
    windows = " or ".join(f"{n:,}" for n in sorted({each["windows"] for each in spent}))
    took = f", on {windows} windows in {np.median([each['seconds'] for each in spent]):.0f} s (median)" if spent else ""
    return f" {UNFROZEN} trains the encoder too{took}."


def _by_value(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Return who saw so many windows in pretraining, by how many."""
    found: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        found[row.cost["windows"]].add(row.objective)
    return {f"{windows:,}": sorted(found[windows], key=order) for windows in sorted(found)}


def _listed(found: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{values} ({', '.join(objectives)})" for values, objectives in found.items())


def _notes(
    rows: Sequence[Row], cells: Sequence[Cell], ids: Sequence[int], starts: Sequence[int], resamples: int
) -> list[str]:
    def each(name: str) -> str:
        """Say which values a field has, and of which objectives where they differ."""
        found: dict[str, list[str]] = defaultdict(list)
        for objective in sorted({row.objective for row in rows}, key=order):
            values = sorted({getattr(row, name) for row in rows if row.objective == objective})
            found[", ".join(map(str, values))].append(objective)
        return next(iter(found)) if len(found) == 1 else _listed(found)

    row, windows = rows[0], sorted({row.n for row in rows})
    encoders, commits = (sorted({getattr(r, name) for r in rows} - {""}) for name in ("encoder", "commit"))
    scales = {(r.parameter, r.scale, f"{r.center:.4g}", f"{r.spread:.4g}") for r in rows}
    ways = [f"{name} {scale}, mean {center}, deviation {spread}" for name, scale, center, spread in sorted(scales)]
    alone = sorted({c.objective for c in cells if c.by == "window" and plain(c) and c.seeds == 1}, key=order)
    of = (
        " (all here)"
        if len(alone) == len({row.objective for row in rows})
        else f" ({', '.join(alone)})"
        if alone
        else ""
    )
    notes = [
        f"Data {row.data}, fingerprint {row.fingerprint}; split {row.split}: {len(ids)} trajectories, "
        f"{' to '.join(str(n) for n in sorted({windows[0], windows[-1]}))} windows.",
        SPLITS[row.splits],
        f"Encoder: {', '.join(encoders) or 'none'}. Checkpoint at step: {each('step')}. Seeds: {each('seed')}. "
        f"Commit: {', '.join(commits) or 'unknown'}.",
        f"Standardised by the train split: {'; '.join(ways)}.",
        f"Probes are fitted on train and choose everything on valid; {row.split} is scored once." + _tuned(rows),
    ]
    if any(row.labels < 1 for row in rows):
        notes.append("Label efficiency: probes are told the parameters of a share of train's and valid's trajectories, "
                     "spread evenly over their combinations; a larger share holds a smaller one.")  # fmt: skip
    units = "trajectories"
    if (n := len(set(starts))) < len(ids):
        units = f"the {n} states that trajectories start from, all of one together,"
    notes.append(
        f"Brackets: 95 % interval over {units} ({resamples} bootstrap samples) and seeds (Student's t)"
        f"; of one seed{of} it is of trajectories alone."
    )
    if differences := sum(bool(cell.minus) and plain(cell) for cell in cells):
        notes.append(
            f"Differences: {differences} are shown, each with its own 95 % interval: where nothing differs, one in "
            "twenty excludes 0 by chance."
        )
    return notes


# --- From cells to print ---


def grids(section: Section) -> list[Grid]:
    """Lay out a section's tables: the paper's metric, by share of labels, by layer, and so on, as far as there are."""
    found = {astuple(cell)[:9]: cell for cell in section.cells}
    scored = [cell for cell in section.cells if cell.probe]
    labels = sorted({(cell.objective, cell.encoder) for cell in section.cells}, key=lambda label: order(*label))
    parameters = sorted({cell.parameter for cell in scored} - {AVERAGE})
    names = [AVERAGE, *parameters] if len(parameters) > 1 else parameters
    probes = sorted({cell.probe for cell in scored})
    shares = sorted({cell.labels for cell in scored})
    layers = sorted({cell.layer for cell in scored}, key=depth)
    shown = 2 if len({encoder for _, encoder in labels if encoder}) > 1 else 1  # one encoder is said in the notes
    stub = ["objective", "encoder"][:shown]
    devices: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in section.rows:
        devices[row.objective, row.encoder] |= {str(row.cost["device"])} if "device" in row.cost else set()

    def lines(*columns: tuple[str, float, str, str, str, str, str]) -> Iterator[tuple[Label, str, list[Cell | None]]]:
        """Yield for each objective and encoder its seeds and its cells in columns, the rest of a cell's place."""
        for label in labels:
            cells = [found.get((*label, *column)) for column in columns]
            seeds = sorted({cell.seeds for cell in cells if cell})
            yield label, "-".join(str(n) for n in dict.fromkeys([*seeds[:1], *seeds[-1:]])), cells

    def averaged(title: str, heads: Mapping[str, tuple[float, str]], of: Sequence[str], minus: str = "") -> Grid:
        """Lay out MSE by window, of the parameters and by head, which is a share of labels and a layer."""
        columns = [
            (probe, *at, name, "mse", "window", minus) for probe in probes for at in heads.values() for name in of
        ]
        said = [(probe, head or name) for probe in probes for head in heads for name in of]
        return Grid(title, [*stub, "seeds"], said, [([*o[:shown], n], cells) for o, n, cells in lines(*columns)])

    kinds = [("mse", "trajectory"), *((metric, by) for metric in ("r2", "mae") for by in ("window", "trajectory"))]
    others = [
        ([name, *label[:shown]], cells)
        for name in parameters
        for label, _, cells in lines(*((probe, 1.0, "", name, *kind, "") for probe in probes for kind in kinds))
    ]
    taken = lines(*(("", 1.0, "", "", name, "run", "") for name in (*COST, *SPACE)))
    made = [
        averaged("Standardised MSE by window (lower is better; predicting the mean scores 1)", {"": (1.0, "")}, names),
        Grid(
            "Other metrics (MSE standardised, MAE in physical units)",
            ["parameter", *stub],
            [(probe, f"{NAMES[metric]} by {by}") for probe in probes for metric, by in kinds],
            others,
        ),
    ]
    made += [
        averaged(
            f"MSE minus that of {minus}, paired (below 0 is better; * interval excludes 0)",
            {"": (1.0, "")},
            names,
            minus,
        )
        for minus in dict.fromkeys(cell.minus for cell in section.cells if cell.minus)
    ]
    heads = {share(labels): (labels, "") for labels in shares}
    made.append(
        _special(averaged(f"Label efficiency (MSE by window, {names[0]}, by share of labels)", heads, names[:1]))
    )
    heads = {layer or OUTPUT: (1.0, layer) for layer in layers}
    made.append(_special(averaged(f"By layer (MSE by window, {names[0]})", heads, names[:1])))
    made.append(
        Grid(
            "Representation and cost (means over seeds)",
            [*stub, "seeds", "device"],
            [("pretraining", said) for said in COST.values()]
            + [(f"features of {section.split}", s) for s in SPACE.values()],
            [([*o[:shown], n, ", ".join(sorted(devices[o]))], cells) for o, n, cells in taken],
        )
    )
    if section.published:
        made.append(_beside(section.published))
    return [grid for grid in map(_filled, made) if grid.lines]


def _beside(cells: Sequence[Cell]) -> Grid:
    """Lay out published numbers."""
    found = {(cell.objective, cell.labels): cell for cell in cells}
    shares = sorted({cell.labels for cell in cells})
    encoders = {cell.objective: cell.encoder for cell in cells}
    return Grid(
        "Published, not by this code: MSE averaged over both parameters, on valid, without seeds",
        ["method", "encoder"],
        [("published", f"{share(labels)} of labels") for labels in shares],
        [([method, encoder], [found.get((method, n)) for n in shares]) for method, encoder in encoders.items()],
    )


def _special(grid: Grid) -> Grid:
    """Keep the lines and the probes that have more than what the main table has, too."""
    lines = [line for line in grid.lines if any(cell and not plain(cell) for cell in line[1])]
    probes = {cell.probe for _, cells in lines for cell in cells if cell and not plain(cell)}
    there = [probe in probes for probe, _ in grid.heads]
    return replace(
        grid,
        heads=list(compress(grid.heads, there)),
        lines=[(labels, list(compress(cells, there))) for labels, cells in lines],
    )


def _filled(grid: Grid) -> Grid:
    """Leave out columns and lines that hold nothing."""
    there = [i for i in range(len(grid.heads)) if any(cells[i] for _, cells in grid.lines)]
    lines = [(labels, [cells[i] for i in there]) for labels, cells in grid.lines if any(cells)]
    return replace(grid, heads=[grid.heads[i] for i in there], lines=lines)


def best(grid: Grid) -> set[Cell | None]:
    """Return the best of our scores in every column and parameter."""
    groups: dict[tuple[int, str], list[Cell]] = defaultdict(list)
    for _, cells in grid.lines:
        for column, cell in enumerate(cells):
            if cell is not None and cell.by in ("window", "trajectory") and not math.isnan(cell.value):
                groups[column, cell.parameter].append(cell)
    found: set[Cell | None] = set()
    for group in groups.values():
        top = (max if group[0].metric == "r2" else min)(cell.value for cell in group)
        found |= {cell for cell in group if cell.value == top}
    return found


def title(section: Section, sections: Sequence[Section]) -> str:
    """Name a section, with the way to split unless it is the dataset's, and the fingerprint where names are alike."""
    mine = (section.data, section.splits, section.split)
    alike = sum((other.data, other.splits, other.split) == mine for other in sections)
    way = f" of {section.splits}" if section.splits != "well" else ""
    return f"{section.data}, {section.split}{way}" + (f" {section.fingerprint}" if alike > 1 else "")
