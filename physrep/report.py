"""Make the tables and figures of an experiment's results.jsonl.

Reads <runs>/<experiment>/results.jsonl (or results=FILE) and writes report.html, which holds everything, table.md,
table.csv, table.tex (for booktabs) and the figures into <runs>/<experiment>/report (or out=FOLDER). They are a function
of the rows. Where runs still lie beside them, the page also draws their curves, and what the experiment plans and the
rows lack is said.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from physrep import errors
from physrep.config import cli, home
from physrep.errors import UserError
from physrep.files import whole, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from physrep.results import Row
    from physrep.sweep import Cell
    from physrep.tables import Section


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.report`."""
    cfg = cli(argv, base="report", doc=__doc__)
    from physrep.render import text
    from physrep.results import read
    from physrep.tables import table

    if cfg.resamples < 1:
        raise UserError(f"resamples={cfg.resamples}: an interval needs samples; 1000 or more are usual")
    results = Path(cfg.results or Path(cfg.runs) / cfg.experiment / "results.jsonl")
    rows = read(results) if results.exists() else []
    if not rows:
        kept = home() / "experiments" / cfg.experiment / "results.jsonl"
        hint = f", or take those that come with the code: results={kept}" if kept.exists() else ""
        raise UserError(f"{results}: no results; make them: python -m physrep.probe experiment={cfg.experiment}{hint}")
    sections = table(rows, cfg.resamples, beside=cfg.published)
    missing = [] if cfg.results else lacks(str(cfg.experiment), str(cfg.runs), rows)
    print(text(sections, missing=missing), end="\n\n")
    for path in write(str(cfg.experiment), sections, Path(cfg.out or results.parent / "report"), missing):
        print(path)


def lacks(experiment: str, runs: str, rows: Sequence[Row]) -> list[str]:
    """Say which runs that the experiment plans have no row, and why; nothing where none of them was begun there."""
    from physrep.sweep import cells, planned, statuses
    from physrep.tables import plain

    try:
        if not (known := planned(Path(runs) / experiment)):
            known = cells([f"experiment={experiment}", f"runs={runs}"])
            if not any(cell.folder.exists() or cell.log.exists() for cell in known):
                return []
        states = statuses(known)
    except UserError as error:  # rows are enough for a report
        return [f"Warning: what the experiment plans is not known ({error})."]
    asked = {(row.probe, row.parameter, row.data) for row in rows if row.run and plain(row)}
    left: dict[str, tuple[Cell, str]] = {}
    each: list[str] = []
    for cell, state in zip(known, states, strict=True):
        own = {(row.probe, row.parameter, row.data) for row in rows if Path(row.run).name == cell.folder.name}
        if not own:
            left[cell.folder.name] = cell, state
            each.append(state.replace("done", "not probed"))
        elif any(data == next(iter(own))[2] for *_, data in asked - own):
            left[cell.folder.name] = cell, "probed in part"
            each.append("probed in part")
    if not left:
        return []
    counted = ", ".join(f"{count} {one}" for one, count in Counter(each).items())
    said = [f"Missing: of {len(known)} planned runs {counted}."]
    said += [f"Failed: {name}: {cell.last_line()[:200]}" for name, (cell, one) in left.items() if one == "failed"]
    return said


def pictures(sections: Sequence[Section]) -> list[dict[str, str]]:
    """Return for each section its figures' captions by file name."""
    from physrep.figures import drawn

    ends = [f"_{i}" if len(sections) > 1 else "" for i in range(1, len(sections) + 1)]
    return [
        {f"{name}{end}.png": caption for name, (_, caption) in drawn(section).items()}
        for section, end in zip(sections, ends, strict=True)
    ]


def write(name: str, sections: Sequence[Section], out: Path, missing: Sequence[str] = ()) -> list[Path]:
    """Write tables, figures and the page into a folder, each whole or not at all; return their paths."""
    from physrep.figures import curves, drawn
    from physrep.page import Picture, page
    from physrep.render import as_csv, latex, markdown

    names = pictures(sections)
    write_text(out / "table.md", markdown(sections, names, missing))
    write_text(out / "table.csv", as_csv(sections))
    write_text(out / "table.tex", latex(sections, missing))
    shown: list[list[Picture]] = []
    for section, files in zip(sections, names, strict=True):
        shown.append([])
        for file, (draw, caption) in zip(files, drawn(section).values(), strict=True):
            figure = draw(section)
            with whole(out / file) as temporary:
                figure.savefig(temporary, format="png", dpi=200)
            shown[-1].append(Picture(caption, png(figure)))
        if monitors := curves(section):
            shown[-1].append(Picture("What the monitors of the runs said during training.", png(monitors)))
    write_text(out / "report.html", page(name, sections, shown, missing))
    return [
        out / file for file in ("report.html", "table.md", "table.csv", "table.tex", *(f for n in names for f in n))
    ]


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG for the page."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


if __name__ == "__main__":
    errors.run(main)
