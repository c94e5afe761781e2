"""What the journal says, in sentences: each event with the evidence on which it was decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from string import Formatter
from typing import Final

from turnout.core.printable import clean
from turnout.state.journal import JournalEvent, Scalar

Evidence = Mapping[str, Scalar]
Sentence = tuple[str, Sequence[str]]  # a text, and the keys of the evidence that it holds
WANTED: Final = {
    "deploy": "a deploy",
    "start": "a start",
    "refresh": "a refresh",
    "attach": "an attach",
    "rollback": "a rollback",
}


def sentence(event: JournalEvent) -> str:
    """One event for people. An event that this version does not know is its name and its evidence."""
    evidence = {key: value for key, value in event.evidence.items() if value not in {"", None}}
    text, used = SENTENCES[event.event](evidence) if event.event in SENTENCES else (event.event, ())
    left = [f"{key}={value}" for key, value in evidence.items() if key not in used]
    rest = [item for item in left if item != "outcome=applied"]  # which says nothing
    return clean(f"{text} ({', '.join(rest)})" if rest else text)


def verdict(generation: int, events: Sequence[JournalEvent]) -> str:
    """One line on how a rollout went; ``events``: all that is known of it."""
    kinds = {event.event: event for event in events}
    begin = kinds.get("begin")
    what = WANTED.get(str(begin.evidence.get("cause")), "a rollout") if begin else "a rollout"
    for kind, how in (
        ("rollback", "was switched to and put back"),
        ("rollback_active", "was switched to and put back"),
        ("abort", "never got to its switch"),
        ("abort_deploy", "never got to its switch"),
        ("crash_loop", "was given up"),
        ("window_failed", "was switched to and failed, with nothing to go back to"),
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


def _filled(template: str, evidence: Evidence) -> Sentence:
    """The template with the evidence in it; ``?`` stands for evidence that an older journal lacks."""
    keys = [key for _, key, _, _ in Formatter().parse(template) if key]
    values = {key: str(evidence.get(key, "?")) for key in keys}
    if "after_s" in values:
        values["after_s"] = _seconds(evidence.get("after_s", "?"))
    return template.format(**values), keys


def _begin(evidence: Evidence) -> Sentence:
    rollout = WANTED.get(str(evidence.get("cause")), f"a rollout ({evidence.get('cause', '?')})")
    text, keys = _filled("{owner_pid}, candidate {candidate}", evidence)
    return f"{rollout} was begun by pid {text}", [*keys, "cause"]


def _probe(evidence: Evidence) -> Sentence:
    good = evidence.get("ok") in {True, "True", "true"}
    when = "once more right before the switch, " if evidence.get("step") == "re-probe" else ""
    took = f" after {_seconds(evidence['after_s'])}" if "after_s" in evidence else ""
    candidate = evidence.get("candidate", "the candidate")
    text = f"{when}{candidate} was found {'healthy' if good else 'NOT healthy'}{took}"
    keys = ("ok", "step", "after_s", "candidate", "reason")
    return f"{text}: {evidence['reason']}" if "reason" in evidence else text, keys


def _died(evidence: Evidence) -> Sentence:
    text, keys = _filled("the active daemon {boot_id} died: {evidence}", evidence)
    return f"{text}; it is started again ({evidence.get('restarts', 0)} restarts before)", [*keys, "restarts"]


def _followed(evidence: Evidence) -> Sentence:
    text = "another program moved the deployment on: {active} is active, {state}"
    return _filled(text, {"active": "nothing", **evidence})


_TEMPLATES: Final = {
    "switch": "switched: {active} is active",
    "finish": "the observe window is over: it stays",
    "abort": "given up before the switch: {reason}",
    "health_failure": "a check of {boot_id} failed, {streak} in a row: {evidence}",
    "health_ok": "{boot_id} passed a check: the count is zero again",
    "window_failed": "{boot_id} failed its observe window and stays active: {evidence}",
    "rollback": "rolled back from {boot_id}: {evidence}",
    "rollback_refused": "{boot_id} cannot be rolled back: {evidence}",
    "cut": "{connections} connections of {boot_id} were cut, {left} left",
    "hastened": "{boot_id} is drained faster: {draining} drain at once, {most} may",
    "stopping": "{boot_id} gets its stop signal",
    "stopping_stray": "{boot_id} runs and the registry does not know it: it gets its stop signal",
    "gone": "{boot_id} is gone",
    "blocked": "{boot_id} cannot be started again for now, and turnout keeps trying: {evidence}",
    "unblocked": "{boot_id} can be started again; for {after_s} it could not: {evidence}",
    "replacing": "{boot_id} hangs and is replaced: {evidence}",
    "unwell": "{boot_id} runs and fails its checks: {evidence}",
    "well_again": "{boot_id} passes its checks again",
    "auto_deploy": "a new build was seen, and considered by itself: {answer}",
    "retire": "{boot_id} takes no new connections and makes room for its successor",
    "bring_back": "the start failed ({reason}): the build of {boot_id} is started again",
    "cold_rollback": "{boot_id} failed and the previous daemon is gone: its build is started again",
    "rollback_blocked": "going back from {boot_id} cannot begin for now, and is tried again: {evidence}",
    "rollback_unblocked": "going back from {boot_id} has begun; for {after_s} it could not: {evidence}",
    "rollback_given_up": "going back from {boot_id} was given up: {evidence}",
    "crash_loop": "{boot_id} is given up: {evidence}",
    "deactivate": "nothing is active any more: {reason}",
    "pause": "paused: new connections are held",
    "resume": "resumed: held connections were let go",
    "not_as_deployed": "the daemon was started, not as it was deployed: {what}",
    "repair": "the registry was repaired: {what}",
}
SENTENCES: Final[Mapping[str, Callable[[Evidence], Sentence]]] = {
    **{event: partial(_filled, template) for event, template in _TEMPLATES.items()},
    "begin": _begin,
    "probe": _probe,
    "died": _died,
    "followed": _followed,
}


def _seconds(value: Scalar) -> str:
    return f"{value:.3g} s" if isinstance(value, (int, float)) else f"{value} s"
