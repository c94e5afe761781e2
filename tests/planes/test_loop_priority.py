"""The poller leaves for what is urgent in the loop, and stays for nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest
import uvloop

from turnout.planes.loop_priority import LoopPriority
from turnout.planes.poller import Poller

MOST = 2000  # so many events and the traffic ends: a poller that would stay for ever does not hang the test


class Busy:
    """A member with traffic that never pauses: it is to be read until it was heard MOST times."""

    def __init__(self, poller: Poller) -> None:
        self.heard_times = 0
        self.readable, self._writer = socket.socketpair()
        self.readable.setblocking(False)
        self._writer.send(b"x")
        self._poller = poller
        poller.members.append(self)

    def begin(self) -> None:
        self._poller.epoll.register(self.readable.fileno(), 1)

    def is_listener(self, fd: int) -> bool:
        return False

    def on_event(self, fd: int, events: int) -> None:
        self.heard_times += 1
        if self.heard_times == MOST:
            self.readable.recv(1)

    def accept(self) -> None:
        raise AssertionError

    def close(self) -> None:
        self._poller.members.remove(self)
        self.readable.close()
        self._writer.close()


class Deaf(LoopPriority):
    def watch(self, fd: int) -> None:
        pass

    def forget(self, fd: int) -> None:
        pass


@pytest.fixture
def bell() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


def heard_until(loop_priority: LoopPriority, bell: tuple[int, int], *, ring_at: int) -> int:
    """How often the traffic was heard before the loop read what rang at that event."""

    async def run() -> int:
        loop = asyncio.get_running_loop()
        poller = Poller(loop, loop_priority=loop_priority, clock=lambda: 0.0)  # its time to stay never ends
        done: asyncio.Future[int] = loop.create_future()

        class Ringing(Busy):
            def on_event(self, fd: int, events: int) -> None:
                super().on_event(fd, events)
                if self.heard_times == ring_at:
                    os.write(bell[1], b"!")

        busy = Ringing(poller)

        def rang() -> None:
            if not done.done():
                done.set_result(busy.heard_times)
            loop.remove_reader(bell[0])
            loop_priority.forget(bell[0])

        loop.add_reader(bell[0], rang)
        loop_priority.watch(bell[0])
        busy.begin()
        try:
            async with asyncio.timeout(30):
                return await done
        finally:
            busy.close()
            poller.close()

    return uvloop.run(run())


def test_what_rings_is_heard_in_the_middle_of_dense_traffic(bell: tuple[int, int]) -> None:
    assert heard_until(LoopPriority(), bell, ring_at=50) < 60


def test_without_a_bell_the_loop_waits_for_the_traffic_to_pause(bell: tuple[int, int]) -> None:
    assert heard_until(Deaf(), bell, ring_at=50) == MOST


def test_while_something_is_urgent_the_poller_does_not_stay(bell: tuple[int, int]) -> None:
    loop_priority = Deaf()
    with loop_priority.preempting():
        assert heard_until(loop_priority, bell, ring_at=50) < 60
    assert loop_priority.pending == 0


def test_a_poller_that_is_made_later_hears_what_was_watched_before(bell: tuple[int, int]) -> None:
    loop_priority = LoopPriority()
    loop_priority.watch(bell[0])
    assert loop_priority.wakeup_fds == {bell[0]}
    os.write(bell[1], b"!")

    async def run() -> list[tuple[int, int]]:
        poller = Poller(asyncio.get_running_loop(), loop_priority=loop_priority)
        found = poller.epoll.poll(0)
        loop_priority.forget(bell[0])
        found += poller.epoll.poll(0)
        poller.close()
        return found

    assert uvloop.run(run()) == [(bell[0], 1)]
