"""Verbs of the command line in this process, with a keeper, a router and candidates that are fakes.

The daemons are processes of their own that hold a listener and do nothing, so what lives and what has ended is real.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import pytest
from click.testing import CliRunner

from turnout.cli import cli
from turnout.config.file import load_file
from turnout.config.settings import Settings, dump_settings
from turnout.control.keeper_client import KeeperClient, KeeperInfo
from turnout.control.router_client import RouterClient
from turnout.core.deployment import rollback_active
from turnout.core.membership import forget_daemon, register_daemon
from turnout.core.model import Daemon, Deployment, DrainCause, Identity, Snapshot, State
from turnout.core.outcome import Outcome, apply
from turnout.errors import NotRunningError, TurnoutError
from turnout.lifecycle.build_selection import named_build
from turnout.state.builds import Build, Rollout
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.process import identify, is_alive

KEEPER_PID: Final = 7
ROUTER_PID: Final = 8
FILE: Final = """
[service.default]
listen = "127.0.0.1:{port}"
command = ["sleep", "600"]
cwd = "{cwd}"
version = "{version}"
strategy = "{strategy}"
observe = "10m"
health = {{ probe = "alive", interval = "100ms", failures = 3 }}
stop = {{ signal = "KILL", grace = "5s" }}
drain = {{ grace = "0s" }}
"""


@dataclass(frozen=True)
class Said:
    """What a verb answered: its lines on stdout, or its error."""

    code: int
    lines: tuple[str, ...]
    error: str = ""


class Stage:
    """One service whose state a test sets, and what its verbs did to it. Owns its processes and sockets."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.home = Home(directory / "home")
        self.port = port
        self.keeper_runs = False
        self.router_answers = True
        self.known: dict[str, list[tuple[str, int]]] = {}
        self.did: list[tuple[str, ...]] = []
        self.version = "v1"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets: list[socket.socket] = []
        self.configure("v1")

    # -- what is ------------------------------------------------------------------------------------------------------

    @property
    def file(self) -> Path:
        return self.directory / "turnout.toml"

    def configure(self, version: str, *, strategy: str = "blue-green") -> None:
        self.version = version
        self.file.write_text(FILE.format(port=self.port, cwd=self.directory, version=version, strategy=strategy))
        self.wanted = load_file(self.file)["default"]
        self.service = Service.open(self.home.service("default"), self.wanted.settings)

    @property
    def snapshot(self) -> Snapshot:
        return self.service.registry.read().snapshot

    def build(self, version: str) -> Build:
        build = named_build(self.wanted)
        assert build is not None
        return msgspec.structs.replace(build, version=version)

    def set_up(self, block: Deployment, *daemons: Daemon) -> None:
        """Write registry and settings, as verbs that ran before left them."""
        service = self.service
        service.home.create()
        service.home.settings.write_bytes(dump_settings(self.wanted.settings))

        def change(snap: Snapshot) -> Outcome:
            return apply(replace(snap, daemons={daemon.boot_id: daemon for daemon in daemons}), block)

        service.registry.update(change)

    def record(self, generation: int, version: str, result: str) -> None:
        self.service.home.create()
        build = self.build(version)
        self.service.builds.record_rollout(Rollout(generation, build.id, "deploy", time.time()), build)
        self.service.builds.set_result(generation, result)

    def run_keeper(self) -> None:
        self.keeper_runs = True
        self.known["default"] = [("127.0.0.1", self.port)]

    def daemon(self, boot_id: str, version: str, *, owned: bool = True, lives: bool = True) -> Daemon:
        """A daemon of the build ``version``, or one that was attached; its process runs, or ran."""
        listener = socket.create_server(("127.0.0.1", 0))
        process = subprocess.Popen(["sleep", "600"], pass_fds=[listener.fileno()])
        port = int(listener.getsockname()[1])
        listener.close()
        self._processes[boot_id] = process
        identity = identify(process.pid)
        if not lives:
            self.end(boot_id)
        build = self.build(version).id if owned else ""
        version = version if owned else ""
        return Daemon(boot_id, port=port, identity=identity, version=version, build=build, owned=owned)

    def owner(self, *, lives: bool) -> Identity:
        return self.daemon(f"owner-{lives}", "v1", lives=lives).identity

    def files(self) -> dict[Path, bytes]:
        """All that the home's files say; logs and locks say nothing of what is."""
        skip = {".lock", ".log"}
        return {
            path: path.read_bytes() for path in self.home.root.rglob("*") if path.is_file() and path.suffix not in skip
        }

    def journal(self) -> list[dict[str, Any]]:
        journal = self.service.home.journal
        return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    def end(self, boot_id: str) -> None:
        process = self._processes.get(boot_id)
        if process:
            process.kill()
            process.wait()

    def close(self) -> None:
        for boot_id in self._processes:
            self.end(boot_id)
        for sock in self._sockets:
            sock.close()

    # -- verbs --------------------------------------------------------------------------------------------------------

    def type(self, *args: str) -> Said:
        """Run a verb; an error is what it would have said in its one line."""
        env = {"TURNOUT_HOME": str(self.home.root), "TURNOUT_CONFIG": str(self.file)}
        done = CliRunner().invoke(cli, args, env=env)
        if isinstance(done.exception, TurnoutError):
            return Said(done.exception.exit_code, (), done.exception.message)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return Said(done.exit_code, tuple(done.stdout.splitlines()))

    # -- the keeper ---------------------------------------------------------------------------------------------------

    def hello(self, **_: Any) -> KeeperInfo:
        return KeeperInfo(KEEPER_PID, "test", ROUTER_PID, True, dict(self.known))

    def listen(self, settings: Settings) -> None:
        if settings.name not in self.known:
            self.did.append(("listen",))
        self.known[settings.name] = [(address.host, address.port) for address in settings.listen]

    def unlisten(self, service: str) -> list[str]:
        if self.known.pop(service, None):
            self.did.append(("close",))
        return list(self.known)

    def stop(self, _service: str, boot_id: str, **_: Any) -> None:
        daemon = self.snapshot.daemons.get(boot_id)
        if daemon and is_alive(daemon.identity):
            self.did.append(("stopped", boot_id))
            self.end(boot_id)
        if self.router_answers:
            self.supervise()

    def shutdown(self, **_: Any) -> None:
        self.did.append(("keeper ended",))
        self.keeper_runs = False

    def close_line(self) -> None:
        """The line to the keeper ends; it runs on."""

    # -- the router ---------------------------------------------------------------------------------------------------

    def status(self, **_: Any) -> dict[str, Any]:
        self._answer()
        self.supervise()
        return {"services": {name: {"plane": "relay"} for name in self.known}}

    def wait_applied(self, _service: str, revision: int, **_: Any) -> int:
        self._answer()
        self.supervise()
        return revision

    def supervise(self) -> None:
        """What a router does at once: it puts the previous daemon back, and stops and forgets what has drained."""
        service = self.service
        snapshot = service.registry.read().snapshot
        block, active, old = snapshot.deployment, snapshot.active, snapshot.old
        failed = block.state is State.SWITCHED and active and not is_alive(active.identity)
        if failed and active and old and is_alive(old.identity):
            service.registry.update(lambda snap: rollback_active(snap, block.generation, old.boot_id, reason="ended"))
            service.builds.quarantine(active.build, "ended", block.generation)
            self.did.append(("router put back", old.boot_id))
        snapshot = service.registry.read().snapshot
        for daemon in snapshot.daemons.values():
            if daemon.draining and daemon.boot_id not in snapshot.deployment.named:
                if daemon.drain_cause in {DrainCause.HASTENED, DrainCause.STOPPED} and daemon.boot_id == "d":
                    self.did.append(("hastened", daemon.boot_id))
                if daemon.owned and is_alive(daemon.identity):
                    self.did.append(("stopped", daemon.boot_id))
                    self.end(daemon.boot_id)
                service.registry.update(lambda snap, boot=daemon.boot_id: forget_daemon(snap, boot))  # type: ignore[misc]

    def _answer(self) -> None:
        if not self.keeper_runs or not self.router_answers:
            raise NotRunningError("no router answers")


class Line:
    """A :class:`KeeperClient` that ends at a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be closed."""

    def close(self) -> None:
        """Nothing is to be closed."""


class ReadyCandidate:
    """A candidate that is healthy at once."""

    def __init__(self, stage: Stage, boot_id: str) -> None:
        self._stage = stage
        self._boot_id = boot_id

    def start(self, build: Build, _context: object) -> Daemon:
        self._stage.did.append(("start", *build.command, build.version))
        daemon = replace(self._stage.daemon(self._boot_id, build.version), build=build.id)
        self._stage.service.registry.update(lambda snap: register_daemon(snap, daemon))
        return daemon

    def check_ready(self, _daemon: Daemon, _known: object = None) -> None:
        """It is."""

    def check_once_more(self, _daemon: Daemon) -> None:
        """It is."""

    def stop(self) -> None:
        self._stage.end(self._boot_id)


@contextmanager
def staged(monkeypatch: pytest.MonkeyPatch, directory: Path, port: int) -> Iterator[Stage]:
    """A stage that the verbs of this process work on."""
    stage = Stage(directory, port)

    def connect(_home: Home) -> Line:
        if not stage.keeper_runs:
            raise NotRunningError("no keeper runs")
        return Line(stage)

    def ensure(_home: Home) -> Line:
        if not stage.keeper_runs:
            stage.did.append(("keeper started",))
            stage.keeper_runs = True
        return Line(stage)

    def candidate(_service: object, _bootstrap: object, _router: object, boot_id: str, **_: object) -> ReadyCandidate:
        return ReadyCandidate(stage, boot_id)

    with monkeypatch.context() as patch:
        patch.setattr(KeeperClient, "connect", connect)
        patch.setattr("turnout.lifecycle.bootstrap.ensure_keeper", ensure)
        patch.setattr("turnout.lifecycle.rollout.Candidate", candidate)
        patch.setattr(RouterClient, "status", lambda _self, **more: stage.status(**more))
        patch.setattr(
            RouterClient, "wait_applied", lambda _self, name, revision, **_: stage.wait_applied(name, revision)
        )
        patch.setattr("turnout.lifecycle.observation.await_verdict", lambda *_, **__: None)
        patch.setattr("os.fsync", lambda _fd: None)
        patch.delenv("NOTIFY_SOCKET", raising=False)
        try:
            yield stage
        finally:
            stage.close()
