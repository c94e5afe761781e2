"""The boundary of the keeper's loop: a failure is logged, once in a while, and the loop goes on."""

from __future__ import annotations

import sched
import time
from functools import partial

from turnout.system.loop_guard import PAUSE_S, SAY_AGAIN_S, LoopGuard


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []


def fails() -> None:
    raise PermissionError("no")


def test_a_failure_is_logged_once_a_minute_and_never_spins() -> None:
    clock, lines = Clock(), list[str]()
    guard = LoopGuard(lines.append, clock=lambda: clock.now, sleep=clock.slept.append)
    assert guard.run(lambda: None)
    assert not any(guard.run(fails) for _ in range(5))
    assert len(lines) == 1
    assert "PermissionError: no" in lines[0]
    assert clock.slept == [PAUSE_S] * 5
    clock.now = SAY_AGAIN_S
    guard.run(fails)
    assert len(lines) == 2


def test_a_timer_that_fails_keeps_no_other_from_its_turn() -> None:
    ran: list[int] = []
    timers, guard = sched.scheduler(time.monotonic), LoopGuard(lambda _line: None, sleep=lambda _seconds: None)
    timers.enter(0, 0, fails)
    timers.enter(0, 0, lambda: ran.append(1))
    for _ in range(2):
        guard.run(partial(timers.run, blocking=False))
    assert ran == [1]
