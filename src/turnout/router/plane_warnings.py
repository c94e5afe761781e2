"""What a plane met lately, for the log and for ``status``: a line when it begins, and each minute while it lasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from turnout.planes.plane import Counters

RECENT_S: Final = 60.0
AGAIN_S: Final = 60.0

TEXTS: Final[Mapping[str, str]] = {
    "fd_exhausted": "no file descriptors left: new connections wait until some are closed (ulimit -n)",
    "ports_exhausted": "no source port left towards the daemon: new connections wait (one daemon on IPv4 loopback has"
    " room for a million, on [::1] or another host for about 28,000)",
    "other_source": "127.0.0.1 has no port left towards the daemon: connecting from 127.0.0.2 and on",
    "limited": "the limit of connections is reached: new ones wait in the kernel's queue (limits.connections)",
    "denied": "clients outside the allow list are reset",
    "hold_overflow": "the hold is full: new connections are reset (hold.max)",
}


class PlaneWarnings:
    """Compares the counters with those of the last look; keeps the moments, and nothing of the plane's."""

    __slots__ = ("_before", "_met_at", "_warned_at")

    def __init__(self) -> None:
        self._before: dict[str, int] = dict.fromkeys(TEXTS, 0)
        self._met_at: dict[str, float] = {}
        self._warned_at: dict[str, float] = {}

    def poll(self, counters: Counters, now: float) -> list[str]:
        """Lines for the log: each kind when it begins, and once a minute while it goes on.

        Args:
            counters: as they are now.
            now: monotonic seconds.
        """
        lines: list[str] = []
        for kind, text in TEXTS.items():
            count = int(getattr(counters, kind))
            if count == self._before[kind]:
                continue
            self._before[kind] = count
            self._met_at[kind] = now
            warned_at = self._warned_at.get(kind)
            if warned_at is None or now - warned_at >= AGAIN_S:
                self._warned_at[kind] = now
                lines.append(f"{text}; {count} times so far")
        return lines

    def recent(self, now: float) -> list[str]:
        """What was met in the last minute, for ``status``."""
        return [TEXTS[kind] for kind, at in self._met_at.items() if now - at < RECENT_S]
