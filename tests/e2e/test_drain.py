"""Connections stay with the daemon that accepted them; that daemon is stopped only when they are gone."""

from __future__ import annotations

import contextlib
import socket

from e2e_support import Turnout, ask, line_daemon
from support import eventually


class Held:
    """One open connection to the fixed address."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, 20)
        self._lines = self.sock.makefile()

    def ask(self, line: str = "hello") -> str:
        self.sock.sendall(line.encode() + b"\n")
        answer = self._lines.readline()
        assert answer.rstrip("\n").endswith(line), answer
        return answer.split(" ")[0]

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


def test_long_lived_connections_keep_their_daemon_until_the_last_is_closed(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="none")
    turnout.run("up")
    old = turnout.active()
    held = [Held(turnout.address) for _ in range(5)]
    assert {connection.ask() for connection in held} == {"v1"}

    turnout.configure(line_daemon("--version", "v2"), version="v2", deadline="none")
    turnout.run("deploy")
    assert ask(turnout.address) == "v2"
    for _ in range(20):
        assert {connection.ask() for connection in held} == {"v1"}
    roles = {d["boot_id"]: (d["role"], d["connections"]) for d in turnout.status()["daemons"]}
    assert roles[old["boot_id"]] == ("draining", 5)

    last = held.pop()
    for connection in held:
        connection.close()
    eventually(lambda: _connections(turnout, old["boot_id"]) == 1)
    assert last.ask() == "v1", "one connection is enough to keep it"
    assert old["boot_id"] in turnout.daemons()

    last.close()
    eventually(lambda: old["boot_id"] not in turnout.daemons(), why="the drained daemon was not stopped")
    eventually(lambda: old["boot_id"] not in turnout.snapshot().daemons, why="its entry stayed")
    assert ask(turnout.address) == "v2"


def test_the_drain_deadline_cuts_what_is_left(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"), deadline="500ms")
    turnout.run("up")
    old = turnout.active()
    held = Held(turnout.address)
    assert held.ask() == "v1"
    turnout.configure(line_daemon("--version", "v2"), version="v2", deadline="500ms")
    turnout.run("deploy")
    eventually(lambda: old["boot_id"] not in turnout.daemons(), why="the deadline did not end it")
    try:
        ended = held.sock.recv(1)
    except ConnectionResetError:
        ended = b""
    assert ended == b""
    held.close()
    assert ask(turnout.address) == "v2"


def test_stop_and_down_end_the_daemon_and_say_where_things_stand(turnout: Turnout) -> None:
    turnout.configure(line_daemon("--version", "v1"))
    turnout.run("up")
    assert turnout.run("up").stdout.startswith("default is up")
    turnout.run("stop")
    assert turnout.daemons() == {}
    assert turnout.status()["desired"] == "stopped"
    with contextlib.suppress(ConnectionResetError), socket.create_connection(turnout.address, 10) as sock:
        assert sock.recv(1) == b"", "somebody answered"
    turnout.run("start")
    assert ask(turnout.address) == "v1"
    turnout.run("down")
    assert turnout.processes() == {}
    assert not turnout.listening()
    assert turnout.run("down").stdout.strip() == "default is down"
    turnout.run("refresh", code=3)
    turnout.run("up")
    assert ask(turnout.address) == "v1"


def _connections(turnout: Turnout, boot_id: str) -> int:
    return int(next(d["connections"] for d in turnout.status()["daemons"] if d["boot_id"] == boot_id))
