"""Old daemons that drain for as long as they like: side by side, seen, explained, cuttable, and in nobody's way."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import eventually
from turnout.core.model import State


class Lasting:
    """A connection that is kept, and asked now and then who it is with."""

    def __init__(self, turnout: Turnout) -> None:
        self.sock = socket.create_connection(turnout.address, 60)
        self._lines = self.sock.makefile()
        self.peer = f"127.0.0.1:{self.sock.getsockname()[1]}"

    def ask(self) -> str:
        self.sock.sendall(b"hello\n")
        return self._lines.readline().split(" ")[0]

    def is_ended(self) -> bool:
        return self._lines.readline() == ""

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


@pytest.fixture
def lasting(turnout: Turnout) -> Iterator[list[Lasting]]:
    """Closed before the service is."""
    kept: list[Lasting] = []
    yield kept
    for connection in kept:
        connection.close()


def rollout(turnout: Turnout, version: str, verb: str = "deploy") -> None:
    turnout.configure(line_daemon("--version", version), version=version, observe="200ms", deadline="none")
    turnout.run(verb)


def roles(turnout: Turnout) -> dict[str, str]:
    return {daemon["version"]: daemon["role"] for daemon in turnout.status()["daemons"]}


def test_three_switches_with_three_drains_keep_three_old_daemons_and_the_fourth_hastens_the_oldest(
    turnout: Turnout, lasting: list[Lasting]
) -> None:
    rollout(turnout, "v0", "up")
    for number in range(1, 4):
        lasting.append(Lasting(turnout))
        assert lasting[-1].ask() == f"v{number - 1}"
        rollout(turnout, f"v{number}")
    assert [connection.ask() for connection in lasting] == ["v0", "v1", "v2"]
    assert roles(turnout) == {"v0": "draining", "v1": "draining", "v2": "draining", "v3": "active"}
    lasting.append(Lasting(turnout))
    assert lasting[-1].ask() == "v3"
    rollout(turnout, "v4")  # max_draining is 3
    assert lasting[0].is_ended(), "the oldest is hastened: its quiet connection is ended in order"
    eventually(lambda: "v0" not in roles(turnout), why="the hastened daemon is still there")
    assert [connection.ask() for connection in lasting[1:]] == ["v1", "v2", "v3"]
    assert ask(turnout.address) == "v4"


def test_a_drain_that_never_ends_is_seen_explained_cuttable_and_not_in_the_way_of_the_next_deploy(
    turnout: Turnout, lasting: list[Lasting]
) -> None:
    rollout(turnout, "v1", "up")
    lasting.append(Lasting(turnout))
    assert lasting[0].ask() == "v1"
    rollout(turnout, "v2")
    rollout(turnout, "v3")
    assert ask(turnout.address) == "v3"
    assert lasting[0].ask() == "v1"
    assert roles(turnout)["v1"] == "draining"
    # the verb has its verdict from the registry, which the router may not have applied yet
    (drain,) = eventually(
        lambda: [one for one in json.loads(turnout.run("drain", "--json").stdout) if one["connections"]]
    )
    (link,) = drain["connections"]
    assert (link["peer"], drain["deadline_in_s"]) == (lasting[0].peer, None)
    assert "never cut" in link["why"]
    assert lasting[0].peer in turnout.run("drain", "--explain").stdout
    turnout.run("drain")
    assert lasting[0].is_ended()
    eventually(lambda: roles(turnout) == {"v3": "active"}, why="what was hastened is still there")


def test_a_rollback_while_the_previous_daemon_drains_starts_its_build_again_and_that_drain_goes_on(
    turnout: Turnout, lasting: list[Lasting]
) -> None:
    rollout(turnout, "v1", "up")
    first = turnout.active()["boot_id"]
    lasting.append(Lasting(turnout))
    assert lasting[0].ask() == "v1"
    rollout(turnout, "v2")
    second = turnout.active()["boot_id"]
    lasting.append(Lasting(turnout))
    assert lasting[1].ask() == "v2"
    assert turnout.snapshot().deployment.state is State.IDLE
    assert turnout.snapshot().daemons[first].draining
    turnout.run("rollback")
    assert ask(turnout.address) == "v1"
    third = turnout.active()["boot_id"]
    assert third not in {first, second}, "the window was over: the recorded build is started again"
    assert lasting[0].ask() == "v1", "what drained before goes on draining"
    assert first in turnout.daemons()
