"""What the registry holds: frozen values, and nothing that acts.

``extra`` keeps the keys that turnout does not know, at every level, so that another program's data survives each write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

SCHEMA_VERSION: Final = "2.0"
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class State(StrEnum):
    """Where a deployment stands."""

    IDLE = "idle"
    STARTING = "starting"
    ROLLING_BACK = "rolling_back"
    READY = "ready"
    SWITCHED = "switched"


class Cause(StrEnum):
    """Why a rollout was begun."""

    DEPLOY = "deploy"
    START = "start"
    REFRESH = "refresh"
    ATTACH = "attach"
    ROLLBACK = "rollback"


class Desired(StrEnum):
    """What the operator wants of the service, whatever it is at the moment."""

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"


class DrainCause(StrEnum):
    """Why a daemon takes no new connections any more; it decides how patient its drain is."""

    NONE = ""
    REPLACED = "replaced"  # a successor is active: the configured drain policy
    HASTENED = "hastened"  # as replaced, but the operator does not wait: no grace, cut as soon as it is quiet
    FAILED = "failed"  # rolled back, or never healthy: seconds at most
    STOPPED = "stopped"  # the operator stopped it: its stop signal at once
    RETIRED = "retired"  # its successor cannot start beside it: quiet connections are cut for seconds, then all


@dataclass(frozen=True, slots=True)
class Identity:
    """What proves that a process is the one that was meant: a pid alone is reused.

    Args:
        pid: process id in ``pid_ns``; 0 when unknown.
        start_ticks: field 22 of /proc/PID/stat, clock ticks since the machine booted (proc_pid_stat(5)).
        machine_boot_id: /proc/sys/kernel/random/boot_id.
        pid_ns: inode number of /proc/self/ns/pid.
    """

    pid: int = 0
    start_ticks: int = 0
    machine_boot_id: str = ""
    pid_ns: int = 0


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running process of a build; ``boot_id`` is its key. Timestamps are wall-clock seconds, for people only."""

    boot_id: str
    host: str = "127.0.0.1"
    port: int = 0
    identity: Identity = Identity()
    start_ts: float = 0.0
    last_seen_ts: float = 0.0
    draining: bool = False
    drain_cause: DrainCause = DrainCause.NONE
    version: str = ""
    build: str = ""  # hash of its Build, empty for a daemon that something else started
    owned: bool = False  # turnout started it, and so may stop it
    proxy_protocol: str = ""  # what it was started to expect ("none", "v2"); empty: what the settings say
    own_port: int = 0  # the port that it bound by its own configuration, and that became ``port``; 0: none did
    source: str = ""  # from where to connect to a daemon that listens at the fixed address itself (core/slots.py)
    http_host: str | None = None
    http_port: int | None = None
    http_pid: int | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    @property
    def pid(self) -> int:
        return self.identity.pid


@dataclass(frozen=True, slots=True)
class Workspace:
    """A key that a client program maps to a daemon; it never influences routing."""

    root: str
    boot_id: str = ""
    last_active_ts: float = 0.0
    http_host: str | None = None
    http_port: int | None = None
    http_pid: int | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Move:
    """One workspace that a switch moved, as it was before, so that a rollback can move exactly it back."""

    root: str
    boot_id: str
    http_host: str | None = None
    http_port: int | None = None
    http_pid: int | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """The block that a rollout moves through.

    ``generation`` counts rollouts; ``revision`` rises by one with every applied event. ``owner`` is the process that
    carries an unfinished rollout (starting, rolling_back, ready), and ``owner_holds_lock`` whether it has the service's
    lifecycle lock all that time, as verbs do. ``old_boot_id`` is the previous daemon: warm in a
    window, or retired, which makes room for a candidate that cannot run beside it.
    """

    generation: int = 0
    state: State = State.IDLE
    active_boot_id: str = ""
    candidate_boot_id: str = ""
    old_boot_id: str = ""
    switch_ts: float = 0.0
    health_fail_streak: int = 0
    rollback_reason: str = ""
    revision: int = 0
    cause: Cause = Cause.DEPLOY
    desired: Desired = Desired.RUNNING
    owner: Identity = Identity()
    owner_holds_lock: bool = False
    moves: tuple[Move, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    @property
    def named(self) -> frozenset[str]:
        """The daemons that the block stands for; none of them may be reaped."""
        return frozenset({self.active_boot_id, self.candidate_boot_id, self.old_boot_id}) - {""}

    @property
    def in_flight(self) -> bool:
        """A rollout has begun and has not reached its switch."""
        return self.state in {State.STARTING, State.ROLLING_BACK, State.READY}

    @property
    def retired_boot_id(self) -> str:
        """The daemon that was taken out of service for a rollout under way, till whose end nothing serves."""
        return self.old_boot_id if self.in_flight else ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole registry at one moment."""

    daemons: Mapping[str, Daemon] = field(default_factory=lambda: MappingProxyType({}))
    workspaces: Mapping[str, Workspace] = field(default_factory=lambda: MappingProxyType({}))
    deployment: Deployment = Deployment()
    version: str = SCHEMA_VERSION
    extra: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    @property
    def active(self) -> Daemon | None:
        return self.daemons.get(self.deployment.active_boot_id)

    @property
    def old(self) -> Daemon | None:
        return self.daemons.get(self.deployment.old_boot_id)

    @property
    def candidate(self) -> Daemon | None:
        return self.daemons.get(self.deployment.candidate_boot_id)
