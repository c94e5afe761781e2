"""One run's processes and files: the daemons behind every contender, the load, and the end of all of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from bench import janitor
from turnout.testing import free_port

HERE: Final = Path(__file__).parent
KINDS: Final = ("echo", "sink", "source")
START_TIMEOUT_S: Final = 20.0
LOAD_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 3.0


class BenchError(Exception):
    """A benchmark cannot go on: what is missing, or what did not start."""


@dataclass(frozen=True)
class Way:
    """A way to the daemons, up and running: a port for each kind, and the processes that carry the bytes."""

    name: str
    ports: Mapping[str, int]
    pids: tuple[int, ...]
    home: Path | None = None


def wait_for(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until somebody listens.

    Raises:
        BenchError: nobody does within 20 s, or ``process`` ended.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process is not None and process.poll() is not None:
            raise BenchError(f"{process.args!r} ended with {process.returncode} before it listened")
        if time.monotonic() > deadline:
            raise BenchError(f"nothing listens on port {port}")
        time.sleep(0.02)


class Arena:
    """Owns every process of a run, and its directory. A janitor outlives it where it is killed, and ends them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="turnout-bench-"))
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("TURNOUT_")}
        self.env |= {janitor.MARK: str(self.directory), "XDG_CONFIG_HOME": str(self.directory / "no-config")}
        self.commands: dict[str, tuple[str, ...]] = {}  # of each kind of daemon, with {port}
        self.back: dict[str, int] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "bench.janitor", str(self.directory)],
            stdin=subprocess.PIPE,
            cwd=HERE.parent,
            start_new_session=True,
        )
        try:
            self.load, self.serve = (str(self._compile(name)) for name in ("load", "serve"))
            for kind in KINDS:
                self.offer(kind, (self.serve, "{port}", kind))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compile(self, name: str) -> Path:
        target = self.directory / name
        try:
            subprocess.run(["gcc", "-O2", "-o", target, HERE / "tools" / f"{name}.c"], check=True)
        except FileNotFoundError:
            raise BenchError("gcc is not installed, and the load generator needs it") from None
        return target

    def start(self, *argv: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start something that ends with the run; its output is dropped unless ``more`` says otherwise."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        options = {**quiet, "cwd": self.directory, "env": self.env, "start_new_session": True, **more}
        process = subprocess.Popen(argv, **options)
        self._processes.append(process)
        return process

    def offer(self, kind: str, command: tuple[str, ...]) -> None:
        """Another kind of daemon, for contenders to be put in front of; one is started here."""
        self.commands[kind] = command
        self.back[kind] = self.daemon(command)

    def daemon(self, command: tuple[str, ...]) -> int:
        """A daemon by its command, with ``{port}`` in it; its port."""
        port = free_port()
        wait_for(port, self.start(*(word.replace("{port}", str(port)) for word in command)))
        return port

    def apply(self, port: int, kind: str, *arguments: object) -> dict[str, float]:
        """One run of the load generator; what it found."""
        argv = [self.load, kind, str(port), *map(str, arguments)]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=True, env=self.env
            )
        except subprocess.CalledProcessError as error:
            raise BenchError(f"{argv}: {error.stderr.strip()}") from error
        found: dict[str, float] = json.loads(done.stdout)
        return found

    @contextlib.contextmanager
    def idle(self, port: int, connections: int) -> Iterator[None]:
        """So many connections, open and silent, while the block runs."""
        process = self.start(
            self.load, "idle", str(port), str(connections), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout
        try:
            if process.stdout.readline() != b"ready\n":
                raise BenchError(f"{connections} idle connections on port {port} could not be opened")
            yield
        finally:
            process.communicate()

    def verb(self, home: Path, *args: str, env: Mapping[str, str] | None = None) -> str:
        """A verb of turnout's command line, in a home of the run's own; what it printed."""
        argv: Sequence[str] = [sys.executable, "-P", "-m", "turnout", *args]
        done = subprocess.run(
            argv,
            env={**self.env, "TURNOUT_HOME": str(home), janitor.HOME_MARK: str(home), **(env or {})},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=LOAD_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"turnout {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def stop(self, way: Way) -> None:
        """End a contender that was started for one measurement; the run's end would end it too."""
        if way.home:
            self.end_home(way.home)
        for process in self._processes:
            if process.pid in way.pids:
                process.send_signal(signal.SIGTERM)  # nginx ends its worker
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()

    def end_home(self, home: Path) -> None:
        """Keeper, router and daemons of one home."""
        janitor.sweep(str(home), janitor.HOME_MARK)

    def close(self) -> None:
        """Nothing here holds anything of value: all of it is killed, by the same hand that does it after a crash."""
        assert self._janitor.stdin
        self._janitor.stdin.close()
        self._janitor.wait(janitor.SWEEP_TIMEOUT_S * 2)
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
