"""The threads that touch one service's files, and the warning where one of them hangs."""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

HANGS_S: Final = 10.0  # a file that is being written in place keeps a read for five
log = logging.getLogger("turnout.router")


class FileThreads(NamedTuple):
    """Where one service's files are read and written.

    Args:
        reading: the registry and settings.json. A read never waits for a lock.
        writing: the registry and builds.json, which wait for their locks; spawn records.
        configuration: the directories of the configuration file and of the watched files, and the version command.
        starting: verbs are started here; the directory of the Python interpreter.
    """

    reading: Executor
    writing: Executor
    configuration: Executor
    starting: Executor

    def shutdown(self) -> None:
        for executor in self:
            executor.shutdown(wait=False, cancel_futures=True)


class HangWarning:
    """Warns once that a directory does not answer, and once that it answers again.

    Args:
        subject: stands before the directory in the log.
    """

    def __init__(self, service: str, subject: str) -> None:
        self._service = service
        self._subject = subject
        self._directory = Path()
        self._since: float | None = None
        self._warned = False

    def call_began(self, directory: Path, now: float) -> None:
        """A call on this directory begins, or waits behind one that began before."""
        if self._since is None:
            self._directory, self._since = directory, now

    def check(self, now: float) -> None:
        """Warn where the call takes too long."""
        if self._since is not None and not self._warned and now - self._since >= HANGS_S:
            self._warned = True
            log.warning("%s: %s%s has not answered for %g s", self._service, self._subject, self._directory, HANGS_S)

    def call_returned(self) -> None:
        self._since = None
        if self._warned:
            self._warned = False
            log.warning("%s: %s%s answers again", self._service, self._subject, self._directory)
