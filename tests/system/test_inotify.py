"""Hints of a change: for the watched name, and for no other."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from turnout.system import inotify as notice_module
from turnout.system.inotify import Notice


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "registry.json"
    found.write_text("{}")
    return found


@pytest.fixture
def notice(path: Path) -> Iterator[Notice]:
    found = Notice.of(path)
    if found is None:
        pytest.skip("this file system gives no hints")
    yield found
    found.close()


def told(notice: Notice) -> bool:
    """Everything that was told up to now, as one answer."""
    concerned = False
    while select.select([notice.fileno()], [], [], 0)[0]:
        concerned |= notice.read()
    return concerned


def replace(path: Path) -> None:
    temp = path.with_name("temp")
    temp.write_text("{ }")
    temp.replace(path)


@pytest.mark.parametrize("change", [replace, lambda path: path.write_text("x"), Path.unlink])
def test_a_change_of_the_file_is_told(notice: Notice, path: Path, change: Callable[[Path], None]) -> None:
    assert not told(notice)
    change(path)
    assert told(notice)
    assert not told(notice)


def test_a_change_beside_it_is_not(notice: Notice, path: Path) -> None:
    path.with_name("registry.json.lock").write_text("x")
    path.with_name("other").write_text("x")
    assert not told(notice)
    assert notice.alive


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.json"
    link.parent.mkdir()
    link.symlink_to(path)
    notice = Notice.of(link)
    assert notice
    replace(path)
    assert told(notice)
    notice.close()


def test_a_directory_that_goes_ends_it_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "there" / "registry.json"
    path.parent.mkdir()
    notice = Notice.of(path)
    assert notice
    path.parent.rmdir()
    assert told(notice)
    assert not notice.alive
    notice.close()


def test_where_there_is_no_directory_or_no_such_file_system_there_is_none(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Notice.of(tmp_path / "none" / "registry.json") is None
    monkeypatch.setattr(notice_module, "_LOCAL", frozenset[int]())
    assert Notice.of(path) is None
    assert Notice.of(Path("/proc/self/status")) is None
