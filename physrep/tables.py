"""Tables of results: what rows come to over seeds and trajectories, with intervals, as Markdown, CSV and text."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

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


def show(cell: Cell | None) -> str:
    """Print a cell: `0.231 [0.198, 0.270]`, three digits or decimals, `*` if a difference's interval excludes 0."""
    if cell is None or math.isnan(cell.value):
        return "–"
    size = math.floor(math.log10(abs(cell.value))) if cell.value else 0
    signed = cell.metric == "r2" or cell.minus
    decimals = 2 - size if cell.metric == "mae" or (size < -2 and not signed) else 3

    def digits(x: float) -> str:
        if size >= 6 or decimals > 6:
            return f"{x:.2e}"
        return f"{round(x, decimals) + 0.0:.{max(decimals, 0)}f}"  # + 0.0: no -0.000

    if math.isnan(cell.low):
        return digits(cell.value)
    sure = " *" if cell.minus and (cell.low > 0 or cell.high < 0) else ""
    return f"{digits(cell.value)} [{digits(cell.low)}, {digits(cell.high)}]{sure}"


def _title(section: Section, sections: Sequence[Section]) -> str:
    alike = sum((other.data, other.split) == (section.data, section.split) for other in sections)
    return f"{section.data}, {section.split}" + (f" {section.fingerprint}" if alike > 1 else "")


def markdown(sections: Sequence[Section], figures: Sequence[str] = ()) -> str:
    """Return the tables in Markdown, the best of a column (and parameter) in bold, a figure's file for each section."""
    parts = []
    for i, section in enumerate(sections):
        parts.append(f"## {_title(section, sections)}")
        for grid in grids(section):
            best = _best(grid)
            head = [*grid.stub, *(f"{probe}: {name}" for probe, name in grid.heads)]
            body = []
            for labels, cells in grid.lines:
                shown = [(cell in best, show(cell).replace("*", "\\*")) for cell in cells]
                body.append([*labels, *(f"**{cell}**" if bold else cell for bold, cell in shown)])
            rule = ["---"] * len(grid.stub) + ["---:"] * len(grid.heads)
            lines = [f"| {' | '.join(line)} |" for line in (head, rule, *body)]
            parts.append("\n".join([f"### {grid.title}\n", *lines]))
        parts += [f"![Predicted against true parameters]({name})" for name in figures[i : i + 1]]
        parts.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(parts) + "\n"


def _best(grid: Grid) -> set[Cell | None]:
    groups: dict[tuple[int, str], list[Cell]] = defaultdict(list)
    for _, cells in grid.lines:
        for column, cell in enumerate(cells):
            if cell is not None and not math.isnan(cell.value):
                groups[column, cell.parameter].append(cell)
    best: set[Cell | None] = set()
    for group in groups.values():
        top = (max if group[0].metric == "r2" else min)(cell.value for cell in group)
        best |= {cell for cell in group if cell.value == top}
    return best


def text(sections: Sequence[Section], width: int = 160) -> str:
    """Return the tables for a terminal, wider ones as a block for each probe, and no wider than `width`."""
    parts = []
    for section in sections:
        parts.append(_title(section, sections))
        for grid in grids(section):
            parts += [grid.title, *("\n".join(block) for block in _blocks(grid, width))]
        parts.append("\n".join(textwrap.fill(note, width, subsequent_indent="  ") for note in section.notes))
    return "\n\n".join(parts)


def _blocks(grid: Grid, width: int) -> Iterator[list[str]]:
    stub = [["", name, *(labels[i] for labels, _ in grid.lines)] for i, name in enumerate(grid.stub)]
    columns = [[*head, *(show(cells[i]) for _, cells in grid.lines)] for i, head in enumerate(grid.heads)]

    def fits(some: list[list[str]]) -> bool:
        return sum(max(map(len, column)) + 2 for column in [*stub, *some]) - 2 <= width

    blocks: list[list[list[str]]] = []
    for i, column in enumerate(columns):
        new = not fits(columns) and column[0] != columns[i - 1][0]
        if not blocks or new or not fits([*blocks[-1], column]):
            blocks.append([])
        blocks[-1].append(column)
    for block in blocks:
        padded = [[item.ljust(max(map(len, column))) for item in column] for column in [*stub, *block]]
        for i in range(len(padded) - 1, len(stub), -1):
            if padded[i][0].strip() == padded[i - 1][0].strip():
                padded[i][0] = ""
        lines = ["  ".join(items).rstrip() for items in zip(*padded, strict=True)]
        yield [*lines[:2], "-" * max(map(len, lines)), *lines[2:]]


def as_csv(sections: Sequence[Section]) -> str:
    """Return every cell as a line of CSV, in full precision."""
    out = io.StringIO()
    names = ["data", "split", "fingerprint", *(field.name for field in fields(Cell))]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for section in sections:
        about = {"data": section.data, "split": section.split, "fingerprint": section.fingerprint}
        for cell in section.cells:
            values = {name: "" if str(value) == "nan" else value for name, value in asdict(cell).items()}
            writer.writerow(about | values)
    return out.getvalue()
