"""Whatever is killed: once the router is back there is no listener from which nobody accepts, on any plane."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from direct_support import holders, router
from e2e_support import Turnout, line_daemon, under_load
from support import comes_true, eventually
from turnout.core.model import State
from turnout.system.net.sockets import Queue, accept_queues

FD_DAEMON = str(Path(__file__).parents[1] / "support" / "fd_daemon.py")
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "relay": lambda version: line_daemon("--version", version),
    "reuseport": lambda version: [sys.executable, "-P", FD_DAEMON, version, "--fd", "{fd}"],
    "sk_lookup": lambda version: line_daemon("--version", version),
}


class Killed:
    """One home on one plane, and what must be true of its listeners after each kill."""

    def __init__(self, turnout: Turnout, plane: str) -> None:
        self.turnout = turnout
        self.plane = plane
        self._number = 0
        self._addresses = {turnout.address}

    def configure(self, *, observe: str = "50ms", probe: str = "alive", extra: str = "") -> None:
        """A build that was not there before."""
        self._number += 1
        version = f"v{self._number}"
        command = COMMANDS[self.plane](version)
        self.turnout.configure(command, version=version, observe=observe, probe=probe, extra=extra)
        self.turnout.tune(plane=f'"{self.plane}"')

    def deploy(self) -> None:
        """The window stays open, and so the daemon before stays warm."""
        self.configure(observe="10m")
        self.turnout.run("deploy", "--detach", "--supersede")
        self._note()

    def _note(self) -> None:
        for daemon in self.turnout.snapshot().daemons.values():
            self._addresses.add((daemon.host, daemon.port))

    def unattended(self) -> dict[tuple[int, int], set[int]]:
        """The listeners, by port and inode, that are neither the router's nor one living daemon's.

        The keeper holds the router's as well, and both have copies of the daemons' listeners at the fixed address.
        """
        daemons = {identity.pid for identity in self.turnout.daemons().values()}
        serving = {self.turnout.router_pid(), self.turnout.keeper_pid()}
        return {
            (address[1], inode): pids
            for address in self._addresses
            for inode, pids in holders(address).items()
            if not _is_attended(pids - serving if address == self.turnout.address else pids, daemons)
            and not (address == self.turnout.address and pids == serving)
        }

    def settles(self, victim: str) -> None:
        self.turnout.run("up")
        self._note()
        found = comes_true(lambda: not self.unattended(), timeout_s=60)
        assert found, f"after a kill of the {victim} these are left: {self.unattended()}"
        with under_load(self.turnout) as load:
            eventually(lambda: load.made > 20)
        # a check of the router's may wait there at this moment; who waits for nobody waits on
        gone = comes_true(lambda: not self.waiting(), timeout_s=60)
        assert gone, f"after a kill of the {victim} some wait for nobody: {self.waiting()}"

    def waiting(self) -> list[Queue]:
        return [queue for address in self._addresses for queue in accept_queues(*address) if queue.waiting]


def _is_attended(pids: set[int], daemons: set[int]) -> bool:
    return len(pids) == 1 and pids <= daemons


@pytest.fixture(params=list(COMMANDS))
def killed(request: pytest.FixtureRequest) -> Killed:
    plane = str(request.param)
    found = Killed(request.getfixturevalue("home_with_bpffs" if plane == "sk_lookup" else "turnout"), plane)
    found.configure()
    found.turnout.run("up")
    assert router(found.turnout)["plane"] == plane
    return found


@pytest.mark.timeout(300)
def test_after_any_kill_there_is_no_listener_from_which_nobody_accepts(killed: Killed) -> None:
    turnout = killed.turnout
    killed.deploy()
    killed.settles("nobody")

    turnout.kill(turnout.router_pid())
    killed.settles("router")

    turnout.kill(turnout.keeper_pid())
    killed.settles("keeper")

    for pid in (turnout.keeper_pid(), turnout.router_pid()):
        turnout.kill(pid)
    killed.settles("keeper and router")

    old = turnout.snapshot().old
    assert old
    turnout.kill(old.pid)
    killed.settles("daemon before")

    killed.deploy()
    turnout.kill(turnout.active()["pid"])
    eventually(lambda: turnout.snapshot().deployment.state is State.IDLE, timeout_s=60, why="it is rolled back")
    killed.configure()  # the build that was rolled back is not started again without a person's word
    killed.settles("active daemon")


def test_after_a_kill_of_a_verb_the_listener_of_its_candidate_goes_too(killed: Killed) -> None:
    turnout = killed.turnout
    killed.configure(probe="expect", extra=', send = "who\\n", match = "nobody says so"')
    verb = turnout.begin("deploy")

    def candidate() -> int:
        snapshot = turnout.snapshot()
        found = snapshot.daemons.get(snapshot.deployment.candidate_boot_id)
        return found.port if found else 0

    port = eventually(candidate, timeout_s=60)
    eventually(lambda: holders(("127.0.0.1", port)), timeout_s=60, why="the candidate listens")
    turnout.kill(verb.pid, signal.SIGKILL)
    killed.configure()
    killed.settles("verb")
    eventually(lambda: len(turnout.daemons()) == 1, timeout_s=60, why="the candidate and the daemon before are ended")
    if killed.plane != "reuseport":
        assert holders(("127.0.0.1", port)) == {}, "the candidate's listener is gone"
