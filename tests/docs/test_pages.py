"""What a Markdown viewer would show as running text: a table without its header, a list within a paragraph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "bench" / "RESULTS.md"]


def prose_of(page: Path) -> Iterator[tuple[int, str]]:
    """Each line outside of code blocks, with its number."""
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_begins_with_a_header(page: Path) -> None:
    for is_table, lines in groupby(prose_of(page), key=lambda entry: entry[1].startswith("|")):
        rows = list(lines)
        if is_table:
            assert len(rows) > 1, rows[0]
            assert re.fullmatch(r"[|:\- ]+", rows[1][1]), f"line {rows[0][0]} continues no table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_item_of_a_numbered_list_begins_a_line(page: Path) -> None:
    assert [entry for entry in prose_of(page) if re.search(r"\S \d+\. \*\*", entry[1])] == []
