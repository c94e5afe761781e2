"""What the page is sent. The status is that of ``status --json``; the rest stands beside it."""

from __future__ import annotations

from typing import Literal

import msgspec

from turnout.status.schema import Status

Result = Literal["under way", "observed", "serving", "replaced", "put back", "given up"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why something could not be done, in one line, and what to type."""

    message: str
    hint: str | None = None


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of one service beside its status.

    ``rates``: bytes a second in and out by boot id. ``since_ts``: wall-clock seconds from when on its gravest problem
    was seen without a break; ``seen_to_begin``: it was not there before, so that is when it began.
    """

    observe_s: float
    failures: int
    rates: dict[str, tuple[float, float]]
    since_ts: float | None
    seen_to_begin: bool


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """All services at one moment; ``status`` is None where it is unknown, and ``fault`` says why."""

    ts: float
    status: Status | None
    fault: Fault | None
    beside: dict[str, Beside]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, as ``turnout history`` words it."""

    ts: float
    text: str


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout, as ``turnout why`` tells it."""

    generation: int
    began_ts: float
    ended_ts: float | None
    cause: str
    version: str
    result: Result
    text: str
    steps: list[Step]


class LogView(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one log. ``title``: the daemon's role, or ``router``."""

    title: str
    boot_id: str
    version: str
    lines: list[str]


class ActionView(msgspec.Struct, frozen=True, kw_only=True):
    """A verb that was started from the page: how far it is, or what came of it."""

    number: int
    verb: str
    state: Literal["running", "done", "failed"]
    lines: list[str]
    fault: Fault | None
    began_ts: float
    ended_ts: float | None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a verb says with ``--dry-run``."""

    lines: list[str]
    fault: Fault | None
