"""The page is opened by way of a private file; the browser is a fake."""

from __future__ import annotations

import stat
import webbrowser
from pathlib import Path

import pytest

from turnout.dashboard.opening import has_screen, open_in_browser, opener

URL = "http://127.0.0.1:8474/#se<cret"


class Browser:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.error: Exception | None = None
        monkeypatch.setattr(webbrowser, "open", self.open)

    def open(self, url: str) -> bool:
        if self.error:
            raise self.error
        self.opened.append(url)
        return True


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Browser:
    return Browser(monkeypatch)


def test_the_browser_gets_a_file_that_only_its_owner_may_read_and_which_leads_on(
    tmp_path: Path, browser: Browser
) -> None:
    path = tmp_path / "page.html"
    assert open_in_browser(URL, path)
    assert browser.opened == [path.as_uri()]
    assert "se<cret" not in browser.opened[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "url=http://127.0.0.1:8474/#se&lt;cret" in path.read_text()


def test_a_file_that_was_planted_there_is_replaced_and_never_written_through(tmp_path: Path, browser: Browser) -> None:
    victim, path = tmp_path / "victim", tmp_path / "page.html"
    victim.write_text("mine")
    path.symlink_to(victim)
    assert open_in_browser(URL, path)
    assert victim.read_text() == "mine"
    assert not path.is_symlink()
    assert browser.opened


def test_where_there_is_no_browser_or_no_room_that_is_the_answer(tmp_path: Path, browser: Browser) -> None:
    assert not open_in_browser(URL, tmp_path / "missing" / "page.html")
    browser.error = webbrowser.Error("could not locate runnable browser")
    assert not open_in_browser(URL, tmp_path / "page.html")


def test_the_file_is_gone_at_the_end_whatever_happens(tmp_path: Path) -> None:
    def use() -> None:
        with opener(tmp_path) as path:
            path.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert list(tmp_path.iterdir()) == []


def test_a_browser_opens_a_window_where_a_display_or_a_browser_is_named() -> None:
    assert has_screen({"WAYLAND_DISPLAY": "wayland-0"})
    assert has_screen({"BROWSER": "firefox"})
    assert not has_screen({"DISPLAY": "", "TERM": "xterm"})
