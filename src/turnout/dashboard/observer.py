"""Looks at every service for the page: its status, its last rollouts, the ends of its logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from turnout.core.json_text import json_text
from turnout.core.model import State
from turnout.core.printable import clean
from turnout.dashboard.frame import Beside, Fault, LogView, Look, RolloutView
from turnout.dashboard.timeline import ROLLOUTS, rollouts
from turnout.errors import TurnoutError
from turnout.state.home import Home
from turnout.state.journal import JournalEvent, Position
from turnout.state.service import Service, remembered
from turnout.status.schema import ServiceStatus, Status
from turnout.system.daemon_log import tail

EVENTS_KEPT: Final = 600
LOG_LINES: Final = 60
LOG_BYTES: Final = 16384
LINE_CHARS: Final = 400
LOGGED_ROLES: Final = ("active", "candidate", "warm")


class View(msgspec.Struct, frozen=True):
    """The command line's functions for what it shows: the page shows the same.

    ``look``: all of ``status --json``; raises TurnoutError where a service has no status. ``sentence`` words an event,
    and ``verdict`` a rollout, by its generation and events. ``rates``: of a service at a monotonic time.
    """

    look: Callable[[], Status]
    sentence: Callable[[JournalEvent], str]
    verdict: Callable[[int, Sequence[JournalEvent]], str]
    rates: Callable[[ServiceStatus, float], dict[str, tuple[float, float]]]


@dataclass(slots=True)
class _Known:
    """What is kept of one service from look to look."""

    position: Position = field(default_factory=Position)
    events: deque[JournalEvent] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    severity: str | None = None
    since_ts: float | None = None
    seen_to_begin: bool = False
    versions: dict[int, str] = field(default_factory=dict[int, str])
    builds_mtime_ns: int = 0


class Observer:
    """Looks when it is called, in any thread, never in two at once. Read-only.

    Args:
        home: the state directory.
        view: the command line's functions.
        now: wall-clock seconds.
        monotonic: seconds, for rates.
    """

    def __init__(
        self,
        home: Home,
        view: View,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._view = view
        self._now = now
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        self._looked = False

    def look(self) -> dict[str, bytes]:
        """Each part of what the page shows, as JSON: ``look``, ``timeline`` and ``logs``."""
        now = self._now()
        status, fault = self._status()
        beside: dict[str, Beside] = {}
        timeline: dict[str, list[RolloutView]] = {}
        logs: dict[str, list[LogView]] = {}
        for shown in status.services if status else ():
            known = self._known.setdefault(shown.name, _Known())
            service = self._open(shown.name)
            if service is None:
                continue
            beside[shown.name] = self._beside(shown, service, known, now)
            timeline[shown.name] = self._timeline(shown, service, known)
            logs[shown.name] = self._logs(shown, service)
        self._looked = True
        return {
            "look": json_text(Look(ts=now, status=status, fault=fault, beside=beside)).encode(),
            "timeline": json_text(timeline).encode(),
            "logs": json_text(logs).encode(),
        }

    def _status(self) -> tuple[Status | None, Fault | None]:
        try:
            return self._view.look(), None
        except TurnoutError as error:
            return None, Fault(message=error.message, hint=error.hint)
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
            # a home in the middle of being removed, or a router of a version that says other things
            return None, Fault(message=f"the status cannot be told: {error}", hint="turnout doctor")

    def _open(self, name: str) -> Service | None:
        try:
            settings = remembered(self._home.service(name))
        except TurnoutError:
            return None
        return Service.open(self._home.service(name), settings) if settings else None

    def _beside(self, shown: ServiceStatus, service: Service, known: _Known, now: float) -> Beside:
        severity = shown.problems[0].severity if shown.problems else None
        if severity != known.severity:
            known.severity, known.since_ts, known.seen_to_begin = severity, now if severity else None, self._looked
        return Beside(
            observe_s=service.settings.observe_s,
            failures=service.settings.health.failures,
            rates=self._view.rates(shown, self._monotonic()),
            since_ts=known.since_ts,
            seen_to_begin=known.seen_to_begin,
        )

    def _timeline(self, shown: ServiceStatus, service: Service, known: _Known) -> list[RolloutView]:
        events, known.position = service.journal.since(known.position)
        known.events.extend(events)
        block = shown.deployment
        return rollouts(
            known.events,
            versions=self._versions(service, known),
            newest=block.generation,
            observed=block.state is State.SWITCHED,
            sentence=self._view.sentence,
            verdict=self._view.verdict,
        )

    @staticmethod
    def _versions(service: Service, known: _Known) -> Mapping[int, str]:
        """The version of each generation's build; read again when the file has changed."""
        try:
            mtime_ns = service.home.builds.stat().st_mtime_ns
            if mtime_ns != known.builds_mtime_ns:
                for rollout in service.builds.rollouts()[-ROLLOUTS:]:
                    build = service.builds.get(rollout.build)
                    known.versions[rollout.generation] = build.version if build else ""
                known.builds_mtime_ns = mtime_ns
        except (OSError, TurnoutError):
            pass  # the numbers of the generations do without
        return known.versions

    def _logs(self, shown: ServiceStatus, service: Service) -> list[LogView]:
        daemons = [daemon for role in LOGGED_ROLES for daemon in shown.daemons if daemon.role == role]
        return [
            *(
                _log(service.home.log(daemon.boot_id), daemon.role, daemon.boot_id, daemon.version)
                for daemon in daemons
            ),
            _log(self._home.router_log, "router"),
        ]


def _log(path: Path, title: str, boot_id: str = "", version: str = "") -> LogView:
    lines = tail(path, lines=LOG_LINES, bound_bytes=LOG_BYTES).splitlines()
    shown = [clean(line[:LINE_CHARS].expandtabs()) for line in lines]
    return LogView(title=title, boot_id=boot_id, version=version, lines=shown)
