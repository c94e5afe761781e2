"""A container that is killed and started again on the same state: in its pid namespace every pid is another one's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from programs import program
from support import eventually
from turnout.core.model import State

# as docs/guides/containers.md has it; and what the container is told later (docker exec)
START = """
(until [ -e go ]; do sleep 0.05; done; "$@" deploy) &
exec "$@" router --up
"""


class Container:
    """A pid namespace with a /proc of its own; process 1 in it is the keeper."""

    def __init__(self, turnout: Turnout) -> None:
        self._turnout = turnout
        self.place: Path = turnout.home.root.parent
        self._unshare = [program("unshare", package="util-linux"), *([] if os.geteuid() == 0 else ["-r"])]
        self._unshare += ["--pid", "--fork", "--mount-proc", "--kill-child"]
        tried = subprocess.run([*self._unshare, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"no pid namespaces here: {tried.stderr.strip()}")

    @contextlib.contextmanager
    def run(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start it; when the block ends it is killed, all of it in one instant."""
        (self.place / "go").unlink(missing_ok=True)
        with (self.place / "container.log").open("ab") as log:
            running = subprocess.Popen(
                [*self._unshare, "sh", "-c", START, "sh", *self._turnout.argv()],
                cwd=self.place,
                env=self._turnout.env,
                stdout=log,
                stderr=log,
            )
        try:
            yield running
        finally:
            running.kill()  # and with it process 1 (prctl(2), PR_SET_PDEATHSIG), and with that all the others
            running.wait(60)
            eventually(lambda: not self._turnout.listening(), why="nothing of it is left")

    def serves(self, version: str) -> bool:
        """Whether that is done, and nothing else is known any more."""
        snapshot = self._turnout.snapshot()
        versions = {daemon.version for daemon in snapshot.daemons.values()}
        return snapshot.deployment.state is State.IDLE and snapshot.active is not None and versions == {version}

    def logs(self) -> str:
        return (self.place / "container.log").read_text() + self._turnout.logs()


@pytest.mark.parametrize("state", [State.STARTING, State.SWITCHED])
def test_a_container_that_is_killed_in_a_rollout_serves_again(turnout: Turnout, state: State) -> None:
    container = Container(turnout)
    turnout.configure(line_daemon("--version", "v1"))
    with container.run():
        eventually(lambda: container.serves("v1"), timeout_s=60, why="the service is up")
        assert ask(turnout.address) == "v1"
        late = ["--start-delay", "600"] if state is State.STARTING else []
        turnout.configure(line_daemon("--version", "v2", *late), version="v2", observe="10m")
        (container.place / "go").touch()
        eventually(lambda: turnout.snapshot().deployment.state is state, timeout_s=60, why=f"it is {state}")
    turnout.configure(line_daemon("--version", "v3"), version="v3")
    with container.run() as again:
        eventually(lambda: container.serves("v3"), timeout_s=60, why="the service is up again")
        assert ask(turnout.address) == "v3", container.logs()
        (first,) = map(int, Path(f"/proc/{again.pid}/task/{again.pid}/children").read_text().split())
        os.kill(first, signal.SIGTERM)  # docker stop
        assert again.wait(60) == 0, container.logs()
