"""Checks that hang: their daemon fails them, and no other daemon, no router and no exit waits for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from turnout.core.model import Daemon, Identity
from turnout.router.health.probing import ProbeThreads
from turnout.system.daemon_threads import DaemonThreads
from turnout.system.probes.probe import ProbeResult
from turnout.system.process import identify, own_identity

WELL = ProbeResult(ok=True, reason="it is well")
BOUND_S = 0.05  # of a check that hangs; those that do not hang have WAIT_S
WAIT_S = 30.0
SHARED = 2


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """A health command on a file system that does not answer: it waits for this event."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def shared() -> Iterator[DaemonThreads]:
    threads = DaemonThreads("shared", SHARED)
    yield threads
    threads.shutdown(wait=False)


def daemon(name: str, identity: Identity | None = None) -> Daemon:
    return Daemon(name, identity=identity or own_identity())


def blocked(event: threading.Event, calls: list[str], name: str) -> Callable[[], ProbeResult]:
    def check() -> ProbeResult:
        calls.append(name)
        event.wait()
        return WELL

    return check


def test_hung_checks_of_many_daemons_delay_no_other_daemon(hung: threading.Event, shared: DaemonThreads) -> None:
    calls: list[str] = []

    async def story() -> None:
        services = [ProbeThreads(asyncio.get_running_loop(), shared, late_s=0.0) for _ in range(2 * SHARED)]
        hanging = [
            service.run(daemon(f"hangs-{number}"), blocked(hung, calls, str(number)), timeout_s=BOUND_S)
            for number, service in enumerate(services)
        ]
        results = await asyncio.gather(*hanging)
        assert not any(result.ok for result in results)
        assert all("hangs" in result.reason for result in results)
        for service in services:
            assert await service.run(daemon("well"), lambda: WELL, timeout_s=WAIT_S) == WELL
            service.close()

    asyncio.run(story())


def test_a_daemon_has_one_check_in_flight_and_fails_until_that_comes_back(
    hung: threading.Event, shared: DaemonThreads
) -> None:
    calls: list[str] = []

    async def story() -> None:
        probing = ProbeThreads(asyncio.get_running_loop(), shared, late_s=0.0)
        for _ in range(5):
            result = await probing.run(daemon("a"), blocked(hung, calls, "a"), timeout_s=BOUND_S)
            assert (result.ok, result.gone) == (False, False)
            assert result.took_s <= BOUND_S, "a check that outran its time-out would not count"
        assert calls == ["a"]
        assert await probing.run(daemon("a"), lambda: WELL, timeout_s=WAIT_S, kind="listener look") == WELL
        hung.set()
        async with asyncio.timeout(WAIT_S):
            while not (await probing.run(daemon("a"), lambda: WELL, timeout_s=WAIT_S)).ok:  # noqa: ASYNC110  # a thread
                await asyncio.sleep(0.001)  # the late answer is on its way from its thread
        probing.close()

    asyncio.run(story())


def test_a_daemon_that_ends_while_its_check_hangs_is_seen_to_be_gone(
    hung: threading.Event, shared: DaemonThreads
) -> None:
    """Its restart must not wait for the file system."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ending = daemon("a", identify(process.pid))

    async def story() -> None:
        probing = ProbeThreads(asyncio.get_running_loop(), shared, late_s=0.0)
        assert not (await probing.run(ending, blocked(hung, [], "a"), timeout_s=BOUND_S)).gone
        process.kill()
        process.communicate()
        assert (await probing.run(ending, lambda: WELL, timeout_s=BOUND_S)).gone
        probing.close()

    asyncio.run(story())


def test_where_no_thread_can_be_started_a_check_takes_one_that_runs(
    shared: DaemonThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def story() -> None:
        probing = ProbeThreads(asyncio.get_running_loop(), shared)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert await probing.run(daemon("a"), lambda: WELL, timeout_s=WAIT_S) == WELL
        monkeypatch.undo()
        probing.close()

    asyncio.run(story())


@pytest.mark.parametrize("name", ["a b", "", "check"])
def test_a_boot_id_of_another_program_may_be_any_text(hung: threading.Event, shared: DaemonThreads, name: str) -> None:
    """Else each snapshot would forget the check in flight, and each check that hangs leave a thread behind."""
    calls: list[str] = []

    async def story() -> None:
        probing = ProbeThreads(asyncio.get_running_loop(), shared, late_s=0.0)
        for _ in range(3):
            await probing.run(daemon(name), blocked(hung, calls, "once"), timeout_s=BOUND_S)
            probing.keep({name})
        async with asyncio.timeout(WAIT_S):
            while not calls:  # noqa: ASYNC110  # a thread
                await asyncio.sleep(0.001)
        assert calls == ["once"]
        probing.close()

    asyncio.run(story())


def test_a_daemon_that_is_forgotten_leaves_no_thread(shared: DaemonThreads) -> None:
    async def story() -> None:
        probing = ProbeThreads(asyncio.get_running_loop(), shared)
        for name in ("forgotten", "kept"):
            await probing.run(daemon(name), lambda: WELL, timeout_s=WAIT_S)
        going = [thread for thread in threading.enumerate() if "forgotten" in thread.name]
        probing.keep({"kept"})
        for thread in going:
            thread.join(WAIT_S)
        assert going
        assert not any(thread.is_alive() for thread in going)
        assert any("kept" in thread.name for thread in threading.enumerate())
        probing.close()

    asyncio.run(story())
