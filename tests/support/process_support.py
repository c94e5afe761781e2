"""Real processes for tests, each ended with its test."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from turnout.core.model import Daemon, Identity
from turnout.system.process import ProcessHandle, identify
from turnout.testing import demo_command

START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Running:
    """One bundled daemon, and its entry as the registry would have it."""

    process: subprocess.Popen[bytes]
    port: int
    daemon: Daemon
    said: str

    @property
    def address(self) -> tuple[str, int]:
        return self.daemon.host, self.port


class Started:
    """Owns the processes of one test."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._others: list[ProcessHandle] = []

    def run(self, *argv: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "start_new_session": True, **more}
        process: subprocess.Popen[bytes] = subprocess.Popen(argv, **options)
        self._processes.append(process)
        return process

    def python(self, code: str, *args: str, **more: Any) -> subprocess.Popen[bytes]:
        return self.run(sys.executable, "-P", "-c", code, *args, **more)

    def also(self, pid: int) -> None:
        """A process that is no child of ours, ended with the test as well, with its group if it leads one."""
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._others.append(ProcessHandle.open(identify(pid)))

    def demo(self, *flags: str, version: str = "v1", host: str = "127.0.0.1") -> Running:
        """The bundled daemon, listening already, on a port that the kernel chose."""
        argv = [word.replace("{port}", "0") for word in demo_command(version, "--host", host, *flags)]
        process = self.run(*argv)
        said = line_of(process)
        while b"listens on" not in said:
            said = line_of(process)
        found = re.search(rb"port (\d+)", said)
        assert found, said
        port = int(found[1])
        identity = identify(process.pid)
        return Running(process, port, entry(identity, port, host=host), said.decode(errors="surrogateescape"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.returncode is None:  # not waited for, so the number is its own
                _end_group(process.pid)
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
        for handle in self._others:
            for end in (handle.signal_group, handle.signal):
                with contextlib.suppress(ProcessLookupError):
                    end(signal.SIGKILL)
            handle.close()


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # started in our own session
        os.killpg(pid, signal.SIGKILL)


def entry(identity: Identity, port: int, *, host: str = "127.0.0.1") -> Daemon:
    """A registry entry."""
    return Daemon("boot", host=host, port=port, identity=identity, owned=True)


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that a process writes, waited for with a deadline."""
    assert process.stdout
    fd = process.stdout.fileno()
    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing within {START_TIMEOUT_S} s, only {line!r}"
        data = os.read(fd, 1)
        assert data, f"it ended after {line!r}"
        line += data
    return line
