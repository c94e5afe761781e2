"""The pump against arbitrary orders of bytes, stalls, ends and resets, on a kernel in memory."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fake_kernel import FakeEpoll, FakePipes, FakeSocket
from support import scaled
from turnout.planes.plane import Counters
from turnout.planes.pump import BUFFER_BYTES, Flow, Pair, Pump

CLIENT, DAEMON = 1, 2
SIZES = [1, 1000, BUFFER_BYTES - 1, BUFFER_BYTES, 3 * BUFFER_BYTES]
# an end or a reset closes what there is to try: they come seldom, the turns of the router often
ACTS = [*["send", "read", "turn", "turn of one"] * 4, "read on", "end", "end", "reset", "close"]
sides = st.sampled_from([CLIENT, DAEMON])


class PumpMachine(RuleBasedStateMachine):
    """Two peers that do what they like, and a pump that is called in any order that the kernel allows."""

    @initialize(room=st.sampled_from([1000, 70_000, 1 << 20]), pipes=st.sampled_from([0, 4]), seed=st.integers(0, 99))
    def connect(self, room: int, pipes: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.epoll = FakeEpoll()
        self.ends = {number: FakeSocket(number, room) for number in (CLIENT, DAEMON)}
        self.epoll.sockets = self.ends
        self.pool = FakePipes(self.ends, max_pipes=pipes, pipe_bytes=200_000)
        self.closed: list[Pair] = []
        self.counters = Counters()
        self.flows: dict[int, Flow] = {}
        self.pump = Pump(
            cast("Any", self.epoll),
            self.flows,
            self.counters,
            self._on_closed,
            lambda: None,
            pool=self.pool,
            splice=self.pool.splice,
        )
        self.epoll.register(CLIENT, 0)
        self.reset_by_a_peer = False
        self.pair = self.pump.add(cast("Any", self.ends[CLIENT]), cast("Any", self.ends[DAEMON]), "boot")

    def _on_closed(self, pair: Pair) -> None:
        self.closed.append(pair)
        self.epoll.interest.clear()  # close(2) takes descriptors out

    # -- what the peers and the router do ----------------------------------------------------------------------------

    @rule(what=st.sampled_from(ACTS), side=sides, size=st.sampled_from(SIZES))
    def act(self, what: str, side: int, size: int) -> None:
        end = self.ends[side]
        match what:
            case "send":
                end.peer_send(self.rng.randbytes(size))
            case "read":
                end.peer_read(size)
            case "end":
                end.peer_end()
            case "reset":
                self.reset_by_a_peer = True
                end.peer_reset()
            case "close":
                self.reset_by_a_peer = True  # bytes that still go to it are answered so
                end.peer_close()
            case _ if self.closed:
                return
            case "read on":
                self.pump.run_again()
            case "turn":
                self._turn({CLIENT, DAEMON})
            case _:
                self._turn({side})

    def _turn(self, only: set[int]) -> None:
        for fd, events in self.epoll.ready():
            flow = self.flows.get(fd)
            if flow and fd in only:
                self.pump.handle(flow, events)

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def every_byte_is_in_its_place(self) -> None:
        for here, there in ((CLIENT, DAEMON), (DAEMON, CLIENT)):
            source, target = self.ends[here], self.ends[there]
            got = target.peer_got + target.outbox
            assert source.peer_sent.startswith(got)

    @invariant()
    def what_lies_in_between_is_bounded(self) -> None:
        for flow in (self.pair.up, self.pair.down):
            assert not (flow.pending and flow.pipe and flow.pipe.held)
            assert len(flow.pending or b"") <= BUFFER_BYTES
            assert flow.state.blocked == bool(flow.pending or (flow.pipe and flow.pipe.held))

    @invariant()
    def an_end_is_only_seen_by_a_peer_that_has_everything(self) -> None:
        for here, there in ((CLIENT, DAEMON), (DAEMON, CLIENT)):
            source, target = self.ends[here], self.ends[there]
            if target.seen_by_peer == "end" and not target.peer_closed:
                assert target.peer_got == source.peer_sent, "a truncated stream looked whole"
                assert source.peer_ended

    @invariant()
    def nobody_is_reset_where_nobody_reset(self) -> None:
        if not self.reset_by_a_peer:
            assert [end.seen_by_peer for end in self.ends.values()].count("reset") == 0

    def teardown(self) -> None:
        """Everybody reads on and nobody says more: then all is through, or ended, and nothing spins."""
        if not hasattr(self, "pair"):
            return
        for _ in range(10_000):
            for end in self.ends.values():
                end.peer_read(1 << 30)
            ready = self.epoll.ready()
            if not ready and not self.pump.again:
                break
            self._turn({CLIENT, DAEMON})
            self.pump.run_again()
        else:
            raise AssertionError(f"it spins: {self.epoll.ready()}, {self.pair.up.state}, {self.pair.down.state}")
        for check in (self.every_byte_is_in_its_place, self.an_end_is_only_seen_by_a_peer_that_has_everything):
            check()
        self._everything_is_through()
        self.pump.close()
        assert self.closed == [self.pair]
        assert self.pool.leased == 0

    def _everything_is_through(self) -> None:
        both = [(CLIENT, DAEMON), (DAEMON, CLIENT)]
        if not self.reset_by_a_peer:
            for here, there in both:
                assert self.ends[there].peer_got == self.ends[here].peer_sent
                assert (self.ends[there].seen_by_peer == "end") == self.ends[here].peer_ended
            assert bool(self.closed) == all(end.peer_ended for end in self.ends.values())
            return
        if any(end.dead for end in self.ends.values()):
            assert self.closed, "one side is dead, and the other was never told"
        for here, there in both:
            source, target = self.ends[here], self.ends[there]
            if source.dead and not target.peer_closed and target.seen_by_peer == "end":
                assert source.peer_ended
                assert target.peer_got == source.peer_sent


def test_no_order_of_bytes_stalls_ends_and_resets_loses_adds_or_hangs() -> None:
    run_state_machine_as_test(
        PumpMachine,
        settings=settings(max_examples=scaled(300, 20_000), stateful_step_count=30, deadline=None),
    )


def test_the_fake_kernel_tells_an_error_once_and_then_an_end() -> None:
    sock = FakeSocket(1, 1000)
    sock.peer_send(b"before")
    sock.peer_reset()
    assert sock.take(100) == b"before"
    with pytest.raises(ConnectionResetError):
        sock.send(b"x")
    assert sock.take(100) == b""
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
