"""Looking at every service, for the page: its status, its last rollouts, the ends of its logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from turnout.core.model import State
from turnout.dashboard.frame import Beside, Fault, LogView, Look, RolloutView
from turnout.dashboard.timeline import ROLLOUTS, rollouts
from turnout.errors import TurnoutError
from turnout.service import Service, remembered
from turnout.system.daemon_log import tail
from turnout.system.home import Home
from turnout.system.journal import Event, Position
from turnout.telemetry import ServiceStatus, Status

EVENTS_KEPT: Final = 600
LOG_LINES: Final = 60
LOG_BYTES: Final = 16384
LINE_CHARS: Final = 400
LOGGED_ROLES: Final = ("active", "candidate", "warm")


class Words(Protocol):
    """How the command line looks at services and words what it sees: the page shows the same."""

    def look(self) -> Status:
        """All of ``status --json``. Raises TurnoutError where one service cannot be told."""
        ...

    def sentence(self, event: Event) -> str: ...

    def verdict(self, generation: int, events: Sequence[Event]) -> str: ...

    def clean(self, text: str) -> str: ...

    def rates(self, service: ServiceStatus, now: float) -> dict[str, tuple[float, float]]: ...


@dataclass(slots=True)
class _Known:
    """What is kept of one service from look to look."""

    position: Position = field(default_factory=Position)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    severity: str | None = None
    since_ts: float | None = None
    seen_to_begin: bool = False
    versions: dict[int, str] = field(default_factory=dict[int, str])
    builds_mtime_ns: int = 0


class Observer:
    """Looks when it is told to, in whichever thread; never in two at once. Reads only.

    Args:
        home: the state directory.
        words: lent by the command line.
        now: wall-clock seconds. monotonic: for rates.
    """

    def __init__(
        self,
        home: Home,
        words: Words,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._words = words
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
        for one in status.services if status else ():
            known = self._known.setdefault(one.name, _Known())
            service = self._open(one.name)
            if service is None:
                continue
            beside[one.name] = self._beside(one, service, known, now)
            timeline[one.name] = self._timeline(one, service, known)
            logs[one.name] = self._logs(one, service)
        self._looked = True
        encode = msgspec.json.encode
        return {
            "look": encode(Look(ts=now, status=status, fault=fault, beside=beside)),
            "timeline": encode(timeline),
            "logs": encode(logs),
        }

    def _status(self) -> tuple[Status | None, Fault | None]:
        try:
            return self._words.look(), None
        except TurnoutError as error:
            return None, Fault(message=error.message, hint=error.hint)
        except (OSError, msgspec.ValidationError, KeyError, TypeError) as error:
            # a home in the middle of being removed, or a router of a version that says other things
            return None, Fault(message=f"the status cannot be told: {error}", hint="turnout doctor")

    def _open(self, name: str) -> Service | None:
        try:
            settings = remembered(self._home.service(name))
        except TurnoutError:
            return None
        return Service.open(self._home.service(name), settings) if settings else None

    def _beside(self, one: ServiceStatus, service: Service, known: _Known, now: float) -> Beside:
        severity = one.problems[0].severity if one.problems else None
        if severity != known.severity:
            known.severity, known.since_ts, known.seen_to_begin = severity, now if severity else None, self._looked
        return Beside(
            observe_s=service.settings.observe_s,
            failures=service.settings.health.failures,
            rates=self._words.rates(one, self._monotonic()),
            since_ts=known.since_ts,
            seen_to_begin=known.seen_to_begin,
        )

    def _timeline(self, one: ServiceStatus, service: Service, known: _Known) -> list[RolloutView]:
        events, known.position = service.journal.since(known.position)
        known.events.extend(events)
        block = one.deployment
        return rollouts(
            known.events,
            versions=self._versions(service, known),
            newest=block.generation,
            observed=block.state is State.SWITCHED,
            sentence=self._words.sentence,
            verdict=self._words.verdict,
        )

    @staticmethod
    def _versions(service: Service, known: _Known) -> Mapping[int, str]:
        """The version of each generation's build; read again when the file has changed."""
        try:
            mtime_ns = service.home.builds.stat().st_mtime_ns
            if mtime_ns != known.builds_mtime_ns:
                for one in service.builds.rollouts()[-ROLLOUTS:]:
                    build = service.builds.get(one.build)
                    known.versions[one.generation] = build.version if build else ""
                known.builds_mtime_ns = mtime_ns
        except (OSError, TurnoutError):
            pass  # the numbers of the generations do without
        return known.versions

    def _logs(self, one: ServiceStatus, service: Service) -> list[LogView]:
        wanted: list[tuple[str, str, str, Path]] = [
            (daemon.role, daemon.boot_id, daemon.version, service.home.log(daemon.boot_id))
            for role in LOGGED_ROLES
            for daemon in one.daemons
            if daemon.role == role
        ]
        wanted.append(("router", "", "", self._home.router_log))
        return [
            LogView(
                title=title,
                boot_id=boot_id,
                version=version,
                lines=[
                    self._words.clean(line[:LINE_CHARS].expandtabs())
                    for line in tail(path, lines=LOG_LINES, bound_bytes=LOG_BYTES).splitlines()
                ],
            )
            for title, boot_id, version, path in wanted
        ]
