"""Tables of results as Markdown, LaTeX, CSV and text."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields

from physrep.tables import COST, SPACE, Cell, Grid, Section, best, grids, title


def show(cell: Cell | None) -> str:
    """Print a cell: `0.231 [0.198, 0.270]`, three digits or decimals, `*` if a difference's interval excludes 0.

    Weights, steps and windows are counted in full.
    """
    if cell is None or math.isnan(cell.value):
        return "–"
    if cell.metric in ("weights", "steps", "windows"):
        return f"{cell.value:,.0f}"
    size = math.floor(math.log10(abs(cell.value))) if cell.value else 0
    signed = cell.metric == "r2" or cell.minus
    decimals = 2 - size if cell.metric in ("mae", *COST, *SPACE) or (size < -2 and not signed) else 3

    def digits(x: float) -> str:
        if size >= 6 or decimals > 6:
            return f"{x:.2e}"
        return f"{round(x, decimals) + 0.0:.{max(decimals, 0)}f}"  # + 0.0: no -0.000

    if math.isnan(cell.low):
        return digits(cell.value)
    sure = " *" if cell.minus and (cell.low > 0 or cell.high < 0) else ""
    return f"{digits(cell.value)} [{digits(cell.low)}, {digits(cell.high)}]{sure}"


def markdown(
    sections: Sequence[Section], figures: Sequence[Mapping[str, str]] = (), missing: Sequence[str] = ()
) -> str:
    """Return the tables in Markdown, the best of a column (and parameter) in bold.

    Each section's `figures` say what they show, by file name; what is `missing` comes first.
    """
    parts = ["\n".join(f"- {note}" for note in missing)] if missing else []
    for i, section in enumerate(sections):
        parts.append(f"## {title(section, sections)}")
        for grid in grids(section):
            top = best(grid)
            head = [*grid.stub, *(f"{probe}: {name}" for probe, name in grid.heads)]
            body = []
            for labels, cells in grid.lines:
                shown = [(cell in top, show(cell).replace("*", "\\*")) for cell in cells]
                body.append([*labels, *(f"**{cell}**" if bold else cell for bold, cell in shown)])
            rule = ["---"] * len(grid.stub) + ["---:"] * len(grid.heads)
            lines = [f"| {' | '.join(line)} |" for line in (head, rule, *body)]
            parts.append("\n".join([f"### {grid.title}\n", *lines]))
        parts += [f"![{caption}]({name})" for some in figures[i : i + 1] for name, caption in some.items()]
        parts.append("\n".join(f"- {note}" for note in section.notes))
    return "\n\n".join(parts) + "\n"


def text(sections: Sequence[Section], width: int = 160, missing: Sequence[str] = ()) -> str:
    """Return what is missing and the tables for a terminal, wider ones a block a probe, and no wider than `width`."""
    parts = ["\n".join(textwrap.fill(note, width, subsequent_indent="  ") for note in missing)] if missing else []
    for section in sections:
        parts.append(title(section, sections))
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
    about = ("data", "splits", "split", "fingerprint")
    names = [*about, *(field.name for field in fields(Cell))]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for section in sections:
        for cell in [*section.cells, *section.published]:
            values = {name: "" if str(value) == "nan" else value for name, value in asdict(cell).items()}
            writer.writerow({name: getattr(section, name) for name in about} | values)
    return out.getvalue()


def latex(sections: Sequence[Section], missing: Sequence[str] = ()) -> str:
    """Return the tables in LaTeX, for the package booktabs, one float a table, with its notes in the caption."""
    parts = ["\n".join(["% needs \\usepackage{booktabs, graphicx}", *(f"% {note}" for note in missing)])]
    for section in sections:
        for grid in grids(section):
            top = best(grid)
            body = []
            for labels, cells in grid.lines:
                shown = [(cell in top, _tex(show(cell))) for cell in cells]
                body.append([*map(_tex, labels), *(rf"\textbf{{{cell}}}" if bold else cell for bold, cell in shown)])
            head = [*map(_tex, grid.stub), *(_tex(f"{probe}: {name}") for probe, name in grid.heads)]
            columns = "l" * len(grid.stub) + "r" * len(grid.heads)
            caption = _tex(" ".join([f"{title(section, sections)}. {grid.title}.", *section.notes]))
            parts.append("\n".join([
                r"\begin{table}",
                rf"\caption{{{caption}}}",
                r"\centering\resizebox{\textwidth}{!}{%",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                f"{' & '.join(head)} \\\\",
                r"\midrule",
                *(f"{' & '.join(line)} \\\\" for line in body),
                r"\bottomrule",
                r"\end{tabular}}",
                r"\end{table}",
            ]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _tex(words: str) -> str:
    """Write words for LaTeX."""
    special = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "\\": r"\textbackslash{}", "–": "--", "*": "$^*$"}
    return "".join(special.get(letter, letter) for letter in words)
