"""The same fields, of the right types, in every state and view: text, --json, admin socket, metrics, dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import msgspec
import pytest
from click.testing import CliRunner

from dashboard_support import Served
from e2e_support import Turnout, line_daemon
from metrics_support import Scrape, scrape
from process_support import Started
from support import eventually
from turnout.cli import cli
from turnout.cli.formatting import moment
from turnout.control.router_client import RouterClient
from turnout.core.deployment import (
    abort_deploy,
    begin_deploy,
    finish_deploy,
    mark_candidate_healthy,
    record_health_failure,
)
from turnout.core.membership import register_daemon
from turnout.core.model import Cause, Snapshot
from turnout.core.outcome import Outcome
from turnout.status.schema import DeploymentStatus, Role, Status
from turnout.system.process import own_identity
from turnout.testing import free_port

# the contract of DESIGN: names and types of the rollout's fields
FIELDS: dict[str, type | tuple[type, ...]] = {
    "generation": int,
    "state": str,
    "active_boot_id": str,
    "candidate_boot_id": str,
    "old_boot_id": str,
    "health_fail_streak": int,
    "rollback_reason": str,
    "switch_ts": float,
    "observe_remaining_s": (float, type(None)),
    "revision": int,
    "cause": str,
}
SERVICE = {"name", "listen", "strategy", "desired", "held", "restart", "router", "deployment", "daemons", "problems"}
SERVICE |= {"unwell", "settings", "counters", "troubles"}
ROUTER = {"pid", "alive", "plane", "plane_trouble", "applied_revision", "uptime_s", "version", "leaving"}
DAEMON: dict[str, type | tuple[type, ...]] = {
    "boot_id": str,
    "version": str,
    "pid": int,
    "host": str,
    "port": int,
    "own_port": int,
    "role": str,
    "alive": bool,
    "healthy": (bool, type(None)),
    "reason": str,
    "connections": (int, type(None)),
    "bytes_in": (int, type(None)),
    "bytes_out": (int, type(None)),
    "started_ts": float,
    "suspended": bool,
}


@dataclass(frozen=True)
class Views:
    """One state as each view tells it; ``socket`` and ``metrics`` are None where no router answers.

    ``page`` is what the dashboard's event stream sends to the page, ``file`` its ``/status.json``; ``all`` is all of
    ``--json``, ``json`` its one service, ``verbose`` what ``-v`` adds to the text.
    """

    state: str
    text: list[str]
    verbose: list[str]
    all: dict[str, Any]
    json: dict[str, Any]
    page: dict[str, Any]
    file: dict[str, Any]
    socket: dict[str, Any] | None
    metrics: Scrape | None


GENERATIONS = {"idle": 1, "starting": 2, "rolling_back": 3, "ready": 4, "aborted": 4, "switched": 5, "failing": 5}
GENERATIONS |= {"paused": 5, "stopped": 5, "not running": 5}
STATES = tuple(GENERATIONS)
BLOCK_STATES = dict.fromkeys(("aborted", "paused", "stopped", "not running"), "idle") | {"failing": "switched"}
WHY = 'it never <answered> "in time"'


class Tour:
    """One service, brought from state to state."""

    def __init__(self, turnout: Turnout, started: Started, metrics_port: int, dashboard: Served) -> None:
        self.turnout = turnout
        self.metrics_port = metrics_port
        self.started = started
        self.dashboard = dashboard
        self.seen: dict[str, Views] = {}

    def go(self) -> dict[str, Views]:
        self.turnout.configure(line_daemon("--version", "v1"), observe="10m")
        self.turnout.run("up", "--metrics", f"127.0.0.1:{self.metrics_port}")
        eventually(lambda: RouterClient(self.turnout.home).metrics_address(), why="metrics are not served")
        self.look("idle")
        for state, cause in (("starting", Cause.DEPLOY), ("rolling_back", Cause.ROLLBACK)):
            self.begin(cause)
            self.look(state)
            self.abort()
        self.begin(Cause.DEPLOY)
        candidate = replace(self.started.demo(version="next").daemon, boot_id="next", version="next", owned=False)
        self.event(lambda snap: register_daemon(snap, candidate))
        self.event(lambda snap: mark_candidate_healthy(snap, 4, "next"))
        self.look("ready")
        self.abort(WHY)
        eventually(lambda: "next" not in self.turnout.snapshot().daemons, why="the router does not let it go")
        self.look("aborted")
        # checked once after the switch, and then not for as long as this lasts: what is written here stays
        self.turnout.configure(line_daemon("--version", "v2"), version="v2", observe="50m", interval="10m")
        self.turnout.run("deploy", "--detach")
        self.look("switched")
        active = self.turnout.snapshot().deployment.active_boot_id
        self.event(lambda snap: record_health_failure(snap, 5, active, reason=WHY, threshold=3))
        self.look("failing")
        self.event(lambda snap: finish_deploy(snap, 5))
        for verb, state in (("pause", "paused"), ("stop", "stopped"), ("down", "not running")):
            self.turnout.run(verb)
            self.look(state)
        return self.seen

    def begin(self, cause: Cause) -> None:
        self.event(lambda snap: begin_deploy(snap, "next", owner=own_identity(), cause=cause))

    def abort(self, reason: str = "") -> None:
        generation = self.turnout.snapshot().deployment.generation
        self.event(lambda snap: abort_deploy(snap, generation, reason=reason))

    def event(self, change: Callable[[Snapshot], Outcome]) -> None:
        assert self.turnout.registry.update(change).applied

    def look(self, state: str) -> None:
        why = f"{state}: the registry is written again and again"
        found = eventually(lambda: self.views(state), timeout_s=60, why=why)
        assert found
        self.seen[state] = found

    def views(self, state: str) -> Views | None:
        """All views of one revision; None where the registry was written meanwhile.

        A router writes once the last connection of an old daemon has ended, for one: that may be after the verb's end.
        """
        block = self.turnout.snapshot().deployment
        socket = metrics = None
        if state != "not running":
            RouterClient(self.turnout.home).wait_applied("default", block.revision, timeout_s=20)
            active = block.active_boot_id
            eventually(lambda: not active or self.asked()["healthy"].get(active), why="never healthy")
            socket = self.asked()
            metrics = eventually(lambda: self.scraped(block.revision), why="the metrics are of an earlier revision")
        run = CliRunner().invoke
        text = run(cli, ["status"], env=self.turnout.env)
        told = run(cli, ["status", "--json"], env=self.turnout.env)
        more = run(cli, ["status", "-v"], env=self.turnout.env)
        assert (text.exit_code, told.exit_code, more.exit_code) == (0, 0, 0), text.output
        everything = json.loads(told.stdout)
        (service,) = everything["services"]
        page = self.paged(block.revision, alive=socket is not None)
        file = self.dashboard.ask("GET", "/status.json").json
        if page is None or self.turnout.snapshot().deployment.revision != block.revision:
            return None
        return Views(
            state=state,
            text=text.stdout.splitlines(),
            verbose=more.stdout.splitlines()[5:],
            all=everything,
            json=service,
            page=page,
            file=file,
            socket=socket,
            metrics=metrics,
        )

    def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = RouterClient(self.turnout.home).status(timeout_s=20)["services"]["default"]
        return found

    def paged(self, revision: int, *, alive: bool) -> dict[str, Any] | None:
        """What a page is sent, once it is of this revision, and of a router that is there, or no more.

        None: it is of a later revision. A router that goes lets go of its service a moment before it stops answering:
        the metrics say which it was.
        """
        events = self.dashboard.events()
        try:
            while True:
                found: dict[str, Any] = events.next("look")["status"]
                (service,) = found["services"] or [None]
                if service and service["deployment"]["revision"] > revision:
                    return None
                if not service or found["metrics"]["served"] is not alive:
                    continue
                if (service["deployment"]["revision"], service["router"]["alive"]) == (revision, alive):
                    return found
        finally:
            events.close()

    def scraped(self, revision: int) -> Scrape | None:
        """The metrics, once they are of this revision or of a later one."""
        found = scrape(self.metrics_port)
        return found if (found.value("turnout_deployment_revision") or 0) >= revision else None


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Views]]:
    port, metrics_port = free_port(), free_port()
    turnout = Turnout(tmp_path_factory.mktemp("views") / "home", port)
    try:
        with Started() as started, Served(turnout.env, turnout.home.root.parent) as dashboard:
            yield Tour(turnout, started, metrics_port, dashboard).go()
    finally:
        turnout.end()


@pytest.fixture(params=STATES)
def views(request: pytest.FixtureRequest, tour: dict[str, Views]) -> Views:
    return tour[request.param]


def test_json_has_every_field_with_its_type(views: Views) -> None:
    assert set(views.json) >= SERVICE
    assert set(views.json["router"]) >= ROUTER
    assert set(views.json["deployment"]) >= FIELDS.keys()
    for name, kind in FIELDS.items():
        assert isinstance(views.json["deployment"][name], kind), name
    for daemon in views.json["daemons"]:
        assert daemon.keys() >= DAEMON.keys()
        for name, kind in DAEMON.items():
            assert isinstance(daemon[name], kind), name
        assert daemon["role"] in get_args(Role)
    msgspec.convert(views.all, Status, strict=True)


def test_json_tells_the_state(views: Views) -> None:
    block = views.json["deployment"]
    assert block["state"] == BLOCK_STATES.get(views.state, views.state)
    desired = {"paused": "paused", "stopped": "stopped", "not running": "stopped"}.get(views.state, "running")
    assert views.json["desired"] == desired
    assert views.json["router"]["alive"] is (views.state != "not running")
    assert (block["active_boot_id"] == "") is (views.state in {"stopped", "not running"})
    assert (block["candidate_boot_id"] == "next") is (views.state in {"starting", "rolling_back", "ready"})
    assert (block["old_boot_id"] != "") is (views.state in {"switched", "failing"})
    assert (block["observe_remaining_s"] is not None) is (views.state in {"switched", "failing"})
    reasons = {"aborted": WHY, "stopped": "stopped", "not running": "stopped"}
    assert block["rollback_reason"] == reasons.get(views.state, "")
    assert block["health_fail_streak"] == (1 if views.state == "failing" else 0)
    assert block["generation"] == GENERATIONS[views.state]


def test_the_admin_socket_has_the_same_fields_and_values(views: Views) -> None:
    if views.socket is None:
        assert views.json["router"] == dict.fromkeys(ROUTER) | {"alive": False, "leaving": []}
        assert views.json["held"] is None
        return
    block = views.socket["deployment"]
    msgspec.convert(block, DeploymentStatus, strict=True)
    for name, kind in FIELDS.items():
        assert isinstance(block[name], kind), name
        if name != "observe_remaining_s":
            assert block[name] == views.json["deployment"][name], name
    remaining, earlier = block["observe_remaining_s"], views.json["deployment"]["observe_remaining_s"]
    assert (remaining is None) is (earlier is None)
    assert remaining is None or 0 < earlier <= remaining <= 3000, "the window counts down"
    assert views.socket["desired"] == views.json["desired"]
    assert views.socket["applied_revision"] == views.json["deployment"]["revision"]


def test_the_metrics_have_the_same_fields_and_values(views: Views) -> None:
    told = views.metrics
    if told is None:
        assert views.state == "not running"
        return
    block = views.json["deployment"]
    (info,) = told.labels("turnout_deployment_info")
    texts = {"active_boot_id", "candidate_boot_id", "old_boot_id", "rollback_reason", "cause"}
    assert info == {"service": "default"} | {name: block[name] for name in texts}
    numbers = {
        "turnout_deployment_generation": "generation",
        "turnout_deployment_revision": "revision",
        "turnout_health_fail_streak": "health_fail_streak",
        "turnout_last_switch_timestamp_seconds": "switch_ts",
    }
    for name, field in numbers.items():
        assert told.value(name, service="default") == block[field], name
    assert [one["state"] for one in told.labels("turnout_deployment_state")] == [block["state"]]
    assert [one["desired"] for one in told.labels("turnout_deployment_desired")] == [views.json["desired"]]
    assert [one["cause"] for one in told.labels("turnout_deployment_cause")] == [block["cause"]]
    remaining = told.value("turnout_observe_remaining_seconds")
    assert (remaining is None) is (block["observe_remaining_s"] is None)
    assert remaining is None or 0 < block["observe_remaining_s"] <= remaining <= 3000, "the window counts down"
    assert told.value("turnout_hold_connections", service="default") == views.json["held"]
    (info,) = told.labels("turnout_service_info")
    assert info == {"service": "default", "plane": views.json["router"]["plane"], "strategy": views.json["strategy"]}
    assert told.labels("turnout_build_info") == [{"version": views.json["router"]["version"]}]
    mine = {(one["boot_id"], one["version"], one["role"]) for one in told.labels("turnout_daemon_info")}
    theirs = {(one["boot_id"], one["version"], one["role"]) for one in views.json["daemons"]}
    taking_part = {one for one in theirs if one[2] in {"active", "candidate", "warm"}}
    assert taking_part == {one for one in mine if one[2] != "draining"}
    for boot_id, _, _ in taking_part:
        assert told.value("turnout_daemon_connections_open", boot_id=boot_id) == 0


@pytest.mark.parametrize("view", ["page", "file"])
def test_the_dashboard_has_the_same_fields_and_values(views: Views, view: str) -> None:
    told: dict[str, Any] = getattr(views, view)
    msgspec.convert(told, Status, strict=True)
    assert told["metrics"] == views.all["metrics"]
    (service,) = told["services"]
    for name, kind in FIELDS.items():
        assert isinstance(service["deployment"][name], kind), name
    remaining, other = service["deployment"].pop("observe_remaining_s"), views.json["deployment"]["observe_remaining_s"]
    assert (remaining is None) is (other is None)
    assert remaining is None or (0 < remaining <= 3000 and abs(remaining - other) < 600), "the window counts down"
    assert service["deployment"].items() <= views.json["deployment"].items()
    assert service["router"].keys() == views.json["router"].keys()
    for name in ROUTER - {"uptime_s"}:
        assert service["router"][name] == views.json["router"][name], name
    for name in ("name", "listen", "strategy", "desired", "held", "restart", "problems"):
        assert service[name] == views.json[name], name
    roles = [
        {(one["boot_id"], one["version"], one["pid"], one["role"]) for one in each["daemons"]}
        for each in (service, views.json)
    ]
    assert len({frozenset(one for one in each if one[3] in {"active", "candidate", "warm"}) for each in roles}) == 1


def test_the_last_line_of_all_says_where_metrics_are_and_whether_they_are_served(views: Views) -> None:
    metrics = views.all["metrics"]
    where = f"http://{metrics['listen']}/metrics"
    assert metrics["served"] is (views.metrics is not None)
    if views.state == "not running":
        assert views.verbose[-1] == f"metrics  {where}, not served: no router runs  -> turnout doctor"
    else:
        assert views.verbose[-1] == f"metrics  {where}"


def test_the_text_is_five_lines_with_the_same_values(views: Views) -> None:
    assert len(views.text) == 5, views.text
    head, active, others, rollout, router = views.text
    block = views.json["deployment"]
    assert head.startswith(f"default  {views.json['listen'][0]}  {views.json['desired']}")
    assert active.split(",")[0].split()[:2] == ["active", block["active_boot_id"] or "none"]
    assert f"candidate {block['candidate_boot_id'] or 'none'}" in others
    assert f"old {block['old_boot_id'] or 'none'}" in others
    found = re.fullmatch(
        r"  rollout    generation (\d+), (\w+), (no window|observed for \d+ s more), (\d+) failed in a row;"
        r" switched (never|.{19}), .* ago; rollback reason: (.+)",
        rollout,
    )
    assert found, rollout
    assert found[1] == str(block["generation"])
    assert found[2] == block["state"]
    assert (found[3] != "no window") is (block["observe_remaining_s"] is not None)
    assert found[4] == str(block["health_fail_streak"])
    assert found[5] == moment(block["switch_ts"])
    assert found[6] == (block["rollback_reason"] or "none")
    assert f"revision {block['revision']}" in router
    if views.json["router"]["alive"]:
        assert f"pid {views.json['router']['pid']}, relay" in router
    else:
        assert "none" in router


def test_the_first_line_says_what_is_wrong_or_that_all_is_well(views: Views) -> None:
    said = {"paused": "WARN: paused", "stopped": "by hand  -> turnout start", "not running": "by hand  -> turnout up"}
    assert said.get(views.state, "OK: ") in views.text[0]
    assert bool(views.json["problems"]) is (views.state == "paused")


def test_the_json_is_what_one_service_of_the_schema_promises() -> None:
    """The contract is a subset of the struct: what is added there is added here on purpose."""
    assert set(DeploymentStatus.__struct_fields__) >= FIELDS.keys()
    schema = json.dumps(msgspec.json.schema(Status))
    assert all(f'"{name}"' in schema for name in {*FIELDS, *SERVICE, *ROUTER, *DAEMON})
