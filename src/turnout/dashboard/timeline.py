"""The last rollouts of a service, put together from its journal. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from turnout.dashboard.frame import Result, RolloutView, Step
from turnout.state.journal import JournalEvent

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
    events: Iterable[JournalEvent],
    *,
    versions: Mapping[int, str],
    newest: int,
    observed: bool,
    sentence: Callable[[JournalEvent], str],
    verdict: Callable[[int, Sequence[JournalEvent]], str],
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
    by_generation: dict[int, list[JournalEvent]] = {}
    for event in events:
        if event.generation:
            by_generation.setdefault(event.generation, []).append(event)
    shown: list[RolloutView] = []
    serves = True  # the newest rollout that was switched to and not put back
    for generation in sorted(by_generation, reverse=True)[:ROLLOUTS]:
        mine = by_generation[generation]
        result, ended_ts = _result(mine, observed=observed and generation == newest, serves=serves)
        serves = serves and result not in {"serving", "observed"}
        begin = next((event for event in mine if event.event == "begin"), None)
        shown.append(
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
    return shown


def _result(events: Sequence[JournalEvent], *, observed: bool, serves: bool) -> tuple[Result, float | None]:
    when = {event.event: event.ts for event in events}
    for kind, result in ENDS:
        if kind in when:
            return result, when[kind]
    if observed:
        return "observed", None
    for kinds in (FINISHES, SWITCHES):
        done = [ts for kind, ts in when.items() if kind in kinds]
        if done:
            return "serving" if serves else "replaced", done[0]
    return "under way", None
