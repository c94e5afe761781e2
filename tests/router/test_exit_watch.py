"""A daemon counts as ended as soon as its process has, however that is found out, and no other one does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from support import eventually
from traffic import open_fds
from turnout.core.model import Daemon, Identity
from turnout.router.exit_watch import ExitWatch
from turnout.system.process import identify, state_of


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def daemon_of(pid: int, boot_id: str = "a") -> Daemon:
    return Daemon(boot_id, port=1, identity=identify(pid))


def end_unreaped(pid: int) -> None:
    """It has ended, and its parent has not asked for it: a zombie."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: state_of(pid) == "Z")


def test_an_end_is_seen_without_a_turn_of_the_loop_and_told_once(child: subprocess.Popen[bytes]) -> None:
    async def watch() -> None:
        told: list[str] = []
        heard = asyncio.Event()

        def tell(boot_id: str) -> None:
            told.append(boot_id)
            heard.set()

        exits = ExitWatch(asyncio.get_running_loop(), tell)
        daemon = daemon_of(child.pid)
        exits.follow([daemon])
        assert not exits.has_ended("a")
        end_unreaped(child.pid)
        assert exits.has_ended("a")
        assert told == []
        async with asyncio.timeout(20):
            await heard.wait()
        exits.follow([daemon])
        await asyncio.sleep(0.05)  # the loop's next turn would tell it again: the descriptor stays readable
        assert (told, exits.has_ended("a")) == (["a"], True)
        exits.close()

    asyncio.run(watch())


def test_a_daemon_that_had_ended_before_it_was_watched_has_ended(child: subprocess.Popen[bytes]) -> None:
    """A router that follows a dead one has nothing but the registry."""

    async def watch() -> None:
        exits = ExitWatch(asyncio.get_running_loop(), lambda _boot_id: None)
        daemon = daemon_of(child.pid)
        child.kill()
        child.wait(20)
        reused = Daemon("reused", port=1, identity=replace(identify(os.getpid()), start_ticks=1))
        exits.follow([daemon, reused])
        assert exits.has_ended("a")
        assert exits.has_ended("reused"), "another process has its pid"
        exits.close()

    asyncio.run(watch())


def test_where_there_is_no_pidfd_the_process_table_is_asked(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", refuse)

    async def watch() -> None:
        exits = ExitWatch(asyncio.get_running_loop(), lambda _boot_id: None)
        exits.follow([daemon_of(child.pid)])
        assert not exits.has_ended("a")
        end_unreaped(child.pid)
        assert exits.has_ended("a")
        exits.close()

    asyncio.run(watch())


def test_a_process_that_is_not_known_or_cannot_be_seen_never_counts_as_ended() -> None:
    async def watch() -> None:
        exits = ExitWatch(asyncio.get_running_loop(), lambda _boot_id: None)
        here = identify(os.getpid())
        exits.follow([Daemon("attached", port=1), Daemon("elsewhere", identity=replace(here, pid_ns=1, pid=1 << 21))])
        assert not any(map(exits.has_ended, ("attached", "elsewhere", "never heard of")))
        exits.follow([Daemon("rebooted", port=1, identity=Identity(here.pid, here.start_ticks, "another boot"))])
        assert exits.has_ended("rebooted")
        exits.close()

    asyncio.run(watch())


def test_no_descriptor_is_kept_of_daemons_that_are_not_watched_any_more(child: subprocess.Popen[bytes]) -> None:
    async def watch() -> None:
        exits = ExitWatch(asyncio.get_running_loop(), lambda _boot_id: None)
        before = open_fds()
        for _ in range(3):
            exits.follow([daemon_of(child.pid)])
            exits.follow([daemon_of(child.pid, "b"), daemon_of(os.getpid(), "c")])
        assert open_fds() == before + 2
        exits.close()
        assert open_fds() == before

    asyncio.run(watch())
