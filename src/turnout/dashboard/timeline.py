"""The last rollouts of a service, put together from its journal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from turnout.dashboard.frame import Result, RolloutView, Step
from turnout.system.journal import Event

ROLLOUTS: Final = 12
STEPS: Final = 40
# How a rollout ends badly; programs of the public API journal the events of the state machine under their own names.
ENDS: Final[tuple[tuple[str, Result], ...]] = (
    ("rollback", "put back"),
    ("rollback_active", "put back"),
    ("abort", "given up"),
    ("abort_deploy", "given up"),
    ("crash_loop", "given up"),
)
SWITCHES: Final = frozenset({"switch", "switch_active"})
FINISHES: Final = frozenset({"finish", "finish_deploy"})


def rollouts(
    events: Iterable[Event],
    *,
    versions: Mapping[int, str],
    newest: int,
    observed: bool,
    sentence: Callable[[Event], str],
    verdict: Callable[[int, Sequence[Event]], str],
) -> list[RolloutView]:
    """The newest rollouts, the newest first.

    Args:
        events: of the journal, oldest first.
        versions: of the build that each generation rolled out, as far as known.
        newest: the generation that the deployment is at.
        observed: whether its observe window is open.
        sentence: words one event.
        verdict: words how a rollout went, from its number and all of its events.
    """
    found: dict[int, list[Event]] = {}
    for event in events:
        if event.generation:
            found.setdefault(event.generation, []).append(event)
    told: list[RolloutView] = []
    serves = True  # the newest one that was switched to and not put back
    for generation in sorted(found, reverse=True)[:ROLLOUTS]:
        mine = found[generation]
        result, ended_ts = _result(mine, observed=observed and generation == newest, serves=serves)
        serves = serves and result not in {"serving", "observed"}
        begin = next((event for event in mine if event.event == "begin"), None)
        told.append(
            RolloutView(
                generation=generation,
                began_ts=mine[0].ts,
                ended_ts=ended_ts,
                cause=str(begin.evidence.get("cause", "")) if begin else "",
                version=versions.get(generation, ""),
                result=result,
                text=verdict(generation, mine),
                steps=[Step(ts=event.ts, text=sentence(event)) for event in mine[-STEPS:]],
            )
        )
    return told


def _result(events: Sequence[Event], *, observed: bool, serves: bool) -> tuple[Result, float | None]:
    when = {event.event: event.ts for event in events}
    for kind, result in ENDS:
        if kind in when:
            return result, when[kind]
    if observed:
        return "observed", None
    done = [ts for kind, ts in when.items() if kind in FINISHES] or [
        ts for kind, ts in when.items() if kind in SWITCHES
    ]
    if not done:
        return "under way", None
    return "serving" if serves else "replaced", done[0]
