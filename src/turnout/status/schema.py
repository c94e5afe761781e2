"""What every view tells of a service, and how it is named: ``status --json``, the admin socket, ``status`` for people.

The structs are the contract: fields are added to them, never renamed or taken away, and every one is there in every
state. ``turnout schema`` prints their JSON Schema, so that it and the code cannot part.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from turnout.core.model import Cause, Desired, State

Role = Literal["active", "candidate", "warm", "draining", "stopped"]
ROLE_ORDER: Final[tuple[Role, ...]] = ("active", "candidate", "warm", "draining", "stopped")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should know. ``hint``: what to type, empty where waiting is all there is to do."""

    severity: Literal["bad", "warn"]
    what: str
    hint: str = msgspec.field(default="", name="mend")  # JSON has the older name


class RouterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The router as this service sees it. ``alive``: it answers and serves the service.

    ``leaving``: pids of routers that were replaced and still carry what they had accepted. ``plane_trouble``: why a
    direct plane relays at the moment; empty where it does not.
    """

    pid: int | None
    alive: bool
    plane: str | None
    plane_trouble: str | None
    applied_revision: int | None
    uptime_s: float | None
    version: str | None
    leaving: list[int]


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The rollout. ``switch_ts``: wall-clock seconds, 0.0 before the first. ``observe_remaining_s``: None outside."""

    generation: int
    state: State
    active_boot_id: str
    candidate_boot_id: str
    old_boot_id: str
    health_fail_streak: int
    rollback_reason: str
    switch_ts: float
    observe_remaining_s: float | None
    revision: int
    cause: Cause


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon. What the plane cannot count, or was not asked yet, is None, never 0 or false."""

    boot_id: str
    version: str
    pid: int
    host: str
    port: int
    own_port: int  # the port that it bound by its own configuration, in whose place it has ``port``; 0: none
    role: Role
    alive: bool
    healthy: bool | None
    reason: str
    connections: int | None
    bytes_in: int | None
    bytes_out: int | None
    started_ts: float
    attached: bool  # something else started it, and has to start it again
    suspended: bool  # stopped by a signal or a debugger: it accepts connections and answers none


class RestartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The active daemon died, and is started again in ``in_s`` seconds: attempt ``attempt`` of ``most``.

    ``rolls_back``: it failed its observe window, and the build before is started in its place.
    """

    attempt: int
    most: int
    in_s: float
    reason: str
    hung: bool = False  # it runs, and is replaced because it does not answer
    rolls_back: bool = False
    blocked: str = ""  # why the attempt could not even begin, which does not count: it is tried until it can


class UnwellStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The active daemon runs and has failed ``failures`` checks in a row, for ``for_s`` seconds."""

    boot_id: str
    failures: int
    for_s: float
    reason: str


class SettingsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration file says and the router has not taken over: ``later`` at the next rollout, or never."""

    later: list[str]
    error: str | None


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One service. What only a router knows is None without one.

    ``held``: connections that wait at the moment. ``counters``: plain counts since the plane began, by name.
    ``troubles``: what went wrong lately on the way of connections, for people. ``problems``: the gravest first.
    ``failed_start``: the service is stopped because its last start failed; None: it is not, or an operator stopped it.
    ``start_with``: what to type to start a stopped service; empty: it is not stopped.
    """

    name: str
    listen: list[str]
    strategy: str
    desired: Desired
    held: int | None
    restart: RestartStatus | None
    unwell: UnwellStatus | None
    settings: SettingsStatus | None
    counters: dict[str, int] | None
    troubles: list[str] | None
    router: RouterStatus
    deployment: DeploymentStatus
    daemons: list[DaemonStatus]
    problems: list[Problem]
    failed_start: Problem | None
    start_with: str


class MetricsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where this home wants its metrics served: ``listen``, HOST:PORT. ``error``: why they are not, or None.

    ``listen`` is None only where the file that says it cannot be read.
    """

    listen: str | None
    served: bool
    error: str | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All of ``status --json``. ``metrics``: None where none are asked for."""

    schema: Literal[1]
    metrics: MetricsStatus | None
    services: list[ServiceStatus]
