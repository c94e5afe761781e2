"""Random faults against a running turnout, and what must hold after each of them."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e_support import Turnout, ask, line_daemon
from support import comes_true, eventually
from turnout.config.settings import Settings
from turnout.control.keeper_client import KeeperClient
from turnout.control.router_client import RouterClient
from turnout.core.model import Daemon, State
from turnout.errors import NotRunningError, TimedOutError
from turnout.state.registry.inspect import examine
from turnout.system.process import is_alive

CONFIG = """
[service.default]
listen = "127.0.0.1:{port}"
command = {command}
plane = "{plane}"
version = "{version}"
observe = "300ms"
start_timeout = "{start_timeout}"
health = {{ interval = "100ms", timeout = "2s" }}
stop = {{ grace = "1s" }}
drain = {{ grace = "200ms", deadline = "1s" }}
{more}
"""
RESTARTS_HUNG = "on_unhealthy" in Settings.__struct_fields__
ANSWERS_WITHIN_S = 30.0  # 10 s on a machine that has nothing else to do
BY_ITSELF_S = 1.5
CLEAN_BY_ITSELF_S = 6.0
CLEAN_WITHIN_S = 40.0


def seed_of_this_run() -> int:
    """From TURNOUT_CHAOS_SEED, else a new one; printed, so that a failure can be had again."""
    seed = int(os.environ.get("TURNOUT_CHAOS_SEED") or random.SystemRandom().randrange(1 << 31))
    print(f"TURNOUT_CHAOS_SEED={seed}")
    return seed


def checked_exchange(rng: random.Random) -> Callable[[socket.socket], str]:
    """Lines of random length and content; the answer must hold exactly what was sent."""

    def exchange(sock: socket.socket) -> str:
        line = rng.randbytes(rng.choice([5, 50, 500, 20_000])).hex().encode()
        sock.sendall(line + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            more = sock.recv(65536)
            if not more:
                raise ConnectionError("the connection ended before the answer")
            answer += more
        version, _, rest = answer.partition(b" ")
        if rest.partition(b" ")[2] != line + b"\n":
            raise ValueError(f"wrong bytes: {len(line)} sent, {len(answer)} came")
        return version.decode()

    return exchange


class Chaos:
    """One turnout under faults. The faults are methods whose names begin with ``fault_``.

    Args:
        turnout: the home, the port, the command line.
        rng: decides which fault, when, on what.
        plane: the data plane of the service; on ``reuseport`` the daemon is given its listener (``{fd}``).
    """

    def __init__(self, turnout: Turnout, rng: random.Random, plane: str = "relay") -> None:
        self.turnout = turnout
        self.rng = rng
        self.plane = plane
        self.done: Counter[str] = Counter()
        self.ups = 0
        self._number = 0
        self._token = f"chaos{secrets.token_hex(6)}"  # of this run alone, also where two have the same seed

    def begin(self) -> None:
        self._configure()
        self.turnout.run("up")
        in_effect = self.turnout.status()["router"]["plane"]
        assert in_effect == self.plane, f"the service is on plane {in_effect}"

    def faults(self) -> list[Callable[[], None]]:
        names = sorted(name for name in dir(self) if name.startswith("fault_"))
        return [getattr(self, name) for name in names]

    def strike(self, fault: Callable[[], None]) -> None:
        """One fault, then: the service answers after at most one ``up``, and nothing is left that should not be."""
        name = fault.__name__.removeprefix("fault_")
        self.done[name] += 1
        said = f"after {name}, fault {self.done.total()}"
        fault()
        mended = self._recover(said)
        self._check(said, mended=mended)

    def _configure(self, *flags: str, start_timeout: str = "20s") -> None:
        self._number += 1
        version = f"{self._token}-{self._number}"
        command = line_daemon("--version", version, *flags)
        if self.plane == "reuseport":
            where = command.index("--port")
            command[where : where + 2] = ["--fd", "{fd}"]
        text = CONFIG.format(
            port=self.turnout.port,
            command=str(command).replace("'", '"'),
            plane=self.plane,
            version=version,
            start_timeout=start_timeout,
            more='on_unhealthy = "restart"' if RESTARTS_HUNG else "",
        )
        (self.turnout.home.root.parent / "turnout.toml").write_text(text)

    # -- what must hold ----------------------------------------------------------------------------------------------

    def _up(self) -> None:
        self.ups += 1
        self.turnout.run("up", "--lock-timeout", "30", timeout_s=150)

    def _recover(self, said: str) -> bool:
        """Whether it took an ``up``."""
        needed = not self._answers(BY_ITSELF_S) or not self._keeper_lives() or not self._router_lives()
        if needed:
            self._up()
        assert self._answers(ANSWERS_WITHIN_S), f"{said}: no answer\n{self.turnout.logs()}"
        return needed

    def _answers(self, within_s: float) -> bool:
        deadline = time.monotonic() + within_s

        def answers() -> bool:
            with contextlib.suppress(OSError):
                left_s = max(0.1, deadline - time.monotonic())
                return ask(self.turnout.address, timeout_s=left_s).startswith(self._token)
            return False

        return comes_true(answers, timeout_s=within_s)

    def _keeper_lives(self) -> bool:
        with (
            contextlib.suppress(NotRunningError, TimedOutError, OSError),
            KeeperClient.connect(self.turnout.home) as it,
        ):
            return it.hello().pid > 0
        return False

    def _router_lives(self) -> bool:
        """On a direct plane clients are served without a router, and one that hangs is seen here alone."""

        def answers() -> bool:
            with contextlib.suppress(NotRunningError, TimedOutError, OSError):
                return bool(RouterClient(self.turnout.home).status())
            return False

        return comes_true(answers, timeout_s=BY_ITSELF_S)

    def _check(self, said: str, *, mended: bool) -> None:
        registry = self.turnout.home.service("default").registry
        assert examine(registry).sound, f"{said}: {examine(registry)}"
        if not self._gets_clean(CLEAN_WITHIN_S if mended else CLEAN_BY_ITSELF_S) and not mended:
            self._up()  # whatever still hangs there is for the next verb
        assert self._gets_clean(CLEAN_WITHIN_S), f"{said}: {self._picture()}"
        assert examine(registry).sound, f"{said}: {examine(registry)}"

    def _gets_clean(self, within_s: float) -> bool:
        return comes_true(self._is_clean, timeout_s=within_s, interval_s=0.1)

    def _is_clean(self) -> bool:
        """One keeper, one router, one daemon that the registry names, and nothing under way."""
        snapshot = self.turnout.snapshot()
        alive = {pid for daemon in snapshot.daemons.values() if is_alive(daemon.identity) for pid in [daemon.pid]}
        active = snapshot.active
        return (
            snapshot.deployment.state is State.IDLE
            and active is not None
            and alive == {active.pid}
            and self._pids("turnout.demo.daemon", self._token) == alive
            and len(self._pids("turnout.router", str(self.turnout.home.root))) == 1
            and len(self._pids("turnout.keeper", str(self.turnout.home.root))) == 1
        )

    def _picture(self) -> str:
        snapshot = self.turnout.snapshot()
        known = {boot_id: (daemon.pid, is_alive(daemon.identity)) for boot_id, daemon in snapshot.daemons.items()}
        seen = {pid: argv[3:] for pid, argv in _command_lines() if any(self._token in arg for arg in argv)}
        root = str(self.turnout.home.root)
        ours = {pid: argv[3:] for pid, argv in _command_lines() if root in argv}
        return f"not clean: {snapshot.deployment}\n{known=}\n{seen=}\n{ours=}\n{self.turnout.logs()}"

    def _pids(self, module: str, word: str) -> set[int]:
        """Processes as the machine sees them, whatever any record says."""
        return {pid for pid, argv in _command_lines() if module in argv and any(word in arg for arg in argv)}

    # -- faults ------------------------------------------------------------------------------------------------------

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _active(self) -> Daemon:
        active = self.turnout.snapshot().active
        assert active is not None
        return active

    def fault_kill_keeper(self) -> None:
        self._signal(self.turnout.keeper_pid(), signal.SIGKILL)

    def fault_stop_keeper(self) -> None:
        self._signal(self.turnout.keeper_pid(), signal.SIGSTOP)

    def fault_kill_router(self) -> None:
        self._signal(self.turnout.router_pid(), signal.SIGKILL)

    def fault_stop_router(self) -> None:
        self._signal(self.turnout.router_pid(), signal.SIGSTOP)

    def fault_kill_keeper_and_router(self) -> None:
        router = self.turnout.router_pid()
        self.fault_kill_keeper()
        self._signal(router, signal.SIGKILL)

    def fault_kill_active(self) -> None:
        self._signal(self._active().pid, signal.SIGKILL)

    def fault_stop_active(self) -> None:
        hung = self._active()
        self._signal(hung.pid, signal.SIGSTOP)
        if RESTARTS_HUNG:
            eventually(lambda: self.turnout.snapshot().deployment.active_boot_id != hung.boot_id, timeout_s=60)
        else:
            self.turnout.run("refresh", timeout_s=150)

    def fault_kill_everything(self) -> None:
        pids = [self.turnout.keeper_pid(), *[identity.pid for identity in self.turnout.processes().values()]]
        for pid in self.rng.sample(pids, len(pids)):
            self._signal(pid, signal.SIGKILL)

    def fault_kill_a_verb(self) -> None:
        verb = self.rng.choice(["up", "deploy", "refresh", "router"])
        if verb != "refresh":
            self._configure()
        process = self.turnout.begin(verb, *(["--replace"] if verb == "router" else []))
        time.sleep(self.rng.uniform(0.2, 1.5))  # any moment will do: this is what is tried
        process.kill()
        process.communicate()

    def fault_kill_candidate(self) -> None:
        with self._deploying("--start-delay", "1") as candidate:
            self._signal(candidate.pid, signal.SIGKILL)

    def fault_stop_candidate(self) -> None:
        with self._deploying("--start-delay", "1", start_timeout="3s") as candidate:
            self._signal(candidate.pid, signal.SIGSTOP)
        self._configure()

    def fault_kill_old_in_its_window(self) -> None:
        self._hit_old(signal.SIGKILL)

    def fault_stop_old_in_its_window(self) -> None:
        self._hit_old(signal.SIGSTOP)

    def fault_kill_active_in_its_window(self) -> None:
        self._configure()
        self.turnout.run("deploy", "--detach", code=None, timeout_s=150)
        self._signal(self._active().pid, signal.SIGKILL)

    def fault_replace_router(self) -> None:
        process = self.turnout.begin("router", "--replace")
        time.sleep(self.rng.uniform(0.2, 1.0))
        self._signal(self.turnout.router_pid(), signal.SIGKILL)
        process.communicate(timeout=90)

    def fault_squatted_port(self) -> None:
        """Keeper and router die, and before anybody repairs it somebody else takes the address."""
        self.fault_kill_keeper()
        eventually(self._no_router_is_left)
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.plane == "reuseport":  # the daemon has a listener there itself
                with pytest.raises(OSError, match="in use"):
                    squatter.bind(self.turnout.address)
                return
            assert comes_true(lambda: self._binds(squatter), timeout_s=20), self._who_has_the_address()
            squatter.listen()
            # a start that the dead router had begun may still have the lock
            refused = self.turnout.run("up", "--lock-timeout", "30", code=1, timeout_s=150)
            assert f"pid {os.getpid()}" in refused.stderr, refused.stderr

    def _binds(self, squatter: socket.socket) -> bool:
        with contextlib.suppress(OSError):  # a child of the dead keeper may be about to close what it inherited
            squatter.bind(self.turnout.address)
            return True
        return False

    def _who_has_the_address(self) -> str:
        sockets = ["ss", "-Htanp", f"sport = :{self.turnout.port}"]
        return subprocess.run(sockets, capture_output=True, text=True, check=False).stdout + self._picture()

    def _no_router_is_left(self) -> bool:
        """Kill those that are there: the keeper may have started one just before its death."""
        pids = self._pids("turnout.router", str(self.turnout.home.root))
        for pid in pids:
            self._signal(pid, signal.SIGKILL)
        return not pids

    def _hit_old(self, number: int) -> None:
        self._configure()
        deploy = self.turnout.begin("deploy")

        def old() -> Daemon | None:
            return self.turnout.snapshot().old

        def is_over() -> bool:
            return old() is not None or deploy.poll() is not None

        eventually(is_over, timeout_s=60, interval_s=0.005)
        found = old()
        if found:
            self._signal(found.pid, number)
        deploy.communicate(timeout=150)

    @contextlib.contextmanager
    def _deploying(self, *flags: str, start_timeout: str = "20s") -> Iterator[Daemon]:
        self._configure(*flags, start_timeout=start_timeout)
        deploy = self.turnout.begin("deploy")
        try:
            candidate = eventually(lambda: self.turnout.snapshot().candidate, timeout_s=60, interval_s=0.005)
            assert candidate is not None
            yield candidate
        finally:
            deploy.communicate(timeout=150)
        self._configure()


class SmallDisk:
    """A tmpfs of a few megabytes. Owns the mount."""

    def __init__(self, at: Path, size: str = "8m") -> None:
        self.path = at
        at.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(at)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.refused = done.stderr.strip() if done.returncode else ""

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        ballast = self.path / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        try:
            yield
        finally:
            ballast.unlink()

    def close(self) -> None:
        if not self.refused:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=True)


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
