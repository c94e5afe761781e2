"""How a keeper that goes down stops daemons: by the settings in force, which it reads with the standard library."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from process_support import Started
from support import eventually
from turnout.config.settings import Address, Settings, dump_settings, load_settings
from turnout.keeper import shutdown
from turnout.keeper.shutdown import DEFAULT_TERMS, StopTerms, run_down_verbs, start_down_verb, stop_terms
from turnout.state.home import Home, ServiceHome
from turnout.system.files import Files, write_durably
from turnout.system.process import identify, is_alive

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


class Verbs:
    """The verbs of services, each a process that sleeps. ``full``: no descriptor can be watched any more."""

    def __init__(self, started: Started) -> None:
        self.pids: dict[str, int] = {}
        self.watched: dict[int, Callable[[], None]] = {}
        self.dones = 0
        self.full = False
        self._started = started

    def start(self, service: str) -> int:
        if service == "broken":
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.pids[service] = self._started.run("sleep", "600").pid
        return os.pidfd_open(self.pids[service])

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.watched[fd] = action

    def done(self) -> None:
        self.dones += 1

    def run(self, *services: str) -> None:
        run_down_verbs(self.start, list(services), self.watch, self.watched.pop, self.done)


@pytest.fixture
def verbs() -> Iterator[Verbs]:
    with Started() as started:
        yield Verbs(started)


def test_all_services_go_down_at_once_and_it_is_done_with_the_last(verbs: Verbs) -> None:
    verbs.run("a", "b")
    assert set(verbs.pids) == {"a", "b"}
    for left in (1, 0):
        fd, ended = next(iter(verbs.watched.items()))
        ended()
        assert len(verbs.watched) == left
        assert verbs.dones == (0 if left else 1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_verb_that_cannot_be_started_keeps_no_other_from_it(verbs: Verbs) -> None:
    verbs.run("broken", "b")
    assert (set(verbs.pids), verbs.dones) == ({"b"}, 0)
    (ended,) = verbs.watched.values()
    ended()
    assert verbs.dones == 1


def test_where_no_verb_can_be_started_or_there_is_no_service_it_is_done_at_once(verbs: Verbs) -> None:
    verbs.run("broken")
    assert verbs.dones == 1
    verbs.run()
    assert verbs.dones == 2


def test_a_verb_that_cannot_be_watched_does_not_run_on_and_keeps_no_other_from_it(verbs: Verbs) -> None:
    verbs.full = True
    verbs.run("a", "b")
    assert set(verbs.pids) == {"a", "b"}
    assert verbs.dones == 1
    for pid in verbs.pids.values():
        eventually(lambda pid=pid: not is_alive(identify(pid)))  # type: ignore[misc]  # a zombie until it is waited for


def test_a_verb_without_a_pidfd_does_not_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with Started() as started:
        pid = started.run("sleep", "600").pid
        monkeypatch.setattr(shutdown, "start_verb", lambda *_: pid)
        monkeypatch.setattr(os, "pidfd_open", no_descriptor)
        with pytest.raises(OSError, match="Too many open files"):
            start_down_verb(Home(tmp_path), "/usr/bin/python3", "a")
        eventually(lambda: not is_alive(identify(pid)))
