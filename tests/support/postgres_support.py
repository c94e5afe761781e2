"""A real PostgreSQL: the binaries of the pgserver package, run as a user that it accepts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from programs import wheel

NOBODY = 65534


@contextmanager
def readable_copy() -> Iterator[Path]:
    """The programs of the pgserver package where every user may look: a directory, with them in pgserver/pginstall/bin.

    PostgreSQL refuses to run as root, and nobody may not look into pytest's directories, nor perhaps into ours.
    """
    found = wheel("pgserver")
    with tempfile.TemporaryDirectory(prefix="turnout-postgres-", ignore_cleanup_errors=True) as made:
        directory = Path(made)
        directory.chmod(0o755)
        for name in ("pgserver", "pgserver.libs"):  # side by side: the programs look for their libraries so
            shutil.copytree(found.with_name(name), directory / name, ignore=shutil.ignore_patterns("include", "*.a"))
        yield directory


class Postgres:
    """One data directory and the commands for it, in a directory that :func:`readable_copy` made."""

    def __init__(self, directory: Path) -> None:
        self._bin = directory / "pgserver" / "pginstall" / "bin"
        self.data = directory / "pgdata"
        self.data.mkdir(mode=0o700)
        self._as: list[str] = []
        if os.geteuid() == 0:
            os.chown(self.data, NOBODY, NOBODY)
            setpriv = shutil.which("setpriv")
            assert setpriv, "util-linux"
            self._as = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        initdb = [*self._as, str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres"]
        subprocess.run(
            [*initdb, "--auth=trust", "--no-sync", "-E", "utf8"], check=True, capture_output=True, cwd="/", timeout=120
        )

    def command(self, *options: str) -> list[str]:
        """The server in the foreground, on one address, without a socket in /tmp."""
        fixed = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        return [*self._as, str(self._bin / "postgres"), "-D", str(self.data), "-p", "{port}", *fixed, *options]

    def client(self, program: str, address: tuple[str, int], *args: str) -> list[str]:
        return [str(self._bin / program), "-h", address[0], "-p", str(address[1]), "-U", "postgres", *args]

    def query(self, address: tuple[str, int], sql: str) -> str:
        """What one statement answers, over a connection of its own."""
        done = subprocess.run(
            self.client("psql", address, "-d", "postgres", "-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", sql),
            check=False,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


class Pgbench:
    """``pgbench -C`` over and over, a new connection for each transaction, which inserts one row. Owns its threads."""

    def __init__(self, postgres: Postgres, address: tuple[str, int], directory: Path, *, clients: int = 4) -> None:
        script = directory / "insert.sql"
        script.write_text("INSERT INTO written DEFAULT VALUES;\n")
        options = ["-C", "-n", "-c", str(clients), "-t", "25", "-f", str(script), "postgres"]
        self._command = postgres.client("pgbench", address, *options)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.processed = 0
        self.trouble: list[str] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(2)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _work(self) -> None:
        while not self._stop.is_set():
            done = subprocess.run(self._command, check=False, capture_output=True, text=True, timeout=120)
            processed = re.search(r"actually processed: (\d+)/(\d+)", done.stdout)
            with self._lock:
                if done.returncode or processed is None or processed[1] != processed[2]:
                    self.trouble.append(f"exit {done.returncode}: {done.stderr}{done.stdout}")
                self.processed += int(processed[1]) if processed else 0
