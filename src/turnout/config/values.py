"""How people write durations, addresses and choices, and what the program makes of them. Standard library only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from turnout.core.addresses import format_address
from turnout.errors import UsageError

ProbeKind = Literal["alive", "listening", "tcp", "expect", "http", "exec", "none"]
PlaneName = Literal["auto", "relay", "stream", "reuseport", "sk_lookup"]
StrategyName = Literal["blue-green", "recreate"]
OnUnhealthy = Literal["report", "restart"]
ProxyProtocol = Literal["none", "v2"]
Expose = Literal["clients-look-local"]
Activation = Literal["auto", "on", "off"]
Duration = str | int | float
T = TypeVar("T")

_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Where clients connect to; ``host`` is numeric."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address(self.host, self.port)


def duration(value: Duration, *, what: str = "a duration") -> float:
    """Seconds from ``"500ms"``, ``"30s"``, ``"10m"``, ``"2h"``, ``"1d"`` or a bare number of seconds.

    Raises:
        UsageError: anything else, or a negative one.
    """
    text = str(value).strip() if not isinstance(value, bool) else "?"
    match = _DURATION.match(text)
    if not match:
        raise UsageError(f"{what}: {value!r} is no duration", hint="write it like 500ms, 30s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def duration_text(seconds: float | None) -> str:
    """Seconds as the file would have them: ``500ms``, ``30s``, ``10m``; None is ``none``."""
    if seconds is None:
        return "none"
    for unit, factor in (("h", 3600), ("m", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:.0f}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"


def parse_address(text: str, *, beyond_loopback: bool = False) -> Address:
    """``HOST:PORT`` with a numeric host, ``localhost``, or ``[::1]:PORT``.

    Raises:
        UsageError: it is none of these, or lies beyond loopback.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        raise UsageError(f"{text!r} is no address", hint="write it like 127.0.0.1:47777 or [::1]:47777")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = "127.0.0.1" if bare in {"localhost", ""} else bare
    try:
        parsed = ipaddress.ip_address(bare)
    except ValueError:
        raise UsageError(f"{text!r}: {bare!r} is no numeric address", hint="write it like 127.0.0.1:47777") from None
    if not parsed.is_loopback and not beyond_loopback:
        raise UsageError(f"{text!r} lies beyond loopback", hint="a daemon is reached on 127.0.0.1 or [::1]")
    return Address(str(parsed), int(port_text))


def one_of(known: tuple[T, ...], text: str, what: str) -> T:
    """The member of ``known`` that ``text`` names. Raises UsageError: there is none; ``what`` names the setting."""
    for one in known:
        if one == text:
            return one
    raise UsageError(f"there is no {what} {text!r}", hint=f"one of {', '.join(map(str, known))}")
