"""The processes of a service as ``down`` and ``stop`` end them, with a keeper that is a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from turnout.config.settings import Address, Settings
from turnout.core.membership import register_daemon
from turnout.core.model import Daemon, Identity
from turnout.errors import StillRunningError, TimedOutError
from turnout.lifecycle.bootstrap import Bootstrap
from turnout.lifecycle.service_processes import ServiceProcesses
from turnout.state.home import Home
from turnout.state.service import Service
from turnout.system.process import own_identity
from turnout.system.spawn_record import SpawnRecord, record_end, write_record

SETTINGS = Settings(name="t", listen=(Address("127.0.0.1", 1),), drain_grace_s=0.0)
DEAD = Identity(2**22 - 1, 1)


class FakeKeeper:
    """Stops what it is asked to stop, but for ``stubborn``, and has other services."""

    def __init__(self, *, stubborn: str = "", others: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._stubborn = stubborn
        self._others = others

    @property
    def keeper(self) -> FakeKeeper:
        return self

    def runs(self) -> bool:
        return False

    def stop(self, _service: str, boot_id: str, *, stop_signal: str, grace_s: float) -> None:
        self.asked.append((boot_id, stop_signal, grace_s))
        if boot_id == self._stubborn:
            raise StillRunningError(f"{boot_id} is still there")

    def unlisten(self, service: str) -> tuple[str, ...]:
        self.asked.append(("unlisten", service))
        return self._others

    def shutdown(self) -> None:
        self.asked.append(("shutdown",))


@pytest.fixture
def service(tmp_path: Path) -> Service:
    service = Service.open(Home(tmp_path).service("t"), SETTINGS)
    service.home.create()
    return service


def processes(service: Service, keeper: FakeKeeper) -> ServiceProcesses:
    return ServiceProcesses(service, cast("Bootstrap", keeper))


def register(service: Service, boot_id: str, identity: Identity) -> None:
    daemon = Daemon(boot_id, identity=identity, owned=True)
    service.registry.update(lambda snap: register_daemon(snap, daemon))


def left_behind(service: Service, boot_id: str) -> None:
    """A daemon that has ended, whose shim lives on with a process of it."""
    path = service.home.record(boot_id)
    write_record(path, SpawnRecord(boot_id, "t", DEAD, "", 0.0, shim=own_identity()))
    record_end(path, 0)


def test_a_boot_that_cannot_be_ended_is_named_and_the_others_are_stopped(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(service, "b0")
    left_behind(service, "b1")
    keeper = FakeKeeper(stubborn="b0")
    found = processes(service, keeper)
    monkeypatch.setattr(found, "wait_gone", lambda *_, **__: None)
    left = found.drain_and_stop()
    assert keeper.asked == [("b0", "TERM", 30.0), ("b1", "TERM", 30.0)]
    assert [error.message for error in left] == ["b0 is still there"]


def test_a_process_that_a_dead_daemon_left_counts_as_running(service: Service) -> None:
    found = processes(service, FakeKeeper())
    register(service, "b1", DEAD)
    assert not found.any_runs()
    left_behind(service, "b1")
    assert found.any_runs()


def test_a_daemon_that_does_not_end_is_named_at_the_deadline(service: Service) -> None:
    register(service, "b1", own_identity())
    with pytest.raises(TimedOutError, match=r"still there after 0 s: b1 \(pid"):
        processes(service, FakeKeeper()).wait_gone(0.0, ended=True)


def test_the_entry_of_a_dead_daemon_is_waited_for_only_where_the_router_is_to_remove_it(service: Service) -> None:
    register(service, "b1", DEAD)
    found = processes(service, FakeKeeper())
    found.wait_gone(0.0, ended=True)
    with pytest.raises(TimedOutError):
        found.wait_gone(0.0)


@pytest.mark.parametrize("others", [(), ("cache",)])
def test_the_keeper_ends_with_its_last_service(service: Service, others: tuple[str, ...]) -> None:
    keeper = FakeKeeper(others=others)
    processes(service, keeper).close_address()
    assert keeper.asked == [("unlisten", "t"), *(() if others else [("shutdown",)])]
