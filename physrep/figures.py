"""The report's figures: predicted against true parameters, and what the monitors of the runs said."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from physrep.metrics import Array
from physrep.results import Row, inverse
from physrep.tables import Cell, Section, order

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
CONTROLS = ("mean", "statistics", "random")
SIDE, GAP, TICKS, LEFT, TOP = 1.3, 0.15, 0.3, 1.0, 0.45  # inches: an axis, between axes, under a parameter, margins
STYLE: dict[Any, Any] = {"font.size": 8, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False}


def predictions(section: Section) -> Figure:
    """Draw each trajectory's mean prediction against its true value: a row for a parameter and probe, by objective.

    Physical units, spaced logarithmically where the parameter is standardised in log10. A point is a trajectory of one
    seed, one beyond the axes a triangle at their edge, a bar the median. MSE (standardised) and R2 are by window.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = sorted({(row.objective, row.encoder) for row in section.rows}, key=lambda label: order(*label))
    lines = sorted({(row.parameter, row.probe) for row in section.rows})
    shown = 2 if len({encoder for _, encoder in columns if encoder}) > 1 else 1
    learned = [label for label in columns if label[0] not in CONTROLS]
    width = LEFT + len(columns) * (SIDE + GAP)
    height = TOP + len(lines) * (SIDE + GAP) + len({row.parameter for row in section.rows}) * TICKS
    bottom = height - TOP + GAP
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        for i, (parameter, probe) in enumerate(lines):
            rows = [row for row in section.rows if row.parameter == parameter]
            last = i + 1 == len(lines) or lines[i + 1][0] != parameter
            bottom -= SIDE + GAP
            for j, label in enumerate(columns):
                box = (LEFT + j * (SIDE + GAP)) / width, bottom / height, SIDE / width, SIDE / height
                axis = figure.add_axes(box)
                edges = _frame(axis, rows, j == 0, last)
                colour = COLOURS[learned.index(label) % len(COLOURS)] if label in learned else GREY
                here = [row for row in rows if (row.objective, row.encoder, row.probe) == (*label, probe)]
                _points(axis, here, edges, colour)
                _corner(axis, section.cells, *label, probe, parameter)
                if i == 0:
                    axis.set_title("\n".join(filter(None, label[:shown])), fontsize=9, color=colour)
                if j == 0:
                    axis.set_ylabel(f"{parameter}\n{probe}")
            bottom -= TICKS * last
        figure.supxlabel("true", fontsize=9, y=0.03 / height, va="bottom")
        figure.supylabel("predicted", fontsize=9, x=0.06 / width, ha="left")
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
    learned = list(dict.fromkeys(label for label, _ in runs if label[0] not in CONTROLS))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(MONITORS) + 1.6, 2.4), layout="constrained")
        axes = figure.subplots(1, len(MONITORS))
        for axis, (name, said) in zip(axes, MONITORS.items(), strict=True):
            for label, logged in runs:
                steps, values = zip(*logged.get(name, [(np.nan, np.nan)]), strict=True)
                unit = values[0] if name == "valid/loss" and values[0] else 1.0
                colour, line = (GREY, "") if label not in learned else _look(learned.index(label))
                look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": "o", "markersize": 2.5}
                axis.plot(steps, np.divide(values, unit), linewidth=1, label=" ".join(label), **look)
            axis.set(title=said, xlabel="optimiser steps")
        handles, names = axes[-1].get_legend_handles_labels()
        once = dict(zip(names, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside right upper", frameon=False, fontsize=7)
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


def _place(z: Sequence[float], row: Row) -> Array:
    """Return where standardised values lie on an axis: in physical units or their log10."""
    values = inverse(z, row)
    return np.log10(values) if row.scale == "log10" else values


def _frame(axis: Axes, rows: Sequence[Row], left: bool, bottom: bool) -> tuple[float, float]:
    """Set a parameter's axes, the range of its truth and half as much again, and return their ends."""
    truth = np.concatenate([_place(row.truth, row) for row in rows])
    ends = np.array([truth.min(), truth.max()])
    margin = 0.25 * (ends[1] - ends[0] or 1.0)
    edges = (float(ends[0] - margin), float(ends[1] + margin))
    decades = np.arange(np.ceil(edges[0]), edges[1]) if rows[0].scale == "log10" else np.empty(0)
    if len(decades) > 1:
        ticks, names = decades, [f"$10^{{{decade:.0f}}}$" for decade in decades]
    else:
        ticks = ends
        names = [f"{10**end if rows[0].scale == 'log10' else end:.3g}" for end in ends]
    axis.set_xticks(ticks, names if bottom else [""] * len(names))
    axis.set_yticks(ticks, names if left else [""] * len(names))
    axis.tick_params(width=0.6, length=2.5)
    axis.set(xlim=edges, ylim=edges)
    axis.plot(edges, edges, color="black", linewidth=0.6, alpha=0.5, zorder=1)
    return edges


def _points(axis: Axes, rows: Sequence[Row], edges: tuple[float, float], colour: str) -> None:
    if not rows:
        return
    x = np.concatenate([_place(row.truth, row) for row in rows])
    y = np.concatenate([_place(row.prediction, row) for row in rows])
    style: dict[str, Any] = {"color": colour, "alpha": 0.35, "linewidths": 0, "zorder": 2, "clip_on": False}
    below, above = y < edges[0], y > edges[1]
    for marker, size, some in (("o", 8, ~below & ~above), ("v", 14, below), ("^", 14, above)):
        axis.scatter(x[some], y[some].clip(*edges), s=size, marker=marker, **style)
    values, member = np.unique(x.round(6), return_inverse=True)
    if len(values) < len(x) / 4:
        medians = [np.median(y[member == n]).clip(*edges) for n in range(len(values))]
        axis.scatter(values, medians, s=28, marker="_", color="black", linewidths=1, zorder=3)


def _corner(axis: Axes, cells: Sequence[Cell], *place: str) -> None:
    found = {c.metric: c.value for c in cells
             if (c.objective, c.encoder, c.probe, c.parameter, c.by, c.minus) == (*place, "window", "")}  # fmt: skip
    said = f"MSE {found['mse']:.3f}\nR² {round(found['r2'], 2) + 0.0:.2f}" if found else "no rows"
    behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
    axis.text(0.03, 0.98, said, transform=axis.transAxes, va="top", fontsize=6.5, bbox=behind, zorder=4)
