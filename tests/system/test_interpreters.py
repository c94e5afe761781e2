"""Which Python runs the next router: the newest that is there, and that has not failed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from turnout.errors import SpawnError
from turnout.system.interpreters import Interpreters


def test_one_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.symlink_to(sys.executable)
    interpreters = Interpreters(str(old))
    assert interpreters.choose() == str(old)
    assert interpreters.add(str(new))
    assert not interpreters.add(str(new))
    assert interpreters.choose() == str(new)
    new.unlink()
    assert interpreters.choose() == str(old)
    old.unlink()
    with pytest.raises(SpawnError, match=f"{new}"):
        interpreters.choose()


def test_one_with_which_nothing_came_up_is_tried_last(tmp_path: Path) -> None:
    old, new = shutil.copy(sys.executable, tmp_path / "old"), shutil.copy(sys.executable, tmp_path / "new")
    interpreters = Interpreters(str(old))
    interpreters.add(str(new))
    interpreters.failed(str(new))
    assert interpreters.choose() == str(old)
    interpreters.failed(str(old))
    assert interpreters.choose() == str(new), "of those that failed the newest"
    assert interpreters.add(str(old)), "a verb names it, so it has worked a moment ago"
    assert interpreters.choose() == str(old)
