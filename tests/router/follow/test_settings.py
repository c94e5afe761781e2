"""Settings that could not be read at one look are read at the next one, and a SIGHUP is answered by a look after it."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from support import eventually
from turnout.config.file import load_file
from turnout.config.settings import Settings, dump_settings
from turnout.router.follow.settings import OpenedSettings, SettingsFollower
from turnout.state.home import Home, ServiceHome
from turnout.system import files

TOML = """
[service.cache]
listen = "127.0.0.1:5000"
command = ["server"]
hold = {{ max = {hold} }}
"""


class Broken:
    """The system's open(2) of one file, which fails ``left`` times with ``code``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.code = errno.EMFILE
        self.name = "settings.json"
        self.opened = 0
        self._open = files.open_regular
        monkeypatch.setattr(files, "open_regular", self.open)

    def open(self, path: Path) -> int:
        if path.name == self.name:
            self.opened += 1
            if self.left:
                self.left -= 1
                raise OSError(self.code, os.strerror(self.code), str(path))
        return self._open(path)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    return Broken(monkeypatch)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "turnout.toml"
    write_toml(path, 9)
    return path


@pytest.fixture
def home(tmp_path: Path, toml: Path) -> ServiceHome:
    home = Home(tmp_path / "home").service("cache")
    home.create()
    write(home, load_file(toml)["cache"].settings)
    return home


@pytest.fixture
def live(home: ServiceHome) -> SettingsFollower:
    """Looked at until there is nothing new: a file that is young is read twice."""
    found = SettingsFollower(OpenedSettings.read(home), "relay", lambda: None)
    settle(found)
    return found


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[str], int]:
    caplog.set_level(logging.INFO)
    return lambda part: sum(part in record.getMessage() for record in caplog.records)


def write(home: ServiceHome, settings: Settings) -> None:
    home.settings.write_bytes(dump_settings(settings))


def write_toml(path: Path, hold: int) -> None:
    path.write_text(TOML.format(hold=hold))


def past_the_tick() -> None:
    """Let two ticks of the kernel's clock pass: nothing hides behind the same time stamp any more."""
    time.sleep(0.03)


def settle(live: SettingsFollower) -> None:
    def nothing_new() -> bool:
        written = live.look_at_settings()
        if written:
            live.take(written)
        look = live.begin_look()()
        live.take_file(live.settings, look)
        return not written and look.found is None

    eventually(nothing_new)
    past_the_tick()
    eventually(nothing_new)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM])
def test_settings_that_could_not_be_read_once_are_read_with_the_next_look(
    live: SettingsFollower, home: ServiceHome, broken: Broken, said: Callable[[str], int], code: int
) -> None:
    broken.code, broken.left = code, 10**6
    write(home, msgspec.structs.replace(live.settings, hold_max=77))
    past_the_tick()
    for _ in range(5):
        written = live.look_at_settings()
        if written:
            live.take(written)
    assert said("the old settings stay") <= 2, "a young file is reported twice"
    assert broken.opened >= 5
    broken.left = 0
    written = live.look_at_settings()
    assert written
    live.take(written)
    assert live.settings.hold_max == 77
    assert live.look_at_settings() is None


def test_a_damaged_file_is_not_read_over_and_over(live: SettingsFollower, home: ServiceHome, broken: Broken) -> None:
    home.settings.write_text("{")
    eventually(lambda: live.look_at_settings() is None)
    past_the_tick()
    eventually(lambda: live.look_at_settings() is None)
    broken.opened = 0
    assert live.look_at_settings() is None
    assert broken.opened == 0


def test_a_configuration_file_that_could_not_be_read_once_is_read_with_the_next_look(
    live: SettingsFollower, toml: Path, broken: Broken, said: Callable[[str], int]
) -> None:
    broken.name, broken.left = toml.name, 10**6
    write_toml(toml, 10)
    past_the_tick()
    for _ in range(5):
        live.take_file(live.settings, live.begin_look()())
    assert (live.settings.hold_max, said("the old settings stay")) == (9, 1)
    broken.left = 0
    live.take_file(live.settings, live.begin_look()())
    assert live.settings.hold_max == 10
    assert live.last.error == ""


def test_a_reload_that_was_asked_for_while_no_look_was_to_be_had_comes_with_the_next_one(
    live: SettingsFollower, said: Callable[[str], int]
) -> None:
    live.reload()
    live.begin_look()  # the thread's queue is full, or there is no thread
    live.take_file(live.settings, live.begin_look()())
    assert said("reloaded:") == 1
    live.take_file(live.settings, live.begin_look()())
    assert said("reloaded:") == 1, "once for each time that it was asked for"


def test_a_reload_that_was_asked_for_during_a_look_comes_with_the_next_one(
    live: SettingsFollower, said: Callable[[str], int]
) -> None:
    look = live.begin_look()
    live.reload()
    live.take_file(live.settings, look())
    assert said("reloaded:") == 0
    live.take_file(live.settings, live.begin_look()())
    assert said("reloaded:") == 1


def test_a_reload_whose_answer_a_verb_overtook_comes_with_the_next_look(
    live: SettingsFollower, home: ServiceHome, said: Callable[[str], int]
) -> None:
    before = live.settings
    live.reload()
    look = live.begin_look()()
    write(home, msgspec.structs.replace(before, hold_max=8))
    written = live.look_at_settings()
    assert written
    live.take(written)
    live.take_file(before, look)
    assert said("reloaded:") == 0
    live.take_file(live.settings, live.begin_look()())
    assert said("reloaded:") == 1
