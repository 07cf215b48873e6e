"""Make the tables and figures of an experiment's results.jsonl.

Reads <runs>/<experiment>/results.jsonl (or results=FILE) and writes report.html, which holds everything, table.md,
table.csv, table.tex (for booktabs) and the figures into <runs>/<experiment>/report (or out=FOLDER). They are a function
of the rows. Where runs still lie beside them, the page also draws their curves, and what the experiment plans and the
rows lack is said.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from physrep import errors
from physrep.config import cli, home
from physrep.errors import UserError, did_you_mean
from physrep.files import whole, write_text
from physrep.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from physrep.results import Row
    from physrep.sweep import Cell
    from physrep.tables import Section

Place = tuple[str, str, float, str]  # a probe, a parameter, a share of labels, a layer


def main(argv: Sequence[str]) -> None:
    """Run `python -m physrep.report`."""
    cfg = cli(argv, base="report", doc=__doc__)
    from physrep.render import text
    from physrep.results import read
    from physrep.tables import BASELINES, table

    if cfg.resamples < 1:
        raise UserError(f"resamples={cfg.resamples}: an interval needs samples; 1000 or more are usual")
    results = Path(cfg.results or Path(cfg.runs) / cfg.experiment / "results.jsonl")
    rows = read(results) if results.exists() else []
    missing = lacks(results.parent, rows, None if cfg.results else str(cfg.experiment))
    if not rows:
        print(*missing, sep="\n")
        kept = home() / "experiments" / cfg.experiment / "results.jsonl"
        hint = f", or take those that come with the code: results={kept}" if kept.exists() else ""
        raise UserError(f"{results}: no results; make them: python -m physrep.probe experiment={cfg.experiment}{hint}")
    known = {row.objective for row in rows} | {*BASELINES}
    if wrong := [str(name) for name in cfg.baselines if name not in known]:
        raise UserError(f"baselines: {results} has no rows of {wrong[0]}{did_you_mean(wrong[0], known)}")
    sections = table(rows, cfg.resamples, beside=cfg.published, baselines=cfg.baselines)
    print(text(sections, missing=missing), end="\n\n")
    for path in write(str(cfg.experiment), sections, Path(cfg.out or results.parent / "report"), missing):
        print(path)


def lacks(folder: Path, rows: Sequence[Row], experiment: str | None) -> list[str]:
    """Say which runs that were planned in a folder have no row, or not all that others have, and why.

    The plan is what sweeps were asked for; without one the experiment's, unless none of its runs was begun there.
    """
    from physrep.sweep import cells, planned, statuses

    try:
        known = planned(folder)
        if not known and experiment:
            known = cells([f"experiment={experiment}", f"runs={folder.parent}"])
            known = known if any(cell.folder.exists() or cell.log.exists() for cell in known) else []
        states = statuses(known)
    except UserError as error:  # rows are enough for a report
        return [f"Warning: what the experiment plans is not known ({error})."]
    of_run: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_run[Path(row.run).name].append(row)
    lack = [_lack(cell, state, of_run[cell.folder.name], rows) for cell, state in zip(known, states, strict=True)]
    counted = ", ".join(f"{count} {each}" for each, count in Counter(filter(None, lack)).items())
    said = [f"Missing: of {len(known)} planned runs {counted}."] if counted else []
    for cell, each in zip(known, lack, strict=True):
        if each == "failed":
            said.append(f"Failed: {cell.folder.name}: {cell.why()[:200]}")
        elif each in ("not probed", "probed in part") and cell.log.exists():
            line = cell.last_line()
            said += [f"Not probed: {cell.folder.name}: {line[:200]}"] if line.startswith("physrep: ") else []
    return said


def _lack(cell: Cell, state: str, held: Sequence[Row], rows: Sequence[Row]) -> str:
    """Say in a word what a planned run lacks that `held` rows, of all rows; nothing is ""."""
    own = [row for row in held if cell.config in ("", row.config)]
    if own:
        return "probed in part" if _asked(own, rows) - {*map(_place, own)} else ""
    return "of another config" if held else state.replace("done", "not probed")


def _asked(own: Sequence[Row], rows: Sequence[Row]) -> set[Place]:
    """Return what a run with these rows should have rows for: all that others on its data have, where it can."""
    data, encoder, supervised = own[0].data, own[0].encoder, own[0].objective == "supervised"
    shares = {row.labels for row in own}  # those that it was trained with, if it was told them
    return {
        _place(row)
        for row in rows
        if row.run
        and row.data == data
        and (not row.layer or row.encoder == encoder)
        and (row.labels in shares if supervised else row.objective != "supervised")
    }


def _place(row: Row) -> Place:
    return row.probe, row.parameter, row.labels, row.layer


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
    for section, files in track([*zip(sections, names, strict=True)], "figures"):
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
