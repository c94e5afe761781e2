"""The log of a process that logs: each message is one line, whatever somebody else had a say in it."""

from __future__ import annotations

import logging

from turnout.core.printable import clean


class OneLine(logging.Formatter):
    """Spells out what is not printable: no boot id, reason or process name can add a line, or rule who reads it.

    A traceback stays as it is, behind its line.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return clean(super().formatMessage(record))


def log_to_stderr(line: str, *, datefmt: str | None = None) -> None:
    """Log from level INFO on to standard error.

    Args:
        line: what a line is made of, in logging's %-style.
        datefmt: how its time is spelled, as strftime(3).
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(line, datefmt))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
