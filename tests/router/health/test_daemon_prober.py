"""Checks of daemons and of whose listener is at their address, with probes and threads that are made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fake_time import SkippingLoop
from turnout.config.settings import Address, Health, Settings
from turnout.core.model import Daemon, Deployment, Identity, Snapshot
from turnout.router.health import daemon_prober
from turnout.router.health.daemon_prober import PROVE_FIRST_S, PROVE_MOST_S, DaemonProber
from turnout.router.health.probing import ProbeThreads
from turnout.router.upstream import UpstreamSelector
from turnout.state.home import ServiceHome
from turnout.state.service import Service
from turnout.system.probes.connect import shut
from turnout.system.probes.probe import ProbeResult
from turnout.testing import FakePlane

ACTIVE = Daemon("a", port=20001, identity=Identity(7), owned=True, build="one")
PROVEN = ProbeResult(ok=True, reason="", proven=True)
OTHER = Daemon("b", port=20002, identity=Identity(8), owned=True, build="two")


@dataclass
class FakeThreads:
    """Runs each check at once, and notes its kind, its deadline, and when it began."""

    runs: list[tuple[str, str, float, float]] = field(default_factory=list)

    async def run(
        self, daemon: Daemon, check: Callable[[], ProbeResult], *, timeout_s: float, kind: str = "check"
    ) -> ProbeResult:
        self.runs.append((kind, daemon.boot_id, timeout_s, asyncio.get_running_loop().time()))
        return check()


class Exits:
    def follow(self, daemons: object) -> None:
        """No process is watched."""

    def has_ended(self, _boot_id: str) -> bool:
        return False


class Scene:
    """A service with two daemons; ``result`` is what a probe, and a look at a listener, find."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, probe: str = "tcp") -> None:
        self.result = PROVEN
        self.specs: list[Any] = []
        self.environs: list[str] = []
        self.changes: list[bool] = []
        settings = Settings(
            name="s",
            listen=(Address("127.0.0.1", 1),),
            health=Health(probe=cast("Any", probe), command=("check",) if probe == "exec" else (), timeout_s=3.0),
        )
        service = Service.open(ServiceHome("s", root), settings)
        live = SimpleNamespace(service=service, settings=settings)
        monkeypatch.setattr(Service, "environ_of", self._environ_of)
        registry = SimpleNamespace(
            snapshot=Snapshot({"a": ACTIVE, "b": OTHER}, deployment=Deployment(1, active_boot_id="a"))
        )
        self.executor = ThreadPoolExecutor(1)
        self.threads = FakeThreads()
        self.upstream = UpstreamSelector(
            FakePlane(), cast("Any", live), cast("Any", registry), cast("Any", Exits()), lambda daemon: daemon.source
        )
        followed = SimpleNamespace(
            live=live, registry=registry, files=SimpleNamespace(reading=self.executor), loop=None, name="s"
        )
        self.followed = followed
        self.prober = DaemonProber(
            cast("Any", followed), cast("ProbeThreads", self.threads), self.upstream, shut, self._changed
        )
        monkeypatch.setattr(daemon_prober, "probe", self._probe)
        monkeypatch.setattr(daemon_prober, "look_at_listener", lambda _daemon, _spec: self.result)

    def _probe(self, _daemon: Daemon, spec: Any, *, timeout_s: float) -> ProbeResult:
        assert timeout_s == 3.0
        self.specs.append(spec)
        return self.result

    def _environ_of(self, build: str) -> Mapping[str, str]:
        self.environs.append(build)
        return {"BUILD": build}

    def _changed(self) -> None:
        self.changes.append(self.upstream.is_proven(ACTIVE))

    def probe(self, *daemons: Daemon) -> list[ProbeResult]:
        async def run() -> list[ProbeResult]:
            self.followed.loop = asyncio.get_running_loop()
            return [await self.prober.probe(daemon) for daemon in daemons]

        return asyncio.run(run())


def test_a_check_has_the_deadline_of_the_settings_and_its_result_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    scene.result = ProbeResult(ok=False, reason="refused")
    assert scene.probe(OTHER) == [scene.result]
    assert [run[:3] for run in scene.threads.runs] == [("check", "b", 3.0)]


def test_clients_are_held_once_the_listener_of_the_active_daemon_is_another_programs_and_sent_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    scene.probe(ACTIVE)
    assert scene.changes == [], "as it was"
    scene.result = ProbeResult(ok=False, reason="another program listens there", proven=False)
    scene.probe(ACTIVE, ACTIVE)
    assert scene.changes == [False], "once"
    assert [record.getMessage() for record in caplog.records] == ["s: clients are held: another program listens there"]
    scene.result = ProbeResult(ok=False, reason="time-out")
    scene.probe(ACTIVE)
    assert scene.changes == [False], "a check that did not look proves nothing"
    scene.result = PROVEN
    scene.probe(ACTIVE)
    assert scene.changes == [False, True]


def test_the_listener_of_a_daemon_that_is_not_active_changes_nothing_for_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)
    scene.result = ProbeResult(ok=False, reason="another program listens there", proven=False)
    scene.probe(OTHER)
    assert scene.changes == []
    assert not scene.upstream.is_proven(OTHER)


def test_a_health_command_gets_the_environment_of_the_daemons_deploy_which_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, probe="exec")
    scene.probe(ACTIVE, ACTIVE, OTHER, Daemon("attached", port=20003))
    assert [spec.environ for spec in scene.specs] == [{"BUILD": "one"}, {"BUILD": "one"}, {"BUILD": "two"}, None]
    assert scene.environs == ["one", "two"]


def test_a_listener_that_is_not_proven_is_looked_at_with_back_off_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch)

    async def run() -> None:
        scene.followed.loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(scene.prober.watch_listener())
        await asyncio.sleep(60)
        assert scene.threads.runs == [], "it is proven"
        scene.result = ProbeResult(ok=False, reason="another program listens there", proven=False)
        await scene.prober.probe(ACTIVE)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(10)
        looks = [(at - began) for kind, _, _, at in scene.threads.runs if kind == "listener look"]
        pauses = [later - earlier for earlier, later in zip([0.0, *looks], looks, strict=False)]
        assert pauses[:6] == pytest.approx([PROVE_FIRST_S * 2**n for n in range(5)] + [PROVE_MOST_S], abs=0.01)
        assert pauses[6:] == pytest.approx([PROVE_MOST_S] * len(pauses[6:]), abs=0.01)
        scene.result = PROVEN
        await asyncio.sleep(2 * PROVE_MOST_S)
        assert scene.changes == [False, True]
        count = len(scene.threads.runs)
        await asyncio.sleep(60)
        assert len(scene.threads.runs) == count, "it rests"
        scene.result = ProbeResult(ok=False, reason="gone again", proven=False)
        await scene.prober.probe(ACTIVE)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.99 * PROVE_MOST_S)
        first = next(at for kind, _, _, at in scene.threads.runs[count:] if kind == "listener look")
        assert first - began == pytest.approx(PROVE_FIRST_S, abs=0.01), "the back-off begins at its start again"
        task.cancel()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())
