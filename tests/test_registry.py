"""The registry as other programs use it: ``turnout.Registry``."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import turnout
import turnout.registry
from turnout import Cause, Daemon, DrainCause, Reason, Registry, State, this_process
from turnout.config.settings import Settings, dump_settings, parse_address
from turnout.core.model import Identity, Snapshot
from turnout.errors import UsageError
from turnout.state.home import Home
from turnout.state.journal import Journal
from turnout.state.registry.encoder import dumps


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


@pytest.fixture
def registry(path: Path) -> Registry:
    return Registry(path, clock=lambda: 1000.0)


def here(boot: str = "a", port: int = 4001, **more: Any) -> Daemon:
    return Daemon(boot, port=port, identity=this_process(), **more)


def serve(registry: Registry, boot: str) -> int:
    """Roll out to a registered daemon; the generation."""
    generation = registry.begin_deploy(boot).deployment.generation
    assert registry.mark_candidate_healthy(generation, boot).applied
    assert registry.switch_active(generation, boot).applied
    return generation


def test_the_documented_examples_hold(path: Path) -> None:
    found = doctest.DocTestFinder().find(turnout.registry, extraglobs={"path": path})
    runner = doctest.DocTestRunner()
    for test in found:
        runner.run(test)
    assert runner.failures == 0
    assert runner.tries >= 15


def test_every_public_name_is_there_and_nothing_else() -> None:
    for name in turnout.__all__:
        assert getattr(turnout, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        turnout.nothing_like_it  # noqa: B018


def test_a_registered_daemon_is_in_the_file_as_the_schema_has_it(registry: Registry, path: Path) -> None:
    registry.register(here(version="1.2", http_port=8080, extra={"theirs": True}))
    entry = json.loads(path.read_bytes())["daemons"]["a"]
    assert {
        key: entry[key] for key in ("port", "pid", "version", "http_port", "start_ts", "last_seen_ts", "theirs")
    } == {
        "port": 4001,
        "pid": os.getpid(),
        "version": "1.2",
        "http_port": 8080,
        "start_ts": 1000.0,
        "last_seen_ts": 1000.0,
        "theirs": True,
    }


@pytest.mark.parametrize("daemon", [Daemon(""), Daemon("a"), Daemon("a", port=65536), Daemon("a", port=-1)])
def test_a_daemon_that_cannot_be_is_refused_before_anything_is_written(
    registry: Registry, path: Path, daemon: Daemon
) -> None:
    with pytest.raises(UsageError):
        registry.register(replace(daemon, identity=this_process()))
    assert not path.exists()


def test_a_program_cannot_pass_itself_off_as_started_by_turnout(registry: Registry) -> None:
    registry.register(here(owned=True, build="b1"))
    found = registry.snapshot().daemons["a"]
    assert (found.owned, found.build) == (False, "")


def test_a_daemon_that_turnout_started_cannot_say_that_it_is_another_process(registry: Registry, path: Path) -> None:
    ours = Daemon("a", port=5000, identity=Identity(4711, 3), owned=True, build="b1", draining=True)
    path.write_bytes(dumps(Snapshot({"a": ours})))
    registry.register(here(version="2"))
    found = registry.snapshot().daemons["a"]
    assert (found.identity, found.port, found.owned, found.build, found.draining) == (
        ours.identity,
        5000,
        True,
        "b1",
        True,
    )
    assert found.version == "2"


def test_heartbeats_and_mappings_are_no_events_of_the_deployment(registry: Registry) -> None:
    registry.register(here())
    revision = registry.snapshot().deployment.revision
    later = Registry(registry.path, clock=lambda: 2000.0)
    assert later.heartbeat("a").applied
    assert later.map_workspace("/w", "a").applied
    snapshot = later.snapshot()
    assert snapshot.daemons["a"].last_seen_ts == 2000.0
    assert snapshot.workspaces["/w"].last_active_ts == 2000.0
    assert snapshot.deployment.revision == revision


def test_what_is_not_known_is_refused_and_the_file_stays_byte_identical(registry: Registry, path: Path) -> None:
    registry.register(here())
    before = path.read_bytes()
    for outcome in (registry.heartbeat("b"), registry.map_workspace("/w", "b")):
        assert (outcome.applied, outcome.reason) == (False, Reason.UNKNOWN_DAEMON)
    assert registry.unregister("b").reason is Reason.ALREADY
    assert path.read_bytes() == before


def test_a_workspace_follows_a_rollout_and_returns_with_a_rollback(registry: Registry) -> None:
    registry.register(here("a", 4001, http_port=81))
    registry.register(here("b", 4002, http_port=82))
    serve(registry, "a")
    registry.map_workspace("/w", "a")
    generation = serve(registry, "b")
    assert registry.snapshot().workspaces["/w"].http_port == 82
    for _ in range(2):
        assert registry.record_health_failure(generation, "b", reason="bad").deployment.state is State.SWITCHED
    registry.record_health_success(generation, "b")
    for _ in range(3):
        outcome = registry.record_health_failure(generation, "b", reason="bad", restore="a")
    assert outcome.deployment.active_boot_id == "a"
    assert registry.snapshot().workspaces["/w"].http_port == 81


def test_every_event_is_there(registry: Registry) -> None:
    registry.register(here("a", 4001))
    registry.register(here("b", 4002))
    first = serve(registry, "a")
    aborted = registry.begin_deploy("b", expected_generation=first, expected_active_boot_id="a", owner=Identity(1))
    assert registry.abort_deploy(aborted.deployment.generation, reason="no").applied
    second = serve(registry, "b")
    assert registry.rollback_active(second, "a", reason="by hand").applied
    third = serve(registry, "b")
    assert registry.finish_deploy(third).applied
    failed = serve(registry, "a")
    assert registry.fail_window(failed, "a", reason="both are dead").deployment.active_boot_id == "a"
    fifth = serve(registry, "b")
    assert registry.finish_deploy(fifth).applied
    assert registry.begin_deploy("a", supersede=True, cause=Cause.ROLLBACK).applied
    fourth = registry.snapshot().deployment.generation
    registry.abort_deploy(fourth, reason="no")
    assert registry.deactivate(fourth, "b", reason="over", cause=DrainCause.REPLACED).applied
    assert registry.snapshot().active is None


def test_what_a_program_decides_for_a_service_is_in_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_HOME", str(tmp_path))
    home = Home.find().service("cache")
    home.create()
    home.settings.write_bytes(dump_settings(Settings(name="cache", listen=(parse_address("127.0.0.1:5000"),))))
    registry = Registry(service="cache")
    registry.register(here("a"))
    generation = serve(registry, "a")
    registry.switch_active(generation - 1, "a")  # refused: nothing was decided
    events = Journal(home.journal).read(10)
    assert [(event.event, event.generation) for event in events] == [("begin", 1), ("mark", 1), ("switch", 1)]
    assert events[-1].evidence["active"] == "a"
    assert events[-1].evidence["by_pid"] == os.getpid()


class TestResolving:
    def test_the_fixed_address_is_that_of_the_service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TURNOUT_HOME", str(tmp_path))
        assert Registry().resolve() == ("127.0.0.1", 47777)
        home = Home.find().service("cache")
        home.create()
        elsewhere = tmp_path / "elsewhere.json"
        settings = Settings(name="cache", listen=(parse_address("[::1]:5000"),), registry=str(elsewhere))
        home.settings.write_bytes(dump_settings(settings))
        registry = Registry(service="cache")
        assert registry.resolve() == ("::1", 5000)
        assert registry.path == elsewhere

    def test_the_active_daemon_comes_first_then_the_workspaces_then_the_newest(self, registry: Registry) -> None:
        registry.register(here("old", 4001, start_ts=1.0))
        registry.register(here("mid", 4002, start_ts=2.0))
        registry.register(here("new", 4003, start_ts=3.0))
        registry.map_workspace("/w", "mid")

        def found(workspace: str | None = None) -> str:
            daemon = registry.resolve_upstream(workspace)
            assert daemon
            return daemon.boot_id

        assert (found("/w"), found("/elsewhere"), found()) == ("mid", "new", "new")
        serve(registry, "old")
        assert (found("/w"), found()) == ("old", "old")

    def test_the_dead_and_the_draining_are_passed_over(self, registry: Registry, path: Path) -> None:
        ended = replace(this_process(), start_ticks=1)  # the pid is in use, but by a process that began later
        registry.register(Daemon("dead", port=4002, identity=ended, start_ts=5.0))
        registry.register(Daemon("unknown", port=4001, start_ts=1.0))
        raw = json.loads(path.read_bytes())
        raw["daemons"]["draining"] = {"port": 4003, "start_ts": 9.0, "draining": True, "pid": os.getpid()}
        path.write_text(json.dumps(raw))
        registry.map_workspace("/w", "dead")
        for workspace in (None, "/w"):
            daemon = registry.resolve_upstream(workspace)
            assert daemon
            assert daemon.boot_id == "unknown"

    def test_nobody_is_none(self, registry: Registry) -> None:
        assert registry.resolve_upstream() is None


def test_a_program_of_schema_2_without_a_deployment_keeps_its_own_keys_through_a_whole_rollout(
    registry: Registry, path: Path
) -> None:
    """Registered, deployed, switched, rolled back: every key of its own, at each level, comes out as it went in."""
    own = {"x-list": [1, {"a": None}], "x-text": "é"}
    entry = {
        "host": "127.0.0.1",
        "port": 4001,
        "pid": 0,
        "start_ts": 1.0,
        "last_seen_ts": 2.0,
        "draining": False,
        **own,
    }
    raw: dict[str, Any] = {
        "version": "2.0",
        "daemons": {"a": entry},
        "workspaces": {"/w": {"boot_id": "a", "last_active_ts": 3.0, "http_host": None, **own}},
        "x-root": own,
    }
    path.write_text(json.dumps(raw))
    registry.register(here("b", 4002))
    serve(registry, "a")
    generation = serve(registry, "b")
    assert json.loads(path.read_bytes())["workspaces"]["/w"]["boot_id"] == "b"
    registry.rollback_active(generation, "a", reason="bad")
    registry.heartbeat("a")
    now = json.loads(path.read_bytes())
    assert now["x-root"] == own
    for where, key in (("daemons", "a"), ("workspaces", "/w")):
        for name, value in raw[where][key].items():
            expected = 1000.0 if (where, name) == ("daemons", "last_seen_ts") else value
            assert now[where][key][name] == expected, (where, name)


def test_importing_turnout_costs_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, turnout; print(sorted(m for m in sys.modules if m.startswith(('turnout.', 'msgspec', 'uvloop'))))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
