"""The command line as tests use it, and what they ask of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from forked_verb import has_same_interpreter, run_forked
from support import eventually
from turnout.control.keeper_client import KeeperClient
from turnout.core.json_text import json_text
from turnout.core.model import Identity, Snapshot, State
from turnout.demo.load import Load, line_exchange
from turnout.demo.scenario import find_redis
from turnout.errors import TurnoutError
from turnout.state.builds import Builds
from turnout.state.home import Home
from turnout.state.keeper_lock import read_keeper
from turnout.state.registry.file import RegistryFile
from turnout.state.service import Service, remembered
from turnout.status.collect import ask_router, service_status
from turnout.system.process import ProcessHandle, descendants, identify, is_alive
from turnout.system.spawn_record import read_records

TURNOUT = (sys.executable, "-P", "-m", "turnout")
FAST = """
[service.default]
listen = "127.0.0.1:{port}"
command = {command}
version = "{version}"
observe = "{observe}"
health = {{ probe = "{probe}", interval = "{interval}", timeout = "{timeout}", failures = 3{extra} }}
stop = {{ signal = "{stop_signal}", grace = "5s" }}
drain = {{ grace = "1s", deadline = "{deadline}", max_draining = {draining} }}
"""


def redis_server() -> str | None:
    return find_redis()


def line_daemon(*flags: str) -> list[str]:
    """The bundled daemon's command."""
    return [sys.executable, "-P", "-m", "turnout.demo.daemon", "--port", "{port}", *flags]


class Turnout:
    """One home, one port, and the command line. Ends every process that came out of it."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = Home(home)
        self.port = port
        self.address = ("127.0.0.1", port)
        self._popen: list[subprocess.Popen[str]] = []

    @property
    def env(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TURNOUT_")}
        return kept | {"TURNOUT_HOME": str(self.home.root), "XDG_CONFIG_HOME": str(self.home.root.parent / "no-config")}

    def argv(self, *args: str) -> list[str]:
        return [*TURNOUT, *args]

    def run(
        self, *args: str, code: int | None = 0, timeout_s: float = 90, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end; ``code`` is the exit code it must have (None: any).

        The verb has an interpreter of its own where a test asks for anything but the plain command: with ``more``,
        which are options of :func:`subprocess.run`, with an ``argv`` of its own, with variables that Python reads.
        """
        argv = self.argv(*args)
        options = {"cwd": self.home.root.parent, "env": self.env, **more}
        if more or argv != [*TURNOUT, *args] or not has_same_interpreter(self.env):
            options |= {"capture_output": True, "text": True, "timeout": timeout_s}
            done = subprocess.run(argv, check=False, **options)
        else:
            done = run_forked(args, timeout_s=timeout_s, **options)
        assert code is None or done.returncode == code, (
            f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        )
        return done

    def begin(self, *args: str, **more: Any) -> subprocess.Popen[str]:
        """Start a verb and go on."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"cwd": self.home.root.parent, "env": self.env, **streams, **more}
        process = subprocess.Popen(self.argv(*args), text=True, start_new_session=True, **options)
        self._popen.append(process)
        return process

    def configure(
        self,
        command: list[str],
        *,
        version: str = "v1",
        observe: str = "600ms",
        probe: str = "alive",
        extra: str = "",
        deadline: str = "10m",
        interval: str = "100ms",
        timeout: str = "2s",
        stop_signal: str = "TERM",
        draining: int = 3,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Write a turnout.toml with short times into the directory that the verbs run in.

        ``draining``: more at once are hastened, which ends connections that are quiet.
        ``settings``: as in :meth:`tune`, in the same write: a router that runs takes over each state of the file.
        """
        text = FAST.format(
            port=self.port,
            command=json.dumps(command),
            version=version,
            observe=observe,
            probe=probe,
            extra=extra,
            deadline=deadline,
            interval=interval,
            timeout=timeout,
            stop_signal=stop_signal,
            draining=draining,
        )
        self._put(_tuned(text, settings or {}))

    @property
    def registry(self) -> RegistryFile:
        return RegistryFile(self.home.service("default").registry)

    def snapshot(self) -> Snapshot:
        return self.registry.read().snapshot

    def applied(self, *, timeout_s: float = 60.0) -> Snapshot:
        """The registry as it is now, once the router has applied it: whoever connects is served as it says."""
        snapshot = self.snapshot()
        wanted = snapshot.deployment.revision

        def reached() -> bool:
            found = self.status()["router"]["applied_revision"]
            return found is not None and found >= wanted

        eventually(reached, timeout_s=timeout_s, why=f"revision {wanted} is not applied")
        return snapshot

    def status(self, service: str = "") -> dict[str, Any]:
        """One service's entry in ``status --json``, without a process for it: the verb is slow to begin.

        Args:
            service: its name; empty where the home has no other.
        """
        (name,) = [service] if service else self.home.service_names()
        settings = remembered(self.home.service(name))
        assert settings, f"{name} has no settings"
        seen = service_status(Service.open(self.home.service(name), settings), ask_router(self.home))
        found: dict[str, Any] = json.loads(json_text(seen))
        return found

    def active(self) -> dict[str, Any]:
        """The active daemon's entry in status."""
        found: dict[str, Any] = next(d for d in self.status()["daemons"] if d["role"] == "active")
        return found

    def keeper_pid(self) -> int:
        with KeeperClient.connect(self.home) as keeper:
            return keeper.hello().pid

    def router_pid(self) -> int:
        with KeeperClient.connect(self.home) as keeper:
            return keeper.hello().router_pid

    def processes(self) -> dict[str, Identity]:
        """Every process of this home that lives: daemons and routers, by boot id."""
        found = dict(read_records(self.home.root))
        for name in self.home.service_names():
            found.update(read_records(self.home.service(name).records))
        return {boot_id: record.identity for boot_id, record in found.items() if is_alive(record.identity)}

    def daemons(self) -> dict[str, Identity]:
        return {
            boot_id: identity for boot_id, identity in self.processes().items() if not boot_id.startswith("router-")
        }

    def journal(self) -> list[dict[str, Any]]:
        """What was decided, oldest first."""
        lines = self.home.service("default").journal.read_text().splitlines()
        return [json.loads(line) for line in lines]

    def journaled(self, event: str, *, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """The entries of this event with these fields, once there are ``count`` of them or more.

        The router writes an entry after the registry, in a thread: a verb may have ended before the entry is there.
        """

        def found() -> list[dict[str, Any]]:
            return [entry for entry in self.journal() if entry["event"] == event and fields.items() <= entry.items()]

        eventually(lambda: len(found()) >= count, why=f"{count} of {event} {fields} are not in the journal")
        return found()

    def deploy_that_dies(self, *flags: str) -> tuple[int, str]:
        """Deploy what is configured, and kill its daemon in the window; the verb's exit code and what it said.

        A daemon that ends by itself after so many seconds may end before the switch, on a machine that is busy.
        At the end the build is in quarantine.
        """
        before = self.snapshot().deployment.generation
        deploy = self.begin("deploy", *flags)
        self.kill_in_its_window(after=before)
        _, said = deploy.communicate(timeout=90)
        self.until_quarantined()
        return deploy.returncode, said

    def until_quarantined(self) -> None:
        """Wait for a build to be in quarantine: the router writes that after the registry, where a verb reads it."""
        builds = Builds(self.home.service("default").builds)
        eventually(lambda: any(builds.quarantined(rollout.build) for rollout in builds.rollouts()), timeout_s=60)

    def kill_in_its_window(self, *, after: int) -> None:
        """Kill the daemon of the first rollout after generation ``after``, once it is active and observed."""

        def switched() -> Snapshot | None:
            snapshot = self.snapshot()
            block = snapshot.deployment
            return snapshot if block.generation > after and block.state is State.SWITCHED else None

        snapshot = eventually(switched, timeout_s=60, why="no window was opened")
        assert snapshot
        assert snapshot.active
        self.kill(snapshot.active.pid)

    def tune(self, **settings: str) -> None:
        """Put more settings into the turnout.toml that :meth:`configure` wrote; a value is TOML as it stands."""
        self._put(_tuned((self.home.root.parent / "turnout.toml").read_text(), settings))

    def _put(self, text: str) -> None:
        """Replace the turnout.toml in one step, as an editor does: no router reads half of it."""
        path = self.home.root.parent / "turnout.toml"
        fresh = path.with_suffix(".fresh")
        fresh.write_text(text)
        fresh.replace(path)

    def everything(self) -> set[int]:
        """Every living process that came out of this home's keeper: router, daemons, and whatever those left behind.

        Without the daemons' shims, which end by themselves as soon as nothing else of a daemon is left.
        """
        return {pid for pid in descendants(self.keeper_pid()) if _lives(pid)} - self.shims()

    def shims(self) -> set[int]:
        records = read_records(self.home.service("default").records).values()
        return {record.shim.pid for record in records if record.shim and is_alive(record.shim)}

    def logs(self) -> str:
        parts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in self.home.root.glob("*.log")
        ]
        return "\n".join(parts)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal. One that is killed is waited for: till then its listener takes clients, and resets them.

        One that is stopped (SIGSTOP) is waited for, too: till then it may finish the system call that it is in.
        """
        identity = identify(pid)
        os.kill(pid, number)
        if number == signal.SIGKILL:  # its threads, too: the first of them may have ended before the others
            eventually(lambda: not is_alive(identity), interval_s=0.001)
        if number == signal.SIGSTOP:
            eventually(lambda: not is_alive(identity) or _is_stopped(pid), interval_s=0.001)

    def listening(self) -> bool:
        with socket.socket() as sock:
            sock.settimeout(1.0)
            return sock.connect_ex(self.address) == 0

    def end(self) -> None:
        """End everything that belongs to this home, whatever state a test left it in."""
        for process in self._popen:
            if process.poll() is None:
                process.kill()
            process.communicate()
        last = read_keeper(self.home.keeper_lock)
        for identity in [*self.processes().values(), *([last] if last and is_alive(last) else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGCONT)
        left: list[Identity] = []
        with contextlib.suppress(TurnoutError, OSError), KeeperClient.connect(self.home) as keeper:
            for pid in descendants(keeper.hello().pid):
                with contextlib.suppress(ProcessLookupError):
                    left.append(identify(pid))
            keeper.shutdown()
        for identity in left:  # what a broken keeper would leave behind
            with contextlib.suppress(ProcessLookupError), ProcessHandle.open(identity) as handle:
                handle.signal(signal.SIGKILL)
        for identity in self.processes().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)
        eventually(lambda: not self.processes(), why="processes of the test are left")


def _lives(pid: int) -> bool:
    try:
        return is_alive(identify(pid))
    except ProcessLookupError:
        return False


@contextlib.contextmanager
def under_load(turnout: Turnout, *, clients: int = 3) -> Iterator[Load]:
    """Clients at the fixed address all the while; at the end none of them may have failed."""
    load = Load(turnout.address, line_exchange, clients=clients)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    assert (load.failed, dict(load.errors)) == (0, {})


def _tuned(text: str, settings: Mapping[str, str]) -> str:
    """A turnout.toml with these settings instead of what it says of them."""
    lines = [line for line in text.splitlines() if line.partition(" = ")[0] not in settings]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in settings.items())]) + "\n"


def _is_stopped(pid: int) -> bool:
    """Whether all of its threads are (proc(5), stat)."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
        return False
    return {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}


def ask(address: tuple[str, int], line: str = "hello", *, timeout_s: float = 20.0) -> str:
    """One line to the bundled daemon over a connection of its own; the version that answered."""
    with socket.create_connection(address, timeout_s) as sock:
        sock.sendall(line.encode() + b"\n")
        return sock.makefile().readline().split(" ")[0].rstrip("\n")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """As a program does it that knows nothing of turnout: read, change, write beside, rename."""
    raw = json.loads(path.read_bytes())
    change(raw)
    temp = path.with_name("theirs.tmp")
    temp.write_text(json.dumps(raw))
    temp.replace(path)


def retarget(boot_id: str, port: int = 0) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        if port:
            raw["daemons"][boot_id] = {"host": "127.0.0.1", "port": port, "theirs": True}
        raw["deployment"]["active_boot_id"] = boot_id
        raw["deployment"]["revision"] += 1

    return change
