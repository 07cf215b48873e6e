"""The report's figures: what rows say, and what the monitors of the runs said."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from physrep.metrics import Array
from physrep.results import Row, inverse
from physrep.tables import AVERAGE, CONTROLS, Cell, Label, Section, order, plain, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito 2008, for all eyes
GREY = "#666666"
MONITORS = {
    "valid/loss": "loss on valid, of its first",
    "probe/mse": "online ridge on valid, MSE",
    "rank/effective": "effective rank",
    "std/between": "std over trajectories",
}
SIDE, GAP, TICKS, LEFT, LINE = 1.3, 0.15, 0.3, 1.0, 0.15  # inches: an axis, between axes, under one, margin, text
ACROSS = 8  # axes; more go below them
LETTERS = 17  # of a title that fit above an axis
CROWD = 400  # points of an axis, from which on they have no bars
MARKS = ("o", "s", "^", "D")
STYLE: dict[Any, Any] = {"font.size": 8, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False}


def drawn(section: Section) -> dict[str, tuple[Callable[[Section], Figure], str]]:
    """Return the figures that there is something to draw for, by name, each with its caption."""
    rows = [row for row in section.rows if plain(row)]
    made: dict[str, tuple[Callable[[Section], Figure], str]] = {}
    if rows:
        made["predictions"] = (predictions, "Predicted against true parameters: a point is a trajectory of one seed, "
                               "its bar the deviation over its windows; black is their median.")  # fmt: skip
    if len({row.labels for row in section.rows if not row.layer}) > 1:
        made["efficiency"] = (efficiency, "Error against the share of labelled trajectories, with 95 % intervals.")
    if len({*_spent(section)[1].values()}) > 1:
        made["budget"] = (budget, "Error against what pretraining took, with 95 % intervals.")
    if any(row.plane for row in rows):
        made["embedding"] = (
            embedding,
            "Features along two principal components, a point a trajectory of the first seed.",
        )
    return made


def predictions(section: Section) -> Figure:
    """Draw each trajectory's mean prediction against its true value: a row for a parameter and probe, by objective.

    Physical units, spaced logarithmically where the parameter is standardised in log10. A point is a trajectory of one
    seed, with the standard deviation over its windows as a bar, one beyond the axes a triangle at their edge, a black
    bar the median; points of the same truth stand side by side. MSE (standardised) and R2 are by window.
    """
    import matplotlib as mpl

    found = [row for row in section.rows if plain(row)]
    columns = sorted({(row.objective, row.encoder) for row in found}, key=lambda label: order(*label))
    lines = sorted({(row.parameter, row.probe) for row in found})
    last = [parameter != below for (parameter, _), (below, _) in zip(lines, [*lines[1:], ("", "")], strict=True)]
    colours = _colours(columns)
    with mpl.rc_context(STYLE):
        figure, axes = _strips(columns, [TICKS * end for end in last])
        for (i, j), axis in axes.items():
            (parameter, probe), label = lines[i], columns[j]
            rows = [row for row in found if row.parameter == parameter]
            left = j % _across(columns) == 0
            edges = _frame(axis, rows, left, last[i])
            here = [row for row in rows if (row.objective, row.encoder, row.probe) == (*label, probe)]
            _points(axis, here, edges, colours[label][0])
            _corner(axis, section.cells, *label, probe, parameter)
            if left:
                axis.set_ylabel(f"{parameter}\n{probe}")
        width, height = figure.get_size_inches()
        figure.supxlabel("true", fontsize=9, y=0.03 / height, va="bottom")
        figure.supylabel("predicted", fontsize=9, x=0.06 / width, ha="left")
    return figure


def embedding(section: Section) -> Figure:
    """Draw the plane of the first seed's features: a row for a parameter, which colours the points, by objective."""
    import matplotlib as mpl

    found = sorted((row for row in section.rows if plain(row) and row.plane), key=lambda row: (row.seed, row.probe))
    columns = sorted({(row.objective, row.encoder) for row in found}, key=lambda label: order(*label))
    lines = sorted({row.parameter for row in found})
    with mpl.rc_context(STYLE):
        figure, axes = _strips(columns, [0.0] * len(lines), right=0.85)
        for (i, j), axis in axes.items():
            of = [row for row in found if row.parameter == lines[i]]
            row = next((row for row in of if (row.objective, row.encoder) == columns[j]), None)
            axis.set(xticks=[], yticks=[])
            if j % _across(columns) == 0:
                axis.set_ylabel(lines[i])
            if row is None:
                continue
            every = np.concatenate([_place(one.truth, one) for one in of])
            x, y = np.array(row.plane).T
            points = axis.scatter(x, y, c=_place(row.truth, row), s=7, linewidths=0, vmin=every.min(), vmax=every.max())
            axis.margins(0.08)
            if (i, j + 1) not in axes or (j + 1) % _across(columns) == 0:
                _bar(figure, axis, points, row)
    return figure


def _bar(figure: Figure, beside: Axes, points: Any, row: Row) -> None:
    """Draw a bar of colours beside the last axis of a row, in physical units."""
    place, (width, _) = beside.get_position(), figure.get_size_inches()
    axis = figure.add_axes((place.x1 + GAP / width, place.y0, 0.08 / width, place.height))
    figure.colorbar(points, cax=axis)
    low, high = points.get_clim()
    ticks, names = _ticks(low, high, row)
    axis.set_yticks(ticks, names)
    axis.spines[:].set_visible(True)


def _across(columns: Sequence[Label]) -> int:
    """Return how many axes stand side by side, such that strips of them are equally long."""
    return math.ceil(len(columns) / math.ceil(len(columns) / ACROSS))


def _strips(
    columns: Sequence[Label], below: Sequence[float], right: float = GAP
) -> tuple[Figure, dict[tuple[int, int], Axes]]:
    """Make axes by (line, column), titled, in as many strips as columns need; `below` is the space under each line."""
    from matplotlib.figure import Figure

    across = _across(columns)
    shown = 2 if len({encoder for _, encoder in columns if encoder}) > 1 else 1
    titles = [[line for name in label[:shown] for line in _folded(name)] for label in columns]
    top = GAP + LINE * max(map(len, titles))
    strip = top + sum(SIDE + GAP + space for space in below)
    width = LEFT + across * SIDE + (across - 1) * GAP + right
    height = strip * math.ceil(len(columns) / across) + LINE
    colours = _colours(columns)
    figure, axes = Figure(figsize=(width, height)), {}
    for first in range(0, len(columns), across):
        y = height - first // across * strip - top + GAP
        for i, space in enumerate(below):
            y -= SIDE + GAP
            for j in range(first, min(first + across, len(columns))):
                x = LEFT + (j - first) * (SIDE + GAP)
                axes[i, j] = figure.add_axes((x / width, y / height, SIDE / width, SIDE / height))
                if i == 0:
                    axes[i, j].set_title("\n".join(titles[j]), fontsize=9, color=colours[columns[j]][0])
            y -= space
    return figure, axes


def _folded(name: str) -> list[str]:
    """Break a long name at its underscores."""
    lines = [""] if name else []
    for part in re.findall(r"[^_]*_?", name):
        if lines[-1:] and len(lines[-1]) + len(part) > LETTERS and lines[-1]:
            lines.append("")
        if lines:
            lines[-1] += part
    return lines


def _colours(labels: Iterable[Label]) -> dict[Label, tuple[str, Any]]:
    """Return colour and dashes of objectives in their order; controls are grey."""
    learned = [label for label in labels if label[0] not in CONTROLS]
    plans = [label for label in labels if label[0] in CONTROLS]
    dashes = [(0, (1, 1)), (0, (4, 2)), (0, (6, 2, 1, 2)), (0, (2, 4)), (0, (9, 2))]
    greys = {label: (GREY, dashes[i % len(dashes)]) for i, label in enumerate(plans)}
    return greys | {label: _look(i) for i, label in enumerate(learned)}


def _averages(section: Section) -> dict[tuple[Label, str, float], Cell]:
    """Return MSE by window, averaged over parameters, by objective, probe and share of labels."""
    cells = [c for c in section.cells if (c.metric, c.by, c.minus, c.layer) == ("mse", "window", "", "")]
    several = len({c.parameter for c in cells} - {AVERAGE}) > 1
    return {((c.objective, c.encoder), c.probe, c.labels): c for c in cells if not several or c.parameter == AVERAGE}


def _beside(section: Section, probes: Sequence[str], ylabel: str) -> tuple[Figure, list[Axes]]:
    """Make an axis for each probe, side by side, with room for a legend."""
    from matplotlib.figure import Figure

    names = len({(row.objective, row.encoder) for row in section.rows})
    figure = Figure(figsize=(3.2 * len(probes) + 2.2, max(2.8, 0.4 + 0.16 * names)), layout="constrained")
    axes = list(figure.subplots(1, len(probes), squeeze=False, sharey=True)[0])
    for axis, probe in zip(axes, probes, strict=True):
        axis.set_title(probe, fontsize=9)
    axes[0].set_ylabel(ylabel)
    return figure, axes


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """Name every line once, right of the axes."""
    found = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    once = {name: handle for handle, name in reversed(found)}
    names = list(dict.fromkeys(name for _, name in found))
    figure.legend([once[name] for name in names], names, loc="outside right upper", frameon=False, fontsize=7)


def efficiency(section: Section) -> Figure:
    """Draw MSE by window against the share of labels, a line an objective with its interval, an axis a probe."""
    import matplotlib as mpl

    cells = _averages(section)
    probes = sorted({probe for _, probe, labels in cells if labels < 1})
    shares = sorted({labels for _, _, labels in cells})
    colours = _colours(sorted({label for label, _, _ in cells}, key=lambda label: order(*label)))
    with mpl.rc_context(STYLE):
        figure, axes = _beside(section, probes, "MSE by window")
        for axis, probe in zip(axes, probes, strict=True):
            for label, (colour, dashes) in colours.items():
                line = [cells[label, probe, labels] for labels in shares if (label, probe, labels) in cells]
                if len(line) < 2:
                    continue
                x, low, high = ([getattr(cell, name) for cell in line] for name in ("labels", "low", "high"))
                style: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": "o", "markersize": 3}
                axis.plot(x, [cell.value for cell in line], linewidth=1.2, label=" ".join(label).strip(), **style)
                axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.set(xscale="log", xlabel="labelled trajectories")
            axis.set_xticks(shares, [share(labels) for labels in shares])
            axis.minorticks_off()
        axes[0].set_ylim(bottom=0)
        _legend(figure, axes)
    return figure


def _spent(section: Section) -> tuple[str, dict[Label, float]]:
    """Return what pretraining took, for all in the main table: seconds, or windows seen where devices differ."""
    one = len({row.cost["device"] for row in section.rows if row.cost.get("windows")}) == 1
    metric, said = ("seconds", "seconds of pretraining") if one else ("windows", "windows seen in pretraining")
    took, seen = (
        {(c.objective, c.encoder): c.value for c in section.cells if (c.by, c.metric) == ("run", name)}
        for name in (metric, "windows")
    )
    drawn = {(row.objective, row.encoder) for row in section.rows if plain(row)}
    return said, {label: took[label] for label, windows in seen.items() if windows and label in drawn}


def budget(section: Section) -> Figure:
    """Draw MSE by window against what pretraining took (`_spent`), an axis a probe; what took none is a line."""
    import matplotlib as mpl

    cells = {(label, probe): cell for (label, probe, labels), cell in _averages(section).items() if labels == 1}
    said, spent = _spent(section)
    probes = sorted({probe for _, probe in cells})
    labels = sorted({label for label, _ in cells}, key=lambda label: order(*label))
    learned = [label for label in labels if label in spent]
    with mpl.rc_context(STYLE):
        figure, axes = _beside(section, probes, "MSE by window")
        for axis, probe in zip(axes, probes, strict=True):
            for label, (colour, dashes) in _colours(labels).items():
                if (label, probe) not in cells:
                    continue
                cell, name = cells[label, probe], " ".join(label).strip()
                if label in learned:
                    bars = [[cell.value - cell.low], [cell.high - cell.value]]
                    mark = MARKS[learned.index(label) // len(COLOURS) % len(MARKS)]
                    style: dict[str, Any] = {"color": colour, "marker": mark, "markersize": 4, "linestyle": ""}
                    axis.errorbar([spent[label]], [cell.value], yerr=np.nan_to_num(bars), label=name, **style)
                else:
                    axis.axhline(cell.value, color=colour, linestyle=dashes, linewidth=1, label=name)
            axis.set_xlabel(said)
            axis.margins(x=0.1)
            axis.set_xlim(left=0)
            if max(spent[label] for label in learned) > 10 * min(spent[label] for label in learned):
                axis.set(xscale="log", autoscalex_on=True)
        axes[0].set_ylim(bottom=0)
        _legend(figure, axes)
    return figure


def curves(section: Section) -> Figure | None:
    """Draw the monitors of the runs that rows are of over optimiser steps, a line a run; None where no run lies there.

    The loss on valid is in units of its first value, since objectives have units of their own.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    found = {(row.objective, row.encoder, row.seed, row.run) for row in section.rows if row.run}
    logs = [
        ((o, e), _logged(Path(run) / "metrics.csv"))
        for o, e, _, run in sorted(found, key=lambda f: (order(*f[:2]), *f[2:]))
    ]
    runs = [(label, logged) for label, logged in logs if logged]
    if not runs:
        return None
    looks = _colours(list(dict.fromkeys(label for label, _ in runs)))
    with mpl.rc_context(STYLE):
        height = max(2.4, 0.4 + 0.16 * len(looks))
        figure = Figure(figsize=(2.6 * len(MONITORS) + 1.6, height), layout="constrained")
        axes = figure.subplots(1, len(MONITORS))
        for axis, (name, said) in zip(axes, MONITORS.items(), strict=True):
            for label, logged in runs:
                steps, values = zip(*logged.get(name, [(np.nan, np.nan)]), strict=True)
                unit = values[0] if name == "valid/loss" and values[0] else 1.0
                colour, line = looks[label]
                look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": "o", "markersize": 2.5}
                axis.plot(steps, np.divide(values, unit), linewidth=1, label=" ".join(label), **look)
            axis.set(title=said, xlabel="optimiser steps")
        _legend(figure, axes)
    return figure


def _look(place: int) -> tuple[str, str]:
    """Return colour and dashes of the learned objective that stands at a place of the table."""
    return COLOURS[place % len(COLOURS)], ("-", "--", ":", "-.")[place // len(COLOURS) % 4]


def _logged(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a run logged, by name, as steps and values; nothing where the file is gone."""
    found: dict[str, list[tuple[int, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                found.setdefault(line["name"], []).append((int(line["step"]), float(line["value"])))
    return found


def _place(z: ArrayLike, row: Row) -> Array:
    """Return where standardised values lie on an axis: in physical units or their log10."""
    values = inverse(z, row)
    return np.log10(values) if row.scale == "log10" else values


def _frame(axis: Axes, rows: Sequence[Row], left: bool, bottom: bool) -> tuple[float, float]:
    """Set a parameter's axes, the range of its truth and half as much again, and return their ends."""
    truth = np.concatenate([_place(row.truth, row) for row in rows])
    ends = np.array([truth.min(), truth.max()])
    margin = 0.25 * (ends[1] - ends[0] or 1.0)
    edges = (float(ends[0] - margin), float(ends[1] + margin))
    ticks, names = _ticks(*edges, rows[0], ends)
    axis.set_xticks(ticks, names if bottom else [""] * len(names))
    axis.set_yticks(ticks, names if left else [""] * len(names))
    axis.tick_params(width=0.6, length=2.5)
    axis.set(xlim=edges, ylim=edges)
    axis.plot(edges, edges, color="black", linewidth=0.6, alpha=0.5, zorder=1)
    return edges


def _ticks(low: float, high: float, row: Row, ends: Array | None = None) -> tuple[Array, list[str]]:
    """Return where ticks stand between the ends of an axis and what they say: decades if there are two, or the ends."""
    log = row.scale == "log10"
    decades = np.arange(np.ceil(low), high + 1e-9) if log else np.empty(0)
    if len(decades) > 1:
        return decades, [f"$10^{{{int(decade)}}}$" for decade in decades]
    at = np.array([low, high]) if ends is None else ends
    return at, [f"{10**end if log else end:.3g}" for end in at]


def _points(axis: Axes, rows: Sequence[Row], edges: tuple[float, float], colour: str) -> None:
    if not rows:
        return
    x = np.concatenate([_place(row.truth, row) for row in rows])
    y = np.concatenate([_place(row.prediction, row) for row in rows])
    values, member, count = np.unique(x.round(6), return_inverse=True, return_counts=True)
    on_grid = len(values) < len(x) / 4
    if on_grid:  # side by side, over half of the way to the next value
        turn = np.argsort(np.argsort(member, kind="stable")) - (count.cumsum() - count)[member]
        x = x + ((turn + 0.5) / count[member] - 0.5) * 0.5 * min(np.diff(values), default=0.2 * np.ptp(edges))
    style: dict[str, Any] = {"color": colour, "alpha": 0.35, "linewidths": 0, "zorder": 2, "clip_on": False}
    below, above = y < edges[0], y > edges[1]
    for marker, size, some in (("o", 8, ~below & ~above), ("v", 14, below), ("^", 14, above)):
        axis.scatter(x[some], y[some].clip(*edges), s=size, marker=marker, **style)
    if len(x) <= CROWD:
        low, high = (
            np.concatenate([_place(ends, row) for ends, row in zip(z, rows, strict=True)]) for z in _spread(rows)
        )
        axis.vlines(x, low.clip(*edges), high.clip(*edges), color=colour, alpha=0.25, linewidth=0.6, zorder=1.5)
    if on_grid:
        medians = [np.median(y[member == n]).clip(*edges) for n in range(len(values))]
        axis.scatter(values, medians, s=28, marker="_", color="black", linewidths=1, zorder=3)


def _spread(rows: Sequence[Row]) -> Iterator[list[Array]]:
    """Yield the lower and the upper ends of a standard deviation over windows about each trajectory's prediction, z."""
    middle = [np.array(row.prediction) for row in rows]
    variance = [row.squared_error - (z - row.truth) ** 2 for z, row in zip(middle, rows, strict=True)]
    for sign in (-1, 1):
        yield [z + sign * np.sqrt(v.clip(0)) for z, v in zip(middle, variance, strict=True)]


def _corner(axis: Axes, cells: Sequence[Cell], *place: str) -> None:
    of = (*place, "window", "")
    same = (c for c in cells if plain(c) and (c.objective, c.encoder, c.probe, c.parameter, c.by, c.minus) == of)
    found = {cell.metric: cell.value for cell in same}
    said = f"MSE {found['mse']:.3f}\nR² {round(found['r2'], 2) + 0.0:.2f}" if found else "no rows"
    behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
    axis.text(0.03, 0.98, said, transform=axis.transAxes, va="top", fontsize=6.5, bbox=behind, zorder=4)
