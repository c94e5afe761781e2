"""A verb's connection to the router's admin socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from turnout.errors import NotRunningError, TimedOutError
from turnout.state.home import Home
from turnout.system import control_channel
from turnout.system.control_channel import Channel, Message
from turnout.system.directory_lock import is_locked
from turnout.system.files import name_of
from turnout.system.flock import holder_pid
from turnout.system.home_identity import HomeIdentity
from turnout.system.probes.connect import Door

POLL_S: Final = 0.05
DOOR_WITHIN_S: Final = 5.0
UNKNOWN: Final = "this router does not know"


def connect(path: Path, runs: Callable[[], bool], *, timeout_s: float) -> Channel:
    """Connect to the keeper or the router; where its socket was removed, wait: it makes it again within a second.

    Args:
        path: the socket.
        runs: whether the process that makes the socket runs.
        timeout_s: the longest wait.

    Raises:
        NotRunningError: it does not run, or cannot make its socket again.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return control_channel.connect(path, timeout_s=timeout_s)
        except NotRunningError:
            if name_of(path) is not None or time.monotonic() >= deadline or not runs():
                raise
        time.sleep(POLL_S)


class RouterClient:
    """A verb's line to the router; each question is a connection of its own, since the router may be replaced."""

    def __init__(self, home: Home) -> None:
        self._path = home.router_sock
        self._lead_directory, self._lead_file = home.services, home.router_lock
        self._home = home.root

    def status(self, *, timeout_s: float = 2.0) -> dict[str, Any]:
        """What the router knows of itself and its services.

        Raises:
            NotRunningError: no router answers.
            TimedOutError: it is there but silent for ``timeout_s`` seconds.
        """
        return dict(self._ask({"op": "status"}, timeout_s)["status"])

    def metrics_address(self) -> str | None:
        """Where it serves its metrics now; None: nowhere, or no router answers."""
        return self._metrics().get("listen")

    def _metrics(self) -> Mapping[str, str | None]:
        try:
            found: Mapping[str, str | None] = self.status().get("metrics", {})
        except (NotRunningError, TimedOutError, OSError):
            return {}
        return found

    def wait_metrics(self, address: str | None, *, timeout_s: float) -> str:
        """Wait until the router serves its metrics at ``address`` (None: nowhere).

        Returns:
            Why it does not, within so many seconds; empty: it does.
        """
        deadline = time.monotonic() + timeout_s
        while (metrics := self._metrics()).get("listen") != address:
            if time.monotonic() >= deadline:
                return metrics.get("error") or "the router has not come to it yet"
            time.sleep(POLL_S)
        return ""

    def wait_applied(self, service: str, revision: int, *, timeout_s: float) -> int:
        """Have the router look at the registry at once, and wait until it applied ``revision`` or a later one.

        Raises:
            NotRunningError: no router answers, or it does not serve ``service`` yet.
            TimedOutError: not within ``timeout_s`` seconds.
        """
        return int(self._ask({"op": "applied", "service": service, "revision": revision}, timeout_s)["revision"])

    def drains(self, service: str, *, timeout_s: float = 5.0) -> list[dict[str, Any]]:
        """Each daemon that drains, with its connections. Raises as :meth:`status`; NotRunningError: not served."""
        return list(self._ask({"op": "drains", "service": service}, timeout_s)["drains"])

    def door(self, service: str) -> Door:
        """How a connection of this process reaches a daemon that shares the service's address with others."""
        return partial(self._through_door, service)

    @contextmanager
    def _through_door(self, service: str, source: str, port: int) -> Generator[None]:
        """Raises OSError: no router leads, or it cannot direct the connection. One of 0.1 is not asked to."""
        try:
            channel = connect(self._path, self._leads, timeout_s=DOOR_WITHIN_S)
        except (NotRunningError, OSError) as error:
            raise ConnectionRefusedError(f"no router directs the connection: {error}") from error
        with closing(channel):
            try:
                message = {"op": "door", "service": service, "source": source, "port": port}
                answer = self._request(channel, message, DOOR_WITHIN_S)
            except (NotRunningError, TimedOutError) as error:
                raise ConnectionRefusedError(f"no router directs the connection: {error}") from error
            why = str(answer.get("message", ""))
            if not answer.get("ok") and not why.startswith(UNKNOWN):
                raise ConnectionRefusedError(why)
            yield

    def _ask(self, message: Message, timeout_s: float) -> Message:
        with closing(connect(self._path, self._leads, timeout_s=timeout_s)) as channel:
            answer = self._request(channel, message, timeout_s)
        if not answer.get("ok"):
            raise NotRunningError(str(answer.get("message")))
        return answer

    def _request(self, channel: Channel, message: Message, timeout_s: float) -> Message:
        home = HomeIdentity.of(self._home)
        named = {"home": home.dumps()} if home else {}
        return channel.request({**message, **named, "id": 1}, timeout_s=timeout_s)

    def _leads(self) -> bool:
        """Whether a router leads: it has the directory locked, or the file where no directory can be locked."""
        return is_locked(self._lead_directory) or holder_pid(self._lead_file) is not None
