"""Runs the starts of daemons in the keeper's loop: a shim or a program that hangs delays its own start alone.

Standard library only and single-threaded, as the keeper is.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from turnout.errors import NotBegunError
from turnout.system.process import ProcessHandle
from turnout.system.shim import Shim
from turnout.system.spawn import Start, Wait

Result = tuple[ProcessHandle, Shim | None] | Exception


@dataclass(slots=True, eq=False)
class _Running:
    """A start under way. ``turn``: the number of its current wait; an event of an earlier wait is ignored."""

    boot_id: str
    steps: Start
    done: Callable[[Result], None]
    deferred: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    fd: int = -1
    turn: int = 0
    failed: bool = False


class DaemonStarts:
    """Owns each start from its first step until it has succeeded or failed.

    Args:
        selector: where the descriptors that starts wait for are registered.
    """

    def __init__(self, selector: selectors.BaseSelector, after: Callable[[float, Callable[[], None]], None]) -> None:
        self._selector = selector
        self._after = after
        self._all: dict[str, _Running] = {}

    @property
    def boot_ids(self) -> set[str]:
        return set(self._all)

    def begin(self, boot_id: str, steps: Start, done: Callable[[Result], None]) -> None:
        """Run the steps; ``done`` gets the daemon and its shim, or the error that ended the start."""
        start = _Running(boot_id, steps, done)
        self._all[boot_id] = start
        self._run(start, partial(next, steps))

    def defer(self, boot_id: str, action: Callable[[], None]) -> bool:
        """Run ``action`` after the start of this boot; False: no such start is under way."""
        start = self._all.get(boot_id)
        if start:
            start.deferred.append(action)
        return start is not None

    def close(self) -> None:
        """Kill the daemons that are being started."""
        for start in self._all.values():
            self._forget_wait(start)
            start.steps.close()
        self._all.clear()

    def _run(self, start: _Running, step: Callable[[], Wait]) -> None:
        result: Result
        try:
            wait = step()
        except StopIteration as end:
            result = end.value
        except Exception as error:  # noqa: BLE001  # it is the answer to the request for this start
            result = error
        else:
            self._wait(start, wait)
            return
        del self._all[start.boot_id]
        try:
            start.done(result)
        finally:
            for action in start.deferred:
                action()

    def _wait(self, start: _Running, wait: Wait) -> None:
        go_on = partial(self._go_on, start, start.turn)
        try:
            self._selector.register(wait.fd, selectors.EVENT_READ, partial(go_on, readable=True))
        except OSError as error:  # epoll_ctl(2): ENOSPC, ENOMEM
            failed, start.failed = start.failed, True
            why = NotBegunError(f"cannot watch {start.boot_id}: {error.strerror}", hint="ulimit -n")
            self._run(start, partial(start.steps.send, False) if failed else partial(start.steps.throw, why))
            return
        start.fd = wait.fd
        self._after(wait.timeout_s, partial(go_on, readable=False))

    def _go_on(self, start: _Running, turn: int, *, readable: bool) -> None:
        if start.turn == turn:
            self._forget_wait(start)
            self._run(start, partial(start.steps.send, readable))

    def _forget_wait(self, start: _Running) -> None:
        """Unregister before the next step, which may close the descriptor."""
        start.turn += 1
        self._selector.unregister(start.fd)
