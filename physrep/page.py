"""The report as one HTML page that needs nothing beside it: tables, figures, protocol, where each number is from."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from physrep.render import show
from physrep.results import Row
from physrep.tables import Grid, Section, best, grids, order, title

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 96rem; margin: 2rem auto; padding: 0 1.5rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; }
img { max-width: max(100%, 56rem); height: auto; background: white; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th.l, td.l { text-align: left; } thead th { border-bottom-width: 2px; vertical-align: bottom; }
.l:first-child { position: sticky; left: 0; background: Canvas; }
tbody tr:hover { background: var(--soft); } td small { opacity: .65; } td.best { font-weight: 700; }
th[colspan] { text-align: center; } .g { border-left: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; margin: .6rem 0; } h2 ~ p { font-weight: 600; }
li.warning { font-weight: 600; } code { font-size: .85em; }
"""
ALARMS = ("Warning", "Missing", "Failed", "Not probed")  # how notes begin that must not be overlooked


class Picture(NamedTuple):
    """A figure of a section: what it shows and its PNG."""

    caption: str
    png: bytes


def page(
    name: str, sections: Sequence[Section], pictures: Sequence[Sequence[Picture]], missing: Sequence[str] = ()
) -> str:
    """Return the page of an experiment, what is missing first, with the pictures of each section inside it."""
    names = [escape(title(section, sections)) for section in sections]
    contents = "".join(f'<li><a href="#s{i}">{said}</a></li>' for i, said in enumerate(names))
    parts = [f"<h1>physrep: {escape(name)}</h1>", _list(missing) if missing else ""]
    parts.append(f"<ul>{contents}</ul>" if len(sections) > 1 else "")
    for i, (section, said, shown) in enumerate(zip(sections, names, pictures, strict=True)):
        made = grids(section)
        warnings = [note for note in section.notes if note.startswith("Warning")]
        parts += [f'<h2 id="s{i}">{said}</h2>', _list(warnings) if warnings else ""]
        parts += [f"<p>{escape(grid.title)}</p>{_table(grid)}" for grid in made[:1]]
        parts += map(_picture, shown)
        parts += [_details(grid.title, _table(grid)) for grid in made[1:]]
        parts.append(_details("Protocol", _list(note for note in section.notes if note not in warnings), opened=True))
        parts.append(_details("Where each number is from", _provenance(section.rows)))
    body = "\n".join(filter(None, parts))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(name)}</title>'
    head += f"<style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _details(summary: str, body: str, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{body}</details>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    said = escape(picture.caption)
    image = f'<img alt="{said}" src="data:image/png;base64,{data}">'
    return f'<figure class="wide">{image}<figcaption>{said}</figcaption></figure>'


def _table(grid: Grid) -> str:
    top, probes = best(grid), [probe for probe, _ in grid.heads]
    firsts = ["g" if probes.index(probe) == i else "" for i, probe in enumerate(probes)]
    above = "".join(f'<th class="l" rowspan="2">{escape(name)}</th>' for name in grid.stub)
    above += "".join(f'<th class="g" colspan="{span}">{escape(probe)}</th>' for probe, span in Counter(probes).items())
    below = "".join(
        f"<th{_class(first)}>{escape(name)}</th>" for (_, name), first in zip(grid.heads, firsts, strict=True)
    )
    lines = []
    for labels, cells in grid.lines:
        line = "".join(f'<td class="l">{escape(label)}</td>' for label in labels)
        for cell, first in zip(cells, firsts, strict=True):
            value, _, interval = show(cell).partition(" ")
            mark = _class(first, "best" if cell in top else "")
            line += f"<td{mark}>{escape(value)} <small>{escape(interval)}</small></td>"
        lines.append(f"<tr>{line}</tr>")
    head = f"<thead><tr>{above}</tr><tr>{below}</tr></thead>"
    return _wide(f"{head}<tbody>{''.join(lines)}</tbody>")


def _class(*names: str) -> str:
    kept = " ".join(filter(None, names))
    return f' class="{kept}"' if kept else ""


def _list(notes: Iterable[str]) -> str:
    marks = ((_class("warning" if note.startswith(ALARMS) else ""), note) for note in notes)
    return f"<ul>{''.join(f'<li{mark}>{escape(note)}</li>' for mark, note in marks)}</ul>"


def _provenance(rows: Sequence[Row]) -> str:
    names = ["objective", "encoder", "probe", "seed", "labels", "layer", "parameter", "value"]
    names += ["run", "step", "config", "commit", "chosen", "key"]
    head = "".join(f'<th class="l">{name}</th>' for name in names)
    lines = []
    for row in sorted(rows, key=lambda row: (order(row.objective), *(getattr(row, name) for name in names[1:7]))):
        said = {name: getattr(row, name) for name in names}
        said |= {"value": f"{row.value:.4g}", "chosen": ", ".join(f"{k} {v}" for k, v in row.chosen.items())}
        lines.append("<tr>" + "".join(f'<td class="l">{escape(str(said[name]))}</td>' for name in names) + "</tr>")
    return _wide(f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>")


def _wide(table: str) -> str:
    return f'<div class="wide"><table>{table}</table></div>'
