"""How an ending goes on where looking fails, and when it is over: no process needed, or one that sleeps."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from process_support import open_descriptors
from turnout.core.model import Identity
from turnout.keeper import orphans
from turnout.keeper.orphans import OrphanReaper
from turnout.system import boot_processes
from turnout.system.boot_processes import Boot, BootProcesses, processes_of
from turnout.system.process import ProcessHandle, identify, is_alive


class Clock:
    """Timers that run when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def after(self, _delay_s: float, action: Callable[[], None]) -> None:
        self.due.append(action)

    def run(self) -> None:
        due, self.due = self.due, []
        for action in due:
            action()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def no_descriptor(*_: object) -> BootProcesses:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_an_ending_that_finds_no_descriptor_looks_again_and_is_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = Clock(), list[list[int]]()
    ending = OrphanReaper(Boot("b1"), signal.SIGTERM, 0.0, clock.after, done.append)
    monkeypatch.setattr(orphans, "processes_of", no_descriptor)
    for _ in range(3):
        ending.look()
        assert len(clock.due) == 1 or not done
    assert not done
    monkeypatch.setattr(orphans, "processes_of", lambda _boot: BootProcesses([]))
    clock.run()
    assert done == [[]]


def test_processes_that_cannot_be_opened_for_want_of_a_descriptor_are_not_absent(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    daemon = identify(sleeper.pid)
    monkeypatch.setattr(boot_processes, "identify", no_descriptor)
    with pytest.raises(OSError, match="open files"):
        processes_of(Boot("b1", daemon))


def test_of_more_processes_than_descriptors_a_part_is_found(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        first, second = sorted((sleeper.pid, other.pid))

        def only_the_first(pid: int) -> Identity:
            if pid == second:
                no_descriptor()
            return identify(pid)

        monkeypatch.setattr(boot_processes, "descendants", lambda _pid: {first, second})
        monkeypatch.setattr(boot_processes, "_is_labelled", lambda *_: True)
        monkeypatch.setattr(boot_processes, "identify", only_the_first)
        found = processes_of(Boot("b1"))
        pids = [handle.identity.pid for handle in found.handles]
        found.close()
        other.kill()
    assert pids == [first]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), ProcessLookupError(errno.ESRCH, "gone")])
def test_a_process_whose_environment_cannot_be_read_costs_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes], error: OSError
) -> None:
    def unreadable(*_: object) -> bool:
        raise error

    monkeypatch.setattr(boot_processes, "_is_labelled", unreadable)
    monkeypatch.setattr(boot_processes, "descendants", lambda _pid: {sleeper.pid})
    before = open_descriptors()
    assert processes_of(Boot("b1")).handles == []
    assert open_descriptors() == before


def test_no_process_is_let_be_before_it_had_kill(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    """The keeper's last look has its deadline in the past; so has what is found after a leader that hung for long."""
    daemon = identify(sleeper.pid)
    monkeypatch.setattr(
        orphans, "processes_of", lambda _boot: BootProcesses([ProcessHandle.open(daemon)] if is_alive(daemon) else [])
    )
    clock, done = Clock(), list[list[int]]()
    OrphanReaper(Boot(""), signal.SIGKILL, 0.0, clock.after, done.append).look()
    assert done == []
    assert sleeper.wait(10) == -signal.SIGKILL
    clock.run()
    assert done == [[]]


def test_what_outlives_kill_is_let_be_five_seconds_after_it(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    daemon = identify(sleeper.pid)
    now = 1000.0
    monkeypatch.setattr(orphans, "processes_of", lambda _boot: BootProcesses([ProcessHandle.open(daemon)]))
    monkeypatch.setattr(ProcessHandle, "signal", lambda *_: None)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock, done = Clock(), list[list[int]]()
    OrphanReaper(Boot("b1"), signal.SIGTERM, 0.0, clock.after, done.append).look()
    now += 5.0
    clock.run()
    assert done == []
    now += 0.1
    clock.run()
    assert done == [[sleeper.pid]]


def test_no_keeper_ends_itself_and_what_it_runs(sleeper: subprocess.Popen[bytes]) -> None:
    """A verb that was typed below the daemon started it, after the keeper before had died."""
    above = Boot("b1", None, identify(os.getppid()))
    with contextlib.closing(processes_of(above)) as found:
        pids = {handle.identity.pid for handle in found.handles}
    assert not pids & {os.getpid(), sleeper.pid}
    assert found.spared
