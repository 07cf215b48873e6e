"""Tables of results: what rows come to over seeds and trajectories, with intervals, and how it is laid out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from physrep.metrics import METRICS, bootstrap, draw, errors, interval, paired
from physrep.results import Row

FIRST = ("mean", "statistics", "random", "supervised")  # controls head a table, the others follow by name
BASELINE = "random"
AVERAGE = "average"
UNFROZEN = "finetune"
FEW = 24  # trajectories, under which a bootstrap's intervals are known to be too narrow
NAMES = {"mse": "MSE", "r2": "R2", "mae": "MAE"}
Place = tuple[str, str, str]  # objective, encoder, probe


@dataclass(frozen=True)
class Cell:
    """One number of a table, what it is a number of, and its 95 % interval; NaN is undefined."""

    objective: str
    encoder: str
    probe: str
    parameter: str
    metric: str
    by: str
    minus: str  # the baseline of a paired difference, else ""
    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Section:
    """What may be compared: the rows of one dataset, split and fingerprint, their cells, and what to know of them."""

    data: str
    split: str
    fingerprint: str
    rows: list[Row]
    cells: list[Cell]
    notes: list[str]


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


# --- From rows to cells ---


def table(rows: Iterable[Row], resamples: int = 10_000, seed: int = 0) -> list[Section]:
    """Return a section for each dataset, split and fingerprint; the order of the rows makes no difference."""
    apart: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.step, row.key, row.value)):
        apart[row.data, row.split, row.fingerprint].append(row)
    sections = []
    for (data, split, fingerprint), found in sorted(apart.items()):
        kept, warnings = _furthest(found)
        others = [f"{s} {f}" for d, s, f in sorted(apart) if d == data and (s, f) != (split, fingerprint)]
        if others:
            warnings.insert(0, f"rows of {split} {fingerprint} are not comparable with those of {', '.join(others)}")
        ids = sorted({trajectory for row in kept for trajectory in row.trajectories})
        notes = [f"Warning: {warning}." for warning in [*warnings, *_doubts(kept, ids)]]
        notes += _notes(kept, ids, resamples)
        sections.append(Section(data, split, fingerprint, kept, list(_cells(kept, ids, resamples, seed)), notes))
    return sections


def _furthest(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Keep for each place in the table and seed the row of the furthest checkpoint, and warn of others."""
    found: dict[tuple[str, str, str, int, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row.objective, row.encoder, row.probe, row.seed, row.parameter][row.key] = row
    many = {f"{' '.join(filter(None, at[:3]))}, seed {at[3]}" for at, some in found.items() if len(some) > 1}
    warnings = [f"{name}: rows of several configs or checkpoints, the furthest is shown" for name in sorted(many)]
    return [list(some.values())[-1] for _, some in sorted(found.items())], warnings


def _cells(rows: Sequence[Row], ids: Sequence[int], resamples: int, seed: int) -> Iterator[Cell]:
    counts = draw(len(ids), resamples, seed)
    parameters = sorted({row.parameter for row in rows})
    places: dict[Place, dict[str, list[Row]]] = defaultdict(lambda: {name: [] for name in parameters})
    for row in rows:
        places[row.objective, row.encoder, row.probe][row.parameter].append(row)
    columns = {place: _columns(places[place]) for place in sorted(places, key=lambda place: order(*place))}
    for place, column in columns.items():
        base = columns.get(_baseline(place, columns), {})
        for name, found in column.items():
            about, seeds = (*place, name), len(found[0])
            for by in ("window", "trajectory"):
                samples = [bootstrap(errors(some, ids, by), counts, seed) for some in found]
                for metric in METRICS:
                    if (name, metric) != (AVERAGE, "mae"):  # of different units
                        at = interval(np.mean([sample[metric] for sample in samples], axis=0))
                        yield Cell(*about, metric, by, "", at.value, at.low, at.high, seeds)
            if name in base and column is not base:
                a, b = ([errors(some, ids, "window") for some in side] for side in (found, base[name]))
                at = interval(paired(a, b, counts, seed))
                yield Cell(*about, "mse", "window", BASELINE, at.value, at.low, at.high, seeds)


def _columns(found: Mapping[str, list[Row]]) -> dict[str, list[list[Row]]]:
    """Return the rows, a seed each, of the parameters a column is of: all, for the seeds that have all, or one."""
    common = set.intersection(*({row.seed for row in rows} for rows in found.values()))
    columns = {name: [rows] for name, rows in found.items() if rows}
    if len(found) > 1 and common:
        columns[AVERAGE] = [[row for row in rows if row.seed in common] for rows in found.values()]
    return columns


def _baseline(place: Place, places: Iterable[Place]) -> Place:
    """Return the untrained encoder to compare with: of the same architecture, or for none the only one there is."""
    there = [other for other in places if other[0] == BASELINE and other[2] == place[2]]
    return there[0] if not place[1] and len(there) == 1 else (BASELINE, *place[1:])


def _doubts(rows: Sequence[Row], ids: Sequence[int]) -> Iterator[str]:
    if len({(tuple(row.trajectories), tuple(row.windows)) for row in rows}) > 1:
        yield "rows are scored on different trajectories or windows; differences are of those they share"
    for name in sorted({row.parameter for row in rows}):
        if len({(row.scale, f"{row.center:.4g}", f"{row.spread:.4g}") for row in rows if row.parameter == name}) > 1:
            yield f"{name} is standardised in more than one way, so that its rows are not comparable"
    if len(ids) < FEW:
        yield f"{len(ids)} trajectories are few, so that intervals are too narrow"
    lines, columns = {(r.objective, r.encoder) for r in rows}, {(r.probe, r.parameter) for r in rows}
    there = {(r.objective, r.encoder, r.probe, r.parameter) for r in rows}
    missing = [f"{' '.join(filter(None, a))}, {' '.join(b)}" for a in lines for b in columns if (*a, *b) not in there]
    if missing:
        yield f"no rows (–) for {'; '.join(sorted(missing))}"


def _notes(rows: Sequence[Row], ids: Sequence[int], resamples: int) -> list[str]:
    def each(name: str) -> str:
        """Say which values a field has, and of which objectives where they differ."""
        found: dict[str, list[str]] = defaultdict(list)
        for objective in sorted({row.objective for row in rows}, key=order):
            values = sorted({getattr(row, name) for row in rows if row.objective == objective})
            found[", ".join(map(str, values))].append(objective)
        if len(found) == 1:
            return next(iter(found))
        return "; ".join(f"{values} ({', '.join(objectives)})" for values, objectives in found.items())

    row, windows = rows[0], sorted({row.n for row in rows})
    encoders, commits = (sorted({getattr(r, name) for r in rows} - {""}) for name in ("encoder", "commit"))
    scales = {(r.parameter, r.scale, f"{r.center:.4g}", f"{r.spread:.4g}") for r in rows}
    ways = [f"{name} {scale}, mean {center}, deviation {spread}" for name, scale, center, spread in sorted(scales)]
    return [
        f"Data {row.data}, fingerprint {row.fingerprint}; split {row.split}: {len(ids)} trajectories, "
        f"{' to '.join(str(n) for n in sorted({windows[0], windows[-1]}))} windows.",
        f"Encoder: {', '.join(encoders) or 'none'}. Checkpoint at step: {each('step')}. Seeds: {each('seed')}. "
        f"Commit: {', '.join(commits) or 'unknown'}.",
        f"Standardised by the train split: {'; '.join(ways)}.",
        f"Probes are fitted on train and choose everything on valid; {row.split} is scored once."
        + (f" {UNFROZEN} trains the encoder too." if any(row.probe == UNFROZEN for row in rows) else ""),
        f"Brackets: 95 % interval, {resamples} bootstrap samples of trajectories and seeds; of one seed it holds no "
        "variation between seeds.",
    ]


# --- From cells to print ---


def grids(section: Section) -> list[Grid]:
    """Lay out a section's tables: the paper's metric, the other metrics, and paired differences to the baseline."""
    cells = section.cells
    found = {(c.objective, c.encoder, c.probe, c.parameter, c.metric, c.by, c.minus): c for c in cells}
    labels = sorted({(c.objective, c.encoder) for c in cells}, key=lambda label: order(*label))
    parameters = sorted({c.parameter for c in cells} - {AVERAGE})
    names = [AVERAGE, *parameters] if len(parameters) > 1 else parameters
    probes = sorted({c.probe for c in cells})
    shown = 2 if len({encoder for _, encoder in labels if encoder}) > 1 else 1  # one encoder is said in the notes
    stub = ["objective", "encoder"][:shown]

    def seeds(label: tuple[str, str]) -> str:
        counts = {c.seeds for c in cells if (c.objective, c.encoder) == label}
        return "-".join(str(count) for count in sorted({min(counts), max(counts)}))

    def by_window(title: str, minus: str) -> Grid:
        heads = [(probe, name) for probe in probes for name in names]
        lines = []
        for label in labels:
            line = [found.get((*label, *head, "mse", "window", minus)) for head in heads]
            if any(line) or not minus:
                lines.append(([*label[:shown], seeds(label)], line))
        return Grid(title, [*stub, "seeds"], heads, lines)

    kinds = [("mse", "trajectory"), *((metric, by) for metric in ("r2", "mae") for by in ("window", "trajectory"))]
    lines = [
        ([name, *label[:shown]], [found.get((*label, probe, name, *kind, "")) for probe in probes for kind in kinds])
        for name in parameters
        for label in labels
    ]
    heads = [(probe, f"{NAMES[metric]} by {by}") for probe in probes for metric, by in kinds]
    made = [
        by_window("Standardised MSE by window (lower is better; predicting the mean scores 1)", ""),
        Grid("Other metrics (MSE standardised, MAE in physical units)", ["parameter", *stub], heads, lines),
        by_window(f"MSE minus that of {BASELINE}, paired (below 0 is better; * interval excludes 0)", BASELINE),
    ]
    return [grid for grid in made if grid.lines]


def best(grid: Grid) -> set[Cell | None]:
    """Return the best cells of every column and parameter."""
    groups: dict[tuple[int, str], list[Cell]] = defaultdict(list)
    for _, cells in grid.lines:
        for column, cell in enumerate(cells):
            if cell is not None and not math.isnan(cell.value):
                groups[column, cell.parameter].append(cell)
    found: set[Cell | None] = set()
    for group in groups.values():
        top = (max if group[0].metric == "r2" else min)(cell.value for cell in group)
        found |= {cell for cell in group if cell.value == top}
    return found


def title(section: Section, sections: Sequence[Section]) -> str:
    """Name a section, with the fingerprint where others have the same name."""
    alike = sum((other.data, other.split) == (section.data, section.split) for other in sections)
    return f"{section.data}, {section.split}" + (f" {section.fingerprint}" if alike > 1 else "")
