"""Recognises daemons that own their data, and must not run twice on it; pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

import msgspec

_POSTGRES: Final = frozenset({"postgres", "postmaster", "pg_ctl", "pg_ctlcluster"})
_REDIS: Final = frozenset({"redis-server", "valkey-server", "keydb-server"})
# PostgreSQL documentation, 55.7: a StartupMessage of protocol 3.0 for the user postgres; and SQLSTATE 57P03
# (cannot_connect_now), with which it is refused while the server starts up or recovers.
_POSTGRES_STARTUP: Final = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0"
_POSTGRES_STARTING: Final = rb"\AE.*\0C57P03\0"


class DataOwner(msgspec.Struct, frozen=True):
    """A daemon that must not run twice on its data.

    Args:
        reason: why, for people.
        stop_signal: the signal that ends it soon and in order.
        asks: it listens before it has read its data; what to send it to hear of that.
        not_ready: a regular expression (re) that finds that in its answer; any other answer is as good as ready.
    """

    reason: str
    stop_signal: str
    asks: bytes
    not_ready: bytes


def owns_its_data(command: Sequence[str]) -> DataOwner | None:
    """Say why two instances of ``command`` at once would damage its data; None where nothing is known against it.

    A second PostgreSQL on one data directory exits; a second Redis on one directory starts silently without the unsaved
    keys, and what the first one saves as it stops overwrites the newer file. PostgreSQL outlives TERM, its smart
    shutdown, for as long as a client stays: INT is its fast one (PostgreSQL documentation, 19.5).
    """
    words = _words(command)
    names = [word.rpartition("/")[2] for word in words]
    if any(name in _POSTGRES for name in names):
        reason = "PostgreSQL owns its data directory: two servers cannot run on it side by side"
        return DataOwner(reason, "INT", _POSTGRES_STARTUP, _POSTGRES_STARTING)
    redis = next((i for i, name in enumerate(names) if name in _REDIS), None)
    if redis is not None and not _is_memory_only(words[redis + 1 :]):
        reason = f"{names[redis]} with persistence owns its files: two at once overwrite each other's"
        return DataOwner(reason, "TERM", b"PING\r\n", rb"\A-LOADING")
    return None


def _words(command: Sequence[str]) -> list[str]:
    """The command's words, also those inside ``sh -c '...'``."""
    words: list[str] = []
    for word in command:
        try:
            inner = shlex.split(word) if " " in word else [word]
        except ValueError:
            inner = [word]
        words.extend(inner or [word])  # an empty argument is a word too: --save ''
    return words


def _is_memory_only(arguments: Sequence[str]) -> bool:
    """Redis saves by default; ``--save ''`` turns that off, a configuration file may bring it back."""
    save_off = False
    for index, word in enumerate(arguments):
        after = arguments[index + 1] if index + 1 < len(arguments) else ""
        if index == 0 and not word.startswith("-"):
            return False  # redis-server FILE ...: what the file says is not known here
        if word == "--save":
            save_off = after in {"", '""', "''"}
        if word == "--appendonly" and after.lower() != "no":
            return False
    return save_off
