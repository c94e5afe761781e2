"""How a keeper that goes down stops daemons: by the settings in force, which it reads with the standard library."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from turnout.config.settings import Address, Settings, dump_settings, load_settings
from turnout.keeper.shutdown import DEFAULT_TERMS, StopTerms, stop_terms
from turnout.state.home import Home, ServiceHome
from turnout.system.files import Files, write_durably

SETTINGS = Settings(
    name="a", listen=(Address("127.0.0.1", 47000),), stop_signal="QUIT", stop_grace_s=4.0, drain_grace_s=3.0
)


@pytest.fixture
def home(tmp_path: Path) -> ServiceHome:
    made = Home(tmp_path).service("a")
    made.create()
    return made


def terms(home: ServiceHome, data: bytes) -> StopTerms:
    write_durably(Files(), home.settings, data, follows_links=False)
    return stop_terms(home)


def test_a_daemon_is_stopped_by_the_settings_that_a_verb_wrote(home: ServiceHome) -> None:
    assert terms(home, dump_settings(SETTINGS)) == StopTerms(signal.SIGQUIT, 4.0, 7.0)


def test_settings_that_0_1_0_stored_are_read_too(home: ServiceHome) -> None:
    stored = (Path(__file__).parents[1] / "config/every_key/settings.json").read_bytes()
    assert terms(home, stored) == StopTerms(signal.SIGQUIT, 90.0, 180.0)


def test_a_setting_that_the_file_lacks_has_the_default_that_it_has_everywhere_else(home: ServiceHome) -> None:
    data = b'{"name": "a", "listen": [], "stop_signal": "QUIT"}'
    settings = load_settings(data)
    expected = StopTerms(signal.SIGQUIT, settings.stop_grace_s, settings.stop_grace_s + settings.drain_grace_s)
    assert terms(home, data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        dump_settings(SETTINGS).replace(b"QUIT", b"PLEASE"),
        dump_settings(SETTINGS).replace(b"4.0", b"[]"),
        dump_settings(SETTINGS).replace(b"3.0", b"9" * 400),
    ],
    ids=["empty", "no object", "no UTF-8", "too deep", "no signal", "no number", "too large"],
)
def test_settings_that_cannot_be_read_leave_the_defaults_of_the_keeper(home: ServiceHome, data: bytes) -> None:
    assert terms(home, data) == DEFAULT_TERMS


def test_a_service_without_settings_is_stopped_by_the_defaults_of_the_keeper(home: ServiceHome) -> None:
    assert stop_terms(home) == DEFAULT_TERMS
