"""The command of the keeper's process, with a keeper that is made up: what it says to the verb that started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from turnout.core.model import Identity
from turnout.errors import ConflictError, StateUnwritableError, TurnoutError
from turnout.keeper import __main__ as main_module
from turnout.keeper.__main__ import main
from turnout.state.home import Home


class FakeKeeper:
    """Serves for no time. ``error``: what it cannot be made for."""

    error: TurnoutError | None = None
    directories: list[str]

    def __init__(self, home: Home) -> None:
        assert home.root.is_dir(), "the home was made before"
        if FakeKeeper.error:
            raise FakeKeeper.error

    def run(self, ready: Callable[[], None]) -> None:
        FakeKeeper.directories.append(str(Path.cwd()))
        ready()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What is logged. The directory, the signal mask and the handlers of this process stay as they are."""
    lines: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FakeKeeper, "error", None)
    monkeypatch.setattr(FakeKeeper, "directories", [], raising=False)
    monkeypatch.setattr(main_module, "Keeper", FakeKeeper)
    monkeypatch.setattr(main_module, "log_line", lines.append)
    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGCHLD)
    yield lines
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGCHLD, handler)


def test_the_verb_that_waits_is_sent_one_line_and_the_end_of_the_pipe(lines: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    assert main([str(tmp_path / "home"), str(write)]) == 0
    assert os.read(read, 100) == b"ready\n"
    assert os.read(read, 100) == b""
    os.close(read)
    assert lines == []
    assert FakeKeeper.directories == ["/"], "the verb's directory may be removed"


def test_a_verb_that_has_ended_meanwhile_keeps_no_keeper_from_serving(lines: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    assert main([str(tmp_path / "home"), str(write)]) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)
    assert main([str(tmp_path / "home")]) == 0, "none waits at all"
    assert lines == []


@pytest.mark.parametrize("error", [ConflictError("a keeper already runs"), StateUnwritableError("cannot lock")])
def test_a_keeper_that_cannot_be_made_is_logged_in_one_line(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: TurnoutError
) -> None:
    monkeypatch.setattr(FakeKeeper, "error", error)
    assert main([str(tmp_path / "home")]) == error.exit_code
    assert lines == [error.message]


def test_signals_that_the_caller_blocked_or_ignored_are_not(lines: list[str], tmp_path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    main([str(tmp_path / "home")])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    assert lines == []


def test_on_a_machine_without_proc_no_keeper_runs_and_the_log_says_why(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_module, "identify", Identity)
    assert main([str(tmp_path / "home")]) == TurnoutError.exit_code
    assert (len(lines), FakeKeeper.directories) == (1, [])
    assert "/proc is not mounted" in lines[0]
