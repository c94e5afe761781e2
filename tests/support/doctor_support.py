"""A home to break, a machine to pretend, and a shell that follows the doctor's advice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from process_support import Started, line_of
from registry_support import write_both
from support import eventually
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Deployment, Desired, Snapshot
from turnout.doctor.context import Context
from turnout.doctor.finding import CheckResult, Finding
from turnout.doctor.run import diagnose, fix
from turnout.state.home import Home, ServiceHome
from turnout.system.process import is_suspended
from turnout.testing import free_port

SYSCTLS = {
    "net.core.somaxconn": "4096",
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "fs.pipe-user-pages-soft": "16384",
    "fs.pipe-max-size": "1048576",
}

_STOPPED = Snapshot(deployment=Deployment(generation=4, revision=20, desired=Desired.STOPPED))


class Patient:
    """A healthy home with one service, nothing running, on a machine whose sysctls lie in a directory."""

    def __init__(self, directory: Path, started: Started) -> None:
        self.directory = directory
        self.started = started
        self.home = Home(directory / "home")
        self.service: ServiceHome = self.home.service("default")
        self.home.create()
        self.service.create()
        self.port = free_port()
        self.context: dict[str, Any] = {}
        self.tools: dict[str, str] = {}
        self.listen(self.port)
        write_both(self.service.registry, _STOPPED)
        self.service.registry.chmod(0o600)
        self.proc = directory / "proc"
        for name, value in SYSCTLS.items():
            self.sysctl(name, value)
        (self.proc / "locks").symlink_to("/proc/locks")

    def listen(self, port: int) -> None:
        self.settings = Settings(name="default", listen=(parse_address(f"127.0.0.1:{port}"),))
        self.service.settings.write_bytes(dump_settings(self.settings))

    def sysctl(self, name: str, value: str) -> None:
        path = self.proc / "sys" / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def look(self) -> list[CheckResult]:
        return diagnose(Context(self.home, proc=self.proc, **self.context))

    def diagnose(self) -> list[Finding]:
        return [found.finding for found in self.look()]

    def fix(self) -> list[str]:
        """As ``doctor --fix``, on the machine that is pretended; what was done."""
        return fix(self.look())

    def wrong(self) -> dict[str, Finding]:
        """What is not ok, by check."""
        return {finding.check: finding for finding in self.diagnose() if finding.verdict != "ok"}

    def follow(self, mend: str, *, before: str = "") -> None:
        """Type it."""
        done = subprocess.run(
            ["sh", "-c", f"{before}{mend}"],
            env=self.environ(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{mend}: {done.stdout}{done.stderr}"

    def environ(self) -> dict[str, str]:
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        tool(tools / "turnout", f'exec "{sys.executable}" -P -m turnout "$@"')
        # the kernel's own are the machine's, and not ours to change
        tool(
            tools / "sysctl",
            f'test "$1" = -w || exit 2; name=${{2%%=*}}; file="{self.proc}/sys/$(echo "$name" | tr . /)"\n'
            'test -e "$file" || exit 3; echo "${2#*=}" > "$file"',
        )
        for name, script in self.tools.items():
            tool(tools / name, script)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TURNOUT_")}
        path = f"{tools}:{os.environ.get('PATH', os.defpath)}"
        return kept | {
            "PATH": path,
            "TURNOUT_HOME": str(self.home.root),
            "XDG_CONFIG_HOME": str(self.directory / "no-config"),
        }

    def tool(self, name: str, script: str) -> None:
        """A command that changes what is pretended, in the place of the machine's."""
        self.tools[name] = script

    def holds_lock(self, path: Path, *, suspended: bool, since: float | None = None) -> int:
        """A process that has the lock, and lets it go when it is told to go on, or to end."""
        code = (
            "import fcntl, json, os, signal, sys, time\n"
            "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600); fcntl.flock(fd, fcntl.LOCK_EX)\n"
            "if sys.argv[2]:\n"
            "    side = os.path.join(os.path.dirname(sys.argv[1]), 'lifecycle.json')\n"
            "    signed = {'verb': 'deploy', 'pid': os.getpid(), 'since': float(sys.argv[2])}\n"
            "    open(side, 'w').write(json.dumps(signed))\n"
            "print('held', flush=True)\n"
            "os.kill(os.getpid(), signal.SIGSTOP) if sys.argv[3] == 'stop' else time.sleep(300)\n"
        )
        process = self.started.python(code, str(path), str(since or ""), "stop" if suspended else "")
        assert line_of(process) == b"held\n"
        if suspended:
            eventually(lambda: is_suspended(process.pid), why="it does not stop")
        self.child = process
        return process.pid

    def reap(self) -> None:
        """Wait for the child that the advice ended or woke."""
        self.child.wait(60)


def tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def connected_from(port: int, started: Started) -> subprocess.Popen[bytes]:
    """A process whose outgoing connection has ``port`` as its source."""
    code = (
        "import socket, sys, time\n"
        "server = socket.create_server(('127.0.0.1', 0)); client = socket.socket()\n"
        "client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); client.bind(('127.0.0.1', int(sys.argv[1])))\n"
        "client.connect(server.getsockname()); print('connected', flush=True); time.sleep(300)\n"
    )
    process = started.python(code, str(port))
    assert line_of(process) == b"connected\n"
    return process


def listening_on(port: int, started: Started) -> subprocess.Popen[bytes]:
    code = (
        "import socket, sys, time\n"
        "server = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "print('listens', flush=True); time.sleep(300)\n"
    )
    process = started.python(code, str(port))
    assert line_of(process) == b"listens\n"
    return process


def unix_socket(path: Path, mode: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # sun_path is short, unix(7)
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)
    path.chmod(mode)


def date_ahead(path: Path, *, ahead_s: float) -> None:
    """Date a file ``ahead_s`` seconds into the future."""
    then = time.time() + ahead_s
    os.utime(path, (then, then))
