"""Keeps a single-threaded loop alive: logs each error that an action raises, and goes on. Standard library only.

The keeper holds the listeners: clients of every service are refused when it ends, whatever it ended over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 0.02  # an event that stays and fails each time must not take a whole processor
SAY_AGAIN_S: Final = 60.0


class LoopGuard:
    """Runs the actions of a loop.

    Args:
        say: takes a line for the log.
        clock: monotonic seconds.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._said: dict[str, float] = {}  # when each failure was logged last

    def run(self, action: Callable[[], object]) -> bool:
        """Run the action; returns whether it succeeded. The same failure is logged once a minute."""
        try:
            action()
        except Exception as error:  # noqa: BLE001  # this is the one place where a failure of any kind ends
            where = _origin(error)
            line = f"internal error: {type(error).__name__}: {error} ({where})"[:500]
            now = self._clock()
            if now - self._said.get(where, -SAY_AGAIN_S) >= SAY_AGAIN_S:
                self._said[where] = now
                self._say(line)
            self._sleep(PAUSE_S)
            return False
        return True


def _origin(error: BaseException) -> str:
    """File and line of the innermost frame."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
