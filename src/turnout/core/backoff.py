"""How long to wait before a daemon is started again, and when a failure is the same as the last."""

from __future__ import annotations

import re
from typing import Final

_NUMBERED: Final = re.compile(r"[\w.-]*\d[\w.-]*")
# Pauses before each restart of a daemon that died: the first at once, for clients are waiting; then less often.
RESTART_DELAYS_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# Between attempts that could not even begin (a full disk, no process to be had): for as long as that lasts.
NOT_BEGUN_DELAYS_S: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
STEADY_AFTER_S: Final = 60.0  # a daemon that lived this long is not in a crash loop


def not_begun_delay_s(attempts: int) -> float:
    """Seconds to wait after the last of ``attempts`` (1 or more) attempts in a row that could not begin."""
    return NOT_BEGUN_DELAYS_S[min(attempts, len(NOT_BEGUN_DELAYS_S)) - 1]


def same_cause(reason: str, other: str) -> bool:
    """Whether two reasons differ only in boot ids, pids and times, which change with every attempt."""
    return _NUMBERED.sub("", reason) == _NUMBERED.sub("", other)
