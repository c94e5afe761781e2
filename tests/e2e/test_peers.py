"""Whatever a peer of the same user sends to the control sockets, keeper and router serve on and leak no descriptor."""

from __future__ import annotations

import array
import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from e2e_support import Turnout, ask, line_daemon
from peer_messages import messages
from support import eventually, scaled
from turnout.system.process import identify, is_alive

ENDS = ("shutdown", "unlisten", "kill_router", "replace_router")  # what a verb of this user may ask for all the same


@pytest.fixture
def served(turnout: Turnout) -> Iterator[Turnout]:
    """A service that runs; after whatever was sent keeper and router are those of before, and a connection lives."""
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    pids = turnout.keeper_pid(), turnout.router_pid()
    before = [descriptors(pid) for pid in pids]
    with socket.create_connection(turnout.address, 60) as client:
        yield turnout
        client.sendall(b"question\n")
        assert client.recv(1000).startswith(b"v1 ")
    assert (turnout.keeper_pid(), turnout.router_pid()) == pids
    assert ask(turnout.address) == "v1"
    eventually(
        lambda: all(descriptors(pid) <= count + 1 for pid, count in zip(pids, before, strict=True)),
        why=f"descriptors are left open: {before}",
    )


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def send(path: Path, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send and take what comes, or what ends the connection."""
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(OSError):
        peer.settimeout(0.1)
        peer.connect(str(path))
        if fds:
            peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        else:
            peer.sendall(data)
        peer.recv(1000)


def test_no_message_ends_keeper_or_router(served: Turnout) -> None:
    paths = (served.home.keeper_sock, served.home.router_sock)

    @settings(max_examples=scaled(60, 2000), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(messages(*ENDS))
    def each(message: dict[str, Any]) -> None:
        for path in paths:
            send(path, json.dumps({"fds": 0, **message}).encode() + b"\n")

    each()


def test_what_a_router_says_is_taken_from_routers_alone(served: Turnout) -> None:
    """Before, one "ready" from anybody had the router leave."""
    router = served.router_pid()
    for op in ("ready", "heard", "left", "leads"):
        send(served.home.keeper_sock, json.dumps({"op": op, "fds": 0}).encode() + b"\n")
    for phase in ("leads", "leaving", "standby"):
        attach = {"op": "attach", "pid": router, "phase": phase, "listeners": [["default", "127.0.0.1", 1]]}
        send(served.home.keeper_sock, json.dumps({**attach, "fds": 1}).encode() + b"\n", [0])


def test_a_file_that_cannot_be_removed_keeps_no_router_from_coming_back(turnout: Turnout) -> None:
    """As in a home that became read-only: there, unlink(2) fails; here, because a directory lies in the way."""
    turnout.configure(line_daemon("--version", "v1"), observe="200ms")
    turnout.run("up")
    keeper, router = turnout.keeper_pid(), turnout.router_pid()
    (record,) = turnout.home.root.glob("router-*.json")
    record.unlink()
    (record / "in the way").mkdir(parents=True)
    turnout.kill(router)
    eventually(lambda: turnout.router_pid() not in {0, router}, timeout_s=60)
    assert ask(turnout.address) == "v1"
    assert turnout.keeper_pid() == keeper
    identity = identify(keeper)
    turnout.home.router_sock.unlink()
    (turnout.home.router_sock / "in the way").mkdir(parents=True)
    turnout.run("down", code=None)
    eventually(lambda: not is_alive(identity), timeout_s=60)
    assert "keeper ended" in turnout.home.keeper_log.read_text(), "it ended in order"
