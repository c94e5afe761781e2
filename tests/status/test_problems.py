"""What is wrong with a service and what to type, decided from its status alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from turnout.core.model import Cause, Desired, State
from turnout.status.problems import OF_ANOTHER_HOME, failed_start_of, problems_of, start_with_of
from turnout.status.schema import (
    DaemonStatus,
    DeploymentStatus,
    RestartStatus,
    RouterStatus,
    ServiceStatus,
    SettingsStatus,
    UnwellStatus,
)

ROUTER = RouterStatus(
    pid=1, alive=True, plane="relay", plane_trouble="", applied_revision=9, uptime_s=5.0, version="1", leaving=[]
)
ACTIVE = DaemonStatus(
    boot_id="v1", version="1", pid=7, host="127.0.0.1", port=4001, own_port=0, role="active", alive=True, healthy=True,
    reason="", connections=0, bytes_in=0, bytes_out=0, started_ts=1.0, attached=False, suspended=False,
)  # fmt: skip
BLOCK = DeploymentStatus(
    generation=3, state=State.IDLE, active_boot_id="v1", candidate_boot_id="", old_boot_id="", health_fail_streak=0,
    rollback_reason="", switch_ts=1.0, observe_remaining_s=None, revision=9, cause=Cause.DEPLOY,
)  # fmt: skip
WELL = ServiceStatus(
    name="cache", listen=["127.0.0.1:6379"], strategy="side-by-side", desired=Desired.RUNNING, held=0, restart=None,
    unwell=None, settings=None, counters={}, troubles=[], router=ROUTER, deployment=BLOCK, daemons=[ACTIVE],
    problems=[], failed_start=None, start_with="",
)  # fmt: skip
RESTART = RestartStatus(attempt=2, most=7, in_s=5.0, reason="exit code 1")
UNWELL = UnwellStatus(boot_id="v1", failures=4, for_s=40.0, reason="no answer")


def changed(**fields: Any) -> ServiceStatus:
    return msgspec.structs.replace(WELL, **fields)


def daemon(**fields: Any) -> ServiceStatus:
    return changed(daemons=[msgspec.structs.replace(ACTIVE, **fields)])


def block(**fields: Any) -> DeploymentStatus:
    return msgspec.structs.replace(BLOCK, **fields)


def found(status: ServiceStatus, *, abandoned: bool = False, startable: bool = True) -> list[tuple[str, str, str]]:
    problems = problems_of(status, failures=3, abandoned=abandoned, startable=startable)
    return [(problem.severity, problem.what, problem.hint) for problem in problems]


def test_a_service_that_runs_has_none() -> None:
    assert found(WELL) == []


@pytest.mark.parametrize(
    ("status", "severity", "text", "mend"),
    [
        (
            changed(router=msgspec.structs.replace(ROUTER, alive=False)),
            "bad", "no router answers: 127.0.0.1:6379 is not served", "turnout up --service cache",
        ),
        (
            changed(router=msgspec.structs.replace(ROUTER, alive=False), daemons=[]),
            "bad", "nothing runs, and it should", "turnout up --service cache",
        ),
        (changed(restart=RESTART), "bad", "the daemon died (exit code 1): restart 2 of 7 in 5 s", "turnout logs"),
        (
            changed(restart=msgspec.structs.replace(RESTART, hung=True, blocked="disk full")),
            "bad", "the daemon hangs (exit code 1), and cannot be started: disk full; turnout tries again in 5 s",
            "turnout doctor",
        ),
        (
            changed(restart=msgspec.structs.replace(RESTART, rolls_back=True)),
            "bad", "window (exit code 1): the build before is started, attempt 2 of 7 in 5 s", "turnout logs",
        ),
        (
            changed(restart=msgspec.structs.replace(RESTART, rolls_back=True, blocked="no port")),
            "bad", "and the rollback cannot begin: no port; turnout tries again in 5 s", "turnout doctor",
        ),
        (daemon(alive=False), "bad", "the active daemon (pid 7) is dead", "turnout up"),
        (daemon(alive=False, reason=OF_ANOTHER_HOME), "bad", "is a process of the home that this one", "turnout up"),
        (daemon(alive=False, attached=True), "bad", "has to start it again", "turnout attach 127.0.0.1:4001"),
        (daemon(suspended=True), "bad", "is suspended", "kill -CONT 7"),
        (changed(unwell=UNWELL), "bad", "fails its checks, 4 in a row, for 40 s: no answer", "turnout refresh"),
        (daemon(healthy=False, reason="reset"), "bad", "fails its checks: reset", "turnout refresh"),
        (changed(troubles=["no port is left"]), "warn", "no port is left", "turnout status -v"),
        (
            changed(settings=SettingsStatus(later=[], error="line 3")),
            "warn", "the configuration was not taken over: line 3", "turnout config",
        ),
        (changed(deployment=block(revision=10)), "warn", "the router is at revision 9 of 10", "turnout logs --router"),
        (changed(desired=Desired.PAUSED, held=4), "warn", "new connections are held, 4 now", "turnout resume"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_what_mends_it(status: ServiceStatus, severity: str, text: str, mend: str) -> None:
    ((seen, what, command),) = found(status)
    assert seen == severity
    assert text in what
    assert command.startswith(mend)


def test_a_daemon_that_fails_inside_its_window_is_told_with_the_count_and_the_way_back() -> None:
    status = msgspec.structs.replace(
        daemon(healthy=False, reason="reset"), deployment=block(state=State.SWITCHED, health_fail_streak=2)
    )
    assert found(status) == [
        ("bad", "the active daemon fails its checks: reset (2 of 3 in a row)", "turnout rollback --service cache")
    ]


def test_the_default_service_needs_no_flag() -> None:
    ((_, _, mend),) = found(msgspec.structs.replace(daemon(alive=False), name="default"))
    assert mend == "turnout up"


def test_nothing_active_is_a_fault_unless_a_rollout_is_under_way_or_there_never_was_one() -> None:
    nothing = changed(daemons=[], deployment=block(active_boot_id="", rollback_reason="exit code 1"))
    assert found(nothing) == [("bad", "nothing is active: exit code 1", "turnout up --service cache")]
    ((_, _, mend),) = found(nothing, startable=False)
    assert mend == "turnout up --service cache -- COMMAND --port {port}"
    for state, generation in ((State.STARTING, 3), (State.IDLE, 0)):
        assert found(changed(daemons=[], deployment=block(active_boot_id="", state=state, generation=generation))) == []


def test_an_abandoned_rollout_comes_before_what_is_less_grave() -> None:
    status = changed(troubles=["no port is left"], deployment=block(state=State.STARTING))
    assert [severity for severity, _, _ in found(status, abandoned=True)] == ["bad", "warn"]


def test_a_suspended_daemon_that_drains_is_named_beside_a_healthy_one() -> None:
    draining = msgspec.structs.replace(ACTIVE, boot_id="v0", pid=6, role="draining", suspended=True)
    assert found(changed(daemons=[ACTIVE, draining])) == [("warn", "v0 cannot drain: it is suspended", "kill -CONT 6")]


def test_a_stopped_service_has_no_problems_but_says_why_its_last_start_failed_and_what_starts_it() -> None:
    stopped = changed(
        desired=Desired.STOPPED, daemons=[], deployment=block(active_boot_id="", rollback_reason="no such command")
    )
    assert found(stopped) == []
    failed = failed_start_of(stopped)
    assert failed
    assert (failed.what, failed.hint) == (
        "generation 3, a deploy, failed: no such command", "turnout why 3 --service cache",
    )  # fmt: skip
    assert start_with_of(stopped, startable=True) == "turnout start --service cache"
    assert start_with_of(WELL, startable=True) == ""


@pytest.mark.parametrize("reason", ["", "stopped", "down", "detached"])
def test_a_service_that_an_operator_stopped_has_no_failed_start(reason: str) -> None:
    stopped = changed(desired=Desired.STOPPED, deployment=block(active_boot_id="", rollback_reason=reason))
    assert failed_start_of(stopped) is None
