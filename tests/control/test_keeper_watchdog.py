"""A keeper is ended when it is silent and proven to be the keeper, and else never."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import eventually
from turnout.control.keeper_watchdog import end_silent_keeper
from turnout.errors import TimedOutError
from turnout.state.home import Home
from turnout.state.keeper_lock import read_keeper
from turnout.system.process import identify, is_suspended

SILENT_AFTER_S = 0.3
# A process with the keeper's lock and socket, which does with each connection what its last line says.
CHILD = """
import sys, time
from pathlib import Path
from turnout.system import control_channel as control
from turnout.state.home import Home
from turnout.state.keeper_lock import take_keeper_lock
home = Home(Path(sys.argv[1]))
lock = take_keeper_lock(home.keeper_lock)
sock = control.listen(home.keeper_sock)
sock.setblocking(True)
print("up", flush=True)
kept = []
while True:
    channel = control.accept(sock)
    {does}
"""
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def start(home: Home) -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def run(does: str) -> subprocess.Popen[str]:
        code = CHILD.format(does=does)
        child = subprocess.Popen([sys.executable, "-c", code, str(home.root)], stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout
        assert child.stdout.readline() == "up\n"
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def test_one_that_accepts_and_never_answers_is_ended(home: Home, start: Start) -> None:
    child = start("kept.append(channel)")
    assert read_keeper(home.keeper_lock) == identify(child.pid)
    assert end_silent_keeper(home, silent_after_s=SILENT_AFTER_S) == child.pid
    assert child.wait(60) == -signal.SIGKILL


def test_a_stopped_one_is_ended(home: Home, start: Start) -> None:
    child = start("kept.append(channel)")
    child.send_signal(signal.SIGSTOP)
    eventually(lambda: is_suspended(child.pid))
    assert end_silent_keeper(home, silent_after_s=SILENT_AFTER_S) == child.pid
    assert child.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(
    "does",
    [
        'channel.send({"re": 1, "ok": True})',
        'channel.send({"re": 1, "ok": False, "error": "NotRunningError", "message": "the keeper is shutting down"})',
        "channel.close()",
        'channel.sock.sendall(b"nonsense\\n")',
    ],
    ids=["answers", "shuts down", "has too many clients", "speaks another language"],
)
def test_any_sign_of_life_spares_it(home: Home, start: Start, does: str) -> None:
    child = start(does)
    assert end_silent_keeper(home, silent_after_s=60) == 0
    assert child.poll() is None


def test_one_that_comes_round_at_the_last_question_is_spared(
    home: Home, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silence may have been this process's own: stopped with the answer unread."""
    monkeypatch.setattr("turnout.control.keeper_watchdog._ONCE_MORE_S", 60.0)
    child = start("kept.append(channel); len(kept) > 1 and channel.send({'re': 1, 'ok': True})")
    assert end_silent_keeper(home, silent_after_s=SILENT_AFTER_S) == 0
    assert child.poll() is None


@pytest.mark.parametrize("told", ["", "{pid}\n", "{pid} 1\n", "1 {ticks}\n", "nonsense\n"])
def test_one_that_is_not_proven_is_left_alone_and_named(home: Home, start: Start, told: str) -> None:
    child = start("kept.append(channel)")
    home.keeper_lock.write_text(told.format(pid=child.pid, ticks=identify(child.pid).start_ticks))
    with pytest.raises(TimedOutError, match=rf"the keeper \(pid {child.pid}\) answers no request") as caught:
        end_silent_keeper(home, silent_after_s=SILENT_AFTER_S)
    assert f"kill -KILL {child.pid}" in (caught.value.hint or "")
    assert child.poll() is None


def test_a_dead_one_whose_pid_an_innocent_process_has_is_no_keeper(home: Home) -> None:
    innocent = subprocess.Popen(["sleep", "600"])
    try:
        home.keeper_lock.write_text(f"{innocent.pid} {identify(innocent.pid).start_ticks}\n")
        assert end_silent_keeper(home, silent_after_s=SILENT_AFTER_S) == 0
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_where_there_is_none_nothing_is_waited_for(home: Home) -> None:
    assert end_silent_keeper(home, silent_after_s=3600) == 0
