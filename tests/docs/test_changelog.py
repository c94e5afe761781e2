"""The changelog has a section for this version, and is in order."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

from turnout import __version__

CHANGELOG = Path(__file__).parent.parent.parent / "CHANGELOG.md"
HEADING = re.compile(r"## (\d+)\.(\d+)\.(\d+) \((unreleased|\d{4}-\d\d-\d\d)\)")


def test_this_version_has_its_section_and_every_section_its_day() -> None:
    found = [line for line in CHANGELOG.read_text().splitlines() if line.startswith("## ")]
    parsed = [HEADING.fullmatch(line) for line in found]
    assert all(parsed), found
    sections = [match.groups() for match in parsed if match]
    assert ".".join(sections[0][:3]) == __version__, "the newest section is this version's"
    versions = [tuple(map(int, section[:3])) for section in sections]
    assert versions == sorted(set(versions), reverse=True), "newest first, each once"
    assert all(section[3] != "unreleased" for section in sections[1:]), "only the newest may be open"
    days = [dt.date.fromisoformat(section[3]) for section in sections if section[3] != "unreleased"]
    assert days == sorted(days, reverse=True)
