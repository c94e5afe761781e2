"""A ``sitecustomize`` for a router under test: it notes file calls on the loop, and can make them hang.

A router that is started with this file's directory (:func:`installed`) on its PYTHONPATH has every call of the standard
library that takes a path go through here first. FILE_CALLS names a directory in which ``calls`` counts what was seen,
``on_loop`` lists calls in the thread of the running loop, and ``hangs`` holds path prefixes, one a line: calls on such
a path wait until that line is gone, as they do on a network file system whose server is gone.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of a router that is about to lead, or stands by: it carries no client yet.
BEFORE_IT_SERVES = ("leader_lock.py", "own_log.py")
TAKE_A_PATH = (
    *("stat", "lstat", "open", "access", "scandir", "listdir", "readlink", "statvfs"),
    *("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "truncate", "chmod", "chown"),
)


def installed(directory: Path) -> dict[str, str]:
    """Put the ``sitecustomize`` there; answers what the environment of the keeper must say."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(Path(__file__).read_text() + "\n\nwatch()\n")
    (directory / "hangs").write_text("")
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "FILE_CALLS": str(directory)}


class FileCalls:
    """What one router is watched with. ``under``: path prefixes that concern it."""

    def __init__(self, directory: str, under: str) -> None:
        self._under = under
        self._local = threading.local()
        self._open, self._write, self._read, self._close = os.open, os.write, os.read, os.close
        self._calls, self._on_loop, self._hangs = (f"{directory}/{n}" for n in ("calls", "on_loop", "hangs"))

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watch(*args: Any, **kwargs: Any) -> Any:
            if args and not getattr(self._local, "inside", False):
                self._local.inside = True
                try:
                    self.seen(args[0])
                finally:
                    self._local.inside = False
            return call(*args, **kwargs)

        return watch

    def seen(self, path: Any) -> None:
        if not isinstance(path, (str, os.PathLike)):
            return
        name = str(os.fspath(path))
        if not name.startswith(self._under):
            return
        self._note(self._calls, f"{name}\n")
        if threading.current_thread() is threading.main_thread() and asyncio._get_running_loop() is not None:
            stack = traceback.format_stack()[:-2]
            if not any(f'{known}"' in frame for known in BEFORE_IT_SERVES for frame in stack):
                self._note(self._on_loop, f"{name}\n{''.join(stack[-4:])}\n")
        while any(name.startswith(prefix) for prefix in self._lines(self._hangs)):
            time.sleep(0.01)

    def _note(self, path: str, text: str) -> None:
        fd = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._write(fd, text.encode(errors="replace"))
        self._close(fd)

    def _lines(self, path: str) -> list[str]:
        fd = self._open(path, os.O_RDONLY)
        try:
            return self._read(fd, 65536).decode().split()
        finally:
            self._close(fd)


def watch() -> None:
    """Begin, where this process is a router."""
    if "turnout.router" not in sys.orig_argv:
        return
    calls = FileCalls(os.environ["FILE_CALLS"], str(Path(os.environ["FILE_CALLS"]).parent))
    for name in TAKE_A_PATH:
        setattr(os, name, calls.watched(getattr(os, name)))
    # pathlib has io.open, everybody else the builtin
    io.open = builtins.open = calls.watched(io.open)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in {"socket.connect", "socket.bind"} and isinstance(args[1], str):
            calls.seen(args[1])

    sys.addaudithook(audit)
