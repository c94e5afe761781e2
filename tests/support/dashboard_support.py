"""``turnout dashboard`` as a process, and somebody who speaks HTTP to it as they like."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

START_S = 60.0
# what a daemon says of itself that is out to run in the page, and to rule a terminal
EVIL = "<img src=x onerror='window.owned=1'><script>window.owned=1</script>\x1b[2J\u202e"


@dataclass(frozen=True)
class Answer:
    """One answer of HTTP; header names in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A dashboard for one home. Owns the process."""

    def __init__(self, env: Mapping[str, str], cwd: Path, *flags: str) -> None:
        self._env = dict(env)
        self._cwd = cwd
        self._flags = flags

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()  # closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "turnout", "dashboard", "--no-open", *self._flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=self._env,
            cwd=self._cwd,
            start_new_session=True,
        )
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], START_S)
        self.link = self.process.stdout.readline().decode().strip() if ready else ""
        assert self.link.startswith("http://127.0.0.1:"), self.log()
        address, _, self.token = self.link.partition("/#")
        self.origin = address
        self.port = int(address.rpartition(":")[2])
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.interrupt()
        if self.process.stdout:
            self.process.stdout.close()
        self._errors.close()

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise

    def log(self) -> str:
        """What it has said on stderr so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def ask(self, method: str, path: str, *, token: str | None = "", body: Any = None, **headers: str) -> Answer:
        """One request; ``token`` empty: the right one, None: none. Header names with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token or self.token}")
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=data, headers=sent)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def events(self) -> Events:
        return Events(self)


class Events:
    """One page's stream. Owns the connection."""

    def __init__(self, served: Served) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        self._connection.request("GET", "/events", headers={"Authorization": f"Bearer {served.token}"})
        self.answer = self._connection.getresponse()

    def next(self, part: str) -> Any:
        """The next event of this name."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            line = self.answer.readline()
            assert line, "the stream has ended"
            if line.strip() == f"event: {part}".encode():
                return json.loads(self.answer.readline().removeprefix(b"data: "))
        raise AssertionError(f"no {part} within {START_S:g} s")

    def rest(self) -> bytes:
        """Everything up to its end."""
        return self.answer.read()

    def close(self) -> None:
        self.answer.close()
        self._connection.close()
