"""What --dry-run tells is what the verb then does, in every state: the same steps, or the same refusal."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from lifecycle_fakes import Stage, staged
from support import scaled
from turnout.core.model import Cause, Daemon, Deployment, Desired, DrainCause, State
from turnout.testing import free_port

# -- the states --------------------------------------------------------------------------------------------------------


def never_up(_stage: Stage) -> None:
    """Nothing was ever written."""


def serves(stage: Stage, *others: Daemon, lives: bool = True, owned: bool = True, **block: object) -> None:
    """A daemon of build v1 is active, or an attached one, as generation 2; v0 was before it."""
    stage.run_keeper()
    stage.record(1, "v0", "active")
    stage.record(2, "v1", "active")
    active = stage.daemon("a", "v1", lives=lives, owned=owned)
    deployment = Deployment(generation=2, active_boot_id="a", revision=9, switch_ts=1.0)
    stage.set_up(replace(deployment, **block), active, *others)  # type: ignore[arg-type]


def serves_nothing(stage: Stage, reason: str, desired: Desired) -> None:
    stage.run_keeper()
    stage.record(1, "v1", "active" if desired is Desired.RUNNING or reason == "stopped" else "aborted")
    stage.set_up(Deployment(generation=1, revision=9, switch_ts=1.0, rollback_reason=reason, desired=desired))


def rolls_out(stage: Stage, *, lives: bool, active: bool, cause: Cause = Cause.DEPLOY) -> None:
    """A rollout is under way, by an owner that lives, or has died."""
    state = State.ROLLING_BACK if cause is Cause.ROLLBACK else State.STARTING
    owner = stage.owner(lives=lives)
    if active:
        serves(stage, generation=3, state=state, candidate_boot_id="c", owner=owner, cause=cause)
        return
    stage.run_keeper()
    stage.set_up(
        Deployment(generation=1, state=state, candidate_boot_id="c", owner=owner, cause=Cause.START, revision=9)
    )


def observes(stage: Stage, *, active: bool = True, old: bool = True, owned: bool = True) -> None:
    """The window of generation 3, a daemon of build v2; each of the two lives, or has died."""
    stage.run_keeper()
    for generation, version in enumerate(("v0", "v1", "v2"), start=1):
        stage.record(generation, version, "active")
    stage.set_up(
        Deployment(generation=3, state=State.SWITCHED, active_boot_id="b", old_boot_id="a", switch_ts=1.0, revision=9),
        stage.daemon("a", "v1", lives=old, owned=owned),
        stage.daemon("b", "v2", lives=active),
    )


def drains(stage: Stage) -> None:
    draining = replace(stage.daemon("d", "v0"), draining=True, drain_cause=DrainCause.REPLACED)
    serves(stage, draining)


STATES: Final[dict[str, Callable[[Stage], None]]] = {
    "never up": never_up,
    "first start, living owner": lambda stage: rolls_out(stage, lives=True, active=False),
    "first start, dead owner": lambda stage: rolls_out(stage, lives=False, active=False),
    "deploying, living owner": lambda stage: rolls_out(stage, lives=True, active=True),
    "deploying, dead owner": lambda stage: rolls_out(stage, lives=False, active=True),
    "rolling back, dead owner": lambda stage: rolls_out(stage, lives=False, active=True, cause=Cause.ROLLBACK),
    "observing": observes,
    "observing, active dead": lambda stage: observes(stage, active=False),
    "observing, previous dead": lambda stage: observes(stage, old=False),
    "observing, both dead": lambda stage: observes(stage, active=False, old=False),
    "observing, previous attached": lambda stage: observes(stage, owned=False),
    "idle": serves,
    "idle, dead": lambda stage: serves(stage, lives=False),
    "draining": drains,
    "stopped": lambda stage: serves_nothing(stage, "stopped", Desired.STOPPED),
    "failed start": lambda stage: serves_nothing(stage, "it ended", Desired.STOPPED),
    "gave up": lambda stage: serves_nothing(stage, "it ended", Desired.RUNNING),
    "paused": lambda stage: serves(stage, desired=Desired.PAUSED),
    "attached": lambda stage: serves(stage, owned=False),
    "attached, dead": lambda stage: serves(stage, owned=False, lives=False),
}


def lose_keeper(stage: Stage) -> None:
    stage.keeper_runs = False
    stage.known.clear()


def lose_service(stage: Stage) -> None:
    """The keeper runs for another service, and has never listened for this one."""
    stage.known = {"other": [("127.0.0.1", 1)]}
    stage.keeper_runs = True


def quarantine(stage: Stage) -> None:
    stage.configure("v3")
    stage.service.home.create()
    stage.service.builds.quarantine(stage.build("v3").id, "it failed", 1)


VARIANTS: Final[dict[str, Callable[[Stage], None]]] = {
    "as it is": lambda _stage: None,
    "another build": lambda stage: stage.configure("v3"),
    "a quarantined build": quarantine,
    "recreate": lambda stage: stage.configure("v3", strategy="recreate"),
    "no keeper": lose_keeper,
    "another service's keeper": lose_service,
}
VERBS: Final[dict[str, tuple[str, ...]]] = {
    "up": ("up",),
    "up --supersede": ("up", "--supersede"),
    "up --automatic": ("up", "--automatic"),
    "start": ("start",),
    "deploy": ("deploy", "--detach"),
    "deploy --force": ("deploy", "--detach", "--force"),
    "deploy --supersede": ("deploy", "--detach", "--supersede"),
    "refresh": ("refresh",),
    "rollback": ("rollback", "--detach"),
    "rollback 1": ("rollback", "--detach", "1"),
    "stop": ("stop",),
    "down": ("down",),
    "attach": ("attach", "--detach", "127.0.0.1:{listening}"),
    "attach to nothing": ("attach", "--detach", "127.0.0.1:{free}"),
    "detach": ("detach",),
    "pause": ("pause",),
    "resume": ("resume",),
    "drain": ("drain",),
    "drain --now": ("drain", "--now"),
    "stop of another generation": ("stop", "--if-generation", "77"),
}
# Variants that make a difference to rollouts, and the verbs that roll out.
OF_ROLLOUTS: Final = frozenset({"another build", "a quarantined build", "recreate"})
ROLL: Final = frozenset(name for name in VERBS if name.split()[0] in {"up", "start", "deploy", "refresh", "rollback"})


# -- what was told, and what was done ----------------------------------------------------------------------------------

# Steps that leave a trace: what the line says, and the trace.
CLAIMS: Final[tuple[tuple[str, str], ...]] = (
    (r"start a keeper and a router in .*", "keeper started"),
    (r"start a keeper in .*, and end it", "keeper started; keeper ended"),
    (r"listen on .*", "listen"),
    (r"abort generation (\d+), .*", r"abort \1"),
    (r"let the router switch back to (\S+) .*", r"rollback \1"),
    (r"begin generation (\d+) \((\S+)\)", r"begin \1 \2"),
    (r"start sleep 600 \(version (\S+)\) in .*", r"start \1"),
    (r"switch back to (\S+) .*", r"rollback \1"),
    (r"switch new connections .*", "switch"),
    (r"watch it for .*", "observed"),
    (r"hold new connections, at most .* stop (\S+) .*", r"make room \1"),
    (r"hold new connections on .*", "pause"),
    (r"let held connections go on .*", "resume"),
    (r"let (\S+) .* go; .*", "deactivate"),
    (r"leave \S+ .* which was attached and runs on; .*", "deactivate"),
    (r"stop (\S+) .*; new connections are reset", "deactivate"),
    (r"keep it stopped", "to be stopped"),
    (r"hasten (\S+) .*", r"hasten \1"),
    (r"close .*", "close"),
    (r"end router .* and keeper .*", "keeper ended"),
    (r"lift the quarantine .*", "pardon"),
)
# Steps that are details of others, or change nothing.
DETAILS: Final = (
    r"do nothing: .*",
    r"probe .*",
    r"then drain and stop .*",
    r"drain and stop .*",
    r"drain .* for .* and stop it",
    r"leave .*",
    r"warn: .*",
    r"take over changed settings: .*",
)


def claimed(lines: tuple[str, ...]) -> list[str]:
    claims = []
    for line in lines:
        text = line.removeprefix("would ")
        found = next((claim for pattern, claim in CLAIMS if re.fullmatch(pattern, text)), None)
        if found is None:
            assert any(re.fullmatch(pattern, text) for pattern in DETAILS), f"what does {text!r} claim?"
            continue
        pattern = next(pattern for pattern, _ in CLAIMS if re.fullmatch(pattern, text))
        claims += re.sub(pattern, found, text).split("; ")
    return sorted(claims)


def done(stage: Stage, verb: str, was: Deployment, quarantined: str | None) -> list[str]:
    """The traces of a verb, in the words of CLAIMS."""
    traces: list[str] = []
    block = stage.snapshot.deployment
    for entry in stage.journal():
        event = entry["event"]
        if event == "abort":
            traces.append(f"abort {entry['generation']}")
        elif event == "begin":
            traces.append(f"begin {entry['generation']} {entry['cause']}")
        elif event == "rollback":
            traces.append(f"rollback {block.active_boot_id}")
        elif event == "retire" and ("stopped", entry["boot_id"]) in stage.did:
            traces.append(f"make room {entry['boot_id']}")
        elif event in {"switch", "deactivate", "pause", "resume"}:
            traces.append(str(event))
    for what, *names in stage.did:
        if what == "start":
            traces.append(f"start {names[-1]}")
        elif what == "router put back" and verb not in {"pause", "resume", "drain", "down"}:  # it would anyway
            traces.append(f"rollback {names[0]}")
        elif what == "hastened":
            traces.append(f"hasten {names[0]}")
        elif what in {"keeper started", "listen", "close", "keeper ended"}:
            traces.append(what)
    waits = stage.snapshot.daemons.get("d")
    if waits and waits.drain_cause in {DrainCause.HASTENED, DrainCause.STOPPED}:  # no router that has done it yet
        traces.append("hasten d")
    if block.state is State.SWITCHED and block.generation != was.generation:
        traces.append("observed")
    stopped = block.desired is Desired.STOPPED and was.desired is not Desired.STOPPED
    if stopped and "deactivate" not in traces:
        traces.append("to be stopped")
    if quarantined and not stage.service.builds.quarantined(stage.build(stage.version).id):
        traces.append("pardon")
    if verb == "down" and "deactivate" in traces:  # which goes without saying
        traces.remove("deactivate")
    return sorted(traces)


def compare(stage: Stage, free: int, *verb: str) -> str:
    """Have a verb tell what it would do, then do it; answers where the two differ."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        args = [arg.format(listening=port, free=free) for arg in verb]
        files, runs = stage.files(), stage.keeper_runs
        told = stage.type(args[0], "--dry-run", *args[1:])
        if (stage.files(), stage.keeper_runs, stage.did) != (files, runs, []):
            return f"the dry run did something: {stage.did}"
        was, quarantined = stage.snapshot.deployment, stage.service.builds.quarantined(stage.build(stage.version).id)
        came = stage.type(*args)
    if told.code or came.code:
        same = (told.code, told.error) == (came.code, came.error)
        if same and stage.snapshot.deployment != was and stage.snapshot.deployment.state is not was.state:
            return f"refused ({came.error}), and yet changed: {done(stage, args[0], was, quarantined)}"
        return (
            "" if same else f"told {told.code} {told.error or told.lines}, came {came.code} {came.error or came.lines}"
        )
    claims, traces = claimed(told.lines), done(stage, args[0], was, quarantined)
    return "" if claims == traces else f"told {claims}, did {traces}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("state", STATES)
def test_a_dry_run_tells_what_the_verb_then_does(
    state: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state and verb; what differs from the plain case only in the whole run, but for every sixth."""
    wrong: dict[str, str] = {}
    own, free = free_port(), free_port()
    first = list(STATES).index(state) + list(VARIANTS).index(variant)
    every = 1 if variant == "as it is" else scaled(6, 1)
    for number, (name, verb) in enumerate(VERBS.items()):
        if (first + number) % every or (name not in ROLL and variant in OF_ROLLOUTS):
            continue
        directory = tmp_path / str(number)
        directory.mkdir()
        with staged(monkeypatch, directory, own) as stage:
            STATES[state](stage)
            VARIANTS[variant](stage)
            difference = compare(stage, free, *verb)
        if difference:
            wrong[name] = difference
    assert not wrong, "\n".join(f"{verb}: {difference}" for verb, difference in wrong.items())
