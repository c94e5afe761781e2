"""The log of a process that logs: each message is one line, whatever other programs put into it."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Final

from turnout.core.printable import clean
from turnout.system.daemon_threads import DaemonThreads

FLUSH_S: Final = 2.0


class OneLine(logging.Formatter):
    """Spells out what is not printable: no boot id, reason or process name can add a line, or act on a terminal.

    A traceback stays as it is, behind its line.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return clean(super().formatMessage(record))


class LaterHandler(logging.Handler):
    """Formats at once and writes in a thread, so that a file system that hangs under the log holds up no caller.

    Lines beyond the queue's bound are lost.

    Args:
        threads: one thread, so that lines stay in order.
    """

    def __init__(self, threads: DaemonThreads) -> None:
        super().__init__()
        self._threads = threads

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            self._threads.submit(_write, line)
        except RuntimeError:  # the process ends
            return

    def flush(self) -> None:
        """Wait for what was logged to be written; two seconds at most."""
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self._threads.submit(lambda: None).result(FLUSH_S)


def _write(line: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk: no reason to end
        os.write(2, line)  # not sys.stderr: its lock would be held by a write that hangs, and the exit waits for it


def log_to_stderr(line: str, *, datefmt: str | None = None, threads: DaemonThreads | None = None) -> None:
    """Log from level INFO on to standard error.

    Args:
        line: what a line is made of, in logging's %-style.
        datefmt: how its time is spelled, as strftime(3).
        threads: where lines are written; None: in the caller's thread.
    """
    handler = LaterHandler(threads) if threads else logging.StreamHandler()
    handler.setFormatter(OneLine(line, datefmt))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
