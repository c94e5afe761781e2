"""Recognises a listening socket of a program that forwards connections to a container."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from turnout.config.settings import Address, Settings
from turnout.core.containers import forwards_ports
from turnout.errors import UsageError
from turnout.system.net.sockets import PortHolder

PROC: Final = Path("/proc")
HEARS_AN_ANSWER: Final = frozenset({"http", "expect", "exec"})


def check_forwarded(address: Address, holder: PortHolder, settings: Settings, *, proc: Path = PROC) -> None:
    """Refuse a probe that would not notice that a container has ended.

    Raises:
        UsageError: a forwarder listens there, which accepts in any case, and the probe waits for no answer.
    """
    probe = settings.health.probe
    if probe in HEARS_AN_ANSWER:
        return
    program = forwarder(holder, address.port, proc=proc)
    if program:
        raise UsageError(
            f"{address} belongs to {program}, which forwards to a container and accepts connections also while nothing"
            f" listens in there: the probe {probe} would pass",
            hint='use a probe that reads an answer, in turnout.toml: health = { probe = "http" }, "expect" or "exec"'
            + ("" if holder.pid else "; and verify_owner = false, since the forwarder is another user's"),
        )


def forwarder(holder: PortHolder, port: int, *, proc: Path = PROC) -> str:
    """The name of the forwarder that has this port; empty: no forwarder was recognised.

    Root's processes may hide their sockets, but not their command lines: docker-proxy names its port in there.
    """
    if holder.pid:
        return next((name for name in _names(proc / str(holder.pid)) if forwards_ports(name)), "")
    for process in proc.glob("[0-9]*"):
        words = _words(process)
        if words and "docker-proxy" in words[0]:
            flag, value = "-host-port", str(port)
            if f"{flag}={value}" in words or (flag, value) in pairwise(words):
                return "docker-proxy"
    return ""


def _names(process: Path) -> Iterator[str]:
    try:
        yield (process / "comm").read_text().strip()
    except OSError:
        return
    yield from _words(process)[:1]


def _words(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
