"""Committed tables follow from their committed rows, and the README's from the tables."""

from pathlib import Path

import pytest

from physrep.config import compose
from physrep.render import markdown
from physrep.report import lacks, pictures
from physrep.results import read
from physrep.tables import table

FOLDERS = sorted(p.parent for p in Path("experiments").glob("*/results.jsonl"))


@pytest.mark.parametrize("folder", FOLDERS, ids=[f.name for f in FOLDERS])
def test_the_table_is_a_function_of_the_rows(folder):
    rows = read(folder / "results.jsonl")
    sections = table(rows, compose([], "report").resamples)
    names = pictures(sections)
    assert markdown(sections, names, lacks(folder, rows, None)) == (folder / "table.md").read_text()
    assert all((folder / name).stat().st_size > 10_000 for some in names for name in some)


def test_all_committed_rows_can_be_read():
    files = sorted(Path("experiments").glob("*/*.jsonl"))
    assert len(files) > len(FOLDERS) and all(map(read, files))


def test_the_readme_shows_the_demos_table():
    lines = (Path("experiments/demo/table.md").read_text()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| objective"))
    shown = lines[start : start + 7]
    readme = Path("README.md").read_text()
    assert all(line in readme for line in shown)
    assert "| views |" in shown[-1]
