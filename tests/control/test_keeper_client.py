"""What a verb says of an address that it cannot have, and of a daemon that cannot be ended."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from turnout.config.settings import Address
from turnout.control.keeper_client import KeeperClient, bind_error, other_home
from turnout.errors import StillRunningError
from turnout.system.control_channel import Channel, Message
from turnout.system.net.sockets import PortHolder

ADDRESS = Address("127.0.0.1", 6379)


def found(monkeypatch: pytest.MonkeyPatch, holder: PortHolder) -> None:
    """Have the machine say that this process has the port."""

    def who_listens(_host: str, _port: int) -> PortHolder:
        return holder

    monkeypatch.setattr("turnout.control.keeper_client.who_listens", who_listens)


@pytest.mark.parametrize(("listening", "what"), [(True, "in use by"), (False, "the source port of a connection of")])
def test_a_process_whose_pid_cannot_be_seen_is_named_by_its_user_and_not_as_pid_0(
    monkeypatch: pytest.MonkeyPatch, *, listening: bool, what: str
) -> None:
    """Another user's, or one of another pid namespace: its descriptors tell nobody but root whose the socket is."""
    found(monkeypatch, PortHolder(0, "a process of user alice", listening))
    error = bind_error(ADDRESS, errno.EADDRINUSE)
    assert error.message == f"127.0.0.1:6379 is {what} a process of user alice, whose pid cannot be seen from here"
    assert "ss -ltnp" in (error.hint or "") if listening else error.hint


def test_the_turnout_of_another_home_is_named_with_that_home_and_not_to_be_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "12").mkdir()
    words = ("/usr/bin/python3", "-P", "-m", "turnout.keeper", "/home/alice/my state", "5", "")
    (tmp_path / "12" / "cmdline").write_bytes("\0".join(words).encode())
    assert other_home(12, proc=tmp_path) == "/home/alice/my state"
    assert other_home(13, proc=tmp_path) == ""
    monkeypatch.setenv("TURNOUT_HOME", str(tmp_path))
    (tmp_path / "14").mkdir()
    (tmp_path / "14" / "cmdline").write_bytes(f"python3\0-m\0turnout.router\0{tmp_path}\0".encode())
    assert other_home(14, proc=tmp_path) == "", "it is this home's own"
    found(monkeypatch, PortHolder(12, "python3 …", listening=True))
    monkeypatch.setattr("turnout.control.keeper_client.other_home", partial(other_home, proc=tmp_path))
    error = bind_error(ADDRESS, errno.EADDRINUSE)
    assert error.message == "127.0.0.1:6379 is in use by turnout (pid 12) for another home, /home/alice/my state"
    assert error.hint == (
        "name another with --listen; TURNOUT_HOME='/home/alice/my state' turnout status names the service"
    )


class Answering:
    """A channel to a keeper that gives these answers, in turn."""

    def __init__(self, *answers: Message) -> None:
        self.answers = list(answers)
        self.asked: list[object] = []

    def request(self, message: Message, *, timeout_s: float) -> Message:
        assert timeout_s > 0
        self.asked.append(message.get("boot_id", message["op"]))
        return self.answers.pop(0)


def test_a_daemon_of_which_processes_outlived_kill_is_not_said_to_be_gone() -> None:
    client = KeeperClient(
        cast("Channel", Answering({"ok": True, "gone": True, "left": [7, 8]}, {"ok": True, "gone": True}))
    )
    with pytest.raises(StillRunningError, match="pids 7 8 of b1 outlived SIGKILL"):
        client.stop("svc", "b1", stop_signal="TERM", grace_s=1.0)
    client.stop("svc", "b1", stop_signal="TERM", grace_s=1.0)  # a keeper of 0.1.0 names none


def test_a_keeper_of_a_version_without_activation_is_the_trouble() -> None:
    refusal = {"ok": False, "error": "ProtocolError", "message": "this keeper does not know 'binds'"}
    bound = KeeperClient(cast("Channel", Answering(refusal))).binds("svc", "b1")
    assert (bound.serving, bound.others) == (0, ())
    assert "turnout down" in bound.trouble
