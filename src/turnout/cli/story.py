"""What the journal says, in sentences: each event with the evidence on which it was decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from turnout.core.printable import clean
from turnout.system.journal import Event, Scalar

Evidence = Mapping[str, Scalar]
WANTED: Final = {
    "deploy": "a deploy",
    "start": "a start",
    "refresh": "a refresh",
    "attach": "an attach",
    "rollback": "a rollback",
}


def sentence(event: Event) -> str:
    """One event for people. What this version does not know is told by its name and its evidence."""
    told = {key: value for key, value in event.evidence.items() if value not in {"", None}}
    tell = SENTENCES.get(event.event)
    if tell is None:
        return clean(f"{event.event}{_rest(told, ())}")
    text, used = tell(told)
    return clean(f"{text}{_rest(told, used)}")


def verdict(generation: int, events: Sequence[Event]) -> str:
    """How a rollout went, in one line; ``events`` are all that is known of it."""
    kinds = {event.event: event for event in events}
    begin = kinds.get("begin")
    what = WANTED.get(str(begin.evidence.get("cause")), "a rollout") if begin else "a rollout"
    for kind, how in (
        ("rollback", "was switched to and put back"),
        ("rollback_active", "was switched to and put back"),
        ("abort", "never got to its switch"),
        ("abort_deploy", "never got to its switch"),
        ("crash_loop", "was given up"),
        ("finish", "was switched to and passed its observe window"),
        ("finish_deploy", "was switched to and passed its observe window"),
        ("switch", "was switched to"),
        ("switch_active", "was switched to"),
    ):
        if kind in kinds:
            why = kinds[kind].evidence.get("evidence") or kinds[kind].evidence.get("reason") or ""
            # programs of the public API journal the outcome's reason under the same key
            because = f": {why}" if why and why != "applied" else ""
            return clean(f"generation {generation}, {what}, {how}{because}")
    return clean(f"generation {generation}, {what}, has no end yet")


def _begin(told: Evidence) -> tuple[str, tuple[str, ...]]:
    what = WANTED.get(str(told.get("cause")), f"a rollout ({told.get('cause', '?')})")
    return f"{what} was begun by pid {told.get('owner_pid', '?')}, candidate {told.get('candidate', '?')}", (
        "cause",
        "owner_pid",
        "candidate",
    )


def _probe(told: Evidence) -> tuple[str, tuple[str, ...]]:
    good = told.get("ok") in {True, "True", "true"}
    when = "once more right before the switch, " if told.get("step") == "re-probe" else ""
    took = f" after {_seconds(told['after_s'])}" if "after_s" in told else ""
    text = f"{when}{told.get('candidate', 'the candidate')} was found {'healthy' if good else 'NOT healthy'}{took}"
    return f"{text}: {told['reason']}" if "reason" in told else text, ("ok", "step", "after_s", "candidate", "reason")


def _failure(told: Evidence) -> tuple[str, tuple[str, ...]]:
    text = (
        f"a check of {told.get('boot_id', '?')} failed, {told.get('streak', '?')} in a row: {told.get('evidence', '?')}"
    )
    return text, ("boot_id", "streak", "evidence")


def _cut(told: Evidence) -> tuple[str, tuple[str, ...]]:
    cut, left = told.get("connections", "?"), told.get("left", "?")
    return f"{cut} connections of {told.get('boot_id', '?')} were cut, {left} left", ("boot_id", "connections", "left")


def _died(told: Evidence) -> tuple[str, tuple[str, ...]]:
    text = f"the active daemon {told.get('boot_id', '?')} died: {told.get('evidence', '?')}"
    return f"{text}; it is started again ({told.get('restarts', 0)} restarts before)", (
        "boot_id",
        "evidence",
        "restarts",
    )


def _followed(told: Evidence) -> tuple[str, tuple[str, ...]]:
    active, state = told.get("active", "nothing"), told.get("state", "?")
    return f"another program moved the deployment on: {active} is active, {state}", ("active", "state")


def _plain(template: str, *keys: str) -> Callable[[Evidence], tuple[str, tuple[str, ...]]]:
    """A sentence with the evidence filled in; ``?`` stands for what an older journal did not write."""

    def tell(told: Evidence) -> tuple[str, tuple[str, ...]]:
        return template.format(*(told.get(key, "?") for key in keys)), keys

    return tell


SENTENCES: Final[Mapping[str, Callable[[Evidence], tuple[str, tuple[str, ...]]]]] = {
    "begin": _begin,
    "probe": _probe,
    "switch": _plain("switched: {} is active", "active"),
    "finish": _plain("the observe window is over: it stays"),
    "abort": _plain("given up before the switch: {}", "reason"),
    "health_failure": _failure,
    "health_ok": _plain("{} passed a check: the count is zero again", "boot_id"),
    "rollback": _plain("rolled back from {}: {}", "boot_id", "evidence"),
    "rollback_refused": _plain("{} cannot be rolled back: {}", "boot_id", "evidence"),
    "cut": _cut,
    "hastened": _plain("{} is drained faster: {} drain at once, {} may", "boot_id", "draining", "most"),
    "stopping": _plain("{} is told to stop", "boot_id"),
    "stopping_stray": _plain("{} runs and the registry does not know it: it is told to stop", "boot_id"),
    "gone": _plain("{} is gone", "boot_id"),
    "died": _died,
    "replacing": _plain("{} hangs and is replaced: {}", "boot_id", "evidence"),
    "unwell": _plain("{} runs and fails its checks: {}", "boot_id", "evidence"),
    "well_again": _plain("{} passes its checks again", "boot_id"),
    "auto_deploy": _plain("a new build was seen, and considered by itself: {}", "answer"),
    "retire": _plain("{} takes no new connections and makes room for its successor", "boot_id"),
    "bring_back": _plain("the start failed ({1}): the build of {0} is started again", "boot_id", "reason"),
    "cold_rollback": _plain("{} failed and the previous daemon is gone: its build is started again", "boot_id"),
    "rollback_given_up": _plain("going back from {} was given up: {}", "boot_id", "evidence"),
    "crash_loop": _plain("{} is given up: {}", "boot_id", "evidence"),
    "deactivate": _plain("nothing is active any more: {}", "reason"),
    "pause": _plain("paused: new connections are held"),
    "resume": _plain("resumed: held connections were let go"),
    "repair": _plain("the registry was repaired: {}", "what"),
    "followed": _followed,
}


def _rest(told: Evidence, used: Sequence[str]) -> str:
    """Evidence that the sentence does not hold; ``outcome=applied`` says nothing."""
    left = {key: value for key, value in told.items() if key not in used and (key, value) != ("outcome", "applied")}
    return f" ({', '.join(f'{key}={value}' for key, value in left.items())})" if left else ""


def _seconds(value: Scalar) -> str:
    return f"{value:.3g} s" if isinstance(value, (int, float)) else f"{value} s"
