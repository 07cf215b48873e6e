"""Make the tables and the figure of an experiment's results.jsonl.

Reads <runs>/<experiment>/results.jsonl (or results=FILE) and writes report.html, which holds everything, table.md,
table.csv, table.tex (for booktabs) and predictions.png into <runs>/<experiment>/report (or out=FOLDER). They are a
function of the rows; the page also draws the curves of those runs that still lie where the rows say.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from physrep import errors
from physrep.config import cli
from physrep.errors import UserError
from physrep.files import whole, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        raise UserError(f"{results}: no results; make them: python -m physrep.probe experiment={cfg.experiment}")
    sections = table(rows, cfg.resamples)
    print(text(sections), end="\n\n")
    for path in write(str(cfg.experiment), sections, Path(cfg.out or results.parent / "report")):
        print(path)


def pictures(sections: int) -> list[str]:
    """Return the names of the figures of so many sections."""
    return [f"predictions{f'_{i}' if sections > 1 else ''}.png" for i in range(1, sections + 1)]


def write(name: str, sections: Sequence[Section], out: Path) -> list[Path]:
    """Write tables, a figure a section and the page into a folder, each whole or not at all; return their paths."""
    from physrep.figures import curves, predictions
    from physrep.page import Picture, page
    from physrep.render import as_csv, latex, markdown

    names = pictures(len(sections))
    write_text(out / "table.md", markdown(sections, names))
    write_text(out / "table.csv", as_csv(sections))
    write_text(out / "table.tex", latex(sections))
    shown = []
    for section, place in zip(sections, names, strict=True):
        figure = predictions(section)
        with whole(out / place) as temporary:
            figure.savefig(temporary, format="png", dpi=200)
        shown.append([Picture("Predicted against true parameters, a point a trajectory and seed.", png(figure))])
        if monitors := curves(section):
            shown[-1].append(Picture("What the monitors of the runs said during training.", png(monitors)))
    write_text(out / "report.html", page(name, sections, shown))
    return [out / place for place in ("report.html", "table.md", "table.csv", "table.tex", *names)]


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG for the page."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


if __name__ == "__main__":
    errors.run(main)
