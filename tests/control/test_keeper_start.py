"""A keeper is started where none runs; what a verb says where that fails, and what it leaves."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from process_support import open_descriptors
from turnout.control.keeper_start import ensure_keeper
from turnout.errors import NotBegunError, NotRunningError, TimedOutError, TurnoutError
from turnout.state.home import Home
from turnout.system.boot_processes import LABEL
from turnout.system.process import own_identity
from turnout.system.spawn_record import SpawnRecord, write_record


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOENT])
def test_a_keeper_that_cannot_be_started_is_one_error_in_one_line_and_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """No process is to be had, or the interpreter was removed."""
    home = Home(tmp_path)

    def refuse(*_: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = open_descriptors()
    with pytest.raises(NotBegunError, match=f"cannot start a keeper: {os.strerror(number)}"):
        ensure_keeper(home)
    assert open_descriptors() == before


@pytest.mark.parametrize("error", [TimedOutError("silent"), NotRunningError("on its way out"), None])
def test_the_line_to_a_keeper_that_does_not_answer_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: TurnoutError | None
) -> None:
    lines: list[FakeLine] = []

    class FakeLine:
        def __init__(self, fails: TurnoutError | None) -> None:
            self.fails, self.closed = fails, False
            lines.append(self)

        def hello(self) -> None:
            if self.fails:
                raise self.fails

        def close(self) -> None:
            self.closed = True

    class FakeKeeper:
        @staticmethod
        def connect(_home: Home) -> FakeLine:
            return FakeLine(None if lines else error)

    monkeypatch.setattr("turnout.control.keeper_start.KeeperClient", FakeKeeper)
    monkeypatch.setattr("turnout.control.keeper_start.end_silent_keeper", lambda _home: 0)
    monkeypatch.setattr("turnout.control.keeper_start._start", lambda *_: None)
    if isinstance(error, TimedOutError):
        with pytest.raises(TimedOutError):
            ensure_keeper(Home(tmp_path))
    else:
        assert cast("Any", ensure_keeper(Home(tmp_path))) is lines[-1]
    assert [line.closed for line in lines] == ([True, False] if isinstance(error, NotRunningError) else [bool(error)])


def test_a_process_of_an_activated_daemon_starts_no_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper would be under the daemon's filter, and its own first bind would wait for itself."""
    home, ours = Home(tmp_path), own_identity()
    service = home.service("svc")
    service.create()
    write_record(service.record("b1"), SpawnRecord("b1", "svc", ours, "", 0.0, held_fds=(1, 2, 3)))
    monkeypatch.setenv(LABEL, "b1")
    with pytest.raises(NotRunningError, match="svc") as refused:
        ensure_keeper(home)
    assert "turnout up" in str(refused.value.hint)
